"""The program that is killed: a small sync loop from a SQLite source into a Delta table, with its own durable state.

The order is the one that the sync service keeps: an intent with frozen bounds, the table opened with the version that is
recorded as durable, the batch staged and committed unless the table holds its sequence, and then one state transaction.

As a program it is a fork server: imports dominate the life of such a short run, so they are paid once. The oracle is not
here (`faults.py`). The variants other than `sound` are wrong on purpose; every harness must catch those that concern it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

APP = "hfagent:test:crm:orders"
BATCHES = 3
BATCH_ROWS = 12
MODES = ("incremental", "merge", "full")
TABLE = Path("lake", "crm", "orders")
"""Of the home directory. Nested and made by the first run, so that the names of the parents are at stake as well."""

SOUND, TYPED_FULL, TYPED_STORE, TYPED_OTHER, STATE, UNTYPED = 0, 11, 12, 13, 14, 15
"""Exit statuses."""
PADDING = 400
"""Calls that the main thread makes beforehand: strace counts per thread, and so no thread's n-th call hides another's."""


def schema() -> Any:
    import pyarrow as pa

    return pa.schema([("id", pa.int64()), ("changed", pa.int64()), ("text", pa.string()), ("digest", pa.string())])


def make_source(path: Path) -> None:
    """A log of changes: later batches change rows of earlier ones, and deliver one row again as it was."""
    texts = [None, "", "plain", "Grüße 🎉", "a'\"\\\n"]
    with closing(sqlite3.connect(path)) as source, source:
        source.execute("CREATE TABLE change(changed INTEGER PRIMARY KEY, id INTEGER, text TEXT, digest TEXT)")
        changed = 0
        for batch in range(BATCHES):
            for place in range(BATCH_ROWS):
                changed += 1
                identity = changed if place < BATCH_ROWS - 4 or not batch else place - 3 + 4 * (batch - 1)
                text = texts[changed % len(texts)]
                source.execute("INSERT INTO change VALUES (?, ?, ?, ?)", (changed, identity, text, f"d{changed}"))


def rows(source: Path, mode: str, low: int, high: int) -> list[tuple[Any, ...]]:
    """The rows of one interval; in full mode, the state of all rows as of its end."""
    select = "SELECT id, changed, text, digest FROM change WHERE changed > ? AND changed <= ? ORDER BY changed"
    if mode == "full":
        select = (
            "SELECT id, changed, text, digest FROM change WHERE changed IN"
            " (SELECT max(changed) FROM change WHERE changed > ? AND changed <= ? GROUP BY id) ORDER BY changed"
        )
        low = 0
    with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as connection:
        return connection.execute(select, (low, high)).fetchall()


def sync(home: Path, source: Path, mode: str, variant: str = "sound") -> None:
    """Run until the source has nothing more."""
    with _variant(variant), closing(sqlite3.connect(home / "state.db", isolation_level=None)) as state:
        state.execute("PRAGMA journal_mode=WAL")
        state.execute("PRAGMA synchronous=FULL")
        state.execute(
            "CREATE TABLE IF NOT EXISTS run(sequence INTEGER PRIMARY KEY, low INT, high INT, done INT, version INT)"
        )
        while True:
            done = state.execute("SELECT sequence, high, version FROM run WHERE done ORDER BY sequence DESC").fetchone()
            sequence, mark, durable = done or (0, 0, None)
            sequence += 1
            intent = state.execute("SELECT low, high FROM run WHERE sequence = ?", (sequence,)).fetchone()
            if intent is None:
                high = _next_bound(source, mark)
                if high is None:
                    return
                intent = (mark, high)
                state.execute("INSERT INTO run VALUES (?, ?, ?, 0, NULL)", (sequence, *intent))
            version = _batch(home / TABLE, rows(source, mode, *intent), sequence, durable, mode, variant)
            state.execute("UPDATE run SET done = 1, version = ? WHERE sequence = ?", (version, sequence))


def _next_bound(source: Path, mark: int) -> int | None:
    select = "SELECT max(changed) FROM (SELECT changed FROM change WHERE changed > ? ORDER BY changed LIMIT ?)"
    with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as connection:
        return connection.execute(select, (mark, BATCH_ROWS)).fetchone()[0]


def _batch(
    directory: Path, batch: list[tuple[Any, ...]], sequence: int, durable: int | None, mode: str, variant: str
) -> int:
    import pyarrow as pa

    from hfagent.lakehouse.merge import merge
    from hfagent.lakehouse.table import Commit, LakeTable

    columns = list(zip(*batch, strict=True))
    change = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema(), strict=True)], schema=schema())
    with LakeTable.open(directory, schema(), app_id=APP, durable=durable) as table:
        if variant == "naive":
            _raw_append(directory, change, sequence)
            return table.version + 1
        if table.sequence < sequence:
            commit = Commit(sequence, {"rows": str(len(batch))})
            if mode == "merge":
                merge(table, change, commit, keys=["id"], compare=["digest"])
            else:
                files = table.stage().write_all(change.to_batches()).finish()
                (table.replace if mode == "full" else table.append)(files, commit)
        return table.version


def _raw_append(directory: Path, change: Any, sequence: int) -> None:
    """What everybody writes first: the transaction is recorded, and nobody asks for it."""
    import deltalake

    properties = deltalake.CommitProperties(
        app_transactions=[deltalake.Transaction(APP, sequence)],
        # As if it were ours: otherwise the recovery would refuse the commit before it can do harm.
        custom_metadata={"hfagent.actions": "1,0,1"},
    )
    deltalake.write_deltalake(str(directory), change, mode="append", commit_properties=properties)


@contextmanager
def _variant(name: str) -> Iterator[None]:
    """The lakehouse with one of its safeguards taken out."""
    with ExitStack() as stack:
        if name in ("nosync", "noinherit"):
            for module in ("table", "stage", "recovery") if name == "nosync" else ("recovery",):
                for function in ("sync_file", "sync_directory"):
                    target = f"hfagent.lakehouse.{module}.{function}"
                    stack.enter_context(patch(target, lambda *_: None, create=True))
        elif name == "norecover":
            stack.enter_context(patch("hfagent.lakehouse.table.recover", _look_only))
        yield


def _look_only(directory: Path, durable: int | None) -> Any:
    from hfagent.lakehouse.recovery import LOG, Recovery

    commits = sorted(int(entry.stem) for entry in (directory / LOG).glob("*.json") if entry.stem.isdigit())
    return Recovery(commits[-1] if commits else None)


# --- the fork server ---


def _serve() -> None:
    """Jobs on stdin; for each: a fork that waits, its process id, a line that says go, its exit status."""
    import deltalake  # noqa: F401
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    import hfagent.lakehouse.merge  # noqa: F401

    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(write)
            _let_anybody_trace()
            os.read(read, 1)
            _pad(job["pad"])
            os._exit(_status(job))
        os.close(read)
        print(child, flush=True)
        sys.stdin.readline()
        os.write(write, b"g")
        os.close(write)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _status(job: dict[str, Any]) -> int:
    from hfagent.foundation.errors import AgentError

    try:
        sync(Path(job["home"]), Path(job["source"]), job["mode"], job["variant"])
    except AgentError as exc:
        return {"agent.disk_full": TYPED_FULL, "internal.store": TYPED_STORE}.get(exc.code, TYPED_OTHER)
    except sqlite3.Error:
        return STATE
    except BaseException:
        traceback.print_exc()
        return UNTYPED
    return SOUND


def _let_anybody_trace() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER; without Yama it does nothing


def _pad(call: str | None) -> None:
    descriptor = os.open("/dev/null", os.O_RDWR)
    missing = "/nonexistent/padding"
    harmless = {
        "openat": lambda: os.close(os.open("/dev/null", os.O_RDONLY)),
        "write": lambda: os.write(descriptor, b"."),
        "pwrite64": lambda: os.pwrite(descriptor, b".", 0),
        "fsync": lambda: os.fsync(descriptor),
        "fdatasync": lambda: os.fdatasync(descriptor),
        "rename": lambda: os.rename(missing, missing),
        "link": lambda: os.link(missing, missing),
        "unlink": lambda: os.unlink(missing),
        "ftruncate": lambda: os.ftruncate(descriptor, 0),
        "mkdir": lambda: os.mkdir(missing),
    }
    for _ in range(PADDING if call in harmless else 0):
        try:
            harmless[call]()
        except OSError:
            pass
    os.close(descriptor)


if __name__ == "__main__":
    _serve()
