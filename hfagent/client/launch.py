"""Find the daemon, or start it. Synchronous and small: forwarders and command line use it before anything else.

Starting: take the start lock, try once more, spawn in a session of its own, wait for its word on an inherited pipe. The
daemon says `ready` when it accepts connections; a pipe that closes without a word means it died. Nobody sleeps and hopes.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hfagent.client.wire import TcpAddress, UnixAddress
from hfagent.foundation.errors import AgentError
from hfagent.foundation.paths import AgentPaths

__all__ = ["connect", "connect_to"]

_CONNECT_S: Final = 5.0
_START_S: Final = 10.0
_IDLE_S: Final = 1800

_NOBODY: Final = (FileNotFoundError, NotADirectoryError, ConnectionRefusedError)
"""What connecting raises when no daemon runs."""

# Meant for the process that systemd started, not for a daemon that one of its descendants starts.
_NOT_INHERITED: Final = frozenset(
    {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID"}
)


def connect(paths: AgentPaths | None = None, *, start: bool = True, timeout: float = _START_S) -> socket.socket:
    """Return a connected socket to the daemon of `paths`, starting it when none runs and `start` is set.

    Raises `AgentError` (`agent.offline`) naming the log and its last lines.
    """
    paths = paths or AgentPaths()
    address = UnixAddress(str(paths.socket))
    try:
        return connect_to(address)
    except _NOBODY:
        if not start:
            raise AgentError(
                f"no agent runs (nobody listens on {address})",
                code="agent.offline",
                hint="start it with hfagent daemon, or systemctl --user start hfagent",
            ) from None
    except OSError as exc:
        raise _unreachable(address, exc) from exc
    _start(paths, time.monotonic() + timeout)
    try:
        return connect_to(address)
    except OSError as exc:
        raise _unreachable(address, exc) from exc


def connect_to(address: UnixAddress | TcpAddress) -> socket.socket:
    """Connect to a given address. Raises `OSError`; `AgentError` when the socket is another user's."""
    if isinstance(address, TcpAddress):
        return socket.create_connection((address.host, address.port), timeout=_CONNECT_S)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_S)
        connection.connect(address.path)
        _check_owner(connection, address)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_owner(connection: socket.socket, address: UnixAddress) -> None:
    """Speak to an agent of our own, of root, or of the user who owns the directory that the socket is in."""
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid in (os.geteuid(), 0):
        return
    status = os.stat(os.path.dirname(address.path) or ".")  # noqa: PTH116, PTH120
    if uid == status.st_uid and not status.st_mode & 0o022:
        return
    raise AgentError(
        f"the process listening on {address} belongs to user id {uid}, not to you",
        code="access.denied",
        hint="choose your own socket with --socket or HFAGENT_SOCK",
    )


def _start(paths: AgentPaths, deadline: float) -> None:
    data_dir = paths.data_dir
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise _not_started(paths, f"the data directory {data_dir} cannot be used: {exc.strerror}") from exc
    try:
        _lock(lock, deadline, paths)
        try:
            connect_to(UnixAddress(str(paths.socket))).close()
        except _NOBODY:
            _spawn(paths, deadline)
        except OSError as exc:
            raise _unreachable(paths.socket, exc) from exc
    finally:
        os.close(lock)


def _lock(lock: int, deadline: float, paths: AgentPaths) -> None:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _not_started(paths, "another client is starting it and is not done yet") from None
            time.sleep(0.02)  # flock has no timeout, and a signal for it would not be ours to use


def _spawn(paths: AgentPaths, deadline: float) -> None:
    log_file = paths.log_file
    log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    ready, word = os.pipe()
    try:
        command = [sys.executable, "-m", "hfagent", "daemon", *paths.arguments()]
        command += ["--idle-timeout", str(_IDLE_S), "--ready-fd", str(word)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(os.environ),
            pass_fds=(word,),
            start_new_session=True,
        )
    finally:
        os.close(word)
        os.close(log)
    # The daemon outlives us, or we outlive it: then somebody must reap it.
    threading.Thread(target=process.wait, name="hf-reap", daemon=True).start()
    try:
        said = _listen(ready, deadline)
    finally:
        os.close(ready)
    if said is None:
        raise _not_started(paths, "it is not ready yet")
    if not said.startswith(b"ready"):
        raise _not_started(paths, said.decode("utf-8", "replace").strip() or "it ended before it was ready")


def _listen(ready: int, deadline: float) -> bytes | None:
    """Return what the daemon said, empty when it died, None when time is up."""
    said = b""
    while b"\n" not in said:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([ready], [], [], left)[0]:
            return None
        data = os.read(ready, 4096)
        if not data:
            break
        said += data
    return said


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in env.items() if key not in _NOT_INHERITED}
    root = str(Path(__file__).resolve().parent.parent.parent)
    if not root.endswith("-packages"):
        # A checkout that is not installed is found by the current directory only, and the daemon's is /.
        kept["PYTHONPATH"] = os.pathsep.join(p for p in (root, kept.get("PYTHONPATH")) if p)
    return kept


def _unreachable(address: object, exc: OSError) -> AgentError:
    return AgentError(
        f"the agent at {address} cannot be reached: {exc.strerror or exc}",
        code="agent.offline",
        hint="hfagent doctor checks the agent; ps shows whether it hangs",
    )


def _not_started(paths: AgentPaths, reason: str) -> AgentError:
    return AgentError(
        f"the agent could not be started: {reason}",
        code="agent.offline",
        hint=f"its log is {paths.log_file}{_tail(paths.log_file)}",
        data={"log": str(paths.log_file)},
    )


def _tail(log_file: Path, lines: int = 5) -> str:
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - 4096))
            last = file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return ""
    return "; it ends with:\n" + "\n".join(last) if last else ""
