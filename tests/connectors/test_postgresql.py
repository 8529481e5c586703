"""PostgreSQL against a real server: the conformance suite, and what only this type has."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import psycopg
import pytest

from tests.connectors.conformance import ConnectorConformance
from tests.connectors.postgres_source import TYPES, PostgresSource, dsn_of
from tests.connectors.source import Broken, Source, TypeCase
from tests.fixtures.certificates import make_certificates
from tests.fixtures.postgres import PostgresDatabase


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

    dirt: ClassVar[Mapping[str, tuple[str, ...]]] = {
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
            rows(
                "SELECT current_setting('my.secret', true) IS NOT DISTINCT FROM '' OR current_setting('my.secret', true) IS NULL"
            ),
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
                socket,
                "getaddrinfo",
                lambda host, *a, **k: resolve("127.0.0.1" if host == "other.test" else host, *a, **k),
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
