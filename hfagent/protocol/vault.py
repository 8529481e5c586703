"""`vault/*`: the agent's sealed credentials. No method returns a secret."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hfagent.model.value import Value
from hfagent.protocol.method import Access, Method, Nothing, Params

__all__ = ["RECOVERY_KEY", "ROTATE", "STATUS", "UNLOCK"]


class StatusParams(Nothing):
    """Show the vault's state: locked or not, key source, how many secrets."""


class VaultStatus(Value):
    """The vault's state."""

    state: Literal["unlocked", "locked", "empty"]
    reason: str | None = Field(None, description="Why it is locked, and what to do.")
    key_source: str | None = Field(None, description="license, systemd, keyring, file or recovery.")
    key_id: str | None = None
    created_at: str | None = None
    secrets: int = 0
    pending_rotation: int = Field(0, description="Secrets still under an older key.")
    unreadable: tuple[str, ...] = Field((), description="Connectors whose secrets cannot be opened.")
    recovery_key: bool = Field(False, description="Whether a recovery key was made.")


class RotateParams(Params):
    """Make a new key and re-encrypt every secret under it.

    Online and resumable: both keys open secrets until the last one is done; then the old key is destroyed.
    """

    key_source: Literal["license", "systemd", "keyring", "file"] | None = Field(
        None, description="Move the key to another source; default: stay."
    )


class RecoveryKeyParams(Params):
    """Make a recovery key and return it, once.

    Whoever has it and the data directory can open the vault: print it and lock it away. An earlier one stops working.
    """


class RecoveryKey(Value):
    """The recovery key, shown once."""

    recovery_key: str = Field(description="Groups of letters and digits; keep it off this machine.")


class UnlockParams(Params):
    """Unlock a vault whose key is lost, with its recovery key, and give it a new key."""

    recovery_key: str = Field(description="As it was shown; dashes and case do not matter.")
    key_source: Literal["keyring", "file"] = Field("file", description="Where the new key goes.")


STATUS = Method("vault/status", StatusParams, VaultStatus)
ROTATE = Method(
    "vault/rotate", RotateParams, VaultStatus, access=Access.SECRET, progress=True, errors=("credential.key_missing",)
)
RECOVERY_KEY = Method(
    "vault/recoveryKey", RecoveryKeyParams, RecoveryKey, access=Access.SECRET, errors=("credential.key_missing",)
)
UNLOCK = Method("vault/unlock", UnlockParams, VaultStatus, access=Access.SECRET, errors=("credential.unreadable",))
