"""Cron schedules: the vector table, an independent scan of every minute, refusals, bounded work, jitter."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise, product
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hfagent.foundation.errors import ConfigError
from hfagent.services import cron_fires
from hfagent.services.cron import CronSchedule, jitter_seconds

MINUTE = timedelta(minutes=1)
# Not shrunk: the failing window and expression are small enough to read, and shrinking a scan takes minutes.
BOUNDED = settings(deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
NEW_YORK, ROME, LORD_HOWE = "America/New_York", "Europe/Rome", "Australia/Lord_Howe"
SANTIAGO, CAIRO, APIA = "America/Santiago", "Africa/Cairo", "Pacific/Apia"


def local(text: str, zone: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


# ---- the vector table -----------------------------------------------------------------------------------------------

# Expression, zone, wall time to start after, and the wall times with offset at which it fires next.
VECTORS = [
    # A fixed time that does not exist: once, at the first instant after the gap.
    ("30 2 * * *", NEW_YORK, "2026-03-07 12:00", ["03-08 03:00-0400", "03-09 02:30-0400", "03-10 02:30-0400"]),
    ("30 2 * * *", ROME, "2026-03-28 12:00", ["03-29 03:00+0200", "03-30 02:30+0200"]),
    ("0,30 2 * * *", ROME, "2026-03-28 12:00", ["03-29 03:00+0200", "03-30 02:00+0200", "03-30 02:30+0200"]),
    ("30 2,3 * * *", ROME, "2026-03-28 12:00", ["03-29 03:00+0200", "03-29 03:30+0200", "03-30 02:30+0200"]),
    ("0 2,3 * * *", ROME, "2026-03-28 12:00", ["03-29 03:00+0200", "03-30 02:00+0200", "03-30 03:00+0200"]),
    ("30 2 29 3 *", ROME, "2026-01-01 00:00", ["03-29 03:00+0200", "03-29 02:30+0200"]),
    ("30 2 * * 0", ROME, "2026-03-28 12:00", ["03-29 03:00+0200", "04-05 02:30+0200"]),
    ("15 2 * * *", LORD_HOWE, "2026-10-03 12:00", ["10-04 02:30+1100", "10-05 02:15+1100"]),
    ("45 2 * * *", LORD_HOWE, "2026-10-03 12:00", ["10-04 02:45+1100", "10-05 02:45+1100"]),
    # ... also when the gap takes midnight.
    ("0 0 * * *", SANTIAGO, "2026-09-04 12:00", ["09-05 00:00-0400", "09-06 01:00-0300", "09-07 00:00-0300"]),
    ("0 0 * * *", CAIRO, "2026-04-22 12:00", ["04-23 00:00+0200", "04-24 01:00+0300", "04-25 00:00+0300"]),
    ("30 0 24 4 *", CAIRO, "2026-04-22 12:00", ["04-24 01:00+0300", "04-24 00:30+0200"]),
    ("59 23 * * *", CAIRO, "2026-04-23 12:00", ["04-23 23:59+0200", "04-24 23:59+0300"]),
    # A wildcard follows real time through the gap.
    ("0 * * * *", ROME, "2026-03-29 00:30", ["03-29 01:00+0100", "03-29 03:00+0200", "03-29 04:00+0200"]),
    ("30 * * * *", ROME, "2026-03-29 01:00", ["03-29 01:30+0100", "03-29 03:30+0200"]),
    ("*/30 * * * *", ROME, "2026-03-29 01:20", ["03-29 01:30+0100", "03-29 03:00+0200", "03-29 03:30+0200"]),
    ("*/30 2 * * *", ROME, "2026-03-28 12:00", ["03-30 02:00+0200", "03-30 02:30+0200"]),
    ("30 */2 * * *", ROME, "2026-03-29 00:00", ["03-29 00:30+0100", "03-29 04:30+0200"]),
    ("0 */6 * * *", SANTIAGO, "2026-09-05 17:00", ["09-05 18:00-0400", "09-06 06:00-0300"]),
    ("*/20 * * * *", LORD_HOWE, "2026-10-04 01:30", ["10-04 01:40+1030", "10-04 02:40+1100", "10-04 03:00+1100"]),
    # A fixed time that exists twice: the first time only.
    ("30 1 * * *", NEW_YORK, "2026-10-31 12:00", ["11-01 01:30-0400", "11-02 01:30-0500"]),
    ("0,30 1 * * *", NEW_YORK, "2026-11-01 00:00", ["11-01 01:00-0400", "11-01 01:30-0400", "11-02 01:00-0500"]),
    ("30 1,2 * * *", NEW_YORK, "2026-11-01 00:00", ["11-01 01:30-0400", "11-01 02:30-0500", "11-02 01:30-0500"]),
    ("30 2 * * *", ROME, "2026-10-24 12:00", ["10-25 02:30+0200", "10-26 02:30+0100"]),
    ("0 3 * * *", ROME, "2026-10-24 12:00", ["10-25 03:00+0100", "10-26 03:00+0100"]),
    ("45 1 * * *", LORD_HOWE, "2026-04-04 12:00", ["04-05 01:45+1100", "04-06 01:45+1030"]),
    ("30 23 * * *", SANTIAGO, "2026-04-03 12:00", ["04-03 23:30-0300", "04-04 23:30-0300", "04-05 23:30-0400"]),
    ("30 23 * * 6", SANTIAGO, "2026-04-03 12:00", ["04-04 23:30-0300", "04-11 23:30-0400"]),
    # A wildcard fires each time.
    (
        "*/30 * * * *",
        NEW_YORK,
        "2026-11-01 00:40",
        ["11-01 01:00-0400", "11-01 01:30-0400", "11-01 01:00-0500", "11-01 01:30-0500", "11-01 02:00-0500"],
    ),
    ("15 * * * *", ROME, "2026-10-25 02:00", ["10-25 02:15+0200", "10-25 02:15+0100", "10-25 03:15+0100"]),
    ("*/30 2 * * *", ROME, "2026-10-25 02:10", ["10-25 02:30+0200", "10-25 02:00+0100", "10-25 02:30+0100"]),
    ("*/15 * * * *", LORD_HOWE, "2026-04-05 01:20", ["04-05 01:30+1100", "04-05 01:45+1100", "04-05 01:30+1030"]),
    # The day that Samoa left out: 29 December was followed by the 31st.
    ("0 12 30 12 *", APIA, "2011-12-01 00:00", ["12-31 00:00+1400", "12-30 12:00+1400"]),
    ("0 12 * * *", APIA, "2011-12-29 00:00", ["12-29 12:00-1000", "12-31 00:00+1400", "12-31 12:00+1400"]),
    ("0 */8 * * *", APIA, "2011-12-29 09:00", ["12-29 16:00-1000", "12-31 00:00+1400", "12-31 08:00+1400"]),
    # The calendar.
    ("0 0 29 2 *", "UTC", "2096-03-01 00:00", ["02-29 00:00+0000", "02-29 00:00+0000"]),
    ("0 0 31 * *", "UTC", "2026-01-31 12:00", ["03-31 00:00+0000", "05-31 00:00+0000", "07-31 00:00+0000"]),
    ("0 0 30 * *", "UTC", "2026-01-30 12:00", ["03-30 00:00+0000", "04-30 00:00+0000"]),
    ("59 23 31 12 *", "UTC", "2026-12-31 23:58", ["12-31 23:59+0000", "12-31 23:59+0000"]),
    # Day of month or day of week; a star in either makes it "and".
    ("0 0 1 * 1", "UTC", "2026-06-01 12:00", ["06-08 00:00+0000", "06-15 00:00+0000", "06-22 00:00+0000", "06-29 00:00+0000", "07-01 00:00+0000"]),
    ("0 0 13 * 5", "UTC", "2026-06-10 00:00", ["06-12 00:00+0000", "06-13 00:00+0000", "06-19 00:00+0000"]),
    ("0 0 */2 * 1", "UTC", "2026-06-01 12:00", ["06-15 00:00+0000", "06-29 00:00+0000", "07-13 00:00+0000"]),
    ("0 0 13 * */5", "UTC", "2026-06-01 00:00", ["09-13 00:00+0000", "11-13 00:00+0000"]),
    ("0 0 1-31 * 1", "UTC", "2026-06-01 12:00", ["06-02 00:00+0000", "06-03 00:00+0000"]),
    # Sunday has two numbers.
    ("0 0 * * 7", "UTC", "2026-06-01 00:00", ["06-07 00:00+0000", "06-14 00:00+0000"]),
    ("0 0 * * 0", "UTC", "2026-06-01 00:00", ["06-07 00:00+0000", "06-14 00:00+0000"]),
    ("0 0 * * 5-7", "UTC", "2026-06-01 00:00", ["06-05 00:00+0000", "06-06 00:00+0000", "06-07 00:00+0000", "06-12 00:00+0000"]),
    ("0 0 * * fri-sun", "UTC", "2026-06-01 00:00", ["06-05 00:00+0000", "06-06 00:00+0000", "06-07 00:00+0000", "06-12 00:00+0000"]),
    # Steps, lists, names, letters.
    ("*/25 * * * *", "UTC", "2026-06-01 00:01", ["06-01 00:25+0000", "06-01 00:50+0000", "06-01 01:00+0000"]),
    ("5-5 3-3 1-1,31 * *", "UTC", "2026-06-02 00:00", ["07-01 03:05+0000", "07-31 03:05+0000"]),
    ("0 0 * * 7-7,5-7/2", "UTC", "2026-06-01 00:00", ["06-05 00:00+0000", "06-07 00:00+0000", "06-12 00:00+0000"]),
    ("10-20/5,40 6 * * *", "UTC", "2026-06-01 06:12", ["06-01 06:15+0000", "06-01 06:20+0000", "06-01 06:40+0000", "06-02 06:10+0000"]),
    ("0 9 * feb MON", "UTC", "2026-06-01 00:00", ["02-01 09:00+0000", "02-08 09:00+0000"]),
    ("0 0 L * *", "UTC", "2027-12-31 12:00", ["01-31 00:00+0000", "02-29 00:00+0000", "03-31 00:00+0000"]),
    ("0 0 15,L * *", "UTC", "2026-02-01 00:00", ["02-15 00:00+0000", "02-28 00:00+0000", "03-15 00:00+0000"]),
    ("0 0 * * fri#2", "UTC", "2026-06-01 00:00", ["06-12 00:00+0000", "07-10 00:00+0000"]),
    ("0 0 * * mon#5", "UTC", "2026-06-01 00:00", ["06-29 00:00+0000", "08-31 00:00+0000"]),
    ("0 0 * * L5", "UTC", "2026-06-01 00:00", ["06-26 00:00+0000", "07-31 00:00+0000"]),
    ("0 0 ? * 1", "UTC", "2026-06-01 12:00", ["06-08 00:00+0000", "06-15 00:00+0000"]),
    # Strictly after, also within a minute; a zone of quarter hours; offsets do not count as the expression's zone.
    ("0 0 * * *", "UTC", "2026-06-01 00:00", ["06-02 00:00+0000"]),
    ("0 0 * * *", "UTC", "2026-05-31 23:59:59.999999", ["06-01 00:00+0000"]),
    ("0 0 * * *", "UTC", "2026-06-01 00:00:00.000001", ["06-02 00:00+0000"]),
    ("0 6 * * *", "Asia/Kathmandu", "2026-06-01 00:00", ["06-01 06:00+0545", "06-02 06:00+0545"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"), VECTORS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_vector(expression: str, zone: str, after: str, expected: list[str]) -> None:
    start = local(after, zone)
    fires = CronSchedule.parse(expression, zone).upcoming(start, len(expected))
    assert [fire.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M%z") for fire in fires] == expected
    assert all(fire.tzinfo is UTC for fire in fires)
    assert all(earlier < later for earlier, later in pairwise([start, *fires]))


def test_the_table_is_large_enough() -> None:
    assert len({(expression, zone, after) for expression, zone, after, _ in VECTORS}) >= 40


@pytest.mark.parametrize(("expression", "zone", "after", "expected"), VECTORS[20:28])
def test_control_croniter_alone_fails_the_rows_of_the_repeated_hour(
    expression: str, zone: str, after: str, expected: list[str]
) -> None:
    """The table must be able to fail: the library that reads the fields fires a fixed time twice."""
    from croniter import croniter

    stepper = croniter(expression, local(after, zone))
    stepped = [stepper.get_next(datetime).strftime("%m-%d %H:%M%z") for _ in expected]
    repeated = expression not in ("0 3 * * *",)
    assert (stepped != expected) is repeated


def test_the_leap_day_after_2096_is_in_2104() -> None:
    assert CronSchedule.parse("0 0 29 2 *").next_fire(local("2096-03-01 00:00", "UTC")) == local(
        "2104-02-29 00:00", "UTC"
    )


def test_a_leap_day_on_one_weekday_waits_forty_years() -> None:
    schedule = CronSchedule.parse("0 0 29 2 */7", NEW_YORK)
    years = [fire.year for fire in schedule.upcoming(local("2060-03-01 00:00", "UTC"), 3)]
    assert years == [2088, 2128, 2156]
    assert all(date(year, 2, 29).isoweekday() == 7 for year in years)
    assert schedule.due(local("2088-03-01 00:00", "UTC"), local("2128-02-29 04:00", "UTC")) is None


# ---- against a scan of every minute ---------------------------------------------------------------------------------

# Zone and UTC instant of a transition: hour and half-hour shifts, midnight, both hemispheres, a lost day, a lost rule.
TRANSITIONS = [
    (NEW_YORK, "2026-03-08 07:00"), (NEW_YORK, "2026-11-01 06:00"),
    (ROME, "2026-03-29 01:00"), (ROME, "2026-10-25 01:00"),
    ("Europe/London", "2026-10-25 01:00"), ("Europe/Dublin", "2026-03-29 01:00"),
    (LORD_HOWE, "2026-10-03 15:30"), (LORD_HOWE, "2026-04-04 15:00"),
    (SANTIAGO, "2026-09-06 04:00"), (SANTIAGO, "2026-04-05 03:00"),
    (CAIRO, "2026-04-23 22:00"), (CAIRO, "2026-10-29 21:00"),
    (APIA, "2011-12-30 10:00"), ("Pacific/Kwajalein", "1993-08-21 12:00"),
    ("Asia/Pyongyang", "2018-05-04 15:00"), ("America/Caracas", "2007-12-09 07:00"),
    ("Africa/Casablanca", "2026-02-15 02:00"), ("Antarctica/Troll", "2026-10-25 01:00"),
    ("Asia/Kolkata", "2026-06-01 00:00"), ("UTC", "2026-12-31 23:00"), ("America/St_Johns", "2010-03-14 03:31"),
    ("Europe/Volgograd", "2020-12-26 23:00"), ("Asia/Manila", "1990-07-28 16:00"),
]  # fmt: skip
Field = tuple[str, frozenset[int]]


@lru_cache
def scanned_minutes(zone: str, middle: str) -> list[tuple[datetime, datetime]]:
    """Every UTC minute of two days on each side, with the wall time as the standard library shows it."""
    start = local(middle, "UTC") - timedelta(days=2)
    return [(at, at.astimezone(ZoneInfo(zone))) for at in (start + n * MINUTE for n in range(4 * 24 * 60))]


def scan(zone: str, middle: str, matches: Callable[[datetime], bool], follows_real_time: bool) -> list[datetime]:
    """The policy once more, minute by minute: no search, no transition table, `fold` from the standard library."""
    fires = []
    previous: datetime | None = None
    for at, aware in scanned_minutes(zone, middle):
        wall = aware.replace(tzinfo=None, fold=0)
        if follows_real_time:
            fire = matches(wall)
        else:
            fire = aware.fold == 0 and matches(wall)
            while previous is not None and previous + MINUTE < wall:  # jumped over
                previous += MINUTE
                fire = fire or matches(previous)
        previous = wall
        if fire:
            fires.append(at)
    return fires


def fields(low: int, high: int, *, starred: bool = True) -> st.SearchStrategy[Field]:
    """One field as text and, made independently of the text, as the set that it means."""
    number = st.integers(low, high)
    pair = st.tuples(number, number).map(sorted)
    single = number.map(lambda n: (str(n), frozenset([n])))
    ranged = pair.map(lambda p: (f"{p[0]}-{p[1]}", frozenset(range(p[0], p[1] + 1))))
    stepped = st.tuples(pair, st.integers(1, 20)).map(
        lambda p: (f"{p[0][0]}-{p[0][1]}/{p[1]}", frozenset(range(p[0][0], p[0][1] + 1, p[1])))
    )
    every_nth = st.integers(1, high).map(lambda n: (f"*/{n}", frozenset(range(low, high + 1, n))))
    everything = st.just(("*", frozenset(range(low, high + 1))))
    listed = st.lists(st.one_of(single, ranged, stepped), min_size=2, max_size=4).map(
        lambda parts: (",".join(p[0] for p in parts), frozenset().union(*(p[1] for p in parts)))
    )
    without_star = st.one_of(single, listed, stepped, ranged)
    return st.one_of(everything, every_nth, without_star) if starred else without_star


def day_matches(wall: datetime, days: Field, months: Field, weekdays: Field) -> bool:
    by_day, by_weekday = wall.day in days[1], wall.isoweekday() % 7 in {n % 7 for n in weekdays[1]}
    both = days[0][0] == "*" or weekdays[0][0] == "*"
    return wall.month in months[1] and ((by_day and by_weekday) if both else (by_day or by_weekday))


WEEKDAYS = fields(0, 7)


@settings(BOUNDED, max_examples=150)
@given(
    transition=st.sampled_from(TRANSITIONS),
    minutes=fields(0, 59),
    hours=st.one_of(fields(0, 23), fields(0, 3, starred=False)),  # most clock changes are at night
    days=st.one_of(st.just(("*", frozenset(range(1, 32)))), fields(1, 31)),
    weekdays=st.one_of(st.just(("*", frozenset(range(8)))), WEEKDAYS),
    offset=st.integers(0, 4 * 24 * 60 - 1),
)
def test_same_as_a_scan_of_every_minute(
    transition: tuple[str, str], minutes: Field, hours: Field, days: Field, weekdays: Field, offset: int
) -> None:
    months = ("*", frozenset(range(1, 13)))
    expression = " ".join(field[0] for field in (minutes, hours, days, months, weekdays))
    zone, middle = transition

    def matches(wall: datetime) -> bool:
        return wall.minute in minutes[1] and wall.hour in hours[1] and day_matches(wall, days, months, weekdays)

    follows_real_time = minutes[0][0] == "*" or hours[0][0] == "*"
    expected = scan(zone, middle, matches, follows_real_time)
    try:
        schedule = CronSchedule.parse(expression, zone)
    except ConfigError as error:
        assert "never fires" in error.message
        assert not expected
        return
    window = scanned_minutes(zone, middle)
    begin, end = window[0][0], window[-1][0]
    assert list(schedule.fires(begin - MINUTE, end)) == expected
    at = window[offset][0]
    assert schedule.due(begin - MINUTE, at) == max((fire for fire in expected if fire <= at), default=None)
    assert schedule.due(at, end) == max((fire for fire in expected if fire > at), default=None)
    later = [fire for fire in expected if fire > at]
    if later:
        assert schedule.next_fire(at) == later[0]
        assert schedule.next_fire(later[0] - timedelta(microseconds=1)) == later[0]


def test_the_scan_has_gaps_and_folds_to_find() -> None:
    """Every transition listed is one: otherwise the comparison would compare quiet days."""
    kinds = Counter[str]()
    for zone, middle in TRANSITIONS:
        offsets = [aware.utcoffset() for _, aware in scanned_minutes(zone, middle)]
        for before, after in pairwise(offsets):
            if before != after:
                kinds["gap" if before < after else "fold"] += 1
    assert kinds["gap"] >= 8
    assert kinds["fold"] >= 6


@settings(BOUNDED, max_examples=150)
@given(days=fields(1, 31), months=fields(1, 12), weekdays=WEEKDAYS, start=st.dates(date(1999, 1, 1), date(2101, 1, 1)))
def test_same_as_a_scan_of_every_day(days: Field, months: Field, weekdays: Field, start: date) -> None:
    begin = datetime(start.year, start.month, start.day, tzinfo=UTC)
    noons = [begin + timedelta(days=n, hours=12) for n in range(400)]
    expected = [noon for noon in noons if day_matches(noon, days, months, weekdays)]
    try:
        schedule = CronSchedule.parse(f"0 12 {days[0]} {months[0]} {weekdays[0]}")
    except ConfigError:
        assert not expected
        return
    assert list(schedule.fires(begin, noons[-1])) == expected


# ---- due ------------------------------------------------------------------------------------------------------------


def test_due_is_the_latest_missed_occurrence() -> None:
    schedule = CronSchedule.parse("0 2 * * *", ROME)
    assert schedule.due(local("2026-06-01 03:00", ROME), local("2026-06-05 01:00", ROME)) == local(
        "2026-06-04 02:00", ROME
    )
    assert schedule.due(local("2026-06-01 02:00", ROME), local("2026-06-01 23:00", ROME)) is None
    assert schedule.due(local("2026-06-01 01:59", ROME), local("2026-06-01 02:00", ROME)) == local(
        "2026-06-01 02:00", ROME
    )


def test_due_is_nothing_when_the_clock_was_set_back() -> None:
    schedule = CronSchedule.parse("* * * * *")
    now = local("2026-06-01 03:00", "UTC")
    assert schedule.due(now + timedelta(days=400), now) is None
    assert schedule.due(now, now) is None


def test_due_after_thirty_years_looks_at_one_month(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = count_months(monkeypatch)
    schedule = CronSchedule.parse("* * * * *", NEW_YORK)
    looked.clear()
    now = local("2026-06-01 03:00:30", "UTC")
    assert schedule.due(now - timedelta(days=11_000), now) == now.replace(second=0)
    assert schedule.due(datetime.min.replace(tzinfo=UTC), now) == now.replace(second=0)
    assert looked.total() == 2


def test_naive_and_absurd_datetimes_are_refused() -> None:
    schedule = CronSchedule.parse("0 2 * * *")
    now = local("2026-06-01 03:00", "UTC")
    for act in (
        lambda: schedule.next_fire(datetime(2026, 1, 1)),
        lambda: schedule.due(datetime(2026, 1, 1), now),
        lambda: schedule.due(now, datetime(2026, 1, 2)),
        lambda: schedule.next_fire(datetime.max.replace(tzinfo=UTC)),
        lambda: schedule.next_fire(datetime.min.replace(tzinfo=UTC)),
    ):
        with pytest.raises(ValueError, match=r"aware datetimes|searched from"):
            act()


# ---- refusals and bounded work --------------------------------------------------------------------------------------

REFUSED = [
    "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 8", "0 0 * *", "*/0 * * * *",
    "5-1 * * * *", "5-5/0 * * * *", "5/0 * * * *", "0 0 1-40 * *", "0 0 * * sat-mon", "0 0 * nov-feb *", "0 0 * * mon#6", "0 0 * * mon#0", "1-99999999 * * * *",
    "0-59/99999999 * * * *", "", "   ", "0 0 30 2 *", "0 0 31 4 *", "0 0 31 2,4,6,9,11 *", "0 0 */31 * fri#2",
    "R * * * *", "R(0-9) * * * *", "H * * * *", "0 H(1-3) * * *", "* * * * * *", "* * * * * * *", "@daily", "@foo",
    "0 0 15W * *", "0 0 L-3 * *", "0 0 * * L", "0 0 * * Lfri", "0 0 L2 * *", "L * * * *", "0 0 * * fri#2,mon",
    "0 0 * * fri,fri#2", "0 0 * * *,fri#2", "0 0 ?,3 * *", "? * * * *", "0 0 * mon *", "0 0 * * jan", "0 0 1,, * *",
    ", * * * *", "-1 * * * *", "1- * * * *", "** * * * *", "*/ * * * *", "1.5 * * * *", "٣ * * * *", "x" * 5_000,
    "1," * 5_000 + "1 * * * *", "\x00 * * * *",
]  # fmt: skip


@pytest.mark.parametrize("expression", REFUSED, ids=lambda e: ascii(e[:30]))
def test_refused(expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = count_months(monkeypatch)
    with pytest.raises(ConfigError) as caught:
        CronSchedule.parse(expression)
    assert caught.value.code == "config.invalid"
    assert caught.value.hint is not None
    assert "0 2 * * *" in caught.value.hint
    assert len(caught.value.message) < 500
    assert looked.total() <= 28  # the shapes that a month can have


def test_a_time_that_the_clocks_always_jump_over_is_refused() -> None:
    with pytest.raises(ConfigError, match="jump over every time"):
        CronSchedule.parse("*/30 2 * 3 L7", ROME)
    assert CronSchedule.parse("*/30 2 * 3 L7", "UTC").follows_real_time
    made_up = CronSchedule.parse("30 2 * 3 L7", ROME).next_fire(local("2026-01-01 00:00", "UTC"))
    assert made_up == local("2026-03-29 01:00", "UTC")


@pytest.mark.parametrize("zone", ["Mars/Base", "", "../etc/passwd", "/etc/localtime", "Europe", "\x00", "x" * 5_000])
def test_unknown_zone(zone: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CronSchedule.parse("0 2 * * *", zone)
    assert caught.value.code == "config.invalid"
    assert caught.value.hint is not None
    assert "Europe/Rome" in caught.value.hint
    assert len(caught.value.message) < 500


def count_months(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the months that are laid out: all work of a search is in them."""
    looked = Counter[str]()
    original = cron_fires.Calendar.days_of_shape

    def counted(self: cron_fires.Calendar, *args: Any, **kwargs: Any) -> Iterator[int]:
        looked["months"] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(cron_fires.Calendar, "days_of_shape", counted)
    return looked


def test_ten_thousand_expressions_stay_within_a_count_of_months(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = count_months(monkeypatch)
    dice = random.Random(4711)
    choices = [
        ["*", "0", "*/7", "1-50/3", "15,45", "59", "60", "0-59"],
        ["*", "2", "*/5", "0-6", "23", "24", "1,2,3"],
        ["*", "1", "29", "30", "31", "*/31", "*/29", "L", "32", "10-20", "1-31"],
        ["*", "2", "4", "2,4,6,9,11", "*/12", "jan-mar", "12"],
        ["*", "0", "7", "*/7", "*/5", "5-7", "fri#2", "mon#5", "L3", "8", "2-1"],
    ]
    zones = ["UTC", NEW_YORK, ROME, LORD_HOWE, SANTIAGO, APIA]
    now = local("2090-06-15 12:34:56", "UTC")
    accepted = refused = most = 0
    for _ in range(10_000):
        expression, zone = " ".join(dice.choice(part) for part in choices), dice.choice(zones)
        looked.clear()
        try:
            schedule = CronSchedule.parse(expression, zone)
        except ConfigError:
            refused += 1
            continue
        finally:
            assert looked.total() <= 28 + 41 * 12 + 41 * 3
        accepted += 1
        looked.clear()
        fire = schedule.next_fire(now)
        most = max(most, looked.total())
        assert fire > now
        looked.clear()
        assert schedule.due(now, fire) == fire
        assert looked.total() <= 2
    assert accepted > 3_000
    assert refused > 1_000
    # 41 years of months, and a month twice where a year is cut by clock changes.
    assert 38 <= most <= 41 * (12 + 6)


def test_arbitrary_text_is_refused_or_fires() -> None:
    dice = random.Random(1970)
    alphabet = "0123456789*/,-#?LlRrHhW monfrijan@.\t\x00é"
    now = local("2026-06-15 12:34", "UTC")
    outcomes = Counter[str]()
    for _ in range(2_000):
        parts = ["".join(dice.choices(alphabet, k=dice.randint(1, 4))) for _ in range(dice.randint(0, 2))]
        stars = [dice.choice(["*", "1", "*/2", "1-5"]) for _ in range(5 - len(parts))]
        words = parts + stars
        dice.shuffle(words)
        try:
            schedule = CronSchedule.parse(" ".join(words))
        except ConfigError as error:
            outcomes[error.code] += 1
        else:
            outcomes["fires"] += schedule.next_fire(now) > now
    assert set(outcomes) == {"config.invalid", "fires"}
    assert outcomes.total() == 2_000


# ---- the value and the jitter ---------------------------------------------------------------------------------------


def test_a_schedule_is_a_value() -> None:
    schedule = CronSchedule.parse("  0  2 * * MON ", ROME)
    assert schedule == CronSchedule.parse("0 2 * * mon", ROME)
    assert schedule != CronSchedule.parse("0 2 * * mon", CAIRO)
    assert len({schedule, CronSchedule.parse("0 2 * * mon", ROME)}) == 1
    assert (schedule.expression, schedule.zone) == ("0 2 * * mon", ROME)


def test_jitter_is_the_same_at_every_start() -> None:
    assert jitter_seconds("agent-1", "schedule-1", 600) == jitter_seconds("agent-1", "schedule-1", 600) == JITTER
    assert jitter_seconds("a", "bc", 2**40) != jitter_seconds("ab", "c", 2**40)
    assert [jitter_seconds("a", "b", window) for window in (1, 0, -5)] == [0, 0, 0]


JITTER = 502


@pytest.mark.parametrize("window", [10, 60, 600])
def test_jitter_spreads_a_fleet_evenly(window: int) -> None:
    """χ² over ten bins, 1,000 agents, nine degrees of freedom: p > 0.01 below 21.67."""
    offsets = [jitter_seconds(f"agent-{n}", "nightly", window) for n in range(1_000)]
    assert all(0 <= offset < window for offset in offsets)
    bins = Counter(offset * 10 // window for offset in offsets)
    assert sum((bins[n] - 100) ** 2 / 100 for n in range(10)) < 21.67


def test_jitter_spreads_the_schedules_of_one_agent() -> None:
    pairs = list(product(range(20), range(20)))
    assert len({jitter_seconds(f"agent-{a}", f"schedule-{s}", 2**40) for a, s in pairs}) == len(pairs)
