"""When a connector syncs: at most one schedule per connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hfagent.store.connectors import require_connector
from hfagent.store.database import Database
from hfagent.store.identifiers import new_id

__all__ = ["ScheduleRecord", "Schedules"]

_COLUMNS = "id, connector_id, cron, mode, timezone, paused, created_at, updated_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord:
    """One schedule, as stored. The id and the times are the store's to set."""

    connector_id: str
    cron: str
    mode: Literal["incremental", "full"] = "incremental"
    timezone: str = "UTC"
    paused: bool = False
    id: str = ""
    created_at: str = ""
    updated_at: str = ""


class Schedules:
    """The table of schedules."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, schedule: ScheduleRecord) -> ScheduleRecord:
        """Give the connector this schedule, in place of the one it has, and return it. Raises `NotFound`."""
        now = self._database.timestamp()
        with self._database.transaction() as connection:
            require_connector(connection, schedule.connector_id)
            connection.execute(
                f"INSERT INTO schedule ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (connector_id) DO UPDATE "
                "SET cron = excluded.cron, mode = excluded.mode, timezone = excluded.timezone, paused = excluded.paused, "
                "updated_at = excluded.updated_at",
                (
                    new_id(self._database.clock),
                    schedule.connector_id,
                    schedule.cron,
                    schedule.mode,
                    schedule.timezone,
                    schedule.paused,
                    now,
                    now,
                ),
            )
            stored = self.get(schedule.connector_id)
            assert stored is not None
            return stored

    def get(self, connector_id: str) -> ScheduleRecord | None:
        """Return the connector's schedule, or None."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM schedule WHERE connector_id = ?", (connector_id,)
            ).fetchone()
        return None if row is None else _from_row(row)

    def list(self) -> tuple[ScheduleRecord, ...]:
        """Return all schedules, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM schedule ORDER BY id").fetchall()
        return tuple(map(_from_row, rows))

    def remove(self, connector_id: str) -> bool:
        """Take the connector's schedule away. Return whether there was one."""
        return self._database.reclaim(
            lambda connection: (
                connection.execute("DELETE FROM schedule WHERE connector_id = ?", (connector_id,)).rowcount > 0
            )
        )


def _from_row(row: tuple[Any, ...]) -> ScheduleRecord:
    return ScheduleRecord(
        id=row[0],
        connector_id=row[1],
        cron=row[2],
        mode=row[3],
        timezone=row[4],
        paused=bool(row[5]),
        created_at=row[6],
        updated_at=row[7],
    )
