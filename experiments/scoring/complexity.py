"""How few positions a map points to. These need no truth: a map can be simple and wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric
from experiments.scoring.regions import Channels, Weight, ranking, weights

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.scoring import functional as F
else:
    F = lazy.load("experiments.scoring.functional")


@dataclass(frozen=True)
class _Complexity(Score):
    """view: weight is the absolute value ("abs") or the positive part ("positive") of a score.
    channels: how those of a pixel or time step become one position; see `functional.relevance`."""

    view: Weight = "abs"
    channels: Channels = "sum"

    def weights(self, maps: Tensor) -> Tensor:
        return weights(maps, self.view, self.channels)


@metric(
    "entropy",
    family="complexity",
    direction="lower",
    range=(0, math.inf),
    source="Bhatt, Weller & Moura 2020",
)
@dataclass(frozen=True)
class Entropy(_Complexity):
    """Shannon entropy of a map's weight over positions: 0 for one, ln P for a uniform map.

    Complexity of Bhatt, Weller & Moura (2020), eq. 6, in nats. An all-zero map counts as uniform.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [Measurement.of(F.entropy(self.weights(maps)), headline=True)]


@metric(
    "sparseness",
    family="complexity",
    direction="higher",
    range=(0, 1),
    source="Chalasani et al. 2020",
)
@dataclass(frozen=True)
class Sparseness(_Complexity):
    """Gini index of a map's weight: 0 for a uniform map, 1 − 1/P for a single position.

    An all-zero map counts as uniform, 0.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        ranked = ranking(maps, self.view, self.channels)
        return [Measurement.of(F.gini_of_ranked(ranked.values), headline=True)]


@metric(
    "effective_complexity",
    family="complexity",
    direction="lower",
    range=(0, math.inf),
    source="Nguyen & Martínez 2020",
)
@dataclass(frozen=True)
class EffectiveComplexity(_Complexity):
    """How many positions have more than a share ε of the map's largest weight.

    What is left of the paper's definition without a model: there, the least number of features
    that keep the expected loss below a limit; here, all whose weight counts at all. Each map is
    its own scale; an all-zero map has 0. unit "share" divides by the number of positions.
    """

    epsilon: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    unit: Literal["count", "share"] = "count"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        found = self.weights(maps)
        count = (found > self.epsilon * found.amax(1, keepdim=True)).sum(1).double()
        samples = count / found.shape[1] if self.unit == "share" else count
        return [Measurement.of(samples, headline=True)]
