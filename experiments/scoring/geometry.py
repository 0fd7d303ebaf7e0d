"""Masks and weights as pictures: neighbourhoods, boxes, distances; vectorised over samples.

Shapes are spatial ones: [D] or [T] in one dimension, [H, W] in two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nn
from torch import Tensor


def dilated(mask: Tensor, radius: float) -> Tensor:
    """bool [N, ...]: the positions within a Euclidean distance of those of a mask [N, ...].

    Row by row of the disc: its rows are intervals, and widening by one is a sliding maximum.
    """
    reach = int(radius)
    if mask.ndim == 2:
        return _widened(mask, reach)
    found = torch.zeros_like(mask)
    height = mask.shape[1]
    for down in range(-min(reach, height - 1), min(reach, height - 1) + 1):
        row = _widened(mask, int(math.sqrt(radius**2 - down**2)))
        into, out = max(down, 0), max(-down, 0)
        found[:, into : height - out] |= row[:, out : height - into]
    return found


def _widened(mask: Tensor, reach: int) -> Tensor:
    """bool [N, ..., W]: the positions within `reach` of those of a mask along the last axis."""
    rows = mask.flatten(0, -2).unsqueeze(0).float()
    return nn.max_pool1d(rows, 2 * reach + 1, 1, reach).bool().view(mask.shape)


def blurred(weights: Tensor, shape: Sequence[int], size: int) -> Tensor:
    """[N, P]: the mean over windows of `size` (odd); mirrored at the border, without a repeat."""
    if size == 1:
        return weights
    if size // 2 >= min(shape):
        raise ValueError(f"a blur of {size} is too wide for maps of {' × '.join(map(str, shape))}")
    picture = weights.view(len(weights), 1, *shape)
    padded = nn.pad(picture, (size // 2,) * 2 * len(shape), mode="reflect")
    pool = nn.avg_pool1d if len(shape) == 1 else nn.avg_pool2d
    return pool(padded, size, 1).flatten(1)


def coordinates(shape: Sequence[int]) -> Tensor:
    """float64 [P, 1 or 2]: the place of every position."""
    axes = [torch.arange(size, dtype=torch.float64) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def scale(shape: Sequence[int], unit: Literal["diagonal", "pixel"]) -> float:
    """The distance that counts as 1: of the outermost positions, or of neighbours."""
    if unit == "pixel":
        return 1.0
    return max(math.hypot(*(size - 1 for size in shape)), 1.0)


def shares(weights: Tensor) -> Tensor:
    """[N, P]: non-negative weights scaled to sum 1; a map without any counts as uniform."""
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights / torch.where(total > 0, total, 1), 1 / weights.shape[1])


def transport(given: Tensor, wanted: Tensor, shape: Sequence[int], grid: int) -> Tensor:
    """float64 [N]: the least mean distance, in pixels, of carrying `given` [N, P] to `wanted`.

    Both sum to 1 over an image of `shape`, which is summed into cells first: a cell lies where
    its pixels do on average. One linear program per sample, over what differs.
    """
    cell = [math.ceil(size / grid) for size in shape]
    place = coordinates([math.ceil(size / c) for size, c in zip(shape, cell, strict=True)])
    last = torch.tensor([size - 1 for size in shape]).double()
    step = torch.tensor(cell).double()
    centre = (place * step + (place * step + step - 1).minimum(last)) / 2
    cost = torch.cdist(centre, centre).numpy()
    surplus = (_cells(given, shape, cell) - _cells(wanted, shape, cell)).cpu().numpy()
    return torch.tensor([_carried(row, cost) for row in surplus], device=given.device)


def _cells(weights: Tensor, shape: Sequence[int], cell: Sequence[int]) -> Tensor:
    picture = weights.view(len(weights), 1, *shape)
    more = [-size % c for size, c in zip(shape, cell, strict=True)]
    padded = nn.pad(picture, (0, more[1], 0, more[0]))
    return nn.avg_pool2d(padded, tuple(cell)).flatten(1) * math.prod(cell)


def _carried(surplus: np.ndarray, cost: np.ndarray) -> float:
    """The optimal cost of carrying what is too much to where it lacks.

    What both have at a place need not move, for distances obey the triangle inequality.
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    rounding = 1e-12
    there, missing = np.flatnonzero(surplus > rounding), np.flatnonzero(surplus < -rounding)
    if not len(there) or not len(missing):
        return 0.0
    out = kron(eye_array(len(there)), np.ones((1, len(missing))))
    come = kron(np.ones((1, len(there))), eye_array(len(missing)))
    supply, demand = surplus[there], -surplus[missing]
    demand = demand * supply.sum() / demand.sum()  # equal but for rounding: keep it feasible
    # One equation follows from the others.
    equations, right = vstack([out, come]).tocsr()[:-1], np.concatenate([supply, demand])[:-1]
    answer = linprog(cost[np.ix_(there, missing)].ravel(), A_eq=equations, b_eq=right)
    return float(answer.fun)


# --- boxes ---


def boxes(masks: Tensor) -> Tensor:
    """int64 [..., 4]: (top, bottom, left, right), half open, around masks [..., H, W]; or zeros."""
    found = []
    for axis in (-1, -2):
        lit = masks.any(axis)
        place = torch.arange(lit.shape[-1], device=masks.device)
        first = torch.where(lit, place, lit.shape[-1]).amin(-1)
        end = torch.where(lit, place + 1, 0).amax(-1)
        found += [torch.where(lit.any(-1), first, 0), end]
    return torch.stack(found, -1)


def box_overlap(a: Tensor, b: Tensor) -> Tensor:
    """float64 [...]: intersection over union of boxes [..., 4]; 0 if both are empty."""

    def area(box: Tensor) -> Tensor:
        top, bottom, left, right = box.unbind(-1)
        return (bottom - top).clamp(min=0) * (right - left).clamp(min=0)

    low, high = torch.maximum(a, b), torch.minimum(a, b)
    common = area(torch.stack([low[..., 0], high[..., 1], low[..., 2], high[..., 3]], -1))
    return common / (area(a) + area(b) - common).clamp(min=1).double()


def largest_component(lit: Tensor) -> Tensor:
    """bool [N, H, W]: the largest set of pixels that touch by their sides, the first if several."""
    from scipy import ndimage

    # In a stack, pixels of different samples do not touch: one call labels all samples.
    touching = np.zeros((3, 3, 3), dtype=bool)
    touching[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(lit.cpu().numpy(), touching)
    if count == 0:
        return lit
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    size = torch.from_numpy(sizes[labels])
    label = torch.from_numpy(labels).long()
    largest = (size == size.amax((1, 2), keepdim=True)) & (size > 0)
    first = torch.where(largest, label, count + 1).amin((1, 2), keepdim=True)
    return (label == first).to(lit.device)
