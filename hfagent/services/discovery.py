"""Streams of a connector: asked from the source, cached in the store, served in pages.

A discovery runs once however many ask for it at the same time: they wait for the same answer. What was known stays
readable while a new discovery runs and when it fails.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import Cancelled, Conflict, NotFound
from hfagent.model.stream import Stream, StreamPage
from hfagent.sdk.reading import SchemaRequest
from hfagent.services.connections import Borrowing, Connections, Source
from hfagent.services.connectors import Connectors
from hfagent.services.context import CallContext
from hfagent.services.workers import Lane, Workers
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.store import Store

__all__ = ["Discovery"]

_log = logging.getLogger(__name__)
T = TypeVar("T")

_BUDGET_S = 600.0
_REPORT_EVERY = 500


class _Run:
    """One discovery under way, and who waits for it."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.listeners: list[Callable[[int], None]] = []
        self.task: asyncio.Task[tuple[str, ...]]

    def announce(self, count: int) -> None:
        for listener in list(self.listeners):
            listener(count)


class Discovery:
    """`connectors/models`."""

    def __init__(
        self,
        connectors: Connectors,
        connections: Connections,
        store: Store,
        workers: Workers,
        store_lane: Lane,
    ) -> None:
        self._connectors = connectors
        self._connections = connections
        self._store = store
        self._workers = workers
        self._lane = store_lane
        self._running: dict[str, _Run] = {}
        connectors.on_change(self._forget)

    @property
    def running(self) -> int:
        """Discoveries under way."""
        return len(self._running)

    async def models(
        self,
        call: CallContext,
        connector: str,
        *,
        refresh: bool = False,
        schemas: tuple[str, ...] = (),
        search: str | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        stream: str | None = None,
        depth: Literal["names", "columns", "full"] = "full",
        page_size: int = 200,
        page_token: str | None = None,
    ) -> StreamPage:
        """Return a page of the connector's streams; asks the source when nothing is cached or `refresh` is set.

        Raises `NotFound` for an unknown connector or stream, `AgentError` when the source fails.
        """
        record = await self._connectors.require(connector)
        known = await self._db(lambda: self._store.catalogues.summary(record.id))
        warnings: tuple[str, ...] = ()
        cached = known is not None
        if known is None or (refresh and page_token is None):
            warnings = await self._discover(call, record)
            known = await self._db(lambda: self._store.catalogues.summary(record.id))
            cached = False
        if stream is not None:
            return await self._one(record, stream, cached=cached)
        filters: dict[str, Any] = {"namespaces": schemas, "search": search, "include": include, "exclude": exclude}

        def read() -> StreamPage:
            page = self._store.catalogues.page(
                record.id, **filters, after_token=page_token, limit=page_size, names_only=depth == "names"
            )
            if page is None:  # removed meanwhile
                return StreamPage(streams=())
            total = self._store.catalogues.count(record.id, **filters) if any(filters.values()) else page.total
            return page.model_copy(
                update={
                    "streams": tuple(_trimmed(item, depth) for item in page.streams), "total": total, "cached": cached,
                    "warnings": (*page.warnings, *warnings),
                }
            )  # fmt: skip

        shown: StreamPage = await self._db(read)
        return shown

    async def stream(self, call: CallContext, record: ConnectorRecord, stream_id: str) -> Stream:
        """Return one stream of a connector, from the cache or the source. Raises `NotFound` (`model.not_found`)."""
        page = await self.models(call, record.id, stream=stream_id)
        return page.streams[0]

    async def _one(self, record: ConnectorRecord, stream: str, *, cached: bool) -> StreamPage:
        found = await self._db(lambda: self._store.catalogues.get(record.id, stream))
        if found is None:
            raise NotFound(
                f"the connector {record.name!r} has no stream {stream!r}",
                code="model.not_found",
                hint=f"hfagent connector models {record.name!r} --refresh asks the source again",
            )
        info = await self._db(lambda: self._store.catalogues.summary(record.id))
        return StreamPage(
            streams=(found,), total=1, namespaces=info.namespaces if info else (),
            discovered_at=info.discovered_at if info else None, cached=cached,
        )  # fmt: skip

    async def _discover(self, call: CallContext, record: ConnectorRecord) -> tuple[str, ...]:
        """Join the running discovery of this connector, or start one. The last one who leaves cancels it."""
        run = self._running.get(record.id)
        if run is None or run.version != record.version:
            run = self._running[record.id] = _Run(record.version)
            run.task = asyncio.get_running_loop().create_task(self._run(record, run))
            run.task.add_done_callback(lambda task: self._ended(record.id, run, task))

        def report(count: int) -> None:
            call.progress({"kind": "report", "message": f"{count:,} streams", "streams": count})

        run.listeners.append(report)
        call.progress({"kind": "begin", "title": f"Discover {record.name}", "cancellable": True})
        try:
            await asyncio.wait({run.task})
        finally:
            run.listeners.remove(report)
            if not run.listeners and not run.task.done():
                self._stop(record.id, run)
        if run.task.cancelled():
            raise Conflict(
                f"the connector {record.name!r} was changed while its streams were listed",
                code="connector.conflict",
                hint="repeat the request",
            )
        warnings = run.task.result()
        call.progress({"kind": "end", "message": "done"})
        return warnings

    def _stop(self, connector_id: str, run: _Run) -> None:
        if self._running.get(connector_id) is run:  # who comes from now on starts a new one
            del self._running[connector_id]
        run.task.cancel()

    def _ended(self, connector_id: str, run: _Run, task: asyncio.Task[tuple[str, ...]]) -> None:
        if self._running.get(connector_id) is run:
            del self._running[connector_id]
        if not task.cancelled():
            task.exception()  # looked at, also when nobody waits any more

    def _forget(self, connector_id: str) -> None:
        """The connector changed: what is being read may not be its streams any more."""
        run = self._running.get(connector_id)
        if run is not None:
            self._stop(connector_id, run)

    async def _run(self, record: ConnectorRecord, run: _Run) -> tuple[str, ...]:
        source = await self._connections.source(record)
        cancel = CancelToken()
        deadline = Deadline(_BUDGET_S)
        loop = asyncio.get_running_loop()
        borrowing = Borrowing()

        def announce(count: int) -> None:
            _post(loop, run.announce, count)

        return await self._workers.run(
            source.lane,
            lambda: self._read(source, cancel, deadline, borrowing, announce),
            cancel=cancel,
            deadline=deadline,
            abort=borrowing.abort,
            what="discovery",
        )

    def _read(
        self,
        source: Source,
        cancel: CancelToken,
        deadline: Deadline,
        borrowing: Borrowing,
        announce: Callable[[int], None],
    ) -> tuple[str, ...]:
        """Read the whole schema and put it into the store in one go. Blocking."""
        connector = source.connector
        try:
            with self._connections.borrowed(source, cancel, deadline, borrowing) as lease:
                request = SchemaRequest(depth="full", cancel=cancel, deadline=deadline)
                namespaces = connector.namespaces(lease.connection, request)
                request = dataclasses.replace(request, namespaces=namespaces)
                streams = _watched(connector.read_schema(lease.connection, request), cancel, announce)
                changes = self._store.catalogues.replace(source.record.id, streams, namespaces=namespaces)
                if self._store.connectors.get(source.record.id).version != source.record.version:
                    self._store.catalogues.remove(source.record.id)  # changed in the last moment: not its streams
                    raise Cancelled()
        except Exception as exc:
            error = connector.map_error(exc)
            self._connections.mistrust(source, error)
            raise error from exc
        _log.info(
            "discovered %s: %d added, %d removed, %d changed",
            source.record.name, len(changes.added), len(changes.removed), len(changes.changed),
        )  # fmt: skip
        if not changes.total:
            allowed = source.record.output_schemas
            where = f"in {', '.join(allowed)}" if allowed else "that this account owns or can read"
            return (f"no streams {where}",)
        return ()

    async def _db(self, work: Callable[[], T]) -> T:
        return await self._workers.call(self._lane, work)


def _watched(streams: Iterable[Stream], cancel: CancelToken, announce: Callable[[int], None]) -> Iterator[Stream]:
    """Pass streams on, hashed, with a look at the cancel token before each and a report now and then."""
    count = 0
    for count, item in enumerate(streams, 1):
        cancel.raise_if_cancelled()
        if count % _REPORT_EVERY == 0:
            announce(count)
        yield item if item.schema_hash else item.hashed()
    cancel.raise_if_cancelled()  # a reader that just stops when cancelled must not pass for a short catalogue
    announce(count)


def _trimmed(stream: Stream, depth: str) -> Stream:
    """Leave out what was not asked for."""
    if depth == "full":
        return stream
    drop: dict[str, Any] = {
        "foreign_keys": (),
        "indexes": (),
        "unique_keys": (),
        "watermark_candidates": (),
        "details": {},
    }
    if depth == "names":
        drop["columns"] = ()
    return stream.model_copy(update=drop)


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[[int], None], count: int) -> None:
    try:
        loop.call_soon_threadsafe(callback, count)
    except RuntimeError:
        _log.debug("progress after the loop was closed")
