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

Entries are matched by name. A literal secret in a file is accepted once (and sealed), but a reference is what belongs
there. Only connectors that came from a file are ever removed, and only with `prune`.
"""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from hfagent.foundation.errors import AgentError, ConfigError
from hfagent.model.connector import Connector, ConnectorDraft, ConnectorPatch
from hfagent.services.connectors import Connectors
from hfagent.services.context import CallContext

__all__ = ["Apply", "Change", "read_file"]

_log = logging.getLogger(__name__)

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
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path} is not valid TOML: {exc}") from exc
    entries = tree.get("connectors")
    extra = sorted(tree.keys() - {"connectors"})
    if not isinstance(entries, list) or extra:
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
        """Apply all entries; one that fails does not stop the others. Returns what happened to each."""
        async with self._lock:
            changes = [await self._one(call, entry, dry_run, source) for entry in entries]
            if prune:
                changes += await self._prune(call, {change.name for change in changes}, dry_run, source)
            return changes

    async def _one(self, call: CallContext, entry: dict[str, Any], dry_run: bool, source: str) -> Change:
        name = str(entry.get("name", "(no name)"))
        try:
            draft = ConnectorDraft.model_validate(entry)
        except ValidationError as exc:
            first = exc.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return Change(name, "failed", f"{where}: {first['msg']}")
        try:
            present = await self._present(draft.name)
            if present is None:
                if not dry_run:
                    await self._connectors.create(call, draft, source="file", source_file=source)
                return Change(name, "created")
            patch = _difference(present, draft)
            if patch is None:
                return Change(name, "unchanged")
            if not dry_run:
                await self._connectors.update(call, present.id, patch)
            return Change(name, "updated", ", ".join(sorted(patch.model_fields_set)))
        except AgentError as exc:
            return Change(name, "failed", exc.message + (f" ({exc.hint})" if exc.hint else ""))

    async def _prune(self, call: CallContext, names: set[str], dry_run: bool, source: str) -> list[Change]:
        gone = [c for c in await self._connectors.list() if c.source == "file" and c.name not in names]
        for connector in gone:
            if not dry_run:
                await self._connectors.delete(call, connector.id)
        return [Change(connector.name, "removed") for connector in gone]

    async def _present(self, name: str) -> Connector | None:
        return next((c for c in await self._connectors.list() if c.name == name), None)


def _difference(present: Connector, draft: ConnectorDraft) -> ConnectorPatch | None:
    """What has to change; None when nothing. A literal secret counts as a change: its old value is not known here."""
    if present.type != draft.type:
        raise ConfigError(
            f"the connector exists with type {present.type}",
            field="type",
            hint="delete it first, or choose another name",
        )
    config = {k: v for k, v in draft.config.items() if present.config.get(k) != v}
    config.update({k: None for k in present.config if k not in draft.config})
    fields: dict[str, Any] = {"config": config} if config else {}
    for name in ("description", "output_schemas", "production"):
        if getattr(draft, name) != getattr(present, name):
            fields[name] = getattr(draft, name)
    return ConnectorPatch(**fields) if fields else None


class DirectoryWatch:
    """Applies the `*.toml` files of a directory whenever they change (watchdog). Runs its callback on the loop.

    The whole directory is one state: an entry that disappears from it is removed.
    """

    def __init__(self, directory: Path, apply: Apply, call: Callable[[], CallContext]) -> None:
        self._directory = directory
        self._apply = apply
        self._call = call
        self._observer: Any = None
        self._pending: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.last_errors: tuple[str, ...] = ()

    async def start(self) -> None:
        """Apply what is there, then watch. Does nothing when the directory does not exist."""
        if not self._directory.is_dir():
            return
        await self._run()
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        loop = asyncio.get_running_loop()
        schedule = self._schedule

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                if event.event_type in ("created", "modified", "moved", "deleted") and not event.is_directory:
                    loop.call_soon_threadsafe(schedule)

        self._observer = Observer()
        self._observer.daemon = True
        self._observer.schedule(Handler(), str(self._directory))
        self._observer.start()

    def stop(self) -> None:
        """Stop watching. Safe to repeat."""
        if self._pending is not None:
            self._pending.cancel()
        if self._observer is not None:
            self._observer.stop()
            self._observer = None

    def _schedule(self) -> None:
        """Wait for half a second of silence: editors write in several steps."""
        if self._pending is not None:
            self._pending.cancel()
        loop = asyncio.get_running_loop()
        self._pending = loop.call_later(0.5, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        entries: list[dict[str, Any]] = []
        errors: list[str] = []
        for path in sorted(self._directory.glob("*.toml")):
            try:
                entries += await asyncio.to_thread(read_file, path)
            except ConfigError as exc:
                errors.append(str(exc))
        # With a broken file in the directory nothing is removed: its entries would look deleted.
        changes = await self._apply.apply(self._call(), entries, prune=not errors, source=str(self._directory))
        errors += [f"{change.name}: {change.message}" for change in changes if change.action == "failed"]
        self.last_errors = tuple(errors)
        for error in errors:
            _log.error("connectors as code: %s", error)
        done = [change for change in changes if change.action not in ("unchanged", "failed")]
        if done:
            _log.info("connectors as code: %s", ", ".join(f"{c.name} {c.action}" for c in done))
