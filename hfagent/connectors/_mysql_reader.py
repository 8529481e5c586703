"""An open result as a `BatchReader`: who may stop it, when it is given up, and in which state it leaves the session.

A statement is stopped by `KILL QUERY` from a second, short-lived session, so that the first one stays usable; when the
statement is still there after a grace period, its socket is cut and the pool discards the session. Closing a reader early
works the same way: stop, drain what is under way, or cut.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from hfagent.connectors._mysql_rows import Block, Decoder
from hfagent.connectors._mysql_session import Session
from hfagent.connectors._mysql_types import ValueOptions, refined, result_column
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, SourceError
from hfagent.model.stream import Column
from hfagent.sdk.alarm import Alarm
from hfagent.sdk.arrow import arrow_schema
from hfagent.sdk.reading import BatchReader

if TYPE_CHECKING:
    from hfagent.sdk.reading import Statement

__all__ = ["Watch", "open_reader"]

_GRACE: Final = 2.0
"""Seconds a statement may take to end after KILL QUERY, and rows under way to arrive."""


class Watch:
    """Stops the session's statement when its caller cancels or its time is up. Nothing happens after `end`."""

    def __init__(
        self, session: Session, kill: Callable[[Session], bool], cancel: CancelToken, deadline: Deadline
    ) -> None:
        self.session = session
        self.expired = False
        self._kill = kill
        self._cancel = cancel
        self._deadline = deadline
        self._ended = threading.Event()
        self._lock = threading.Lock()  # guards `_stopper`, and that none starts after the end
        self._stopper: threading.Thread | None = None
        self._registration = ExitStack()

    def begin(self) -> None:
        """Start watching. Raises `Cancelled` when it is too late already."""
        self._cancel.raise_if_cancelled()
        left = self._deadline.remaining()
        if left is not None:
            if left <= 0:
                raise _out_of_time()
            # Half a second late at most, which costs a statement nothing; a timer's thread would cost every one of them.
            self._registration.enter_context(Alarm(left, self._expire))
        self._registration.enter_context(self._cancel.on_cancel(self._stop_soon))

    def end(self) -> None:
        """Stop watching, and wait for a stop that is under way: it must not hit the session's next statement."""
        with self._lock:
            self._ended.set()
            stopper = self._stopper
        self._registration.close()
        if stopper is not None:
            stopper.join(2 * _GRACE)
            if stopper.is_alive():
                self.session.shut_down()

    def explain(self, error: BaseException) -> BaseException:
        """What an error means, given that we may have caused it ourselves."""
        if isinstance(error, AgentError) and error.code in ("read.data_invalid", "guard.write_blocked"):
            return error
        if self._cancel.cancelled or self.session.cancelled:
            return Cancelled()
        if self.expired or self._deadline.expired():
            return _out_of_time()
        return error

    def check(self) -> None:
        """Raise when the caller cancelled or the time is up."""
        self._cancel.raise_if_cancelled()
        if self.session.cancelled:  # MySQL's SLEEP answers a KILL QUERY with a row, not with an error
            raise Cancelled()
        if self._deadline.expired():
            raise _out_of_time()

    def _expire(self) -> None:
        self.expired = True
        self._stop_soon()

    def _stop_soon(self) -> None:
        # In a thread of its own: whoever cancels (an event loop, a signal handler) must not wait for a network.
        with self._lock:
            if self._ended.is_set() or self._stopper is not None:
                return
            self._stopper = threading.Thread(target=self._stop, name="mysql-stop", daemon=True)
            self._stopper.start()

    def _stop(self) -> None:
        self._kill(self.session)
        if not self._ended.wait(_GRACE):
            self.session.shut_down()


def open_reader(
    session: Session,
    sql: str,
    request: Statement,
    *,
    options: ValueOptions,
    kill: Callable[[Session], bool],
    map_error: Callable[[BaseException], AgentError],
    deadline: Deadline,
    trusted: bool = False,
    declared: Mapping[str, Column] | None = None,
    after: Callable[[], None] | None = None,
) -> BatchReader:
    """Run `sql` and return its open result.

    `trusted`: the statement is our own and leaves nothing behind in the session. `declared`: what the catalogue knows about
    the columns. `after`: runs once the result is done with and the session is in order (ends a transaction).
    """
    result = _Result(session, kill, map_error, Watch(session, kill, request.cancel, deadline), after)
    try:
        result.watch.begin()
        wire = session.start(sql, trusted=trusted, timeout=None)
        fields = getattr(wire, "fields", None) or []
        columns = tuple(_column(field, i, options, declared or {}) for i, field in enumerate(fields, start=1))
        schema = arrow_schema(columns)
        decoder = Decoder(columns, [field.type_code for field in fields], schema, options)
    except BaseException as exc:
        result.settle()
        if isinstance(exc, Exception):
            raise _mapped(result.watch.explain(exc), map_error) from exc
        raise
    reader = BatchReader(
        columns, schema, result.batches(decoder, request), on_close=result.settle, statement=request.text
    )
    result.warnings = reader.warnings
    return reader


class _Result:
    """The life of one result on the wire."""

    def __init__(
        self,
        session: Session,
        kill: Callable[[Session], bool],
        map_error: Callable[[BaseException], AgentError],
        watch: Watch,
        after: Callable[[], None] | None,
    ) -> None:
        self.watch = watch
        self.warnings: list[str] = []
        self._session = session
        self._kill = kill
        self._map_error = map_error
        self._after = after
        self._blocks: Iterator[Block | bytes] | None = None
        self._settled = False

    def batches(self, decoder: Decoder, request: Statement) -> Iterator[pa.RecordBatch]:
        """Yield the batches, at most `request.max_rows` rows in all."""
        left = request.max_rows
        try:
            if self._session.streaming:
                self._open_blocks(request.first_rows)
                if left != 0:
                    for block in self._rows():
                        for batch in decoder.batches(block):
                            self.watch.check()
                            piece = batch if left is None else batch.slice(0, left)
                            if left is not None:
                                left -= piece.num_rows
                            yield piece
                            if left == 0:
                                return
        except Exception as exc:
            explained = self.watch.explain(exc)
            self.settle()
            raise _mapped(explained, self._map_error) from exc
        finally:
            self.warnings += decoder.warnings()
            self.settle()

    def settle(self) -> None:
        """Leave the session idle or broken, never busy. Safe to repeat."""
        if self._settled:
            return
        self._settled = True
        session = self._session
        try:
            if session.open and session.streaming and not self._stop_and_drain():
                session.discard()
        finally:
            self.watch.end()
            with session.interrupting:  # a cancel that is on its way must arrive before the next statement is sent
                session.running = False
            if self._after is not None and session.usable:
                self._after()

    def _open_blocks(self, first_rows: int) -> None:
        self._session.set_read_timeout(self._session.config.read_timeout_s)
        self._blocks = self._session.blocks(first_rows)

    def _rows(self) -> Iterator[Block]:
        assert self._blocks is not None
        for item in self._blocks:
            if isinstance(item, bytes):
                self._session.finish(item)
            else:
                yield item

    def _stop_and_drain(self) -> bool:
        """Have the server end the statement and read what is still under way; False when that takes too long."""
        if not self._kill(self._session):
            return False
        until = time.monotonic() + _GRACE
        try:
            if self._blocks is None:
                self._open_blocks(0)
            self._session.set_read_timeout(_GRACE)
            for _ in self._rows():
                if time.monotonic() > until:
                    return False
        except Exception:  # noqa: BLE001
            # The expected end is error 1317 (interrupted); after any other the session is closed, or is discarded as busy.
            return self._session.usable
        return True


def _column(field: Any, ordinal: int, options: ValueOptions, declared: Mapping[str, Column]) -> Column:
    column = result_column(field, ordinal, options)
    known = declared.get(column.name)
    if known is None:
        return column
    type_ = refined(column.type, known.type)
    return column.model_copy(update={"type": type_, "native_type": known.native_type or column.native_type})


def _mapped(error: BaseException, map_error: Callable[[BaseException], AgentError]) -> AgentError:
    return error if isinstance(error, AgentError) else map_error(error)


def _out_of_time() -> SourceError:
    return SourceError(
        "the statement ran into its time limit",
        code="timeout.statement",
        hint="narrow the statement, or raise the limit",
    )
