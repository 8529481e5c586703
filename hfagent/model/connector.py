"""Connectors (configured instances) and connector types, as clients see them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from hfagent.model.value import Value

__all__ = ["Connector", "ConnectorDraft", "ConnectorPatch", "ConnectorType", "PoolStats"]

Category = Literal[
    "database", "warehouse", "document", "search", "api", "file", "object_store", "llm", "vector_store", "webhook",
    "messaging",
]  # fmt: skip


class ConnectorType(Value):
    """One entry of the catalog: enough to draw a form and to know whether it will work here."""

    type: str
    title: str
    description: str
    category: Category
    is_queryable: bool
    aliases: tuple[str, ...] = ()
    config_schema: dict[str, Any] = Field(description="JSON Schema 2020-12 of the configuration (dialect: §0.1).")
    secret_fields: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    driver_installed: bool
    driver: str | None = Field(None, description="Distribution that brings the driver.")
    driver_version: str | None = None
    install_hint: str | None = Field(None, description="Command that installs the driver, when it is missing.")
    dialect: str | None = Field(None, description="SQL dialect name (sqlglot's), for queryable SQL types.")


class Connector(Value):
    """A configured connector. Secrets appear as eight bullets when set."""

    id: str
    name: str
    type: str
    description: str = ""
    config: dict[str, Any]
    output_schemas: tuple[str, ...] = ()
    status: Literal["active", "disabled", "locked", "invalid"] = "active"
    status_reason: str | None = None
    is_queryable: bool = True
    schedule_cron: str | None = None
    schedule_mode: Literal["incremental", "full"] | None = None
    source: Literal["api", "file"] = Field("api", description="`file`: defined by a connectors-as-code file.")
    production: bool = Field(False, description="Clients ask before anything unusual.")
    version: int = Field(1, description="Grows with each change; send it back to detect conflicts.")
    created_at: str
    updated_at: str
    last_test_ok: bool | None = None
    last_tested_at: str | None = None


_NAME_LIMIT = 200


class ConnectorDraft(Value):
    """A connector that does not exist yet."""

    name: str = Field(min_length=1, max_length=_NAME_LIMIT, description="Unique on this agent.")
    type: str = Field(description="Connector type or one of its aliases.")
    config: dict[str, Any] = Field(default_factory=dict, description="Fields of the type's config schema.")
    description: str = Field("", max_length=2000, description="What it is for.")
    output_schemas: tuple[str, ...] = Field((), description="Schemas to discover and read; empty = the owned ones.")
    production: bool = Field(False, description="Clients ask before anything unusual.")

    @field_validator("name")
    @classmethod
    def _trimmed(cls, value: str) -> str:
        return _checked_name(value)


class ConnectorPatch(Value):
    """Changes to a connector; absent fields stay as they are."""

    name: str | None = Field(None, min_length=1, max_length=_NAME_LIMIT)
    description: str | None = Field(None, max_length=2000)
    config: dict[str, Any] | None = Field(
        None, description="Merged into the present config; null clears a field, eight bullets keep a secret."
    )
    output_schemas: tuple[str, ...] | None = None
    status: Literal["active", "disabled"] | None = None
    production: bool | None = None
    schedule_cron: str | None = None
    schedule_mode: Literal["incremental", "full"] | None = None
    if_version: int | None = Field(None, description="Refuse when the connector's version is another one.")

    @field_validator("name")
    @classmethod
    def _trimmed(cls, value: str | None) -> str | None:
        return None if value is None else _checked_name(value)


def _checked_name(value: str) -> str:
    if value != value.strip() or any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ValueError("a name must not start or end with a blank or contain control characters")
    return value


class PoolStats(Value):
    """Counters of one connector's pool."""

    connector_id: str
    name: str
    size: int = Field(description="Connections kept (`pool_size`).")
    max_overflow: int
    open: int = Field(description="Connections open now.")
    idle: int
    busy: int
    waiting: int
    opened: int = Field(description="Connections ever opened.")
    closed: int
    recycled: int = Field(description="Closed for age.")
    discarded: int = Field(description="Closed because dead, dirty or past a deadline.")
    checkouts: int
    timeouts: int
    errors: int = Field(description="Failed attempts to connect.")
    wait_ms_max: float = 0
