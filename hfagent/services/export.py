"""Writes a whole result to a file: CSV, Parquet or JSON lines. Batches stream through; memory stays a few batches.

The file appears under its name only when it is complete and on disk, mode 0600. A failed or cancelled export leaves
nothing behind.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

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
_UNCUT = 1 << 62
"""A file takes values of any length."""


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
    max_rows: int | None = None,
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int, bool]:
    """Drain `reader` into `path`, `max_rows` rows at most.

    Returns rows, bytes and whether rows were left out. `progress(rows, bytes)` is called a few times a second. Raises
    `UserError` when the target exists and `overwrite` is false or its directory is unsuitable, `AgentError`
    (`agent.disk_full`) when the disk is full.
    """
    with _writing_to(path):
        if not path.parent.is_dir():
            raise UserError(
                f"the directory {path.parent} does not exist", code="config.invalid", hint="create it first"
            )
        if os.path.lexists(path) and not overwrite:
            raise _exists(path)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".hfagent-export-", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            rows, truncated = _drain(reader, file, format, path, max_rows=max_rows, cancel=cancel, progress=progress)
            with _writing_to(path):
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
        with _writing_to(path):
            _give_name(temporary, path, overwrite=overwrite)
            sync_directory(path.parent)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return rows, size, truncated


def _drain(
    reader: BatchReader,
    file: BinaryIO,
    format: Format,
    path: Path,
    *,
    max_rows: int | None,
    cancel: CancelToken | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[int, bool]:
    rows, reported = 0, 0.0
    names = _unique([column.name for column in reader.columns]) if format != "csv" else [c.name for c in reader.columns]
    with _writing_to(path):
        sink = _SINKS[format](file, reader.schema, names)
    for batch in reader:
        if cancel is not None:
            cancel.raise_if_cancelled()
        over = 0 if max_rows is None else max(0, rows + batch.num_rows - max_rows)
        with _writing_to(path):
            sink.write(batch.slice(0, batch.num_rows - over))
        rows += batch.num_rows - over
        now = time.monotonic()
        if progress is not None and now - reported >= _REPORT_EVERY_S:
            reported = now
            progress(rows, file.tell())
        if over:
            break
    else:
        over = 0
    if cancel is not None:
        cancel.raise_if_cancelled()  # a reader that just stops when cancelled must not pass for a whole result
    with _writing_to(path):
        sink.finish()
    return rows, bool(over)


@contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    """What goes wrong with the file is told as such: it must never be taken for a failure of the source."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AgentError(
                f"the disk of {path.parent} is full; nothing was kept of the export", code="agent.disk_full",
                hint="free some space, or choose another directory",
            ) from exc  # fmt: skip
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"the agent may not write to {path.parent}: {exc.strerror}", code="config.policy_denied",
                hint="choose another directory",
            ) from exc  # fmt: skip
        raise UserError(
            f"the export to {path} failed: {exc.strerror or exc}", code="config.invalid", hint="choose another path"
        ) from exc


def _give_name(temporary: str, path: Path, *, overwrite: bool) -> None:
    """Put the finished file in its place, in one step; without `overwrite` never over another file."""
    if not overwrite:
        try:
            os.link(temporary, path)
            return
        except FileExistsError:
            raise _exists(path) from None
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                raise _exists(path) from None
    if path.is_dir() and not path.is_symlink():
        raise UserError(f"{path} is a directory", code="config.invalid", hint="give the name of a file")
    os.replace(temporary, path)  # noqa: PTH105  same directory: one atomic step


def _exists(path: Path) -> UserError:
    return UserError(f"{path} exists already", code="config.invalid", hint="choose another name, or allow overwriting")


def _unique(names: list[str]) -> list[str]:
    """Names for formats that need each one once: `a`, `a_2`, `a_3`."""
    taken = set(names)
    seen: set[str] = set()
    result = []
    for name in names:
        number, made = 2, name
        while made in seen or (made != name and made in taken):
            made, number = f"{name}_{number}", number + 1
        seen.add(made)
        result.append(made)
    return result


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
        import pyarrow as pa
        import pyarrow.parquet as papq

        fields = [field.with_name(name) for name, field in zip(names, schema, strict=True)]
        self._schema = pa.schema(fields, metadata=schema.metadata)
        self._writer = papq.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, batch: pa.RecordBatch) -> None:
        import pyarrow as pa

        self._writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=self._schema))

    def finish(self) -> None:
        self._writer.close()


class _JsonLinesSink:
    def __init__(self, file: Any, schema: pa.Schema, names: list[str]) -> None:
        self._file = file
        self._names = names

    def write(self, batch: pa.RecordBatch) -> None:
        from hfagent.sdk.arrow import wire_rows

        dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        lines = [dump(dict(zip(self._names, row, strict=True))) for row in wire_rows(batch, max_value_bytes=_UNCUT)]
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
    values = [row[0] for row in wire_rows(batch, max_value_bytes=_UNCUT)]
    return pa.array(
        [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values], type=pa.string()
    )
