"""The `mariadb` connector: the whole conformance suite against a real MariaDB, and what only this type has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from hfagent.connectors.mariadb import MariaDB
from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, Cancelled, ConfigError
from hfagent.sdk.reading import Bound, ReadRequest, SchemaRequest, Statement
from tests.connectors.conformance import read_all, run_test
from tests.connectors.mariadb_source import MariadbConformance, MariadbSource
from tests.connectors.source import make
from tests.fixtures.mariadb import MariadbDatabase
from tests.fixtures.proxy import FaultProxy
from tests.fixtures.servers import wait_until


class TestMariadb(MariadbConformance):
    type_name = "mariadb"


@pytest.fixture
def source(mariadb_database: MariadbDatabase) -> MariadbSource:
    return MariadbSource(mariadb_database)


@pytest.fixture
def connect() -> Iterator[Callable[..., tuple[MariaDB, Any]]]:
    """`connect(source, **changes)`: a connector and an open session, closed when the test ends."""
    opened: list[tuple[MariaDB, Any]] = []

    def go(source: MariadbSource, **changes: Any) -> tuple[MariaDB, Any]:
        connector = connector_of(source, **changes)
        opened.append((connector, connector.connect(Deadline(10))))
        return opened[-1]

    yield go
    for connector, session in opened:
        connector.close(session)


def connector_of(source: MariadbSource, **changes: Any) -> MariaDB:
    made = make(MariaDB, source.config | changes, source.namespace)
    assert isinstance(made, MariaDB)
    return made


def stream_of(connector: MariaDB, session: Any, name: str) -> Any:
    return next(s for s in connector.read_schema(session, SchemaRequest()) if s.name == name)


def ask(connector: MariaDB, session: Any, text: str, *params: Any, **options: Any) -> list[dict[str, Any]]:
    """Run a statement past the guard, which has tests of its own."""
    with connector.open_result(session, text, params, Statement(text, params, **options)) as reader:
        return read_all(reader).to_pylist()


# --- the session ---


def test_a_session_is_ours_after_one_round_trip(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source, query_timeout_s=7)
    assert session.read_only
    (row,) = ask(
        connector, session,
        "SELECT @@tx_read_only AS ro, @@time_zone AS tz, @@sql_mode AS mode, @@max_statement_time AS seconds, "
        "@@tx_isolation AS iso, @@character_set_results AS charset, @@innodb_lock_wait_timeout AS locks, "
        "@@net_write_timeout AS wait",
    )  # fmt: skip
    assert row["ro"] == 1
    assert (row["tz"], row["mode"], row["iso"], row["charset"]) == ("+00:00", "", "REPEATABLE-READ", "utf8mb4")
    assert (row["seconds"], row["locks"], row["wait"]) == (Decimal(7), 5, 600)
    # The greeting, the login and the SET: counted by the server, which counts this SHOW and the SELECT above as well.
    (questions,) = ask(connector, session, "SHOW SESSION STATUS LIKE 'Questions'")
    assert questions["Value"] == "3"


def test_max_statement_time_takes_fractions(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source, max_statement_time_s=0.25)
    with pytest.raises(AgentError) as caught:
        many = f"{source.quote(source.namespace)}.seq_1_to_100000000"
        ask(connector, session, f"SELECT COUNT(*) FROM {many} a JOIN {many} b ON a.seq * b.seq % 7 = 3")
    assert (caught.value.code, (caught.value.native or {}).get("number")) == ("timeout.statement", 1969)
    assert connector.reset(session)


def test_the_announced_flags_and_options_on_the_socket(source: MariadbSource, connect: Callable[..., Any]) -> None:
    import socket

    from pymysql.constants import CLIENT

    _, session = connect(source, keepalive_s=17)
    assert not session.client_flag & CLIENT.LOCAL_FILES
    assert not session.client_flag & CLIENT.MULTI_STATEMENTS
    sock = session._sock
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 17
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


def test_one_statement_at_a_time_even_past_the_guard(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source)
    with pytest.raises(AgentError) as caught:
        ask(connector, session, "SELECT 1; SELECT 2")
    assert caught.value.code == "query.syntax"


def test_unix_socket_needs_the_policys_leave(source: MariadbSource) -> None:
    path = source.server.ca_pem.parent / "socket"
    config = {key: value for key, value in source.config.items() if key not in ("host", "port")} | {
        "unix_socket": str(path)
    }
    with pytest.raises(ConfigError) as caught:
        make(MariaDB, config, source.namespace).connect(Deadline(5))
    assert (caught.value.code, caught.value.field) == ("config.policy_denied", "unix_socket")
    connector = make(MariaDB, config, source.namespace, allowed_paths=(path.parent,))
    report = run_test(connector)
    assert report.ok, report
    assert {s.stage: s.status for s in report.stages}["tcp"] == "skipped"
    tls = next(s for s in report.stages if s.stage == "tls")
    assert (tls.status, tls.details) == ("passed", {"transport": "unix socket"})


def test_a_returned_session_has_its_database_again_or_is_discarded(
    source: MariadbSource, connect: Callable[..., Any]
) -> None:
    connector, session = connect(source, database=source.namespace)
    assert ask(connector, session, "SELECT DATABASE() AS d, GET_LOCK('hf_dirt', 0) AS l") == [
        {"d": source.namespace, "l": 1}
    ]
    assert not session.pristine
    assert connector.reset(session)
    assert session.pristine
    assert ask(connector, session, "SELECT DATABASE() AS d, IS_USED_LOCK('hf_dirt') AS l") == [
        {"d": source.namespace, "l": None}
    ]
    session.select_db("information_schema")
    assert not connector.reset(session)


def test_our_own_statements_need_no_clean_up(source: MariadbSource, connect: Callable[..., Any]) -> None:
    source.create("t", {"n": "int"}, [["1"]])
    connector, session = connect(source)
    stream = stream_of(connector, session, "t")
    with connector.read_rows(session, stream, ReadRequest()) as reader:
        assert read_all(reader).num_rows == 1
    assert session.pristine
    assert connector.reset(session)


# --- TLS ---


@pytest.mark.parametrize(
    ("mode", "ca", "encrypted", "code"),
    [
        ("disabled", None, False, "tls.plaintext"),
        ("preferred", None, True, "tls.unverified"),
        ("required", None, True, "tls.unverified"),
        ("REQUIRED", None, True, "tls.unverified"),
        ("preferred", "own", True, None),
        ("verify-ca", "own", True, None),
        ("verify_identity", "own", True, None),
    ],
)
def test_ssl_modes(source: MariadbSource, mode: str, ca: str | None, encrypted: bool, code: str | None) -> None:
    changes = {"ssl_mode": mode} | ({"ssl_ca": source.server.ca_pem.read_text()} if ca else {})
    report = run_test(connector_of(source, **changes))
    assert report.ok, report
    tls = next(s for s in report.stages if s.stage == "tls")
    assert tls.details["encrypted"] is encrypted
    assert tls.code == (code or "tls.expired")  # the test's certificate lasts a week, which is worth a warning
    if encrypted:
        assert tls.details["version"] in ("TLSv1.2", "TLSv1.3")
        auth = next(s for s in report.stages if s.stage == "auth")
        assert auth.details["cipher_on_server"] == tls.details["cipher"]


@pytest.mark.parametrize("mode", ["preferred", "required", "verify_ca", "verify_identity"])
def test_a_failed_verification_never_falls_back(
    source: MariadbSource, mode: str, tmp_path: Any, fault_proxy: Callable[[str, int], FaultProxy]
) -> None:
    from tests.fixtures.certificates import make_certificates

    proxy = fault_proxy(source.server.host, source.server.port)
    connector = connector_of(
        source, host=proxy.host, port=proxy.port, ssl_mode=mode, ssl_ca=make_certificates(tmp_path).ca.read_text()
    )
    before = proxy.connections
    with pytest.raises(AgentError) as caught:
        connector.connect(Deadline(5))
    assert caught.value.code == "tls.untrusted"
    assert proxy.connections == before + 1, "it dialled again"


def test_system_authorities_do_not_trust_a_private_one(source: MariadbSource) -> None:
    with pytest.raises(AgentError) as caught:
        connector_of(source, ssl_mode="verify_ca").connect(Deadline(5))
    assert caught.value.code == "tls.untrusted"


def test_tls_1_3_only(source: MariadbSource, connect: Callable[..., Any]) -> None:
    _, session = connect(source, ssl_mode="required", tls_min_version="1.3")
    assert session._sock.version() == "TLSv1.3"


# --- signing in ---


@pytest.fixture
def account(source: MariadbSource) -> Iterator[Callable[..., dict[str, Any]]]:
    """`account("IDENTIFIED …")` makes an account and returns the configuration that signs in with it."""
    made: list[str] = []

    def go(identified: str, password: str) -> dict[str, Any]:
        name = f"hf_account_{len(made)}"
        made.append(name)
        source.execute(f"CREATE USER '{name}'@'%' {identified}")
        source.execute(f"GRANT SELECT ON {source.pattern}.* TO '{name}'@'%'")
        return {"username": name, "password": password}

    yield go
    for name in made:
        source.execute(f"DROP USER '{name}'@'%'")


def test_ed25519(source: MariadbSource, account: Callable[..., Any], connect: Callable[..., Any]) -> None:
    source.execute("INSTALL SONAME 'auth_ed25519'")
    try:
        config = account("IDENTIFIED VIA ed25519 USING PASSWORD('pässword-ed')", "pässword-ed")
        for method in ("auto", "ed25519"):
            connector, session = connect(source, **config, auth_plugin=method)
            assert ask(connector, session, "SELECT 1 AS n") == [{"n": 1}]
        with pytest.raises(AgentError) as caught:
            connector_of(source, **config, auth_plugin="mysql_native_password").connect(Deadline(5))
        assert caught.value.code == "auth.method_unsupported"
        assert "client_ed25519" in caught.value.message
    finally:
        source.execute("DROP USER 'hf_account_0'@'%'")
        source.execute("CREATE USER 'hf_account_0'@'%'")  # for the fixture to drop
        source.execute("UNINSTALL SONAME 'auth_ed25519'")


def test_a_password_that_is_not_latin1(
    source: MariadbSource, account: Callable[..., Any], connect: Callable[..., Any]
) -> None:
    config = account("IDENTIFIED BY '密码🙂'", "密码🙂")
    connector, session = connect(source, **config)
    assert ask(connector, session, "SELECT 1 AS n") == [{"n": 1}]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("ACCOUNT LOCK", "auth.locked"),
        ("PASSWORD EXPIRE", "auth.expired"),
        ("REQUIRE X509", "auth.invalid_credentials"),
    ],
)
def test_refused_accounts(source: MariadbSource, account: Callable[..., Any], change: str, code: str) -> None:
    config = account("IDENTIFIED BY 'some-password'", "some-password")
    source.execute(f"ALTER USER '{config['username']}'@'%' {change}")
    report = run_test(connector_of(source, **config))
    assert report.error is not None
    assert (report.error.stage, report.error.code) == ("auth", code), report.error


# --- values ---


def dates(source: MariadbSource) -> None:
    source.create(
        "dates", {"id": "int", "d": "date", "t": "datetime(3)"},
        [["1", "'2024-01-02'", "'2024-01-02 03:04:05.678'"], ["2", "'0000-00-00'", "'2024-02-00 00:00:00'"],
         ["3", "NULL", "NULL"]],
    )  # fmt: skip


@pytest.mark.parametrize("policy", ["null", "text", "error"])
def test_zero_dates(source: MariadbSource, connect: Callable[..., Any], policy: str) -> None:
    dates(source)
    connector, session = connect(source, zero_date=policy)
    stream = stream_of(connector, session, "dates")
    reader = connector.read_rows(session, stream, ReadRequest(order_by=("id",)))
    if policy == "error":
        with pytest.raises(AgentError) as caught, reader:
            read_all(reader)
        assert caught.value.code == "read.data_invalid"
        assert "'d'" in caught.value.message
        assert connector.is_alive(session, 5)
        return
    with reader:
        table = read_all(reader)
    if policy == "text":
        assert table.schema.types[1:] == [pa.string(), pa.string()]
        assert [str(c.type) for c in stream.columns] == ["int32", "string", "string"]
        assert table["d"].to_pylist() == ["2024-01-02", "0000-00-00", None]
        assert table["t"].to_pylist() == ["2024-01-02 03:04:05.678", "2024-02-00 00:00:00.000", None]
        assert reader.warnings == []
    else:
        assert [v.isoformat() if v else None for v in table["d"].to_pylist()] == ["2024-01-02", None, None]
        assert table["t"].null_count == 2
        assert len(reader.warnings) == 2
        assert "'d'" in reader.warnings[0]


def test_dates_that_no_calendar_has(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source)
    with closing(source.server.connect(source.namespace)) as admin, admin.cursor() as cursor:
        cursor.execute("SET sql_mode = 'ALLOW_INVALID_DATES'")
        cursor.execute("CREATE TABLE odd (id int, d date)")
        cursor.execute("INSERT INTO odd VALUES (1, '2023-02-31'), (2, '0000-05-05'), (3, '2023-02-28')")
    with connector.read_rows(session, stream_of(connector, session, "odd"), ReadRequest(order_by=("id",))) as reader:
        assert [str(v) for v in read_all(reader)["d"].to_pylist()] == ["None", "None", "2023-02-28"]
    assert reader.warnings == ["2 zero or impossible date(s) in 'd' were read as NULL"]


def test_tinyint1_that_holds_numbers(source: MariadbSource, connect: Callable[..., Any]) -> None:
    source.create("t", {"n": "tinyint(1)"}, [["0"], ["1"], ["7"], ["NULL"]])
    connector, session = connect(source)
    with connector.read_rows(session, stream_of(connector, session, "t"), ReadRequest()) as reader:
        assert read_all(reader)["n"].to_pylist() == [False, True, True, None]
    assert "tinyint1_as_bool" in reader.warnings[0]
    connector, session = connect(source, tinyint1_as_bool=False)
    with connector.read_rows(session, stream_of(connector, session, "t"), ReadRequest()) as reader:
        assert read_all(reader)["n"].to_pylist() == [0, 1, 7, None]
    assert reader.warnings == []


def test_rows_across_block_and_packet_borders(source: MariadbSource, connect: Callable[..., Any]) -> None:
    """Lengths around each change of the length's encoding, rows larger than a block, and packets that continue."""
    connector, session = connect(source, ssl_mode="disabled")
    lengths = [0, 1, 249, 250, 251, 252, 253, 255, 256, 65534, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1, 3_000_000]
    text = " UNION ALL ".join(
        f"SELECT {n} AS n, REPEAT('x', {n}) AS t, IF({n} % 2, NULL, 'tail') AS z" for n in lengths
    )
    rows = ask(connector, session, text)
    assert [(r["n"], len(r["t"]), r["z"]) for r in rows] == [(n, n, None if n % 2 else "tail") for n in lengths]


@pytest.mark.parametrize("size", [0xFFFFFF - 6, 0xFFFFFF - 5, 0xFFFFFF - 4, 0xFFFFFF, 20_000_000])
def test_rows_of_more_than_one_packet(source: MariadbSource, connect: Callable[..., Any], size: int) -> None:
    source.server.execute("SET GLOBAL max_allowed_packet = 1073741824")
    try:
        connector, session = connect(source)
        text = f"SELECT 7 AS a, REPEAT('a', {size}) AS t UNION ALL SELECT 8, 'b' UNION ALL SELECT 9, REPEAT('z', 300)"
        rows = ask(connector, session, text)
        assert [(r["a"], len(r["t"])) for r in rows] == [(7, size), (8, 1), (9, 300)]
        assert ask(connector, session, "SELECT 1 AS n") == [{"n": 1}]
    finally:
        source.server.execute("SET GLOBAL max_allowed_packet = DEFAULT")


def test_every_value_of_a_large_table(source: MariadbSource, connect: Callable[..., Any]) -> None:
    source.execute(
        f"CREATE TABLE {source.qualified('big')} AS SELECT seq AS id, seq / 7 AS q, IF(seq % 3, NULL, seq * 1000003) AS b, "
        "CONCAT('värde ', seq) AS t, '2000-01-01' + INTERVAL seq MINUTE AS m FROM seq_1_to_120000"
    )
    connector, session = connect(source)
    with connector.read_rows(session, stream_of(connector, session, "big"), ReadRequest()) as reader:
        rows = read_all(reader).to_pylist()
    with closing(source.server.connect(source.namespace)) as admin, admin.cursor() as cursor:
        cursor.execute("SELECT id, q, b, t, CAST(m AS CHAR) FROM big")
        wanted = cursor.fetchall()
    assert [(r["id"], r["q"], r["b"], r["t"], str(r["m"])) for r in rows] == list(wanted)


@pytest.mark.parametrize(
    ("native", "low", "high"),
    [
        ("decimal(30,10)", "12345678901234567890.0000000001", "12345678901234567890.0000000002"),
        ("bigint unsigned", "18446744073709551614", "18446744073709551615"),
        ("bigint", "9007199254740992", "9007199254740993"),
        ("datetime(6)", "2024-01-01T00:00:00.000001", "2024-01-01T00:00:00.000002"),
        ("timestamp(6) NULL", "2024-01-01T00:00:00.000001Z", "2024-01-01T01:00:00.000002+01:00"),
        ("date", "2024-01-01", "2024-01-02"),
        ("time(6)", "PT25H1S", "PT26H0.000001S"),
        ("varchar(30)", "Å", "Ä"),
        ("uuid", "123e4567-e89b-12d3-a456-426655440000", "123e4567-e89b-12d3-a456-426655440001"),
    ],
)
def test_bounds_keep_every_digit(
    source: MariadbSource, connect: Callable[..., Any], native: str, low: str, high: str
) -> None:
    literals = {
        "2024-01-01T01:00:00.000002+01:00": "2024-01-01 00:00:00.000002",
        "PT25H1S": "25:00:01",
        "PT26H0.000001S": "26:00:00.000001",
    }
    plain = [
        literals.get(text, text).replace("T", " ").removesuffix("Z") if native != "varchar(30)" else text
        for text in (low, high)
    ]
    source.create(
        "t",
        {"n": "int", "v": f"{native}{' COLLATE utf8mb4_bin' if native.startswith('varchar') else ''}"},
        [["1", f"'{plain[0]}'"], ["2", f"'{plain[1]}'"]],
    )
    connector, session = connect(source)
    stream = stream_of(connector, session, "t")
    for text, number in ((low, 1), (high, 2)):
        with connector.read_rows(
            session, stream, ReadRequest(columns=("n",), bounds=(Bound("v", "=", text),))
        ) as reader:
            assert read_all(reader)["n"].to_pylist() == [number]


def test_a_read_is_one_snapshot(source: MariadbSource, connect: Callable[..., Any]) -> None:
    source.execute(f"CREATE TABLE {source.qualified('grown')} (id int PRIMARY KEY, t varchar(2000)) ENGINE=InnoDB")
    source.execute(f"INSERT INTO {source.qualified('grown')} SELECT seq, REPEAT('x', 1000) FROM seq_1_to_20000")
    connector, session = connect(source)
    with connector.read_rows(session, stream_of(connector, session, "grown"), ReadRequest(order_by=("id",))) as reader:
        seen = next(reader).num_rows
        source.execute(f"DELETE FROM {source.qualified('grown')} WHERE id > 10000")
        seen += sum(batch.num_rows for batch in reader)
    assert seen == 20_000
    assert not session.in_transaction
    assert connector.reset(session)


# --- discovery ---


def test_what_discovery_knows(source: MariadbSource, connect: Callable[..., Any]) -> None:
    at = source.qualified
    source.execute(f"CREATE TABLE {at('parent')} (a int, b int, PRIMARY KEY (b, a)) COMMENT 'the elders'")
    source.execute(
        f"CREATE TABLE {at('child')} (id bigint AUTO_INCREMENT PRIMARY KEY, pa int, pb int, "
        "code varchar(50) NOT NULL COMMENT 'short', "
        "note varchar(600), doc json, twice int AS (pa * 2) VIRTUAL, secret int INVISIBLE, "
        "changed_at datetime(6) NOT NULL DEFAULT current_timestamp(6) ON UPDATE current_timestamp(6), "
        "UNIQUE KEY code_key (code), UNIQUE KEY note_start (note(10)), KEY changed (changed_at), "
        f"CONSTRAINT child_parent FOREIGN KEY (pb, pa) REFERENCES {at('parent')} (b, a))"
    )
    source.execute(f"CREATE TABLE {at('history')} (id int PRIMARY KEY, v int) WITH SYSTEM VERSIONING")
    source.execute(
        f"CREATE TABLE {at('parts')} (id int, y int) PARTITION BY RANGE (y) "
        "(PARTITION p0 VALUES LESS THAN (2000), PARTITION p1 VALUES LESS THAN MAXVALUE)"
    )
    source.execute(f"CREATE TABLE {at('keyless')} (e varchar(20) NOT NULL UNIQUE, f int)")
    source.execute(f"CREATE SEQUENCE {at('numbers')}")
    source.execute(f"CREATE VIEW {at('seen')} AS SELECT id, code FROM {at('child')}")
    connector, session = connect(source)
    found = {s.name: s for s in connector.read_schema(session, SchemaRequest())}
    assert list(found) == ["child", "history", "keyless", "parent", "parts", "seen"]
    child = found["child"]
    columns = {c.name: c for c in child.columns}
    assert child.primary_key == ("id",)
    assert (child.primary_key_source, child.unique_keys) == ("declared", (("code",),))
    assert [(i.name, i.columns, i.unique) for i in child.indexes if i.name in ("note_start", "changed")] == [
        ("changed", ("changed_at",), False), ("note_start", ("note",), True),
    ]  # fmt: skip
    (key,) = child.foreign_keys
    assert (key.columns, key.references_namespace, key.references_name, key.references_columns) == (
        ("pb", "pa"), source.namespace, "parent", ("b", "a"),
    )  # fmt: skip
    assert columns["twice"].generated
    assert columns["secret"].hidden
    assert (str(columns["doc"].type), columns["code"].description) == ("json", "short")
    assert "secret" not in connector.select(child, ReadRequest())[0]
    assert [c.column for c in child.watermark_candidates] == ["changed_at", "id"]
    assert "incremental" in child.capabilities
    assert found["parent"].description == "the elders"
    assert found["parent"].primary_key == ("b", "a")
    assert found["history"].details == {"system_versioned": True}
    assert found["keyless"].primary_key_source == "unique_index"
    assert (found["parts"].partitioning or "").startswith("RANGE")
    assert (found["seen"].kind, [c.name for c in found["seen"].columns]) == ("view", ["id", "code"])


def test_discovery_asks_a_fixed_number_of_questions(source: MariadbSource, connect: Callable[..., Any]) -> None:
    def questions(connector: MariaDB, session: Any) -> int:
        (row,) = ask(connector, session, "SHOW SESSION STATUS LIKE 'Questions'")
        return int(row["Value"])

    connector, session = connect(source)
    counts = []
    for number in range(12):
        source.execute(f"CREATE TABLE {source.qualified(f't{number}')} (id int PRIMARY KEY, doc json)")
        if number in (0, 11):
            before = questions(connector, session)
            assert len(list(connector.read_schema(session, SchemaRequest()))) == number + 1
            counts.append(questions(connector, session) - before)
    assert counts[0] == counts[1]


def test_column_grants_show_what_cannot_be_read(
    source: MariadbSource, connect: Callable[..., Any], account: Callable[..., Any]
) -> None:
    source.create("t", {"open": "int", "closed": "int"}, [["1", "2"]])
    config = account("IDENTIFIED BY 'some-password'", "some-password")
    source.execute(f"REVOKE SELECT ON {source.pattern}.* FROM '{config['username']}'@'%'")
    source.execute(f"GRANT SELECT (`open`), INSERT (closed) ON {source.qualified('t')} TO '{config['username']}'@'%'")
    connector, session = connect(source, **config)
    (stream,) = connector.read_schema(session, SchemaRequest())
    assert (stream.readable, stream.unreadable_columns) == ("yes", ("closed",))
    with (
        pytest.raises(AgentError) as caught,
        connector.read_rows(session, stream, ReadRequest(columns=("closed",))) as reader,
    ):
        read_all(reader)
    assert caught.value.code == "permission.denied"
    assert f"GRANT SELECT ON `{source.namespace}`.`t`" in (caught.value.hint or "")


# --- the test ---


def test_a_reader_passes_without_worries(source: MariadbSource) -> None:
    source.create("t", {"n": "int"}, [["1"]])
    report = run_test(connector_of(source, ssl_mode="verify_identity", ssl_ca=source.server.ca_pem.read_text()))
    status = {s.stage: s.status for s in report.stages}
    assert report.ok, report
    assert {name: status[name] for name in ("auth", "ping", "server", "namespace", "permission", "safety", "capacity")} == {
        "auth": "passed", "ping": "passed", "server": "passed", "namespace": "passed", "permission": "passed", "safety": "passed",
        "capacity": "passed",
    }  # fmt: skip
    assert report.server["product"] == "MariaDB"
    assert not report.server["version"].startswith("5.5.5-")
    assert report.server["source_id"]
    assert report.rtt_ms is not None


def test_safety_names_what_the_account_can_do(source: MariadbSource) -> None:
    writer = {"username": "hf_rw", "password": source.server.passwords["hf_rw"]}
    admin = {"username": "hf", "password": source.server.password}
    for changes, code in ((writer, "permission.can_write"), (admin, "permission.superuser")):
        report = run_test(connector_of(source, **changes))
        safety = next(s for s in report.stages if s.stage == "safety")
        assert (safety.status, safety.code) == ("warning", code), safety
    assert safety.details["can_read_server_files"]


def test_an_account_without_databases(source: MariadbSource) -> None:
    config = source.config | {
        "username": "hf_noaccess",
        "password": source.server.passwords["hf_noaccess"],
        "database": None,
    }
    report = run_test(make(MariaDB, config))
    assert report.error is not None
    assert (report.error.stage, report.error.code) == ("permission", "permission.read_missing")
    assert "GRANT SELECT ON" in (report.error.hint or "")
    assert "'hf_noaccess'@'%'" in (report.error.hint or "")


def test_owned_means_all_that_is_not_the_servers_own(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source)
    owned = connector.owned_namespaces(session)
    assert source.namespace in owned
    assert not {"mysql", "information_schema", "performance_schema", "sys"} & set(owned)


# --- stopping ---

_ENDLESS = MariadbConformance.endless_statement


def test_the_kill_goes_to_the_statement_and_the_session_lives_on(
    source: MariadbSource, connect: Callable[..., Any]
) -> None:
    connector, session = connect(source)
    thread = session.thread_id()
    for _ in range(5):
        reader = connector.open_result(session, _ENDLESS.format(marker="hf_live"), (), Statement("", first_rows=1))
        next(reader)
        assert source.running("hf_live") == 1
        reader.close()
        assert source.running("hf_live") == 0
        assert ask(connector, session, "SELECT CONNECTION_ID() AS id") == [{"id": thread}]


def test_cancel_of_an_idle_session_harms_nothing(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source)
    before = source.server.execute("SHOW GLOBAL STATUS LIKE 'Connections'")
    connector.cancel(session)
    after = source.server.execute("SHOW GLOBAL STATUS LIKE 'Connections'")
    assert int(after[0][1]) - int(before[0][1]) == 1, "only this question's own connection"
    assert ask(connector, session, "SELECT 1 AS n") == [{"n": 1}]


def test_cancel_from_another_thread(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            ask(connector, session, "SELECT SLEEP(300), 'hf_direct' AS m")
        except AgentError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: source.running("hf_direct") == 1, "the statement runs")
    connector.cancel(session)
    thread.join(10)
    assert isinstance(failures[0], Cancelled)
    assert ask(connector, session, "SELECT 1 AS n") == [{"n": 1}]


def test_a_cancelled_token_starts_nothing(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source)
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        ask(connector, session, "SELECT 1", cancel=cancel)
    assert ask(connector, session, "SELECT 1 AS n") == [{"n": 1}]


def test_killed_by_somebody_else(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source)
    reader = connector.open_result(session, _ENDLESS.format(marker="hf_other"), (), Statement("", first_rows=1))
    next(reader)
    source.server.execute("KILL QUERY %s", (session.thread_id(),))
    with pytest.raises(AgentError) as caught:
        for _ in reader:
            pass
    reader.close()
    assert (caught.value.code, caught.value.retryable) == ("transient.backend", True)
    assert connector.reset(session)


def test_a_stalled_result_is_given_up(
    source: MariadbSource, connect: Callable[..., Any], fault_proxy: Callable[[str, int], FaultProxy]
) -> None:
    proxy = fault_proxy(source.server.host, source.server.port)
    connector, session = connect(source, host=proxy.host, port=proxy.port, read_timeout_s=1)
    reader = connector.open_result(session, _ENDLESS.format(marker="hf_stall"), (), Statement("", first_rows=1))
    next(reader)
    proxy.blackhole()
    with pytest.raises(AgentError) as caught:
        for _ in reader:
            pass
    reader.close()
    assert (caught.value.code, caught.value.retryable) == ("read.stalled", True)
    assert not connector.reset(session)
    proxy.pass_through()


@pytest.mark.parametrize("fault", ["reset", "cut"])
def test_a_connection_that_breaks_among_rows(
    source: MariadbSource, connect: Callable[..., Any], fault_proxy: Callable[[str, int], FaultProxy], fault: str
) -> None:
    proxy = fault_proxy(source.server.host, source.server.port)
    connector, session = connect(source, host=proxy.host, port=proxy.port, ssl_mode="disabled")
    reader = connector.open_result(session, _ENDLESS.format(marker="hf_break"), (), Statement("", first_rows=1))
    next(reader)
    getattr(proxy, fault)(after=100_000)
    with pytest.raises(AgentError) as caught:
        for _ in reader:
            pass
    reader.close()
    assert (caught.value.code, caught.value.retryable) == ("net.reset", True)
    assert not connector.reset(session)


def test_an_orderly_shutdown_is_a_failover(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source)
    reader = connector.open_result(session, _ENDLESS.format(marker="hf_down"), (), Statement("", first_rows=1))
    next(reader)
    stopping = threading.Thread(target=source.server.stop)
    stopping.start()
    with pytest.raises(AgentError) as caught:
        for _ in reader:
            pass
    reader.close()
    stopping.join(30)
    source.server.start()
    assert caught.value.code in ("transient.failover", "net.reset")
    assert caught.value.retryable


def test_a_frozen_server_does_not_hold_the_caller(source: MariadbSource, connect: Callable[..., Any]) -> None:
    """Nobody answers the KILL QUERY either: the connection is cut, and the pool will discard it."""
    connector, session = connect(source)
    failures: list[AgentError] = []

    def work() -> None:
        try:
            ask(connector, session, "SELECT SLEEP(300)", deadline=Deadline(0.5))
        except AgentError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    source.server.suspend()
    try:
        thread.start()
        thread.join(15)
        assert not thread.is_alive()
    finally:
        source.server.resume()
    assert [error.code for error in failures] == ["timeout.statement"]
    assert not connector.reset(session)


def test_a_result_that_nobody_closed_does_no_harm(source: MariadbSource, connect: Callable[..., Any]) -> None:
    import gc

    connector, session = connect(source)
    reader = connector.open_result(session, _ENDLESS.format(marker="hf_lost"), (), Statement(""))
    del reader
    gc.collect()  # PyMySQL's own result would now read all the rest
    assert not connector.is_alive(session, 1)
    assert not connector.reset(session)
    connector.close(session)
    wait_until(lambda: source.running("hf_lost") == 0, "the server noticed")


# --- parameters ---


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -5, 2**64 - 1, 0.1, 1e300, Decimal("-1.50"), 'it\'s \\ "q" %s \0 \x1a 🙂', b"\0\xff'", b"", ""],
)
def test_values_come_back_as_they_were_bound(source: MariadbSource, connect: Callable[..., Any], value: Any) -> None:
    connector, session = connect(source)
    (row,) = ask(connector, session, "SELECT %s AS v /* %s */ -- %s", value)
    assert row["v"] == value


def test_placeholders_count_only_where_sql_is(source: MariadbSource, connect: Callable[..., Any]) -> None:
    connector, session = connect(source)
    (row,) = ask(connector, session, "SELECT '%s' AS a, 7 %% 4 AS b, \"100%\" AS c, %s AS `%s`, 'it''s %s' AS d", "x")
    assert row == {"a": "%s", "b": 3, "c": "100%", "%s": "x", "d": "it's %s"}
    text = "SELECT %(b)s AS b, %(a)s AS a"
    with connector.open_result(session, text, {"a": 1, "b": "two"}, Statement(text)) as reader:
        assert read_all(reader).to_pylist() == [{"b": "two", "a": 1}]
    for bad in (
        ("SELECT %s, %s", ("x",)),
        ("SELECT 1", ("x",)),
        ("SELECT %(a)s", {"b": 1}),
        ("SELECT %s", (float("inf"),)),
        ("SELECT %s", (object(),)),
        ("SELECT %s", ("\ud800",)),
    ):
        with pytest.raises(AgentError) as caught:
            connector.open_result(session, bad[0], bad[1], Statement(bad[0]))
        assert caught.value.code == "request.invalid_params"
    assert ask(connector, session, "SELECT 1 AS n") == [{"n": 1}]
