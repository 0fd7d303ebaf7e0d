"""Double class assignment: masked patterns that stand for both classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.retraining import retrained
from experiments.scoring.truth import PAPER, Masking, Threshold, formula_of, label

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from experiments.scoring import logic
else:
    np = lazy.load("numpy")
    torch = lazy.load("torch")
    logic = lazy.load("experiments.scoring.logic")


@dataclass(frozen=True)
class Assigned(Masking):
    """Parameters of double class assignment.

    labels: what stands for a sample's class. "true" is its class. "retrained" is the class that a
    network gives which was trained on the masked inputs, of samples where it agrees with the
    explained model, as in the paper. Such a network goes by what it sees, so that ambiguous
    patterns are gone before they are counted: at "baseline" `full_dca` is then 0 for every map.
    """

    labels: Literal["true", "retrained"] = "true"

    def assigned(self, context: Context, threshold: Threshold) -> tuple[Tensor, Tensor]:
        """int64 [N], the classes, and bool [N], which samples count."""
        if self.labels == "true":
            return context.y, torch.ones_like(context.y, dtype=torch.bool)
        if context.prediction is None:
            raise ValueError('labels "retrained" needs the classes that the model predicts')
        classes = retrained(context, "network", threshold)
        return classes, classes == context.prediction


@metric(
    "full_dca",
    family="truth",
    direction="lower",
    range=(0, 1),
    needs={"baseline"},
    source=PAPER,
)
@dataclass(frozen=True)
class FullDCA(Assigned):
    """Double class assignment: how many masked patterns stand for both classes.

    |P₀ ∩ P₁| / min(|P₀|, |P₁|), where P_c are the distinct patterns of the relevant inputs of
    class c with at least one masked; NaN if one is empty (-1 in the original). For two classes.

    Values per sample are those of the smaller set's class: their share, scaled to this mean.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        truth = context.truth
        assert truth is not None
        values, symbols = context.x.flatten(1).unique(return_inverse=True)
        relevant = ~truth.irrelevant
        found = []
        for t, visible in self.kept(maps, context):
            codes = ((symbols + 1) * visible)[:, relevant]
            groups = logic.group(codes, len(values) + 1)
            classes, agreed = self.assigned(context, t)
            counted = agreed & ~visible[:, relevant].all(1)
            shares = _ambiguous(groups[:, None], counted[:, None], classes[:, None])
            found.append(Measurement.of(shares, t == self.headline, threshold=label(t)))
        return found


@metric(
    "minimal_dca",
    family="truth",
    direction="lower",
    range=(0, 1),
    needs={"baseline", "formula"},
    source=PAPER,
)
@dataclass(frozen=True)
class MinimalDCA(Assigned):
    """Double class assignment of single gates: how many masked gate patterns stand for both sides.

    Per gate, distinct masked patterns of its inputs are collected for the class that they speak
    for: under AND in class 1 and OR in class 0 those of every gate; under AND in class 0 and OR in
    class 1 that of the only gate that decides; under XOR in class 1 those of every gate, by the
    gate's own value. definition: for XOR in class 0 the original's test never holds ("paper");
    as "intended", patterns speak for the gate's value where all gates are 0, or where exactly
    two are 1 those two. |Q₀ ∩ Q₁| / min(|Q₀|, |Q₁|) of each gate by its bucket, and of "all" gates
    together, the headline; NaN if one is empty. Values per sample as in `full_dca`.
    """

    definition: Literal["paper", "intended"] = "paper"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        bits, formula = formula_of(context)
        gates = logic.flat_gates(formula, "minimal_dca")
        said = [torch.from_numpy(np.asarray(gate(bits.cpu().numpy()))) for gate, _ in gates]
        truths = torch.stack(said, 1).to(bits.device).long()
        values, symbols = context.x.flatten(1).unique(return_inverse=True)
        names = list(logic.input_gates(formula))
        found = []
        for t, visible in self.kept(maps, context):
            codes = (symbols + 1) * visible
            groups = torch.stack(
                [logic.group(codes[:, inputs], len(values) + 1) for _, inputs in gates], 1
            )
            apart = groups + torch.arange(len(gates), device=groups.device) * len(groups)
            classes, agreed = self.assigned(context, t)
            side = _speaks_for(formula.kind, truths, classes, self.definition)
            counted = (side >= 0) & agreed.unsqueeze(1)
            at = label(t)
            whole = _ambiguous(apart, counted, side)
            found.append(Measurement.of(whole, t == self.headline, threshold=at, bucket="all"))
            for number, name in enumerate(names):
                one = slice(number, number + 1)
                shares = _ambiguous(groups[:, one], counted[:, one], side[:, one])
                found.append(Measurement.of(shares, threshold=at, bucket=name))
        return found


def _ambiguous(groups: Tensor, counted: Tensor, side: Tensor) -> Tensor:
    """float64 [N], NaN where a sample does not count; the mean is |Q₀ ∩ Q₁| / min(|Q₀|, |Q₁|).

    groups int64 [N, G], numbers of patterns; Q_c are those that are counted and whose side
    [N, G] is c.
    """
    size = int(groups.max()) + 1
    uses = [torch.bincount(groups[counted & (side == c)], minlength=size).double() for c in (0, 1)]
    here = [use > 0 for use in uses]
    smaller = int(here[1].sum() < here[0].sum())
    distinct = here[smaller].sum()
    mine = counted & (side == smaller)
    # A pattern's 1/|Q| is shared by those that have it.
    weight = (here[0] & here[1]).double() / (uses[smaller].clamp(min=1) * distinct)
    total = (weight[groups] * mine).sum(1) * mine.any(1).sum()
    return torch.where(mine.any(1), total, torch.nan)


def _speaks_for(kind: str, truths: Tensor, y: Tensor, definition: str) -> Tensor:
    """int64 [N, G]: the class that each gate's pattern speaks for, -1 for none."""
    nothing = torch.full_like(truths, -1)
    one = (y == 1).unsqueeze(1)
    if kind in ("and", "or"):
        strong = 1 if kind == "and" else 0  # all gates are needed for this class
        only = (truths != strong) & ((truths != strong).sum(1, keepdim=True) == 1)
        label = y.unsqueeze(1).expand_as(truths)
        return torch.where((label == strong) | only, label, nothing)
    count = truths.sum(1, keepdim=True)
    found = torch.where(one, truths, nothing)
    if definition == "paper":
        return found
    speaks = (count == 0) | ((count == 2) & (truths == 1))
    return torch.where(~one & speaks, truths, found)
