"""Documents in a MongoDB database: the store of a cluster.

Plain operations only (find, insert, update, replace, delete, count): no transactions, no
aggregation, no findAndModify, no array-index paths. Writes are acknowledged by a majority and
journaled unless the URI says otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import pymongo
from bson.raw_bson import RawBSONDocument
from pymongo import errors
from pymongo.collection import Collection
from pymongo.database import Database

from orchestrator.store import redact
from orchestrator.store.documents import (
    BLOB_CHUNKS,
    BLOBS,
    CODEC,
    COUNTERS,
    FOREIGN,
    MISSING,
    Document,
    check_blob_key,
    check_collection,
    check_fields,
    check_sort,
    encode,
    get,
    group,
    is_internal,
    split_path,
)
from orchestrator.store.errors import DuplicateKey, StoreError, StoreUnavailable
from orchestrator.store.filters import check_upsert, compile_filter
from orchestrator.store.updates import compile_update

DATABASE = "assay"  # unless the URI names one
SECONDS_TO_CONNECT = 5
INLINE = 4 * 1024 * 1024  # a blob up to this size is one document
CHUNK = 4 * 1024 * 1024
KEYS_AT_ONCE = 1000
_BY_ID = (("_id", 1),)
_LAST = "\U0010ffff"
_DUPLICATE = 11000
_INDEX_CONFLICTS = (85, 86)  # there is an index on this field already, with other options
_REFUSED = (13, 18)  # not authorised, authentication failed

_NO_NAME = re.compile(r"\bDNS\b|resolution lifetime")  # mongodb+srv:// asks a name server

# What we ask of the driver; anything in the URI wins.
_OPTIONS = {
    "w": "majority",
    "journal": True,
    "serverSelectionTimeoutMS": SECONDS_TO_CONNECT * 1000,
    "connectTimeoutMS": SECONDS_TO_CONNECT * 1000,
    "socketTimeoutMS": 120_000,
    "appname": "assay",
}

F = TypeVar("F", bound=Callable[..., Any])


def _translated(method: F) -> F:
    """The driver's errors as ours, in one line and without secrets."""

    @functools.wraps(method)
    def wrapper(self: MongoStore, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except errors.PyMongoError as error:
            raise self._translate(error) from error

    return wrapper  # type: ignore[return-value]


class MongoStore:
    """The protocol `orchestrator.store.Store` on a MongoDB database.

    Args:
        url: `mongodb://` or `mongodb+srv://`; its path names the database (default "assay").

    Nothing is sent before the first operation. After a fork the child connects anew.
    """

    kind: Literal["mongodb"] = "mongodb"

    def __init__(self, url: str) -> None:
        self.url = redact(url)
        self._secret_url = url
        self._pid = -1
        self._database_: Database[Document] | None = None
        self._clients: list[Any] = []  # also those of a parent process, never to be closed here
        self._spread = 1  # how contended the last claims were
        self._database()

    def _database(self) -> Database[Document]:
        if self._database_ is None or self._pid != os.getpid():
            given = {pair.split("=")[0].lower() for pair in _query(self._secret_url).split("&")}
            options = {k: v for k, v in _OPTIONS.items() if k.lower() not in given}
            if "tz_aware" in given:
                raise StoreError(f"{self.url}: leave out tz_aware, datetimes are always in UTC")
            try:
                client: Any = pymongo.MongoClient(self._secret_url, **options)  # type: ignore[arg-type]
                name = client.get_default_database(DATABASE).name
            except (errors.PyMongoError, ValueError, TypeError) as error:
                if _NO_NAME.search(str(error)):
                    reason = f"{self.url}: cannot look up its servers: {self._clean(error)}"
                    raise StoreUnavailable(reason) from None
                # The driver's message may quote a password that it took for something else.
                hint = "percent-encode what is special in user and password (/ : @ % ? #)"
                reason = hint if "@" in self._secret_url else self._clean(error)
                raise StoreError(f"{self.url} is not a MongoDB URI: {reason}") from None
            self._clients.append(client)
            self._pid = os.getpid()
            self._database_ = client.get_database(name, codec_options=CODEC)
        return self._database_

    def _collection(self, name: str) -> Collection[Document]:
        return self._database()[check_collection(name)]

    def _translate(self, error: errors.PyMongoError) -> StoreError:
        if isinstance(error, errors.DuplicateKeyError):
            return DuplicateKey(f"{self.url}: {self._clean(error)}")
        if isinstance(error, errors.OperationFailure) and error.code in _REFUSED:
            return StoreError(f"{self.url} refuses us: {self._clean(error)}")
        away = (errors.ConnectionFailure, errors.WriteConcernError, errors.ExecutionTimeout)
        if isinstance(error, away) or getattr(error, "timeout", False):
            return StoreUnavailable(f"{self.url} does not answer: {self._clean(error)}")
        return StoreError(f"{self.url}: {self._clean(error)}")

    def _clean(self, error: Exception) -> str:
        text = str(error).split(", Timeout:")[0].split(", full error:")[0].split(" (configured ")[0]
        login = self._secret_url.partition("://")[2].rpartition("@")[0]
        for secret in (self._secret_url, login, login.partition(":")[2]):
            if secret:
                text = text.replace(secret, "***")
        return " ".join(text.split())[:300]

    # --- reading ---------------------------------------------------------------------------------

    @_translated
    def find(
        self,
        collection: str,
        filter: Mapping[str, Any] | None = None,
        *,
        fields: Iterable[str] | None = None,
        sort: Sequence[tuple[str, int]] = _BY_ID,
        limit: int = 0,
        skip: int = 0,
    ) -> list[Document]:
        tree, kept = compile_filter(filter).tree, check_fields(fields)
        projection = None if kept is None else dict.fromkeys(kept, 1)
        cursor = self._collection(collection).find(
            tree, projection, sort=check_sort(sort), limit=limit, skip=skip
        )
        return list(cursor)

    def find_one(
        self,
        collection: str,
        filter: Mapping[str, Any] | None = None,
        *,
        fields: Iterable[str] | None = None,
        sort: Sequence[tuple[str, int]] = _BY_ID,
    ) -> Document | None:
        found = self.find(collection, filter, fields=fields, sort=sort, limit=1)
        return found[0] if found else None

    @_translated
    def count(self, collection: str, filter: Mapping[str, Any] | None = None) -> int:
        return self._collection(collection).count_documents(compile_filter(filter).tree)

    @_translated
    def counts(
        self, collection: str, field: str, filter: Mapping[str, Any] | None = None
    ) -> dict[Any, int]:
        split_path(field)
        tree = compile_filter(filter).tree
        found = self._collection(collection).find(tree, {field: 1, "_id": int(field == "_id")})
        return group((get(document, field) for document in found), field)

    # --- writing ---------------------------------------------------------------------------------

    @_translated
    def insert(self, collection: str, documents: Iterable[Mapping[str, Any]]) -> list[Any]:
        target = self._collection(collection)
        given = list(documents)
        raw: list[Any] = [RawBSONDocument(encode(document)) for document in given]
        left_out: set[int] = set()
        if raw:
            try:
                target.insert_many(raw, ordered=False)
            except errors.BulkWriteError as error:
                details = error.details or {}
                failed = details.get("writeErrors", [])
                if details.get("writeConcernErrors"):
                    raise StoreUnavailable(f"{self.url}: a write was not confirmed") from error
                for failure in failed:
                    if failure["code"] != _DUPLICATE:
                        reason = str(failure.get("errmsg"))[:300]
                        raise StoreError(f"{self.url}: cannot insert: {reason}") from error
                left_out = {failure["index"] for failure in failed}
        return [document["_id"] for n, document in enumerate(given) if n not in left_out]

    @_translated
    def update(
        self,
        collection: str,
        filter: Mapping[str, Any],
        update: Mapping[str, Any],
        *,
        many: bool = False,
        upsert: bool = False,
    ) -> int:
        query = compile_filter(filter)
        compile_update(update)
        if upsert:
            check_upsert(query)
        target = self._collection(collection)
        write = target.update_many if many else target.update_one
        try:
            done = write(query.tree, update, upsert=upsert)
        except errors.DuplicateKeyError:
            if not upsert:
                raise
            done = write(query.tree, update, upsert=upsert)  # another upsert was faster
        return done.matched_count + (done.upserted_id is not None)

    @_translated
    def claim(
        self,
        collection: str,
        filter: Mapping[str, Any],
        update: Mapping[str, Any],
        *,
        limit: int,
        sort: Sequence[tuple[str, int]] = _BY_ID,
        guard: Sequence[str] = ("status", "assay.attempt"),
    ) -> list[Document]:
        """See `Store.claim`. Candidates are read, then taken one by one with an update that also
        demands the guard as it was read: of several callers one succeeds. Whoever loses draws its
        next candidates at random from a wider window, so that callers soon spread out."""
        query, change, order = compile_filter(filter), compile_update(update), check_sort(sort)
        target = self._collection(collection)
        # What the filter demands of `_id` and the guard holds while they are as they were read.
        others = {k: v for k, v in query.tree.items() if k not in ("_id", *guard)}
        won: dict[Any, dict[str, Any]] = {}  # _id → its guard after our update
        while len(won) < limit:
            missing = limit - len(won)
            window = min(missing * self._spread, missing + 1000) + len(won)
            found = target.find(query.tree, _projection(guard), sort=order, limit=window)
            candidates = [d for d in found if d["_id"] not in won]
            if not candidates:
                break
            if self._spread > 1:
                random.shuffle(candidates)
            lost = 0
            for candidate in candidates:
                condition = {"_id": candidate["_id"], **_as_read(candidate, guard), **others}
                if target.update_one(condition, update).matched_count:
                    after = change.apply(candidate)
                    won[after["_id"]] = {path: get(after, path, MISSING) for path in guard}
                else:
                    lost += 1
                if len(won) == limit or lost > missing:
                    break
            self._spread = min(self._spread * 4, 256) if lost else max(self._spread * 3 // 4, 1)
            if lost:
                time.sleep(random.uniform(0, 0.002 * lost))
        if not won:
            return []
        # A document that was taken from us again in between is not ours: leave it out.
        return [
            document
            for document in target.find({"_id": {"$in": list(won)}}, sort=order)
            if {path: get(document, path, MISSING) for path in guard} == won[document["_id"]]
        ]

    @_translated
    def delete(self, collection: str, filter: Mapping[str, Any]) -> int:
        return self._collection(collection).delete_many(compile_filter(filter).tree).deleted_count

    # --- collections -----------------------------------------------------------------------------

    def ensure_unique(self, collection: str, field: str) -> None:
        self._ensure(collection, field, unique=True)

    def ensure_index(self, collection: str, field: str) -> None:
        self._ensure(collection, field, unique=False)

    @_translated
    def _ensure(self, collection: str, field: str, *, unique: bool) -> None:
        split_path(field)
        target = self._collection(collection)
        options: dict[str, Any] = {"unique": True, "sparse": True} if unique else {}
        name = f"assay_{'unique' if unique else 'index'}_{field}"
        if self._indexes(target).get(field, False) >= unique and field in self._indexes(target):
            return
        with contextlib.suppress(errors.OperationFailure):
            if unique:
                target.drop_index(f"assay_index_{field}")
        try:
            target.create_index([(field, 1)], name=name, **options)
        except errors.DuplicateKeyError as error:
            raise DuplicateKey(
                f"{collection}: documents share their {field!r}: {self._clean(error)}"
            ) from None
        except errors.OperationFailure as error:
            if error.code not in _INDEX_CONFLICTS:
                raise
            if unique and not self._indexes(target).get(field):
                raise StoreError(
                    f"{collection}: a non-unique index on {field!r} is in the way: drop it"
                ) from None

    @staticmethod
    def _indexes(target: Collection[Document]) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for index in target.index_information().values():
            if len(index["key"]) == 1 and (field := index["key"][0][0]) != "_id":
                found[field] = found.get(field, False) or bool(index.get("unique"))
        return found

    @_translated
    def indexes(self, collection: str) -> dict[str, bool]:
        return dict(sorted(self._indexes(self._collection(collection)).items()))

    @_translated
    def collections(self, *, internal: bool = False) -> list[str]:
        names = self._database().list_collection_names()
        return sorted(
            name
            for name in names
            if name not in (BLOBS, BLOB_CHUNKS)
            and not name.startswith(FOREIGN)
            and (internal or not is_internal(name))
            and self._database()[name].find_one({}, {"_id": 1})
        )

    @_translated
    def drop(self, collection: str) -> None:
        self._collection(collection).drop()
        self.delete_blobs(f"{collection}/")

    @_translated
    def allocate_ids(self, collection: str, n: int) -> int:
        if n < 1:
            raise StoreError(f"cannot allocate {n} ids")
        source, counters = self._collection(collection), self._collection(COUNTERS)
        while True:  # until nobody was faster
            counter = counters.find_one({"_id": collection})
            # Type bracketing: compared with a number, only numbers are found.
            top = source.find_one({"_id": {"$gte": 1}}, {"_id": 1}, sort=[("_id", -1)])
            first = max(int(counter["next"]) if counter else 1, int(top["_id"]) + 1 if top else 1)
            after = {"next": first + n}
            if counter is None:
                with contextlib.suppress(errors.DuplicateKeyError):
                    counters.insert_one({"_id": collection, **after})
                    return first
            else:
                same = {"_id": collection, "next": counter["next"]}
                if counters.update_one(same, {"$set": after}).matched_count:
                    return first

    # --- blobs -----------------------------------------------------------------------------------
    # A blob is one document in BLOBS, replaced as a whole. A large one names a version, whose
    # chunks were written before it and belong to no other version: a reader or a crash sees the
    # old blob or the new one. A chunk's _id begins with the blob's key, so that prefixes find both.

    @_translated
    def put_blob(self, key: str, data: bytes, metadata: Mapping[str, Any] | None = None) -> None:
        check_blob_key(key)
        blobs, chunks = self._database()[BLOBS], self._database()[BLOB_CHUNKS]
        version = uuid.uuid4().hex
        blob: Document = {
            "_id": key,
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "version": version,
            "metadata": dict(metadata) if metadata is not None else None,
        }
        encode(blob)  # refuses what cannot be stored
        if len(data) <= INLINE:
            blob["data"] = bytes(data)
        else:
            starts = range(0, len(data), CHUNK)
            blob["chunks"] = [f"{key}\0{version}\0{n:06d}" for n in range(len(starts))]
            for name, start in zip(blob["chunks"], starts, strict=True):
                chunks.insert_one({"_id": name, "data": bytes(data[start : start + CHUNK])})
        while True:  # until we know exactly which version we replaced
            old = blobs.find_one({"_id": key}, {"version": 1, "chunks": 1})
            if old is None:
                with contextlib.suppress(errors.DuplicateKeyError):
                    blobs.insert_one(blob)
                    return
            elif blobs.replace_one({"_id": key, "version": old["version"]}, blob).matched_count:
                if old.get("chunks"):
                    chunks.delete_many({"_id": {"$in": old["chunks"]}})
                return

    def get_blob(self, key: str) -> bytes | None:
        return self.get_blobs([key]).get(key)

    @_translated
    def get_blobs(self, keys: Iterable[str]) -> dict[str, bytes]:
        wanted, found = list(dict.fromkeys(keys)), {}
        for start in range(0, len(wanted), KEYS_AT_ONCE):
            batch = {"_id": {"$in": wanted[start : start + KEYS_AT_ONCE]}}
            for blob in self._database()[BLOBS].find(batch):
                data = self._assemble(blob)
                if data is None:  # replaced while we read it, or broken
                    again = self._database()[BLOBS].find_one({"_id": blob["_id"]})
                    if again is None:
                        continue
                    data = self._assemble(again)
                if data is None:
                    raise StoreError(f"blob {blob['_id']!r} is broken: its checksum is wrong")
                found[blob["_id"]] = data
        return {key: found[key] for key in wanted if key in found}

    def _assemble(self, blob: Document) -> bytes | None:
        """The bytes of a blob, None if they are not (or no longer) the right ones."""
        if "data" in blob:
            data = blob["data"]
        else:
            names = blob.get("chunks", [])
            found = self._database()[BLOB_CHUNKS].find({"_id": {"$in": names}})
            parts = {chunk["_id"]: chunk["data"] for chunk in found}
            data = b"".join(parts.get(name, b"") for name in names)
        return data if hashlib.sha256(data).hexdigest() == blob["sha256"] else None

    @_translated
    def blob_info(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        fields = {"size": 1, "sha256": 1, "metadata": 1}
        found = self._database()[BLOBS].find(_begins(prefix), fields, sort=[("_id", 1)])
        return {blob.pop("_id"): {name: blob[name] for name in fields} for blob in found}

    @_translated
    def blob_keys(self, prefix: str = "") -> list[str]:
        found = self._database()[BLOBS].find(_begins(prefix), {"_id": 1}, sort=[("_id", 1)])
        return [blob["_id"] for blob in found]

    @_translated
    def delete_blobs(self, prefix: str) -> int:
        deleted = self._database()[BLOBS].delete_many(_begins(prefix)).deleted_count
        self._database()[BLOB_CHUNKS].delete_many(_begins(prefix))
        return deleted

    # --- the whole -------------------------------------------------------------------------------

    @_translated
    def check(self) -> list[str]:
        problems, owned = [], set()
        for key in self.blob_keys():
            blob = self._database()[BLOBS].find_one({"_id": key})
            if blob is not None:
                owned |= set(blob.get("chunks", ()))
                if self._assemble(blob) is None:
                    problems.append(f"blob {key!r} is broken: its checksum is wrong")
        chunks = {c["_id"] for c in self._database()[BLOB_CHUNKS].find({}, {"_id": 1})}
        if orphans := len(chunks - owned):
            problems.append(f"{orphans} chunks of blobs belong to none (an interrupted upload)")
        return problems

    def backup(self, path: str | os.PathLike[str]) -> None:
        from orchestrator.store.transfer import backup

        backup(self, path)

    def restore(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        from orchestrator.store.transfer import restore

        restore(self, path, force=force)

    @_translated
    def ping(self) -> None:
        self._database().command("ping")

    @_translated
    def describe(self) -> dict[str, Any]:
        client = self._database().client
        return {
            "kind": self.kind,
            "url": self.url,
            "database": self._database().name,
            "host": urlsplit(self.url).netloc.rpartition("@")[2],
            "server": f"MongoDB {client.server_info().get('version', '?')}",
            "topology": client.topology_description.topology_type_name,
            "blobs": self._database()[BLOBS].count_documents({}),
        }

    def close(self) -> None:
        if self._clients and self._pid == os.getpid():
            self._clients.pop().close()
        self._database_ = None


def _query(url: str) -> str:
    return url.rpartition("@")[2].partition("?")[2]


def _projection(paths: Iterable[str]) -> dict[str, int]:
    return dict.fromkeys(check_fields(paths) or [], 1)


def _as_read(document: Document, guard: Iterable[str]) -> dict[str, Any]:
    """A filter that holds as long as the guard fields are what they are in `document`."""
    values = {path: get(document, path, MISSING) for path in guard}
    return {
        path: {"$exists": False} if value is MISSING else {"$eq": value, "$exists": True}
        for path, value in values.items()
    }


def _begins(prefix: str) -> dict[str, Any]:
    return {"_id": {"$gte": prefix, "$lt": prefix + _LAST}}
