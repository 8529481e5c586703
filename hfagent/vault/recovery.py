"""What lets a recovery key open a vault whose own key is lost.

The recovery key is shown once and kept nowhere. From it comes an X25519 key pair; the vault keeps the public half and
seals each root to it, so a rotation can include its new root without anybody typing the recovery key again:

    private = HKDF-SHA256(recovery key, salt = the agent's, info = "hfagent/recovery/v1")
    sealed  = ephemeral public key 32 | nonce 12 | AES-256-GCM(HKDF(X25519(ephemeral, public)), root)

The public half is signed with the vault's own key: whoever can only write the file cannot put a half of his own there and
wait for the next rotation.
"""

from __future__ import annotations

import os
from typing import Final

from hfagent.vault.derivation import derive
from hfagent.vault.envelope import OpenFailed

__all__ = ["open_root", "public_key", "seal_root"]

_PUBLIC_BYTES: Final = 32
_NONCE_BYTES: Final = 12


def public_key(recovery_key: bytes, *, salt: bytes) -> bytes:
    """Return the public half that belongs to a recovery key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.from_private_bytes(_private(recovery_key, salt))
    return private.public_key().public_bytes_raw()


def seal_root(root: bytes, *, key_id: str, public: bytes, salt: bytes) -> bytes:
    """Seal a root so that only the recovery key opens it."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    ephemeral = X25519PrivateKey.generate()
    sender = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    nonce = os.urandom(_NONCE_BYTES)
    key = _wrapping_key(shared, sender, public, salt, key_id)
    return sender + nonce + AESGCM(key).encrypt(nonce, root, key_id.encode())


def open_root(sealed: bytes, recovery_key: bytes, *, key_id: str, salt: bytes) -> bytes:
    """Open what `seal_root` made. Raises `OpenFailed`."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    sender, nonce = sealed[:_PUBLIC_BYTES], sealed[_PUBLIC_BYTES : _PUBLIC_BYTES + _NONCE_BYTES]
    private = X25519PrivateKey.from_private_bytes(_private(recovery_key, salt))
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(sender))
        key = _wrapping_key(shared, sender, private.public_key().public_bytes_raw(), salt, key_id)
        return AESGCM(key).decrypt(nonce, sealed[_PUBLIC_BYTES + _NONCE_BYTES :], key_id.encode())
    except (InvalidTag, ValueError):
        raise OpenFailed from None


def _private(recovery_key: bytes, salt: bytes) -> bytes:
    return derive(recovery_key, salt=salt, info="hfagent/recovery/v1")


def _wrapping_key(shared: bytes, sender: bytes, receiver: bytes, salt: bytes, key_id: str) -> bytes:
    return derive(shared + sender + receiver, salt=salt, info=f"hfagent/recovery/wrap/v1/{key_id}")
