"""Runs the stages of a connection test and keeps their results.

    with probe.stage("auth") as stage:
        connection = self.connect(probe.deadline)
        stage.details["method"] = "scram-sha-256"

An `AgentError` inside a block fails that stage, marks the remaining ones as skipped and ends the test (`ProbeFailed`). A
stage that would begin after the deadline fails with `timeout.total`. Cancelling is no finding: it ends the test as `Cancelled`
and leaves no failed stage behind. What goes into the report is redacted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import CODES, AgentError, Cancelled, SourceError
from hfagent.foundation.redaction import redact, redact_tree
from hfagent.model.report import STAGES, CheckReport, ErrorInfo, StageResult

__all__ = ["Mode", "Probe", "ProbeFailed", "Stage"]

Mode = Literal["quick", "standard", "deep"]

_QUICK_END = STAGES.index("server")
_CONNECT = ("tunnel", "dns", "tcp", "tls", "auth", "ping")  # what `latency_ms` adds up


class ProbeFailed(Exception):
    """Ends a test after a failed stage; its error is in the probe."""


class Stage:
    """A running stage: put findings into `details`, call `warn` for what should worry but not fail."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.details: dict[str, Any] = {}
        self.message: str | None = None
        self._warning: tuple[str, str, str | None] | None = None
        self._skip: str | None = None
        self.warnings: list[str] = []

    def warn(self, code: str, message: str, hint: str | None = None) -> None:
        """Give the stage status `warning`. The first warning sets code and hint; all are listed in the report.

        Raises `KeyError` for a code that is not in `CODES`: clients match on it.
        """
        if code not in CODES:
            raise KeyError(code)
        self.warnings.append(redact(message))
        if self._warning is None:
            self._warning = (code, message, hint)

    def skip(self, reason: str) -> None:
        """Give the stage status `skipped`."""
        self._skip = reason


class Probe:
    """One test run. `on_stage` hears each result as it is made (live progress)."""

    def __init__(
        self,
        *,
        mode: Mode = "standard",
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
        on_stage: Callable[[StageResult], None] | None = None,
    ) -> None:
        self.mode: Mode = mode
        self.deadline = deadline or Deadline(15.0 if mode == "quick" else 60.0)
        self.cancel = cancel or CancelToken()
        self.server: dict[str, Any] = {}
        self.rtt_ms: float | None = None
        self.error: AgentError | None = None
        self._results: dict[str, StageResult] = {}
        self._warnings: list[str] = []
        self._on_stage = on_stage

    def wants(self, stage: str) -> bool:
        """Tell whether the mode includes the stage (`quick` ends after `server`)."""
        return self.mode != "quick" or STAGES.index(stage) <= _QUICK_END

    @contextmanager
    def stage(self, name: str, *, map_error: Callable[[BaseException], AgentError] | None = None) -> Iterator[Stage]:
        """Run one stage. Errors go through `map_error` (a connector's) when they are not `AgentError` yet.

        Raises `ProbeFailed`, `Cancelled`, and `ValueError` for a stage that is not in `STAGES`.
        """
        if name not in STAGES:
            raise ValueError(f"no such stage: {name}")
        if self.error is not None:
            raise ProbeFailed
        self.cancel.raise_if_cancelled()
        if self.deadline.expired():
            self.fail(name, self._out_of_time(), ms=0)
            raise ProbeFailed
        stage = Stage(name)
        started = time.perf_counter()
        try:
            yield stage
        except (ProbeFailed, Cancelled):
            raise
        except Exception as exc:
            if self.cancel.cancelled:  # a driver's way to say so
                raise Cancelled() from exc
            error = exc if isinstance(exc, AgentError) else None
            if error is None:
                if map_error is None:
                    raise
                error = map_error(exc)
            self._warnings += stage.warnings
            self.fail(name, error, ms=_ms(started), details=stage.details)
            raise ProbeFailed from exc
        self._finish(stage, _ms(started))

    def fail(self, name: str, error: AgentError, *, ms: float, details: dict[str, Any] | None = None) -> None:
        """Record a failed stage without raising (for errors whose stage is known only afterwards)."""
        error.stage = name
        self.error = error
        self._record(
            StageResult(
                stage=name, status="failed", ms=ms, code=error.code, message=error.message, hint=error.hint,
                details=(details or {}) | (error.data or {}),
            )
        )  # fmt: skip

    def record(self, name: str, *, ms: float = 0, details: dict[str, Any] | None = None) -> None:
        """Record a passed stage that was proven by another one (TCP by a connect, for instance)."""
        if name not in self._results:
            self._record(StageResult(stage=name, status="passed", ms=ms, details=details or {}))

    def skip(self, name: str, reason: str) -> None:
        """Record a stage that does not apply."""
        if name not in self._results:
            self._record(StageResult(stage=name, status="skipped", message=reason))

    def report(self, connector_id: str | None = None) -> CheckReport:
        """Close the test: remaining stages are skipped, the report is complete and in order."""
        for name in STAGES:
            if name not in self._results:
                if self.error is not None:
                    reason = f"not reached: {self.error.stage} failed"
                elif not self.wants(name):
                    reason = "not part of a quick test"
                else:
                    reason = "does not apply"
                self._results[name] = StageResult(stage=name, status="skipped", message=reason)
        ordered = tuple(self._results[name] for name in STAGES)
        return CheckReport(
            ok=self.error is None,
            latency_ms=round(sum(r.ms for r in ordered if r.stage in _CONNECT), 3),
            rtt_ms=self.rtt_ms,
            error=_info(self.error) if self.error else None,
            stages=ordered,
            warnings=tuple(self._warnings),
            server=self.server,
            mode=self.mode,
            connector_id=connector_id,
        )

    def _finish(self, stage: Stage, ms: float) -> None:
        self._warnings += stage.warnings
        if stage._skip is not None:
            result = StageResult(stage=stage.name, status="skipped", ms=ms, message=stage._skip, details=stage.details)
        elif stage._warning is not None:
            code, message, hint = stage._warning
            result = StageResult(
                stage=stage.name, status="warning", ms=ms, code=code, message=message, hint=hint, details=stage.details
            )
        else:
            result = StageResult(stage=stage.name, status="passed", ms=ms, message=stage.message, details=stage.details)
        self._record(result)

    def _out_of_time(self) -> AgentError:
        return SourceError(
            f"the test ran into its time limit of {self.deadline.seconds or 0:g} s",
            code="timeout.total",
            hint="see which stage took long; a quick test looks at less",
        )

    def _record(self, result: StageResult) -> None:
        texts = {"message": result.message, "hint": result.hint}
        shown = {name: redact(text) for name, text in texts.items() if text}
        result = result.model_copy(update={"details": redact_tree(result.details), **shown})
        self._results[result.stage] = result
        if self._on_stage is not None:
            self._on_stage(result)


def _info(error: AgentError) -> ErrorInfo:
    """The error without what only its stage's details carry (the addresses that were tried, for instance)."""
    return ErrorInfo(**{name: value for name, value in error.to_data().items() if name in ErrorInfo.model_fields})


def _ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
