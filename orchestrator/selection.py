"""One filter language for every command.

state:failed   state:failed,killed      experiments in these states
id:3-17        id:3,5,9-12              experiments with these ids
seed=0   model.name=andor_cnn           configuration values (`config.` is understood)
seed>2   training.epochs<=100   seed!=1
'{"host.hostname": "n1"}'               any MongoDB filter on the documents
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

from orchestrator.queue import STATES

OPERATORS = {"=": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
DOCUMENT_FIELDS = ("_id", "status", "config", "seml", "slurm", "assay", "host", "git", "result",
                   "batch_id", "config_hash", "execution")  # fmt: skip


class SelectionError(Exception):
    """A filter that cannot be read: one line that says what is wrong."""


def parse(words: Sequence[str]) -> dict[str, Any] | None:
    """The MongoDB filter that all words together mean; None when there are none.

    Raises:
        SelectionError: naming the word.
    """
    conditions = [_condition(word) for word in words]
    if not conditions:
        return None
    return conditions[0] if len(conditions) == 1 else {"$and": conditions}


def _condition(word: str) -> dict[str, Any]:
    if word.lstrip().startswith("{"):
        try:
            return dict(json.loads(word))
        except ValueError as error:
            raise SelectionError(f"filter {word!r}: not valid JSON: {error}") from error
    if word.startswith("state:"):
        states = [state.strip().upper() for state in word.removeprefix("state:").split(",")]
        if unknown := [state for state in states if state not in STATES]:
            known = ", ".join(state.lower() for state in STATES)
            raise SelectionError(
                f"filter {word!r}: no state {unknown[0].lower()!r} (one of {known})"
            )
        return {"status": {"$in": states}}
    if word.startswith("id:"):
        return _ids(word)
    if match := re.fullmatch(r"([\w.]+)(!=|>=|<=|=|>|<)(.*)", word):
        key, operator, text = match.groups()
        if key.split(".")[0] not in DOCUMENT_FIELDS:
            key = f"config.{key}"
        return {key: {OPERATORS[operator]: yaml.safe_load(text)}}
    raise SelectionError(
        f"filter {word!r}: write state:failed, id:3-17, key=value, key>value, or a MongoDB filter "
        "in JSON"
    )


def _ids(word: str) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = []
    for part in word.removeprefix("id:").split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise SelectionError(f"filter {word!r}: write id:3, id:3-17 or id:3,5,9-12")
        first, last = int(match[1]), int(match[2] or match[1])
        conditions.append({"_id": {"$gte": first, "$lte": last}})
    return conditions[0] if len(conditions) == 1 else {"$or": conditions}
