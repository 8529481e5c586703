"""Every error a user can meet, and the table of stable codes.

    AgentError(message, code=, hint=, stage=, retryable=, retry_after=, native=)
    |- UserError        fix the input or the configuration
    |- SourceError      the remote system said no, or did not answer
    |- Cancelled        the caller asked for it
    `- InternalError    our bug: full trace to the log, a reference number to the user

The message says what failed, which thing and why, in one sentence; the hint is the next step. Both are redacted in the
constructor, so a secret cannot travel further by accident. `code` is stable: clients match on it, never on the text.
`CODES` is the whole vocabulary (connector specification §0.4 plus the agent's own); an unknown code is a programming error.

Architecture Invariant: an `AgentError` never carries a secret or a full DSN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from hfagent.foundation.redaction import redact, redact_tree

__all__ = [
    "CODES",
    "AccessDenied",
    "AgentError",
    "Cancelled",
    "ConfigError",
    "Conflict",
    "ErrorCode",
    "InternalError",
    "NotFound",
    "SourceError",
    "UserError",
]


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One stable code: who has to act (`blame`), whether repeating can help, and what it means."""

    code: str
    blame: str
    retryable: bool
    meaning: str


def _table() -> dict[str, ErrorCode]:
    rows: list[tuple[str, bool, dict[str, str]]] = [
        (
            "config",
            False,
            {
                "config.invalid": "A configuration value has the wrong type, format or combination.",
                "config.unknown_field": "The configuration names a field that this connector type does not have.",
                "config.missing_field": "A required field is absent.",
                "config.secret_reentry_required": "The address changed, so the stored secrets must be entered again.",
                "config.policy_denied": "The agent's local policy does not allow this type, host, path or operation.",
                "config.driver_missing": "The driver for this connector type is not installed on the agent.",
                "config.type_unknown": "No connector type of that name is registered.",
            },
        ),
        (
            "auth",
            False,
            {
                "auth.invalid_credentials": "The server rejected the user name or password.",
                "auth.expired": "The account's password has expired.",
                "auth.locked": "The account is locked.",
                "auth.method_unsupported": "The server asks for a sign-in method that cannot be used here.",
                "auth.not_permitted_from_host": "The server does not let this account in from the agent's address.",
                "auth.mfa_required": "The account needs an interactive second factor.",
                "auth.token_expired": "The access token has expired.",
            },
        ),
        (
            "network",
            True,
            {
                "net.dns": "The host name could not be resolved.",
                "net.refused": "Nothing listens on that host and port.",
                "net.timeout": "No answer from that host and port.",
                "net.unreachable": "There is no route to that host.",
                "net.reset": "The connection was cut.",
                "net.proxy": "The proxy refused or failed.",
                "net.protocol": "Whatever answered does not speak the expected protocol.",
                "net.tunnel_auth": "The SSH tunnel's sign-in was rejected.",
            },
        ),
        ("network", False, {"net.tunnel_hostkey": "The SSH server's host key is not the pinned one."}),
        (
            "tls",
            False,
            {
                "tls.untrusted": "The server's certificate is not signed by a trusted authority.",
                "tls.hostname_mismatch": "The server's certificate is for another host name.",
                "tls.expired": "The server's certificate has expired.",
                "tls.version": "No common TLS version or cipher.",
                "tls.client_cert": "The client certificate was refused or could not be read.",
                "tls.plaintext_refused": "One side insists on TLS and the other does not offer it.",
                "tls.unverified": "The connection is encrypted, but the server's identity is not verified.",
                "tls.plaintext": "The connection is not encrypted.",
            },
        ),
        (
            "permission",
            False,
            {
                "permission.denied": "The account lacks a privilege.",
                "permission.read_missing": "The account cannot read the stream.",
                "permission.row_security": "Row security may hide rows from this account.",
                "permission.can_write": "The account can change data; a read-only account is safer.",
                "permission.superuser": "The account is a superuser; a read-only account is safer.",
            },
        ),
        (
            "schema",
            False,
            {
                "namespace.not_found": "The database or schema does not exist or is not visible.",
                "model.not_found": "The stream (table, view, collection, file) does not exist or is not visible.",
                "column.not_found": "The column does not exist.",
            },
        ),
        (
            "capacity",
            True,
            {
                "capacity.too_many_connections": "The server has no connection left for this account.",
                "capacity.pool_exhausted": "All connections of this connector's pool are busy.",
                "capacity.rate_limited": "The server asks for fewer requests.",
                "capacity.overloaded": "The server or the agent is overloaded.",
                "capacity.warehouse_suspended": "The warehouse is suspended.",
            },
        ),
        ("capacity", False, {"capacity.quota_exceeded": "A quota or budget is used up."}),
        (
            "timeout",
            True,
            {
                "timeout.connect": "Signing in took too long.",
                "timeout.statement": "The statement ran into its time limit.",
                "timeout.lock": "The statement waited too long for a lock.",
                "timeout.total": "The request ran into its time limit.",
            },
        ),
        (
            "transient",
            True,
            {
                "transient.starting": "The server is starting up or shutting down.",
                "transient.failover": "The server ended the session (restart or failover).",
                "transient.replica_conflict": "The replica cancelled the statement to apply changes.",
                "transient.deadlock": "The server ended the statement to resolve a deadlock.",
                "transient.serialization": "The transaction conflicted with another one.",
                "transient.backend": "The server reported an internal, temporary failure.",
            },
        ),
        (
            "read",
            True,
            {
                "read.cursor_lost": "The server lost the open result.",
                "read.snapshot_too_old": "The snapshot is no longer available.",
                "read.partial_results": "The server returned only part of the result.",
                "read.stalled": "No row arrived for too long.",
                "read.repeated_page": "The source returned the same page again.",
            },
        ),
        (
            "read",
            False,
            {
                "read.limit_exceeded": "A size or row limit was reached.",
                "read.data_invalid": "The source's data cannot be represented.",
                "read.corrupt": "The source reported corrupted data.",
            },
        ),
        (
            "state",
            False,
            {
                "incremental.no_watermark": "No watermark column is set or found.",
                "incremental.type_changed": "The watermark column changed its type.",
                "incremental.regressed": "The source is behind the last watermark (restored?).",
                "incremental.null_values": "The watermark column has NULLs.",
                "incremental.history_lost": "The source no longer keeps the needed history.",
                "incremental.boundary_overflow": "Too many rows share the boundary value.",
                "schema.drift_blocked": "The source's schema changed in a way the policy does not allow.",
                "schema.type_conflict": "A column's type no longer fits the destination.",
            },
        ),
        (
            "lakehouse",
            False,
            {
                "lakehouse.damaged": "A dataset's table is damaged before the last state known to be safe.",
                "lakehouse.null_key": "A row to be merged has no value in its key.",
                "lakehouse.shrink_held": "A full run brought far fewer rows than the dataset has; it was held back.",
                "lakehouse.foreign": "The directory holds something that is not this dataset's table.",
            },
        ),
        (
            "lakehouse",
            True,
            {
                "lakehouse.busy": "Another process is writing to the dataset's table.",
                "lakehouse.conflict": "The dataset's table was changed by another writer meanwhile.",
            },
        ),
        (
            "query",
            False,
            {
                "query.syntax": "The statement is not valid in this dialect.",
                "query.failed": "The server rejected the statement.",
                "query.not_found": "No open result of that id in this session.",
                "guard.write_blocked": "Only reading statements are allowed.",
                "guard.multi_statement": "Only one statement at a time is allowed.",
                "guard.cost_limit": "The statement would cost more than allowed.",
            },
        ),
        (
            "vault",
            False,
            {
                "credential.unreadable": "A stored secret cannot be opened with the present key.",
                "credential.key_missing": "The vault is locked: its key is not available.",
                "credential.reference": "A secret reference (env:, file:, ...) cannot be resolved.",
            },
        ),
        (
            "request",
            False,
            {
                "request.invalid_params": "The parameters do not fit the method.",
                "request.not_initialized": "`initialize` must come first.",
                "request.unknown_method": "There is no such method.",
                "request.too_large": "The message is larger than the limit.",
                "request.malformed": "The message could not be decoded.",
                "access.denied": "This client may not call that method.",
                "connector.not_found": "No connector of that id or name.",
                "connector.name_taken": "Another connector has that name.",
                "connector.not_queryable": "This connector type cannot back a query or dataset.",
                "connector.conflict": "The connector was changed by somebody else meanwhile.",
                "unsupported": "This connector type cannot do that.",
            },
        ),
        (
            "system",
            False,
            {
                "internal.bug": "A defect in hfagent; the log has the details under the reference.",
                "internal.driver": "The driver failed in an unexpected way.",
                "internal.store": "The agent's own store failed.",
            },
        ),
        (
            "control",
            True,
            {
                "agent.offline": "The agent cannot be reached.",
                "agent.draining": "The agent is shutting down.",
                "agent.disk_full": "The agent's disk is full.",
            },
        ),
        ("control", False, {"cancelled": "The request was cancelled."}),
    ]
    return {code: ErrorCode(code, blame, retry, text) for blame, retry, codes in rows for code, text in codes.items()}


CODES: Final[dict[str, ErrorCode]] = _table()

MAX_MESSAGE: Final = 500
"""Longest message or native text, in characters (promise P113)."""


class AgentError(Exception):
    """Base of all errors that reach a user.

    `code` must stand in `CODES`; `hint` is the next step; `stage` names the step of a connection test that failed;
    `retryable` defaults to the code's own; `retry_after` is in seconds; `native` holds what the server said
    (`{"sqlstate" | "number" | "http_status": ..., "text": ...}`). All texts are redacted here.
    """

    default_code = "internal.bug"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        stage: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        native: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        self.code = code or self.default_code
        entry = CODES[self.code]
        self.message = _short(redact(message))
        self.hint = _short(redact(hint)) if hint else None
        self.stage = stage
        self.retryable = entry.retryable if retryable is None else retryable
        self.retry_after = retry_after
        self.native = (
            {k: _short(v) if isinstance(v, str) else v for k, v in redact_tree(native).items()} if native else None
        )
        self.data = redact_tree(data) if data else None
        super().__init__(self.message)

    def to_data(self) -> dict[str, Any]:
        """Return the JSON-RPC `error.data` object: `{code, message, hint?, stage?, retryable, retry_after?, native?}`."""
        data: dict[str, Any] = {"code": self.code, "message": self.message, "retryable": self.retryable}
        for name in ("hint", "stage", "retry_after", "native"):
            value = getattr(self, name)
            if value is not None:
                data[name] = value
        return {**(self.data or {}), **data}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> AgentError:
        """Rebuild an error from `to_data()`; an unknown code (a newer peer) becomes `internal.bug` and keeps its text."""
        code = data.get("code")
        return cls(
            str(data.get("message", "the agent reported an error")),
            code=code if code in CODES else "internal.bug",
            hint=data.get("hint"),
            stage=data.get("stage"),
            retryable=data.get("retryable"),
            retry_after=data.get("retry_after"),
            native=data.get("native"),
            data={key: value for key, value in data.items() if key not in _WIRE_KEYS} or None,
        )

    def __str__(self) -> str:
        return self.message


_WIRE_KEYS: Final = frozenset({"code", "message", "hint", "stage", "retryable", "retry_after", "native"})


class UserError(AgentError):
    """The caller can mend it: input, configuration, permission, name."""

    default_code = "request.invalid_params"


class ConfigError(UserError):
    """A configuration is wrong. `field` (in `data`) names the culprit when there is one."""

    default_code = "config.invalid"

    def __init__(self, message: str, *, field: str | None = None, **kwargs: Any) -> None:
        data = dict(kwargs.pop("data", None) or {})
        if field is not None:
            data["field"] = field
        super().__init__(message, data=data or None, **kwargs)
        self.field = field


class NotFound(UserError):
    """The named thing does not exist."""

    default_code = "connector.not_found"


class Conflict(UserError):
    """The named thing exists already, or changed meanwhile."""

    default_code = "connector.conflict"


class AccessDenied(UserError):
    """The caller may not do that."""

    default_code = "access.denied"


class SourceError(AgentError):
    """The remote system rejected the work, failed or did not answer."""

    default_code = "query.failed"


class Cancelled(AgentError):
    """The work stopped because the caller asked for it."""

    default_code = "cancelled"

    def __init__(self, message: str = "the request was cancelled", **kwargs: Any) -> None:
        super().__init__(message, **kwargs)


class InternalError(AgentError):
    """A defect of ours. The user gets a reference; the log has the trace under it."""

    default_code = "internal.bug"


def _short(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"
