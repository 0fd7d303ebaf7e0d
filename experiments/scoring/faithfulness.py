"""What faithfulness scores have in common: how a map is ranked, what stands in for the removed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from experiments import lazy
from experiments.scoring.base import Context, Score
from experiments.specs import Count, NonNegative

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.scoring import imputation, removal
else:
    imputation = lazy.load("experiments.scoring.imputation")
    removal = lazy.load("experiments.scoring.removal")

View = Literal["raw", "abs", "positive"]
Channels = Literal["sum", "abs_sum", "mean", "max", "l2", "none"]
Ties = Literal["random", "first"]
Fill = Literal["baseline", "zero", "mean", "blur", "uniform", "normal", "color", "noisy_linear"]
Padding = Literal["zeros", "replicate"]
Output = Literal["probability", "logit", "accuracy", "agreement"]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Unit = tuple[str | float, ...]


def spatial_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The positions of a sample: (D,), (T,) or (H, W)."""
    return tuple(shape) if len(shape) == 1 else tuple(shape[1:])


def slic_cells(spatial: Sequence[int], count: int) -> tuple[int, int]:
    """Rows and columns of the regular grid from which `count` superpixels of an image start."""
    height, width = spatial
    side = math.sqrt(height * width / count)
    return (max(1, min(height, round(height / side))), max(1, min(width, round(width / side))))


@dataclass(frozen=True)
class Filling(Score):
    """fill, sigma, kernel, padding: what stands in for the removed; see `imputation.Imputation`."""

    fill: Fill = "baseline"
    sigma: NonNegative | None = None
    kernel: Count = 11
    padding: Padding = "zeros"

    def imputation(self, draw: int = 0) -> imputation.Imputation:
        blurred = self.fill == "blur"
        return imputation.Imputation(
            self.fill,
            self.sigma if blurred or self.fill == "noisy_linear" else None,
            self.kernel if blurred else 11,
            self.padding if blurred else "zeros",
            draw,
        )

    def end(self) -> int:
        """Passes per sample for what is left when everything is removed: none if that is the same
        for all samples (then one row per batch)."""
        return 0 if self.fill in ("baseline", "zero", "noisy_linear") else 1


@dataclass(frozen=True)
class Removal(Filling):
    """A score that removes what a map ranks high, or low.

    view, channels, ties: how positions are ranked; see `removal.Ranking`.
    patch: how many neighbours along each axis are removed together.
    """

    view: View = "raw"
    channels: Channels = "sum"
    ties: Ties = "random"
    patch: Count = 1

    def unit(self) -> Unit:
        return ("patch", self.patch)

    def ranking(self) -> removal.Ranking:
        return removal.Ranking(self.view, self.channels, self.ties, self.unit())

    def path(
        self, maps: Tensor, context: Context, order: removal.Order, draw: int = 0
    ) -> removal.Path:
        return removal.path(maps, context, self.ranking(), order, self.imputation(draw))

    def units(self, shape: Sequence[int]) -> int:
        """How many units a sample of this shape has."""
        if self.channels == "none":
            return math.prod(shape)
        return math.prod(-(-length // self.patch) for length in spatial_shape(shape))


def inner(counts: Sequence[int], units: int) -> int:
    """How many points of a path cost a pass of their own: not its ends, and none twice."""
    return len({count for count in counts if 0 < count < units})


# --- schedules: how many units are removed at each point ---


def by_steps(units: int, steps: int) -> tuple[int, ...]:
    """From 0 to all units in equal steps, as far as there are units enough: at most steps + 1."""
    return tuple(sorted({units * step // steps for step in range(steps + 1)}))


def by_percent(units: int, percents: Sequence[float]) -> tuple[int, ...]:
    """⌊percent · units / 100⌋ each; 1e-9 is added so that 30 % of 10 is 3 whatever the rounding."""
    return tuple(int(percent * units / 100 + 1e-9) for percent in percents)
