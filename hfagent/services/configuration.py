"""Reads the agent's settings: built-in defaults, then the TOML file, then the environment, then flags.

A broken file is an error that names file, line and field; it never half-applies. Unknown settings are refused with the
nearest known name, in the environment too: a misspelt policy must not be a policy that is off.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from hfagent.foundation.errors import ConfigError
from hfagent.model.settings import Settings

__all__ = ["changed_settings", "load_settings", "setting_names"]

_NOT_SETTINGS: Final = frozenset({  # environment names that belong to others
    "HFAGENT_DATA_DIR", "HFAGENT_SOCK", "HFAGENT_CONFIG", "HFAGENT_UPDATE", "HFAGENT_FULL", "HFAGENT_TOKEN",
})  # fmt: skip
_OTHERS: Final = ("HFAGENT_TEST_", "HFAGENT_DEMO_", "HFAGENT_NO_")

RESTART_NEEDED = (
    "server.tcp_port", "server.allowed_uids", "log.format", "log.max_bytes", "vault.key_source", "vault.license_file",
    "watch_connectors",
)  # fmt: skip
"""Settings that a reload cannot apply."""


def load_settings(
    file: Path | None, *, environment: Mapping[str, str] = os.environ, flags: Mapping[str, Any] | None = None
) -> Settings:
    """Return the settings. `flags` are dotted names (`server.tcp_port`) and win over everything; None values are ignored.

    Raises `ConfigError`: unreadable or unparsable file, unknown setting, wrong value. It says where the culprit stands.
    """
    tree = _read_file(file) if file is not None else {}
    origins: dict[str, str] = {}
    for dotted, (name, text) in _from_environment(environment).items():
        _put(tree, dotted, text, file)
        origins[dotted] = f"the environment variable {name}"
    for dotted, value in (flags or {}).items():
        if value is not None:
            _put(tree, dotted, value, file)
            origins[dotted] = "the command line"
    _refuse_booleans(tree, file)
    try:
        return Settings.model_validate(tree)
    except ValidationError as exc:
        raise _explain(exc, origins, file) from None


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


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Dotted name → (variable, value). An empty variable is one that is not set, except for a list, which is then empty."""
    by_name = {environment_name(dotted): (dotted, field) for dotted, field in setting_names().items()}
    found: dict[str, tuple[str, Any]] = {}
    for name, text in environment.items():
        if not name.startswith("HFAGENT_"):
            continue
        if name not in by_name:
            if name not in _NOT_SETTINGS and not name.startswith(_OTHERS):
                near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.7)
                hint = f"did you mean {near[0]}? If not, unset it" if near else "unset it, or correct its name"
                raise ConfigError(
                    f"the environment variable {name} names no setting",
                    code="config.unknown_field",
                    field=name,
                    hint=hint,
                )
            continue
        dotted, field = by_name[name]
        if str(field.annotation).startswith("tuple"):
            found[dotted] = (name, [part.strip() for part in text.split(",") if part.strip()])
        elif text.strip():
            found[dotted] = (name, text.strip())
    return found


def _put(tree: dict[str, Any], dotted: str, value: Any, file: Path | None) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise _no_table(section, file)
        tree = inner
    tree[name] = value


def _refuse_booleans(tree: Mapping[str, Any], file: Path | None) -> None:
    """`tcp_port = true` is no port, though Python counts it as 1."""
    for dotted, field in setting_names().items():
        section, _, name = dotted.rpartition(".")
        inner = tree.get(section) if section else tree
        if isinstance(inner, dict) and isinstance(inner.get(name), bool) and field.annotation is not bool:
            raise ConfigError(
                f"{file}: the setting {dotted} cannot be true or false", field=dotted, hint=field.description
            )


def _explain(exc: ValidationError, origins: Mapping[str, str], file: Path | None) -> ConfigError:
    first = exc.errors(include_url=False, include_input=False)[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(part for part in path if not part.isdigit())
    where = origins.get(name) or str(file)
    known = setting_names()
    if first["type"] == "extra_forbidden":
        sections = {dotted.split(".")[0] for dotted in known}
        near = difflib.get_close_matches(name, [*known, *sections], n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known settings: {', '.join(known)}"
        return ConfigError(f"{where}: there is no setting {name!r}", code="config.unknown_field", field=name, hint=hint)
    if name not in known:
        return _no_table(name, file)
    reason = str(first["msg"]).removeprefix("Input should be ").replace("tuple", "list")
    return ConfigError(
        f"{where}: the setting {name} must be {reason}",
        field=name,
        hint=known[name].description,
    )


def _no_table(section: str, file: Path | None) -> ConfigError:
    return ConfigError(
        f"{file}: {section} must be a section", field=section, hint=f"write [{section}] and the settings below it"
    )
