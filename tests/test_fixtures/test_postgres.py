"""The private PostgreSQL is what its docstring promises."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.fixtures.certificates import make_certificates
from tests.fixtures.postgres import PostgresDatabase, PostgresServer
from tests.fixtures.servers import wait_until


def test_a_database_of_ones_own(postgres_database: PostgresDatabase) -> None:
    postgres_database.execute("CREATE TABLE t (id int)")
    postgres_database.execute("INSERT INTO t VALUES (%s)", (1,))
    assert postgres_database.execute("SELECT * FROM t") == [(1,)]


def test_the_next_test_finds_its_database_empty(postgres_database: PostgresDatabase) -> None:
    assert postgres_database.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_roles(postgres_database: PostgresDatabase) -> None:
    with psycopg.connect(postgres_database.dsn("hf_rw")) as writer:
        writer.execute("CREATE TABLE t AS SELECT 1 AS id")
    with psycopg.connect(postgres_database.dsn("hf_ro")) as reader:
        assert reader.execute("SELECT id FROM t").fetchall() == [(1,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("INSERT INTO t VALUES (2)")
    with (
        psycopg.connect(postgres_database.dsn("hf_noaccess")) as stranger,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        stranger.execute("SELECT id FROM t")


def test_a_wrong_password_is_rejected(postgres_server: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_server.dsn(), password="wrong")


def test_pg_hba_rejects_one_role(postgres_server: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects connection"):
        psycopg.connect(postgres_server.dsn(user="hf_nohba"))


def test_tls_is_verified_against_the_servers_authority(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trusting = postgres_server.dsn(sslmode="verify-full", sslrootcert=str(postgres_server.ca_pem))
    with psycopg.connect(trusting) as connection:
        assert connection.pgconn.ssl_in_use
    stranger = make_certificates(tmp_path_factory.mktemp("tls")).ca
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(postgres_server.dsn(sslmode="verify-full", sslrootcert=str(stranger)))


def test_restart_breaks_sessions_and_keeps_data(postgres_database: PostgresDatabase) -> None:
    postgres_database.execute("CREATE TABLE t AS SELECT 7 AS id")
    with psycopg.connect(postgres_database.dsn(), autocommit=True) as old:
        postgres_database.server.restart("immediate")
        with pytest.raises(psycopg.OperationalError):
            old.execute("SELECT 1")
    assert postgres_database.execute("SELECT id FROM t") == [(7,)]


def test_a_stopped_server_refuses(postgres_server: PostgresServer) -> None:
    postgres_server.stop()
    try:
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(postgres_server.dsn())
    finally:
        postgres_server.start()
    assert postgres_server.execute("SELECT 1") == [(1,)]


def test_a_running_statement_is_found_and_can_be_frozen(postgres_database: PostgresDatabase) -> None:
    server = postgres_database.server
    with running(postgres_database, "SELECT pg_sleep(1), 'canary'") as finished:
        wait_until(lambda: bool(server.pids_running("%canary%")), "the statement runs")
        (pid,) = server.pids_running("%canary%")
        assert pid in server.pids_connected(postgres_database.name)
        server.suspend(pid)
        assert not finished.wait(1.3)
        assert server.execute("SELECT 1") == [(1,)], "the others are not frozen"
        server.resume()
        assert finished.wait(10)


def test_a_frozen_server_takes_connections_and_says_nothing(postgres_server: PostgresServer) -> None:
    postgres_server.suspend()
    try:
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(postgres_server.dsn(), connect_timeout=2)
    finally:
        postgres_server.resume()
    assert postgres_server.execute("SELECT 1") == [(1,)]


@contextmanager
def running(database: PostgresDatabase, statement: str) -> Iterator[threading.Event]:
    """Execute in a thread; the event is set when it is done."""
    finished = threading.Event()

    def execute() -> None:
        database.execute(statement)
        finished.set()

    thread = threading.Thread(target=execute)
    thread.start()
    try:
        yield finished
    finally:
        database.server.resume()
        thread.join()
