"""The places for a key, one by one: what each refuses."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import keyring
import pytest

from hfagent.vault.failures import VaultLocked
from hfagent.vault.keyring_access import ALLOWED, KeyringAccess
from hfagent.vault.settings import SOURCE_NAMES, VaultSettings
from hfagent.vault.sources import FileSource, KeyringSource, LicenseSource, SystemdSource, sources
from tests.vault.places import FakeKeyring, as_backend

ID = "000102030405060708090a0b0c0d0e0f"
OTHER_ID = "ff0102030405060708090a0b0c0d0e0f"
SALT = bytes(range(32))


def test_all_sources_are_there_in_the_order_in_which_they_are_tried(tmp_path: Path) -> None:
    found = sources(VaultSettings(), tmp_path, agent_id="a", salt=SALT)
    assert tuple(found) == SOURCE_NAMES == ("license", "systemd", "keyring", "file")
    for name in ("license", "systemd", "keyring"):
        assert not found[name].present()  # type: ignore[index]
        with pytest.raises(VaultLocked):
            found[name].check()  # type: ignore[index]
    found["file"].check()
    assert list(tmp_path.iterdir()) == []


# ---- files


def test_a_key_file_is_made_once_privately_and_removed(tmp_path: Path) -> None:
    source = FileSource(tmp_path)
    before = os.umask(0)
    try:
        root = source.create(ID)
    finally:
        os.umask(before)
    file = tmp_path / f"{ID}.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(root) == 32
    assert source.create(ID) == root == source.load(ID)
    assert source.create(OTHER_ID) != root
    source.destroy(ID)
    source.destroy(ID)
    assert source.load(ID) is None
    assert source.load(OTHER_ID) is not None


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o601, 0o644, 0o666, 0o777])
def test_a_key_file_that_others_can_touch_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    source = FileSource(tmp_path)
    source.create(ID)
    file = tmp_path / f"{ID}.key"
    file.chmod(mode)
    with pytest.raises(VaultLocked, match=f"mode {mode:o}") as caught:
        source.load(ID)
    assert f"chmod 600 {file}" in (caught.value.hint or "")
    file.chmod(0o400)
    assert source.load(ID) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_key_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    source = FileSource(tmp_path)
    source.create(ID)
    os.chown(tmp_path / f"{ID}.key", 12345, -1)
    with pytest.raises(VaultLocked, match="belongs to user id 12345") as caught:
        source.load(ID)
    assert "chown" in (caught.value.hint or "")


def test_a_fifo_in_place_of_a_key_file_does_not_hold_the_agent_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"{ID}.key", 0o600)
    with pytest.raises(VaultLocked, match="not a regular file"):
        FileSource(tmp_path).load(ID)


def test_a_key_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(VaultLocked, match="cannot be written"):
        FileSource(tmp_path / "not there").create(ID)


def test_the_error_for_a_damaged_key_does_not_quote_it(tmp_path: Path) -> None:
    source = FileSource(tmp_path)
    source.create(ID)
    file = tmp_path / f"{ID}.key"
    text = file.read_text().strip()
    for broken in (text[:-3], text + "A", text.replace("=", "!")):
        file.write_text(broken + "\n")
        with pytest.raises(VaultLocked, match="damaged") as caught:
            source.load(ID)
        assert text[20:30] not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


# ---- license


def test_the_license_key_alone_is_nothing_and_so_is_the_machine_key(tmp_path: Path, license_key: Path) -> None:
    machine = FileSource(tmp_path)
    source = LicenseSource(license_key, machine, SALT)
    root = source.create(ID)
    assert source.load(ID) == root
    assert root != machine.load(ID)
    assert source.load(OTHER_ID) is None
    elsewhere = tmp_path / "another machine"
    elsewhere.mkdir()
    assert LicenseSource(license_key, FileSource(elsewhere), SALT).create(ID) != root
    license_key.write_text("licensed sign key of another organisation 99999")
    assert source.load(ID) not in (root, None)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 31, b"\n" * 100, b"x" * 70_000])
def test_a_license_key_that_is_none_is_refused_and_no_machine_key_is_made(
    tmp_path: Path, license_key: Path, content: bytes
) -> None:
    license_key.write_bytes(content)
    keys = tmp_path / "keys"
    keys.mkdir()
    with pytest.raises(VaultLocked):
        LicenseSource(license_key, FileSource(keys), SALT).create(ID)
    assert list(keys.iterdir()) == []


# ---- systemd


def test_the_systemd_credential_gives_each_key_id_a_root_of_its_own(credentials: Path) -> None:
    source = SystemdSource(SALT)
    assert source.present()
    source.check()
    root = source.create(ID)
    assert source.load(ID) == root
    assert source.load(OTHER_ID) != root
    assert SystemdSource(bytes(32)).load(ID) != root
    assert (credentials / "hfagent.key").read_bytes() not in (root, source.load(OTHER_ID))
    source.destroy(ID)
    assert source.load(ID) == root


def test_without_a_credential_nothing_is_made_up() -> None:
    source = SystemdSource(SALT)
    assert not source.present()
    assert source.load(ID) is None
    with pytest.raises(VaultLocked, match="no systemd credential") as caught:
        source.create(ID)
    assert "LoadCredentialEncrypted" in (caught.value.hint or "")


# ---- keyring


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_backends_that_encrypt_are_used(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    backend = as_backend(FakeKeyring, name)
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    access = KeyringAccess(5)
    assert access.backend_name() == name
    source = KeyringSource(access, "agent")
    source.check()
    root = source.create(ID)
    assert (source.create(ID), source.load(ID)) == (root, root)
    assert list(backend.entries) == [("hfagent", f"agent/{ID}")]
    source.destroy(ID)
    source.destroy(ID)
    assert backend.entries == {}
    assert source.load(ID) is None


REFUSED = [
    "keyring.backends.fail.Keyring",
    "keyring.backends.null.Keyring",
    "keyrings.alt.file.PlaintextKeyring",
    "keyrings.alt.file.EncryptedKeyring",
    "keyring.backends.libsecret.Keyring",
    "keyring.backends.SecretService.Keyring2",
    "somebody.elses.Keyring",
]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("chained", [False, True])
def test_every_other_backend_is_refused_also_in_a_chain(
    monkeypatch: pytest.MonkeyPatch, name: str, chained: bool
) -> None:
    backend = as_backend(FakeKeyring, name)
    found = backend
    if chained:
        found = as_backend(FakeKeyring, "keyring.backends.chainer.ChainerBackend")
        found.backends = [backend]
    monkeypatch.setattr(keyring, "get_keyring", lambda: found)
    source = KeyringSource(KeyringAccess(5), "agent")
    with pytest.raises(VaultLocked):
        source.check()
    for call in (source.load, source.create, source.destroy):
        with pytest.raises(VaultLocked, match="no OS keyring that keeps secrets encrypted"):
            call(ID)
    assert backend.entries == found.entries == {}
    assert backend.calls == found.calls == 0


def test_of_a_chain_only_the_allowed_link_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = as_backend(FakeKeyring, "keyrings.alt.file.PlaintextKeyring")
    good = as_backend(FakeKeyring, "keyring.backends.SecretService.Keyring")
    chain = as_backend(FakeKeyring, "keyring.backends.chainer.ChainerBackend")
    chain.backends = [plain, good]
    monkeypatch.setattr(keyring, "get_keyring", lambda: chain)
    KeyringSource(KeyringAccess(5), "agent").create(ID)
    assert len(good.entries) == 1
    assert plain.entries == chain.entries == {}


def test_the_backend_that_this_machine_has_without_a_desktop_is_refused() -> None:
    with pytest.raises(VaultLocked, match="fail"):
        KeyringAccess(5).backend_name()


def test_a_keyring_that_waits_for_a_password_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Waiting(FakeKeyring):
        def get_password(self, service: str, user: str) -> str | None:
            release.wait(60)
            return None

    backend = as_backend(Waiting, "keyring.backends.SecretService.Keyring")
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    try:
        with pytest.raises(VaultLocked, match=r"did not answer within 0\.1 s"):
            KeyringSource(KeyringAccess(0.1), "agent").load(ID)
    finally:
        release.set()


def test_a_foreign_entry_in_the_keyring_is_refused(secret_service: Any) -> None:
    secret_service.entries["hfagent", f"agent/{ID}"] = "not a key"
    with pytest.raises(VaultLocked, match="damaged"):
        KeyringSource(KeyringAccess(5), "agent").load(ID)
