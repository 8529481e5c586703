"""A secret has one way out."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from hfagent.foundation.errors import ConfigError
from hfagent.foundation.redaction import MASK, redact, unregister_all
from hfagent.sdk.config import ConnectorConfig, field, secret_value
from hfagent.sdk.secret import Secret, is_reference

CANARY = "kN4riu-V0gel"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    unregister_all()


class Config(ConnectorConfig):
    """A configuration with a secret."""

    password: Secret | None = field(None, description="Password.", secret=True)


def test_every_way_of_showing_gives_the_mask() -> None:
    secret = Secret(CANARY)
    config = Config(password=secret)
    shown = [
        str(secret), repr(secret), f"{secret}", f"{secret:>20}", f"{secret!r}", str([secret]),
        repr(config), str(config), str(config.model_dump()), config.model_dump_json(), repr({"s": secret}),
        json.dumps(config.model_dump(mode="json"), ensure_ascii=False),
    ]  # fmt: skip
    assert all(CANARY not in text for text in shown)
    assert all(MASK in text for text in shown)
    assert config.model_dump() == {"password": MASK}


def test_reveal_is_the_way_out() -> None:
    assert Secret(CANARY).reveal() == CANARY
    assert secret_value(Secret(CANARY)) == CANARY
    assert secret_value(None) is None


def test_making_one_teaches_the_redactor() -> None:
    assert redact(f"a {CANARY}") == f"a {CANARY}"
    Secret(CANARY)
    assert redact(f"a {CANARY}") == f"a {MASK}"


def test_it_is_not_pickled_but_a_configuration_can_be_copied() -> None:
    secret = Secret(CANARY)
    config = Config(password=secret)
    for thing in (secret, config):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(thing)
    assert copy.copy(secret) is copy.deepcopy(secret) is secret
    assert config.model_copy(deep=True).password is secret
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError):
        vars(secret)


def test_equality_and_truth() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert hash(Secret("a")) == hash(Secret("a"))
    assert (bool(Secret("a")), bool(Secret("")), bool(Secret(None, reference="env:X"))) == (True, False, True)
    assert Secret(None, reference="env:X") != Secret(None, reference="env:Y")


def test_a_reference_is_no_value() -> None:
    secret = Config.parse({"password": {"$ref": "env:DB_PASSWORD"}}).password
    assert secret is not None
    assert secret.reference == "env:DB_PASSWORD"
    assert str(secret) == MASK
    with pytest.raises(ConfigError) as caught:
        secret.reveal()
    assert caught.value.code == "credential.reference"
    assert Secret(CANARY).reference is None


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ({"$ref": "env:X"}, True), ({"$ref": 1}, False), ({"$ref": "env:X", "more": 1}, False), ({}, False), ("$ref", False),
        (None, False), ([], False),
    ],
)  # fmt: skip
def test_what_a_reference_is(value: object, is_one: bool) -> None:
    assert is_reference(value) is is_one


@pytest.mark.parametrize("value", [5, [CANARY], {"$ref": CANARY, "x": 1}, {"value": CANARY}, b"bytes"])
def test_a_value_of_the_wrong_kind_is_not_repeated(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse({"password": value})
    text = json.dumps(caught.value.to_data())
    assert CANARY not in text
    assert "password" in caught.value.message
    assert "expected a text" in caught.value.message  # and the redactor did not take it for a password
    assert (caught.value.code, caught.value.field) == ("config.invalid", "password")


def test_pydantics_own_errors_do_not_repeat_it_either() -> None:
    class Model(BaseModel):
        secret: Secret

    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"password": {"nested": CANARY}})
    assert CANARY not in str(caught.value)
    assert Model.model_json_schema()["properties"]["secret"]["type"] == "string"
