"""What a client meets first: hello, initialize, the order of things, and the way out."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hfagent import __version__
from hfagent.transport.framing import Encoding
from tests.fixtures.daemon import RunningServer, StartServer, wait_until


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"processId": 1, "rootUri": None, "capabilities": {}, "somethingNew": [1, {"a": 2}]},
        {
            "processId": None,
            "clientInfo": {"name": "an editor"},
            "capabilities": {"general": {"positionEncodings": ["utf-8"]}},
        },
        {"capabilities": None, "clientInfo": 7, "initializationOptions": "x", "processId": "y"},
    ],
)
def test_initialize_takes_what_clients_send(server: RunningServer, params: Any, encoding: Encoding) -> None:
    with server.raw(initialize=False, encoding=encoding) as client:
        result = client.ask("initialize", params)["result"]
        assert client.last_encoding == encoding
        assert result["serverInfo"] == {"name": "hfagent", "version": __version__}
        wanted = ((params or {}).get("capabilities") or {}).get("general", {}).get("positionEncodings", ["utf-16"])[0]
        assert result["capabilities"]["positionEncoding"] == wanted
        assert "test/echo" in result["capabilities"]["experimental"]["hfagent"]["methods"]
        client.notify("initialized", {})
        assert client.ask("test/echo", {"text": "x"})["result"]["text"] == "x"


def test_nothing_but_greetings_before_initialize(server: RunningServer) -> None:
    with server.raw(initialize=False) as client:
        for method in ("test/echo", "agent/status", "shutdown", "no/such", "textDocument/hover"):
            error = client.ask(method)["error"]
            assert (error["code"], error["data"]["code"]) == (-32002, "request.not_initialized")
        assert client.ask("rpc.discover")["result"]["openrpc"].startswith("1.3")
        assert client.ask("agent/hello", {})["result"]["protocol"] == 1
        assert client.ask("test/echo")["error"]["code"] == -32002
        assert "result" in client.ask("initialize")
        assert client.ask("initialize")["error"]["code"] == -32600
        assert "result" in client.ask("test/echo")


def test_hello(server: RunningServer) -> None:
    with server.raw(initialize=False) as client:
        params = {
            "protocol": [1, 5],
            "build": "0.0.1",
            "client": "hfagent lsp",
            "cwd": "/x",
            "pid": 1,
            "env": {
                "PGUSER": "u",
                "PGPASSWORD": "canary-pg",
                "SECRET_KEY": "canary-key",
                "LANG": "C",
                "https_proxy": "p",
            },
            "required": ["progress", "test/echo", "time-travel"],
        }
        result = client.ask("agent/hello", params)["result"]
        assert result["protocol"] == 1
        assert result["build"] == __version__
        assert result["pid"] == os.getpid()
        assert result["missing"] == ["time-travel"]
        assert "0.0.1" in result["skew"]
        (session,) = server.server.sessions
        assert session.client.env == {"PGUSER": "u", "LANG": "C", "https_proxy": "p"}
        assert session.id == result["session"]


def test_hello_without_a_common_protocol(server: RunningServer) -> None:
    with server.raw(initialize=False) as client:
        error = client.ask("agent/hello", {"protocol": [7, 9]})["error"]
        assert "protocol 7 to 9" in error["message"]
        assert "update" in error["data"]["hint"]


def test_shutdown_then_exit(server: RunningServer) -> None:
    with server.raw() as client:
        assert client.ask("shutdown")["result"] is None
        assert client.ask("test/echo")["error"]["code"] == -32600
        client.notify("exit")
        assert client.at_end()


def test_the_exit_of_one_client_leaves_the_others(server: RunningServer) -> None:
    with server.raw() as leaving, server.raw() as staying:
        held = staying.request("test/hold")
        leaving.request("test/hold")
        assert all(server.services.held.acquire(timeout=10) for _ in range(2))
        leaving.notify("exit")
        assert leaving.at_end()
        assert server.services.cancelled.acquire(timeout=10)  # the work of the one that left
        assert staying.ask("test/echo", {"text": "still here"})["result"]["text"] == "still here"
        assert not server.services.cancelled.acquire(blocking=False)
        server.services.release()
        assert staying.receive() == {"jsonrpc": "2.0", "id": held, "result": {"ok": True}}
        assert server.closed_sessions == ["s1"] or len(server.closed_sessions) == 1


def test_a_client_that_vanishes_has_its_work_cancelled(server: RunningServer) -> None:
    client = server.raw()
    client.request("test/hold")
    assert server.services.held.acquire(timeout=10)
    client.close()
    assert server.services.cancelled.acquire(timeout=10)
    wait_until(lambda: not server.server.sessions, "the session ends")


def test_a_client_that_only_stops_sending_gets_its_answers(server: RunningServer) -> None:
    import socket

    with server.raw() as client:
        held = client.request("test/hold")
        assert server.services.held.acquire(timeout=10)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.silent()
        server.services.release()
        assert client.receive()["id"] == held
        assert client.at_end()


def test_sessions_are_described(server: RunningServer) -> None:
    with server.raw(initialize=False, encoding="msgpack") as client:
        client.ask("initialize", {"clientInfo": {"name": "an editor", "version": "3"}})
        client.ask("test/echo")
        wait_until(lambda: server.server.in_flight == 0, "the handler's task ends")
        (info,) = server.server.session_infos(open_queries=lambda session: 5)
        assert (info.client, info.transport, info.encoding) == ("an editor 3", "unix", "msgpack")
        assert (info.requests, info.in_flight, info.open_queries) == (2, 0, 5)


def test_draining(start_server: StartServer) -> None:
    server = start_server()
    with server.raw() as client, server.raw() as other:
        held = client.request("test/hold")
        assert server.services.held.acquire(timeout=10)
        import asyncio

        draining = asyncio.run_coroutine_threadsafe(server.server.drain(10), server.loop)
        wait_until(lambda: server.server.draining, "the server drains")
        error = other.ask("test/echo")["error"]
        assert (error["code"], error["data"]["code"], error["data"]["retryable"]) == (-32803, "agent.draining", True)
        assert not draining.done()
        server.services.release()
        assert client.receive()["id"] == held
        assert draining.result(10) is True


def test_draining_cancels_what_does_not_end(start_server: StartServer) -> None:
    server = start_server()
    with server.raw() as client:
        client.request("test/hold")
        assert server.services.held.acquire(timeout=10)
        assert server.run(server.server.drain(0.05)) is False
        assert client.receive()["error"]["code"] == -32800
        assert server.services.cancelled.acquire(timeout=10)


def test_two_servers_do_not_share_a_socket(start_server: StartServer) -> None:
    from hfagent.foundation.errors import Conflict

    first = start_server()

    async def second() -> None:
        from hfagent.server.server import Server

        await Server(first.services.handlers(), methods=first.server._methods).listen_unix(first.path)

    with pytest.raises(Conflict):
        first.run(second())
    with first.raw() as client:
        assert "result" in client.ask("test/echo")


def test_a_server_with_a_missing_or_an_unknown_handler_does_not_start(tmp_path: Any) -> None:
    from hfagent.server.dispatch import Dispatcher
    from tests.fixtures.daemon import METHODS, TEST_METHODS, FakeServices

    methods = {**METHODS, **TEST_METHODS}
    handlers = FakeServices().handlers()
    Dispatcher(handlers, methods)
    with pytest.raises(RuntimeError, match="test/echo"):
        Dispatcher({name: h for name, h in handlers.items() if name != "test/echo"}, methods)
    with pytest.raises(RuntimeError, match="test/ghost"):
        Dispatcher({**handlers, "test/ghost": handlers["test/echo"]}, methods)
