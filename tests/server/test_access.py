"""Who may connect, and who may call what."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hfagent.server.limits import Limits
from hfagent.services.context import Actor
from tests.fixtures.daemon import RawClient, RunningServer, StartServer, wait_until


def test_the_owner_may_do_everything(server: RunningServer) -> None:
    with server.raw() as client:
        assert "result" in client.ask("test/secret")
        assert "result" in client.ask("test/admin")


def test_an_actor_may_do_what_he_was_given(server: RunningServer) -> None:
    cases = {
        "test/echo": {"read"},
        "test/admin": {"admin"},
        "test/secret": {"secret"},
    }
    for method, needed in cases.items():
        for granted in (
            {"read"},
            {"read", "operate"},
            {"read", "operate", "admin"},
            {"read", "operate", "admin", "secret"},
        ):
            with server.raw() as client:
                (session,) = server.server.sessions
                session.actor = Actor("platform", frozenset(granted))
                reply = client.ask(method)
                if needed <= granted:
                    assert "result" in reply
                else:
                    assert (reply["error"]["code"], reply["error"]["data"]["code"]) == (-32803, "access.denied")
            wait_until(lambda: not server.server.sessions, "the session ends")


CONNECT_AS = """
import os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
os.setgid(uid); os.setuid(uid)
s = socket.socket(socket.AF_UNIX); s.connect(path); s.settimeout(10)
try:
    s.sendall(b"Content-Length: 55\\r\\n\\r\\n" + b'{"jsonrpc":"2.0","id":1,"method":"initialize"}'.ljust(55))
    print(len(s.recv(100)))
except (BrokenPipeError, ConnectionResetError):
    print(0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("guest", [False, True])
def test_another_user(open_directory: Path, guest: bool) -> None:
    """A user who is not on the list is cut off before a byte of his is read; one who is, gets in as a guest."""
    uid = 12345
    server = RunningServer(open_directory, guests=frozenset({uid}) if guest else frozenset()).start()
    try:
        server.path.parent.chmod(0o755)
        server.path.chmod(0o666)
        done = subprocess.run(
            [sys.executable, "-c", CONNECT_AS, str(server.path), str(uid)], capture_output=True, text=True, cwd="/"
        )
    finally:
        server.path.parent.chmod(0o700)
        server.stop()
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) > 0) is guest


def test_guests_may_not_administrate(start_server: StartServer) -> None:
    from hfagent.transport.peer import Peer

    server = start_server(guests=frozenset({12345}))
    actor = server.server._actor(Peer("unix", uid=12345, pid=1))
    assert actor.access == {"read", "operate"}
    assert server.server._actor(Peer("unix", uid=os.geteuid(), pid=1)).allows("secret")
    assert server.server._actor(Peer("unix", uid=0, pid=1)).allows("secret")


# --- TCP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_tcp_with_the_token(start_server: StartServer, encoding: str) -> None:
    server = start_server(tcp=True)
    token = server.tcp.token()
    with server.raw(tcp=True, initialize=False, encoding=encoding) as client:  # type: ignore[arg-type]
        assert "result" in client.ask("agent/hello", {"token": token})
        assert "result" in client.ask("initialize")
        assert "result" in client.ask("test/admin")
        assert client.ask("test/secret")["error"]["data"]["code"] == "access.denied"
    with server.raw(tcp=True, initialize=False, encoding=encoding) as client:  # type: ignore[arg-type]
        assert "result" in client.ask("initialize", {"initializationOptions": {"token": token}})


def test_tcp_without_it(start_server: StartServer) -> None:
    """Wrong token, none, in the wrong place, of an earlier start: one and the same answer, and the end."""
    server = start_server(tcp=True, limits=Limits(unproven=1000))
    token = server.tcp.token()
    attempts = [
        ("initialize", None),
        ("initialize", {}),
        ("initialize", []),
        ("initialize", {"token": token}),
        ("initialize", {"initializationOptions": {"token": token[:-1]}}),
        ("initialize", {"initializationOptions": {"token": None}}),
        ("initialize", {"initializationOptions": {"token": [token]}}),
        ("agent/hello", {}),
        ("agent/hello", {"token": token + " "}),
        ("agent/hello", {"token": token, "nonsense": 1}),
        ("agent/hello", {"token": 7}),
        ("rpc.discover", {"token": token}),
        ("test/echo", {}),
        ("no/such", {}),
        ("shutdown", None),
    ]
    texts = set()
    for method, params in attempts:
        with server.raw(tcp=True, initialize=False) as client:
            error = client.ask(method, params)["error"]
            texts.add((error["code"], error["message"], error["data"]["code"], error["data"]["hint"]))
            assert token not in str(error)
            client.request("test/echo")  # whatever comes after the refusal is not even looked at
            assert client.at_end()
    assert len(texts) == 1
    assert server.services.calls["echo"] == 0
    old = token
    with RunningServerAgain(server) as again, again.raw(tcp=True, initialize=False) as client:
        assert "error" in client.ask("agent/hello", {"token": old})


class RunningServerAgain:
    """The same paths, started once more."""

    def __init__(self, server: RunningServer) -> None:
        server.stop()
        self._server = RunningServer(server.path.parent.parent, tcp=True)

    def __enter__(self) -> RunningServer:
        return self._server.start()

    def __exit__(self, *_: object) -> None:
        self._server.stop()


def test_guessed_tokens(start_server: StartServer) -> None:
    """2,000 guesses through the check itself, 50 of them over the wire: none is taken."""
    server = start_server(tcp=True)
    token = server.tcp.token()
    near = [token[:i] + secrets.choice("abcXYZ01_-") + token[i + 1 :] for i in range(len(token))]
    guesses = [g for g in near if g != token] + [secrets.token_urlsafe(32) for _ in range(2000)]
    assert not any(server.server.accepts_token(guess) for guess in guesses)
    for guess in guesses[:50]:
        with server.raw(tcp=True, initialize=False) as client:
            assert "error" in client.ask("agent/hello", {"token": guess})
            assert client.at_end()


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /rpc HTTP/1.1\r\nHost: evil\r\nContent-Length: 10\r\n\r\n0123456789",
        b"OPTIONS / HTTP/1.1\r\n\r\n",
        b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nOrigin: http://evil\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_a_browser_is_cut_off_without_a_byte(start_server: StartServer, greeting: bytes) -> None:
    server = start_server(tcp=True)
    with server.raw(tcp=True, initialize=False) as client:
        client.send_bytes(greeting)
        assert client.at_end()


def test_strangers_do_not_take_the_places_of_clients(start_server: StartServer) -> None:
    server = start_server(tcp=True, limits=Limits(connections=6, unproven=3))
    strangers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
    wait_until(lambda: len(server.server.sessions) == 3, "three of them wait")
    with server.raw() as client:
        assert "result" in client.ask("test/echo")
    for stranger in strangers:
        stranger.close()


def test_nothing_listens_beyond_loopback(start_server: StartServer) -> None:
    server = start_server(tcp=True)
    inodes = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                listening.append(words[1])
    assert any(address.endswith(f":{server.port:04X}") for address in listening)
    assert all(address.startswith(("0100007F:", "00000000000000000000000001000000:")) for address in listening)


def test_the_token_goes_with_the_server(start_server: StartServer) -> None:
    server = start_server(tcp=True)
    assert server.token_file.exists()
    server.stop()
    assert not server.token_file.exists()
    assert not server.path.exists()


def test_raw_client_over_a_socketpair(server: RunningServer) -> None:
    ours, theirs = socket.socketpair()
    server.run(server.server.serve_connection(theirs))
    with RawClient(ours) as client:
        assert "result" in client.ask("initialize")
