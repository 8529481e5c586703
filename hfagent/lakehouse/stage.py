"""Data files of a table before they belong to it: written, synced, described, not yet named by any commit.

A stage that is never committed leaves unreferenced files; readers do not see them and maintenance removes them.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from hfagent.foundation.atomic import sync_directory, sync_file
from hfagent.lakehouse.failures import writing

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["DataFile", "Stage"]

TARGET_BYTES: Final = 32 * 1024 * 1024
GROUP_BYTES: Final = 32 * 1024 * 1024
"""Arrow bytes that are gathered into one row group: what a stage holds in memory."""
_STATISTIC_CHARS: Final = 64
"""Longer texts get no bounds in the log: a cut one would have to be rounded up."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One finished file, as the log describes it."""

    name: str
    size: int
    rows: int
    statistics: dict[str, Any] = field(default_factory=dict)
    """The log's `stats` object: `numRecords`, `minValues`, `maxValues`, `nullCount`."""
    modified_ms: int = 0

    def stats_text(self) -> str:
        """The statistics as the log carries them."""
        return json.dumps(self.statistics, ensure_ascii=False, separators=(",", ":"))


class Stage:
    """Writes batches of one schema into Parquet files of about `target_bytes`. Not thread-safe.

    Memory: about one row group (`group_bytes` of Arrow data). `finish` makes the files durable; `discard` removes them.
    """

    def __init__(
        self,
        directory: Path,
        schema: pa.Schema,
        *,
        target_bytes: int = TARGET_BYTES,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        self.directory = directory
        self.schema = schema
        self.rows = 0
        self.files: list[DataFile] = []
        self._target_bytes = target_bytes
        self._group_bytes = group_bytes
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._path: Path | None = None
        self._finished = False

    @property
    def bytes(self) -> int:
        """Size of the finished files."""
        return sum(file.size for file in self.files)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows, in the stage's schema. Raises `AgentError` (`agent.disk_full`, `internal.store`)."""
        if batch.num_rows == 0:
            return
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        self.rows += batch.num_rows
        if self._pending_bytes >= self._group_bytes:
            self._flush()

    def write_all(self, batches: Iterable[pa.RecordBatch]) -> Self:
        """Add every batch."""
        for batch in batches:
            self.write(batch)
        return self

    def finish(self) -> tuple[DataFile, ...]:
        """Complete the files and make them durable, names included. Safe to repeat."""
        if not self._finished:
            self._flush()
            self._close_file()
            if self.files:
                with writing(self.directory):
                    sync_directory(self.directory)
            self._finished = True
        return tuple(self.files)

    def discard(self) -> None:
        """Remove what was written. For a stage that will not be committed."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        for file in self.files:
            (self.directory / file.name).unlink(missing_ok=True)
        self.files.clear()
        self._pending.clear()
        self._finished = True

    def _flush(self) -> None:
        """Write what is gathered as one row group, and begin another file when this one is large enough."""
        if not self._pending:
            return
        import pyarrow as pa

        table = pa.Table.from_batches(self._pending, self.schema)
        self._pending, self._pending_bytes = [], 0
        with writing(self.directory):
            if self._writer is None:
                self._open_file()
            assert self._writer is not None and self._path is not None
            self._writer.write_table(table, row_group_size=table.num_rows)
            if self._path.stat().st_size >= self._target_bytes:
                self._close_file()

    def _open_file(self) -> None:
        import pyarrow.parquet as pq

        self._path = self.directory / f"part-{uuid.uuid4()}.parquet"
        self._writer = pq.ParquetWriter(
            self._path, self.schema, compression="zstd", compression_level=1, store_decimal_as_integer=True
        )

    def _close_file(self) -> None:
        if self._writer is None or self._path is None:
            return
        with writing(self.directory):
            self._writer.close()
            sync_file(self._path)
            self.files.append(_described(self._path))
        self._writer, self._path = None, None


def _described(path: Path) -> DataFile:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    status = path.stat()
    return DataFile(path.name, status.st_size, metadata.num_rows, _statistics(metadata), int(time.time() * 1000))


def _statistics(metadata: pq.FileMetaData) -> dict[str, Any]:
    """Bounds and NULL counts of the plain columns whose bounds the log can carry exactly."""
    lowest: dict[str, Any] = {}
    highest: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for index in range(metadata.num_columns):
        column = metadata.schema.column(index)
        name = column.path
        if name != column.name or column.max_repetition_level:
            continue  # inside a list or a struct
        groups = [metadata.row_group(group).column(index).statistics for group in range(metadata.num_row_groups)]
        if any(group is None or not group.has_null_count for group in groups):
            continue
        nulls[name] = sum(group.null_count for group in groups)
        # A group of NULLs has no bounds and needs none; every other one must have them.
        bounded = [group for group in groups if group.num_values]
        if not bounded or any(not group.has_min_max for group in bounded):
            continue
        bounds = [(_value(group.min), _value(group.max)) for group in bounded]
        if any(low is None or high is None for low, high in bounds):
            continue
        lowest[name] = min(low for low, _ in bounds)
        highest[name] = max(high for _, high in bounds)
    return {
        "numRecords": metadata.num_rows,
        "minValues": {name: _text(value) for name, value in lowest.items()},
        "maxValues": {name: _text(value) for name, value in highest.items()},
        "nullCount": nulls,
    }


def _value(value: Any) -> Any:
    """A bound that the log can carry exactly, else None: floats (NaN), decimals, bytes and long texts cannot."""
    if isinstance(value, int | date | datetime):  # a bool is an int
        return value
    if isinstance(value, str) and len(value) <= _STATISTIC_CHARS and value.isprintable():
        return value
    return None


def _text(value: Any) -> Any:
    if isinstance(value, datetime):
        text = value.isoformat(timespec="microseconds")
        return text.replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else value
