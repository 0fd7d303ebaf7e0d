"""Whether a method says the same of inputs that hardly differ.

All scores run the method, with the original's target, at the same few perturbed inputs
(`perturbed.py`), so that together they cost as much as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric
from experiments.scoring.perturbed import (
    PENULTIMATE,
    Draws,
    Perturbation,
    Unit,
    hidden,
    perturbed,
    perturbed_maps,
)
from experiments.specs import Count, NonNegative, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.attribution.batch import Batch
    from experiments.scoring import functional as F
else:
    torch = lazy.load("torch")
    F = lazy.load("experiments.scoring.functional")

Norm = Literal["l1", "l2", "max"]
Normalise = Literal["none", "max", "sum", "rms"]
Aggregate = Literal["max", "mean"]

_ORDER: dict[Norm, float] = {"l1": 1, "l2": 2, "max": math.inf}


def length(vectors: Tensor, norm: Norm) -> Tensor:
    """[N]: the norm of each vector of [N, ...], float64."""
    return torch.linalg.vector_norm(vectors.double().flatten(1), _ORDER[norm], dim=1)


def ratio(change: Tensor, by: Tensor) -> Tensor:
    """change / by; 0 where nothing changed, NaN where something did relative to nothing."""
    defined = torch.where(by > 0, change / torch.where(by > 0, by, 1), torch.nan)
    return torch.where(change == 0, 0.0, defined)


def share_changed(before: Tensor, after: Tensor, eps: float) -> Tensor:
    """(before − after) / before of [N, ...], number by number; a zero before counts as eps."""
    before, after = before.double(), after.double()
    return (before - after) / torch.where(before == 0, eps, before)


def over_draws(values: Tensor, kept: Tensor, how: Aggregate) -> Tensor:
    """[N]: the largest or the mean of the kept among values [S, N].

    NaN if none is kept, or if one of the kept is undefined.
    """
    count = kept.sum(0)
    if how == "max":
        found = values.masked_fill(~kept, -torch.inf).amax(0)
    else:
        found = values.masked_fill(~kept, 0).sum(0) / count.clamp(min=1)
    return torch.where(count > 0, found, torch.nan)


def same_class(original: Batch, others: Iterable[Batch]) -> Tensor:
    """bool [S, N]: whether the model predicts the same class of the other inputs."""
    predicted = original.outputs().argmax(1)
    return torch.stack([other.outputs().argmax(1) == predicted for other in others])


@dataclass(frozen=True)
class Reading(Score):
    """How a score looks at maps.

    view, channels: see `functional.relevance`; by default every number of a map, with its sign.
    normalise: divide a map, once read, by its own "max", "sum" or "rms" of absolute values; a
        zero map stays zero.
    """

    view: Literal["raw", "abs", "positive"] = "raw"
    channels: Literal["none", "sum", "mean", "abs_sum", "max", "l2"] = "none"
    normalise: Normalise = "none"

    def read(self, maps: Tensor) -> Tensor:
        """[N, P], float64."""
        found = F.relevance(maps, self.view, self.channels)
        size = {
            "none": lambda: torch.ones_like(found[:, :1]),
            "max": lambda: found.abs().amax(1, keepdim=True),
            "sum": lambda: found.abs().sum(1, keepdim=True),
            "rms": lambda: found.square().mean(1, keepdim=True).sqrt(),
        }[self.normalise]()
        return found / torch.where(size > 0, size, 1)


@dataclass(frozen=True)
class _Perturbed(Reading):
    """A score of how maps change with x + δ.

    perturbation: δ is "uniform" in the L∞ ball of the radius, or "normal" with the radius as
        standard deviation.
    radius, unit: in the units of the "input", or as a share of each sample's "range", max − min.
    samples: draws of δ per sample.
    norm: of maps, inputs and outputs as vectors.
    same_class_only: leave out draws for which the model predicts another class; NaN if none is
        left.
    """

    aggregate: ClassVar[Aggregate] = "max"

    perturbation: Perturbation = "uniform"
    radius: NonNegative = 0.2
    unit: Unit = "input"
    samples: Count = 10
    norm: Norm = "l2"
    same_class_only: bool = False

    @property
    def draws(self) -> Draws:
        return Draws(self.perturbation, self.radius, self.unit, self.samples)

    def compare(self, before: Tensor, after: Tensor, x: Batch, near: Batch) -> Tensor:
        """[N]: how much the maps [N, P] of the batches differ; NaN where that is undefined."""
        raise NotImplementedError

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        x = context.model_batch()
        maps = maps.to(x.x.device)
        before, found = self.read(maps), perturbed_maps(context, self.draws)
        variants = perturbed(x, self.draws)
        values = torch.stack(
            [
                self.compare(before, self.read(after.to(maps.dtype)), x, near)
                for after, near in zip(found, variants, strict=True)
            ]
        )
        everything = torch.ones_like(values, dtype=torch.bool)
        kept = same_class(x, variants) if self.same_class_only else everything
        return [Measurement.of(over_draws(values, kept, self.aggregate), headline=True)]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        """At most, besides `samples` runs of the method: outputs come free with a gradient."""
        return (self.samples + 1, 0) if self.same_class_only else (0, 0)


# --- how far the map moves ---


@dataclass(frozen=True)
class _Sensitivity(_Perturbed):
    """relative: divide by the length of the map itself, ‖e(x)‖."""

    relative: bool = True

    def compare(self, before: Tensor, after: Tensor, x: Batch, near: Batch) -> Tensor:
        change = length(after - before, self.norm)
        return ratio(change, length(before, self.norm)) if self.relative else change


@metric(
    "max_sensitivity",
    family="robustness",
    direction="lower",
    range=(0, math.inf),
    needs={"method"},
    source="Yeh et al. 2019",
)
@dataclass(frozen=True)
class MaxSensitivity(_Sensitivity):
    """How far a map moves, relative to its length, in the worst of the draws.

    max over δ of ‖e(x + δ) − e(x)‖ / ‖e(x)‖ (definition 2; there without the denominator:
    `relative: false`). A zero map that changes is undefined, NaN.
    """


@metric(
    "avg_sensitivity",
    family="robustness",
    direction="lower",
    range=(0, math.inf),
    needs={"method"},
    source="Bhatt et al. 2020",
)
@dataclass(frozen=True)
class AvgSensitivity(_Sensitivity):
    """How far a map moves, relative to its length, in the mean over the draws.

    mean over δ of ‖e(x + δ) − e(x)‖ / ‖e(x)‖. A zero map that changes is undefined, NaN.
    """

    aggregate = "mean"


@metric(
    "local_lipschitz",
    family="robustness",
    direction="lower",
    range=(0, math.inf),
    needs={"method"},
    source="Alvarez-Melis & Jaakkola 2018",
)
@dataclass(frozen=True)
class LocalLipschitz(_Perturbed):
    """How fast a map moves with its input: a lower estimate of the local Lipschitz constant.

    max over δ of ‖e(x + δ) − e(x)‖ / ‖δ‖ (equation 2). It grows with the scale of the maps:
    `normalise` makes methods comparable.
    """

    def compare(self, before: Tensor, after: Tensor, x: Batch, near: Batch) -> Tensor:
        return ratio(length(after - before, self.norm), length(near.x - x.x, self.norm))


# --- how far it moves for what moved it ---


@dataclass(frozen=True)
class _Relative(_Perturbed):
    """eps_min: the least denominator, and what a number of the map that is zero counts as."""

    same_class_only: bool = True
    eps_min: Positive = 1e-6

    def compare(self, before: Tensor, after: Tensor, x: Batch, near: Batch) -> Tensor:
        change = length(share_changed(before, after, self.eps_min), self.norm)
        return change / self.cause(x, near).clamp(min=self.eps_min)

    def cause(self, x: Batch, near: Batch) -> Tensor:
        """[N]: how much of what the map depends on has changed."""
        raise NotImplementedError


@metric(
    "relative_input_stability",
    family="robustness",
    direction="lower",
    range=(0, math.inf),
    needs={"method"},
    source="Agarwal et al. 2022",
)
@dataclass(frozen=True)
class RelativeInputStability(_Relative):
    """The map's relative change for the input's relative change, in the worst of the draws.

    max over δ of ‖(e(x) − e(x'))/e(x)‖ / max(‖(x − x')/x‖, eps_min) with x' = x + δ (equation 2),
    over draws of the same class.
    """

    def cause(self, x: Batch, near: Batch) -> Tensor:
        return length(share_changed(x.x, near.x, self.eps_min), self.norm)


@metric(
    "relative_representation_stability",
    family="robustness",
    direction="lower",
    range=(0, math.inf),
    needs={"method"},
    source="Agarwal et al. 2022",
)
@dataclass(frozen=True)
class RelativeRepresentationStability(_Relative):
    """The map's relative change for that of the network's inner representation, at worst.

    max over δ of ‖(e(x) − e(x'))/e(x)‖ / max(‖(L(x) − L(x'))/L(x)‖, eps_min) (equation 3), over
    draws of the same class.
    layer: L is the input of the last linear layer ("penultimate", free with a gradient), or the
        output of a module by its dotted name.
    """

    layer: str = PENULTIMATE

    def cause(self, x: Batch, near: Batch) -> Tensor:
        before, after = hidden(x, self.layer), hidden(near, self.layer)
        return length(share_changed(before, after, self.eps_min), self.norm)

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (self.samples + 1, 0)


@metric(
    "relative_output_stability",
    family="robustness",
    direction="lower",
    range=(0, math.inf),
    needs={"method"},
    source="Agarwal et al. 2022",
)
@dataclass(frozen=True)
class RelativeOutputStability(_Relative):
    """The map's relative change for the change of the outputs (logits), in the worst of the draws.

    max over δ of ‖(e(x) − e(x'))/e(x)‖ / max(‖f(x) − f(x')‖, eps_min) (equation 4), over draws of
    the same class.
    """

    def cause(self, x: Batch, near: Batch) -> Tensor:
        return length(x.outputs() - near.outputs(), self.norm)

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (self.samples + 1, 0)
