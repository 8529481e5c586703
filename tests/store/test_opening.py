"""A store opens soundly, or says why not and leaves everything as it is."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hfagent.store import file_system
from hfagent.store.connection import APPLICATION_ID
from hfagent.store.database import Database
from hfagent.store.failures import StoreFailed
from hfagent.store.migrations import MIGRATIONS
from hfagent.store.store import Store
from tests.store.rows import draft, sealed

GOLDEN = Path(__file__).parent / "golden"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_file_is_private_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        with Store.open(path) as store:
            store.connectors.insert(draft(store, "a"))
            files = {file.name: mode(file) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert set(files) == {"agent.db", "agent.db-wal", "agent.db-shm", "agent.db.lock", "agent.db.ballast"}
    assert set(files.values()) == {0o600}


def test_a_wider_mode_is_tightened(path: Path) -> None:
    Store.open(path).close()
    path.chmod(0o644)
    Store.open(path).close()
    assert mode(path) == 0o600


def test_a_folder_open_to_others_is_refused_with_the_remedy(path: Path) -> None:
    path.parent.chmod(0o755)
    with pytest.raises(StoreFailed, match="chmod 700"):
        Store.open(path)
    assert list(path.parent.iterdir()) == []


def test_settings_are_the_documented_ones(path: Path) -> None:
    with Store.open(path) as store:
        database = store._database
        with database.transaction() as writer, database.transaction():
            found = {
                name: writer.execute(f"PRAGMA {name}").fetchone()[0]
                for name in (
                    "journal_mode", "synchronous", "foreign_keys", "trusted_schema", "mmap_size", "temp_store",
                    "wal_autocheckpoint", "busy_timeout", "journal_size_limit", "application_id", "user_version",
                )
            }  # fmt: skip
        assert found == {
            "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "trusted_schema": 0, "mmap_size": 0,
            "temp_store": 2, "wal_autocheckpoint": 1000, "busy_timeout": 5000, "journal_size_limit": 64 << 20,
            "application_id": APPLICATION_ID, "user_version": len(MIGRATIONS),
        }  # fmt: skip


def test_only_one_connection_writes_and_checkpoints(path: Path) -> None:
    with Store.open(path) as store:
        with store._database.reading() as reader:
            assert reader.execute("PRAGMA wal_autocheckpoint").fetchone()[0] == 0
            assert reader.execute("PRAGMA query_only").fetchone()[0] == 1
        with (
            pytest.raises(StoreFailed, match="cannot be written"),
            store._database.reading() as reader,
        ):
            reader.execute("PRAGMA query_only = OFF")
            reader.execute("INSERT INTO meta VALUES ('a', 'b')")
        assert store.meta.get("a") is None


def test_a_second_agent_is_refused(path: Path) -> None:
    with Store.open(path), pytest.raises(StoreFailed, match="in use by another agent"):
        Store.open(path)
    Store.open(path).close()


def test_closing_twice_and_using_it_afterwards(path: Path) -> None:
    store = Store.open(path)
    store.close()
    store.close()
    with pytest.raises(StoreFailed, match="closed"):
        store.connectors.list()
    with pytest.raises(StoreFailed, match="closed"):
        store.meta.set("a", "b")


def test_a_newer_store_is_refused_and_not_touched(path: Path) -> None:
    Store.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreFailed, match="newer hfagent") as caught:
        Store.open(path)
    assert caught.value.code == "internal.store"
    assert caught.value.hint
    assert path.read_bytes() == before


def test_the_database_of_another_program_is_refused_and_not_touched(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE somebody_elses (a)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreFailed, match="another program"):
        Store.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "symlink"])
def test_what_is_no_regular_file_is_refused(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    else:
        (path.parent / "elsewhere").touch()
        path.symlink_to("elsewhere")
    with pytest.raises(StoreFailed, match="not a regular file"):
        Store.open(path)


@pytest.mark.parametrize(
    ("damage", "where"),
    [("header", 0), ("first page", 100), ("middle", None), ("text", 0)],
)
def test_a_damaged_store_is_refused_with_a_remedy(path: Path, damage: str, where: int | None) -> None:
    with Store.open(path) as store:
        for number in range(200):
            store.connectors.insert(draft(store, f"connector {number}"))
    content = bytearray(path.read_bytes())
    if damage == "text":
        content[:] = b"this is not a database" * 500
    else:
        start = len(content) // 2 // 4096 * 4096 if where is None else where
        content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(StoreFailed, match="damaged") as caught:
        Store.open(path)
    assert caught.value.code == "internal.store"
    assert "backup" in (caught.value.hint or "")
    assert path.read_bytes() == bytes(content)


def test_a_flipped_byte_anywhere_gives_an_answer_and_never_a_traceback(path: Path, tmp_path: Path) -> None:
    """Every 256th byte in turn: the store opens (the byte did not matter to its structure), or refuses with its code."""
    with Store.open(path, ballast_bytes=0) as store:
        for number in range(20):
            record = store.connectors.insert(draft(store, f"connector {number}"))
            store.secrets.put(sealed(record.id, 1))
    sound = path.read_bytes()
    outcomes = {"opened": 0, "refused": 0}
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    copy = victim / "agent.db"
    copy.touch(mode=0o600)
    for position in range(0, len(sound), 256):
        content = bytearray(sound)
        content[position] ^= 0x55
        copy.write_bytes(content)
        try:
            with Store.open(copy, ballast_bytes=0) as store:
                store.connectors.list()
                store.secrets.key_ids()
            outcomes["opened"] += 1
        except StoreFailed as exc:
            assert exc.code == "internal.store"
            outcomes["refused"] += 1
        for file in victim.iterdir():
            if file != copy:
                file.unlink()
    assert outcomes["refused"] > 20, outcomes
    assert outcomes["opened"] > 20, outcomes


# ---- migrations


def restore_golden(path: Path, name: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript((GOLDEN / name).read_text(encoding="utf-8"))
    connection.close()


@pytest.mark.parametrize("golden", sorted(file.name for file in GOLDEN.glob("v*.sql")))
def test_stores_of_every_published_version_open_with_what_they_hold(path: Path, golden: str) -> None:
    restore_golden(path, golden)
    with Store.open(path) as store:
        assert store.agent_id == "01j0000000000000000000agnt"
        record = store.connectors.get("SALES")
        assert record.config == {"host": "db1", "password": {"$ref": "env:SALES_PASSWORD"}}
        assert record.output_schemas == ("public", "marts")
        secret = store.secrets.get(record.id, "password")
        assert secret is not None
        assert (secret.blob, secret.record_version, secret.endpoint) == (b"\x00sealed\xff", 2, "db1:5432")
        assert [old.record_version for old in store.secrets.history(record.id, "password")] == [1]
        assert store.checks.list(record.id)[0].server == {"product": "PostgreSQL"}
        assert [entry.id for entry in store.catalogues.page(record.id).streams] == ["public.orders"]  # type: ignore[union-attr]
        assert store.schedules.get(record.id).cron == "0 2 * * *"  # type: ignore[union-attr]
        assert store.audit.list()[0].action == "connector.created"
        assert store.check() == []


def test_a_migration_runs_once_and_keeps_the_rows(path: Path) -> None:
    restore_golden(path, "v1.sql")
    steps = (*MIGRATIONS, "ALTER TABLE meta ADD COLUMN note TEXT; UPDATE meta SET note = 'seen';")
    for _ in range(2):
        with Store.open(path, migrations=steps) as store:
            with store._database.reading() as connection:
                assert connection.execute("PRAGMA user_version").fetchone()[0] == len(steps)
                assert connection.execute("SELECT DISTINCT note FROM meta").fetchall() == [("seen",)]
            assert store.connectors.get("sales").version == 3


def test_a_failing_migration_leaves_the_step_before(path: Path) -> None:
    restore_golden(path, "v1.sql")
    broken = "CREATE TABLE half (a); INSERT INTO half VALUES (1); INSERT INTO no_such_table VALUES (1);"
    with pytest.raises(StoreFailed):
        Store.open(path, migrations=(*MIGRATIONS, broken))
    with Store.open(path) as store, store._database.reading() as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone()[0] == 0


KILLED_IN_A_MIGRATION = """
import os, signal, sys
from pathlib import Path
from hfagent.store import database
from hfagent.store.migrations import MIGRATIONS

open_writer = database.open_writer

def with_a_trap(path):
    connection = open_writer(path)
    connection.create_function("die", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return connection

database.open_writer = with_a_trap
step = "CREATE TABLE half (a); INSERT INTO half VALUES (zeroblob(9000000)); UPDATE meta SET value = 'half'; SELECT die();"
database.Database.open(Path(sys.argv[1]), migrations=(*MIGRATIONS, step))
"""


def test_kill_9_within_a_migration_leaves_the_step_before(path: Path) -> None:
    restore_golden(path, "v1.sql")
    victim = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_MIGRATION, str(path)], cwd=Path(__file__).parents[2], timeout=60
    )
    assert victim.returncode == -signal.SIGKILL
    with Store.open(path) as store:
        assert store.check() == []
        assert store.agent_id == "01j0000000000000000000agnt"
        with store._database.reading() as connection:
            assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone()[0] == 0


def test_an_empty_file_counts_as_no_store_yet(path: Path) -> None:
    path.touch(mode=0o600)
    with Store.open(path) as store:
        assert store.connectors.list() == ()


# ---- file systems


@pytest.mark.parametrize("magic", sorted(file_system.NETWORK))
def test_network_file_systems_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch, magic: int) -> None:
    monkeypatch.setattr(file_system, "magic_of", lambda folder: magic)
    with pytest.raises(StoreFailed, match="network file system") as caught:
        Store.open(path)
    assert "local disk" in (caught.value.hint or "")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("magic", sorted(file_system.UNSURE))
def test_doubtful_file_systems_are_used_with_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, magic: int, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_system, "magic_of", lambda folder: magic)
    with Store.open(path) as store:
        assert len(store.status().warnings) == 1
        assert store.status().warnings[0] in caplog.text


def test_a_local_disk_is_taken_without_a_word(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "magic_of", lambda folder: 0xEF53)  # ext4
    with Store.open(path) as store:
        assert store.status().warnings == ()


@pytest.mark.skipif(not shutil.which("stat"), reason="no stat command to compare with")
def test_the_magic_number_is_the_one_that_the_system_reports(tmp_path: Path) -> None:
    told = subprocess.run(["stat", "-f", "-c", "%t", str(tmp_path)], capture_output=True, text=True, check=True)
    assert file_system.magic_of(tmp_path) == int(told.stdout, 16)
    assert file_system.magic_of(Path("/proc")) == 0x9FA0


def test_an_unusable_lock_file_is_told(path: Path) -> None:
    (path.parent / "agent.db.lock").symlink_to("/dev/null")
    with pytest.raises(StoreFailed, match="lock file"):
        Database.open(path)
