"""The configuration of a PostgreSQL connector: its form, its rules, and what it refuses.

libpq takes far more parameters than these, and some of them are dangerous in the hands of whoever edits a connector: they
read files of the agent (`service`, `passfile`), write its TLS keys to one (`sslkeylogfile`), send the password to another
host (`hostaddr`, a database name that is a whole connection string) or change the session behind the read-only guard
(`options`). What is not a field here or in `EXTRA_PARAMS` never reaches libpq.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from hfagent.sdk.config import NetworkFields, PoolFields, QueryFields, field
from hfagent.sdk.network import validate_host
from hfagent.sdk.secret import Secret

__all__ = ["EXTRA_PARAMS", "PostgresConfig", "SpecialValues"]

SpecialValues = Literal["null", "clamp", "string", "error"]

EXTRA_PARAMS = (
    "channel_binding", "gssencmode", "keepalives", "keepalives_count", "keepalives_interval", "krbsrvname",
    "load_balance_hosts", "require_auth", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslsni",
)  # fmt: skip
"""Driver parameters that change how we talk to the server, never whom we talk to nor which files are touched."""

_REFUSED = {
    "options": "session settings are made by the agent (read-only, timeouts, UTC); use the fields of the form",
    "hostaddr": "it would send the password to another address than `host`; put the address into `host`",
    "host": "use the field `host`",
    "service": "it reads connection settings from a file on the agent; fill in the fields of the form",
    "servicefile": "it reads connection settings from a file on the agent; fill in the fields of the form",
    "passfile": "it reads passwords from a file on the agent; use the field `password`",
    "sslkeylogfile": "it writes the keys of encrypted connections to a file",
    "sslcrl": "it names a file on the agent",
    "sslcrldir": "it names a directory on the agent",
    "sslcert": "paste the certificate into the field `sslcert`",
    "sslkey": "paste the key into the field `sslkey`",
    "sslrootcert": "paste the certificates into the field `sslrootcert`",
    "replication": "a replication session cannot read tables",
}

_CERTIFICATE = {"sslmode": ["require", "verify-ca", "verify-full", "prefer", "allow"]}
_VERIFIED = {"sslmode": ["verify-ca", "verify-full"]}


class PostgresConfig(NetworkFields, QueryFields, PoolFields):
    """Connect to PostgreSQL, or to a service that speaks its protocol (RDS, Aurora, Cloud SQL, AlloyDB, Azure)."""

    example: ClassVar[dict[str, Any]] = {
        "host": "db.example.com",
        "port": 5432,
        "database": "warehouse",
        "username": "honeyframe_ro",
        "password": "change-me",
        "sslmode": "require",
    }

    host: str = field(
        description="Host name or IP address of the server. Several, separated by commas, are tried in order "
        "(failover); a directory that starts with / is a local socket.",
        endpoint=True, placeholder="db.example.com", aliases=("hostname", "server"), min_length=1, max_length=2000,
    )  # fmt: skip
    port: int = field(
        5432, description="TCP port of the server, for all hosts.", endpoint=True, ge=1, le=65535,
    )  # fmt: skip
    database: str = field(
        description="Name of the database to read. PostgreSQL sessions see one database only.",
        pool_key=True, aliases=("dbname", "db"), min_length=1, max_length=63, placeholder="warehouse",
    )  # fmt: skip
    username: str = field(
        description="Account to sign in with. Give it the right to read and nothing else.",
        pool_key=True, aliases=("user",), min_length=1, max_length=63, placeholder="honeyframe_ro",
    )  # fmt: skip
    password: Secret | None = field(
        None, description="Password of the account. Empty when the server trusts the connection or asks for a certificate.",
        secret=True, show_when={"auth_mode": ["password"]},
    )  # fmt: skip
    auth_mode: Literal["password", "certificate"] = field(
        "password", description="How the account proves itself: with a password, or with a client certificate.",
        group="Sign-in", pool_key=True,
        enum_titles={"password": "Password (SCRAM or MD5)", "certificate": "Client certificate"},
    )  # fmt: skip

    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = field(
        "prefer", description="Encryption. `require` encrypts but believes any server; `verify-full` also checks that the "
        "certificate is trusted and made for this host.",
        group="Encryption", pool_key=True, aliases=("ssl_mode",),
        enum_titles={
            "disable": "Never", "allow": "Only if the server insists", "prefer": "If the server offers it",
            "require": "Always, without checking who answers", "verify-ca": "Always, and check the authority",
            "verify-full": "Always, and check authority and host name",
        },
    )  # fmt: skip
    sslrootcert: str | None = field(
        None, description="Certificates (PEM) of the authorities to trust. Required for verify-ca; verify-full falls back to "
        "the authorities of the agent's system.",
        group="Encryption", multiline=True, pool_key=True, show_when=_VERIFIED, aliases=("ssl_root_cert", "tls_ca"),
        placeholder="-----BEGIN CERTIFICATE-----",
    )  # fmt: skip
    sslcert: str | None = field(
        None, description="Client certificate (PEM), followed by its chain.", group="Encryption", multiline=True,
        pool_key=True, show_when=_CERTIFICATE, aliases=("ssl_cert",), placeholder="-----BEGIN CERTIFICATE-----",
        advanced=True,
    )  # fmt: skip
    sslkey: Secret | None = field(
        None, description="Private key (PEM) of the client certificate.", group="Encryption", multiline=True, secret=True,
        show_when=_CERTIFICATE, aliases=("ssl_key",), placeholder="-----BEGIN PRIVATE KEY-----", advanced=True,
    )  # fmt: skip
    sslkey_password: Secret | None = field(
        None, description="Passphrase of the private key, when it is encrypted.", group="Encryption", secret=True,
        show_when=_CERTIFICATE, aliases=("sslpassword",), advanced=True,
    )  # fmt: skip
    sslnegotiation: Literal["postgres", "direct"] = field(
        "postgres", description="How TLS starts. `direct` saves a round trip and passes TLS routers; it needs PostgreSQL 17 "
        "and sslmode require or stricter.",
        group="Encryption", pool_key=True, advanced=True,
    )  # fmt: skip

    target_session_attrs: Literal["any", "read-only", "read-write", "primary", "standby", "prefer-standby"] = field(
        "any", description="Which of several hosts to use: any that answers, or only one in this role.",
        group="Session", pool_key=True, advanced=True,
    )  # fmt: skip
    application_name: str | None = field(
        None, description="Name of the sessions in pg_stat_activity. Default: hfagent, its version and the connector's name.",
        group="Session", pool_key=True, advanced=True, max_length=63,
    )  # fmt: skip
    search_path: str | None = field(
        None, description="Schemas in which your own statements look up unqualified names, separated by commas. Discovery and "
        "syncs always use full names.",
        group="Session", pool_key=True, advanced=True, max_length=1000, placeholder="sales, public",
    )  # fmt: skip
    lock_timeout_ms: int = field(
        5000, description="Milliseconds to wait for a lock before giving up, so that reads never queue behind a schema "
        "change; 0 = wait as long as the statement may run.",
        group="Timeouts", pool_key=True, advanced=True, ge=0, le=3_600_000,
    )  # fmt: skip
    special_values: SpecialValues = field(
        "null", description="What becomes of values that other systems cannot hold: infinite dates, years before 1 or after "
        "9999, NaN in a column of fixed precision. `string` delivers all dates and timestamps as text.",
        group="Session", advanced=True, pool_key=True,
        enum_titles={
            "null": "NULL, with a warning", "clamp": "The nearest date that fits, with a warning",
            "string": "Dates and timestamps as text", "error": "Stop with an error",
        },
    )  # fmt: skip
    pgbouncer_transaction_mode: bool = field(
        False, description="Set this when the address is a PgBouncer (or a similar pooler) in transaction mode: settings are "
        "then made inside each transaction.",
        group="Session", pool_key=True, advanced=True,
    )  # fmt: skip
    extra_params: dict[str, str] = field(
        {}, description=f"Further libpq parameters. Allowed: {', '.join(EXTRA_PARAMS)}.", group="Session", pool_key=True,
        advanced=True,
    )  # fmt: skip

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        return ",".join(validate_host(part.strip(), allow_directory=True) for part in value.split(","))

    @field_validator("database")
    @classmethod
    def _database(cls, value: str) -> str:
        # libpq would take such a text for a whole connection string, with a host of its own (pgAdmin CVE-2026-86862).
        if "=" in value or "://" in value:
            raise ValueError("a database name must not contain = or ://")
        return _printable(value, "database name")

    @field_validator("username")
    @classmethod
    def _username(cls, value: str) -> str:
        return _printable(value, "user name")

    @field_validator("application_name", "search_path")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        return None if value is None else _printable(value, "value")

    @field_validator("sslrootcert", "sslcert")
    @classmethod
    def _pem(cls, value: str | None) -> str | None:
        if value is None or not value.strip():
            return None
        if "-----BEGIN" not in value:
            raise ValueError(
                "expected the PEM text itself (it starts with -----BEGIN CERTIFICATE-----), not the name of a file"
            )
        return value

    @field_validator("extra_params")
    @classmethod
    def _extra(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if name not in EXTRA_PARAMS:
                known = name in cls.model_fields
                reason = _REFUSED.get(name) or (f"use the field `{name}`" if known else "it is not on the list")
                raise ValueError(f"{name!r} is refused: {reason}. Allowed: {', '.join(EXTRA_PARAMS)}")
            _printable(text, name)
        return value

    @model_validator(mode="after")
    def _together(self) -> PostgresConfig:
        if self.sslmode == "verify-ca" and not self.sslrootcert:
            raise ValueError("sslmode verify-ca needs sslrootcert: the certificates of the authorities to trust")
        if self.auth_mode == "certificate":
            if not self.sslcert or not self.sslkey:
                raise ValueError("auth_mode certificate needs sslcert and sslkey")
            if self.sslmode == "disable":
                raise ValueError("auth_mode certificate needs encryption: set sslmode to verify-full")
        if bool(self.sslcert) != bool(self.sslkey):
            raise ValueError("sslcert and sslkey belong together: give both or none")
        if self.sslnegotiation == "direct" and self.sslmode not in ("require", "verify-ca", "verify-full"):
            raise ValueError("sslnegotiation direct needs sslmode require, verify-ca or verify-full")
        return self

    def hosts(self) -> tuple[str, ...]:
        """The hosts to try, in order."""
        return tuple(self.host.split(","))

    @property
    def is_local(self) -> bool:
        """Whether all hosts are socket directories."""
        return all(host.startswith("/") for host in self.hosts())


def _printable(value: str, what: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError(f"a {what} cannot contain control characters")
    return value
