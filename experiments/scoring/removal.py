"""The path on which a map's positions are removed one after the other, and the outputs along it.

Many scores walk the same path; a `Path` remembers the outputs at each of its points, so that they
pay for a point once. Its two ends, nothing and everything removed, do not depend on the map: all
orders and all methods share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from experiments import passes
from experiments.attribution.batch import Batch
from experiments.randomness import SampleGenerators
from experiments.scoring import functional as F
from experiments.scoring import segments
from experiments.scoring.base import Context
from experiments.scoring.faithfulness import Output, Ties, spatial_shape
from experiments.scoring.imputation import Imputation

Order = Literal["morf", "lerf", "random"]


@dataclass(frozen=True)
class Ranking:
    """Which positions go together, and what decides which go first.

    view, channels  from a map to a weight per position, see `functional.relevance`; channels
                    "none" ranks and removes each channel of a pixel by itself
    ties            equal weights go in a random order, seeded per sample, or the first goes first
    units           what is removed at a time: ("position",), ("patch", size) squares or windows
                    of neighbours, ranked by their summed weight, or ("slic", count, compactness)
                    superpixels, ranked by their mean weight
    """

    view: F.View = "raw"
    channels: F.Channels = "sum"
    ties: Ties = "random"
    units: tuple[str | float, ...] = ("position",)


@dataclass(frozen=True)
class Ranks:
    """rank int32 [B, P]: 0 for the positions that go first; `units` ranks at most, and int64 [B]
    how many a sample really has (superpixels may die out)."""

    rank: Tensor
    units: int
    there: Tensor


def ranks(maps: Tensor, context: Context, ranking: Ranking, order: Order) -> Ranks:
    """The order in which positions are removed; LeRF is MoRF backwards, ties included."""
    batch = context.model_batch()
    if order == "random":
        blind = replace(ranking, ties="random")
        return batch.once(
            ("random ranks", ranking.channels, ranking.units),
            lambda: _ranks(torch.zeros_like(maps), batch, blind, "score/random order"),
            per_target=False,
        )
    found = context.once(
        ("ranks", ranking), lambda: _ranks(maps, batch, ranking, "score/removal ties")
    )
    if order == "morf":
        return found
    return replace(found, rank=found.there[:, None].int() - 1 - found.rank)


def _ranks(maps: Tensor, batch: Batch, ranking: Ranking, purpose: str) -> Ranks:
    weights = F.relevance(maps.to(batch.x.device), ranking.view, ranking.channels)
    joined = units_of(batch, ranking)
    noise = purpose if ranking.ties == "random" else None
    if joined is None:
        count = weights.shape[1]
        every = torch.full_like(weights[:, 0], count, dtype=torch.long)
        return Ranks(_rank(weights, batch, noise), count, every)
    labels, count = joined.labels.expand(len(weights), -1), joined.number
    size = weights.new_zeros(len(labels), count).scatter_add_(1, labels, torch.ones_like(weights))
    weight = weights.new_zeros(len(labels), count).scatter_add_(1, labels, weights)
    if ranking.units[0] == "slic":
        weight = weight / size.clamp(min=1)
    rank = _rank(weight.masked_fill(size == 0, -torch.inf), batch, noise)
    return Ranks(rank.gather(1, labels), count, (size > 0).sum(1))


def _rank(weights: Tensor, batch: Batch, noise: str | None) -> Tensor:
    """int32 [B, P]: the place of each weight, 0 for the highest; ties by `noise` if it is named."""
    order = F.order(weights)
    ranked = weights.gather(1, order)
    if noise is not None and bool((ranked[:, 1:] == ranked[:, :-1]).any()):
        count = weights.shape[1]
        numbers = batch.once(
            (noise, count), lambda: batch.generator(noise).uniform(count), per_target=False
        )
        order = F.order(weights, numbers)
    places = torch.arange(weights.shape[1], device=weights.device, dtype=torch.int32)
    return torch.empty_like(order, dtype=torch.int32).scatter_(1, order, places.expand_as(order))


def units_of(batch: Batch, ranking: Ranking) -> segments.Units | None:
    """The units of the positions; None if each is its own. Raises ValueError for units of single
    channels."""
    kind, *parameters = ranking.units
    if kind == "position" or (kind == "patch" and parameters == [1]):
        return None
    if ranking.channels == "none":
        raise ValueError(
            "patches and superpixels hold all channels: set channels to another value than 'none'"
        )
    if kind == "patch":
        units = segments.patches(spatial_shape(batch.x.shape[1:]), int(parameters[0]))
        return units.to(batch.x.device)
    count, compactness = parameters
    return batch.once(
        ("slic", count, compactness),
        lambda: segments.slic(batch.x, int(count), float(compactness)),
        per_target=False,
    )


def removed_shape(shape: Sequence[int], channels: str) -> tuple[int, ...]:
    """The shape of one mask that fits samples of a shape: one channel, unless they go apart."""
    return tuple(shape) if len(shape) == 1 or channels == "none" else (1, *shape[1:])


# --- paths ---


class Path:
    """Outputs of the model along one order of removal, each point computed when first asked for."""

    def __init__(
        self, batch: Batch, ranks: Ranks, imputation: Imputation, shape: tuple[int, ...]
    ) -> None:
        self.batch = batch
        self.ranks = ranks
        self.imputation = imputation
        self.shape = shape
        self._points: dict[int, Tensor] = {}

    @property
    def units(self) -> int:
        """How many units there are to remove."""
        return self.ranks.units

    def outputs(self, counts: Sequence[int]) -> Tensor:
        """[B, S, K]: outputs after the removal of that many units."""
        wanted = sorted(set(counts) - self._points.keys())
        inner = []
        for count in wanted:
            if count == 0:
                self._points[count] = self.batch.outputs()
            elif count >= self.units:
                self._points[count] = self.imputation.outputs_of_nothing(self.batch)
            else:
                inner.append(count)
        if inner:
            found = self._walk(inner)
            self._points.update(zip(inner, found.unbind(1), strict=True))
        return torch.stack([self._points[count] for count in counts], 1)

    def _walk(self, counts: Sequence[int]) -> Tensor:
        border = torch.tensor(counts, device=self.batch.x.device, dtype=torch.int32)

        def inputs(step: Tensor, sample: Tensor) -> Tensor:
            removed = self.ranks.rank[sample] < border[step][:, None]
            return self.imputation.remove(self.batch, sample, removed.view(-1, *self.shape))

        return walk(self.batch, len(counts), inputs)


def path(
    maps: Tensor, context: Context, ranking: Ranking, order: Order, imputation: Imputation
) -> Path:
    """The path of these maps; that of the random order is shared by all methods."""
    batch = context.model_batch()
    shape = removed_shape(batch.x.shape[1:], ranking.channels)

    def make() -> Path:
        return Path(batch, ranks(maps, context, ranking, order), imputation, shape)

    if order == "random":
        key = ("random path", ranking.channels, ranking.units, imputation)
        return batch.once(key, make, per_target=False)
    return context.once(("path", ranking, order, imputation), make)


def walk(
    batch: Batch,
    steps: int,
    inputs: Callable[[Tensor, Tensor], Tensor],
    read: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Outputs [B, S, K] of S inputs made of each sample, never more at a time than one pass holds.

    inputs: rows of (step, sample), int64 [R] each, to inputs [R, ...]. The rows of a step come
        together: what is alike takes equally long.
    read: what to keep of the outputs [R, K] of rows (step, sample), if not all of them.
    """
    size = passes.rows_per_pass(batch.model, batch.x)
    total = steps * len(batch)
    parts = []
    for start in range(0, total, size):
        row = torch.arange(start, min(start + size, total), device=batch.x.device)
        step = row.div(len(batch), rounding_mode="floor")
        sample = row % len(batch)
        outputs = passes.outputs(batch.model, inputs(step, sample))
        parts.append(outputs if read is None else read(outputs, step, sample))
    joined = torch.cat(parts)
    return joined.view(steps, len(batch), *joined.shape[1:]).transpose(0, 1)


def shared_draws(batch: Batch, purpose: str) -> SampleGenerators:
    """One stream for all samples of all batches, for draws that every sample shares."""
    return SampleGenerators(batch.seed, [0], batch.purpose + purpose)


# --- from outputs to what a curve shows ---


def read(outputs: Tensor, output: Output, context: Context) -> Tensor:
    """float64 [B, S] on the CPU from outputs [B, S, K].

    "probability" of the explained class; "logit": the explained output itself; "accuracy": 1 where
    the class is the true one; "agreement": 1 where it is that of the unchanged sample.
    Raises ValueError for a probability that does not exist.
    """
    batch = context.model_batch()
    steps = outputs.shape[1]
    if output == "accuracy":
        return (outputs.argmax(2).cpu() == context.y.cpu()[:, None]).double()
    if output == "agreement":
        return (outputs.argmax(2) == batch.outputs().argmax(1)[:, None]).double().cpu()
    target = batch.target.repeat_interleave(steps, 0)
    rows = outputs.flatten(0, 1).double()
    if output == "probability":
        check_probability(batch)
        rows = rows.softmax(1)
    elif target.is_floating_point():
        target = target.double()
    return passes.selected(rows, target).view(-1, steps).cpu()


def check_probability(batch: Batch) -> None:
    """Raises ValueError if what is explained is not a class among several."""
    if batch.target.is_floating_point():
        raise ValueError(
            "a weighted sum of outputs has no probability: set output to 'logit', the sum itself"
        )
    if batch.outputs().shape[1] == 1:
        raise ValueError("the only output of a model has no probability: set output to 'logit'")
