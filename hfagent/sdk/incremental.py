"""What a source tells about a watermark column before an incremental read (connector specification §0.7).

Values travel as exact text in the source's own notation: never through a float, never through a coarser clock. The text is
bound again with a cast to the column's type, so the comparison is the database's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["WatermarkClass", "WatermarkFacts"]

WatermarkClass = Literal["time", "date", "number", "text", "other"]
"""`time` is an instant or a naive date and time, `number` an integer or a decimal; only these and `date` can look back."""


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
    """Start of the oldest open transaction, in the column's notation: rows below it are settled. None when unknown."""
    nulls: int = 0
    """Rows without a value."""
    future: int = 0
    """Rows whose time lies more than two seconds ahead of the source's clock."""
    source_id: str = ""
    """Identity of the server and database; another one means a restored or replaced source. Empty when unknown."""
    lowered: str | None = None
    """The bound `lookback` below `highest` (below `floor`, when that is known and lower), computed by the source."""
