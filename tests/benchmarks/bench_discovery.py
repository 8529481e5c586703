"""Measures the discovery of a large PostgreSQL catalogue beside bare queries and SQLAlchemy; prints a table, asserts nothing.

    python tests/benchmarks/bench_discovery.py [--tables 10000] [--rounds 3]

Every table has 20 columns of ordinary types, a primary key, a foreign key and an index; every tenth has a comment. The limit
is what three flat catalogue queries cost when their rows are fetched and thrown away. Each way runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

PEERS = ("psycopg[binary]==3.3.9", "sqlalchemy==2.1.9")

WAYS = {
    "bare": "three flat catalogue queries, rows fetched (the limit)",
    "ours": "hfagent `read_schema`, full depth",
    "names": "hfagent `read_schema`, names only",
    "sqlalchemy": "SQLAlchemy `Inspector.get_multi_*`",
}

COLUMNS = (
    "name text", "email text not null", "amount numeric(12,2)", "created_at timestamptz not null default now()", "due_on date",
    "active boolean", "payload jsonb", "ref uuid", "code varchar(80)", "note text", "qty integer", "price numeric(12,2)",
    "updated_at timestamptz", "paid_on date", "flag boolean", "meta jsonb", "token uuid", "label varchar(80)",
)  # fmt: skip

RELATIONS = """\
SELECT c.oid, n.nspname, c.relname, c.relkind, c.reltuples, obj_description(c.oid, 'pg_class')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r','p','v','m','f') AND n.nspname = 'public' ORDER BY 2, 3"""

ATTRIBUTES = """\
SELECT a.attrelid, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
       t.description
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_description t ON t.objoid = a.attrelid AND t.classoid = 'pg_class'::regclass AND t.objsubid = a.attnum
WHERE c.relkind IN ('r','p','v','m','f') AND n.nspname = 'public' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, 2"""

CONSTRAINTS = """\
SELECT o.conrelid, o.contype, o.conname, o.conkey, o.confrelid::regclass::text, o.confkey
FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND o.contype IN ('p','u','f') ORDER BY 1"""


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--way":
        print(json.dumps(run_way(sys.argv[2], json.load(sys.stdin))))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(WAYS), help="ways to measure, separated by commas")
    options = parser.parse_args()
    from tests.fixtures.environments import EnvironmentUnavailable, cached_environment
    from tests.fixtures.postgres import find_binaries, run_server

    ways = [way for way in WAYS if way in options.only.split(",")]
    peers: Path | None = None
    if "sqlalchemy" in ways:
        try:
            peers = cached_environment("bench-discovery", PEERS)
        except EnvironmentUnavailable as error:
            print(f"without SQLAlchemy: {error}", file=sys.stderr)
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("no PostgreSQL here")
    best: dict[str, dict[str, Any]] = {}
    with run_server(binaries) as server:
        server.execute("CREATE DATABASE bench TEMPLATE template0")
        target = {
            "host": server.host,
            "port": server.port,
            "username": "hf",
            "password": server.password,
            "database": "bench",
        }
        fill(server.dsn("bench"), options.tables)
        for _ in range(options.rounds):
            for way in ways:
                python = peers if way == "sqlalchemy" else Path(sys.executable)
                if python is None:
                    continue
                measured = measure(python, way, target)
                print(f"  {way}: {measured['seconds']:.2f} s", file=sys.stderr)
                if way not in best or measured["seconds"] < best[way]["seconds"]:
                    best[way] = measured
    limit = best["bare"]["seconds"] if "bare" in best else min(found["seconds"] for found in best.values())
    print(f"{options.tables} tables x 20 columns, best of {options.rounds}\n")
    print(
        "| way | seconds | x limit | first stream s | streams | columns | peak RSS growth MB |\n|---|---|---|---|---|---|---|"
    )
    for way, title in WAYS.items():
        if found := best.get(way):
            first = f"{found['first']:.2f}" if found["first"] else ""
            print(
                f"| {title} | {found['seconds']:.2f} | {found['seconds'] / limit:.2f} | {first} | {found['streams']} "
                f"| {found['columns']} | {found['growth_mb']:.0f} |"
            )


def fill(dsn: str, tables: int) -> None:
    import psycopg

    with psycopg.connect(dsn) as connection:
        for number in range(1, tables + 1):
            parent = f"references t_{(number - 1) // 10 + 1:05d}" if number > 1 else ""
            columns = ["id bigint generated always as identity primary key", *COLUMNS, f"parent_id bigint {parent}"]
            text = f"CREATE TABLE t_{number:05d} ({', '.join(columns)}); CREATE INDEX ON t_{number:05d} (updated_at)"
            if number % 10 == 0:
                text += f"; COMMENT ON TABLE t_{number:05d} IS 'table number {number}'"
            connection.execute(text)  # type: ignore[arg-type]
            if number % 500 == 0:
                connection.commit()
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE pg_catalog.pg_attribute")
        connection.execute("VACUUM ANALYZE pg_catalog.pg_class")


def measure(python: Path, way: str, target: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [str(python), __file__, "--way", way], input=json.dumps(target), capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_way(way: str, target: dict[str, Any]) -> dict[str, Any]:
    """In the child: discover everything, keep nothing."""
    return {"bare": bare, "ours": ours, "names": names, "sqlalchemy": with_sqlalchemy}[way](target)


def bare(target: dict[str, Any]) -> dict[str, Any]:
    import psycopg

    with psycopg.connect(
        host=target["host"], port=target["port"], user=target["username"], password=target["password"],
        dbname=target["database"], sslmode="disable",
    ) as connection:  # fmt: skip
        before, started = _peak(), time.perf_counter()
        streams = len(connection.execute(RELATIONS).fetchall())
        columns = len(connection.execute(ATTRIBUTES).fetchall())
        connection.execute(CONSTRAINTS).fetchall()
        return _outcome(started, before, streams, columns)


def ours(target: dict[str, Any], depth: str = "full") -> dict[str, Any]:
    from hfagent.connectors.postgresql import PostgreSQL
    from hfagent.foundation.clock import Deadline
    from hfagent.sdk.reading import SchemaRequest

    connector = PostgreSQL(PostgreSQL.Config.parse(target | {"sslmode": "disable"}))
    session = connector.connect(Deadline(10))
    list(connector.read_schema(session, SchemaRequest(include=("public.t_00001",))))  # imports are not discovery
    before, started = _peak(), time.perf_counter()
    streams = columns = 0
    first: float | None = None
    for stream in connector.read_schema(session, SchemaRequest(depth=depth)):  # type: ignore[arg-type]
        first = first or time.perf_counter() - started
        streams += 1
        columns += len(stream.columns)
    found = _outcome(started, before, streams, columns, first)
    connector.close(session)
    return found


def names(target: dict[str, Any]) -> dict[str, Any]:
    return ours(target, "names")


def with_sqlalchemy(target: dict[str, Any]) -> dict[str, Any]:
    import sqlalchemy as sa  # type: ignore[import-not-found]

    address = sa.URL.create(
        "postgresql+psycopg", target["username"], target["password"], target["host"], target["port"], target["database"]
    )
    engine = sa.create_engine(address, connect_args={"sslmode": "disable"})
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        before, started = _peak(), time.perf_counter()
        columns = inspector.get_multi_columns(schema="public")
        inspector.get_multi_pk_constraint(schema="public")
        inspector.get_multi_foreign_keys(schema="public")
        inspector.get_multi_indexes(schema="public")
        inspector.get_multi_table_comment(schema="public")
        return _outcome(started, before, len(columns), sum(map(len, columns.values())))


def _outcome(started: float, before: float, streams: int, columns: int, first: float | None = None) -> dict[str, Any]:
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "streams": streams, "columns": columns, "growth_mb": _peak() - before, "first": first}


def _peak() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
