"""Keeps secrets out of everything that leaves the process: logs, errors, reports, tracebacks.

Every secret the vault opens is registered here, and every text that is about to leave passes through `redact`. Beside
the known values, two patterns are always masked: `user:password@` in addresses and `password=…`-like pairs.

This is the last line, not the first: code must not put a secret into a text to begin with.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from typing import Any, Final
from urllib.parse import quote, quote_plus

__all__ = ["MASK", "RedactingFilter", "redact", "redact_tree", "register_secret", "unregister_all"]

MASK: Final = "\u2022" * 8
"""Eight bullets: what a set secret looks like everywhere (platform fact §4.2). Sent back, it means "keep"."""

_MIN_LENGTH: Final = 4  # shorter values would blot out ordinary text and hide nothing

# Every repetition is bounded: the texts come from servers, which may be hostile, and must not cost quadratic time.
_ADDRESS = re.compile(
    r"(?P<scheme>\b[a-zA-Z][\w+.-]{0,30}://)(?P<user>[^\s:/@]{0,256}):(?P<password>[^\s/?#]{1,1024})@"
)
_PAIR = re.compile(
    r"(?P<key>\b(?<!unexpected )(?:[\w-]{0,40}(?:password|passwd|pwd|passphrase|secret|token(?!s)"
    r"|(?:api|access|secret|private|account|signing|encryption)[_-]?key)|(?:[\w-]{0,40}[_-])?(?:credential|authorization))"
    r"s?\b[\"']?\s{0,8}[=:]\s{0,8})"
    r"(?P<value>\"(?:[^\"\\]|\\.){0,4096}\"|'(?:[^'\\]|\\.){0,4096}'|(?:(?:Bearer|Basic|Digest|Token)\s{1,8})?"
    r"[^\s,;&)}\]\"']{1,4096})",
    re.IGNORECASE,
)
_LONG_LINE: Final = 20  # a line of a multi-line secret (a PEM key) that betrays a part of it

_lock = threading.Lock()  # guards everything below
_values: set[str] = set()
_known: tuple[str, ...] | None = ()
"""All forms of all values, longest first; None when values were added since."""


def register_secret(value: str) -> None:
    """Remember `value` (and its quoted, escaped and encoded forms) so that `redact` masks it from now on.

    Values under four characters are ignored. A value stays registered until the process ends: a late log line must not
    show what an early one hid.
    """
    global _known
    if len(value) < _MIN_LENGTH or value == MASK:
        return
    with _lock:
        if value in _values:
            return
        _values.add(value)
        _known = None  # made anew by the next text: many secrets may be registered before it


def unregister_all() -> None:
    """Forget every registered value. For tests only."""
    global _known
    with _lock:
        _values.clear()
        _known = ()


def redact(text: str) -> str:
    """Return `text` with every registered secret and every password-shaped part replaced by the mask."""
    for form in _all_forms() if _known is None else _known:
        if form in text:  # many times faster than one pattern of all of them
            text = text.replace(form, MASK)
    if "@" in text and "://" in text:
        text = _ADDRESS.sub(rf"\g<scheme>\g<user>:{MASK}@", text)
    if "=" in text or ":" in text:
        text = _PAIR.sub(lambda m: m["key"] + (m["value"] if _harmless(m["value"]) else MASK), text)
    return text


def _all_forms() -> tuple[str, ...]:
    global _known
    with _lock:
        if _known is None:
            forms = {form for value in _values for form in _forms(value) if len(form) >= _MIN_LENGTH}
            _known = tuple(sorted(forms, key=len, reverse=True))
        return _known


def _forms(value: str) -> set[str]:
    """How a secret may look when something else wrote it: in an address, a JSON text, a statement, a header."""
    raw = value.encode("utf-8", "surrogatepass")
    forms = {
        value, quote(raw, safe=""), quote_plus(raw), repr(value)[1:-1], json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1], value.replace("'", "''"), base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(), raw.hex(), raw.hex().upper(), *_inside_base64(raw),
    }  # fmt: skip
    if "\n" in value:
        forms |= {line for line in value.splitlines() if len(line) >= _LONG_LINE and not line.startswith("-----")}
    return forms


def _inside_base64(raw: bytes) -> set[str]:
    """What `raw` contributes to the base64 text of something longer (`user:password` in a Basic header)."""
    found = set()
    for before in (1, 2):
        text = base64.b64encode(bytes(before) + raw).decode().rstrip("=")
        whole = text[before + 1 : (before + len(raw)) * 8 // 6]  # the characters that depend on `raw` alone
        if len(whole) >= 8:
            found |= {whole, whole.translate(_URL_SAFE)}
    text = base64.b64encode(raw).decode().rstrip("=")[: len(raw) * 8 // 6]
    return found | ({text, text.translate(_URL_SAFE)} if len(text) >= 8 else set())


_URL_SAFE: Final = str.maketrans("+/", "-_")


def _harmless(value: str) -> bool:
    """Words that follow a key in prose or schemas ("password: required") and are no secret."""
    return value.strip("\"'").lower() in {
        "none",
        "null",
        "true",
        "false",
        "required",
        "rejected",
        "missing",
        "string",
        "",
    }


class RedactingFilter(logging.Filter):
    """Redacts a record's finished message and its traceback. Put it on handlers, not on loggers.

    The message is formatted here, once, so that arguments are covered too; the exception text is rendered without
    locals and redacted the same way.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            record.msg = redact(record.getMessage())
        except Exception as exc:  # noqa: BLE001  a broken log call must neither raise nor print its arguments
            record.msg = f"unprintable log record from {record.name} ({type(exc).__name__})"
        record.args = None
        if record.exc_info and not record.exc_text:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        elif record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        for key, value in list(record.__dict__.items()):
            if key not in _STANDARD:
                record.__dict__[key] = redact_tree(value)
        return True


_STANDARD: Final[frozenset[str]] = frozenset(
    [*logging.LogRecord("", 0, "", 0, "", None, None).__dict__, "message", "asctime", "taskName"]
)


def redact_tree(value: Any) -> Any:
    """Redact every string inside a JSON-like value."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_tree(item) for item in value]
    return value
