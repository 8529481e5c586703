"""Connectors as code: brings the stored connectors into the state that files describe.

    [[connectors]]
    name = "Production Postgres"
    type = "postgresql"
    output_schemas = ["public", "marts"]
    [connectors.config]
    host = "db.example.com"
    database = "analytics"
    username = "reader"
    password = { "$ref" = "env:PGPASSWORD" }

Entries are matched by name, whatever its case. A literal secret in a file is accepted, sealed, and compared with the sealed
one the next time, but a reference is what belongs there. Only what came from the same place (file or directory) is ever
removed, and only with `prune`.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from hfagent.foundation.errors import AgentError, ConfigError
from hfagent.model.connector import ConnectorDraft, ConnectorPatch
from hfagent.services.connectors import Connectors
from hfagent.services.context import CallContext
from hfagent.services.workers import Workers
from hfagent.store.connectors import ConnectorRecord, name_key

__all__ = ["Apply", "Change", "DirectoryWatch", "read_file"]

_log = logging.getLogger(__name__)

_SILENCE_S: Final = 0.5

Action = Literal["created", "updated", "unchanged", "removed", "failed"]


class Change:
    """What happened, or would happen, to one entry."""

    __slots__ = ("action", "message", "name")

    def __init__(self, name: str, action: Action, message: str | None = None) -> None:
        self.name = name
        self.action: Action = action
        self.message = message


def read_file(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a connectors-as-code file. Raises `ConfigError` naming file and place."""
    try:
        if not path.is_file():  # a pipe would keep us waiting
            raise ConfigError(f"{path} is not a regular file", hint="take it out of the directory")
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror or exc}", hint="check its owner and mode") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path} is not UTF-8 (byte {exc.start})", hint="save it as UTF-8") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path} is not valid TOML: {exc}", hint="mend that line") from exc
    entries = tree.get("connectors", [])
    extra = sorted(tree.keys() - {"connectors"})
    if extra or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(
            f"{path}: expected [[connectors]] entries" + (f", found {extra[0]!r}" if extra else ""),
            hint="each entry has name, type and a [connectors.config] table",
        )
    return entries


class Apply:
    """`connectors/apply`, and the watched directory."""

    def __init__(self, connectors: Connectors) -> None:
        self._connectors = connectors
        self._lock = asyncio.Lock()

    async def apply(
        self,
        call: CallContext,
        entries: list[dict[str, Any]],
        *,
        prune: bool = False,
        dry_run: bool = False,
        source: str = "",
    ) -> list[Change]:
        """Apply all entries; one that fails does not stop the others. Returns what happened to each.

        `source` names where the entries come from; `prune` removes what came from there before and is not among them. While
        an entry has no usable name nothing is removed: it may be any of them.
        """
        async with self._lock:
            present = {name_key(record.name): record for record in await self._connectors.records()}
            seen: set[str] = set()
            changes = [await self._one(call, entry, present, seen, dry_run, source) for entry in entries]
            if prune and all(_named(entry) for entry in entries):
                changes += await self._prune(call, present, seen, dry_run, source)
            return changes

    async def _one(
        self,
        call: CallContext,
        entry: dict[str, Any],
        present: dict[str, ConnectorRecord],
        seen: set[str],
        dry_run: bool,
        source: str,
    ) -> Change:
        name = str(entry["name"]) if _named(entry) else "(no name)"
        key = name_key(name)
        if _named(entry) and key in seen:
            return Change(name, "failed", "it is defined twice: give each connector its own name")
        seen.add(key)
        try:
            draft = ConnectorDraft.model_validate(entry)
        except ValidationError as exc:
            return Change(name, "failed", _explained(exc))
        try:
            record = present.get(key)
            if record is None:
                if dry_run:
                    await self._connectors.check(draft)
                else:
                    await self._connectors.create(call, draft, source="file", source_file=source)
                return Change(name, "created")
            patch = await self._connectors.difference(record, draft)
            if patch is None:
                return Change(name, "unchanged")
            await self._connectors.update(call, record.id, patch, dry_run=dry_run)
            return Change(name, "updated", ", ".join(sorted(_touched(patch))))
        except AgentError as exc:
            return Change(name, "failed", exc.message + (f" ({exc.hint})" if exc.hint else ""))

    async def _prune(
        self, call: CallContext, present: dict[str, ConnectorRecord], seen: set[str], dry_run: bool, source: str
    ) -> list[Change]:
        gone = [
            record
            for key, record in present.items()
            if key not in seen and record.source == "file" and record.source_file == source
        ]
        changes = []
        for record in gone:
            try:
                if not dry_run:
                    await self._connectors.delete(call, record.id)
                changes.append(Change(record.name, "removed"))
            except AgentError as exc:
                changes.append(Change(record.name, "failed", exc.message))
        return changes


def _named(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("name"), str) and bool(entry["name"].strip())


def _touched(patch: ConnectorPatch) -> set[str]:
    return patch.model_fields_set - {"config"} | {f"config.{name}" for name in patch.config or {}}


def _explained(exc: ValidationError) -> str:
    """What is wrong with an entry, naming the field. Values are never quoted: one may be a secret."""
    first = exc.errors(include_input=False, include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, list(ConnectorDraft.model_fields), n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ConnectorDraft.model_fields)}"
        return f"an entry has no field {field!r} ({hint})"
    if first["type"] == "missing":
        return f"the field {field!r} is missing"
    return f"{field}: {str(first['msg']).removeprefix('Value error, ')}"


class DirectoryWatch:
    """Applies the `*.toml` files of a directory whenever they change (watchdog). Runs its callback on the loop.

    The whole directory is one state: an entry that disappears from it is removed. A directory that disappears is none.
    """

    def __init__(self, directory: Path, apply: Apply, workers: Workers, call: Callable[[], CallContext]) -> None:
        self._directory = directory
        self._apply = apply
        self._workers = workers
        self._call = call
        self._observer: Any = None
        self._pending: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._stopped = False
        self.last_errors: tuple[str, ...] = ()
        self.runs = 0
        """How often the directory was applied."""

    async def start(self) -> None:
        """Watch the directory, made when it is missing, and apply what is there. Does not wait for the applying.

        A directory that cannot be watched is reported in `last_errors`, and no reason to fail.
        """
        try:
            await self._workers.apart(lambda: self._directory.mkdir(mode=0o700, exist_ok=True))
            self._observe(asyncio.get_running_loop())
        except OSError as exc:
            self._report([f"{self._directory} cannot be watched: {exc.strerror or exc}"])
            return
        self._begin()

    async def settled(self) -> None:
        """Wait until everything that was begun is applied."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self) -> None:
        """Stop watching. Safe to repeat."""
        self._stopped = True
        if self._pending is not None:
            self._pending.cancel()
        for task in self._tasks:
            task.cancel()
        if self._observer is not None:
            self._observer.stop()
            self._observer = None

    def _observe(self, loop: asyncio.AbstractEventLoop) -> None:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        schedule = self._schedule

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                if event.event_type in ("created", "modified", "moved", "deleted"):
                    with contextlib.suppress(RuntimeError):  # the loop is gone: the agent stops
                        loop.call_soon_threadsafe(schedule)

        self._observer = Observer()
        self._observer.daemon = True
        self._observer.schedule(Handler(), str(self._directory))
        self._observer.start()

    def _schedule(self) -> None:
        """Wait for half a second of silence: editors write in several steps."""
        if self._pending is not None:
            self._pending.cancel()
        if not self._stopped:
            self._pending = asyncio.get_running_loop().call_later(_SILENCE_S, self._begin)

    def _begin(self) -> None:
        task = asyncio.get_running_loop().create_task(self._run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        async with self._turn:  # one after the other: an older reading must not be applied over a newer one
            await self._apply_once()

    async def _apply_once(self) -> None:
        try:
            entries, errors = await self._workers.apart(self._read)
            # With a broken file in the directory nothing is removed: its entries would look deleted.
            changes = await self._apply.apply(self._call(), entries, prune=not errors, source=str(self._directory))
        except AgentError as exc:
            self._report([exc.message])
            return
        finally:
            self.runs += 1
        self._report(
            [*errors, *(f"{change.name}: {change.message}" for change in changes if change.action == "failed")]
        )
        done = [change for change in changes if change.action not in ("unchanged", "failed")]
        if done:
            _log.info("connectors as code: %s", ", ".join(f"{c.name} {c.action}" for c in done))

    def _read(self) -> tuple[list[dict[str, Any]], list[str]]:
        entries: list[dict[str, Any]] = []
        errors: list[str] = []
        if not self._directory.is_dir():
            return [], [f"the directory {self._directory} is gone; its connectors are kept"]
        for path in sorted(self._directory.glob("*.toml")):
            try:
                entries += read_file(path)
            except ConfigError as exc:
                errors.append(str(exc))
        return entries, errors

    def _report(self, errors: list[str]) -> None:
        for error in errors:
            if error not in self.last_errors:  # once, not with every change of another file
                _log.error("connectors as code: %s", error)
        self.last_errors = tuple(errors)
