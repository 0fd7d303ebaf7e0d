"""Methods that hide parts of the input and watch the output.

Hidden elements are at their baseline. A feature is an element, a pixel, a patch or a channel
(`features.feature_ids`); every element of the map has the value of its feature. Outputs of masked
inputs are kept for all classes, so that another target costs no pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from experiments import lazy
from experiments.attribution.features import (
    Features,
    count_of,
    feature_ids,
    positions_of,
    spread,
)
from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators
from experiments.specs import Count, NonNegative, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments.attribution import linear_models, masks, perturbation, references
    from experiments.attribution.batch import Batch
else:
    references = lazy.load("experiments.attribution.references")
    torch = lazy.load("torch")
    linear_models = lazy.load("experiments.attribution.linear_models")
    masks = lazy.load("experiments.attribution.masks")
    perturbation = lazy.load("experiments.attribution.perturbation")

Share = Annotated[float, Field(gt=0, lt=1)]

MOST_REGRESSORS = 4096  # a Gram matrix of 128 MiB
MASKS_AT_ONCE = 256  # where masks are only summed


@method(
    "feature_ablation",
    library="assay",
    peer="captum",
    family="perturbation",
    passes="(d + 1) F for d features",
    source="Zeiler & Fergus 2014",
)
def feature_ablation(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    features: Features = "inputs",
    patch: Count = 8,
) -> Tensor:
    """Fall of the output when one feature is replaced by its baseline: f(x) − f(x without i)."""
    ids = feature_ids(x.shape[1:], features, patch)
    without = batch.once(
        ("without each", features, patch),
        lambda: perturbation.masked_outputs(batch, count_of(ids), _all_but_one(ids)),
        per_target=False,
    )
    fall = batch.selected()[:, None] - perturbation.selected_each(without, target)
    return spread(fall, ids)


@method(
    "feature_permutation",
    library="assay",
    peer="captum",
    family="perturbation",
    passes="(`draws` · d + 1) F for d features",
    stochastic=True,
    source="Breiman 2001",
)
def feature_permutation(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    features: Features = "inputs",
    patch: Count = 8,
    reference: Literal["shuffled", "data"] = "shuffled",
    draws: Count = 1,
) -> Tensor:
    """Mean fall of the output when a feature gets values from elsewhere (after Breiman 2001).

    f(x) − f(x with feature i of r), over `draws` references r: x with its positions shuffled, all
    channels alike, or rows of the background data. Permuting values between the samples of a
    batch, as for the importances of a data set (section 10 there), would make a map depend on
    the company of its sample; with "data" the expectation is the same.
    """
    ids = feature_ids(x.shape[1:], features, patch)

    def permuted() -> Tensor:
        others = references.references(
            reference, x, baseline, generator,
            count=draws, scale=0.0, background=batch.background,
        )  # fmt: skip
        found = (
            perturbation.masked_outputs(
                batch, count_of(ids), _all_but_one(ids), absent=other[:, None]
            )
            for other in others
        )
        return functools.reduce(torch.add, found) / draws

    key = ("permuted", generator.purpose, features, patch, reference, draws)
    outputs = batch.once(key, permuted, per_target=False)
    fall = batch.selected()[:, None] - perturbation.selected_each(outputs, target)
    return spread(fall, ids)


@method(
    "occlusion",
    library="assay",
    peer="captum",
    family="perturbation",
    passes="(windows + 1) F",
    source="Zeiler & Fergus 2014",
)
def occlusion(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    window: Count = 3,
    stride: Count = 1,
    channels: Literal["together", "apart"] = "together",
) -> Tensor:
    """Fall of the output when a window of neighbours is replaced (Zeiler & Fergus 2014).

    An element gets the mean over the windows that cover it. The window is `window` long along
    each axis of positions and takes all channels together, or one at a time; there are
    ⌈(n − window) / stride⌉ + 1 of them along n positions, the last one cut at the border.
    Raises ValueError if the window is longer than an axis, or shorter than the stride.
    """
    positions = positions_of(x.shape[1:])
    if window > min(positions):
        raise ValueError(
            f"method 'occlusion': window {window} is longer than the {min(positions)} inputs"
        )
    if stride > window:
        raise ValueError(
            f"method 'occlusion': stride {stride} is longer than window {window}, "
            "which leaves inputs out"
        )
    covers = [_windows(size, window, stride) for size in positions]
    if x.ndim > 2:
        several = x.shape[1]
        eye = torch.eye(several, dtype=torch.bool)
        covers.insert(0, eye if channels == "apart" else eye.any(0, keepdim=True))
    sizes = [len(cover) for cover in covers]
    total = int(torch.tensor(sizes).prod())

    def visible(a: int, b: int) -> Tensor:
        which = torch.unravel_index(torch.arange(a, b), sizes)
        hidden = torch.ones(b - a, *(1 for _ in covers), dtype=torch.bool)
        for axis, (cover, index) in enumerate(zip(covers, which, strict=True)):
            wide = [1] * len(covers)
            wide[axis] = cover.shape[1]
            hidden = hidden & cover[index].reshape(-1, *wide)
        return ~hidden

    outputs = batch.once(
        ("occluded", window, stride, channels),
        lambda: perturbation.masked_outputs(batch, total, visible),
        per_target=False,
    )
    fall = batch.selected()[:, None] - perturbation.selected_each(outputs, target)
    fall, weight = fall.unflatten(1, sizes), fall.new_ones(1, *sizes)
    for cover in covers:  # each turn sums over the first axis of windows and appends its positions
        fall = torch.tensordot(fall, cover.to(fall), ([1], [0]))
        weight = torch.tensordot(weight, cover.to(weight), ([1], [0]))
    return fall / weight


@method(
    "rise",
    library="assay",
    family="perturbation",
    passes="`samples` F",
    stochastic=True,
    source="Petsiuk et al. 2018",
)
def rise(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    samples: Count = 1000,
    cells: Count = 7,
    keep: Share = 0.5,
    normalise: Literal["expected", "observed"] = "expected",
) -> Tensor:
    """Mean of random masks, weighted by the output under the mask (Petsiuk et al. 2018, eq. 6).

    Σ f(M ⊙ x) M / Σ M, with the sum below as expected, `samples` · `keep`, or as it came. The
    masks, the same for all samples and classes, are grids of `cells` per axis that are 1 with
    probability `keep`, enlarged by linear interpolation and shifted. Of inputs [D], which have no
    neighbours, each is kept by itself. All channels of a position have the same value. The output
    is f itself, where the paper has a probability.
    """
    purpose = f"rise/{cells}/{keep}"
    draw = perturbation.shared_generator(batch, purpose)
    positions = positions_of(x.shape[1:])
    smooth = x.ndim > 2
    shape = [min(cells, size) for size in positions] if smooth else positions
    grid = (draw.uniform(samples, *shape)[0] < keep).to(x)
    shift = draw.uniform(samples, len(positions))[0].to(x)

    def visible(a: int, b: int) -> Tensor:
        if not smooth:
            return grid[a:b]
        return masks.random_masks(grid[a:b], shift[a:b], positions)[:, None]

    outputs = batch.once(
        (purpose, samples),
        lambda: perturbation.masked_outputs(batch, samples, visible),
        per_target=False,
    )
    chosen = perturbation.selected_each(outputs, target)
    total = torch.zeros_like(x[:, :1] if smooth else x)
    weight = torch.zeros_like(total[0])
    for start in range(0, samples, MASKS_AT_ONCE):
        mask = visible(start, min(start + MASKS_AT_ONCE, samples))
        total = total + torch.einsum("bn,n...->b...", chosen[:, start : start + len(mask)], mask)
        weight = weight + mask.sum(0)
    if normalise == "observed":
        total = total / weight.clamp(min=torch.finfo(x.dtype).tiny)
    else:
        total = total / (samples * keep)
    return total.expand_as(x)


@method(
    "lime",
    library="assay",
    peer="captum",
    family="perturbation",
    passes="`samples` F",
    stochastic=True,
    source="Ribeiro et al. 2016",
)
def lime(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    samples: Count = 200,
    features: Features = "inputs",
    patch: Count = 8,
    regression: Literal["ridge", "lasso"] = "ridge",
    strength: NonNegative | None = None,
    distance: Literal["cosine", "euclidean"] = "cosine",
    space: Literal["inputs", "coalitions"] = "inputs",
    width: Positive = 1.0,
) -> Tensor:
    """Coefficients of a linear model of f around x (Ribeiro et al. 2016, equation 1).

    The coalitions z ∈ {0, 1}^d of features that stay are fair coin tosses, the same for all
    samples. With weights π = exp(−distance² / 2 width²), of x to the masked x or of z to all
    ones, and an intercept c₀, the coefficients c minimise

        ridge: Σ π (f − c₀ − c·z)² + strength ‖c‖²
        lasso: Σ π (f − c₀ − c·z)² / (2 Σ π) + strength ‖c‖₁

    which are captum's Lime with scikit-learn's models. The default strength is 1 for ridge, as in
    the authors' package, and 0.01 for the lasso, as in captum's; note that a lasso of outputs
    that vary less than that is zero. Of several solutions of ridge with strength 0, the smallest.
    Raises ValueError for more than 4096 features.
    """
    ids = feature_ids(x.shape[1:], features, patch)
    count = count_of(ids)
    if count > MOST_REGRESSORS:
        raise ValueError(
            f"method 'lime': {count} features are too many for a regression (at most "
            f"{MOST_REGRESSORS}); set features to 'patches'"
        )
    tosses = perturbation.shared_generator(batch, "coalitions/coin").uniform(samples, count)[0]
    present = (tosses < 0.5).to(x.device)
    outputs = batch.once(
        ("coin coalitions", samples, features, patch),
        lambda: perturbation.masked_outputs(batch, samples, lambda a, b: present[a:b][:, ids]),
        per_target=False,
    )
    design = present.double()
    if space == "inputs":
        far = linear_models.masked_distances(x.double(), baseline.double(), design, ids, distance)
    else:
        far = linear_models.coalition_distances(design, distance)[None]
    logarithm = -(far**2) / (2 * width**2)
    chosen = perturbation.selected_each(outputs, target).double()
    if regression == "ridge":
        coefficients = linear_models.ridge(design, chosen, logarithm, _given(strength, 1.0))
    else:
        coefficients = linear_models.lasso(design, chosen, logarithm, _given(strength, 0.01))
    return spread(coefficients, ids).to(x)


def _given(value: float | None, usual: float) -> float:
    return usual if value is None else value


def _all_but_one(ids: Tensor) -> Callable[[int, int], Tensor]:
    """Masks a .. b − 1 of which the i-th hides feature i."""

    def visible(a: int, b: int) -> Tensor:
        return ids != torch.arange(a, b).reshape(-1, *(1 for _ in ids.shape))

    return visible


def _windows(size: int, window: int, stride: int) -> Tensor:
    """bool [windows, size]: the positions that each window covers."""
    start = torch.arange(-(-(size - window) // stride) + 1)[:, None] * stride
    place = torch.arange(size)
    return (place >= start) & (place < start + window)
