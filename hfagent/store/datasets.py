"""Datasets: what is synced, how, and into which directory. Their rows are elsewhere, in the lakehouse.

A dataset outlives its connector: the schema's own trigger detaches it when the connector goes, whoever deletes that.
"""

from __future__ import annotations

import difflib
import json
import logging
import sqlite3
import zlib
from collections.abc import Callable
from typing import Any, Final

from pydantic import TypeAdapter

from hfagent.foundation.errors import Conflict, NotFound
from hfagent.model.dataset import Dataset
from hfagent.model.stream import Column
from hfagent.store.connectors import name_key, require_connector
from hfagent.store.database import Database

__all__ = ["Datasets", "require_dataset"]

_COLUMNS: Final = (
    "id, name, connector_id, connector_name, stream, status, status_reason, location, options, schema_hash, "
    "cached_columns, version, created_at, updated_at"
)
_OPTIONS: Final = frozenset(
    {
        "mode", "watermark_column", "primary_key", "lookback", "on_null", "columns", "exclude", "masks", "schema_policy",
        "deletes", "max_shrink_ratio",
    }
)  # fmt: skip
"""Fields that are stored together, as JSON. A default is written too: it may be another one in a later version."""

_CACHED: Final = TypeAdapter(tuple[Column, ...])
_log = logging.getLogger(__name__)


class Datasets:
    """The table of datasets. Names are unique whatever their case, locations exactly."""

    def __init__(self, database: Database, *, after_delete: Callable[[], object] = lambda: None) -> None:
        """`after_delete` is called once a deletion is done, to remove what is removed in steps."""
        self._database = database
        self._after_delete = after_delete

    def insert(self, dataset: Dataset) -> Dataset:
        """Store a new dataset and return it with version 1 and its times; its sync state is made along.

        `connector_name` is the connector's own when there is one. Raises `NotFound` when the connector is gone; `Conflict`
        when the name (connector.name_taken) or the location (connector.conflict) is taken.
        """
        now = self._database.timestamp()
        with self._database.transaction() as connection:
            stored = self._fitting(
                connection, dataset.model_copy(update={"version": 1, "created_at": now, "updated_at": now})
            )
            connection.execute(
                f"INSERT INTO dataset ({_COLUMNS}, name_key) VALUES ({', '.join('?' * 15)})",
                (*_to_row(stored), name_key(stored.name)),
            )
        return stored

    def update(self, dataset: Dataset, *, if_version: int | None = None) -> Dataset:
        """Store a changed dataset and return it with its new version.

        Raises `NotFound`; `Conflict` as `insert` does, and with connector.conflict when `if_version` is given and the stored
        version is another one.
        """
        with self._database.transaction() as connection:
            present = self._fetch(connection, dataset.id)
            if present is None:
                raise self._not_found(connection, dataset.id)
            if if_version is not None and present.version != if_version:
                raise Conflict(
                    f"dataset {present.name!r} was changed meanwhile: it is at version {present.version}, "
                    f"the change was made for version {if_version}",
                    hint="read it again and repeat the change",
                )
            changes = {
                "version": present.version + 1,
                "created_at": present.created_at,
                "updated_at": self._database.timestamp(),
            }
            stored = self._fitting(connection, dataset.model_copy(update=changes))
            assignments = ", ".join(f"{name} = ?" for name in _COLUMNS.split(", "))
            connection.execute(
                f"UPDATE dataset SET {assignments}, name_key = ? WHERE id = ?",
                (*_to_row(stored), name_key(stored.name), stored.id),
            )
            return stored

    def delete(self, id_or_name: str) -> Dataset:
        """Remove a dataset with its sync state and runs, not its rows in the lakehouse. Raises `NotFound`."""

        def work(connection: sqlite3.Connection) -> Dataset:
            dataset = self._fetch(connection, id_or_name)
            if dataset is None:
                raise self._not_found(connection, id_or_name)
            connection.execute("DELETE FROM dataset WHERE id = ?", (dataset.id,))
            return dataset

        dataset = self._database.reclaim(work)
        self._after_delete()
        return dataset

    def detach(self, connector_id: str, reason: str) -> int:
        """Cut the datasets of a connector off from it, columns and rows staying, and return how many there were.

        Deleting the connector does the same with a reason of its own; call this before, in the same transaction, to give
        a better one.
        """

        def work(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "UPDATE dataset SET connector_id = NULL, status = 'detached', status_reason = ?, version = version + 1, "
                "updated_at = ? WHERE connector_id = ?",
                (reason, self._database.timestamp(), connector_id),
            ).rowcount

        return self._database.reclaim(work)

    def get(self, id_or_name: str) -> Dataset:
        """Return a dataset by its id or, whatever the case, its name. Raises `NotFound` naming similar ones."""
        with self._database.reading() as connection:
            dataset = self._fetch(connection, id_or_name)
            if dataset is None:
                raise self._not_found(connection, id_or_name)
            return dataset

    def find(self, id_or_name: str) -> Dataset | None:
        """Return a dataset by its id or name, or None."""
        with self._database.reading() as connection:
            return self._fetch(connection, id_or_name)

    def list(self, connector_id: str | None = None) -> tuple[Dataset, ...]:
        """Return all datasets, or those of a connector, by name."""
        where, values = ("", ()) if connector_id is None else ("WHERE connector_id = ?", (connector_id,))
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM dataset {where} ORDER BY name_key, id", values
            ).fetchall()
        return tuple(map(_from_row, rows))

    def _fitting(self, connection: sqlite3.Connection, dataset: Dataset) -> Dataset:
        """Refuse what clashes with other rows; return the dataset with its connector's present name."""
        row = connection.execute(
            "SELECT name FROM dataset WHERE name_key = ? AND id <> ?", (name_key(dataset.name), dataset.id)
        ).fetchone()
        if row is not None:
            raise Conflict(
                f"the name {dataset.name!r} is taken by the dataset {row[0]!r}",
                code="connector.name_taken",
                hint="choose another name; names that differ only in case count as the same",
            )
        row = connection.execute(
            "SELECT name FROM dataset WHERE location = ? AND id <> ?", (dataset.location, dataset.id)
        ).fetchone()
        if row is not None:
            raise Conflict(f"the directory {dataset.location!r} belongs to the dataset {row[0]!r}")
        if dataset.connector_id is None:
            return dataset
        require_connector(connection, dataset.connector_id)
        name = connection.execute("SELECT name FROM connector WHERE id = ?", (dataset.connector_id,)).fetchone()[0]
        return dataset.model_copy(update={"connector_name": name})

    def _fetch(self, connection: sqlite3.Connection, id_or_name: str) -> Dataset | None:
        for column, value in (("id", id_or_name), ("name_key", name_key(id_or_name))):
            row = connection.execute(f"SELECT {_COLUMNS} FROM dataset WHERE {column} = ?", (value,)).fetchone()
            if row is not None:
                return _from_row(row)
        return None

    def _not_found(self, connection: sqlite3.Connection, wanted: str) -> NotFound:
        names = [row[0] for row in connection.execute("SELECT name FROM dataset ORDER BY name_key LIMIT 1000")]
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
        if near:
            hint = f"did you mean {' or '.join(map(repr, near))}?"
        else:
            hint = "list the datasets to see their names" if names else "there is no dataset yet"
        return NotFound(f"there is no dataset {wanted!r}", code="model.not_found", hint=hint)


def require_dataset(connection: sqlite3.Connection, dataset_id: str) -> None:
    """Raise `NotFound` unless there is a dataset of that id."""
    if connection.execute("SELECT 1 FROM dataset WHERE id = ?", (dataset_id,)).fetchone() is None:
        raise NotFound(
            f"there is no dataset with the id {dataset_id!r}; it may have been deleted meanwhile",
            code="model.not_found",
        )


def _to_row(dataset: Dataset) -> tuple[Any, ...]:
    return (
        dataset.id,
        dataset.name,
        dataset.connector_id,
        dataset.connector_name,
        dataset.stream,
        dataset.status,
        dataset.status_reason,
        dataset.location,
        dataset.model_dump_json(include=set(_OPTIONS)),
        dataset.schema_hash,
        zlib.compress(_CACHED.dump_json(dataset.cached_columns, exclude_defaults=True), 1),
        dataset.version,
        dataset.created_at,
        dataset.updated_at,
    )


def _from_row(row: tuple[Any, ...]) -> Dataset:
    known: dict[str, Any] = {
        "id": row[0],
        "name": row[1],
        "connector_id": row[2],
        "connector_name": row[3],
        "stream": row[4],
        "status": row[5],
        "status_reason": row[6],
        "location": row[7],
        "schema_hash": row[9],
        "version": row[11],
        "created_at": row[12],
        "updated_at": row[13],
    }
    try:
        known["cached_columns"] = _CACHED.validate_json(zlib.decompress(row[10]))
    except (zlib.error, ValueError):
        # As good as not cached: the next look at the source writes them anew, and no hash means that it must look.
        known["schema_hash"] = ""
        _log.warning("the cached columns of the dataset %s are damaged and left out", row[1])
    try:
        return Dataset.model_validate(known | json.loads(row[8]))
    except (ValueError, TypeError):
        # One damaged row must not hide the others; without its key or masks it must not run either.
        if known["status"] == "active":
            known |= {"status": "paused"}
        known["status_reason"] = "its stored settings are damaged: enter them again, or restore a backup"
        return Dataset.model_construct(**known)
