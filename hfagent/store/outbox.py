"""Messages for the platform, kept until it has acknowledged them. Not here: connecting, sending, what a message means.

Written in the transaction of what it reports, so both are there or neither. Ids only grow and are never used twice; messages
are handed out in their order. What the platform refuses for good is set aside as a dead letter, so that it blocks no other.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from hfagent.foundation.errors import AgentError, NotFound
from hfagent.foundation.redaction import redact, redact_tree
from hfagent.store.database import Database

__all__ = ["DEAD_KEPT", "QUOTA_BYTES", "Outbox", "OutboxFull", "OutboxMessage"]

QUOTA_BYTES: Final = 1 << 30
"""Most bytes of messages, dead letters included."""

DEAD_KEPT: Final = 1000
"""Dead letters kept; the oldest go first."""

STEP_ROWS: Final = 200
STEP_BYTES: Final = 256 * 1024
"""What is removed per transaction, for a full disk: deletions are journalled first."""

_COLUMNS: Final = "id, kind, stream, payload, created_at, dead_at, dead_reason"


class OutboxFull(AgentError):
    """The outbox holds as much as it may. It drains when the platform can be reached."""

    default_code = "capacity.quota_exceeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMessage:
    """One message. `dead_at` and `dead_reason` are set on dead letters only."""

    id: int
    kind: str
    stream: str
    payload: dict[str, Any]
    created_at: str
    dead_at: str | None = None
    dead_reason: str | None = None


class Outbox:
    """The table of messages."""

    def __init__(self, database: Database, *, quota_bytes: int = QUOTA_BYTES) -> None:
        self._database = database
        self._quota = quota_bytes

    def enqueue(self, kind: str, stream: str, payload: Mapping[str, Any]) -> int:
        """Add a message and return its id. `stream` names what it is about; the payload is JSON, secrets masked.

        Raises `OutboxFull` above the quota; `ValueError` or `TypeError` for a payload that is not JSON. Within a surrounding
        transaction the refusal undoes nothing else unless it is let through.
        """
        text = json.dumps(redact_tree(dict(payload)), allow_nan=False, ensure_ascii=False)
        size = sum(len(part.encode("utf-8", "surrogatepass")) for part in (kind, stream, text))
        with self._database.transaction() as connection:
            held = _size(connection)[1]
            if held + size > self._quota:
                raise OutboxFull(
                    f"the outbox is full: it holds {held:,} bytes of the {self._quota:,} it may, and the message has {size:,}",
                    hint="the platform has not taken messages for long: check the link to it (hfagent doctor)",
                    retryable=True,
                )
            entry = connection.execute(
                "INSERT INTO outbox (kind, stream, payload, bytes, created_at) VALUES (?, ?, ?, ?, ?)",
                (kind, stream, text, size, self._database.timestamp()),
            ).lastrowid
            assert entry is not None
            return entry

    def pending(self, limit: int = 100) -> tuple[OutboxMessage, ...]:
        """Return the messages that wait, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM outbox WHERE dead_at IS NULL ORDER BY id LIMIT ?", (limit,)
            ).fetchall()
        return tuple(map(_from_row, rows))

    def acknowledge(self, up_to: int) -> int:
        """Remove the waiting messages up to this id and return how many there were.

        Works on a full disk, in steps; when it breaks off, the oldest ones are gone and a repetition removes the rest.
        """
        return self._remove(up_to, dead=False)

    def count(self) -> int:
        """Return how many messages wait."""
        with self._database.reading() as connection:
            return _size(connection)[0]

    def bytes(self) -> int:
        """Return what counts towards the quota: kind, stream and payload of all messages, dead letters included."""
        with self._database.reading() as connection:
            return _size(connection)[1]

    def mark_dead(self, message_id: int, reason: str) -> None:
        """Set a waiting message aside for good. Raises `NotFound` when none of that id waits."""

        def work(connection: sqlite3.Connection) -> None:
            changed = connection.execute(
                "UPDATE outbox SET dead_at = ?, dead_reason = ? WHERE id = ? AND dead_at IS NULL",
                (self._database.timestamp(), redact(reason), message_id),
            ).rowcount
            if not changed:
                raise NotFound(f"no message {message_id} waits in the outbox", code="request.invalid_params")
            connection.execute(
                "DELETE FROM outbox WHERE dead_at IS NOT NULL AND id <= (SELECT id FROM outbox WHERE dead_at IS NOT NULL "
                "ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (DEAD_KEPT,),
            )

        self._database.reclaim(work)

    def dead(self, limit: int = 100) -> tuple[OutboxMessage, ...]:
        """Return dead letters, newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM outbox WHERE dead_at IS NOT NULL ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()
        return tuple(map(_from_row, rows))

    def discard_dead(self, up_to: int) -> int:
        """Remove the dead letters up to this id and return how many there were."""
        return self._remove(up_to, dead=True)

    def _remove(self, up_to: int, *, dead: bool) -> int:
        removed = 0
        while step := self._database.reclaim(partial(_remove_step, up_to=up_to, dead=dead)):
            removed += step
        return removed


def _remove_step(connection: sqlite3.Connection, *, up_to: int, dead: bool) -> int:
    """Remove the oldest, at least one, no more than a step holds; return how many."""
    which = "dead_at IS NOT NULL" if dead else "dead_at IS NULL"
    last, size = 0, 0
    for identifier, length in connection.execute(
        f"SELECT id, bytes FROM outbox WHERE {which} AND id <= ? ORDER BY id LIMIT ?", (up_to, STEP_ROWS)
    ).fetchall():
        size += length
        if last and size > STEP_BYTES:
            break
        last = identifier
    return connection.execute(f"DELETE FROM outbox WHERE {which} AND id <= ?", (last,)).rowcount


def _size(connection: sqlite3.Connection) -> tuple[int, int]:
    row = connection.execute("SELECT pending, bytes FROM outbox_size").fetchone()
    return int(row[0]), int(row[1])


def _from_row(row: tuple[Any, ...]) -> OutboxMessage:
    try:
        payload = dict(json.loads(row[3]))
    except (ValueError, TypeError):
        payload = {"damaged": row[3]}  # one damaged message must not stop the others; its receiver refuses it
    return OutboxMessage(
        id=row[0], kind=row[1], stream=row[2], payload=payload, created_at=row[4], dead_at=row[5], dead_reason=row[6]
    )
