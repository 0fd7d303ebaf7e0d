"""What removing inputs does to a representation: all outputs count, none is explained by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.faithfulness import Channels, Percent, Removal, by_percent, inner

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.load("torch")


@metric(
    "representation_shift",
    family="faithfulness",
    direction="higher",
    range=(0, math.inf),
    needs={"model"},
    source="Crabbé & van der Schaar 2022",
)
@dataclass(frozen=True)
class RepresentationShift(Removal):
    """How far the removal of the highest positions moves the outputs: Σ_k (f_k(x) − f_k(x'))².

    For models whose outputs are a representation (section 4.1 of the paper, whose original takes
    the square; `squared` false gives the norm). percents: how many positions are removed; ⌊·⌋ of
    them. The headline is the mean over all percents. How positions are ranked and what replaces
    them: see `faithfulness.Removal`; by default, by Σ |a| over the channels, as in the original.
    """

    channels: Channels = "abs_sum"
    percents: Annotated[tuple[Percent, ...], Field(min_length=1)] = (5, 10, 20, 50, 80, 100)
    squared: bool = True

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        path = self.path(maps, context, "morf")
        outputs = path.outputs(by_percent(path.units, self.percents)).double()
        whole = context.model_batch().outputs().double().unsqueeze(1)
        shift = (outputs - whole).square().sum(2).cpu()
        shift = shift if self.squared else shift.sqrt()
        mean = Measurement.of(shift.mean(1), headline=True, percent="mean")
        each = zip(self.percents, shift.unbind(1), strict=True)
        return [mean, *(Measurement.of(samples, percent=float(p)) for p, samples in each)]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        units = self.units(shape)
        counts = by_percent(units, self.percents)
        end = self.end() if any(count >= units for count in counts) else 0
        return (1 + inner(counts, units) + end, 0)
