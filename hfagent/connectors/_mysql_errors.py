"""What the error numbers of MySQL and MariaDB mean, those of the client library included.

Numbers below 2000 and above 3000 come from the server, 2000-2999 from the driver. Where the two servers use the same
number for different things, the text decides nothing here: such numbers stay with the fallback.
"""

from __future__ import annotations

import re
from typing import Any, Final

from hfagent.sdk.errormap import ErrorMap, Rule

__all__ = ["ERRORS", "facts_of"]

_GRANT = "ask an administrator to run: GRANT SELECT ON {target} TO {account};"
_NOT_HERE = (
    "the server does not let this machine in: check the host part of the account ('user'@'host'), or run FLUSH HOSTS"
)
_LIMIT = (
    "lower pool_size and max_overflow of this connector, or raise max_connections / MAX_USER_CONNECTIONS on the server"
)
_PASSWORD = "check username and password, and that the account exists for this machine ('user'@'host')"
_AGAIN = "it can be repeated"
_METHOD = "choose another auth_plugin, or have the account use one of those"

ERRORS: Final = ErrorMap(
    exact={
        # signing in
        1045: Rule("auth.invalid_credentials", _PASSWORD),
        1698: Rule("auth.invalid_credentials", _PASSWORD),
        1129: Rule("auth.not_permitted_from_host", _NOT_HERE),
        1130: Rule("auth.not_permitted_from_host", _NOT_HERE),
        1251: Rule("auth.method_unsupported", _METHOD),
        1275: Rule("auth.method_unsupported", _METHOD),
        1524: Rule("auth.method_unsupported", _METHOD),
        2049: Rule("auth.method_unsupported", _METHOD),
        2058: Rule("auth.method_unsupported", _METHOD),
        2059: Rule("auth.method_unsupported", _METHOD),
        2061: Rule("auth.method_unsupported", _METHOD),
        1820: Rule("auth.expired", "set a new password with ALTER USER and enter it here"),
        1862: Rule("auth.expired", "set a new password with ALTER USER and enter it here"),
        3118: Rule("auth.locked", "an administrator can unlock it: ALTER USER {account} ACCOUNT UNLOCK;"),
        4151: Rule("auth.locked", "an administrator can unlock it: ALTER USER {account} ACCOUNT UNLOCK;"),
        3955: Rule("auth.locked", "too many failed attempts: wait, or ALTER USER {account} ACCOUNT UNLOCK;"),
        3159: Rule("tls.plaintext_refused", "set ssl_mode to required or stronger"),
        # rights and names
        1044: Rule("permission.denied", _GRANT),
        1142: Rule("permission.denied", _GRANT),
        1143: Rule("permission.denied", _GRANT),
        1227: Rule("permission.denied", "the statement needs a privilege that reading data does not need"),
        1345: Rule("permission.denied", "a plan needs SELECT on the tables below the view, and SHOW VIEW"),
        1370: Rule("permission.denied", "ask an administrator for EXECUTE on the routine"),
        1049: Rule("namespace.not_found", "check the spelling of `database`; names of databases may be case-sensitive"),
        1051: Rule("model.not_found", "check the spelling; names of tables may be case-sensitive"),
        1109: Rule("model.not_found", "check the spelling; names of tables may be case-sensitive"),
        1146: Rule("model.not_found", "check the spelling; names of tables may be case-sensitive"),
        1356: Rule(
            "model.not_found", "the view stands on something that is gone, or that its definer may no longer read"
        ),
        1054: Rule("column.not_found", "check the spelling of the column"),
        1046: Rule("query.failed", "write database.table, or set `database` in the connector"),
        # capacity
        1040: Rule("capacity.too_many_connections", _LIMIT),
        1203: Rule("capacity.too_many_connections", _LIMIT),
        1226: Rule("capacity.too_many_connections", _LIMIT),
        1021: Rule("capacity.overloaded", "the server's disk is full"),
        1037: Rule("capacity.overloaded", _AGAIN),
        1038: Rule("capacity.overloaded", "the server's sort_buffer_size is too small for this statement"),
        1041: Rule("capacity.overloaded", _AGAIN),
        1114: Rule("capacity.overloaded", "the server has no room for the temporary table of this statement"),
        1135: Rule("capacity.overloaded", _AGAIN),
        # time, locks, transactions
        3024: Rule("timeout.statement", "narrow the statement, or raise query_timeout_s"),
        1969: Rule("timeout.statement", "narrow the statement, or raise query_timeout_s"),
        1205: Rule("timeout.lock", _AGAIN),
        3572: Rule("timeout.lock", _AGAIN),
        1213: Rule("transient.deadlock", _AGAIN),
        1020: Rule("transient.serialization", _AGAIN),
        1412: Rule("transient.serialization", "the table was altered meanwhile; discover the schema and repeat"),
        1053: Rule("transient.failover", _AGAIN),
        1077: Rule("transient.failover", _AGAIN),
        1079: Rule("transient.failover", _AGAIN),
        1927: Rule("transient.failover", "somebody ended the session on the server; " + _AGAIN),
        3169: Rule("transient.failover", "the session was ended on the server; " + _AGAIN),
        1317: Rule("transient.backend", "somebody stopped the statement on the server (KILL QUERY)"),
        # writing, syntax
        1290: Rule("guard.write_blocked", "only reading statements are allowed"),
        1792: Rule("guard.write_blocked", "only reading statements are allowed"),
        1836: Rule("guard.write_blocked", "only reading statements are allowed"),
        1064: Rule(
            "query.syntax",
            "the server's dialect differs from the statement; the text near the mistake is in the message",
        ),
        1149: Rule("query.syntax", "the server's dialect differs from the statement"),
        1065: Rule("query.syntax", "write a statement"),
        1153: Rule("read.limit_exceeded", "a row or statement is larger than the server's max_allowed_packet"),
        1034: Rule("read.corrupt", "the server's own table needs repair (CHECK TABLE)"),
        1194: Rule("read.corrupt", "the server's own table needs repair (CHECK TABLE)"),
        1195: Rule("read.corrupt", "the server's own table needs repair (CHECK TABLE)"),
        1526: Rule("query.failed", None),
        # the connection
        1042: Rule("net.dns", "the server could not resolve this machine's name"),
        1043: Rule(
            "net.protocol", "something between here and the server changes the traffic, or it is no MySQL server"
        ),
        1156: Rule("net.protocol", "something between here and the server changes the traffic"),
        1158: Rule("net.reset", _AGAIN),
        1159: Rule("net.reset", _AGAIN),
        1160: Rule("net.reset", _AGAIN),
        1161: Rule("net.reset", _AGAIN),
        1152: Rule("net.reset", _AGAIN),
        1184: Rule("net.reset", _AGAIN),
        4031: Rule("net.reset", "the server closed the idle session; " + _AGAIN),
        2002: Rule("net.refused", "check that the server runs and listens there"),
        2003: Rule("net.refused", "check host and port, and that the server listens there"),
        2005: Rule("net.dns", "check the spelling of `host`"),
        2006: Rule("net.reset", _AGAIN),
        2013: Rule("net.reset", _AGAIN),
        2055: Rule("net.reset", _AGAIN),
        2014: Rule("internal.driver", None),
        2026: Rule("tls.version", "check ssl_mode, and that the server offers TLS 1.2 or newer"),
        2027: Rule("net.protocol", "check that the port belongs to a MySQL or MariaDB server"),
    },
    prefixes={},
    fallback=Rule("query.failed", None),
    key_name="number",
)

_ACCOUNT = re.compile(r"for user (?P<account>'[^']*'@'[^']*')|to user (?P<other>'[^']*'@'[^']*')")
_TABLE = re.compile(r"for table (?P<table>`(?:[^`]|``)+`\.`(?:[^`]|``)+`|'[^']+')|in table '(?P<short>[^']+)'")
_DATABASE = re.compile(r"to database '(?P<database>[^']*)'")


def facts_of(text: str, database: str | None, username: str) -> dict[str, Any]:
    """What a hint can say about an error text: the account as the server knows it, and what it may not read."""
    facts: dict[str, Any] = {"account": f"'{username}'@'%'", "target": "<database>.*"}
    if match := _ACCOUNT.search(text):
        facts["account"] = match["account"] or match["other"]
    if match := _DATABASE.search(text):
        facts["target"] = "`" + match["database"].replace("`", "``") + "`.*"
    elif match := _TABLE.search(text):
        name = match["table"] or f"'{match['short']}'"
        if name.startswith("'"):
            name = "`" + name.strip("'").replace("`", "``") + "`"
            name = f"`{database}`.{name}" if database else f"<database>.{name}"
        facts["target"] = name
    return facts
