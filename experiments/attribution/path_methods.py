"""Gradients along paths between a reference and the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.attribution.references import Reference, normals, references
from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators
from experiments.specs import Count, NonNegative, Positive

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution.batch import Batch
else:
    np = lazy.load("numpy")
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")

Rule = Literal[
    "gausslegendre",
    "riemann_left",
    "riemann_middle",
    "riemann_right",
    "trapezoid",
    "linspace",
]


@method(
    "integrated_gradients",
    library="assay",
    peer="captum",
    family="gradient",
    passes="`steps` FB",
    aliases=("ig",),
    source="Sundararajan et al. 2017",
)
def integrated_gradients(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    steps: Count = 50,
    rule: Rule = "gausslegendre",
    reference: Reference = "given",
    scale: Positive = 1.0,
    path: Literal["to_input", "past_input"] = "to_input",
    multiply_by_inputs: bool = True,
) -> Tensor:
    """Path integral of the gradient from a reference (Sundararajan et al. 2017, equation 1).

    e = (x − b) · Σ_i w_i ∇f(b + α_i (x − b)), which sums to f(x) − f(b) as `steps` grows.

    rule: where the points α_i are, and their weights w_i, which sum to one. The Riemann sums have
        equal steps; "trapezoid" has both ends at half weight (captum's weights sum to
        1 − 1/steps instead); "linspace" has both ends at full weight (the code of ROAR).
    reference, scale: what b is; see `references.Reference`. A random one is drawn once per sample.
    path: "past_input" goes from x to 2x − b instead: with "riemann_left" and a zero reference,
        what innvestigate before 2.0 computed.
    multiply_by_inputs: without it, the mean gradient alone.
    Raises ValueError if "trapezoid" or "linspace" have fewer than two steps.
    """
    (start,) = references(
        reference, x, baseline, generator, count=1, scale=scale, background=background(batch)
    )
    alphas, weights = quadrature(rule, steps)
    origin = x if path == "past_input" else start
    points = (origin + alpha * (x - start) for alpha in alphas)
    mean = sum_of_gradients(model, x, zip(points, weights, strict=True), target)
    return mean * (x - start) if multiply_by_inputs else mean


@method(
    "gradient_shap",
    library="assay",
    family="gradient",
    passes="`samples` FB",
    stochastic=True,
    source="Lundberg & Lee 2017",
)
def gradient_shap(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    samples: Count = 5,
    noise: NonNegative = 0.0,
    reference: Reference = "given",
    scale: Positive = 1.0,
) -> Tensor:
    """Mean of (x' − b) · gradient at a random point between b and a noisy x' (as captum has it).

    x' = x + ε with normal ε of standard deviation `noise`; b is one of the references; the point
    is b + α (x' − b) with α uniform in [0, 1). Every sample draws its own.
    """
    draws = normals(batch.generator("gradient_shap/noise"), tuple(x.shape[1:]), samples)
    ends = (x + noise * drawn.to(x) for drawn in draws) if noise else repeat(x, samples)
    starts = references(
        reference, x, baseline, batch.generator("gradient_shap/reference"), count=samples,
        scale=scale, background=background(batch),
    )  # fmt: skip
    lines = zip(ends, starts, strict=True)
    return _along_random_lines(model, x, lines, target, generator, samples)


@method(
    "expected_gradients",
    library="assay",
    family="gradient",
    passes="`samples` FB",
    stochastic=True,
    source="Erion et al. 2021",
)
def expected_gradients(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    samples: Count = 20,
    reference: Reference = "given",
    scale: Positive = 1.0,
) -> Tensor:
    """Mean of (x − b) · gradient at random points between b and x (Erion et al. 2021, equation 3).

    An unbiased estimate of integrated gradients, averaged over the references b
    (see `references.Reference`): its error falls with 1/√samples.
    """
    starts = references(
        reference, x, baseline, batch.generator("expected_gradients/reference"), count=samples,
        scale=scale, background=background(batch),
    )  # fmt: skip
    lines = ((x, start) for start in starts)
    return _along_random_lines(model, x, lines, target, generator, samples)


def background(batch: Batch) -> Tensor | None:
    """Background data [M, ...] of the batch, if it has any."""
    return batch.background


def quadrature(rule: Rule, steps: int) -> tuple[list[float], list[float]]:
    """Points in [0, 1] and their weights, which sum to one.

    Raises ValueError for a rule with both ends and fewer than two steps.
    """
    if rule == "gausslegendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return ((points + 1) / 2).tolist(), (weights / 2).tolist()
    if rule in ("trapezoid", "linspace"):
        if steps < 2:
            raise ValueError(f"method 'integrated_gradients': rule {rule!r} needs at least 2 steps")
        inner = np.ones(steps)
        if rule == "trapezoid":
            inner[[0, -1]] = 0.5
        return np.linspace(0, 1, steps).tolist(), (inner / inner.sum()).tolist()
    shift = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[rule]
    return ((np.arange(steps) + shift) / steps).tolist(), [1 / steps] * steps


def _along_random_lines(
    model: nn.Module,
    x: Tensor,
    lines: Iterable[tuple[Tensor, Tensor]],
    target: Tensor,
    generator: SampleGenerators,
    samples: int,
) -> Tensor:
    """Mean over lines (end, start) [B, ...] of (end − start) · gradient at a random point."""
    alphas = generator.uniform(samples).to(x).unbind(1)

    def terms() -> Iterator[tuple[Tensor, Tensor]]:
        for (end, start), alpha in zip(lines, alphas, strict=True):
            share = alpha.reshape(-1, *(1,) * (x.ndim - 1))
            yield start + share * (end - start), (end - start) / samples

    return sum_of_gradients(model, x, terms(), target)


def sum_of_gradients(
    model: nn.Module,
    x: Tensor,
    terms: Iterable[tuple[Tensor, Tensor | float]],
    target: Tensor,
) -> Tensor:
    """Σ factor · gradient at point over terms (point [B, ...], factor), one FB per term.

    As many points as fill a pass go together; no more of them are held.
    """
    total = torch.zeros_like(x)
    several = max(1, passes.rows_per_pass(model, x) // len(x))
    waiting = iter(terms)
    while part := list(islice(waiting, several)):
        points = torch.cat([point for point, _ in part])
        repeated = target.repeat(len(part), *(1,) * (target.ndim - 1))
        gradients, _ = passes.gradients(model, points, repeated)
        for gradient, (_, factor) in zip(gradients.split(len(x)), part, strict=True):
            total += factor * gradient
    return total
