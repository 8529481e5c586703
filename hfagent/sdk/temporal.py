"""Timestamps, dates, times of day and intervals as ISO 8601 text, a whole Arrow column at a time.

Part of the wire form (`sdk/wire.py`). Covers the full range of Arrow's integers: years that `datetime` cannot hold, and
24:00:00, which databases know and Python does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["durations", "iso_duration", "times"]

_MICROSECONDS_FROM_YEAR_0: Final = -62167219200_000_000  # 0000-01-01
_MICROSECONDS_TO_YEAR_9999: Final = 253402300800_000_000  # 10000-01-01, exclusive
_PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def times(array: pa.Array) -> list[Any]:
    """Timestamps, dates and times of day. Arrow prints years up to 32767; the rest is computed here."""
    import pyarrow as pa
    import pyarrow.compute as pc

    type_, zone = array.type, ""
    if pa.types.is_timestamp(type_) and type_.tz is not None:
        # The number of an instant is UTC already. Arrow's own printing of zoned values wraps years above 32767 around.
        array, zone = array.cast(pa.int64()).cast(pa.timestamp(type_.unit)), "Z"
    elif type_ == pa.date64():
        array = array.cast(pa.date32())
    text = array.cast(pa.string())
    if pc.any(pc.starts_with(text, "<"), min_count=0).as_py():
        numbers = array.cast(pa.int32() if array.type.bit_width == 32 else pa.int64()).to_pylist()
        pairs = zip(numbers, text.to_pylist(), strict=True)
        return [
            None if n is None else (_beyond(array.type, n) if t[0] == "<" else t.replace(" ", "T", 1)) + zone
            for n, t in pairs
        ]
    if pa.types.is_timestamp(type_):
        text = (
            pc.utf8_replace_slice(text, 10, 11, "T")
            if _four_digit_years(array)
            else pc.replace_substring(text, " ", "T", max_replacements=1)
        )
    return list((pc.binary_join_element_wise(text, zone, "") if zone else text).to_pylist())


def durations(array: pa.Array) -> list[Any]:
    """A column of exact durations."""
    import pyarrow as pa

    factor = 10**9 // _PER_SECOND[array.type.unit]
    ticks = array.cast(pa.int64()).to_pylist()
    return [None if n is None else iso_duration(0, 0, n * factor) for n in ticks]


def iso_duration(months: int, days: int, nanoseconds: int) -> str:
    """ISO 8601 with signed parts, as databases write it: months, days and time do not convert into one another."""
    date = (f"{months}M" if months else "") + (f"{days}D" if days else "")
    if not nanoseconds:
        return f"P{date}" if date else "PT0S"
    sign = "-" if nanoseconds < 0 else ""
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"P{date}T{sign}{seconds}{digits}S"


def _four_digit_years(array: pa.Array) -> bool:
    """Tell whether the blank between date and time is the eleventh character of every value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    extremes = pc.min_max(array.cast(pa.int64())).as_py()
    if extremes["min"] is None:
        return True
    scale = _PER_SECOND[array.type.unit]
    low, high = _MICROSECONDS_FROM_YEAR_0 * scale // 10**6, _MICROSECONDS_TO_YEAR_9999 * scale // 10**6
    return bool(low <= extremes["min"] and extremes["max"] < high)


def _beyond(type_: pa.DataType, number: int) -> str:
    """Print a date, time or timestamp that Arrow calls out of range (24:00:00 among them)."""
    import pyarrow as pa

    if pa.types.is_date(type_):
        return _date_text(number)
    per_second = _PER_SECOND[type_.unit]
    if pa.types.is_time(type_):
        return _clock_text(number, per_second)
    days, rest = divmod(number, 86400 * per_second)
    return f"{_date_text(days)}T{_clock_text(rest, per_second)}"


def _date_text(days: int) -> str:
    """Days since 1970-01-01 in the proleptic Gregorian calendar, any year (`datetime` ends at 9999)."""
    days += 719468  # from 0000-03-01: leap days fall at the end of the counted year
    era, day_of_era = divmod(days, 146097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    day, month = day_of_year - (153 * shifted + 2) // 5 + 1, shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (month <= 2)
    return f"{'-' if year < 0 else ''}{abs(year):04d}-{month:02d}-{day:02d}"


def _clock_text(ticks: int, per_second: int) -> str:
    sign, ticks = ("-", -ticks) if ticks < 0 else ("", ticks)
    seconds, fraction = divmod(ticks, per_second)
    digits = len(str(per_second)) - 1
    tail = f".{fraction:0{digits}d}" if digits else ""
    return f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{tail}"
