"""Excel and OpenDocument workbooks: sheets as rows of text cells with their kinds.

The workbook is parsed by a child process with bounded memory (`_files_excel_child`), which gets the opened file and
nothing else. Before that, a packed workbook is unpacked once, into nothing: that bounds its size whatever its directory
claims, and counts error cells and formulas without a stored result, which the parser shows as empty.

Formulas give their stored results, macros are never looked at, merged cells have their value in the first cell only, dates
follow the workbook's own epoch (1900 or 1904). XML entities are not expanded.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from hfagent.connectors._files_config import CsvConfig
from hfagent.connectors._files_source import SourceFile, open_source
from hfagent.foundation.errors import AgentError, ConfigError, NotFound, SourceError, UserError
from hfagent.sdk.connector import ConnectorContext

__all__ = ["Inspection", "SheetRows", "inspect_workbook", "list_sheets"]

CHILD_MEMORY = 3 * 1024**3
_CHILD = str(Path(__file__).with_name("_files_excel_child.py"))
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_ERROR_CELL = re.compile(rb"<c\s[^>]*t=\"e\"")
_NO_RESULT = re.compile(rb"</f>\s*(?:<v\s*/>|<v></v>)?\s*</c>")
_KINDS = {"b": "bool", "n": "number", "s": "string", "D": "datetime", "d": "date", "t": "time"}
_RANGE = re.compile(r"([A-Za-z]{1,3})([0-9]{0,7}):([A-Za-z]{1,3})([0-9]{0,7})")


@dataclass(frozen=True)
class Sheet:
    """A sheet's name and whether users see it."""

    name: str
    visible: bool


@dataclass
class Inspection:
    """What was counted in a packed workbook, over all its sheets."""

    unzipped_bytes: int = 0
    error_cells: int = 0
    formulas_without_result: int = 0
    warnings: list[str] = field(default_factory=list)


def list_sheets(file: SourceFile, config: CsvConfig, context: ConnectorContext) -> list[Sheet]:
    """Return the worksheets (no chart or macro sheets) in the workbook's order."""
    inspect_workbook(file, config, context)
    with open_source(file, context) as handle, _Child(file, handle, "list") as child:
        found = [line for line in child if line["kind"] == "WorkSheet"]
    return [Sheet(line["name"], line["visible"]) for line in found]


def inspect_workbook(file: SourceFile, config: CsvConfig, context: ConnectorContext) -> Inspection:
    """Unpack the workbook into nothing. Raises `read.limit_exceeded`, `auth.method_unsupported` or `read.corrupt`."""
    result = Inspection()
    with open_source(file, context) as handle:
        head = handle.read(8)
        if head == _OLE:
            if _contains(handle, _ENCRYPTED):
                raise _encrypted(file)
            return result
        if not zipfile.is_zipfile(handle):
            raise _corrupt(file, "it is neither a packed nor a binary workbook")
        try:
            with zipfile.ZipFile(handle) as archive:
                for entry in archive.infolist():
                    _inspect_entry(archive, entry, handle, result, config, file)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as exc:
            raise _corrupt(file, str(exc)) from exc
    if result.error_cells:
        result.warnings.append(f"{file.shown}: {result.error_cells} cells hold an error such as #DIV/0! and are NULL")
    if result.formulas_without_result:
        result.warnings.append(
            f"{file.shown}: {result.formulas_without_result} formulas have no stored result and are NULL; open and save the "
            "workbook in a spreadsheet program"
        )
    return result


def _inspect_entry(
    archive: zipfile.ZipFile,
    entry: zipfile.ZipInfo,
    handle: BinaryIO,
    result: Inspection,
    config: CsvConfig,
    file: SourceFile,
) -> None:
    if entry.flag_bits & 1:
        raise _encrypted(file)
    sheet = entry.filename.startswith("xl/worksheets/") and entry.filename.endswith(".xml")
    tail = b""
    for data in _unpack(entry, handle):
        result.unzipped_bytes += len(data)
        if result.unzipped_bytes > config.max_unzipped_bytes:
            raise SourceError(
                f"the workbook {file.shown} unpacks to more than max_unzipped_bytes ({config.max_unzipped_bytes})",
                code="read.limit_exceeded",
                hint="raise max_unzipped_bytes if the file is trusted",
            )
        if sheet:
            text = tail + data
            cut = text.rfind(b"</c>") + 4 if b"</c>" in text else 0  # whole cells only; the rest waits for its end
            result.error_cells += len(_ERROR_CELL.findall(text, 0, cut))
            result.formulas_without_result += len(_NO_RESULT.findall(text, 0, cut))
            tail = text[cut:][-65536:]


def _unpack(entry: zipfile.ZipInfo, handle: BinaryIO) -> Iterator[bytes]:
    """Unpack by the compressed data alone: the directory's size is only a claim."""
    handle.seek(entry.header_offset)
    header = handle.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no entry where {entry.filename!r} should be")
    handle.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
    left = entry.compress_size
    if entry.compress_type == zipfile.ZIP_STORED:
        while left > 0 and (data := handle.read(min(left, 1 << 20))):
            left -= len(data)
            yield data
        return
    if entry.compress_type != zipfile.ZIP_DEFLATED:
        raise zipfile.BadZipFile(f"{entry.filename!r} is packed in a way that workbooks do not use")
    inflater = zlib.decompressobj(-15)
    while left > 0 and not inflater.eof and (data := handle.read(min(left, 1 << 18))):
        left -= len(data)
        while data:
            yield inflater.decompress(data, 1 << 20)
            data = inflater.unconsumed_tail


class SheetRows:
    """The rows of one sheet below its header; iterate for blocks of rows of `(text, kind)` cells or None."""

    def __init__(self, file: SourceFile, sheet: str, config: CsvConfig, context: ConnectorContext) -> None:
        self._file = file
        self._sheet = sheet
        self._config = config
        self._context = context
        self.header: list[str] | None = None
        self.warnings: list[str] = []
        self.width = 0
        self.first_row = config.header_row + 1

    def read(
        self, is_header: Callable[[list[list[str]]], bool]
    ) -> Iterator[tuple[int, list[list[tuple[str, str] | None]]]]:
        """Yield (row number of the block's first row, rows). `is_header` judges the first rows once."""
        first_column, last_column, first_row, last_row = _bounds(self._config.range)
        top = max(self._config.header_row - 1, first_row)
        with open_source(self._file, self._context) as handle, _Child(self._file, handle, "rows", self._sheet) as child:
            lines = iter(child)
            about = next(lines, {"start": None, "merged": 0})
            if about.get("merged"):
                self.warnings.append(
                    f"{self._sheet} has {about['merged']} merged ranges; the value is in the first cell only"
                )
            # The parser leaves out empty columns on the left; a range counts them.
            start: Any = about.get("start")
            margin = [None] * start[1] if start and self._config.range else []
            row_number = 0
            judged = False
            for block in lines:
                rows = [(margin + row)[first_column:last_column] for row in block]
                start, row_number = row_number, row_number + len(rows)
                low, high = max(top - start, 0), None if last_row is None else max(last_row - start, 0)
                rows = rows[low:high]
                start += low
                if not rows:
                    continue
                if not judged:
                    while rows and self._config.header_row == 1 and not any(rows[0]):
                        rows, start = rows[1:], start + 1  # empty rows above the table
                    if not rows:
                        continue
                    judged = True
                    self.width = max(len(row) for row in rows)
                    self._check_width()
                    while self.width and all(len(r) < self.width or r[self.width - 1] is None for r in rows):
                        self.width -= 1  # columns that only formatting reaches
                    texts = [[cell[1] if cell else "" for cell in row] for row in rows[:100]]
                    if is_header(texts):
                        self.header = texts[0]
                        rows, start = rows[1:], start + 1
                self.width = max(self.width, _used(rows, self.width))
                self._check_width()
                yield start + 1, [[(c[1], _KINDS[c[0]]) if c else None for c in row] for row in rows]

    def _check_width(self) -> None:
        if self.width > self._config.max_columns:
            raise SourceError(
                f"{self._sheet} in {self._file.shown} has {self.width} columns, more than max_columns",
                code="read.limit_exceeded",
                hint="set range to the cells that matter, or raise max_columns",
            )


def _used(rows: list[list[Any]], known: int) -> int:
    for row in rows:
        for position in range(len(row) - 1, known - 1, -1):
            if row[position] is not None:
                known = position + 1
                break
    return known


def _bounds(text: str) -> tuple[int, int | None, int, int | None]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return 0, None, 0, None
    first, last = sorted((_column(match[1]), _column(match[3])))
    rows = [int(match[2]) if match[2] else 1, int(match[4]) if match[4] else 0]
    return first, last + 1, max(rows[0] - 1, 0), rows[1] or None


def _column(letters: str) -> int:
    number = 0
    for letter in letters.upper():
        number = number * 26 + ord(letter) - 64
    return number - 1


class _Child:
    """The parser's process: iterate over its lines; leaving the block ends it."""

    def __init__(self, file: SourceFile, handle: BinaryIO, *arguments: str) -> None:
        handle.seek(0)
        self._file = file
        command = [sys.executable, "-I", _CHILD, str(CHILD_MEMORY), *arguments]
        self._process = subprocess.Popen(
            command, stdin=handle, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"LC_ALL": "C.UTF-8"}
        )

    def __enter__(self) -> _Child:
        return self

    def __iter__(self) -> Iterator[Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            value = json.loads(line)
            if isinstance(value, dict) and "problem" in value:
                raise self._problem(value["problem"], value["text"])
            yield value
        status = self._process.wait()
        if status != 0:
            raise self._problem(
                "memory" if status < 0 or status == 1 else "corrupt", f"the parser ended with status {status}"
            )

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _problem(self, what: str, text: str) -> AgentError:
        if what == "password":
            return _encrypted(self._file)
        if what == "no_sheet":
            return NotFound(
                f"the workbook {self._file.shown} has no sheet of that name",
                code="model.not_found",
                hint="clear the field sheet to see all visible sheets",
            )
        if what == "memory":
            return SourceError(
                f"the workbook {self._file.shown} needs more than {CHILD_MEMORY // 1024**2} MiB, or is damaged ({text})",
                code="read.limit_exceeded",
                hint="save the sheet as CSV, or delete cells far away from the data",
            )
        return _corrupt(self._file, text)


def _contains(handle: BinaryIO, needle: bytes) -> bool:
    tail = b""
    while chunk := handle.read(1 << 20):
        if needle in tail + chunk:
            return True
        tail = chunk[-len(needle) :]
    return False


def _encrypted(file: SourceFile) -> UserError:
    return UserError(
        f"the workbook {file.shown} is protected by a password",
        code="auth.method_unsupported",
        hint="save it without a password; encrypted workbooks cannot be opened here",
    )


def _corrupt(file: SourceFile, reason: str) -> ConfigError:
    return ConfigError(
        f"the workbook {file.shown} cannot be read: {reason}",
        field="format",
        hint="check that it opens in a spreadsheet program and that format is right",
    )
