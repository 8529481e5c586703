"""One digest per row: equal rows have equal ones, in every batch, process and machine.

The columns are written as bytes by Arrow's kernels, a column at a time; Python only hashes the joined rows. Each value is
preceded by its length, each column by its name, so no two rows share one writing. A column without value adds nothing: a new
column that is empty leaves the digests of old rows as they were. The order of columns does not matter, and neither does the
width of a number: integers and decimals are written by their value, timestamps in microseconds.

Not a secret: whoever knows all of a row but one small column can find that column. Digest what is delivered, after the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from hfagent.sdk.arrow import slice_by_bytes

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DIGEST_BYTES", "row_digests"]

DIGEST_BYTES: Final = 16
_SLICE_BYTES: Final = 64 * 1024 * 1024
"""Joined rows must stay far below the 2 GiB that offsets of 32 bits can count."""
_NO_VALUE: Final = b"-"
_NAN: Final = 0x7FF8000000000000


def row_digests(batch: pa.RecordBatch, names: Sequence[str] | None = None) -> list[bytes]:
    """The digests of the rows of a delivered batch (`delta_types`), over the named columns (None: all)."""
    chosen = batch if names is None else batch.select(list(names))
    if not chosen.num_columns:
        return [blake2b(digest_size=DIGEST_BYTES).digest()] * batch.num_rows
    found: list[bytes] = []
    for piece in slice_by_bytes(chosen, _SLICE_BYTES):
        found += _digests(piece)
    return found


def _digests(batch: pa.RecordBatch) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = []
    for name, column in sorted(zip(batch.schema.names, batch.columns, strict=True), key=lambda pair: pair[0]):
        title = name.encode("utf-8", "surrogatepass")
        heading = pa.scalar(b"%d:%s" % (len(title), title), pa.binary())
        written = pc.binary_join_element_wise(heading, _sized(_bytes(column)), pa.scalar(b""))
        parts.append(pc.fill_null(written, b""))
    rows = pc.binary_join_element_wise(*parts, pa.scalar(b"")) if len(parts) > 1 else parts[0]
    return _hashed(rows)


def _hashed(rows: pa.Array) -> list[bytes]:
    import pyarrow as pa

    if not len(rows):
        return []
    _, offsets, data = rows.buffers()
    view = memoryview(data) if data is not None else memoryview(b"")
    marks = pa.Array.from_buffers(pa.int32(), len(rows) + 1, [None, offsets], offset=rows.offset).to_pylist()
    return [blake2b(view[start:end], digest_size=DIGEST_BYTES).digest() for start, end in pairwise(marks)]


def _sized(values: pa.Array) -> pa.Array:
    """Each value after its length, NULL where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    length = pc.binary_length(values).cast(pa.string()).cast(pa.binary())
    return pc.binary_join_element_wise(length, values, pa.scalar(b":"))


def _bytes(array: pa.Array) -> pa.Array:
    """The column's values as bytes."""
    import pyarrow as pa

    is_, type_ = pa.types, array.type
    if is_.is_string(type_) or is_.is_binary(type_):
        return array.cast(pa.binary())
    if is_.is_boolean(type_):
        return array.cast(pa.int8()).cast(pa.string()).cast(pa.binary())
    if is_.is_integer(type_):
        return array.cast(pa.string()).cast(pa.binary())
    if is_.is_floating(type_):
        return _float_bytes(array)
    if is_.is_decimal(type_):
        return _decimal_bytes(array)
    if is_.is_date32(type_):
        return array.cast(pa.int32()).cast(pa.string()).cast(pa.binary())
    if is_.is_timestamp(type_):
        return array.cast(pa.int64()).cast(pa.string()).cast(pa.binary())
    if is_.is_list(type_) or is_.is_map(type_):
        return _list_bytes(array)
    if is_.is_struct(type_):
        return _struct_bytes(array)
    raise TypeError(f"{type_} is no type of a delivered column")


def _float_bytes(array: pa.Array) -> pa.Array:
    """By the bits of the double, not its decimal digits, which are a library's choice. All NaNs are one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    doubles = array.cast(pa.float64())
    bits = pc.if_else(pc.is_nan(doubles), pa.scalar(_NAN, pa.int64()), doubles.view(pa.int64()))
    return bits.cast(pa.string()).cast(pa.binary())


def _decimal_bytes(array: pa.Array) -> pa.Array:
    """Without the zeros behind the point: 1.50 and 1.5 are one value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = array.cast(pa.string())
    if array.type.scale > 0:
        if pc.any(pc.match_substring(text, "E"), min_count=0).as_py():
            text = pa.array([None if v is None else format(v, "f") for v in array.to_pylist()], pa.string())
        text = pc.ascii_rtrim(pc.ascii_rtrim(text, "0"), ".")
    return text.cast(pa.binary())


def _list_bytes(array: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_map(array.type):
        first = array.offsets[0].as_py() if len(array) else 0
        count = array.offsets[-1].as_py() - first if len(array) else 0
        lengths = pc.subtract(array.offsets[1:], array.offsets[:-1])
        pairs = [pc.fill_null(_sized(_bytes(a.slice(first, count))), _NO_VALUE) for a in (array.keys, array.items)]
        items = pc.binary_join_element_wise(*pairs, pa.scalar(b""))
    else:
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        items = pc.fill_null(_sized(_bytes(array.flatten())), _NO_VALUE)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths.cast(pa.int32()))])
    lists = pa.ListArray.from_arrays(offsets, items, mask=array.is_null())
    return pc.binary_join(lists, pa.scalar(b""))


def _struct_bytes(array: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    fields = [pc.fill_null(_sized(_bytes(a)), _NO_VALUE) for a in array.flatten()]
    joined = pc.binary_join_element_wise(*fields, pa.scalar(b"")) if len(fields) > 1 else fields[0]
    return pc.if_else(array.is_valid(), joined, pa.scalar(None, pa.binary()))
