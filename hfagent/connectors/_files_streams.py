"""Streams of files: which files and sheets are streams, under which names, and their description."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from hfagent.connectors._files_config import CsvConfig
from hfagent.connectors._files_excel import list_sheets
from hfagent.connectors._files_source import SourceFile
from hfagent.connectors._files_stage import Item, Stage
from hfagent.foundation.errors import AgentError
from hfagent.model.data_type import DataType
from hfagent.model.stream import Column, Stream, WatermarkCandidate, stream_id
from hfagent.sdk.connector import ConnectorContext

__all__ = ["describe", "find_item", "items_of", "native_type"]

_WORKBOOKS = ("xlsx", "xls", "ods")
_NATIVE = {
    "bool": "BOOLEAN", "int64": "BIGINT", "float64": "DOUBLE", "date": "DATE", "time": "TIME", "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMP WITH TIME ZONE",
}  # fmt: skip
_UPDATED = (
    "updated_at",
    "modified_at",
    "last_modified",
    "updated",
    "changed_at",
    "created_at",
    "ts",
    "timestamp",
    "event_time",
)


def items_of(
    files: Sequence[SourceFile], config: CsvConfig, context: ConnectorContext, known_sheets: dict[Any, Any]
) -> list[Item]:
    """Turn files into streams to be. `known_sheets` remembers the sheets of workbooks by their content identity."""
    stems = Counter((file.namespace, file.stem) for file in files)
    items: list[Item] = []
    for file in files:
        # Two files of one stem (orders.csv and orders.xlsx) are told apart by their full names.
        name = file.stem if stems[file.namespace, file.stem] == 1 else PurePosixPath(file.shown).name
        if file.format not in _WORKBOOKS or file.problem is not None:
            items.append(Item(file, None, file.namespace, name, problem=file.problem))
            continue
        key = (file.path, file.identity)
        sheets = known_sheets.get(key)
        if sheets is None:
            try:
                sheets = list_sheets(file, config, context)
            except AgentError as problem:
                items.append(Item(file, None, file.namespace, name, problem=problem))
                continue
            known_sheets[key] = sheets
        if config.sheet:
            chosen = [s for s in sheets if s.name == config.sheet]
            items += [Item(file, s.name, file.namespace, name, hidden=not s.visible) for s in chosen]
            continue
        visible = [s for s in sheets if s.visible]
        for sheet in visible:
            sheet_name = name if len(visible) == 1 else f"{name}__{sheet.name}"
            items.append(Item(file, sheet.name, file.namespace, sheet_name))
    return items


def find_item(items: Sequence[Item], namespace: str | None, name: str, *, loose: bool = False) -> Item | None:
    """Find a stream by its exact name. `loose` also takes another case, when it is unique, and the file's full name."""
    for item in items:
        if (item.namespace, item.name) == (namespace, name):
            return item
    if not loose:
        return None
    wanted = ((namespace or "").lower(), name.lower())
    near = [item for item in items if ((item.namespace or "").lower(), item.name.lower()) == wanted]
    if not near:
        near = [i for i in items if (i.namespace, PurePosixPath(i.file.shown).name) == (namespace, name)]
    return near[0] if len(near) == 1 else None


def describe(item: Item, stage: Stage | None, problem: AgentError | None, config: CsvConfig) -> Stream:
    """Describe a stream; without `stage` only what the folder shows."""
    file = item.file
    warnings = list(stage.warnings) if stage else []
    if problem is not None:
        warnings.append(problem.message + (f" ({problem.hint})" if problem.hint else ""))
    columns = tuple(
        Column(name=name, type=DataType.parse(type_), native_type=native, nullable=True, ordinal=ordinal)
        for ordinal, (name, type_, native) in enumerate(stage.columns if stage else (), start=1)
    )
    names = {c.name for c in columns}
    key = config.primary_key if config.primary_key and names.issuperset(config.primary_key) else ()
    if stage and config.primary_key and not key:
        missing = ", ".join(n for n in config.primary_key if n not in names)
        warnings.append(f"primary_key does not apply to {item.name}: it has no column {missing}")
    details: dict[str, Any] = {
        "path": str(file.path),
        "format": file.format,
        "bytes": file.identity.size,
        "mtime_ns": file.identity.mtime_ns,
        "identity": file.identity.digest(),
    }
    if item.sheet is not None:
        details["sheet"] = item.sheet
    if file.gzipped:
        details["packed"] = "gzip"
    if stage:
        details |= {k: v for k, v in stage.facts.items() if k != "row_bytes"} | {"bad_rows": stage.bad_rows}
        if stage.bad_rows and config.on_bad_row == "quarantine":
            details["bad_rows_view"] = f"{item.name}__bad_rows"
    modified = datetime.fromtimestamp(file.identity.mtime_ns / 1e9, UTC) if file.identity.mtime_ns else None
    return Stream(
        id=stream_id(item.namespace, item.name),
        namespace=item.namespace,
        name=item.name,
        kind="file",
        columns=columns,
        primary_key=key,
        primary_key_source="declared" if key else "none",
        row_estimate=stage.rows if stage else None,
        byte_estimate=file.identity.size,
        readable="no" if problem else "yes" if stage else "unknown",
        last_modified=modified.isoformat().replace("+00:00", "Z") if modified else None,
        capabilities=("full", "incremental"),
        watermark_candidates=_candidates(columns),
        warnings=tuple(warnings),
        details=details,
    ).hashed()


def _candidates(columns: Sequence[Column]) -> tuple[WatermarkCandidate, ...]:
    found = []
    for column in columns:
        if column.type.kind in ("timestamp", "timestamptz"):
            named = column.name.lower() in _UPDATED
            reasons = ("a time", "its name says when rows change") if named else ("a time",)
            found.append(WatermarkCandidate(column=column.name, score=0.8 if named else 0.4, reasons=reasons))
    return tuple(sorted(found, key=lambda c: -c.score))


def native_type(type_: DataType) -> str:
    """The engine's name of a canonical type, for comparing bound values."""
    if type_.kind == "decimal":
        return f"DECIMAL({type_.precision}, {type_.scale})"
    return _NATIVE.get(type_.kind, "VARCHAR")
