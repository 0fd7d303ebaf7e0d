"""What images of the SMERF study cost: places, bytes, and batches as a training takes them.

python tests/benchmarks/textbox_images.py
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from experiments.data import smerf


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def test_suite() -> int:
    """All test images of the seven settings, places and pixels."""
    total = 0
    for name in smerf.SETTINGS:
        spec = smerf.SmerfSpec(setting=name, train_share=1e-6, validation=1, preset="paper")
        images = smerf.images(smerf.generate(spec), "test")
        total += sum(len(images.x.bytes(slice(i, i + 1024))) for i in range(0, len(images), 1024))
    return total


def main() -> None:
    torch.set_num_threads(1)
    test_suite()  # imports, and the letters
    took, images = seconds(test_suite)
    print(f"test images of all settings: {images:,} in {took:.2f} s")
    spec = smerf.SmerfSpec(setting="Complex-CR1", test=1, validation=1, preset="paper")
    took, state = seconds(lambda: smerf.generate(spec))
    train = smerf.images(state, "train")
    print(f"places of {len(train):,} training images: {took:.2f} s")
    size = 1024
    steps = range(0, len(train), size)
    took, parts = seconds(lambda: torch.cat([train.x.bytes(slice(i, i + size)) for i in steps]))
    print(f"the same as bytes {list(parts.shape)}: {took:.2f} s, {parts.numel() / 2**20:.0f} MiB")
    del parts
    rows = torch.randperm(len(train))
    took, _ = seconds(lambda: sum(len(train.x[part]) for part in rows.split(128)))
    print(f"one epoch in batches of 128, float32: {took:.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"peak memory of the process: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
