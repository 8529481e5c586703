"""What a connector is: one class per type, in a file of the type's name.

A connector knows one kind of system: how to connect, what the errors mean, how to describe and read its streams. It is
plain synchronous code, called from worker threads. It never sees the pool, the vault, the store or the event loop, and
it imports its driver only inside `connect` (through `Driver.load`).

Architecture Invariant: importing a connector module loads no driver.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, UserError
from hfagent.model.connector import Category
from hfagent.model.query import QueryPlan
from hfagent.model.stream import Stream
from hfagent.sdk.config import ConnectorConfig
from hfagent.sdk.driver import Driver
from hfagent.sdk.incremental import WatermarkFacts
from hfagent.sdk.probe import Probe
from hfagent.sdk.reading import BatchReader, ReadRequest, SchemaRequest, Statement

__all__ = ["BaseConnector", "Cancellable", "ConnectorContext", "Explainable", "Incremental", "Queryable"]

ConfigT = TypeVar("ConfigT", bound=ConnectorConfig)


@dataclass(frozen=True)
class ConnectorContext:
    """What the agent tells a connector about itself."""

    connector_id: str = "trial"
    name: str = "trial"
    output_schemas: tuple[str, ...] = ()
    agent_version: str = ""
    allowed_paths: tuple[Path, ...] = ()
    """Directories that `x-agent-path` fields may point into (symlinks resolved); empty = none."""
    scratch_dir: Path | None = None
    """Private directory for temporary files."""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def application_name(self) -> str:
        """How sessions announce themselves to the server."""
        return f"hfagent/{self.agent_version} {self.name}"[:63]


class BaseConnector(Generic[ConfigT]):
    """Base of all connector types.

    Class attributes describe the type. A connection is whatever the driver gives (typed `Any` here: the pool and the
    services hand it back untouched). A type without sessions returns a lightweight client object from `connect`.
    """

    type_name: ClassVar[str] = ""
    """Set by the registry: the file's name."""
    title: ClassVar[str] = ""
    description: ClassVar[str] = ""
    category: ClassVar[Category] = "database"
    aliases: ClassVar[tuple[str, ...]] = ()
    is_queryable: ClassVar[bool] = False
    driver: ClassVar[Driver | None] = None
    dialect: ClassVar[str | None] = None
    Config: ClassVar[type[ConnectorConfig]] = ConnectorConfig

    def __init__(self, config: ConfigT, context: ConnectorContext | None = None) -> None:
        self.config = config
        self.context = context or ConnectorContext()

    # --- the life of a connection; called by the pool and by `test` ---

    @abstractmethod
    def connect(self, deadline: Deadline) -> Any:
        """Open a session, signed in, read-only, set up. Raises `AgentError`; must not outlive `deadline`."""

    def is_alive(self, connection: Any, timeout: float) -> bool:
        """Cheap liveness check within `timeout` seconds. Never raises."""
        return True

    def reset(self, connection: Any) -> bool:
        """Bring a returned session to its initial state. False (or an exception) means: discard it."""
        return True

    def close(self, connection: Any) -> None:
        """Say good-bye. Never raises, never blocks for long."""

    def abort(self, connection: Any) -> None:
        """Tear the socket down from another thread, so that a blocked read returns. Never raises."""
        self.close(connection)

    # --- the verbs ---

    @abstractmethod
    def test(self, probe: Probe) -> None:
        """Run the test stages in order (connector specification §0.3). Changes nothing, leaves nothing open."""

    def namespaces(self, connection: Any, request: SchemaRequest | None = None) -> tuple[str, ...]:
        """Resolve the namespaces that a discovery looks at; a type without namespaces has none."""
        return self.context.output_schemas

    @abstractmethod
    def read_schema(self, connection: Any, request: SchemaRequest) -> Iterator[Stream]:
        """Yield the streams, set-based and bounded in memory. A stream that cannot be described carries a warning."""

    def read_rows(self, connection: Any, stream: Stream, request: ReadRequest) -> BatchReader:
        """Open a read of one stream."""
        raise UserError(f"{self.title} streams cannot be read", code="unsupported")

    def map_error(self, error: BaseException) -> AgentError:
        """Translate a driver's exception. An `AgentError` comes back as it is."""
        if isinstance(error, AgentError):
            return error
        return AgentError(
            f"{self.title}: the driver failed: {type(error).__name__}: {error}",
            code="internal.driver",
            hint="run the connection test; if it passes, report this with the agent's log",
        )

    # --- facts about the type ---

    @classmethod
    def capabilities(cls) -> tuple[str, ...]:
        """Computed from the mixins, so it cannot be wrong by typing."""
        return tuple(sorted(mixin.capability for mixin in _CAPABILITIES if issubclass(cls, mixin)))

    @classmethod
    def endpoint(cls, config: dict[str, Any]) -> str:
        """Canonical text of where the secrets are sent: binds ciphertexts to it, guards against redirection."""
        properties = cls.Config.properties()
        parts = []
        for name in cls.Config.marked("x-endpoint"):
            value = config.get(name, properties[name].get("default"))
            parts.append(f"{name}={str(value).strip().lower() if value is not None else ''}")
        return "\x1f".join(parts)


class Queryable:
    """Can run a user's statement."""

    capability: ClassVar[str] = "query"

    @abstractmethod
    def execute(self, connection: Any, statement: Statement) -> BatchReader:
        """Guard and run one reading statement; the reader yields its rows as they arrive."""
        raise NotImplementedError


class Explainable:
    """Can show the plan of a statement."""

    capability: ClassVar[str] = "explain"

    @abstractmethod
    def explain(self, connection: Any, statement: Statement) -> QueryPlan:
        """Return the plan without running the statement."""
        raise NotImplementedError


class Cancellable:
    """Can stop a running statement on the server, from another thread."""

    capability: ClassVar[str] = "cancel"

    @abstractmethod
    def cancel(self, connection: Any) -> None:
        """Ask the server to stop what `connection` runs. Returns within about a second; never raises."""
        raise NotImplementedError


class Incremental:
    """Streams can be read between two watermark values."""

    capability: ClassVar[str] = "incremental"

    def watermark_facts(
        self,
        connection: Any,
        stream: Stream,
        column: str,
        *,
        lookback: int | None = None,
        cancel: CancelToken,
        deadline: Deadline,
    ) -> WatermarkFacts:
        """Look at a watermark column before a read: its highest value, and where the next window begins.

        `lookback` is in seconds for times, in days for dates, in units for numbers; None: the defaults (600, 1, 10 000).
        Raises `NotFound` (`column.not_found`) and `UserError` (`incremental.no_watermark`) for a type without a reliable order,
        `UserError` (`unsupported`) where a system cannot tell, which is the default.
        """
        raise UserError(
            "this connector's streams cannot be read by a watermark", code="unsupported", hint="read them in full"
        )


_CAPABILITIES: tuple[Any, ...] = (Queryable, Explainable, Cancellable, Incremental)
