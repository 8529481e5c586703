"""A signed-in session: how it is opened, asked, interrupted and put back into its initial state.

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
import secrets
import select
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfagent.connectors._postgres_config import PostgresConfig
from hfagent.connectors._postgres_errors import connect_error, statement_error
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, ConfigError, SourceError
from hfagent.sdk.config import secret_value
from hfagent.sdk.connector import ConnectorContext
from hfagent.sdk.network import resolve

if TYPE_CHECKING:
    import psycopg
    from psycopg.pq.abc import PGconn, PGresult

__all__ = ["Limits", "Session", "open_session"]

_log = logging.getLogger(__name__)

_SLICE = 0.25  # seconds between looks at the cancel token while waiting for the server
_LAST_WORDS = 2.0  # seconds that the server gets to end a cancelled statement before the socket is closed

_NOWHERE = "/dev/null/none"
"""A path that cannot exist: keeps libpq from its defaults below the home directory."""


_ENVIRONMENT = ("PGSERVICE", "PGTZ", "PGDATESTYLE", "PGGEQO")
"""Variables that no keyword can overrule: an unknown service breaks every connection, the others change the session."""

_NEUTRAL = {"require_auth": "!sspi", "min_protocol_version": "3.0", "max_protocol_version": "3.0"}
"""Values that mean "no opinion" where an empty text means something else."""


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

    def __init__(self, connection: psycopg.Connection[Any], config: PostgresConfig, files: _PemFiles) -> None:
        self.connection = connection
        self.config = config
        self._files = files
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
                with self._files.written(authorities_only=True):
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


# --- connecting ---


def open_session(config: PostgresConfig, context: ConnectorContext, deadline: Deadline, **overrides: str) -> Session:
    """Connect to the first host that answers and lets us in. Raises `AgentError`; ends before `deadline`."""
    import psycopg

    failures: list[AgentError] = []
    files = _PemFiles(config, context)
    with files.written() as paths:
        parameters = _parameters(config, context) | paths | overrides
        for target in _passes(config):
            for host, address in _targets(config, deadline, failures):
                attempt = Deadline(deadline.bounded(config.connect_timeout_s))
                try:
                    pgconn = _connect(parameters | target | {"host": host, "hostaddr": address}, attempt, config, host)
                except AgentError as error:
                    failures.append(error)
                    if deadline.expired():
                        break
                    continue
                return Session(psycopg.Connection(pgconn), config, files)
    if not failures:
        raise SourceError(f"{_where(config, config.host)}: no time left to connect", code="timeout.connect")
    # A server that answered tells more than an address that did not.
    raise next((error for error in failures if not error.code.startswith("net.")), failures[0])


def _passes(config: PostgresConfig) -> list[dict[str, str]]:
    """`prefer-standby` looks at all hosts for a standby before it takes any."""
    if config.target_session_attrs == "prefer-standby":
        return [{"target_session_attrs": "standby"}, {"target_session_attrs": "any"}]
    return [{"target_session_attrs": config.target_session_attrs}]


def _targets(config: PostgresConfig, deadline: Deadline, failures: list[AgentError]) -> Iterator[tuple[str, str]]:
    """Host and address pairs: libpq would look names up itself, without any limit of time."""
    for host in config.hosts():
        if host.startswith("/"):
            yield host, ""
            continue
        try:
            addresses = resolve(host, config.port, Deadline(deadline.bounded(config.connect_timeout_s)))
        except AgentError as error:
            failures.append(error)
            continue
        yield from ((host, address) for address in addresses)


def _connect(parameters: dict[str, str], deadline: Deadline, config: PostgresConfig, host: str) -> PGconn:
    from psycopg import pq
    from psycopg.conninfo import make_conninfo

    where = _where(config, host)
    started = time.monotonic()
    pgconn = pq.PGconn.connect_start(make_conninfo("", **parameters).encode())
    status: int = pq.PollingStatus.WRITING  # asking libpq before the socket is ready would pass for a connection made
    while pgconn.status != pq.ConnStatus.BAD:
        poller = select.poll()
        poller.register(pgconn.socket, select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT)
        if not poller.poll(_milliseconds(deadline)):
            dialled = pgconn.status not in (pq.ConnStatus.STARTED, pq.ConnStatus.NEEDED)
            pgconn.finish()
            raise _too_slow(where, time.monotonic() - started, dialled=dialled)
        status = pgconn.connect_poll()
        if status == pq.PollingStatus.OK:
            pgconn.nonblocking = 1
            return pgconn
        if status == pq.PollingStatus.FAILED:
            break
    text = pgconn.get_error_message()
    pgconn.finish()
    raise connect_error(text, where=where, facts=facts_of(config))


def _milliseconds(deadline: Deadline) -> int:
    left = deadline.remaining()
    return -1 if left is None else int(left * 1000) + 1


def _too_slow(where: str, seconds: float, *, dialled: bool) -> AgentError:
    if not dialled:
        return SourceError(
            f"{where}: no answer within {seconds:.1f} s",
            code="net.timeout",
            hint="check host, port and firewalls; the packets get no answer",
        )
    return SourceError(
        f"{where}: the server took the connection but did not complete the sign-in within {seconds:.1f} s",
        code="timeout.connect",
        hint="the server may be overloaded or frozen; raise connect_timeout_s if it is only slow",
    )


def _where(config: PostgresConfig, host: str) -> str:
    place = host if host.startswith("/") else f"{host}:{config.port}"
    return f"cannot connect to {config.database} at {place} as {config.username}"


def _parameters(config: PostgresConfig, context: ConnectorContext) -> dict[str, str]:
    """Every keyword that matters, explicitly: neither PG* variables nor files of the account can slip in."""
    from psycopg import pq

    for name in _ENVIRONMENT:
        os.environ.pop(name, None)
    parameters = {
        option.keyword.decode(): _NEUTRAL.get(option.keyword.decode(), (option.compiled or b"").decode())
        for option in pq.Conninfo.get_defaults()
        if option.envvar and option.keyword != b"service" and (option.compiled or option.envvar.decode() in os.environ)
    }
    parameters |= {
        "dbname": config.database,
        "user": config.username,
        "password": secret_value(config.password) or "" if config.auth_mode == "password" else "",
        "port": str(config.port),
        "passfile": "/dev/null",
        "sslmode": config.sslmode,
        "sslnegotiation": config.sslnegotiation,
        "sslcert": _NOWHERE, "sslkey": _NOWHERE, "sslrootcert": _NOWHERE, "sslcrl": _NOWHERE,
        "sslcertmode": "allow" if config.sslcert else "disable",
        "gssencmode": "disable",
        "client_encoding": "UTF8",
        "application_name": config.application_name or context.application_name,
        "connect_timeout": str(config.connect_timeout_s),
        "keepalives": "1",
        "keepalives_idle": str(config.keepalive_s),
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": str((config.keepalive_s + 30) * 1000),
        "options": "" if config.pgbouncer_transaction_mode else _start_up_options(config),
    }  # fmt: skip
    if config.sslmode in ("disable", "allow", "prefer") and not config.is_local:
        # Whoever sits between agent and server could ask for the password in clear text.
        parameters["require_auth"] = "!password"
    known = {
        option.keyword.decode() for option in pq.Conninfo.get_defaults()
    }  # an older libpq refuses what it does not know
    return {name: value for name, value in (parameters | config.extra_params).items() if name in known}


def session_settings(config: PostgresConfig) -> dict[str, str]:
    """What every session of ours says before its first statement."""
    settings = {
        "default_transaction_read_only": "on",
        "statement_timeout": str(config.query_timeout_s * 1000),
        "lock_timeout": str(config.lock_timeout_ms),
        "idle_in_transaction_session_timeout": "60000",
        "TimeZone": "UTC",
        "DateStyle": "ISO, YMD",
        "IntervalStyle": "iso_8601",
        "bytea_output": "hex",
        "extra_float_digits": "1",
    }
    if config.search_path:
        settings["search_path"] = config.search_path
    return settings


def _start_up_options(config: PostgresConfig) -> str:
    """The settings as a start-up parameter: set with the sign-in itself, and what DISCARD ALL goes back to."""
    escaped = (
        (name, value.replace("\\", "\\\\").replace(" ", "\\ ")) for name, value in session_settings(config).items()
    )
    return " ".join(f"-c {name}={value}" for name, value in escaped)


class _PemFiles:
    """libpq reads certificates from files only: they exist while it connects, readable by nobody else.

    A cancel request is a connection of its own, which reads the same paths again: for as long as it takes the authorities
    (which are no secret) come back. A client certificate is not asked for then.
    """

    def __init__(self, config: PostgresConfig, context: ConnectorContext) -> None:
        self._parent = context.scratch_dir or Path(tempfile.gettempdir())
        self._directory = self._parent / f"hfagent-pg-{secrets.token_hex(16)}"
        self._authorities = config.sslrootcert
        self._certificate = config.sslcert
        self._key = secret_value(config.sslkey) if config.sslcert else None
        self._passphrase = secret_value(config.sslkey_password) if config.sslcert else None
        self._system = _system_authorities() if config.sslmode == "verify-full" and not config.sslrootcert else None

    @contextmanager
    def written(self, *, authorities_only: bool = False) -> Iterator[dict[str, str]]:
        """The files exist inside the block; gives the parameters that name them."""
        texts = {"sslrootcert": self._authorities}
        if not authorities_only:
            texts |= {"sslcert": self._certificate, "sslkey": self._key}
        parameters = {} if self._system is None else {"sslrootcert": self._system}
        if self._passphrase:
            parameters["sslpassword"] = self._passphrase
        if not any(texts.values()):
            yield parameters
            return
        self._directory.mkdir(mode=0o700)
        try:
            for name, text in texts.items():
                if text:
                    path = self._directory / name
                    path.touch(mode=0o600, exist_ok=False)
                    path.write_text(text if text.endswith("\n") else text + "\n")
                    parameters[name] = str(path)
            yield parameters
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)


def _system_authorities() -> str:
    # Not "system": the OpenSSL inside psycopg's wheel looks where its builder kept certificates, not where this system does.
    paths = ssl.get_default_verify_paths()
    for candidate in (paths.cafile, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"):
        if candidate and Path(candidate).is_file():
            return candidate
    raise ConfigError(
        "sslmode verify-full needs sslrootcert: this system has no list of trusted authorities",
        field="sslrootcert",
        hint="paste the certificate of the server's authority",
    )
