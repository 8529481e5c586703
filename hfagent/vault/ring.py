"""The keys in memory, and the two small texts that are sealed under them beside the secrets: the canary and older roots."""

from __future__ import annotations

from typing import Final, NamedTuple

from hfagent.vault import envelope
from hfagent.vault.derivation import Keys
from hfagent.vault.description import KeyEntry
from hfagent.vault.envelope import Binding, OpenFailed

__all__ = ["Ring", "canary", "fits", "open_older_root", "seal_older_root"]

_CANARY: Final = b"hfagent vault canary"


class Ring(NamedTuple):
    """One key that seals and all keys that open. Replaced as a whole, so that sealing needs no lock."""

    active: Keys
    by_id: dict[bytes, Keys]

    @classmethod
    def of(cls, active: Keys, others: dict[bytes, Keys]) -> Ring:
        """A ring of `active` and `others`."""
        return cls(active, {**others, active.id_bytes: active})


def canary(keys: Keys, agent_id: str) -> bytes:
    """Return the known text, sealed under `keys`."""
    return envelope.seal(keys.encryption, keys.id_bytes, _own(agent_id, "canary"), _CANARY)


def fits(entry: KeyEntry, keys: Keys, agent_id: str) -> bool:
    """Tell whether `keys` are the ones that `entry` was made with: whether they open its canary."""
    try:
        return envelope.open_sealed(keys.encryption, _own(agent_id, "canary"), entry.canary) == _CANARY
    except OpenFailed:
        return False


def seal_older_root(older: Keys, active: Keys, agent_id: str) -> bytes:
    """Return the root of `older`, sealed under `active`."""
    return envelope.seal(active.encryption, active.id_bytes, _own(agent_id, f"root/{older.key_id}"), older.root)


def open_older_root(entry: KeyEntry, active: Keys, agent_id: str) -> bytes:
    """Return the root that `entry` keeps sealed under `active`. Raises `OpenFailed`."""
    return envelope.open_sealed(active.encryption, _own(agent_id, f"root/{entry.key_id}"), entry.sealed_root or b"")


def _own(agent_id: str, what: str) -> Binding:
    return Binding(agent_id, "", what, "", 0)  # no connector has an empty id
