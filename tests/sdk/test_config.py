"""One model is form, validation and documentation: the schema dialect and the words of its errors."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

import pytest
from pydantic import BaseModel, Field, field_validator, model_validator

from hfagent.foundation.errors import ConfigError
from hfagent.sdk.config import ConnectorConfig, NetworkFields, PoolFields, QueryFields, field
from hfagent.sdk.secret import Secret


class Nested(BaseModel):
    """A part."""

    name: str = Field(description="Its name.")


class Config(NetworkFields, QueryFields, PoolFields):
    """Connect to an example.

    More words that the form does not need.
    """

    example: ClassVar[dict[str, Any]] = {"host": "db", "username": "u"}

    host: str = field(
        description="Host name.", endpoint=True, aliases=("hostname", "server"), placeholder="db", min_length=1
    )
    port: int = field(5432, description="Port.", endpoint=True, ge=1, le=65535)
    username: str = field(description="Account.", aliases=("user",))
    password: Secret | None = field(None, description="Password.", secret=True, show_when={"mode": ["password"]})
    mode: Literal["password", "certificate"] = field(
        "password", description="How to sign in.", enum_titles={"password": "Password", "certificate": "Certificate"}
    )
    tags: list[str] = field([], description="Labels.", advanced=True)
    parts: list[Nested] = field([], description="Parts.")
    key_file: str | None = field(None, description="A file.", agent_path=True, help="More.", multiline=True)

    @field_validator("username")
    @classmethod
    def _no_blanks(cls, value: str) -> str:
        if " " in value:
            raise ValueError("blanks are not possible")
        return value

    @model_validator(mode="after")
    def _together(self) -> Config:
        if self.mode == "certificate" and self.password is not None:
            raise ValueError("a certificate and a password exclude each other")
        return self


MINIMUM = {"host": "db", "username": "u"}


def failure(raw: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Config.parse(raw)
    return caught.value


def test_the_schema_is_one_flat_object() -> None:
    schema = Config.json_schema()
    json.dumps(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    assert schema["description"] == "Connect to an example."
    assert schema["required"] == ["host", "username"]
    assert schema["examples"] == [Config.example]
    assert "$defs" not in json.dumps(schema) and "$ref" not in json.dumps(schema)


def test_annotations_of_the_form() -> None:
    properties = Config.properties()
    assert properties["host"] | {"x-order": 0} == {
        "title": "Host", "type": "string", "description": "Host name.", "minLength": 1, "x-group": "Connection",
        "x-endpoint": True, "x-pool-key": True, "x-aliases": ["hostname", "server"], "x-placeholder": "db", "x-order": 0,
    }  # fmt: skip
    password = properties["password"]
    assert (password["x-secret"], password["writeOnly"], password["x-pool-key"]) == (True, True, True)
    assert (password["type"], password["x-nullable"], "default" in password) == ("string", True, False)
    assert password["x-show-when"] == {"mode": ["password"]}
    assert properties["mode"]["enum"] == ["password", "certificate"]
    assert properties["mode"]["x-enum-titles"]["certificate"] == "Certificate"
    assert (properties["port"]["default"], properties["port"]["minimum"], properties["port"]["maximum"]) == (
        5432,
        1,
        65535,
    )
    assert properties["tags"]["x-advanced"] is True
    assert properties["parts"]["items"]["properties"]["name"]["description"] == "Its name."
    assert properties["key_file"]["x-agent-path"] is properties["key_file"]["x-multiline"] is True
    orders = [spec["x-order"] for spec in properties.values()]
    assert orders == list(range(len(orders)))


def test_marked_fields() -> None:
    assert Config.secret_fields() == ("password",)
    assert Config.marked("x-endpoint") == ("host", "port")
    assert set(Config.marked("x-pool-key")) >= {"host", "port", "password", "pool_size"}
    assert "username" not in Config.marked("x-pool-key")


def test_the_schema_is_per_class() -> None:
    class Other(ConnectorConfig):
        """Another."""

        a: int = field(description="A number.")

    assert set(Other.properties()) == {"a"}
    assert "a" not in Config.properties()


def test_a_good_configuration() -> None:
    config = Config.parse({"hostname": "DB", "user": "u", "password": "s3cret-x", "pool_timeout_s": 3})
    assert (config.host, config.username, config.pool_timeout, config.port) == ("DB", "u", 3, 5432)
    with pytest.raises(Exception, match="frozen"):
        setattr(config, "host", "other")  # noqa: B010


def test_the_example_validates() -> None:
    Config.parse(Config.example)


def test_aliases_are_stored_under_one_name() -> None:
    assert Config.canonical({"server": "a", "user": "u"}) == {"host": "a", "username": "u"}
    assert Config.canonical({"server": "a", "host": "a"}) == {"host": "a"}
    with pytest.raises(ConfigError, match="'host' is given twice") as caught:
        Config.canonical({"server": "a", "hostname": "b"})
    assert caught.value.field == "host"


def test_unknown_fields_suggest_the_nearest() -> None:
    error = failure(MINIMUM | {"pasword": "x"})
    assert (error.code, error.field, error.message) == ("config.unknown_field", "pasword", "unknown field 'pasword'")
    assert (error.hint or "").startswith("did you mean 'password'")
    assert "'user'" in (failure({"host": "db", "usr": "x"}).hint or "")
    assert (failure(MINIMUM | {"zzz": 1}).hint or "").startswith("known fields: ")


def test_missing_fields_say_what_they_are() -> None:
    error = failure({"host": "db"})
    assert (error.code, error.field) == ("config.missing_field", "username")
    assert error.hint == "username: Account."


@pytest.mark.parametrize(
    ("raw", "field_name", "says"),
    [
        ({"port": 0}, "port", "greater than or equal to 1"),
        ({"port": "many"}, "port", "valid integer"),
        ({"mode": "kerberos"}, "mode", "'password' or 'certificate'"),
        ({"host": ""}, "host", "at least 1 character"),
        ({"username": "a b"}, "username", "username: blanks are not possible"),
        ({"pool_size": 101}, "pool_size", "less than or equal to 100"),
        ({"parts": [{"name": 5}]}, "parts.0.name", "valid string"),
    ],
)
def test_wrong_values_name_the_field_and_the_rule(raw: dict[str, Any], field_name: str, says: str) -> None:
    error = failure(MINIMUM | raw)
    assert (error.code, error.field) == ("config.invalid", field_name)
    assert says in error.message
    assert error.hint


def test_rules_across_fields_have_no_culprit() -> None:
    error = failure(MINIMUM | {"mode": "certificate", "password": "x"})
    assert error.message == "a certificate and a password exclude each other"
    assert error.field is None


def test_several_problems_are_counted() -> None:
    assert failure(MINIMUM | {"port": 0, "pool_size": 0}).message.endswith("(and 1 more problem)")
    assert failure({"port": 0}).message.endswith("(and 2 more problems)")


def test_values_are_never_repeated() -> None:
    canary = "kN4riu-V0gel"
    for raw in (
        {"port": canary},
        {"mode": canary},
        {"tags": canary},
        {"password": [canary]},
        {"parts": [{"name": [canary]}]},
    ):
        error = failure(MINIMUM | raw)
        assert canary not in json.dumps(error.to_data())
        assert error.__cause__ is None and error.__suppress_context__


def test_a_secret_must_be_declared_and_a_declared_one_must_be_a_secret() -> None:
    with pytest.raises(TypeError, match="secret=True go together"):

        class Careless(ConnectorConfig):
            token: Secret = field(description="Would be stored in the clear.")

    with pytest.raises(TypeError, match="secret=True go together"):

        class Chatty(ConnectorConfig):
            token: str = field(description="Would be printed.", secret=True)


def test_the_common_fields_have_the_documented_defaults() -> None:
    config = Config.parse(MINIMUM)
    assert (config.pool_size, config.max_overflow, config.pool_recycle, config.pool_timeout) == (5, 15, 1800, 10)
    assert (config.pool_idle_s, config.pool_pre_ping) == (300, True)
    assert (config.connect_timeout_s, config.keepalive_s, config.query_timeout_s) == (10, 30, 300)
