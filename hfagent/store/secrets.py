"""Sealed secrets: the present one per connector and field, and the ones it replaced. Opaque bytes to this package.

A record's version only grows, also when the field is emptied and set again: it is part of what the vault seals, so an old
blob put back in place of a newer one does not open.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from hfagent.store.connectors import require_connector
from hfagent.store.database import Database

__all__ = ["HISTORY_KEPT", "SealedSecret", "Secrets"]

HISTORY_KEPT: Final = 20
"""Replaced secrets kept per field."""

_COLUMNS = "connector_id, field, endpoint, blob, key_id, record_version, fingerprint, updated_at"
_EITHER = f"(SELECT {_COLUMNS} FROM secret UNION ALL SELECT {_COLUMNS} FROM secret_history)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSecret:
    """One sealed secret with what it is bound to. `endpoint` is the binding at the time of sealing."""

    connector_id: str
    field: str
    endpoint: str
    blob: bytes = dataclasses.field(repr=False)
    key_id: str
    record_version: int
    fingerprint: str
    updated_at: str = ""


class Secrets:
    """The tables of sealed secrets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, secret: SealedSecret) -> SealedSecret:
        """Make `secret` the present one of its field and return it with its time; the one before goes to the history.

        `record_version` must come from `next_version`, in the same transaction; a `ValueError` says it did not. Raises
        `NotFound` when there is no such connector.
        """
        with self._database.transaction() as connection:
            require_connector(connection, secret.connector_id)
            expected = self._next_version(connection, secret.connector_id, secret.field)
            if secret.record_version != expected:
                raise ValueError(f"record version {secret.record_version}, expected {expected}")
            self._to_history(connection, secret.connector_id, secret.field)
            stored = dataclasses.replace(secret, updated_at=self._database.timestamp())
            connection.execute(f"INSERT INTO secret ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _to_row(stored))
            return stored

    def next_version(self, connector_id: str, field: str) -> int:
        """Return the version that the next secret of this field has to be sealed with."""
        with self._database.reading() as connection:
            return self._next_version(connection, connector_id, field)

    def get(self, connector_id: str, field: str) -> SealedSecret | None:
        """Return the present secret of a field, or None."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM secret WHERE connector_id = ? AND field = ?", (connector_id, field)
            ).fetchone()
        return None if row is None else _from_row(row)

    def of(self, connector_id: str) -> tuple[SealedSecret, ...]:
        """Return the present secrets of a connector, by field."""
        return self._select("FROM secret WHERE connector_id = ? ORDER BY field", connector_id)

    def history(self, connector_id: str, field: str) -> tuple[SealedSecret, ...]:
        """Return the replaced secrets of a field, newest first."""
        return self._select(
            "FROM secret_history WHERE connector_id = ? AND field = ? ORDER BY record_version DESC", connector_id, field
        )

    def remove(self, connector_id: str, field: str) -> bool:
        """Empty a field; its secret goes to the history. Return whether there was one."""
        return self._database.reclaim(lambda connection: self._to_history(connection, connector_id, field))

    def count(self) -> int:
        """Return the number of present secrets."""
        with self._database.reading() as connection:
            return int(connection.execute("SELECT count(*) FROM secret").fetchone()[0])

    def any(self) -> bool:
        """Tell whether anything sealed is kept, the history included."""
        return bool(self.key_ids())

    def key_ids(self) -> frozenset[str]:
        """Return the ids of the keys that kept blobs, the history included, are sealed under."""
        with self._database.reading() as connection:
            return frozenset(row[0] for row in connection.execute(f"SELECT DISTINCT key_id FROM {_EITHER}"))

    def not_under(self, key_id: str, *, limit: int = 100) -> tuple[SealedSecret, ...]:
        """Return up to `limit` kept secrets, the history included, that are sealed under another key."""
        return self._select(
            f"FROM {_EITHER} WHERE key_id <> ? ORDER BY connector_id, field, record_version LIMIT ?", key_id, limit
        )

    def count_not_under(self, key_id: str) -> int:
        """Return how many kept secrets, the history included, are sealed under another key."""
        with self._database.reading() as connection:
            row = connection.execute(f"SELECT count(*) FROM {_EITHER} WHERE key_id <> ?", (key_id,)).fetchone()
        return int(row[0])

    def reseal(self, before: SealedSecret, *, blob: bytes, key_id: str, fingerprint: str) -> bool:
        """Put the same secret, sealed anew, in place of `before`. False when that is not what is stored any more."""
        values = (blob, key_id, fingerprint, before.connector_id, before.field, before.record_version, before.blob)
        with self._database.transaction() as connection:
            return any(
                connection.execute(
                    f"UPDATE {table} SET blob = ?, key_id = ?, fingerprint = ? "
                    "WHERE connector_id = ? AND field = ? AND record_version = ? AND blob = ?",
                    values,
                ).rowcount
                for table in ("secret", "secret_history")
            )

    def _select(self, rest: str, *values: Any) -> tuple[SealedSecret, ...]:
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} {rest}", values).fetchall()
        return tuple(map(_from_row, rows))

    @staticmethod
    def _next_version(connection: sqlite3.Connection, connector_id: str, field: str) -> int:
        row = connection.execute(
            f"SELECT max(record_version) FROM {_EITHER} WHERE connector_id = ? AND field = ?", (connector_id, field)
        ).fetchone()
        return int(row[0] or 0) + 1

    @staticmethod
    def _to_history(connection: sqlite3.Connection, connector_id: str, field: str) -> bool:
        here = (connector_id, field)
        connection.execute(
            f"INSERT INTO secret_history ({_COLUMNS}) SELECT {_COLUMNS} FROM secret "
            "WHERE connector_id = ? AND field = ?",
            here,
        )
        moved = connection.execute("DELETE FROM secret WHERE connector_id = ? AND field = ?", here).rowcount > 0
        connection.execute(
            "DELETE FROM secret_history WHERE connector_id = ? AND field = ? AND record_version <= "
            "(SELECT record_version FROM secret_history WHERE connector_id = ? AND field = ? "
            "ORDER BY record_version DESC LIMIT 1 OFFSET ?)",
            (*here, *here, HISTORY_KEPT),
        )
        return moved


def _to_row(secret: SealedSecret) -> tuple[Any, ...]:
    return (
        secret.connector_id,
        secret.field,
        secret.endpoint,
        secret.blob,
        secret.key_id,
        secret.record_version,
        secret.fingerprint,
        secret.updated_at,
    )


def _from_row(row: tuple[Any, ...]) -> SealedSecret:
    return SealedSecret(
        connector_id=row[0],
        field=row[1],
        endpoint=row[2],
        blob=row[3],
        key_id=row[4],
        record_version=row[5],
        fingerprint=row[6],
        updated_at=row[7],
    )
