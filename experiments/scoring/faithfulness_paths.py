"""More scores along the paths of removal: ROAD, IROF, monotonicity, comprehensiveness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Facet, Measurement, metric
from experiments.scoring.faithfulness import (
    Fill,
    NonNegative,
    Output,
    Percent,
    Unit,
    by_percent,
    inner,
    slic_cells,
    spatial_shape,
)
from experiments.scoring.faithfulness_curves import FAMILY, Curve, Steps, area
from experiments.specs import Count, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.scoring import removal
else:
    removal = lazy.load("experiments.scoring.removal")
    torch = lazy.load("torch")


# --- ROAD ---


@dataclass(frozen=True)
class _Road(Curve):
    """percents: how much is removed. The noise of `noisy_linear` has a standard deviation of
    `sigma`, 0.01 by default, in the units of the model's input: ROAD's own is 0.01 for pixels in
    [0, 1], which is more after a division by their standard deviation."""

    fill: Fill = "noisy_linear"
    output: Output = "accuracy"
    percents: tuple[Percent, ...] = (10.0, 20.0, 30.0, 40.0, 50.0, 70.0, 90.0)

    def values(self, maps: Tensor, context: Context, order: removal.Order) -> Tensor:
        counts = by_percent(self.units(maps.shape[1:]), self.percents)
        return self.curve(maps, context, order, counts)

    def each(self, values: Tensor, **facets: Facet) -> list[Measurement]:
        columns = zip(values.unbind(1), self.percents, strict=True)
        return [
            Measurement.of(column, False, percent=percent, **facets) for column, percent in columns
        ]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (self._ends(shape) + self._inner(shape), 0)

    def _inner(self, shape: Sequence[int]) -> int:
        units = self.units(shape)
        return inner(by_percent(units, self.percents), units)

    def _ends(self, shape: Sequence[int]) -> int:
        units = self.units(shape)
        counts = by_percent(units, self.percents)
        whole = 0 in counts or self.output == "agreement"
        return whole + (units in counts) * self.end()


@metric(
    "road_morf",
    family=FAMILY,
    direction="lower",
    range=(0, 1),
    needs={"model"},
    source="Rong et al. 2022",
)
@dataclass(frozen=True)
class RoadMorf(_Road):
    """Accuracy after the most relevant positions were replaced by what their neighbours suggest.

    ROAD: noisy linear imputation hides which positions are missing, so that the shape of the mask
    tells the model little, and nothing has to be retrained. Mean over the percentages.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        values = self.values(maps, context, "morf")
        return [Measurement.of(values.mean(1), True, percent="mean"), *self.each(values)]


@metric(
    "road_lerf",
    family=FAMILY,
    direction="higher",
    range=(0, 1),
    needs={"model"},
    source="Rong et al. 2022",
)
@dataclass(frozen=True)
class RoadLerf(_Road):
    """Accuracy after the least relevant positions were replaced by what their neighbours suggest.

    As `road_morf`, the other way round. The percentages are the share removed, not the share kept.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        values = self.values(maps, context, "lerf")
        return [Measurement.of(values.mean(1), True, percent="mean"), *self.each(values)]


@metric(
    "road",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="Rong et al. 2022",
)
@dataclass(frozen=True)
class Road(_Road):
    """How much higher the accuracy is for `road_lerf` than for `road_morf`, over the percentages.

    Both orders in one number, twice the ROADCombined of pytorch-grad-cam; the curves come with it.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        most = self.values(maps, context, "morf")
        least = self.values(maps, context, "lerf")
        both = (least - most).mean(1)
        return [
            Measurement.of(both, True, order="both", percent="mean"),
            *self.each(most, order="morf"),
            *self.each(least, order="lerf"),
        ]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (self._ends(shape) + 2 * self._inner(shape), 0)


# --- superpixels ---


@metric(
    "irof",
    family=FAMILY,
    direction="higher",
    range=(-math.inf, 1),
    needs={"model"},
    source="Rieger & Hansen 2020",
)
@dataclass(frozen=True)
class IROF(Steps):
    """Area over the curve of the probability while the most relevant superpixels are removed.

    1 − area under f(x_k) / f(x₀); superpixels are ranked by their mean weight. Undefined (NaN)
    where the class has no probability to begin with.
    segments: "slic" (images only), `count` of them with that `compactness`, see `segments.slic`;
    or "patch", squares or windows of `patch` positions, ranked by their sum.
    """

    fill: Fill = "mean"
    patch: Count = 4
    segments: Literal["slic", "patch"] = "slic"
    count: Count = 100
    compactness: Positive = 1.0

    def unit(self) -> Unit:
        if self.segments == "patch":
            return ("patch", self.patch)
        return ("slic", self.count, self.compactness)

    def units(self, shape: Sequence[int]) -> int:
        if self.segments == "patch":
            return super().units(shape)
        if len(shape) != 3:
            raise ValueError(
                f"score 'irof': superpixels need images [C, H, W], these inputs are {list(shape)}; "
                "set segments to 'patch'"
            )
        return math.prod(slic_cells(spatial_shape(shape), self.count))

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        counts = self.counts(maps.shape[1:])
        values = self.curve(maps, context, "morf", counts)
        start = torch.where(values[:, 0] > 0, values[:, 0], torch.nan)
        return [Measurement.of(1 - area(values, counts) / start, headline=True)]


# --- from nothing to the whole sample ---


@metric(
    "monotonicity",
    family=FAMILY,
    direction="higher",
    range=(0, 1),
    needs={"model"},
    source="Arya et al. 2019",
)
@dataclass(frozen=True)
class Monotonicity(Steps):
    """Whether the probability never falls while positions come back, the least relevant first.

    From nothing, which is the MoRF path backwards. of: "all" steps must not fall by more than
    `tolerance` (1 or 0 per sample, as published), or the "share" of steps that do not.
    """

    of: Literal["all", "share"] = "all"
    tolerance: NonNegative = 1e-6

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        values = self.curve(maps, context, "morf", self.counts(maps.shape[1:])).flip(1)
        rises = values.diff(dim=1) >= -self.tolerance
        samples = rises.all(1) if self.of == "all" else rises.double().mean(1)
        return [Measurement.of(samples.double(), headline=True)]


# --- ERASER ---


@dataclass(frozen=True)
class _Rationale(Curve):
    """percents: how much of the sample is the rationale; the value is the mean over them."""

    percents: tuple[Percent, ...] = (1.0, 5.0, 10.0, 20.0, 50.0)

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        raise NotImplementedError

    def fall(self, maps: Tensor, context: Context, order: removal.Order) -> list[Measurement]:
        counts = (0, *self.counts(maps.shape[1:]))
        values = self.curve(maps, context, order, counts)
        return [Measurement.of((values[:, :1] - values[:, 1:]).mean(1), headline=True)]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        counts, units = self.counts(shape), self.units(shape)
        return (1 + inner(counts, units) + (units in counts) * self.end(), 0)


@metric(
    "comprehensiveness",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="DeYoung et al. 2020",
)
@dataclass(frozen=True)
class Comprehensiveness(_Rationale):
    """How far the probability falls without the most relevant positions."""

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return by_percent(self.units(shape), self.percents)

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return self.fall(maps, context, "morf")


@metric(
    "rationale_sufficiency",
    family=FAMILY,
    direction="lower",
    range=(-1, 1),
    needs={"model"},
    source="DeYoung et al. 2020",
)
@dataclass(frozen=True)
class RationaleSufficiency(_Rationale):
    """How far the probability falls with the most relevant positions only (ERASER)."""

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        units = self.units(shape)
        return tuple(units - count for count in by_percent(units, self.percents))

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return self.fall(maps, context, "lerf")
