"""One source per connector in use: its instance, its pool, its lane of threads. Opened on first use, rebuilt on change.

Secrets are opened here, once per source, and go nowhere but into the connector's configuration object. Sources that nobody
uses any more are closed and forgotten; so are their secrets.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from hfagent import __version__
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import SYSTEM_CLOCK, Clock, Deadline
from hfagent.foundation.errors import AgentError, Cancelled, SourceError
from hfagent.foundation.paths import AgentPaths
from hfagent.model.connector import PoolStats
from hfagent.sdk.connector import BaseConnector, ConnectorContext
from hfagent.sdk.pool import Lease, Pool, PoolSettings
from hfagent.sdk.registry import Registry
from hfagent.sdk.secret import is_reference
from hfagent.services.credentials import Credentials
from hfagent.services.policy import Policy
from hfagent.services.workers import Lane, Workers
from hfagent.store.connectors import ConnectorRecord

__all__ = ["Borrowing", "Connections", "Source"]

_log = logging.getLogger(__name__)

_DRAIN_S: Final = 30.0
_LANE_THREADS: Final = 32
_POLL_S: Final = 0.05
_UNUSED_S: Final = 300.0
"""A source without a connection is forgotten after so many seconds without use."""


@dataclass(eq=False)
class Source:
    """A connector that is ready for use."""

    record: ConnectorRecord
    connector: BaseConnector[Any]
    pool: Pool
    lane: Lane
    used_at: float = 0.0
    evicting: bool = field(default=False, repr=False)


class Borrowing:
    """What a request has borrowed so far, for whoever must tear it down from another thread."""

    def __init__(self) -> None:
        self.lease: Lease | None = None

    def abort(self) -> None:
        """Tear the connection down, so that a blocked call returns. Does nothing without one, or after its return."""
        if self.lease is not None:
            self.lease.abort()


class Connections:
    """All sources of this agent."""

    def __init__(
        self,
        registry: Registry,
        credentials: Credentials,
        policy: Callable[[], Policy],
        workers: Workers,
        paths: AgentPaths,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._registry = registry
        self._credentials = credentials
        self._policy = policy
        self._workers = workers
        self._paths = paths
        self._clock = clock
        self._sources: dict[str, Source] = {}
        self._draining: set[Pool] = set()
        self._builds: dict[str, set[object]] = {}
        self._lock = threading.Lock()  # guards the number below
        self._reserved = 0

    async def source(self, record: ConnectorRecord) -> Source:
        """Return the source of a connector, opening it when needed.

        Raises `AgentError`: policy, missing driver, locked vault, unresolvable reference; `NotFound` when the connector was
        deleted meanwhile. A failure here concerns this connector alone.
        """
        while True:
            found = self._sources.get(record.id)
            if found is not None and found.record.version >= record.version:
                found.used_at = self._clock.monotonic()
                return found
            if found is not None:
                self.drop(record.id)
            built = await self._build(record.id)
            if built is not None:
                return built

    def drop(self, connector_id: str) -> None:
        """Forget a source: no new leases, busy connections get half a minute to finish, then all are closed."""
        self._builds.pop(connector_id, None)
        lane = self._workers.detach(connector_id)
        source = self._sources.pop(connector_id, None)
        if source is None:
            if lane is not None:
                lane.close()
            return
        self._draining.add(source.pool)

        def close() -> None:
            source.pool.drain(_DRAIN_S)
            source.lane.close()  # until now open results went on using it
            self._draining.discard(source.pool)

        self._workers.off_loop(close)

    def drop_all(self, *, only_references: bool = False) -> None:
        """Forget every source (or those with secrets from elsewhere): what they were built from may have changed."""
        for connector_id, source in list(self._sources.items()):
            if not only_references or _refers(source):
                self.drop(connector_id)

    def renew(self, record: ConnectorRecord) -> None:
        """Take over a record whose change does not concern its connections."""
        source = self._sources.get(record.id)
        if source is not None:
            source.record = record

    def mistrust(self, source: Source, error: AgentError) -> None:
        """After a rejected sign-in with secrets from elsewhere: read them anew at the next use. From any thread."""
        if error.code.startswith("auth.") and _refers(source):
            self._credentials.forget_references()
            if self._sources.get(source.record.id) is source:
                self.drop(source.record.id)

    # --- connections (blocking) ---

    @contextmanager
    def borrowed(
        self, source: Source, cancel: CancelToken, deadline: Deadline, borrowing: Borrowing | None = None
    ) -> Iterator[Lease]:
        """Lend a connection for the block; cancelling reaches the server. Blocking."""
        lease = self.acquire(source, cancel, deadline, borrowing)
        with lease, cancel.on_cancel(lease.cancel):
            cancel.raise_if_cancelled()  # or the cancel request came before there was anything to cancel
            yield lease

    def acquire(
        self, source: Source, cancel: CancelToken, deadline: Deadline, borrowing: Borrowing | None = None
    ) -> Lease:
        """Return a lease, within the agent's limit of connections. The caller releases it. Blocking.

        Raises what `Pool.acquire` raises, and `SourceError` (`capacity.overloaded`) at the limit.
        """
        self._reserve(source, cancel, deadline)
        try:
            lease = source.pool.acquire(deadline, cancel)
        finally:
            with self._lock:
                self._reserved -= 1
        if borrowing is not None:
            borrowing.lease = lease
        return lease

    def _reserve(self, source: Source, cancel: CancelToken, deadline: Deadline) -> None:
        """Wait for a place under the limit, at most as long as for a connection of the pool."""
        limit = self._policy().settings.max_open_connections
        patience = Deadline(deadline.bounded(source.pool.settings.pool_timeout))
        while True:
            with self._lock:
                idle = source.pool.stats()["idle"]
                if idle or self.open_connections() + self._reserved < limit or self._closed_idle(limit):
                    self._reserved += 1
                    return
            if patience.expired():
                raise SourceError(
                    f"the agent has {limit} connections open, the most that its policy allows, and none became free",
                    code="capacity.overloaded",
                    hint="try again later; the agent's owner decides with the setting policy.max_open_connections",
                    retry_after=1.0,
                )
            if cancel.wait(patience.bounded(_POLL_S)):
                raise Cancelled()

    def _closed_idle(self, limit: int) -> bool:
        """Make room: close what idles in pools that nobody uses, the longest unused first."""
        for source in sorted([*self._sources.values()], key=lambda source: source.used_at):
            stats = source.pool.stats()
            if stats["idle"] and not stats["busy"] and not stats["waiting"]:
                source.pool.invalidate()
                if self.open_connections() + self._reserved < limit:
                    return True
        return False

    def trial(
        self, cls: type[BaseConnector[Any]], config: dict[str, Any], context: ConnectorContext
    ) -> BaseConnector[Any]:
        """Build a connector that belongs to nobody, from a complete configuration (references allowed). Blocking."""
        full = self._credentials.resolve(cls, config)
        return self._made(cls, full, context)

    def lane_for(self, connector_id: str) -> Lane:
        """Return the lane in which a connector's work runs."""
        source = self._sources.get(connector_id)
        return source.lane if source is not None else self._workers.lane(connector_id, threads=_LANE_THREADS)

    def context(
        self, *, connector_id: str = "trial", name: str = "trial", output_schemas: tuple[str, ...] = ()
    ) -> ConnectorContext:
        """Return what a connector may know about this agent."""
        return ConnectorContext(
            connector_id=connector_id,
            name=name,
            output_schemas=output_schemas,
            agent_version=__version__,
            allowed_paths=self._policy().allowed_paths,
            scratch_dir=self._paths.data_dir / "scratch",
        )

    # --- housekeeping ---

    def evict(self) -> None:
        """Close connections that sat idle too long and forget sources that nobody uses. Called once a minute."""
        now = self._clock.monotonic()
        for source in list(self._sources.values()):
            stats = source.pool.stats()
            if not (stats["open"] or stats["busy"] or stats["waiting"]):
                if now - source.used_at > _UNUSED_S:
                    self.drop(source.record.id)
            elif not source.evicting:  # one at a time: a driver may hang even in saying good-bye
                source.evicting = True
                self._workers.off_loop(_eviction(source))

    def close(self) -> None:
        """Close everything now, without waiting for busy connections. Blocking; safe to repeat."""
        sources, self._sources = list(self._sources.values()), {}
        for pool in [*(source.pool for source in sources), *list(self._draining)]:
            pool.close()

    def stats(self) -> tuple[PoolStats, ...]:
        """Counters of every open pool."""
        return tuple(
            PoolStats(connector_id=source.record.id, name=source.record.name, **source.pool.stats())
            for source in list(self._sources.values())
        )

    def open_connections(self) -> int:
        """Connections open to all sources together."""
        pools = [*(source.pool for source in list(self._sources.values())), *list(self._draining)]
        return sum(pool.stats()["open"] for pool in pools)

    # --- building ---

    async def _build(self, connector_id: str) -> Source | None:
        """Build a source and keep it; None when the connector was changed meanwhile and it has to be done again."""
        lane = self.lane_for(connector_id)
        ticket = object()
        self._builds.setdefault(connector_id, set()).add(ticket)
        try:
            record, connector = await self._workers.call(lane, lambda: self._opened(connector_id))
            if ticket not in self._builds.get(connector_id, ()):
                return None
        finally:
            tickets = self._builds.get(connector_id, set())
            tickets.discard(ticket)
            if not tickets:
                self._builds.pop(connector_id, None)
        raced = self._sources.get(connector_id)
        if raced is not None:
            return raced if raced.record.version >= record.version else None
        pool = Pool(connector, PoolSettings.from_config(connector.config))
        source = Source(record, connector, pool, lane, self._clock.monotonic())
        self._sources[connector_id] = source
        return source

    def _opened(self, connector_id: str) -> tuple[ConnectorRecord, BaseConnector[Any]]:
        record = self._credentials.record(connector_id)
        self._policy().check_type(record.type)
        cls = self._registry.get(record.type)
        record, config = self._credentials.open(cls, connector_id)
        context = self.context(connector_id=record.id, name=record.name, output_schemas=record.output_schemas)
        return record, self._made(cls, config, context)

    def _made(
        self, cls: type[BaseConnector[Any]], config: dict[str, Any], context: ConnectorContext
    ) -> BaseConnector[Any]:
        policy = self._policy()
        policy.check_type(cls.type_name)
        policy.check_config(cls.Config, config)
        return cls(cls.Config.parse(config), context)


def _refers(source: Source) -> bool:
    return any(map(is_reference, source.record.config.values()))


def _eviction(source: Source) -> Callable[[], None]:
    def evict() -> None:
        try:
            source.pool.evict()
        finally:
            source.evicting = False

    return evict
