"""Sockets from systemd: for this very process, listening, and not reachable from elsewhere; else not at all."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from hfagent.foundation.errors import ConfigError
from hfagent.transport.activation import inherited_sockets


@pytest.fixture
def listening(tmp_path: Path) -> int:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    return listener.detach()


def test_taken_over(listening: int) -> None:
    env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "OTHER": "1"}
    (found,) = inherited_sockets(env, first=listening)
    with found:
        assert found.fileno() == listening
        assert not os.get_inheritable(listening)
    assert env == {"OTHER": "1"}


@pytest.mark.parametrize("pid", ["", "0", "1", str(os.getppid()), f" {os.getpid()}", f"{os.getpid()} ", "x", "-1", "٣"])
def test_another_process_s_variables_mean_nothing(listening: int, pid: str) -> None:
    env = {"LISTEN_PID": pid, "LISTEN_FDS": "1"}
    assert inherited_sockets(env, first=listening) == []
    assert env == {}
    os.close(listening)  # still ours, untouched


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "99999"])
def test_a_count_that_is_none(listening: int, count: str) -> None:
    assert inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}, first=listening) == []
    os.close(listening)


@pytest.mark.parametrize("kind", ["file", "connected", "datagram", "every address"])
def test_what_is_no_local_listener_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        descriptor = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
    elif kind == "connected":
        ours, theirs = socket.socketpair()
        theirs.close()
        descriptor = ours.detach()
    elif kind == "datagram":
        descriptor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
    else:
        descriptor = socket.create_server(("0.0.0.0", 0)).detach()
    with pytest.raises(ConfigError):
        inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, first=descriptor)
    if kind == "file":
        os.close(descriptor)
