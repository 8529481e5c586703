"""A cancel signal that crosses threads and reaches the database server.

The event loop (or a Ctrl-C handler) calls `cancel()`; blocking code polls `raise_if_cancelled()` between batches and
registers what has to happen at once (a cancel request to the server) with `on_cancel`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hfagent.foundation.errors import Cancelled

__all__ = ["CancelToken"]

_log = logging.getLogger(__name__)


class CancelToken:
    """Cancelled once, stays cancelled. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._event = threading.Event()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next = 0

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def cancel(self) -> None:
        """Set the signal and run the callbacks in the caller's thread. Repeating it does nothing."""
        with self._lock:
            if self._event.is_set():
                return
            self._event.set()
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001
                # One failing callback must not keep the others from stopping their work.
                _log.exception("a cancel callback failed")

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Run `callback` when the token is cancelled during the block (at once if it already is)."""
        with self._lock:
            already = self._event.is_set()
            key = self._next
            if not already:
                self._next += 1
                self._callbacks[key] = callback
        if already:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.pop(key, None)

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` when the token is cancelled."""
        if self._event.is_set():
            raise Cancelled()

    def wait(self, seconds: float) -> bool:
        """Sleep for `seconds` or until cancelled; return whether it was cancelled."""
        return self._event.wait(seconds)
