"""Text files as rows of text: encoding, lines, records. Nothing is replaced, nothing is guessed twice.

Encoding: a byte order mark decides; else strict UTF-8 over the whole file; else the declared fallback, strictly as well,
with a warning that names the first byte that is not UTF-8. A byte that the encoding does not know is an error with its
line, never a replacement character.

Records: Python's csv module is the reference reader (`read_records`): it knows line numbers, bad rows, comments and
footers. `_files_fast` reads the same files faster when they need none of that.
"""

from __future__ import annotations

import codecs
import csv
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from hfagent.connectors._files_config import CsvConfig
from hfagent.foundation.errors import ConfigError, SourceError

__all__ = ["BadRow", "Dialect", "Encoding", "Record", "detect_encoding", "read_lines", "read_records"]

CHUNK = 1024 * 1024

_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Encoding:
    """What the bytes are: a codec's name, the length of the byte order mark, and how that is known."""

    name: str
    mark: int = 0
    reason: str = "configured"
    confidence: float = 1.0
    quotes: int = 0
    """How often the quote character occurs (UTF-8 only): an odd number means a quote that does not close."""
    warning: str | None = None


@dataclass(frozen=True)
class Dialect:
    """How the records are written."""

    delimiter: str
    quotechar: str
    escapechar: str
    comment: str

    def reader_options(self) -> dict[str, Any]:
        return {
            "delimiter": self.delimiter,
            "quotechar": self.quotechar or None,
            "quoting": csv.QUOTE_MINIMAL if self.quotechar else csv.QUOTE_NONE,
            "escapechar": self.escapechar or None,
            "doublequote": not self.escapechar or self.escapechar == self.quotechar,
        }


@dataclass(frozen=True)
class BadRow:
    """A row that could not be taken: where it starts (lines from 1), why, and its first characters."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class Record:
    """One record and the line it starts in."""

    line: int
    fields: list[str] = field(default_factory=list)


def detect_encoding(
    handle: BinaryIO, config: CsvConfig, shown: str, *, head_only: bool = False, quote: str = ""
) -> Encoding:
    """Find out the encoding and leave the handle where it ends up. `head_only` looks at the first 4 MiB.

    Raises `ConfigError` when the bytes fit neither UTF-8 nor the fallback.
    """
    head = handle.read(CHUNK)
    for mark, name in _MARKS:
        if head.startswith(mark) and config.encoding.lower().replace("_", "-") in (
            "auto",
            name,
            name[:6],
            name[:5],
            "utf-8-sig",
        ):
            if name != "utf-8":
                return Encoding(name, len(mark), "byte order mark")
            found = _strict_utf8(handle, head, quote, head_only)
            if isinstance(found, int):
                return Encoding("utf-8", len(mark), "byte order mark", quotes=found)
            raise _undecodable("utf-8", found, shown)
    if config.encoding != "auto":
        name = codecs.lookup(config.encoding).name
        if name in ("utf-16", "utf-32"):
            name = f"{name}-le"  # without a mark; what nearly every writer means
        if name != "utf-8":
            return Encoding(name)
        found = _strict_utf8(handle, head, quote, head_only)
        if isinstance(found, int):
            return Encoding("utf-8", quotes=found)
        raise _undecodable("utf-8", found, shown)
    if guess := _utf16_without_mark(head):
        warning = f"{shown}: looks like UTF-16 without a byte order mark and is read as {guess}"
        return Encoding(guess, reason="every other byte is zero", confidence=0.8, warning=warning)
    found = _strict_utf8(handle, head, quote, head_only)
    if isinstance(found, int):
        return Encoding("utf-8", reason="valid UTF-8", quotes=found)
    if not config.fallback_encoding:
        raise _undecodable("utf-8", found, shown)
    name = codecs.lookup(config.fallback_encoding).name
    warning = f"{shown}: not UTF-8 (first at line {found.line}, byte {found.offset}); read as {name}"
    return Encoding(name, reason="fallback", confidence=0.5, warning=warning)


@dataclass(frozen=True)
class _Misfit:
    offset: int
    line: int
    byte: int


def _strict_utf8(handle: BinaryIO, head: bytes, quote: str, head_only: bool) -> int | _Misfit:
    """Count the quotes of valid UTF-8, or say where it stops being that."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    mark = quote.encode() if quote else b""
    offset = line = quotes = chunks = 0
    chunk = head
    while True:
        last = not chunk
        try:
            decoder.decode(chunk, final=last)
        except UnicodeDecodeError as exc:
            pending = len(exc.object) - len(chunk)  # bytes held back from the chunk before
            at = max(exc.start - pending, 0)
            return _Misfit(offset + exc.start - pending, line + chunk.count(b"\n", 0, at) + 1, exc.object[exc.start])
        if last:
            return quotes
        if mark:
            quotes += chunk.count(mark)
        offset += len(chunk)
        line += chunk.count(b"\n")
        chunks += 1
        if head_only and chunks >= 4:
            return quotes
        chunk = handle.read(CHUNK)


def _utf16_without_mark(head: bytes) -> str | None:
    sample = head[:4096]
    if len(sample) < 8:
        return None
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    half = len(sample) // 2
    if odd > half * 0.6 and even < half * 0.05:
        return "utf-16-le"
    if even > half * 0.6 and odd < half * 0.05:
        return "utf-16-be"
    return None


def _undecodable(name: str, misfit: _Misfit, shown: str) -> ConfigError:
    return ConfigError(
        f"{shown} is not {name}: byte 0x{misfit.byte:02x} at position {misfit.offset} (line {misfit.line})",
        field="encoding",
        hint="set encoding to what the file is written in, for instance windows-1252, iso-8859-1, gb18030 or shift_jis",
    )


def decode(handle: BinaryIO, encoding: Encoding, shown: str) -> Iterator[str]:
    """Yield the text in chunks, without its byte order mark. Raises `ConfigError` for bytes the encoding does not know."""
    decoder = codecs.getincrementaldecoder(encoding.name)("strict")
    handle.read(encoding.mark)
    line, offset = 1, encoding.mark
    while True:
        chunk = handle.read(CHUNK)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as exc:
            good = exc.object[: exc.start].decode(encoding.name, "ignore")
            pending = len(exc.object) - len(chunk)
            where = _Misfit(offset + exc.start - pending, line + good.count("\n"), exc.object[exc.start])
            raise _undecodable(encoding.name, where, shown) from exc
        if text:
            line += text.count("\n")
            yield text
        if not chunk:
            return
        offset += len(chunk)


def read_lines(handle: BinaryIO, encoding: Encoding, shown: str, max_line: int = 256 * 1024 * 1024) -> Iterator[str]:
    """Yield physical lines with their ends (LF, CRLF or CR). A line beyond `max_line` characters is an error."""
    rest = ""
    for text in decode(handle, encoding, shown):
        if rest.endswith("\r"):  # may be the first half of a CRLF
            text = rest + text
            rest = ""
        pieces = _split(text)
        pieces[0] = rest + pieces[0]
        rest = pieces.pop()
        if rest == "" and pieces and pieces[-1].endswith("\r"):
            rest = pieces.pop()
        if len(rest) > max_line:
            raise SourceError(
                f"{shown} has a line of more than {max_line} characters",
                code="read.limit_exceeded",
                hint="check that it is a text file with line ends",
            )
        yield from pieces
    if rest:
        yield from (piece for piece in _split(rest) if piece)


def _split(text: str) -> list[str]:
    """Split at LF, CRLF and CR only (`splitlines` knows nine more); the last piece is the unfinished line."""
    if "\r" not in text:
        pieces = [line + "\n" for line in text.split("\n")]
        pieces[-1] = pieces[-1][:-1]
        return pieces
    pieces = []
    for line in text.split("\n"):
        parts = line.split("\r")
        if len(parts) > 1 and parts[-1] == "":  # …\r\n
            parts.pop()
            pieces += [part + "\r" for part in parts[:-1]]
            pieces.append(parts[-1] + "\r\n")
        else:
            pieces += [part + "\r" for part in parts[:-1]]
            pieces.append(parts[-1] + "\n")
    pieces[-1] = pieces[-1][:-1]
    return pieces


class read_records:
    """Iterate over the records of some lines: `Record` for what can be read, `BadRow` for what cannot.

    Blank lines and comments are left out; a quote that never closes costs the line it opens in, not the rest of the
    file. `consumed` is the number of lines taken so far.
    """

    def __init__(
        self, lines: Iterator[str], dialect: Dialect, *, first_line: int = 1, max_record: int = 64 * 1024 * 1024
    ) -> None:
        csv.field_size_limit(sys.maxsize)  # process-wide; our own limits apply
        self._source = lines
        self._dialect = dialect
        self._line = first_line - 1
        self._max_record = max_record
        self._again: deque[str] = deque()
        self._pending: list[str] = []
        self._size = 0
        self.exhausted = False

    @property
    def consumed(self) -> int:
        return self._line

    def _next_line(self) -> str | None:
        if self._again:
            return self._again.popleft()
        return next(self._source, None)

    def _lines(self) -> Iterator[str]:
        comment = self._dialect.comment
        while True:
            line = self._next_line()
            if line is None:
                self.exhausted = True
                return
            self._line += 1
            if comment and not self._pending and line.startswith(comment):
                continue
            self._pending.append(line)
            self._size += len(line)
            if self._size > self._max_record:
                raise _TooLong
            yield line

    def __iter__(self) -> Iterator[Record | BadRow]:
        options = self._dialect.reader_options()
        reader = csv.reader(self._lines(), **options)
        while True:
            self._pending, self._size = [], 0
            try:
                fields = next(reader)
                if self._pending and self.exhausted and self._never_closed():
                    raise _TooLong
            except StopIteration:
                return
            except _TooLong:
                yield self._give_back("a quoted field is not closed")
                reader = csv.reader(self._lines(), **options)
                continue
            except csv.Error as exc:
                yield self._give_back(str(exc))
                reader = csv.reader(self._lines(), **options)
                continue
            if fields:
                yield Record(self._line - len(self._pending) + 1, fields)

    def _never_closed(self) -> bool:
        options = self._dialect.reader_options() | {"strict": True}
        try:
            list(csv.reader(iter(self._pending), **options))
        except csv.Error as exc:
            return "unexpected end of data" in str(exc)
        return False

    def _give_back(self, reason: str) -> BadRow:
        """Take the first pending line as bad and read the others again."""
        first, *others = self._pending
        self._line -= len(others)
        self._again.extendleft(reversed(others))
        self.exhausted = False
        return BadRow(self._line, reason, first.rstrip("\r\n")[:1000])


class _TooLong(Exception):
    """A record grew beyond reason: its quote never closes."""
