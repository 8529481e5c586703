"""MariaDB 10.3 and later: what differs from MySQL.

Time limits hold for every statement (`max_statement_time`, seconds with fractions), accounts may sign in with ed25519,
JSON is text with a check, and a server is known by its server_uid or its replication domain instead of a server_uuid.
Most of that is decided by what the session meets, not by the type chosen: here is what the form and the test say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfagent.connectors._mysql_config import MySQLFamilyConfig
from hfagent.connectors.mysql import MySQL
from hfagent.sdk.config import field

if TYPE_CHECKING:
    from hfagent.connectors._mysql_session import Session

__all__ = ["MariaDB", "MariaDBConfig"]


class MariaDBConfig(MySQLFamilyConfig):
    """Connect to a MariaDB server."""

    example: ClassVar[dict[str, Any]] = {
        "host": "db.example.com",
        "port": 3306,
        "database": "sales",
        "username": "honeyframe_ro",
        "password": "change-me",
        "ssl_mode": "required",
    }

    auth_plugin: Literal["auto", "mysql_native_password", "ed25519", "mysql_clear_password"] = field(
        "auto", description="How the account signs in. auto follows the server, except to methods that show it the password in "
        "clear text; mysql_clear_password (PAM, LDAP) must be chosen and needs a verified TLS connection.",
        group="Sign-in", advanced=True, pool_key=True,
    )  # fmt: skip
    max_statement_time_s: float | None = field(
        None, description="Seconds a statement of yours may run on the server, fractions allowed; 0 = no limit. Default: "
        "query_timeout_s.", ge=0, le=86_400, group="Timeouts", advanced=True, pool_key=True,
    )  # fmt: skip


class MariaDB(MySQL):
    """The `mariadb` type."""

    title = "MariaDB"
    description = "MariaDB databases, on your own servers or as a service"
    aliases = ("rds_mariadb", "skysql")
    Config = MariaDBConfig
    product = "MariaDB"

    def time_limit(self, session: Session) -> str:
        limit = getattr(self.config, "max_statement_time_s", None)
        if session.is_mariadb and limit is not None:
            return f"SESSION max_statement_time = {limit:f}"
        return super().time_limit(session)
