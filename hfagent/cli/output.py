"""How the command line looks: tables, check marks, errors with their next step. Data goes to stdout, talk to stderr.

Text that comes from a source (names, values, messages) is data: control characters are shown, never sent to the terminal,
and rich's markup is never interpreted in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hfagent.foundation.errors import AgentError

__all__ = ["MARKS", "Output", "clean"]

_PIPE_WIDTH = 500

MARKS = {
    "passed": ("✓", "green"),
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "failed": ("✗", "red"),
    "error": ("✗", "red"),
    "skipped": ("–", "bright_black"),
    "info": ("·", "blue"),
}


def clean(value: object) -> str:
    """Return a value as text that is safe to show: no control characters, no escape sequences."""
    text = "" if value is None else value if isinstance(value, str) else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "↵" if c == "\n" else repr(c)[1:-1] for c in text)


class Output:
    """Prints results (stdout) and everything else (stderr)."""

    def __init__(self, *, as_json: bool = False, color: bool | None = None, quiet: bool = False) -> None:
        no_color = None if color is None else not color
        self.as_json = as_json
        self.quiet = quiet
        # A pipe has no width: columns must not be folded for a screen that is not there.
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        self.out = Console(no_color=no_color, highlight=False, width=width)
        self.err = Console(stderr=True, no_color=no_color, highlight=False)

    @property
    def interactive(self) -> bool:
        """Whether somebody is there to answer a question."""
        return sys.stdin.isatty() and sys.stderr.isatty() and not self.as_json

    def json(self, value: Any) -> None:
        """Print one JSON document."""
        if hasattr(value, "model_dump"):
            value = value.model_dump(mode="json", exclude_none=True)
        elif isinstance(value, list | tuple):
            value = [v.model_dump(mode="json", exclude_none=True) if hasattr(v, "model_dump") else v for v in value]
        self.line(json.dumps(value, ensure_ascii=False, indent=2))

    def line(self, text: str = "") -> None:
        """Print a plain line of data."""
        sys.stdout.write(text + "\n")

    def say(self, text: str | Text, style: str = "") -> None:
        """Tell the user something (stderr)."""
        if not self.quiet:
            self.err.print(text if isinstance(text, Text) else Text(text, style=style))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
        """Print a table. Column names starting with `>` are right-aligned."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", show_edge=False)
        for name in columns:
            right = name.startswith(">")
            table.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=False)
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row))
        self.out.print(table)

    def pairs(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Print names and values, aligned."""
        table = Table(box=None, pad_edge=False, show_header=False, show_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in pairs:
            if value not in (None, "", (), {}, []):
                table.add_row(name, value if isinstance(value, Text) else Text(clean(value)))
        self.out.print(table)

    def mark(self, status: str) -> Text:
        """Return the tick, cross or dash of a status."""
        symbol, style = MARKS.get(status, ("?", ""))
        return Text(symbol, style=style)

    def error(self, error: AgentError) -> None:
        """Print an error: what failed, then what to try. With `--json`, the error object on stdout."""
        if self.as_json:
            self.json({"error": error.to_data()})
            return
        self.err.print(Text.assemble(("Error: ", "bold red"), clean(error.message)))
        native = (error.native or {}).get("text")
        if native and native not in error.message:
            self.err.print(Text(f"       the source said: {clean(native)}", style="bright_black"))
        if error.hint:
            self.err.print(Text.assemble(("Try:   ", "bold"), clean(error.hint)))
        self.err.print(Text(f"       ({error.code})", style="bright_black"))
