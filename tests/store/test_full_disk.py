"""A full disk: nothing is written by half, everything can be read, deleting works and is the way out, without a restart."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfagent.store.ballast import Ballast
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.database import BALLAST_BYTES
from hfagent.store.failures import DiskFull
from hfagent.store.store import Store
from tests.store.rows import draft, sealed, stream

SIZE = 20_000  # bytes per connector
DISK = "24m"  # three times the default ballast


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(folder: Path) -> None:
    """Take the last free byte."""
    with (folder / "filler").open("ab", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    assert os.statvfs(folder).f_bavail == 0


def grow_until_full(store: Store) -> list[ConnectorRecord]:
    written: list[ConnectorRecord] = []
    with pytest.raises(DiskFull) as caught:
        while len(written) < 10_000:
            with store.transaction():
                record = store.connectors.insert(draft(store, f"connector {len(written)}", description="x" * SIZE))
                store.secrets.put(sealed(record.id, 1))
            written.append(record)
    assert caught.value.code == "agent.disk_full"
    assert caught.value.hint
    assert len(written) > 20
    return written


def test_a_full_disk_refuses_growth_and_lets_deletions_through(small_disk: Path) -> None:
    path = small_disk / "agent.db"
    with Store.open(path) as store:
        written = grow_until_full(store)
        fill_up(small_disk)
        assert store.status().disk_full
        # What was promised is there, whole; nothing of the refused one is.
        assert [r.id for r in sorted(store.connectors.list(), key=lambda r: r.id)] == [r.id for r in written]
        assert store.secrets.count() == len(written)
        with pytest.raises(DiskFull):
            store.meta.set("still", "x" * 5_000_000)
        # Zero bytes free, and yet:
        assert os.statvfs(small_disk).f_bavail == 0
        for record in written[: len(written) // 2]:
            store.connectors.delete(record.id)
        assert len(store.connectors.list()) == len(written) - len(written) // 2
        # The space given back is enough to go on, without a restart and with the ballast in place again.
        store.meta.set("goes", "on")
        assert not store.status().disk_full
        assert (small_disk / "agent.db.ballast").stat().st_size == BALLAST_BYTES
        assert store.check() == []


def test_the_control_a_plain_deletion_fails_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "plain.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (a);")
    connection.executemany("INSERT INTO t VALUES (zeroblob(2000))", [()] * 200)
    fill_up(small_disk)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        connection.execute("DELETE FROM t")
    connection.close()


def test_a_restart_on_a_full_disk_still_opens_reads_and_deletes(small_disk: Path) -> None:
    path = small_disk / "agent.db"
    with Store.open(path) as store:
        written = grow_until_full(store)
    fill_up(small_disk)
    with Store.open(path) as store:
        assert len(store.connectors.list()) == len(written)
        with pytest.raises(DiskFull):
            for number in range(1000):
                store.connectors.insert(draft(store, f"more {number}", description="x" * SIZE))
        for record in written:
            store.connectors.delete(record.id)
        (small_disk / "filler").unlink()
        store.connectors.insert(draft(store, "again"))
        assert store.check() == []


def test_a_discovery_that_fills_the_disk_leaves_the_old_catalogue(small_disk: Path) -> None:
    with Store.open(small_disk / "agent.db") as store:
        record = store.connectors.insert(draft(store, "a"))
        store.catalogues.replace(record.id, [stream("s", "kept")], namespaces=["s"])
        with pytest.raises(DiskFull):
            store.catalogues.replace(
                record.id, (stream("s", f"{n}" + os.urandom(400).hex()) for n in range(50_000)), namespaces=["s"]
            )
        page = store.catalogues.page(record.id)
        assert page is not None
        assert [entry.name for entry in page.streams] == ["kept"]
        assert store.catalogues.tidy() == 1
        store.meta.set("goes", "on")
        assert not store.status().disk_full


def test_a_full_disk_without_root(store: Store) -> None:
    """The same refusal where no file system can be mounted: SQLite's own page limit gives the same result code."""
    writer = store._database._writer
    assert writer is not None
    limit = writer.execute("PRAGMA page_count").fetchone()[0] + 200
    writer.execute(f"PRAGMA max_page_count = {limit}")
    written = grow_until_full(store)
    assert len(store.connectors.list()) == len(written)
    assert store.secrets.count() == len(written)
    for record in written:
        store.connectors.delete(record.id)
    store.connectors.insert(draft(store, "again"))
    assert store.check() == []


# ---- the ballast itself


def test_the_ballast_is_made_released_and_made_again(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "b", 3_000_000)
    assert not ballast.held
    assert ballast.restore()
    assert ballast.held
    assert (tmp_path / "b").stat().st_size == 3_000_000
    assert (tmp_path / "b").stat().st_blocks * 512 >= 3_000_000, "really allocated, not a hole"
    assert ballast.restore()
    ballast.release()
    ballast.release()
    assert not ballast.held


def test_a_ballast_cut_short_is_made_whole(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"x" * 100)
    ballast = Ballast(tmp_path / "b", 5000)
    assert not ballast.held
    assert ballast.restore()
    assert (tmp_path / "b").stat().st_size == 5000


def test_a_ballast_that_does_not_fit_leaves_nothing(small_disk: Path) -> None:
    ballast = Ballast(small_disk / "b", 32 << 20)
    assert not ballast.restore()
    assert list(small_disk.iterdir()) == []
