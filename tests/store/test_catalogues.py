"""Cached catalogues: replaced as a whole, compared, paged and searched, whatever the names are."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfagent.foundation.errors import NotFound, UserError
from hfagent.model.stream import ForeignKey, Stream, WatermarkCandidate
from hfagent.store import catalogues
from hfagent.store.catalogues import CatalogueChanges
from hfagent.store.connectors import ConnectorRecord
from hfagent.store.failures import StoreFailed
from hfagent.store.store import Store
from hfagent.store.stream_rows import from_body, sort_key
from tests.store.rows import draft, names, stream

WEIRD: list[tuple[str | None, str]] = [
    (None, "no namespace"), ("", "empty namespace"), (None, "a.b"), ("a", "b"), ("a.b", "c"), ("a", "b.c"), ("s", "100%"),
    ("s", "under_score"), ("s", "underXscore"), ("s", 'quo"te'), ("s", "apo'strophe"), ("s", "back`tick"), ("s", "[x]"),
    ("s", "x"), ("s", "star*"), ("s", "quest?ion"), ("s", "Größe"), ("s", "日本語"), ("s", "😀"), ("s", "nul\0byte"),
    ("nul\0", "byte"), ("s", "new\nline"), ("s", "; DROP TABLE connector; --"), ("s", "back\\slash"), ("S", "x"),
    ("s", "x" * 10_000), ("İ", "dotted"), ("s", " "),
]  # fmt: skip


def fill(store: Store, connector: ConnectorRecord, pairs: list[tuple[str | None, str]]) -> CatalogueChanges:
    return store.catalogues.replace(connector.id, [stream(*pair) for pair in pairs], namespaces=["s"])


def test_streams_come_back_with_everything_known_about_them(store: Store, connector: ConnectorRecord) -> None:
    full = stream(
        "public", "orders", columns=30, kind="view", primary_key=("c0",), primary_key_source="declared",
        unique_keys=(("c1", "c2"),), row_estimate=10**12, readable="yes", capabilities=("full", "incremental"),
        foreign_keys=(ForeignKey(columns=("c3",), references_name="x", references_columns=("id",)),),
        watermark_candidates=(WatermarkCandidate(column="c4", score=0.9, reasons=("indexed",)),),
        description="“Bestellungen”", details={"deep": [1, {"x": None}]}, warnings=("slow",),
    )  # fmt: skip
    changes = store.catalogues.replace(
        connector.id, [full, stream(None, "tiny", columns=0)], namespaces=["public"], warnings=["some hidden"],
        discovered_at="2026-01-02T03:04:05.000Z",
    )  # fmt: skip
    assert changes == CatalogueChanges(added=("tiny", "public.orders"), removed=(), changed=(), total=2)
    page = store.catalogues.page(connector.id)
    assert page is not None
    assert page.streams[1] == full
    assert (page.total, page.namespaces, page.warnings, page.discovered_at, page.cached, page.next_page) == (
        2, ("public",), ("some hidden",), "2026-01-02T03:04:05.000Z", True, None,
    )  # fmt: skip
    assert store.catalogues.get(connector.id, "public.orders") == full
    assert store.catalogues.get(connector.id, '"public"."orders"') == full
    assert store.catalogues.get(connector.id, "public.Orders") is None
    assert store.catalogues.get(connector.id, 'public."oops') is None
    bare = store.catalogues.page(connector.id, names_only=True)
    assert bare is not None
    assert bare.streams[1] == Stream(
        id=full.id, namespace="public", name="orders", kind="view", schema_hash=full.schema_hash
    )


def test_nothing_cached_is_not_the_same_as_an_empty_catalogue(store: Store, connector: ConnectorRecord) -> None:
    assert store.catalogues.page(connector.id) is None
    assert store.catalogues.summary(connector.id) is None
    assert store.catalogues.count(connector.id) == 0
    store.catalogues.replace(connector.id, [], namespaces=["public"])
    page = store.catalogues.page(connector.id)
    assert page is not None
    assert (page.streams, page.total) == ((), 0)
    store.catalogues.remove(connector.id)
    assert store.catalogues.page(connector.id) is None


def test_a_discovery_tells_what_changed(store: Store, connector: ConnectorRecord) -> None:
    first = [stream("s", name) for name in ("same", "wider", "renamed", "dropped", "counted")]
    store.catalogues.replace(connector.id, first, namespaces=["s"])
    second = [
        stream("s", "same"), stream("s", "wider", columns=3), stream("s", "renamed2"), stream("s", "new"),
        stream("s", "counted", row_estimate=5),
    ]  # fmt: skip
    changes = store.catalogues.replace(connector.id, second, namespaces=["s"])
    assert changes == CatalogueChanges(
        added=("s.new", "s.renamed2"), removed=("s.dropped", "s.renamed"), changed=("s.wider",), total=5
    )
    counted = store.catalogues.get(connector.id, "s.counted")
    assert counted is not None
    assert counted.row_estimate == 5
    again = store.catalogues.replace(connector.id, second, namespaces=["s"])
    assert again == CatalogueChanges((), (), (), 5)


def test_connectors_do_not_see_each_other(store: Store, connector: ConnectorRecord) -> None:
    other = store.connectors.insert(draft(store, "Other"))
    fill(store, connector, [("a", "one")])
    fill(store, other, [("a", "two")])
    assert fill(store, connector, [("a", "three")]).removed == ("a.one",)
    assert names(store, other.id) == ["a.two"]
    store.catalogues.remove(connector.id)
    assert names(store, other.id) == ["a.two"]


def test_a_stream_given_twice_counts_once_and_the_later_wins(store: Store, connector: ConnectorRecord) -> None:
    twice = [stream("s", "x"), stream("s", "x", columns=9)]
    assert store.catalogues.replace(connector.id, twice, namespaces=["s"]).total == 1
    found = store.catalogues.get(connector.id, "s.x")
    assert found is not None
    assert len(found.columns) == 9


def test_the_source_is_read_a_chunk_at_a_time_and_holds_no_writer_up(
    store: Store, connector: ConnectorRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogues, "CHUNK", 10)
    fill(store, connector, [("old", "only")])

    def source() -> Iterator[Stream]:
        for number in range(35):
            yield stream("s", f"t{number:02}")
            # While the source is at work: readers see the old catalogue, whole, and others may write.
            assert names(store, connector.id) == ["old.only"]
            done = threading.Thread(target=store.meta.set, args=("written", str(number)))
            done.start()
            done.join(30)
            assert store.meta.get("written") == str(number)

    assert store.catalogues.replace(connector.id, source(), namespaces=["s"]).total == 35
    assert len(names(store, connector.id)) == 35


def test_a_discovery_that_breaks_off_changes_nothing_and_leaves_nothing(
    store: Store, connector: ConnectorRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogues, "CHUNK", 2)
    fill(store, connector, [("s", "kept")])

    def broken() -> Iterator[Stream]:
        for number in range(5):
            yield stream("s", f"t{number}")
        raise RuntimeError("the source went away")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            store.catalogues.replace(connector.id, broken(), namespaces=["s"])
    assert names(store, connector.id) == ["s.kept"]
    assert rows(store) == 9, "the control: two times four rows were left behind to be removed"
    assert store.catalogues.tidy() == 2
    assert store.catalogues.tidy() == 0
    assert rows(store) == 1


def test_what_nobody_sees_is_removed_in_steps(
    store: Store, connector: ConnectorRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogues, "STEP", 10)
    fill(store, connector, [("s", str(number)) for number in range(40)])
    other = store.connectors.insert(draft(store, "Other"))
    fill(store, other, [("s", "kept")])
    with store.transaction():
        store.connectors.delete(connector.id)
        assert rows(store) == 41, "not within the transaction: it may yet be undone"
    assert rows(store) == 41
    assert store.catalogues.tidy() == 1
    assert rows(store) == 1
    with store.transaction(reclaiming=True):
        store.connectors.delete(other.id)
    assert rows(store) == 0


def test_a_deletion_that_is_undone_keeps_the_catalogue(store: Store, connector: ConnectorRecord) -> None:
    fill(store, connector, [("s", "kept")])
    with pytest.raises(RuntimeError), store.transaction():
        store.connectors.delete(connector.id)
        raise RuntimeError("changed my mind")
    store.catalogues.tidy()
    assert names(store, connector.id) == ["s.kept"]


def test_a_connector_deleted_while_it_is_discovered(store: Store, connector: ConnectorRecord) -> None:
    def source() -> Iterator[Stream]:
        for number in range(catalogues.CHUNK + 1):
            yield stream("s", str(number))
        store.connectors.delete(connector.id)

    with pytest.raises(NotFound):
        store.catalogues.replace(connector.id, source(), namespaces=["s"])
    assert store.catalogues.tidy() == 1
    assert rows(store) == 0


def rows(store: Store) -> int:
    with store._database.reading() as connection:
        return int(connection.execute("SELECT count(*) FROM catalogue_stream").fetchone()[0])


def test_two_discoveries_at_once_do_not_mix(store: Store, connector: ConnectorRecord) -> None:
    def outer() -> Iterator[Stream]:
        yield stream("outer", "a")
        assert store.catalogues.replace(connector.id, [stream("inner", "b")], namespaces=[]).total == 1
        assert names(store, connector.id) == ["inner.b"]
        yield stream("outer", "c")

    changes = store.catalogues.replace(connector.id, outer(), namespaces=[])
    assert (changes.added, changes.removed) == (("outer.a", "outer.c"), ("inner.b",))
    assert names(store, connector.id) == ["outer.a", "outer.c"]
    assert rows(store) == 2


def test_a_damaged_row_is_told_with_its_remedy(store: Store, connector: ConnectorRecord) -> None:
    fill(store, connector, [("s", "x")])
    for body in (b"zbroken", b"j{}", b"?", b""):
        with store._database.transaction() as connection:
            connection.execute("UPDATE catalogue_stream SET body = ?", (body,))
        with pytest.raises(StoreFailed, match="cannot be read") as caught:
            store.catalogues.page(connector.id)
        assert "refresh" in (caught.value.hint or "")
    assert fill(store, connector, [("s", "x")]).total == 1


def test_small_bodies_are_not_blown_up() -> None:
    from hfagent.store.stream_rows import to_row

    tiny = stream(None, "t", columns=0)
    assert to_row(tiny)[-1][:1] == b"j"
    assert from_body(to_row(tiny)[-1]) == tiny
    wide = stream("s", "t", columns=50)
    assert to_row(wide)[-1][:1] == b"z"
    assert len(to_row(wide)[-1]) < len(wide.model_dump_json()) / 4


# ---- order, pages, weird names


@pytest.mark.parametrize("limit", [1, 3, 500])
def test_pages_cover_every_name_once_in_a_stable_order(store: Store, connector: ConnectorRecord, limit: int) -> None:
    fill(store, connector, WEIRD)
    expected = sorted(WEIRD, key=lambda pair: (pair[0] is not None, pair[0] or "", pair[1]))
    found = []
    token = None
    while True:
        page = store.catalogues.page(connector.id, after_token=token, limit=limit)
        assert page is not None
        assert len(page.streams) <= limit
        assert page.total == len(WEIRD)
        found += [(entry.namespace, entry.name) for entry in page.streams]
        token = page.next_page
        if token is None:
            break
    assert found == expected


def test_every_weird_name_is_found_by_its_id(store: Store, connector: ConnectorRecord) -> None:
    fill(store, connector, WEIRD)
    for pair in WEIRD:
        wanted = stream(*pair)
        assert store.catalogues.get(connector.id, wanted.id) == wanted


def full_name(pair: tuple[str | None, str]) -> str:
    return pair[1] if pair[0] is None else f"{pair[0]}.{pair[1]}"


@pytest.mark.parametrize(
    "text",
    ["%", "_", "'", '"', "x", "X", "GRÖSSE", "größe", "日", "😀", "\0", "\n", "[", "*", "?", ".", "a.b", "drop table", "--",
     "\\", "no such text", "dotted", " ", "i̇.d"],
)  # fmt: skip
def test_search_takes_every_character_literally_and_ignores_case(
    store: Store, connector: ConnectorRecord, text: str
) -> None:
    fill(store, connector, WEIRD)
    expected = {stream(*pair).id for pair in WEIRD if text.casefold() in full_name(pair).casefold()}
    assert set(names(store, connector.id, search=text, limit=2)) == expected
    assert store.catalogues.count(connector.id, search=text) == len(expected)
    if text == "no such text":
        assert not expected
    else:
        assert expected


@pytest.mark.parametrize(
    ("include", "exclude"),
    [(["s.*"], []), (["*"], []), (["s.x"], []), ([], ["s.*"]), (["*.b*", "a.*"], ["*c"]), (["s.[[]x]"], []),
     (["s.?"], []), (["S.*"], []), (["*%*", "*_*"], []), (["*'*"], ["*;*"]), (["no.such"], []), (["[", "s.["], []),
     (["*\n*"], []), (["*" * 20 + "b"], [])],
)  # fmt: skip
def test_patterns_mean_what_the_shell_means(
    store: Store, connector: ConnectorRecord, include: list[str], exclude: list[str]
) -> None:
    fill(store, connector, WEIRD)
    expected = {
        stream(*pair).id
        for pair in WEIRD
        if (not include or any(fnmatch.fnmatchcase(full_name(pair), pattern) for pattern in include))
        and not any(fnmatch.fnmatchcase(full_name(pair), pattern) for pattern in exclude)
    }
    assert set(names(store, connector.id, include=include, exclude=exclude, limit=4)) == expected
    assert store.catalogues.count(connector.id, include=include, exclude=exclude) == len(expected)


@pytest.mark.timeout(20)
def test_a_pattern_cannot_block_the_store(store: Store, connector: ConnectorRecord) -> None:
    """SQLite's own GLOB, or a backtracking expression, would need longer than the universe has for these."""
    fill(store, connector, [("s", "a" * 5000 + str(number)) for number in range(50)])
    for pattern in ("*a" * 50 + "*b", "*" * 500 + "b", "?*" * 100 + "b", "*[a]*[a]*[a]*[a]*[a]*[a]*[a]*b"):
        assert names(store, connector.id, include=[pattern]) == []


def test_namespaces_narrow_and_combine_with_the_rest(store: Store, connector: ConnectorRecord) -> None:
    fill(store, connector, WEIRD)
    assert names(store, connector.id, namespaces=["S", "nul\0"]) == ["S.x", "nul\0.byte"]
    assert names(store, connector.id, namespaces=[""]) == ['"".empty namespace']
    assert names(store, connector.id, namespaces=["s"], search="%", exclude=["*x*"]) == ["s.100%"]
    assert names(store, connector.id, namespaces=["'; DROP"]) == []


@pytest.mark.parametrize("token", ["!", "****", "a", "é", "not a token at all"])
def test_a_token_that_is_none_is_refused(store: Store, connector: ConnectorRecord, token: str) -> None:
    fill(store, connector, [("s", "x")])
    with pytest.raises(UserError, match="page token") as caught:
        store.catalogues.page(connector.id, after_token=token)
    assert caught.value.code == "request.invalid_params"


def test_paging_goes_on_sensibly_when_the_catalogue_changes_between_pages(
    store: Store, connector: ConnectorRecord
) -> None:
    fill(store, connector, [("s", name) for name in "abcdef"])
    page = store.catalogues.page(connector.id, limit=3)
    assert page is not None
    fill(store, connector, [("s", name) for name in "bdeg"])
    rest = store.catalogues.page(connector.id, after_token=page.next_page, limit=3)
    assert rest is not None
    assert [entry.name for entry in rest.streams] == ["d", "e", "g"]


pairs = st.tuples(st.none() | st.text(max_size=4), st.text(max_size=4))


@given(pairs, pairs)
def test_sort_keys_compare_as_the_pairs_do_and_are_never_shared(
    one: tuple[str | None, str], two: tuple[str | None, str]
) -> None:
    def order(pair: tuple[str | None, str]) -> tuple[bool, bytes, bytes]:
        return pair[0] is not None, (pair[0] or "").encode(), pair[1].encode()

    assert (sort_key(*one) < sort_key(*two)) == (order(one) < order(two))
    assert (sort_key(*one) == sort_key(*two)) == (one == two)


def test_ten_thousand_streams(store: Store, connector: ConnectorRecord, path: Path) -> None:
    made = (stream(f"s{number % 7}", f"table_{number:05}", columns=20) for number in range(10_000))
    assert store.catalogues.replace(connector.id, made, namespaces=[]).total == 10_000
    assert store.catalogues.count(connector.id, search="TABLE_0999") == 10
    assert len(names(store, connector.id, names_only=True)) == 10_000
    with store._database.reading() as connection:
        size = connection.execute("SELECT sum(length(body)) FROM catalogue_stream").fetchone()[0]
    assert size < 10_000 * 600, "compressed: some hundred bytes for twenty columns"
