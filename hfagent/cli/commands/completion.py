"""`hfagent completion SHELL`: completion scripts made from the parser itself."""

from __future__ import annotations

import argparse

from hfagent.cli.app import App, Commands

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add the command."""
    verb = commands.verb(
        "completion", "Print a completion script for your shell.", _completion,
        epilog='bash: hfagent completion bash > ~/.local/share/bash-completion/completions/hfagent',
    )  # fmt: skip
    verb.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="Your shell.")


def _completion(app: App, args: argparse.Namespace) -> int:
    import shtab

    from hfagent.cli.main import build_parser

    app.output.line(shtab.complete(build_parser(), args.shell))
    return 0
