"""Time as a dependency, so that tests move it instead of sleeping."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "Deadline", "SystemClock"]


class Clock(Protocol):
    """Where code asks for the time."""

    def now(self) -> datetime:
        """Return the wall clock as an aware UTC datetime."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


SYSTEM_CLOCK = SystemClock()


class Deadline:
    """A point on the monotonic clock. `None` seconds means no limit.

    Passed down instead of a timeout, so that every step of a request shares one budget.
    """

    __slots__ = ("_at", "_clock", "seconds")

    def __init__(self, seconds: float | None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.seconds = seconds
        self._clock = clock
        self._at = None if seconds is None else clock.monotonic() + seconds

    def remaining(self) -> float | None:
        """Seconds left (never negative), or None without a limit."""
        return None if self._at is None else max(0.0, self._at - self._clock.monotonic())

    def expired(self) -> bool:
        """Tell whether the point has passed."""
        return self._at is not None and self._clock.monotonic() >= self._at

    def bounded(self, seconds: float) -> float:
        """Return `seconds`, or what is left when that is less."""
        left = self.remaining()
        return seconds if left is None else min(seconds, left)
