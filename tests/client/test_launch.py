"""Finding and starting the daemon: one daemon however many clients want it, and a reason when there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfagent.client import launch
from hfagent.client.sync import SyncClient
from hfagent.client.wire import UnixAddress
from hfagent.foundation.errors import AgentError
from hfagent.foundation.paths import AgentPaths
from hfagent.protocol.agent import SHUTDOWN, STATUS
from tests.fixtures.daemon import ENVIRONMENT_PREFIXES, wait_until


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentPaths]:
    """Paths of an agent that does not run yet; whatever a test starts is stopped through the protocol."""
    for name in list(os.environ):
        if name.startswith(ENVIRONMENT_PREFIXES):
            monkeypatch.delenv(name)
    found = AgentPaths(data_dir=str(tmp_path / "agent"))
    yield found
    try:
        with SyncClient.connect(found, start=False) as agent:
            agent.call(SHUTDOWN)
    except AgentError:
        return
    wait_until(lambda: not found.socket.exists(), "the daemon stops")


def test_started_found_and_stopped(paths: AgentPaths) -> None:
    with SyncClient.connect(paths) as first, SyncClient.connect(paths) as second:
        pid = first.call(STATUS).pid
        assert second.call(STATUS).pid == pid != os.getpid()
        assert os.getsid(pid) == pid  # its own session: it does not die with the client's terminal
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{pid}/fd/2") == str(paths.log_file)
    assert paths.log_file.stat().st_mode & 0o777 == 0o600


def test_many_clients_start_one_daemon(paths: AgentPaths) -> None:
    pids: list[int] = []
    barrier = threading.Barrier(6)

    def client() -> None:
        barrier.wait()
        with SyncClient.connect(paths) as agent:
            pids.append(agent.call(STATUS).pid)

    threads = [threading.Thread(target=client) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(pids) == 6
    assert len(set(pids)) == 1


def test_a_stale_socket_does_not_stop_the_start(paths: AgentPaths) -> None:
    paths.socket.parent.mkdir(mode=0o700, parents=True)
    paths.data_dir.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(paths.socket))
    with SyncClient.connect(paths) as agent:
        assert agent.call(STATUS).state == "ready"


def test_without_start_it_is_an_error_with_the_next_step(paths: AgentPaths) -> None:
    with pytest.raises(AgentError) as caught:
        launch.connect(paths, start=False)
    assert caught.value.code == "agent.offline"
    assert "hfagent daemon" in str(caught.value.hint)
    assert not paths.data_dir.exists()  # looking leaves no trace


def test_a_daemon_that_dies_is_reported_with_its_last_words(paths: AgentPaths) -> None:
    paths.data_dir.mkdir(mode=0o700)
    (paths.data_dir / "config.toml").write_text("no toml [")
    with pytest.raises(AgentError) as caught:
        launch.connect(paths)
    assert str(paths.log_file) in str(caught.value.hint)
    assert "config.toml" in f"{caught.value.message} {caught.value.hint}"


def test_a_daemon_that_is_not_ready_in_time(paths: AgentPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for Python that never gets ready: the wait ends, and says so."""
    slow = tmp_path / "slow-python"
    slow.write_text("#!/bin/sh\necho hanging >&2\nexec sleep 3\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    with pytest.raises(AgentError) as caught:
        launch.connect(paths, timeout=0.5)
    assert "not ready yet" in caught.value.message
    assert "hanging" in str(caught.value.hint)


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AgentError) as caught:
        launch.connect(AgentPaths(data_dir=str(tmp_path / "file" / "agent")))
    assert "data directory" in caught.value.message


def test_the_environment_of_a_service_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "NOTIFY_SOCKET": "/x",
        "WATCHDOG_USEC": "1",
        "PGUSER": "u",
        "PATH": "/bin",
    }
    kept = launch._environment(given)
    assert {"PGUSER", "PATH"} <= set(kept)
    assert not {"LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_s_socket_is_not_spoken_to(open_directory: Path) -> None:
    """A socket that somebody else put at our path gets not a byte."""
    open_directory.chmod(0o777)
    script = """
import os, socket, sys
os.setgid(12345); os.setuid(12345)
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print("up", flush=True)
c, _ = s.accept(); print(len(c.recv(1000)))
"""
    path = str(open_directory / "agent.sock")
    other = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True, cwd="/")
    assert other.stdout is not None
    assert other.stdout.readline() == "up\n"
    with pytest.raises(AgentError) as caught:
        launch.connect_to(UnixAddress(path))
    assert caught.value.code == "access.denied"
    assert other.communicate(timeout=10)[0] == "0\n"


def test_the_arguments_lead_to_the_same_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HFAGENT_SOCK", "rel/x.sock")
    words = AgentPaths(data_dir="d", config_file="c.toml").arguments()
    monkeypatch.chdir("/")
    monkeypatch.delenv("HFAGENT_SOCK")
    options = dict(zip(words[::2], words[1::2], strict=True))
    again = AgentPaths(data_dir=options["--data-dir"], socket=options["--socket"], config_file=options["--config"])
    assert (again.data_dir, again.socket, again.config_file) == (
        tmp_path / "d",
        tmp_path / "rel/x.sock",
        tmp_path / "c.toml",
    )
