"""Keeping a table small and quick: data files that no reader can need any more go, the log gets a checkpoint.

Nothing here changes what a table holds. It can be killed at any moment: a file is removed only when the log says that it
has been unreferenced for longer than the retention, or when it never was referenced and is old.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from hfagent.foundation.errors import InternalError
from hfagent.lakehouse.recovery import LOG
from hfagent.lakehouse.table import LakeTable

__all__ = ["RETENTION_S", "Vacuumed", "vacuum"]

RETENTION_S: Final = 7 * 86_400
"""How long a replaced file stays for those who read an older version, in seconds."""
_ORPHAN_S: Final = 86_400
"""An unreferenced file younger than this may belong to a run that is going on."""

_DATA_FILE = re.compile(r"part-[0-9a-f-]{36}\.parquet")
_COMMIT = re.compile(r"\d{20}\.json")


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """What was removed."""

    files: int
    bytes: int


def vacuum(table: LakeTable, *, retention_s: float = RETENTION_S, now: float | None = None) -> Vacuumed:
    """Remove data files that were replaced more than `retention_s` seconds ago, and orphans of abandoned runs.

    `now` is the wall clock in seconds since 1970 (default: the system's). Only files of this program's own naming are
    looked at. Raises `InternalError` for a retention below zero, `OSError` when a file cannot be removed.
    """
    if retention_s < 0:
        raise InternalError("a retention below zero would remove files that are in use")
    moment = time.time() if now is None else now
    live = {file.name for file in table.files()}
    replaced = _replaced_at(table.directory)
    files = size = 0
    for path in sorted(table.directory.iterdir()):
        if not _DATA_FILE.fullmatch(path.name) or path.name in live:
            continue
        status = path.stat()
        # A file that was written before the log mentions it is aged by its own time; a clock that jumped only delays.
        since = replaced.get(path.name)
        old = moment - since >= retention_s if since is not None else moment - status.st_mtime >= _ORPHAN_S
        if old:
            path.unlink()
            files += 1
            size += status.st_size
    return Vacuumed(files, size)


def _replaced_at(directory: Path) -> dict[str, float]:
    """When each file of the log was replaced, in seconds since 1970."""
    found: dict[str, float] = {}
    for path in (directory / LOG).iterdir():
        if not _COMMIT.fullmatch(path.name):
            continue
        with path.open("rb") as lines:
            for line in lines:
                if line.startswith(b'{"remove"'):
                    action = json.loads(line)["remove"]
                    found[unquote(action["path"])] = float(action.get("deletionTimestamp") or 0) / 1000
    return found
