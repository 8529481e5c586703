"""Deadlines share one budget; delays between attempts are random within growing bounds."""

from __future__ import annotations

import random
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from hfagent.foundation.clock import SYSTEM_CLOCK, Deadline
from hfagent.foundation.retry import Backoff


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 50.0

    def now(self) -> datetime:
        return datetime(2024, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds


def test_the_system_clock_knows_its_zone() -> None:
    assert SYSTEM_CLOCK.now().utcoffset() == UTC.utcoffset(None)
    assert SYSTEM_CLOCK.monotonic() <= SYSTEM_CLOCK.monotonic()


def test_a_deadline_runs_out_once() -> None:
    clock = FakeClock()
    deadline = Deadline(10, clock=clock)
    assert (deadline.remaining(), deadline.expired(), deadline.bounded(3), deadline.bounded(30)) == (10, False, 3, 10)
    clock.seconds += 9
    assert (deadline.remaining(), deadline.expired(), deadline.bounded(3)) == (1, False, 1)
    clock.seconds += 5
    assert (deadline.remaining(), deadline.expired(), deadline.bounded(3)) == (0, True, 0)
    assert deadline.seconds == 10


def test_no_limit() -> None:
    deadline = Deadline(None)
    assert (deadline.remaining(), deadline.expired(), deadline.bounded(7), deadline.seconds) == (None, False, 7, None)


def test_zero_seconds_are_over_at_once() -> None:
    assert Deadline(0, clock=FakeClock()).expired()


@given(st.floats(0.01, 10), st.floats(0.01, 100), st.integers(0, 2**32), st.integers(1, 60))
def test_delays_stay_in_their_bounds(base: float, cap: float, seed: int, attempts: int) -> None:
    backoff = Backoff(base=base, cap=cap, rng=random.Random(seed))
    for attempt in range(attempts):
        assert 0 <= backoff.next() <= min(cap, base * 2**attempt)
    assert backoff.attempt == attempts
    backoff.reset()
    assert 0 <= backoff.next() <= min(cap, base)


def test_full_jitter_spreads_waiters() -> None:
    delays = [Backoff(base=1, cap=1, rng=random.Random(seed)).next() for seed in range(200)]
    assert min(delays) < 0.1 and max(delays) > 0.9


def test_a_very_long_outage_does_not_overflow() -> None:
    backoff = Backoff()
    backoff.attempt = 10**6
    assert 0 <= backoff.next() <= 60
