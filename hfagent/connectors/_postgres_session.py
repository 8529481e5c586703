"""A signed-in session: how it is asked, interrupted and put back into its initial state. Opening is in `_postgres_dial`.

psycopg does what it does well (values to literals, cancel requests). Everything that must keep a deadline goes through
libpq's non-blocking calls here: a wait of this module always ends, with the server's answer, at the deadline, or soon
after somebody cancelled.

A statement of ours runs inside one explicit `BEGIN … READ ONLY` and ends with ROLLBACK. Whatever it changed in the session
by a function call (`set_config`) is undone with it. What a rollback does not undo (session locks, prepared statements,
channels, temporary tables of a hand-written statement) is only possible after a statement that is not ours: it marks the
session as touched, and `clean` then pays for one DISCARD ALL.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfagent.connectors._postgres_config import PostgresConfig
from hfagent.connectors._postgres_errors import statement_error
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, SourceError

if TYPE_CHECKING:
    import psycopg
    from psycopg.pq.abc import PGconn, PGresult

__all__ = ["Limits", "Session", "facts_of"]

_log = logging.getLogger(__name__)

_SLICE = 0.25  # seconds between looks at the cancel token while waiting for the server
_LAST_WORDS = 2.0  # seconds that the server gets to end a cancelled statement before the socket is closed


@dataclass(frozen=True)
class Limits:
    """How long one piece of work may take, and who may stop it."""

    deadline: Deadline
    cancel: CancelToken

    @classmethod
    def of(cls, seconds: float | None) -> Limits:
        """Limits of so many seconds that nobody cancels."""
        return cls(Deadline(seconds), CancelToken())

    def check(self) -> None:
        """Raise `Cancelled`, or the error `timeout.total`."""
        self.cancel.raise_if_cancelled()
        if self.deadline.expired():
            raise SourceError(
                f"no complete answer within {self.deadline.seconds:g} s",
                code="timeout.total",
                hint="allow more time, or ask for less",
            )


class Session:
    """One connection. Used by one thread at a time; `cancel` and `abort` may come from any thread."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        config: PostgresConfig,
        authorities: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """`authorities` gives a block inside which a cancel request finds the certificates it needs."""
        self.connection = connection
        self.config = config
        self._authorities = authorities
        self.pgconn: PGconn = connection.pgconn
        self.broken = False
        self.touched = False
        """A statement ran that is not ours: cleaning up needs DISCARD ALL."""
        self.type_facts: dict[int, Any] = {}
        """What is known about types that are not built in, by oid."""
        self._interrupting = threading.Lock()  # held while a cancel request is on its way, so that it hits nobody else
        self._working = 0  # pieces of work may nest: a type is looked up while a statement is prepared
        self._poller = select.poll()
        self._descriptor = -1

    @property
    def server_version(self) -> int:
        """As 150018 for 15.18."""
        return self.pgconn.server_version

    @property
    def is_standby(self) -> bool:
        """Whether the server said that it is a replica (PostgreSQL 14 and later report it)."""
        return self.pgconn.parameter_status(b"in_hot_standby") == b"on"

    @property
    def idle(self) -> bool:
        """Whether the session waits for its next statement, outside any transaction."""
        from psycopg import pq

        return not self.broken and self.pgconn.transaction_status == pq.TransactionStatus.IDLE

    # --- asking ---

    def ask(self, statements: Sequence[bytes], limits: Limits, *, last_is_described: bool = False) -> list[PGresult]:
        """Send statements in one round trip and return the result of each; the first error is raised, typed.

        With `last_is_described` the last one is not run: its result describes its columns.
        """
        self.send(statements, last_is_described=last_is_described)
        return self.receive(limits)

    def send(self, statements: Sequence[bytes], *, last_is_described: bool = False) -> None:
        """The first half of `ask`: between the halves the server works, and so can we."""
        pgconn = self.pgconn
        try:
            pgconn.enter_pipeline_mode()
            for position, statement in enumerate(statements, start=1):
                if last_is_described and position == len(statements):
                    pgconn.send_prepare(b"", statement)
                    pgconn.send_describe_prepared(b"")
                else:
                    pgconn.send_query_params(statement, None)
            pgconn.pipeline_sync()
            pgconn.flush()
        except BaseException as exc:
            self.abandon()
            raise self.error_of(exc) from exc

    def receive(self, limits: Limits) -> list[PGresult]:
        """The second half of `ask`: the results of what was sent. The session is free again, or broken."""
        try:
            results, failed = self._answers(limits)
        except AgentError:  # the limits were reached: the server gets a moment to stop in an orderly way
            self.cancel()
            try:
                self._answers(Limits.of(_LAST_WORDS))
            except Exception:  # noqa: BLE001  the answers are still to come, so the connection can serve nobody else
                self.abandon()
            raise
        except BaseException as exc:
            self.abandon()
            raise self.error_of(exc) from exc
        if failed is not None:
            error = self.result_error(failed)
            if error.code == "timeout.statement":
                limits.check()  # it was we who stopped it
            raise error
        return results

    def _answers(self, limits: Limits) -> tuple[list[PGresult], PGresult | None]:
        """Collect the answers of one pipeline, up to its end."""
        from psycopg import pq

        results: list[PGresult] = []
        failed: PGresult | None = None
        while (result := self.next_result(limits)) is None or result.status != pq.ExecStatus.PIPELINE_SYNC:
            if result is None:
                continue
            if result.status == pq.ExecStatus.FATAL_ERROR:
                failed = failed or result
                if self.pgconn.status == pq.ConnStatus.BAD:
                    self.broken = True
                    break
            elif result.status != pq.ExecStatus.PIPELINE_ABORTED:
                results.append(result)
        if not self.broken:
            self.pgconn.exit_pipeline_mode()
        return results, failed

    def rows(self, statement: str, parameters: Sequence[Any] | None, limits: Limits) -> list[tuple[Any, ...]]:
        """Run a statement of our own, with bound values, and return all its rows. For catalogue queries."""
        with self.working(limits):
            (result,) = self.ask([self.bound(statement, parameters)], limits)
        return self.loaded(result)

    def loaded(self, result: PGresult) -> list[tuple[Any, ...]]:
        """The rows of a result as Python values."""
        from psycopg.adapt import Transformer

        transformer = Transformer(self.connection)
        transformer.set_pgresult(result)
        return transformer.load_rows(0, result.ntuples, tuple)

    def bound(self, statement: str, parameters: Any) -> bytes:
        """The statement with its parameters as literals; without parameters (None) it stays as it is."""
        if parameters is None:
            return statement.encode()
        from psycopg import ClientCursor

        return ClientCursor(self.connection).mogrify(statement, parameters).encode()

    def start(self, statement: bytes, limits: Limits) -> PGresult:
        """Send one statement and return its first result (a COPY's is there before its data)."""
        try:
            self.pgconn.send_query(statement)
            result = self.next_result(limits)
        except AgentError:
            self.cancel()  # again: a cancel request that came between two statements hit nothing
            raise
        except BaseException as exc:
            raise self.error_of(exc) from exc
        if result is None:
            raise SourceError("the server gave no answer", code="net.protocol")
        return result

    def next_result(self, limits: Limits | None) -> PGresult | None:
        """Wait for the next result of what was sent; None at the end of a statement."""
        pgconn = self.pgconn
        while (unsent := pgconn.flush()) or pgconn.is_busy():
            self.wait(limits, writing=bool(unsent))
            pgconn.consume_input()
        return pgconn.get_result()

    def wait(self, limits: Limits | None, *, writing: bool = False) -> bool:
        """Wait for the socket. Returns False when nothing came for a while; raises when the limits are reached."""
        descriptor = self.pgconn.socket
        if descriptor != self._descriptor:
            self._poller, self._descriptor = select.poll(), descriptor
        self._poller.register(descriptor, select.POLLIN | (select.POLLOUT if writing else 0))
        seconds = _SLICE if limits is None else limits.deadline.bounded(_SLICE)
        if self._poller.poll(max(1, int(seconds * 1000))):
            return True
        if limits is not None:
            limits.check()
        return False

    # --- the frame around a piece of work ---

    @contextmanager
    def working(self, limits: Limits) -> Iterator[None]:
        """Cancelling `limits.cancel` inside the block sends a cancel request to the server; blocks may nest.

        A request that is on its way has arrived when the block ends: it cannot hit the next user's statement.
        """
        with self._interrupting:
            self._working += 1
        try:
            with limits.cancel.on_cancel(self.cancel):
                yield
        finally:
            with self._interrupting:
                self._working -= 1

    def cancel(self) -> None:
        """Ask the server to stop the running statement. Does nothing between pieces of work. Never raises."""
        with self._interrupting:
            if not self._working or self.broken:
                return
            try:
                with self._authorities():
                    self.connection.cancel_safe(timeout=1)
            except Exception as exc:  # noqa: BLE001  best effort: the one who waits has a deadline of its own
                _log.debug("a cancel request did not arrive: %s", type(exc).__name__)

    def settle(self) -> None:
        """End the transaction. A statement that still runs gets two seconds to end; then the socket is closed."""
        from psycopg import pq

        if self.broken:
            return
        try:
            limits = Limits.of(_LAST_WORDS)
            self._drain(limits)
            if self.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                self._rollback(limits)
            if self.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                self.abandon()
        except Exception as exc:  # noqa: BLE001  whatever it is, this connection must not be used again
            _log.debug("a session could not be settled: %s", type(exc).__name__)
            self.abandon()

    def _drain(self, limits: Limits) -> None:
        from psycopg import pq

        pgconn = self.pgconn
        if pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
            return
        while (result := self.next_result(limits)) is not None:
            while result.status == pq.ExecStatus.COPY_OUT:
                count, _ = pgconn.get_copy_data(1)
                if count < 0:
                    break
                if count == 0:
                    self.wait(limits)
                    pgconn.consume_input()
                else:
                    limits.check()

    def _rollback(self, limits: Limits) -> None:
        for _ in range(2):  # a cancel request that arrived late may hit the first one
            self.pgconn.send_query(b"ROLLBACK")
            failed = False
            while (result := self.next_result(limits)) is not None:
                failed = failed or bool(result.error_message)
            if not failed:
                return

    # --- putting away ---

    def alive(self, timeout: float) -> bool:
        """One empty statement there and back within `timeout` seconds. Never raises."""
        if not self.idle:
            return False
        try:
            limits = Limits.of(timeout)
            self.pgconn.send_query(b"")
            while (result := self.next_result(limits)) is not None:
                if result.error_message:
                    return False
        except Exception as exc:  # noqa: BLE001  every failure means the same: not alive
            _log.debug("a session is dead: %s", type(exc).__name__)
            self.abandon()
            return False
        return self.idle

    def clean(self) -> bool:
        """Bring the session to its initial state; False when it must be discarded."""
        if self.broken:
            return False
        self.settle()
        if not self.idle:
            return False
        if self.touched:
            if self.config.pgbouncer_transaction_mode:
                return False  # what was left behind may sit in any of the pooler's sessions; ours we can end
            try:
                self.pgconn.send_query(b"DISCARD ALL")
                limits = Limits.of(_LAST_WORDS)
                while (result := self.next_result(limits)) is not None:
                    if result.error_message:
                        return False
            except Exception as exc:  # noqa: BLE001  see `alive`
                _log.debug("a session could not be cleaned: %s", type(exc).__name__)
                self.abandon()
                return False
            self.touched = False
        return True

    def close(self) -> None:
        """Say good-bye when nothing runs, else cut. Never raises."""
        try:
            if not self.idle and not self.broken:
                self.abort()
            self.broken = True
            self.connection.close()
        except Exception as exc:  # noqa: BLE001  closing has no one to tell
            _log.debug("closing a session failed: %s", type(exc).__name__)

    def abort(self) -> None:
        """Stop the statement on the server if it can be reached within a second, then cut the socket. Never raises."""
        from psycopg import pq

        self.cancel()
        end = time.monotonic() + 0.2
        while self._working and not self.broken and self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            if time.monotonic() > end:
                self.cancel()  # the first one may have come before the server had read the statement
                break
            time.sleep(0.01)
        self.abandon()

    def abandon(self) -> None:
        """Cut the socket: whoever waits for it wakes up, and nobody uses the session again. Never raises."""
        self.broken = True
        try:
            descriptor = os.dup(self.pgconn.socket)
        except Exception:  # noqa: BLE001  libpq has closed it already
            return
        try:
            with socket.socket(fileno=descriptor) as copy:
                copy.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was faster

    # --- errors ---

    def facts(self) -> dict[str, Any]:
        """What hints are filled with."""
        return facts_of(self.config)

    def result_error(self, result: PGresult) -> AgentError:
        """The error that a result carries."""
        from psycopg import pq

        field = result.error_field
        sqlstate = (field(pq.DiagnosticField.SQLSTATE) or b"").decode("ascii", "replace") or None
        text = (field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message or b"").decode("utf-8", "replace")
        return statement_error(
            sqlstate, text, facts=self.facts(), standby=self.is_standby, connected=sqlstate is not None
        )

    def error_of(self, exc: BaseException) -> BaseException:
        """Translate what libpq raised while a statement ran."""
        if isinstance(exc, AgentError) or not isinstance(exc, Exception):
            return exc
        self.broken = True
        return statement_error(getattr(exc, "sqlstate", None), str(exc), facts=self.facts(), connected=False)


def facts_of(config: PostgresConfig) -> dict[str, Any]:
    """Names for hints, quoted where a statement needs it."""
    return {
        "user": '"' + config.username.replace('"', '""') + '"',
        "database": '"' + config.database.replace('"', '""') + '"',
        "ssl": "ssl" if config.sslmode in ("require", "verify-ca", "verify-full") else "",
    }
