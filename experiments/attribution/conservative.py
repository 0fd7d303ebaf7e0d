"""Transformers explained by input times a modified gradient: CP-LRP and AttnLRP.

Where relevance is R = a ⊙ g for every activation a, a rule for R is a rule for the gradient g,
and no rule has to divide by an activation. LRP-0 of a linear layer is the gradient itself; the
rest differs:

                       CP-LRP (Ali et al. 2022)      AttnLRP (Achtibat et al. 2024)
    softmax            a constant (AH rule)          the gradient (prop. 3.1)
    product of two     the gradient                  half the gradient to each (prop. 3.3)
    layer norm         its deviation a constant      its deviation a constant (prop. 3.4)
    activation f       the gradient                  g_x = g_f · f(x) / x (identity rule, eq. 9)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments import passes
from experiments.attribution import functions
from experiments.attribution.interception import refuse_compiled
from experiments.attribution.lrp_rules import Layer, LayerRule

Table = dict[Any, functions.Rule]


def input_times_gradient(
    model: nn.Module, x: Tensor, target: Tensor, rules: Callable[[], Table]
) -> Tensor:
    """x ⊙ the gradient of the explained output under the rules. R forwards + backwards."""
    refuse_compiled("lrp_attention", model)

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        with torch.enable_grad(), functions.FunctionRules(rules()):
            inputs = rows.detach().requires_grad_()
            found = passes.selected(model(inputs), wanted)
        (gradient,) = torch.autograd.grad(found.sum(), inputs, materialize_grads=True)
        return rows * gradient

    return passes.in_passes(part, model, x, target)[0]


def conservative_rules(activation: str = "gradient") -> Table:
    """CP-LRP. `activation`: "gradient", or "identity" as in AttnLRP; for ReLU they are the same."""
    rules = {**_norms(), **functions.table((functions.SOFTMAX, _constant))}
    return rules | (_activations() if activation == "identity" else {})


def attention_rules(linear: LayerRule | None = None, convolution: LayerRule | None = None) -> Table:
    """AttnLRP. Linear layers and convolutions follow LRP-0, or the rule given."""
    rules = {
        **_norms(),
        **_activations(),
        **functions.table(((*functions.MATMUL, *functions.MULTIPLY), _halved)),
    }
    for kind, rule in ((functions.LINEAR, linear), (functions.CONVOLUTION, convolution)):
        if rule is not None:
            rules |= functions.table((kind, partial(_layer, rule)))
    return rules


class Replaced(torch.autograd.Function):
    """local(x), whose backward pass is `rule(x, output, g)`."""

    @staticmethod
    def forward(ctx: Any, local: Callable[[Tensor], Tensor], rule: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            output = local(inner)
        ctx.rule = partial(rule, inner, output)
        return output.detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        return None, None, ctx.rule(gradient[0])


def _norms() -> Table:
    return functions.table(
        (functions.LAYER_NORM, _layer_norm),
        (functions.RMS_NORM, _rms_norm),
    )


def _activations() -> Table:
    return functions.table((functions.CENTRED, _identity))


def _constant(function: Any, *arguments: Any, **options: Any) -> Tensor:
    return function(*arguments, **options).detach()


def _halved(function: Any, *arguments: Any, **options: Any) -> Tensor:
    found = function(*arguments, **options)
    if len(functions.differentiable(arguments)) > 1:
        found.register_hook(_half)
    return found


def _half(gradient: Tensor) -> Tensor:
    return gradient / 2


def _layer_norm(
    function: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *rest: Any,
) -> Tensor:
    """(x − mean) / constant deviation · weight + bias."""
    axes = tuple(range(-len(normalized_shape), 0))
    deviation = (input.var(axes, unbiased=False, keepdim=True) + eps).sqrt().detach()
    normed = (input - input.mean(axes, keepdim=True)) / deviation
    scaled = normed if weight is None else normed * weight
    return scaled if bias is None else scaled + bias


def _rms_norm(
    function: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    tiny = torch.finfo(input.dtype).eps if eps is None else eps
    normed = input * (input.square().mean(axes, keepdim=True) + tiny).rsqrt().detach()
    return normed if weight is None else normed * weight


def _identity(function: Any, input: Tensor, *rest: Any, **options: Any) -> Tensor:
    """Relevance passes an activation f with f(0) = 0: g_x = g_f · f(x) / x, and 0 at x = 0."""
    if not input.requires_grad:
        return function(input, *rest, **options)
    in_place = any(flag is True for flag in (*rest, options.get("inplace")))

    def local(x: Tensor) -> Tensor:
        return function(x.clone() if in_place else x, *rest, **options)

    found = Replaced.apply(local, _slope, input.clone() if in_place else input)
    return input.copy_(found) if in_place else found


def _slope(x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
    x, y = x.detach(), y.detach()
    return torch.where(x == 0, 0, gradient * y / torch.where(x == 0, 1, x))


def _layer(
    rule: LayerRule,
    function: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Tensor:
    """A rule of LRP as one for gradients: R_z = z ⊙ g_z, and g_x = R_x / x."""
    layer = Layer(function, weight, bias, rest, options)
    if not input.requires_grad:
        return layer(input, weight, bias)

    def by_rule(x: Tensor, z: Tensor, gradient: Tensor) -> Tensor:
        relevance = rule(layer, x, z, z.detach() * gradient)
        x = x.detach()
        return torch.where(x == 0, 0, relevance / torch.where(x == 0, 1, x))

    return Replaced.apply(lambda x: layer(x, weight, bias), by_rule, input)
