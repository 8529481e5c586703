"""Turns a file or sheet into a typed, read-only DuckDB file in the connector's private directory ("staging").

Why a copy: the query engine that runs users' statements then needs no access to any file of the machine, so no statement
can read or overwrite one (a path that DuckDB may read is a path it may also write). Every read of one version of a file
sees exactly that version. And types are verified over all rows before the first one is delivered.

Key of a copy: resolved path, sheet, content identity (device, inode, size, mtime), the configuration that matters, and
the engine's version. A copy is complete when its description (`.json`) exists; it is written last, atomically. Copies of
older versions of the same file are removed. The directory is private (0700); nothing in it is needed again later.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfagent.connectors._files_config import CsvConfig
from hfagent.connectors._files_excel import SheetRows, inspect_workbook
from hfagent.connectors._files_json import JsonRows
from hfagent.connectors._files_rows import Refused, exact_batches, fast_batches, fast_possible, plan_text
from hfagent.connectors._files_sniff import column_names, has_header
from hfagent.connectors._files_source import SourceFile, changed, open_source, unchanged, unpacked
from hfagent.connectors._files_text import BadRow, detect_encoding
from hfagent.connectors._files_types import ColumnKinds, quoted, settle_types, text_literal, trimmed
from hfagent.connectors._files_watch import Watch
from hfagent.foundation.atomic import make_private_directory, write_atomic
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, SourceError
from hfagent.sdk.connector import ConnectorContext

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Item", "Stage", "Stager"]

_VERSION = 1
_MAX_BAD_ROWS = 100_000
_IRRELEVANT = {
    "path", "source", "settle_s", "glob", "recursive", "primary_key", "max_files", "memory_limit_mb", "threads", "max_bytes",
    "query_timeout_s",
}  # fmt: skip
_SMALL = 1024 * 1024
_WIDE = 250


@dataclass(frozen=True)
class Item:
    """One stream to be: a file, or a sheet of it, under its name."""

    file: SourceFile
    sheet: str | None
    namespace: str | None
    name: str
    hidden: bool = False
    problem: AgentError | None = None


@dataclass(frozen=True)
class Stage:
    """A finished copy: where it is and what it holds."""

    path: Path
    columns: tuple[tuple[str, str, str], ...]
    """Name, canonical type, engine type."""
    rows: int
    bad_rows: int
    source_bytes: int
    staged_bytes: int
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.path.stem


class Stager:
    """Makes and finds copies. Safe for several threads and processes."""

    def __init__(self, config: CsvConfig, context: ConnectorContext, directory: Path) -> None:
        self._config = config
        self._context = context
        self._directory = directory
        self._lock = threading.Lock()  # guards everything below
        self._building: dict[str, threading.Lock] = {}
        self._known: dict[str, Stage] = {}

    def stage(self, item: Item, cancel: CancelToken, deadline: Deadline) -> Stage:
        """Return the copy of the item's present content, making it if need be.

        Raises what reading the file raises: `config.invalid`, `model.not_found`, `read.*`, `permission.denied`.
        """
        if item.problem is not None:
            raise item.problem
        source, key = self._key(item)
        with self._lock:
            known = self._known.get(key)
            turn = self._building.setdefault(key, threading.Lock())
        if known is not None and known.path.exists():
            return known
        while not turn.acquire(timeout=0.1):
            cancel.raise_if_cancelled()
            if deadline.expired():
                raise SourceError("waited too long for the file to be prepared", code="timeout.total")
        try:
            found = self._load(key) or self._build(item, source, key, cancel, deadline)
        finally:
            turn.release()
        with self._lock:
            self._known[key] = found
        return found

    def _key(self, item: Item) -> tuple[str, str]:
        import duckdb

        relevant = {k: v for k, v in self._config.model_dump(mode="json").items() if k not in _IRRELEVANT}
        parts = [_VERSION, duckdb.__version__, item.file.format, item.file.gzipped, relevant]
        source = hashlib.blake2b(
            f"{item.file.path}\0{item.sheet or ''}".encode("utf-8", "surrogateescape"), digest_size=10
        )
        reading = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8)
        return source.hexdigest(), f"{source.hexdigest()}-{item.file.identity.digest()}{reading.hexdigest()}"

    def _load(self, key: str) -> Stage | None:
        path = self._directory / f"{key}.duckdb"
        try:
            about = json.loads((self._directory / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        if not path.exists():
            return None
        about["columns"] = tuple(tuple(c) for c in about["columns"])
        return Stage(path=path, **about | {"warnings": tuple(about["warnings"])})

    def _build(self, item: Item, source: str, key: str, cancel: CancelToken, deadline: Deadline) -> Stage:
        import duckdb

        make_private_directory(self._directory)
        free = shutil.disk_usage(self._directory).free
        if free < item.file.identity.size + 64 * _SMALL:
            raise AgentError(
                f"the agent's disk has too little room to read {item.file.shown} ({free // _SMALL} MiB free)",
                code="agent.disk_full",
                hint="make room in the agent's data directory",
            )
        target = self._directory / f"{key}.duckdb"
        draft = self._directory / f"{key}.{threading.get_ident():x}.draft"
        engine = duckdb.connect(":memory:", config=engine_settings(self._config, self._directory))
        try:
            watch = Watch(engine, cancel, deadline, what=f"reading {item.file.shown}")
            with open_source(item.file, self._context) as handle, watch:
                try:
                    about = _Building(engine, item, self._config, self._context, draft, watch.check).run()
                except (duckdb.Error, OSError) as exc:
                    watch.check()
                    if not unchanged(item.file, handle):
                        raise changed(item.file) from exc
                    raise
                if not unchanged(item.file, handle):
                    raise changed(item.file)
            engine.close()
            about["source_bytes"] = item.file.identity.size
            about["staged_bytes"] = draft.stat().st_size
            draft.replace(target)
            write_atomic(self._directory / f"{key}.json", json.dumps(about).encode())
        finally:
            engine.close()
            for leftover in self._directory.glob(f"{draft.name}*"):
                leftover.unlink(missing_ok=True)
        self._remove_older(source, key)
        found = self._load(key)
        if found is None:
            raise AgentError("a prepared file vanished from the agent's private directory", code="internal.store")
        return found

    def _remove_older(self, source: str, key: str) -> None:
        for path in self._directory.glob(f"{source}-*"):
            if not path.name.startswith(key) and path.suffix in (".json", ".duckdb"):
                with contextlib.suppress(OSError):
                    path.unlink()


def engine_settings(config: CsvConfig, directory: Path) -> dict[str, Any]:
    """Settings of every engine: nothing is ever downloaded or loaded, memory is bounded, overflow goes to `directory`."""
    return {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "allow_unsigned_extensions": "false",
        "python_enable_replacements": "false",
        "memory_limit": f"{config.memory_limit_mb}MiB",
        "threads": config.threads,
        "temp_directory": str(directory / "overflow"),
        "preserve_insertion_order": "true",
    }


class _Building:
    """One copy in the making: raw text table first, then types, then the typed table."""

    def __init__(
        self,
        engine: Any,
        item: Item,
        config: CsvConfig,
        context: ConnectorContext,
        draft: Path,
        check: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._item = item
        self._config = config
        self._context = context
        self._check = check
        self._names: list[str] = []
        self._kinds: list[ColumnKinds | None] = []
        self._nulls: tuple[str, ...] = ()
        self._bad: list[BadRow] = []
        self._bad_count = 0
        self._facts: dict[str, Any] = {}
        self._warnings: list[str] = []
        self._failure: BaseException | None = None
        self._table = "raw"
        self._draft = draft

    def run(self) -> dict[str, Any]:
        file = self._item.file
        engine = self._engine
        engine.execute("SET TimeZone = 'UTC'")
        # The statements here are plain; optimising them costs minutes for thousands of columns.
        engine.execute("PRAGMA disable_optimizer")
        engine.execute("SET threads = 1")  # with more, batches of one stream are taken out of order
        if file.format in ("csv", "tsv"):
            self._load_text()
        elif file.format == "jsonl":
            self._load_json()
        else:
            self._load_sheet()
        engine.execute(f"SET threads = {self._config.threads}")
        rows = 0
        columns: list[tuple[str, str, str]] = []
        small = file.identity.size < _SMALL or len(self._names) > _WIDE
        engine.execute(f"ATTACH {text_literal(str(self._draft))} AS staged (BLOCK_SIZE {16384 if small else 262144})")
        self._draft.chmod(0o600)
        if self._names:
            raw = [f"c{i}" for i in range(len(self._names))]
            settled = settle_types(engine, self._table, raw, self._names, self._config, self._kinds, self._nulls)
            select = []
            for index, (column, name) in enumerate(zip(raw, self._names, strict=True)):
                found = settled[index]
                sql = found.cast.replace("{v}", trimmed(column)) if found.cast else column
                select.append(f"{sql} AS {quoted(name)}")
                columns.append((name, found.type, found.native))
                self._warnings += [f"{file.shown}: {warning}" for warning in found.warnings]
            self._check()
            engine.execute(f"CREATE TABLE staged.main.rows AS SELECT {', '.join(select)} FROM {self._table}")
            rows = engine.execute("SELECT count(*) FROM staged.main.rows").fetchone()[0]
        self._store_bad_rows()
        engine.execute("CHECKPOINT staged")
        engine.execute("DETACH staged")
        self._summarise_bad_rows()
        return {
            "columns": columns, "rows": rows, "bad_rows": self._bad_count, "facts": self._facts,
            "warnings": self._warnings[:50],
        }  # fmt: skip

    # --- raw text ---

    def _load_text(self) -> None:
        import pyarrow as pa

        file, config, context = self._item.file, self._config, self._context
        plan = plan_text(file, config, context)
        self._check()
        self._facts |= plan.facts
        self._warnings += plan.warnings
        self._names, self._nulls = plan.names, config.null_values
        self._kinds = [None] * len(plan.names)
        if not plan.names:
            return
        schema = pa.schema([(f"c{i}", pa.string()) for i in range(len(plan.names))])
        if len(plan.names) > _WIDE:
            self._keep_beside()
        if fast_possible(plan, config):
            try:
                self._insert(schema, fast_batches(file, plan, config, context, schema=schema, still_wanted=self._check))
                self._facts["reader"] = "fast"
                return
            except Refused:
                self._engine.execute(f"DROP TABLE IF EXISTS {self._table}")
        self._facts["reader"] = "exact"
        self._insert(
            schema,
            exact_batches(file, plan, config, context, bad=self._note_bad, schema=schema, still_wanted=self._check),
        )

    def _keep_beside(self) -> None:
        """Put the raw table into a file: in memory each column takes a large block, in a file the blocks can be small."""
        beside = self._draft.with_name(self._draft.name + ".raw")
        self._engine.execute(f"ATTACH {text_literal(str(beside))} AS wide (BLOCK_SIZE 16384)")
        beside.chmod(0o600)
        self._table = "wide.main.raw"

    def _insert(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        """Make the raw table from a stream of batches; what the stream raises arrives here unchanged."""
        import duckdb
        import pyarrow as pa

        self._failure = None
        reader = pa.RecordBatchReader.from_batches(schema, self._remembering(batches))
        self._engine.register("incoming", reader)
        try:
            self._engine.execute(f"CREATE TABLE {self._table} AS SELECT * FROM incoming")
        except (duckdb.Error, pa.ArrowException, OSError) as exc:
            if self._failure is not None:
                raise self._failure from exc
            raise
        finally:
            self._engine.unregister("incoming")

    def _weigh(self, rows: int, nbytes: int) -> None:
        """Remember the densest block: how many bytes a row takes where rows are largest."""
        if rows:
            self._facts["row_bytes"] = max(self._facts.get("row_bytes", 1), -(-nbytes // rows))

    def _remembering(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        try:
            for batch in batches:
                self._weigh(batch.num_rows, batch.nbytes)
                yield _without_nulls(batch, self._nulls)
        except Exception as exc:
            self._failure = exc
            raise

    def _append(self, table: pa.Table) -> None:
        self._weigh(table.num_rows, table.nbytes)
        self._engine.register("incoming", table)
        self._engine.execute(f"INSERT INTO {self._table} BY NAME SELECT * FROM incoming")
        self._engine.unregister("incoming")

    def _load_json(self) -> None:
        import pyarrow as pa

        file, config, context = self._item.file, self._config, self._context
        with open_source(file, context) as handle:
            encoding = detect_encoding(unpacked(file, handle, config.max_unzipped_bytes), config, file.shown)
        self._facts |= {
            "encoding": encoding.name,
            "encoding_reason": encoding.reason,
            "encoding_confidence": encoding.confidence,
        }
        if encoding.warning:
            self._warnings.append(encoding.warning)
        rows = JsonRows(file, encoding, config, context, bad=self._note_bad)
        self._keep_beside()  # how many columns there will be is not known yet
        self._engine.execute(f"CREATE TABLE {self._table} (n TINYINT)")
        made = 0
        for count, block in rows:
            self._check()
            while made < len(rows.keys):
                self._engine.execute(f"ALTER TABLE {self._table} ADD COLUMN c{made} VARCHAR")
                made += 1
            positions = sorted(block)
            arrays = [pa.nulls(count, pa.int8()), *(pa.array(block[p], pa.string()) for p in positions)]
            table = pa.table(arrays, names=["n", *(f"c{p}" for p in positions)])
            self._append(table)
        self._names, notes = column_names(list(rows.keys), len(rows.keys))
        self._kinds = [frozenset(kinds) for kinds in rows.kinds]
        self._warnings += [f"{file.shown}: {note}" for note in notes[:20]]
        if not self._names:
            self._warnings.append(f"{file.shown} is empty")

    def _load_sheet(self) -> None:
        import pyarrow as pa

        file, config, context = self._item.file, self._config, self._context
        sheet = self._item.sheet or ""
        self._warnings += inspect_workbook(file, config, context).warnings
        reader = SheetRows(file, sheet, config, context)
        judged: dict[str, Any] = {"header": True, "header_confidence": 1.0}

        def is_header(rows: list[list[str]]) -> bool:
            if config.header == "auto":
                judged["header"], judged["header_confidence"] = has_header(rows)
            else:
                judged["header"] = config.header == "true"
            return bool(judged["header"])

        kinds: list[set[str]] = []
        self._keep_beside()  # how many columns there will be is not known yet
        self._engine.execute(f"CREATE TABLE {self._table} (n TINYINT)")
        for number, rows in _without_footer(reader.read(is_header), config.footer_rows):
            self._check()
            kept = self._sheet_rows(number, rows)
            while len(kinds) < reader.width:
                self._engine.execute(f"ALTER TABLE {self._table} ADD COLUMN c{len(kinds)} VARCHAR")
                kinds.append(set())
            columns: list[list[str | None]] = [[None] * len(kept) for _ in kinds]
            for index, row in enumerate(kept):
                for position, cell in enumerate(row[: len(kinds)]):
                    if cell is not None:
                        columns[position][index] = cell[0]
                        kinds[position].add(cell[1])
            if not kept:
                continue
            arrays = [pa.nulls(len(kept), pa.int8()), *(pa.array(c, pa.string()) for c in columns)]
            self._append(pa.table(arrays, names=["n", *(f"c{i}" for i in range(len(kinds)))]))
        header = reader.header
        if header is not None:
            while len(kinds) < reader.width:
                self._engine.execute(f"ALTER TABLE {self._table} ADD COLUMN c{len(kinds)} VARCHAR")
                kinds.append(set())
        self._names, notes = column_names(header, len(kinds))
        self._kinds = [frozenset(k) for k in kinds]
        self._warnings += [f"{file.shown}: {note}" for note in (*reader.warnings, *notes[:20])]
        self._facts |= judged | {"sheet": sheet}
        if not self._names:
            self._warnings.append(f"{file.shown}: {sheet} is empty")

    def _sheet_rows(self, number: int, rows: list[Any]) -> list[Any]:
        kept = []
        for offset, row in enumerate(rows):
            if not any(row):
                continue
            if any(c is not None and len(c[0]) > self._config.max_field_bytes for c in row):
                self._note_bad(BadRow(number + offset, "a value is longer than max_field_bytes", ""))
                continue
            kept.append(row)
        return kept

    # --- rows that were left out ---

    def _note_bad(self, row: BadRow) -> None:
        if self._config.on_bad_row == "error":
            raise SourceError(
                f"{self._item.file.shown}, line {row.line}: {row.reason}",
                code="read.data_invalid",
                hint="mend the file, or set on_bad_row to skip or quarantine",
            )
        self._bad_count += 1
        if len(self._bad) < _MAX_BAD_ROWS:
            self._bad.append(row)

    def _store_bad_rows(self) -> None:
        import pyarrow as pa

        self._engine.execute("CREATE TABLE staged.main.bad_rows (line BIGINT, reason VARCHAR, text VARCHAR)")
        if self._bad and self._config.on_bad_row == "quarantine":
            table = pa.table([
                pa.array([b.line for b in self._bad], pa.int64()),
                pa.array([b.reason for b in self._bad], pa.string()),
                pa.array([b.text for b in self._bad], pa.string()),
            ], names=["line", "reason", "text"])  # fmt: skip
            self._engine.register("incoming", table)
            self._engine.execute("INSERT INTO staged.main.bad_rows SELECT * FROM incoming")
            self._engine.unregister("incoming")

    def _summarise_bad_rows(self) -> None:
        if not self._bad_count:
            return
        shown = "; ".join(f"line {b.line} {b.reason}" for b in self._bad[:5])
        more = f" and {self._bad_count - 5} more" if self._bad_count > 5 else ""
        what = "kept apart" if self._config.on_bad_row == "quarantine" else "skipped"
        self._warnings.insert(0, f"{self._item.file.shown}: {self._bad_count} bad rows {what}: {shown}{more}")
        # Lines and reasons only: descriptions travel further than data may.
        self._facts["first_bad_rows"] = [{"line": b.line, "reason": b.reason} for b in self._bad[:20]]


def _without_nulls(batch: pa.RecordBatch, nulls: tuple[str, ...]) -> pa.RecordBatch:
    """Replace the texts that mean NULL."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not nulls:
        return batch
    known = pa.array(nulls, pa.string())
    nothing = pa.scalar(None, pa.string())
    columns = [pc.if_else(pc.is_in(column, value_set=known), nothing, column) for column in batch.columns]
    return pa.record_batch(columns, schema=batch.schema)


def _without_footer(blocks: Iterator[tuple[int, list[Any]]], count: int) -> Iterator[tuple[int, list[Any]]]:
    """Leave out the last `count` rows that hold anything."""
    if not count:
        yield from blocks
        return
    held: deque[tuple[int, Any]] = deque()
    for number, rows in blocks:
        held.extend((number + i, row) for i, row in enumerate(rows) if any(row))
        ready = [held.popleft() for _ in range(max(len(held) - count, 0))]
        if ready:
            yield ready[0][0], [row for _, row in ready]
    yield 0, []
