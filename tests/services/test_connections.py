"""Sources: opened on first use, rebuilt on change, forgotten when unused, and never more than the owner allows."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from hfagent.foundation.errors import AgentError, NotFound, SourceError
from hfagent.model.connector import ConnectorPatch
from hfagent.model.settings import PolicySettings
from hfagent.services import connections as module
from tests.services.fakes import World, blocked, call, counted, scenario, until


@scenario
async def test_nothing_is_opened_before_it_is_used(world: World) -> None:
    for number in range(50):
        await world.add(f"c{number}", password="some-secret")
    await world.connectors.list()
    assert world.connections.stats() == ()
    assert world.source.counts["connect"] == 0
    world.source.on("select", counted(1, 1))
    await world.query.execute(call(), "c7", "select")
    assert [stats.name for stats in world.connections.stats()] == ["c7"]


@scenario
async def test_a_request_that_knows_an_older_version_does_not_bring_it_back(world: World) -> None:
    await world.add(database="old")
    stale = await world.connectors.require("main")
    await world.connectors.update(call(), "main", ConnectorPatch(config={"database": "new"}))
    fresh = await world.connections.source(await world.connectors.require("main"))
    assert (await world.connections.source(stale)) is fresh
    world.connections.drop_all()
    assert (await world.connections.source(stale)).connector.config.database == "new"


@scenario
async def test_many_first_uses_at_once_make_one_source(world: World) -> None:
    await world.add()
    record = await world.connectors.require("main")
    sources = await asyncio.gather(*(world.connections.source(record) for _ in range(20)))
    assert len({id(source) for source in sources}) == 1


@scenario
async def test_a_deletion_during_the_building_leaves_no_source_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.add()
    record = await world.connectors.require("main")
    begun, gate = threading.Event(), threading.Event()
    original = world.credentials.open

    def slow(*arguments: Any) -> Any:
        found = original(*arguments)
        begun.set()
        gate.wait(20)
        return found

    monkeypatch.setattr(world.credentials, "open", slow)
    building = asyncio.ensure_future(world.connections.source(record))
    await until(begun.is_set, "the building begins")
    await world.connectors.delete(call(), "main")
    gate.set()
    with pytest.raises(NotFound):
        await building
    assert world.connections.stats() == ()
    assert world.connections._builds == {}


@scenario
async def test_unused_sources_are_forgotten_with_their_secrets(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNUSED_S", 0.0)
    await world.add(password="some-secret", pool_idle_s=5)
    world.source.on("select", counted(1, 1))
    await world.query.execute(call(), "main", "select")
    world.connections.evict()
    assert len(world.connections.stats()) == 1  # it has a connection
    source = next(iter(world.connections._sources.values()))
    source.pool._last_use -= 10_000
    await until(lambda: not source.evicting, "the first eviction ends")
    world.connections.evict()
    await until(lambda: not world.source.live, "the idle connection is closed")
    world.connections.evict()
    assert world.connections.stats() == ()


@scenario
async def test_an_eviction_that_hangs_is_not_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.add()
    world.source.on("select", counted(1, 1))
    await world.query.execute(call(), "main", "select")
    source = next(iter(world.connections._sources.values()))
    gate, calls = threading.Event(), list[int]()
    monkeypatch.setattr(source.pool, "evict", lambda: (calls.append(1), gate.wait(20)))
    for _ in range(5):
        world.connections.evict()
    await until(lambda: bool(calls), "one begins")
    assert calls == [1]
    gate.set()
    await until(lambda: not source.evicting, "it ends")


# --- the limit over all sources -----------------------------------------------------------------------------------------


@scenario
async def test_never_more_connections_than_the_owner_allows(world: World) -> None:
    world.policy_settings = PolicySettings(max_open_connections=3)
    for name in ("a", "b"):
        await world.add(name, host=name, pool_timeout=0.2)
    world.source.stuck("sleep")
    running = [asyncio.ensure_future(world.query.execute(call(f"s{n}"), "ab"[n % 2], "sleep")) for n in range(8)]
    await blocked(world.source, 3)
    outcomes = await asyncio.wait(running, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    await until(lambda: sum(task.done() for task in running) == 5, "the others are refused")
    assert outcomes
    for task in running:
        if task.done():
            error = task.exception()
            assert isinstance(error, AgentError)
            assert error.code == "capacity.overloaded"
            assert "policy.max_open_connections" in (error.hint or "")
    assert world.connections.open_connections() == len(world.source.live) == 3
    await world.query.close_all()
    await asyncio.gather(*running, return_exceptions=True)
    assert world.connections._reserved == 0


@scenario
async def test_idle_connections_make_room_for_who_needs_one(world: World) -> None:
    world.policy_settings = PolicySettings(max_open_connections=2)
    world.source.on("select", counted(1, 1))
    for name in ("a", "b", "c", "d"):
        await world.add(name, host=name)
        assert (await world.query.execute(call(), name, "select")).row_count == 1
        assert world.connections.open_connections() <= 2
    assert (await world.query.execute(call(), "a", "select")).row_count == 1


@scenario
async def test_who_waits_for_a_place_gets_it_when_one_is_free(world: World) -> None:
    world.policy_settings = PolicySettings(max_open_connections=1)
    await world.add("a", host="a")
    await world.add("b", host="b", pool_timeout=20)
    gate = threading.Event()
    world.source.stuck("sleep", release=gate)
    world.source.on("select", counted(1, 1))
    first = asyncio.ensure_future(world.query.execute(call(), "a", "sleep"))
    await blocked(world.source)
    second = asyncio.ensure_future(world.query.execute(call(), "b", "select"))
    await asyncio.sleep(0.05)
    assert not second.done()
    gate.set()
    await first
    assert (await second).row_count == 1


@scenario
async def test_a_failed_connect_gives_its_place_back(world: World) -> None:
    world.policy_settings = PolicySettings(max_open_connections=1)
    await world.add(password="wrong-secret")
    world.source.password = "right-secret"
    world.source.on("select", counted(1, 1))
    for _ in range(3):
        with pytest.raises(SourceError):
            await world.query.execute(call(), "main", "select")
    world.source.password = "wrong-secret"
    assert (await world.query.execute(call(), "main", "select")).row_count == 1
    assert world.connections._reserved == 0
