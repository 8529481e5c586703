"""Merging by key: rows that are new come, rows that changed take the place of the old ones, equal rows cost nothing.

Two passes. The first reads only the keys of the files that can hold a changed key (the log's bounds tell which), and the
values of row groups that do: rows that are there already, value for value, are dropped. The second rewrites the files that
hold a changed key, without it, and adds the changes. Files without one are neither read whole nor written.

Memory: the change itself, and one row group of one file at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hfagent.foundation.errors import AgentError, InternalError
from hfagent.lakehouse.stage import DataFile
from hfagent.lakehouse.table import Commit, Committed, LakeTable

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Merged", "merge"]

_ROW: Final = "\x00row"
_FILE_ROW: Final = "\x00file_row"
_COARSE: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did."""

    committed: Committed
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    """Rows that were delivered again as the table holds them."""
    superseded: int = 0
    """Rows of the change that a later row of the same key replaced."""
    files_rewritten: int = 0
    files_skipped: int = 0
    """Files whose bounds rule a changed key out; only the log was read."""


@dataclass(slots=True)
class _Hit:
    """A file with changed keys: which of its rows go."""

    file: DataFile
    rows: pa.Array


def merge(
    table: LakeTable,
    change: pa.Table,
    commit: Commit,
    *,
    keys: Sequence[str],
    compare: Sequence[str] = (),
    **sizes: int,
) -> Merged | None:
    """Merge `change` (in the table's schema) by `keys`. Of equal keys in the change the last row wins.

    Rows that the table holds with equal values in the `compare` columns are left alone (empty: none are). Returns None when
    nothing changed: then nothing is written, and the sequence is not used up. `sizes`: see `Stage`. Raises `AgentError`:
    `lakehouse.null_key` when a key has no value, and what `LakeTable.change` raises.
    """
    if not keys:
        raise InternalError("a merge needs a key")
    if table.sequence >= commit.sequence:
        return Merged(table.change((), (), commit))
    _refuse_null_keys(change, keys)
    delivered = change.num_rows
    change = _last_of_each(change, keys)
    superseded = delivered - change.num_rows
    hits, same, updated, skipped = _plan(table, change, keys, compare)
    if len(same):
        import pyarrow.compute as pc

        rows = _numbers(0, change.num_rows)
        change = change.filter(pc.invert(pc.is_in(rows, value_set=same)))
    if not change.num_rows:
        return None
    with table.staging(**sizes) as stage:
        for hit in hits:
            stage.write_all(_without(table.directory / hit.file.name, hit.rows, table.schema))
        stage.write_all(change.to_batches())
        committed = table.change(stage.finish(), [hit.file for hit in hits], commit)
    return Merged(
        committed,
        inserted=change.num_rows - updated,
        updated=updated,
        unchanged=len(same),
        superseded=superseded,
        files_rewritten=len(hits),
        files_skipped=skipped,
    )


def _refuse_null_keys(change: pa.Table, keys: Sequence[str]) -> None:
    for key in keys:
        if nulls := change.column(key).null_count:
            raise AgentError(
                f"{nulls} rows have no value in the key column {key!r}, so they cannot be merged",
                code="lakehouse.null_key",
                hint="choose a key whose columns are never empty, or sync the stream in full mode",
            )


def _last_of_each(change: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The last row of every key, in the order of delivery."""

    numbered = change.select(list(keys)).append_column(_ROW, _numbers(0, change.num_rows))
    last = numbered.group_by(list(keys)).aggregate([(_ROW, "max")]).column(f"{_ROW}_max")
    if len(last) == change.num_rows:
        return change
    return change.take(last.combine_chunks().sort())


def _plan(
    table: LakeTable, change: pa.Table, keys: Sequence[str], compare: Sequence[str]
) -> tuple[list[_Hit], pa.Array, int, int]:
    """The files to rewrite; the change's rows that are there already; how many are updates; how many files are ruled out."""
    import pyarrow as pa

    wanted = change.select(list(keys)).append_column(_ROW, _numbers(0, change.num_rows))
    bounded = {key: change.column(key) for key in keys if _bounded(change.schema.field(key).type)}
    hits: list[_Hit] = []
    same: list[pa.Array] = []
    updated = skipped = 0
    for file in table.files():
        if _ruled_out(file, bounded):
            skipped += 1
            continue
        places = _places(table.directory / file.name, change, wanted, keys, compare, same)
        if len(places):
            updated += len(places)
            hits.append(_Hit(file, places))
    return hits, pa.concat_arrays(same) if same else pa.array([], pa.int64()), updated, skipped


def _places(
    path: Path, change: pa.Table, wanted: pa.Table, keys: Sequence[str], compare: Sequence[str], same: list[pa.Array]
) -> pa.Array:
    """Where in a file the rows stand that the change replaces. Rows of the change that are there already go to `same`."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: list[pa.Array] = []
    with pq.ParquetFile(path) as file:
        present = [name for name in compare if name in file.schema_arrow.names]
        start = 0
        for group in range(file.num_row_groups):
            held = file.read_row_group(group, columns=list(keys))
            held = held.append_column(_FILE_ROW, _numbers(0, held.num_rows))
            pairs = held.join(wanted, keys=list(keys), join_type="inner")
            rows, places = pairs.column(_ROW).combine_chunks(), pairs.column(_FILE_ROW).combine_chunks()
            if len(rows) and len(present) == len(compare) and compare:
                old = file.read_row_group(group, columns=present).take(places)
                equal = _equal_rows(old, change.select(present).take(rows), present)
                same.append(rows.filter(equal))
                places = places.filter(pc.invert(equal))
            found.append(pc.add(places, start))
            start += held.num_rows
    return pa.concat_arrays(found) if found else pa.array([], pa.int64())


def _equal_rows(left: pa.Table, right: pa.Table, names: Sequence[str]) -> pa.Array:
    """Which rows of two tables of equal length are the same: no value equals no value, not-a-number equals itself."""
    import pyarrow as pa
    import pyarrow.compute as pc

    result = pa.array([True] * left.num_rows, pa.bool_())
    for name in names:
        a, b = left.column(name).combine_chunks(), right.column(name).combine_chunks()
        if pa.types.is_nested(a.type):
            equal = pa.array([x == y for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)], pa.bool_())
        else:
            both_null = pc.and_(pc.is_null(a), pc.is_null(b))
            equal = pc.or_(both_null, pc.fill_null(pc.equal(a, b.cast(a.type)), False))
            if pa.types.is_floating(a.type):
                equal = pc.or_(equal, pc.fill_null(pc.and_(pc.is_nan(a), pc.is_nan(b)), False))
        result = pc.and_(result, equal)
    return result


def _without(path: Path, rows: pa.Array, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a file but for those at the given places, in the table's present schema, one row group at a time."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            part = file.read_row_group(group)
            places = _numbers(start, start + part.num_rows)
            start += part.num_rows
            yield from fitted(part.filter(pc.invert(pc.is_in(places, value_set=rows))), schema).to_batches()


def fitted(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """Bring rows of an older file into the table's present schema: columns it does not have are without value."""
    import pyarrow as pa

    names = set(part.column_names)
    return pa.table(
        [
            part.column(field.name).cast(field.type) if field.name in names else pa.nulls(part.num_rows, field.type)
            for field in schema
        ],
        schema=schema,
    )


def _numbers(start: int, end: int) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    return pa.array(np.arange(start, end, dtype=np.int64))


def _bounded(type_: pa.DataType) -> bool:
    from pyarrow import types as is_

    return bool(is_.is_integer(type_) or is_.is_date32(type_) or is_.is_timestamp(type_) or is_.is_string(type_))


def _ruled_out(file: DataFile, changed: dict[str, pa.ChunkedArray]) -> bool:
    """Whether the log's bounds of some key column exclude every changed key. Without bounds nothing is excluded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for key, values in changed.items():
        low, high = file.statistics["minValues"].get(key), file.statistics["maxValues"].get(key)
        if low is None or high is None:
            continue
        if isinstance(high, datetime):
            high += _COARSE  # other writers cut bounds to milliseconds
        try:
            bounds = pa.scalar(low, values.type), pa.scalar(high, values.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):  # bounds of another type tell nothing
            continue
        if not pc.any(pc.and_(pc.greater_equal(values, bounds[0]), pc.less_equal(values, bounds[1]))).as_py():
            return True
    return False
