"""A source's rows as a dataset keeps them: chosen columns, masks, types that Delta has, and where each row came from.

Runs on the agent, before anything is written: a masked or excluded value never reaches the disk. Conversions are exact or
refused; nothing is rounded or cut. pyarrow is imported inside the functions.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from hfagent.foundation.errors import AgentError, NotFound, UserError
from hfagent.model.stream import Column
from hfagent.sdk.arrow import TYPE_KEY, arrow_schema, data_type
from hfagent.sdk.temporal import times
from hfagent.services.sync.delta_types import deliver, delivered_type

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["EXTRACTED_AT", "RUN_ID", "SEQUENCE", "MaskRule", "Shape", "Shaper", "delivered_type"]

RUN_ID: Final = "_hf_run_id"
EXTRACTED_AT: Final = "_hf_extracted_at"
SEQUENCE: Final = "_hf_seq"
"""Place of the row within its run, from 1."""


class MaskRule(Protocol):
    """How a column is masked."""

    @property
    def kind(self) -> str:
        """`hash`, `partial`, `redact` or `null`."""

    @property
    def keep(self) -> int:
        """Characters that `partial` leaves readable, at the end."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is delivered of a stream."""

    columns: tuple[str, ...] = ()
    """Empty = all visible ones."""
    exclude: tuple[str, ...] = ()
    masks: Mapping[str, MaskRule] = field(default_factory=dict)
    mask_key: bytes = field(default=b"", repr=False)
    """Key of `hash` masks: the same for all datasets that are to be joined by the masked column."""


class Shaper:
    """Turns the batches of one run into the dataset's rows. Not thread-safe."""

    def __init__(self, shape: Shape, columns: Iterable[Column], *, run_id: str, now: datetime | None = None) -> None:
        """Raises `NotFound` (`column.not_found`) for a column that the stream does not have, `UserError` for a mask that
        cannot be applied or a column name of our own."""
        import pyarrow as pa

        self._shape = shape
        self._run_id = run_id
        self._now = now or datetime.now(UTC)
        self._sequence = 0
        known = {column.name: column for column in columns}
        named = (*shape.columns, *shape.exclude, *shape.masks)
        if missing := [name for name in named if name not in known]:
            raise NotFound(f"the stream has no column {missing[0]!r}", code="column.not_found")
        chosen = shape.columns or tuple(column.name for column in known.values() if not column.hidden)
        self.read_columns: tuple[str, ...] = tuple(name for name in chosen if name not in shape.exclude)
        """The columns to ask the source for; a masked one is among them, an excluded one never."""
        if not self.read_columns:
            raise UserError("no column is left to sync", code="column.not_found", hint="exclude fewer columns")
        if taken := [name for name in self.read_columns if name in (RUN_ID, EXTRACTED_AT, SEQUENCE)]:
            raise UserError(
                f"the column name {taken[0]!r} is the agent's own", code="schema.type_conflict", hint="exclude it"
            )
        self._check_masks()
        self._fields = [self._target(field) for field in arrow_schema(known[name] for name in self.read_columns)]
        self.schema: pa.Schema = pa.schema(
            [
                *self._fields,
                pa.field(RUN_ID, pa.string()),
                pa.field(EXTRACTED_AT, pa.timestamp("us", "UTC")),
                pa.field(SEQUENCE, pa.int64()),
            ]
        )
        """What is delivered: the dataset's columns."""

    def shape(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows as they are delivered. Raises `AgentError` (`schema.type_conflict`) when one does not fit."""
        import numpy as np
        import pyarrow as pa

        rows = batch.num_rows
        arrays = [self._delivered(batch.column(batch.schema.get_field_index(f.name)), f) for f in self._fields]
        arrays += [
            pa.repeat(pa.scalar(self._run_id), rows),
            pa.repeat(pa.scalar(self._now, pa.timestamp("us", "UTC")), rows),
            pa.array(np.arange(self._sequence + 1, self._sequence + rows + 1, dtype=np.int64)),
        ]
        self._sequence += rows
        return pa.record_batch(arrays, schema=self.schema)

    def _check_masks(self) -> None:
        for name, mask in self._shape.masks.items():
            if mask.kind not in _MASKS:
                raise UserError(f"the mask {mask.kind!r} of {name!r} is not known", code="request.invalid_params",
                                hint=f"one of: {', '.join(_MASKS)}")  # fmt: skip
            if mask.kind == "hash" and not self._shape.mask_key:
                raise UserError(f"the hash mask of {name!r} needs a key", code="credential.key_missing",
                                hint="unlock the vault: the key for masks is derived from it")  # fmt: skip

    def _target(self, source: pa.Field) -> pa.Field:
        import pyarrow as pa

        mask = self._shape.masks.get(source.name)
        if mask is not None and mask.kind != "null":
            if mask.kind != "redact" and pa.types.is_nested(source.type):
                raise UserError(
                    f"the mask {mask.kind!r} cannot be applied to {source.name!r}, which holds lists or structures",
                    code="request.invalid_params",
                    hint="mask it with redact or null, or exclude it",
                )
            return pa.field(source.name, pa.string())
        try:
            type_ = delivered_type(source.type)
        except UserError as exc:
            raise UserError(f"the column {source.name!r}: {exc.message}", code=exc.code, hint=exc.hint) from exc
        return pa.field(source.name, type_, metadata=_meaning(source, type_))

    def _delivered(self, values: pa.Array, target: pa.Field) -> pa.Array:
        import pyarrow as pa

        mask = self._shape.masks.get(target.name)
        if mask is not None and mask.kind == "null":
            return pa.nulls(len(values), target.type)
        try:
            if mask is not None:
                return _masked(values, mask, self._shape.mask_key)
            found = deliver(values)
            return found if found.type == target.type else found.cast(target.type)
        except (pa.ArrowException, ValueError) as exc:
            raise AgentError(
                f"a value of the column {target.name!r} ({values.type}) has no exact place in {target.type}",
                code="schema.type_conflict",
                hint="exclude the column, or give it a type of fewer digits in a view of the source",
            ) from exc


_MASKS: Final = ("hash", "partial", "redact", "null")
_REDACTED: Final = "***"


def _meaning(source: pa.Field, type_: pa.DataType) -> dict[bytes, bytes] | None:
    """The field's metadata: the canonical type's text where the delivered type does not tell it."""
    if source.metadata and TYPE_KEY in source.metadata:
        return {TYPE_KEY: source.metadata[TYPE_KEY]}
    canonical = data_type(source.type)
    return None if data_type(type_) == canonical else {TYPE_KEY: str(canonical).encode()}


def _masked(values: pa.Array, mask: MaskRule, key: bytes) -> pa.Array:
    """The masked values; a NULL stays one. Each different value is worked on once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if mask.kind == "redact":
        return pc.if_else(values.is_valid(), _REDACTED, pa.scalar(None, pa.string()))
    found = deliver(values)
    if pa.types.is_timestamp(found.type) or pa.types.is_date(found.type):
        found = pa.array(times(found), pa.string())
    encoded = found.dictionary_encode()
    replaced = pa.array([_mask(value, mask, key) for value in encoded.dictionary.to_pylist()], pa.string())
    return pa.DictionaryArray.from_arrays(encoded.indices, replaced).cast(pa.string())


def _mask(value: Any, mask: MaskRule, key: bytes) -> str | None:
    if value is None:
        return None
    text = value.hex() if isinstance(value, bytes) else str(value)
    if mask.kind == "partial":
        shown = max(0, min(mask.keep, len(text) - 1))  # never the whole value
        return "*" * (len(text) - shown) + (text[-shown:] if shown else "")
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
