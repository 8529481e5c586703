"""One client: its handshake, its requests in flight, its replies. Works on whole messages; bytes are `connection`'s.

A message is handled in `receive`, without awaiting, up to the point where a handler must run: so handshakes, refusals and
cancellations take effect in the order in which they came, even within one chunk.

* Every request is answered exactly once; a notification never.
* A cancelled request is answered at once; its handler may need longer to wind down and counts as running until it has.
* Nothing a handler raises reaches the wire as it is (`problems`).

Architecture Invariant: `exit`, a broken stream or a lost client ends this session and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from pydantic import ValidationError

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.errors import AccessDenied, AgentError, Cancelled
from hfagent.model.value import Value
from hfagent.protocol.agent import HelloParams
from hfagent.server.dispatch import Refused, Route
from hfagent.server.greeting import (
    ClientInfo,
    allowed_environment,
    client_of,
    hello_result,
    initialize_result,
    token_in,
)
from hfagent.server.problems import (
    INVALID_REQUEST,
    NOT_INITIALIZED,
    PARSE_ERROR,
    Problem,
    bad_params,
    cancelled,
    invalid_params,
    problem_of,
)
from hfagent.server.progress import ProgressReporter
from hfagent.server.replies import RequestId, error_reply, notification, result_reply, too_large
from hfagent.services.context import Actor, CallContext, no_progress
from hfagent.transport.encoding import DecodeError, decode
from hfagent.transport.framing import JSON, MSGPACK, Encoding, FrameError
from hfagent.transport.peer import Peer

if TYPE_CHECKING:
    from hfagent.server.server import Server

__all__ = ["Outlet", "Session"]

_log = logging.getLogger(__name__)

_INT_RANGE: Final = (-(2**63), 2**64 - 1)


class Outlet(Protocol):
    """Where a session's messages go."""

    congested: bool
    """Whether the client reads more slowly than we write."""

    def send(self, body: bytes, encoding: Encoding, *, more: bool = False) -> None:
        """Write one message; `more` says that others follow soon, so that they may share a system call."""
        ...

    async def drained(self) -> None:
        """Wait until the client has caught up, or is gone."""
        ...

    def widen(self) -> None:
        """Accept messages up to the full limit: the client has introduced itself."""
        ...

    def close(self) -> None:
        """Close once everything is written."""
        ...


class _Request:
    """One request in flight."""

    __slots__ = ("answered", "cancel", "encoding", "id", "method", "progress", "task")

    def __init__(self, request_id: RequestId, method: str, encoding: Encoding) -> None:
        self.id = request_id
        self.method = method
        self.encoding = encoding
        self.cancel = CancelToken()
        self.progress: ProgressReporter | None = None
        self.task: asyncio.Task[None] | None = None
        self.answered = False


class Session:
    """One client."""

    def __init__(
        self, server: Server, outlet: Outlet, *, session_id: str, peer: Peer, actor: Actor, proven: bool
    ) -> None:
        """`proven` is False for a client that must show the TCP token first."""
        self.id = session_id
        self.peer = peer
        self.actor = actor
        self.client = ClientInfo(pid=peer.pid)
        self.connected_at = datetime.now(UTC)
        self.encoding: Encoding = JSON
        self.requests = 0
        self.proven = proven
        self.phase: Literal["new", "ready", "shut_down", "closed"] = "new"
        self._server = server
        self._outlet = outlet
        self._loop = asyncio.get_running_loop()
        self._in_flight_limit = server.limits.in_flight
        self._in_flight: dict[RequestId, _Request] = {}
        self._running: set[_Request] = set()
        self._half_closed = False
        self._lifecycle: dict[str, Callable[[RequestId, Any, Encoding], None]] = {
            "initialize": self._initialize,
            "shutdown": self._shutdown,
            "agent/hello": self._hello,
            "rpc.discover": self._discover,
        }

    @property
    def in_flight(self) -> int:
        """Requests whose handlers still run."""
        return len(self._running)

    # --- messages in --------------------------------------------------------------------------------------------------

    def receive(self, body: bytes, encoding: Encoding) -> None:
        """Handle one message. Never raises."""
        if self.phase == "closed":
            return
        self.encoding = encoding
        try:
            message = decode(body, encoding)
        except DecodeError as exc:
            self._refuse(None, PARSE_ERROR, f"the message could not be decoded: {exc}", "request.malformed", encoding)
            return
        if type(message) is not dict:
            reason = "batches are not part of this protocol" if type(message) is list else "a message is an object"
            self._refuse(None, INVALID_REQUEST, reason, "request.malformed", encoding)
            return
        method = message.get("method")
        if "id" not in message:
            if type(method) is str:
                self._notified(method, message.get("params"))
            elif "result" not in message:  # a reply without id cannot belong to anything
                self._refuse(None, INVALID_REQUEST, "a message needs a method", "request.malformed", encoding)
            return
        request_id = message["id"]
        if not (type(request_id) is str or (type(request_id) is int and _INT_RANGE[0] <= request_id <= _INT_RANGE[1])):
            self._refuse(None, INVALID_REQUEST, "an id is an integer or a string", "request.malformed", encoding)
        elif method is None and ("result" in message or "error" in message):
            _log.debug("session %s: a reply to nothing", self.id)  # this server asks its clients nothing yet
        elif type(method) is not str:
            self._refuse(request_id, INVALID_REQUEST, "a method is a string", "request.malformed", encoding)
        elif message.get("jsonrpc") != "2.0":
            self._refuse(request_id, INVALID_REQUEST, 'a message says "jsonrpc": "2.0"', "request.malformed", encoding)
        else:
            self._requested(request_id, method, message.get("params"), encoding)

    def broken(self, error: FrameError) -> None:
        """The stream cannot be followed: say why, and close."""
        number, code = (INVALID_REQUEST, "request.too_large") if error.too_large else (PARSE_ERROR, "request.malformed")
        self._refuse(None, number, str(error), code, self.encoding)
        self._outlet.close()

    def half_closed(self) -> bool:
        """The client stopped sending; return whether it still waits for answers."""
        self._half_closed = True
        return bool(self._running)

    def _requested(self, request_id: RequestId, method: str, params: Any, encoding: Encoding) -> None:
        self.requests += 1
        if request_id in self._in_flight:
            text = "a request with this id is running already"
            self._refuse(request_id, INVALID_REQUEST, text, "request.malformed", encoding)
            return
        if self.phase == "shut_down":
            self._refuse(request_id, INVALID_REQUEST, "the session was shut down", "request.malformed", encoding)
            return
        if not self.proven and method not in ("agent/hello", "initialize"):
            self._deny(request_id, encoding)
            return
        if lifecycle := self._lifecycle.get(method):
            lifecycle(request_id, params, encoding)
            return
        if self.phase == "new":
            text = f"initialize comes before {method[:100]}"
            self._refuse(request_id, NOT_INITIALIZED, text, "request.not_initialized", encoding)
            return
        try:
            self._start(request_id, method, params, encoding)
        except Refused as refused:
            self._problem(request_id, refused.problem, encoding)

    def _start(self, request_id: RequestId, method: str, params: Any, encoding: Encoding) -> None:
        """Check everything, then call the handler; what it has to wait for, a task of its own awaits. Raises `Refused`."""
        server = self._server
        if server.draining:
            raise Refused(problem_of(AgentError("the agent is shutting down", code="agent.draining")))
        if len(self._running) >= self._in_flight_limit:
            raise Refused(problem_of(_overloaded(self._in_flight_limit)))
        route = server.dispatcher.route(method, self.actor)
        request = _Request(request_id, method, encoding)
        if type(params) is dict and ("workDoneToken" in params or "partialResultToken" in params):
            params = {**params}
            params.pop("partialResultToken", None)
            if (token := params.pop("workDoneToken", None)) is not None:
                request.progress = self._reporter(token, route, encoding)
        valid = server.dispatcher.params(route, params)
        progress = request.progress
        context = CallContext(self.id, self.actor, request.cancel, progress or no_progress, encoding == MSGPACK)
        try:
            answer = route.handler(context, valid)
            if isinstance(answer, Value):
                if not self._outlet.congested:
                    self._deliver(request, self._encoded(request, answer))
                    return
                answer = _at_hand(answer)
        except (Exception, SystemExit) as exc:
            raise Refused(problem_of(exc, method=method, session=self.id)) from exc
        self._in_flight[request_id] = request
        self._running.add(request)
        request.task = _task(self._run(request, answer), self._loop)

    def _reporter(self, token: Any, route: Route, encoding: Encoding) -> ProgressReporter:
        if type(token) not in (int, str):
            reason = "a progress token is an integer or a string"
            raise Refused(bad_params(route.method.name, reason, field="workDoneToken"))

        def send(params: dict[str, Any]) -> None:
            self._outlet.send(notification("$/progress", params, encoding), encoding)

        return ProgressReporter(token, route.method.title, self._loop, send, lambda: self._outlet.congested)

    async def _run(self, request: _Request, answer: Awaitable[Value]) -> None:
        try:
            result = await answer
            if self._outlet.congested:
                await self._outlet.drained()
            reply = self._encoded(request, result)
        except asyncio.CancelledError:
            self._fail(request, cancelled())
        except Cancelled as exc:
            self._fail(request, problem_of(exc))
        except (Exception, SystemExit) as exc:  # noqa: BLE001
            # A handler may raise anything, and a driver may even call sys.exit: the client gets an error, the log the trace.
            self._fail(request, problem_of(exc, method=request.method, session=self.id))
        else:
            if not request.answered:
                self._deliver(request, reply)
        finally:
            self._running.discard(request)
            if self._half_closed and not self._running:
                self._outlet.close()

    def _encoded(self, request: _Request, result: Value) -> bytes:
        reply = result_reply(request.id, result, request.encoding)
        if len(reply) > self._server.limits.body:
            raise too_large(len(reply), self._server.limits.body)
        return reply

    def _deliver(self, request: _Request, reply: bytes) -> None:
        if request.progress is not None:
            request.progress.finish()
        self._settle(request)
        self._outlet.send(reply, request.encoding, more=len(self._running) > 1)

    # --- messages out -------------------------------------------------------------------------------------------------

    def _settle(self, request: _Request) -> None:
        request.answered = True
        if self._in_flight.get(request.id) is request:
            del self._in_flight[request.id]

    def _fail(self, request: _Request, problem: Problem) -> None:
        if request.answered or self.phase == "closed":
            return
        if request.progress is not None:
            request.progress.finish()
        self._settle(request)
        self._problem(request.id, problem, request.encoding)

    def _problem(self, request_id: RequestId | None, problem: Problem, encoding: Encoding) -> None:
        self._outlet.send(error_reply(request_id, problem.number, problem.message, problem.data, encoding), encoding)

    def _refuse(self, request_id: RequestId | None, number: int, text: str, code: str, encoding: Encoding) -> None:
        error = AgentError(text, code=code)
        self._problem(request_id, Problem(number, error.message, error.to_data()), encoding)

    def _answer(self, request_id: RequestId, result: Any, encoding: Encoding) -> None:
        self._outlet.send(result_reply(request_id, result, encoding), encoding)

    def _deny(self, request_id: RequestId, encoding: Encoding) -> None:
        """Turn away who has not shown the token. One answer for every cause, so that nothing can be learnt from it."""
        error = AccessDenied(
            "this connection has not shown the agent's token",
            hint="send agent/hello with the content of the token file (run/token in the agent's data directory) first",
        )
        self._problem(request_id, problem_of(error), encoding)
        self.end()
        self._outlet.close()

    # --- the session's own methods --------------------------------------------------------------------------------------

    def _hello(self, request_id: RequestId, params: Any, encoding: Encoding) -> None:
        try:
            hello = HelloParams.model_validate({} if params is None else params)
        except ValidationError as exc:
            if self.proven:
                self._problem(request_id, invalid_params(exc, HelloParams, "agent/hello"), encoding)
            else:
                self._deny(request_id, encoding)
            return
        if not self._prove(hello.token):
            self._deny(request_id, encoding)
            return
        try:
            result = hello_result(hello, self._server.info, self.id, self._server.dispatcher.names)
        except AgentError as exc:
            self._problem(request_id, problem_of(exc), encoding)
            return
        self.client = ClientInfo(
            name=(hello.client or self.client.name or "unnamed client")[:200],
            build=hello.build[:100],
            pid=self.peer.pid or hello.pid,
            cwd=hello.cwd,
            env=allowed_environment(hello.env),
        )
        self._outlet.widen()
        self._answer(request_id, result, encoding)

    def _initialize(self, request_id: RequestId, params: Any, encoding: Encoding) -> None:
        if params is None:
            params = {}
        if not self._prove(token_in(params) if type(params) is dict else None):
            self._deny(request_id, encoding)
            return
        if type(params) is not dict:
            self._problem(request_id, bad_params("initialize", "parameters are given by name, in an object"), encoding)
            return
        if self.phase != "new":
            self._refuse(request_id, INVALID_REQUEST, "initialize was sent before", "request.malformed", encoding)
            return
        self.phase = "ready"
        said = client_of(params)
        self.client.name = said.name or self.client.name or "unnamed client"
        self.client.build = said.build or self.client.build
        self.client.pid = said.pid or self.client.pid
        self._outlet.widen()
        self._answer(request_id, initialize_result(params, self._server.info, self._server.dispatcher.names), encoding)

    def _shutdown(self, request_id: RequestId, _params: Any, encoding: Encoding) -> None:
        if self.phase == "new":
            text = "initialize comes before shutdown"
            self._refuse(request_id, NOT_INITIALIZED, text, "request.not_initialized", encoding)
            return
        self.phase = "shut_down"
        self._answer(request_id, None, encoding)

    def _discover(self, request_id: RequestId, _params: Any, encoding: Encoding) -> None:
        self._answer(request_id, self._server.description(encoding), encoding)

    def _prove(self, token: Any) -> bool:
        if not self.proven:
            self.proven = self._server.accepts_token(token)
            if not self.proven:
                _log.warning("session %s: a client at %s showed no valid token", self.id, self.peer)
        return self.proven

    def _notified(self, method: str, params: Any) -> None:
        match method:
            case "$/cancelRequest":
                request_id = params.get("id") if type(params) is dict else None
                if isinstance(request_id, int | str) and (request := self._in_flight.get(request_id)):
                    self._cancel(request)
            case "exit":
                self.end()
                self._outlet.close()
            case _:
                # initialized, $/setTrace, notifications of later protocol versions; methods are called by requests only.
                _log.debug("session %s: notification %.60s ignored", self.id, method)

    # --- ending -------------------------------------------------------------------------------------------------------

    def _cancel(self, request: _Request) -> None:
        """Answer now, stop the handler; the token fires in a thread because its callbacks talk to servers."""
        self._fail(request, cancelled())
        if request.task is not None:
            request.task.cancel()
        threading.Thread(target=request.cancel.cancel, name="hf-cancel", daemon=True).start()

    def cancel_all(self) -> None:
        """Cancel every running request; each is answered as cancelled."""
        for request in list(self._running):
            if request.answered:
                continue
            self._cancel(request)

    def end(self) -> None:
        """Forget the client and stop its work. Safe to call twice."""
        if self.phase == "closed":
            return
        self.phase = "closed"
        running, self._in_flight = list(self._running), {}
        for request in running:
            request.answered = True
            if request.progress is not None:
                request.progress.silence()
            if request.task is not None:
                request.task.cancel()
        if running:

            def stop() -> None:
                for request in running:
                    request.cancel.cancel()

            threading.Thread(target=stop, name="hf-cancel", daemon=True).start()
        self._server.session_ended(self)

    async def finished(self) -> None:
        """Wait until no handler of this session runs any more."""
        tasks = [request.task for request in self._running if request.task is not None]
        if tasks:
            await asyncio.wait(tasks)


async def _at_hand(result: Value) -> Value:
    return result


if sys.version_info >= (3, 12):

    def _task(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """A task that has run to its first wait already: a quick handler costs no round through the loop."""
        return asyncio.Task(work, loop=loop, eager_start=True)

else:

    def _task(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """A task, without the loop's bookkeeping for task factories."""
        return asyncio.Task(work, loop=loop)


def _overloaded(limit: int) -> AgentError:
    return AgentError(
        f"{limit} requests of this connection are running already",
        code="capacity.overloaded",
        hint="wait for one to finish, then send this one again",
        retry_after=0.1,
    )
