"""Rows to put into a store."""

from __future__ import annotations

from typing import Any

from hfagent.model.data_type import DataType
from hfagent.model.stream import Column, Stream, stream_id
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.secrets import SealedSecret
from hfagent.store.store import Store


def draft(store: Store, name: str, **changes: Any) -> ConnectorRecord:
    return ConnectorRecord(id=store.new_id(), name=name, type="postgresql", **changes)


def sealed(
    connector_id: str, version: int, *, field: str = "password", key_id: str = "k1", **changes: Any
) -> SealedSecret:
    values: dict[str, Any] = {
        "endpoint": "db1:5432",
        "blob": f"blob {field} {version}".encode(),
        "fingerprint": "0badcafe",
        **changes,
    }
    return SealedSecret(connector_id=connector_id, field=field, key_id=key_id, record_version=version, **values)


def stream(namespace: str | None, name: str, *, columns: int = 2, **changes: Any) -> Stream:
    made = tuple(
        Column(name=f"c{n}", type=DataType("int64"), native_type="bigint", ordinal=n + 1) for n in range(columns)
    )
    return Stream(id=stream_id(namespace, name), namespace=namespace, name=name, columns=made, **changes).hashed()


def names(store: Store, connector_id: str, *, limit: int = 500, **filters: Any) -> list[str]:
    """The ids on all pages."""
    found: list[str] = []
    token = None
    while True:
        page = store.catalogues.page(connector_id, after_token=token, limit=limit, **filters)
        assert page is not None
        found += [entry.id for entry in page.streams]
        token = page.next_page
        if token is None:
            return found
