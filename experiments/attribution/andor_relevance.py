"""LRP as the code of Schwenke & Atzmueller (2024) computes it, for the two ANDOR networks.

It starts from the target's weights, not from the outputs, and follows these rules, with
a ⊘ b = a / (b + 10⁻⁹), and 0 where b is 0:

    linear       z⁺ without bias: x⁺ ⊙ W⁺ᵀ(R ⊘ z) + x⁻ ⊙ W⁻ᵀ(R ⊘ z), z = W⁺x⁺ + W⁻x⁻
    convolution  the same, but each part divided by its own z: they count twice where both exist
    batch norm   R, and 0 where its input is 0
    product      by contributions, half to each factor
    sum          by contributions; then each branch is scaled to |its sum| / Σ |sums| of the
                 relevance that came, with sums over *all samples* of the batch ("batch")
    any other    R

Relevance passes through the second convolution of a block even where its result is never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.attribution import functions, lrp
from experiments.attribution.batch import Batch
from experiments.attribution.lrp_rules import layer_rule
from experiments.models.andor import AndorCNN, AndorTransformer, ResidualBlock
from experiments.models.structure import kind_of

TINY = 1e-9


class Sigmoid(nn.Module):
    """A network with the sigmoid that is the last layer of the original ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.kind = kind_of(model)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.model(x))

    @property
    def cam_layer(self) -> Any:
        return self.model.cam_layer

    @property
    def cam_reshape(self) -> Any:
        return self.model.cam_reshape


def relevance(batch: Batch, over: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The relevance of the inputs [B, D], and of every layer's attention [B, heads, L, L].

    `over`: whether branches of a sum are compared over the "batch" or over each "sample". 1 FB.
    Raises ValueError if the network is not one of this study.
    """
    return batch.once(("andor relevance", over), lambda: _relevance(batch, over))


def _relevance(batch: Batch, over: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    model, x = batch.model, batch.x
    if not isinstance(model, AndorCNN | AndorTransformer):
        raise ValueError(
            f"method 'andor_lrp' and its rollouts know andor_cnn and andor_transformer only, not "
            f"{type(model).__name__}; take 'lrp' or 'lrp_rollout'"
        )
    seen: list[Tensor] = []
    with torch.enable_grad(), _entered(model, over) as leaves:
        with functions.FunctionRules(_rules(over, seen)):
            outputs = model(x)
        upper = lrp.output_weights(outputs, batch.target)
        inner, *attention = torch.autograd.grad(
            outputs, [leaves[0], *seen], upper, materialize_grads=True
        )
    if isinstance(model, AndorCNN):
        return inner.reshape(x.shape), ()
    given = inner if model.cls is None else inner[:, :1]  # of CLS only, spread over all inputs
    return _of_embedding(x, leaves[0].detach()[:, -x.shape[1] :], given, over), tuple(attention)


def _of_embedding(x: Tensor, tokens: Tensor, given: Tensor, over: str) -> Tensor:
    """From the relevance [B, L or 1, d] of the tokens x + positions to that of x [B, D]."""
    shares = divided(given, tokens)
    of_inputs = x * shares.sum(-1)
    of_positions = ((tokens - x[..., None]) * shares).sum(-1)
    return _rescaled([of_inputs, of_positions], given, over)[0]


@contextmanager
def _entered(model: AndorCNN | AndorTransformer, over: str) -> Iterator[list[Tensor]]:
    """What enters the blocks, as a leaf; unused convolutions take part in the backward pass."""
    leaves: list[Tensor] = []

    def enter(_: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        leaves.append(arguments[0].detach().requires_grad_())
        return (leaves[0],)

    handles = [model.blocks.register_forward_pre_hook(enter)]
    for block in model.blocks:
        if isinstance(block, ResidualBlock) and block.unused is not None:
            handles.append(block.second.register_forward_pre_hook(partial(_through, block.unused)))
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()


def _through(weight: Tensor, _: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
    """The input itself, whose relevance has come through a convolution."""
    padding = (weight.shape[2] // 2, 0)
    rule = _by_parts(partial(F.conv2d, padding=padding), weight, apart=True)
    return (lrp.Propagated.apply(lambda x: x, rule, arguments[0]),)


# --- rules ----------------------------------------------------------------------------------------


def _rules(over: str, seen: list[Tensor]) -> dict[Any, functions.Rule]:
    """The table of one forward pass, which adds the attention of every layer to `seen`."""
    zplus = layer_rule("zplus", bias="zero")  # what is not below is as in any LRP
    usual = lrp.rules(lrp.Scheme(convolution=zplus, linear=zplus))

    def softmax(function: Any, *arguments: Any, **options: Any) -> Tensor:
        seen.append(usual[function](function, *arguments, **options))
        return seen[-1]

    return usual | functions.table(
        (functions.CONVOLUTION, partial(_layer, True)),
        (functions.LINEAR, partial(_layer, False)),
        (functions.BATCH_NORM, _batch_norm),
        (functions.MATMUL, _product),
        (functions.ADD, partial(_add, over)),
        ((Tensor.sum,), partial(_sum, over)),
        (functions.SOFTMAX, softmax),
    )


def divided(a: Tensor, b: Tensor) -> Tensor:
    """a ⊘ b."""
    below = b + TINY
    return torch.where(b == 0, 0, a / torch.where(below == 0, TINY, below))


def _by_parts(
    function: Callable[..., Tensor], weight: Tensor, apart: bool
) -> Callable[[list[Tensor], Tensor, Tensor], tuple[Tensor]]:
    """z⁺ for function(x, weight); `apart`: each part is divided by its own output."""

    def rule(inputs: list[Tensor], z: Tensor, relevance: Tensor) -> tuple[Tensor]:
        x = inputs[0].detach()
        with torch.enable_grad():
            parts = [part.requires_grad_() for part in (x.clamp(min=0), x.clamp(max=0))]
            weights = weight.clamp(min=0), weight.clamp(max=0)
            outputs = [function(part, w) for part, w in zip(parts, weights, strict=True)]
        both = outputs[0].detach() + outputs[1].detach()
        upper = [divided(relevance, out.detach() if apart else both) for out in outputs]
        gradients = torch.autograd.grad(outputs, parts, upper)
        return (parts[0].detach() * gradients[0] + parts[1].detach() * gradients[1],)

    return rule


def _layer(
    apart: bool,
    function: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Tensor:
    def without_bias(x: Tensor, weight: Tensor) -> Tensor:
        return function(x, weight, None, *rest, **options)

    return lrp.Propagated.apply(
        lambda x: function(x, weight, bias, *rest, **options),
        _by_parts(without_bias, weight, apart),
        input,
    )


def _batch_norm(
    function: Any,
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    *rest: Any,
    **options: Any,
) -> Tensor:
    shape = (1, -1, *[1] * (input.ndim - 2))
    scale = (weight / (running_var.square() + 1e-5).sqrt()).reshape(shape)

    def rule(inputs: list[Tensor], z: Tensor, relevance: Tensor) -> tuple[Tensor]:
        scaled = inputs[0].detach() * scale
        return (scaled * divided(relevance, scaled),)

    return lrp.Propagated.apply(
        lambda x: function(x, running_mean, running_var, weight, *rest, **options), rule, input
    )


def _product(function: Any, a: Tensor, b: Tensor) -> Tensor:
    def rule(inputs: list[Tensor], z: Tensor, relevance: Tensor) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad(z, inputs, divided(relevance, z.detach()) / 2)
        return tuple(x.detach() * g for x, g in zip(inputs, gradients, strict=True))

    return lrp.Propagated.apply(function, rule, a, b)


def _add(over: str, function: Any, a: Tensor, b: Tensor) -> Tensor:
    if not (a.requires_grad and b.requires_grad):
        return function(a, b)

    def rule(inputs: list[Tensor], z: Tensor, relevance: Tensor) -> tuple[Tensor, ...]:
        shares = divided(relevance, z.detach())
        return tuple(_rescaled([x.detach() * shares for x in inputs], relevance, over))

    return lrp.Propagated.apply(function, rule, a, b)


def _sum(over: str, function: Any, branches: Tensor, axis: int) -> Tensor:
    def rule(inputs: list[Tensor], z: Tensor, relevance: Tensor) -> tuple[Tensor]:
        shares = inputs[0].detach() * divided(relevance, z.detach())[..., None]
        return (torch.stack(_rescaled(list(shares.unbind(-1)), relevance, over), -1),)

    return lrp.Propagated.apply(lambda x: function(x, axis), rule, branches)


def _rescaled(parts: list[Tensor], relevance: Tensor, over: str) -> list[Tensor]:
    """Every part, scaled so that it sums to |its sum| / Σ |sums| of the relevance's sum."""

    def total(tensor: Tensor) -> Tensor:
        if over == "batch":
            return tensor.sum()
        return tensor.flatten(1).sum(1).reshape(-1, *[1] * (parts[0].ndim - 1))

    sums = [total(part) for part in parts]
    below = torch.stack([s.abs() for s in sums]).sum(0)
    factors = [divided(divided(s.abs(), below) * total(relevance), s) for s in sums]
    return [part * factor for part, factor in zip(parts, factors, strict=True)]
