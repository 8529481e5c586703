"""A corpus of damaged tables: a broken tail is set aside and reported, anything else is refused and left as it was."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfagent.foundation.errors import AgentError
from hfagent.lakehouse.table import LOCK, LakeTable
from tests.lakehouse import faults, victim
from tests.lakehouse.test_races import add, texts

COMMITS = 4
"""Versions 1 to 4 hold one row each; 0 is the new table."""

Damage = Callable[[Path], None]


def _rewrite(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def _flip(place: float) -> Damage:
    def flip(content: bytes) -> bytes:
        at = min(int(len(content) * place), len(content) - 1)
        return content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :]

    return _rewrite(flip)


def _to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _without_last_lines(count: int) -> Damage:
    return _rewrite(lambda content: b"".join(content.splitlines(keepends=True)[:-count]))


COMMIT_DAMAGE: dict[str, Damage] = {
    "empty": _rewrite(lambda content: b""),
    "nul": _rewrite(lambda content: b"\0" * len(content)),
    "torn": _rewrite(lambda content: content[: len(content) // 2]),
    "one byte short": _rewrite(lambda content: content.rstrip(b"\n")[:-1]),
    "first byte only": _rewrite(lambda content: content[:1]),
    "torn and nul": _rewrite(lambda content: content[: len(content) // 2].ljust(len(content), b"\0")),
    "spaces": _rewrite(lambda content: b" " * len(content)),
    "cut at a line": _without_last_lines(1),
    "cut at the first line": _rewrite(lambda content: content.splitlines(keepends=True)[0]),
    "no json": _rewrite(lambda content: b"<html>not a log</html>\n"),
    "a list": _rewrite(lambda content: b"[1, 2]\n"),
    "an empty object": _rewrite(lambda content: b"{}\n"),
    "a null action": _rewrite(lambda content: content.rstrip(b"\n") + b'\n{"add":null}\n'),
    "a text as description": _rewrite(lambda content: b'{"commitInfo":"x"}\n' + content.split(b"\n", 1)[1]),
    "an action too many": _rewrite(lambda content: content.rstrip(b"\n") + b'\n{"remove":{"path":"x"}}\n'),
    "no utf-8": _rewrite(lambda content: b"\xff\xfe" + content),
    "flipped at the start": _flip(0.0),
    "flipped at the end": _flip(0.999),
}
FILE_DAMAGE: dict[str, Damage] = {
    "empty": _rewrite(lambda content: b""),
    "nul": _rewrite(lambda content: b"\0" * len(content)),
    "torn": _rewrite(lambda content: content[: len(content) // 2]),
    "torn and nul": _rewrite(lambda content: content[: len(content) // 2].ljust(len(content), b"\0")),
    "too long": _rewrite(lambda content: content + b"PAR1"),
    "gone": Path.unlink,
    "footer lost": _rewrite(lambda content: content[:-40] + b"\0" * 36 + b"PAR1"),
    "head lost": _rewrite(lambda content: b"\0\0\0\0" + content[4:]),
    "a directory": _to_directory,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "table"
    with LakeTable.open(directory, victim.schema(), app_id="a") as table:
        for number in range(1, COMMITS + 1):
            add(table, number, "x")
    return directory


@pytest.fixture
def table_of(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "table")
    return tmp_path / "table"


def commit(directory: Path, version: int) -> Path:
    return directory / "_delta_log" / f"{version:020d}.json"


def data_file(directory: Path, version: int) -> Path:
    actions = [json.loads(line) for line in commit(directory, version).read_bytes().splitlines()]
    return directory / next(action["add"]["path"] for action in actions if "add" in action)


def opened(directory: Path, durable: int | None) -> LakeTable:
    return LakeTable.open(directory, victim.schema(), app_id="a", durable=durable)


def expect_recovered(directory: Path, durable: int | None, last: int) -> None:
    """The tail is set aside and reported, what came before is there, and the lost batches can be loaded again."""
    with opened(directory, durable) as table:
        assert table.recovery.version == table.version == last
        assert table.sequence == last
        assert len(table.recovery.set_aside) == len(table.recovery.reasons) >= 1
        assert all(table.recovery.reasons)
        assert texts(directory) == Counter(("x", number) for number in range(1, last + 1))
        for number in range(last + 1, COMMITS + 1):
            assert not add(table, number, "x").replayed
    with opened(directory, COMMITS) as table:
        assert table.recovery.set_aside == ()
    assert texts(directory) == Counter(("x", number) for number in range(1, COMMITS + 1))


def expect_refused(directory: Path, durable: int | None) -> None:
    before = faults.tree_digest(directory, but=[LOCK])
    for _ in range(2):
        with pytest.raises(AgentError) as refused:
            opened(directory, durable).close()
        assert refused.value.code == "lakehouse.damaged", refused.value
        assert str(directory) in str(refused.value) and refused.value.hint
        assert faults.tree_digest(directory, but=[LOCK]) == before


@pytest.mark.parametrize("damage", COMMIT_DAMAGE)
def test_a_broken_last_commit_that_was_not_recorded(table_of: Path, damage: str) -> None:
    COMMIT_DAMAGE[damage](commit(table_of, COMMITS))
    expect_recovered(table_of, COMMITS - 1, COMMITS - 1)


@pytest.mark.parametrize("damage", COMMIT_DAMAGE)
def test_a_broken_last_commit_that_was_recorded(table_of: Path, damage: str) -> None:
    COMMIT_DAMAGE[damage](commit(table_of, COMMITS))
    expect_refused(table_of, COMMITS)


@pytest.mark.parametrize("damage", ["empty", "nul", "torn", "cut at a line"])
def test_a_broken_commit_below_the_recorded_version(table_of: Path, damage: str) -> None:
    """Opening checks the recorded version and what follows; delta-rs meets older ones, and must not take them for empty."""
    COMMIT_DAMAGE[damage](commit(table_of, 2))
    expect_refused(table_of, COMMITS)


def test_a_broken_commit_that_a_checkpoint_replaces_hurts_nobody(table_of: Path) -> None:
    with opened(table_of, COMMITS) as table:
        table.checkpoint()
        add(table, COMMITS + 1, "x")
    commit(table_of, 2).write_bytes(b"")
    with opened(table_of, COMMITS + 1) as table:
        assert table.recovery.set_aside == ()
    assert texts(table_of) == Counter(("x", number) for number in range(1, COMMITS + 2))


@pytest.mark.parametrize("damage", ["empty", "nul", "torn", "cut at a line"])
def test_a_whole_commit_above_a_broken_one_is_nobodys_power_cut(table_of: Path, damage: str) -> None:
    """Each commit is durable before the next begins. Setting the whole one aside could lose another application's rows."""
    COMMIT_DAMAGE[damage](commit(table_of, 3))
    expect_refused(table_of, 2)


@pytest.mark.parametrize("damage", ["empty", "nul", "torn", "cut at a line"])
def test_two_broken_commits_above_the_recorded_version(table_of: Path, damage: str) -> None:
    for version in (3, 4):
        COMMIT_DAMAGE[damage](commit(table_of, version))
    expect_recovered(table_of, 2, 2)


@pytest.mark.parametrize("damage", FILE_DAMAGE)
def test_a_broken_data_file_of_a_commit_that_was_not_recorded(table_of: Path, damage: str) -> None:
    FILE_DAMAGE[damage](data_file(table_of, COMMITS))
    expect_recovered(table_of, COMMITS - 1, COMMITS - 1)


@pytest.mark.parametrize("damage", FILE_DAMAGE)
def test_a_broken_data_file_of_the_recorded_commit(table_of: Path, damage: str) -> None:
    FILE_DAMAGE[damage](data_file(table_of, COMMITS))
    expect_refused(table_of, COMMITS)


@pytest.mark.parametrize("versions", [[COMMITS], [2], [0], [0, 1, 2, 3, 4]])
def test_commits_that_are_gone(table_of: Path, versions: list[int]) -> None:
    for version in versions:
        commit(table_of, version).unlink()
    expect_refused(table_of, COMMITS)


def test_a_log_that_is_gone(table_of: Path) -> None:
    shutil.rmtree(table_of / "_delta_log")
    expect_refused(table_of, COMMITS)


def test_a_commit_that_cannot_be_read(table_of: Path) -> None:
    """A directory in its place stands for every error of the disk; as root, a mode would not stop anybody."""
    path = commit(table_of, COMMITS)
    path.unlink()
    path.mkdir()
    before = faults.tree_digest(table_of, but=[LOCK])
    with pytest.raises(AgentError) as refused:
        opened(table_of, COMMITS).close()
    assert refused.value.code in ("lakehouse.damaged", "internal.store")
    assert faults.tree_digest(table_of, but=[LOCK]) == before


@pytest.mark.parametrize("part", ["checkpoint", "pointer"])
@pytest.mark.parametrize("damage", ["empty", "nul", "torn", "torn and nul", "one byte short"])
def test_a_broken_checkpoint_costs_nothing_but_time(table_of: Path, part: str, damage: str) -> None:
    with opened(table_of, COMMITS) as table:
        table.checkpoint()
    log = table_of / "_delta_log"
    path = log / "_last_checkpoint" if part == "pointer" else next(log.glob("*.checkpoint*.parquet"))
    COMMIT_DAMAGE[damage](path)
    with opened(table_of, COMMITS) as table:
        assert path.name in table.recovery.set_aside
        assert table.sequence == COMMITS
        assert not add(table, COMMITS + 1, "x").replayed
    assert texts(table_of) == Counter(("x", number) for number in range(1, COMMITS + 2))
    with opened(table_of, COMMITS + 1) as table:
        assert table.recovery.set_aside == ()


@pytest.mark.parametrize("suffix", ["json#1", "json#2"])
def test_a_commit_that_was_never_linked_leaves_nothing_behind(table_of: Path, suffix: str) -> None:
    left = commit(table_of, COMMITS + 1).with_suffix(f".{suffix}")
    left.write_bytes(b'{"commitInfo":')
    with opened(table_of, COMMITS) as table:
        assert not left.exists()
        assert not add(table, COMMITS + 1, "x").replayed


def test_a_refused_table_keeps_even_what_is_left_behind(table_of: Path) -> None:
    commit(table_of, COMMITS + 1).with_suffix(".json#1").write_bytes(b'{"commitInfo":')
    commit(table_of, COMMITS).write_bytes(b"")
    expect_refused(table_of, COMMITS)


def test_what_was_set_aside_is_kept(table_of: Path) -> None:
    """Nothing is thrown away that somebody may want to look at, and a second time does not take the first one's name."""
    kept: dict[str, bytes] = {}
    for content in (b"first", b"second"):
        commit(table_of, COMMITS).write_bytes(content)
        with opened(table_of, COMMITS - 1) as table:
            assert table.version == COMMITS - 1
        kept = {path.name: path.read_bytes() for path in (table_of / "_delta_log").glob("*.torn")}
    assert sorted(kept.values()) == [b"first", b"second"]


def test_control_without_the_recovery_an_empty_tail_is_an_empty_commit(table_of: Path) -> None:
    import deltalake

    os.truncate(commit(table_of, COMMITS), 0)
    table: Any = deltalake.DeltaTable(str(table_of))
    assert (table.version(), table.transaction_version("a")) == (COMMITS, COMMITS - 1)
    assert texts(table_of).total() == COMMITS - 1
