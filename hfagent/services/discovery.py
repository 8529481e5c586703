"""Streams of a connector: asked from the source, cached in the store, served in pages.

A discovery runs once however many ask for it at the same time: they wait for the same answer. What was known stays
readable while a new discovery runs and when it fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import NotFound
from hfagent.model.stream import Stream, StreamPage
from hfagent.sdk.connector import Cancellable
from hfagent.sdk.reading import SchemaRequest
from hfagent.services.connections import Connections, Source
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
        self._running: dict[str, asyncio.Task[tuple[str, ...]]] = {}
        self._listeners: dict[str, list[Callable[[int], None]]] = {}

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
        task = self._running.get(record.id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._run(record))
            self._running[record.id] = task
            task.add_done_callback(lambda _: self._running.pop(record.id, None))
        listeners = self._listeners.setdefault(record.id, [])

        def report(count: int) -> None:
            call.progress({"kind": "report", "message": f"{count:,} streams", "streams": count})

        listeners.append(report)
        call.progress({"kind": "begin", "title": f"Discover {record.name}", "cancellable": True})
        try:
            warnings = await asyncio.shield(task)
        except asyncio.CancelledError:
            if len(listeners) == 1 and not task.done():
                task.cancel()
            raise
        finally:
            listeners.remove(report)
        call.progress({"kind": "end", "message": "done"})
        return warnings

    async def _run(self, record: ConnectorRecord) -> tuple[str, ...]:
        source = await self._connections.source(record)
        cancel = CancelToken()
        deadline = Deadline(_BUDGET_S)
        loop = asyncio.get_running_loop()

        def announce(count: int) -> None:
            for listener in self._listeners.get(record.id, ()):
                listener(count)

        def work() -> tuple[str, ...]:
            return self._read(source, cancel, deadline, lambda n: _post(loop, announce, n))

        return await self._workers.run(source.lane, work, cancel=cancel, deadline=deadline, what="discovery")

    def _read(
        self, source: Source, cancel: CancelToken, deadline: Deadline, announce: Callable[[int], None]
    ) -> tuple[str, ...]:
        """Read the whole schema and put it into the store in one go. Blocking."""
        connector = source.connector
        try:
            with source.pool.acquire(deadline, cancel) as lease:
                stop = connector.cancel if isinstance(connector, Cancellable) else None
                with cancel.on_cancel(lambda: stop(lease.connection) if stop else None):
                    namespaces = connector.namespaces(lease.connection)
                    request = SchemaRequest(namespaces=namespaces, depth="full", cancel=cancel, deadline=deadline)
                    streams = _watched(connector.read_schema(lease.connection, request), cancel, announce)
                    changes = self._store.catalogues.replace(source.record.id, streams, namespaces=namespaces)
        except Exception as exc:
            raise connector.map_error(exc) from exc
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


def _watched(streams: Any, cancel: CancelToken, announce: Callable[[int], None]) -> Any:
    count = 0
    for count, item in enumerate(streams, 1):
        if count % _REPORT_EVERY == 0:
            cancel.raise_if_cancelled()
            announce(count)
        yield item if item.schema_hash else item.hashed()
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
