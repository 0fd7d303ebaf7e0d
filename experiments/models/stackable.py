"""K models of one architecture as one function, [K, B, ...] -> [K, B, C].

A network this small keeps a processor busy with dispatch, not arithmetic. Stacked, each layer is
one batched matrix product for all models. The forms below say how: a form computes what a plain
module computes, for all models at once, from parameters [K, ...] that keep the plain module's
names and shapes. The plain module is the reference; a module without a form goes through
`torch.func.vmap`, which needs no form and is slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from experiments.models import andor
from experiments.models.noise import Noise

functional = torch.nn.functional


class Scope:
    """The stacked parameters and buffers of one module; `scope / name` are those of a child.

    Layers are in training mode if there is noise for their dropout, else in eval mode.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], noise: Noise | None, prefix: str = ""
    ) -> None:
        self.tensors = tensors
        self.noise = noise
        self.prefix = prefix

    def __truediv__(self, child: str) -> Scope:
        return Scope(self.tensors, self.noise, f"{self.prefix}{child}.")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]


Form = Callable[[Any, Scope, Tensor], Tensor]
_forms: dict[type[nn.Module], tuple[Form, Callable[[Any], bool]]] = {}
_absorbed = {nn.ReLU, nn.Softmax, nn.Flatten, andor.Sum}  # the form of the parent does their work


def form(
    kind: type[nn.Module], covers: Callable[[Any], bool] = lambda module: True
) -> Callable[[Form], Form]:
    """Registers `function(module, scope, x)` as the stacked form of a type of modules.

    `module` is one of the models, to read its settings from, never its parameters; `covers` says
    whether the form is right for these settings.
    """

    def register(function: Form) -> Form:
        _forms[kind] = (function, covers)
        return function

    return register


def has_form(model: nn.Module) -> bool:
    """Whether the model and all in it have forms: their own types, not only base classes."""
    return type(model) in _forms and all(
        type(module) in _absorbed or (type(module) in _forms and _forms[type(module)][1](module))
        for module in model.modules()
    )


def apply(module: nn.Module, scope: Scope, x: Tensor) -> Tensor:
    """What `module` computes, for every model of the stack."""
    return _forms[type(module)][0](module, scope, x)


@form(nn.Sequential)
def _sequential(module: nn.Sequential, scope: Scope, x: Tensor) -> Tensor:
    for name, child in module.named_children():
        x = apply(child, scope / name, x)
    return x


@form(nn.Linear)
def _linear(module: nn.Linear, scope: Scope, x: Tensor) -> Tensor:
    """[K, ..., in] -> [K, ..., out]"""
    weight = scope["weight"].mT
    rows = x.flatten(1, -2)
    if module.bias is None:
        y = rows @ weight
    else:
        y = torch.baddbmm(scope["bias"][:, None], rows, weight)
    return y.unflatten(1, x.shape[1:-1])


@form(nn.LayerNorm, lambda module: len(module.normalized_shape) == 1 and module.bias is not None)
def _layer_norm(module: nn.LayerNorm, scope: Scope, x: Tensor) -> Tensor:
    """[K, ..., d] -> [K, ..., d]"""
    across = (slice(None), *[None] * (x.ndim - 2))
    normal = functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    return normal * scope["weight"][across] + scope["bias"][across]


@form(nn.Dropout)
def _dropout(module: nn.Dropout, scope: Scope, x: Tensor) -> Tensor:
    return x if scope.noise is None else scope.noise.dropout(x, module.p)


# ---- AndorCNN: activations are [K, channels, B, D], so that a row of a matrix product is long ----


class _Convolution(torch.autograd.Function):
    """Convolution along the last axis with zero padding, as one matrix product per model.

    x [K, C, B, D], weight [K, O, C · width] -> [K, O, B, D]; the width is odd. Neighbours are
    found by shifting all of B · D at once, in long runs; what came from the next sample is zeroed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, width: int) -> Tensor:
        positions = x.shape[2:]
        x = x.flatten(2)
        columns = x
        if width > 1:
            taps = x.new_empty(*x.shape[:2], width, x.shape[2])
            for tap, (to, source) in enumerate(_shifts(width, x.shape[2])):
                taps[:, :, tap, to] = x[:, :, source]
            columns = _without_neighbours(taps, positions).flatten(1, 2)
        ctx.save_for_backward(columns, weight)
        ctx.width = width
        y = x.new_empty(*weight.shape[:2], *positions)
        torch.bmm(weight, columns, out=y.flatten(2))
        return y  # no view: what follows works in place

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        columns, weight = ctx.saved_tensors
        positions = gradients[0].shape[2:]
        gradient = gradients[0].flatten(2)
        for_weight = torch.bmm(gradient, columns.mT)
        if not ctx.needs_input_grad[0]:
            return None, for_weight, None
        for_x = torch.bmm(weight.mT, gradient)
        if ctx.width > 1:
            taps = _without_neighbours(for_x.unflatten(1, (-1, ctx.width)), positions)
            for_x = taps[:, :, ctx.width // 2].clone()
            for tap, (to, source) in enumerate(_shifts(ctx.width, taps.shape[3])):
                if tap != ctx.width // 2:
                    for_x[:, :, source] += taps[:, :, tap, to]
        return for_x.unflatten(2, positions), for_weight, None


def _shifts(width: int, length: int) -> Iterator[tuple[slice, slice]]:
    """For every tap, the places that read, and those that they read: tap - width // 2 further."""
    for shift in range(-(width // 2), width // 2 + 1):
        first, last = max(0, -shift), max(0, length - max(0, shift))
        yield slice(first, last), slice(first + shift, last + shift)


def _without_neighbours(taps: Tensor, positions: torch.Size) -> Tensor:
    """Zeroes, in place, in taps [K, C, width, B · D] what lies outside of the sample."""
    half, length = taps.shape[2] // 2, positions[1]
    samples = taps.unflatten(3, positions)
    for shift in range(1, half + 1):
        samples[:, :, half - shift, :, :shift] = 0
        samples[:, :, half + shift, :, max(0, length - shift) :] = 0
    return taps


def _along_one_axis(module: nn.Conv2d) -> bool:
    width = module.kernel_size[0]
    return (
        (width % 2, module.kernel_size[1]) == (1, 1)
        and module.padding == (width // 2, 0)
        and module.stride == module.dilation == (1, 1)
        and (module.groups, module.padding_mode) == (1, "zeros")
    )


@form(nn.Conv2d, _along_one_axis)
def _convolution(module: nn.Conv2d, scope: Scope, x: Tensor) -> Tensor:
    """[K, C, B, D] -> [K, O, B, D]: a convolution of an image of width 1, of odd kernel [k, 1]."""
    weight = scope["weight"]
    y: Tensor = _Convolution.apply(x, weight.flatten(2), module.kernel_size[0])
    return y if module.bias is None else y + scope["bias"][:, :, None, None]


def _usual_batch_norm(module: nn.BatchNorm2d) -> bool:
    return module.affine and module.track_running_stats and module.momentum is not None


@form(nn.BatchNorm2d, _usual_batch_norm)
def _batch_norm(module: nn.BatchNorm2d, scope: Scope, x: Tensor) -> Tensor:
    """[K, C, B, D] -> [K, C, B, D]: one batch norm of K · C channels."""
    training = scope.noise is not None
    if training:
        scope["num_batches_tracked"].add_(1)
    y = functional.batch_norm(
        x.flatten(2).flatten(0, 1)[None],
        scope["running_mean"].view(-1),
        scope["running_var"].view(-1),
        scope["weight"].reshape(-1),
        scope["bias"].reshape(-1),
        training,
        module.momentum or 0.0,
        module.eps,
    )
    return y.view(x.shape)


@form(andor.ResidualBlock)
def _residual(module: andor.ResidualBlock, scope: Scope, x: Tensor) -> Tensor:
    y = apply(module.first, scope / "first", x).relu_()
    y = apply(module.second, scope / "second", y)
    if module.skip is not None:
        y = y + apply(module.skip, scope / "skip", x)
    elif not len(module.second):  # the paper's network: nothing has happened since the first ReLU
        return y
    return y.relu_()


@form(andor.AndorCNN)
def _cnn(module: andor.AndorCNN, scope: Scope, x: Tensor) -> Tensor:
    """[K, B, D] -> [K, B, C]"""
    y = apply(module.blocks, scope / "blocks", x[:, None])
    y = apply(module.last_conv, scope / "last_conv", y)
    return apply(module.head, scope / "head", y.transpose(1, 2).flatten(2))


# ---- AndorTransformer: activations are [K, B, L, d] ----------------------------------------------


@form(andor.SelfAttention)
def _attention(module: andor.SelfAttention, scope: Scope, x: Tensor) -> Tensor:
    split = (module.heads, x.shape[-1] // module.heads)
    query, key = (
        apply(module.query_key, scope / "query_key", x)
        .unflatten(-1, (2, *split))
        .permute(3, 0, 1, 4, 2, 5)
    )
    value = apply(module.value, scope / "value", x).unflatten(-1, split).transpose(2, 3)
    # Transposed: a softmax along the short last axis is eight times slower on a CPU.
    scores = key @ (query / math.sqrt(split[1])).mT
    weights = apply(module.dropout, scope / "dropout", scores.softmax(-2).mT)
    return apply(module.output, scope / "output", (weights @ value).transpose(2, 3).flatten(-2))


@form(andor.EncoderBlock)
def _encoder(module: andor.EncoderBlock, scope: Scope, x: Tensor) -> Tensor:
    mixed = apply(module.attention, scope / "attention", x)
    x = apply(module.attention_norm, scope / "attention_norm", x + mixed)
    hidden = apply(module.expand, scope / "expand", x).relu_()
    y = apply(module.contract, scope / "contract", hidden)
    return apply(module.feedforward_norm, scope / "feedforward_norm", x + y)


@form(andor.AndorTransformer)
def _transformer(module: andor.AndorTransformer, scope: Scope, x: Tensor) -> Tensor:
    """[K, B, D] -> [K, B, C]"""
    tokens = x[..., None] + scope["positions"][:, None]
    if module.cls is not None:
        cls = scope["cls"].expand(-1, x.shape[1], -1, -1)
        tokens = torch.cat([cls, tokens], 2)
    y = apply(module.blocks, scope / "blocks", tokens)
    return apply(module.head, scope / "head", y.flatten(2))
