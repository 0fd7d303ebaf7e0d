"""Attribution methods of captum, pytorch-grad-cam, shap and zennit against ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import captum.attr as captum
import pytorch_grad_cam as cams
import shap
import torch
import torch.nn.functional as F
import zennit.composites
from captum._utils.models.linear_model import SkLearnRidge
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm

from experiments import attribution
from peers.race import Compare, Contest, alike, same

STEPS, PATCH, SAMPLES = 50, 4, 200
CAMS = {
    "grad_cam": cams.GradCAM,
    "grad_cam_plus_plus": cams.GradCAMPlusPlus,
    "xgrad_cam": cams.XGradCAM,
    "layer_cam": cams.LayerCAM,
    "hires_cam": cams.HiResCAM,
    "grad_cam_elementwise": cams.GradCAMElementWise,
    "eigen_cam": cams.EigenCAM,
    "eigen_grad_cam": cams.EigenGradCAM,
    "fem": cams.FEM,
    "score_cam": cams.ScoreCAM,
    "ablation_cam": cams.AblationCAM,
    "full_grad": cams.FullGrad,
}
NOTES = {
    "full_grad": "theirs looks at other layers",
    "eigen_grad_cam": "the sign of a component is arbitrary",
}
PRESETS = {
    "lrp_epsilon_plus": "epsilon_plus",
    "lrp_epsilon_plus_flat": "epsilon_plus_flat",
    "lrp_alpha2_beta1": "epsilon_alpha2_beta1",
    "lrp_epsilon_gamma_box": "epsilon_gamma_box",
}


def contests(model: nn.Module, layer: nn.Module, x: Tensor, y: Tensor) -> Iterator[Contest]:
    """Every method that a peer has, on the samples x [N, C, H, W] and classes y [N].

    layer: what CAMs look at; ours find it by themselves.
    """

    def contest(
        name: str,
        peer: str,
        theirs: Callable[[Tensor, Tensor], Any],
        compare: Compare = same,
        n: int = len(x),
        note: str = "",
        background: Tensor | None = None,
        **parameters: Any,
    ) -> Contest:
        spec = {"name": name, **parameters}
        return Contest(
            name,
            peer,
            lambda: attribution.attribute(spec, model, x[:n], y[:n], background=background),
            lambda: theirs(x[:n], y[:n]),
            n,
            compare,
            note,
        )

    yield from _gradients(model, x, contest)
    yield from _cams(model, layer, contest)
    yield from _lrp(model, x, y, contest)
    yield from _perturbations(model, x, contest)


def _gradients(model: nn.Module, x: Tensor, contest: Callable[..., Contest]) -> Iterator[Contest]:
    def by(kind: Any, **given: Any) -> Callable[[Tensor, Tensor], Any]:
        return lambda x, y: kind(model).attribute(x, target=y, **given)

    yield contest("absolute_gradient", "captum Saliency", by(captum.Saliency))
    yield contest("input_x_gradient", "captum InputXGradient", by(captum.InputXGradient))
    yield contest("guided_backprop", "captum GuidedBackprop", by(captum.GuidedBackprop))
    yield contest("deconvolution", "captum Deconvolution", by(captum.Deconvolution))
    integrated = "captum IntegratedGradients"
    for name, given in (
        (integrated, {}),
        (f"{integrated}, 64 a pass", {"internal_batch_size": 64}),
    ):
        theirs = by(captum.IntegratedGradients, n_steps=STEPS, **given)
        yield contest("integrated_gradients", name, theirs, steps=STEPS)

    def noisy(kind: str, **given: Any) -> Callable[[Tensor, Tensor], Any]:
        tunnel = captum.NoiseTunnel(captum.Saliency(model))
        return lambda x, y: tunnel.attribute(
            x, target=y, abs=False, nt_type=kind, nt_samples=STEPS, stdevs=0.2, **given
        )

    drawn: dict[str, Any] = {"samples": STEPS, "noise": 0.2}
    kinds = {
        "smoothgrad": "smoothgrad",
        "smoothgrad_squared": "smoothgrad_sq",
        "vargrad": "vargrad",
    }
    for ours, kind in kinds.items():
        yield contest(ours, "captum NoiseTunnel", noisy(kind), alike, **drawn)
    frugal = noisy("smoothgrad", nt_samples_batch_size=4)
    yield contest("smoothgrad", "captum NoiseTunnel, 4 a pass", frugal, alike, **drawn)
    zeros, background = torch.zeros_like(x[:1]), x[-16:]
    shapley = by(captum.GradientShap, baselines=zeros, n_samples=STEPS)
    yield contest("gradient_shap", "captum GradientShap", shapley, alike, samples=STEPS)

    def shap_values(kind: Any, rows: Tensor, **given: Any) -> Callable[[Tensor, Tensor], Any]:
        def values(x: Tensor, y: Tensor) -> Any:
            # The classes of y are the predicted ones: the first ranked output.
            return kind(model, rows).shap_values(x, ranked_outputs=1, **given)[0][..., 0]

        return values

    theirs = shap_values(shap.GradientExplainer, zeros, nsamples=STEPS)
    yield contest("expected_gradients", "shap GradientExplainer", theirs, alike, samples=STEPS)
    pooled = "theirs is not complete after max pooling"
    yield contest("deeplift", "captum DeepLift", by(captum.DeepLift), note=pooled)
    data: dict[str, Any] = {"reference": "data", "samples": 16, "background": background}
    theirs = by(captum.DeepLiftShap, baselines=background)
    peer = "captum DeepLiftShap, 16 baselines"
    yield contest("deep_shap", peer, theirs, note=pooled, **data)
    theirs = shap_values(shap.DeepExplainer, background, check_additivity=False)
    yield contest("deep_shap", "shap DeepExplainer, 16 baselines", theirs, **data)


def _cams(model: nn.Module, layer: nn.Module, contest: Callable[..., Contest]) -> Iterator[Contest]:
    def by(kind: Any) -> Callable[[Tensor, Tensor], Any]:
        def maps(x: Tensor, y: Tensor) -> Any:
            targets = [ClassifierOutputTarget(int(label)) for label in y]
            with kind(model, [] if kind is cams.FullGrad else [layer]) as cam:
                found = cam(x, targets)
            return torch.from_numpy(found)[:, None].expand(x.shape)

        return maps

    special: dict[str, Any] = {
        "ablation_cam": {"relative": True},
        "full_grad": {"absolute": True, "rescale": True},
        "eigen_cam": {"relu": True},
        "fem": {},
        "grad_cam_elementwise": {},
    }
    for name, kind in CAMS.items():
        given = special.get(name, {"relu": True})
        note = NOTES.get(name, "")
        if name in ("ablation_cam", "eigen_cam", "eigen_grad_cam", "score_cam"):
            given = {**given, "relu": True}
        yield contest(name, f"grad-cam {kind.__name__}", by(kind), alike, note=note, **given)

    def guided(x: Tensor, y: Tensor) -> Tensor:
        by_captum = captum.GuidedGradCam(model, layer)
        return by_captum.attribute(x, target=y, interpolate_mode="bilinear")

    yield contest("guided_grad_cam", "captum GuidedGradCam", guided)

    def grad_cam(x: Tensor, y: Tensor) -> Tensor:
        found = captum.LayerGradCam(model, layer).attribute(x, target=y)
        return F.interpolate(found, x.shape[2:], mode="bilinear").expand(x.shape)

    yield contest("grad_cam", "captum LayerGradCam", grad_cam, alike)


def _lrp(
    model: nn.Module, x: Tensor, y: Tensor, contest: Callable[..., Contest]
) -> Iterator[Contest]:
    classes = model(x[:1]).shape[1]
    low, high = float(x.min()), float(x.max())

    def by(composite: str, **given: Any) -> Callable[[Tensor, Tensor], Any]:
        def maps(x: Tensor, y: Tensor) -> Tensor:
            kind = zennit.composites.COMPOSITES[composite]
            made = kind(canonizers=[SequentialMergeBatchNorm()], **given)
            chosen = F.one_hot(y, classes).to(x)
            with Gradient(model, composite=made) as attributor:
                return attributor(x.clone(), lambda logits: logits.detach() * chosen)[1]

        return maps

    for name, composite in PRESETS.items():
        box = {"low": low, "high": high} if composite.endswith("box") else {}
        yield contest(name, f"zennit {composite}", by(composite, **box), **box)


def _perturbations(
    model: nn.Module, x: Tensor, contest: Callable[..., Contest]
) -> Iterator[Contest]:
    channels, height, width = x.shape[1:]
    window = (channels, PATCH, PATCH)
    row = torch.arange(height, device=x.device) // PATCH
    column = torch.arange(width, device=x.device) // PATCH
    ids = (row[:, None] * (width // PATCH) + column).expand(1, channels, -1, -1).contiguous()
    ids = ids.clone()
    patches: dict[str, Any] = {"features": "patches", "patch": PATCH}
    some, few = max(1, len(x) // 4), max(1, len(x) // 8)

    def by(kind: Any, **given: Any) -> Callable[[Tensor, Tensor], Any]:
        return lambda x, y: kind(model).attribute(x, target=y, baselines=0, **given)

    for eval_at_once in (1, 8):
        theirs = by(
            captum.Occlusion, sliding_window_shapes=window, strides=window,
            perturbations_per_eval=eval_at_once,
        )  # fmt: skip
        peer = f"captum Occlusion, {eval_at_once} per eval"
        yield contest("occlusion", peer, theirs, window=PATCH, stride=PATCH)
    theirs = by(captum.FeatureAblation, feature_mask=ids)
    yield contest("feature_ablation", "captum FeatureAblation", theirs, **patches)
    fitted: dict[str, Any] = {
        "n_samples": SAMPLES,
        "feature_mask": ids,
        "perturbations_per_eval": 64,
    }
    drawn: dict[str, Any] = {"samples": SAMPLES, **patches}
    theirs = by(captum.KernelShap, **fitted)
    yield contest("kernel_shap", "captum KernelShap, 64 per eval", theirs, alike, few, **drawn)

    def lime(x: Tensor, y: Tensor) -> Tensor:
        ridge = captum.Lime(model, interpretable_model=SkLearnRidge(alpha=1.0))
        return ridge.attribute(x, target=y, baselines=0, **fitted)

    yield contest("lime", "captum Lime with ridge, 64 per eval", lime, alike, few, **drawn)
    theirs = by(
        captum.ShapleyValueSampling, feature_mask=ids, n_samples=4, perturbations_per_eval=8
    )
    peer = "captum ShapleyValueSampling, 8 per eval"
    yield contest(
        "shapley_sampling", peer, theirs, alike, some, permutations=4, antithetic=False, **patches
    )
