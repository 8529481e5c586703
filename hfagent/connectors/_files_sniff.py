"""Finds out the delimiter and whether there is a header, and makes column names. Says how sure it is.

Looks at the first rows only; whoever knows better says so in the configuration, and then nothing is guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hfagent.connectors._files_config import CsvConfig
from hfagent.connectors._files_text import BadRow, Dialect, read_records

__all__ = ["Sniffed", "column_names", "has_header", "sniff_dialect"]

_DELIMITERS = (",", ";", "\t", "|", ":", "^", "~")
_SAMPLE_LINES = 200
_SEPARATOR_LINE = re.compile(r"sep=(.)[\r\n]*")
_TYPED = re.compile(
    r"\s*([-+]?[\d.,']*\d([eE][-+]?\d+)?%?|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*|true|false)\s*", re.IGNORECASE
)


@dataclass(frozen=True)
class Sniffed:
    """The dialect, how sure that is (0 to 1), and how many lines at the top are only a hint for spreadsheets."""

    dialect: Dialect
    confidence: float
    hint_lines: int = 0


def sniff_dialect(lines: Sequence[str], config: CsvConfig, default: str) -> Sniffed:
    """Find the delimiter in the first lines (after `skip_rows`). `default` is used when there is only one column."""

    def dialect(delimiter: str) -> Dialect:
        quote = config.quotechar if config.quotechar != delimiter else ""
        return Dialect(delimiter, quote, config.escapechar, config.comment)

    hint = _SEPARATOR_LINE.fullmatch(lines[0]) if lines else None
    if config.delimiter != "auto":
        return Sniffed(dialect(config.delimiter), 1.0, 1 if hint and hint[1] == config.delimiter else 0)
    if hint:
        return Sniffed(dialect(hint[1]), 1.0, 1)
    best, best_score, confidence = default, 0.0, 0.3
    for candidate in dict.fromkeys((default, *_DELIMITERS)):
        widths = _widths(lines[:_SAMPLE_LINES], dialect(candidate))
        if not widths:
            continue
        width, rows = Counter(widths).most_common(1)[0]
        share = rows / len(widths)
        if width < 2:
            continue
        # Consistency counts most; among equally consistent ones the delimiter that splits more.
        score = share * share * (1 + min(width, 50) / 100) * (1.02 if candidate == default else 1.0)
        if candidate == ":":
            score *= 0.6  # occurs in times
        if score > best_score:
            best, best_score, confidence = candidate, score, share * min(1.0, 0.6 + len(widths) / 25)
    return Sniffed(dialect(best), round(min(confidence, 1.0), 2))


def _widths(lines: Sequence[str], dialect: Dialect) -> list[int]:
    records = [r for r in read_records(iter(lines), dialect) if not isinstance(r, BadRow)]
    if len(lines) >= _SAMPLE_LINES and len(records) > 1:
        records.pop()  # may be cut in the middle of a quoted field
    return [len(r.fields) for r in records]


def has_header(rows: Sequence[Sequence[str]]) -> tuple[bool, float]:
    """Judge whether the first row names the columns, and how sure that is."""
    if not rows:
        return True, 0.0
    first, body = rows[0], rows[1:]
    filled = [cell for cell in first if cell.strip()]
    if not filled:
        return False, 0.9
    looks_typed = [bool(cell.strip()) and _TYPED.fullmatch(cell) is not None for cell in first]
    if not body:
        return (False, 0.6) if any(looks_typed) else (True, 0.6)
    votes = 0.0
    for index, cell in enumerate(first):
        column = [row[index] for row in body if index < len(row) and row[index].strip()]
        if not column:
            continue
        typed = sum(_TYPED.fullmatch(value) is not None for value in column) / len(column)
        if typed > 0.8:
            votes += -1.5 if looks_typed[index] else 1.0
        elif cell in column or looks_typed[index]:
            votes -= 0.5
    if votes == 0:
        unique = len({cell.casefold() for cell in filled}) == len(filled)
        short = all(len(cell) <= 64 for cell in filled)
        return (True, 0.5) if unique and short and not any(looks_typed) else (False, 0.5)
    return votes > 0, round(min(1.0, 0.5 + abs(votes) / len(first) / 2), 2)


def column_names(header: Sequence[str] | None, width: int) -> tuple[list[str], list[str]]:
    """Return unique names and what had to be changed: empty → `column_n`, repeated → suffix `_2`, `_3`, …

    Names that differ in case only count as repeated: the query engine does not tell them apart.
    """
    given = list(header or [])[:width]
    given += [""] * (width - len(given))
    taken = {_key(name) for name in given if name.strip()}
    names: list[str] = []
    used: set[str] = set()
    notes: list[str] = []
    for position, raw in enumerate(given, start=1):
        clean = raw.replace("\0", "")  # which no identifier can hold
        wanted = clean if clean.strip() else f"column_{position}"
        if wanted != raw and header is not None:
            notes.append(f"column {position} has no usable name and is called {wanted!r}")
        name = next(n for n in _variants(wanted) if _key(n) not in used and (n == wanted or _key(n) not in taken))
        if name != wanted:
            notes.append(f"the column name {wanted!r} is repeated; column {position} is called {name!r}")
        used.add(_key(name))
        names.append(name)
    return names, notes


def _variants(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1


def _key(name: str) -> str:
    return name.lower()
