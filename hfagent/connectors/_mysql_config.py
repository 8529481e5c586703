"""Configuration shared by the `mysql` and `mariadb` types: everything but the statement limit and the sign-in methods.

What is absent on purpose: `local_infile`, `init_command`, option files, client flags, multi-statements, plug-in
directories. They are how a hostile server or a shared configuration reads the agent's files or runs statements, so they
are unknown fields here (`config.unknown_field`) and switched off on the wire.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import field_validator

from hfagent.foundation.errors import ConfigError
from hfagent.sdk.config import ConnectorConfig, NetworkFields, PoolFields, QueryFields, field
from hfagent.sdk.network import validate_host
from hfagent.sdk.secret import Secret

__all__ = ["MySQLFamilyConfig", "SslMode", "ZeroDate"]

SslMode = Literal["disabled", "preferred", "required", "verify_ca", "verify_identity"]
ZeroDate = Literal["null", "text", "error"]

_VERIFYING = ["verify_ca", "verify_identity"]
_ENCRYPTING = ["preferred", "required", *_VERIFYING]
_SSL_SYNONYMS = {
    "disable": "disabled", "allow": "preferred", "prefer": "preferred", "require": "required", "verify_full": "verify_identity",
}  # fmt: skip
"""PostgreSQL's words for the same things; people move between the two."""


class _ConnectionFields(ConnectorConfig):
    """Where the server is, who signs in, how the way is protected, how values are read."""

    host: str | None = field(
        None, description="Host name or IP address of the server. Leave empty only when unix_socket is set.", endpoint=True,
        aliases=("hostname", "server"), placeholder="db.example.com", max_length=255,
    )  # fmt: skip
    port: int = field(3306, description="TCP port of the server.", ge=1, le=65535, endpoint=True)
    unix_socket: str | None = field(
        None, description="Path of the server's socket file on the agent's machine, instead of host and port. The agent's policy "
        "must allow the directory.", endpoint=True, agent_path=True, advanced=True, aliases=("socket",),
        placeholder="/run/mysqld/mysqld.sock", max_length=107,
    )  # fmt: skip
    database: str | None = field(
        None, description="Database that unqualified table names refer to. Empty: none; all databases the account can see are "
        "offered, output_schemas narrows them.", aliases=("db", "dbname", "schema"), placeholder="sales", max_length=64,
        pool_key=True,
    )  # fmt: skip
    username: str = field(
        description="Account to sign in with; it needs SELECT, nothing more.", aliases=("user", "login"), min_length=1,
        max_length=128, placeholder="hfagent_ro", pool_key=True,
    )  # fmt: skip
    password: Secret | None = field(
        None, description="Password of the account. Stored in the vault.", secret=True, aliases=("passwd",)
    )

    ssl_mode: SslMode = field(
        "preferred", description="How the connection is protected. preferred encrypts when the server offers it; required "
        "insists; verify_ca also checks who signed the server's certificate; verify_identity also that it is for this host.",
        group="Encryption", aliases=("sslmode",), pool_key=True, enum_titles={
            "disabled": "No encryption", "preferred": "Encrypt if offered (identity not verified)",
            "required": "Always encrypt (identity not verified)", "verify_ca": "Encrypt and verify the authority",
            "verify_identity": "Encrypt and verify authority and host name",
        },
    )  # fmt: skip
    ssl_ca: str | None = field(
        None, description="PEM text of the authority that signed the server's certificate. With it the certificate is verified "
        "in every encrypting mode; verify_ca and verify_identity without it trust the system's authorities.", group="Encryption",
        multiline=True, show_when={"ssl_mode": _ENCRYPTING}, aliases=("tls_ca", "sslrootcert"), pool_key=True,
    )  # fmt: skip
    ssl_cert: str | None = field(
        None, description="The client's certificate as PEM text, for accounts that REQUIRE X509.", group="Encryption",
        multiline=True, advanced=True, show_when={"ssl_mode": _ENCRYPTING}, aliases=("sslcert",), pool_key=True,
    )  # fmt: skip
    ssl_key: Secret | None = field(
        None, description="PEM text of the client certificate's private key.", group="Encryption", multiline=True, secret=True,
        advanced=True, show_when={"ssl_mode": _ENCRYPTING}, aliases=("sslkey",),
    )  # fmt: skip
    ssl_key_password: Secret | None = field(
        None, description="Passphrase of the private key, when it has one.", group="Encryption", secret=True, advanced=True,
        show_when={"ssl_mode": _ENCRYPTING}, aliases=("sslkey_password",),
    )  # fmt: skip
    tls_min_version: Literal["1.2", "1.3"] = field(
        "1.2", description="Oldest TLS version to accept.", group="Encryption", advanced=True,
        show_when={"ssl_mode": _ENCRYPTING}, pool_key=True,
    )  # fmt: skip

    zero_date: ZeroDate = field(
        "null", description="What becomes of dates that no calendar has (0000-00-00, 2024-00-10). null: they become NULL and "
        "counted in a warning; error: the read fails; text: all date and datetime columns are read as text, as stored.",
        group="Values", pool_key=True,
    )  # fmt: skip
    tinyint1_as_bool: bool = field(
        True, description="Read TINYINT(1) as true and false. Switch it off when such columns hold numbers.", group="Values",
        pool_key=True,
    )  # fmt: skip

    read_timeout_s: int = field(
        300, description="Seconds without a byte amid a result before the read is given up as stalled.", ge=1, le=86400,
        group="Timeouts", advanced=True, pool_key=True,
    )  # fmt: skip
    net_write_timeout_s: int = field(
        600, description="Seconds the server waits for the agent to take more rows before it hangs up.", ge=10, le=86400,
        group="Timeouts", advanced=True, pool_key=True,
    )  # fmt: skip

    @field_validator("ssl_mode", mode="before")
    @classmethod
    def _known_spellings(cls, value: Any) -> Any:
        """Accept REQUIRED, verify-ca, verify-full and the like."""
        if not isinstance(value, str):
            return value
        word = value.strip().lower().replace("-", "_")
        return _SSL_SYNONYMS.get(word, word)

    @field_validator("host", "unix_socket", "database", mode="after")
    @classmethod
    def _clean_text(cls, value: str | None) -> str | None:
        """Empty means absent (forms send empty texts); a NUL would end a field early on the wire."""
        if value is not None and "\0" in value:
            raise ValueError("a NUL character is not possible here")
        return value or None

    @field_validator("host", mode="after")
    @classmethod
    def _known_host(cls, value: str | None) -> str | None:
        return validate_host(value) if value else None

    @field_validator("ssl_ca", "ssl_cert", mode="after")
    @classmethod
    def _is_certificate(cls, value: str | None) -> str | None:
        if value and value.strip() and "-----BEGIN " not in value:
            raise ValueError(
                "expected the PEM text itself (it starts with -----BEGIN CERTIFICATE-----), not the name of a file"
            )
        return value if value and value.strip() else None

    @field_validator("username", mode="after")
    @classmethod
    def _clean_username(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("a NUL character is not possible here")
        return value


class MySQLFamilyConfig(PoolFields, QueryFields, NetworkFields, _ConnectionFields):
    """Base of the configurations of `mysql` and `mariadb`."""

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Self:
        """Validate, then apply the rules that need more than one field."""
        config = super().parse(raw)
        if config.host is None and config.unix_socket is None:
            raise ConfigError(
                "the field 'host' is required", code="config.missing_field", field="host",
                hint="host: name or IP address of the server (or give unix_socket, the path of a local socket)",
            )  # fmt: skip
        if config.host is not None and config.unix_socket is not None:
            raise ConfigError(
                "host and unix_socket exclude each other", field="unix_socket", hint="clear one of the two"
            )
        if (config.ssl_cert is None) != (config.ssl_key is None):
            missing = "ssl_key" if config.ssl_key is None else "ssl_cert"
            raise ConfigError(
                f"{missing}: a client certificate needs both ssl_cert and ssl_key",
                field=missing,
                hint="give both or neither",
            )
        if config.ssl_mode == "disabled" and config.ssl_ca:
            raise ConfigError(
                "ssl_mode: an authority (ssl_ca) is given, but encryption is disabled", field="ssl_mode",
                hint="choose verify_ca or verify_identity, or clear ssl_ca",
            )  # fmt: skip
        return config
