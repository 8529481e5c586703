"""One connected stream: bytes in and out, and all patience with slow or silent clients.

* In: frames are cut and handed to the session. A client that sends nothing, half a frame, or bytes by the drop, is closed.
* Out: beyond the high-water mark the client is no longer read, so it cannot ask for more than it takes; when its backlog
  does not shrink, it is dropped.
* Close: the last message is flushed, then the stream is half-closed and lingers a moment, so that the client can read it.

Only streams that somebody must keep an eye on are in the server's watch list; an idle daemon wakes up for nobody.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from typing import TYPE_CHECKING, Any, Final

from hfagent.server.session import Session
from hfagent.transport.framing import Encoding, FrameDecoder, FrameError, encode_frame, frame_header
from hfagent.transport.tcp import looks_like_http

if TYPE_CHECKING:
    from hfagent.server.server import Server

__all__ = ["Connection"]

_log = logging.getLogger(__name__)

_COPY_LIMIT: Final = 64 * 1024  # bodies above this are not joined with their header


class Connection(asyncio.Protocol):
    """Adapter between asyncio's transport and a `Session`; the session's outlet."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = server.loop
        self._decoder = FrameDecoder(max_body=self._limits.body_before_hello, max_header=self._limits.header)
        self._transport: asyncio.Transport | None = None
        self._session: Session | None = None
        self._first = True
        self._frames = 0
        self._opened = self._loop.time()
        self._frame_started = 0.0
        self._frame_seen = 0
        self._out: list[bytes] = []
        self._flush_planned = False
        self._corked = False
        self.congested = False
        self._drained: asyncio.Future[None] | None = None
        self._stalled_since = 0.0
        self._stalled_size = 0
        self._closing = False
        self._half_closed_at = 0.0
        self._ended = False  # the client sends nothing any more
        self._lost = asyncio.Event()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=self._limits.write_high, low=self._limits.write_high // 4)
        self._session = self._server.admit(self, transport.get_extra_info("socket"))
        if self._session is not None:
            self._server.watch(self)

    def data_received(self, data: bytes) -> None:
        session = self._session
        if session is None or self._closing:
            return
        if self._first:
            self._first = False
            if session.peer.transport == "tcp" and looks_like_http(data):
                _log.warning("session %s: a browser or an HTTP client connected; closed", session.id)
                self.abort()
                return
        decoder = self._decoder
        self._corked = True  # what a chunk's messages answer at once goes out together
        try:
            for body, encoding in decoder.feed(data):
                self._frames += 1
                self._frame_started = 0.0
                session.receive(body, encoding)
                if self._is_closing():
                    return
        except FrameError as exc:
            session.broken(exc)
            return
        finally:
            self._corked = False
            if self._out:
                self._flush()
        if decoder.partial:
            if not self._frame_started:
                self._frame_started = self._loop.time()
                self._frame_seen = 0
                self._server.watch(self)
            self._frame_seen += len(data)

    def eof_received(self) -> bool:
        session = self._session
        self._ended = True
        if session is None or self._closing:
            return False
        if session.half_closed() and not self._hung_up():
            self._half_closed_at = self._loop.time()
            self._server.watch(self)
            return True  # it wants its answers first
        self.close()
        return True

    def pause_writing(self) -> None:
        assert self._transport is not None
        self.congested = True
        self._stalled_since = self._loop.time()
        self._stalled_size = self._transport.get_write_buffer_size()
        if not self._closing and not self._ended and self._transport.is_reading():
            self._transport.pause_reading()
        self._server.watch(self)

    def resume_writing(self) -> None:
        assert self._transport is not None
        self.congested = False
        self._wake()
        if self._frame_started:  # the rest of a message could not come while we did not read
            self._frame_started, self._frame_seen = self._loop.time(), 0
        if not self._transport.is_closing() and not self._ended:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._server.unwatch(self)
        self._wake()
        self._lost.set()
        if self._session is not None:
            self._session.end()
        self._server.connection_gone(self)

    # --- Outlet -------------------------------------------------------------------------------------------------------

    def send(self, body: bytes, encoding: Encoding, *, more: bool = False) -> None:
        """Write one message; with `more`, wait for the next one before the kernel hears of it."""
        if self._transport is None or self._closing or self._transport.is_closing():
            return
        size = len(body)
        if size > _COPY_LIMIT:
            self._flush()
            self._transport.write(frame_header(size, encoding))
            self._transport.write(body)
            return
        self._out.append(encode_frame(body, encoding))
        if self._corked or self._flush_planned:
            return
        if more:
            self._flush_planned = True
            self._loop.call_soon(self._flush)
        else:
            self._flush()

    def say(self, frame: bytes) -> None:
        """Write a whole frame outside of any session."""
        assert self._transport is not None
        self._transport.write(frame)

    async def drained(self) -> None:
        """Return when the client has taken enough of what was written."""
        while self.congested and not self._closing:  # whoever woke first may have filled the buffer again
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def widen(self) -> None:
        """Allow full-sized messages from now on: the client has introduced itself."""
        self._decoder.max_body = self._limits.body

    def close(self) -> None:
        """Close after what is written has been read, within the linger time. Safe to repeat."""
        if self._closing or self._transport is None:
            return
        self._flush()
        self._closing = True
        self._stalled_since, self._stalled_size = self._loop.time(), self._transport.get_write_buffer_size()
        if self._session is not None:
            self._session.end()
        if self._transport.is_closing():
            return
        self._server.watch(self)
        if self._ended:
            self._transport.close()
            return
        if not self._transport.is_reading():
            self._transport.resume_reading()  # to learn when the client goes
        # Closing outright while unread bytes wait would reset the stream and destroy our last message.
        self._transport.write_eof()

    # --- patience -----------------------------------------------------------------------------------------------------

    def check(self, now: float) -> bool:
        """Look after this stream, called about once a second while watched; return whether it must be watched on."""
        limits = self._limits
        if self._closing:
            if not self._progresses(now, limits.linger_s):
                self.abort()
            return True
        session = self._session
        if session is None:
            return False
        if self.congested:
            if not self._progresses(now, limits.write_stall_s):
                _log.warning("session %s: the client does not read its replies; dropped", session.id)
                self.abort()
            return True
        if self._half_closed_at:
            patience = limits.half_closed_s if session.peer.transport == "tcp" else None
            if self._hung_up() or (patience is not None and now - self._half_closed_at > patience):
                self.close()
            return True
        if now - self._opened >= limits.handshake_s and (not self._frames or not session.proven):
            _log.info("session %s: no complete message within %g s; closed", session.id, limits.handshake_s)
            self.abort()
            return False
        if self._frame_started:
            age = now - self._frame_started
            if age >= limits.frame_grace_s:
                if self._frame_seen < limits.frame_rate * age:
                    _log.warning("session %s: a message comes too slowly; closed", session.id)
                    self.abort()
                    return False
                # Start over, so that a fast beginning does not pay for an endless rest.
                self._frame_started, self._frame_seen = now, 0
            return True
        return not self._frames or not session.proven

    def abort(self) -> None:
        """Close without another word."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    async def wait_lost(self) -> None:
        """Wait until the stream is gone."""
        await self._lost.wait()

    def _progresses(self, now: float, period: float) -> bool:
        """Whether the backlog shrinks; asked again and again, judged once per period."""
        assert self._transport is not None
        if now - self._stalled_since < period:
            return True
        size = self._transport.get_write_buffer_size()
        shrunk = self._stalled_size - size
        self._stalled_since, self._stalled_size = now, size
        return shrunk >= self._limits.frame_rate * period

    def _is_closing(self) -> bool:
        return self._closing

    def _hung_up(self) -> bool:
        """Whether the client is gone altogether, not merely done with sending. Only unix sockets tell."""
        assert self._transport is not None
        connection: Any = self._transport.get_extra_info("socket")
        if connection is None or connection.family != socket.AF_UNIX or connection.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(connection.fileno(), 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

    def _flush(self) -> None:
        self._flush_planned = False
        out = self._out
        if out and self._transport is not None:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            if not self._transport.is_closing():
                self._transport.write(data)

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
