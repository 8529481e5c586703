"""The frame codec: whatever the chunking, the same frames; whatever the garbage, one error and nothing collected."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfagent.transport.framing import JSON, MSGPACK, FrameDecoder, FrameError, encode_frame


def frames(data: bytes, **limits: int) -> list[tuple[bytes, str]]:
    return [tuple(frame) for frame in FrameDecoder(**limits).feed(data)]


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        (b"Content-Length: 2\r\n\r\n", JSON),
        (b"content-length:2\r\n\r\n", JSON),
        (b"CONTENT-LENGTH:\t2 \r\n\r\n", JSON),
        (b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\nContent-Length: 2\r\n\r\n", JSON),
        (b"Content-Length: 2\r\nContent-Type: application/vscode-jsonrpc; charset=utf8\r\n\r\n", JSON),
        (b'Content-Length: 2\r\nContent-Type: APPLICATION/JSON;charset="UTF-8"\r\n\r\n', JSON),
        (b"Content-Length: 2\r\nContent-Type: application/msgpack\r\n\r\n", MSGPACK),
        (b"X-Later: yes\r\nContent-Length: 002\r\n\r\n", JSON),
    ],
)
def test_accepted_headers(header: bytes, encoding: str) -> None:
    assert frames(header + b"{}") == [(b"{}", encoding)]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"{}\r\n\r\n",
        b'{"jsonrpc":"2.0","id":1,"method":"initialize"}\n',
        b"Content-Length: 2\n\n{}",
        b"Content-Length: 2\r\nContent-Type: application/json\n\r\n{}",
        b"Content-Length: -2\r\n\r\n{}",
        b"Content-Length: +2\r\n\r\n{}",
        b"Content-Length: 2e1\r\n\r\n{}",
        b"Content-Length: \r\n\r\n{}",
        b"Content-Length: \xd9\xa2\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"Content-Length 2\r\n\r\n{}",
        b"Content-Type: application/json\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Type: text/html\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Type: application/json; charset=utf-16\r\n\r\n{}",
        b"\r\n\r\n",
        b"\xff\xfe\x00",
        b"A" * 70,
        b"X: " + b"a" * 20_000,
        b"X: a\r\n" * 4000,
    ],
)
def test_garbage_is_refused_as_soon_as_it_shows(data: bytes) -> None:
    with pytest.raises(FrameError):
        frames(data)


def test_a_frame_over_the_limit_is_refused_by_its_header_and_never_collected() -> None:
    decoder = FrameDecoder(max_body=1000)
    with pytest.raises(FrameError) as caught:
        list(decoder.feed(b"Content-Length: 1073741824\r\n\r\n" + b"x" * 5000))
    assert caught.value.too_large
    with pytest.raises(FrameError):
        frames(b"Content-Length: " + b"9" * 30 + b"\r\n\r\n")
    assert frames(encode_frame(b"x" * 1000), max_body=1000) == [(b"x" * 1000, JSON)]


def test_a_limit_raised_while_one_frame_is_handled_holds_for_the_next_of_the_same_chunk() -> None:
    decoder = FrameDecoder(max_body=10)
    seen = []
    for frame in decoder.feed(encode_frame(b"small") + encode_frame(b"x" * 100)):
        seen.append(len(frame.body))
        decoder.max_body = 1000
    assert seen == [5, 100]


def test_any_chunking_gives_the_same_frames() -> None:
    rng = random.Random(7)
    for _ in range(300):
        bodies = [
            (rng.randbytes(rng.choice([0, 1, 5, 300])), rng.choice([JSON, MSGPACK])) for _ in range(rng.randint(1, 6))
        ]
        stream = b"".join(encode_frame(body, encoding) for body, encoding in bodies)
        decoder = FrameDecoder()
        found = []
        position = 0
        while position < len(stream):
            size = rng.choice([1, 2, 7, 40, 1000])
            found += decoder.feed(stream[position : position + size])
            position += size
        assert found == bodies
        assert not decoder.partial


def test_partial_tells_whether_the_stream_stands_inside_a_frame() -> None:
    decoder = FrameDecoder()
    whole = encode_frame(b"12345")
    for end in range(1, len(whole)):
        decoder = FrameDecoder()
        assert list(decoder.feed(whole[:end])) == []
        assert decoder.partial
    assert [f.body for f in decoder.feed(whole[-1:])] == [b"12345"]
    assert not decoder.partial


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_no_bytes_crash_the_decoder(chunks: list[bytes]) -> None:
    decoder = FrameDecoder(max_body=1000, max_header=200)
    try:
        for chunk in chunks:
            list(decoder.feed(chunk))
            assert decoder.pending <= 200 + 4 + sum(map(len, chunks))
    except FrameError:
        pass


@given(
    st.lists(
        st.sampled_from(
            [
                b"Content-Length",
                b"content-type",
                b":",
                b" ",
                b"\r\n",
                b"\n",
                b"\r",
                b"5",
                b"-",
                b"application/msgpack",
                b"{}",
                b";",
            ]
        ),
        max_size=20,
    )
)
def test_no_header_like_bytes_crash_the_decoder(parts: list[bytes]) -> None:
    together, bytewise = FrameDecoder(), FrameDecoder()
    data = b"".join(parts)
    outcome: list[object] = []
    for decoder, chunks in ((together, [data]), (bytewise, [data[i : i + 1] for i in range(len(data))])):
        found = []
        try:
            for chunk in chunks:
                found += decoder.feed(chunk)
            outcome.append(found)
        except FrameError:
            outcome.append((found, "refused"))
    assert outcome[0] == outcome[1]
