"""How a stream is laid out in a catalogue row: a key that sorts, a text to search, a compact body.

The body is the stream's JSON without defaults (they come back on reading), deflated. Measured on tables of 20 columns:
4,284 bytes of JSON, 2,291 without defaults, 553 deflated at level 1 in 14 µs; level 6 saves another 6 % for 30 % more time.
"""

from __future__ import annotations

import unicodedata
import zlib
from typing import Any, Final

from hfagent.model.stream import Stream
from hfagent.store.failures import StoreFailed

__all__ = ["COLUMNS", "from_body", "search_text", "sort_key", "to_row"]

COLUMNS: Final = ("sort_key", "stream_id", "namespace", "name", "kind", "schema_hash", "folded", "body")

_RAW, _DEFLATED = b"j", b"z"


def to_row(stream: Stream) -> tuple[Any, ...]:
    """Return the values of `COLUMNS`."""
    if not stream.schema_hash:
        stream = stream.hashed()
    full_name = stream.name if stream.namespace is None else f"{stream.namespace}.{stream.name}"
    return (
        sort_key(stream.namespace, stream.name),
        stream.id,
        stream.namespace,
        stream.name,
        stream.kind,
        stream.schema_hash,
        search_text(full_name),
        _encoded(stream.model_dump_json(exclude_defaults=True).encode()),
    )


def sort_key(namespace: str | None, name: str) -> bytes:
    """Bytes that compare as (namespace, name) do, by code point, with no namespace first.

    Zero bytes within a part are escaped, so that no two pairs share a key, whatever the names hold.
    """
    if namespace is None:
        return b"\x00" + _escaped(name)
    return b"\x01" + _escaped(namespace) + b"\x00\x01" + _escaped(name)


def _escaped(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").replace(b"\x00", b"\x00\xff")


def search_text(text: str) -> str:
    """The form in which texts are compared when case is ignored."""
    return unicodedata.normalize("NFC", text).casefold()


def _encoded(json_text: bytes) -> bytes:
    """Deflate when that makes it smaller; the first byte tells."""
    deflated = zlib.compress(json_text, 1)
    return _DEFLATED + deflated if len(deflated) < len(json_text) else _RAW + json_text


def from_body(body: bytes) -> Stream:
    """Return the stream of a body. Raises `StoreFailed` when it cannot be read."""
    try:
        if body[:1] == _DEFLATED:
            return Stream.model_validate_json(zlib.decompress(body[1:]))
        if body[:1] == _RAW:
            return Stream.model_validate_json(body[1:])
    except (zlib.error, ValueError) as exc:
        raise _unreadable() from exc
    raise _unreadable()


def _unreadable() -> StoreFailed:
    return StoreFailed("a stream of the cached catalogue cannot be read", hint="ask the source again: refresh the list")
