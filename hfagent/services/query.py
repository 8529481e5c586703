"""Runs statements and holds their open results.

A result belongs to the session that made it. Its first page comes when its rows are there; the connection stays with the
result until the last page, `close`, the session's end, or an idle limit. One request at a time works on a result.
Cancelling any request that works on it cancels the statement on the server and closes it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import SYSTEM_CLOCK, Clock, Deadline
from hfagent.foundation.errors import AgentError, Conflict, NotFound, UserError
from hfagent.model.query import ExportReport, QueryPage, QueryPlan, RowFormat
from hfagent.model.settings import QuerySettings
from hfagent.sdk.connector import BaseConnector, Cancellable, Explainable, Queryable
from hfagent.sdk.pool import Lease
from hfagent.sdk.reading import BatchReader, Statement
from hfagent.services.connections import Connections, Source
from hfagent.services.connectors import Connectors
from hfagent.services.context import CallContext
from hfagent.services.export import Format, format_of, write_result
from hfagent.services.workers import Workers

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Query"]

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class _OpenResult:
    """An open result. `lock` is held by the request that works on it."""

    query_id: str
    session_id: str
    uid: int | None
    source: Source
    statement: str
    page_size: int
    format: RowFormat
    cancel: CancelToken = field(default_factory=CancelToken)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    lease: Lease | None = None
    reader: BatchReader | None = None
    rest: pa.RecordBatch | None = None
    rows_before: int = 0
    max_rows: int | None = None
    touched: float = 0.0
    closed: bool = False


class Query:
    """`query/*`."""

    def __init__(
        self,
        connectors: Connectors,
        connections: Connections,
        workers: Workers,
        settings: Callable[[], QuerySettings],
        max_rows: Callable[[], int | None],
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._connectors = connectors
        self._connections = connections
        self._workers = workers
        self._settings = settings
        self._max_rows = max_rows
        self._clock = clock
        self._open: dict[str, _OpenResult] = {}

    # --- verbs ---

    async def execute(
        self,
        call: CallContext,
        connector: str,
        sql: str,
        *,
        params: Any = None,
        page_size: int = 500,
        max_rows: int | None = None,
        timeout_s: float | None = None,
        format: RowFormat = "rows",
        query_id: str | None = None,
    ) -> QueryPage:
        """Run a statement and return its first page. Raises `AgentError`."""
        source = await self._source(connector)
        query_id = query_id or f"q-{secrets.token_hex(8)}"
        if query_id in self._open:
            raise Conflict(
                f"a result named {query_id!r} is open already", code="connector.conflict", hint="close it first"
            )
        mine = sum(1 for result in self._open.values() if result.session_id == call.session_id)
        if mine >= self._settings().max_open_per_session:
            raise AgentError(
                f"this client has {mine} open results",
                code="capacity.overloaded",
                hint="fetch them to their end or close them with query/close",
            )
        limit = _least(max_rows, self._max_rows())
        result = _OpenResult(query_id, call.session_id, call.actor.uid, source, sql, page_size, format, max_rows=limit)
        self._open[query_id] = result
        deadline = self._deadline(source, timeout_s)
        statement = Statement(
            sql, _bindings(params), max_rows=None if limit is None else limit + 1, first_rows=page_size,
            cancel=result.cancel, deadline=deadline,
        )  # fmt: skip

        def work() -> QueryPage:
            self._start(result, statement, deadline)
            return self._take(result, page_size)

        return await self._work(call, result, work, deadline)

    async def fetch(self, call: CallContext, query_id: str, *, page_size: int | None = None) -> QueryPage:
        """Return the next page of an open result. Raises `NotFound` (`query.not_found`)."""
        result = self._mine(call, query_id)
        deadline = self._deadline(result.source, None)
        return await self._work(call, result, lambda: self._take(result, page_size or result.page_size), deadline)

    async def close(self, call: CallContext, query_id: str) -> None:
        """Close a result of this session. Closing one that is gone does nothing."""
        result = self._open.get(query_id)
        if result is not None and result.session_id == call.session_id:
            await self._discard(result)

    async def cancel(self, call: CallContext, query_id: str) -> None:
        """Cancel a running or open result of the same user. Raises `NotFound`."""
        result = self._open.get(query_id)
        if result is None or (result.session_id != call.session_id and result.uid != call.actor.uid):
            raise _no_result(query_id)
        await self._discard(result)

    async def explain(
        self, call: CallContext, connector: str, sql: str, *, timeout_s: float | None = None
    ) -> QueryPlan:
        """Return the plan of a statement without running it."""
        source = await self._source(connector)
        connector_object = source.connector
        if not isinstance(connector_object, Explainable):
            raise UserError(f"{source.connector.title} cannot explain statements", code="unsupported")
        deadline = self._deadline(source, timeout_s)
        statement = Statement(sql, cancel=call.cancel, deadline=deadline)

        def work() -> QueryPlan:
            return self.with_connection(
                source, statement.cancel, deadline, lambda c: connector_object.explain(c, statement)
            )

        return await self._workers.run(source.lane, work, cancel=call.cancel, deadline=deadline, what="the plan")

    async def export(
        self,
        call: CallContext,
        connector: str,
        sql: str,
        path: Path,
        *,
        params: Any = None,
        format: Format | None = None,
        max_rows: int | None = None,
        timeout_s: float | None = None,
        overwrite: bool = False,
    ) -> ExportReport:
        """Run a statement and write its whole result to `path` (checked by the policy before)."""
        chosen = format_of(path, format)
        source = await self._source(connector)
        queryable = source.connector
        if not isinstance(queryable, Queryable):
            raise _not_queryable(source)
        limit = _least(max_rows, self._max_rows())
        deadline = self._deadline(source, timeout_s)
        statement = Statement(sql, _bindings(params), max_rows=limit, cancel=call.cancel, deadline=deadline)
        started = time.perf_counter()

        def report(rows: int, size: int) -> None:
            call.progress({"kind": "report", "message": f"{rows:,} rows", "rows": rows, "bytes": size})

        def run(connection: Any) -> tuple[int, int]:
            with queryable.execute(connection, statement) as reader:
                return write_result(reader, path, chosen, overwrite=overwrite, cancel=call.cancel, progress=report)

        def work() -> tuple[int, int]:
            return self.with_connection(source, call.cancel, deadline, run)

        call.progress({"kind": "begin", "title": f"Export to {path.name}", "cancellable": True})
        rows, size = await self._workers.run(
            source.lane, work, cancel=call.cancel, deadline=deadline, what="the export"
        )
        call.progress({"kind": "end", "message": f"{rows:,} rows", "rows": rows, "bytes": size})
        return ExportReport(
            path=str(path), format=chosen, rows=rows, bytes=size,
            elapsed_ms=round((time.perf_counter() - started) * 1000, 1), truncated=limit is not None and rows >= limit,
        )  # fmt: skip

    # --- life of sessions and results ---

    async def session_closed(self, session_id: str) -> None:
        """Close every result of a session that ended."""
        for result in [r for r in self._open.values() if r.session_id == session_id]:
            await self._discard(result)

    async def close_idle(self) -> int:
        """Close results that nobody touched for `query.idle_s` seconds; return how many."""
        limit = self._clock.monotonic() - self._settings().idle_s
        idle = [r for r in self._open.values() if not r.lock.locked() and r.touched and r.touched < limit]
        for result in idle:
            await self._discard(result)
        return len(idle)

    async def close_all(self) -> None:
        """Close every result."""
        for result in list(self._open.values()):
            await self._discard(result)

    @property
    def open_count(self) -> int:
        """Results open now."""
        return len(self._open)

    def open_of(self, session_id: str) -> int:
        """Results that a session has open."""
        return sum(1 for result in self._open.values() if result.session_id == session_id)

    # --- work in the lane (blocking) ---

    def with_connection(self, source: Source, cancel: CancelToken, deadline: Deadline, work: Callable[[Any], T]) -> T:
        """Run `work` with a pooled connection; cancelling reaches the server. Blocking."""
        with source.pool.acquire(deadline, cancel) as lease, _server_cancel(source.connector, lease, cancel):
            return work(lease.connection)

    def _start(self, result: _OpenResult, statement: Statement, deadline: Deadline) -> None:
        connector = result.source.connector
        if not isinstance(connector, Queryable):
            raise _not_queryable(result.source)
        lease = result.source.pool.acquire(deadline, result.cancel)
        result.lease = lease
        lease.__enter__()
        with _server_cancel(connector, lease, result.cancel):
            result.reader = connector.execute(lease.connection, statement)

    def _take(self, result: _OpenResult, page_size: int) -> QueryPage:
        """Take the next page from the reader. Closes the result when it was the last one."""

        reader, lease = result.reader, result.lease
        if reader is None or lease is None or result.closed:
            raise _no_result(result.query_id)
        started = time.perf_counter()
        wanted = page_size if result.max_rows is None else min(page_size, result.max_rows - result.rows_before)
        # JSON text of a value is up to six times its Arrow form (escapes): the message must stay under its limit.
        max_bytes = self._settings().max_page_bytes // (1 if result.format == "arrow" else 4)
        parts: list[pa.RecordBatch] = []
        rows = size = 0
        exhausted = False
        with _server_cancel(result.source.connector, lease, result.cancel):
            while rows < wanted and size < max_bytes:
                batch = result.rest if result.rest is not None else next(reader, None)
                result.rest = None
                if batch is None:
                    exhausted = True
                    break
                fit = _rows_that_fit(batch, wanted - rows, max_bytes - size, first=not parts)
                if fit < batch.num_rows:
                    result.rest = batch.slice(fit)
                    batch = batch.slice(0, fit)
                if batch.num_rows:
                    parts.append(batch)
                rows += batch.num_rows
                size += batch.nbytes
                if result.rest is not None:
                    break
        limited = result.max_rows is not None and result.rows_before + rows >= result.max_rows
        truncated = False
        if limited and not exhausted:
            with _server_cancel(result.source.connector, lease, result.cancel):
                truncated = result.rest is not None or any(batch.num_rows for batch in reader)
        page = _page(
            result, reader, parts, rows, more=not exhausted and not limited, truncated=truncated, started=started
        )
        result.rows_before += rows
        if not page.has_more:
            self._release(result)
        return page

    def _release(self, result: _OpenResult, *, broken: bool = False) -> None:
        """Close reader and lease. Blocking; safe to repeat."""
        if result.closed:
            return
        result.closed = True
        reader, lease = result.reader, result.lease
        result.reader = result.rest = None
        try:
            if reader is not None:
                reader.close()
        except Exception as exc:  # noqa: BLE001  closing a broken result may fail in any way; the lease must go back
            _log.debug("closing the result %s failed: %s", result.query_id, exc)
            broken = True
        finally:
            if lease is not None:
                if broken:
                    lease.discard()
                lease.__exit__(None, None, None)

    # --- helpers on the loop ---

    async def _work(
        self, call: CallContext, result: _OpenResult, work: Callable[[], QueryPage], deadline: Deadline
    ) -> QueryPage:
        def guarded() -> QueryPage:
            try:
                return work()
            except BaseException as exc:
                error = result.source.connector.map_error(exc) if isinstance(exc, Exception) else exc
                self._release(result, broken=True)
                raise error from exc

        def abort() -> None:
            lease = result.lease
            if lease is not None:
                result.source.connector.abort(lease.connection)

        with ExitStack() as stack:
            stack.enter_context(call.cancel.on_cancel(result.cancel.cancel))
            async with result.lock:
                try:
                    page = await self._workers.run(
                        result.source.lane,
                        guarded,
                        cancel=result.cancel,
                        deadline=deadline,
                        abort=abort,
                        what="the query",
                    )
                except BaseException:
                    self._open.pop(result.query_id, None)
                    result.cancel.cancel()
                    raise
                result.touched = self._clock.monotonic()
                if not page.has_more:
                    self._open.pop(result.query_id, None)
                return page

    async def _discard(self, result: _OpenResult) -> None:
        """Cancel what runs, close the result, give the connection back."""
        self._open.pop(result.query_id, None)
        busy = result.lock.locked()
        if busy:
            await asyncio.to_thread(result.cancel.cancel)
            return  # the request that works on it releases it
        async with result.lock:
            await self._workers.call(result.source.lane, lambda: self._release(result))

    async def _source(self, connector: str) -> Source:
        record = await self._connectors.require(connector)
        return await self._connections.source(record)

    def _deadline(self, source: Source, timeout_s: float | None) -> Deadline:
        configured = float(getattr(source.connector.config, "query_timeout_s", 0) or 0) or None
        # The server enforces its own limit; the agent's comes a little later, so that the server's message wins.
        seconds = _least(timeout_s, None if configured is None else configured + 2.0)
        return Deadline(seconds)

    def _mine(self, call: CallContext, query_id: str) -> _OpenResult:
        result = self._open.get(query_id)
        if result is None or result.session_id != call.session_id:
            raise _no_result(query_id)
        return result


class _server_cancel:
    """While inside: cancelling the token asks the server to stop what the lease's connection runs."""

    def __init__(self, connector: BaseConnector[Any], lease: Lease, cancel: CancelToken) -> None:
        self._stack = ExitStack()
        if isinstance(connector, Cancellable):
            self._stack.enter_context(cancel.on_cancel(lambda: connector.cancel(lease.connection)))

    def __enter__(self) -> None:
        return None

    def __exit__(self, *details: object) -> None:
        self._stack.close()


def _rows_that_fit(batch: pa.RecordBatch, rows: int, size: int, *, first: bool) -> int:
    """How many leading rows of `batch` fit into what is left of a page; at least one on an empty page."""
    count = min(batch.num_rows, rows)
    if count and batch.nbytes > size:
        count = min(count, int(batch.num_rows * size / batch.nbytes))
    return max(count, 1) if first and batch.num_rows else count


def _page(
    result: _OpenResult,
    reader: BatchReader,
    parts: list[pa.RecordBatch],
    rows: int,
    *,
    more: bool,
    truncated: bool,
    started: float,
) -> QueryPage:
    from hfagent.sdk.arrow import ipc_stream, wire_rows

    as_arrow = result.format == "arrow"
    data = None if as_arrow else [row for part in parts for row in wire_rows(part, reader.columns)]
    return QueryPage(
        query_id=result.query_id,
        columns=reader.columns,
        rows=data,
        arrow=ipc_stream(parts, reader.schema) if as_arrow else None,
        row_count=rows,
        rows_before=result.rows_before,
        has_more=more,
        truncated=truncated,
        elapsed_ms=round((time.perf_counter() - started) * 1000, 3),
        statement=result.statement,
        warnings=tuple(reader.warnings),
    )


def _bindings(params: Any) -> Any:
    if params is None:
        return ()
    return tuple(params) if isinstance(params, list) else params


def _least(*limits: Any) -> Any:
    real = [limit for limit in limits if limit is not None]
    return min(real) if real else None


def _no_result(query_id: str) -> NotFound:
    return NotFound(
        f"there is no open result {query_id!r} in this session",
        code="query.not_found",
        hint="run query/execute again; a result closes after its last page, when idle, or with its session",
    )


def _not_queryable(source: Source) -> UserError:
    return UserError(
        f"{source.record.name!r} is a {source.connector.title} connector and cannot be queried",
        code="connector.not_queryable",
        hint="choose a connector whose catalog entry says is_queryable",
    )
