"""Secret references: every way of naming a secret elsewhere, and every way in which that can fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hfagent.foundation.errors import ConfigError
from hfagent.foundation.redaction import MASK, redact
from hfagent.vault.references import resolve


def refused(reference: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolve(reference)
    assert caught.value.code == "credential.reference"
    return caught.value


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("from a file\n")
    file.chmod(0o600)
    return file


def test_every_scheme(
    secret_file: Path, credentials: Path, secret_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SALES_PASSWORD", "from the environment")
    (credentials / "sales").write_text("from systemd")
    secret_service.entries["warehouse/sales", "etl"] = "from the keyring"
    found = [
        resolve(reference)
        for reference in (
            "env:SALES_PASSWORD", f"file:{secret_file}", "systemd:sales", "keyring:warehouse/sales/etl",
        )
    ]  # fmt: skip
    assert found == ["from the environment", "from a file", "from systemd", "from the keyring"]
    for secret in found:
        assert redact(f"the server said {secret}") == f"the server said {MASK}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [("x\n", "x"), ("x\r\n", "x"), ("x\n\n", "x\n"), (" x ", " x "), ("x", "x"), ("a\nb\n", "a\nb"), ("é😀", "é😀")],
)
def test_one_line_break_at_the_end_is_the_editors(secret_file: Path, content: str, expected: str) -> None:
    secret_file.write_bytes(content.encode())
    assert resolve(f"file:{secret_file}") == expected


@pytest.mark.parametrize("reference", ["", "hunter2", "env:", ":x", "vault:secret/data#key", "ENV:X", " env:X", "file"])
def test_what_has_no_known_form_is_refused_and_not_quoted(reference: str) -> None:
    error = refused(reference)
    assert "env:NAME" in (error.hint or "")
    assert "hunter2" not in str(error)


def test_a_variable_that_is_not_set_or_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH", raising=False)
    assert "NO_SUCH" in refused("env:NO_SUCH").message
    monkeypatch.setenv("NO_SUCH", "")
    assert "empty" in refused("env:NO_SUCH").message


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o644, 0o666])
def test_a_file_that_everybody_can_touch(secret_file: Path, mode: int) -> None:
    secret_file.chmod(mode)
    assert f"chmod o= {secret_file}" in (refused(f"file:{secret_file}").hint or "")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_file_for_a_group_is_fine(secret_file: Path, mode: int) -> None:
    secret_file.chmod(mode)
    assert resolve(f"file:{secret_file}") == "from a file"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_file_of_somebody_else(secret_file: Path) -> None:
    os.chown(secret_file, 12345, -1)
    assert "12345" in refused(f"file:{secret_file}").message


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for reference, text in (
        (f"file:{tmp_path}", "not a regular file"),
        (f"file:{tmp_path / 'fifo'}", "not a regular file"),
        (f"file:{tmp_path / 'none'}", "does not exist"),
        ("file:/dev/zero", "not a regular file"),
        ("file:relative/path", "full path"),
        ("file:~/x", "full path"),
    ):
        assert text in refused(reference).message


def test_the_size_is_limited(secret_file: Path) -> None:
    secret_file.write_bytes(b"x" * 65536)
    assert len(resolve(f"file:{secret_file}")) == 65536
    secret_file.write_bytes(b"x" * 65537)
    assert "larger than" in refused(f"file:{secret_file}").message


def test_a_mounted_secret_is_a_link_to_a_regular_file(secret_file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(secret_file)
    assert resolve(f"file:{tmp_path / 'link'}") == "from a file"
    secret_file.chmod(0o644)
    refused(f"file:{tmp_path / 'link'}")


def test_bytes_that_are_no_text_are_refused_and_not_quoted(secret_file: Path) -> None:
    secret_file.write_bytes(b"hunter2 \xff\xfe")
    error = refused(f"file:{secret_file}")
    assert "UTF-8" in error.message
    assert "hunter2" not in f"{error!r} {error.__cause__!r}"
    assert error.__suppress_context__


def test_an_empty_file(secret_file: Path) -> None:
    for content in ("", "\n", "\r\n"):
        secret_file.write_text(content, newline="")
        assert "empty" in refused(f"file:{secret_file}").message


def test_systemd_credentials(credentials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside").write_text("outside")
    for name in ("../outside", ".", "..", "/etc/passwd", "a/b"):
        assert "not the name" in refused(f"systemd:{name}").message
    assert "LoadCredential=none:FILE" in (refused("systemd:none").hint or "")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert "no credentials from systemd" in refused("systemd:sales").message


def test_keyring_entries(secret_service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("service", "/user", "service/", "/"):
        assert "does not name" in refused(f"keyring:{place}").message
    assert "no entry a/b" in refused("keyring:a/b").message


def test_a_keyring_that_writes_plain_text_is_refused() -> None:
    assert "no OS keyring that keeps secrets encrypted" in refused("keyring:a/b").message
