"""`query/*`: run a reading statement, page through its result, export it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hfagent.model.query import ExportReport, QueryPage, QueryPlan
from hfagent.protocol.agent import Done
from hfagent.protocol.method import Access, Method, Params

__all__ = ["CANCEL", "CLOSE", "EXECUTE", "EXPLAIN", "EXPORT", "FETCH"]

_RUN = (
    "connector.not_found",
    "connector.not_queryable",
    "query.syntax",
    "query.failed",
    "guard.write_blocked",
    "guard.multi_statement",
    "timeout.statement",
    "capacity.pool_exhausted",
    "permission.denied",
    "model.not_found",
    "column.not_found",
)


class ExecuteParams(Params):
    """Run one reading statement and return its first page.

    The page comes as soon as its rows are there; the rest is fetched with `query/fetch`. Cancelling the request cancels the
    statement on the server. The result stays open until its last page, `query/close`, or five idle minutes.
    """

    connector: str = Field(description="Id or name.")
    sql: str = Field(min_length=1, max_length=1_000_000, description="One statement in the connector's dialect.")
    params: list[Any] | dict[str, Any] | None = Field(None, description="Bound values: `%s` / `%(name)s` placeholders.")
    page_size: int = Field(500, ge=1, le=50_000, description="Rows per page.")
    max_rows: int | None = Field(None, ge=1, description="Stop after so many rows; the page then says `truncated`.")
    timeout_s: float | None = Field(
        None, gt=0, le=86_400, description="Seconds; default and upper bound: query_timeout_s."
    )
    format: Literal["auto", "rows", "arrow"] = Field(
        "auto", description="`arrow` (MessagePack only) or `rows`; `auto` follows the message's encoding."
    )
    query_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="Your own name for the result; one is made when absent."
    )


class FetchParams(Params):
    """Fetch the next page of an open result."""

    query_id: str = Field(description="Names the result, as in its pages.")
    page_size: int | None = Field(None, ge=1, le=50_000, description="Default: as in `query/execute`.")


class CloseParams(Params):
    """Close an open result; what still runs is cancelled on the server. Closing twice is no error."""

    query_id: str = Field(description="Names the result, as in its pages.")


class CancelParams(Params):
    """Cancel a statement by its `query_id`, also from another connection of the same user."""

    query_id: str = Field(description="Names the result, as in its pages.")


class ExplainParams(Params):
    """Show the plan of a statement without running it."""

    connector: str = Field(description="Id or name.")
    sql: str = Field(min_length=1, max_length=1_000_000, description="One statement in the connector's dialect.")
    timeout_s: float | None = Field(None, gt=0, le=86_400, description="Seconds it may take; at most query_timeout_s.")


class ExportParams(Params):
    """Run a statement and write its whole result to a file on the agent's machine.

    Written under a temporary name and renamed when complete, mode 0600; an existing file is only replaced with `overwrite`.
    Progress carries rows and bytes.
    """

    connector: str = Field(description="Id or name.")
    sql: str = Field(min_length=1, max_length=1_000_000, description="One statement in the connector's dialect.")
    params: list[Any] | dict[str, Any] | None = Field(None, description="Bound values, as in `query/execute`.")
    path: str = Field(description="Absolute path on the agent's machine.")
    format: Literal["csv", "parquet", "jsonl"] | None = Field(None, description="Default: by the path's ending.")
    max_rows: int | None = Field(None, ge=1, description="Stop after so many rows.")
    timeout_s: float | None = Field(None, gt=0, le=86_400, description="Seconds it may take; at most query_timeout_s.")
    overwrite: bool = Field(False, description="Replace an existing file.")


EXECUTE = Method("query/execute", ExecuteParams, QueryPage, access=Access.OPERATE, progress=True, errors=_RUN)
FETCH = Method("query/fetch", FetchParams, QueryPage, access=Access.OPERATE, errors=("query.not_found",))
CLOSE = Method("query/close", CloseParams, Done, access=Access.OPERATE)
CANCEL = Method("query/cancel", CancelParams, Done, access=Access.OPERATE, errors=("query.not_found",))
EXPLAIN = Method("query/explain", ExplainParams, QueryPlan, access=Access.OPERATE, errors=_RUN)
EXPORT = Method("query/export", ExportParams, ExportReport, access=Access.OPERATE, progress=True, errors=_RUN)
