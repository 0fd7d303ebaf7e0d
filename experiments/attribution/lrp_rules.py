"""The rules of layer-wise relevance propagation for linear layers, as data.

A rule shares the relevance R [..., out] of a layer z = W x + b between its inputs. Every rule is
a sum of shares, and a share is

    R_x = Σ_t x_t ⊙ W_tᵀ (R / stab(Σ_t (W_t x_t + b_t))),    stab(z) = z + stabilizer · sign(z)

over terms t of modified inputs, weights and biases, with sign(0) = 1.

    rule        terms (x_t, W_t, b_t)                                source
    epsilon     (x, W, b)                                            Bach et al. 2015, eq. 58
    alpha_beta  α · {(x⁺, W⁺, b⁺), (x⁻, W⁻, 0)}                      Bach et al. 2015, eq. 60
                − β · {(x⁺, W⁻, b⁻), (x⁻, W⁺, 0)}
    zplus       alpha_beta with α = 1, β = 0                         Montavon et al. 2017
    gamma       z > 0: {(x⁺, W + γW⁺, b + γb⁺), (x⁻, W + γW⁻, 0)}    Andéol et al. 2021
                z < 0: {(x⁺, W + γW⁻, b + γb⁻), (x⁻, W + γW⁺, 0)}
    flat        (1, 1, 0)                                            Lapuschkin et al. 2019
    w2          (1, W², b²)                                          Montavon et al. 2017
    zbox        {(x, W, 0), (−low, W⁺, 0), (−high, W⁻, 0)}           Montavon et al. 2017

x⁺ and W⁺ are the positive parts, x⁻ and W⁻ the negative ones. These are zennit's rules; a term
whose input is zero everywhere, as x⁻ is after a ReLU, costs no pass through the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

Modifier = Callable[[Tensor], Tensor]
Bound = float | list[float] | None


@dataclass(frozen=True)
class Layer:
    """A linear map of its first argument: function(x, weight, bias, *rest, **options)."""

    function: Callable[..., Tensor]
    weight: Tensor
    bias: Tensor | None
    rest: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.function(x, weight, bias, *self.rest, **self.options)


def same(tensor: Tensor) -> Tensor:
    return tensor


def positive(tensor: Tensor) -> Tensor:
    return tensor.clamp(min=0)


def negative(tensor: Tensor) -> Tensor:
    return tensor.clamp(max=0)


@dataclass(frozen=True)
class Term:
    """One (x_t, W_t, b_t); no bias if it is None."""

    part: Modifier
    weight: Modifier
    bias: Modifier | None = None


@dataclass(frozen=True)
class Share:
    """`factor` times what the terms get of the relevance of the outputs `where` (all if None)."""

    terms: tuple[Term, ...]
    factor: float = 1.0
    where: Modifier | None = None


@dataclass(frozen=True)
class LayerRule:
    """A rule for layers. `keeps` says that its only term is the layer itself, (x, W, b)."""

    shares: tuple[Share, ...]
    stabilizer: float
    keeps: bool = False

    def __call__(self, layer: Layer, x: Tensor, z: Tensor, relevance: Tensor) -> Tensor:
        """The relevance of x [B, ...] from that of z = layer(x), to which x is still connected."""
        if self.keeps:
            return _contributions([x], [z], relevance, self.stabilizer)
        total = torch.zeros_like(x)
        for share in self.shares:
            upper = relevance if share.where is None else relevance * share.where(z.detach())
            if share.where is None or bool(upper.any()):
                total = total + share.factor * self._shared(share.terms, layer, x.detach(), upper)
        return total

    def _shared(self, terms: Sequence[Term], layer: Layer, x: Tensor, relevance: Tensor) -> Tensor:
        parts, outputs = [], []
        for term in terms:
            part = term.part(x)
            bias = term.bias(layer.bias) if term.bias and layer.bias is not None else None
            if bias is None and not part.any():
                continue
            with torch.enable_grad():
                parts.append(part.detach().requires_grad_())
                outputs.append(layer(parts[-1], term.weight(layer.weight), bias))
        if not parts:
            return torch.zeros_like(x)
        return _contributions(parts, outputs, relevance, self.stabilizer)


def _contributions(
    parts: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor, stabilizer: float
) -> Tensor:
    """Σ x_t ⊙ W_tᵀ (R / stab(Σ z_t))."""
    total = reduce(torch.add, (output.detach() for output in outputs))
    scaled = relevance / stabilized(total, stabilizer)
    gradients = torch.autograd.grad(outputs, parts, [scaled] * len(outputs))
    pairs = zip(parts, gradients, strict=True)
    return reduce(torch.add, (part.detach() * gradient for part, gradient in pairs))


def stabilized(z: Tensor, stabilizer: float) -> Tensor:
    """z moved away from zero by `stabilizer`, which zero is as well."""
    return z + torch.where(z < 0, -stabilizer, stabilizer)


BIASES = ("signed", "full", "zero")


def layer_rule(
    name: str,
    *,
    epsilon: float = 1e-6,
    stabilizer: float = 1e-6,
    gamma: float = 0.25,
    alpha: float = 2.0,
    beta: float = 1.0,
    low: Bound = None,
    high: Bound = None,
    bias: str = "signed",
) -> LayerRule:
    """The rule called `name`, one of those above.

    Args:
        low, high: range of the inputs (zbox): a number, one per channel, or None for the least
            and the greatest input of the sample.
        bias: "signed": the biases of the table above; "full": b in the first term of every share,
            as innvestigate has it; "zero": none.

    Raises ValueError if α − β is not 1 (alpha_beta), and later, if an input is out of its range.
    """

    def first(part: Modifier, weight: Modifier) -> Term:
        return Term(part, weight, {"signed": weight, "full": same, "zero": None}[bias])

    if name == "epsilon":
        share = Share((Term(same, same, None if bias == "zero" else same),))
        return LayerRule((share,), epsilon, keeps=bias != "zero")
    if name in ("zplus", "alpha_beta"):
        if name == "zplus":
            alpha, beta = 1.0, 0.0
        if abs(alpha - beta - 1) > 1e-9 or beta < 0:
            raise ValueError(
                f"LRP rule 'alpha_beta': alpha {alpha} − beta {beta} must be 1 and beta ≥ 0"
            )
        raising = Share((first(positive, positive), Term(negative, negative)), alpha)
        lowering = Share((first(positive, negative), Term(negative, positive)), -beta)
        return LayerRule((raising, lowering) if beta else (raising,), stabilizer)
    if name == "gamma":
        more = partial(_favour, part=positive, gamma=gamma)
        less = partial(_favour, part=negative, gamma=gamma)
        above = Share((first(positive, more), Term(negative, less)), where=_above)
        below = Share((first(positive, less), Term(negative, more)), where=_below)
        return LayerRule((above, below), stabilizer)
    if name == "flat":
        return LayerRule((Share((Term(torch.ones_like, torch.ones_like),)),), stabilizer)
    if name == "w2":
        return LayerRule((Share((first(torch.ones_like, torch.square),)),), stabilizer)
    if name == "zbox":
        inside = Term(partial(_checked, low=low, high=high), same)
        bounds = (
            Term(partial(_bound, value=low, extreme=torch.amin), positive),
            Term(partial(_bound, value=high, extreme=torch.amax), negative),
        )
        return LayerRule((Share((inside, *bounds)),), stabilizer)
    raise ValueError(f"LRP rule {name!r} is unknown")


def _favour(weight: Tensor, part: Modifier, gamma: float) -> Tensor:
    return weight + gamma * part(weight)


def _above(z: Tensor) -> Tensor:
    return z > 0


def _below(z: Tensor) -> Tensor:
    return z < 0


def _bound(x: Tensor, value: Bound, extreme: Callable[..., Tensor]) -> Tensor:
    """−low or −high of inputs x [B, ...]."""
    if value is None:
        bound = extreme(x.flatten(1), 1).reshape(-1, *[1] * (x.ndim - 1))
    elif isinstance(value, list):
        if x.ndim < 3 or x.shape[1] != len(value):
            raise ValueError(
                f"LRP rule 'zbox': {len(value)} bounds for inputs of shape {tuple(x.shape[1:])}; "
                f"give one number, or one per channel"
            )
        bound = x.new_tensor(value).reshape(1, -1, *[1] * (x.ndim - 2))
    else:
        bound = x.new_tensor(value)
    return -bound.expand_as(x)


def _checked(x: Tensor, low: Bound, high: Bound) -> Tensor:
    """x, if it is within its range."""
    below = low is not None and bool((x < -_bound(x, low, torch.amin) - 1e-5).any())
    above = high is not None and bool((x > -_bound(x, high, torch.amax) + 1e-5).any())
    if below or above:
        raise ValueError(
            f"LRP rule 'zbox': inputs in [{float(x.min()):.4g}, {float(x.max()):.4g}] leave the "
            f"range [{low}, {high}]; give low and high of the data"
        )
    return x
