"""A transaction is whole or absent, across threads, errors and kills."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hfagent.foundation.errors import Conflict
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.failures import DiskFull, StoreFailed
from hfagent.store.store import Store
from tests.store.rows import draft, sealed


def test_parts_share_one_transaction(store: Store) -> None:
    with store.transaction() as tx:
        record = tx.connectors.insert(draft(store, "a"))
        tx.secrets.put(sealed(record.id, tx.secrets.next_version(record.id, "password")))
        tx.audit.append("connector.created", actor="cli", resource_type="connector", resource_id=record.id)
        assert tx.connectors.get("a").id == record.id, "a read inside sees what was written"
    assert store.secrets.count() == 1

    with pytest.raises(RuntimeError, match="on purpose"), store.transaction() as tx:
        other = tx.connectors.insert(draft(store, "b"))
        tx.secrets.put(sealed(other.id, 1))
        raise RuntimeError("on purpose")
    assert [entry.name for entry in store.connectors.list()] == ["a"]
    assert store.secrets.count() == 1


def test_a_refused_step_undoes_itself_and_not_the_rest(store: Store) -> None:
    with store.transaction():
        store.connectors.insert(draft(store, "a"))
        with pytest.raises(Conflict):
            store.connectors.insert(draft(store, "A"))
        store.connectors.insert(draft(store, "b"))
    assert [entry.name for entry in store.connectors.list()] == ["a", "b"]


def test_readers_neither_wait_for_a_writer_nor_see_half_of_it(store: Store) -> None:
    store.connectors.insert(draft(store, "before"))
    inside, looked = threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def write() -> None:
        with store.transaction():
            store.connectors.insert(draft(store, "during"))
            inside.set()
            assert looked.wait(30)

    writer = threading.Thread(target=write)
    writer.start()
    assert inside.wait(30)
    seen.append([entry.name for entry in store.connectors.list()])
    looked.set()
    writer.join(30)
    seen.append([entry.name for entry in store.connectors.list()])
    assert seen == [["before"], ["before", "during"]]


def test_eight_threads_lose_nothing(store: Store) -> None:
    shared = store.connectors.insert(draft(store, "shared", config={"count": 0}))
    failures: list[BaseException] = []
    conflicts = 0
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal conflicts
        for step in range(25):
            with store.transaction():
                record = store.connectors.insert(draft(store, f"thread {number} step {step}"))
                store.secrets.put(sealed(record.id, 1))
            while True:
                present = store.connectors.get("shared")
                changed = ConnectorRecord(
                    id=present.id, name=present.name, type=present.type, config={"count": present.config["count"] + 1}
                )
                try:
                    store.connectors.replace(changed, if_version=present.version)
                    break
                except Conflict as exc:
                    assert exc.code == "connector.conflict"
                    with lock:
                        conflicts += 1
            if step % 5 == 4:
                store.connectors.delete(record.id)

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    final = store.connectors.get(shared.id)
    assert final.config == {"count": 200}
    assert final.version == 201
    assert len(store.connectors.list()) == 1 + 8 * 20
    assert store.secrets.count() == 8 * 20
    assert store.check() == []


class Failing:
    """A connection whose statements fail with one SQLite result code from the chosen moment on."""

    def __init__(self, real: sqlite3.Connection, statement: str, code: int) -> None:
        self._real, self._statement, self._code = real, statement, code

    def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
        if sql.startswith(self._statement):
            exc = sqlite3.OperationalError("made to fail")
            exc.sqlite_errorcode = self._code
            raise exc
        return self._real.execute(sql, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.mark.parametrize("code", [10, 10 | (4 << 8)])  # SQLITE_IOERR and SQLITE_IOERR_FSYNC
def test_after_a_disk_error_a_fresh_connection_looks_what_was_kept(store: Store, code: int) -> None:
    real = store._database._writer
    assert real is not None
    store._database._writer = Failing(real, "COMMIT", code)  # type: ignore[assignment]
    with pytest.raises(StoreFailed, match="may or may not be kept") as caught:
        store.connectors.insert(draft(store, "a"))
    assert caught.value.code == "internal.store"
    assert [entry.name for entry in store.connectors.list()] == []
    store.connectors.insert(draft(store, "b"))
    assert [entry.name for entry in store.connectors.list()] == ["b"]
    assert store._database._writer not in (None, real)


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [(5, StoreFailed, "locked by another program"), (8, StoreFailed, "cannot be written"), (1, StoreFailed, "failed"),
     (11, StoreFailed, "damaged"), (13, DiskFull, "is full")],
)  # fmt: skip
def test_every_failure_is_one_of_ours(store: Store, code: int, error: type[Exception], text: str) -> None:
    real = store._database._writer
    assert real is not None
    store._database._writer = Failing(real, "INSERT INTO connector ", code)  # type: ignore[assignment]
    with pytest.raises(error, match=text):
        store.connectors.insert(draft(store, "a"))
    store._database._writer = real
    store.connectors.insert(draft(store, "a"))


def test_a_transaction_that_sqlite_ended_cannot_be_continued(store: Store) -> None:
    with pytest.raises(StoreFailed, match="rolled back"), store.transaction():
        store.connectors.insert(draft(store, "a"))
        writer = store._database._writer
        assert writer is not None
        writer.execute("ROLLBACK")  # what a full disk does now and then
        store.connectors.insert(draft(store, "b"))
    assert store.connectors.list() == ()


VICTIM = """
import sys
from pathlib import Path
from hfagent.store.store import Store
from tests.store.rows import draft, sealed, stream

store = Store.open(Path(sys.argv[1]), ballast_bytes=4096)
print("ready", flush=True)
for step in range(100_000):
    name = f"{sys.argv[2]} {step}"
    with store.transaction():
        record = store.connectors.insert(draft(store, name))
        store.secrets.put(sealed(record.id, 1))
        store.audit.append("connector.created", actor="test", resource_type="connector", resource_id=record.id)
    print(name, flush=True)
    if step % 3 == 0:
        store.catalogues.replace(record.id, (stream("s", f"{step}_{n}") for n in range(700)), namespaces=["s"])
    if step % 5 == 4:
        store.connectors.delete(record.id)
        print("-" + name, flush=True)
"""


def test_kill_9_at_any_moment_loses_nothing_acknowledged_and_keeps_nothing_half(path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    promised: dict[str, bool] = {}
    for round_number in range(12):
        acknowledged = _run_and_kill(path, f"round {round_number}", rng.uniform(0.0, 0.4))
        for line in acknowledged:
            promised[line.removeprefix("-")] = not line.startswith("-")
        with Store.open(path, ballast_bytes=4096) as store:
            assert store.check() == []
            kept = {record.name: record for record in store.connectors.list()}
            missing = {name for name, alive in promised.items() if alive and name not in kept}
            # The step after the last acknowledged line may be done without its word having got out: a deletion, too.
            last = next((line for line in reversed(acknowledged) if not line.startswith("-")), None)
            assert missing <= {last}, seed
            extra = {name for name in kept if not promised.get(name, False)}
            assert len(extra) <= 1, (seed, extra)
            for record in kept.values():
                assert len(store.secrets.of(record.id)) == 1, seed
                assert len(store.audit.list(resource_id=record.id)) == 1, seed
                page = store.catalogues.page(record.id, limit=1)
                assert page is None or page.total == 700, seed
                promised[record.name] = True
            for name in missing:
                promised[name] = False
            with store._database.reading() as connection:
                assert connection.execute("SELECT count(*) FROM catalogue_unseen").fetchone()[0] == 0
                shown = connection.execute("SELECT count(*), sum(streams) FROM catalogue").fetchone()
                assert connection.execute("SELECT count(*) FROM catalogue_stream").fetchone()[0] == (shown[1] or 0)
    assert len(promised) > 12, "the victim got no work done, so nothing was shown"


def _run_and_kill(path: Path, label: str, seconds: float) -> list[str]:
    victim = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", VICTIM, str(path), label],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert victim.stdout is not None
    with victim:
        assert victim.stdout.readline() == "ready\n"
        time.sleep(seconds)
        victim.send_signal(signal.SIGKILL)
        lines = victim.stdout.read().split("\n")
    assert victim.returncode == -signal.SIGKILL
    return [line for line in lines[:-1] if line]
