"""Nothing known, and nothing that looks like a password, leaves in a text."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfagent.foundation.redaction import (
    MASK,
    RedactingFilter,
    redact,
    redact_tree,
    register_secret,
    unregister_all,
)

CANARY = "kN4riu'V0gel\\\"äö +/=&"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    unregister_all()


def test_the_mask_is_eight_bullets() -> None:
    assert MASK == "••••••••"


@pytest.mark.parametrize(
    "form",
    [
        CANARY,
        quote(CANARY, safe=""),
        quote_plus(CANARY),
        repr(CANARY)[1:-1],
        json.dumps(CANARY)[1:-1],
        json.dumps(CANARY, ensure_ascii=False)[1:-1],
        CANARY.replace("'", "''"),
        base64.b64encode(CANARY.encode()).decode(),
        base64.urlsafe_b64encode(CANARY.encode()).decode(),
        CANARY.encode().hex(),
        CANARY.encode().hex().upper(),
    ],
)
def test_a_known_secret_is_masked_in_every_form(form: str) -> None:
    register_secret(CANARY)
    assert redact(f"before {form} after") == f"before {MASK} after"


@pytest.mark.parametrize("user", ["", "a", "ab", "abc", "etl", "etl_user"])
@pytest.mark.parametrize("tail", ["", "!", "!!", "!!!"])
def test_a_secret_inside_a_longer_base64_text(user: str, tail: str) -> None:
    """A Basic header, for instance: at most the characters that also depend on the neighbours remain."""
    secret = "correct-horse-battery"
    register_secret(secret)
    header = base64.b64encode(f"{user}:{secret}{tail}".encode()).decode()
    shown = redact(f"sent {header} to the server")
    assert MASK in shown
    rest = shown.removeprefix("sent ").removesuffix(" to the server").replace(MASK, "")
    assert len(rest) < len(header) - len(secret) * 4 // 3 + 6


def test_parts_of_a_private_key() -> None:
    lines = [
        "-----BEGIN PRIVATE KEY-----",
        "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
        "abcdEFGH1234567890abcdEFGH123456",
        "short=",
    ]
    register_secret("\n".join([*lines, "-----END PRIVATE KEY-----"]))
    assert redact(f"could not parse {lines[1]!r}") == f"could not parse '{MASK}'"
    assert redact("no -----BEGIN PRIVATE KEY----- found") == "no -----BEGIN PRIVATE KEY----- found"


def test_longer_secrets_first() -> None:
    register_secret("abcd")
    register_secret("abcdefgh")
    assert redact("x abcdefgh y abcd z") == f"x {MASK} y {MASK} z"


def test_short_values_would_blot_out_ordinary_text() -> None:
    for value in ("", "a", "abc", MASK):
        register_secret(value)
    assert redact("an abc of " + MASK) == "an abc of " + MASK


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://etl:p4ss@db:5432/x", f"postgres://etl:{MASK}@db:5432/x"),
        ("redis://:p4ss@db", f"redis://:{MASK}@db"),
        ("postgres://etl:p@ss@db/x", f"postgres://etl:{MASK}@db/x"),
        ("mysql+pymysql://u:p%40ss@h, then http://h/ok", f"mysql+pymysql://u:{MASK}@h, then http://h/ok"),
        ("https://host:8080/users/@me", "https://host:8080/users/@me"),
        ("mail me@example.com about http://x", "mail me@example.com about http://x"),
        ("password=hunter2 host=db", f"password={MASK} host=db"),
        ("PGPASSWORD=hunter2", f"PGPASSWORD={MASK}"),
        ("db_password: 'hunter 2'", f"db_password: {MASK}"),
        ("client_secret=abc&grant=x", f"client_secret={MASK}&grant=x"),
        ("aws_secret_access_key = AbC/1", f"aws_secret_access_key = {MASK}"),
        ("x-api-key: abc", f"x-api-key: {MASK}"),
        ("access_token=abc;", f"access_token={MASK};"),
        ('{"password": "a\\"b", "user": "u"}', f'{{"password": {MASK}, "user": "u"}}'),
        ("{'pwd': 'abc', 'n': 1}", f"{{'pwd': {MASK}, 'n': 1}}"),
        ("Authorization: Bearer abc.def", f"Authorization: {MASK}"),
        ("authorization: Basic dXNlcjpwdw==", f"authorization: {MASK}"),
        ("proxy-authorization: Basic abc", f"proxy-authorization: {MASK}"),
        ("my_credentials=abc", f"my_credentials={MASK}"),
        ("clientSecret=abc apiKey: x", f"clientSecret={MASK} apiKey: {MASK}"),
        ("add LoadCredential=name:FILE to the unit", "add LoadCredential=name:FILE to the unit"),
        ("passphrase: x1y2", f"passphrase: {MASK}"),
        ("password=None", "password=None"),
        ("'password': required", "'password': required"),
        ("password rejected for 'etl' at db1:5432", "password rejected for 'etl' at db1:5432"),
        ("the password is wrong: check it", "the password is wrong: check it"),
        ("unexpected token: FROM", "unexpected token: FROM"),
        ("usage: input_tokens=12, output_tokens=7", "usage: input_tokens=12, output_tokens=7"),
        ("primary_key: id, secretary: Ann", "primary_key: id, secretary: Ann"),
        ("at 12:30:00 on host:5432", "at 12:30:00 on host:5432"),
    ],
)
def test_what_looks_like_a_password(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a-",
        "a://",
        "http://u:",
        'password="',
        "password='\\",
        "secret: ",
        "token=",
        "Bearer ",
        "x:y@",
        "_",
        "key ",
    ],
)
def test_hostile_texts_cost_linear_time(unit: str) -> None:
    """A test of the patterns' bounds: quadratic ones would run for minutes into the test's own time limit."""
    text = unit * (400_000 // len(unit)) + "@ :// = end"
    assert redact(text)


def test_a_register_full_of_secrets_stays_usable() -> None:
    for number in range(500):
        register_secret(f"secret-number-{number:04d}")
    assert redact("a secret-number-0123 b") == f"a {MASK} b"


def test_trees() -> None:
    register_secret("hunter22")
    tree = {"a": ["hunter22", 1, None], "b": {"c": ("x hunter22",)}, "d": True}
    assert redact_tree(tree) == {"a": [MASK, 1, None], "b": {"c": [f"x {MASK}"]}, "d": True}


@given(st.text(min_size=4, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_a_registered_value_never_survives(secret: str, before: str, after: str) -> None:
    unregister_all()
    register_secret(secret)
    if secret in MASK or MASK in secret:
        return
    assert secret not in redact(before + secret + after).replace(MASK, "\0")


# --- logging ---


def formatted(record: logging.LogRecord) -> str:
    assert RedactingFilter().filter(record)
    return logging.Formatter("%(message)s").format(record)


def record(message: object, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("x").makeRecord("x", logging.INFO, "f", 1, message, args, None, extra=extra or None)


def test_arguments_are_redacted() -> None:
    register_secret("hunter22")
    assert formatted(record("login %s %r", "hunter22", {"k": "hunter22"})) == f"login {MASK} {{'k': '{MASK}'}}"
    assert formatted(record("password=%s", "whatever")) == f"password={MASK}"


def test_exceptions_and_extras_are_redacted() -> None:
    register_secret("hunter22")
    one = record("failed", context={"dsn": ["hunter22"]}, user="hunter22", count=3)
    try:
        raise ValueError("bad hunter22") from KeyError("hunter22")
    except ValueError as exc:
        one.exc_info = (type(exc), exc, exc.__traceback__)
    one.stack_info = "Stack hunter22"
    text = formatted(one)
    assert "hunter22" not in text
    assert "ValueError: bad" in text and "KeyError" in text
    assert (one.__dict__["context"], one.__dict__["user"], one.__dict__["count"]) == ({"dsn": [MASK]}, MASK, 3)


def test_a_broken_log_call_prints_no_arguments() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("hunter22")

    for one in (record("%d", "hunter22"), record("%s", Broken()), record("%s %s", "hunter22")):
        text = formatted(one)
        assert text.startswith("unprintable log record from x (")
        assert "hunter22" not in text
