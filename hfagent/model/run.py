"""Runs: one execution of a dataset's sync, as history shows it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hfagent.model.report import ErrorInfo
from hfagent.model.value import Value

__all__ = ["Run", "RunStage", "RunStatus", "Trigger"]

RunStatus = Literal["running", "succeeded", "failed", "cancelled", "skipped"]
Trigger = Literal["schedule", "manual", "bootstrap"]


class RunStage(Value):
    """One step of a run."""

    name: str
    ms: float = Field(description="Duration in milliseconds.")


class Run(Value):
    """One execution: when, why, how many rows, from where to where, and how it ended."""

    id: str = Field(description="Later runs have greater ids.")
    dataset_id: str
    dataset_name: str
    connector_name: str
    mode: Literal["full", "incremental"]
    trigger: Trigger = Field(description="`bootstrap`: the first run, made when the dataset was.")
    status: RunStatus = "running"
    reason: str | None = Field(
        None,
        description="Why it was skipped or stopped: `previous_running`, `agent_down`, `paused`, `blackout`, `source_cap`, "
        "`detached`.",
    )
    no_change: bool = Field(False, description="The source had nothing new; the table was not touched.")
    sequence: int = Field(
        0, ge=0, description="The dataset's commit that this run makes; 0 when it never came to that."
    )
    scheduled_for: str | None = Field(None, description="The moment of the schedule that it belongs to (UTC).")
    started_at: str
    ended_at: str | None = None
    rows_read: int = 0
    rows_written: int = Field(0, description="New rows.")
    rows_merged: int = Field(0, description="Rows that replaced an older version of themselves.")
    rows_deleted: int = 0
    bytes_written: int = 0
    files_rewritten: int = Field(0, description="Data files replaced by a merge.")
    watermark_before: str | None = Field(None, description="Exact text, in the source's precision.")
    watermark_after: str | None = Field(None, description="Exact text, in the source's precision.")
    delta_version: int | None = Field(None, description="Version of the table after the run.")
    stages: tuple[RunStage, ...] = ()
    warnings: tuple[str, ...] = ()
    log_tail: tuple[str, ...] = Field((), description="The last lines of the run's log.")
    error: ErrorInfo | None = None
