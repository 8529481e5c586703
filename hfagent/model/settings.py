"""The agent's configuration: one field per setting is the only source of file keys, environment names and documentation.

In the TOML file a setting is `[section] name = value`; in the environment `HFAGENT_SECTION_NAME` (lists comma-separated).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hfagent.model.value import Value

__all__ = ["LogSettings", "PolicySettings", "QuerySettings", "ServerSettings", "Settings", "VaultSettings"]


class ServerSettings(Value):
    """Where and how the daemon listens."""

    tcp_port: int | None = Field(
        None, ge=0, le=65535, description="Listen on loopback TCP too (0 = any free port); off when unset."
    )
    allowed_uids: tuple[int, ...] = Field(
        (), description="User ids, besides the agent's own and root, that may connect to the socket."
    )
    idle_timeout_s: float = Field(
        0,
        ge=0,
        description="Exit after so many seconds without clients and work; 0 = never. Auto-started daemons use 1800.",
    )
    drain_s: float = Field(10, ge=0, le=300, description="Seconds that running requests get to finish on SIGTERM.")


class LogSettings(Value):
    """Logging."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    format: Literal["auto", "text", "json", "journal"] = Field(
        "auto", description="`journal` under systemd, `text` on a terminal, `json` elsewhere."
    )
    max_bytes: int = Field(
        10_000_000, ge=100_000, description="Size at which an auto-started daemon's log file is rotated."
    )


class PolicySettings(Value):
    """What this agent allows, whoever asks. Only the machine's owner can widen it."""

    allowed_types: tuple[str, ...] = Field((), description="Connector types that may be used; empty = all.")
    denied_types: tuple[str, ...] = Field((), description="Connector types that may not be used.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Glob patterns of hosts that connectors may reach; empty = all."
    )
    allowed_paths: tuple[str, ...] = Field((), description="Directories that file connectors may read; empty = none.")
    export_paths: tuple[str, ...] = Field(
        (), description="Directories that exports may write to; empty = the caller's choice."
    )
    max_open_connections: int = Field(200, ge=1, description="Connections open to all sources together.")
    max_query_rows: int | None = Field(None, ge=1, description="Most rows that one query may return.")


class VaultSettings(Value):
    """Where the vault's key comes from."""

    key_source: Literal["license", "systemd", "keyring", "file"] | None = Field(
        None, description="For a new vault; unset = the first available of license, systemd, keyring, file."
    )
    license_file: str | None = Field(None, description="The organisation's license with its sign key.")
    secret_cache_s: float = Field(300, ge=0, description="Seconds that a resolved secret reference is kept.")


class QuerySettings(Value):
    """Open results."""

    idle_s: float = Field(300, gt=0, description="Seconds after which an untouched open result is closed.")
    max_open_per_session: int = Field(32, ge=1, description="Open results of one client.")
    max_page_bytes: int = Field(
        8_388_608, ge=65_536, le=15_000_000, description="Largest page, in bytes of Arrow data."
    )


class Settings(Value):
    """Everything that can be configured."""

    server: ServerSettings = ServerSettings()
    log: LogSettings = LogSettings()
    policy: PolicySettings = PolicySettings()
    vault: VaultSettings = VaultSettings()
    query: QuerySettings = QuerySettings()
    watch_connectors: bool = Field(
        True, description="Apply the files in the data directory's connectors.d when they change."
    )
