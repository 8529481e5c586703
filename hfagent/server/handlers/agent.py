"""`agent/*`."""

from __future__ import annotations

from typing import Protocol

from hfagent.protocol import agent
from hfagent.server.dispatch import Handler
from hfagent.services.context import CallContext

__all__ = ["AgentService", "agent_handlers"]


class AgentService(Protocol):
    """What these handlers need."""

    async def status(self, call: CallContext, params: agent.StatusParams) -> agent.StatusResult:
        """Describe the daemon."""
        ...

    async def doctor(self, call: CallContext, params: agent.DoctorParams) -> agent.DoctorResult:
        """Run the checks."""
        ...

    async def sessions(self, call: CallContext, params: agent.SessionsParams) -> agent.SessionsResult:
        """List the connected clients."""
        ...

    async def shutdown(self, call: CallContext, params: agent.ShutdownParams) -> agent.Done:
        """Begin to drain and return at once; the process ends when nothing runs any more."""
        ...

    async def reload(self, call: CallContext, params: agent.ReloadParams) -> agent.ReloadResult:
        """Read the configuration again."""
        ...


def agent_handlers(service: AgentService) -> dict[str, Handler]:
    """Return the handlers of the namespace (`agent/hello` is the session's own)."""
    return {
        agent.STATUS.name: service.status,
        agent.DOCTOR.name: service.doctor,
        agent.SESSIONS.name: service.sessions,
        agent.SHUTDOWN.name: service.shutdown,
        agent.RELOAD.name: service.reload,
    }
