"""One dataset's Delta table: every change is one commit that carries its sequence number, and is durable when it returns.

The order is what makes it safe: data files written and synced, then the commit (through the handle whose transaction
version was read, so that a replay is seen and a race fails), then the log file, the log's directory and the table's
directory synced. Only after that may anybody record that the sequence is done.

    with LakeTable.open(directory, schema, app_id="…", durable=state.version) as table:
        if table.sequence < intent.sequence:
            table.append(stage.finish(), Commit(intent.sequence, {"watermark": hi}))

A sequence that the table already holds is never written again: the call returns what was committed then.
The table's lock is held from `open` to `close`; a second process is refused at once.

Architecture Invariant: a commit's sequence is greater than that of every earlier commit of its application.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from hfagent.foundation.atomic import make_private_directory, sync_directory, sync_file
from hfagent.foundation.errors import AgentError, InternalError
from hfagent.lakehouse.failures import damaged, writing
from hfagent.lakehouse.recovery import ACTIONS_KEY, LOG, Recovery, commit_file, recover
from hfagent.lakehouse.stage import DataFile, Stage

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

__all__ = ["Commit", "Committed", "LakeTable"]

LOCK: Final = "_hfagent.lock"
DETAILS_KEY: Final = "hfagent.details"
"""Commit metadata: the caller's own facts about the run (watermark, run id), as JSON text."""
_CONFIGURATION: Final[dict[str, str | None]] = {
    # Checkpoints are made by maintenance, of durable versions only; logs are kept until then.
    "delta.checkpointInterval": "1000000",
    "delta.enableExpiredLogCleanup": "false",
}


@dataclass(frozen=True, slots=True)
class Commit:
    """What names a change: its place in the order of this application's changes, and facts to keep with it."""

    sequence: int
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Committed:
    """A change that is part of the table and durable."""

    version: int
    sequence: int
    details: Mapping[str, str]
    replayed: bool = False
    """The table held this sequence already; nothing was written."""
    added: int = 0
    """Data files that came."""
    removed: int = 0
    """Data files that went."""


class LakeTable:
    """An open table, locked against other writers. Not thread-safe."""

    def __init__(self, directory: Path, handle: DeltaTable, *, app_id: str, lock: int, recovery: Recovery) -> None:
        self.directory = directory
        self.app_id = app_id
        self.recovery = recovery
        self._handle = handle
        self._lock = lock

    @classmethod
    def open(cls, directory: Path, schema: pa.Schema, *, app_id: str, durable: int | None = None) -> Self:
        """Lock the table, recover it, and open it; one that does not exist yet is made with `schema`.

        `durable` is the last version recorded as written by a former run of this application (None: none was). Raises
        `AgentError`: `lakehouse.busy` (another process writes), `lakehouse.damaged`, `lakehouse.foreign` (the directory
        holds other things), `agent.disk_full`.
        """
        with writing(directory):
            make_private_directory(directory)
            lock = _locked(directory)
        try:
            with writing(directory):
                recovery = recover(directory, durable)
                if recovery.version is None:
                    _refuse_foreign(directory)
                    _create(directory, schema)
                handle = _opened(directory)
            return cls(directory, handle, app_id=app_id, lock=lock, recovery=recovery)
        except BaseException:
            _unlock(lock)
            raise

    # --- what is there ---

    @property
    def version(self) -> int:
        """The version that is open."""
        return int(self._handle.version())

    @property
    def sequence(self) -> int:
        """Sequence of this application's last commit; 0 when there is none."""
        found = self._handle.transaction_version(self.app_id)
        return 0 if found is None else int(found)

    @property
    def schema(self) -> pa.Schema:
        """The table's columns, in Arrow's terms."""
        import pyarrow as pa

        return pa.schema(self._handle.schema().to_arrow())

    @property
    def rows(self) -> int:
        """Rows of the open version, by the log's own counts."""
        return sum(file.rows for file in self.files())

    def files(self) -> tuple[DataFile, ...]:
        """The data files of the open version, with what the log knows of them."""
        import pyarrow as pa

        actions = pa.table(self._handle.get_add_actions(flatten=False)).to_pylist()
        return tuple(
            DataFile(
                action["path"],
                action["size_bytes"],
                action["num_records"],
                {"minValues": action.get("min") or {}, "maxValues": action.get("max") or {}},
            )
            for action in actions
        )

    def last_commit(self) -> Committed | None:
        """This application's last commit with its details; None when there is none."""
        sequence = self.sequence
        if not sequence:
            return None
        for version in range(self.version, -1, -1):
            info, found = _commit_info(self.directory, version, self.app_id)
            if found == sequence:
                return Committed(version, sequence, json.loads(info.get(DETAILS_KEY) or "{}"))
        raise damaged(self.directory, f"the commit with sequence {sequence} is not in the log any more")

    # --- changing it ---

    def stage(self, **sizes: int) -> Stage:
        """Begin data files in the table's present schema. `sizes`: see `Stage`."""
        return Stage(self.directory, self.schema, **sizes)

    @contextmanager
    def staging(self, schema: pa.Schema | None = None, **sizes: int) -> Iterator[Stage]:
        """A stage for one change, committed within the block. When the block fails, its files go, unless a commit names them:
        what failed may have been the sync after it."""
        stage = Stage(self.directory, self.schema if schema is None else schema, **sizes)
        opened = self.version
        try:
            yield stage
        except BaseException:
            if not self._named(stage, since=opened):
                stage.discard()
            raise

    def append(self, files: Iterable[DataFile], commit: Commit) -> Committed:
        """Add finished files. Raises `AgentError` (`lakehouse.conflict`, `agent.disk_full`)."""
        return self.change(files, (), commit)

    def replace(self, files: Iterable[DataFile], commit: Commit, *, schema: pa.Schema | None = None) -> Committed:
        """Make the finished files the whole content, in place of everything; with `schema`, under another schema.

        Old files stay on disk for readers of old versions, until maintenance removes them.
        """
        if schema is not None and not schema.equals(self.schema):
            return self.change(files, None, commit, schema=schema)
        return self.change(files, self.files(), commit)

    def change(
        self,
        add: Iterable[DataFile],
        remove: Sequence[DataFile] | None,
        commit: Commit,
        *,
        schema: pa.Schema | None = None,
    ) -> Committed:
        """Commit a set of files that come and of files that go (None: all, by an overwrite). Durable on return.

        A sequence the table holds already changes nothing and returns with `replayed`. Raises `AgentError`:
        `lakehouse.conflict` when another writer was faster (open the table anew and plan again), `agent.disk_full`.
        """
        from deltalake.exceptions import CommitFailedError

        if commit.sequence < 1:
            raise InternalError(f"the sequence {commit.sequence} of a commit must be 1 or more")
        if (held := self.sequence) >= commit.sequence:
            return self._replayed(commit.sequence, held)
        adds = tuple(add)
        with writing(self.directory):
            self._allow_naive_timestamps(schema)
            try:
                removed = self._commit(adds, remove, commit, schema)
            except CommitFailedError as exc:
                self._handle = _opened(self.directory)
                if self.sequence >= commit.sequence:  # the answer was lost, not the commit
                    return self._replayed(commit.sequence, self.sequence)
                raise AgentError(
                    f"the table in {self.directory} was changed by another writer meanwhile",
                    code="lakehouse.conflict",
                    hint="let one agent write a dataset's table; the next run tries again",
                ) from exc
            self._handle.update_incremental()
            self._make_durable()
        return Committed(self.version, commit.sequence, dict(commit.details), added=len(adds), removed=removed)

    def add_columns(self, fields: Sequence[pa.Field]) -> None:
        """Add nullable columns; rows that are there have no value in them. Durable on return."""
        import deltalake
        import pyarrow as pa

        wanted = deltalake.Schema.from_arrow(pa.schema([field.with_nullable(True) for field in fields]))
        with writing(self.directory):
            self._allow_naive_timestamps(pa.schema(fields))
            self._handle.alter.add_columns(wanted.fields)
            self._handle.update_incremental()
            self._make_durable()

    def checkpoint(self) -> None:
        """Write a checkpoint of the open version, so that opening reads one file instead of the whole log."""
        with writing(self.directory):
            self._handle.create_checkpoint()
            log = self.directory / LOG
            for path in log.glob(f"{self.version:020d}.checkpoint*"):
                sync_file(path)
            sync_file(log / "_last_checkpoint")
            sync_directory(log)

    def close(self) -> None:
        """Release the lock. Safe to repeat."""
        if self._lock >= 0:
            _unlock(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---

    def _commit(
        self, adds: tuple[DataFile, ...], remove: Sequence[DataFile] | None, commit: Commit, schema: pa.Schema | None
    ) -> int:
        """Hand the commit to delta-rs and return how many files went."""
        import deltalake
        from deltalake.transaction import (
            AddAction,
            CommitProperties,
            PostCommitHookProperties,
            RemoveAction,
            Transaction,
        )

        actions: list[AddAction | RemoveAction] = [
            AddAction(file.name, file.size, {}, file.modified_ms, True, file.stats_text()) for file in adds
        ]
        gone = len(self.files()) if remove is None else len(remove)
        now = int(time.time() * 1000)
        for file in remove or ():
            actions.append(RemoveAction(file.name, True, now, file.size, {}))
        properties = CommitProperties(
            custom_metadata={
                ACTIONS_KEY: f"{len(adds)},{gone},1",
                DETAILS_KEY: json.dumps(dict(commit.details), ensure_ascii=False, sort_keys=True),
            },
            max_commit_retries=0,
            app_transactions=[Transaction(self.app_id, commit.sequence)],
        )
        self._handle.create_write_transaction(
            actions,
            "overwrite" if remove is None else "append",
            self._handle.schema() if schema is None else deltalake.Schema.from_arrow(schema),
            commit_properties=properties,
            post_commithook_properties=PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False),
        )
        return gone

    def _allow_naive_timestamps(self, schema: pa.Schema | None) -> None:
        """A table made without a naive timestamp must announce the first one to its readers."""
        from deltalake import TableFeatures

        if schema is None or not any(_is_naive(field.type) for field in schema):
            return
        if "timestampNtz" in (self._handle.protocol().writer_features or ()):
            return
        self._handle.alter.add_feature(TableFeatures.TimestampWithoutTimezone, allow_protocol_versions_increase=True)
        self._handle.update_incremental()
        self._make_durable()

    def _make_durable(self) -> None:
        sync_file(commit_file(self.directory, self.version))
        sync_directory(self.directory / LOG)
        sync_directory(self.directory)

    def _named(self, stage: Stage, *, since: int) -> bool:
        """Whether a commit after the version `since` names a file of the stage."""
        path = commit_file(self.directory, since + 1)
        while path.exists():
            content = path.read_bytes()
            if any(file.name.encode() in content for file in stage.files):
                return True
            since += 1
            path = commit_file(self.directory, since + 1)
        return False

    def _replayed(self, wanted: int, held: int) -> Committed:
        last = self.last_commit()
        assert last is not None
        self._make_durable()  # the process that wrote it may have died before
        details = last.details if held == wanted else {}
        return Committed(last.version, held, details, replayed=True)


def _is_naive(type_: pa.DataType) -> bool:
    return "timestamp[us]" in str(type_)


def _locked(directory: Path) -> int:
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AgentError(
            f"the table in {directory} is being written by another process",
            code="lakehouse.busy",
            hint="wait for the run that is going on, or cancel it: hfagent run list",
        ) from None
    return descriptor


def _unlock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child between fork and exec may hold a copy of the descriptor
    os.close(descriptor)


def _refuse_foreign(directory: Path) -> None:
    """A new table goes into an empty directory, or one in which only an earlier attempt left its files."""
    for entry in directory.iterdir():
        ours = entry.name in (LOCK, LOG) or (entry.name.startswith("part-") and entry.suffix == ".parquet")
        if not ours:
            raise AgentError(
                f"the directory {directory} holds {entry.name}, which is no part of a dataset's table",
                code="lakehouse.foreign",
                hint="choose another location for the dataset, or move the file away",
            )


def _create(directory: Path, schema: pa.Schema) -> None:
    """Make an empty table, durable with its own name in the parent directory."""
    import deltalake
    import pyarrow as pa

    nullable = pa.schema([field.with_nullable(True) for field in schema])
    deltalake.DeltaTable.create(str(directory), schema=nullable, mode="error", configuration=_CONFIGURATION)
    sync_file(commit_file(directory, 0))
    sync_directory(directory / LOG)
    sync_directory(directory)
    sync_directory(directory.parent)


def _opened(directory: Path) -> DeltaTable:
    import deltalake
    from deltalake.exceptions import DeltaError

    try:
        return deltalake.DeltaTable(str(directory))
    except DeltaError as exc:
        raise damaged(directory, str(exc).split("\n", 1)[0]) from exc


def _commit_info(directory: Path, version: int, app_id: str) -> tuple[dict[str, Any], int | None]:
    """The description of a version and the sequence that it holds of this application."""
    info: dict[str, Any] = {}
    sequence: int | None = None
    path = commit_file(directory, version)
    if not path.exists():
        return info, None
    for line in path.read_bytes().splitlines():
        action = json.loads(line)
        if "commitInfo" in action:
            info = action["commitInfo"]
        elif "txn" in action and action["txn"].get("appId") == app_id:
            sequence = int(action["txn"]["version"])
    return info, sequence
