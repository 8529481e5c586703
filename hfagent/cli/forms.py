"""Configuration fields on the command line, derived from a type's JSON Schema: options, questions, secrets.

A secret never appears in the process list: for a secret field `password` there are `--password-file`, `--password-env`,
`--password-stdin` and `--password-ref`, and a question without echo; there is no `--password VALUE`.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfagent.cli.output import Output
from hfagent.foundation.errors import ConfigError

__all__ = ["ask", "config_parser", "parse_config"]


def config_parser(schema: dict[str, Any], *, prog: str) -> argparse.ArgumentParser:
    """Build the parser for a type's own options."""
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    groups: dict[str, Any] = {}
    required = set(schema.get("required", ()))
    for name, spec in schema["properties"].items():
        group = groups.setdefault(spec.get("x-group", "Options"), None)
        if group is None:
            group = groups[spec.get("x-group", "Options")] = parser.add_argument_group(spec.get("x-group", "Options"))
        option = "--" + name.replace("_", "-")
        text = _help(spec, required=name in required)
        if spec.get("x-secret"):
            group.add_argument(
                f"{option}-file", dest=f"secret:{name}:file", metavar="PATH", help=f"{text} Read from this file."
            )
            group.add_argument(
                f"{option}-env", dest=f"secret:{name}:env", metavar="NAME", help="Read from this variable."
            )
            group.add_argument(
                f"{option}-stdin", dest=f"secret:{name}:stdin", action="store_true", help="Read from stdin."
            )
            group.add_argument(
                f"{option}-ref", dest=f"secret:{name}:ref", metavar="REF",
                help="Look it up at each use: env:NAME, file:/path, systemd:NAME, keyring:service/user.",
            )  # fmt: skip
            group.add_argument(option, dest=f"secret:{name}:argv", help=argparse.SUPPRESS)
        elif spec.get("type") == "boolean":
            group.add_argument(option, dest=f"field:{name}", action=argparse.BooleanOptionalAction, help=text)
        elif spec.get("type") == "array":
            group.add_argument(
                option, dest=f"field:{name}", action="append", metavar="VALUE", help=f"{text} Repeatable."
            )
        else:
            group.add_argument(option, dest=f"field:{name}", metavar=_metavar(spec), help=text)
        for alias in spec.get("x-aliases", ()):
            if not spec.get("x-secret") and spec.get("type") not in ("boolean", "array"):
                group.add_argument("--" + alias.replace("_", "-"), dest=f"field:{name}", help=argparse.SUPPRESS)
    return parser


def parse_config(schema: dict[str, Any], options: Sequence[str], *, prog: str) -> dict[str, Any]:
    """Turn options into a configuration. Raises `ConfigError` for unknown options and secrets on the command line."""
    parser = config_parser(schema, prog=prog)
    found, unknown = parser.parse_known_args(list(options))
    config: dict[str, Any] = {}
    for key, value in vars(found).items():
        kind, name, *how = key.split(":")
        spec = schema["properties"][name]
        if kind == "field":
            config[name] = _typed(value, spec, name)
        else:
            config[name] = _secret(name, how[0], value)
    if unknown:
        import difflib

        known = [o for action in parser._actions for o in action.option_strings if action.help != argparse.SUPPRESS]
        near = difflib.get_close_matches(unknown[0], known, n=2)
        raise ConfigError(
            f"unknown option {unknown[0]!r}", code="config.unknown_field",
            hint=f"did you mean {' or '.join(near)}?" if near else f"{prog} --help lists the options",
        )  # fmt: skip
    return config


def ask(schema: dict[str, Any], config: dict[str, Any], output: Output, *, advanced: bool = False) -> dict[str, Any]:
    """Ask for the fields that are not given yet, in form order. Enter takes the default; a required field is asked again."""
    required = set(schema.get("required", ()))
    answered = dict(config)
    for name, spec in sorted(schema["properties"].items(), key=lambda item: item[1].get("x-order", 0)):
        if name in answered or (spec.get("x-advanced") and not advanced and name not in required):
            continue
        if not _shown(spec, answered, schema):
            continue
        value = _question(name, spec, output, required=name in required)
        if value is not None:
            answered[name] = value
    return answered


def _question(name: str, spec: dict[str, Any], output: Output, *, required: bool) -> Any:
    description = spec.get("description", "")
    choices = spec.get("enum")
    default = spec.get("default")
    output.say("")
    output.say(f"{name}: {description}" + (f"  [{', '.join(map(str, choices))}]" if choices else ""))
    while True:
        if spec.get("x-secret"):
            text = getpass.getpass(f"  {name} (not shown): ", stream=sys.stderr)
        else:
            shown = f" [{default}]" if default not in (None, "", []) else "" if required else " [none]"
            sys.stderr.write(f"  {name}{shown}: ")
            sys.stderr.flush()
            line = sys.stdin.readline()
            if not line:
                raise ConfigError("the input ended", hint="give the fields as options instead")
            text = line.rstrip("\n")
        if not text:
            if default is not None or not required:
                return None
            output.say("  this field is required", "yellow")
            continue
        try:
            return _typed([t.strip() for t in text.split(",")] if spec.get("type") == "array" else text, spec, name)
        except ConfigError as exc:
            output.say(f"  {exc}", "yellow")


def _shown(spec: dict[str, Any], answers: dict[str, Any], schema: dict[str, Any]) -> bool:
    """Apply `x-show-when`: all its fields have one of the listed values (answered or default)."""
    for name, values in spec.get("x-show-when", {}).items():
        present = answers.get(name, schema["properties"].get(name, {}).get("default"))
        if present not in values:
            return False
    return True


def _typed(value: Any, spec: dict[str, Any], name: str) -> Any:
    """Convert an option's text to the schema's type."""
    kind = spec.get("type")
    try:
        if kind == "integer":
            return int(value)
        if kind == "number":
            return float(value)
        if kind == "boolean" and isinstance(value, str):
            if value.lower() in ("true", "yes", "y", "1", "on"):
                return True
            if value.lower() in ("false", "no", "n", "0", "off"):
                return False
            raise ValueError("expected yes or no")
        if kind in ("object", "array") and isinstance(value, str):
            return json.loads(value)
    except ValueError as exc:
        raise ConfigError(f"{name}: {value!r} is not a valid {kind}: {exc}", field=name) from exc
    if spec.get("enum") and value not in spec["enum"]:
        raise ConfigError(f"{name}: {value!r} is not one of {', '.join(map(str, spec['enum']))}", field=name)
    if spec.get("x-multiline") and isinstance(value, str) and value.startswith("@"):
        return _read(name, value[1:])
    return value


def _secret(name: str, how: str, value: Any) -> Any:
    option = "--" + name.replace("_", "-")
    if how == "argv":
        raise ConfigError(
            f"{option} would put the secret into the process list and the shell's history",
            field=name,
            hint=f"use {option}-stdin, {option}-file PATH, {option}-env NAME, or leave it out to be asked",
        )
    if how == "file":
        return _read(name, value)
    if how == "env":
        if value not in os.environ:
            raise ConfigError(f"{name}: the environment variable {value} is not set", field=name)
        return os.environ[value]
    if how == "ref":
        return {"$ref": value}
    return sys.stdin.read().rstrip("\n")


def _read(name: str, path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{name}: {path} cannot be read: {exc}", field=name) from exc


def _metavar(spec: dict[str, Any]) -> str:
    if spec.get("enum"):
        return "{" + ",".join(map(str, spec["enum"])) + "}"
    return {"integer": "N", "number": "X", "object": "JSON"}.get(spec.get("type", ""), "TEXT")


def _help(spec: dict[str, Any], *, required: bool) -> str:
    text = spec.get("description", "").replace("%", "%%")
    default = spec.get("default")
    if required:
        text += " Required."
    elif default not in (None, "", [], {}):
        text += f" Default: {default}."
    return str(text)
