"""Borrows connections through the real pool, as the services do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from hfagent.foundation.clock import Deadline
from hfagent.sdk.connector import BaseConnector
from hfagent.sdk.pool import Pool, PoolSettings


@contextmanager
def with_pool(connector: BaseConnector[Any]) -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """A pool over the connector. The given function borrows a connection for the length of a `with` block."""
    pool = Pool(connector, PoolSettings.from_config(connector.config))

    @contextmanager
    def borrow() -> Iterator[Any]:
        with pool.acquire(Deadline(15)) as lease:
            yield lease.connection

    try:
        yield borrow
    finally:
        pool.close()
