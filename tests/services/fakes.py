"""A source that does what a test says, behind a connector like any other, and the services assembled around it.

world.source.on("select 1", lambda connection, statement: [batch(1)])     what a statement answers
world.source.stuck("select sleep")                                        one that ends only when cancelled or aborted
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.errors import AgentError, Cancelled, SourceError
from hfagent.foundation.paths import AgentPaths
from hfagent.model.connector import Connector, ConnectorDraft, PoolStats
from hfagent.model.query import QueryPlan
from hfagent.model.settings import PolicySettings, QuerySettings
from hfagent.model.stream import Stream
from hfagent.sdk.arrow import columns_of
from hfagent.sdk.config import NetworkFields, PoolFields, QueryFields
from hfagent.sdk.config import field as config_field
from hfagent.sdk.connector import BaseConnector, Cancellable, Explainable, Queryable
from hfagent.sdk.reading import BatchReader, SchemaRequest, Statement
from hfagent.sdk.registry import Registry
from hfagent.sdk.secret import Secret
from hfagent.services.apply import Apply, DirectoryWatch
from hfagent.services.connections import Connections
from hfagent.services.connectors import Connectors
from hfagent.services.context import LOCAL_ACTOR, Actor, CallContext
from hfagent.services.credentials import Credentials
from hfagent.services.discovery import Discovery
from hfagent.services.policy import Policy
from hfagent.services.query import Query
from hfagent.services.vault import VaultVerbs
from hfagent.services.workers import Workers
from hfagent.store.store import Store
from hfagent.vault.settings import VaultSettings
from hfagent.vault.vault import Vault

PATIENCE_S = 20.0
Answer = Callable[["FakeConnection", Statement], Iterable[pa.RecordBatch]]


def batch(*values: Any, name: str = "n") -> pa.RecordBatch:
    """One column of values."""
    return pa.RecordBatch.from_pydict({name: list(values)})


def counted(rows: int, size: int) -> list[pa.RecordBatch]:
    """The numbers from 0 in batches of `size`."""
    return [batch(*range(start, min(start + size, rows))) for start in range(0, rows, size)]


class FakeConnection:
    """A session with the fake source."""

    def __init__(self, source: FakeSource, number: int, password: str | None) -> None:
        self.source = source
        self.number = number
        self.password = password
        self.stop = threading.Event()
        self.reason = ""

    def block(self, release: threading.Event | None = None) -> None:
        """Wait like a statement that takes for ever: until released, cancelled on the server, or torn down."""
        self.source.blocked.release()
        while not self.stop.wait(0.005):
            if release is not None and release.is_set():
                return
        reason, self.reason = self.reason, ""
        self.stop.clear()
        if reason == "abort":
            raise ConnectionResetError("torn down")
        raise Cancelled("cancelled by the server")


class FakeSource:
    """What is at the other end: its answers, and counts of what was asked of it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.threads: set[str] = set()
        """Names of threads in which the driver was called."""
        self.blocked = threading.Semaphore(0)
        """Released whenever a statement begins to wait."""
        self.live: set[FakeConnection] = set()
        self.answers: dict[str, Answer] = {}
        self.streams: Callable[[FakeConnection, SchemaRequest], Iterable[Stream]] = lambda _c, _r: ()
        self.password: str | None = None
        """The password that is let in; None lets everybody in."""
        self.listens_to_cancel = True
        self.close_error: Exception | None = None
        self.test_hook: Callable[[Any], None] = lambda _probe: None
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def on(self, sql: str, answer: Answer | Iterable[pa.RecordBatch]) -> None:
        """Let a statement answer with these batches, or with what a function of connection and statement yields."""
        if callable(answer):
            self.answers[sql] = answer
        else:
            fixed = list(answer)
            self.answers[sql] = lambda _c, _s: fixed

    def stuck(self, sql: str, *, rows_before: int = 0, release: threading.Event | None = None) -> None:
        """Let a statement give some rows and then wait."""

        def answer(connection: FakeConnection, _statement: Statement) -> Iterator[pa.RecordBatch]:
            if rows_before:
                yield batch(*range(rows_before))
            connection.block(release)

        self.answers[sql] = answer

    def called(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1
            self.threads.add(threading.current_thread().name)


class FakeConfig(NetworkFields, QueryFields, PoolFields):
    """Configuration of the fake source."""

    host: str = config_field("localhost", description="Host.", endpoint=True, aliases=("server",), min_length=1)
    port: int = config_field(1000, description="Port.", endpoint=True, ge=1, le=65535)
    database: str = config_field("main", description="Database.", aliases=("db",))
    username: str | None = config_field(None, description="User.", aliases=("user",))
    password: Secret | None = config_field(None, description="Password.", secret=True, aliases=("pwd",))
    token: Secret | None = config_field(None, description="Another secret.", secret=True)


class FakeConnector(BaseConnector[FakeConfig], Queryable, Cancellable, Explainable):
    """A connector to a `FakeSource`."""

    title = "Fake"
    description = "For tests."
    aliases = ("phony",)
    is_queryable = True
    Config = FakeConfig
    source: ClassVar[FakeSource]

    def connect(self, deadline: Any) -> FakeConnection:
        source = self.source
        source.called("connect")
        password = self.config.password.reveal() if self.config.password else None
        if source.password is not None and password != source.password:
            source.counts["rejected"] += 1
            raise SourceError(f"password rejected: {password}", code="auth.invalid_credentials", hint="check it")
        connection = FakeConnection(source, next(source._numbers), password)
        source.live.add(connection)
        return connection

    def close(self, connection: FakeConnection) -> None:
        self.source.called("close")
        self.source.live.discard(connection)

    def abort(self, connection: FakeConnection) -> None:
        self.source.called("abort")
        self.source.live.discard(connection)
        connection.reason = "abort"
        connection.stop.set()

    def cancel(self, connection: FakeConnection) -> None:
        self.source.called("cancel")
        if self.source.listens_to_cancel:
            connection.reason = "cancel"
            connection.stop.set()

    def test(self, probe: Any) -> None:
        with probe.stage("config"):
            pass
        with probe.stage("secrets"):
            pass
        with probe.stage("auth", map_error=self.map_error):
            self.close(self.connect(probe.deadline))
        with probe.stage("ping"):
            self.source.test_hook(probe)

    def read_schema(self, connection: FakeConnection, request: SchemaRequest) -> Iterator[Stream]:
        self.source.called("discover")
        yield from self.source.streams(connection, request)

    def execute(self, connection: FakeConnection, statement: Statement) -> BatchReader:
        self.source.called("execute")
        if statement.text not in self.source.answers:
            raise SourceError(f"no such statement: {statement.text}", code="query.syntax", hint="ask for another")
        batches = iter(self.source.answers[statement.text](connection, statement))
        first = next(batches, None)
        schema = first.schema if first is not None else pa.schema([("n", pa.int64())])

        def rest() -> Iterator[pa.RecordBatch]:
            try:
                if first is not None:
                    self.source.called("batch")
                    yield first
                for item in batches:
                    self.source.called("batch")
                    yield item
            finally:
                self.source.called("reader closed")
                getattr(batches, "close", lambda: None)()

        def closed() -> None:
            if self.source.close_error is not None:
                raise self.source.close_error

        return BatchReader(columns_of(schema), schema, rest(), on_close=closed)

    def explain(self, connection: FakeConnection, statement: Statement) -> QueryPlan:
        self.execute(connection, statement).close()
        return QueryPlan(format="text", plan="a plan")

    def map_error(self, error: BaseException) -> AgentError:
        if isinstance(error, ConnectionResetError):
            return SourceError("the connection was cut", code="net.reset")
        return super().map_error(error)


class DumbConnector(BaseConnector[FakeConfig]):
    """A connector that cannot be queried."""

    title = "Dumb"
    description = "For tests."
    Config = FakeConfig

    def connect(self, deadline: Any) -> object:
        return object()

    def test(self, probe: Any) -> None:
        with probe.stage("config"):
            pass

    def read_schema(self, connection: Any, request: SchemaRequest) -> Iterator[Stream]:
        return iter(())


class _BrokenPlugin:
    """Stands in for an entry point whose module fails."""

    name = "broken"
    value = "broken_plugin:Connector"

    def load(self) -> Any:
        raise ImportError("no module named left_pad")


@dataclass
class World:
    """The services over a store and a vault of their own."""

    directory: Path
    source: FakeSource = field(default_factory=FakeSource)
    policy_settings: PolicySettings = field(default_factory=PolicySettings)
    query_settings: QuerySettings = field(default_factory=QuerySettings)

    def __post_init__(self) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.paths = AgentPaths(data_dir=str(self.directory))
        self.store = Store.open(self.paths.store_file, ballast_bytes=64 * 1024)
        self.vault = Vault.open_or_create(
            self.paths.vault_dir,
            agent_id=self.store.agent_id,
            has_ciphertexts=self.store.secrets.any,
            settings=VaultSettings(key_source="file"),
        )
        self.registry = Registry()
        for name, cls in (("fake", FakeConnector), ("dumb", DumbConnector)):
            made = type(cls.__name__, (cls,), {"source": self.source, "type_name": name})
            self.registry._sources[name] = None
            self.registry._classes[name] = made
        self.workers = Workers()
        lane = self.workers.lane("store", threads=2)
        self.credentials = Credentials(self.vault, self.store, cache_s=lambda: 300.0)
        self.connections = Connections(self.registry, self.credentials, self.policy, self.workers, self.paths)
        self.connectors = Connectors(
            self.registry, self.store, self.credentials, self.connections, self.policy, self.workers, lane
        )
        self.discovery = Discovery(self.connectors, self.connections, self.store, self.workers, lane)
        self.query = Query(self.connectors, self.connections, self.workers, lambda: self.query_settings, self.policy)
        self.vault_verbs = VaultVerbs(self.credentials, self.connections, self.store, self.registry, self.workers)
        self.apply = Apply(self.connectors)

    def policy(self) -> Policy:
        return Policy(self.policy_settings, data_dir=self.directory)

    def watch(self) -> DirectoryWatch:
        return DirectoryWatch(self.paths.connectors_dir, self.apply, self.workers, lambda: CallContext("files"))

    def break_plugin(self) -> None:
        """Install a connector type `broken` whose module cannot be imported."""
        self.registry._sources["broken"] = _BrokenPlugin()

    async def add(self, name: str = "main", type_name: str = "fake", **config: Any) -> Connector:
        """Create a connector."""
        return await self.connectors.create(call(), ConnectorDraft(name=name, type=type_name, config=config))

    def stats(self, name: str = "main") -> PoolStats:
        return next(stats for stats in self.connections.stats() if stats.name == name)

    def close(self) -> None:
        self.connections.close()
        self.workers.close()
        self.store.close()


GUEST = Actor("local", frozenset({"read", "operate"}), uid=4711)


class Calls:
    """Makes contexts and remembers what was reported to them."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []


def call(
    session: str = "s1",
    *,
    actor: Actor = LOCAL_ACTOR,
    cancel: CancelToken | None = None,
    reports: list[dict[str, Any]] | None = None,
) -> CallContext:
    """The context of one request."""
    progress = reports.append if reports is not None else (lambda _value: None)
    return CallContext(session, actor, cancel or CancelToken(), progress)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Poll `condition` until it holds."""
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, f"waited in vain: {what}"
        await asyncio.sleep(0.005)


async def blocked(source: FakeSource, times: int = 1) -> None:
    """Wait until so many more statements wait."""
    for _ in range(times):
        await until(lambda: source.blocked.acquire(blocking=False), "a statement that waits")


def cancelling(task: asyncio.Task[Any], token: CancelToken) -> None:
    """Cancel a request as a session does: its task, and its token from another thread."""
    task.cancel()
    threading.Thread(target=token.cancel, daemon=True).start()


def scenario(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test to its end, and see to it that no task outlives it."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def whole() -> None:
            await test(*args, **kwargs)
            await until(lambda: len(asyncio.all_tasks()) <= 2, f"tasks left behind: {asyncio.all_tasks()}")

        asyncio.run(asyncio.wait_for(whole(), 60))

    return run
