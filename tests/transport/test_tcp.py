"""Loopback only, and a token that is made anew at each start."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hfagent.foundation.errors import ConfigError
from hfagent.transport.tcp import TokenFile, bind_loopback, looks_like_http


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "192.168.1.10", "127.0.0.2", "example.org", "localhost.example.org", "127.0.0.1.evil", "*"],
)
def test_other_addresses_are_refused(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_loopback(host, 0)
    assert caught.value.code == "config.policy_denied"
    assert "ssh -L" in str(caught.value.hint)


def test_localhost_is_both_and_on_one_port() -> None:
    sockets = bind_loopback("localhost", 0)
    try:
        addresses = [s.getsockname()[0] for s in sockets]
        assert addresses in (["127.0.0.1", "::1"], ["127.0.0.1"])
        assert len({s.getsockname()[1] for s in sockets}) == 1
    finally:
        for listener in sockets:
            listener.close()


def test_a_taken_port_is_an_error_in_words(silent_port: int) -> None:
    with pytest.raises(ConfigError, match=f"port {silent_port}"):
        bind_loopback("127.0.0.1", silent_port)


def test_the_token_file(tmp_path: Path) -> None:
    first = TokenFile(tmp_path / "run" / "token")
    token = first.path.read_text().strip()
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert len(token) >= 43
    assert first.matches(token)
    for wrong in (None, "", token[:-1], token + "x", token.encode(), 7, "é", "\ud800", [token]):
        assert not first.matches(wrong)
    second = TokenFile(first.path)
    assert not second.matches(token)
    assert second.matches(second.path.read_text().strip())
    second.remove()
    assert not first.path.exists()


def test_the_token_file_never_writes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "run" / "token").symlink_to(precious)
    with pytest.raises(ConfigError, match="not a regular file"):
        TokenFile(tmp_path / "run" / "token")
    assert precious.read_text() == "precious"


def test_browsers_are_recognised() -> None:
    assert all(looks_like_http(b) for b in (b"GET / HTTP/1.1\r\n", b"POST /x", b"OPTIONS * ", b"\x16\x03\x01"))
    assert not looks_like_http(b"Content-Length: 5\r\n")
