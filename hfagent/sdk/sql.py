"""Base of all SQL connectors: guarded statements, generated reads, the template of a connection test.

A subclass brings its config class, `connect`, `open_result`, the catalogue queries (`read_schema`) and the facts that
the test stages ask for (`check_*`). Everything else is here.

Read-only safety has four layers (connector specification §0.9): the account, the session (`connect` sets it up), the
statement guard (`sdk/guard.py`), the limits of the caller. Identifiers are quoted, values are bound: nothing is ever
concatenated.
"""

from __future__ import annotations

import fnmatch
import statistics
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

from hfagent.foundation.errors import AgentError, NotFound, UserError
from hfagent.model.stream import Stream
from hfagent.sdk.config import ConnectorConfig
from hfagent.sdk.connector import BaseConnector, Cancellable, Explainable, Incremental, Queryable
from hfagent.sdk.probe import Probe, ProbeFailed, Stage
from hfagent.sdk.reading import BatchReader, Bound, ReadRequest, SchemaRequest, Statement

__all__ = ["SQLBase", "matches"]

SqlConfigT = TypeVar("SqlConfigT", bound=ConnectorConfig)

_STAGE_OF_CODE = {
    "net.dns": "dns",
    "net.tunnel_auth": "tunnel",
    "net.tunnel_hostkey": "tunnel",
    "net.proxy": "tunnel",
    "net.protocol": "auth",
    "net.reset": "auth",
    "net": "tcp",
    "tls": "tls",
    "auth": "auth",
    "timeout": "auth",
    "namespace": "namespace",
    "permission": "permission",
    "capacity": "capacity",
    "credential": "secrets",
    "config": "config",
}
"""Where an error of `connect` belongs: the server's answer tells more than the step we were at."""


class SQLBase(BaseConnector[SqlConfigT], Queryable, Explainable, Cancellable, Incremental):
    """A system that speaks SQL and can stream a result."""

    is_queryable: ClassVar[bool] = True
    server_enforces_read_only: ClassVar[bool] = True
    """Whether the session set up by `connect` makes the server refuse writes."""
    quote_character: ClassVar[str] = '"'
    placeholder: ClassVar[str] = "%s"
    doubles_percent: ClassVar[bool] = True
    """Whether a % in a quoted name must be written twice in a statement with bound values."""

    # --- what differs between systems ---

    def addresses(self) -> list[tuple[str, int]]:
        """Hosts and ports that a test should resolve and dial; empty for local sockets."""
        return []

    @abstractmethod
    def open_result(self, connection: Any, sql: str, params: Any, request: Statement) -> BatchReader:
        """Run `sql` (already guarded or generated) and stream its result.

        Honours `request.cancel`, `request.deadline`, `request.max_rows` and `request.first_rows`. Closing the reader early
        leaves the connection usable or broken, never busy.
        """

    @abstractmethod
    def owned_namespaces(self, connection: Any) -> tuple[str, ...]:
        """Namespaces owned by the account; if none, all non-system ones in which it can read something (§0.5)."""

    def check_secrets(self, stage: Stage) -> None:
        """Parse keys and certificates; nothing to do by default."""

    def check_tls(self, connection: Any, stage: Stage) -> None:
        """Report version, cipher and whether the server's identity is verified; warn otherwise."""
        stage.skip("this system has no TLS facts")

    def check_auth(self, connection: Any, stage: Stage) -> None:
        """Add facts about the sign-in."""

    @abstractmethod
    def check_server(self, connection: Any, probe: Probe, stage: Stage) -> None:
        """Fill `probe.server` (product, version, role, time zone, clock skew) and warn about old versions and skew."""

    @abstractmethod
    def check_namespaces(self, connection: Any, stage: Stage) -> None:
        """Check that the database and every output schema exist and are visible."""

    @abstractmethod
    def check_permissions(self, connection: Any, stage: Stage) -> None:
        """Count visible and readable streams; raise or warn when nothing can be read. Hints carry the GRANT to run."""

    def check_safety(self, connection: Any, stage: Stage) -> None:
        """Warn when the account can write or is a superuser."""

    def check_capacity(self, connection: Any, stage: Stage) -> None:
        """Compare the server's connection limits with the pool's size."""

    # --- statements ---

    def quote(self, identifier: str) -> str:
        """Quote an identifier. Raises `UserError` for NUL, which no system can store."""
        if "\0" in identifier:
            raise UserError("an identifier cannot contain a NUL character", code="request.invalid_params")
        mark = self.quote_character
        return mark + identifier.replace(mark, mark * 2) + mark

    def qualified(self, namespace: str | None, name: str) -> str:
        """Quote a stream's name with its namespace."""
        return ".".join(self.quote(part) for part in (namespace, name) if part is not None)

    def execute(self, connection: Any, statement: Statement) -> BatchReader:
        """Guard a user's statement and run it."""
        from hfagent.sdk.guard import check_statement

        guarded = check_statement(
            statement.text, self.dialect or "", server_enforces_read_only=self.server_enforces_read_only
        )
        return self.open_result(connection, guarded.text, statement.params, statement)

    def read_rows(self, connection: Any, stream: Stream, request: ReadRequest) -> BatchReader:
        """Read a stream with explicit columns, bound values and the request's order."""
        self.require_namespace(stream.namespace)
        sql, params = self.select(stream, request)
        return self.open_result(
            connection,
            sql,
            params,
            Statement(sql, params, max_rows=request.limit, cancel=request.cancel, deadline=request.deadline),
        )

    def select(self, stream: Stream, request: ReadRequest) -> tuple[str, tuple[Any, ...]]:
        """Build the SELECT for a read. Raises `NotFound` (`column.not_found`) for columns the stream does not have."""
        known = {column.name: column for column in stream.columns}
        names = request.columns or tuple(c.name for c in stream.columns if not c.hidden)
        if not names:
            raise UserError(f"{stream.id} has no columns to read", code="column.not_found")
        used = {*names, *(bound.column for bound in request.bounds), *request.order_by}
        used |= {request.nulls_of} if request.nulls_of is not None else set()
        if stream.columns and (missing := sorted(used - known.keys())):
            raise NotFound(f"{stream.id} has no column {missing[0]!r}", code="column.not_found")
        params: list[Any] = []
        # With bound values the driver looks for placeholders in the whole text: a % in a name must not be taken for one.
        binds = any(not bound.operator.startswith("is ") for bound in request.bounds)
        literal: Callable[[str], str] = (
            _double_percent if binds and self.doubles_percent and "%" in self.placeholder else str
        )
        sql = literal(f"SELECT {', '.join(self.projection(known.get(n), n) for n in names)}")
        sql += literal(f" FROM {self.qualified(stream.namespace, stream.name)}")
        if conditions := self._conditions(request, known, params, literal):
            sql += " WHERE " + " AND ".join(conditions)
        if request.order_by:
            sql += literal(" ORDER BY " + ", ".join(self.sort_key(known.get(n), n) for n in request.order_by))
        if request.limit is not None:
            sql += f" LIMIT {int(request.limit)}"
        return sql, tuple(params)

    def projection(self, column: Any, name: str) -> str:
        """How a column is named in a generated SELECT; subclasses convert types the driver cannot carry."""
        return self.quote(name)

    def sort_key(self, column: Any, name: str) -> str:
        """How a read is ordered by a column: in the order in which its bounds compare."""
        return self.quote(name)

    def cast_bound(self, column: Any, placeholder: str) -> str:
        """How a bound value is compared: with the exact type of its column, so that no precision is lost (§0.7).

        Not asked for floats and decimals: they bring their type along, and a cast to a whole number would round them.
        """
        return placeholder

    def _conditions(
        self, request: ReadRequest, known: dict[str, Any], params: list[Any], literal: Callable[[str], str]
    ) -> list[str]:
        window = [bound for bound in request.bounds if bound.column == request.nulls_of]
        others = [bound for bound in request.bounds if bound.column != request.nulls_of]
        conditions = [self._condition(bound, known, params, literal) for bound in others]
        if window:
            inside = " AND ".join(self._condition(bound, known, params, literal) for bound in window)
            conditions.append(f"(({inside}) OR {literal(self.quote(window[0].column))} IS NULL)")
        return conditions

    def _condition(self, bound: Bound, known: dict[str, Any], params: list[Any], literal: Callable[[str], str]) -> str:
        name = literal(self.quote(bound.column))
        if bound.operator in ("is null", "is not null"):
            return f"{name} {bound.operator.upper()}"
        params.append(bound.value)
        if isinstance(bound.value, float | Decimal):
            return f"{name} {bound.operator} {self.placeholder}"
        return f"{name} {bound.operator} {self.cast_bound(known.get(bound.column), self.placeholder)}"

    # --- output_schemas ---

    def namespaces(self, connection: Any, request: SchemaRequest | None = None) -> tuple[str, ...]:
        """Resolve `output_schemas`: the configured ones, else the owned ones; narrowed by the request."""
        allowed = self.context.output_schemas
        wanted = request.namespaces if request else ()
        if wanted:
            return tuple(n for n in wanted if n in allowed) if allowed else wanted
        return allowed or self.owned_namespaces(connection)

    def require_namespace(self, namespace: str | None) -> None:
        """Raise `UserError` when `output_schemas` is set and does not contain the namespace."""
        allowed = self.context.output_schemas
        if allowed and namespace not in allowed:
            raise UserError(
                f"the schema {namespace!r} is not among this connector's output_schemas ({', '.join(allowed)})",
                code="config.policy_denied",
                hint="add it to output_schemas to make it readable",
            )

    # --- the test ---

    def test(self, probe: Probe) -> None:
        """Run the stages of §0.3; the connection is opened once and closed before returning."""
        connection: Any = None
        try:
            with probe.stage("config", map_error=self.map_error) as stage:
                stage.details["type"] = self.type_name
            with probe.stage("secrets", map_error=self.map_error) as stage:
                self.check_secrets(stage)
            self._probe_network(probe)
            connection = self._probe_connect(probe)
            with probe.stage("ping", map_error=self.map_error) as stage:
                probe.rtt_ms = stage.details["rtt_ms"] = self._round_trip(connection, probe)
            with probe.stage("server", map_error=self.map_error) as stage:
                self.check_server(connection, probe, stage)
                stage.details.update(probe.server)
            for name, check in (
                ("namespace", self.check_namespaces),
                ("permission", self.check_permissions),
                ("safety", self.check_safety),
                ("capacity", self.check_capacity),
            ):
                if probe.wants(name):
                    with probe.stage(name, map_error=self.map_error) as stage:
                        check(connection, stage)
            probe.skip("incremental", "no incremental schedule is attached")
        except ProbeFailed:
            return
        finally:
            if connection is not None:
                self.close(connection)

    def _probe_network(self, probe: Probe) -> None:
        from hfagent.sdk.network import probe_dns, probe_tcp

        probe.skip("tunnel", "no tunnel is configured")
        addresses = self.addresses()
        if not addresses:
            probe.skip("dns", "local socket")
            probe.skip("tcp", "local socket")
        for host, port in addresses[:1]:
            probe_dns(probe, host)
            probe_tcp(probe, host, port)

    def _probe_connect(self, probe: Probe) -> Any:
        """Connect; an error lands in the stage its code belongs to, the stages before it count as passed."""
        started = time.perf_counter()
        try:
            connection = self.connect(probe.deadline)
        except Exception as exc:
            error = self.map_error(exc)
            name = stage_of(error)
            if name in ("auth", "namespace", "permission", "capacity"):
                probe.record("tls")
            if name in ("namespace", "permission", "capacity"):
                probe.record("auth")
            probe.fail(name, error, ms=round((time.perf_counter() - started) * 1000, 3))
            raise ProbeFailed from exc
        spent = round((time.perf_counter() - started) * 1000, 3)
        try:
            with probe.stage("tls", map_error=self.map_error) as stage:
                self.check_tls(connection, stage)
            with probe.stage("auth", map_error=self.map_error) as stage:
                stage.details["connect_ms"] = spent
                self.check_auth(connection, stage)
        except BaseException:
            self.close(connection)
            raise
        return connection

    def _round_trip(self, connection: Any, probe: Probe) -> float:
        times = []
        for _ in range(3):
            probe.cancel.raise_if_cancelled()
            started = time.perf_counter()
            if not self.is_alive(connection, probe.deadline.bounded(5.0)):
                raise AgentError(f"{self.title}: the session was lost right after signing in", code="net.reset")
            times.append((time.perf_counter() - started) * 1000)
        return round(statistics.median(times), 3)


def stage_of(error: AgentError) -> str:
    """Return the test stage that an error of `connect` belongs to."""
    return error.stage or _STAGE_OF_CODE.get(error.code) or _STAGE_OF_CODE.get(error.code.split(".")[0], "auth")


def _double_percent(text: str) -> str:
    return text.replace("%", "%%")


def matches(text: str, include: Iterable[str], exclude: Iterable[str]) -> bool:
    """Apply glob patterns: any of `include` (or none given) and none of `exclude`; case matters."""
    included = not (patterns := tuple(include)) or any(fnmatch.fnmatchcase(text, p) for p in patterns)
    return included and not any(fnmatch.fnmatchcase(text, p) for p in exclude)
