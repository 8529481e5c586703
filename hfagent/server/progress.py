"""`$/progress` of one request: begin, reports, end, in this order, whatever the handler does and from whichever thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["ProgressReporter"]

_log = logging.getLogger(__name__)


class ProgressReporter:
    """Callable that services report to. Lives on the loop; may be called from any thread, and never raises."""

    __slots__ = ("_begun", "_congested", "_ended", "_loop", "_send", "_thread", "_title", "token")

    def __init__(
        self,
        token: int | str,
        title: str,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[dict[str, Any]], None],
        congested: Callable[[], bool],
    ) -> None:
        self.token = token
        self._title = title
        self._loop = loop
        self._thread = threading.get_ident()
        self._send = send
        self._congested = congested
        self._begun = False
        self._ended = False

    def __call__(self, value: dict[str, Any]) -> None:
        """Report. `kind` defaults to `report`; a missing `begin` is made up."""
        if threading.get_ident() == self._thread:
            self._emit(value)
            return
        try:
            self._loop.call_soon_threadsafe(self._emit, value)
        except RuntimeError:
            _log.debug("progress after the loop was closed")

    def finish(self) -> None:
        """Close the progress if it was opened; later reports are dropped."""
        if self._begun and not self._ended:
            self._emit({"kind": "end"})
        self._ended = True

    def silence(self) -> None:
        """Drop everything from now on: the request is answered."""
        self._ended = True

    def _emit(self, value: dict[str, Any]) -> None:
        if self._ended:
            return
        kind = value.get("kind", "report")
        if kind == "begin" and self._begun:
            kind = "report"
        if kind != "begin" and not self._begun:
            self._begun = True
            self._transmit({"kind": "begin", "title": self._title})
        if kind == "report" and self._congested():
            return  # news of the past is no use to a client that cannot read the present
        self._begun = True
        self._ended = kind == "end"
        extra = {"title": value.get("title", self._title)} if kind == "begin" else {}
        self._transmit({**value, **extra, "kind": kind})

    def _transmit(self, value: dict[str, Any]) -> None:
        try:
            self._send({"token": self.token, "value": value})
        except (TypeError, ValueError, OverflowError):
            _log.exception("a progress report cannot be encoded")
