"""The full gradient of a network: what its input and each of its biases add to an output."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from experiments import passes
from experiments.attribution.activations import Upsample, shared_out, upsampled
from experiments.models.structure import CONVOLUTIONS, places

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def full_gradient_maps(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    absolute: bool,
    rescale: bool,
    spread: bool,
    upsample: Upsample,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [B, ...], gradients [B, ...] of the explained output, and all outputs [B, K]: 1 FB.

    The parameters are those of the method `full_grad`; `spread`: biases without a place are
    shared out over the input.
    """

    def run(part: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = _BiasTerms(part, absolute, rescale, spread, upsample)
        with torch.enable_grad(), bias.watching(model):
            inputs = part.detach().requires_grad_()
            outputs = model(inputs)
            explained = passes.selected(outputs, classes).sum()
            (gradient,) = torch.autograd.grad(explained, inputs)
        own = _shaped(part * gradient, absolute, rescale, len(places(part.shape[1:])))
        return own + bias.maps(), gradient, outputs.detach()

    maps, gradient, outputs = passes.in_passes(run, model, x, target)
    return maps, gradient, outputs


def bias_of(module: nn.Module) -> Tensor | None:
    """What a layer adds to each of its channels [C] in eval mode, if it adds something."""
    if isinstance(module, NORMS):
        if module.running_mean is None or module.running_var is None:
            return None
        shift = -module.running_mean / (module.running_var + module.eps).sqrt()
        if module.affine:
            shift = shift * module.weight + module.bias
        return shift.detach()
    if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and module.bias is not None:
        return module.bias.detach()
    return None


class _BiasTerms:
    """Sums up bias times gradient of all layers during one backward pass."""

    def __init__(
        self, x: Tensor, absolute: bool, rescale: bool, spread: bool, upsample: Upsample
    ) -> None:
        self.x = x
        self.absolute, self.rescale, self.spread, self.upsample = (
            absolute, rescale, spread, upsample,
        )  # fmt: skip
        self.size = places(x.shape[1:])
        self.placed = x.new_zeros(len(x), 1, *self.size)
        self.unplaced = x.new_zeros(len(x))

    def watching(self, model: nn.Module) -> ExitStack:
        """Inside this context, a backward pass through `model` is watched."""
        stack = ExitStack()
        for module in model.modules():
            bias = bias_of(module)
            if bias is not None:
                stack.callback(module.register_forward_hook(self._hook(module, bias)).remove)
        return stack

    def _hook(self, module: nn.Module, bias: Tensor) -> Any:
        def forward(called: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: self._add(module, bias, gradient))

        return forward

    def _add(self, module: nn.Module, bias: Tensor, gradient: Tensor) -> None:
        axes = len(self.size)
        channels_last = isinstance(module, nn.Linear)
        while not channels_last and gradient.ndim > 2 + axes and gradient.shape[-1] == 1:
            gradient = gradient.squeeze(-1)
        has_place = not channels_last and gradient.ndim == 2 + axes
        if self.absolute:
            bias, gradient = bias.abs(), gradient.abs()
        if has_place and self.rescale:
            terms = bias.view(-1, *[1] * axes) * gradient
            terms = _shaped(terms, False, True, axes).sum(1, keepdim=True)
            self.placed += upsampled(terms, self.size, self.upsample)
        elif has_place:
            terms = torch.einsum("c,bc...->b...", bias, gradient)[:, None]
            self.placed += shared_out(terms, self.size, self.upsample)
        elif self.spread:
            last = gradient if channels_last else gradient.movedim(1, -1)
            self.unplaced += (last @ bias).reshape(len(last), -1).sum(1)

    def maps(self) -> Tensor:
        """[B, ...]: shared out evenly over the channels of each place."""
        everywhere = self.unplaced.view(-1, *[1] * (self.x.ndim - 1)) / self.x[0].numel()
        placed = self.placed / self.x.shape[1] if self.x.ndim > 2 else self.placed[:, 0]
        return placed + everywhere


def _shaped(terms: Tensor, absolute: bool, rescale: bool, axes: int) -> Tensor:
    """Terms [B, C, *grid] as they count: their absolute values, and scaled channel by channel."""
    terms = terms.abs() if absolute else terms
    if not rescale:
        return terms
    over = tuple(range(-axes, 0))
    low, high = terms.amin(over, keepdim=True), terms.amax(over, keepdim=True)
    return (terms - low) / torch.where(high > low, high - low, 1)
