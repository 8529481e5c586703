"""The small tables: connectors, secrets, tests, schedules, audit, facts."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hfagent.foundation.errors import Conflict, NotFound
from hfagent.foundation.redaction import register_secret, unregister_all
from hfagent.model.report import CheckReport, StageResult
from hfagent.store import audit as audit_module
from hfagent.store.checks import LastCheck
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.identifiers import new_id
from hfagent.store.schedules import ScheduleRecord
from hfagent.store.store import Store
from tests.store.rows import draft, sealed, stream

WEIRD = ["Größe", "quote ' \" `", "100% _x_", "日本語 😀", "a.b/c\\d", "; DROP TABLE connector; --", "İstanbul", "ﬁle"]


# ---- connectors


def test_a_connector_comes_back_as_it_was_stored(store: Store) -> None:
    record = draft(
        store, "Sales", config={"host": "db", "n": 1.5, "password": {"$ref": "env:X"}, "list": [None, True, "é"]},
        description="it's", output_schemas=("a", "b"), status="disabled", status_reason="why", production=True,
        source="file", source_file="sales.toml",
    )  # fmt: skip
    stored = store.connectors.insert(record)
    assert stored == dataclasses.replace(record, created_at=stored.created_at, updated_at=stored.updated_at)
    assert datetime.fromisoformat(stored.created_at).tzinfo == UTC
    assert store.connectors.get(record.id) == stored
    assert store.connectors.get("sALES") == stored
    assert store.connectors.list() == (stored,)


@pytest.mark.parametrize("name", WEIRD)
def test_names_are_kept_exactly_and_found_whatever_their_case(store: Store, name: str) -> None:
    record = store.connectors.insert(draft(store, name))
    assert store.connectors.get(name).name == name
    assert store.connectors.get(name.casefold()).id == record.id
    with pytest.raises(Conflict) as caught:
        store.connectors.insert(draft(store, name.casefold()))
    assert caught.value.code == "connector.name_taken"
    assert len(store.connectors.list()) == 1


def test_versions_tell_a_change_made_meanwhile(store: Store, connector: ConnectorRecord) -> None:
    second = store.connectors.replace(dataclasses.replace(connector, description="two"), if_version=1)
    assert (second.version, second.created_at) == (2, connector.created_at)
    with pytest.raises(Conflict) as caught:
        store.connectors.replace(dataclasses.replace(connector, description="lost"), if_version=1)
    assert caught.value.code == "connector.conflict"
    assert store.connectors.get(connector.id).description == "two"
    third = store.connectors.replace(dataclasses.replace(connector, description="three"))
    assert third.version == 3, "without if_version the last word counts, and the version still grows"


def test_renaming(store: Store, connector: ConnectorRecord) -> None:
    other = store.connectors.insert(draft(store, "Other"))
    with pytest.raises(Conflict) as caught:
        store.connectors.replace(dataclasses.replace(other, name="SALES"))
    assert caught.value.code == "connector.name_taken"
    assert store.connectors.replace(dataclasses.replace(connector, name="SALES")).name == "SALES"
    store.connectors.replace(dataclasses.replace(connector, name="Turnover"))
    with pytest.raises(NotFound):
        store.connectors.get("sales")


def test_what_is_not_there_is_told_with_what_might_be_meant(store: Store, connector: ConnectorRecord) -> None:
    with pytest.raises(NotFound, match="'slaes'") as caught:
        store.connectors.get("slaes")
    assert (caught.value.code, caught.value.hint) == ("connector.not_found", "did you mean 'Sales'?")
    assert store.connectors.find("slaes") is None
    for call in (
        lambda: store.connectors.replace(draft(store, "Nothing")),
        lambda: store.connectors.delete("Nothing"),
        lambda: store.secrets.put(sealed("none", 1)),
        lambda: store.checks.add("none", CheckReport(ok=True, latency_ms=1)),
        lambda: store.schedules.set(ScheduleRecord(connector_id="none", cron="* * * * *")),
        lambda: store.catalogues.replace("none", [stream("a", "b")], namespaces=[]),
    ):
        with pytest.raises(NotFound) as caught:
            call()
        assert caught.value.code == "connector.not_found"


def test_deleting_takes_everything_along_that_belongs_to_it(store: Store, connector: ConnectorRecord) -> None:
    kept = store.connectors.insert(draft(store, "Kept"))
    for record in (connector, kept):
        store.secrets.put(sealed(record.id, 1))
        store.secrets.put(sealed(record.id, 2))
        store.checks.add(record.id, CheckReport(ok=True, latency_ms=1))
        store.catalogues.replace(record.id, [stream("a", "b")], namespaces=["a"])
        store.schedules.set(ScheduleRecord(connector_id=record.id, cron="* * * * *"))
    assert store.connectors.delete("sales").id == connector.id
    with store._database.reading() as connection:
        tables = (
            "connector",
            "secret",
            "secret_history",
            "connector_check",
            "catalogue",
            "catalogue_stream",
            "schedule",
        )
        for table in tables:
            column = "id" if table == "connector" else "connector_id"
            assert connection.execute(f"SELECT {column} FROM {table}").fetchall() == [(kept.id,)], table


def test_a_damaged_row_is_shown_as_invalid_and_hides_no_other(store: Store, connector: ConnectorRecord) -> None:
    store.connectors.insert(draft(store, "Other"))
    with store._database.transaction() as connection:
        connection.execute("UPDATE connector SET config = '{(' WHERE id = ?", (connector.id,))
    assert [(record.name, record.status) for record in store.connectors.list()] == [
        ("Other", "active"),
        ("Sales", "invalid"),
    ]


# ---- secrets


def test_secrets_keep_their_present_value_and_twenty_before(store: Store, connector: ConnectorRecord) -> None:
    for version in range(1, 26):
        assert store.secrets.next_version(connector.id, "password") == version
        store.secrets.put(sealed(connector.id, version))
    present = store.secrets.get(connector.id, "password")
    assert present is not None
    assert present.blob == b"blob password 25"
    assert "blob password" not in repr(present)
    history = store.secrets.history(connector.id, "password")
    assert [old.record_version for old in history] == list(range(24, 4, -1))
    assert store.secrets.count() == 1


def test_versions_grow_on_after_a_field_was_emptied(store: Store, connector: ConnectorRecord) -> None:
    store.secrets.put(sealed(connector.id, 1))
    assert store.secrets.remove(connector.id, "password")
    assert not store.secrets.remove(connector.id, "password")
    assert store.secrets.get(connector.id, "password") is None
    assert store.secrets.any(), "the history still needs the vault's key"
    assert store.secrets.next_version(connector.id, "password") == 2
    with pytest.raises(ValueError, match="expected 2"):
        store.secrets.put(sealed(connector.id, 1))
    store.secrets.put(sealed(connector.id, 2))


def test_secrets_of_a_connector_by_field(store: Store, connector: ConnectorRecord) -> None:
    for field in ("token", "password"):
        store.secrets.put(sealed(connector.id, 1, field=field))
    assert [secret.field for secret in store.secrets.of(connector.id)] == ["password", "token"]
    assert store.secrets.of("none") == ()


def test_resealing_walks_through_present_and_past_and_never_overwrites_a_newer_one(
    store: Store, connector: ConnectorRecord
) -> None:
    for version in (1, 2, 3):
        store.secrets.put(sealed(connector.id, version, key_id="old"))
    assert store.secrets.key_ids() == {"old"}
    assert store.secrets.count_not_under("new") == 3
    assert len(store.secrets.not_under("new", limit=2)) == 2
    for secret in store.secrets.not_under("new"):
        new = {"blob": secret.blob + b" anew", "key_id": "new", "fingerprint": "f00df00d"}
        assert store.secrets.reseal(secret, **new)
        assert not store.secrets.reseal(secret, **new), "what is there is not what was read before"
    assert (store.secrets.count_not_under("new"), store.secrets.key_ids()) == (0, {"new"})
    present = store.secrets.get(connector.id, "password")
    assert present is not None
    assert (present.blob, present.record_version, present.fingerprint) == (b"blob password 3 anew", 3, "f00df00d")


def test_a_store_without_secrets_says_so(store: Store) -> None:
    assert not store.secrets.any()
    assert store.secrets.key_ids() == frozenset()


# ---- checks


def test_test_history_keeps_a_hundred_newest_first(store: Store, connector: ConnectorRecord) -> None:
    other = store.connectors.insert(draft(store, "Other"))
    store.checks.add(other.id, CheckReport(ok=False, latency_ms=0))
    for number in range(103):
        kept = store.checks.add(connector.id, CheckReport(ok=number % 2 == 0, latency_ms=number))
        assert kept.test_id
        assert kept.connector_id == connector.id
        assert kept.tested_at
    reports = store.checks.list(connector.id)
    assert [report.latency_ms for report in reports] == list(range(102, 2, -1))
    assert len(store.checks.list(connector.id, limit=5)) == 5
    assert len(store.checks.list(other.id)) == 1
    last = store.checks.last()
    assert last[connector.id] == LastCheck(True, str(reports[0].tested_at))
    assert last[other.id].ok is False


def test_a_secret_that_got_into_a_report_does_not_get_into_the_store(
    store: Store, connector: ConnectorRecord, path: Path
) -> None:
    register_secret("hunter2-canary")
    try:
        stage = StageResult(
            stage="auth", status="failed", message="bad hunter2-canary", details={"x": ["hunter2-canary"]}
        )
        store.checks.add(connector.id, CheckReport(ok=False, latency_ms=1, stages=(stage,)))
        store.audit.append(
            "connector.tested", actor="cli", resource_type="connector", resource_id=connector.id,
            details={"error": "hunter2-canary"},
        )  # fmt: skip
    finally:
        unregister_all()
    store.close()
    assert b"hunter2" not in path.read_bytes()


# ---- schedules


def test_one_schedule_per_connector(store: Store, connector: ConnectorRecord) -> None:
    first = store.schedules.set(ScheduleRecord(connector_id=connector.id, cron="0 2 * * *"))
    second = store.schedules.set(
        ScheduleRecord(connector_id=connector.id, cron="0 3 * * *", mode="full", timezone="Asia/Tokyo", paused=True)
    )
    assert (second.id, second.created_at) == (first.id, first.created_at)
    assert store.schedules.list() == (second,)
    assert store.schedules.get(connector.id) == second
    assert store.schedules.remove(connector.id)
    assert not store.schedules.remove(connector.id)
    assert store.schedules.get(connector.id) is None


# ---- audit


def test_audit_newest_first_in_pages(store: Store) -> None:
    for number in range(7):
        store.audit.append(
            "connector.created" if number % 2 else "vault.rotated", actor="cli", resource_type="connector",
            resource_id=f"c{number % 3}", details={"n": number},
        )  # fmt: skip
    page = store.audit.list(limit=3)
    assert [entry.details["n"] for entry in page] == [6, 5, 4]
    assert [entry.details["n"] for entry in store.audit.list(before=page[-1].id)] == [3, 2, 1, 0]
    assert [entry.details["n"] for entry in store.audit.list(resource_type="connector", resource_id="c1")] == [4, 1]
    for bad in ("created", "Connector.Created", "a..b", "a. b", ""):
        with pytest.raises(ValueError, match="action name"):
            store.audit.append(bad, actor="cli", resource_type="x", resource_id="y")


def test_audit_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "KEPT", 10)
    for number in range(25):
        store.audit.append("a.b", actor="x", resource_type="r", resource_id=str(number))
    assert [entry.resource_id for entry in store.audit.list()] == [str(n) for n in range(24, 14, -1)]


# ---- facts and ids


def test_facts_survive_and_are_drawn_once(path: Path) -> None:
    with Store.open(path) as store:
        agent, created = store.agent_id, store.created_at
        store.meta.set("a", "1")
        store.meta.set("a", "2")
        found: list[str] = []
        counter = itertools.count()
        threads = [
            threading.Thread(target=lambda: found.append(store.meta.setdefault("drawn", lambda: str(next(counter)))))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == ["0"] * 8
    with Store.open(path) as store:
        assert (store.agent_id, store.created_at, store.meta.get("a")) == (agent, created, "2")


class JumpingClock:
    def __init__(self, *times: datetime) -> None:
        self._times = itertools.cycle(times)

    def now(self) -> datetime:
        return next(self._times)

    def monotonic(self) -> float:
        return 0.0


def test_ids_sort_by_age_even_when_the_clock_jumps_back() -> None:
    now = datetime.now(UTC)
    clock = JumpingClock(now, now, now - timedelta(days=1), now + timedelta(milliseconds=1), now - timedelta(hours=1))
    made = [new_id(clock) for _ in range(1000)]
    assert made == sorted(set(made))
    assert {len(identifier) for identifier in made} == {26}
    assert set("".join(made)) <= set("0123456789abcdefghjkmnpqrstvwxyz")


def test_status(store: Store, path: Path) -> None:
    status = store.status()
    assert status.path == path
    assert status.bytes >= path.stat().st_size > 0
    assert not status.disk_full
    assert store.check() == []
