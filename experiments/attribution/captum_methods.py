"""Methods computed by captum."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from experiments import lazy
from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators
from experiments.specs import Count

if TYPE_CHECKING:
    import captum.attr
    import torch
    from torch import Tensor, nn
else:
    torch = lazy.load("torch")
    captum = lazy.load("captum")

# Rows of one internal batch of path methods: larger ones cost page faults on a CPU.
INTERNAL_BATCH = 1024


@method("gradient", library="captum", family="gradient", passes="1 FB")
def gradient(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """Gradient of the target's logit, with its sign (Simonyan et al. 2014, section 3)."""
    return captum.attr.Saliency(model).attribute(x.requires_grad_(), target=target, abs=False)


@method("input_x_gradient", library="captum", family="gradient", passes="1 FB")
def input_x_gradient(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """Input times gradient (Shrikumar et al. 2016); the baseline is zero by definition."""
    return captum.attr.InputXGradient(model).attribute(x.requires_grad_(), target=target)


@method("integrated_gradients", library="captum", family="gradient", passes="`steps` FB")
def integrated_gradients(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    steps: Count = 50,
    rule: Literal[
        "gausslegendre",
        "riemann_left",
        "riemann_middle",
        "riemann_right",
    ] = "gausslegendre",
) -> Tensor:
    """Path integral of the gradient from the baseline (Sundararajan et al. 2017, equation 1).

    captum's trapezoid rule is left out: its weights sum to 1 − 1/steps.
    """
    return captum.attr.IntegratedGradients(model).attribute(
        x.requires_grad_(),
        baselines=baseline.expand_as(x),
        target=target,
        n_steps=steps,
        method=rule,
        # captum cuts the path by rows, not by steps, and needs at least one step per piece.
        internal_batch_size=max(INTERNAL_BATCH, len(x)),
    )


@method("deeplift", library="captum", family="gradient", passes="2 FB", models={"cnn"})
def deeplift(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017, section 3.5.1).

    For CNNs: it has no rule for layer norm and for the products of attention, and captum's rule
    for softmax divides by differences near zero, so that a transformer's map is mostly rounding.
    """
    with _quiet():
        return captum.attr.DeepLift(model).attribute(
            x.requires_grad_(), baselines=baseline.expand_as(x), target=target
        )


@method("guided_backprop", library="captum", family="gradient", passes="1 FB", models={"cnn"})
def guided_backprop(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """Gradient that passes a ReLU only where it is positive (Springenberg et al. 2015).

    For CNNs: a rule for ReLUs says nothing about the attention of a transformer.
    """
    with _quiet():
        return captum.attr.GuidedBackprop(model).attribute(x.requires_grad_(), target=target)


@method("deconvolution", library="captum", family="gradient", passes="1 FB", models={"cnn"})
def deconvolution(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """ReLU applied to the gradient instead of the activation (Zeiler & Fergus 2014). For CNNs."""
    with _quiet():
        return captum.attr.Deconvolution(model).attribute(x.requires_grad_(), target=target)


@method("feature_ablation", library="captum", family="perturbation", passes="(D + 1) F")
def feature_ablation(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """Fall of the target's logit when one input is replaced by its baseline."""
    with torch.no_grad():
        return captum.attr.FeatureAblation(model).attribute(
            x,
            baselines=baseline.expand_as(x),
            target=target,
            perturbations_per_eval=_per_pass(x),
        )


@method("occlusion", library="captum", family="perturbation", passes="(D − `window` + 2) F")
def occlusion(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    window: Count = 3,
) -> Tensor:
    """Fall of the logit when a window of neighbours is replaced (Zeiler & Fergus 2014).

    An input gets the mean over the windows that cover it. The window slides over the last axis.
    Raises ValueError if the window is longer than that axis.
    """
    if window > x.shape[-1]:
        raise ValueError(
            f"method 'occlusion': window {window} is longer than the {x.shape[-1]} inputs"
        )
    with torch.no_grad():
        return captum.attr.Occlusion(model).attribute(
            x,
            sliding_window_shapes=(1,) * (x.ndim - 2) + (window,),
            baselines=baseline.expand_as(x),
            target=target,
            perturbations_per_eval=_per_pass(x),
        )


@method(
    "kernel_shap", library="captum", family="perturbation", passes="`samples` F", stochastic=True
)
def kernel_shap(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    samples: Count = 32,
) -> Tensor:
    """Shapley values by weighted regression (Lundberg & Lee 2017, theorem 2).

    captum's, with coalitions drawn per sample: it would draw them from the global generator.
    The first two coalitions are all inputs and none.
    """
    from experiments.attribution.kernel_shap import CoalitionKernelShap, coalitions

    drawn = coalitions(x[0].numel(), samples, generator).to(x.device)
    with _quiet():
        return CoalitionKernelShap(model, drawn).attribute(
            x,
            baselines=baseline.expand_as(x),
            target=target,
            n_samples=samples,
            perturbations_per_eval=samples,
        )


def _per_pass(x: Tensor) -> int:
    """How many perturbations of a batch make a forward pass of a decent size."""
    return max(1, min(x[0].numel(), 4 * INTERNAL_BATCH // len(x)))


@contextmanager
def _quiet() -> Iterator[Any]:
    """captum warns of hooks, which it removes again, and of the time that a batch takes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"captum\.")
        yield
