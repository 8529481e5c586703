"""The asynchronous client: many calls at a time on one connection.

    async with await AgentClient.connect() as agent:
        page = await agent.call(EXECUTE, ExecuteParams(connector="sales", sql="select 1"))

Cancelling the task that awaits a call cancels the request on the agent.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from hfagent.client.launch import connect, connect_to
from hfagent.client.wire import IN_FLIGHT, TcpAddress, UnixAddress, decode_reply, error_from, hello_params, lost
from hfagent.foundation.errors import AgentError, SourceError
from hfagent.foundation.paths import AgentPaths
from hfagent.model.value import Value
from hfagent.protocol.method import Method, Params
from hfagent.transport.encoding import encode
from hfagent.transport.framing import JSON, Encoding, FrameDecoder, FrameError, encode_frame

__all__ = ["AgentClient"]

_log = logging.getLogger(__name__)

P = TypeVar("P", bound=Params)
R = TypeVar("R", bound=Value)
Progress = Callable[[dict[str, Any]], None]


class AgentClient(asyncio.Protocol):
    """A connection to the daemon, introduced and initialized. Made by `connect`."""

    def __init__(self, address: object, encoding: Encoding) -> None:
        self._address = address
        self._encoding = encoding
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._progress: dict[int, Progress] = {}
        self._slots = asyncio.Semaphore(IN_FLIGHT)  # more would be refused by the agent
        self._closed = asyncio.Event()
        self._fault: AgentError | None = None
        self.hello: dict[str, Any] = {}
        self.skew: str | None = None
        """A sentence for the user when client and daemon are of different builds."""

    @classmethod
    async def connect(
        cls,
        where: AgentPaths | UnixAddress | TcpAddress | None = None,
        *,
        start: bool = True,
        encoding: Encoding = "msgpack",
        client: str = "hfagent client",
    ) -> AgentClient:
        """Connect to an address, or to the daemon of `paths` (default: the user's), starting it when `start` is set.

        Raises `AgentError` (`agent.offline`) when there is none, and what the agent says when it refuses.
        """
        loop = asyncio.get_running_loop()
        token: str | None = None
        if isinstance(where, UnixAddress | TcpAddress):
            token = where.token() if isinstance(where, TcpAddress) else None
            try:
                connection = await asyncio.to_thread(connect_to, where)
            except OSError as exc:
                raise lost(where, f"cannot be reached: {exc.strerror or exc}") from exc
        else:
            connection = await asyncio.to_thread(connect, where, start=start)
        connection.setblocking(False)
        agent = cls(where or "the unix socket", encoding)
        await loop.create_connection(lambda: agent, sock=connection)
        try:
            agent.hello = await agent.request("agent/hello", hello_params(client, token))
            agent.skew = agent.hello.get("skew")
            await agent.request("initialize", {"clientInfo": {"name": client}, "capabilities": {}})
        except BaseException:
            await agent.close()
            raise
        return agent

    async def call(
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
        return method.result.model_validate(await self.request(method.name, raw, progress=progress, timeout=timeout))

    async def request(
        self, name: str, params: dict[str, Any], *, progress: Progress | None = None, timeout: float | None = None
    ) -> Any:
        """Call a method by name with plain data and return plain data.

        `timeout` is in seconds, None waits for ever. `progress` gets the value of every report, in the loop. Raises the
        agent's `AgentError`, or `SourceError` (`timeout.total`) after cancelling the request.
        """
        async with self._slots:
            try:
                async with asyncio.timeout(timeout):
                    return await self._request(name, params, progress)
            except TimeoutError:
                raise SourceError(
                    f"{name} did not finish within {timeout:g} s", code="timeout.total", hint="raise the time limit"
                ) from None

    async def close(self) -> None:
        """Say goodbye and wait for the stream to be closed. Safe to call twice."""
        if self._transport is not None and not self._transport.is_closing():
            self._send({"jsonrpc": "2.0", "method": "exit"})
            self._transport.close()
        await self._closed.wait()

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _request(self, name: str, params: dict[str, Any], progress: Progress | None) -> Any:
        if self._transport is None or self._transport.is_closing():
            raise self._fault or lost(self._address)
        request_id = next(self._numbers)
        if progress is not None:
            params = {**params, "workDoneToken": request_id}
            self._progress[request_id] = progress
        future = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        try:
            self._send({"jsonrpc": "2.0", "id": request_id, "method": name, "params": params})
            return await future
        except asyncio.CancelledError:
            if not self._transport.is_closing():
                self._send({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": request_id}})
            raise
        finally:
            self._waiting.pop(request_id, None)
            self._progress.pop(request_id, None)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._transport is not None
        self._transport.write(encode_frame(encode(message, self._encoding), self._encoding))

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for body, encoding in self._decoder.feed(data):
                self._received(decode_reply(body, encoding))
        except (FrameError, ValueError) as exc:
            self._fault = AgentError(f"the agent at {self._address} answered nonsense: {exc}", code="net.protocol")
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._fault or lost(self._address))

    def _received(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise ValueError("a message is an object")
        if message.get("method") == "$/progress":
            params = message.get("params") or {}
            if listener := self._progress.get(params.get("token", 0)):
                try:
                    listener(params.get("value") or {})
                except Exception:  # noqa: BLE001  the listener is not ours; the other calls on this stream are
                    _log.exception("a progress listener failed")
            return
        if "error" in message and message.get("id") is None:
            self._fault = error_from(message["error"])  # about the stream as a whole; the agent closes it next
            return
        future = self._waiting.get(message.get("id", 0))
        if future is None or future.done():
            return
        if "result" in message:
            future.set_result(message["result"])
        else:
            future.set_exception(error_from(message.get("error")))
