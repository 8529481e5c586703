"""Every fault of the proxy does what it says, to plain sockets whose every byte is known."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.fixtures.postgres import PostgresServer
from tests.fixtures.proxy import FaultProxy
from tests.fixtures.servers import wait_until

FaultProxyFactory = Callable[[str, int], FaultProxy]


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets, and ends when its client does."""
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=echo, args=(peer,)))
                threads[-1].start()

        def echo(peer: socket.socket) -> None:
            with peer:
                try:
                    while data := peer.recv(65536):
                        peer.sendall(data)
                except OSError:
                    pass

        threads.append(threading.Thread(target=accept))
        threads[0].start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(5)


@pytest.fixture
def proxy(fault_proxy: FaultProxyFactory, echo_port: int) -> FaultProxy:
    return fault_proxy("127.0.0.1", echo_port)


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection(proxy.addr, timeout=5) as connection:
        assert ask(connection, b"hello") == b"hello"
        yield connection


def ask(client: socket.socket, question: bytes) -> bytes:
    client.sendall(question)
    return receive(client, len(question))


def receive(client: socket.socket, size: int) -> bytes:
    answer = b""
    while len(answer) < size and (data := client.recv(size - len(answer))):
        answer += data
    return answer


def test_passes_everything_and_counts(proxy: FaultProxy, client: socket.socket) -> None:
    question = bytes(range(256)) * 4096
    sender = threading.Thread(target=client.sendall, args=(question,))
    sender.start()
    assert receive(client, len(question)) == question
    sender.join()
    assert (proxy.connections, proxy.open_connections) == (1, 1)
    assert proxy.bytes_from_client == proxy.bytes_from_server == len(question) + 5


def test_the_end_of_a_connection_passes(proxy: FaultProxy, client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    wait_until(lambda: proxy.open_connections == 0, "the proxy lets go")


def test_refuse(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(proxy.addr, timeout=5)
    assert ask(client, b"open ones live on") == b"open ones live on"
    proxy.pass_through()
    with socket.create_connection(proxy.addr, timeout=5) as another:
        assert ask(another, b"healed") == b"healed"


def test_blackhole_holds_back_until_healed(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.blackhole()
    client.sendall(b"anyone?")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(1)
    with socket.create_connection(proxy.addr, timeout=5) as another:
        another.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ask(another, b"anyone?")
        proxy.pass_through()
        another.settimeout(5)
        assert receive(another, 7) == b"anyone?"
    client.settimeout(5)
    assert receive(client, 7) == b"anyone?"


def test_a_connection_in_the_blackhole_can_still_be_reset(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.blackhole()
    client.sendall(b"anyone?")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    wait_until(lambda: proxy.open_connections == 0, "the proxy lets go")


def test_reset_now(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(proxy.addr, timeout=5) as another:
        assert ask(another, b"new ones live") == b"new ones live"


def test_cut_now(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.cut()
    assert client.recv(1) == b""


def test_reset_after_some_bytes(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.reset(after=3)
    client.sendall(b"abcdef")
    assert receive(client, 3) == b"abc"
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_cut_after_some_bytes_of_each_connection(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.cut(after=100_000)
    with socket.create_connection(proxy.addr, timeout=5) as another:
        for connection in (client, another):
            sender = threading.Thread(target=send_in_vain, args=(connection, bytes(200_000)))
            sender.start()
            received = b""
            try:
                while data := connection.recv(65536):
                    received += data
            except ConnectionResetError:
                pass  # our own bytes that nobody read any more
            sender.join()
            assert len(received) == 100_000
    proxy.pass_through()
    with socket.create_connection(proxy.addr, timeout=5) as healed:
        assert ask(healed, bytes(1000)) == bytes(1000)


def test_latency_delays_but_does_not_throttle(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.latency(0.1)
    start = time.monotonic()
    assert ask(client, b"ping") == b"ping"
    assert time.monotonic() - start >= 0.2
    start = time.monotonic()
    sender = threading.Thread(target=client.sendall, args=(bytes(2_000_000),))
    sender.start()
    assert len(receive(client, 2_000_000)) == 2_000_000
    sender.join()
    assert time.monotonic() - start < 2, "thirty chunks one after the other would take six seconds"


def test_bandwidth(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.bandwidth(10_000)
    start = time.monotonic()
    assert len(ask(client, bytes(3000))) == 3000
    assert time.monotonic() - start >= 0.2


def test_trickle(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.trickle()
    client.sendall(b"abc")
    assert client.recv(10) == b"a"
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(10)
    proxy.pass_through()
    client.settimeout(5)
    assert receive(client, 2) == b"bc"


def test_garbage_greeting(proxy: FaultProxy) -> None:
    proxy.garbage()
    with socket.create_connection(proxy.addr, timeout=5) as client:
        assert len(set(receive(client, 256))) > 100
    proxy.garbage(b"SSH-2.0-OpenSSH\r\n")
    with socket.create_connection(proxy.addr, timeout=5) as client:
        assert receive(client, 17) == b"SSH-2.0-OpenSSH\r\n"


def test_half_close(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.half_close()
    assert client.recv(1) == b""
    before = proxy.bytes_from_client
    client.sendall(b"still talking")
    wait_until(lambda: proxy.bytes_from_client == before + 13, "the proxy still listens")


def test_a_server_that_is_down_resets_the_client(fault_proxy: FaultProxyFactory, closed_port: int) -> None:
    proxy = fault_proxy("127.0.0.1", closed_port)
    # The reset may be faster than the end of connect().
    with pytest.raises(ConnectionResetError), socket.create_connection(proxy.addr, timeout=5) as client:
        client.recv(1)


def test_carries_a_real_protocol_and_breaks_it(postgres_server: PostgresServer, fault_proxy: FaultProxyFactory) -> None:
    proxy = fault_proxy(postgres_server.host, postgres_server.port)
    with psycopg.connect(postgres_server.dsn(), port=proxy.port) as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
        proxy.reset(after=10_000)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT repeat('x', 100) FROM generate_series(1, 10000)").fetchall()


def send_in_vain(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
    except OSError:
        pass
