"""LRP as it is used in the literature: presets of rules, by name.

Where a preset has `zero_bias`: relevance that belongs to biases is lost, or, with `zero_bias`, the
inputs share it, which conserves the sum but may divide by numbers near zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments import lazy
from experiments.attribution.lrp_methods import BatchNorm, Bias, Bound, make_scheme
from experiments.attribution.registry import KINDS, RECTIFIED, method
from experiments.randomness import SampleGenerators
from experiments.specs import NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from experiments.attribution import lrp as engine
else:
    engine = lazy.load("experiments.attribution.lrp")


def _bias(zero: bool) -> str:
    return "zero" if zero else "signed"


def _epsilon_preset(
    name: str, convolution: str, source: str, text: str, first: str = "none"
) -> None:
    """Registers a preset with a rule for convolutions, ε for linear layers, one for the first."""

    def explain(
        model: nn.Module,
        x: Tensor,
        target: Tensor,
        *,
        baseline: Tensor,
        generator: SampleGenerators,
        epsilon: Positive = 1e-6,
        zero_bias: bool = False,
    ) -> Tensor:
        scheme = make_scheme(convolution, "epsilon", first, epsilon=epsilon, bias=_bias(zero_bias))
        return engine.relevance(model, x, target, scheme)

    explain.__doc__, explain.__qualname__ = text, name
    method(
        name, library="assay", peer="zennit", family="lrp", passes="1 FB", models=RECTIFIED,
        source=source,
    )(explain)  # fmt: skip


_epsilon_preset(
    "lrp_epsilon",
    "epsilon",
    "Bach et al. 2015",
    """LRP with the ε rule in every layer (Bach et al. 2015, equation 58).

    As ε goes to 0 this becomes input times gradient. Relevance that belongs to biases is lost;
    with `zero_bias` the inputs share it, which conserves the sum but divides by numbers near zero.
    """,
)
_epsilon_preset(
    "lrp_epsilon_plus",
    "zplus",
    "Montavon et al. 2019",
    """LRP with z⁺ in convolutions and ε in linear layers (Montavon et al. 2019).

    Relevance that belongs to biases is lost; with `zero_bias` the inputs share it.
    """,
)
_epsilon_preset(
    "lrp_epsilon_plus_flat",
    "zplus",
    "Lapuschkin et al. 2019",
    "As `lrp_epsilon_plus`, with the flat rule in the first layer (Lapuschkin et al. 2019).",
    first="flat",
)
_epsilon_preset(
    "lrp_alpha2_beta1",
    "alpha_beta",
    "Bach et al. 2015",
    """LRP with α=2, β=1 in convolutions and ε in linear layers (Bach et al. 2015).

    Relevance that belongs to biases is lost; with `zero_bias` the inputs share it. Magnitudes
    grow with depth.
    """,
)
_epsilon_preset(
    "lrp_alpha2_beta1_flat",
    "alpha_beta",
    "Lapuschkin et al. 2019",
    "As `lrp_alpha2_beta1`, with the flat rule in the first layer (Lapuschkin et al. 2019).",
    first="flat",
)


@method(
    "lrp_alpha1_beta0", library="assay", family="lrp", passes="1 FB", models=RECTIFIED,
    source="Bach et al. 2015",
)  # fmt: skip
def lrp_alpha1_beta0(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    zero_bias: bool = False,
) -> Tensor:
    """LRP with α=1, β=0 in every layer, linear ones included (Bach et al. 2015, equation 60)."""
    scheme = make_scheme("zplus", "zplus", bias=_bias(zero_bias))
    return engine.relevance(model, x, target, scheme)


@method(
    "lrp_zplus", library="assay", family="lrp", passes="1 FB", models=KINDS,
    source="Montavon et al. 2017",
)  # fmt: skip
def lrp_zplus(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    zero_bias: bool = True,
) -> Tensor:
    """LRP with z⁺ in every layer and without biases (Montavon et al. 2017; ANDOR's LRP-full).

    In a transformer relevance passes softmax and layer norm; a product gives half to each factor.
    """
    scheme = make_scheme("zplus", "zplus", bias=_bias(zero_bias))
    return engine.relevance(model, x, target, scheme)


@method(
    "lrp_gamma", library="assay", family="lrp", passes="1 FB", models=RECTIFIED,
    source="Montavon et al. 2019",
)  # fmt: skip
def lrp_gamma(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    gamma: NonNegative = 0.25,
    zero_bias: bool = False,
) -> Tensor:
    """LRP with the γ rule in every layer, for inputs of any sign (Andéol et al. 2021).

    γ = 0 is LRP-0, and γ → ∞ is α=1, β=0 where outputs are positive.
    """
    scheme = make_scheme("gamma", "gamma", gamma=gamma, bias=_bias(zero_bias))
    return engine.relevance(model, x, target, scheme)


@method(
    "lrp_epsilon_gamma_box", library="assay", peer="zennit", family="lrp", passes="1 FB",
    models=RECTIFIED,
    source="Montavon et al. 2019",
)  # fmt: skip
def lrp_epsilon_gamma_box(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    epsilon: Positive = 1e-6,
    gamma: NonNegative = 0.25,
    low: Bound = None,
    high: Bound = None,
    zero_bias: bool = False,
) -> Tensor:
    """LRP with z^B first, γ in convolutions and ε in linear layers (Montavon et al. 2019).

    `low` and `high` are the range of the data: a number, one per channel, or None for the range
    of the sample itself. Raises ValueError if an input is outside.
    """
    scheme = make_scheme(
        "gamma", "epsilon", "zbox", epsilon=epsilon, gamma=gamma, low=low, high=high,
        bias=_bias(zero_bias),
    )  # fmt: skip
    return engine.relevance(model, x, target, scheme)


@method(
    "lrp_flat", library="assay", family="lrp", passes="1 FB", models=RECTIFIED,
    source="Lapuschkin et al. 2019",
)  # fmt: skip
def lrp_flat(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """LRP with the flat rule in every layer: what the architecture alone does to relevance."""
    return engine.relevance(model, x, target, make_scheme("flat", "flat"))


@method(
    "lrp_preset_a_flat", library="assay", family="lrp", passes="1 FB", models=RECTIFIED,
    source="Alber et al. 2019",
)  # fmt: skip
def lrp_preset_a_flat(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    epsilon: Positive = 1.0,
    bias: Bias = "full",
    batch_norm: BatchNorm = "ratio",
) -> Tensor:
    """innvestigate's sequential preset A, flat: flat first, α=1 β=0 in convolutions, ε in linear.

    With innvestigate's treatment of biases and of batch norms, and SMERF's ε = 1.
    """
    scheme = make_scheme(
        "zplus", "epsilon", "flat", batch_norm, stabilizer=1e-7, epsilon=epsilon, bias=bias
    )
    return engine.relevance(model, x, target, scheme)


@method(
    "lrp_preset_b_flat", library="assay", family="lrp", passes="1 FB", models=RECTIFIED,
    source="Alber et al. 2019",
)  # fmt: skip
def lrp_preset_b_flat(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    epsilon: Positive = 1.0,
    bias: Bias = "full",
    batch_norm: BatchNorm = "ratio",
) -> Tensor:
    """innvestigate's sequential preset B, flat: as A, with α=2 β=1 in convolutions."""
    scheme = make_scheme(
        "alpha_beta", "epsilon", "flat", batch_norm, stabilizer=1e-7, epsilon=epsilon, bias=bias
    )
    return engine.relevance(model, x, target, scheme)


@method(
    "deep_taylor", library="assay", family="lrp", passes="1 FB", models=RECTIFIED,
    source="Montavon et al. 2017",
)  # fmt: skip
def deep_taylor(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    low: Bound = None,
    high: Bound = None,
    bias: Bias = "full",
    batch_norm: BatchNorm = "merge",
) -> Tensor:
    """Deep Taylor decomposition of a bounded input: z^B first, then z⁺ (Montavon et al. 2017).

    Starts from the positive part of the explained output. `low` and `high` as in
    `lrp_epsilon_gamma_box`; biases as in innvestigate's "deep_taylor.bounded".
    """
    scheme = make_scheme("zplus", "zplus", "zbox", batch_norm, low=low, high=high, bias=bias)
    return engine.relevance(model, x, target, scheme, start=lambda f, w: (f * w).clamp(min=0))


@method(
    "excitation_backprop", library="assay", peer="zennit", family="lrp", passes="1 FB",
    models=RECTIFIED,
    source="Zhang et al. 2018",
)  # fmt: skip
def excitation_backprop(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """Marginal winning probability (Zhang et al. 2018, equation 4): z⁺ without biases.

    Starts from 1 for the target, or from its weights, so that a map sums to 1.
    """
    scheme = make_scheme("zplus", "zplus", bias="zero")
    return engine.relevance(model, x, target, scheme, start=lambda f, w: w)
