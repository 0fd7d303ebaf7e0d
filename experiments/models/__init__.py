"""Architectures by name.

    model = build({"name": "andor_cnn", "channels": 16}, inputs=8, classes=2, seed=0)

Every model is an nn.Module whose `forward(x[B, D])` gives logits [B, C], and that has
`kind` ("cnn" or "transformer"), `cam_layer` (the module whose activations the CAM methods read)
and `cam_reshape` (those activations as [B, channels, D], one position per input).
Checking a specification imports no torch; building a model does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from experiments import lazy, specs
from experiments.messages import unknown
from experiments.randomness import derive_seed, isolated_rng
from experiments.specs import Count, Parameter, Positive, Probability

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = lazy.load("torch")

Spec = str | Mapping[str, Any]
Preset = Literal["fixed", "paper"]


@dataclass(frozen=True)
class Architecture:
    """A model by name: `function(inputs, classes, **parameters)` makes one, unseeded."""

    name: str
    kind: str
    function: Callable[..., nn.Module]
    parameters: Mapping[str, Parameter]

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().partition("\n")[0]


_architectures: dict[str, Architecture] = {}


def architecture(name: str, *, kind: str) -> Callable[[Callable[..., nn.Module]], Any]:
    """Registers `function(inputs, classes, *, <parameters with defaults>)` as a model."""

    def register(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        declared = specs.parameters_of(function, skip=())
        _architectures[name] = Architecture(name, kind, function, declared)
        return function

    return register


def architectures() -> dict[str, Architecture]:
    """The known architectures by name."""
    return dict(_architectures)


def resolve(spec: Spec) -> tuple[Architecture, dict[str, Any]]:
    """The architecture and the checked parameters (only those given) of a specification.

    A name with ":" is the dotted path of a function of the same signature.
    Raises ValueError, one line, for an unknown name, an unknown parameter or a wrong type.
    """
    name, given = specs.split(spec, "model")
    if ":" in name:
        function = specs.load(name, "model")
        if not callable(function):
            raise ValueError(f"model {name!r} is not a function")
        kind = getattr(function, "kind", "custom")
        found = Architecture(name, kind, function, specs.parameters_of(function, skip=()))
    elif name in _architectures:
        found = _architectures[name]
    else:
        raise ValueError(unknown("model", name, _architectures))
    return found, specs.check(f"model {name!r}", found.parameters, given)


def build(
    spec: Spec, *, inputs: int, classes: int, seed: int, dtype: torch.dtype | None = None
) -> nn.Module:
    """A freshly initialised model, on the CPU, in training mode.

    The weights are drawn in float32 and then cast, so that a seed means the same weights in
    every precision (`dtype`, float32 by default). The global random state is left as it was.
    Raises ValueError as `resolve` does.
    """
    found, given = resolve(spec)
    with isolated_rng(derive_seed("weights", found.name, seed)):
        model = found.function(inputs, classes, **given)
    return model.to(dtype or torch.float32)


@architecture("andor_cnn", kind="cnn")
def andor_cnn(
    inputs: int,
    classes: int,
    *,
    channels: Count = 8,
    layers: Count = 2,
    skip: bool = True,
    batch_norm: bool = True,
    preset: Preset = "fixed",
) -> nn.Module:
    """Small residual CNN for logical formulas (Schwenke & Atzmueller 2024).

    `preset: paper` is the network that the original code builds: the second convolution of a
    block has no effect, and `skip` and `batch_norm` concern the first block only.
    """
    from experiments.models.andor import AndorCNN

    return AndorCNN(inputs, classes, channels, layers, skip, batch_norm, preset == "paper")


@architecture("andor_transformer", kind="transformer")
def andor_transformer(
    inputs: int,
    classes: int,
    *,
    width: Count = 32,
    heads: Count = 4,
    layers: Count = 2,
    feedforward: Positive = 0.5,
    attention_dropout: Probability = 0.0,
    cls: bool = False,
    preset: Preset = "fixed",
) -> nn.Module:
    """Post-norm transformer encoder for logical formulas (Schwenke & Atzmueller 2024).

    Both presets are the same network: what the original code has besides is never used (at 8
    inputs and width 32, 9,600 of 20,962 parameters).
    """
    from experiments.models.andor import AndorTransformer

    return AndorTransformer(
        inputs, classes, width, heads, layers, feedforward, attention_dropout, cls
    )
