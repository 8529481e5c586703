"""Every key that is computed from another one. A root is used for nothing else, and no two uses share a key.

root          32 bytes from a key source
KEK           HKDF-SHA256(root, salt = the agent's, info = "hfagent/kek/v1/" + key id)           wraps data keys
fingerprints  HKDF-SHA256(root, salt = the agent's, info = "hfagent/fingerprint/v1/" + key id)   compares secrets
integrity     HKDF-SHA256(root, salt = the agent's, info = "hfagent/integrity/v1/" + key id)     signs the description
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from hfagent.vault.envelope import KEY_BYTES

__all__ = ["ROOT_BYTES", "SALT_BYTES", "Keys", "derive"]

ROOT_BYTES: Final = 32
SALT_BYTES: Final = 32


def derive(secret: bytes, *, salt: bytes, info: str) -> bytes:
    """Return 32 bytes of HKDF-SHA256."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info.encode()).derive(secret)


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys of one key id. Not shown by `repr`."""

    key_id: str
    """Hexadecimal."""
    root: bytes = field(repr=False)
    encryption: bytes = field(repr=False)
    _fingerprint: bytes = field(repr=False)
    _integrity: bytes = field(repr=False)

    @classmethod
    def of(cls, root: bytes, *, salt: bytes, key_id: str) -> Keys:
        """Compute the keys of `key_id` from its root."""
        purposes = ("kek", "fingerprint", "integrity")
        return cls(key_id, root, *(derive(root, salt=salt, info=f"hfagent/{name}/v1/{key_id}") for name in purposes))

    @property
    def id_bytes(self) -> bytes:
        """The key id as it stands in a sealed blob."""
        return bytes.fromhex(self.key_id)

    def fingerprint(self, value: str) -> str:
        """Return eight hexadecimal digits that tell whether two secrets are the same, and nothing else without the key."""
        return hmac.new(self._fingerprint, value.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:8]

    def signature(self, content: bytes) -> bytes:
        """Return the authentication code of `content`."""
        return hmac.new(self._integrity, content, hashlib.sha256).digest()
