"""Faithfulness by removal: what becomes of an output when a map's positions go one after the other.

MoRF removes the most relevant first, LeRF the least relevant first. Scores with the same ranking
and fill walk the same paths and share every point of them; the costs are those of a score alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.faithfulness import (
    Output,
    Percent,
    Removal,
    by_percent,
    by_steps,
    inner,
)
from experiments.specs import Count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.scoring import removal
else:
    removal = lazy.load("experiments.scoring.removal")
    torch = lazy.load("torch")

FAMILY = "faithfulness"
TENS = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)
Order = Literal["morf", "lerf"]


def area(values: Tensor, counts: Sequence[int]) -> Tensor:
    """[B]: the mean height of curves [B, S] over the share removed (trapezoids)."""
    places = torch.tensor(counts, dtype=values.dtype)
    return torch.trapezoid(values, places, dim=1) / (places[-1] - places[0])


@dataclass(frozen=True)
class Curve(Removal):
    """output: what the curve shows of the model; see `removal.read`."""

    output: Output = "probability"

    def curve(
        self, maps: Tensor, context: Context, order: removal.Order, counts: Sequence[int]
    ) -> Tensor:
        """float64 [B, S]: the output after the removal of each number of units."""
        outputs = self.path(maps, context, order).outputs(counts)
        return removal.read(outputs, self.output, context)


@dataclass(frozen=True)
class Steps(Curve):
    """steps: from the whole sample to nothing in so many equal steps (fewer if it is smaller)."""

    steps: Count = 20

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return by_steps(self.units(shape), self.steps)

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (1 + inner(self.counts(shape), self.units(shape)) + self.end(), 0)


# --- areas under a curve ---


@dataclass(frozen=True)
class _Morf(Steps):
    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        counts = self.counts(maps.shape[1:])
        values = self.curve(maps, context, "morf", counts)
        return [Measurement.of(area(values, counts), headline=True)]


@metric(
    "deletion_auc",
    family=FAMILY,
    direction="lower",
    range=(0, 1),
    needs={"model"},
    source="Petsiuk et al. 2018",
)
@dataclass(frozen=True)
class DeletionAUC(_Morf):
    """Area under the probability of the class while the most relevant positions are removed.

    From the whole sample to nothing, over the share removed: 1 for a model that does not care.
    """


@metric(
    "pixel_flipping",
    family=FAMILY,
    direction="lower",
    range=(-math.inf, math.inf),
    needs={"model"},
    source="Bach et al. 2015",
)
@dataclass(frozen=True)
class PixelFlipping(_Morf):
    """Mean of the explained output (the logit) while the most relevant positions are removed."""

    output: Output = "logit"


@metric(
    "selectivity",
    family=FAMILY,
    direction="lower",
    range=(-math.inf, math.inf),
    needs={"model"},
    source="Montavon et al. 2018",
)
@dataclass(frozen=True)
class Selectivity(_Morf):
    """Mean of the explained output (the logit) while the most relevant patches are removed."""

    output: Output = "logit"
    patch: Count = 4


@metric(
    "insertion_auc",
    family=FAMILY,
    direction="higher",
    range=(0, 1),
    needs={"model"},
    source="Petsiuk et al. 2018",
)
@dataclass(frozen=True)
class InsertionAUC(Steps):
    """Area under the probability of the class while the most relevant positions come back.

    From nothing to the whole sample, over the share that is there. What is not there yet is the
    baseline; RISE itself starts images from their blur (`fill: blur`, kernel 11, sigma 5).
    """

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        # What is missing when the n highest of U are there are the U − n lowest: LeRF backwards.
        units = self.units(shape)
        return tuple(units - count for count in reversed(by_steps(units, self.steps)))

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        counts = self.counts(maps.shape[1:])
        values = self.curve(maps, context, "lerf", counts)
        return [Measurement.of(area(values, counts), headline=True)]


# --- whole curves ---


@dataclass(frozen=True)
class _Percents(Curve):
    """percents: where the curve is known, ascending; the headline is the mean height over them
    (trapezoids)."""

    percents: tuple[Percent, ...] = TENS

    def __post_init__(self) -> None:
        if len(self.percents) < 2 or list(self.percents) != sorted(set(self.percents)):
            raise ValueError("percents must be two or more, in ascending order")

    def measured(self, maps: Tensor, context: Context, order: Order) -> list[Measurement]:
        counts = by_percent(self.units(maps.shape[1:]), self.percents)
        values = self.shown(self.curve(maps, context, order, counts), context)
        places = torch.tensor(self.percents, dtype=values.dtype)
        mean = torch.trapezoid(values, places, dim=1) / (places[-1] - places[0])
        return [
            Measurement.of(mean, headline=True, percent="mean"),
            *(
                Measurement.of(column, percent=percent)
                for column, percent in zip(values.unbind(1), self.percents, strict=True)
            ),
        ]

    def shown(self, values: Tensor, context: Context) -> Tensor:
        return values

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        units = self.units(shape)
        counts = by_percent(units, self.percents)
        whole = 0 in counts or self.output == "agreement"
        return (whole + inner(counts, units) + (units in counts) * self.end(), 0)


@metric(
    "morf_curve",
    family=FAMILY,
    direction="lower",
    range=(0, 1),
    needs={"model"},
    source="Samek et al. 2017",
)
@dataclass(frozen=True)
class MorfCurve(_Percents):
    """The output after the removal of so many per cent, the most relevant first.

    One measurement for each percentage, and their mean as headline. `output` may be the
    probability, the logit, the accuracy or the agreement with the unchanged prediction.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return self.measured(maps, context, "morf")


@metric(
    "lerf_curve",
    family=FAMILY,
    direction="higher",
    range=(0, 1),
    needs={"model"},
    source="Ancona et al. 2018",
)
@dataclass(frozen=True)
class LerfCurve(_Percents):
    """The output after the removal of so many per cent, the least relevant first.

    As `morf_curve`, the other way round.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return self.measured(maps, context, "lerf")


@dataclass(frozen=True)
class _Change(_Percents):
    """signed: a rise makes up for a fall, (p₀ − p) / p₀; else it counts as much, |p₀ − p| / p₀.
    Undefined (NaN) where p₀ is 0, and where it is negative, which a logit can be."""

    signed: bool = False

    def shown(self, values: Tensor, context: Context) -> Tensor:
        whole = context.model_batch().outputs()[:, None]
        before = removal.read(whole, self.output, context)
        change = (before - values) / torch.where(before > 0, before, torch.nan)
        return change if self.signed else change.abs()

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        forwards, backwards = super().passes(shape)
        known = 0 in by_percent(self.units(shape), self.percents) or self.output == "agreement"
        return (forwards + (not known), backwards)


@metric(
    "morf_change",
    family=FAMILY,
    direction="higher",
    range=(0, math.inf),
    needs={"model"},
    source="Khakzar et al. 2021",
)
@dataclass(frozen=True)
class MorfChange(_Change):
    """Relative change of the probability after the removal of the most relevant positions.

    |p₀ − p| / p₀ at each percentage, as in the experiments of Khakzar et al. (2021).
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return self.measured(maps, context, "morf")


@metric(
    "lerf_change",
    family=FAMILY,
    direction="lower",
    range=(0, math.inf),
    needs={"model"},
    source="Khakzar et al. 2021",
)
@dataclass(frozen=True)
class LerfChange(_Change):
    """Relative change of the probability after the removal of the least relevant positions."""

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return self.measured(maps, context, "lerf")
