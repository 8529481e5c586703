"""The table of codes, and errors that carry what a user needs and no secret."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator

import pytest

from hfagent.foundation.errors import (
    CODES,
    MAX_MESSAGE,
    AccessDenied,
    AgentError,
    Cancelled,
    ConfigError,
    Conflict,
    InternalError,
    NotFound,
    SourceError,
    UserError,
)
from hfagent.foundation.redaction import MASK, register_secret, unregister_all

CANARY = "kN4riu-V0gel"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    unregister_all()


def test_the_table_is_complete_and_consistent() -> None:
    for code, entry in CODES.items():
        assert entry.code == code
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", code)
        assert entry.meaning.endswith(".")
        assert entry.blame
    for code in ("net.refused", "timeout.statement", "transient.failover", "capacity.pool_exhausted"):
        assert CODES[code].retryable
    for code in (
        "auth.invalid_credentials",
        "tls.expired",
        "config.invalid",
        "net.tunnel_hostkey",
        "capacity.quota_exceeded",
    ):
        assert not CODES[code].retryable


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (UserError, "request.invalid_params"), (ConfigError, "config.invalid"), (NotFound, "connector.not_found"),
        (Conflict, "connector.conflict"), (AccessDenied, "access.denied"), (SourceError, "query.failed"),
        (InternalError, "internal.bug"), (AgentError, "internal.bug"),
    ],
)  # fmt: skip
def test_every_class_has_a_code_of_its_own(kind: type[AgentError], code: str) -> None:
    error = kind("it failed")
    assert (error.code, str(error), error.retryable) == (code, "it failed", CODES[code].retryable)
    assert error.to_data() == {"code": code, "message": "it failed", "retryable": CODES[code].retryable}


def test_an_unknown_code_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        AgentError("x", code="net.gremlins")


def test_the_wire_form_and_back() -> None:
    error = SourceError(
        "the server is busy", code="capacity.rate_limited", hint="wait", stage="ping", retry_after=2.5,
        native={"http_status": 429, "text": "slow down"}, data={"field": "host", "tried": [{"address": "10.0.0.1"}]},
    )  # fmt: skip
    data = error.to_data()
    json.dumps(data)
    back = AgentError.from_data(data)
    assert back.to_data() == data
    assert (back.retryable, back.retry_after, back.native) == (True, 2.5, {"http_status": 429, "text": "slow down"})


def test_extra_data_cannot_replace_what_clients_match_on() -> None:
    data = AgentError("x", code="net.dns", data={"code": "cancelled", "retryable": False, "more": 1}).to_data()
    assert (data["code"], data["retryable"], data["more"]) == ("net.dns", True, 1)


def test_an_error_of_a_newer_peer_keeps_its_text() -> None:
    back = AgentError.from_data({"code": "net.wormhole", "message": "bent", "hint": "unbend", "retryable": True})
    assert (back.code, back.message, back.hint, back.retryable) == ("internal.bug", "bent", "unbend", True)
    assert AgentError.from_data({}).message == "the agent reported an error"


def test_errors_cross_processes() -> None:
    for error in (
        SourceError("x", code="net.reset", hint="h", native={"sqlstate": "57P01"}),
        ConfigError("y", field="port"),
        Cancelled(),
    ):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), back.to_data()) == (type(error), error.to_data())


def test_a_config_error_names_the_field() -> None:
    error = ConfigError("too large", field="port", data={"more": 1})
    assert (error.field, error.to_data()["field"], error.to_data()["more"]) == ("port", "port", 1)
    assert "field" not in ConfigError("x").to_data()


def test_nothing_that_leaves_carries_a_secret() -> None:
    register_secret(CANARY)
    error = SourceError(
        f"login with {CANARY} failed", hint=f"do not use {CANARY}", stage="auth",
        native={"text": f"pw={CANARY}", "chain": [{"deep": f"a {CANARY} b"}]}, data={"tried": [f"u:{CANARY}"]},
    )  # fmt: skip
    for text in (json.dumps(error.to_data()), str(error), repr(error), repr(error.args)):
        assert CANARY not in text
    assert MASK in error.message


def test_a_full_address_is_never_repeated() -> None:
    error = SourceError("cannot open postgresql://etl:s3same@db1:5432/x?sslmode=require")
    assert error.message == f"cannot open postgresql://etl:{MASK}@db1:5432/x?sslmode=require"


def test_long_texts_are_cut_after_redaction() -> None:
    register_secret(CANARY)
    text = "x" * (MAX_MESSAGE - 6) + CANARY  # the cut would leave half of it
    error = AgentError(text, hint=text, native={"text": text})
    assert error.native is not None
    for shown in (error.message, error.hint or "", error.native["text"]):
        assert len(shown) <= MAX_MESSAGE
        assert CANARY[:4] not in shown
    assert len(AgentError("y" * 10_000).message) == MAX_MESSAGE
