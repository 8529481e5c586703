"""The outbox: in order, once written there until acknowledged, bounded, and drained even when the disk is full."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hfagent.foundation.errors import NotFound
from hfagent.foundation.redaction import register_secret, unregister_all
from hfagent.store import outbox as outbox_module
from hfagent.store.failures import DiskFull
from hfagent.store.outbox import Outbox, OutboxFull
from hfagent.store.store import Store


def ids(store: Store, limit: int = 10_000) -> list[int]:
    return [message.id for message in store.outbox.pending(limit)]


def counted(store: Store) -> tuple[int, int]:
    """Count and bytes, by looking at every row."""
    with store._database.reading() as connection:
        row = connection.execute(
            "SELECT coalesce(sum(dead_at IS NULL), 0), "
            "coalesce(sum(length(CAST(kind || stream || payload AS BLOB))), 0) FROM outbox"
        ).fetchone()
    return int(row[0]), int(row[1])


def test_messages_come_out_in_order_as_they_went_in(store: Store) -> None:
    payloads: list[dict[str, Any]] = [{"n": 1.5, "é": [None, True, "😀"]}, {}, {"big": "x" * 100_000}]
    made = [store.outbox.enqueue("run", f"dataset:{n}", payload) for n, payload in enumerate(payloads)]
    assert made == sorted(set(made))
    pending = store.outbox.pending()
    assert [(message.id, message.payload) for message in pending] == list(zip(made, payloads, strict=True))
    assert [message.stream for message in pending] == ["dataset:0", "dataset:1", "dataset:2"]
    assert {(message.kind, message.dead_at, message.dead_reason) for message in pending} == {("run", None, None)}
    assert store.outbox.pending(2) == pending[:2]
    assert (store.outbox.count(), store.outbox.bytes()) == counted(store)
    assert store.outbox.count() == 3


def test_acknowledging_removes_up_to_there_and_ids_are_never_used_again(path: Path) -> None:
    with Store.open(path, ballast_bytes=0) as store:
        made = [store.outbox.enqueue("run", "s", {"n": n}) for n in range(5)]
        assert store.outbox.acknowledge(made[2]) == 3
        assert ids(store) == made[3:]
        assert store.outbox.acknowledge(made[2]) == 0
        assert store.outbox.acknowledge(made[4]) == 2
        assert (store.outbox.count(), store.outbox.bytes()) == (0, 0)
    with Store.open(path, ballast_bytes=0) as store:
        assert store.outbox.enqueue("run", "s", {}) > made[4]


def test_a_long_queue_is_removed_in_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "STEP_ROWS", 7)
    monkeypatch.setattr(outbox_module, "STEP_BYTES", 5000)
    sizes = [10, 9000, 9000, 10, 10, 4000, 4000] + [10] * 30
    made = [store.outbox.enqueue("run", "s", {"x": "x" * size}) for size in sizes]
    removed: list[int] = []
    real = outbox_module._remove_step

    def watched(*args: Any, **named: Any) -> int:
        removed.append(real(*args, **named))
        return removed[-1]

    monkeypatch.setattr(outbox_module, "_remove_step", watched)
    assert store.outbox.acknowledge(made[-2]) == len(made) - 1
    assert removed[:4] == [1, 1, 1, 3]
    assert max(removed) == 7
    assert ids(store) == made[-1:]


def test_nothing_of_a_broken_off_transaction_is_there(store: Store) -> None:
    first = store.outbox.enqueue("run", "s", {})
    before = (store.outbox.count(), store.outbox.bytes())
    with pytest.raises(RuntimeError, match="on purpose"), store.transaction() as tx:
        tx.outbox.enqueue("run", "s", {})
        tx.outbox.acknowledge(first)
        assert tx.outbox.count() == 1
        raise RuntimeError("on purpose")
    assert ids(store) == [first]
    assert (store.outbox.count(), store.outbox.bytes()) == before == counted(store)


@pytest.mark.parametrize("payload", [{"x": float("nan")}, {"x": object()}])
def test_what_is_no_json_is_refused(store: Store, payload: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        store.outbox.enqueue("run", "s", payload)
    assert store.outbox.count() == 0


def test_secrets_are_masked(store: Store) -> None:
    register_secret("hunter2-long")
    try:
        message = store.outbox.enqueue("run", "s", {"error": {"message": "for hunter2-long"}})
        store.outbox.mark_dead(message, "refused hunter2-long")
    finally:
        unregister_all()
    assert "hunter2" not in repr(store.outbox.dead())


# ---- the quota


def test_the_quota_refuses_and_gives_way_when_it_drains(store: Store) -> None:
    outbox = Outbox(store._database, quota_bytes=1000)
    while True:
        try:
            last = outbox.enqueue("run", "s", {"x": "x" * 90})
        except OutboxFull as exc:
            assert (exc.code, exc.retryable) == ("capacity.quota_exceeded", True)
            assert exc.hint
            break
    assert 900 < outbox.bytes() <= 1000
    assert outbox.count() == 9
    store.meta.set("other", "things still work")
    outbox.acknowledge(last - 1)
    outbox.enqueue("run", "s", {"x": "x" * 90})


def test_a_refusal_caught_within_a_transaction_spares_the_rest(store: Store) -> None:
    outbox = Outbox(store._database, quota_bytes=100)
    with store.transaction():
        store.meta.set("before", "1")
        with pytest.raises(OutboxFull):
            outbox.enqueue("run", "s", {"x": "x" * 200})
        outbox.enqueue("run", "s", {"x": "x"})
    assert store.meta.get("before") == "1"
    assert outbox.count() == 1


# ---- dead letters


def test_a_dead_letter_blocks_no_other_and_is_kept_with_its_reason(store: Store) -> None:
    first, second, third = (store.outbox.enqueue("run", "s", {"n": n}) for n in range(3))
    store.outbox.mark_dead(second, "refused: unknown kind")
    assert ids(store) == [first, third]
    assert store.outbox.count() == 2
    assert store.outbox.acknowledge(third) == 2
    (letter,) = store.outbox.dead()
    assert (letter.id, letter.payload, letter.dead_reason) == (second, {"n": 1}, "refused: unknown kind")
    assert letter.dead_at
    assert (store.outbox.count(), store.outbox.bytes()) == counted(store)
    for gone in (first, second, 999):
        with pytest.raises(NotFound):
            store.outbox.mark_dead(gone, "again")
    assert store.outbox.discard_dead(second) == 1
    assert (store.outbox.count(), store.outbox.bytes()) == counted(store) == (0, 0)


def test_dead_letters_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "DEAD_KEPT", 3)
    waiting = store.outbox.enqueue("run", "s", {})
    made = [store.outbox.enqueue("run", "s", {}) for _ in range(6)]
    for message in made:
        store.outbox.mark_dead(message, "refused")
    assert [letter.id for letter in store.outbox.dead()] == made[:2:-1]
    assert ids(store) == [waiting]
    assert (store.outbox.count(), store.outbox.bytes()) == counted(store)


def test_a_damaged_message_stops_no_other(store: Store) -> None:
    made = [store.outbox.enqueue("run", "s", {"n": n}) for n in range(2)]
    with store._database.transaction() as connection:
        connection.execute("UPDATE outbox SET payload = '{(' WHERE id = ?", (made[0],))
    assert [message.payload for message in store.outbox.pending()] == [{"damaged": "{("}, {"n": 1}]


# ---- what must not go wrong


def test_the_running_totals_are_those_of_the_rows(store: Store) -> None:
    """A random history, rolled back in part."""
    chance = random.Random(20)
    for _ in range(150):
        known = ids(store)
        try:
            with store.transaction():
                for _ in range(chance.randrange(1, 4)):
                    step = chance.random()
                    if step < 0.6 or not known:
                        store.outbox.enqueue("run", "é", {"x": "é" * chance.randrange(50)})
                    elif step < 0.8:
                        store.outbox.acknowledge(chance.choice(known))
                    else:
                        waiting = ids(store)
                        if waiting:
                            store.outbox.mark_dead(chance.choice(waiting), "refused")
                if chance.random() < 0.2:
                    raise RuntimeError
        except RuntimeError:
            pass
        assert (store.outbox.count(), store.outbox.bytes()) == counted(store)
    assert store.outbox.count() > 0
    assert store.outbox.dead()


def test_a_full_disk_drains(store: Store) -> None:
    """SQLite's own page limit gives the result code of a full disk, without a file system of that size."""
    writer = store._database._writer
    assert writer is not None
    writer.execute(f"PRAGMA max_page_count = {writer.execute('PRAGMA page_count').fetchone()[0] + 100}")
    made: list[int] = []
    with pytest.raises(DiskFull):
        while len(made) < 1000:
            made.append(store.outbox.enqueue("run", "s", {"x": os.urandom(2000).hex()}))
    assert len(made) > 20
    assert store.status().disk_full
    assert ids(store) == made, "what was promised is there"
    assert store.outbox.acknowledge(made[-1]) == len(made)
    assert (store.outbox.count(), store.outbox.bytes()) == (0, 0)
    assert store.outbox.enqueue("run", "s", {}) > made[-1]
    assert not store.status().disk_full
    assert store.check() == []


WRITER = """
import sys
from pathlib import Path
from hfagent.store.store import Store

store = Store.open(Path(sys.argv[1]), ballast_bytes=0)
while True:
    with store.transaction():
        number = int(store.meta.get("sent") or 0) + 1
        store.meta.set("sent", str(number))
        store.outbox.enqueue("run", "s", {"n": number})
    print(number, flush=True)
"""


def test_kill_9_leaves_the_report_exactly_with_what_it_reports(path: Path) -> None:
    told = 0
    for kill_after in (1, 17, 40):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
        ) as victim:
            assert victim.stdout is not None
            for _ in range(kill_after):
                told = int(victim.stdout.readline())
            victim.kill()
            told = max(
                [told, *(int(line) for line in victim.stdout.read().splitlines(keepends=True) if line[-1] == "\n")]
            )
        assert victim.returncode == -signal.SIGKILL
        with Store.open(path, ballast_bytes=0) as store:
            assert store.check() == []
            sent = int(store.meta.get("sent") or 0)
            assert sent in (told, told + 1), "nothing acknowledged is lost"
            assert [message.payload["n"] for message in store.outbox.pending(10_000)] == list(range(1, sent + 1))
