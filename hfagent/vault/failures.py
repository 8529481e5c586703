"""What can go wrong with sealed credentials: the vault is locked, or one of them does not open."""

from __future__ import annotations

from typing import Final

from hfagent.foundation.errors import UserError

__all__ = ["CredentialUnreadable", "VaultLocked", "unreadable"]

_RECOVER: Final = "enter the secret again (hfagent connector rotate), or put back the vault folder it was sealed with"


class VaultLocked(UserError):
    """The vault's key is not available: nothing can be sealed or opened. The hint is the remedy."""

    default_code = "credential.key_missing"


class CredentialUnreadable(UserError):
    """A sealed secret does not open: damaged, moved, of another key or of an unknown format. Which of these is not told."""

    default_code = "credential.unreadable"


def unreadable(connector_id: str, field: str) -> CredentialUnreadable:
    """The one error for every way in which opening can fail."""
    return CredentialUnreadable(
        f"the stored secret {field!r} of connector {connector_id} cannot be opened with the present key", hint=_RECOVER
    )
