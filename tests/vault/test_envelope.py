"""The sealed form: opens for ever, for the one place it was sealed for, and only whole."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import itertools
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfagent.vault import envelope
from hfagent.vault.derivation import Keys
from hfagent.vault.envelope import Binding, OpenFailed, key_id_of, open_sealed, seal

GOLDEN = Path(__file__).parent / "golden"
KEY = bytes(range(32))
KEY_ID = bytes(range(100, 116))
HERE = Binding("agent", "connector", "password", "db1:5432", 7)


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(file.name for file in GOLDEN.glob("blobs-v*.json")))
def test_blobs_of_every_published_format_open_for_ever(name: str) -> None:
    content = golden(name)
    keys = Keys.of(bytes.fromhex(content["root"]), salt=bytes.fromhex(content["salt"]), key_id=content["key_id"])
    assert len(content["blobs"]) >= 6
    for entry in content["blobs"]:
        blob = base64.b64decode(entry["blob"])
        assert open_sealed(keys.encryption, Binding(**entry["binding"]), blob).decode() == entry["plaintext"]
        assert key_id_of(blob).hex() == content["key_id"]
        assert keys.fingerprint(entry["plaintext"]) == entry["fingerprint"]


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block, from the standard library alone."""
    extracted = hmac.new(salt, secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def test_the_format_is_the_documented_one() -> None:
    """Taken apart and opened here by hand, along the description in the module, with another interface of the cipher."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    def decrypt(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
        decryptor = Cipher(algorithms.AES(key), modes.GCM(nonce, sealed[-16:])).decryptor()
        decryptor.authenticate_additional_data(associated)
        return decryptor.update(sealed[:-16]) + decryptor.finalize()

    content = golden("blobs-v1.json")
    key = hkdf(
        bytes.fromhex(content["root"]), bytes.fromhex(content["salt"]), b"hfagent/kek/v1/" + content["key_id"].encode()
    )
    for entry in content["blobs"]:
        blob, binding = base64.b64decode(entry["blob"]), entry["binding"]
        parts = [
            b"HFE1", b"\x01", b"\x01", bytes.fromhex(content["key_id"]), binding["agent_id"].encode(),
            binding["connector_id"].encode(), binding["field"].encode(), binding["endpoint"].encode(),
            struct.pack(">Q", binding["record_version"]),
        ]  # fmt: skip
        associated = b"".join(struct.pack(">I", len(part)) + part for part in parts)
        assert blob[:6] == b"HFE1\x01\x01"
        assert blob[6:22] == bytes.fromhex(content["key_id"])
        data_key = decrypt(key, blob[22:34], blob[34:82], associated)
        assert struct.unpack(">I", blob[94:98])[0] == len(blob) - 98
        assert decrypt(data_key, blob[82:94], blob[98:], associated).decode() == entry["plaintext"]


@pytest.mark.parametrize("plaintext", [b"", b"x", "pässwörd 😀".encode(), os.urandom(4096), b"\0" * 100])
def test_what_is_sealed_opens(plaintext: bytes) -> None:
    blob = seal(KEY, KEY_ID, HERE, plaintext)
    assert open_sealed(KEY, HERE, blob) == plaintext
    assert key_id_of(blob) == KEY_ID
    assert len(blob) == 98 + len(plaintext) + 16
    assert len(plaintext) < 8 or plaintext not in blob  # a short text turns up among random bytes by chance


def test_too_long_a_text_is_refused() -> None:
    seal(KEY, KEY_ID, HERE, bytes(envelope.MAX_PLAINTEXT))
    with pytest.raises(ValueError, match="bytes"):
        seal(KEY, KEY_ID, HERE, bytes(envelope.MAX_PLAINTEXT + 1))


def test_every_single_bit_counts() -> None:
    """All bits of twenty blobs, one at a time: refused, and nothing but refused."""
    tried = 0
    for number in range(20):
        blob = seal(KEY, KEY_ID, HERE, b"secret" * number)
        for bit in range(len(blob) * 8):
            broken = bytearray(blob)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises(OpenFailed) as caught:
                open_sealed(KEY, HERE, bytes(broken))
            assert caught.value.args == ()
            assert caught.value.__cause__ is None
            tried += 1
    assert tried > 20 * 114 * 8


def test_cut_and_padded_blobs_are_refused() -> None:
    blob = seal(KEY, KEY_ID, HERE, b"secret")
    for length in range(len(blob)):
        with pytest.raises(OpenFailed):
            open_sealed(KEY, HERE, blob[:length])
    for more in (b"\0", b"x" * 16, blob):
        with pytest.raises(OpenFailed):
            open_sealed(KEY, HERE, blob + more)


@pytest.mark.parametrize("offset", [4, 5])
def test_unknown_versions_and_algorithms_are_refused(offset: int) -> None:
    blob = seal(KEY, KEY_ID, HERE, b"secret")
    for value in range(256):
        if value != blob[offset]:
            with pytest.raises(OpenFailed):
                open_sealed(KEY, HERE, blob[:offset] + bytes((value,)) + blob[offset + 1 :])


OTHER = Binding("agent2", "connector2", "token", "db2:5432", 8)


def all_places() -> list[Binding]:
    """Every combination of two agents, connectors, fields, endpoints and versions: 32 places."""
    names = [field.name for field in dataclasses.fields(Binding)]
    values = [(getattr(HERE, name), getattr(OTHER, name)) for name in names]
    return [Binding(*combination) for combination in itertools.product(*values)]


def test_a_blob_opens_in_its_own_place_and_in_no_other() -> None:
    blobs = {binding: seal(KEY, KEY_ID, binding, b"secret") for binding in all_places()}
    for sealed_for, blob in blobs.items():
        for tried_at in blobs:
            if tried_at == sealed_for:
                assert open_sealed(KEY, tried_at, blob) == b"secret"
            else:
                with pytest.raises(OpenFailed):
                    open_sealed(KEY, tried_at, blob)


def test_the_control_without_associated_data_every_swap_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "_associated_data", lambda key_id, binding: b"")
    blob = seal(KEY, KEY_ID, HERE, b"secret")
    assert [open_sealed(KEY, binding, blob) for binding in all_places()] == [b"secret"] * 32


def test_another_key_or_key_id_is_refused() -> None:
    blob = seal(KEY, KEY_ID, HERE, b"secret")
    with pytest.raises(OpenFailed):
        open_sealed(bytes(32), HERE, blob)
    with pytest.raises(OpenFailed):
        open_sealed(KEY, HERE, blob[:6] + bytes(16) + blob[22:])


texts = st.text(max_size=6)
bindings = st.builds(Binding, texts, texts, texts, texts, st.integers(0, 2**64 - 1))


@given(bindings, bindings)
def test_no_two_places_have_the_same_associated_data(one: Binding, two: Binding) -> None:
    same = envelope._associated_data(KEY_ID, one) == envelope._associated_data(KEY_ID, two)
    assert same == (one == two)


def test_parts_cannot_lend_each_other_characters() -> None:
    one, two = Binding("ab", "c", "d", "e", 1), Binding("a", "bc", "d", "e", 1)
    with pytest.raises(OpenFailed):
        open_sealed(KEY, two, seal(KEY, KEY_ID, one, b"secret"))


def test_no_nonce_and_no_data_key_is_ever_used_twice() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    associated = envelope._associated_data(KEY_ID, HERE)
    nonces: set[bytes] = set()
    data_keys: set[bytes] = set()
    count = 10_000
    for _ in range(count):
        blob = seal(KEY, KEY_ID, HERE, b"the same text")
        nonces |= {blob[22:34], blob[82:94]}
        data_keys.add(AESGCM(KEY).decrypt(blob[22:34], blob[34:82], associated))
    assert len(nonces) == 2 * count
    assert len(data_keys) == count


def test_without_random_numbers_nothing_is_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(size: int) -> bytes:
        raise OSError("no entropy")

    monkeypatch.setattr(envelope.os, "urandom", fails)
    with pytest.raises(OSError, match="no entropy"):
        seal(KEY, KEY_ID, HERE, b"secret")


def test_keys_of_different_ids_salts_and_purposes_differ() -> None:
    one, two = Keys.of(KEY, salt=bytes(32), key_id="aa"), Keys.of(KEY, salt=bytes(32), key_id="bb")
    three = Keys.of(KEY, salt=b"\1" * 32, key_id="aa")
    derived = [
        getattr(keys, name) for keys in (one, two, three) for name in ("encryption", "_fingerprint", "_integrity")
    ]
    assert len({*derived, KEY}) == 10
    assert "root" not in repr(one)
    assert repr(one) == "Keys(key_id='aa')"
