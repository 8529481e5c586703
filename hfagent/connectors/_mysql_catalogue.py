"""Discovery: the catalogue of a MySQL or MariaDB server as streams, a few set-based queries per database.

Every query names its database as a constant: with anything else old servers open every table of every database. Tables,
keys and constraints are small and held in memory; the columns are streamed in the order of the tables, so what is held
does not grow with their number. Names are compared byte by byte here, because the server's catalogue compares them
without regard to case.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from hfagent.connectors._mysql_types import ValueOptions, catalogue_type
from hfagent.model.stream import Column, ForeignKey, Index, Stream, WatermarkCandidate, stream_id
from hfagent.sdk.reading import SchemaRequest
from hfagent.sdk.sql import matches

__all__ = ["SYSTEM_NAMESPACES", "Catalogue"]

SYSTEM_NAMESPACES: Final = ("mysql", "information_schema", "performance_schema", "sys", "ndbinfo", "metrics_schema")

Rows = Callable[[str, tuple[Any, ...]], Iterator[tuple[Any, ...]]]
"""Runs one of our statements with bound values and streams its rows as Python values."""

_TABLES = """SELECT TABLE_NAME, TABLE_TYPE, TABLE_ROWS, DATA_LENGTH + INDEX_LENGTH, TABLE_COMMENT, CREATE_OPTIONS, UPDATE_TIME
FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_SCHEMA = CAST(%s AS BINARY)
AND TABLE_TYPE NOT IN ('SEQUENCE', 'TEMPORARY')
ORDER BY CAST(TABLE_NAME AS BINARY)"""

_COLUMNS = """SELECT TABLE_NAME, COLUMN_NAME, ORDINAL_POSITION, COLUMN_DEFAULT, IS_NULLABLE, DATA_TYPE, COLUMN_TYPE,
NUMERIC_PRECISION, NUMERIC_SCALE, EXTRA, COLUMN_COMMENT, PRIVILEGES, GENERATION_EXPRESSION
FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_SCHEMA = CAST(%s AS BINARY)
ORDER BY CAST(TABLE_NAME AS BINARY), ORDINAL_POSITION"""

_INDEXES = """SELECT TABLE_NAME, INDEX_NAME, NON_UNIQUE, COLUMN_NAME, SUB_PART, NULLABLE
FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = %s AND TABLE_SCHEMA = CAST(%s AS BINARY)
ORDER BY CAST(TABLE_NAME AS BINARY), INDEX_NAME, SEQ_IN_INDEX"""

_FOREIGN_KEYS = """SELECT TABLE_NAME, CONSTRAINT_NAME, COLUMN_NAME, REFERENCED_TABLE_SCHEMA, REFERENCED_TABLE_NAME,
REFERENCED_COLUMN_NAME FROM information_schema.KEY_COLUMN_USAGE
WHERE TABLE_SCHEMA = %s AND TABLE_SCHEMA = CAST(%s AS BINARY) AND REFERENCED_TABLE_NAME IS NOT NULL
ORDER BY CAST(TABLE_NAME AS BINARY), CONSTRAINT_NAME, ORDINAL_POSITION"""

_PARTITIONS = """SELECT DISTINCT TABLE_NAME, PARTITION_METHOD, PARTITION_EXPRESSION FROM information_schema.PARTITIONS
WHERE TABLE_SCHEMA = %s AND TABLE_SCHEMA = CAST(%s AS BINARY) AND PARTITION_METHOD IS NOT NULL"""

_JSON_CHECKS = """SELECT TABLE_NAME, CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS
WHERE CONSTRAINT_SCHEMA = %s AND CONSTRAINT_SCHEMA = CAST(%s AS BINARY) AND CHECK_CLAUSE LIKE 'json_valid(%%'"""

_JSON_VALID = re.compile(r"json_valid\(`((?:[^`]|``)+)`\)", re.IGNORECASE)


@dataclass
class _Facts:
    """What is known about the tables of one database before their columns come."""

    indexes: dict[str, dict[str, list[tuple[Any, ...]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    foreign_keys: dict[str, dict[str, list[tuple[Any, ...]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    partitioning: dict[str, str] = field(default_factory=dict)
    json_columns: set[tuple[str, str]] = field(default_factory=set)


class Catalogue:
    """The streams of the given databases. `is_mariadb` adds what only MariaDB's catalogue has."""

    def __init__(self, rows: Rows, options: ValueOptions, *, is_mariadb: bool) -> None:
        self._rows = rows
        self._options = options
        self._is_mariadb = is_mariadb

    def streams(self, namespace: str, request: SchemaRequest) -> Iterator[Stream]:
        """Yield the streams of one database by name."""
        here = (namespace, namespace)
        tables = {
            row[0]: row
            for row in self._rows(_TABLES, here)
            if matches(f"{namespace}.{row[0]}", request.include, request.exclude)
        }
        if request.depth == "names":
            yield from (self._stream(namespace, row, [], _Facts(), request).hashed() for row in tables.values())
            return
        facts = self._facts(here, request, any("partitioned" in str(row[5] or "") for row in tables.values()))
        waiting = iter(tables.values())
        for name, columns in _grouped(self._rows(_COLUMNS, here) if tables else iter(())):
            if name not in tables:
                continue
            for row in waiting:  # those before it have no columns that could be described
                if row[0] == name:
                    break
                yield self._stream(namespace, row, [], facts, request).hashed()
            yield self._stream(namespace, tables[name], columns, facts, request).hashed()
        yield from (self._stream(namespace, row, [], facts, request).hashed() for row in waiting)

    def _facts(self, here: tuple[str, str], request: SchemaRequest, partitioned: bool) -> _Facts:
        facts = _Facts()
        if self._is_mariadb:
            for table, clause in self._rows(_JSON_CHECKS, here):
                if match := _JSON_VALID.fullmatch(clause or ""):
                    facts.json_columns.add((table, match[1].replace("``", "`")))
        if request.depth != "full":
            return facts
        for table, name, *rest in self._rows(_INDEXES, here):
            facts.indexes[table][name].append(tuple(rest))
        for table, name, *rest in self._rows(_FOREIGN_KEYS, here):
            facts.foreign_keys[table][name].append(tuple(rest))
        if partitioned:
            for table, method, expression in self._rows(_PARTITIONS, here):
                facts.partitioning[table] = f"{method} ({expression})" if expression else str(method)
        return facts

    def _stream(
        self, namespace: str, table: tuple[Any, ...], rows: list[tuple[Any, ...]], facts: _Facts, request: SchemaRequest
    ) -> Stream:
        name, table_type, row_count, size, comment, _, updated = table
        is_view = "VIEW" in table_type
        columns = tuple(self._column(row, (name, row[1]) in facts.json_columns) for row in rows)
        unreadable = tuple(row[1] for row in rows if "select" not in str(row[11] or "").lower().split(","))
        readable = "unknown" if not rows else ("no" if len(unreadable) == len(rows) else "yes")
        indexes = facts.indexes.get(name, {})
        primary, source, unique = _keys(indexes)
        candidates = _watermarks(columns, rows, indexes)
        warnings = []
        if is_view and ((not rows and request.depth != "names") or str(comment).startswith("View '")):
            warnings.append(
                f"the view cannot be described: {comment if comment != 'VIEW' else 'the server says nothing about it'}"
            )
        if readable == "no":
            warnings.append("the account may not read any column of it")
        elif unreadable:
            warnings.append(f"the account may not read the column(s) {', '.join(unreadable)}")
        return Stream(
            id=stream_id(namespace, name),
            namespace=namespace,
            name=name,
            kind="view" if is_view else "table",
            columns=columns,
            primary_key=primary,
            primary_key_source=source,
            unique_keys=unique,
            foreign_keys=tuple(_foreign_key(key, parts) for key, parts in facts.foreign_keys.get(name, {}).items()),
            indexes=tuple(
                Index(
                    name=key,
                    columns=tuple(part[1] for part in parts if part[1] is not None),
                    unique=not int(parts[0][0]),
                )
                for key, parts in indexes.items()
            ),
            partitioning=facts.partitioning.get(name),
            row_estimate=None if row_count is None else int(row_count),
            byte_estimate=None if size is None else int(size),
            readable=readable,
            unreadable_columns=unreadable if readable == "yes" else (),
            last_modified=updated.isoformat() + "Z" if updated is not None else None,
            capabilities=("full", "incremental") if candidates else ("full",),
            watermark_candidates=candidates,
            description=None if is_view else (comment or None),
            warnings=tuple(warnings),
            details={"system_versioned": True} if table_type == "SYSTEM VERSIONED" else {},
        )

    def _column(self, row: tuple[Any, ...], is_json: bool) -> Column:
        _, name, ordinal, default, nullable, kind, full, precision, scale, extra, comment, _, expression = row
        extra = str(extra or "").upper()
        return Column(
            name=name,
            type=catalogue_type(
                kind, full, None if precision is None else int(precision), None if scale is None else int(scale), self._options,
                is_json=is_json,
            ),
            native_type=full,
            nullable=nullable == "YES",
            ordinal=int(ordinal),
            # MariaDB marks the period columns of a versioned table the same way; `DEFAULT_GENERATED` is only a default.
            generated=bool(expression) or "VIRTUAL GENERATED" in extra or "STORED GENERATED" in extra,
            hidden="INVISIBLE" in extra,
            description=comment or None,
            default=None if default is None or str(default).upper() == "NULL" else str(default),
        )  # fmt: skip


def _grouped(rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Rows that share their first value and follow one another."""
    name, group = None, []  # type: ignore[var-annotated]
    for row in rows:
        if row[0] != name and group:
            yield group[0][0], group
            group = []
        name = row[0]
        group.append(row)
    if group:
        yield group[0][0], group


def _keys(indexes: dict[str, list[tuple[Any, ...]]]) -> tuple[tuple[str, ...], str, tuple[tuple[str, ...], ...]]:
    """Primary key, where it comes from, and the other unique keys whose columns are whole and never NULL."""
    unique = {}
    for name, parts in indexes.items():
        whole = all(column is not None and sub_part is None and null != "YES" for _, column, sub_part, null in parts)
        if not int(parts[0][0]) and whole:
            unique[name] = tuple(str(column) for _, column, _, _ in parts)
    if "PRIMARY" in unique:
        primary = unique.pop("PRIMARY")
        return primary, "declared", tuple(unique.values())
    if unique:
        shortest = min(unique, key=lambda name: (len(unique[name]), name))
        return unique[shortest], "unique_index", tuple(unique.values())
    return (), "none", ()


def _foreign_key(name: str, parts: list[tuple[Any, ...]]) -> ForeignKey:
    return ForeignKey(
        name=name,
        columns=tuple(part[0] for part in parts),
        references_namespace=parts[0][1],
        references_name=parts[0][2],
        references_columns=tuple(part[3] for part in parts),
    )


_UPDATED = re.compile(r"updat|modif|chang|last_?mod|upd_", re.IGNORECASE)
_CREATED = re.compile(r"creat|insert|added|ts$|timestamp|_at$", re.IGNORECASE)


def _watermarks(
    columns: tuple[Column, ...], rows: list[tuple[Any, ...]], indexes: dict[str, list[tuple[Any, ...]]]
) -> tuple[WatermarkCandidate, ...]:
    """Columns that could drive incremental reads, best first."""
    leading = {parts[0][1] for parts in indexes.values()}
    found = []
    for column, row in zip(columns, rows, strict=True):
        kind, extra = column.type.kind, str(row[9] or "").lower()
        reasons: list[str] = []
        if kind in ("timestamp", "timestamptz"):
            score = 0.4
            if "on update" in extra:
                score, reasons = 0.75, ["set by the server on every update (ON UPDATE CURRENT_TIMESTAMP)"]
            elif _UPDATED.search(column.name):
                score, reasons = 0.6, ["named like a time of change"]
            elif _CREATED.search(column.name):
                score, reasons = 0.5, ["named like a time of creation: updates would go unseen"]
        elif "auto_increment" in extra:
            score, reasons = 0.45, ["AUTO_INCREMENT: sees new rows only, and ids are not in the order of commits"]
        elif kind == "date" and _UPDATED.search(column.name):
            score, reasons = 0.3, ["a day is a coarse unit: many rows share it"]
        else:
            continue
        if column.name in leading:
            score, reasons = score + 0.15, [*reasons, "indexed"]
        else:
            reasons.append("not indexed: every run scans the table")
        if column.nullable:
            score, reasons = score - 0.1, [*reasons, "may be NULL"]
        if kind in ("timestamp", "timestamptz") and "(" not in column.native_type:
            reasons.append("whole seconds: ties are normal")
        found.append(WatermarkCandidate(column=column.name, score=round(min(score, 1.0), 2), reasons=tuple(reasons)))
    return tuple(sorted(found, key=lambda candidate: -candidate.score))
