"""MySQL 5.7 and later, and what speaks its protocol: RDS and Aurora MySQL, Percona Server; TiDB as far as it goes.

A session is read-only, in UTC and utf8mb4, with a sql_mode of our own; statements are bound on the client's side. Streams
are read in one consistent snapshot and come as Arrow batches straight off the wire (`_mysql_rows`). The sibling `mariadb`
overrides what differs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pydantic import field_validator

from hfagent.connectors._mysql_config import MySQLFamilyConfig
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, SourceError
from hfagent.model.query import QueryPlan
from hfagent.model.stream import Column, Stream
from hfagent.sdk.config import field
from hfagent.sdk.driver import Driver
from hfagent.sdk.incremental import WatermarkFacts
from hfagent.sdk.probe import Probe, Stage
from hfagent.sdk.reading import BatchReader, Bound, ReadRequest, SchemaRequest, Statement
from hfagent.sdk.sql import SQLBase

if TYPE_CHECKING:
    from hfagent.connectors._mysql_session import Session
    from hfagent.connectors._mysql_types import ValueOptions

__all__ = ["MySQL", "MySQLConfig"]

_KILL_S: Final = 1.5
"""Seconds for signing in a second time to stop a statement."""
_CHECK_S: Final = 20.0
_RESET_S: Final = 5.0
_TIMEOUT_GRACE_S: Final = 2.0
"""The server's own time limit should end a statement; ours comes a little later."""
_LOCK_WAIT_S: Final = 5
_EXPIRES_SOON_DAYS: Final = 30


class MySQLConfig(MySQLFamilyConfig):
    """Connect to a MySQL server."""

    example: ClassVar[dict[str, Any]] = {
        "host": "db.example.com",
        "port": 3306,
        "database": "sales",
        "username": "honeyframe_ro",
        "password": "change-me",
        "ssl_mode": "required",
    }

    auth_plugin: Literal[
        "auto", "caching_sha2_password", "mysql_native_password", "sha256_password", "mysql_clear_password"
    ] = field(
        "auto", description="How the account signs in. auto follows the server, except to methods that show it the password in "
        "clear text; mysql_clear_password (LDAP, PAM, IAM tokens) must be chosen and needs a verified TLS connection.",
        group="Sign-in", advanced=True, pool_key=True,
    )  # fmt: skip
    server_public_key: str | None = field(
        None, description="PEM text of the server's RSA key (caching_sha2_password_public_key.pem). Without TLS the password is "
        "encrypted for this key; left empty, for whatever key the server sends.", group="Sign-in", multiline=True, advanced=True,
        show_when={"ssl_mode": ["disabled", "preferred"]}, pool_key=True,
    )  # fmt: skip
    max_execution_time_ms: int | None = field(
        None, description="Milliseconds a SELECT of yours may run on the server; 0 = no limit. Default: query_timeout_s.", ge=0,
        le=86_400_000, group="Timeouts", advanced=True, pool_key=True,
    )  # fmt: skip

    @field_validator("server_public_key", mode="after")
    @classmethod
    def _is_public_key(cls, value: str | None) -> str | None:
        if value and "-----BEGIN PUBLIC KEY-----" not in value:
            raise ValueError("expected a PEM text that starts with -----BEGIN PUBLIC KEY-----")
        return value or None


class MySQL(SQLBase[MySQLFamilyConfig]):
    """The `mysql` type."""

    title = "MySQL"
    description = "MySQL databases, RDS and Aurora MySQL, Percona Server"
    category = "database"
    aliases: ClassVar[tuple[str, ...]] = ("rds_mysql", "aurora_mysql", "percona", "tidb")
    driver = Driver("pymysql", extra="mysql", distribution="PyMySQL")
    dialect = "mysql"
    Config: ClassVar[type[MySQLFamilyConfig]] = MySQLConfig
    quote_character = "`"
    doubles_percent = False  # `_mysql_bind` leaves quoted names alone
    product: ClassVar[str] = "MySQL"
    """The server this type is made for."""

    # --- the life of a session ---

    def addresses(self) -> list[tuple[str, int]]:
        return [(self.config.host, self.config.port)] if self.config.host and not self.config.unix_socket else []

    def connect(self, deadline: Deadline) -> Session:
        return self._open(Deadline(deadline.bounded(self.config.connect_timeout_s)), prepare=True)

    def _open(self, deadline: Deadline, *, prepare: bool) -> Session:
        """Sign in; with `prepare` make the session read-only and ours. The whole takes no longer than `deadline`."""
        if self.driver is not None:
            self.driver.load()
        from hfagent.connectors._mysql_dial import dial
        from hfagent.connectors._mysql_session import open_session

        try:
            session = open_session(
                self.config,
                self.context.application_name,
                deadline,
                lambda d: dial(self.config, d, self.context.allowed_paths),
            )
        except Exception as exc:
            raise self.map_error(exc) from exc
        if not prepare:
            return session
        try:
            session.prepare(self.session_settings(session), timeout=max(deadline.bounded(3600.0), 0.001))
        except Exception as exc:
            session.shut_down()
            self.close(session)
            raise self.map_error(exc) from exc
        return session

    def session_settings(self, session: Session) -> tuple[str, ...]:
        """The assignments of one SET that make a new session ours."""
        from hfagent.connectors._mysql_session import GROUP_CONCAT_BYTES

        modern = not session.is_mariadb and session.version >= (5, 7, 20)
        prefix = "transaction" if modern else "tx"
        return (
            "NAMES utf8mb4",
            "SESSION autocommit = 1",
            f"SESSION {prefix}_read_only = 1",
            f"SESSION {prefix}_isolation = 'REPEATABLE-READ'",
            "SESSION time_zone = '+00:00'",
            # A fixed sql_mode, so that the statement guard and the server agree on what is a string, a name and a comment,
            # and comparisons with zero dates are no errors.
            "SESSION sql_mode = ''",
            self.time_limit(session),
            f"SESSION net_write_timeout = {self.config.net_write_timeout_s}",
            f"SESSION innodb_lock_wait_timeout = {_LOCK_WAIT_S}",
            f"SESSION group_concat_max_len = {GROUP_CONCAT_BYTES}",
        )

    def time_limit(self, session: Session) -> str:
        """The assignment that limits how long the server works on one statement."""
        if session.is_mariadb:
            return f"SESSION max_statement_time = {self.config.query_timeout_s}"
        limit = getattr(self.config, "max_execution_time_ms", None)
        return f"SESSION max_execution_time = {self.config.query_timeout_s * 1000 if limit is None else limit}"

    def is_alive(self, connection: Session, timeout: float) -> bool:
        if not connection.usable:
            return False
        try:
            connection.set_read_timeout(max(timeout, 0.001))
            connection.ping(reconnect=False)
        except Exception:  # noqa: BLE001
            # Whatever went wrong, the session is of no use; PyMySQL has closed it.
            connection.shut_down()
            return False
        return True

    def reset(self, connection: Session) -> bool:
        try:
            return connection.restore(_RESET_S)
        except Exception:  # noqa: BLE001
            # The pool discards what cannot be brought back; why does not matter to the next user.
            connection.shut_down()
            return False

    def close(self, connection: Session) -> None:
        with suppress(Exception):  # it is being thrown away; PyMySQL raises when it is closed already
            connection.close()

    def abort(self, connection: Session) -> None:
        connection.shut_down()

    def cancel(self, connection: Session) -> None:
        connection.cancelled = True
        self._kill(connection)

    def _kill(self, session: Session) -> bool:
        """Stop the session's statement from a second session; False when there was none or the server did not listen."""
        with session.interrupting:
            if not session.running:
                return False
            try:
                second = self._open(Deadline(_KILL_S), prepare=False)
            except AgentError:
                return False
            try:
                second.run(f"KILL QUERY {int(session.thread_id())}", timeout=_KILL_S)
            except Exception:  # noqa: BLE001  there is a harder way to stop it, and the caller takes it
                return False
            finally:
                self.close(second)
            return True

    # --- statements ---

    def execute(self, connection: Session, statement: Statement) -> BatchReader:
        """Guard a user's statement and run it; the guard is stricter in a session that the server does not hold to reading."""
        return self.open_result(connection, self._guarded(connection, statement), (), statement)

    def open_result(self, connection: Session, sql: str, params: Any, request: Statement) -> BatchReader:
        limit = self.config.query_timeout_s
        deadline = Deadline(request.deadline.bounded(limit + _TIMEOUT_GRACE_S)) if limit else request.deadline
        return self._result(connection, sql, params, request, deadline)

    def _guarded(self, connection: Session, statement: Statement) -> str:
        """The statement with its values in it, after the guard saw exactly what the server will see."""
        from hfagent.connectors._mysql_bind import bind
        from hfagent.sdk.guard import check_statement

        text = bind(statement.text, statement.params, connection.escape)
        return check_statement(text, self.dialect or "mysql", server_enforces_read_only=connection.read_only).text

    def _result(
        self, connection: Session, sql: str, params: Any, request: Statement, deadline: Deadline, **options: Any
    ) -> BatchReader:
        from hfagent.connectors._mysql_bind import bind
        from hfagent.connectors._mysql_reader import open_reader

        bound = bind(sql, params, connection.escape)
        options.setdefault("options", self._options())
        options.setdefault("map_error", lambda error: self._denied(error, connection, None))
        return open_reader(
            connection, bound, request, kill=self._kill, deadline=deadline, **options
        )  # fmt: skip

    def _options(self) -> ValueOptions:
        from hfagent.connectors._mysql_types import ValueOptions

        return ValueOptions(self.config.zero_date, self.config.tinyint1_as_bool)

    def explain(self, connection: Session, statement: Statement) -> QueryPlan:
        sql = "EXPLAIN FORMAT=JSON " + self._guarded(connection, statement)
        with self.open_result(connection, sql, (), statement) as reader:
            text = "".join(str(value) for batch in reader for value in batch.column(0).to_pylist())
        try:
            plan = json.loads(text)
        except ValueError as exc:
            raise SourceError("the server's plan is not JSON", code="net.protocol", hint="see the agent's log") from exc
        block = plan.get("query_block", {}) if isinstance(plan, dict) else {}
        cost = block.get("cost_info", {}).get("query_cost", block.get("cost"))
        rows = re.search(r'"rows(?:_produced_per_join)?": (\d+)', text)
        return QueryPlan(
            format="json", plan=plan, estimated_cost=None if cost is None else float(cost),
            estimated_rows=float(rows[1]) if rows else None,
        )  # fmt: skip

    # --- streams ---

    def read_schema(self, connection: Session, request: SchemaRequest) -> Iterator[Stream]:
        from hfagent.connectors._mysql_catalogue import Catalogue

        def rows(sql: str, values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
            statement = Statement(sql, values, cancel=request.cancel, deadline=request.deadline)
            with self._our_result(connection, sql, values, statement) as reader:
                for batch in reader:
                    yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

        catalogue = Catalogue(rows, self._options(), is_mariadb=connection.is_mariadb)
        for namespace in self.namespaces(connection, request):
            request.cancel.raise_if_cancelled()
            yield from catalogue.streams(namespace, request)

    def _our_result(self, connection: Session, sql: str, values: Any, statement: Statement) -> BatchReader:
        """The result of a catalogue query: nobody's preferences about values apply."""
        from hfagent.connectors._mysql_types import ValueOptions

        return self._result(
            connection, sql, values, statement, statement.deadline, trusted=True, options=ValueOptions("null", False)
        )

    def owned_namespaces(self, connection: Session) -> tuple[str, ...]:
        """MySQL knows no owners: all databases that the account can see."""
        from hfagent.connectors._mysql_checks import visible_namespaces

        try:
            return visible_namespaces(connection, _CHECK_S)
        except Exception as exc:
            raise self.map_error(exc) from exc

    def read_rows(self, connection: Session, stream: Stream, request: ReadRequest) -> BatchReader:
        """Read a stream in a consistent snapshot of its own; `query_timeout_s` is for statements of users, not for this."""
        self.require_namespace(stream.namespace)
        sql, params = self.select(stream, request)
        try:
            connection.run("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY", timeout=_CHECK_S)
        except Exception as exc:
            raise self.map_error(exc) from exc
        statement = Statement(sql, params, max_rows=request.limit, cancel=request.cancel, deadline=request.deadline)
        return self._result(
            connection, self.unlimited(sql, connection), params, statement, request.deadline, trusted=True,
            declared={column.name: column for column in stream.columns}, after=lambda: _end_transaction(connection),
            map_error=lambda error: self._denied(error, connection, self.qualified(stream.namespace, stream.name)),
        )  # fmt: skip

    def watermark_facts(
        self,
        connection: Session,
        stream: Stream,
        column: str,
        *,
        lookback: int | None = None,
        cancel: CancelToken,
        deadline: Deadline,
    ) -> WatermarkFacts:
        """Two statements; only `deadline` limits them, because a column without an index takes a pass over the table."""
        from hfagent.connectors._mysql_checks import variables
        from hfagent.connectors._mysql_types import ValueOptions
        from hfagent.connectors._mysql_watermark import look

        self.require_namespace(stream.namespace)
        table = self.qualified(stream.namespace, stream.name)

        def rows(sql: str) -> list[tuple[Any, ...]]:
            reader = self._result(
                connection, self.unlimited(sql, connection), (), Statement(sql, cancel=cancel, deadline=deadline), deadline,
                trusted=True, options=ValueOptions("null", False),
                map_error=lambda error: self._denied(error, connection, table),
            )  # fmt: skip
            with reader:
                return [row for batch in reader for row in zip(*(c.to_pylist() for c in batch.columns), strict=True)]

        cancel.raise_if_cancelled()
        try:
            facts = variables(connection, deadline.bounded(_CHECK_S))
        except Exception as exc:
            raise self.map_error(exc) from exc
        return look(rows, facts, stream, column, table=table, quoted=self.quote(column), lookback=lookback)

    def unlimited(self, sql: str, session: Session) -> str:
        """A generated SELECT, freed from the session's time limit."""
        if session.is_mariadb:
            return f"SET STATEMENT max_statement_time = 0 FOR {sql}"
        return sql.replace("SELECT ", "SELECT /*+ MAX_EXECUTION_TIME(4294967295) */ ", 1)

    def select(self, stream: Stream, request: ReadRequest) -> tuple[str, tuple[Any, ...]]:
        """Build the SELECT for a read; bounds are written as MySQL writes such values."""
        columns = {column.name: column for column in stream.columns}
        bounds = tuple(replace(bound, value=_native(bound, columns.get(bound.column))) for bound in request.bounds)
        return super().select(stream, replace(request, bounds=bounds))

    def projection(self, column: Column | None, name: str) -> str:
        """A FLOAT would come rounded to six digits; as a DOUBLE it comes whole."""
        quoted = self.quote(name)
        return f"({quoted} + 0e0) AS {quoted}" if column is not None and column.type.kind == "float32" else quoted

    def cast_bound(self, column: Column | None, placeholder: str) -> str:
        """MySQL compares a number with a text as floating-point numbers, which loses digits; so numbers are cast."""
        if column is None:
            return placeholder
        kind = column.type.kind
        if kind == "decimal":
            from hfagent.connectors._mysql_watermark import decimal_cast

            return f"CAST({placeholder} AS {decimal_cast(column)})"
        if kind.startswith("uint"):
            return f"CAST({placeholder} AS UNSIGNED)"
        if kind.startswith("int") and kind != "interval":
            return f"CAST({placeholder} AS SIGNED)"
        if kind in ("timestamp", "timestamptz"):
            return f"CAST({placeholder} AS DATETIME(6))"
        return placeholder

    # --- the test ---

    def check_secrets(self, stage: Stage) -> None:
        from hfagent.connectors._mysql_tls import tls_context
        from hfagent.sdk.network import check_certificate

        tls_context(self.config)
        for name in ("ssl_ca", "ssl_cert"):
            if text := getattr(self.config, name):
                _report_certificate(name, check_certificate(text, what=name), stage)

    def check_tls(self, connection: Session, stage: Stage) -> None:
        from hfagent.connectors import _mysql_checks

        _mysql_checks.tls(connection, self.config, stage)

    def check_auth(self, connection: Session, stage: Stage) -> None:
        from hfagent.connectors import _mysql_checks

        _mysql_checks.sign_in(connection, stage, _CHECK_S)

    def check_server(self, connection: Session, probe: Probe, stage: Stage) -> None:
        from hfagent.connectors import _mysql_checks

        probe.server |= _mysql_checks.server_facts(connection, stage, self.product, _CHECK_S)

    def check_namespaces(self, connection: Session, stage: Stage) -> None:
        from hfagent.connectors import _mysql_checks

        _mysql_checks.namespaces(connection, self.context.output_schemas, stage, _CHECK_S)

    def check_permissions(self, connection: Session, stage: Stage) -> None:
        from hfagent.connectors import _mysql_checks

        _mysql_checks.permissions(connection, self.namespaces(connection), self._account(connection), stage, _CHECK_S)

    def check_safety(self, connection: Session, stage: Stage) -> None:
        from hfagent.connectors import _mysql_checks

        _mysql_checks.safety(connection, stage, _CHECK_S)

    def check_capacity(self, connection: Session, stage: Stage) -> None:
        from hfagent.connectors import _mysql_checks

        _mysql_checks.capacity(connection, self.config, stage, _CHECK_S)

    def _account(self, connection: Session) -> str:
        """The account as a GRANT names it."""
        ((account,),) = connection.rows("SELECT CURRENT_USER()", timeout=_CHECK_S)
        user, _, host = str(account).rpartition("@")
        return f"'{user}'@'{host}'"

    # --- errors ---

    def _denied(self, error: BaseException, session: Session, target: str | None) -> AgentError:
        """Like `map_error`; a missing right is explained with the account as the server keeps it, which is worth a question."""
        mapped = self.map_error(error)
        number = (mapped.native or {}).get("number")
        if number not in (1142, 1143) or not session.usable:
            return mapped
        from hfagent.connectors._mysql_errors import ERRORS, facts_of

        facts = facts_of(mapped.message, self.config.database, self.config.username)
        if target is not None:
            facts["target"] = target
        with suppress(Exception):  # the error at hand is the one to report
            facts["account"] = self._account(session)
        return ERRORS.error(number, mapped.message, **facts)

    def map_error(self, error: BaseException) -> AgentError:
        from hfagent.connectors._mysql_dial import socket_error
        from hfagent.connectors._mysql_errors import ERRORS, facts_of

        if isinstance(error, AgentError):
            return error
        where = self.config.unix_socket or f"{self.config.host}:{self.config.port}"
        cause = getattr(error, "original_exception", error)
        if isinstance(cause, OSError):
            return socket_error(cause, self.config)
        if not type(error).__module__.startswith("pymysql"):
            return super().map_error(error)
        number = error.args[0] if error.args else None
        if not isinstance(number, int) or len(error.args) < 2:
            return SourceError(
                f"the conversation with {where} went wrong: {error}", code="net.protocol",
                hint="check that the port belongs to a MySQL or MariaDB server and nothing in between changes the traffic",
            )  # fmt: skip
        text = str(error.args[1])
        if number == 0 and not text:
            return SourceError(f"the session with {where} is closed", code="net.reset", hint="it can be repeated")
        return ERRORS.error(number, text, **facts_of(text, self.config.database, self.config.username))


def _end_transaction(session: Session) -> None:
    try:
        session.run("ROLLBACK", timeout=_RESET_S)
    except Exception:  # noqa: BLE001  a session that cannot even roll back is discarded by the pool
        session.shut_down()


def _native(bound: Bound, column: Column | None) -> Any:
    """A bound's value as MySQL writes it: `2024-01-01T00:00:00Z` as `2024-01-01 00:00:00` in UTC, `PT25H` as `25:00:00`."""
    value, kind = bound.value, column.type.kind if column is not None else None
    if not isinstance(value, str):
        return value
    if kind in ("timestamp", "timestamptz") and ("T" in value or value.endswith("Z") or "+" in value):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return value
        return (moment.astimezone(UTC) if moment.tzinfo else moment).replace(tzinfo=None).isoformat(" ")
    if kind == "interval" and (match := _ISO_DURATION.fullmatch(value)):
        hours, minutes, seconds = (match[part] or "0" for part in ("h", "m", "s"))
        sign = "-" if "-" in value else ""
        return f"{sign}{hours.lstrip('-')}:{minutes.lstrip('-'):0>2}:{seconds.lstrip('-')}"
    return value


_ISO_DURATION = re.compile(r"PT(?:(?P<h>-?\d+)H)?(?:(?P<m>-?\d+)M)?(?:(?P<s>-?\d+(?:\.\d+)?)S)?")


def _report_certificate(name: str, found: dict[str, Any], stage: Stage) -> None:
    stage.details[name] = found
    if found["expires_in_days"] < _EXPIRES_SOON_DAYS:
        stage.warn("tls.expired", f"{name} ends in {found['expires_in_days']} days", "replace it")
