"""Opens sessions: every parameter explicit, every wait bounded, certificates on disk only while libpq reads them.

libpq is driven by its non-blocking calls, one address at a time. Left to itself it would look names up without any limit of
time, spend the whole budget on the first silent host, and take whatever it finds in PG* variables, service files, password
files and the home directory.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hfagent.connectors._postgres_config import PostgresConfig
from hfagent.connectors._postgres_errors import connect_error
from hfagent.connectors._postgres_session import Session, facts_of
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, ConfigError, SourceError
from hfagent.sdk import network
from hfagent.sdk.config import secret_value
from hfagent.sdk.connector import ConnectorContext

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

__all__ = ["open_session", "session_settings"]

_NOWHERE = "/dev/null/none"
"""A path that cannot exist: keeps libpq from its defaults below the home directory."""


_ENVIRONMENT = ("PGSERVICE", "PGTZ", "PGDATESTYLE", "PGGEQO")
"""Variables that no keyword can overrule: an unknown service breaks every connection, the others change the session."""

_NEUTRAL = {"require_auth": "!sspi", "min_protocol_version": "3.0", "max_protocol_version": "3.0"}
"""Values that mean "no opinion" where an empty text means something else."""


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
                return Session(psycopg.Connection(pgconn), config, partial(files.written, authorities_only=True))
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
            addresses = network.resolve(host, config.port, Deadline(deadline.bounded(config.connect_timeout_s)))
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
        "keepalives_interval": str(network.KEEPALIVE_INTERVAL_S),
        "keepalives_count": str(network.KEEPALIVE_COUNT),
        "tcp_user_timeout": str(network.USER_TIMEOUT_MS),
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
