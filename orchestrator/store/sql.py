"""What SQLite sees of documents and filters: columns, index entries, and SQL that narrows down."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from orchestrator.store.documents import MISSING, Document, is_nan, order_key, rank, reach
from orchestrator.store.filters import operators

# The column `status` is the document's if that is text, NULL if it has none, else this.
ODD_STATUS = b"\0"
MANY = 100  # values that go to SQL one by one; more go as one JSON text

Where = tuple[str, list[Any], bool]
"""SQL, its parameters, and whether it decides alone; "1" says nothing."""


def status_column(document: Document) -> str | bytes | None:
    status = document.get("status")
    return status if status is None or isinstance(status, str) else ODD_STATUS


def index_keys(document: Document, parts: tuple[str, ...]) -> set[Any]:
    """What an index on a path holds of a document: one key per value that is there.

    Text and numbers stand for themselves, as SQLite compares them like MongoDB does; any other
    value is a bytes key that equal values share.
    """
    return {_index_key(value) for value in reach(document, parts) if value is not MISSING}


def _index_key(value: Any) -> Any:
    kind = rank(value)
    if kind == 15:
        return str(value)
    if kind == 10 and isinstance(value, int | float) and not is_nan(value):
        return int(value) if isinstance(value, int) else value
    return hashlib.sha256(repr(_plain(order_key(value))).encode()).digest()


def _plain(key: Any) -> Any:
    """An order key in which equal numbers are also written alike."""
    if isinstance(key, tuple):
        return tuple(_plain(part) for part in key)
    if isinstance(key, float) and key.is_integer():
        return int(key)
    return int(key) if isinstance(key, int) and not isinstance(key, bool) else key


class Translator:
    """From a filter to SQL that finds at least what the filter finds."""

    def __init__(self, indexes: Mapping[str, int], odd_status: bool) -> None:
        self.indexes, self.odd_status = indexes, odd_status

    def document(self, query: Mapping[str, Any]) -> Where:
        found = [self._clause(key, condition) for key, condition in query.items()]
        useful = [where for where in found if where[0] != "1"]
        # Conditions that lead to rows by an index come first (see SqliteStore._where).
        useful.sort(key=lambda where: not where[0].startswith("(seq IN"))
        sql = " AND ".join(where[0] for where in useful) or "1"
        return sql, [p for w in useful for p in w[1]], all(w[2] for w in found)

    def _clause(self, key: str, condition: Any) -> Where:
        if key == "$and":
            return self._joined([self.document(branch) for branch in condition], " AND ")
        if key == "$or":
            branches = [self.document(branch) for branch in condition]
            if any(sql == "1" for sql, _, _ in branches):
                return "1", [], False
            return self._joined(branches, " OR ")
        if key == "$nor":
            return "1", [], False
        found = operators(condition)
        pairs = [("$eq", condition)] if found is None else list(found.items())
        return self._joined([self._piece(key, op, operand) for op, operand in pairs], " AND ")

    @staticmethod
    def _joined(parts: list[Where], joint: str) -> Where:
        if len(parts) == 1:
            return parts[0]
        sql = f"({joint.join(f'({sql})' for sql, _, _ in parts)})"
        if all(where[0] == "1" for where in parts):
            sql = "1"
        return sql, [p for w in parts for p in w[1]], all(w[2] for w in parts)

    def _piece(self, path: str, op: str, operand: Any) -> Where:
        unknown: Where = ("1", [], False)
        if path == "_id":
            return self._id(op, operand) or unknown
        values = [operand] if op == "$eq" else operand if op == "$in" else None
        if not isinstance(values, list) or not all(map(_is_plain, values)) or _inexact(values):
            return unknown
        if path == "status" and all(isinstance(value, str) for value in values):
            sql, parameters = _one_of("status", values)
            if values and self.odd_status:
                return f"({sql} OR status = x'00')", parameters, False
            return sql, parameters, True
        if path in self.indexes:
            sql, parameters = _one_of("value", values)
            inner = f"SELECT seq FROM entries WHERE iid = ? AND {sql}"
            return f"(seq IN ({inner}))", [self.indexes[path], *parameters], True
        return unknown

    def _id(self, op: str, operand: Any) -> Where | None:
        """Our ids are ints or text, so that SQL alone decides."""
        if op in ("$eq", "$in"):
            values = [v for v in ([operand] if op == "$eq" else operand) if rank(v) in (10, 15)]
            if not all(map(_is_plain, values)) or _inexact(values):
                return None
            return (*_one_of("id", values), True)
        comparison = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}.get(op)
        if comparison and _is_plain(operand):
            kind = "text" if isinstance(operand, str) else "integer"
            return f"typeof(id) = '{kind}' AND id {comparison} ?", [operand], True
        return None


def _is_plain(value: Any) -> bool:
    """Whether SQLite compares the value like MongoDB does, also inside JSON."""
    if isinstance(value, str):
        return "\0" not in value
    return rank(value) == 10 and isinstance(value, int | float) and math.isfinite(value)


def _inexact(values: list[Any]) -> bool:
    """Whether the values would go through JSON, and some of them not come out the same."""
    return len(values) >= MANY and any(isinstance(value, float) for value in values)


def _one_of(column: str, values: list[Any]) -> tuple[str, list[Any]]:
    if not values:
        return "0", []
    if len(values) == 1:
        return f"{column} = ?", values
    if len(values) < MANY:
        return f"{column} IN ({', '.join('?' * len(values))})", values
    return f"{column} IN (SELECT value FROM json_each(?))", [json.dumps(values)]
