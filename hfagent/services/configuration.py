"""Reads the agent's settings: built-in defaults, then the TOML file, then the environment, then flags.

A broken file is an error that names file, line and field; it never half-applies. Unknown settings are refused with the
nearest known name: a misspelt policy must not be a policy that is off.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hfagent.foundation.errors import ConfigError
from hfagent.model.settings import Settings

__all__ = ["changed_settings", "load_settings", "setting_names"]

_RESERVED = {  # environment names that are not settings
    "HFAGENT_DATA_DIR", "HFAGENT_SOCK", "HFAGENT_CONFIG", "HFAGENT_LOG_LEVEL", "HFAGENT_UPDATE", "HFAGENT_FULL",
    "HFAGENT_TOKEN",
}  # fmt: skip

RESTART_NEEDED = ("server.tcp_port", "server.allowed_uids", "log.format", "vault.key_source", "vault.license_file")
"""Settings that a reload cannot apply."""


def load_settings(
    file: Path | None, *, environment: Mapping[str, str] = os.environ, flags: Mapping[str, Any] | None = None
) -> Settings:
    """Return the settings. `flags` are dotted names (`server.tcp_port`) and win over everything; None values are ignored.

    Raises `ConfigError`: unreadable or unparsable file, unknown setting, wrong value.
    """
    tree = _read_file(file) if file is not None else {}
    for dotted, text in _from_environment(environment).items():
        _put(tree, dotted, text)
    for dotted, value in (flags or {}).items():
        if value is not None:
            _put(tree, dotted, value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as exc:
        raise _explain(exc, file) from None


def setting_names() -> dict[str, Any]:
    """Dotted name → pydantic field of every setting, in order of declaration."""
    names: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names.update({f"{name}.{inner}": spec for inner, spec in kind.model_fields.items()})
        else:
            names[name] = field
    return names


def environment_name(dotted: str) -> str:
    """`server.tcp_port` → `HFAGENT_SERVER_TCP_PORT`."""
    return "HFAGENT_" + dotted.replace(".", "_").upper()


def changed_settings(old: Settings, new: Settings) -> tuple[str, ...]:
    """Dotted names of the settings that differ."""
    return tuple(name for name in setting_names() if _get(old, name) != _get(new, name))


def _get(settings: Settings, dotted: str) -> Any:
    value: Any = settings
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _read_file(file: Path) -> dict[str, Any]:
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise ConfigError(
            f"the configuration file {file} cannot be read: {exc.strerror}",
            hint=f"check its owner and mode: ls -l {file}",
        ) from exc
    try:
        return tomllib.loads(text.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the configuration file {file} is not UTF-8 (byte {exc.start})") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"the configuration file {file} is not valid TOML: {exc}", hint="mend that line") from exc


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    by_name = {environment_name(dotted): (dotted, field) for dotted, field in setting_names().items()}
    found: dict[str, Any] = {}
    for name, text in environment.items():
        if name in by_name:
            dotted, field = by_name[name]
            is_list = str(field.annotation).startswith("tuple")
            found[dotted] = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    return found


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"the setting {section!r} must be a table", field=section)
        tree = inner
    tree[name] = value


def _explain(exc: ValidationError, file: Path | None) -> ConfigError:
    first = exc.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    where = f" (in {file}, the environment or a flag)" if file else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, list(setting_names()), n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known settings: {', '.join(setting_names())}"
        return ConfigError(f"unknown setting {name!r}{where}", code="config.unknown_field", field=name, hint=hint)
    field = setting_names().get(name)
    return ConfigError(
        f"the setting {name}: {first['msg']}{where}", field=name, hint=field.description if field is not None else None
    )
