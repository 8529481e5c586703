"""`hfagent daemon`, and the forwarder `hfagent rpc` (which `__main__` starts before any of this is imported)."""

from __future__ import annotations

import argparse

from hfagent.cli.app import App, Commands

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add the commands."""
    verb = commands.verb("daemon", "Run the daemon in the foreground (what systemd starts).", _daemon)
    verb.add_argument("--tcp-port", type=int, metavar="N", help="Listen on loopback TCP too (0 = any free port).")
    verb.add_argument(
        "--idle-timeout", type=float, metavar="S", help="Exit after so many seconds without clients; 0 = never."
    )
    verb.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), help="Least severe level that is logged."
    )
    verb.add_argument("--log-format", choices=("auto", "text", "json", "journal"), help="How log lines look.")
    verb.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    commands.verb("rpc", "Connect stdin and stdout to the daemon (JSON-RPC), starting it when none runs.", _rpc)


def _daemon(app: App, args: argparse.Namespace) -> int:
    from hfagent.daemon import DaemonOptions, run

    flags = {
        "server.tcp_port": args.tcp_port,
        "server.idle_timeout_s": args.idle_timeout,
        "log.level": args.log_level,
        "log.format": args.log_format,
    }
    return run(
        DaemonOptions(app.paths, {name: value for name, value in flags.items() if value is not None}, args.ready_fd)
    )


def _rpc(app: App, args: argparse.Namespace) -> int:
    from hfagent.cli.forward import forward

    return forward(app.paths.arguments())
