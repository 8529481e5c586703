"""The datagram to systemd."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hfagent.foundation.notify import notify


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is False


@pytest.mark.parametrize("abstract", [False, True])
def test_lines_arrive_as_one_datagram(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = f"@hfagent-test-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + shown[1:] if abstract else shown)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", shown)
        assert notify("READY=1", "STATUS=serving") is True
        assert manager.recv(1000) == b"READY=1\nSTATUS=serving"


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert notify("STOPPING=1") is False
