"""Move sweeps between stores, documents and blobs, without loss and as often as one likes.

A copy goes on where an interrupted one stopped: what is there already is compared, not written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.store.documents import encode
from orchestrator.store.errors import StoreError
from orchestrator.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from orchestrator.store import Store

BATCH = 500


@dataclass(frozen=True)
class Copied:
    """What `push` did: how much was written, how much was there already, the same."""

    documents: int = 0
    blobs: int = 0
    documents_there: int = 0
    blobs_there: int = 0


def push(
    source: Store,
    target: Store,
    collection: str,
    *,
    filter: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Copied:
    """Copy a collection (or what matches `filter`), its indexes and its blobs; then verify.

    Nothing is written if the target has a different document or blob under the same name: this is
    a StoreError that lists them, unless `force` (they are replaced then). A pull is a push the
    other way round.
    """
    ids = [document["_id"] for document in source.find(collection, filter, fields=["_id"])]
    keys = source.blob_info(f"{collection}/")
    if filter is not None:
        wanted = {str(identity) for identity in ids}
        keys = {key: facts for key, facts in keys.items() if key.split("/")[1] in wanted}

    missing, different = _compare(source, target, collection, ids)
    there = target.blob_info(f"{collection}/")
    new = [key for key in keys if key not in there]
    changed = [key for key, facts in keys.items() if key in there and there[key] != facts]
    if (different or changed) and not force:
        names = [repr(identity) for identity in different] + changed
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise StoreError(
            f"{collection}: {target.url} holds {len(names)} other documents or blobs of the same "
            f"name, nothing was copied: {shown}"
        )

    for field, unique in source.indexes(collection).items():
        (target.ensure_unique if unique else target.ensure_index)(collection, field)
    for batch in _batches(different):
        target.delete(collection, {"_id": {"$in": batch}})
    for batch in _batches(missing + different):
        inserted = target.insert(collection, source.find(collection, {"_id": {"$in": batch}}))
        if left := sorted(set(batch) - set(inserted), key=str):
            raise StoreError(
                f"{collection}: {target.url} refuses documents {left[:10]}: another one there has "
                "the same unique field"
            )
    _copy_blobs(source, target, {key: keys[key] for key in new + changed})

    absent, wrong = _compare(source, target, collection, ids)
    if absent or wrong:
        raise StoreError(
            f"{collection}: documents {(absent + wrong)[:10]} differ after the copy: they were "
            "changed meanwhile, copy again"
        )
    written = len(missing) + len(different)
    return Copied(
        documents=written,
        blobs=len(new) + len(changed),
        documents_there=len(ids) - written,
        blobs_there=len(keys) - len(new) - len(changed),
    )


def _compare(
    source: Store, target: Store, collection: str, ids: list[Any]
) -> tuple[list[Any], list[Any]]:
    """Of these documents, those that the target lacks, and those that are different there."""
    missing, different = [], []
    for batch in _batches(ids):
        query = {"_id": {"$in": batch}}
        theirs = {d["_id"]: encode(d) for d in target.find(collection, query)}
        for document in source.find(collection, query):
            identity = document["_id"]
            if identity not in theirs:
                missing.append(identity)
            elif theirs[identity] != encode(document):
                different.append(identity)
    return missing, different


def _copy_blobs(source: Store, target: Store, keys: Mapping[str, Mapping[str, Any]]) -> None:
    for key, facts in keys.items():
        data = source.get_blob(key)
        if data is not None:  # deleted meanwhile
            target.put_blob(key, data, facts["metadata"])
            target.get_blob(key)  # StoreError if what arrived is not what was sent


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


# --- backups: a SQLite file, whatever the store -------------------------------------------------


@contextlib.contextmanager
def writing_backup(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place to write to that becomes `path` in the end; StoreError if `path` exists."""
    final = Path(os.path.abspath(path))
    partial = final.with_name(f".{final.name}.{os.getpid()}")
    if final.exists():
        raise StoreError(f"{final} exists: a backup does not overwrite")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.link(partial, final)  # unlike a rename, never over a file that appeared meanwhile
    except OSError as error:
        raise StoreError(f"cannot write {final}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def backup(store: Store, path: str | os.PathLike[str]) -> None:
    """Write a store's collections, ours too, and its blobs into a new file."""
    with writing_backup(path) as partial:
        archive = SqliteStore(partial, archive=True)
        try:
            _copy_all(store, archive)
        finally:
            archive.close()


def restore(store: Store, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Put back what `backup` wrote; see `Store.restore`."""
    archive = SqliteStore(path, archive=True, readonly=True)
    try:
        names = archive.collections(internal=True)
        if not force:
            full = [n for n in store.collections(internal=True) if store.find_one(n, fields=[])]
            if full or store.blob_keys():
                raise StoreError(
                    f"{store.url} is not empty ({', '.join(full[:5]) or 'blobs'}): nothing was "
                    "restored. Restore into a new store, or force it"
                )
        for name in names:
            store.drop(name)
        _copy_all(archive, store)
    finally:
        archive.close()


def _copy_all(source: Store, target: Store) -> None:
    for name in source.collections(internal=True):
        push(source, target, name)
    done: Iterable[str] = target.blob_keys()
    rest = set(source.blob_keys()) - set(done)  # blobs of collections that are gone
    if rest:
        facts = source.blob_info()
        _copy_blobs(source, target, {key: facts[key] for key in sorted(rest)})
