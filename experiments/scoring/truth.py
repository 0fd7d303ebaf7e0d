"""Scores against known truth: which inputs carry the information that decides the class.

The ANDOR scores follow Schwenke & Atzmueller, *Saliency Methods are Encoders* (arXiv 2412.16204),
with ties, degenerate maps and input order made explicit. In the originals a constant map scores
perfectly; choose ties="pessimistic" or "half" to see what a method owes to that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.data import Truth
    from experiments.data.andor import Gate
    from experiments.scoring import logic, paper_logic
else:
    logic = lazy.load("experiments.scoring.logic")
    paper_logic = lazy.load("experiments.scoring.paper_logic")

Ties = Literal["strict", "half", "pessimistic"]
Threshold = float | Literal["baseline"]

PAPER = "Schwenke & Atzmueller 2024"
PAPER_THRESHOLDS: tuple[Threshold, ...] = ("baseline", 1.0, 0.8, 0.5)


def _truth(context: Context) -> Truth:
    assert context.truth is not None  # `@score` has checked
    return context.truth


def formula_of(context: Context) -> tuple[Tensor, Gate]:
    """Which inputs are true, bool [N, D], and the formula over them."""
    from experiments.data.andor import Gate

    if "formula" not in context.meta:
        raise ValueError("this needs a dataset made by a formula, such as andor")
    values = [context.meta["symbols"][i] for i in context.meta["true_indexes"]]
    x = context.x.unsqueeze(-1)
    return (x - x.new_tensor(values)).abs().amin(-1) < 1e-4, Gate.from_json(context.meta["formula"])


def label(threshold: Threshold) -> str:
    return threshold if isinstance(threshold, str) else str(float(threshold))


def per_class(samples: Tensor, y: Tensor) -> list[Measurement]:
    """The mean over all samples, the headline, and over those of each class that occurs."""
    return [
        Measurement.of(samples, headline=True, class_="all"),
        *(Measurement.of(samples[y == c], class_=str(c)) for c in y.unique().tolist()),
    ]


@metric("nib", family="truth", direction="lower", range=(0, 1), needs={"baseline"}, source=PAPER)
@dataclass(frozen=True)
class NIB(Score):
    """Needed information below baseline: an irrelevant input outranks every sufficient set.

    Per sample 1 if max over minimal sufficient sets M of min over k in M of s_k is below the
    highest irrelevant score. ties, when the two are equal: "strict" counts 0 (the paper's "<"; a
    constant map is then perfect), "half" 0.5, "pessimistic" 1.

    preset "fixed" does not depend on the order of inputs or the scale of a map. "paper" does as
    the original code: scores below -1 count as -1 (an AND under a XOR in class 0: below 0 as 0),
    and there the second best true input of an XOR is lost where a better one follows.
    """

    ties: Ties = "strict"
    preset: Literal["fixed", "paper"] = "fixed"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        truth, maps = _truth(context), maps.double()
        if self.preset == "fixed":
            needed = logic.strongest_set(maps, truth)
        else:
            needed = paper_logic.strongest_set(maps, *formula_of(context), context.y)
        peak = logic.irrelevant_peak(maps, truth.irrelevant)
        return per_class(logic.below(needed, peak, self.ties), context.y)


@metric("gib", family="truth", direction="lower", range=(0, 1), needs={"baseline"}, source=PAPER)
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
            bits, formula = formula_of(context)
            counted = paper_logic.speaks_for_class(maps, bits, context.y, formula).double()
            if self.definition == "relevant":
                counted = counted * ~truth.irrelevant
        peak = logic.irrelevant_peak(maps, truth.irrelevant).unsqueeze(1)
        wrong = counted * logic.below(maps, peak, self.ties)

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
class Masking(Score):
    """Parameters of scores that mask what a map scores low, at several thresholds.

    thresholds, rule, ties: see `logic.kept`. headline: the threshold for rankings.
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
        return [(t, logic.kept(maps, t, irrelevant, self.rule, self.ties)) for t in self.thresholds]


@metric(
    "logical_accuracy",
    family="truth",
    direction="higher",
    range=(0, 1),
    needs={"baseline"},
    source=PAPER,
)
@dataclass(frozen=True)
class LogicalAccuracy(Masking):
    """How often the inputs that stay visible decide the class by logic alone.

    LogicalAcc of the paper: 1 where they contain a minimal sufficient set. At the threshold
    "baseline" it is 1 − NIB for maps without ties.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [
            Measurement.of(
                logic.decides(visible, _truth(context)),
                headline=t == self.headline,
                threshold=label(t),
            )
            for t, visible in self.kept(maps, context)
        ]


@metric(
    "logical_accuracy_statistics",
    family="truth",
    direction="higher",
    range=(0, 1),
    needs={"baseline", "formula"},
    source=PAPER,
)
@dataclass(frozen=True)
class LogicalAccuracyStatistics(Masking):
    """How often the class is right that the visible inputs make likely, by the paper's rules.

    LogicalAccStatistics of the paper; no class at all is wrong. See `logic.guess`.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        bits, formula = formula_of(context)
        return [
            Measurement.of(
                (logic.guess(visible, bits, formula) == context.y).double(),
                headline=t == self.headline,
                threshold=label(t),
            )
            for t, visible in self.kept(maps, context)
        ]


@metric(
    "masked_share",
    family="truth",
    direction="lower",
    range=(0, 1),
    needs={"baseline"},
    source=PAPER,
)
@dataclass(frozen=True)
class MaskedShare(Masking):
    """The share of inputs that a threshold masks ("lasa red" of the paper).

    Neither end is good as such: read the other masking scores next to it.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [
            Measurement.of(
                (~visible).double().mean(1), headline=t == self.headline, threshold=label(t)
            )
            for t, visible in self.kept(maps, context)
        ]
