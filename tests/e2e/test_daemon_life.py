"""A real daemon from start to end: who may start it, what it needs, how it stops."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hfagent.client.sync import SyncClient
from hfagent.foundation.errors import AgentError
from hfagent.protocol.agent import DOCTOR, RELOAD, SHUTDOWN, STATUS, ShutdownParams
from hfagent.protocol.connectors import CREATE, DELETE, LIST, POOL_STATS, CreateParams, DeleteParams
from hfagent.protocol.query import EXECUTE, FETCH, ExecuteParams, FetchParams
from hfagent.protocol.vault import STATUS as VAULT_STATUS
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.store import Store
from tests.e2e.plugin import install
from tests.fixtures.daemon import REPOSITORY, DaemonProcess, wait_until

Start = Callable[..., DaemonProcess]


class WithPlugin(DaemonProcess):
    """A daemon that knows the type `slow`."""

    @property
    def environment(self) -> dict[str, str]:
        plugin = self.data_dir.parent / "plugin"
        return {**super().environment, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{plugin}"}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "agent"
    folder.mkdir(mode=0o700)
    install(tmp_path / "plugin")
    return folder


@pytest.fixture
def start(data_dir: Path) -> Iterator[Start]:
    """Start daemons on the test's data directory; what still runs at the end is killed."""
    started: list[DaemonProcess] = []

    def start(*options: str) -> DaemonProcess:
        started.append(WithPlugin(data_dir, options=options))
        return started[-1].start()

    yield start
    for daemon in started:
        daemon.stop(signal.SIGKILL)


def run(data_dir: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected to refuse."""
    return subprocess.run(
        [sys.executable, "-m", "hfagent", "daemon", "--data-dir", str(data_dir), *options],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        env={**WithPlugin(data_dir).environment, **environment},
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], *words: str, remedy: str) -> None:
    """It ended with 1, said what is wrong and what to do, and nothing of Python's."""
    assert done.returncode == 1, done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("Error: "))
    hint = next(line for line in done.stderr.splitlines() if line.startswith("Try:   "))
    for word in words:
        assert word in error
    assert remedy in hint
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def slow(client: SyncClient, name: str = "slow", **config: Any) -> None:
    client.call(CREATE, CreateParams(name=name, type="slow", config=config))


def logged(daemon: DaemonProcess, words: str) -> bool:
    return words in daemon.paths.log_file.read_text()


# --- starting -----------------------------------------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_directory_leaves(start: Start, data_dir: Path) -> None:
    first = start()
    assert first.process is not None
    refused(run(data_dir), f"another agent (pid {first.process.pid})", str(data_dir), remedy="hfagent stop")
    assert first.connect().call(STATUS).pid == first.process.pid
    refused(run(data_dir, "--socket", str(data_dir / "other.sock")), "another agent", remedy="--data-dir")
    assert first.stop() == 0


def test_many_started_at_once_one_stays(data_dir: Path) -> None:
    """All race for the lock; the losers go, whoever they are, and say why."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "hfagent", "daemon", "--data-dir", str(data_dir)],
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=WithPlugin(data_dir).environment,
        )
        for _ in range(4)
    ]  # fmt: skip
    try:
        wait_until(lambda: sum(p.poll() is not None for p in processes) == 3, "three of four have left", 60)
        (left,) = [p for p in processes if p.poll() is None]
        for process in processes:
            if process is not left:
                assert process.returncode == 1
                assert process.stderr is not None and f"another agent (pid {left.pid})" in process.stderr.read()
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def test_after_a_kill_the_next_start_needs_no_hand(start: Start, data_dir: Path) -> None:
    daemon = start()
    slow(daemon.connect(), password="some-secret-word")
    for _ in range(3):
        daemon.stop(signal.SIGKILL)
        assert daemon.paths.socket.exists()  # stale
        daemon = start()
        assert [c.name for c in daemon.connect().call(LIST).connectors] == ["slow"]
    assert daemon.stop() == 0
    assert not daemon.paths.socket.exists()


def test_an_open_data_directory_is_refused(data_dir: Path) -> None:
    data_dir.chmod(0o755)
    refused(run(data_dir), "is open to other users (mode 755)", remedy=f"chmod 700 {data_dir}")
    data_dir.chmod(0o700)


def test_a_data_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run(tmp_path / "file"), str(tmp_path / "file"), remedy="--data-dir")
    refused(run(tmp_path / "file" / "below"), "file is not a directory", remedy="--data-dir")
    refused(run(Path("/proc/hfagent")), "/proc/hfagent", remedy="--data-dir")


def test_a_lock_file_that_is_a_link_is_refused(data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "agent.lock").symlink_to(tmp_path / "victim")
    refused(run(data_dir), "the lock file", remedy="--data-dir")
    assert not (tmp_path / "victim").exists()


def test_a_damaged_store_is_refused_and_left_as_it_is(start: Start, data_dir: Path) -> None:
    start().stop()
    store = data_dir / "agent.db"
    store.write_bytes(b"garbage" * 5000)
    refused(run(data_dir), "agent.db is damaged", remedy="backup")
    assert store.read_bytes() == b"garbage" * 5000


def test_a_newer_store_is_refused_and_left_as_it_is(start: Start, data_dir: Path) -> None:
    start().stop()
    with sqlite3.connect(data_dir / "agent.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    before = (data_dir / "agent.db").read_bytes()
    done = run(data_dir)
    assert done.returncode == 1
    assert re.search(r"Error: .*(newer|version)", done.stderr)
    assert "Try:" in done.stderr and "Traceback" not in done.stderr
    assert (data_dir / "agent.db").read_bytes() == before


def test_a_wrong_configuration_is_refused(data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "config.toml").write_text("[policy]\nalowed_types = []\n")
    refused(run(data_dir), "policy.alowed_types", remedy="policy.allowed_types")
    (data_dir / "config.toml").write_text("[server\n")
    refused(run(data_dir), "config.toml is not valid TOML", "line 1", remedy="mend")
    (data_dir / "config.toml").unlink()
    refused(run(data_dir, "--config", str(tmp_path / "typo.toml")), "typo.toml does not exist", remedy="--config")
    refused(run(data_dir, HFAGENT_LOG_LEVEL="loud"), "HFAGENT_LOG_LEVEL", remedy="logged")
    refused(run(data_dir, HFAGENT_POLICY_ALOWED_TYPES="x"), "names no setting", remedy="HFAGENT_POLICY_ALLOWED_TYPES")


def test_a_place_for_the_socket_that_is_taken_is_left_alone(data_dir: Path) -> None:
    place = data_dir / "run" / "agent.sock"
    place.parent.mkdir(mode=0o700)
    place.write_text("precious")
    refused(run(data_dir), "is not a socket", remedy="--socket")
    assert place.read_text() == "precious"
    refused(run(data_dir, "--socket", str(data_dir / ("x" * 120))), "longer than", remedy="--socket")


def test_a_port_that_is_taken_is_told(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run(data_dir, "--tcp-port", str(port)), f"port {port}", remedy="another port")
    assert not (data_dir / "run" / "agent.sock").exists()


def test_who_started_it_hears_why_it_did_not(data_dir: Path) -> None:
    data_dir.chmod(0o755)
    ready, word = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "hfagent", "daemon", "--data-dir", str(data_dir), "--ready-fd", str(word)],
        pass_fds=(word,), stderr=subprocess.DEVNULL, env=WithPlugin(data_dir).environment,
    )  # fmt: skip
    os.close(word)
    with open(ready) as said:
        text = said.read()
    assert process.wait(30) == 1
    assert "open to other users" in text and f"chmod 700 {data_dir}" in text
    data_dir.chmod(0o700)


def test_starting_opens_nothing_however_much_is_configured(start: Start, data_dir: Path) -> None:
    with Store.open(data_dir / "agent.db") as store, store.transaction():
        for number in range(1000):
            store.connectors.insert(
                ConnectorRecord(
                    id=store.new_id(), name=f"c{number}", type="postgresql",
                    config={"host": "192.0.2.1", "database": "d", "username": "u"},
                )
            )  # fmt: skip
    daemon = start()
    client = daemon.connect()
    status = client.call(STATUS)
    assert (status.connectors, status.open_connections) == (1000, 0)
    assert client.call(POOL_STATS).pools == ()
    assert status.threads < 20
    assert daemon.process is not None
    maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    for driver in ("psycopg", "duckdb", "pyarrow"):
        assert driver not in maps
    assert len(client.call(LIST).connectors) == 1000
    assert daemon.stop() == 0


def test_with_a_locked_vault_it_starts_and_says_so(start: Start, data_dir: Path) -> None:
    daemon = start()
    client = daemon.connect()
    slow(client, "secret", password="some-secret-word")
    slow(client, "open")
    daemon.stop()
    for key in daemon.paths.vault_dir.glob("*.key"):
        key.rename(key.with_suffix(".kept"))
    daemon = start()
    client = daemon.connect()
    status = client.call(STATUS)
    assert status.vault == "locked"
    (problem,) = [p for p in status.problems if p["name"] == "vault"]
    assert problem["status"] == "error" and problem["hint"]
    assert client.call(VAULT_STATUS).state == "locked"
    assert not client.call(DOCTOR).ok
    assert client.call(EXECUTE, ExecuteParams(connector="open", sql="rows 3")).row_count == 3
    with pytest.raises(AgentError) as caught:
        client.call(EXECUTE, ExecuteParams(connector="secret", sql="rows 3"))
    assert caught.value.code == "credential.key_missing"
    client.call(DELETE, DeleteParams(connector="open"))
    daemon.stop()
    assert not list(daemon.paths.vault_dir.glob("*.key"))  # and no new key was made
    for key in daemon.paths.vault_dir.glob("*.kept"):
        key.rename(key.with_suffix(".key"))
    assert start().connect().call(EXECUTE, ExecuteParams(connector="secret", sql="rows 3")).row_count == 3


# --- stopping -----------------------------------------------------------------------------------------------------------


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    outcome: list[Any] = []

    def body() -> None:
        try:
            outcome.append(work())
        except AgentError as exc:
            outcome.append(exc)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, outcome


def running(daemon: DaemonProcess, sql: str) -> tuple[threading.Thread, list[Any]]:
    """Run a statement in a thread, and wait until it runs."""
    client = daemon.connect("who waits")
    thread, outcome = in_thread(lambda: client.call(EXECUTE, ExecuteParams(connector="slow", sql=sql)))
    watcher = daemon.connect("who watches")
    wait_until(lambda: any(p.busy for p in watcher.call(POOL_STATS).pools), "the statement runs")
    return thread, outcome


def leave(daemon: DaemonProcess, *numbers: int) -> int:
    """Send signals, keep the clients connected, and wait for the end."""
    assert daemon.process is not None
    for number in numbers:
        daemon.process.send_signal(number)
    return daemon.process.wait(40)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_before_it_stops(start: Start, number: int) -> None:
    daemon = start()
    slow(daemon.connect())
    thread, outcome = running(daemon, "sleep 0.7")
    assert leave(daemon, number) == 0
    thread.join(20)
    assert outcome[0].row_count == 1
    assert logged(daemon, '"stopped"')
    assert not logged(daemon, '"level": "error"')


def test_what_takes_too_long_is_cancelled(start: Start, data_dir: Path) -> None:
    (data_dir / "config.toml").write_text("[server]\ndrain_s = 0.2\n")
    daemon = start()
    slow(daemon.connect())
    thread, outcome = running(daemon, "sleep 60")
    assert leave(daemon, signal.SIGTERM) == 0
    thread.join(20)
    assert isinstance(outcome[0], AgentError)
    assert outcome[0].code in ("cancelled", "agent.draining")
    assert logged(daemon, "did not finish within 0.2 s")


def test_a_driver_that_hangs_for_ever_does_not_keep_it(start: Start, data_dir: Path) -> None:
    (data_dir / "config.toml").write_text("[server]\ndrain_s = 0.1\n")
    daemon = start()
    slow(daemon.connect())
    threads = [running(daemon, "hang")[0] for _ in range(3)]
    assert leave(daemon, signal.SIGTERM) == 0
    for thread in threads:
        thread.join(20)
    assert start().connect().call(STATUS).state == "ready"


def test_asked_twice_it_hurries(start: Start, data_dir: Path) -> None:
    (data_dir / "config.toml").write_text("[server]\ndrain_s = 300\n")
    daemon = start()
    slow(daemon.connect())
    thread, outcome = running(daemon, "sleep 60")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refuses(daemon), "it takes no new clients")
    assert daemon.process.poll() is None
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(30) == 0
    thread.join(20)
    assert isinstance(outcome[0], AgentError)


def refuses(daemon: DaemonProcess) -> bool:
    try:
        daemon.connect().close()
    except AgentError:
        return True
    return False


def test_shutdown_by_request_answers_first(start: Start) -> None:
    daemon = start()
    client = daemon.connect()
    assert client.call(SHUTDOWN, ShutdownParams(drain_s=1)).ok
    assert daemon.process is not None
    assert daemon.process.wait(20) == 0
    assert not daemon.paths.socket.exists()


def test_results_left_open_do_not_keep_it(start: Start) -> None:
    daemon = start()
    client = daemon.connect()
    slow(client)
    page = client.call(EXECUTE, ExecuteParams(connector="slow", sql="rows 100", page_size=10))
    assert client.call(FETCH, FetchParams(query_id=page.query_id)).rows_before == 10
    assert client.call(STATUS).open_queries == 1
    assert leave(daemon, signal.SIGTERM) == 0


def test_it_leaves_when_nobody_was_there_for_a_while(start: Start) -> None:
    daemon = start("--idle-timeout", "0.5")
    client = daemon.connect()
    assert daemon.process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(1.5)
    assert client.call(STATUS).state == "ready"
    client.close()
    assert daemon.process.wait(20) == 0
    assert logged(daemon, "nobody was here for 0.5 s")


def test_a_client_that_goes_takes_its_results_along(start: Start) -> None:
    daemon = start()
    client = daemon.connect()
    slow(client)
    for _ in range(3):
        client.call(EXECUTE, ExecuteParams(connector="slow", sql="rows 100", page_size=10))
    other = daemon.connect()
    assert other.call(STATUS).open_queries == 3
    client.close()
    wait_until(lambda: other.call(STATUS).open_queries == 0, "the results are closed")
    (pool,) = other.call(POOL_STATS).pools
    assert pool.busy == 0


# --- reloading ----------------------------------------------------------------------------------------------------------


def test_reloading_applies_what_it_can_and_names_the_rest(start: Start, data_dir: Path) -> None:
    daemon = start()
    client = daemon.connect()
    slow(client)
    assert client.call(EXECUTE, ExecuteParams(connector="slow", sql="rows 3")).row_count == 3
    config = data_dir / "config.toml"
    config.write_text("[policy]\ndenied_types = ['slow']\n[server]\ntcp_port = 0\n[log]\nlevel = 'debug'\n")
    result = client.call(RELOAD)
    assert set(result.changed) == {"policy.denied_types", "server.tcp_port", "log.level"}
    assert result.restart_needed == ("server.tcp_port",)
    with pytest.raises(AgentError) as caught:
        client.call(EXECUTE, ExecuteParams(connector="slow", sql="rows 3"))
    assert caught.value.code == "config.policy_denied"  # though its connections were open already
    config.write_text("")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    read = "configuration read again: server.tcp_port, log.level, policy.denied_types"
    wait_until(lambda: daemon.paths.log_file.read_text().count(read) == 2, "it is read")
    assert client.call(EXECUTE, ExecuteParams(connector="slow", sql="rows 3")).row_count == 3


def test_a_broken_file_keeps_the_old_configuration(start: Start, data_dir: Path) -> None:
    config = data_dir / "config.toml"
    config.write_text("[policy]\ndenied_types = ['csv']\n")
    daemon = start()
    client = daemon.connect()
    for text in ("[policy", "[policy]\nalowed_types = []\n", "[log]\nlevel = 'loud'\n"):
        config.write_text(text)
        with pytest.raises(AgentError) as caught:
            client.call(RELOAD)
        assert caught.value.code.startswith("config.")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: logged(daemon, "the configuration was not reloaded"), "it is refused")
    with pytest.raises(AgentError) as caught:
        client.call(CREATE, CreateParams(name="x", type="csv", config={"path": "/tmp"}))
    assert caught.value.code == "config.policy_denied"
    assert client.call(STATUS).state == "ready"


# --- what others can see of it ------------------------------------------------------------------------------------------


def test_nothing_it_makes_is_open_to_others(start: Start, data_dir: Path) -> None:
    data_dir.rmdir()
    daemon = start("--tcp-port", "0")
    slow(daemon.connect(), password="some-secret-word")
    for path in [data_dir, *data_dir.rglob("*")]:
        if path.name != "stderr.log" and not path.is_symlink():  # that one is the test's own
            assert path.stat().st_mode & 0o077 == 0, f"{path} has mode {path.stat().st_mode:o}"
    assert daemon.paths.token_file.exists()
    assert daemon.stop() == 0
    assert not daemon.paths.token_file.exists()


def test_its_memory_cannot_be_read_and_is_never_dumped(start: Start) -> None:
    daemon = start()
    assert daemon.process is not None
    limits = Path(f"/proc/{daemon.process.pid}/limits").read_text()
    assert re.search(r"Max core file size\s+0\s+0\s", limits)
    code = (
        "import ctypes; from hfagent.daemon import _harden; _harden();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "0\n"


def test_it_asks_for_as_many_open_files_as_it_may_have(start: Start) -> None:
    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 5000))

    code = (
        "import resource; from hfagent.daemon import _harden; _harden();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, preexec_fn=low
    )
    assert done.stdout == "(5000, 5000)\n"


def test_a_defect_at_the_start_is_told_without_secrets(data_dir: Path) -> None:
    code = f"""
import sys
from hfagent import daemon
from hfagent.foundation.paths import AgentPaths
from hfagent.foundation.redaction import register_secret
register_secret("hunter22-canary")
def broken(*_): raise RuntimeError("it was hunter22-canary")
daemon.Store.open = broken
sys.exit(daemon.run(daemon.DaemonOptions(AgentPaths(data_dir={str(data_dir)!r}))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 1
    assert "hunter22" not in done.stdout + done.stderr
    assert "RuntimeError" in done.stderr
    assert "Error: a defect in the agent" in done.stderr
