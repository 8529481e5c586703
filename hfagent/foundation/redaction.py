"""Keeps secrets out of everything that leaves the process: logs, errors, reports, tracebacks.

Every secret the vault opens is registered here, and every text that is about to leave passes through `redact`. Beside
the known values, two patterns are always masked: `user:password@` in addresses and `password=…`-like pairs.

This is the last line, not the first: code must not put a secret into a text to begin with.
"""

from __future__ import annotations

import base64
import logging
import re
import threading
from typing import Any, Final
from urllib.parse import quote, quote_plus

__all__ = ["MASK", "RedactingFilter", "redact", "register_secret", "unregister_all"]

MASK: Final = "\u2022" * 8
"""Eight bullets: what a set secret looks like everywhere (platform fact §4.2). Sent back, it means "keep"."""

_MIN_LENGTH: Final = 4  # shorter values would blot out ordinary text and hide nothing

_ADDRESS = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*://)(?P<user>[^\s:/@]*):(?P<password>[^\s@/]+)@")
_PAIR = re.compile(
    r"(?P<key>\b(?:password|passwd|pwd|secret|token|api_?key|private_key|authorization|credential)s?\b[\"']?\s*[=:]\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|(?:Bearer\s+)?[^\s,;&)}\]\"']+)",
    re.IGNORECASE,
)

_lock = threading.Lock()  # guards everything below
_values: set[str] = set()
_pattern: re.Pattern[str] | None = None


def register_secret(value: str) -> None:
    """Remember `value` (and its URL-quoted and base64 forms) so that `redact` masks it from now on.

    Values under four characters are ignored. A value stays registered until the process ends: a late log line must not
    show what an early one hid.
    """
    global _pattern
    if len(value) < _MIN_LENGTH or value == MASK:
        return
    with _lock:
        if value in _values:
            return
        _values.add(value)
        _pattern = None  # made anew by the next text: many secrets may be registered before it


def unregister_all() -> None:
    """Forget every registered value. For tests only."""
    global _pattern
    with _lock:
        _values.clear()
        _pattern = None


def redact(text: str) -> str:
    """Return `text` with every registered secret and every password-shaped part replaced by the mask."""
    if _values:
        text = (_pattern or _made_pattern()).sub(MASK, text)
    if "@" in text and "://" in text:
        text = _ADDRESS.sub(rf"\g<scheme>\g<user>:{MASK}@", text)
    if "=" in text or ":" in text:
        text = _PAIR.sub(lambda m: m["key"] + (m["value"] if _harmless(m["value"]) else MASK), text)
    return text


def _made_pattern() -> re.Pattern[str]:
    """Build the pattern of all registered values and their quoted, base64 and hexadecimal forms, longest first."""
    global _pattern
    with _lock:
        if _pattern is None:
            forms = {form for value in _values for form in _forms(value) if len(form) >= _MIN_LENGTH}
            _pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))
        return _pattern


def _forms(value: str) -> set[str]:
    raw = value.encode("utf-8", "surrogatepass")
    return {
        value, quote(raw, safe=""), quote_plus(raw), repr(value)[1:-1], base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(), raw.hex(),
    }  # fmt: skip


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
            if key not in _STANDARD and isinstance(value, str):
                record.__dict__[key] = redact(value)
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
