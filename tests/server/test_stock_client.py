"""Clients that were not written for this agent: pygls' own, as editors' plug-ins and test tools use it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException
from pygls.io_ import run_async
from pygls.lsp.client import LanguageClient

from tests.fixtures.daemon import RunningServer


def scenario(server: RunningServer, test: Callable[[LanguageClient], Awaitable[None]]) -> None:
    """Run `test` with a pygls client on the server's socket: what its `start_tcp` does, with a unix socket."""

    async def main() -> None:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        client = LanguageClient("pygls' own client", "1")
        client.protocol.set_writer(writer)
        stop = threading.Event()
        reading = asyncio.create_task(run_async(stop_event=stop, reader=reader, protocol=client.protocol))
        try:
            async with asyncio.timeout(20):
                await test(client)
        finally:
            stop.set()
            reading.cancel()
            await asyncio.wait([reading])
            writer.close()

    asyncio.run(main())


def params(**extra: Any) -> lsp.InitializeParams:
    return lsp.InitializeParams(
        process_id=1,
        client_info=lsp.ClientInfo(name="pygls", version="2"),
        capabilities=lsp.ClientCapabilities(
            general=lsp.GeneralClientCapabilities(position_encodings=[lsp.PositionEncodingKind.Utf8]),
            workspace=lsp.WorkspaceClientCapabilities(apply_edit=True),
        ),
        root_uri="file:///x",
        workspace_folders=[lsp.WorkspaceFolder("file:///x", "x")],
        trace=lsp.TraceValue.Verbose,
        **extra,
    )


def test_a_whole_session(server: RunningServer) -> None:
    async def test(client: LanguageClient) -> None:
        result = await client.initialize_async(params())
        assert isinstance(result, lsp.InitializeResult)
        assert result.server_info is not None
        assert result.server_info.name == "hfagent"
        assert result.capabilities.position_encoding == "utf-8"
        client.initialized(lsp.InitializedParams())
        echoed = await client.protocol.send_request_async("test/echo", {"text": "héllo", "number": 5})
        assert (echoed.text, echoed.number) == ("héllo", 5)
        with pytest.raises(JsonRpcException) as caught:
            await client.protocol.send_request_async("test/fail", {"how": "source"})
        assert caught.value.code == -32803
        assert caught.value.data["code"] == "query.failed"
        with pytest.raises(JsonRpcException) as caught:
            await client.protocol.send_request_async("no/such", {})
        assert caught.value.code == -32601
        assert await client.shutdown_async(None) is None
        client.exit(None)

    scenario(server, test)


def test_cancel_and_progress(server: RunningServer) -> None:
    async def test(client: LanguageClient) -> None:
        await client.initialize_async(params())
        future = client.protocol.send_request("test/hold", {}, msg_id="held")
        assert await asyncio.to_thread(server.services.held.acquire, timeout=10)
        client.cancel_request(lsp.CancelParams(id="held"))
        with pytest.raises(JsonRpcException) as caught:
            await asyncio.wrap_future(future)
        assert caught.value.code == -32800
        values: list[Any] = []
        token = "a token"
        client.protocol.fm.feature("$/progress")(lambda p: values.append(p.value))
        await client.protocol.send_request_async("test/count", {"steps": 2, "workDoneToken": token})
        assert len(values) == 4

    scenario(server, test)


def test_thirty_requests_side_by_side(server: RunningServer) -> None:
    async def test(client: LanguageClient) -> None:
        await client.initialize_async(params())
        replies = await asyncio.gather(
            *(client.protocol.send_request_async("test/echo", {"number": n % 100}) for n in range(30))
        )
        assert [reply.number for reply in replies] == [n % 100 for n in range(30)]

    scenario(server, test)
