"""Maps that explain nothing, and one that explains everything: what rankings are read against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments.data.dataset import Truth
else:
    torch = lazy.load("torch")


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


@method("oracle", library="assay", family="control", passes="0", needs_truth=True)
def oracle(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    truth: Truth,
    mark: Literal["relevant", "necessary"] = "relevant",
) -> Tensor:
    """The known truth: 1 for inputs in some minimal sufficient set (or in all), else 0."""
    return getattr(truth, mark).to(x)
