"""Types of MySQL and MariaDB in our terms: from the description of a result's column, and from the catalogue.

| native | canonical | note |
|---|---|---|
| TINYINT(1) | bool | int8 when `tinyint1_as_bool` is off |
| integers | int8 … int64, uint8 … uint64 | by the UNSIGNED attribute; MEDIUMINT is 32 bits wide |
| DECIMAL(p,s) | decimal(p,s) | exact, up to 65 digits |
| FLOAT, DOUBLE | float32, float64 | the text protocol rounds FLOAT to six digits, so generated reads widen it on the server |
| DATE, DATETIME, TIMESTAMP | date, timestamp, timestamptz | text under `zero_date: text` |
| TIME | interval | ±838 hours: a duration, not a time of day; ISO 8601 text |
| YEAR | int16 | |
| BIT(1), BIT(n) | bool, bytes | big-endian |
| CHAR, VARCHAR, TEXT, ENUM, INET4, INET6 | string | |
| BINARY, VARBINARY, BLOB, text with a binary collation of its own charset | bytes | |
| SET | array<string> | |
| JSON, LONGTEXT with a JSON_VALID check | json | the server's text |
| UUID | uuid | |
| GEOMETRY and its kin | geometry | WKB, without the four bytes of SRID before it |
| VECTOR(n) | vector(n) | 32-bit floats |

A result does not tell everything (MariaDB sends a UUID as CHAR and JSON as text), so a read of a known stream lets the
catalogue's type win wherever it fits what came over the wire (`refined`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from hfagent.model.data_type import DataType
from hfagent.model.stream import Column

__all__ = ["ValueOptions", "catalogue_type", "refined", "result_column"]

# Type codes of the wire. PyMySQL has them too, but this module must not load the driver.
DECIMAL, TINY, SHORT, LONG, FLOAT, DOUBLE, NULL, TIMESTAMP, LONGLONG, INT24, DATE, TIME, DATETIME, YEAR, NEWDATE = (
    range(15)
)
BIT, VECTOR, JSON, NEWDECIMAL, ENUM, SET, BLOB, VAR_STRING, STRING, GEOMETRY = (
    16,
    242,
    245,
    246,
    247,
    248,
    252,
    253,
    254,
    255,
)

UNSIGNED_FLAG, ENUM_FLAG, SET_FLAG, NOT_NULL_FLAG = 32, 256, 2048, 1
BINARY_CHARSET: Final = 63

_INTEGERS: Final = {
    TINY: ("tinyint", 8),
    SHORT: ("smallint", 16),
    INT24: ("mediumint", 32),
    LONG: ("int", 32),
    LONGLONG: ("bigint", 64),
}
_DATES: Final = {
    DATE: ("date", "date"),
    NEWDATE: ("date", "date"),
    DATETIME: ("datetime", "timestamp"),
    TIMESTAMP: ("timestamp", "timestamptz"),
}
_BYTES_PER_CHARACTER: Final = 4  # results come as utf8mb4, and the length counts bytes


@dataclass(frozen=True)
class ValueOptions:
    """What the user chose about values that MySQL and the world see differently."""

    zero_date: str = "null"
    tinyint1_as_bool: bool = True


def result_column(field: Any, ordinal: int, options: ValueOptions) -> Column:
    """Describe a result's column from its field packet (`type_code`, `flags`, `charsetnr`, `length`, `scale`, `name`)."""
    native, type_ = _wire_type(field, options)
    return Column(
        name=field.name, type=type_, native_type=native, nullable=not field.flags & NOT_NULL_FLAG, ordinal=ordinal
    )  # fmt: skip


def refined(wire: DataType, declared: DataType) -> DataType:
    """The catalogue's type where it says more about the same bytes than the wire does; else the wire's."""
    narrower = {
        "string": ("uuid", "json", "unknown"),
        "float64": ("float32",),
        "bytes": ("vector", "uuid"),
    }
    if declared.kind == "uuid" and wire.kind == "bytes":
        return wire
    return declared if declared.kind in narrower.get(wire.kind, ()) else wire


def _wire_type(field: Any, options: ValueOptions) -> tuple[str, DataType]:
    code = field.type_code
    unsigned = bool(field.flags & UNSIGNED_FLAG)
    if code in _INTEGERS:
        name, bits = _INTEGERS[code]
        if code == TINY and field.length == 1 and not unsigned:
            return "tinyint(1)", DataType("bool") if options.tinyint1_as_bool else DataType("int8")
        return name + (" unsigned" if unsigned else ""), _integer(bits, unsigned)
    if code in (DECIMAL, NEWDECIMAL):
        # The length counts the point, and the sign of a signed column.
        precision = max(field.length - (field.scale > 0) - (not unsigned), field.scale, 1)
        return f"decimal({precision},{field.scale})", DataType.decimal(precision, field.scale)
    if code in _DATES:
        native, kind = _DATES[code]
        return native, DataType("string" if options.zero_date == "text" else kind)  # type: ignore[arg-type]
    if code == BIT:
        return f"bit({field.length})", DataType("bool" if field.length == 1 else "bytes")
    if code in _PLAIN:
        return _PLAIN[code]
    if code == SET or field.flags & SET_FLAG:
        return "set", DataType("array", item=DataType("string"))
    if code == ENUM or field.flags & ENUM_FLAG:
        return "enum", DataType("string")
    return _text_or_bytes(field)


_PLAIN: Final = {
    FLOAT: ("float", DataType("float32")),
    DOUBLE: ("double", DataType("float64")),
    TIME: ("time", DataType("interval")),
    YEAR: ("year", DataType("int16")),
    JSON: ("json", DataType("json")),
    GEOMETRY: ("geometry", DataType("geometry")),
    VECTOR: ("vector", DataType("vector")),
    NULL: ("null", DataType("string")),
}


def _text_or_bytes(field: Any) -> tuple[str, DataType]:
    binary = field.charsetnr == BINARY_CHARSET
    if field.type_code == BLOB:
        return ("blob", DataType("bytes")) if binary else ("text", DataType("string"))
    name = {(STRING, True): "binary", (STRING, False): "char", (VAR_STRING, True): "varbinary"}.get(
        (field.type_code, binary), "varchar"
    )
    size = field.length if binary else field.length // _BYTES_PER_CHARACTER
    return f"{name}({size})", DataType("bytes" if binary else "string")


def _integer(bits: int, unsigned: bool) -> DataType:
    return DataType(f"{'u' if unsigned else ''}int{bits}")  # type: ignore[arg-type]


_SIZE = re.compile(r"\((\d+)")
_BY_NAME: Final = {
    "double": "float64", "float": "float32", "time": "interval", "year": "int16", "json": "json", "uuid": "uuid",
    "date": "date", "datetime": "timestamp", "timestamp": "timestamptz",
    "char": "string", "varchar": "string", "tinytext": "string", "text": "string", "mediumtext": "string", "longtext": "string",
    "enum": "string", "inet4": "string", "inet6": "string",
    "binary": "bytes", "varbinary": "bytes", "tinyblob": "bytes", "blob": "bytes", "mediumblob": "bytes", "longblob": "bytes",
    "geometry": "geometry", "point": "geometry", "linestring": "geometry", "polygon": "geometry", "multipoint": "geometry",
    "multilinestring": "geometry", "multipolygon": "geometry", "geometrycollection": "geometry", "geomcollection": "geometry",
}  # fmt: skip
_WIDTHS: Final = {"tinyint": 8, "smallint": 16, "mediumint": 32, "int": 32, "integer": 32, "bigint": 64}


def catalogue_type(
    name: str, full: str, precision: int | None, scale: int | None, options: ValueOptions, *, is_json: bool = False
) -> DataType:
    """Return the type of a catalogued column: its DATA_TYPE, COLUMN_TYPE, NUMERIC_PRECISION and NUMERIC_SCALE.

    `is_json`: a check constraint says that the text is JSON. A type we do not know is `unknown` and read as the server's text.
    """
    name, full = name.lower(), full.lower()
    if name in _WIDTHS:
        unsigned = "unsigned" in full
        if full.startswith("tinyint(1)") and not unsigned and options.tinyint1_as_bool:
            return DataType("bool")
        return _integer(_WIDTHS[name], unsigned)
    if name in ("decimal", "numeric"):
        return DataType.decimal(precision or 10, scale or 0)
    if name == "bit":
        return DataType("bool" if precision == 1 else "bytes")
    if name == "set":
        return DataType("array", item=DataType("string"))
    if name == "vector":
        size = _SIZE.search(full)
        return DataType("vector", precision=int(size[1]) if size else None)
    if is_json and name in ("longtext", "text", "mediumtext"):
        return DataType("json")
    kind = _BY_NAME.get(name, "unknown")
    if options.zero_date == "text" and kind in ("date", "timestamp", "timestamptz"):
        kind = "string"
    return DataType(kind)  # type: ignore[arg-type]
