"""Streams: what a connector exposes (table, view, collection, index, file), as discovery describes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from hfagent.model.data_type import DataType
from hfagent.model.value import Value

__all__ = ["Column", "ForeignKey", "Index", "Stream", "StreamPage", "WatermarkCandidate"]

StreamKind = Literal[
    "table", "view", "materialized_view", "collection", "index", "data_stream", "endpoint", "file", "delta",
    "llm_model", "vector_collection",
]  # fmt: skip


class Column(Value):
    """One column of a stream or of a query result."""

    name: str = Field(description="Exactly as the source stores it.")
    type: DataType = Field(description="Canonical type.")
    native_type: str = Field("", description="The source's own type name.")
    nullable: bool = True
    ordinal: int = Field(0, description="Position, from 1; 0 when unknown.")
    generated: bool = Field(False, description="Computed by the source.")
    hidden: bool = Field(False, description="Not part of SELECT *.")
    masked: bool = Field(False, description="The source masks it for this account.")
    description: str | None = None
    default: str | None = Field(None, description="Default expression, as text.")


class ForeignKey(Value):
    """A declared reference to another stream."""

    name: str | None = None
    columns: tuple[str, ...]
    references_namespace: str | None = None
    references_name: str
    references_columns: tuple[str, ...]


class Index(Value):
    """An index, as far as the optimiser and the watermark doctor care."""

    name: str | None = None
    columns: tuple[str, ...]
    unique: bool = False


class WatermarkCandidate(Value):
    """A column that could drive incremental syncs, with the reasons for its score (0 to 1)."""

    column: str
    score: float
    reasons: tuple[str, ...] = ()


class Stream(Value):
    """One table, view, collection, index, endpoint or file of a connector (connector specification §0.5)."""

    id: str = Field(
        description="Stable within the connector: namespace and name, dot-joined, parts quoted when needed."
    )
    namespace: str | None = Field(None, description="Schema, database or folder.")
    name: str
    kind: StreamKind = "table"
    columns: tuple[Column, ...] = ()
    primary_key: tuple[str, ...] = ()
    primary_key_source: Literal["declared", "unique_index", "inferred", "none"] = "none"
    unique_keys: tuple[tuple[str, ...], ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    indexes: tuple[Index, ...] = ()
    partitioning: str | None = None
    row_estimate: int | None = Field(None, description="The source's own estimate; never counted.")
    byte_estimate: int | None = None
    readable: Literal["yes", "no", "unknown"] = "unknown"
    unreadable_columns: tuple[str, ...] = ()
    last_modified: str | None = None
    capabilities: tuple[Literal["full", "incremental", "change_tracking", "parallel"], ...] = ()
    watermark_candidates: tuple[WatermarkCandidate, ...] = ()
    description: str | None = None
    warnings: tuple[str, ...] = ()
    details: dict[str, Any] = Field(default_factory=dict, description="Type-specific extras.")
    schema_hash: str = ""

    def hashed(self) -> Stream:
        """Return the stream with `schema_hash` set: a digest of what a reader depends on (names, types, keys)."""
        digest = schema_digest(self.kind, [digest_part(column) for column in self.columns], self.primary_key)
        return self.model_copy(update={"schema_hash": digest})


def digest_part(column: Column) -> str:
    """What a column contributes to `schema_hash`."""
    return f"{column.name}\0{column.type}\0{column.native_type}\0{column.nullable}"


def schema_digest(kind: str, parts: Iterable[str], primary_key: Iterable[str]) -> str:
    """The `schema_hash` of a stream, from its columns' parts: for those who describe thousands of streams at once."""
    text = "\x1f".join((kind, *parts, "\0pk", *primary_key))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def stream_id(namespace: str | None, name: str) -> str:
    """Join namespace and name; a part with a dot or a quote is double-quoted so that the id parses back."""
    return ".".join(_part(part) for part in (namespace, name) if part is not None)


def _part(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if "." in text or '"' in text or not text else text


def parse_stream_id(text: str) -> tuple[str | None, str]:
    """Split an id made by `stream_id` (or typed by a user) into namespace and name.

    Raises `ValueError` when a quote does not close or there are more than two parts.
    """
    parts: list[str] = []
    rest = text
    while True:
        if rest.startswith('"'):
            end = 1
            buffer = ""
            while True:
                close = rest.find('"', end)
                if close < 0:
                    raise ValueError(f"unbalanced quote in stream id {text!r}")
                buffer += rest[end:close]
                if rest[close + 1 : close + 2] != '"':
                    break
                buffer += '"'
                end = close + 2
            parts.append(buffer)
            rest = rest[close + 1 :]
        else:
            part, dot, tail = rest.partition(".")
            parts.append(part)
            rest = dot + tail
        if not rest:
            break
        if not rest.startswith("."):
            raise ValueError(f"unexpected text after a quoted part in stream id {text!r}")
        rest = rest[1:]
    if len(parts) == 1:
        return None, parts[0]
    if len(parts) == 2:
        return parts[0], parts[1]
    raise ValueError(
        f"stream id {text!r} has {len(parts)} parts; expected namespace.name, quote parts that contain dots"
    )


class StreamPage(Value):
    """One page of a connector's catalogue."""

    streams: tuple[Stream, ...]
    next_page: str | None = Field(None, description="Pass as `page_token` for the next page; null on the last one.")
    namespaces: tuple[str, ...] = Field(
        (), description="The namespaces that were looked at (resolved `output_schemas`)."
    )
    total: int | None = Field(None, description="Streams in the whole catalogue, when known.")
    discovered_at: str | None = Field(None, description="When the source was asked (UTC); older than now when cached.")
    cached: bool = False
    warnings: tuple[str, ...] = ()
