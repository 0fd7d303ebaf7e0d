"""The tidy score table of a run: one row per number, with all its coordinates.

| column | |
|---|---|
| study, dataset, model, seed | what was trained on what; `model_params` as JSON |
| method, library, family, control | the attribution; `method_params` as JSON, only what was given |
| score, direction | the metric, "higher" or "lower" is better; `score_params` as JSON |
| class, bucket, threshold, percent | facets of the number, empty where it has none |
| headline | the number that stands for its score in rankings |
| value, n, sd | mean over n samples and their standard deviation |
| samples | the values per sample (at most `SAMPLES_KEPT`, evenly spaced), empty for aggregates |
| model_accuracy | test accuracy of the model that was explained |
| data_key, model_key, map_key | the artifacts behind the number |
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.stages import canonical

if TYPE_CHECKING:
    import pyarrow

FILE = "scores.parquet"
SAMPLES_KEPT = 1024
FACETS = ("class", "bucket", "threshold", "percent")
CONFIDENCE = 1.96  # normal quantile of the 95 % intervals in a run's own summary


@dataclass(frozen=True)
class Explained:
    """What the rows of one (model, method) pair have in common."""

    study: str
    dataset: str
    model: Mapping[str, Any]
    seed: int
    fold: int
    method: str
    method_params: Mapping[str, Any]
    library: str
    family: str
    model_accuracy: float
    data_key: str
    model_key: str
    map_key: str


def rows(explained: Explained, score: Any, measurements: Sequence[Any]) -> list[dict[str, Any]]:
    """The rows of one score on one set of maps."""
    from experiments.scoring import spec_of

    parameters = {k: v for k, v in spec_of(score, defaults=False).items() if k != "name"}
    common = {
        "study": explained.study,
        "dataset": explained.dataset,
        "model": explained.model["name"],
        "model_params": canonical({k: v for k, v in explained.model.items() if k != "name"}),
        "seed": explained.seed,
        "fold": explained.fold,
        "method": explained.method,
        "method_params": canonical(dict(explained.method_params)),
        "library": explained.library,
        "family": explained.family,
        "control": explained.family == "control",
        "score": score.name,
        "score_params": canonical(parameters),
        "direction": score.direction,
        "model_accuracy": explained.model_accuracy,
        "data_key": explained.data_key,
        "model_key": explained.model_key,
        "map_key": explained.map_key,
    }
    return [{**common, **_number(measurement)} for measurement in measurements]


def _number(measurement: Any) -> dict[str, Any]:
    facets = {name: measurement.facets.get(name) for name in FACETS}
    others = {name: measurement.facets[name] for name in measurement.facets if name not in FACETS}
    facets["facets"] = canonical(others)
    for name in ("class", "bucket", "threshold"):
        facets[name] = None if facets[name] is None else str(facets[name])
    samples = measurement.samples
    if samples is not None:
        step = max(1, math.ceil(len(samples) / SAMPLES_KEPT))
        samples = samples[::step].tolist()
    return {
        **facets,
        "headline": measurement.headline,
        "value": measurement.value,
        "n": measurement.n,
        "sd": measurement.sd,
        "samples": samples,
    }


def to_parquet(table: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    arrow = pyarrow.Table.from_pylist(list(table), schema=_schema())
    pyarrow.parquet.write_table(arrow, buffer, compression="zstd")
    return buffer.getvalue()


def label(method: str, parameters: Mapping[str, Any]) -> str:
    """`name` or `name(key=value, ...)`, as tables show a method."""
    if not parameters:
        return method
    inside = ", ".join(f"{key}={value}" for key, value in sorted(parameters.items()))
    return f"{method}({inside})"


def summary(table: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Method → score → mean, 95 % interval over samples, and their number, for the headlines.

    The interval is of this one model; intervals over seeds and models are the analysis' task.
    """
    import json

    nested: dict[str, dict[str, dict[str, float]]] = {}
    for row in table:
        if not row["headline"]:
            continue
        name = label(row["method"], json.loads(row["method_params"]))
        half = CONFIDENCE * row["sd"] / math.sqrt(row["n"]) if row["n"] > 1 else math.nan
        nested.setdefault(name, {})[label(row["score"], json.loads(row["score_params"]))] = {
            "mean": row["value"],
            "low": row["value"] - half,
            "high": row["value"] + half,
            "n": row["n"],
        }
    return nested


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    text = ("study", "dataset", "model", "model_params", "method", "method_params", "library",
            "family", "score", "score_params", "direction", "class", "bucket", "threshold",
            "facets", "data_key", "model_key", "map_key")  # fmt: skip
    kinds = dict.fromkeys(text, pa.string())
    kinds |= dict.fromkeys(("seed", "fold", "n"), pa.int64())
    kinds |= {"control": pa.bool_(), "headline": pa.bool_()}
    kinds |= dict.fromkeys(("percent", "value", "sd", "model_accuracy"), pa.float64())
    kinds["samples"] = pa.list_(pa.float32())
    return pa.schema(list(kinds.items()))
