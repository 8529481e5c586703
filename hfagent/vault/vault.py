"""The vault: seals secrets and opens them, for the one place each was sealed for. Locked when its key is not available.

A rotation is begun here, driven from outside (`reseal` each secret) and finished here:

    vault.begin_rotation()                                        # both keys open, the new one seals
    while secrets := store.secrets.not_under(vault.active_key_id):
        ...                                                       # reseal each, store.secrets.reseal it
    with store.transaction():
        vault.finish_rotation(store.secrets.key_ids())            # the old key is destroyed

Killed at any step it goes on from there, and every secret opens all along.

Thread-safe. Opening, rotating and unlocking wait for the disk or the OS keyring: call them from worker threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from hfagent.foundation.clock import SYSTEM_CLOCK, Clock
from hfagent.foundation.errors import ConfigError
from hfagent.foundation.redaction import register_secret
from hfagent.vault import envelope, recovery_key
from hfagent.vault.envelope import Binding, OpenFailed
from hfagent.vault.failures import VaultLocked, unreadable
from hfagent.vault.keychain import KeyChain
from hfagent.vault.ring import Ring
from hfagent.vault.settings import SourceName, VaultSettings

__all__ = ["Resealed", "Vault", "VaultState"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultState:
    """What everybody may know about the vault."""

    state: Literal["unlocked", "locked"]
    reason: str | None = None
    hint: str | None = None
    """The remedy, when it is locked."""
    key_source: SourceName | None = None
    key_id: str | None = None
    created_at: str | None = None
    """When the present key was made."""
    retiring: tuple[str, ...] = ()
    """Ids of older keys that a rotation is replacing."""
    recovery_key: bool = False
    notes: tuple[str, ...] = ()
    """What an operator should know, though it works."""


class Resealed(NamedTuple):
    """A secret sealed anew, with what is stored beside it."""

    blob: bytes
    key_id: str
    fingerprint: str


class Vault:
    """Seals and opens secrets. `Vault.open_or_create` makes one; `status` tells whether it is locked, and why."""

    def __init__(self, chain: KeyChain, *, agent_id: str) -> None:
        self._agent_id = agent_id
        self._lock = threading.RLock()  # guards changes of what follows; sealing only reads the chain's ring, once
        self._chain = chain
        self._problem = VaultLocked("the vault is not open yet")

    @classmethod
    def open_or_create(
        cls,
        directory: Path,
        *,
        agent_id: str,
        has_ciphertexts: Callable[[], bool],
        settings: VaultSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Vault:
        """Open the vault in `directory`, or make one when there is none and nothing is sealed yet.

        `has_ciphertexts` tells whether the store holds sealed secrets, replaced ones included. A vault that cannot be
        opened is no error here: it is locked.
        """
        chain = KeyChain(
            directory,
            agent_id=agent_id,
            settings=settings or VaultSettings(),
            has_ciphertexts=has_ciphertexts,
            clock=clock,
        )
        vault = cls(chain, agent_id=agent_id)
        vault.reopen()
        return vault

    def reopen(self) -> VaultState:
        """Look for the key again, after somebody mended what was wrong. An unlocked vault stays as it is."""
        with self._lock:
            if self._chain.ring is None:
                try:
                    self._chain.open()
                except VaultLocked as exc:
                    self._problem = exc
                    _log.error("the vault is locked: %s", exc)
            return self.status()

    def status(self) -> VaultState:
        """Return the vault's state. Nothing in it is secret."""
        with self._lock:
            locked = self._chain.ring is None
            description = self._chain.description
            active = None if description is None else description.active
            return VaultState(
                state="locked" if locked else "unlocked",
                reason=self._problem.message if locked else None,
                hint=self._problem.hint if locked else None,
                key_source=None if active is None else active.source,
                key_id=None if active is None else active.key_id,
                created_at=None if active is None else active.created_at,
                retiring=() if description is None else tuple(key.key_id for key in description.in_state("retiring")),
                recovery_key=description is not None and description.recovery is not None,
                notes=self._chain.notes,
            )

    @property
    def locked(self) -> bool:
        """Whether the key is not available. `status` says why, and what to do."""
        return self._chain.ring is None

    @property
    def active_key_id(self) -> str:
        """Id of the key that seals. Raises `VaultLocked`."""
        return self._ring().active.key_id

    # ---- sealing

    def seal(self, *, connector_id: str, field: str, endpoint: str, version: int, plaintext: str) -> bytes:
        """Seal a secret for one place: only the same connector, field, endpoint and version will open it.

        Raises `VaultLocked`, and `ConfigError` for what cannot be a secret (over 64 KiB, not encodable).
        """
        keys = self._ring().active
        try:
            content = plaintext.encode()
        except UnicodeEncodeError:  # its own text would quote the secret
            raise ConfigError(f"{field}: the secret holds characters that are no text", field=field) from None
        if len(content) > envelope.MAX_PLAINTEXT:
            raise ConfigError(f"{field}: a secret may have at most {envelope.MAX_PLAINTEXT} bytes", field=field)
        register_secret(plaintext)
        binding = Binding(self._agent_id, connector_id, field, endpoint, version)
        return envelope.seal(keys.encryption, keys.id_bytes, binding, content)

    def unseal(self, *, connector_id: str, field: str, endpoint: str, version: int, blob: bytes) -> str:
        """Open a secret and register it with the redactor. Raises `VaultLocked`, `CredentialUnreadable`."""
        plaintext = self._opened(Binding(self._agent_id, connector_id, field, endpoint, version), blob)
        register_secret(plaintext)
        return plaintext

    def reseal(self, *, connector_id: str, field: str, endpoint: str, version: int, blob: bytes) -> Resealed:
        """Seal a secret anew under the active key, for the same place. Raises `VaultLocked`, `CredentialUnreadable`."""
        binding = Binding(self._agent_id, connector_id, field, endpoint, version)
        plaintext = self._opened(binding, blob)
        keys = self._ring().active
        sealed = envelope.seal(keys.encryption, keys.id_bytes, binding, plaintext.encode())
        return Resealed(sealed, keys.key_id, keys.fingerprint(plaintext))

    def fingerprint(self, value: str) -> str:
        """Return eight hexadecimal digits by which secrets can be compared. They change with the key. Raises `VaultLocked`."""
        return self._ring().active.fingerprint(value)

    # ---- rotation

    def begin_rotation(self, source: SourceName | None = None) -> str:
        """Make a new active key, in `source` or where the present one is, and return its id.

        The older keys go on opening what is sealed under them. A rotation that is under way is continued, unless this one is
        to end in another source. Raises `VaultLocked` when the vault is locked or the source refuses; the present key stays.
        """
        with self._lock:
            ring = self._ring()
            state = self.status()
            assert state.key_source is not None
            if state.retiring and source in (None, state.key_source):
                return ring.active.key_id
            return self._chain.add_key(ring, source or state.key_source).active.key_id

    def finish_rotation(self, in_use: Collection[str]) -> bool:
        """Destroy the older keys that are not `in_use`, and tell whether none is left. Raises `VaultLocked`.

        `in_use` are the key ids of everything that is still sealed. Ask for them and call this within one transaction of
        the store, and seal within the transaction that stores: then nothing can be sealed under a key while it goes. Removing
        an entry of the OS keyring may take as long as `keyring_timeout_s`.
        """
        with self._lock:
            return self._chain.destroy_except(self._ring(), in_use)

    # ---- recovery

    def create_recovery_key(self) -> str:
        """Make a recovery key and return it; an earlier one stops working. It is kept nowhere. Raises `VaultLocked`."""
        with self._lock:
            ring = self._ring()
            text, entropy = recovery_key.generate()
            _register_recovery_key(text)
            self._chain.set_recovery_key(ring, entropy)
            return text

    def unlock(self, recovery_key_text: str, source: SourceName = "file") -> str:
        """Open a locked vault with its recovery key, give it a new key in `source`, and return that key's id.

        The secrets are still sealed under the lost key, which the new one keeps until the rotation that begins here is
        finished. An unlocked vault stays as it is. Raises `CredentialUnreadable` for a wrong or mistyped key, `VaultLocked`
        when the vault's description is gone too or `source` refuses.
        """
        with self._lock:
            if self._chain.ring is not None:
                return self._chain.ring.active.key_id
            _register_recovery_key(recovery_key_text)
            recovered = self._chain.recovered(recovery_key.parse(recovery_key_text))
            return self._chain.add_key(recovered, source).active.key_id

    def _ring(self) -> Ring:
        ring = self._chain.ring
        if ring is None:
            raise VaultLocked(f"the vault is locked: {self._problem.message}", hint=self._problem.hint)
        return ring

    def _opened(self, binding: Binding, blob: bytes) -> str:
        ring = self._ring()
        try:
            keys = ring.by_id[envelope.key_id_of(blob)]
            return envelope.open_sealed(keys.encryption, binding, blob).decode()
        except (OpenFailed, KeyError, UnicodeDecodeError):
            raise unreadable(binding.connector_id, binding.field) from None  # one error, whatever the cause

    def __repr__(self) -> str:
        return f"<Vault {self.status().state}>"


def _register_recovery_key(text: str) -> None:
    register_secret(text)
    register_secret(text.replace("-", ""))
