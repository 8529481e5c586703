"""`hfagent demo`: the main job end to end on this machine, with a private agent and sample data that hfagent carries.

Starts a daemon on a temporary data directory, creates connectors (the sample files; with `--postgres` a real PostgreSQL,
read only), tests them, discovers their streams, queries and exports. Leaves nothing behind unless `--keep`.

With `--json` the last line of stdout is one JSON object; what happens meanwhile is told on stderr. The exit code is 0 only
when everything worked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from rich.table import Table
from rich.text import Text

from hfagent.cli.app import App, Commands
from hfagent.cli.output import clean
from hfagent.client.sync import SyncClient
from hfagent.foundation.errors import AgentError, ConfigError
from hfagent.foundation.paths import AgentPaths
from hfagent.model.query import QueryPage
from hfagent.model.stream import StreamPage
from hfagent.protocol import agent as a
from hfagent.protocol import connectors as c
from hfagent.protocol import query as q

__all__ = ["register"]

T = TypeVar("T")

_JOIN = """
SELECT c.country, count(DISTINCT o.order_id) AS orders, sum(i.quantity * i.unit_price) AS revenue
FROM orders o JOIN customers c USING (customer_id) JOIN order_items i USING (order_id)
GROUP BY c.country ORDER BY revenue DESC LIMIT 5
""".strip()


def register(commands: Commands) -> None:
    """Add the command."""
    verb = commands.verb("demo", "Show the main job end to end on sample data, then clean up.", _demo)
    verb.add_argument(
        "--postgres", metavar="URL", default=os.environ.get("HFAGENT_DEMO_POSTGRES"),
        help="A PostgreSQL to look into, read only: postgresql://user:password@host:port/database "
        "(or HFAGENT_DEMO_POSTGRES, which keeps the password out of the process list).",
    )  # fmt: skip
    verb.add_argument("--keep", action="store_true", help="Leave the agent running and its directory in place.")


def _demo(app: App, args: argparse.Namespace) -> int:
    directory = Path(tempfile.mkdtemp(prefix="hfagent-demo-"))
    demo = _Demo(app, directory)
    try:
        demo.start()
        demo.files()
        if args.postgres:
            demo.postgres(args.postgres)
        demo.result["ok"] = all(test["ok"] for test in demo.result["tests"])
    except AgentError as exc:
        demo.result["error"] = exc.to_data()
        app.output.as_json = False  # the error is told on stderr; the JSON object comes last
        app.output.error(exc)
        app.output.as_json = args.json
    finally:
        demo.stop(keep=args.keep)
        if args.json:
            app.output.line(json.dumps(demo.result, ensure_ascii=False, default=str))
    return 0 if demo.result["ok"] else 1


class _Demo:
    """One run: does the steps, tells about them, collects the result."""

    def __init__(self, app: App, directory: Path) -> None:
        self._app = app
        self._err = app.output.err
        self._directory = directory
        self._paths = AgentPaths(data_dir=str(directory / "agent"))
        self._client: SyncClient | None = None
        self.result: dict[str, Any] = {
            "ok": False,
            "connectors": [],
            "tests": [],
            "models": [],
            "queries": [],
            "exports": [],
        }

    # --- steps ---

    def start(self) -> None:
        """Write the samples and start an agent that may read them."""
        from hfagent.samples.generate import write_samples

        samples = self._directory / "samples"
        samples.mkdir()
        files = self._step(
            "Write sample data", lambda: write_samples(samples), lambda f: f"{len(f)} files in {samples}"
        )
        self.result["samples"] = [file.name for file in files]
        agent = self._directory / "agent"
        agent.mkdir(mode=0o700)
        (agent / "config.toml").write_text(
            f"[policy]\nallowed_paths = [{json.dumps(str(samples))}]\n", encoding="utf-8"
        )
        self._client = self._step(
            "Start an agent",
            lambda: SyncClient.connect(self._paths, start=True, client="hfagent demo"),
            lambda client: f"pid {client.hello['pid']}, socket {self._paths.socket}",
        )

    def files(self) -> None:
        """The sample files: test, streams, a join across files, an export."""
        name = "shop files"
        self._connector(name, "csv", {"path": str(self._directory / "samples")})
        streams = self._discover(name)
        self._query(name, _JOIN, "Revenue by country, joined across three files")
        target = self._directory / "orders.parquet"
        report = self._step(
            "Export the orders to Parquet",
            lambda: self._agent.call(
                q.EXPORT, q.ExportParams(connector=name, sql="SELECT * FROM orders", path=str(target))
            ),
            lambda r: f"{r.rows:,} rows, {r.bytes / 1024:,.0f} KiB",
        )
        self.result["exports"].append(report.model_dump(mode="json"))
        self.result["models"].append({"connector": name, **_models(streams)})

    def postgres(self, url: str) -> None:
        """A real PostgreSQL: test, streams, rows of its largest readable table, the plan, an export."""
        name = "postgres"
        self._connector(name, "postgresql", _postgres_config(url))
        page = self._discover(name)
        self.result["models"].append({"connector": name, **_models(page)})
        tables = [
            s
            for s in page.streams
            if s.readable != "no" and s.columns and s.kind in ("table", "view", "materialized_view")
        ]
        largest = max(tables, key=lambda s: s.row_estimate or 0, default=None)
        if largest is None:
            sql = "SELECT current_database() AS database, current_user AS account, version() AS server"
            self._query(name, sql, "No table is readable here, so: who are we?")
            return
        relation = ".".join(
            '"' + part.replace('"', '""') + '"' for part in (largest.namespace or "public", largest.name)
        )
        self._query(name, f"SELECT * FROM {relation} LIMIT 5", f"First rows of {largest.id}")
        target = self._directory / "postgres.csv"
        report = self._step(
            f"Export {largest.id} to CSV",
            lambda: self._agent.call(
                q.EXPORT,
                q.ExportParams(connector=name, sql=f"SELECT * FROM {relation}", path=str(target), max_rows=1_000_000),
            ),
            lambda r: f"{r.rows:,} rows, {r.bytes / 1024:,.0f} KiB",
        )
        self.result["exports"].append(report.model_dump(mode="json"))

    def stop(self, *, keep: bool) -> None:
        """End the agent and remove everything, or say where it is."""
        if keep:
            if self._client is not None:
                self._client.close()
            self._app.output.say("")
            self._app.output.say(
                f"The agent keeps running. Try: hfagent status --data-dir {self._paths.data_dir}", "bold"
            )
            self._app.output.say(
                f"To end it: hfagent stop --data-dir {self._paths.data_dir} && rm -r {self._directory}"
            )
            self.result["data_dir"] = str(self._paths.data_dir)
            return
        if self._client is not None:
            try:
                self._client.call(a.SHUTDOWN, a.ShutdownParams(drain_s=2))
            except AgentError as exc:
                self._app.output.say(f"the agent did not stop by itself: {exc}", "yellow")
            self._client.close()
            deadline = time.monotonic() + 10
            while self._paths.socket.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
        shutil.rmtree(self._directory, ignore_errors=True)

    # --- pieces of a step ---

    @property
    def _agent(self) -> SyncClient:
        assert self._client is not None
        return self._client

    def _step(self, title: str, work: Callable[[], T], summary: Callable[[T], str]) -> T:
        """Do one thing, show that it is being done, then what came out."""
        started = time.perf_counter()
        try:
            if self._err.is_terminal and not self._app.output.quiet:
                with self._err.status(Text(title + " …"), spinner="dots"):
                    outcome = work()
            else:
                outcome = work()
        except BaseException:
            self._line("failed", title, "", started)
            raise
        self._line("ok", title, summary(outcome), started)
        return outcome

    def _line(self, status: str, title: str, summary: str, started: float) -> None:
        took = f"{(time.perf_counter() - started) * 1000:>7.0f} ms"
        mark = self._app.output.mark(status)
        self._app.output.say(
            Text.assemble(
                mark, " ", (took, "bright_black"), "  ", (title, "bold"), ("  " + clean(summary), "bright_black")
            )
        )

    def _connector(self, name: str, kind: str, config: dict[str, Any]) -> None:
        created = self._step(
            f"Create the connector {name!r}",
            lambda: self._agent.call(c.CREATE, c.CreateParams(name=name, type=kind, config=config)),
            lambda x: f"type {x.type}, secrets {'sealed' if 'password' in config else 'none'}",
        )
        self.result["connectors"].append({"id": created.id, "name": created.name, "type": created.type})
        report = self._step(
            "Test it",
            lambda: self._agent.call(c.TEST, c.TestParams(connector=name)),
            lambda r: (
                ", ".join(s.stage for s in r.stages if s.status in ("passed", "warning"))
                + f" — first connection {r.latency_ms:.0f} ms"
            ),
        )
        self.result["tests"].append({"connector": name, **report.model_dump(mode="json", exclude_none=True)})
        for stage in report.stages:
            if stage.status == "warning":
                self._app.output.say(
                    Text.assemble("             ", self._app.output.mark("warning"), " ", clean(stage.message or ""))
                )
        if not report.ok and report.error is not None:
            raise AgentError(
                f"the test of {name!r} failed at {report.error.stage}: {report.error.message}",
                code=report.error.code, hint=report.error.hint,
            )  # fmt: skip

    def _discover(self, name: str) -> StreamPage:
        return self._step(
            "Discover its streams",
            lambda: self._agent.call(c.MODELS, c.ModelsParams(connector=name, page_size=500)),
            lambda p: (
                f"{p.total} streams: {', '.join(s.name for s in p.streams[:6])}{' …' if (p.total or 0) > 6 else ''}"
            ),
        )

    def _query(self, name: str, sql: str, title: str) -> None:
        page = self._step(
            title,
            lambda: self._agent.call(q.EXECUTE, q.ExecuteParams(connector=name, sql=sql, page_size=100, max_rows=100)),
            lambda p: f"{p.row_count} rows",
        )
        answer = {
            "connector": name,
            "sql": sql,
            "columns": [{"name": x.name, "type": str(x.type)} for x in page.columns],
            "rows": page.rows,
            "row_count": page.row_count,
        }
        self.result["queries"].append(answer)
        self.result["query"] = answer
        if not self._app.output.as_json and not self._app.output.quiet:
            self._show(page)

    def _show(self, page: QueryPage) -> None:
        shown = page.columns[:8]
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in shown:
            numeric = column.type.kind.startswith(("int", "decimal", "float", "uint"))
            table.add_column(
                Text(clean(column.name)), justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis"
            )
        for row in page.rows or []:
            table.add_row(
                *(
                    Text("NULL", style="bright_black") if v is None else Text(clean(str(v)), overflow="ellipsis")
                    for v in row[:8]
                )
            )
        self._err.print()
        self._err.print(table)
        self._err.print()


def _models(page: StreamPage) -> dict[str, Any]:
    return {
        "count": page.total,
        "streams": [
            {"id": s.id, "kind": s.kind, "columns": len(s.columns), "row_estimate": s.row_estimate}
            for s in page.streams[:50]
        ],
    }


def _postgres_config(url: str) -> dict[str, Any]:
    """Take a URL apart into the connector's fields. Raises `ConfigError`; the message does not repeat the URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres") or not parts.path.strip("/"):
        raise ConfigError(
            "--postgres does not look like postgresql://user:password@host:port/database",
            hint="percent-encode special characters in user name and password",
        )
    try:
        port = parts.port
    except ValueError as exc:
        raise ConfigError("--postgres: the port is not a number") from exc
    config: dict[str, Any] = {
        "host": parts.hostname or "localhost",
        "port": port or 5432,
        "database": unquote(parts.path.strip("/")),
        "username": unquote(parts.username or os.environ.get("USER", "postgres")),
    }
    if parts.password:
        config["password"] = unquote(parts.password)
    for key, value in parse_qsl(parts.query):
        config[key] = value  # checked by the connector's own schema
    return config
