"""What a service knows about the call it serves: who asks, how to report, how to stop. Nothing about wires.

Every face (JSON-RPC session, platform link, MCP) makes one of these per request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from hfagent.foundation.cancellation import CancelToken

__all__ = ["LOCAL_ACTOR", "Actor", "CallContext", "no_progress"]

_EVERYTHING = frozenset({"read", "operate", "admin", "secret"})


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks, and what he may do. `access` holds the names of `protocol.method.Access`, each one explicitly."""

    kind: Literal["local", "tcp", "platform"]
    access: frozenset[str] = frozenset()
    uid: int | None = None
    pid: int | None = None

    def allows(self, access: str) -> bool:
        """Tell whether the actor may call a method of that access level."""
        return access in self.access

    def __str__(self) -> str:
        return f"{self.kind} (uid {self.uid})" if self.uid is not None else self.kind


LOCAL_ACTOR = Actor("local", _EVERYTHING)
"""The agent's own user, for work that the agent starts itself."""


def no_progress(_value: dict[str, Any]) -> None:
    """For callers that do not listen."""


@dataclass(slots=True)
class CallContext:
    """One request, as the services see it.

    `progress` takes a dictionary with any of `message`, `percentage` (0 to 100) and further data, from any thread, and
    never raises; it does nothing when the caller did not ask. `cancel` fires when the caller cancels or goes away.
    `binary` tells whether the reply can carry bytes.
    """

    session_id: str
    actor: Actor = LOCAL_ACTOR
    cancel: CancelToken = field(default_factory=CancelToken)
    progress: Callable[[dict[str, Any]], None] = no_progress
    binary: bool = False
