"""The sealed form of one secret, format 1. Pure functions over bytes; the keys come from the caller.

    offset  0  magic "HFE1"          4
            4  format version        1   = 1
            5  algorithm             1   = 1: AES-256-GCM for both steps
            6  key id               16   which key-encryption key
           22  nonce of the wrap    12
           34  wrapped data key     48   32 bytes and tag, under the key-encryption key
           82  nonce of the text    12
           94  length               4    big-endian, of what follows
           98  ciphertext and tag

A fresh data key and two fresh nonces for every seal, so no key ever encrypts two texts and the limits of random nonces
(2^32 per key) concern the wraps alone. Both steps authenticate the same associated data: the header's fixed part, the key
id and the `Binding`, each part with its length in front. So a blob opens for exactly the place that it was sealed for:
connector, field, agent, endpoint and record version; a copy anywhere else is noise.

Every failure to open is the same `OpenFailed`, whatever the cause.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

__all__ = [
    "KEY_BYTES",
    "KEY_ID_BYTES",
    "MAX_PLAINTEXT",
    "Binding",
    "OpenFailed",
    "key_id_of",
    "open_sealed",
    "seal",
]

MAGIC: Final = b"HFE1"
VERSION: Final = 1
ALGORITHM: Final = 1
KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 16

_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_WRAPPED_BYTES: Final = KEY_BYTES + _TAG_BYTES
_HEADER: Final = struct.Struct(f">4sBB{KEY_ID_BYTES}s{_NONCE_BYTES}s{_WRAPPED_BYTES}s{_NONCE_BYTES}sI")
MAX_PLAINTEXT: Final = 64 * 1024
"""Longest secret in bytes: a service account or a bundle of keys fits, a mistake does not."""


class OpenFailed(Exception):
    """The blob does not open. Carries no cause: a caller must not be able to tell one from another."""


@dataclass(frozen=True, slots=True)
class Binding:
    """The one place a sealed secret is good for."""

    agent_id: str
    connector_id: str
    field: str
    endpoint: str
    """Where the secret is sent, as the connector type writes it (`db1:5432`): another endpoint, another binding."""
    record_version: int


def seal(key: bytes, key_id: bytes, binding: Binding, plaintext: bytes) -> bytes:
    """Seal `plaintext` for `binding` under the key-encryption key `key`. Raises `ValueError` when it is too long."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(plaintext) > MAX_PLAINTEXT:
        raise ValueError(f"a secret may have {MAX_PLAINTEXT} bytes, this one has {len(plaintext)}")
    associated = _associated_data(key_id, binding)
    data_key, wrap_nonce, text_nonce = os.urandom(KEY_BYTES), os.urandom(_NONCE_BYTES), os.urandom(_NONCE_BYTES)
    wrapped = AESGCM(key).encrypt(wrap_nonce, data_key, associated)
    ciphertext = AESGCM(data_key).encrypt(text_nonce, plaintext, associated)
    header = _HEADER.pack(MAGIC, VERSION, ALGORITHM, key_id, wrap_nonce, wrapped, text_nonce, len(ciphertext))
    return header + ciphertext


def open_sealed(key: bytes, binding: Binding, blob: bytes) -> bytes:
    """Return what was sealed for `binding` under `key`. Raises `OpenFailed`."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key_id, wrap_nonce, wrapped, text_nonce, ciphertext = _parse(blob)
    associated = _associated_data(key_id, binding)
    try:
        data_key = AESGCM(key).decrypt(wrap_nonce, wrapped, associated)
        return AESGCM(data_key).decrypt(text_nonce, ciphertext, associated)
    except InvalidTag:
        raise OpenFailed from None


def key_id_of(blob: bytes) -> bytes:
    """Return the id of the key that a blob is sealed under. Raises `OpenFailed` when it is not a blob of this format."""
    return _parse(blob)[0]


def _parse(blob: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    if len(blob) < _HEADER.size + _TAG_BYTES:
        raise OpenFailed
    magic, version, algorithm, key_id, wrap_nonce, wrapped, text_nonce, length = _HEADER.unpack_from(blob)
    ciphertext = blob[_HEADER.size :]
    if magic != MAGIC or version != VERSION or algorithm != ALGORITHM or length != len(ciphertext):
        raise OpenFailed
    return key_id, wrap_nonce, wrapped, text_nonce, ciphertext


def _associated_data(key_id: bytes, binding: Binding) -> bytes:
    """The binding in one unambiguous byte string: without the lengths, ("ab", "c") and ("a", "bc") would be the same."""
    parts = (
        MAGIC,
        bytes((VERSION,)),
        bytes((ALGORITHM,)),
        key_id,
        binding.agent_id.encode("utf-8", "surrogatepass"),
        binding.connector_id.encode("utf-8", "surrogatepass"),
        binding.field.encode("utf-8", "surrogatepass"),
        binding.endpoint.encode("utf-8", "surrogatepass"),
        struct.pack(">Q", binding.record_version),
    )
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)
