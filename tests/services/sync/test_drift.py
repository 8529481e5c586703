"""Changes of a stream's columns: what they are called, and what each policy makes of them."""

from __future__ import annotations

from itertools import product

import pytest

from hfagent.foundation.errors import CODES, AgentError
from hfagent.model.data_type import DataType
from hfagent.model.dataset import SchemaPolicy
from hfagent.model.stream import Column
from hfagent.services.sync.drift import Drift, compare_schemas, widens

POLICIES: tuple[SchemaPolicy, ...] = ("evolve_add", "evolve", "freeze", "discard_column", "pause")
BASE = ("id:int64", "name:string", "changed:timestamptz")

WIDENING = [
    ("int8", "int16"), ("int8", "int64"), ("int16", "int32"), ("int32", "int64"),
    ("uint8", "uint16"), ("uint16", "uint32"), ("uint32", "uint64"), ("uint8", "int16"), ("uint32", "int64"),
    ("int8", "decimal(3,0)"), ("int32", "decimal(12,2)"), ("int64", "decimal(19,0)"), ("uint64", "decimal(20,0)"),
    ("float32", "float64"), ("decimal(10,2)", "decimal(12,2)"), ("decimal(10,2)", "decimal(12,4)"),
    ("decimal(10,2)", "decimal(38,2)"), ("timestamp(s)", "timestamp(ms)"), ("timestamptz", "timestamptz(ns)"),
    ("time(s)", "time"), ("array<int32>", "array<int64>"), ("vector(3)", "vector"),
]  # fmt: skip

NOT_WIDENING = [
    ("int8", "uint8"), ("int8", "uint64"), ("uint8", "int8"), ("uint32", "int32"), ("uint64", "int64"),
    ("int32", "decimal(11,2)"), ("int64", "decimal(18,0)"), ("uint64", "decimal(19,0)"), ("int32", "float64"),
    ("int64", "decimal(60,2)"), ("decimal(10,2)", "decimal(10,3)"),
    ("decimal(10,2)", "decimal(12,1)"), ("decimal(38,2)", "decimal(40,2)"), ("decimal(10,2)", "bigdecimal"),
    ("decimal(10,2)", "int64"), ("float32", "decimal(38,10)"), ("date", "timestamp"), ("date", "timestamptz"),
    ("timestamp", "timestamptz"), ("timestamp", "timestamp(ms)"), ("uuid", "string"), ("json", "string"),
    ("int32", "string"), ("string", "bytes"), ("array<int32>", "array<string>"), ("vector(3)", "vector(4)"),
    ("bool", "int8"), ("int64", "int64"), ("string", "string"),
]  # fmt: skip


def columns(*declared: str) -> tuple[Column, ...]:
    """From `name:type`, in this order."""
    pairs = [text.split(":", 1) for text in declared]
    return tuple(Column(name=n, type=DataType.parse(t), native_type=t, ordinal=i) for i, (n, t) in enumerate(pairs, 1))


def drift(*new: str, policy: SchemaPolicy = "evolve_add", old: tuple[str, ...] = BASE) -> Drift:
    return compare_schemas(columns(*old), columns(*new), policy=policy, watermark_column="changed", primary_key=("id",))


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), WIDENING)
def test_widening(old: str, new: str) -> None:
    assert widens(DataType.parse(old), DataType.parse(new))
    assert not widens(DataType.parse(new), DataType.parse(old))


@pytest.mark.parametrize(("old", "new"), NOT_WIDENING)
def test_no_widening(old: str, new: str) -> None:
    assert not widens(DataType.parse(old), DataType.parse(new))


def test_integers_widen_exactly_when_the_range_does() -> None:
    """Against the ranges themselves, not against a second table."""
    bits = (8, 16, 32, 64)
    ranges = {f"int{n}": (-(2 ** (n - 1)), 2 ** (n - 1) - 1) for n in bits} | {f"uint{n}": (0, 2**n - 1) for n in bits}
    for (old, (low, high)), (new, (lowest, highest)) in product(ranges.items(), ranges.items()):
        expected = old != new and lowest <= low and high <= highest
        assert widens(DataType.parse(old), DataType.parse(new)) is expected, f"{old} to {new}"
    for name, (low, high) in ranges.items():
        digits = max(len(str(abs(low))), len(str(high)))
        for precision, scale in product(range(1, 39), range(4)):
            if scale <= precision:
                expected = precision - scale >= digits
                assert widens(DataType.parse(name), DataType.decimal(precision, scale)) is expected


def test_widening_is_transitive() -> None:
    types = sorted({DataType.parse(t) for pair in WIDENING for t in pair}, key=str)
    for a, b, c in product(types, types, types):
        if widens(a, b) and widens(b, c):
            assert widens(a, c), f"{a} to {b} to {c}"


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_changed(policy: SchemaPolicy) -> None:
    assert drift(*BASE, policy=policy) == Drift()
    assert drift(*reversed(BASE), policy=policy) == Drift(), "the order of columns does not matter"
    renamed_type = tuple(c.model_copy(update={"native_type": "x", "nullable": False}) for c in columns(*BASE))
    assert compare_schemas(columns(*BASE), renamed_type, policy=policy) == Drift()
    assert Drift().error() is None


def test_added_and_removed() -> None:
    found = drift("id:int64", "changed:timestamptz", "amount:decimal(10,2)")
    assert [c.name for c in found.added] == ["amount"]
    assert [c.name for c in found.removed] == ["name"]
    assert (found.verdict, found.code, found.possible_renames, found.error()) == ("apply", None, (), None)
    assert "new amount" in found.message and "gone name" in found.message


def test_possible_renames() -> None:
    assert drift("id:int64", "title:string", "changed:timestamptz").possible_renames == (("name", "title"),)
    assert drift("id:int64", "changed:timestamptz", "title:string").possible_renames == (("name", "title"),)
    assert drift("id:int64", "title:int32", "changed:timestamptz").possible_renames == ()
    two = ("a:string", "b:string", *BASE)
    assert drift("x:string", "b:string", *BASE, old=two).possible_renames == (("a", "x"),)
    assert drift("x:string", "y:string", *BASE, old=two).possible_renames == (("a", "x"), ("b", "y"))
    assert drift("B:string", "A:string", *BASE, old=two).possible_renames == (("a", "A"), ("b", "B"))
    ambiguous = drift(*BASE, "x:string", "y:string", old=two)
    assert ambiguous.possible_renames == () and len(ambiguous.added) == len(ambiguous.removed) == 2


def test_renames_are_still_removed_and_added() -> None:
    found = drift("id:int64", "title:string", "changed:timestamptz")
    assert ([c.name for c in found.removed], [c.name for c in found.added]) == (["name"], ["title"])
    assert "perhaps renamed name → title" in found.message


def test_kinds_of_type_changes() -> None:
    old = ("a:int32", "b:int64", "c:date", *BASE)
    found = drift("a:int64", "b:int32", "c:timestamp", *BASE, old=old)
    assert [str(c) for c in found.widened] == ["a (int32 → int64)"]
    assert [str(c) for c in found.narrowed] == ["b (int64 → int32)"]
    assert [str(c) for c in found.retyped] == ["c (date → timestamp)"]


# --- what follows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "verdicts"),
    [
        (("name:string", "more:int32"), "apply apply pause apply pause"),
        ((), "apply apply pause apply pause"),
        (("name:string", "n:int64"), "apply apply pause apply pause"),
        (("name:string", "n:int16"), "pause apply pause pause pause"),
        (("name:string", "n:string"), "pause apply pause pause pause"),
        (("name:string", "n:date"), "pause pause pause pause pause"),
    ],
)
def test_policies(change: tuple[str, ...], verdicts: str) -> None:
    old = (*BASE, "n:int32") if any(c.startswith("n:") for c in change) else BASE
    kept = ("id:int64", "changed:timestamptz")
    for policy, verdict in zip(POLICIES, verdicts.split(), strict=True):
        found = drift(*kept, *change, policy=policy, old=old)
        assert found.verdict == verdict, f"{policy}: {found.message}"
        error = found.error()
        if verdict == "pause":
            assert found.code in CODES and found.hint and isinstance(error, AgentError)
            assert (error.code, error.message, error.retryable) == (found.code, found.message, False)
        else:
            assert (found.code, found.hint, error) == (None, None, None)


def test_codes() -> None:
    assert drift(*BASE, "more:int8", policy="freeze").code == "schema.drift_blocked"
    assert drift(*BASE, "more:int8", policy="pause").code == "schema.drift_blocked"
    assert drift(*BASE, "n:date", old=(*BASE, "n:int8")).code == "schema.type_conflict"
    assert drift("id:int64", "name:string").code == "schema.drift_blocked"
    assert drift("id:string", "name:string", "changed:timestamptz").code == "schema.type_conflict"


def test_discarded() -> None:
    assert drift(*BASE, "more:int8", "most:int8", policy="discard_column").discarded == ("more", "most")
    assert drift(*BASE, "more:int8").discarded == ()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("gone", ["id", "changed"])
def test_key_and_watermark_must_stay(policy: SchemaPolicy, gone: str) -> None:
    found = drift(*(c for c in BASE if not c.startswith(gone)), policy=policy)
    assert (found.verdict, found.code) == ("pause", "schema.drift_blocked")
    assert gone in found.message.split(";")[-1]


@pytest.mark.parametrize("gone", ["id", "changed"])
def test_a_renamed_key_is_a_lost_one(gone: str) -> None:
    found = drift(*(c.replace(f"{gone}:", "other:") for c in BASE), policy="evolve")
    assert found.possible_renames == ((gone, "other"),)
    assert found.verdict == "pause"


@pytest.mark.parametrize("new", ["id:string", "id:int32"])
def test_key_types_do_not_change_even_under_evolve(new: str) -> None:
    found = drift(new, *BASE[1:], policy="evolve")
    assert (found.verdict, found.code) == ("pause", "schema.type_conflict")


def test_a_key_may_widen() -> None:
    assert drift("id:int64", *BASE[1:], old=("id:int32", *BASE[1:])).verdict == "apply"


def test_one_bad_change_holds_the_good_ones() -> None:
    found = drift(*BASE, "more:int8", "n:date", old=(*BASE, "n:int8"))
    assert found.verdict == "pause"
    assert [c.name for c in found.added] == ["more"]


def test_unknown_policy() -> None:
    with pytest.raises(AgentError, match="discard_row") as caught:
        drift(*BASE, policy="discard_row")  # type: ignore[arg-type]
    assert caught.value.code == "config.invalid"
