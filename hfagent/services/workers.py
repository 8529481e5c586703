"""The only bridge from the event loop to blocking code.

Each connector has a lane: a few daemon threads of its own, started on demand and ended when idle. A source that hangs
fills its own lane and nobody else's. The threads are daemons on purpose: a driver stuck in a system call must not keep
the process from exiting (the standard executor joins its threads at exit, so nothing here uses it).

A call ends in one of three ways: the work returns; it is cancelled, by its caller (who is answered at once) or through its
token by somebody else; the deadline passes. In the last two the token fires, which cancels the statement on the server; the
work has a second of grace, then `abort` tears the socket down. The thread winds down by itself.

Architecture Invariant: the event loop never calls a driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, SourceError

__all__ = ["Lane", "LaneClosed", "Workers"]

_log = logging.getLogger(__name__)
T = TypeVar("T")

IDLE_S: Final = 20.0
"""How long a thread waits for more work before it ends."""
GRACE_S: Final = 1.0
"""How long work may take to end after its token fired, before its socket is torn down."""


class LaneClosed(AgentError):
    """The lane was closed: its connector changed or the agent stops. Repeating the request finds a new one."""

    default_code = "agent.draining"


class Lane:
    """A small set of daemon threads with one queue. Threads appear when work waits and none is idle."""

    def __init__(self, name: str, *, threads: int) -> None:
        self.name = name
        self._limit = threads
        self._condition = threading.Condition()  # guards everything below
        self._queue: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def submit(self, work: Callable[[], None]) -> None:
        """Queue `work`. Raises `LaneClosed`, and `AgentError` (`capacity.overloaded`) when no thread can be had."""
        with self._condition:
            if self._closed:
                raise LaneClosed("the connection is being closed", hint="repeat the request")
            self._queue.append(work)
            # Compared with the queue, not with zero: an idle thread that was told already has not taken its work yet.
            if len(self._queue) > self._idle and self._threads < self._limit:
                try:
                    threading.Thread(target=self._serve, name=f"hf-{self.name}", daemon=True).start()
                    self._threads += 1
                except RuntimeError as exc:
                    if not self._threads:
                        self._queue.remove(work)
                        raise AgentError(
                            f"the agent cannot start another thread: {exc}", code="capacity.overloaded"
                        ) from exc
            self._condition.notify()

    def close(self) -> None:
        """Take no more work; the threads end after what is queued. Safe to repeat."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    @property
    def threads(self) -> int:
        """Threads alive now."""
        return self._threads

    def _serve(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException:  # noqa: BLE001  a lane must not lose its thread to one piece of work
                _log.exception("work in the lane %s failed", self.name)
            del work  # it may hold a whole page of rows while this thread idles

    def _next(self) -> Callable[[], None] | None:
        """Wait for work; None when this thread is to end."""
        with self._condition:
            while not self._queue:
                woken = False
                if not self._closed:
                    self._idle += 1
                    woken = self._condition.wait(IDLE_S)
                    self._idle -= 1
                if not woken and not self._queue:
                    self._threads -= 1
                    return None
            return self._queue.popleft()


class Workers:
    """All lanes of the daemon."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._background: set[asyncio.Task[None]] = set()

    def lane(self, name: str, *, threads: int = 1) -> Lane:
        """Return the lane of that name, made on first use."""
        found = self._lanes.get(name)
        if found is None:
            found = self._lanes[name] = Lane(name, threads=threads)
        return found

    def detach(self, name: str) -> Lane | None:
        """Forget a lane without closing it: who holds it goes on using it, others get a new one of that name."""
        return self._lanes.pop(name, None)

    def drop(self, name: str) -> None:
        """Close a lane and forget it; what runs in it winds down on its own."""
        if lane := self.detach(name):
            lane.close()

    def close(self) -> None:
        """Close every lane. Safe to repeat."""
        for name in list(self._lanes):
            self.drop(name)

    async def run(
        self,
        lane: Lane,
        work: Callable[[], T],
        *,
        cancel: CancelToken | None = None,
        deadline: Deadline | None = None,
        abort: Callable[[], None] | None = None,
        what: str = "the request",
    ) -> T:
        """Run `work` in the lane and return its result or raise its exception.

        Raises `asyncio.CancelledError` when the caller is cancelled, `Cancelled` when the token fires otherwise,
        `SourceError` (`timeout.total`) when the deadline passes. Work that has not begun by then never does. `abort` must be
        callable from any thread.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        fired: asyncio.Future[None] = loop.create_future()
        token = cancel or CancelToken()

        def job() -> None:
            if token.cancelled:
                _post(loop, _settle, future, None, Cancelled())
            else:
                _post(loop, _settle, future, *_outcome(work))

        lane.submit(job)
        late = False
        try:
            with token.on_cancel(lambda: _post(loop, _settle, fired, None, None)):
                left = deadline.remaining() if deadline else None
                waiting: set[asyncio.Future[Any]] = {future, fired}
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not future.done():
                    late = not fired.done()
                    if late:
                        self.off_loop(token.cancel)
                    await asyncio.wait({future}, timeout=GRACE_S)
        except asyncio.CancelledError:
            self.off_loop(token.cancel)
            self._abandon(future, abort)
            raise
        if future.done() and not (late and _is_cancelled(future.exception())):
            return future.result()
        if not future.done():
            self._abandon(future, abort, graceful=False)
        if not late:
            raise Cancelled()
        seconds = deadline.seconds if deadline else None
        raise SourceError(
            f"{what} did not finish within {seconds or 0:g} s",
            code="timeout.total",
            hint="raise the time limit, or narrow the request",
        )

    async def call(self, lane: Lane, work: Callable[[], T]) -> T:
        """Run quick blocking work (the store, a file) to its end, whatever happens to the caller."""
        return await self._finished(lane.submit, work)

    async def apart(self, work: Callable[[], T]) -> T:
        """Run blocking work in a thread of its own, to its end: for what must not wait behind a full or closed lane."""
        return await self._finished(self.off_loop, work)

    def off_loop(self, callback: Callable[[], None]) -> None:
        """Start a callback in a daemon thread of its own (it talks to a server, and nobody waits for it)."""
        threading.Thread(target=_logged(callback), name="hf-apart", daemon=True).start()

    async def _finished(self, submit: Callable[[Callable[[], None]], None], work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(_observe)
        submit(lambda: _post(loop, _settle, future, *_outcome(work)))
        return await asyncio.shield(future)

    def _abandon(self, future: asyncio.Future[Any], abort: Callable[[], None] | None, *, graceful: bool = True) -> None:
        """Let go of work whose caller is answered: after its grace it is torn down; its late outcome is looked at, so that
        asyncio does not complain."""
        future.add_done_callback(_observe)
        if abort is None or future.done():
            return
        if not graceful:
            self.off_loop(abort)
            return

        async def later() -> None:
            await asyncio.wait({future}, timeout=GRACE_S)
            if not future.done():
                self.off_loop(abort)

        task = asyncio.get_running_loop().create_task(later())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *values: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
        loop.call_soon_threadsafe(callback, *values)


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except BaseException as exc:  # noqa: BLE001  handed to the awaiting side
        return None, exc


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):  # a future refuses it
        future.set_exception(RuntimeError("StopIteration escaped from blocking work"))
    else:
        future.set_exception(error)


def _observe(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _is_cancelled(error: BaseException | None) -> bool:
    return isinstance(error, AgentError) and error.code == "cancelled"


def _logged(callback: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001  nobody waits for this thread; the log is all there is
            _log.exception("work beside the lanes failed")

    return run
