"""Base of connectors whose streams are objects or files in a store: what a store has to offer, and nothing more.

A subclass speaks to one kind of store (S3, Google Cloud Storage, OSS). What is built on it (tables found in prefixes,
formats, incremental reading by object) needs exactly the four verbs below. Reading only: a store is never written to.

What it is not: no parsing of formats, no caching, no retry policy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, ClassVar, TypeVar

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.model.connector import Category
from hfagent.sdk.config import ConnectorConfig
from hfagent.sdk.connector import BaseConnector, Incremental

__all__ = ["ListRequest", "StorageBase", "StoredObject"]

StorageConfigT = TypeVar("StorageConfigT", bound=ConnectorConfig)


@dataclass(frozen=True)
class StoredObject:
    """One object of a store, as its listing shows it."""

    key: str
    """Full key, exactly as the store has it."""
    size: int
    """Bytes."""
    modified: datetime
    """Aware; stores give whole seconds or milliseconds, and some the start of an upload."""
    etag: str | None = None
    """Changes with the content. Not a digest of it in general (multipart uploads)."""
    version: str | None = None
    """The store's version id or generation, when it keeps any."""


@dataclass(frozen=True)
class ListRequest:
    """What to list, in ascending byte order of keys."""

    prefix: str = ""
    delimiter: str | None = None
    """With `/` only one level is listed; deeper keys are folded into prefixes."""
    start_after: str | None = None
    """Only keys after this one."""
    limit: int | None = None
    cancel: CancelToken | None = None
    deadline: Deadline | None = None


class StorageBase(BaseConnector[StorageConfigT], Incremental, ABC):
    """A store of objects. A connection is the store's client object."""

    category: ClassVar[Category] = "object_store"

    @abstractmethod
    def list_objects(self, connection: Any, request: ListRequest) -> Iterator[StoredObject | str]:
        """Yield objects, and with a delimiter also the common prefixes as text, page by page.

        Raises `namespace.not_found` (no such bucket), `permission.denied` (listing is not granted).
        """

    @abstractmethod
    def stat_object(self, connection: Any, key: str) -> StoredObject:
        """Return what is known about one object. Raises `model.not_found`, `permission.denied`."""

    @abstractmethod
    def open_object(
        self, connection: Any, object_: StoredObject, *, start: int = 0, length: int | None = None
    ) -> BinaryIO:
        """Open the object's bytes from `start`, at most `length` of them, as a stream that the caller closes.

        The bytes are those of `object_`'s etag or version: when the object has been replaced since it was listed, raises
        `read.snapshot_too_old`. Raises `model.not_found`, `permission.denied`.
        """

    @abstractmethod
    def identity(self, connection: Any) -> str:
        """Return who the store takes us for (account, role, service account), without any secret; `anonymous` for nobody."""
