"""Discovery: the streams of a database from flat, set-based catalogue queries.

First all relations (one row each), then pages of relations with their columns and keys: two queries per page, however
many tables it holds, and never one per table. Memory is bounded by the page and by the list of names. What cannot be
described costs its own description only: the page is halved until the culprit stands alone, and that stream carries the
reason as a warning.

Definitions repeat (ten thousand tables have the same `id bigint not null`), so columns are made once and shared: they are
frozen values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from hfagent.connectors._postgres_config import SpecialValues
from hfagent.connectors._postgres_session import Limits, Session
from hfagent.connectors._postgres_types import (
    LOOKUP,
    TypeFacts,
    builtin,
    canonical,
    facts_from_row,
    is_foreign,
    native_name,
)
from hfagent.foundation.errors import AgentError
from hfagent.model.stream import (
    Column,
    ForeignKey,
    Index,
    Stream,
    WatermarkCandidate,
    digest_part,
    schema_digest,
    stream_id,
)
from hfagent.sdk.reading import SchemaRequest
from hfagent.sdk.sql import matches

__all__ = ["Catalogue", "load_types", "owned_namespaces", "type_facts"]

_PAGE = 1000  # relations per page: 20,000 columns or so
_FIRST_PAGE = 100  # something to show soon

_FIRST, _TYPE = itemgetter(0), itemgetter(3)

_KINDS = {"r": "table", "p": "table", "v": "view", "m": "materialized_view", "f": "table"}

_NOT_SYSTEM = r"n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

_OWNED = f"""\
SELECT n.nspname FROM pg_catalog.pg_namespace n
WHERE {_NOT_SYSTEM} AND n.nspowner = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
  AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r','p','v','m','f'))
ORDER BY n.nspname"""

_READABLE = f"""\
SELECT n.nspname FROM pg_catalog.pg_namespace n
WHERE {_NOT_SYSTEM} AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r','p','v','m','f')
              AND (pg_catalog.has_table_privilege(c.oid, 'SELECT') OR pg_catalog.has_any_column_privilege(c.oid, 'SELECT')))
ORDER BY n.nspname"""

_RELATIONS = """\
SELECT c.oid, n.nspname, c.relname, c.relkind, c.reltuples::float8, c.relpages,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE'), pg_catalog.has_table_privilege(c.oid, 'SELECT'),
       c.relrowsecurity, c.relkind = 'p', d.description
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_description d
  ON d.objoid = c.oid AND d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0
WHERE n.nspname = ANY(%s) AND c.relkind IN ('r','p','v','m','f') {not_partition}
ORDER BY n.nspname, c.relname"""

_COLUMNS = """\
SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull,
       a.attrelid <> ALL(%s) OR pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT'), {generated},
       pg_catalog.pg_get_expr(f.adbin, f.adrelid), d.description
FROM pg_catalog.pg_attribute a
LEFT JOIN pg_catalog.pg_attrdef f ON a.atthasdef AND f.adrelid = a.attrelid AND f.adnum = a.attnum
LEFT JOIN pg_catalog.pg_description d
  ON d.objoid = a.attrelid AND d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = a.attnum
WHERE a.attrelid = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum"""

_KEYS = """\
SELECT 'i', i.indrelid, c.relname, i.indkey::pg_catalog.text, i.indisprimary, i.indisunique AND i.indpred IS NULL,
       {key_columns}, NULL::oid, NULL
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = ANY(%s) AND i.indisvalid
UNION ALL
SELECT 'f', o.conrelid, o.conname, pg_catalog.array_to_string(o.conkey, ' '), false, false, 0, o.confrelid,
       pg_catalog.array_to_string(o.confkey, ' ')
FROM pg_catalog.pg_constraint o WHERE o.contype = 'f' AND o.conrelid = ANY(%s)
ORDER BY 2, 3"""

_TARGETS = """\
SELECT c.oid, n.nspname, c.relname, a.attnum, a.attname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
WHERE c.oid = ANY(%s) AND a.attnum = ANY(%s)"""

_PARTITION_KEYS = "SELECT c, pg_catalog.pg_get_partkeydef(c) FROM pg_catalog.unnest(%s::oid[]) c"


@dataclass(slots=True)
class _Relation:
    oid: int
    namespace: str
    name: str
    kind: str
    tuples: float
    pages: int
    usage: bool
    readable: bool
    row_security: bool
    partitioned: bool
    description: str | None
    partition_key: str | None = None


_Score = tuple[float, tuple[str, ...]]


_Target = tuple[str, str, dict[int, str]]
_NOWHERE: _Target = ("", "", {})


class _Known(NamedTuple):
    """One column's definition, made once for all tables that have it at the same place."""

    column: Column
    number: int
    name: str
    readable: bool
    score: _Score | None
    warning: str | None
    digest: str


@dataclass(slots=True)
class _Parts:
    """What a page of relations is described by, by oid."""

    columns: dict[int, list[_Known]] = field(default_factory=dict)
    keys: dict[int, list[tuple[Any, ...]]] = field(default_factory=dict)


class Catalogue:
    """Reads the catalogue over one session."""

    def __init__(self, session: Session, special: SpecialValues, username: str) -> None:
        self._session = session
        self._special = special
        self._user = username
        self._known: dict[tuple[Any, ...], _Known] = {}
        self._targets: dict[int, _Target] = {}  # what foreign keys point to

    def streams(self, namespaces: Sequence[str], request: SchemaRequest) -> Iterator[Stream]:
        """Yield the streams of these namespaces, by namespace and name."""
        limits = Limits(request.deadline, request.cancel)
        wanted = [
            relation
            for relation in self._relations(namespaces, limits)
            if matches(f"{relation.namespace}.{relation.name}", request.include, request.exclude)
        ]
        if request.depth == "names":
            yield from (self._named(relation) for relation in wanted)
            return
        with self._session.working(limits):
            yield from self._described(wanted, limits, full=request.depth == "full")

    def _described(self, wanted: list[_Relation], limits: Limits, *, full: bool) -> Iterator[Stream]:
        """The server already collects the next page while this one is put together and consumed."""
        bounds = [0, *range(_FIRST_PAGE, len(wanted), _PAGE), len(wanted)]
        pages = [wanted[start:end] for start, end in itertools.pairwise(bounds) if start < end]
        asked: list[_Relation] | None = None
        try:
            for page, following in itertools.zip_longest(pages, pages[1:]):
                if asked is not page:
                    self._ask(page, full=full)
                asked = None
                parts = self._answer(limits)
                limits.check()
                if isinstance(parts, AgentError):
                    yield from self._one_by_one(page, parts, limits, full=full)
                    continue
                if following:
                    self._ask(following, full=full)
                    asked = following
                yield from (self._stream(relation, parts, full=full) for relation in page)
        finally:
            if asked is not None and not self._session.broken:  # nobody wants the rest
                self._session.cancel()
                with contextlib.suppress(AgentError):
                    self._session.receive(Limits.of(5))

    def _one_by_one(self, page: list[_Relation], error: AgentError, limits: Limits, *, full: bool) -> Iterator[Stream]:
        """Halve a page until the relation that cannot be described stands alone."""
        if len(page) == 1:
            yield self._named(page[0], f"cannot be described: {error}")
            return
        half = len(page) // 2
        for part in (page[:half], page[half:]):
            self._ask(part, full=full)
            parts = self._answer(limits)
            if isinstance(parts, AgentError):
                yield from self._one_by_one(part, parts, limits, full=full)
            else:
                yield from (self._stream(relation, parts, full=full) for relation in part)

    def _relations(self, namespaces: Sequence[str], limits: Limits) -> list[_Relation]:
        version = self._session.server_version
        text = _RELATIONS.replace("{not_partition}", "AND NOT c.relispartition" if version >= 100000 else "")
        rows = self._session.rows(text, (list(namespaces),), limits)
        relations = [_Relation(*row) for row in rows]
        parents = {relation.oid: relation for relation in relations if relation.partitioned}
        if parents:
            for oid, key in self._session.rows(_PARTITION_KEYS, (list(parents),), limits):
                parents[oid].partition_key = key
        return relations

    def _ask(self, page: list[_Relation], *, full: bool) -> None:
        """Send the queries for a page."""
        session, version = self._session, self._session.server_version
        oids = [relation.oid for relation in page]
        restricted = [relation.oid for relation in page if relation.usage and not relation.readable]
        identity = "a.attidentity" if version >= 100000 else "''"
        generated = f"{identity}, {'a.attgenerated' if version >= 120000 else chr(39) * 2}"
        queries = [session.bound(_COLUMNS.replace("{generated}", generated), (restricted, oids))]
        if full:
            key_columns = "i.indnkeyatts" if version >= 110000 else "i.indnatts"
            queries.append(session.bound(_KEYS.replace("{key_columns}", key_columns), (oids, oids)))
        session.send(queries)

    def _answer(self, limits: Limits) -> _Parts | AgentError:
        """What was asked for, or the error that is about one of the relations; any other error is raised."""
        try:
            columns, *keys = self._session.receive(limits)
            parts = _Parts()
            self._add_columns(parts, self._session.loaded(columns), limits)
            if keys:
                self._add_keys(parts, self._session.loaded(keys[0]), limits)
            return parts
        except AgentError as error:
            if self._session.broken or error.code.split(".")[0] in ("cancelled", "timeout", "net", "capacity"):
                raise
            return error

    def _add_columns(self, parts: _Parts, rows: list[tuple[Any, ...]], limits: Limits) -> None:
        known = self._known
        if len(known) > 50_000:
            known.clear()
        load_types(self._session, set(map(_TYPE, rows)), limits)
        for oid, group in itertools.groupby(rows, _FIRST):
            entries = parts.columns[oid] = []
            for row in group:
                entry = known.get(row[1:])
                if entry is None:
                    entry = known[row[1:]] = self._column(*row[1:])
                entries.append(entry)

    def _add_keys(self, parts: _Parts, rows: list[tuple[Any, ...]], limits: Limits) -> None:
        found: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        wanted: dict[int, set[int]] = {}
        for row in rows:
            found[row[1]].append(row)
            if row[0] == "f":
                wanted.setdefault(row[7], set()).update(map(int, row[8].split()))
        parts.keys = found
        missing = {
            oid: numbers for oid, numbers in wanted.items() if not numbers <= self._targets.get(oid, _NOWHERE)[2].keys()
        }
        if missing:
            numbers = set().union(*missing.values())
            for oid, namespace, name, number, column in self._session.rows(
                _TARGETS, (list(missing), list(numbers)), limits
            ):
                self._targets.setdefault(oid, (namespace, name, {}))[2][number] = column

    def _column(
        self, number: int, name: str, oid: int, modifier: int, not_null: bool, readable: bool, identity: str,
        computed: str, default: str | None, description: str | None,
    ) -> _Known:  # fmt: skip
        type_ = type_facts(self._session, oid)
        column = Column(
            name=name,
            type=canonical(type_, modifier, self._special),
            native_type=native_name(type_, modifier),
            nullable=not not_null,
            ordinal=number,
            generated=bool(computed),
            description=description,
            default=None if computed else default or _IDENTITY.get(identity),
        )
        warning = f"column {name}: the type {column.native_type} is delivered as text" if is_foreign(type_) else None
        score = _score(column, default, is_identity=bool(identity))
        return _Known(column, number, name, readable, score, warning, digest_part(column))

    # --- building ---

    def _named(self, relation: _Relation, warning: str | None = None) -> Stream:
        return Stream(**self._head(relation, [], warning), capabilities=("full",)).hashed()

    def _head(self, relation: _Relation, unreadable: Sequence[str], warning: str | None = None) -> dict[str, Any]:
        warnings = [warning] if warning else []
        if not relation.usage:
            warnings.append(
                f"not readable: GRANT USAGE ON SCHEMA {_quoted(relation.namespace)} TO {_quoted(self._user)};"
            )
        elif not relation.readable:
            what = f"the columns {', '.join(unreadable)}" if unreadable else "it"
            qualified = f"{_quoted(relation.namespace)}.{_quoted(relation.name)}"
            warnings.append(f"the account cannot read {what}: GRANT SELECT ON {qualified} TO {_quoted(self._user)};")
        if relation.row_security:
            warnings.append("row security may hide rows from this account")
        if relation.kind == "f":
            warnings.append("a foreign table: its data lie on another server")
        estimate = int(relation.tuples) if relation.tuples > 0 or (relation.tuples == 0 and relation.pages) else None
        return {
            "id": stream_id(relation.namespace, relation.name),
            "namespace": relation.namespace,
            "name": relation.name,
            "kind": _KINDS[relation.kind],
            "row_estimate": None if relation.kind == "v" else estimate,
            "byte_estimate": relation.pages * 8192 if relation.pages else None,
            "readable": "yes" if relation.usage and relation.readable else "no",
            "partitioning": relation.partition_key,
            "description": relation.description,
            "warnings": tuple(warnings),
        }

    def _stream(self, relation: _Relation, parts: _Parts, *, full: bool) -> Stream:
        entries = parts.columns.get(relation.oid)
        # One call turns 20 columns on their side; a loop for each of the six would cost more than the query.
        columns, numbers, names, readable, scores, warnings, digests = (
            zip(*entries, strict=True) if entries else ((),) * 7
        )
        unreadable = () if relation.readable else tuple([n for n, can in zip(names, readable, strict=True) if not can])
        head = self._head(relation, unreadable)
        if relation.usage and unreadable and len(unreadable) < len(names):
            head["readable"] = "yes"  # some columns are granted: reading those works
        head["columns"] = columns
        head["unreadable_columns"] = unreadable
        if any(warnings):
            head["warnings"] += tuple(filter(None, warnings))
        leading = self._fill_keys(head, relation, parts, dict(zip(numbers, names, strict=True))) if full else set()
        primary_key = head.get("primary_key", ())
        scored = tuple([(n, *s) for n, s, can in zip(names, scores, readable, strict=True) if s is not None and can])
        indexed = frozenset([name for name, _, _ in scored if name in leading])
        head["watermark_candidates"] = candidates = _candidates(scored, indexed, has_key=bool(primary_key))
        head["capabilities"] = ("full", "incremental") if candidates else ("full",)
        head["schema_hash"] = schema_digest(head["kind"], digests, primary_key)
        return Stream(**head)

    def _fill_keys(self, head: dict[str, Any], relation: _Relation, parts: _Parts, names: dict[int, str]) -> set[str]:
        """Fill in keys and indexes; return the columns that lead one."""
        leading: set[str] = set()
        rows = parts.keys.get(relation.oid)
        if not rows:
            return leading
        unique: list[tuple[str, ...]] = []
        indexes: list[Index] = []
        foreign: list[ForeignKey] = []
        for shape, _, name, numbers, is_primary, is_unique, count, target, target_numbers in rows:
            if shape == "f":
                if target in self._targets and (
                    key := _foreign_key(name, numbers, names, self._targets[target], target_numbers)
                ):
                    foreign.append(key)
                continue
            columns = _named_columns(numbers, names, count)
            if columns is None:
                continue  # an index on an expression
            leading.add(columns[0])
            indexes.append(Index(name=name, columns=columns, unique=is_unique))
            if is_primary:
                head["primary_key"], head["primary_key_source"] = columns, "declared"
            elif is_unique:
                unique.append(columns)
        if "primary_key" not in head and unique:
            nullable = {column.name for column in head["columns"] if column.nullable}
            if strict := [columns for columns in unique if not nullable.intersection(columns)]:
                head["primary_key"], head["primary_key_source"] = min(strict, key=len), "unique_index"
        head["unique_keys"], head["indexes"], head["foreign_keys"] = tuple(unique), tuple(indexes), tuple(foreign)
        return leading


_IDENTITY = {"a": "generated always as identity", "d": "generated by default as identity"}


def _named_columns(numbers: str, names: dict[int, str], count: int) -> tuple[str, ...] | None:
    """Names of an index's key columns; None when one is an expression. Columns that are only included do not count."""
    columns = tuple([names.get(int(number), "") for number in numbers.split()[:count]])
    return columns if columns and all(columns) else None


def _foreign_key(
    name: str, numbers: str, names: dict[int, str], target: tuple[str, str, dict[int, str]], target_numbers: str
) -> ForeignKey | None:
    columns = tuple([names.get(int(number), "") for number in numbers.split()])
    references = tuple([target[2].get(int(number), "") for number in target_numbers.split()])
    if not all(columns) or not all(references):
        return None
    return ForeignKey(
        name=name,
        columns=columns,
        references_namespace=target[0],
        references_name=target[1],
        references_columns=references,
    )


# --- types ---


def load_types(session: Session, oids: set[int], limits: Limits) -> None:
    """Look up the types that are not built in and not known to this session yet."""
    unknown = [oid for oid in oids if oid not in session.type_facts and oid not in builtin()]
    if not unknown:
        return
    text = LOOKUP.replace("{oids}", ", ".join(str(int(oid)) for oid in unknown))
    text = text.replace("SELECT t.oid,", "SELECT t.oid, t.typtype = 'd', t.typbasetype, t.typtypmod,", 1)
    bases: dict[int, tuple[int, int]] = {}
    for oid, is_domain, base, modifier, *facts in session.rows(text, None, limits):
        session.type_facts[oid] = facts_from_row(tuple(facts))
        if is_domain:
            bases[oid] = (base, modifier)
    load_types(session, {base for base, _ in bases.values()}, limits)
    for oid, (base, modifier) in bases.items():
        known = type_facts(session, base)
        modifier = modifier if modifier >= 0 else known.modifier
        session.type_facts[oid] = dataclasses.replace(known, display=session.type_facts[oid].display, modifier=modifier)


def type_facts(session: Session, oid: int) -> TypeFacts:
    """Facts of a type that is built in or was loaded."""
    return builtin().get(oid) or session.type_facts.get(oid) or TypeFacts("unknown", display=f"oid {oid}")


# --- namespaces ---


def owned_namespaces(session: Session, limits: Limits) -> tuple[str, ...]:
    """Namespaces with streams that the account owns; if none, all others in which it can read something."""
    owned = tuple(name for (name,) in session.rows(_OWNED, None, limits))
    return owned or tuple(name for (name,) in session.rows(_READABLE, None, limits))


# --- watermarks ---

_CHANGED = ("updated", "modified", "changed", "last_update", "mtime", "_upd", "lastmod", "row_version", "synced")
_CREATED = ("created", "inserted", "added", "ingested", "loaded", "event_time", "occurred", "logged", "timestamp")
_BASE = {
    "timestamptz": 0.5,
    "timestamp": 0.45,
    "int64": 0.25,
    "int32": 0.2,
    "date": 0.15,
    "bigdecimal": 0.1,
    "decimal": 0.1,
}


def _score(column: Column, default: str | None, *, is_identity: bool) -> _Score | None:
    """How well a column could drive incremental syncs, before its indexes are known."""
    kind = column.type.kind
    score = _BASE.get(kind, 0.0)
    if not score or (column.type.kind == "decimal" and column.type.scale):
        return None
    reasons = [f"ordered type {column.native_type}"]
    name = column.name.lower()
    dated = kind in ("timestamptz", "timestamp", "date")
    if dated and any(word in name for word in _CHANGED):
        score += 0.3
        reasons.append("its name says that it changes with the row")
    elif dated and any(word in name for word in _CREATED):
        score += 0.1
        reasons.append("its name says when the row was made: updates stay unseen")
    elif dated and kind != "date" and default and ("now()" in default or "CURRENT_TIMESTAMP" in default):
        score += 0.1
        reasons.append("set by the server when the row is made")
    elif not dated and (is_identity or (default or "").startswith("nextval(")):
        score += 0.25
        reasons.append("numbered by the server: finds new rows, not changed ones")
    elif not dated:
        return None
    if column.nullable:
        score -= 0.1
        reasons.append("may be NULL")
    return (score, tuple(reasons))


@functools.lru_cache(maxsize=4096)
def _candidates(
    scored: tuple[tuple[str, float, tuple[str, ...]], ...], indexed: frozenset[str], *, has_key: bool
) -> tuple[WatermarkCandidate, ...]:
    """The five best columns, given which of them lead an index."""
    found = []
    for column, score, reasons in scored:
        bonus = 0.05 if has_key else 0.0
        if column in indexed:
            bonus, reasons = bonus + 0.15, (*reasons, "indexed")
        found.append(WatermarkCandidate(column=column, score=round(min(1.0, score + bonus), 2), reasons=reasons))
    return tuple(sorted(found, key=lambda candidate: (-candidate.score, candidate.column))[:5])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
