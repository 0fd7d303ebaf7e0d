"""A zennit composite for transformers: conservative propagation (Ali et al. 2022)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.core import Hook, RemovableHandle, RemovableHandleList


class ForwardHook(Hook):
    """A hook that replaces a module's output; the gradient is that of the replacement."""

    def register(self, module: nn.Module) -> RemovableHandleList:
        return RemovableHandleList(
            [RemovableHandle(self), module.register_forward_hook(self.forward)]
        )


class FixedAttention(ForwardHook):
    """The attention weights as constants: no gradient through the softmax (AH rule)."""

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: Any) -> Tensor:
        return output.detach()


class FixedScale(ForwardHook):
    """Layer norm with its standard deviation as a constant (LN rule)."""

    def forward(self, module: Any, input: tuple[Tensor, ...], output: Any) -> Tensor:
        axes = tuple(range(-len(module.normalized_shape), 0))
        x = input[0]
        deviation = (x.var(axes, unbiased=False, keepdim=True) + module.eps).sqrt().detach()
        normed = (x - x.mean(axes, keepdim=True)) / deviation
        scaled = normed if module.weight is None else normed * module.weight
        return scaled if module.bias is None else scaled + module.bias


def conservative_propagation() -> LayerMapComposite:
    """Gradients inside this composite are those of Ali et al. 2022, section 4."""
    return LayerMapComposite([(nn.Softmax, FixedAttention()), (nn.LayerNorm, FixedScale())])
