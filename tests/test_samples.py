"""The sample data: complete, consistent, the same every time, and readable by the connector that shows them."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path

import pytest

from hfagent.foundation.clock import Deadline
from hfagent.samples.generate import AS_OF, TABLES, postgres_script, tables, write_samples
from hfagent.sdk.connector import ConnectorContext
from hfagent.sdk.reading import ReadRequest, SchemaRequest
from hfagent.sdk.registry import Registry
from tests.fixtures.postgres import PostgresDatabase


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("samples")
    write_samples(directory)
    return directory


def test_sizes_and_names(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "customers.csv", "order_items.csv", "orders.csv", "products.csv", "targets.xlsx", "web_events.jsonl",
    ]  # fmt: skip
    assert {name: len(rows) for name, rows in tables().items()} == {
        "customers": 500, "products": 120, "orders": 5_000, "order_items": 15_000,
    }  # fmt: skip
    assert len((folder / "web_events.jsonl").read_text("utf-8").splitlines()) == 3_000


def test_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    tables.cache_clear()
    for path in write_samples(tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert postgres_script() == postgres_script()


def test_references_exist_and_totals_add_up() -> None:
    data = tables()
    customers = {row[0] for row in data["customers"]}
    products = {row[0]: row[4] for row in data["products"]}
    sums: dict[int, Decimal] = defaultdict(Decimal)
    for order, _, product, quantity, price, amount, _ in data["order_items"]:
        assert price == products[product]
        assert amount == price * quantity
        sums[order] += amount
    assert {row[0]: row[5] for row in data["orders"]} == sums
    assert {row[1] for row in data["orders"]} <= customers
    keys = Counter((row[0], row[1]) for row in data["order_items"])
    assert max(keys.values()) == 1


def test_watermarks_make_sense() -> None:
    for row in tables()["customers"]:
        assert row[9] <= row[10] <= AS_OF
    for row in tables()["orders"]:
        assert row[10] <= row[11] <= AS_OF
        assert row[9] is None or row[10] <= row[9] <= AS_OF
    assert [row[0] for row in tables()["orders"]] == sorted(row[0] for row in tables()["orders"])


def test_realistic_trouble_is_in_it(folder: Path) -> None:
    everything = {name: [value for row in rows for value in row] for name, rows in tables().items()}
    assert None in everything["customers"]
    assert None in everything["orders"]
    assert any("🦆" in str(v) for v in everything["products"])
    assert any("\n" in str(v) for v in everything["order_items"])
    assert any(str(v).startswith("0") for v in (row[6] for row in tables()["customers"]) if v)
    assert all(re.fullmatch(r"[a-z.]+\.\d+@example\.(com|net|org)", row[2]) for row in tables()["customers"])


def test_csv_files_hold_the_tables(folder: Path) -> None:
    for name, columns in TABLES.items():
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as handle:
            header, *rows = csv.reader(handle)
        assert header == list(columns)
        assert len(rows) == len(tables()[name])


def test_events_are_json_with_varying_keys(folder: Path) -> None:
    events = [json.loads(line) for line in (folder / "web_events.jsonl").read_text("utf-8").splitlines()]
    assert len({tuple(sorted(event)) for event in events}) >= 3
    moments = [event["at"] for event in events]
    assert moments == sorted(moments)
    assert moments[-1] <= AS_OF.isoformat() + "Z"
    orders = {row[0] for row in tables()["orders"]}
    assert {event["order_id"] for event in events if "order_id" in event} <= orders


def test_workbook_is_read_by_another_program(folder: Path) -> None:
    import openpyxl

    book = openpyxl.load_workbook(folder / "targets.xlsx")
    rows = list(book["Targets"].iter_rows(values_only=True))
    assert rows[0] == ("category", "quarter", "starts_on", "revenue_target", "orders_target", "approved")
    assert len(rows) == 41
    assert rows[1][2].isoformat() == "2024-01-01T00:00:00"
    assert zipfile.ZipFile(folder / "targets.xlsx").testzip() is None


def test_the_connector_reads_all_of_it_typed(folder: Path, tmp_path: Path) -> None:
    context = ConnectorContext(allowed_paths=(folder,), scratch_dir=tmp_path)
    cls = Registry().get("csv")
    connector = cls(cls.Config.parse({"path": str(folder)}), context)
    connection = connector.connect(Deadline(10))
    streams = {s.name: s for s in connector.read_schema(connection, SchemaRequest())}
    assert set(streams) == {*TABLES, "web_events", "targets"}
    assert all(not s.warnings for s in streams.values()), [s.warnings for s in streams.values()]
    types = {f"{s.name}.{c.name}": str(c.type) for s in streams.values() for c in s.columns}
    assert types["customers.postal_code"] == "string"
    assert types["customers.newsletter"] == "bool"
    assert types["customers.updated_at"] == "timestamp"
    assert types["products.price"] == "decimal(18,2)"
    assert types["products.weight_kg"] == "decimal(18,4)"
    assert types["orders.ordered_on"] == "date"
    assert types["orders.coupon"] == "string"
    assert types["web_events.at"] == "timestamptz"
    assert types["web_events.device"] == "json"
    assert types["targets.starts_on"] == "date"
    for name, rows in tables().items():
        with connector.read_rows(connection, streams[name], ReadRequest()) as reader:
            read = [tuple(row.values()) for batch in reader for row in batch.to_pylist()]
        assert read == rows
    connector.close(connection)


def test_script_has_every_row_and_no_loose_quote() -> None:
    script = postgres_script("my demo")
    assert script.startswith('BEGIN;\nDROP SCHEMA IF EXISTS "my demo" CASCADE;')
    assert script.endswith("COMMIT;\n")
    outside = re.sub(r"'(?:[^']|'')*'", "", script)
    assert "'" not in outside
    statements = [s for s in outside.split(";") if "INSERT INTO" in s]
    assert sum(len(re.findall(r"^\(", s, re.MULTILINE)) for s in statements) == 20_620


def test_script_runs_twice_and_holds_the_same_rows(postgres_database: PostgresDatabase) -> None:
    import psycopg

    with psycopg.connect(postgres_database.dsn("hf"), autocommit=True) as connection:
        for _ in range(2):
            connection.execute(postgres_script())
        for name, rows in tables().items():
            order = "order_id, line" if name == "order_items" else next(iter(TABLES[name]))
            assert connection.execute(f"SELECT * FROM hfagent_demo.{name} ORDER BY {order}").fetchall() == rows
