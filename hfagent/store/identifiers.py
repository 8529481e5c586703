"""Ids that sort by the time they were made: 48 bits of milliseconds and 80 random ones, as 26 characters (ULID)."""

from __future__ import annotations

import secrets
import threading
from typing import Final

from hfagent.foundation.clock import SYSTEM_CLOCK, Clock

__all__ = ["new_id"]

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32
_RANDOM_BITS: Final = 80

_lock = threading.Lock()  # guards the line below
_last = 0


def new_id(clock: Clock = SYSTEM_CLOCK) -> str:
    """Return an id greater than every id this process made before, also within a millisecond or when the clock jumps back."""
    global _last
    milliseconds = int(clock.now().timestamp() * 1000)
    value = (milliseconds << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    with _lock:
        if value <= _last:
            value = _last + 1 + secrets.randbits(16)
        _last = value
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))
