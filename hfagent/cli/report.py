"""How a test report looks: a line per stage, the hint under what failed, the verdict at the end."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from hfagent.cli.output import Output, clean
from hfagent.model.report import CheckReport

__all__ = ["show_report"]


def show_report(output: Output, report: CheckReport) -> None:
    """Print a test report: a line per stage, the hint under what failed."""
    for stage in report.stages:
        if stage.status == "skipped" and (stage.message or "").startswith(
            ("not reached", "not part", "does not apply")
        ):
            continue
        name = Text(f"{stage.stage:<12}", style="bold" if stage.status != "skipped" else "bright_black")
        timing = f"{stage.ms:>8.1f} ms  " if stage.status != "skipped" else " " * 13
        line = Text.assemble(
            output.mark(stage.status),
            " ",
            name,
            (timing, "bright_black"),
            clean(stage.message or _facts(stage.details)),
        )
        output.out.print(line)
        if stage.hint and stage.status in ("failed", "warning"):
            output.out.print(Text.assemble("                            ", ("try: ", "bold"), clean(stage.hint)))
    if report.ok:
        note = f", {len(report.warnings)} warning{'s' if len(report.warnings) != 1 else ''}" if report.warnings else ""
        output.out.print(
            Text(f"passed: first connection {report.latency_ms:.0f} ms{_rtt(report)}{note}", style="bold green")
        )
    elif report.error is not None:
        output.out.print(Text(f"failed at {report.error.stage}: {clean(report.error.message)}", style="bold red"))
        output.out.print(Text(f"({report.error.code})", style="bright_black"))


def _rtt(report: CheckReport) -> str:
    return f", round trip {report.rtt_ms:.1f} ms" if report.rtt_ms is not None else ""


def _facts(details: dict[str, Any]) -> str:
    shown = {
        key: value for key, value in details.items() if isinstance(value, str | int | float | bool) and value != ""
    }
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in list(shown.items())[:5])
