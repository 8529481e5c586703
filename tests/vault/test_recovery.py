"""The recovery key: opens a vault whose own key is lost, tells typing errors, and cannot be replaced behind our back."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from hfagent.foundation.redaction import MASK, redact
from hfagent.vault import recovery, recovery_key
from hfagent.vault.envelope import OpenFailed
from hfagent.vault.failures import CredentialUnreadable, VaultLocked
from tests.vault.places import Breakdown, Breaker, Cabinet, open_vault
from tests.vault.test_rotation import no_step, states

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


# ---- as people handle it


def test_a_recovery_key_comes_in_seven_groups_of_five() -> None:
    seen = set()
    for _ in range(200):
        text, entropy = recovery_key.generate()
        groups = text.split("-")
        assert [len(group) for group in groups] == [5] * 7
        assert set(text) <= {*ALPHABET, "-"}
        assert recovery_key.parse(text) == entropy
        assert len(entropy) * 8 >= 170
        seen.add(entropy)
    assert len(seen) == 200


def test_it_may_be_typed_as_people_type() -> None:
    text, entropy = recovery_key.generate()
    for typed in (
        text.lower(), text.replace("-", ""), text.replace("-", " "), f"  {text}\n", text.replace("0", "O"),
        text.replace("1", "l"), text.replace("1", "I"), text.replace("0", "o").lower(), text.replace("-", "-\n"),
    ):  # fmt: skip
        assert recovery_key.parse(typed) == entropy


def test_every_single_wrong_character_is_noticed() -> None:
    text, _ = recovery_key.generate()
    for position, right in enumerate(text):
        for wrong in ALPHABET:
            if right not in ("-", wrong):
                with pytest.raises(CredentialUnreadable, match="typing error"):
                    recovery_key.parse(text[:position] + wrong + text[position + 1 :])


def test_every_two_swapped_characters_are_noticed() -> None:
    plain = recovery_key.generate()[0].replace("-", "")
    for one, two in itertools.combinations(range(len(plain)), 2):
        if plain[one] != plain[two] and two - one != 31:
            swapped = list(plain)
            swapped[one], swapped[two] = swapped[two], swapped[one]
            with pytest.raises(CredentialUnreadable, match="typing error"):
                recovery_key.parse("".join(swapped))


@pytest.mark.parametrize("typed", ["", "ABCDE", "U" * 35, "?" * 35, "é" * 35, "0" * 34, "0" * 36, "-" * 35])
def test_what_is_no_recovery_key_is_refused_without_being_quoted(typed: str) -> None:
    with pytest.raises(CredentialUnreadable) as caught:
        recovery_key.parse(typed)
    assert caught.value.code == "credential.unreadable"
    assert not typed or typed not in str(caught.value)


def test_other_mistakes_are_noticed_thirty_one_times_out_of_thirty_two() -> None:
    rng = random.Random(1)
    text = recovery_key.generate()[0].replace("-", "")
    noticed = 0
    for _ in range(2000):
        try:
            recovery_key.parse("".join(rng.choice(ALPHABET) for _ in text))
        except CredentialUnreadable:
            noticed += 1
    assert noticed > 1850


def test_known_answers() -> None:
    """The text form is a format too: what was printed once has to be understood for ever."""
    assert recovery_key.parse("00000-00000-00000-00000-00000-00000-00000") == bytes(22)
    golden = json.loads((Path(__file__).parent / "golden" / "vault-v1" / "about.json").read_text())
    assert recovery_key.parse(golden["recovery_key"]).hex() == golden["recovery_bytes"]


# ---- the sealed root


def test_a_sealed_root_opens_with_its_own_key_and_nothing_else() -> None:
    salt = bytes(32)
    mine, other = recovery_key.generate()[1], recovery_key.generate()[1]
    sealed = recovery.seal_root(b"r" * 32, key_id="aa", public=recovery.public_key(mine, salt=salt), salt=salt)
    assert recovery.open_root(sealed, mine, key_id="aa", salt=salt) == b"r" * 32
    for kwargs in ({"key_id": "bb", "salt": salt}, {"key_id": "aa", "salt": b"\1" * 32}):
        with pytest.raises(OpenFailed):
            recovery.open_root(sealed, mine, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(OpenFailed):
        recovery.open_root(sealed, other, key_id="aa", salt=salt)
    for bit in range(len(sealed) * 8):
        broken = bytearray(sealed)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(OpenFailed):
            recovery.open_root(bytes(broken), mine, key_id="aa", salt=salt)
    for cut in (b"", sealed[:10], sealed[:32], sealed[:50]):
        with pytest.raises(OpenFailed):
            recovery.open_root(cut, mine, key_id="aa", salt=salt)


# ---- the whole way


def lose_key(folder: Path) -> None:
    for file in folder.glob("*.key"):
        file.unlink()


def test_from_a_lost_key_back_to_work(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 3)
    lost = vault.active_key_id
    key = vault.create_recovery_key()
    assert vault.status().recovery_key
    lose_key(folder)

    vault = open_vault(folder, cabinet)
    assert vault.status().state == "locked"
    assert "recovery key" in (vault.status().hint or "")
    new = vault.unlock(key.lower().replace("-", " "))
    assert new != lost
    state = vault.status()
    assert (state.state, state.key_source, state.key_id, state.retiring) == ("unlocked", "file", new, (lost,))
    cabinet.assert_all_open(vault)
    cabinet.assert_all_open(open_vault(folder, cabinet))  # also when the agent stops right now
    assert cabinet.rotate(vault, no_step)
    assert states(folder) == [("file", "active")]
    # It goes on working: the next loss is no loss either.
    lose_key(folder)
    vault = open_vault(folder, cabinet)
    vault.unlock(key)
    cabinet.assert_all_open(vault)


def test_recovering_into_the_keyring(folder: Path, cabinet: Cabinet, secret_service: Any) -> None:
    vault = open_vault(folder, cabinet, key_source="file")
    cabinet.fill(vault, 1)
    key = vault.create_recovery_key()
    lose_key(folder)
    vault = open_vault(folder, cabinet)
    vault.unlock(key, "keyring")
    assert cabinet.rotate(vault, no_step)
    assert states(folder) == [("keyring", "active")]
    assert len(secret_service.entries) == 1


def test_a_recovery_key_survives_rotations_made_without_it(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 2)
    key = vault.create_recovery_key()
    for _ in range(3):
        assert cabinet.rotate(open_vault(folder, cabinet), no_step)
    lose_key(folder)
    vault = open_vault(folder, cabinet)
    vault.unlock(key)
    cabinet.assert_all_open(vault)


def test_in_the_middle_of_a_rotation_it_opens_what_is_under_either_key(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 2)
    key = vault.create_recovery_key()
    vault.begin_rotation()
    where, blob, secret = cabinet.sealed[0]
    cabinet.sealed[0] = (where, vault.reseal(**where, blob=blob).blob, secret)
    lose_key(folder)
    vault = open_vault(folder, cabinet)
    vault.unlock(key)
    cabinet.assert_all_open(vault)
    assert cabinet.rotate(vault, no_step)
    assert states(folder) == [("file", "active")]


def test_an_earlier_recovery_key_stops_working(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 1)
    first, second = vault.create_recovery_key(), vault.create_recovery_key()
    lose_key(folder)
    vault = open_vault(folder, cabinet)
    with pytest.raises(CredentialUnreadable, match="not the latest one"):
        vault.unlock(first)
    assert vault.status().state == "locked"
    vault.unlock(second)
    cabinet.assert_all_open(vault)


def test_wrong_keys_change_nothing(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 1)
    with_none = recovery_key.generate()[0]
    lose_key(folder)
    before = (folder / "vault.json").read_bytes()
    vault = open_vault(folder, cabinet)
    with pytest.raises(CredentialUnreadable, match="no recovery key was made"):
        vault.unlock(with_none)
    assert (folder / "vault.json").read_bytes() == before
    assert list(folder.glob("*.key")) == []


def test_an_unlocked_vault_stays_as_it_is(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    assert vault.unlock("anything at all") == vault.active_key_id


def test_without_the_description_a_recovery_key_has_nothing_to_open(folder: Path, cabinet: Cabinet) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 1)
    key = vault.create_recovery_key()
    (folder / "vault.json").rename(folder.parent / "kept.json")
    vault = open_vault(folder, cabinet)
    with pytest.raises(VaultLocked, match="recovery key opens only"):
        vault.unlock(key)
    shutil.move(folder.parent / "kept.json", folder / "vault.json")
    vault.reopen()
    cabinet.assert_all_open(vault)


def test_a_place_that_refuses_the_new_key_leaves_the_vault_locked_and_recoverable(
    folder: Path, cabinet: Cabinet
) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 1)
    key = vault.create_recovery_key()
    lose_key(folder)
    vault = open_vault(folder, cabinet)
    with pytest.raises(VaultLocked, match="keyring"):
        vault.unlock(key, "keyring")
    assert vault.status().state == "locked"
    again = open_vault(folder, cabinet)
    again.unlock(key, "file")
    cabinet.assert_all_open(again)


def test_a_recovery_half_planted_by_somebody_else_is_never_sealed_to(
    folder: Path, cabinet: Cabinet, caplog: pytest.LogCaptureFixture
) -> None:
    vault = open_vault(folder, cabinet)
    cabinet.fill(vault, 1)
    vault.create_recovery_key()
    described = json.loads((folder / "vault.json").read_text())
    mine = recovery_key.generate()[1]
    salt = base64.b64decode(described["salt"])
    described["recovery"]["public_key"] = base64.b64encode(recovery.public_key(mine, salt=salt)).decode()
    (folder / "vault.json").write_text(json.dumps(described))
    vault = open_vault(folder, cabinet)
    assert cabinet.rotate(vault, no_step)
    assert not vault.status().recovery_key
    assert "tampered" in vault.status().notes[0]
    assert "changed by somebody else" in caplog.text
    assert json.loads((folder / "vault.json").read_text())["recovery"] is None
    cabinet.assert_all_open(vault)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_recovery_broken_off_at_every_step(tmp_path: Path, breaker: Breaker, after: bool) -> None:
    at = 0
    while True:
        at += 1
        folder, cabinet = tmp_path / f"vault{at}", Cabinet()
        breaker.disarm()
        vault = open_vault(folder, cabinet)
        key = vault.create_recovery_key()
        cabinet.fill(vault, 2)
        lose_key(folder)
        vault = open_vault(folder, cabinet)
        breaker.arm(at, after=after)
        try:
            vault.unlock(key)
            cabinet.rotate(vault, breaker.step)
        except Breakdown:
            pass
        reached = breaker.count >= at
        breaker.disarm()

        again = open_vault(folder, cabinet)
        again.unlock(key)  # does nothing when the new key is in place already
        cabinet.assert_all_open(again)
        assert cabinet.rotate(again, no_step)
        cabinet.assert_all_open(open_vault(folder, cabinet))
        assert states(folder) == [("file", "active")]
        assert len(list(folder.glob("*.key"))) == 1
        if not reached:
            break
    assert at > 6


def test_the_recovery_key_stays_out_of_files_logs_and_reprs(
    folder: Path, cabinet: Cabinet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    vault = open_vault(folder, cabinet)
    key = vault.create_recovery_key()
    lose_key(folder)
    vault = open_vault(folder, cabinet)
    vault.unlock(key)
    shown = [caplog.text, repr(vault.status()), repr(vault._chain.description), (folder / "vault.json").read_text()]
    for form in (key, key.replace("-", ""), key.lower()):
        assert not [text for text in shown if form in text]
    assert redact(f"typed {key}") == f"typed {MASK}"
    assert redact(f"typed {key.replace('-', '')}") == f"typed {MASK}"


# ---- a vault as format 1 left it


def test_a_vault_of_every_published_format_opens_rotates_and_recovers(tmp_path: Path) -> None:
    for golden in sorted((Path(__file__).parent / "golden").glob("vault-v*")):
        about = json.loads((golden / "about.json").read_text(encoding="utf-8"))
        for lost in (False, True):
            folder = tmp_path / f"{golden.name}-{lost}"
            folder.mkdir(mode=0o700)
            shutil.copy(golden / "vault.json", folder)
            if not lost:
                for file in golden.glob("*.key"):
                    shutil.copy(file, folder)
                    (folder / file.name).chmod(0o600)
            cabinet = Cabinet(
                [(entry["place"], base64.b64decode(entry["blob"]), entry["secret"]) for entry in about["sealed"]]
            )
            vault = open_vault(folder, cabinet, agent=about["agent_id"])
            if lost:
                assert vault.status().state == "locked"
                vault.unlock(about["recovery_key"])
            cabinet.assert_all_open(vault)
            assert cabinet.rotate(vault, no_step)
            cabinet.assert_all_open(open_vault(folder, cabinet, agent=about["agent_id"]))
