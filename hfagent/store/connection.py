"""How a connection to the store's file is opened: one that writes and checkpoints, any number that only read.

SQLite up to 3.51.2 (and the one most systems ship) can corrupt a WAL database when two connections write or checkpoint at
the same moment (sqlite.org/wal.html, "WAL-reset"). So exactly one connection here may do either: readers are opened
read-only and never checkpoint, and a lock file keeps a second process away (`Database.open`).
"""

from __future__ import annotations

import fnmatch
import re
import sqlite3
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

__all__ = ["APPLICATION_ID", "MINIMUM_SQLITE", "open_reader", "open_writer"]

APPLICATION_ID = 0x48464147  # "HFAG": tells our file from any other SQLite file
MINIMUM_SQLITE = (3, 31, 0)  # the first with trusted_schema

_COMMON = """
PRAGMA busy_timeout = 5000;
PRAGMA mmap_size = 0;
PRAGMA temp_store = MEMORY;
PRAGMA trusted_schema = OFF;
PRAGMA cell_size_check = ON;
"""
_WRITER = """
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = 1000;
PRAGMA journal_size_limit = 67108864;
"""
_READER = """
PRAGMA wal_autocheckpoint = 0;
PRAGMA query_only = ON;
"""


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the connection that writes. The file must exist; its journal mode is left to the caller."""
    return _open(path, "rw", _COMMON + _WRITER)


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that cannot write, whatever it is asked."""
    return _open(path, "ro", _COMMON + _READER)


def _open(path: Path, mode: str, settings: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        uri=True,
        timeout=5,
        isolation_level=None,  # BEGIN and COMMIT are ours, not the module's
        check_same_thread=False,  # used by one thread at a time, under the locks of `Database`
    )
    try:
        connection.executescript(settings)
        connection.create_function("glob_matches", 2, _glob_matches, deterministic=True)
    except BaseException:
        connection.close()
        raise
    return connection


def _glob_matches(pattern: str, text: str) -> bool:
    """Shell-style match, case-sensitive.

    SQLite's own GLOB needs exponential time for patterns like `*a*a*a*b`; the expressions that `fnmatch` writes do not
    backtrack over a star.
    """
    return _compiled(pattern)(text) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(fnmatch.translate(pattern)).match
