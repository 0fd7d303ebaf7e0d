"""Scores against known truth: which inputs carry the information that decides the class.

The ANDOR scores follow Schwenke & Atzmueller, *Saliency Methods are Encoders* (arXiv 2412.16204),
with ties, degenerate maps and input order made explicit. In the originals a constant map scores
perfectly; choose ties="pessimistic" or "half" to see what a method owes to that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, score

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.data import Truth
    from experiments.data.andor import Gate
    from experiments.scoring import functional as F
else:
    F = lazy.load("experiments.scoring.functional")

Ties = Literal["strict", "half", "pessimistic"]
View = Literal["raw", "abs", "positive"]
Region = Literal["relevant", "necessary", "used"]
Threshold = float | Literal["baseline"]

PAPER_THRESHOLDS: tuple[Threshold, ...] = ("baseline", 1.0, 0.8, 0.5)


def _truth(context: Context) -> Truth:
    assert context.truth is not None  # `@score` has checked
    return context.truth


def _formula(context: Context) -> tuple[Tensor, Gate]:
    """Which inputs are true, bool [N, D], and the formula over them."""
    from experiments.data.andor import Gate

    values = [context.meta["symbols"][i] for i in context.meta["true_indexes"]]
    x = context.x.unsqueeze(-1)
    return (x - x.new_tensor(values)).abs().amin(-1) < 1e-4, Gate.from_json(context.meta["formula"])


def _label(threshold: Threshold) -> str:
    return threshold if isinstance(threshold, str) else str(float(threshold))


def _per_class(samples: Tensor, y: Tensor) -> list[Measurement]:
    """The mean over all samples, the headline, and over those of each class that occurs."""
    return [
        Measurement.of(samples, headline=True, class_="all"),
        *(Measurement.of(samples[y == c], class_=str(c)) for c in y.unique().tolist()),
    ]


@score("nib", family="truth", direction="lower", range=(0, 1), needs={"baseline"})
@dataclass(frozen=True)
class NIB(Score):
    """Needed information below baseline: an irrelevant input outranks every sufficient set.

    Per sample 1 if max over minimal sufficient sets M of min over k in M of s_k is below the
    highest irrelevant score. ties, when the two are equal: "strict" counts 0 (the paper's "<"; a
    constant map is then perfect), "half" 0.5, "pessimistic" 1. Independent of the order of inputs
    and of the scale of a map, which the original is not for XOR on top.
    """

    ties: Ties = "strict"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        samples = F.needed_below_baseline(maps, _truth(context), self.ties)
        return _per_class(samples, context.y)


@score("gib", family="truth", direction="lower", range=(0, 1), needs={"baseline"})
@dataclass(frozen=True)
class GIB(Score):
    """General information below baseline: how often an informative input is outranked.

    For each input, the share of the samples it counts for in which it lies below the highest
    irrelevant score; the value is the mean over inputs that count at all. An input counts for a
    sample, by definition "union", if it is in one of the sample's minimal sufficient sets; by
    "paper" as in the original code, XOR slip included; by "relevant" as in "paper" but without
    the irrelevant input that the slip lets in. Ties as in `nib`.

    Values per sample are its share of that mean (times n, so that their mean is the value).
    """

    definition: Literal["union", "relevant", "paper"] = "union"
    ties: Ties = "strict"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        truth = _truth(context)
        maps = maps.double()
        if self.definition == "union":
            counted = truth.relevant.double()
        else:
            bits, formula = _formula(context)
            counted = F.speaks_for_class(maps, bits, context.y, formula).double()
            if self.definition == "relevant":
                counted = counted * ~truth.irrelevant
        peak = F.irrelevant_peak(maps, truth.irrelevant).unsqueeze(1)
        wrong = counted * F.below(maps, peak, self.ties)

        def over(rows: Tensor, label: str) -> Measurement:
            count = counted[rows].sum(0)
            inputs = count > 0
            outranked = wrong[rows][:, inputs]
            samples = len(outranked) * (outranked / count[inputs]).mean(1)
            found = Measurement.of(samples, label == "all", class_=label)
            return replace(found, value=(outranked.sum(0) / count[inputs]).mean().item())

        y = context.y
        return [over(y >= 0, "all"), *(over(y == c, str(c)) for c in y.unique().tolist())]


@dataclass(frozen=True)
class _Masking(Score):
    """Parameters of scores that mask what a map scores low, at several thresholds.

    thresholds, rule, ties: see `functional.kept`. headline: the threshold for rankings.
    """

    thresholds: tuple[Threshold, ...] = PAPER_THRESHOLDS
    headline: Threshold = 1.0
    rule: Literal["mean", "top"] = "mean"
    ties: Literal["mask", "keep"] = "mask"

    def __post_init__(self) -> None:
        if self.headline not in self.thresholds:
            raise ValueError(f"headline {self.headline} is not one of the thresholds")

    def kept(self, maps: Tensor, context: Context) -> list[tuple[Threshold, Tensor]]:
        irrelevant = _truth(context).irrelevant
        return [(t, F.kept(maps, t, irrelevant, self.rule, self.ties)) for t in self.thresholds]


@score("logical_accuracy", family="truth", direction="higher", range=(0, 1), needs={"baseline"})
@dataclass(frozen=True)
class LogicalAccuracy(_Masking):
    """How often the inputs that stay visible decide the class by logic alone.

    LogicalAcc of the paper: 1 where they contain a minimal sufficient set. At the threshold
    "baseline" it is 1 − NIB for maps without ties.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [
            Measurement.of(
                F.decides(visible, _truth(context)),
                headline=t == self.headline,
                threshold=_label(t),
            )
            for t, visible in self.kept(maps, context)
        ]


@score(
    "logical_accuracy_statistics",
    family="truth",
    direction="higher",
    range=(0, 1),
    needs={"baseline", "formula"},
)
@dataclass(frozen=True)
class LogicalAccuracyStatistics(_Masking):
    """How often the class is right that the visible inputs make likely, by the paper's rules.

    LogicalAccStatistics of the paper; no class at all is wrong. See `functional.guess`.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        bits, formula = _formula(context)
        return [
            Measurement.of(
                (F.guess(visible, bits, formula) == context.y).double(),
                headline=t == self.headline,
                threshold=_label(t),
            )
            for t, visible in self.kept(maps, context)
        ]


@score("bayes_accuracy", family="truth", direction="lower", range=(0, 1), needs={"baseline"})
@dataclass(frozen=True)
class BayesAccuracy(_Masking):
    """How well the class can be read from masked samples, at best: an exact information test.

    Samples that look the same after masking form a group; the best guess is the majority of its
    group. Bucket "row" sees the masked sample, bucket "mask" only which inputs are masked: what
    the mask itself says of the class. `of` is the bucket for rankings; lower means that less of
    the class leaks into the mask. It is an upper bound for any model retrained on these samples.

    Almost every sample has a mask of its own, so the estimate is high for random maps too:
    compare with a random control, never with the logical accuracy. It needs discrete inputs.
    """

    of: Literal["row", "mask"] = "mask"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        values, symbols = context.x.flatten(1).unique(return_inverse=True)
        measurements = []
        for t, visible in self.kept(maps, context):
            seen = {"mask": (visible, 2), "row": ((symbols + 1) * visible, len(values) + 1)}
            for bucket, (codes, sizes) in seen.items():
                samples = F.majority_correct(F.group(codes, sizes), context.y)
                headline = t == self.headline and bucket == self.of
                facets = {"threshold": _label(t), "bucket": bucket}
                measurements.append(Measurement.of(samples, headline=headline, **facets))
        return measurements


@score("masked_share", family="truth", direction="lower", range=(0, 1), needs={"baseline"})
@dataclass(frozen=True)
class MaskedShare(_Masking):
    """The share of inputs that a threshold masks ("lasa red" of the paper).

    Neither end is good as such: read the other masking scores next to it.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [
            Measurement.of(
                (~visible).double().mean(1), headline=t == self.headline, threshold=_label(t)
            )
            for t, visible in self.kept(maps, context)
        ]


@dataclass(frozen=True)
class _Localisation(Score):
    """region: what a map should point to; the inputs in some ("relevant") or all ("necessary")
    minimal sufficient sets of the sample, or all inputs of the formula ("used"). A sample without
    such inputs is undefined (NaN) and not counted."""

    region: Region = "relevant"

    def mask(self, context: Context) -> Tensor:
        truth = _truth(context)
        if self.region == "relevant":
            return truth.relevant
        if self.region == "necessary":
            return truth.necessary
        return (~truth.irrelevant).expand(len(truth.pattern), -1)


@score("relevance_mass", family="truth", direction="higher", range=(0, 1), needs={"truth"})
@dataclass(frozen=True)
class RelevanceMass(_Localisation):
    """The share of a map's weight that lies in the region (Arras, Osman & Samek 2022).

    view: weight is the positive part of a score ("positive") or its absolute value ("abs"). A map
    without weight counts as uniform: it gets the share of inputs that the region holds.
    """

    view: Literal["positive", "abs"] = "positive"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return _per_class(F.mass(F.view(maps, self.view), self.mask(context)), context.y)


@score("relevance_rank", family="truth", direction="higher", range=(0, 1), needs={"truth"})
@dataclass(frozen=True)
class RelevanceRank(_Localisation):
    """The share of the k highest inputs that lie in the region of k (Arras et al. 2022).

    Ties get their expected value, so a constant map is at chance wherever the region is.
    """

    view: View = "raw"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return _per_class(F.top_precision(F.view(maps, self.view), self.mask(context)), context.y)


@score("relevance_auc", family="truth", direction="higher", range=(0, 1), needs={"truth"})
@dataclass(frozen=True)
class RelevanceAUC(_Localisation):
    """The chance that an input of the region scores above one outside it (ROC AUC).

    Tied ranks are averaged, so a constant map gets 0.5. Undefined (NaN) where the region is every
    input.
    """

    view: View = "raw"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return _per_class(F.ranking_auc(F.view(maps, self.view), self.mask(context)), context.y)


@score("pointing_game", family="truth", direction="higher", range=(0, 1), needs={"truth"})
@dataclass(frozen=True)
class PointingGame(_Localisation):
    """Whether the highest input lies in the region (Zhang et al. 2018); of tied ones, the share."""

    view: View = "raw"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return _per_class(F.top_one(F.view(maps, self.view), self.mask(context)), context.y)
