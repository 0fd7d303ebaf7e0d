"""How a map follows its input when that slides along."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.perturbed import Fill, translated, translated_maps
from experiments.scoring.robustness import Reading, length, over_draws, ratio, same_class
from experiments.specs import Count

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.load("torch")


@metric(
    "continuity",
    family="robustness",
    direction="lower",
    range=(0, math.inf),
    needs={"method"},
    source="Montavon et al. 2018",
)
@dataclass(frozen=True)
class Continuity(Reading):
    """How fast a map moves while the input slides along its last axis.

    max over shifts of ‖e(x) − e(x')‖₁ / ‖x − x'‖₂ (section 7.1), with the original's target.
    steps, shift: x' is x shifted by 1, ..., `steps` times `shift` places.
    fill: what comes in at the border: the "baseline", or what went out at the other ("wrap").
    same_class_only: leave out shifts for which the model predicts another class; NaN if none is
        left.
    Raises ValueError if the longest shift is not shorter than the axis.
    """

    steps: Count = 4
    shift: Count = 1
    fill: Fill = "baseline"
    same_class_only: bool = False

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        x = context.model_batch()
        maps = maps.to(x.x.device)
        before = self.read(maps)
        shifts = tuple(self.shift * step for step in range(1, self.steps + 1))
        found = translated_maps(context, shifts, self.fill)
        variants = translated(x, shifts, self.fill)
        values = torch.stack(
            [
                ratio(
                    length(self.read(after.to(maps.dtype)) - before, "l1"),
                    length(near.x - x.x, "l2"),
                )
                for after, near in zip(found, variants, strict=True)
            ]
        )
        everything = torch.ones_like(values, dtype=torch.bool)
        kept = same_class(x, variants) if self.same_class_only else everything
        return [Measurement.of(over_draws(values, kept, "max"), headline=True)]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        """At most, besides `steps` runs of the method."""
        return (self.steps + 1, 0) if self.same_class_only else (0, 0)
