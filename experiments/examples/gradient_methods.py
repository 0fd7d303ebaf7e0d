"""Example importance from gradients of a loss of single examples with respect to the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from experiments import lazy
from experiments.examples.registry import example_method
from experiments.specs import Count, NonNegative, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.examples import curvature
    from experiments.examples.problem import Examples
else:
    torch = lazy.load("torch")
    curvature = lazy.load("experiments.examples.curvature")

Rates = Positive | Annotated[Sequence[Positive], Field(min_length=1)]


@example_method(
    "influence",
    family="gradient",
    passes="(N_test + N_train) FB, and 2 FB per fitted sample, vector and step of the solver",
    stochastic=True,
    aliases=("influence_functions",),
    source="Koh & Liang 2017",
)
def influence(
    examples: Examples,
    *,
    damping: NonNegative = 0.01,
    solver: Literal["auto", "exact", "cg", "lissa"] = "auto",
    tolerance: Positive = 1e-4,
    iterations: Count = 200,
    scale: Positive = 1000.0,
    depth: Count = 100,
    rows: Count = 100,
) -> Tensor:
    """∇L(test)ᵀ (H + λI)⁻¹ ∇L(train), H the Hessian of the mean loss: what leaving out costs.

    Leaving one of N examples out raises the loss of the test sample by about 1/N of it
    (Koh & Liang 2017, equation 2, with the opposite sign). H is that of `Examples.fitted_on`,
    λ the damping.

    solver: "exact" forms H (up to 4 096 weights; indefinite ones too); "cg" conjugate gradients
        to `tolerance` in at most `iterations` steps; "lissa" the recursion
        v ← g + (1 − λ/scale) v − H_B v/scale of Agarwal et al. (2017), `depth` times with H_B the
        Hessian of `rows` random samples, the same for all vectors; its result is v/scale. "auto"
        takes "exact" up to 1 000 weights, else "cg". The recursion is cut, not converged, if depth
        is not much more than scale/λ: then it tends to a multiple of ∇Lᵀ∇L.

    Raises ValueError where H + λI is singular, or, for "cg", not positive, where a solver does not
    converge, and for "exact" with too many weights.
    """
    if solver == "auto":
        solver = "exact" if examples.size <= curvature.FEW else "cg"
    if solver == "exact":
        inverse = curvature.exact(examples, damping)
    elif solver == "cg":
        inverse = curvature.conjugate_gradients(examples, damping, tolerance, iterations)
    else:
        inverse = curvature.lissa(examples, damping, scale, depth, rows)
    return curvature.products(examples, inverse)


@example_method(
    "tracin",
    family="gradient",
    passes="(N_test + N_train) FB per checkpoint",
    source="Pruthi et al. 2020",
)
def tracin(examples: Examples, *, learning_rates: Rates = 1.0, cosine: bool = False) -> Tensor:
    """Σ over checkpoints of learning rate × ∇L(test)ᵀ∇L(train) (TracInCP of Pruthi et al. 2020).

    Without checkpoints, the current weights are the only one. `learning_rates` is one for all or
    one per checkpoint; `cosine` divides each gradient by its norm, that of a zero gradient
    being 1. Raises ValueError if there are not as many learning rates as checkpoints.
    """
    known: list[int | None] = list(range(len(examples.checkpoints))) or [None]
    if isinstance(learning_rates, (int, float)):
        rates = [float(learning_rates)] * len(known)
    else:
        rates = list(learning_rates)
    if len(rates) != len(known):
        raise ValueError(
            f"example method 'tracin': {len(rates)} learning_rates for {len(known)} checkpoints"
        )
    parts = [
        rate * curvature.products(examples, checkpoint=checkpoint, cosine=cosine)
        for rate, checkpoint in zip(rates, known, strict=True)
    ]
    return torch.stack(parts).sum(0)


@example_method(
    "gradient_similarity",
    family="gradient",
    passes="(N_test + N_train) FB",
    aliases=("gradient_cosine",),
    source="Charpiat et al. 2019",
)
def gradient_similarity(examples: Examples, *, cosine: bool = True) -> Tensor:
    """Cosine of the gradients of two losses under the current weights, or their dot product.

    Charpiat et al. (2019). The cosine with a zero gradient is 0.
    """
    return curvature.products(examples, cosine=cosine)
