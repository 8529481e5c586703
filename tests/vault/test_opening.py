"""Where a new vault keeps its key, and a vault without its key: locked, with a remedy, and nothing made or destroyed."""

from __future__ import annotations

import json
import logging
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keyring
import pytest

from hfagent.foundation.errors import AgentError, ConfigError
from hfagent.vault import keychain
from hfagent.vault.failures import CredentialUnreadable, VaultLocked
from hfagent.vault.settings import SourceName
from tests.vault.places import Cabinet, FakeKeyring, as_backend, open_vault, place


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def key_file(folder: Path) -> Path:
    (found,) = folder.glob("*.key")
    return found


# ---- a new vault


def test_a_new_vault_seals_and_opens_again_after_a_restart(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    state = vault.status()
    assert (state.state, state.key_source, state.reason, state.recovery_key, state.notes) == (
        "unlocked", "file", None, False, (),
    )  # fmt: skip
    assert state.key_id == vault.active_key_id
    cabinet.fill(vault, 3)
    again = open_vault(folder, cabinet)
    cabinet.assert_all_open(again)
    assert again.status() == state
    assert again.fingerprint("x") == vault.fingerprint("x") != vault.fingerprint("y")
    assert len(vault.fingerprint("x")) == 8


def test_everything_in_the_folder_is_private_and_nothing_but_the_key_file_is_secret(
    folder: Path, cabinet: Cabinet
) -> None:
    cabinet.fill(open_vault(folder, cabinet), 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert sorted(file.suffix for file in folder.iterdir()) == [".json", ".key"]
    described = (folder / "vault.json").read_text()
    assert key_file(folder).read_text().split()[1] not in described
    assert json.loads(described)["format"] == 1


@pytest.mark.parametrize(
    ("surroundings", "settings", "expected"),
    [
        ([], {}, "file"),
        (["secret_service"], {}, "keyring"),
        (["secret_service", "credentials"], {}, "systemd"),
        (["secret_service", "credentials", "license_key"], {}, "license"),
        (["secret_service", "credentials", "license_key"], {"key_source": "file"}, "file"),
        (["secret_service", "credentials", "license_key"], {"key_source": "keyring"}, "keyring"),
        (["secret_service", "credentials"], {"key_source": "systemd"}, "systemd"),
    ],
)
def test_the_best_place_for_a_key_is_chosen_once(
    folder: Path, cabinet: Cabinet, request: pytest.FixtureRequest, surroundings: list[str], settings: dict[str, Any],
    expected: SourceName, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    values = {name: request.getfixturevalue(name) for name in surroundings}
    if "license_key" in values:
        settings = {**settings, "license_key_file": values["license_key"]}
    vault = open_vault(folder, cabinet, **settings)
    assert vault.status().key_source == expected
    cabinet.fill(vault, 1)
    cabinet.assert_all_open(open_vault(folder, cabinet, **settings))
    if expected in ("keyring", "systemd"):
        assert not list(folder.glob("*.key"))


def test_a_keyring_that_does_not_work_makes_way_for_a_file(
    folder: Path, cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Forgetful(FakeKeyring):
        def set_password(self, service: str, user: str, value: str) -> None:
            pass

    backend = as_backend(Forgetful, "keyring.backends.SecretService.Keyring")
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    caplog.set_level(logging.INFO)
    assert open_vault(folder, cabinet).status().key_source == "file"
    assert "did not keep the key" in caplog.text


@pytest.mark.parametrize("source", ["license", "systemd", "keyring"])
def test_a_place_that_was_asked_for_is_never_replaced_by_another(
    folder: Path, cabinet: Cabinet, source: SourceName, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"key_source": source}
    if source == "license":
        settings = {"license_key_file": tmp_path / "not there"}
    vault = open_vault(folder, cabinet, **settings)
    state = vault.status()
    assert (state.state, state.key_id) == ("locked", None)
    assert state.reason
    assert state.hint
    assert not list(folder.glob("*.key"))


def test_a_prepared_systemd_credential_that_is_no_good_is_not_passed_over(
    folder: Path, cabinet: Cabinet, credentials: Path, secret_service: Any
) -> None:
    (credentials / "hfagent.key").write_bytes(b"too short")
    assert open_vault(folder, cabinet).status().state == "locked"
    assert secret_service.entries == {}
    assert not list(folder.glob("*.key"))


def test_once_the_missing_place_is_there_the_vault_is_made(folder: Path, cabinet: Cabinet, tmp_path: Path) -> None:
    file = tmp_path / "license.key"
    vault = open_vault(folder, cabinet, license_key_file=file)
    assert vault.status().state == "locked"
    file.write_text("the licensed sign key of an organisation")
    assert vault.reopen().state == "unlocked"
    cabinet.fill(vault, 1)
    cabinet.assert_all_open(open_vault(folder, cabinet, license_key_file=file))


def test_another_setting_does_not_move_a_key_by_itself(folder: Path, cabinet: Cabinet, secret_service: Any) -> None:
    cabinet.fill(open_vault(folder, cabinet, key_source="file"), 1)
    vault = open_vault(folder, cabinet, key_source="keyring")
    cabinet.assert_all_open(vault)
    assert vault.status().key_source == "file"
    assert "rotate --key-source keyring" in vault.status().notes[0]
    assert secret_service.entries == {}


def test_key_files_may_lie_elsewhere(folder: Path, cabinet: Cabinet, tmp_path: Path) -> None:
    elsewhere = tmp_path / "keys"
    elsewhere.mkdir(mode=0o700)
    cabinet.fill(open_vault(folder, cabinet, key_directory=elsewhere), 1)
    assert not list(folder.glob("*.key"))
    assert len(list(elsewhere.glob("*.key"))) == 1
    cabinet.assert_all_open(open_vault(folder, cabinet, key_directory=elsewhere))
    assert open_vault(folder, cabinet).status().state == "locked"


# ---- locked


def remove_key(folder: Path) -> None:
    key_file(folder).unlink()


def wrong_mode(folder: Path) -> None:
    key_file(folder).chmod(0o644)


def wrong_key(folder: Path) -> None:
    other = open_vault(folder.parent / "other", Cabinet())
    shutil.copy(next((folder.parent / "other").glob("*.key")), key_file(folder))
    assert other.status().state == "unlocked"


def cut_key(folder: Path) -> None:
    key_file(folder).write_bytes(key_file(folder).read_bytes()[:30])


def empty_key(folder: Path) -> None:
    key_file(folder).write_bytes(b"")


def binary_key(folder: Path) -> None:
    key_file(folder).write_bytes(bytes(range(256)))


def linked_key(folder: Path) -> None:
    file = key_file(folder)
    file.rename(folder.parent / "moved")
    file.symlink_to(folder.parent / "moved")


def key_is_a_folder(folder: Path) -> None:
    file = key_file(folder)
    file.unlink()
    file.mkdir()


def remove_description(folder: Path) -> None:
    (folder / "vault.json").unlink()


def broken_description(folder: Path) -> None:
    (folder / "vault.json").write_text("{")


def newer_description(folder: Path) -> None:
    content = json.loads((folder / "vault.json").read_text())
    (folder / "vault.json").write_text(json.dumps(content | {"format": 2, "unheard": "of"}))


def unknown_field(folder: Path) -> None:
    content = json.loads((folder / "vault.json").read_text())
    (folder / "vault.json").write_text(json.dumps(content | {"unheard": "of"}))


def no_active_key(folder: Path) -> None:
    content = json.loads((folder / "vault.json").read_text())
    (folder / "vault.json").write_text(json.dumps(content | {"keys": []}))


def changed_salt(folder: Path) -> None:
    content = json.loads((folder / "vault.json").read_text())
    (folder / "vault.json").write_text(json.dumps(content | {"salt": "AAAA" * 11}))


def open_folder(folder: Path) -> None:
    folder.chmod(0o755)


def two_active_keys(folder: Path) -> None:
    content = json.loads((folder / "vault.json").read_text())
    (folder / "vault.json").write_text(json.dumps(content | {"keys": content["keys"] * 2}))


MISHAPS: list[tuple[Callable[[Path], None], str]] = [
    (remove_key, "is missing"),
    (wrong_mode, "mode 644"),
    (wrong_key, "not the key that the vault was made with"),
    (cut_key, "damaged"),
    (empty_key, "not a key file"),
    (binary_key, "not a key file"),
    (linked_key, "symbolic link"),
    (key_is_a_folder, "not a regular file"),
    (remove_description, "is missing"),
    (broken_description, "damaged"),
    (newer_description, "newer hfagent"),
    (unknown_field, "damaged"),
    (no_active_key, "names no key"),
    (changed_salt, "not the key that the vault was made with"),
    (open_folder, "chmod 700"),
    (two_active_keys, "two active keys"),
]


@pytest.mark.parametrize(("mishap", "reason"), MISHAPS, ids=[mishap.__name__ for mishap, _ in MISHAPS])
def test_a_vault_without_its_key_starts_locked_and_touches_nothing(
    folder: Path, cabinet: Cabinet, mishap: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    cabinet.fill(open_vault(folder, cabinet), 3)
    whole = tmp_path / "backup"
    shutil.copytree(folder, whole)
    mishap(folder)
    before = files(folder)

    vault = open_vault(folder, cabinet)
    state = vault.status()
    assert state.state == "locked"
    assert vault.locked
    assert reason in f"{state.reason} {state.hint}"
    assert files(folder) == before, "nothing was made and nothing was destroyed"
    where, blob, _ = cabinet.sealed[0]
    for call in (
        lambda: vault.unseal(**where, blob=blob),
        lambda: vault.seal(**where, plaintext="new"),
        lambda: vault.fingerprint("x"),
        lambda: vault.begin_rotation(),
        lambda: vault.finish_rotation(set()),
        lambda: vault.create_recovery_key(),
        lambda: vault.active_key_id,
    ):
        with pytest.raises(VaultLocked, match="the vault is locked") as caught:
            call()
        assert caught.value.code == "credential.key_missing"
    assert files(folder) == before

    # What the remedy says, and everything is there again.
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    folder.chmod(0o700)
    assert vault.reopen().state == "unlocked"
    assert not vault.locked
    cabinet.assert_all_open(vault)


def test_a_lost_key_locks_also_when_nothing_is_sealed_yet(folder: Path, cabinet: Cabinet) -> None:
    open_vault(folder, cabinet)
    remove_key(folder)
    assert open_vault(folder, cabinet).status().state == "locked"
    assert not list(folder.glob("*.key"))


def test_the_control_a_key_made_anew_in_place_of_a_lost_one_opens_nothing(
    folder: Path, cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong variant, which the tests above would catch: it looks unlocked, and every secret is lost."""
    cabinet.fill(open_vault(folder, cabinet), 1)
    remove_description(folder)
    monkeypatch.setattr(keychain.KeyChain, "_require_nothing_sealed", lambda self, what: None)
    vault = open_vault(folder, cabinet)
    assert vault.status().state == "unlocked"
    with pytest.raises(CredentialUnreadable):
        cabinet.assert_all_open(vault)


def test_the_vault_of_another_agent_stays_shut(folder: Path, cabinet: Cabinet) -> None:
    cabinet.fill(open_vault(folder, cabinet), 1)
    state = open_vault(folder, cabinet, agent="somebody else").status()
    assert state.state == "locked"
    assert "another agent" in (state.reason or "")


@pytest.mark.parametrize("mishap", ["gone", "changed", "short", "folder"])
def test_a_systemd_credential_that_is_not_the_same_any_more(
    folder: Path, cabinet: Cabinet, credentials: Path, monkeypatch: pytest.MonkeyPatch, mishap: str
) -> None:
    cabinet.fill(open_vault(folder, cabinet), 1)
    file = credentials / "hfagent.key"
    content = file.read_bytes()
    match mishap:
        case "gone":
            file.unlink()
        case "changed":
            file.write_bytes(content[::-1])
        case "short":
            file.write_bytes(content[:16])
        case _:
            monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    vault = open_vault(folder, cabinet)
    assert vault.status().state == "locked"
    assert "systemd credential" in (vault.status().reason or "")
    file.write_bytes(content)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    vault.reopen()
    cabinet.assert_all_open(vault)


@pytest.mark.parametrize(
    "mishap", ["license gone", "license changed", "machine key gone", "not configured", "writable"]
)
def test_the_license_key_and_the_machine_key_are_both_needed(
    folder: Path, cabinet: Cabinet, license_key: Path, mishap: str
) -> None:
    cabinet.fill(open_vault(folder, cabinet, license_key_file=license_key), 1)
    content = license_key.read_bytes()
    settings: dict[str, Any] = {"license_key_file": license_key}
    match mishap:
        case "license gone":
            license_key.unlink()
        case "license changed":
            license_key.write_bytes(content.replace(b"0", b"1"))
        case "machine key gone":
            key_file(folder).unlink()
        case "writable":
            license_key.chmod(0o666)
        case _:
            settings = {}
    state = open_vault(folder, cabinet, **settings).status()
    assert (state.state, state.key_source) == ("locked", "license")
    assert "license key" in (state.reason or "")


def test_an_editors_last_newline_is_not_part_of_the_license_key(
    folder: Path, cabinet: Cabinet, license_key: Path
) -> None:
    cabinet.fill(open_vault(folder, cabinet, license_key_file=license_key), 1)
    license_key.write_bytes(license_key.read_bytes().strip() + b"\r\n\n")
    cabinet.assert_all_open(open_vault(folder, cabinet, license_key_file=license_key))


def test_a_locked_keyring_and_a_keyring_that_lost_the_key(
    folder: Path, cabinet: Cabinet, secret_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cabinet.fill(open_vault(folder, cabinet), 1)
    entries = dict(secret_service.entries)
    secret_service.entries.clear()
    vault = open_vault(folder, cabinet)
    assert vault.status().state == "locked"
    assert secret_service.entries == {}, "no new key was made"

    def refuses(service: str, user: str) -> str:
        raise RuntimeError("the collection is locked")

    monkeypatch.setattr(secret_service, "get_password", refuses, raising=False)
    assert vault.reopen().state == "locked"
    assert "unlock the keyring" in (vault.status().hint or "")
    monkeypatch.undo()
    backend = as_backend(FakeKeyring, "keyring.backends.SecretService.Keyring")
    backend.entries = entries
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    vault.reopen()
    cabinet.assert_all_open(vault)


# ---- using it


def test_every_way_of_not_opening_is_the_same_error(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    other = open_vault(folder.parent / "other", Cabinet())
    blob = vault.seal(**place(), plaintext="secret")
    tries = [
        other.seal(**place(), plaintext="secret"),
        blob[:-1],
        blob[:-1] + bytes((blob[-1] ^ 1,)),
        b"",
        b"HFE2" + blob[4:],
        vault.seal(**place(version=2), plaintext="secret"),
        vault.seal(**place(endpoint="evil:5432"), plaintext="secret"),
    ]
    errors = []
    for attempt in tries:
        for call in (vault.unseal, vault.reseal):
            with pytest.raises(CredentialUnreadable) as caught:
                call(**place(), blob=attempt)
            errors.append((type(caught.value), caught.value.code, caught.value.message, caught.value.hint))
    assert len(set(errors)) == 1
    assert errors[0][1] == "credential.unreadable"
    assert vault.unseal(**place(), blob=blob) == "secret"


@pytest.mark.parametrize("plaintext", ["", "x", "pässwörd 😀", "line\nbreak\n", "\0", "x" * (1 << 16)])
def test_secrets_come_back_exactly(folder: Path, cabinet: Cabinet, plaintext: str) -> None:
    vault = open_vault(folder, cabinet)
    assert vault.unseal(**place(), blob=vault.seal(**place(), plaintext=plaintext)) == plaintext


def test_what_is_no_secret_is_refused_without_being_quoted(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    for plaintext in ("hunter2 \ud800", "hunter2" * 20_000):
        with pytest.raises(ConfigError) as caught:
            vault.seal(**place(), plaintext=plaintext)
        assert caught.value.field == "password"
        assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r} {caught.value.hint}"
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_secrets_and_keys_stay_out_of_logs_reprs_errors_and_files(
    folder: Path, cabinet: Cabinet, caplog: pytest.LogCaptureFixture, canary: str
) -> None:
    from hfagent.foundation.redaction import redact
    from tests.fixtures.canary import assert_no_canary

    caplog.set_level(logging.DEBUG)
    vault = open_vault(folder, cabinet)
    blob = vault.seal(**place(), plaintext=canary)
    assert vault.unseal(**place(), blob=blob) == canary
    key = key_file(folder).read_text().split()[1]
    shown = [repr(vault), str(vault), repr(vault.status()), repr(vault._chain.ring), repr(vault._chain.description)]
    with pytest.raises(CredentialUnreadable) as caught:
        vault.unseal(**place(version=9), blob=blob)
    shown += [repr(caught.value), str(caught.value.to_data()), caplog.text]
    assert_no_canary([*shown, blob, folder], [canary])
    assert not [text for text in shown if key in text]
    assert redact(f"the driver says: {canary} was wrong").count(canary) == 0


def test_sealing_and_opening_from_many_threads_while_the_key_is_rotated(folder: Path, cabinet: Cabinet) -> None:
    import threading

    vault = open_vault(folder, cabinet)
    failures: list[BaseException] = []
    rounds: list[int] = []
    stop = threading.Event()

    def work(number: int) -> None:
        count = 0
        try:
            while not stop.is_set():
                blob = vault.seal(**place(f"c{number}"), plaintext="the same secret")
                assert vault.unseal(**place(f"c{number}"), blob=blob) == "the same secret"
                count += 1
        except BaseException as exc:
            failures.append(exc)
        rounds.append(count)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    vault.begin_rotation()
    # Nothing of these threads is kept, so the old key may not go: something may be sealed under it this moment.
    assert not vault.finish_rotation({vault.active_key_id, *vault.status().retiring})
    under_new = vault.seal(**place("c0"), plaintext="the same secret")
    assert vault.unseal(**place("c0"), blob=under_new) == "the same secret"
    stop.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert min(rounds) > 0


def test_an_error_of_the_vault_is_one_of_ours() -> None:
    assert issubclass(VaultLocked, AgentError)
    assert issubclass(CredentialUnreadable, AgentError)
