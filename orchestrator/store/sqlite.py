"""Documents in one SQLite file: the store of one machine, without a server.

A document is a BSON blob in `documents`; its `_id`, its `status` and the values of its indexed
fields stand beside it in columns, so that the filters of the hot paths are SQL. SQL only narrows
down: what it leaves is decided by `filters.py` on the decoded document.

Safe against kill -9 and power loss (WAL, synchronous=FULL, one BEGIN IMMEDIATE transaction per
operation), for any number of processes and threads of one host. A connection belongs to one thread
of one process and is never used after a fork.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orchestrator.store import host
from orchestrator.store.documents import (
    COUNTERS,
    Document,
    check_blob_key,
    check_collection,
    check_fields,
    check_sort,
    decode,
    encode,
    get,
    group,
    is_internal,
    project,
    sort_documents,
    split_path,
)
from orchestrator.store.errors import DuplicateKey, StoreError, StoreUnavailable
from orchestrator.store.filters import Filter, check_upsert, compile_filter
from orchestrator.store.sql import ODD_STATUS, Translator, Where, index_keys, status_column
from orchestrator.store.updates import Update, compile_update

APPLICATION = 0x41535359  # "ASSY"
VERSION = 1
BUSY_SECONDS = 30.0
CHUNK = 4 * 1024 * 1024
_BY_ID = (("_id", 1),)
_LAST = "\U0010ffff"  # sorts after every character of a key

# `id`, `status` and `value` have no declared type: ints stay ints, text stays text.
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE collections (cid INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE documents (
    seq INTEGER PRIMARY KEY, cid INTEGER NOT NULL, id NOT NULL, status, body BLOB NOT NULL);
CREATE UNIQUE INDEX documents_id ON documents (cid, id);
CREATE INDEX documents_status ON documents (cid, status, id);
CREATE TABLE indexes (
    iid INTEGER PRIMARY KEY, cid INTEGER NOT NULL, field TEXT NOT NULL,
    is_unique INTEGER NOT NULL, UNIQUE (cid, field));
CREATE TABLE entries (
    iid INTEGER NOT NULL, value NOT NULL, seq INTEGER NOT NULL, is_unique INTEGER NOT NULL,
    PRIMARY KEY (iid, value, seq)) WITHOUT ROWID;
CREATE UNIQUE INDEX entries_unique ON entries (iid, value) WHERE is_unique;
CREATE INDEX entries_seq ON entries (seq);
CREATE TABLE blobs (
    key TEXT PRIMARY KEY, size INTEGER NOT NULL, sha256 TEXT NOT NULL, metadata BLOB NOT NULL);
CREATE TABLE blob_chunks (
    key TEXT NOT NULL, n INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (key, n));
"""
Connection = sqlite3.Connection


class Index(NamedTuple):
    """An index on one dotted path of a collection."""

    iid: int
    field: str
    parts: tuple[str, ...]
    unique: bool

    def keys(self, document: Document) -> set[Any]:
        return index_keys(document, self.parts)


class SqliteStore:
    """The protocol `orchestrator.store.Store` on an SQLite file.

    Args:
        path: the file; created (0600, its directory 0700) if it is not there.
        adopt: take over a file that another host wrote last.
        archive: a backup: opened on any file system and host, without WAL.
        readonly: only read; the file must be there.

    Raises:
        StoreError: a file system that hosts share, another host's file, not a store, too new.
    """

    kind: Literal["sqlite"] = "sqlite"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        adopt: bool = False,
        archive: bool = False,
        readonly: bool = False,
    ) -> None:
        self.path = Path(os.path.abspath(path))
        self.url = f"sqlite://{self.path}"
        self._archive, self._readonly = archive, readonly
        self._local = threading.local()
        self._pid, self._lock = os.getpid(), threading.Lock()
        # Every connection ever made, so that a fork's child never closes (by garbage collection)
        # one that it got from its parent: that would release the parent's locks.
        self._connections: list[tuple[int, weakref.ref[threading.Thread], Connection]] = []
        self._host = host.host_identity()
        if not archive:
            host.refuse_shared_filesystem(self.path)
        with self._errors():
            if not readonly:
                host.create_private(self.path)
            self._inode = self.path.stat().st_ino
            self._prepare(adopt)

    # --- connections -----------------------------------------------------------------------------

    def _connection(self) -> Connection:
        if self._pid != os.getpid():  # forked: the lock may have been held by a thread we lack
            self._pid, self._lock = os.getpid(), threading.Lock()
        local = self._local
        if getattr(local, "pid", None) != os.getpid():
            local.connection, local.pid = self._connect(), os.getpid()
        return local.connection  # type: ignore[no-any-return]

    def _connect(self) -> Connection:
        mode = "ro" if self._readonly else "rw"
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,  # transactions are begun and ended here, in so many words
            check_same_thread=False,  # only so that `close` may close them all
        )
        pid = os.getpid()
        with self._lock:
            for entry in list(self._connections):
                owner, thread, old = entry
                if owner == pid and ((alive := thread()) is None or not alive.is_alive()):
                    self._connections.remove(entry)
                    old.close()
            self._connections.append((pid, weakref.ref(threading.current_thread()), connection))
        if not self._readonly:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA journal_size_limit = 67108864")
        return connection

    def _prepare(self, adopt: bool) -> None:
        """Make the schema if the file is new; refuse a file that is not ours."""
        connection = self._connection()
        known = self._version(connection)  # before anything is changed in a file that is not ours
        if not self._readonly:
            mode = "DELETE" if self._archive else "WAL"
            _patiently(lambda: connection.execute(f"PRAGMA journal_mode = {mode}").fetchone())
        if known is None:
            with self._transaction("IMMEDIATE", check_host=False) as connection:
                if self._version(connection) is None:  # another process may have been faster
                    for statement in _SCHEMA.split(";")[:-1]:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
                    self._sign(connection)
        if adopt:
            with self._transaction("IMMEDIATE", check_host=False) as connection:
                self._sign(connection)
        self._check_host(connection)

    def _version(self, connection: Connection) -> int | None:
        """The schema version, None if the file is empty; StoreError if the file is not ours."""
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if application == APPLICATION and version == VERSION:
            return version
        if application == APPLICATION:
            raise StoreError(
                f"{self.path} has version {version} of the store's schema, this Assay knows "
                f"version {VERSION}: upgrade Assay"
            )
        empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not empty or self._readonly:
            raise StoreError(f"{self.path} is not an Assay store")
        return None

    def _sign(self, connection: Connection) -> None:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('host', ?)", (self._host,))

    def _check_host(self, connection: Connection) -> None:
        if self._archive:
            return
        writer = connection.execute("SELECT value FROM meta WHERE key = 'host'").fetchone()[0]
        if writer != self._host:
            raise StoreError(
                f"{self.path} belongs to host {writer}, and this is {self._host}: an SQLite store "
                "serves one host. Run `assay db push mongodb://...` there to share it, or "
                "`assay db adopt` here if the file was moved for good"
            )

    @contextlib.contextmanager
    def _transaction(
        self, mode: Literal["IMMEDIATE", "DEFERRED"], *, check_host: bool = True
    ) -> Iterator[Connection]:
        with self._errors():
            connection = self._connection()
            if mode == "IMMEDIATE":
                self._begin_writing(connection)
            else:
                connection.execute("BEGIN")
            try:
                if mode == "IMMEDIATE" and check_host:
                    self._check_host(connection)
                    self._check_file()
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @staticmethod
    def _begin_writing(connection: Connection) -> None:
        """Wait for the write lock in short naps; SQLite's own waiting starves some of many."""
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")

    def _check_file(self) -> None:
        try:
            same = os.stat(self.path).st_ino == self._inode
        except FileNotFoundError:
            same = False
        if not same:
            raise StoreUnavailable(f"{self.path} was removed or replaced while it was open")

    def _write(self) -> contextlib.AbstractContextManager[Connection]:
        return self._transaction("IMMEDIATE")

    def _read(self) -> contextlib.AbstractContextManager[Connection]:
        return self._transaction("DEFERRED")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's and the system's errors as ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
                raise StoreUnavailable(f"{self.path}: {error}") from error  # locked, full, ...
            broken = "not a database" in str(error) or "malformed" in str(error)
            hint = " (`assay db check` tells more, `assay db restore` puts a backup back)"
            raise StoreError(f"{self.path}: {error}{hint if broken else ''}") from error
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        if self._pid != os.getpid():  # forked, and never used here
            return
        with self._lock:
            for pid, _, connection in self._connections:
                if pid == self._pid:
                    connection.close()
            self._connections = [c for c in self._connections if c[0] != self._pid]
        self._local = threading.local()

    # --- collections -----------------------------------------------------------------------------

    def _cid(self, connection: Connection, collection: str) -> int | None:
        row = connection.execute(
            "SELECT cid FROM collections WHERE name = ?", (check_collection(collection),)
        ).fetchone()
        return row[0] if row else None

    def _make_cid(self, connection: Connection, collection: str) -> int:
        cid = self._cid(connection, collection)
        if cid is None:
            cid = connection.execute(
                "INSERT INTO collections (name) VALUES (?)", (collection,)
            ).lastrowid
        assert cid is not None
        return cid

    def collections(self, *, internal: bool = False) -> list[str]:
        with self._read() as connection:
            names = [
                name
                for name, cid in connection.execute("SELECT name, cid FROM collections").fetchall()
                if connection.execute("SELECT 1 FROM documents WHERE cid = ?", (cid,)).fetchone()
            ]
        return sorted(name for name in names if internal or not is_internal(name))

    def drop(self, collection: str) -> None:
        with self._write() as connection:
            cid = self._cid(connection, collection)
            if cid is not None:
                connection.execute(
                    "DELETE FROM entries WHERE iid IN (SELECT iid FROM indexes WHERE cid = ?)",
                    (cid,),
                )
                for table in ("indexes", "documents", "collections"):
                    connection.execute(f"DELETE FROM {table} WHERE cid = ?", (cid,))
            _delete_blobs(connection, f"{collection}/")

    def allocate_ids(self, collection: str, n: int) -> int:
        if n < 1:
            raise StoreError(f"cannot allocate {n} ids")
        with self._write() as connection:
            cid = self._cid(connection, collection)
            greatest = connection.execute(  # ints sort before text
                "SELECT id FROM documents WHERE cid = ? AND id < '' ORDER BY id DESC LIMIT 1",
                (cid,),
            ).fetchone()
            counters = self._make_cid(connection, COUNTERS)
            query = compile_filter({"_id": collection})
            found = next(self._matching(connection, counters, query), None)
            given = found[1]["next"] if found else 1
            first: int = max(given, 1, greatest[0] + 1 if greatest else 1)
            counter = {"_id": collection, "next": first + n}
            if found:
                self._rewrite(connection, found[0], counter)
            else:
                self._add(connection, counters, [], counter)
        return first

    # --- indexes ---------------------------------------------------------------------------------

    def _indexes(self, connection: Connection, cid: int) -> list[Index]:
        rows = connection.execute("SELECT iid, field, is_unique FROM indexes WHERE cid = ?", (cid,))
        return [Index(iid, field, split_path(field), bool(unique)) for iid, field, unique in rows]

    def indexes(self, collection: str) -> dict[str, bool]:
        with self._read() as connection:
            cid = self._cid(connection, collection)
            found = self._indexes(connection, cid) if cid is not None else []
        return {index.field: index.unique for index in sorted(found, key=lambda i: i.field)}

    def ensure_unique(self, collection: str, field: str) -> None:
        self._ensure(collection, field, unique=True)

    def ensure_index(self, collection: str, field: str) -> None:
        self._ensure(collection, field, unique=False)

    def _ensure(self, collection: str, field: str, *, unique: bool) -> None:
        parts = split_path(field)
        known = self.indexes(collection).get(field)
        if known is not None and known >= unique:
            return
        with self._write() as connection:
            cid = self._make_cid(connection, collection)
            for old in self._indexes(connection, cid):
                if old.field == field:
                    connection.execute("DELETE FROM entries WHERE iid = ?", (old.iid,))
                    connection.execute("DELETE FROM indexes WHERE iid = ?", (old.iid,))
            iid = connection.execute(
                "INSERT INTO indexes (cid, field, is_unique) VALUES (?, ?, ?)", (cid, field, unique)
            ).lastrowid
            assert iid is not None
            index = Index(iid, field, parts, unique)
            for seq, document in self._matching(connection, cid, compile_filter(None)):
                self._enter(connection, seq, document, index)

    @staticmethod
    def _enter(connection: Connection, seq: int, document: Document, index: Index) -> None:
        rows = [(index.iid, key, seq, index.unique) for key in index.keys(document)]
        try:
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError:
            raise DuplicateKey(
                f"document {document['_id']!r}: its {index.field!r} is taken by another document"
            ) from None

    # --- reading ---------------------------------------------------------------------------------

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
        query, kept = compile_filter(filter), check_fields(fields)
        order = check_sort(sort)
        with self._read() as connection:
            cid = self._cid(connection, collection)
            if cid is None:
                return []
            rows = self._ordered(connection, cid, query, order, limit + skip if limit else 0)
            found = [document for _, document in rows][skip:]
        return found if kept is None else [project(document, kept) for document in found]

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

    def count(self, collection: str, filter: Mapping[str, Any] | None = None) -> int:
        query = compile_filter(filter)
        with self._read() as connection:
            cid = self._cid(connection, collection)
            if cid is None:
                return 0
            sql, parameters, decides = self._where(connection, cid, query)
            if decides:
                row = connection.execute(f"SELECT count(*) FROM documents WHERE {sql}", parameters)
                return int(row.fetchone()[0])
            return sum(1 for _ in self._matching(connection, cid, query))

    def counts(
        self, collection: str, field: str, filter: Mapping[str, Any] | None = None
    ) -> dict[Any, int]:
        query = compile_filter(filter)
        split_path(field)
        with self._read() as connection:
            cid = self._cid(connection, collection)
            if cid is None:
                return {}
            sql, parameters, decides = self._where(connection, cid, query)
            if field == "status" and decides and not self._odd_status(connection, cid):
                rows = connection.execute(
                    f"SELECT status, count(*) FROM documents WHERE {sql} GROUP BY status",
                    parameters,
                )
                return dict(rows.fetchall())
            values = (get(d, field) for _, d in self._matching(connection, cid, query))
            return group(values, field)

    def _ordered(
        self,
        connection: Connection,
        cid: int,
        query: Filter,
        order: Sequence[tuple[str, int]],
        limit: int,
    ) -> list[tuple[int, Document]]:
        """The first `limit` (0: all) matching documents in the order of `check_sort`."""
        if order[0][0] == "_id":
            rows = self._matching(connection, cid, query, direction=order[0][1], soon=limit)
            return [row for row, _ in zip(rows, range(limit), strict=False)] if limit else [*rows]
        rows = self._matching(connection, cid, query)
        ordered = sort_documents(rows, order, document=lambda row: row[1])
        return ordered[:limit] if limit else ordered

    def _matching(
        self,
        connection: Connection,
        cid: int,
        query: Filter,
        *,
        direction: int = 1,
        soon: int = 0,
    ) -> Iterator[tuple[int, Document]]:
        """(seq, document) of the matching ones, by `_id`; `soon`: how many are likely wanted.

        First the row numbers, off the indexes alone, then the bodies in growing batches: sorting
        never moves bodies, and a small limit reads few of them.
        """
        sql, parameters, decides = self._where(connection, cid, query)
        down = "DESC" if direction < 0 else "ASC"
        # Walk an index in the order of the ids, so that a small limit ends soon; but not the whole
        # collection where a list of values leads to the rows (a unary plus hides a column).
        by = "+id" if " IN (" in sql else "id"
        rows = connection.execute(
            f"SELECT seq FROM documents WHERE {sql} ORDER BY {by} {down}", parameters
        )
        size = min(soon, 512) or 512
        while batch := [seq for (seq,) in rows.fetchmany(size)]:
            bodies = dict(
                connection.execute(
                    "SELECT seq, body FROM documents WHERE seq IN (SELECT value FROM json_each(?))",
                    (json.dumps(batch),),
                ).fetchall()
            )
            for seq in batch:
                document = decode(bodies[seq])
                if decides or query.matches(document):
                    yield seq, document
            size = min(size * 2, 512)

    # --- filters in SQL --------------------------------------------------------------------------

    def _where(self, connection: Connection, cid: int, query: Filter) -> Where:
        indexes = {index.field: index.iid for index in self._indexes(connection, cid)}
        translator = Translator(indexes, self._odd_status(connection, cid))
        sql, parameters, decides = translator.document(query.tree)
        column = "+cid" if sql.startswith("(seq IN") else "cid"
        return f"{column} = ? AND ({sql})", [cid, *parameters], decides

    @staticmethod
    def _odd_status(connection: Connection, cid: int) -> bool:
        return (
            connection.execute(
                "SELECT 1 FROM documents WHERE cid = ? AND status = ? LIMIT 1", (cid, ODD_STATUS)
            ).fetchone()
            is not None
        )

    # --- writing ---------------------------------------------------------------------------------

    def insert(self, collection: str, documents: Iterable[Mapping[str, Any]]) -> list[Any]:
        check_collection(collection)
        bodies = [encode(document) for document in documents]
        if not bodies:
            return []
        inserted = []
        with self._write() as connection:
            cid = self._make_cid(connection, collection)
            indexes = self._indexes(connection, cid)
            for body in bodies:
                document = decode(body)
                if self._add(connection, cid, indexes, document, body):
                    inserted.append(document["_id"])
        return inserted

    def _add(
        self,
        connection: Connection,
        cid: int,
        indexes: list[Index],
        document: Document,
        body: bytes | None = None,
    ) -> bool:
        """Insert a document unless its `_id` or a unique field is taken."""
        cursor = connection.execute(
            "INSERT OR IGNORE INTO documents (cid, id, status, body) VALUES (?, ?, ?, ?)",
            (cid, document["_id"], status_column(document), body or encode(document)),
        )
        if not cursor.rowcount:
            return False
        seq = cursor.lastrowid
        for index in indexes:
            rows = [(index.iid, key, seq, index.unique) for key in index.keys(document)]
            added = connection.executemany(
                "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)", rows
            ).rowcount
            if rows and added < len(rows):
                connection.execute("DELETE FROM entries WHERE seq = ?", (seq,))
                connection.execute("DELETE FROM documents WHERE seq = ?", (seq,))
                return False
        return True

    def _rewrite(self, connection: Connection, seq: int, document: Document) -> None:
        connection.execute(
            "UPDATE documents SET status = ?, body = ? WHERE seq = ?",
            (status_column(document), encode(document), seq),
        )

    def update(
        self,
        collection: str,
        filter: Mapping[str, Any],
        update: Mapping[str, Any],
        *,
        many: bool = False,
        upsert: bool = False,
    ) -> int:
        query, change = compile_filter(filter), compile_update(update)
        new_id = check_upsert(query) if upsert else None
        with self._write() as connection:
            cid = self._make_cid(connection, collection) if upsert else None
            cid = cid or self._cid(connection, collection)
            if cid is None:
                return 0
            found = self._ordered(connection, cid, query, _BY_ID, 0 if many else 1)
            self._change(connection, cid, found, change)
            if upsert and not found:
                document = change.apply({"_id": new_id}, inserting=True)
                if not self._add(connection, cid, self._indexes(connection, cid), document):
                    raise DuplicateKey(f"document {new_id!r}: a unique field of it is taken")
                return 1
        return len(found)

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
        query, change, order = compile_filter(filter), compile_update(update), check_sort(sort)
        if limit < 1:
            return []
        with self._read() as connection:  # an idle worker must not hold up the ones that write
            cid = self._cid(connection, collection)
            if cid is None or not self._ordered(connection, cid, query, _BY_ID, 1):
                return []
        with self._write() as connection:
            found = self._ordered(connection, cid, query, order, limit)
            self._change(connection, cid, found, change)
        return [document for _, document in found]

    def _change(
        self, connection: Connection, cid: int, found: list[tuple[int, Document]], change: Update
    ) -> None:
        indexes = self._indexes(connection, cid)
        for seq, document in found:
            before = [index.keys(document) for index in indexes]
            change.apply(document)
            self._rewrite(connection, seq, document)
            for index, keys in zip(indexes, before, strict=True):
                if index.keys(document) != keys:
                    connection.execute(
                        "DELETE FROM entries WHERE iid = ? AND seq = ?", (index.iid, seq)
                    )
                    self._enter(connection, seq, document, index)

    def delete(self, collection: str, filter: Mapping[str, Any]) -> int:
        query = compile_filter(filter)
        with self._write() as connection:
            cid = self._cid(connection, collection)
            if cid is None:
                return 0
            rows = [(seq,) for seq, _ in self._matching(connection, cid, query)]
            connection.executemany("DELETE FROM entries WHERE seq = ?", rows)
            connection.executemany("DELETE FROM documents WHERE seq = ?", rows)
        return len(rows)

    # --- blobs -----------------------------------------------------------------------------------

    def put_blob(self, key: str, data: bytes, metadata: Mapping[str, Any] | None = None) -> None:
        check_blob_key(key)
        facts = encode({"_id": 0, "metadata": dict(metadata) if metadata is not None else None})
        digest = hashlib.sha256(data).hexdigest()
        view, starts = memoryview(data), range(0, len(data), CHUNK)
        with self._write() as connection:
            connection.execute("DELETE FROM blob_chunks WHERE key = ?", (key,))
            connection.execute(
                "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)", (key, len(data), digest, facts)
            )
            connection.executemany(
                "INSERT INTO blob_chunks VALUES (?, ?, ?)",
                ((key, n, view[start : start + CHUNK]) for n, start in enumerate(starts)),
            )

    def get_blob(self, key: str) -> bytes | None:
        return self.get_blobs([key]).get(key)

    def get_blobs(self, keys: Iterable[str]) -> dict[str, bytes]:
        with self._read() as connection:
            return {k: data for k in keys if (data := self._blob(connection, k)) is not None}

    @staticmethod
    def _blob(connection: Connection, key: str) -> bytes | None:
        row = connection.execute("SELECT sha256 FROM blobs WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        chunks = connection.execute("SELECT data FROM blob_chunks WHERE key = ? ORDER BY n", (key,))
        data = b"".join(chunk for (chunk,) in chunks)
        if hashlib.sha256(data).hexdigest() != row[0]:
            raise StoreError(f"blob {key!r} is broken: its checksum is wrong")
        return data

    def blob_info(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        with self._read() as connection:
            rows = connection.execute(
                "SELECT * FROM blobs WHERE key >= ? AND key < ? ORDER BY key",
                (prefix, prefix + _LAST),
            ).fetchall()
        return {
            key: {"size": size, "sha256": digest, "metadata": decode(facts)["metadata"]}
            for key, size, digest, facts in rows
        }

    def blob_keys(self, prefix: str = "") -> list[str]:
        return list(self.blob_info(prefix))

    def delete_blobs(self, prefix: str) -> int:
        with self._write() as connection:
            return _delete_blobs(connection, prefix)

    # --- the whole -------------------------------------------------------------------------------

    def check(self) -> list[str]:
        problems = []
        if stat.S_IMODE(self.path.stat().st_mode) & 0o077:
            problems.append(f"{self.path} can be read by others: chmod 600 it")
        with self._read() as connection:
            report = connection.execute("PRAGMA integrity_check").fetchall()
            problems += [f"SQLite: {line}" for (line,) in report if line != "ok"]
            for cid, name in connection.execute("SELECT cid, name FROM collections").fetchall():
                problems += [f"{name}: {p}" for p in self._check_collection(connection, cid)]
            for (key,) in connection.execute("SELECT key FROM blobs").fetchall():
                try:
                    self._blob(connection, key)
                except StoreError as error:
                    problems.append(str(error))
        return problems

    def _check_collection(self, connection: Connection, cid: int) -> Iterator[str]:
        indexes = self._indexes(connection, cid)
        rows = connection.execute(
            "SELECT seq, id, status, body FROM documents WHERE cid = ?", (cid,)
        )
        for seq, identity, status, body in rows:
            try:
                document = decode(body)
                right = (document["_id"], status_column(document)) == (identity, status)
                expected = {(index.iid, k) for index in indexes for k in index.keys(document)}
            except Exception as error:  # whatever the bytes make the decoder do
                yield f"document {identity!r} cannot be read: {error}"
                continue
            entries = connection.execute("SELECT iid, value FROM entries WHERE seq = ?", (seq,))
            if not right or set(entries.fetchall()) != expected:
                yield f"document {identity!r} and its index entries differ"

    def backup(self, path: str | os.PathLike[str]) -> None:
        from orchestrator.store.transfer import writing_backup

        with writing_backup(path) as partial, self._errors():
            host.create_private(partial)
            target = sqlite3.connect(partial, isolation_level=None)
            try:
                self._connection().backup(target)
                target.execute("PRAGMA journal_mode = DELETE").fetchone()
            finally:
                target.close()

    def restore(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        from orchestrator.store.transfer import restore

        restore(self, path, force=force)

    def ping(self) -> None:
        self._check_file()
        with self._read() as connection:
            connection.execute("SELECT count(*) FROM meta").fetchone()

    def describe(self) -> dict[str, Any]:
        with self._read() as connection:
            documents = connection.execute("SELECT count(*) FROM documents").fetchone()[0]
            blobs, size = connection.execute("SELECT count(*), total(size) FROM blobs").fetchone()
            writer = connection.execute("SELECT value FROM meta WHERE key = 'host'").fetchone()[0]
        return {
            "kind": self.kind,
            "url": self.url,
            "host": writer,
            "server": f"SQLite {sqlite3.sqlite_version}",
            "filesystem": host.filesystem(self.path),
            "bytes": self.path.stat().st_size,
            "documents": documents,
            "blobs": blobs,
            "blob_bytes": int(size),
        }


# --- small things --------------------------------------------------------------------------------


def _delete_blobs(connection: Connection, prefix: str) -> int:
    between = (prefix, prefix + _LAST)
    connection.execute("DELETE FROM blob_chunks WHERE key >= ? AND key < ?", between)
    return connection.execute("DELETE FROM blobs WHERE key >= ? AND key < ?", between).rowcount


def _patiently(action: Callable[[], object]) -> None:
    """Repeat what SQLite refuses while another connection holds a lock, for BUSY_SECONDS."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            action()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.0005, 0.004))
