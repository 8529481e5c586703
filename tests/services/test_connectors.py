"""Connectors: what may be stored, what is kept, what is shown; and their tests, which store nothing but a report."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.errors import (
    AccessDenied,
    AgentError,
    Cancelled,
    ConfigError,
    Conflict,
    NotFound,
    SourceError,
    UserError,
)
from hfagent.foundation.redaction import MASK
from hfagent.model.connector import Connector, ConnectorDraft, ConnectorPatch
from hfagent.model.settings import PolicySettings
from hfagent.store.connectors import ConnectorRecord
from hfagent.vault.settings import VaultSettings
from hfagent.vault.vault import Vault
from tests.fixtures.canary import assert_no_canary, new_canary
from tests.services.fakes import GUEST, World, call, cancelling, counted, scenario, until


def draft(name: str = "main", type_name: str = "fake", **config: Any) -> ConnectorDraft:
    return ConnectorDraft(name=name, type=type_name, config=config)


def config(**changes: Any) -> ConnectorPatch:
    return ConnectorPatch(config=changes)


def opened(world: World, name: str = "main") -> dict[str, str]:
    """The secrets as they would be sent."""
    record = world.store.connectors.get(name)
    return world.credentials.open_stored(world.registry.get(record.type), record)


def audit(world: World) -> list[tuple[str, dict[str, Any]]]:
    return [(entry.action, entry.details) for entry in reversed(world.store.audit.list())]


def snapshot(world: World) -> dict[str, Any]:
    """Everything that is stored about connectors."""
    records = world.store.connectors.list()
    return {
        "records": records,
        "secrets": [world.store.secrets.of(record.id) for record in records],
        "checks": [world.store.checks.list(record.id) for record in records],
        "schedules": world.store.schedules.list(),
        "audit": world.store.audit.list(),
    }


# --- creating ---------------------------------------------------------------------------------------------------------


@scenario
async def test_create_seals_the_secrets_and_shows_bullets(world: World) -> None:
    shown = await world.add(host="db", password="hunter2-secret", token="")
    assert shown.config == {"host": "db", "password": MASK}
    assert world.store.connectors.get("main").config == {"host": "db"}
    assert opened(world) == {"password": "hunter2-secret"}
    assert (await world.connectors.get(shown.id)).config == shown.config
    assert (await world.connectors.list())[0].config == shown.config
    assert audit(world) == [("connector.create", {"name": "main", "type": "fake"})]


@scenario
async def test_aliases_of_types_and_fields_are_stored_under_their_names(world: World) -> None:
    shown = await world.connectors.create(call(), draft("x", "phony", server="db", pwd="hunter2-secret", db="d"))
    assert shown.type == "fake"
    assert shown.config == {"host": "db", "database": "d", "password": MASK}
    with pytest.raises(ConfigError, match="given twice"):
        await world.connectors.create(call(), draft("y", host="a", server="b"))


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        ({"hots": "db"}, "config.unknown_field", "hots"),
        ({"port": 70_000}, "config.invalid", "port"),
        ({"port": "many"}, "config.invalid", "port"),
        ({"password": 5}, "config.invalid", "password"),
        ({"password": ["x"]}, "config.invalid", "password"),
        ({"password": MASK}, "config.invalid", "password"),
        ({"password": "old" + MASK}, "config.invalid", "password"),
        ({"password": {"$ref": "env:X", "more": 1}}, "config.invalid", "password"),
        ({"host": {"$ref": "env:HFAGENT_TEST_ABSENT"}}, "credential.reference", "host"),
        ({"host": b"db"}, "config.invalid", "host"),
        ({"pool_timeout": float("nan")}, "config.invalid", "pool_timeout"),
    ],
)
@scenario
async def test_a_wrong_configuration_is_refused_by_field_and_nothing_is_stored(
    world: World, bad: dict[str, Any], code: str, field: str
) -> None:
    before = snapshot(world)
    with pytest.raises(AgentError) as caught:
        await world.connectors.create(call(), draft(**bad))
    assert caught.value.code == code
    assert caught.value.to_data()["field"] == field
    assert snapshot(world) == before


@scenario
async def test_names_are_unique_and_types_are_known(world: World) -> None:
    await world.add("Sales")
    with pytest.raises(Conflict) as caught:
        await world.add("sales")
    assert caught.value.code == "connector.name_taken"
    with pytest.raises(ConfigError, match="no connector type 'fakke'") as wrong:
        await world.add("x", "fakke")
    assert "fake" in (wrong.value.hint or "")
    for name in (" x", "x ", "a\nb", "a\x7fb"):
        with pytest.raises(ValueError, match="blank or contain control"):
            ConnectorPatch(name=name)
        with pytest.raises(ValueError, match="blank or contain control"):
            ConnectorDraft(name=name, type="fake")


@scenario
async def test_the_owners_policy_decides_on_types_and_hosts(world: World) -> None:
    world.policy_settings = PolicySettings(denied_types=("dumb",), allowed_hosts=("*.inside", "db"))
    for make in (draft("x", "dumb"), draft("x", host="db.outside"), draft("x", server="db.outside"), draft("x")):
        with pytest.raises(ConfigError) as caught:
            await world.connectors.create(call(), make)
        assert caught.value.code == "config.policy_denied"
    await world.add("ok", host="DB.inside,db")
    with pytest.raises(ConfigError):
        await world.connectors.update(call(), "ok", config(host="db.outside"))
    report = await world.connectors.test(call(), type_name="fake", config={"host": "db.outside"})
    assert (report.error and report.error.code, report.error and report.error.stage) == (
        "config.policy_denied",
        "config",
    )
    world.policy_settings = PolicySettings(allowed_types=("dumb",))
    with pytest.raises(ConfigError, match="does not allow connectors of type fake"):
        await world.query.execute(call(), "ok", "select")


@scenario
async def test_a_host_that_a_reference_leads_to_is_checked_when_it_is_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.policy_settings = PolicySettings(allowed_hosts=("inside",))
    monkeypatch.setenv("HFAGENT_TEST_HOST", "outside")
    await world.add(host={"$ref": "env:HFAGENT_TEST_HOST"})
    world.source.on("select", counted(1, 1))
    with pytest.raises(ConfigError) as caught:
        await world.query.execute(call(), "main", "select")
    assert caught.value.code == "config.policy_denied"
    assert world.source.counts["connect"] == 0


# --- changing ---------------------------------------------------------------------------------------------------------


@scenario
async def test_absent_keeps_null_clears_bullets_keep_anything_else_replaces(world: World) -> None:
    await world.add(host="db", password="first-secret", token="token-secret")
    await world.connectors.update(call(), "main", config(database="d"))
    assert opened(world) == {"password": "first-secret", "token": "token-secret"}
    await world.connectors.update(call(), "main", config(password=MASK, token=None))
    assert opened(world) == {"password": "first-secret"}
    shown = await world.connectors.update(call(), "main", config(password="second-secret", database=None))
    assert opened(world) == {"password": "second-secret"}
    assert shown.config == {"host": "db", "password": MASK}
    await world.connectors.update(call(), "main", config(password=""))
    assert opened(world) == {}
    with pytest.raises(ConfigError, match="none is set"):
        await world.connectors.update(call(), "main", config(password=MASK))


@scenario
async def test_a_masked_configuration_sent_back_changes_nothing(world: World) -> None:
    shown = await world.add(host="db", password="first-secret", token={"$ref": "env:HFAGENT_TEST_TOKEN"})
    again = await world.connectors.update(call(), "main", ConnectorPatch(config=shown.config))
    assert again.config == shown.config == {"host": "db", "token": {"$ref": "env:HFAGENT_TEST_TOKEN"}, "password": MASK}
    assert opened(world) == {"password": "first-secret"}


@scenario
async def test_a_reference_replaces_a_secret_and_back(world: World) -> None:
    await world.add(password="first-secret")
    shown = await world.connectors.update(call(), "main", config(password={"$ref": "env:HFAGENT_TEST_P"}))
    assert shown.config["password"] == {"$ref": "env:HFAGENT_TEST_P"}
    assert opened(world) == {}
    shown = await world.connectors.update(call(), "main", config(password="third-secret"))
    assert shown.config["password"] == MASK
    assert opened(world) == {"password": "third-secret"}
    assert world.store.connectors.get("main").config == {}


@pytest.mark.parametrize(
    "change", [{"host": "evil"}, {"server": "evil"}, {"port": 2}, {"host": None}, {"host": {"$ref": "env:HOME"}}]
)
@scenario
async def test_a_saved_secret_does_not_follow_to_another_address(world: World, change: dict[str, Any]) -> None:
    await world.add(host="db", password="first-secret")
    before = snapshot(world)
    for attempt in (change, {**change, "password": MASK}):
        with pytest.raises(ConfigError) as caught:
            await world.connectors.update(call(), "main", ConnectorPatch(config=attempt))
        assert caught.value.code == "config.secret_reentry_required"
        report = await world.connectors.test(call(), connector="main", config=attempt)
        assert report.error is not None and report.error.code == "config.secret_reentry_required"
        with pytest.raises(ConfigError):
            await world.connectors.rotate(call(), "main", attempt, force=True)
    assert world.source.counts["connect"] == 0
    assert snapshot(world) == before
    shown = await world.connectors.update(call(), "main", ConnectorPatch(config={**change, "password": "new-secret"}))
    assert shown.config["password"] == MASK


@scenario
async def test_writing_the_default_out_or_the_case_of_a_host_is_no_other_address(world: World) -> None:
    await world.add(password="first-secret")
    await world.connectors.update(call(), "main", config(host="LOCALHOST", port=1000))
    assert opened(world) == {"password": "first-secret"}


@scenario
async def test_versions_detect_who_came_second(world: World) -> None:
    shown = await world.add()
    assert shown.version == 1
    await world.connectors.update(call(), "main", ConnectorPatch(description="a", if_version=1))
    with pytest.raises(Conflict) as caught:
        await world.connectors.update(call(), "main", ConnectorPatch(description="b", if_version=1))
    assert caught.value.code == "connector.conflict"
    assert (await world.connectors.get("main")).description == "a"


@scenario
async def test_a_change_that_is_wrong_in_one_field_changes_none(world: World) -> None:
    await world.add(host="db", password="first-secret")
    await world.add("other")
    before = snapshot(world)
    for change in (
        ConnectorPatch(description="new", config={"port": 0}),
        ConnectorPatch(name="OTHER", config={"password": "second-secret"}),
        ConnectorPatch(config={"password": "second-secret"}, schedule_cron="nonsense"),
        ConnectorPatch(config={"password": "second-secret"}, schedule_mode="full"),
    ):
        with pytest.raises(UserError):
            await world.connectors.update(call(), "main", change)
    assert snapshot(world) == before


@scenario
async def test_what_does_not_concern_the_connections_leaves_them_alone(world: World) -> None:
    await world.add(password="first-secret")
    world.source.on("select", counted(1, 1))
    await world.query.execute(call(), "main", "select")
    await world.connectors.update(call(), "main", ConnectorPatch(description="new", production=True))
    await world.query.execute(call(), "main", "select")
    assert world.source.counts["connect"] == 1
    await world.connectors.update(call(), "main", config(password="second-secret"))
    await world.query.execute(call(), "main", "select")
    assert world.source.counts["connect"] == 2
    assert {connection.password for connection in world.source.live} == {"second-secret"}


@scenario
async def test_delete_takes_everything_along(world: World) -> None:
    await world.add(password="first-secret")
    world.source.on("select", counted(1, 1))
    await world.query.execute(call(), "main", "select")
    await world.connectors.test(call(), connector="main")
    await world.connectors.delete(call(), "main")
    with pytest.raises(NotFound):
        await world.connectors.get("main")
    with pytest.raises(NotFound):
        await world.connectors.delete(call(), "main")
    assert world.store.secrets.count() == 0
    await until(lambda: not world.source.live, "its connections are closed")
    assert world.connections.stats() == ()
    assert audit(world)[-1] == ("connector.delete", {"name": "main", "type": "fake"})
    assert set(world.workers._lanes) == {"store", "vault"}  # the connector's went with it


@scenario
async def test_changes_are_announced(world: World) -> None:
    heard: list[str] = []
    world.connectors.on_change(heard.append)
    shown = await world.add()
    await world.connectors.update(call(), "main", ConnectorPatch(description="x"))
    await world.connectors.rotate(call(), "main", {"password": "new-secret"})
    await world.connectors.delete(call(), "main")
    assert heard == [shown.id] * 4


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "* * * * * *", "61 * * * *", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "@daily", "R R * * *", "H * * * *",
     "a b c d e", "*/0 * * * *", "0 0 * * 8", "- - - - -", "0," * 200 + "0 * * * *"],
)  # fmt: skip
@scenario
async def test_a_schedule_that_never_fires_or_is_none_is_refused(world: World, cron: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await world.connectors.create(call(), draft(), schedule_cron=cron)
    assert "is not a usable cron expression" in caught.value.message
    assert caught.value.field == "schedule_cron"
    assert len(caught.value.message) <= 500
    assert world.store.connectors.list() == ()


@scenario
async def test_schedules_are_attached_and_changed(world: World) -> None:
    shown = await world.connectors.create(call(), draft(), schedule_cron="0 2 * * *", schedule_mode="full")
    assert (shown.schedule_cron, shown.schedule_mode) == ("0 2 * * *", "full")
    shown = await world.connectors.update(call(), "main", ConnectorPatch(schedule_cron="0 0 29 2 *"))
    assert (shown.schedule_cron, shown.schedule_mode) == ("0 0 29 2 *", "full")
    shown = await world.connectors.update(call(), "main", ConnectorPatch(schedule_mode="incremental"))
    assert (shown.schedule_cron, shown.schedule_mode) == ("0 0 29 2 *", "incremental")
    with pytest.raises(UserError) as caught:
        await world.connectors.create(call(), draft("x", "dumb"), schedule_cron="0 2 * * *")
    assert caught.value.code == "connector.not_queryable"


# --- types that are gone or broken ------------------------------------------------------------------------------------


@scenario
async def test_a_connector_whose_type_is_gone_is_shown_as_invalid_and_disturbs_nobody(world: World) -> None:
    await world.add("fine")
    world.store.connectors.insert(ConnectorRecord(id=world.store.new_id(), name="orphan", type="gone", config={"a": 1}))
    world.break_plugin()
    world.store.connectors.insert(ConnectorRecord(id=world.store.new_id(), name="sick", type="broken"))
    by_name = {shown.name: shown for shown in await world.connectors.list()}
    assert {name: shown.status for name, shown in by_name.items()} == {
        "fine": "active", "orphan": "invalid", "sick": "invalid"
    }  # fmt: skip
    assert by_name["orphan"].status_reason == "no connector type 'gone' is installed"
    assert "left_pad" in (by_name["sick"].status_reason or "")
    assert await world.connectors.count_by_status() == {"active": 1, "invalid": 2}
    assert len(await world.connectors.list(queryable=True)) == 1
    assert "broken" not in {entry.type for entry in await world.connectors.catalog()}
    for name in ("orphan", "sick"):
        with pytest.raises(ConfigError):
            await world.connectors.test(call(), connector=name)
        with pytest.raises(ConfigError):
            await world.query.execute(call(), name, "select")
    await world.connectors.delete(call(), "orphan")


@scenario
async def test_lists_are_filtered(world: World) -> None:
    await world.add("a")
    await world.add("b", "dumb")
    assert [c.name for c in await world.connectors.list(type_name="phony")] == ["a"]
    assert [c.name for c in await world.connectors.list(category="database", queryable=False)] == ["b"]
    assert await world.connectors.list(category="llm") == ()
    with pytest.raises(ConfigError):
        await world.connectors.list(type_name="nonsense")


# --- tests ------------------------------------------------------------------------------------------------------------


@scenario
async def test_a_stored_test_goes_to_the_history(world: World) -> None:
    shown = await world.add(password="first-secret")
    world.source.password = "first-secret"
    reports: list[dict[str, Any]] = []
    report = await world.connectors.test(call(reports=reports), connector="main")
    assert report.ok and report.test_id and report.connector_id == shown.id
    assert [r.get("stage", {}).get("stage") for r in reports if "stage" in r] == ["config", "secrets", "auth", "ping"]
    assert [r["kind"] for r in reports if r["kind"] != "report"] == ["begin", "end"]
    world.source.password = "another-secret"
    failed = await world.connectors.test(call(), connector="main")
    assert failed.error is not None and failed.error.stage == "auth"
    assert [entry.ok for entry in await world.connectors.test_history("main")] == [False, True]
    assert [entry.ok for entry in await world.connectors.test_history("main", 1)] == [False]
    assert (await world.connectors.get("main")).last_test_ok is False


@scenario
async def test_trials_write_nothing(world: World) -> None:
    await world.add(host="db", password="first-secret")
    world.source.password = "first-secret"
    before = snapshot(world)
    assert (await world.connectors.test(call(), connector="main", config={"database": "x"})).ok
    assert (await world.connectors.test(call(), connector="main", config={"password": MASK})).ok
    assert not (await world.connectors.test(call(), connector="main", config={"password": "wrong-secret"})).ok
    assert (await world.connectors.test(call(), connector="main", output_schemas=("a",))).ok
    assert (await world.connectors.test(call(), type_name="phony", config={"password": "first-secret"})).ok
    assert not (await world.connectors.test(call(), type_name="fake", config={"nonsense": 1})).ok
    assert snapshot(world) == before
    assert not world.source.live
    assert len(world.workers._lanes) == 3  # the store's, the vault's and the connector's; none of the trials'


@scenario
async def test_what_is_wrong_is_the_reports_business(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.add(password={"$ref": "env:HFAGENT_TEST_P"})
    report = await world.connectors.test(call(), connector="main")
    assert report.error is not None
    assert (report.error.stage, report.error.code) == ("secrets", "credential.reference")
    assert [s.status for s in report.stages[:3]] == ["passed", "failed", "skipped"]

    def breaks(_probe: Any) -> None:
        raise ZeroDivisionError("in the driver")

    world.source.test_hook = breaks
    monkeypatch.setenv("HFAGENT_TEST_P", "from-the-environment")
    report = await world.connectors.test(call(), connector="main")
    assert report.error is not None
    assert (report.error.stage, report.error.code) == ("ping", "internal.driver")


@scenario
async def test_parameters_that_do_not_fit_are_refused(world: World) -> None:
    await world.add()
    for wrong in ({}, {"connector": "main", "type_name": "dumb"}):
        with pytest.raises(UserError) as caught:
            await world.connectors.test(call(), **wrong)
        assert caught.value.code == "request.invalid_params"
    with pytest.raises(NotFound):
        await world.connectors.test(call(), connector="nobody")
    with pytest.raises(ConfigError):
        await world.connectors.test(call(), type_name="nothing", config={})
    assert (await world.connectors.test(call(), connector="main", type_name="phony")).ok


@scenario
async def test_a_cancelled_test_is_no_result(world: World) -> None:
    await world.add()
    begun = threading.Event()

    def waits(probe: Any) -> None:
        begun.set()
        probe.cancel.wait(20)
        probe.cancel.raise_if_cancelled()

    world.source.test_hook = waits
    token = CancelToken()
    running = asyncio.ensure_future(world.connectors.test(call(cancel=token), connector="main"))
    await until(begun.is_set, "the test begins")
    cancelling(running, token)
    with pytest.raises(asyncio.CancelledError):
        await running
    begun.clear()
    token = CancelToken()
    running = asyncio.ensure_future(world.connectors.test(call(cancel=token), connector="main"))
    await until(begun.is_set, "the test begins")
    threading.Thread(target=token.cancel).start()
    with pytest.raises(Cancelled):
        await running
    assert await world.connectors.test_history("main") == ()


@scenario
async def test_a_test_that_hangs_names_the_stage_where_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfagent.services.connectors._TEST_BUDGET_S", {"quick": 1, "standard": 60, "deep": 60})
    monkeypatch.setattr("hfagent.services.connectors._TEST_MARGIN_S", 0)
    monkeypatch.setattr("hfagent.services.workers.GRACE_S", 0.05)
    await world.add()
    gate = threading.Event()
    world.source.test_hook = lambda _probe: gate.wait(20)
    report = await world.connectors.test(call(), connector="main", mode="quick")
    assert report.error is not None
    assert report.error.code == "timeout.total"
    assert report.error.stage == "ping"
    assert {s.stage: s.status for s in report.stages}["auth"] == "passed"
    assert "not reached" in next(s.message or "" for s in report.stages if s.stage == "server")
    gate.set()


@scenario
async def test_a_test_may_outlive_its_connector(world: World) -> None:
    await world.add()
    begun, gate = threading.Event(), threading.Event()

    def waits(_probe: Any) -> None:
        begun.set()
        gate.wait(20)

    world.source.test_hook = waits
    running = asyncio.ensure_future(world.connectors.test(call(), connector="main"))
    await until(begun.is_set, "the test begins")
    await world.connectors.delete(call(), "main")
    gate.set()
    assert (await running).ok


@scenario
async def test_guests_cannot_read_the_agents_files_by_way_of_a_test(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFAGENT_TEST_P", "the-owners-secret")
    await world.add(password={"$ref": "env:HFAGENT_TEST_P"})
    trial = {"host": "evil", "password": {"$ref": "env:HFAGENT_TEST_P"}}
    with pytest.raises(AccessDenied):
        await world.connectors.test(call(actor=GUEST), type_name="fake", config=trial)
    assert (await world.connectors.test(call(actor=GUEST), connector="main")).ok  # as the owner made it
    assert (await world.connectors.test(call(), type_name="fake", config=trial)).ok
    assert world.source.counts["connect"] == 2


# --- rotating ---------------------------------------------------------------------------------------------------------


@scenario
async def test_rotation_tests_first_and_a_wrong_password_stores_nothing(world: World) -> None:
    await world.add(password="first-secret", token="token-secret")
    world.source.password = "second-secret"
    before = snapshot(world)
    rotated, report = await world.connectors.rotate(call(), "main", {"password": "wrong-secret"})
    assert not rotated and report.error is not None and report.error.code == "auth.invalid_credentials"
    assert snapshot(world) == before
    rotated, report = await world.connectors.rotate(
        call(), "main", {"password": "second-secret", "token": MASK}, reason="it was on a postcard"
    )
    assert rotated and report.ok
    assert opened(world) == {"password": "second-secret", "token": "token-secret"}
    assert audit(world)[-1] == (
        "connector.rotate",
        {"name": "main", "fields": ["password"], "reason": "it was on a postcard", "test_ok": True},
    )
    assert await world.connectors.test_history("main") == ()


@scenario
async def test_a_forced_rotation_saves_what_failed_its_test(world: World) -> None:
    await world.add(password="first-secret")
    world.source.password = "the-real-one"
    rotated, report = await world.connectors.rotate(call(), "main", {"password": "wrong-secret"}, force=True)
    assert rotated and not report.ok
    assert opened(world) == {"password": "wrong-secret"}


@scenario
async def test_a_change_during_the_test_stops_the_rotation(world: World) -> None:
    await world.add(password="first-secret")
    begun, gate = threading.Event(), threading.Event()

    def waits(_probe: Any) -> None:
        begun.set()
        gate.wait(20)

    world.source.test_hook = waits
    running = asyncio.ensure_future(world.connectors.rotate(call(), "main", {"password": "second-secret"}))
    await until(begun.is_set, "the test begins")
    await world.connectors.update(call(), "main", config(database="other"))
    gate.set()
    with pytest.raises(Conflict):
        await running
    assert opened(world) == {"password": "first-secret"}


# --- secrets from elsewhere, a locked vault -----------------------------------------------------------------------------


@scenario
async def test_a_rejected_sign_in_reads_references_anew(world: World, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first-secret\n")
    secret.chmod(0o600)
    await world.add(password={"$ref": f"file:{secret}"})
    world.source.password = "first-secret"
    world.source.on("select", counted(1, 1))
    await world.query.execute(call(), "main", "select")
    world.source.password = "second-secret"
    secret.write_text("second-secret\n")
    world.connections.drop_all()
    with pytest.raises(SourceError):  # the cached one is used once more, and found wanting
        await world.query.execute(call(), "main", "select")
    assert (await world.query.execute(call(), "main", "select")).row_count == 1


@scenario
async def test_with_a_locked_vault_only_secrets_are_out_of_reach(world: World) -> None:
    await world.add("secret", password="first-secret")
    await world.add("open")
    world.source.on("select", counted(1, 1))
    for key in world.paths.vault_dir.glob("*.key"):
        key.unlink()
    world.vault = Vault.open_or_create(
        world.paths.vault_dir,
        agent_id=world.store.agent_id,
        has_ciphertexts=world.store.secrets.any,
        settings=VaultSettings(key_source="file"),
    )
    world.credentials._vault = world.vault
    assert world.vault.status().state == "locked"
    assert (await world.connectors.get("secret")).config == {"password": MASK}
    assert (await world.query.execute(call(), "open", "select")).row_count == 1
    for attempt in (
        world.query.execute(call(), "secret", "select"),
        world.add("another", password="new-secret"),
        world.connectors.update(call(), "secret", config(password="new-secret")),
    ):
        with pytest.raises(AgentError) as caught:
            await attempt
        assert caught.value.code == "credential.key_missing"
    assert [record.name for record in world.store.connectors.list()] == ["open", "secret"]
    report = await world.connectors.test(call(), connector="secret")
    assert report.error is not None and report.error.stage == "secrets"
    await world.connectors.update(call(), "secret", ConnectorPatch(description="still possible"))
    await world.connectors.delete(call(), "secret")


@scenario
async def test_opening_happens_in_one_moment_although_the_connector_is_being_changed(world: World) -> None:
    """Plain configuration of one version with secrets of another would look like a manipulation."""
    await world.add(host="a", password="secret-of-a")
    world.source.on("select", counted(1, 1))
    stop = False

    async def change() -> None:
        while not stop:
            for host in ("b", "a"):
                await world.connectors.update(call(), "main", config(host=host, password=f"secret-of-{host}"))

    changing = asyncio.ensure_future(change())
    for _ in range(60):
        try:
            assert (await world.query.execute(call(), "main", "select")).row_count == 1
        except AgentError as exc:
            assert exc.code == "agent.draining", exc  # the pool was replaced under it: repeat
    stop = True
    await changing


# --- nothing gets out ---------------------------------------------------------------------------------------------------


@scenario
async def test_no_secret_gets_out(world: World, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    canaries = [new_canary(label) for label in ("password", "token", "second", "wrong", "trial")]
    password, token, second, wrong, trial = canaries
    said: list[str] = []

    async def heard(work: Any) -> None:
        try:
            said.append(repr(await work))
        except AgentError as exc:
            said.extend([str(exc), repr(exc), repr(exc.to_data())])

    reports: list[dict[str, Any]] = []
    context = call(reports=reports)
    world.source.on("select", counted(1, 1))
    await heard(world.add(password=password, token=token, username="u"))
    world.source.password = password
    await heard(world.connectors.test(context, connector="main"))
    await heard(world.query.execute(call(), "main", "select"))
    await heard(world.connectors.update(call(), "main", config(token=second)))
    await heard(world.connectors.rotate(context, "main", {"password": wrong}))
    await heard(world.connectors.test(context, type_name="fake", config={"password": trial}))
    await heard(world.connectors.test(context, type_name="fake", config={"pasword": trial, "host": 5}))
    await heard(world.connectors.create(call(), draft("x", pasword=trial)))
    await heard(world.connectors.create(call(), draft("x", password=[trial])))
    await heard(world.connectors.update(call(), "main", config(host="other")))
    world.source.password = "something else"
    world.connections.drop_all()
    await heard(world.query.execute(call(), "main", "select"))
    await heard(world.connectors.test(context, connector="main"))
    await heard(world.connectors.list())
    await heard(world.connectors.test_history("main"))
    await heard(world.vault_verbs.rotate(context))
    await heard(world.connectors.delete(call(), "main"))
    assert world.source.counts["rejected"] >= 3  # whose error texts quote the password
    output = capfd.readouterr()
    records = "\n".join(str(record.__dict__) for record in caplog.records)
    # caplog shows records before the redacting handler, so the records themselves must be clean already.
    assert_no_canary([*said, repr(reports), records, output.out, output.err, world.directory], canaries)
    assert os.listdir(world.directory)


@scenario
async def test_merged_configurations_do_not_print_their_secrets(world: World) -> None:
    secret = new_canary()
    merged = world.credentials.merge(world.registry.get("fake"), {"password": secret})
    assert_no_canary([repr(merged)], [secret])


@scenario
async def test_a_shown_connector_never_differs_by_the_way_it_was_asked_for(world: World) -> None:
    shown = await world.add(host="db", password="first-secret")
    assert isinstance(shown, Connector)
    assert shown == await world.connectors.get("main") == await world.connectors.get(shown.id)
    assert (shown,) == await world.connectors.list()
