"""Column types of text tables: what every value proves, over all rows.

A candidate is found in a sample and then verified by the query engine over every row; a single value that does not fit
sends the column on to the next candidate, and finally to text. So no read can fail on a value later, and no value is
changed by its type: leading zeros, a leading plus sign and numbers of more than 15 digits stay text.

Decimals are exact. Their scale is rounded up to 2, 4, 6 or 9 digits, so that tomorrow's file has the same type; longer
fractions and exponents are floating point.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hfagent.connectors._files_config import CsvConfig

__all__ = ["Candidate", "ColumnKinds", "Settled", "quoted", "settle_types", "text_literal", "trimmed"]

ColumnKinds = frozenset[str]
"""What a reader that knows values by kind has met: bool, int, float, number, string, date, datetime, time, other, nested."""

_SCALES = (2, 4, 6, 9)
_ISO_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_SLASHED_DATE = r"[0-9]{4}/[0-9]{2}/[0-9]{2}"
_CLOCK = r"[0-9]{2}:[0-9]{2}(:[0-9]{2}([.,][0-9]{1,6})?)?"
_ZONE = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)"


@dataclass(frozen=True)
class Candidate:
    """A type a column may have: the pattern of its values, how they are cast (`{v}`), and what it is then."""

    name: str
    pattern: str
    cast: str
    type: str
    native: str
    next: tuple[str, ...] = ()


@dataclass
class Settled:
    """The outcome for one column. `cast` is SQL with `{v}` for the trimmed value; None = text as it is."""

    type: str = "string"
    native: str = "VARCHAR"
    cast: str | None = None
    warnings: list[str] = field(default_factory=list)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def text_literal(text: str) -> str:
    """A text as SQL. NUL cannot stand in a statement and is written as a function call."""
    if "\0" in text:
        return "(" + " || chr(0) || ".join(text_literal(part) for part in text.split("\0")) + ")"
    return "'" + text.replace("'", "''") + "'"


class _Rules:
    """All candidates for one configuration."""

    def __init__(self, config: CsvConfig) -> None:
        point, group = re.escape(config.decimal), re.escape(config.thousands) if config.thousands else ""
        whole = "(0|[1-9][0-9]{0,14})"
        if group:
            whole = f"(0|[1-9][0-9]{{0,14}}|[1-9][0-9]{{0,2}}({group}[0-9]{{3}}){{1,4}})"
        plain = "{v}"
        if config.thousands:
            plain = f"replace({plain}, {text_literal(config.thousands)}, '')"
        if config.decimal != ".":
            plain = f"replace({plain}, {text_literal(config.decimal)}, '.')"
        self.plain, self.point = plain, point
        number = f"-?({whole}({point}[0-9]+)?|{point}[0-9]+)"
        zone = config.timezone.replace("'", "''")
        stamp = ("timestamptz", "TIMESTAMP WITH TIME ZONE") if zone else ("timestamp", "TIMESTAMP")
        naive = "timezone('" + zone + "', {c})" if zone else "{c}"

        def local(cast: str) -> str:
            return naive.replace("{c}", cast)

        iso = "try_cast(replace({v}, ',', '.') AS TIMESTAMP)"
        all_ = [
            Candidate("bool", "(?i)true|false", "try_cast({v} AS BOOLEAN)", "bool", "BOOLEAN"),
            Candidate("int", f"-?{whole}", f"try_cast({plain} AS BIGINT)", "int64", "BIGINT", ("decimal", "float")),
            Candidate("bigint", "-?(0|[1-9][0-9]{0,17})", "try_cast({v} AS BIGINT)", "int64", "BIGINT", ("huge",)),
            Candidate("huge", "-?(0|[1-9][0-9]{0,37})", "try_cast({v} AS DECIMAL(38, 0))", "decimal(38,0)", "DECIMAL(38,0)"),
            Candidate("decimal", number, plain, "", "", ("float",)),
            Candidate("float", f"{number}([eE][-+]?[0-9]{{1,3}})?", _finite(plain), "float64", "DOUBLE"),
            Candidate("date", _ISO_DATE, "try_cast({v} AS DATE)", "date", "DATE", ("timestamp",)),
            Candidate("slashed", _SLASHED_DATE, "try_cast(replace({v}, '/', '-') AS DATE)", "date", "DATE"),
            Candidate("timestamp", f"{_ISO_DATE}([ T]{_CLOCK})?", local(iso), *stamp),
            Candidate("instant", f"{_ISO_DATE}[ T]{_CLOCK} ?{_ZONE}",
                      "try_cast(replace({v}, ',', '.') AS TIMESTAMPTZ)", "timestamptz", "TIMESTAMP WITH TIME ZONE"),
            Candidate("time", r"[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?", "try_cast({v} AS TIME)", "time", "TIME"),
        ]  # fmt: skip
        for separator in "/.-":
            sign = re.escape(separator)
            for name, parts in (("dmy", ("%d", "%m", "%Y")), ("mdy", ("%m", "%d", "%Y"))):
                shape = f"[0-9]{{1,2}}{sign}[0-9]{{1,2}}{sign}[0-9]{{4}}"
                day = "try_strptime({v}, " + text_literal(separator.join(parts)) + ")"
                formats = [separator.join(parts) + " " + clock for clock in ("%H:%M:%S", "%H:%M", "%H:%M:%S.%f")]
                moment = "try_strptime({v}, [" + ", ".join(map(text_literal, formats)) + "])"
                all_.append(Candidate(f"{name}{separator}", shape, f"CAST({day} AS DATE)", "date", "DATE"))
                all_.append(Candidate(f"{name}{separator}time", f"{shape} {_CLOCK}", local(moment), *stamp))
        if config.date_format:
            cast = "try_strptime({v}, " + text_literal(config.date_format) + ")"
            if "%z" in config.date_format:
                given = Candidate("given", ".*", cast, "timestamptz", "TIMESTAMP WITH TIME ZONE")
            elif any(code in config.date_format for code in ("%H", "%I", "%M", "%S")):
                given = Candidate("given", ".*", local(cast), *stamp)
            else:
                given = Candidate("given", ".*", f"CAST({cast} AS DATE)", "date", "DATE")
            all_.append(given)
        self.all = {c.name: c for c in all_}
        self.compiled = {c.name: re.compile(c.pattern) for c in all_}


def _finite(plain: str) -> str:
    return f"(CASE WHEN isfinite(try_cast({plain} AS DOUBLE)) THEN try_cast({plain} AS DOUBLE) END)"


_TEXT_ORDER = (
    "bool", "int", "decimal", "float", "date", "slashed", "timestamp", "instant", "time", "dmy/", "dmy.", "dmy-",
    "dmy/time", "dmy.time", "dmy-time",
)  # fmt: skip
_BY_KINDS: dict[ColumnKinds, tuple[str, ...]] = {
    frozenset({"bool"}): ("bool",),
    frozenset({"int"}): ("bigint", "huge"),
    frozenset({"float"}): ("decimal", "float"),
    frozenset({"int", "float"}): ("decimal", "float"),
    frozenset({"number"}): ("int", "float"),
    frozenset({"string"}): ("date", "timestamp", "instant", "time"),
    frozenset({"date"}): ("date",),
    frozenset({"datetime"}): ("timestamp",),
    frozenset({"date", "datetime"}): ("timestamp",),
    frozenset({"time"}): ("time",),
}
"""For files whose values have kinds (JSON, workbooks): a text stays a text there, unless it is an ISO date or time."""

_CELLS_PER_SAMPLE = 400_000
_COLUMNS_PER_QUERY = 100


def settle_types(
    engine: Any, table: str, columns: Sequence[str], names: Sequence[str], config: CsvConfig,
    kinds: Sequence[ColumnKinds | None], nulls: Sequence[str],
) -> list[Settled]:  # fmt: skip
    """Find the type of every column of `table` (all VARCHAR). `names` are what warnings call the columns."""
    settled = [Settled() for _ in columns]
    if not config.infer_types:
        return settled
    if any(kind is not None for kind in kinds):  # such values are written by us, always with a point
        config = config.model_copy(update={"decimal": ".", "thousands": ""})
    rules = _Rules(config)
    limit = max(50, min(1000, _CELLS_PER_SAMPLE // max(1, len(columns))))
    samples = _samples(engine, table, columns, limit)
    blank = "" in nulls
    open_: dict[int, list[str]] = {}
    for index in range(len(columns)):
        kind = kinds[index]
        if kind is not None and "nested" in kind and kind <= {"nested"}:
            settled[index] = Settled("json", "JSON")
            continue
        sample = samples[index] - {""} if blank else samples[index]
        order = _order(kind, rules, config)
        found = [n for n in order if all(rules.compiled[n].fullmatch(v) for v in sample)]
        if found:
            open_[index] = found
    for index, outcome in _verify(engine, table, columns, names, rules, config, open_, blank).items():
        settled[index] = outcome
    return settled


def _samples(engine: Any, table: str, columns: Sequence[str], limit: int) -> list[set[str]]:
    """The distinct values of each column among the first rows; wide tables in parts, for the engine's memory's sake."""
    found: list[set[str]] = []
    for start in range(0, len(columns), _COLUMNS_PER_QUERY):
        part = columns[start : start + _COLUMNS_PER_QUERY]
        rows = engine.execute(f"SELECT {', '.join(part)} FROM {table} LIMIT {limit}").fetchall()
        found += [{v.strip() for row in rows if (v := row[index]) is not None} for index in range(len(part))]
    return found


def _order(kind: ColumnKinds | None, rules: _Rules, config: CsvConfig) -> tuple[str, ...]:
    order = _TEXT_ORDER if kind is None else _BY_KINDS.get(kind, ())
    if "given" in rules.all and (kind is None or kind == {"string"}):
        order = ("given", *order)
    return order


def _verify(
    engine: Any, table: str, columns: Sequence[str], names: Sequence[str], rules: _Rules, config: CsvConfig,
    open_: dict[int, list[str]], blank: bool,
) -> dict[int, Settled]:  # fmt: skip
    """Check candidates over all rows until each column has one that fits, or none is left."""
    outcome: dict[int, Settled] = {}
    while open_:
        todo = list(open_)
        for start in range(0, len(todo), _COLUMNS_PER_QUERY):
            part = todo[start : start + _COLUMNS_PER_QUERY]
            checks = ", ".join(check for i in part for check in _checks(rules, open_[i][0], columns[i], blank))
            answers = engine.execute(f"SELECT {checks} FROM {table}").fetchone()
            for position, index in enumerate(part):
                candidate = rules.all[open_[index][0]]
                misfits, first, second, count = answers[position * 4 : position * 4 + 4]
                if not count:  # nothing but NULLs proves no type
                    del open_[index]
                    outcome[index] = Settled()
                    continue
                result = _judge(candidate, misfits, first, second, names[index], config, rules)
                if result is None:
                    open_[index].pop(0)
                    if not open_[index]:
                        del open_[index]
                        outcome[index] = Settled()
                else:
                    del open_[index]
                    outcome[index] = result
    return outcome


def trimmed(column: str) -> str:
    """The value as casts see it: without blanks around it."""
    return f"trim({column}, ' \t')"


def _checks(rules: _Rules, name: str, column: str, blank: bool) -> tuple[str, str, str, str]:
    """Four aggregates: values that do not fit, two facts for `_judge`, and how many values there are.

    `blank`: a cell of nothing but blanks is NULL in a column that is not text.
    """
    candidate, value = rules.all[name], trimmed(column)
    count = f"count(*) FILTER ({value} <> '')"
    pattern = f"(?:{candidate.pattern})?" if blank else candidate.pattern
    misfits = f"NOT regexp_full_match({value}, {text_literal(pattern)})"
    present = f"{value} <> ''" if blank else f"{value} IS NOT NULL"
    if name == "decimal":
        plain = rules.plain.replace("{v}", value)
        fraction = f"max(length(split_part({plain}, '.', 2)))"
        whole = f"max(length(ltrim(split_part({plain}, '.', 1), '-')))"
        return (f"count(*) FILTER ({misfits})", fraction, whole, count)
    cast = candidate.cast.replace("{v}", value)
    if name.startswith("dmy"):
        swapped = rules.all["mdy" + name[3:]].cast.replace("{v}", value)
        day = f"count(*) FILTER ({present} AND {cast} IS NULL)"
        month = f"count(*) FILTER ({present} AND {swapped} IS NULL)"
        return (f"count(*) FILTER ({misfits})", day, month, count)
    return (f"count(*) FILTER ({misfits} OR ({present} AND {cast} IS NULL))", "0", "0", count)


def _judge(
    candidate: Candidate, misfits: int, first: int, second: int, name: str, config: CsvConfig, rules: _Rules
) -> Settled | None:
    if misfits:
        return None
    if candidate.name == "decimal":
        scale = next((s for s in _SCALES if s >= (first or 0)), None)
        if scale is None:
            return None
        precision = 18 if (second or 0) + scale <= 18 else 38
        type_ = f"decimal({precision},{scale})"
        return Settled(type_, type_.upper(), f"try_cast({candidate.cast} AS {type_})")
    if candidate.name.startswith("dmy"):
        return _judge_days(candidate, first, second, name, config, rules)
    return Settled(candidate.type, candidate.native, candidate.cast)


def _judge_days(
    candidate: Candidate, not_day_first: int, not_month_first: int, name: str, config: CsvConfig, rules: _Rules
) -> Settled | None:
    """Which of 03/04 is the day: the configuration says so, or a value above 12 proves it, or it stays text."""
    month_first = rules.all["mdy" + candidate.name[3:]]
    if config.day_first != "auto":
        chosen, misfits = (candidate, not_day_first) if config.day_first == "true" else (month_first, not_month_first)
        return Settled(chosen.type, chosen.native, chosen.cast) if not misfits else None
    if not not_day_first and (not_month_first or "." in candidate.name):  # nobody writes the month first with points
        return Settled(candidate.type, candidate.native, candidate.cast)
    if not_day_first and not not_month_first:
        return Settled(month_first.type, month_first.native, month_first.cast)
    if not not_day_first:
        warning = (
            f"{name}: day or month first? No value proves it, so the dates stay text; set day_first or date_format"
        )
        return Settled(warnings=[warning])
    return None
