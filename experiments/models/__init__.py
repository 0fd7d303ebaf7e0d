"""Architectures by name.

    model = build({"name": "andor_cnn", "channels": 16}, inputs=8, classes=2, seed=0)
    model = build("smerf_simple_cnn", inputs=(3, 64, 64), classes=2, seed=0)

Every model is an nn.Module whose `forward(x)` gives logits [B, C] of vectors [B, D] or of images
[B, channels, H, W], and that has `kind` ("cnn" or "transformer") and `cam_layer` (the module whose
activations the CAM methods read). Where those are not [B, channels, h, w], with a grid h×w that
covers the image, `cam_reshape` makes them [B, channels, D], one position per input.
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
Inputs = int | tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A model by name: `function(inputs, classes, **parameters)` makes one, unseeded.

    `takes` says what it is a model of: "vectors", whose length `inputs` is, "images", whose shape
    (channels, height, width) it is, or "anything", which a model from elsewhere has to know.
    """

    name: str
    kind: str
    function: Callable[..., nn.Module]
    parameters: Mapping[str, Parameter]
    takes: Literal["vectors", "images", "anything"] = "anything"

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().partition("\n")[0]


_architectures: dict[str, Architecture] = {}


def architecture(
    name: str, *, kind: str, takes: Literal["vectors", "images"] = "vectors"
) -> Callable[[Callable[..., nn.Module]], Any]:
    """Registers `function(inputs, classes, *, <parameters with defaults>)` as a model."""

    def register(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        declared = specs.parameters_of(function, skip=())
        _architectures[name] = Architecture(name, kind, function, declared, takes)
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
    spec: Spec, *, inputs: Inputs, classes: int, seed: int, dtype: torch.dtype | None = None
) -> nn.Module:
    """A freshly initialised model, on the CPU, in training mode.

    `inputs` is the length D of the vectors it takes, or the shape (channels, H, W) of the images.
    The weights are drawn in float32 and then cast, so that a seed means the same weights in
    every precision (`dtype`, float32 by default). The global random state is left as it was.
    Raises ValueError as `resolve` does, and for inputs that are none for this architecture.
    """
    found, given = resolve(spec)
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    if len(shape) != {"vectors": 1, "images": 3}.get(found.takes, len(shape)):
        raise ValueError(f"model {found.name!r} takes {found.takes}, not inputs of shape {shape}")
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


@architecture("smerf_simple_cnn", kind="cnn", takes="images")
def smerf_simple_cnn(inputs: tuple[int, int, int], classes: int) -> nn.Module:
    """Three strided convolutions and a dense layer: SMERF's simple tasks (Kim et al. 2022)."""
    from experiments.models import smerf

    return smerf.strided_cnn("smerf_simple_cnn", inputs, classes, (32, 64, 64), (200,))


@architecture("smerf_complex_cnn", kind="cnn", takes="images")
def smerf_complex_cnn(inputs: tuple[int, int, int], classes: int) -> nn.Module:
    """Four strided convolutions and two dense layers: SMERF's complex tasks (Kim et al. 2022)."""
    from experiments.models import smerf

    return smerf.strided_cnn("smerf_complex_cnn", inputs, classes, (64, 128, 256, 64), (200, 200))


@architecture("smerf_alexnet", kind="cnn", takes="images")
def smerf_alexnet(
    inputs: tuple[int, int, int], classes: int, *, preset: Preset = "fixed"
) -> nn.Module:
    """AlexNet with batch norms, from scratch, as SMERF has it (Kim et al. 2022).

    `preset: paper` has a batch norm on the logits, too, as the original code has.
    """
    from experiments.models import smerf

    return smerf.alexnet(inputs, classes, logits_norm=preset == "paper")


@architecture("smerf_vgg16", kind="cnn", takes="images")
def smerf_vgg16(
    inputs: tuple[int, int, int],
    classes: int,
    *,
    weights: str | None = None,
    preset: Preset = "fixed",
) -> nn.Module:
    """A trained dense head on the frozen convolutions of VGG16 (Kim et al. 2022).

    `weights` is the file of an ImageNet VGG16, in torchvision's layout; nothing is downloaded,
    and without one the convolutions are random. `preset: paper` leaves out the normalisation of
    colours that these weights were trained with, as the original code does.
    """
    from experiments.models import smerf

    return smerf.vgg16(inputs, classes, weights=weights, normalise=preset == "fixed")
