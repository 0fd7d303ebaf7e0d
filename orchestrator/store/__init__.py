"""The documents and where they live: one protocol, two stores.

`open_store` gives an SQLite file on this machine (`sqlite.py`, the default) or a MongoDB database
(`mongo.py`). Both speak the same filters (`filters.py`), the same updates (`updates.py`) and keep
the same documents (`documents.py`); `transfer.py` moves sweeps between them. Collections named
`assay.*` are the orchestrator's own and are not listed among the user's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from orchestrator.store.errors import DuplicateKey, StoreError, StoreUnavailable

__all__ = [
    "DuplicateKey",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "leave",
    "open_store",
    "redact",
]

Filter = Mapping[str, Any]
Sort = Sequence[tuple[str, int]]


class Store(Protocol):
    """A database of documents (dicts with an int or str `_id`) and blobs.

    Every operation is durable when it returns and atomic per document (on SQLite: as a whole).
    All of them raise StoreError for a wrong request, StoreUnavailable when the store is away.
    """

    @property
    def url(self) -> str:
        """Where it is, without the password."""

    @property
    def kind(self) -> Literal["sqlite", "mongodb"]:
        """Which of the two stores it is."""

    # --- documents ---
    def insert(self, collection: str, documents: Iterable[Mapping[str, Any]]) -> list[Any]:
        """Add documents; returns the `_id`s of the new ones.

        Documents whose `_id` or unique field is there already are left out; of several such
        documents in one or many calls at once, exactly one gets in.
        """

    def find(
        self,
        collection: str,
        filter: Filter | None = None,
        *,
        fields: Iterable[str] | None = None,
        sort: Sort = (("_id", 1),),
        limit: int = 0,
        skip: int = 0,
    ) -> list[dict[str, Any]]:
        """Matching documents; `fields` keeps only these dotted paths and `_id`. 0 = no limit.

        Ties of the sort are broken by `_id`. Null and missing come first, then numbers, text, ...
        """

    def find_one(
        self,
        collection: str,
        filter: Filter | None = None,
        *,
        fields: Iterable[str] | None = None,
        sort: Sort = (("_id", 1),),
    ) -> dict[str, Any] | None:
        """The first of `find`, or None."""

    def count(self, collection: str, filter: Filter | None = None) -> int:
        """How many documents match."""

    def counts(self, collection: str, field: str, filter: Filter | None = None) -> dict[Any, int]:
        """How many documents match for each value of a field (None: null or missing)."""

    def update(
        self,
        collection: str,
        filter: Filter,
        update: Mapping[str, Any],
        *,
        many: bool = False,
        upsert: bool = False,
    ) -> int:
        """Change one matching document, or `many`; returns how many matched (and were written).

        `upsert` inserts the document if there is none; its filter must be `{"_id": value}`.
        Raises DuplicateKey if a unique field would be there twice. If one of `many` fails, SQLite
        has changed none, MongoDB those before it.
        """

    def claim(
        self,
        collection: str,
        filter: Filter,
        update: Mapping[str, Any],
        *,
        limit: int,
        sort: Sort = (("_id", 1),),
        guard: Sequence[str] = ("status", "assay.attempt"),
    ) -> list[dict[str, Any]]:
        """Change up to `limit` matching documents and return them as they are afterwards.

        However many callers claim at once, each document goes to one of them, as long as
        `update` changes a `guard` field or makes `filter` false. A lone caller gets documents in
        the order of `sort`; concurrent ones on MongoDB nearly so.
        """

    def delete(self, collection: str, filter: Filter) -> int:
        """Remove the matching documents; returns how many."""

    # --- collections ---
    def ensure_unique(self, collection: str, field: str) -> None:
        """No two documents may have the same value there; those without the field are free.

        Raises DuplicateKey if there are such documents already.
        """

    def ensure_index(self, collection: str, field: str) -> None:
        """Make filters on this field fast."""

    def indexes(self, collection: str) -> dict[str, bool]:
        """The indexed fields, and whether they are unique."""

    def collections(self, *, internal: bool = False) -> list[str]:
        """The users' collections that hold documents; with `internal`, the orchestrator's too."""

    def drop(self, collection: str) -> None:
        """Remove a collection, its indexes and its blobs. Its ids are not given out again."""

    def allocate_ids(self, collection: str, n: int) -> int:
        """The first of `n` consecutive fresh ids, above every int `_id` in use, from 1 on."""

    # --- blobs: `<collection>/<id>/<attempt>/<name>` ---
    def put_blob(self, key: str, data: bytes, metadata: Mapping[str, Any] | None = None) -> None:
        """Store bytes of any size; what was there under this key is replaced, at once."""

    def get_blob(self, key: str) -> bytes | None:
        """The bytes, or None. StoreError if their checksum is wrong."""

    def get_blobs(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Those of the blobs that exist, in few round trips. StoreError as in `get_blob`."""

    def blob_info(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """`{key: {"size", "sha256", "metadata"}}` of the blobs whose keys begin so."""

    def blob_keys(self, prefix: str = "") -> list[str]:
        """The keys that begin so, sorted."""

    def delete_blobs(self, prefix: str) -> int:
        """Remove the blobs whose keys begin so; returns how many."""

    # --- the whole ---
    def check(self) -> list[str]:
        """What is wrong with the stored data, one line each; empty if nothing is."""

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one new file, from which either kind of store can `restore`.

        SQLite writes a snapshot; on MongoDB, what changes meanwhile may be in it or not.
        """

    def restore(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Put back a backup. StoreError if the store is not empty; with `force`, collections and
        blobs of the same names are replaced."""

    def ping(self) -> None:
        """StoreUnavailable if the store does not answer."""

    def describe(self) -> dict[str, Any]:
        """Facts about the store and its host, for a person to read."""

    def close(self) -> None:
        """Give back connections; the store must not be used afterwards."""


def open_store(url: str | None = None, *, adopt: bool = False) -> Store:
    """The store at `mongodb://...`, `mongodb+srv://...`, `sqlite:///path` or `path.sqlite`.

    None is the embedded default, a file in the user's data directory. MongoDB is not contacted
    yet (`ping` does that). `adopt` takes over an SQLite file that was moved here from another host.
    """
    if url is None:
        import platformdirs

        url = str(platformdirs.user_data_path("assay") / "assay.sqlite")
    if url.startswith(("mongodb://", "mongodb+srv://")):
        from orchestrator.store.mongo import MongoStore

        return MongoStore(url)
    path = url.removeprefix("sqlite://") if url.startswith("sqlite:///") else url
    if url.startswith("sqlite:///") or ("://" not in url and url.endswith(".sqlite")):
        from orchestrator.store.sqlite import SqliteStore

        return SqliteStore(Path(path).expanduser(), adopt=adopt)
    raise StoreError(
        f"{redact(url)!r} is not a store: use mongodb://..., mongodb+srv://..., "
        "sqlite:///absolute/path or a path that ends in .sqlite"
    )


_SECRET = re.compile(r"([?&;][^=&]*(?:pass|token|secret|credential|properties)[^=&]*=)[^&]*", re.I)


def redact(url: str) -> str:
    """`url` without its password and other secrets, for messages and logs.

    A password may hold unescaped slashes and at-signs: everything up to the last @ is cut.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    if at:
        rest = f"{user}{':***' if colon else ''}@{place}"
    return scheme + separator + _SECRET.sub(r"\1***", rest)


def leave(code: int = 0) -> NoReturn:
    """End this process; the last act of a command.

    pymongo's exit handler waits up to 0.5 s for its monitor threads to wake up. All our writes are
    acknowledged when they return, so nothing is lost by not waiting.
    """
    if "pymongo" not in sys.modules:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a closed pipe must not become a traceback
            code = code or 1
    os._exit(code)
