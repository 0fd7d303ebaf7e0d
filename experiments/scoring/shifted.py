"""A copy of a model that takes shifted inputs, and computes the same."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from experiments import passes
from experiments.attribution.batch import Batch

FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Padded(nn.Module):
    """Pads with a number: what was a zero at the border is a shifted one."""

    def __init__(self, sides: list[int], value: float) -> None:
        super().__init__()
        self.sides, self.value = sides, value

    def forward(self, x: Tensor) -> Tensor:
        return nnf.pad(x, self.sides, value=self.value)


def batch(of: Batch, shift: float, baseline: Literal["kept", "shifted"]) -> Batch:
    """The samples at x + shift with the model that makes up for it; random draws stay the same.

    Raises ValueError if no such model is found; found is one whose outputs are the same.
    """
    model = compensated(of.model, of.x[:1], shift)
    x = of.x + shift
    outputs = passes.outputs(model, x)
    largest = of.outputs().abs().max().clamp(min=1e-6)
    if not torch.allclose(outputs, of.outputs(), rtol=0, atol=float(1e-3 * largest)):
        raise _impossible("its bias does not undo a shift of the input exactly")
    return Batch(
        model,
        x,
        of.target,
        baseline=of.baseline + shift if baseline == "shifted" else of.baseline,
        seed=of.seed,
        indices=of.indices,
        truth=of.truth,
        purpose=of.purpose,
    )


def compensated(model: nn.Module, row: Tensor, shift: float) -> nn.Module:
    """A copy of `model` for inputs that are higher by `shift`: its first layer's bias b becomes
    b − W · shift, and zeros that it pads with become `shift`."""
    name = _first_layer(model, row)
    made = copy.deepcopy(model)
    layer: Any = made.get_submodule(name)
    weight: Tensor = layer.weight
    lost = shift * weight.sum(tuple(range(1, weight.ndim)))
    bias = -lost if layer.bias is None else layer.bias - lost
    layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    if not isinstance(layer, nn.Linear) and layer.padding_mode == "zeros":
        sides = list(layer._reversed_padding_repeated_twice)
        if any(sides):
            layer.padding = (0,) * (weight.ndim - 2)
            layer._reversed_padding_repeated_twice = [0] * len(sides)
            layer = nn.Sequential(Padded(sides, shift), layer)
            if not name:
                return layer
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, layer)
    return made


def _first_layer(model: nn.Module, row: Tensor) -> str:
    """The name of the first layer with weights that runs, if it sees the input and nothing else."""
    seen: list[tuple[str, Tensor]] = []

    def entered(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            seen.append((name, arguments[0]))

        return hook

    handles = [
        module.register_forward_hook(entered(name))
        for name, module in model.named_modules()
        if not any(module.children()) and next(module.parameters(recurse=False), None) is not None
    ]
    try:
        with torch.no_grad():
            model(row)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise _impossible("it has no layer with weights")
    name, given = seen[0]
    if not isinstance(model.get_submodule(name), FIRST):
        kind = type(model.get_submodule(name)).__name__
        raise _impossible(f"its first layer is a {kind}, not linear or a convolution")
    if given.numel() != row.numel() or not given.flatten().equal(row.flatten()):
        raise _impossible("its first layer does not see the input as it is")
    return name


def _impossible(reason: str) -> ValueError:
    return ValueError(f"score 'input_invariance' is not defined for this model: {reason}")
