"""Where samples come from: generators and loaders, each of which returns a `Dataset`."""

from __future__ import annotations

from experiments.data.dataset import Dataset, Split, Truth

__all__ = ["Dataset", "Split", "Truth"]
