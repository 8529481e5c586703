"""A real daemon process: the same conversation over stdio, unix socket and TCP, in JSON and in MessagePack."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from hfagent import __version__
from hfagent.client.sync import SyncClient
from hfagent.foundation.errors import AgentError
from hfagent.protocol.agent import DOCTOR, SESSIONS, SHUTDOWN, STATUS, DoctorParams, ShutdownParams
from hfagent.protocol.connectors import CATALOG, CREATE, LIST, CreateParams
from hfagent.protocol.query import EXECUTE, FETCH, ExecuteParams, FetchParams
from hfagent.protocol.table import METHODS
from hfagent.protocol.vault import RECOVERY_KEY
from hfagent.transport.framing import Encoding
from tests.fixtures.daemon import DaemonProcess, wait_until
from tests.fixtures.postgres import PostgresDatabase


def test_a_conversation(agent: DaemonProcess) -> None:
    client = agent.connect("the test")
    status = client.call(STATUS)
    assert (status.build, status.state) == (__version__, "ready")
    assert agent.process is not None
    assert status.pid == agent.process.pid
    mine = client.call(SESSIONS).sessions
    assert len(mine) == 1
    assert mine[0].transport == ("tcp" if agent.transport == "tcp" else "unix")
    assert mine[0].encoding == agent.encoding
    assert "the test" in mine[0].client
    types = client.call(CATALOG).types
    assert {"postgresql", "mysql"} <= {t.type for t in types}
    assert client.call(LIST).connectors == ()
    values: list[dict[str, object]] = []
    client.call(DOCTOR, DoctorParams(), progress=values.append)
    assert not values or values[-1]["kind"] == "end"
    with pytest.raises(AgentError) as caught:
        client.request("connectors/get", {"connector": "nobody"})
    assert caught.value.code == "connector.not_found"
    with pytest.raises(AgentError) as caught:
        client.request("connectors/get", {"conector": "x"})
    assert caught.value.data is not None
    assert caught.value.code == "request.invalid_params"


def test_key_material_stays_off_tcp(agent: DaemonProcess) -> None:
    client = agent.connect()
    if agent.transport == "tcp":
        with pytest.raises(AgentError) as caught:
            client.call(RECOVERY_KEY)
        assert caught.value.code == "access.denied"
    else:
        assert client.call(RECOVERY_KEY).recovery_key


def test_every_method_answers(agent: DaemonProcess) -> None:
    """With nothing given, each method of the description answers with a result or a proper error; none crashes."""
    client = agent.connect()
    described = [m["name"] for m in client.request("rpc.discover", {})["methods"]]
    assert set(described) == {*METHODS, "rpc.discover"}
    for name in described:
        if name in (SHUTDOWN.name, "vault/rotate", "vault/unlock"):
            continue
        try:
            client.request(name, {}, timeout=60)
        except AgentError as exc:
            assert exc.code not in ("internal.bug", "net.protocol", "agent.offline", "timeout.total"), (name, exc)


def test_sigterm_ends_it_cleanly(daemon: DaemonProcess) -> None:
    client = daemon.connect()
    assert client.call(STATUS).state == "ready"
    assert daemon.stop(signal.SIGTERM) == 0
    assert not daemon.paths.socket.exists()
    assert not daemon.paths.token_file.exists()
    assert "Traceback" not in daemon.log()


def test_shutdown_answers_first(daemon: DaemonProcess) -> None:
    client = daemon.connect()
    assert client.call(SHUTDOWN, ShutdownParams(drain_s=1)).ok
    assert daemon.process is not None
    assert daemon.process.wait(30) == 0


def test_after_a_kill_the_next_one_starts(daemon: DaemonProcess) -> None:
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    assert daemon.paths.socket.exists()  # stale
    daemon.start()
    assert daemon.connect().call(STATUS).state == "ready"


def test_a_second_daemon_on_the_same_data_says_why_not(daemon: DaemonProcess) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hfagent", "daemon", "--data-dir", str(daemon.data_dir)],
        capture_output=True, text=True, env=daemon.environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert str(daemon.data_dir) in done.stderr
    assert "Traceback" not in done.stderr
    assert daemon.connect().call(STATUS).state == "ready"


def test_it_listens_where_it_says_and_nowhere_else(daemon: DaemonProcess) -> None:
    assert daemon.process is not None
    sockets = set()
    for name in os.listdir(f"/proc/{daemon.process.pid}/fd"):
        try:
            sockets.add(os.readlink(f"/proc/{daemon.process.pid}/fd/{name}"))
        except FileNotFoundError:
            pass
    listening = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{daemon.process.pid}/net/{table}") as lines:
            for line in list(lines)[1:]:
                words = line.split()
                if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                    listening.add(words[1])
    port = f"{daemon.port:04X}"
    assert f"0100007F:{port}" in listening
    assert listening <= {f"0100007F:{port}", f"00000000000000000000000001000000:{port}"}


def test_hostile_bytes_leave_it_serving(daemon: DaemonProcess) -> None:
    """Garbage on every door, from a seeded generator; the daemon goes on, and its log has no trace of a defect."""
    import random

    rng = random.Random(3)
    for number in range(150):
        if number % 2:
            stranger = socket.socket(socket.AF_UNIX)
            stranger.connect(str(daemon.paths.socket))
        else:
            stranger = socket.create_connection(("127.0.0.1", daemon.port))
        with stranger:
            head = rng.choice(
                [b"", b"Content-Length: 60\r\n\r\n", b"Content-Length: 9999999999\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]
            )
            try:
                stranger.sendall(head + rng.randbytes(rng.choice([0, 1, 60, 5000])))
            except OSError:
                pass

    def connected() -> bool:
        try:
            daemon.connect()
        except AgentError as exc:  # more of them at a time than the daemon takes: the next moment has room
            assert exc.code == "capacity.overloaded"
            assert exc.retryable
            return False
        return True

    wait_until(connected, "there is room")
    client = daemon.connect()
    wait_until(lambda: client.call(STATUS).sessions == 2, "the strangers are gone")
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_a_query_from_its_first_page_to_its_last(
    daemon: DaemonProcess, encoding: Encoding, postgres_database: PostgresDatabase
) -> None:
    """Rows in JSON, Arrow in MessagePack, the same values, over the real pool and a real server."""
    server = postgres_database.server
    daemon.encoding = encoding
    client = daemon.connect()
    config = {
        "host": server.host, "port": server.port, "user": server.superuser, "password": server.password,
        "database": postgres_database.name,
    }  # fmt: skip
    client.call(CREATE, CreateParams(name="pg", type="postgresql", config=config))
    sql = "select n, 'row ' || n as text from generate_series(1, 2500) n order by n"
    page = client.call(EXECUTE, ExecuteParams(connector="pg", sql=sql, page_size=1000))
    numbers: list[int] = []
    pages = 1
    while True:
        if encoding == "json":
            assert page.arrow is None
            assert page.rows is not None
            numbers += [row[0] for row in page.rows]
        else:
            import pyarrow as pa

            assert page.rows is None
            assert page.arrow is not None
            numbers += pa.ipc.open_stream(page.arrow).read_all().column("n").to_pylist()
        if not page.has_more:
            break
        page = client.call(FETCH, FetchParams(query_id=page.query_id))
        pages += 1
    assert numbers == list(range(1, 2501))
    assert pages == 3


def test_the_sync_client_starts_nothing_when_told_not_to(tmp_path: object) -> None:
    from pathlib import Path

    from hfagent.foundation.paths import AgentPaths

    assert isinstance(tmp_path, Path)
    with pytest.raises(AgentError):
        SyncClient.connect(AgentPaths(data_dir=str(tmp_path / "none")), start=False)
    assert list(tmp_path.iterdir()) == []
