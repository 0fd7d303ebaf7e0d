"""DeepLIFT's RevealCancel rule (Shrikumar et al. 2017, section 3.5.3).

Every number of the model is there twice: the reference plus the positive part Δ⁺ of its
difference from it, and the reference plus the negative part Δ⁻. The two are halves of one batch.
Affine functions act on each half alone, as they should; only where positive and negative parts
are made (linear layers) or meet (activations) there is a rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from experiments import passes
from experiments.attribution.interception import Call
from experiments.attribution.multipliers import (
    CONVOLUTIONS,
    ELEMENTWISE,
    POOLS,
    Following,
    Recorded,
    Reference,
    maximum,
    slope,
)

LINEAR = CONVOLUTIONS | {"linear"}
PRODUCTS = frozenset({
    "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "baddbmm", "einsum",
    "tensordot", "bilinear",
})  # fmt: skip


class RevealCancel(Following):
    """Positive and negative differences, kept apart, as halves of a batch."""

    def __init__(self, reference: Reference) -> None:
        super().__init__("deeplift_reveal_cancel", reference.calls)

    def replace(self, call: Call) -> Tensor | None:
        if call.name in PRODUCTS:
            raise ValueError(
                f"method {self.method!r}: {call.name!r} has no rule; "
                f"linear layers must be nn.Linear or convolutions"
            )
        if not call.of_tensor or call.several:
            self.note(call)
            return None
        if call.name == "batch_norm":
            return by_sign_of_scale(call)
        if call.name not in ELEMENTWISE | POOLS | LINEAR:
            self.note(call)
            return None
        recorded = self.expected[self.next(call)]
        rule = linear if call.name in LINEAR else maxima if call.name in POOLS else activation
        return rule(call, recorded)


def halves(call: Call, recorded: Recorded) -> tuple[Tensor, Tensor, Tensor]:
    """Reference plus positive part, reference plus negative part, and reference."""
    positive, negative = call.input().chunk(2)
    return positive, negative, recorded.like(positive, recorded.x)


def parts(difference: Tensor) -> tuple[Tensor, Tensor]:
    """Positive and negative part; what is zero is half of each, for the sake of its gradient."""
    share = (difference > 0).to(difference) + 0.5 * (difference == 0)
    return difference * share, difference * (1 - share)


def linear(call: Call, recorded: Recorded) -> Tensor:
    """The linear rule (section 3.5.1): contributions w · Δ go where their sign says.

    Positive ones are half the sum of w Δ and |w| |Δ|, negative ones half the difference; where Δ
    is zero, the derivative of |Δ| is too, which gives each half of w, as the rule wants.
    """
    above, below, start = halves(call, recorded)
    change = above + below - 2 * start
    rest = [None, *call.args[3:]]
    kwargs = {name: value for name, value in call.kwargs.items() if name != "bias"}
    net: Any = call.func(change, call.args[1], *rest, **kwargs)
    gross: Any = call.func(change.abs(), call.args[1].abs(), *rest, **kwargs)
    reference = recorded.like(net, recorded.y)
    return torch.cat([reference + (net + gross) / 2, reference + (net - gross) / 2])


def activation(call: Call, recorded: Recorded) -> Tensor:
    """Each part's mean effect of coming first and of coming second."""
    above, below, start = halves(call, recorded)
    at_start = recorded.like(above, recorded.y)
    found = []
    with torch.no_grad():
        end = above + below - start
        only_above, only_below, both = map(call.function, (above, below, end))
        for part, mine, other, others in (
            (above, only_above, below, only_below),
            (below, only_below, above, only_above),
        ):
            first, second = mine - at_start, both - others
            multiplier = slope(call, start, part, first) + slope(call, other, end, second)
            found.append((at_start + (first + second) / 2, multiplier / 2))
    return torch.cat(
        [
            value + multiplier * (part - part.detach())
            for part, (value, multiplier) in zip((above, below), found, strict=True)
        ]
    )


def maxima(call: Call, recorded: Recorded) -> Tensor:
    """Maxima by the rescale rule; their differences are parted anew."""
    above, below, start = halves(call, recorded)
    total = maximum(call, above + below - start, lambda: recorded)
    reference = recorded.like(total, recorded.y)
    return torch.cat([reference + part for part in parts(total - reference)])


def by_sign_of_scale(call: Call) -> Tensor | None:
    """A batch norm with a negative scale turns rises into falls."""
    scaled = call.func(*call.args, **call.kwargs)
    weight = call.kwargs.get("weight", call.args[3] if len(call.args) > 3 else None)
    if weight is None:
        return scaled
    above, below = scaled.chunk(2)
    keep = (weight >= 0).reshape(1, -1, *(1,) * (scaled.ndim - 2))
    return torch.cat([torch.where(keep, above, below), torch.where(keep, below, above)])


def reveal_cancel(
    model: nn.Module, x: Tensor, target: Tensor, start: Tensor, reference: Reference
) -> tuple[Tensor, Tensor]:
    """Contributions [B, ...] against one reference, and outputs [B, K]. 2 B rows FB.

    Raises ValueError if the contributions do not sum to the differences of the output.
    """
    rises, falls = parts((x - start).detach())
    with torch.enable_grad():
        inputs = torch.cat([start + rises, start + falls]).requires_grad_()
        with RevealCancel(reference) as rule:
            above, below = model(inputs).chunk(2)
        outputs = above + below - reference.outputs
        explained = passes.selected(outputs, target)
        (multipliers,) = torch.autograd.grad(explained.sum(), inputs)
    up, down = multipliers.chunk(2)
    maps = rises * up + falls * down
    rule.require_complete(maps, explained, reference.outputs, target)
    return maps, outputs.detach()
