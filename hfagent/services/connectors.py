"""Connectors: the catalog of types, the configured instances and their tests."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, TypeVar

from hfagent.foundation.clock import SYSTEM_CLOCK, Clock, Deadline
from hfagent.foundation.errors import AccessDenied, AgentError, Cancelled, ConfigError, Conflict, NotFound, UserError
from hfagent.foundation.redaction import MASK
from hfagent.model.connector import Connector, ConnectorDraft, ConnectorPatch, ConnectorType
from hfagent.model.report import STAGES, CheckReport, StageResult
from hfagent.sdk.connector import BaseConnector
from hfagent.sdk.probe import Mode, Probe, ProbeFailed
from hfagent.sdk.registry import Registry, describe
from hfagent.sdk.secret import is_reference
from hfagent.services.connections import Connections
from hfagent.services.context import CallContext
from hfagent.services.credentials import Credentials, Merged
from hfagent.services.cron import CronSchedule
from hfagent.services.policy import Policy
from hfagent.services.workers import Lane, Workers
from hfagent.store.checks import LastCheck
from hfagent.store.connectors import ConnectorRecord, Status
from hfagent.store.schedules import ScheduleRecord
from hfagent.store.store import Store

__all__ = ["Connectors"]

_log = logging.getLogger(__name__)
T = TypeVar("T")

ConnectorClass = type[BaseConnector[Any]]
_TEST_BUDGET_S = {"quick": 15.0, "standard": 60.0, "deep": 120.0}
_TEST_MARGIN_S = 5.0
"""What a test gets beyond its budget to tell by itself where the time went."""


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
                if wanted is not None and record.type != wanted:
                    continue
                cls = self._class(record)
                if category is not None and (cls is None or cls.category != category):
                    continue
                if queryable is not None and (cls is None or cls.is_queryable != queryable):
                    continue
                shown.append(self._shown(record, tests))
            return tuple(shown)

        return await self._db(work)

    async def get(self, connector: str) -> Connector:
        """Return one connector, secrets masked. Raises `NotFound`."""
        return await self._db(lambda: self._shown(self._store.connectors.get(connector)))

    async def records(self) -> tuple[ConnectorRecord, ...]:
        """Return all connectors as they are stored, by name: where secrets do not matter."""
        return await self._db(self._store.connectors.list)

    async def count_by_status(self) -> dict[str, int]:
        """Return how many connectors there are of each status."""

        def work() -> dict[str, int]:
            return dict(Counter(self._status(record)[0] for record in self._store.connectors.list()))

        return await self._db(work)

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

        def work() -> Connector:
            self._check_schedule(cls, schedule_cron)
            merged = self._prepared(cls, draft)
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

    async def check(self, draft: ConnectorDraft) -> None:
        """Raise what `create` would raise for what is wrong with the configuration. Changes nothing."""
        cls = await self._checked_class(draft.type)
        await self._db(lambda: self._prepared(cls, draft))

    async def update(
        self, call: CallContext, connector: str, patch: ConnectorPatch, *, dry_run: bool = False
    ) -> Connector:
        """Change a connector; with `dry_run` only check that it could be changed.

        Raises `NotFound`, `Conflict`, `ConfigError` or a vault error; then nothing is changed.
        """
        before = await self._find(connector)
        cls = await self._checked_class(before.type)

        def work() -> tuple[ConnectorRecord, Merged, Connector]:
            record = self._store.connectors.get(before.id)
            if patch.if_version is not None and record.version != patch.if_version:
                raise Conflict(
                    f"the connector {record.name!r} was changed meanwhile (version {record.version}, not {patch.if_version})",
                    code="connector.conflict",
                    hint="read it again and repeat the change",
                )
            self._check_schedule(cls, patch.schedule_cron)
            merged = self._merged(cls, record, patch.config or {})
            if patch.config is not None:
                self._policy().check_config(cls.Config, merged.plain)
                self._credentials.validate(cls, merged)
            if dry_run:
                return record, merged, self._shown(record)
            fields = patch.model_dump(
                include={"name", "description", "status", "output_schemas", "production"}, exclude_none=True
            )
            if patch.status is not None:
                fields["status_reason"] = None
            with self._store.transaction():
                changed = self._store.connectors.replace(
                    dataclasses.replace(record, config=merged.plain, **fields), if_version=record.version
                )
                self._credentials.seal(cls, record.id, merged)
                if patch.schedule_cron is not None or patch.schedule_mode is not None:
                    self._put_schedule(record, patch.schedule_cron, patch.schedule_mode)
                if _other_streams(cls, record, changed):
                    self._store.catalogues.remove(record.id)
                touched = patch.model_fields_set - {"config", "if_version"} | {
                    f"config.{k}" for k in patch.config or {}
                }
                self._audit(call, "connector.update", record.id, {"name": record.name, "fields": sorted(touched)})
            return record, merged, self._shown(changed)

        record, merged, shown = await self._db(work)
        if not dry_run:
            await self._replaced(record, merged, shown)
        return shown

    async def delete(self, call: CallContext, connector: str) -> None:
        """Remove a connector with its secrets, history and cached streams. Raises `NotFound`."""
        record = await self._find(connector)

        def work() -> None:
            with self._store.transaction(reclaiming=True):  # works on a full disk, too
                self._store.connectors.delete(record.id)
                self._audit(call, "connector.delete", record.id, {"name": record.name, "type": record.type})

        await self._db(work)
        self._connections.drop(record.id)
        self._changed(record.id)

    async def rotate(
        self, call: CallContext, connector: str, config: dict[str, Any], *, reason: str = "", force: bool = False
    ) -> tuple[bool, CheckReport]:
        """Test new secrets, then replace the old ones. A failed test changes nothing unless `force`.

        Raises `Conflict` when the connector was changed during the test: then it was not this configuration that passed.
        """
        before = await self._find(connector)
        cls = await self._checked_class(before.type)
        report = await self.test(call, connector=before.id, config=config, mode="standard")
        if not report.ok and not force:
            return False, report

        def work() -> tuple[ConnectorRecord, Merged, Connector]:
            record = self._store.connectors.get(before.id)
            merged = self._merged(cls, record, config)
            self._policy().check_config(cls.Config, merged.plain)
            self._credentials.validate(cls, merged)
            with self._store.transaction():
                changed = self._store.connectors.replace(
                    dataclasses.replace(record, config=merged.plain), if_version=before.version
                )
                self._credentials.seal(cls, record.id, merged)
                if _other_streams(cls, record, changed):
                    self._store.catalogues.remove(record.id)
                self._audit(
                    call, "connector.rotate", record.id,
                    {"name": record.name, "fields": sorted({*merged.fresh, *merged.cleared}), "reason": reason,
                     "test_ok": report.ok},
                )  # fmt: skip
            return record, merged, self._shown(changed)

        record, merged, shown = await self._db(work)
        await self._replaced(record, merged, shown)
        return True, report

    async def difference(self, present: ConnectorRecord, draft: ConnectorDraft) -> ConnectorPatch | None:
        """Return the change that makes a stored connector what `draft` describes, or None when it is that already.

        A secret given in full is compared with the sealed one. Raises `ConfigError` when the types differ or the draft is
        wrong in itself, and a vault error when it is locked.
        """
        cls = await self._checked_class(draft.type)
        if cls.type_name != present.type:
            raise ConfigError(
                f"the connector exists with type {present.type}, not {cls.type_name}",
                field="type",
                hint="delete it first, or choose another name",
            )

        def work() -> ConnectorPatch | None:
            wanted = {k: v for k, v in cls.Config.canonical(draft.config).items() if v is not None and v != ""}
            stored = self._credentials.stored_fields(present.id)
            literal = {
                k: v for k, v in wanted.items() if k in cls.Config.secret_fields() and isinstance(v, str) and v != MASK
            }
            config = {k: v for k, v in wanted.items() if k not in literal and v != MASK and present.config.get(k) != v}
            config.update({k: None for k in [*present.config, *stored] if k not in wanted})
            for name, value in literal.items():
                # With any other change (it may be the address) all secrets have to come along.
                if config or name not in stored or not self._credentials.is_stored(cls, present, name, value):
                    config[name] = value
            if config:
                config.update(literal)
            fields: dict[str, Any] = {"config": config} if config else {}
            for name in ("name", "description", "output_schemas", "production"):
                if getattr(draft, name) != getattr(present, name):
                    fields[name] = getattr(draft, name)
            return ConnectorPatch(**fields) if fields else None

        return await self._db(work)

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
        `AgentError` for an unknown connector or type, for parameters that do not fit together, and `Cancelled`.
        """
        if connector is None and type_name is None:
            raise UserError("give a connector, or a type with a config", code="request.invalid_params")
        if config and any(map(is_reference, config.values())) and not call.actor.allows("admin"):
            # A reference reads the agent's own files and environment; who may not configure the agent may not do that.
            raise AccessDenied(
                "only who may change connectors may test a configuration with references", hint="enter the values"
            )
        record = await self._find(connector) if connector is not None else None
        cls = await self._checked_class(record.type if record else type_name or "")
        if record is not None and type_name is not None:
            wanted = await self._db(lambda: self._registry.resolve(type_name))
            if wanted != record.type:
                raise UserError(
                    f"the connector {record.name!r} is of type {record.type}, not {wanted}",
                    code="request.invalid_params",
                )
        trace = _Trace(call)
        probe = Probe(mode=mode, deadline=Deadline(_TEST_BUDGET_S[mode]), cancel=call.cancel, on_stage=trace)
        call.progress({"kind": "begin", "title": f"Test {record.name if record else cls.title}", "cancellable": True})
        lane = self._connections.lane_for(record.id) if record else Lane("trial", threads=1)
        try:
            await self._workers.run(
                lane,
                lambda: self._run_test(cls, record, config, output_schemas, probe),
                cancel=call.cancel,
                deadline=Deadline(_TEST_BUDGET_S[mode] + _TEST_MARGIN_S),
                what="the test",
            )
        except AgentError as exc:
            if exc.code == "cancelled":
                raise
            if probe.error is None:
                probe.fail(exc.stage or trace.next, exc, ms=0)
        finally:
            if record is None:
                lane.close()
        if probe.error is not None and probe.error.code == "cancelled":
            raise Cancelled()  # says nothing about the source, so it is no result to keep
        report = probe.report(record.id if record else None).model_copy(update={"tested_at": self._now()})
        if record is not None and config is None and output_schemas is None:
            report = await self._db(lambda: self._kept(record.id, report))
        call.progress({"kind": "end", "message": f"failed at {report.error.stage}" if report.error else "passed"})
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
        try:
            built.test(probe)
        except ProbeFailed:
            return
        except Exception as exc:
            raise built.map_error(exc) from exc

    def _kept(self, connector_id: str, report: CheckReport) -> CheckReport:
        try:
            return self._store.checks.add(connector_id, report)
        except NotFound:
            return report  # deleted during its test

    def _prepared(self, cls: ConnectorClass, draft: ConnectorDraft) -> Merged:
        merged = self._credentials.merge(cls, draft.config)
        self._policy().check_config(cls.Config, merged.plain)
        self._credentials.validate(cls, merged)
        return merged

    def _merged(self, cls: ConnectorClass, record: ConnectorRecord, changes: dict[str, Any]) -> Merged:
        return self._credentials.merge(
            cls, changes, current=record.config, stored=self._credentials.stored_fields(record.id)
        )

    def _check_schedule(self, cls: ConnectorClass, cron: str | None) -> None:
        if cron is None:
            return
        if not cls.is_queryable:
            raise UserError(f"{cls.title} connectors have no streams to sync", code="connector.not_queryable")
        CronSchedule.parse(cron)

    def _put_schedule(
        self, record: ConnectorRecord, cron: str | None, mode: Literal["incremental", "full"] | None
    ) -> None:
        present = self._store.schedules.get(record.id)
        if present is None and cron is None:
            raise ConfigError(
                f"the connector {record.name!r} has no schedule yet, so its mode alone cannot be set",
                field="schedule_cron",
                hint="give schedule_cron too, for example: 0 2 * * * (daily at 02:00)",
            )
        self._store.schedules.set(
            ScheduleRecord(
                connector_id=record.id,
                cron=cron or (present.cron if present else ""),
                mode=mode or (present.mode if present else "incremental"),
                timezone=present.timezone if present else "UTC",
                paused=present.paused if present else False,
            )
        )

    def _shown(self, record: ConnectorRecord, tests: dict[str, LastCheck] | None = None) -> Connector:
        cls = self._class(record)
        status, reason = self._status(record)
        schedule = self._store.schedules.get(record.id)
        last = (self._store.checks.last() if tests is None else tests).get(record.id)
        return Connector(
            id=record.id,
            name=record.name,
            type=record.type,
            description=record.description,
            config=self._credentials.masked(record),
            output_schemas=record.output_schemas,
            status=status,
            status_reason=reason,
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

    def _status(self, record: ConnectorRecord) -> tuple[Status, str | None]:
        if self._class(record) is not None:
            return record.status, record.status_reason
        broken = self._registry.broken.get(record.type)
        if broken is not None:
            return "invalid", f"the connector type {record.type!r} cannot be loaded: {broken}"
        return "invalid", f"no connector type {record.type!r} is installed"

    def _class(self, record: ConnectorRecord) -> ConnectorClass | None:
        """The class of a stored connector, or None when its type is gone or broken (a plug-in)."""
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

    async def _replaced(self, before: ConnectorRecord, merged: Merged, shown: Connector) -> None:
        """After a change that concerns them, the next use opens new connections and the old ones drain."""
        record = await self._find(shown.id)
        if merged.fresh or merged.cleared or _facts(before) != _facts(record):
            self._connections.drop(shown.id)
        else:
            self._connections.renew(record)
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


class _Trace:
    """Passes each stage of a test on as progress, and knows which one comes next."""

    def __init__(self, call: CallContext) -> None:
        self._progress = call.progress
        self._last = -1

    def __call__(self, result: StageResult) -> None:
        self._last = max(self._last, STAGES.index(result.stage))
        self._progress(
            {"kind": "report", "message": f"{result.stage}: {result.status}", "stage": result.model_dump(mode="json")}
        )

    @property
    def next(self) -> str:
        """The stage that was running when a test broke off."""
        return STAGES[min(self._last + 1, len(STAGES) - 1)]


def _facts(record: ConnectorRecord) -> tuple[Any, ...]:
    """What a source is built from."""
    return record.name, record.config, record.output_schemas, record.status


def _other_streams(cls: ConnectorClass, before: ConnectorRecord, after: ConnectorRecord) -> bool:
    """Whether what was discovered before may not be what is there now."""
    if before.output_schemas != after.output_schemas:
        return True
    behaviour = {name for name, spec in cls.Config.properties().items() if spec.get("x-group") in ("Pool", "Timeouts")}
    changed = {k for k in {*before.config, *after.config} if before.config.get(k) != after.config.get(k)}
    return bool(changed - behaviour - set(cls.Config.secret_fields()))


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
