"""Measures copying a PostgreSQL table into a Delta table beside the limit and the peers, in one run; prints a table.

    python tests/benchmarks/bench_sync.py [--rows 6000000] [--rounds 2] [--only ours,psql,polars]

The table is that of `bench_postgresql.py`. Ours has every guarantee on: bounds looked up first, row digests, files and log
synced, the watermark in the commit. The peers are run as their documentation shows. Each way is a process of its own; the
fastest of the rounds counts; rounds are interleaved. The limit is psql's binary \\copy to /dev/null.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

PEERS = ("connectorx==0.4.6", "polars==1.35.2", "deltalake==1.6.6", "pyarrow==26.0.1")
WAYS = {
    "psql": "`psql \\copy … (format binary)` to /dev/null (the limit)",
    "ours": "hfagent: full sync, every guarantee on",
    "ours-incremental": "hfagent: 1 % changed rows merged into it",
    "delta-merge": "delta-rs: the same 1 % by `DeltaTable.merge`, rows at hand already",
    "connectorx": "connectorx stream → `write_deltalake`",
    "polars": "polars `read_database_uri` → `write_delta`",
}
OF_PEERS = ("connectorx", "polars")


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--way":
        print(json.dumps(run_way(sys.argv[2], json.load(sys.stdin))))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default=",".join(WAYS), help="ways to measure, separated by commas")
    options = parser.parse_args()
    from tests.benchmarks.bench_postgresql import TABLE, measure_psql
    from tests.fixtures.environments import EnvironmentUnavailable, cached_environment
    from tests.fixtures.postgres import find_binaries, run_server

    ways = [way for way in WAYS if way in options.only.split(",")]
    binaries = find_binaries()
    if binaries is None:
        sys.exit("no PostgreSQL server here")
    python = Path(sys.executable)
    peers = python
    if set(ways) & set(OF_PEERS):
        try:
            peers = cached_environment("bench-sync", PEERS)
        except EnvironmentUnavailable as exc:
            print(f"the peers cannot be installed here: {exc}", file=sys.stderr)
            ways = [way for way in ways if way not in OF_PEERS]
    best: dict[str, dict[str, Any]] = {}
    with run_server(binaries) as server, tempfile.TemporaryDirectory(prefix="hfagent-bench-") as work:
        server.execute("CREATE DATABASE bench")
        server.execute(TABLE.format(rows=options.rows), database="bench")
        server.execute("ALTER TABLE lineitem ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY", database="bench")
        server.execute("CREATE UNIQUE INDEX ON lineitem (id)", database="bench")
        server.execute("CREATE INDEX ON lineitem (updated_at)", database="bench")
        server.execute("VACUUM ANALYZE lineitem", database="bench")
        target = {
            "host": server.host, "port": server.port, "database": "bench", "username": server.superuser,
            "password": server.password, "dsn": server.dsn("bench"), "work": work,
        }  # fmt: skip
        for _ in range(options.rounds):
            for way in ways:
                if way == "psql":
                    limit = measure_psql(target, binaries)
                    found = {"seconds": limit.seconds, "peak_mb": limit.peak_mb, "rows": options.rows}
                else:
                    if way == "ours-incremental":
                        server.execute(
                            "UPDATE lineitem SET l_tax = l_tax + 0.01, updated_at = '2026-01-01' "
                            f"WHERE id > {options.rows * 99 // 100}", database="bench",
                        )  # fmt: skip
                    done = subprocess.run(
                        [str(peers if way in OF_PEERS else python), __file__, "--way", way],
                        input=json.dumps(target), capture_output=True, text=True,
                    )  # fmt: skip
                    if done.returncode:
                        sys.exit(f"{way} failed:\n{done.stderr[-2000:]}")
                    found = json.loads(done.stdout.splitlines()[-1])
                    print(done.stderr.strip()[-400:], file=sys.stderr)
                if way not in best or found["seconds"] < best[way]["seconds"]:
                    best[way] = found
                print(f"{way}: {found}", file=sys.stderr)
    limit_s = best.get("psql", {}).get("seconds")
    print(
        f"\n{options.rows:,} rows, best of {options.rounds}\n\n| way | seconds | x limit | peak MB |\n|---|---|---|---|"
    )
    for way, found in best.items():
        ratio = f"{found['seconds'] / limit_s:.2f}" if limit_s else "–"
        print(f"| {WAYS[way]} | {found['seconds']:.2f} | {ratio} | {found['peak_mb']:.0f} |")


def run_way(way: str, target: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    rows = {
        "ours": ours,
        "ours-incremental": ours_incremental,
        "delta-merge": delta_merge,
        "connectorx": connectorx,
        "polars": polars,
    }[way](target)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mb": peak, "rows": rows}


def ours(target: dict[str, Any]) -> int:
    return _ours(target, "full")


def ours_incremental(target: dict[str, Any]) -> int:
    return _ours(target, "incremental")


def _ours(target: dict[str, Any], mode: str) -> int:
    from hfagent.foundation.clock import Deadline
    from hfagent.sdk.reading import SchemaRequest
    from hfagent.sdk.registry import Registry
    from hfagent.services.sync.engine import SyncJob, run
    from hfagent.services.sync.window import SyncPosition
    from tests.connectors.source import make

    config = {name: target[name] for name in ("host", "port", "database", "username", "password")}
    connector = make(Registry().get("postgresql"), config | {"sslmode": "disable"})
    connection = connector.connect(Deadline(30))
    stream = next(s for s in connector.read_schema(connection, SchemaRequest()) if s.name == "lineitem")
    directory, state = Path(target["work"]) / "ours", Path(target["work"]) / "state"
    position, durable = SyncPosition(), None
    if mode == "full":
        shutil.rmtree(directory, ignore_errors=True)
    else:
        lo, durable_text, sequence = state.read_text().split("|")
        found = json.loads(lo)
        position, durable = SyncPosition(**found), int(durable_text)
        assert position.sequence == int(sequence)
    job = SyncJob(
        run_id="bench", app_id="hfagent:bench", directory=directory, stream=stream, mode=mode,  # type: ignore[arg-type]
        watermark_column="updated_at", primary_key=("id",), position=position, durable=durable,
    )  # fmt: skip
    done = run(job, connector, connection, remember=lambda intent: intent)
    import dataclasses

    state.write_text(f"{json.dumps(dataclasses.asdict(done.position))}|{done.version}|{done.position.sequence}")
    print(done.stages, done.bytes_written, done.rows_written, done.rows_merged, done.files_rewritten, file=sys.stderr)
    return done.rows_read


def delta_merge(target: dict[str, Any]) -> int:
    """On a copy of our table. The rows do not come from the source here, so this way has less to do than ours."""
    import deltalake
    import pyarrow.compute as pc

    place = Path(target["work"]) / "plain"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(Path(target["work"]) / "ours", place)
    table = deltalake.DeltaTable(str(place))
    rows = table.to_pyarrow_dataset()
    last = max(high for high in (action["max.id"] for action in _actions(table)) if high is not None)
    change = rows.to_table(filter=pc.field("id") > last * 99 // 100)
    table.merge(change, "s.id = t.id", source_alias="s", target_alias="t").when_matched_update_all().execute()
    return int(change.num_rows)


def _actions(table: Any) -> list[dict[str, Any]]:
    import pyarrow as pa

    found: list[dict[str, Any]] = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    return found


def connectorx(target: dict[str, Any]) -> int:
    import connectorx as cx  # type: ignore[import-not-found]
    from deltalake import write_deltalake

    place = Path(target["work"]) / "connectorx"
    shutil.rmtree(place, ignore_errors=True)
    reader = cx.read_sql(target["dsn"], "SELECT * FROM lineitem", return_type="arrow_stream", batch_size=50_000)
    write_deltalake(str(place), reader, mode="overwrite")
    return 0


def polars(target: dict[str, Any]) -> int:
    import polars as pl  # type: ignore[import-not-found]

    place = Path(target["work"]) / "polars"
    shutil.rmtree(place, ignore_errors=True)
    frame = pl.read_database_uri("SELECT * FROM lineitem", target["dsn"])
    frame.write_delta(str(place), mode="overwrite")
    return int(frame.height)


if __name__ == "__main__":
    main()
