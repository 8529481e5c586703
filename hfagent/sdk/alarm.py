"""A last resort against driver calls that outlast their bound: a callback in another thread when a block takes too long.

    with Alarm(5.0, lambda: connector.abort(connection)) as alarm:
        connector.reset(connection)
    if alarm.fired: ...

Coarse (half a second) and cheap (two dictionary operations a block): one daemon thread per process looks at the armed
alarms, appears with the first one and ends when none was armed for a while. It is not a timer for ordinary deadlines.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Alarm"]

_log = logging.getLogger(__name__)

_TICK_S = 0.5
_LINGER_S = 10.0

_lock = threading.Lock()  # guards everything below and every `fired`
_armed: dict[int, Alarm] = {}
_watcher: threading.Thread | None = None


class Alarm:
    """Runs `callback` in a thread of its own, once, when the block lasts longer than `seconds`.

    `fired` is final after the block: if it is False, the callback did not and will not run.
    """

    __slots__ = ("_at", "_callback", "_seconds", "fired")

    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self._seconds = seconds
        self._callback = callback
        self._at = 0.0
        self.fired = False

    def __enter__(self) -> Self:
        global _watcher
        self._at = time.monotonic() + self._seconds
        with _lock:
            _armed[id(self)] = self
            if _watcher is None or not _watcher.is_alive():  # also after a fork, where threads are gone
                _watcher = threading.Thread(target=_watch, name="hf-alarm", daemon=True)
                _watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with _lock:
            _armed.pop(id(self), None)

    def _ring(self) -> None:
        try:
            self._callback()
        except Exception:  # noqa: BLE001  nobody waits for this thread; the log is all there is
            _log.exception("the callback of an alarm failed")


def _watch() -> None:
    global _watcher
    last_use = time.monotonic()
    while True:
        time.sleep(_TICK_S)
        now = time.monotonic()
        with _lock:
            due = [alarm for alarm in _armed.values() if alarm._at <= now]
            for alarm in due:
                alarm.fired = True
                del _armed[id(alarm)]
            if _armed or due:
                last_use = now
            elif now - last_use > _LINGER_S:
                _watcher = None
                return
        for alarm in due:
            threading.Thread(target=alarm._ring, name="hf-alarm-ring", daemon=True).start()
