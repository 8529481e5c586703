"""MySQL and MariaDB as a source of incremental reads: the look at a watermark column, computed by the server as exact text.

Which transactions are open is asked only where the answer is complete: the account needs PROCESS, and the server must take
writes. On a replica, rows carry the times of the source's transactions, which the replica does not show.

Needs a session whose time zone is UTC, as every session of ours is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from hfagent.connectors._mysql_checks import identity
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

__all__ = ["decimal_cast", "look"]

_CLASSES: Final[dict[str, WatermarkClass]] = {
    "datetime": "time", "timestamp": "time", "date": "date", "decimal": "number", "numeric": "number",
    "tinyint": "number", "smallint": "number", "mediumint": "number", "int": "number", "integer": "number", "bigint": "number",
}  # fmt: skip
_USABLE: Final = "DATETIME, TIMESTAMP, DATE, integers, DECIMAL"
_DENIED: Final = 1227
_DIGITS, _SCALE = 65, 30  # of the widest DECIMAL

# A transaction is shown with the time of day where the server stands (whatever the session's zone), in whole seconds. It
# counts from its first statement, and a statement that still waits for a lock has taken the time already. One that cannot
# write is of no interest.
_OLDEST: Final = """\
LEAST(UTC_TIMESTAMP(6),
  COALESCE((SELECT CONVERT_TZ(MIN(trx_started), 'SYSTEM', '+00:00') FROM information_schema.innodb_trx
            WHERE trx_mysql_thread_id <> CONNECTION_ID() AND trx_is_read_only = 0), UTC_TIMESTAMP(6)),
  COALESCE((SELECT UTC_TIMESTAMP(6) - INTERVAL (MAX(TIME) + 1) SECOND FROM information_schema.processlist
            WHERE ID <> CONNECTION_ID() AND COMMAND IN ('Query', 'Execute')), UTC_TIMESTAMP(6)))"""


def decimal_cast(column: Column) -> str:
    """The DECIMAL with the column's digits before the point, and as many behind it as there is room for."""
    precision, scale = min(column.type.precision or _DIGITS, _DIGITS), column.type.scale or 0
    return f"DECIMAL({_DIGITS}, {max(scale, min(_SCALE, _DIGITS - (precision - scale)))})"


def look(
    rows: Callable[[str], list[tuple[Any, ...]]],
    variables: Mapping[str, str],
    stream: Stream,
    name: str,
    *,
    table: str,
    quoted: str,
    lookback: int | None,
) -> WatermarkFacts:
    """Ask for the facts with one statement (two, when this account may not see others' transactions).

    `rows` runs a statement, `variables` are the server's; `table` and `quoted` are the names of stream and column as SQL.
    """
    column = watermark_column(stream, name)
    base = re.split(r"[ (]", column.native_type.lower(), maxsplit=1)[0]
    kind = _CLASSES.get(base)
    if kind is None or column.type.kind == "bool":
        raise unusable(stream, column, _USABLE)
    facts = _facts(table, quoted, kind, indexed=is_indexed(stream, name))
    sees_writers = kind == "time" and variables.get("read_only", "OFF").upper() in ("OFF", "0")
    try:
        oldest = _OLDEST if sees_writers else "NULL"
        (row,) = rows(_statement(facts, kind, column, lookback, oldest))
    except AgentError as error:
        if not sees_writers or (error.native or {}).get("number") != _DENIED:
            raise
        (row,) = rows(_statement(facts, kind, column, lookback, "NULL"))
    highest, future, nulls, floor, lowered = row
    return WatermarkFacts(
        column=name,
        column_type=str(column.type),
        watermark_class=kind,
        highest=highest,
        floor=floor,
        nulls=int(nulls),
        future=int(future),
        source_id=identity(dict(variables)),
        lowered=lowered,
    )


def _facts(table: str, quoted: str, kind: WatermarkClass, *, indexed: bool) -> str:
    """`highest`, `future` and `nulls`: by three looks into an index, or else in one pass over the table."""
    soon = f"UTC_TIMESTAMP(6) + INTERVAL {FUTURE_TOLERANCE_S} SECOND"
    end = {"time": soon, "date": f"DATE({soon})"}.get(kind)
    if indexed:
        highest = f"(SELECT MAX({quoted}) FROM {table}{f' WHERE {quoted} <= {end}' if end else ''})"
        future = f"(SELECT COUNT(*) FROM {table} WHERE {quoted} > {end})" if end else "0"
        nulls = f"(SELECT COUNT(*) FROM {table} WHERE {quoted} IS NULL)"
        return f"SELECT {highest} AS highest, {future} AS future, {nulls} AS nulls"
    highest = f"MAX(CASE WHEN {quoted} <= {end} THEN {quoted} END)" if end else f"MAX({quoted})"
    future = f"COUNT(CASE WHEN {quoted} > {end} THEN 1 END)" if end else "0"
    return f"SELECT {highest} AS highest, {future} AS future, COUNT(*) - COUNT({quoted}) AS nulls FROM {table}"


def _statement(facts: str, kind: WatermarkClass, column: Column, lookback: int | None, oldest: str) -> str:
    distance = DEFAULT_LOOKBACK[kind] if lookback is None else int(lookback)
    margin = FLOOR_MARGIN_S if lookback is None else distance
    floor = "NULL"
    if kind == "time":
        recent = f"oldest >= UTC_TIMESTAMP(6) - INTERVAL {FLOOR_MAX_LAG_S} SECOND"
        floor = f"CASE WHEN {recent} THEN oldest END"
        back = _earlier("highest", distance, "SECOND")
        if column.native_type.lower().startswith("datetime"):
            settled = f"LEAST({back}, {_earlier('oldest', margin, 'SECOND')})"
        else:
            settled = _earlier("LEAST(highest, oldest)", margin, "SECOND")
        lowered = f"CASE WHEN highest IS NULL THEN NULL WHEN {recent} THEN {settled} ELSE {back} END"
    elif kind == "date":
        lowered = _earlier("highest", distance, "DAY")
    else:
        lowered = f"CAST(highest AS {decimal_cast(column)}) - {distance}"
        if column.type.kind == "decimal":
            # The column's own scale: the text is bound again, and shown to people.
            lowered = f"CAST({lowered} AS DECIMAL({_DIGITS}, {column.type.scale or 0}))"
        else:  # the bound is cast back to a whole number of 64 bits
            least = "0" if column.type.kind.startswith("uint") else "-9223372036854775808"
            lowered = f"CASE WHEN highest IS NULL THEN NULL ELSE CAST(GREATEST({lowered}, {least}) AS DECIMAL({_DIGITS}, 0)) END"

    def text(value: str) -> str:
        # A time cut to the column's own digits: MySQL's casts would round it up.
        return f"LEFT(CAST({value} AS CHAR), {_width(column)})" if kind == "time" else f"CAST({value} AS CHAR)"

    # LIMIT: the server must not merge the query below into this one, or it would run a subquery for every mention of it.
    return (
        f"SELECT CAST(highest AS CHAR), future, nulls, {text(floor)}, {text(lowered)} "
        f"FROM (SELECT facts.*, {oldest} AS oldest FROM ({facts} LIMIT 1) AS facts LIMIT 1) AS look"
    )


def _width(column: Column) -> int:
    """Characters of a time in this column."""
    digits = re.search(r"\((\d)\)", column.native_type)
    return 20 + int(digits[1]) if digits and int(digits[1]) else 19


def _earlier(value: str, count: int, unit: str) -> str:
    """A zero date has no earlier one and stays what it is."""
    return f"COALESCE({value} - INTERVAL {count} {unit}, {value})"
