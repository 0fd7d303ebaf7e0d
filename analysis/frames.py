"""The scores of a sweep as one pandas DataFrame.

from analysis import frames
table = frames.scores("quickstart")                      # the default store
table = frames.scores("quickstart", {"config.seed": 0})  # part of it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.rows import FILE
from orchestrator import settings
from orchestrator.queue import COMPLETED
from orchestrator.store import Store, open_store

if TYPE_CHECKING:
    import pandas as pd

# Two rows that agree in these are the same number: experiments of a sweep share models and maps.
IDENTITY = (
    "study", "dataset", "model", "model_params", "seed", "fold", "method", "method_params", "score",
    "score_params", "class", "bucket", "threshold", "percent", "facets", "model_key", "map_key",
)  # fmt: skip


class NoResults(Exception):
    """The sweep has no finished experiment with a score table; the message says what to do."""


def scores(
    sweep: str,
    selection: dict[str, Any] | None = None,
    *,
    store: Store | str | None = None,
    columns: Sequence[str] | None = None,
    samples: bool = False,
) -> pd.DataFrame:
    """All rows of the completed experiments of a sweep.

    Args:
        sweep: the collection.
        selection: a MongoDB filter on the experiments' documents.
        store: a store or its URL; the default store when None.
        columns: only these (`experiment` is always there); reading fewer is faster.
        samples: also the values per sample (a list per row), which intervals need.

    Returns:
        One row per number, with the columns of `experiments.rows` and `experiment`, the id of
        the experiment it is from. A number that several experiments have in common stands once.

    Raises:
        NoResults: nothing is finished yet.
    """
    store = _store(store)
    keys = _keys(sweep, FILE, selection, store)
    if not keys:
        raise NoResults(
            f"sweep {sweep!r} has no finished experiment with scores (see `assay status {sweep}`)"
        )
    return _concatenate(store.get_blobs(list(keys)), keys, columns, samples)


def files(
    sweep: str,
    name: str,
    selection: dict[str, Any] | None = None,
    *,
    store: Store | str | None = None,
) -> dict[int, bytes]:
    """The file `name` of each completed experiment that has one, by the experiment's id.

    sweep, selection, store: as for `scores`.
    """
    store = _store(store)
    keys = _keys(sweep, name, selection, store)
    return {keys[key]: data for key, data in store.get_blobs(list(keys)).items()}


def _store(store: Store | str | None) -> Store:
    if store is None or isinstance(store, str):
        return open_store(store or settings.store_address().url)
    return store


def _keys(sweep: str, name: str, selection: dict[str, Any] | None, store: Store) -> dict[str, int]:
    """The blobs of that name, and the experiments they are of."""
    condition: dict[str, Any] = {"status": COMPLETED}
    if selection:
        condition = {"$and": [condition, selection]}
    return {
        artifact["file_id"]: int(document["_id"])
        for document in store.find(sweep, condition, fields=["artifacts"])
        for artifact in document.get("artifacts", [])
        if artifact["name"] == name
    }


def _concatenate(
    blobs: dict[str, bytes],
    experiment: dict[str, int],
    columns: Sequence[str] | None,
    samples: bool,
) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for key, data in blobs.items():
        source = pa.BufferReader(data)
        available = pq.read_schema(source).names
        wanted = [
            name
            for name in available
            if (columns is None or name in columns or name in IDENTITY)
            and (samples or name != "samples")
        ]
        table = pq.read_table(pa.BufferReader(data), columns=wanted)
        tables.append(table.append_column("experiment", pa.array([experiment[key]] * len(table))))
    frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    frame = frame.sort_values("experiment", kind="stable")
    identity = [name for name in IDENTITY if name in frame.columns]
    frame = frame.drop_duplicates(identity, keep="first").reset_index(drop=True)
    if columns is not None:
        frame = frame[["experiment", *(c for c in columns if c in frame.columns)]]
    return frame
