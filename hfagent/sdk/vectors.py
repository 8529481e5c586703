"""Base of connectors to vector stores: collections, nearest neighbours, and changes by id.

Ids are the caller's and make writing idempotent: writing a record twice leaves one. Distances are the store's own measure,
smaller is nearer; `metric` of the collection says which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.model.connector import Category
from hfagent.sdk.config import ConnectorConfig
from hfagent.sdk.connector import BaseConnector

__all__ = ["Collection", "Match", "VectorQuery", "VectorRecord", "VectorStoreBase"]

VectorConfigT = TypeVar("VectorConfigT", bound=ConnectorConfig)


@dataclass(frozen=True)
class Collection:
    """A named set of vectors of one dimension."""

    name: str
    dimension: int | None = None
    """None while the collection is empty and its dimension open."""
    metric: Literal["l2", "cosine", "ip"] | None = None
    count: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VectorRecord:
    """A vector with its id, text and metadata. Metadata values are texts, numbers and booleans."""

    id: str
    vector: tuple[float, ...]
    text: str | None = None
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class VectorQuery:
    """What to look for. `filter` holds equalities on metadata, all of which must be true."""

    vector: tuple[float, ...]
    limit: int = 10
    filter: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    with_vectors: bool = False
    cancel: CancelToken = field(default_factory=CancelToken)
    deadline: Deadline = field(default_factory=lambda: Deadline(None))


@dataclass(frozen=True)
class Match:
    """A neighbour; `record.vector` is empty unless it was asked for."""

    record: VectorRecord
    distance: float


class VectorStoreBase(BaseConnector[VectorConfigT], ABC):
    """A store of vectors. A connection is the store's client object, or an opened index."""

    category: ClassVar[Category] = "vector_store"
    is_queryable: ClassVar[bool] = False

    @abstractmethod
    def collections(self, connection: Any) -> Iterator[Collection]:
        """Yield the collections. Raises `auth.*`, `namespace.not_found` (tenant or database)."""

    @abstractmethod
    def query(self, connection: Any, collection: str, query: VectorQuery) -> list[Match]:
        """Return the nearest records, nearest first. Raises `model.not_found`, `config.invalid` (wrong dimension)."""

    @abstractmethod
    def upsert(self, connection: Any, collection: str, records: Sequence[VectorRecord]) -> int:
        """Write records by id, in batches that the store accepts, and return how many.

        Raises `config.policy_denied` when the connector is configured for reading only, `config.invalid` for a wrong
        dimension, and then nothing of the batch is written.
        """

    @abstractmethod
    def delete(self, connection: Any, collection: str, ids: Sequence[str]) -> int:
        """Remove records by id and return how many were there. Unknown ids are no error. Raises as `upsert` does."""
