"""Areas over and between the curves of removal: AOPC, ABPC, region perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.faithfulness import Fill, inner
from experiments.scoring.faithfulness_curves import FAMILY, Curve, Steps
from experiments.specs import Count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.scoring import removal
else:
    removal = lazy.load("experiments.scoring.removal")
    torch = lazy.load("torch")


@metric(
    "aopc",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="Samek et al. 2017",
)
@dataclass(frozen=True)
class AOPC(Steps):
    """Area over the MoRF curve: the mean fall of the output over its L + 1 points.

    1 / (L + 1) · Σ_k (f(x₀) − f(x_k)), equation 12; the first point counts, with a fall of 0.
    versus: "random" subtracts the value of a random order, which all methods share.
    """

    versus: Literal["nothing", "random"] = "nothing"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        counts = self.counts(maps.shape[1:])
        values = self.curve(maps, context, "morf", counts)
        start = values[:, :1]
        if self.versus == "random":
            start = self.curve(maps, context, "random", counts)
        return [Measurement.of((start - values).mean(1), headline=True)]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        forwards, backwards = super().passes(shape)
        again = inner(self.counts(shape), self.units(shape)) if self.versus == "random" else 0
        return (forwards + again, backwards)


@metric(
    "abpc",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="Samek et al. 2017",
)
@dataclass(frozen=True)
class ABPC(Steps):
    """Area between the LeRF and the MoRF curve: 1 / (L + 1) · Σ_k (f(x_k^LeRF) − f(x_k^MoRF))."""

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        counts = self.counts(maps.shape[1:])
        most = self.curve(maps, context, "morf", counts)
        least = self.curve(maps, context, "lerf", counts)
        return [Measurement.of((least - most).mean(1), headline=True)]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        forwards, backwards = super().passes(shape)
        return (forwards + inner(self.counts(shape), self.units(shape)), backwards)


@metric(
    "region_perturbation",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="Samek et al. 2017",
)
@dataclass(frozen=True)
class RegionPerturbation(Curve):
    """AOPC of patches that are replaced by noise, one after the other, the most relevant first.

    regions: how many of them (all if there are fewer). repeats: the noise is drawn so often and
    the outputs averaged. Samek et al. take patches of 9, 100 regions and 10 repeats.
    """

    patch: Count = 9
    fill: Fill = "uniform"
    regions: Count = 20
    repeats: Count = 1

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        counts = self.counts(maps.shape[1:])
        paths = (self.path(maps, context, "morf", draw) for draw in range(self.repeats))
        curves = [removal.read(path.outputs(counts), self.output, context) for path in paths]
        values = torch.stack(curves).mean(0)
        return [Measurement.of((values[:, :1] - values).mean(1), headline=True)]

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(range(min(self.regions, self.units(shape)) + 1))

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        counts, units = self.counts(shape), self.units(shape)
        each = inner(counts, units) + (units in counts) * self.end()
        return (1 + self.repeats * each, 0)
