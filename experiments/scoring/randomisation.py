"""Whether a map depends on what was learnt: on the weights, on the class, on the labels.

A method that gives nearly the same map for a network of random weights shows the input, not the
network. A control that draws its maps at random gives the very same draws under random weights,
and so counts as what it is, independent of them (`draws: fresh` draws anew).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric
from experiments.scoring.perturbed import Draws, Perturbation, Unit, perturbed, perturbed_maps
from experiments.specs import Count, NonNegative, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.attribution import driver
    from experiments.attribution.batch import Batch
    from experiments.scoring import functional as F
    from experiments.scoring import random_weights as weights
    from experiments.scoring import similarity as compare
    from experiments.scoring.random_weights import RandomWeights
else:
    torch = lazy.load("torch")
    driver = lazy.load("experiments.attribution.driver")
    F = lazy.load("experiments.scoring.functional")
    weights = lazy.load("experiments.scoring.random_weights")
    compare = lazy.load("experiments.scoring.similarity")

Initialisation = Literal["reset", "permute", "normal"]
Mode = Literal["top_down", "bottom_up", "independent"]

RANDOM_LABELS = "random_labels_model"


@dataclass(frozen=True)
class _Similar(Score):
    """A score of how similar two maps are; see `similarity.similarity`.

    kind: "spearman" or "pearson" correlation, "ssim", "top_k_iou" or "cosine".
    view, channels: how a map is read; see `functional.relevance`.
    k: of "top_k_iou", the share of positions.
    """

    kind: Literal["spearman", "pearson", "ssim", "top_k_iou", "cosine"] = "spearman"
    view: Literal["raw", "abs", "positive"] = "raw"
    channels: Literal["none", "sum", "mean", "abs_sum", "max", "l2"] = "sum"
    k: Positive = 0.1

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """[N]: NaN where it is undefined, as for a map of which random weights made infinity."""
        finite = b.flatten(1).isfinite().all(1)
        cleaned = torch.where(finite.view(-1, *[1] * (b.ndim - 1)), b, 0)
        found = compare.similarity(
            a.to(b.device), cleaned, self.kind, view=self.view, channels=self.channels, k=self.k
        )
        return torch.where(finite, found, torch.nan)


@dataclass(frozen=True)
class _Randomised(Score):
    """A score of maps under random weights.

    initialisation: layers are drawn anew as they draw themselves ("reset"), or their numbers are
        shuffled ("permute"), or drawn from a "normal" distribution of equal mean and deviation.
    draws: a stochastic method uses the "same" random numbers under other weights, so that only
        the weights differ, or "fresh" ones.
    """

    initialisation: Initialisation = "reset"
    draws: Literal["same", "fresh"] = "same"

    def weights(self, context: Context) -> RandomWeights:
        batch = context.model_batch()
        return weights.random_weights(batch.model, batch.x[:1], self.initialisation, context.seed)

    def explained(
        self, context: Context, batch: Batch, random: RandomWeights, first: int, last: int
    ) -> Tensor:
        """The method's maps of a batch with layers first, ..., last − 1 randomised."""
        assert context.explain is not None
        name = f"random weights/{self.initialisation}/{context.seed}/{first}:{last}"
        if self.draws == "fresh":
            inputs = batch.x
            batch = batch.variant(f"redrawn/{name}", lambda: inputs)
        with random.applied(batch.model, first, last):
            return context.explain(batch.under(name, batch.model))


@dataclass(frozen=True)
class _Cascade(_Similar, _Randomised):
    """How similar the maps stay while more and more layers are randomised.

    mode: "top_down" from the output layer to the input, "bottom_up" the other way round, or each
        layer "independent" of the others.
    states: this many states, evenly spread over the layers; by default one for each layer.
    """

    mode: Mode = "top_down"
    states: Count | None = None

    def cascade(
        self, original: Tensor, random: RandomWeights, explained: Callable[[int, int], Tensor]
    ) -> list[Measurement]:
        layers = random.layers
        found, measurements = [], []
        for first, last in weights.states(len(layers), self.mode, self.states):
            alike = self.similarity(original, explained(first, last))
            newest = layers[last - 1 if self.mode == "bottom_up" else first]
            depth = last if self.mode == "bottom_up" else len(layers) - first
            percent = round(100 * depth / len(layers), 1)
            measurements.append(Measurement.of(alike, layer=newest, depth=depth, percent=percent))
            found.append(alike)
        mean = torch.stack(found).nanmean(0)
        return [Measurement.of(mean, headline=True), *measurements]


@metric(
    "parameter_randomisation",
    family="randomisation",
    direction="lower",
    range=(-1, 1),
    needs={"method"},
    source="Adebayo et al. 2018",
)
@dataclass(frozen=True)
class ParameterRandomisation(_Cascade):
    """How similar the map stays when layers of the network are randomised (MPRT).

    The mean over the randomised states, the trained network left out, and one measurement per
    state with the layer that it randomises last, its depth (how many layers have been reached)
    and percent. A layer is a module with parameters of its own; L layers cost L runs of the
    method. A state whose similarity is undefined (a constant map) is left out of the mean.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        batch, random = context.model_batch(), self.weights(context)

        def explained(first: int, last: int) -> Tensor:
            return self.explained(context, batch, random, first, last)

        return self.cascade(maps, random, explained)


@metric(
    "smooth_parameter_randomisation",
    family="randomisation",
    direction="lower",
    range=(-1, 1),
    needs={"method"},
    source="Hedström et al. 2024",
)
@dataclass(frozen=True)
class SmoothParameterRandomisation(_Cascade):
    """Parameter randomisation of the mean map over noisy inputs (smooth MPRT).

    The trained network's map is averaged like the others: (L + 1) · `samples` runs of the method.
    perturbation, radius, unit, samples: the noise, by default normal with a tenth of each
    sample's range as standard deviation; see `perturbed.Draws`.
    """

    perturbation: Perturbation = "normal"
    radius: NonNegative = 0.1
    unit: Unit = "range"
    samples: Count = 10

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        noise = Draws(self.perturbation, self.radius, self.unit, self.samples)
        noisy, random = perturbed(context.model_batch(), noise), self.weights(context)

        def explained(first: int, last: int) -> Tensor:
            return _mean(self.explained(context, batch, random, first, last) for batch in noisy)

        return self.cascade(_mean(perturbed_maps(context, noise)), random, explained)


@metric(
    "efficient_parameter_randomisation",
    family="randomisation",
    direction="higher",
    range=(-1, math.inf),
    needs={"method"},
    source="Hedström et al. 2024",
)
@dataclass(frozen=True)
class EfficientParameterRandomisation(_Randomised):
    """How much more complex the map gets when the whole network is randomised (efficient MPRT).

    (ξ(ê) − ξ(e)) / ξ(e) of the maps before and after, one run of the method (equation 6).
    complexity: ξ is the entropy of the "histogram" of the map's numbers over `bins` equal
        intervals from its least to its greatest, or the entropy of its absolute "weight".
    channels: see `functional.relevance`.
    0 if neither map has any entropy, NaN if only the first has none.
    """

    complexity: Literal["histogram", "weight"] = "histogram"
    bins: Count = 100
    channels: Literal["none", "sum", "mean", "abs_sum", "max", "l2"] = "sum"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        random = self.weights(context)
        found = self.explained(context, context.model_batch(), random, 0, len(random.layers))
        finite = found.flatten(1).isfinite().all(1)
        after = self._entropy(found.masked_fill(~finite.view(-1, *[1] * (found.ndim - 1)), 0))
        before = self._entropy(maps.to(found.device))
        rise = (after - before) / torch.where(before > 0, before, torch.nan)
        rise = torch.where((before == 0) & (after == 0), 0, rise)
        return [Measurement.of(torch.where(finite, rise, torch.nan), headline=True)]

    def _entropy(self, maps: Tensor) -> Tensor:
        if self.complexity == "weight":
            return F.entropy(F.relevance(maps, "abs", self.channels))
        return histogram_entropy(F.relevance(maps, "raw", self.channels), self.bins)


@metric(
    "random_logit",
    family="randomisation",
    direction="lower",
    range=(-1, 1),
    needs={"method"},
    source="Sixt et al. 2020",
)
@dataclass(frozen=True)
class RandomLogit(_Similar):
    """How similar the map is to that of another class.

    other: a "random" class other than the target, uniformly drawn for each sample, the same for
        all methods; or of the other classes the one of the highest output ("runner_up") or of
        the lowest ("least").
    Raises ValueError if the targets are weights of outputs, or the model has one output only.
    """

    other: Literal["random", "runner_up", "least"] = "random"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        batch, explain = context.model_batch(), context.explain
        assert explain is not None
        another = batch.once(
            ("another class", self.other), lambda: batch.at(other_class(batch, self.other))
        )
        return [Measurement.of(self.similarity(maps, explain(another)), headline=True)]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        """At most, besides a run of the method: outputs come free with a gradient."""
        return (1, 0)


@metric(
    "data_randomisation",
    family="randomisation",
    direction="lower",
    range=(-1, 1),
    needs={"method"},
    source="Adebayo et al. 2018",
)
@dataclass(frozen=True)
class DataRandomisation(_Similar):
    """How similar the map is to that of a network trained on permuted labels.

    The study trains that network and hands it over in `Context.meta["random_labels_model"]`.
    Raises ValueError if it is not there.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        model, explain = context.meta.get(RANDOM_LABELS), context.explain
        assert explain is not None
        if model is None:
            raise ValueError(
                "score 'data_randomisation' compares with a network trained on permuted labels: "
                f"train one and give it as meta[{RANDOM_LABELS!r}]"
            )
        with driver.untouched(model):
            found = explain(context.model_batch().under("random labels", model))
        return [Measurement.of(self.similarity(maps, found), headline=True)]


def other_class(batch: Batch, how: Literal["random", "runner_up", "least"]) -> Tensor:
    """int64 [N]: a class that is not the target. Raises ValueError if there is none."""
    target, outputs = batch.target, batch.outputs()
    if target.is_floating_point():
        raise ValueError(
            "score 'random_logit' compares with another class, but the targets are weights of "
            "outputs; explain classes"
        )
    classes = outputs.shape[1]
    if classes < 2:
        raise ValueError("score 'random_logit' needs another class, but the model has one output")
    if how == "random":
        numbers = batch.generator("random_logit").uniform().to(target.device)
        return (target + 1 + (numbers * (classes - 1)).long()) % classes
    sign = 1 if how == "runner_up" else -1
    return (sign * outputs).scatter(1, target[:, None], -torch.inf).argmax(1)


def _mean(maps: Iterable[Tensor]) -> Tensor:
    total, count = torch.zeros(()), 0
    for found in maps:
        total, count = total.to(found.device) + found.double(), count + 1
    return total / count


def histogram_entropy(maps: Tensor, bins: int) -> Tensor:
    """[N] in [0, ln bins]: entropy, in nats, of the histogram of each row of [N, P].

    Bins of equal width from the row's least number to its greatest; 0 for a constant row.
    """
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    width = torch.where(high > low, high - low, 1)
    place = ((maps - low) / width * bins).long().clamp(max=bins - 1)
    counts = maps.new_zeros(len(maps), bins).scatter_add(1, place, torch.ones_like(maps))
    return torch.special.entr(counts / maps.shape[1]).sum(1)
