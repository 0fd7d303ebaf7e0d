"""What a model learns that is trained anew on masked inputs, and what it should not have known.

The models are trained by the study, one per map and threshold; these scores hold the classes that
they give (`Context.retrained`) against the true ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric
from experiments.scoring.truth import (
    PAPER,
    PAPER_THRESHOLDS,
    Masking,
    Threshold,
    formula_of,
    label,
)

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.scoring import logic
else:
    logic = lazy.load("experiments.scoring.logic")

Model = Literal["network", "forest"]


def retrained(context: Context, model: Model, threshold: Threshold) -> Tensor:
    """int64 [N]: the classes that the model gives which was trained on inputs masked there.

    Raises ValueError if there is none.
    """
    for (kind, at), classes in context.retrained.items():
        if kind == model and label_of(at) == label(threshold):
            return classes.to(context.y.device)
    known = sorted({f"{kind} at {label_of(at)}" for kind, at in context.retrained})
    raise ValueError(
        f"no {model} was retrained on inputs masked at {label(threshold)}; there are: "
        f"{', '.join(known) or 'none'}; retrain with this threshold, or set the score's thresholds"
    )


def label_of(threshold: str | float) -> str:
    return label(threshold)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Retrained(Score):
    """Parameters of scores of retrained models: `thresholds`, and that for rankings, `headline`."""

    thresholds: tuple[Threshold, ...] = PAPER_THRESHOLDS
    headline: Threshold = 1.0

    def __post_init__(self) -> None:
        if self.headline not in self.thresholds:
            raise ValueError(f"headline {self.headline} is not one of the thresholds")

    def accuracy(self, context: Context, model: Model) -> list[Measurement]:
        return [
            Measurement.of(
                (retrained(context, model, t) == context.y).double(),
                headline=t == self.headline,
                threshold=label(t),
            )
            for t in self.thresholds
        ]


@metric(
    "retrained_accuracy",
    family="truth",
    direction="lower",
    range=(0, 1),
    needs={"retraining"},
    source=PAPER,
)
@dataclass(frozen=True)
class RetrainedAccuracy(Retrained):
    """The accuracy of a network trained anew on masked inputs ("lasa acc" of the paper).

    Two things raise it, what the inputs left visible say, and what the mask itself says: read
    `leakage` and `bayes_accuracy`, and a random map's, next to it. Lower is better as far as a
    map should not spell the class in its mask; a map that keeps what is needed scores high, too.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return self.accuracy(context, "network")


@metric(
    "forest_accuracy",
    family="truth",
    direction="lower",
    range=(0, 1),
    needs={"retraining"},
    source=PAPER,
)
@dataclass(frozen=True)
class ForestAccuracy(Retrained):
    """The accuracy of a random forest trained on masked inputs ("treeScores" of the paper).

    To be read as `retrained_accuracy`. Threshold "all" is a forest that sees every input.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        found = self.accuracy(context, "forest")
        if ("forest", "all") in context.retrained:
            right = (context.retrained["forest", "all"].to(context.y.device) == context.y).double()
            found.append(Measurement.of(right, threshold="all"))
        return found


@metric(
    "leakage",
    family="truth",
    direction="lower",
    range=(-1, 1),
    needs={"retraining", "baseline"},
    source=PAPER,
)
@dataclass(frozen=True)
class Leakage(Masking):
    """How much more a retrained model knows than the visible inputs say.

    Its accuracy minus that of an expectation, `against`: "logical" (`logical_accuracy`; the
    paper's LogicalAccDiff), "statistics" (`logical_accuracy_statistics`), or "bayes"
    (`bayes_accuracy` of the masked row as a plug-in: on samples that it was trained on, a model
    can at best reach 0). Random masks leak by this measure, too, as a row can be known by its
    mask: compare with a random map. rule and ties must be those that made the masks.

    Values per sample are differences, in [-1, 1].
    """

    against: Literal["logical", "statistics", "bayes"] = "logical"
    model: Model = "network"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [
            Measurement.of(
                (retrained(context, self.model, t) == context.y).double()
                - self.expected(visible, context),
                headline=t == self.headline,
                threshold=label(t),
            )
            for t, visible in self.kept(maps, context)
        ]

    def expected(self, visible: Tensor, context: Context) -> Tensor:
        """float64 [N]: how right one should be of each sample given its visible inputs."""
        if self.against == "statistics":
            bits, formula = formula_of(context)
            return (logic.guess(visible, bits, formula) == context.y).double()
        if self.against == "logical":
            assert context.truth is not None
            return logic.decides(visible, context.truth)
        values, symbols = context.x.flatten(1).unique(return_inverse=True)
        groups = logic.group((symbols + 1) * visible, len(values) + 1)
        return logic.majority_correct(groups, context.y)
