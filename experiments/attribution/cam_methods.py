"""Class activation maps: the features of a layer, weighted by what they mean for a class.

A [B, C, *grid] are the activations of a layer and G the gradient of the explained output there.
All methods of this module together cost one forward pass, and one backward pass of the part of
the network after the layer. Each is checked against pytorch-grad-cam, which computes them on the
CPU in numpy, one by one, cuts off negative evidence, and scales every map to [0, 1].

Parameters that they share:
    layer: dotted name of the module that is read; by default the last features that have a place
        (see `experiments.models.structure.site`).
    upsample: from the grid to the places of the input: "linear" (bilinear in images), "aligned"
        (linear, the corners of both aligned) or "nearest". All channels of an input get the same.
    relu: whether negative evidence is cut off, as in most publications, before upsampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.attribution import (  # noqa: F401 they register the rest of the family
    cam_backward,
    cam_components,
    cam_perturbation,
)
from experiments.attribution.registry import SPATIAL, method
from experiments.randomness import SampleGenerators

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments.attribution import activations
    from experiments.attribution.batch import Batch
else:
    torch = lazy.load("torch")
    activations = lazy.load("experiments.attribution.activations")

Upsample = Literal["linear", "aligned", "nearest"]
SHARED_PASS = "1 F + B of the head, shared by the family"


@method(
    "grad_cam", library="assay", peer="grad-cam", family="cam", passes=SHARED_PASS, models=SPATIAL,
    source="Selvaraju et al. 2017",
)  # fmt: skip
def grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    relu: bool = False,
    layer: str | None = None,
    upsample: Upsample = "linear",
) -> Tensor:
    """Channels weighted by their mean gradient (Selvaraju et al. 2017, equations 1 and 2).

    Σ_k w_k A_k with w_k the mean of G_k over the grid. The published map is that with relu=True;
    without, negative evidence is kept. After global average pooling and a linear layer it is CAM
    (Zhou et al. 2016) divided by the number of cells.
    """
    weights = activations.feature_gradients(batch, layer).flatten(2).mean(2)
    return activations.weighted(batch, layer, weights, relu, upsample)


@method(
    "grad_cam_plus_plus", library="assay", peer="grad-cam", family="cam", passes=SHARED_PASS,
    models=SPATIAL,
    source="Chattopadhyay et al. 2018",
)  # fmt: skip
def grad_cam_plus_plus(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    relu: bool = False,
    layer: str | None = None,
    upsample: Upsample = "linear",
) -> Tensor:
    """Channels weighted by higher-order gradients (Chattopadhyay et al. 2018, equation 19).

    w_k = Σ_i α_ki ReLU(G_ki) with α = G² / (2 G² + G³ Σ_j A_kj + 10⁻⁶), 0 where G = 0.
    The published map is that with relu=True; without, negative evidence is kept.
    """
    a, g = (t.flatten(2) for t in activations.both(batch, layer))
    squared = g * g
    alpha = squared / (2 * squared + a.sum(2, keepdim=True) * squared * g + 1e-6)
    weights = (torch.where(g == 0, 0, alpha) * g.clamp(min=0)).sum(2)
    return activations.weighted(batch, layer, weights, relu, upsample)


@method(
    "xgrad_cam", library="assay", peer="grad-cam", family="cam", passes=SHARED_PASS, models=SPATIAL,
    source="Fu et al. 2020",
)  # fmt: skip
def xgrad_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    relu: bool = False,
    layer: str | None = None,
    upsample: Upsample = "linear",
) -> Tensor:
    """Channels weighted by their gradients, averaged by activation (Fu et al. 2020, XGrad-CAM).

    w_k = Σ_i G_ki A_ki / Σ_i A_ki, the sum moved away from 0 by 10⁻⁷: 0 for a dead channel.
    """
    a, g = (t.flatten(2) for t in activations.both(batch, layer))
    total = a.sum(2)
    weights = (g * a).sum(2) / torch.where(total < 0, total - 1e-7, total + 1e-7)
    return activations.weighted(batch, layer, weights, relu, upsample)


@method(
    "layer_cam", library="assay", peer="grad-cam", family="cam", passes=SHARED_PASS, models=SPATIAL,
    source="Jiang et al. 2021",
)  # fmt: skip
def layer_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    relu: bool = False,
    layer: str | None = None,
    upsample: Upsample = "linear",
) -> Tensor:
    """Activations weighted, cell by cell, by their positive gradients: Σ_k ReLU(G_k) A_k.

    Jiang et al. 2021. Meant for layers of any depth.
    """
    a, g = activations.both(batch, layer)
    return activations.placed(batch, (g.clamp(min=0) * a).sum(1), relu, upsample)


@method(
    "hires_cam", library="assay", peer="grad-cam", family="cam", passes=SHARED_PASS, models=SPATIAL,
    source="Draelos & Carin 2020",
)  # fmt: skip
def hires_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    relu: bool = False,
    layer: str | None = None,
    upsample: Upsample = "linear",
) -> Tensor:
    """Activation times gradient, summed over channels (Draelos & Carin 2020, equation 8).

    Σ_k G_k A_k. Before a linear head its sum over the grid is the logit without the bias.
    """
    a, g = activations.both(batch, layer)
    return activations.placed(batch, (g * a).sum(1), relu, upsample)


@method(
    "grad_cam_elementwise", library="assay", peer="grad-cam", family="cam", passes=SHARED_PASS,
    models=SPATIAL,
    source="Gildenblat et al. 2021",
)  # fmt: skip
def grad_cam_elementwise(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    layer: str | None = None,
    upsample: Upsample = "linear",
) -> Tensor:
    """The positive part of activation times gradient, summed over channels: Σ_k ReLU(G_k A_k).

    As in pytorch-grad-cam; never negative.
    """
    a, g = activations.both(batch, layer)
    return activations.placed(batch, (g * a).clamp(min=0).sum(1), False, upsample)


@method("fake_cam", library="assay", family="control", passes="0", source="Poppi et al. 2021")
def fake_cam(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """1 everywhere but for the first (top left) position, which is 0 (Poppi et al. 2021).

    It explains nothing, and scores that multiply the input by the map cannot tell.
    """
    maps = torch.ones_like(x)
    first = (slice(None), slice(None)) if x.ndim > 2 else (slice(None),)
    maps[(*first, *(0 for _ in range(x.ndim - len(first))))] = 0
    return maps
