"""CSV, TSV, JSON Lines and Excel files on the agent's machine, as streams that can be queried and joined with SQL.

Files are read, never written: each version of a file is copied once, typed and verified, into the agent's private
directory, and statements run on that copy in an engine without access to anything else (`_files_stage`,
`_files_engine`). A file is one stream; a workbook has one per visible sheet. Sub-folders are namespaces.

What it is not: no uploads (datasets do that), no byte-wise tailing of growing files; a changed file is read anew.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hfagent.connectors._files_config import CsvConfig
from hfagent.connectors._files_engine import BAD_ROWS, FileSession, engine_error, table_names
from hfagent.connectors._files_probe import check_capacity, check_heads, check_namespace
from hfagent.connectors._files_source import find_files
from hfagent.connectors._files_stage import Item, Stage, Stager
from hfagent.connectors._files_streams import describe, find_item, items_of, native_type
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, ConfigError, NotFound
from hfagent.model.connector import Category
from hfagent.model.query import QueryPlan
from hfagent.model.stream import Stream
from hfagent.sdk.connector import ConnectorContext
from hfagent.sdk.driver import Driver
from hfagent.sdk.probe import Probe, ProbeFailed
from hfagent.sdk.probe import Stage as ProbeStage
from hfagent.sdk.reading import BatchReader, ReadRequest, SchemaRequest, Statement
from hfagent.sdk.sql import SQLBase, matches

__all__ = ["Csv"]

_CATALOGUE_ITEMS = 200
_CATALOGUE_BYTES = 512 * 1024 * 1024


class Csv(SQLBase[CsvConfig]):
    """Files as streams."""

    title = "CSV and Excel files"
    description = "CSV, TSV, JSON Lines and Excel files of the agent's machine; join them with SQL."
    category: ClassVar[Category] = "file"
    aliases = ("excel", "tsv", "jsonl", "files")
    driver = Driver("duckdb", extra="all")
    dialect = "duckdb"
    placeholder = "?"
    server_enforces_read_only = True
    Config = CsvConfig

    def __init__(self, config: CsvConfig, context: ConnectorContext | None = None) -> None:
        super().__init__(config, context)
        self._lock = threading.Lock()  # guards everything below
        self._stager: Stager | None = None
        self._directory: Path | None = None
        self._sheets: dict[Any, Any] = {}

    # --- connections ---

    def connect(self, deadline: Deadline) -> FileSession:
        """Check that the files are there and may be read; the engine starts with the first statement."""
        assert self.driver is not None
        self.driver.load()
        find_files(self.config, self.context)
        stager, directory = self._private()
        return FileSession(self.config, stager, directory)

    def _private(self) -> tuple[Stager, Path]:
        """The private directory for copies: below the agent's scratch directory, else one that ends with this object."""
        with self._lock:
            if self._stager is None or self._directory is None:
                if self.context.scratch_dir is not None:
                    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in self.context.connector_id)
                    self._directory = self.context.scratch_dir / f"files-{safe}"
                else:
                    made = tempfile.mkdtemp(prefix="hfagent-files-")
                    weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
                    self._directory = Path(made)
                self._stager = Stager(self.config, self.context, self._directory)
            return self._stager, self._directory

    def is_alive(self, connection: FileSession, timeout: float) -> bool:
        return connection.alive()

    def reset(self, connection: FileSession) -> bool:
        return connection.reset()

    def close(self, connection: FileSession) -> None:
        connection.close()

    def abort(self, connection: FileSession) -> None:
        connection.close()

    def cancel(self, connection: FileSession) -> None:
        connection.stop()

    def map_error(self, error: BaseException) -> AgentError:
        if isinstance(error, AgentError):
            return error
        if type(error).__module__.split(".")[0] in ("duckdb", "_duckdb", "pyarrow"):
            return engine_error(error)
        return super().map_error(error)

    # --- streams ---

    def items(self) -> list[Item]:
        """What the configuration names now, within `output_schemas`. Looks at the folder every time."""
        files = find_files(self.config, self.context)
        with self._lock:
            found = items_of(files, self.config, self.context, self._sheets)
        allowed = self.context.output_schemas
        return [item for item in found if not allowed or (item.namespace or "main") in allowed]

    def owned_namespaces(self, connection: FileSession) -> tuple[str, ...]:
        return tuple(sorted({item.namespace for item in self.items() if item.namespace}))

    def read_schema(self, connection: FileSession, request: SchemaRequest) -> Iterator[Stream]:
        """One stream per file or sheet. Columns and types come from the whole content, so reading later cannot fail on it."""
        for item in sorted(self.items(), key=lambda i: (i.namespace or "", i.name)):
            request.cancel.raise_if_cancelled()
            full_name = f"{item.namespace}.{item.name}" if item.namespace else item.name
            if request.namespaces and (item.namespace or "main") not in request.namespaces:
                continue
            if not matches(full_name, request.include, request.exclude):
                continue
            stage: Stage | None = None
            problem = item.problem
            if request.depth != "names" and problem is None:
                try:
                    with self._work(connection, request.cancel) as token:
                        stage = self._private()[0].stage(item, token, request.deadline)
                except AgentError as error:
                    if error.code in ("cancelled", "timeout.statement", "timeout.total", "agent.disk_full"):
                        raise
                    problem = error
                except Exception as error:  # noqa: BLE001  one file that cannot be described must not hide the others
                    problem = self.map_error(error)
            yield describe(item, stage, problem, self.config)

    def read_rows(self, connection: FileSession, stream: Stream, request: ReadRequest) -> BatchReader:
        item = find_item(self.items(), stream.namespace, stream.name)
        if item is None:
            raise NotFound(
                f"there is no file for the stream {stream.id} any more",
                code="model.not_found",
                hint="list the streams again; the file may have been moved or renamed",
            )
        if not stream.columns:  # known by name only: ask the content
            stage = self._private()[0].stage(item, request.cancel, request.deadline)
            stream = describe(item, stage, None, self.config)
        sql, params = self.select(stream, request)
        names = request.columns or tuple(c.name for c in stream.columns if not c.hidden)
        columns = {c.name: c for c in stream.columns}
        statement = Statement(sql, params, max_rows=request.limit, cancel=request.cancel, deadline=request.deadline)
        chosen = tuple(columns[n].model_copy(update={"ordinal": i}) for i, n in enumerate(names, start=1))
        wanted = [((stream.namespace or "", stream.name), item, False)]
        return self._open(connection, sql, params, statement, wanted, columns=chosen, dense=True)

    def cast_bound(self, column: Any, placeholder: str) -> str:
        return f"CAST({placeholder} AS {native_type(column.type)})" if column is not None else placeholder

    # --- statements ---

    def open_result(self, connection: FileSession, sql: str, params: Any, request: Statement) -> BatchReader:
        return self._open(connection, sql, params, request, self._wanted(sql))

    def _wanted(self, sql: str) -> list[tuple[tuple[str, str], Item, bool]]:
        """The streams that a statement names, each under the name it uses."""
        names, catalogue = table_names(sql)
        items = self.items()
        wanted: dict[tuple[str, str], tuple[Item, bool]] = {}
        if (
            catalogue
            and len(items) <= _CATALOGUE_ITEMS
            and sum(i.file.identity.size for i in items) <= _CATALOGUE_BYTES
        ):
            for item in items:
                if item.problem is None:
                    wanted[item.namespace or "", item.name] = (item, False)
        for name in names:
            schema = "" if name.schema.lower() == "main" else name.schema
            found = find_item(items, schema or None, name.name, loose=True)
            bad = False
            if found is None and name.name.lower().endswith(BAD_ROWS):
                found, bad = find_item(items, schema or None, name.name[: -len(BAD_ROWS)], loose=True), True
            if found is not None:
                wanted[schema, name.name] = (found, bad)
        result = [(place, item, bad) for place, (item, bad) in wanted.items()]
        if catalogue:
            stager = self._private()[0]
            result = [w for w in result if w[2] or _has_columns(stager, w[1])]
        return result

    def _open(
        self, connection: FileSession, sql: str, params: Any, request: Statement,
        wanted: list[tuple[tuple[str, str], Item, bool]], *, columns: Any = None, dense: bool = False,
    ) -> BatchReader:  # fmt: skip
        connection.finish()
        limit = self.config.query_timeout_s
        deadline = Deadline(request.deadline.bounded(limit)) if limit else request.deadline
        token = connection.token(request.cancel)
        unhook = request.cancel.on_cancel(token.cancel)
        unhook.__enter__()

        def done() -> None:
            unhook.__exit__(None, None, None)

        try:
            stages = connection.bind(wanted, token, deadline)
            row_bytes = sum(int(s.facts.get("row_bytes", 64)) for s in stages) if dense else 0
            reader = connection.open(
                sql, params, cancel=token, deadline=deadline, max_rows=request.max_rows, first_rows=request.first_rows,
                row_bytes=row_bytes, on_done=done, columns=columns,
            )  # fmt: skip
        except BaseException as exc:
            done()
            if isinstance(exc, AgentError) or not isinstance(exc, Exception):
                raise
            raise self.map_error(exc) from exc
        for stage in stages:
            reader.warnings.extend(w for w in stage.warnings if w not in reader.warnings)
        return reader

    @contextmanager
    def _work(self, connection: FileSession, cancel: CancelToken) -> Iterator[CancelToken]:
        token = connection.token(cancel)
        with cancel.on_cancel(token.cancel):
            yield token

    def explain(self, connection: FileSession, statement: Statement) -> QueryPlan:
        """Return the engine's plan; the statement does not run (its files are prepared, though)."""
        import json

        from hfagent.sdk.guard import check_statement

        guarded = check_statement(statement.text, "duckdb", server_enforces_read_only=True)
        sql = f"EXPLAIN (FORMAT JSON) {guarded.text}"
        with self._open(connection, sql, statement.params, statement, self._wanted(guarded.text)) as reader:
            rows = [row for batch in reader for row in batch.to_pylist()]
        plan = json.loads(rows[0]["explain_value"]) if rows else []
        return QueryPlan(format="json", plan=plan, estimated_rows=_cardinality(plan))

    # --- the test ---

    def test(self, probe: Probe) -> None:
        """Configuration, engine, files, and the first rows of every file. Opens no socket, leaves nothing open."""
        items: list[Item] = []
        absent: AgentError | None = None
        session: FileSession | None = None
        try:
            with probe.stage("config", map_error=self.map_error) as stage:
                stage.details |= {"type": self.type_name, "path": self.config.path}
                try:
                    items = self.items()
                except ConfigError:
                    raise
                except AgentError as error:  # whether the files are there is the question of a later stage
                    absent = error
            probe.skip("secrets", "files need no secrets")
            for name in ("tunnel", "dns", "tcp", "tls", "auth"):
                probe.skip(name, "files on the agent's own machine: no network, no sign-in")
            session = FileSession(self.config, *self._private())
            with probe.stage("ping", map_error=self.map_error) as stage:
                probe.rtt_ms = stage.details["rtt_ms"] = self._round_trip(session, probe)
            with probe.stage("server", map_error=self.map_error) as stage:
                self.check_server(session, probe, stage)
            if not probe.wants("namespace"):
                if absent is not None:  # a quick test ends here, and must not call absent files good
                    probe.fail("server", absent, ms=0)
                return
            with probe.stage("namespace", map_error=self.map_error) as stage:
                if absent is not None:
                    raise absent
                check_namespace(items, self.config, self.context, stage)
            with probe.stage("permission", map_error=self.map_error) as stage:
                check_heads(items, self.config, self.context, stage, probe)
            with probe.stage("safety", map_error=self.map_error) as stage:
                stage.message = "files are opened for reading only; statements run on private copies, read-only"
            with probe.stage("capacity", map_error=self.map_error) as stage:
                check_capacity(items, self.config, self._private()[1], stage)
            probe.skip("incremental", "no incremental schedule is attached")
        except ProbeFailed:
            return
        finally:
            if session is not None:
                session.close()

    def check_server(self, connection: FileSession, probe: Probe, stage: ProbeStage) -> None:
        version = connection.engine.execute("SELECT version()").fetchone()[0]
        probe.server |= {"product": "DuckDB", "version": version.lstrip("v"), "role": "embedded", "time_zone": "UTC"}
        stage.details |= probe.server


def _has_columns(stager: Stager, item: Item) -> bool:
    """Whether a stream can be a view; what cannot be read is left out of the engine's own catalogue."""
    try:
        return bool(stager.stage(item, CancelToken(), Deadline(None)).columns)
    except AgentError:
        return False


def _cardinality(plan: Any) -> float | None:
    """The engine's estimate of the rows of the topmost operator."""
    node = plan[0] if isinstance(plan, list) and plan else {}
    value = node.get("extra_info", {}).get("Estimated Cardinality") if isinstance(node, dict) else None
    return float(value) if isinstance(value, str) and value.isdigit() else None
