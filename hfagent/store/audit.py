"""Who changed what, and when. Written in the transaction of the change itself; never a configuration value or a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hfagent.foundation.redaction import redact_tree
from hfagent.store.database import Database

__all__ = ["KEPT", "Audit", "AuditEntry"]

KEPT: Final = 100_000
"""Entries kept; the oldest go first."""

_ACTION = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One thing that was done."""

    id: int
    at: str
    actor: str
    action: str
    resource_type: str
    resource_id: str
    details: dict[str, Any]


class Audit:
    """The table of what was done."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self,
        action: str,
        *,
        actor: str,
        resource_type: str,
        resource_id: str,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Record an action, named like `connector.created`: dot-separated, lower case (`ValueError` otherwise)."""
        if not _ACTION.fullmatch(action):
            raise ValueError(f"not an action name: {action!r}")
        text = json.dumps(redact_tree(dict(details or {})), allow_nan=False)
        row = (self._database.timestamp(), actor, action, resource_type, resource_id, text)
        with self._database.transaction() as connection:
            entry = connection.execute(
                "INSERT INTO audit (at, actor, action, resource_type, resource_id, details) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            connection.execute("DELETE FROM audit WHERE id <= ?", ((entry or 0) - KEPT,))

    def list(
        self,
        *,
        resource_type: str | None = None,
        resource_id: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> tuple[AuditEntry, ...]:
        """Return entries newest first; `before` is the id of the last one seen."""
        conditions: list[str] = []
        values: list[Any] = []
        for condition, value in (
            ("resource_type = ?", resource_type),
            ("resource_id = ?", resource_id),
            ("id < ?", before),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT id, at, actor, action, resource_type, resource_id, details "
                f"FROM audit {where} ORDER BY id DESC LIMIT ?",
                (*values, limit),
            ).fetchall()
        return tuple(
            AuditEntry(
                id=row[0],
                at=row[1],
                actor=row[2],
                action=row[3],
                resource_type=row[4],
                resource_id=row[5],
                details=_details(row[6]),
            )
            for row in rows
        )


def _details(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {"damaged": text}
