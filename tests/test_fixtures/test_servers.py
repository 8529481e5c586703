"""A server starts, freezes, ends, and does not outlive the tests, whatever becomes of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fixtures.ports import free_port
from tests.fixtures.servers import ServerProcess, wait_until

# Stands for a server in as few lines as possible: answers each connection by closing it.
SERVER = "import socket, sys\nwith socket.create_server(('127.0.0.1', int(sys.argv[1]))) as s:\n while 1: s.accept()"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server(tmp_path: Path, port: int) -> Iterator[ServerProcess]:
    def ready() -> None:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()

    server = ServerProcess([sys.executable, "-c", SERVER, str(port)], directory=tmp_path, ready=ready, account={})
    server.start()
    yield server
    server.kill()


def test_starts_again_after_each_kind_of_end(server: ServerProcess, port: int) -> None:
    for end in (server.stop, server.kill):
        end()
        assert not server.running
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)
        server.start()
        assert server.running
    server.suspend()
    server.stop()
    server.stop()
    assert not server.running


def test_suspended_until_resumed(server: ServerProcess) -> None:
    process = psutil.Process(server.pid)
    server.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "it is stopped")
    server.resume()
    wait_until(lambda: process.status() != psutil.STATUS_STOPPED, "it runs again")


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    def ready() -> None:
        raise ConnectionRefusedError

    server = ServerProcess(["/bin/sh", "-c", "echo no licence; exit 1"], directory=tmp_path, ready=ready, account={})
    with pytest.raises(AssertionError, match="ended at once:\nno licence"):
        server.start()


def test_dies_with_the_tests_even_if_they_are_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, signal, sys\n"
        "from tests.fixtures.servers import ServerProcess\n"
        "server = ServerProcess(['sleep', '600'], directory=pathlib.Path(sys.argv[1]), ready=int, account={})\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "signal.pause()\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        assert psutil.pid_exists(pid)
        os.kill(tests.pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "it is gone")
