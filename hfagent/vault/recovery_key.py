"""A recovery key as people handle it: 170 random bits as 34 characters and a check character, in groups of five.

    K7QME-2D9XR-0VW3A-HJ5TB-NZ8C4-6GPYS-F1QKT

Crockford's base 32: no I, L, O or U; small letters, blanks and I, L, O for 1, 1, 0 are understood on input. The check
character is a polynomial over the field of 32 elements: it finds every single wrong character and every two swapped ones
(unless exactly 31 places apart), and 31 of 32 of all other mistakes.
"""

from __future__ import annotations

import secrets
from typing import Final

from hfagent.vault.failures import CredentialUnreadable

__all__ = ["generate", "parse"]

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MISREAD: Final = str.maketrans(
    {"O": "0", "I": "1", "L": "1", "-": None, " ": None, "\t": None, "\n": None, "\r": None}
)
_DATA_CHARACTERS: Final = 34
_BITS: Final = 5 * _DATA_CHARACTERS
_GROUP: Final = 5


def generate() -> tuple[str, bytes]:
    """Return a new recovery key as text and as the bytes that keys are derived from."""
    number = secrets.randbits(_BITS)
    values = [(number >> shift) & 31 for shift in range(_BITS - 5, -1, -5)]
    values.append(_check(values))
    characters = "".join(_ALPHABET[value] for value in values)
    groups = (characters[start : start + _GROUP] for start in range(0, len(characters), _GROUP))
    return "-".join(groups), _to_bytes(number)


def parse(text: str) -> bytes:
    """Return the bytes of a recovery key as typed. Raises `CredentialUnreadable` for anything with a typing error."""
    characters = text.upper().translate(_MISREAD)
    if len(characters) != _DATA_CHARACTERS + 1:
        raise CredentialUnreadable(
            f"a recovery key has {_DATA_CHARACTERS + 1} letters and digits, this one has {len(characters)}",
            hint="type it again, group by group",
        )
    values = [_ALPHABET.find(character) for character in characters]
    if -1 in values or _check(values[:-1]) != values[-1]:
        raise CredentialUnreadable("the recovery key has a typing error", hint="type it again, group by group")
    number = 0
    for value in values[:-1]:
        number = number << 5 | value
    return _to_bytes(number)


def _to_bytes(number: int) -> bytes:
    return number.to_bytes((_BITS + 7) // 8, "big")


def _check(values: list[int]) -> int:
    """Evaluate the polynomial with these coefficients at a generator, by Horner's rule."""
    total = 0
    for value in values:
        total = _times_generator(total ^ value)
    return total


def _times_generator(element: int) -> int:
    """Multiply by x in GF(32) with x^5 = x^2 + 1; x generates all 31 elements but zero."""
    element <<= 1
    return element ^ 0b100101 if element & 0b100000 else element
