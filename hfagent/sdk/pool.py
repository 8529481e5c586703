"""A pool of driver connections over one connector; owned by services, used from worker threads.

Names and meaning of the settings are SQLAlchemy's `QueuePool`; the contract is stronger:

* `acquire` ends by its deadline, always. Whatever talks to the server on its behalf (connect, liveness check) runs in a
  short-lived daemon thread, so a driver that ignores its time limit costs a slot, never a caller.
* Waiters are served first come, first served: a connection that comes back is handed to the oldest waiter. Waiting is
  bounded in number (`max_waiting`) and time (`pool_timeout`).
* A connection that turns out dead condemns all that are as old as it (they share its fate: the server restarted, the
  tunnel broke), so the next caller starts fresh instead of finding the dead ones one by one. Reconnecting is paced.
* A connection goes back only when it is certainly clean. After a cancel, a passed deadline, or an error that leaves its
  state in doubt it is closed: a late cancel request must not hit the next user's statement.
* Idle connections are reused last in, first out, so that surplus ones age and are closed.

Not here: what a connection is (`BaseConnector`), who may use it, statements and their deadlines (services). The pool has no
thread of its own: services call `evict` now and then.

Architecture Invariant: driver code never runs under the pool's lock.
"""

from __future__ import annotations

import contextvars
import logging
import random
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Final, Self

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import SYSTEM_CLOCK, Clock, Deadline
from hfagent.foundation.errors import AgentError, InternalError, SourceError
from hfagent.sdk.alarm import Alarm
from hfagent.sdk.connector import BaseConnector, Cancellable
from hfagent.sdk.pacing import Pacer

__all__ = ["Lease", "Pool", "PoolClosed", "PoolSettings", "means_dead"]

_log = logging.getLogger(__name__)

PING_AFTER_S: Final = 30.0
"""A connection idle for longer is checked before it is lent."""
PING_TIMEOUT_S: Final = 1.0
RESET_TIMEOUT_S: Final = 5.0
_MARGIN_S: Final = 0.05
_UNUSED_FACTOR: Final = 6
_RECYCLE_JITTER: Final = 0.1

_IN_DOUBT: Final = frozenset({
    "cancelled", "timeout.total", "timeout.connect", "read.stalled", "internal.bug", "internal.driver", "auth.token_expired",
})  # fmt: skip
"""Errors after which a session's state is not known well enough to lend it again, though its siblings are fine."""


_SERVER_GONE: Final = frozenset({"transient.failover", "transient.starting"})


def means_dead(error: AgentError) -> bool:
    """Tell whether `error` says that the connection it came from is gone, and its siblings most likely too."""
    return error.code.startswith("net.") or error.code in _SERVER_GONE


class PoolClosed(AgentError):
    """The pool was drained or closed (configuration changed, agent stopping); a new pool may exist by now."""

    default_code = "agent.draining"


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """Sizes are connections, times are seconds."""

    pool_size: int = 5
    """Connections kept open."""
    max_overflow: int = 15
    """Connections beyond `pool_size` on demand."""
    pool_recycle: float = 1800
    """Age at which a connection is replaced, ±10 %."""
    pool_timeout: float = 10
    """Longest wait for a free connection."""
    pool_idle_s: float = 300
    """Idle connections beyond `pool_size` are closed after this; all of them after six times this without any use."""
    pool_pre_ping: bool = True
    """Check a connection that sat idle for more than 30 s before lending it."""
    max_waiting: int = 200
    """Callers that may wait at a time."""
    connect_timeout_s: float = 10
    """Longest attempt to connect."""

    @classmethod
    def from_config(cls, config: object) -> PoolSettings:
        """Take the settings from the fields of a connector's configuration; absent ones keep their defaults."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: getattr(config, name) for name in names if hasattr(config, name)})


class _Entry:
    """A connection and what the pool knows about it."""

    __slots__ = ("connection", "dead", "epoch", "expires_at", "idle_since")

    def __init__(self, connection: Any, epoch: int, expires_at: float) -> None:
        self.connection = connection
        self.epoch = epoch
        self.expires_at = expires_at
        self.idle_since = 0.0
        self.dead = False


class _Waiter:
    """A caller in the queue. `ready` is set when it has a connection or an error, or when it is cancelled."""

    __slots__ = ("attempt", "deadline", "entry", "error", "ready", "since")

    def __init__(self, deadline: Deadline, since: float) -> None:
        self.deadline = deadline
        self.since = since
        self.ready = threading.Event()
        self.entry: _Entry | None = None
        self.error: AgentError | None = None
        self.attempt: _Attempt | None = None


class _Attempt:
    """Work in a thread to get a usable connection: check `candidate` if there is one, else (or if dead) connect.

    Its error belongs to the waiter that caused it; its connection to whoever waits longest.
    """

    __slots__ = ("candidate", "deadline", "overdue_at", "waiter")

    def __init__(self, waiter: _Waiter, candidate: _Entry | None, seconds: float, now: float) -> None:
        self.waiter = waiter
        self.candidate = candidate
        # A little less than the waiter has: the driver's own words about the failure should arrive in time.
        self.deadline = Deadline(seconds - min(_MARGIN_S, seconds * 0.1))
        self.overdue_at = now + seconds + 1.0


class Pool:
    """Connections of one connector. All methods may be called from any thread."""

    def __init__(
        self,
        connector: BaseConnector[Any],
        settings: PoolSettings | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings or PoolSettings()
        self._connector = connector
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311  spreads ages, decides no secret
        self._pacer = Pacer(clock, self._rng)
        self._stop = threading.Event()
        self._lost: deque[_Entry] = deque()  # from finalizers, which must not take a lock
        self._lock = threading.Lock()  # guards everything below
        self._returned = threading.Condition(self._lock)
        self._idle: deque[_Entry] = deque()  # oldest first; never holds a stale one
        self._busy: set[_Entry] = set()
        self._waiters: OrderedDict[_Waiter, None] = OrderedDict()
        self._attempts: set[_Attempt] = set()
        self._doomed: list[_Entry] = []  # to be closed outside the lock
        self._epoch = 0
        self._open = True
        self._last_use = clock.monotonic()
        self._counts = dict.fromkeys(
            ("opened", "closed", "recycled", "discarded", "checkouts", "timeouts", "errors"), 0
        )
        self._wait_max = 0.0

    # --- lending ---

    def acquire(self, deadline: Deadline | None = None, cancel: CancelToken | None = None) -> Lease:
        """Return a lease on a connection that is (as far as one can know) alive.

        Raises `SourceError`: `capacity.pool_exhausted` when all connections stay busy for `pool_timeout` or until the
        deadline, or too many callers wait already; `timeout.connect` when connecting does not end in time; what `connect`
        raised otherwise. Raises `Cancelled`, and `PoolClosed` after `drain` or `close`.
        """
        deadline = deadline or Deadline(None)
        if cancel is not None:
            cancel.raise_if_cancelled()
        waiter: _Waiter | None = None
        started: list[_Attempt] = []
        with self._lock:
            self._require_open()
            self._collect_lost()
            self._last_use = self._clock.monotonic()
            entry = None if self._waiters else self._take_idle(fresh=True)
            if entry is None:
                waiter = self._enqueue(deadline)
                started = self._plan()
            else:
                self._lend(entry)
        if waiter is not None:
            self._launch(started)
            entry = self._wait(waiter, cancel)
        assert entry is not None
        return Lease(self, entry, cancel)

    def invalidate(self) -> None:
        """Discard every connection that exists now: idle ones at once, busy ones when they come back."""
        with self._lock:
            self._new_epoch()
        self._bury()

    def evict(self) -> int:
        """Close connections that are too old or no longer needed, take back lost leases. Return how many were closed.

        Called once in a while by services; returning a connection does the same.
        """
        with self._lock:
            self._collect_lost()
            self._trim()
            started = self._plan()
        self._launch(started)
        return self._bury()

    def stats(self) -> dict[str, Any]:
        """Return the counters of `model.connector.PoolStats`. A lease that is never returned shows as `busy`."""
        with self._lock:
            return {
                "size": self.settings.pool_size,
                "max_overflow": self.settings.max_overflow,
                "open": self._counts["opened"] - self._counts["closed"],
                "idle": len(self._idle),
                "busy": len(self._busy),
                "waiting": len(self._waiters),
                **self._counts,
                "wait_ms_max": round(self._wait_max * 1000, 3),
            }

    # --- the end ---

    def drain(self, seconds: float) -> bool:
        """Refuse new leases, give busy connections `seconds` to come back, then close. Return whether all came back."""
        limit = Deadline(seconds, clock=self._clock)
        self._refuse()
        self._bury()
        with self._lock:
            self._returned.wait_for(lambda: not self._busy, timeout=limit.remaining())
            came_back = not self._busy
        self.close()
        return came_back

    def close(self) -> None:
        """Refuse new leases and close everything; busy connections are torn down under their users. Safe to repeat."""
        self._refuse()
        self._stop.set()
        with self._lock:
            torn = [entry for entry in self._busy if not entry.dead]
            for entry in torn:
                entry.dead = True
        for entry in torn:
            self._quietly(self._connector.abort, entry.connection)
        self._bury()

    def _refuse(self) -> None:
        with self._lock:
            self._open = False
            self._collect_lost()
            self._doom(*self._idle)
            self._idle.clear()
            for waiter in self._waiters:
                waiter.error = self._closed_error()
                waiter.ready.set()
            self._waiters.clear()

    # --- waiting ---

    def _enqueue(self, deadline: Deadline) -> _Waiter:
        if len(self._waiters) - self._under_way() >= self.settings.max_waiting:
            self._counts["timeouts"] += 1
            raise self._exhausted(f"{len(self._waiters)} callers wait already")
        if deadline.expired():
            self._counts["timeouts"] += 1
            if self._full():
                raise self._exhausted("and there is no time left to wait")
            raise SourceError(f"no time is left to connect to {self._name}", code="timeout.total")
        waiter = _Waiter(deadline, self._clock.monotonic())
        self._waiters[waiter] = None
        return waiter

    def _wait(self, waiter: _Waiter, cancel: CancelToken | None) -> _Entry:
        try:
            with nullcontext() if cancel is None else cancel.on_cancel(waiter.ready.set):
                while True:
                    waiter.ready.wait(self._pause(waiter))
                    if cancel is not None:
                        cancel.raise_if_cancelled()
                    with self._lock:
                        if waiter.entry is not None:
                            self._wait_max = max(self._wait_max, self._clock.monotonic() - waiter.since)
                            return waiter.entry
                        if waiter.error is not None:
                            raise waiter.error
                        if self._patience(waiter) <= 0:
                            self._counts["timeouts"] += 1
                            raise self._gave_up(waiter)
                        started = self._plan()  # an attempt that this one counted on may be overdue by now
                    self._launch(started)
        except BaseException:
            with self._lock:
                self._waiters.pop(waiter, None)
                given = waiter.entry
            if given is not None:  # it came in the same moment: the next one shall have it
                self._put_back(given, usable=True)
            raise

    def _patience(self, waiter: _Waiter) -> float:
        """Seconds this waiter may still wait: its deadline, and the limit of what it waits for."""
        attempt = waiter.attempt
        limit = waiter.since + self.settings.pool_timeout if attempt is None else attempt.overdue_at
        return max(0.0, waiter.deadline.bounded(limit - self._clock.monotonic()))

    def _pause(self, waiter: _Waiter) -> float:
        """Seconds to sleep before looking again."""
        with self._lock:
            now = self._clock.monotonic()
            looks = [attempt.overdue_at - now for attempt in self._attempts if attempt.overdue_at > now]
        return min([self._patience(waiter), *looks])

    def _gave_up(self, waiter: _Waiter) -> AgentError:
        waited = self._clock.monotonic() - waiter.since
        if waiter.attempt is None and self._busy:
            return self._exhausted(f"none came back within {waited:.1f} s")
        return SourceError(
            f"connecting to {self._name} did not end within {waited:.1f} s",
            code="timeout.connect",
            hint="check that the server answers (run the connection test), or raise connect_timeout_s",
        )

    # --- under the lock ---

    def _require_open(self) -> None:
        if not self._open:
            raise self._closed_error()

    def _take_idle(self, *, fresh: bool) -> _Entry | None:
        """Pop the most recently used connection; with `fresh` only if it needs no check before it is lent."""
        self._trim()
        if not self._idle:
            return None
        checked = not self.settings.pool_pre_ping
        if fresh and not checked and self._clock.monotonic() - self._idle[-1].idle_since > PING_AFTER_S:
            return None
        return self._idle.pop()

    def _lend(self, entry: _Entry) -> None:
        self._busy.add(entry)
        self._counts["checkouts"] += 1

    def _hand_over(self, entry: _Entry) -> None:
        """Give a usable connection to the oldest waiter, or keep it."""
        if self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            self._lend(entry)
            waiter.entry = entry
            waiter.ready.set()
        else:
            entry.idle_since = self._clock.monotonic()
            self._idle.append(entry)

    def _full(self) -> bool:
        return len(self._busy) + len(self._attempts) >= self.settings.pool_size + self.settings.max_overflow

    def _under_way(self) -> int:
        """Attempts that may still end well. An overdue one only holds its slot until the driver lets go."""
        now = self._clock.monotonic()
        return sum(attempt.overdue_at > now for attempt in self._attempts)

    def _plan(self) -> list[_Attempt]:
        """Start as many attempts as there are waiters that nothing is under way for, within the limits."""
        planned: list[_Attempt] = []
        missing = len(self._waiters) - self._under_way()
        for waiter in self._waiters if missing > 0 else ():
            if len(planned) == missing:
                break
            if waiter.attempt is not None:
                continue
            candidate = self._take_idle(fresh=False)
            if candidate is None and self._full():
                break
            seconds = waiter.deadline.bounded(self.settings.connect_timeout_s)
            waiter.attempt = _Attempt(waiter, candidate, seconds, self._clock.monotonic())
            self._attempts.add(waiter.attempt)
            planned.append(waiter.attempt)
        return planned

    def _new_epoch(self) -> None:
        self._epoch += 1
        self._pacer.trouble()
        for entry in self._idle:
            entry.dead = True
        self._counts["discarded"] += len(self._idle)
        self._doom(*self._idle)
        self._idle.clear()

    def _trim(self) -> None:
        """Doom idle connections that are too old, surplus or unused."""
        now = self._clock.monotonic()
        if any(entry.expires_at <= now for entry in self._idle):
            expired = [entry for entry in self._idle if entry.expires_at <= now]
            self._counts["recycled"] += len(expired)
            self._doom(*expired)
            self._idle = deque(entry for entry in self._idle if entry.expires_at > now)
        quiet = not self._busy and not self._waiters and not self._attempts
        unused = quiet and now - self._last_use > _UNUSED_FACTOR * self.settings.pool_idle_s
        while self._idle and (
            unused
            or (
                len(self._idle) + len(self._busy) > self.settings.pool_size
                and now - self._idle[0].idle_since > self.settings.pool_idle_s
            )
        ):
            self._doom(self._idle.popleft())

    def _doom(self, *entries: _Entry) -> None:
        self._doomed.extend(entries)

    def _collect_lost(self) -> None:
        """Take back connections whose leases were garbage-collected: a bug of the user, who is told in the log."""
        while self._lost:
            entry = self._lost.popleft()
            if entry in self._busy:
                _log.warning("%s: a lease was dropped without being returned; its connection is closed", self._name)
                entry.dead = True
                self._busy.discard(entry)
                self._counts["discarded"] += 1
                self._doom(entry)

    # --- outside the lock ---

    def _launch(self, attempts: list[_Attempt]) -> None:
        for attempt in attempts:
            run = contextvars.copy_context().run  # log lines keep the ids of the request
            thread = threading.Thread(
                target=run,
                args=(self._attempt, attempt),
                name=f"hf-connect-{self._connector.context.name}",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError as exc:  # the system has no thread left
                error = SourceError(f"the agent cannot start another thread: {exc}", code="capacity.overloaded")
                self._failed(attempt, error)

    def _attempt(self, attempt: _Attempt) -> None:
        """Body of an attempt's thread."""
        self._bury()  # first give the server its slots back
        try:
            entry = self._checked(attempt)
            if entry is None:
                entry = self._connect(attempt)
        except BaseException as exc:  # noqa: BLE001  the waiter must hear of it, whatever it is
            error = self._mapped(exc)
            if error is not exc:
                error.__cause__ = exc
            if means_dead(error):
                self._pacer.trouble()
            self._failed(attempt, error)
            return
        with self._lock:
            self._attempts.discard(attempt)
            attempt.waiter.attempt = None
            if self._open and entry.epoch == self._epoch:
                self._hand_over(entry)
            else:  # closed, or condemned with its generation, meanwhile
                self._counts["discarded"] += 1
                self._doom(entry)
            started = self._plan()
        self._launch(started)
        self._bury()

    def _checked(self, attempt: _Attempt) -> _Entry | None:
        """Check the idle connection the attempt started with. A dead one condemns its generation."""
        entry = attempt.candidate
        if entry is None:
            return None
        try:
            alive = self._connector.is_alive(entry.connection, attempt.deadline.bounded(PING_TIMEOUT_S))
        except Exception as exc:  # noqa: BLE001  promised not to happen; then the answer is no
            _log.debug("%s: the liveness check failed: %s", self._name, exc)
            alive = False
        if alive:
            return entry
        with self._lock:
            self._condemn(entry)
        self._bury()
        return None

    def _connect(self, attempt: _Attempt) -> _Entry:
        self._pacer.wait(attempt.deadline, self._stop)
        if self._stop.is_set():
            raise self._closed_error()
        connection = self._connector.connect(attempt.deadline)
        spread = 1 + self._rng.uniform(-_RECYCLE_JITTER, _RECYCLE_JITTER)
        with self._lock:
            self._counts["opened"] += 1
            return _Entry(connection, self._epoch, self._clock.monotonic() + self.settings.pool_recycle * spread)

    def _failed(self, attempt: _Attempt, error: AgentError) -> None:
        with self._lock:
            self._attempts.discard(attempt)
            self._counts["errors"] += 1
            waiter = attempt.waiter
            waiter.attempt = None
            if waiter in self._waiters:
                del self._waiters[waiter]
                waiter.error = error
                waiter.ready.set()
            else:
                _log.debug("%s: an attempt to connect nobody waits for any more failed: %s", self._name, error)
            started = self._plan()
        self._launch(started)

    def _condemn(self, entry: _Entry) -> None:
        """A connection was found dead (under the lock): it goes, and all of its generation."""
        entry.dead = True
        self._counts["discarded"] += 1
        self._doom(entry)
        if entry.epoch == self._epoch:
            self._new_epoch()

    def _give_back(self, entry: _Entry, *, usable: bool, dead: bool) -> None:
        """Take a leased connection back."""
        if dead:
            with self._lock:
                entry.dead = True
                if entry.epoch == self._epoch:
                    self._new_epoch()
        self._put_back(entry, usable=usable and not dead and self._cleaned(entry))

    def _put_back(self, entry: _Entry, *, usable: bool) -> None:
        with self._lock:
            self._busy.discard(entry)
            now = self._last_use = self._clock.monotonic()
            if not usable or entry.dead or entry.epoch != self._epoch:
                self._counts["discarded"] += 1
                self._doom(entry)
            elif not self._open:
                self._doom(entry)
            elif entry.expires_at <= now:
                self._counts["recycled"] += 1
                self._doom(entry)
            else:
                self._hand_over(entry)
            self._collect_lost()
            self._trim()
            started = self._plan()
            self._returned.notify_all()
        self._launch(started)
        self._bury()

    def _cleaned(self, entry: _Entry) -> bool:
        """Bring the session to its initial state; a driver that hangs in it is torn out."""
        with self._lock:
            if entry.dead or entry.epoch != self._epoch or not self._open:
                return False
        with Alarm(RESET_TIMEOUT_S, lambda: self._quietly(self._connector.abort, entry.connection)) as alarm:
            try:
                clean = self._connector.reset(entry.connection)
            except Exception as exc:  # noqa: BLE001  whatever a driver raises here, the connection is not clean
                clean = False
                if means_dead(self._mapped(exc)):
                    with self._lock:
                        if entry.epoch == self._epoch:
                            self._new_epoch()
        return bool(clean) and not alarm.fired

    def _bury(self) -> int:
        """Close what was doomed. Return how many."""
        with self._lock:
            doomed, self._doomed = self._doomed, []
            self._counts["closed"] += len(doomed)
        for entry in doomed:
            self._quietly(self._connector.abort if entry.dead else self._connector.close, entry.connection)
        return len(doomed)

    def _quietly(self, action: Callable[[Any], None], connection: Any) -> None:
        try:
            action(connection)
        except Exception as exc:  # noqa: BLE001  promised not to happen; a connection on its way out cannot matter
            _log.debug("%s: a driver call on a connection failed: %s", self._name, exc)

    def _mapped(self, exc: BaseException) -> AgentError:
        if isinstance(exc, AgentError):
            return exc
        try:
            return self._connector.map_error(exc)
        except Exception as failure:  # noqa: BLE001  a broken error table must not hide the error
            _log.exception("%s: map_error failed", self._name)
            return InternalError(f"{self._name}: {type(exc).__name__}, and its translation failed: {failure}")

    # --- words ---

    @property
    def _name(self) -> str:
        return repr(self._connector.context.name)

    def _exhausted(self, reason: str) -> SourceError:
        s = self.settings
        return SourceError(
            f"all {s.pool_size + s.max_overflow} connections of {self._name} are busy: {reason}",
            code="capacity.pool_exhausted",
            hint=f"try again later, or raise pool_size or max_overflow (now {s.pool_size} and {s.max_overflow})",
            retry_after=1.0,
        )

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(
            f"the connections of {self._name} are being closed (its configuration changed, or the agent stops)",
            hint="repeat the request",
        )


class Lease:
    """A borrowed connection. Leaving the `with` block returns it, closed if the error that ends the block demands it."""

    __slots__ = ("_cancel", "_dead", "_entry", "_lock", "_pool", "_returned", "_usable")

    def __init__(self, pool: Pool, entry: _Entry, cancel: CancelToken | None) -> None:
        self._pool = pool
        self._entry = entry
        self._cancel = cancel
        self._lock = threading.Lock()  # guards everything below
        self._returned = False
        self._usable = True
        self._dead = False

    @property
    def connection(self) -> Any:
        """The driver's connection. Raises `InternalError` after the lease was returned: it may be another caller's now."""
        if self._returned:
            raise InternalError("a connection was used after its lease was returned")
        return self._entry.connection

    def discard(self) -> None:
        """Have the connection closed instead of reused when the lease is returned."""
        self._usable = False

    def failed(self, error: BaseException) -> None:
        """Tell the pool what went wrong with the connection, as leaving the `with` block with that error does."""
        if not isinstance(error, Exception):  # an interrupt or a generator's exit: anything may be under way
            self._usable = False
            return
        mapped = self._pool._mapped(error)
        self._dead = self._dead or means_dead(mapped)
        self._usable = self._usable and not self._dead and mapped.code not in _IN_DOUBT

    def abort(self) -> None:
        """Tear the connection down from any thread, so that a blocked call returns. Does nothing after the return."""
        with self._lock:
            if not self._returned:
                self._usable = False
                self._pool._quietly(self._pool._connector.abort, self._entry.connection)

    def cancel(self) -> None:
        """Ask the server, from any thread, to stop what the connection runs. Does nothing after the return.

        The return waits for the request to be sent, and the connection is not reused: the request may arrive late.
        """
        connector = self._pool._connector
        with self._lock:
            if not self._returned and isinstance(connector, Cancellable):
                self._usable = False
                self._pool._quietly(connector.cancel, self._entry.connection)

    def release(self) -> None:
        """Return the connection. Safe to repeat."""
        with self._lock:
            if self._returned:
                return
            self._returned = True
        if self._cancel is not None and self._cancel.cancelled:
            self._usable = False  # the cancel request may still be on its way to the server
        self._pool._give_back(self._entry, usable=self._usable, dead=self._dead)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if exc is not None:
            self.failed(exc)
        self.release()

    def __del__(self) -> None:
        if not self._returned:
            self._pool._lost.append(self._entry)
