"""Runs statements and holds their open results.

A result belongs to the session that made it. Its first page comes when its rows are there; the connection stays with the
result until the last page, `close`, the session's end, or an idle limit. One request at a time works on a result.
Cancelling a request that works on it cancels the statement on the server and closes it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import SYSTEM_CLOCK, Clock, Deadline
from hfagent.foundation.errors import AgentError, Cancelled, Conflict, NotFound, UserError
from hfagent.model.query import ExportReport, QueryPage, QueryPlan, RowFormat
from hfagent.model.settings import QuerySettings
from hfagent.sdk.connector import Explainable, Queryable
from hfagent.sdk.reading import Statement
from hfagent.services.connections import Borrowing, Connections, Source
from hfagent.services.connectors import Connectors
from hfagent.services.context import CallContext
from hfagent.services.export import Format, format_of, write_result
from hfagent.services.policy import Policy
from hfagent.services.results import OpenResult, RestartableDeadline
from hfagent.services.workers import Workers

__all__ = ["Query"]

_log = logging.getLogger(__name__)
T = TypeVar("T")

_Key = tuple[str, str]  # session and query id: sessions do not see each other's names


class Query:
    """`query/*`."""

    def __init__(
        self,
        connectors: Connectors,
        connections: Connections,
        workers: Workers,
        settings: Callable[[], QuerySettings],
        policy: Callable[[], Policy],
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._connectors = connectors
        self._connections = connections
        self._workers = workers
        self._settings = settings
        self._policy = policy
        self._clock = clock
        self._open: dict[_Key, OpenResult] = {}

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
        key = (call.session_id, query_id)
        if key in self._open:
            raise Conflict(
                f"a result named {query_id!r} is open already", code="connector.conflict", hint="close it first"
            )
        mine = self.open_of(call.session_id)
        if mine >= self._settings().max_open_per_session:
            raise AgentError(
                f"this client has {mine} open results",
                code="capacity.overloaded",
                hint="fetch them to their end or close them with query/close",
            )
        limit = _least(max_rows, self._policy().settings.max_query_rows)
        result = OpenResult(
            query_id, call.session_id, _owner(call), source, sql, page_size, format, self._deadline(source, timeout_s),
            max_rows=limit,
        )  # fmt: skip
        self._open[key] = result
        statement = Statement(
            sql, _bindings(params), max_rows=None if limit is None else limit + 1, first_rows=page_size,
            cancel=result.cancel, deadline=result.deadline,
        )  # fmt: skip
        return await self._page(call, result, page_size, statement)

    async def fetch(self, call: CallContext, query_id: str, *, page_size: int | None = None) -> QueryPage:
        """Return the next page of an open result. Raises `NotFound` (`query.not_found`)."""
        result = self._open.get((call.session_id, query_id))
        if result is None:
            raise _no_result(query_id)
        return await self._page(call, result, page_size or result.page_size)

    async def close(self, call: CallContext, query_id: str) -> None:
        """Close a result of this session. Closing one that is gone does nothing."""
        result = self._open.get((call.session_id, query_id))
        if result is not None:
            await self._end(result)

    async def cancel(self, call: CallContext, query_id: str) -> None:
        """Cancel a running or open result of the same user. Raises `NotFound`."""
        found = self._open.get((call.session_id, query_id)) or next(
            (r for r in self._open.values() if r.query_id == query_id and r.owner == _owner(call)), None
        )
        if found is None:
            raise _no_result(query_id)
        await self._end(found)

    async def explain(
        self, call: CallContext, connector: str, sql: str, *, timeout_s: float | None = None
    ) -> QueryPlan:
        """Return the plan of a statement without running it."""
        source = await self._source(connector)
        explainable = source.connector
        if not isinstance(explainable, Explainable):
            raise UserError(f"{source.connector.title} cannot explain statements", code="unsupported")
        deadline = self._deadline(source, timeout_s)
        statement = Statement(sql, cancel=call.cancel, deadline=deadline)
        return await self._with_connection(
            call, source, deadline, lambda connection: explainable.explain(connection, statement), what="the plan"
        )

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
        """Run a statement and write its whole result to `path`. Raises `AgentError`, the policy's among them."""
        target = await self._workers.apart(lambda: self._policy().check_export(path, owner=call.actor.allows("admin")))
        chosen = format_of(target, format)
        source = await self._source(connector)
        queryable = source.connector
        if not isinstance(queryable, Queryable):
            raise _not_queryable(source)
        limit = _least(max_rows, self._policy().settings.max_query_rows)
        deadline = self._deadline(source, timeout_s)
        statement = Statement(
            sql, _bindings(params), max_rows=None if limit is None else limit + 1, cancel=call.cancel, deadline=deadline
        )
        started = time.perf_counter()

        def report(rows: int, size: int) -> None:
            call.progress({"kind": "report", "message": f"{rows:,} rows", "rows": rows, "bytes": size})

        def run(connection: Any) -> tuple[int, int, bool]:
            with queryable.execute(connection, statement) as reader:
                return write_result(
                    reader, target, chosen, overwrite=overwrite, max_rows=limit, cancel=call.cancel, progress=report
                )

        call.progress({"kind": "begin", "title": f"Export to {target.name}", "cancellable": True})
        rows, size, truncated = await self._with_connection(call, source, deadline, run, what="the export")
        call.progress({"kind": "end", "message": f"{rows:,} rows", "rows": rows, "bytes": size})
        return ExportReport(
            path=str(target), format=chosen, rows=rows, bytes=size,
            elapsed_ms=round((time.perf_counter() - started) * 1000, 1), truncated=truncated,
        )  # fmt: skip

    # --- life of sessions and results ---

    async def session_closed(self, session_id: str) -> None:
        """Close every result of a session that ended."""
        await self._end_all([r for r in self._open.values() if r.session_id == session_id])

    async def close_idle(self) -> int:
        """Close results that nobody touched for `query.idle_s` seconds; return how many."""
        limit = self._clock.monotonic() - self._settings().idle_s
        idle = [r for r in self._open.values() if r.touched is not None and r.touched < limit]
        await self._end_all(idle)
        return len(idle)

    async def close_all(self) -> None:
        """Close every result."""
        await self._end_all(list(self._open.values()))

    @property
    def open_count(self) -> int:
        """Results open now."""
        return len(self._open)

    def open_of(self, session_id: str) -> int:
        """Results that a session has open."""
        return sum(1 for session, _ in self._open if session == session_id)

    # --- inside ---

    async def _page(
        self, call: CallContext, result: OpenResult, page_size: int, statement: Statement | None = None
    ) -> QueryPage:
        """Run the statement if it is given, take a page, and end the result unless there is more."""
        started = time.perf_counter()

        def work() -> QueryPage:
            result.begin()
            try:
                if statement is not None:
                    self._start(result, statement)
                page = result.take(page_size, self._settings().max_page_bytes, started)
            except BaseException as exc:  # noqa: BLE001  whatever it is, the connection must go back
                error = self._reason(result.source, result.cancel, exc)
                result.release(exc)
                result.finish()
                raise error from (None if error is exc else exc)
            result.finish()
            return page

        async with result.turn:
            if self._open.get(_key(result)) is not result:
                raise _no_result(result.query_id)
            result.touched = None
            result.deadline.restart()
            with call.cancel.on_cancel(lambda: self._workers.off_loop(result.cancel.cancel)):
                try:
                    page = await self._workers.run(
                        result.source.lane,
                        work,
                        cancel=result.cancel,
                        deadline=result.deadline,
                        abort=result.borrowing.abort,
                        what="the query",
                    )
                except BaseException:
                    self._let_go(result)
                    raise
            result.touched = self._clock.monotonic()
            if not page.has_more:
                self._let_go(result)
            return page

    def _start(self, result: OpenResult, statement: Statement) -> None:
        connector = result.source.connector
        if not isinstance(connector, Queryable):
            raise _not_queryable(result.source)
        lease = self._connections.acquire(result.source, result.cancel, result.deadline, result.borrowing)
        with result.cancel.on_cancel(lease.cancel):
            result.cancel.raise_if_cancelled()  # or the cancel request came before there was anything to cancel
            result.reader = connector.execute(lease.connection, statement)

    async def _with_connection(
        self, call: CallContext, source: Source, deadline: Deadline, work: Callable[[Any], T], *, what: str
    ) -> T:
        """Run `work` with a pooled connection in the source's lane; cancelling reaches the server."""
        borrowing = Borrowing()

        def run() -> T:
            try:
                with self._connections.borrowed(source, call.cancel, deadline, borrowing) as lease:
                    return work(lease.connection)
            except Exception as exc:  # noqa: BLE001  a driver may raise anything; it is translated
                error = self._reason(source, call.cancel, exc)
                raise error from (None if error is exc else exc)

        return await self._workers.run(
            source.lane, run, cancel=call.cancel, deadline=deadline, abort=borrowing.abort, what=what
        )

    def _reason(self, source: Source, cancel: CancelToken, exc: BaseException) -> BaseException:
        """What the caller is told: once cancelled, however the driver puts it, it is a cancellation."""
        if not isinstance(exc, Exception):
            return exc
        if cancel.cancelled:
            return exc if isinstance(exc, Cancelled) else Cancelled()
        error = source.connector.map_error(exc)
        self._connections.mistrust(source, error)
        return error

    def _let_go(self, result: OpenResult) -> None:
        """Forget a result whose request has ended; its connection goes back now, or when its thread is done with it."""
        self._forget(result)
        if result.doom() and not result.released:
            self._workers.off_loop(result.release)

    async def _end(self, result: OpenResult) -> None:
        """Close a result. When a request works on it, that is cancelled and gives the connection back."""
        self._forget(result)
        if result.doom():
            await self._workers.apart(result.release)
        else:
            self._workers.off_loop(result.cancel.cancel)

    async def _end_all(self, results: list[OpenResult]) -> None:
        await asyncio.gather(*(self._end(result) for result in results))

    def _forget(self, result: OpenResult) -> None:
        if self._open.get(_key(result)) is result:
            del self._open[_key(result)]

    async def _source(self, connector: str) -> Source:
        record = await self._connectors.require(connector)
        return await self._connections.source(record)

    def _deadline(self, source: Source, timeout_s: float | None) -> RestartableDeadline:
        configured = float(getattr(source.connector.config, "query_timeout_s", 0) or 0) or None
        # The server enforces its own limit; the agent's comes a little later, so that the server's message wins.
        return RestartableDeadline(_least(timeout_s, None if configured is None else configured + 2.0))


def _key(result: OpenResult) -> _Key:
    return result.session_id, result.query_id


def _owner(call: CallContext) -> tuple[str, int | None]:
    return call.actor.kind, call.actor.uid


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
