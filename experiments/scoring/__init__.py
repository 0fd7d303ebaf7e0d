"""Every score behind one signature.

    nib = resolve({"name": "nib", "ties": "half"})
    for measurement in nib.measure(maps, Context(x, y, truth=truth)): ...

A score is a name, or a name with parameters. A name with a colon is a plugin: the dotted path of a
module and a class in it that `@metric` decorates. Packages can also name theirs in the entry point
group "assay.scores".
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any

from experiments.messages import one_line, unknown
from experiments.scoring import (  # noqa: F401  they register their scores
    axioms,
    boxes,
    complexity,
    consistency,
    continuity,
    dca,
    faithfulness_areas,
    faithfulness_correlation,
    faithfulness_curves,
    faithfulness_infidelity,
    faithfulness_masking,
    faithfulness_paths,
    importance,
    information,
    localisation,
    object_share,
    objects,
    overlap,
    randomisation,
    representation,
    retraining,
    robustness,
    truth,
)
from experiments.scoring.base import REGISTRY, Context, Measurement, Score, metric, spec_of

__all__ = [
    "Context",
    "Measurement",
    "Score",
    "metric",
    "resolve",
    "score",
    "scores",
    "spec_of",
]


@functools.cache
def _load_entry_points() -> None:
    for point in entry_points(group="assay.scores"):
        point.load()


def scores() -> dict[str, type[Score]]:
    """All scores known by name."""
    _load_entry_points()
    return dict(sorted(REGISTRY.items()))


def resolve(spec: str | Mapping[str, Any] | Score) -> Score:
    """The score that a config names: "name", {"name": ..., parameters} or "package.module:Class".

    Raises ValueError, in one line, for an unknown name or parameter or a value of the wrong type.
    """
    if isinstance(spec, Score):
        return spec
    given = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"a score is a name, or has the key 'name': got {spec!r}")
    cls = _plugin(name) if ":" in name else scores().get(name)
    if cls is None:
        raise ValueError(unknown("score", name, scores()))
    return _build(cls, given)


def _plugin(path: str) -> type[Score]:
    module, _, attribute = path.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"score {path!r} cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Score) and hasattr(cls, "name")):
        raise ValueError(f"score {path!r} is not a class decorated with @scoring.metric")
    return cls


# Made once each: a grid of hundreds of experiments names the same scores again and again.
_adapters: dict[type, Any] = {}


def _build(cls: type[Score], given: dict[str, Any]) -> Score:
    from pydantic import TypeAdapter, ValidationError

    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    for parameter in given:
        if parameter not in known:
            raise ValueError(f"score {cls.name!r}: {unknown('parameter', parameter, known)}")
    try:
        if cls not in _adapters:
            _adapters[cls] = TypeAdapter(cls)
        built: Score = _adapters[cls].validate_python(given)
        return built
    except ValidationError as error:
        raise ValueError(one_line(f"score {cls.name!r}", error)) from None


def score(spec: str | Mapping[str, Any] | Score, maps: Any, x: Any, **known: Any) -> Any:
    """The measurements of one score of maps [N, ...] of the samples x; see `evaluation.score`."""
    from experiments import evaluation

    return evaluation.score(spec, maps, x, **known)
