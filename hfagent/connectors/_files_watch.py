"""Stops the query engine from outside: on cancel, at a deadline, on abort. One small thread per running statement.

The interrupt is repeated until the statement has ended: an interrupt that arrives between two fetches is forgotten by the
engine, and the next fetch would run on.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import SourceError

__all__ = ["Watch"]

_AGAIN = 0.05


class Watch:
    """Guards work on one engine connection: a context manager, or `start()` … `stop()`.

    `check()` raises what the statement was stopped for; call it when the engine reports an interrupt, and between batches.
    """

    def __init__(self, engine: Any, cancel: CancelToken, deadline: Deadline, *, what: str = "the statement") -> None:
        self._engine = engine
        self._cancel = cancel
        self._deadline = deadline
        self._what = what
        self._wake = threading.Event()
        self._ended = False
        self._aborted = False
        self._thread = threading.Thread(target=self._run, name="hfagent-files-watch", daemon=True)
        self._unhook: Any = None

    def start(self) -> Self:
        self._unhook = self._cancel.on_cancel(self._wake.set)
        self._unhook.__enter__()
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the watch. Safe to repeat."""
        if self._ended:
            return
        self._ended = True
        self._wake.set()
        if self._unhook is not None:
            self._unhook.__exit__(None, None, None)
            self._thread.join()

    def abort(self) -> None:
        """Interrupt the work for another reason than cancel or deadline (the connection is being torn down)."""
        self._aborted = True
        self._wake.set()

    def check(self) -> None:
        """Raise `Cancelled`, `timeout.statement` or `net.reset` when the work was to stop."""
        self._cancel.raise_if_cancelled()
        if self._deadline.expired():
            raise SourceError(
                f"{self._what} ran longer than {self._deadline.seconds:g} s and was stopped",
                code="timeout.statement",
                hint="allow more time, or ask for less (a narrower filter, fewer files)",
            )
        if self._aborted:
            raise SourceError(f"{self._what} was stopped because its connection was closed", code="net.reset")

    def _run(self) -> None:
        while not self._ended:
            if self._cancel.cancelled or self._deadline.expired() or self._aborted:
                self._engine.interrupt()
                self._wake.clear()
                self._wake.wait(_AGAIN)
            else:
                self._wake.wait(self._deadline.remaining())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
