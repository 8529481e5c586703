"""Connectors as code: the same files twice change nothing, a broken one takes nothing away."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from hfagent.foundation.errors import ConfigError
from hfagent.foundation.redaction import MASK
from hfagent.model.connector import ConnectorPatch
from hfagent.model.settings import PolicySettings
from hfagent.services import apply as module
from hfagent.services.apply import read_file
from tests.fixtures.canary import assert_no_canary, new_canary
from tests.services.fakes import World, call, scenario, until


def entry(name: str = "main", **config: Any) -> dict[str, Any]:
    return {"name": name, "type": "fake", "config": config}


async def applied(world: World, *entries: dict[str, Any], **options: Any) -> dict[str, str]:
    changes = await world.apply.apply(call(), list(entries), **{"source": "a.toml", **options})
    return {change.name: change.action for change in changes}


async def why(world: World, *entries: dict[str, Any], **options: Any) -> list[str]:
    changes = await world.apply.apply(call(), list(entries), **options)
    assert all(change.action == "failed" for change in changes)
    return [change.message or "" for change in changes]


def versions(world: World) -> dict[str, int]:
    return {record.name: record.version for record in world.store.connectors.list()}


@scenario
async def test_the_same_entries_twice_change_nothing(world: World) -> None:
    entries = [
        entry("plain", host="db", port=5),
        entry("aliases", server="db", user="u", pwd="literal-secret"),
        {"name": "phony", "type": "phony", "config": {"password": {"$ref": "env:HFAGENT_TEST_P"}}, "production": True},
        {"name": "bare", "type": "fake", "output_schemas": ["a", "b"], "description": "x"},
    ]
    assert set((await applied(world, *entries)).values()) == {"created"}
    secrets = world.store.secrets.of(world.store.connectors.get("aliases").id)
    assert set((await applied(world, *entries)).values()) == {"unchanged"}
    assert set(versions(world).values()) == {1}
    assert world.store.secrets.of(world.store.connectors.get("aliases").id) == secrets  # not even sealed anew
    assert len(world.store.audit.list()) == 4


@scenario
async def test_differences_are_applied_and_named(world: World) -> None:
    await applied(world, entry(host="db", database="a", username="u", password="literal-secret"))
    (change,) = await world.apply.apply(call(), [entry(host="db", database="b", password="literal-secret")])
    assert (change.action, change.message) == ("updated", "config.database, config.password, config.username")
    shown = await world.connectors.get("main")
    assert shown.config == {"host": "db", "database": "b", "password": MASK}
    assert await applied(world, entry(host="db", database="b", password="another-secret")) == {"main": "updated"}
    assert await applied(world, entry(host="elsewhere", database="b", password="another-secret")) == {"main": "updated"}
    assert await applied(world, entry(host="elsewhere", database="b")) == {"main": "updated"}
    assert (await world.connectors.get("main")).config == {"host": "elsewhere", "database": "b"}
    assert await applied(world, {**entry(host="elsewhere", database="b"), "output_schemas": ["x"]}) == {
        "main": "updated"
    }
    assert await applied(world, {**entry("MAIN", host="elsewhere", database="b"), "output_schemas": ["x"]}) == {
        "MAIN": "updated"
    }
    assert versions(world) == {"MAIN": 7}


@scenario
async def test_an_address_does_not_change_under_a_secret_that_the_file_does_not_have(world: World) -> None:
    await world.add(host="db", password="entered-by-hand")
    (message,) = await why(world, {**entry(host="evil"), "config": {"host": "evil", "password": MASK}})
    assert "must be entered again" in message


@scenario
async def test_wrong_entries_fail_alone_and_say_why(world: World) -> None:
    secret = new_canary()
    messages = await why(
        world,
        {"name": "a", "type": "fake", "confg": {}},
        {"name": "b"},
        {"name": "c", "type": "nonsense"},
        entry("d", hots="x"),
        entry("e", port="many", password=secret),
        {"type": "fake"},
        {"name": 5, "type": "fake"},
        {"name": "f", "type": "fake", "config": secret},
    )
    assert messages[0] == "an entry has no field 'confg' (did you mean 'config'?)"
    assert messages[1] == "the field 'type' is missing"
    assert "no connector type 'nonsense'" in messages[2]
    assert "did you mean" in messages[3] and "'host'" in messages[3]
    assert "port" in messages[4]
    assert messages[5] == "the field 'name' is missing"
    assert_no_canary(messages, [secret])
    assert await applied(world, entry("bad", port=0), entry("good")) == {"bad": "failed", "good": "created"}
    assert await applied(world, entry("x"), entry("X", host="other")) == {"x": "created", "X": "failed"}
    assert await applied(world, {**entry("good"), "type": "dumb"}) == {"good": "failed"}


@scenario
async def test_dry_run_writes_nothing_and_tells_the_truth(world: World) -> None:
    await applied(world, entry("stays", host="db"), entry("goes"))
    before = (world.store.connectors.list(), world.store.audit.list())
    world.policy_settings = PolicySettings(allowed_hosts=("db", "localhost"))
    assert await applied(
        world,
        entry("stays", host="db", database="other"),
        entry("new", host="db", password="some-secret"),
        entry("wrong", hots="db"),
        entry("denied", host="elsewhere"),
        dry_run=True,
        prune=True,
    ) == {"stays": "updated", "new": "created", "wrong": "failed", "denied": "failed", "goes": "removed"}
    assert await applied(world, entry("stays", host="elsewhere"), dry_run=True) == {"stays": "failed"}
    assert (world.store.connectors.list(), world.store.audit.list()) == before
    assert world.store.secrets.count() == 0


@scenario
async def test_prune_takes_only_what_came_from_the_same_place(world: World) -> None:
    await world.add("by hand")
    await applied(world, entry("a1"), entry("a2"), source="a.toml")
    await applied(world, entry("b1"), source="b.toml")
    assert await applied(world, entry("a1"), prune=True, source="a.toml") == {"a1": "unchanged", "a2": "removed"}
    assert set(versions(world)) == {"by hand", "a1", "b1"}
    assert await applied(world, prune=True, source="b.toml") == {"b1": "removed"}
    assert await applied(world, entry("a1", port=0), prune=True, source="a.toml") == {"a1": "failed"}
    nameless = {"type": "fake"}
    assert "removed" not in (await applied(world, nameless, prune=True, source="a.toml")).values()
    assert set(versions(world)) == {"by hand", "a1"}


@scenario
async def test_a_connector_made_by_hand_is_taken_over_but_never_removed(world: World) -> None:
    await world.add("main", host="db")
    assert await applied(world, entry(host="db", database="x")) == {"main": "updated"}
    assert await applied(world, prune=True) == {}
    assert set(versions(world)) == {"main"}


@scenario
async def test_a_thousand_entries_are_looked_up_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = 0
    original = world.store.connectors.list

    def counting() -> Any:
        nonlocal lists
        lists += 1
        return original()

    monkeypatch.setattr(world.store.connectors, "list", counting)
    await applied(world, *(entry(f"c{n}") for n in range(100)))
    assert lists == 1


# --- files ------------------------------------------------------------------------------------------------------------

FILE = """
[[connectors]]
name = "{name}"
type = "fake"
[connectors.config]
host = "{host}"
password = "literal-secret"
"""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a = ", "is not valid TOML"),
        ("[other]\nx = 1\n", "found 'other'"),
        ("connectors = 5\n", "expected [[connectors]]"),
        ("connectors = [1, 2]\n", "expected [[connectors]]"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_file(file)
    assert message in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.hint


def test_other_things_of_that_name_do_not_keep_us_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b'x = "\xe9"')
    for name in ("pipe.toml", "folder.toml", "missing.toml"):
        with pytest.raises(ConfigError, match="not a regular file"):
            read_file(tmp_path / name)
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_file(tmp_path / "latin.toml")
    (tmp_path / "empty.toml").write_text("# nothing yet\n")
    assert read_file(tmp_path / "empty.toml") == []


@scenario
async def test_the_watched_directory_is_followed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENCE_S", 0.05)
    await world.add("by hand")
    watch = world.watch()
    await watch.start()  # makes the directory
    folder = world.paths.connectors_dir
    assert folder.stat().st_mode & 0o777 == 0o700

    async def become(*names: str) -> None:
        await until(lambda: set(versions(world)) == {"by hand", *names}, f"the connectors are {names}")

    try:
        (folder / "a.toml").write_text(FILE.format(name="one", host="db"))
        await become("one")
        (folder / "a.toml").write_text(FILE.format(name="one", host="db") + FILE.format(name="two", host="db"))
        await become("one", "two")
        (folder / "b.tmp").write_text(FILE.format(name="three", host="db"))
        (folder / "b.tmp").rename(folder / "b.toml")  # as editors and configuration tools do
        await become("one", "two", "three")
        (folder / "b.toml").write_text("[[connectors")  # half-written
        await until(lambda: any("not valid TOML" in error for error in watch.last_errors), "the error is reported")
        (folder / "a.toml").write_text(FILE.format(name="one", host="elsewhere"))
        await until(lambda: world.store.connectors.get("one").config["host"] == "elsewhere", "the change is applied")
        assert set(versions(world)) == {"by hand", "one", "two", "three"}  # nothing goes while a file is broken
        (folder / "b.toml").unlink()
        await become("one")
        await until(lambda: watch.last_errors == (), "the error is gone")
        (folder / "a.toml").rename(folder / "a.off")
        await become()
    finally:
        watch.stop()
        watch.stop()
        await watch.settled()


@scenario
async def test_a_second_start_changes_nothing(world: World) -> None:
    world.paths.connectors_dir.mkdir(mode=0o700)
    (world.paths.connectors_dir / "a.toml").write_text(FILE.format(name="one", host="db"))
    for _ in range(2):
        watch = world.watch()
        await watch.start()
        await watch.settled()
        watch.stop()
    assert versions(world) == {"one": 1}
    assert world.store.connectors.get("one").source == "file"


@scenario
async def test_a_directory_that_is_gone_or_unusable_takes_nothing_away(world: World) -> None:
    folder = world.paths.connectors_dir
    folder.mkdir(mode=0o700)
    (folder / "a.toml").write_text(FILE.format(name="one", host="db"))
    watch = world.watch()
    await watch.start()
    await watch.settled()
    (folder / "a.toml").unlink()
    folder.rmdir()
    await watch._run()
    assert set(versions(world)) == {"one"}
    assert "is gone" in watch.last_errors[0]
    watch.stop()
    await watch.settled()
    folder.write_text("a file in its place")
    watch = world.watch()
    await watch.start()
    assert "cannot be watched" in watch.last_errors[0]
    watch.stop()


@scenario
async def test_an_error_is_logged_once_and_not_with_every_other_change(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.paths.connectors_dir.mkdir(mode=0o700)
    (world.paths.connectors_dir / "a.toml").write_text("broken")
    watch = world.watch()
    for _ in range(3):
        await watch._run()
    assert sum("not valid TOML" in record.message for record in caplog.records) == 1
    assert watch.runs == 3


@scenario
async def test_two_callers_at_once_take_turns(world: World) -> None:
    results = await asyncio.gather(*(applied(world, entry("same", database=f"d{n % 2}")) for n in range(6)))
    assert [r["same"] for r in results] == ["created", *["updated"] * 5]
    await world.connectors.update(call(), "same", ConnectorPatch(description="by hand"))
    assert await applied(world, entry("same", database="d1")) == {"same": "updated"}
    assert (await world.connectors.get("same")).description == ""
