"""What a connection test finds out about files: whether they are there, how they are written, what their first rows hold.

Looks at the head of each file only (first 1000 rows, first 4 MiB for the encoding); the verdict on the whole content comes
with discovery.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfagent.connectors._files_config import CsvConfig
from hfagent.connectors._files_excel import SheetRows, inspect_workbook
from hfagent.connectors._files_json import JsonRows
from hfagent.connectors._files_rows import exact_batches, plan_text
from hfagent.connectors._files_sniff import has_header
from hfagent.connectors._files_source import open_source, unpacked
from hfagent.connectors._files_stage import Item
from hfagent.connectors._files_text import BadRow, detect_encoding
from hfagent.foundation.errors import AgentError, NotFound
from hfagent.sdk.connector import ConnectorContext
from hfagent.sdk.probe import Probe, Stage

__all__ = ["check_capacity", "check_heads", "check_namespace"]

HEAD_ROWS = 1000
_MAX_FILES = 50
_SHOWN_BAD = 10
_MIB = 1024 * 1024


def check_namespace(items: Sequence[Item], config: CsvConfig, context: ConnectorContext, stage: Stage) -> None:
    """Files exist and lie where the agent may read; every output schema is a folder with files."""
    stage.details |= {
        "path": config.path,
        "files": len({i.file.shown for i in items}),
        "streams": len(items),
        "bytes": sum({i.file.shown: i.file.identity.size for i in items}.values()),
        "allowed_paths": [str(p) for p in context.allowed_paths],
    }
    present = {item.namespace or "main" for item in items}
    for schema in context.output_schemas:
        if schema not in present:
            raise NotFound(
                f"there is no sub-folder {schema!r} with files in {config.path}",
                code="namespace.not_found",
                hint="check output_schemas, and whether recursive is on; files of the folder itself are in 'main'",
            )
    if not items:
        stage.warn(
            "model.not_found",
            f"no file in {config.path} matches" if not config.sheet else f"no workbook has a sheet {config.sheet!r}",
            "check glob, recursive, sheet and the file extensions (csv, tsv, txt, jsonl, xlsx, xls, ods, also .gz)",
        )


def check_heads(
    items: Sequence[Item], config: CsvConfig, context: ConnectorContext, stage: Stage, probe: Probe
) -> None:
    """Open every file, find out how it is written, and parse its first rows. Fails when not one of them can be read."""
    found: dict[str, Any] = {}
    problems: list[AgentError] = []
    readable = 0
    for item in list(items)[:_MAX_FILES]:
        probe.cancel.raise_if_cancelled()
        try:
            if item.problem is not None:
                raise item.problem
            found[item.name] = _head(item, config, context, stage)
            readable += 1
        except AgentError as error:
            problems.append(error)
            found[item.name] = {"code": error.code, "message": error.message}
    stage.details |= {"readable": readable, "visible": len(items), "streams": found}
    if len(items) > _MAX_FILES:
        stage.details["looked_at"] = _MAX_FILES
    if problems and not readable:
        raise problems[0]
    for problem in problems:
        stage.warn(problem.code, problem.message, problem.hint)


def _head(item: Item, config: CsvConfig, context: ConnectorContext, stage: Stage) -> dict[str, Any]:
    file = item.file
    bad: list[BadRow] = []
    facts: dict[str, Any] = {"format": file.format, "bytes": file.identity.size}
    if file.format in ("csv", "tsv"):
        import pyarrow as pa

        plan = plan_text(file, config, context, head_only=True)
        facts |= plan.facts | {"columns": plan.names[:100]}
        for warning in plan.warnings:
            stage.warn("config.invalid", warning, "set encoding, delimiter and header when they are known")
        rows = 0
        if plan.names:
            schema = pa.schema([(f"c{i}", pa.string()) for i in range(len(plan.names))])
            batches = exact_batches(
                file, plan, config, context, bad=bad.append, schema=schema, still_wanted=_nothing, limit=HEAD_ROWS
            )
            rows = sum(batch.num_rows for batch in batches)
    elif file.format == "jsonl":
        with open_source(file, context) as handle:
            encoding = detect_encoding(
                unpacked(file, handle, config.max_unzipped_bytes), config, file.shown, head_only=True
            )
        facts |= {"encoding": encoding.name, "encoding_confidence": encoding.confidence}
        if encoding.warning:
            stage.warn("config.invalid", encoding.warning, "set encoding when it is known")
        reader = JsonRows(file, encoding, config, context, bad=bad.append, limit=HEAD_ROWS)
        rows = sum(count for count, _ in reader)
        facts["columns"] = list(reader.keys)[:100]
    else:
        for warning in inspect_workbook(file, config, context).warnings:
            stage.warn("read.data_invalid", warning)
        sheet = SheetRows(file, item.sheet or "", config, context)
        rows = 0
        for _, block in sheet.read(
            lambda texts: has_header(texts)[0] if config.header == "auto" else config.header == "true"
        ):
            rows += sum(any(row) for row in block)
            if rows >= HEAD_ROWS:
                break
        facts |= {"sheet": item.sheet, "columns": (sheet.header or [])[:100]}
    facts["rows_parsed"] = rows
    if bad:
        facts["bad_rows"] = [{"line": row.line, "reason": row.reason} for row in bad[:_SHOWN_BAD]]
        shown = "; ".join(f"line {row.line} {row.reason}" for row in bad[:3])
        message = f"{file.shown}: {len(bad)} bad rows among the first {rows + len(bad)}: {shown}"
        stage.warn("read.data_invalid", message, f"they are handled by on_bad_row = {config.on_bad_row}")
    if not rows:
        stage.warn("read.data_invalid", f"{file.shown} has no rows")
    return facts


def check_capacity(items: Sequence[Item], config: CsvConfig, directory: Path, stage: Stage) -> None:
    """Files within their limits, and room for the private copies."""
    where = directory if directory.exists() else directory.parent
    free = shutil.disk_usage(where if where.exists() else "/").free
    largest = max((i.file.identity.size for i in items), default=0)
    total = sum({i.file.path: i.file.identity.size for i in items}.values())
    stage.details |= {"free_bytes": free, "largest_file": largest, "total_bytes": total, "max_bytes": config.max_bytes}
    if free < total * 2:
        stage.warn(
            "agent.disk_full",
            f"the files have {total // _MIB} MiB, and the agent's directory for copies has only {free // _MIB} MiB free",
            "make room in the agent's data directory, or narrow the files",
        )


def _nothing() -> None:
    """Nothing has to be checked between the few batches of a head."""
