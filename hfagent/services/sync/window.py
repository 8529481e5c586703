"""What an incremental run reads: the closed window between two watermarks, and where the next one begins.

Pure decisions over what the source said (`WatermarkFacts`) and what the last run left (`SyncPosition`); no I/O. Watermarks
are exact text in the source's notation. The lower bound is inclusive and lies behind the last run's highest value, so rows
that were stamped early and committed late, and rows of equal value, are read again rather than lost (specification §0.7).
"""

from __future__ import annotations

from dataclasses import dataclass

from hfagent.foundation.errors import SourceError, UserError
from hfagent.model.dataset import OnNull
from hfagent.sdk.incremental import WatermarkFacts
from hfagent.services.sync.watermark_order import compare_watermarks

__all__ = ["NoChange", "SyncPosition", "Window", "plan_window"]

_FEW_NULLS = 0.01
"""Up to this share of rows without a watermark they are read with every run, when a key keeps them from doubling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPosition:
    """Where a dataset stands: what its next run starts from."""

    sequence: int = 0
    """The last run that was committed."""
    epoch: int = 0
    """Grows when the dataset is begun anew."""
    column: str | None = None
    column_type: str | None = None
    lo: str | None = None
    """The next window's lower bound; None before the first run."""
    source_id: str = ""
    schema_hash: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """Rows with `lo <= w <= hi`. A bound of None is open: then everything of that side is read."""

    lo: str | None
    hi: str | None
    next_lo: str | None
    """Lower bound of the run after this one; never above `hi`, never below `lo`."""
    include_nulls: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NoChange:
    """There is nothing to read."""

    position: SyncPosition


def plan_window(
    position: SyncPosition,
    facts: WatermarkFacts,
    on_null: OnNull | None = None,
    *,
    row_estimate: int | None = None,
    has_key: bool = False,
) -> Window | NoChange:
    """Decide what to read. `on_null` is one of `OnNull`; None = decide by share and key.

    `row_estimate` is the source's own count (None: unknown). Raises `SourceError` `incremental.regressed` (the source is
    behind the last run, or is another one), `UserError` `incremental.type_changed` and `incremental.null_values`.
    """
    _refuse_another_source(position, facts)
    nulls = _nulls_wanted(facts, on_null, first=position.lo is None, row_estimate=row_estimate, has_key=has_key)
    warnings = _warnings(facts, nulls)
    if facts.highest is None:
        # No value at all yet: only rows without one can be read, and the position cannot move.
        return Window(None, None, None, True, warnings) if nulls and position.lo is None else NoChange(position)
    compare = facts.watermark_class
    if position.lo is not None and compare_watermarks(compare, facts.highest, position.lo) < 0:
        raise SourceError(
            f"the highest {facts.column} of the source is {facts.highest}, behind the last run's {position.lo}",
            code="incremental.regressed",
            hint="was the source restored from a backup, or emptied? check it, then reset the dataset or run it in full",
        )
    lowered = facts.lowered if facts.lowered is not None else facts.highest
    next_lo = lowered if compare_watermarks(compare, lowered, facts.highest) <= 0 else facts.highest
    if position.lo is not None and compare_watermarks(compare, next_lo, position.lo) < 0:
        next_lo = position.lo
    return Window(position.lo, facts.highest, next_lo, nulls, warnings)


def _refuse_another_source(position: SyncPosition, facts: WatermarkFacts) -> None:
    if position.lo is None:
        return
    if position.source_id and facts.source_id and position.source_id != facts.source_id:
        raise SourceError(
            "this is another server or database than the one of the last run",
            code="incremental.regressed",
            hint="if the source was moved on purpose, reset the dataset: its next run then loads everything anew",
        )
    if position.column not in (None, facts.column) or position.column_type not in (None, facts.column_type):
        raise UserError(
            f"the watermark was {position.column} ({position.column_type}) and is now {facts.column} ({facts.column_type})",
            code="incremental.type_changed",
            hint="reset the dataset, or run it in full once: the next incremental run starts from the new column",
        )


def _nulls_wanted(
    facts: WatermarkFacts, on_null: OnNull | None, *, first: bool, row_estimate: int | None, has_key: bool
) -> bool:
    if not facts.nulls or on_null == "exclude":
        return False
    if on_null == "always_include":
        return True
    if on_null == "include_once":
        return first
    few = row_estimate is not None and row_estimate > 0 and facts.nulls <= row_estimate * _FEW_NULLS
    if on_null is None and few and has_key:
        return True
    raise UserError(
        f"{facts.nulls} rows have no value in {facts.column}: a watermark cannot tell whether they changed",
        code="incremental.null_values",
        hint="set on_null to always_include (read them with every run), include_once or exclude, or choose another column",
    )


def _warnings(facts: WatermarkFacts, nulls: bool) -> tuple[str, ...]:
    found = []
    if facts.future:
        found.append(f"{facts.future} rows have a {facts.column} in the future; they are read when their time has come")
    if facts.nulls and not nulls:
        found.append(f"{facts.nulls} rows without a {facts.column} are not read")
    return tuple(found)
