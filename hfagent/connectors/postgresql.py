"""PostgreSQL, and the services that speak its protocol (RDS, Aurora, Cloud SQL, AlloyDB, Azure).

The parts: `_postgres_config` (form), `_postgres_dial` (connecting), `_postgres_session` (asking, interrupting),
`_postgres_copy` (rows), `_postgres_types` and `_postgres_values` (types), `_postgres_catalogue` (discovery),
`_postgres_watermark` (incremental reads), `_postgres_checks` (test stages), `_postgres_errors` (what went wrong). This
module puts them behind the connector's verbs.

Every statement runs inside `BEGIN … READ ONLY` and ends with ROLLBACK: the server refuses writes, a schema cannot change
between the description of a result and its rows, and a setting changed by a function call is undone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from hfagent.connectors import _postgres_checks as checks
from hfagent.connectors import _postgres_watermark as watermark
from hfagent.connectors._postgres_catalogue import Catalogue, load_types, owned_namespaces, type_facts
from hfagent.connectors._postgres_config import PostgresConfig
from hfagent.connectors._postgres_copy import BLOCK_BYTES, CopyStream, failure, text_batch
from hfagent.connectors._postgres_dial import open_session, session_settings
from hfagent.connectors._postgres_errors import statement_error
from hfagent.connectors._postgres_session import Limits, Session, facts_of
from hfagent.connectors._postgres_types import canonical, is_foreign, native_name
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, SourceError
from hfagent.model.data_type import DataType
from hfagent.model.query import QueryPlan
from hfagent.model.stream import Column, Stream
from hfagent.sdk.arrow import arrow_schema
from hfagent.sdk.driver import Driver
from hfagent.sdk.incremental import WatermarkFacts
from hfagent.sdk.probe import Probe, Stage
from hfagent.sdk.reading import BatchReader, Bound, ReadRequest, SchemaRequest, Statement
from hfagent.sdk.sql import SQLBase

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

__all__ = ["PostgreSQL"]

_CONSISTENT = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_STATEMENT = b"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"
_NOTATION = (
    b"SELECT pg_catalog.set_config('TimeZone', 'UTC', true), pg_catalog.set_config('DateStyle', 'ISO, YMD', true)"
)
"""Texts of times are exact and mean the same in every run, whatever the session was set to."""

_NO_COPY = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(SHOW|EXPLAIN)\b", re.IGNORECASE | re.DOTALL)


class PostgreSQL(SQLBase[PostgresConfig]):
    """Reads tables, views, materialised views and foreign tables, and runs reading statements."""

    title = "PostgreSQL"
    description = "Tables and views of a PostgreSQL database; also Amazon RDS and Aurora, Cloud SQL, AlloyDB and Azure."
    category = "database"
    aliases = ("postgres", "rds", "rdspostgresql", "aurora_postgresql", "cloudsql_postgresql")
    driver = Driver("psycopg", extra="postgresql")
    dialect = "postgres"
    Config = PostgresConfig

    # --- the life of a connection ---

    def connect(self, deadline: Deadline) -> Session:
        """Sign in; the session is read-only, in UTC and limited in time from its first statement on."""
        self.driver.load()
        return open_session(self.config, self.context, deadline)

    def is_alive(self, connection: Session, timeout: float) -> bool:
        return connection.alive(timeout)

    def reset(self, connection: Session) -> bool:
        """Ends what may still run. Costs a round trip only after a statement that was not generated here."""
        return connection.clean()

    def close(self, connection: Session) -> None:
        connection.close()

    def abort(self, connection: Session) -> None:
        connection.abort()

    def cancel(self, connection: Session) -> None:
        connection.cancel()

    def map_error(self, error: BaseException) -> AgentError:
        """Translate by SQLSTATE."""
        if isinstance(error, AgentError):
            return error
        sqlstate = getattr(error, "sqlstate", None)
        module = type(error).__module__ or ""
        if sqlstate or module.startswith("psycopg"):
            return statement_error(sqlstate, str(error), facts=facts_of(self.config), connected=sqlstate is not None)
        return super().map_error(error)

    # --- reading ---

    def execute(self, connection: Session, statement: Statement) -> BatchReader:
        connection.touched = True
        return super().execute(connection, statement)

    def open_result(self, connection: Session, sql: str, params: Any, request: Statement) -> BatchReader:
        """Run a user's statement; `query_timeout_s` limits it on the server, and a little later here."""
        connection.touched = True
        seconds = self.config.query_timeout_s or None
        return self._open(
            connection, sql, params or None, request, begin=_STATEMENT, seconds=seconds, block_bytes=BLOCK_BYTES
        )

    def read_rows(self, connection: Session, stream: Stream, request: ReadRequest) -> BatchReader:
        """Read a stream in one snapshot. Only the request's deadline limits it: a large table may take its time."""
        self.require_namespace(stream.namespace)
        sql, params = self.select(stream, request)
        statement = Statement(sql, params, max_rows=request.limit, cancel=request.cancel, deadline=request.deadline)
        try:
            return self._open(
                connection,
                sql,
                params or None,
                statement,
                begin=_CONSISTENT,
                seconds=None,
                block_bytes=request.batch_bytes,
            )
        except AgentError as error:
            self._name_the_grant(error, stream)
            raise

    def _name_the_grant(self, error: AgentError, stream: Stream) -> None:
        """Where reading the stream is not allowed, the hint becomes the statement that allows it."""
        if error.code == "permission.denied":
            user = facts_of(self.config)["user"]
            grant = f"GRANT SELECT ON {self.qualified(stream.namespace, stream.name)} TO {user};"
            if stream.namespace is not None and "SCHEMA" in (error.hint or ""):
                grant = f"GRANT USAGE ON SCHEMA {self.quote(stream.namespace)} TO {user}; {grant}"
            error.hint = grant

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
        """One round trip; only `deadline` limits it, because a column without an index takes a pass over the table."""
        self.require_namespace(stream.namespace)
        limits = Limits(deadline, cancel)
        limits.check()
        if not connection.idle:
            raise SourceError("the connection is not usable any more", code="net.reset", hint="try again")
        try:
            return watermark.look(
                connection,
                stream,
                column,
                table=self.qualified(stream.namespace, stream.name),
                quoted=self.quote(column),
                lookback=lookback,
                begin=[_STATEMENT, *self._local_settings(limits, None), _NOTATION],
                limits=limits,
            )
        except AgentError as error:
            self._name_the_grant(error, stream)
            raise
        except Exception as exc:
            raise failure(connection, limits, exc) from exc

    def cast_bound(self, column: Column | None, placeholder: str) -> str:
        type_ = watermark.cast_of(column)
        return f"CAST({placeholder} AS {type_})" if type_ else placeholder

    def _condition(self, bound: Bound, known: dict[str, Any], params: list[Any], literal: Callable[[str], str]) -> str:
        """Text is compared by its bytes: the order of a language changes with the server's libraries."""
        condition = super()._condition(bound, known, params, literal)
        column = known.get(bound.column)
        if watermark.is_text(column) and bound.operator in ("<", "<=", ">", ">="):
            return f'{condition} COLLATE "C"'
        return condition

    def sort_key(self, column: Column | None, name: str) -> str:
        return f'{self.quote(name)} COLLATE "C"' if watermark.is_text(column) else self.quote(name)

    def explain(self, connection: Session, statement: Statement) -> QueryPlan:
        from hfagent.sdk.guard import check_statement

        guarded = check_statement(statement.text, self.dialect or "", server_enforces_read_only=True)
        text = guarded.text
        if not _NO_COPY.match(text):
            text = f"EXPLAIN (FORMAT JSON) {text}"
        request = Statement(text, statement.params, cancel=statement.cancel, deadline=statement.deadline)
        with self.open_result(connection, text, statement.params, request) as reader:
            lines = [value for batch in reader for value in batch.column(0).to_pylist()]
        document = "\n".join(lines)
        try:
            plan = json.loads(document)
        except ValueError:  # the statement was an EXPLAIN in text form itself
            return QueryPlan(format="text", plan=document)
        top = plan[0].get("Plan", {}) if isinstance(plan, list) and plan else {}
        return QueryPlan(
            format="json", plan=plan, estimated_rows=top.get("Plan Rows"), estimated_cost=top.get("Total Cost")
        )

    def _open(
        self, session: Session, sql: str, params: Any, request: Statement, *, begin: bytes, seconds: float | None,
        block_bytes: int,
    ) -> BatchReader:  # fmt: skip
        deadline = request.deadline
        if seconds is not None and deadline.bounded(seconds + 5) == seconds + 5:
            deadline = Deadline(seconds + 5)  # the server's own limit comes first, and says so
        limits = Limits(deadline, request.cancel)
        limits.check()
        if not session.idle:
            raise SourceError("the connection is not usable any more", code="net.reset", hint="try again")
        cleanup = ExitStack()
        try:
            cleanup.enter_context(session.working(limits))
            text = session.bound(sql, params)
            statements = [begin, *self._local_settings(limits, seconds), text]
            described = session.ask(statements, limits, last_is_described=True)[-1]
            warnings: list[str] = []
            columns = self._columns(session, described, limits, warnings)
            if _NO_COPY.match(sql):
                return self._small(session, text, columns, limits, cleanup, request)
            if not columns or request.max_rows == 0:
                if not columns:
                    warnings.append("the statement returns no columns")
                return self._nothing(session, columns, cleanup, sql, warnings)
            # A database without an encoding holds anything: asked for UTF-8, the server would refuse to send it.
            encoding = b"SQL_ASCII" if session.pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII" else b"UTF8"
            copy = b"COPY (\n" + _without_end(text) + b"\n) TO STDOUT (FORMAT csv, ENCODING '" + encoding + b"')"
            result = session.start(copy, limits)
            if result.error_message:
                session.next_result(limits)
                raise session.result_error(result)
            stream = CopyStream(
                session, columns, limits, cleanup, max_rows=request.max_rows, first_rows=request.first_rows,
                block_bytes=block_bytes, special=self.config.special_values, warnings=warnings,
            )  # fmt: skip
        except BaseException as exc:
            cleanup.close()
            session.settle()
            if isinstance(exc, Exception):
                raise failure(session, limits, exc) from exc
            raise
        reader = BatchReader(columns, arrow_schema(columns), stream.batches(), on_close=stream.finish, statement=sql)
        reader.warnings = warnings
        return reader

    def _local_settings(self, limits: Limits, seconds: float | None) -> Iterator[bytes]:
        """What differs from the session's settings for this transaction only."""
        if self.config.pgbouncer_transaction_mode:
            wanted_settings = session_settings(self.config)
            del wanted_settings["default_transaction_read_only"], wanted_settings["statement_timeout"]
            calls = (
                f"pg_catalog.set_config('{n}', '{v.replace(chr(39), chr(39) * 2)}', true)"
                for n, v in wanted_settings.items()
            )
            yield f"SELECT {', '.join(calls)}".encode()
        left = limits.deadline.remaining()
        wanted = seconds if seconds is not None and (left is None or seconds <= left) else left
        if wanted != (self.config.query_timeout_s or None) or self.config.pgbouncer_transaction_mode:
            # A little more than our own deadline: the agent's answer comes first, the server's limit is the safety net.
            milliseconds = 0 if wanted is None else int(wanted * 1000) + (0 if wanted == seconds else 500)
            yield f"SET LOCAL statement_timeout = {milliseconds}".encode()

    def _columns(
        self, session: Session, described: PGresult, limits: Limits, warnings: list[str]
    ) -> tuple[Column, ...]:
        """The columns of a described statement."""
        fields = range(described.nfields)
        load_types(session, {described.ftype(i) for i in fields}, limits)
        columns = []
        for i in fields:
            facts, modifier = type_facts(session, described.ftype(i)), described.fmod(i)
            native = native_name(facts, modifier)
            type_ = canonical(facts, modifier, self.config.special_values)
            name = (described.fname(i) or b"").decode()
            columns.append(Column(name=name, type=type_, native_type=native, ordinal=i + 1))
            if is_foreign(facts):
                warnings.append(f"column {name}: the type {native} is delivered as text")
        return tuple(columns)

    def _small(
        self,
        session: Session,
        text: bytes,
        columns: Sequence[Column],
        limits: Limits,
        cleanup: ExitStack,
        request: Statement,
    ) -> BatchReader:
        """SHOW and EXPLAIN, which COPY does not take: a few lines of text."""
        result = session.start(text, limits)
        while session.next_result(limits) is not None:
            pass
        if not result.ntuples and result.error_message:
            raise session.result_error(result)
        kept = result.ntuples if request.max_rows is None else min(request.max_rows, result.ntuples)
        values = [[_text(result.get_value(row, i)) for i in range(result.nfields)] for row in range(kept)]
        shown = tuple(
            column if column.type.kind == "json" else column.model_copy(update={"type": DataType("string")})
            for column in columns
        )
        cleanup.close()
        session.settle()
        return BatchReader(shown, arrow_schema(shown), iter([text_batch(shown, values)]), statement=text.decode())

    def _nothing(
        self, session: Session, columns: tuple[Column, ...], cleanup: ExitStack, sql: str, warnings: list[str]
    ) -> BatchReader:
        cleanup.close()
        session.settle()
        reader = BatchReader(columns, arrow_schema(columns), iter(()), statement=sql)
        reader.warnings = warnings
        return reader

    # --- discovery ---

    def read_schema(self, connection: Session, request: SchemaRequest) -> Iterator[Stream]:
        namespaces = self.namespaces(connection, request)
        catalogue = Catalogue(connection, self.config.special_values, self.config.username)
        yield from catalogue.streams(namespaces, request)

    def owned_namespaces(self, connection: Session) -> tuple[str, ...]:
        return owned_namespaces(connection, Limits.of(30))

    # --- the test ---

    def addresses(self) -> list[tuple[str, int]]:
        return [(host, self.config.port) for host in self.config.hosts() if not host.startswith("/")]

    def check_secrets(self, stage: Stage) -> None:
        checks.secrets(self.config, stage)

    def check_tls(self, connection: Session, stage: Stage) -> None:
        checks.tls(connection, stage)

    def check_auth(self, connection: Session, stage: Stage) -> None:
        checks.auth(connection, self.context, stage)

    def check_server(self, connection: Session, probe: Probe, stage: Stage) -> None:
        probe.server |= checks.server(connection, stage)

    def check_namespaces(self, connection: Session, stage: Stage) -> None:
        checks.namespaces(connection, self.context.output_schemas, self.namespaces(connection), stage)

    def check_permissions(self, connection: Session, stage: Stage) -> None:
        checks.permissions(connection, self.namespaces(connection), stage)

    def check_safety(self, connection: Session, stage: Stage) -> None:
        checks.safety(connection, self.namespaces(connection), stage)

    def check_capacity(self, connection: Session, stage: Stage) -> None:
        checks.capacity(connection, stage)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


_TOKEN = re.compile(
    rb"""[eE]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|--[^\n]*|(?P<comment>/\*|\*/)|(?P<end>;)""",
    re.DOTALL,
)


def _without_end(text: bytes) -> bytes:
    """Without the semicolon that may end a statement and the comments after it.

    The server has parsed the text as exactly one statement already: what follows its first semicolon says nothing.
    """
    depth = 0  # comments nest
    for token in _TOKEN.finditer(text) if b";" in text else ():
        if token["comment"]:
            depth += 1 if token["comment"] == b"/*" else -1
        elif token["end"] and depth <= 0:
            return text[: token.start()]
    return text
