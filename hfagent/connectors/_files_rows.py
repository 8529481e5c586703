"""CSV and TSV files as Arrow batches of text columns.

Two readers for the same records. The fast one (Arrow's) takes whole files of UTF-8 whose every row has the same number of
fields; it refuses anything else, and then the exact one (`read_records`) starts over, with line numbers and bad rows. Both
give the same values: tests hold them against each other.
"""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO

from hfagent.connectors._files_config import CsvConfig
from hfagent.connectors._files_sniff import column_names, has_header, sniff_dialect
from hfagent.connectors._files_source import SourceFile, open_source, unpacked
from hfagent.connectors._files_text import (
    BadRow,
    Dialect,
    Encoding,
    Record,
    detect_encoding,
    read_lines,
    read_records,
)
from hfagent.foundation.errors import SourceError
from hfagent.sdk.connector import ConnectorContext

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Refused", "TextPlan", "exact_batches", "fast_batches", "fast_possible", "plan_text"]

_HEAD_LINES = 400
_SNIFF_RECORDS = 100
_BATCH_ROWS = 20_000
_BATCH_CHARACTERS = 16 * 1024 * 1024
_FAST_BLOCK = 4 * 1024 * 1024


class Refused(Exception):
    """The fast reader will not take the file; the exact one must."""


@dataclass
class TextPlan:
    """How a text file is read: all that is known before its first row."""

    encoding: Encoding
    dialect: Dialect
    names: list[str]
    header: bool
    body_line: int
    """Line of the first record after the header, from 1."""
    body_offset: int
    """Bytes before it, when the encoding is UTF-8."""
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def plan_text(file: SourceFile, config: CsvConfig, context: ConnectorContext, *, head_only: bool = False) -> TextPlan:
    """Find encoding, dialect, header and names. Reads the whole file once for its encoding unless `head_only`."""
    with open_source(file, context) as handle:
        content = unpacked(file, handle, config.max_unzipped_bytes)
        encoding = detect_encoding(content, config, file.shown, head_only=head_only, quote=config.quotechar)
    with open_source(file, context) as handle:
        content = unpacked(file, handle, config.max_unzipped_bytes)
        lines = read_lines(content, encoding, file.shown)
        skipped = list(islice(lines, config.skip_rows))
        head = list(islice(lines, _HEAD_LINES))
        sniffed = sniff_dialect(head, config, "\t" if file.format == "tsv" else ",")
        skipped += head[: sniffed.hint_lines]
        head = head[sniffed.hint_lines :]
        taken: list[str] = []
        records = read_records(_kept(chain(head, lines), taken), sniffed.dialect, first_line=len(skipped) + 1)
        first: list[Record] = []
        body_line = len(skipped) + 1
        for record in records:
            if isinstance(record, Record):
                first.append(record)
                if len(first) == 1:
                    body_line = records.consumed + 1
            if len(first) > _SNIFF_RECORDS:
                break
    rows = [r.fields for r in first]
    if config.header == "auto":
        header, sure = has_header(rows)
    else:
        header, sure = config.header == "true", 1.0
    if not header:
        body_line = len(skipped) + 1
    width, notes = _width(rows, header)
    if width > config.max_columns:
        raise SourceError(
            f"{file.shown} has {width} columns, more than max_columns ({config.max_columns})",
            code="read.limit_exceeded",
            hint="raise max_columns, or check the delimiter",
        )
    names, renamed = column_names(rows[0] if header and rows else None, width)
    before = "".join(skipped) + "".join(taken[: body_line - 1 - len(skipped)])
    offset = encoding.mark + len(before.encode("utf-8")) if encoding.name == "utf-8" else 0
    warnings = [encoding.warning] if encoding.warning else []
    warnings += [f"{file.shown}: {note}" for note in (notes + renamed)[:20]]
    if not rows:
        warnings.append(f"{file.shown} is empty")
    facts = {
        "encoding": encoding.name,
        "encoding_reason": encoding.reason,
        "encoding_confidence": encoding.confidence,
        "byte_order_mark": encoding.mark > 0,
        "delimiter": sniffed.dialect.delimiter,
        "delimiter_confidence": sniffed.confidence,
        "header": header,
        "header_confidence": sure,
    }
    return TextPlan(encoding, sniffed.dialect, names, header, body_line, offset, warnings, facts)


def _kept(lines: Iterator[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def _width(rows: list[list[str]], header: bool) -> tuple[int, list[str]]:
    if not rows:
        return 0, []
    first = len(rows[0])
    body = rows[1:] if header else rows
    if not body:
        return first, []
    usual, count = Counter(map(len, body)).most_common(1)[0]
    if not header:
        return usual, []
    if usual > first and count > 0.8 * len(body):
        if all(not any(row[first:]) for row in body):
            return first, []  # only a delimiter at the end of each row
        return usual, [f"the header names {first} columns, the rows have {usual}"]
    return first, []


# --- the exact reader ---


def exact_batches(
    file: SourceFile, plan: TextPlan, config: CsvConfig, context: ConnectorContext, *,
    bad: Callable[[BadRow], None], schema: pa.Schema, still_wanted: Callable[[], None], limit: int | None = None,
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """Yield the rows as text. `bad` hears of every row that is left out; `limit` stops after so many rows."""
    import pyarrow as pa

    width = len(plan.names)
    with open_source(file, context) as handle:
        content = unpacked(file, handle, config.max_unzipped_bytes)
        lines = read_lines(content, plan.encoding, file.shown)
        for _ in range(plan.body_line - 1):
            next(lines, None)
        rows: list[list[str]] = []
        size = total = 0
        for record in _without_footer(read_records(lines, plan.dialect, first_line=plan.body_line), config.footer_rows):
            if isinstance(record, BadRow):
                bad(record)
                continue
            fields = record.fields
            if len(fields) != width:
                if len(fields) > width and not any(fields[width:]):
                    fields = fields[:width]
                else:
                    bad(BadRow(record.line, f"has {len(fields)} fields, expected {width}", _text(fields, plan.dialect)))
                    continue
            length = sum(map(len, fields))
            if length * 4 > config.max_field_bytes and (long := _too_long(fields, config.max_field_bytes)) is not None:
                name = plan.names[long]
                bad(
                    BadRow(
                        record.line, f"the value of {name} is longer than max_field_bytes", _text(fields, plan.dialect)
                    )
                )
                continue
            rows.append(fields)
            size += length
            total += 1
            if limit is not None and total >= limit:
                break
            if len(rows) >= _BATCH_ROWS or size >= _BATCH_CHARACTERS:
                still_wanted()
                yield pa.record_batch([pa.array(c, pa.string()) for c in zip(*rows, strict=True)], schema=schema)
                rows, size = [], 0
        if rows:
            yield pa.record_batch([pa.array(c, pa.string()) for c in zip(*rows, strict=True)], schema=schema)


def _without_footer(records: read_records, count: int) -> Iterator[Record | BadRow]:
    if not count:
        yield from records
        return
    held: deque[Record | BadRow] = deque()
    for record in records:
        held.append(record)
        if len(held) > count:
            yield held.popleft()


def _too_long(fields: list[str], limit: int) -> int | None:
    return next((i for i, value in enumerate(fields) if len(value) * 4 > limit and len(value.encode()) > limit), None)


def _text(fields: list[str], dialect: Dialect) -> str:
    import csv

    out = io.StringIO()
    try:
        csv.writer(out, delimiter=dialect.delimiter, lineterminator="").writerow([f[:1000] for f in fields[:100]])
    except csv.Error:
        return repr(fields[:20])[:1000]
    return out.getvalue()[:1000]


# --- the fast reader ---


def fast_possible(plan: TextPlan, config: CsvConfig) -> bool:
    """Whether the fast reader may try: plain UTF-8, one delimiter, balanced quotes, nothing special."""
    dialect = plan.dialect
    return (
        plan.encoding.name == "utf-8"
        and not dialect.comment
        and not dialect.escapechar
        and not config.footer_rows
        and dialect.delimiter.isascii()
        and dialect.quotechar.isascii()
        and plan.encoding.quotes % 2 == 0
        and len(plan.names) > 0
    )


def fast_batches(
    file: SourceFile, plan: TextPlan, config: CsvConfig, context: ConnectorContext, *, schema: pa.Schema,
    still_wanted: Callable[[], None],
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """Yield the rows as text, or raise `Refused` at the first thing that is not plain."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as arrow_csv

    with open_source(file, context) as handle:
        content = unpacked(file, handle, config.max_unzipped_bytes)
        _advance(content, plan.body_offset)
        try:
            reader = arrow_csv.open_csv(
                content,
                read_options=arrow_csv.ReadOptions(column_names=schema.names, block_size=_FAST_BLOCK),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=plan.dialect.delimiter,
                    quote_char=plan.dialect.quotechar or False,
                    newlines_in_values=bool(plan.dialect.quotechar),
                ),
                convert_options=arrow_csv.ConvertOptions(
                    column_types={name: pa.string() for name in schema.names}, strings_can_be_null=False
                ),
            )
            for batch in reader:
                still_wanted()
                if batch.nbytes > config.max_field_bytes:
                    for column in batch.columns:
                        if (pc.max(pc.binary_length(column)).as_py() or 0) > config.max_field_bytes:
                            raise Refused
                yield batch
        except pa.ArrowInvalid as exc:
            raise Refused from exc


def _advance(content: BinaryIO, count: int) -> None:
    if content.seekable():
        content.seek(count)
        return
    while count > 0:
        data = content.read(min(count, 1024 * 1024))
        if not data:
            return
        count -= len(data)
