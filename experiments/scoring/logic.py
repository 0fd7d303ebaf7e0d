"""The arithmetic of formulas and masks: what visible inputs decide, and what a mask gives away.

Maps are [N, D] and finite. A comparison of two scores can be a tie; how a tie counts is a
parameter everywhere, because saliency methods do return equal scores (ReLU, constant maps).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from experiments.data import Truth
    from experiments.data.andor import Gate

Ties = Literal["strict", "half", "pessimistic"]
Threshold = float | Literal["baseline"]
MaskRule = Literal["mean", "top"]
MaskTies = Literal["mask", "keep"]

# Scores scaled to [0, 1] that differ from a border by less than this lie on it: without it, the
# rounding of t·mean, which changes with the scale of a map, would decide.
AT_BORDER = 1e-9

TIE_WEIGHT: dict[Ties, float] = {"strict": 0.0, "half": 0.5, "pessimistic": 1.0}


def below(a: Tensor, b: Tensor, ties: Ties) -> Tensor:
    """1 where a < b, 0 where a > b, and for a == b what `ties` says: 0, 0.5 or 1. float64."""
    return (a < b).double() + TIE_WEIGHT[ties] * (a == b).double()


# --- what an irrelevant input outranks ---


def irrelevant_peak(maps: Tensor, irrelevant: Tensor) -> Tensor:
    """[N]: the highest score that an irrelevant input got ("baseline" in the paper)."""
    return maps[:, irrelevant].amax(1)


def strongest_set(maps: Tensor, truth: Truth) -> Tensor:
    """[N]: the score to which a map must be cut so that what remains decides the class:
    the maximum over minimal sufficient sets of the minimum within the set."""
    sample, sets = truth.sets
    weakest = maps[sample].masked_fill(~sets, torch.inf).amin(1)
    lowest = maps.new_full((len(maps),), -torch.inf)
    return lowest.scatter_reduce(0, sample, weakest, "amax")


# --- masks ---


def kept(
    maps: Tensor,
    threshold: Threshold,
    irrelevant: Tensor,
    rule: MaskRule = "mean",
    ties: MaskTies = "mask",
) -> Tensor:
    """bool [N, D]: the inputs that stay visible.

    "baseline" keeps what scores above every irrelevant input. A number t keeps, by rule "mean",
    what lies above t times the mean of the map scaled to [0, 1] (the paper's), and by rule "top"
    the round(t·D) highest. `ties` says what happens to inputs exactly at the border; by rule
    "mean" with ties masked, a constant map keeps nothing.
    """
    maps = maps.double()
    if threshold == "baseline":
        border = irrelevant_peak(maps, irrelevant).unsqueeze(1)
    elif rule == "mean":
        low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
        spread = high - low
        maps = torch.where(spread > 0, (maps - low) / torch.where(spread > 0, spread, 1.0), 0.0)
        border = threshold * maps.mean(1, keepdim=True)
        maps = torch.where((maps - border).abs() < AT_BORDER, border, maps)
    else:
        count = min(max(round(threshold * maps.shape[1]), 0), maps.shape[1])
        rank = maps.sort(1, descending=True).values
        edge = torch.full_like(rank[:, :1], torch.inf)
        # masking ties: keep what is above the first input that no longer fits
        steps = torch.cat([edge, rank, -edge], 1)
        border = steps[:, count + 1 : count + 2] if ties == "mask" else steps[:, count : count + 1]
    return maps > border if ties == "mask" else maps >= border


def decides(visible: Tensor, truth: Truth) -> Tensor:
    """float64 [N]: 1 where the visible inputs contain a sufficient set, so that logic decides."""
    sample, sets = truth.sets
    contained = (visible[sample] | ~sets).all(1).double()
    return contained.new_zeros(len(visible)).scatter_reduce(0, sample, contained, "amax")


def group(codes: Tensor, sizes: int) -> Tensor:
    """int64 [N]: equal numbers for equal rows of `codes` [N, D], whose values are in 0..sizes-1."""
    if sizes ** codes.shape[1] < 2**63:
        scale = sizes ** torch.arange(codes.shape[1], device=codes.device)
        return (codes.long() * scale).sum(1).unique(return_inverse=True)[1]
    return codes.unique(dim=0, return_inverse=True)[1]


def class_counts(groups: Tensor, y: Tensor, parts: Tensor | None = None) -> Tensor:
    """float64 [N, C]: how many samples of a sample's group are of each class.

    With parts, int64 [N], only those that are not of the sample's own part.
    """
    classes = int(y.max()) + 1

    def table(of: Tensor) -> Tensor:
        counts = torch.bincount(of * classes + y, minlength=(int(of.max()) + 1) * classes)
        return counts.view(-1, classes)[of].double()

    if parts is None:
        return table(groups)
    mine = (groups * (int(parts.max()) + 1) + parts).unique(return_inverse=True)[1]
    return table(groups) - table(mine)


def majority_correct(groups: Tensor, y: Tensor, parts: Tensor | None = None) -> Tensor:
    """float64 [N]: whether the majority of a sample's group has its class; 1/k if k classes tie.

    The mean is the accuracy of the best possible guess given the group (plug-in Bayes accuracy).
    With parts, int64 [N], the majority is that of the other parts, and where none of them has the
    group, that of all their samples.
    """
    counts = class_counts(groups, y, parts)
    if parts is not None:
        anything = class_counts(torch.zeros_like(groups), y, parts)
        counts = torch.where(counts.sum(1, keepdim=True) > 0, counts, anything)
    best = counts == counts.amax(1, keepdim=True)
    return best.gather(1, y.unsqueeze(1)).squeeze(1) / best.sum(1).double()


def pointwise_information(groups: Tensor, y: Tensor, parts: Tensor | None = None) -> Tensor:
    """float64 [N]: log₂ p(class | group) / p(class) of each sample, by frequency.

    The mean is the mutual information of group and class, in bits (plug-in estimate). With parts,
    int64 [N], p(class | group) is that of the other parts, with the frequencies of the classes as
    one sample more; the mean is then at most the information, and can be negative.
    """
    counts = class_counts(groups, y, parts)
    usual = class_counts(torch.zeros_like(groups), y) / len(y)
    if parts is not None:
        counts = counts + usual
    ratio = counts / counts.sum(1, keepdim=True) / usual
    return ratio.gather(1, y.unsqueeze(1)).squeeze(1).log2()


# --- gates ---


def inputs_of(gate: Gate) -> list[int]:
    """The inputs that a gate joins directly."""
    return [child for child in gate.children if isinstance(child, int)]


def flat_gates(formula: Gate, who: str) -> list[tuple[Gate, list[int]]]:
    """The gates that the top gate joins, with their inputs.

    Raises ValueError unless they are gates of inputs.
    """
    from experiments.data.andor import Gate

    gates = [(gate, inputs_of(gate)) for gate in formula.children if isinstance(gate, Gate)]
    if len(gates) < len(formula.children) or any(
        len(inputs) < len(gate.children) for gate, inputs in gates
    ):
        raise ValueError(f"{who} is defined for gates of inputs only, not for a nested formula")
    return gates


def input_gates(formula: Gate) -> dict[str, list[int]]:
    """The inputs of each gate that has some, by name: and0, and1, or0, ... from left to right."""
    from experiments.data.andor import Gate

    found: dict[str, list[int]] = {}

    def visit(gate: Gate) -> None:
        if inputs := inputs_of(gate):
            kind = "xor" if gate.kind in ("exactly_one", "parity") else gate.kind
            found[f"{kind}{sum(name.rstrip('0123456789') == kind for name in found)}"] = inputs
        for child in gate.children:
            if isinstance(child, Gate):
                visit(child)

    visit(formula)
    return found


# --- logic by rule of thumb ---


def guess(visible: Tensor, bits: Tensor, formula: Gate) -> Tensor:
    """int64 [N]: the class that the visible inputs make likely, -1 where they make none.

    LogicalAccStatistics of the paper: several unknown inputs are taken as the likelier value of
    their gate. Its limits, 2 for AND and OR and 3 for XOR, suit gates of 2 or 3 inputs, half of
    whose symbols are true. For more than three gates under a XOR, two true ones are taken as
    proof of 0 where the original wants exactly two.
    """
    values = []
    for gate, inputs in flat_gates(formula, "logical_accuracy_statistics"):
        value = torch.where(visible[:, inputs], bits[:, inputs].long(), -1)
        values.append(_guess_gate(gate.kind, value))
    return _guess_gate(formula.kind, torch.stack(values, 1))


def _guess_gate(kind: str, values: Tensor) -> Tensor:
    """[N] in {0, 1, -1} from the values [N, n] in {0, 1, -1} of what a gate joins."""
    false, true, unknown = ((values == v).sum(1) for v in (0, 1, -1))
    match kind:
        case "and":
            rules = [(false > 0, 0), (unknown > 1, 0), (unknown > 0, -1)]
            otherwise = torch.ones_like(true)
        case "or":
            rules = [(true > 0, 1), (unknown > 1, 1), (unknown > 0, -1)]
            otherwise = torch.zeros_like(true)
        case "exactly_one":
            rules = [(true > 1, 0), (unknown > 2, 0), (unknown > 0, -1)]
            otherwise = (true == 1).long()
        case _:
            raise ValueError(f"logical_accuracy_statistics is not defined for {kind} gates")
    for condition, value in reversed(rules):
        otherwise = torch.where(condition, value, otherwise)
    return otherwise
