"""`connectors/*`."""

from __future__ import annotations

from hfagent.model.connector import Connector, ConnectorDraft
from hfagent.model.report import CheckReport
from hfagent.model.stream import StreamPage
from hfagent.protocol import connectors as c
from hfagent.protocol.agent import Done
from hfagent.server.dispatch import Handler
from hfagent.services.apply import Apply
from hfagent.services.connections import Connections
from hfagent.services.connectors import Connectors
from hfagent.services.context import CallContext
from hfagent.services.discovery import Discovery

__all__ = ["connectors_handlers"]


def connectors_handlers(
    connectors: Connectors, discovery: Discovery, connections: Connections, apply: Apply
) -> dict[str, Handler]:
    """Return the handlers of the namespace."""

    async def catalog(call: CallContext, p: c.CatalogParams) -> c.CatalogResult:
        return c.CatalogResult(types=await connectors.catalog(p.type))

    async def list_(call: CallContext, p: c.ListParams) -> c.ListResult:
        return c.ListResult(
            connectors=await connectors.list(type_name=p.type, category=p.category, queryable=p.queryable)
        )

    async def get(call: CallContext, p: c.GetParams) -> Connector:
        return await connectors.get(p.connector)

    async def create(call: CallContext, p: c.CreateParams) -> Connector:
        return await connectors.create(call, _draft(p))

    async def bootstrap(call: CallContext, p: c.BootstrapParams) -> Connector:
        return await connectors.create(call, _draft(p), schedule_cron=p.schedule_cron, schedule_mode=p.schedule_mode)

    async def update(call: CallContext, p: c.UpdateParams) -> Connector:
        return await connectors.update(call, p.connector, p.changes)

    async def delete(call: CallContext, p: c.DeleteParams) -> Done:
        await connectors.delete(call, p.connector)
        return Done()

    async def test(call: CallContext, p: c.TestParams) -> CheckReport:
        return await connectors.test(
            call, connector=p.connector, type_name=p.type, config=p.config, output_schemas=p.output_schemas, mode=p.mode
        )

    async def test_history(call: CallContext, p: c.TestHistoryParams) -> c.TestHistoryResult:
        return c.TestHistoryResult(tests=await connectors.test_history(p.connector, p.limit))

    async def models(call: CallContext, p: c.ModelsParams) -> StreamPage:
        return await discovery.models(call, **{name: getattr(p, name) for name in c.ModelsParams.model_fields})

    async def rotate(call: CallContext, p: c.RotateParams) -> c.RotateResult:
        rotated, report = await connectors.rotate(call, p.connector, p.config, reason=p.reason, force=p.force_save)
        return c.RotateResult(rotated=rotated, test=report)

    async def pool_stats(call: CallContext, p: c.PoolStatsParams) -> c.PoolStatsResult:
        wanted = (await connectors.get(p.connector)).id if p.connector else None
        return c.PoolStatsResult(pools=tuple(s for s in connections.stats() if wanted in (None, s.connector_id)))

    async def apply_(call: CallContext, p: c.ApplyParams) -> c.ApplyResult:
        changes = await apply.apply(call, list(p.connectors), prune=p.prune, dry_run=p.dry_run, source=p.source)
        return c.ApplyResult(
            changes=tuple(c.ApplyChange(name=x.name, action=x.action, message=x.message) for x in changes),
            dry_run=p.dry_run,
        )

    return {
        c.CATALOG.name: catalog,
        c.LIST.name: list_,
        c.GET.name: get,
        c.CREATE.name: create,
        c.BOOTSTRAP.name: bootstrap,
        c.UPDATE.name: update,
        c.DELETE.name: delete,
        c.TEST.name: test,
        c.TEST_HISTORY.name: test_history,
        c.MODELS.name: models,
        c.ROTATE.name: rotate,
        c.POOL_STATS.name: pool_stats,
        c.APPLY.name: apply_,
    }


def _draft(p: c.CreateParams) -> ConnectorDraft:
    return ConnectorDraft(**{name: getattr(p, name) for name in ConnectorDraft.model_fields})
