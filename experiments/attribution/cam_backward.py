"""Maps that join what a layer says with the gradient of the input: guided Grad-CAM, FullGrad.

Parameters that they share with other class activation maps are explained in `cam_methods`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.attribution.registry import RECTIFIED, method
from experiments.randomness import SampleGenerators

if TYPE_CHECKING:
    from torch import Tensor, nn

    from experiments.attribution import full_gradient
    from experiments.attribution.batch import Batch
else:
    full_gradient = lazy.load("experiments.attribution.full_gradient")

Upsample = Literal["linear", "aligned", "nearest"]


@method(
    "guided_grad_cam", library="assay", peer="captum", family="cam", models={"cnn"},
    passes="1 FB + 1 F + B of the head, shared with guided_backprop and the family",
    source="Selvaraju et al. 2017",
)  # fmt: skip
def guided_grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    relu: bool = True,
    layer: str | None = None,
    upsample: Upsample = "linear",
) -> Tensor:
    """Grad-CAM, cut off at zero, times guided backpropagation (Selvaraju et al. 2017, section 3.2).

    captum's GuidedGradCam is that with upsample="nearest".
    """
    where = {"name": "grad_cam", "relu": relu, "layer": layer, "upsample": upsample}
    return batch.maps(where) * batch.maps("guided_backprop")


@method(
    "full_grad", library="assay", peer="grad-cam", family="cam", passes="1 FB", models=RECTIFIED,
    aliases=("fullgrad",), source="Srinivas & Fleuret 2019",
)  # fmt: skip
def full_grad(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    absolute: bool = False,
    rescale: bool = False,
    unplaced: Literal["spread", "drop"] = "spread",
    upsample: Upsample = "linear",
) -> Tensor:
    """Input times gradient, plus bias times gradient of every layer at the place of its output.

    Srinivas & Fleuret 2019, equation 2: f(x) = Σ x ⊙ ∇f + Σ_layers Σ b ⊙ ∂f/∂b. Biases are those of
    convolutions, linear layers and batch norms (β − γ μ/σ). Those of convolutions and of the norms
    behind them are upsampled to the input, their sum kept, and shared out evenly over its channels;
    those of layers without places are `unplaced`: shared out over all of the input, or dropped. The
    map of a network of such layers, ReLUs and poolings then sums up to f(x).
    The published map is that with absolute=True (of each term), rescale=True (each channel of each
    layer scaled to [0, 1]; constant ones become 0) and unplaced="drop", summed over the input's
    channels.
    """
    maps, gradient, outputs = full_gradient.full_gradient_maps(
        model, x, target, absolute=absolute, rescale=rescale, spread=unplaced == "spread",
        upsample=upsample,
    )  # fmt: skip
    batch.once("gradient", lambda: gradient)
    batch.once("outputs", lambda: outputs, per_target=False)
    return maps
