"""Documents as both stores see them: BSON values, MongoDB's order of values, dotted paths.

BSON is the storage format of the SQLite file too, so a document that was accepted by one store is
accepted by the other and comes back the same, byte for byte. Two conventions on top of BSON:

- `_id` is an int (64 bit) or a str;
- a key holds no dot and does not start with a dollar (older MongoDB servers cannot address them).

Datetimes come back aware, in UTC, with milliseconds (all that BSON keeps); a naive one is taken as
UTC. The order of values is MongoDB's comparison order
(https://www.mongodb.com/docs/manual/reference/bson-type-comparison-order/).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import bson
from bson.codec_options import CodecOptions
from bson.errors import BSONError

from orchestrator.store.errors import StoreError

Document = dict[str, Any]
T = TypeVar("T")

CODEC: CodecOptions[Document] = CodecOptions(tz_aware=True, tzinfo=UTC)
MAX_DOCUMENT = 16 * 1024 * 1024  # bytes; MongoDB's limit, kept by both stores

# The two collections that hold the blobs on MongoDB. SQLite keeps blobs in tables of their own.
BLOBS, BLOB_CHUNKS = "assay.blobs", "assay.blobs.chunks"
COUNTERS = "assay.counters"  # {_id: collection, next: first id never given out}
FOREIGN = ("system.", "fs.")  # the server's own; GridFS, where SEML keeps source files
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class Missing:
    """The value that a path reaches where there is nothing."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = Missing()


# --- names ---------------------------------------------------------------------------------------


def check_collection(name: str) -> str:
    """`name`, or StoreError if it is not a collection that a caller may use."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 100:
        raise StoreError(
            f"collection {name!r}: use up to 100 of A-Z a-z 0-9 _ - and single dots in between"
        )
    if name.startswith("system.") or name in (BLOBS, BLOB_CHUNKS):
        raise StoreError(f"collection {name!r}: this name is reserved for the store itself")
    return name


def is_internal(name: str) -> bool:
    """Whether `name` is bookkeeping (ours, the server's, GridFS) and not a user's sweep."""
    return name.startswith(("assay.", *FOREIGN))


def check_blob_key(key: str) -> str:
    """`key`, or StoreError. Convention: `<collection>/<id>/<attempt>/<name>`."""
    if (
        not isinstance(key, str)
        or not key
        or "\0" in key
        or len(key.encode(errors="replace")) > 900
    ):
        raise StoreError(f"blob key {key!r}: must be text of 1 to 900 bytes without NUL")
    return key


def split_path(path: str) -> tuple[str, ...]:
    """The parts of a dotted path; StoreError for an empty part or one with a leading dollar."""
    parts = tuple(path.split(".")) if isinstance(path, str) else ()
    if not parts or any(not part or part[0] == "$" or "\0" in part for part in parts):
        raise StoreError(f"{path!r} is not a dotted path of field names")
    return parts


# --- encoding ------------------------------------------------------------------------------------


def encode(document: Mapping[str, Any]) -> bytes:
    """BSON of a document to store, `_id` first.

    Raises StoreError for what cannot be stored alike on both stores: no int or str `_id`, keys with
    dots or leading dollars, values that are not BSON (NumPy scalars, say), more than 16 MiB.
    """
    identity = document.get("_id", MISSING)
    if not isinstance(identity, int | str) or isinstance(identity, bool):
        raise StoreError(f"_id must be an int or a str, not {identity!r}")
    data = _bson(document, f"document {identity!r}")
    if len(data) > MAX_DOCUMENT:
        raise StoreError(
            f"document {identity!r} has {len(data):,} bytes, more than the {MAX_DOCUMENT:,} that "
            "a store takes: put large data into a blob"
        )
    return data


def decode(data: bytes) -> Document:
    """The document that `encode` wrote."""
    return bson.decode(data, CODEC)


def normalise(value: Any, *, what: str, check_keys: bool = True) -> Any:
    """`value` as it will come back from the store (tuples to lists, datetimes to UTC ms, ...)."""
    return decode(_bson({"value": value}, what, check_keys=check_keys))["value"]


def _bson(document: Mapping[str, Any], what: str, *, check_keys: bool = True) -> bytes:
    try:
        return bson.encode(document, check_keys, CODEC)
    except (BSONError, OverflowError, UnicodeError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StoreError(f"{what} cannot be stored: {reason}") from None


# --- order ---------------------------------------------------------------------------------------

_RANK = {
    type(None): 5,
    int: 10,
    float: 10,
    bson.Int64: 10,
    bson.Decimal128: 10,
    str: 15,
    dict: 20,
    list: 25,
    bytes: 30,
    bson.Binary: 30,
    bson.ObjectId: 35,
    bool: 40,
    datetime: 45,
    bson.Timestamp: 47,
    bson.Regex: 50,
}
EMPTY_ARRAY_RANK = 1  # an empty array sorts before null


def rank(value: Any) -> int:
    """The class of types that `value` is compared with; other classes never match it."""
    return _RANK.get(type(value), 60)


def order_key(value: Any) -> tuple[Any, ...]:
    """A key that compares and equals as MongoDB compares and equals `value` (NaN = NaN < -inf)."""
    kind = type(value)
    if kind is bson.Decimal128:
        value = value.to_decimal()
        return (10, 0, 0) if value.is_nan() else (10, 1, value)
    number = rank(value)
    if number == 10:
        return (10, 0, 0) if value != value else (10, 1, value)
    if kind is dict:
        return (20, tuple((rank(v), k, order_key(v)) for k, v in value.items()))
    if kind is list:
        return (25, tuple((rank(v), order_key(v)) for v in value))
    if number == 30:
        return (30, len(value), getattr(value, "subtype", 0), bytes(value))
    if number == 50:
        return (50, value.pattern, value.flags)
    if number == 5:
        return (5,)
    if number == 60:
        return (60, repr(value))
    return (number, value)


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def sort_documents(
    rows: Iterable[T], sort: Iterable[tuple[str, int]], document: Callable[[T], Document]
) -> list[T]:
    """`rows` by their documents in MongoDB's order; an array counts as its least (downwards: its
    greatest) element."""
    rows = list(rows)
    for path, direction in reversed(list(sort)):
        parts, pick = split_path(path), (min if direction > 0 else max)
        keys = [pick(_sort_keys(document(row), parts)) for row in rows]
        order = sorted(range(len(rows)), key=keys.__getitem__, reverse=direction < 0)
        rows = [rows[index] for index in order]
    return rows


def check_sort(sort: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The sort with `_id` as its last key, so that the order is never left open."""
    order = [(str(path), direction) for path, direction in sort]
    for path, direction in order:
        split_path(path)
        if direction not in (1, -1):
            raise StoreError(f"sort by {path!r}: the direction is 1 or -1, not {direction!r}")
    return order if any(path == "_id" for path, _ in order) else [*order, ("_id", 1)]


def _sort_keys(document: Any, parts: tuple[str, ...]) -> list[tuple[Any, ...]]:
    keys = []
    for value in reach(document, parts, expand=False):
        if isinstance(value, list):
            keys += [order_key(v) for v in value] or [(EMPTY_ARRAY_RANK,)]
        else:
            keys.append(order_key(None if value is MISSING else value))
    return keys or [order_key(None)]


# --- paths ---------------------------------------------------------------------------------------


def reach(document: Any, parts: tuple[str, ...], *, expand: bool = True) -> Iterator[Any]:
    """Every value that a filter on this path looks at, MISSING where there is none.

    An array on the way is entered: each of its documents is followed, and an all-digit part is
    an index too. With `expand`, an array at the end gives its elements and then itself.
    """
    for depth, part in enumerate(parts):
        if isinstance(document, list):
            yield from _reach_array(document, parts[depth:], expand)
            return
        document = document.get(part, MISSING) if isinstance(document, dict) else MISSING
        if document is MISSING:
            yield MISSING
            return
    if expand and isinstance(document, list):
        yield from document
    yield document


def _reach_array(array: list[Any], parts: tuple[str, ...], expand: bool) -> Iterator[Any]:
    for index, element in enumerate(array):
        if isinstance(element, dict):
            yield from reach(element, parts, expand=expand)
        if parts[0] == str(index):
            if len(parts) == 1:
                yield element  # the index was the last step: its value is not expanded
            elif isinstance(element, dict | list):
                yield from reach(element, parts[1:], expand=expand)


def get(document: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path through dicts, `default` where there is none."""
    for part in path.split("."):
        if not isinstance(document, dict) or part not in document:
            return default
        document = document[part]
    return document


def check_fields(fields: Iterable[str] | None) -> list[str] | None:
    """A projection without paths that lie inside others (which MongoDB refuses), `_id` added."""
    if fields is None:
        return None
    if isinstance(fields, str):
        raise StoreError(f"fields must be a list of paths, not the text {fields!r}")
    paths = sorted({"_id", *fields}, key=lambda path: path.count("."))
    kept: list[str] = []
    for path in paths:
        split_path(path)
        if not any(path.startswith(f"{other}.") for other in kept):
            kept.append(path)
    return kept


def project(document: Document, fields: list[str]) -> Document:
    """The part of `document` under the paths of `check_fields`, in the document's own order."""
    tree: dict[str, Any] = {}
    for path in fields:
        node = tree
        *parents, leaf = path.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = None
    return _project(document, tree)


def _project(document: Document, tree: dict[str, Any]) -> Document:
    out = {}
    for key, value in document.items():
        if key not in tree:
            continue
        if tree[key] is None:
            out[key] = value
        elif isinstance(value, dict):
            out[key] = _project(value, tree[key])
        elif isinstance(value, list):
            out[key] = _project_array(value, tree[key])
    return out


def _project_array(array: list[Any], tree: dict[str, Any]) -> list[Any]:
    return [
        _project(v, tree) if isinstance(v, dict) else _project_array(v, tree)
        for v in array
        if isinstance(v, dict | list)
    ]


def group(values: Iterable[Any], field: str) -> dict[Any, int]:
    """How often each value occurs; None counts the missing ones too, all NaNs are one."""
    counts: dict[Any, int] = {}
    for value in values:
        key = math.nan if is_nan(value) else value
        try:
            counts[key] = counts.get(key, 0) + 1
        except TypeError:
            raise StoreError(
                f"cannot count by {field!r}: some documents hold a {type(value).__name__} there"
            ) from None
    return counts
