"""What one client may cost. The defaults are the product's; tests make them small."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on connections, messages and patience. Sizes in bytes, times in seconds."""

    connections: int = 64
    unproven: int = 16
    """TCP connections that have not shown the token yet: strangers must not take the places of clients."""
    in_flight: int = 32
    body_before_hello: int = 64 * 1024
    body: int = 16 * _MIB
    header: int = 16 * 1024
    handshake_s: float = 5.0
    frame_grace_s: float = 5.0
    """An incomplete frame may take this long without questions; then it has to have come at `frame_rate`."""
    frame_rate: int = 1024
    """Bytes per second."""
    write_high: int = _MIB
    write_stall_s: float = 10.0
    """A client whose backlog does not shrink by `frame_rate` a second during this time is dropped."""
    linger_s: float = 2.0
    """How long a closed connection may take to read its last message."""
    half_closed_s: float = 30.0
    """How long a TCP client that stopped sending may wait for its answers; it cannot be told from a dead one."""
