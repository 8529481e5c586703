"""The `mysql` connector: the conformance suite (against MariaDB), MySQL 8's login (against a double), hostile servers.

No MySQL server is at hand where only Debian and PyPI are, so what MySQL alone does is tested piece by piece: its login
against `mysql8_server`, its statements as texts, its error numbers against the table.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest
from pymysql.constants import CLIENT

from hfagent.connectors import _mysql_types as types
from hfagent.connectors._mysql_checks import Grants, safety
from hfagent.connectors._mysql_errors import ERRORS
from hfagent.connectors._mysql_tls import tls_context
from hfagent.connectors.mariadb import MariaDBConfig
from hfagent.connectors.mysql import MySQL, MySQLConfig
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import CODES, AgentError, ConfigError
from hfagent.model.data_type import DataType
from hfagent.model.stream import Column, Stream
from hfagent.sdk.probe import Stage
from hfagent.sdk.reading import Bound, ReadRequest, SchemaRequest, Statement
from tests.connectors.conformance import read_all, run_test
from tests.connectors.mariadb_source import MariadbConformance
from tests.connectors.source import make
from tests.fixtures.canary import assert_no_canary, new_canary
from tests.fixtures.mariadb import MariadbServer
from tests.fixtures.mysql8 import Mysql8Database, Mysql8Server
from tests.fixtures.proxy import FaultProxy

CONFIG = {"host": "127.0.0.1", "username": "u", "password": "a-password"}


class TestMysqlOnMariadb(MariadbConformance):
    """People connect to MariaDB with the type `mysql`, and it must work as well."""

    type_name = "mysql"


def mysql(config: dict[str, Any], **changes: Any) -> MySQL:
    made = make(MySQL, config | changes)
    assert isinstance(made, MySQL)
    return made


def test_mariadb_behind_the_type_mysql_is_told(mariadb_server: MariadbServer) -> None:
    config = {
        "host": mariadb_server.host,
        "port": mariadb_server.port,
        "username": "hf",
        "password": mariadb_server.password,
    }
    report = run_test(mysql(config), "quick")
    server = next(s for s in report.stages if s.stage == "server")
    assert (report.ok, server.status) == (True, "warning")
    assert "mariadb" in (server.hint or "")


# --- MySQL 8 ---


@pytest.fixture
def mysql8(mysql8_database: Mysql8Database) -> dict[str, Any]:
    server = mysql8_database.server
    config = {"host": server.host, "port": server.port, "database": mysql8_database.name}
    return config | {"username": "hf_ro", "password": server.passwords["hf_ro"]}


@pytest.mark.parametrize("ssl_mode", ["disabled", "preferred", "required", "verify_identity"])
@pytest.mark.parametrize("auth_plugin", ["auto", "caching_sha2_password"])
def test_caching_sha2(mysql8: dict[str, Any], mysql8_database: Mysql8Database, ssl_mode: str, auth_plugin: str) -> None:
    """Full authentication: by the server's RSA key without TLS, through the tunnel with it."""
    mysql8_database.execute("CREATE TABLE t (id INT, name VARCHAR(20))")
    mysql8_database.execute("INSERT INTO t VALUES (7, 'sieben')")
    authority = {"ssl_ca": mysql8_database.server.ca_pem.read_text()} if ssl_mode == "verify_identity" else {}
    connector = mysql(mysql8, ssl_mode=ssl_mode, auth_plugin=auth_plugin, **authority)
    session = connector.connect(Deadline(10))
    try:
        assert not session.is_mariadb
        assert session.fetched_rsa_key is (ssl_mode == "disabled")
        text = "SELECT id, name FROM t WHERE id = %s"
        with connector.execute(session, Statement(text, (7,))) as reader:
            assert read_all(reader).to_pylist() == [{"id": 7, "name": "sieben"}]
    finally:
        connector.close(session)


@pytest.mark.parametrize("ssl_mode", ["disabled", "required"])
def test_caching_sha2_wrong_password(mysql8: dict[str, Any], ssl_mode: str) -> None:
    canary = new_canary()
    with pytest.raises(AgentError) as caught:
        mysql(mysql8, password=canary, ssl_mode=ssl_mode).connect(Deadline(10))
    assert (caught.value.code, (caught.value.native or {}).get("number")) == ("auth.invalid_credentials", 1045)
    assert_no_canary([str(caught.value.to_data())], [canary])


def test_a_pinned_key_that_is_not_the_servers(mysql8: dict[str, Any]) -> None:
    """Without TLS the password goes out under the pinned key only, so another server cannot read it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(AgentError) as caught:
        mysql(mysql8, ssl_mode="disabled", server_public_key=pem).connect(Deadline(10))
    assert caught.value.code == "auth.invalid_credentials"


def test_another_method_than_the_chosen_one_is_refused(mysql8: dict[str, Any]) -> None:
    with pytest.raises(AgentError) as caught:
        mysql(mysql8, auth_plugin="sha256_password").connect(Deadline(10))
    assert caught.value.code == "auth.method_unsupported"


# --- hostile and broken servers ---

_CAPABILITIES = 0xFFFFFFFF & ~(CLIENT.SSL | CLIENT.COMPRESS | 1 << 24 | 1 << 26)
_OK = b"\x00\x00\x00\x02\x00\x00\x00"


class Rogue:
    """A server that speaks just enough to log anybody in, and then does what the test wants. Keeps all it hears."""

    def __init__(
        self, behave: Callable[[Rogue, socket.socket, int, bytes], None], plugin: bytes = b"mysql_native_password"
    ) -> None:
        self.heard = b""
        self.flags: list[int] = []
        self.file = b""
        self._behave = behave
        self._plugin = plugin
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._clients: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in self._clients:
            client.close()
        for thread in (self._thread, *self._threads):
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._clients.append(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        greeting = b"\x0a8.0.36\0" + struct.pack("<I", 7) + b"A" * 8 + b"\0" + struct.pack("<H", _CAPABILITIES & 0xFFFF)
        greeting += (
            b"\x21"
            + struct.pack("<HH", 2, _CAPABILITIES >> 16)
            + b"\x15"
            + b"\0" * 10
            + b"B" * 12
            + b"\0"
            + self._plugin
            + b"\0"
        )
        try:
            self.send(client, 0, greeting)
            sequence, login = self.read(client)
            self.flags.append(struct.unpack("<I", login[:4])[0])
            self._behave(self, client, sequence, login)
        except OSError:
            pass  # the client hung up, which is what most tests want

    def send(self, client: socket.socket, sequence: int, payload: bytes) -> None:
        client.sendall(struct.pack("<I", len(payload))[:3] + bytes([sequence]) + payload)

    def read(self, client: socket.socket) -> tuple[int, bytes]:
        head = self._exactly(client, 4)
        payload = self._exactly(client, int.from_bytes(head[:3], "little"))
        self.heard += head + payload
        return head[3], payload

    def _exactly(self, client: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = client.recv(count - len(data))
            if not chunk:
                raise ConnectionError("the client hung up")
            data += chunk
        return data


@pytest.fixture
def rogue() -> Iterator[Callable[..., Rogue]]:
    running: list[Rogue] = []

    def go(*args: Any, **options: Any) -> Rogue:
        running.append(Rogue(*args, **options))
        return running[-1]

    yield go
    for server in running:
        server.close()


def steal(wanted: Path) -> Callable[[Rogue, socket.socket, int, bytes], None]:
    """Let anybody in, accept every SET, and answer everything else by asking for a file of the client."""

    def behave(server: Rogue, client: socket.socket, sequence: int, _login: bytes) -> None:
        server.send(client, sequence + 1, _OK)
        while True:
            _, packet = server.read(client)
            if packet[:4].upper() == b"\x03SET":
                server.send(client, 1, _OK)
                continue
            server.send(client, 1, b"\xfb" + str(wanted).encode())
            while True:
                sequence, packet = server.read(client)
                if not packet:
                    server.send(client, sequence + 1, _OK)
                    break
                server.file += packet

    return behave


@pytest.fixture
def wanted(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("TOP-SECRET-OF-THE-AGENT")
    return path


def test_control_the_rogue_server_really_steals(rogue: Callable[..., Rogue], wanted: Path) -> None:
    server = rogue(steal(wanted))
    options = {"host": "127.0.0.1", "port": server.port, "user": "u", "password": "p"}
    with pymysql.connect(**options, local_infile=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert server.file == wanted.read_bytes()
    assert server.flags[0] & CLIENT.LOCAL_FILES


def test_a_rogue_server_gets_no_byte_of_a_file(rogue: Callable[..., Rogue], wanted: Path) -> None:
    server = rogue(steal(wanted))
    connector = mysql(CONFIG, port=server.port)
    session = connector.connect(Deadline(5))
    with pytest.raises(AgentError) as caught:
        connector.open_result(session, "SELECT 1", (), Statement("SELECT 1"))
    assert caught.value.code == "net.protocol"
    assert not connector.is_alive(session, 1)
    assert not connector.reset(session)
    report = run_test(mysql(CONFIG, port=server.port))
    assert not report.ok
    questions: list[Callable[[Any], Any]] = [  # our own statements, by every way they are sent
        connector.owned_namespaces,
        lambda session: session.run("KILL QUERY 1"),
        lambda session: list(connector.read_schema(session, SchemaRequest(namespaces=("d",)))),
    ]
    for ask in questions:
        session = connector.connect(Deadline(5))
        with pytest.raises(AgentError):
            ask(session)
        connector.close(session)
    assert server.file == b""
    assert wanted.read_bytes() not in server.heard
    assert len(server.flags) >= 3
    assert not any(flags & CLIENT.LOCAL_FILES for flags in server.flags)
    assert not any(flags & CLIENT.MULTI_STATEMENTS for flags in server.flags)


def ask_for(plugin: bytes, challenge: bytes = b"C" * 20 + b"\0") -> Callable[[Rogue, socket.socket, int, bytes], None]:
    """Ask the client to sign in by another method, and read what it sends."""

    def behave(server: Rogue, client: socket.socket, sequence: int, _login: bytes) -> None:
        server.send(client, sequence + 1, b"\xfe" + plugin + b"\0" + challenge)
        while True:
            server.read(client)

    return behave


@pytest.mark.parametrize("plugin", [b"mysql_clear_password", b"dialog", b"mysql_old_password", b"some_new_method"])
@pytest.mark.parametrize("chosen", ["auto", "mysql_clear_password"])
def test_the_password_is_not_given_to_whoever_asks(rogue: Callable[..., Rogue], plugin: bytes, chosen: str) -> None:
    password = new_canary()
    server = rogue(ask_for(plugin, b"\x04Password: " if plugin == b"dialog" else b"C" * 20 + b"\0"))
    with pytest.raises(AgentError) as caught:
        mysql(CONFIG, port=server.port, password=password, auth_plugin=chosen).connect(Deadline(5))
    assert caught.value.code == "auth.method_unsupported"
    assert caught.value.hint
    assert_no_canary([server.heard, str(caught.value.to_data())], [password])


def test_control_the_driver_alone_would_tell_the_password(rogue: Callable[..., Rogue]) -> None:
    server = rogue(ask_for(b"mysql_clear_password"))
    password = "an-open-secret"
    with pytest.raises(pymysql.err.OperationalError):
        pymysql.connect(host="127.0.0.1", port=server.port, user="u", password=password, read_timeout=1)
    assert password.encode() in server.heard


def test_plaintext_is_refused_when_tls_is_required(rogue: Callable[..., Rogue]) -> None:
    password = new_canary()
    for mode in ("required", "verify_ca", "verify_identity"):
        server = rogue(steal(Path("/nonexistent")))
        with pytest.raises(AgentError) as caught:
            mysql(CONFIG, port=server.port, ssl_mode=mode, password=password).connect(Deadline(5))
        assert caught.value.code == "tls.plaintext_refused"
        assert server.heard == b"", "not even the user's name leaves before TLS"


def test_preferred_takes_plaintext_and_warns(rogue: Callable[..., Rogue]) -> None:
    server = rogue(steal(Path("/nonexistent")))
    report = run_test(mysql(CONFIG, port=server.port, ssl_mode="preferred"), "quick")
    tls = next(s for s in report.stages if s.stage == "tls")
    assert (tls.status, tls.code) == ("warning", "tls.plaintext")


def test_a_server_without_read_only_sessions(rogue: Callable[..., Rogue]) -> None:
    """The connector connects, keeps every other setting, takes the stricter guard, and the test says so."""

    def behave(server: Rogue, client: socket.socket, sequence: int, _login: bytes) -> None:
        server.send(client, sequence + 1, _OK)
        while True:
            _, packet = server.read(client)
            unknown = b"_read_only" in packet
            server.send(
                client, 1, b"\xff" + struct.pack("<H", 1193) + b"#HY000Unknown system variable" if unknown else _OK
            )

    connector = mysql(CONFIG, port=rogue(behave).port)
    session = connector.connect(Deadline(5))
    assert not session.read_only
    assert len(session.setup) == len(connector.session_settings(session)) - 1
    with pytest.raises(AgentError) as caught:
        connector.execute(
            session, Statement("SELECT * FROM t WHERE (((")
        )  # the server would be asked if it refused writes
    assert caught.value.code == "query.syntax"
    stage = Stage("safety")
    safety(SimpleNamespace(read_only=False, rows=lambda *_, **__: [("GRANT SELECT ON *.* TO `u`@`%`",)]), stage, 1)  # type: ignore[arg-type]
    assert "read-only" in stage.warnings[0]
    connector.close(session)


@pytest.mark.parametrize(
    ("greeting", "code"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "net.protocol"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "net.protocol"),
        (b"\xff" * 64, "net.protocol"),
        (b"\0" * 64, "net.protocol"),
        (b"\x05\0\0\0\x09old\0", "net.protocol"),
        (b"\x20\0\0\0\x0a" + b"\xff" * 31, "net.protocol"),
        (b"\x05\0\0\0\x0a8.0", "timeout.connect"),  # half a packet: it might still come
        (b"", "timeout.connect"),
    ],
)
def test_whatever_else_answers(
    greeting: bytes, code: str, fault_proxy: Callable[[str, int], FaultProxy], mariadb_server: MariadbServer
) -> None:
    proxy = fault_proxy(mariadb_server.host, mariadb_server.port)
    proxy.garbage(greeting)
    with pytest.raises(AgentError) as caught:
        mysql(CONFIG, port=proxy.port).connect(Deadline(2))
    assert caught.value.code == code


def test_a_server_that_trickles_is_given_up_at_the_deadline(
    fault_proxy: Callable[[str, int], FaultProxy], mariadb_server: MariadbServer
) -> None:
    """Every read succeeds in time; only a limit on the whole ends this one, which would take minutes."""
    proxy = fault_proxy(mariadb_server.host, mariadb_server.port)
    proxy.trickle()
    done = threading.Event()
    codes: list[str] = []

    def work() -> None:
        try:
            mysql(CONFIG, port=proxy.port).connect(Deadline(1.0))
        except AgentError as error:
            codes.append(error.code)
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(10)
    assert codes == ["timeout.connect"]


def test_a_refusal_instead_of_a_greeting(rogue: Callable[..., Rogue]) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        client, _ = listener.accept()
        payload = b"\xff" + struct.pack("<H", 1129) + b"Host '10.0.0.1' is blocked because of many connection errors"
        client.sendall(struct.pack("<I", len(payload)) + payload)
        client.close()

    thread = threading.Thread(target=refuse)
    thread.start()
    with pytest.raises(AgentError) as caught:
        mysql(CONFIG, port=listener.getsockname()[1]).connect(Deadline(5))
    thread.join(5)
    listener.close()
    assert caught.value.code == "auth.not_permitted_from_host"


# --- certificates ---


@pytest.fixture(scope="module")
def client_pair(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A client's certificate that signs itself, with its key: plain and under a passphrase."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the agent")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(7).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8

    def private(protection: serialization.KeySerializationEncryption) -> str:
        return key.private_bytes(pem, form, protection).decode()

    return SimpleNamespace(
        certificate=builder.sign(key, hashes.SHA256()).public_bytes(pem).decode(),
        key=private(serialization.NoEncryption()),
        sealed=private(serialization.BestAvailableEncryption(b"a passphrase")),
    )


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> dict[str, Any]:
    """Have the two contexts talk through memory; return what the server knows of the client's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(ends)
    for _ in range(20):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            return dict(ends[1].getpeercert() or {})
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("sealed", [False, True])
def test_client_certificate(client_pair: SimpleNamespace, sealed: bool, tmp_path: Path) -> None:
    from tests.fixtures.certificates import make_certificates

    files = make_certificates(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    server.load_verify_locations(cadata=client_pair.certificate)
    server.verify_mode = ssl.CERT_REQUIRED
    changes = (
        {"ssl_key": client_pair.sealed, "ssl_key_password": "a passphrase"} if sealed else {"ssl_key": client_pair.key}
    )
    config = mysql(
        CONFIG, ssl_mode="verify_identity", ssl_ca=files.ca.read_text(), ssl_cert=client_pair.certificate, **changes
    ).config
    context = tls_context(config)
    assert context is not None
    assert shake_hands(context, server)["subject"] == ((("commonName", "the agent"),),)


def test_client_certificates_that_cannot_be_used(client_pair: SimpleNamespace, tmp_path: Path) -> None:
    from tests.fixtures.certificates import make_certificates

    other = make_certificates(tmp_path)
    for changes in (
        {"ssl_key": other.key.read_text()},  # another pair's
        {"ssl_key": client_pair.sealed},  # no passphrase, and nobody is asked for one
        {"ssl_key": client_pair.sealed, "ssl_key_password": "wrong"},
        {"ssl_key": "-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----"},
    ):
        report = run_test(mysql(CONFIG, ssl_mode="required", ssl_cert=client_pair.certificate, **changes))
        assert report.error is not None
        assert (report.error.stage, report.error.code) == ("secrets", "tls.client_cert")
    report = run_test(
        mysql(CONFIG, ssl_mode="required", ssl_ca="-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----")
    )
    assert report.error is not None
    assert (report.error.stage, report.error.code, report.error.field) == ("secrets", "config.invalid", "ssl_ca")


# --- configuration ---

DANGEROUS = (
    "local_infile", "allow_local_infile", "allow_local_infile_in_path", "init_command", "read_default_file", "read_default_group",
    "option_files", "option_groups", "client_flag", "client_flags", "multi_statements", "allow_multi_statements", "plugin_dir",
    "auth_plugin_map", "conv", "cursorclass", "defer_connect", "ssl", "ssl_verify_cert", "ssl_disabled", "ssl_capath",
    "ssl_key_path", "compress", "named_pipe", "bind_address", "program_name", "sql_mode", "charset", "collation", "use_unicode",
    "raw", "converter_class", "failover", "kerberos_auth_mode", "oci_config_file", "webauthn_callback", "use_pure",
    "allowLoadLocalInfile", "allowUrlInLocalInfile", "autoDeserialize", "queryInterceptors", "socketFactory",
    "propertiesTransform",
    "sessionVariables", "jdbcUrl", "url", "dsn", "driver", "extra_params", "options",
)  # fmt: skip


@pytest.mark.parametrize("config", [MySQLConfig, MariaDBConfig])
@pytest.mark.parametrize("key", DANGEROUS)
def test_dangerous_keys_are_unknown(config: type[MySQLConfig], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(CONFIG | {key: "1"})
    assert caught.value.code == "config.unknown_field"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"host": None}, "host"),
        ({"host": ""}, "host"),
        ({"host": "db1 db2"}, "host"),
        ({"host": "mysql://evil@db"}, "host"),
        ({"unix_socket": "/run/mysqld/mysqld.sock"}, "unix_socket"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"username": ""}, "username"),
        ({"username": "a\0b"}, "username"),
        ({"database": "a\0b"}, "database"),
        ({"ssl_mode": "sometimes"}, "ssl_mode"),
        ({"ssl_mode": "disabled", "ssl_ca": "-----BEGIN CERTIFICATE-----"}, "ssl_mode"),
        ({"ssl_ca": "/etc/ssl/ca.pem"}, "ssl_ca"),
        ({"ssl_key": "-----BEGIN PRIVATE KEY-----"}, "ssl_cert"),
        ({"auth_plugin": "dialog"}, "auth_plugin"),
        ({"zero_date": "guess"}, "zero_date"),
        ({"server_public_key": "ssh-rsa AAAA"}, "server_public_key"),
        ({"tls_min_version": "1.0"}, "tls_min_version"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MySQLConfig.parse(CONFIG | changes)
    assert caught.value.field == field
    assert caught.value.hint


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("user", "username"),
        ("db", "database"),
        ("sslmode", "ssl_mode"),
        ("tls_ca", "ssl_ca"),
        ("socket", "unix_socket"),
        ("passwd", "password"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert MySQLConfig.canonical({alias: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    ("spelling", "mode"),
    [
        ("REQUIRED", "required"),
        ("verify-ca", "verify_ca"),
        ("verify-full", "verify_identity"),
        ("prefer", "preferred"),
        ("disable", "disabled"),
    ],
)
def test_spellings_of_ssl_mode(spelling: str, mode: str) -> None:
    assert MySQLConfig.parse(CONFIG | {"ssl_mode": spelling}).ssl_mode == mode


def test_the_form_starts_with_the_address_and_marks_it() -> None:
    names = list(MySQLConfig.model_fields)
    assert names[:6] == ["host", "port", "unix_socket", "database", "username", "password"]
    assert MySQLConfig.marked("x-endpoint") == ("host", "port", "unix_socket")
    assert MySQLConfig.marked("x-agent-path") == ("unix_socket",)
    assert MySQLConfig.secret_fields() == ("password", "ssl_key", "ssl_key_password")
    assert all(len(spec["description"]) > 20 for spec in MySQLConfig.properties().values())


# --- what MySQL alone says and hears ---


@pytest.mark.parametrize(
    ("version", "variable"),
    [
        ("8.0.36", "transaction_read_only"),
        ("5.7.44", "transaction_read_only"),
        ("5.7.8", "tx_read_only"),
        ("5.5.5-10.11.19-MariaDB", "tx_read_only"),
    ],
)
def test_settings_by_version(version: str, variable: str) -> None:
    from hfagent.connectors._mysql_session import Session

    connector = mysql(CONFIG, max_execution_time_ms=1234)
    session = Session(connector.config, "test")
    session.server_version = version
    settings = connector.session_settings(session)
    assert f"SESSION {variable} = 1" in settings
    limit = "SESSION max_statement_time = 300" if "MariaDB" in version else "SESSION max_execution_time = 1234"
    assert limit in settings


def test_a_read_is_freed_from_the_time_limit_of_users() -> None:
    connector = mysql(CONFIG)
    stream = Stream(id="d.t", namespace="d", name="t", columns=(Column(name="select", type=DataType("int32")),))
    sql, _ = connector.select(stream, ReadRequest())
    assert connector.unlimited(sql, SimpleNamespace(is_mariadb=False)) == (
        "SELECT /*+ MAX_EXECUTION_TIME(4294967295) */ `select` FROM `d`.`t`"
    )
    assert (
        connector.unlimited(sql, SimpleNamespace(is_mariadb=True))
        == "SET STATEMENT max_statement_time = 0 FOR SELECT `select` FROM `d`.`t`"
    )


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        ("2024-01-01T00:00:00Z", "2024-01-01 00:00:00"),
        ("2024-01-01T02:00:00.123456+02:00", "2024-01-01 00:00:00.123456"),
        ("2024-01-01 00:00:00", "2024-01-01 00:00:00"),
        ("0000-00-00 00:00:00", "0000-00-00 00:00:00"),
        ("not a date+", "not a date+"),
    ],
)
def test_bounds_of_instants(value: str, bound: str) -> None:
    stream = Stream(id="d.t", namespace="d", name="t", columns=(Column(name="c", type=DataType("timestamptz")),))
    sql, params = mysql(CONFIG).select(stream, ReadRequest(bounds=(Bound("c", ">", value),)))
    assert params == (bound,)
    assert sql.endswith("WHERE `c` > CAST(%s AS DATETIME(6))")


@pytest.mark.parametrize(
    ("name", "full", "precision", "scale", "kind"),
    [
        ("vector", "vector(3)", None, None, "vector(3)"),
        ("json", "json", None, None, "json"),
        ("geomcollection", "geomcollection", None, None, "geometry"),
        ("tinyint", "tinyint(1)", 3, 0, "bool"),
        ("tinyint", "tinyint(1) unsigned", 3, 0, "uint8"),
        ("tinyint", "tinyint", 3, 0, "int8"),
        ("bigint", "bigint unsigned", 20, 0, "uint64"),
        ("brand_new", "brand_new(7)", None, None, "unknown"),
    ],
)
def test_types_of_the_catalogue(name: str, full: str, precision: int | None, scale: int | None, kind: str) -> None:
    assert str(types.catalogue_type(name, full, precision, scale, types.ValueOptions())) == kind


def field(code: int, *, flags: int = 0, charset: int = 45, length: int = 0, scale: int = 0) -> Any:
    return SimpleNamespace(name="c", type_code=code, flags=flags, charsetnr=charset, length=length, scale=scale)


@pytest.mark.parametrize(
    ("packet", "native", "kind"),
    [
        (field(types.JSON, charset=63), "json", "json"),
        (field(types.VECTOR, charset=63), "vector", "vector"),
        (field(types.BLOB, charset=63), "blob", "bytes"),
        (field(types.BLOB), "text", "string"),
        (field(types.STRING, flags=types.ENUM_FLAG), "enum", "string"),
        (field(types.STRING, flags=types.SET_FLAG), "set", "array<string>"),
        (field(types.VAR_STRING, length=80), "varchar(20)", "string"),
        (field(types.TINY, length=1), "tinyint(1)", "bool"),
        (field(types.TINY, length=1, flags=types.UNSIGNED_FLAG), "tinyint unsigned", "uint8"),
        (field(types.NEWDECIMAL, length=67, scale=30), "decimal(65,30)", "decimal(65,30)"),
        (field(types.NEWDECIMAL, length=66, scale=30, flags=types.UNSIGNED_FLAG), "decimal(65,30)", "decimal(65,30)"),
        (field(types.NULL), "null", "string"),
    ],
)
def test_types_of_a_result(packet: Any, native: str, kind: str) -> None:
    column = types.result_column(packet, 1, types.ValueOptions())
    assert (column.native_type, str(column.type)) == (native, kind)


def test_vectors_are_decoded() -> None:
    import numpy as np

    from hfagent.connectors._mysql_rows import Block, Decoder
    from hfagent.sdk.arrow import arrow_schema

    column = Column(name="v", type=DataType("vector", precision=3))
    row = np.array([1.5, -2.0, 0.25], "<f4").tobytes()
    data = np.frombuffer(b"\0\0\0\0" + bytes([12]) + row + b"\0\0\0\0" + b"\xfb", np.uint8)
    decoder = Decoder([column], [types.VECTOR], arrow_schema([column]), types.ValueOptions())
    (batch,) = decoder.batches(Block(data, [4, 21], [17, 22]))
    assert batch.to_pylist() == [{"v": [1.5, -2.0, 0.25]}, {"v": None}]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (1045, "auth.invalid_credentials"), (1044, "permission.denied"), (1049, "namespace.not_found"),
        (1142, "permission.denied"),
        (1143, "permission.denied"), (1227, "permission.denied"), (1146, "model.not_found"), (1054, "column.not_found"),
        (1040, "capacity.too_many_connections"), (1203, "capacity.too_many_connections"), (1226, "capacity.too_many_connections"),
        (1129, "auth.not_permitted_from_host"), (1130, "auth.not_permitted_from_host"), (1251, "auth.method_unsupported"),
        (2059, "auth.method_unsupported"), (2061, "auth.method_unsupported"), (1862, "auth.expired"), (1820, "auth.expired"),
        (3118, "auth.locked"), (2002, "net.refused"), (2003, "net.refused"), (2005, "net.dns"), (2006, "net.reset"),
        (2013, "net.reset"), (4031, "net.reset"), (2026, "tls.version"), (3159, "tls.plaintext_refused"),
        (3024, "timeout.statement"), (1969, "timeout.statement"), (1205, "timeout.lock"), (1213, "transient.deadlock"),
        (1792, "guard.write_blocked"), (1053, "transient.failover"), (1064, "query.syntax"), (9999, "query.failed"),
    ],
)  # fmt: skip
def test_error_numbers(number: int, code: str) -> None:
    error = mysql(CONFIG).map_error(pymysql.err.OperationalError(number, "what the server says"))
    assert error.code == code
    assert error.native == {"number": number, "text": "what the server says"}


def test_every_rule_has_a_known_code() -> None:
    assert {rule.code for rule in ERRORS.exact.values()} <= set(CODES)


def test_hints_carry_the_grant_to_run() -> None:
    connector = mysql(CONFIG, database="shop")
    denied = {
        "SELECT command denied to user 'u'@'h' for table `s``hop`.`t`": "GRANT SELECT ON `s``hop`.`t` TO 'u'@'h';",
        "SELECT command denied to user 'u'@'h' for table 't'": "GRANT SELECT ON `shop`.`t` TO 'u'@'h';",
        "SELECT command denied to user 'u'@'h' for column 'c' in table 't'": "GRANT SELECT ON `shop`.`t` TO 'u'@'h';",
    }
    for text, grant in denied.items():
        assert grant in (connector.map_error(pymysql.err.OperationalError(1142, text)).hint or "")
    error = connector.map_error(pymysql.err.OperationalError(1044, "Access denied for user 'u'@'h' to database 'x'"))
    assert "GRANT SELECT ON `x`.* TO 'u'@'h';" in (error.hint or "")


@pytest.mark.parametrize(
    ("lines", "writes", "powers", "files", "reads"),
    [
        (["GRANT USAGE ON *.* TO `r`@`%`"], set(), set(), False, []),
        (["GRANT SELECT, SHOW VIEW ON `d`.* TO `r`@`%`"], set(), set(), False, ["`d`.*"]),
        (["GRANT SELECT (`a`, `b`), INSERT (`c`) ON `d`.`t` TO `r`@`%`"], {"INSERT"}, set(), False, ["`d`.`t`"]),
        (["GRANT ALL PRIVILEGES ON `d`.* TO `w`@`%`"], {"ALL PRIVILEGES"}, set(), False, ["`d`.*"]),
        (["GRANT ALL PRIVILEGES ON *.* TO `a`@`%` WITH GRANT OPTION"], {"ALL PRIVILEGES"}, {"ALL PRIVILEGES"}, True, ["*.*"]),
        (["GRANT SELECT, FILE ON *.* TO `f`@`%`"], set(), set(), True, ["*.*"]),
        (["GRANT SELECT, DELETE HISTORY, SUPER ON *.* TO `s`@`%`"], {"DELETE HISTORY"}, {"SUPER"}, False, ["*.*"]),
        (["GRANT `reader`@`%` TO `r`@`%`", "GRANT SELECT ON `d`.* TO `r`@`%`"], set(), set(), False, ["`d`.*"]),
    ],
)  # fmt: skip
def test_grants(lines: list[str], writes: set[str], powers: set[str], files: bool, reads: list[str]) -> None:
    grants = Grants(lines)
    assert (grants.writes, grants.powers, grants.files, grants.reads) == (writes, powers, files, reads)


def test_the_double_is_mysql_8(mysql8_server: Mysql8Server) -> None:
    assert mysql8_server.execute("SELECT VERSION()")[0][0].startswith("8.")
