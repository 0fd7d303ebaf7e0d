"""Dropout whose noise is a function: of a model's seed, the step, the place and the element.

torch's generators cannot give several models, trained as one, the noise that each would have on
its own, but one after the other. A hash of counters can (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"): it has no state to hand on, and it is the same on every device. The
hash is the finaliser of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number
generators").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_LANES = 4  # a word of 64 bits decides for four elements, with 16 bits each
_LEVELS = 1 << 16
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # the odd number nearest to 2^64 / φ, as int64
_FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


class Noise:
    """The dropout noise of one model (`seeds` is a number) or of K stacked models (a list).

    The places of a step are its calls of `dropout`, in order: a model and its stacked form must
    drop in the same order. The probability is rounded to a multiple of 2^-16; what is kept is
    divided by the probability of being kept, so that the mean stays.
    """

    def __init__(self, seeds: int | Sequence[int], device: torch.device) -> None:
        self.seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
        self.begin(0)

    def begin(self, step: int) -> None:
        """What follows belongs to this step."""
        self._step = step
        self._calls = 0
        self._key: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Goes on with these models of the stack only."""
        self.seeds = self.seeds[rows]

    @contextmanager
    def seeded(self, seeds: Tensor) -> Iterator[None]:
        """In the block, the step is taken with these seeds: those of a `vmap` over the models."""
        outer, self.seeds = self.seeds, seeds
        self.begin(self._step)
        try:
            yield
        finally:
            self.seeds = outer
            self.begin(self._step)

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """x [..., *shape] with elements set to zero; its first axes are those of the seeds."""
        if self._key is None:
            self._key = _mixed(_mixed(self.seeds) + self._step)
        self._calls += 1
        dropped = round(probability * _LEVELS)
        if dropped == 0:
            return x
        if dropped == _LEVELS:
            return x * 0
        shape = x.shape[self._key.ndim :]
        elements = math.prod(shape)
        words = _counters(-(-elements // _LANES), x.device)
        bits = _mixed(_mixed(self._key + self._calls)[..., None] + words)
        kept = bits.view(torch.int16)[..., :elements] >= dropped - _LEVELS // 2
        factor = _LEVELS / (_LEVELS - dropped)
        return x * kept.to(x.dtype).mul_(factor).view(x.shape)


@contextmanager
def supplied(model: nn.Module, noise: Noise) -> Iterator[None]:
    """In the block, the dropout layers of `model` (nn.Dropout) take their noise from there."""
    layers = [m for m in model.modules() if type(m) is nn.Dropout]

    def forward(layer: nn.Dropout, x: Tensor) -> Tensor:
        return noise.dropout(x, layer.p) if layer.training else x

    for layer in layers:
        layer.forward = functools.partial(forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@functools.lru_cache(maxsize=64)
def _counters(words: int, device: torch.device) -> Tensor:
    return torch.arange(1, words + 1, device=device) * _GOLDEN


def _mixed(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64, elementwise, on int64 taken as 64 bits."""
    z = (z ^ _shifted(z, 30)).mul_(_FACTORS[0])
    z = z.bitwise_xor_(_shifted(z, 27)).mul_(_FACTORS[1])
    return z.bitwise_xor_(_shifted(z, 31))


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: torch's keeps the sign."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
