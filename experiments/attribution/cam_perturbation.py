"""Class activation maps whose weights come from changing the input or the features.

Parameters that they share are explained in `cam_methods`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.attribution.registry import SPATIAL, method
from experiments.randomness import SampleGenerators
from experiments.specs import Count, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution import activations
    from experiments.attribution.batch import Batch
    from experiments.models import structure, tail
else:
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")
    activations = lazy.load("experiments.attribution.activations")
    structure = lazy.load("experiments.models.structure")
    tail = lazy.load("experiments.models.tail")

Upsample = Literal["linear", "aligned", "nearest"]


@method(
    "score_cam", library="assay", peer="grad-cam", family="cam",
    passes="(C + 1) F, shared by targets", models=SPATIAL, source="Wang et al. 2020",
)  # fmt: skip
def score_cam(
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
    weights: Literal["softmax", "increase"] = "softmax",
) -> Tensor:
    """Channels weighted by the output when each, as a mask, is all that is left of the input.

    Wang et al. 2020, algorithm 1: Σ_k w_k A_k with s_k the explained output of
    H_k ⊙ x + (1 − H_k) ⊙ baseline, where H_k is A_k upsampled and scaled to [0, 1], and w the
    softmax of s over the channels; "increase": w_k = s_k − f(baseline), for one more forward pass
    of one row. A constant channel masks everything: H_k = 0.
    """
    outputs = batch.once(
        ("score-cam", layer, upsample),
        lambda: _masked_outputs(batch, layer, upsample),
        per_target=False,
    )
    scores = _explained(outputs, batch.target)
    if weights == "softmax":
        scores = scores.softmax(1)
    else:
        nothing = batch.baseline_outputs().expand(len(batch), -1)
        scores = scores - passes.selected(nothing, batch.target)[:, None]
    return activations.weighted(batch, layer, scores, relu, upsample)


def _masked_outputs(batch: Batch, layer: str | None, how: Upsample) -> Tensor:
    """All outputs [B, C, K] of the inputs seen through each channel of the layer."""
    features, x = activations.features(batch, layer), batch.x
    size = structure.places(x.shape[1:])

    def masked(channels: range) -> tuple[Tensor, ...]:
        part = features[:, channels.start : channels.stop]
        masks = _scaled(activations.upsampled(part, size, how), len(size))
        masks = masks.unsqueeze(2) if x.ndim > 2 else masks
        return (batch.baseline + masks * (x - batch.baseline)[:, None],)

    return activations.in_steps(batch, features.shape[1], masked, batch.model)


@method(
    "ablation_cam", library="assay", peer="grad-cam", family="cam",
    passes="1 F + C F of the head (1 F + B of the head if it is affine)",
    models=SPATIAL, source="Desai & Ramaswamy 2020",
)  # fmt: skip
def ablation_cam(
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
    relative: bool = False,
) -> Tensor:
    """Channels weighted by the fall of the output when each is set to zero.

    Desai & Ramaswamy 2020: Σ_k w_k A_k with w_k = f(x) − f(x; A_k = 0). The
    published weights are `relative`, divided by f(x), which turns the map over where f(x) < 0
    (and makes it zero where f(x) = 0). Only the part of the network behind the layer runs
    (where a residual runs past the layer, what is before it runs once more); where that part is
    affine, as after global average pooling, w_k = Σ_i G_ki A_ki without any run.
    """
    falls = batch.once(("ablation", layer), lambda: _falls(batch, layer))
    if relative:
        whole = batch.selected()[:, None]
        falls = torch.where(whole == 0, 0, falls / whole)
    return activations.weighted(batch, layer, falls, relu, upsample)


def _falls(batch: Batch, layer: str | None) -> Tensor:
    """f(x) − f(x; channel k zero), [B, C]."""
    found = activations.layer_of(batch, layer)
    axis = found.site.channels
    if tail.tail_of(batch.model, found.site, batch.x[:1]).affine:
        effect = found.output * activations.layer_gradient(batch, layer)
        return effect.movedim(axis, 1).flatten(2).sum(2)
    outputs = batch.once(
        ("ablated outputs", layer), lambda: _ablated_outputs(batch, layer), per_target=False
    )
    return batch.selected()[:, None] - _explained(outputs, batch.target)


def _ablated_outputs(batch: Batch, layer: str | None) -> Tensor:
    """All outputs [B, C, K] without each channel of the layer."""
    found = activations.layer_of(batch, layer)
    axis, rest = found.site.channels, tail.tail_of(batch.model, found.site, batch.x[:1])
    needed: tuple[Tensor, ...] = ()
    if rest.needed is not None:
        with torch.no_grad():
            needed = passes.in_passes(rest.needed, batch.model, batch.x)

    def ablated(channels: range) -> tuple[Tensor, ...]:
        rows = found.output[:, None].repeat(1, len(channels), *[1] * (found.output.ndim - 1))
        for row, channel in enumerate(channels):
            rows[:, row].select(axis, channel).zero_()
        before = [t[:, None].expand(-1, len(channels), *t.shape[1:]) for t in (batch.x, *needed)]
        return before[0], rows, *before[1:]

    return activations.in_steps(batch, found.output.shape[axis], ablated, rest.run)


@method(
    "opti_cam", library="assay", family="cam", passes="1 F + `steps` FB", models=SPATIAL,
    source="Zhang et al. 2024",
)  # fmt: skip
def opti_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    layer: str | None = None,
    upsample: Upsample = "linear",
    steps: Count = 50,
    lr: Positive = 0.1,
    loss: Literal["plain", "absolute"] = "plain",
) -> Tensor:
    """The mask, a mixture of channels, that keeps the output highest: found by optimisation.

    Opti-CAM (Zhang et al. 2024): S(u) is Σ_k softmax(u)_k ReLU(A_k), upsampled and scaled
    to [0, 1]; Adam, from equal weights and for each sample by itself, lowers
    f(x) − f(S ⊙ x + (1 − S) ⊙ baseline), or its absolute value. In [0, 1]; zero where no channel
    is active. The objective has kinks, and each step adds to the rounding of those before: in
    float32, two machines may differ by some percent after 50 steps.
    """
    features = activations.features(batch, layer).clamp(min=0)
    size = structure.places(x.shape[1:])
    weights = torch.full(features.shape[:2], 0.5, dtype=x.dtype, device=x.device)
    weights.requires_grad_()
    optimiser = torch.optim.Adam([weights], lr=lr)
    whole = batch.selected()

    def mask() -> Tensor:
        mixed = torch.einsum("bc,bc...->b...", weights.softmax(1), features)[:, None]
        return _scaled(activations.upsampled(mixed, size, upsample), len(size))

    with torch.enable_grad():
        for _ in range(steps):
            seen = mask()
            masked = baseline + (seen if x.ndim > 2 else seen[:, 0]) * (x - baseline)
            gradient, outputs = passes.gradients(model, masked.detach(), target)
            if loss == "absolute":
                fall = whole - passes.selected(outputs, target)
                gradient = gradient * fall.sign().view(-1, *[1] * (x.ndim - 1))
            (weights.grad,) = torch.autograd.grad(masked, weights, -gradient)
            optimiser.step()
    with torch.no_grad():
        found = mask()
    return found.expand_as(x) if x.ndim > 2 else found[:, 0]


def _explained(outputs: Tensor, target: Tensor) -> Tensor:
    """The explained number [B, C] of outputs [B, C, K]."""
    count = outputs.shape[1]
    rows = passes.selected(outputs.flatten(0, 1), target.repeat_interleave(count, 0))
    return rows.unflatten(0, (-1, count))


def _scaled(masks: Tensor, axes: int) -> Tensor:
    """Masks scaled to [0, 1] over their last `axes`; constant ones become 0."""
    over = tuple(range(-axes, 0))
    low, high = masks.amin(over, keepdim=True), masks.amax(over, keepdim=True)
    extent = high - low
    return (masks - low) / torch.where(extent > 0, extent, 1)
