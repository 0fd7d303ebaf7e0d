"""The filters and updates of SQLite against a MongoDB-protocol server, on random cases."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.store import Store, StoreError, open_store

KEYS = ["a", "b", "0", "status"]  # few, so that filters meet documents
PATHS = ["a", "b", "status", "k", "a.a", "a.b", "b.a", "a.b.a", "_id"]
MOMENT = datetime(2026, 11, 22, 12, tzinfo=UTC)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, -1, 2**53 + 1, 2**62, 1.0, 1.5, -0.0, 2.0**62, float(2**53)]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.sampled_from(["", "a", "b", "ab", "PENDING", "é", "\U0001f600"]),
    st.sampled_from([b"", b"a", b"ab", MOMENT, MOMENT.replace(year=2025)]),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=5,
)
bodies = st.dictionaries(st.sampled_from([*KEYS, "k"]), values, max_size=4)
documents = st.lists(bodies, min_size=1, max_size=8).map(
    lambda found: [
        {"_id": "x" if n == 7 else n, **{k: v for k, v in body.items() if k != "0"}}
        for n, body in enumerate(found)
    ]
)


def operators() -> st.SearchStrategy[dict]:
    def one(name: str, operand: st.SearchStrategy) -> st.SearchStrategy[dict]:
        return operand.map(lambda value: {name: value})

    single = st.one_of(
        *(one(name, values) for name in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")),
        *(one(name, st.lists(values, max_size=3)) for name in ("$in", "$nin")),
        one("$exists", st.booleans()),
        one("$size", st.integers(0, 3)),
        one("$regex", st.sampled_from(["a", "^a", "b$", "PEND|^$"])),
        one(
            "$elemMatch",
            st.dictionaries(st.sampled_from(PATHS[:4]), values, min_size=1, max_size=2),
        ),
    )
    pair = st.tuples(single, single).map(lambda two: {**two[0], **two[1]})
    plain = st.one_of(single, pair)
    negated = plain.map(lambda found: {"$not": found})
    element = plain.map(lambda found: {"$elemMatch": found})
    return st.one_of(plain, plain, negated, element)


def clauses(inside: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    condition = st.one_of(values, operators())
    field = st.dictionaries(st.sampled_from(PATHS), condition, min_size=1, max_size=2)
    joined = st.tuples(
        st.sampled_from(["$and", "$or", "$nor"]), st.lists(inside, min_size=1, max_size=3)
    ).map(lambda pair: {pair[0]: pair[1]})
    return st.one_of(field, field, joined)


simple = st.dictionaries(st.sampled_from(PATHS), scalars, min_size=1, max_size=2)
filters: st.SearchStrategy[dict] = st.recursive(simple, clauses, max_leaves=4)

new_values = st.one_of(values, values, st.sampled_from([5, 2**63 - 1]))
update_paths = st.sampled_from(["a", "b", "a.a", "a.b", "b.a", "a.b.a", "c.d.e", "status", "k"])
updates = st.fixed_dictionaries(
    {},
    optional={
        "$set": st.dictionaries(update_paths, new_values, min_size=1, max_size=2),
        "$unset": st.dictionaries(update_paths, st.just(""), min_size=1, max_size=2),
        "$inc": st.dictionaries(
            update_paths, st.sampled_from([1, -2, 0.5, math.inf, 2**62]), min_size=1, max_size=2
        ),
        "$push": st.dictionaries(
            update_paths,
            st.one_of(values, st.lists(values, max_size=2).map(lambda v: {"$each": v})),
            min_size=1,
            max_size=2,
        ),
        "$setOnInsert": st.dictionaries(st.sampled_from(["z", "a.z"]), values, max_size=1),
    },
).filter(bool)

relaxed = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def exact(value: Any) -> str:
    """A text that tells NaN, types and values apart, but not the order of fields."""
    if isinstance(value, list):
        return f"[{', '.join(map(exact, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {exact(v)}' for k, v in sorted(value.items()))}}}"
    return repr(value)


class Pair:
    """The same collection in both stores, anew for each example."""

    def __init__(self, ours: Store, theirs: Store) -> None:
        self.ours, self.theirs = ours, theirs
        for path in ("k", "a.b"):
            ours.ensure_index("indexed", path)

    def fill(self, documents: list[dict], *, indexed: bool = False) -> str:
        """Both stores with these documents only; the name of their collection."""
        name = "indexed" if indexed else "plain"
        for store in (self.ours, self.theirs):
            store.delete(name, {})
            assert store.insert(name, documents) == [d["_id"] for d in documents]
        self.ours.delete("neighbour", {})  # the same documents, to be left alone
        self.ours.insert("neighbour", documents)
        return name


@pytest.fixture(scope="module", params=["secantus"])
def pair(request, new_database, tmp_path_factory) -> Iterator[Pair]:
    pytest.importorskip("secantus")
    path: Path = tmp_path_factory.mktemp("oracle") / "assay.sqlite"
    with (
        contextlib.closing(open_store(str(path))) as ours,
        contextlib.closing(open_store(new_database(request.param))) as theirs,
    ):
        yield Pair(ours, theirs)


@relaxed
@given(
    documents=documents, queries=st.lists(filters, min_size=1, max_size=12), indexed=st.booleans()
)
def test_filters_find_the_same(
    pair: Pair, documents: list[dict], queries: list[dict], indexed: bool
) -> None:
    name = pair.fill(documents, indexed=indexed)
    for query in queries:
        found = [[d["_id"] for d in store.find(name, query)] for store in (pair.ours, pair.theirs)]
        assert found[0] == found[1], query
        assert pair.ours.count(name, query) == len(found[0])


@relaxed
@given(documents=documents, update=updates, many=st.booleans(), upsert=st.booleans())
def test_updates_change_the_same(
    pair: Pair, documents: list[dict], update: dict, many: bool, upsert: bool
) -> None:
    name = pair.fill(documents, indexed=True)
    for identity in [None] if many else [0, "new" if upsert else 1]:
        query = {} if many else {"_id": identity}
        results = []
        for store in (pair.ours, pair.theirs):
            try:
                options = {"many": many, "upsert": upsert and not many}
                results.append(store.update(name, query, copy.deepcopy(update), **options))
            except StoreError:
                results.append("refused")
        if many and results == ["refused", "refused"]:
            return  # MongoDB has changed some documents before the one that it could not
        assert results[0] == results[1]
        ours, theirs = pair.ours.find(name), pair.theirs.find(name)
        # MongoDB ≥ 5 sorts the fields that it adds, and so do we; the server here does not.
        assert exact(ours) == exact(theirs)
    assert [exact(d) for d in pair.ours.find("neighbour")] == [exact(d) for d in documents]
    problems = pair.ours.check()
    assert problems == []


@settings(relaxed, max_examples=60)
@given(
    documents=documents,
    sort=st.lists(
        st.tuples(st.sampled_from(["k", "status", "b.a"]), st.sampled_from([1, -1])), max_size=1
    ),
    limit=st.integers(0, 4),
    skip=st.integers(0, 3),
)
def test_sorts_are_the_same(
    pair: Pair, documents: list[dict], sort: list, limit: int, skip: int
) -> None:
    name = pair.fill(documents)
    found = [
        [d["_id"] for d in store.find(name, sort=sort, limit=limit, skip=skip, fields=["_id"])]
        for store in (pair.ours, pair.theirs)
    ]
    assert found[0] == found[1]


@settings(relaxed, max_examples=60)
@given(documents=documents, fields=st.lists(st.sampled_from(PATHS[:-1]), max_size=3))
def test_projections_are_the_same(pair: Pair, documents: list[dict], fields: list[str]) -> None:
    name = pair.fill(documents)
    ours, theirs = (store.find(name, fields=fields) for store in (pair.ours, pair.theirs))
    assert repr(ours) == repr(theirs)
