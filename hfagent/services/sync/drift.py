"""What became of a stream's columns since the last run, and whether the dataset may go on.

Pure. Two descriptions are compared by name and canonical type; the order of columns, their defaults and whether the source lets
them be empty do not matter, because delivered columns may always be empty. What a policy lets pass loses no value that is
delivered already: a column that is gone stays in the target, without value in new rows.

Invariant: losing a key or the watermark column pauses under every policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from hfagent.foundation.errors import AgentError, UserError
from hfagent.model.data_type import DataType
from hfagent.model.dataset import SchemaPolicy
from hfagent.model.stream import Column

__all__ = ["Drift", "TypeChange", "Verdict", "compare_schemas", "widens"]

Verdict = Literal["unchanged", "apply", "pause"]

_BITS: Final = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
_UNSIGNED_BITS: Final = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}
_DIGITS: Final = {
    "int8": 3, "int16": 5, "int32": 10, "int64": 19, "uint8": 3, "uint16": 5, "uint32": 10, "uint64": 20,
}  # fmt: skip
_UNITS: Final = ("s", "ms", "us", "ns")
_MAX_PRECISION: Final = 38
"""A decimal of more digits is delivered as text: growing beyond is a change of type."""
_POLICIES: Final = frozenset(SchemaPolicy.__args__)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class TypeChange:
    """A column with another type than before."""

    name: str
    old: DataType
    new: DataType

    def __str__(self) -> str:
        return f"{self.name} ({self.old} → {self.new})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The differences, and what follows from them."""

    added: tuple[Column, ...] = ()
    removed: tuple[Column, ...] = ()
    """Kept in the target; new rows have no value in them."""
    widened: tuple[TypeChange, ...] = ()
    """Every old value is a value of the new type."""
    narrowed: tuple[TypeChange, ...] = ()
    """The target's type holds every new value."""
    retyped: tuple[TypeChange, ...] = ()
    """Neither."""
    possible_renames: tuple[tuple[str, str], ...] = ()
    """Old and new name of columns that came and went with one type. They are treated as removed and added all the same."""
    discarded: tuple[str, ...] = ()
    """Added columns that the policy does not deliver."""
    verdict: Verdict = "unchanged"
    message: str = ""
    """One sentence for people; empty when nothing changed."""
    code: str | None = None
    """`schema.drift_blocked` or `schema.type_conflict` when the verdict is `pause`."""
    hint: str | None = None

    def error(self) -> AgentError | None:
        """The error that a run ends with; None unless the verdict is `pause`."""
        if self.verdict != "pause":
            return None
        return UserError(self.message, code=self.code, hint=self.hint)


def compare_schemas(
    old: tuple[Column, ...],
    new: tuple[Column, ...],
    *,
    policy: SchemaPolicy = "evolve_add",
    watermark_column: str | None = None,
    primary_key: tuple[str, ...] = (),
) -> Drift:
    """Compare what a dataset was made of with what its stream has now.

    | policy | new columns | wider types | narrower types, anything to text | removed columns | other types |
    |---|---|---|---|---|---|
    | `evolve_add` | added | taken | pause | kept | pause |
    | `evolve` | added | taken | taken | kept | pause |
    | `discard_column` | left out | taken | pause | kept | pause |
    | `freeze`, `pause` | pause | pause | pause | pause | pause |

    Give only the columns that are delivered (a column that nobody selected cannot drift). Raises `UserError` `config.invalid`
    for an unknown policy.
    """
    if policy not in _POLICIES:
        raise UserError(
            f"the schema policy cannot be {policy!r}",
            code="config.invalid",
            hint="choose one of " + ", ".join(sorted(_POLICIES)),
        )
    before, after = {c.name: c for c in old}, {c.name: c for c in new}
    added = tuple(c for c in new if c.name not in before)
    removed = tuple(c for c in old if c.name not in after)
    widened, narrowed, retyped = _type_changes(before, after)
    if not (added or removed or widened or narrowed or retyped):
        return Drift()
    renames = _renames(removed, added)
    told = _told(added, removed, widened, narrowed, retyped, renames)
    code, why = _objection(policy, removed, (*narrowed, *retyped), {*primary_key, watermark_column})
    return Drift(
        added=added,
        removed=removed,
        widened=widened,
        narrowed=narrowed,
        retyped=retyped,
        possible_renames=renames,
        discarded=tuple(c.name for c in added) if policy == "discard_column" else (),
        verdict="pause" if code else "apply",
        message=f"the source's columns changed: {told}" + (f"; {why}" if why else ""),
        code=code,
        hint=_hint(code, policy),
    )


def widens(old: DataType, new: DataType) -> bool:
    """Whether every value of `old` is one of `new`, exactly, and the target can hold it under the new type.

    Integers grow into wider ones of their sign, unsigned ones into wider signed ones, both into decimals with room for all
    their digits; decimals keep their digits on both sides of the point (at most 38); float32 becomes float64; times of day and
    timestamps gain digits; arrays follow their items. A date does not become a timestamp, nor anything text.
    """
    if old == new:
        return False
    if old.kind in _DIGITS:
        return _integer_widens(old, new)
    if old.kind == "decimal":
        return new.kind == "decimal" and _room(new, _whole(old), old.scale or 0)
    if old.kind == "float32":
        return new.kind == "float64"
    if old.kind == new.kind and old.kind in ("time", "timestamp", "timestamptz"):
        return _UNITS.index(old.unit or "us") < _UNITS.index(new.unit or "us")
    if old.kind == new.kind == "array" and old.item is not None and new.item is not None:
        return widens(old.item, new.item)
    return old.kind == new.kind == "vector" and new.precision is None


def _integer_widens(old: DataType, new: DataType) -> bool:
    if new.kind == "decimal":
        return _room(new, _DIGITS[old.kind], 0)
    if old.kind in _BITS:
        return _BITS[old.kind] < _BITS.get(new.kind, 0)
    bits = _UNSIGNED_BITS[old.kind]
    return bits < max(_UNSIGNED_BITS.get(new.kind, 0), _BITS.get(new.kind, 0))


def _room(type_: DataType, whole: int, scale: int) -> bool:
    """Whether a decimal type has so many digits before and behind the point."""
    return (type_.precision or 0) <= _MAX_PRECISION and _whole(type_) >= whole and (type_.scale or 0) >= scale


def _whole(type_: DataType) -> int:
    return (type_.precision or 0) - (type_.scale or 0)


def _type_changes(
    before: dict[str, Column], after: dict[str, Column]
) -> tuple[tuple[TypeChange, ...], tuple[TypeChange, ...], tuple[TypeChange, ...]]:
    """What became wider, narrower, and something else."""
    widened, narrowed, retyped = [], [], []
    for name, column in before.items():
        if name not in after or after[name].type == column.type:
            continue
        change = TypeChange(name, column.type, after[name].type)
        if widens(change.old, change.new):
            widened.append(change)
        elif widens(change.new, change.old):
            narrowed.append(change)
        else:
            retyped.append(change)
    return tuple(widened), tuple(narrowed), tuple(retyped)


def _renames(removed: tuple[Column, ...], added: tuple[Column, ...]) -> tuple[tuple[str, str], ...]:
    """Pairs of one type: first those that differ in case only, then those in one place, then what is left unambiguously."""
    free = list(added)
    pairs: dict[str, str] = {}

    def pair(gone: Column, candidates: list[Column]) -> None:
        if gone.name not in pairs and len(candidates) == 1:
            pairs[gone.name] = candidates[0].name
            free.remove(candidates[0])

    for gone in removed:
        pair(gone, [c for c in free if _alike(c, gone) and c.name.casefold() == gone.name.casefold()])
    for gone in removed:
        pair(gone, [c for c in free if _alike(c, gone) and gone.ordinal and c.ordinal == gone.ordinal])
    for gone in removed:
        others = [other for other in removed if other.name not in pairs and _alike(other, gone)]
        if len(others) == 1:
            pair(gone, [c for c in free if _alike(c, gone)])
    return tuple((gone.name, pairs[gone.name]) for gone in removed if gone.name in pairs)


def _alike(a: Column, b: Column) -> bool:
    return a.type == b.type and a.native_type == b.native_type


def _objection(
    policy: SchemaPolicy, removed: tuple[Column, ...], changed: tuple[TypeChange, ...], vital: set[str | None]
) -> tuple[str | None, str]:
    """The code and the reason to pause, if there is one. `changed` are the types that did not become wider."""
    gone = [column.name for column in removed if column.name in vital]
    if gone:
        return "schema.drift_blocked", f"the dataset needs {', '.join(gone)} as its key or watermark"
    turned = [change for change in changed if change.name in vital]
    if turned:
        return "schema.type_conflict", f"{', '.join(map(str, turned))} is the dataset's key or watermark"
    if policy in ("freeze", "pause"):
        return "schema.drift_blocked", f"the schema policy {policy} lets no change pass"
    unfit = [change for change in changed if not (policy == "evolve" and _taken(change))]
    if unfit:
        return "schema.type_conflict", f"{', '.join(map(str, unfit))} does not fit the values delivered so far"
    return None, ""


def _taken(change: TypeChange) -> bool:
    """What `evolve` takes on top: text for anything, and a narrower type, whose values the old one holds."""
    return change.new.kind == "string" or widens(change.new, change.old)


def _hint(code: str | None, policy: SchemaPolicy) -> str | None:
    if code is None:
        return None
    if code == "schema.type_conflict":
        return "reset the dataset, so that it is read in full with the new types, or exclude the column"
    if policy in ("freeze", "pause"):
        return "undo the change in the source, or set the schema policy to evolve_add to take it"
    return "choose another key or watermark column, or bring the column back in the source"


def _told(
    added: tuple[Column, ...],
    removed: tuple[Column, ...],
    widened: tuple[TypeChange, ...],
    narrowed: tuple[TypeChange, ...],
    retyped: tuple[TypeChange, ...],
    renames: tuple[tuple[str, str], ...],
) -> str:
    parts = (
        ("new", [column.name for column in added]),
        ("gone", [column.name for column in removed]),
        ("wider", [str(change) for change in widened]),
        ("narrower", [str(change) for change in narrowed]),
        ("another type", [str(change) for change in retyped]),
        ("perhaps renamed", [f"{before} → {after}" for before, after in renames]),
    )
    return "; ".join(f"{title} {', '.join(names)}" for title, names in parts if names)
