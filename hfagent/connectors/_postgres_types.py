"""PostgreSQL types as canonical types: one rule for discovery (by catalogue) and for results (by oid and modifier)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hfagent.connectors._postgres_config import SpecialValues
from hfagent.model.data_type import DataType, Kind

__all__ = ["LOOKUP", "TypeFacts", "builtin", "canonical", "facts_from_row", "native_name"]


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """What the catalogue says about a type; domains are resolved to their base already."""

    name: str
    shape: str = "b"
    """`typtype`: b base, c composite, e enum, r range, m multirange, p pseudo."""
    category: str = "U"
    display: str = ""
    """As SQL writes it, without a modifier."""
    item: TypeFacts | None = None
    """Element type of an array."""
    delimiter: str = ","
    modifier: int = -1
    """Of a domain: what its base type is restricted to."""


_KINDS: Final[dict[str, Kind]] = {
    "bool": "bool", "int2": "int16", "int4": "int32", "int8": "int64", "oid": "int64", "xid": "int64", "cid": "int64",
    "xid8": "uint64", "float4": "float32", "float8": "float64", "text": "string", "varchar": "string", "bpchar": "string",
    "char": "string", "name": "string", "citext": "string", "money": "string", "xml": "string", "bit": "string",
    "varbit": "string", "timetz": "string", "bytea": "bytes", "date": "date", "time": "time", "timestamp": "timestamp",
    "timestamptz": "timestamptz", "interval": "interval", "uuid": "uuid", "json": "json", "jsonb": "json", "hstore": "json",
    "geometry": "geometry", "geography": "geometry", "vector": "vector",
}  # fmt: skip

_TEXTUAL: Final = frozenset(
    [
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
        "point",
        "line",
        "lseg",
        "box",
        "path",
        "polygon",
        "circle",
        "tsvector",
        "tsquery",
        "jsonpath",
        "pg_lsn",
        "tid",
        "regclass",
        "regproc",
        "regprocedure",
        "regoper",
        "regoperator",
        "regtype",
        "regrole",
        "regnamespace",
        "regconfig",
        "regdictionary",
        "regcollation",
        "int2vector",
        "oidvector",
        "txid_snapshot",
        "pg_snapshot",
        "unknown",
        "void",
        "cstring",
        "record",
        "aclitem",
        "refcursor",
        "ltree",
        "lquery",
        "halfvec",
        "sparsevec",
    ]
)
"""Types whose text form is what people know them by; any other type of that kind gets a warning."""

_DATED: Final = frozenset({"date", "timestamp", "timestamptz"})


@functools.lru_cache(maxsize=4096)
def canonical(facts: TypeFacts, modifier: int, special: SpecialValues = "null") -> DataType:
    """The canonical type. Whatever has none is text, as the server writes it."""
    modifier = modifier if modifier >= 0 else facts.modifier
    if facts.item is not None:
        if facts.item.item is not None or facts.item.delimiter != ",":
            return DataType("string")
        return DataType("array", item=canonical(facts.item, modifier, special))
    if facts.name == "numeric" and facts.shape == "b":
        return _numeric(modifier)
    if facts.shape == "r":
        return DataType("struct")
    kind = _KINDS.get(facts.name) if facts.shape == "b" else None
    if kind is None or (special == "string" and kind in _DATED):
        return DataType("string")
    if kind == "vector":
        return DataType("vector", precision=modifier if modifier > 0 else None)
    return DataType(kind)


def is_foreign(facts: TypeFacts) -> bool:
    """Whether a type is text only because we do not know it."""
    if facts.item is not None:
        return is_foreign(facts.item)
    return facts.shape == "b" and facts.name not in _KINDS and facts.name not in _TEXTUAL and facts.name != "numeric"


def _numeric(modifier: int) -> DataType:
    if modifier < 4:
        return DataType("bigdecimal")
    precision, scale = (modifier - 4) >> 16, (modifier - 4) & 0x7FF
    if scale >= 1024:  # PostgreSQL 15: a negative scale rounds to tens, hundreds, …
        precision, scale = precision + 2048 - scale, 0
    return DataType.decimal(max(precision, scale), scale)


def native_name(facts: TypeFacts, modifier: int) -> str:
    """The type as SQL writes it, modifier included (what `format_type` says)."""
    if facts.item is not None:
        return native_name(facts.item, modifier) + "[]"
    display = facts.display or facts.name
    if modifier < 0:
        return display
    if facts.name == "numeric" and modifier >= 4:
        scale = (modifier - 4) & 0x7FF
        return f"{display}({(modifier - 4) >> 16},{scale - 2048 if scale >= 1024 else scale})"
    if facts.name in ("varchar", "bpchar") and modifier >= 4:
        return f"{display}({modifier - 4})"
    if facts.name in ("bit", "varbit", "vector"):
        return f"{display}({modifier})"
    if facts.name in ("time", "timestamp", "timetz", "timestamptz"):
        head, space, tail = display.partition(" ")
        return f"{head}({modifier}){space}{tail}"
    return display


# --- types of a result: by oid ---

LOOKUP: Final = """\
SELECT t.oid, t.typname, t.typtype, t.typcategory, format_type(t.oid, NULL),
       e.oid IS NOT NULL, coalesce(b.typname, e.typname), coalesce(b.typtype, e.typtype), coalesce(b.typcategory, e.typcategory),
       format_type(e.oid, NULL), coalesce(b.typdelim, e.typdelim)
FROM pg_catalog.pg_type t
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' AND t.typlen = -1
LEFT JOIN pg_catalog.pg_type b ON b.oid = e.typbasetype AND e.typtype = 'd'
WHERE t.oid IN ({oids})"""


def facts_from_row(row: tuple[Any, ...]) -> TypeFacts:
    """Facts from a row of LOOKUP without its oid."""
    name, shape, category, display, is_array, item_name, item_shape, item_category, item_display, delimiter = row
    item = TypeFacts(item_name, item_shape, item_category, item_display, None, delimiter) if is_array else None
    return TypeFacts(name, shape, category, display, item)


@functools.lru_cache(maxsize=1)
def builtin() -> Mapping[int, TypeFacts]:
    """Facts of the types that have the same oid everywhere."""
    from psycopg.postgres import types

    result: dict[int, TypeFacts] = {}
    for info in _infos(types):
        shape = {"RangeInfo": "r", "MultirangeInfo": "m"}.get(type(info).__name__, "b")
        facts = TypeFacts(info.name, shape, "U", info.regtype or info.name)
        if info.name == "box":
            facts = TypeFacts("box", "b", "G", "box", None, ";")
        result[info.oid] = facts
        if info.array_oid:
            result[info.array_oid] = TypeFacts("_" + info.name, "b", "A", facts.display + "[]", facts)
    result[18] = TypeFacts("char", "b", "Z", '"char"')
    return result


def _infos(types: Any) -> Iterable[Any]:
    return [info for info in types if info.oid and info.oid < 10_000]
