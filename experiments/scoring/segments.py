"""Positions that belong together: squares, windows, superpixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.scoring.faithfulness import slic_cells


class Units(NamedTuple):
    """labels int64 [1 or B, P]: the unit of each position, of 0..number-1."""

    labels: Tensor
    number: int

    def to(self, device: torch.device) -> Units:
        return Units(self.labels.to(device), self.number)


def patches(spatial: Sequence[int], size: int) -> Units:
    """Squares or windows, `size` long along each axis; those at the far border are smaller where
    the size does not divide the axis."""
    return _product([torch.arange(length) // size for length in spatial])


def grid(spatial: Sequence[int], cells: int) -> Units:
    """At most `cells` equal cells, as many along each axis (or as it has positions)."""
    per_axis = max(1, math.floor(cells ** (1 / len(spatial)) + 1e-9))
    return _product([torch.arange(n) * min(n, per_axis) // n for n in spatial])


def _product(labels: Sequence[Tensor]) -> Units:
    joint, count = torch.zeros((), dtype=torch.long), 1
    for label in labels:
        along = int(label.max()) + 1
        joint, count = joint[..., None] * along + label, count * along
    return Units(joint.view(1, -1), count)


def slic(x: Tensor, count: int, compactness: float, iterations: int = 10) -> Units:
    """Superpixels of images [B, C, H, W], about `count` in each.

    SLIC (Achanta et al. 2012): k-means over colour and place from a regular grid of centres, where
    a pixel chooses among the centres of its own and the eight cells around; the distance is
    |Δcolour|² + compactness² · |Δplace|² / S², S being the distance of two centres. Channels are
    scaled to a standard deviation of one per sample. Superpixels need not be connected, and some
    may die out: their numbers are then missing. Raises ValueError for inputs that are no images.
    """
    if x.ndim != 4:
        raise ValueError(f"superpixels need images [C, H, W]; these inputs are {list(x.shape[1:])}")
    samples, _, height, width = x.shape
    side = math.sqrt(height * width / count)
    rows, columns = slic_cells((height, width), count)
    scale = x.flatten(1).std(1, correction=0).clamp(min=1e-12).view(-1, 1, 1)
    color = (x - x.mean((2, 3), keepdim=True)).flatten(2).float() / scale
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).T.to(color)
    points = torch.cat([color, (compactness / side) * place.expand(samples, 2, -1)], 1)
    row = torch.arange(height, device=x.device) * rows // height
    column = torch.arange(width, device=x.device) * columns // width
    labels = (row[:, None] * columns + column).flatten().expand(samples, -1)
    home_row, home_column = (t.flatten() for t in torch.meshgrid(row, column, indexing="ij"))
    for _ in range(iterations):
        centres = _means(points, labels, rows * columns)
        nearest = torch.full_like(color[:, 0], torch.inf)
        chosen = torch.zeros_like(labels)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                near_row = (home_row + down).clamp(0, rows - 1)
                candidate = near_row * columns + (home_column + right).clamp(0, columns - 1)
                distance = (points - centres[:, :, candidate]).square().sum(1)
                distance = distance.nan_to_num(torch.inf)  # the centre of a superpixel that died
                chosen = torch.where(distance < nearest, candidate, chosen)
                nearest = torch.minimum(distance, nearest)
        if torch.equal(chosen, labels):
            break
        labels = chosen
    return Units(labels.contiguous(), rows * columns)


def _means(points: Tensor, labels: Tensor, count: int) -> Tensor:
    """[B, F, count]: the mean of the points [B, F, P] of each label; NaN for one without points."""
    index = labels[:, None].expand_as(points)
    totals = points.new_zeros(*points.shape[:2], count).scatter_add_(2, index, points)
    ones = torch.ones_like(points[:, :1])
    sizes = points.new_zeros(len(points), 1, count).scatter_add_(2, labels[:, None], ones)
    return totals / sizes
