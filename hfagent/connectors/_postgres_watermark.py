"""PostgreSQL as a source of incremental reads: the look at a watermark column, and how its bounds are compared.

Everything is computed by the server, in the column's own type; values travel as the text that type prints in UTC.

Which transactions are open is asked only where the answer is complete: the account must see other sessions
(`pg_read_all_stats`), and the server must be the primary. A standby sees its own readers only, not the writers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from hfagent.foundation.errors import AgentError
from hfagent.model.stream import Column, Stream
from hfagent.sdk.incremental import (
    DEFAULT_LOOKBACK,
    FLOOR_MARGIN_S,
    FLOOR_MAX_LAG_S,
    FUTURE_TOLERANCE_S,
    WatermarkClass,
    WatermarkFacts,
    is_indexed,
    unusable,
    watermark_column,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hfagent.connectors._postgres_session import Limits, Session

__all__ = ["base_type", "cast_of", "is_text", "look"]

_CLASSES: Final[dict[str, WatermarkClass]] = {
    "timestamp with time zone": "time", "timestamp without time zone": "time", "date": "date",
    "smallint": "number", "integer": "number", "bigint": "number", "numeric": "number",
    "text": "text", "character varying": "text", "character": "text",
}  # fmt: skip
_USABLE: Final = "timestamptz, timestamp, date, smallint, integer, bigint, numeric, text (compared by its bytes)"

# To the widest type that compares with the column by its own index, never to one that would round or cut the value.
_CASTS: Final = {
    "timestamp with time zone": "timestamptz", "timestamp without time zone": "timestamp", "date": "date",
    "smallint": "int8", "integer": "int8", "bigint": "int8", "numeric": "numeric", "uuid": "uuid",
    "text": "text", "character varying": "text", "character": "text",
}  # fmt: skip

_MODIFIER = re.compile(r"\(-?\d+(?:,-?\d+)?\)")

_CONTROL: Final = "(SELECT system_identifier::text FROM pg_catalog.pg_control_system())"

_OLDEST: Final = """\
CASE WHEN NOT pg_catalog.pg_is_in_recovery() AND pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') THEN LEAST(
    pg_catalog.statement_timestamp(),
    (SELECT pg_catalog.min(xact_start) FROM pg_catalog.pg_stat_activity
     WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()
       AND backend_type NOT IN ('autovacuum worker', 'walsender')),
    (SELECT pg_catalog.min(prepared) FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database())) END"""
"""All open transactions, not only those that wrote already: one may insert its start as the time at any moment."""


def base_type(column: Column | None) -> str:
    """The column's type as SQL writes it, without its modifier."""
    return _MODIFIER.sub("", column.native_type) if column is not None else ""


def is_text(column: Column | None) -> bool:
    return _CLASSES.get(base_type(column)) == "text"


def cast_of(column: Column | None) -> str | None:
    """The type a bound value is cast to; None leaves it to the server. One of a fixed list, whatever the catalogue says."""
    name = _CASTS.get(base_type(column))
    return f"pg_catalog.{name}" if name else None


def look(
    session: Session,
    stream: Stream,
    name: str,
    *,
    table: str,
    quoted: str,
    lookback: int | None,
    begin: Iterable[bytes],
    limits: Limits,
) -> WatermarkFacts:
    """Ask for the facts in one round trip (two, when this account may not read the system identifier).

    `table` and `quoted` are the names of stream and column as SQL; `begin` opens the read-only transaction.
    """
    column = watermark_column(stream, name)
    kind = _CLASSES.get(base_type(column))
    if kind is None:
        raise unusable(stream, column, _USABLE)

    def statement(identifier: str) -> bytes:
        facts = _facts(
            table, quoted, base_type(column), indexed=is_indexed(stream, name), server=session.server_version
        )
        return _statement(facts, kind, base_type(column), lookback, identifier).encode()

    opening = list(begin)
    try:
        row = _ask(session, [*opening, statement(_CONTROL)], limits)
    except AgentError as error:
        if error.code != "permission.denied" or "pg_control_system" not in str(error):
            raise
        row = _ask(session, [*opening, statement("NULL::text")], limits)
    highest, future, nulls, floor, lowered, system, database = row
    return WatermarkFacts(
        column=name,
        column_type=str(column.type),
        watermark_class=kind,
        highest=highest,
        floor=floor,
        nulls=nulls,
        future=future,
        source_id=f"{system or f'{session.config.host}:{session.config.port}'}/{database}",
        lowered=lowered,
    )


def _ask(session: Session, statements: list[bytes], limits: Limits) -> tuple[Any, ...]:
    try:
        with session.working(limits):
            results = session.ask([*statements, b"ROLLBACK"], limits)
    except BaseException:
        session.settle()
        raise
    (row,) = session.loaded(results[-2])
    return row


def _facts(table: str, quoted: str, base: str, *, indexed: bool, server: int) -> str:
    """`highest`, `future` and `nulls`: by three looks into an index, or else in one pass over the table."""
    value = quoted
    if base == "character":
        value = f"{quoted}::pg_catalog.text"
    if _CLASSES[base] == "text":
        value = f'{value} COLLATE "C"'
    soon = f"(pg_catalog.statement_timestamp() + interval '{FUTURE_TOLERANCE_S} seconds')"
    end = {
        "timestamp with time zone": f"<= {soon}",
        "timestamp without time zone": f"<= ({soon} AT TIME ZONE 'UTC')",
        "date": f"<= ({soon} AT TIME ZONE 'UTC')::pg_catalog.date",
        # NaN is above all numbers, and infinity (PostgreSQL 14) just below it.
        "numeric": "< 'Infinity'::pg_catalog.numeric" if server >= 140000 else "< 'NaN'::pg_catalog.numeric",
    }.get(base)
    beyond = end and (">" if end.startswith("<=") else ">=") + end.removeprefix("<=").removeprefix("<")
    if indexed:
        highest = f"(SELECT pg_catalog.max({value}) FROM {table}{f' WHERE {quoted} {end}' if end else ''})"
        future = f"(SELECT pg_catalog.count(*) FROM {table} WHERE {quoted} {beyond})" if beyond else "0::int8"
        nulls = f"(SELECT pg_catalog.count(*) FROM {table} WHERE {quoted} IS NULL)"
        return f"SELECT {highest} AS highest, {future} AS future, {nulls} AS nulls"
    highest = f"pg_catalog.max({value})" + (f" FILTER (WHERE {quoted} {end})" if end else "")
    future = f"pg_catalog.count(*) FILTER (WHERE {quoted} {beyond})" if beyond else "0::int8"
    nulls = f"pg_catalog.count(*) - pg_catalog.count({quoted})"
    return f"SELECT {highest} AS highest, {future} AS future, {nulls} AS nulls FROM {table}"


def _statement(facts: str, kind: WatermarkClass, base: str, lookback: int | None, identifier: str) -> str:
    distance = DEFAULT_LOOKBACK[kind] if lookback is None else int(lookback)
    margin = FLOOR_MARGIN_S if lookback is None else distance
    oldest, floor = "NULL::timestamptz", "NULL::timestamptz"
    lowered = "highest"
    if kind == "time":
        oldest = _OLDEST
        naive = base == "timestamp without time zone"
        zone = " AT TIME ZONE 'UTC'" if naive else ""
        recent = f"oldest >= pg_catalog.statement_timestamp() - interval '{FLOOR_MAX_LAG_S} seconds'"
        floor = f"CASE WHEN {recent} THEN oldest{zone} END"
        back, settled = f"highest - {_seconds(distance)}", f"{floor} - {_seconds(margin)}"
        if naive:
            lowered = f"CASE WHEN highest IS NOT NULL THEN LEAST({back}, {settled}) END"
        else:
            above = f"LEAST(highest, oldest) - {_seconds(margin)}"
            lowered = f"CASE WHEN highest IS NOT NULL THEN CASE WHEN {recent} THEN {above} ELSE {back} END END"
    elif kind == "date":
        lowered = f"highest - {distance}"
    elif kind == "number":
        lowered = f"highest::pg_catalog.numeric - {distance}"
        if base != "numeric":  # the bound is cast back to a bigint
            lowered = f"CASE WHEN highest IS NOT NULL THEN GREATEST({lowered}, -9223372036854775808) END"
    # OFFSET 0: the server must not merge the query below into this one, or it would run a subquery for every mention of it.
    return (
        f"SELECT highest::pg_catalog.text, future, nulls, ({floor})::pg_catalog.text, ({lowered})::pg_catalog.text, "
        f"{identifier}, "
        "(SELECT oid::pg_catalog.text FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) "
        f"FROM (SELECT facts.*, {oldest} AS oldest FROM ({facts}) AS facts OFFSET 0) AS look"
    )


def _seconds(count: int) -> str:
    return f"interval '1 second' * {count}"
