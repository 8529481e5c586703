"""How SQLite's errors become the agent's: one table of result codes, no matching of texts."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from hfagent.foundation.errors import AgentError, InternalError

__all__ = ["DiskFull", "StoreFailed", "is_full", "is_input_output", "translated"]

_CORRUPT = 11  # SQLITE_CORRUPT
_NOT_A_DATABASE = 26  # SQLITE_NOTADB
_FULL = 13  # SQLITE_FULL
_INPUT_OUTPUT = 10  # SQLITE_IOERR
_READ_ONLY = 8  # SQLITE_READONLY
_BUSY = 5  # SQLITE_BUSY


class StoreFailed(InternalError):
    """The store cannot be opened, read or written."""

    default_code = "internal.store"


class DiskFull(AgentError):
    """No space for what was to be written. Nothing of it was kept; what is there can still be read and deleted."""

    default_code = "agent.disk_full"


def translated(exc: sqlite3.Error, path: Path) -> AgentError:
    """Return the agent's error for an SQLite error in the store at `path`."""
    code = _primary(exc)
    if code == _FULL:
        return disk_full(path)
    if code in (_CORRUPT, _NOT_A_DATABASE):
        return damaged(path, str(exc))
    if code == _INPUT_OUTPUT:
        return StoreFailed(
            f"the disk failed while the store {path} was read or written ({exc}); the last change may or may not be kept",
            hint="check the disk and the system log, then repeat the request",
        )
    if code == _READ_ONLY:
        return StoreFailed(f"the store {path} cannot be written", hint=f"check owner and mode of {path} and its folder")
    if code == _BUSY:
        return StoreFailed(
            f"the store {path} is locked by another program",
            hint="close the program that has it open (a backup tool, an sqlite3 shell)",
            retryable=True,
        )
    return StoreFailed(f"the store {path} failed: {exc}")


def damaged(path: Path, detail: str) -> StoreFailed:
    """The error for a file that is not, or no longer, a sound database."""
    return StoreFailed(
        f"the store {path} is damaged ({detail}); nothing was changed",
        hint=f"stop the agent and put a backup of {path.name} in its place, together with the vault folder of the same "
        f"backup; without one, move {path.name}, {path.name}-wal and {path.name}-shm away and configure the agent anew",
    )


def disk_full(path: Path) -> DiskFull:
    """The error for a write that found no space."""
    return DiskFull(
        f"the disk with the agent's store {path} is full; nothing was written",
        hint=f"free space on the file system of {path.parent}; deleting connectors works meanwhile",
    )


def is_full(exc: BaseException | None) -> bool:
    """Tell whether SQLite ran out of space."""
    return isinstance(exc, sqlite3.Error) and _primary(exc) == _FULL


def is_input_output(exc: BaseException | None) -> bool:
    """Tell whether the disk failed: the outcome of the transaction is then unknown."""
    return isinstance(exc, sqlite3.Error) and _primary(exc) == _INPUT_OUTPUT


def _primary(exc: sqlite3.Error) -> int:
    code: int = getattr(exc, "sqlite_errorcode", 0) or 0  # absent on errors of the Python module itself
    return code & 0xFF
