"""How far each dataset is synced, and the frozen bounds of the run under way. Not here: the rows, and what a bound means.

Invariants:

* A sequence number stands for one set of bounds, for ever: `begin` answers a repeated call with the bounds of the first, and
  no number is given out again with others unless it was withdrawn unused. So a run repeated after a crash reads the same rows.
* The state moves by `commit` only, one sequence at a time, and only to one that was begun.
* A reset does not go back to sequence 0: the table in the lakehouse remembers which sequences it holds.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from hfagent.foundation.errors import Conflict
from hfagent.store.database import Database
from hfagent.store.datasets import require_dataset

__all__ = ["SyncIntent", "SyncState", "SyncStates"]

_STATE: Final = (
    "s.dataset_id, s.epoch, s.sequence, s.strategy, s.column_name, s.column_type, s.lo, s.source_id, s.schema_hash, "
    "s.rows_total, s.durable_version, s.updated_at"
)
_INTENT: Final = "i.sequence, i.mode, i.lo, i.hi, i.next_lo, i.include_nulls, i.started_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncIntent:
    """What one sequence reads. Bounds are exact texts; None is an open end."""

    sequence: int
    mode: Literal["full", "incremental"]
    lo: str | None = None
    hi: str | None = None
    next_lo: str | None = None
    """The watermark once it is committed."""
    include_nulls: bool = False
    started_at: str = ""
    """Set by the store when empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncState:
    """Where a dataset stands."""

    dataset_id: str
    epoch: int = 1
    """Grows with each reset."""
    sequence: int = 0
    """The last one that is used up; 0 at the start."""
    strategy: str = ""
    column: str | None = None
    column_type: str | None = None
    lo: str | None = None
    """The watermark as exact text; None = everything is still to be read."""
    source_id: str = ""
    schema_hash: str = ""
    rows_total: int = 0
    durable_version: int | None = None
    """The last version of the table that is known to be on disk."""
    updated_at: str = ""
    intent: SyncIntent | None = None
    """The sequence under way, or left over from a crash."""


class SyncStates:
    """One state for each dataset; made and removed with it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, dataset_id: str) -> SyncState:
        """Return where a dataset stands. Raises `NotFound`."""
        with self._database.reading() as connection:
            return _state(connection, dataset_id)

    def list(self) -> tuple[SyncState, ...]:
        """Return the states of all datasets."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_STATE}, {_INTENT} FROM sync_state AS s LEFT JOIN sync_intent AS i USING (dataset_id) ORDER BY 1"
            ).fetchall()
        return tuple(map(_from_row, rows))

    def begin(self, dataset_id: str, intent: SyncIntent) -> SyncIntent:
        """Freeze the bounds of the next sequence and return what is frozen.

        When that sequence was begun before, its first bounds are returned, whatever `intent` says. Raises `NotFound`;
        `Conflict` when the sequence is not the next one.
        """
        with self._database.transaction() as connection:
            state = _state(connection, dataset_id)
            _refuse_other(state, intent.sequence, "begun")
            if state.intent is not None:
                return state.intent
            frozen = replace(intent, started_at=intent.started_at or self._database.timestamp())
            connection.execute(
                "INSERT INTO sync_intent (dataset_id, sequence, mode, lo, hi, next_lo, include_nulls, started_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    dataset_id,
                    frozen.sequence,
                    frozen.mode,
                    frozen.lo,
                    frozen.hi,
                    frozen.next_lo,
                    frozen.include_nulls,
                    frozen.started_at,
                ),
            )
            return frozen

    def commit(
        self,
        dataset_id: str,
        sequence: int,
        *,
        lo: str | None,
        durable_version: int | None,
        strategy: str | None = None,
        column: str | None = None,
        column_type: str | None = None,
        source_id: str | None = None,
        schema_hash: str | None = None,
        rows_total: int | None = None,
    ) -> SyncState:
        """Move to `sequence`, whose rows are durable, end its intent, and return the new state.

        `lo` is stored as it is; of the others None leaves what is there. Raises `NotFound`; `Conflict` when the sequence is
        not the next one or was never begun.
        """
        with self._database.transaction() as connection:
            state = _state(connection, dataset_id)
            _refuse_other(state, sequence, "committed")
            if state.intent is None:
                raise Conflict(f"sequence {sequence} of dataset {dataset_id} cannot be committed: it was never begun")
            connection.execute(
                "UPDATE sync_state SET sequence = ?, lo = ?, durable_version = coalesce(?, durable_version), "
                "strategy = coalesce(?, strategy), column_name = coalesce(?, column_name), "
                "column_type = coalesce(?, column_type), source_id = coalesce(?, source_id), "
                "schema_hash = coalesce(?, schema_hash), rows_total = coalesce(?, rows_total), updated_at = ? "
                "WHERE dataset_id = ?",
                (
                    sequence, lo, durable_version, strategy, column, column_type, source_id, schema_hash, rows_total,
                    self._database.timestamp(), dataset_id,
                ),
            )  # fmt: skip
            _end_intent(connection, dataset_id)
            return _state(connection, dataset_id)

    def withdraw(self, dataset_id: str, sequence: int) -> bool:
        """Give back a sequence that was begun and for certain committed nothing; return whether it was under way.

        For runs that found nothing to write: otherwise the next run would read the same old bounds again. Never after an
        error, which may hide a commit. Raises `NotFound`.
        """

        def work(connection: sqlite3.Connection) -> bool:
            intent = _state(connection, dataset_id).intent
            if intent is None or intent.sequence != sequence:
                return False
            _end_intent(connection, dataset_id)
            return True

        return self._database.reclaim(work)

    def reset(self, dataset_id: str) -> SyncState:
        """Forget the watermark and all that belongs to it, so that the next run starts anew, and return the new state.

        The epoch grows. A sequence that was under way counts as used, for its rows may be in the table already; the durable
        version stays, for the table does. Raises `NotFound`.
        """

        def work(connection: sqlite3.Connection) -> SyncState:
            state = _state(connection, dataset_id)
            sequence = state.sequence if state.intent is None else state.intent.sequence
            connection.execute(
                "UPDATE sync_state SET epoch = epoch + 1, sequence = ?, strategy = '', column_name = NULL, "
                "column_type = NULL, lo = NULL, source_id = '', schema_hash = '', rows_total = 0, updated_at = ? "
                "WHERE dataset_id = ?",
                (sequence, self._database.timestamp(), dataset_id),
            )
            _end_intent(connection, dataset_id)
            return _state(connection, dataset_id)

        return self._database.reclaim(work)


def _state(connection: sqlite3.Connection, dataset_id: str) -> SyncState:
    row = connection.execute(
        f"SELECT {_STATE}, {_INTENT} FROM sync_state AS s LEFT JOIN sync_intent AS i USING (dataset_id) "
        "WHERE s.dataset_id = ?",
        (dataset_id,),
    ).fetchone()
    if row is None:
        require_dataset(connection, dataset_id)
        raise AssertionError("unreachable: a dataset is stored with its state")
    return _from_row(row)


def _refuse_other(state: SyncState, sequence: int, done: str) -> None:
    if sequence != state.sequence + 1:
        raise Conflict(
            f"sequence {sequence} of dataset {state.dataset_id} cannot be {done}: the next one is {state.sequence + 1}",
            hint="another run went ahead, or the state was reset; start the run again",
        )


def _end_intent(connection: sqlite3.Connection, dataset_id: str) -> None:
    connection.execute("DELETE FROM sync_intent WHERE dataset_id = ?", (dataset_id,))


def _from_row(row: tuple[Any, ...]) -> SyncState:
    intent = None
    if row[12] is not None:
        intent = SyncIntent(
            sequence=row[12],
            mode=row[13],
            lo=row[14],
            hi=row[15],
            next_lo=row[16],
            include_nulls=bool(row[17]),
            started_at=row[18],
        )
    return SyncState(
        dataset_id=row[0],
        epoch=row[1],
        sequence=row[2],
        strategy=row[3],
        column=row[4],
        column_type=row[5],
        lo=row[6],
        source_id=row[7],
        schema_hash=row[8],
        rows_total=row[9],
        durable_version=row[10],
        updated_at=row[11],
        intent=intent,
    )
