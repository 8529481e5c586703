"""Writes a whole result to a file: CSV, Parquet or JSON lines. Batches stream through; memory stays a few batches.

The file appears under its name only when it is complete and on disk, mode 0600. A failed or cancelled export leaves
nothing behind.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hfagent.foundation.atomic import sync_directory
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.errors import AgentError, ConfigError, UserError
from hfagent.sdk.reading import BatchReader

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Format", "format_of", "write_result"]

Format = Literal["csv", "parquet", "jsonl"]

_ENDINGS: dict[str, Format] = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_REPORT_EVERY_S = 0.25


def format_of(path: Path, explicit: Format | None) -> Format:
    """Return the format, by the path's ending when not given. Raises `ConfigError` for an unknown ending."""
    if explicit is not None:
        return explicit
    found = _ENDINGS.get(path.suffix.lower())
    if found is None:
        raise ConfigError(
            f"cannot tell the export format from {path.name!r}",
            field="format",
            hint="give a format (csv, parquet, jsonl) or use one of the endings " + ", ".join(_ENDINGS),
        )
    return found


def write_result(
    reader: BatchReader,
    path: Path,
    format: Format,
    *,
    overwrite: bool = False,
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Drain `reader` into `path`; return `(rows, bytes)`. `progress(rows, bytes)` is called a few times a second.

    Raises `UserError` when the target exists and `overwrite` is false or its directory is missing, `AgentError`
    (`agent.disk_full`) when the disk is full.
    """
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} exists already", code="config.invalid", hint="choose another name, or allow overwriting"
        )
    if not path.parent.is_dir():
        raise UserError(f"the directory {path.parent} does not exist", code="config.invalid", hint="create it first")
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except PermissionError as exc:
        raise UserError(
            f"the agent may not write to {path.parent}", code="config.policy_denied", hint="choose another directory"
        ) from exc
    rows = 0
    try:
        with os.fdopen(descriptor, "wb") as file:
            sink = _SINKS[format](file, reader.schema, [c.name for c in reader.columns])
            reported = 0.0
            for batch in reader:
                if cancel is not None:
                    cancel.raise_if_cancelled()
                sink.write(batch)
                rows += batch.num_rows
                now = time.monotonic()
                if progress is not None and now - reported >= _REPORT_EVERY_S:
                    reported = now
                    progress(rows, file.tell())
            sink.finish()
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(temporary, path)  # noqa: PTH105  same directory: one atomic step
    except OSError as exc:
        Path(temporary).unlink(missing_ok=True)
        if exc.errno == 28:
            raise AgentError(
                f"the disk of {path.parent} is full", code="agent.disk_full", hint="free some space"
            ) from exc
        raise
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    return rows, size


class _CsvSink:
    def __init__(self, file: Any, schema: pa.Schema, names: list[str]) -> None:
        import pyarrow as pa
        import pyarrow.csv as pacsv

        self._schema = pa.schema(
            [pa.field(name, _flat_type(field.type)) for name, field in zip(names, schema, strict=True)]
        )
        self._writer = pacsv.CSVWriter(file, self._schema, write_options=pacsv.WriteOptions(quoting_style="needed"))

    def write(self, batch: pa.RecordBatch) -> None:
        import pyarrow as pa

        columns = [_flat_column(column) for column in batch.columns]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def finish(self) -> None:
        self._writer.close()


class _ParquetSink:
    def __init__(self, file: Any, schema: pa.Schema, names: list[str]) -> None:
        import pyarrow.parquet as papq

        self._writer = papq.ParquetWriter(file, schema, compression="zstd")

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def finish(self) -> None:
        self._writer.close()


class _JsonLinesSink:
    def __init__(self, file: Any, schema: pa.Schema, names: list[str]) -> None:
        self._file = file
        self._names = names

    def write(self, batch: pa.RecordBatch) -> None:
        from hfagent.sdk.arrow import wire_rows

        dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        lines = [dump(dict(zip(self._names, row, strict=True))) for row in wire_rows(batch)]
        self._file.write(("\n".join(lines) + "\n").encode("utf-8", "replace") if lines else b"")

    def finish(self) -> None:
        pass


_SINKS: dict[Format, Any] = {"csv": _CsvSink, "parquet": _ParquetSink, "jsonl": _JsonLinesSink}


def _is_plain(kind: pa.DataType) -> bool:
    import pyarrow.types as t

    return not (t.is_nested(kind) or t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind)
                or t.is_timestamp(kind) or t.is_dictionary(kind))  # fmt: skip


def _flat_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return kind if _is_plain(kind) else pa.string()


def _flat_column(column: pa.Array) -> pa.Array:
    """Bring a column into a form CSV can hold: nested as JSON, bytes as base64, timestamps as ISO 8601."""
    import pyarrow as pa

    if _is_plain(column.type):
        return column
    from hfagent.sdk.arrow import wire_rows

    batch = pa.RecordBatch.from_arrays([column], names=["v"])
    values = [row[0] for row in wire_rows(batch)]
    return pa.array(
        [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values], type=pa.string()
    )
