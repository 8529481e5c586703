"""PostgreSQL against a real server: the conformance suite, and what only this type has."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, ConfigError
from hfagent.model.stream import Stream
from hfagent.sdk.probe import Probe
from hfagent.sdk.reading import Bound, ReadRequest, SchemaRequest, Statement
from hfagent.sdk.registry import Registry
from tests.connectors.conformance import ConnectorConformance, drain, read_all, run_test
from tests.connectors.source import Broken, Source, TypeCase, make
from tests.fixtures.certificates import make_certificates
from tests.fixtures.postgres import PostgresDatabase, PostgresServer
from tests.fixtures.servers import wait_until

UTC = dt.UTC


class PostgresSource(Source):
    """The schema `hf data` of a fresh database, read with an account made for it."""

    namespace = "hf data"

    def __init__(self, database: PostgresDatabase) -> None:
        self.database = database
        self.server = database.server
        self.account = f"reader_{uuid4().hex[:8]}"
        self.execute(f"CREATE ROLE {self.account} LOGIN PASSWORD 'p@ss word/1'")
        self.execute('CREATE SCHEMA "hf data"')
        self.execute(f'GRANT USAGE ON SCHEMA "hf data" TO {self.account}')
        self.execute(f'ALTER DEFAULT PRIVILEGES IN SCHEMA "hf data" GRANT SELECT ON TABLES TO {self.account}')
        self.config = {
            "host": self.server.host, "port": self.server.port, "database": database.name, "username": self.account,
            "password": "p@ss word/1", "sslmode": "verify-full", "sslrootcert": self.server.ca_pem.read_text(),
            "pool_size": 2, "max_overflow": 2,
        }  # fmt: skip

    def execute(self, statement: str) -> None:
        self.database.execute(statement)

    def ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.database.execute(statement, parameters)

    def create(self, name: str, columns: Mapping[str, str], rows: Sequence[Sequence[str]] = ()) -> None:
        listed = ", ".join(f"{self.quote(column)} {native}" for column, native in columns.items())
        self.execute(f"CREATE TABLE {self.qualified(name)} ({listed})")
        for row in rows:
            self.execute(f"INSERT INTO {self.qualified(name)} VALUES ({', '.join(row)})")

    def create_rows(self, name: str, count: int) -> None:
        self.execute(
            f"CREATE TABLE {self.qualified(name)} AS SELECT g::bigint AS id, repeat(md5(g::text), 5) AS text "
            f"FROM generate_series(1, {count}) g"
        )

    def contents(self) -> Any:
        tables = self.ask("SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema = 'hf data' ORDER BY 1, 2")
        digests = []
        for schema, name in tables:
            text = f'SELECT md5(string_agg(t::text, \'|\' ORDER BY t::text)) FROM "{schema}".{self.quote(name)} t'
            digests.append((schema, name, self.database.execute(text)[0][0]))
        definitions = self.ask(
            "SELECT n.nspname, c.relname, c.relkind, c.relowner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname !~ '^pg_(toast|temp)' ORDER BY 1, 2"
        )
        roles = self.ask("SELECT rolname, rolsuper, rolcanlogin FROM pg_roles ORDER BY 1")
        functions = self.ask("SELECT count(*), max(oid::bigint) FROM pg_proc")
        databases = self.ask("SELECT count(*) FROM pg_database WHERE datname LIKE 'hf_written%%'")
        settings = self.ask("SELECT setdatabase, setrole, setconfig::text FROM pg_db_role_setting WHERE setrole = %s::regrole", self.account)
        return digests, definitions, roles, functions, databases, settings

    def sessions(self) -> int:
        return int(self.ask("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", self.account)[0][0])

    def running(self, marker: str) -> int:
        text = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND usename = %s AND query LIKE %s"
        return int(self.ask(text, self.account, f"%{marker}%")[0][0])

    def kill_sessions(self) -> None:
        self.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", self.account)

    def restart(self) -> None:
        self.server.restart()

    def drop(self) -> None:
        self.server.resume()
        if not self.server.process.running:
            self.server.start()
        self.execute(f"DROP OWNED BY {self.account} CASCADE")
        self.execute(f"DROP ROLE {self.account}")


@pytest.fixture
def postgres_source(postgres_database: PostgresDatabase) -> Iterator[PostgresSource]:
    source = PostgresSource(postgres_database)
    yield source
    source.drop()


class TestPostgreSQL(ConnectorConformance):
    type_name = "postgresql"
    slow_statement = "SELECT '{marker}', pg_sleep(600)"
    endless_statement = "SELECT g, '{marker}' AS marker, repeat('x', 100) AS text "
    # In the select list, not after FROM: there the server would collect all rows before it sends the first.
    endless_statement += "FROM (SELECT generate_series(1, 1000000000000) AS g) s"

    writes = (
        "INSERT INTO {victim} VALUES (3, 'three')",
        "INSERT INTO {victim} SELECT * FROM {victim}",
        "UPDATE {victim} SET t = 'changed'",
        "DELETE FROM {victim}",
        "TRUNCATE {victim}",
        "DROP TABLE {victim}",
        "ALTER TABLE {victim} ADD COLUMN more int",
        "CREATE TABLE hf_written (n int)",
        "CREATE TEMP TABLE hf_written (n int)",
        "CREATE TABLE hf_written AS SELECT 1",
        "SELECT * INTO hf_written FROM {victim}",
        "SELECT n INTO TEMP hf_written FROM {victim}",
        "WITH gone AS (DELETE FROM {victim} RETURNING *) SELECT * FROM gone",
        "WITH made AS (INSERT INTO {victim} VALUES (3, 'x') RETURNING *) SELECT * FROM made",
        "WITH a AS (SELECT 1) UPDATE {victim} SET t = 'changed'",
        "EXPLAIN ANALYZE DELETE FROM {victim}",
        "EXPLAIN (ANALYZE true) UPDATE {victim} SET t = 'x'",
        "EXPLAIN ANALYZE CREATE TABLE hf_written AS SELECT 1",
        "SELECT 1; DELETE FROM {victim}",
        "SELECT 1 /* ; */ ; DROP TABLE {victim} --",
        "COPY {victim} FROM PROGRAM 'echo 3'",
        "COPY {victim} TO PROGRAM 'cat > /tmp/hf_written'",
        "COPY (SELECT 1) TO '/tmp/hf_written'",
        "SET default_transaction_read_only = off",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "BEGIN READ WRITE",
        "COMMIT; DELETE FROM {victim}; BEGIN",
        "DO $$ BEGIN DELETE FROM {victim}; END $$",
        "CALL nothing()",
        "GRANT ALL ON {victim} TO PUBLIC",
        "REVOKE ALL ON {victim} FROM PUBLIC",
        "CREATE ROLE hf_written",
        "ALTER USER CURRENT_USER SET default_transaction_read_only = off",
        "CREATE FUNCTION hf_written() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE VIEW hf_written AS SELECT 1",
        "VACUUM {victim}",
        "LOCK TABLE {victim} IN ACCESS EXCLUSIVE MODE",
        "SELECT * FROM {victim} FOR UPDATE",
        "PREPARE p AS DELETE FROM {victim}",
        "EXECUTE p",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "LISTEN channel",
        "NOTIFY channel",
        "REINDEX TABLE {victim}",
        "COMMENT ON TABLE {victim} IS 'changed'",
        "MERGE INTO {victim} USING (SELECT 1 AS n) s ON false WHEN NOT MATCHED THEN INSERT VALUES (3, 'x')",
        "SELECT set_config('default_transaction_read_only', 'off', false)",
        "SELECT lo_create(0)",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT nextval('no_sequence')",
        "CREATE DATABASE hf_written",
    )

    dirt = {
        "open transaction": ("BEGIN",),
        "failed transaction": ("BEGIN", "SELECT 1/(SELECT 0)"),
        "serializable transaction": ("BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",),
        "read-write session": ("SET default_transaction_read_only = off",),
        "session characteristics": ("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",),
        "search_path": ("SET search_path = pg_catalog",),
        "time zone": ("SET TIME ZONE 'America/New_York'",),
        "date style": ("SET DateStyle = 'German'",),
        "interval style": ("SET IntervalStyle = 'postgres'",),
        "bytea output": ("SET bytea_output = 'escape'",),
        "statement timeout": ("SET statement_timeout = 1",),
        "lock timeout": ("SET lock_timeout = 1",),
        "extra_float_digits": ("SET extra_float_digits = -15",),
        "work_mem": ("SET work_mem = '64kB'",),
        "custom setting": ("SET my.secret = 'x'",),
        "temporary table": ("SET default_transaction_read_only = off", "CREATE TEMP TABLE left_behind (n int)"),
        "prepared statement": ("PREPARE left_behind AS SELECT 1",),
        "cursor with hold": ("DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1",),
        "session lock": ("SELECT pg_advisory_lock(4711)",),
        "listening": ("LISTEN left_behind",),
        "set_config": ("SELECT set_config('work_mem', '128kB', false)",),
        "sequence cache": ("SET default_transaction_read_only = off", "CREATE TEMP SEQUENCE s", "SELECT nextval('s')"),
        "parallel settings": ("SET max_parallel_workers_per_gather = 0", "SET enable_seqscan = off"),
    }

    @pytest.fixture
    def source(self, postgres_source: PostgresSource) -> PostgresSource:
        return postgres_source

    def make_unreadable(self, source: Source, name: str) -> None:
        assert isinstance(source, PostgresSource)
        source.execute(f"REVOKE ALL ON {source.qualified(name)} FROM {source.account}")

    def make_broken_view(self, source: Source, name: str) -> None:
        # PostgreSQL does not let go of a table that a view needs; what a function needs it does not know.
        schema = source.quote(str(source.namespace))
        source.create("doomed", {"n": "integer"}, [["1"]])
        body = f"BEGIN RETURN (SELECT n FROM {source.qualified('doomed')}); END"
        source.execute(f"CREATE FUNCTION {schema}.look() RETURNS integer LANGUAGE plpgsql AS '{body}'")
        source.execute(f"CREATE VIEW {source.qualified(name)} AS SELECT {schema}.look() AS n")
        source.execute(f"DROP TABLE {source.qualified('doomed')}")

    def run_raw(self, connection: Any, statement: str) -> None:
        connection.touched = True
        try:
            connection.connection.autocommit = True
            connection.connection.execute(statement)
        except psycopg.Error:
            pass

    def session_state(self, connection: Any) -> Any:
        from hfagent.connectors._postgres_session import Limits

        def rows(text: str) -> list[tuple[Any, ...]]:
            return connection.rows(text, None, Limits.of(10))  # type: ignore[no-any-return]

        return (
            connection.idle,
            rows("SELECT name, setting FROM pg_settings WHERE name NOT IN ('transaction_isolation') ORDER BY name"),
            rows("SELECT current_setting('my.secret', true) IS NOT DISTINCT FROM '' OR current_setting('my.secret', true) IS NULL"),
            rows("SELECT name FROM pg_prepared_statements WHERE name <> ''"),
            rows("SELECT name FROM pg_cursors WHERE name <> ''"),
            rows("SELECT pg_listening_channels()"),
            rows("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"),
            rows("SELECT relname FROM pg_class WHERE relpersistence = 't' AND pg_table_is_visible(oid)"),
        )

    @contextmanager
    def broken(self, case: str, source: Source, request: pytest.FixtureRequest) -> Iterator[Broken]:
        assert isinstance(source, PostgresSource)
        config = source.config
        if case == "untrusted_certificate":
            other = make_certificates(request.getfixturevalue("tmp_path"))
            yield Broken(config | {"sslrootcert": other.ca.read_text()}, "tls", "tls.untrusted")
        elif case == "wrong_host_name":
            resolve = socket.getaddrinfo
            request.getfixturevalue("monkeypatch").setattr(
                socket, "getaddrinfo", lambda host, *a, **k: resolve("127.0.0.1" if host == "other.test" else host, *a, **k)
            )
            yield Broken(config | {"host": "other.test"}, "tls", "tls.hostname_mismatch")
        elif case == "no_grants":
            source.create("closed", {"n": "integer"})
            source.execute(f"REVOKE ALL ON {source.qualified('closed')} FROM {source.account}")
            yield Broken(config, "permission", "permission.read_missing", output_schemas=(str(source.namespace),))
        elif case == "too_many_connections":
            source.execute(f"ALTER ROLE {source.account} CONNECTION LIMIT 1")
            with psycopg.connect(dsn_of(source)):
                yield Broken(config, "capacity", "capacity.too_many_connections")
            source.execute(f"ALTER ROLE {source.account} CONNECTION LIMIT -1")
        else:
            with super().broken(case, source, request) as broken:
                yield broken

    def type_cases(self) -> tuple[TypeCase, ...]:
        return TYPES


def dsn_of(source: PostgresSource) -> str:
    config = source.config
    return psycopg.conninfo.make_conninfo(
        host=config["host"], port=config["port"], dbname=config["database"], user=config["username"], password=config["password"]
    )


D = Decimal

TYPES: tuple[TypeCase, ...] = (
    TypeCase("boolean", "bool", {"true": True, "false": False}),
    TypeCase("smallint", "int16", {"-32768": -32768, "32767": 32767, "0": 0}),
    TypeCase("integer", "int32", {"-2147483648": -2147483648, "2147483647": 2147483647}),
    TypeCase("bigint", "int64", {"-9223372036854775808": -(2**63), "9223372036854775807": 2**63 - 1}),
    TypeCase("oid", "int64", {"4294967295": 2**32 - 1}),
    TypeCase("real", "float32", {"'1.5'": 1.5, "'Infinity'": float("inf"), "'NaN'": float("nan"), "'-0'": -0.0}),
    TypeCase(
        "double precision", "float64",
        {"'0.1'": 0.1, "'1.7976931348623157e308'": 1.7976931348623157e308, "'5e-324'": 5e-324, "'-Infinity'": float("-inf"),
         "'NaN'": float("nan"), "'-0'": -0.0},
    ),
    TypeCase("numeric", "bigdecimal", {"'NaN'": "NaN", "'1e-40'": "0." + "0" * 39 + "1", "'-Infinity'": "-Infinity", "1.50": "1.50"}),
    TypeCase("numeric(10,2)", "decimal(10,2)", {"12345678.90": D("12345678.90"), "-0.01": D("-0.01"), "0": D("0.00")}),
    TypeCase("numeric(38,0)", "decimal(38,0)", {"9" * 38: D("9" * 38), "-" + "9" * 38: D("-" + "9" * 38)}),
    TypeCase("numeric(76,30)", "decimal(76,30)", {"9" * 46 + "." + "9" * 30: D("9" * 46 + "." + "9" * 30), "-1": D("-1." + "0" * 30)}),
    TypeCase("numeric(100,5)", "bigdecimal", {"1" * 95 + ".12345": "1" * 95 + ".12345"}),
    TypeCase("money", "string", {"'12.34'": "$12.34"}),
    TypeCase(
        "text", "string",
        {"''": "", "'NULL'": "NULL", r"E'\\N'": r"\N", r"E'\\.'": r"\.", r"E'a\nb\r\n\t\"q\",,'": 'a\nb\r\n\t"q",,', "'你😀'": "你😀",
         "' pad '": " pad ", "repeat('x', 100000)": "x" * 100000},
    ),
    TypeCase("varchar(5)", "string", {"'abc'": "abc", "''": ""}),
    TypeCase("char(5)", "string", {"'abc'": "abc  "}),
    TypeCase('"char"', "string", {"'x'": "x"}),
    TypeCase("name", "string", {"'a name'": "a name"}),
    TypeCase("bytea", "bytes", {r"'\x00ff5c'": b"\x00\xff\\", "''": b"", r"'\x'": b""}),
    TypeCase("date", "date", {"'0001-01-01'": dt.date(1, 1, 1), "'9999-12-31'": dt.date(9999, 12, 31), "'1969-12-31'": dt.date(1969, 12, 31)}),
    TypeCase("time", "time", {"'00:00'": dt.time(0), "'23:59:59.999999'": dt.time(23, 59, 59, 999999)}),
    TypeCase("timetz", "string", {"'12:00:00.5+02'": "12:00:00.5+02"}),
    TypeCase(
        "timestamp", "timestamp",
        {"'0001-01-01'": dt.datetime(1, 1, 1), "'9999-12-31 23:59:59.999999'": dt.datetime(9999, 12, 31, 23, 59, 59, 999999),
         "'2024-02-29 01:02:03.45'": dt.datetime(2024, 2, 29, 1, 2, 3, 450000)},
    ),
    TypeCase("timestamp(0)", "timestamp", {"'2024-02-29 01:02:03'": dt.datetime(2024, 2, 29, 1, 2, 3)}),
    TypeCase(
        "timestamptz", "timestamptz",
        {"'2024-10-27 02:30:00+02'": dt.datetime(2024, 10, 27, 0, 30, tzinfo=UTC), "'0001-01-01 00:00+00'": dt.datetime(1, 1, 1, tzinfo=UTC),
         "'9999-12-31 23:59:59.999999+00'": dt.datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)},
    ),
    TypeCase("interval", "interval", {"'1 year 2 mons 3 days 04:05:06.789'": "P1Y2M3DT4H5M6.789S", "'-1 day'": "P-1D", "'0'": "PT0S"}),
    TypeCase("uuid", "uuid", {"'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}),
    TypeCase("json", "json", {"""'{"a" :  1.0e5, "a": "é"}'""": '{"a" :  1.0e5, "a": "é"}', "'null'": "null"}),
    TypeCase("jsonb", "json", {"'[1, {\"k\": null}]'": '[1, {"k": null}]', "'9007199254740993'": "9007199254740993"}),
    TypeCase("xml", "string", {"'<a>x</a>'": "<a>x</a>"}),
    TypeCase("inet", "string", {"'10.0.0.1/8'": "10.0.0.1/8", "'::1'": "::1"}),
    TypeCase("macaddr", "string", {"'08:00:2b:01:02:03'": "08:00:2b:01:02:03"}),
    TypeCase("bit(3)", "string", {"B'101'": "101"}),
    TypeCase("bit varying", "string", {"B'1'": "1"}),
    TypeCase("tsvector", "string", {"'a b'": "'a' 'b'"}),
    TypeCase("point", "string", {"'(1,2)'": "(1,2)"}),
    TypeCase("int4range", "struct", {"'[1,10)'": '{"lower": "1", "upper": "10", "bounds": "[)", "empty": false}',
                                     "'empty'": '{"lower": null, "upper": null, "bounds": "()", "empty": true}'}),
    TypeCase("tstzrange", "struct", {"'[2024-01-01 00:00+00,)'": '{"lower": "2024-01-01 00:00:00+00", "upper": null, "bounds": "[)", "empty": false}'}),
    TypeCase("integer[]", "array<int32>", {"'{}'": [], "'{1,NULL,-3}'": [1, None, -3], "'[0:1]={5,6}'": [5, 6]}),
    TypeCase("text[]", "array<string>", {"""ARRAY['a,b', 'q"q', 'NULL', '', NULL, E'back\\\\slash', '{x}']""":
                                         ["a,b", 'q"q', "NULL", "", None, "back\\slash", "{x}"]}),
    TypeCase("numeric(5,1)[]", "array<decimal(5,1)>", {"'{1.5,NULL}'": [D("1.5"), None]}),
    TypeCase("timestamptz[]", "array<timestamptz>", {"""'{"2024-01-01 00:00+00"}'""": [dt.datetime(2024, 1, 1, tzinfo=UTC)]}),
    TypeCase("boolean[]", "array<bool>", {"'{t,f,NULL}'": [True, False, None]}),
    TypeCase("bytea[]", "array<bytes>", {r"""ARRAY['\x00ff'::bytea, ''::bytea]""": [b"\x00\xff", b""]}),
    TypeCase("jsonb[]", "array<json>", {"""ARRAY['{"a": 1}'::jsonb]""": ['{"a": 1}']}),
    TypeCase("date[]", "array<date>", {"'{2024-02-29}'": [dt.date(2024, 2, 29)]}),
    TypeCase("uuid[]", "array<uuid>", {"'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]}),
    TypeCase("double precision[]", "array<float64>", {"'{1.5,Infinity}'": [1.5, float("inf")]}),
)  # fmt: skip
