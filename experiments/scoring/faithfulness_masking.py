"""Faithfulness by masking: what the model makes of the sample as the map lets it through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric
from experiments.scoring.faithfulness import (
    Channels,
    Filling,
    NonNegative,
    Percent,
    Removal,
    Share,
    View,
    by_percent,
)
from experiments.specs import Count, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments import passes
    from experiments.attribution.batch import Batch
    from experiments.scoring import functional as F
    from experiments.scoring import removal
else:
    F = lazy.load("experiments.scoring.functional")
    passes = lazy.load("experiments.passes")
    removal = lazy.load("experiments.scoring.removal")
    torch = lazy.load("torch")

FAMILY = "faithfulness"
# What is left of a probability where there is none, so that 0 / 0 is 0.
EPSILON = 2.0**-52
ROWS = 256  # maps compared with all others at a time


# --- average drop, increase, gain ---


@dataclass(frozen=True)
class _Masked(Filling):
    """The sample seen through the map, m · x + (1 − m) · fill with m in [0, 1]: 1 pass, which all
    scores of this kind share. A fill that depends on what is removed does not go with it.

    view, channels: from the map to a weight per position, see `functional.relevance`.
    scale: m is the weight from its least to its largest value ("minmax"), its positive part over
    its largest value ("max"), or the weight itself cut to [0, 1] ("none"). A constant map lets
    everything through by "minmax", and a map without positive weights nothing by "max".
    """

    view: View = "raw"
    channels: Channels = "sum"
    scale: Literal["minmax", "max", "none"] = "minmax"

    def __post_init__(self) -> None:
        if self.fill == "noisy_linear":
            raise ValueError("fill 'noisy_linear' replaces positions entirely; choose another one")

    def probabilities(self, maps: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """float64 [B] each: of the explained class, for the sample and through the map."""
        batch = context.model_batch()
        removal.check_probability(batch)
        key = ("masked", self.imputation(), self.view, self.channels, self.scale)
        outputs = context.once(
            key, lambda: passes.outputs(batch.model, self._masked(maps, context))
        )
        both = torch.stack([batch.outputs(), outputs], 1)
        before, after = removal.read(both, "probability", context).unbind(1)
        return before, after

    def _masked(self, maps: Tensor, context: Context) -> Tensor:
        batch = context.model_batch()
        weight = F.relevance(maps.to(batch.x.device), self.view, self.channels)
        if self.scale == "minmax":
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
            spread = high - low
            weight = torch.where(spread > 0, (weight - low) / spread, 1.0)
        elif self.scale == "max":
            high = weight.amax(1, keepdim=True)
            weight = torch.where(high > 0, weight / high, 0.0)
        shape = removal.removed_shape(batch.x.shape[1:], self.channels)
        mask = weight.clamp(0, 1).view(-1, *shape).to(batch.x)
        fill = self.imputation().values(batch)
        return fill + mask * (batch.x - fill)

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (2, 0)


@metric(
    "average_drop",
    family=FAMILY,
    direction="lower",
    range=(0, 1),
    needs={"model"},
    source="Chattopadhay et al. 2018",
)
@dataclass(frozen=True)
class AverageDrop(_Masked):
    """By which share the probability falls if the sample is seen through the map.

    max(0, Y − O) / Y, with Y of the sample and O of the masked one. A map that lets everything
    through has none: read it next to `average_gain`.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        before, after = self.probabilities(maps, context)
        drop = (before - after).clamp(min=0) / (before + EPSILON)
        return [Measurement.of(drop, headline=True)]


@metric(
    "average_increase",
    family=FAMILY,
    direction="higher",
    range=(0, 1),
    needs={"model"},
    source="Chattopadhay et al. 2018",
)
@dataclass(frozen=True)
class AverageIncrease(_Masked):
    """How often the probability is higher if the sample is seen through the map.

    By more than `tolerance`: for a map that lets everything through, rounding would decide.
    """

    tolerance: NonNegative = 1e-6

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        before, after = self.probabilities(maps, context)
        return [Measurement.of((after > before + self.tolerance).double(), headline=True)]


@metric(
    "average_gain",
    family=FAMILY,
    direction="higher",
    range=(0, 1),
    needs={"model"},
    source="Zhang et al. 2024",
)
@dataclass(frozen=True)
class AverageGain(_Masked):
    """By which share of what is missing to 1 the probability rises, seen through the map.

    max(0, O − Y) / (1 − Y).
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        before, after = self.probabilities(maps, context)
        gain = (after - before).clamp(min=0) / (1 - before + EPSILON)
        return [Measurement.of(gain, headline=True)]


# --- F-Fidelity ---


@dataclass(frozen=True)
class _Fidelity(Removal):
    """Random parts of the positions that a map ranks high (or low) are removed: never more than a
    share `beta` of the sample, which is what a model can learn to do without.

    percents: how much of the sample the map's evidence is, one measurement for each.
    beta, alpha: of the candidates, a share s of the sample, each is removed with probability
        min(alpha, beta / s).
    draws: how often. The random numbers are the same for all samples, scores and methods.
    output: "accuracy" is whether the class is right, "probability" that of the explained class.

    The model should have been fine-tuned on samples without a random share `beta`: score with
    a batch `under` such weights. Zheng et al. take percents 5, 10, ... 100 and 50 draws.
    """

    percents: tuple[Percent, ...] = (10.0, 30.0, 50.0, 70.0, 90.0)
    beta: Share = 0.1
    alpha: Share = 0.5
    draws: Count = 20
    output: Literal["accuracy", "probability"] = "accuracy"
    empty_at_all: ClassVar[bool] = False  # no candidates at 100 % (else at 0 %)

    def fall(self, maps: Tensor, context: Context, high: bool) -> list[Measurement]:
        path = self.path(maps, context, "morf")
        before = removal.read(context.model_batch().outputs()[:, None], self.output, context)
        falls = []
        for count in by_percent(path.units, self.percents):
            candidates = count if high else path.units - count
            share = min(self.alpha, self.beta * path.units / max(candidates, 1))
            if candidates == 0:
                falls.append(torch.zeros_like(before[:, 0]))
            else:
                falls.append((before - self._left(context, path, count, high, share)).mean(1))
        columns = zip(falls, self.percents, strict=True)
        mean = Measurement.of(torch.stack(falls).mean(0), True, percent="mean")
        return [mean, *(Measurement.of(fall, percent=percent) for fall, percent in columns)]

    def _left(
        self, context: Context, path: removal.Path, count: int, high: bool, share: float
    ) -> Tensor:
        """float64 [B, draws]: the output without the candidates that were drawn."""
        batch, rank = path.batch, path.ranks.rank
        drawn = self._noise(batch, rank.shape[1]) < share

        def inputs(step: Tensor, sample: Tensor) -> Tensor:
            removed = ((rank[sample] < count) == high) & drawn[step]
            return path.imputation.remove(batch, sample, removed.view(-1, *path.shape))

        return removal.read(removal.walk(batch, self.draws, inputs), self.output, context)

    def _noise(self, batch: Batch, positions: int) -> Tensor:
        """float32 [draws, P], the same for all samples."""

        def draw() -> Tensor:
            numbers = removal.shared_draws(batch, "score/fidelity").uniform(self.draws, positions)
            return numbers[0].float().to(batch.x.device)

        return batch.once(("fidelity", self.draws, positions), draw, per_target=False)

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        units = self.units(shape)
        empty = units if self.empty_at_all else 0
        counts = by_percent(units, self.percents)
        return (1 + self.draws * sum(count != empty for count in counts), 0)


@metric(
    "f_fidelity",
    family=FAMILY,
    direction="higher",
    range=(-1, 1),
    needs={"model"},
    source="Zheng et al. 2025",
)
@dataclass(frozen=True)
class FFidelity(_Fidelity):
    """How far the accuracy falls when a few of the relevant positions are removed at random.

    FFid+: mean over the percentages of 1[f(x) = y] − mean over draws of 1[f(x without them) = y].
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return self.fall(maps, context, high=True)


@metric(
    "f_fidelity_minus",
    family=FAMILY,
    direction="lower",
    range=(-1, 1),
    needs={"model"},
    source="Zheng et al. 2025",
)
@dataclass(frozen=True)
class FFidelityMinus(_Fidelity):
    """How far the accuracy falls when a few of the irrelevant positions are removed at random.

    FFid−: as `f_fidelity`, with the candidates outside the evidence.
    """

    empty_at_all: ClassVar[bool] = True

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return self.fall(maps, context, high=False)


# --- sufficiency ---


@metric(
    "sufficiency",
    family=FAMILY,
    direction="higher",
    range=(0, 1),
    needs={"prediction"},
    source="Dasgupta et al. 2022",
)
@dataclass(frozen=True)
class Sufficiency(Score):
    """How often samples with a like map are classified alike.

    Of the samples whose map is within `distance`, the share with the same prediction. Maps are
    flattened and scaled to length 1 (zero maps are like each other only), distances Euclidean: 0.6
    is a cosine of 0.82. Undefined (NaN) for a map that no other is like. It compares the samples
    with each other, so it changes with the sample it is measured on.
    """

    distance: Positive = 0.6
    view: View = "raw"
    channels: Channels = "none"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        if context.prediction is None:
            raise ValueError("score 'sufficiency' compares predictions, and none are known here")
        weights = F.relevance(maps, self.view, self.channels).cpu()
        length = weights.norm(dim=1, keepdim=True)
        unit = torch.where(length > 0, weights / length, 0.0)
        prediction = context.prediction.cpu()
        values = []
        for start in range(0, len(unit), ROWS):
            rows = slice(start, start + ROWS)
            apart = torch.cdist(unit[rows], unit)
            like = apart <= self.distance
            like[torch.arange(len(like)), torch.arange(start, start + len(like))] = False
            same = like & (prediction[rows, None] == prediction)
            values.append(same.sum(1) / like.sum(1))  # 0 / 0 is NaN, as documented
        return [Measurement.of(torch.cat(values), headline=True)]
