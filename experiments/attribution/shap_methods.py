"""Methods computed by shap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments import lazy
from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators
from experiments.specs import Count

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = lazy.load("torch")

MOST_INPUTS = 16  # 2^16 coalitions per sample
ROWS_PER_PASS = 4096


@method("shapley_exact", library="shap", family="perturbation", passes="2^D F")
def shapley_exact(
    model: nn.Module, x: Tensor, target: Tensor, *, baseline: Tensor, generator: SampleGenerators
) -> Tensor:
    """Exact Shapley values of the logit, absent inputs at the baseline (Shapley 1953).

    The game and the coefficients of shap.explainers.Exact, with all coalitions of a batch in
    large forward passes instead of one sample at a time. Masked inputs that occur more than once
    (inputs that equal their baseline, discrete data) are computed once.
    Raises ValueError for more than 16 inputs.
    """
    inputs = x[0].numel()
    if inputs > MOST_INPUTS:
        raise ValueError(
            f"method 'shapley_exact': {inputs} inputs make 2^{inputs} coalitions per sample; "
            f"at most {MOST_INPUTS} inputs. Take kernel_shap instead"
        )
    member = (torch.arange(2**inputs)[:, None] >> torch.arange(inputs)) & 1
    weights = _shapley_weights(member).to(x)
    present = member.bool().to(x.device)
    flat, absent = x.flatten(1), baseline.flatten()
    samples = max(1, 2**20 // 2**inputs)  # bounds the memory of the masked inputs
    values = [
        _logits_of_masked(model, part, absent, present, classes, x.shape[1:]) @ weights
        for part, classes in zip(flat.split(samples), target.split(samples), strict=True)
    ]
    return torch.cat(values).reshape(x.shape)


@method(
    "expected_gradients",
    library="shap",
    family="gradient",
    passes="`samples` FB",
    stochastic=True,
)
def expected_gradients(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    samples: Count = 20,
) -> Tensor:
    """Mean of (x − b) · gradient at random points between b and x (Erion et al. 2021, equation 3).

    shap.GradientExplainer with the baseline as background. It computes in float32, sample by
    sample, each sample with a seed of its own.
    """
    import shap

    from experiments.attribution.one_output import OneOutput

    background = baseline.expand_as(x[:1]).float()
    explainers = {
        int(label): shap.GradientExplainer(
            OneOutput(model, int(label), x.dtype), background, batch_size=ROWS_PER_PASS
        )
        for label in target.unique()
    }
    maps = [
        torch.as_tensor(
            explainers[int(label)].shap_values(row[None], nsamples=samples, rseed=seed % 2**32)
        ).reshape(row.shape)
        for row, label, seed in zip(x.float(), target, generator.seeds(), strict=True)
    ]
    return torch.stack(maps).to(x)


def _shapley_weights(member: Tensor) -> Tensor:
    """[2^D, D]: what the value of a coalition adds to the Shapley value of each input.

    A coalition S counts +c(|S| − 1) for its members and −c(|S|) for the others, where
    c(k) = k! (D − k − 1)! / D!.
    """
    from shap.utils import shapley_coefficients

    coefficient = torch.as_tensor(shapley_coefficients(member.shape[1]))
    size = member.sum(1, keepdim=True)
    joined = coefficient[(size - 1).clamp(min=0)]
    missing = coefficient[size.clamp(max=member.shape[1] - 1)]
    return torch.where(member.bool(), joined, -missing)


def _logits_of_masked(
    model: nn.Module,
    x: Tensor,
    absent: Tensor,
    present: Tensor,
    target: Tensor,
    shape: torch.Size,
) -> Tensor:
    """The target's logit [B, coalitions] for inputs x [B, D] of which only `present` are shown."""
    masked = torch.where(present, x[:, None], absent).flatten(0, 1)
    distinct, where = masked.unique(dim=0, return_inverse=True)
    with torch.no_grad():
        logits = torch.cat(
            [model(part.reshape(-1, *shape)) for part in distinct.split(ROWS_PER_PASS)]
        )
    return logits[where, target.repeat_interleave(len(present))].reshape(len(x), -1)
