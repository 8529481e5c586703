"""`hfagent query`: run a statement, show its rows, export them."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from hfagent.cli.app import App, Commands
from hfagent.cli.output import clean
from hfagent.foundation.errors import UserError
from hfagent.model.query import QueryPage
from hfagent.protocol import query as q

__all__ = ["register"]

_SHOWN = 100


def register(commands: Commands) -> None:
    """Add `query`."""
    verb = commands.verb("query", q.EXECUTE.title, _query)
    verb.add_argument("connector", help="Id or name.")
    verb.add_argument("sql", nargs="?", help="The statement; left out or -: read from stdin.")
    verb.add_argument("-f", "--file", metavar="PATH", help="Read the statement from a file.")
    verb.add_argument(
        "-p", "--param", action="append", default=[], metavar="VALUE", help="Bound value for the next %%s. Repeatable."
    )
    verb.add_argument("--limit", type=int, default=None, metavar="N", help=f"Rows to show (default {_SHOWN}; 0 = all).")
    verb.add_argument(
        "--format",
        choices=("table", "csv", "tsv", "json", "jsonl"),
        help="Default: table on a terminal, tsv in a pipe.",
    )
    verb.add_argument("--timeout", type=float, metavar="S", help="Seconds the statement may run.")
    verb.add_argument("--explain", action="store_true", help="Show the plan instead of running it.")
    verb.add_argument("-o", "--export", metavar="PATH", help="Write the whole result to PATH (.csv, .parquet, .jsonl).")
    verb.add_argument("--overwrite", action="store_true", help="Replace an existing export.")


def _query(app: App, args: argparse.Namespace) -> int:
    sql = _statement(args)
    if args.explain:
        return _explain(app, args, sql)
    if args.export:
        return _export(app, args, sql)
    style = "json" if app.output.as_json else args.format or ("table" if sys.stdout.isatty() else "tsv")
    limit = args.limit if args.limit is not None else (_SHOWN if style == "table" else 0)
    page = app.call(
        q.EXECUTE,
        q.ExecuteParams(
            connector=args.connector, sql=sql, params=args.param or None, page_size=min(limit, 5000) if limit else 5000,
            max_rows=limit or None, timeout_s=args.timeout, format="rows",
        ),
        spinner="running",
    )  # fmt: skip
    printer = _PRINTERS[style](app, page)
    total = 0
    while True:
        printer.rows(page.rows or [])
        total += page.row_count
        if not page.has_more:
            break
        page = app.call(q.FETCH, q.FetchParams(query_id=page.query_id))
    printer.end(total, truncated=page.truncated)
    for warning in page.warnings:
        app.output.say(warning, "yellow")
    return 0


def _statement(args: argparse.Namespace) -> str:
    if args.file and args.sql:
        raise UserError("the statement is given twice", hint="give it as an argument or with --file")
    if args.file:
        return Path(args.file).read_text(encoding="utf-8")
    if args.sql and args.sql != "-":
        return str(args.sql)
    if sys.stdin.isatty():
        raise UserError("which statement?", hint='hfagent query NAME "select 1"')
    return sys.stdin.read()


def _explain(app: App, args: argparse.Namespace, sql: str) -> int:
    plan = app.call(q.EXPLAIN, q.ExplainParams(connector=args.connector, sql=sql, timeout_s=args.timeout))
    if app.output.as_json:
        app.output.json(plan)
    elif plan.format == "json":
        app.output.line(json.dumps(plan.plan, indent=2, ensure_ascii=False))
    else:
        app.output.line(str(plan.plan))
    return 0


def _export(app: App, args: argparse.Namespace, sql: str) -> int:
    report = app.call(
        q.EXPORT,
        q.ExportParams(
            connector=args.connector, sql=sql, params=args.param or None, path=str(Path(args.export).absolute()),
            max_rows=args.limit or None, timeout_s=args.timeout, overwrite=args.overwrite,
        ),
        spinner="exporting",
    )  # fmt: skip
    app.done(
        report,
        f"Wrote {report.rows:,} rows ({report.bytes:,} bytes) to {report.path} in {report.elapsed_ms / 1000:.1f} s.",
    )
    return 0


class _TablePrinter:
    """Collects the rows (they are limited) and draws one table."""

    def __init__(self, app: App, page: QueryPage) -> None:
        self._app = app
        self._table = Table(box=None, pad_edge=False, header_style="bold")
        for column in page.columns:
            numeric = column.type.kind.startswith(("int", "uint", "float", "decimal", "bigdecimal"))
            self._table.add_column(
                Text(clean(column.name)), justify="right" if numeric else "left", overflow="ellipsis", no_wrap=True
            )

    def rows(self, rows: list[list[Any]]) -> None:
        for row in rows:
            self._table.add_row(*(Text("NULL", style="bright_black") if v is None else Text(_text(v)) for v in row))

    def end(self, total: int, *, truncated: bool) -> None:
        self._app.output.out.print(self._table)
        more = "; more are there: --limit 0 shows all" if truncated else ""
        self._app.output.say(f"{total:,} row{'s' if total != 1 else ''}{more}", "bright_black")


class _SeparatedPrinter:
    def __init__(self, app: App, page: QueryPage, delimiter: str) -> None:
        self._writer = csv.writer(sys.stdout, delimiter=delimiter, lineterminator="\n")
        self._writer.writerow([column.name for column in page.columns])

    def rows(self, rows: list[list[Any]]) -> None:
        self._writer.writerows([["" if v is None else _plain(v) for v in row] for row in rows])

    def end(self, total: int, *, truncated: bool) -> None:
        return


class _JsonLinesPrinter:
    def __init__(self, app: App, page: QueryPage) -> None:
        self._app = app
        self._names = [column.name for column in page.columns]

    def rows(self, rows: list[list[Any]]) -> None:
        for row in rows:
            self._app.output.line(json.dumps(dict(zip(self._names, row, strict=True)), ensure_ascii=False))

    def end(self, total: int, *, truncated: bool) -> None:
        return


class _JsonPrinter:
    """One object with columns and rows."""

    def __init__(self, app: App, page: QueryPage) -> None:
        self._app = app
        self._columns = [
            column.model_dump(mode="json", include={"name", "type", "native_type", "nullable"})
            for column in page.columns
        ]
        self._rows: list[list[Any]] = []

    def rows(self, rows: list[list[Any]]) -> None:
        self._rows += rows

    def end(self, total: int, *, truncated: bool) -> None:
        self._app.output.json(
            {"columns": self._columns, "rows": self._rows, "row_count": total, "truncated": truncated}
        )


_PRINTERS: dict[str, Any] = {
    "table": _TablePrinter,
    "csv": lambda app, page: _SeparatedPrinter(app, page, ","),
    "tsv": lambda app, page: _SeparatedPrinter(app, page, "\t"),
    "json": _JsonPrinter,
    "jsonl": _JsonLinesPrinter,
}


def _text(value: Any) -> str:
    return clean(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else json.dumps(value)
