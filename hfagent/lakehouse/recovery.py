"""What a crash or a power cut left in a table's log, found before anything is read.

delta-rs neither syncs what it writes nor notices a commit that was cut short: an empty last file reads as an empty commit,
one cut at a line's end as a commit without its last actions, and rows vanish or return. So every commit of ours says in
its first line how many actions it has, and `recover` holds each later commit against that and against its data files.

* A broken commit above the version that is known to be durable was never acknowledged: it and all above it are set aside
  (`….torn`), newest first, so that a second crash finds the same picture again.
* A broken commit at or below that version is damage: the table is refused, untouched.
* A whole commit above that version is made durable before anybody builds on it: its writer may have died too early.
* Checkpoints are a shortcut of the log. A broken one is set aside; the log tells the same.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from hfagent.foundation.atomic import sync_directory, sync_file
from hfagent.lakehouse.failures import damaged

__all__ = ["ACTIONS_KEY", "LOG", "Recovery", "commit_file", "recover"]

LOG: Final = "_delta_log"
ACTIONS_KEY: Final = "hfagent.actions"
"""Commit metadata: adds, removes and transactions of the commit, as `"adds,removes,txns"`."""

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(\..+)?\.parquet")
_TEMPORARY = re.compile(r".*\.json\.tmp|\d{20}\.json#\d+")
_MAGIC: Final = b"PAR1"
_SMALLEST: Final = 12
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found and set aside."""

    version: int | None
    """Last whole commit; None when the table has none."""
    set_aside: tuple[str, ...] = ()
    """Names of the log files that were renamed to `….torn`."""
    reasons: tuple[str, ...] = ()
    """What was wrong with them, in the same order."""


def commit_file(directory: Path, version: int) -> Path:
    """Path of a version's log file."""
    return directory / LOG / f"{version:020d}.json"


def recover(directory: Path, durable: int | None) -> Recovery:
    """Check the log above `durable` (the last version recorded as safe; None: nothing was) and set a broken tail aside.

    Call it under the table's lock, before the table is opened. Raises `AgentError` (`lakehouse.damaged`) when something at
    or below `durable` is broken or missing, or when a whole commit follows a broken one that must have been whole.
    """
    log = directory / LOG
    if not log.is_dir():
        if durable is not None:
            raise damaged(directory, f"its log is gone, and version {durable} was recorded as written")
        return Recovery(None)
    commits = sorted(int(match[1]) for entry in log.iterdir() if (match := _COMMIT.fullmatch(entry.name)))
    last = commits[-1] if commits else None
    if durable is not None and (last is None or last < durable):
        raise damaged(directory, f"version {durable} was recorded as written, the log ends at {last}")
    broken = _first_broken(directory, commits, durable)
    set_aside: list[str] = []
    reasons: list[str] = []
    if broken is not None:
        version, reason = broken
        if durable is not None and version <= durable:
            raise damaged(directory, f"version {version}: {reason}")
        # A commit is durable before the next one begins, so what follows a cut one cannot be whole: this is no power cut.
        if whole_after := [c for c in commits if c > version and _flaw(directory, c, files=True) is None]:
            raise damaged(directory, f"version {version}: {reason}; and version {whole_after[0]} after it is whole")
        for number in reversed([commit for commit in commits if commit >= version]):
            path = commit_file(directory, number)
            path.rename(_free_name(path))
            sync_directory(log)
            set_aside.append(path.name)
            reasons.append(reason if number == version else f"it follows version {version}")
            _log.warning("%s: version %d was cut short (%s) and is set aside", directory, number, reasons[-1])
        whole = [commit for commit in commits if commit < version]
        last = whole[-1] if whole else None
    if last is not None and last != durable:
        # Who wrote these may have died before the sync; our caller is about to build on them.
        for number in commits:
            if number <= last and (durable is None or number > durable):
                sync_file(commit_file(directory, number))
        for parent in (log, directory, directory.parent):
            sync_directory(parent)
    for entry in list(log.iterdir()):
        if _TEMPORARY.fullmatch(entry.name):
            entry.unlink()  # a commit that was never linked to its version
    _drop_broken_checkpoints(log, last, set_aside, reasons)
    return Recovery(last, tuple(set_aside), tuple(reasons))


def _first_broken(directory: Path, commits: list[int], durable: int | None) -> tuple[int, str] | None:
    """The lowest version that cannot be used, and why. Versions that a whole checkpoint replaces are not looked at.

    Data files are checked from `durable` on: a reader misses an older one, but would take an older empty commit for whole.
    """
    start = 0 if durable is None else durable
    checkpoints = (directory / LOG).glob("*.checkpoint*.parquet")
    found = [int(path.name[:20]) for path in checkpoints if _CHECKPOINT.fullmatch(path.name) and _footer_reads(path)]
    first = max((version for version in found if version <= start), default=-1) + 1
    expected: int | None = None
    for version in commits:
        if version < min(first, start):
            continue
        if expected is not None and version != expected:
            return expected, "it is missing"
        expected = version + 1
        reason = _flaw(directory, version, files=version >= start)
        if reason is not None:
            return version, reason
    return None


def _flaw(directory: Path, version: int, *, files: bool) -> str | None:
    """What is wrong with one commit; None when it is whole and, with `files`, its data files are there."""
    content = commit_file(directory, version).read_bytes()
    if not content.strip(b"\0 \r\n"):
        return "it is empty"
    actions: list[dict[str, Any]] = []
    for line in content.splitlines():
        try:
            action = json.loads(line)
        except ValueError:
            return "it ends in the middle of a line"
        if not isinstance(action, dict) or not action or not all(isinstance(body, dict) for body in action.values()):
            return "it holds something that is no action"
        actions.append(action)
    kinds = [next(iter(action)) for action in actions]
    info: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
    if not info:
        return "its description is missing"
    counted = info.get(ACTIONS_KEY)
    if counted is not None:
        found = f"{kinds.count('add')},{kinds.count('remove')},{kinds.count('txn')}"
        if found != counted:
            return f"it was written with {counted} actions and has {found}"
    elif set(kinds) == {"commitInfo"} or (version == 0 and "metaData" not in kinds):
        return "its actions are missing"  # another writer's commit, or delta-rs' own: a new table, columns, a feature
    for action in actions:
        if files and "add" in action and (reason := _file_flaw(directory, action["add"])) is not None:
            return reason
    return None


def _file_flaw(directory: Path, add: dict[str, Any]) -> str | None:
    name = str(add.get("path", ""))
    path = directory / unquote(name)
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
            size = file.seek(0, 2)
            if size != add.get("size") or size < _SMALLEST:
                return f"its data file {name} has {size} bytes instead of {add.get('size')}"
            file.seek(size - len(_MAGIC))
            tail = file.read()
    except OSError as exc:
        return f"its data file {name} cannot be read ({exc.strerror})"
    if head != _MAGIC or tail != _MAGIC or not _footer_reads(path):
        return f"its data file {name} is not a whole Parquet file"
    return None


def _footer_reads(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True


def _drop_broken_checkpoints(log: Path, last: int | None, set_aside: list[str], reasons: list[str]) -> None:
    """Set checkpoints aside that are not whole or lie above the last whole commit, and the pointer to such a one."""
    checkpoints = {entry: int(match[1]) for entry in log.iterdir() if (match := _CHECKPOINT.fullmatch(entry.name))}
    sound: set[int] = set()
    for path, version in sorted(checkpoints.items()):
        if last is not None and version <= last and _footer_reads(path):
            sound.add(version)
        else:
            path.rename(_free_name(path))
            set_aside.append(path.name)
            reasons.append("the checkpoint is not whole, or above the last whole commit")
    pointer = log / "_last_checkpoint"
    if pointer.exists() and _pointed(pointer) not in sound:
        pointer.rename(_free_name(pointer))
        set_aside.append(pointer.name)
        reasons.append("it points to no whole checkpoint")
    if set_aside:
        sync_directory(log)


def _pointed(pointer: Path) -> int | None:
    try:
        version = json.loads(pointer.read_bytes())["version"]
    except (ValueError, KeyError, TypeError):
        return None
    return version if isinstance(version, int) else None


def _free_name(path: Path) -> Path:
    """A name for a file that is set aside; what was set aside earlier is kept."""
    for number in range(1, 10_000):
        candidate = path.with_name(f"{path.name}.torn" if number == 1 else f"{path.name}.{number}.torn")
        if not candidate.exists():
            return candidate
    raise damaged(path.parent.parent, f"too many broken copies of {path.name}")
