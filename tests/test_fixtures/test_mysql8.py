"""The double of MySQL 8 logs in as MySQL 8 does, and answers what a connector asks."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from contextlib import closing
from datetime import datetime
from decimal import Decimal

import pymysql
import pytest
from pymysql.constants import CLIENT

from tests.fixtures.mysql8 import Mysql8Database, Mysql8Server
from tests.fixtures.servers import wait_until


def test_greets_as_mysql_8(mysql8_server: Mysql8Server) -> None:
    assert str(mysql8_server.execute("SELECT VERSION()")[0][0]).startswith("8.0.")
    with closing(mysql8_server.connect()) as connection:
        assert connection._auth_plugin_name == "caching_sha2_password"  # type: ignore[attr-defined]


@pytest.mark.parametrize("ssl_disabled", [True, False], ids=["rsa", "tls"])
@pytest.mark.parametrize("user", ["hf", "hf_ro"])
def test_full_authentication(mysql8_database: Mysql8Database, ssl_disabled: bool, user: str) -> None:
    with closing(mysql8_database.connect(user, ssl_disabled=ssl_disabled)) as connection:
        assert connection.server_public_key is None or ssl_disabled
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == ((1,),)


@pytest.mark.parametrize("ssl_disabled", [True, False], ids=["rsa", "tls"])
@pytest.mark.parametrize(
    "wrong", [{"password": "wrong"}, {"password": ""}, {"user": "nobody", "password": "x"}], ids=str
)
def test_a_wrong_login_is_rejected(mysql8_server: Mysql8Server, ssl_disabled: bool, wrong: dict[str, str]) -> None:
    arguments: dict[str, str] = {"user": "hf", **wrong}
    with pytest.raises(pymysql.err.OperationalError, match=r"1045.*Access denied for user"):
        pymysql.connect(
            host=mysql8_server.host,
            port=mysql8_server.port,
            user=arguments["user"],
            password=arguments["password"],
            ssl_disabled=ssl_disabled,
        )


def test_a_tls_hello_that_comes_early_is_not_lost(mysql8_server: Mysql8Server) -> None:
    with socket.create_connection((mysql8_server.host, mysql8_server.port), timeout=10) as client:
        client.recv(4096)  # the greeting
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(mysql8_server.ca_pem))
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        capabilities = CLIENT.PROTOCOL_41 | CLIENT.SSL | CLIENT.SECURE_CONNECTION
        request = struct.pack("<IIB23x", capabilities, 2**24, 45)
        client.sendall(struct.pack("<I", len(request) | 1 << 24) + request + outgoing.read())
        incoming.write(client.recv(65536))
        tls.do_handshake()


def test_tls_is_verified(mysql8_server: Mysql8Server) -> None:
    mysql8_server.connect(ssl_ca=str(mysql8_server.ca_pem), ssl_verify_identity=True).close()


def test_types_survive(mysql8_database: Mysql8Database) -> None:
    mysql8_database.execute("CREATE TABLE t (id INT, n DECIMAL(10,2), s VARCHAR(20), ts DATETIME)")
    mysql8_database.execute("INSERT INTO t VALUES (1, 1.50, 'é', '2026-01-01 10:00:00'), (2, NULL, NULL, NULL)")
    assert mysql8_database.execute("SELECT * FROM t ORDER BY id") == [
        (1, Decimal("1.50"), "é", datetime(2026, 1, 1, 10)),
        (2, None, None, None),
    ]
    assert mysql8_database.execute("SELECT id FROM t WHERE s = %s", ("é",)) == [(1,)]


def test_tables_are_listed(mysql8_database: Mysql8Database) -> None:
    mysql8_database.execute("CREATE TABLE t (id INT, n DECIMAL(10,2))")
    assert mysql8_database.execute("SHOW TABLES") == [("t",)]
    columns = mysql8_database.execute(
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = %s ORDER BY 1",
        (mysql8_database.name,),
    )
    assert columns == [("id", "int"), ("n", "decimal(10,2)")]


def test_errors_carry_mysqls_numbers(mysql8_database: Mysql8Database) -> None:
    mysql8_database.execute("CREATE TABLE t (id INT PRIMARY KEY)")
    mysql8_database.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(pymysql.err.ProgrammingError, match="1146"):
        mysql8_database.execute("SELECT * FROM nope")
    with pytest.raises(pymysql.err.MySQLError, match="1054"):
        mysql8_database.execute("SELECT nope FROM t")
    with pytest.raises(pymysql.err.IntegrityError, match="1062"):
        mysql8_database.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(pymysql.err.MySQLError, match="1049"):
        mysql8_database.server.execute("USE nope")
    with closing(mysql8_database.connect("hf_ro")) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT * FROM t")
        with pytest.raises(pymysql.err.OperationalError, match="1142"):
            cursor.execute("INSERT INTO t VALUES (2)")


def test_a_statement_can_be_killed(mysql8_database: Mysql8Database) -> None:
    outcome: list[BaseException] = []
    with closing(mysql8_database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        ((session,),) = cursor.fetchall()

        def sleep() -> None:
            try:
                cursor.execute("SELECT SLEEP(60)")
            except pymysql.err.MySQLError as error:
                outcome.append(error)

        thread = threading.Thread(target=sleep)
        thread.start()
        # Until it lands, because the statement may not have begun: KILL QUERY of an idle session does nothing.
        wait_until(lambda: bool(mysql8_database.server.execute(f"KILL QUERY {session}") or outcome), "the kill lands")
        thread.join(10)
        assert outcome[0].args[0] == 1317
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == ((1,),), "the session lives on"


def test_restart_keeps_data(mysql8_database: Mysql8Database) -> None:
    mysql8_database.execute("CREATE TABLE t (id INT)")
    mysql8_database.server.restart()
    assert mysql8_database.execute("SELECT * FROM t") == []
