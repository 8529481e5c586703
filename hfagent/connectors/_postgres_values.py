"""Columns of text, as PostgreSQL writes its values, into Arrow columns of their canonical types.

`pyarrow.csv` converts plain columns itself. What it has no converter for (bytes, arrays, ranges, very wide decimals) and
what Arrow cannot hold (infinite dates, NaN in a decimal) comes here as text. The second kind is decided by the policy
`special_values`, and whatever is changed is counted, never done silently.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hfagent.connectors._postgres_config import SpecialValues
from hfagent.foundation.errors import SourceError
from hfagent.model.data_type import DataType
from hfagent.sdk.arrow import arrow_type

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TextConverter", "needs_text"]

_TEXT_KINDS = frozenset({"bytes", "geometry", "array", "vector", "struct"})


def needs_text(type_: DataType, native: str) -> bool:
    """Whether a column of this type is always read as text first."""
    wide = type_.kind == "decimal" and (type_.precision or 0) > 38
    return wide or type_.kind in _TEXT_KINDS or (type_.kind == "json" and native.endswith("hstore"))


class TextConverter:
    """Converts the text columns of one result; counts what could not be kept."""

    def __init__(self, special: SpecialValues) -> None:
        self._special = special
        self._changes: Counter[tuple[str, str]] = Counter()

    @property
    def warnings(self) -> list[str]:
        """One sentence for each column and kind of change."""
        return [
            f"column {name}: {count} value{'s' if count > 1 else ''} {what}"
            for (name, what), count in self._changes.items()
        ]

    def convert(self, text: pa.Array, type_: DataType, name: str, native: str = "") -> pa.Array:
        """Convert one column. Raises `SourceError` (`read.data_invalid`) when the policy is to stop."""
        import pyarrow as pa

        try:
            return self._convert(text, type_, name, native)
        except (pa.ArrowInvalid, ValueError, IndexError) as exc:
            raise SourceError(
                f"column {name}: a value cannot be converted to {type_}: {str(exc).splitlines()[0]}",
                code="read.data_invalid",
                hint="select the column cast to text",
            ) from exc

    def _convert(self, text: pa.Array, type_: DataType, name: str, native: str) -> pa.Array:
        import pyarrow as pa

        kind = type_.kind
        if kind == "bytes":
            return _unhex(text)
        if kind == "geometry":
            return pa.array(
                [None if v is None else _plain_wkb(bytes.fromhex(v)) for v in text.to_pylist()], pa.binary()
            )
        if kind == "array":
            return self._array(text, type_, name)
        if kind == "vector":
            values = [None if v is None else [float(x) for x in v[1:-1].split(",") if x] for v in text.to_pylist()]
            return pa.array(values, arrow_type(type_))
        if kind == "struct":
            return pa.array([None if v is None else json.dumps(_range(v)) for v in text.to_pylist()], pa.string())
        if kind == "json" and native.endswith("hstore"):
            return pa.array(
                [None if v is None else json.dumps(_hstore(v), ensure_ascii=False) for v in text.to_pylist()],
                pa.string(),
            )
        if kind == "bool":
            import pyarrow.compute as pc

            return pc.equal(text, "t")
        if kind == "decimal":
            return self._without(text, r"^(NaN|-?Infinity)$", type_, name, "that no decimal can hold").cast(
                arrow_type(type_)
            )
        if kind in ("date", "timestamp", "timestamptz"):
            return self._dated(text, type_, name)
        if kind == "time":
            return self._time(text, type_, name)
        return text.cast(arrow_type(type_))

    def _without(self, text: pa.Array, pattern: str, type_: DataType, name: str, what: str) -> pa.Array:
        """NULL in place of the values that match, or an error."""
        import pyarrow as pa
        import pyarrow.compute as pc

        odd = pc.fill_null(pc.match_substring_regex(text, pattern), False)
        count = pc.sum(odd).as_py() or 0
        if not count:
            return text
        if self._special == "error":
            raise _refused(name, text.filter(odd)[0].as_py(), type_)
        self._changes[name, f"{what} became NULL"] += count
        return pc.if_else(odd, pa.scalar(None, pa.string()), text)

    def _dated(self, text: pa.Array, type_: DataType, name: str) -> pa.Array:
        if self._special != "clamp":
            text = self._without(
                text, r"^-?infinity$|BC$|^\d{5,}", type_, name, "outside the years 1 to 9999 (or infinite)"
            )
            return text.cast(arrow_type(type_))
        import pyarrow as pa
        import pyarrow.compute as pc

        last, first = (
            ("9999-12-31", "0001-01-01")
            if type_.kind == "date"
            else ("9999-12-31 23:59:59.999999", "0001-01-01 00:00:00")
        )
        if type_.kind == "timestamptz":
            last, first = last + "+00", first + "+00"
        for pattern, limit in ((r"^infinity$|^\d{5,}-.*[^C]$", last), (r"^-infinity$|BC$", first)):
            odd = pc.fill_null(pc.match_substring_regex(text, pattern), False)
            if count := pc.sum(odd).as_py():
                self._changes[name, f"outside the years 1 to 9999 became {limit}"] += count
                text = pc.if_else(odd, pa.scalar(limit), text)
        return text.cast(arrow_type(type_))

    def _time(self, text: pa.Array, type_: DataType, name: str) -> pa.Array:
        if self._special != "clamp":
            return self._without(text, r"^24:", type_, name, "24:00:00, which is no time of a day,").cast(
                arrow_type(type_)
            )
        import pyarrow as pa
        import pyarrow.compute as pc

        odd = pc.fill_null(pc.starts_with(text, "24:"), False)
        if count := pc.sum(odd).as_py():
            self._changes[name, "24:00:00 became 23:59:59.999999"] += count
            text = pc.if_else(odd, pa.scalar("23:59:59.999999"), text)
        return text.cast(arrow_type(type_))

    def _array(self, text: pa.Array, type_: DataType, name: str) -> pa.Array:
        import pyarrow as pa

        item = type_.item or DataType("string")
        offsets: list[int | None] = [0]
        values: list[str | None] = []
        missing: list[bool] = []
        for literal in text.to_pylist():
            missing.append(literal is None)
            if literal is not None:
                items, nested = _items(literal)
                values += items
                if nested:
                    if self._special == "error":
                        raise _refused(name, literal, type_)
                    self._changes[name, "of more than one dimension flattened"] += 1
            offsets.append(len(values))
        flat = self._convert(pa.array(values, pa.string()), item, name, "")
        return pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), flat, type=arrow_type(type_), mask=pa.array(missing)
        )


def _refused(name: str, value: Any, type_: DataType) -> SourceError:
    return SourceError(
        f"column {name}: the value {str(value)[:60]!r} has no place in {type_}",
        code="read.data_invalid",
        hint="set special_values to null, clamp or string, or select the column cast to text",
    )


def _unhex(text: pa.Array) -> pa.Array:
    r"""`\x6869` → b"hi"."""
    import pyarrow as pa

    return pa.array([None if v is None else bytes.fromhex(v[2:]) for v in text.to_pylist()], pa.binary())


def _plain_wkb(value: bytes) -> bytes:
    """PostGIS writes EWKB: take the spatial reference out, so that every WKB reader understands it."""
    order = "little" if value[:1] == b"\x01" else "big"
    kind = int.from_bytes(value[1:5], order)  # type: ignore[arg-type]
    if not kind & 0x20000000:
        return value
    return value[:1] + (kind & ~0x20000000).to_bytes(4, order) + value[9:]  # type: ignore[arg-type]


_ARRAY_ITEM = re.compile(r'"((?:[^"\\]|\\.)*)"|([^{},"]+)', re.DOTALL)


def _items(literal: str) -> tuple[list[str | None], bool]:
    """The items of an array literal in order, and whether it has more than one dimension."""
    body = (
        literal[literal.index("=") + 1 :] if literal.startswith("[") else literal
    )  # [0:2]={…}: the lower bound is dropped
    if body == "{}":
        return [], False
    nested = body.startswith("{{")
    if '"' not in body:
        plain = body[1:-1] if not nested else body.replace("{", "").replace("}", "")
        return [None if part == "NULL" else part for part in plain.split(",")], nested
    items: list[str | None] = []
    for match in _ARRAY_ITEM.finditer(body):
        quoted, bare = match.groups()
        items.append(
            re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL) if bare is None else None if bare == "NULL" else bare
        )
    return items, nested


_RANGE = re.compile(r'([\[(])("(?:[^"]|"")*"|[^,"]*),("(?:[^"]|"")*"|[^,"]*)([\])])', re.DOTALL)


def _range(literal: str) -> dict[str, Any]:
    """A range as `{lower, upper, bounds, empty}`; an open end is null."""
    if literal == "empty":
        return {"lower": None, "upper": None, "bounds": "()", "empty": True}
    match = _RANGE.fullmatch(literal)
    if match is None:
        raise ValueError(f"not a range: {literal[:60]!r}")
    left, lower, upper, right = match.groups()
    return {"lower": _range_end(lower), "upper": _range_end(upper), "bounds": left + right, "empty": False}


def _range_end(text: str) -> str | None:
    if text.startswith('"'):
        return re.sub(r'\\(.)|""', lambda m: m[1] or '"', text[1:-1], flags=re.DOTALL)
    return text or None


_PAIR = re.compile(r'"((?:[^"\\]|\\.)*)"=>(?:"((?:[^"\\]|\\.)*)"|NULL)', re.DOTALL)


def _hstore(literal: str) -> dict[str, str | None]:
    def plain(text: str) -> str:
        return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)

    pairs: Iterable[tuple[str, str | None]] = (
        (plain(m[1]), None if m[2] is None else plain(m[2])) for m in _PAIR.finditer(literal)
    )
    return dict(pairs)
