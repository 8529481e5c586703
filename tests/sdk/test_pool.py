"""The pool's contract: deadlines, order, condemnation of dead generations, cleanliness, ageing, the end."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, InternalError, SourceError, UserError
from hfagent.model.connector import PoolStats
from hfagent.sdk import pool as pool_module
from hfagent.sdk.config import ConnectorConfig, NetworkFields, PoolFields
from hfagent.sdk.connector import BaseConnector, Cancellable
from hfagent.sdk.pacing import BURST, WINDOW_S, Pacer
from hfagent.sdk.pool import Lease, Pool, PoolClosed, PoolSettings, means_dead

WAIT_S = 20.0
"""Bound of every wait for another thread; reached only when something is broken."""


class FakeClock:
    """Moves when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


class Calm(random.Random):
    """No jitter, so that ages are exact."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


@dataclass(eq=False)
class Session:
    """What stands for a driver's connection."""

    number: int
    alive: bool = True
    dirty: bool = False
    closed: int = 0
    aborted: int = 0
    unblock: threading.Event = field(default_factory=threading.Event)


class FakeConnector(BaseConnector[ConnectorConfig], Cancellable):
    """Counts what the pool does; every verb can be replaced by a test."""

    title = "Fake"

    def __init__(self) -> None:
        super().__init__(ConnectorConfig())
        self.sessions: list[Session] = []
        self.deadlines: list[float | None] = []
        self.pings: list[float] = []
        self.resets = 0
        self.cancelled: list[int] = []
        self.on_connect: Callable[[Deadline], None] = lambda deadline: None
        self.on_ping: Callable[[Session], bool] = lambda session: session.alive
        self.on_reset: Callable[[Session], bool] = lambda session: session.alive and not session.dirty
        self._lock = threading.Lock()

    def connect(self, deadline: Deadline) -> Session:
        with self._lock:
            self.deadlines.append(deadline.remaining())
        self.on_connect(deadline)
        with self._lock:
            session = Session(len(self.sessions))
            self.sessions.append(session)
        return session

    def is_alive(self, connection: Session, timeout: float) -> bool:
        self.pings.append(timeout)
        return self.on_ping(connection)

    def reset(self, connection: Session) -> bool:
        self.resets += 1
        return self.on_reset(connection)

    def close(self, connection: Session) -> None:
        connection.closed += 1

    def abort(self, connection: Session) -> None:
        connection.aborted += 1
        connection.unblock.set()

    def cancel(self, connection: Session) -> None:
        self.cancelled.append(connection.number)

    def map_error(self, error: BaseException) -> AgentError:
        if isinstance(error, ConnectionError):
            return SourceError("the connection was cut", code="net.reset")
        return super().map_error(error)

    def test(self, probe: Any) -> None: ...

    def read_schema(self, connection: Any, request: Any) -> Iterator[Any]:
        return iter(())

    @property
    def open(self) -> int:
        return sum(not (s.closed or s.aborted) for s in self.sessions)


@contextmanager
def make(**options: Any) -> Iterator[tuple[Pool, FakeConnector, FakeClock]]:
    connector, clock = FakeConnector(), FakeClock()
    pool = Pool(connector, PoolSettings(**options), clock=clock, rng=Calm())
    try:
        yield pool, connector, clock
    finally:
        pool.close()


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit, "the awaited state was not reached"
        time.sleep(0.002)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run `work`; the list gets its result or exception."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def joined(thread: threading.Thread, outcome: list[Any]) -> Any:
    thread.join(WAIT_S)
    assert outcome, "the thread did not end"
    return outcome[0]


# --- settings and counters ---


def test_settings_come_from_the_configuration() -> None:
    class Config(NetworkFields, PoolFields):
        pass

    assert PoolSettings.from_config(Config()) == PoolSettings()  # the defaults agree
    config = Config.parse({"pool_size": 2, "pool_timeout_s": 3, "connect_timeout_s": 4, "pool_pre_ping": False})
    assert PoolSettings.from_config(config) == PoolSettings(
        pool_size=2, pool_timeout=3, connect_timeout_s=4, pool_pre_ping=False
    )
    assert PoolSettings.from_config(ConnectorConfig()) == PoolSettings()


def test_stats_fit_the_model() -> None:
    with make() as (pool, _, _clock), pool.acquire():
        stats = PoolStats(connector_id="c1", name="sales", **pool.stats())
        assert (stats.size, stats.max_overflow, stats.open, stats.busy, stats.idle) == (5, 15, 1, 1, 0)
        assert (stats.opened, stats.checkouts, stats.waiting) == (1, 1, 0)


# --- lending and returning ---


def test_a_returned_connection_is_used_again() -> None:
    with make() as (pool, connector, _):
        for _ in range(5):
            with pool.acquire() as lease:
                assert lease.connection.number == 0
        assert (len(connector.sessions), connector.resets) == (1, 5)
        assert connector.pings == []  # recently used: no round trip


def test_the_last_returned_is_lent_first() -> None:
    with make() as (pool, _, _clock):
        first, second = pool.acquire(), pool.acquire()
        newest = second.connection
        first.release()
        second.release()
        with pool.acquire() as lease:
            assert lease.connection is newest


def test_release_can_be_repeated_and_a_returned_connection_is_out_of_reach() -> None:
    with make() as (pool, connector, _):
        lease = pool.acquire()
        lease.release()
        lease.release()
        lease.__exit__(None, None, None)
        assert pool.stats()["idle"] == 1
        with pytest.raises(InternalError, match="returned"):
            _ = lease.connection
        lease.abort()
        lease.cancel()
        assert (connector.sessions[0].aborted, connector.cancelled) == (0, [])


def test_a_dirty_session_is_not_lent_again() -> None:
    with make() as (pool, connector, _):
        with pool.acquire() as lease:
            lease.connection.dirty = True
        assert (pool.stats()["idle"], pool.stats()["discarded"], connector.open) == (0, 1, 0)
        connector.on_reset = lambda session: 1 / 0 > 1  # a driver that fails in reset
        with pool.acquire():
            pass
        assert (pool.stats()["idle"], pool.stats()["discarded"], connector.open) == (0, 2, 0)


@pytest.mark.parametrize(
    ("error", "reused"),
    [
        (UserError("only reading", code="guard.write_blocked"), True),
        (SourceError("no such table", code="model.not_found"), True),
        (SourceError("statement timeout", code="timeout.statement"), True),
        (Cancelled(), False),
        (SourceError("late", code="timeout.total"), False),
        (SourceError("silent", code="read.stalled"), False),
        (SourceError("token", code="auth.token_expired"), False),
        (ValueError("our bug"), False),
        (KeyboardInterrupt(), False),
        (GeneratorExit(), False),
    ],
)
def test_what_error_ends_a_session(error: BaseException, reused: bool) -> None:
    with make() as (pool, connector, _):
        with suppress(BaseException), pool.acquire():
            raise error
        assert (pool.stats()["idle"], connector.open) == ((1, 1) if reused else (0, 0))


def test_discard_closes_instead_of_returning() -> None:
    with make() as (pool, connector, _):
        with pool.acquire() as lease:
            lease.discard()
        assert (connector.sessions[0].closed, pool.stats()["idle"]) == (1, 0)


def test_a_connection_whose_token_was_cancelled_is_not_reused() -> None:
    with make() as (pool, connector, _):
        token = CancelToken()
        with pool.acquire(None, token) as lease, token.on_cancel(lease.cancel):
            token.cancel()
        assert (connector.cancelled, pool.stats()["idle"], connector.open) == ([0], 0, 0)


def test_abort_reaches_the_socket_of_a_blocked_call() -> None:
    with make() as (pool, connector, _):
        lease = pool.acquire()
        session = lease.connection
        thread, outcome = in_thread(lambda: session.unblock.wait(WAIT_S))
        lease.abort()
        assert joined(thread, outcome) is True
        lease.release()
        assert (session.aborted, pool.stats()["idle"], connector.open) == (1, 0, 0)


def test_a_reset_that_hangs_is_torn_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "RESET_TIMEOUT_S", 0.01)
    with make() as (pool, connector, _):
        connector.on_reset = lambda session: session.unblock.wait(WAIT_S)
        with pool.acquire() as lease:
            session = lease.connection
        assert session.aborted >= 1
        assert pool.stats()["idle"] == 0


def test_a_dropped_lease_is_taken_back_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with make(pool_size=1, max_overflow=0) as (pool, connector, _):
        lease = pool.acquire()
        assert pool.stats()["busy"] == 1  # a leak shows as busy for as long as it lasts
        del lease
        gc.collect()
        with pool.acquire(Deadline(WAIT_S)) as again:
            assert again.connection.number == 1
        assert "dropped without being returned" in caplog.text
        assert (pool.stats()["discarded"], connector.open) == (1, 1)


# --- deadlines ---


def test_connect_gets_the_deadline_and_its_own_limit() -> None:
    with make(connect_timeout_s=3) as (pool, connector, _):
        with pool.acquire(Deadline(1.0)), pool.acquire(Deadline(100)), pool.acquire():
            pass
        short, long, none = connector.deadlines
        assert short is not None and 0 < short <= 1
        assert long is not None and 1 < long <= 3
        assert none is not None and 1 < none <= 3


def test_a_driver_that_ignores_the_deadline_costs_a_slot_and_not_the_caller() -> None:
    release = threading.Event()
    with make(pool_size=1, max_overflow=1) as (pool, connector, clock):
        connector.on_connect = lambda deadline: void(release.wait(WAIT_S))
        for _ in range(2):
            with pytest.raises(SourceError) as caught:
                pool.acquire(Deadline(0.05))
            assert caught.value.code == "timeout.connect"
            clock.seconds += 2  # overdue: the next caller does not count on it
        assert (pool.stats()["timeouts"], connector.sessions) == (2, [])
        connector.on_connect = lambda deadline: None
        with pytest.raises(SourceError) as caught:  # both slots hang in the driver
            pool.acquire(Deadline(0.05))
        assert caught.value.code == "timeout.connect"
        release.set()
        until(lambda: pool.stats()["idle"] == 2)  # what came late is kept for the next
        with pool.acquire(Deadline(WAIT_S)):
            assert len(connector.sessions) == 2


def test_an_overdue_attempt_is_not_counted_on() -> None:
    release = threading.Event()
    connector = FakeConnector()
    calls = itertools.count()
    connector.on_connect = lambda deadline: void(next(calls) == 0 and release.wait(WAIT_S))
    pool = Pool(connector, PoolSettings(pool_size=1, max_overflow=1, pool_timeout=WAIT_S))
    with pytest.raises(SourceError):
        pool.acquire(Deadline(0.01))  # leaves an attempt behind that hangs in the driver
    with pool.acquire(Deadline(WAIT_S)) as lease:  # counts on it at first, then makes its own
        assert lease.connection.number == 0
    release.set()
    until(lambda: pool.stats()["idle"] == 2)
    pool.close()


def test_no_time_left_means_no_connect() -> None:
    with make(pool_size=1, max_overflow=0) as (pool, connector, _):
        with pytest.raises(SourceError) as caught:
            pool.acquire(Deadline(0))
        assert (caught.value.code, connector.deadlines) == ("timeout.total", [])
        with pool.acquire(), pytest.raises(SourceError) as caught:
            pool.acquire(Deadline(0))
        assert caught.value.code == "capacity.pool_exhausted"
        with pool.acquire(Deadline(0)):  # an idle one needs no time
            pass


def test_connect_errors_reach_the_caller_with_their_cause() -> None:
    with make() as (pool, connector, _):
        connector.on_connect = raising(SourceError("password rejected", code="auth.invalid_credentials"))
        with pytest.raises(SourceError) as caught:
            pool.acquire()
        assert caught.value.code == "auth.invalid_credentials"
        connector.on_connect = raising(ConnectionResetError("peer"))
        with pytest.raises(SourceError) as caught:
            pool.acquire()
        assert caught.value.code == "net.reset"
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert (pool.stats()["errors"], pool.stats()["open"]) == (2, 0)


def test_a_broken_error_table_does_not_hide_the_error(caplog: pytest.LogCaptureFixture) -> None:
    with make() as (pool, connector, _):
        connector.on_connect = raising(ValueError("odd"))
        connector.map_error = lambda error: error.no_such_attribute  # type: ignore
        with pytest.raises(InternalError, match="ValueError"):
            pool.acquire()
        assert "map_error failed" in caplog.text


# --- waiting ---


def test_exhaustion_ends_with_the_deadline_or_the_pool_timeout() -> None:
    with make(pool_size=1, max_overflow=1, pool_timeout=0.05) as (pool, _, clock), pool.acquire(), pool.acquire():
        with pytest.raises(SourceError) as caught:
            pool.acquire(Deadline(0.02))
        error = caught.value
        assert (error.code, error.retryable, error.retry_after) == ("capacity.pool_exhausted", True, 1.0)
        assert "all 2 connections of 'trial' are busy" in error.message
        assert error.hint is not None and "pool_size or max_overflow (now 1 and 1)" in error.hint
        thread, outcome = in_thread(pool.acquire)
        until(lambda: pool.stats()["waiting"] == 1)
        clock.seconds += 1
        assert joined(thread, outcome).code == "capacity.pool_exhausted"
        assert pool.stats()["timeouts"] == 2


def test_too_many_waiters_are_refused_at_once() -> None:
    with make(pool_size=1, max_overflow=0, max_waiting=2) as (pool, _, _clock):
        with pool.acquire():
            waiting = [in_thread(lambda: pool.acquire().release()) for _ in range(2)]
            until(lambda: pool.stats()["waiting"] == 2)
            with pytest.raises(SourceError, match="2 callers wait already") as caught:
                pool.acquire()
            assert caught.value.code == "capacity.pool_exhausted"
        assert [joined(*pair) for pair in waiting] == [None, None]


def test_200_waiters_on_5_connections_are_served_in_order() -> None:
    served: list[int] = []
    lock = threading.Lock()
    with make(pool_size=5, max_overflow=0, pool_timeout=WAIT_S) as (pool, connector, _):
        held = [pool.acquire() for _ in range(5)]

        def user(number: int) -> None:
            lease = pool.acquire(Deadline(WAIT_S))
            with lock:
                served.append(number)
                order.append(lease)

        order: list[Lease] = []
        threads = []
        for number in range(200):
            threads.append(in_thread(lambda number=number: user(number)))  # type: ignore[misc]
            until(lambda number=number: pool.stats()["waiting"] == number + 1)  # type: ignore[misc]
        # One at a time: the order in which the pool hands over is then the order in which the threads report.
        for count, lease in enumerate(held, start=1):
            lease.release()
            until(lambda count=count: len(served) == count)  # type: ignore[misc]
        for count in range(6, 201):
            order[count - 6].release()
            until(lambda count=count: len(served) == count)  # type: ignore[misc]
        for lease in order:
            lease.release()
        for pair in threads:
            joined(*pair)
        assert served == sorted(served)
        assert (len(connector.sessions), pool.stats()["timeouts"], pool.stats()["checkouts"]) == (5, 0, 205)


def test_a_newcomer_does_not_overtake() -> None:
    with make(pool_size=1, max_overflow=0) as (pool, _, _clock):
        lease = pool.acquire()
        thread, outcome = in_thread(lambda: pool.acquire(Deadline(WAIT_S)))
        until(lambda: pool.stats()["waiting"] == 1)
        lease.release()  # handed over, never idle
        with pytest.raises(SourceError):
            pool.acquire(Deadline(0))
        joined(thread, outcome).release()


def test_a_connection_that_comes_back_serves_who_waits_for_a_slow_connect() -> None:
    gate = threading.Event()
    with make(pool_size=2) as (pool, connector, _):
        lease = pool.acquire()
        connector.on_connect = lambda deadline: void(gate.wait(WAIT_S))
        thread, outcome = in_thread(lambda: pool.acquire(Deadline(WAIT_S)))
        until(lambda: len(connector.deadlines) == 2)
        lease.release()
        second = joined(thread, outcome)
        assert second.connection.number == 0
        gate.set()
        until(lambda: pool.stats()["idle"] == 1)  # the connect was not in vain
        second.release()
        assert pool.stats()["idle"] == 2


def test_a_failed_attempt_concerns_its_own_waiter_only() -> None:
    calls = itertools.count()
    gate = threading.Event()

    def connect(deadline: Deadline) -> None:
        if next(calls) == 0:
            gate.wait(WAIT_S)
            raise SourceError("refused", code="net.refused")

    with make(pool_size=1, max_overflow=0) as (pool, connector, _):
        connector.on_connect = connect
        first = in_thread(lambda: pool.acquire(Deadline(WAIT_S)))
        until(lambda: len(connector.deadlines) == 1)
        second = in_thread(lambda: pool.acquire(Deadline(WAIT_S)))
        until(lambda: pool.stats()["waiting"] == 2)
        gate.set()
        assert joined(*first).code == "net.refused"
        joined(*second).release()  # the freed slot was used for the next in line
        assert len(connector.sessions) == 1


def test_cancelling_a_waiter() -> None:
    with make(pool_size=1, max_overflow=0) as (pool, _, _clock), pool.acquire():
        token = CancelToken()
        thread, outcome = in_thread(lambda: pool.acquire(Deadline(WAIT_S), token))
        until(lambda: pool.stats()["waiting"] == 1)
        token.cancel()
        assert isinstance(joined(thread, outcome), Cancelled)
        assert pool.stats()["waiting"] == 0
        with pytest.raises(Cancelled):
            pool.acquire(None, token)


def test_cancelling_while_connecting_keeps_the_connection_for_others() -> None:
    gate = threading.Event()
    with make() as (pool, connector, _):
        connector.on_connect = lambda deadline: void(gate.wait(WAIT_S))
        token = CancelToken()
        thread, outcome = in_thread(lambda: pool.acquire(Deadline(WAIT_S), token))
        until(lambda: connector.deadlines)
        token.cancel()
        assert isinstance(joined(thread, outcome), Cancelled)
        gate.set()
        until(lambda: pool.stats()["idle"] == 1)
        assert pool.stats()["busy"] == 0


def test_a_connection_handed_to_a_cancelled_waiter_goes_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both happen in the same moment: the hand-over is seen first by neither side."""
    with make(pool_size=1, max_overflow=0) as (pool, _, _clock):
        lease = pool.acquire()
        token = CancelToken()
        real = pool._patience

        def patience(waiter: Any) -> float:
            if token.cancelled or threading.current_thread().name != "victim":
                return real(waiter)
            lease.release()  # hands over to this very waiter ...
            token.cancel()  # ... and cancels it before it looks
            return 0.0

        monkeypatch.setattr(pool, "_patience", patience)
        outcome: list[BaseException] = []

        def victim() -> None:
            try:
                pool.acquire(Deadline(WAIT_S), token)
            except Cancelled as exc:
                outcome.append(exc)

        thread = threading.Thread(target=victim, name="victim", daemon=True)
        thread.start()
        thread.join(WAIT_S)
        assert len(outcome) == 1
        assert (pool.stats()["busy"], pool.stats()["idle"]) == (0, 1)


# --- dead connections ---


def test_means_dead() -> None:
    dead = ["net.reset", "net.timeout", "net.refused", "transient.failover", "transient.starting"]
    assert all(means_dead(SourceError("x", code=code)) for code in dead)
    fine = ["transient.deadlock", "query.syntax", "timeout.statement", "permission.denied", "cancelled"]
    assert not any(means_dead(SourceError("x", code=code)) for code in fine)


def test_one_dead_connection_condemns_its_generation() -> None:
    with make() as (pool, connector, _):
        leases = [pool.acquire() for _ in range(4)]
        for lease in leases[1:]:
            lease.release()
        with pytest.raises(ConnectionResetError), leases[0]:
            raise ConnectionResetError("server restarted")
        assert pool.stats()["idle"] == 0
        with pool.acquire() as lease:
            assert lease.connection.number == 4
        assert connector.pings == []  # nobody walked over the corpses
        assert [s.aborted for s in connector.sessions] == [1, 1, 1, 1, 0]


def test_a_busy_connection_of_an_old_generation_is_closed_on_return_and_condemns_nobody() -> None:
    with make() as (pool, connector, _):
        first, second, third = pool.acquire(), pool.acquire(), pool.acquire()
        with pytest.raises(ConnectionResetError), first:
            raise ConnectionResetError
        with pool.acquire() as new:
            assert new.connection.number == 3
        with pytest.raises(ConnectionResetError), second:  # the same incident, noticed later
            raise ConnectionResetError
        third.release()
        assert [s.number for s in connector.sessions if not (s.closed or s.aborted)] == [3]
        assert pool.stats()["discarded"] == 3


def test_a_long_idle_connection_is_checked_and_replaced_in_one_acquire() -> None:
    with make() as (pool, connector, clock):
        with pool.acquire(), pool.acquire(), pool.acquire():
            pass
        clock.seconds += 31
        with pool.acquire():
            assert len(connector.pings) == 1
            assert connector.pings[0] <= 1.0
        clock.seconds += 31
        for session in connector.sessions:
            session.alive = False
        with pool.acquire() as lease:
            assert lease.connection.number == 3
        assert len(connector.pings) == 2  # one check told enough
        assert pool.stats()["discarded"] == 3


def test_pre_ping_can_be_switched_off() -> None:
    with make(pool_pre_ping=False) as (pool, connector, clock):
        with pool.acquire():
            pass
        clock.seconds += 100
        with pool.acquire() as lease:
            assert lease.connection.number == 0
        assert connector.pings == []


def test_a_check_that_hangs_holds_up_nobody() -> None:
    gate = threading.Event()
    with make(pool_size=1, max_overflow=1) as (pool, connector, clock):
        with pool.acquire():
            pass
        clock.seconds += 31
        connector.on_ping = lambda session: gate.wait(WAIT_S)
        with pytest.raises(SourceError) as caught:
            pool.acquire(Deadline(0.05))
        assert caught.value.code == "timeout.connect"
        gate.set()
        until(lambda: pool.stats()["idle"] == 1)


def test_a_check_that_raises_means_dead() -> None:
    with make() as (pool, connector, clock):
        with pool.acquire():
            pass
        clock.seconds += 31
        connector.on_ping = lambda session: 1 / 0 > 1
        with pool.acquire() as lease:
            assert lease.connection.number == 1


def test_invalidate_discards_everything_that_exists() -> None:
    with make() as (pool, connector, _):
        busy = pool.acquire()
        with pool.acquire():
            pass
        pool.invalidate()  # a tunnel died, for instance
        assert (pool.stats()["idle"], connector.sessions[1].aborted) == (0, 1)
        busy.release()
        assert (pool.stats()["open"], connector.open) == (0, 0)


def test_a_generation_condemned_while_its_member_is_checked() -> None:
    started, gate = threading.Event(), threading.Event()
    with make() as (pool, connector, clock):
        with pool.acquire():
            pass
        clock.seconds += 31

        def ping(session: Session) -> bool:
            started.set()
            return gate.wait(WAIT_S)

        connector.on_ping = ping
        thread, outcome = in_thread(lambda: pool.acquire(Deadline(WAIT_S)))
        assert started.wait(WAIT_S)
        pool.invalidate()
        gate.set()
        lease = joined(thread, outcome)
        assert lease.connection.number == 1
        lease.release()


# --- pacing (P36) ---


def test_no_more_than_ten_turns_in_any_window() -> None:
    clock = FakeClock()
    pacer = Pacer(clock, Calm())
    turns: list[float] = []
    while len(turns) < 50:
        delay = pacer.turn()
        if delay > 0:
            clock.seconds += delay
        else:
            turns.append(clock.seconds)
    assert max(sum(t <= other < t + WINDOW_S - 1e-9 for other in turns) for t in turns) == BURST


def test_50_lost_connections_come_back_paced() -> None:
    starts: list[float] = []

    class Recorder(Pacer):
        def turn(self) -> float:
            delay = super().turn()
            if delay <= 0:
                starts.append(self._starts[-1])
            return delay

    connector = FakeConnector()
    pool = Pool(connector, PoolSettings(pool_size=50, max_overflow=0, pool_timeout=WAIT_S))
    pool._pacer = Recorder(pool._clock, pool._rng)
    with ExitStack() as stack:
        stack.callback(pool.close)
        leases = [pool.acquire() for _ in range(50)]
        assert starts == []  # without trouble nothing is delayed
        for lease in leases:
            lease.failed(ConnectionResetError())
            lease.release()
        threads = [in_thread(lambda: pool.acquire(Deadline(WAIT_S))) for _ in range(50)]
        for lease in [joined(*pair) for pair in threads]:
            lease.release()
        assert (len(starts), len(connector.sessions)) == (50, 100)
        assert max(sum(t <= other < t + WINDOW_S for other in starts) for t in starts) <= BURST


def test_pacing_ends_with_the_deadline_and_with_the_pool() -> None:
    pacer = Pacer(FakeClock(), random.Random(1))
    pacer.trouble()
    for _ in range(BURST):
        pacer.turn()
    pacer.wait(Deadline(0.01), threading.Event())  # the clock stands still: only the deadline ends this
    stop = threading.Event()
    stop.set()
    pacer.wait(Deadline(None), stop)


# --- ageing ---


def test_recycle_with_jitter() -> None:
    connector, clock = FakeConnector(), FakeClock()
    pool = Pool(connector, PoolSettings(pool_size=50, pool_recycle=1000), clock=clock, rng=random.Random(7))
    leases = [pool.acquire() for _ in range(40)]
    for lease in leases:
        lease.release()
    clock.seconds += 899
    pool.evict()
    assert connector.open == 40
    clock.seconds += 101
    pool.evict()
    assert 0 < connector.open < 40  # not all in the same moment
    clock.seconds += 101
    pool.evict()
    assert (connector.open, pool.stats()["recycled"], pool.stats()["discarded"]) == (0, 40, 0)
    assert all(s.closed == 1 and s.aborted == 0 for s in connector.sessions)  # politely


def test_an_old_connection_is_replaced_on_return_and_on_the_next_acquire() -> None:
    with make(pool_recycle=100, pool_pre_ping=False) as (pool, connector, clock):
        with pool.acquire():
            clock.seconds += 101
        assert (connector.open, pool.stats()["recycled"]) == (0, 1)
        with pool.acquire():
            pass
        clock.seconds += 101
        with pool.acquire() as lease:
            assert lease.connection.number == 2


def test_surplus_is_closed_after_idling_and_all_after_long_disuse() -> None:
    with make(pool_size=2, max_overflow=3, pool_idle_s=10) as (pool, connector, clock):
        leases = [pool.acquire() for _ in range(5)]
        for lease in leases:
            lease.release()
        clock.seconds += 9
        assert pool.evict() == 0
        clock.seconds += 2
        assert pool.evict() == 3
        assert {s.number for s in connector.sessions if not s.closed} == {3, 4}  # the most recently used stay
        clock.seconds += 50
        assert pool.evict() == 2
        assert connector.open == 0
        with pool.acquire() as lease:  # the pool itself lives on
            assert lease.connection.number == 5


def test_regular_use_of_one_lets_the_surplus_go() -> None:
    with make(pool_size=1, max_overflow=2, pool_idle_s=10) as (pool, connector, clock):
        leases = [pool.acquire() for _ in range(3)]
        for lease in leases:
            lease.release()
        for _ in range(12):
            clock.seconds += 1
            with pool.acquire():
                pass
        assert connector.open == 1  # without a call of evict


# --- the end ---


def test_drain_waits_for_the_busy_and_refuses_the_new() -> None:
    with make() as (pool, connector, _):
        busy = pool.acquire()
        with pool.acquire():
            pass
        thread, outcome = in_thread(lambda: pool.drain(WAIT_S))
        until(lambda: connector.sessions[1].closed)
        with pytest.raises(PoolClosed) as caught:
            pool.acquire()
        assert (caught.value.code, caught.value.retryable) == ("agent.draining", True)
        assert not outcome
        busy.release()
        assert joined(thread, outcome) is True
        assert (connector.open, connector.sessions[0].aborted) == (0, 0)


def test_drain_that_runs_out_of_time_tears_the_rest_down() -> None:
    with make() as (pool, connector, _):
        busy = pool.acquire()
        assert pool.drain(0.01) is False
        assert connector.sessions[0].aborted == 1
        busy.release()
        assert (pool.stats()["open"], pool.stats()["idle"]) == (0, 0)


def test_close_frees_waiters_and_is_repeatable() -> None:
    gate = threading.Event()
    with make(pool_size=1, max_overflow=1) as (pool, connector, _):
        busy = pool.acquire()
        connector.on_connect = lambda deadline: void(gate.wait(WAIT_S))
        connecting = in_thread(lambda: pool.acquire(Deadline(WAIT_S)))
        waiting = in_thread(lambda: pool.acquire(Deadline(WAIT_S)))
        until(lambda: pool.stats()["waiting"] == 2 and len(connector.deadlines) == 2)
        pool.close()
        pool.close()
        assert isinstance(joined(*connecting), PoolClosed)
        assert isinstance(joined(*waiting), PoolClosed)
        gate.set()
        until(lambda: len(connector.sessions) == 2 and connector.sessions[1].closed)  # came too late
        busy.release()
        assert (connector.open, pool.stats()["open"]) == (0, 0)


# --- under stress ---


def test_faults_of_every_kind_leave_the_books_balanced() -> None:
    """P25/P34: whatever happens, every acquire ends, no more connections than allowed exist, none is lost."""
    connector = FakeConnector()
    rng = random.Random(20240229)
    peak = itertools.count()
    over = []

    def connect(deadline: Deadline) -> None:
        if connector.open > 6:
            over.append(next(peak))
        if rng.random() < 0.05:
            raise SourceError("refused", code="net.refused")

    connector.on_connect = connect
    pool = Pool(connector, PoolSettings(pool_size=3, max_overflow=3, pool_timeout=WAIT_S))
    pool._pacer = type("NoPacing", (), {"trouble": lambda self: None, "wait": lambda self, d, s: None})()
    outcomes: list[str] = []

    def user(seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(250):
            token = CancelToken()
            try:
                with pool.acquire(Deadline(mine.choice([0.0005, 0.5, WAIT_S])), token) as lease:
                    fate = mine.random()
                    if fate < 0.02:
                        raise ConnectionResetError
                    if fate < 0.05:
                        lease.connection.dirty = True
                    elif fate < 0.08:
                        lease.abort()
                    elif fate < 0.1:
                        token.cancel()
                outcomes.append("ok")
            except (AgentError, ConnectionResetError) as exc:
                outcomes.append(getattr(exc, "code", "reset"))

    threads = [in_thread(lambda seed=seed: user(seed)) for seed in range(12)]  # type: ignore[misc]
    for pair in threads:
        assert joined(*pair) is None
    until(lambda: not pool._attempts)
    stats = pool.stats()
    assert len(outcomes) == 12 * 250
    assert outcomes.count("ok") > 1000
    assert (over, stats["busy"], stats["waiting"]) == ([], 0, 0)
    pool.evict()
    stats = pool.stats()
    assert stats["open"] == stats["idle"] == connector.open <= 6
    pool.close()
    assert connector.open == pool.stats()["open"] == 0
    assert not any(s.closed + s.aborted == 0 for s in connector.sessions)


def void(_: object) -> None:
    """Make an expression a statement."""


def raising(error: BaseException) -> Callable[[Deadline], None]:
    def connect(deadline: Deadline) -> None:
        raise error

    return connect


class PoolMachine(RuleBasedStateMachine):
    """One caller after the other against a model: what is idle, busy and condemned must agree at every step."""

    @initialize(size=st.integers(1, 3), overflow=st.integers(0, 2))
    def start(self, size: int, overflow: int) -> None:
        self.clock = FakeClock()
        self.connector = FakeConnector()
        self.limit, self.size = size + overflow, size
        options = PoolSettings(pool_size=size, max_overflow=overflow, pool_recycle=500, pool_idle_s=60)
        self.pool = Pool(self.connector, options, clock=self.clock, rng=Calm())
        self.leases: list[Lease] = []
        self.idle: list[Session] = []  # last = most recently used
        self.born: dict[Session, float] = {}
        self.used: dict[Session, float] = {}
        self.stale: set[Session] = set()
        self.last_use = self.clock.seconds
        self.open = True

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for lease in self.leases:
                lease.release()
            self.pool.close()
            assert self.connector.open == 0
            assert self.pool.stats()["open"] == 0

    def _age(self) -> None:
        """What `_trim` does."""
        now = self.clock.seconds
        self.idle = [s for s in self.idle if now < self.born[s] + 500]
        unused = not self.leases and now - self.last_use > 360
        while self.idle and (
            unused or (len(self.idle) + len(self.leases) > self.size and now - self.used[self.idle[0]] > 60)
        ):
            self.idle.pop(0)

    @rule()
    def acquire(self) -> None:
        if not self.open:
            with pytest.raises(PoolClosed):
                self.pool.acquire(Deadline(0))
            return
        self.last_use = self.clock.seconds
        self._age()
        if self.idle:
            expected: Session | None = self.idle[-1]
            assert expected is not None
            if self.clock.seconds - self.used[expected] > 30 and not expected.alive:
                self.idle, expected = [], None  # found dead: the generation goes
                self.stale |= {lease.connection for lease in self.leases}
            else:
                self.idle.pop()
        elif len(self.leases) >= self.limit:
            with pytest.raises(SourceError) as caught:
                self.pool.acquire(Deadline(0))
            assert caught.value.code == "capacity.pool_exhausted"
            return
        else:
            expected = None
        before = len(self.connector.sessions)
        lease = self.pool.acquire(Deadline(WAIT_S))
        self.leases.append(lease)
        if expected is None:
            assert lease.connection.number == before
            self.born[lease.connection] = self.clock.seconds
        else:
            assert lease.connection is expected

    @precondition(lambda self: bool(getattr(self, "leases", None)))
    @rule(
        which=st.integers(0, 10),
        how=st.sampled_from(["clean", "clean", "clean", "dirty", "discard", "dead", "query error", "abort"]),
    )
    def give_back(self, which: int, how: str) -> None:
        lease = self.leases.pop(which % len(self.leases))
        session = lease.connection
        if how == "dirty":
            session.dirty = True
        elif how == "discard":
            lease.discard()
        elif how == "abort":
            lease.abort()
        elif how == "query error":
            lease.failed(SourceError("no such table", code="model.not_found"))
        elif how == "dead":
            lease.failed(ConnectionResetError())
            if session not in self.stale:
                self.idle = []
                self.stale |= {other.connection for other in self.leases}
        lease.release()
        self.last_use = now = self.clock.seconds
        returned = (
            how in ("clean", "query error")
            and session.alive
            and session not in self.stale
            and self.open
            and now < self.born[session] + 500
        )
        if returned:
            self.idle.append(session)
            self.used[session] = now
        self._age()

    @rule(seconds=st.sampled_from([1, 20, 31, 61, 200, 501]))
    def wait(self, seconds: int) -> None:
        self.clock.seconds += seconds

    @rule()
    def evict(self) -> None:
        self.pool.evict()
        self._age()

    @rule()
    def invalidate(self) -> None:
        self.pool.invalidate()
        self.idle = []
        self.stale |= {lease.connection for lease in self.leases}

    @rule()
    def server_restarts(self) -> None:
        for session in self.connector.sessions:
            session.alive = False

    @precondition(lambda self: bool(getattr(self, "open", False)))
    @rule(really=st.integers(0, 9))
    def close(self, really: int) -> None:
        if really == 0:
            self.pool.close()
            self.open, self.idle = False, []

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "pool"):
            return
        stats = self.pool.stats()
        assert (stats["busy"], stats["waiting"]) == (len(self.leases), 0)
        assert [entry.connection for entry in self.pool._idle] == self.idle
        assert stats["busy"] + stats["idle"] <= self.limit
        assert stats["opened"] == len(self.connector.sessions)


PoolMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPoolMachine = PoolMachine.TestCase
