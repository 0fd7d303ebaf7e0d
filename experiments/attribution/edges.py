"""What can be seen in an input without a model: edges and the centre."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Border = Literal["mirror", "repeat"]
Channels = Literal["mean", "each"]

# Kernels by size: binomial smoothing, and the difference of two binomials (as OpenCV has them).
SMOOTH = {3: (1, 2, 1), 5: (1, 4, 6, 4, 1)}
DIFFERENCE = {3: (-1, 0, 1), 5: (-1, -2, 0, 2, 1)}
SECOND = (1, -2, 1)


def sobel(
    x: Tensor,
    absolute: bool,
    direction: Literal["both", "horizontal", "vertical"],
    channels: Channels,
    size: Literal[3, 5],
    border: Border,
) -> Tensor:
    """Sobel's differences of inputs [B, D], [B, C, T] or [B, C, H, W], of the same shape.

    Raises ValueError for "vertical" where positions have one axis.
    """
    axes = _position_axes(x)
    if direction == "vertical" and len(axes) < 2:
        raise ValueError(
            "method 'sobel': direction 'vertical' needs images [C, H, W], "
            f"got inputs {list(x.shape[1:])}"
        )
    chosen = {"both": axes, "horizontal": axes[-1:], "vertical": axes[-2:-1]}[direction]
    values = _seen(x, channels)
    parts = []
    for along in chosen:
        part = values
        for axis in axes:
            part = _filtered(
                part, DIFFERENCE[size] if axis == along else SMOOTH[size], axis, border
            )
        parts.append(part)
    every = torch.stack(parts)
    found = every.square().sum(0).sqrt() if absolute else every.sum(0)
    return found.expand_as(x)


def laplace(x: Tensor, channels: Channels, border: Border) -> Tensor:
    """Sum of the second differences along the axes of positions, of the shape of x."""
    values = _seen(x, channels)
    return (
        torch.stack([_filtered(values, SECOND, a, border) for a in _position_axes(x)])
        .sum(0)
        .expand_as(x)
    )


def center_gaussian(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian around the middle of the positions, of the shape of x."""
    square = x.new_zeros(())
    for axis in _position_axes(x):
        size = x.shape[axis]
        place = (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5) / size - 0.5
        square = square + (place**2).reshape(-1, *(1 for _ in x.shape[axis + 1 :]))
    return torch.exp(-0.5 * square / sigma**2).expand_as(x)


def _position_axes(x: Tensor) -> list[int]:
    return list(range(2, x.ndim)) or [1]


def _seen(x: Tensor, channels: Channels) -> Tensor:
    return x.mean(1, keepdim=True) if channels == "mean" and x.ndim > 2 else x


def _filtered(values: Tensor, kernel: tuple[int, ...], axis: int, border: Border) -> Tensor:
    """Correlation with a kernel along one axis."""
    size, reach = values.shape[axis], len(kernel) // 2
    found = torch.zeros_like(values)
    for offset, weight in zip(range(-reach, reach + 1), kernel, strict=True):
        place = torch.arange(size, device=values.device) + offset
        found = found + weight * values.index_select(axis, _inside(place, size, border))
    return found


def _inside(place: Tensor, size: int, border: Border) -> Tensor:
    """Where to look instead of beyond the border."""
    if border == "repeat" or size == 1:
        return place.clamp(0, size - 1)
    period = 2 * (size - 1)
    place = place % period
    return torch.minimum(place, period - place)
