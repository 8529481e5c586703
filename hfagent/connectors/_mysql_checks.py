"""The facts that a connection test reports: what the server is, how well the way is protected, what the account may do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from hfagent.connectors._mysql_catalogue import SYSTEM_NAMESPACES
from hfagent.connectors._mysql_config import MySQLFamilyConfig
from hfagent.connectors._mysql_session import Session
from hfagent.connectors._mysql_tls import verifies
from hfagent.foundation.errors import NotFound, SourceError
from hfagent.sdk.probe import Stage

__all__ = [
    "Grants",
    "capacity",
    "identity",
    "namespaces",
    "permissions",
    "safety",
    "server_facts",
    "sign_in",
    "tls",
    "variables",
]

_VARIABLES: Final = (
    "version", "version_comment", "read_only", "super_read_only", "innodb_read_only", "lower_case_table_names", "server_uuid",
    "server_uid", "server_id", "gtid_domain_id", "hostname", "datadir", "max_connections", "max_user_connections",
    "system_time_zone", "transaction_isolation", "tx_isolation", "log_bin",
)  # fmt: skip
_MAX_SKEW_S: Final = 2.0
_EXPIRES_SOON_DAYS: Final = 30
_OLDEST: Final = {"MySQL": (5, 7, 0), "MariaDB": (10, 3, 0)}


def variables(session: Session, timeout: float) -> dict[str, str]:
    """Server variables by name. SHOW VARIABLES leaves out what a server does not have, where SELECT @@x would fail."""
    names = ", ".join(f"'{name}'" for name in _VARIABLES)
    rows = session.rows(f"SHOW VARIABLES WHERE Variable_name IN ({names})", timeout=timeout)
    return {str(name).lower(): str(value) for name, value in rows}


def identity(found: dict[str, str]) -> str:
    """What tells this server's data from another's, so that a restored or exchanged server is noticed."""
    for name in ("server_uuid", "server_uid"):
        if found.get(name):
            return found[name]
    place = hashlib.blake2b(f"{found.get('hostname')}\0{found.get('datadir')}".encode(), digest_size=8).hexdigest()
    return f"{found.get('server_id', '0')}-{found.get('gtid_domain_id', '0')}-{place}"


def server_facts(session: Session, stage: Stage, expected: str, timeout: float) -> dict[str, Any]:
    """Product, version, role, clock; warnings about the wrong type, old versions and a clock that differs."""
    found = variables(session, timeout)
    product = "MariaDB" if session.is_mariadb else "MySQL"
    before = datetime.now(UTC)
    ((now, zone),) = session.rows("SELECT CAST(UTC_TIMESTAMP(6) AS CHAR), @@session.time_zone", timeout=timeout)
    after = datetime.now(UTC)
    skew = _skew(str(now), before, after)
    read_only = any(found.get(name, "OFF") in ("ON", "1", "NO_LOCK", "NO_LOCK_NO_ADMIN") for name in _READ_ONLY)
    if product != expected:
        other = product.lower()
        stage.warn(
            "config.invalid",
            f"this is a {product} server",
            f"use the connector type {other}: it knows its types and limits",
        )
    oldest = _OLDEST[product]
    if session.version < oldest:
        stage.warn(
            "unsupported", f"{product} {session.version_text} is older than {'.'.join(map(str, oldest[:2]))}",
            "upgrade the server; parts of this connector may not work with it",
        )  # fmt: skip
    if abs(skew) > _MAX_SKEW_S:
        stage.warn(
            "incremental.regressed", f"the server's clock differs by {skew:+.1f} s from the agent's",
            "synchronise both by NTP: incremental reads compare times of both",
        )  # fmt: skip
    return {
        "product": product,
        "version": session.version_text,
        "comment": found.get("version_comment", ""),
        "role": "replica" if read_only else "primary",
        "time_zone": found.get("system_time_zone", ""),
        "session_time_zone": zone,
        "clock_skew_s": round(skew, 3),
        "lower_case_table_names": int(found.get("lower_case_table_names", 0)),
        "isolation": found.get("transaction_isolation") or found.get("tx_isolation"),
        "source_id": identity(found),
    }


_READ_ONLY: Final = ("read_only", "super_read_only", "innodb_read_only")


def _skew(server: str, before: datetime, after: datetime) -> float:
    """Seconds the server is ahead; what the round trip may explain counts as none."""
    told = datetime.fromisoformat(server).replace(tzinfo=UTC)
    if told < before:
        return (told - before).total_seconds()
    return max(0.0, (told - after).total_seconds())


def tls(session: Session, config: MySQLFamilyConfig, stage: Stage) -> None:
    """Version and cipher; warnings for plain text, an unverified server, a certificate that ends soon. Asks no question."""
    sock: Any = session.open_socket
    cipher = sock.cipher() if hasattr(sock, "cipher") else None
    if config.unix_socket:
        stage.details["transport"] = "unix socket"
        return
    if cipher is None:
        stage.details["encrypted"] = False
        stage.warn(
            "tls.plaintext", f"the connection to {config.host}:{config.port} is not encrypted",
            "set ssl_mode to required or stronger" if config.ssl_mode == "disabled" else "switch TLS on at the server",
        )  # fmt: skip
        return
    stage.details |= {
        "encrypted": True, "version": sock.version(), "cipher": cipher[0], "verified": verifies(config),
        "host_name_checked": config.ssl_mode == "verify_identity",
    }  # fmt: skip
    if not verifies(config):
        stage.warn(
            "tls.unverified", "the connection is encrypted, but the server's identity is not verified",
            "set ssl_mode to verify_identity, with the authority's certificate in ssl_ca if it is a private one",
        )  # fmt: skip
    days = _days_left(sock.getpeercert(binary_form=True))
    stage.details["certificate_days_left"] = days
    if days is not None and days < _EXPIRES_SOON_DAYS:
        stage.warn("tls.expired", f"the server's certificate ends in {days} days", "renew it")


def _days_left(certificate: bytes | None) -> int | None:
    if not certificate:
        return None
    from cryptography import x509

    return (x509.load_der_x509_certificate(certificate).not_valid_after_utc - datetime.now(UTC)).days


def sign_in(session: Session, stage: Stage, timeout: float) -> None:
    """The account as the server matched it, how it sees our encryption, and where the password's key came from."""
    ((account, user),) = session.rows("SELECT CURRENT_USER(), USER()", timeout=timeout)
    told = {str(k): str(v) for k, v in session.rows("SHOW SESSION STATUS LIKE 'Ssl_cipher'", timeout=timeout)}
    stage.details |= {"account": account, "user": user, "cipher_on_server": told.get("Ssl_cipher", "")}
    if hasattr(session.open_socket, "cipher") and not told.get("Ssl_cipher"):
        stage.warn(
            "tls.unverified", "the encryption ends before the server: something in between decrypts", "check the proxy"
        )
    if session.fetched_rsa_key:
        stage.warn(
            "tls.unverified", "the password was encrypted for a key that came over an unprotected connection",
            "use TLS, or paste the server's public key into server_public_key",
        )  # fmt: skip


def visible_namespaces(session: Session, timeout: float) -> tuple[str, ...]:
    """All databases that the account can see, without the server's own."""
    rows = session.rows("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA", timeout=timeout)
    return tuple(sorted(str(name) for (name,) in rows if str(name).lower() not in SYSTEM_NAMESPACES))


def namespaces(session: Session, wanted: Sequence[str], stage: Stage, timeout: float) -> None:
    """Every output schema must exist and be visible. Raises `NotFound` naming the first that is not."""
    rows = session.rows("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA", timeout=timeout)
    visible = {str(name) for (name,) in rows}
    missing = [name for name in wanted if name not in visible]
    own = sorted(name for name in visible if name.lower() not in SYSTEM_NAMESPACES)
    stage.details |= {"visible": own[:100], "used": list(wanted or own)[:100]}
    if missing:
        raise NotFound(
            f"the database {missing[0]!r} does not exist or is not visible to {session.config.username}",
            code="namespace.not_found", hint=f"visible are: {', '.join(own[:20]) or 'none'}; names are usually case-sensitive",
        )  # fmt: skip


def permissions(session: Session, wanted: Sequence[str], account: str, stage: Stage, timeout: float) -> None:
    """Count visible and readable tables. Raises `SourceError` when there is nothing to read."""
    quoted = ", ".join(session.escape(name) for name in wanted)
    visible: dict[str, int] = {}
    readable: dict[str, int] = {}
    if wanted:
        for name, tables in session.rows(
            f"SELECT TABLE_SCHEMA, COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA IN ({quoted}) "
            "AND TABLE_TYPE NOT IN ('SEQUENCE', 'TEMPORARY') GROUP BY TABLE_SCHEMA", timeout=timeout,
        ):  # fmt: skip
            visible[str(name)] = int(tables)
        for name, tables in session.rows(
            f"SELECT TABLE_SCHEMA, COUNT(DISTINCT TABLE_NAME) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA IN ({quoted}) "
            "AND FIND_IN_SET('select', PRIVILEGES) GROUP BY TABLE_SCHEMA", timeout=timeout,
        ):  # fmt: skip
            readable[str(name)] = int(tables)
    total, can = sum(visible.values()), sum(readable.values())
    stage.details |= {"visible": total, "readable": can}
    grant = "; ".join(f"GRANT SELECT ON `{name.replace('`', '``')}`.* TO {account}" for name in list(wanted)[:5])
    hint = f"ask an administrator to run: {grant or f'GRANT SELECT ON <database>.* TO {account}'};"
    if not wanted:
        raise SourceError(f"the account {account} can see no database", code="permission.read_missing", hint=hint)
    if total and not can:
        raise SourceError(
            f"the account can read none of {total} visible tables", code="permission.read_missing", hint=hint
        )
    if not total:
        stage.warn(
            "permission.read_missing",
            f"no table is visible in {', '.join(wanted)}",
            f"they may be empty; otherwise {hint}",
        )
    elif can < total:
        stage.warn("permission.read_missing", f"{can} of {total} visible tables are readable", hint)


_GRANT = re.compile(
    r"GRANT (?P<privileges>.+?) ON (?P<object>(?:(?:TABLE|FUNCTION|PROCEDURE|PACKAGE) )?\S+|.+?) TO ", re.IGNORECASE
)
_ROLE = re.compile(r"GRANT (?P<roles>[`'\"][^ ]+(?:, ?[`'\"][^ ]+)*) TO ", re.IGNORECASE)
_COLUMN_LIST = re.compile(r"\([^)]*\)")
_WRITES: Final = frozenset(
    {"INSERT", "UPDATE", "DELETE", "DELETE HISTORY", "CREATE", "DROP", "ALTER", "INDEX", "TRIGGER", "REFERENCES", "CREATE VIEW",
     "CREATE ROUTINE", "ALTER ROUTINE", "EVENT", "CREATE USER", "CREATE ROLE", "DROP ROLE", "CREATE TABLESPACE"}
)  # fmt: skip
_POWERS: Final = frozenset(
    {"SUPER", "SYSTEM_USER", "SYSTEM_VARIABLES_ADMIN", "READ_ONLY ADMIN", "SET USER", "GRANT OPTION", "SHUTDOWN"}
)


class Grants:
    """What SHOW GRANTS says, as far as a read-only agent should worry."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.writes: set[str] = set()
        self.powers: set[str] = set()
        self.files = False
        self.reads: list[str] = []
        self.roles: list[str] = []
        for line in lines:
            self._take(line)

    def _take(self, line: str) -> None:
        match = _GRANT.match(line)
        if match is None:
            if role := _ROLE.match(line):
                self.roles.append(role["roles"])
            return
        everywhere = match["object"] == "*.*"
        for part in _COLUMN_LIST.sub("", match["privileges"]).split(","):
            privilege = part.strip().upper()
            if privilege in ("ALL", "ALL PRIVILEGES"):
                self.writes.add("ALL PRIVILEGES")
                self.reads.append(match["object"])
                if everywhere:
                    self.powers.add("ALL PRIVILEGES")
                    self.files = True
            elif privilege in _WRITES:
                self.writes.add(privilege)
            elif privilege in _POWERS:
                self.powers.add(privilege)
            elif privilege == "FILE":
                self.files = True
            elif privilege == "SELECT":
                self.reads.append(match["object"])


def safety(session: Session, stage: Stage, timeout: float) -> None:
    """Warn about an account that can do more than read, and a session that the server does not hold to reading."""
    grants = Grants(str(line) for (line,) in session.rows("SHOW GRANTS", timeout=timeout))
    stage.details |= {
        "session_read_only": session.read_only, "can_write": sorted(grants.writes), "powers": sorted(grants.powers),
        "can_read_server_files": grants.files, "roles": grants.roles,
    }  # fmt: skip
    if not session.read_only:
        stage.warn(
            "permission.can_write", "the server does not offer read-only sessions; only the statement guard protects it",
            "use an account that has SELECT only",
        )  # fmt: skip
    if grants.powers:
        stage.warn(
            "permission.superuser", f"the account is an administrator ({', '.join(sorted(grants.powers))})",
            "use an account that has SELECT only",
        )  # fmt: skip
    elif grants.writes:
        stage.warn(
            "permission.can_write", f"the account can change data ({', '.join(sorted(grants.writes))})",
            "use an account that has SELECT only",
        )  # fmt: skip
    if grants.files and not grants.powers:
        stage.warn(
            "permission.can_write", "the account can read and write files of the server (FILE)", "revoke FILE from it"
        )


def capacity(session: Session, config: MySQLFamilyConfig, stage: Stage, timeout: float) -> None:
    """Compare the pool's size with what the server has left."""
    found = variables(session, timeout)
    status = session.rows("SHOW GLOBAL STATUS LIKE 'Threads_connected'", timeout=timeout)
    limit = int(found.get("max_connections", 0))
    per_user = int(found.get("max_user_connections", 0))
    used = int(status[0][1]) if status else 0
    wanted = config.pool_size + config.max_overflow
    stage.details |= {"max_connections": limit, "max_user_connections": per_user, "connected": used, "pool_max": wanted}
    allowed = min(value for value in (limit - used + 1 if limit else wanted, per_user or wanted, wanted))
    if allowed < wanted:
        stage.warn(
            "capacity.too_many_connections", f"the pool may open {wanted} connections, the server has room for {max(allowed, 0)}",
            "lower pool_size and max_overflow, or raise max_connections",
        )  # fmt: skip
