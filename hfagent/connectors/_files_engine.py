"""The query engine of file connectors: a private DuckDB, locked down, with one read-only view per stream.

What a statement can reach is decided before it runs: the copies of the files it names (`_files_stage`) are attached
read-only, then access to anything outside is switched off and the settings are locked. No path is allowed, not even the
files themselves: DuckDB's `allowed_paths` would let a statement overwrite what it may read. Each statement runs in a
read-only transaction. So a statement that the guard should have refused finds nothing to do harm to.

A connection is a `FileSession`. Its engine is made when first needed and thrown away by `reset`, with everything a
statement may have left in it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfagent.connectors._files_config import CsvConfig
from hfagent.connectors._files_stage import Item, Stage, Stager, engine_settings
from hfagent.connectors._files_types import quoted, text_literal
from hfagent.connectors._files_watch import Watch
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, SourceError, UserError
from hfagent.sdk.arrow import columns_of, slice_by_bytes
from hfagent.sdk.errormap import ErrorMap, Rule
from hfagent.sdk.reading import MAX_BATCH_ROWS, TARGET_BATCH_BYTES, BatchReader

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BAD_ROWS", "ERRORS", "FileSession", "TableName", "engine_error", "table_names"]

BAD_ROWS = "__bad_rows"
"""Suffix of the view that holds a stream's quarantined rows."""

_VECTOR = 2048
_COALESCE_BYTES = 2 * 1024 * 1024

ERRORS = ErrorMap(
    exact={
        "Parser": Rule("query.syntax"),
        "Catalog table": Rule(
            "model.not_found", "list the connector's streams; a name with capitals or signs goes in double quotes"
        ),
        "Binder column": Rule("column.not_found", "list the stream's columns; names with signs go in double quotes"),
        "Permission": Rule("guard.write_blocked", "statements can only read the connector's own streams"),
        "Out of Memory": Rule("read.limit_exceeded", "raise memory_limit_mb, or ask for less at once"),
        "IO": Rule("internal.driver", "look at the agent's disk; try again"),
        "TransactionContext": Rule("guard.write_blocked", "only reading statements are allowed"),
        "INTERNAL": Rule("internal.driver", "report the statement with the agent's log"),
    },
    prefixes={},
    fallback=Rule("query.failed"),
    key_name="number",
)
_KIND = re.compile(r"^([\w ]+?) Error:\s*")
_CONFIG_LOCKED = re.compile(
    r"Cannot (change configuration|attach|modify)|read-only mode|has been locked|disabled by configuration"
)


def engine_error(error: BaseException) -> AgentError:
    """Translate what the engine raised."""
    text = str(error)
    match = _KIND.match(text)
    kind = match[1] if match else ""
    line = text[match.end() :] if match else text
    if kind == "Catalog" and "Table with name" in line:
        kind = "Catalog table"
    elif kind == "Binder" and ("not found in FROM" in line or "does not have a column" in line):
        kind = "Binder column"
    elif _CONFIG_LOCKED.search(line):
        kind = "Permission"
    return ERRORS.error(kind or None, line)


@dataclass(frozen=True)
class TableName:
    """A table as a statement names it."""

    schema: str
    name: str


def table_names(sql: str) -> tuple[set[TableName], bool]:
    """Return the tables a statement names, and whether it looks at the catalogue itself. Names of CTEs may be among them."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        trees = [tree for tree in sqlglot.parse(sql, read="duckdb") if tree is not None]
    except (SqlglotError, RecursionError):
        return set(), False  # the engine will say what is wrong with it
    names: set[TableName] = set()
    catalogue = False
    for tree in trees:
        if not isinstance(tree, exp.Query):
            catalogue = True  # SHOW, DESCRIBE, SUMMARIZE and the like name tables in their own ways
        for table in tree.find_all(exp.Table):
            if isinstance(table.this, exp.Identifier):
                names.add(TableName(table.db, table.name))
            catalogue = catalogue or table.db.lower() in ("information_schema", "pg_catalog")
            catalogue = catalogue or (isinstance(table.this, exp.Func) and "duckdb_" in table.sql().lower())
    return names, catalogue


class FileSession:
    """One connection: an engine and what is attached to it. Used by one thread at a time, but for `stop` and `close`."""

    def __init__(self, config: CsvConfig, stager: Stager, directory: Path) -> None:
        self._config = config
        self._stager = stager
        self._directory = directory
        self._engine: Any = None
        self._attached: dict[str, tuple[str, Stage]] = {}
        self._views: dict[tuple[str, str], str] = {}
        self._finish: Callable[[], None] | None = None
        self._lock = threading.Lock()  # guards `_current`
        self._current: CancelToken | None = None
        self.closed = False
        self.running: str | None = None
        """The statement that runs or whose result is open."""

    # --- engine ---

    @property
    def engine(self) -> Any:
        """The locked engine, made if there is none."""
        if self.closed:
            raise SourceError("the connection is closed", code="net.reset")
        if self._engine is None:
            self._engine = self._make({})
        return self._engine

    def _make(self, stages: dict[str, tuple[str, Stage]]) -> Any:
        import duckdb

        engine = duckdb.connect(":memory:", config=engine_settings(self._config, self._directory))
        try:
            engine.execute("SET TimeZone = 'UTC'")
            for alias, stage in stages.values():
                engine.execute(f"ATTACH {text_literal(str(stage.path))} AS {quoted(alias)} (READ_ONLY)")
            engine.execute("SET enable_external_access = false")
            engine.execute("SET lock_configuration = true")
        except BaseException:
            engine.close()
            raise
        self._attached = stages
        self._views = {}
        return engine

    def reset(self) -> bool:
        """Forget everything a statement may have left behind."""
        self.finish()
        if self.closed:
            return False
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        return True

    def alive(self) -> bool:
        """Whether the engine answers. Never raises."""
        try:
            return self.closed is False and (
                self._finish is not None or self.engine.execute("SELECT 1").fetchone() == (1,)
            )
        except Exception:  # noqa: BLE001  whatever it is, the connection is not usable
            return False

    def stop(self) -> None:
        """Stop what runs, from another thread."""
        with self._lock:
            current = self._current
        if current is not None:
            current.cancel()

    def finish(self) -> None:
        """Release an open result. Safe to repeat."""
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()

    def close(self) -> None:
        """End the session; a statement that runs in another thread is stopped and cleans up by itself."""
        self.closed = True
        self.stop()
        if self.running is None and self._engine is not None:
            self._engine.close()
            self._engine = None

    # --- streams ---

    def bind(
        self, wanted: Sequence[tuple[tuple[str, str], Item, bool]], cancel: CancelToken, deadline: Deadline
    ) -> list[Stage]:
        """Make streams visible as views: ((schema, name), item, whether its bad rows are meant). Returns their copies."""
        stages: list[Stage] = []
        fresh = dict(self._attached) if self._engine is not None else {}
        for _, item, _ in wanted:
            stage = self._stager.stage(item, cancel, deadline)
            stages.append(stage)
            if stage.key not in fresh:
                label = f"file:{item.namespace}/{item.name}" if item.namespace else f"file:{item.name}"
                taken = {alias.lower() for alias, _ in fresh.values()}
                fresh[stage.key] = (label if label.lower() not in taken else f"{label} ({stage.key})", stage)
        if self._engine is None or fresh.keys() != self._attached.keys():
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            current = {stage.key for stage in stages}
            alive = {k: v for k, v in fresh.items() if k in current or v[1].path.exists()}
            self._engine = self._make(alive)
        shown: dict[tuple[str, str], str] = {}
        for (schema, name), item, bad in wanted:
            stage = stages[[w[1] for w in wanted].index(item)]
            self._show(schema, name, stage, bad, shown)
        return stages

    def _show(self, schema: str, name: str, stage: Stage, bad: bool, shown: dict[tuple[str, str], str]) -> None:
        if not bad and not stage.columns:
            raise UserError(f"{name} has no columns to read", code="column.not_found", hint="the file is empty")
        source = f"{quoted(self._attached[stage.key][0])}.main.{'bad_rows' if bad else 'rows'}"
        place = (schema.lower(), name.lower())
        if shown.setdefault(place, source) != source:
            raise UserError(
                f"the statement uses two streams whose names differ from {name!r} in case only",
                code="request.invalid_params",
                hint="read them one at a time, or rename one of the files",
            )
        if self._views.get(place) == source:
            return
        engine = self.engine
        if schema:
            engine.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
        engine.execute(f"CREATE OR REPLACE VIEW {quoted(schema or 'main')}.{quoted(name)} AS SELECT * FROM {source}")
        self._views[place] = source

    # --- statements ---

    def token(self, cancel: CancelToken) -> CancelToken:
        """A token for one statement: cancelled with the request's, and by `stop`."""
        with self._lock:
            self._current = CancelToken()
            if self.closed:
                self._current.cancel()
            return self._current

    def open(
        self, sql: str, params: Any, *, cancel: CancelToken, deadline: Deadline, max_rows: int | None, first_rows: int,
        row_bytes: int, on_done: Callable[[], None], columns: Any = None,
    ) -> BatchReader:  # fmt: skip
        """Run one statement in a read-only transaction and stream its result. `on_done` is called once at its end."""
        self.finish()
        engine = self.engine
        watch = Watch(engine, cancel, deadline)
        rows_per_batch = (
            max(1, min(MAX_BATCH_ROWS, TARGET_BATCH_BYTES // 2 // max(row_bytes, 1))) if row_bytes else _VECTOR
        )
        if first_rows:
            rows_per_batch = max(1, min(first_rows, rows_per_batch, _VECTOR))
        self.running = sql
        done = False

        def finish() -> None:
            nonlocal done
            if done:
                return
            done = True
            try:
                engine.interrupt()
                watch.stop()
                self._roll_back(engine)
            finally:
                self.running = None
                on_done()
                if self.closed:
                    engine.close()

        self._finish = finish
        try:
            watch.start()
            watch.check()
            statement = _only_statement(engine, sql)
            engine.execute("BEGIN TRANSACTION READ ONLY")
            result = engine.execute(statement, list(params) if isinstance(params, tuple) else params or None)
            if result.description is None:
                raise UserError("the statement gives no rows", code="query.failed")
            reader = result.to_arrow_reader(rows_per_batch)
        except BaseException as exc:
            stopped = _stopped(watch)
            self.finish()
            if stopped is not None:
                raise stopped from exc
            raise
        batches = self._batches(reader, watch, max_rows, coalesce=not first_rows, finish=self.finish)
        schema = reader.schema
        return BatchReader(columns or columns_of(schema), schema, batches, on_close=self.finish, statement=sql)

    def _batches(
        self, reader: Any, watch: Watch, max_rows: int | None, *, coalesce: bool, finish: Callable[[], None]
    ) -> Generator[pa.RecordBatch, None, None]:
        import duckdb
        import pyarrow as pa

        left = max_rows
        first = True
        held: list[pa.RecordBatch] = []
        size = count = 0
        try:
            while left is None or left > 0:
                watch.check()
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    break
                except (duckdb.Error, pa.ArrowException, OSError) as exc:
                    watch.check()
                    raise engine_error(exc) from exc
                if left is not None:
                    batch = batch.slice(0, left)
                    left -= batch.num_rows
                if not batch.num_rows:
                    continue
                held.append(batch)
                size += batch.nbytes
                count += batch.num_rows
                if first or not coalesce or size >= _COALESCE_BYTES or count + batch.num_rows > MAX_BATCH_ROWS:
                    first = False
                    yield from _joined(held)
                    held, size, count = [], 0, 0
            if held:
                yield from _joined(held)
        finally:
            del reader
            finish()

    def _roll_back(self, engine: Any) -> None:
        import duckdb

        for _ in range(2):  # the first one may be hit by an interrupt that was still under way
            try:
                engine.execute("ROLLBACK")
                return
            except duckdb.InterruptException:
                continue
            except duckdb.Error:
                return  # no transaction was open


def _only_statement(engine: Any, sql: str) -> Any:
    """Parse with the engine's own parser and let only one reading statement through.

    Locked settings and a read-only transaction do not stop everything: `PRAGMA enable_profiling` would print the plan to
    standard output, which belongs to the protocol.
    """
    statements = engine.extract_statements(sql)
    if len(statements) != 1:
        code = "guard.multi_statement" if statements else "query.syntax"
        raise UserError(
            f"expected one statement, found {len(statements)}", code=code, hint="send one statement at a time"
        )
    kind = statements[0].type.name
    if kind not in ("SELECT", "EXPLAIN"):
        raise UserError(f"{kind} statements are not allowed: files can only be read", code="guard.write_blocked")
    return statements[0]


def _joined(batches: list[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
    import pyarrow as pa

    if len(batches) > 1:
        batches = pa.Table.from_batches(batches).combine_chunks().to_batches()
    for batch in batches:
        yield from slice_by_bytes(batch, TARGET_BATCH_BYTES)


def _stopped(watch: Watch) -> AgentError | None:
    try:
        watch.check()
    except AgentError as error:
        return error
    return None
