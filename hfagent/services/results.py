"""Open results: what they hold, who may work on them, how a page is taken. Blocking; knows no event loop.

Architecture Invariant: a result's lease goes back exactly once, whoever ends it (its last page, an error, its closing,
its session) and whatever works on it at that moment: the worker gives it back when it is done, else the one who ends it.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled
from hfagent.model.query import QueryPage, RowFormat
from hfagent.sdk.alarm import Alarm
from hfagent.sdk.reading import BatchReader
from hfagent.services.connections import Borrowing, Source

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["OpenResult"]

_log = logging.getLogger(__name__)

MESSAGE_BYTES: Final = 15 * 1024 * 1024
"""Longest body of a page, a little under the protocol's 16 MiB: its envelope and columns need room, too."""
_CLOSE_S: Final = 5.0
_ESCAPED: Final = 6
"""Bytes of JSON that one byte of text may need."""
_FIXED: Final = 48
"""Bytes of JSON that any value of a fixed width needs at most, its comma included."""


class RestartableDeadline(Deadline):
    """A time limit that each request on a result starts anew; the connector holds it as the statement's."""

    __slots__ = ()

    def restart(self) -> None:
        """Give the whole time again."""
        if self.seconds is not None:
            self._at = self._clock.monotonic() + self.seconds


@dataclass(eq=False)
class OpenResult:
    """An open result. Made before its statement runs; `begin` and `finish` are around whatever works on it."""

    query_id: str
    session_id: str
    owner: tuple[str, int | None]
    """Kind and user id of who made it: the same user may cancel it from elsewhere."""
    source: Source
    statement: str
    page_size: int
    format: RowFormat
    deadline: RestartableDeadline
    max_rows: int | None = None
    cancel: CancelToken = field(default_factory=CancelToken)
    borrowing: Borrowing = field(default_factory=Borrowing)
    reader: BatchReader | None = None
    rows_before: int = 0
    touched: float | None = None
    """When the last request on it ended; None while the first one runs."""

    def __post_init__(self) -> None:
        self._rest: pa.RecordBatch | None = None
        self._warned = 0
        self._lock = threading.Lock()  # guards everything below
        self._working = False
        self._doomed = False
        self._released = False

    @property
    def released(self) -> bool:
        """Whether its lease went back."""
        return self._released

    # --- who works on it ---

    def begin(self) -> None:
        """Start to work on it. Raises `Cancelled` when somebody ended it meanwhile."""
        with self._lock:
            if self._doomed:
                raise Cancelled("the result was closed")
            self._working = True

    def finish(self) -> None:
        """Stop working on it. Raises `Cancelled` when somebody ended it meanwhile; then it is released here."""
        with self._lock:
            self._working = False
            doomed = self._doomed
        if doomed:
            self.release(Cancelled())
            raise Cancelled("the result was closed")

    def doom(self) -> bool:
        """End it: nobody begins to work on it any more. Return whether the caller has to release it."""
        with self._lock:
            self._doomed = True
            return not self._working

    def release(self, error: BaseException | None = None) -> None:
        """Close the reader and give the connection back; `error` is what ended the result early. Safe to repeat."""
        with self._lock:
            if self._released:
                return
            self._released = True
        reader, lease = self.reader, self.borrowing.lease
        self.reader = self._rest = None
        try:
            if reader is not None:
                # It may have to tell the server to stop, and the server may not listen.
                with Alarm(_CLOSE_S, self.borrowing.abort):
                    reader.close()
        except Exception as exc:  # noqa: BLE001  closing a broken result may fail in any way; the lease must go back
            _log.debug("closing the result %s failed: %s", self.query_id, type(exc).__name__)
            if lease is not None:
                lease.discard()
        finally:
            if lease is not None:
                if error is not None:
                    lease.failed(error)
                lease.release()

    # --- its rows ---

    def take(self, page_size: int, max_bytes: int, started: float) -> QueryPage:
        """Take the next page from the reader; at its end the result is released.

        A page that is full is given out without a look at the next row, which the source may not have yet. `max_bytes` is
        the most Arrow data of a page; a page for JSON is bounded by its text as well.
        """
        reader = self.reader
        if reader is None:
            raise Cancelled("the result was closed")
        wanted = page_size if self.max_rows is None else min(page_size, self.max_rows - self.rows_before)
        parts: list[pa.RecordBatch] = []
        rows = size = 0
        exhausted = False
        while rows < wanted and size < max_bytes:
            batch = self._rest if self._rest is not None else next(reader, None)
            self._rest = None
            if batch is None:
                exhausted = True
                break
            fit = _rows_that_fit(batch, wanted - rows, max_bytes - size, first=not parts)
            if fit < batch.num_rows:
                self._rest = batch.slice(fit)
                batch = batch.slice(0, fit)
            if batch.num_rows:
                parts.append(batch)
                rows += batch.num_rows
                size += batch.nbytes
            if self._rest is not None:
                break
        data, notes = self._encoded(parts)
        rows = len(data) if isinstance(data, list) else rows
        exhausted = exhausted and self._rest is None
        limited = self.max_rows is not None and self.rows_before + rows >= self.max_rows
        truncated = limited and not exhausted and (self._rest is not None or any(b.num_rows for b in reader))
        more = not exhausted and not limited
        page = QueryPage(
            query_id=self.query_id,
            columns=reader.columns,
            rows=data if isinstance(data, list) else None,
            arrow=data if isinstance(data, bytes) else None,
            row_count=rows,
            rows_before=self.rows_before,
            has_more=more,
            truncated=truncated,
            elapsed_ms=round((time.perf_counter() - started) * 1000, 3),
            statement=(reader.statement or self.statement) if not self.rows_before else None,
            warnings=(*reader.warnings[self._warned :], *notes),
        )
        self._warned = len(reader.warnings)
        self.rows_before += rows
        if not more:
            self.release()
        return page

    def _encoded(self, parts: list[pa.RecordBatch]) -> tuple[list[list[Any]] | bytes, list[str]]:
        """The page's data in its form, with notes about values that were cut. What is too long goes back to the rest."""
        from hfagent.sdk.arrow import ipc_stream, wire_rows

        assert self.reader is not None
        if self.format == "arrow":
            data: bytes = ipc_stream(parts, self.reader.schema)
            if len(data) > MESSAGE_BYTES and sum(part.num_rows for part in parts) == 1:
                raise _too_long(len(data))
            return data, []
        notes: list[str] = []
        rows: list[list[Any]] = []
        room = MESSAGE_BYTES
        for position, part in enumerate(parts):
            made = wire_rows(part, self.reader.columns, max_value_bytes=MESSAGE_BYTES // 2, notes=notes)
            fit = len(made)
            if _bound(part) > room:
                fit = _rows_in(made, room, first=not rows)
            room -= _size(made[:fit]) if _bound(part) > room // 8 else _bound(part)
            rows += made[:fit]
            if fit < len(made):
                self._put_back([part.slice(fit), *parts[position + 1 :]])
                break
        return rows, notes

    def _put_back(self, parts: list[pa.RecordBatch]) -> None:
        import pyarrow as pa

        table = pa.Table.from_batches([*parts, *([self._rest] if self._rest is not None else [])])
        self._rest = table.combine_chunks().to_batches()[0]
