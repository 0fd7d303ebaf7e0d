"""Class activation maps, computed by pytorch-grad-cam.

The library's own pipeline cuts off negative evidence, scales every map to [0, 1] and resizes it
as an image. Here its functions for the weights and the map get the activations and gradients of
the model's `cam_layer`, laid out by `cam_reshape` as one position per input; the map stays raw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments import lazy
from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators

if TYPE_CHECKING:
    import pytorch_grad_cam
    import torch
    from torch import Tensor, nn
else:
    torch = lazy.load("torch")
    pytorch_grad_cam = lazy.load("pytorch_grad_cam")


@method("grad_cam", library="grad-cam", family="cam", passes="1 F + B of the head")
def grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    relu: bool = False,
) -> Tensor:
    """Channels weighted by their mean gradient (Selvaraju et al. 2017, equations 1 and 2).

    The published map is that with relu=True; without, negative evidence is kept.
    """
    return _cam(pytorch_grad_cam.GradCAM, model, x, target, relu)


@method("grad_cam_plus_plus", library="grad-cam", family="cam", passes="1 F + B of the head")
def grad_cam_plus_plus(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    relu: bool = False,
) -> Tensor:
    """Channels weighted by higher-order gradients (Chattopadhyay et al. 2018, equation 19).

    The published map is that with relu=True; without, negative evidence is kept.
    """
    return _cam(pytorch_grad_cam.GradCAMPlusPlus, model, x, target, relu)


@method("hires_cam", library="grad-cam", family="cam", passes="1 F + B of the head")
def hires_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    relu: bool = False,
) -> Tensor:
    """Activation times gradient, summed over channels (Draelos & Carin 2020, equation 8)."""
    return _cam(pytorch_grad_cam.HiResCAM, model, x, target, relu)


def _cam(kind: Any, model: Any, x: Tensor, target: Tensor, relu: bool) -> Tensor:
    activations, gradients = _activations_and_gradients(model, x, target)
    with kind(model, [model.cam_layer]) as cam:
        image = cam.get_cam_image(
            x, model.cam_layer, target, activations.cpu().numpy(), gradients.cpu().numpy(), False
        )
    maps = torch.from_numpy(image).to(x).squeeze(-1)
    return maps.clamp(min=0) if relu else maps


def _activations_and_gradients(model: Any, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Activations of the CAM layer and the gradient of the target's logit there, [B, C, D, 1].

    The backward pass ends at the layer: what lies before it needs no gradient.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = model.cam_layer.register_forward_hook(keep)
    try:
        logits = model(x)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), kept)
    as_image = [model.cam_reshape(tensor.detach())[..., None] for tensor in (kept[0], gradient)]
    return as_image[0], as_image[1]
