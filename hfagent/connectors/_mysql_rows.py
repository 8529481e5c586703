"""The rows of an open result as Arrow record batches, decoded a column at a time.

PyMySQL sends the statement and reads the column descriptions. From there on the packets of the text protocol are taken in
blocks from the connection's buffered file: one short loop finds where each row starts, numpy walks the length-encoded
fields of all rows of a block together, and a column's bytes become an Arrow binary array *over the block itself* (its
offsets are start0, end0, start1, end1, …: every second entry is a value, the others are the gaps). `take` packs the
values and Arrow's own casts make integers, exact decimals, dates and text of them. Turning rows into Python tuples first
takes an order of magnitude longer.

Not here: who cancels, when to give up, what an error means (`_mysql_reader`). The driver's private parts that this module
touches are named in `_mysql_session.Session`, which owns the connection.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hfagent.connectors import _mysql_types as types
from hfagent.foundation.errors import AgentError
from hfagent.model.stream import Column

__all__ = ["BLOCK_BYTES", "Block", "Decoder", "blocks"]

BLOCK_BYTES: Final = 1024 * 1024
"""Wire bytes per batch. Larger blocks are no faster, and fall out of the processor's cache."""

_FIRST_BLOCK_BYTES: Final = 16 * 1024
_MAX_BATCH_ROWS: Final = 50_000
_CHUNK_BYTES: Final = 256 * 1024
_LONG_PACKET: Final = 0xFFFFFF  # a packet this long continues in the next one
_HEADER = struct.Struct("<I").unpack_from  # three bytes of length, one of sequence number


@dataclass(slots=True)
class Block:
    """Bytes, and where the payload of each row in them starts and ends."""

    data: np.ndarray[Any, np.dtype[np.uint8]]
    starts: list[int]
    ends: list[int]


def blocks(
    read: Callable[[int], bytes], sequence: int, *, size: int = BLOCK_BYTES, first_rows: int = 0
) -> Iterator[Block | bytes]:
    """Yield the rows in blocks, then the payload of the packet that ended them (EOF or ERR).

    `read(n)` returns at most `n` bytes, at least one unless the connection ended (then it raises). With `first_rows` the
    first block is yielded as soon as it holds so many. Raises `ValueError` when the packets are out of sequence.
    """
    rest = b""
    wanted = _FIRST_BLOCK_BYTES if first_rows else size
    while True:
        data = np.empty(max(wanted, len(rest) + 65_536), np.uint8)
        view: Any = memoryview(data)  # type: ignore[arg-type]
        fill = len(rest)
        view[:fill] = rest
        starts: list[int] = []
        ends: list[int] = []
        position = 0  # the first packet that has not been seen whole
        terminal: bytes | None = None
        pieces = 0  # of a row of 16 MB and more; it closes its block, so that the sequence numbers stay simple
        while True:
            last = fill - 4
            while position <= last:
                length = _HEADER(view, position)[0] & 0xFFFFFF
                if length == _LONG_PACKET:
                    joined = _join(data, view, position, fill)
                    if joined is None:
                        break  # not all here yet
                    end, fill, pieces = joined
                else:
                    end = position + 4 + length
                    if end > fill:
                        break
                starts.append(position + 4)
                ends.append(end)
                position = end
                if pieces:
                    break
            if starts and position == fill and not pieces and _is_end(view[starts[-1] : position]):
                terminal = bytes(view[starts[-1] : position])
                break
            if pieces or fill == len(data) or (first_rows and len(starts) >= first_rows):
                break
            chunk = read(min(len(data) - fill, _CHUNK_BYTES, wanted))
            view[fill : fill + len(chunk)] = chunk
            fill += len(chunk)
        if terminal is None or terminal[:1] != b"\xff":  # a server that shuts down numbers its last word 0
            sequence = _check_sequence(data, starts[:-1] if pieces else starts, sequence)
            sequence = (sequence + pieces) & 255
        if terminal is not None:
            starts.pop()
            ends.pop()
        rest = bytes(view[position:fill])
        if starts:
            yield Block(data, starts, ends)
            first_rows, wanted = 0, size
        elif terminal is None:
            wanted = 2 * len(data)  # a row bigger than a block: room for twice what there is of it
        if terminal is not None:
            yield terminal
            return


def _is_end(payload: memoryview) -> bool:
    """EOF or ERR. A row never starts with 0xFF, and one that starts with 0xFE has eight bytes of length behind it."""
    return len(payload) > 0 and (payload[0] == 0xFF or (payload[0] == 0xFE and len(payload) < 9))


def _check_sequence(data: np.ndarray[Any, Any], starts: list[int], sequence: int) -> int:
    if starts:
        wanted = (np.arange(sequence, sequence + len(starts)) & 255).astype(np.uint8)
        if not np.array_equal(data[np.array(starts) - 1], wanted):
            raise ValueError("packets out of sequence")
    return (sequence + len(starts)) & 255


def _join(data: np.ndarray[Any, Any], view: Any, position: int, fill: int) -> tuple[int, int, int] | None:
    """Close the gaps between the pieces of a long row: its end, the new fill, the pieces; None if it is not complete."""
    heads: list[int] = []
    end = position
    while True:
        if end + 4 > fill:
            return None
        length = int(_HEADER(view, end)[0]) & 0xFFFFFF
        if end + 4 + length > fill:
            return None
        heads.append(end)
        end += 4 + length
        if length < _LONG_PACKET:
            break
    for head in reversed(heads[1:]):
        data[head : fill - 4] = data[head + 4 : fill].copy()
        fill -= 4
        end -= 4
    return end, fill, len(heads)


class Decoder:
    """Turns blocks into record batches of one schema, and counts what had to be changed on the way."""

    def __init__(
        self, columns: Sequence[Column], codes: Sequence[int], schema: pa.Schema, options: types.ValueOptions
    ) -> None:
        self._columns = tuple(columns)
        self._codes = tuple(codes)
        self._schema = schema
        self._options = options
        self.nulled: dict[str, int] = {}
        """Column → dates without a calendar day that were read as NULL."""
        self.odd_booleans: dict[str, int] = {}
        """Column → values of a TINYINT(1) that are neither 0 nor 1."""

    def batches(self, block: Block) -> Iterator[pa.RecordBatch]:
        """Decode a block. Raises `AgentError` `read.data_invalid` naming the column whose value cannot be represented."""
        batch = self._decode(block)
        for start in range(0, batch.num_rows, _MAX_BATCH_ROWS):
            yield batch.slice(start, _MAX_BATCH_ROWS) if batch.num_rows > _MAX_BATCH_ROWS else batch

    def warnings(self) -> list[str]:
        """Sentences about values that were changed."""
        return [
            *(
                f"{count} zero or impossible date(s) in {name!r} were read as NULL"
                for name, count in self.nulled.items()
            ),
            *(
                f"{count} value(s) of {name!r} are neither 0 nor 1 and were read as true; tinyint1_as_bool keeps numbers when off"
                for name, count in self.odd_booleans.items()
            ),
        ]

    def _decode(self, block: Block) -> pa.RecordBatch:
        data, rows = block.data, len(block.starts)
        buffer = pa.py_buffer(data)
        wide = len(data) > 0x7FFFFFFF
        position = np.array(block.starts, np.int64)
        even = np.arange(0, 2 * rows, 2, dtype=np.int64)
        arrays: list[pa.Array] = []
        for index in range(len(self._columns)):
            start, length, null = _field_bounds(data, position)
            position = start + length
            offsets = np.empty(2 * rows, np.int64 if wide else np.int32)
            offsets[0::2], offsets[1::2] = start, position
            if self._columns[index].type.kind == "geometry":  # four bytes of SRID come before the WKB
                offsets[0::2] = np.minimum(start + 4, position)
            over = pa.Array.from_buffers(
                pa.large_binary() if wide else pa.binary(), 2 * rows - 1, [None, pa.py_buffer(offsets), buffer]
            )
            raw = over.take(pa.array(even, mask=null))
            arrays.append(self._convert(index, raw.cast(pa.binary()) if wide else raw))
        if not np.array_equal(position, np.array(block.ends, np.int64)):
            raise ValueError("a row does not fill its packet")
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _convert(self, index: int, raw: pa.Array) -> pa.Array:
        column, target = self._columns[index], self._schema.types[index]
        try:
            return self._cast(column, self._codes[index], raw, target)
        except (pa.ArrowInvalid, ValueError) as exc:
            reason = str(exc).split("\n")[0]
            raise AgentError(
                f"column {column.name!r} ({column.native_type}) holds a value that {column.type} cannot hold: {reason[:120]}",
                code="read.data_invalid",
                hint="correct the value, leave the column out, or (for dates) set zero_date to null or text",
            ) from exc

    def _cast(self, column: Column, code: int, raw: pa.Array, target: pa.DataType) -> pa.Array:
        kind = column.type.kind
        if kind in ("bytes", "geometry"):
            return raw
        if kind == "vector":
            return _vectors(raw, target)
        if code == types.BIT:
            return pc.not_equal(raw, b"\0")
        text = raw.cast(pa.string())  # this checks the UTF-8
        if kind == "bool":
            return self._booleans(column.name, text)
        if kind == "interval":
            return _durations(text)
        if kind == "array":
            return _sets(text)
        if kind in ("date", "timestamp", "timestamptz"):
            return self._dates(column, text, target)
        if kind == "float32":
            return text.cast(pa.float64()).cast(pa.float32())
        return text if target == pa.string() else text.cast(target)

    def _booleans(self, name: str, text: pa.Array) -> pa.Array:
        numbers = text.cast(pa.int8())
        odd = pc.sum(pc.invert(pc.is_in(numbers, pa.array([0, 1, None], pa.int8())))).as_py() or 0
        if odd:
            self.odd_booleans[name] = self.odd_booleans.get(name, 0) + odd
        return pc.not_equal(numbers, 0)

    def _dates(self, column: Column, text: pa.Array, target: pa.DataType) -> pa.Array:
        try:
            values = _parse_dates(text, target)
        except pa.ArrowInvalid:
            if self._options.zero_date != "null":
                raise
        else:
            # Year 0 is a date to Arrow, but to neither Python nor the calendar.
            if not pc.any(pc.starts_with(text, "0000")).as_py():
                return values
            if self._options.zero_date != "null":
                raise ValueError("the year is 0000")
        kept = [value if value is None or _is_date(value) else None for value in text.to_pylist()]
        cleaned = pa.array(kept, pa.string())
        self.nulled[column.name] = self.nulled.get(column.name, 0) + cleaned.null_count - text.null_count
        return _parse_dates(cleaned, target)


def _field_bounds(
    data: np.ndarray[Any, Any], position: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Where the next field of every row starts, how long it is, and which are NULL (None: no row's)."""
    first = data[position].astype(np.int64)
    start = position + 1
    if int(first.max()) < 251:
        return start, first, None
    null = first == 251
    length = np.where(null, 0, first)
    for code, width in ((252, 2), (253, 3), (254, 8)):
        rows = np.flatnonzero(first == code)
        if len(rows):
            at, value = start[rows], np.zeros(len(rows), np.int64)
            for byte in range(width):
                value |= data[at + byte].astype(np.int64) << (8 * byte)
            length[rows] = value
            start[rows] += width
    return start, length, null if null.any() else None


def _parse_dates(text: pa.Array, target: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(target) and target.tz is not None:
        # The session's time_zone is UTC, so the text is the instant; casting text to an instant would want an offset in it.
        return text.cast(pa.timestamp(target.unit)).cast(pa.int64()).cast(target)
    return text.cast(target)


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _durations(text: pa.Array) -> pa.Array:
    """`-838:59:59.500000` → `PT-838H-59M-59.5S`: ISO 8601 with signed parts, no part that is zero."""
    text = pc.replace_substring_regex(
        text, r"^(-?)0*(\d+):0?(\d+):0?(\d+)((?:\.\d*[1-9])?)\.?0*$", r"PT\1\2H\1\3M\1\4\5S"
    )
    for _ in range(2):
        text = pc.replace_substring_regex(text, r"([A-Z])-?0[HM]", r"\1")
    text = pc.replace_substring_regex(text, r"([A-Z])-?0S$", r"\1")
    return pc.replace_substring_regex(text, r"^PT$", "PT0S")


def _sets(text: pa.Array) -> pa.Array:
    """`a,b` → [a, b]; the empty text is the empty set. A member never contains a comma."""
    parts = pc.split_pattern(text, ",")
    empty = pc.fill_null(pc.equal(text, ""), False)
    if not pc.any(empty).as_py():
        return parts
    return pc.if_else(empty, pa.scalar([], parts.type), parts)


def _vectors(raw: pa.Array, target: pa.DataType) -> pa.Array:
    return pa.array([None if value is None else np.frombuffer(value, "<f4") for value in raw.to_pylist()], target)
