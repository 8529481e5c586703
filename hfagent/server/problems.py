"""Exceptions to JSON-RPC errors: number, message, data. No traceback ever leaves the process.

| number | when |
|---|---|
| -32700 | the body could not be decoded |
| -32600 | it is no request, or comes at the wrong moment |
| -32601 | no such method |
| -32602 | the parameters do not fit |
| -32603 | a defect of ours; the log has it under the reference |
| -32002 | before `initialize` |
| -32800 | cancelled |
| -32803 | the method failed; `data` says how |
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError

from hfagent.foundation.errors import AgentError, Cancelled, InternalError, UserError

__all__ = [
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "NOT_INITIALIZED",
    "PARSE_ERROR",
    "REQUEST_CANCELLED",
    "REQUEST_FAILED",
    "Problem",
    "bad_params",
    "cancelled",
    "invalid_params",
    "problem_of",
    "unknown_method",
]

_log = logging.getLogger(__name__)

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
NOT_INITIALIZED: Final = -32002
REQUEST_CANCELLED: Final = -32800
REQUEST_FAILED: Final = -32803

_NUMBERS: Final = {
    "request.malformed": PARSE_ERROR,
    "request.invalid_params": INVALID_PARAMS,
    "request.unknown_method": METHOD_NOT_FOUND,
    "request.not_initialized": NOT_INITIALIZED,
    "cancelled": REQUEST_CANCELLED,
    "internal.bug": INTERNAL_ERROR,
}


class Problem(NamedTuple):
    """A JSON-RPC error."""

    number: int
    message: str
    data: dict[str, Any]


def problem_of(error: BaseException, *, method: str = "", session: str = "") -> Problem:
    """Turn whatever a handler raised into an error for the client; what is not expected is logged with its trace."""
    if isinstance(error, ValidationError):
        # Not the client's parameters (those are validated before the handler runs): a service built a bad value.
        return _defect(error, method, session)
    if isinstance(error, InternalError):
        return _defect(error, method, session)
    if isinstance(error, AgentError):
        return Problem(_NUMBERS.get(error.code, REQUEST_FAILED), error.message, error.to_data())
    return _defect(error, method, session)


def cancelled() -> Problem:
    """The answer to a request that its client took back."""
    error = Cancelled()
    return Problem(REQUEST_CANCELLED, error.message, error.to_data())


def unknown_method(name: str, known: Iterable[str]) -> Problem:
    """The answer to a method that does not exist."""
    shown = name if len(name) <= 100 else name[:99] + "…"
    error = UserError(
        f"there is no method {shown!r}",
        code="request.unknown_method",
        hint=_did_you_mean(name, known) or "rpc.discover lists all methods",
    )
    return Problem(METHOD_NOT_FOUND, error.message, error.to_data())


def invalid_params(error: ValidationError, model: type[BaseModel], method: str) -> Problem:
    """Name the field that does not fit. Values are never quoted: a secret may sit in the wrong place."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    described = [(_path(fault["loc"]), _reason(fault)) for fault in faults[:10]]
    field, reason = described[0]
    hint = None
    if faults[0]["type"] == "extra_forbidden":
        fields = _fields_at(model, faults[0]["loc"][:-1])
        hint = _did_you_mean(str(faults[0]["loc"][-1]), fields) or (
            f"known fields: {', '.join(sorted(fields))}" if fields else f"{method} takes no parameters here"
        )
    data: dict[str, Any] = {"field": field}
    if len(described) > 1:
        data["errors"] = [{"field": name, "message": text} for name, text in described]
    problem = UserError(
        f"{method}: {field}: {reason}" if field else f"{method}: {reason}",
        code="request.invalid_params",
        hint=hint or f"rpc.discover describes the parameters of {method}",
        data=data,
    )
    return Problem(INVALID_PARAMS, problem.message, problem.to_data())


def bad_params(method: str, reason: str, *, field: str | None = None) -> Problem:
    """Parameters that are wrong before any model looks at them."""
    error = UserError(
        f"{method}: {reason}",
        hint=f"rpc.discover describes the parameters of {method}",
        data={"field": field} if field else None,
    )
    return Problem(INVALID_PARAMS, error.message, error.to_data())


def _defect(error: BaseException, method: str, session: str) -> Problem:
    reference = secrets.token_hex(4)
    _log.error(
        "%s failed unexpectedly in session %s, reference %s", method or "a request", session, reference, exc_info=error
    )
    shown = InternalError(
        f"{method or 'the request'} failed because of a defect in the agent (reference {reference})",
        hint=f"the agent's log has the details: search it for {reference}",
        data={"reference": reference},
    )
    return Problem(INTERNAL_ERROR, shown.message, shown.to_data())


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)[:200]


def _reason(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "there is no such field"
    if fault["type"] == "missing":
        return "this field is required"
    text = str(fault["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields at a location inside nested models; empty when it is no model."""
    current: Any = model
    for part in location:
        info = current.model_fields.get(part) if isinstance(part, str) else None
        if info is None:
            continue  # an index, or a branch of a union
        inner = [a for a in (info.annotation, *getattr(info.annotation, "__args__", ())) if isinstance(a, type)]
        models = [a for a in inner if issubclass(a, BaseModel)]
        if not models:
            return []
        current = models[0]
    return list(current.model_fields)


def _did_you_mean(name: str, known: Iterable[str]) -> str | None:
    if len(name) > 100:
        return None  # comparing costs the square of the length
    from difflib import get_close_matches

    by_lower = {candidate.lower(): candidate for candidate in known}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[close[0]]}?" if close else None
