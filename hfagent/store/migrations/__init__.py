"""The store's schema as numbered steps. The number of steps done stands in the file's `user_version`.

Step n is the n-th text of `MIGRATIONS`, kept in a module of its own. A published step is never edited: a change is a new
step. Each runs in one transaction together with its number, so a store is always at a step, never between two.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from hfagent.store.connection import APPLICATION_ID
from hfagent.store.migrations import m0001_start, m0002_datasets

__all__ = ["MIGRATIONS", "migrate"]

MIGRATIONS: Final[tuple[str, ...]] = (m0001_start.SQL, m0002_datasets.SQL)


def migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> int:
    """Run the steps that are missing and return how many that were. Foreign keys must be off (SQLite's default).

    Raises `sqlite3.Error`; the steps before the failing one are kept, nothing of the failing one is.
    """
    done: int = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, script in enumerate(migrations[done:], start=done + 1):
        # One script with its own BEGIN and COMMIT: executescript would end a transaction begun outside.
        whole = (
            f"BEGIN IMMEDIATE;\n{script}\n;PRAGMA application_id = {APPLICATION_ID};\n"
            f"PRAGMA user_version = {number};\nCOMMIT;"
        )
        try:
            connection.executescript(whole)
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return max(0, len(migrations) - done)
