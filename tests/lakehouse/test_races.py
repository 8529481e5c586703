"""Two writers of one table, and batches that come again: one gets the table, and nothing is there twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hfagent.foundation.errors import AgentError
from hfagent.lakehouse.table import Commit, LakeTable
from tests.lakehouse import faults, victim

ROUNDS = 100 if faults.FULL else 15
REPLAYS = 100

HOLDER = """
import sys
from pathlib import Path
from hfagent.lakehouse.table import LakeTable
from tests.lakehouse import victim
with LakeTable.open(Path(sys.argv[1]), victim.schema(), app_id="holder"):
    print("held", flush=True)
    sys.stdin.readline()
"""
WRITER = "import sys; from tests.lakehouse.test_races import write; write(*sys.argv[1:])"


def batch(number: int, app: str) -> Any:
    import pyarrow as pa

    columns = {"id": [number], "changed": [number], "text": [app], "digest": [f"{app}{number}"]}
    return pa.table(columns, schema=victim.schema())


def add(table: LakeTable, number: int, app: str) -> Any:
    files = table.stage().write_all(batch(number, app).to_batches()).finish()
    return table.append(files, Commit(number, {"text": app}))


def write(directory: str, app: str, rounds: str, label: str) -> None:
    """What a racing process does: every sequence once, as soon as the table is free."""
    deadline = time.monotonic() + 90
    for number in range(1, int(rounds) + 1):
        while True:
            try:
                with LakeTable.open(Path(directory), victim.schema(), app_id=app) as table:
                    if table.sequence < number:
                        add(table, number, label)
                break
            except AgentError as exc:
                assert exc.code == "lakehouse.busy" and time.monotonic() < deadline, exc
                time.sleep(0.001)


def process(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=faults.ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def texts(directory: Path) -> Counter[tuple[str, int]]:
    import deltalake

    table = deltalake.DeltaTable(str(directory)).to_pyarrow_table()
    return Counter((row["text"], row["id"]) for row in table.to_pylist())


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_a_table_that_another_process_holds_is_refused_at_once(tmp_path: Path, end: str) -> None:
    directory = tmp_path / "table"
    holder = process(HOLDER, str(directory))
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        before = faults.tree_digest(directory)
        for _ in range(3):
            with pytest.raises(AgentError) as refused:
                LakeTable.open(directory, victim.schema(), app_id="other")
            assert refused.value.code == "lakehouse.busy"
        assert faults.tree_digest(directory) == before
    finally:
        if end == "killed":
            holder.kill()
        holder.communicate("\n", timeout=30)
    with LakeTable.open(directory, victim.schema(), app_id="other") as table:
        assert add(table, 1, "after").version == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("apps", [("one", "two"), ("same", "same")])
def test_processes_that_race_for_a_table_all_land(tmp_path: Path, apps: tuple[str, str]) -> None:
    directory = tmp_path / "table"
    writers = [process(WRITER, str(directory), app, str(ROUNDS), label) for app, label in zip(apps, "ab", strict=True)]
    for writer in writers:
        _, errors = writer.communicate(timeout=240)
        assert writer.returncode == 0, errors
    found = texts(directory)
    if apps[0] == apps[1]:  # who came first is open; that each sequence is there once is not
        assert Counter(number for _, number in found.elements()) == Counter(range(1, ROUNDS + 1))
    else:
        assert found == Counter((label, number) for label in "ab" for number in range(1, ROUNDS + 1))


def test_a_replay_adds_nothing_however_often_it_comes(tmp_path: Path) -> None:
    directory = tmp_path / "table"
    with LakeTable.open(directory, victim.schema(), app_id="a") as table:
        for number in (1, 2, 3):
            add(table, number, "x")
        version, wanted = table.version, texts(directory)
        log = faults.tree_digest(directory / "_delta_log")
        for number in (3, 2, 1):
            for _ in range(REPLAYS):
                answer = table.append((), Commit(number, {"text": "again"}))
                assert answer.replayed and (answer.version, answer.sequence, answer.added) == (version, 3, 0)
        assert answer.details == {}
        assert table.append((), Commit(3)).details == {"text": "x"}
    for number in (3, 2, 1):  # and as a restarted process does it, with files staged in vain
        with LakeTable.open(directory, victim.schema(), app_id="a", durable=version) as table:
            assert add(table, number, "x").replayed
            assert table.sequence == 3
    assert texts(directory) == wanted
    assert faults.tree_digest(directory / "_delta_log") == log


def test_two_applications_count_each_for_itself(tmp_path: Path) -> None:
    directory = tmp_path / "table"
    durable: dict[str, int | None] = {"a": None, "b": None}
    for number in range(1, 6):
        for app in durable:
            with LakeTable.open(directory, victim.schema(), app_id=app, durable=durable[app]) as table:
                assert table.sequence == number - 1
                durable[app] = add(table, number, app).version
    assert texts(directory) == Counter((app, number) for app in "ab" for number in range(1, 6))


def test_control_delta_rs_itself_takes_a_replay_for_new_rows(tmp_path: Path) -> None:
    import deltalake

    directory = tmp_path / "table"
    with LakeTable.open(directory, victim.schema(), app_id="a") as table:
        add(table, 1, "x")
    again = deltalake.CommitProperties(app_transactions=[deltalake.Transaction("a", 1)])
    deltalake.write_deltalake(str(directory), batch(1, "x"), mode="append", commit_properties=again)
    assert texts(directory) == Counter({("x", 1): 2})


def test_a_foreign_writer_that_was_faster_is_a_conflict_and_keeps_its_rows(tmp_path: Path) -> None:
    import deltalake

    directory = tmp_path / "table"
    with LakeTable.open(directory, victim.schema(), app_id="a") as table:
        durable = add(table, 1, "ours").version
        deltalake.write_deltalake(str(directory), batch(7, "theirs"), mode="append")
        with pytest.raises(AgentError) as lost:
            add(table, 2, "ours")
        assert lost.value.code == "lakehouse.conflict"
    with LakeTable.open(directory, victim.schema(), app_id="a", durable=durable) as table:
        assert table.recovery.set_aside == ()
        assert not add(table, 2, "ours").replayed
    assert texts(directory) == Counter({("ours", 1): 1, ("theirs", 7): 1, ("ours", 2): 1})


def test_a_closed_table_is_free_even_if_a_fork_still_holds_its_descriptor(tmp_path: Path) -> None:
    """Between fork and exec, any child that the process starts has a copy of every descriptor, close-on-exec or not."""
    directory = tmp_path / "table"
    table = LakeTable.open(directory, victim.schema(), app_id="a")
    held = [
        int(link.name)
        for link in Path("/proc/self/fd").iterdir()
        if link.exists() and link.resolve().parent == directory
    ]
    copies = [os.dup(descriptor) for descriptor in held]
    try:
        assert copies
        table.close()
        LakeTable.open(directory, victim.schema(), app_id="a").close()
    finally:
        for copy in copies:
            os.close(copy)
