"""`vault.json`: which keys there are and where their roots come from. No key, and nothing that helps to guess one.

    preparing    the root may or may not exist yet; nothing is sealed under it
    active       seals
    retiring     opens what is not resealed yet; its root is also kept sealed under the active key
    destroying   nothing is sealed under it any more; its root is being removed

Every change of state is one atomic write of this file, so a vault killed at any moment starts in one of them.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError

from hfagent.foundation.atomic import write_atomic
from hfagent.model.value import Value
from hfagent.vault.failures import VaultLocked
from hfagent.vault.private_files import Unusable, read_small
from hfagent.vault.settings import SourceName

__all__ = ["FORMAT", "Description", "KeyEntry", "RecoveryEntry", "State", "read", "write"]

FORMAT: Final = 1
_MOST: Final = 1 << 20


def _decoded(value: object) -> object:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


Base64 = Annotated[
    bytes, BeforeValidator(_decoded), PlainSerializer(lambda value: base64.b64encode(value).decode(), when_used="json")
]
KeyId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
State = Literal["preparing", "active", "retiring", "destroying"]


class KeyEntry(Value):
    """One key of the vault."""

    key_id: KeyId
    source: SourceName
    state: State
    created_at: str
    canary: Base64 = b""
    """A known text sealed under the key: opens only when the right root was found."""
    sealed_root: Base64 | None = None
    """While retiring: the root, sealed under the active key."""


class RecoveryEntry(Value):
    """The public half of the recovery key and the roots sealed to it."""

    created_at: str
    public_key: Base64
    roots: dict[KeyId, Base64]
    signature: Base64
    """Over the public half and its time, by the active key."""

    def signed_content(self) -> bytes:
        """What `signature` covers."""
        return b"hfagent recovery key v1\0" + self.public_key + self.created_at.encode()


class Description(Value):
    """The whole file."""

    format: Literal[1] = FORMAT
    agent_id: str
    salt: Base64
    created_at: str
    keys: tuple[KeyEntry, ...] = ()
    recovery: RecoveryEntry | None = None

    def in_state(self, *states: State) -> tuple[KeyEntry, ...]:
        """Return the keys in these states, oldest first."""
        return tuple(entry for entry in self.keys if entry.state in states)

    @property
    def active(self) -> KeyEntry | None:
        """The key that seals, if there is one."""
        return next(iter(self.in_state("active")), None)


def read(path: Path) -> Description | None:
    """Return the description, None when there is no file. Raises `VaultLocked` for one that cannot be understood."""
    try:
        content, _ = read_small(path, limit=_MOST, follow_links=False)
    except FileNotFoundError:
        return None
    except Unusable as exc:
        raise VaultLocked(f"the vault's description {exc}", hint=_RESTORE) from exc
    try:
        raw = json.loads(content)
        if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
            raise VaultLocked(
                f"the vault's description {path} was written by a newer hfagent (format {raw['format']})",
                hint="install that version of hfagent again",
            )
        description = Description.model_validate_json(content)
    except (ValueError, ValidationError) as exc:
        raise VaultLocked(f"the vault's description {path} is damaged", hint=_RESTORE) from exc
    if len(description.in_state("active")) > 1:
        raise VaultLocked(f"the vault's description {path} is damaged: it has two active keys", hint=_RESTORE)
    return description


def write(path: Path, description: Description) -> None:
    """Replace the file: the old content or the new one, never half. Raises `OSError`."""
    write_atomic(path, (description.model_dump_json(indent=2) + "\n").encode())


_RESTORE: Final = "put back the vault folder from a backup of the same time as the store's"
