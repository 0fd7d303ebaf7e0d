"""Random numbers that depend on what they are for, never on who asked first.

Every draw belongs to a sample: row i of a draw depends on (seed, index of the sample, purpose,
how many draws came before) and on nothing else, so neither the batch size nor the order of the
work can change a result. torch's own CPU generator keeps only the low 32 bits of a seed, which
would make samples of a large data set share their noise; numpy's Philox takes a 128-bit key.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from experiments import lazy

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    np = lazy.load("numpy")
    torch = lazy.load("torch")


# A sample's stable index; a copy of a sample, such as its s-th noisy one, is (index, s).
Index = int | tuple[int, ...]


def _digest(*parts: Any) -> bytes:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).digest()


def derive_seed(*parts: Any) -> int:
    """A 63-bit seed: the SHA-256 of the canonical JSON of `parts`.

    Raises TypeError for a part that JSON does not know, ValueError for NaN and infinities.
    """
    return int.from_bytes(_digest(*parts)[:8], "big") >> 1


class SampleGenerators:
    """One stream of random numbers per sample.

    Args:
        seed: seed of the run.
        indices: stable index of each sample, one per row of the batch.
        purpose: what the numbers are for; two purposes never share numbers.
    """

    def __init__(self, seed: int, indices: Sequence[Index], purpose: str) -> None:
        self.seed = int(seed)
        self.indices: list[Index] = [
            tuple(map(int, index)) if isinstance(index, tuple) else int(index) for index in indices
        ]
        self.purpose = purpose
        self._draws = 0

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, rows: slice) -> SampleGenerators:
        """The generators of some rows: they go on where these stand, and leave these untouched."""
        part = SampleGenerators(self.seed, self.indices[rows], self.purpose)
        part._draws = self._draws
        return part

    def seeds(self) -> list[int]:
        """One 63-bit seed per sample, for a library that wants to seed its own generator."""
        draw = self._next_draw()
        return [derive_seed(self.seed, i, self.purpose, draw) for i in self.indices]

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Standard normal numbers, [B, *shape], on the CPU; float64 unless told otherwise."""
        return self._draw(lambda stream: stream.standard_normal(shape), shape, dtype)

    def uniform(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Numbers uniform in [0, 1), [B, *shape], on the CPU; float64 unless told otherwise."""
        return self._draw(lambda stream: stream.random(shape), shape, dtype)

    def _next_draw(self) -> int:
        self._draws += 1
        return self._draws - 1

    def _draw(
        self, sample: Callable[[Any], Any], shape: tuple[int, ...], dtype: torch.dtype | None
    ) -> torch.Tensor:
        draw = self._next_draw()
        rows = np.empty((len(self), *shape))
        for row, index in enumerate(self.indices):
            key = int.from_bytes(_digest(self.seed, index, self.purpose, draw)[:16], "big")
            rows[row] = sample(np.random.Generator(np.random.Philox(key=key)))
        numbers = torch.from_numpy(rows)
        if dtype is None or dtype == numbers.dtype:
            return numbers
        # 1 - 2^-54 rounds up to 1 in float32: keep uniform numbers below 1.
        below_one = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
        rounded = numbers.to(dtype)
        return torch.where((rounded == 1) & (numbers < 1), below_one, rounded)


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python, numpy and torch, and puts them back afterwards.

    For libraries that draw from global state; nothing drawn inside can be noticed outside.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # Naming the devices keeps fork_rng from waking up CUDA in a process that does not use it.
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if on_gpu else []
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                torch.cuda.manual_seed_all(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def global_state(device: torch.device) -> dict[str, Any]:
    """Where the global generators of Python, numpy and torch stand: of torch the CPU's, and that
    of `device` if it is a GPU. Tensors, numbers and strings only."""
    numpy_state: Any = np.random.get_state()
    name, words, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(words.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_global_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts the global generators where `global_state` found them."""
    name, words, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
