"""The information bottleneck at one layer, for a batch of samples with a bottleneck each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from experiments import passes
from experiments.attribution.references import blur
from experiments.models.structure import Site
from experiments.models.tail import replaced, tail_of

# What the noisy outputs [R, K] of rows cost, given targets and units [R].
Misfit = Callable[[Tensor, Tensor, Tensor], Tensor]


def outputs_of_site(model: nn.Module, x: Tensor, where: Site) -> Tensor:
    """What the site returns for x [R, ...]; R F."""

    def run(part: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def keep(output: Tensor) -> Tensor:
            kept.append(output.detach())
            return output

        with torch.no_grad(), replaced(where, keep):
            model(part)
        return kept[0]

    return passes.in_passes(run, model, x)[0]


def channel_statistics(
    model: nn.Module, versions: Iterable[Tensor], where: Site
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over all positions and over several versions
    [B, ...] of each sample, [B, 1, .., C, .., 1]."""
    moments = []
    for x in versions:
        found = outputs_of_site(model, x, where).double()
        axes = tuple(axis for axis in range(1, found.ndim) if axis != where.channels)
        moments.append(
            (found.mean(axes, keepdim=True), found.var(axes, correction=0, keepdim=True))
        )
    means, variances = (torch.stack(several) for several in zip(*moments, strict=True))
    return means.mean(0), (variances.mean(0) + means.var(0, correction=0)).sqrt()


def unlikely(outputs: Tensor, target: Tensor, unit: Tensor) -> Tensor:
    """−log p of the target; for weights of outputs −Σ w log p."""
    return -passes.selected(outputs.log_softmax(1), target)


def low(outputs: Tensor, target: Tensor, unit: Tensor) -> Tensor:
    """−f in units of its size."""
    return -passes.selected(outputs, target) / unit


def bits(
    model: nn.Module,
    where: Site,
    x: Tensor,
    target: Tensor,
    unit: Tensor,
    r: Tensor,
    mean: Tensor,
    spread: Tensor,
    noise: Tensor,
    *,
    misfit: Misfit,
    beta: float,
    steps: int,
    rate: float,
    start: float,
    sigma: float,
) -> Tensor:
    """Bits that each unit of the site's output r [B, ...] passes on once λ is learned.

    `noise` [B, copies, ...] is standard normal, the same in all steps. Only what follows the site
    runs, where the model can be cut there.
    """
    run = tail_of(model, where, x[:1]).run

    def noisy(
        share: Tensor, x: Tensor, target: Tensor, unit: Tensor, r: Tensor, noise: Tensor
    ) -> Tensor:
        """Misfit [B], summed over draws of the noise [B, draws, ...]."""
        draws = noise.shape[1]
        mixed = share[:, None] * r[:, None] + (1 - share[:, None]) * noise
        rows = x[:, None].expand(-1, draws, *x.shape[1:]).flatten(0, 1)
        several = (part.repeat_interleave(draws, 0) for part in (target, unit))
        return misfit(run(rows, mixed.flatten(0, 1)), *several).unflatten(0, (-1, draws)).sum(1)

    def find(*rows: Tensor) -> Tensor:
        x, target, unit, r, mean, spread, draws = rows
        alpha = torch.full_like(r, start).requires_grad_()
        adam = torch.optim.Adam([alpha], lr=rate)
        # Copies go through the model together as far as one pass holds them.
        together = max(1, passes.rows_per_pass(model, x) // len(x))
        for _ in range(steps):
            with torch.enable_grad():
                share = smooth_share(alpha, where, sigma)
                nats = divergence(share, r, mean, spread).flatten(1).mean(1)
                (alpha.grad,) = torch.autograd.grad(beta * nats.sum(), alpha)
            for draw in draws.split(together, 1):
                with torch.enable_grad():
                    share = smooth_share(alpha, where, sigma)
                    ground = mean[:, None] + spread[:, None] * draw
                    fit = noisy(share, x, target, unit, r, ground) / draws.shape[1]
                    alpha.grad += torch.autograd.grad(fit.sum(), alpha)[0]
            adam.step()
        with torch.no_grad():
            share = smooth_share(alpha, where, sigma)
            return divergence(share, r, mean, spread) / math.log(2)

    return passes.in_passes(find, model, x, target, unit, r, mean, spread, noise)[0]


def smooth_share(alpha: Tensor, where: Site, sigma: float) -> Tensor:
    """λ: the sigmoid of α, smoothed over positions where they have axes of their own."""
    share = alpha.sigmoid()
    if sigma == 0 or where.channels != 1:
        return share
    for axis in range(2, share.ndim):
        matrix = blur(share, share.shape[axis], sigma)
        share = (share.movedim(axis, -1) @ matrix).movedim(-1, axis)
    return share


def divergence(share: Tensor, r: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """KL(N(λr + (1 − λ)μ, (1 − λ)²s²) ‖ N(μ, s²)) of each unit, in nats, at least 0.

    Schulz et al. 2020, equation 6 with appendix A.
    """
    centre = share * (r - mean) / spread
    left = (1 - share).clamp(min=torch.finfo(share.dtype).eps)
    return 0.5 * (centre**2 + left**2 - 1) - left.log()
