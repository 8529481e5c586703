"""Canonical types ↔ Arrow, the wire form of every type with its extremes, IPC and slicing."""

from __future__ import annotations

import json
import math
import struct
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfagent.foundation.errors import AgentError, UserError
from hfagent.model.data_type import DataType
from hfagent.model.stream import Column
from hfagent.sdk.arrow import (
    arrow_schema,
    columns_of,
    data_type,
    ipc_stream,
    read_ipc,
    slice_by_bytes,
    wire_rows,
)

# --- types ---

SIMPLE = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bigdecimal", "float32",
    "float64", "string", "bytes", "date", "time", "timestamp", "timestamptz", "interval", "uuid", "json", "struct",
    "geometry", "vector", "unknown", "array",
]  # fmt: skip
PARAMETERS = [
    "decimal(1,0)", "decimal(38,10)", "decimal(39,0)", "decimal(76,38)", "timestamp(ns)", "timestamptz(ms)",
    "timestamp(s)", "time(s)", "time(ms)", "time(ns)", "vector(1536)", "array<int64>", "array<array<decimal(9,2)>>",
    "array<uuid>", "array<timestamptz(ns)>",
]  # fmt: skip


@pytest.mark.parametrize("text", SIMPLE + PARAMETERS)
def test_schema_round_trip_keeps_every_type(text: str) -> None:
    column = Column(name="c", type=DataType.parse(text), nullable=False)
    back = columns_of(pa.ipc.read_schema(arrow_schema([column]).serialize()))
    assert [(c.name, str(c.type), c.nullable, c.ordinal) for c in back] == [("c", text, False, 1)]


def _types() -> st.SearchStrategy[DataType]:
    leaves = st.one_of(
        st.sampled_from([DataType.parse(text) for text in SIMPLE + PARAMETERS]),
        st.integers(1, 76).flatmap(lambda p: st.builds(DataType.decimal, st.just(p), st.integers(0, p))),
    )
    return st.recursive(leaves, lambda inner: st.builds(lambda t: DataType("array", item=t), inner), max_leaves=4)


@given(st.lists(_types(), max_size=5))
def test_any_schema_round_trips(types: list[DataType]) -> None:
    columns = [Column(name="same", type=t) for t in types]  # names may repeat in a query result
    assert [c.type for c in columns_of(arrow_schema(columns))] == types


@pytest.mark.parametrize(
    ("arrow", "text"),
    [
        (pa.large_string(), "string"), (pa.string_view(), "string"), (pa.large_binary(), "bytes"),
        (pa.binary_view(), "bytes"), (pa.binary(16), "bytes"), (pa.float16(), "float32"), (pa.date64(), "date"),
        (pa.timestamp("us", "Europe/Berlin"), "timestamptz"), (pa.timestamp("ms"), "timestamp(ms)"),
        (pa.duration("us"), "interval"), (pa.month_day_nano_interval(), "interval"), (pa.null(), "unknown"),
        (pa.dictionary(pa.int32(), pa.string()), "string"), (pa.run_end_encoded(pa.int32(), pa.int8()), "int8"),
        (pa.struct([("a", pa.int8())]), "struct"), (pa.map_(pa.string(), pa.int8()), "struct"),
        (pa.large_list(pa.int8()), "array<int8>"), (pa.list_view(pa.int8()), "array<int8>"),
        (pa.list_(pa.int8(), 3), "array<int8>"), (pa.list_(pa.float32(), 3), "vector(3)"), (pa.uuid(), "uuid"),
        (pa.sparse_union([pa.field("a", pa.int8())]), "unknown"), (pa.decimal128(5, -2), "bigdecimal"),
    ],
)  # fmt: skip
def test_foreign_arrow_types_fold_into_the_vocabulary(arrow: pa.DataType, text: str) -> None:
    assert str(data_type(arrow)) == text


def test_metadata_of_a_newer_version_is_ignored() -> None:
    schema = pa.schema([pa.field("c", pa.string(), metadata={b"hfagent.type": b"hologram(3)"})])
    assert str(columns_of(schema)[0].type) == "string"


# --- wire form ---


def wire(array: pa.Array, **options: Any) -> list[Any]:
    batch = pa.record_batch([array], names=["c"])
    rows = wire_rows(batch, **options)
    json.dumps(rows, allow_nan=False)  # whatever comes out is JSON
    return [row[0] for row in rows]


def test_integers_are_numbers_until_a_double_would_round_them() -> None:
    edge = 2**53
    assert wire(pa.array([0, edge, -edge, None], pa.int64())) == [0, edge, -edge, None]
    assert wire(pa.array([edge + 1, 7, -edge - 1, None, 2**63 - 1, -(2**63)], pa.int64())) == [
        str(edge + 1), 7, str(-edge - 1), None, str(2**63 - 1), str(-(2**63)),
    ]  # fmt: skip
    assert wire(pa.array([2**64 - 1, 1], pa.uint64())) == [str(2**64 - 1), 1]
    assert wire(pa.array([-128, 127, None], pa.int8())) == [-128, 127, None]
    assert wire(pa.array([], pa.int64())) == []


def test_decimals_are_plain_text_of_full_scale() -> None:
    widest = "9" * 38 + "." + "9" * 38
    assert wire(pa.array([Decimal(widest), Decimal("-" + widest), None], pa.decimal256(76, 38))) == [
        widest, "-" + widest, None,
    ]  # fmt: skip
    small = pa.array([Decimal(0), Decimal("0.0000000001"), Decimal("1.5"), None], pa.decimal128(38, 10))
    assert wire(small) == ["0.0000000000", "0.0000000001", "1.5000000000", None]  # never 0E-10
    assert wire(pa.array([Decimal("1.2E+5")], pa.decimal128(5, -3))) == ["120000"]


def test_floats_have_names_for_what_json_lacks() -> None:
    values = [0.1, -0.0, math.nan, math.inf, -math.inf, None, 5e-324, 1.7976931348623157e308]
    out = wire(pa.array(values, pa.float64(), from_pandas=False))
    assert out == [0.1, 0.0, "NaN", "Infinity", "-Infinity", None, 5e-324, 1.7976931348623157e308]
    assert math.copysign(1, out[1]) == -1
    assert wire(pa.array([0.1, 3.4028235e38, 1e-45, None, math.nan], pa.float32())) == [
        0.1, 3.4028235e38, 1e-45, None, "NaN",
    ]  # fmt: skip
    assert wire(pa.array([None, None], pa.float64())) == [None, None]


def test_timestamps_are_iso_8601() -> None:
    naive = [datetime(1, 1, 1), datetime(1969, 12, 31, 23, 59, 59, 999999), datetime(9999, 12, 31, 23, 59, 59, 999999)]
    assert wire(pa.array([*naive, None], pa.timestamp("us"))) == [
        "0001-01-01T00:00:00.000000", "1969-12-31T23:59:59.999999", "9999-12-31T23:59:59.999999", None,
    ]  # fmt: skip
    assert wire(pa.array([datetime(2024, 2, 29, tzinfo=UTC)], pa.timestamp("us", "UTC"))) == [
        "2024-02-29T00:00:00.000000Z"
    ]
    assert wire(pa.array([0], pa.int64()).cast(pa.timestamp("us", "Europe/Berlin"))) == ["1970-01-01T00:00:00.000000Z"]
    assert wire(pa.array([-1, 2**63 - 1, -(2**63) + 1], pa.int64()).cast(pa.timestamp("ns"))) == [
        "1969-12-31T23:59:59.999999999", "2262-04-11T23:47:16.854775807", "1677-09-21T00:12:43.145224193",
    ]  # fmt: skip
    assert wire(pa.array([1], pa.int64()).cast(pa.timestamp("s"))) == ["1970-01-01T00:00:01"]
    assert wire(pa.array([1], pa.int64()).cast(pa.timestamp("ms"))) == ["1970-01-01T00:00:00.001"]


def test_years_that_datetime_cannot_hold() -> None:
    tenk, bc = 253402300800_000_000, -62167219200_000_001  # 10000-01-01 and the microsecond before year 0
    assert wire(pa.array([tenk, bc, 0, None], pa.int64()).cast(pa.timestamp("us"))) == [
        "10000-01-01T00:00:00.000000", "-0001-12-31T23:59:59.999999", "1970-01-01T00:00:00.000000", None,
    ]  # fmt: skip
    extremes = pa.array([2**63 - 1, -(2**63) + 1, 0, None], pa.int64())
    assert wire(extremes.cast(pa.timestamp("us"))) == [
        "294247-01-10T04:00:54.775807", "-290308-12-21T19:59:05.224193", "1970-01-01T00:00:00.000000", None,
    ]  # fmt: skip
    assert wire(extremes.cast(pa.timestamp("us", "UTC")))[0] == "294247-01-10T04:00:54.775807Z"
    assert wire(pa.array([2**31 - 1, -(2**31), 0, None], pa.int32()).cast(pa.date32())) == [
        "5881580-07-11", "-5877641-06-23", "1970-01-01", None,
    ]  # fmt: skip


def test_dates_and_times() -> None:
    days = [date(1, 1, 1), date(1969, 12, 31), date(9999, 12, 31), None]
    assert wire(pa.array(days, pa.date32())) == ["0001-01-01", "1969-12-31", "9999-12-31", None]
    assert wire(pa.array(days, pa.date64())) == ["0001-01-01", "1969-12-31", "9999-12-31", None]
    assert wire(pa.array([time(0), time(23, 59, 59, 999999), None], pa.time64("us"))) == [
        "00:00:00.000000", "23:59:59.999999", None,
    ]  # fmt: skip
    assert wire(pa.array([86_400_000_000, 1], pa.int64()).cast(pa.time64("us"))) == [
        "24:00:00.000000", "00:00:00.000001",
    ]  # fmt: skip
    assert wire(pa.array([3661], pa.int32()).cast(pa.time32("s"))) == ["01:01:01"]
    assert wire(pa.array([86_400], pa.int32()).cast(pa.time32("s"))) == ["24:00:00"]


def test_intervals_are_iso_durations() -> None:
    array = pa.array([pa.MonthDayNano([14, -3, 3_500_000_000]), pa.MonthDayNano([0, 0, 0]), None])
    assert wire(array) == ["P14M-3DT3.5S", "PT0S", None]
    assert wire(pa.array([pa.MonthDayNano([0, 0, -1])])) == ["PT-0.000000001S"]
    assert wire(pa.array([timedelta(days=1, microseconds=1), None], pa.duration("us"))) == ["PT86400.000001S", None]


def test_bytes_and_text_stay_what_they_are() -> None:
    assert wire(pa.array([b"\x00\xff\x10", b"", None], pa.binary())) == ["AP8Q", "", None]
    assert wire(pa.array([b"ab"], pa.binary(2))) == ["YWI="]
    hostile = ["\x1b[31mred\x1b[0m", "\x00\x07\r\n", "=cmd()", '{"a": 1.10}', "日本語 🙂", ""]
    assert wire(pa.array([*hostile, None])) == [*hostile, None]
    for type_ in (pa.large_string(), pa.string_view()):
        assert wire(pa.array(["é", None], type_)) == ["é", None]


def test_broken_text_is_shown_and_told() -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(struct.pack("<3i", 0, 2, 4)), pa.py_buffer(b"ok\xff\xfe")]
    )
    notes: list[str] = []
    assert wire(broken, notes=notes) == ["ok", "��"]
    assert len(notes) == 1
    assert "'c'" in notes[0]


def test_nested_values() -> None:
    lists = pa.array([[2**60, 1], [], None, [None]], pa.list_(pa.int64()))
    assert wire(lists) == [[str(2**60), 1], [], None, [None]]
    assert wire(lists.slice(2)) == [None, [None]]
    assert wire(lists.slice(1, 1)) == [[]]
    structs = pa.array(
        [{"d": Decimal("1.50"), "t": [b"x"]}, None, {"d": None, "t": None}],
        pa.struct([("d", pa.decimal128(9, 2)), ("t", pa.list_(pa.binary()))]),
    )
    assert wire(structs) == [{"d": "1.50", "t": ["eA=="]}, None, {"d": None, "t": None}]
    assert wire(structs.slice(1)) == [None, {"d": None, "t": None}]
    assert wire(pa.array([{}, None], pa.struct([]))) == [{}, None]
    vectors = pa.array([[0.1, 0.2], None, [1.0, math.nan]], pa.list_(pa.float32(), 2))
    assert wire(vectors) == [[0.1, 0.2], None, [1.0, "NaN"]]
    assert wire(vectors.slice(2)) == [[1.0, "NaN"]]
    maps = pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64()))
    assert wire(maps) == [{"a": 1}, None, {}]
    assert wire(pa.array([[(1, 2**60)]], pa.map_(pa.int32(), pa.int64()))) == [[[1, str(2**60)]]]
    assert wire(pa.array([[1], None], pa.list_view(pa.int8()))) == [[1], None]
    assert wire(pa.array([[1], None], pa.large_list(pa.int8()))) == [[1], None]


def test_encodings_and_extensions_are_opened() -> None:
    assert wire(pa.array(["a", None, "a"]).dictionary_encode()) == ["a", None, "a"]
    assert wire(pa.RunEndEncodedArray.from_arrays([2, 3], [2**60, None])) == [str(2**60), str(2**60), None]
    key = uuid.UUID(int=7)
    assert wire(pa.ExtensionArray.from_storage(pa.uuid(), pa.array([key.bytes, None], pa.binary(16)))) == [
        str(key), None,
    ]  # fmt: skip
    assert wire(pa.array([None, None])) == [None, None]
    assert wire(pa.array([True, None])) == [True, None]
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["x", "y"])])
    assert wire(union) == ["1", "y"]


def test_oversized_values_are_cut_between_characters_and_told() -> None:
    notes: list[str] = []
    text = pa.array(["ok", "é" * 10, None, "x" * 11])
    assert wire(text, max_value_bytes=9, notes=notes) == ["ok", "é" * 4, None, "x" * 9]
    assert notes == ["column 'c': 2 values were longer than 9 bytes and cut"]
    notes.clear()
    assert wire(pa.array([b"123456"]), max_value_bytes=3, notes=notes) == ["MTIz"]
    assert wire(pa.array(["123456"], pa.string_view()), max_value_bytes=3, notes=notes) == ["123"]
    assert wire(pa.array([["123456"]]), max_value_bytes=3, notes=notes) == [["123"]]
    assert notes == ["column 'c': 1 value was longer than 3 bytes and cut"] * 3
    notes.clear()
    assert wire(pa.array(["abc", "def"]), max_value_bytes=3, notes=notes) == ["abc", "def"]
    assert notes == []


def test_rows_are_lists_in_column_order() -> None:
    batch = pa.record_batch([pa.array([1, 2]), pa.array(["a", "b"])], names=["n", "n"])
    columns = (Column(name="n", type=DataType("int64")), Column(name="n", type=DataType("string")))
    assert wire_rows(batch, columns) == [[1, "a"], [2, "b"]]
    assert wire_rows(batch.slice(2), columns) == []
    assert wire_rows(pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([])))) == [[], []]
    with pytest.raises(AgentError, match="1 columns were described"):
        wire_rows(batch, columns[:1])


def _reference(value: Any) -> Any:
    """The same wire form, a value at a time and by Python's own means."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= 2**53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[repr(value)]
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(timespec="microseconds") + ("Z" if value.tzinfo else "")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, time):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, list):
        return [_reference(item) for item in value]
    assert isinstance(value, dict)
    return {key: _reference(item) for key, item in value.items()}


_LEAVES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(st.characters(exclude_categories=["Cs"]))),
    (pa.decimal128(38, 12), st.decimals("-9e20", "9e20", places=12)),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
    (pa.date32(), st.dates()),
    (pa.time64("us"), st.times()),
]


def _arrays() -> st.SearchStrategy[tuple[pa.DataType, list[Any]]]:
    leaves = st.sampled_from(_LEAVES)
    typed = st.recursive(
        leaves,
        lambda inner: st.one_of(
            inner.map(lambda t: (pa.list_(t[0]), st.lists(st.none() | t[1], max_size=3))),
            inner.map(lambda t: (pa.struct([("f", t[0])]), st.fixed_dictionaries({"f": st.none() | t[1]}))),
        ),
        max_leaves=3,
    )
    return typed.flatmap(lambda t: st.tuples(st.just(t[0]), st.lists(st.none() | t[1], max_size=6)))


@settings(max_examples=300, deadline=None)
@given(_arrays(), st.integers(0, 6))
def test_wire_form_equals_the_slow_way(case: tuple[pa.DataType, list[Any]], start: int) -> None:
    type_, values = case
    array = pa.array(values, type_, from_pandas=False).slice(start)
    # repr: -0.0 and 0.0, 1 and True are different here
    assert repr(wire(array)) == repr([_reference(v) for v in array.to_pylist()])


# --- bytes ---


def test_ipc_round_trip_with_and_without_rows() -> None:
    schema = arrow_schema([Column(name="id", type=DataType("uuid")), Column(name="n", type=DataType("int64"))])
    batches = [pa.record_batch([["a"], [1]], schema=schema), pa.record_batch([["b", None], [2, None]], schema=schema)]
    for compression in (None, "lz4", "zstd"):
        table = read_ipc(ipc_stream(batches, schema, compression=compression))
        assert table.schema.equals(schema, check_metadata=True)
        assert table.to_pydict() == {"id": ["a", "b", None], "n": [1, 2, None]}
    empty = read_ipc(ipc_stream([], schema))
    assert (empty.num_rows, empty.schema.names) == (0, ["id", "n"])


@pytest.mark.parametrize("cut", [0, 1, 7, 40, -9])
def test_malformed_ipc_is_a_users_error(cut: int) -> None:
    schema = pa.schema([("n", pa.int64())])
    data = ipc_stream([pa.record_batch([[1, 2, 3]], schema=schema)], schema)
    with pytest.raises(UserError) as caught:
        read_ipc(data[:cut])
    assert caught.value.code == "request.malformed"


@settings(deadline=None)
@given(st.data())
def test_flipped_bytes_never_do_more_than_fail(data: st.DataObject) -> None:
    schema = pa.schema([("s", pa.string()), ("l", pa.list_(pa.int32()))])
    stream = bytearray(ipc_stream([pa.record_batch([["ab", "c"], [[1], [2, 3]]], schema=schema)], schema))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        table = read_ipc(bytes(stream))
    except UserError as error:
        assert error.code == "request.malformed"
    else:
        for batch in table.to_batches():
            wire_rows(batch)


def test_slices_hold_their_size_and_lose_nothing() -> None:
    batch = pa.record_batch([pa.array(["x" * (n % 50) for n in range(1000)]), pa.array(range(1000))], names=["s", "n"])
    slices = slice_by_bytes(batch, 2000)
    assert all(piece.nbytes <= 2000 for piece in slices)
    assert len(slices) < 100
    assert pa.Table.from_batches(slices).combine_chunks().to_batches()[0].equals(batch)
    assert slice_by_bytes(batch, 10**9) == [batch]


def test_a_row_larger_than_the_slice_stays_alone() -> None:
    batch = pa.record_batch([pa.array(["a", "b" * 1000, "c"])], names=["s"])
    assert [piece.column(0).to_pylist() for piece in slice_by_bytes(batch, 20)] == [["a"], ["b" * 1000], ["c"]]
    assert [piece.num_rows for piece in slice_by_bytes(batch.slice(3), 1)] == [0]
    with pytest.raises(AgentError):
        slice_by_bytes(batch, 0)


def test_shared_buffers_do_not_count_for_every_slice() -> None:
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int8()), pa.array(["x" * 10_000]))
    assert len(slice_by_bytes(pa.record_batch([dictionary], names=["d"]), 1000)) == 1
    views = pa.array(["y" * 100] * 64, pa.string_view())
    assert len(slice_by_bytes(pa.record_batch([views], names=["v"]), 4000)) == 2


@given(st.lists(st.none() | st.text(max_size=40), max_size=60), st.integers(1, 200))
def test_slicing_is_complete_and_in_order(values: list[str | None], size: int) -> None:
    pieces = slice_by_bytes(pa.record_batch([pa.array(values, pa.string())], names=["s"]), size)
    assert [v for piece in pieces for v in piece.column(0).to_pylist()] == values
    assert all(piece.nbytes <= size or piece.num_rows <= 1 for piece in pieces)
