"""`vault/*`."""

from __future__ import annotations

from hfagent.protocol import vault as v
from hfagent.server.dispatch import Handler
from hfagent.services.context import CallContext
from hfagent.services.vault import VaultVerbs

__all__ = ["vault_handlers"]


def vault_handlers(vault: VaultVerbs) -> dict[str, Handler]:
    """Return the handlers of the namespace."""

    async def status(call: CallContext, p: v.StatusParams) -> v.VaultStatus:
        return v.VaultStatus.model_validate(_known(await vault.status()))

    async def rotate(call: CallContext, p: v.RotateParams) -> v.VaultStatus:
        return v.VaultStatus.model_validate(_known(await vault.rotate(call, p.key_source)))

    async def recovery_key(call: CallContext, p: v.RecoveryKeyParams) -> v.RecoveryKey:
        return v.RecoveryKey(recovery_key=await vault.recovery_key(call))

    async def unlock(call: CallContext, p: v.UnlockParams) -> v.VaultStatus:
        return v.VaultStatus.model_validate(_known(await vault.unlock(call, p.recovery_key, p.key_source)))

    return {
        v.STATUS.name: status,
        v.ROTATE.name: rotate,
        v.RECOVERY_KEY.name: recovery_key,
        v.UNLOCK.name: unlock,
    }


def _known(facts: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in facts.items() if name in v.VaultStatus.model_fields}
