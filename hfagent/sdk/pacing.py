"""How fast a pool may reconnect after trouble: not all at once, not in step with other agents.

A server that comes back after a restart must not meet all its former connections in the same instant. For ten seconds
after the last sign of trouble, attempts start at a rate of at most ten in any 100 ms, each delayed by a random part of
100 ms (full jitter). Without trouble nothing is delayed.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from typing import Final

from hfagent.foundation.clock import Clock, Deadline

__all__ = ["Pacer"]

BURST: Final = 10
WINDOW_S: Final = 0.1
CALM_AFTER_S: Final = 10.0


class Pacer:
    """One pool's brake."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()  # guards everything below
        self._troubled_until = float("-inf")
        self._starts: deque[float] = deque(maxlen=BURST)

    def trouble(self) -> None:
        """Connections were lost, or connecting failed."""
        with self._lock:
            self._troubled_until = self._clock.monotonic() + CALM_AFTER_S

    def wait(self, deadline: Deadline, stop: threading.Event) -> None:
        """Wait for the turn to connect; no longer than the deadline, and not after `stop` is set."""
        if not self.troubled:
            return
        delay = self._rng.uniform(0, WINDOW_S)
        while not stop.wait(deadline.bounded(delay)) and not deadline.expired():
            delay = self.turn()
            if delay <= 0:
                return

    @property
    def troubled(self) -> bool:
        """Whether connections were lost a moment ago."""
        with self._lock:
            return self._clock.monotonic() < self._troubled_until

    def turn(self) -> float:
        """Take a turn and return 0, or return the seconds until the next one may be free."""
        with self._lock:
            now = self._clock.monotonic()
            if len(self._starts) == BURST and now - self._starts[0] < WINDOW_S:
                return self._starts[0] + WINDOW_S - now
            self._starts.append(now)
            return 0.0
