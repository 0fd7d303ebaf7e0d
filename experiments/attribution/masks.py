"""Smooth masks over positions, made along each axis by small matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def along_axes(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Applies a matrix [P_i, G_i] to each of the last axes: [..., G_1, G_2] -> [..., P_1, P_2].

    A matrix may have leading axes that broadcast with those of `values`.
    """
    if len(matrices) == 1:
        return (matrices[0] @ values[..., None])[..., 0]
    first, second = matrices
    return first @ values @ second.mT


def hat_weights(places: Tensor, nodes: int) -> Tensor:
    """[..., P, nodes]: linear interpolation at `places` [..., P] between nodes 0 .. nodes − 1.

    Places beyond the ends get the value of the end. Rows sum to 1.
    """
    places = places.clamp(0, nodes - 1)[..., None]
    return (1 - (places - torch.arange(nodes).to(places)).abs()).clamp(min=0)


def enlarging(size: int, cells: int) -> Tensor:
    """[size, cells]: linear interpolation from the centres of cells to positions."""
    places = (torch.arange(size, dtype=torch.float64) + 0.5) * cells / size - 0.5
    return hat_weights(places, cells)


def gaussian_weights(size: int, cells: int, sigma: float) -> Tensor:
    """[size, cells]: exp(−d²/2σ²) of the distance d, in positions, from the centre of a cell."""
    places = torch.arange(size, dtype=torch.float64) + 0.5
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * size / cells
    return torch.exp(-0.5 * ((places[:, None] - centres) / sigma) ** 2)


def random_masks(grid: Tensor, shift: Tensor, positions: Sequence[int]) -> Tensor:
    """RISE's masks in [0, 1], [n, *positions], of zeros and ones `grid` [n, s] or [n, s, s].

    A mask is the grid, enlarged to s + 1 cells of ⌈size / s⌉ positions by linear interpolation
    and seen through a window of the input's size; the window's place `shift` [n, axes] in [0, 1)
    is a whole number of positions within a cell (Petsiuk et al. 2018, section 3.2).
    """
    matrices = []
    for axis, size in enumerate(positions):
        cells = grid.shape[1 + axis]
        edge = math.ceil(size / cells)
        start = (shift[:, axis] * edge).floor()
        place = start[:, None] + torch.arange(size).to(grid) + 0.5
        matrices.append(hat_weights(place * cells / ((cells + 1) * edge) - 0.5, cells))
    return along_axes(grid, matrices)
