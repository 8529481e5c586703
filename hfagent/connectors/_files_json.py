"""JSON Lines: one object per line, columns are the union of all keys, in order of appearance.

Numbers keep their text on the way to a type, so that neither decimals nor integers beyond 2^53 are rounded. A nested value
becomes JSON text. A line that is no JSON object is a bad row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from hfagent.connectors._files_config import CsvConfig
from hfagent.connectors._files_source import SourceFile, open_source, unpacked
from hfagent.connectors._files_text import BadRow, Encoding, read_lines
from hfagent.foundation.errors import SourceError
from hfagent.sdk.connector import ConnectorContext

__all__ = ["JsonRows"]

_BATCH_ROWS = 20_000
_BATCH_CHARACTERS = 16 * 1024 * 1024


class _Number(str):
    """A number as it was written."""

    __slots__ = ()


class _Whole(_Number):
    __slots__ = ()


class JsonRows:
    """Reads a file once, batch by batch: iterate for `{column position: values}` blocks; `keys` grows meanwhile."""

    def __init__(
        self, file: SourceFile, encoding: Encoding, config: CsvConfig, context: ConnectorContext, *,
        bad: Callable[[BadRow], None], limit: int | None = None,
    ) -> None:  # fmt: skip
        self._file = file
        self._encoding = encoding
        self._config = config
        self._context = context
        self._bad = bad
        self._limit = limit
        self.keys: dict[str, int] = {}
        self.kinds: list[set[str]] = []
        self._decoder = json.JSONDecoder(parse_float=_Number, parse_int=_Whole, parse_constant=_refuse)

    def __iter__(self) -> Iterator[tuple[int, dict[int, list[str | None]]]]:
        """Yield (number of rows, values by column position). A column absent from a block is NULL in it."""
        rows: list[dict[str, Any]] = []
        size = total = 0
        with open_source(self._file, self._context) as handle:
            content = unpacked(self._file, handle, self._config.max_unzipped_bytes)
            for number, line in enumerate(read_lines(content, self._encoding, self._file.shown), start=1):
                text = line.strip("\r\n \t")
                if not text:
                    continue
                row = self._parse(number, text)
                if row is None:
                    continue
                rows.append(row)
                size += len(text)
                total += 1
                if self._limit is not None and total >= self._limit:
                    break
                if len(rows) >= _BATCH_ROWS or size >= _BATCH_CHARACTERS:
                    yield len(rows), self._columns(rows)
                    rows, size = [], 0
        if rows:
            yield len(rows), self._columns(rows)

    def _parse(self, number: int, text: str) -> dict[str, Any] | None:
        try:
            value = self._decoder.decode(text)
        except (ValueError, RecursionError) as exc:
            reason = exc.msg if isinstance(exc, json.JSONDecodeError) else str(exc)
            self._bad(BadRow(number, f"is not JSON: {reason}", text[:1000]))
            return None
        if not isinstance(value, dict):
            self._bad(BadRow(number, "is not a JSON object", text[:1000]))
            return None
        limit = self._config.max_field_bytes
        if len(text) * 4 > limit:
            for key, item in value.items():
                if len(_cell(item)[0] or "") * 4 > limit and len((_cell(item)[0] or "").encode()) > limit:
                    self._bad(BadRow(number, f"the value of {key} is longer than max_field_bytes", text[:1000]))
                    return None
        return value

    def _columns(self, rows: list[dict[str, Any]]) -> dict[int, list[str | None]]:
        columns: dict[int, list[str | None]] = {}
        for index, row in enumerate(rows):
            for key, value in row.items():
                position = self.keys.get(key)
                if position is None:
                    position = self.keys[key] = len(self.keys)
                    self.kinds.append(set())
                    if len(self.keys) > self._config.max_columns:
                        raise SourceError(
                            f"{self._file.shown} has more than max_columns ({self._config.max_columns}) different keys",
                            code="read.limit_exceeded",
                            hint="raise max_columns, or check that keys are not data",
                        )
                column = columns.get(position)
                if column is None:
                    column = columns[position] = [None] * len(rows)
                text, kind = _cell(value)
                column[index] = text
                if kind:
                    self.kinds[position].add(kind)
        return columns


def _cell(value: Any) -> tuple[str | None, str]:
    """A value's text and kind."""
    if value is None:
        return None, ""
    if value is True:
        return "true", "bool"
    if value is False:
        return "false", "bool"
    if isinstance(value, _Whole):
        return str(value), "int"
    if isinstance(value, _Number):
        return str(value), "float"
    if isinstance(value, str):
        # A lone surrogate (legal in JSON escapes) cannot be stored as text anywhere; keep its escape.
        return (value, "string") if value.isascii() or _encodable(value) else (json.dumps(value)[1:-1], "string")
    return _dump(value), "nested"


def _encodable(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _dump(value: Any) -> str:
    """JSON text of a nested value; numbers exactly as written."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_string(k)}:{_dump(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_dump, value)) + "]"
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, str):
        return _string(value)
    return {None: "null", True: "true", False: "false"}[value]


def _string(value: str) -> str:
    return json.dumps(value, ensure_ascii=not _encodable(value))


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON value")
