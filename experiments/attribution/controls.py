"""Maps that explain nothing, and one that explains everything: what rankings are read against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.attribution.registry import method
from experiments.messages import unknown
from experiments.randomness import SampleGenerators
from experiments.specs import Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments.attribution import edges
    from experiments.attribution.batch import Batch
    from experiments.data.dataset import Truth
else:
    torch = lazy.load("torch")
    edges = lazy.load("experiments.attribution.edges")


@method("random", library="assay", family="control", passes="0", stochastic=True)
def random(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    distribution: Literal["uniform", "normal"] = "uniform",
) -> Tensor:
    """Independent random numbers, uniform in [0, 1) or standard normal."""
    draw = generator.uniform if distribution == "uniform" else generator.normal
    return draw(*x.shape[1:]).to(x)


@method("constant", library="assay", family="control", passes="0")
def constant(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    value: float = 1.0,
) -> Tensor:
    """The same number everywhere."""
    return torch.full_like(x, value)


@method("input_only", library="assay", family="control", passes="0")
def input_only(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    absolute: bool = False,
) -> Tensor:
    """The input itself, without a look at the model."""
    return x.abs() if absolute else x


@method("sobel", library="assay", family="control", passes="0", source="Sobel & Feldman 1968")
def sobel(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    absolute: bool = False,
    direction: Literal["both", "horizontal", "vertical"] = "both",
    channels: Literal["mean", "each"] = "mean",
    size: Literal[3, 5] = 3,
    border: Literal["mirror", "repeat"] = "mirror",
) -> Tensor:
    """Edges of the input: Sobel's differences, smoothed across (not normalised).

    With g_x, g_y along the last and the second to last axis: g_x or g_y for one direction and
    their sum for both; `absolute`: |g_x|, |g_y| or √(g_x² + g_y²). Along T of series [C, T] and D
    of inputs [D] there is g_x only. Of the mean of the channels, the same for each, or of each
    channel. Beyond the border the input is mirrored at its last element or repeats it.

    |Sobel| of ROAR is absolute=True. SMERF's "Edge" is 1 minus the mean over channels of
    direction="horizontal", channels="each", size=5, scaled to [0, 1].
    Raises ValueError for "vertical" without a second axis.
    """
    return edges.sobel(x, absolute, direction, channels, size, border)


@method("laplace", library="assay", family="control", passes="0", source="Marr & Hildreth 1980")
def laplace(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    absolute: bool = False,
    channels: Literal["mean", "each"] = "mean",
    border: Literal["mirror", "repeat"] = "mirror",
) -> Tensor:
    """Second differences of the input, summed over its axes of positions; or their size.

    x_{i−1} − 2 x_i + x_{i+1} along each axis; channels and border as for sobel.
    """
    found = edges.laplace(x, channels, border)
    return found.abs() if absolute else found


@method("center_gaussian", library="assay", family="control", passes="0")
def center_gaussian(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    sigma: Positive = 0.25,
) -> Tensor:
    """exp(−d² / 2 sigma²), d the distance from the centre with each axis of length 1.

    The prior that objects are in the middle of pictures; all channels are alike, and so are all
    samples. In (0, 1].
    """
    return edges.center_gaussian(x, sigma)


@method("oracle", library="assay", family="control", passes="0", needs_truth=True)
def oracle(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    truth: Truth | None,
    batch: Batch,
    mark: str = "relevant",
) -> Tensor:
    """The known truth: 1 where a map should point, else 0.

    mark: of inputs of a formula "relevant", in some minimal sufficient set, or "necessary", in
    all of them; of images a role of their regions, such as "relevant".
    Raises ValueError for another one.
    """
    known = ["relevant", "necessary"] if truth is not None else sorted(batch.regions)
    if mark not in known:
        raise ValueError(f"method 'oracle': {unknown('mark', mark, known)}")
    if truth is not None:
        return getattr(truth, mark).to(x)
    there = batch.regions[mark].to(x.device).any(1)
    return (there if x.ndim == 2 else there.unsqueeze(1)).expand(x.shape).to(x)
