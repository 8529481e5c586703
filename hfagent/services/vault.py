"""`vault/*`: state, key rotation, recovery.

The key's source may keep us waiting (an OS keyring asks its user), so this work has a lane of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from hfagent.foundation.errors import AgentError, ConfigError
from hfagent.sdk.registry import Registry
from hfagent.services.connections import Connections
from hfagent.services.context import CallContext
from hfagent.services.credentials import Credentials
from hfagent.services.workers import Workers
from hfagent.store.store import Store

__all__ = ["VaultVerbs"]

_log = logging.getLogger(__name__)
T = TypeVar("T")

KeySource = Literal["license", "systemd", "keyring", "file"]


class VaultVerbs:
    """The verbs of the vault. None of them returns a connector's secret."""

    def __init__(
        self,
        credentials: Credentials,
        connections: Connections,
        store: Store,
        registry: Registry,
        workers: Workers,
    ) -> None:
        self._credentials = credentials
        self._connections = connections
        self._store = store
        self._registry = registry
        self._workers = workers
        self._lane = workers.lane("vault", threads=2)
        self._rotating = asyncio.Lock()

    async def status(self, *, quick: bool = False) -> dict[str, Any]:
        """Return the facts of `VaultStatus`; when it is locked, also `problem` and its remedy as `hint`.

        `quick` does not try every secret: `unreadable` is empty then.
        """
        return await self._db(lambda: self._status(quick))

    async def rotate(self, call: CallContext, key_source: KeySource | None = None) -> dict[str, Any]:
        """Make a new key (optionally from another source), re-encrypt every secret, destroy the old key.

        Goes on where an interrupted rotation stopped. Secrets that cannot be opened keep the old key alive; they are named.
        """
        call.progress({"kind": "begin", "title": "Rotate the vault's key", "cancellable": False})
        vault = self._credentials.vault
        async with self._rotating:
            await self._db(lambda: vault.begin_rotation(key_source))
            failed = await self._db(lambda: self._reseal(call))
        call.progress(
            {"kind": "end", "message": "done" if not failed else f"{len(failed)} connectors stay under the old key"}
        )
        return await self.status()

    async def recovery_key(self, call: CallContext) -> str:
        """Make a recovery key and return it, once. An earlier one stops working."""

        def work() -> str:
            key = self._credentials.vault.create_recovery_key()
            self._audit(call, "vault.recovery_key", {})
            return key

        return await self._db(work)

    async def unlock(
        self, call: CallContext, recovery_key: str, key_source: Literal["keyring", "file"] = "file"
    ) -> dict[str, Any]:
        """Open a locked vault with its recovery key, give it a new key from `key_source`, and re-encrypt under that."""

        def work() -> None:
            self._credentials.vault.unlock(recovery_key, key_source)
            self._audit(call, "vault.unlock", {"key_source": key_source})

        async with self._rotating:
            await self._db(work)
            await self._db(lambda: self._reseal(call))
        return await self.status()

    async def resume(self) -> None:
        """Finish a rotation that an earlier process began. Called at start; failures are logged and shown in the status."""
        vault = self._credentials.vault

        def work() -> None:
            state = vault.status()
            if state.state == "unlocked" and state.retiring:
                self._credentials.reseal_all()
                self._credentials.finish_rotation()

        try:
            async with self._rotating:
                await self._db(work)
        except AgentError:
            _log.exception("the interrupted key rotation could not be finished")

    def _reseal(self, call: CallContext) -> list[str]:
        """Re-encrypt everything and let go of the keys that nothing needs any more. Returns whose secrets did not open."""

        def report(done: int, total: int) -> None:
            call.progress(
                {"kind": "report", "message": f"{done}/{total} secrets", "percentage": int(100 * done / max(total, 1))}
            )

        failed = self._credentials.reseal_all(report)
        finished = self._credentials.finish_rotation()
        self._audit(call, "vault.rotate", {"failed": failed, "finished": finished})
        return failed

    def _status(self, quick: bool) -> dict[str, Any]:
        state = self._credentials.vault.status()
        unlocked = state.state == "unlocked"
        return {
            "state": state.state,
            "reason": "; ".join(text for text in (state.reason, state.hint) if text) or None,
            "problem": state.reason,
            "hint": state.hint,
            "key_source": state.key_source,
            "key_id": state.key_id,
            "created_at": state.created_at,
            "recovery_key": state.recovery_key,
            "notes": state.notes,
            "secrets": self._store.secrets.count(),
            "pending_rotation": self._store.secrets.count_not_under(state.key_id) if unlocked and state.key_id else 0,
            "unreadable": tuple(self._unreadable()) if unlocked and not quick else (),
        }

    def _unreadable(self) -> list[str]:
        names = []
        for record in self._store.connectors.list():
            try:
                cls = self._registry.get(record.type)
            except ConfigError:
                continue
            try:
                self._credentials.open_stored(cls, record)
            except AgentError:
                names.append(record.name)
        return names

    def _audit(self, call: CallContext, action: str, details: dict[str, Any]) -> None:
        self._store.audit.append(
            action, actor=str(call.actor), resource_type="vault", resource_id="vault", details=details
        )

    async def _db(self, work: Callable[[], T]) -> T:
        return await self._workers.call(self._lane, work)
