"""Queries and their open results: exact pages, and a connection that always goes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.errors import AgentError, Cancelled, Conflict, NotFound, SourceError, UserError
from hfagent.model.query import QueryPage
from hfagent.model.settings import PolicySettings, QuerySettings
from hfagent.sdk.arrow import read_ipc
from hfagent.sdk.reading import Statement
from hfagent.services import results
from hfagent.services import workers as workers_module
from hfagent.services.context import Actor
from tests.services.fakes import (
    FakeConnection,
    World,
    batch,
    blocked,
    call,
    cancelling,
    counted,
    scenario,
    until,
)


async def pages(world: World, sql: str, **options: Any) -> list[QueryPage]:
    """Run a statement and fetch to its end."""
    found = [await world.query.execute(call(), "main", sql, **options)]
    while found[-1].has_more:
        found.append(await world.query.fetch(call(), found[-1].query_id))
    return found


def values(found: list[QueryPage]) -> list[Any]:
    return [row[0] for page in found for row in page.rows or []]


async def quiet(world: World, *, idle: int | None = None) -> None:
    """Wait until every connection is back, and no result is open."""
    await until(lambda: world.stats().busy == 0 and world.query.open_count == 0, "every connection is back")
    if idle is not None:
        await until(lambda: world.stats().idle == idle, f"{idle} connections are kept")


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 10, 100])
@pytest.mark.parametrize("page_size", [1, 3, 10, 25, 1000])
@scenario
async def test_pages_carry_every_row_once_whatever_the_batches(world: World, size: int, page_size: int) -> None:
    await world.add()
    world.source.on("select", counted(25, size))
    found = await pages(world, "select", page_size=page_size)
    assert values(found) == list(range(25))
    assert [page.row_count for page in found] == [len(page.rows or []) for page in found]
    assert all(page.row_count == page_size for page in found[:-1])
    assert [page.rows_before for page in found] == [min(25, n * page_size) for n in range(len(found))]
    assert not any(page.truncated for page in found)
    await quiet(world, idle=1)


@scenario
async def test_no_rows_are_one_page_with_its_columns(world: World) -> None:
    await world.add()
    world.source.on("select", [])
    (page,) = await pages(world, "select")
    assert (page.rows, page.row_count, page.has_more) == ([], 0, False)
    assert [column.name for column in page.columns] == ["n"]
    world.source.on("empty batches", [batch(1).slice(0, 0), batch(1).slice(0, 0)])
    (page,) = await pages(world, "empty batches")
    assert (page.rows, page.has_more) == ([], False)
    await quiet(world, idle=1)


@pytest.mark.parametrize(
    ("rows", "limit", "shown", "truncated"),
    [(10, 10, 10, False), (11, 10, 10, True), (9, 10, 9, False), (0, 1, 0, False), (1, 1, 1, False), (2, 1, 1, True)],
)
@pytest.mark.parametrize("page_size", [1, 4, 5, 10, 100])
@pytest.mark.parametrize("size", [1, 3, 100])
@scenario
async def test_truncated_says_exactly_whether_the_limit_left_rows_out(
    world: World, rows: int, limit: int, shown: int, truncated: bool, page_size: int, size: int
) -> None:
    await world.add()
    world.source.on("select", counted(rows, size))
    found = await pages(world, "select", page_size=page_size, max_rows=limit)
    assert values(found) == list(range(shown))
    assert found[-1].truncated is truncated
    assert not any(page.truncated for page in found[:-1])
    await quiet(world, idle=1)


@scenario
async def test_the_owners_row_limit_wins_and_the_connector_is_told(world: World) -> None:
    await world.add()
    world.policy_settings = PolicySettings(max_query_rows=3)
    asked: list[Statement] = []

    def answer(_connection: FakeConnection, statement: Statement) -> list[pa.RecordBatch]:
        asked.append(statement)
        return counted(10, 10)

    world.source.on("select", answer)
    found = await pages(world, "select", max_rows=5, page_size=100)
    assert values(found) == [0, 1, 2]
    assert found[-1].truncated
    assert (asked[0].max_rows, asked[0].first_rows) == (4, 100)  # one more, to know whether the limit cut


@scenario
async def test_a_full_page_does_not_wait_for_the_next_row(world: World) -> None:
    await world.add()
    world.source.stuck("select", rows_before=5)
    page = await world.query.execute(call(), "main", "select", page_size=5)
    assert (page.row_count, page.has_more) == (5, True)
    assert world.source.blocked.acquire(blocking=False) is False  # nobody asked the source for more
    await world.query.close(call(), page.query_id)
    await quiet(world)


@scenario
async def test_a_last_page_that_is_full_is_followed_by_an_empty_one(world: World) -> None:
    await world.add()
    world.source.on("select", counted(10, 5))
    found = await pages(world, "select", page_size=5)
    assert [page.row_count for page in found] == [5, 5, 0]
    assert [page.has_more for page in found] == [True, True, False]


@scenario
async def test_the_statement_comes_with_the_first_page_and_warnings_come_once(world: World) -> None:
    await world.add()
    world.source.on("select", counted(4, 2))
    first, *others = await pages(world, "select", page_size=2)
    assert first.statement == "select"
    assert [page.statement for page in others] == [None, None]
    assert first.elapsed_ms > 0


@pytest.mark.parametrize("format", ["rows", "arrow"])
@scenario
async def test_pages_are_bounded_in_bytes(world: World, format: Any) -> None:
    await world.add()
    world.query_settings = QuerySettings(max_page_bytes=65_536)
    world.source.on("select", [batch(*("x" * 1000 for _ in range(500)))])
    found = await pages(world, "select", page_size=50_000, format=format)
    assert sum(page.row_count for page in found) == 500
    assert len(found) >= 500 * 1000 // 65_536
    if format == "arrow":
        assert all(len(page.arrow or b"") < 80_000 for page in found)
        assert sum(read_ipc(page.arrow).num_rows for page in found if page.arrow) == 500


@scenario
async def test_uneven_rows_are_cut_where_they_are_heavy(world: World) -> None:
    """By the average row, the heavy ones at the start would all land on one page."""
    await world.add()
    world.query_settings = QuerySettings(max_page_bytes=1_000_000)
    world.source.on("select", [batch(*["x" * 400_000] * 10, *["y"] * 100_000)])
    found = await pages(world, "select", page_size=50_000)
    assert sum(page.row_count for page in found) == 100_010
    assert max(len(page.model_dump_json()) for page in found) < 1_600_000


@scenario
async def test_a_page_of_short_values_counts_with_the_length_of_its_text(world: World) -> None:
    """A NULL takes no byte in Arrow and five in JSON."""
    await world.add()
    world.query_settings = QuerySettings(max_page_bytes=65_536)
    nulls = pa.RecordBatch.from_pydict({f"c{n}": pa.nulls(2000) for n in range(100)})
    world.source.on("select", [nulls])
    found = await pages(world, "select", page_size=50_000)
    assert sum(page.row_count for page in found) == 2000
    assert max(page.row_count for page in found) * 100 * 5 <= 65_536


@scenario
async def test_text_that_grows_in_json_is_spread_over_more_messages(world: World) -> None:
    await world.add()
    text = "\x01" * 10_000  # six bytes each in JSON
    world.source.on("select", [batch(*[text] * 800)])  # 8 MB of Arrow data, 48 MB of JSON
    found = await pages(world, "select", page_size=50_000)
    assert sum(page.row_count for page in found) == 800
    assert max(len(page.model_dump_json()) for page in found) < 16 * 1024 * 1024
    assert len(found) > 2
    await quiet(world, idle=1)


@scenario
async def test_a_huge_value_is_cut_and_the_page_says_so(world: World) -> None:
    await world.add()
    world.source.on("select", [batch("x" * (results.VALUE_BYTES + 10), "small")])
    found = await pages(world, "select", page_size=10)
    assert values(found) == ["x" * results.VALUE_BYTES, "small"]
    assert "longer than" in " ".join(found[0].warnings)


@pytest.mark.parametrize("format", ["rows", "arrow"])
@scenario
async def test_a_row_that_no_message_can_carry_is_an_error_with_a_way_out(world: World, format: Any) -> None:
    await world.add()
    row = {f"c{n}": ["x" * 8_000_000] for n in range(3)}
    world.source.on("select", [pa.RecordBatch.from_pydict(row)])
    with pytest.raises(AgentError) as caught:
        await world.query.execute(call(), "main", "select", format=format)
    assert caught.value.code == "read.limit_exceeded"
    assert "query/export" in (caught.value.hint or "")
    await quiet(world)


# --- sessions, names, limits ------------------------------------------------------------------------------------------


@scenario
async def test_a_result_belongs_to_its_session(world: World) -> None:
    await world.add()
    world.source.on("select", counted(10, 5))
    page = await world.query.execute(call("mine"), "main", "select", page_size=5, query_id="q")
    with pytest.raises(NotFound) as caught:
        await world.query.fetch(call("other"), "q")
    assert caught.value.code == "query.not_found"
    await world.query.close(call("other"), "q")  # closes nothing
    assert (await world.query.fetch(call("mine"), "q")).row_count == 5
    assert page.query_id == "q"


@scenario
async def test_two_sessions_may_use_the_same_name_one_may_not(world: World) -> None:
    await world.add()
    world.source.on("select", counted(10, 5))
    await world.query.execute(call("a"), "main", "select", page_size=5, query_id="q")
    await world.query.execute(call("b"), "main", "select", page_size=5, query_id="q")
    with pytest.raises(Conflict, match="is open already"):
        await world.query.execute(call("a"), "main", "select", page_size=5, query_id="q")
    assert world.query.open_of("a") == 1
    await world.query.close_all()
    await quiet(world)


@scenario
async def test_closing_twice_or_what_never_was_is_no_error(world: World) -> None:
    await world.add()
    world.source.on("select", counted(10, 5))
    page = await world.query.execute(call(), "main", "select", page_size=5)
    await world.query.close(call(), page.query_id)
    await world.query.close(call(), page.query_id)
    await world.query.close(call(), "never was")
    with pytest.raises(NotFound):
        await world.query.fetch(call(), page.query_id)
    with pytest.raises(NotFound):
        await world.query.cancel(call(), page.query_id)
    await quiet(world, idle=1)
    assert world.source.counts["reader closed"] == 1


@scenario
async def test_a_session_may_hold_so_many_results(world: World) -> None:
    await world.add()
    world.query_settings = QuerySettings(max_open_per_session=2)
    world.source.on("select", counted(10, 5))
    for _ in range(2):
        await world.query.execute(call(), "main", "select", page_size=5)
    with pytest.raises(AgentError) as caught:
        await world.query.execute(call(), "main", "select", page_size=5)
    assert caught.value.code == "capacity.overloaded"
    assert caught.value.message == "this client has 2 open results"
    await world.query.execute(call("another"), "main", "select", page_size=5)
    await world.query.close_all()
    await quiet(world)


@scenario
async def test_the_end_of_a_session_closes_its_results_and_returns_the_connections(world: World) -> None:
    await world.add()
    world.source.on("select", counted(10, 5))
    world.source.stuck("sleep")
    for _ in range(3):
        await world.query.execute(call("gone"), "main", "select", page_size=5)
    kept = await world.query.execute(call("stays"), "main", "select", page_size=5)
    running = asyncio.ensure_future(world.query.execute(call("gone"), "main", "sleep"))
    await blocked(world.source)
    assert world.stats().busy == 5
    await world.query.session_closed("gone")
    with pytest.raises(Cancelled):
        await running
    await until(lambda: world.stats().busy == 1, "all but one are back")
    assert world.source.counts["cancel"] == 1
    assert world.query.open_count == 1
    await world.query.close(call("stays"), kept.query_id)
    await quiet(world)


@scenario
async def test_idle_results_are_closed_and_busy_or_young_ones_are_not(world: World) -> None:
    class Clock:
        time = 0.0

        def monotonic(self) -> float:
            return self.time

    clock = Clock()
    world.query._clock = clock  # type: ignore[assignment]
    await world.add()
    world.source.on("select", counted(10, 5))
    gate = threading.Event()
    world.source.stuck("sleep", release=gate)
    await world.query.execute(call(), "main", "select", page_size=5, query_id="old")
    running = asyncio.ensure_future(world.query.execute(call(), "main", "sleep", query_id="runs"))
    await blocked(world.source)
    clock.time = 200.0
    await world.query.execute(call(), "main", "select", page_size=5, query_id="young")
    clock.time = 301.0
    assert await world.query.close_idle() == 1
    assert world.query.open_count == 2
    with pytest.raises(NotFound):
        await world.query.fetch(call(), "old")
    assert (await world.query.fetch(call(), "young")).row_count == 5
    gate.set()
    await running
    await world.query.close_all()
    await quiet(world)


# --- cancelling -------------------------------------------------------------------------------------------------------


@scenario
async def test_cancelling_the_request_cancels_on_the_server_and_closes_the_result(world: World) -> None:
    await world.add()
    world.source.stuck("sleep")
    token = CancelToken()
    running = asyncio.ensure_future(world.query.execute(call(cancel=token), "main", "sleep"))
    await blocked(world.source)
    cancelling(running, token)
    with pytest.raises(asyncio.CancelledError):
        await running
    await quiet(world, idle=0)  # a late cancel request must not hit the next user: the connection is not kept
    assert world.source.counts["cancel"] == 1
    assert world.source.counts["abort"] == 0
    assert not any("MainThread" in name for name in world.source.threads)


@scenario
async def test_cancel_by_name_from_another_session_of_the_same_user(world: World) -> None:
    await world.add()
    world.source.stuck("sleep")
    mine = Actor("local", frozenset({"operate"}), uid=1000)
    running = asyncio.ensure_future(world.query.execute(call("a", actor=mine), "main", "sleep", query_id="q"))
    await blocked(world.source)
    for stranger in (Actor("local", uid=1001), Actor("tcp"), Actor("platform")):
        with pytest.raises(NotFound):
            await world.query.cancel(call("b", actor=stranger), "q")
    await world.query.cancel(call("b", actor=mine), "q")
    with pytest.raises(Cancelled):
        await running
    await quiet(world)


@scenario
async def test_closing_while_a_fetch_runs_cancels_on_the_server(world: World) -> None:
    await world.add()
    world.source.stuck("select", rows_before=5)
    page = await world.query.execute(call(), "main", "select", page_size=5)
    fetching = asyncio.ensure_future(world.query.fetch(call(), page.query_id))
    await blocked(world.source)
    await world.query.close(call(), page.query_id)
    with pytest.raises(Cancelled):
        await fetching
    await quiet(world)
    assert world.source.counts["cancel"] == 1


@scenario
async def test_fetches_take_turns_and_the_one_behind_the_end_finds_nothing(world: World) -> None:
    await world.add()
    world.source.on("select", counted(12, 4))
    page = await world.query.execute(call(), "main", "select", page_size=5)
    results = await asyncio.gather(
        *(world.query.fetch(call(), page.query_id) for _ in range(4)), return_exceptions=True
    )
    found = [page, *(r for r in results if isinstance(r, QueryPage))]
    assert values(found) == list(range(12))
    assert [type(r).__name__ for r in results if isinstance(r, BaseException)] == ["NotFound", "NotFound"]
    await quiet(world, idle=1)


@scenario
async def test_cancelling_a_fetch_that_waits_its_turn_disturbs_nobody(world: World) -> None:
    await world.add()
    gate = threading.Event()
    world.source.stuck("select", rows_before=5, release=gate)
    page = await world.query.execute(call(), "main", "select", page_size=5)
    first = asyncio.ensure_future(world.query.fetch(call(), page.query_id))
    await blocked(world.source)
    token = CancelToken()
    second = asyncio.ensure_future(world.query.fetch(call(cancel=token), page.query_id))
    await asyncio.sleep(0)
    cancelling(second, token)
    await asyncio.gather(second, return_exceptions=True)
    await until(lambda: token.cancelled, "the second one's token fires")
    gate.set()
    assert (await first).row_count == 0
    assert world.source.counts["cancel"] == 0
    await quiet(world, idle=1)


@scenario
async def test_a_source_that_does_not_listen_is_torn_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "GRACE_S", 0.05)
    await world.add()
    world.source.listens_to_cancel = False
    world.source.stuck("sleep")
    token = CancelToken()
    running = asyncio.ensure_future(world.query.execute(call(cancel=token), "main", "sleep"))
    await blocked(world.source)
    cancelling(running, token)
    with pytest.raises(asyncio.CancelledError):
        await running
    await quiet(world, idle=0)
    assert world.source.counts["cancel"] == 1
    assert world.source.counts["abort"] >= 1
    running = asyncio.ensure_future(world.query.execute(call(), "main", "sleep", query_id="q"))
    await blocked(world.source)
    await world.query.cancel(call(), "q")  # by name: the request's own task is not cancelled
    with pytest.raises(Cancelled):
        await running
    await quiet(world, idle=0)


@scenario
async def test_a_time_limit_cancels_then_tears_down_and_says_how_long_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "GRACE_S", 0.05)
    await world.add()
    world.source.listens_to_cancel = False
    world.source.stuck("sleep")
    with pytest.raises(SourceError) as caught:
        await world.query.execute(call(), "main", "sleep", timeout_s=0.05)
    assert caught.value.code == "timeout.total"
    assert caught.value.message == "the query did not finish within 0.05 s"
    await quiet(world, idle=0)
    world.source.listens_to_cancel = True
    with pytest.raises(SourceError) as caught:
        await world.query.execute(call(), "main", "sleep", timeout_s=0.05)
    assert caught.value.code == "timeout.total"
    await quiet(world, idle=0)


@scenario
async def test_each_request_has_the_whole_time_limit(world: World) -> None:
    deadlines: list[Any] = []

    def answer(_c: FakeConnection, statement: Statement) -> Iterator[pa.RecordBatch]:
        deadlines.append(statement.deadline)
        yield from counted(10, 5)

    await world.add()
    world.source.on("select", answer)
    page = await world.query.execute(call(), "main", "select", page_size=5, timeout_s=60)
    deadlines[0]._at -= 59.9  # the reader of the first page took its time
    await world.query.fetch(call(), page.query_id)
    assert deadlines[0].remaining() > 50


@scenario
async def test_cancelled_at_any_moment_no_connection_is_lost(world: World) -> None:
    """The race between taking a connection and using it, at many points."""
    await world.add()
    world.source.on("select", counted(10, 5))
    for round in range(150):
        token = CancelToken()
        running = asyncio.ensure_future(world.query.execute(call(cancel=token), "main", "select", page_size=5))
        for _ in range(round % 15):
            await asyncio.sleep(0)
        if round % 3 == 0:
            await asyncio.sleep(round / 150 * 0.003)
        cancelling(running, token)
        outcome = (await asyncio.gather(running, return_exceptions=True))[0]
        if isinstance(outcome, QueryPage):
            await world.query.close(call(), outcome.query_id)
        else:
            assert isinstance(outcome, asyncio.CancelledError | Cancelled), outcome
    await until(lambda: not world.connections.stats() or world.stats().busy == 0, "every connection is back")
    assert world.query.open_count == 0
    stats = world.stats()
    assert stats.open == stats.idle == len(world.source.live)


@scenario
async def test_closed_at_any_moment_no_connection_is_lost(world: World) -> None:
    await world.add()
    world.source.on("select", counted(1000, 1))
    for round in range(150):
        page = await world.query.execute(call(), "main", "select", page_size=5)
        fetching = asyncio.ensure_future(world.query.fetch(call(), page.query_id))
        for _ in range(round % 12):
            await asyncio.sleep(0)
        await world.query.close(call(), page.query_id)
        await asyncio.gather(fetching, return_exceptions=True)
        await world.query.close(call(), page.query_id)
    await quiet(world)
    stats = world.stats()
    assert stats.open == stats.idle == len(world.source.live)


# --- errors -----------------------------------------------------------------------------------------------------------


@scenario
async def test_a_refused_statement_costs_no_connection(world: World) -> None:
    await world.add()
    for _ in range(5):
        with pytest.raises(SourceError) as caught:
            await world.query.execute(call(), "main", "nonsense")
        assert caught.value.code == "query.syntax"
    await quiet(world, idle=1)
    assert world.source.counts["connect"] == 1


@scenario
async def test_errors_of_the_driver_are_translated_and_the_connection_goes(world: World) -> None:
    await world.add()

    def fails(_c: FakeConnection, _s: Statement) -> Iterator[pa.RecordBatch]:
        yield batch(1, 2, 3)
        raise OSError("something in the driver")

    def cut(_c: FakeConnection, _s: Statement) -> Iterator[pa.RecordBatch]:
        raise ConnectionResetError
        yield

    world.source.on("fails", fails)
    world.source.on("cut", cut)
    page = await world.query.execute(call(), "main", "fails", page_size=3)
    with pytest.raises(AgentError) as caught:
        await world.query.fetch(call(), page.query_id)
    assert caught.value.code == "internal.driver"
    with pytest.raises(NotFound):
        await world.query.fetch(call(), page.query_id)
    await quiet(world, idle=0)
    with pytest.raises(AgentError) as caught:
        await world.query.execute(call(), "main", "cut")
    assert caught.value.code == "net.reset"
    await quiet(world, idle=0)


@scenario
async def test_a_reader_that_cannot_be_closed_costs_its_connection_only(world: World) -> None:
    await world.add()
    world.source.on("select", counted(10, 5))
    world.source.close_error = OSError("cannot close")
    page = await world.query.execute(call(), "main", "select", page_size=5)
    await world.query.close(call(), page.query_id)
    await quiet(world, idle=0)
    world.source.close_error = None
    assert values(await pages(world, "select")) == list(range(10))


@scenario
async def test_a_reader_that_hangs_in_its_closing_is_torn_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_CLOSE_S", 0.1)

    def answer(connection: FakeConnection, _s: Statement) -> Iterator[pa.RecordBatch]:
        try:
            yield batch(*range(5))
            yield batch(*range(5))
        finally:
            connection.block()

    await world.add()
    world.source.on("select", answer)
    page = await world.query.execute(call(), "main", "select", page_size=5)
    await world.query.fetch(call(), page.query_id)
    await world.query.close(call(), page.query_id)
    assert world.source.counts["abort"] >= 1
    await quiet(world, idle=0)


@scenario
async def test_a_driver_that_calls_sys_exit_ends_its_request_only(world: World) -> None:
    def leaves(_c: FakeConnection, _s: Statement) -> Iterator[pa.RecordBatch]:
        raise SystemExit(3)
        yield

    await world.add()
    world.source.on("leave", leaves)
    with pytest.raises(SystemExit):
        await world.query.execute(call(), "main", "leave")
    await quiet(world, idle=0)


@scenario
async def test_what_cannot_be_queried_says_so(world: World) -> None:
    await world.add("dumb one", "dumb")
    await world.add("off")
    await world.connectors.update(call(), "off", patch(status="disabled"))
    with pytest.raises(UserError) as caught:
        await world.query.execute(call(), "dumb one", "select")
    assert caught.value.code == "connector.not_queryable"
    with pytest.raises(UserError) as caught:
        await world.query.explain(call(), "dumb one", "select")
    assert caught.value.code == "unsupported"
    with pytest.raises(UserError, match="is disabled"):
        await world.query.execute(call(), "off", "select")
    with pytest.raises(NotFound):
        await world.query.execute(call(), "nobody", "select")
    assert world.query.open_count == 0


def patch(**changes: Any) -> Any:
    from hfagent.model.connector import ConnectorPatch

    return ConnectorPatch(**changes)


@scenario
async def test_explain_gives_the_plan_and_the_connection_back(world: World) -> None:
    await world.add()
    world.source.on("select", counted(1, 1))
    plan = await world.query.explain(call(), "main", "select")
    assert plan.plan == "a plan"
    with pytest.raises(SourceError):
        await world.query.explain(call(), "main", "nonsense")
    await quiet(world, idle=1)


@scenario
async def test_a_hung_connector_delays_no_other(world: World) -> None:
    await world.add("hung")
    await world.add("healthy", host="elsewhere")
    world.source.stuck("sleep")
    world.source.on("select", counted(3, 3))
    stuck = [asyncio.ensure_future(world.query.execute(call(), "hung", "sleep", query_id=f"q{n}")) for n in range(20)]
    await blocked(world.source, 20)
    for _ in range(50):
        assert (await world.query.execute(call("other"), "healthy", "select")).row_count == 3
    assert not any(task.done() for task in stuck)
    await world.query.close_all()
    await asyncio.gather(*stuck, return_exceptions=True)
    await until(lambda: world.stats("hung").busy == 0, "all are back")


@scenario
async def test_results_stay_open_while_their_connector_changes(world: World) -> None:
    await world.add()
    world.source.on("select", counted(10, 5))
    page = await world.query.execute(call(), "main", "select", page_size=5)
    await world.connectors.update(call(), "main", patch(config={"database": "other"}))
    assert values([await world.query.fetch(call(), page.query_id)]) == [5, 6, 7, 8, 9]
    assert values(await pages(world, "select")) == list(range(10))
    assert world.stats().opened == 1  # a new pool
    await world.query.close_all()
    await until(lambda: len(world.source.live) == 1, "the old connection is closed")


# --- the moments that chance seldom meets --------------------------------------------------------------------------------


@scenario
async def test_a_page_that_is_done_after_its_result_was_closed_gives_the_connection_back(world: World) -> None:
    gate = threading.Event()

    def answer(connection: FakeConnection, _s: Statement) -> Iterator[pa.RecordBatch]:
        yield batch(*range(5))
        world.source.blocked.release()
        gate.wait(20)
        yield batch(*range(5))
        yield batch(*range(5))

    await world.add()
    world.source.on("select", answer)
    page = await world.query.execute(call(), "main", "select", page_size=5)
    fetching = asyncio.ensure_future(world.query.fetch(call(), page.query_id))
    await blocked(world.source)
    await world.query.close(call(), page.query_id)
    await until(lambda: world.source.counts["cancel"] == 1, "the server is asked")  # and does not listen
    gate.set()
    with pytest.raises(Cancelled):
        await fetching
    await quiet(world, idle=0)
    assert world.source.counts["abort"] == 0


@scenario
async def test_a_fetch_cancelled_in_the_queue_closes_its_result(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfagent.services.connections._LANE_THREADS", 1)
    await world.add()
    world.source.on("select", counted(10, 5))
    world.source.stuck("sleep")
    page = await world.query.execute(call(), "main", "select", page_size=5)
    running = asyncio.ensure_future(world.query.execute(call(), "main", "sleep"))
    await blocked(world.source)
    token = CancelToken()
    fetching = asyncio.ensure_future(world.query.fetch(call(cancel=token), page.query_id))
    await asyncio.sleep(0.01)
    cancelling(fetching, token)
    await asyncio.gather(fetching, return_exceptions=True)
    await until(lambda: world.stats().busy == 1, "its connection is back, though no thread was free")
    assert world.query.open_count == 1
    await world.query.close_all()
    await asyncio.gather(running, return_exceptions=True)
    await quiet(world)


@scenario
async def test_cancelled_with_the_connection_in_hand_the_statement_is_not_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel request that arrives before there is anything to cancel would let the statement run on."""
    await world.add()
    world.source.on("select", counted(10, 5))
    original = world.connections.acquire

    def acquire(source: Any, cancel: CancelToken, *rest: Any) -> Any:
        lease = original(source, cancel, *rest)
        cancel.cancel()
        return lease

    monkeypatch.setattr(world.connections, "acquire", acquire)
    for attempt in (
        world.query.execute(call(), "main", "select"),
        world.query.explain(call(), "main", "select"),
    ):
        with pytest.raises(Cancelled):
            await attempt
    assert world.source.counts["execute"] == 0
    await quiet(world, idle=0)
