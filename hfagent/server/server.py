"""Accepts clients and keeps them apart. Built by the daemon around a table of handlers; knows no service.

    server = Server(handlers)
    await server.listen_unix(path)
    ...
    await server.drain(10); await server.close()

Architecture Invariant: one event loop, no blocking call in it; a client that misbehaves costs itself only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from hfagent.foundation.errors import AgentError
from hfagent.protocol.agent import SessionInfo
from hfagent.protocol.method import Access, Method
from hfagent.protocol.table import METHODS
from hfagent.server.connection import Connection
from hfagent.server.dispatch import Dispatcher, Handler
from hfagent.server.greeting import AgentInfo
from hfagent.server.limits import Limits
from hfagent.server.problems import REQUEST_FAILED
from hfagent.server.replies import Encoded, error_reply
from hfagent.server.session import Session
from hfagent.services.context import Actor
from hfagent.transport.framing import JSON, Encoding, encode_frame
from hfagent.transport.peer import Peer, allowed_uids, peer_of
from hfagent.transport.tcp import TokenFile, bind_loopback
from hfagent.transport.unix import UnixListener

__all__ = ["Server"]

_log = logging.getLogger(__name__)

_OWNER: Final = frozenset(str(access) for access in Access)
_GUEST: Final = frozenset({str(Access.READ), str(Access.OPERATE)})
_TCP: Final = _OWNER - {str(Access.SECRET)}
"""The token proves the same user, but key material does not travel over what may be a forwarded port."""

_SWEEP_S: Final = 1.0


class Server:
    """All connections of the daemon. Must be made inside its running event loop."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        methods: Mapping[str, Method[Any, Any]] = METHODS,
        limits: Limits | None = None,
        info: AgentInfo | None = None,
        guests: frozenset[int] = frozenset(),
        on_open: Callable[[Session], None] | None = None,
        on_close: Callable[[str], None] | None = None,
    ) -> None:
        """`guests` are user ids beside the agent's own and root that may connect, with READ and OPERATE access.

        `on_open` gets each new session, `on_close` the id of each ended one; both run in the loop and must not block.
        Raises `RuntimeError` when handlers and methods do not match.
        """
        self.loop = asyncio.get_running_loop()
        self.limits = limits or Limits()
        self.info = info or AgentInfo()
        self.dispatcher = Dispatcher(handlers, methods)
        self.draining = False
        self._methods = methods
        self._guests = guests
        self._on_open = on_open
        self._on_close = on_close
        self._sessions: dict[str, Session] = {}
        self._connections: dict[Connection, Session | None] = {}
        self._watched: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._numbers = itertools.count(1)
        self._listeners: list[asyncio.AbstractServer] = []
        self._unix: list[UnixListener] = []
        self._token: TokenFile | None = None
        self._description: dict[str, Encoded] = {}

    # --- listening ----------------------------------------------------------------------------------------------------

    async def listen_unix(self, path: Path, *, mode: int = 0o600) -> Path:
        """Listen on a unix socket. Raises `Conflict` when another daemon does, `ConfigError` for a bad path."""
        listener = await asyncio.to_thread(UnixListener, path, mode=mode)
        self._unix.append(listener)
        await self.listen_socket(listener.socket)
        return path

    async def listen_tcp(self, host: str, port: int, *, token_file: Path) -> list[tuple[str, int]]:
        """Listen on loopback and write a new token file; return the addresses. Raises `ConfigError`."""
        sockets = bind_loopback(host, port)
        addresses = [listener.getsockname()[:2] for listener in sockets]
        try:
            if self._token is None:
                self._token = TokenFile(token_file)
        except BaseException:
            for listener in sockets:
                listener.close()
            raise
        for listener in sockets:
            await self.listen_socket(listener)
        return addresses

    async def listen_socket(self, listener: socket.socket) -> None:
        """Accept clients from a listening socket (bound by us or handed over by systemd)."""
        if listener.family == socket.AF_UNIX:
            self._listeners.append(await self.loop.create_unix_server(lambda: Connection(self), sock=listener))
        else:
            self._listeners.append(await self.loop.create_server(lambda: Connection(self), sock=listener))

    async def serve_connection(self, connected: socket.socket) -> Connection:
        """Serve one socket that is connected already."""
        connected.setblocking(False)
        _, protocol = await self.loop.connect_accepted_socket(lambda: Connection(self), connected)
        return protocol

    # --- ending -------------------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> bool:
        """Take no new clients and requests; let running requests finish, then cancel the rest.

        Return whether all of them finished by themselves.
        """
        self.draining = True
        for listener in self._listeners:
            listener.close()
        waiting = [asyncio.ensure_future(s.finished()) for s in self._sessions.values() if s.in_flight]
        if not waiting:
            return True
        _, late = await asyncio.wait(waiting, timeout=seconds)
        for session in list(self._sessions.values()):
            session.cancel_all()
        if late:
            await asyncio.wait(late, timeout=1.0)
        for task in late:
            task.cancel()
        return not late

    async def close(self) -> None:
        """Close everything at once: listeners, sessions, sockets, the token file. Safe to call twice."""
        self.draining = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        connections = list(self._connections)
        for connection in connections:
            connection.close()
        if connections:
            gone = [asyncio.ensure_future(connection.wait_lost()) for connection in connections]
            _, late = await asyncio.wait(gone, timeout=min(1.0, self.limits.linger_s))
            for connection in list(self._connections):
                connection.abort()
            if late:
                await asyncio.wait(late, timeout=1.0)
            for task in late:
                task.cancel()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for unix in self._unix:
            await asyncio.to_thread(unix.close)
        self._unix.clear()
        if self._token is not None:
            self._token.remove()
            self._token = None

    # --- what can be asked --------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The open sessions, oldest first."""
        return tuple(self._sessions.values())

    @property
    def in_flight(self) -> int:
        """Requests that run now."""
        return sum(session.in_flight for session in self._sessions.values())

    def session_infos(self, open_queries: Callable[[str], int] = lambda _session: 0) -> tuple[SessionInfo, ...]:
        """Describe the open sessions; `open_queries` counts the open results of a session id."""
        return tuple(
            SessionInfo(
                session=session.id,
                client=f"{session.client.name} {session.client.build}".strip(),
                transport=session.peer.transport,
                peer=str(session.peer),
                pid=session.client.pid,
                connected_at=session.connected_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                requests=session.requests,
                in_flight=session.in_flight,
                open_queries=open_queries(session.id),
                encoding=session.encoding,
            )
            for session in self._sessions.values()
        )

    def description(self, encoding: Encoding) -> Encoded:
        """Return the OpenRPC document; made on first demand, then kept as bytes."""
        found = self._description.get(encoding)
        if found is None:
            from hfagent.protocol.openrpc import document
            from hfagent.transport.encoding import encode

            found = self._description[encoding] = Encoded(encode(document(self._methods), encoding))
        return found

    def accepts_token(self, token: object) -> bool:
        """Tell whether `token` is the one of this start's token file."""
        return self._token is not None and self._token.matches(token)

    # --- for connections and sessions ---------------------------------------------------------------------------------

    def admit(self, connection: Connection, connected: socket.socket) -> Session | None:
        """Decide on a new connection before a byte of it is read; None when it was turned away."""
        try:
            peer = peer_of(connected)
        except OSError:
            connection.abort()
            return None
        if peer.transport == "unix" and peer.uid not in allowed_uids(self._guests):
            _log.warning("a connection by user id %s (process %s) was refused", peer.uid, peer.pid)
            connection.abort()
            return None
        self._connections[connection] = None
        unproven = sum(1 for session in self._sessions.values() if not session.proven)
        if peer.transport == "tcp" and unproven >= self.limits.unproven:
            connection.abort()
            return None
        if len(self._sessions) >= self.limits.connections or self.draining:
            self._turn_away(connection)
            return None
        session = Session(
            self,
            connection,
            session_id=f"s{next(self._numbers)}",
            peer=peer,
            actor=self._actor(peer),
            proven=peer.transport != "tcp",
        )
        self._connections[connection] = session
        self._sessions[session.id] = session
        _log.info("session %s opened by %s %s", session.id, peer.transport, peer)
        if self._on_open is not None:
            self._on_open(session)
        return session

    def session_ended(self, session: Session) -> None:
        """Called once by a session that ends."""
        if self._sessions.pop(session.id, None) is None:
            return
        _log.info("session %s (%s) ended after %d requests", session.id, session.client.name, session.requests)
        if self._on_close is not None:
            try:
                self._on_close(session.id)
            except Exception:  # noqa: BLE001  the owner's bookkeeping must not break the stream's clean-up
                _log.exception("closing session %s", session.id)

    def connection_gone(self, connection: Connection) -> None:
        """Called once by a connection whose stream is gone."""
        self._connections.pop(connection, None)

    def watch(self, connection: Connection) -> None:
        """Look after a connection about once a second until it needs it no more."""
        self._watched.add(connection)
        if self._sweep is None:
            self._sweep = self.loop.call_later(_SWEEP_S, self._look)

    def unwatch(self, connection: Connection) -> None:
        """The connection is gone."""
        self._watched.discard(connection)

    def _look(self) -> None:
        self._sweep = None
        now = self.loop.time()
        for connection in list(self._watched):
            if not connection.check(now):
                self._watched.discard(connection)
        if self._watched:
            self._sweep = self.loop.call_later(_SWEEP_S, self._look)

    def _actor(self, peer: Peer) -> Actor:
        if peer.transport == "tcp":
            return Actor("tcp", _TCP)
        own = peer.uid in allowed_uids()
        return Actor("local", _OWNER if own else _GUEST, uid=peer.uid, pid=peer.pid)

    def _turn_away(self, connection: Connection) -> None:
        if self.draining:
            error = AgentError("the agent is shutting down", code="agent.draining", hint="try again in a moment")
        else:
            error = AgentError(
                f"{self.limits.connections} clients are connected already",
                code="capacity.overloaded",
                hint="close one of them; hfagent sessions lists them",
            )
        connection.say(encode_frame(error_reply(None, REQUEST_FAILED, error.message, error.to_data(), JSON)))
        connection.close()
