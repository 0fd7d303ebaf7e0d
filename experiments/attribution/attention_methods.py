"""Methods for transformers: from attention matrices, and by relevance through attention.

Those that read attention take these parameters, which say how a matrix of relevances between
tokens [L queries, L keys] becomes a map:

    queries        whose row counts: "cls" (the first token), or the "mean", "sum" or "max" over
                   all tokens; "auto" is "cls" if there are special tokens, else "mean". A model
                   whose head reads all tokens asks for "mean", special tokens or not.
    special        how many tokens at the beginning stand for no input; None: the fewest that fit.
    interpolation  from the patches of an image to its pixels: "nearest" or "linear".

All channels of a place get the same relevance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from experiments import lazy
from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators
from experiments.specs import NonNegative, Positive, Probability

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments.attribution import attention, conservative, lrp_rules
    from experiments.attribution.batch import Batch
else:
    torch = lazy.load("torch")
    attention = lazy.load("experiments.attribution.attention")
    conservative = lazy.load("experiments.attribution.conservative")
    lrp_rules = lazy.load("experiments.attribution.lrp_rules")

Queries = Literal["auto", "cls", "mean", "sum", "max"]
Special = Annotated[int, Field(ge=0)] | None
Interpolation = Literal["nearest", "linear"]
Heads = Literal["mean", "max", "min"]


@method(
    "lrp_attention",
    library="assay",
    family="lrp",
    passes="1 FB",
    models={"transformer"},
    aliases=("attnlrp",),
    source="Achtibat et al. 2024",
)
def lrp_attention(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    linear: Literal["epsilon", "gamma"] = "epsilon",
    convolution: Literal["epsilon", "gamma"] = "epsilon",
    epsilon: NonNegative = 0.0,
    gamma: Positive = 0.25,
) -> Tensor:
    """AttnLRP: rules for the softmax and the products of attention (Achtibat et al. 2024).

    Input times a gradient that is halved between the two factors of every product (proposition
    3.3), that takes a layer norm's deviation as a constant (3.4), and f(x)/x as the slope of an
    activation f. The softmax has its gradient (3.1), linear layers LRP-ε or the γ rule, which
    the paper takes for vision transformers. The softmax absorbs relevance, as do biases,
    positions and special tokens: a map need not sum to the explained output.
    """
    rules = {
        kind: None
        if (name, epsilon) == ("epsilon", 0)
        else lrp_rules.layer_rule(name, epsilon=epsilon, gamma=gamma)
        for kind, name in (("linear", linear), ("convolution", convolution))
    }
    return conservative.input_times_gradient(
        model, x, target, lambda: conservative.attention_rules(**rules)
    )


@method(
    "lrp_conservative",
    library="assay",
    family="lrp",
    passes="1 FB",
    models={"transformer"},
    aliases=("cp_lrp",),
    source="Ali et al. 2022",
)
def lrp_conservative(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    activation: Literal["gradient", "identity"] = "gradient",
) -> Tensor:
    """LRP for transformers: attention and layer-norm scale held fixed (Ali et al. 2022).

    Input times gradient, where the gradient treats the attention weights and the standard
    deviation of a layer norm as constants (their section 4, AH and LN rule). `activation`
    "identity" gives an activation f the slope f(x)/x, which makes networks with GELU conserve.
    """
    return conservative.input_times_gradient(
        model, x, target, lambda: conservative.conservative_rules(activation)
    )


@method(
    "raw_attention",
    library="assay",
    family="attention",
    passes="1 F",
    models={"transformer"},
    source="Vaswani et al. 2017",
)
def raw_attention(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    layer: Literal["last", "first", "mean"] = "last",
    heads: Heads = "mean",
    queries: Queries = "auto",
    special: Special = None,
    interpolation: Interpolation = "nearest",
) -> Tensor:
    """The attention itself, of a layer or the mean of all. The same for every class.

    Not negative; over all tokens, special ones included, the rows sum to 1 (`heads` mean).
    """
    fused = [attention.fuse(weights, heads) for weights in attention.attention(batch)]
    matrix = {"last": fused[-1], "first": fused[0], "mean": torch.stack(fused).mean(0)}[layer]
    return attention.of_inputs(matrix, x, queries, special, interpolation)


@method(
    "attention_rollout",
    library="assay",
    family="attention",
    passes="1 F",
    models={"transformer"},
    aliases=("rollout",),
    source="Abnar & Zuidema 2020",
)
def attention_rollout(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    heads: Heads = "mean",
    residual: Probability = 0.5,
    discard: Probability = 0.0,
    queries: Queries = "auto",
    special: Special = None,
    interpolation: Interpolation = "nearest",
) -> Tensor:
    """Attention multiplied through the layers (Abnar & Zuidema 2020). The same for every class.

    Π_l ((1 − r) A_l + r I), the last layer first, rows normalised, with A_l the `heads` mean, max
    or min of a layer and r the share of its residual connection. `discard` is the share of the
    lowest entries of every A_l that is set to zero.
    """
    fused = [attention.fuse(weights, heads) for weights in attention.attention(batch)]
    matrix = attention.rollout(fused, residual, discard)
    return attention.of_inputs(matrix, x, queries, special, interpolation)


@method(
    "gradient_rollout",
    library="assay",
    family="attention",
    passes="1 FB",
    models={"transformer"},
    source="Gildenblat 2020",
)
def gradient_rollout(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    heads: Heads = "mean",
    residual: Probability = 0.5,
    discard: Probability = 0.0,
    queries: Queries = "auto",
    special: Special = None,
    interpolation: Interpolation = "nearest",
) -> Tensor:
    """Rollout of attention weighted by its gradient (Gildenblat 2020, vit-explain).

    As `attention_rollout`, with (A ⊙ ∇A of the explained output), fused over heads and cut at
    zero, in place of A. Its weight against the residual connection depends on the scale of the
    gradient.
    """
    pairs = zip(*attention.attention_gradient(batch), strict=True)
    weighted = [attention.fuse(weights * slope, heads).clamp(min=0) for weights, slope in pairs]
    matrix = attention.rollout(weighted, residual, discard)
    return attention.of_inputs(matrix, x, queries, special, interpolation)


@method(
    "chefer_relevance",
    library="assay",
    family="attention",
    passes="1 FB",
    models={"transformer"},
    aliases=("generic_attention",),
    source="Chefer et al. 2021 (ICCV)",
)
def chefer_relevance(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    queries: Queries = "auto",
    special: Special = None,
    interpolation: Interpolation = "nearest",
) -> Tensor:
    """Generic attention explainability (Chefer, Gur & Wolf, ICCV 2021, equations 5 and 6).

    R starts as the identity; every layer adds Ā R, Ā the mean over heads of (∇A ⊙ A)⁺, with the
    gradient of the explained output.
    """
    pairs = zip(*attention.attention_gradient(batch), strict=True)
    weighted = [(weights * slope).clamp(min=0).mean(1) for weights, slope in pairs]
    matrix = attention.rollout(weighted, 0.5, normalise=False)
    return attention.of_inputs(matrix, x, queries, special, interpolation)


@method(
    "transformer_attribution",
    library="assay",
    family="attention",
    passes="2 FB",
    models={"transformer"},
    source="Chefer et al. 2021 (CVPR)",
)
def transformer_attribution(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    queries: Queries = "auto",
    special: Special = None,
    interpolation: Interpolation = "nearest",
) -> Tensor:
    """Rollout of LRP relevance and gradient of attention (Chefer, Gur & Wolf, CVPR 2021, eq. 13).

    Π_l (I + mean over heads of (∇A_l ⊙ R_l)⁺), with R_l the relevance of the attention of layer
    l by LRP: z⁺ without biases in linear layers; residual sums and products share in proportion
    to the contributions of the same sample, half to each factor.
    """
    _, slopes = attention.attention_gradient(batch)
    pairs = zip(slopes, attention.attention_relevance(batch), strict=True)
    weighted = [(slope * relevance).clamp(min=0).mean(1) for slope, relevance in pairs]
    matrix = attention.rollout(weighted, 0.5, normalise=False)
    return attention.of_inputs(matrix, x, queries, special, interpolation)


@method(
    "lrp_rollout",
    library="assay",
    family="attention",
    passes="1 FB",
    models={"transformer"},
    source="Schwenke & Atzmueller 2024",
)
def lrp_rollout(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    queries: Queries = "auto",
    special: Special = None,
    interpolation: Interpolation = "nearest",
) -> Tensor:
    """Rollout of the LRP relevance of attention (Schwenke & Atzmueller 2024).

    Π_l (I + mean over heads of R_l⁺), rows not normalised; R_l as in `transformer_attribution`.
    """
    weighted = [
        relevance.clamp(min=0).mean(1) for relevance in attention.attention_relevance(batch)
    ]
    matrix = attention.rollout(weighted, 0.5, normalise=False)
    return attention.of_inputs(matrix, x, queries, special, interpolation)
