"""Merging by key, held against a dictionary; files without a changed key are not touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfagent.foundation.errors import AgentError
from hfagent.lakehouse.merge import merge
from hfagent.lakehouse.table import Commit, LakeTable

SCHEMA = pa.schema([("id", pa.int64()), ("part", pa.string()), ("value", pa.int64()), ("digest", pa.string())])
APP = "hfagent:a:c:s"


def change(*rows: tuple[int | None, str, int]) -> pa.Table:
    return pa.table(
        {
            "id": [row[0] for row in rows],
            "part": [row[1] for row in rows],
            "value": [row[2] for row in rows],
            "digest": [f"{row}" for row in rows],
        },
        schema=SCHEMA,
    )


def content(directory: Path) -> dict[tuple[int, str], int]:
    found: list[dict[str, Any]] = deltalake.DeltaTable(str(directory)).to_pyarrow_table().to_pylist()
    result = {(row["id"], row["part"]): row["value"] for row in found}
    assert len(result) == len(found), "a key is there twice"
    return result


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab"), st.integers(0, 3)), min_size=1, max_size=12),
        min_size=1,
        max_size=5,
    )
)
def test_it_does_what_a_dictionary_does(
    tmp_path_factory: pytest.TempPathFactory, changes: list[list[tuple[int, str, int]]]
) -> None:
    directory = tmp_path_factory.mktemp("merge") / "t"
    expected: dict[tuple[int, str], int] = {}
    with LakeTable.open(directory, SCHEMA, app_id=APP) as table:
        for rows in changes:
            before = dict(expected)
            expected.update({(row[0], row[1]): row[2] for row in rows})
            sequence = table.sequence + 1
            done = merge(
                table,
                change(*rows),
                Commit(sequence),
                keys=["id", "part"],
                compare=["digest"],
                target_bytes=1,
                group_bytes=1,
            )
            if expected == before:
                assert done is None
                assert table.sequence == sequence - 1
            else:
                assert done is not None
                assert done.inserted == len(expected) - len(before)
                assert done.updated == sum(1 for key, value in before.items() if expected[key] != value)
                assert table.sequence == sequence
    assert content(directory) == expected


def many_files(table: LakeTable) -> None:
    stage = table.stage(target_bytes=1, group_bytes=1)
    for start in range(0, 100, 10):
        stage.write_all(change(*((number, "a", 0) for number in range(start, start + 10))).to_batches())
    table.append(stage.finish(), Commit(1))


def test_only_files_with_a_changed_key_are_rewritten(tmp_path: Path) -> None:
    with LakeTable.open(tmp_path / "t", SCHEMA, app_id=APP) as table:
        many_files(table)
        before = {file.name for file in table.files()}
        done = merge(table, change((42, "a", 7), (95, "a", 7), (200, "a", 7)), Commit(2), keys=["id"])
        assert done is not None
        assert (done.inserted, done.updated, done.files_rewritten, done.files_skipped) == (1, 2, 2, 8)
        assert len(before & {file.name for file in table.files()}) == 8
        assert table.rows == 101


def test_rows_that_are_there_already_cost_nothing(tmp_path: Path) -> None:
    with LakeTable.open(tmp_path / "t", SCHEMA, app_id=APP) as table:
        many_files(table)
        version = table.version
        again = change(*((number, "a", 0) for number in range(20, 40)))
        assert merge(table, again, Commit(2), keys=["id"], compare=["digest"]) is None
        assert (table.version, table.sequence) == (version, 1)
        mixed = pa.concat_tables([again, change((41, "a", 5))])
        done = merge(table, mixed, Commit(2), keys=["id"], compare=["digest"])
        assert done is not None
        assert (done.unchanged, done.updated, done.files_rewritten) == (20, 1, 1)


def test_a_replay_changes_nothing(tmp_path: Path) -> None:
    with LakeTable.open(tmp_path / "t", SCHEMA, app_id=APP) as table:
        many_files(table)
        merge(table, change((1, "a", 5)), Commit(2), keys=["id"])
        version = table.version
        done = merge(table, change((1, "a", 9)), Commit(2), keys=["id"])
        assert done is not None
        assert done.committed.replayed
        assert table.version == version
    assert content(tmp_path / "t")[(1, "a")] == 5


def test_a_key_without_value_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with LakeTable.open(tmp_path / "t", SCHEMA, app_id=APP) as table:
        many_files(table)
        files = set((tmp_path / "t").iterdir())
        with pytest.raises(AgentError) as caught:
            merge(table, change((1, "a", 5), (None, "a", 5)), Commit(2), keys=["id"])
        assert caught.value.code == "lakehouse.null_key"
        assert "'id'" in caught.value.message
        assert set((tmp_path / "t").iterdir()) == files


def test_older_files_take_the_columns_that_came_later(tmp_path: Path) -> None:
    with LakeTable.open(tmp_path / "t", SCHEMA, app_id=APP) as table:
        many_files(table)
        table.add_columns([pa.field("note", pa.string())])
        new = change((3, "a", 9)).append_column("note", pa.array(["late"])).select(table.schema.names)
        merge(table, new.cast(table.schema), Commit(2), keys=["id"], compare=["digest"])
    found = deltalake.DeltaTable(str(tmp_path / "t")).to_pyarrow_table()
    notes = dict(zip(found["id"].to_pylist(), found["note"].to_pylist(), strict=True))
    assert notes == {number: "late" if number == 3 else None for number in range(100)}
