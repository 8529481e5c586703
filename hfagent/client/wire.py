"""What both clients share: addresses, the introduction, and errors as they come back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from hfagent import __version__
from hfagent.foundation.errors import AgentError, Cancelled
from hfagent.transport.framing import JSON, Encoding

__all__ = ["IN_FLIGHT", "TcpAddress", "UnixAddress", "decode_reply", "error_from", "hello_params", "lost"]

IN_FLIGHT: Final = 32
"""Requests that a daemon takes at a time from one connection."""

PROTOCOL: Final = (1, 1)
_CANCELLED: Final = -32800


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port on this machine, with the file that holds the token."""

    host: str
    port: int
    token_file: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def token(self) -> str:
        """Read the token. Raises `AgentError` when it cannot be read."""
        try:
            with open(self.token_file, encoding="ascii") as file:  # noqa: PTH123  no pathlib on the fast path
                return file.read(200).strip()
        except OSError as exc:
            raise AgentError(
                f"the token of the agent at {self} cannot be read: {exc}",
                code="agent.offline",
                hint="it exists while an agent listens on TCP, and only its own user can read it",
            ) from exc


def decode_reply(body: bytes, encoding: Encoding) -> Any:
    """Decode what the agent sent. It is trusted to mean well, so this is the quick way. Raises `ValueError`."""
    if encoding == JSON:
        import json

        return json.loads(body)
    import msgpack

    return msgpack.unpackb(body)


def hello_params(client: str, token: str | None = None) -> dict[str, Any]:
    """Parameters of `agent/hello`."""
    params: dict[str, Any] = {"protocol": list(PROTOCOL), "build": __version__, "pid": os.getpid(), "client": client}
    if token is not None:
        params["token"] = token
    return params


def error_from(error: Any) -> AgentError:
    """Rebuild the error of a reply."""
    if not isinstance(error, dict):
        return AgentError("the agent answered with an error that cannot be read", code="net.protocol")
    data = error.get("data")
    if not isinstance(data, dict) or "code" not in data:
        return AgentError(str(error.get("message", "the agent reported an error")), code="internal.bug")
    if error.get("code") == _CANCELLED:
        return Cancelled(str(data.get("message", "the request was cancelled")))
    rebuilt = AgentError.from_data(data)
    known = {"code", "message", "hint", "stage", "retryable", "retry_after", "native"}
    rebuilt.data = {key: value for key, value in data.items() if key not in known} or None
    return rebuilt


def lost(address: object, reason: str = "closed the connection") -> AgentError:
    """The error of every call that was waiting when the connection went."""
    return AgentError(
        f"the agent at {address} {reason}",
        code="agent.offline",
        hint="hfagent status starts it again; hfagent doctor checks it",
    )
