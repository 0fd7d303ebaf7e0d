"""What an input is compared with: references of a sample, made from the sample or from data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.randomness import SampleGenerators

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.load("torch")

# The kinds of references. Those of one sample are either always the same,
#   given      the baseline of the batch
#   zero       zeros
#   mean       the mean of each channel of the sample (of a vector: its mean)
#   blurred    the sample after a Gaussian of standard deviation `scale` positions
# or drawn anew:
#   shuffled   the sample with its positions permuted, all channels alike
#   uniform    uniform over the range of the sample
#   normal     the baseline plus normal noise of standard deviation `scale`
#   data       a row of the background data of the batch
Reference = Literal["given", "zero", "mean", "blurred", "shuffled", "uniform", "normal", "data"]
CONSTANT = frozenset({"given", "zero", "mean", "blurred"})

DRAWN_AT_ONCE = 2**14  # numbers per sample: bounds the memory of random draws


def references(
    kind: Reference,
    x: Tensor,
    baseline: Tensor,
    generator: SampleGenerators,
    *,
    count: int,
    scale: float,
    background: Tensor | None,
) -> Iterator[Tensor]:
    """`count` references [B, ...] of samples x [B, ...], one after the other.

    They depend on the sample, not on its batch. Raises ValueError for "data" without any.
    """
    if kind in CONSTANT:
        same = _constant(kind, x, baseline, scale)
        yield from (same for _ in range(count))
    elif kind == "normal":
        for noise in normals(generator, tuple(x.shape[1:]), count):
            yield baseline + scale * noise.to(x)
    elif kind == "uniform":
        low, high = extremes(x)
        for share in _one_by_one(generator.uniform, tuple(x.shape[1:]), count):
            yield low + share.to(x) * (high - low)
    elif kind == "shuffled":
        flat = x.flatten(2) if x.ndim > 2 else x[:, None]
        for key in _one_by_one(generator.uniform, (flat.shape[2],), count):
            order = key.argsort(1).to(x.device)
            yield flat.gather(2, order[:, None].expand_as(flat)).reshape(x.shape)
    else:
        rows = data(background, x)
        chosen = (generator.uniform(count) * len(rows)).long().to(x.device)
        yield from (rows[chosen[:, number]] for number in range(count))


def data(background: Tensor | None, x: Tensor) -> Tensor:
    """The background data [M, ...] in the precision of x. Raises ValueError if there is none."""
    if background is None or not len(background):
        raise ValueError(
            "reference 'data': this batch has no background data; give some, or take "
            "reference: shuffled"
        )
    return background.to(x)


def normals(generator: SampleGenerators, shape: tuple[int, ...], count: int) -> Iterator[Tensor]:
    """`count` draws [B, *shape] of standard normal numbers, few of them in memory at a time."""
    return _one_by_one(generator.normal, shape, count)


def _one_by_one(draw: object, shape: tuple[int, ...], count: int) -> Iterator[Tensor]:
    # How many are drawn at once must not depend on the batch: it decides what is drawn.
    several = max(1, min(count, DRAWN_AT_ONCE // max(1, math.prod(shape))))
    for start in range(0, count, several):
        drawn = draw(min(several, count - start), *shape)  # type: ignore[operator]
        yield from drawn.unbind(1)


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value of each sample, [B, 1, ...]."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    flat = x.flatten(1)
    return flat.amin(1).reshape(shape), flat.amax(1).reshape(shape)


def _constant(kind: Reference, x: Tensor, baseline: Tensor, scale: float) -> Tensor:
    if kind == "given":
        return baseline.expand_as(x)
    if kind == "zero":
        return torch.zeros_like(x)
    axes = tuple(range(2, x.ndim)) or (1,)
    if kind == "mean":
        return x.mean(axes, keepdim=True).expand_as(x)
    for axis in axes:
        x = torch.movedim(torch.movedim(x, axis, -1) @ blur(x, x.shape[axis], scale), -1, axis)
    return x


def blur(like: Tensor, size: int, scale: float) -> Tensor:
    """[size, size]: what a row vector is multiplied by to be blurred, reflected at its ends.

    The kernel reaches two standard deviations far: 21 positions for a scale of 5.
    """
    reach = math.ceil(2 * scale)
    offset = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offset.double() / scale) ** 2)
    # Folding an index at 0 and at size - 1 has this period; one position is its own mirror.
    period = max(1, 2 * (size - 1))
    source = (torch.arange(size)[None] + offset[:, None]) % period
    source = torch.minimum(source, period - source) if size > 1 else source * 0
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.index_put_(
        (source, torch.arange(size).expand_as(source)),
        (kernel / kernel.sum())[:, None].expand(-1, size),
        accumulate=True,
    )
    return matrix.to(like)
