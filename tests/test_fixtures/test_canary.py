"""The finder finds what was planted: without this, `assert_no_canary` could pass by finding nothing ever."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from tests.fixtures.canary import assert_no_canary, find_canaries, new_canary

LEAKS: dict[str, Callable[[str], str | bytes]] = {
    "plain": lambda secret: f"password={secret}!",
    "utf-16": lambda secret: secret.encode("utf-16"),
    "url": lambda secret: f"postgres://u:{quote(secret, safe='')}@h/d",
    "url, lower case": lambda secret: quote(secret, safe="").lower(),
    "url path": lambda secret: quote(secret),
    "form": lambda secret: quote_plus(secret),
    "json": lambda secret: json.dumps({"password": secret}),
    "json, unicode": lambda secret: json.dumps({"password": secret}, ensure_ascii=False),
    "hex": lambda secret: f"00{secret.encode().hex()}00",
    "upper-case hex": lambda secret: secret.encode().hex().upper(),
}


def _encoded(encode: Callable[[bytes], bytes], before: int, after: int) -> Callable[[str], bytes]:
    return lambda secret: encode(b"x" * before + secret.encode() + b"y" * after)


LEAKS |= {
    f"{encode.__name__} behind {before} and before {after} bytes": _encoded(encode, before, after)
    for encode in (base64.b64encode, base64.urlsafe_b64encode)
    for before in range(4)
    for after in range(3)
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("label", ["a", "ab", "abc"])  # three lengths, mod 3
def test_finds_a_planted_secret(leak: Callable[[str], str | bytes], label: str) -> None:
    secret = new_canary(label)
    assert find_canaries([leak(secret)], [secret])


def test_does_not_find_what_is_not_there(canary: str) -> None:
    other = new_canary()
    for leak in LEAKS.values():
        assert_no_canary([leak(other)], [canary])


def test_searches_files_and_directories_and_names(tmp_path: Path, canary: str) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    assert_no_canary([tmp_path], [canary])
    (tmp_path / "deep" / "er" / "state.db").write_bytes(b"\0\xff" + canary.encode() + b"\0")
    with pytest.raises(AssertionError, match=r"state\.db: .* as plain text at byte 2"):
        assert_no_canary([tmp_path], [canary])
    (tmp_path / "deep" / "er" / "state.db").unlink()
    (tmp_path / "deep" / canary.encode().hex()).touch()
    with pytest.raises(AssertionError, match="the name of"):
        assert_no_canary([tmp_path], [canary])


def test_a_search_that_cannot_find_anything_is_an_error(tmp_path: Path, canary: str) -> None:
    with pytest.raises(AssertionError, match="does not exist"):
        assert_no_canary([tmp_path / "misspelt"], [canary])
    with pytest.raises(AssertionError, match="no canary given"):
        assert_no_canary(["text"], [])
    with pytest.raises(AssertionError, match="too short"):
        assert_no_canary(["text"], ["x"])
