"""Connectors: the catalog of types, the configured instances and their tests."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, TypeVar

from hfagent.foundation.clock import SYSTEM_CLOCK, Clock, Deadline
from hfagent.foundation.errors import AgentError, ConfigError, Conflict, UserError
from hfagent.model.connector import Connector, ConnectorDraft, ConnectorPatch, ConnectorType
from hfagent.model.report import CheckReport, StageResult
from hfagent.sdk.connector import BaseConnector
from hfagent.sdk.probe import Mode, Probe
from hfagent.sdk.registry import Registry, describe
from hfagent.services.connections import Connections
from hfagent.services.context import CallContext
from hfagent.services.credentials import Credentials, Merged
from hfagent.services.policy import Policy
from hfagent.services.workers import Lane, Workers
from hfagent.store.checks import LastCheck
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.schedules import ScheduleRecord
from hfagent.store.store import Store

__all__ = ["Connectors"]

_log = logging.getLogger(__name__)
T = TypeVar("T")

ConnectorClass = type[BaseConnector[Any]]
_TEST_BUDGET_S = {"quick": 15.0, "standard": 60.0, "deep": 120.0}


class Connectors:
    """`connectors/*` except streams (see `discovery.py`)."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        credentials: Credentials,
        connections: Connections,
        policy: Callable[[], Policy],
        workers: Workers,
        store_lane: Lane,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._registry = registry
        self._store = store
        self._credentials = credentials
        self._connections = connections
        self._policy = policy
        self._workers = workers
        self._lane = store_lane
        self._clock = clock
        self._on_change: list[Callable[[str], None]] = []

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Call `callback(connector_id)` on the loop after a connector was created, changed or deleted."""
        self._on_change.append(callback)

    # --- types ---

    async def catalog(self, type_name: str | None = None) -> tuple[ConnectorType, ...]:
        """Return the catalog entries, by title. Raises `ConfigError` (`config.type_unknown`)."""

        def work() -> tuple[ConnectorType, ...]:
            classes = self._registry.all() if type_name is None else (self._registry.get(type_name),)
            return tuple(sorted((describe(cls) for cls in classes), key=lambda entry: entry.title.lower()))

        return await self._db(work)

    # --- reading ---

    async def require(self, connector: str) -> ConnectorRecord:
        """Return the record of an id or name that may be used. Raises `NotFound`, or `UserError` when disabled."""
        record = await self._find(connector)
        if record.status == "disabled":
            raise UserError(
                f"the connector {record.name!r} is disabled",
                code="config.policy_denied",
                hint=f"hfagent connector enable {record.name!r}",
            )
        return record

    async def list(
        self, *, type_name: str | None = None, category: str | None = None, queryable: bool | None = None
    ) -> tuple[Connector, ...]:
        """Return the connectors, by name."""

        def work() -> tuple[Connector, ...]:
            wanted = self._registry.resolve(type_name) if type_name else None
            shown = []
            tests = self._store.checks.last()
            for record in self._store.connectors.list():
                cls = self._class(record)
                if wanted is not None and record.type != wanted:
                    continue
                if category is not None and (cls is None or cls.category != category):
                    continue
                if queryable is not None and (cls is None or cls.is_queryable != queryable):
                    continue
                shown.append(self._shown(record, tests))
            return tuple(shown)

        return await self._db(work)

    async def get(self, connector: str) -> Connector:
        """Return one connector, secrets masked. Raises `NotFound`."""
        record = await self._find(connector)
        return await self._db(lambda: self._shown(record))

    # --- writing ---

    async def create(
        self,
        call: CallContext,
        draft: ConnectorDraft,
        *,
        schedule_cron: str | None = None,
        schedule_mode: Literal["incremental", "full"] = "incremental",
        source: Literal["api", "file"] = "api",
        source_file: str | None = None,
    ) -> Connector:
        """Create a connector, optionally with a schedule. Raises `ConfigError`, `Conflict`, or a vault error."""
        cls = await self._checked_class(draft.type)
        if schedule_cron is not None:
            _check_cron(schedule_cron)
            if not cls.is_queryable:
                raise _cannot_schedule(cls)

        def work() -> Connector:
            merged = self._credentials.merge(cls, draft.config)
            self._policy().check_config(cls.Config, merged.plain)
            self._credentials.validate(cls, merged)
            with self._store.transaction():
                record = self._store.connectors.insert(
                    ConnectorRecord(
                        id=self._store.new_id(), name=draft.name, type=cls.type_name, description=draft.description,
                        config=merged.plain, output_schemas=draft.output_schemas, production=draft.production,
                        source=source, source_file=source_file,
                    )
                )  # fmt: skip
                self._credentials.seal(cls, record.id, merged)
                if schedule_cron is not None:
                    self._store.schedules.set(
                        ScheduleRecord(connector_id=record.id, cron=schedule_cron, mode=schedule_mode)
                    )
                self._audit(call, "connector.create", record.id, {"name": record.name, "type": record.type})
            return self._shown(record)

        created = await self._db(work)
        self._changed(created.id)
        return created

    async def update(self, call: CallContext, connector: str, patch: ConnectorPatch) -> Connector:
        """Change a connector. Raises `NotFound`, `Conflict`, `ConfigError` or a vault error; then nothing is changed."""
        before = await self._find(connector)
        cls = await self._checked_class(before.type)
        if patch.schedule_cron is not None:
            _check_cron(patch.schedule_cron)
            if not cls.is_queryable:
                raise _cannot_schedule(cls)

        def work() -> Connector:
            record = self._store.connectors.get(before.id)
            if patch.if_version is not None and record.version != patch.if_version:
                raise Conflict(
                    f"the connector {record.name!r} was changed meanwhile (version {record.version}, not {patch.if_version})",
                    code="connector.conflict",
                    hint="read it again and repeat the change",
                )
            merged = self._merged(cls, record, patch.config or {})
            if patch.config is not None:
                self._policy().check_config(cls.Config, merged.plain)
                self._credentials.validate(cls, merged, record.id)
            fields = patch.model_dump(
                include={"name", "description", "status", "output_schemas", "production"}, exclude_none=True
            )
            with self._store.transaction():
                changed = self._store.connectors.replace(
                    dataclasses.replace(record, config=merged.plain, **fields), if_version=record.version
                )
                self._credentials.seal(cls, record.id, merged)
                if patch.schedule_cron is not None or patch.schedule_mode is not None:
                    self._put_schedule(record.id, patch.schedule_cron, patch.schedule_mode)
                if patch.output_schemas is not None:
                    self._store.catalogues.remove(record.id)
                touched = patch.model_fields_set - {"config", "if_version"} | {
                    f"config.{k}" for k in patch.config or {}
                }
                self._audit(call, "connector.update", record.id, {"name": record.name, "fields": sorted(touched)})
            return self._shown(changed)

        shown: Connector = await self._db(work)
        await self._replaced(before, shown)
        return shown

    async def delete(self, call: CallContext, connector: str) -> None:
        """Remove a connector with its secrets, history and cached streams. Raises `NotFound`."""
        record = await self._find(connector)

        def work() -> None:
            with self._store.transaction():
                self._store.connectors.delete(record.id)
                self._audit(call, "connector.delete", record.id, {"name": record.name, "type": record.type})

        await self._db(work)
        await self._connections.drop(record.id)
        self._changed(record.id)

    async def rotate(
        self, call: CallContext, connector: str, config: dict[str, Any], *, reason: str = "", force: bool = False
    ) -> tuple[bool, CheckReport]:
        """Test new secrets, then replace the old ones. A failed test changes nothing unless `force`."""
        before = await self._find(connector)
        cls = await self._checked_class(before.type)
        report = await self.test(call, connector=connector, config=config, mode="standard")
        if not report.ok and not force:
            return False, report

        def work() -> Connector:
            record = self._store.connectors.get(before.id)
            merged = self._merged(cls, record, config)
            self._credentials.validate(cls, merged, record.id)
            with self._store.transaction():
                changed = self._store.connectors.replace(
                    dataclasses.replace(record, config=merged.plain), if_version=record.version
                )
                self._credentials.seal(cls, record.id, merged)
                self._audit(
                    call, "connector.rotate", record.id,
                    {"name": record.name, "fields": sorted(merged.fresh), "reason": reason, "test_ok": report.ok},
                )  # fmt: skip
            return self._shown(changed)

        shown = await self._db(work)
        await self._replaced(before, shown)
        return True, report

    # --- testing ---

    async def test(
        self,
        call: CallContext,
        *,
        connector: str | None = None,
        type_name: str | None = None,
        config: dict[str, Any] | None = None,
        output_schemas: tuple[str, ...] | None = None,
        mode: Mode = "standard",
    ) -> CheckReport:
        """Test a stored connector, a stored one with changes, or a configuration that is not stored.

        Never raises for what is wrong with the configuration or the source: that is the report's business. Raises
        `AgentError` for an unknown connector or type and for parameters that do not fit together.
        """
        if connector is None and type_name is None:
            raise UserError("give a connector, or a type with a config", code="request.invalid_params")
        record = await self._find(connector) if connector is not None else None
        cls = await self._checked_class(record.type if record else type_name or "")
        if record is not None and type_name is not None and cls.type_name != self._registry.resolve(type_name):
            raise UserError(f"the connector {record.name!r} is of type {record.type}", code="request.invalid_params")
        stored = record is not None and config is None and output_schemas is None
        probe = Probe(
            mode=mode, deadline=Deadline(_TEST_BUDGET_S[mode]), cancel=call.cancel, on_stage=_stage_reporter(call)
        )
        call.progress({"kind": "begin", "title": f"Test {record.name if record else cls.title}", "cancellable": True})
        lane = (
            self._connections.lane_for(record.id)
            if record
            else self._workers.lane(f"trial-{call.session_id}", threads=4)
        )

        def work() -> None:
            self._run_test(cls, record, config, output_schemas, probe)

        try:
            await self._workers.run(
                lane, work, cancel=call.cancel, deadline=Deadline(_TEST_BUDGET_S[mode] + 5), what="the test"
            )
        except asyncio.CancelledError:
            raise
        except AgentError as exc:
            if exc.code == "cancelled":
                raise
            if probe.error is None:
                probe.fail(exc.stage or _first_missing(probe), exc, ms=0)
        finally:
            if record is None:
                self._workers.drop(lane.name)
        report = probe.report(record.id if record else None).model_copy(update={"tested_at": self._now()})
        if stored and record is not None:
            kept = report
            report = await self._db(lambda: self._store.checks.add(record.id, kept))
        call.progress(
            {"kind": "end", "message": "passed" if report.ok else f"failed at {report.error and report.error.stage}"}
        )
        return report

    async def test_history(self, connector: str, limit: int = 20) -> tuple[CheckReport, ...]:
        """Return past results of a connector, newest first. Raises `NotFound`."""
        record = await self._find(connector)
        return await self._db(lambda: tuple(self._store.checks.list(record.id, limit=limit)))

    # --- inside ---

    def _run_test(
        self,
        cls: ConnectorClass,
        record: ConnectorRecord | None,
        config: dict[str, Any] | None,
        output_schemas: tuple[str, ...] | None,
        probe: Probe,
    ) -> None:
        """Build the connector as the test wants it and let it run its stages. Blocking."""
        try:
            if record is not None:
                merged = self._merged(cls, record, config or {})
                full = {**merged.plain, **self._credentials.open_stored(cls, record, only=merged.kept), **merged.fresh}
            else:
                merged = self._credentials.merge(cls, config or {})
                full = {**merged.plain, **merged.fresh}
            schemas = output_schemas if output_schemas is not None else (record.output_schemas if record else ())
            context = self._connections.context(
                connector_id=record.id if record else "trial",
                name=record.name if record else "trial",
                output_schemas=schemas,
            )
            built = self._connections.trial(cls, full, context)
        except AgentError as exc:
            stage = "secrets" if exc.code.startswith("credential") else "config"
            if stage == "secrets":
                probe.record("config")
            probe.fail(stage, exc, ms=0)
            return
        if cls.driver is not None and not cls.driver.installed():
            try:
                cls.driver.load()
            except ConfigError as exc:
                probe.fail("config", exc, ms=0)
                return
        built.test(probe)

    def _merged(self, cls: ConnectorClass, record: ConnectorRecord, changes: dict[str, Any]) -> Merged:
        return self._credentials.merge(
            cls, changes, current=record.config, stored=self._credentials.stored_fields(record.id)
        )

    def _put_schedule(self, connector_id: str, cron: str | None, mode: Literal["incremental", "full"] | None) -> None:
        present = self._store.schedules.get(connector_id)
        if present is None and cron is None:
            raise ConfigError("there is no schedule yet: give schedule_cron", field="schedule_cron")
        self._store.schedules.set(
            ScheduleRecord(
                connector_id=connector_id,
                cron=cron or (present.cron if present else ""),
                mode=mode or (present.mode if present else "incremental"),
                timezone=present.timezone if present else "UTC",
                paused=present.paused if present else False,
            )
        )

    def _shown(self, record: ConnectorRecord, tests: dict[str, LastCheck] | None = None) -> Connector:
        cls = self._class(record)
        schedule = self._store.schedules.get(record.id)
        last = (tests or self._store.checks.last()).get(record.id)
        return Connector(
            id=record.id,
            name=record.name,
            type=record.type,
            description=record.description,
            config=self._credentials.masked(cls, record) if cls else record.config,
            output_schemas=record.output_schemas,
            status=record.status if cls else "invalid",
            status_reason=record.status_reason if cls else f"no connector type {record.type!r} is installed",
            is_queryable=cls.is_queryable if cls else False,
            schedule_cron=schedule.cron if schedule else None,
            schedule_mode=schedule.mode if schedule else None,
            source=record.source,
            production=record.production,
            version=record.version,
            created_at=record.created_at,
            updated_at=record.updated_at,
            last_test_ok=last.ok if last else None,
            last_tested_at=last.tested_at if last else None,
        )

    def _class(self, record: ConnectorRecord) -> ConnectorClass | None:
        """The class of a stored connector, or None when its type is gone (an uninstalled plug-in)."""
        try:
            return self._registry.get(record.type)
        except ConfigError:
            return None

    async def _checked_class(self, type_name: str) -> ConnectorClass:
        cls = await self._db(lambda: self._registry.get(type_name))
        self._policy().check_type(cls.type_name)
        return cls

    async def _find(self, connector: str) -> ConnectorRecord:
        return await self._db(lambda: self._store.connectors.get(connector))

    async def _replaced(self, before: ConnectorRecord, shown: Connector) -> None:
        """The next use opens a new pool; the old one drains."""
        await self._connections.drop(before.id)
        self._changed(shown.id)

    def _changed(self, connector_id: str) -> None:
        for callback in self._on_change:
            callback(connector_id)

    def _audit(self, call: CallContext, action: str, connector_id: str, details: dict[str, Any]) -> None:
        self._store.audit.append(
            action,
            actor=str(call.actor),
            resource_type="connector",
            resource_id=connector_id,
            details=details,
        )

    def _now(self) -> str:
        return _iso(self._clock.now())

    async def _db(self, work: Callable[[], T]) -> T:
        return await self._workers.call(self._lane, work)


def _stage_reporter(call: CallContext) -> Callable[[StageResult], None]:
    def report(result: StageResult) -> None:
        call.progress(
            {"kind": "report", "message": f"{result.stage}: {result.status}", "stage": result.model_dump(mode="json")}
        )

    return report


def _first_missing(probe: Probe) -> str:
    """The stage that was running when a test broke off."""
    return next((stage.stage for stage in probe.report().stages if stage.status == "skipped"), "auth")


_FIELDS = re.compile(r"\s*\S+(\s+\S+){4}\s*")


def _check_cron(expression: str) -> None:
    """Raise `ConfigError` for anything but a five-field cron expression that fires at some time."""
    from croniter import CroniterBadCronError, CroniterBadDateError, croniter

    try:
        if not _FIELDS.fullmatch(expression):
            raise ValueError("expected five fields: minute hour day-of-month month day-of-week")
        croniter(expression, SYSTEM_CLOCK.now()).get_next()
    except (CroniterBadCronError, CroniterBadDateError, ValueError, KeyError) as exc:
        raise ConfigError(
            f"{expression!r} is not a usable cron expression: {exc}",
            field="schedule_cron",
            hint="for example: 0 2 * * * (daily at 02:00)",
        ) from exc


def _cannot_schedule(cls: ConnectorClass) -> UserError:
    return UserError(f"{cls.title} connectors have no streams to sync", code="connector.not_queryable")


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
