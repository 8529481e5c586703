"""`query/*`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hfagent.foundation.errors import UserError
from hfagent.model.query import ExportReport, QueryPage, QueryPlan
from hfagent.protocol import query as q
from hfagent.protocol.agent import Done
from hfagent.server.dispatch import Handler
from hfagent.services.context import CallContext
from hfagent.services.query import Query

__all__ = ["query_handlers"]


def query_handlers(query: Query) -> dict[str, Handler]:
    """Return the handlers of the namespace."""

    async def execute(call: CallContext, p: q.ExecuteParams) -> QueryPage:
        return await query.execute(
            call, p.connector, p.sql, params=p.params, page_size=p.page_size, max_rows=p.max_rows, timeout_s=p.timeout_s,
            format=_format(call, p.format), query_id=p.query_id,
        )  # fmt: skip

    async def fetch(call: CallContext, p: q.FetchParams) -> QueryPage:
        return await query.fetch(call, p.query_id, page_size=p.page_size)

    async def close(call: CallContext, p: q.CloseParams) -> Done:
        await query.close(call, p.query_id)
        return Done()

    async def cancel(call: CallContext, p: q.CancelParams) -> Done:
        await query.cancel(call, p.query_id)
        return Done()

    async def explain(call: CallContext, p: q.ExplainParams) -> QueryPlan:
        return await query.explain(call, p.connector, p.sql, timeout_s=p.timeout_s)

    async def export(call: CallContext, p: q.ExportParams) -> ExportReport:
        return await query.export(
            call, p.connector, p.sql, Path(p.path), params=p.params, format=p.format, max_rows=p.max_rows, timeout_s=p.timeout_s,
            overwrite=p.overwrite,
        )  # fmt: skip

    return {
        q.EXECUTE.name: execute,
        q.FETCH.name: fetch,
        q.CLOSE.name: close,
        q.CANCEL.name: cancel,
        q.EXPLAIN.name: explain,
        q.EXPORT.name: export,
    }


def _format(call: CallContext, wanted: Literal["auto", "rows", "arrow"]) -> Literal["rows", "arrow"]:
    """`auto` follows the encoding; Arrow cannot travel in JSON."""
    if wanted == "auto":
        return "arrow" if call.binary else "rows"
    if wanted == "arrow" and not call.binary:
        raise UserError(
            "Arrow results need a MessagePack connection",
            code="request.invalid_params",
            hint="send Content-Type: application/msgpack, or ask for format 'rows'",
        )
    return wanted
