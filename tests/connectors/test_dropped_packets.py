"""A server that falls silent in mid-query: its packets are dropped on the way, or its process is frozen.

Two different failures. Where packets get lost, the kernel notices by itself, if it was told how long to wait; a frozen
server's kernel goes on acknowledging, so that only the caller's own deadline ends the wait.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from hfagent.connectors.mariadb import MariaDB
from hfagent.connectors.postgresql import PostgreSQL
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError
from hfagent.sdk import network
from hfagent.sdk.pool import Pool, PoolSettings
from hfagent.sdk.reading import Statement
from tests.connectors.conformance import read_all
from tests.connectors.mariadb_source import MariadbSource
from tests.connectors.postgres_source import PostgresSource
from tests.connectors.source import make
from tests.fixtures.servers import wait_until

LONG = 60.0
"""Seconds that a request may take where something else must end it: reaching them would be the failure."""


@dataclass
class System:
    """A private server of one type, and what differs between the types."""

    source: Any
    connector_class: Any
    sleep: str
    descriptor: Callable[[Any], int]
    changes: dict[str, Any] = field(default_factory=dict)

    def connector(self, **changes: Any) -> Any:
        return make(self.connector_class, self.source.config | changes)

    def freeze(self, session: Any) -> None:
        """Freeze what serves this session."""
        if isinstance(self.source, PostgresSource):
            self.source.server.suspend(session.pgconn.backend_pid)
        else:
            self.source.server.suspend()


@pytest.fixture(params=["postgresql", "mariadb"])
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    if request.param == "postgresql":
        postgres = PostgresSource(request.getfixturevalue("postgres_database"))
        yield System(
            postgres, PostgreSQL, "SELECT pg_sleep(100)", lambda session: int(session.pgconn.socket),
            {"sslmode": "require", "sslrootcert": None},
        )  # fmt: skip
        postgres.server.resume()
        postgres.drop()
    else:
        mariadb = MariadbSource(request.getfixturevalue("mariadb_database"))
        yield System(mariadb, MariaDB, "SELECT SLEEP(100)", lambda session: int(session.open_socket.fileno()))
        mariadb.server.resume()


def ask(connector: Any, session: Any, text: str, seconds: float) -> list[dict[str, Any]]:
    """Run a statement, past the guard, within so many seconds."""
    statement = Statement(text, deadline=Deadline(seconds))
    with connector.open_result(session, text, (), statement) as reader:
        return list(read_all(reader).to_pylist())


def failure_of(connector: Any, session: Any, text: str, seconds: float) -> str:
    """The code of the error that the statement ends with."""
    with pytest.raises(AgentError) as caught:
        ask(connector, session, text, seconds)
    return caught.value.code


# --- the options ---


def test_every_driver_sets_the_one_limit_on_silence(system: System) -> None:
    connector = system.connector(keepalive_s=17)
    session = connector.connect(Deadline(10))
    try:
        with socket.socket(fileno=os.dup(system.descriptor(session))) as one:
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 17
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
    finally:
        connector.close(session)


def test_probes_take_as_long_as_the_limit_where_there_is_none() -> None:
    assert network.KEEPALIVE_INTERVAL_S * network.KEEPALIVE_COUNT * 1000 == network.USER_TIMEOUT_MS


# --- dropped packets ---

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_NEAR, _FAR = "192.0.2.1", "192.0.2.2"
_NEAR_MAC, _FAR_MAC, _NOBODY = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:ff"


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Run in a thread of its own, as nothing may be left of the network that it enters."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:  # it is the waiting thread's
            future.set_exception(exc)

    threading.Thread(target=run, name="other network", daemon=True).start()
    return future


class Wire:
    """A cable between two networks that nobody else is in, with a server's port at its far end.

    The networks have no names and live on descriptors and sockets only: with those, or with this process, they are gone.
    Packets get lost by being addressed to a card that does not exist, which neither kernel can see.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._stack = ExitStack()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._near, self._far = self._network(), self._network()
            far = f"/proc/{os.getpid()}/fd/{self._far}"
            self._ip(self._near, "link", "add", "near", "address", _NEAR_MAC, "type", "veth",
                     "peer", "name", "far", "address", _FAR_MAC)  # fmt: skip
            self._ip(self._near, "link", "set", "far", "netns", far)
            for where, name, address in ((self._near, "near", _NEAR), (self._far, "far", _FAR)):
                self._ip(where, "address", "add", f"{address}/24", "dev", name)
                self._ip(where, "link", "set", name, "up")
            self._address_packets(_FAR_MAC, _NEAR_MAC)
            self._listener = self._inside(self._far, lambda: socket.create_server((_FAR, 0))).result()
            self.port = int(self._listener.getsockname()[1])
        except BaseException:
            self._stack.close()
            raise
        self.host = _FAR
        self._acceptor = threading.Thread(target=self._accept, name="far end", daemon=True)
        self._acceptor.start()

    def drop(self) -> None:
        """From now on every packet is lost, in both directions and without a word."""
        self._address_packets(_NOBODY, _NOBODY)

    def start(self, work: Callable[[], Any]) -> Future[Any]:
        """Run at the near end, in a thread of its own."""
        return self._inside(self._near, work)

    def run(self, work: Callable[[], Any]) -> Any:
        """Run at the near end and wait for the result."""
        return self.start(work).result()

    def close(self) -> None:
        """The cable is mended first and everything on it reset: no kernel keeps on sending to somebody who is gone."""
        self._address_packets(_FAR_MAC, _NEAR_MAC)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for one in self._sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                one.shutdown(socket.SHUT_RD)  # wakes its thread
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()
        self._stack.close()

    def _network(self) -> int:
        def make_one() -> int:
            if self._libc.unshare(_NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "no network of our own")
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        descriptor: int = in_thread(make_one).result()
        self._stack.callback(os.close, descriptor)
        return descriptor

    def _inside(self, where: int, work: Callable[[], Any]) -> Future[Any]:
        def go() -> Any:
            if self._libc.setns(where, _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "the network cannot be entered")
            return work()

        return in_thread(go)

    def _ip(self, where: int, *arguments: str) -> None:
        def run() -> None:
            done = subprocess.run(["ip", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode:
                raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

        self._inside(where, run).result()

    def _address_packets(self, to_far: str, to_near: str) -> None:
        for where, name, peer, card in ((self._near, "near", _FAR, to_far), (self._far, "far", _NEAR, to_near)):
            self._ip(where, "neigh", "replace", peer, "lladdr", card, "dev", name, "nud", "permanent")

    def _accept(self) -> None:
        """In the ordinary network: a socket stays in the one it was made in."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=_pump, args=(source, sink), name="wire", daemon=True))
                self._threads[-1].start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def wire_to(target: tuple[str, int]) -> Iterator[Wire]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and `ip` to make a network whose packets can be dropped")
    try:
        wire = Wire(target)
    except OSError as exc:
        pytest.skip(f"no network can be made here: {exc}")
    try:
        yield wire
    finally:
        wire.close()


@pytest.fixture
def wire(system: System) -> Iterator[Wire]:
    with wire_to((system.source.server.host, system.source.server.port)) as made:
        yield made


@pytest.fixture
def connect(system: System, wire: Wire) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """A connector and a session over the wire."""
    opened: list[tuple[Any, Any]] = []

    def go(**changes: Any) -> tuple[Any, Any]:
        connector = system.connector(**(system.changes | {"host": wire.host, "port": wire.port} | changes))
        session = wire.run(lambda: connector.connect(Deadline(10)))
        opened.append((connector, session))
        assert wire.run(lambda: ask(connector, session, "SELECT 7 AS seven", LONG)) == [{"seven": 7}]
        return connector, session

    yield go
    for connector, session in opened:
        wire.run(lambda connector=connector, session=session: connector.close(session))  # type: ignore[misc]


def test_a_statement_that_nobody_acknowledges_ends_with_the_limit(
    system: System, wire: Wire, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "USER_TIMEOUT_MS", 500)
    connector, session = connect()
    wire.drop()
    assert wire.run(lambda: failure_of(connector, session, "SELECT 1", LONG)) in ("net.reset", "net.timeout")
    assert not connector.is_alive(session, 1.0)


def test_without_the_limit_only_the_deadline_ends_it(
    system: System, wire: Wire, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "USER_TIMEOUT_MS", 0)  # the system's own: a quarter of an hour
    monkeypatch.setattr(network, "KEEPALIVE_INTERVAL_S", 1)
    connector, session = connect(keepalive_s=1)
    wire.drop()
    assert wire.run(lambda: failure_of(connector, session, "SELECT 1", 1.0)).startswith("timeout.")
    assert not connector.is_alive(session, 1.0)


def test_waiting_for_the_rows_ends_with_the_limit_too(
    system: System, wire: Wire, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of ours is under way while the server computes: the probes have to notice."""
    monkeypatch.setattr(network, "USER_TIMEOUT_MS", 500)
    monkeypatch.setattr(network, "KEEPALIVE_INTERVAL_S", 1)
    connector, session = connect(keepalive_s=1)
    outcome = wire.start(lambda: failure_of(connector, session, system.sleep, LONG))
    wait_until(lambda: system.source.running("leep(100)") + system.source.running("LEEP(100)") > 0, "it runs")
    wait_until(lambda: unacknowledged(system.descriptor(session)) == 0, "the server's kernel has all of it")
    wire.drop()
    assert outcome.result(LONG) in ("net.reset", "net.timeout")


def unacknowledged(descriptor: int) -> int:
    """Bytes that were written to a socket and not acknowledged by its peer."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), "little")


# --- a frozen server ---


def test_a_frozen_server_ends_at_the_deadline_and_its_connection_is_not_reused(system: System) -> None:
    connector = system.connector()
    pool = Pool(connector, PoolSettings.from_config(connector.config))
    try:
        with pytest.raises(AgentError) as caught, pool.acquire(Deadline(15)) as lease:
            session = lease.connection
            system.freeze(session)
            ask(connector, session, "SELECT 1", 0.5)
        assert caught.value.code.startswith("timeout.")
        stats = pool.stats()
        assert (stats["discarded"], stats["open"], stats["idle"], stats["busy"]) == (1, 0, 0, 0)
        assert is_closed(system, session)
        system.source.server.resume()
        with pool.acquire(Deadline(15)) as lease:
            assert lease.connection is not session
            assert ask(connector, lease.connection, "SELECT 7 AS seven", LONG) == [{"seven": 7}]
        assert pool.stats()["opened"] == 2
    finally:
        system.source.server.resume()
        pool.close()


def is_closed(system: System, session: Any) -> bool:
    try:
        return system.descriptor(session) < 0
    except Exception:  # each driver says in its own way that there is no socket any more
        return True
