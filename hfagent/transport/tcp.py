"""TCP, on loopback and with a token: for clients that cannot open a unix socket. Off unless configured.

Loopback is no protection by itself: every user and every web page of this machine can connect to it. So whoever connects
shows the token first, and a browser (its first bytes are an HTTP request) is cut off without an answer.

Architecture Invariant: nothing ever listens on an address that another machine can reach.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import stat
from pathlib import Path

from hfagent.foundation.atomic import make_private_directory, write_new
from hfagent.foundation.errors import ConfigError

__all__ = ["TokenFile", "bind_loopback", "looks_like_http"]

_LOOPBACK = ("127.0.0.1", "::1")
_VERBS = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"DELETE ", b"PATCH ", b"CONNECT ", b"TRACE ", b"PRI * ")


def bind_loopback(host: str, port: int) -> list[socket.socket]:
    """Listen on `host`:`port`; port 0 picks a free one.

    `host` is 127.0.0.1, ::1, or localhost for both. The name localhost is not looked up: a hosts file may say anything.
    Raises `ConfigError` for any other address and when the port is taken.
    """
    if host not in (*_LOOPBACK, "localhost"):
        raise ConfigError(
            f"refusing to listen on {host!r}: TCP is for this machine only",
            field="tcp_host",
            code="config.policy_denied",
            hint="use 127.0.0.1, ::1 or localhost; for access from elsewhere forward the unix socket with ssh -L",
        )
    listeners: list[socket.socket] = []
    for address in _LOOPBACK if host == "localhost" else (host,):
        try:
            listener = _listen(address, port)
        except OSError as exc:
            if host == "localhost" and address == "::1" and listeners and exc.errno is not None:
                break  # a machine without IPv6
            raise ConfigError(
                f"cannot listen on {address} port {port}: {exc.strerror or exc}",
                field="tcp_port",
                hint="choose another port, or 0 for a free one",
            ) from exc
        listeners.append(listener)
        port = listener.getsockname()[1]
    return listeners


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(128)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


class TokenFile:
    """The secret that TCP clients show: 32 random bytes, made anew at each start, readable by the agent's user only."""

    def __init__(self, path: Path) -> None:
        """Write a new token to `path`. Raises `ConfigError` when something that is no file stands there."""
        make_private_directory(path.parent)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ConfigError(f"{path} exists and is not a regular file; it is left alone", hint="remove it")
            path.unlink()
        except FileNotFoundError:
            pass
        self.path = path
        self._token = secrets.token_urlsafe(32)
        write_new(path, self._token.encode() + b"\n")

    def matches(self, token: object) -> bool:
        """Compare in constant time."""
        return isinstance(token, str) and hmac.compare_digest(token.encode("utf-8", "replace"), self._token.encode())

    def remove(self) -> None:
        """Take the file away; clients of this run can no longer connect anyway."""
        self.path.unlink(missing_ok=True)


def looks_like_http(data: bytes) -> bool:
    """Tell whether a connection's first bytes are an HTTP request or a TLS greeting: a browser, not a client of ours."""
    return data.startswith(_VERBS) or data.startswith(b"\x16\x03")
