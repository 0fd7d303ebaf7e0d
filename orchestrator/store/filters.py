"""The filter language of both stores: a subset of MongoDB's, with MongoDB's meaning.

Equality, `$eq $ne $gt $gte $lt $lte $in $nin $exists $regex $options $size $elemMatch $not` on
dotted paths, joined by `$and $or $nor`. A filter that is not of this language is refused on both
stores, so that what works on one works on the other. The meanings to remember:

- comparisons stay inside one class of types: `{"x": {"$lt": 5}}` never finds text or booleans;
- None finds null and missing; `$ne` and `$nin` also find documents without the field;
- a condition on an array holds if one of its elements (or the array as a whole) fulfils it, each
  operator for itself; `$elemMatch` asks for one element that fulfils them together;
- NaN equals NaN, and nothing is less or greater than NaN.

Regular expressions are Python's on SQLite and PCRE's on MongoDB: keep to what they share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bson import Regex

from orchestrator.store.documents import (
    MISSING,
    Document,
    Missing,
    is_nan,
    normalise,
    order_key,
    rank,
    reach,
    split_path,
)
from orchestrator.store.errors import StoreError

# What a condition looks at: called with `expand`, it gives the values that a path reaches.
Values = Callable[[bool], Iterable[Any]]
Condition = Callable[[Values], bool]
Predicate = Callable[[Document], bool]


@dataclass(frozen=True)
class Filter:
    """A compiled filter: `tree` is its normalised form, `matches` decides on a document."""

    tree: Mapping[str, Any]
    matches: Predicate


def compile_filter(query: Mapping[str, Any] | None) -> Filter:
    """Check a filter and make it ready to use; StoreError says what is wrong with it."""
    if query is not None and not isinstance(query, Mapping):
        raise StoreError(f"a filter is a dict, not {query!r}")
    tree = normalise(dict(query or {}), what="filter", check_keys=False)
    return Filter(tree, _document(tree))


def operators(condition: Any) -> dict[str, Any] | None:
    """`condition` as a dict of operators, or None if it is a plain value to be equal to."""
    if not isinstance(condition, dict) or not any(k.startswith("$") for k in condition):
        return None
    if not all(k.startswith("$") for k in condition):
        raise StoreError(f"filter {condition!r} mixes operators and field names")
    return condition


def check_upsert(query: Filter) -> Any:
    """The `_id` that an upsert would insert; StoreError unless the filter is just that."""
    found = query.tree.get("_id")
    if len(query.tree) != 1 or not isinstance(found, int | str) or isinstance(found, bool):
        raise StoreError('an upsert needs the filter {"_id": value} and nothing else')
    return found


# --- documents -----------------------------------------------------------------------------------


def _document(query: Mapping[str, Any]) -> Predicate:
    tests = [_clause(key, condition) for key, condition in query.items()]
    if len(tests) == 1:
        return tests[0]
    return lambda document: all(test(document) for test in tests)


def _clause(key: str, condition: Any) -> Predicate:
    if key in ("$and", "$or", "$nor"):
        if not isinstance(condition, list) or not condition:
            raise StoreError(f"filter {key} needs a list with at least one filter")
        if not all(isinstance(branch, dict) for branch in condition):
            raise StoreError(f"filter {key} needs a list of filters, not {condition!r}")
        branches = [_document(branch) for branch in condition]
        if key == "$and":
            return lambda document: all(branch(document) for branch in branches)
        if key == "$or":
            return lambda document: any(branch(document) for branch in branches)
        return lambda document: not any(branch(document) for branch in branches)
    if key.startswith("$"):
        raise StoreError(f"filter operator {key} is not known (known: $and $or $nor)")
    parts, test = split_path(key), _condition(condition)
    return lambda document: test(lambda expand: reach(document, parts, expand=expand))


# --- conditions on one path ----------------------------------------------------------------------


def _condition(condition: Any) -> Condition:
    found = operators(condition)
    if found is None:
        return _any(_equal(condition))
    if "$options" in found and "$regex" not in found:
        raise StoreError("filter $options needs a $regex beside it")
    tests = [_operator(op, found) for op in found if op != "$options"]
    if len(tests) == 1:
        return tests[0]
    return lambda values: all(test(values) for test in tests)


def _operator(op: str, found: dict[str, Any]) -> Condition:
    operand = found[op]
    match op:
        case "$eq":
            return _any(_equal(operand))
        case "$ne":
            return _not(_any(_equal(operand)))
        case "$gt" | "$gte" | "$lt" | "$lte":
            return _any(_compare(op, operand))
        case "$in":
            return _any(_one_of(op, operand))
        case "$nin":
            return _not(_any(_one_of(op, operand)))
        case "$exists":
            if not isinstance(operand, bool):
                raise StoreError(f"filter $exists needs true or false, not {operand!r}")
            exists = _any(lambda value: value is not MISSING)
            return exists if operand else _not(exists)
        case "$regex":
            return _any(_search(operand, found.get("$options", "")))
        case "$size":
            if not isinstance(operand, int) or isinstance(operand, bool) or operand < 0:
                raise StoreError(f"filter $size needs a count, not {operand!r}")
            return _any(lambda value: isinstance(value, list) and len(value) == operand, False)
        case "$not":
            if not isinstance(operand, dict) or not operators(operand):
                raise StoreError(f"filter $not needs a dict of operators, not {operand!r}")
            return _not(_condition(operand))
        case "$elemMatch":
            return _any(_elem_match(operand), False)
    raise StoreError(
        f"filter operator {op} is not known (known: $eq $ne $gt $gte $lt $lte $in $nin $exists "
        "$regex $options $size $elemMatch $not)"
    )


def _any(test: Callable[[Any], bool], expand: bool = True) -> Condition:
    return lambda values: any(map(test, values(expand)))


def _not(test: Condition) -> Condition:
    return lambda values: not test(values)


def _literal(operand: Any) -> Any:
    if isinstance(operand, Regex):
        raise StoreError('a pattern goes into {"$regex": ...}')
    return operand


def _equal(operand: Any) -> Callable[[Any], bool]:
    if _literal(operand) is None:
        return lambda value: value is None or value is MISSING
    kind, key = rank(operand), order_key(operand)
    if kind == 15:
        return lambda value: isinstance(value, str) and value == operand
    return lambda value: rank(value) == kind and order_key(value) == key


def _compare(op: str, operand: Any) -> Callable[[Any], bool]:
    if _literal(operand) is None:  # only null is null; nothing is less or greater
        return (lambda _: False) if op in ("$gt", "$lt") else _equal(None)
    if is_nan(operand):
        return (lambda _: False) if op in ("$gt", "$lt") else _equal(operand)
    kind, key = rank(operand), order_key(operand)

    def test(value: Any) -> bool:
        if rank(value) != kind or is_nan(value):
            return False
        other = order_key(value)
        if op == "$gt":
            return other > key
        if op == "$gte":
            return other >= key
        return other < key if op == "$lt" else other <= key

    return test


def _one_of(op: str, operand: Any) -> Callable[[Any], bool]:
    if not isinstance(operand, list):
        raise StoreError(f"filter {op} needs a list, not {operand!r}")
    if any(isinstance(v, dict) and any(k.startswith("$") for k in v) for v in operand):
        raise StoreError(f"filter {op} takes values, not operators")
    null = any(v is None for v in operand)
    keys = {order_key(_literal(v)) for v in operand}

    def test(value: Any) -> bool:
        return null if isinstance(value, Missing) else order_key(value) in keys

    return test


def _search(pattern: Any, options: Any) -> Callable[[Any], bool]:
    if isinstance(pattern, Regex):
        flags, pattern = pattern.flags, pattern.pattern
    else:
        flags = 0
    if not isinstance(pattern, str) or not isinstance(options, str) or set(options) - set("imsx"):
        raise StoreError("filter $regex needs a pattern as text, and $options out of i, m, s, x")
    for letter in options:
        flags |= getattr(re, letter.upper())
    if not flags & re.IGNORECASE:
        flags = (flags | re.ASCII) & ~re.UNICODE  # PCRE's \w and \d are ASCII
    try:
        found = re.compile(pattern, flags).search
    except re.error as error:
        raise StoreError(f"filter $regex {pattern!r}: {error}") from None
    return lambda value: isinstance(value, str) and found(value) is not None


def _elem_match(operand: Any) -> Callable[[Any], bool]:
    if not isinstance(operand, dict) or not operand:
        raise StoreError(f"filter $elemMatch needs a dict of conditions, not {operand!r}")
    if operators(operand):
        condition = _condition(operand)
        return lambda value: (
            isinstance(value, list) and any(condition(lambda _, v=v: (v,)) for v in value)  # type: ignore[misc]
        )
    inside = _document(operand)
    # MongoDB also takes an array inside the array for a document with the keys "0", "1", ...
    return lambda value: (
        isinstance(value, list) and any(isinstance(v, dict) and inside(v) for v in value)
    )
