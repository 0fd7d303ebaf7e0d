"""What every store must do: one suite, run on each kind of store there is."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime, timedelta, timezone

import bson
import pytest

from orchestrator.store import DuplicateKey, Store, StoreError


class _Something:
    """No document can hold it; named alike in every test process."""

    def __repr__(self) -> str:
        return "something"


SOMETHING = _Something()


NOON = datetime(2026, 11, 22, 12, 0, 0, 123000, tzinfo=UTC)


def ids(documents: list[dict]) -> list:
    return [document["_id"] for document in documents]


def fill(store: Store, *documents: dict) -> None:
    assert store.insert("sweep", documents) == [d["_id"] for d in documents]


# --- documents -----------------------------------------------------------------------------------


def test_every_kind_of_value_comes_back_as_it_was(store: Store) -> None:
    document = {
        "_id": 1,
        "none": None,
        "bools": [True, False],
        "ints": [0, -1, 2**31, 2**63 - 1, -(2**63)],
        "floats": [0.0, 0.1, -1e308, 5e-324, math.inf, -math.inf],
        "text": "ünï\U0001f600 \0 \n",
        "bytes": b"\0\xff" * 10,
        "time": NOON,
        "nested": {"a": {"b": [{"c": []}, {}, [[1], []]]}},
        "order": {"z": 1, "a": 2, "": 3, "0": 4},
    }
    fill(store, document)
    found = store.find_one("sweep")
    assert found == document
    assert list(found["order"]) == ["z", "a", "", "0"]
    assert [type(v) for v in found["bools"]] == [bool, bool]
    assert found["time"].tzinfo is not None


def test_integers_and_floats_stay_what_they_are(store: Store) -> None:
    fill(store, {"_id": 1, "int": 1, "float": 1.0, "bool": True})
    found = store.find_one("sweep")
    assert isinstance(found["float"], float)
    assert isinstance(found["int"], int)
    assert found["bool"] is True


def test_nan_and_infinity_are_results_too(store: Store) -> None:
    values = {1: math.nan, 2: math.inf, 3: -math.inf, 4: 0.5}
    fill(store, *({"_id": i, "x": v} for i, v in values.items()))
    store.update("sweep", {"_id": 4}, {"$set": {"result": {"loss": math.nan}}})
    assert math.isnan(store.find_one("sweep", {"_id": 1})["x"])
    assert ids(store.find("sweep", {"x": math.nan})) == [1]
    assert ids(store.find("sweep", {"result.loss": math.nan})) == [4]
    assert ids(store.find("sweep", {"x": math.inf})) == [2]
    assert ids(store.find("sweep", {"x": {"$in": [-math.inf, math.nan]}})) == [1, 3]
    assert ids(store.find("sweep", {"x": {"$gt": 0}})) == [2, 4]
    assert ids(store.find("sweep", {"x": {"$lt": 1}})) == [3, 4]
    assert ids(store.find("sweep", {"x": {"$lt": math.nan}})) == []
    assert ids(store.find("sweep", {"x": {"$lte": math.nan}})) == [1]
    assert ids(store.find("sweep", {"x": {"$ne": math.nan}})) == [2, 3, 4]
    assert ids(store.find("sweep", sort=[("x", 1)])) == [1, 3, 4, 2]
    counts = store.counts("sweep", "x")
    assert {repr(key): n for key, n in counts.items()} == {"nan": 1, "inf": 1, "-inf": 1, "0.5": 1}


def test_datetimes_are_utc_milliseconds(store: Store) -> None:
    east = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    fill(
        store,
        {"_id": 1, "t": NOON + timedelta(microseconds=456)},
        {"_id": 2, "t": east},
        {"_id": 3, "t": NOON.replace(tzinfo=None)},
    )
    assert [document["t"] for document in store.find("sweep")] == [NOON] * 3
    assert store.count("sweep", {"t": east}) == 3
    assert store.count("sweep", {"t": {"$gt": NOON}}) == 0
    assert store.count("sweep", {"t": {"$lt": NOON + timedelta(milliseconds=1)}}) == 3


@pytest.mark.parametrize(
    "document",
    [
        {"x": 1},
        {"_id": None},
        {"_id": True},
        {"_id": 1.5},
        {"_id": bson.ObjectId("6b02b7316aab0f5cc07b9c00")},
        {"_id": 2**63},
        {"_id": 1, "a.b": 1},
        {"_id": 1, "a": {"b": [{"c.d": 1}]}},
        {"_id": 1, "$set": 1},
        {"_id": 1, "a": {"$gt": 1}},
        {"_id": 1, 5: "five"},
        {"_id": 1, "n\0ul": 1},
        {"_id": 1, "x": 2**63},
        {"_id": 1, "x": SOMETHING},
        {"_id": 1, "x": {1, 2}},
        {"_id": 1, "x": "\ud800"},
        {"_id": 1, "x": b"0" * (16 * 1024 * 1024)},
    ],
    ids=lambda document: repr(document)[:40],
)
def test_what_cannot_be_stored_is_refused(store: Store, document: dict) -> None:
    with pytest.raises(StoreError) as caught:
        store.insert("sweep", [{"_id": 0}, document])
    assert "\n" not in str(caught.value)
    assert store.count("sweep") == 0  # not even the good one


@pytest.mark.parametrize(
    "name", ["", "a b", "ä", "a/b", "$a", ".a", "a.", "a..b", "system.x", "assay.blobs", "x" * 101]
)
def test_bad_collection_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="collection"):
        store.insert(name, [{"_id": 1}])
    with pytest.raises(StoreError, match="collection"):
        store.find(name)


def test_collections_can_have_dots_dashes_and_underscores(store: Store) -> None:
    for name in ("a.b-c_D9", "metrics"):
        store.insert(name, [{"_id": 1, "name": name}])
    store.insert("assay.workers", [{"_id": "w"}])
    store.put_blob("metrics/1/1/x", b"x")
    assert store.collections() == ["a.b-c_D9", "metrics"]
    assert store.collections(internal=True) == ["a.b-c_D9", "assay.workers", "metrics"]
    assert store.find_one("a.b-c_D9")["name"] == "a.b-c_D9"


def test_what_is_not_there(store: Store) -> None:
    assert store.find("nowhere") == []
    assert store.find_one("nowhere", {"_id": 1}) is None
    assert store.count("nowhere") == 0
    assert store.counts("nowhere", "status") == {}
    assert store.update("nowhere", {"_id": 1}, {"$set": {"x": 1}}) == 0
    assert store.claim("nowhere", {}, {"$set": {"x": 1}}, limit=5) == []
    assert store.delete("nowhere", {}) == 0
    assert store.indexes("nowhere") == {}
    assert store.insert("nowhere", []) == []
    assert store.collections() == []
    store.drop("nowhere")


def test_drop_takes_everything_but_the_ids(store: Store) -> None:
    assert store.allocate_ids("sweep", 3) == 1
    fill(store, {"_id": 1, "k": 1})
    store.ensure_unique("sweep", "k")
    store.put_blob("sweep/1/1/rows", b"r")
    store.put_blob("sweep2/1/1/rows", b"r")
    store.drop("sweep")
    assert store.collections() == []
    assert store.indexes("sweep") == {}
    assert store.blob_keys() == ["sweep2/1/1/rows"]
    assert store.insert("sweep", [{"_id": 1, "k": 1}, {"_id": 2, "k": 1}]) == [1, 2]
    assert store.allocate_ids("sweep", 1) == 4


# --- insert, unique ------------------------------------------------------------------------------


def test_insert_leaves_out_what_is_there(store: Store) -> None:
    store.ensure_unique("sweep", "assay.identity")

    def document(i: int, identity: str) -> dict:
        return {"_id": i, "assay": {"identity": identity}}

    assert store.insert("sweep", [document(1, "a"), document(2, "b")]) == [1, 2]
    later = [document(2, "c"), document(3, "a"), document(4, "d"), document(5, "d")]
    assert store.insert("sweep", later) == [4]
    assert store.insert("sweep", [{"_id": 6}, {"_id": 7}, {"_id": 6}]) == [6, 7]
    assert ids(store.find("sweep")) == [1, 2, 4, 6, 7]
    assert store.check() == []


def test_int_and_text_ids_do_not_mix(store: Store) -> None:
    fill(store, {"_id": 1}, {"_id": "1"}, {"_id": "a"}, {"_id": -5})
    assert ids(store.find("sweep")) == [-5, 1, "1", "a"]
    assert ids(store.find("sweep", sort=[("_id", -1)])) == ["a", "1", 1, -5]
    assert ids(store.find("sweep", {"_id": "1"})) == ["1"]
    assert ids(store.find("sweep", {"_id": 1.0})) == [1]
    assert ids(store.find("sweep", {"_id": True})) == []
    assert ids(store.find("sweep", {"_id": None})) == []
    assert ids(store.find("sweep", {"_id": {"$gt": 0}})) == [1]
    assert ids(store.find("sweep", {"_id": {"$gte": "0"}})) == ["1", "a"]
    assert ids(store.find("sweep", {"_id": {"$in": ["a", 1, None, True, math.nan]}})) == [1, "a"]
    assert ids(store.find("sweep", {"_id": {"$nin": ["a", 1]}})) == [-5, "1"]


def test_unique_means_equal_not_identical(store: Store) -> None:
    store.ensure_unique("sweep", "k")
    values = [
        1,
        1.0,
        True,
        "1",
        None,
        None,
        math.nan,
        math.nan,
        {"a": 1},
        {"a": 1.0},
        {"a": 2},
        NOON,
    ]
    inserted = store.insert("sweep", [{"_id": n, "k": v} for n, v in enumerate(values)])
    assert inserted == [0, 2, 3, 4, 6, 8, 10, 11]
    assert store.insert("sweep", [{"_id": 20}, {"_id": 21}]) == [20, 21]  # sparse


def test_unique_holds_for_updates(store: Store) -> None:
    store.ensure_unique("sweep", "k")
    fill(store, {"_id": 1, "k": "a"}, {"_id": 2, "k": "b"}, {"_id": 3})
    with pytest.raises(DuplicateKey):
        store.update("sweep", {"_id": 2}, {"$set": {"k": "a"}})
    with pytest.raises(DuplicateKey):
        store.update("sweep", {"_id": 9}, {"$set": {"k": "a"}}, upsert=True)
    assert store.update("sweep", {"_id": 1}, {"$set": {"k": "a", "x": 1}}) == 1
    assert store.update("sweep", {"_id": 1}, {"$unset": {"k": ""}}) == 1
    assert store.update("sweep", {"_id": 3}, {"$set": {"k": "a"}}) == 1
    assert store.insert("sweep", [{"_id": 4, "k": "a"}]) == []
    assert store.delete("sweep", {"_id": 3}) == 1
    assert store.insert("sweep", [{"_id": 4, "k": "a"}]) == [4]
    assert store.check() == []


def test_indexes_can_come_late_and_twice(store: Store) -> None:
    fill(store, {"_id": 1, "a": {"b": 1}}, {"_id": 2, "a": {"b": 1}}, {"_id": 3, "c": [1, 2]})
    with pytest.raises(DuplicateKey, match=r"share|taken"):
        store.ensure_unique("sweep", "a.b")
    for _ in range(2):
        store.ensure_index("sweep", "a.b")
        store.ensure_unique("sweep", "c")
        store.ensure_index("sweep", "c")
    assert store.indexes("sweep") == {"a.b": False, "c": True}
    assert ids(store.find("sweep", {"a.b": 1})) == [1, 2]
    assert ids(store.find("sweep", {"c": 2})) == [3]
    store.update("sweep", {"_id": 1}, {"$set": {"a.b": 2}})
    store.ensure_unique("sweep", "a.b")  # an index becomes unique
    assert store.indexes("sweep")["a.b"] is True
    assert store.insert("sweep", [{"_id": 4, "a": {"b": 2.0}}]) == []
    assert store.insert("sweep", [{"_id": 5, "c": [3, 1]}]) == []  # each element counts


def test_ten_thousand_documents_are_quick(sqlite: Store) -> None:
    sqlite.ensure_unique("sweep", "assay.identity")
    parameters = {f"parameter_{k}": {"x": k * 1.5, "name": "v" * 20} for k in range(30)}
    documents = [
        {"_id": i, "status": "STAGED", "assay": {"identity": f"{i:040}"}, "config": parameters}
        for i in range(10_000)
    ]

    def timed(action) -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    assert timed(lambda: sqlite.insert("sweep", documents)) < 3  # 0.7 s on an idle machine
    assert timed(lambda: sqlite.counts("sweep", "status")) < 0.3
    assert timed(lambda: sqlite.counts("sweep", "status", {"status": "STAGED"})) < 0.3
    assert timed(lambda: sqlite.find_one("sweep", {"assay.identity": f"{77:040}"})) < 0.05
    claim = {"$set": {"status": "RUNNING"}}
    assert timed(lambda: sqlite.claim("sweep", {"status": "STAGED"}, claim, limit=1)) < 0.1


# --- find ----------------------------------------------------------------------------------------


def test_sort_limit_skip_and_fields(store: Store) -> None:
    fill(
        store,
        {"_id": 1, "a": {"x": 3, "y": 1}, "l": [{"p": 1, "q": 2}, 7]},
        {"_id": 2, "a": {"x": 1}},
        {"_id": 3, "b": 0},
        {"_id": 4, "a": {"x": 3}},
    )
    assert ids(store.find("sweep", limit=2, skip=1)) == [2, 3]
    assert ids(store.find("sweep", skip=3)) == [4]
    assert ids(store.find("sweep", sort=[("a.x", 1)])) == [3, 2, 1, 4]
    assert ids(store.find("sweep", sort=[("a.x", -1)], limit=3)) == [1, 4, 2]
    assert ids(store.find("sweep", sort=[("a.x", -1), ("_id", -1)])) == [4, 1, 2, 3]
    assert store.find("sweep", {"_id": 1}, fields=["a.y"]) == [{"_id": 1, "a": {"y": 1}}]
    assert store.find("sweep", {"_id": 1}, fields=["l.p"]) == [{"_id": 1, "l": [{"p": 1}]}]
    assert store.find("sweep", {"_id": 1}, fields=["a.x", "a", "a.y.z"]) == [
        {"_id": 1, "a": {"x": 3, "y": 1}}
    ]
    assert store.find("sweep", {"_id": 3}, fields=[]) == [{"_id": 3}]
    assert store.find_one("sweep", {"b": 0}, fields=["nothing"]) == {"_id": 3}
    assert store.find_one("sweep", sort=[("_id", -1)], fields=[]) == {"_id": 4}
    for bad in ([("a", 2)], [("$a", 1)], [("", 1)]):
        with pytest.raises(StoreError):
            store.find("sweep", sort=bad)
    with pytest.raises(StoreError):
        store.find("sweep", fields="_id")


def test_counts(store: Store) -> None:
    states = ["STAGED"] * 3 + ["RUNNING"] * 2 + [None]
    fill(store, *({"_id": i, "status": s, "n": i % 2} for i, s in enumerate(states)), {"_id": 9})
    expected = {"STAGED": 3, "RUNNING": 2, None: 2}
    assert store.counts("sweep", "status") == expected
    assert store.counts("sweep", "status", {"status": {"$in": ["STAGED", "x"]}}) == {"STAGED": 3}
    assert store.counts("sweep", "status", {"n": 1}) == {"STAGED": 1, "RUNNING": 1, None: 1}
    assert store.counts("sweep", "n") == {0: 3, 1: 3, None: 1}
    assert store.count("sweep", {"status": "STAGED", "n": 0}) == 2
    assert store.count("sweep", {"status": None}) == 2
    store.update("sweep", {"_id": 0}, {"$set": {"status": ["STAGED", "RUNNING"]}})
    assert store.count("sweep", {"status": "STAGED"}) == 3  # an element of a list counts
    assert store.count("sweep", {"status": "RUNNING"}) == 3
    assert store.count("sweep", {"status": {"$in": ["RUNNING", "x"]}}) == 3
    assert store.count("sweep", {"status": {"$in": [f"{n}" for n in range(200)]}}) == 0
    assert store.count("sweep", {"status": {"$in": []}}) == 0
    assert store.count("sweep", {"$or": [{"status": {"$in": []}}, {"status": "STAGED"}]}) == 3
    with pytest.raises(StoreError, match="count by"):
        store.counts("sweep", "status")


def test_long_lists_of_values(store: Store) -> None:
    store.ensure_index("sweep", "k")
    fill(store, *({"_id": i, "k": f"k{i}", "x": i} for i in range(300)))
    assert ids(store.find("sweep", {"_id": {"$in": list(range(0, 5000, 2))}})) == [
        *range(0, 300, 2)
    ]
    assert ids(store.find("sweep", {"_id": {"$in": [float(i) for i in range(200)]}})) == [
        *range(200)
    ]
    assert store.count("sweep", {"k": {"$in": [f"k{i}" for i in range(250)]}}) == 250
    assert store.count("sweep", {"x": {"$in": [*range(150), "a", None]}}) == 150
    assert store.count("sweep", {"_id": {"$in": []}}) == 0


FILTERS = [
    {"a": {"$gt": 1, "$foo": 2}},
    {"a": {"$gt": 1, "b": 2}},
    {"$where": "1"},
    {"$and": []},
    {"$or": {}},
    {"$nor": [1]},
    {"a": {"$in": 3}},
    {"a": {"$in": [{"$gt": 1}]}},
    {"a": {"$exists": "yes"}},
    {"a": {"$size": "2"}},
    {"a": {"$size": -1}},
    {"a": {"$not": 5}},
    {"a": {"$not": {}}},
    {"a": {"$elemMatch": 5}},
    {"a": {"$elemMatch": {}}},
    {"a": {"$elemMatch": {"$or": [{"b": 1}]}}},
    {"a": {"$regex": "("}},
    {"a": {"$regex": "x", "$options": "g"}},
    {"a": {"$options": "i"}},
    {"a": re.compile("x")},
    {"a..b": 1},
    {"": 1},
    {"a": SOMETHING},
    ["a"],
]


@pytest.mark.parametrize("query", FILTERS, ids=repr)
def test_filters_that_are_not_of_the_language_are_refused(store: Store, query: dict) -> None:
    with pytest.raises(StoreError) as caught:
        store.find("sweep", query)
    assert "\n" not in str(caught.value)


def test_regular_expressions(store: Store) -> None:
    fill(
        store, {"_id": 1, "s": "Abc"}, {"_id": 2, "s": ["x", "abd"]}, {"_id": 3, "s": 5}, {"_id": 4}
    )
    assert ids(store.find("sweep", {"s": {"$regex": "^ab"}})) == [2]
    assert ids(store.find("sweep", {"s": {"$regex": "^ab", "$options": "i"}})) == [1, 2]
    assert ids(store.find("sweep", {"s": {"$regex": re.compile("B", re.I)}})) == [1, 2]
    assert ids(store.find("sweep", {"s": {"$not": {"$regex": "b"}}})) == [3, 4]


def test_numbered_parts_are_keys_and_indexes(store: Store) -> None:
    fill(store, {"_id": 1, "a": {"0": "x"}}, {"_id": 2, "a": ["x", "y"]}, {"_id": 3, "a": [["x"]]})
    assert ids(store.find("sweep", {"a.0": "x"})) == [1, 2]
    assert ids(store.find("sweep", {"a.0": ["x"]})) == [3]
    assert store.update("sweep", {"_id": 1}, {"$set": {"a.1": 5}}) == 1
    assert store.find_one("sweep", {"_id": 1})["a"] == {"0": "x", "1": 5}


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"$or": [{"k": "a"}, {"_id": 1}]},
        {"$or": [{"status": "DONE"}, {"_id": {"$gt": 0}}]},
        {"$and": [{"$or": [{"k": "a"}, {"status": "DONE"}]}, {"_id": {"$in": [1, 2]}}]},
        {"$nor": [{"k": "b"}]},
    ],
    ids=repr,
)
def test_collections_do_not_see_each_other(store: Store, query: dict) -> None:
    for name in ("one", "two"):
        store.ensure_index(name, "k")
        store.insert(name, [{"_id": 1, "k": "a", "status": "DONE", "in": name}])
    assert [d["in"] for d in store.find("one", query)] == ["one"]
    assert store.count("one", query) == 1
    assert store.counts("one", "status", query) == {"DONE": 1}
    assert store.update("one", query, {"$set": {"x": 1}}, many=True) == 1
    assert len(store.claim("one", query, {"$inc": {"x": 1}}, limit=1)) == 1
    assert store.delete("one", query) == 1
    assert store.find("two") == [{"_id": 1, "k": "a", "status": "DONE", "in": "two"}]


# --- update --------------------------------------------------------------------------------------


def test_update_operators(store: Store) -> None:
    fill(store, {"_id": 1, "a": {"b": 1}, "l": [1], "n": 1.5})
    change = {
        "$set": {"a.c": {"d": (1, 2)}, "new.deep.path": None},
        "$unset": {"a.b": "", "not.there": 1},
        "$inc": {"n": 1, "m": 2, "k.j": -1},
        "$push": {"l": {"$each": [2, 3]}, "fresh": "x", "docs": {"k": 1}},
        "$setOnInsert": {"never": 1},
    }
    assert store.update("sweep", {"_id": 1}, change) == 1
    assert store.find_one("sweep") == {
        "_id": 1,
        "a": {"c": {"d": [1, 2]}},
        "new": {"deep": {"path": None}},
        "n": 2.5,
        "m": 2,
        "k": {"j": -1},
        "l": [1, 2, 3],
        "fresh": ["x"],
        "docs": [{"k": 1}],
    }


def test_update_counts_what_matched(store: Store) -> None:
    fill(store, *({"_id": i, "x": i % 2} for i in range(6)))
    assert store.update("sweep", {"x": 1}, {"$set": {"y": 1}}) == 1
    assert store.update("sweep", {"x": 1}, {"$set": {"y": 1}}, many=True) == 3
    assert store.update("sweep", {"x": 1}, {"$set": {"y": 1}}, many=True) == 3  # also unchanged
    assert store.update("sweep", {"x": 2}, {"$set": {"y": 1}}, many=True) == 0
    assert store.count("sweep", {"y": 1}) == 3


def test_upsert(store: Store) -> None:
    change = {"$set": {"a": 1}, "$inc": {"n": 1}, "$setOnInsert": {"born": NOON}}
    assert store.update("sweep", {"_id": "k"}, change, upsert=True) == 1
    assert store.update("sweep", {"_id": "k"}, {**change, "$set": {"a": 2}}, upsert=True) == 1
    assert store.find("sweep") == [{"_id": "k", "a": 2, "n": 2, "born": NOON}]
    for query in ({}, {"a": 1}, {"_id": "k", "a": 1}, {"_id": {"$gt": 1}}):
        with pytest.raises(StoreError, match="upsert"):
            store.update("sweep", query, change, upsert=True)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"x": 1},
        {"$rename": {"a": "b"}},
        {"$set": 5},
        {"$set": {"_id": 5}},
        {"$set": {"_id.x": 5}},
        {"$set": {"a..b": 5}},
        {"$set": {"$a": 5}},
        {"$set": {"a": {"$b": 5}}},
        {"$set": {"a": {"b.c": 5}}},
        {"$set": {"a": 1}, "$unset": {"a.b": ""}},
        {"$set": {"a": 1}, "$inc": {"a": 1}},
        {"$inc": {"a": "1"}},
        {"$inc": {"a": True}},
        {"$push": {"a": {"$each": 1}}},
        {"$push": {"a": {"$each": [1], "$slice": 2}}},
        {"$set": {"a": SOMETHING}},
        # of the language, but not fitting the document
        {"$inc": {"text": 1}},
        {"$inc": {"null": 1}},
        {"$inc": {"big": 1}},
        {"$push": {"number": 1}},
        {"$push": {"null": 1}},
        {"$set": {"number.x": 1}},
        {"$set": {"text.x": 1}},
        {"$set": {"null.x": 1}},
        {"$set": {"list.x": 1}},
        {"$set": {"before": 1, "number.x": 1, "zafter": 1}},
    ],
    ids=repr,
)
def test_bad_updates_are_refused_and_change_nothing(store: Store, change: dict) -> None:
    document = {"_id": 1, "text": "t", "null": None, "number": 1, "list": [1], "big": 2**63 - 1}
    fill(store, document)
    with pytest.raises(StoreError) as caught:
        store.update("sweep", {"_id": 1}, change)
    assert "\n" not in str(caught.value)
    assert store.find_one("sweep") == document


# --- claim, ids ----------------------------------------------------------------------------------


def test_claim_in_order_and_only_once(store: Store) -> None:
    fill(store, *({"_id": i, "status": "PENDING", "p": i % 3} for i in range(9)))
    take = {"$set": {"status": "RUNNING"}, "$inc": {"assay.attempt": 1}}

    def claim(limit: int, **options) -> list:
        return store.claim("sweep", {"status": "PENDING"}, take, limit=limit, **options)

    first = claim(2)
    assert first == [
        {"_id": i, "status": "RUNNING", "p": i, "assay": {"attempt": 1}} for i in range(2)
    ]
    assert first == store.find("sweep", {"status": "RUNNING"})
    assert ids(claim(2, sort=[("p", -1)])) == [2, 5]
    assert claim(0) == []
    assert ids(claim(100)) == [3, 4, 6, 7, 8]
    assert claim(1) == []


def test_claim_again_counts_attempts(store: Store) -> None:
    fill(store, {"_id": 1, "status": "PENDING"})
    take = {"$set": {"status": "RUNNING"}, "$inc": {"assay.attempt": 1}}
    for attempt in range(1, 4):
        (document,) = store.claim("sweep", {"status": "PENDING"}, take, limit=3)
        assert document["assay"]["attempt"] == attempt
        store.update("sweep", {"_id": 1}, {"$set": {"status": "PENDING"}})


def test_ids_are_consecutive_and_above_what_others_added(store: Store) -> None:
    assert store.allocate_ids("sweep", 3) == 1
    assert store.allocate_ids("sweep", 1) == 4
    assert store.allocate_ids("other", 1) == 1
    store.insert("sweep", [{"_id": 10}, {"_id": "zzz"}])  # SEML gave out 10 = max(_id) + 1
    assert store.allocate_ids("sweep", 2) == 11
    store.delete("sweep", {})
    assert store.allocate_ids("sweep", 1) == 13
    with pytest.raises(StoreError):
        store.allocate_ids("sweep", 0)
    assert store.collections() == []  # counters are not a user's business


# --- blobs ---------------------------------------------------------------------------------------


def test_blobs(store: Store) -> None:
    assert store.get_blob("sweep/1/1/rows") is None
    store.put_blob("sweep/1/1/rows", b"old")
    store.put_blob("sweep/1/1/rows", b"new", {"format": "parquet", "when": NOON})
    store.put_blob("sweep/1/1/empty", b"")
    store.put_blob("sweep/10/1/rows", b"\0\xff")
    assert store.get_blob("sweep/1/1/rows") == b"new"
    assert store.get_blob("sweep/1/1/empty") == b""
    assert store.blob_keys("sweep/1/") == ["sweep/1/1/empty", "sweep/1/1/rows"]
    assert store.blob_keys() == [*store.blob_keys("sweep/1/"), "sweep/10/1/rows"]
    info = store.blob_info("sweep/1/1/rows")["sweep/1/1/rows"]
    assert info["size"] == 3
    assert info["metadata"] == {"format": "parquet", "when": NOON}
    wanted = ["sweep/10/1/rows", "nowhere", "sweep/1/1/rows"]
    assert store.get_blobs(wanted) == {"sweep/10/1/rows": b"\0\xff", "sweep/1/1/rows": b"new"}
    assert store.delete_blobs("sweep/1/") == 2
    assert store.blob_keys() == ["sweep/10/1/rows"]
    for key in ("", "a\0b", "x" * 901):
        with pytest.raises(StoreError, match="blob key"):
            store.put_blob(key, b"")
    with pytest.raises(StoreError):
        store.put_blob("k", b"", {"a.b": 1})


def test_large_blobs(store: Store) -> None:
    large = bytes(range(256)) * 4 * 1024 * 9 + b"tail"  # 9 MiB and a bit: three chunks
    store.put_blob("sweep/1/1/maps", large)
    assert store.get_blob("sweep/1/1/maps") == large
    store.put_blob("sweep/1/1/maps", large[::-1])
    assert store.get_blobs(["sweep/1/1/maps"]) == {"sweep/1/1/maps": large[::-1]}
    assert store.check() == []
    store.put_blob("sweep/1/1/maps", b"small")
    assert store.get_blob("sweep/1/1/maps") == b"small"
    assert store.check() == []  # no chunk was left behind
    store.put_blob("sweep/1/1/maps", large)
    assert store.delete_blobs("sweep/1/1/m") == 1
    assert store.check() == []


# --- the whole -----------------------------------------------------------------------------------


def test_ping_describe_and_the_protocol(store: Store, store_url: str) -> None:
    store.ping()
    facts = store.describe()
    assert facts["kind"] == store.kind == store_url.partition("://")[0]
    assert facts["url"] == store.url
    public = {name for name in vars(Store) if not name.startswith("_")}
    assert public - set(dir(store)) == set()
