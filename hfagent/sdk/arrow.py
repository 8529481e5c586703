"""Canonical types as Arrow types and back, and Arrow data as bytes.

`arrow_type` and `data_type` are the Arrow side of the table in `model/data_type.py`. Arrow has no type of its own for
some of ours (a UUID, JSON text, a decimal of any size, an interval): they travel as text or bytes, and the field's metadata
key `hfagent.type` says what they are, so that a schema survives the way to Parquet, IPC and back.

The JSON form of values is in `sdk/wire.py`. pyarrow is imported inside the functions: this module is light.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from hfagent.foundation.errors import AgentError, UserError
from hfagent.model.data_type import DataType, Kind
from hfagent.model.stream import Column
from hfagent.sdk.wire import MAX_VALUE_BYTES, wire_rows

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "MAX_VALUE_BYTES",
    "arrow_schema",
    "arrow_type",
    "columns_of",
    "data_type",
    "ipc_stream",
    "read_ipc",
    "slice_by_bytes",
    "wire_rows",
]

TYPE_KEY: Final = b"hfagent.type"
"""Field metadata: the canonical type's text, where the Arrow type alone does not tell it."""

_SAME_NAME: Final = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "string"})
_AS_TEXT: Final = frozenset({"bigdecimal", "interval", "uuid", "json", "struct", "unknown"})


def arrow_type(type_: DataType) -> pa.DataType:
    """Return the Arrow type that carries `type_`.

    Text carries `bigdecimal`, `interval`, `uuid`, `json`, `unknown` and a `struct` whose fields are not known (as JSON);
    a reader that knows the fields gives its own Arrow struct.
    """
    import pyarrow as pa

    kind = type_.kind
    if kind in _SAME_NAME:
        return getattr(pa, kind)()
    if kind in _AS_TEXT:
        return pa.string()
    if kind == "decimal":
        return _decimal(type_)
    if kind == "time":
        unit = type_.unit or "us"
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    if kind in ("timestamp", "timestamptz"):
        return pa.timestamp(type_.unit or "us", tz="UTC" if kind == "timestamptz" else None)
    if kind == "array":
        return pa.list_(arrow_type(type_.item) if type_.item else pa.string())
    if kind == "vector":
        return pa.list_(pa.float32(), type_.precision) if type_.precision else pa.list_(pa.float32())
    simple: dict[str, Any] = {
        "bool": pa.bool_(),
        "float32": pa.float32(),
        "float64": pa.float64(),
        "bytes": pa.binary(),
        "geometry": pa.binary(),
        "date": pa.date32(),
    }
    return simple[kind]


def data_type(type_: pa.DataType) -> DataType:
    """Return the canonical type of an Arrow type; what has no counterpart is `unknown`.

    Widths that the vocabulary does not distinguish fold together (large and view strings, half floats). An instant keeps
    its unit and loses its zone's name: it is the same instant in UTC.
    """
    import pyarrow as pa

    is_ = pa.types
    name = str(type_)
    if name in _SAME_NAME:
        return DataType(name)  # type: ignore[arg-type]
    if is_.is_boolean(type_):
        return DataType("bool")
    if is_.is_floating(type_):
        return DataType("float64" if name == "double" else "float32")
    if is_.is_decimal(type_):
        return DataType.decimal(type_.precision, type_.scale)
    if is_.is_timestamp(type_):
        return DataType("timestamptz" if type_.tz is not None else "timestamp", unit=_unit(type_.unit))
    if is_.is_time(type_):
        return DataType("time", unit=_unit(type_.unit))
    if is_.is_fixed_size_list(type_):
        if type_.value_type == pa.float32():
            return DataType("vector", precision=type_.list_size)
        return DataType("array", item=data_type(type_.value_type))
    if name.startswith(("list", "large_list")):  # list, large_list and their views
        return DataType("array", item=data_type(type_.value_type))
    if is_.is_dictionary(type_) or is_.is_run_end_encoded(type_):
        return data_type(type_.value_type)
    if isinstance(type_, pa.BaseExtensionType):
        return _extension(type_)
    return DataType(_by_predicate(type_))


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """Return the Arrow schema of `columns`; `columns_of` gives names, types and nullability back."""
    import pyarrow as pa

    fields = []
    for column in columns:
        type_ = arrow_type(column.type)
        told = data_type(type_) == column.type
        metadata = None if told else {TYPE_KEY: str(column.type).encode()}
        fields.append(pa.field(column.name, type_, nullable=column.nullable, metadata=metadata))
    return pa.schema(fields)


def columns_of(schema: pa.Schema) -> tuple[Column, ...]:
    """Describe an Arrow schema in our terms. The native type is Arrow's own name for it."""
    return tuple(
        Column(
            name=field.name,
            type=_declared(field) or data_type(field.type),
            native_type=str(field.type),
            nullable=field.nullable,
            ordinal=ordinal,
        )
        for ordinal, field in enumerate(schema, start=1)
    )


def ipc_stream(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, *, compression: Literal["lz4", "zstd"] | None = None
) -> bytes:
    """Return the batches as one Arrow IPC stream. Without batches it still carries the schema."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def read_ipc(data: bytes) -> pa.Table:
    """Read an IPC stream made by `ipc_stream`; the table shares the memory of `data`.

    The data are validated completely: what a peer sends must not make a later kernel read outside its buffers. Raises
    `UserError` with code `request.malformed`.
    """
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError, MemoryError) as exc:
        # Damaged metadata fails in Arrow's own ways and, when names are decoded, in Python's.
        raise UserError(
            f"the Arrow data cannot be read: {_first_line(exc)}",
            code="request.malformed",
            hint="send an Arrow IPC stream (not the file format), complete with its end marker",
        ) from exc
    return table


def slice_by_bytes(batch: pa.RecordBatch, max_bytes: int) -> list[pa.RecordBatch]:
    """Cut a batch into consecutive slices of at most `max_bytes` each, without copying.

    A single row that is larger stays alone in its slice. An empty batch comes back as it is.
    """
    if max_bytes <= 0:
        raise AgentError(f"a slice of {max_bytes} bytes is impossible", code="internal.bug")
    pending, slices = [batch], []
    while pending:
        piece = pending.pop()
        if piece.num_rows <= 1 or _bytes_of(piece.columns) <= max_bytes:
            slices.append(piece)
            continue
        half = piece.num_rows // 2
        pending += [piece.slice(half), piece.slice(0, half)]  # the first half is looked at next
    return slices


def _bytes_of(columns: Sequence[pa.Array]) -> int:
    """Bytes the rows need. A dictionary and the buffers of view types are shared by all slices, so `nbytes` misleads."""
    import pyarrow as pa
    import pyarrow.compute as pc

    total = 0
    for column in columns:
        if pa.types.is_dictionary(column.type):
            total += column.indices.nbytes
        elif str(column.type) in ("string_view", "binary_view"):
            total += 16 * len(column) + (pc.sum(pc.binary_length(column.cast(pa.large_binary()))).as_py() or 0)
        else:
            total += column.nbytes
    return total


def _decimal(type_: DataType) -> pa.DataType:
    import pyarrow as pa

    precision, scale = type_.precision or 38, type_.scale or 0
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def _unit(unit: str) -> str | None:
    return None if unit == "us" else unit


def _by_predicate(type_: pa.DataType) -> Kind:
    from pyarrow import types as is_

    name = str(type_)
    if name in ("large_string", "string_view"):
        return "string"
    if is_.is_binary(type_) or is_.is_fixed_size_binary(type_) or name in ("large_binary", "binary_view"):
        return "bytes"
    if is_.is_date(type_):
        return "date"
    if is_.is_duration(type_) or is_.is_interval(type_):
        return "interval"
    if is_.is_struct(type_) or is_.is_map(type_):
        return "struct"
    return "unknown"


def _extension(type_: pa.BaseExtensionType) -> DataType:
    if type_.extension_name == "arrow.uuid":
        return DataType("uuid")
    if type_.extension_name == "arrow.json":
        return DataType("json")
    return data_type(type_.storage_type)


def _declared(field: pa.Field) -> DataType | None:
    text = (field.metadata or {}).get(TYPE_KEY)
    if text is None:
        return None
    try:
        return DataType.parse(text.decode())
    except ValueError:  # written by a newer version: the Arrow type is still right
        return None


def _first_line(exc: Exception) -> str:
    return str(exc).split("\n", 1)[0]
