"""`hfagent`: parses, runs the command, turns errors into a sentence, a next step and an exit code.

Exit codes: 0 done; 1 it did not work (failed test, error of agent or source); 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys

from hfagent import __version__
from hfagent.foundation.errors import AgentError

__all__ = ["build_parser", "main"]


def main(words: list[str]) -> int:
    """Run a command line and return its exit code."""
    parser = build_parser()
    args, rest = parser.parse_known_args(words)
    if rest:
        if not getattr(args, "open_options", False):
            args.parser.error(f"unknown argument {rest[0]!r}") if hasattr(args, "parser") else parser.error(rest[0])
        args.rest = rest
    elif getattr(args, "open_options", False) and {"-h", "--help"} & set(words):
        args.rest = ["--help"]
    from hfagent.cli.app import App

    app = App(args)
    try:
        return int(args.run(app, args))
    except AgentError as exc:
        app.output.error(exc)
        return 1
    except (KeyboardInterrupt, EOFError):
        app.output.say("\nInterrupted.", "yellow")
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`): no error, but Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        app.close()


def build_parser() -> argparse.ArgumentParser:
    """Build the whole parser. Also what shell completion and the documentation are made from."""
    from hfagent.cli.app import Commands
    from hfagent.cli.commands import agent, call, completion, connector, demo, query, serve, vault

    parser = argparse.ArgumentParser(
        prog="hfagent",
        description="A data agent that runs beside the data: one daemon per machine, connection pools, sealed credentials.",
        epilog="Every method of the agent: hfagent call METHOD. Help on a command: hfagent COMMAND --help.",
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"hfagent {__version__}")
    common = _common()
    commands = Commands(parser, common)
    for module in (connector, query, vault, agent, call, serve, demo, completion):
        module.register(commands)
    return parser


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = common.add_argument_group("common options")
    group.add_argument("--json", action="store_true", help="Print JSON.")
    group.add_argument(
        "--data-dir", metavar="PATH", help="The agent's data directory (default: HFAGENT_DATA_DIR or the user's)."
    )
    group.add_argument(
        "--socket", metavar="PATH", help="The agent's socket (default: HFAGENT_SOCK or by the data directory)."
    )
    group.add_argument("--config", metavar="PATH", help="The agent's configuration file.")
    group.add_argument("--no-start", action="store_true", help="Do not start an agent when none runs.")
    group.add_argument("--no-color", action="store_true", help="No colours (also: NO_COLOR).")
    group.add_argument("-q", "--quiet", action="store_true", help="Only data and errors.")
    return common
