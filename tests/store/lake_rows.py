"""Datasets, runs and intents to put into a store."""

from __future__ import annotations

from typing import Any

from hfagent.model.data_type import DataType
from hfagent.model.dataset import Dataset
from hfagent.model.run import Run
from hfagent.model.stream import Column
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.store import Store


def dataset(store: Store, name: str, connector: ConnectorRecord | None = None, **changes: Any) -> Dataset:
    identifier = store.new_id()
    values: dict[str, Any] = {
        "id": identifier,
        "name": name,
        "connector_id": connector.id if connector else None,
        "connector_name": connector.name if connector else "Sales",
        "stream": "public.orders",
        "location": f"sales/{identifier}",
        "cached_columns": columns(3),
        "schema_hash": "abc",
    }
    return Dataset.model_validate(values | changes)


def columns(count: int) -> tuple[Column, ...]:
    return tuple(
        Column(name=f"c{n}", type=DataType.decimal(38, 9), nullable=False, ordinal=n + 1) for n in range(count)
    )


def run(store: Store, of: Dataset, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "id": store.new_id(),
        "dataset_id": of.id,
        "dataset_name": of.name,
        "connector_name": of.connector_name,
        "mode": "incremental",
        "trigger": "schedule",
        "started_at": "2026-01-02T03:04:05.000Z",
    }
    return Run.model_validate(values | changes)
