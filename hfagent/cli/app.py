"""What every command gets: the options that all share, a connection on demand, ways to ask and to print.

Also `Commands`, the small registry that the command files add their parsers to.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rich.text import Text

from hfagent.cli.output import Output, clean
from hfagent.foundation.paths import AgentPaths

if TYPE_CHECKING:
    from hfagent.client.sync import SyncClient
    from hfagent.model.value import Value
    from hfagent.protocol.method import Method, Params

    P = TypeVar("P", bound=Params)
    R = TypeVar("R", bound=Value)

__all__ = ["App", "Commands", "Group", "Run"]

Run = Callable[["App", argparse.Namespace], int]


class App:
    """One run of the command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.output = Output(as_json=args.json, color=False if args.no_color else None, quiet=args.quiet)
        self.paths = AgentPaths(data_dir=args.data_dir, socket=args.socket, config_file=args.config)
        self._client: SyncClient | None = None

    @property
    def client(self) -> SyncClient:
        """The connection to the agent, made (and the agent started) on first use."""
        if self._client is None:
            from hfagent.client.sync import SyncClient

            self._client = SyncClient.connect(self.paths, start=not self.args.no_start, client="hfagent cli")
            if self._client.skew:
                self.output.say(self._client.skew, "yellow")
        return self._client

    def call(
        self,
        method: Method[P, R],
        params: P,
        *,
        spinner: str = "",
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> R:
        """Call a method. With `spinner`, its progress is shown live on a terminal."""
        client = self.client
        if on_progress is not None:
            return client.call(method, params, progress=on_progress)
        if not spinner or not self.output.err.is_terminal or self.output.as_json or self.output.quiet:
            return client.call(method, params)
        with self.output.err.status(Text(spinner + " …"), spinner="dots") as status:

            def show(value: dict[str, Any]) -> None:
                message = value.get("message") or value.get("title") or ""
                status.update(Text.assemble(spinner, " ", (clean(message), "bright_black")))

            return client.call(method, params, progress=show)

    def done(self, result: Value, sentence: str) -> None:
        """Report a change: the result as JSON, or a sentence."""
        if self.output.as_json:
            self.output.json(result)
        else:
            self.output.say(sentence, "green")

    def prompt(self, question: str) -> str:
        """Ask for a line until one is given."""
        while True:
            sys.stderr.write(f"{question}: ")
            sys.stderr.flush()
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            if line.strip():
                return line.strip()

    def prompt_secret(self, question: str) -> str:
        """Ask for a secret without echo; from a pipe, read one line."""
        if sys.stdin.isatty():
            return getpass.getpass(f"{question}: ", stream=sys.stderr)
        return sys.stdin.readline().rstrip("\n")

    def confirm(self, question: str) -> bool:
        """Ask a yes-or-no question; no is the default."""
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def close(self) -> None:
        """Say good-bye to the agent."""
        if self._client is not None:
            self._client.close()


class _Parser(argparse.ArgumentParser):
    """Verbs with open options have no `--help` of their own (it belongs to the type): help wins over a complaint."""

    def error(self, message: str) -> NoReturn:
        if {"-h", "--help"} & set(sys.argv):
            self.print_help()
            self.exit(0)
        super().error(message)


class Commands:
    """Adds commands to the parser. A verb's function is kept in the parsed arguments."""

    def __init__(self, parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
        self._common = common
        self._subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True, parser_class=_Parser)

    def verb(self, name: str, title: str, run: Run, **options: Any) -> argparse.ArgumentParser:
        """Add a command. `open_options`: unknown options are kept in `args.rest` for a second parser."""
        return _add(self._subparsers, self._common, name, title, run, **options)

    def group(self, name: str, title: str, *, aliases: tuple[str, ...] = ()) -> Group:
        """Add a command that has verbs of its own."""
        parser = self._subparsers.add_parser(name, help=title, description=title, aliases=aliases, allow_abbrev=False)
        return Group(parser, self._common)


class Group:
    """A command with verbs."""

    def __init__(self, parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
        self._common = common
        self._subparsers = parser.add_subparsers(metavar="VERB", dest="verb", required=True, parser_class=_Parser)

    def verb(self, name: str, title: str, run: Run, **options: Any) -> argparse.ArgumentParser:
        """Add a verb."""
        return _add(self._subparsers, self._common, name, title, run, **options)


def _add(
    subparsers: Any,
    common: argparse.ArgumentParser,
    name: str,
    title: str,
    run: Run,
    *,
    aliases: tuple[str, ...] = (),
    open_options: bool = False,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=title.rstrip("."), description=title, aliases=aliases, parents=[common], epilog=epilog,
        allow_abbrev=False, add_help=not open_options,
    )  # fmt: skip
    if open_options:
        parser.set_defaults(rest=[])
    parser.set_defaults(run=run, parser=parser, open_options=open_options)
    return parser
