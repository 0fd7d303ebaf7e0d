"""Layer-wise relevance propagation through a whole network, by rules for torch's functions.

The backward pass carries relevance instead of gradients: each function of the table below is
replaced by one with the same output, whose backward pass is its rule. What is not in the table
(reshaping, concatenation, max pooling) moves relevance as it moves gradients.

    linear layers               the scheme's rules (`lrp_rules`), each after its batch norm
    activations, softmax,       R_x = R: relevance passes
      normalisations, scaling
    sums, means, residual sums  in proportion to the contributions: R_x = x ⊙ ∇z ᵀ(R / stab(z))
    products of two activations the same, half to each factor (Achtibat et al. 2024, prop. 3.3)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments import passes
from experiments.attribution import functions
from experiments.attribution.interception import refuse_compiled
from experiments.attribution.lrp_rules import Layer, LayerRule, stabilized

SourceRule = Callable[[list[Tensor], Tensor, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Scheme:
    """Which rule where.

    Attributes:
        convolution, linear: rules of convolutions and of linear layers.
        first: rule of the first layer that is called, and of the layers that read the same input.
        batch_norm: "merge": with the layer before it into one; "pass": R_x = R; "ratio":
            R_x = R x (y − β) / ((x − μ) y), as innvestigate has it. One that follows no linear
            layer passes relevance.
        stabilizer: for sums and products.
    """

    convolution: LayerRule
    linear: LayerRule
    first: LayerRule | None = None
    batch_norm: str = "merge"
    stabilizer: float = 1e-6


def relevance(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    scheme: Scheme,
    start: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The relevance of every input, [R, ...] like x. R forwards + backwards.

    The outputs' relevance is `start(outputs, weights)`, by default the explained output itself:
    outputs times the target's weights.
    """
    refuse_compiled("lrp", model)

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        with torch.enable_grad(), functions.FunctionRules(rules(scheme)):
            inputs = rows.detach().requires_grad_()
            outputs = model(inputs)
        weights = output_weights(outputs, wanted)
        upper = outputs.detach() * weights if start is None else start(outputs.detach(), weights)
        return torch.autograd.grad(outputs, inputs, upper, materialize_grads=True)[0]

    return passes.in_passes(part, model, x, target)[0]


def output_weights(outputs: Tensor, target: Tensor) -> Tensor:
    """The target as weights of the outputs [R, K]: one-hot for a class."""
    if target.is_floating_point():
        return target.to(outputs)
    return nn.functional.one_hot(target, outputs.shape[1]).to(outputs)


def rules(scheme: Scheme) -> dict[Any, functions.Rule]:
    """The table of one forward pass."""
    entrance: list[Tensor] = []
    share = partial(_share, stabilizer=scheme.stabilizer)
    passing = (
        *functions.ACTIVATION, *functions.SOFTMAX, *functions.LAYER_NORM, *functions.RMS_NORM,
        *functions.OTHER_NORM, *functions.SCALE,
    )  # fmt: skip
    return functions.table(
        (functions.CONVOLUTION, partial(_layer, scheme, scheme.convolution, entrance)),
        (functions.LINEAR, partial(_layer, scheme, scheme.linear, entrance)),
        (functions.BATCH_NORM, partial(_batch_norm, scheme.batch_norm)),
        (passing, _pass),
        (functions.POOLING, share),
        (functions.ADD, partial(_add, share)),
        (functions.MATMUL, share),
        (functions.MULTIPLY, partial(_multiply, share)),
    )


class Propagated(torch.autograd.Function):
    """local(*inputs), whose backward pass is relevance by `rule(inputs, output, R)`."""

    @staticmethod
    def forward(ctx: Any, local: Callable[..., Tensor], rule: SourceRule, *inputs: Tensor) -> Any:
        with torch.enable_grad():
            inner = [tensor.detach().requires_grad_() for tensor in inputs]
            output = local(*inner)
        ctx.save_for_backward(*inputs)  # only so that torch notices if they are changed in place
        ctx.rule = partial(rule, inner, output)
        return output.detach().clone()  # what the model does in place must not reach the rule

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        ctx.saved_tensors  # noqa: B018
        return None, None, *ctx.rule(relevance[0])


class Passed(torch.autograd.Function):
    """local(x), whose backward pass is the relevance itself, summed where x was broadcast."""

    @staticmethod
    def forward(ctx: Any, local: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return local(x.detach())

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        return None, relevance[0].sum_to_size(ctx.shape)


# --- linear layers and batch norms ----------------------------------------------------------------


def _layer(
    scheme: Scheme,
    rule: LayerRule,
    entrance: list[Tensor],
    function: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Tensor:
    layer = Layer(function, weight, bias, rest, options)
    if not input.requires_grad:
        return layer(input, weight, bias)
    if not entrance:
        entrance.append(input)
    chosen = scheme.first if scheme.first is not None and input is entrance[0] else rule
    seen: list[Tensor] = []

    def local(x: Tensor) -> Tensor:
        z = layer(x, weight, bias)
        seen.extend((x, z))
        return z

    z = Propagated.apply(local, partial(_by_layer, chosen, layer), input)
    if scheme.batch_norm == "merge":
        z.layer = (layer, chosen, input, seen, z._version)  # for the batch norm that gets z
    return z


def _by_layer(
    rule: LayerRule, layer: Layer, inputs: list[Tensor], z: Tensor, relevance: Tensor
) -> tuple[Tensor]:
    return (rule(layer, inputs[0], z, relevance),)


def _batch_norm(
    mode: str,
    function: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    def local(z: Tensor) -> Tensor:
        return function(z, running_mean, running_var, weight, bias, training, momentum, eps)

    if training or running_mean is None or running_var is None or mode == "pass":
        return Passed.apply(local, input)
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    if mode == "ratio":
        return Propagated.apply(local, partial(_ratio, running_mean, bias), input)
    known = getattr(input, "layer", None)
    if known is None or known[-1] != input._version:  # changed in place since
        return Passed.apply(local, input)
    layer, rule, x, (inner, z), _ = known
    merged = _merged(layer, scale, shift)
    if merged is None:
        return Passed.apply(local, input)
    continued = _Continued(local, z)
    return Propagated.apply(continued, partial(_by_merged, rule, merged, inner), x)


@dataclass(frozen=True)
class _Continued:
    """A layer that has run already, up to its output z, and what comes after it."""

    local: Callable[[Tensor], Tensor]
    z: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.local(self.z)


def _by_merged(
    rule: LayerRule, layer: Layer, inner: Tensor, _: list[Tensor], z: Tensor, relevance: Tensor
) -> tuple[Tensor]:
    return (rule(layer, inner, z, relevance),)


def _merged(layer: Layer, scale: Tensor, shift: Tensor) -> Layer | None:
    """Layer and batch norm as one layer; None where the outputs' axis of the weight is unclear."""
    transposed = "transpose" in getattr(layer.function, "__name__", "")
    if transposed and layer.weight.shape[1] != len(scale):
        return None
    axis = 1 if transposed else 0
    shape = [1] * layer.weight.ndim
    shape[axis] = -1
    bias = shift if layer.bias is None else layer.bias * scale + shift
    weight = layer.weight * scale.reshape(shape)
    return Layer(layer.function, weight, bias, layer.rest, layer.options)


def _ratio(
    mean: Tensor, bias: Tensor | None, inputs: list[Tensor], y: Tensor, relevance: Tensor
) -> tuple[Tensor]:
    x = inputs[0].detach()
    shape = (1, -1, *[1] * (x.ndim - 2))
    beta = torch.zeros_like(mean) if bias is None else bias
    above = x * (y.detach() - beta.reshape(shape))
    below = (x - mean.reshape(shape)) * y.detach()
    return (relevance * above / stabilized(below, 1e-7),)


# --- everything else ------------------------------------------------------------------------------


def _pass(function: Any, *arguments: Any, **options: Any) -> Tensor:
    """R_x = R for the first argument that depends on the input."""
    places = functions.differentiable(arguments)
    if not places:
        return function(*arguments, **options)
    place = places[0]
    flags = (*arguments[1:], options.get("inplace"))
    in_place = function in functions.ACTIVATION and any(flag is True for flag in flags)

    def local(x: Tensor) -> Tensor:
        given = x.clone() if in_place else x
        return function(*arguments[:place], given, *arguments[place + 1 :], **options)

    found = Passed.apply(local, arguments[place])
    return arguments[place].copy_(found) if in_place else found


def _share(
    function: Any, *arguments: Any, stabilizer: float, factor: float | None = None, **options: Any
) -> Tensor:
    """In proportion to the contributions; each of n factors of a product gets the n-th part."""
    places = functions.differentiable(arguments)
    if not places:
        return function(*arguments, **options)
    part = 1 / len(places) if factor is None else factor

    def local(*inputs: Tensor) -> Tensor:
        given = list(arguments)
        for place, tensor in zip(places, inputs, strict=True):
            given[place] = tensor
        return function(*given, **options)

    def rule(inputs: list[Tensor], z: Tensor, relevance: Tensor) -> tuple[Tensor, ...]:
        scaled = part * relevance / stabilized(z.detach(), stabilizer)
        gradients = torch.autograd.grad(z, inputs, scaled)
        return tuple(x.detach() * g for x, g in zip(inputs, gradients, strict=True))

    return Propagated.apply(local, rule, *(arguments[place] for place in places))


def _add(share: functions.Rule, function: Any, *arguments: Any, **options: Any) -> Tensor:
    """A residual sum shares; what is added to or taken from one activation takes nothing."""
    if len(functions.differentiable(arguments)) < 2:
        return _pass(function, *arguments, **options)
    return share(function, *arguments, factor=1.0, **options)


def _multiply(share: functions.Rule, function: Any, *arguments: Any, **options: Any) -> Tensor:
    if len(functions.differentiable(arguments)) < 2:
        return _pass(function, *arguments, **options)
    return share(function, *arguments, **options)
