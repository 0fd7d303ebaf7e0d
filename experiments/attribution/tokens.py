"""From relevances of tokens to relevances of inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_SPECIAL = 8  # class, distillation and register tokens


def layout(tokens: int, shape: tuple[int, ...], special: int | None) -> tuple[int, tuple[int, ...]]:
    """How many tokens at the beginning stand for no input, and the grid of the others.

    The fewest special tokens that leave a grid: on [D] or [C, T] pieces of the last axis, all of
    one length; on [C, H, W] square patches. `special` sets their number.
    Raises ValueError, with what to do, if there is no such grid.
    """
    for count in range(MOST_SPECIAL + 1) if special is None else [special]:
        grid = _grid(tokens - count, shape)
        if grid:
            return count, grid
    given = f" without the {special} special ones" if special is not None else ""
    raise ValueError(
        f"attention: {tokens} tokens{given} cannot be laid over inputs of shape {tuple(shape)}; "
        f"give `special`, the number of tokens that stand for no input"
    )


def _grid(tokens: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    if tokens < 1 or len(shape) > 3:
        return ()
    if len(shape) < 3:
        return (tokens,) if shape[-1] % tokens == 0 else ()
    height, width = shape[1:]
    rows = math.isqrt(tokens * height // width)
    if rows and tokens % rows == 0 and rows * width == tokens // rows * height:
        return rows, tokens // rows
    return ()


def to_inputs(
    relevance: Tensor, x: Tensor, special: int | None, interpolation: str = "nearest"
) -> Tensor:
    """Relevances of tokens [B, L] as a map like x [B, ...].

    An input gets the relevance of its token ("nearest"), or between the tokens' centres a mean
    of it ("linear"); all channels of a place get the same.
    """
    shape = tuple(x.shape[1:])
    count, grid = layout(relevance.shape[1], shape, special)
    places = relevance[:, count:].reshape(len(x), 1, *grid)
    size = shape[-len(grid) :]
    if grid != size:
        linear = {1: "linear", 2: "bilinear"}[len(grid)]
        mode = linear if interpolation == "linear" else "nearest-exact"
        places = torch.nn.functional.interpolate(places, size, mode=mode)
    return (places if x.ndim > 2 else places[:, 0]).expand_as(x).clone()
