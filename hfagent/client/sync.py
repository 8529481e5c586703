"""The command line's client: a socket and the codec, no event loop. One call at a time; not for several threads.

with SyncClient.connect() as agent:
    status = agent.call(STATUS)
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from hfagent.client.launch import connect, connect_to
from hfagent.client.wire import TcpAddress, UnixAddress, decode_reply, error_from, hello_params, lost
from hfagent.foundation.errors import AgentError, SourceError
from hfagent.transport.encoding import encode
from hfagent.transport.framing import JSON, Encoding, Frame, FrameDecoder, FrameError, encode_frame

if TYPE_CHECKING:
    from hfagent.foundation.paths import AgentPaths
    from hfagent.model.value import Value
    from hfagent.protocol.method import Method, Params

    P = TypeVar("P", bound=Params)
    R = TypeVar("R", bound=Value)

__all__ = ["SyncClient"]

Progress = Callable[[dict[str, Any]], None]
_LAST_WORDS_S = 2.0


class SyncClient:
    """A connection to the daemon, introduced and initialized."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        address: object = "the socket",
        encoding: Encoding = JSON,
        token: str | None = None,
        client: str = "hfagent",
    ) -> None:
        """Introduce ourselves on a connected socket. Raises `AgentError` when the agent refuses."""
        self._socket = connection
        self._address = address
        self._encoding = encoding
        self._decoder = FrameDecoder()
        self._frames: Iterator[Frame] = iter(())
        self._numbers = itertools.count(1)
        self.skew: str | None = None
        """A sentence for the user when client and daemon are of different builds."""
        try:
            self.hello: dict[str, Any] = self.request("agent/hello", hello_params(client, token))
            self.skew = self.hello.get("skew")
            self.request("initialize", {"clientInfo": {"name": client}, "capabilities": {}})
        except BaseException:
            connection.close()
            raise

    @classmethod
    def connect(
        cls,
        where: AgentPaths | UnixAddress | TcpAddress | None = None,
        *,
        start: bool = True,
        encoding: Encoding = JSON,
        client: str = "hfagent",
    ) -> SyncClient:
        """Connect to an address, or to the daemon of `paths` (default: the user's), starting it when `start` is set.

        Raises `AgentError` (`agent.offline`) when there is none.
        """
        if isinstance(where, UnixAddress | TcpAddress):
            token = where.token() if isinstance(where, TcpAddress) else None
            try:
                connection = connect_to(where)
            except OSError as exc:
                raise lost(where, f"cannot be reached: {exc.strerror or exc}") from exc
            connection.settimeout(None)
            return cls(connection, address=where, encoding=encoding, token=token, client=client)
        return cls(connect(where, start=start), address="the unix socket", encoding=encoding, client=client)

    def call(
        self,
        method: Method[P, R],
        params: P | None = None,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> R:
        """Call a method and return its result model. See `request`."""
        raw = (
            {}
            if params is None
            else params.model_dump(mode="json" if self._encoding == JSON else "python", exclude_unset=True)
        )
        return method.result.model_validate(self.request(method.name, raw, progress=progress, timeout=timeout))

    def request(
        self, name: str, params: dict[str, Any], *, progress: Progress | None = None, timeout: float | None = None
    ) -> Any:
        """Call a method by name with plain data and return plain data; needs no models, so it starts fast.

        `timeout` is in seconds, None waits for ever. Raises the agent's `AgentError`; `SourceError` (`timeout.total`)
        when time is up and `KeyboardInterrupt` on Ctrl-C, both after cancelling the request on the agent.
        """
        request_id = next(self._numbers)
        if progress is not None:
            params = {**params, "workDoneToken": request_id}
        deadline = None if timeout is None else time.monotonic() + timeout
        self._send({"jsonrpc": "2.0", "id": request_id, "method": name, "params": params})
        try:
            return self._wait(request_id, progress, deadline)
        except TimeoutError:
            self._take_back(request_id)
            raise SourceError(
                f"{name} did not finish within {timeout:g} s", code="timeout.total", hint="raise the time limit"
            ) from None
        except KeyboardInterrupt:
            self._take_back(request_id)
            raise

    def close(self) -> None:
        """Say goodbye. Safe to call twice."""
        if self._socket.fileno() >= 0:
            try:
                self._send({"jsonrpc": "2.0", "method": "exit"})
            except AgentError:
                pass  # it is gone already
            self._socket.close()

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, request_id: int, progress: Progress | None, deadline: float | None) -> Any:
        while True:
            message = self._receive(deadline)
            if message.get("method") == "$/progress":
                params = message.get("params") or {}
                if progress is not None and params.get("token") == request_id:
                    progress(params.get("value") or {})
            elif message.get("id") == request_id and "result" in message:
                return message["result"]
            elif "error" in message and message.get("id") in (request_id, None):
                raise error_from(message["error"])

    def _take_back(self, request_id: int) -> None:
        """Cancel on the agent, and take in its answer so that it does not meet the next call."""
        try:
            self._send({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": request_id}})
            self._wait(request_id, None, time.monotonic() + _LAST_WORDS_S)
        except (AgentError, TimeoutError):
            pass  # cancelled, as asked; a late answer carries an id that nobody waits for

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.settimeout(None)
        try:
            self._socket.sendall(encode_frame(encode(message, self._encoding), self._encoding))
        except OSError as exc:
            raise lost(self._address) from exc

    def _receive(self, deadline: float | None) -> dict[str, Any]:
        while True:
            try:
                frame = next(self._frames, None)
                if frame is not None:
                    message = decode_reply(frame.body, frame.encoding)
                    if isinstance(message, dict):
                        return message
                    continue
                self._frames = self._decoder.feed(self._read(deadline))
            except (FrameError, ValueError) as exc:
                raise AgentError(f"the agent at {self._address} answered nonsense: {exc}", code="net.protocol") from exc

    def _read(self, deadline: float | None) -> bytes:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
        else:
            self._socket.settimeout(None)
        try:
            data = self._socket.recv(256 * 1024)
        except TimeoutError:
            raise
        except OSError as exc:
            raise lost(self._address) from exc
        if not data:
            raise lost(self._address)
        return data
