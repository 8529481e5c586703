"""What PostgreSQL's errors mean: one table by SQLSTATE, and one by text for what fails before there is a SQLSTATE.

libpq reports a failed connection as text only, even when the server sent a SQLSTATE. Nothing outside this module looks at
the text of an error.

Architecture Invariant: no message carries a password or a connection string; libpq's own texts name host, port, user and
database at most.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hfagent.foundation.errors import AgentError, SourceError
from hfagent.sdk.errormap import ErrorMap, Rule

__all__ = ["SQLSTATES", "connect_error", "permission_hint", "statement_error"]

_PASSWORD_HINT = "check user name and password; on the server, ALTER ROLE {user} PASSWORD '…' sets a new one"
_HBA_HINT = (
    "on the server, allow the account in pg_hba.conf: host{ssl} {database} {user} <address of the agent> scram-sha-256"
)
_CAPACITY_HINT = "close unused sessions, lower pool_size and max_overflow, or raise max_connections on the server"
_MODEL_HINT = "refresh the connector's catalogue; names are case sensitive and may need their schema"

SQLSTATES = ErrorMap(
    exact={
        "28P01": Rule("auth.invalid_credentials", _PASSWORD_HINT),
        "28000": Rule("auth.not_permitted_from_host", _HBA_HINT),
        "3D000": Rule("namespace.not_found", "check the database's name; psql -l on the server lists them"),
        "3F000": Rule("namespace.not_found", "check the schema's name and the account's USAGE right on it"),
        "42501": Rule("permission.denied", "{grant}"),
        "42P01": Rule("model.not_found", _MODEL_HINT),
        "42703": Rule("column.not_found", "refresh the connector's catalogue; column names are case sensitive"),
        "42601": Rule("query.syntax", "check the statement near the place that the message names"),
        "42883": Rule("query.failed", "no such function or operator for these types; an explicit cast may help"),
        "53300": Rule("capacity.too_many_connections", _CAPACITY_HINT),
        "53100": Rule("capacity.overloaded", "the server's disk is full"),
        "53200": Rule("capacity.overloaded", "the server is out of memory"),
        "53400": Rule(
            "capacity.overloaded", "the statement exceeds a limit of the server (temp_file_limit, for instance)"
        ),
        "57P03": Rule("transient.starting", "wait until the server accepts connections"),
        "57P01": Rule(
            "transient.failover", "the server was restarted or the session ended by an administrator; try again"
        ),
        "57P02": Rule("transient.failover", "the server crashed and recovers; try again"),
        "57P05": Rule("transient.failover", "the server ended the idle session; try again"),
        "57014": Rule("timeout.statement", "raise query_timeout_s, or ask for less"),
        "55P03": Rule("timeout.lock", "somebody changes the table right now; try again, or raise lock_timeout_ms"),
        "25P03": Rule("transient.failover", "the session was idle in a transaction for too long; try again"),
        "25P04": Rule("timeout.statement", "the server limits the length of transactions (transaction_timeout)"),
        "25006": Rule("guard.write_blocked", "this connector only reads; change data with another tool"),
        "40001": Rule("transient.serialization", "try again"),
        "40P01": Rule("transient.deadlock", "try again"),
        "54000": Rule("query.failed", "the statement exceeds a limit of the server; make it smaller"),
        "72000": Rule("read.snapshot_too_old", "read in smaller pieces"),
        "XX001": Rule("read.corrupt", "the server reports damaged data; check its disks and restore the table"),
        "XX002": Rule("read.corrupt", "the server reports a damaged index: REINDEX it"),
        "0A000": Rule("query.failed", "the server does not support this"),
    },
    prefixes={
        "08": Rule("net.reset", "the connection was lost; try again"),
        "22": Rule("read.data_invalid", "a value in the data does not fit what the statement does with it"),
        "28": Rule("auth.invalid_credentials", _PASSWORD_HINT),
        "42": Rule("query.failed", "check the statement"),
        "53": Rule("capacity.overloaded", "the server is short of a resource; try again later"),
        "57": Rule("transient.failover", "the server ended the session; try again"),
        "58": Rule("transient.backend", "the server could not reach its files; see its log"),
        "XX": Rule("transient.backend", "the server reported an internal error; see its log"),
        "HV": Rule("transient.backend", "the foreign server behind this table failed; see the server's log"),
    },
    fallback=Rule("query.failed", "see the server's log for details"),
    key_name="sqlstate",
)


@dataclass(frozen=True)
class _Text:
    pattern: re.Pattern[str]
    rule: Rule
    sqlstate: str | None = None
    stage: str | None = None


def _text(
    pattern: str,
    code: str,
    hint: str,
    *,
    sqlstate: str | None = None,
    stage: str | None = None,
    message: str | None = None,
) -> _Text:
    return _Text(re.compile(pattern, re.IGNORECASE), Rule(code, hint, message), sqlstate, stage)


_CONNECT_TEXTS = (
    # What the server says while signing in. The SQLSTATE is known, but libpq keeps it to itself.
    _text(
        r"password authentication failed|(LDAP|PAM|RADIUS|GSSAPI|certificate) authentication failed",
        "auth.invalid_credentials",
        _PASSWORD_HINT,
        sqlstate="28P01",
    ),
    _text(r"role \".*\" does not exist", "auth.invalid_credentials", _PASSWORD_HINT, sqlstate="28000"),
    _text(r"not permitted to log in", "auth.locked", "on the server: ALTER ROLE {user} LOGIN", sqlstate="28000"),
    _text(
        r"requires a valid client certificate",
        "tls.client_cert",
        "give the account's certificate in sslcert and sslkey",
        sqlstate="28000",
    ),
    _text(
        r"no pg_hba\.conf entry.*no encryption",
        "auth.not_permitted_from_host",
        "the server may insist on encryption: set sslmode to require or stricter; else " + _HBA_HINT,
        sqlstate="28000",
    ),
    _text(
        r"no pg_hba\.conf entry|pg_hba\.conf rejects|ident authentication failed|peer authentication failed",
        "auth.not_permitted_from_host",
        _HBA_HINT,
        sqlstate="28000",
    ),
    _text(
        r"database \".*\" does not exist",
        "namespace.not_found",
        "check the database's name; psql -l on the server lists them",
        sqlstate="3D000",
    ),
    _text(
        r"permission denied for database",
        "permission.denied",
        "GRANT CONNECT ON DATABASE {database} TO {user};",
        sqlstate="42501",
    ),
    _text(
        r"is not currently accepting connections",
        "permission.denied",
        "ALTER DATABASE {database} ALLOW_CONNECTIONS true;",
        sqlstate="55000",
    ),
    _text(
        r"too many clients|remaining connection slots|too many connections|no more connections allowed|sorry, too many",
        "capacity.too_many_connections",
        _CAPACITY_HINT,
        sqlstate="53300",
    ),
    _text(
        r"the database system is|not yet accepting connections|server_login_retry|pgbouncer cannot connect",
        "transient.starting",
        "wait until the server accepts connections",
        sqlstate="57P03",
    ),
    _text(r"terminating connection due to administrator command", "transient.failover", "try again", sqlstate="57P01"),
    _text(
        r"unrecognized configuration parameter|unsupported startup parameter",
        "config.invalid",
        "between agent and server stands a pooler: set pgbouncer_transaction_mode",
        sqlstate="42704",
    ),
    _text(r"invalid value for parameter", "config.invalid", "check the session settings of the form", sqlstate="22023"),
    # Encryption.
    _text(
        r"does not match host name|hostname mismatch|ip address mismatch",
        "tls.hostname_mismatch",
        "connect by a name that the certificate carries, or use sslmode verify-ca",
        stage="tls",
    ),
    _text(r"certificate has expired", "tls.expired", "renew the server's certificate", stage="tls"),
    _text(
        r"certificate verify failed|self.signed certificate|unable to get (local )?issuer",
        "tls.untrusted",
        "paste the certificate of the server's authority into sslrootcert; check that the server's certificate has not expired",
        stage="tls",
    ),
    _text(
        r"root certificate file|could not read root certificate|weak sslmode",
        "tls.untrusted",
        "paste the certificate of the server's authority into sslrootcert",
        stage="tls",
    ),
    _text(
        r"server does not support SSL|SSL was required|does not support encryption",
        "tls.plaintext_refused",
        "switch on ssl in the server's configuration, or lower sslmode",
        stage="tls",
    ),
    _text(
        r"could not load|private key|certificate file|no start line|bad decrypt|key values mismatch|"
        r"alert (unknown ca|certificate|bad "
        r"certificate|unsupported certificate)|certificate required",
        "tls.client_cert",
        "check sslcert, sslkey and sslkey_password: they belong together and the server must trust the certificate",
        stage="tls",
    ),
    _text(
        r"unsupported protocol|no protocols available|alert protocol version|handshake failure|no shared cipher|no suitable",
        "tls.version",
        "update the server's TLS, or allow older versions with extra_params ssl_min_protocol_version",
        stage="tls",
    ),
    # Whatever answered is no PostgreSQL.
    _text(
        r"invalid response to SSL negotiation|expected authentication request|wrong version number|lost synchronization|invalid "
        r"message|unrecognized|unexpected message|received unencrypted data|packet length too long|"
        r"record layer failure|malformed",
        "net.protocol",
        "another kind of server listens on this port; check host and port",
        stage="auth",
        message="what answers does not speak PostgreSQL's protocol",
    ),
    # How to prove who one is.
    _text(
        r"authentication method requirement .* failed",
        "auth.method_unsupported",
        "the server asks for the password in clear text over a connection that may be read: set sslmode to require or stricter",
    ),
    _text(
        r"no password supplied",
        "auth.invalid_credentials",
        "the server asks for a password: fill in the field password",
    ),
    _text(
        r"authentication method|SCRAM|channel binding|SASL|GSSAPI|SSPI|Kerberos",
        "auth.method_unsupported",
        "use scram-sha-256 for this account in pg_hba.conf",
    ),
    # Which of several hosts.
    _text(
        r"session is (not )?read-only|server is (not )?in hot standby",
        "transient.failover",
        "no host is in the role that target_session_attrs asks for",
        stage="auth",
    ),
    # The way there.
    _text(
        r"connection refused",
        "net.refused",
        "check host and port, and that the server runs and listens on that address",
        message="nothing listens there",
    ),
    _text(
        r"is the server running locally",
        "net.refused",
        "check the socket directory, and that the server runs on this machine",
        message="there is no server's socket in this directory",
    ),
    _text(
        r"could not translate host name|name or service not known|nodename nor servname|temporary failure in name",
        "net.dns",
        "check the spelling of the host and the agent's name service",
    ),
    _text(
        r"no route to host|network is unreachable|host is down|host is unreachable",
        "net.unreachable",
        "check routing and firewalls between agent and server",
    ),
    _text(r"timeout expired|timed out", "net.timeout", "check host, port and firewalls; the packets get no answer"),
    _text(
        r"closed the connection|connection reset|broken pipe|EOF detected|connection has been closed|SYSCALL error|"
        r"connection not open"
        r"|could not (send|receive)|connection aborted|unexpected eof",
        "net.reset",
        "try again; if it stays so, look for a firewall or proxy between agent and server, and into the server's log",
        message="the connection was cut",
    ),
)


def connect_error(text: str, *, where: str, facts: dict[str, Any]) -> AgentError:
    """The error for a failed attempt to connect. `where` names the target, `facts` fill the hints."""
    line = _reason(text)
    for known in _CONNECT_TEXTS:
        if known.pattern.search(text):
            return _build(known.rule, line, where=where, facts=facts, sqlstate=known.sqlstate, stage=known.stage)
    # A server in another language, or a message we do not know: it did answer, and said no.
    rule = Rule("query.failed", "read the server's message; its log has more")
    return _build(rule, line, where=where, facts=facts, sqlstate=None, stage="auth")


def statement_error(
    sqlstate: str | None, text: str, *, facts: dict[str, Any], standby: bool = False, connected: bool = True
) -> AgentError:
    """The error for a statement that the server rejected or that lost its connection."""
    line = _reason(text)
    if sqlstate is None and not connected:
        return _build(Rule("net.reset", "try again", "the connection was cut"), line, where="", facts=facts)
    if sqlstate == "40001" and (standby or "recovery" in line):
        rule = Rule(
            "transient.replica_conflict", "try again with a smaller range, or raise max_standby_streaming_delay"
        )
        return _build(rule, line, where="", facts=facts, sqlstate=sqlstate)
    if sqlstate == "42501" and "grant" not in facts:
        facts = facts | {"grant": permission_hint(line, str(facts.get("user", "<account>")))}
    return SQLSTATES.error(sqlstate, line, **facts)


_OBJECT = re.compile(
    r"permission denied for "
    r"(?P<kind>table|relation|view|materialized view|foreign table|schema|column|database|sequence|function) "
    r"\"?(?P<name>.+?)\"?$"
)


def permission_hint(line: str, user: str) -> str:
    """The GRANT that would cure a "permission denied"; PostgreSQL names the object without its schema."""
    match = _OBJECT.search(line)
    if match is None:
        return f"GRANT SELECT ON <table> TO {user};"
    kind, name = match["kind"], _quoted(match["name"])
    if kind == "schema":
        return f"GRANT USAGE ON SCHEMA {name} TO {user}; GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {user};"
    if kind == "database":
        return f"GRANT CONNECT ON DATABASE {name} TO {user};"
    if kind == "function":
        return f"GRANT EXECUTE ON FUNCTION {name} TO {user};"
    return f"GRANT SELECT ON {name} TO {user};"


def _build(
    rule: Rule, line: str, *, where: str, facts: dict[str, Any], sqlstate: str | None = None, stage: str | None = None
) -> AgentError:
    native: dict[str, Any] = {"text": line}
    if sqlstate:
        native["sqlstate"] = sqlstate
    hint = rule.hint
    for name, value in facts.items():  # not str.format: names and texts may contain braces
        hint = hint.replace("{" + name + "}", str(value)) if hint else hint
    message = rule.message or line
    return SourceError(
        f"{where}: {message}" if where else message, code=rule.code, hint=hint, stage=stage, native=native
    )


def _reason(text: str) -> str:
    """The first telling line, without libpq's preamble and the severity word."""
    text = text.strip()
    text = re.sub(r"^connection (to server )?(at|on) .*? failed: ", "", text, flags=re.DOTALL)
    first = next((line.strip() for line in text.split("\n") if line.strip()), "no details")
    return re.sub(r"^(FATAL|ERROR|PANIC|[A-ZÄÖÜÉ]{4,10}):\s+", "", first)


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'
