"""Message bodies to Python values and back, strictly: JSON and MessagePack. Pure functions, no protocol knowledge.

Both decoders refuse what two peers could read differently (duplicate keys, NaN, lone surrogates, integers beyond 64 bits,
MessagePack extensions) and what costs the reader far more than the sender (deep nesting, millions of empty containers,
declared sizes that the body cannot hold).

Architecture Invariant: whatever the bytes, a decoder returns a value or raises `DecodeError`; it needs memory in
proportion to the body, with a small factor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from hfagent.transport.framing import JSON, Encoding

__all__ = ["DecodeError", "decode", "decode_json", "decode_msgpack", "encode", "encode_json", "encode_msgpack"]

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 1_000_000
"""Values in one message; a decoded empty list costs 28 times its text."""
MAX_CONTAINERS: Final = 200_000

_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**64 - 1


class DecodeError(ValueError):
    """The body is not a message this agent reads. The text never quotes the body: it may hold a secret."""


def decode(body: bytes, encoding: Encoding) -> Any:
    """Return the value in `body`. Raises `DecodeError`."""
    return decode_json(body) if encoding == JSON else decode_msgpack(body)


def encode(value: Any, encoding: Encoding) -> bytes:
    """Return `value` as bytes. Raises `TypeError` or `ValueError` for what the encoding cannot carry."""
    return encode_json(value) if encoding == JSON else encode_msgpack(value)


# --- JSON -----------------------------------------------------------------------------------------------------------


def decode_json(body: bytes) -> Any:
    """Decode strict JSON (RFC 8259, UTF-8, no BOM). Raises `DecodeError`."""
    brackets = body.count(b"[") + body.count(b"{")
    if brackets > MAX_DEPTH or len(body) > _LARGE:
        _check_json_shape(body)
    try:
        value = _decode_text(body.decode())
    except UnicodeDecodeError as exc:
        raise DecodeError(f"the text is not UTF-8 (byte {exc.start})") from None
    except json.JSONDecodeError as exc:
        raise DecodeError(f"the text is not JSON: {exc.msg} (character {exc.pos})") from None
    except DecodeError:
        raise
    except (ValueError, RecursionError) as exc:
        raise DecodeError("the text is not JSON that can be read") from exc
    if b"\\u" in body and _SURROGATE.search(body):
        _check_surrogates(value)
    return value


def encode_json(value: Any) -> bytes:
    """Encode as compact JSON. NaN and infinities raise `ValueError`."""
    return _encode_text(value).encode()


def _object(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise DecodeError("an object has the same key twice")
    return result


def _integer(text: str) -> int:
    if len(text) <= 18:
        return int(text)
    if len(text) > 20 or not _INT_MIN <= (value := int(text)) <= _INT_MAX:
        raise DecodeError("an integer is beyond 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise DecodeError("a number is too large")
    return value


def _constant(name: str) -> Any:
    raise DecodeError(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _decode_text(text: str) -> Any:
    if text[:1] in "{[":  # the usual case, without the decoder's searches for white space around the value
        value, end = _decoder.raw_decode(text)
        if end == len(text):
            return value
    return _decoder.decode(text)


_encode_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

# Linear whatever the bytes: possessive, so that a hostile run of backslashes leaves nothing to go back to; and a string
# without end reaches to the end of the body, so that it is not tried again from each of its escaped quotes.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_BRACKETS: Final = bytes(b for b in range(256) if b not in b"[]{}")
_LARGE: Final = 256 * 1024


def _check_json_shape(body: bytes) -> None:
    """Count containers, values and depth without building anything."""
    if len(body) <= _LARGE:
        brackets: Iterable[int] = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    else:
        brackets = _brackets(body)  # slower, but it holds one string at a time and stops at the first excess
    containers = depth = 0
    for byte in brackets:
        if byte in b"[{":
            containers += 1
            depth += 1
            if depth > MAX_DEPTH:
                raise DecodeError(f"the message is nested deeper than {MAX_DEPTH}")
            if containers > MAX_CONTAINERS:
                raise DecodeError("the message has too many values")
        else:
            depth -= 1


def _brackets(body: bytes) -> Iterator[int]:
    """Yield the brackets outside of strings. Raises `DecodeError` when there are more commas outside than values allowed."""
    commas = body.count(b",")
    strings = 0
    for match in _TOKEN.finditer(body):
        start, end = match.span()
        if end - start == 1:
            yield body[start]
            continue
        strings += 1
        if strings > 2 * MAX_VALUES:
            raise DecodeError("the message has too many values")
        if commas > MAX_VALUES:
            commas -= body.count(b",", start, end)
    if commas > MAX_VALUES:
        raise DecodeError("the message has too many values")


def _check_surrogates(value: Any) -> None:
    """An escape of half a character decodes to a string that no encoder can write again."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                raise DecodeError("a string has half a surrogate pair") from None
        elif isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


# --- MessagePack ----------------------------------------------------------------------------------------------------

_ARRAY_UNCHECKED: Final = 131_072  # longest array taken without a scan; a list is allocated before its items are read
_SUSPECTS_UNCHECKED: Final = 16

_EXTENSIONS: Final = bytes([0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8])
_LONG_ARRAYS: Final = b"\xdc\xdd"
_CONTAINERS: Final = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_PLAIN: Final = bytes(b for b in range(256) if b not in _CONTAINERS and b not in _EXTENSIONS)

_FIXED: Final = {  # type byte → payload bytes
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip
_COUNTED: Final = {  # type byte → bytes of the length that follows
    0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4,
}  # fmt: skip


def decode_msgpack(body: bytes) -> Any:
    """Decode one MessagePack value; map keys are strings. Raises `DecodeError`."""
    import msgpack

    suspects = body.translate(None, _PLAIN)
    array_limit = min(len(body), _ARRAY_UNCHECKED)
    if suspects and (
        len(suspects) > MAX_DEPTH
        or len(suspects.translate(None, _LONG_ARRAYS)) + _SUSPECTS_UNCHECKED < len(suspects)
        or len(suspects.translate(None, _EXTENSIONS)) < len(suspects)
    ):
        # Only bytes that look like it: they may well be part of text or binary. The scan knows.
        _check_msgpack_shape(body)
        array_limit = len(body)
    try:
        return msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_map,
            ext_hook=_extension,
            max_array_len=array_limit,
            max_map_len=len(body),
        )
    except DecodeError:
        raise
    except UnicodeDecodeError as exc:
        raise DecodeError("a string is not UTF-8") from exc
    except Exception as exc:
        # The library raises a family of unrelated types (ExtraData, FormatError, StackError, ValueError).
        raise DecodeError(f"the body is not MessagePack ({type(exc).__name__})") from exc


def encode_msgpack(value: Any) -> bytes:
    """Encode as MessagePack; `bytes` stay binary, what it does not know goes through pydantic's JSON form."""
    import msgpack

    packed: bytes = msgpack.packb(value, use_bin_type=True, default=_plain)
    return packed


def _map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise DecodeError("a map has the same key twice")
    return result


def _extension(code: int, _data: bytes) -> Any:
    raise DecodeError(f"MessagePack extension {code} is not part of the protocol")


def _plain(value: Any) -> Any:
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


def _check_msgpack_shape(body: bytes) -> None:
    """Walk the structure without building it: depth, number of values, declared sizes, extensions."""
    size = len(body)
    position = values = 0
    left = [1]  # values still to come, per open container
    while left:
        if left[-1] == 0:
            left.pop()
            continue
        left[-1] -= 1
        if position >= size:
            raise DecodeError("the body ends inside a value")
        values += 1
        if values > MAX_VALUES:
            raise DecodeError("the message has too many values")
        kind = body[position]
        position += 1
        if kind < 0x80 or kind >= 0xE0:
            continue
        children = 0
        if kind < 0x90:
            children = 2 * (kind & 0x0F)
        elif kind < 0xA0:
            children = kind & 0x0F
        elif kind < 0xC0:
            position += kind & 0x1F
        elif kind in _FIXED:
            position += _FIXED[kind]
        elif kind in _COUNTED:
            width = _COUNTED[kind]
            length = int.from_bytes(body[position : position + width], "big")
            position += width
            if kind >= 0xDC:
                children = length if kind < 0xDE else 2 * length
            else:
                position += length
        else:
            raise DecodeError("the message has a MessagePack extension, which is not part of the protocol")
        if children or kind in _CONTAINERS:
            if children > size - position:
                raise DecodeError("a container declares more values than the message can hold")
            left.append(children)
            if len(left) > MAX_DEPTH + 1:
                raise DecodeError(f"the message is nested deeper than {MAX_DEPTH}")
    if position != size:
        raise DecodeError("the body does not end with its value")
