"""How the vault's keys come, change and go, and what happens when one is missing.

* The source of the root key is chosen once, for a new vault, and recorded; it changes by rotation only, never by itself.
* A key that is missing, wrong or unusable is an error with its remedy. A new one is never made in place of a lost one: that
  would turn a lost key into lost secrets.
* Every change is one atomic write of `vault.json` after what it speaks of is durable; killed anywhere, the next start finds
  every key that anything is sealed under.

Not thread-safe by itself: `Vault` holds the lock.
"""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Callable, Collection
from datetime import UTC
from pathlib import Path
from typing import Final

from hfagent.foundation.atomic import make_private_directory
from hfagent.foundation.clock import Clock
from hfagent.vault import description as description_file
from hfagent.vault import recovery
from hfagent.vault.derivation import SALT_BYTES, Keys
from hfagent.vault.description import Description, KeyEntry, RecoveryEntry, State
from hfagent.vault.envelope import KEY_ID_BYTES, OpenFailed
from hfagent.vault.failures import CredentialUnreadable, VaultLocked
from hfagent.vault.ring import Ring, canary, fits, open_older_root, seal_older_root
from hfagent.vault.settings import SourceName, VaultSettings
from hfagent.vault.sources import KeySource, sources

__all__ = ["KeyChain"]

_QUICK_TO_DESTROY: Final = ("file", "license", "systemd")

_log = logging.getLogger(__name__)


class KeyChain:
    """The keys of one vault: `ring` in memory, `description` on disk."""

    def __init__(
        self,
        directory: Path,
        *,
        agent_id: str,
        settings: VaultSettings,
        has_ciphertexts: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._file = directory / "vault.json"
        self._agent_id = agent_id
        self._settings = settings
        self._has_ciphertexts = has_ciphertexts
        self._clock = clock
        self.description: Description | None = None
        self.ring: Ring | None = None
        self.notes: tuple[str, ...] = ()
        """What an operator should know, though it works."""

    # ---- opening

    def open(self) -> None:
        """Load the keys, or make the first one when there is no vault and nothing is sealed. Raises `VaultLocked`."""
        self.notes = ()
        self.description = None
        try:
            make_private_directory(self._directory)
        except OSError as exc:
            raise VaultLocked(f"the vault's folder cannot be used: {exc}") from exc
        self.description = description_file.read(self._file)
        if self.description is None:
            self._require_nothing_sealed("is missing")
            self.description = Description(agent_id=self._agent_id, salt=os.urandom(SALT_BYTES), created_at=self._now())
            self._make_first_key()
        elif self.description.agent_id != self._agent_id:
            raise VaultLocked(
                f"the vault in {self._directory} belongs to another agent ({self.description.agent_id})",
                hint="put back the vault folder that belongs to this agent's store",
            )
        elif self.description.active is None:  # making the first key was interrupted
            self._require_nothing_sealed("names no key")
            self._make_first_key()
        else:
            self.ring = self._loaded(self.description.active)
            self._note_settings(self.description.active)
            self._remove_dead_keys(quick=True)

    def _require_nothing_sealed(self, what: str) -> None:
        if self._has_ciphertexts():
            raise VaultLocked(
                f"secrets are stored, but {self._file} {what}",
                hint="put back the vault folder from a backup of the same time as the store's; without one, delete the "
                "connectors that have secrets, restart the agent and enter them again",
            )

    def _loaded(self, active: KeyEntry) -> Ring:
        description = self._described()
        source = self._sources()[active.source]
        where = source.where(active.key_id)
        root = source.load(active.key_id)
        if root is None:
            raise VaultLocked(f"the vault's key is missing: {where}", hint=self._remedy(where))
        keys = Keys.of(root, salt=description.salt, key_id=active.key_id)
        if not fits(active, keys, self._agent_id):
            raise VaultLocked(
                f"{where} is there, but it is not the key that the vault was made with", hint=self._remedy(where)
            )
        older: dict[bytes, Keys] = {}
        for entry in description.in_state("retiring"):
            old = self._older_keys(entry, keys)
            if old is None:
                self.notes += (f"the older key {entry.key_id} is missing: what is still sealed under it does not open",)
            else:
                older[old.id_bytes] = old
        return Ring.of(keys, older)

    def _older_keys(self, entry: KeyEntry, active: Keys) -> Keys | None:
        """The keys of an older id: its root is sealed under the active key; failing that, its own source may have it."""
        candidates: tuple[Callable[[], bytes | None], ...] = (
            lambda: open_older_root(entry, active, self._agent_id),
            lambda: self._sources()[entry.source].load(entry.key_id),
        )
        for candidate in candidates:
            try:
                root = candidate()
            except (OpenFailed, VaultLocked):
                continue
            if root is not None:
                keys = Keys.of(root, salt=self._described().salt, key_id=entry.key_id)
                if fits(entry, keys, self._agent_id):
                    return keys
        return None

    def _remedy(self, where: str) -> str:
        remedy = f"put back {where}"
        if self._described().recovery is not None:
            remedy += ", or use the recovery key: hfagent vault unlock"
        return remedy + "; without either the stored secrets are lost and have to be entered again"

    def _note_settings(self, active: KeyEntry) -> None:
        wanted = self._settings.key_source
        if wanted is not None and wanted != active.source:
            self.notes += (
                f"the vault keeps its key in {active.source!r}, the configuration says {wanted!r}: "
                f"hfagent vault rotate --key-source {wanted} moves it",
            )

    # ---- making keys

    def _make_first_key(self) -> None:
        """What an interrupted attempt has left is replaced: nothing can be sealed under it."""
        self._remove_dead_keys(quick=True)
        places = self._sources()
        prepared: tuple[SourceName, ...] = ("license", "systemd")
        chosen = self._settings.key_source or next((name for name in prepared if places[name].present()), None)
        if chosen is not None:  # somebody said so: no other place will do
            self.add_key(None, chosen)
            return
        try:
            self.add_key(None, "keyring")
        except VaultLocked as exc:
            _log.info("no key for the new vault in the OS keyring: %s", exc)
            self.add_key(None, "file")

    def add_key(self, ring: Ring | None, source: SourceName) -> Ring:
        """Make a key in `source` the active one, and those of `ring` retiring ones.

        Three steps, any of which may be the last: announce the key, make it durably, use it. Raises `VaultLocked`; then the
        present key stays, and what was begun is removed later.
        """
        place = self._sources()[source]
        place.check()
        before = self._described()
        entry = KeyEntry(
            key_id=os.urandom(KEY_ID_BYTES).hex(), source=source, state="preparing", created_at=self._now()
        )
        self._save(before.model_copy(update={"keys": (*before.keys, entry)}))
        keys = Keys.of(place.create(entry.key_id), salt=before.salt, key_id=entry.key_id)
        after = Ring.of(keys, {} if ring is None else ring.by_id)
        entry = entry.model_copy(update={"state": "active", "canary": canary(keys, self._agent_id)})
        older = tuple(self._superseded(old, after) for old in before.keys)
        recoverable = None if before.recovery is None else self._recovery_after(before.recovery, ring, after)
        self._save(before.model_copy(update={"keys": (*older, entry), "recovery": recoverable}))
        self.ring = after
        return after

    def _superseded(self, entry: KeyEntry, after: Ring) -> KeyEntry:
        """An older key's entry beside a new active key, which takes over keeping its root."""
        if entry.state in ("preparing", "destroying"):  # an earlier attempt: nothing is sealed under it
            return entry.model_copy(update={"state": "destroying"})
        keys = after.by_id.get(bytes.fromhex(entry.key_id))
        sealed = None if keys is None else seal_older_root(keys, after.active, self._agent_id)
        return entry.model_copy(update={"state": "retiring", "sealed_root": sealed})

    # ---- removing keys

    def destroy_except(self, ring: Ring, in_use: Collection[str]) -> bool:
        """Destroy the retiring keys that are not `in_use`; tell whether none is left. Raises `VaultLocked`."""
        description = self._described()
        done = {entry.key_id for entry in description.in_state("retiring")} - set(in_use)
        if done:
            keys = tuple(
                entry.model_copy(update={"state": "destroying", "sealed_root": None}) if entry.key_id in done else entry
                for entry in description.keys
            )
            recoverable = description.recovery
            if recoverable is not None:
                roots = {key_id: root for key_id, root in recoverable.roots.items() if key_id not in done}
                recoverable = recoverable.model_copy(update={"roots": roots})
            self._save(description.model_copy(update={"keys": keys, "recovery": recoverable}))
            self.ring = Ring(ring.active, {i: keys for i, keys in ring.by_id.items() if keys.key_id not in done})
        self._remove_dead_keys()
        return not self._described().in_state("retiring")

    def _remove_dead_keys(self, *, quick: bool = False) -> None:
        """Remove the roots that nothing is sealed under; with `quick`, only where that cannot wait for anybody.

        A failure is logged and left to the next time: a root too many harms nobody.
        """
        dead = [
            entry
            for entry in self._described().in_state("preparing", "destroying")
            if not quick or entry.source in _QUICK_TO_DESTROY
        ]
        if not dead:
            return
        try:
            # Said before it is done: the file must never take a key for a good one whose root is gone.
            self._set_states({entry.key_id: "destroying" for entry in dead})
            gone = {entry.key_id for entry in dead if self._root_removed(entry)}
            self._save(
                self._described().model_copy(
                    update={"keys": tuple(entry for entry in self._described().keys if entry.key_id not in gone)}
                )
            )
        except VaultLocked as exc:
            _log.warning("%s", exc)

    def _root_removed(self, entry: KeyEntry) -> bool:
        try:
            self._sources()[entry.source].destroy(entry.key_id)
        except (VaultLocked, OSError) as exc:
            _log.warning("the old key %s could not be removed: %s", entry.key_id, exc)
            return False
        return True

    def _set_states(self, states: dict[str, State]) -> None:
        """Write these states, by key id; a key that is being destroyed keeps no sealed root."""
        keys = tuple(
            entry.model_copy(update={"state": states[entry.key_id], "sealed_root": None})
            if entry.key_id in states
            else entry
            for entry in self._described().keys
        )
        self._save(self._described().model_copy(update={"keys": keys}))

    # ---- recovery

    def set_recovery_key(self, ring: Ring, entropy: bytes) -> None:
        """Make the keys recoverable with this recovery key, and no longer with an earlier one. Raises `VaultLocked`."""
        public = recovery.public_key(entropy, salt=self._described().salt)
        entry = RecoveryEntry(created_at=self._now(), public_key=public, roots={}, signature=b"")
        self._save(self._described().model_copy(update={"recovery": self._sealed_to(entry, ring)}))

    def recovered(self, entropy: bytes) -> Ring:
        """Return the keys that a recovery key opens, the active one among them. Raises `CredentialUnreadable`, `VaultLocked`."""
        description = self.description
        if description is None or description.active is None or description.agent_id != self._agent_id:
            raise VaultLocked(
                f"the recovery key opens only the vault that it was made for, and {self._file} is not it",
                hint="put back the vault folder from a backup, then use the recovery key",
            )
        entry = description.recovery
        if entry is None:
            raise CredentialUnreadable("no recovery key was made for this vault")
        if recovery.public_key(entropy, salt=description.salt) != entry.public_key:
            raise CredentialUnreadable(
                "this is not the vault's recovery key, or not the latest one", hint="look for one that was made later"
            )
        by_id: dict[bytes, Keys] = {}
        for key in description.in_state("active", "retiring"):
            sealed = entry.roots.get(key.key_id, b"")
            try:
                root = recovery.open_root(sealed, entropy, key_id=key.key_id, salt=description.salt)
            except OpenFailed:
                continue
            keys = Keys.of(root, salt=description.salt, key_id=key.key_id)
            if fits(key, keys, self._agent_id):
                by_id[keys.id_bytes] = keys
        active = by_id.get(bytes.fromhex(description.active.key_id))
        if active is None:
            raise CredentialUnreadable(
                "the recovery key fits, but what it should open is damaged",
                hint="put back the vault folder from a backup of the same time as the store's",
            )
        return Ring(active, by_id)

    def _recovery_after(self, entry: RecoveryEntry, before: Ring | None, after: Ring) -> RecoveryEntry | None:
        """The recovery entry beside a new active key; None when it is not the one that we wrote."""
        if before is None or not hmac.compare_digest(before.active.signature(entry.signed_content()), entry.signature):
            _log.error("the recovery key in %s was changed by somebody else: it is removed", self._file)
            self.notes += ("the recovery key was tampered with and removed: make a new one",)
            return None
        return self._sealed_to(entry, after)

    def _sealed_to(self, entry: RecoveryEntry, ring: Ring) -> RecoveryEntry:
        salt = self._described().salt
        roots = {
            keys.key_id: recovery.seal_root(keys.root, key_id=keys.key_id, public=entry.public_key, salt=salt)
            for keys in ring.by_id.values()
        }
        return entry.model_copy(update={"roots": roots, "signature": ring.active.signature(entry.signed_content())})

    # ---- small things

    def _described(self) -> Description:
        assert self.description is not None
        return self.description

    def _save(self, changed: Description) -> None:
        try:
            description_file.write(self._file, changed)
        except OSError as exc:
            raise VaultLocked(
                f"the vault's description {self._file} cannot be written: {exc.strerror or exc}",
                hint=f"check owner, mode and free space of {self._directory}",
            ) from exc
        self.description = changed

    def _sources(self) -> dict[SourceName, KeySource]:
        return sources(self._settings, self._directory, agent_id=self._agent_id, salt=self._described().salt)

    def _now(self) -> str:
        return self._clock.now().astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
