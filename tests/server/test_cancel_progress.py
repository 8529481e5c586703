"""Cancelling answers at once and reaches the work; progress comes in order, before the reply, and only when asked for."""

from __future__ import annotations

import threading

import pytest

from hfagent.transport.framing import Encoding
from tests.fixtures.daemon import RunningServer, StartServer, wait_until


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_cancel(server: RunningServer, encoding: Encoding) -> None:
    with server.raw(encoding=encoding) as client:
        held = client.request("test/hold")
        assert server.services.held.acquire(timeout=10)
        client.notify("$/cancelRequest", {"id": held})
        reply = client.receive()
        assert reply["id"] == held
        assert (reply["error"]["code"], reply["error"]["data"]["code"]) == (-32800, "cancelled")
        assert server.services.cancelled.acquire(timeout=10)
        assert "result" in client.ask("test/echo", request_id=held)  # the id is free again
        assert client.silent()


def test_the_answer_does_not_wait_for_work_that_cannot_stop(server: RunningServer) -> None:
    with server.raw() as client:
        held = client.request("test/hold", {"stubborn": True})
        assert server.services.held.acquire(timeout=10)
        client.notify("$/cancelRequest", {"id": held})
        assert client.receive()["error"]["code"] == -32800
        assert server.services.calls["hold done"] == 0
        assert server.server.in_flight == 1  # still running, and still counted
        server.services.release()
        wait_until(lambda: server.server.in_flight == 0, "the work ends")
        assert server.services.calls["hold done"] == 1
        assert client.silent()  # answered once, and once only


def test_cancelling_frees_no_slot_before_the_work_ends(start_server: StartServer) -> None:
    from hfagent.server.limits import Limits

    server = start_server(limits=Limits(in_flight=2))
    with server.raw() as client:
        for number in (1, 2):
            client.request("test/hold", {"stubborn": True}, request_id=number)
            assert server.services.held.acquire(timeout=10)
            client.notify("$/cancelRequest", {"id": number})
            assert client.receive()["error"]["code"] == -32800
        error = client.ask("test/echo", request_id=3)["error"]
        assert error["data"]["code"] == "capacity.overloaded"
        server.services.release()
        wait_until(lambda: server.server.in_flight == 0, "the work ends")
        assert "result" in client.ask("test/echo", request_id=4)


def test_other_requests_go_on(server: RunningServer) -> None:
    with server.raw() as client:
        first, second = client.request("test/hold"), client.request("test/hold")
        assert all(server.services.held.acquire(timeout=10) for _ in range(2))
        client.notify("$/cancelRequest", {"id": first})
        assert client.receive()["id"] == first
        server.services.release()
        assert client.receive() == {"jsonrpc": "2.0", "id": second, "result": {"ok": True}}


def test_a_client_cannot_cancel_another_ones_request(server: RunningServer) -> None:
    with server.raw() as one, server.raw() as other:
        held = one.request("test/hold")
        assert server.services.held.acquire(timeout=10)
        other.notify("$/cancelRequest", {"id": held})
        assert "result" in other.ask("test/echo")
        server.services.release()
        assert "result" in one.receive()


@pytest.mark.parametrize("token", [7, "t", 0, ""])
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_progress(server: RunningServer, encoding: Encoding, token: int | str) -> None:
    with server.raw(encoding=encoding) as client:
        request_id = client.request("test/count", {"steps": 3, "workDoneToken": token})
        messages = []
        while (message := client.receive()).get("id") != request_id:
            messages.append(message)
        assert all(m["method"] == "$/progress" and m["params"]["token"] == token for m in messages)
        values = [m["params"]["value"] for m in messages]
        assert [v["kind"] for v in values] == ["begin", "report", "report", "report", "end"]
        assert "progress" in values[0]["title"]
        assert values[2] == {"kind": "report", "message": "step 1", "percentage": 1, "rows": 1}
        assert "result" in message


def test_no_progress_unless_asked_for(server: RunningServer) -> None:
    with server.raw() as client:
        client.request("test/count", {"steps": 3}, request_id="c")
        assert client.receive()["id"] == "c"
        assert client.silent()


def test_the_reporter_survives_whatever_it_is_given() -> None:
    """Begin once, end once, nothing after the end, from any thread, and an unencodable report is dropped."""
    import asyncio
    from typing import Any

    from hfagent.server.progress import ProgressReporter

    async def scenario() -> list[Any]:
        sent: list[Any] = []

        def send(params: dict[str, Any]) -> None:
            if "bad" in params["value"]:
                raise TypeError("cannot be encoded")
            sent.append(params["value"])

        report = ProgressReporter("t", "Title", asyncio.get_running_loop(), send, lambda: False)
        report({"kind": "begin", "title": "Mine"})
        report({"kind": "begin"})
        report({"bad": object()})
        thread = threading.Thread(target=report, args=({"message": "from a thread"},))
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)
        report({"kind": "end", "message": "done"})
        report({"message": "late"})
        report.finish()
        return sent

    assert asyncio.run(scenario()) == [
        {"kind": "begin", "title": "Mine"},
        {"kind": "report"},
        {"kind": "report", "message": "from a thread"},
        {"kind": "end", "message": "done"},
    ]
