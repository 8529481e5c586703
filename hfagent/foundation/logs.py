"""Log set-up: one handler, redacted, bounded; third-party loggers that print data are capped.

Formats: `text` for a terminal, `json` (one object a line) for files and collectors, `journal` for systemd: the message with
its `<priority>` prefix, because the journal adds the rest. Extra fields of a record (`extra={"connector": ...}`) are kept.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import threading
import time
import traceback
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from hfagent.foundation.redaction import _STANDARD, RedactingFilter, redact, redact_tree

__all__ = ["level_number", "set_up"]

_PRIORITY: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

_CAPPED: Final = (
    "pygls",
    "asyncio",
    "urllib3",
    "botocore",
    "snowflake",
    "watchdog",
    "keyring",
    "psycopg",
    "pymysql",
    "sqlglot",
)
"""Loggers that print payloads, parameters or passwords at INFO or DEBUG."""


def level_number(name: str) -> int:
    """`info` → 20."""
    return int(logging.getLevelNamesMapping()[name.upper()])


def set_up(
    *,
    level: str = "info",
    format: str = "auto",
    file: Path | None = None,
    max_bytes: int = 10_000_000,
    stream: object = None,
) -> None:
    """Configure the root logger. `file` rotates at `max_bytes` (one old file is kept, mode 0600); default: stderr."""
    handler: logging.Handler
    if file is not None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _PrivateFileHandler(
            file, maxBytes=max_bytes, backupCount=1, encoding="utf-8", errors="backslashreplace"
        )
    else:
        handler = logging.StreamHandler(stream or sys.stderr)  # type: ignore[arg-type]
    handler.setFormatter(_formatter(_chosen(format, file)))
    handler.addFilter(RedactingFilter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level_number(level))
    for name in _CAPPED:
        logging.getLogger(name).setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a failing handler must not print the record's arguments to stderr


class _PrivateFileHandler(logging.handlers.RotatingFileHandler):
    """Every file it opens, also the one after a rotation, is for the agent's user only."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=_open_private)


def _open_private(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)  # it may exist from a version that was less careful
    return descriptor


def _chosen(format: str, file: Path | None) -> str:
    if format != "auto":
        return format
    if file is None and os.environ.get("JOURNAL_STREAM"):
        return "journal"
    return "text" if file is None and sys.stderr.isatty() else "json"


def _formatter(format: str) -> logging.Formatter:
    return {"json": _JsonFormatter, "journal": _JournalFormatter, "text": _TextFormatter}[format]()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """The record's extra fields, redacted: the filter sees to texts only, and a field may be anything."""
    return {key: _plain(value) for key, value in record.__dict__.items() if key not in _STANDARD}


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact_tree(value) if isinstance(value, str | dict | list | tuple) else redact(str(value))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            **_fields(record),
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_text:
            line["trace"] = record.exc_text
        return json.dumps(line, ensure_ascii=False, default=lambda value: redact(str(value)))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        extra = _one_line(" ".join(f"{key}={value}" for key, value in _fields(record).items()))
        text = f"{at} {record.levelname:<7} {record.name.removeprefix('hfagent.')}: {_one_line(record.getMessage())}"
        text += f"  [{extra}]" if extra else ""
        trace = [_one_line(line) for line in record.exc_text.split("\n")] if record.exc_text else []
        return "\n".join([text, *trace])


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelname, 6)}>"
        extra = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        text = f"{record.name.removeprefix('hfagent.')}: {record.getMessage()}" + (f" [{extra}]" if extra else "")
        lines = [*text.split("\n"), *(record.exc_text.split("\n") if record.exc_text else [])]
        return "\n".join(prefix + _one_line(line) for line in lines)


def _one_line(text: str) -> str:
    """Control characters are shown, not sent on: a server's text may carry escape sequences, or forge a line."""
    return "".join(c if c.isprintable() or c == " " else repr(c)[1:-1] for c in text)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    root = logging.getLogger()
    if root.handlers:
        logging.getLogger("hfagent").critical("uncaught", exc_info=(kind, error, trace))
    else:
        sys.stderr.write(redact("".join(traceback.format_exception(error, limit=-3))))


def _log_uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None and not isinstance(hook.exc_value, SystemExit):
        _log_uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)


def _log_unraisable(hook: Any) -> None:
    """What Python cannot raise, in a finalizer for instance. Python would print it to stderr, secrets and all."""
    logging.getLogger("hfagent").error("%s", hook.err_msg or "an exception was ignored", exc_info=hook.exc_value)
