"""Incremental reads of MariaDB, with both of its connector types: what a look tells, and which rows a window holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hfagent.connectors._mysql_session import Session
from hfagent.connectors._mysql_watermark import decimal_cast
from hfagent.connectors.mariadb import MariaDB
from hfagent.connectors.mysql import MySQL
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, NotFound, UserError
from hfagent.model.data_type import DataType
from hfagent.model.stream import Column, Stream
from hfagent.sdk.incremental import WatermarkFacts
from hfagent.sdk.reading import Bound, ReadRequest, SchemaRequest
from tests.connectors.mariadb_source import READER, MariadbSource
from tests.connectors.source import make
from tests.fixtures.mariadb import MariadbDatabase, run_server


@dataclass
class Bench:
    """A source, a connector with an open session, and what a test asks of them."""

    source: MariadbSource
    type: type[MySQL]
    connector: MySQL = field(init=False)
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        connector = make(self.type, self.source.config, self.source.namespace)
        assert isinstance(connector, MySQL)
        self.connector = connector
        self.session = connector.connect(Deadline(30))

    def stream(self, name: str) -> Stream:
        return next(s for s in self.connector.read_schema(self.session, SchemaRequest()) if s.name == name)

    def table(self, name: str, native: str, *literals: str, index: bool = True) -> Stream:
        """A table of `id` (1, 2, …) and `w`, with these values in `w`."""
        rows = [[str(number), literal] for number, literal in enumerate(literals, start=1)]
        self.source.create(name, {"id": "int PRIMARY KEY", "w": f"{native} NULL"}, rows)
        if index:
            self.source.execute(f"CREATE INDEX w ON {self.source.qualified(name)} (w)")
        return self.stream(name)

    def insert(self, name: str, number: int, literal: str) -> None:
        self.source.execute(f"INSERT INTO {self.source.qualified(name)} VALUES ({number}, {literal})")

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
        """A privilege counts from the next sign-in on."""
        self.source.server.execute(f"GRANT PROCESS ON *.* TO '{READER}'@'%'")
        self.connector.close(self.session)
        self.session = self.connector.connect(Deadline(30))


@pytest.fixture(params=[MariaDB, MySQL], ids=["mariadb", "mysql"])
def bench(request: pytest.FixtureRequest, mariadb_database: MariadbDatabase) -> Iterator[Bench]:
    made = Bench(MariadbSource(mariadb_database), request.param)
    yield made
    made.connector.close(made.session)
    mariadb_database.server.execute(f"REVOKE PROCESS ON *.* FROM '{READER}'@'%'")


@pytest.mark.parametrize("index", [True, False], ids=["index", "scan"])
@pytest.mark.parametrize(
    ("native", "literals", "kind", "highest", "lowered"),
    [
        (
            "datetime(6)",
            ("'2026-01-01 00:00:00.614999'", "'2025-01-01'"),
            "time",
            "2026-01-01 00:00:00.614999",
            "2025-12-31 23:50:00.614999",
        ),
        ("datetime", ("'2026-01-01 00:10:01'",), "time", "2026-01-01 00:10:01", "2026-01-01 00:00:01"),
        ("datetime", ("'0000-00-00'",), "time", "0000-00-00 00:00:00", "0000-00-00 00:00:00"),
        (
            "timestamp(6)",
            ("'2026-01-01 00:00:00.614999'",),
            "time",
            "2026-01-01 00:00:00.614999",
            "2025-12-31 23:50:00.614999",
        ),
        ("date", ("'2024-03-01'", "'2024-02-01'"), "date", "2024-03-01", "2024-02-29"),
        ("bigint", ("9007199254740993", "5"), "number", "9007199254740993", "9007199254730993"),
        ("bigint", ("-9223372036854775807",), "number", "-9223372036854775807", "-9223372036854775808"),
        ("bigint unsigned", ("18446744073709551615",), "number", "18446744073709551615", "18446744073709541615"),
        ("int unsigned", ("7",), "number", "7", "0"),
        ("smallint", ("7",), "number", "7", "-9993"),
        (
            "decimal(30,10)",
            ("12345678901234567890.0123456789", "1"),
            "number",
            "12345678901234567890.0123456789",
            "12345678901234557890.0123456789",
        ),
        ("decimal(65,0)", ("9" * 65,), "number", "9" * 65, "9" * 60 + "89999"),
    ],
)
def test_highest_and_lowered_are_exact(
    bench: Bench, native: str, literals: tuple[str, ...], kind: str, highest: str, lowered: str, index: bool
) -> None:
    stream = bench.table("t", native, *literals, "NULL", "NULL", index=index)
    facts = bench.facts(stream)
    assert (facts.watermark_class, facts.highest, facts.lowered) == (kind, highest, lowered)
    assert (facts.nulls, facts.future, facts.floor) == (2, 0, None)
    assert facts.column_type == str(stream.columns[1].type)
    # The texts mean in a bound what they mean in the column.
    assert bench.ids(stream, Bound("w", "=", facts.highest)) == [1]
    assert bench.ids(stream, Bound("w", "<=", facts.highest)) == list(range(1, len(literals) + 1))
    assert bench.window(stream, facts.lowered, facts.highest) == [1]


@pytest.mark.parametrize("lookback", [0, 3])
def test_a_given_lookback_counts(bench: Bench, lookback: int) -> None:
    expected = {
        "timestamp": ("'2026-01-01 00:00:10'", f"2026-01-01 00:00:{10 - lookback:02}"),
        "date": ("'2026-01-10'", f"2026-01-{10 - lookback:02}"),
        "int": ("100", str(100 - lookback)),
    }
    for native, (literal, lowered) in expected.items():
        assert bench.facts(bench.table(native, native, literal), lookback=lookback).lowered == lowered


def test_rows_of_the_boundary_are_read_again(bench: Bench) -> None:
    stream = bench.table("t", "datetime", "'2026-01-01 00:00:05'")
    high = bench.facts(stream).highest
    bench.insert("t", 2, "'2026-01-01 00:00:05'")
    assert bench.facts(stream).highest == high
    assert bench.window(stream, high, high) == [1, 2]


def test_microseconds_are_not_rounded(bench: Bench) -> None:
    for native in ("datetime(6)", "timestamp(6)"):
        stream = bench.table(native[:4], native, "'2026-01-01 00:00:00.614999'", "'2026-01-01 00:00:00.615'")
        assert bench.ids(stream, Bound("w", "<=", "2026-01-01 00:00:00.614999")) == [1]
        assert bench.ids(stream, Bound("w", ">", "2026-01-01 00:00:00.614999")) == [2]


def test_instants_come_in_utc(bench: Bench) -> None:
    stream = bench.table("t", "timestamp(6)")
    naive = bench.table("n", "datetime(6)")
    with closing(bench.source.server.connect(bench.source.namespace)) as writer, writer.cursor() as cursor:
        cursor.execute("SET time_zone = '+08:00'")
        for table in ("t", "n"):
            cursor.execute(f"INSERT INTO {table} VALUES (1, '2026-01-01 08:00:00.25')")
    assert bench.facts(stream).highest == "2026-01-01 00:00:00.250000"
    assert bench.facts(naive).highest == "2026-01-01 08:00:00.250000"
    assert bench.ids(stream, Bound("w", "=", "2026-01-01 00:00:00.250000")) == [1]
    assert bench.ids(naive, Bound("w", "=", "2026-01-01 08:00:00.250000")) == [1]


@pytest.mark.parametrize("index", [True, False], ids=["index", "scan"])
@pytest.mark.parametrize("native", ["datetime(6)", "timestamp", "date"])
def test_the_future_does_not_raise_the_highest(bench: Bench, native: str, index: bool) -> None:
    ahead = "'2099-01-01'" if native != "timestamp" else "'2037-12-31'"
    stream = bench.table("t", native, "'2020-05-05'", ahead, ahead, index=index)
    facts = bench.facts(stream)
    assert facts.highest is not None
    assert facts.highest.startswith("2020-05-05")
    assert facts.future == 2


def test_nulls_come_on_request_only(bench: Bench) -> None:
    stream = bench.table("t", "bigint", "1", "NULL", "5", "9")
    assert bench.window(stream, "2", "6") == [3]
    assert bench.window(stream, "2", "6", nulls_of="w") == [2, 3]
    window = (Bound("w", ">=", "2"), Bound("w", "<=", "6"))
    assert bench.ids(stream, *window, Bound("id", ">", 2), nulls_of="w") == [3]


def test_an_empty_stream_has_no_highest(bench: Bench) -> None:
    bench.see_everybody()
    for number, native in enumerate(("datetime(6)", "timestamp", "date", "bigint", "int unsigned", "decimal(9,2)")):
        for index in (True, False):
            stream = bench.table(f"t{number}{index}", native, index=index)
            facts = bench.facts(stream)
            assert (facts.highest, facts.lowered, facts.future, facts.nulls) == (None, None, 0, 0)
            bench.insert(stream.name, 1, "NULL")
            facts = bench.facts(stream)
            assert (facts.highest, facts.lowered, facts.future, facts.nulls) == (None, None, 0, 1)


def _moment(text: str | None) -> datetime:
    assert text is not None
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _late_commit(bench: Bench, native: str) -> None:
    bench.see_everybody()
    stream = bench.table("t", native, "UTC_TIMESTAMP(6)")
    bench.source.create("other", {"n": "int"})
    with closing(bench.source.server.connect(bench.source.namespace, autocommit=False)) as writer:
        with writer.cursor() as cursor:
            cursor.execute("SET time_zone = '+00:00'")
            cursor.execute("INSERT INTO other VALUES (1)")
            cursor.execute("SELECT UTC_TIMESTAMP(6)")
            ((started,),) = cursor.fetchall()
        bench.insert("t", 2, "UTC_TIMESTAMP(6)")
        facts = bench.facts(stream)
        # The server shows whole seconds.
        assert timedelta() <= started.replace(tzinfo=UTC) - _moment(facts.floor) < timedelta(seconds=30)
        assert _moment(facts.lowered) <= _moment(facts.floor) - timedelta(seconds=60)
        assert bench.window(stream, facts.lowered, facts.highest) == [1, 2]
        with writer.cursor() as cursor:
            cursor.execute("INSERT INTO t VALUES (99, %s)", (started,))
        writer.commit()
    again = bench.facts(stream)
    assert 99 in bench.window(stream, facts.lowered, again.highest)


@pytest.mark.parametrize("native", ["timestamp(6)", "datetime(6)"])
def test_a_late_commit_lies_above_the_next_bound(bench: Bench, native: str) -> None:
    _late_commit(bench, native)


def test_the_floor_does_not_depend_on_where_the_server_stands() -> None:
    with run_server() as server:
        server.stop()
        # It shows the start of a transaction as its machine's clock on the wall does.
        server.process._command = ["env", "TZ=Asia/Singapore", *server.process._command]
        server.start()
        assert server.execute("SELECT NOW() > UTC_TIMESTAMP() + INTERVAL 7 HOUR") == [(1,)]
        server.create_database("far")
        bench = Bench(MariadbSource(MariadbDatabase(server, "far")), MariaDB)
        _late_commit(bench, "timestamp(6)")
        bench.connector.close(bench.session)


def test_the_floor_is_the_present_when_nobody_writes(bench: Bench) -> None:
    bench.see_everybody()
    stream = bench.table("t", "timestamp", "'2026-01-01 00:10:00'")
    ((before,),) = bench.source.server.execute("SELECT UTC_TIMESTAMP(6)")
    with closing(bench.source.server.connect(bench.source.namespace, autocommit=False)) as reader:
        with reader.cursor() as cursor:  # who only reads holds nothing back
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
            cursor.execute("SELECT * FROM t")
        facts = bench.facts(stream)
    assert _moment(facts.floor) >= before.replace(tzinfo=UTC) - timedelta(seconds=2)
    assert facts.lowered == "2026-01-01 00:09:00"
    assert bench.facts(bench.table("n", "bigint", "5")).floor is None
    assert bench.facts(bench.table("d", "date", "'2026-01-01'")).floor is None


def test_without_the_privilege_there_is_no_floor(bench: Bench) -> None:
    stream = bench.table("t", "timestamp", "'2026-01-01 00:10:00'")
    facts = bench.facts(stream)
    assert facts.floor is None
    assert facts.lowered == "2026-01-01 00:00:00"


def test_a_server_that_takes_no_writes_shows_no_floor(bench: Bench) -> None:
    bench.see_everybody()
    stream = bench.table("t", "timestamp", "'2026-01-01 00:10:00'")
    assert bench.facts(stream).floor is not None
    bench.source.server.execute("SET GLOBAL read_only = 1")
    try:
        assert bench.facts(stream).floor is None
    finally:
        bench.source.server.execute("SET GLOBAL read_only = 0")


def test_the_source_is_the_server(bench: Bench) -> None:
    stream = bench.table("t", "bigint", "1")
    told = dict(bench.source.server.execute("SHOW VARIABLES LIKE 'server_u%id'"))
    assert told
    assert bench.facts(stream).source_id in told.values()


def test_a_look_is_two_statements(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.see_everybody()
    stream = bench.table("t", "timestamp", "'2026-01-01 00:10:00'")
    asked: list[Any] = []
    execute = Session._execute_command

    def counted(self: Session, command: int, sql: Any) -> None:
        asked.append(sql)
        execute(self, command, sql)

    monkeypatch.setattr(Session, "_execute_command", counted)
    bench.facts(stream)
    assert len(asked) == 2
    assert bench.session.pristine
    assert bench.session.usable
    assert not bench.session.in_transaction


@pytest.mark.parametrize(
    "native", ["json", "varchar(10)", "text", "tinyint(1)", "blob", "double", "float", "uuid", "time", "year", "bit(8)"]
)
def test_types_without_a_reliable_order_are_refused(bench: Bench, native: str) -> None:
    stream = bench.table("t", native, "NULL", index=False)
    with pytest.raises(UserError) as caught:
        bench.facts(stream)
    assert caught.value.code == "incremental.no_watermark"
    assert "DATETIME" in (caught.value.hint or "")
    assert "'w'" in str(caught.value)


def test_a_column_that_is_not_there(bench: Bench) -> None:
    stream = bench.table("t", "bigint", "1")
    with pytest.raises(NotFound) as caught:
        bench.facts(stream, "nope")
    assert caught.value.code == "column.not_found"
    assert bench.facts(stream).highest == "1"


@pytest.mark.parametrize(
    "name", ["a`; DROP TABLE victim; --", 'a"b; drop', "100%s %(x)s %d", "it's # --", "w) -- SELECT"]
)
def test_names_are_only_names(bench: Bench, name: str) -> None:
    bench.source.create("victim", {"n": "int"}, [["1"]])
    bench.source.create(name, {"id": "int", name: "datetime NULL"}, [["1", "'2026-01-01'"], ["2", "NULL"]])
    stream = bench.stream(name)
    facts = bench.facts(stream, name)
    assert (facts.highest, facts.nulls) == ("2026-01-01 00:00:00", 1)
    window = (Bound(name, ">=", facts.lowered), Bound(name, "<=", facts.highest))
    assert bench.ids(stream, *window) == [1]
    assert bench.ids(stream, *window, nulls_of=name) == [1, 2]
    assert bench.source.server.execute(f"SELECT n FROM {bench.source.qualified('victim')}") == [(1,)]


@pytest.mark.parametrize(
    ("native", "value", "low", "high"),
    [
        ("bigint", "seq", "500", "510"),
        ("int unsigned", "seq", "500", "510"),
        ("decimal(30,10)", "seq", "500.5", "510"),
        ("date", "'2000-01-01' + INTERVAL seq DAY", "2000-03-01", "2000-03-05"),
        ("datetime(6)", "'2026-01-01' + INTERVAL seq SECOND", "2026-01-01 00:00:05.5", "2026-01-01 00:00:08"),
        ("datetime", "'2026-01-01' + INTERVAL seq SECOND", "2026-01-01 00:00:05.5", "2026-01-01 00:00:08"),
        ("timestamp(6)", "'2026-01-01' + INTERVAL seq SECOND", "2026-01-01 00:00:05.5", "2026-01-01 00:00:08"),
    ],
)
@pytest.mark.parametrize("with_nulls", [False, True])
def test_a_window_is_read_through_the_index(
    bench: Bench, native: str, value: str, low: str, high: str, with_nulls: bool
) -> None:
    table = bench.source.qualified("t")
    bench.source.create("t", {"id": "int", "w": f"{native} NULL", "more": "varchar(200)"})
    bench.source.execute(f"INSERT INTO {table} SELECT seq, {value}, REPEAT('x', 100) FROM seq_1_to_5000")
    bench.source.execute(f"CREATE INDEX by_w ON {table} (w)")
    request = ReadRequest(bounds=(Bound("w", ">=", low), Bound("w", "<=", high)), nulls_of="w" if with_nulls else None)
    sql, params = bench.connector.select(bench.stream("t"), request)
    ((_, _, _, access, _, key, *_),) = bench.source.server.execute(f"EXPLAIN {sql}", params)
    assert (access, key) == ("range", "by_w")


def test_bounds_do_not_round(bench: Bench) -> None:
    assert bench.ids(bench.table("n", "int", "2", "3"), Bound("w", ">", 2.5)) == [2]
    assert bench.ids(bench.table("d", "decimal(10,0)", "1", "2"), Bound("w", ">", "1.5")) == [2]
    assert bench.ids(bench.table("s", "datetime", "'2026-01-01'"), Bound("w", "<", "2026-01-01 00:00:00.4")) == [1]


@pytest.mark.parametrize(
    ("precision", "scale", "cast"),
    [(10, 0, "DECIMAL(65, 30)"), (65, 0, "DECIMAL(65, 0)"), (65, 30, "DECIMAL(65, 30)"), (50, 5, "DECIMAL(65, 20)")],
)
def test_a_bound_has_room_for_every_value_of_its_column(precision: int, scale: int, cast: str) -> None:
    assert decimal_cast(Column(name="w", type=DataType.decimal(precision, scale))) == cast


def test_a_missing_right_is_explained_and_the_session_stays(bench: Bench) -> None:
    stream = bench.table("t", "bigint", "1")
    bench.source.server.execute(f"REVOKE SELECT ON {bench.source.pattern}.* FROM '{READER}'@'%'")
    with pytest.raises(AgentError) as caught:
        bench.facts(stream)
    assert caught.value.code == "permission.denied"
    assert "GRANT SELECT ON" in (caught.value.hint or "")
    assert bench.connector.reset(bench.session)
    assert bench.connector.is_alive(bench.session, 5)


def test_a_look_keeps_its_limits(bench: Bench) -> None:
    stream = bench.table("t", "bigint", "1")
    with closing(bench.source.server.connect(bench.source.namespace)) as blocker, blocker.cursor() as cursor:
        cursor.execute("LOCK TABLES t WRITE")
        with pytest.raises(AgentError) as caught:
            bench.connector.watermark_facts(bench.session, stream, "w", cancel=CancelToken(), deadline=Deadline(0.3))
        assert caught.value.code.startswith("timeout.")
    cancelled = CancelToken()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        bench.connector.watermark_facts(bench.session, stream, "w", cancel=cancelled, deadline=Deadline(5))
    assert bench.connector.reset(bench.session)
    assert bench.facts(stream).highest == "1"


def test_indexed_and_scanned_looks_agree(bench: Bench) -> None:
    stream = bench.table("t", "datetime(6)", "'2020-01-01'", "NULL", "'2099-01-01'", "'2021-01-01 00:00:00.000001'")
    assert bench.facts(stream) == bench.facts(stream.model_copy(update={"indexes": ()}))
