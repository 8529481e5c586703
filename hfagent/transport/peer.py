"""Who is at the other end of a connection, as the kernel says it. Never by process id alone: ids are reused."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from typing import Literal

__all__ = ["Peer", "peer_of"]


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end. `uid` and `pid` are known on unix sockets only."""

    transport: Literal["unix", "tcp", "websocket", "memory"]
    uid: int | None = None
    pid: int | None = None
    address: str = ""

    def __str__(self) -> str:
        return f"uid {self.uid}, pid {self.pid}" if self.transport == "unix" else self.address or self.transport


def peer_of(connection: socket.socket) -> Peer:
    """Describe the peer of a connected unix or TCP socket. Raises `OSError` when it is gone already."""
    if connection.family == socket.AF_UNIX:
        # Taken by the kernel at connect() time, so a peer cannot put on another user's id afterwards.
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _gid = struct.unpack("3i", raw)
        return Peer("unix", uid=uid, pid=pid)
    host, port = connection.getpeername()[:2]
    return Peer("tcp", address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def allowed_uids(extra: frozenset[int] = frozenset()) -> frozenset[int]:
    """The users who may connect to a unix socket: the agent's own, root, and those configured."""
    return extra | {os.geteuid(), 0}
