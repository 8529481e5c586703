"""The base protocol's framing: `Content-Length` and `Content-Type` headers, an empty line, the body. A pure codec.

    decoder = FrameDecoder()
    for frame in decoder.feed(data): ...
    writer.write(encode_frame(body, "json"))

It knows bytes and limits, not messages. `feed` is a generator on purpose: a limit that is raised while one frame is being
handled applies to the next frame of the same chunk.

Architecture Invariant: a frame over the limit is refused by its header alone; its body is never collected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

__all__ = ["JSON", "MSGPACK", "Encoding", "Frame", "FrameDecoder", "FrameError", "encode_frame", "frame_header"]

Encoding = Literal["json", "msgpack"]
JSON: Final[Encoding] = "json"
MSGPACK: Final[Encoding] = "msgpack"

MAX_HEADER: Final = 16 * 1024
MAX_BODY: Final = 16 * 1024 * 1024

_MEDIA_TYPES: Final[dict[str, Encoding]] = {
    "application/vscode-jsonrpc": JSON,
    "application/json": JSON,
    "application/msgpack": MSGPACK,
    "application/x-msgpack": MSGPACK,
}
_USUAL = re.compile(rb"Content-Length: ([0-9]{1,10})\r\n(?:Content-Type: ([^\r\n]{1,100})\r\n)?\r\n")
"""What nearly every peer sends; anything else takes the slow, complete way."""
_LONE_NEWLINE = re.compile(rb"(?<!\r)\n")
_CONTENT_TYPE: Final[dict[str, bytes]] = {
    JSON: b"",  # the base protocol's default
    MSGPACK: b"Content-Type: application/msgpack\r\n",
}


class Frame(NamedTuple):
    """One message as it came: its bytes and how they are encoded."""

    body: bytes
    encoding: Encoding


class FrameError(Exception):
    """The stream cannot be followed any further. `too_large` tells a big frame from garbage."""

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


class FrameDecoder:
    """Cuts a stream into frames. After a `FrameError` it must not be fed again."""

    __slots__ = ("_buffer", "_encoding", "_need", "_scanned", "max_body", "max_header")

    def __init__(self, *, max_body: int = MAX_BODY, max_header: int = MAX_HEADER) -> None:
        self.max_body = max_body
        self.max_header = max_header
        self._buffer = bytearray()
        self._need = -1  # body bytes of the frame whose header was read; -1 while the header is incomplete
        self._encoding: Encoding = JSON
        self._scanned = 0  # header bytes already searched for the empty line

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame (its header included once the header is incomplete, else the body alone)."""
        return len(self._buffer)

    @property
    def partial(self) -> bool:
        """Whether the stream stands inside a frame."""
        return bool(self._buffer) or self._need >= 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take `data` in and yield every frame that is complete. Raises `FrameError`."""
        position = 0
        if not self._buffer and self._need < 0:
            # The usual case, a chunk of whole frames, is cut without copying it into the buffer first.
            size = len(data)
            while position < size:
                match = _USUAL.match(data, position)
                if match is None:
                    break
                encoding = self._check(match[1], match[2])
                start = match.end()
                end = start + int(match[1])
                if end > size:
                    break
                position = end
                yield Frame(data[start:end], encoding)
            if position == size:
                return
        self._buffer += data[position:] if position else data
        while True:
            if self._need < 0 and not self._read_header():
                return
            if len(self._buffer) < self._need:
                return
            with memoryview(self._buffer) as view:
                body = bytes(view[: self._need])
            del self._buffer[: self._need]
            self._need = -1
            yield Frame(body, self._encoding)

    def _read_header(self) -> bool:
        """Parse the header at the front of the buffer; False when it is incomplete."""
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        head = bytes(buffer[: end if end >= 0 else self.max_header + 1])
        if len(head) > self.max_header:
            raise FrameError(f"the header is longer than {self.max_header} bytes", too_large=True)
        if _LONE_NEWLINE.search(head, max(0, self._scanned - 1)):
            raise FrameError("header lines must end with CR LF")
        if end < 0:
            self._check_beginning(head)
            self._scanned = len(buffer)
            return False
        length: bytes | None = None
        content_type: bytes | None = None
        for line in head.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if not colon:
                raise FrameError("a header line without a colon")
            match name.strip().lower():
                case b"content-length":
                    if length is not None:
                        raise FrameError("two Content-Length headers")
                    length = value.strip(b" \t")
                case b"content-type":
                    content_type = value.strip(b" \t")
                case _:
                    pass  # the base protocol lets later versions add headers
        if length is None:
            raise FrameError("no Content-Length header")
        self._encoding = self._check(length, content_type)
        self._need = int(length)
        self._scanned = 0
        del buffer[: end + 4]
        return True

    def _check(self, length: bytes, content_type: bytes | None) -> Encoding:
        if not length.isdigit() or len(length) > 20:
            raise FrameError("Content-Length is not a number")
        if int(length) > self.max_body:
            raise FrameError(f"a message of {int(length)} bytes is over the limit of {self.max_body}", too_large=True)
        return JSON if content_type is None else _encoding_of(content_type)

    @staticmethod
    def _check_beginning(head: bytes) -> None:
        """Refuse at once what can never become a header, instead of waiting for its end."""
        line = head.split(b"\r\n", 1)[0]
        name, colon, _ = line.partition(b":")
        if (colon or b"\r\n" in head or len(name) > 64) and not (
            colon and name.replace(b"-", b"").strip(b" \t").isalpha()
        ):
            raise FrameError("this is not a header of the base protocol")
        if any(byte < 32 or byte > 126 for byte in name if byte not in b"\r\t"):
            raise FrameError("this is not a header of the base protocol")


def encode_frame(body: bytes, encoding: Encoding = JSON) -> bytes:
    """Return `body` with its header."""
    return b"Content-Length: %d\r\n%b\r\n%b" % (len(body), _CONTENT_TYPE[encoding], body)


def frame_header(length: int, encoding: Encoding = JSON) -> bytes:
    """Return the header of a body of `length` bytes."""
    return b"Content-Length: %d\r\n%b\r\n" % (length, _CONTENT_TYPE[encoding])


def _encoding_of(content_type: bytes) -> Encoding:
    media_type, *parameters = content_type.decode("latin-1").lower().split(";")
    encoding = _MEDIA_TYPES.get(media_type.strip())
    if encoding is None:
        known = "application/vscode-jsonrpc or application/msgpack"
        raise FrameError(f"unknown content type {media_type.strip()[:60]!r}; this agent speaks {known}")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        # "utf8" is what early language clients wrote; the base protocol asks servers to accept it.
        if name.strip() == "charset" and value.strip(" \t\"'") not in ("utf-8", "utf8"):
            raise FrameError(f"unknown charset {value.strip()[:40]!r}; this agent speaks utf-8")
    return encoding
