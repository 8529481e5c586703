"""Secrets that live elsewhere: `env:NAME`, `file:/path`, `systemd:NAME`, `keyring:service/user`.

Resolved at each use and stored nowhere here. The error says what is wrong with the place, never what was in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hfagent.foundation.errors import ConfigError
from hfagent.foundation.redaction import register_secret
from hfagent.vault.failures import VaultLocked
from hfagent.vault.keyring_access import KeyringAccess
from hfagent.vault.private_files import Unusable, read_small

__all__ = ["SCHEMES", "resolve"]

_MOST: Final = 64 * 1024
_KEYRING_TIMEOUT_S: Final = 15.0


def resolve(reference: str) -> str:
    """Return the secret that `reference` names and register it with the redactor.

    One line break at the end is not part of it. Raises `ConfigError` (credential.reference) when the scheme is unknown, the
    place is empty, missing or open to others, or what it holds is no text.
    """
    scheme, colon, place = reference.partition(":")
    reader = SCHEMES.get(scheme)
    if reader is None or not colon or not place:
        # Not quoted: somebody may have put the secret itself where the reference belongs.
        raise _wrong(
            "the secret reference has none of the known forms",
            "write env:NAME, file:/full/path, systemd:NAME or keyring:service/user",
        )
    secret = reader(place)
    if secret.endswith("\n"):
        secret = secret[:-1].removesuffix("\r")
    if not secret:
        raise _wrong(f"the secret reference {reference!r} leads to an empty text")
    register_secret(secret)
    return secret


def _environment(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise _wrong(
            f"the environment variable {name} is not set for the agent",
            "set it where the agent is started (a service does not see your shell's variables)",
        )
    return value


def _file(place: str) -> str:
    path = Path(place)
    if not path.is_absolute():
        raise _wrong(f"the secret file {place} must be given with its full path", "write file:/full/path")
    content, status = _read(path)
    if status.st_uid not in (0, os.geteuid()):
        raise _wrong(
            f"the secret file {path} belongs to user id {status.st_uid}", f"chown it to root or to user {os.geteuid()}"
        )
    if status.st_mode & 0o007:
        raise _wrong(
            f"the secret file {path} is open to every user (mode {status.st_mode & 0o777:o})", f"chmod o= {path}"
        )
    return _text(content, f"the secret file {path}")


def _systemd(name: str) -> str:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise _wrong(
            f"the systemd credential {name} is not there: the agent has no credentials from systemd",
            f"add LoadCredential={name}:FILE to the service and restart it",
        )
    if "/" in name or name in (".", ".."):
        raise _wrong(f"{name!r} is not the name of a systemd credential")
    content, _ = _read(Path(folder) / name, f"add LoadCredential={name}:FILE to the service and restart it")
    return _text(content, f"the systemd credential {name}")


def _keyring(place: str) -> str:
    service, slash, user = place.rpartition("/")
    if not slash or not service or not user:
        raise _wrong(f"{place!r} does not name a keyring entry", "write keyring:service/user")
    try:
        value = KeyringAccess(_KEYRING_TIMEOUT_S).get(service, user)
    except VaultLocked as exc:
        raise _wrong(exc.message, exc.hint) from exc
    if value is None:
        raise _wrong(f"the OS keyring has no entry {service}/{user}", f"make it: keyring set {service} {user}")
    return value


SCHEMES: Final[dict[str, Callable[[str], str]]] = {
    "env": _environment,
    "file": _file,
    "systemd": _systemd,
    "keyring": _keyring,
}
"""Scheme → what reads a place of it."""


def _read(path: Path, hint: str | None = None) -> tuple[bytes, os.stat_result]:
    try:
        return read_small(path, limit=_MOST, follow_links=True)  # mounted secrets are links, often
    except FileNotFoundError as exc:
        raise _wrong(f"the secret file {path} does not exist", hint) from exc
    except Unusable as exc:
        raise _wrong(f"the secret file {exc}", hint) from exc


def _text(content: bytes, what: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:  # whose text would quote the secret
        raise _wrong(f"{what} does not hold text in UTF-8") from None


def _wrong(message: str, hint: str | None = None) -> ConfigError:
    return ConfigError(message, code="credential.reference", hint=hint)
