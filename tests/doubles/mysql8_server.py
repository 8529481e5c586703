"""The login of MySQL 8 on the wire, in front of DuckDB.

What it is for: MySQL 8 greets with `caching_sha2_password`, which MariaDB lacks, and no MySQL 8 server can be installed
where only Debian and PyPI are at hand. mysql-mimic speaks the protocol; this file adds that login, as the server does it
when its cache is cold: the password comes in full, through TLS or under the server's RSA key.

What it is not: MySQL. SQL is translated to DuckDB's, a transaction commits every statement at once, and there are no
procedures, engines or grants beyond "may write". Test types and SQL against MariaDB.

Runs in an environment of its own (`tests/fixtures/mysql8.py`), configured by a JSON file named on the command line:

    {"port": 1, "storage": "file", "certificate": "pem", "key": "pem",
     "accounts": {"user": {"password": "...", "read_only": false}}}
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import duckdb
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from mysql_mimic import MysqlServer, ResultColumn, Session
from mysql_mimic.auth import AuthInfo, AuthPlugin, Decision, Forbidden, IdentityProvider, Success, User
from mysql_mimic.constants import KillKind
from mysql_mimic.control import LocalControl
from mysql_mimic.errors import SQLSTATES, MysqlError
from mysql_mimic.types import ColumnType
from mysql_mimic.utils import nonce, xor
from sqlglot import exp


class Code(IntEnum):
    """Error numbers of MySQL that mysql-mimic does not know."""

    NO_SUCH_DATABASE = 1049
    NO_SUCH_COLUMN = 1054
    DUPLICATE_KEY = 1062
    SYNTAX = 1064
    OTHER = 1105
    COMMAND_DENIED = 1142
    NO_SUCH_TABLE = 1146
    INTERRUPTED = 1317


SQLSTATES.update(
    {
        Code.NO_SUCH_DATABASE: b"42000",
        Code.NO_SUCH_COLUMN: b"42S22",
        Code.DUPLICATE_KEY: b"23000",
        Code.SYNTAX: b"42000",
        Code.COMMAND_DENIED: b"42000",
        Code.NO_SUCH_TABLE: b"42S02",
        Code.INTERRUPTED: b"70100",
    }
)


class CachingSha2(AuthPlugin):
    """`caching_sha2_password`, always by full authentication: to a client the cache looks cold every time."""

    name = client_plugin_name = "caching_sha2_password"

    def __init__(self, accounts: dict[str, dict[str, Any]]) -> None:
        self._accounts = accounts
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    async def auth(self, auth_info: AuthInfo | None = None) -> AsyncIterator[Decision]:
        if auth_info and auth_info.handshake_plugin_name == self.name and auth_info.handshake_auth_data:
            challenge = auth_info.handshake_auth_data.rstrip(b"\0")
        else:
            challenge = nonce(20)
            auth_info = yield challenge + b"\0"
        scrambled = bool(auth_info.data)  # an empty answer stands for an empty password
        auth_info = yield b"\x04"  # perform full authentication
        if auth_info.data == b"\x02":  # no TLS, so the client asks for our key
            auth_info = yield self._public_key()
            password = self._decrypt(auth_info.data, challenge)
        else:
            password = auth_info.data.removesuffix(b"\0")
        account = self._accounts.get(auth_info.username)
        if account and password == account["password"].encode():
            yield Success(auth_info.username)
        else:
            using = "YES" if scrambled else "NO"
            yield Forbidden(f"Access denied for user '{auth_info.username}'@'localhost' (using password: {using})")

    def _public_key(self) -> bytes:
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def _decrypt(self, data: bytes, challenge: bytes) -> bytes:
        oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA1()), algorithm=hashes.SHA1(), label=None)
        try:
            masked = self._key.decrypt(data, oaep)
        except ValueError:
            return b""
        return xor(masked, challenge * (len(masked) // len(challenge) + 1)).removesuffix(b"\0")


class Accounts(IdentityProvider):
    def __init__(self, accounts: dict[str, dict[str, Any]]) -> None:
        self._plugin = CachingSha2(accounts)

    def get_plugins(self) -> list[AuthPlugin]:
        return [self._plugin]

    async def get_user(self, username: str) -> User:
        # Unknown names as well: a server must not tell a wrong name from a wrong password.
        return User(name=username, auth_plugin=self._plugin.name)


class Sessions(LocalControl):
    async def kill(self, connection_id: int, kind: KillKind = KillKind.CONNECTION) -> None:
        # mysql-mimic would end an idle session by KILL QUERY. MySQL does nothing then, and cancels that come a moment
        # too late are everyday life.
        connection = self._connections.get(connection_id)
        if connection and (kind is KillKind.CONNECTION or connection.session.busy):
            connection.kill(kind)


class DuckSession(Session):
    """One client's session: a DuckDB cursor, which has its own current schema and can be interrupted."""

    def __init__(self, database: duckdb.DuckDBPyConnection, accounts: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self._cursor = database.cursor()
        self._accounts = accounts
        self.busy = False
        # First, because mysql-mimic evaluates a SELECT without FROM itself, and does not know this function.
        self.middlewares.insert(0, self._sleep)

    async def init(self, connection: Any) -> None:
        await super().init(connection)
        if self.username is None:
            # mysql-mimic goes on to the commands after it refused a login. MySQL hangs up.
            connection.stream.writer.close()
        elif self.database:
            await self.use(self.database)

    async def close(self) -> None:
        await super().close()
        self._cursor.close()

    async def use(self, database: str) -> None:
        found = self._cursor.execute("SELECT 1 FROM duckdb_schemas() WHERE schema_name = ?", [database]).fetchone()
        if not found:
            raise MysqlError(f"Unknown database '{database}'", Code.NO_SUCH_DATABASE)
        self._cursor.execute(f"USE {exp.to_identifier(database, quoted=True).sql('duckdb')}")
        await super().use(database)

    async def query(self, expression: exp.Expression, sql: str, attrs: dict[str, str]) -> Any:
        account = self._accounts[str(self.username)]
        if account.get("read_only") and not isinstance(expression, exp.Query):
            command = sql.split(None, 1)[0].upper()
            raise MysqlError(f"{command} command denied to user '{self.username}'@'localhost'", Code.COMMAND_DENIED)
        if isinstance(expression, exp.Create | exp.Drop) and expression.args.get("kind") == "DATABASE":
            expression.set("kind", "SCHEMA")
            expression.set("cascade", isinstance(expression, exp.Drop))
        return await self._interruptible(asyncio.to_thread(self._execute, expression.sql("duckdb")))

    async def schema(self) -> Any:
        found = self._cursor.execute("SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns()")
        schema: dict[str, dict[str, dict[str, str]]] = {}
        for database, table, column, kind in found.fetchall():
            schema.setdefault(database, {}).setdefault(table, {})[column] = _mysql_type(kind)
        return schema

    def _execute(self, sql: str) -> tuple[list[tuple[Any, ...]], list[ResultColumn]]:
        try:
            self._cursor.execute(sql)
            rows = self._cursor.fetchall()
        except duckdb.Error as error:
            raise _translate(error) from error
        description = self._cursor.description or []
        if not any(kind in sql[:10].upper() for kind in ("SELECT", "WITH", "VALUES", "FROM", "(")):
            return [], []  # DuckDB returns a count of rows for DML, where MySQL returns none
        return rows, [ResultColumn(name, _column_type(str(kind))) for name, kind, *_ in description]

    async def _sleep(self, query: Any) -> Any:
        sleep = query.expression.find(exp.Anonymous)
        if sleep is None or sleep.name.upper() != "SLEEP":
            return await query.next()
        await self._interruptible(asyncio.sleep(float(sleep.expressions[0].name)))
        return [(0,)], ["SLEEP"]

    async def _interruptible(self, work: Any) -> Any:
        self.busy = True
        try:
            return await work
        except asyncio.CancelledError:
            self._cursor.interrupt()
            if self.connection._kill is not KillKind.QUERY:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            raise MysqlError("Query execution was interrupted", Code.INTERRUPTED) from None
        finally:
            self.busy = False


def _translate(error: duckdb.Error) -> MysqlError:
    first_line = str(error).splitlines()[0]
    if isinstance(error, duckdb.CatalogException) and "does not exist" in first_line:
        return MysqlError(f"Table doesn't exist: {first_line}", Code.NO_SUCH_TABLE)
    if isinstance(error, duckdb.BinderException) and "column" in first_line:
        return MysqlError(f"Unknown column: {first_line}", Code.NO_SUCH_COLUMN)
    if isinstance(error, duckdb.ConstraintException) and "uplicate key" in first_line:
        return MysqlError(f"Duplicate entry: {first_line}", Code.DUPLICATE_KEY)
    if isinstance(error, duckdb.ParserException):
        return MysqlError(f"You have an error in your SQL syntax: {first_line}", Code.SYNTAX)
    return MysqlError(first_line, Code.OTHER)


# DuckDB's type: the type in a result set, the type in information_schema.
_TYPES = {
    "BOOLEAN": (ColumnType.TINY, "tinyint(1)"),
    "TINYINT": (ColumnType.TINY, "tinyint"),
    "SMALLINT": (ColumnType.SHORT, "smallint"),
    "INTEGER": (ColumnType.LONG, "int"),
    "BIGINT": (ColumnType.LONGLONG, "bigint"),
    "HUGEINT": (ColumnType.NEWDECIMAL, "decimal(38,0)"),
    "FLOAT": (ColumnType.FLOAT, "float"),
    "DOUBLE": (ColumnType.DOUBLE, "double"),
    "DATE": (ColumnType.DATE, "date"),
    "TIME": (ColumnType.TIME, "time(6)"),
    "TIMESTAMP": (ColumnType.DATETIME, "datetime(6)"),
    "TIMESTAMP WITH TIME ZONE": (ColumnType.TIMESTAMP, "timestamp(6)"),
    "BLOB": (ColumnType.BLOB, "longblob"),
    "JSON": (ColumnType.JSON, "json"),
}


def _column_type(kind: str) -> ColumnType:
    if kind.startswith("DECIMAL"):
        return ColumnType.NEWDECIMAL
    return _TYPES.get(kind, (ColumnType.VAR_STRING, ""))[0]


def _mysql_type(kind: str) -> str:
    if kind.startswith("DECIMAL"):
        return kind.lower()
    return _TYPES.get(kind, (None, "varchar(255)"))[1]


class Loop(asyncio.SelectorEventLoop):
    """asyncio, with the bytes that came before their time.

    A client may send its TLS hello in the same breath as the request for TLS. asyncio leaves such bytes in the buffer of
    the plain stream (CPython gh-142352), so that on a busy machine a handshake sometimes waits for ever.
    """

    async def start_tls(self, transport: Any, protocol: Any, sslcontext: Any, **options: Any) -> Any:
        buffer = protocol._stream_reader._buffer
        early = bytes(buffer)
        buffer.clear()
        # Runs after the transport got its TLS protocol, and before that protocol begins the handshake.
        self.call_soon(lambda: transport.get_protocol()._incoming.write(early))
        return await super().start_tls(transport, protocol, sslcontext, **options)


async def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    accounts = settings["accounts"]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(settings["certificate"], settings["key"])
    database = duckdb.connect(settings["storage"])
    server = MysqlServer(
        session_factory=lambda: DuckSession(database, accounts),
        control=Sessions(),
        identity_provider=Accounts(accounts),
        ssl=tls,
    )
    await server.serve_forever(host="127.0.0.1", port=settings["port"])


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
