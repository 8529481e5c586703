"""The canonical column types (connector specification §0.10) and their text form.

    bool int8..int64 uint8..uint64 decimal(p,s) bigdecimal float32 float64 string bytes date time timestamp timestamptz
    interval uuid json array<T> struct geometry vector(n) unknown

`timestamp` is naive, `timestamptz` an instant in UTC; both are microseconds unless written `timestamp(ns)`. `bigdecimal`
is an exact decimal of any size, carried as text. The Arrow side of this table is in `sdk/arrow.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

__all__ = ["DataType", "Kind"]

Kind = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "decimal", "bigdecimal",
    "float32", "float64", "string", "bytes", "date", "time", "timestamp", "timestamptz", "interval", "uuid", "json",
    "array", "struct", "geometry", "vector", "unknown",
]  # fmt: skip

_SIMPLE: Final = frozenset(Kind.__args__)  # type: ignore[attr-defined]
_DECIMAL = re.compile(r"decimal\((\d+),(-?\d+)\)")
_UNIT = re.compile(r"(timestamp|timestamptz|time)\((s|ms|us|ns)\)")


@dataclass(frozen=True, slots=True)
class DataType:
    """One canonical type. `str()` and `parse()` are inverse; on the wire it is the string."""

    kind: Kind
    precision: int | None = None
    scale: int | None = None
    unit: str | None = None
    item: DataType | None = None

    def __str__(self) -> str:
        if self.kind == "decimal":
            return f"decimal({self.precision},{self.scale})"
        if self.kind == "array" and self.item is not None:
            return f"array<{self.item}>"
        if self.kind == "vector" and self.precision:
            return f"vector({self.precision})"
        if self.unit not in (None, "us"):
            return f"{self.kind}({self.unit})"
        return self.kind

    @classmethod
    def parse(cls, text: str) -> DataType:
        """Parse the text form. Raises `ValueError` for anything else."""
        if match := _DECIMAL.fullmatch(text):
            return cls("decimal", precision=int(match[1]), scale=int(match[2]))
        if match := _UNIT.fullmatch(text):
            return cls(match[1], unit=match[2])  # type: ignore[arg-type]
        if text.startswith("array<") and text.endswith(">"):
            return cls("array", item=cls.parse(text[6:-1]))
        if text.startswith("vector(") and text.endswith(")"):
            return cls("vector", precision=int(text[7:-1]))
        if text in _SIMPLE:
            return cls(text)  # type: ignore[arg-type]
        raise ValueError(f"not a canonical type: {text!r}")

    @classmethod
    def decimal(cls, precision: int, scale: int) -> DataType:
        """An exact decimal; beyond 76 digits (Arrow's widest) it becomes `bigdecimal`."""
        if 0 < precision <= 76 and 0 <= scale <= precision:
            return cls("decimal", precision=precision, scale=scale)
        return cls("bigdecimal")

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        from pydantic_core import core_schema

        def build(value: Any) -> DataType:
            return value if isinstance(value, cls) else cls.parse(value)

        return core_schema.no_info_plain_validator_function(
            build,
            serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema()),
            json_schema_input_schema=core_schema.str_schema(),
        )
