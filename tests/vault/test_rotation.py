"""Rotation: every secret opens all along, wherever it is broken off, and the old key is gone in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hfagent.vault.failures import CredentialUnreadable, VaultLocked
from hfagent.vault.settings import SourceName
from tests.vault.places import Breakdown, Breaker, Cabinet, open_vault, place


def no_step() -> None:
    pass


def states(folder: Path) -> list[tuple[str, str]]:
    return [(key["source"], key["state"]) for key in json.loads((folder / "vault.json").read_text())["keys"]]


def test_a_rotation_from_begin_to_end(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 3)
    before, old_blobs = vault.active_key_id, [blob for _, blob, _ in cabinet.sealed]
    old_fingerprint = vault.fingerprint("x")

    after = vault.begin_rotation()
    assert after != before
    assert vault.status().retiring == (before,)
    cabinet.assert_all_open(vault)
    assert vault.begin_rotation() == after, "what is under way is continued"
    cabinet.assert_all_open(open_vault(folder, cabinet))
    assert not vault.finish_rotation(cabinet.key_ids()), "the old key is still needed"
    assert vault.status().retiring == (before,)
    cabinet.assert_all_open(vault)

    where, blob, secret = cabinet.sealed[0]
    resealed = vault.reseal(**where, blob=blob)
    assert resealed.key_id == after
    assert resealed.fingerprint == vault.fingerprint(secret)
    assert vault.unseal(**where, blob=resealed.blob) == secret
    assert cabinet.rotate(vault, no_step)

    assert states(folder) == [("file", "active")]
    assert [file.name for file in folder.glob("*.key")] == [f"{after}.key"]
    assert vault.fingerprint("x") != old_fingerprint
    for again in (vault, open_vault(folder, cabinet)):
        cabinet.assert_all_open(again)
        for (where, _, _), old in zip(cabinet.sealed, old_blobs, strict=True):
            with pytest.raises(CredentialUnreadable):
                again.unseal(**where, blob=old)


@pytest.mark.parametrize("start", ["file", "keyring", "systemd", "license"])
@pytest.mark.parametrize("target", [None, "file", "keyring", "systemd", "license"])
def test_a_key_moves_from_any_place_to_any_other(
    folder: Path, cabinet: Cabinet, secret_service: Any, credentials: Path, license_key: Path, start: SourceName,
    target: SourceName | None,
) -> None:  # fmt: skip
    settings: dict[str, Any] = {"license_key_file": license_key}
    vault = open_vault(folder, cabinet, key_source=start, **settings)
    cabinet.fill(vault, 2)
    before = vault.active_key_id
    assert cabinet.rotate(vault, no_step, source=target)
    assert vault.status().key_source == (target or start)
    assert vault.active_key_id != before
    assert states(folder) == [(target or start, "active")]
    assert not list(folder.glob(f"{before}*"))
    assert not [user for _, user in secret_service.entries if before in user]
    cabinet.assert_all_open(open_vault(folder, cabinet, key_source=target or start, **settings))


def test_a_place_that_refuses_leaves_the_present_key(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 1)
    before = vault.status()
    for source in ("systemd", "keyring", "license"):
        with pytest.raises(VaultLocked):
            vault.begin_rotation(source)
        assert vault.status() == before
    cabinet.fill(vault, 1)
    cabinet.assert_all_open(vault)
    again = open_vault(folder, cabinet)
    cabinet.assert_all_open(again)
    assert again.status() == before
    assert [state for _, state in states(folder) if state != "preparing"] == ["active"]
    assert cabinet.rotate(again, no_step)
    assert states(folder) == [("file", "active")]


def test_while_it_is_under_way_only_the_new_place_is_needed(
    folder: Path, cabinet: Cabinet, secret_service: Any
) -> None:
    """The old root is kept under the new key: the old place may fail in the middle of a move away from it."""
    vault = open_vault(folder, cabinet, key_source="keyring")
    cabinet.fill(vault, 2)
    vault.begin_rotation("file")
    secret_service.entries.clear()
    again = open_vault(folder, cabinet)
    cabinet.assert_all_open(again)
    assert cabinet.rotate(again, no_step)
    assert states(folder) == [("file", "active")]


def test_a_second_move_before_the_first_is_finished(folder: Path, cabinet: Cabinet, secret_service: Any) -> None:
    vault = open_vault(folder, cabinet, key_source="file")
    cabinet.fill(vault, 2)
    first = vault.begin_rotation()
    where, blob, secret = cabinet.sealed[0]
    cabinet.sealed[0] = (where, vault.reseal(**where, blob=blob).blob, secret)
    assert vault.begin_rotation("keyring") != first
    assert len(vault.status().retiring) == 2
    cabinet.assert_all_open(vault)
    cabinet.assert_all_open(open_vault(folder, cabinet))
    assert cabinet.rotate(vault, no_step)
    assert states(folder) == [("keyring", "active")]
    assert not list(folder.glob("*.key"))
    cabinet.assert_all_open(open_vault(folder, cabinet))


def test_an_older_key_that_is_lost_is_told_and_does_not_lock_the_rest(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 1)
    vault.begin_rotation()
    new = vault.seal(**place("new"), plaintext="new secret")
    described = json.loads((folder / "vault.json").read_text())
    described["keys"][0]["sealed_root"] = None
    (folder / "vault.json").write_text(json.dumps(described))
    (folder / f"{described['keys'][0]['key_id']}.key").unlink()
    again = open_vault(folder, cabinet)
    assert again.unseal(**place("new"), blob=new) == "new secret"
    assert "is missing" in again.status().notes[0]
    with pytest.raises(CredentialUnreadable):
        cabinet.assert_all_open(again)


def test_an_old_key_that_cannot_be_removed_is_tried_again(
    folder: Path, cabinet: Cabinet, secret_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = open_vault(folder, cabinet, key_source="keyring")
    cabinet.fill(vault, 1)

    def refuses(service: str, user: str) -> None:
        raise RuntimeError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(secret_service, "delete_password", refuses, raising=False)
        assert cabinet.rotate(vault, no_step, source="file")
    assert ("keyring", "destroying") in states(folder)
    assert len(secret_service.entries) == 1
    cabinet.assert_all_open(open_vault(folder, cabinet))
    assert vault.finish_rotation(cabinet.key_ids())
    assert states(folder) == [("file", "active")]
    assert secret_service.entries == {}


Setting = tuple[SourceName, SourceName | None]
SETTINGS: list[Setting] = [
    ("file", None), ("license", None), ("keyring", None), ("systemd", None), ("file", "keyring"), ("keyring", "file"),
]  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("recoverable", [False, True], ids=["", "recoverable"])
@pytest.mark.parametrize(("start", "target"), SETTINGS)
def test_broken_off_at_every_single_step(
    tmp_path: Path, breaker: Breaker, secret_service: Any, credentials: Path, license_key: Path, start: SourceName,
    target: SourceName | None, recoverable: bool, after: bool,
) -> None:  # fmt: skip
    """Break off before, or right after, the n-th change on disk, for n = 1, 2, … until a rotation runs through."""
    settings: dict[str, Any] = {"license_key_file": license_key}
    at = 0
    while True:
        at += 1
        folder, cabinet = tmp_path / f"vault{at}", Cabinet()
        breaker.disarm()
        vault = open_vault(folder, cabinet, key_source=start, **settings)
        recovery_key = vault.create_recovery_key() if recoverable else ""
        cabinet.fill(vault, 3)
        before = vault.active_key_id

        breaker.arm(at, after=after)
        try:
            cabinet.rotate(vault, breaker.step, source=target)
        except (Breakdown, VaultLocked):
            pass
        reached = breaker.count >= at
        breaker.disarm()

        again = open_vault(folder, cabinet, key_source=start, **settings)
        cabinet.assert_all_open(again)
        assert cabinet.rotate(again, no_step, source=target)
        cabinet.assert_all_open(again)
        last = open_vault(folder, cabinet, key_source=target or start, **settings)
        cabinet.assert_all_open(last)
        active = last.active_key_id
        assert active != before
        assert states(folder) == [(target or start, "active")], at
        assert {file.stem for file in folder.glob("*.key")} <= {active}
        assert {user.split("/")[1] for _, user in secret_service.entries} <= {active}
        if recoverable:
            lose_every_key(folder, secret_service, credentials)
            assert_recovers(folder, cabinet, recovery_key)
            (credentials / "hfagent.key").write_bytes(bytes(range(32)))
        secret_service.entries.clear()
        if not reached:
            break
    assert at > 3 + 4, "three secrets and at least four changes of the vault's own"


def lose_every_key(folder: Path, secret_service: Any, credentials: Path) -> None:
    for file in folder.glob("*.key"):
        file.unlink()
    secret_service.entries.clear()
    (credentials / "hfagent.key").write_bytes(bytes(32))


def assert_recovers(folder: Path, cabinet: Cabinet, recovery_key: str) -> None:
    vault = open_vault(folder, cabinet)
    assert vault.status().state == "locked"
    vault.unlock(recovery_key, "file")
    cabinet.assert_all_open(vault)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("source", ["file", "keyring", "systemd", "license"])
def test_making_the_first_key_broken_off_at_every_step(
    tmp_path: Path, breaker: Breaker, secret_service: Any, credentials: Path, license_key: Path, source: SourceName,
    after: bool,
) -> None:  # fmt: skip
    at = 0
    while True:
        at += 1
        folder, cabinet = tmp_path / f"vault{at}", Cabinet()
        breaker.arm(at, after=after)
        try:
            open_vault(folder, cabinet, key_source=source, license_key_file=license_key)
        except Breakdown:
            pass
        reached = breaker.count >= at
        breaker.disarm()
        vault = open_vault(folder, cabinet, key_source=source, license_key_file=license_key)
        assert vault.status().state == "unlocked"
        assert vault.status().key_source == source
        cabinet.fill(vault, 2)
        cabinet.assert_all_open(open_vault(folder, cabinet, license_key_file=license_key))
        assert len(list(folder.glob("*.key"))) == (source in ("file", "license"))
        if not reached:
            break
    assert at > 2


def test_the_control_a_rotation_that_forgets_the_old_key_first_is_caught(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 1)
    vault.begin_rotation()
    vault.finish_rotation(set())  # the wrong order: nothing was resealed
    with pytest.raises(CredentialUnreadable):
        cabinet.assert_all_open(open_vault(folder, cabinet))
