"""Strict decoding: hostile bodies are refused with an error, in memory proportional to their size."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfagent.transport.encoding import DecodeError, decode_json, decode_msgpack, encode_json, encode_msgpack

ACCEPTED = {
    b"{}": {},
    b' \t\r\n{"a": [1, 2.5, "x", null, true]} \n': {"a": [1, 2.5, "x", None, True]},
    b"18446744073709551615": 2**64 - 1,
    b"-9223372036854775808": -(2**63),
    b'"\\ud83d\\ude00"': "\U0001f600",
    b'"\xf0\x9f\x98\x80"': "\U0001f600",
    b'{"a":{"a":1}}': {"a": {"a": 1}},
    b"1e300": 1e300,
    b'"' + b"[{" * 5000 + b'"': "[{" * 5000,
    b"[" * 64 + b"]" * 64: None,
}

REFUSED = [
    b"", b" ", b"{", b"}", b"[1,]", b'{"a":1,}', b"{'a':1}", b"nul", b"NaN", b"[NaN]", b"Infinity", b"-Infinity",
    b"1e400", b"-1e400", b"[1e999]", b"18446744073709551616", b"-9223372036854775809", b"9" * 5000, b"[" + b"1" * 5000 + b"]",
    b'{"a":1,"a":2}', b'{"x":{"a":1,"b":2,"a":3}}', b'"\\ud800"', b'["\\udfff"]', b'{"\\ud800":1}', b'{"a":"x\\uD83D"}',
    b"\xef\xbb\xbf{}", '{"a":1}'.encode("utf-16"), '{"a":1}'.encode("utf-32"), b"\xff", b'"\xc3"', b'"\xed\xa0\x80"', b'"\x00"',
    b'"\x1f"', b"{}{}", b"{} x", b"\x00", b"{}\x00", b"[" * 65 + b"]" * 65, b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000,
    b"[" + b"[]," * 250_000 + b"[]]", b"01", b"+1", b".5", b"1.", b"0x10", b"'a'", b'"\\x"', b'"\\u12"', b'"', b"// c\n{}", b"True",
]  # fmt: skip


@pytest.mark.parametrize("body", list(ACCEPTED), ids=range(len(ACCEPTED)))
def test_json_accepted(body: bytes) -> None:
    value = decode_json(body)
    assert ACCEPTED[body] is None or value == ACCEPTED[body]


@pytest.mark.parametrize("body", REFUSED, ids=[repr(body[:20]) for body in REFUSED])
def test_json_refused(body: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_json(body)
    assert len(str(caught.value)) < 200


def test_the_error_never_quotes_the_body() -> None:
    with pytest.raises(DecodeError) as caught:
        decode_json(b'{"password": "canary-4711", "password": "canary-4711"}')
    assert "canary" not in str(caught.value)
    with pytest.raises(DecodeError) as caught:
        decode_json(b'{"password": canary-4711}')
    assert "canary" not in str(caught.value)


def test_msgpack_round_trip_keeps_bytes() -> None:
    value = {"a": [1, -1, 2**64 - 1, 1.5, None, True, "é", b"\x00\xff"], "b": {"c": {}}}
    assert decode_msgpack(encode_msgpack(value)) == value


MSGPACK_REFUSED = {
    "empty": b"",
    "two values": b"\xc0\xc0",
    "cut": b"\x92\x01",
    "reserved": b"\xc1",
    "timestamp": msgpack.packb(msgpack.Timestamp(1, 2)),
    "timestamp inside": msgpack.packb({"a": [msgpack.Timestamp(1)]}),
    "extension": msgpack.packb(msgpack.ExtType(5, b"abc")),
    "integer key": msgpack.packb({1: 2}),
    "same key twice": b"\x82\xa1a\x01\xa1a\x02",
    "bad utf-8": b"\xa2\xff\xfe",
    "surrogate": b"\xa3\xed\xa0\x80",
    "deep": b"\x91" * 70 + b"\x00",
    "very deep": b"\x91" * 60_000 + b"\x00",
    "array of 4 G": b"\xdd\xff\xff\xff\xff",
    "map of 4 G": b"\xdf\xff\xff\xff\xff",
    "string of 4 G": b"\xdb\xff\xff\xff\xff",
    "binary of 4 G": b"\xc6\xff\xff\xff\xff",
    "nested arrays, each as long as the frame": b"\xdd\x00\x00\xff\xff" * 13_000,
    "many empty lists": b"\xdd" + (1_100_000).to_bytes(4, "big") + b"\x90" * 1_100_000,
}


@pytest.mark.parametrize("name", list(MSGPACK_REFUSED))
def test_msgpack_refused(name: str) -> None:
    with pytest.raises(DecodeError):
        decode_msgpack(MSGPACK_REFUSED[name])


def test_bombs_cost_no_more_memory_than_a_message_may() -> None:
    """16 MiB of each kind of bomb, in a process of its own; the control shows what the plain decoder pays for one."""
    script = """
import sys
from hfagent.transport.encoding import DecodeError, decode_json, decode_msgpack
size = 16 * 1024 * 1024
def peak():  # of this program alone: ru_maxrss is inherited from whoever started it
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
before = peak()
nested = lambda: b"\\xdd\\x00\\x01\\xff\\xff" * (size // 5)
for decode, make in [
    (decode_msgpack, nested),
    (decode_msgpack, lambda: b"\\xdd" + (size - 5).to_bytes(4, "big") + b"\\x90" * (size - 5)),
    (decode_json, lambda: b"[" + b"[]," * (size // 3 - 1) + b"[]]"),
    (decode_json, lambda: b"[" * size),
    (decode_json, lambda: b'{"a":' * (size // 5)),
    (decode_json, lambda: b'"' + b"\\\\" * (size - 1)),
    (decode_json, lambda: b'"' + b'\\\\"' * (size // 2)),
    (decode_json, lambda: b'""' * (size // 2)),
    (decode_json, lambda: b'[' + b'1,' * (size // 2 - 1) + b'1]'),
]:
    body = make()  # one at a time: the bodies together would hide what decoding takes
    try: decode(body)
    except DecodeError: pass
    else: print("accepted")
    del body
print(peak() - before)
import json
try: json.loads(b"[" + b"[]," * (size // 3 - 1) + b"[]]")
except Exception: pass
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    ours, control = map(int, done.stdout.split())
    assert ours < 150
    assert control > 2 * ours


def _plain(value: Any) -> bool:
    return not (isinstance(value, float) and not math.isfinite(value))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_round_trips(value: Any) -> None:
    assert decode_json(encode_json(value)) == value
    assert decode_msgpack(encode_msgpack(value)) == value


@given(st.binary(max_size=100))
def test_any_bytes_decode_or_are_refused(body: bytes) -> None:
    for decode in (decode_json, decode_msgpack):
        try:
            decode(body)
        except DecodeError:
            pass


@given(st.binary(max_size=60).map(lambda tail: b"\x82\xa1a" + tail))
def test_the_scan_and_the_library_agree(body: bytes) -> None:
    """What the scan refuses for its structure the library must not read as a message, and the other way round."""
    from hfagent.transport import encoding

    try:
        encoding._check_msgpack_shape(body)
        scanned = True
    except DecodeError:
        scanned = False
    try:
        msgpack.unpackb(body, raw=True, strict_map_key=False, ext_hook=lambda code, data: 1 / 0, timestamp=3)
        read = True
    except Exception:
        read = False
    if (
        b"\xd6\xff" not in body and b"\xd7\xff" not in body and b"\xc7\x0c\xff" not in body
    ):  # timestamps: ours to refuse
        assert not (read and not scanned) or len(body) > 60


def test_json_the_standard_library_accepts_and_we_do_not_is_only_what_we_name() -> None:
    for body in (b"NaN", b'{"a":1,"a":2}', b'"\\ud800"', b"1e400", b"[" * 65 + b"]" * 65, b"18446744073709551616"):
        json.loads(body)
        with pytest.raises(DecodeError):
            decode_json(body)
