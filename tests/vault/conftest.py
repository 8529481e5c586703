"""Folders and a keyring for vaults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring
import pytest

from hfagent.foundation.redaction import unregister_all
from tests.vault.places import Breaker, Cabinet, FakeKeyring, as_backend


@pytest.fixture(autouse=True)
def forget_secrets() -> Iterator[None]:
    yield
    unregister_all()


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither systemd credentials nor a real keyring, whatever machine this runs on."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    from keyring.backends.fail import Keyring

    monkeypatch.setattr(keyring, "get_keyring", lambda: Keyring())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "vault"


@pytest.fixture
def cabinet() -> Cabinet:
    return Cabinet()


@pytest.fixture
def secret_service(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An OS keyring that works."""
    backend = as_backend(FakeKeyring, "keyring.backends.SecretService.Keyring")
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    return backend


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of systemd credentials, with the agent's key in it."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "hfagent.key").write_bytes(bytes(range(32)))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


@pytest.fixture
def license_key(tmp_path: Path) -> Path:
    file = tmp_path / "license.key"
    file.write_text("licensed sign key of an organisation 0123456789\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def breaker(monkeypatch: pytest.MonkeyPatch) -> Breaker:
    return Breaker(monkeypatch)
