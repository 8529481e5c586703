"""Datasets outlive their connector; sync states move one begun sequence at a time, whatever happens in between."""

from __future__ import annotations

import dataclasses
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hfagent.foundation.errors import Conflict, NotFound
from hfagent.model.dataset import Dataset, DatasetDraft, DatasetPatch, Mask
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.failures import StoreFailed
from hfagent.store.migrations import MIGRATIONS
from hfagent.store.schedules import ScheduleRecord
from hfagent.store.store import Store
from hfagent.store.sync_states import SyncIntent, SyncState
from tests.store.lake_rows import columns, dataset
from tests.store.rows import draft, sealed

WEIRD = ["Größe", "quote ' \" `", "100% _x_", "日本語 😀", "; DROP TABLE dataset; --", "İstanbul"]


@pytest.fixture
def orders(store: Store, connector: ConnectorRecord) -> Dataset:
    return store.datasets.insert(dataset(store, "Orders", connector))


# ---- the vocabulary


@pytest.mark.parametrize("location", ["", "/etc", "../x", "a/../../b", "a//b", "a/.", "a\\b", "a\0b", "a/"])
def test_a_location_stays_below_the_lakehouse(store: Store, location: str) -> None:
    with pytest.raises(ValidationError):
        dataset(store, "x", location=location)


@pytest.mark.parametrize("name", ["", " x", "x ", "a\nb", "x" * 201])
def test_unfit_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        DatasetDraft(name=name, connector="Sales", stream="public.orders")
    with pytest.raises(ValidationError):
        DatasetPatch(name=name)


def test_a_patch_tells_absent_from_null() -> None:
    assert DatasetPatch().model_fields_set == set()
    assert DatasetPatch.model_validate({"watermark_column": None}).model_fields_set == {"watermark_column"}


# ---- datasets


def test_a_dataset_comes_back_as_it_was_stored(store: Store, connector: ConnectorRecord) -> None:
    record = dataset(
        store, "Orders", connector, mode="incremental", watermark_column="upd 'x'", primary_key=("a", "b"), lookback=0,
        on_null="exclude", columns=("a", "b", "c"), exclude=("d",), masks={"c": Mask(kind="partial", keep=2)},
        schema_policy="freeze", deletes="soft_column", max_shrink_ratio=0.25, status="paused", status_reason="é",
        cached_columns=columns(500),
    )  # fmt: skip
    stored = store.datasets.insert(record)
    assert stored == record.model_copy(update={"created_at": stored.created_at, "updated_at": stored.updated_at})
    assert datetime.fromisoformat(stored.created_at).tzinfo == UTC
    assert store.datasets.get(record.id) == stored
    assert store.datasets.get("oRDERS") == stored
    assert store.datasets.list() == store.datasets.list(connector.id) == (stored,)
    assert store.datasets.list("another") == ()


@pytest.mark.parametrize("name", WEIRD)
def test_names_are_kept_exactly_and_unique_whatever_their_case(
    store: Store, connector: ConnectorRecord, name: str
) -> None:
    stored = store.datasets.insert(dataset(store, name, connector))
    assert store.datasets.get(name.casefold()) == stored
    with pytest.raises(Conflict) as caught:
        store.datasets.insert(dataset(store, name.casefold(), connector))
    assert caught.value.code == "connector.name_taken"
    assert store.datasets.list() == (stored,)


def test_two_datasets_never_share_a_directory(store: Store, orders: Dataset, connector: ConnectorRecord) -> None:
    with pytest.raises(Conflict, match="'Orders'"):
        store.datasets.insert(dataset(store, "Other", connector, location=orders.location))
    other = store.datasets.insert(dataset(store, "Other", connector))
    with pytest.raises(Conflict, match="'Orders'"):
        store.datasets.update(other.model_copy(update={"location": orders.location}))
    with pytest.raises(StoreFailed, match="UNIQUE"), store._database.transaction() as connection:
        connection.execute("UPDATE dataset SET location = ?", (orders.location,))


def test_versions_tell_a_change_made_meanwhile(store: Store, orders: Dataset) -> None:
    second = store.datasets.update(orders.model_copy(update={"deletes": "soft_column"}), if_version=1)
    assert (second.version, second.created_at, second.deletes) == (2, orders.created_at, "soft_column")
    with pytest.raises(Conflict) as caught:
        store.datasets.update(orders, if_version=1)
    assert caught.value.code == "connector.conflict"
    assert store.datasets.get(orders.id) == second
    assert store.datasets.update(second.model_copy(update={"name": "ORDERS"})).version == 3


def test_what_is_not_there_is_told(store: Store, orders: Dataset, connector: ConnectorRecord) -> None:
    with pytest.raises(NotFound) as caught:
        store.datasets.get("Odrers")
    assert caught.value.hint == "did you mean 'Orders'?"
    assert store.datasets.find("Odrers") is None
    gone = dataset(store, "Gone", connector)
    for call in (
        lambda: store.datasets.update(gone),
        lambda: store.datasets.delete("Gone"),
        lambda: store.datasets.insert(gone.model_copy(update={"connector_id": "none"})),
        lambda: store.sync_states.get("none"),
        lambda: store.sync_states.begin("none", SyncIntent(sequence=1, mode="full")),
        lambda: store.sync_states.commit("none", 1, lo=None, durable_version=0),
        lambda: store.sync_states.withdraw("none", 1),
        lambda: store.sync_states.reset("none"),
    ):
        with pytest.raises(NotFound):
            call()
    assert store.datasets.list() == (orders,)


def test_deleting_the_connector_detaches_and_keeps_rows_and_columns(
    store: Store, orders: Dataset, connector: ConnectorRecord
) -> None:
    other = store.connectors.insert(draft(store, "Other"))
    kept = store.datasets.insert(dataset(store, "Kept", other))
    store.sync_states.begin(orders.id, SyncIntent(sequence=1, mode="full"))
    store.connectors.delete("sales")
    found = store.datasets.get("orders")
    assert (found.connector_id, found.connector_name, found.status) == (None, "Sales", "detached")
    assert found.status_reason
    assert found.version == 2
    assert datetime.fromisoformat(found.updated_at).tzinfo == UTC
    assert (found.cached_columns, found.schema_hash, found.location) == (columns(3), "abc", orders.location)
    assert store.sync_states.get(orders.id).intent is not None
    assert store.datasets.get("kept") == kept
    assert store.check() == []


def test_detaching_by_hand_gives_the_reason_and_goes_with_the_deletion(
    store: Store, orders: Dataset, connector: ConnectorRecord
) -> None:
    with pytest.raises(RuntimeError, match="on purpose"), store.transaction(reclaiming=True) as tx:
        assert tx.datasets.detach(connector.id, "moved away") == 1
        tx.connectors.delete(connector.id)
        raise RuntimeError("on purpose")
    assert store.datasets.get(orders.id) == orders
    with store.transaction(reclaiming=True) as tx:
        tx.datasets.detach(connector.id, "moved away")
        tx.connectors.delete(connector.id)
    found = store.datasets.get(orders.id)
    assert (found.status, found.status_reason, found.version) == ("detached", "moved away", 2)
    assert store.datasets.detach(connector.id, "again") == 0


def test_no_dataset_is_detached_and_attached_at_once(store: Store, orders: Dataset) -> None:
    with pytest.raises(StoreFailed, match="CHECK"), store._database.transaction() as connection:
        connection.execute("UPDATE dataset SET status = 'detached'")


def test_the_connectors_name_is_followed_while_there_is_one(
    store: Store, orders: Dataset, connector: ConnectorRecord
) -> None:
    store.connectors.replace(dataclasses.replace(connector, name="Turnover"))
    assert store.datasets.get(orders.id).connector_name == "Turnover"
    assert store.datasets.update(orders).connector_name == "Turnover", "a stale copy does not bring the old name back"
    assert store.datasets.insert(dataset(store, "New", connector)).connector_name == "Turnover"


def test_deleting_takes_the_state_along(store: Store, orders: Dataset) -> None:
    store.sync_states.begin(orders.id, SyncIntent(sequence=1, mode="full"))
    assert store.datasets.delete("ORDERS") == orders
    with store._database.reading() as connection:
        for table in ("dataset", "sync_state", "sync_intent", "run_orphaned"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0, table


@pytest.mark.parametrize("options", ["{(", "[]", '{"mode": "nonsense"}'])
def test_damaged_settings_pause_the_dataset_and_hide_no_other(
    store: Store, orders: Dataset, connector: ConnectorRecord, options: str
) -> None:
    store.datasets.insert(dataset(store, "Whole", connector))
    with store._database.transaction() as connection:
        connection.execute("UPDATE dataset SET options = ? WHERE id = ?", (options, orders.id))
    assert [(found.name, found.status) for found in store.datasets.list()] == [
        ("Orders", "paused"),
        ("Whole", "active"),
    ]
    assert "damaged" in (store.datasets.get("orders").status_reason or "")
    assert store.datasets.update(orders).status == "active", "entered again, it is whole"
    assert store.datasets.get("orders").status == "active"


def test_damaged_columns_are_left_out_so_that_they_are_looked_up_again(store: Store, orders: Dataset) -> None:
    with store._database.transaction() as connection:
        connection.execute("UPDATE dataset SET cached_columns = x'00'")
    found = store.datasets.get(orders.id)
    assert (found.status, found.cached_columns, found.schema_hash) == ("active", (), "")


# ---- sync states


def test_a_dataset_begins_at_the_beginning(store: Store, orders: Dataset) -> None:
    assert store.sync_states.get(orders.id) == SyncState(dataset_id=orders.id, updated_at=orders.created_at)
    assert store.sync_states.list() == (store.sync_states.get(orders.id),)


def test_begin_freezes_the_bounds_over_a_restart(path: Path) -> None:
    with Store.open(path, ballast_bytes=0) as store:
        orders = store.datasets.insert(dataset(store, "Orders", store.connectors.insert(draft(store, "Sales"))))
        first = store.sync_states.begin(
            orders.id,
            SyncIntent(sequence=1, mode="incremental", lo=None, hi="2026-01-01 00:00:00.123456789", next_lo="é"),
        )
        assert first.started_at
    with Store.open(path, ballast_bytes=0) as store:
        again = store.sync_states.begin(
            orders.id, SyncIntent(sequence=1, mode="full", lo="5", hi="9", include_nulls=True, started_at="later")
        )
        assert again == first == store.sync_states.get(orders.id).intent


def test_commit_moves_the_state_and_ends_the_intent(store: Store, orders: Dataset) -> None:
    states = store.sync_states
    states.begin(orders.id, SyncIntent(sequence=1, mode="incremental", hi="7"))
    moved = states.commit(
        orders.id, 1, lo="0007.10", durable_version=4, strategy="watermark", column="upd", column_type="decimal(9,2)",
        source_id="pg:1", schema_hash="h", rows_total=12,
    )  # fmt: skip
    assert moved == states.get(orders.id)
    assert dataclasses.replace(moved, updated_at="") == SyncState(
        dataset_id=orders.id, sequence=1, strategy="watermark", column="upd", column_type="decimal(9,2)", lo="0007.10",
        source_id="pg:1", schema_hash="h", rows_total=12, durable_version=4,
    )  # fmt: skip
    states.begin(orders.id, SyncIntent(sequence=2, mode="full"))
    again = states.commit(orders.id, 2, lo=None, durable_version=None)
    assert (again.lo, again.durable_version, again.column, again.rows_total) == (None, 4, "upd", 12)


@pytest.mark.parametrize("sequence", [-1, 0, 1, 3, 99])
def test_only_the_next_sequence_is_taken(store: Store, orders: Dataset, sequence: int) -> None:
    states = store.sync_states
    states.begin(orders.id, SyncIntent(sequence=1, mode="full"))
    before = states.commit(orders.id, 1, lo="1", durable_version=0)
    with pytest.raises(Conflict):
        states.begin(orders.id, SyncIntent(sequence=sequence, mode="full"))
    with pytest.raises(Conflict):
        states.commit(orders.id, sequence, lo="2", durable_version=1)
    assert states.get(orders.id) == before


def test_what_was_never_begun_cannot_be_committed(store: Store, orders: Dataset) -> None:
    with pytest.raises(Conflict, match="never begun"):
        store.sync_states.commit(orders.id, 1, lo="1", durable_version=0)


def test_a_withdrawn_sequence_gets_new_bounds(store: Store, orders: Dataset) -> None:
    states = store.sync_states
    assert not states.withdraw(orders.id, 1)
    states.begin(orders.id, SyncIntent(sequence=1, mode="incremental", hi="7"))
    assert not states.withdraw(orders.id, 2)
    assert states.withdraw(orders.id, 1)
    assert states.begin(orders.id, SyncIntent(sequence=1, mode="incremental", hi="8")).hi == "8"


def test_a_reset_never_gives_a_used_number_out_again(store: Store, orders: Dataset) -> None:
    states = store.sync_states
    states.begin(orders.id, SyncIntent(sequence=1, mode="full"))
    states.commit(orders.id, 1, lo="1", durable_version=3, column="a", rows_total=5)
    states.begin(orders.id, SyncIntent(sequence=2, mode="incremental", lo="1", hi="2"))
    after = states.reset(orders.id)  # the rows of sequence 2 may be in the table
    assert (after.epoch, after.sequence, after.lo, after.column, after.rows_total) == (2, 2, None, None, 0)
    assert (after.durable_version, after.intent) == (3, None)
    assert states.begin(orders.id, SyncIntent(sequence=3, mode="full", hi="9")).hi == "9"


Step = Literal["begin", "again", "commit", "wrong", "withdraw", "reset", "break", "reopen"]


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.sampled_from(["begin", "again", "commit", "wrong", "withdraw", "reset", "break", "reopen"]), max_size=30
    )
)
def test_a_sequence_means_one_set_of_bounds(tmp_path_factory: pytest.TempPathFactory, steps: list[Step]) -> None:
    """Any history of runs, errors in transactions and restarts, against a model of a few lines."""
    path = tmp_path_factory.mktemp("data", numbered=True) / "agent.db"
    store = Store.open(path, ballast_bytes=0)
    identifier = store.datasets.insert(dataset(store, "Orders")).id
    sequence, epoch, lo, intent = 0, 1, None, None
    committed: list[int] = []
    try:
        for number, step in enumerate(steps):
            states = store.sync_states
            offered = SyncIntent(
                sequence=sequence + 1, mode="incremental", lo=lo, hi=str(number), started_at=f"t{number}"
            )
            if step in ("begin", "again"):
                frozen = states.begin(identifier, offered)
                assert frozen == (intent or offered)
                intent = frozen
            elif step == "commit" and intent is not None:
                states.commit(identifier, intent.sequence, lo=intent.hi, durable_version=number)
                committed.append(intent.sequence)
                sequence, lo, intent = intent.sequence, intent.hi, None
            elif step in ("commit", "wrong"):
                with pytest.raises(Conflict):
                    states.commit(identifier, sequence + (step == "commit"), lo="no", durable_version=None)
            elif step == "withdraw":
                assert states.withdraw(identifier, sequence + 1) == (intent is not None)
                intent = None
            elif step == "reset":
                states.reset(identifier)
                sequence, epoch, lo = (intent.sequence if intent else sequence), epoch + 1, None
                intent = None
            elif step == "break":
                with pytest.raises(RuntimeError), store.transaction():
                    states.begin(identifier, offered)
                    states.commit(identifier, sequence + 1, lo="half", durable_version=99)
                    raise RuntimeError("on purpose")
            elif step == "reopen":
                store.close()
                store = Store.open(path, ballast_bytes=0)
            found = store.sync_states.get(identifier)
            assert (found.sequence, found.epoch, found.lo, found.intent) == (sequence, epoch, lo, intent)
        assert committed == sorted(set(committed))
    finally:
        store.close()


# ---- step 2 of the schema


def test_the_second_step_keeps_all_of_the_first(path: Path) -> None:
    tables = ("meta", "connector", "secret", "secret_history", "connector_check", "schedule", "audit")

    def dump(source: Path) -> dict[str, list[Any]]:
        connection = sqlite3.connect(source)
        try:
            return {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables}
        finally:
            connection.close()

    with Store.open(path, migrations=MIGRATIONS[:1], ballast_bytes=0) as store:
        for number in range(50):
            record = store.connectors.insert(draft(store, f"connector {number}", config={"n": number}))
            store.secrets.put(sealed(record.id, 1))
            store.secrets.put(sealed(record.id, 2))
            store.schedules.set(ScheduleRecord(connector_id=record.id, cron=f"{number} 2 * * *"))
            store.audit.append("connector.created", actor="cli", resource_type="connector", resource_id=record.id)
    before = dump(path)
    assert len(before["schedule"]) == len(before["audit"]) == 50
    Store.open(path, ballast_bytes=0).close()
    assert dump(path) == before
    with Store.open(path, ballast_bytes=0) as store:
        connector = store.connectors.get("connector 7")
        assert store.datasets.list() == ()
        stored = store.datasets.insert(dataset(store, "Orders", connector))
        store.connectors.delete(connector.id)
        assert store.datasets.get(stored.id).status == "detached"
        assert store.check() == []
