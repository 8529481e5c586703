"""Exports: the whole result or no file, never over another one unasked, in three formats."""

from __future__ import annotations

import asyncio
import base64
import csv
import datetime as dt
import decimal
import errno
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as papq
import pytest

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.errors import AgentError, ConfigError, SourceError, UserError
from hfagent.model.settings import PolicySettings
from hfagent.services import export
from tests.services.fakes import GUEST, World, batch, blocked, call, cancelling, counted, scenario, until


async def exported(world: World, path: Path, sql: str = "select", **options: Any) -> Any:
    return await world.query.export(call(), "main", sql, path, **options)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    if path.suffix == ".parquet":
        return papq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl", "ndjson"])
@pytest.mark.parametrize("rows", [0, 1, 25])
@scenario
async def test_the_whole_result_lands_in_the_file(world: World, target: Path, ending: str, rows: int) -> None:
    await world.add()
    world.source.on("select", counted(rows, 10))
    path = target / f"out.{ending}"
    report = await exported(world, path)
    assert [int(row["n"]) for row in read(path)] == list(range(rows))
    assert (report.rows, report.bytes, report.truncated) == (rows, path.stat().st_size, False)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in target.iterdir()] == [path.name]
    assert world.stats().busy == 0


@pytest.mark.parametrize(
    ("rows", "limit", "kept", "truncated"), [(10, 10, 10, False), (11, 10, 10, True), (5, 10, 5, False)]
)
@pytest.mark.parametrize("size", [1, 4, 100])
@scenario
async def test_a_limit_cuts_exactly_and_says_so(
    world: World, target: Path, rows: int, limit: int, kept: int, truncated: bool, size: int
) -> None:
    await world.add()
    world.source.on("select", counted(rows, size))
    report = await exported(world, target / "x.jsonl", max_rows=limit)
    assert (report.rows, report.truncated) == (kept, truncated)
    assert len(read(target / "x.jsonl")) == kept
    world.policy_settings = PolicySettings(max_query_rows=3)
    assert (await exported(world, target / "y.jsonl")).rows == 3


@scenario
async def test_every_type_survives_or_has_a_readable_form(world: World, target: Path) -> None:
    await world.add()
    moment = dt.datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=dt.UTC)
    columns: dict[str, pa.Array] = {
        "b": pa.array([True, None]),
        "i": pa.array([2**63 - 1, None]),
        "f": pa.array([float("nan"), float("inf")]),
        "d": pa.array([decimal.Decimal("12.50"), None], pa.decimal128(38, 2)),
        "D": pa.array([decimal.Decimal("1e60"), None], pa.decimal256(76, 2)),
        "s": pa.array(['quote " comma , newline \n é 😀', ""]),
        "x": pa.array([b"\x00\xff", None]),
        "day": pa.array([dt.date(1066, 10, 14), None]),
        "t": pa.array([dt.time(12, 30, 1, 5), None], pa.time64("us")),
        "ts": pa.array([moment.replace(tzinfo=None), None], pa.timestamp("us")),
        "tz": pa.array([moment, None], pa.timestamp("us", "UTC")),
        "l": pa.array([[1, 2], None]),
        "st": pa.array([{"a": 1, "b": "x"}, None]),
        "v": pa.array([[0.5, 1.5], None], pa.list_(pa.float32(), 2)),
        "n": pa.nulls(2),
        "dict": pa.array(["a", "b"]).dictionary_encode(),
    }
    world.source.on("select", [pa.RecordBatch.from_pydict(columns)])
    for ending in ("csv", "parquet", "jsonl"):
        await exported(world, target / f"out.{ending}")
    first = read(target / "out.csv")[0]
    assert (first["b"], first["i"], first["d"]) == ("true", str(2**63 - 1), "12.50")
    assert first["s"] == 'quote " comma , newline \n é 😀'
    assert base64.b64decode(first["x"]) == b"\x00\xff"
    assert first["tz"] == "2024-02-29T23:59:59.123456Z"
    assert json.loads(first["l"]) == [1, 2]
    assert json.loads(first["st"]) == {"a": 1, "b": "x"}
    line = read(target / "out.jsonl")[0]
    assert (line["f"], line["i"], line["ts"]) == ("NaN", str(2**63 - 1), "2024-02-29T23:59:59.123456")
    row = read(target / "out.parquet")[0]
    assert (row["tz"], row["D"], row["v"]) == (moment, decimal.Decimal("1e60"), [0.5, 1.5])
    assert read(target / "out.parquet")[1]["s"] == ""


@scenario
async def test_an_empty_text_and_no_value_differ_in_csv(world: World, target: Path) -> None:
    await world.add()
    world.source.on("select", [batch("", None, "x")])
    await exported(world, target / "x.csv")
    assert (target / "x.csv").read_text().splitlines()[1:] == ['""', "", '"x"']


@scenario
async def test_columns_of_one_name_are_all_there(world: World, target: Path) -> None:
    await world.add()
    twice = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "a", "a_2"])
    world.source.on("select", [twice])
    for ending in ("jsonl", "parquet"):
        await exported(world, target / f"x.{ending}")
        assert sorted(read(target / f"x.{ending}")[0].values()) == [1, 2, 3]
    await exported(world, target / "x.csv")
    assert (target / "x.csv").read_text().splitlines() == ['"a","a","a_2"', "1,2,3"]


@scenario
async def test_long_values_are_not_cut(world: World, target: Path) -> None:
    await world.add()
    world.source.on("select", [batch("x" * 17_000_000)])
    await exported(world, target / "x.jsonl")
    assert len(read(target / "x.jsonl")[0]["n"]) == 17_000_000


@scenario
async def test_an_existing_file_is_replaced_only_when_asked(world: World, target: Path) -> None:
    await world.add()
    world.source.on("select", counted(3, 3))
    path = target / "x.csv"
    path.write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        await exported(world, path)
    assert path.read_text() == "precious"
    await exported(world, path, overwrite=True)
    assert len(read(path)) == 3
    link = target / "link.csv"
    link.symlink_to(target / "nowhere")
    with pytest.raises(UserError, match="exists already"):
        await exported(world, link)
    (target / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        await exported(world, target / "folder.csv", overwrite=True)
    assert world.stats().busy == 0


@scenario
async def test_a_file_that_appears_meanwhile_is_not_overwritten(world: World, target: Path) -> None:
    await world.add()
    path = target / "x.csv"

    def answer(_c: Any, _s: Any) -> Iterator[pa.RecordBatch]:
        yield batch(1)
        path.write_text("precious")
        yield batch(2)

    world.source.on("select", answer)
    with pytest.raises(UserError, match="exists already"):
        await exported(world, path)
    assert path.read_text() == "precious"
    assert [file.name for file in target.iterdir()] == ["x.csv"]


@scenario
async def test_what_breaks_off_leaves_nothing_behind(world: World, target: Path) -> None:
    await world.add()

    def fails(_c: Any, _s: Any) -> Iterator[pa.RecordBatch]:
        yield batch(1)
        raise SourceError("the server broke off", code="transient.failover")

    world.source.on("select", fails)
    with pytest.raises(SourceError, match="broke off"):
        await exported(world, target / "x.csv")
    world.source.stuck("sleep", rows_before=3)
    token = CancelToken()
    running = asyncio.ensure_future(world.query.export(call(cancel=token), "main", "sleep", target / "y.csv"))
    await blocked(world.source)
    cancelling(running, token)
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: world.stats().busy == 0, "the connection is back")
    assert list(target.iterdir()) == []
    assert world.source.counts["cancel"] == 1


@scenario
async def test_a_reader_that_just_stops_when_cancelled_is_no_whole_result(world: World, target: Path) -> None:
    await world.add()
    begun = threading.Event()

    def answer(_c: Any, statement: Any) -> Iterator[pa.RecordBatch]:
        yield batch(1)
        begun.set()
        statement.cancel.wait(20)

    world.source.on("select", answer)
    token = CancelToken()
    running = asyncio.ensure_future(world.query.export(call(cancel=token), "main", "select", target / "y.csv"))
    await until(begun.is_set, "the export begins")
    cancelling(running, token)
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: world.stats().busy == 0, "the connection is back")
    assert list(target.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "agent.disk_full"), (errno.EDQUOT, "agent.disk_full"), (errno.EIO, "config.invalid")],
)
@scenario
async def test_trouble_with_the_file_is_not_the_sources(
    world: World, target: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    await world.add()
    world.source.on("select", counted(3, 3))
    await world.query.execute(call(), "main", "select")

    def full(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(export.os, "fsync", full)
    with pytest.raises(AgentError) as caught:
        await exported(world, target / "x.csv")
    assert caught.value.code == code
    assert list(target.iterdir()) == []
    assert world.stats().idle == 1  # the connection is as good as before


@scenario
async def test_where_nobody_exports_to(world: World, target: Path) -> None:
    await world.add()
    world.source.on("select", counted(3, 3))
    for path in (Path("x.csv"), target / "a" / "..", Path("/"), Path(f"{target}/a\0b.csv")):
        with pytest.raises(ConfigError, match="is not the absolute path of a file"):
            await exported(world, path, format="csv")
    with pytest.raises(ConfigError) as caught:
        await exported(world, world.directory / "agent.db", format="csv", overwrite=True)
    assert caught.value.code == "config.policy_denied"
    sneaky = target / "sneaky"
    sneaky.symlink_to(world.directory)
    with pytest.raises(ConfigError):
        await exported(world, sneaky / "agent.db", format="csv", overwrite=True)
    with pytest.raises(ConfigError, match="cannot tell the export format"):
        await exported(world, target / "x.xlsx")
    with pytest.raises(UserError, match="does not exist"):
        await exported(world, target / "missing" / "x.csv")
    with pytest.raises(UserError):
        await exported(world, target / ("x" * 300 + ".csv"))
    assert world.source.counts["execute"] <= 2
    assert list(target.iterdir()) == [sneaky]


@scenario
async def test_the_owner_decides_where_exports_go_and_guests_need_his_word(world: World, target: Path) -> None:
    await world.add()
    world.source.on("select", counted(3, 3))
    with pytest.raises(ConfigError) as caught:
        await world.query.export(call(actor=GUEST), "main", "select", target / "x.csv")
    assert caught.value.code == "config.policy_denied"
    allowed = target / "allowed"
    allowed.mkdir()
    world.policy_settings = PolicySettings(export_paths=(str(allowed),))
    await world.query.export(call(actor=GUEST), "main", "select", allowed / "x.csv")
    escape = allowed / "escape"
    escape.symlink_to(target)
    for path in (target / "x.csv", allowed / ".." / "x.csv", escape / "x.csv"):
        with pytest.raises(ConfigError) as caught:
            await exported(world, path)
        assert caught.value.code == "config.policy_denied"


@scenario
async def test_progress_tells_rows_and_bytes(world: World, target: Path) -> None:
    await world.add()
    world.source.on("select", counted(30, 10))
    reports: list[dict[str, Any]] = []
    await world.query.export(call(reports=reports), "main", "select", target / "x.csv")
    assert [report["kind"] for report in reports] == ["begin", "report", "end"]
    assert reports[-1]["rows"] == 30
    assert reports[-1]["bytes"] == (target / "x.csv").stat().st_size
