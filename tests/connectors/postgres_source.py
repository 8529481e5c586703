"""A private schema on the test session's PostgreSQL, an account that may read it, and the types that it can store."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg

from tests.connectors.source import Source, TypeCase
from tests.fixtures.postgres import PostgresDatabase

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
        tables = self.ask(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema = 'hf data' ORDER BY 1, 2"
        )
        digests = []
        for schema, name in tables:
            text = f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM \"{schema}\".{self.quote(name)} t"
            digests.append((schema, name, self.database.execute(text)[0][0]))
        definitions = self.ask(
            "SELECT n.nspname, c.relname, c.relkind, c.relowner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname !~ '^pg_(toast|temp)' ORDER BY 1, 2"
        )
        roles = self.ask("SELECT rolname, rolsuper, rolcanlogin FROM pg_roles ORDER BY 1")
        functions = self.ask("SELECT count(*), max(oid::bigint) FROM pg_proc")
        databases = self.ask("SELECT count(*) FROM pg_database WHERE datname LIKE 'hf_written%%'")
        settings = self.ask(
            "SELECT setdatabase, setrole, setconfig::text FROM pg_db_role_setting WHERE setrole = %s::regrole",
            self.account,
        )
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


def dsn_of(source: PostgresSource) -> str:
    config = source.config
    return psycopg.conninfo.make_conninfo(
        host=config["host"],
        port=config["port"],
        dbname=config["database"],
        user=config["username"],
        password=config["password"],
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
        "double precision",
        "float64",
        {
            "'0.1'": 0.1,
            "'1.7976931348623157e308'": 1.7976931348623157e308,
            "'5e-324'": 5e-324,
            "'-Infinity'": float("-inf"),
            "'NaN'": float("nan"),
            "'-0'": -0.0,
        },
    ),
    TypeCase(
        "numeric",
        "bigdecimal",
        {"'NaN'": "NaN", "'1e-40'": "0." + "0" * 39 + "1", "'-Infinity'": "-Infinity", "1.50": "1.50"},
    ),
    TypeCase("numeric(10,2)", "decimal(10,2)", {"12345678.90": D("12345678.90"), "-0.01": D("-0.01"), "0": D("0.00")}),
    TypeCase("numeric(38,0)", "decimal(38,0)", {"9" * 38: D("9" * 38), "-" + "9" * 38: D("-" + "9" * 38)}),
    TypeCase(
        "numeric(76,30)",
        "decimal(76,30)",
        {"9" * 46 + "." + "9" * 30: D("9" * 46 + "." + "9" * 30), "-1": D("-1." + "0" * 30)},
    ),
    TypeCase("numeric(100,5)", "bigdecimal", {"1" * 95 + ".12345": "1" * 95 + ".12345"}),
    TypeCase("money", "string", {"'12.34'": "$12.34"}),
    TypeCase(
        "text",
        "string",
        {
            "''": "",
            "'NULL'": "NULL",
            r"E'\\N'": r"\N",
            r"E'\\.'": r"\.",
            r"E'a\nb\r\n\t\"q\",,'": 'a\nb\r\n\t"q",,',
            "'你😀'": "你😀",
            "' pad '": " pad ",
            "repeat('x', 100000)": "x" * 100000,
        },
    ),
    TypeCase("varchar(5)", "string", {"'abc'": "abc", "''": ""}),
    TypeCase("char(5)", "string", {"'abc'": "abc  "}),
    TypeCase('"char"', "string", {"'x'": "x"}),
    TypeCase("name", "string", {"'a name'": "a name"}),
    TypeCase("bytea", "bytes", {r"'\x00ff5c'": b"\x00\xff\\", "''": b"", r"'\x'": b""}),
    TypeCase(
        "date",
        "date",
        {
            "'0001-01-01'": dt.date(1, 1, 1),
            "'9999-12-31'": dt.date(9999, 12, 31),
            "'1969-12-31'": dt.date(1969, 12, 31),
        },
    ),
    TypeCase("time", "time", {"'00:00'": dt.time(0), "'23:59:59.999999'": dt.time(23, 59, 59, 999999)}),
    TypeCase("timetz", "string", {"'12:00:00.5+02'": "12:00:00.5+02"}),
    TypeCase(
        "timestamp",
        "timestamp",
        {
            "'0001-01-01'": dt.datetime(1, 1, 1),
            "'9999-12-31 23:59:59.999999'": dt.datetime(9999, 12, 31, 23, 59, 59, 999999),
            "'2024-02-29 01:02:03.45'": dt.datetime(2024, 2, 29, 1, 2, 3, 450000),
        },
    ),
    TypeCase("timestamp(0)", "timestamp", {"'2024-02-29 01:02:03'": dt.datetime(2024, 2, 29, 1, 2, 3)}),
    TypeCase(
        "timestamptz",
        "timestamptz",
        {
            "'2024-10-27 02:30:00+02'": dt.datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
            "'0001-01-01 00:00+00'": dt.datetime(1, 1, 1, tzinfo=UTC),
            "'9999-12-31 23:59:59.999999+00'": dt.datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
        },
    ),
    TypeCase(
        "interval",
        "interval",
        {"'1 year 2 mons 3 days 04:05:06.789'": "P1Y2M3DT4H5M6.789S", "'-1 day'": "P-1D", "'0'": "PT0S"},
    ),
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
    TypeCase(
        "int4range",
        "struct",
        {
            "'[1,10)'": '{"lower": "1", "upper": "10", "bounds": "[)", "empty": false}',
            "'empty'": '{"lower": null, "upper": null, "bounds": "()", "empty": true}',
        },
    ),
    TypeCase(
        "tstzrange",
        "struct",
        {
            "'[2024-01-01 00:00+00,)'": '{"lower": "2024-01-01 00:00:00+00", "upper": null, "bounds": "[)", "empty": false}'
        },
    ),
    TypeCase("integer[]", "array<int32>", {"'{}'": [], "'{1,NULL,-3}'": [1, None, -3], "'[0:1]={5,6}'": [5, 6]}),
    TypeCase(
        "text[]",
        "array<string>",
        {
            """ARRAY['a,b', 'q"q', 'NULL', '', NULL, E'back\\\\slash', '{x}']""": [
                "a,b",
                'q"q',
                "NULL",
                "",
                None,
                "back\\slash",
                "{x}",
            ]
        },
    ),
    TypeCase("numeric(5,1)[]", "array<decimal(5,1)>", {"'{1.5,NULL}'": [D("1.5"), None]}),
    TypeCase(
        "timestamptz[]", "array<timestamptz>", {"""'{"2024-01-01 00:00+00"}'""": [dt.datetime(2024, 1, 1, tzinfo=UTC)]}
    ),
    TypeCase("boolean[]", "array<bool>", {"'{t,f,NULL}'": [True, False, None]}),
    TypeCase("bytea[]", "array<bytes>", {r"""ARRAY['\x00ff'::bytea, ''::bytea]""": [b"\x00\xff", b""]}),
    TypeCase("jsonb[]", "array<json>", {"""ARRAY['{"a": 1}'::jsonb]""": ['{"a": 1}']}),
    TypeCase("date[]", "array<date>", {"'{2024-02-29}'": [dt.date(2024, 2, 29)]}),
    TypeCase(
        "uuid[]", "array<uuid>", {"'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]}
    ),
    TypeCase("double precision[]", "array<float64>", {"'{1.5,Infinity}'": [1.5, float("inf")]}),
)
