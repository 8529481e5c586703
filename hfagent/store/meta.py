"""The store's own facts as key and value: the agent's id, when the store was made."""

from __future__ import annotations

from collections.abc import Callable

from hfagent.store.database import Database

__all__ = ["Meta"]


class Meta:
    """A small dictionary that survives restarts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: str) -> str | None:
        """Return the value of `key`, or None."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set(self, key: str, value: str) -> None:
        """Set `key` to `value`."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )

    def setdefault(self, key: str, make: Callable[[], str]) -> str:
        """Return the value of `key`; when there is none, what `make` returns, and keep that."""
        present = self.get(key)  # without the writer's lock in the usual case
        if present is not None:
            return present
        with self._database.transaction():
            present = self.get(key)
            if present is None:
                present = make()
                self.set(key, present)
            return present
