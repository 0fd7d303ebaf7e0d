"""NIB and GIB as the original code counts them, where that is not what they are defined to be.

Both go through the gates of a formula by hand, and lose their way in XOR gates; numbers of the
paper can only be compared with these. `logic` has the definitions. Maps are float64 [N, D].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experiments.scoring.logic import flat_gates

if TYPE_CHECKING:
    from experiments.data.andor import Gate


# --- needed information ---


def strongest_set(maps: Tensor, bits: Tensor, formula: Gate, y: Tensor) -> Tensor:
    """[N]: the score that the original holds against the highest irrelevant one.

    Per gate the strength of what decides its value: the weakest input where all are needed, the
    strongest of those that each suffice, the second strongest true input of an XOR with two or
    more. Joined over gates by the same rules. Unlike `logic.strongest_set`, every search for a
    maximum starts from -1, and from 0 for a false AND under a XOR in class 0, so that what lies
    below counts as that; and there the second strongest is not the second strongest (`_runner_up`).

    Raises ValueError for nested formulas and parity gates.
    """
    nothing_true = (y == 0) & (formula.kind == "exactly_one")
    floor = torch.where(nothing_true, 0.0, -1.0).to(maps.dtype)
    strengths, values = [], []
    for gate, inputs in flat_gates(formula, 'nib with preset "paper"'):
        scores, true = maps[:, inputs], bits[:, inputs]
        weakest = scores.amin(1)
        match gate.kind:
            case "and":
                value = true.all(1)
                strength = torch.where(value, weakest, _highest(scores, ~true, floor))
            case "or":
                value = true.any(1)
                strength = torch.where(value, _highest(scores, true, -1.0), weakest)
            case "exactly_one":
                count = true.sum(1)
                value = count == 1
                second = torch.where(nothing_true, _runner_up(scores, true), _second(scores, true))
                strength = torch.where(count > 1, second, weakest)
            case _:
                raise ValueError('nib with preset "paper" is not defined for parity gates')
        strengths.append(strength)
        values.append(value)
    strength, value = torch.stack(strengths, 1), torch.stack(values, 1)
    everything = strength.amin(1)
    if formula.kind == "parity":
        raise ValueError('nib with preset "paper" is not defined for parity gates')
    if formula.kind == "exactly_one":
        two = _second(strength, value).clamp(min=-1.0)
        return torch.where(value.sum(1) > 1, two, everything)
    decisive = value == (formula.kind == "or")
    return torch.where(decisive.any(1), _highest(strength, decisive, -1.0), everything)


def _highest(scores: Tensor, among: Tensor, floor: Tensor | float) -> Tensor:
    """[N]: the highest of some scores [N, n], and `floor` if they all lie below."""
    best = scores.masked_fill(~among, -torch.inf).amax(1)
    return torch.maximum(best, torch.as_tensor(floor, dtype=best.dtype, device=best.device))


def _second(scores: Tensor, among: Tensor) -> Tensor:
    """[N]: the second highest of some scores [N, n], -inf if there are less than two."""
    ordered = scores.masked_fill(~among, -torch.inf).sort(1, descending=True).values
    return ordered[:, min(1, scores.shape[1] - 1)]


def _runner_up(scores: Tensor, true: Tensor) -> Tensor:
    """[N]: the best true input that never was the best so far, from left to right; or -1.

    A running maximum that forgets what it was when it moves on.
    """
    highest = torch.full_like(scores[:, 0], -1.0)
    second = highest.clone()
    for score, counts in zip(scores.unbind(1), true.unbind(1), strict=True):
        record = counts & (score > highest)
        highest = torch.where(record, score, highest)
        second = torch.where(counts & ~record, torch.maximum(second, score), second)
    return second


# --- general information ---


def speaks_for_class(maps: Tensor, bits: Tensor, y: Tensor, formula: Gate) -> Tensor:
    """int64 [N, D]: how often the original counts an input as speaking for the class.

    AND and OR inputs count if they are true in class 1 or false in class 0. XOR inputs all count
    in class 1, and in class 0 if they are all true. Otherwise the two highest positive scores
    before the gate's first false input count, and the *last input of the row* once for each that
    is missing: a slip in the original that makes an irrelevant input count.

    Raises ValueError for nested formulas and parity gates.
    """
    agrees = bits == y.bool().unsqueeze(1)
    counted = torch.zeros_like(bits, dtype=torch.long)
    for gate, inputs in flat_gates(formula, 'gib with definition "paper" or "relevant"'):
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
