"""The OS keyring, with two precautions: only backends that encrypt, and no waiting without end.

The `keyring` package picks a backend by itself. Without a desktop session that is one that always fails, and with
`keyrings.alt` installed one that writes plain text. So the backend it picked is used only when it stands in a list.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from hfagent.vault.failures import VaultLocked

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

__all__ = ["ALLOWED", "KeyringAccess"]

ALLOWED: Final = frozenset(
    {
        "keyring.backends.SecretService.Keyring",
        "keyring.backends.kwallet.DBusKeyring",
        "keyring.backends.kwallet.DBusKeyringKWallet4",
        "keyring.backends.macOS.Keyring",
        "keyring.backends.Windows.WinVaultKeyring",
    }
)
"""Backends that keep secrets encrypted under the user's session."""

_CHAIN: Final = "keyring.backends.chainer.ChainerBackend"
T = TypeVar("T")


class KeyringAccess:
    """Reads and writes entries of the OS keyring. Every call may wait up to `timeout_s` seconds."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def backend_name(self) -> str:
        """Return the name of the allowed backend that is in use here. Raises `VaultLocked` when there is none."""
        return self._call("choosing a backend", lambda: _name(_allowed_backend()))

    def get(self, service: str, user: str) -> str | None:
        """Return an entry, None when there is none. Raises `VaultLocked`."""
        entry: str | None = self._call("reading", lambda: _allowed_backend().get_password(service, user))
        return entry

    def set(self, service: str, user: str, value: str) -> None:
        """Write an entry. Raises `VaultLocked`."""
        self._call("writing", lambda: _allowed_backend().set_password(service, user, value))

    def delete(self, service: str, user: str) -> None:
        """Remove an entry, if it is there. Raises `VaultLocked`."""

        def work() -> None:
            backend = _allowed_backend()
            if backend.get_password(service, user) is not None:
                backend.delete_password(service, user)

        self._call("deleting", work)

    def _call(self, what: str, work: Callable[[], T]) -> T:
        """Run `work` in a thread of its own and give up on it after a while: nothing else can end a waiting D-Bus call."""
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(work())
            except BaseException as exc:  # noqa: BLE001  carried over to the caller's thread
                failure.append(exc)

        thread = threading.Thread(target=run, name="hfagent-keyring", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        if failure:
            if isinstance(failure[0], VaultLocked):
                raise failure[0]
            raise VaultLocked(
                f"the OS keyring failed while {what}: {type(failure[0]).__name__}",
                hint="unlock the keyring (log in to the desktop session), then restart the agent",
            ) from failure[0]
        if not outcome:
            raise VaultLocked(
                f"the OS keyring did not answer within {self._timeout_s:g} s while {what}; it may be waiting for a password",
                hint="unlock the keyring, then restart the agent",
            )
        return outcome[0]


def _allowed_backend() -> KeyringBackend:
    import keyring

    found: Any = keyring.get_keyring()
    # Of a chain only an allowed link is used, directly: the chain itself would fall back to the others.
    candidates = list(found.backends) if _name(found) == _CHAIN else [found]
    for backend in candidates:
        if _name(backend) in ALLOWED:
            return backend
    refused = ", ".join(map(_name, candidates)) or _name(found)
    raise VaultLocked(
        f"no OS keyring that keeps secrets encrypted works here (found: {refused})",
        hint="use another key source: key_source = file or systemd",
    )


def _name(backend: object) -> str:
    return f"{type(backend).__module__}.{type(backend).__qualname__}"
