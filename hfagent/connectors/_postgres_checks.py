"""The facts that a connection test reports about a PostgreSQL server, and what it warns about.

Each function fills one stage. A stage that finds something wrong but workable warns; one that finds that reading cannot
work raises. Hints carry the statement to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hfagent.connectors._postgres_config import PostgresConfig
from hfagent.connectors._postgres_dial import open_session
from hfagent.connectors._postgres_session import Limits, Session
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, NotFound, SourceError
from hfagent.sdk.connector import ConnectorContext
from hfagent.sdk.probe import Stage

__all__ = ["auth", "capacity", "namespaces", "permissions", "safety", "secrets", "server", "tls"]

_OLDEST = 90600
_SUPPORTED = 120000
_SKEW_S = 2.0
_LAG_S = 60.0

_SERVER = """\
SELECT pg_catalog.current_setting('server_version'), pg_catalog.pg_is_in_recovery(),
       extract(epoch FROM pg_catalog.clock_timestamp())::float8, pg_catalog.current_setting('server_encoding'),
       pg_catalog.current_setting('TimeZone'), pg_catalog.version(),
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN
         extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp())::float8 END,
       pg_catalog.current_setting('default_transaction_read_only')"""

_NAMESPACES = """\
SELECT w.name, n.oid IS NOT NULL, coalesce(pg_catalog.has_schema_privilege(n.oid, 'USAGE'), false)
FROM pg_catalog.unnest(%s::text[]) AS w(name) LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.name ORDER BY w.name"""

_COUNTS = """\
SELECT n.nspname, count(*), count(*) FILTER (WHERE r.whole), count(*) FILTER (WHERE r.part AND NOT r.whole),
       count(*) FILTER (WHERE c.relrowsecurity), min(c.relname) FILTER (WHERE NOT r.part)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
  SELECT u.ok AND pg_catalog.has_table_privilege(c.oid, 'SELECT') AS whole,
         u.ok AND (pg_catalog.has_table_privilege(c.oid, 'SELECT')
                   OR pg_catalog.has_any_column_privilege(c.oid, 'SELECT')) AS part
  FROM (SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS ok) u) r
WHERE n.nspname = ANY(%s) AND c.relkind IN ('r','p','v','m','f')
GROUP BY n.nspname ORDER BY n.nspname"""

_ROLE = """\
SELECT r.rolsuper, r.rolbypassrls, r.rolreplication, r.rolcreaterole, r.rolcreatedb, r.rolconnlimit,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
       coalesce((SELECT pg_catalog.string_agg(g.rolname, ', ' ORDER BY g.rolname) FROM pg_catalog.pg_roles g
         WHERE g.rolname IN ('pg_write_all_data','pg_execute_server_program','pg_write_server_files','pg_read_server_files')
           AND pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER')), '')
FROM pg_catalog.pg_roles r WHERE r.rolname = current_user"""

_WRITABLE = """\
SELECT count(*), min(n.nspname || '.' || c.relname) FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY(%s) AND c.relkind IN ('r','p','v','f') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  AND (pg_catalog.has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
       OR pg_catalog.has_any_column_privilege(c.oid, 'INSERT, UPDATE'))"""

_CAPACITY = """\
SELECT pg_catalog.current_setting('max_connections')::int, pg_catalog.current_setting('superuser_reserved_connections')::int,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE pid IS NOT NULL AND usename IS NOT NULL),
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usename = current_user),
       (SELECT rolconnlimit FROM pg_catalog.pg_roles WHERE rolname = current_user),
       (SELECT datconnlimit FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"""

_TLS = "SELECT ssl, version, cipher, bits FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()"


def secrets(config: PostgresConfig, stage: Stage) -> None:
    """Certificates and keys parse and are in date."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    for name, text in (("sslrootcert", config.sslrootcert), ("sslcert", config.sslcert)):
        if not text:
            continue
        try:
            certificates = x509.load_pem_x509_certificates(text.encode())
        except ValueError as exc:
            raise SourceError(
                f"{name} is not a certificate in PEM form",
                code="tls.client_cert" if name == "sslcert" else "tls.untrusted",
                hint="paste the whole text, from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----",
                stage="secrets",
            ) from exc
        _dates(name, certificates, stage)
    if config.sslcert and config.sslkey is not None:
        phrase = config.sslkey_password.reveal().encode() if config.sslkey_password else None
        try:
            load_pem_private_key(config.sslkey.reveal().encode(), phrase)
        except (ValueError, TypeError) as exc:
            raise SourceError(
                "sslkey cannot be read",
                code="tls.client_cert",
                stage="secrets",
                hint="paste the private key in PEM form; when it is encrypted, fill in sslkey_password",
            ) from exc


def _dates(name: str, certificates: Sequence[Any], stage: Stage) -> None:
    now = datetime.now(UTC)
    ends = min(certificate.not_valid_after_utc for certificate in certificates)
    stage.details[f"{name}_expires"] = ends.isoformat()
    if name == "sslcert" and ends < now:
        raise SourceError(
            f"the client certificate expired on {ends:%Y-%m-%d}",
            code="tls.client_cert",
            hint="renew it",
            stage="secrets",
        )
    if (ends - now).days < 30:
        stage.warn("tls.expired", f"a certificate in {name} expires on {ends:%Y-%m-%d}", "renew it in time")


def tls(session: Session, stage: Stage) -> None:
    """Is the connection encrypted, how, and does it prove who answers?"""
    config = session.config
    if not session.pgconn.ssl_in_use:
        stage.details["encrypted"] = False
        if config.is_local:
            stage.skip("local socket")
        else:
            stage.warn(
                "tls.plaintext",
                "the connection is not encrypted: anybody on the way can read the data",
                "switch on ssl on the server and set sslmode to verify-full",
            )
        return
    rows = session.rows(_TLS, None, Limits.of(5))
    verified = config.sslmode in ("verify-ca", "verify-full")
    stage.details |= {"encrypted": True, "verified": verified, "host_name_checked": config.sslmode == "verify-full"}
    if rows:  # a pooler between us and the server shows its own connection here
        stage.details |= {"version": rows[0][1], "cipher": rows[0][2], "bits": rows[0][3]}
    if not verified:
        stage.warn(
            "tls.unverified",
            f"encrypted, but sslmode {config.sslmode} does not check who answers",
            "set sslmode to verify-full and paste the certificate of the server's authority into sslrootcert",
        )


_METHODS = (
    ("hashed", "md5"),
    ("SCRAM", "scram-sha-256"),
    ("cleartext", "password"),
    ("GSS", "gss"),
    ("SSPI", "sspi"),
    ("SASL", "scram-sha-256"),
)


def auth(session: Session, context: ConnectorContext, stage: Stage) -> None:
    """How the server wants us to prove who we are: asked on a second connection that never answers its challenge."""
    config = session.config
    stage.details |= {"user": config.username, "used_password": bool(session.pgconn.used_password)}
    try:
        open_session(config, context, Deadline(5), require_auth="none").close()
        method = "certificate" if config.auth_mode == "certificate" else "trust"
    except AgentError as error:
        text = str((error.native or {}).get("text", ""))
        method = next((name for word, name in _METHODS if "requirement" in text and word in text), "unknown")
    stage.details["method"] = method
    if method == "md5":
        stage.message = (
            "signed in with MD5, which is broken; set password_encryption to scram-sha-256 and the password anew"
        )
    elif method == "trust" and not config.is_local:
        stage.message = "the server asked for no password at all (trust)"


def server(session: Session, stage: Stage) -> dict[str, Any]:
    """Version, role, clock and encoding."""
    before = datetime.now(UTC).timestamp()
    ((version, standby, clock, encoding, zone, banner, lag, read_only),) = session.rows(_SERVER, None, Limits.of(10))
    after = datetime.now(UTC).timestamp()
    number = session.server_version
    skew = round(clock - (before + after) / 2, 3)
    facts: dict[str, Any] = {
        "product": _product(banner),
        "version": version,
        "version_number": number,
        "role": "standby" if standby else "primary",
        "time_zone": zone,
        "encoding": encoding,
        "clock_skew_s": skew,
    }
    if number < _OLDEST:
        raise SourceError(
            f"PostgreSQL {version} is too old: 9.6 or later is needed", code="unsupported", hint="upgrade the server"
        )
    if number < _SUPPORTED:
        stage.warn(
            "unsupported", f"PostgreSQL {version} no longer gets fixes; 12 or later is supported", "upgrade the server"
        )
    if standby:
        facts["replica_lag_s"] = lag
        if lag is not None and lag > _LAG_S:
            stage.warn(
                "transient.replica_conflict",
                f"the replica is {lag:.0f} s behind (or its primary is idle)",
                "check replication",
            )
    tolerance = _SKEW_S + (after - before) / 2
    if abs(skew) > tolerance:
        stage.warn(
            "config.invalid", f"the clocks of server and agent differ by {skew:.1f} s", "synchronise both with NTP"
        )
    if encoding == "SQL_ASCII":
        stage.warn(
            "read.data_invalid",
            "the database has no encoding (SQL_ASCII): text that is not UTF-8 will be repaired",
            None,
        )
    if read_only != "on" and not session.config.pgbouncer_transaction_mode:
        stage.warn("permission.can_write", "the session could not be made read-only by default", None)
    return facts


def _product(banner: str) -> str:
    for word, name in (
        ("Redshift", "Amazon Redshift"),
        ("CockroachDB", "CockroachDB"),
        ("YugabyteDB", "YugabyteDB"),
        ("-YB-", "YugabyteDB"),
        ("EnterpriseDB", "EDB Postgres Advanced Server"),
        ("Greenplum", "Greenplum"),
    ):
        if word in banner:
            return name
    return "PostgreSQL"


def namespaces(session: Session, wanted: Sequence[str], resolved: Sequence[str], stage: Stage) -> None:
    """The database is there (we are in it); every output schema exists and may be used."""
    stage.details["database"] = session.config.database
    stage.details["output_schemas"] = list(resolved)
    user = session.facts()["user"]
    if not wanted:
        if not resolved:
            stage.warn(
                "namespace.not_found",
                "there is no schema in which this account can read anything",
                f"GRANT USAGE ON SCHEMA public TO {user}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user};",
            )
        return
    rows = session.rows(_NAMESPACES, (list(wanted),), Limits.of(10))
    if missing := [name for name, exists, _ in rows if not exists]:
        raise NotFound(
            f"there is no schema {missing[0]!r} in the database {session.config.database!r}",
            code="namespace.not_found",
            hint="check output_schemas; names are case sensitive, and a database's schemas are listed by \\dn in psql",
        )
    if closed := [name for name, _, usable in rows if not usable]:
        quoted = '"' + closed[0].replace('"', '""') + '"'
        error = SourceError(
            f"the account has no USAGE right on the schema {closed[0]!r}",
            code="permission.denied",
            hint=f"GRANT USAGE ON SCHEMA {quoted} TO {user}; GRANT SELECT ON ALL TABLES IN SCHEMA {quoted} TO {user};",
        )
        if len(closed) == len(rows):
            raise error
        stage.warn(error.code, error.message, error.hint)


def permissions(session: Session, resolved: Sequence[str], stage: Stage) -> None:
    """How many streams are there, and how many of them can be read?"""
    user = session.facts()["user"]
    rows = session.rows(_COUNTS, (list(resolved),), Limits.of(30))
    visible, whole, partly, guarded = (sum(row[i] for row in rows) for i in (1, 2, 3, 4))
    stage.details |= {
        "visible": visible,
        "readable": whole + partly,
        "partly_readable": partly,
        "row_security": guarded,
    }
    stage.details["by_schema"] = {row[0]: {"visible": row[1], "readable": row[2] + row[3]} for row in rows}
    if visible and not whole + partly:
        name = '"' + str(rows[0][0]).replace('"', '""') + '"'
        raise SourceError(
            f"the account sees {visible} tables and views but may read none of them",
            code="permission.read_missing",
            hint=f"GRANT USAGE ON SCHEMA {name} TO {user}; GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {user};",
        )
    empty = [row for row in rows if not row[2] + row[3]]
    if empty:
        name = '"' + str(empty[0][0]).replace('"', '""') + '"'
        stage.warn(
            "permission.read_missing",
            f"nothing can be read in the schema {empty[0][0]!r}",
            f"GRANT USAGE ON SCHEMA {name} TO {user}; GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO {user};",
        )
    elif whole + partly < visible:
        culprit = next(row for row in rows if row[5])
        stage.warn(
            "permission.read_missing",
            f"{visible - whole - partly} of {visible} streams cannot be read, {culprit[0]}.{culprit[5]} for one",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA {_quoted(culprit[0])} TO {user};",
        )
    if guarded:
        stage.warn(
            "permission.row_security",
            f"row security is on for {guarded} tables: this account may see only part of their rows",
            f"a role with BYPASSRLS sees all: ALTER ROLE {user} BYPASSRLS;",
        )


def safety(session: Session, resolved: Sequence[str], stage: Stage) -> None:
    """Could this account change anything?"""
    user = session.facts()["user"]
    rows = session.rows(_ROLE, None, Limits.of(10))
    if not rows:
        return
    superuser, bypass, replication, create_role, create_db, _, create, memberships = rows[0]
    ((count, example),) = session.rows(_WRITABLE, (list(resolved),), Limits.of(30))
    stage.details |= {
        "superuser": superuser,
        "bypass_row_security": bypass,
        "replication": replication,
        "create_role": create_role,
        "create_database": create_db,
        "create_in_database": create,
        "writable_streams": count,
        "session_read_only": True,
    }
    advice = (
        f"make a role that can only read: CREATE ROLE honeyframe_ro LOGIN PASSWORD '…'; GRANT pg_read_all_data TO honeyframe_ro; "
        f"instead of {user}"
    )
    if superuser:
        stage.warn(
            "permission.superuser",
            f"{user} is a superuser: it can change everything, and run programs on the server",
            advice,
        )
        return
    if memberships:
        stage.warn("permission.can_write", f"{user} is a member of {memberships}", f"REVOKE {memberships} FROM {user};")
    if count:
        stage.warn("permission.can_write", f"{user} can change {count} tables, {example} for one", advice)
    if create_role or create_db or create or replication:
        rights = [
            name
            for name, has in (
                ("CREATEROLE", create_role),
                ("CREATEDB", create_db),
                ("CREATE on the database", create),
                ("REPLICATION", replication),
            )
            if has
        ]
        stage.warn("permission.can_write", f"{user} has {', '.join(rights)}", advice)


def capacity(session: Session, stage: Stage) -> None:
    """Does the pool fit into what the server offers?"""
    config = session.config
    ((limit, reserved, used, own, role_limit, database_limit),) = session.rows(_CAPACITY, None, Limits.of(10))
    pool = config.pool_size + config.max_overflow
    ceilings = [limit - reserved, *(x for x in (role_limit, database_limit) if x is not None and x >= 0)]
    available = min(ceilings)
    stage.details |= {
        "max_connections": limit,
        "reserved": reserved,
        "role_limit": role_limit,
        "database_limit": database_limit,
        "sessions_seen": used,
        "sessions_of_account": own,
        "pool_maximum": pool,
    }
    if pool > available:
        stage.warn(
            "capacity.too_many_connections",
            f"the pool may open {pool} connections, the server allows this account {available}",
            "lower pool_size and max_overflow",
        )
    elif used + pool > limit - reserved:
        stage.warn(
            "capacity.too_many_connections",
            f"{used} of {limit - reserved} connections are in use, the pool may open {pool} more",
            "lower max_overflow, or raise max_connections on the server",
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
