"""Commits with a sequence: what they hold, what a replay does, how schemas change, what is refused."""

from __future__ import annotations

import decimal
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfagent.foundation.errors import AgentError, InternalError
from hfagent.lakehouse.maintenance import vacuum
from hfagent.lakehouse.merge import merge
from hfagent.lakehouse.stage import Stage
from hfagent.lakehouse.table import Commit, LakeTable

SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])
APP = "hfagent:a:c:s"


def rows(*ids: int, text: str = "x") -> pa.Table:
    return pa.table({"id": list(ids), "text": [text] * len(ids)}, schema=SCHEMA)


def put(table: LakeTable, data: pa.Table, sequence: int, **details: str) -> bool:
    stage = table.stage().write_all(data.to_batches())
    return table.append(stage.finish(), Commit(sequence, details)).replayed


def read(directory: Path) -> Counter[int]:
    """What another Delta reader sees."""
    return Counter(deltalake.DeltaTable(str(directory)).to_pyarrow_table()["id"].to_pylist())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "lake" / "orders"


def test_what_is_committed_is_there_with_its_details(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        assert (table.sequence, table.rows, table.last_commit()) == (0, 0, None)
        put(table, rows(1, 2), 1, watermark="2026-01-01")
        put(table, rows(3), 2, watermark="2026-01-02 00:00:00.123456+00")
        assert (table.sequence, table.rows) == (2, 3)
    with LakeTable.open(directory, SCHEMA, app_id=APP, durable=2) as table:
        last = table.last_commit()
        assert last is not None
        assert (last.sequence, last.details) == (2, {"watermark": "2026-01-02 00:00:00.123456+00"})
        assert table.recovery.set_aside == ()
    assert read(directory) == Counter([1, 2, 3])


def test_a_sequence_that_is_there_is_not_written_again(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        put(table, rows(1), 1)
        put(table, rows(2), 2, watermark="w")
        version = table.version
        stage = table.stage().write_all(rows(2).to_batches())
        again = table.append(stage.finish(), Commit(2))
        assert (again.replayed, again.sequence, again.details) == (True, 2, {"watermark": "w"})
        assert table.append((), Commit(1)).replayed
        assert table.version == version
    assert read(directory) == Counter([1, 2])


def test_plain_delta_would_have_doubled_it(directory: Path) -> None:
    """The control: why the sequence is read and compared at all."""
    from deltalake.transaction import CommitProperties, Transaction

    directory.mkdir(parents=True)
    for _ in range(2):
        properties = CommitProperties(app_transactions=[Transaction(APP, 1)])
        deltalake.write_deltalake(str(directory), rows(1), mode="append", commit_properties=properties)
    assert read(directory) == Counter({1: 2})


def test_two_applications_keep_their_own_count(directory: Path) -> None:
    for sequence in (1, 2):
        for app in ("one", "two"):
            with LakeTable.open(directory, SCHEMA, app_id=app) as table:
                put(table, rows(sequence), sequence)
    assert read(directory) == Counter({1: 2, 2: 2})


def test_a_second_writer_is_told_at_once(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP):
        with pytest.raises(AgentError) as caught:
            LakeTable.open(directory, SCHEMA, app_id="other")
        assert caught.value.code == "lakehouse.busy"
        assert caught.value.hint
        program = (
            "import sys, pyarrow as pa\nfrom pathlib import Path\n"
            "from hfagent.foundation.errors import AgentError\nfrom hfagent.lakehouse.table import LakeTable\n"
            "try:\n    LakeTable.open(Path(sys.argv[1]), pa.schema([('id', pa.int64())]), app_id='x')\n"
            "except AgentError as error:\n    print(error.code)\n"
        )
        other = subprocess.run([sys.executable, "-c", program, str(directory)], capture_output=True, text=True)
        assert other.stdout.strip() == "lakehouse.busy"
    LakeTable.open(directory, SCHEMA, app_id=APP).close()


def test_a_writer_that_does_not_know_the_lock_is_noticed(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        put(table, rows(1), 1)
        deltalake.write_deltalake(str(directory), rows(9), mode="overwrite")
        stage = table.stage().write_all(rows(2).to_batches())
        with pytest.raises(AgentError) as caught:
            table.replace(stage.finish(), Commit(2))
        assert caught.value.code == "lakehouse.conflict"
        assert caught.value.retryable
    assert read(directory) == Counter([9])


def test_replacing_shows_the_old_rows_to_those_who_read_an_old_version(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        put(table, rows(1, 2, 3), 1)
        before = table.version
        stage = table.stage().write_all(rows(7).to_batches())
        done = table.replace(stage.finish(), Commit(2))
        assert (done.added, done.removed) == (1, 1)
        assert table.rows == 1
    assert read(directory) == Counter([7])
    old = deltalake.DeltaTable(str(directory), version=before)
    assert sorted(old.to_pyarrow_table()["id"].to_pylist()) == [1, 2, 3]


def test_replacing_with_another_schema(directory: Path) -> None:
    other = pa.schema([("id", pa.string()), ("at", pa.timestamp("us"))])
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        put(table, rows(1), 1)
        data = pa.table({"id": ["a"], "at": [datetime(1969, 12, 31, 23, 59, 59, 999_999)]}, schema=other)
        stage = Stage(directory, other).write_all(data.to_batches())
        table.replace(stage.finish(), Commit(2), schema=other)
        assert table.schema.equals(other)
    assert deltalake.DeltaTable(str(directory)).to_pyarrow_table().equals(data)


def test_new_columns_are_empty_in_old_rows(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        put(table, rows(1), 1)
        table.add_columns(
            [pa.field("amount", pa.decimal128(38, 18), nullable=False), pa.field("at", pa.timestamp("us"))]
        )
        assert table.schema.names == ["id", "text", "amount", "at"]
        data = pa.table(
            {"id": [2], "text": [None], "amount": [decimal.Decimal("0.000000000000000001")], "at": [None]},
            schema=table.schema,
        )
        put(table, data, 2)
    found = deltalake.DeltaTable(str(directory)).to_pyarrow_table().sort_by("id")
    assert found["amount"].to_pylist() == [None, decimal.Decimal("0.000000000000000001")]
    with LakeTable.open(directory, SCHEMA, app_id=APP, durable=4) as table:
        assert table.recovery.set_aside == ()


def test_files_are_cut_at_their_size_and_described(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        stage = table.stage(target_bytes=1, group_bytes=1)
        for start in range(0, 50, 10):
            stage.write_all(rows(*range(start, start + 10), text=f"t{start}").to_batches())
        files = stage.finish()
        assert len(files) == 5
        assert stage.rows == 50
        assert stage.bytes == sum((directory / file.name).stat().st_size for file in files)
        table.append(files, Commit(1))
        seen = sorted((f.statistics["minValues"]["id"], f.statistics["maxValues"]["id"], f.rows) for f in table.files())
        assert seen == [(start, start + 9, 10) for start in range(0, 50, 10)]


def test_a_discarded_stage_leaves_nothing(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        stage = (
            table.stage(target_bytes=1, group_bytes=1).write_all(rows(1).to_batches()).write_all(rows(2).to_batches())
        )
        stage.discard()
        assert not list(directory.glob("*.parquet"))
        assert stage.finish() == ()


def test_vacuum_keeps_what_is_read_or_may_be(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        put(table, rows(1, 2), 1)
        replaced = {file.name for file in table.files()}
        stage = table.stage().write_all(rows(3).to_batches())
        table.replace(stage.finish(), Commit(2))
        table.stage().write_all(rows(4).to_batches()).finish()  # a run that died before its commit
        stranger = directory / "notes.parquet"
        stranger.write_bytes(b"not ours")
        now = os.stat(directory / next(iter(replaced))).st_mtime
        assert vacuum(table, now=now + 60).files == 0
        assert vacuum(table, now=now + 2 * 86_400).files == 1  # the orphan
        assert vacuum(table, now=now + 8 * 86_400).files == 1  # the replaced one
        assert not (directory / next(iter(replaced))).exists()
        assert stranger.exists()
        with pytest.raises(InternalError):
            vacuum(table, retention_s=-1)
    assert read(directory) == Counter([3])


def test_a_checkpoint_changes_nothing(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        put(table, rows(1), 1)
        table.checkpoint()
        put(table, rows(2), 2)
    assert json.loads((directory / "_delta_log" / "_last_checkpoint").read_bytes())["version"] == 1
    assert read(directory) == Counter([1, 2])
    with LakeTable.open(directory, SCHEMA, app_id=APP, durable=2) as table:
        assert (table.sequence, table.recovery.set_aside) == (2, ())


def test_other_peoples_directories_are_left_alone(directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o700)
    (directory / "thesis.doc").write_text("dear reader")
    with pytest.raises(AgentError) as caught:
        LakeTable.open(directory, SCHEMA, app_id=APP)
    assert caught.value.code == "lakehouse.foreign"
    assert not (directory / "_delta_log").exists()


def test_a_sequence_starts_at_one(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table, pytest.raises(InternalError):
        table.append((), Commit(0))


TYPES = pa.schema(
    [
        ("big", pa.decimal128(38, 18)),
        ("at", pa.timestamp("us", "UTC")),
        ("naive", pa.timestamp("us")),
        ("day", pa.date32()),
        ("number", pa.float64()),
        ("text", pa.string()),
        ("raw", pa.binary()),
        ("yes", pa.bool_()),
        ("small", pa.int16()),
        ("list", pa.list_(pa.string())),
    ]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "big": st.none() | st.decimals(min_value=-(10**19), max_value=10**19, places=18),
                "at": st.none() | st.datetimes(timezones=st.just(UTC)),
                "naive": st.none() | st.datetimes(),
                "day": st.none() | st.dates(),
                "number": st.none() | st.floats(allow_nan=False),
                "text": st.none() | st.text(),
                "raw": st.none() | st.binary(),
                "yes": st.none() | st.booleans(),
                "small": st.none() | st.integers(-(2**15), 2**15 - 1),
                "list": st.none() | st.lists(st.none() | st.text()),
            }
        ),
        min_size=1,
        max_size=20,
    )
)
def test_every_type_survives(tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, object]]) -> None:
    directory = tmp_path_factory.mktemp("types") / "t"
    data = pa.Table.from_pylist(values, schema=TYPES)
    with LakeTable.open(directory, TYPES, app_id=APP) as table:
        stage = table.stage().write_all(data.to_batches())
        table.append(stage.finish(), Commit(1))
    assert deltalake.DeltaTable(str(directory)).to_pyarrow_table().equals(data)


def test_special_values_survive(directory: Path) -> None:
    data = pa.table(
        {
            "big": [decimal.Decimal("99999999999999999999.999999999999999999"), None],
            "at": [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)],
            "naive": [None, None],
            "day": [date(1, 1, 1), date(9999, 12, 31)],
            "number": [float("nan"), float("-inf")],
            "text": ["nul \0 and 😀", "m" * 1_000_000],
            "raw": [b"\0" * 10, b""],
            "yes": [None, True],
            "small": [None, -1],
            "list": [[], [None, ""]],
        },
        schema=TYPES,
    )
    with LakeTable.open(directory, TYPES, app_id=APP) as table:
        table.append(table.stage().write_all(data.to_batches()).finish(), Commit(1))
        statistics = table.files()[0].statistics
        assert statistics["minValues"].get("number") is None  # a NaN has no place in an order
    found = deltalake.DeltaTable(str(directory)).to_pyarrow_table()
    assert str(found["number"].to_pylist()[0]) == "nan"
    assert found.drop_columns("number").equals(data.drop_columns("number"))


@pytest.mark.parametrize("change", ["append", "merge"])
def test_a_commit_whose_sync_failed_keeps_its_files(
    directory: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log names them already: removing them would leave readers with a table that cannot be read."""
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        put(table, rows(1), 1)

        def fail(path: Path) -> None:
            raise OSError(5, "Input/output error", str(path))

        with monkeypatch.context() as broken:
            broken.setattr("hfagent.lakehouse.table.sync_file", fail)
            with pytest.raises(AgentError) as caught:
                if change == "merge":
                    merge(table, rows(2), Commit(2), keys=["id"])
                else:
                    with table.staging() as stage:
                        table.append(stage.write_all(rows(2).to_batches()).finish(), Commit(2))
        assert caught.value.code == "internal.store"
        assert read(directory) == Counter([1, 2])
    with LakeTable.open(directory, SCHEMA, app_id=APP, durable=1) as table:
        assert (table.sequence, table.recovery.set_aside) == (2, ())


def test_a_change_that_was_refused_leaves_no_files(directory: Path) -> None:
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        with pytest.raises(RuntimeError), table.staging() as stage:
            stage.write_all(rows(2).to_batches()).finish()
            raise RuntimeError("the source failed")
        assert not list(directory.glob("*.parquet"))
