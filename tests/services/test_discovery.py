"""Discovery: one for all who ask, cancelled with the last of them; what was known stays until there is something new."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.errors import Conflict, NotFound, SourceError, UserError
from hfagent.model.connector import ConnectorPatch
from hfagent.model.data_type import DataType
from hfagent.model.stream import Column, Stream
from hfagent.sdk.reading import SchemaRequest
from tests.services.fakes import FakeConnection, World, call, cancelling, scenario, until


def table(name: str, *columns: str) -> Stream:
    return Stream(
        id=f"public.{name}", namespace="public", name=name,
        columns=tuple(Column(name=c, type=DataType("int64")) for c in columns or ("id",)), primary_key=("id",),
    )  # fmt: skip


class Schema:
    """Tables that are listed when the gate opens."""

    def __init__(self, world: World, *names: str, open: bool = False) -> None:
        self.names = list(names)
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.error: Exception | None = None
        self.cancelled = 0
        if open:
            self.gate.set()
        world.source.streams = self.read

    def read(self, connection: FakeConnection, request: SchemaRequest) -> Iterator[Stream]:
        self.begun.release()
        while not self.gate.wait(0.005):
            if request.cancel.cancelled:
                self.cancelled += 1
                return  # as a reader may: it just stops
        for name in self.names:
            yield table(name)
        if self.error is not None:
            raise self.error

    async def wait(self) -> None:
        await until(lambda: self.begun.acquire(blocking=False), "the discovery begins")


async def names(world: World, **options: Any) -> list[str]:
    page = await world.discovery.models(call(), "main", **options)
    return [stream.name for stream in page.streams]


@scenario
async def test_the_first_question_asks_the_source_the_next_ones_the_cache(world: World) -> None:
    await world.add()
    Schema(world, "b", "a", open=True)
    page = await world.discovery.models(call(), "main")
    assert ([s.name for s in page.streams], page.cached, page.total) == (["a", "b"], False, 2)
    assert all(stream.schema_hash for stream in page.streams)
    page = await world.discovery.models(call(), "main")
    assert (page.cached, page.discovered_at is not None) == (True, True)
    assert world.source.counts["discover"] == 1
    await world.discovery.models(call(), "main", refresh=True)
    assert world.source.counts["discover"] == 2
    assert world.stats().busy == 0


@scenario
async def test_pages_and_filters(world: World) -> None:
    await world.add()
    Schema(world, *(f"t{n:03}" for n in range(25)), open=True)
    found: list[str] = []
    token = None
    while True:
        page = await world.discovery.models(call(), "main", page_size=10, page_token=token, refresh=True)
        found += [stream.name for stream in page.streams]
        token = page.next_page
        if token is None:
            break
    assert found == [f"t{n:03}" for n in range(25)]
    assert world.source.counts["discover"] == 1  # turning pages asks nobody again
    page = await world.discovery.models(call(), "main", search="T01", depth="names")
    assert (len(page.streams), page.total, page.streams[0].columns) == (10, 10, ())
    page = await world.discovery.models(call(), "main", include=("public.t00*",), exclude=("*5",), depth="columns")
    assert len(page.streams) == 9
    assert page.streams[0].columns and not page.streams[0].foreign_keys
    assert await names(world, schemas=("other",)) == []
    with pytest.raises(UserError):
        await world.discovery.models(call(), "main", page_token="§§§")


@scenario
async def test_one_stream_by_its_id(world: World) -> None:
    await world.add()
    Schema(world, "a", open=True)
    page = await world.discovery.models(call(), "main", stream="public.a")
    assert [stream.name for stream in page.streams] == ["a"]
    with pytest.raises(NotFound) as caught:
        await world.discovery.models(call(), "main", stream="public.nothing")
    assert caught.value.code == "model.not_found"
    assert "--refresh" in (caught.value.hint or "")
    record = await world.connectors.require("main")
    assert (await world.discovery.stream(call(), record, "public.a")).name == "a"


@scenario
async def test_all_who_ask_meanwhile_share_one_discovery(world: World) -> None:
    await world.add()
    schema = Schema(world, "a")
    reports: list[list[dict[str, Any]]] = [[] for _ in range(5)]
    asking = [asyncio.ensure_future(world.discovery.models(call(reports=r), "main", refresh=True)) for r in reports]
    await schema.wait()
    await until(lambda: all(reports), "everybody has heard that it begins")
    schema.gate.set()
    for page in await asyncio.gather(*asking):
        assert [stream.name for stream in page.streams] == ["a"]
    assert world.source.counts["discover"] == 1
    for heard in reports:
        assert [r["kind"] for r in heard if r["kind"] != "report"] == ["begin", "end"]
    assert world.discovery.running == 0


@scenario
async def test_it_is_cancelled_when_the_last_one_leaves_and_not_before(world: World) -> None:
    await world.add()
    schema = Schema(world, "a")
    tokens = [CancelToken() for _ in range(3)]
    asking = [asyncio.ensure_future(world.discovery.models(call(cancel=t), "main")) for t in tokens]
    await schema.wait()
    await until(lambda: len(next(iter(world.discovery._running.values())).listeners) == 3, "all three wait")
    for task, token in zip(asking[:2], tokens[:2], strict=True):
        cancelling(task, token)
    await asyncio.gather(*asking[:2], return_exceptions=True)
    assert not asking[2].done()
    assert schema.cancelled == 0
    cancelling(asking[2], tokens[2])
    with pytest.raises(asyncio.CancelledError):
        await asking[2]
    await until(lambda: schema.cancelled == 1, "the source hears of it")
    await until(lambda: world.stats().busy == 0, "the connection is back")
    record = await world.connectors.require("main")
    assert world.store.catalogues.summary(record.id) is None  # a reader that just stops is no short catalogue


@scenario
async def test_who_comes_after_the_last_one_left_gets_a_new_one(world: World) -> None:
    await world.add()
    schema = Schema(world, "a")
    token = CancelToken()
    first = asyncio.ensure_future(world.discovery.models(call(cancel=token), "main"))
    await schema.wait()
    cancelling(first, token)
    second = asyncio.ensure_future(world.discovery.models(call(), "main"))
    await schema.wait()
    schema.gate.set()
    assert [stream.name for stream in (await second).streams] == ["a"]
    assert first.cancelled()


@scenario
async def test_a_failure_keeps_what_was_known(world: World) -> None:
    await world.add()
    schema = Schema(world, "a", "b", open=True)
    assert await names(world) == ["a", "b"]
    schema.names, schema.error = ["a"], SourceError("the server broke off", code="transient.failover")
    with pytest.raises(SourceError, match="broke off"):
        await names(world, refresh=True)
    assert await names(world) == ["a", "b"]
    schema.error = ZeroDivisionError("a driver's bug")
    with pytest.raises(Exception, match="the driver failed") as caught:
        await names(world, refresh=True)
    assert getattr(caught.value, "code", None) == "internal.driver"
    schema.error, schema.names = None, ["c"]
    assert await names(world, refresh=True) == ["c"]
    assert world.stats().busy == 0


@scenario
async def test_what_was_known_is_readable_while_a_new_discovery_runs(world: World) -> None:
    await world.add()
    schema = Schema(world, "a", open=True)
    await names(world)
    schema.gate.clear()
    schema.names = ["b"]
    running = asyncio.ensure_future(names(world, refresh=True))
    await schema.wait()
    await schema.wait()
    assert await names(world) == ["a"]
    schema.gate.set()
    assert await running == ["b"]


@scenario
async def test_nothing_found_is_said(world: World) -> None:
    await world.add()
    Schema(world, open=True)
    page = await world.discovery.models(call(), "main")
    assert page.warnings == ("no streams that this account owns or can read",)
    await world.connectors.update(call(), "main", ConnectorPatch(output_schemas=("sales",)))
    page = await world.discovery.models(call(), "main")
    assert page.warnings == ("no streams in sales",)


@scenario
async def test_a_change_of_the_connector_ends_its_discovery_and_forgets_its_streams(world: World) -> None:
    await world.add()
    schema = Schema(world, "a", open=True)
    assert await names(world) == ["a"]
    schema.gate.clear()
    running = asyncio.ensure_future(names(world, refresh=True))
    await schema.wait()
    await schema.wait()
    await world.connectors.update(call(), "main", ConnectorPatch(config={"database": "other"}))
    with pytest.raises(Conflict) as caught:
        await running
    assert "changed while its streams were listed" in caught.value.message
    schema.gate.set()
    schema.names = ["b"]
    assert await names(world) == ["b"]
    await world.connectors.update(call(), "main", ConnectorPatch(description="x", config={"pool_size": 3}))
    assert (await world.discovery.models(call(), "main")).cached  # the same streams as before


@scenario
async def test_a_disabled_or_deleted_connector_lists_nothing(world: World) -> None:
    await world.add()
    Schema(world, "a", open=True)
    await world.connectors.update(call(), "main", ConnectorPatch(status="disabled"))
    with pytest.raises(UserError, match="is disabled"):
        await names(world)
    await world.connectors.delete(call(), "main")
    with pytest.raises(NotFound):
        await names(world)


@scenario
async def test_many_streams_are_reported_as_they_come(world: World) -> None:
    await world.add()
    Schema(world, *(f"t{n}" for n in range(1200)), open=True)
    reports: list[dict[str, Any]] = []
    await world.discovery.models(call(reports=reports), "main")
    counts = [r["streams"] for r in reports if "streams" in r]
    assert counts[:2] == [500, 1000]
