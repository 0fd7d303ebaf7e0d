"""Methods computed by zennit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments import lazy
from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators
from experiments.specs import Count, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = lazy.load("torch")

ROWS_PER_PASS = 1024


@method("smoothgrad", library="zennit", family="gradient", passes="`samples` FB", stochastic=True)
def smoothgrad(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    samples: Count = 20,
    noise: Positive = 0.2,
) -> Tensor:
    """Mean gradient over noisy copies of the input (Smilkov et al. 2017, section 2).

    `noise` is the standard deviation in units of the input: 0.2 is a tenth of the range [−1, 1].
    zennit's own SmoothGrad scales it by the range of each sample, and adds none to a constant one.
    """
    from zennit.attribution import Gradient

    draws = generator.normal(samples, *x.shape[1:]).to(x)
    noisy = (x[:, None] + noise * draws).flatten(0, 1)
    classes = target.repeat_interleave(samples)
    attributor = Gradient(model)
    gradients = [
        attributor(part, _one_hot(labels))[1]
        for part, labels in zip(
            noisy.split(ROWS_PER_PASS), classes.split(ROWS_PER_PASS), strict=True
        )
    ]
    return torch.cat(gradients).reshape(len(x), samples, *x.shape[1:]).mean(1)


@method("lrp_epsilon", library="zennit", family="lrp", passes="about 2 FB", models={"cnn"})
def lrp_epsilon(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    epsilon: Positive = 1e-6,
    zero_bias: bool = False,
) -> Tensor:
    """LRP with the ε rule in every layer (Bach et al. 2015, equation 58). For CNNs.

    As ε goes to 0 this becomes input times gradient. Batch norms are merged into their
    convolution. Relevance that belongs to biases is lost; with `zero_bias` the inputs share it,
    which conserves the sum but divides by numbers near zero.
    """
    from zennit.composites import LayerMapComposite, layer_map_base
    from zennit.rules import Epsilon
    from zennit.types import Convolution, Linear

    rule = Epsilon(epsilon=epsilon, zero_params=_zeroed(zero_bias))
    composite = LayerMapComposite(
        [*_sums(), *layer_map_base(), ((Convolution, Linear), rule)], canonizers=_merge()
    )
    return _relevance(composite, model, x, target)


@method("lrp_epsilon_plus", library="zennit", family="lrp", passes="about 3 FB", models={"cnn"})
def lrp_epsilon_plus(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    epsilon: Positive = 1e-6,
    zero_bias: bool = False,
) -> Tensor:
    """LRP with z⁺ in convolutions and ε in linear layers (Montavon et al. 2019). For CNNs.

    Batch norms are merged into their convolution. Relevance that belongs to biases is lost; with
    `zero_bias` the inputs share it.
    """
    from zennit.composites import EpsilonPlus

    composite = EpsilonPlus(
        epsilon=epsilon,
        layer_map=_sums(),
        zero_params=_zeroed(zero_bias),
        canonizers=_merge(),
    )
    return _relevance(composite, model, x, target)


@method("lrp_alpha2_beta1", library="zennit", family="lrp", passes="about 4 FB", models={"cnn"})
def lrp_alpha2_beta1(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    epsilon: Positive = 1e-6,
    zero_bias: bool = False,
) -> Tensor:
    """LRP with α=2, β=1 in convolutions and ε in linear layers (Bach et al. 2015). For CNNs.

    Batch norms are merged into their convolution. Relevance that belongs to biases is lost; with
    `zero_bias` the inputs share it. Magnitudes grow with depth.
    """
    from zennit.composites import EpsilonAlpha2Beta1

    composite = EpsilonAlpha2Beta1(
        epsilon=epsilon,
        layer_map=_sums(),
        zero_params=_zeroed(zero_bias),
        canonizers=_merge(),
    )
    return _relevance(composite, model, x, target)


@method("lrp_conservative", library="zennit", family="lrp", passes="1 FB", models={"transformer"})
def lrp_conservative(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """LRP for transformers: attention and layer-norm scale held fixed (Ali et al. 2022).

    Input times gradient, where the gradient treats the attention weights and the standard
    deviation of a layer norm as constants (their section 4, AH and LN rule).
    """
    from zennit.attribution import Gradient

    from experiments.attribution.conservative import conservative_propagation

    attributor = Gradient(model, composite=conservative_propagation())
    return x * attributor(x, _one_hot(target))[1]


def _one_hot(target: Tensor) -> Any:
    """As output attribution: 1 for the target's logit."""
    return lambda logits: torch.nn.functional.one_hot(target, logits.shape[1]).to(logits)


def _relevance(composite: Any, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The relevance of each input when the output relevance is the target's logit."""
    from zennit.attribution import Gradient

    one_hot = _one_hot(target)
    attributor = Gradient(model, composite=composite)
    return attributor(x, lambda logits: logits.detach() * one_hot(logits))[1]


def _sums() -> list[Any]:
    """Residual sums share relevance in proportion to what each branch contributed."""
    from zennit.rules import Norm

    from experiments.models.andor import Sum

    return [(Sum, Norm())]


def _merge() -> list[Any]:
    from zennit.canonizers import SequentialMergeBatchNorm

    return [SequentialMergeBatchNorm()]


def _zeroed(zero_bias: bool) -> list[str] | None:
    return ["bias"] if zero_bias else None
