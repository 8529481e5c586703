"""A cancel signal that crosses threads and reaches the database server.

The event loop (or a Ctrl-C handler) calls `cancel()`; blocking code polls `raise_if_cancelled()` between batches and
registers what has to happen at once (a cancel request to the server) with `on_cancel`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from hfagent.foundation.errors import Cancelled

__all__ = ["CancelToken"]

_log = logging.getLogger(__name__)


_CALLBACK_WAIT_S: Final = 10.0


class _Registration:
    """A callback, and whether it has run."""

    __slots__ = ("callback", "done", "thread")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.done = threading.Event()
        self.thread = 0


class CancelToken:
    """Cancelled once, stays cancelled. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._cancelled = False
        self._event: threading.Event | None = None  # made when somebody waits: every request has a token, few wait
        self._registrations: dict[_Registration, None] = {}

    @property
    def cancelled(self) -> bool:
        """Whether the signal is set."""
        return self._cancelled

    def cancel(self) -> None:
        """Set the signal and run the callbacks in the caller's thread. Repeating it does nothing."""
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            if self._event is not None:
                self._event.set()
            registrations = list(self._registrations)
            for registration in registrations:
                registration.thread = threading.get_ident()
            self._registrations.clear()
        for registration in registrations:
            try:
                registration.callback()
            except Exception:  # noqa: BLE001
                # One failing callback must not keep the others from stopping their work.
                _log.exception("a cancel callback failed")
            finally:
                registration.done.set()

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Run `callback` when the token is cancelled during the block (at once if it already is).

        The block does not end while the callback runs in another thread (10 s at most): what it cancels is still what the
        block worked on, never the next user's statement on the same connection. Callbacks must be short. (A block on an
        event loop does not wait: it works on no connection itself.)
        """
        registration = _Registration(callback)
        with self._lock:
            already = self._cancelled
            if not already:
                self._registrations[registration] = None
        if already:
            callback()
        try:
            yield
        finally:
            with self._lock:
                running = not already and registration not in self._registrations
                self._registrations.pop(registration, None)
            must_wait = running and registration.thread != threading.get_ident() and not _on_event_loop()
            if must_wait and not registration.done.wait(_CALLBACK_WAIT_S):
                _log.warning("a cancel callback did not end within %g s", _CALLBACK_WAIT_S)

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` when the token is cancelled."""
        if self._cancelled:
            raise Cancelled()

    def wait(self, seconds: float) -> bool:
        """Sleep for `seconds` or until cancelled; return whether it was cancelled."""
        with self._lock:
            if self._cancelled:
                return True
            if self._event is None:
                self._event = threading.Event()
            event = self._event
        return event.wait(seconds)


def _on_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")  # not imported here: the forwarders do without
    return asyncio is not None and asyncio._get_running_loop() is not None
