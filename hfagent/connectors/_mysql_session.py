"""One session with a MySQL or MariaDB server: a PyMySQL connection that keeps our limits and refuses a server's tricks.

Invariants:
- what `open_session` does ends by its deadline, however slowly the other side talks: an alarm shuts the socket down;
- CLIENT_LOCAL_FILES is never announced and a request for a local file is answered by closing the connection;
- the password leaves in clear text only through verified TLS (or a local socket) and only when `auth_plugin` says so;
- every session is read-only, in UTC, in utf8mb4 and in one sql_mode, so that the statement guard and the server read a
  statement alike; `pristine` is false as soon as anything but our own statements ran in it.

This is the only module that touches PyMySQL's private parts: `_read_packet`, `_get_server_information`, `_process_auth`,
`_execute_command`, `_request_authentication`, `set_character_set` (overridden or called) and `_sock`,
`_rfile`, `_next_seq_id`, `_current_timeout`, `_read_timeout`, `_auth_plugin_name`, `_result` (read or set).
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from pymysql import err
from pymysql.connections import Connection
from pymysql.constants import CLIENT, COMMAND
from pymysql.protocol import MysqlPacket, OKPacketWrapper

from hfagent.connectors import _mysql_rows
from hfagent.connectors._mysql_config import MySQLFamilyConfig
from hfagent.connectors._mysql_tls import tls_context, verifies
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, SourceError

__all__ = ["GROUP_CONCAT_BYTES", "Session", "open_session"]

GROUP_CONCAT_BYTES: Final = 1024 * 1024

_RESET_CONNECTION: Final = 0x1F
_MAX_GREETING: Final = 4096
_SAFE_METHODS: Final = frozenset(
    {"mysql_native_password", "caching_sha2_password", "sha256_password", "client_ed25519"}
)
"""They send a proof of the password, or the password under RSA or TLS; none sends it in clear text on a plain socket."""
_METHOD_NAMES: Final = {"ed25519": "client_ed25519"}
_LONGEST_CONNECT: Final = 120.0


_PyMySQL: Any = Connection
"""The stubs do not know the private parts."""


class Session(_PyMySQL):  # type: ignore[misc]
    """A connection with limits. Use by one thread at a time; `shut_down` may be called from any."""

    _result: Any
    _current_timeout: float | None

    def __init__(self, config: MySQLFamilyConfig, application_name: str) -> None:
        self.config = config
        self.greeted = False
        self.pristine = True
        self.read_only = False
        """Whether the server promised to refuse writes in this session."""
        self.setup: tuple[str, ...] = ()
        """The assignments that make the session ours; applied again by `restore`."""
        self.cancelled = False
        """Somebody asked for the running statement to be cancelled."""
        self.streaming = False
        """The rows of a result are under way: nothing else can be asked."""
        self.running = False
        """A statement whose rows stream is under way; set and read under `interrupting`."""
        self.interrupting = threading.Lock()
        """Held while a KILL QUERY for this session is on its way, so that it cannot hit the next statement."""
        self.fetched_rsa_key = False
        self._trusted = False
        context = tls_context(config)
        super().__init__(
            host=config.host or "localhost",
            port=config.port,
            user=config.username,
            # As bytes, because PyMySQL would encode a text as Latin-1.
            password=config.password.reveal().encode() if config.password else b"",
            database=config.database,
            charset="utf8mb4",
            autocommit=None,  # `prepare` sets it, with everything else in one round trip
            local_infile=False,
            defer_connect=True,
            program_name=application_name,
            ssl=context,
            ssl_disabled=context is None,
            server_public_key=self._public_key(config),
        )
        self._ssl_required = config.ssl_mode not in ("disabled", "preferred")
        if not self._ssl_required:
            self.client_flag &= ~CLIENT.SSL  # PyMySQL sets it again when the server offers TLS
        assert not self.client_flag & (CLIENT.LOCAL_FILES | CLIENT.MULTI_STATEMENTS)

    @staticmethod
    def _public_key(config: MySQLFamilyConfig) -> bytes | None:
        key = getattr(config, "server_public_key", None)
        return key.encode() if key else None

    # --- facts ---

    @property
    def version_text(self) -> str:
        """The server's version as it means it: MariaDB prefixes its own with `5.5.5-` for old replicas."""
        return str(self.server_version).removeprefix("5.5.5-")

    @property
    def version(self) -> tuple[int, int, int]:
        found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", self.version_text)
        return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (0, 0, 0)

    @property
    def is_mariadb(self) -> bool:
        return "mariadb" in self.version_text.lower() or str(self.server_version).startswith("5.5.5-1")

    @property
    def usable(self) -> bool:
        """Open, and not in the middle of a result."""
        return self.open and not self.streaming

    @property
    def in_transaction(self) -> bool:
        return bool(self.server_status & 1)

    # --- statements ---

    def run(self, sql: str, *, timeout: float | None = None) -> None:
        """Run one of our own statements that returns no rows."""
        self._command(COMMAND.COM_QUERY, sql, timeout)

    def rows(self, sql: str, *, timeout: float | None = None) -> list[tuple[Any, ...]]:
        """Run one of our own statements and return its few rows as texts, numbers and None (PyMySQL's conversions)."""
        self._trusted = True
        try:
            self.set_read_timeout(timeout)
            self.query(sql)
        except RuntimeError as exc:
            raise self._refuse_file() from exc
        finally:
            self._trusted = False
        result = self._result
        self._result = None
        return list(result.rows or ()) if result is not None else []

    def start(self, sql: str, *, trusted: bool, timeout: float | None) -> Any:
        """Send a statement and read the description of its result; the rows stay on the wire. Returns PyMySQL's result."""
        with self.interrupting:
            self.running = True
            self.cancelled = False
        self._trusted = trusted
        try:
            self.set_read_timeout(timeout)
            self.query(sql, unbuffered=True)
        except RuntimeError as exc:
            raise self._refuse_file() from exc
        finally:
            self._trusted = False
        result = self._result
        # From here on the result is ours. PyMySQL's object would read the rest of it when it is garbage-collected.
        self.streaming = bool(result.unbuffered_active)
        result.unbuffered_active, result.connection, self._result = False, None, None
        return result

    def receive(self, count: int) -> bytes:
        """At least one of the next `count` bytes of a result. Raises PyMySQL's 2013 when the connection ends."""
        file = self._rfile
        try:
            # Not readinto1: it reads from the socket even if there are buffered bytes, and hangs at the end of a result.
            data = bytes(file.read1(count)) if file is not None else b""
        except TimeoutError as exc:
            self._force_close()
            raise SourceError(
                f"no byte of the result came for {self.config.read_timeout_s} s", code="read.stalled",
                hint="look at the server's load and the network, or raise read_timeout_s",
            ) from exc  # fmt: skip
        except (OSError, ValueError) as exc:
            self._force_close()
            raise err.OperationalError(2013, f"Lost connection to MySQL server during query ({exc})") from exc
        if not data:
            self._force_close()
            raise err.OperationalError(2013, "Lost connection to MySQL server during query")
        return data

    def finish(self, terminal: bytes) -> None:
        """Account for the packet that ended a result. Raises PyMySQL's exception when it is an error."""
        self.streaming = False
        packet = MysqlPacket(terminal, self.encoding)
        if packet.is_error_packet():
            packet.raise_for_error()
        (status,) = struct.unpack_from("<H", terminal, 3)
        self.server_status = status
        if status & 8:  # more results follow: only CALL and multi-statements do that, and neither gets here
            self._force_close()

    def blocks(self, first_rows: int) -> Any:
        """The rows of the result that `start` opened, in blocks."""
        return _mysql_rows.blocks(self.receive, self._next_seq_id, first_rows=first_rows)

    # --- the session's state ---

    def prepare(self, assignments: tuple[str, ...], timeout: float) -> None:
        """Make the session ours, in one round trip; one by one on a server that does not know all of them."""
        self.setup = assignments
        try:
            self.run("SET " + ", ".join(assignments), timeout=timeout)
            self.read_only = True
        except err.MySQLError:
            if not self.open:
                raise
            self._prepare_singly(timeout)

    def _prepare_singly(self, timeout: float) -> None:
        refused = []
        for assignment in self.setup:
            try:
                self.run(f"SET {assignment}", timeout=timeout)
            except err.MySQLError:
                if not self.open or assignment.startswith("NAMES"):
                    raise
                refused.append(assignment)
        self.read_only = not any("_read_only" in assignment for assignment in refused)
        self.setup = tuple(a for a in self.setup if a not in refused)

    def restore(self, timeout: float) -> bool:
        """Bring a used session to its initial state; False when that is not possible and it must be discarded."""
        if not self.usable:
            return False
        if self.in_transaction:
            self.run("ROLLBACK", timeout=timeout)
        if self.pristine:
            return True
        self._command(_RESET_CONNECTION, b"", timeout)
        # The reset keeps the current database, so the set-up contains an assignment that fails when it is another one.
        database = "NULL" if self.config.database is None else self.escape(self.config.database)
        check = f"SESSION time_zone = IF(DATABASE() <=> {database}, '+00:00', 'the session is in another database')"
        self.run("SET " + ", ".join((*self.setup, check)), timeout=timeout)
        self.pristine = True
        return True

    def set_read_timeout(self, seconds: float | None) -> None:
        """Limit how long one read of the socket may take; None = no limit."""
        self._read_timeout = seconds
        sock = self._sock
        if sock is not None and self._current_timeout != seconds:
            sock.settimeout(seconds)
            self._current_timeout = seconds

    def discard(self) -> None:
        """Cut the connection and give its descriptor back; for the thread that uses it. Never raises."""
        self.shut_down()
        with suppress(OSError):
            self._force_close()

    @property
    def open_socket(self) -> Any:
        """The socket (an `ssl.SSLSocket` when the session is encrypted); None after the end."""
        return self._sock

    def shut_down(self) -> None:
        """Cut the connection, from any thread: whoever is blocked on it wakes up with an error. Never raises."""
        sock = self._sock
        if sock is not None:
            # The plain method: SSLSocket.shutdown takes the TLS state away from under the thread that is reading.
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _refuse_file(self) -> SourceError:
        """The server answered a statement by asking for a local file. Whatever we sent now would be taken for its content."""
        self.discard()
        return SourceError(
            f"{self.config.host or self.config.unix_socket}: the server asked for a file of this machine and got nothing",
            code="net.protocol",
            hint="this is how a hostile server steals files: check that the address really is your database",
        )

    # --- what PyMySQL does differently ---

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """Left to `prepare`, which saves a round trip."""

    def _command(self, command: int, text: str | bytes, timeout: float | None) -> None:
        self._trusted = True
        try:
            self.set_read_timeout(timeout)
            self._execute_command(command, text)
            packet = self._read_packet()
            if packet.is_load_local_packet():
                raise self._refuse_file()
            if not packet.is_ok_packet():
                self.discard()
                raise err.OperationalError(2014, "an answer that does not fit the question")
            self.server_status = OKPacketWrapper(packet).server_status
        finally:
            self._trusted = False

    def _execute_command(self, command: int, sql: str | bytes) -> None:
        if self.streaming:
            raise AgentError("the session is asked while the rows of another result are under way")
        if not self._trusted and command != COMMAND.COM_PING:
            self.pristine = False
        super()._execute_command(command, sql)

    def _read_packet(self, packet_type: Any = MysqlPacket) -> Any:
        if self.greeted:
            return super()._read_packet(packet_type)
        # The first packet, of whoever listens there. PyMySQL would wait for the 16 MB that random bytes may announce.
        header = self._read_bytes(4)
        length = int.from_bytes(header[:3], "little")
        if header[3] != 0 or not 1 < length <= _MAX_GREETING:
            raise _not_mysql(self.config)
        body = self._read_bytes(length)
        if body[0] not in (10, 0xFF):
            raise _not_mysql(self.config)
        self._next_seq_id = 1
        packet = packet_type(body, self.encoding)
        packet.check_error()
        return packet

    def _get_server_information(self) -> None:
        try:
            super()._get_server_information()
        except (IndexError, ValueError, struct.error) as exc:
            raise _not_mysql(self.config) from exc
        if not re.match(r"\d+\.", str(self.server_version)):
            raise _not_mysql(self.config)
        self.greeted = True
        if self._ssl_required and not self.server_capabilities & CLIENT.SSL:
            raise SourceError(
                f"ssl_mode is {self.config.ssl_mode}, but the server at {self.host}:{self.port} offers no TLS",
                code="tls.plaintext_refused",
                hint="switch TLS on at the server; without it only ssl_mode disabled or preferred can work",
            )
        wanted = self._wanted_method
        if wanted and wanted != "mysql_clear_password":
            self._auth_plugin_name = wanted
        elif self._auth_plugin_name not in _SAFE_METHODS:
            self._auth_plugin_name = "mysql_native_password"  # the server asks again for what the account really has

    def _request_authentication(self) -> None:
        # The password must not follow a plug-in's name that only the greeting of an unverified server suggests.
        super()._request_authentication()
        self.fetched_rsa_key = bool(self.server_public_key and not self._secure and not self._public_key(self.config))

    @property
    def _wanted_method(self) -> str | None:
        wanted = str(getattr(self.config, "auth_plugin", "auto"))
        return None if wanted == "auto" else _METHOD_NAMES.get(wanted, wanted)

    def _process_auth(self, plugin_name: bytes, auth_packet: Any, handler: Any = None) -> Any:
        """The server asks for another method: follow only where the password stays safe."""
        name = plugin_name.decode("ascii", "replace")
        wanted = self._wanted_method
        if wanted == "mysql_clear_password" == name:
            if not (self.config.unix_socket or (self._secure and verifies(self.config))):
                raise _unsupported(
                    name, "it sends the password in clear text, and the server's identity is not verified",
                    "set ssl_mode to verify_identity (with ssl_ca for a private authority)",
                )  # fmt: skip
        elif wanted is not None and name != wanted:
            raise _unsupported(name, f"auth_plugin allows {wanted} only", "set auth_plugin to auto")
        elif name == "mysql_clear_password":
            raise _unsupported(
                name, "it sends the password in clear text", "set auth_plugin to mysql_clear_password to allow it"
            )
        elif name not in _SAFE_METHODS:
            known = "mysql_native_password, caching_sha2_password, sha256_password and ed25519"
            raise _unsupported(name, "this agent does not have that method", f"have the account use one of {known}")
        try:
            return super()._process_auth(plugin_name, auth_packet, handler)
        except RuntimeError as exc:  # PyMySQL's way to say that PyNaCl is missing
            raise _unsupported(name, "it needs the package PyNaCl", "run pip install 'hfagent[mysql]'") from exc


def open_session(
    config: MySQLFamilyConfig,
    application_name: str,
    deadline: Deadline,
    dial: Callable[[Deadline], socket.socket],
) -> Session:
    """Dial, greet and sign in by `deadline`. Raises `AgentError`, PyMySQL's errors and `OSError`."""
    session = Session(config, application_name)
    sock = dial(deadline)
    expired = threading.Event()

    def give_up() -> None:
        expired.set()
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        session.shut_down()

    left = max(deadline.bounded(_LONGEST_CONNECT), 0.001)
    # The alarm cannot reach a TLS handshake (its socket belongs to nobody until it is done), but Python limits that as a whole.
    session._read_timeout = session._write_timeout = left
    alarm = threading.Timer(left, give_up)
    alarm.daemon = True
    alarm.start()
    try:
        session.connect(sock)
    except Exception as exc:
        sock.close()
        session.discard()
        if expired.is_set():
            raise _too_slow(config, session.greeted) from exc
        raise
    finally:
        alarm.cancel()
    if expired.is_set():
        session.discard()
        raise _too_slow(config, True)
    session._write_timeout = None  # TCP_USER_TIMEOUT notices when nobody takes our bytes
    return session


def _not_mysql(config: MySQLFamilyConfig) -> SourceError:
    where = config.unix_socket or f"{config.host}:{config.port}"
    return SourceError(
        f"whatever answers at {where} does not speak MySQL's protocol", code="net.protocol", stage="auth",
        hint="check host and port: 3306 is the usual one, 33060 belongs to another protocol",
    )  # fmt: skip


def _too_slow(config: MySQLFamilyConfig, greeted: bool) -> SourceError:
    where = config.unix_socket or f"{config.host}:{config.port}"
    did = "did not finish the sign-in" if greeted else "took the connection, but did not greet"
    return SourceError(
        f"the server at {where} {did} in time", code="timeout.connect",
        hint="check that it is a MySQL or MariaDB server and not overloaded, or raise connect_timeout_s",
    )  # fmt: skip


def _unsupported(method: str, reason: str, hint: str) -> AgentError:
    return SourceError(
        f"the server asks for the sign-in method {method!r}: {reason}", code="auth.method_unsupported", hint=hint
    )
