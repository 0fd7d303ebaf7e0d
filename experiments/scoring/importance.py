"""Where the importance goes: mean maps by gate, and how often what matters lies below what cannot.

They describe maps. A perfect map need not give every input of a gate the same, or any at all: an
AND that one false input decides says nothing of the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric
from experiments.scoring.truth import PAPER, Ties, formula_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.scoring import logic
else:
    torch = lazy.load("torch")
    logic = lazy.load("experiments.scoring.logic")


def _classes(y: Tensor) -> list[tuple[str, Tensor]]:
    """Samples bool [N] by class: "all", and each that occurs."""
    return [("all", y >= 0), *((str(c), y == c) for c in y.unique().tolist())]


def scaled(maps: Tensor) -> Tensor:
    """float64 [N, D]: each map shifted and stretched to [0, 1]; a constant one is 0."""
    maps = maps.double()
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp(min=1e-300), 0.0)


@metric(
    "mean_importance",
    family="truth",
    direction="higher",
    range=(-math.inf, math.inf),
    needs={"baseline", "formula"},
    source=PAPER,
)
@dataclass(frozen=True)
class MeanImportance(Score):
    """How important a map finds each gate, and the irrelevant inputs, on average.

    per: a bucket for each "gate" ("and0"), for each "kind" of gate ("and"), or for each "input"
    ("input 0"); always one for the "irrelevant" inputs. Buckets of several inputs are means over
    them. By class, and over all samples. of: the "raw" map, whose scale is the method's own, or
    the map "scaled" to [0, 1].

    Bucket "contrast", the headline, is how much more than the irrelevant inputs those of the
    formula get, in maps scaled to [0, 1] whatever `of` says: in [-1, 1], 0 for constant maps.
    """

    per: Literal["gate", "kind", "input"] = "gate"
    of: Literal["raw", "scaled"] = "raw"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        assert context.truth is not None
        irrelevant = context.truth.irrelevant
        even = scaled(maps)
        shown = even if self.of == "scaled" else maps.double()
        values = {"contrast": even[:, ~irrelevant].mean(1) - even[:, irrelevant].mean(1)}
        for name, inputs in self.buckets(context).items():
            values[name] = shown[:, inputs].mean(1)
        values["irrelevant"] = shown[:, irrelevant].mean(1)
        return [
            Measurement.of(
                samples[rows], name == "contrast" and class_ == "all", class_=class_, bucket=name
            )
            for class_, rows in _classes(context.y)
            for name, samples in values.items()
        ]

    def buckets(self, context: Context) -> dict[str, list[int]]:
        if self.per == "input":
            return {f"input {i}": [i] for i in range(context.x.flatten(1).shape[1])}
        gates = logic.input_gates(formula_of(context)[1])
        if self.per == "gate":
            return gates
        kinds: dict[str, list[int]] = {}
        for name, inputs in gates.items():
            kinds.setdefault(name.rstrip("0123456789"), []).extend(inputs)
        return kinds


@metric(
    "wrong_importance",
    family="truth",
    direction="lower",
    range=(0, math.inf),
    needs={"baseline"},
    source=PAPER,
)
@dataclass(frozen=True)
class WrongImportance(Score):
    """How often an input of the formula scores below an irrelevant one.

    Bucket "input k" of an input of the formula: the share of samples in which it lies below the
    highest irrelevant score; of an irrelevant one: the mean number of the formula's inputs below
    it. "relevant", the headline, is the mean over the formula's inputs, in [0, 1]. All of them
    count in every sample, also where they do not matter: see `gib` and `nib`.

    of: "samples" as said, or "mean_map": the same of the mean map of all samples, or of those of
    a class, in which what differs from sample to sample cancels (wrongImportanceMean of the
    paper; no values per sample). ties: see `nib`.
    """

    of: Literal["samples", "mean_map"] = "samples"
    ties: Ties = "strict"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        assert context.truth is not None
        irrelevant = context.truth.irrelevant
        found = []
        for class_, rows in _classes(context.y):
            given = maps[rows].double()
            if self.of == "mean_map":
                given = given.mean(0, keepdim=True)
            wrong = self.wrong(given, irrelevant)
            buckets = {"relevant": wrong[:, ~irrelevant].mean(1)}
            buckets |= {f"input {i}": column for i, column in enumerate(wrong.unbind(1))}
            for name, samples in buckets.items():
                one = Measurement.of(samples, class_=class_, bucket=name)
                one.headline = name == "relevant" and class_ == "all"
                if self.of == "mean_map":
                    one.samples, one.n = None, int(rows.sum())
                found.append(one)
        return found

    def wrong(self, maps: Tensor, irrelevant: Tensor) -> Tensor:
        """float64 [N, D]: below the irrelevant peak; or how many inputs are below it."""
        peak = logic.irrelevant_peak(maps, irrelevant).unsqueeze(1)
        outranked = logic.below(maps, peak, self.ties)
        for i in irrelevant.nonzero().flatten().tolist():
            outranked[:, i] = logic.below(maps[:, ~irrelevant], maps[:, i : i + 1], self.ties).sum(
                1
            )
        return outranked


@metric(
    "forest_importance",
    family="truth",
    direction="higher",
    range=(-1, 1),
    needs={"baseline", "formula", "retraining"},
    source=PAPER,
)
@dataclass(frozen=True)
class ForestImportance(MeanImportance):
    """How important each gate is to a random forest trained on all inputs: no matter of the maps.

    Mean decrease of impurity, over the inputs of a bucket, as in `mean_importance`; the same for
    every method. Bucket "contrast", the headline, is the mean over the formula's inputs minus
    that over the irrelevant ones. Raises ValueError if the study trained no forest.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        assert context.truth is not None
        found = context.meta.get("forest_importance")
        if found is None:
            raise ValueError("score 'forest_importance': no forest was trained; set forest: true")
        found, irrelevant = torch.as_tensor(found).double(), context.truth.irrelevant
        values = {
            "contrast": float(found[~irrelevant].mean() - found[irrelevant].mean()),
            **{name: float(found[inputs].mean()) for name, inputs in self.buckets(context).items()},
            "irrelevant": float(found[irrelevant].mean()),
        }
        return [
            Measurement({"bucket": name}, value, n=1, headline=name == "contrast")
            for name, value in values.items()
        ]
