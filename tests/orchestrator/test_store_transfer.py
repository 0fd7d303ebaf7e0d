"""Sweeps between stores, and backups: nothing is lost, nothing is overwritten by accident."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bson import Int64

from orchestrator.store import Store, StoreError, open_store
from orchestrator.store.documents import encode
from orchestrator.store.transfer import Copied, push


def content(store: Store, *, internal: bool = False) -> dict:
    """Everything that a store holds, down to the bytes."""
    return {
        "documents": {
            name: [encode(document) for document in store.find(name)]
            for name in store.collections(internal=internal)
        },
        "indexes": {name: store.indexes(name) for name in store.collections(internal=internal)},
        "blobs": store.get_blobs(store.blob_keys()),
        "info": store.blob_info(),
    }


@pytest.fixture
def full(sqlite: Store) -> Store:
    """An SQLite store with a sweep of every kind of value, some blobs, and another sweep."""
    sqlite.ensure_unique("sweep", "assay.identity")
    sqlite.ensure_index("sweep", "k")
    values = [math.nan, math.inf, None, True, 2**40, Int64(1), 1, 1.0, b"\0", [1, [2]], {"z": {}}]
    moment = datetime(2026, 11, 22, tzinfo=UTC)
    first = sqlite.allocate_ids("sweep", 600)
    documents = [
        {"status": "DONE", "_id": first + n, "x": values[n % len(values)], "t": moment}
        | ({"assay": {"identity": f"i{n}"}} if n % 2 else {})
        for n in range(600)
    ]
    assert len(sqlite.insert("sweep", documents)) == 600
    sqlite.put_blob("sweep/1/1/rows", b"rows", {"format": "parquet"})
    sqlite.put_blob("sweep/1/1/maps", bytes(9 * 1024 * 1024))
    sqlite.put_blob("sweep/12/1/rows", b"")
    sqlite.insert("sweep2", [{"_id": "text"}])
    sqlite.put_blob("sweep2/text/1/rows", b"other")
    sqlite.put_blob("gone/1/1/rows", b"of a collection that is no more")
    sqlite.insert("assay.workers", [{"_id": "w"}])
    return sqlite


def test_there_and_back_again(full: Store, mongo: Store, tmp_path: Path) -> None:
    back = open_store(f"{tmp_path}/back.sqlite")
    assert push(full, mongo, "sweep") == Copied(documents=600, blobs=3)
    assert push(full, mongo, "sweep") == Copied(documents_there=600, blobs_there=3)
    assert mongo.collections() == ["sweep"]
    assert push(mongo, back, "sweep") == Copied(documents=600, blobs=3)
    for name in ("sweep2", "assay.workers", "assay.counters"):
        full.drop(name)
        back.drop(name)
    full.delete_blobs("gone/")
    assert content(back) == content(full)
    assert back.check() == full.check() == []
    assert mongo.allocate_ids("sweep", 1) == 601


def test_an_interrupted_copy_goes_on(full: Store, mongo: Store) -> None:
    mongo.insert("sweep", full.find("sweep", {"_id": {"$lte": 350}}))
    mongo.put_blob("sweep/1/1/rows", b"rows", {"format": "parquet"})
    done = push(full, mongo, "sweep")
    assert done == Copied(documents=250, blobs=2, documents_there=350, blobs_there=1)


def test_a_filter_takes_its_blobs_along(full: Store, mongo: Store) -> None:
    assert push(full, mongo, "sweep", filter={"_id": {"$lt": 10}}) == Copied(documents=9, blobs=2)
    assert mongo.blob_keys() == ["sweep/1/1/maps", "sweep/1/1/rows"]


def test_what_is_different_is_not_overwritten(full: Store, mongo: Store) -> None:
    mongo.insert("sweep", [{"_id": 7, "mine": True}])
    mongo.put_blob("sweep/1/1/rows", b"rows", {"format": "mine"})
    with pytest.raises(StoreError, match=r"2 other.*nothing was copied: 7, sweep/1/1/rows"):
        push(full, mongo, "sweep")
    assert mongo.find("sweep") == [{"_id": 7, "mine": True}]
    assert push(full, mongo, "sweep", force=True) == Copied(documents=600, blobs=3)
    assert mongo.find_one("sweep", {"_id": 7}) == full.find_one("sweep", {"_id": 7})
    assert mongo.blob_info("sweep/") == full.blob_info("sweep/")


def test_a_unique_field_that_is_taken_is_told(full: Store, mongo: Store) -> None:
    mongo.insert("sweep", [{"_id": 5000, "assay": {"identity": "i1"}}])
    with pytest.raises(StoreError, match="same unique field"):
        push(full, mongo, "sweep")


def test_backup_and_restore(full: Store, store: Store, store_url: str, tmp_path: Path) -> None:
    archive = tmp_path / "backup.assay"
    full.backup(archive)
    with pytest.raises(StoreError, match="exists"):
        full.backup(archive)

    expected = content(full, internal=True)
    store.restore(archive)
    assert content(store, internal=True) == expected
    assert store.allocate_ids("sweep", 1) == 601

    store.update("sweep", {"_id": 1}, {"$set": {"x": "changed"}})
    store.insert("new", [{"_id": 1}])
    with pytest.raises(StoreError, match="is not empty"):
        store.restore(archive)
    assert store.find_one("sweep", {"_id": 1})["x"] == "changed"
    store.restore(archive, force=True)
    assert store.collections() == ["new", "sweep", "sweep2"]
    store.drop("new")
    assert content(store, internal=True) == expected

    second = tmp_path / "second"
    store.backup(second)  # from either kind
    third = open_store(f"{tmp_path}/third.sqlite")
    third.restore(second)
    assert content(third, internal=True) == expected
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    assert store.check() == []


def test_only_backups_are_restored(store: Store, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no backup\n" * 1000)
    for name in ("text", "none"):
        with pytest.raises(StoreError):
            store.restore(tmp_path / name)
    assert not (tmp_path / "none").exists()
