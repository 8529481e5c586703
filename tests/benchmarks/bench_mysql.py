"""Measures reading a MariaDB table into Arrow beside the limit and the peers, in one run; prints a table, asserts nothing.

    python tests/benchmarks/bench_mysql.py [rows, default 300000] [rounds, default 3]

The table has 17 columns as TPC-H's `lineitem` has them (exact decimals, dates, text) plus a time of change. Each way runs in a
process of its own, so that the peak memory is its own; the fastest of the rounds counts, and rounds are interleaved, so that
a noisy moment hits all alike. The limit is the server's own command-line client, which throws the rows away.
"""

from __future__ import annotations

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

PEERS = (
    "connectorx==0.4.6",
    "duckdb==1.5.5",
    "duckdb_extension_mysql_scanner==1.5.5",
    "pymysql==1.2.4",
    "pyarrow==26.0.1",
)
STATEMENT = "SELECT * FROM lineitem"

WAYS = {
    "cli": "`mariadb --quick --batch` to /dev/null (the limit)",
    "ours": "hfagent: wire blocks → Arrow",
    "ours-tls": "hfagent over TLS 1.3",
    "connectorx": "connectorx `arrow_stream`",
    "duckdb": "DuckDB mysql scanner → Arrow",
    "pymysql": "PyMySQL SSCursor tuples → Arrow",
}


@dataclass(frozen=True)
class Measured:
    """One run of one way."""

    seconds: float
    peak_mb: float
    rows: int
    decimals: str


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--way":
        print(json.dumps(run_way(sys.argv[2], json.load(sys.stdin))))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    from tests.fixtures.environments import EnvironmentUnavailable, cached_environment
    from tests.fixtures.mariadb import run_server

    try:
        peers: Path | None = cached_environment("bench-mysql", PEERS)
    except EnvironmentUnavailable as error:
        print(f"without the peers: {error}", file=sys.stderr)
        peers = None
    best: dict[str, Measured] = {}
    with run_server() as server:
        server.create_database("bench")
        server.execute(create_table(rows), database="bench")
        server.execute("ANALYZE TABLE lineitem", database="bench")
        target = {
            "host": server.host,
            "port": server.port,
            "username": "hf",
            "password": server.password,
            "database": "bench",
        }
        for _ in range(rounds):
            for way in WAYS:
                python = peers if way in ("connectorx", "duckdb", "pymysql") else Path(sys.executable)
                if python is None:
                    continue
                measured = measure_cli(target) if way == "cli" else measure(python, way, target)
                if way not in best or measured.seconds < best[way].seconds:
                    best[way] = measured
        report(rows, rounds, server.execute("SELECT VERSION()")[0][0], best)


def create_table(rows: int) -> str:
    return f"""CREATE TABLE lineitem (l_orderkey bigint NOT NULL, l_partkey bigint, l_suppkey bigint, l_linenumber int,
        l_quantity decimal(15,2), l_extendedprice decimal(15,2), l_discount decimal(15,2), l_tax decimal(15,2),
        l_returnflag char(1), l_linestatus char(1), l_shipdate date, l_commitdate date, l_receiptdate date,
        l_shipinstruct char(25), l_shipmode char(10), l_comment varchar(44), updated_at datetime(6)) ENGINE=MyISAM
        AS SELECT seq AS l_orderkey, seq * 7 % 200000 AS l_partkey, seq % 10000 AS l_suppkey, seq % 7 + 1 AS l_linenumber,
        seq % 50 + 1 AS l_quantity, (seq * 7919 % 10000000) / 100 AS l_extendedprice, (seq % 11) / 100 AS l_discount,
        (seq % 9) / 100 AS l_tax, ELT(seq % 3 + 1, 'A', 'N', 'R') AS l_returnflag, ELT(seq % 2 + 1, 'O', 'F') AS l_linestatus,
        '1992-01-01' + INTERVAL seq % 2500 DAY AS l_shipdate, IF(seq % 20, '1992-02-01' + INTERVAL seq % 2500 DAY, NULL)
        AS l_commitdate, '1992-01-15' + INTERVAL seq % 2500 DAY AS l_receiptdate,
        ELT(seq % 4 + 1, 'DELIVER IN PERSON', 'COLLECT COD', 'NONE', 'TAKE BACK RETURN') AS l_shipinstruct,
        ELT(seq % 7 + 1, 'AIR', 'MAIL', 'SHIP', 'RAIL', 'TRUCK', 'FOB', 'REG AIR') AS l_shipmode,
        CONCAT('carefully final deposits ', seq % 977, ' wäre') AS l_comment,
        '2020-01-01' + INTERVAL seq SECOND AS updated_at FROM seq_1_to_{rows}"""


def measure_cli(target: dict[str, Any]) -> Measured:
    command = [
        "mariadb",
        "--no-defaults",
        f"--host={target['host']}",
        f"--port={target['port']}",
        f"--user={target['username']}",
    ]
    command += ["--skip-ssl", "--quick", "--batch", target["database"], "--execute", STATEMENT]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"MYSQL_PWD": target["password"]})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"mariadb failed: {process.returncode}")
    return Measured(seconds, usage.ru_maxrss / 1024, 0, "text")


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

    ways = {
        "ours": ours,
        "ours-tls": ours_tls,
        "connectorx": connectorx,
        "duckdb": duckdb_scanner,
        "pymysql": pymysql_tuples,
    }
    with ways[way](target) as batches:
        rows, decimals = 0, "?"
        started = time.perf_counter()
        for batch in batches:
            rows += batch.num_rows
            decimals = str(batch.schema.field("l_extendedprice").type)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mb": peak, "rows": rows, "decimals": decimals}


@contextmanager
def ours(target: dict[str, Any], ssl_mode: str = "disabled") -> Iterator[Iterator[Any]]:
    from hfagent.connectors.mariadb import MariaDB
    from hfagent.foundation.clock import Deadline
    from hfagent.sdk.reading import ReadRequest, SchemaRequest

    connector = MariaDB(MariaDB.Config.parse(target | {"ssl_mode": ssl_mode}))
    session = connector.connect(Deadline(10))
    (stream,) = connector.read_schema(session, SchemaRequest(namespaces=(target["database"],)))

    def batches() -> Iterator[Any]:
        with connector.read_rows(session, stream, ReadRequest()) as reader:
            yield from reader

    yield batches()
    connector.close(session)


def ours_tls(target: dict[str, Any]) -> Any:
    return ours(target, "required")


@contextmanager
def connectorx(target: dict[str, Any]) -> Iterator[Iterator[Any]]:
    from urllib.parse import quote

    import connectorx as cx  # type: ignore[import-not-found]

    password = quote(target["password"], safe="")
    address = f"mysql://{target['username']}:{password}@{target['host']}:{target['port']}/{target['database']}"

    def batches() -> Iterator[Any]:
        yield from cx.read_sql(address, STATEMENT, return_type="arrow_stream", batch_size=65536)

    yield batches()


@contextmanager
def duckdb_scanner(target: dict[str, Any]) -> Iterator[Iterator[Any]]:
    import duckdb
    import duckdb_extension_mysql_scanner as scanner  # type: ignore[import-not-found]

    (extension,) = Path(scanner.__file__).parent.rglob("*.duckdb_extension")
    connection = duckdb.connect()
    connection.execute(f"LOAD '{extension}'")
    quoted = target["password"].replace("'", "''")
    connection.execute(
        f"CREATE SECRET (TYPE mysql, HOST '{target['host']}', PORT {target['port']}, USER '{target['username']}', "
        f"PASSWORD '{quoted}', DATABASE '{target['database']}')"
    )
    connection.execute("ATTACH '' AS m (TYPE mysql, READ_ONLY)")

    def batches() -> Iterator[Any]:
        yield from connection.execute("SELECT * FROM m.lineitem").to_arrow_reader(65536)

    yield batches()


@contextmanager
def pymysql_tuples(target: dict[str, Any]) -> Iterator[Iterator[Any]]:
    import pyarrow as pa
    import pymysql
    from pymysql.cursors import SSCursor

    connection = pymysql.connect(
        host=target["host"], port=target["port"], user=target["username"], password=target["password"],
        database=target["database"], ssl_disabled=True,
    )  # fmt: skip
    cursor = SSCursor(connection)

    def batches() -> Iterator[Any]:
        cursor.execute(STATEMENT)
        names = [description[0] for description in cursor.description or ()]
        while rows := cursor.fetchmany(10_000):
            yield pa.RecordBatch.from_arrays([pa.array(column) for column in zip(*rows, strict=True)], names=names)

    yield batches()


def report(rows: int, rounds: int, version: str, best: dict[str, Measured]) -> None:
    limit = best["cli"].seconds
    driver = importlib.metadata.version("pymysql")
    print(f"{rows} rows, MariaDB {version}, PyMySQL {driver}, best of {rounds}\n")
    print("| way | seconds | x limit | rows/s | peak RSS MB | decimals |\n|---|---|---|---|---|---|")
    for way, title in WAYS.items():
        if way in best:
            found = best[way]
            print(
                f"| {title} | {found.seconds:.2f} | {found.seconds / limit:.2f} | {rows / found.seconds:,.0f} "
                f"| {found.peak_mb:.0f} | {found.decimals} |"
            )


if __name__ == "__main__":
    main()
