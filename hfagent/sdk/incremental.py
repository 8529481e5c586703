"""What a source tells about a watermark column before an incremental read (connector specification §0.7).

Values travel as exact text in the source's own notation: never through a float, never through a coarser clock. The text is
bound again with a cast to the column's type, so the comparison is the database's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from hfagent.foundation.errors import NotFound, UserError
from hfagent.model.stream import Column, Stream

__all__ = [
    "DEFAULT_LOOKBACK",
    "FLOOR_MARGIN_S",
    "FLOOR_MAX_LAG_S",
    "FUTURE_TOLERANCE_S",
    "WatermarkClass",
    "WatermarkFacts",
    "is_indexed",
    "unusable",
    "watermark_column",
]

WatermarkClass = Literal["time", "date", "number", "text", "other"]
"""`time` is an instant or a naive date and time, `number` an integer or a decimal; only these and `date` can look back."""

DEFAULT_LOOKBACK: Final[dict[WatermarkClass, int]] = {"time": 600, "date": 1, "number": 10_000, "text": 0}
"""How far a window is entered again when nobody says otherwise: seconds, days, units; text has no distances."""
FLOOR_MARGIN_S: Final = 60
"""Applications take the time a little before their transaction starts."""
FLOOR_MAX_LAG_S: Final = 3600
"""A transaction open for longer is somebody's forgotten session: the floor would have every run read hours again."""
FUTURE_TOLERANCE_S: Final = 2
"""Clocks differ; what is further ahead of the source's clock is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatermarkFacts:
    """One look at a stream's watermark column, taken before the snapshot that is read.

    A row may be added between the look and the read; it lies above `highest` and waits for the next run.
    """

    column: str
    column_type: str
    """The canonical type's text, as in the stream's description."""
    watermark_class: WatermarkClass
    highest: str | None
    """Greatest value that is not in the future; None when there is none (an empty stream, or NULLs only)."""
    floor: str | None = None
    """Start of the oldest open transaction (the present when there is none), in the column's notation; rows that carry their
    transaction's time are settled below it. None when unknown, or more than an hour ago."""
    nulls: int = 0
    """Rows without a value."""
    future: int = 0
    """Rows above everything that counts for `highest`: more than two seconds ahead of the source's clock, or (numbers) not
    finite. A naive time is taken for UTC."""
    source_id: str = ""
    """Identity of the server and database; another one means a restored or replaced source. Empty when unknown."""
    lowered: str | None = None
    """Where the next window begins, computed by the source; None exactly when `highest` is.

    With a floor: the lower of `highest` and `floor`, less `lookback` when it was given, else less a minute. Without: `highest`
    less `lookback`. A naive column takes the lower of both, because its writers' time zone is not known for sure. Text cannot
    look back: `highest`."""


def watermark_column(stream: Stream, name: str) -> Column:
    """The stream's column. Raises `NotFound` (`column.not_found`)."""
    for column in stream.columns:
        if column.name == name:
            return column
    raise NotFound(f"{stream.id} has no column {name!r}", code="column.not_found")


def unusable(stream: Stream, column: Column, usable: str) -> UserError:
    """The error for a column whose type has no order to rely on; `usable` names the types that have."""
    return UserError(
        f"{stream.id}: the column {column.name!r} of type {column.native_type or column.type} cannot drive incremental reads",
        code="incremental.no_watermark",
        hint=f"choose a column of one of these types: {usable}; or read the stream in full",
    )


def is_indexed(stream: Stream, column: str) -> bool:
    """Whether looking up the column's extremes is cheap: it leads an index or the primary key."""
    leading = [stream.primary_key[:1], *(index.columns[:1] for index in stream.indexes)]
    return (column,) in leading
