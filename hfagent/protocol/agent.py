"""`agent/*`: the daemon itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hfagent.model.value import Value
from hfagent.protocol.method import Access, Method, Nothing, Params

__all__ = ["DOCTOR", "HELLO", "RELOAD", "SESSIONS", "SHUTDOWN", "STATUS"]

PROTOCOL_VERSION = 1
"""Grows when a client of the old number could not work with the new daemon."""


class HelloParams(Params):
    """Introduce a client and agree on the protocol.

    Sent by the forwarders before anything else. On TCP it carries the token of the token file. The daemon answers with its
    own version, so that skew between an updated client and a running daemon is told, not suffered.
    """

    protocol: tuple[int, int] = Field(
        (PROTOCOL_VERSION, PROTOCOL_VERSION), description="Lowest and highest version spoken."
    )
    build: str = Field("", description="Version of the client.")
    pid: int | None = Field(None, description="Process id of the client.")
    cwd: str | None = Field(None, description="Its working directory.")
    client: str = Field("", description="What the client is: `hfagent rpc`, `hfagent lsp`, ….")
    env: dict[str, str] = Field(default_factory=dict, description="Allow-listed environment of the client.")
    token: str | None = Field(None, description="Content of the token file; needed on TCP only.")
    required: tuple[str, ...] = Field((), description="Capabilities without which the client will not work.")


class HelloResult(Value):
    """The daemon's side of the introduction."""

    protocol: int = Field(description="The version that both speak.")
    build: str
    pid: int
    session: str
    capabilities: tuple[str, ...]
    missing: tuple[str, ...] = Field((), description="Required capabilities that this daemon lacks.")
    log: str | None = Field(None, description="Where the daemon logs.")
    skew: str | None = Field(
        None, description="A sentence for the user when client and daemon are of different builds."
    )


class StatusResult(Value):
    """The daemon's state in one page."""

    build: str
    protocol: int
    pid: int
    started_at: str
    uptime_s: float
    data_dir: str
    socket: str | None
    config_file: str | None
    log: str | None
    state: Literal["ready", "draining"]
    vault: str = Field(description="`unlocked`, `locked` or `empty`.")
    connectors: int
    connectors_by_status: dict[str, int] = Field(default_factory=dict)
    sessions: int
    open_queries: int
    open_connections: int
    rss_bytes: int
    threads: int
    problems: tuple[dict[str, Any], ...] = ()


class Check(Value):
    """One line of the doctor's list."""

    name: str
    status: Literal["ok", "warning", "error", "info"]
    message: str
    hint: str | None = Field(None, description="The remedy.")
    details: dict[str, Any] = Field(default_factory=dict)


class DoctorParams(Params):
    """Check everything a support person would ask for.

    Store, vault, permissions, disk, clock, drivers, sockets, connectors. With `connectors` each active connector is tested
    too (mode quick).
    """

    connectors: bool = Field(False, description="Test every active connector too.")


class DoctorResult(Value):
    """All checks; `ok` when none is an error."""

    ok: bool
    checks: tuple[Check, ...]


class StatusParams(Nothing):
    """Show the daemon's state."""


class SessionsParams(Nothing):
    """List the connected clients."""


class SessionInfo(Value):
    """One connected client."""

    session: str
    client: str
    transport: str
    peer: str
    pid: int | None = None
    connected_at: str
    requests: int
    in_flight: int
    open_queries: int
    encoding: str


class SessionsResult(Value):
    """The connected clients."""

    sessions: tuple[SessionInfo, ...]


class ShutdownParams(Params):
    """Stop the daemon: finish or cancel what runs, then exit."""

    drain_s: float = Field(
        10, ge=0, le=300, description="Seconds to let running requests finish before cancelling them."
    )


class ReloadParams(Nothing):
    """Read the configuration file again, as SIGHUP does.

    A broken file is refused and the old configuration stays in force.
    """


class ReloadResult(Value):
    """What changed."""

    changed: tuple[str, ...]
    restart_needed: tuple[str, ...] = Field((), description="Settings that take effect at the next start only.")


class Done(Value):
    """It is done."""

    ok: bool = True


HELLO = Method("agent/hello", HelloParams, HelloResult, before_initialize=True)
STATUS = Method("agent/status", StatusParams, StatusResult)
DOCTOR = Method("agent/doctor", DoctorParams, DoctorResult, access=Access.OPERATE, progress=True)
SESSIONS = Method("agent/sessions", SessionsParams, SessionsResult)
SHUTDOWN = Method("agent/shutdown", ShutdownParams, Done, access=Access.ADMIN)
RELOAD = Method("agent/reload", ReloadParams, ReloadResult, access=Access.ADMIN)
