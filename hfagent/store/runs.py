"""History of runs: the newest thousand per dataset, and who is running now. What a run did to rows is the lakehouse's.

At most one run per dataset is `running`; the schema's unique index says so, not the code. A process that dies leaves its runs
`running`: `interrupted` finds them at the next start.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from functools import partial
from typing import Any, Final

from hfagent.foundation.errors import AgentError, Conflict, NotFound
from hfagent.foundation.redaction import redact_tree
from hfagent.model.run import Run, RunStatus
from hfagent.store.database import Database
from hfagent.store.datasets import require_dataset

__all__ = ["KEPT", "LOG_LINES", "Runs"]

KEPT: Final = 1000
"""Runs kept per dataset."""

LOG_LINES: Final = 100
"""Lines of the log kept per run."""

STEP: Final = 200
"""Rows removed per transaction."""

_log = logging.getLogger(__name__)
_NAMES: Final = (
    "id", "dataset_id", "dataset_name", "connector_name", "mode", "trigger", "status", "sequence", "started_at",
)  # fmt: skip
_COLUMNS: Final = ", ".join(f'"{name}"' for name in (*_NAMES, "details"))


class Runs:
    """The table of runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self, run: Run) -> Run:
        """Record that a run has started, and return it as kept.

        Raises `NotFound` when the dataset is gone; `Conflict` (lakehouse.busy) when another run of it is running; `ValueError`
        unless the run's status is `running`.
        """
        if run.status != "running":
            raise ValueError(f"a run that starts is running, not {run.status}")
        return self._insert(run)

    def record_skipped(self, run: Run) -> Run:
        """Record a run that did not take place, with its reason, and return it as kept.

        Raises `NotFound` when the dataset is gone; `ValueError` unless status and reason say so.
        """
        if run.status != "skipped" or not run.reason:
            raise ValueError("a skipped run has the status skipped and a reason")
        return self._insert(run)

    def finish(self, run: Run) -> Run:
        """Record how a running run ended, and return it as kept; `ended_at` is now unless given.

        Raises `NotFound`; `Conflict` when it has ended before; `ValueError` when its status is `running` still.
        """
        if run.status == "running":
            raise ValueError("a run that is finished has another status than running")
        kept = _kept(run if run.ended_at else run.model_copy(update={"ended_at": self._database.timestamp()}))
        with self._database.transaction() as connection:
            present = self._fetch(connection, run.id)
            if present is None:
                raise _not_found(run.id)
            if present.status != "running":
                raise Conflict(f"the run {run.id} has ended already: it {_ENDED[present.status]}")
            connection.execute(
                "UPDATE run SET status = ?, sequence = ?, details = ? WHERE id = ?",
                (kept.status, kept.sequence, _details(kept), kept.id),
            )
        return kept

    def get(self, run_id: str) -> Run:
        """Return a run. Raises `NotFound`."""
        with self._database.reading() as connection:
            run = self._fetch(connection, run_id)
        if run is None:
            raise _not_found(run_id)
        return run

    def list(
        self,
        dataset_id: str | None = None,
        *,
        status: RunStatus | None = None,
        limit: int = 100,
        before_id: str | None = None,
    ) -> tuple[Run, ...]:
        """Return runs newest first; `before_id` is the id of the last one seen."""
        conditions: list[str] = []
        values: list[Any] = []
        for condition, value in (("dataset_id = ?", dataset_id), ("status = ?", status), ("id < ?", before_id)):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM run {where} ORDER BY id DESC LIMIT ?", (*values, limit)
            ).fetchall()
        return tuple(map(_from_row, rows))

    def interrupted(self) -> tuple[Run, ...]:
        """Return the runs that are `running`, oldest first: at a start, those that the last process did not finish."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM run WHERE status = 'running' ORDER BY id").fetchall()
        return tuple(map(_from_row, rows))

    def prune(self, keep: int = KEPT) -> int:
        """Remove all but the newest `keep` runs of each dataset, in steps; return how many. Running ones stay."""
        with self._database.reading() as connection:
            datasets = [row[0] for row in connection.execute("SELECT DISTINCT dataset_id FROM run")]
        removed = 0
        for dataset_id in datasets:
            while step := self._database.reclaim(partial(_prune_step, dataset_id=dataset_id, keep=keep)):
                removed += step
        return removed

    def tidy(self) -> int:
        """Remove the runs of datasets that are gone, step by step, and return how many.

        Within a transaction nothing is done: the next call, at the latest when the store is opened, catches up. Failing is
        no error of the caller's, so it is logged only.
        """
        if self._database.in_transaction:
            return 0
        removed = 0
        try:
            for dataset_id in self._orphaned():
                while step := self._database.reclaim(partial(_orphan_step, dataset_id=dataset_id)):
                    removed += step
        except AgentError as exc:
            _log.warning("runs of deleted datasets could not be removed: %s", exc)
        return removed

    def _orphaned(self) -> tuple[str, ...]:
        with self._database.reading() as connection:
            return tuple(row[0] for row in connection.execute("SELECT dataset_id FROM run_orphaned"))

    def _insert(self, run: Run) -> Run:
        kept = _kept(run)
        with self._database.transaction() as connection:
            require_dataset(connection, run.dataset_id)
            if run.status == "running":
                _refuse_second(connection, run)
            connection.execute(
                f"INSERT INTO run ({_COLUMNS}) VALUES ({', '.join('?' * 10)})",
                (*(getattr(kept, name) for name in _NAMES), _details(kept)),
            )
            _prune_step(connection, dataset_id=run.dataset_id, keep=KEPT)
        return kept

    def _fetch(self, connection: sqlite3.Connection, run_id: str) -> Run | None:
        row = connection.execute(f"SELECT {_COLUMNS} FROM run WHERE id = ?", (run_id,)).fetchone()
        return None if row is None else _from_row(row)


_ENDED: Final = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was cancelled", "skipped": "was skipped"}


def _refuse_second(connection: sqlite3.Connection, run: Run) -> None:
    # Only for the words: two that ask at once are kept apart by the store's one writer, and at last by the unique index.
    row = connection.execute(
        "SELECT id, started_at FROM run WHERE dataset_id = ? AND status = 'running'", (run.dataset_id,)
    ).fetchone()
    if row is not None:
        raise Conflict(
            f"the dataset {run.dataset_name!r} is being synced already, by the run {row[0]} since {row[1]}",
            code="lakehouse.busy",
            hint="wait for it to end, or cancel it",
        )


def _not_found(run_id: str) -> NotFound:
    return NotFound(
        f"there is no run {run_id!r}",
        code="model.not_found",
        hint=f"the newest {KEPT} runs of each dataset are kept, while the dataset exists",
    )


def _prune_step(connection: sqlite3.Connection, *, dataset_id: str, keep: int, running: bool = False) -> int:
    """Remove up to `STEP` runs older than the newest `keep`; return how many."""
    return connection.execute(
        "DELETE FROM run WHERE id IN (SELECT id FROM (SELECT id, status FROM run WHERE dataset_id = ? "
        "ORDER BY id DESC LIMIT -1 OFFSET ?) WHERE ? OR status <> 'running' LIMIT ?)",
        (dataset_id, keep, running, STEP),
    ).rowcount


def _orphan_step(connection: sqlite3.Connection, *, dataset_id: str) -> int:
    """Remove some runs of a dataset that is gone; with the last ones, the note that there are any."""
    removed = _prune_step(connection, dataset_id=dataset_id, keep=0, running=True)
    if removed < STEP:
        connection.execute("DELETE FROM run_orphaned WHERE dataset_id = ?", (dataset_id,))
    return removed


def _kept(run: Run) -> Run:
    """What may be written down: secrets masked, the log's tail only."""
    short = run.model_copy(update={"log_tail": run.log_tail[-LOG_LINES:]})
    texts = redact_tree(short.model_dump(mode="json", include={"reason", "warnings", "log_tail", "error"}))
    return Run.model_validate(short.model_dump(mode="json") | texts)


def _details(run: Run) -> str:
    return run.model_dump_json(exclude=set(_NAMES), exclude_defaults=True)


def _from_row(row: tuple[Any, ...]) -> Run:
    known = dict(zip(_NAMES, row, strict=False))
    try:
        return Run.model_validate(json.loads(row[len(_NAMES)]) | known)
    except (ValueError, TypeError):
        # A run must not vanish with its details: one that is running would block its dataset unseen.
        return Run.model_validate(known | {"warnings": ("the stored details of this run are damaged",)})
