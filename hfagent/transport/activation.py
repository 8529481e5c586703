"""Listening sockets handed over by systemd (`LISTEN_FDS`). The variables are for one process only, and checked strictly."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from hfagent.foundation.errors import ConfigError

__all__ = ["inherited_sockets"]

_FIRST = 3


def inherited_sockets(environ: MutableMapping[str, str] | None = None, *, first: int = _FIRST) -> list[socket.socket]:
    """Return the listening sockets given to this very process, and take the variables out of the environment.

    `LISTEN_PID` must be this process's id: a variable that leaked from a parent means nothing, and the descriptors from 3
    on are then something else. Raises `ConfigError` for a socket that is no listening unix or loopback socket.
    """
    env = os.environ if environ is None else environ
    pid, count = env.pop("LISTEN_PID", ""), env.pop("LISTEN_FDS", "")
    env.pop("LISTEN_FDNAMES", None)
    if not (pid.isascii() and pid.isdigit() and int(pid) == os.getpid()):
        return []
    if not (count.isascii() and count.isdigit() and len(count) < 4):
        return []
    found: list[socket.socket] = []
    try:
        for descriptor in range(first, first + int(count)):
            os.set_inheritable(descriptor, False)
            found.append(_checked(socket.socket(fileno=descriptor)))
    except (OSError, ConfigError) as exc:
        for listener in found:
            listener.close()
        if isinstance(exc, ConfigError):
            raise
        raise ConfigError(f"a descriptor given by LISTEN_FDS cannot be used: {exc}") from exc
    return found


def _checked(listener: socket.socket) -> socket.socket:
    problem = ""
    if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        problem = "it is no listening stream socket"
    elif listener.family in (socket.AF_INET, socket.AF_INET6) and listener.getsockname()[0] not in ("127.0.0.1", "::1"):
        problem = f"it listens on {listener.getsockname()[0]}, which other machines can reach"
    elif listener.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        problem = "it is neither a unix nor a TCP socket"
    if problem:
        listener.close()
        raise ConfigError(
            f"the socket given by the service manager cannot be used: {problem}",
            code="config.policy_denied",
            hint="in the .socket unit, use ListenStream= with a path or 127.0.0.1:PORT",
        )
    listener.setblocking(False)
    return listener
