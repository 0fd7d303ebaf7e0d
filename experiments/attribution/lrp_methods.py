"""Layer-wise relevance propagation (LRP) by any rules; `lrp_presets` has those of the literature.

The explained output is shared backwards between the inputs, layer by layer, by the rules of
`lrp_rules`; what happens between the layers stands in `lrp`. The rules are those of zennit,
computed without the passes that zennit spends on terms that are zero. A map sums to the
explained output but for what biases and stabilisers take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from experiments import lazy
from experiments.attribution.registry import KINDS, method
from experiments.randomness import SampleGenerators
from experiments.specs import NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from experiments.attribution import lrp as engine
    from experiments.attribution import lrp_rules
else:
    engine = lazy.load("experiments.attribution.lrp")
    lrp_rules = lazy.load("experiments.attribution.lrp_rules")

RuleName = Literal["epsilon", "zplus", "alpha_beta", "gamma", "flat", "w2"]
FirstRule = Literal["none", "epsilon", "zplus", "alpha_beta", "gamma", "flat", "w2", "zbox"]
Bias = Literal["signed", "full", "zero"]
BatchNorm = Literal["merge", "pass", "ratio"]
Bound = float | list[float] | None


def make_scheme(
    convolution: str,
    linear: str,
    first: str = "none",
    batch_norm: str = "merge",
    stabilizer: float = 1e-6,
    **parameters: Any,
) -> engine.Scheme:
    """A scheme of named rules, which share the parameters (see `lrp_rules.layer_rule`)."""

    def rule(name: str) -> lrp_rules.LayerRule:
        return lrp_rules.layer_rule(name, stabilizer=stabilizer, **parameters)

    return engine.Scheme(
        convolution=rule(convolution),
        linear=rule(linear),
        first=None if first == "none" else rule(first),
        batch_norm=batch_norm,
        stabilizer=stabilizer,
    )


@method(
    "lrp", library="assay", family="lrp", passes="1 FB", models=KINDS, source="Bach et al. 2015"
)
def lrp(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    convolution: RuleName = "zplus",
    linear: RuleName = "epsilon",
    first: FirstRule = "none",
    epsilon: Positive = 1e-6,
    stabilizer: Positive = 1e-6,
    gamma: NonNegative = 0.25,
    alpha: NonNegative = 2.0,
    beta: NonNegative = 1.0,
    low: Bound = None,
    high: Bound = None,
    bias: Bias = "signed",
    batch_norm: BatchNorm = "merge",
) -> Tensor:
    """LRP with a rule for convolutions, one for linear layers and one for the first layer.

    Args:
        convolution, linear, first: names of rules; `first` is for the first layer that is called
            and for those that read the same input.
        epsilon: stabiliser of the ε rule; `stabilizer`: of all others and of sums.
        gamma, alpha, beta: of the rules of these names; alpha − beta = 1.
        low, high: range of the data for z^B: a number, one per channel, or None for the range
            of the sample itself.
        bias: "signed" as zennit has it, "full" as innvestigate, "zero": inputs share its part.
        batch_norm: "merge" into the layer before, "pass" relevance, or innvestigate's "ratio".

    Raises ValueError if α − β is not 1, or an input is outside [low, high].
    """
    scheme = make_scheme(
        convolution, linear, first, batch_norm, stabilizer, epsilon=epsilon, gamma=gamma,
        alpha=alpha, beta=beta, low=low, high=high, bias=bias,
    )  # fmt: skip
    return engine.relevance(model, x, target, scheme)
