"""Host names, forbidden addresses, resolving, dialling, and pasted certificates."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from hfagent.foundation.clock import Deadline
from hfagent.foundation.errors import AgentError, ConfigError, SourceError
from hfagent.sdk import network
from hfagent.sdk.network import (
    check_certificate,
    check_egress,
    dial,
    dial_error,
    probe_dns,
    probe_tcp,
    resolve,
    socket_options,
    validate_host,
)
from hfagent.sdk.probe import Probe, ProbeFailed
from tests.fixtures.certificates import make_certificates

# --- names ---


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("DB.Example.COM", "db.example.com"),
        ("db", "db"),
        (" db1 ", "db1"),
        ("my_service.internal.", "my_service.internal."),
        ("10.0.0.7", "10.0.0.7"),
        ("::1", "::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("2001:0db8:0:0::1", "2001:db8::1"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("日本。example", "xn--wgv71a.example"),
        ("ｅｘａｍｐｌｅ.com", "example.com"),
        ("１６９.254.169.254", "169.254.169.254"),
        ("xn--strae-oqa.example", "xn--strae-oqa.example"),
        ("a" * 63, "a" * 63),
    ],
)
def test_hosts_have_one_form(text: str, canonical: str) -> None:
    assert validate_host(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "/tmp", "a/b", "a,b", "user@host", "host=evil", "host:5432", "[::1]:5432", "a b", "a\tb", "a\nb", "a\0b",
        "a\x7fb", "http://x", "a?b", "a#b", "a\\b", "a%b", "a;b", "a'b", 'a"b', "a..b", ".a", "-a", "a-", "$(id)", "{a}",
        "a" * 64, ".".join(["a" * 60] * 5), "straße.example", "a\u200db", "a\u200bb", "\ud800", "ab\u00a0c", "a\u202eb", "*",
    ],
)  # fmt: skip
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host"):
        validate_host(text)


def test_lists_and_directories_only_where_allowed() -> None:
    assert validate_host("DB1, db2,10.0.0.1", allow_list=True) == "db1,db2,10.0.0.1"
    assert validate_host("/var/run/postgresql", allow_directory=True) == "/var/run/postgresql"
    assert validate_host("/run/a,db2", allow_list=True, allow_directory=True) == "/run/a,db2"
    for text, options in [
        ("db1,", {"allow_list": True}), ("db1,a b", {"allow_list": True}), ("/a,/b", {"allow_directory": True}),
        ("/a\0b", {"allow_directory": True}), ("/a=b", {"allow_directory": True}), ("/a", {"allow_list": True}),
        ("relative/dir", {"allow_directory": True}),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"host|directory"):
            validate_host(text, **options)


@given(st.text())
def test_a_valid_host_stays_valid_and_is_harmless(text: str) -> None:
    try:
        host = validate_host(text)
    except ValueError:
        return
    assert validate_host(host) == host
    assert host.isascii()
    assert not set(host) & set("/,@= \t\r\n\0?#\\'\"")


# --- addresses ---

FORBIDDEN = [
    "169.254.169.254", "169.254.0.1", "0.0.0.0", "0.1.2.3", "100.100.100.200", "192.0.0.192", "168.63.129.16", "224.0.0.1",
    "239.255.255.255", "255.255.255.255", "::", "fe80::1", "fe80::1%eth0", "febf::1", "ff02::1", "fd00:ec2::254",
    "::ffff:169.254.169.254", "::ffff:0.0.0.0", "::ffff:a9fe:a9fe", "::169.254.169.254", "2002:a9fe:a9fe::1",
    "64:ff9b::169.254.169.254", "64:ff9b:1::a9fe:a9fe", "::ffff:0:169.254.169.254", "2001:db8::5efe:169.254.169.254",
    "2001:0:0:0:0:0:5601:5601",  # Teredo: the client's address is stored inverted
]  # fmt: skip
ALLOWED = [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "192.0.2.2", "8.8.8.8", "100.64.0.1", "100.100.100.201", "::1",
    "fd00::2", "2001:db8::1", "::ffff:10.0.0.1", "2002:0a00:0001::1", "64:ff9b::8.8.8.8", "168.63.129.17", "fec0::1",
]  # fmt: skip


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_that_are_never_a_data_source(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_egress(address)
    assert (caught.value.code, caught.value.field) == ("config.policy_denied", "host")


@pytest.mark.parametrize("address", ALLOWED)
def test_ordinary_addresses_of_an_agent_beside_the_data(address: str) -> None:
    check_egress(address)


def test_egress_wants_a_number() -> None:
    with pytest.raises(ConfigError) as caught:
        check_egress("db.example.com")
    assert caught.value.code == "config.invalid"


# --- resolving ---


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A resolver of our own: name → addresses, or a function that is called and may block or raise."""
    table: dict[str, Any] = {"asked": []}

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        table["asked"].append(host)
        answer = table[host]
        if callable(answer):
            answer = answer()
        return [(0, 0, 0, "", (address, port)) for address in answer for _ in range(2)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield table
    network._lookups.clear()


def test_resolve_keeps_the_order_and_drops_repetitions(names: dict[str, Any]) -> None:
    names["db"] = ["fd00::1", "10.0.0.2", "10.0.0.1"]
    assert resolve("db", 5432) == ["fd00::1", "10.0.0.2", "10.0.0.1"]


def test_a_numeric_host_asks_nobody(names: dict[str, Any]) -> None:
    assert resolve("10.0.0.1", 1) == ["10.0.0.1"]
    assert names["asked"] == []


@pytest.mark.parametrize("host", ["169.254.169.254", "::ffff:169.254.169.254", "0.0.0.0"])
def test_a_forbidden_literal_is_refused(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(host, 80)
    assert caught.value.code == "config.policy_denied"


@pytest.mark.parametrize("host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "0"])
def test_other_spellings_of_a_forbidden_address(host: str) -> None:
    """The system's resolver understands these; the check is on what it answers."""
    with pytest.raises(ConfigError) as caught:
        resolve(host, 80)
    assert caught.value.code == "config.policy_denied"


def test_one_forbidden_address_among_good_ones_is_enough(names: dict[str, Any]) -> None:
    names["rebinding.example"] = ["93.184.216.34", "169.254.169.254"]
    with pytest.raises(ConfigError) as caught:
        resolve("rebinding.example", 80)
    assert caught.value.code == "config.policy_denied"


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_unknown_names(names: dict[str, Any], error: Exception) -> None:
    names["nowhere.invalid"] = lambda: raise_(error)
    with pytest.raises(SourceError) as caught:
        resolve("nowhere.invalid", 5432)
    assert caught.value.code == "net.dns"
    assert "'nowhere.invalid' does not resolve" in caught.value.message
    assert caught.value.hint is not None and "spelling" in caught.value.hint
    assert caught.value.native is not None


def test_a_name_service_that_hangs_costs_one_thread_and_no_caller(names: dict[str, Any]) -> None:
    gate = threading.Event()
    names["slow"] = lambda: ["10.0.0.1"] if gate.wait(20) else []
    for _ in range(3):
        with pytest.raises(SourceError) as caught:
            resolve("slow", 5432, Deadline(0.02))
        assert (caught.value.code, "within" in caught.value.message) == ("net.dns", True)
    assert names["asked"] == ["slow"]
    waiting = threading.Thread(target=lambda: found.extend(resolve("slow", 5432)))
    found: list[str] = []
    waiting.start()
    gate.set()
    waiting.join(20)
    assert found == ["10.0.0.1"]
    assert not network._lookups
    assert resolve("slow", 5432) == ["10.0.0.1"]  # a new question
    assert len(names["asked"]) in (2, 3)


def test_a_lookup_that_hangs_for_long_is_not_joined(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    calls: list[int] = []

    def answer() -> Sequence[str]:
        calls.append(1)
        if len(calls) == 1:
            gate.wait(20)
        return ["10.0.0.1"]

    names["slow"] = answer
    monkeypatch.setattr(network, "_STALE_LOOKUP_S", 0.0)
    with pytest.raises(SourceError):
        resolve("slow", 1, Deadline(0.01))
    assert resolve("slow", 1) == ["10.0.0.1"]
    gate.set()


# --- dialling ---


@contextmanager
def listening(family: int = socket.AF_INET, address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    with socket.create_server((address, port), family=family) as server:
        yield server.getsockname()[1]


def test_dial_returns_a_blocking_socket_and_what_was_tried() -> None:
    with listening() as port:
        connection, tried = dial("127.0.0.1", port)
        with connection:
            assert connection.getpeername() == ("127.0.0.1", port)
            assert connection.gettimeout() is None
        assert [set(one) for one in tried] == [{"address", "ms"}]


def test_refused_and_unanswered(closed_port: int, blackhole_port: int) -> None:
    with pytest.raises(SourceError) as caught:
        dial("127.0.0.1", closed_port)
    assert caught.value.code == "net.refused"
    assert f"127.0.0.1:{closed_port}" in caught.value.message
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert caught.value.data is not None
    assert [(one["address"], one["error"]) for one in caught.value.data["tried"]] == [("127.0.0.1", "net.refused")]
    with pytest.raises(SourceError) as caught:
        dial("127.0.0.1", blackhole_port, Deadline(0.1))
    assert caught.value.code == "net.timeout"


def test_a_dead_first_address_costs_its_head_start_only(names: dict[str, Any], blackhole_port: int) -> None:
    """P35: the black hole would hold a one-by-one dialler for its whole share of the limit."""
    with listening(address="127.0.0.2", port=blackhole_port):
        names["db"] = ["127.0.0.1", "127.0.0.2"]
        connection, tried = dial("db", blackhole_port)
        connection.close()
    assert [(one["address"], one.get("error")) for one in tried] == [
        ("127.0.0.1", "net.timeout"), ("127.0.0.2", None),
    ]  # fmt: skip


def test_a_refused_address_is_followed_at_once_by_the_next(names: dict[str, Any], closed_port: int) -> None:
    with listening(address="127.0.0.3", port=closed_port):
        names["db"] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        connection, tried = dial("db", closed_port)
        connection.close()
    assert [one["address"] for one in tried] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]


def test_the_most_telling_failure_is_reported(names: dict[str, Any], blackhole_port: int) -> None:
    names["db"] = ["127.0.0.1", "127.0.0.2"]  # silence here, a refusal there
    with pytest.raises(SourceError) as caught:
        dial("db", blackhole_port, Deadline(1))
    assert caught.value.code == "net.refused"


def test_families_take_turns() -> None:
    assert network._interleaved(["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2", "10.0.0.3"]) == [
        "fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2", "10.0.0.3",
    ]  # fmt: skip
    assert network._interleaved([]) == []


def test_dialling_leaves_no_descriptor_behind(names: dict[str, Any], closed_port: int, blackhole_port: int) -> None:
    names["mixed"] = ["127.0.0.1", "127.0.0.2"]
    before = len(os.listdir("/proc/self/fd"))
    for port in (closed_port, blackhole_port):
        for _ in range(5):
            with pytest.raises(SourceError):
                dial("mixed", port, Deadline(0.05))
    with listening(address="127.0.0.2", port=closed_port):
        for _ in range(5):
            dial("mixed", closed_port)[0].close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_ipv6_only_listener() -> None:
    with listening(socket.AF_INET6, "::1") as port:
        connection, tried = dial("::1", port)
        connection.close()
        assert tried[-1]["address"] == "::1"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConnectionRefusedError(), "net.refused", "nothing listens on db:5432"),
        (TimeoutError(), "net.timeout", "no answer from db:5432"),
        (OSError(errno.ETIMEDOUT, "x"), "net.timeout", "no answer"),
        (BlockingIOError(errno.EAGAIN, "x"), "net.timeout", "no answer"),
        (ConnectionResetError(), "net.reset", "cut the connection"),
        (BrokenPipeError(), "net.reset", "cut the connection"),
        (OSError(errno.ECONNABORTED, "x"), "net.reset", "cut the connection"),
        (OSError(errno.ENOTCONN, "x"), "net.reset", "cut the connection"),
        (OSError(errno.EHOSTUNREACH, "x"), "net.unreachable", "no route to db:5432"),
        (OSError(errno.ENETUNREACH, "x"), "net.unreachable", "no route"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "net.unreachable", "no route"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "net.unreachable", "Operation not permitted"),
        (OSError(errno.EMFILE, "Too many open files"), "net.unreachable", "Too many open files"),
    ],
)
def test_errors_are_told_apart(error: OSError, code: str, says: str) -> None:
    mapped = dial_error(error, "db", 5432)
    assert (mapped.code, mapped.retryable) == (code, True)
    assert says in mapped.message
    assert mapped.hint


def test_an_ipv6_address_is_written_in_brackets() -> None:
    assert "[::1]:5432" in dial_error(ConnectionRefusedError(), "::1", 5432).message


def test_socket_options_can_be_set() -> None:
    with socket.socket() as one:
        for level, option, value in socket_options(keepalive_s=17):
            one.setsockopt(level, option, value)
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 17
        assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


# --- stages ---


def test_stages_of_a_reachable_server() -> None:
    probe = Probe()
    with listening() as port:
        probe_dns(probe, "localhost")
        probe_tcp(probe, "127.0.0.1", port)
    report = probe.report()
    stages = {stage.stage: stage for stage in report.stages}
    assert (stages["dns"].status, stages["tcp"].status) == ("passed", "passed")
    assert "127.0.0.1" in stages["dns"].details["addresses"]
    assert stages["tcp"].details["tried"][0]["address"] == "127.0.0.1"
    assert report.warnings == ()


def test_stages_of_unreachable_ones(names: dict[str, Any], closed_port: int) -> None:
    names["nowhere"] = lambda: raise_(socket.gaierror(-2, "unknown"))
    probe = Probe()
    with pytest.raises(ProbeFailed):
        probe_dns(probe, "nowhere")
    assert probe.error is not None and probe.error.code == "net.dns"
    probe = Probe()
    with pytest.raises(ProbeFailed):
        probe_tcp(probe, "127.0.0.1", closed_port)
    report = probe.report()
    failed = next(stage for stage in report.stages if stage.status == "failed")
    assert (failed.stage, failed.code) == ("tcp", "net.refused")
    assert failed.details["tried"][0]["error"] == "net.refused"
    assert report.error is not None and report.error.stage == "tcp"


def test_a_dead_family_is_a_warning(names: dict[str, Any]) -> None:
    names["both"] = ["2001:db8::1", "127.0.0.1"]  # a documentation address: there is no route to it, or no answer
    probe = Probe()
    with listening() as port:
        probe_tcp(probe, "both", port)
    report = probe.report()
    tcp = next(stage for stage in report.stages if stage.stage == "tcp")
    assert (report.ok, tcp.status) == (True, "warning")
    assert tcp.code in ("net.unreachable", "net.timeout", "net.refused")
    assert "IPv6 address 2001:db8::1" in report.warnings[0]
    assert tcp.details["tried"][-1] == {"address": "127.0.0.1", "ms": tcp.details["tried"][-1]["ms"]}


def test_localhost_served_by_one_family_is_no_warning(names: dict[str, Any]) -> None:
    names["localhost"] = ["::1", "127.0.0.1"]
    probe = Probe()
    with listening() as port:
        probe_tcp(probe, "localhost", port)
    assert probe.report().warnings == ()


# --- certificates ---


def certificate(
    name: str = "db", *, before: timedelta = timedelta(days=-1), after: timedelta, authority: bool | None = None
) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + before)
        .not_valid_after(now + after)
    )
    if authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_facts_of_a_certificate() -> None:
    facts = check_certificate(certificate(after=timedelta(days=10, hours=1)))
    assert (facts["subject"], facts["expires_in_days"], facts["count"]) == ("CN=db", 10, 1)
    assert datetime.fromisoformat(facts["not_after"]).tzinfo is not None


def test_certificates_made_for_test_servers_pass(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    assert check_certificate(files.ca.read_text())["subject"] == "CN=hfagent test authority"


def test_expired_and_not_yet_valid() -> None:
    old = certificate(before=timedelta(days=-10), after=timedelta(days=-1))
    with pytest.raises(ConfigError) as caught:
        check_certificate(old, what="ssl_cert")
    assert caught.value.code == "tls.expired"
    assert "the ssl_cert expired on" in caught.value.message
    with pytest.raises(ConfigError, match="not valid before") as caught:
        check_certificate(certificate(before=timedelta(days=1), after=timedelta(days=2)))
    assert caught.value.code == "config.invalid"


def test_an_old_authority_may_stay_in_a_bundle_but_not_lead_a_chain() -> None:
    past = {"before": timedelta(days=-10), "after": timedelta(days=-1)}
    new = certificate("new", after=timedelta(days=99), authority=True)
    facts = check_certificate(certificate("old", authority=True, **past) + new)
    assert (facts["subject"], facts["count"]) == ("CN=new", 2)
    with pytest.raises(ConfigError) as caught:
        check_certificate(certificate("leaf", authority=False, **past) + new)
    assert caught.value.code == "tls.expired"


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "not a certificate",
        "/etc/ssl/ca.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        "\ud800",
    ],
)
def test_what_is_no_certificate_is_refused_without_being_quoted(pem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_certificate(pem, what="ssl_ca")
    assert caught.value.code == "config.invalid"
    assert caught.value.message == "the ssl_ca is not a PEM certificate"


def test_a_private_key_in_the_wrong_field_is_not_repeated() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ConfigError) as caught:
        check_certificate(key.decode())
    assert key.decode().split("\n")[1] not in str(caught.value.to_data())


@given(st.text(max_size=200))
def test_any_text_is_a_certificate_or_an_agent_error(text: str) -> None:
    with pytest.raises(AgentError):
        check_certificate("-----BEGIN CERTIFICATE-----\n" + text + "\n-----END CERTIFICATE-----")


# --- start-up ---


def test_importing_the_sdk_loads_nothing_heavy() -> None:
    modules = "pool network guard arrow wire egress certificate probe config secret sql registry"
    script = (
        "import sys\n"
        f"for name in {modules.split()!r}: __import__('hfagent.sdk.' + name)\n"
        "heavy = {'pyarrow', 'sqlglot', 'cryptography', 'duckdb', 'psycopg', 'pymysql', 'asyncio', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {sorted(heavy)}' if heavy else 0)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def raise_(error: Exception) -> Callable[[], None]:
    raise error
