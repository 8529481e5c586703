"""What only the PostgreSQL connector has: its configuration, its sign-in, its types, its statements.

What every connector must do is in `test_postgresql.py`.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import pq

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, ConfigError
from hfagent.model.stream import Stream
from hfagent.sdk.reading import Bound, ReadRequest, SchemaRequest, Statement
from hfagent.sdk.registry import Registry
from tests.connectors.conformance import drain, read_all, run_test
from tests.connectors.postgres_source import PostgresSource
from tests.connectors.source import make
from tests.fixtures.postgres import PostgresDatabase, PostgresServer
from tests.fixtures.servers import wait_until


@pytest.fixture
def source(postgres_database: PostgresDatabase) -> Iterator[PostgresSource]:
    source = PostgresSource(postgres_database)
    yield source
    source.drop()


@pytest.fixture
def connect(source: PostgresSource) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Connect with changes to the configuration; gives connector and session, closed at the end of the test."""
    opened: list[tuple[Any, Any]] = []

    def open_with(*schemas: str, scratch: Path | None = None, **changes: Any) -> tuple[Any, Any]:
        config = {name: value for name, value in (source.config | changes).items() if value is not None}
        connector = make(CLASS, config, *(schemas or ("hf data",)), scratch_dir=scratch)
        opened.append((connector, connector.connect(Deadline(10))))
        return opened[-1]

    yield open_with
    for connector, session in opened:
        connector.close(session)


CLASS = Registry().get("postgresql")


def query(connector: Any, session: Any, text: str, params: Any = (), **request: Any) -> list[dict[str, Any]]:
    with connector.execute(session, Statement(text, params, **request)) as reader:
        return read_all(reader).to_pylist()


def stream_of(connector: Any, session: Any, name: str) -> Stream:
    return next(s for s in connector.read_schema(session, SchemaRequest()) if s.name == name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("extra_params", {"options": "-c default_transaction_read_only=off"}),
        ("extra_params", {"service": "other"}),
        ("extra_params", {"passfile": "/etc/passwd"}),
        ("extra_params", {"sslkeylogfile": "/tmp/keys"}),
        ("extra_params", {"hostaddr": "10.0.0.1"}),
        ("extra_params", {"host": "10.0.0.1"}),
        ("extra_params", {"sslrootcert": "/etc/shadow"}),
        ("extra_params", {"replication": "database"}),
        ("extra_params", {"no_such_parameter": "1"}),
        ("extra_params", {"sslsni": "1\n"}),
        ("database", "host=evil.example dbname=x"),
        ("database", "postgresql://evil.example/x"),
        ("host", "evil.example/x"),
        ("host", "user@evil.example"),
        ("host", "db.example.com,"),
        ("host", "db example"),
        ("host", "postgresql://db.example.com"),
        ("username", "a\nb"),
        ("sslrootcert", "/etc/ssl/ca.pem"),
        ("sslmode", "verify"),
        ("port", 0),
    ],
)
def test_dangerous_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        CLASS.Config.parse(CLASS.Config.example | {field: value})
    assert (caught.value.code, caught.value.field) == ("config.invalid", field)
    assert caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"sslmode": "verify-ca"},
        {"auth_mode": "certificate"},
        {"sslcert": "-----BEGIN CERTIFICATE-----"},
        {"sslmode": "prefer", "sslnegotiation": "direct"},
    ],
)
def test_fields_must_fit_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        CLASS.Config.parse(CLASS.Config.example | changes)
    assert caught.value.code == "config.invalid"


def test_the_environment_has_no_influence(
    connect: Callable[..., tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = {option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar}
    assert len(variables) > 20
    for name in variables | {"PGTZ", "PGDATESTYLE", "PGGEQO", "PGSERVICEFILE", "PGSYSCONFDIR"}:
        monkeypatch.setenv(name, "nonsense")
    monkeypatch.setenv("PGOPTIONS", "-c default_transaction_read_only=off")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".pgpass").write_text("*:*:*:*:wrong\n")
    (tmp_path / ".pgpass").chmod(0o600)
    connector, session = connect()
    assert session.pgconn.ssl_in_use
    shown = query(
        connector, session, "SELECT current_setting('default_transaction_read_only') a, current_setting('TimeZone') b"
    )
    assert shown == [{"a": "on", "b": "UTC"}]
    name = query(connector, session, "SELECT application_name a FROM pg_stat_activity WHERE pid = pg_backend_pid()")[0][
        "a"
    ]
    assert name == "hfagent/0 conformance"


def test_certificates_are_on_disk_only_while_connecting(
    connect: Callable[..., tuple[Any, Any]], source: PostgresSource, tmp_path: Path
) -> None:
    connector, session = connect(scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []
    # A cancel request needs the authorities once more, and leaves nothing behind either.
    reader = connector.execute(
        session, Statement("SELECT g, 'm' FROM (SELECT generate_series(1, 1000000000000) AS g) s", first_rows=1)
    )
    next(iter(reader))
    reader.close()
    assert session.idle
    assert source.running("m") == 0
    assert list(tmp_path.iterdir()) == []


@contextmanager
def access_rule(server: PostgresServer, line: str) -> Iterator[None]:
    """A line at the top of pg_hba.conf for as long as the block lasts."""
    path = server.ca_pem.parent / "pg_hba.conf"
    before = path.read_text()
    try:
        path.write_text(line + "\n" + before)
        server.execute("SELECT pg_reload_conf()")
        wait_until(
            lambda: line.split()[2] in str(server.execute("SELECT user_name FROM pg_hba_file_rules")),
            "the rule is loaded",
        )
        yield
    finally:
        path.write_text(before)
        server.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize(("rule", "method"), [("md5", "md5"), ("trust", "trust"), ("scram-sha-256", "scram-sha-256")])
def test_the_method_of_signing_in_is_reported(source: PostgresSource, rule: str, method: str) -> None:
    if rule == "md5":  # with a SCRAM verifier the server would choose SCRAM even here
        source.execute(f"SET password_encryption = 'md5'; ALTER ROLE {source.account} PASSWORD 'p@ss word/1'")
    with access_rule(source.server, f"hostssl all {source.account} 127.0.0.1/32 {rule}"):
        report = run_test(make(CLASS, source.config, "hf data"), "quick")
    assert report.ok, report.error
    assert next(s for s in report.stages if s.stage == "auth").details["method"] == method


def test_a_password_is_never_sent_in_clear_text(source: PostgresSource) -> None:
    with access_rule(source.server, f"host all {source.account} 127.0.0.1/32 password"):
        plain = make(CLASS, source.config | {"sslmode": "disable"}, "hf data")
        with pytest.raises(AgentError) as caught:
            plain.connect(Deadline(10))
        assert caught.value.code == "auth.method_unsupported"
        assert "sslmode" in str(caught.value.hint)
        encrypted = make(CLASS, source.config, "hf data")
        encrypted.close(encrypted.connect(Deadline(10)))


def test_client_certificate(source: PostgresSource, tmp_path: Path) -> None:
    authority, certificate, key, other = client_certificate(source.account)
    server, file = source.server, source.server.ca_pem.parent / "clients.pem"
    file.write_text(authority)
    file.chmod(0o644)
    config = {k: v for k, v in source.config.items() if k != "password"} | {
        "auth_mode": "certificate", "sslcert": certificate, "sslkey": key, "sslkey_password": "the phrase",
    }  # fmt: skip
    server.execute(f"ALTER SYSTEM SET ssl_ca_file = '{file}'")
    try:
        with access_rule(server, f"hostssl all {source.account} 127.0.0.1/32 cert"):
            report = run_test(make(CLASS, config, "hf data", scratch_dir=tmp_path))
            assert report.ok, report.error
            assert list(tmp_path.iterdir()) == []
            foreign = make(CLASS, config | {"sslcert": other[0], "sslkey": other[1]}, "hf data")
            report = run_test(foreign)
            assert report.error is not None
            assert (report.error.stage, report.error.code) == ("tls", "tls.client_cert"), report.error
            wrong_phrase = make(CLASS, config | {"sslkey_password": "not the phrase"}, "hf data")
            report = run_test(wrong_phrase)
            assert report.error is not None
            assert (report.error.stage, report.error.code) == ("secrets", "tls.client_cert"), report.error
    finally:
        server.execute("ALTER SYSTEM RESET ssl_ca_file")
        server.execute("SELECT pg_reload_conf()")


def client_certificate(name: str) -> tuple[str, str, str, tuple[str, str]]:
    """An authority, a certificate for `name` with its encrypted key, and a pair from another authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def signed(subject: str, issuer: str, key: Any, signer: Any, *, authority: bool) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(issuer))
            .public_key(key.public_key())
        )
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(hours=1))
        builder = builder.not_valid_after(now + dt.timedelta(days=60))
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        return builder.sign(signer, hashes.SHA256())

    def pair(issuer: str, phrase: bytes | None) -> tuple[str, str, str]:
        root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        lock = form.BestAvailableEncryption(phrase) if phrase else form.NoEncryption()
        private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock).decode()
        roots = signed(issuer, issuer, root, root, authority=True).public_bytes(form.Encoding.PEM).decode()
        own = signed(name, issuer, key, root, authority=False).public_bytes(form.Encoding.PEM).decode()
        return roots, own, private

    authority, certificate, private = pair("clients", b"the phrase")
    _, other, other_key = pair("others", b"the phrase")
    return authority, certificate, private, (other, other_key)


def test_the_next_host_is_tried(connect: Callable[..., tuple[Any, Any]]) -> None:
    connector, session = connect(host="no-such-host.invalid,127.0.0.1")
    assert connector.is_alive(session, 5)


def test_socket_directory_without_a_server(source: PostgresSource, tmp_path: Path) -> None:
    connector = make(CLASS, source.config | {"host": str(tmp_path)}, "hf data")
    report = run_test(connector)
    assert report.error is not None
    assert (report.error.stage, report.error.code) == ("tcp", "net.refused")


# --- the stages of the test ---


def stages(source: PostgresSource, **changes: Any) -> dict[str, Any]:
    report = run_test(make(CLASS, source.config | changes, "hf data"))
    assert report.ok, report.error
    return {stage.stage: stage for stage in report.stages}


def test_encryption_is_judged(source: PostgresSource) -> None:
    full = stages(source)["tls"]
    assert (full.status, full.details["verified"]) == ("passed", True)
    assert full.details["version"].startswith("TLS")
    weak = stages(source, sslmode="require", sslrootcert=None)["tls"]
    assert (weak.status, weak.code) == ("warning", "tls.unverified")
    plain = stages(source, sslmode="disable", sslrootcert=None)["tls"]
    assert (plain.status, plain.code) == ("warning", "tls.plaintext")


def test_a_dangerous_account_is_reported(source: PostgresSource) -> None:
    source.create("t", {"n": "integer"})
    assert stages(source)["safety"].status == "passed"
    source.execute(f"GRANT INSERT ON {source.qualified('t')} TO {source.account}")
    safety = stages(source)["safety"]
    assert (safety.code, safety.details["writable_streams"]) == ("permission.can_write", 1)
    source.execute(f"ALTER ROLE {source.account} SUPERUSER BYPASSRLS")
    assert stages(source)["safety"].code == "permission.superuser"


def test_row_security_and_missing_grants_are_reported(source: PostgresSource) -> None:
    source.create("t", {"n": "integer"})
    source.execute(f"ALTER TABLE {source.qualified('t')} ENABLE ROW LEVEL SECURITY")
    permission = stages(source)["permission"]
    assert permission.code == "permission.row_security"
    assert (permission.details["visible"], permission.details["readable"], permission.details["row_security"]) == (
        1,
        1,
        1,
    )
    source.create("u", {"n": "integer"})
    source.execute(f"REVOKE ALL ON {source.qualified('u')} FROM {source.account}")
    permission = stages(source)["permission"]
    assert (permission.details["visible"], permission.details["readable"]) == (2, 1)
    assert permission.code == "permission.read_missing"


def test_a_pool_that_does_not_fit_is_reported(source: PostgresSource) -> None:
    assert stages(source)["capacity"].status == "passed"
    capacity = stages(source, pool_size=90, max_overflow=90)["capacity"]
    assert (capacity.status, capacity.code) == ("warning", "capacity.too_many_connections")


def test_schema_without_usage(source: PostgresSource) -> None:
    source.execute(f'REVOKE USAGE ON SCHEMA "hf data" FROM {source.account}')
    report = run_test(make(CLASS, source.config, "hf data"))
    assert report.error is not None
    assert (report.error.stage, report.error.code) == ("namespace", "permission.denied")
    for statement in str(report.error.hint).split(";")[:-1]:
        source.execute(statement)  # the hint is a cure, word for word
    assert run_test(make(CLASS, source.config, "hf data")).ok


def test_the_hint_of_a_denied_read_cures_it(connect: Callable[..., tuple[Any, Any]], source: PostgresSource) -> None:
    source.create('odd "name"', {"n": "integer"}, [["1"]])
    source.execute(
        f"REVOKE ALL ON {source.qualified(chr(111) + 'dd ' + chr(34) + 'name' + chr(34))} FROM {source.account}"
    )
    connector, session = connect()
    stream = stream_of(connector, session, 'odd "name"')
    with pytest.raises(AgentError) as caught:
        connector.read_rows(session, stream, ReadRequest())
    source.execute(str(caught.value.hint))
    with connector.read_rows(session, stream, ReadRequest()) as reader:
        assert read_all(reader).num_rows == 1


# --- discovery ---


def test_definitions_are_complete(connect: Callable[..., tuple[Any, Any]], source: PostgresSource) -> None:
    schema = source.quote("hf data")
    for statement in (
        f"CREATE TYPE {schema}.mood AS ENUM ('sad', 'ok')",
        f"CREATE DOMAIN {schema}.price AS numeric(10,2) CHECK (VALUE > 0)",
        f"CREATE TABLE {schema}.parent (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text NOT NULL UNIQUE)",
        f"CREATE TABLE {schema}.child (a int, b int, parent_id bigint REFERENCES {schema}.parent, mood {schema}.mood, "
        f"price {schema}.price, total numeric GENERATED ALWAYS AS (a * b) STORED, updated_at timestamptz NOT NULL DEFAULT now(), "
        "dropped int, PRIMARY KEY (a, b))",
        f"ALTER TABLE {schema}.child DROP COLUMN dropped",
        f"CREATE INDEX ON {schema}.child (updated_at)",
        f"CREATE INDEX ON {schema}.child ((a + b))",
        f"COMMENT ON TABLE {schema}.child IS 'the child'",
        f"COMMENT ON COLUMN {schema}.child.a IS 'first'",
        f"CREATE MATERIALIZED VIEW {schema}.summary AS SELECT 1 AS n",
        f"CREATE VIEW {schema}.look AS SELECT a, b FROM {schema}.child",
        f"CREATE TABLE {schema}.events (at date NOT NULL, n int) PARTITION BY RANGE (at)",
        f"CREATE TABLE {schema}.events_1 PARTITION OF {schema}.events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')",
        f"INSERT INTO {schema}.events VALUES ('2024-05-01', 1)",
    ):
        source.execute(statement)
    connector, session = connect()
    found = {s.name: s for s in connector.read_schema(session, SchemaRequest())}
    assert {name: s.kind for name, s in found.items()} == {
        "child": "table", "events": "table", "look": "view", "parent": "table", "summary": "materialized_view",
    }  # fmt: skip
    child, columns = found["child"], {c.name: c for c in found["child"].columns}
    assert list(columns) == ["a", "b", "parent_id", "mood", "price", "total", "updated_at"]
    assert child.primary_key == ("a", "b")
    assert child.description == "the child"
    assert columns["a"].description == "first"
    assert str(columns["price"].type) == "decimal(10,2)"
    assert columns["price"].native_type.endswith("price")
    assert str(columns["mood"].type) == "string"
    assert columns["total"].generated
    assert columns["total"].default is None
    assert columns["updated_at"].default == "now()"
    assert [k.references_name for k in child.foreign_keys] == ["parent"]
    assert child.foreign_keys[0].columns == ("parent_id",)
    assert child.foreign_keys[0].references_columns == ("id",)
    assert found["parent"].primary_key_source == "declared"
    assert ("code",) in found["parent"].unique_keys
    best = child.watermark_candidates[0]
    assert best.column == "updated_at"
    assert "indexed" in best.reasons
    assert "incremental" in child.capabilities
    assert found["parent"].watermark_candidates[0].column == "id"
    assert found["events"].partitioning == "RANGE (at)"
    with connector.read_rows(session, found["events"], ReadRequest()) as reader:
        assert read_all(reader).num_rows == 1
    session.touched = False
    with connector.read_rows(session, child, ReadRequest()) as reader:
        assert {c.name: str(c.type) for c in reader.columns} == {c.name: str(c.type) for c in child.columns}
    assert connector.reset(session)
    assert not session.touched


def make_tables(source: PostgresSource, count: int) -> None:
    """Many small tables: more than one page of the catalogue."""
    source.execute(
        f"DO $$ BEGIN FOR i IN 1..{count} LOOP "
        """EXECUTE format('CREATE TABLE "hf data".t_%s (id int PRIMARY KEY, n int DEFAULT 1)', i); END LOOP; END $$"""
    )


def test_a_stream_that_cannot_be_described_costs_only_itself(
    connect: Callable[..., tuple[Any, Any]], source: PostgresSource
) -> None:
    make_tables(source, 150)
    schema = source.quote("hf data")
    source.execute(f"CREATE FUNCTION {schema}.lost() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    source.execute(f"ALTER TABLE {schema}.t_77 ALTER n SET DEFAULT {schema}.lost()")
    with psycopg.connect(source.database.dsn(), autocommit=True) as admin:  # a damaged catalogue, as disks make them
        admin.execute("SET allow_system_table_mods = on")
        admin.execute("DELETE FROM pg_proc WHERE proname = 'lost'")
    connector, session = connect()
    found = {s.name: s for s in connector.read_schema(session, SchemaRequest())}
    assert len(found) == 150
    assert found.pop("t_77").warnings[0].startswith("cannot be described: ")
    assert {tuple(c.name for c in s.columns) for s in found.values()} == {("id", "n")}
    assert all(s.primary_key == ("id",) for s in found.values())
    assert session.idle


def test_discovery_may_be_left_in_the_middle(connect: Callable[..., tuple[Any, Any]], source: PostgresSource) -> None:
    make_tables(source, 250)
    connector, session = connect()
    streams = connector.read_schema(session, SchemaRequest())
    next(streams)
    streams.close()
    assert session.idle
    assert connector.reset(session)
    cancel = CancelToken()
    streams = connector.read_schema(session, SchemaRequest(cancel=cancel))
    next(streams)
    cancel.cancel()
    with pytest.raises(Cancelled):
        list(streams)
    assert not session.idle or connector.is_alive(session, 5)


def test_partly_readable_stream(connect: Callable[..., tuple[Any, Any]], source: PostgresSource) -> None:
    source.create("people", {"id": "integer", "salary": "integer"}, [["1", "2"]])
    source.execute(f"REVOKE ALL ON {source.qualified('people')} FROM {source.account}")
    source.execute(f"GRANT SELECT (id) ON {source.qualified('people')} TO {source.account}")
    connector, session = connect()
    stream = stream_of(connector, session, "people")
    assert (stream.readable, stream.unreadable_columns) == ("yes", ("salary",))
    assert "GRANT SELECT" in stream.warnings[0]
    with connector.read_rows(session, stream, ReadRequest(columns=("id",))) as reader:
        assert read_all(reader).to_pylist() == [{"id": 1}]


def test_namespaces_are_the_owned_or_the_readable_ones(source: PostgresSource) -> None:
    source.create("t", {"n": "integer"})
    connector = make(CLASS, source.config)
    session = connector.connect(Deadline(10))
    try:
        assert connector.namespaces(session) == ("hf data",)
        source.execute(f"CREATE SCHEMA own AUTHORIZATION {source.account}")
        source.execute("CREATE TABLE own.t (n int)")
        assert connector.namespaces(session) == ("own",)
    finally:
        connector.close(session)


def test_rows_of_other_schemas_are_refused(connect: Callable[..., tuple[Any, Any]], source: PostgresSource) -> None:
    connector, session = connect()
    with pytest.raises(AgentError) as caught:
        connector.read_rows(
            session, Stream(id="pg_catalog.pg_class", namespace="pg_catalog", name="pg_class"), ReadRequest()
        )
    assert caught.value.code == "config.policy_denied"


# --- values ---

SPECIAL = """\
SELECT v::timestamptz AS t, v::date AS d, n::numeric(5,1) AS n FROM (VALUES
  ('infinity', 'NaN'), ('-infinity', '1.5'), ('0044-03-15 BC', NULL), ('12345-01-02', '2'), ('2024-02-29', '3')) x(v, n)"""


def test_special_values_by_policy(connect: Callable[..., tuple[Any, Any]]) -> None:
    connector, session = connect()
    with connector.execute(session, Statement(SPECIAL)) as reader:
        table = read_all(reader)
        warnings = list(reader.warnings)
    day = dt.date(2024, 2, 29)
    assert table["d"].to_pylist() == [None, None, None, None, day]
    assert table["n"].to_pylist() == [None, Decimal("1.5"), None, Decimal("2.0"), Decimal("3.0")]
    assert len(warnings) == 3
    assert any("column d: 4 values" in warning for warning in warnings)

    connector, session = connect(special_values="clamp")
    assert [row["d"] for row in query(connector, session, SPECIAL)] == [
        dt.date(9999, 12, 31), dt.date(1, 1, 1), dt.date(1, 1, 1), dt.date(9999, 12, 31), day,
    ]  # fmt: skip

    connector, session = connect(special_values="string")
    rows = query(connector, session, SPECIAL)
    assert [row["d"] for row in rows] == ["infinity", "-infinity", "0044-03-15 BC", "12345-01-02", "2024-02-29"]

    connector, session = connect(special_values="error")
    with pytest.raises(AgentError) as caught:
        query(connector, session, SPECIAL)
    assert caught.value.code == "read.data_invalid"
    assert "infinity" in caught.value.message or "NaN" in caught.value.message
    assert query(connector, session, "SELECT 1 AS n") == [{"n": 1}]


def test_types_without_a_counterpart_are_text(connect: Callable[..., tuple[Any, Any]], source: PostgresSource) -> None:
    schema = source.quote("hf data")
    source.execute(f"CREATE TYPE {schema}.pair AS (a int, b text)")
    source.execute(f"CREATE TYPE {schema}.mood AS ENUM ('sad', 'ok')")
    source.execute("CREATE EXTENSION IF NOT EXISTS hstore SCHEMA public")
    source.execute("CREATE EXTENSION IF NOT EXISTS cube SCHEMA public")
    source.execute(
        f"CREATE TABLE {schema}.odd (p {schema}.pair, m {schema}.mood, ms {schema}.mood[], h public.hstore, c public.cube)"
    )
    source.execute(
        f"""INSERT INTO {schema}.odd VALUES (ROW(1, 'x, "y"'), 'ok', '{{sad,ok}}', 'a=>"1", "b c"=>NULL', '(1,2)')"""
    )
    connector, session = connect()
    stream = stream_of(connector, session, "odd")
    assert [str(c.type) for c in stream.columns] == ["string", "string", "array<string>", "json", "string"]
    assert any("cube" in warning for warning in stream.warnings)
    with connector.read_rows(session, stream, ReadRequest()) as reader:
        assert read_all(reader).to_pylist() == [
            {"p": '(1,"x, ""y""")', "m": "ok", "ms": ["sad", "ok"], "h": '{"a": "1", "b c": null}', "c": "(1, 2)"}
        ]
        assert any("cube" in warning for warning in reader.warnings)


def test_arrays_of_more_dimensions_are_flattened_and_reported(connect: Callable[..., tuple[Any, Any]]) -> None:
    connector, session = connect()
    with connector.execute(
        session, Statement("""SELECT '{{1,2},{3,4}}'::int[] a, '{{"a,b",c}}'::text[] b""")
    ) as reader:
        assert read_all(reader).to_pylist() == [{"a": [1, 2, 3, 4], "b": ["a,b", "c"]}]
        reader.close()
        assert len(reader.warnings) == 2


def test_text_in_no_encoding_is_repaired(source: PostgresSource) -> None:
    name = f"ascii_{source.account}"
    source.server.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        connector = make(CLASS, source.config | {"database": name})
        session = connector.connect(Deadline(10))
        try:
            rows = query(connector, session, r"SELECT E'caf\xe9' AS t, 1 AS n")
            assert rows == [{"t": "caf\ufffd", "n": 1}]
        finally:
            connector.close(session)
    finally:
        source.server.drop_database(name)


def test_a_row_of_many_megabytes(connect: Callable[..., tuple[Any, Any]]) -> None:
    connector, session = connect()
    rows = query(connector, session, "SELECT repeat('x', 30000000) AS t, g FROM generate_series(1, 2) g")
    assert [(len(row["t"]), row["g"]) for row in rows] == [(30_000_000, 1), (30_000_000, 2)]


# --- statements ---


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("SELECT 1 AS n;", [{"n": 1}]),
        ("SELECT 1 AS n; -- done; really", [{"n": 1}]),
        ("SELECT 1 AS n -- done", [{"n": 1}]),
        ("SELECT ';' AS n /* ; /* ; */ ; */ ; /* ' */", [{"n": ";"}]),
        ("SELECT $a$;'$a$ AS n ;", [{"n": ";'"}]),
        (r"SELECT E'\';' AS n;", [{"n": "';"}]),
        ("VALUES (1), (2)", [{"column1": 1}, {"column1": 2}]),
        ("(SELECT 1 AS n) UNION ALL (SELECT 2) ORDER BY n", [{"n": 1}, {"n": 2}]),
        ("WITH w AS (SELECT 1 AS n) TABLE w", [{"n": 1}]),
        ("SHOW transaction_read_only", [{"transaction_read_only": "on"}]),
        ("SELECT NULL::text AS n UNION ALL SELECT ''", [{"n": None}, {"n": ""}]),
        ("SELECT '100%' AS n, '%s' AS m", [{"n": "100%", "m": "%s"}]),
    ],
)
def test_forms_of_statements(connect: Callable[..., tuple[Any, Any]], text: str, rows: list[dict[str, Any]]) -> None:
    connector, session = connect()
    assert query(connector, session, text) == rows
    assert session.idle


def test_parameters_by_name_and_type(connect: Callable[..., tuple[Any, Any]]) -> None:
    connector, session = connect()
    moment = dt.datetime(2024, 2, 29, 1, 2, 3, 4, dt.UTC)
    values = {"i": 2**40, "d": Decimal("1.50"), "t": moment, "n": None, "b": b"\x00\xff", "l": [1, 2]}
    text = "SELECT %(i)s AS i, %(d)s AS d, %(t)s AS t, %(n)s::text AS n, %(b)s AS b, %(l)s AS l, '100%%' AS p"
    (row,) = query(connector, session, text, values)
    assert row == {"i": 2**40, "d": "1.50", "t": moment, "n": None, "b": b"\x00\xff", "l": [1, 2], "p": "100%"}


def test_names_of_a_result_may_repeat(connect: Callable[..., tuple[Any, Any]]) -> None:
    connector, session = connect()
    with connector.execute(session, Statement("SELECT 1 AS a, 'x' AS a, 2 AS b")) as reader:
        table = read_all(reader)
    assert table.schema.names == ["a", "a", "b"]
    assert [column.to_pylist() for column in table.columns] == [[1], ["x"], [2]]


def test_an_error_after_rows_is_an_error(connect: Callable[..., tuple[Any, Any]]) -> None:
    connector, session = connect()
    reader = connector.execute(session, Statement("SELECT 1 / (300000 - g) AS n FROM generate_series(1, 400000) g"))
    with pytest.raises(AgentError) as caught:
        drain(reader)
    assert caught.value.native is not None
    assert caught.value.native["sqlstate"] == "22012"
    assert session.idle
    assert query(connector, session, "SELECT 1 AS n") == [{"n": 1}]


def test_slow_rows_are_shown_as_they_come(connect: Callable[..., tuple[Any, Any]], source: PostgresSource) -> None:
    connector, session = connect()
    # The server sends what fills its buffer of 8 KiB: two long rows, and then nothing for minutes.
    text = "SELECT 'hf_trickle', repeat('x', 9000), CASE WHEN g = 3 THEN pg_sleep(600)::text END FROM (SELECT generate_series(1, 5) g) s"
    reader = connector.execute(session, Statement(text))
    assert next(iter(reader)).num_rows in (1, 2)
    assert source.running("hf_trickle") == 1
    reader.close()
    assert source.running("hf_trickle") == 0
    assert session.idle


def test_a_late_cancel_never_hits_the_next_statement(connect: Callable[..., tuple[Any, Any]]) -> None:
    connector, session = connect()
    ended: list[str] = []
    for step in range(40):
        cancel = CancelToken()
        timer = threading.Timer(step * 0.0005, cancel.cancel)
        timer.start()
        try:
            drain(connector.execute(session, Statement("SELECT pg_sleep(0.01)", cancel=cancel)))
            ended.append("rows")
        except Cancelled:
            ended.append("cancelled")
        timer.join()
        assert connector.reset(session), ended
        assert query(connector, session, "SELECT 1 AS n") == [{"n": 1}]
    assert "cancelled" in ended


def test_function_calls_change_nothing_for_the_next_statement(connect: Callable[..., tuple[Any, Any]]) -> None:
    connector, session = connect()
    # Past the guard, as a function hidden in a view would do it: the transaction's end undoes it.
    drain(connector.open_result(session, "SELECT set_config('work_mem', '64kB', false)", (), Statement("")))
    assert query(connector, session, "SELECT current_setting('work_mem') AS w") != [{"w": "64kB"}]


def test_pgbouncer_mode_sets_everything_inside_the_transaction(
    connect: Callable[..., tuple[Any, Any]], source: PostgresSource
) -> None:
    connector, session = connect(pgbouncer_transaction_mode=True, search_path='"hf data", "its"')
    outside = session.connection.execute(
        "SELECT current_setting('IntervalStyle'), current_setting('statement_timeout')"
    ).fetchone()
    session.connection.rollback()
    assert outside == ("postgres", "0")
    names = ("IntervalStyle", "TimeZone", "lock_timeout", "statement_timeout", "transaction_read_only", "search_path")
    (row,) = query(connector, session, "SELECT " + ", ".join(f"current_setting('{n}') AS \"{n}\"" for n in names))
    assert row == {
        "IntervalStyle": "iso_8601", "TimeZone": "UTC", "lock_timeout": "5s", "statement_timeout": "5min",
        "transaction_read_only": "on", "search_path": '"hf data", "it''s"',
    }  # fmt: skip
    source.create("t", {"n": "integer"})
    with pytest.raises(AgentError) as caught:
        drain(
            connector.open_result(
                session, f"INSERT INTO {source.qualified('t')} VALUES (1) RETURNING n", (), Statement("")
            )
        )
    assert caught.value.code == "guard.write_blocked"


def test_reads_are_one_snapshot_and_not_limited_by_the_statement_timeout(
    connect: Callable[..., tuple[Any, Any]], source: PostgresSource
) -> None:
    connector, session = connect(query_timeout_s=1)
    schema = source.quote("hf data")
    source.execute(f"CREATE VIEW {schema}.facts AS SELECT current_setting('transaction_isolation') AS i, "
                   "current_setting('statement_timeout') AS s, current_setting('transaction_read_only') AS r")  # fmt: skip
    stream = stream_of(connector, session, "facts")
    with connector.read_rows(session, stream, ReadRequest()) as reader:
        assert read_all(reader).to_pylist() == [{"i": "repeatable read", "s": "0", "r": "on"}]
    with pytest.raises(AgentError) as caught:
        query(connector, session, "SELECT pg_sleep(60)")
    assert caught.value.code == "timeout.statement"


def test_a_lock_is_not_waited_for(connect: Callable[..., tuple[Any, Any]], source: PostgresSource) -> None:
    source.create("t", {"n": "integer"})
    connector, session = connect(lock_timeout_ms=50)
    stream = stream_of(connector, session, "t")
    with psycopg.connect(source.database.dsn()) as other:
        other.execute(f"LOCK TABLE {source.qualified('t')} IN ACCESS EXCLUSIVE MODE")  # type: ignore[arg-type]
        with pytest.raises(AgentError) as caught:
            connector.read_rows(session, stream, ReadRequest())
        other.rollback()
    assert (caught.value.code, caught.value.retryable) == ("timeout.lock", True)


def test_watermark_bounds_keep_every_digit(connect: Callable[..., tuple[Any, Any]], source: PostgresSource) -> None:
    source.create(
        "t",
        {"at": "timestamptz", "n": "numeric"},
        [["'2024-01-01 00:00:00.123456+00'", "1e-30"], ["'2024-01-01 00:00:00.123457+00'", "2"]],
    )
    connector, session = connect()
    stream = stream_of(connector, session, "t")
    request = ReadRequest(bounds=(Bound("at", ">", "2024-01-01 00:00:00.123456+00"), Bound("n", ">=", "1.000")))
    with connector.read_rows(session, stream, request) as reader:
        assert read_all(reader)["n"].to_pylist() == ["2"]
