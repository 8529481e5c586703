"""What a connection test found (connector specification §0.3)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hfagent.model.value import Value

__all__ = ["STAGES", "CheckReport", "ErrorInfo", "StageResult"]

STAGES: tuple[str, ...] = (
    "config", "secrets", "tunnel", "dns", "tcp", "tls", "auth", "ping", "server", "namespace", "permission", "safety",
    "capacity", "incremental",
)  # fmt: skip


class ErrorInfo(Value):
    """An error as clients see it: the JSON-RPC `error.data` object."""

    code: str
    message: str
    hint: str | None = None
    stage: str | None = None
    retryable: bool = False
    retry_after: float | None = None
    native: dict[str, Any] | None = None
    field: str | None = None


class StageResult(Value):
    """One step of a test."""

    stage: str
    status: Literal["passed", "failed", "warning", "skipped"]
    ms: float = Field(0, description="Duration in milliseconds.")
    code: str | None = None
    message: str | None = None
    hint: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)


class CheckReport(Value):
    """The outcome of a test: `ok` when no stage failed."""

    ok: bool
    latency_ms: float = Field(
        description="Wall time of tunnel to ping: what a first connection costs, in milliseconds."
    )
    rtt_ms: float | None = Field(None, description="Median of three warm round trips, in milliseconds.")
    error: ErrorInfo | None = None
    stages: tuple[StageResult, ...] = ()
    warnings: tuple[str, ...] = ()
    server: dict[str, Any] = Field(default_factory=dict, description="Product, version, role and the like.")
    mode: Literal["quick", "standard", "deep"] = "standard"
    test_id: str | None = None
    connector_id: str | None = None
    tested_at: str | None = None
