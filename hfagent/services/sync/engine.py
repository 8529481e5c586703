"""One run of one dataset: from the source's rows to a durable commit. Blocking, single-threaded, without a daemon around it.

The order (reliability of §2.2): look at the source, freeze the bounds (`remember` makes them durable before a row is read),
open and recover the table, stop when it holds the sequence already, read the window in one snapshot, write and sync the data
files, commit with the new watermark inside the commit. The caller records the outcome after that, never before.

`remember` may be called again after a crash with the same sequence: it answers with the bounds of the first time, so a
repeated run reads the same window.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, UserError
from hfagent.lakehouse.merge import merge
from hfagent.lakehouse.table import Commit, Committed, LakeTable
from hfagent.model.dataset import OnNull
from hfagent.model.stream import Stream
from hfagent.sdk.connector import BaseConnector, Incremental
from hfagent.sdk.reading import Bound, ReadRequest
from hfagent.services.sync.digest import row_digests
from hfagent.services.sync.shaping import Shape, Shaper
from hfagent.services.sync.window import NoChange, SyncPosition, Window, plan_window
from hfagent.store.sync_states import SyncIntent

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SyncJob", "SyncOutcome", "run"]

_log = logging.getLogger(__name__)
WATERMARK: Final = "watermark"
RUN: Final = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncJob:
    """All that a run needs to know about its dataset."""

    run_id: str
    app_id: str
    directory: Path
    stream: Stream
    mode: Literal["full", "incremental"] = "full"
    watermark_column: str | None = None
    primary_key: tuple[str, ...] = ()
    lookback: int | None = None
    """Seconds for times, counts for numbers; None = the connector's default."""
    on_null: OnNull | None = None
    shape: Shape = field(default_factory=Shape)
    position: SyncPosition = field(default_factory=SyncPosition)
    durable: int | None = None
    """Last table version recorded as written."""
    max_shrink_ratio: float = 0.5
    """A full run that brings less than this share of the present rows is held. 0 = never."""
    cancel: CancelToken = field(default_factory=CancelToken)
    deadline: Deadline = field(default_factory=lambda: Deadline(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncOutcome:
    """What a run did. `position` is what the next run starts from."""

    position: SyncPosition
    version: int | None
    """The table's version; None while there is no table, because the source never had a row."""
    no_change: bool = False
    replayed: bool = False
    """A former attempt had committed this sequence; nothing was read."""
    rows_read: int = 0
    rows_written: int = 0
    rows_merged: int = 0
    rows_unchanged: int = 0
    bytes_written: int = 0
    files_rewritten: int = 0
    stages: tuple[tuple[str, float], ...] = ()
    """What took how long, in milliseconds."""
    warnings: tuple[str, ...] = ()


Progress = Callable[[int, int], None]
"""Rows and bytes so far."""


def run(
    job: SyncJob,
    connector: BaseConnector[Any],
    connection: Any,
    *,
    remember: Callable[[SyncIntent], SyncIntent],
    progress: Progress = lambda _rows, _bytes: None,
) -> SyncOutcome:
    """Run the job and return what it did; the table is durable then.

    Raises `AgentError`: what the connector raises, `incremental.*` (see `plan_window`), `lakehouse.*`, `cancelled`. The table
    is then as it was, or holds the whole run; the next call with the same sequence finds out which.
    """
    return _Run(job, connector, connection, remember, progress).outcome()


class _Run:
    def __init__(
        self,
        job: SyncJob,
        connector: BaseConnector[Any],
        connection: Any,
        remember: Callable[[SyncIntent], SyncIntent],
        progress: Progress,
    ) -> None:
        self.job = job
        self.connector = connector
        self.connection = connection
        self.remember = remember
        self.progress = progress
        self.rows = self.bytes = 0
        self.read_columns: tuple[str, ...] = ()
        self.stages: list[tuple[str, float]] = []
        self.warnings: list[str] = []
        self._since = perf_counter()

    def outcome(self) -> SyncOutcome:
        plan = self._plan()
        if isinstance(plan, NoChange):
            return self._done(plan.position, self.job.durable, no_change=True)
        intent, position = plan
        shaper = Shaper(self.job.shape, self.job.stream.columns, run_id=self.job.run_id)
        self.read_columns = shaper.read_columns
        with LakeTable.open(
            self.job.directory, shaper.schema, app_id=self.job.app_id, durable=self.job.durable
        ) as table:
            self.warnings += [f"{name} was set aside: {why}" for name, why in _torn(table)]
            self._stage("open")
            if table.sequence >= intent.sequence:
                return self._done(position, table.version, replayed=True)
            if intent.mode == "full":
                return self._full(table, shaper, intent, position)
            return self._incremental(table, shaper, intent, position)

    # --- what to read ---

    def _plan(self) -> tuple[SyncIntent, SyncPosition] | NoChange:
        job = self.job
        sequence = job.position.sequence + 1
        if job.mode == "full" and job.watermark_column is None:
            intent = self.remember(SyncIntent(sequence=sequence, mode="full"))
            return intent, replace(job.position, sequence=sequence)
        if job.watermark_column is None:
            raise UserError(
                f"the dataset of {job.stream.id} has no watermark column, so it cannot be synced incrementally",
                code="incremental.no_watermark",
                hint="name a column that grows with every change, or use the mode full",
            )
        if not isinstance(self.connector, Incremental):
            raise UserError(f"{self.connector.title} streams can only be synced in full", code="unsupported")
        facts = self.connector.watermark_facts(
            self.connection, job.stream, job.watermark_column, lookback=job.lookback, cancel=job.cancel,
            deadline=job.deadline,
        )  # fmt: skip
        self._stage("look")
        window = plan_window(
            replace(job.position, lo=None, source_id="") if job.mode == "full" else job.position,
            facts,
            "include_once" if job.mode == "full" else job.on_null,  # a full run reads every row anyway
            row_estimate=job.stream.row_estimate,
            has_key=bool(job.primary_key),
        )
        if isinstance(window, NoChange):
            if job.mode == "incremental":
                return window
            window = Window(lo=None, hi=None, next_lo=None)
        self.warnings += window.warnings
        intent = self.remember(
            SyncIntent(
                sequence=sequence, mode=job.mode, lo=window.lo, hi=window.hi, next_lo=window.next_lo,
                include_nulls=window.include_nulls,
            )
        )  # fmt: skip
        position = replace(
            job.position, sequence=sequence, column=facts.column, column_type=facts.column_type, lo=intent.next_lo,
            source_id=facts.source_id, schema_hash=job.stream.schema_hash,
        )  # fmt: skip
        return intent, position

    # --- the two modes ---

    def _full(self, table: LakeTable, shaper: Shaper, intent: SyncIntent, position: SyncPosition) -> SyncOutcome:
        """Stage everything, verify, swap. Until the swap the old rows are what readers see."""
        before = table.rows
        with table.staging(shaper.schema) as stage:
            for batch in self._rows(shaper, ()):
                stage.write(batch)
            files = stage.finish()
            self._stage("read")
            if before and stage.rows < before * self.job.max_shrink_ratio:
                raise AgentError(
                    f"the source has {stage.rows} rows and the dataset {before}: the new content is held back",
                    code="lakehouse.shrink_held",
                    hint="check the source; when it is right, run again with a smaller max_shrink_ratio",
                )
            committed = table.replace(files, self._commit(intent), schema=shaper.schema)
        self._stage("commit")
        return self._done(position, committed.version, rows_written=stage.rows, bytes_written=stage.bytes)

    def _incremental(self, table: LakeTable, shaper: Shaper, intent: SyncIntent, position: SyncPosition) -> SyncOutcome:
        column = self.job.watermark_column or ""
        bounds: list[Bound] = []
        if intent.lo is not None:
            bounds.append(Bound(column, ">=", intent.lo))
        if intent.hi is not None:
            bounds.append(Bound(column, "<=", intent.hi))
        batches = self._rows(shaper, tuple(bounds), nulls_of=column if intent.include_nulls and bounds else None)
        if not self.job.primary_key or not table.files():
            return self._append(table, batches, intent, position)
        import pyarrow as pa

        change = pa.Table.from_batches(batches, shaper.schema)
        self._stage("read")
        if not change.num_rows:
            return self._unchanged(table)
        merged = merge(table, change, self._commit(intent), keys=self.job.primary_key, compare=shaper.read_columns)
        self._stage("merge")
        if merged is None:
            return self._unchanged(table, rows_unchanged=change.num_rows)
        return self._done(
            position, merged.committed.version, rows_written=merged.inserted, rows_merged=merged.updated,
            rows_unchanged=merged.unchanged, files_rewritten=merged.files_rewritten,
        )  # fmt: skip

    def _append(
        self, table: LakeTable, batches: Iterator[pa.RecordBatch], intent: SyncIntent, position: SyncPosition
    ) -> SyncOutcome:
        """Without a key: a row that was delivered before is known by its values. The table itself is the ledger of the boundary,
        so it cannot disagree with the rows."""
        names = list(self.read_columns)
        known = _held(table, names, self.job.watermark_column or "", intent.lo)
        with table.staging() as stage:
            for batch in batches:
                stage.write(_unknown(batch, names, known) if known else batch)
            files = stage.finish()
            self._stage("read")
            if not files:
                return self._unchanged(table, rows_unchanged=self.rows)
            committed: Committed = table.append(files, self._commit(intent))
        self._stage("commit")
        return self._done(
            position, committed.version, rows_written=stage.rows, rows_unchanged=self.rows - stage.rows,
            bytes_written=stage.bytes,
        )  # fmt: skip

    # --- pieces ---

    def _rows(self, shaper: Shaper, bounds: tuple[Bound, ...], nulls_of: str | None = None) -> Iterator[pa.RecordBatch]:
        """The source's rows as they are delivered."""
        job = self.job
        request = ReadRequest(
            columns=shaper.read_columns, bounds=bounds, nulls_of=nulls_of, cancel=job.cancel, deadline=job.deadline
        )
        with self.connector.read_rows(self.connection, job.stream, request) as reader:
            for batch in reader:
                job.cancel.raise_if_cancelled()
                shaped = shaper.shape(batch)
                self.rows += batch.num_rows
                self.bytes += batch.nbytes
                self.progress(self.rows, self.bytes)
                yield shaped
        self.warnings += reader.warnings

    def _commit(self, intent: SyncIntent) -> Commit:
        details = {RUN: self.job.run_id}
        if intent.next_lo is not None:
            details[WATERMARK] = intent.next_lo
        return Commit(intent.sequence, details)

    def _unchanged(self, table: LakeTable, rows_unchanged: int = 0) -> SyncOutcome:
        """All rows of the window are there already. The sequence was not used, so the position stays."""
        return self._done(self.job.position, table.version, no_change=True, rows_unchanged=rows_unchanged)

    def _stage(self, name: str) -> None:
        now = perf_counter()
        self.stages.append((name, round((now - self._since) * 1000, 3)))
        self._since = now

    def _done(self, position: SyncPosition, version: int | None, **facts: Any) -> SyncOutcome:
        return SyncOutcome(
            position=position,
            version=version,
            rows_read=self.rows,
            stages=tuple(self.stages),
            warnings=tuple(self.warnings),
            **facts,
        )


def _torn(table: LakeTable) -> Iterator[tuple[str, str]]:
    return zip(table.recovery.set_aside, table.recovery.reasons, strict=True)


def _held(table: LakeTable, names: list[str], column: str, lo: str | None) -> Counter[bytes]:
    """How often the table holds each row that the window can deliver again: those from `lo` on and those without a value."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    known: Counter[bytes] = Counter()
    for file in table.files():
        with pq.ParquetFile(table.directory / file.name) as parquet:
            if not set(names) <= set(parquet.schema_arrow.names):
                continue  # written before a column came: its rows cannot equal a row of today
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group, columns=names)
                low = _scalar(lo, rows.schema.field(column).type)
                if low is not None:
                    rows = rows.filter(pc.fill_null(pc.greater_equal(rows.column(column), low), True))
                for batch in rows.to_batches():
                    known.update(row_digests(batch, names))
    return known


def _scalar(text: str | None, type_: pa.DataType) -> pa.Scalar | None:
    """A watermark as a value of the table's column; None when it cannot be one (then nothing is left out by it)."""
    import pyarrow as pa

    if text is None:
        return None
    try:
        return pa.scalar(text).cast(type_)
    except (pa.ArrowException, ValueError):
        return None


def _unknown(batch: pa.RecordBatch, names: list[str], known: Counter[bytes]) -> pa.RecordBatch:
    """The rows that the table does not hold; each one that it holds is used up once."""
    import pyarrow as pa

    keep = []
    for digest in row_digests(batch, names):
        held = known[digest] > 0
        if held:
            known[digest] -= 1
        keep.append(not held)
    return batch.filter(pa.array(keep, pa.bool_()))
