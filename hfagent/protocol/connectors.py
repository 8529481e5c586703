"""`connectors/*`: types, configured connectors, tests, streams, pools."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hfagent.model.connector import Connector, ConnectorDraft, ConnectorPatch, ConnectorType, PoolStats
from hfagent.model.report import CheckReport
from hfagent.model.stream import StreamPage
from hfagent.model.value import Value
from hfagent.protocol.agent import Done
from hfagent.protocol.method import Access, Method, Params

__all__ = [
    "APPLY",
    "BOOTSTRAP",
    "CATALOG",
    "CREATE",
    "DELETE",
    "GET",
    "LIST",
    "MODELS",
    "POOL_STATS",
    "ROTATE",
    "TEST",
    "TEST_HISTORY",
    "UPDATE",
]


class CatalogParams(Params):
    """List the connector types with their configuration schemas.

    Every type is listed, whether its driver is installed or not; `install_hint` says how to get it.
    """

    type: str | None = Field(None, description="Only this type (or alias).")


class CatalogResult(Value):
    """All connector types, by title."""

    types: tuple[ConnectorType, ...]


class ListParams(Params):
    """List the configured connectors."""

    type: str | None = Field(None, description="Only this type (or alias).")
    category: str | None = Field(None, description="Only types of this category.")
    queryable: bool | None = Field(None, description="Only what can, or cannot, be queried.")


class ListResult(Value):
    """The connectors, by name. Secrets are masked."""

    connectors: tuple[Connector, ...]


class GetParams(Params):
    """Show one connector. Secrets are masked."""

    connector: str = Field(description="Id or name.")


class CreateParams(ConnectorDraft, Params):
    """Create a connector. Its secrets are sealed before anything is written."""


class BootstrapParams(CreateParams):
    """Create a connector and attach a schedule in one call."""

    schedule_cron: str = Field(description="Five-field cron expression.")
    schedule_mode: Literal["incremental", "full"] = Field(
        "incremental", description="Changed rows since the last run, or everything."
    )


class UpdateParams(Params):
    """Change a connector.

    `config` is merged field by field: absent keeps, null clears, eight bullets keep a secret. Changing an endpoint field
    (where secrets are sent) without entering the secrets again is refused.
    """

    connector: str = Field(description="Id or name.")
    changes: ConnectorPatch = Field(description="What to change; absent fields stay as they are.")


class DeleteParams(Params):
    """Remove a connector with its secrets, test history and cached streams."""

    connector: str = Field(description="Id or name.")


class TestParams(Params):
    """Test a stored connector, or a configuration that is not stored.

    With `connector` alone the stored configuration is tested; with `config` beside it, the stored one with these changes;
    with `type` and `config`, a configuration that does not exist yet. Nothing is changed. Results of stored connectors go
    to the test history. Progress carries each stage as it ends.
    """

    __test__ = False  # not a test class, whatever its name suggests to pytest

    connector: str | None = Field(None, description="Id or name.")
    type: str | None = Field(None, description="Type (or alias) of a configuration that is not stored.")
    config: dict[str, Any] | None = Field(None, description="That configuration, or changes to the stored one.")
    output_schemas: tuple[str, ...] | None = Field(None, description="Schemas to check instead of the stored ones.")
    mode: Literal["quick", "standard", "deep"] = Field("standard", description="How far the test goes.")


class TestHistoryParams(Params):
    """Show past test results of a connector, newest first (100 are kept)."""

    __test__ = False

    connector: str = Field(description="Id or name.")
    limit: int = Field(20, ge=1, le=100, description="Results to return.")


class TestHistoryResult(Value):
    """Past results, newest first."""

    __test__ = False

    tests: tuple[CheckReport, ...]


class ModelsParams(Params):
    """List what a connector exposes: tables, views, collections, files.

    Answers from the cached catalogue unless `refresh` is set or nothing is cached; always in pages.
    """

    connector: str = Field(description="Id or name.")
    refresh: bool = Field(False, description="Ask the source again.")
    schemas: tuple[str, ...] = Field((), description="Only these namespaces (within output_schemas).")
    search: str | None = Field(None, description="Only streams whose namespace.name contains this text, case ignored.")
    include: tuple[str, ...] = Field((), description="Glob patterns on namespace.name.")
    exclude: tuple[str, ...] = Field((), description="Glob patterns of what to leave out.")
    stream: str | None = Field(None, description="Only this stream (id as listed).")
    depth: Literal["names", "columns", "full"] = Field("full", description="How much of each stream to return.")
    page_size: int = Field(200, ge=1, le=500, description="Streams per page.")
    page_token: str | None = Field(None, description="`next_page` of the page before.")


class RotateParams(Params):
    """Replace a connector's secrets after testing the new ones.

    The new configuration is tested first; a failure changes nothing unless `force_save`. Eight bullets keep a secret.
    """

    connector: str = Field(description="Id or name.")
    config: dict[str, Any] = Field(description="Fields to change, secrets among them.")
    reason: str = Field("", max_length=500, description="Kept in the audit log.")
    force_save: bool = Field(False, description="Save even when the test fails.")


class RotateResult(Value):
    """Whether the secrets were replaced, and what the test said."""

    rotated: bool
    test: CheckReport


class PoolStatsParams(Params):
    """Show the connection pools."""

    connector: str | None = Field(None, description="Id or name; all when absent.")


class PoolStatsResult(Value):
    """One entry per open pool."""

    pools: tuple[PoolStats, ...]


class ApplyParams(Params):
    """Bring the connectors into the state that a connectors-as-code file describes.

    Each entry is created or changed, matched by name; entries are only removed with `prune`, and only those that came from
    a file. With `dry_run` nothing is changed. Secrets are given by reference (`{"$ref": "env:NAME"}`).
    """

    connectors: tuple[dict[str, Any], ...] = Field(description="Entries with name, type, config, ….")
    prune: bool = Field(False, description="Remove connectors that came from a file and are not among these.")
    dry_run: bool = Field(False, description="Only tell what would change.")
    source: str = Field("", description="Name of the file, for messages.")


class ApplyChange(Value):
    """What happened, or would happen, to one entry."""

    name: str
    action: Literal["created", "updated", "unchanged", "removed", "failed"]
    message: str | None = None


class ApplyResult(Value):
    """All entries."""

    changes: tuple[ApplyChange, ...]
    dry_run: bool = False


_NOT_FOUND = ("connector.not_found",)
_CONFIG = (
    "config.invalid",
    "config.unknown_field",
    "config.missing_field",
    "config.type_unknown",
    "config.policy_denied",
    "credential.key_missing",
)

CATALOG = Method("connectors/catalog", CatalogParams, CatalogResult)
LIST = Method("connectors/list", ListParams, ListResult)
GET = Method("connectors/get", GetParams, Connector, errors=_NOT_FOUND)
CREATE = Method(
    "connectors/create", CreateParams, Connector, access=Access.ADMIN, errors=(*_CONFIG, "connector.name_taken")
)
BOOTSTRAP = Method(
    "connectors/bootstrap", BootstrapParams, Connector, access=Access.ADMIN, errors=(*_CONFIG, "connector.name_taken")
)
UPDATE = Method(
    "connectors/update",
    UpdateParams,
    Connector,
    access=Access.ADMIN,
    errors=(*_NOT_FOUND, *_CONFIG, "config.secret_reentry_required", "connector.conflict"),
)
DELETE = Method("connectors/delete", DeleteParams, Done, access=Access.ADMIN, errors=_NOT_FOUND)
TEST = Method(
    "connectors/test", TestParams, CheckReport, access=Access.OPERATE, progress=True, errors=(*_NOT_FOUND, *_CONFIG)
)
TEST_HISTORY = Method("connectors/testHistory", TestHistoryParams, TestHistoryResult, errors=_NOT_FOUND)
MODELS = Method(
    "connectors/models", ModelsParams, StreamPage, access=Access.OPERATE, progress=True,
    errors=(*_NOT_FOUND, "model.not_found"),
)  # fmt: skip
ROTATE = Method("connectors/rotate", RotateParams, RotateResult, access=Access.ADMIN, progress=True, errors=_NOT_FOUND)
POOL_STATS = Method("connectors/poolStats", PoolStatsParams, PoolStatsResult)
APPLY = Method("connectors/apply", ApplyParams, ApplyResult, access=Access.ADMIN, errors=_CONFIG)
