"""Requests to a connector and the readers they answer with. Arrow record batches are the only currency."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from hfagent.foundation.cancellation import CancelToken
from hfagent.foundation.clock import Deadline
from hfagent.model.stream import Column

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BatchReader", "Bound", "ReadRequest", "SchemaRequest", "Statement"]

TARGET_BATCH_BYTES = 8 * 1024 * 1024
MAX_BATCH_ROWS = 50_000


@dataclass(frozen=True)
class SchemaRequest:
    """What to discover. `namespaces` is the connector's `output_schemas` (empty: the owned ones)."""

    namespaces: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    """Glob patterns on `namespace.name`; empty = all."""
    exclude: tuple[str, ...] = ()
    depth: Literal["names", "columns", "full"] = "full"
    cancel: CancelToken = field(default_factory=CancelToken)
    deadline: Deadline = field(default_factory=lambda: Deadline(None))


@dataclass(frozen=True)
class Bound:
    """One condition on a column: values are bound, never concatenated. Text values keep the source's precision."""

    column: str
    operator: Literal[">", ">=", "<", "<=", "=", "is null", "is not null"]
    value: Any = None


@dataclass(frozen=True)
class ReadRequest:
    """How to read a stream."""

    columns: tuple[str, ...] = ()
    """Empty = all visible columns of the stream, named explicitly."""
    bounds: tuple[Bound, ...] = ()
    """Joined with AND."""
    nulls_of: str | None = None
    """A column whose bounds also let rows pass that have no value in it (a watermark's window with its NULLs)."""
    order_by: tuple[str, ...] = ()
    limit: int | None = None
    batch_bytes: int = TARGET_BATCH_BYTES
    cancel: CancelToken = field(default_factory=CancelToken)
    deadline: Deadline = field(default_factory=lambda: Deadline(None))


@dataclass(frozen=True)
class Statement:
    """A user's statement, to be guarded and run read-only."""

    text: str
    params: tuple[Any, ...] | dict[str, Any] = ()
    max_rows: int | None = None
    """The reader stops after so many rows (None: no limit)."""
    first_rows: int = 0
    """Hint: so many rows are wanted quickly; 0 = favour throughput."""
    cancel: CancelToken = field(default_factory=CancelToken)
    deadline: Deadline = field(default_factory=lambda: Deadline(None))


class BatchReader:
    """An open result: iterate over its batches, then close it (or use it as a context manager).

    `columns` describes the result in our terms, `schema` in Arrow's; both are known before the first batch. Closing early
    stops the work on the server; it may be called more than once and from the thread that iterates only.
    """

    def __init__(
        self,
        columns: tuple[Column, ...],
        schema: pa.Schema,
        batches: Generator[pa.RecordBatch, None, None] | Iterator[pa.RecordBatch],
        *,
        on_close: Callable[[], None] | None = None,
        statement: str | None = None,
    ) -> None:
        self.columns = columns
        self.schema = schema
        self.statement = statement
        self.warnings: list[str] = []
        self._batches = iter(batches)
        self._on_close = on_close
        self._closed = False

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        if self._closed:
            raise StopIteration
        return next(self._batches)

    def close(self) -> None:
        """Release the result. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        close = getattr(self._batches, "close", None)
        try:
            if close is not None:
                close()
        finally:
            if self._on_close is not None:
                self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
