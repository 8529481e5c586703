"""Configured connectors. Their configuration here holds no secret: a secret field is absent, or a reference to elsewhere."""

from __future__ import annotations

import difflib
import json
import sqlite3
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hfagent.foundation.errors import Conflict, NotFound
from hfagent.store.database import Database

__all__ = ["ConnectorRecord", "Connectors", "require_connector"]

Status = Literal["active", "disabled", "locked", "invalid"]

_COLUMNS = (
    "id, name, type, description, config, output_schemas, status, status_reason, production, source, source_file, "
    "version, created_at, updated_at"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorRecord:
    """One configured connector, as stored. `version` and the times are the store's to set."""

    id: str
    name: str
    type: str
    config: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    output_schemas: tuple[str, ...] = ()
    status: Status = "active"
    status_reason: str | None = None
    production: bool = False
    source: Literal["api", "file"] = "api"
    source_file: str | None = None
    version: int = 1
    created_at: str = ""
    updated_at: str = ""


class Connectors:
    """The table of connectors. Names are unique whatever their case."""

    def __init__(self, database: Database, *, after_delete: Callable[[], object] = lambda: None) -> None:
        """`after_delete` is called once a deletion is done, to remove what is removed in steps."""
        self._database = database
        self._after_delete = after_delete

    def insert(self, record: ConnectorRecord) -> ConnectorRecord:
        """Store a new connector and return it with version 1 and its times. Raises `Conflict` (connector.name_taken)."""
        now = self._database.timestamp()
        stored = replace(record, version=1, created_at=now, updated_at=now)
        with self._database.transaction() as connection:
            self._refuse_taken(connection, stored)
            connection.execute(
                f"INSERT INTO connector ({_COLUMNS}, name_key) VALUES ({', '.join('?' * 15)})",
                (*_to_row(stored), name_key(stored.name)),
            )
        return stored

    def replace(self, record: ConnectorRecord, *, if_version: int | None = None) -> ConnectorRecord:
        """Store a changed connector and return it with its new version.

        Raises `NotFound`; `Conflict` with connector.name_taken, or with connector.conflict when `if_version` is given and
        the stored version is another one.
        """
        with self._database.transaction() as connection:
            present = self._fetch(connection, record.id)
            if present is None:
                raise self._not_found(connection, record.id)
            if if_version is not None and present.version != if_version:
                raise Conflict(
                    f"connector {present.name!r} was changed meanwhile: it is at version {present.version}, "
                    f"the change was made for version {if_version}",
                    hint=f"read it again (hfagent connector get {present.name}) and repeat the change",
                )
            self._refuse_taken(connection, record)
            stored = replace(
                record,
                version=present.version + 1,
                created_at=present.created_at,
                updated_at=self._database.timestamp(),
            )
            assignments = ", ".join(f"{name} = ?" for name in _COLUMNS.split(", "))
            connection.execute(
                f"UPDATE connector SET {assignments}, name_key = ? WHERE id = ?",
                (*_to_row(stored), name_key(stored.name), stored.id),
            )
            return stored

    def delete(self, id_or_name: str) -> ConnectorRecord:
        """Remove a connector with its secrets, test history, catalogue and schedule. Raises `NotFound`."""

        def work(connection: sqlite3.Connection) -> ConnectorRecord:
            record = self._fetch(connection, id_or_name)
            if record is None:
                raise self._not_found(connection, id_or_name)
            connection.execute("DELETE FROM connector WHERE id = ?", (record.id,))
            return record

        record = self._database.reclaim(work)
        self._after_delete()
        return record

    def get(self, id_or_name: str) -> ConnectorRecord:
        """Return a connector by its id or, whatever the case, its name. Raises `NotFound` naming similar ones."""
        with self._database.reading() as connection:
            record = self._fetch(connection, id_or_name)
            if record is None:
                raise self._not_found(connection, id_or_name)
            return record

    def find(self, id_or_name: str) -> ConnectorRecord | None:
        """Return a connector by its id or name, or None."""
        with self._database.reading() as connection:
            return self._fetch(connection, id_or_name)

    def list(self) -> tuple[ConnectorRecord, ...]:
        """Return all connectors, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM connector ORDER BY name_key, id").fetchall()
        return tuple(map(_from_row, rows))

    def _fetch(self, connection: sqlite3.Connection, id_or_name: str) -> ConnectorRecord | None:
        for column, value in (("id", id_or_name), ("name_key", name_key(id_or_name))):
            row = connection.execute(f"SELECT {_COLUMNS} FROM connector WHERE {column} = ?", (value,)).fetchone()
            if row is not None:
                return _from_row(row)
        return None

    def _refuse_taken(self, connection: sqlite3.Connection, record: ConnectorRecord) -> None:
        row = connection.execute(
            "SELECT name FROM connector WHERE name_key = ? AND id <> ?", (name_key(record.name), record.id)
        ).fetchone()
        if row is not None:
            raise Conflict(
                f"the name {record.name!r} is taken by the connector {row[0]!r}",
                code="connector.name_taken",
                hint="choose another name; names that differ only in case count as the same",
            )

    def _not_found(self, connection: sqlite3.Connection, wanted: str) -> NotFound:
        names = [row[0] for row in connection.execute("SELECT name FROM connector ORDER BY name_key LIMIT 1000")]
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
        if near:
            hint = f"did you mean {' or '.join(map(repr, near))}?"
        else:
            hint = "hfagent connector list shows the connectors" if names else "no connector is configured yet"
        return NotFound(f"there is no connector {wanted!r}", hint=hint)


def require_connector(connection: sqlite3.Connection, connector_id: str) -> None:
    """Raise `NotFound` unless there is a connector of that id."""
    if connection.execute("SELECT 1 FROM connector WHERE id = ?", (connector_id,)).fetchone() is None:
        raise NotFound(f"there is no connector with the id {connector_id!r}; it may have been deleted meanwhile")


def name_key(name: str) -> str:
    """Return what makes a name the same as another: composed and with case folded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _to_row(record: ConnectorRecord) -> tuple[Any, ...]:
    return (
        record.id,
        record.name,
        record.type,
        record.description,
        json.dumps(record.config, allow_nan=False),
        json.dumps(record.output_schemas),
        record.status,
        record.status_reason,
        record.production,
        record.source,
        record.source_file,
        record.version,
        record.created_at,
        record.updated_at,
    )


def _from_row(row: tuple[Any, ...]) -> ConnectorRecord:
    status, reason = row[6], row[7]
    try:
        config, schemas = json.loads(row[4]), tuple(json.loads(row[5]))
    except ValueError:
        # One damaged row must not hide the others: it is shown as what it is.
        config, schemas = {}, ()
        status, reason = "invalid", "its stored configuration is damaged: enter it again, or restore a backup"
    return ConnectorRecord(
        id=row[0],
        name=row[1],
        type=row[2],
        description=row[3],
        config=config,
        output_schemas=schemas,
        status=status,
        status_reason=reason,
        production=bool(row[8]),
        source=row[9],
        source_file=row[10],
        version=row[11],
        created_at=row[12],
        updated_at=row[13],
    )
