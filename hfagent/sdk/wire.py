"""The JSON form of Arrow data (connector specification §0.10): what a client without Arrow sees.

| value | form |
|---|---|
| integer | number; text when its magnitude is above 2^53 (a double would round it) |
| decimal | text in plain notation, scale kept: `"12.50"` |
| float | number; `"NaN"`, `"Infinity"`, `"-Infinity"` |
| timestamp, date, time | ISO 8601 text with all digits of its unit; an instant ends in `Z` |
| interval | ISO 8601 duration: `"P1M2DT3.5S"` |
| bytes | base64 |
| list, struct, map | array, object, object (array of pairs when the keys are not text) |

Everything else, JSON text and control characters included, is data and stays as it is. Work is done a column at a time
with Arrow's kernels; Python touches a value only to put it into its row.

This is not an encoder: it gives lists that any JSON or MessagePack library takes.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from hfagent.foundation.errors import AgentError
from hfagent.sdk.temporal import durations, iso_duration, times

if TYPE_CHECKING:
    import pyarrow as pa

    from hfagent.model.stream import Column

__all__ = ["MAX_VALUE_BYTES", "wire_rows"]

MAX_VALUE_BYTES: Final = 16 * 1024 * 1024
"""Longest text or binary value handed to a client, in bytes."""

_EXACT: Final = 2**53


def wire_rows(
    batch: pa.RecordBatch,
    columns: Sequence[Column] | None = None,
    *,
    max_value_bytes: int = MAX_VALUE_BYTES,
    notes: list[str] | None = None,
) -> list[list[Any]]:
    """Return the rows of `batch` as JSON-ready lists.

    `columns` names the columns in notes (default: the batch's own names). Text and bytes over `max_value_bytes` are cut (text
    between characters), and undecodable text gets replacement characters; each affected column adds one sentence to `notes`.
    Raises `AgentError` `internal.bug` when `columns` does not fit the batch.
    """
    if columns is not None and len(columns) != batch.num_columns:
        raise AgentError(f"{len(columns)} columns were described, the batch has {batch.num_columns}")
    names = [c.name for c in columns] if columns is not None else batch.schema.names
    lists = [
        _Converter(name, max_value_bytes, notes).convert(array)
        for name, array in zip(names, batch.columns, strict=True)
    ]
    if not lists:
        return [[] for _ in range(batch.num_rows)]
    return list(map(list, zip(*lists, strict=True)))


class _Converter:
    """Turns one column, with all that is nested in it, into Python values."""

    def __init__(self, name: str, limit: int, notes: list[str] | None) -> None:
        self._name = name
        self._limit = limit
        self._notes = notes

    def convert(self, array: pa.Array) -> list[Any]:
        return self._function(array.type)(array)

    def _function(self, type_: pa.DataType) -> Callable[[pa.Array], list[Any]]:
        import pyarrow as pa

        is_ = pa.types
        name = str(type_)
        if name in ("string", "large_string", "string_view"):
            return self._text
        if is_.is_integer(type_):
            return _integers if type_.bit_width == 64 else _plain
        if is_.is_floating(type_):
            return _floats
        if is_.is_decimal(type_):
            return _decimals
        if is_.is_timestamp(type_) or is_.is_date(type_) or is_.is_time(type_):
            return times
        if name in ("binary", "large_binary", "binary_view") or is_.is_fixed_size_binary(type_):
            return self._bytes
        if is_.is_boolean(type_) or is_.is_null(type_):
            return _plain
        return self._nested(type_)

    def _nested(self, type_: pa.DataType) -> Callable[[pa.Array], list[Any]]:
        import pyarrow as pa
        import pyarrow.compute as pc

        is_ = pa.types
        name = str(type_)
        if is_.is_map(type_):
            return self._map
        if is_.is_struct(type_):
            return self._struct
        if is_.is_fixed_size_list(type_):
            return self._fixed_list
        if is_.is_list(type_) or is_.is_large_list(type_):
            return self._list
        if name.startswith(("list_view", "large_list_view")):
            return self._list_view
        if is_.is_dictionary(type_):
            return lambda array: self.convert(array.dictionary_decode())
        if is_.is_run_end_encoded(type_):
            return lambda array: self.convert(pc.run_end_decode(array))
        if isinstance(type_, pa.BaseExtensionType):
            if type_.extension_name == "arrow.uuid":
                return lambda array: _per_value(array, str)
            return lambda array: self.convert(array.storage)
        if is_.is_duration(type_):
            return durations
        if is_.is_interval(type_):
            return lambda array: _per_value(array, lambda v: iso_duration(v[0], v[1], v[2]))
        return lambda array: _per_value(array, str)  # unions and what Arrow will invent: readable, never a crash

    def _text(self, array: pa.Array) -> list[Any]:
        try:
            values = array.to_pylist()
        except UnicodeDecodeError:
            self._note("holds text that is not valid UTF-8; replacement characters stand for the broken bytes")
            import pyarrow as pa

            values = _per_value(array.cast(pa.large_binary()), lambda v: v.decode("utf-8", "replace"))
        return self._cut(array, values, lambda v: v.encode()[: self._limit].decode("utf-8", "ignore"))

    def _bytes(self, array: pa.Array) -> list[Any]:
        values = self._cut(array, array.to_pylist(), lambda v: v[: self._limit])
        return [None if v is None else base64.b64encode(v).decode("ascii") for v in values]

    def _cut(self, array: pa.Array, values: list[Any], shorten: Callable[[Any], Any]) -> list[Any]:
        """Shorten the values that are longer than the limit and say so."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if array.nbytes <= self._limit:  # then no single value can be longer
            return values
        if str(array.type) in ("string_view", "binary_view"):
            array = array.cast(pa.large_binary())
        long = pc.indices_nonzero(pc.greater(pc.binary_length(array), self._limit)).to_pylist()
        for index in long:
            values[index] = shorten(values[index])
        if long:
            count = "1 value was" if len(long) == 1 else f"{len(long)} values were"
            self._note(f"{count} longer than {self._limit} bytes and cut")
        return values

    def _note(self, text: str) -> None:
        if self._notes is not None:
            self._notes.append(f"column {self._name!r}: {text}")

    def _list(self, array: pa.Array) -> list[Any]:
        if len(array) == 0:
            return []
        offsets = array.offsets.to_pylist()
        first = offsets[0]
        items = self.convert(array.values.slice(first, offsets[-1] - first))
        spans = pairwise(offsets)
        return _where_valid(array, [items[start - first : end - first] for start, end in spans])

    def _list_view(self, array: pa.Array) -> list[Any]:
        # Not by a cast to list: pyarrow 26 writes broken offsets when there are NULLs.
        spans = [(o, o + n) if n else (0, 0) for o, n in zip(*_lists(array.offsets, array.sizes), strict=True)]
        items = self.convert(array.values.slice(0, max((end for _, end in spans), default=0)))
        return _where_valid(array, [items[start:end] for start, end in spans])

    def _fixed_list(self, array: pa.Array) -> list[Any]:
        size = array.type.list_size
        items = self.convert(array.values.slice(array.offset * size, len(array) * size))
        return _where_valid(array, [items[i * size : (i + 1) * size] for i in range(len(array))])

    def _struct(self, array: pa.Array) -> list[Any]:
        names = [field.name for field in array.type]
        if not names:
            return _where_valid(array, [{} for _ in range(len(array))])
        fields = [self.convert(array.field(i)) for i in range(len(names))]
        return _where_valid(array, [dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)])

    def _map(self, array: pa.Array) -> list[Any]:
        import pyarrow as pa

        if len(array) == 0:
            return []
        offsets = array.offsets.to_pylist()
        first, count = offsets[0], offsets[-1] - offsets[0]
        keys = self.convert(array.keys.slice(first, count))
        items = self.convert(array.items.slice(first, count))
        pairs = [list(pair) for pair in zip(keys, items, strict=True)]
        spans = pairwise(offsets)
        rows: list[Any] = [pairs[start - first : end - first] for start, end in spans]
        if pa.types.is_string(array.type.key_type) or pa.types.is_large_string(array.type.key_type):
            rows = [dict(row) for row in rows]
        return _where_valid(array, rows)


def _plain(array: pa.Array) -> list[Any]:
    return list(array.to_pylist())


def _per_value(array: pa.Array, function: Callable[[Any], Any]) -> list[Any]:
    return [None if value is None else function(value) for value in array.to_pylist()]


def _lists(*arrays: pa.Array) -> list[list[Any]]:
    return [array.to_pylist() for array in arrays]


def _where_valid(array: pa.Array, rows: list[Any]) -> list[Any]:
    if array.null_count == 0:
        return rows
    return [row if valid else None for row, valid in zip(rows, array.is_valid().to_pylist(), strict=True)]


def _integers(array: pa.Array) -> list[Any]:
    import pyarrow.compute as pc

    values = _plain(array)
    extremes = pc.min_max(array).as_py()
    if extremes["min"] is None or (extremes["min"] >= -_EXACT and extremes["max"] <= _EXACT):
        return values
    return [str(v) if v is not None and not -_EXACT <= v <= _EXACT else v for v in values]


def _floats(array: pa.Array) -> list[Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if array.type != pa.float64():
        # By way of text: the shortest digits that mean the same 32-bit value, 0.1 and not 0.10000000149011612.
        array = array.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    values = _plain(array)
    if pc.all(pc.is_finite(array), min_count=0).as_py():
        return values
    return [_SPECIAL.get(repr(v), v) for v in values]


_SPECIAL: Final[dict[str, Any]] = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _decimals(array: pa.Array) -> list[Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    text = array.cast(pa.string())
    values = _plain(text)
    if not pc.any(pc.match_substring(text, "E"), min_count=0).as_py():
        return values
    from decimal import Decimal

    return [format(Decimal(v), "f") if v is not None and "E" in v else v for v in values]
