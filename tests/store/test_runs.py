"""The history of runs: one running run per dataset, nothing lost over a crash, and no more kept than promised."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hfagent.foundation.errors import Conflict, NotFound
from hfagent.foundation.redaction import register_secret, unregister_all
from hfagent.model.dataset import Dataset
from hfagent.model.report import ErrorInfo
from hfagent.model.run import Run, RunStage
from hfagent.store import runs as runs_module
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.failures import StoreFailed
from hfagent.store.store import Store
from hfagent.store.sync_states import SyncIntent
from tests.store.lake_rows import dataset, run
from tests.store.rows import draft


@pytest.fixture
def orders(store: Store, connector: ConnectorRecord) -> Dataset:
    return store.datasets.insert(dataset(store, "Orders", connector))


def rows(store: Store, table: str = "run") -> int:
    with store._database.reading() as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_a_run_comes_back_as_it_ended(store: Store, orders: Dataset) -> None:
    started = store.runs.start(run(store, orders, scheduled_for="2026-01-02T03:04:00.000Z"))
    assert store.runs.get(started.id) == started
    ended = started.model_copy(
        update={
            "status": "failed", "sequence": 3, "rows_read": 10, "rows_written": 4, "rows_merged": 5, "rows_deleted": 1,
            "bytes_written": 2**40, "files_rewritten": 2, "watermark_before": "0.10", "watermark_after": "0.123456789",
            "delta_version": 7, "stages": (RunStage(name="read", ms=1.5),), "warnings": ("é",), "log_tail": ("a", "b"),
            "error": ErrorInfo(code="net.reset", message="cut", retryable=True), "ended_at": "2026-01-02T03:05:05.000Z",
        }
    )  # fmt: skip
    assert store.runs.finish(ended) == ended
    assert store.runs.get(started.id) == ended


def test_the_end_is_now_unless_it_is_given(store: Store, orders: Dataset) -> None:
    started = store.runs.start(run(store, orders))
    ended = store.runs.finish(started.model_copy(update={"status": "succeeded", "no_change": True}))
    assert ended.ended_at is not None
    assert datetime.fromisoformat(ended.ended_at).tzinfo == UTC


def test_one_running_run_per_dataset(store: Store, orders: Dataset, connector: ConnectorRecord) -> None:
    other = store.datasets.insert(dataset(store, "Other", connector))
    first = store.runs.start(run(store, orders))
    store.runs.start(run(store, other))
    with pytest.raises(Conflict, match=first.id) as caught:
        store.runs.start(run(store, orders))
    assert (caught.value.code, caught.value.retryable) == ("lakehouse.busy", True)
    skipped = store.runs.record_skipped(run(store, orders, status="skipped", reason="previous_running"))
    assert store.runs.list(orders.id) == (skipped, first)
    store.runs.finish(first.model_copy(update={"status": "cancelled"}))
    store.runs.start(run(store, orders))


def test_the_index_keeps_them_apart_too(store: Store, orders: Dataset) -> None:
    ended = store.runs.start(run(store, orders))
    store.runs.finish(ended.model_copy(update={"status": "succeeded"}))
    store.runs.start(run(store, orders))
    with pytest.raises(StoreFailed, match="UNIQUE"), store._database.transaction() as connection:
        connection.execute("UPDATE run SET status = 'running' WHERE id = ?", (ended.id,))
    assert len(store.runs.interrupted()) == 1


def test_of_many_threads_one_starts(store: Store, orders: Dataset) -> None:
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def work() -> None:
        barrier.wait(30)
        try:
            store.runs.start(run(store, orders))
            outcomes.append("started")
        except Conflict as exc:
            outcomes.append(exc.code)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["lakehouse.busy"] * 7 + ["started"]


def test_what_does_not_fit_is_refused(store: Store, orders: Dataset) -> None:
    for call in (
        lambda: store.runs.start(run(store, orders, status="failed")),
        lambda: store.runs.record_skipped(run(store, orders)),
        lambda: store.runs.record_skipped(run(store, orders, status="skipped")),
        lambda: store.runs.finish(run(store, orders)),
    ):
        with pytest.raises(ValueError, match="run"):
            call()
    gone = run(store, orders, dataset_id="none")
    for missing in (
        lambda: store.runs.start(gone),
        lambda: store.runs.finish(gone.model_copy(update={"status": "failed"})),
        lambda: store.runs.get(gone.id),
    ):
        with pytest.raises(NotFound):
            missing()
    started = store.runs.start(run(store, orders))
    ended = store.runs.finish(started.model_copy(update={"status": "cancelled"}))
    with pytest.raises(Conflict, match="was cancelled"):
        store.runs.finish(started.model_copy(update={"status": "succeeded"}))
    assert store.runs.list() == (ended,)


def test_lists_are_newest_first_and_paged(store: Store, orders: Dataset, connector: ConnectorRecord) -> None:
    other = store.datasets.insert(dataset(store, "Other", connector))
    made = [store.runs.record_skipped(run(store, of, status="skipped", reason="paused")) for of in (orders, other) * 5]
    running = store.runs.start(run(store, orders))
    newest = [entry.id for entry in reversed([*made, running])]
    assert [entry.id for entry in store.runs.list()] == newest
    assert [entry.id for entry in store.runs.list(limit=4)] == newest[:4]
    assert [entry.id for entry in store.runs.list(limit=4, before_id=newest[3])] == newest[4:8]
    assert store.runs.list(status="running") == (running,)
    assert len(store.runs.list(other.id, status="skipped")) == 5
    assert store.runs.list(other.id, status="running") == ()


def test_a_process_that_dies_leaves_its_runs_to_be_found(path: Path) -> None:
    with Store.open(path, ballast_bytes=0) as store:
        connector = store.connectors.insert(draft(store, "Sales"))
        first, second = (store.datasets.insert(dataset(store, name, connector)) for name in ("a", "b"))
        left = [store.runs.start(run(store, of)) for of in (first, second)]
    with Store.open(path, ballast_bytes=0) as store:
        assert list(store.runs.interrupted()) == left
        for entry in left:
            store.runs.finish(entry.model_copy(update={"status": "failed", "reason": "agent_down"}))
        assert store.runs.interrupted() == ()
        store.runs.start(run(store, first))


def test_the_newest_are_kept_and_running_ones_always(
    store: Store, orders: Dataset, connector: ConnectorRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "KEPT", 5)
    monkeypatch.setattr(runs_module, "STEP", 2)
    other = store.datasets.insert(dataset(store, "Other", connector))
    running = store.runs.start(run(store, orders))
    for _ in range(20):
        newest = store.runs.record_skipped(run(store, orders, status="skipped", reason="paused"))
        store.runs.record_skipped(run(store, other, status="skipped", reason="paused"))
    kept = store.runs.list(orders.id)
    assert (len(kept), kept[0], kept[-1]) == (6, newest, running)
    assert len(store.runs.list(other.id)) == 5
    assert store.runs.prune(keep=2) == 6
    assert store.runs.prune(keep=2) == 0
    assert [len(store.runs.list(of.id)) for of in (orders, other)] == [3, 2]
    assert store.runs.interrupted() == (running,)


def test_runs_go_with_their_dataset_in_steps(
    store: Store, orders: Dataset, connector: ConnectorRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "STEP", 3)
    other = store.datasets.insert(dataset(store, "Other", connector))
    kept = store.runs.start(run(store, other))
    store.runs.start(run(store, orders))
    for _ in range(9):
        store.runs.record_skipped(run(store, orders, status="skipped", reason="paused"))
    with store.transaction():
        store.datasets.delete("orders")
        assert rows(store) == 11, "within a transaction they stay"
    assert store.runs.tidy() == 10
    assert store.runs.list() == (kept,)
    assert rows(store, "run_orphaned") == 0
    store.datasets.delete("other")
    assert rows(store) == rows(store, "run_orphaned") == 0


def test_what_a_crash_left_of_a_deleted_dataset_goes_at_the_next_start(path: Path) -> None:
    with Store.open(path, ballast_bytes=0) as store:
        orders = store.datasets.insert(dataset(store, "Orders"))
        store.runs.start(run(store, orders))
        with store.transaction():
            store.datasets.delete("orders")
        assert rows(store) == 1
    with Store.open(path, ballast_bytes=0) as store:
        assert rows(store) == 0


def test_secrets_and_long_logs_are_not_kept(store: Store, orders: Dataset) -> None:
    register_secret("hunter2-long")
    try:
        started = store.runs.start(run(store, orders))
        store.runs.finish(
            started.model_copy(
                update={
                    "status": "failed",
                    "warnings": ("hunter2-long",),
                    "log_tail": tuple(f"line {n} hunter2-long" for n in range(500)),
                    "error": ErrorInfo(code="net.reset", message="for hunter2-long"),
                }
            )
        )
    finally:
        unregister_all()
    kept = store.runs.get(started.id)
    assert "hunter2" not in kept.model_dump_json()
    assert len(kept.log_tail) == runs_module.LOG_LINES
    assert kept.log_tail[-1].startswith("line 499 ")


@pytest.mark.parametrize("details", ["{(", "[1]", '{"rows_read": "many"}'])
def test_damaged_details_hide_no_run(store: Store, orders: Dataset, details: str) -> None:
    started = store.runs.start(run(store, orders))
    with store._database.transaction() as connection:
        connection.execute("UPDATE run SET details = ?", (details,))
    (found,) = store.runs.interrupted()
    assert found.id == started.id
    assert "damaged" in found.warnings[0]
    assert store.runs.finish(found.model_copy(update={"status": "failed"})).status == "failed"


# ---- run, state and report together


def finish(store: Store, started: Run, orders: Dataset) -> None:
    store.runs.finish(started.model_copy(update={"status": "succeeded", "sequence": 1, "watermark_after": "7"}))
    store.sync_states.commit(orders.id, 1, lo="7", durable_version=0)
    store.outbox.enqueue("run", f"dataset:{orders.id}", {"run_id": started.id})


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_its_state_and_its_report_are_one(
    store: Store, orders: Dataset, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Broken off after each of the three steps: nothing of it is there. The repetition has it all, once."""
    started = store.runs.start(run(store, orders))
    intent = store.sync_states.begin(orders.id, SyncIntent(sequence=1, mode="incremental", hi="7"))
    count = 0

    def breaking(real: object) -> object:
        def call(*args: object, **named: object) -> object:
            nonlocal count
            result = real(*args, **named)  # type: ignore[operator]
            count += 1
            if count == after:
                raise RuntimeError("on purpose")
            return result

        return call

    with monkeypatch.context() as patch:
        for part, name in ((store.runs, "finish"), (store.sync_states, "commit"), (store.outbox, "enqueue")):
            patch.setattr(part, name, breaking(getattr(part, name)))
        with pytest.raises(RuntimeError, match="on purpose"), store.transaction():
            finish(store, started, orders)
    assert store.runs.interrupted() == (started,)
    assert store.sync_states.get(orders.id).intent == intent
    assert (store.outbox.count(), store.outbox.bytes(), store.outbox.pending()) == (0, 0, ())
    with store.transaction():
        finish(store, started, orders)
    assert store.runs.get(started.id).status == "succeeded"
    assert store.sync_states.get(orders.id).lo == "7"
    assert [message.payload for message in store.outbox.pending()] == [{"run_id": started.id}]
