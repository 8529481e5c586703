"""MariaDB as the conformance suite's source, and the hooks that its two connector types (`mariadb`, `mysql`) share."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar
from unittest import mock
from zoneinfo import ZoneInfo

import pymysql
import pytest

from tests.connectors.conformance import WEIRD_NAMES, ConnectorConformance
from tests.connectors.source import Broken, Source, TypeCase
from tests.fixtures.certificates import make_certificates
from tests.fixtures.mariadb import MariadbDatabase, MariadbServer

READER = "hf_ro"


class MariadbSource(Source):
    """One database of the private server; the connector signs in as `hf_ro`.

    No default database: a session keeps its rights in that one even when they are revoked.
    """

    def __init__(self, database: MariadbDatabase) -> None:
        self.server: MariadbServer = database.server
        self.namespace: str = database.name
        self.config = {
            "host": self.server.host,
            "port": self.server.port,
            "username": READER,
            "password": self.server.passwords[READER],
        }

    @property
    def pattern(self) -> str:
        """The database as GRANT names it, where an underscore is a wildcard."""
        return "`" + self.namespace.replace("_", r"\_") + "`"

    def quote(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    def create(self, name: str, columns: Mapping[str, str], rows: Sequence[Sequence[str]] = ()) -> None:
        declared = ", ".join(f"{self.quote(column)} {native}" for column, native in columns.items())
        statements = [f"CREATE TABLE {self.qualified(name)} ({declared})"]
        if rows:
            values = ", ".join(f"({', '.join(row)})" for row in rows)
            statements.append(f"INSERT INTO {self.qualified(name)} VALUES {values}")
        self._run(*statements)

    def create_rows(self, name: str, count: int) -> None:
        self._run(
            f"CREATE TABLE {self.qualified(name)} (id int PRIMARY KEY, text varchar(200)) ENGINE=MyISAM",
            f"INSERT INTO {self.qualified(name)} SELECT seq, RPAD(seq, 150, 'lorem ipsum ') FROM seq_1_to_{count}",
        )

    def contents(self) -> Any:
        rows = self.server.execute
        tables = [name for (name,) in rows("SHOW TABLES", database=self.namespace)]
        told = {name: self._table(name) for name in tables}
        accounts = rows("SELECT user, host, authentication_string, is_role FROM mysql.user ORDER BY 1, 2")
        grants = rows(
            "SELECT grantee, table_schema, privilege_type FROM information_schema.SCHEMA_PRIVILEGES ORDER BY 1, 2, 3"
        )
        settings = rows("SELECT @@global.general_log, @@global.max_connections, @@global.sql_mode, @@global.read_only")
        routines = rows(
            "SELECT routine_name FROM information_schema.ROUTINES WHERE routine_schema = %s", (self.namespace,)
        )
        return told, rows("SHOW DATABASES"), accounts, grants, settings, routines

    def _table(self, name: str) -> Any:
        definition = self.server.execute(f"SHOW CREATE TABLE {self.qualified(name)}")
        try:
            return definition, self.server.execute(f"SELECT * FROM {self.qualified(name)}")
        except pymysql.err.MySQLError as error:  # a view on something that is gone
            return definition, error.args

    def execute(self, statement: str) -> None:
        self._run(statement)

    def sessions(self) -> int:
        return len(self._sessions())

    def running(self, marker: str) -> int:
        return len(
            self.server.execute(
                "SELECT id FROM information_schema.processlist WHERE user = %s AND info LIKE %s",
                (READER, f"%{marker}%"),
            )
        )

    def kill_sessions(self) -> None:
        for session in self._sessions():
            try:
                self.server.execute("KILL CONNECTION %s", (session,))
            except pymysql.err.OperationalError as error:
                if error.args[0] != 1094:  # it ended between the two statements
                    raise

    def restart(self) -> None:
        self.server.restart(crash=True)

    def _sessions(self) -> list[int]:
        found = self.server.execute("SELECT id FROM information_schema.processlist WHERE user = %s", (READER,))
        return [session for (session,) in found]

    def _run(self, *statements: str) -> None:
        with closing(self.server.connect(self.namespace)) as connection, connection.cursor() as cursor:
            cursor.execute("SET sql_mode = ''")  # zero dates are wanted
            for statement in statements:
                cursor.execute(statement)


class MariadbConformance(ConnectorConformance):
    """What both types bring: they talk to the same server."""

    # MariaDB's identifiers are of the basic plane and do not end in a space.
    weird_names = tuple(name for name in WEIRD_NAMES if not name.endswith(" ") and max(map(ord, name)) < 0x10000)
    text_type = "varchar(200)"
    integer_type = "int"
    unsupported: ClassVar[Mapping[str, str]] = {"zero_columns": "a table without columns does not exist in this system"}
    slow_statement = "SELECT SLEEP(300) AS slept, '{marker}' AS marker"
    endless_statement = (
        "SELECT a.COLUMN_NAME AS one, b.COLUMN_NAME AS two, c.ORDINAL_POSITION AS three, '{marker}' AS marker "
        "FROM information_schema.COLUMNS a, information_schema.COLUMNS b, information_schema.COLUMNS c"
    )
    _hides_unreadable = True

    writes = (
        "INSERT INTO {victim} VALUES (3, 'three')",
        "INSERT IGNORE INTO {victim} SELECT * FROM {victim}",
        "REPLACE INTO {victim} VALUES (1, 'x')",
        "UPDATE {victim} SET t = 'x'",
        "DELETE FROM {victim}",
        "TRUNCATE TABLE {victim}",
        "DROP TABLE {victim}",
        "ALTER TABLE {victim} ADD COLUMN x int",
        "RENAME TABLE {victim} TO `{namespace}`.moved",
        "CREATE TABLE `{namespace}`.other (n int)",
        "CREATE TABLE `{namespace}`.other AS SELECT * FROM {victim}",
        "CREATE OR REPLACE TABLE {victim} (n int)",
        "CREATE VIEW `{namespace}`.seen AS SELECT 1 AS n",
        "CREATE INDEX i ON {victim} (n)",
        "CREATE DATABASE hf_other",
        "CREATE PROCEDURE `{namespace}`.p() SELECT 1",
        "CREATE FUNCTION `{namespace}`.f() RETURNS int RETURN 1",
        "CREATE TRIGGER `{namespace}`.t BEFORE INSERT ON {victim} FOR EACH ROW SET NEW.n = 1",
        "CREATE SEQUENCE `{namespace}`.s",
        "CREATE USER hf_intruder",
        "GRANT ALL ON *.* TO hf_ro",
        "SET PASSWORD = PASSWORD('other')",
        "SET GLOBAL max_connections = 17",
        "SET SESSION tx_read_only = 0",
        "SELECT * FROM {victim} FOR UPDATE",
        "SELECT 1 INTO OUTFILE '/tmp/hfagent-must-not-exist'",
        "SELECT 1 INTO @x",
        "LOAD DATA INFILE '/etc/hostname' INTO TABLE {victim}",
        "LOAD DATA LOCAL INFILE '/etc/hostname' INTO TABLE {victim}",
        "SELECT 1; DROP TABLE {victim}",
        "SELECT 1; DELETE FROM {victim}; SELECT 2",
        "EXPLAIN DELETE FROM {victim}; DROP TABLE {victim}",
        "ANALYZE FORMAT=JSON DELETE FROM {victim}",
        "/*! DROP TABLE {victim} */",
        "/*M!100000 DELETE FROM {victim} */",
        "SELECT 1 /*!, 2 FROM {victim} INTO OUTFILE '/tmp/hfagent-must-not-exist' */",
        "CALL `{namespace}`.p()",
        "DO RELEASE_ALL_LOCKS()",
        "LOCK TABLES {victim} WRITE",
        "FLUSH TABLES",
        "KILL 1",
        "BEGIN NOT ATOMIC DELETE FROM {victim}; END",
        "EXECUTE IMMEDIATE 'DROP TABLE {victim}'",
        "PREPARE p FROM 'DROP TABLE {victim}'",
        "HANDLER {victim} OPEN",
        "START TRANSACTION READ WRITE",
        "DELETE FROM {victim} RETURNING n",
        "WITH x AS (SELECT 1) DELETE FROM {victim}",
    )

    dirt: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "session variable": ("SET SESSION sort_buffer_size = 123456",),
        "sql_mode": ("SET SESSION sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'",),
        "time zone": ("SET SESSION time_zone = '+05:00'",),
        "writable": ("SET SESSION tx_read_only = 0",),
        "charset": ("SET NAMES latin1",),
        "user variable": ("SET @dirt = 1",),
        "row limit": ("SET SESSION sql_select_limit = 1",),
        "autocommit": ("SET autocommit = 0",),
        "transaction": ("START TRANSACTION", "SELECT * FROM {victim}"),
        "snapshot": ("START TRANSACTION WITH CONSISTENT SNAPSHOT",),
        "named lock": ("SELECT GET_LOCK('hf_dirt', 0)",),
        "prepared statement": ("PREPARE hf_dirt FROM 'SELECT 1'",),
        "temporary table": ("SET SESSION tx_read_only = 0", "CREATE TEMPORARY TABLE {victim} (shadow int)"),
        "handler": ("HANDLER {victim} OPEN AS hf_handler",),
        "table lock": ("LOCK TABLES {victim} READ",),
        "other database": ("USE information_schema",),
        "last id": ("SELECT LAST_INSERT_ID(7)",),
        "time limit": ("SET SESSION max_statement_time = 0.5",),
    }

    @pytest.fixture
    def source(self, mariadb_database: MariadbDatabase) -> Iterator[MariadbSource]:
        made = MariadbSource(mariadb_database)
        made.execute(f"GRANT CREATE TEMPORARY TABLES, LOCK TABLES ON {made.pattern}.* TO '{READER}'@'%'")
        yield made

    def run_raw(self, connection: Any, statement: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    def session_state(self, connection: Any) -> Any:
        def ask(statement: str) -> Any:
            try:
                with connection.cursor() as cursor:
                    cursor.execute(statement)
                    return cursor.fetchall()
            except pymysql.err.MySQLError as error:
                return error.args[0]

        ((namespace,),) = ask("SELECT TABLE_SCHEMA FROM information_schema.TABLES WHERE TABLE_NAME = 'victim'")
        return [
            ask(
                "SELECT @@sort_buffer_size, @@sql_mode, @@time_zone, @@tx_read_only, @@character_set_client, "
                "@@character_set_results, @@collation_connection, @dirt, @@sql_select_limit, @@autocommit, @@in_transaction, "
                "IS_USED_LOCK('hf_dirt') IS NOT NULL, DATABASE(), LAST_INSERT_ID(), @@max_statement_time, @@tx_isolation"
            ),
            ask("EXECUTE hf_dirt"),
            ask(f"SELECT * FROM `{namespace}`.victim"),
            ask("HANDLER hf_handler READ FIRST"),
        ]

    def make_unreadable(self, source: Source, name: str) -> None:
        assert isinstance(source, MariadbSource)
        source.execute(f"REVOKE ALL ON {source.pattern}.* FROM '{READER}'@'%'")
        for (table,) in source.server.execute("SHOW TABLES", database=source.namespace):
            if table != name:
                source.execute(f"GRANT SELECT ON {source.qualified(table)} TO '{READER}'@'%'")

    def make_broken_view(self, source: Source, name: str) -> None:
        source.execute(f"CREATE TABLE {source.qualified('ground')} (n int)")
        source.execute(f"CREATE VIEW {source.qualified(name)} AS SELECT n FROM {source.qualified('ground')}")
        source.execute(f"DROP TABLE {source.qualified('ground')}")

    @contextmanager
    def broken(self, case: str, source: Source, request: pytest.FixtureRequest) -> Iterator[Broken]:
        assert isinstance(source, MariadbSource)
        config, server = source.config, source.server
        authority = server.ca_pem.read_text()
        if case == "untrusted_certificate":
            stranger = make_certificates(request.getfixturevalue("tmp_path")).ca.read_text()
            yield Broken(config | {"ssl_mode": "verify_identity", "ssl_ca": stranger}, "tls", "tls.untrusted")
        elif case == "wrong_host_name":
            with resolving("db.example.com", server.host):
                changes = {"host": "db.example.com", "ssl_mode": "verify_identity", "ssl_ca": authority}
                yield Broken(config | changes, "tls", "tls.hostname_mismatch")
        elif case == "missing_database":
            # To an account without global rights the server only says that it may not (1044).
            admin = {"username": server.superuser, "password": server.password, "database": "no_such_database"}
            yield Broken(config | admin, "namespace", "namespace.not_found")
        elif case == "no_grants":
            account = {"username": "hf_noaccess", "password": server.passwords["hf_noaccess"]}
            yield Broken(config | account, "permission", "permission.read_missing")
        elif case == "too_many_connections":
            server.execute(f"ALTER USER '{READER}'@'%' WITH MAX_USER_CONNECTIONS 1")
            try:
                with closing(server.connect(user=READER)):
                    yield Broken(config, "capacity", "capacity.too_many_connections")
            finally:
                server.execute(f"ALTER USER '{READER}'@'%' WITH MAX_USER_CONNECTIONS 0")
        else:
            with super().broken(case, source, request) as broken:
                yield broken

    def type_cases(self) -> tuple[TypeCase, ...]:
        return TYPE_CASES


@contextmanager
def resolving(name: str, address: str) -> Iterator[None]:
    """Have this process resolve `name` to `address`."""
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> Any:
        return real(address if host in (name, name.encode()) else host, *args, **options)

    with mock.patch.object(socket, "getaddrinfo", resolve):
        yield


_UTC = ZoneInfo("UTC")

TYPE_CASES: tuple[TypeCase, ...] = (
    TypeCase("tinyint", "int8", {"-128": -128, "127": 127, "0": 0}),
    TypeCase("tinyint unsigned", "uint8", {"0": 0, "255": 255}),
    TypeCase("tinyint(1)", "bool", {"0": False, "1": True}),
    TypeCase("smallint", "int16", {"-32768": -32768, "32767": 32767}),
    TypeCase("smallint unsigned", "uint16", {"65535": 65535}),
    TypeCase("mediumint", "int32", {"-8388608": -8388608, "8388607": 8388607}),
    TypeCase("mediumint unsigned", "uint32", {"16777215": 16777215}),
    TypeCase("int", "int32", {"-2147483648": -(2**31), "2147483647": 2**31 - 1}),
    TypeCase("int unsigned", "uint32", {"4294967295": 2**32 - 1}),
    TypeCase("int(5) zerofill", "uint32", {"42": 42}),
    TypeCase("bigint", "int64", {"-9223372036854775808": -(2**63), "9223372036854775807": 2**63 - 1}),
    TypeCase("bigint unsigned", "uint64", {"0": 0, "18446744073709551615": 2**64 - 1, "9007199254740993": 2**53 + 1}),
    TypeCase(
        "decimal(15,2)", "decimal(15,2)", {"-0.05": Decimal("-0.05"), "9999999999999.99": Decimal("9999999999999.99")}
    ),
    TypeCase(
        "decimal(65,30)",
        "decimal(65,30)",
        {
            "-12345678901234567890123456789012345.123456789012345678901234567890": Decimal(
                "-12345678901234567890123456789012345.123456789012345678901234567890"
            ),
            "99999999999999999999999999999999999.999999999999999999999999999999": Decimal("9" * 35 + "." + "9" * 30),
            "0": Decimal("0.000000000000000000000000000000"),
        },
    ),
    TypeCase("decimal(65,0)", "decimal(65,0)", {"9" * 65: Decimal("9" * 65)}),
    TypeCase("decimal(5,0) unsigned", "decimal(5,0)", {"99999": Decimal(99999)}),
    TypeCase("decimal(30,30)", "decimal(30,30)", {"-0." + "9" * 30: Decimal("-0." + "9" * 30)}),
    TypeCase(
        "float", "float32", {"3.1415927": 3.1415927410125732, "1e-30": 1.0000000031710769e-30, "16777217": 16777216.0}
    ),
    TypeCase(
        "double",
        "float64",
        {
            "0.1": 0.1,
            "1.7976931348623157e308": 1.7976931348623157e308,
            "2.2250738585072014e-308": 2.2250738585072014e-308,
        },
    ),
    TypeCase(
        "date",
        "date",
        {
            "'1000-01-01'": date(1000, 1, 1),
            "'9999-12-31'": date(9999, 12, 31),
            "'0000-00-00'": None,
            "'2024-02-29'": date(2024, 2, 29),
            "'2024-00-10'": None,
        },
    ),
    TypeCase(
        "datetime",
        "timestamp",
        {
            "'1000-01-01 00:00:00'": datetime(1000, 1, 1),
            "'9999-12-31 23:59:59'": datetime(9999, 12, 31, 23, 59, 59),
            "'0000-00-00 00:00:00'": None,
        },
    ),
    TypeCase(
        "datetime(6)",
        "timestamp",
        {
            "'2020-02-29 01:02:03.000004'": datetime(2020, 2, 29, 1, 2, 3, 4),
            "'1969-12-31 23:59:59.999999'": datetime(1969, 12, 31, 23, 59, 59, 999999),
        },
    ),
    TypeCase(
        "timestamp(6) NULL",
        "timestamptz",
        {
            "'1970-01-01 00:00:01'": datetime(1970, 1, 1, 0, 0, 1, tzinfo=_UTC),
            "'2038-01-19 03:14:07.999999'": datetime(2038, 1, 19, 3, 14, 7, 999999, tzinfo=_UTC),
            "'2024-03-31 02:30:00'": datetime(2024, 3, 31, 2, 30, tzinfo=_UTC),
        },
    ),
    TypeCase(
        "time(6)",
        "interval",
        {
            "'-838:59:59.999999'": "PT-838H-59M-59.999999S",
            "'25:00:01'": "PT25H1S",
            "'00:00:00'": "PT0S",
            "'-00:00:00.5'": "PT-0.5S",
            "'10:20:30.120000'": "PT10H20M30.12S",
        },
    ),
    TypeCase("time", "interval", {"'838:59:59'": "PT838H59M59S", "'00:10:00'": "PT10M"}),
    TypeCase("year", "int16", {"1901": 1901, "2155": 2155, "'0000'": 0}),
    TypeCase("bit(1)", "bool", {"b'1'": True, "b'0'": False}),
    TypeCase("bit(20)", "bytes", {"b'11111111111111111111'": b"\x0f\xff\xff", "1": b"\0\0\1"}),
    TypeCase("bit(64)", "bytes", {"18446744073709551615": b"\xff" * 8}),
    TypeCase("char(10)", "string", {"'abc'": "abc", "''": ""}),
    TypeCase(
        "varchar(300)",
        "string",
        {
            "'é漢🙂'": "é漢🙂",
            r"'q\'u\"o\\te\n'": "q'u\"o\\te\n",
            r"'\0x'": "\0x",
            "REPEAT('x', 250)": "x" * 250,
            "REPEAT('x', 251)": "x" * 251,
        },
    ),
    TypeCase("varchar(20) CHARACTER SET latin1", "string", {"'äöü€'": "äöü€"}),
    TypeCase("varchar(20) COLLATE utf8mb4_bin", "string", {"'Bin'": "Bin"}),
    TypeCase("longtext", "string", {"REPEAT('y', 70000)": "y" * 70000, "'NULL'": "NULL"}),
    TypeCase("tinytext", "string", {"'t'": "t"}),
    TypeCase("binary(4)", "bytes", {"x'00ff'": b"\x00\xff\0\0"}),
    TypeCase("varbinary(300)", "bytes", {"x'00'": b"\0", "REPEAT(x'ff', 252)": b"\xff" * 252}),
    TypeCase("blob", "bytes", {"x'fbfcfdfeff'": b"\xfb\xfc\xfd\xfe\xff", "''": b""}),
    TypeCase("longblob", "bytes", {"REPEAT(x'fe', 65536)": b"\xfe" * 65536}),
    TypeCase("json", "json", {'\'{"a": [1, 1.50, "🙂"]}\'': '{"a": [1, 1.50, "🙂"]}', "'null'": "null"}),
    TypeCase("enum('a','B c')", "string", {"'a'": "a", "'B c'": "B c"}),
    TypeCase("set('x','y','z')", "array<string>", {"'z,x'": ["x", "z"], "''": [], "'y'": ["y"]}),
    TypeCase(
        "point",
        "geometry",
        {"ST_GeomFromText('POINT(1 2)', 4326)": bytes.fromhex("0101000000000000000000f03f0000000000000040")},
    ),
    TypeCase(
        "geometry",
        "geometry",
        {"ST_GeomFromText('POINT(1 2)')": bytes.fromhex("0101000000000000000000f03f0000000000000040")},
    ),
    TypeCase("uuid", "uuid", {"'123e4567-e89b-12d3-a456-426655440000'": "123e4567-e89b-12d3-a456-426655440000"}),
    TypeCase("inet6", "string", {"'2001:db8::ff00:42:8329'": "2001:db8::ff00:42:8329"}),
    TypeCase("inet4", "string", {"'192.0.2.1'": "192.0.2.1"}),
)
"""Every type of MariaDB with its extremes. `year` 0000 is a year to MariaDB, not a missing one."""
