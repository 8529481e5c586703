"""What client and daemon tell each other first: `agent/hello`, `initialize`, `rpc.discover`. Values only, no state."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any, Final

from hfagent import __version__
from hfagent.foundation.errors import UserError
from hfagent.protocol.agent import PROTOCOL_VERSION, HelloParams, HelloResult

__all__ = ["AgentInfo", "ClientInfo", "allowed_environment", "hello_result", "initialize_result", "token_in"]

FEATURES: Final = ("binary", "cancel", "json", "msgpack", "progress")

_ENVIRONMENT = re.compile(
    r"PG[A-Z]+|(?:HTTP|HTTPS|NO|ALL)_PROXY|(?:http|https|no|all)_proxy|AWS_PROFILE|SSH_AUTH_SOCK|KRB5CCNAME|LANG"
)
_SECRETS: Final = frozenset({"PGPASSWORD"})  # matches the pattern, and is a secret all the same
_POSITION_ENCODINGS: Final = ("utf-16", "utf-8", "utf-32")


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """What the daemon says about itself."""

    build: str = __version__
    log: str | None = None
    features: tuple[str, ...] = FEATURES


@dataclass(slots=True)
class ClientInfo:
    """What the client said about itself."""

    name: str = ""
    build: str = ""
    pid: int | None = None
    cwd: str | None = None
    env: dict[str, str] = field(default_factory=dict)


def hello_result(params: HelloParams, info: AgentInfo, session: str, methods: tuple[str, ...]) -> HelloResult:
    """Answer `agent/hello`. Raises `UserError` when there is no protocol that both speak."""
    low, high = params.protocol
    if not low <= PROTOCOL_VERSION <= high:
        raise UserError(
            f"the client speaks protocol {low} to {high}, this agent ({info.build}) speaks {PROTOCOL_VERSION}",
            code="unsupported",
            hint="update the older of the two; after an update of the agent: hfagent shutdown, the next client starts it",
        )
    skew = None
    if params.build and params.build != info.build:
        skew = f"the client is hfagent {params.build}, the running agent is {info.build}; hfagent shutdown ends the old one"
    known = {*info.features, *methods}
    return HelloResult(
        protocol=PROTOCOL_VERSION,
        build=info.build,
        pid=os.getpid(),
        session=session,
        capabilities=(*info.features, *methods),
        missing=tuple(name for name in params.required if name not in known),
        log=info.log,
        skew=skew,
    )


def initialize_result(params: dict[str, Any], info: AgentInfo, methods: tuple[str, ...]) -> dict[str, Any]:
    """Answer `initialize`: the shape of LSP's InitializeResult, with what the agent offers under `experimental`."""
    offered = _path(params, "capabilities", "general", "positionEncodings")
    encodings = [e for e in offered if e in _POSITION_ENCODINGS] if isinstance(offered, list) else []
    return {
        "capabilities": {
            "positionEncoding": encodings[0] if encodings else "utf-16",
            "experimental": {
                "hfagent": {"protocol": PROTOCOL_VERSION, "features": list(info.features), "methods": list(methods)}
            },
        },
        "serverInfo": {"name": "hfagent", "version": info.build},
    }


def token_in(params: dict[str, Any]) -> Any:
    """The TCP token of `initialize`, wherever nothing else stands."""
    return _path(params, "initializationOptions", "token")


def allowed_environment(env: dict[str, str]) -> dict[str, str]:
    """Keep the variables that connections may depend on; the rest of a client's environment is none of our business."""
    return {k: v for k, v in env.items() if _ENVIRONMENT.fullmatch(k) and k not in _SECRETS and len(v) <= 4096}


def client_of(params: dict[str, Any]) -> ClientInfo:
    """Who sends `initialize`, as far as it says so."""
    name, version = _path(params, "clientInfo", "name"), _path(params, "clientInfo", "version")
    pid = params.get("processId")
    return ClientInfo(
        name=name[:200] if isinstance(name, str) else "",
        build=version[:100] if isinstance(version, str) else "",
        pid=pid if type(pid) is int else None,
    )


def _path(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
