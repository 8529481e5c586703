"""The calendar under a cron schedule: which minutes of a wall clock match, and what a zone's wall clock does meanwhile.

Two halves that do not know each other. `Calendar` is the five fields as sets: it finds the first or last matching minute
of a stretch of wall time, month by month, with no idea of zones. `stretches` cuts a year of a zone into pieces of one
UTC offset, so that inside a piece wall time and real time run in step. `services/cron.py` puts the two together.

Not a parser, and not a clock: nothing here reads the time. All datetimes here are naive, either UTC ("instant") or wall time.

Architecture Invariant: a search looks at each month between its two ends at most once and never at single minutes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

__all__ = ["FIRST_YEAR", "LAST_WEEK", "LAST_YEAR", "Calendar", "Stretch", "stretches"]

FIRST_YEAR: Final = 1900
LAST_YEAR: Final = 9900
"""The years in which schedules are searched: room on both sides for every UTC offset and for the longest wait."""

_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)
_LOOKBACK: Final = timedelta(days=2)
"""Longer than any clock was ever set back: a repeated hour that began last year is still known in this one."""

_MONTH_LENGTHS: Final = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
LAST_WEEK: Final = -1


@dataclass(frozen=True, slots=True)
class Calendar:
    """The minutes of a wall clock that an expression names. Weekdays count from Sunday = 0, as cron does.

    `weekdays` are the weekdays that match in every week; `nth_weekdays` are (weekday, week of the month), with
    `LAST_WEEK` for the last one. `either_day`: a day matches by its number or its weekday, not only by both.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    last_day: bool
    months: frozenset[int]
    weekdays: frozenset[int]
    nth_weekdays: frozenset[tuple[int, int]]
    either_day: bool

    def ever_matches(self) -> bool:
        """Whether any date matches. Every month length meets every weekday at some time: 28 shapes say it all."""
        lengths = {_MONTH_LENGTHS[month] for month in self.months}
        if 2 in self.months:
            lengths.add(28)
        return any(True for length in lengths for first in range(7) for _ in self.days_of_shape(length, first))

    def first_match(self, low: datetime, high: datetime) -> datetime | None:
        """The first matching minute in [low, high)."""
        low = _minute(low + timedelta(minutes=1) - _MICROSECOND)
        earliest = self._time_from(low.hour, low.minute)
        for year, month in _months(low, high):
            if month not in self.months:
                continue
            begin = low.day if (year, month) == (low.year, low.month) else 1
            for day in self._days_of(year, month, begin=begin):
                midnight = _midnight(year, month, day)
                at = earliest if midnight <= low else time(self.hours[0], self.minutes[0])
                if at is None:
                    continue
                found = datetime.combine(midnight, at)
                return found if found < high else None
        return None

    def last_match(self, low: datetime, high: datetime) -> datetime | None:
        """The last matching minute in [low, high)."""
        top = _minute(high - _MICROSECOND)
        latest = self._time_until(top.hour, top.minute)
        for year, month in reversed(list(_months(low, high))):
            if month not in self.months:
                continue
            for day in self._days_of(year, month, backwards=True):
                midnight = _midnight(year, month, day)
                if midnight > top:
                    continue
                at = latest if midnight + _DAY > top else time(self.hours[-1], self.minutes[-1])
                if at is None:
                    continue
                found = datetime.combine(midnight, at)
                return found if found >= low else None
        return None

    def days_of_shape(
        self, length: int, first_weekday: int, *, begin: int = 1, backwards: bool = False
    ) -> Iterator[int]:
        """The matching days, from `begin`, of a month of `length` days that starts on `first_weekday` (Sunday = 0)."""
        days = range(begin, length + 1)
        for day in reversed(days) if backwards else days:
            weekday = (first_weekday + day - 1) % 7
            by_number = day in self.days or (self.last_day and day == length)
            by_weekday = (
                weekday in self.weekdays
                or (weekday, (day + 6) // 7) in self.nth_weekdays
                or (day + 7 > length and (weekday, LAST_WEEK) in self.nth_weekdays)
            )
            if (by_number or by_weekday) if self.either_day else (by_number and by_weekday):
                yield day

    def _days_of(self, year: int, month: int, *, begin: int = 1, backwards: bool = False) -> Iterator[int]:
        first, length = monthrange(year, month)
        return self.days_of_shape(length, (first + 1) % 7, begin=begin, backwards=backwards)

    def _time_from(self, hour: int, minute: int) -> time | None:
        index = bisect_left(self.hours, hour)
        if index < len(self.hours) and self.hours[index] == hour:
            within = bisect_left(self.minutes, minute)
            if within < len(self.minutes):
                return time(hour, self.minutes[within])
            index += 1
        return time(self.hours[index], self.minutes[0]) if index < len(self.hours) else None

    def _time_until(self, hour: int, minute: int) -> time | None:
        index = bisect_right(self.hours, hour) - 1
        if index >= 0 and self.hours[index] == hour:
            within = bisect_right(self.minutes, minute) - 1
            if within >= 0:
                return time(hour, self.minutes[within])
            index -= 1
        return time(self.hours[index], self.minutes[-1]) if index >= 0 else None


@dataclass(frozen=True, slots=True)
class Stretch:
    """The instants [start, end) with one UTC offset.

    `reached` is the latest wall time shown before `start`. Behind it, wall times up to `first_wall` were jumped over;
    before it, wall times of this stretch are shown for the second time.
    """

    start: datetime
    end: datetime
    offset: timedelta
    reached: datetime

    @property
    def first_wall(self) -> datetime:
        """The wall time at `start`."""
        return self.start + self.offset

    @property
    def skips(self) -> bool:
        """Whether the clock jumped forward to get here."""
        return self.reached < self.first_wall


@lru_cache(maxsize=1024)
def stretches(zone: ZoneInfo, year: int) -> tuple[Stretch, ...]:
    """A UTC year of a zone in pieces of one offset, in order and without holes.

    `zoneinfo` does not tell its transitions, so the offset is read day by day and a change is narrowed to the second.
    """
    begin, end = _midnight(year, 1, 1), _midnight(year + 1, 1, 1)
    start = begin - _LOOKBACK
    offset = _offset(zone, start)
    reached = start + offset
    pieces: list[Stretch] = []
    day = start
    while day < end:
        day += _DAY
        changed = _offset(zone, day)
        if changed != offset:
            transition = _transition(zone, day - _DAY, day, offset)
            pieces.append(Stretch(start, transition, offset, reached))
            reached = max(reached, transition + offset)
            start, offset = transition, changed
    pieces.append(Stretch(start, end, offset, reached))
    return tuple(_cut(piece, begin) for piece in pieces if max(piece.start, begin) < piece.end)


def _cut(piece: Stretch, begin: datetime) -> Stretch:
    if piece.start >= begin:
        return piece
    return Stretch(begin, piece.end, piece.offset, max(piece.reached, begin + piece.offset))


def _transition(zone: ZoneInfo, low: datetime, high: datetime, before: timedelta) -> datetime:
    """The first second in (low, high] that no longer has the offset `before`."""
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if _offset(zone, middle) == before:
            low = middle
        else:
            high = middle
    return high


def _offset(zone: ZoneInfo, instant: datetime) -> timedelta:
    offset = instant.replace(tzinfo=UTC).astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _months(low: datetime, high: datetime) -> Iterator[tuple[int, int]]:
    """The months that [low, high) touches."""
    for index in range(low.year * 12 + low.month - 1, high.year * 12 + high.month):
        yield index // 12, index % 12 + 1


def _midnight(year: int, month: int, day: int) -> datetime:
    return datetime.combine(date(year, month, day), time.min)


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)
