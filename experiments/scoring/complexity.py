"""How few inputs a map points to. These need no truth: a map can be simple and wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, score

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.scoring import functional as F
else:
    F = lazy.load("experiments.scoring.functional")


@score("entropy", family="complexity", direction="lower", range=(0, math.inf))
@dataclass(frozen=True)
class Entropy(Score):
    """Shannon entropy of a map's weight over the inputs: 0 for one input, ln D for a uniform map.

    Complexity of Bhatt, Weller & Moura (2020), eq. 6, in nats. An all-zero map counts as uniform.
    view: weight is the absolute value ("abs") or the positive part ("positive") of a score.
    """

    view: Literal["abs", "positive"] = "abs"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [Measurement.of(F.entropy(F.view(maps.flatten(1), self.view)), headline=True)]


@score("sparseness", family="complexity", direction="higher", range=(0, 1))
@dataclass(frozen=True)
class Sparseness(Score):
    """Gini index of a map's weight: 0 for a uniform map, 1 − 1/D for a single input.

    Chalasani et al. (2020). An all-zero map counts as uniform, 0.
    view: weight is the absolute value ("abs") or the positive part ("positive") of a score.
    """

    view: Literal["abs", "positive"] = "abs"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [Measurement.of(F.gini(F.view(maps.flatten(1), self.view)), headline=True)]
