"""The maps that the code of Schwenke & Atzmueller (2024) computes, slips included.

All explain the sigmoid of the logits, which is the last layer of the original networks. What
should have been computed instead:

    andor_deeplift                 deeplift             no rule of DeepLIFT is ever applied
    andor_guided_grad_cam          guided_grad_cam      one number per sample on transformers
    andor_grad_cam, ..._plus_plus  grad_cam, ...        CLS squeezed in; scaled to [0, 1]
    andor_lrp                      lrp with convolution, linear: zplus; lrp_conservative
    andor_lrp_rollout              lrp_rollout          not normalised; CLS read, never a read-out
    andor_transformer_attribution  transformer_attribution
    andor_feature_permutation      feature_permutation with reference: data
    andor_integrated_gradients, andor_kernel_shap, andor_deconvolution: right as they are

The original reduces a rollout [L, L] over queries by a sum for NIB and GIB, and by the maximum
for masks: `queries`. With a CLS token it reads the row of that token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.attribution.registry import KINDS, SPATIAL, method
from experiments.randomness import SampleGenerators

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution import activations, andor_relevance, attention
    from experiments.attribution.batch import Batch
else:
    torch = lazy.load("torch")
    activations = lazy.load("experiments.attribution.activations")
    andor_relevance = lazy.load("experiments.attribution.andor_relevance")
    attention = lazy.load("experiments.attribution.attention")
    passes = lazy.load("experiments.passes")

SOURCE = "Schwenke & Atzmueller 2024 (code)"
Over = Literal["batch", "sample"]
Queries = Literal["sum", "max"]
TRANSFORMER = frozenset({"transformer"})


def preset(
    name: str,
    *,
    family: str,
    cost: str,
    models: Collection[str] = KINDS,
    stochastic: bool = False,
) -> Callable[[Callable[[Batch], Tensor]], Callable[[Batch], Tensor]]:
    """Registers `explain(batch)`, which has no parameters, as the method `name`."""

    def register(explain: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
        def function(
            model: nn.Module,
            x: Tensor,
            target: Tensor,
            *,
            baseline: Tensor,
            generator: SampleGenerators,
            batch: Batch,
        ) -> Tensor:
            return explain(batch)

        function.__doc__, function.__qualname__ = explain.__doc__, name
        method(
            name, library="assay", family=family, passes=cost, models=models,
            stochastic=stochastic, source=SOURCE,
        )(function)  # fmt: skip
        return explain

    return register


def _sigmoid(batch: Batch) -> Batch:
    """The same samples, with the network's sigmoid outputs to be explained."""
    if batch.x.ndim != 2:
        raise ValueError(
            "the presets andor_... are for the networks of the ANDOR study, inputs [B, D]; "
            f"got inputs of shape {list(batch.x.shape)}"
        )
    model = batch.once(
        "andor sigmoid", lambda: andor_relevance.Sigmoid(batch.model), per_model=True
    )
    return batch.under("andor sigmoid", model)


@preset("andor_integrated_gradients", family="gradient", cost="50 FB")
def integrated_gradients(batch: Batch) -> Tensor:
    """Integrated gradients of the sigmoid output from zero, 50 Gauss-Legendre points."""
    return _sigmoid(batch).maps({"name": "integrated_gradients", "steps": 50, "reference": "zero"})


@preset("andor_deeplift", family="gradient", cost="1 FB")
def deeplift(batch: Batch) -> Tensor:
    """What the original calls DeepLIFT: input times gradient of the sigmoid output.

    Its layers are subclasses of ReLU and sigmoid, for which captum has no rule.
    """
    return _sigmoid(batch).maps("input_x_gradient")


@preset("andor_deconvolution", family="gradient", cost="1 FB", models={"cnn"})
def deconvolution(batch: Batch) -> Tensor:
    """Deconvnet of the sigmoid output: that of the logit, times a positive number per sample."""
    return _sigmoid(batch).maps("deconvolution")


@preset("andor_kernel_shap", family="perturbation", cost="25 F", stochastic=True)
def kernel_shap(batch: Batch) -> Tensor:
    """KernelSHAP of the sigmoid output with 25 coalitions, whatever the number of inputs."""
    return _sigmoid(batch).maps({"name": "kernel_shap", "samples": 25})


@preset("andor_feature_permutation", family="perturbation", cost="(D + 1) F", stochastic=True)
def feature_permutation(batch: Batch) -> Tensor:
    """Fall of the sigmoid output when an input is permuted once *between the samples* of a batch.

    A map depends on the company of its sample; alone, it is zero (the original crashes).
    """
    squashed = _sigmoid(batch)
    order = batch.generator("andor_feature_permutation").uniform(batch.x.shape[1]).argsort(0)
    falls = []
    for column, rows in enumerate(order.to(batch.x.device).unbind(1)):
        permuted = batch.x.clone()
        permuted[:, column] = batch.x[rows, column]
        outputs = passes.outputs(squashed.model, permuted)
        falls.append(squashed.selected() - passes.selected(outputs, batch.target))
    return torch.stack(falls, 1)


@preset("andor_guided_grad_cam", family="cam", cost="2 FB", models=SPATIAL)
def guided_grad_cam(batch: Batch) -> Tensor:
    """Guided Grad-CAM of the sigmoid output; of tokens, one number times guided backpropagation.

    Of the output [B, L, d] of a transformer's last block, the original takes tokens for channels
    and features for places, and the first place for all: ReLU(Σ_l mean_k(G_lk) A_l0). Whole maps
    are zero where it is not positive.
    """
    squashed = _sigmoid(batch)
    if activations.layer_of(squashed, None).output.ndim > 3:
        return squashed.maps({"name": "guided_grad_cam", "upsample": "nearest"})
    tokens = activations.layer_of(squashed, None).output
    weights = activations.layer_gradient(squashed, None).mean(2)
    factor = (weights * tokens[:, :, 0]).sum(1, keepdim=True).clamp(min=0)
    return factor * squashed.maps("guided_backprop")


@preset("andor_grad_cam", family="cam", cost="1 FB", models=SPATIAL)
def grad_cam(batch: Batch) -> Tensor:
    """Grad-CAM of the sigmoid output, cut off at zero and scaled to [0, 1] for each sample.

    A CLS token takes part: D + 1 places are squeezed to D by linear interpolation. Scaled before
    and after that, by (a − min) / (max + 10⁻⁷); a constant map becomes zero.
    """
    _, g = _places(batch)
    return _scaled_cam(batch, g.mean(2))


@preset("andor_grad_cam_plus_plus", family="cam", cost="1 FB", models=SPATIAL)
def grad_cam_plus_plus(batch: Batch) -> Tensor:
    """Grad-CAM++ of the sigmoid output, cut off and scaled as in `andor_grad_cam`."""
    a, g = _places(batch)
    alpha = g**2 / (2 * g**2 + a.sum(2, keepdim=True) * g**3 + 1e-6)
    return _scaled_cam(batch, (torch.where(g == 0, 0, alpha) * g.clamp(min=0)).sum(2))


def _places(batch: Batch) -> tuple[Tensor, Tensor]:
    """Activations and gradients [B, channels, places] of the layer that CAMs read, with CLS."""
    squashed = _sigmoid(batch)
    both = activations.layer_of(squashed, None).output, activations.layer_gradient(squashed, None)
    a, g = (t.mT if t.ndim == 3 else t.flatten(2) for t in both)
    return a, g


def _scaled_cam(batch: Batch, weights: Tensor) -> Tensor:
    a, _ = _places(batch)
    cam = _to_unit((weights[:, :, None] * a).sum(1).clamp(min=0))
    return _to_unit(activations.upsampled(cam[:, None], batch.x.shape[1:], "linear")[:, 0])


def _to_unit(maps: Tensor) -> Tensor:
    maps = maps - maps.amin(1, keepdim=True)
    return maps / (maps.amax(1, keepdim=True) + 1e-7)


@method("andor_lrp", library="assay", family="lrp", passes="1 FB", models=SPATIAL, source=SOURCE)
def lrp(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    add: Over = "batch",
) -> Tensor:
    """LRP-full of the original, of relevance 1 for the target (rules: `andor_relevance`).

    With add="batch" the branches of a sum are weighed by their sums over all samples of a batch,
    so that a map depends on the company of its sample; "sample" repairs that alone. With a CLS
    token its relevance only is used, and spread over the inputs. Known for the two networks of the
    study: ValueError for others.
    """
    return andor_relevance.relevance(batch, add)[0]


@method(
    "andor_lrp_rollout", library="assay", family="attention", passes="1 FB", models=TRANSFORMER,
    source=SOURCE,
)  # fmt: skip
def lrp_rollout(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    queries: Queries = "sum",
    add: Over = "batch",
) -> Tensor:
    """Π_l (I + mean over heads of R_l⁺), with R_l the attention's relevance in `andor_lrp`.

    Without a CLS token, the "sum" or "max" over queries minus the 1 of the identity, beside which
    what counts may be lost in single precision; with one, its row.
    """
    _, relevances = andor_relevance.relevance(batch, add)
    return _rolled_out(batch, [r.clamp(min=0).mean(1) for r in relevances], queries)


@method(
    "andor_transformer_attribution", library="assay", family="attention", passes="2 FB",
    models=TRANSFORMER, source=SOURCE,
)  # fmt: skip
def transformer_attribution(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    queries: Queries = "sum",
    add: Over = "batch",
) -> Tensor:
    """As `andor_lrp_rollout`, with (∇A_l ⊙ R_l)⁺, the gradient that of the sigmoid output."""
    _, slopes = attention.attention_gradient(_sigmoid(batch))
    pairs = zip(slopes, andor_relevance.relevance(batch, add)[1], strict=True)
    return _rolled_out(batch, [(g * r).clamp(min=0).mean(1) for g, r in pairs], queries)


def _rolled_out(batch: Batch, layers: list[Tensor], queries: Queries) -> Tensor:
    matrix = attention.rollout(layers, 0.5, normalise=False)
    if matrix.shape[-1] > batch.x.shape[1]:
        return attention.of_inputs(matrix, batch.x, "cls", None, "nearest")
    return attention.of_inputs(matrix, batch.x, queries, None, "nearest") - 1
