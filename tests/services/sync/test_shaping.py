"""Delivered rows: chosen columns, masks, the types of a Delta table, and digests."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import deltalake
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfagent.foundation.errors import AgentError, NotFound, UserError
from hfagent.model.data_type import DataType
from hfagent.model.dataset import Mask
from hfagent.model.stream import Column
from hfagent.sdk.arrow import arrow_schema, columns_of
from hfagent.services.sync.delta_types import deliver, delivered_type
from hfagent.services.sync.digest import row_digests
from hfagent.services.sync.shaping import EXTRACTED_AT, RUN_ID, SEQUENCE, Shape, Shaper

NOW = datetime(2024, 5, 1, 12, 0, 0, 123456, UTC)
KEY = b"0123456789abcdef"
META = [RUN_ID, EXTRACTED_AT, SEQUENCE]


def columns(**types: str) -> tuple[Column, ...]:
    return tuple(Column(name=name, type=DataType.parse(text)) for name, text in types.items())


def shaped(values: list[Any], type_: str, mask: Any = None, arrow: pa.DataType | None = None) -> pa.Array:
    declared = columns(c=type_)
    shape = Shape(masks={"c": mask} if mask else {}, mask_key=KEY)
    batch = pa.record_batch([pa.array(values, arrow or arrow_schema(declared).field(0).type)], names=["c"])
    return Shaper(shape, declared, run_id="r").shape(batch).column(0)


# --- columns ----------------------------------------------------------------------------------------------------------


def test_columns_and_where_they_came_from() -> None:
    shaper = Shaper(Shape(exclude=("b",)), columns(a="int64", b="string", c="string"), run_id="run 1", now=NOW)
    assert shaper.read_columns == ("a", "c")
    source = pa.record_batch({"c": ["x", "y"], "a": pa.array([1, 2], pa.int64())})
    first, second = shaper.shape(source), shaper.shape(source)
    assert first.schema == shaper.schema and first.schema.names == ["a", "c", *META]
    assert first.to_pylist() == [
        {"a": 1, "c": "x", RUN_ID: "run 1", EXTRACTED_AT: NOW, SEQUENCE: 1},
        {"a": 2, "c": "y", RUN_ID: "run 1", EXTRACTED_AT: NOW, SEQUENCE: 2},
    ]
    assert second.column(SEQUENCE).to_pylist() == [3, 4]
    assert shaper.shape(source.slice(0, 0)).num_rows == 0
    assert all(field.nullable for field in shaper.schema)


def test_hidden_columns_are_read_only_by_name() -> None:
    declared = (*columns(a="int64"), Column(name="h", type=DataType("int64"), hidden=True))
    assert Shaper(Shape(), declared, run_id="r").read_columns == ("a",)
    assert Shaper(Shape(columns=("h", "a")), declared, run_id="r").read_columns == ("h", "a")


@pytest.mark.parametrize(
    "shape", [Shape(columns=("x",)), Shape(exclude=("x",)), Shape(masks={"x": Mask(kind="null", keep=0)})]
)
def test_unknown_columns_are_refused(shape: Shape) -> None:
    with pytest.raises(NotFound, match="'x'"):
        Shaper(shape, columns(a="int64"), run_id="r")


def test_nothing_left_and_our_own_names_are_refused() -> None:
    with pytest.raises(UserError, match="no column"):
        Shaper(Shape(exclude=("a",)), columns(a="int64"), run_id="r")
    with pytest.raises(UserError, match=RUN_ID):
        Shaper(Shape(), columns(a="int64", **{RUN_ID: "string"}), run_id="r")


# --- masks ------------------------------------------------------------------------------------------------------------


@dataclass
class OtherMask:
    """Anything with these attributes is a mask."""

    kind: str
    keep: int = 0


def test_hash_is_keyed_and_joins() -> None:
    def expected(text: str) -> str:
        return hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()

    mask = Mask(kind="hash", keep=4)
    found = shaped(["ü😀", "", None, "ü😀", "\0"], "string", mask).to_pylist()
    assert found == [expected("ü😀"), expected(""), None, expected("ü😀"), expected("\0")]
    assert shaped([7, None], "int32", mask).to_pylist() == [expected("7"), None]
    assert shaped(["7"], "string", OtherMask("hash")).to_pylist() == shaped([7], "int64", mask).to_pylist()
    assert KEY.decode() not in repr(Shape(masks={"c": mask}, mask_key=KEY))


def test_hash_without_a_key_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        Shaper(Shape(masks={"a": Mask(kind="hash", keep=0)}), columns(a="int64"), run_id="r")
    assert caught.value.code == "credential.key_missing"


def test_partial_keeps_the_end_and_never_the_whole() -> None:
    found = shaped(["4111111111111111", "😀ü😀ü😀", "abcd", "a", "", None], "string", Mask(kind="partial", keep=4))
    assert found.to_pylist()[:2] == ["************1111", "*ü😀ü😀"]
    for value, whole in zip(found.to_pylist()[2:4], ["abcd", "a"], strict=True):
        assert value != whole and len(value) == len(whole)
    assert found.to_pylist()[4:] == ["", None]
    assert shaped(["abc"], "string", Mask(kind="partial", keep=0)).to_pylist() == ["***"]


@pytest.mark.parametrize(
    ("type_", "values"),
    [("string", ["a", None]), ("int64", [1, None]), ("time", [86_400_000_000, None]), ("array<int64>", [[1], None])],
)
def test_redact_and_null(type_: str, values: list[Any]) -> None:
    assert shaped(values, type_, Mask(kind="redact", keep=0)).to_pylist() == ["***", None]
    nothing = shaped(values, type_, Mask(kind="null", keep=0))
    assert nothing.null_count == 2
    assert nothing.type == shaped(values, type_).type


@pytest.mark.parametrize("kind", ["hash", "partial"])
def test_values_are_masked_by_their_text(kind: str) -> None:
    mask = Mask(kind=kind, keep=4)  # type: ignore[arg-type]
    for type_, values, text in [
        ("time", [86_400_000_000], "24:00:00.000000"),
        ("date", [date(2024, 5, 1)], "2024-05-01"),
        ("timestamptz", [NOW], "2024-05-01T12:00:00.123456Z"),
        ("uint64", [2**64 - 1], str(2**64 - 1)),
    ]:
        assert shaped(values, type_, mask).to_pylist() == shaped([text], "string", mask).to_pylist(), type_


def test_masks_that_cannot_be() -> None:
    with pytest.raises(UserError, match="'blur'"):
        Shaper(Shape(masks={"a": OtherMask("blur")}), columns(a="string"), run_id="r")
    with pytest.raises(UserError, match="structures"):
        Shaper(Shape(masks={"a": OtherMask("partial")}), columns(a="array<string>"), run_id="r")


# --- types ------------------------------------------------------------------------------------------------------------

HUGE = Decimal("1" * 45 + ".00001")

CONVERSIONS: list[tuple[pa.DataType, list[Any], pa.DataType, list[Any]]] = [
    (pa.uint8(), [255, None], pa.int16(), [255, None]),
    (pa.uint16(), [65535], pa.int32(), [65535]),
    (pa.uint32(), [2**32 - 1], pa.int64(), [2**32 - 1]),
    (pa.uint64(), [2**64 - 1, None], pa.decimal128(20, 0), [Decimal(2**64 - 1), None]),
    (pa.float16(), [1.5], pa.float32(), [1.5]),
    (pa.decimal256(38, 2), [Decimal("1.25")], pa.decimal128(38, 2), [Decimal("1.25")]),
    (pa.decimal256(50, 5), [HUGE, None], pa.string(), [str(HUGE), None]),
    (pa.decimal256(60, 40), [Decimal("1E-40")], pa.string(), ["0." + "0" * 39 + "1"]),
    (pa.time32("s"), [3661, 86400, None], pa.string(), ["01:01:01", "24:00:00", None]),
    (pa.time64("us"), [1, 86_400_000_000], pa.string(), ["00:00:00.000001", "24:00:00.000000"]),
    (pa.time64("ns"), [1], pa.string(), ["00:00:00.000000001"]),
    (pa.duration("s"), [5, None], pa.string(), ["PT5S", None]),
    (pa.date64(), [date(2024, 5, 1)], pa.date32(), [date(2024, 5, 1)]),
    (pa.timestamp("ns"), [1000], pa.timestamp("us"), [datetime(1970, 1, 1, 0, 0, 0, 1)]),
    (pa.timestamp("s", "Europe/Berlin"), [0], pa.timestamp("us", "UTC"), [datetime(1970, 1, 1, tzinfo=UTC)]),
    (pa.large_string(), ["a\0b", "😀", "", None], pa.string(), ["a\0b", "😀", "", None]),
    (pa.string_view(), ["a\0b", None], pa.string(), ["a\0b", None]),
    (pa.large_binary(), [b"\0\xff", None], pa.binary(), [b"\0\xff", None]),
    (pa.binary(2), [b"\0\xff", None], pa.binary(), [b"\0\xff", None]),
    (pa.dictionary(pa.int8(), pa.large_string()), ["a", None, "a"], pa.string(), ["a", None, "a"]),
    (pa.null(), [None], pa.string(), [None]),
    (pa.list_(pa.uint8()), [[1, None], [], None], pa.list_(pa.int16()), [[1, None], [], None]),
    (pa.list_(pa.uint8(), 2), [[1, 2], None, [3, 4]], pa.list_(pa.int16()), [[1, 2], None, [3, 4]]),
    (pa.list_view(pa.int8()), [[1], None, [2, 3]], pa.list_(pa.int8()), [[1], None, [2, 3]]),
    (pa.large_list(pa.large_list(pa.time32("s"))), [[[1], None]], pa.list_(pa.list_(pa.string())),
     [[["00:00:01"], None]]),
    (pa.struct([("t", pa.time32("s")), ("n", pa.uint8())]), [{"t": 1, "n": 2}, None],
     pa.struct([("t", pa.string()), ("n", pa.int16())]), [{"t": "00:00:01", "n": 2}, None]),
    (pa.map_(pa.large_string(), pa.uint64()), [[("a", 1)], None, []],
     pa.map_(pa.string(), pa.decimal128(20, 0)), [[("a", Decimal(1))], None, []]),
]  # fmt: skip


@pytest.mark.parametrize(("source", "values", "target", "expected"), CONVERSIONS, ids=[str(c[0]) for c in CONVERSIONS])
def test_types(source: pa.DataType, values: list[Any], target: pa.DataType, expected: list[Any]) -> None:
    array = pa.array(values, source)
    for padded in (array, pa.concat_arrays([array, array, array]).slice(len(array), len(array))):
        found = deliver(padded)
        found.validate(full=True)
        assert (found.type, found.to_pylist()) == (target, expected)
    assert delivered_type(source) == target
    assert deliver(array.slice(0, 0)).type == target
    assert deliver(pa.nulls(2, source)).to_pylist() == [None, None]


def test_uuid() -> None:
    value = UUID("12345678-1234-5678-1234-567812345678")
    array = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([value.bytes, None], pa.binary(16)))
    assert deliver(array).to_pylist() == [str(value), None]


def test_delta_takes_every_delivered_type() -> None:
    fields = [pa.field(f"c{n}", delivered_type(source)) for n, (source, *_) in enumerate(CONVERSIONS)]
    schema = deltalake.Schema.from_arrow(pa.schema(fields))
    for given_, taken in zip(fields, pa.schema(schema.to_arrow()), strict=True):
        assert taken.type == given_.type, str(given_.type)


def test_finer_than_microseconds_is_refused_and_not_cut() -> None:
    with pytest.raises(AgentError, match="'c'") as caught:
        shaped([1001], "timestamp(ns)")
    assert caught.value.code == "schema.type_conflict"


def test_unions_are_refused_by_name() -> None:
    with pytest.raises(UserError) as caught:
        delivered_type(pa.dense_union([pa.field("a", pa.int8())]))
    assert caught.value.code == "schema.type_conflict"


def test_the_schema_tells_the_canonical_types() -> None:
    declared = columns(t="time", u="uint64", j="json", b="bigdecimal", n="timestamp(ns)", i="int32", m="uuid")
    shaper = Shaper(Shape(masks={"m": Mask(kind="redact", keep=0)}), declared, run_id="r")
    told = {column.name: str(column.type) for column in columns_of(shaper.schema)}
    assert {name: told[name] for name in "tujbnim"} == {
        "t": "time", "u": "uint64", "j": "json", "b": "bigdecimal", "n": "timestamp(ns)", "i": "int32", "m": "string",
    }  # fmt: skip


# --- digests ----------------------------------------------------------------------------------------------------------

VALUES = st.lists(
    st.fixed_dictionaries(
        {
            "a": st.none() | st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6),
            "b": st.none() | st.text(alphabet="0123456789:-ab", max_size=6),
            "n": st.none() | st.integers(-(2**63), 2**63 - 1),
            "f": st.none() | st.floats(allow_nan=False),
            "l": st.none() | st.lists(st.none() | st.text(alphabet="1:-", max_size=3), max_size=3),
            "s": st.none() | st.fixed_dictionaries({"x": st.none() | st.text(alphabet="1:-", max_size=3)}),
        }
    ),
    max_size=12,
)
SCHEMA = pa.schema(
    {
        "a": pa.string(), "b": pa.string(), "n": pa.int64(), "f": pa.float64(), "l": pa.list_(pa.string()),
        "s": pa.struct([("x", pa.string())]),
    }
)  # fmt: skip


@given(VALUES, st.integers(0, 12))
def test_digests_are_equal_exactly_when_rows_are(rows: list[dict[str, Any]], cut: int) -> None:
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    found = row_digests(batch)
    assert len(set(found)) == len({repr([row[name] for name in SCHEMA.names]) for row in rows})
    assert row_digests(batch.slice(0, cut)) + row_digests(batch.slice(cut)) == found
    assert row_digests(batch.select(["s", "l", "f", "n", "b", "a"])) == found


def digest_of(values: list[Any], type_: pa.DataType, name: str = "c") -> bytes:
    return row_digests(pa.record_batch([pa.array([values[0]], type_)], names=[name]))[0]


def test_digests_tell_apart() -> None:
    """Within one type: a row of another type is of another table."""
    text, lists, maps = pa.string(), pa.list_(pa.string()), pa.map_(pa.string(), pa.string())
    for type_, values in [
        (text, [None, "", "\0", "\0\0", "a", "-", "1:a"]),
        (pa.binary(), [None, b"", b"\0", b"-"]),
        (pa.float64(), [None, 0.0, -0.0, float("nan"), float("inf"), 5e-324]),
        (lists, [None, [], [None], [""], ["", ""], ["-"], ["1:a"], ["a", "b"], ["ab"]]),
        (maps, [None, [], [("a", "b")], [("b", "a")], [("a", None)]]),
    ]:
        assert len({digest_of([value], type_) for value in values}) == len(values), str(type_)
    assert digest_of(["a"], text) != digest_of(["a"], text, "d")


def test_digests_outlive_wider_types_and_new_empty_columns() -> None:
    seven = digest_of([7], pa.int16())
    assert seven == digest_of([7], pa.int64()) == digest_of([Decimal("7.00")], pa.decimal128(10, 2))
    assert digest_of([Decimal("70")], pa.decimal128(10, 2)) == digest_of([70], pa.int64()) != seven
    assert digest_of([Decimal("1.50")], pa.decimal128(10, 2)) == digest_of([Decimal("1.5")], pa.decimal128(38, 20))
    assert digest_of([0.5], pa.float32()) == digest_of([0.5], pa.float64())
    grown = pa.record_batch({"c": pa.array([7], pa.int16()), "new": pa.array([None], pa.string())})
    assert row_digests(grown) == [seven]
    assert row_digests(grown, ["c"]) == [seven]


def test_digests_are_the_same_in_another_process() -> None:
    code = """
import pyarrow as pa
from hfagent.services.sync.digest import row_digests
print(row_digests(pa.record_batch({"a": ["ü", None], "n": [1.5, float("nan")]}))[1].hex())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    here = row_digests(pa.record_batch({"a": ["ü", None], "n": [1.5, -float("nan")]}))
    assert done.stdout.strip() == here[1].hex()
