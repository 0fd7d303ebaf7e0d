"""Faithfulness by correlation: does a map's weight go with what the output loses?

What is removed is drawn at random or fixed, and is the same for all samples: it does not depend on
the maps, so that R passes per sample serve the scores of all methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.faithfulness import Channels, Filling, View, spatial_shape
from experiments.specs import Count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.attribution.batch import Batch
    from experiments.scoring import functional as F
    from experiments.scoring import removal, segments
else:
    F = lazy.load("experiments.scoring.functional")
    removal = lazy.load("experiments.scoring.removal")
    segments = lazy.load("experiments.scoring.segments")
    torch = lazy.load("torch")

FAMILY = "faithfulness"
Correlation = Literal["pearson", "spearman"]
Size = Annotated[float, Field(gt=0)]


def correlation(a: Tensor, b: Tensor, kind: Correlation = "pearson") -> Tensor:
    """[B]: of the rows of a and b [B, R]; NaN where one of them is constant, up to rounding."""
    if kind == "spearman":
        a, b = F.average_ranks(a), F.average_ranks(b)
    spread = []
    for side in (a, b):
        centred = side - side.mean(1, keepdim=True)
        scale = side.abs().amax(1, keepdim=True)
        constant = centred.abs().amax(1, keepdim=True) <= CONSTANT * scale
        norm = centred.norm(dim=1, keepdim=True)
        spread.append(centred / torch.where(constant, torch.nan, norm))
    return (spread[0] * spread[1]).sum(1).clamp(-1, 1)


# Sums of 10,000 numbers of float64 differ by less than this share if they are equal in truth.
CONSTANT = 1e-12


@dataclass(frozen=True)
class _Correlated(Filling):
    """view, channels: a map's weight per position, see `functional.relevance`; with "none" each
    channel of a pixel is a position. output: what the model may lose, see `removal.read`."""

    view: View = "raw"
    channels: Channels = "sum"
    output: Literal["logit", "probability"] = "logit"

    def weights(self, maps: Tensor) -> Tensor:
        return F.relevance(maps, self.view, self.channels).cpu()

    def positions(self, shape: Sequence[int]) -> int:
        return math.prod(shape if self.channels == "none" else spatial_shape(shape))

    def losses(self, context: Context, outputs: Tensor) -> Tensor:
        """float64 [B, R] on the CPU: what the output loses when it becomes `outputs` [B, R, K]."""
        whole = context.model_batch().outputs()[:, None]
        before = removal.read(whole, self.output, context)
        return before - removal.read(outputs, self.output, context)

    def without(self, batch: Batch, removed: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """[B, count, K]: outputs without what `removed` says of draws int64 [R], bool [R, P]."""
        shape = removal.removed_shape(batch.x.shape[1:], self.channels)
        fill = self.imputation()

        def inputs(draw: Tensor, sample: Tensor) -> Tensor:
            return fill.remove(batch, sample, removed(draw).view(-1, *shape))

        return removal.walk(batch, count, inputs)


# --- random subsets ---


@dataclass(frozen=True)
class _Subsets(_Correlated):
    """cells: the input is cut into at most so many equal cells, which are removed as a whole; each
    position is a cell of its own where there are fewer. draws: how many subsets of each size."""

    cells: Count | None = None
    draws: Count = 100

    def pieces(self, shape: Sequence[int]) -> int:
        """How many cells there are to choose from."""
        if self.cells is None or self.channels == "none":
            return self.positions(shape)
        spatial = spatial_shape(shape)
        per_axis = max(1, math.floor(self.cells ** (1 / len(spatial)) + 1e-9))
        return math.prod(min(length, per_axis) for length in spatial)

    def chosen(self, shape: Sequence[int], size: float) -> int:
        """A number of cells, or below 1 a share of them: at least one, and never all."""
        pieces = self.pieces(shape)
        count = round(size * pieces) if size < 1 else int(size)
        return max(1, min(count, pieces - 1))

    def correlated(self, maps: Tensor, context: Context, size: float, kind: Correlation) -> Tensor:
        """float64 [B]: correlation over random subsets of their weight and the output's loss."""
        batch = context.model_batch()
        shape = batch.x.shape[1:]
        pieces, count = self.pieces(shape), self.chosen(shape, size)
        key = (pieces, count, self.draws)

        def draw() -> Tensor:
            generator = removal.shared_draws(batch, f"score/subsets of {count}")
            order = generator.uniform(self.draws, pieces)[0].argsort(1)
            return (order < count).to(batch.x.device)

        subsets = batch.once(("subsets", *key), draw, per_target=False)
        removed = subsets
        if self.cells is not None and self.channels != "none":
            cell = segments.grid(spatial_shape(shape), self.cells).labels[0]
            removed = subsets[:, cell.to(subsets.device)]
        outputs = batch.once(
            ("without subsets", *key, self.channels == "none", self.imputation()),
            lambda: self.without(batch, lambda draws: removed[draws], self.draws),
            per_target=False,
        )
        weight = self.weights(maps) @ removed.T.double().cpu()
        return correlation(weight, self.losses(context, outputs), kind)


@metric(
    "faithfulness_correlation",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="Bhatt et al. 2020",
)
@dataclass(frozen=True)
class FaithfulnessCorrelation(_Subsets):
    """Correlation of a random subset's weight with what the output loses without it.

    Over `draws` subsets of one size (equation 3). Undefined (NaN) for a map or an output whose
    values are the same for all subsets.
    size: how many positions a subset has, or below 1 which share of them.
    """

    size: Size = 0.2
    kind: Correlation = "pearson"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [Measurement.of(self.correlated(maps, context, self.size, self.kind), True)]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (1 + self.draws, 0)


@metric(
    "mu_fidelity",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="Bhatt et al. 2020; Fel et al. 2022",
)
@dataclass(frozen=True)
class MuFidelity(FaithfulnessCorrelation):
    """Rank correlation of a random set of cells' weight with what the output loses without them."""

    cells: Count | None = 81
    kind: Correlation = "spearman"


@metric(
    "sensitivity_n",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="Ancona et al. 2018",
)
@dataclass(frozen=True)
class SensitivityN(_Subsets):
    """Correlation of subsets' weight with what the output loses, for subsets of several sizes.

    One measurement for each size, and their mean as headline (undefined if one of them is).
    sizes: numbers of positions, or below 1 shares of them.
    """

    sizes: tuple[Size, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    draws: Count = 20

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        each = [self.correlated(maps, context, size, "pearson") for size in self.sizes]
        return [
            Measurement.of(torch.stack(each).mean(0), True, size="mean"),
            *(Measurement.of(v, size=size) for v, size in zip(each, self.sizes, strict=True)),
        ]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        counts = {self.chosen(shape, size) for size in self.sizes}
        return (1 + self.draws * len(counts), 0)


# --- one group of positions after the other ---


@dataclass(frozen=True)
class _Groups(_Correlated):
    """groups: how many groups of positions there are (fewer for smaller inputs). grouping: "grid",
    equal cells of neighbours, whose passes all methods share; or "sorted", positions of
    neighbouring ranks, as Quantus has it. ties: see `removal.Ranking`."""

    groups: Count = 64
    grouping: Literal["grid", "sorted"] = "grid"
    ties: Literal["random", "first"] = "random"

    def number(self, shape: Sequence[int]) -> int:
        if self.grouping == "sorted" or self.channels == "none":
            return min(self.groups, self.positions(shape))
        spatial = spatial_shape(shape)
        per_axis = max(1, math.floor(self.groups ** (1 / len(spatial)) + 1e-9))
        return math.prod(min(length, per_axis) for length in spatial)

    def labels(self, maps: Tensor, context: Context) -> Tensor:
        """int64 [B or 1, P]: the group of each position."""
        batch = context.model_batch()
        shape = batch.x.shape[1:]
        if self.grouping == "sorted":
            ranking = removal.Ranking(self.view, self.channels, self.ties)
            found = removal.ranks(maps, context, ranking, "lerf")
            return found.rank.long() * self.number(shape) // found.units
        if self.channels == "none":
            flat = (self.positions(shape),)
            return segments.grid(flat, self.groups).labels.to(batch.x.device)
        return segments.grid(spatial_shape(shape), self.groups).labels.to(batch.x.device)

    def outputs(self, labels: Tensor, context: Context, draw: int = 0) -> Tensor:
        """[B, G, K]: outputs without each of the groups."""
        batch = context.model_batch()
        shape = batch.x.shape[1:]
        removed_shape = removal.removed_shape(shape, self.channels)
        fill = self.imputation(draw)

        def compute() -> Tensor:
            def inputs(group: Tensor, sample: Tensor) -> Tensor:
                of_sample = labels[sample] if len(labels) > 1 else labels
                removed = of_sample == group[:, None]
                return fill.remove(batch, sample, removed.view(-1, *removed_shape))

            return removal.walk(batch, self.number(shape), inputs)

        key = (self.grouping, self.number(shape), self.channels == "none", fill)
        if self.grouping == "grid":
            return batch.once(("without groups", *key), compute, per_target=False)
        return context.once(("without groups", *key, self.view, self.channels, self.ties), compute)

    def weight(self, maps: Tensor, labels: Tensor) -> Tensor:
        """float64 [B, G]: the weight of each group."""
        weights = self.weights(maps)
        index = labels.cpu().expand(len(weights), -1)
        sums = weights.new_zeros(len(weights), self.number(maps.shape[1:]))
        return sums.scatter_add_(1, index, weights)


@metric(
    "faithfulness_estimate",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="Alvarez-Melis & Jaakkola 2018",
)
@dataclass(frozen=True)
class FaithfulnessEstimate(_Groups):
    """Correlation of a group's weight with what the output loses without that group alone.

    Undefined (NaN) for a constant map, and for an output that loses the same without any group.
    """

    kind: Correlation = "pearson"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        labels = self.labels(maps, context)
        losses = self.losses(context, self.outputs(labels, context))
        return [Measurement.of(correlation(self.weight(maps, labels), losses, self.kind), True)]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (1 + self.number(shape), 0)


@metric(
    "monotonicity_correlation",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="Nguyen & Martinez 2020",
)
@dataclass(frozen=True)
class MonotonicityCorrelation(_Groups):
    """Rank correlation of a group's weight with how far the output strays without that group.

    The mean over `draws` of the fill of (p − p')² / p², equation 5; where p is below `least` it is
    not divided. Undefined (NaN) for a constant map and an output that strays alike. A fill that
    is not random needs one draw only.
    """

    view: View = "abs"
    output: Literal["logit", "probability"] = "probability"
    fill: Literal[
        "baseline", "zero", "mean", "blur", "uniform", "normal", "color", "noisy_linear"
    ] = "color"
    groups: Count = 16
    draws: Count = 4
    least: Annotated[float, Field(ge=0)] = 1e-5

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        labels = self.labels(maps, context)
        whole = removal.read(context.model_batch().outputs()[:, None], self.output, context)
        scale = torch.where(whole.abs() < self.least, 1.0, whole.square())
        strayed = torch.zeros((), dtype=torch.float64)
        for draw in range(self.rounds()):
            outputs = self.outputs(labels, context, draw)
            strayed = strayed + self.losses(context, outputs).square() / scale
        weight = self.weight(maps, labels)
        return [Measurement.of(correlation(weight, strayed, "spearman"), True)]

    def rounds(self) -> int:
        return self.draws if self.fill in ("uniform", "normal", "color", "noisy_linear") else 1

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (1 + self.rounds() * self.number(shape), 0)
