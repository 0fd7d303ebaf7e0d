"""Statistics of any method's maps over noisy copies of the input, drawn once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from experiments import lazy
from experiments.attribution.references import extremes, normals
from experiments.attribution.registry import method, resolve
from experiments.randomness import SampleGenerators
from experiments.specs import Count, NonNegative

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution.batch import Batch
    from experiments.models import structure
else:
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")
    structure = lazy.load("experiments.models.structure")


def _known(spec: Any) -> Any:
    known = resolve(spec)[0]
    if known.needs_truth or known.needs_objects:
        what = "truth" if known.needs_truth else "objects"
        raise ValueError(f"{known.name!r} needs the {what}, which noisy copies lack")
    return spec


# A method by name, or as {name: ..., parameter: ...}, checked when the configuration is.
Base = Annotated[str | dict[str, Any], AfterValidator(_known)]

PASSES = "`samples` × those of `base`, shared by smoothgrad, smoothgrad_squared and vargrad"


@method(
    "smoothgrad",
    library="assay",
    family="gradient",
    passes=PASSES,
    stochastic=True,
    aliases=("sg",),
    source="Smilkov et al. 2017",
)
def smoothgrad(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    samples: Count = 20,
    noise: NonNegative = 0.2,
    relative: bool = False,
    base: Base = "gradient",
) -> Tensor:
    """Mean map over noisy copies of the input (Smilkov et al. 2017, section 2).

    (1/n) Σ_j e(x + η_j), η_j normal. Of `base`, the gradient in the paper.
    noise, relative: the standard deviation in units of the input: 0.2 is a tenth of the range
        [−1, 1]; with `relative`, in units of the range (maximum − minimum) of each sample, so
        that a constant sample gets none.
    Raises ValueError if `base` does not apply to this kind of model.
    """
    return _noisy_maps(batch, base, samples, noise, relative)[0]


@method(
    "smoothgrad_squared",
    library="assay",
    family="gradient",
    passes=PASSES,
    stochastic=True,
    aliases=("sg_sq",),
    source="Hooker et al. 2019",
)
def smoothgrad_squared(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    samples: Count = 20,
    noise: NonNegative = 0.2,
    relative: bool = False,
    base: Base = "gradient",
) -> Tensor:
    """Mean squared map over noisy copies of the input (Hooker et al. 2019, section 4.2).

    (1/n) Σ_j e(x + η_j)². Parameters and errors are those of `smoothgrad`, and so are the copies.
    """
    mean, variance = _noisy_maps(batch, base, samples, noise, relative)
    return variance + mean.square()


@method(
    "vargrad",
    library="assay",
    family="gradient",
    passes=PASSES,
    stochastic=True,
    source="Adebayo et al. 2018",
)
def vargrad(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    samples: Count = 20,
    noise: NonNegative = 0.2,
    relative: bool = False,
    base: Base = "gradient",
) -> Tensor:
    """Variance of the map over noisy copies of the input (Adebayo et al. 2018, appendix).

    (1/n) Σ_j (e(x + η_j) − mean)², 0 for one copy. Parameters and errors are those of
    `smoothgrad`, and so are the copies: smoothgrad_squared = vargrad + smoothgrad².
    """
    return _noisy_maps(batch, base, samples, noise, relative)[1]


def _noisy_maps(
    batch: Batch, base: str | Mapping[str, Any], samples: int, noise: float, relative: bool
) -> tuple[Tensor, Tensor]:
    """Mean and variance [B, ...] of the maps of `base`, computed once for all who ask."""
    found, given = resolve(base)
    kind = structure.kind_of(batch.model)
    if not found.applies_to(kind):
        raise ValueError(f"base {found.name!r} does not apply to a model of kind {kind!r}")
    spec = {"name": found.name, **found.defaults, **given}
    key = ("noisy maps", repr(sorted(spec.items())), samples, noise, relative)
    return batch.once(key, lambda: _mean_and_variance(batch, spec, samples, noise, relative))


def _mean_and_variance(
    batch: Batch, spec: dict[str, Any], samples: int, noise: float, relative: bool
) -> tuple[Tensor, Tensor]:
    """Welford's recurrence: no more copies are held at a time than make a pass."""
    x = batch.x
    deviation: Tensor | float = noise
    if relative:
        low, high = extremes(x)
        deviation = noise * (high - low)
    draws = normals(batch.generator("attribution/smoothgrad"), tuple(x.shape[1:]), samples)
    several = max(1, passes.rows_per_pass(batch.model, x) // len(x))
    mean = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    squares = torch.zeros_like(mean)
    seen = 0
    while part := list(islice(draws, several)):
        copies = torch.stack([x + deviation * drawn.to(x) for drawn in part], 1)
        for found in (
            _copies(batch, copies, first=seen).maps(spec).unflatten(0, copies.shape[:2]).unbind(1)
        ):
            seen += 1
            change = found - mean
            mean += change / seen
            squares += change * (found - mean)
    return mean, squares / samples


def _copies(batch: Batch, copies: Tensor, first: int) -> Batch:
    """Copies [B, S, ...] as a batch of B × S rows that is forgotten after use.

    A random draw of copy j of sample i is that of (i, j), whatever other copies there are.
    """
    from experiments.attribution.batch import Batch

    several = copies.shape[1]
    return Batch(
        batch.model,
        copies.flatten(0, 1),
        batch.target.repeat_interleave(several, 0),
        baseline=batch.baseline,
        seed=batch.seed,
        indices=[
            (*(index if isinstance(index, tuple) else (index,)), first + copy)
            for index in batch.indices
            for copy in range(several)
        ],
        purpose=f"{batch.purpose}noisy/",
    )
