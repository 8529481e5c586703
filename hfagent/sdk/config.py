"""Connector configuration: one pydantic model per type is the only source of its form, validation, CLI options and secrets.

The JSON Schema dialect is the one of the connector specification §0.1: one flat object, `additionalProperties: false`,
and the `x-…` annotations that forms and the agent read. `field()` writes them; `ConnectorConfig.parse` turns pydantic's
complaints into errors that name the field and suggest the nearest one.
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined

from hfagent.foundation.errors import ConfigError
from hfagent.sdk.secret import Secret

__all__ = ["ConnectorConfig", "NetworkFields", "PoolFields", "QueryFields", "field"]


def field(
    default: Any = PydanticUndefined,
    *,
    description: str,
    group: str = "Connection",
    secret: bool = False,
    endpoint: bool = False,
    pool_key: bool | None = None,
    agent_path: bool = False,
    advanced: bool = False,
    multiline: bool = False,
    show_when: dict[str, list[Any]] | None = None,
    aliases: tuple[str, ...] = (),
    placeholder: str | None = None,
    help: str | None = None,
    enum_titles: dict[str, str] | None = None,
    **constraints: Any,
) -> Any:
    """Declare a configuration field.

    `secret`: sealed in the vault, masked on every read. `endpoint`: says where secrets are sent; changing it without
    entering the secrets again is refused. `pool_key`: changing it replaces the pool (default: endpoint and secret fields
    do). `agent_path`: a path on the agent's machine, checked against the policy. `aliases`: accepted on input, stored under
    the canonical name. `constraints` go to pydantic (`ge`, `le`, `min_length`, `pattern`, …).
    """
    extra: dict[str, Any] = {"x-group": group}
    if secret:
        extra |= {"x-secret": True, "writeOnly": True}
    if endpoint:
        extra["x-endpoint"] = True
    if pool_key if pool_key is not None else (secret or endpoint):
        extra["x-pool-key"] = True
    if agent_path:
        extra["x-agent-path"] = True
    if advanced:
        extra["x-advanced"] = True
    if multiline:
        extra["x-multiline"] = True
    if show_when:
        extra["x-show-when"] = show_when
    if aliases:
        extra["x-aliases"] = list(aliases)
    if placeholder:
        extra["x-placeholder"] = placeholder
    if help:
        extra["x-help"] = help
    if enum_titles:
        extra["x-enum-titles"] = enum_titles
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class ConnectorConfig(BaseModel):
    """Base of all configuration models: frozen, flat, strict about unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    example: ClassVar[dict[str, Any]] = {}
    """A configuration that validates; shown in the documentation and used by the conformance suite."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """A field is a `Secret` if and only if it is declared `secret=True`: no credential can lack its mask or its vault."""
        for name, spec in cls.model_fields.items():
            extra = spec.json_schema_extra
            declared = isinstance(extra, dict) and bool(extra.get("x-secret"))
            if declared != (Secret in _parts(spec.annotation)):
                raise TypeError(f"{cls.__name__}.{name}: the type Secret and secret=True go together")

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Self:
        """Validate `raw`. Raises `ConfigError` with code `config.unknown_field`, `.missing_field` or `.invalid`."""
        try:
            return cls.model_validate(cls.canonical(raw))
        except ValidationError as exc:
            raise cls._explain(exc) from None  # pydantic's own text may quote the input

    @classmethod
    def canonical(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Return `raw` with aliases replaced by canonical names. Raises `ConfigError` when both are given and differ."""
        aliases = {alias: name for name, spec in cls.properties().items() for alias in spec.get("x-aliases", ())}
        result: dict[str, Any] = {}
        for key, value in raw.items():
            name = key if key in cls.model_fields else aliases.get(key, key)
            if name in result and result[name] != value:
                raise ConfigError(f"{name!r} is given twice with different values (also as {key!r})", field=name)
            result[name] = value
        return result

    @classmethod
    @lru_cache(maxsize=256)
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema that forms are drawn from. Callers must not change the result."""
        schema = cls.model_json_schema()
        definitions = schema.pop("$defs", {})
        properties: dict[str, Any] = {}
        for order, (name, spec) in enumerate(schema.get("properties", {}).items()):
            properties[name] = _flat(spec, definitions) | {"x-order": order}
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "title": schema.get("title", cls.__name__),
            "description": (cls.__doc__ or "").strip().split("\n")[0],
            "additionalProperties": False,
            "properties": properties,
            "required": schema.get("required", []),
            "examples": [cls.example] if cls.example else [],
        }

    @classmethod
    def properties(cls) -> dict[str, Any]:
        """Field name → its schema."""
        return dict(cls.json_schema()["properties"])

    @classmethod
    def marked(cls, annotation: str) -> tuple[str, ...]:
        """Names of the fields that carry the `x-…` annotation, in form order."""
        return tuple(name for name, spec in cls.properties().items() if spec.get(annotation))

    @classmethod
    def secret_fields(cls) -> tuple[str, ...]:
        """Names of the fields that are sealed."""
        return cls.marked("x-secret")

    @classmethod
    def _explain(cls, exc: ValidationError) -> ConfigError:
        problems = exc.errors(include_url=False, include_context=True, include_input=False)
        # A mistyped name is the cause when the right one is missing, too.
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        name = ".".join(str(part) for part in first["loc"]) or "config"
        more = exc.error_count() - 1
        tail = f" (and {more} more problem{'s' if more > 1 else ''})" if more else ""
        if first["type"] == "extra_forbidden":
            aliases = [alias for spec in cls.properties().values() for alias in spec.get("x-aliases", ())]
            near = difflib.get_close_matches(name, [*cls.model_fields, *aliases], n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(map(repr, near))}?"
                if near
                else f"known fields: {', '.join(cls.model_fields)}"
            )
            return ConfigError(f"unknown field {name!r}{tail}", code="config.unknown_field", field=name, hint=hint)
        description = cls.properties().get(name.split(".")[0], {}).get("description", "")
        if first["type"] == "missing":
            return ConfigError(
                f"the field {name!r} is required{tail}",
                code="config.missing_field",
                field=name,
                hint=f"{name}: {description}" if description else None,
            )
        message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if not first["loc"]:
            return ConfigError(message + tail)
        if name in cls.secret_fields():  # "password: expected…" reads like a password to the redactor
            return ConfigError(
                f"the value of {name!r} is not valid: {message}{tail}", field=name, hint=description or None
            )
        return ConfigError(f"{name}: {message}{tail}", field=name, hint=description or None)


def _parts(annotation: Any) -> set[Any]:
    """The types an annotation is made of: `Secret | None` → {Secret, None}."""
    parts = get_args(annotation)
    return {annotation}.union(*(_parts(part) for part in parts)) if parts else {annotation}


def _flat(spec: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Resolve `$ref` and fold `anyOf [T, null]` into T, so that forms meet plain types only."""
    result = dict(spec)
    if "$ref" in result:
        target = definitions[result.pop("$ref").rsplit("/", 1)[-1]]
        result = {**_flat(target, definitions), **result}
    options = result.get("anyOf")
    if options:
        real = [o for o in options if o.get("type") != "null"]
        if len(real) == 1:
            result.pop("anyOf")
            result = {**_flat(real[0], definitions), **result}
            if result.get("default", ...) is None:
                result.pop("default")
            result["x-nullable"] = True
    if "items" in result and isinstance(result["items"], dict):
        result["items"] = _flat(result["items"], definitions)
    return result


class NetworkFields(ConnectorConfig):
    """Fields of every type that opens a socket (connector specification §0.2)."""

    connect_timeout_s: int = field(
        10, description="Seconds for one attempt to connect, TLS and sign-in included.", ge=1, le=120,
        group="Timeouts", advanced=True,
    )  # fmt: skip
    keepalive_s: int = field(
        30, description="Seconds of silence before a TCP keep-alive probe.", ge=1, le=7200, group="Timeouts",
        advanced=True, pool_key=True,
    )  # fmt: skip


class QueryFields(ConnectorConfig):
    """Fields of every queryable type."""

    query_timeout_s: int = field(
        300, description="Seconds a statement may run, enforced on the server and on the agent; 0 = no limit.", ge=0,
        le=86400, group="Timeouts", advanced=True, pool_key=True,
    )  # fmt: skip


class PoolFields(ConnectorConfig):
    """Connection pool settings: names and defaults of the seed document (5 kept, 20 at most)."""

    pool_size: int = field(
        5, description="Connections kept open.", ge=1, le=100, group="Pool", advanced=True, pool_key=True
    )
    max_overflow: int = field(
        15, description="Connections opened beyond pool_size on demand.", ge=0, le=200, group="Pool", advanced=True,
        pool_key=True,
    )  # fmt: skip
    pool_recycle: int = field(
        1800, description="Seconds after which a connection is replaced (±10 %).", ge=10, le=86400, group="Pool",
        advanced=True, pool_key=True,
    )  # fmt: skip
    pool_timeout: float = field(
        10, description="Seconds to wait for a free connection.", gt=0, le=300, group="Pool", advanced=True,
        aliases=("pool_timeout_s",), pool_key=True,
    )  # fmt: skip
    pool_idle_s: int = field(
        300, description="Seconds after which an idle connection beyond pool_size is closed; the whole pool after six "
        "times that.", ge=5, le=86400, group="Pool", advanced=True, pool_key=True,
    )  # fmt: skip
    pool_pre_ping: bool = field(
        True, description="Check a connection that sat idle before lending it.", group="Pool", advanced=True,
        pool_key=True,
    )  # fmt: skip


def secret_value(secret: Secret | None) -> str | None:
    """Reveal an optional secret."""
    return None if secret is None else secret.reveal()
