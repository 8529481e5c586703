"""Queries and their pages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hfagent.model.stream import Column
from hfagent.model.value import Value

__all__ = ["ExportReport", "QueryPage", "QueryPlan", "RowFormat"]

RowFormat = Literal["rows", "arrow"]


class QueryPage(Value):
    """A page of a result. Exactly one of `rows` and `arrow` is set, as the request asked.

    Wire form of values in `rows` (connector specification §0.10): decimals, integers beyond 2^53 and timestamps are
    strings, bytes are base64, NaN and infinities are strings, JSON stays text.
    """

    query_id: str = Field(description="Names the open result within this session.")
    columns: tuple[Column, ...]
    rows: list[list[Any]] | None = None
    arrow: bytes | None = Field(None, description="Arrow IPC stream (MessagePack connections only).")
    row_count: int = Field(description="Rows in this page.")
    rows_before: int = Field(0, description="Rows of earlier pages.")
    has_more: bool = Field(description="False on the last page; the result is then closed.")
    truncated: bool = Field(False, description="The row limit cut the result.")
    elapsed_ms: float = 0
    statement: str | None = Field(None, description="The statement that ran.")
    warnings: tuple[str, ...] = ()


class QueryPlan(Value):
    """The source's plan for a statement."""

    format: Literal["text", "json"]
    plan: Any
    estimated_rows: float | None = None
    estimated_cost: float | None = None


class ExportReport(Value):
    """A finished export."""

    path: str
    format: Literal["csv", "parquet", "jsonl"]
    rows: int
    bytes: int
    elapsed_ms: float
    truncated: bool = False
