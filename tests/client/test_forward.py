"""The forwarder: bytes both ways and nothing else on standard output; an answer even when there is no daemon."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hfagent.cli.forward import _quoted, socket_path
from hfagent.foundation.paths import AgentPaths
from hfagent.server.greeting import AgentInfo
from hfagent.transport.encoding import decode, encode, encode_json
from hfagent.transport.framing import Encoding, FrameDecoder, encode_frame
from tests.fixtures.daemon import ENVIRONMENT_PREFIXES, REPOSITORY, RunningServer, StartServer, wait_until

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIXES)} | {
    "PYTHONPATH": str(REPOSITORY)
}


def start(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT}
    return subprocess.Popen([sys.executable, "-m", "hfagent", "rpc", *words], **{**pipes, **options})


def messages(data: bytes) -> list[Any]:
    return [decode(frame.body, frame.encoding) for frame in FrameDecoder().feed(data)]


def request(request_id: Any, method: str, params: Any = None, encoding: Encoding = "json") -> bytes:
    message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}
    return encode_frame(encode(message, encoding), encoding)


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_a_script_that_writes_everything_and_closes(server: RunningServer, encoding: Encoding) -> None:
    """`printf … | hfagent rpc`: all answers come, then the forwarder ends."""
    script = request(1, "initialize", None, encoding) + request(2, "test/echo", {"text": "é"}, encoding)
    script += request(3, "test/blob", {"size": 3_000_000}, encoding)
    done = subprocess.run(
        [sys.executable, "-m", "hfagent", "rpc", "--socket", str(server.path), "--no-start"],
        input=script, capture_output=True, env=ENVIRONMENT, timeout=30, check=True,
    )  # fmt: skip
    replies = {message["id"]: message for message in messages(done.stdout)}
    assert set(replies) == {1, 2, 3}
    assert replies[2]["result"]["text"] == "é"
    assert len(replies[3]["result"]["text"]) == 3_000_000
    assert done.stderr == b""


def test_the_daemon_hears_who_it_is(server: RunningServer, tmp_path: Path) -> None:
    odd = tmp_path / 'd"é\\\n\U0001f600'
    odd.mkdir()
    environment = {**ENVIRONMENT, "PGUSER": 'o"é\U0001f600', "PGPASSWORD": "canary-pg", "MY_TOKEN": "canary-token"}
    forwarder = start("--socket", str(server.path), cwd=odd, env=environment)
    try:
        wait_until(lambda: any(s.client.name for s in server.server.sessions), "hello was said")
        (session,) = server.server.sessions
        assert (session.client.name, session.client.cwd) == ("hfagent rpc", str(odd))
        assert session.client.env["PGUSER"] == 'o"é\U0001f600'
        assert not {"PGPASSWORD", "MY_TOKEN"} & set(session.client.env)
        assert session.client.pid == forwarder.pid
    finally:
        forwarder.communicate(timeout=10)
    assert forwarder.returncode == 0


def test_the_client_dies_and_its_work_is_cancelled(server: RunningServer) -> None:
    forwarder = start("--socket", str(server.path))
    assert forwarder.stdin is not None
    forwarder.stdin.write(request(1, "initialize") + request(2, "test/hold"))
    forwarder.stdin.flush()
    assert server.services.held.acquire(timeout=10)
    forwarder.kill()
    forwarder.communicate()
    assert server.services.cancelled.acquire(timeout=10)


def test_a_reader_that_goes_away_ends_the_forwarder(server: RunningServer) -> None:
    forwarder = start("--socket", str(server.path))
    assert forwarder.stdin is not None
    assert forwarder.stdout is not None
    assert forwarder.stderr is not None
    forwarder.stdout.close()
    forwarder.stdin.write(request(1, "initialize"))
    forwarder.stdin.flush()
    assert forwarder.wait(10) == 0
    assert forwarder.stderr.read() == b""
    forwarder.stdin.close()
    forwarder.stderr.close()


def test_requests_flow_while_replies_are_not_read(server: RunningServer) -> None:
    """Replies fill every pipe, and the client still writes before it reads a byte: no deadlock, every answer comes."""
    forwarder = start("--socket", str(server.path))
    assert forwarder.stdin is not None
    assert forwarder.stdout is not None
    forwarder.stdin.write(request(0, "initialize"))
    for number in range(1, 9):
        forwarder.stdin.write(request(number, "test/blob", {"size": 100_000}))
    forwarder.stdin.flush()
    wait_until(lambda: server.services.calls["blob"] == 8, "the replies are under way")
    forwarder.stdin.write(request(9, "test/echo", {"text": "x" * 500_000}))
    forwarder.stdin.flush()
    decoder = FrameDecoder()
    seen: set[Any] = set()
    while len(seen) < 10:
        data = os.read(forwarder.stdout.fileno(), 65536)
        assert data
        seen |= {decode(f.body, f.encoding)["id"] for f in decoder.feed(data)}
    forwarder.communicate(timeout=10)


def test_a_client_that_only_writes_is_told_when_the_daemon_has_had_enough(start_server: StartServer) -> None:
    from hfagent.server.limits import Limits

    server = start_server(limits=Limits(write_stall_s=0.5, linger_s=0.5))
    forwarder = start("--socket", str(server.path))
    assert forwarder.stdin is not None
    with pytest.raises(BrokenPipeError):
        forwarder.stdin.write(request(0, "initialize"))
        for number in range(1, 10_000):
            forwarder.stdin.write(request(number, "test/blob", {"size": 100_000}))
            forwarder.stdin.flush()
    assert not server.server.sessions
    forwarder.kill()
    with pytest.raises(BrokenPipeError):
        forwarder.stdin.close()
    assert forwarder.stdout is not None
    assert forwarder.stderr is not None
    forwarder.stdout.close()
    forwarder.stderr.close()
    forwarder.wait(10)


def test_a_non_blocking_pipe_is_served(server: RunningServer) -> None:
    """Some clients make their pipes non-blocking, and with them the description that the forwarder shares."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    forwarder = start("--socket", str(server.path), stdout=theirs)
    os.close(theirs)
    assert forwarder.stdin is not None
    forwarder.stdin.write(request(1, "initialize") + request(2, "test/blob", {"size": 2_000_000}))
    forwarder.stdin.flush()
    decoder, seen = FrameDecoder(), []
    while len(seen) < 2:
        assert select.select([ours], [], [], 20)[0]
        data = os.read(ours, 65536)
        assert data
        seen += [len(f.body) for f in decoder.feed(data)]
    assert seen[1] > 2_000_000
    forwarder.communicate(timeout=10)
    os.close(ours)


def test_nothing_else_reaches_standard_output(server: RunningServer) -> None:
    """Whatever prints, and every child process, prints to standard error once the forwarder runs."""
    script = """
import os, subprocess, sys
from hfagent.transport.stdio import claim
reading, writing = claim()
print("from python", flush=True)
os.write(1, b"from os\\n")
subprocess.run(["echo", "from a child"])
assert sys.stdin.read() == ""
os.write(writing, os.read(reading, 5))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], input=b"proto", capture_output=True, env=ENVIRONMENT, check=True
    )
    assert done.stdout == b"proto"
    assert done.stderr.split(b"\n")[:3] == [b"from os", b"from a child", b""] or b"from python" in done.stderr


def test_skew_goes_to_standard_error(start_server: StartServer) -> None:
    server = start_server(info=AgentInfo(build="0.0.9"))
    forwarder = start("--socket", str(server.path))
    output, errors = forwarder.communicate(request(1, "initialize"), timeout=10)
    assert [m["id"] for m in messages(output)] == [1]
    assert b"0.0.9" in errors


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("request_id", [7, "an id", 0])
def test_no_daemon_is_an_answer(tmp_path: Path, encoding: Encoding, request_id: Any) -> None:
    note = encode_frame(encode({"jsonrpc": "2.0", "method": "$/x"}, encoding), encoding)
    forwarder = start("--no-start", "--data-dir", str(tmp_path / "d"))
    output, errors = forwarder.communicate(note + request(request_id, "initialize", None, encoding), timeout=20)
    (reply,) = messages(output)
    assert reply["id"] == request_id
    assert reply["error"]["data"]["code"] == "agent.offline"
    assert "hfagent daemon" in reply["error"]["data"]["hint"]
    assert forwarder.returncode == 1
    assert b"no agent runs" in errors
    assert b"Traceback" not in errors


def test_a_daemon_that_cannot_start_is_an_answer_that_names_the_log(tmp_path: Path) -> None:
    data_dir = tmp_path / "d"
    data_dir.mkdir(mode=0o700)
    (data_dir / "config.toml").write_text("this is no toml [")
    forwarder = start("--data-dir", str(data_dir))
    output, errors = forwarder.communicate(request(1, "initialize"), timeout=60)
    (reply,) = messages(output)
    text = json.dumps(reply["error"])
    assert reply["id"] == 1
    assert "could not be started" in text
    assert str(data_dir / "log" / "agent.log") in text
    assert "config.toml" in text  # the reason, from the log's last lines
    assert forwarder.returncode == 1
    assert b"Traceback" not in errors


def test_a_daemon_that_speaks_another_protocol_is_an_answer(tmp_path: Path) -> None:
    import socket
    import threading

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                error = {
                    "code": -32803,
                    "message": "too old",
                    "data": {"code": "unsupported", "message": "too old", "hint": "update"},
                }
                connection.sendall(encode_frame(encode_json({"jsonrpc": "2.0", "id": 0, "error": error})))
                connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        forwarder = start("--socket", str(tmp_path / "s"), "--no-start")
        output, _ = forwarder.communicate(request(5, "initialize"), timeout=20)
        thread.join(10)
    (reply,) = messages(output)
    assert (reply["id"], reply["error"]["message"], reply["error"]["data"]["hint"]) == (5, "too old", "update")


@pytest.mark.parametrize("words", [["--nonsense"], ["--socket"], ["x"], ["--no-start=1"]])
def test_wrong_usage(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hfagent", "rpc", *words], capture_output=True, env=ENVIRONMENT, timeout=20
    )
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"usage: hfagent rpc" in done.stderr


def test_it_imports_next_to_nothing(server: RunningServer) -> None:
    """Beyond what every Python has loaded at its start: a handful of C modules and our own few files."""
    script = f"""
import sys
before = set(sys.modules)
from hfagent.__main__ import main
from hfagent.cli import forward
connection = forward._connect({{"--socket": {str(server.path)!r}}})
forward._introduce(connection, "test")
print(sorted(m for m in set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    loaded = set(eval(done.stdout))
    ours = {name for name in loaded if name.startswith("hfagent")}
    assert ours == {
        "hfagent",
        "hfagent.__main__",
        "hfagent.cli",
        "hfagent.cli.forward",
        "hfagent.transport",
        "hfagent.transport.stdio",
    }
    assert loaded - ours <= {"__future__", "_socket", "select"}


@pytest.mark.parametrize("text", ["", "plain", 'q"\\', "é\x00\n\x7f", "\U0001f600", "\udcff"])
def test_the_hand_written_json_is_json(text: str) -> None:
    assert json.loads(_quoted(text)) == text.replace("\udcff", "?")


def test_the_socket_path_is_the_one_of_the_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`forward` finds it without pathlib; both must agree in every environment."""
    names = ("HFAGENT_DATA_DIR", "HFAGENT_SOCK", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR")
    values = {"HFAGENT_DATA_DIR": "rel/data", "HFAGENT_SOCK": "~/s.sock", "STATE_DIRECTORY": "/var/lib/x:/y",
              "RUNTIME_DIRECTORY": "/run/x:/run/y", "XDG_RUNTIME_DIR": "/run/user/1"}  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for mask in range(2 ** len(names)):
        for bit, name in enumerate(names):
            if mask & 1 << bit:
                monkeypatch.setenv(name, values[name])
            else:
                monkeypatch.delenv(name, raising=False)
        for options in ({}, {"data_dir": "d"}, {"socket": "x.sock"}, {"data_dir": "/d", "socket": "/x.sock"}):
            assert socket_path(**options) == str(AgentPaths(**options).socket), (mask, options)  # type: ignore[arg-type]
