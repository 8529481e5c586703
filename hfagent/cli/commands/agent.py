"""The daemon itself: status, doctor, sessions, stop, restart, reload, logs, socket."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from rich.text import Text

from hfagent.cli.app import App, Commands
from hfagent.cli.output import clean
from hfagent.foundation.errors import AgentError, UserError
from hfagent.protocol import agent as a

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add the commands."""
    commands.verb("status", a.STATUS.title, _status)
    verb = commands.verb("doctor", a.DOCTOR.title, _doctor)
    verb.add_argument("--connectors", action="store_true", help="Test every connector too.")
    commands.verb("sessions", a.SESSIONS.title, _sessions)
    verb = commands.verb("stop", a.SHUTDOWN.title, _stop, aliases=("shutdown",))
    verb.add_argument("--drain", type=float, default=10, metavar="S", help="Seconds for running requests (default 10).")
    verb = commands.verb("restart", "Stop the daemon and start it again.", _restart)
    verb.add_argument("--drain", type=float, default=10, metavar="S", help="Seconds for running requests (default 10).")
    commands.verb("reload", a.RELOAD.title, _reload)
    verb = commands.verb("logs", "Show the log of an auto-started daemon.", _logs)
    verb.add_argument("-n", "--lines", type=int, default=50, help="Lines to show (default 50).")
    verb.add_argument("-f", "--follow", action="store_true", help="Go on with new lines.")
    commands.verb(
        "socket", "Print the socket's path, starting the daemon when none runs.", _socket, aliases=("sockname",)
    )


def _status(app: App, args: argparse.Namespace) -> int:
    status = app.call(a.STATUS, a.StatusParams())
    if app.output.as_json:
        app.output.json(status)
        return 0
    by_status = ", ".join(f"{count} {name}" for name, count in status.connectors_by_status.items())
    app.output.pairs(
        [
            ("agent", f"hfagent {status.build}, pid {status.pid}, {status.state}, up {_duration(status.uptime_s)}"),
            ("socket", status.socket),
            ("data", status.data_dir),
            ("configuration", status.config_file or "defaults"),
            ("log", status.log or "stderr / journal"),
            ("vault", status.vault),
            ("connectors", f"{status.connectors}" + (f" ({by_status})" if by_status else "")),
            ("clients", str(status.sessions)),
            ("open", f"{status.open_queries} results, {status.open_connections} connections"),
            ("memory", f"{status.rss_bytes / 2**20:.0f} MiB, {status.threads} threads"),
        ]
    )
    for problem in status.problems:
        _problem(app, problem)
    return 0


def _problem(app: App, problem: dict[str, Any]) -> None:
    app.output.out.print(
        Text.assemble(app.output.mark(problem["status"]), " ", clean(problem["name"]), ": ", clean(problem["message"]))
    )
    if problem.get("hint"):
        app.output.out.print(Text.assemble("  ", ("try: ", "bold"), clean(problem["hint"])))


def _doctor(app: App, args: argparse.Namespace) -> int:
    result = app.call(a.DOCTOR, a.DoctorParams(connectors=args.connectors), spinner="checking")
    if app.output.as_json:
        app.output.json(result)
        return 0 if result.ok else 1
    for check in result.checks:
        app.output.out.print(
            Text.assemble(app.output.mark(check.status), " ", (f"{check.name:<22}", "bold"), clean(check.message))
        )
        if check.hint and check.status in ("warning", "error"):
            app.output.out.print(Text.assemble("                        ", ("try: ", "bold"), clean(check.hint)))
    errors = sum(check.status == "error" for check in result.checks)
    warnings = sum(check.status == "warning" for check in result.checks)
    counts = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((errors, "error"), (warnings, "warning")) if n]
    summary = ", ".join(counts) or "all is well"
    app.output.out.print(Text(summary, style="bold green" if result.ok else "bold red"))
    return 0 if result.ok else 1


def _sessions(app: App, args: argparse.Namespace) -> int:
    sessions = app.call(a.SESSIONS, a.SessionsParams()).sessions
    if app.output.as_json:
        app.output.json(sessions)
    else:
        rows = [
            (s.session, s.client, s.transport, s.pid or "", s.connected_at, s.requests, s.in_flight, s.open_queries)
            for s in sessions
        ]
        app.output.table(("session", "client", "transport", ">pid", "since", ">requests", ">running", ">results"), rows)
    return 0


def _stop(app: App, args: argparse.Namespace) -> int:
    app.args.no_start = True
    try:
        done = app.call(a.SHUTDOWN, a.ShutdownParams(drain_s=args.drain))
    except AgentError as exc:
        if exc.code != "agent.offline":
            raise
        app.output.say("no agent runs")
        return 0
    _wait_gone(app, args.drain + 10)
    app.done(done, "Stopped.")
    return 0


def _wait_gone(app: App, seconds: float) -> None:
    """Wait until the daemon has let go of its socket."""
    app.close()
    deadline = time.monotonic() + seconds
    while app.paths.socket.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if app.paths.socket.exists():
        raise UserError(
            f"the agent did not stop within {seconds:g} s",
            code="timeout.total",
            hint="hfagent logs shows what it waits for",
        )


def _restart(app: App, args: argparse.Namespace) -> int:
    _stop(app, args)
    from hfagent.client.sync import SyncClient

    with SyncClient.connect(app.paths, start=True, client="hfagent cli") as client:
        status = client.call(a.STATUS)
    app.done(status, f"Running, pid {status.pid}.")
    return 0


def _reload(app: App, args: argparse.Namespace) -> int:
    result = app.call(a.RELOAD, a.ReloadParams())
    changed = ", ".join(result.changed) or "nothing changed"
    later = f"; after a restart: {', '.join(result.restart_needed)}" if result.restart_needed else ""
    app.done(result, f"Read again: {changed}{later}.")
    return 0


def _logs(app: App, args: argparse.Namespace) -> int:
    path = app.paths.log_file
    if not path.exists():
        raise UserError(
            f"there is no log at {path}",
            hint="a daemon under systemd logs to the journal: journalctl --user -u hfagent",
        )
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = file.readlines()[-args.lines :]
        for line in lines:
            app.output.line(line.rstrip("\n"))
        while args.follow:
            line = file.readline()
            if line:
                app.output.line(line.rstrip("\n"))
                continue
            if path.exists() and os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:  # noqa: PTH116  rotated
                return _logs(app, argparse.Namespace(lines=1000, follow=True))
            time.sleep(0.25)
    return 0


def _socket(app: App, args: argparse.Namespace) -> int:
    app.client.request("agent/status", {})
    app.output.line(str(app.paths.socket))
    return 0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    shown = [f"{value} {unit}" for value, unit in parts if value]
    return " ".join(shown[:2]) or "0 s"
