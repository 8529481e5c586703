"""Where a vault's root key comes from: one class per place. A root is 32 bytes, drawn or derived per key id.

| name | the root is | made by |
|---|---|---|
| `license` | HKDF of the organisation's licensed sign key and a random key of this machine, both needed | the agent |
| `systemd` | HKDF of the service credential `hfagent.key` | the administrator |
| `keyring` | random, in the OS keyring | the agent |
| `file` | random, in a file of mode 0600 | the agent |

The licensed sign key is known beyond this machine (the vendor has it), so it never stands alone: who has only the one or
only the other has nothing. A key file beside the data protects a copied database, not a copied directory.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Final, Protocol

from hfagent.foundation.atomic import sync_directory, write_new
from hfagent.vault.derivation import ROOT_BYTES, derive
from hfagent.vault.failures import VaultLocked
from hfagent.vault.keyring_access import KeyringAccess
from hfagent.vault.private_files import Unusable, read_small
from hfagent.vault.settings import SourceName, VaultSettings

__all__ = ["FileSource", "KeySource", "KeyringSource", "LicenseSource", "SystemdSource", "sources"]

CREDENTIAL: Final = "hfagent.key"
"""Name of the systemd credential."""

_KEY_FILE_PREFIX: Final = "hfagent-key-1 "
_MOST: Final = 64 * 1024
_LEAST_MATERIAL: Final = 32


class KeySource(Protocol):
    """A place for root keys."""

    name: SourceName

    def present(self) -> bool:
        """Whether somebody has prepared this place, which is as good as choosing it."""
        ...

    def check(self) -> None:
        """Raise `VaultLocked` when it is plain that no key can be made here now. Changes nothing."""
        ...

    def load(self, key_id: str) -> bytes | None:
        """Return the root of `key_id`, None when it is not there. Raises `VaultLocked` when it must not or cannot be used."""
        ...

    def create(self, key_id: str) -> bytes:
        """Make the root of `key_id`, durably, and return it; return the one that is there already. Raises `VaultLocked`."""
        ...

    def destroy(self, key_id: str) -> None:
        """Remove what is kept for `key_id`, if anything. Raises `VaultLocked`, `OSError`."""
        ...

    def where(self, key_id: str) -> str:
        """Say where the key is, for messages."""
        ...


def sources(settings: VaultSettings, directory: Path, *, agent_id: str, salt: bytes) -> dict[SourceName, KeySource]:
    """Return every source by name, in the order in which a new vault tries them."""
    files = FileSource(settings.key_directory or directory)
    found: tuple[KeySource, ...] = (
        LicenseSource(settings.license_key_file, files, salt),
        SystemdSource(salt),
        KeyringSource(KeyringAccess(settings.keyring_timeout_s), agent_id),
        files,
    )
    return {source.name: source for source in found}


class FileSource:
    """A file of its own for each key, readable by nobody else."""

    name: SourceName = "file"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def present(self) -> bool:
        return False

    def check(self) -> None:
        if not self._directory.is_dir():
            raise VaultLocked(
                f"the folder for key files {self._directory} does not exist", hint="make it, with mode 0700"
            )

    def where(self, key_id: str) -> str:
        return f"the file {self._path(key_id)}"

    def load(self, key_id: str) -> bytes | None:
        path = self._path(key_id)
        try:
            content, status = read_small(path, limit=_MOST, follow_links=False)
        except FileNotFoundError:
            return None
        except Unusable as exc:
            raise VaultLocked(f"the key file {exc}", hint=f"make {path} a file that this user can read") from exc
        if status.st_uid != os.geteuid():
            raise VaultLocked(
                f"the key file {path} belongs to user id {status.st_uid}, not to {os.geteuid()}",
                hint=f"chown {os.geteuid()} {path}",
            )
        if status.st_mode & 0o077:
            raise VaultLocked(
                f"the key file {path} is open to other users (mode {status.st_mode & 0o777:o})",
                hint=f"chmod 600 {path}, restart the agent, and since others could read the key: hfagent vault rotate",
            )
        return _parse_key_file(path, content)

    def create(self, key_id: str) -> bytes:
        present = self.load(key_id)
        if present is not None:
            return present
        root = os.urandom(ROOT_BYTES)
        content = f"{_KEY_FILE_PREFIX}{base64.b64encode(root).decode()}\n"
        try:
            write_new(self._path(key_id), content.encode())
        except OSError as exc:
            raise VaultLocked(
                f"the key file {self._path(key_id)} cannot be written: {exc.strerror or exc}",
                hint=f"check owner, mode and free space of {self._directory}",
            ) from exc
        return root

    def destroy(self, key_id: str) -> None:
        path = self._path(key_id)
        if path.exists():
            path.unlink()
            sync_directory(self._directory)

    def _path(self, key_id: str) -> Path:
        return self._directory / f"{key_id}.key"


class LicenseSource:
    """The organisation's licensed sign key, combined with a random key that never leaves this machine."""

    name: SourceName = "license"

    def __init__(self, license_key_file: Path | None, machine_keys: FileSource, salt: bytes) -> None:
        self._license_key_file = license_key_file
        self._machine_keys = machine_keys
        self._salt = salt

    def present(self) -> bool:
        return self._license_key_file is not None

    def check(self) -> None:
        self._license_key()
        self._machine_keys.check()

    def where(self, key_id: str) -> str:
        return f"the license key {self._license_key_file} together with {self._machine_keys.where(key_id)}"

    def load(self, key_id: str) -> bytes | None:
        machine_key = self._machine_keys.load(key_id)
        return None if machine_key is None else self._combined(self._license_key(), machine_key, key_id)

    def create(self, key_id: str) -> bytes:
        license_key = self._license_key()  # first: without it no machine key is made
        return self._combined(license_key, self._machine_keys.create(key_id), key_id)

    def destroy(self, key_id: str) -> None:
        self._machine_keys.destroy(key_id)

    def _license_key(self) -> bytes:
        path = self._license_key_file
        if path is None:
            raise VaultLocked(
                "the vault's key needs the license key, and no license key file is configured",
                hint="set license_key_file in the agent's configuration",
            )
        try:
            content, status = read_small(path, limit=_MOST, follow_links=True)
        except FileNotFoundError as exc:
            raise VaultLocked(f"the license key {path} does not exist", hint="put the license key file there") from exc
        except Unusable as exc:
            raise VaultLocked(f"the license key {exc}", hint=f"make {path} a file that this user can read") from exc
        if status.st_mode & 0o002:
            raise VaultLocked(f"the license key {path} can be changed by every user", hint=f"chmod 600 {path}")
        material = content.strip()  # an editor's final newline is not part of the key
        if len(material) < _LEAST_MATERIAL:
            raise VaultLocked(f"the license key {path} is shorter than {_LEAST_MATERIAL} bytes")
        return material

    def _combined(self, license_key: bytes, machine_key: bytes, key_id: str) -> bytes:
        parts = (license_key, machine_key)
        both = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return derive(both, salt=self._salt, info=f"hfagent/root/license/v1/{key_id}")


class SystemdSource:
    """The credential that systemd hands to the service (`LoadCredential=` or `LoadCredentialEncrypted=`)."""

    name: SourceName = "systemd"

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def present(self) -> bool:
        path = _credential_path()
        return path is not None and path.exists()

    def check(self) -> None:
        self.create("")  # makes nothing: a root is computed, and that is what has to work

    def where(self, key_id: str) -> str:
        return f"the systemd credential {CREDENTIAL}"

    def load(self, key_id: str) -> bytes | None:
        path = _credential_path()
        if path is None:
            return None
        try:
            content, _ = read_small(path, limit=_MOST, follow_links=True)
        except FileNotFoundError:
            return None
        except Unusable as exc:
            raise VaultLocked(f"the systemd credential {exc}") from exc
        if len(content) < _LEAST_MATERIAL:
            raise VaultLocked(
                f"the systemd credential {CREDENTIAL} is shorter than {_LEAST_MATERIAL} bytes",
                hint=f"make one: head -c 32 /dev/urandom | systemd-creds encrypt --name={CREDENTIAL} - FILE",
            )
        return derive(content, salt=self._salt, info=f"hfagent/root/systemd/v1/{key_id}")

    def create(self, key_id: str) -> bytes:
        root = self.load(key_id)
        if root is None:
            raise VaultLocked(
                f"there is no systemd credential {CREDENTIAL}",
                hint=f"add LoadCredentialEncrypted={CREDENTIAL}:FILE to the service and restart it",
            )
        return root

    def destroy(self, key_id: str) -> None:
        """The credential is the administrator's; a root that is derived from it is kept nowhere."""


class KeyringSource:
    """An entry of the OS keyring for each key."""

    name: SourceName = "keyring"
    _SERVICE: Final = "hfagent"

    def __init__(self, access: KeyringAccess, agent_id: str) -> None:
        self._access = access
        self._agent_id = agent_id

    def present(self) -> bool:
        return False

    def check(self) -> None:
        self._access.backend_name()

    def where(self, key_id: str) -> str:
        return f"the OS keyring entry {self._SERVICE}/{self._user(key_id)}"

    def load(self, key_id: str) -> bytes | None:
        entry = self._access.get(self._SERVICE, self._user(key_id))
        return None if entry is None else _decoded(entry, self.where(key_id))

    def create(self, key_id: str) -> bytes:
        present = self.load(key_id)
        if present is not None:
            return present
        root = os.urandom(ROOT_BYTES)
        self._access.set(self._SERVICE, self._user(key_id), base64.b64encode(root).decode())
        if self.load(key_id) != root:  # some backends accept and forget
            raise VaultLocked("the OS keyring did not keep the key", hint="use another key source: key_source = file")
        return root

    def destroy(self, key_id: str) -> None:
        self._access.delete(self._SERVICE, self._user(key_id))

    def _user(self, key_id: str) -> str:
        return f"{self._agent_id}/{key_id}"


def _credential_path() -> Path | None:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) / CREDENTIAL if folder else None


def _parse_key_file(path: Path, content: bytes) -> bytes:
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    if not text.startswith(_KEY_FILE_PREFIX):
        raise VaultLocked(f"{path} is not a key file of this version", hint=f"put a backup of {path} in its place")
    return _decoded(text.removeprefix(_KEY_FILE_PREFIX).strip(), f"the key file {path}")


def _decoded(text: str, what: str) -> bytes:
    try:
        root = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        root = b""  # and no `from`: the text of the error might quote the key
    if len(root) != ROOT_BYTES:
        raise VaultLocked(f"{what} is damaged", hint="put a backup of it in its place, or use the recovery key")
    return root
