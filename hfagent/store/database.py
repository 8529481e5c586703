"""One SQLite file: opening it safely, transactions that are whole or absent, reads that never wait for a writer.

* One connection writes, guarded by a lock; readers are lent from a small set and see a snapshot (`connection.py` says why).
* A transaction belongs to the thread that began it. A nested one is a savepoint of it; a read inside it sees its changes.
* WAL with `synchronous=FULL`: what was committed survives a power cut.
* A file that is damaged, foreign or newer than this program is refused before anything in it is changed.
* A full disk refuses what grows the store and still lets deletions through (`ballast.py`).

It holds locks and waits for the disk: call it from worker threads, never from the event loop.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Final, TypeVar

from hfagent.foundation.atomic import make_private_directory
from hfagent.foundation.clock import SYSTEM_CLOCK, Clock
from hfagent.store import file_system
from hfagent.store.ballast import Ballast
from hfagent.store.connection import APPLICATION_ID, MINIMUM_SQLITE, open_reader, open_writer
from hfagent.store.failures import DiskFull, StoreFailed, damaged, disk_full, is_full, is_input_output, translated
from hfagent.store.migrations import MIGRATIONS, migrate

__all__ = ["BALLAST_BYTES", "Database"]

BALLAST_BYTES: Final = 8 * 1024 * 1024
"""Room to fold a full write-ahead log (1,000 pages of 4 KiB) into the file, which comes first, and to delete after that."""

_IDLE_READERS = 4

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Database:
    """The open file. `Database.open` makes one; `close` is safe to repeat."""

    def __init__(self, path: Path, *, lock: int, writer: sqlite3.Connection, ballast: Ballast, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.warnings: tuple[str, ...] = ()
        self._lock_descriptor = lock
        self._ballast = ballast
        self._lock = threading.RLock()  # guards the writing connection and everything down to `_full`
        self._writer: sqlite3.Connection | None = writer
        self._owner: int | None = None
        self._closed = False
        self._full = False
        self._readers_lock = threading.Lock()  # guards the list below
        self._readers: list[sqlite3.Connection] = []

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        migrations: Sequence[str] = MIGRATIONS,
        ballast_bytes: int = BALLAST_BYTES,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Database:
        """Open the store at `path`, making it or bringing it up to date first.

        Raises `StoreFailed` with a remedy when the folder is unsuitable (open to others, network file system), another
        process has the store, or the file is damaged, foreign or newer than `migrations`; `DiskFull` when there is no
        space to make it. `ballast_bytes` are set aside for deletions on a full disk.
        """
        if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
            wanted = ".".join(map(str, MINIMUM_SQLITE))
            raise StoreFailed(f"this Python has SQLite {sqlite3.sqlite_version}; the agent needs {wanted} or newer")
        warning = _prepare_folder(path.parent)
        descriptor = _take_lock(path)
        ballast = Ballast(path.with_name(path.name + ".ballast"), ballast_bytes)
        try:
            writer = _open_with_room(path, migrations, ballast)
        except BaseException:
            os.close(descriptor)
            raise
        database = cls(path, lock=descriptor, writer=writer, ballast=ballast, clock=clock)
        try:
            database._full = not database._ballast_restored()
        except BaseException:
            database.close()
            raise
        if warning:
            database.warnings += (warning,)
            _log.warning("%s", warning)
        return database

    def timestamp(self) -> str:
        """Return the time as the store writes it: UTC, ISO 8601, milliseconds."""
        return self.clock.now().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    @property
    def full(self) -> bool:
        """Whether the disk was found full and has not recovered yet."""
        return self._full

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is within a transaction."""
        return self._owner == threading.get_ident()

    @contextmanager
    def transaction(self, *, reclaiming: bool = False) -> Iterator[sqlite3.Connection]:
        """Write: commit at the end of the block, roll back when it raises.

        Inside another transaction of the same thread it is a savepoint. `reclaiming` is for work that deletes: on a full
        disk it may use the space set aside. Raises `DiskFull`, `StoreFailed`.
        """
        with self._lock:
            if self._owner is not None:
                with self._savepoint() as connection:
                    yield connection
                return
            self._make_room(reclaiming)
            connection = self._writing()
            self._owner = threading.get_ident()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException as exc:
                self._abandon(exc)
                if isinstance(exc, sqlite3.Error):
                    raise translated(exc, self.path) from exc
                raise
            finally:
                self._owner = None
            if reclaiming and not self._ballast.held:
                self._recover_space(connection)

    def reclaim(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`, which deletes, in a transaction; when the disk is full, once more with the ballast given up.

        What is deleted is journalled first, so `work` should delete no more than a few hundred kilobytes at a time.
        """
        try:
            with self.transaction(reclaiming=True) as connection:
                return work(connection)
        except DiskFull:
            if self.in_transaction:  # part of a larger transaction: its owner decides
                raise
            with self.transaction(reclaiming=True) as connection:
                return work(connection)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read a snapshot; within a transaction of this thread, its own changes."""
        if self.in_transaction:
            with self._savepoint() as connection:
                yield connection
            return
        try:
            connection = self._lend()
        except sqlite3.Error as exc:
            raise translated(exc, self.path) from exc
        sound = True
        try:
            connection.execute("BEGIN")
            yield connection
        except sqlite3.Error as exc:
            sound = False
            raise translated(exc, self.path) from exc
        finally:
            if sound and connection.in_transaction:
                connection.execute("ROLLBACK")
            self._give_back(connection, sound)

    def check(self) -> list[str]:
        """Return what a complete integrity check complains about; empty when the store is sound. Takes a while."""
        with self.reading() as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
            found += [f"{row[0]} row {row[1]} refers to a missing {row[2]}" for row in _foreign_key_check(connection)]
            return found

    def close(self) -> None:
        """Close every connection. The write-ahead log is folded into the file by the last one, the writer's."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with self._readers_lock:
                while self._readers:
                    self._readers.pop().close()
            if self._writer is not None:
                self._writer.close()
            os.close(self._lock_descriptor)

    # ---- writing

    def _writing(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreFailed(f"the store {self.path} is closed")
        if self._writer is None:
            try:
                self._writer = _open_settled(self.path)
            except sqlite3.Error as exc:
                raise translated(exc, self.path) from exc
        return self._writer

    @contextmanager
    def _savepoint(self) -> Iterator[sqlite3.Connection]:
        connection = self._writing()
        if not connection.in_transaction:
            raise StoreFailed("the surrounding transaction was rolled back by an earlier error")
        try:
            connection.execute("SAVEPOINT inner_step")
            yield connection
            connection.execute("RELEASE inner_step")
        except BaseException as exc:
            if connection.in_transaction:  # a full disk may have ended the whole transaction
                connection.execute("ROLLBACK TO inner_step")
                connection.execute("RELEASE inner_step")
            if isinstance(exc, sqlite3.Error):
                raise translated(exc, self.path) from exc
            raise

    def _abandon(self, exc: BaseException) -> None:
        """Roll back after `exc`. After a disk error nobody knows what was kept: a fresh connection reads it anew."""
        connection = self._writer
        if connection is not None and connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error as second:
                _log.warning("rolling back in %s failed: %s", self.path, second)
                exc = second if is_input_output(second) else exc
        if is_full(exc) or is_full(exc.__cause__):
            self._full = True
        if connection is not None and (is_input_output(exc) or is_input_output(exc.__cause__)):
            self._writer = None
            connection.close()

    # ---- a full disk

    def _make_room(self, reclaiming: bool) -> None:
        if reclaiming:
            if self._full or self._short_of_space():
                self._ballast.release()
                self._checkpoint(self._writing())
        elif self._full:
            if not self._ballast_restored():
                raise disk_full(self.path)
            self._full = False

    def _recover_space(self, connection: sqlite3.Connection) -> None:
        """After deleting on a full disk: give free pages back to the file system and set the ballast aside again."""
        try:
            connection.execute("PRAGMA incremental_vacuum").fetchall()
        except sqlite3.Error as exc:
            _log.warning("the store %s could not be made smaller: %s", self.path, exc)
        self._checkpoint(connection)
        self._full = not self._ballast_restored()

    def _ballast_restored(self) -> bool:
        try:
            return self._ballast.restore()
        except OSError as exc:
            raise StoreFailed(f"space beside the store {self.path} could not be set aside: {exc.strerror}") from exc

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as exc:
            _log.warning("the write-ahead log of %s could not be folded in: %s", self.path, exc)

    def _short_of_space(self) -> bool:
        status = os.statvfs(self.path.parent)
        return status.f_bavail * status.f_frsize < self._ballast.size

    # ---- reading

    def _lend(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreFailed(f"the store {self.path} is closed")
        with self._readers_lock:
            if self._readers:
                return self._readers.pop()
        return open_reader(self.path)

    def _give_back(self, connection: sqlite3.Connection, sound: bool) -> None:
        with self._readers_lock:
            if sound and not self._closed and len(self._readers) < _IDLE_READERS:
                self._readers.append(connection)
                return
        connection.close()


def _prepare_folder(folder: Path) -> str | None:
    """Make the folder private and return a warning about its file system."""
    try:
        make_private_directory(folder)
    except OSError as exc:
        raise StoreFailed(f"the store's folder cannot be used: {exc}") from exc
    refusal, warning = file_system.judge(folder, file_system.magic_of(folder))
    if refusal:
        raise StoreFailed(refusal, hint="choose a data directory on a local disk: --data-dir or HFAGENT_DATA_DIR")
    return warning


def _take_lock(path: Path) -> int:
    """Return the descriptor that holds the store's lock. It is freed with the process, however that ends."""
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StoreFailed(f"the lock file {lock} cannot be opened: {exc.strerror}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise StoreFailed(
            f"the store {path} is in use by another agent", hint="one agent per data directory: hfagent status shows it"
        ) from exc
    return descriptor


def _open_with_room(path: Path, migrations: Sequence[str], ballast: Ballast) -> sqlite3.Connection:
    """Open and migrate; on a full disk once more without the ballast, for a start writes a little too."""
    for attempt in (1, 2):
        try:
            return _open_checked(path, migrations)
        except sqlite3.Error as exc:
            if attempt == 1 and ballast.held and (is_full(exc) or is_input_output(exc)):
                ballast.release()
                continue
            raise translated(exc, path) from exc
        except OSError as exc:
            raise StoreFailed(f"the store {path} cannot be opened: {exc.strerror or exc}") from exc
    raise AssertionError("unreachable")


def _open_checked(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    _make_private_file(path)
    connection = open_writer(path)
    try:
        _refuse_unfit(connection, path, len(migrations))
        if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only an empty file can still choose
        _settle(connection, path)
        migrate(connection, migrations)
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _open_settled(path: Path) -> sqlite3.Connection:
    """Open the writing connection again, to a file that was checked when the store was opened."""
    connection = open_writer(path)
    try:
        _settle(connection, path)
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _settle(connection: sqlite3.Connection, path: Path) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreFailed(f"the file system of {path} does not support write-ahead logging (mode {mode})")


def _make_private_file(path: Path) -> None:
    # By path, not by descriptor: closing any descriptor of the file drops the POSIX locks that SQLite holds on it.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if path.is_symlink() or not path.is_file():
            raise StoreFailed(f"the store {path} is not a regular file") from None
        status = path.stat()
        if status.st_uid != os.geteuid():
            raise StoreFailed(
                f"the store {path} belongs to user id {status.st_uid}, not to {os.geteuid()}",
                hint="run the agent as the owner of its data directory, or choose another one",
            ) from None
        if status.st_mode & 0o077:
            path.chmod(0o600)
            _log.warning("%s was open to other users (mode %o); it is private now", path, status.st_mode & 0o777)


def _refuse_unfit(connection: sqlite3.Connection, path: Path, newest: int) -> None:
    """Raise before anything is changed when the file is damaged, foreign or from a newer agent."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application not in (0, APPLICATION_ID) or (application == 0 and tables):
        raise StoreFailed(f"{path} is an SQLite file of another program", hint="choose another data directory")
    if version > newest:
        raise StoreFailed(
            f"the store {path} was written by a newer hfagent (store version {version}; this one knows {newest})",
            hint="install that version of hfagent again, or put back a backup made before the upgrade",
        )
    complaints = [row[0] for row in connection.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
    if complaints:
        raise damaged(path, complaints[0].splitlines()[0])


def _foreign_key_check(connection: sqlite3.Connection) -> list[tuple[str, int, str]]:
    return [(row[0], row[1], row[2]) for row in connection.execute("PRAGMA foreign_key_check")]
