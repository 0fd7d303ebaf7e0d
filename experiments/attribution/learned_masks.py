"""Masks found by gradient steps, one per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from experiments import passes
from experiments.attribution.masks import along_axes, enlarging, gaussian_weights
from experiments.attribution.perturbation import blend

Game = Literal["preserve", "delete"]

LOWEST, POWER = 0.01, 8  # of the power mean that stands for a maximum
ALIKE = 0.01  # a difference of masks that is none


def learn(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    absent: Tensor,
    gap: Tensor,
    *,
    start: Tensor,
    render: Callable[[Tensor], Tensor],
    penalty: Callable[[Tensor, Tensor, int], Tensor],
    game: Game,
    steps: int,
    rate: float,
) -> Tensor:
    """Grids in [0, 1], [B, *cells], of which `render` makes masks that hold what f needs.

    `steps` of Adam minimise the penalty, plus f((1 − m) ⊙ x + m ⊙ absent) / unit to "delete"
    what the mask m holds, or minus f(m ⊙ x + (1 − m) ⊙ absent) / unit to "preserve" it. The unit
    of a sample is `gap`, |f(x) − f(absent)|, or, if effects cancel there, the sum of the sizes of
    the first-order effects of the cells at the start; 1 if both are 0. Nothing is summed over
    samples but the loss, and Adam's steps are those of each number, so samples do not see each
    other.
    """
    sign = -1 if game == "preserve" else 1

    def effect(mask: Tensor, x: Tensor, target: Tensor, absent: Tensor) -> Tensor:
        """Gradient of the output with respect to the mask."""
        mask = mask.detach().requires_grad_()
        wide = mask if mask.ndim == x.ndim else mask[:, None]
        shown = blend(x, absent, wide) if sign < 0 else blend(absent, x, wide)
        reward = passes.selected(model(shown), target)
        return torch.autograd.grad(reward.sum(), mask)[0]

    def find(x: Tensor, target: Tensor, absent: Tensor, gap: Tensor) -> Tensor:
        grid = start.expand(len(x), *start.shape).clone().requires_grad_()
        adam = torch.optim.Adam([grid], lr=rate)
        unit = gap
        for step in range(steps):
            with torch.enable_grad():
                mask = render(grid)
                slope = effect(mask, x, target, absent)
                if step == 0:
                    (cells,) = torch.autograd.grad(mask, grid, slope, retain_graph=True)
                    unit = torch.maximum(gap, cells.abs().flatten(1).sum(1))
                    unit = torch.where(unit > 0, unit, 1)
                reward = (mask * slope).flatten(1).sum(1) / unit  # has the output's gradient
                loss = (penalty(grid, mask, step) + sign * reward).sum()
                (grid.grad,) = torch.autograd.grad(loss, grid)
            adam.step()
            with torch.no_grad():
                grid.clamp_(0, 1)
        return grid.detach()

    return passes.in_passes(find, model, x, target, absent, gap)[0]


def linear(positions: tuple[int, ...], cells: int, like: Tensor) -> Callable[[Tensor], Tensor]:
    """Enlarges grids to masks [B, *positions] by linear interpolation."""
    matrices = [enlarging(size, min(cells, size)).to(like) for size in positions]
    return lambda grid: along_axes(grid, matrices)


def dilated(
    positions: tuple[int, ...], cells: int, sigma: float, like: Tensor
) -> Callable[[Tensor], Tensor]:
    """Enlarges grids to masks [B, *positions] by a smooth maximum: each cell is a Gaussian blob.

    m(u) ≈ max_v g(v) exp(−|u − v|² / 2σ²), σ in cells (Fong et al. 2019, equation 5), as a power
    mean over v with the blob as weight: a power of a Gaussian is one again, so that it is made
    along each axis by a matrix.
    """
    matrices = []
    for size in positions:
        count = min(cells, size)
        weights = gaussian_weights(size, count, sigma * size / count) ** POWER
        matrices.append((weights / weights.sum(1, keepdim=True)).to(like))

    def render(grid: Tensor) -> Tensor:
        raised = (LOWEST + (1 - LOWEST) * grid) ** POWER
        return (along_axes(raised, matrices) ** (1 / POWER) - LOWEST) / (1 - LOWEST)

    return render


def off_area(mask: Tensor, area: float) -> Tensor:
    """[B]: mean squared distance of the sorted mask from one with `area` of ones, else zeros.

    The regulariser of Fong et al. 2019, equation 3, per position; at least one position is one.
    Positions of (nearly) the same value are alike to it: they are compared with the mean of what
    is wanted of them. Else the order in which a sort leaves ties would decide where a mask grows
    while the output has no opinion.
    """
    ranked = mask.flatten(1).sort(1).values
    wanted = torch.zeros_like(ranked)
    wanted[:, -max(1, round(area * ranked.shape[1])) :] = 1
    alike = (ranked.detach() / ALIKE).round().long()
    sizes = torch.zeros(len(mask), round(1 / ALIKE) + 1, dtype=mask.dtype, device=mask.device)
    total = sizes.scatter_add(1, alike, wanted)
    number = sizes.scatter_add(1, alike, torch.ones_like(wanted))
    return ((ranked - (total / number.clamp(min=1)).gather(1, alike)) ** 2).mean(1)


def total_variation(grid: Tensor, power: float) -> Tensor:
    """[B]: mean over pairs of neighbours of |difference|^power; 0 if there are none."""
    sums, pairs = grid.new_zeros(len(grid)), 0
    for axis in range(1, grid.ndim):
        difference = grid.diff(dim=axis).flatten(1)
        sums = sums + (difference.abs() ** power).sum(1)
        pairs += difference.shape[1]
    return sums / max(1, pairs)
