"""Settings: where they come from, who wins, and what is said about the ones that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hfagent.foundation.errors import ConfigError
from hfagent.model.settings import Settings
from hfagent.services.configuration import (
    RESTART_NEEDED,
    changed_settings,
    environment_name,
    load_settings,
    setting_names,
)


def load(tmp_path: Path, text: str = "", environment: dict[str, str] | None = None, **flags: Any) -> Settings:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load_settings(
        file, environment=environment or {}, flags={name.replace("__", "."): value for name, value in flags.items()}
    )


def refused(tmp_path: Path, text: str = "", environment: dict[str, str] | None = None, **flags: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, environment, **flags)
    return caught.value


def test_without_anything_there_are_defaults(tmp_path: Path) -> None:
    assert load_settings(None, environment={}) == load_settings(tmp_path / "absent", environment={}) == Settings()


def test_flags_win_over_the_environment_over_the_file(tmp_path: Path) -> None:
    text = "[log]\nlevel = 'debug'\nformat = 'json'\n[server]\ndrain_s = 1\n"
    settings = load(tmp_path, text, {"HFAGENT_LOG_LEVEL": "warning", "HFAGENT_LOG_FORMAT": "text"}, log__level="error")
    assert (settings.log.level, settings.log.format, settings.server.drain_s) == ("error", "text", 1)
    assert load(tmp_path, text, server__drain_s=None).server.drain_s == 1


def test_values_of_the_environment(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "[policy]\nallowed_types = ['a']\n",
        {
            "HFAGENT_POLICY_ALLOWED_HOSTS": " a.example , *.b.example,",
            "HFAGENT_POLICY_ALLOWED_TYPES": "",
            "HFAGENT_SERVER_ALLOWED_UIDS": "1,2",
            "HFAGENT_SERVER_TCP_PORT": "",
            "HFAGENT_WATCH_CONNECTORS": "false",
            "HFAGENT_DATA_DIR": "/somewhere",
            "UNRELATED": "x",
        },
    )
    assert settings.policy.allowed_hosts == ("a.example", "*.b.example")
    assert settings.policy.allowed_types == ()  # an empty list is a list
    assert settings.server.allowed_uids == (1, 2)
    assert settings.server.tcp_port is None  # an empty variable is none
    assert settings.watch_connectors is False


@pytest.mark.parametrize("name", list(setting_names()))
def test_every_setting_has_a_name_in_the_environment_and_a_description(tmp_path: Path, name: str) -> None:
    field = setting_names()[name]
    assert field.description
    values = {"int": "70000", "float": "7", "bool": "false", "str": "x"}
    text = str(field.annotation)
    value = "1" if "tuple" in text else next((v for k, v in values.items() if k in text), "debug")
    try:
        load(tmp_path, "", {environment_name(name): value})
    except ConfigError as exc:  # a value out of range is refused under the setting's own name
        assert exc.field == name
        assert environment_name(name) in exc.message


@pytest.mark.parametrize(
    ("text", "field", "hint"),
    [
        ("[policy]\nalowed_types = ['x']", "policy.alowed_types", "policy.allowed_types"),
        ("[polcy]\nallowed_types = ['x']", "polcy", "did you mean policy?"),
        ("[server]\ntcpport = 1", "server.tcpport", "server.tcp_port"),
        ("zzz = 1", "zzz", "known settings: server.tcp_port"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_one(tmp_path: Path, text: str, field: str, hint: str) -> None:
    error = refused(tmp_path, text)
    assert (error.code, error.field) == ("config.unknown_field", field)
    assert hint in (error.hint or "")
    assert str(tmp_path / "config.toml") in error.message


def test_a_misspelt_policy_in_the_environment_is_not_a_policy_that_is_off(tmp_path: Path) -> None:
    error = refused(tmp_path, "", {"HFAGENT_POLICY_ALOWED_TYPES": "postgresql"})
    assert error.code == "config.unknown_field"
    assert "HFAGENT_POLICY_ALLOWED_TYPES" in (error.hint or "")


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("[server]\ntcp_port = 'abc'", "server.tcp_port", "must be a valid integer"),
        ("[server]\ntcp_port = 70000", "server.tcp_port", "less than or equal to 65535"),
        ("[server]\ntcp_port = true", "server.tcp_port", "cannot be true or false"),
        ("[server]\ndrain_s = nan", "server.drain_s", "must be"),
        ("[server]\nallowed_uids = ['a']", "server.allowed_uids", "must be a valid integer"),
        ("[log]\nlevel = 'loud'", "log.level", "'debug', 'info', 'warning' or 'error'"),
        ("[policy]\nallowed_types = 'x'", "policy.allowed_types", "must be a valid list"),
        ("watch_connectors = 'maybe'", "watch_connectors", "must be a valid boolean"),
        ("server = 5", "server", "server must be a section"),
        ("[[server]]\ntcp_port = 1", "server", "server must be a section"),
    ],
)
def test_wrong_values_are_refused_by_name(tmp_path: Path, text: str, field: str, words: str) -> None:
    error = refused(tmp_path, text)
    assert (error.code, error.field) == ("config.invalid", field)
    assert words in error.message
    assert str(tmp_path / "config.toml") in error.message
    assert error.hint


def test_who_gave_a_wrong_value_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path, "[log]\nlevel = 'info'", {"HFAGENT_LOG_LEVEL": "loud"})
    assert error.message.startswith("the environment variable HFAGENT_LOG_LEVEL: ")
    assert refused(tmp_path, server__tcp_port=99999).message.startswith("the command line: ")
    error = refused(tmp_path, "server = 5", {"HFAGENT_SERVER_TCP_PORT": "1"})
    assert "server must be a section" in error.message


def test_broken_files_say_where(tmp_path: Path) -> None:
    assert "at line 2, column" in refused(tmp_path, "a = 1\nb = = 2").message
    file = tmp_path / "config.toml"
    file.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_settings(file, environment={})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path, environment={})


def test_what_changed_is_told_by_name(tmp_path: Path) -> None:
    fresh = load(tmp_path, "watch_connectors = false\n[server]\ntcp_port = 1\n[policy]\nallowed_types = ['a']\n")
    assert changed_settings(Settings(), fresh) == ("server.tcp_port", "policy.allowed_types", "watch_connectors")
    assert changed_settings(fresh, fresh) == ()
    assert set(RESTART_NEEDED) <= set(setting_names())
