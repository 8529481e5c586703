"""The unix socket is never wider than asked, and never takes a living one's place."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hfagent.foundation.errors import ConfigError, Conflict
from hfagent.transport.peer import peer_of
from hfagent.transport.unix import UnixListener, is_alive


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_modes_and_clean_up(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    before = os.umask(0o022)
    try:
        listener = UnixListener(path)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert is_alive(path)
    listener.close()
    listener.close()
    assert not path.exists()
    assert sorted(p.name for p in path.parent.iterdir()) == ["agent.sock.lock"]


def test_a_socket_for_a_group(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o750)
    listener = UnixListener(tmp_path / "run" / "agent.sock", mode=0o660)
    assert mode(listener.path) == 0o660
    listener.close()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="written by others"):
        UnixListener(tmp_path / "open" / "agent.sock", mode=0o660)
    with pytest.raises(ValueError, match="anybody"):
        UnixListener(tmp_path / "run" / "agent.sock", mode=0o666)


WATCHER = """
import os, stat, sys
directory = sys.argv[1]
seen, wide = set(), []
print("ready", flush=True)
while not os.path.exists(directory + "/stop"):
    for name in os.listdir(directory):
        try: status = os.lstat(os.path.join(directory, name))
        except FileNotFoundError: continue
        if stat.S_ISSOCK(status.st_mode):
            seen.add(status.st_ino)
            if status.st_mode & 0o077: wide.append((name, oct(status.st_mode)))
print(len(seen), wide[:5])
"""


def test_no_instant_with_a_wide_mode(tmp_path: Path) -> None:
    """Another process looks without pause while the socket is made a few hundred times under the umask 022."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    watcher = subprocess.Popen([sys.executable, "-c", WATCHER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "ready\n"
    before = os.umask(0o022)
    try:
        for _ in range(300):
            UnixListener(directory / "agent.sock").close()
    finally:
        os.umask(before)
        (directory / "stop").touch()
        seen, wide = watcher.communicate(timeout=20)[0].split(" ", 1)
    assert int(seen) > 0
    assert wide.strip() == "[]"


def test_the_watcher_sees_a_careless_bind(tmp_path: Path) -> None:
    """The control of the test above: bind, then chmod, is seen."""
    watcher = subprocess.Popen([sys.executable, "-c", WATCHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "ready\n"
    before = os.umask(0o022)
    try:
        for _ in range(300):
            with socket.socket(socket.AF_UNIX) as careless:
                careless.bind(str(tmp_path / "x.sock"))
                (tmp_path / "x.sock").chmod(0o600)
                (tmp_path / "x.sock").unlink()
    finally:
        os.umask(before)
        (tmp_path / "stop").touch()
        output = watcher.communicate(timeout=20)[0]
    assert "0o14" in output


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "agent.sock"))
    listener = UnixListener(directory / "agent.sock")
    assert is_alive(listener.path)
    listener.close()


def test_a_living_socket_is_not_replaced(tmp_path: Path) -> None:
    first = UnixListener(tmp_path / "run" / "agent.sock")
    with pytest.raises(Conflict, match="another daemon"):
        UnixListener(first.path)
    assert is_alive(first.path)
    first.close()
    # Also when it is another program's, which takes no lock.
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(first.path))
        other.listen()
        with pytest.raises(Conflict):
            UnixListener(first.path)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    path = directory / "agent.sock"
    precious = tmp_path / "precious"
    precious.write_text("precious")
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to(precious)
    else:
        os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(ConfigError, match="not a socket"):
        UnixListener(path)
    assert path.lstat().st_ino == before.st_ino
    assert precious.read_text() == "precious"


def test_an_open_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        UnixListener(tmp_path / "run" / "agent.sock")


def test_a_path_that_does_not_fit_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="longer than 107 bytes"):
        UnixListener(tmp_path / ("x" * 120) / "agent.sock")


def test_close_leaves_another_ones_socket(tmp_path: Path) -> None:
    listener = UnixListener(tmp_path / "run" / "agent.sock")
    listener.path.unlink()
    listener.path.write_text("somebody else's")
    listener.close()
    assert listener.path.read_text() == "somebody else's"


def test_one_of_many_starters_wins(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    made: list[UnixListener] = []
    refused: list[Exception] = []
    barrier = threading.Barrier(8)

    def starter() -> None:
        barrier.wait()
        try:
            made.append(UnixListener(path))
        except Conflict as exc:
            refused.append(exc)

    threads = [threading.Thread(target=starter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 7)
    made[0].close()


def test_the_peer_is_who_the_kernel_says() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.transport, peer.uid, peer.pid) == ("unix", os.getuid(), os.getpid())
