"""History of connection tests: the newest hundred per connector. Reports, never configuration values."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from hfagent.foundation.redaction import redact_tree
from hfagent.model.report import CheckReport
from hfagent.store.connectors import require_connector
from hfagent.store.database import Database
from hfagent.store.identifiers import new_id

__all__ = ["KEPT", "Checks", "LastCheck"]

_log = logging.getLogger(__name__)

KEPT: Final = 100
"""Reports kept per connector."""


@dataclass(frozen=True, slots=True)
class LastCheck:
    """The newest test of a connector, for lists."""

    ok: bool
    tested_at: str


class Checks:
    """The table of test reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, connector_id: str, report: CheckReport) -> CheckReport:
        """Keep a report and return it with its id, connector and time. The oldest beyond a hundred go.

        Raises `NotFound` when the connector is gone: a test can outlive it.
        """
        identifier = new_id(self._database.clock)
        known = {
            "test_id": identifier,
            "connector_id": connector_id,
            "tested_at": report.tested_at or self._database.timestamp(),
        }
        kept = CheckReport.model_validate(redact_tree(report.model_dump(mode="json")) | known)
        with self._database.transaction() as connection:
            require_connector(connection, connector_id)
            connection.execute(
                "INSERT INTO connector_check (id, connector_id, tested_at, ok, report) VALUES (?, ?, ?, ?, ?)",
                (identifier, connector_id, known["tested_at"], kept.ok, kept.model_dump_json()),
            )
            connection.execute(
                "DELETE FROM connector_check WHERE connector_id = ? AND id <= "
                "(SELECT id FROM connector_check WHERE connector_id = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (connector_id, connector_id, KEPT),
            )
        return kept

    def list(self, connector_id: str, *, limit: int = KEPT) -> tuple[CheckReport, ...]:
        """Return the newest reports of a connector, newest first; a damaged one is left out and logged."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT report FROM connector_check WHERE connector_id = ? ORDER BY id DESC LIMIT ?",
                (connector_id, limit),
            ).fetchall()
        return tuple(report for report in map(_from_text, (row[0] for row in rows)) if report is not None)

    def last(self) -> dict[str, LastCheck]:
        """Return the newest result of every connector that was ever tested, by connector id."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT connector_id, ok, tested_at FROM connector_check AS c "
                "WHERE id = (SELECT max(id) FROM connector_check WHERE connector_id = c.connector_id)"
            ).fetchall()
        return {row[0]: LastCheck(bool(row[1]), row[2]) for row in rows}


def _from_text(text: str) -> CheckReport | None:
    try:
        return CheckReport.model_validate_json(text)
    except ValueError:
        _log.warning("a stored test report is damaged and left out")
        return None
