"""Waiting between attempts: exponential with full jitter, so that many waiters do not come back together."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

__all__ = ["Backoff"]


@dataclass
class Backoff:
    """Delays in seconds: `random(0, min(cap, base * 2**attempt))`. `reset()` after a success.

    The generator is seedable for tests; it decides no secret, so `random` is enough.
    """

    base: float = 0.5
    cap: float = 60.0
    rng: random.Random = field(default_factory=random.Random)
    attempt: int = 0

    def next(self) -> float:
        """Return the next delay and count the attempt."""
        delay = self.rng.uniform(0, min(self.cap, self.base * 2 ** min(self.attempt, 32)))
        self.attempt += 1
        return delay

    def reset(self) -> None:
        """Begin anew: the next delay is the shortest."""
        self.attempt = 0
