"""The update language of both stores: `$set $unset $inc $push $setOnInsert` on dotted paths.

`$push` takes a value or `{"$each": [...]}`. The meaning is MongoDB's: missing parents are created
as documents, a parent that is something else is an error, `$unset` of what is not there does
nothing, fields are written in the order of their paths. An update never touches `_id` and never
names a path twice.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.store.documents import MISSING, Document, normalise, split_path
from orchestrator.store.errors import StoreError

OPERATORS = ("$set", "$unset", "$inc", "$push", "$setOnInsert")
_INT64 = 2**63


@dataclass(frozen=True)
class Step:
    operator: str
    parts: tuple[str, ...]
    value: Any

    @property
    def path(self) -> str:
        return ".".join(self.parts)


@dataclass(frozen=True)
class Update:
    """A compiled update: `apply` changes a document in place."""

    steps: tuple[Step, ...]

    def apply(self, document: Document, *, inserting: bool = False) -> Document:
        """Change `document` and return it; StoreError if it does not fit (and nothing is kept)."""
        for step in self.steps:
            if step.operator != "$setOnInsert" or inserting:
                _apply(step, document)
        return document


def compile_update(update: Mapping[str, Any]) -> Update:
    """Check an update and make it ready to use; StoreError says what is wrong with it."""
    if not isinstance(update, Mapping) or not update:
        raise StoreError(f"an update is a dict of {' '.join(OPERATORS)}, not {update!r}")
    steps: list[Step] = []
    for operator, changes in update.items():
        if operator not in OPERATORS:
            raise StoreError(
                f"update operator {operator} is not known (known: {' '.join(OPERATORS)})"
            )
        if not isinstance(changes, Mapping):
            raise StoreError(f"update {operator} needs a dict of paths, not {changes!r}")
        steps += [_step(operator, path, value) for path, value in changes.items()]
    steps.sort(key=lambda step: [_field_order(part) for part in step.parts])
    for one, two in itertools.pairwise(steps):
        if two.parts[: len(one.parts)] == one.parts:
            raise StoreError(
                f"update changes {two.path!r} twice (also by {one.operator} {one.path!r})"
            )
    return Update(tuple(steps))


def _field_order(part: str) -> tuple[int, int, str]:
    return (0, int(part), part) if part.isascii() and part.isdigit() else (1, 0, part)


def _step(operator: str, path: str, value: Any) -> Step:
    parts = split_path(path)
    if parts[0] == "_id":
        raise StoreError("update cannot change _id")
    what = f"update {operator} {path!r}"
    if operator == "$push":
        value = _pushed(what, value)
    value = normalise(value, what=what)
    if operator == "$inc" and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise StoreError(f"{what} needs a number, not {value!r}")
    return Step(operator, parts, value)


def _pushed(what: str, value: Any) -> list[Any]:
    if not isinstance(value, Mapping) or not any(str(key).startswith("$") for key in value):
        return [value]
    if list(value) != ["$each"] or not isinstance(value["$each"], list | tuple):
        raise StoreError(f'{what} takes a value or {{"$each": [...]}}, not {value!r}')
    return list(value["$each"])


def _apply(step: Step, document: Document) -> None:
    container: Any = document
    for part in step.parts[:-1]:
        child = _child(container, part)
        if child is MISSING:
            if step.operator == "$unset":
                return
            child = {}
            _put(step, container, part, child)
        container = child
    leaf = step.parts[-1]
    if step.operator == "$unset":
        _remove(container, leaf)
        return
    _put(step, container, leaf, _changed(step, _child(container, leaf)))


def _changed(step: Step, old: Any) -> Any:
    if step.operator == "$inc":
        if old is MISSING:
            return step.value
        if isinstance(old, bool) or not isinstance(old, int | float):
            raise StoreError(f"update $inc {step.path!r}: the value there is {old!r}, not a number")
        new = old + step.value
        if isinstance(new, int):
            if not -_INT64 <= new < _INT64:
                raise StoreError(f"update $inc {step.path!r}: the sum does not fit into 64 bits")
            return int(new)
        return new
    if step.operator == "$push":
        if old is MISSING:
            return copy.deepcopy(step.value)
        if not isinstance(old, list):
            raise StoreError(f"update $push {step.path!r}: the value there is {old!r}, not a list")
        return old + copy.deepcopy(step.value)
    return copy.deepcopy(step.value)


def _child(container: Any, part: str) -> Any:
    if isinstance(container, dict):
        return container.get(part, MISSING)
    if isinstance(container, list) and part.isdigit() and int(part) < len(container):
        return container[int(part)]
    return MISSING


def _put(step: Step, container: Any, part: str, value: Any) -> None:
    if isinstance(container, dict):
        container[part] = value
    elif isinstance(container, list) and part.isdigit():
        container.extend([None] * (int(part) + 1 - len(container)))
        container[int(part)] = value
    else:
        raise StoreError(
            f"update {step.operator} {step.path!r}: cannot put {part!r} into {container!r}"
        )


def _remove(container: Any, part: str) -> None:
    if isinstance(container, dict):
        container.pop(part, None)
    elif isinstance(container, list) and part.isdigit() and int(part) < len(container):
        container[int(part)] = None  # as in MongoDB, so that the others keep their places
