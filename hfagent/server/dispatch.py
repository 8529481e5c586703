"""The table of methods with their handlers: who may call, do the parameters fit, call, encode.

Built once at start and checked against the protocol: a method without a handler, or a handler without a method, is a
defect that must not wait for a client to find it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hfagent.foundation.errors import AccessDenied, AgentError
from hfagent.model.value import Value
from hfagent.protocol.method import Method
from hfagent.protocol.table import METHODS
from hfagent.server.problems import Problem, bad_params, invalid_params, problem_of, unknown_method
from hfagent.services.context import Actor, CallContext

__all__ = ["CONNECTION_METHODS", "Dispatcher", "Handler", "Refused", "Route"]

Handler = Callable[[CallContext, Any], Awaitable[Value] | Value]
"""Usually a coroutine function. A plain function is for answers that are at hand: it runs in the loop, and must not block."""

CONNECTION_METHODS = frozenset({"agent/hello"})
"""Declared in the protocol, answered by the session itself."""


class Refused(Exception):
    """The request will not run; `problem` is the answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Route:
    """One method, ready to be called."""

    method: Method[Any, Any]
    handler: Handler
    access: str
    validate: Callable[[Any], Any]


class Dispatcher:
    """Finds and prepares. Holds no state, so one serves every session."""

    def __init__(self, handlers: Mapping[str, Handler], methods: Mapping[str, Method[Any, Any]] = METHODS) -> None:
        """Raises `RuntimeError` naming every method without handler and every handler without method."""
        served = set(methods) - CONNECTION_METHODS
        missing, unknown = sorted(served - set(handlers)), sorted(set(handlers) - served)
        if missing or unknown:
            raise RuntimeError(f"methods without handler: {missing}; handlers without method: {unknown}")
        self._routes = {
            name: Route(
                methods[name],
                handler,
                str(methods[name].access),
                methods[name].params.__pydantic_validator__.validate_python,
            )
            for name, handler in handlers.items()
        }
        self.names: tuple[str, ...] = tuple(sorted(set(methods)))

    def route(self, name: str, actor: Actor) -> Route:
        """Return the route of a method. Raises `Refused`: no such method, or not for this actor."""
        route = self._routes.get(name)
        if route is None:
            raise Refused(unknown_method(name, (*self.names, "rpc.discover")))
        if route.access not in actor.access:
            denied = AccessDenied(
                f"this client ({actor.kind}) may not call {name}: it needs {route.access} access",
                code="access.denied",
                hint="connect through the agent's unix socket as the agent's own user",
            )
            raise Refused(problem_of(denied))
        return route

    @staticmethod
    def params(route: Route, params: Any) -> Any:
        """Return the validated parameters. Raises `Refused` naming the field."""
        if params is None:
            params = {}
        elif not isinstance(params, dict):
            raise Refused(bad_params(route.method.name, "parameters are given by name, in an object"))
        try:
            return route.validate(params)
        except ValidationError as exc:
            raise Refused(invalid_params(exc, route.method.params, route.method.name)) from exc
        except AgentError as exc:
            raise Refused(problem_of(exc, method=route.method.name)) from exc
        except RecursionError as exc:
            raise Refused(bad_params(route.method.name, "the parameters are nested too deeply")) from exc
