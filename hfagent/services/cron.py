"""Cron expressions: five fields, checked before they are stored. Blocking for some milliseconds: call it in a lane."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from hfagent.foundation.errors import ConfigError

__all__ = ["check_cron"]

_FIELDS: Final = re.compile(r"\s*\S+(\s+\S+){4}\s*")
_RANDOM: Final = re.compile(r"(^|[\s,])[rh](\W|$)", re.IGNORECASE)
_LONGEST: Final = 200
_YEARS: Final = 8
"""The longest gap of a sound expression: 29 February around a century that is no leap year."""


def check_cron(expression: str, now: datetime) -> None:
    """Raise `ConfigError` for anything but a five-field cron expression that fires at some time after `now`."""
    from croniter import CroniterBadCronError, CroniterBadDateError, croniter

    try:
        if len(expression) > _LONGEST or not _FIELDS.fullmatch(expression):
            raise ValueError("expected five fields: minute, hour, day of month, month, day of week")
        if _RANDOM.search(expression):
            raise ValueError("R is not a value: the time must be the same at every look")
        croniter(expression, now, max_years_between_matches=_YEARS).get_next()
    except CroniterBadDateError as exc:
        raise _unusable(expression, "it never fires") from exc
    except (CroniterBadCronError, ValueError, KeyError, IndexError, TypeError) as exc:
        reason = str(exc).removeprefix(f"[{expression}]").strip().removeprefix("is ") or "not understood"
        raise _unusable(expression, reason) from exc


def _unusable(expression: str, reason: str) -> ConfigError:
    shown = expression if len(expression) <= _LONGEST else expression[:_LONGEST] + "…"
    return ConfigError(
        f"{shown!r} is not a usable cron expression: {reason}",
        field="schedule_cron",
        hint="for example: 0 2 * * * (daily at 02:00)",
    )
