"""Open results: what they hold, who may work on them, how a page is taken. Blocking, `turn` excepted.

Architecture Invariant: a result's lease goes back exactly once, whoever ends it (its last page, an error, its closing,
its session) and whatever works on it at that moment: the worker gives it back when it is done, else the one who ends it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import chain
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
"""Longest data of a page, a little under the protocol's 16 MiB: its envelope and columns need room, too."""
VALUE_BYTES: Final = 8 * 1024 * 1024
"""Longest text or binary value in a page of rows; a longer one is cut, and the page says so."""
_CLOSE_S: Final = 5.0
_ESCAPED: Final = 6  # bytes of JSON that one byte of text may need
_FIXED: Final = 48  # bytes of JSON that a value of fixed width needs at most
_SHORTEST: Final = 5  # bytes of JSON that most values need at least: `null,`


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
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the request that works on it; others wait for their turn."""
    touched: float | None = None
    """When the last request on it ended; None while the first one runs."""

    def __post_init__(self) -> None:
        self._waiting: deque[pa.RecordBatch] = deque()  # read from the source, not given out yet
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
        self.reader = None
        self._waiting.clear()
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
        reader, lease = self.reader, self.borrowing.lease
        assert reader is not None and lease is not None
        with self.cancel.on_cancel(lease.cancel):
            return self._taken(reader, page_size, max_bytes, started)

    def _taken(self, reader: BatchReader, page_size: int, max_bytes: int, started: float) -> QueryPage:
        wanted = page_size if self.max_rows is None else min(page_size, self.max_rows - self.rows_before)
        parts, at_end = self._gather(reader, wanted, max_bytes)
        arrow: bytes | None = None
        made: list[list[Any]] | None = None
        notes: list[str] = []
        if self.format == "arrow":
            arrow = _stream(parts, reader)
            rows = sum(part.num_rows for part in parts)
        else:
            made = _rows(parts, reader, notes)
            rows = len(made)
            self._put_back(parts, rows)
        at_end = at_end and not self._waiting
        limited = self.max_rows is not None and self.rows_before + rows >= self.max_rows
        truncated = limited and not at_end and any(b.num_rows for b in chain(self._waiting, reader))
        page = QueryPage(
            query_id=self.query_id,
            columns=reader.columns,
            rows=made,
            arrow=arrow,
            row_count=rows,
            rows_before=self.rows_before,
            has_more=not at_end and not limited,
            truncated=truncated,
            elapsed_ms=round((time.perf_counter() - started) * 1000, 3),
            statement=(reader.statement or self.statement) if not self.rows_before else None,
            warnings=(*reader.warnings[self._warned :], *notes),
        )
        self._warned = len(reader.warnings)
        self.rows_before += rows
        if not page.has_more:
            self.release()
        return page

    def _gather(self, reader: BatchReader, wanted: int, max_bytes: int) -> tuple[list[pa.RecordBatch], bool]:
        """Take batches until a page is full; return them and whether the reader is at its end."""
        parts: list[pa.RecordBatch] = []
        rows = size = 0
        while rows < wanted:
            batch = self._waiting.popleft() if self._waiting else next(reader, None)
            if batch is None:
                return parts, True
            fit = self._fit(batch, wanted - rows, max_bytes - size, first=not rows)
            if fit < batch.num_rows:
                self._waiting.appendleft(batch.slice(fit))
            if fit:
                part = batch.slice(0, fit)
                parts.append(part)
                rows += fit
                size += self._weight(part)
            if fit < batch.num_rows or size >= max_bytes:
                break
        return parts, False

    def _fit(self, batch: pa.RecordBatch, rows: int, room: int, *, first: bool) -> int:
        """How many leading rows of `batch` fit into what is left of a page; at least one into an empty page."""
        from hfagent.sdk.arrow import slice_by_bytes

        count = min(batch.num_rows, rows)
        if self._weight(batch.slice(0, count)) <= room or not count:
            return int(count)
        if self.format == "rows":
            count = min(count, max(1, room // (_SHORTEST * max(1, batch.num_columns))))
        piece = slice_by_bytes(batch.slice(0, count), max(1, room))[0]
        fits = first or self._weight(piece) <= room
        return int(piece.num_rows) if fits else 0

    def _weight(self, batch: pa.RecordBatch) -> int:
        """Bytes a batch counts with: many short values need more room as text than as Arrow data."""
        least = _SHORTEST * batch.num_rows * batch.num_columns if self.format == "rows" else 0
        return max(int(batch.nbytes), least)

    def _put_back(self, parts: list[pa.RecordBatch], rows: int) -> None:
        """Keep for the next page what is in `parts` behind the first `rows` rows."""
        left = []
        for part in parts:
            if part.num_rows > rows:
                left.append(part.slice(rows))
            rows = max(0, rows - part.num_rows)
        self._waiting.extendleft(reversed(left))


def _stream(parts: list[pa.RecordBatch], reader: BatchReader) -> bytes:
    from hfagent.sdk.arrow import ipc_stream

    data: bytes = ipc_stream(parts, reader.schema)
    if len(data) > MESSAGE_BYTES:
        raise _too_long(len(data))
    return data


def _rows(parts: list[pa.RecordBatch], reader: BatchReader, notes: list[str]) -> list[list[Any]]:
    """The rows of a page, as many as one message can carry."""
    from pydantic_core import to_json

    from hfagent.sdk.arrow import wire_rows

    rows = [row for part in parts for row in wire_rows(part, reader.columns, max_value_bytes=VALUE_BYTES, notes=notes)]
    if sum(map(_longest_text, parts)) > MESSAGE_BYTES:  # only then it is worth writing the text to see how long it is
        while (size := len(to_json(rows))) > MESSAGE_BYTES:
            if len(rows) == 1:
                raise _too_long(size)
            del rows[max(1, int(0.9 * len(rows) * MESSAGE_BYTES / size)) :]
    return rows


def _longest_text(batch: pa.RecordBatch) -> int:
    import pyarrow as pa

    return sum(
        batch.num_rows * _FIXED
        if pa.types.is_primitive(column.type)
        else int(column.nbytes) * _ESCAPED + batch.num_rows * 8
        for column in batch.columns
    )


def _too_long(size: int) -> AgentError:
    return AgentError(
        f"one row of the result takes {size:,} bytes, more than a message can carry",
        code="read.limit_exceeded",
        hint="select fewer or shorter columns, or write the result to a file with query/export",
    )
