"""Runs against a real PostgreSQL: whatever happens to source and process, the dataset ends up equal to the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import deltalake
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hfagent.connectors.postgresql import PostgreSQL
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError
from hfagent.lakehouse.table import LakeTable
from hfagent.sdk.reading import SchemaRequest
from hfagent.sdk.registry import Registry
from hfagent.services.sync.engine import SyncJob, SyncOutcome, run
from hfagent.services.sync.shaping import Shape
from hfagent.services.sync.window import SyncPosition
from hfagent.store.sync_states import SyncIntent
from tests.connectors.source import make
from tests.fixtures.postgres import PostgresDatabase, PostgresServer

TABLE = "CREATE TABLE items (id bigint PRIMARY KEY, value text, price numeric(20,4), changed timestamptz(6) DEFAULT clock_timestamp())"


class Crash(Exception):
    """The process dies here."""


class World:
    """A source, a table, and what the store would remember between runs."""

    def __init__(self, database: PostgresDatabase, directory: Path) -> None:
        self.database = database
        self.directory = directory / uuid4().hex
        self.position = SyncPosition()
        self.intent: SyncIntent | None = None
        self.durable: int | None = None
        self.settings: dict[str, Any] = {}
        server = database.server
        self.connector: PostgreSQL = make(
            Registry().get("postgresql"),
            {
                "host": server.host, "port": server.port, "database": database.name, "username": server.superuser,
                "password": server.password, "sslmode": "require",
            },
        )  # fmt: skip
        self.connection = self.connector.connect(Deadline(20))

    def close(self) -> None:
        self.connector.close(self.connection)

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.database.execute(statement, parameters or None)

    def job(self, mode: str = "incremental", **changes: Any) -> SyncJob:
        stream = next(s for s in self.connector.read_schema(self.connection, SchemaRequest()) if s.name == "items")
        fields: dict[str, Any] = {
            "run_id": uuid4().hex, "app_id": "hfagent:test:items", "directory": self.directory, "stream": stream,
            "mode": mode, "watermark_column": "changed", "primary_key": ("id",), "position": self.position,
            "durable": self.durable,
        }  # fmt: skip
        return SyncJob(**(fields | self.settings | changes))

    def remember(self, intent: SyncIntent) -> SyncIntent:
        if self.intent is None or self.intent.sequence != intent.sequence:
            self.intent = intent
        return self.intent

    def sync(self, mode: str = "incremental", *, crash: str = "", **changes: Any) -> SyncOutcome:
        """One run; with `crash`, the process dies at that step. What was recorded before stays."""

        def remember(intent: SyncIntent) -> SyncIntent:
            kept = self.remember(intent)
            if crash == "bounds":
                raise Crash
            return kept

        def progress(_rows: int, _bytes: int) -> None:
            if crash == "read":
                raise Crash

        done = run(self.job(mode, **changes), self.connector, self.connection, remember=remember, progress=progress)
        if crash == "committed":  # the table has the rows, nobody has recorded it
            raise Crash
        self.position, self.durable, self.intent = done.position, done.version, None
        return done

    def dataset(self) -> Counter[tuple[Any, ...]]:
        if not self.directory.exists():  # there was nothing to sync yet
            return Counter()
        found = deltalake.DeltaTable(str(self.directory)).to_pyarrow_table(columns=["id", "value", "price", "changed"])
        return Counter(tuple(row.values()) for row in found.to_pylist())

    def source(self) -> Counter[tuple[Any, ...]]:
        return Counter(self.sql("SELECT id, value, price, changed FROM items"))


@pytest.fixture
def world(postgres_database: PostgresDatabase, tmp_path: Path) -> Iterator[World]:
    postgres_database.execute(TABLE)
    world = World(postgres_database, tmp_path / "lake")
    yield world
    world.close()


def insert(world: World, *ids: int, value: str = "new") -> None:
    for number in ids:
        world.sql("INSERT INTO items (id, value, price) VALUES (%s, %s, %s)", number, value, Decimal(number) / 3)


def test_a_first_run_takes_all_and_the_next_only_the_changes(world: World) -> None:
    insert(world, *range(1, 51))
    first = world.sync()
    assert (first.rows_read, first.rows_written, first.no_change) == (50, 50, False)
    world.sql("UPDATE items SET value = 'changed', changed = clock_timestamp() WHERE id <= 3")
    insert(world, 51)
    second = world.sync()
    assert (second.rows_written, second.rows_merged) == (1, 3)
    assert second.rows_unchanged == second.rows_read - 4  # delivered again by the look back, known by their digests
    assert world.dataset() == world.source()
    third = world.sync()
    assert third.no_change
    assert (third.version, third.position) == (second.version, second.position)


def test_the_watermark_is_in_the_commit(world: World) -> None:
    insert(world, 1)
    done = world.sync()
    with LakeTable.open(world.directory, world.job().stream and _schema(world), app_id="hfagent:test:items") as table:
        last = table.last_commit()
        assert last is not None
        assert last.sequence == done.position.sequence == 1
        assert last.details["watermark"] == done.position.lo


def _schema(world: World) -> Any:
    return deltalake.DeltaTable(str(world.directory)).schema().to_arrow()


@pytest.mark.parametrize("mode", ["incremental", "full"])
@pytest.mark.parametrize("step", ["bounds", "read", "committed"])
def test_a_crash_at_any_step_neither_loses_nor_doubles(world: World, mode: str, step: str) -> None:
    insert(world, *range(1, 6))
    world.sync(mode)
    insert(world, *range(6, 11))
    world.sql("UPDATE items SET value = 'again', changed = clock_timestamp() WHERE id = 1")
    with pytest.raises(Crash):
        world.sync(mode, crash=step)
    world.sql("UPDATE items SET value = 'later', changed = clock_timestamp() WHERE id = 7")
    again = world.sync(mode)
    assert again.replayed == (step == "committed")
    world.sync(mode)
    assert world.dataset() == world.source()


def test_without_a_key_rows_are_appended_once(world: World) -> None:
    world.settings = {"primary_key": ()}
    insert(world, 1, 2, 3)
    world.sync()
    insert(world, 4)
    done = world.sync()
    assert (done.rows_written, done.rows_unchanged) == (1, 3)
    assert world.sync().no_change
    assert world.dataset() == world.source()


def test_rows_with_the_boundarys_value_that_come_later_are_found(world: World) -> None:
    stamp = "2026-01-01 00:00:00.123456+00"
    for number in (5, 6):
        world.sql("INSERT INTO items VALUES (%s, 'tie', 1, %s)", number, stamp)
    world.sync(lookback=0)
    world.sql("INSERT INTO items VALUES (1, 'smaller key, same tick', 1, %s)", stamp)
    world.sql("UPDATE items SET value = 'second change in one tick' WHERE id = 6")
    world.sync(lookback=0)
    assert world.dataset() == world.source()


def test_a_late_commit_is_found(world: World) -> None:
    insert(world, 1)
    with psycopg.connect(world.database.dsn()) as slow:
        slow.execute("INSERT INTO items VALUES (2, 'late', 1, now())")
        insert(world, 3)  # commits with a later time, before the slow one does
        world.sync()
        assert world.dataset().keys() < world.source().keys() | {(2, "late", 1, None)}
        slow.commit()
    world.sync()
    assert world.dataset() == world.source()


def test_a_row_from_the_future_holds_nothing_up(world: World) -> None:
    insert(world, 1)
    world.sql("INSERT INTO items VALUES (9, 'prophet', 1, now() + interval '73 years')")
    done = world.sync()
    assert any("1" in warning for warning in done.warnings)
    insert(world, 2)
    world.sync()
    assert {row[0] for row in world.dataset()} == {1, 2}


def test_a_restored_source_stops_the_sync(world: World) -> None:
    world.sql("INSERT INTO items VALUES (1, 'x', 1, now()), (2, 'x', 1, now() - interval '30 days')")
    world.sync()
    world.sql("DELETE FROM items WHERE id = 1")
    before = world.dataset()
    with pytest.raises(AgentError) as caught:
        world.sync()
    assert caught.value.code == "incremental.regressed"
    assert caught.value.hint
    assert world.dataset() == before


def test_a_full_run_replaces_everything_and_sees_deletions(world: World) -> None:
    insert(world, *range(1, 11))
    world.sync("full", watermark_column=None)
    world.sql("DELETE FROM items WHERE id <= 4")
    insert(world, 11)
    done = world.sync("full", watermark_column=None)
    assert done.rows_written == 7
    assert world.dataset() == world.source()


def test_a_source_that_lost_most_of_its_rows_is_held_back(world: World) -> None:
    insert(world, *range(1, 11))
    world.sync("full", watermark_column=None)
    world.sql("DELETE FROM items WHERE id > 2")
    files = {path.name for path in world.directory.glob("*.parquet")}
    with pytest.raises(AgentError) as caught:
        world.sync("full", watermark_column=None)
    assert caught.value.code == "lakehouse.shrink_held"
    assert sum(world.dataset().values()) == 10
    assert {path.name for path in world.directory.glob("*.parquet")} == files
    world.sync("full", watermark_column=None, max_shrink_ratio=0)
    assert world.dataset() == world.source()


def test_a_full_run_takes_another_schema(world: World) -> None:
    insert(world, 1)
    world.sync("full", watermark_column=None)
    world.sql("ALTER TABLE items ADD COLUMN note text, ALTER COLUMN price TYPE numeric(30,6)")
    world.sync("full", watermark_column=None)
    assert world.dataset() == world.source()
    assert "note" in _schema(world).names


def test_what_is_not_wanted_does_not_leave_the_source(world: World) -> None:
    insert(world, 1, value="canary-4711")
    world.sync("full", watermark_column=None, shape=Shape(exclude=("value",)))
    assert "value" not in _schema(world).names
    assert not any(b"canary-4711" in path.read_bytes() for path in world.directory.rglob("*") if path.is_file())


def test_no_watermark_column_is_a_clear_error(world: World) -> None:
    with pytest.raises(AgentError) as caught:
        world.sync(watermark_column=None)
    assert caught.value.code == "incremental.no_watermark"


ACTION = st.one_of(
    st.tuples(st.just("insert"), st.integers(1, 40)),
    st.tuples(st.just("update"), st.integers(1, 40)),
    st.tuples(st.just("late"), st.integers(41, 60)),
    st.tuples(st.just("commit late"), st.just(0)),
    st.tuples(st.just("sync"), st.sampled_from(["", "bounds", "read", "committed"])),
)


@settings(
    max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(ACTION, min_size=4, max_size=14), st.booleans())
def test_any_history_ends_equal(
    postgres_server: PostgresServer, postgres_database: PostgresDatabase, tmp_path: Path, actions: Any, keyed: bool
) -> None:
    """The oracle is the source itself. Without a key only insertions are played: an append cannot know an update."""
    postgres_database.execute("DROP TABLE IF EXISTS items")
    postgres_database.execute(TABLE)
    world = World(postgres_database, tmp_path)
    world.settings = {} if keyed else {"primary_key": ()}
    slow = psycopg.connect(postgres_database.dsn())
    try:
        for action, value in actions:
            if action == "insert":
                world.sql("INSERT INTO items VALUES (%s, 'i', 1, clock_timestamp()) ON CONFLICT DO NOTHING", value)
            elif action == "update" and keyed:
                world.sql("UPDATE items SET value = value || 'u', changed = clock_timestamp() WHERE id = %s", value)
            elif action == "late":
                slow.execute("INSERT INTO items VALUES (%s, 'l', 1, now()) ON CONFLICT DO NOTHING", (value,))
            elif action == "commit late":
                slow.commit()
            elif action == "sync":
                with suppress(Crash):
                    world.sync(crash=value)
        slow.commit()
        world.sync()
        world.sync()  # the first may have finished a window frozen before a crash
        assert world.dataset() == world.source()
    finally:
        slow.close()
        world.close()


def test_the_job_is_a_value(world: World) -> None:
    job = world.job()
    assert replace(job, mode="full").mode == "full"
