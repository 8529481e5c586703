"""The store's parts under one roof, sharing one file and its transactions.

with store.transaction():                       # both, or neither
    store.connectors.insert(record)
    store.secrets.put(secret)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hfagent.foundation.clock import SYSTEM_CLOCK, Clock
from hfagent.store.audit import Audit
from hfagent.store.catalogues import Catalogues
from hfagent.store.checks import Checks
from hfagent.store.connectors import Connectors
from hfagent.store.database import BALLAST_BYTES, Database
from hfagent.store.datasets import Datasets
from hfagent.store.identifiers import new_id
from hfagent.store.meta import Meta
from hfagent.store.migrations import MIGRATIONS
from hfagent.store.outbox import Outbox
from hfagent.store.runs import Runs
from hfagent.store.schedules import Schedules
from hfagent.store.secrets import Secrets
from hfagent.store.sync_states import SyncStates

__all__ = ["Store", "StoreStatus"]


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The store's condition, for status and doctor."""

    path: Path
    bytes: int
    """The file and its write-ahead log."""
    sqlite_version: str
    disk_full: bool
    warnings: tuple[str, ...]


class Store:
    """The agent's own data. Synchronous and thread-safe: call it from worker threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.catalogues = Catalogues(database)
        self.connectors = Connectors(database, after_delete=self.catalogues.tidy)
        self.secrets = Secrets(database)
        self.checks = Checks(database)
        self.schedules = Schedules(database)
        self.runs = Runs(database)
        self.datasets = Datasets(database, after_delete=self.runs.tidy)
        self.sync_states = SyncStates(database)
        self.outbox = Outbox(database)
        self.audit = Audit(database)
        self.meta = Meta(database)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        migrations: Sequence[str] = MIGRATIONS,
        ballast_bytes: int = BALLAST_BYTES,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Self:
        """Open the store at `path`, making or migrating it. Raises as `Database.open` does."""
        database = Database.open(path, migrations=migrations, ballast_bytes=ballast_bytes, clock=clock)
        try:
            store = cls(database)
            store.catalogues.tidy()
            store.runs.tidy()
            if not database.full:
                store.agent_id, store.created_at  # noqa: B018  written at the first start, whoever asks first
        except BaseException:
            database.close()
            raise
        return store

    @property
    def agent_id(self) -> str:
        """This agent's id, drawn when the store was made."""
        return self.meta.setdefault("agent_id", self.new_id)

    @property
    def created_at(self) -> str:
        """When the store was made."""
        return self.meta.setdefault("created_at", self._database.timestamp)

    @contextmanager
    def transaction(self, *, reclaiming: bool = False) -> Iterator[Self]:
        """Make everything that this thread does in the block one transaction: committed at its end, or undone.

        Never hold it across a wait for something else (a driver, the network, an `await`): writers queue behind it.
        `reclaiming` marks work that deletes; on a full disk it may use the space set aside.
        """
        with self._database.transaction(reclaiming=reclaiming):
            yield self
        if reclaiming:
            self.catalogues.tidy()
            self.runs.tidy()

    def new_id(self) -> str:
        """Return a new id; later ones are greater."""
        return new_id(self._database.clock)

    def check(self) -> list[str]:
        """Return what a complete integrity check complains about; empty when all is well."""
        return self._database.check()

    def status(self) -> StoreStatus:
        """Return the store's condition."""
        path = self._database.path
        files = (path, path.with_name(path.name + "-wal"))
        return StoreStatus(
            path=path,
            bytes=sum(file.stat().st_size for file in files if file.exists()),
            sqlite_version=sqlite3.sqlite_version,
            disk_full=self._database.full,
            warnings=self._database.warnings,
        )

    def close(self) -> None:
        """Close the file. Repeating it does nothing."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
