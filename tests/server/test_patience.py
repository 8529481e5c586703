"""Clients that are slow, silent, greedy or gone: each costs itself only, and the others are served meanwhile."""

from __future__ import annotations

import socket
import time

import psutil
import pytest

from hfagent.server.limits import Limits
from hfagent.transport.framing import encode_frame
from tests.fixtures.daemon import RawClient, RunningServer, StartServer, wait_until

QUICK = Limits(handshake_s=0.5, frame_grace_s=0.5, write_stall_s=1.0, linger_s=0.5)


def ended(client: RawClient) -> bool:
    """Whether the server has closed, however it did; reads nothing but the end."""
    client.socket.settimeout(15)
    try:
        while client.socket.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_silence_and_half_a_greeting_are_closed_and_a_greeted_client_may_be_silent(start_server: StartServer) -> None:
    server = start_server(limits=QUICK)
    silent, half, hello, greeted = (server.raw(initialize=False) for _ in range(4))
    half.send_bytes(b"Content-Length: 100\r\n\r\n{")
    assert "result" in hello.ask("agent/hello", {})
    assert "result" in greeted.ask("initialize")
    assert ended(silent)
    assert ended(half)
    wait_until(lambda: len(server.server.sessions) == 2, "two are left")
    assert not server.server._watched  # and nobody keeps an eye on them
    for client in (hello, greeted):
        assert "result" in client.ask("agent/hello", {})
    for client in (silent, half, hello, greeted):
        client.close()


def test_a_tcp_client_must_prove_itself_in_time(start_server: StartServer) -> None:
    server = start_server(tcp=True, limits=QUICK)
    with server.raw(tcp=True, initialize=False) as stranger:
        stranger.notify("initialized")  # a whole frame, and no token
        assert ended(stranger)


def test_a_message_by_the_drop(start_server: StartServer) -> None:
    """One byte at a time is closed after the grace period; others are answered all the while."""
    server = start_server(limits=QUICK)
    with server.raw() as dripping, server.raw() as other:
        message = encode_frame(b'{"jsonrpc":"2.0","id":1,"method":"test/echo","params":{"text":"%b"}}' % (b"x" * 500))
        answered = sent = 0
        try:
            for byte in message:
                dripping.send_bytes(bytes([byte]))
                sent += 1
                assert "result" in other.ask("test/echo")
                answered += 1
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < len(message)
        assert answered >= sent - 1
        assert server.services.calls["echo"] == answered


def test_a_slow_but_steady_message_is_taken(start_server: StartServer) -> None:
    server = start_server(limits=Limits(frame_grace_s=0.2, frame_rate=1000))
    with server.raw() as client:
        message = encode_frame(
            b'{"jsonrpc":"2.0","id":"slow","method":"test/echo","params":{"text":"%b"}}' % (b"x" * 60_000)
        )
        for start in range(0, len(message), 2000):
            client.send_bytes(message[start : start + 2000])
            time.sleep(0.08)
        assert client.receive()["id"] == "slow"


def test_too_many_in_flight(server: RunningServer) -> None:
    with server.raw() as greedy, server.raw() as other:
        for number in range(40):
            greedy.request("test/hold", request_id=number)
        refused = [greedy.receive() for _ in range(8)]
        assert [reply["id"] for reply in refused] == list(range(32, 40))
        for reply in refused:
            assert reply["error"]["code"] == -32803
            assert reply["error"]["data"]["code"] == "capacity.overloaded"
            assert reply["error"]["data"]["retryable"] is True
        assert greedy.silent()
        assert "result" in other.ask("test/echo")
        server.services.release()
        assert {greedy.receive()["id"] for _ in range(32)} == set(range(32))


def test_too_many_connections(start_server: StartServer) -> None:
    server = start_server(limits=Limits(connections=5, linger_s=0.5))
    clients = [server.raw() for _ in range(5)]
    with server.raw(initialize=False) as sixth:
        error = sixth.receive()
        assert (error["id"], error["error"]["data"]["code"]) == (None, "capacity.overloaded")
        assert sixth.at_end()
    assert all("result" in client.ask("test/echo") for client in clients)
    clients.pop().close()
    wait_until(lambda: len(server.server.sessions) == 4, "a place is free")
    with server.raw() as again:
        assert "result" in again.ask("test/echo")
    for client in clients:
        client.close()


def test_a_client_that_never_reads_is_dropped_and_the_others_never_notice(start_server: StartServer) -> None:
    server = start_server(limits=QUICK)
    process = psutil.Process()
    with server.raw() as deaf, server.raw() as other:
        before = process.memory_info().rss
        deaf.socket.settimeout(0.2)
        sent = answered = 0
        peak = before
        deadline = time.monotonic() + 15
        while server.server.sessions and len(server.server.sessions) == 2:
            assert time.monotonic() < deadline, "the deaf client was not dropped"
            try:
                for _ in range(20):
                    deaf.request("test/blob", {"size": 50_000})
                    sent += 1
            except (TimeoutError, OSError):
                time.sleep(0.02)  # it is no longer read either
            assert "result" in other.ask("test/echo")
            answered += 1
            peak = max(peak, process.memory_info().rss)
        assert answered > 10
        assert server.services.calls["blob"] < sent + 1
        # It could not have more than its share computed: a page of high-water mark and 32 requests in flight.
        assert peak - before < 32 * 1024 * 1024
        assert "result" in other.ask("test/echo")


def test_a_deaf_client_s_large_results_are_made_one_at_a_time(start_server: StartServer) -> None:
    """32 results of 8 MiB wait for a client that does not read: only one of them is in the buffer."""
    server = start_server()
    with server.raw() as deaf:
        request = '{"jsonrpc":"2.0","id":%d,"method":"test/blob","params":{"size":8388608}}'
        # In one piece: once a result waits, nothing more is read from this client.
        deaf.send_bytes(b"".join(encode_frame((request % number).encode()) for number in range(32)))
        wait_until(lambda: server.services.calls["blob"] == 32, "all handlers are done")
        (connection,) = server.server._connections
        assert connection._transport is not None
        size = connection._transport.get_write_buffer_size()
        assert 0 < size < 9 * 1024 * 1024
        # It reads after all, and gets every one of them.
        assert {deaf.receive()["id"] for _ in range(32)} == set(range(32))


def test_a_large_page_reaches_a_client_that_reads_slowly(start_server: StartServer) -> None:
    """Slower than the stall period as a whole, but it moves: the client is not dropped."""
    server = start_server(limits=Limits(write_stall_s=0.5))
    with server.raw() as slow:
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.request("test/blob", {"size": 12 * 1024 * 1024}, request_id="page")
        received = bytearray()
        started = time.monotonic()
        while len(received) < 12 * 1024 * 1024:
            data = slow.socket.recv(400_000)
            assert data, f"dropped after {len(received)} bytes"
            received += data
            if time.monotonic() - started < 4:
                time.sleep(0.03)
        assert b"page" in received[:200]


def test_the_last_message_reaches_a_client_that_is_still_sending(start_server: StartServer) -> None:
    """Closing with unread input would reset the stream and destroy the explanation."""
    server = start_server(tcp=True)
    for _ in range(5):
        with server.raw(tcp=True) as client:
            client.send_bytes(b"Content-Length: 99999999\r\n\r\n")
            try:
                for _ in range(20):
                    client.send_bytes(b"x" * 10_000)
            except OSError:
                pass
            assert client.receive()["error"]["data"]["code"] == "request.too_large"


def test_a_client_that_does_not_go_after_the_last_word_is_cut_off(start_server: StartServer) -> None:
    server = start_server(limits=QUICK)
    with server.raw() as client:
        client.notify("exit")
        assert client.at_end()
        wait_until(lambda: not server.server._connections, "the stream is gone though the client keeps it open")


@pytest.mark.parametrize("count", [200])
def test_come_and_go(server: RunningServer, count: int) -> None:
    """Clients that come, ask and vanish in mid-request leave nothing behind."""
    for number in range(count):
        client = server.raw(initialize=number % 3 != 0)
        if number % 3 == 1:
            client.request("test/hold")
        if number % 3 == 2:
            client.send_bytes(b"Content-Length: 50\r\n\r\n{")
        client.close()
    wait_until(lambda: not server.server._connections and not server.server.sessions, "all are gone")
    assert not server.server._watched
    with server.raw() as client:
        assert "result" in client.ask("test/echo")
