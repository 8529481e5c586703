"""Secrets of connectors: told apart from plain configuration, sealed, opened, masked, rotated.

Between a client and the vault a secret passes through here only. On the way in: `absent` keeps, `null` and an empty text
clear, eight bullets keep, a reference (`{"$ref": ...}`) stays in the plain configuration, anything else is sealed. On the
way out: eight bullets.

A ciphertext is bound to the connector, the field and the endpoint (where the secret will be sent). Changing an endpoint
field without entering the secrets again is refused, so nobody can point a saved password at a server of theirs.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hfagent.foundation.errors import AgentError, ConfigError
from hfagent.foundation.redaction import MASK, register_secret
from hfagent.sdk.connector import BaseConnector
from hfagent.sdk.secret import is_reference
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.secrets import SealedSecret
from hfagent.store.store import Store
from hfagent.vault import references
from hfagent.vault.failures import CredentialUnreadable
from hfagent.vault.vault import Vault

__all__ = ["Credentials", "Merged"]

_log = logging.getLogger(__name__)

ConnectorClass = type[BaseConnector[Any]]


@dataclass(frozen=True)
class Merged:
    """A configuration after a change: what is stored in the clear, what is sealed anew, what is kept and cleared."""

    plain: dict[str, Any]
    fresh: dict[str, str] = field(repr=False)
    kept: frozenset[str]
    cleared: frozenset[str]


class Credentials:
    """Everything that touches a secret. Blocking: call it in a lane."""

    def __init__(self, vault: Vault, store: Store, *, cache_s: Callable[[], float] = lambda: 300.0) -> None:
        self._vault = vault
        self._store = store
        self._cache_s = cache_s
        self._lock = threading.Lock()  # guards the cache
        self._cache: dict[str, tuple[float, str]] = {}

    @property
    def vault(self) -> Vault:
        """The vault itself, for its own verbs."""
        return self._vault

    # --- in ---

    def merge(
        self,
        cls: ConnectorClass,
        changes: dict[str, Any],
        *,
        current: dict[str, Any] | None = None,
        stored: Iterable[str] = (),
    ) -> Merged:
        """Apply `changes` to a plain configuration and the set of stored secret fields.

        Raises `ConfigError`: `config.secret_reentry_required` when an endpoint field changes under kept secrets,
        `config.invalid` when the mask is sent for a secret that is not set.
        """
        changes = cls.Config.canonical(changes)
        secret_names = set(cls.Config.secret_fields())
        plain = dict(current or {})
        kept = set(stored)
        fresh: dict[str, str] = {}
        cleared: set[str] = set()
        for name, value in changes.items():
            if name not in secret_names:
                plain[name] = value
                if value is None:
                    del plain[name]
                continue
            if value == MASK:
                if name not in kept and name not in plain:
                    raise ConfigError(
                        f"{name}: the mask keeps a stored secret, but none is set",
                        field=name,
                        hint=f"enter the {name} itself",
                    )
                continue
            if isinstance(value, str) and MASK[:4] in value:
                raise ConfigError(
                    f"{name}: looks like a mask, not like a secret", field=name, hint="enter the secret itself"
                )
            plain.pop(name, None)
            kept.discard(name)
            if isinstance(value, str) and value:  # an empty text clears, as null does
                register_secret(value)  # from here on, whatever is said about it
                fresh[name] = value
                continue
            if value and not is_reference(value):
                raise ConfigError(f"{name}: expected a text or a reference", field=name, hint=_REFERENCE)
            cleared.add(name)
            if value:
                plain[name] = value
        _require_json(plain)
        if current is not None and kept and cls.endpoint(current) != cls.endpoint(plain):
            names = ", ".join(sorted(kept))
            raise ConfigError(
                f"the address changed, so the stored secrets ({names}) must be entered again",
                code="config.secret_reentry_required",
                field=sorted(kept)[0],
                hint="a saved secret is only ever sent to the address it was saved for",
            )
        return Merged(plain, fresh, frozenset(kept), frozenset(cleared))

    def validate(self, cls: ConnectorClass, merged: Merged) -> None:
        """Check the whole configuration. The mask stands in for kept secrets; references of secrets stay unresolved."""
        full = dict(merged.plain) | dict(merged.fresh) | dict.fromkeys(merged.kept, MASK)
        cls.Config.parse(self._resolve_texts(cls, full))

    def seal(self, cls: ConnectorClass, connector_id: str, merged: Merged) -> None:
        """Seal the fresh secrets and drop the cleared ones. Inside the caller's store transaction."""
        endpoint = cls.endpoint(merged.plain)
        for name, value in merged.fresh.items():
            version = self._store.secrets.next_version(connector_id, name)
            blob = self._vault.seal(
                connector_id=connector_id, field=name, endpoint=endpoint, version=version, plaintext=value
            )
            self._store.secrets.put(
                SealedSecret(
                    connector_id=connector_id,
                    field=name,
                    endpoint=endpoint,
                    blob=blob,
                    key_id=self._vault.active_key_id,
                    record_version=version,
                    fingerprint=self._vault.fingerprint(value),
                )
            )
        for name in merged.cleared:
            self._store.secrets.remove(connector_id, name)

    # --- out ---

    def masked(self, record: ConnectorRecord) -> dict[str, Any]:
        """The configuration as clients see it: set secrets as eight bullets, references as they are."""
        return {**record.config, **dict.fromkeys(self.stored_fields(record.id), MASK)}

    def record(self, connector_id: str) -> ConnectorRecord:
        """Return a stored connector as it is now. Raises `NotFound`."""
        return self._store.connectors.get(connector_id)

    def open(self, cls: ConnectorClass, connector_id: str) -> tuple[ConnectorRecord, dict[str, Any]]:
        """Return a stored connector and its complete configuration, secrets opened, references resolved.

        Raises `NotFound`, and `AgentError`: `credential.key_missing`, `credential.unreadable`, `credential.reference`.
        """
        record, sealed = self._snapshot(connector_id)
        return record, self.resolve(cls, {**record.config, **self._opened(cls, record, sealed)})

    def open_stored(
        self, cls: ConnectorClass, record: ConnectorRecord, only: Iterable[str] | None = None
    ) -> dict[str, str]:
        """Return the sealed secrets of a connector, opened (all, or `only` these fields)."""
        wanted = None if only is None else set(only)
        rows = self._store.secrets.of(record.id)
        return self._opened(cls, record, [row for row in rows if wanted is None or row.field in wanted])

    def _snapshot(self, connector_id: str) -> tuple[ConnectorRecord, tuple[SealedSecret, ...]]:
        """Record and secrets of one moment. A change replaces both at once and raises the version."""
        record = self._store.connectors.get(connector_id)
        while True:
            sealed = self._store.secrets.of(connector_id)
            again = self._store.connectors.get(connector_id)
            if again.version == record.version:
                return record, sealed
            record = again

    def is_stored(self, cls: ConnectorClass, record: ConnectorRecord, field: str, value: str) -> bool:
        """Tell whether `value` is what is sealed in `field`. A secret that does not open counts as another one."""
        try:
            return self.open_stored(cls, record, only=[field]).get(field) == value
        except CredentialUnreadable:
            return False

    def _opened(self, cls: ConnectorClass, record: ConnectorRecord, sealed: Iterable[SealedSecret]) -> dict[str, str]:
        endpoint = cls.endpoint(record.config)  # of the stored configuration, not of the blob's row: that is the check
        try:
            return {
                row.field: self._vault.unseal(
                    connector_id=record.id, field=row.field, endpoint=endpoint, version=row.record_version,
                    blob=row.blob,
                )
                for row in sealed
            }  # fmt: skip
        except CredentialUnreadable as exc:
            raise CredentialUnreadable(
                f"a stored secret of the connector {record.name!r} cannot be opened with the present key", hint=exc.hint
            ) from exc

    def stored_fields(self, connector_id: str) -> tuple[str, ...]:
        """Names of the sealed fields of a connector."""
        return tuple(row.field for row in self._store.secrets.of(connector_id))

    def resolve(self, cls: ConnectorClass, config: dict[str, Any]) -> dict[str, Any]:
        """Replace every reference in a configuration by its value."""
        return {
            name: self._resolve(value["$ref"], name) if is_reference(value) else value for name, value in config.items()
        }

    def _resolve_texts(self, cls: ConnectorClass, config: dict[str, Any]) -> dict[str, Any]:
        """Resolve references in fields that are no secrets: their values are needed to check the configuration."""
        secret_names = set(cls.Config.secret_fields())
        return {
            name: self._resolve(value["$ref"], name) if is_reference(value) and name not in secret_names else value
            for name, value in config.items()
        }

    def _resolve(self, reference: str, name: str) -> str:
        now = time.monotonic()
        with self._lock:
            cached = self._cache.get(reference)
        if cached is not None and now - cached[0] < self._cache_s():
            return cached[1]
        try:
            value = references.resolve(reference)
        except AgentError as exc:
            exc.data = {**(exc.data or {}), "field": name}
            raise
        with self._lock:
            limit = self._cache_s()
            self._cache = {key: kept for key, kept in self._cache.items() if now - kept[0] < limit}
            self._cache[reference] = (now, value)
        return value

    def forget_references(self) -> None:
        """Look references up anew at their next use."""
        with self._lock:
            self._cache.clear()

    # --- rotation of the vault's key ---

    def reseal_all(self, on_progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Re-encrypt everything that is not under the present key, history included; return what could not be opened.

        Each secret is one transaction: interrupted at any point, the next call goes on where this one stopped.
        """
        key_id = self._vault.active_key_id
        total = self._store.secrets.count_not_under(key_id)
        names = {record.id: record.name for record in self._store.connectors.list()}
        failed: list[str] = []
        for done, row in enumerate(self._store.secrets.not_under(key_id, limit=total), 1):
            try:
                with self._store.transaction():
                    anew = self._vault.reseal(
                        connector_id=row.connector_id, field=row.field, endpoint=row.endpoint,
                        version=row.record_version, blob=row.blob,
                    )  # fmt: skip
                    self._store.secrets.reseal(row, blob=anew.blob, key_id=anew.key_id, fingerprint=anew.fingerprint)
            except CredentialUnreadable as exc:
                name = names.get(row.connector_id, row.connector_id)
                _log.warning("the secret %s of connector %r stays under its old key: %s", row.field, name, exc)
                failed.append(name)
            if on_progress is not None:
                on_progress(done, total)
        return sorted(set(failed))

    def finish_rotation(self) -> bool:
        """Destroy the older keys that nothing is sealed under any more; return whether none is left."""
        with self._store.transaction():  # nothing can be sealed under a key while it goes
            return self._vault.finish_rotation(self._store.secrets.key_ids())


def _require_json(plain: dict[str, Any]) -> None:
    """A configuration is stored as JSON: dates of a TOML file or bytes of a MessagePack client are refused by name."""
    for name, value in plain.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{name}: a value of type {type(value).__name__} cannot be used here",
                field=name,
                hint="write it as text",
            ) from None


_REFERENCE = 'write {"$ref": "env:NAME"}, or file:/path, systemd:NAME, keyring:service/user'
