"""What counts as one feature of an input: an element, a pixel, a patch or a channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from experiments import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.load("torch")

Features = Literal["inputs", "pixels", "patches", "channels"]


def feature_ids(shape: Sequence[int], features: Features, patch: int = 1) -> Tensor:
    """int64 of `shape` ([D], [C, T] or [C, H, W]): the feature of each element, 0 .. d − 1.

    "inputs" is each element, "pixels" all channels of a position, "patches" the positions in
    cells of `patch` along each axis (the last ones may be smaller), with all channels, and
    "channels" all positions of a channel. Numbers go row by row.
    Raises ValueError for the channels of inputs [D].
    """
    shape = tuple(shape)
    if features == "inputs":
        return torch.arange(math.prod(shape)).reshape(shape)
    if features == "channels":
        if len(shape) < 2:
            raise ValueError(
                f"features 'channels': inputs of shape {list(shape)} have none; take 'inputs'"
            )
        return torch.arange(shape[0]).reshape(-1, *(1 for _ in shape[1:])).expand(shape)
    edge = patch if features == "patches" else 1
    positions = positions_of(shape)
    ids = torch.zeros(positions, dtype=torch.long)
    for axis, size in enumerate(positions):
        cells = (torch.arange(size) // edge).reshape(-1, *(1 for _ in positions[axis + 1 :]))
        ids = ids * math.ceil(size / edge) + cells
    return ids.expand(shape)


def positions_of(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of `shape` that are places: all of [D], all but the channels of the others."""
    return tuple(shape[1:] if len(shape) > 1 else shape)


def count_of(ids: Tensor) -> int:
    """How many features d there are."""
    return int(ids.max()) + 1


def spread(values: Tensor, ids: Tensor) -> Tensor:
    """The map [B, ...] in which each element has the value of its feature, of values [B, d].

    Nothing is divided: a sum over features, such as Shapley's, is one over `values`.
    """
    return values[:, ids]
