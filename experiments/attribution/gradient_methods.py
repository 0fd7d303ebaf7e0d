"""The gradient itself and its simplest readings: one pass for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators

if TYPE_CHECKING:
    from torch import Tensor, nn

    from experiments.attribution.batch import Batch

PASSES = "1 FB, shared by all readings of the gradient"


@method(
    "gradient",
    library="assay",
    peer="captum",
    family="gradient",
    passes=PASSES,
    aliases=("saliency",),
    source="Simonyan et al. 2014",
)
def gradient(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
) -> Tensor:
    """Gradient of the explained output, with its sign (Simonyan et al. 2014, section 3).

    e = ∂f/∂x, of the shape of x. Their map is its absolute value: `absolute_gradient`.
    """
    return batch.gradient()


@method(
    "absolute_gradient",
    library="assay",
    peer="captum",
    family="gradient",
    passes=PASSES,
    source="Simonyan et al. 2014",
)
def absolute_gradient(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
) -> Tensor:
    """Absolute value of the gradient, |∂f/∂x| (Simonyan et al. 2014, section 3.1)."""
    return batch.gradient().abs()


@method(
    "squared_gradient",
    library="assay",
    family="gradient",
    passes=PASSES,
    source="Hooker et al. 2019",
)
def squared_gradient(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
) -> Tensor:
    """Square of the gradient, (∂f/∂x)² (Hooker et al. 2019, section 4.2)."""
    return batch.gradient().square()


@method(
    "input_x_gradient",
    library="assay",
    peer="captum",
    family="gradient",
    passes=PASSES,
    source="Shrikumar et al. 2016",
)
def input_x_gradient(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    reference: Literal["zero", "given"] = "zero",
) -> Tensor:
    """Input times gradient, (x − b) · ∂f/∂x (Shrikumar et al. 2016).

    b is zero, as in the paper, or the given baseline.
    """
    return (x if reference == "zero" else x - baseline) * batch.gradient()
