"""The arithmetic of scores, as functions of tensors; all of it vectorised over samples.

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
View = Literal["raw", "abs", "positive"]
Threshold = float | Literal["baseline"]
MaskRule = Literal["mean", "top"]
MaskTies = Literal["mask", "keep"]

# Scores scaled to [0, 1] that differ from a border by less than this lie on it: without it, the
# rounding of t·mean, which changes with the scale of a map, would decide.
AT_BORDER = 1e-9

TIE_WEIGHT: dict[Ties, float] = {"strict": 0.0, "half": 0.5, "pessimistic": 1.0}


def view(maps: Tensor, kind: View) -> Tensor:
    """Maps as a score wants to see them, float64."""
    maps = maps.double()
    match kind:
        case "raw":
            return maps
        case "abs":
            return maps.abs()
        case "positive":
            return maps.clamp(min=0)


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


def needed_below_baseline(maps: Tensor, truth: Truth, ties: Ties) -> Tensor:
    """[N] in {0, 0.5, 1}: an irrelevant input outranks every sufficient set."""
    maps = maps.double()
    peak = irrelevant_peak(maps, truth.irrelevant)
    return below(strongest_set(maps, truth), peak, ties)


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
        scale = sizes ** torch.arange(codes.shape[1])
        return (codes.long() * scale).sum(1).unique(return_inverse=True)[1]
    return codes.unique(dim=0, return_inverse=True)[1]


def majority_correct(groups: Tensor, y: Tensor) -> Tensor:
    """float64 [N]: whether the majority of a sample's group has its class; 1/k if k classes tie.

    The mean is the accuracy of the best possible guess given the group (plug-in Bayes accuracy).
    """
    classes = int(y.max()) + 1
    counts = torch.bincount(groups * classes + y, minlength=(int(groups.max()) + 1) * classes)
    counts = counts.view(-1, classes)
    best = counts == counts.amax(1, keepdim=True)
    return (best / best.sum(1, keepdim=True).double())[groups, y]


# --- logic by rule of thumb ---


def guess(visible: Tensor, bits: Tensor, formula: Gate) -> Tensor:
    """int64 [N]: the class that the visible inputs make likely, -1 where they make none.

    LogicalAccStatistics of the paper: several unknown inputs are taken as the likelier value of
    their gate. Its limits, 2 for AND and OR and 3 for XOR, suit gates of 2 or 3 inputs, half of
    whose symbols are true. For more than three gates under a XOR, two true ones are taken as
    proof of 0 where the original wants exactly two.
    """
    from experiments.data.andor import Gate

    values = []
    for gate in formula.children:
        if not isinstance(gate, Gate) or any(isinstance(child, Gate) for child in gate.children):
            raise ValueError("logical_accuracy_statistics is defined for gates of inputs only")
        inputs = torch.tensor(gate.children)
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


# --- general information, as the paper counted it ---


def speaks_for_class(maps: Tensor, bits: Tensor, y: Tensor, formula: Gate) -> Tensor:
    """int64 [N, D]: how often the paper's code counts an input as speaking for the class.

    AND and OR inputs count if they are true in class 1 or false in class 0. XOR inputs all count
    in class 1, and in class 0 if they are all true. Otherwise the two highest positive scores
    before the gate's first false input count, and the *last input of the row* once for each that
    is missing: a slip in the original that makes an irrelevant input count.
    """
    from experiments.data.andor import Gate

    agrees = bits == y.bool().unsqueeze(1)
    counted = torch.zeros(bits.shape, dtype=torch.long)
    for gate in formula.children:
        if not isinstance(gate, Gate) or any(isinstance(child, Gate) for child in gate.children):
            raise ValueError('gib with definition "paper" or "relevant" needs gates of inputs only')
        inputs = torch.tensor(gate.children)
        if gate.kind in ("and", "or"):
            counted[:, inputs] = agrees[:, inputs].long()
        elif gate.kind == "exactly_one":
            everything = y.bool() | bits[:, inputs].all(1)
            leading = bits[:, inputs].cumprod(1).bool() & (maps[:, inputs] > 0)
            scores = maps[:, inputs].masked_fill(~leading, -torch.inf)
            places = scores.argsort(dim=1, descending=True, stable=True)[:, :2]
            best = torch.zeros_like(leading).scatter(1, places, True) & leading
            counted[:, inputs] = torch.where(everything.unsqueeze(1), 1, best.long())
            counted[:, -1] += torch.where(everything, 0, 2 - best.sum(1))
        else:
            raise ValueError(f'gib with {gate.kind} gates has only the definition "union"')
    return counted


# --- where a map puts its weight, against a mask of what is right ---


def mass(maps: Tensor, mask: Tensor) -> Tensor:
    """[N]: the share of a non-negative map that lies in the mask; of a zero map, of the inputs."""
    total, size = maps.sum(1), mask.sum(1)
    share = torch.where(
        total > 0,
        (maps * mask).sum(1) / torch.where(total > 0, total, 1),
        size / maps.shape[1],
    )
    return torch.where(size > 0, share, torch.nan)


def top_precision(maps: Tensor, mask: Tensor) -> Tensor:
    """[N]: the share of the k highest inputs that lie in the mask of k inputs.

    Where the k-th place is tied, the expectation over all ways to break the tie.
    """
    size = mask.sum(1, keepdim=True)
    ranked = maps.sort(1, descending=True).values
    border = ranked.gather(1, (size - 1).clamp(min=0))
    above, tied = maps > border, maps == border
    free = size - above.sum(1, keepdim=True)
    hits = (above & mask).sum(1) + ((tied & mask) * free).sum(1) / tied.sum(1)
    return torch.where(mask.any(1), hits / size.squeeze(1), torch.nan).double()


def top_one(maps: Tensor, mask: Tensor) -> Tensor:
    """[N]: whether the highest input lies in the mask; of tied ones, the share that does."""
    top = maps == maps.amax(1, keepdim=True)
    return torch.where(mask.any(1), (top & mask).sum(1) / top.sum(1), torch.nan).double()


def ranking_auc(maps: Tensor, mask: Tensor) -> Tensor:
    """[N]: the chance that an input of the mask scores above one outside it, a tie being a half.

    The area under the ROC curve, from average ranks (Mann & Whitney 1947); NaN if the mask is
    empty or everything.
    """
    ranked = maps.sort(1).values
    first = torch.searchsorted(ranked, maps.contiguous())
    last = torch.searchsorted(ranked, maps.contiguous(), right=True)
    rank = (first + last + 1).double() / 2
    inside = mask.sum(1).double()
    outside = maps.shape[1] - inside
    wins = (rank * mask).sum(1) - inside * (inside + 1) / 2
    return torch.where((inside > 0) & (outside > 0), wins / (inside * outside), torch.nan)


# --- how complex a map is ---


def entropy(maps: Tensor) -> Tensor:
    """[N] in [0, ln D]: Shannon entropy, in nats, of a non-negative map scaled to sum 1.

    A zero map is scored as the uniform one, ln D.
    """
    total = maps.sum(1, keepdim=True)
    share = torch.where(total > 0, maps / torch.where(total > 0, total, 1), 1 / maps.shape[1])
    return torch.special.entr(share).sum(1)


def gini(maps: Tensor) -> Tensor:
    """[N] in [0, 1 - 1/D]: Gini index of a non-negative map; 0 for a uniform and for a zero map."""
    count = maps.shape[1]
    weight = 2 * torch.arange(1, count + 1, dtype=maps.dtype) - count - 1
    total = maps.sum(1)
    spread = (maps.sort(1).values * weight).sum(1)
    return torch.where(total > 0, spread / (count * torch.where(total > 0, total, 1)), 0.0)
