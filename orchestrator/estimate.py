"""What a sweep will cost, before it is added: its unique stages, and what they took before."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.grid import Grid

if TYPE_CHECKING:
    from experiments.artifacts import ArtifactStore

HEADERS_READ = 300  # of each stage, at random: medians need no more, and caches grow large


@dataclass(frozen=True)
class StageCost:
    """One stage of a sweep: how many results it needs, how many are there, and their price.

    seconds: the median of those that were computed before; None if none was.
    """

    stage: str
    unique: int
    found: int
    seconds: float | None

    @property
    def remaining(self) -> float | None:
        """Seconds of computing that are left, of one slot."""
        missing = self.unique - self.found
        return 0.0 if missing == 0 else None if self.seconds is None else missing * self.seconds


@dataclass(frozen=True)
class Estimate:
    """What the experiments of a grid will compute.

    asked: how often the experiments need a stage's result; the grid costs the unique ones.
    complete: whether all stages are in it; not so for a study that looks at the result of one
        stage before it names the next, or has no stages.
    """

    stages: list[StageCost]
    asked: int
    complete: bool

    @property
    def remaining(self) -> float | None:
        """Seconds of one slot that are left; None where a stage was never run before."""
        seconds = [stage.remaining for stage in self.stages]
        return None if None in seconds else sum(s for s in seconds if s is not None)


def estimate(grid: Grid, artifacts: ArtifactStore) -> Estimate | None:
    """The plan of a grid's experiments, with nothing computed.

    `artifacts` is where results are looked for. None for a script that is not one of our
    studies: nobody knows its stages.
    """
    plan = getattr(grid.study.module, "study", None)
    model = grid.study.config_model
    if plan is None or model is None:
        return None
    from experiments import stages

    run = stages.Runtime(artifacts, planning=True)
    complete = True
    with stages.using(run):
        for document in grid.documents:
            try:
                plan(model.model_validate(document["config"]))
            except stages.Planned:
                continue  # the rows at the end need the values; so may a stage before
            except Exception:
                complete = False
    needed: dict[tuple[str, tuple[str, ...]], dict[str, bool]] = defaultdict(dict)
    for event in run.history:
        needed[event["stage"], tuple(event["named"])][event["key"]] = event["found"]
    prices = _prices(artifacts.root, {stage for stage, _ in needed})
    costs: dict[str, list[StageCost]] = defaultdict(list)
    for (stage, named), keys in needed.items():
        seconds = prices.get((stage, named), prices.get((stage, ())))
        costs[stage].append(StageCost(stage, len(keys), sum(keys.values()), seconds))
    return Estimate([_together(s, c) for s, c in costs.items()], len(run.history), complete)


def _together(stage: str, parts: list[StageCost]) -> StageCost:
    """All variants of a stage as one; the price is the mean over what is missing."""
    unique, found = sum(p.unique for p in parts), sum(p.found for p in parts)
    remaining = [part.remaining for part in parts]
    if None in remaining:
        return StageCost(stage, unique, found, None)
    missing = unique - found
    total = sum(seconds for seconds in remaining if seconds is not None)
    return StageCost(stage, unique, found, total / missing if missing else 0.0)


def _prices(root: Path, wanted: set[str]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Median seconds of each stage and, within it, of each set of named components."""
    from experiments.artifacts import SUFFIX, read_header
    from experiments.stages import names_of

    seen: dict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(list)
    for stage in wanted:
        for header in _headers(root.glob(f"{stage}/??/*{SUFFIX}"), read_header):
            seconds = float(header.get("seconds", 0.0))
            named = tuple(names_of(header.get("parameters", {})))
            for key in {(stage, named), (stage, ())}:
                seen[key].append(seconds)
    return {key: statistics.median(values) for key, values in seen.items()}


def _headers(paths: Iterable[Path], read: Any) -> Iterable[dict[str, Any]]:
    found = list(paths)
    for path in random.Random(0).sample(found, min(HEADERS_READ, len(found))):
        header = read(path)
        if header is not None:
            yield header
