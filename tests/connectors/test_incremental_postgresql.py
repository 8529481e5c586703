"""Incremental reads of PostgreSQL, against a real server: what a look tells, and which rows a window holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from hfagent.connectors._postgres_session import Session
from hfagent.connectors.postgresql import PostgreSQL
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, NotFound, UserError
from hfagent.model.stream import Stream
from hfagent.sdk.incremental import WatermarkFacts
from hfagent.sdk.reading import Bound, ReadRequest, SchemaRequest
from tests.connectors.postgres_source import PostgresSource
from tests.connectors.source import make
from tests.fixtures.postgres import PostgresDatabase


@dataclass
class Bench:
    """A source, a connector with an open session, and what a test asks of them."""

    source: PostgresSource
    connector: PostgreSQL = field(init=False)
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        connector = make(PostgreSQL, self.source.config)
        assert isinstance(connector, PostgreSQL)
        self.connector = connector
        self.session = connector.connect(Deadline(30))

    def stream(self, name: str) -> Stream:
        return next(s for s in self.connector.read_schema(self.session, SchemaRequest()) if s.name == name)

    def table(self, name: str, native: str, *literals: str, index: bool = True) -> Stream:
        """A table of `id` (1, 2, …) and `w`, with these values in `w`."""
        self.source.create(name, {"id": "int PRIMARY KEY", "w": native})
        self.insert(name, *literals)
        if index:
            self.source.execute(f"CREATE INDEX ON {self.source.qualified(name)} (w)")
        return self.stream(name)

    def insert(self, name: str, *literals: str) -> None:
        table = self.source.qualified(name)
        for literal in literals:
            self.source.execute(f"INSERT INTO {table} SELECT coalesce(max(id), 0) + 1, {literal} FROM {table}")

    def facts(self, stream: Stream, column: str = "w", lookback: int | None = None) -> WatermarkFacts:
        return self.connector.watermark_facts(
            self.session, stream, column, lookback=lookback, cancel=CancelToken(), deadline=Deadline(30)
        )

    def ids(self, stream: Stream, *bounds: Bound, **more: Any) -> list[int]:
        request = ReadRequest(columns=("id",), bounds=bounds, order_by=("id",), **more)
        with self.connector.read_rows(self.session, stream, request) as reader:
            return [value for batch in reader for value in batch.column(0).to_pylist()]

    def window(self, stream: Stream, low: str | None, high: str | None, **more: Any) -> list[int]:
        assert low is not None
        assert high is not None
        return self.ids(stream, Bound("w", ">=", low), Bound("w", "<=", high), **more)

    def see_everybody(self) -> None:
        self.source.execute(f"GRANT pg_read_all_stats TO {self.source.account}")

    def plan(self, stream: Stream, request: ReadRequest) -> str:
        sql, params = self.connector.select(stream, request)
        text = self.session.bound(sql, params).decode()
        with psycopg.connect(self.source.database.dsn()) as connection:
            lines = connection.execute(f"EXPLAIN {text}".encode()).fetchall()
        return "\n".join(line for (line,) in lines)


@pytest.fixture
def bench(postgres_database: PostgresDatabase) -> Iterator[Bench]:
    source = PostgresSource(postgres_database)
    made = Bench(source)
    yield made
    made.connector.close(made.session)
    source.drop()


@pytest.mark.parametrize("index", [True, False], ids=["index", "scan"])
@pytest.mark.parametrize(
    ("native", "literals", "kind", "highest", "lowered"),
    [
        (
            "timestamptz",
            ("'2026-01-01 02:00:00.614999+02'", "'2026-01-01 00:00:00.614998+00'"),
            "time",
            "2026-01-01 00:00:00.614999+00",
            "2025-12-31 23:50:00.614999+00",
        ),
        (
            "timestamp",
            ("'2026-01-01 00:00:00.614999'", "'2025-01-01'"),
            "time",
            "2026-01-01 00:00:00.614999",
            "2025-12-31 23:50:00.614999",
        ),
        ("timestamp(0)", ("'2026-01-01 00:10:01'",), "time", "2026-01-01 00:10:01", "2026-01-01 00:00:01"),
        ("date", ("'2024-03-01'", "'2024-02-01'"), "date", "2024-03-01", "2024-02-29"),
        ("bigint", ("9007199254740993", "5"), "number", "9007199254740993", "9007199254730993"),
        ("bigint", ("-9223372036854775807",), "number", "-9223372036854775807", "-9223372036854775808"),
        ("smallint", ("7",), "number", "7", "-9993"),
        (
            "numeric(30,10)",
            ("12345678901234567890.0123456789", "1"),
            "number",
            "12345678901234567890.0123456789",
            "12345678901234557890.0123456789",
        ),
        ("numeric", ("1.5", "'NaN'", "'Infinity'"), "number", "1.5", "-9998.5"),
        ("text", ("'a'", "'Z'", "'é'"), "text", "é", "é"),
        ("varchar(5)", ("'b'", "'C'"), "text", "b", "b"),
    ],
)
def test_highest_and_lowered_are_exact(
    bench: Bench, native: str, literals: tuple[str, ...], kind: str, highest: str, lowered: str, index: bool
) -> None:
    stream = bench.table("t", native, *literals, "NULL", "NULL", index=index)
    facts = bench.facts(stream)
    assert (facts.watermark_class, facts.highest, facts.lowered) == (kind, highest, lowered)
    assert facts.nulls == 2
    assert facts.future == (2 if "'NaN'" in literals else 0)
    assert facts.column_type == str(stream.columns[1].type)
    assert facts.floor is None
    # The texts mean in a bound what they mean in the column.
    assert bench.ids(stream, Bound("w", "=", facts.highest))
    assert bench.ids(stream, Bound("w", ">=", facts.highest), Bound("w", "<=", facts.highest))
    wanted = [n for n, text in enumerate(literals, start=1) if text not in ("'NaN'", "'Infinity'")]
    inside = bench.window(stream, facts.lowered, facts.highest)
    assert set(inside) <= set(wanted)
    assert bench.ids(stream, Bound("w", "<=", facts.highest)) == wanted


@pytest.mark.parametrize("lookback", [0, 3])
def test_a_given_lookback_counts(bench: Bench, lookback: int) -> None:
    expected = {
        "timestamptz": ("'2026-01-01 00:00:10+00'", f"2026-01-01 00:00:{10 - lookback:02}+00"),
        "date": ("'2026-01-10'", f"2026-01-{10 - lookback:02}"),
        "integer": ("100", str(100 - lookback)),
    }
    for number, (native, (literal, lowered)) in enumerate(expected.items()):
        assert bench.facts(bench.table(f"t{number}", native, literal), lookback=lookback).lowered == lowered


def test_rows_of_the_boundary_are_read_again(bench: Bench) -> None:
    stream = bench.table("t", "timestamptz", "'2026-01-01 00:00:00.5+00'")
    high = bench.facts(stream).highest
    bench.insert("t", "'2026-01-01 00:00:00.5+00'")
    assert bench.facts(stream).highest == high
    assert bench.window(stream, high, high) == [1, 2]


def test_microseconds_are_not_rounded(bench: Bench) -> None:
    stream = bench.table("t", "timestamptz", "'2026-01-01 00:00:00.614999+00'", "'2026-01-01 00:00:00.615000+00'")
    first = "2026-01-01 00:00:00.614999+00"
    assert bench.ids(stream, Bound("w", "<=", first)) == [1]
    assert bench.ids(stream, Bound("w", ">", first)) == [2]


def test_the_look_does_not_depend_on_the_session(bench: Bench) -> None:
    stream = bench.table("t", "timestamptz", "'2026-01-01 00:00:00.25+00'", "'2025-12-31 23:00:00+00'")
    naive = bench.table("n", "timestamp", "'2026-01-01 00:00:00.25'")
    ours = bench.facts(stream), bench.facts(naive)
    bench.session.connection.pgconn.exec_(b"SET TimeZone = 'Asia/Singapore'")
    bench.session.connection.pgconn.exec_(b"SET DateStyle = 'German'")
    assert (bench.facts(stream), bench.facts(naive)) == ours
    assert bench.window(stream, ours[0].highest, ours[0].highest) == [1]
    assert bench.window(naive, ours[1].highest, ours[1].highest) == [1]


@pytest.mark.parametrize("index", [True, False], ids=["index", "scan"])
@pytest.mark.parametrize("native", ["timestamptz", "timestamp", "date"])
def test_the_future_does_not_raise_the_highest(bench: Bench, native: str, index: bool) -> None:
    stream = bench.table("t", native, "'2020-05-05'", "'2099-01-01'", "'infinity'", index=index)
    facts = bench.facts(stream)
    assert facts.highest is not None
    assert facts.highest.startswith("2020-05-05")
    assert facts.future == 2


def test_a_time_two_seconds_ahead_is_the_present(bench: Bench) -> None:
    stream = bench.table("t", "timestamptz", "clock_timestamp() + interval '1 second'", "now() + interval '1 hour'")
    assert bench.facts(stream).future == 1


def test_nulls_come_on_request_only(bench: Bench) -> None:
    stream = bench.table("t", "bigint", "1", "NULL", "5", "9")
    assert bench.window(stream, "2", "6") == [3]
    assert bench.window(stream, "2", "6", nulls_of="w") == [2, 3]
    # Bounds of other columns hold for them as well.
    window = (Bound("w", ">=", "2"), Bound("w", "<=", "6"))
    assert bench.ids(stream, *window, Bound("id", ">", 2), nulls_of="w") == [3]
    assert bench.ids(stream, nulls_of="w") == [1, 2, 3, 4]
    with pytest.raises(NotFound) as caught:
        bench.ids(stream, nulls_of="nope")
    assert caught.value.code == "column.not_found"


def test_an_empty_stream_has_no_highest(bench: Bench) -> None:
    bench.see_everybody()
    for number, native in enumerate(("timestamptz", "timestamp", "date", "bigint", "numeric", "text")):
        for index in (True, False):
            stream = bench.table(f"t{number}{index}", native, index=index)
            for literals in ((), ("NULL",)):
                bench.insert(stream.name, *literals)
                facts = bench.facts(stream)
                assert (facts.highest, facts.lowered, facts.future) == (None, None, 0)
                assert facts.nulls == len(literals)


def _instant(bench: Bench, text: str | None, native: str = "timestamptz") -> Any:
    assert text is not None
    ((value,),) = bench.source.ask(f"SELECT %s::{native}", text)
    return value


@pytest.mark.parametrize("native", ["timestamptz", "timestamp"])
def test_a_late_commit_lies_above_the_next_bound(bench: Bench, native: str) -> None:
    bench.see_everybody()
    stream = bench.table("t", native, "now() AT TIME ZONE 'UTC'" if native == "timestamp" else "now()")
    table = bench.source.qualified("t")
    with psycopg.connect(bench.source.database.dsn(options="-c TimeZone=UTC")) as writer:
        ((started,),) = writer.execute(f"SELECT now()::{native}").fetchall()  # it wrote nothing yet
        bench.insert("t", "clock_timestamp() AT TIME ZONE 'UTC'" if native == "timestamp" else "clock_timestamp()")
        facts = bench.facts(stream)
        assert _instant(bench, facts.floor, native) == started
        assert facts.highest is not None
        assert _instant(bench, facts.highest, native) > started
        assert _instant(bench, facts.lowered, native) <= started
        assert bench.window(stream, facts.lowered, facts.highest) == [1, 2]
        writer.execute(f"INSERT INTO {table} VALUES (99, now())".encode())
        writer.commit()
    again = bench.facts(stream)
    assert 99 in bench.window(stream, facts.lowered, again.highest)


def test_the_floor_is_the_present_when_nobody_writes(bench: Bench) -> None:
    bench.see_everybody()
    stream = bench.table("t", "timestamptz", "'2026-01-01 00:10:00+00'")
    before = bench.source.ask("SELECT clock_timestamp()")[0][0]
    facts = bench.facts(stream)
    assert _instant(bench, facts.floor) >= before
    assert facts.lowered == "2026-01-01 00:09:00+00"
    # Only times that a transaction stamped are held back by open transactions.
    assert bench.facts(bench.table("n", "bigint", "5")).floor is None
    assert bench.facts(bench.table("d", "date", "'2026-01-01'")).floor is None


def test_without_the_right_to_see_others_there_is_no_floor(bench: Bench) -> None:
    stream = bench.table("t", "timestamptz", "'2026-01-01 00:10:00+00'")
    with psycopg.connect(bench.source.database.dsn()) as writer:
        writer.execute("SELECT 1")
        facts = bench.facts(stream)
    assert facts.floor is None
    assert facts.lowered == "2026-01-01 00:00:00+00"


def test_the_source_is_the_server_and_the_database(bench: Bench) -> None:
    stream = bench.table("t", "bigint", "1")
    ((system, database),) = bench.source.ask(
        "SELECT (SELECT system_identifier FROM pg_control_system()), oid FROM pg_database WHERE datname = current_database()"
    )
    assert bench.facts(stream).source_id == f"{system}/{database}"
    bench.source.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    facts = bench.facts(stream)
    server = bench.source.server
    assert facts.source_id == f"{server.host}:{server.port}/{database}"
    assert facts.highest == "1"


def test_a_look_is_one_round_trip(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = bench.table("t", "timestamptz", "now()")
    trips: list[int] = []
    send = Session.send

    def counted(self: Session, statements: Any, **more: Any) -> None:
        trips.append(len(statements))
        send(self, statements, **more)

    monkeypatch.setattr(Session, "send", counted)
    bench.facts(stream)
    assert len(trips) == 1
    assert bench.session.idle
    assert not bench.session.touched


@pytest.mark.parametrize(
    "native", ["json", "jsonb", "boolean", "bytea", "bigint[]", "double precision", "real", "uuid", "interval", "oid"]
)
def test_types_without_a_reliable_order_are_refused(bench: Bench, native: str) -> None:
    stream = bench.table("t", native, "NULL", index=False)
    with pytest.raises(UserError) as caught:
        bench.facts(stream)
    assert caught.value.code == "incremental.no_watermark"
    assert "timestamptz" in (caught.value.hint or "")
    assert "'w'" in str(caught.value)


def test_a_column_that_is_not_there(bench: Bench) -> None:
    stream = bench.table("t", "bigint", "1")
    with pytest.raises(NotFound) as caught:
        bench.facts(stream, "nope")
    assert caught.value.code == "column.not_found"
    assert bench.facts(stream).highest == "1"


@pytest.mark.parametrize("name", ['a"; DROP TABLE victim; --', "100%s %(x)s %", "it's", "w) FROM victim; --"])
def test_names_are_only_names(bench: Bench, name: str) -> None:
    bench.source.create("victim", {"n": "int"}, [["1"]])
    bench.source.create(name, {"id": "int", name: "timestamptz"}, [["1", "'2026-01-01+00'"], ["2", "NULL"]])
    stream = bench.stream(name)
    facts = bench.facts(stream, name)
    assert (facts.highest, facts.nulls) == ("2026-01-01 00:00:00+00", 1)
    window = (Bound(name, ">=", facts.lowered), Bound(name, "<=", facts.highest))
    assert bench.ids(stream, *window) == [1]
    assert bench.ids(stream, *window, nulls_of=name) == [1, 2]
    # A type's name comes from the catalogue, or from a file somebody changed: it never becomes SQL.
    forged = stream.columns[1].model_copy(update={"native_type": "timestamptz); DROP TABLE victim; --"})
    changed = stream.model_copy(update={"columns": (stream.columns[0], forged)})
    with pytest.raises(UserError):
        bench.facts(changed, name)
    assert bench.ids(changed, *window) == [1]
    assert bench.source.ask("SELECT n FROM " + bench.source.qualified("victim")) == [(1,)]


@pytest.mark.parametrize(
    ("native", "value", "low", "high"),
    [
        ("bigint", "g", "500", "510"),
        ("integer", "g", "500", "510"),
        ("numeric(30,10)", "g", "500.5", "510"),
        ("date", "date '2000-01-01' + g", "2000-03-01", "2000-03-05"),
        ("timestamp(3)", "timestamp '2026-01-01' + g * interval '1 s'", "2026-01-01 00:00:05", "2026-01-01 00:00:08.5"),
        (
            "timestamptz",
            "timestamptz '2026-01-01+00' + g * interval '1 s'",
            "2026-01-01 00:00:05.5+00",
            "2026-01-01 00:00:08+00",
        ),
    ],
)
@pytest.mark.parametrize("with_nulls", [False, True])
def test_a_window_is_read_through_the_index(
    bench: Bench, native: str, value: str, low: str, high: str, with_nulls: bool
) -> None:
    table = bench.source.qualified("t")
    bench.source.execute(
        f"CREATE TABLE {table} AS SELECT g AS id, ({value})::{native} AS w FROM generate_series(1, 20000) g"
    )
    bench.source.execute(f"CREATE INDEX ON {table} (w)")
    bench.source.execute(f"ANALYZE {table}")
    stream = bench.stream("t")
    request = ReadRequest(bounds=(Bound("w", ">=", low), Bound("w", "<=", high)), nulls_of="w" if with_nulls else None)
    plan = bench.plan(stream, request)
    assert "Index Cond: ((w >= " in plan
    assert "Seq Scan" not in plan


def test_bounds_do_not_round(bench: Bench) -> None:
    whole = bench.table("n", "integer", "2", "3")
    assert bench.ids(whole, Bound("w", ">", 2.5)) == [2]
    assert bench.ids(whole, Bound("w", "<", 10**15)) == [1, 2]
    assert bench.ids(bench.table("d", "numeric(10,0)", "1", "2"), Bound("w", ">", "1.5")) == [2]
    assert bench.ids(bench.table("s", "timestamp(0)", "'2026-01-01'"), Bound("w", "<", "2026-01-01 00:00:00.4")) == [1]


def test_text_is_compared_and_ordered_by_its_bytes(bench: Bench) -> None:
    source = bench.source
    source.execute("CREATE COLLATION \"hf data\".german (provider = icu, locale = 'de')")
    source.execute(f'CREATE TABLE {source.qualified("t")} (id int, w text COLLATE "hf data".german)')
    bench.insert("t", "'a'", "'B'", "'c'")
    stream = bench.stream("t")
    assert bench.facts(stream).highest == "c"
    assert bench.ids(stream, Bound("w", "<", "a")) == [2]
    with bench.connector.read_rows(bench.session, stream, ReadRequest(columns=("w",), order_by=("w",))) as reader:
        assert [value for batch in reader for value in batch.column(0).to_pylist()] == ["B", "a", "c"]


def test_a_missing_right_is_explained_and_the_session_stays(bench: Bench) -> None:
    stream = bench.table("t", "bigint", "1")
    bench.source.execute(f"REVOKE SELECT ON {bench.source.qualified('t')} FROM {bench.source.account}")
    with pytest.raises(AgentError) as caught:
        bench.facts(stream)
    assert caught.value.code == "permission.denied"
    assert "GRANT SELECT ON" in (caught.value.hint or "")
    assert bench.connector.reset(bench.session)
    assert bench.connector.is_alive(bench.session, 5)


def test_a_look_keeps_its_limits(bench: Bench) -> None:
    stream = bench.table("t", "bigint", "1")
    with psycopg.connect(bench.source.database.dsn()) as blocker:
        blocker.execute(f"LOCK TABLE {bench.source.qualified('t')} IN ACCESS EXCLUSIVE MODE".encode())
        with pytest.raises(AgentError) as caught:
            bench.connector.watermark_facts(bench.session, stream, "w", cancel=CancelToken(), deadline=Deadline(0.3))
        assert caught.value.code.startswith("timeout.")
    assert bench.facts(stream).highest == "1"
    cancelled = CancelToken()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        bench.connector.watermark_facts(bench.session, stream, "w", cancel=cancelled, deadline=Deadline(5))


def test_indexed_and_scanned_looks_agree(bench: Bench) -> None:
    stream = bench.table("t", "timestamptz", "'2020-01-01'", "NULL", "'2099-01-01'", "'2021-01-01 00:00:00.000001'")
    assert bench.facts(stream) == bench.facts(stream.model_copy(update={"indexes": ()}))
