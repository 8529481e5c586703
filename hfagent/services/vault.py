"""`vault/*`: state, key rotation, recovery."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from hfagent.foundation.errors import AgentError, ConfigError
from hfagent.sdk.registry import Registry
from hfagent.services.connections import Connections
from hfagent.services.context import CallContext
from hfagent.services.credentials import Credentials
from hfagent.services.workers import Lane, Workers
from hfagent.store.store import Store

__all__ = ["VaultVerbs"]

_log = logging.getLogger(__name__)
T = TypeVar("T")


class VaultVerbs:
    """The verbs of the vault. None of them returns a connector's secret."""

    def __init__(
        self,
        credentials: Credentials,
        connections: Connections,
        store: Store,
        registry: Registry,
        workers: Workers,
        store_lane: Lane,
    ) -> None:
        self._credentials = credentials
        self._connections = connections
        self._store = store
        self._registry = registry
        self._workers = workers
        self._lane = store_lane

    async def status(self) -> dict[str, Any]:
        """Return the facts of `VaultStatus`."""
        return await self._db(self._status)

    async def rotate(self, call: CallContext, key_source: str | None = None) -> dict[str, Any]:
        """Make a new key (optionally from another source), re-encrypt every secret, destroy the old key.

        Goes on where an interrupted rotation stopped. Secrets that cannot be opened keep the old key alive; they are named.
        """
        call.progress({"kind": "begin", "title": "Rotate the vault's key", "cancellable": False})
        vault = self._credentials.vault
        if not await self._db(lambda: vault.rotating):
            await self._db(lambda: vault.begin_rotation(key_source))
        failed = await self._db(lambda: self._reseal(call))
        if not failed:
            await self._db(vault.finish_rotation)
        await self._db(lambda: self._audit(call, "vault.rotate", {"failed": failed, "key_source": key_source}))
        call.progress(
            {"kind": "end", "message": "done" if not failed else f"{len(failed)} connectors stay under the old key"}
        )
        return await self.status()

    async def recovery_key(self, call: CallContext) -> str:
        """Make a recovery key and return it, once. An earlier one stops working."""
        key: str = await self._db(self._credentials.vault.make_recovery_key)
        await self._db(lambda: self._audit(call, "vault.recovery_key", {}))
        return key

    async def unlock(self, call: CallContext, recovery_key: str, key_source: str = "file") -> dict[str, Any]:
        """Open a locked vault with its recovery key and give it a new key from `key_source`."""
        await self._db(lambda: self._credentials.vault.unlock(recovery_key, key_source))
        await self._db(lambda: self._audit(call, "vault.unlock", {"key_source": key_source}))
        return await self.status()

    async def resume(self) -> None:
        """Finish a rotation that an earlier process began. Called at start; failures are logged and shown in the status."""
        vault = self._credentials.vault
        if not await self._db(lambda: vault.rotating and not vault.locked):
            return
        try:
            if not await self._db(lambda: self._credentials.reseal_all()):
                await self._db(vault.finish_rotation)
        except AgentError:
            _log.exception("the interrupted key rotation could not be finished")

    def _reseal(self, call: CallContext) -> list[str]:
        def report(done: int, total: int) -> None:
            call.progress(
                {"kind": "report", "message": f"{done}/{total} secrets", "percentage": int(100 * done / max(total, 1))}
            )

        return self._credentials.reseal_all(report)

    def _status(self) -> dict[str, Any]:
        vault = self._credentials.vault
        facts = vault.status()
        facts["secrets"] = self._store.secrets.count()
        key_id = facts.get("key_id")
        facts["pending_rotation"] = self._store.secrets.count_not_under(key_id) if key_id else 0
        facts["unreadable"] = tuple(self._unreadable()) if facts["state"] == "unlocked" else ()
        return facts

    def _unreadable(self) -> list[str]:
        names = []
        for record in self._store.connectors.list():
            try:
                cls = self._registry.get(record.type)
            except ConfigError:
                continue
            try:
                self._credentials.open_stored(cls, record)
            except AgentError:
                names.append(record.name)
        return names

    def _audit(self, call: CallContext, action: str, details: dict[str, Any]) -> None:
        self._store.audit.append(
            action, actor=str(call.actor), resource_type="vault", resource_id="vault", details=details
        )

    async def _db(self, work: Callable[[], T]) -> T:
        return await self._workers.call(self._lane, work)
