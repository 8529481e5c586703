"""How watermarks compare: exact texts in the source's notation, ordered as the source orders them.

Numbers as decimals of any length, times and dates as whole nanoseconds in any calendar year, text by its bytes. Nothing goes
through a float or a coarser clock. This compares; it does not make bounds: those are the source's own texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from hfagent.foundation.errors import UserError
from hfagent.sdk.incremental import WatermarkClass

__all__ = ["compare_watermarks"]

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,6})?", re.ASCII)
_MOMENT = re.compile(
    r"(?P<year>[+-]?\d{1,9})-(?P<month>\d{1,2})-(?P<day>\d{1,2})"
    r"(?:[ T](?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.(?P<fraction>\d{1,9}))?)?)?"
    r" ?(?P<zone>Z|UTC|[+-]\d{2}(?::?\d{2}(?::?\d{2})?)?)?"
    r"(?P<bc> BC)?",
    re.ASCII,
)
_DAYS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def compare_watermarks(watermark_class: WatermarkClass, a: str, b: str) -> int:
    """Return -1, 0 or 1: whether `a` lies below, at or above `b`.

    Notations may differ (`T` or a blank, `Z`, `+00` or `+00:00`, any number of digits of the second); a time without a zone is
    taken for UTC. Raises `UserError` `incremental.no_watermark` for what has no place in the order: infinity, NaN, a zero
    date, text of another kind, and the class `other`.
    """
    key = _KEYS.get(watermark_class)
    if key is None:
        raise UserError(
            f"watermarks of the class {watermark_class!r} have no order to rely on",
            code="incremental.no_watermark",
            hint="choose a column of times, dates, numbers or text, or read the stream in full",
        )
    left, right = key(a), key(b)
    return int(left > right) - int(left < right)


def _number(text: str) -> Decimal:
    if not _NUMBER.fullmatch(text.strip()):
        raise _unordered("number", text)
    return Decimal(text.strip())


def _moment(text: str) -> int:
    """Nanoseconds since 1970 in UTC; a date counts from its midnight."""
    match = _MOMENT.fullmatch(text.strip())
    if match is None:
        raise _unordered("time", text)
    year = int(match["year"])
    if match["bc"]:
        year = 1 - year
    month, day = int(match["month"]), int(match["day"])
    hour, minute, second = (int(match[part] or 0) for part in ("hour", "minute", "second"))
    if not _exists(year, month, day) or hour > 24 or minute > 59 or second > 60:
        raise _unordered("time", text)
    seconds = _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - _offset(match["zone"])
    return seconds * 10**9 + int((match["fraction"] or "").ljust(9, "0"))


def _exists(year: int, month: int, day: int) -> bool:
    if not 1 <= month <= 12 or not 1 <= day <= _DAYS[month - 1]:
        return False
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return leap or (month, day) != (2, 29)


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01, proleptic Gregorian, any year."""
    year -= month <= 2  # years are counted from March: leap days fall at their end
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + day_of_year - 719468


def _offset(zone: str | None) -> int:
    """Seconds east of UTC."""
    if zone is None or zone in ("Z", "UTC"):
        return 0
    digits = zone[1:].replace(":", "").ljust(6, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + int(digits[4:])
    return -seconds if zone[0] == "-" else seconds


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _unordered(kind: str, text: str) -> UserError:
    return UserError(
        f"the watermark {text[:80]!r} is not a finite {kind}, so it has no place in the order",
        code="incremental.no_watermark",
        hint="correct or remove that value in the source, choose another watermark column, or read the stream in full",
    )


_KEYS: Final[dict[str, Callable[[str], Any]]] = {
    "time": _moment,
    "date": _moment,
    "number": _number,
    "text": _bytes,
}
