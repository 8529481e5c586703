"""Measures reading a PostgreSQL table into Arrow beside the limit and the peers, in one run; prints a table, asserts nothing.

    python tests/benchmarks/bench_postgresql.py [--rows 1000000] [--rounds 3] [--only ours,psql]

The table has 17 columns as TPC-H's `lineitem` has them (exact decimals, dates, text) plus a time of change. Each way runs in a
process of its own, so that the peak memory is its own; the fastest of the rounds counts, and rounds are interleaved, so that
a noisy moment hits all alike. The limit is psql's binary \\copy to /dev/null: the server's work and the wire, and nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

PEERS = ("adbc-driver-manager==1.13.0", "adbc-driver-postgresql==1.13.0", "connectorx==0.4.6", "pyarrow==26.0.1")
STATEMENT = "SELECT * FROM lineitem"

WAYS = {
    "psql": "`psql \\copy … (format binary)` to /dev/null (the limit)",
    "ours": "hfagent: `read_rows` → Arrow",
    "ours-tls": "hfagent over TLS 1.3",
    "connectorx": "connectorx `arrow_stream`",
    "adbc": "ADBC, decimals cast exactly",
    "psycopg": "psycopg server cursor → tuples",
}
OF_PEERS = ("connectorx", "adbc")

TABLE = """\
CREATE UNLOGGED TABLE lineitem AS SELECT
  g / 4 * 4 + 1 AS l_orderkey, g * 7919 % 200000 AS l_partkey, g * 31 % 10000 AS l_suppkey, (g % 4 + 1)::int AS l_linenumber,
  (g % 50 + 1)::numeric(15,2) AS l_quantity, (g * 7919 % 10494951 / 100.0)::numeric(15,2) AS l_extendedprice,
  (g % 11 / 100.0)::numeric(15,2) AS l_discount, (g % 9 / 100.0)::numeric(15,2) AS l_tax,
  (ARRAY['A','N','R'])[g % 3 + 1]::char(1) AS l_returnflag, (ARRAY['O','F'])[g % 2 + 1]::char(1) AS l_linestatus,
  date '1992-01-01' + (g % 2500)::int AS l_shipdate,
  CASE WHEN g % 20 > 0 THEN date '1992-02-01' + (g % 2500)::int END AS l_commitdate,
  date '1992-01-15' + (g % 2500)::int AS l_receiptdate,
  (ARRAY['DELIVER IN PERSON','COLLECT COD','NONE','TAKE BACK RETURN'])[g % 4 + 1]::char(25) AS l_shipinstruct,
  (ARRAY['AIR','MAIL','SHIP','RAIL','TRUCK','FOB','REG AIR'])[g % 7 + 1]::char(10) AS l_shipmode,
  left('carefully final deposits ' || md5(g::text), 27 + (g % 18)::int)::varchar(44) AS l_comment,
  timestamptz '2020-01-01 00:00+00' + g * interval '1.000001 s' AS updated_at
FROM (SELECT generate_series(1, {rows}::bigint) AS g) s"""


@dataclass(frozen=True)
class Measured:
    """One run of one way."""

    seconds: float
    peak_mb: float
    cpu: float
    rows: int
    decimals: str


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--way":
        print(json.dumps(run_way(sys.argv[2], json.load(sys.stdin))))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(WAYS), help="ways to measure, separated by commas")
    options = parser.parse_args()
    from tests.fixtures.environments import EnvironmentUnavailable, cached_environment
    from tests.fixtures.postgres import find_binaries, run_server

    ways = [way for way in WAYS if way in options.only.split(",")]
    peers: Path | None = None
    if set(ways) & set(OF_PEERS):
        try:
            peers = cached_environment("bench-postgresql", PEERS)
        except EnvironmentUnavailable as error:
            print(f"without the peers: {error}", file=sys.stderr)
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("no PostgreSQL here")
    best: dict[str, Measured] = {}
    with run_server(binaries) as server:
        server.execute("CREATE DATABASE bench TEMPLATE template0")
        server.execute(TABLE.replace("{rows}", str(options.rows)), database="bench")
        server.execute("VACUUM ANALYZE lineitem", database="bench")
        target = {
            "host": server.host,
            "port": server.port,
            "username": "hf",
            "password": server.password,
            "database": "bench",
        }
        for _ in range(options.rounds):
            for way in ways:
                python = peers if way in OF_PEERS else Path(sys.executable)
                if python is None:
                    continue
                measured = measure_psql(target, binaries) if way == "psql" else measure(python, way, target)
                print(f"  {way}: {measured.seconds:.2f} s", file=sys.stderr)
                if way not in best or measured.seconds < best[way].seconds:
                    best[way] = measured
        report(options.rows, options.rounds, server.execute("SHOW server_version")[0][0], best)


def measure_psql(target: dict[str, Any], binaries: Path) -> Measured:
    command = [
        str(binaries / "psql"),
        "--no-psqlrc",
        "--quiet",
        "--host",
        target["host"],
        "--port",
        str(target["port"]),
    ]
    command += ["--username", target["username"], "--dbname", target["database"]]
    command += ["--command", f"\\copy ({STATEMENT}) to /dev/null (format binary)"]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"PGPASSWORD": target["password"], "PGSSLMODE": "disable"})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"psql failed: {process.returncode}")
    return Measured(seconds, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime, 0, "binary")


def measure(python: Path, way: str, target: dict[str, Any]) -> Measured:
    done = subprocess.run(
        [str(python), __file__, "--way", way], input=json.dumps(target), capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout))


def run_way(way: str, target: dict[str, Any]) -> dict[str, Any]:
    """In the child: read everything, batch by batch, and keep nothing."""
    import resource

    ways = {"ours": ours, "ours-tls": ours_tls, "connectorx": connectorx, "adbc": adbc, "psycopg": psycopg_tuples}
    with ways[way](target) as batches:
        rows, decimals = 0, "?"
        before = resource.getrusage(resource.RUSAGE_SELF)
        started = time.perf_counter()
        for batch in batches:
            if isinstance(batch, list):
                rows += len(batch)
                decimals = "Decimal objects"
            else:
                rows += batch.num_rows
                decimals = str(batch.schema.field("l_extendedprice").type)
        seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "peak_mb": usage.ru_maxrss / 1024, "cpu": cpu, "rows": rows, "decimals": decimals}


@contextmanager
def ours(target: dict[str, Any], sslmode: str = "disable") -> Iterator[Iterator[Any]]:
    from hfagent.connectors.postgresql import PostgreSQL
    from hfagent.foundation.clock import Deadline
    from hfagent.sdk.reading import ReadRequest, SchemaRequest

    connector = PostgreSQL(PostgreSQL.Config.parse(target | {"sslmode": sslmode}))
    session = connector.connect(Deadline(10))
    (stream,) = connector.read_schema(session, SchemaRequest(namespaces=("public",)))

    def batches() -> Iterator[Any]:
        with connector.read_rows(session, stream, ReadRequest()) as reader:
            yield from reader

    yield batches()
    connector.close(session)


def ours_tls(target: dict[str, Any]) -> Any:
    return ours(target, "require")


def address_of(target: dict[str, Any]) -> str:
    from urllib.parse import quote

    login = f"{target['username']}:{quote(target['password'], safe='')}"
    return f"postgresql://{login}@{target['host']}:{target['port']}/{target['database']}?sslmode=disable"


@contextmanager
def connectorx(target: dict[str, Any]) -> Iterator[Iterator[Any]]:
    import connectorx as cx  # type: ignore[import-not-found]

    def batches() -> Iterator[Any]:
        yield from cx.read_sql(address_of(target), STATEMENT, return_type="arrow_stream", batch_size=65536)

    yield batches()


@contextmanager
def adbc(target: dict[str, Any]) -> Iterator[Iterator[Any]]:
    import adbc_driver_postgresql.dbapi as driver  # type: ignore[import-not-found]
    import pyarrow as pa

    with driver.connect(address_of(target)) as connection, connection.cursor() as cursor:

        def exact(batch: Any) -> Any:
            """numeric arrives as opaque text: its value is exact only after this cast."""
            columns = [
                (column.storage if hasattr(column, "storage") else column).cast(pa.decimal128(15, 2))
                if batch.schema.names[i] in ("l_quantity", "l_extendedprice", "l_discount", "l_tax")
                else column
                for i, column in enumerate(batch.columns)
            ]
            return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)

        def batches() -> Iterator[Any]:
            cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(4 << 20)})
            cursor.execute(STATEMENT)
            yield from (exact(batch) for batch in cursor.fetch_record_batch())

        yield batches()


@contextmanager
def psycopg_tuples(target: dict[str, Any]) -> Iterator[Iterator[Any]]:
    import psycopg

    with psycopg.connect(address_of(target)) as connection, connection.cursor(name="bench") as cursor:

        def batches() -> Iterator[Any]:
            cursor.execute(STATEMENT)
            while rows := cursor.fetchmany(10_000):
                yield rows

        yield batches()


def report(rows: int, rounds: int, version: str, best: dict[str, Measured]) -> None:
    limit = best["psql"].seconds if "psql" in best else min(found.seconds for found in best.values())
    driver = importlib.metadata.version("psycopg")
    print(f"{rows} rows, PostgreSQL {version}, psycopg {driver}, TCP loopback, best of {rounds}\n")
    print("| way | seconds | x limit | rows/s | CPU s | peak RSS MB | decimals |\n|---|---|---|---|---|---|---|")
    for way, title in WAYS.items():
        if way in best:
            found = best[way]
            print(
                f"| {title} | {found.seconds:.2f} | {found.seconds / limit:.2f} | {rows / found.seconds:,.0f} | {found.cpu:.2f} "
                f"| {found.peak_mb:.0f} | {found.decimals} |"
            )


if __name__ == "__main__":
    main()
