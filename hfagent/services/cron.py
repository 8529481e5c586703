"""Cron expressions: five fields, checked before they are stored, and the instants at which they fire.

`croniter` reads the fields. The stepping is ours, because croniter fires a fixed time twice when the clocks go back and
takes `*/2` in a day field for a restriction. The rules are those of Vixie cron:

* A time that the clocks jump over fires once, at the first instant after the jump.
* A time that the clocks show twice fires once, the first time.
* A schedule whose minute or hour field begins with `*` follows real time instead: nothing is made up for, nothing dropped.
* Day of month and day of week: either is enough when both are restricted. A field that begins with `*` is not restricted,
  so `*/2` narrows the other one.

Not a scheduler: nothing here keeps the time, waits or remembers. The first `parse` imports croniter, which takes some
milliseconds: call it in a lane.

Architecture Invariant: an occurrence is a UTC instant, and `next_fire`, `fires` and `due` name the same set of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import islice
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from hfagent.foundation.errors import ConfigError
from hfagent.services.cron_fires import FIRST_YEAR, LAST_WEEK, LAST_YEAR, Calendar, Stretch, stretches

__all__ = ["CronSchedule", "jitter_seconds"]

_FIELDS: Final = re.compile(r"\s*\S+(\s+\S+){4}\s*")
_RANDOM: Final = re.compile(r"(^|[\s,])[rh](\W|$)", re.IGNORECASE)
_LONGEST: Final = 200

_FIELD_NAMES: Final = ("minute", "hour", "day of month", "month", "day of week")
_RANGES: Final = (range(60), range(24), range(1, 32), range(1, 13), range(7))
_ITEM: Final = re.compile(
    r"(?:\*|(?P<low>[0-9]{1,2}|[a-z]{3})(?:-(?P<high>[0-9]{1,2}|[a-z]{3}))?)(?:/(?P<step>[0-9]{1,4}))?"
)
_SPECIAL_ITEMS: Final = {2: re.compile(r"l|\?"), 4: re.compile(r"\?|(?:[0-7]|[a-z]{3})#[0-9]|l[0-7]")}
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NUMBERS: Final = {
    3: {name: number for number, name in enumerate(_MONTHS, start=1)},
    4: {name: number for number, name in enumerate(_WEEKDAYS)},
}
_MICROSECOND: Final = timedelta(microseconds=1)
_STEADY: Final = datetime(2038, 1, 1, tzinfo=UTC)
"""Beyond the tables of nearly all zones, where one rule holds for every year."""
_LONGEST_WAIT: Final = timedelta(days=366 * 41)
"""29 February on one weekday: every 28 years, 40 around a century that is no leap year."""


@dataclass(frozen=True, slots=True)
class CronSchedule:
    """A five-field cron expression in a time zone. Made by `parse`; small, immutable, safe to share between threads.

    Instants are aware datetimes: any zone goes in, UTC comes out. A naive datetime raises `ValueError`, and so does a
    search that starts outside the years 1900 to 9900.
    """

    expression: str
    zone: str
    follows_real_time: bool
    """Minute or hour begins with `*`: clock changes neither add nor drop an occurrence."""
    _calendar: Calendar = field(repr=False)
    _zone: ZoneInfo = field(repr=False, compare=False)

    @classmethod
    def parse(cls, expression: str, zone: str = "UTC") -> CronSchedule:
        """Read an expression; `zone` is an IANA name.

        Beside plain fields: names (`mon`, `jan`), `L` as the last day of the month, `fri#2` as the second and `L5` as
        the last Friday. `ConfigError` for everything else, for ranges that run backwards, for an expression that no date
        can meet and for an unknown zone.
        """
        calendar, fields = _read(expression)
        schedule = cls(
            expression=" ".join(fields),
            zone=zone,
            follows_real_time=fields[0].startswith("*") or fields[1].startswith("*"),
            _calendar=calendar,
            _zone=_zone(zone),
        )
        if schedule.follows_real_time and len(calendar.hours) < 24:
            # `*/30 2 * 3 L7` in Rome: the dates exist, but on each of them the clocks jump over the hour.
            schedule.next_fire(_STEADY)
        return schedule

    def next_fire(self, after: datetime) -> datetime:
        """The first occurrence strictly after `after`.

        `ConfigError` if there is none in 41 years: the zone's rules changed since `parse` looked at them.
        """
        instant = _instant(after)
        found = self._first(instant, instant + _LONGEST_WAIT)
        if found is None:
            raise _unusable(self.expression, f"the clocks of {self.zone} jump over every time that it names")
        return found.replace(tzinfo=UTC)

    def fires(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Every occurrence in (after, until], in order."""
        instant, end = _instant(after), _instant(until)
        while (found := self._first(instant, end)) is not None:
            yield found.replace(tzinfo=UTC)
            instant = found

    def upcoming(self, after: datetime, n: int) -> tuple[datetime, ...]:
        """The next `n` occurrences strictly after `after`."""
        return tuple(islice(self._endless(after), n))

    def due(self, last_looked: datetime, now: datetime) -> datetime | None:
        """The latest occurrence in (last_looked, now], or None; also None when the clock was set back behind `last_looked`.

        Searches backwards from `now`: its cost does not depend on how many occurrences were missed.
        """
        end = _instant(now)
        since = _utc(last_looked)
        found = self._last(since, end) if since < end else None
        return None if found is None else found.replace(tzinfo=UTC)

    def _endless(self, after: datetime) -> Iterator[datetime]:
        while True:
            after = self.next_fire(after)
            yield after

    def _first(self, after: datetime, until: datetime) -> datetime | None:
        for year in range(after.year, until.year + 1):
            for stretch in stretches(self._zone, year):
                if stretch.end <= after:
                    continue
                if stretch.start > after and self._makes_up(stretch):
                    return stretch.start if stretch.start <= until else None
                low = max(self._first_wall(stretch), after + _MICROSECOND + stretch.offset)
                wall = self._calendar.first_match(low, stretch.end + stretch.offset)
                if wall is not None:
                    found = wall - stretch.offset
                    return found if found <= until else None
        return None

    def _last(self, since: datetime, at: datetime) -> datetime | None:
        for year in range(at.year, max(since.year, FIRST_YEAR) - 1, -1):
            for stretch in reversed(stretches(self._zone, year)):
                if stretch.start > at:
                    continue
                if stretch.end <= since:
                    return None
                high = min(stretch.end, at + _MICROSECOND) + stretch.offset
                wall = self._calendar.last_match(self._first_wall(stretch), high)
                if wall is not None:
                    found = wall - stretch.offset
                    return found if found > since else None
                if self._makes_up(stretch):
                    return stretch.start if stretch.start > since else None
        return None

    def _makes_up(self, stretch: Stretch) -> bool:
        """Whether the start of the stretch stands in for a time that the clocks jumped over."""
        if self.follows_real_time or not stretch.skips:
            return False
        return self._calendar.first_match(stretch.reached, stretch.first_wall) is not None

    def _first_wall(self, stretch: Stretch) -> datetime:
        """The wall time from which the stretch counts: what was shown before is over, unless real time is followed."""
        return stretch.first_wall if self.follows_real_time else max(stretch.first_wall, stretch.reached)


def jitter_seconds(agent_id: str, schedule_id: str, window_s: int) -> int:
    """A whole number in [0, window_s) to start later by: the same at every start, spread evenly over a fleet.

    `window_s` below 1 means no jitter.
    """
    if window_s < 1:
        return 0
    agent = agent_id.encode()
    # The length keeps ("a", "bc") and ("ab", "c") apart.
    digest = blake2b(len(agent).to_bytes(8, "big") + agent + schedule_id.encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big") % window_s


def _read(expression: str) -> tuple[Calendar, list[str]]:
    from croniter import croniter

    fields = expression.lower().split() if len(expression) <= _LONGEST else []
    try:
        if len(fields) != len(_FIELD_NAMES):
            raise ValueError("expected five fields: minute, hour, day of month, month, day of week")
        if _RANDOM.search(expression):
            raise ValueError("R and H are not values: the time must be the same at every look")
        values, nth = croniter.expand(" ".join(_plain_field(index, text) for index, text in enumerate(fields)))
    except (ValueError, KeyError, IndexError, TypeError) as exc:  # croniter's own errors are ValueErrors
        reason = str(exc).removeprefix(f"[{' '.join(fields)}]").strip().removeprefix("is ") or "not understood"
        raise _unusable(expression, reason) from exc
    calendar = _calendar(fields, values, nth)
    if not calendar.ever_matches():
        raise _unusable(expression, "it never fires")
    return calendar, fields


def _plain_field(index: int, text: str) -> str:
    """The field as croniter understands it. Refuses what it reads as something else (`15W`) or turns around (`5-1`)."""
    special = _SPECIAL_ITEMS.get(index)
    items = text.split(",")
    plain = [item for item in items if special is None or not special.fullmatch(item)]
    if index == 4 and 0 < len(plain) < len(items):
        raise ValueError(f"{text!r} mixes plain weekdays with weekdays of one week of the month")
    return ",".join(_plain_item(index, item) if item in plain else item for item in items)


def _plain_item(index: int, item: str) -> str:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ValueError(f"{item!r} is not understood as {_FIELD_NAMES[index]}")
    if match["step"] is not None and int(match["step"]) == 0:
        raise ValueError(f"the step of {item!r} is zero")
    low, high = match["low"], match["high"]
    if low is None or high is None:
        return item
    numbers = _NUMBERS.get(index, {})
    first = numbers.get(low, int(low) if low.isdecimal() else None)
    last = 7 if index == 4 and high == "sun" else numbers.get(high, int(high) if high.isdecimal() else None)
    if first is None or last is None:
        raise ValueError(f"{item!r} is not understood as {_FIELD_NAMES[index]}")
    if first > last:
        raise ValueError(f"the range {item!r} of {_FIELD_NAMES[index]} runs backwards; write it as two, with a comma")
    # croniter takes a range from a number to itself for the whole field.
    return low if first == last or low == high else item


def _calendar(fields: list[str], values: list[list[Any]], nth: dict[int, set[Any]]) -> Calendar:
    def numbers(index: int) -> frozenset[int]:
        if "*" in values[index]:
            return frozenset(_RANGES[index])
        return frozenset(value for value in values[index] if isinstance(value, int))

    return Calendar(
        minutes=tuple(sorted(numbers(0))),
        hours=tuple(sorted(numbers(1))),
        days=numbers(2),
        last_day="l" in values[2],
        months=numbers(3),
        # croniter lists the weekdays of `fri#2` among the plain ones, too.
        weekdays=frozenset() if nth else numbers(4),
        nth_weekdays=frozenset((day, LAST_WEEK if n == "l" else int(n)) for day, ns in nth.items() for n in ns),
        either_day=not any(fields[index][0] in "*?" for index in (2, 4)),
    )


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        shown = name if len(name) <= _LONGEST else name[:_LONGEST] + "…"
        raise ConfigError(
            f"the schedule's time zone {shown!r} is not known on this machine",
            field="schedule_timezone",
            hint="give an IANA name, for example: Europe/Rome",
        ) from exc


def _instant(moment: datetime) -> datetime:
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise ValueError(f"schedules are searched from {FIRST_YEAR} to {LAST_YEAR}, not in {moment.year}")
    return _utc(moment)


def _utc(moment: datetime) -> datetime:
    """Naive UTC, in which the arithmetic is done."""
    if moment.tzinfo is None:
        raise ValueError("a schedule needs aware datetimes")
    return moment.astimezone(UTC).replace(tzinfo=None)


def _unusable(expression: str, reason: str) -> ConfigError:
    shown = expression if len(expression) <= _LONGEST else expression[:_LONGEST] + "…"
    return ConfigError(
        f"{shown!r} is not a usable cron expression: {reason}",
        field="schedule_cron",
        hint="for example: 0 2 * * * (daily at 02:00)",
    )
