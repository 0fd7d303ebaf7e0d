"""Methods that learn, per sample, which part of the input or of a layer the output needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from experiments import lazy
from experiments.attribution.features import positions_of
from experiments.attribution.registry import SPATIAL, method
from experiments.randomness import SampleGenerators
from experiments.specs import Count, NonNegative, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution import activations, bottleneck, learned_masks, references
    from experiments.attribution.batch import Batch
    from experiments.models import structure
else:
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")
    activations = lazy.load("experiments.attribution.activations")
    structure = lazy.load("experiments.models.structure")
    bottleneck = lazy.load("experiments.attribution.bottleneck")
    learned_masks = lazy.load("experiments.attribution.learned_masks")
    references = lazy.load("experiments.attribution.references")

Share = Annotated[float, Field(gt=0, lt=1)]
Absent = Literal["given", "zero", "mean", "blurred"]


@method(
    "extremal_perturbation",
    library="assay",
    family="perturbation",
    passes="`steps` FB + 2 F",
    source="Fong et al. 2019",
)
def extremal_perturbation(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    area: Share = 0.1,
    game: Literal["preserve", "delete"] = "preserve",
    reference: Absent = "blurred",
    scale: Positive = 10.0,
    steps: Count = 100,
    rate: Positive = 0.05,
    cells: Count = 32,
    sigma: Positive = 1.0,
    weight: NonNegative = 5.0,
    growth: Positive = 20.0,
) -> Tensor:
    """The mask of a given area that keeps the output highest (Fong et al. 2019, equation 4).

    max over masks m of f(m ⊙ x + (1 − m) ⊙ r) / u − λ ‖sort(m) − wanted‖² / n, where `wanted` has
    the share `area` of ones and λ grows from `weight` to `weight` · `growth`; or, to delete, the
    mask without which the output is lowest. The unit u is |f(x) − f(r)| or larger (see
    `learned_masks.learn`), so that λ means the same for all models. A mask is a grid of `cells`
    per axis, each a Gaussian blob of `sigma` cells, combined by a smooth maximum; of inputs [D]
    each element is by itself. r is the `reference`: the baseline, zeros, the channels' means, or
    x blurred by a Gaussian of `scale` positions. The map is m, in [0, 1], at about `area`
    everywhere if the output does not care.
    """
    positions = positions_of(x.shape[1:])
    size = positions if x.ndim == 2 else tuple(min(cells, p) for p in positions)
    render = learned_masks.dilated(positions, cells, sigma, x) if x.ndim > 2 else lambda grid: grid

    def penalty(grid: Tensor, mask: Tensor, step: int) -> Tensor:
        return weight * growth ** (step / steps) * learned_masks.off_area(mask, area)

    absent, gap = _absent(batch, reference, scale)
    grid = learned_masks.learn(
        model, x, target, absent, gap, start=x.new_full(size, 0.5), render=render,
        penalty=penalty, game=game, steps=steps, rate=rate,
    )  # fmt: skip
    return _over_channels(render(grid), x)


@method(
    "meaningful_perturbation",
    library="assay",
    family="perturbation",
    passes="`steps` FB + 2 F",
    source="Fong & Vedaldi 2017",
)
def meaningful_perturbation(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    game: Literal["preserve", "delete"] = "delete",
    reference: Absent = "blurred",
    scale: Positive = 10.0,
    steps: Count = 100,
    rate: Positive = 0.05,
    cells: Count = 28,
    sparsity: NonNegative = 1.0,
    smoothness: NonNegative = 0.2,
    power: Positive = 3.0,
) -> Tensor:
    """The smallest smooth mask whose deletion lowers the output most (Fong & Vedaldi 2017, eq. 6).

    min over masks m of f((1 − m) ⊙ x + m ⊙ r) / u + `sparsity` · mean(m) + `smoothness` ·
    mean |∇m|^`power`; to preserve, of −f(m ⊙ x + (1 − m) ⊙ r) / u instead. In units of u, which is
    |f(x) − f(r)| or larger (see `learned_masks.learn`), sparsity 1 deletes what counts more than
    the average. The mask is a grid of `cells` per axis, enlarged by linear interpolation; of
    inputs [D] each element is by itself, and nothing is smoothed. r is as for
    extremal_perturbation. Where the paper averages over jitter, there is none. The map is m, in
    [0, 1].
    """
    positions = positions_of(x.shape[1:])
    size = positions if x.ndim == 2 else tuple(min(cells, p) for p in positions)
    render = learned_masks.linear(positions, cells, x) if x.ndim > 2 else lambda grid: grid

    def penalty(grid: Tensor, mask: Tensor, step: int) -> Tensor:
        cost = sparsity * mask.flatten(1).mean(1)
        if x.ndim > 2:
            cost = cost + smoothness * learned_masks.total_variation(grid, power)
        return cost

    absent, gap = _absent(batch, reference, scale)
    grid = learned_masks.learn(
        model, x, target, absent, gap, start=x.new_full(size, 0.5), render=render,
        penalty=penalty, game=game, steps=steps, rate=rate,
    )  # fmt: skip
    return _over_channels(render(grid), x)


@method(
    "iba",
    library="assay",
    family="perturbation",
    passes="(1 + `draws`) F + `steps` · `copies` FB of the head",
    models=SPATIAL,
    stochastic=True,
    aliases=("information_bottleneck",),
    source="Schulz et al. 2020",
)
def iba(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    layer: str | None = None,
    statistics: Literal["shuffled", "data"] = "shuffled",
    draws: Count = 10,
    objective: Literal["probability", "output"] = "probability",
    beta: NonNegative = 10.0,
    steps: Count = 10,
    copies: Count = 10,
    rate: Positive = 1.0,
    start: float = 5.0,
    sigma: NonNegative = 1.0,
    floor: Positive = 0.01,
) -> Tensor:
    """Bits that a layer must pass on for the prediction (Schulz et al. 2020, equations 2, 6, 7).

    The layer's output R becomes z = λR + (1 − λ)ε with noise ε of R's mean μ and standard
    deviation s (at least `floor`). λ = sigmoid(α), smoothed by a Gaussian of `sigma` positions,
    minimises −log p + `beta` · mean KL(p(z|R) ‖ N(μ, s²)), by `steps` of Adam from α = `start`,
    over `copies` draws of the noise. The map is the KL divergence in bits, summed over channels,
    linearly enlarged to the positions of the input; all channels get the same.

    μ and s are those of each unit over the background data of the batch, as in the paper; or,
    which asks for no data and depends on no other sample, of each channel over `draws` versions
    of the sample itself with shuffled positions: what the layer says of the same values without
    their order.
    p is the softmax of the target, for weights w of outputs Σ w log p; objective "output" takes
    −f / |f(x)| in its place, for models without classes.
    Layer: as for CAM methods. The λ of tokens is not smoothed.
    Raises ValueError for statistics "data" without background data.
    """
    found = activations.layer_of(batch, layer)
    where, r = found.site, found.output

    def known() -> tuple[Tensor, Tensor]:
        if statistics == "data":
            rows = references.data(batch.background, x)
            rows = bottleneck.outputs_of_site(model, rows, where)
            return rows.mean(0, keepdim=True), rows.std(0, keepdim=True, correction=0)
        versions = references.references(
            "shuffled", x, baseline, batch.generator("iba/shuffled"),
            count=draws, scale=0.0, background=None,
        )  # fmt: skip
        return bottleneck.channel_statistics(model, versions, where)

    key = ("iba statistics", layer, statistics, draws)
    mean, spread = (t.to(r).expand_as(r) for t in batch.once(key, known, per_target=False))
    size = batch.selected().abs()
    bits = bottleneck.bits(
        model, where, x, target, torch.where(size > 0, size, 1), r, mean, spread.clamp(min=floor),
        generator.normal(copies, *r.shape[1:]).to(r),
        misfit=bottleneck.unlikely if objective == "probability" else bottleneck.low,
        beta=beta, steps=steps, rate=rate, start=start, sigma=sigma,
    )  # fmt: skip
    grid = structure.positions(model, where, bits, x.shape[1:]).sum(1)
    return activations.placed(batch, grid, False, "linear")


def _absent(batch: Batch, reference: Absent, scale: float) -> tuple[Tensor, Tensor]:
    """What hidden elements look like, [B, ...], and |f(x) − f(absent)|, [B]."""
    if reference == "given":
        absent, hidden = batch.baseline.expand_as(batch.x), batch.baseline_outputs()
        hidden = hidden.expand(len(batch.x), -1)
    else:

        def make() -> Tensor:
            (made,) = references.references(
                reference, batch.x, batch.baseline, batch.generator("absent"),
                count=1, scale=scale, background=None,
            )  # fmt: skip
            return made

        key = ("absent", reference, scale)
        absent = batch.once(key, make, per_target=False)
        hidden = batch.once(
            (*key, "outputs"), lambda: passes.outputs(batch.model, absent), per_target=False
        )
    return absent, (batch.selected() - passes.selected(hidden, batch.target)).abs()


def _over_channels(mask: Tensor, x: Tensor) -> Tensor:
    """A map of positions [B, ...] repeated over the channels of x."""
    return (mask if mask.ndim == x.ndim else mask[:, None]).expand_as(x)
