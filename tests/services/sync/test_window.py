"""Windows: what is decided, how watermarks compare, and that no row slips between two windows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfagent.foundation.errors import AgentError
from hfagent.sdk.incremental import WatermarkFacts
from hfagent.services.sync.watermark_order import compare_watermarks
from hfagent.services.sync.window import NoChange, SyncPosition, Window, plan_window

FACTS = WatermarkFacts(
    column="id", column_type="int64", watermark_class="number", highest="100", lowered="90", source_id="a"
)
POSITION = SyncPosition(sequence=4, column="id", column_type="int64", lo="80", source_id="a")


def facts(**changes: Any) -> WatermarkFacts:
    return replace(FACTS, **changes)


def planned(position: SyncPosition = POSITION, **changes: Any) -> Window:
    found = plan_window(position, facts(**changes), "always_include")
    assert isinstance(found, Window)
    return found


def refused(position: SyncPosition = POSITION, on_null: str | None = None, **changes: Any) -> AgentError:
    with pytest.raises(AgentError) as caught:
        plan_window(position, facts(**changes), on_null)
    assert caught.value.hint and not caught.value.retryable
    return caught.value


# --- the window -------------------------------------------------------------------------------------------------------


def test_first_run_begins_at_the_beginning() -> None:
    found = planned(SyncPosition())
    assert (found.lo, found.hi, found.next_lo, found.include_nulls, found.warnings) == (None, "100", "90", False, ())


def test_next_run() -> None:
    found = planned()
    assert (found.lo, found.hi, found.next_lo) == ("80", "100", "90")


def test_zero_width_window_is_read() -> None:
    found = planned(replace(POSITION, lo="100"), lowered="100")
    assert (found.lo, found.hi, found.next_lo) == ("100", "100", "100")
    assert planned(replace(POSITION, lo="100.0")).hi == "100", "equal by value, not by text"


@pytest.mark.parametrize(
    ("lowered", "next_lo"), [("90", "90"), ("70", "80"), ("80.0", "80.0"), ("101", "100"), (None, "100"), ("9", "80")]
)
def test_next_lo_stays_between_lo_and_hi(lowered: str | None, next_lo: str) -> None:
    assert planned(lowered=lowered).next_lo == next_lo


@given(st.integers(), st.integers(), st.one_of(st.none(), st.integers()), st.one_of(st.none(), st.integers()))
def test_the_position_never_moves_backwards(lo: int, ahead: int, back: int | None, start: int | None) -> None:
    position = replace(POSITION, lo=None if start is None else str(lo))
    highest = lo + abs(ahead)
    lowered = None if back is None else str(highest - back)
    found = planned(position, highest=str(highest), lowered=lowered)
    assert found.lo == position.lo and found.hi == str(highest)
    assert found.next_lo is not None and int(found.next_lo) <= highest
    assert position.lo is None or int(found.next_lo) >= lo


def test_future_rows_are_told_with_their_number() -> None:
    assert [w for w in planned(future=7).warnings if "7 rows" in w]
    assert planned().warnings == ()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_source_behind_the_position() -> None:
    error = refused(highest="79", lowered="69")
    assert error.code == "incremental.regressed"
    assert "79" in error.message and "80" in error.message


def test_numbers_are_not_compared_as_text() -> None:
    assert planned(replace(POSITION, lo="9"), highest="10", lowered="10").hi == "10"
    assert refused(replace(POSITION, lo="10"), highest="9", lowered="9").code == "incremental.regressed"


def test_another_source() -> None:
    assert refused(source_id="b").code == "incremental.regressed"
    assert planned(source_id="").hi == "100", "unknown is not another one"
    assert planned(replace(POSITION, source_id=""), source_id="b").hi == "100"


def test_another_type_or_column() -> None:
    error = refused(column_type="decimal(20,0)")
    assert error.code == "incremental.type_changed"
    assert "int64" in error.message and "decimal(20,0)" in error.message
    assert refused(column="serial").code == "incremental.type_changed"
    assert planned(replace(POSITION, lo=None), column_type="string", column="serial").lo is None


# --- rows without a watermark -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_null", "first", "included"),
    [
        ("include_once", True, True),
        ("include_once", False, False),
        ("always_include", True, True),
        ("always_include", False, True),
        ("exclude", True, False),
        ("exclude", False, False),
    ],
)
def test_on_null(on_null: str, first: bool, included: bool) -> None:
    position = SyncPosition() if first else POSITION
    found = plan_window(position, facts(nulls=3), on_null)
    assert isinstance(found, Window) and found.include_nulls is included


def test_excluded_rows_are_told() -> None:
    found = plan_window(POSITION, facts(nulls=3), "exclude")
    assert isinstance(found, Window) and "3 rows" in found.warnings[0]


@pytest.mark.parametrize("on_null", ["error", None])
def test_null_values_are_an_error_with_their_number(on_null: str | None) -> None:
    error = refused(on_null=on_null, nulls=31)
    assert error.code == "incremental.null_values"
    assert "31 rows" in error.message and "id" in error.message


@pytest.mark.parametrize("on_null", ["error", None])
def test_without_nulls_nobody_asks(on_null: str | None) -> None:
    assert isinstance(plan_window(POSITION, FACTS, on_null), Window)


@pytest.mark.parametrize(
    ("nulls", "row_estimate", "has_key", "included"),
    [(10, 1000, True, True), (11, 1000, True, False), (10, 1000, False, False), (1, 99, True, False)],
)
def test_few_nulls_with_a_key_are_included(nulls: int, row_estimate: int, has_key: bool, included: bool) -> None:
    if included:
        found = plan_window(POSITION, facts(nulls=nulls), None, row_estimate=row_estimate, has_key=has_key)
        assert isinstance(found, Window) and found.include_nulls
    else:
        with pytest.raises(AgentError, match=str(nulls)) as caught:
            plan_window(POSITION, facts(nulls=nulls), None, row_estimate=row_estimate, has_key=has_key)
        assert caught.value.code == "incremental.null_values"


def test_no_value_at_all() -> None:
    empty = facts(highest=None, lowered=None)
    assert plan_window(POSITION, empty, None) == NoChange(POSITION)
    assert plan_window(SyncPosition(), empty, None) == NoChange(SyncPosition())
    nulls = replace(empty, nulls=5)
    assert plan_window(POSITION, nulls, "exclude") == NoChange(POSITION)
    found = plan_window(SyncPosition(), nulls, "always_include")
    assert isinstance(found, Window) and found.include_nulls and found.hi is None and found.next_lo is None
    with pytest.raises(AgentError, match="5 rows"):
        plan_window(SyncPosition(), nulls, None, row_estimate=5, has_key=True)


# --- how watermarks compare -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("number", "9", "10"),
        ("number", "-10", "-9"),
        ("number", "9007199254740992", "9007199254740993"),
        ("number", "0." + "0" * 40 + "1", "0." + "0" * 40 + "2"),
        ("number", "9" * 60, "1" + "0" * 60),
        ("time", "2024-05-01 10:00:00.123456", "2024-05-01 10:00:00.123457"),
        ("time", "2024-05-01 10:00:00.123456788", "2024-05-01 10:00:00.123456789"),
        ("time", "2024-05-01 10:00:00.9", "2024-05-01 10:00:00.95"),
        ("time", "2024-05-01 10:00:00+02", "2024-05-01 09:00:00+00"),
        ("time", "2024-05-01T10:00:00Z", "2024-05-01T10:00:00-00:30"),
        ("time", "9999-12-31 23:59:59+00", "10000-01-01 00:00:00+00"),
        ("time", "0044-03-15 00:00:00+00 BC", "0001-01-01 00:00:00+00"),
        ("time", "0002-01-01 00:00:00+00 BC", "0001-01-01 00:00:00+00 BC"),
        ("time", "1900-01-01 00:00:00+02:30:17", "1900-01-01 00:00:00+02:30:16"),
        ("date", "2024-02-29", "2024-03-01"),
        ("date", "2023-12-31", "2024-01-01"),
        ("text", "B", "a"),
        ("text", "a", "a "),
        ("text", "z", "ä"),
        ("text", "\uffff", "😀"),
    ],
)
def test_order(kind: Any, low: str, high: str) -> None:
    assert compare_watermarks(kind, low, high) == -1
    assert compare_watermarks(kind, high, low) == 1
    assert compare_watermarks(kind, low, low) == compare_watermarks(kind, high, high) == 0


@pytest.mark.parametrize(
    ("kind", "a", "b"),
    [
        ("number", "1.50", "1.5"),
        ("number", "1E+2", "100"),
        ("number", "-0", "0"),
        ("time", "2024-05-01 10:00:00+00", "2024-05-01T10:00:00Z"),
        ("time", "2024-05-01 10:00:00+00:00", "2024-05-01T10:00:00.000000000Z"),
        ("time", "2024-05-01 12:00:00+0200", "2024-05-01 10:00:00 UTC"),
        ("time", "2024-05-01 10:00:00.12", "2024-05-01T10:00:00.120000"),
        ("time", "2024-05-01 24:00:00", "2024-05-02 00:00:00"),
        ("time", "2024-05-01 10:00", "2024-05-01 10:00:00"),
    ],
)
def test_one_value_in_two_notations(kind: Any, a: str, b: str) -> None:
    assert compare_watermarks(kind, a, b) == compare_watermarks(kind, b, a) == 0


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("time", "infinity"),
        ("time", "-infinity"),
        ("time", "0000-00-00 00:00:00"),
        ("time", "2023-02-29 00:00:00"),
        ("time", "1900-02-29 00:00:00"),
        ("time", "2024-13-01"),
        ("time", "2024-05-01 25:00:00"),
        ("time", "5"),
        ("date", "infinity"),
        ("date", ""),
        ("number", "NaN"),
        ("number", "Infinity"),
        ("number", "1_000"),
        ("number", "١"),
        ("number", ""),
        ("number", "2024-05-01"),
        ("other", "1"),
    ],
)
def test_what_has_no_place_in_the_order(kind: Any, text: str) -> None:
    good = {"time": "2024-05-01 10:00:00", "date": "2024-05-01", "number": "1", "other": "1"}[kind]
    for pair in ((text, good), (good, text)):
        with pytest.raises(AgentError) as caught:
            compare_watermarks(kind, *pair)
        assert caught.value.code.startswith("incremental.") and caught.value.hint


@given(st.decimals(allow_nan=False, allow_infinity=False), st.decimals(allow_nan=False, allow_infinity=False))
def test_numbers_compare_as_decimals(a: Decimal, b: Decimal) -> None:
    assert compare_watermarks("number", str(a), str(b)) == (a > b) - (a < b)


MOMENTS = st.datetimes(
    datetime(2, 1, 1),
    datetime(9998, 12, 31),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(-timedelta(hours=9))]),
)


@given(MOMENTS, MOMENTS)
def test_times_compare_as_instants(a: datetime, b: datetime) -> None:
    expected = (a > b) - (a < b)
    assert compare_watermarks("time", a.isoformat(), str(b)) == expected
    assert compare_watermarks("time", str(a.astimezone(UTC)), b.isoformat()) == expected
    assert compare_watermarks("date", a.date().isoformat(), b.date().isoformat()) == (
        (a.date() > b.date()) - (a.date() < b.date())
    )


@given(st.text(), st.text())
def test_text_compares_by_its_bytes(a: str, b: str) -> None:
    left, right = a.encode(), b.encode()
    assert compare_watermarks("text", a, b) == (left > right) - (left < right)


# --- no row is lost ---------------------------------------------------------------------------------------------------

LOOKBACK = 20

ROWS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, LOOKBACK)), min_size=1, max_size=60)
"""When a row's transaction began (which is its watermark), and how much later it was committed."""
RUNS = st.lists(st.integers(0, 340), min_size=1, max_size=12)


def simulated(rows: list[tuple[int, int]], runs: list[int], *, lookback: int, inclusive: bool) -> list[set[int]]:
    """Run at each of the moments and return which rows each run reads. A row is seen from its commit on."""
    position, read = SyncPosition(), []
    for now in runs:
        seen = {n: began for n, (began, took) in enumerate(rows) if began + took <= now}
        highest = max(seen.values(), default=None)
        told = facts(
            highest=None if highest is None else str(highest),
            lowered=None if highest is None else str(highest - lookback),
        )
        window = plan_window(position, told)
        if isinstance(window, NoChange):
            read.append(set())
            continue
        lo, hi = None if window.lo is None else int(window.lo), int(window.hi or 0)
        read.append({n for n, w in seen.items() if w <= hi and (lo is None or (w >= lo if inclusive else w > lo))})
        position = SyncPosition(
            sequence=position.sequence + 1, column="id", column_type="int64", lo=window.next_lo, source_id="a"
        )
    return read


@settings(max_examples=300)
@given(ROWS, RUNS)
def test_every_row_is_read(rows: list[tuple[int, int]], runs: list[int]) -> None:
    """However late a row is committed (within the lookback), and whenever runs happen."""
    runs = [*sorted(runs), 1000]
    read = simulated(rows, runs, lookback=LOOKBACK, inclusive=True)
    assert set().union(*read) == set(range(len(rows)))


@given(ROWS, RUNS)
def test_a_quiet_source_is_read_within_the_lookback_only(rows: list[tuple[int, int]], runs: list[int]) -> None:
    """What comes again is what the lookback covers, no more: the position does move."""
    read = simulated(rows, [*sorted(runs), 1000, 1001, 1002], lookback=LOOKBACK, inclusive=True)
    top = max(began for began, _ in rows)
    near = {n for n, (began, _) in enumerate(rows) if began >= top - LOOKBACK}
    assert all(again == near for _, again in pairwise(read[-3:]))


def test_without_the_inclusive_bound_a_row_is_lost() -> None:
    """The control: two rows of one value, the second committed after the first was read."""
    rows, runs = [(10, 0), (10, 5)], [10, 100]
    assert set().union(*simulated(rows, runs, lookback=0, inclusive=False)) == {0}
    assert set().union(*simulated(rows, runs, lookback=0, inclusive=True)) == {0, 1}


def test_without_the_lookback_a_late_commit_is_lost() -> None:
    rows, runs = [(10, 15), (20, 0)], [20, 100]
    assert set().union(*simulated(rows, runs, lookback=0, inclusive=True)) == {1}
    assert set().union(*simulated(rows, runs, lookback=LOOKBACK, inclusive=True)) == {0, 1}
