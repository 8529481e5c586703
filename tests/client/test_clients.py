"""Both clients, over both transports and encodings, against a server in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hfagent.client.aio import AgentClient
from hfagent.client.sync import SyncClient
from hfagent.client.wire import UnixAddress
from hfagent.foundation.errors import AgentError, Cancelled
from hfagent.server.greeting import AgentInfo
from hfagent.transport.framing import Encoding
from tests.fixtures.daemon import (
    BLOB,
    COUNT,
    ECHO,
    FAIL,
    HOLD,
    BlobParams,
    CountParams,
    EchoParams,
    FailParams,
    RunningServer,
    StartServer,
    wait_until,
)

ENCODINGS: list[Encoding] = ["json", "msgpack"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("tcp", [False, True])
def test_sync(start_server: StartServer, encoding: Encoding, tcp: bool) -> None:
    server = start_server(tcp=True)
    with SyncClient.connect(server.tcp if tcp else server.unix, encoding=encoding, client="a test") as agent:
        result = agent.call(ECHO, EchoParams(text="héllo", nested={"a": [1, None]}))
        assert (result.text, result.nested, result.binary) == ("héllo", {"a": [1, None]}, encoding == "msgpack")
        values: list[dict[str, Any]] = []
        assert agent.call(COUNT, CountParams(steps=2), progress=values.append).ok
        assert [v["kind"] for v in values] == ["begin", "report", "report", "end"]
        assert (
            len(agent.call(BLOB, BlobParams(size=9_000_000, as_text=encoding == "json")).model_dump_json()) > 9_000_000
        )
        with pytest.raises(AgentError) as caught:
            agent.call(FAIL, FailParams(how="source"))
        error = caught.value
        assert (error.code, error.message, error.hint) == ("query.failed", "the server said no", "ask again")
        assert error.native == {"sqlstate": "42P01"}
        with pytest.raises(AgentError) as caught:
            agent.request("test/echo", {"texte": 1})
        assert caught.value.code == "request.invalid_params"
        assert caught.value.data == {"field": "texte"}
        (session,) = server.server.sessions
        assert session.client.name == "a test"
    wait_until(lambda: not server.server.sessions, "goodbye was said")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("tcp", [False, True])
def test_async(start_server: StartServer, encoding: Encoding, tcp: bool) -> None:
    server = start_server(tcp=True)

    async def scenario() -> None:
        where = server.tcp if tcp else server.unix
        async with await AgentClient.connect(where, encoding=encoding, client="a test") as agent:
            # More than the agent takes at a time: the client holds back the rest.
            results = await asyncio.gather(*(agent.call(ECHO, EchoParams(number=n % 100)) for n in range(300)))
            assert [r.number for r in results] == [n % 100 for n in range(300)]
            values: list[dict[str, Any]] = []
            await agent.call(COUNT, CountParams(steps=2), progress=values.append)
            assert [v["kind"] for v in values] == ["begin", "report", "report", "end"]
            with pytest.raises(AgentError, match="the server said no"):
                await agent.call(FAIL, FailParams(how="source"))
            page = await agent.call(BLOB, BlobParams(size=9_000_000, as_text=encoding == "json"))
            assert len(page.text or page.data or "") == 9_000_000

    asyncio.run(scenario())


def test_async_cancel_reaches_the_agent(server: RunningServer) -> None:
    async def scenario() -> None:
        async with await AgentClient.connect(server.unix) as agent:
            held = asyncio.create_task(agent.call(HOLD))
            assert await asyncio.to_thread(server.services.held.acquire, timeout=10)
            held.cancel()
            with pytest.raises(asyncio.CancelledError):
                await held
            assert await asyncio.to_thread(server.services.cancelled.acquire, timeout=10)
            with pytest.raises(AgentError) as caught:
                await agent.call(HOLD, timeout=0.05)
            assert caught.value.code == "timeout.total"
            assert await asyncio.to_thread(server.services.cancelled.acquire, timeout=10)
            assert (await agent.call(ECHO, EchoParams(text="on"))).text == "on"

    asyncio.run(scenario())


def test_sync_timeout_reaches_the_agent(server: RunningServer) -> None:
    with SyncClient.connect(server.unix) as agent:
        with pytest.raises(AgentError) as caught:
            agent.call(HOLD, timeout=0.05)
        assert caught.value.code == "timeout.total"
        assert server.services.cancelled.acquire(timeout=10)
        assert agent.call(ECHO, EchoParams(text="on")).text == "on"


def test_ctrl_c_reaches_the_agent(server: RunningServer) -> None:
    def press() -> None:
        assert server.services.held.acquire(timeout=10)
        os.kill(os.getpid(), signal.SIGINT)

    with SyncClient.connect(server.unix) as agent:
        threading.Thread(target=press).start()
        with pytest.raises(KeyboardInterrupt):
            agent.call(HOLD)
        assert server.services.cancelled.acquire(timeout=10)
        assert agent.call(ECHO, EchoParams(text="on")).text == "on"


def test_cancelled_by_somebody_else_is_cancelled(server: RunningServer) -> None:
    with SyncClient.connect(server.unix) as agent:
        threading.Thread(
            target=lambda: (
                server.services.held.acquire(timeout=10),
                server.loop.call_soon_threadsafe(lambda: [s.cancel_all() for s in server.server.sessions]),
            )
        ).start()
        with pytest.raises(Cancelled):
            agent.call(HOLD)


def _sync(server: RunningServer) -> Callable[[], Any]:
    agent = SyncClient.connect(server.unix)

    def call() -> Any:
        with agent:
            return agent.call(HOLD)

    return call


def _async(server: RunningServer) -> Callable[[], Any]:
    async def main() -> Any:
        async with await AgentClient.connect(server.unix) as agent:
            return await agent.call(HOLD)

    return lambda: asyncio.run(main())


@pytest.mark.parametrize("make", [_sync, _async])
def test_a_daemon_that_goes_is_an_error_not_a_wait(
    server: RunningServer, make: Callable[[RunningServer], Callable[[], Any]]
) -> None:
    call = make(server)

    def kill() -> None:
        server.services.held.acquire(timeout=10)
        server.loop.call_soon_threadsafe(lambda: [c.abort() for c in list(server.server._connections)])

    threading.Thread(target=kill).start()
    with pytest.raises(AgentError) as caught:
        call()
    assert caught.value.code == "agent.offline"


def test_skew_is_told(start_server: StartServer) -> None:
    server = start_server(info=AgentInfo(build="0.0.9"))
    with SyncClient.connect(server.unix) as agent:
        assert agent.skew
        assert "0.0.9" in agent.skew


def test_a_refused_token_is_an_error_in_words(start_server: StartServer) -> None:
    server = start_server(tcp=True)
    server.token_file.write_text("wrong")
    with pytest.raises(AgentError) as caught:
        SyncClient.connect(server.tcp)
    assert caught.value.code == "access.denied"
    server.token_file.unlink()
    with pytest.raises(AgentError, match="token"):
        SyncClient.connect(server.tcp)


def test_a_full_daemon_says_so(start_server: StartServer) -> None:
    from hfagent.server.limits import Limits

    server = start_server(limits=Limits(connections=1))
    with SyncClient.connect(server.unix):
        with pytest.raises(AgentError) as caught:
            SyncClient.connect(server.unix)
        assert caught.value.code == "capacity.overloaded"
        with pytest.raises(AgentError) as caught:
            asyncio.run(AgentClient.connect(server.unix))
        assert caught.value.code == "capacity.overloaded"


def test_nobody_there(tmp_path: Any) -> None:
    with pytest.raises(AgentError) as caught:
        SyncClient.connect(UnixAddress(str(tmp_path / "none.sock")))
    assert caught.value.code == "agent.offline"
    with pytest.raises(AgentError):
        asyncio.run(AgentClient.connect(UnixAddress(str(tmp_path / "none.sock"))))


def test_the_sync_client_imports_no_event_loop() -> None:
    import subprocess
    import sys

    script = "import sys, hfagent.client.sync; print(sorted({'asyncio', 'pydantic', 'msgpack'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
