"""Cached catalogues: one row per stream, replaced as a whole by each discovery.

A discovery writes its streams in chunks under a generation of its own, each chunk a short transaction, so a slow source
never holds the store up. The last transaction compares the generations and shows the new one instead of the old. Until
then, and when the discovery breaks off, readers see the old catalogue, whole.

Generations that nobody sees any more (replaced, broken off, of a deleted connector) are removed afterwards, in steps small
enough for a full disk: what SQLite deletes it writes to its journal first.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

from hfagent.foundation.errors import AgentError, UserError
from hfagent.model.stream import Stream, StreamPage, parse_stream_id
from hfagent.store.connectors import require_connector
from hfagent.store.database import Database
from hfagent.store.stream_rows import COLUMNS, from_body, search_text, sort_key, to_row

__all__ = ["CatalogueChanges", "CatalogueSummary", "Catalogues"]

CHUNK: Final = 500
"""Streams per transaction while a discovery is written: what is held in memory, and for how long others wait."""

STEP: Final = 500
"""Rows removed per transaction."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CatalogueChanges:
    """What a discovery found different, as stream ids. `changed` compares schema hashes: names, types, keys."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    total: int


@dataclass(frozen=True, slots=True)
class CatalogueSummary:
    """What is known about a cached catalogue as a whole."""

    discovered_at: str
    namespaces: tuple[str, ...]
    warnings: tuple[str, ...]
    total: int


class Catalogues:
    """The tables of cached catalogues."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()  # guards the set below
        self._under_way: set[tuple[str, int]] = set()

    def replace(
        self,
        connector_id: str,
        streams: Iterable[Stream],
        *,
        namespaces: Sequence[str],
        discovered_at: str | None = None,
        warnings: Sequence[str] = (),
    ) -> CatalogueChanges:
        """Take over what a discovery found and return the differences to the catalogue before.

        `streams` is read once, a chunk at a time; when it raises, the old catalogue stays. A stream given twice counts
        once, the later one wins. Raises `NotFound` when the connector is gone.
        """
        source = iter(streams)
        with self._generation(connector_id) as generation:
            while chunk := list(islice(source, CHUNK)):
                rows = [(connector_id, generation, *to_row(stream)) for stream in chunk]
                del chunk
                with self._database.transaction() as connection:
                    require_connector(connection, connector_id)
                    connection.executemany(
                        f"INSERT OR REPLACE INTO catalogue_stream (connector_id, generation, {', '.join(COLUMNS)}) "
                        f"VALUES (?, ?, {', '.join('?' * len(COLUMNS))})",
                        rows,
                    )
            changes = self._show(
                connector_id,
                generation,
                (discovered_at or self._database.timestamp(), json.dumps(list(namespaces)), json.dumps(list(warnings))),
            )
        self.tidy()
        return changes

    def page(
        self,
        connector_id: str,
        *,
        search: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        namespaces: Sequence[str] = (),
        after_token: str | None = None,
        limit: int = 200,
        names_only: bool = False,
    ) -> StreamPage | None:
        """Return a page of the cached catalogue by namespace and name, or None when nothing is cached.

        `search` is a text within `namespace.name`, case ignored; `include` and `exclude` are shell-style patterns on
        `namespace.name`, case-sensitive; `namespaces` limits to these. `after_token` is the `next_page` of the page before.
        With `names_only` the streams carry id, namespace, name, kind and hash, and no column is decoded. Raises `UserError`
        for a token that is none.
        """
        where, values = _conditions(search=search, include=include, exclude=exclude, namespaces=namespaces)
        if after_token is not None:
            where.append("sort_key > ?")
            values.append(_token_to_key(after_token))
        with self._database.reading() as connection:
            summary = _summary(connection, connector_id)
            if summary is None:
                return None
            generation, known = summary
            rows = connection.execute(
                f"SELECT sort_key, stream_id, namespace, name, kind, schema_hash{'' if names_only else ', body'} "
                f"FROM catalogue_stream WHERE {' AND '.join(['connector_id = ?', 'generation = ?', *where])} "
                "ORDER BY sort_key LIMIT ?",
                (connector_id, generation, *values, limit + 1),
            ).fetchall()
        shown = rows[:limit]
        return StreamPage(
            streams=tuple(_bare(row) if names_only else from_body(row[6]) for row in shown),
            next_page=_key_to_token(shown[-1][0]) if len(rows) > limit and shown else None,
            namespaces=known.namespaces,
            total=known.total,
            discovered_at=known.discovered_at,
            cached=True,
            warnings=known.warnings,
        )

    def get(self, connector_id: str, stream_id: str) -> Stream | None:
        """Return one stream with everything known about it, or None. The id's parts may be quoted or not."""
        try:
            condition: tuple[str, Any] = ("sort_key = ?", sort_key(*parse_stream_id(stream_id)))
        except ValueError:  # not of that shape; a connector type may have ids of its own
            condition = ("stream_id = ?", stream_id)
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT s.body FROM catalogue_stream AS s JOIN catalogue AS c USING (connector_id, generation) "
                f"WHERE connector_id = ? AND s.{condition[0]}",
                (connector_id, condition[1]),
            ).fetchone()
        return None if row is None else from_body(row[0])

    def summary(self, connector_id: str) -> CatalogueSummary | None:
        """Return when and where the catalogue was discovered and how many streams it has, or None."""
        with self._database.reading() as connection:
            found = _summary(connection, connector_id)
        return None if found is None else found[1]

    def count(
        self,
        connector_id: str,
        *,
        search: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        namespaces: Sequence[str] = (),
    ) -> int:
        """Return how many streams of the cached catalogue fit the filters of `page`; 0 when nothing is cached."""
        where, values = _conditions(search=search, include=include, exclude=exclude, namespaces=namespaces)
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT count(*) FROM catalogue_stream JOIN catalogue USING (connector_id, generation) "
                f"WHERE {' AND '.join(['connector_id = ?', *where])}",
                (connector_id, *values),
            ).fetchone()
        return int(row[0])

    def remove(self, connector_id: str) -> None:
        """Forget the cached catalogue of a connector."""
        self._database.reclaim(
            lambda connection: connection.execute("DELETE FROM catalogue WHERE connector_id = ?", (connector_id,))
        )
        self.tidy()

    def tidy(self) -> int:
        """Remove the rows that nobody sees any more, step by step, and return how many generations that were.

        Within a transaction nothing is done: the next call, at the latest when the store is opened, catches up. Failing is
        no error of the caller's, so it is logged only.
        """
        if self._database.in_transaction:
            return 0
        removed = 0
        try:
            while unseen := self._unseen():
                for key in unseen:
                    while self._database.reclaim(partial(_remove_step, key=key)):
                        pass
                    removed += 1
        except AgentError as exc:
            _log.warning("old rows of cached catalogues could not be removed: %s", exc)
        return removed

    # ---- replacing

    @contextmanager
    def _generation(self, connector_id: str) -> Iterator[int]:
        """Draw a generation that nothing in the table has, and protect its rows from being taken for leftovers."""
        with self._database.transaction() as connection:
            require_connector(connection, connector_id)
            row = connection.execute(
                "SELECT max(generation) FROM (SELECT generation FROM catalogue WHERE connector_id = ?1 "
                "UNION ALL SELECT generation FROM catalogue_unseen WHERE connector_id = ?1)",
                (connector_id,),
            ).fetchone()
            key = (connector_id, (row[0] or 0) + 1)
            connection.execute("INSERT INTO catalogue_unseen (connector_id, generation) VALUES (?, ?)", key)
            with self._lock:
                self._under_way.add(key)
        try:
            yield key[1]
        finally:
            with self._lock:
                self._under_way.discard(key)

    def _show(self, connector_id: str, generation: int, header: tuple[str, str, str]) -> CatalogueChanges:
        with self._database.transaction() as connection:
            require_connector(connection, connector_id)
            before = _shown_generation(connection, connector_id)

            def ids(query: str, *generations: int) -> tuple[str, ...]:
                parameters = [value for number in generations for value in (connector_id, number)]
                return tuple(row[0] for row in connection.execute(query, parameters))

            added = ids(_ONLY_IN_FIRST, generation, before)
            removed = ids(_ONLY_IN_FIRST, before, generation)
            changed = ids(_DIFFERENT, generation, before)
            total = len(added) + len(ids(_IN_BOTH, generation, before))
            connection.execute("DELETE FROM catalogue WHERE connector_id = ?", (connector_id,))
            connection.execute(
                "INSERT INTO catalogue (connector_id, generation, discovered_at, namespaces, warnings, streams) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (connector_id, generation, *header, total),
            )
            connection.execute(
                "DELETE FROM catalogue_unseen WHERE connector_id = ? AND generation = ?", (connector_id, generation)
            )
        return CatalogueChanges(added, removed, changed, total)

    def _unseen(self) -> list[tuple[str, int]]:
        with self._database.reading() as connection:
            rows = connection.execute("SELECT connector_id, generation FROM catalogue_unseen").fetchall()
        with self._lock:
            return [row for row in rows if row not in self._under_way]


def _remove_step(connection: sqlite3.Connection, *, key: tuple[str, int]) -> bool:
    """Remove some rows of a generation nobody sees, and tell whether there may be more."""
    removed = connection.execute(
        "DELETE FROM catalogue_stream WHERE rowid IN "
        "(SELECT rowid FROM catalogue_stream WHERE connector_id = ? AND generation = ? LIMIT ?)",
        (*key, STEP),
    ).rowcount
    if removed < STEP:
        connection.execute("DELETE FROM catalogue_unseen WHERE connector_id = ? AND generation = ?", key)
    return removed == STEP


_FIRST = "FROM catalogue_stream AS one LEFT JOIN catalogue_stream AS two"
_PAIR = "ON two.sort_key = one.sort_key AND two.connector_id = ?3 AND two.generation = ?4"
_THIS = "WHERE one.connector_id = ?1 AND one.generation = ?2"
_ONLY_IN_FIRST = f"SELECT one.stream_id {_FIRST} {_PAIR} {_THIS} AND two.sort_key IS NULL ORDER BY one.sort_key"
_IN_BOTH = f"SELECT one.stream_id {_FIRST} {_PAIR} {_THIS} AND two.sort_key IS NOT NULL"
_DIFFERENT = (
    f"SELECT one.stream_id {_FIRST} {_PAIR} {_THIS} AND two.schema_hash <> one.schema_hash ORDER BY one.sort_key"
)


def _shown_generation(connection: sqlite3.Connection, connector_id: str) -> int:
    row = connection.execute("SELECT generation FROM catalogue WHERE connector_id = ?", (connector_id,)).fetchone()
    return 0 if row is None else int(row[0])


def _summary(connection: sqlite3.Connection, connector_id: str) -> tuple[int, CatalogueSummary] | None:
    row = connection.execute(
        "SELECT generation, discovered_at, namespaces, warnings, streams FROM catalogue WHERE connector_id = ?",
        (connector_id,),
    ).fetchone()
    if row is None:
        return None
    try:
        return row[0], CatalogueSummary(row[1], tuple(json.loads(row[2])), tuple(json.loads(row[3])), row[4])
    except ValueError:
        return None  # damaged: as good as not cached, and the next discovery writes it anew


def _conditions(
    *, search: str | None, include: Sequence[str], exclude: Sequence[str], namespaces: Sequence[str]
) -> tuple[list[str], list[Any]]:
    """Return the WHERE parts and their values. Every value is bound, so quotes, % and _ mean themselves."""
    where: list[str] = []
    values: list[Any] = []
    full_name = "CASE WHEN namespace IS NULL THEN name ELSE namespace || '.' || name END"
    if search:
        where.append("instr(folded, ?) > 0")
        values.append(search_text(search))
    if namespaces:
        where.append(f"namespace IN ({', '.join('?' * len(namespaces))})")
        values.extend(namespaces)
    if include:
        where.append(f"({' OR '.join([f'glob_matches(?, {full_name})'] * len(include))})")
        values.extend(include)
    for pattern in exclude:
        where.append(f"NOT glob_matches(?, {full_name})")
        values.append(pattern)
    return where, values


def _bare(row: tuple[Any, ...]) -> Stream:
    return Stream(id=row[1], namespace=row[2], name=row[3], kind=row[4], schema_hash=row[5])


def _key_to_token(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode().rstrip("=")


def _token_to_key(token: str) -> bytes:
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise UserError(
            f"{token!r} is not a page token", hint="pass the next_page of the page before, unchanged"
        ) from exc
