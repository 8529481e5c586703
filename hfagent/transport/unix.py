"""The unix socket: bound so that it is never wider than asked, at no instant, and never steals a living one's place.

Order of events: private directory, lock file, connect-test, bind under a temporary name with the umask in force, rename
over the stale socket. What is not a socket is never removed.

Architecture Invariant: only a socket to which nobody answers is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import threading
from pathlib import Path

from hfagent.foundation.atomic import make_private_directory
from hfagent.foundation.errors import ConfigError, Conflict
from hfagent.foundation.paths import MAX_SOCKET_PATH

__all__ = ["UnixListener", "is_alive"]

_BACKLOG = 128
_umask_lock = threading.Lock()  # the umask belongs to the process: two binds must not restore each other's


class UnixListener:
    """A bound, listening socket. `close()` removes the socket file if it is still ours; safe to call twice."""

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        """Bind `path`.

        `mode` is 0600, or 0660 for a socket that a group shares; its directory must then exist and be closed to
        others. Raises `Conflict` when something answers on the path, `ConfigError` for a path that cannot be used.
        """
        if mode not in (0o600, 0o660):
            raise ValueError(f"a socket mode of {mode:o} would let anybody in")
        if len(os.fsencode(path)) > MAX_SOCKET_PATH or len(os.fsencode(path.parent)) + 10 > MAX_SOCKET_PATH:
            raise ConfigError(
                f"the socket path {path} is longer than {MAX_SOCKET_PATH} bytes",
                hint="choose a shorter one with --socket or HFAGENT_SOCK",
            )
        self.path = path
        self._closed = False
        _check_directory(path.parent, shared=mode == 0o660)
        self._lock = _take_lock(path)
        try:
            _check_place(path)
            self.socket = _bind(path, mode)
        except BaseException:
            os.close(self._lock)
            raise
        status = path.lstat()
        self._identity = (status.st_dev, status.st_ino)

    def close(self) -> None:
        """Stop listening and take the socket file away."""
        if self._closed:
            return
        self._closed = True
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self._identity:
                self.path.unlink()
        os.close(self._lock)  # last: whoever waits for it finds the place free


def is_alive(path: Path, *, timeout: float = 1.0) -> bool:
    """Tell whether somebody accepts connections on `path`. A daemon that is too busy to answer counts as alive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (TimeoutError, BlockingIOError, PermissionError):
            return True
        return True


def _check_directory(directory: Path, *, shared: bool) -> None:
    try:
        if not shared:
            make_private_directory(directory)
            return
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as exc:
        raise ConfigError(f"the socket directory cannot be used: {exc}", hint="choose another with --socket") from exc
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise ConfigError(
            f"the socket directory {directory} can be written by others (mode {status.st_mode & 0o777:o})",
            hint=f"run chmod 750 {directory}",
        )


def _take_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        lock = os.open(path.with_name(path.name + ".lock"), flags, 0o600)
    except OSError as exc:
        raise ConfigError(f"the socket's lock file cannot be opened: {exc}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise _taken(path) from None
    return lock


def _check_place(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(
            f"{path} exists and is not a socket; it is left alone", hint="remove it, or choose another with --socket"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"the socket {path} belongs to user id {status.st_uid}", hint="choose another with --socket")
    if is_alive(path):
        raise _taken(path)


def _taken(path: Path) -> Conflict:
    return Conflict(
        f"another daemon listens on {path}",
        code="connector.conflict",
        hint="hfagent status shows it; give this one its own --socket or --data-dir",
    )


def _bind(path: Path, mode: int) -> socket.socket:
    temporary = path.with_name(f".{secrets.token_hex(4)}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _umask_lock:
            # Not chmod afterwards: between bind and chmod the socket would be open to everybody.
            before = os.umask(0o777 & ~mode)
            try:
                listener.bind(os.fspath(temporary))
            finally:
                os.umask(before)
        listener.listen(_BACKLOG)  # before it gets its name, so that nobody is ever refused under it
        listener.setblocking(False)
        os.rename(temporary, path)  # noqa: PTH104  one system call: there is no instant without a socket
    except OSError as exc:
        listener.close()
        temporary.unlink(missing_ok=True)
        if exc.errno == errno.EACCES:
            raise ConfigError(f"the socket {path} cannot be made: {exc.strerror}", hint="choose another") from exc
        raise
    return listener
