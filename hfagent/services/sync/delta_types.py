"""Arrow types as Delta tables hold them, and arrays converted into them without losing anything.

| source | delivered |
|---|---|
| uint8, uint16, uint32 | the next wider signed integer |
| uint64 | decimal(20,0) |
| decimals up to 38 digits / above | decimal128 / text in plain notation |
| time, duration, interval | ISO 8601 text |
| timestamp of any unit | microseconds; a value with a finer part is refused |
| UUID, JSON and other extensions | text; what they are stored as |
| dictionaries, run-end encoded, large, fixed-size and view types | plain ones |
| lists, structs and maps | the same, of delivered types |

A value that has no exact place is an error (pyarrow's own: the caller knows the column's name); nothing is rounded or cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hfagent.foundation.errors import UserError
from hfagent.sdk.temporal import durations, iso_duration, times

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["deliver", "delivered_type"]

_MAX_PRECISION: Final = 38


def delivered_type(type_: pa.DataType) -> pa.DataType:
    """The type that carries `type_` in a Delta table. Raises `UserError` `schema.type_conflict` when none can."""
    import pyarrow as pa

    is_ = pa.types
    name = str(type_)
    if isinstance(type_, pa.BaseExtensionType):
        return pa.string() if type_.extension_name == "arrow.uuid" else delivered_type(type_.storage_type)
    if is_.is_dictionary(type_) or is_.is_run_end_encoded(type_):
        return delivered_type(type_.value_type)
    if is_.is_unsigned_integer(type_):
        return {8: pa.int16(), 16: pa.int32(), 32: pa.int64(), 64: pa.decimal128(20, 0)}[type_.bit_width]
    if is_.is_float16(type_):
        return pa.float32()
    if is_.is_decimal(type_):
        fits = type_.precision <= _MAX_PRECISION and type_.scale >= 0
        return pa.decimal128(type_.precision, type_.scale) if fits else pa.string()
    if is_.is_date(type_):
        return pa.date32()
    if is_.is_timestamp(type_):
        return pa.timestamp("us", None if type_.tz is None else "UTC")
    if is_.is_time(type_) or is_.is_duration(type_) or is_.is_interval(type_) or is_.is_null(type_):
        return pa.string()
    if name in ("string", "large_string", "string_view"):
        return pa.string()
    if is_.is_fixed_size_binary(type_) or name in ("binary", "large_binary", "binary_view"):
        return pa.binary()
    if _is_list(type_):
        return pa.list_(delivered_type(type_.value_type))
    if is_.is_map(type_):
        return pa.map_(delivered_type(type_.key_type), delivered_type(type_.item_type))
    if is_.is_struct(type_) and type_.num_fields:
        return pa.struct([pa.field(field.name, delivered_type(field.type)) for field in type_])
    if is_.is_boolean(type_) or is_.is_integer(type_) or is_.is_floating(type_):
        return type_
    raise UserError(
        f"a Delta table has no type for {type_}",
        code="schema.type_conflict",
        hint="exclude the column, or give it another type in a view of the source",
    )


def deliver(array: pa.Array) -> pa.Array:
    """Convert into `delivered_type` of its type. Raises `pyarrow.ArrowInvalid` when a value has no exact place there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    type_, target = array.type, delivered_type(array.type)
    if type_ == target:
        return array
    is_ = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        if type_.extension_name == "arrow.uuid":
            return _text(array.to_pylist(), str)
        return deliver(array.storage)
    if is_.is_dictionary(type_):
        return deliver(array.dictionary_decode())
    if is_.is_run_end_encoded(type_):
        return deliver(pc.run_end_decode(array))
    if is_.is_time(type_):
        return _text(times(array))
    if is_.is_duration(type_):
        return _text(durations(array))
    if is_.is_interval(type_):
        return _text(array.to_pylist(), lambda value: iso_duration(*value))
    if is_.is_decimal(type_) and is_.is_string(target):
        return _plain_decimals(array)
    if _is_list(type_):
        return _list(array)
    if is_.is_map(type_):
        return _map(array)
    if is_.is_struct(type_):
        fields = [pa.field(field.name, field.type) for field in target]
        return pa.StructArray.from_arrays([deliver(a) for a in array.flatten()], fields=fields, mask=array.is_null())
    return array.cast(target)


def _is_list(type_: pa.DataType) -> bool:
    import pyarrow as pa

    is_ = pa.types
    return bool(
        is_.is_list(type_)
        or is_.is_large_list(type_)
        or is_.is_fixed_size_list(type_)
        or str(type_).startswith(("list_view", "large_list_view"))
    )


def _list(array: pa.Array) -> pa.Array:
    """By lengths and items: Arrow's own cast of list views writes broken offsets when there are NULLs (pyarrow 26)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
    return pa.ListArray.from_arrays(offsets, deliver(array.flatten()), mask=array.is_null())


def _map(array: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    first, last = (array.offsets[0].as_py(), array.offsets[-1].as_py()) if len(array) else (0, 0)
    offsets = pc.subtract(array.offsets, pa.scalar(first, pa.int32())) if len(array) else pa.array([0], pa.int32())
    keys, items = (deliver(part.slice(first, last - first)) for part in (array.keys, array.items))
    return pa.MapArray.from_arrays(offsets, keys, items, mask=array.is_null() if len(array) else None)


def _plain_decimals(array: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    text = array.cast(pa.string()) if array.type.scale >= 0 else None
    if text is not None and not pc.any(pc.match_substring(text, "E"), min_count=0).as_py():
        return text
    return _text(array.to_pylist(), lambda value: format(value, "f"))


def _text(values: list[Any], form: Any = None) -> pa.Array:
    import pyarrow as pa

    return pa.array([None if v is None else form(v) for v in values] if form else values, pa.string())
