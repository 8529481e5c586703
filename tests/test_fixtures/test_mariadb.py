"""The private MariaDB is what its docstring promises."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pymysql
import pytest

from tests.fixtures.certificates import make_certificates
from tests.fixtures.mariadb import MariadbDatabase, MariadbServer
from tests.fixtures.servers import wait_until


def test_a_database_of_ones_own(mariadb_database: MariadbDatabase) -> None:
    mariadb_database.execute("CREATE TABLE t (id int, name varchar(20))")
    mariadb_database.execute("INSERT INTO t VALUES (%s, %s)", (1, "é漢🙂"))
    assert mariadb_database.execute("SELECT * FROM t") == [(1, "é漢🙂")]


def test_the_next_test_finds_its_database_empty(mariadb_database: MariadbDatabase) -> None:
    assert mariadb_database.execute("SHOW TABLES") == []


def test_users(mariadb_database: MariadbDatabase) -> None:
    with closing(mariadb_database.connect("hf_rw")) as writer, writer.cursor() as cursor:
        cursor.execute("CREATE TABLE t AS SELECT 1 AS id")
    with closing(mariadb_database.connect("hf_ro")) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT id FROM t")
        assert cursor.fetchall() == ((1,),)
        with pytest.raises(pymysql.err.OperationalError, match="1142"):
            cursor.execute("INSERT INTO t VALUES (2)")
    with pytest.raises(pymysql.err.OperationalError, match="1044"):
        mariadb_database.connect("hf_noaccess")
    mariadb_database.server.connect(user="hf_noaccess").close()


def test_a_wrong_password_is_rejected(mariadb_server: MariadbServer) -> None:
    with pytest.raises(pymysql.err.OperationalError, match="1045"):
        mariadb_server.connect(password="wrong")


def test_tls_is_verified_against_the_servers_authority(
    mariadb_server: MariadbServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trusting: dict[str, Any] = {
        "ssl_ca": str(mariadb_server.ca_pem),
        "ssl_verify_cert": True,
        "ssl_verify_identity": True,
    }
    with closing(mariadb_server.connect(**trusting)) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW STATUS LIKE 'Ssl_cipher'")
        row = cursor.fetchone()
        assert row is not None
        assert row[1]
    stranger = make_certificates(tmp_path_factory.mktemp("tls")).ca
    with pytest.raises(pymysql.err.OperationalError, match="certificate verify failed"):
        mariadb_server.connect(**{**trusting, "ssl_ca": str(stranger)})


@pytest.mark.parametrize("crash", [False, True])
def test_restart_breaks_sessions_and_keeps_data(mariadb_database: MariadbDatabase, crash: bool) -> None:
    mariadb_database.execute("CREATE TABLE t (id int)")
    mariadb_database.execute("INSERT INTO t VALUES (7)")
    with closing(mariadb_database.connect()) as old, old.cursor() as cursor:
        mariadb_database.server.restart(crash=crash)
        with pytest.raises(pymysql.err.OperationalError, match=r"2006|2013"):
            cursor.execute("SELECT 1")
    assert mariadb_database.execute("SELECT id FROM t") == [(7,)]


def test_a_killed_server_refuses(mariadb_server: MariadbServer) -> None:
    mariadb_server.kill()
    try:
        with pytest.raises(pymysql.err.OperationalError, match="refused"):
            mariadb_server.connect()
    finally:
        mariadb_server.start()
    assert mariadb_server.execute("SELECT 1") == [(1,)]


def test_a_running_statement_is_found_and_can_be_killed(mariadb_database: MariadbDatabase) -> None:
    server = mariadb_database.server
    outcome: list[int] = []

    def sleep() -> None:
        try:
            mariadb_database.execute("SELECT SLEEP(60) /* canary */")
        except pymysql.err.OperationalError as error:
            outcome.append(error.args[0])

    thread = threading.Thread(target=sleep)
    thread.start()
    wait_until(lambda: bool(server.processlist("%canary%")), "the statement runs")
    (session,) = server.processlist("%canary%")
    server.execute("KILL QUERY %s", (session,))
    thread.join(10)
    assert outcome == [1317]


def test_a_frozen_server_takes_connections_and_says_nothing(mariadb_server: MariadbServer) -> None:
    mariadb_server.suspend()
    try:
        with pytest.raises(pymysql.err.OperationalError, match="timed out"):
            mariadb_server.connect(connect_timeout=1, read_timeout=1)
    finally:
        mariadb_server.resume()
    assert mariadb_server.execute("SELECT 1") == [(1,)]


def test_a_lock_that_is_still_held_does_not_block_the_drop(mariadb_server: MariadbServer) -> None:
    mariadb_server.create_database("hf_locked")
    mariadb_server.execute("CREATE TABLE t (id int)", database="hf_locked")
    with closing(mariadb_server.connect("hf_locked", autocommit=False)) as forgotten, forgotten.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1)")
        mariadb_server.drop_database("hf_locked")
    assert mariadb_server.execute("SHOW DATABASES LIKE 'hf\\_locked'") == []
