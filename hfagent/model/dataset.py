"""Datasets: streams that the agent keeps as tables of its own, and what shall happen to their rows on the way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from hfagent.model.stream import Column
from hfagent.model.value import Value

__all__ = [
    "Dataset",
    "DatasetDraft",
    "DatasetPatch",
    "DatasetStatus",
    "Deletes",
    "Mask",
    "Mode",
    "OnNull",
    "SchemaPolicy",
]

Mode = Literal["incremental", "full"]
OnNull = Literal["include_once", "always_include", "exclude", "error"]
SchemaPolicy = Literal["evolve_add", "evolve", "freeze", "discard_column", "pause"]
Deletes = Literal["ignore", "soft_column"]
DatasetStatus = Literal["active", "detached", "paused"]


def _checked_name(value: str) -> str:
    if value != value.strip() or any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ValueError("a name must not start or end with a blank or contain control characters")
    return value


def _checked_location(value: str) -> str:
    # What is joined to the lakehouse's path must stay below it.
    if "\0" in value or "\\" in value or any(part in ("", ".", "..") for part in value.split("/")):
        raise ValueError("a location is a relative path of directory names, without '.' and '..'")
    return value


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_checked_name)]
Location = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_checked_location)]


class Mask(Value):
    """What is kept instead of a column's values. It is applied on the agent, before a row is written anywhere."""

    kind: Literal["hash", "partial", "redact", "null"] = Field(
        description="`hash`: a keyed digest, equal for equal values; `partial`: the last characters only; `redact`: a "
        "fixed text; `null`: nothing."
    )
    keep: int = Field(4, ge=0, le=64, description="Characters that `partial` leaves readable, at the end.")


class Dataset(Value):
    """A stream of a connector as a table of the agent's lakehouse. It outlives its connector, with its rows and columns."""

    id: str
    name: Name = Field(description="Unique on this agent, whatever the case.")
    connector_id: str | None = Field(description="Where the rows come from; null once that connector is deleted.")
    connector_name: str = Field(description="The connector's name; its last one when it is deleted.")
    stream: str = Field(description="The stream's id within the connector.")
    mode: Mode = Field("full", description="`full` replaces all rows in each run, `incremental` reads what is new.")
    watermark_column: str | None = Field(None, description="Column that grows with every change; drives `incremental`.")
    primary_key: tuple[str, ...] = Field((), description="Columns by which rows are merged; empty = rows are appended.")
    lookback: int | None = Field(
        None,
        ge=0,
        description="How far each run reaches back before the last watermark: seconds for times and dates (a date's in "
        "whole days), a count for numbers. null = 600 seconds or 10,000.",
    )
    on_null: OnNull | None = Field(
        None,
        description="Rows without a watermark: read them in the first run, in every run, never, or refuse to run. "
        "null = every run when they are few and there is a key, else refuse.",
    )
    columns: tuple[str, ...] = Field((), description="Columns to read; empty = all.")
    exclude: tuple[str, ...] = Field((), description="Columns never to read.")
    masks: dict[str, Mask] = Field(default_factory=dict, description="Masks by column name.")
    schema_policy: SchemaPolicy = Field(
        "evolve_add",
        description="When the source's columns change: take new and wider ones (`evolve_add`), any change that loses "
        "nothing (`evolve`), keep the columns and refuse (`freeze`), keep them and drop the others (`discard_column`), or "
        "`pause`.",
    )
    deletes: Deletes = Field("ignore", description="`soft_column`: rows gone from the source are marked, not removed.")
    max_shrink_ratio: float = Field(
        0.5,
        ge=0,
        le=1,
        description="A full run that brings less than this share of the present rows is held; 0 = never.",
    )
    status: DatasetStatus = Field("active", description="`detached`: its connector was deleted; the rows stay.")
    status_reason: str | None = None
    location: Location = Field(description="Its directory, relative to the lakehouse.")
    schema_hash: str = Field("", description="The stream's digest when its columns were last looked at.")
    cached_columns: tuple[Column, ...] = Field((), description="The stream's columns when they were last looked at.")
    version: int = Field(1, description="Grows with each change; send it back to detect conflicts.")
    created_at: str = ""
    updated_at: str = ""


class DatasetDraft(Value):
    """A dataset that does not exist yet."""

    name: Name | None = Field(None, description="Unique on this agent; null = made from connector and stream.")
    connector: str = Field(min_length=1, description="Id or name of the connector.")
    stream: str = Field(min_length=1, description="Id of one of its streams.")
    mode: Mode | None = Field(None, description="null = `incremental` when there is a watermark column, else `full`.")
    watermark_column: str | None = Field(None, description="Column that grows with every change.")
    primary_key: tuple[str, ...] | None = Field(
        None, description="Columns by which rows are merged; null = the stream's own, empty = append."
    )
    lookback: int | None = Field(None, ge=0, description="Seconds, or a count for numbers; null = 600 or 10,000.")
    on_null: OnNull | None = Field(
        None, description="What happens to rows without a watermark; null = decided by the data."
    )
    columns: tuple[str, ...] = Field((), description="Columns to read; empty = all.")
    exclude: tuple[str, ...] = Field((), description="Columns never to read.")
    masks: dict[str, Mask] = Field(default_factory=dict, description="Masks by column name.")
    schema_policy: SchemaPolicy = Field("evolve_add", description="What happens when the source's columns change.")
    deletes: Deletes = Field("ignore", description="What happens to rows that are gone from the source.")
    max_shrink_ratio: float = Field(
        0.5, ge=0, le=1, description="Least share of the present rows in a full run; 0 = any."
    )


class DatasetPatch(Value):
    """Changes to a dataset; absent fields stay as they are. An explicit null in a field that may be null clears it."""

    name: Name | None = None
    mode: Mode | None = None
    watermark_column: str | None = Field(None, description="null clears it.")
    primary_key: tuple[str, ...] | None = None
    lookback: int | None = Field(None, ge=0, description="null goes back to the default.")
    on_null: OnNull | None = Field(None, description="null goes back to the default.")
    columns: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    masks: dict[str, Mask] | None = Field(None, description="All masks: a column that is not named loses its mask.")
    schema_policy: SchemaPolicy | None = None
    deletes: Deletes | None = None
    max_shrink_ratio: float | None = Field(None, ge=0, le=1)
    status: Literal["active", "paused"] | None = None
    if_version: int | None = Field(None, description="Refuse when the dataset's version is another one.")
