"""Running a model on many masked versions of a batch, for all outputs at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from experiments import passes
from experiments.attribution.batch import Batch
from experiments.randomness import SampleGenerators


def shared_generator(batch: Batch, purpose: str) -> SampleGenerators:
    """One stream, [1, ...] per draw, for numbers that all samples of all batches share."""
    return SampleGenerators(batch.seed, [0], batch.purpose + purpose)


def masked_outputs(
    batch: Batch,
    count: int,
    visible: Callable[[int, int], Tensor],
    absent: Tensor | None = None,
) -> Tensor:
    """All outputs [B, count, K] of masked inputs; they depend on no target. B · count F.

    Args:
        visible: `visible(a, b)` makes the masks a .. b − 1, broadcastable to [b − a, ...] if all
            samples share them, else to [B, b − a, ...]: bool, or the weight of x in [0, 1].
        absent: what hidden elements look like, broadcastable to [B, 1, ...]; by default the
            baseline.

    Masks and masked inputs exist for one forward pass at a time; only outputs are kept.
    """
    x = batch.x[:, None]
    absent = batch.baseline if absent is None else absent
    size = max(1, passes.rows_per_pass(batch.model, batch.x) // len(x))
    found = []
    for start in range(0, count, size):
        mask = visible(start, min(start + size, count)).to(x.device)
        if mask.ndim < x.ndim:
            mask = mask[None]
        shown = torch.where(mask, x, absent) if mask.dtype == torch.bool else blend(x, absent, mask)
        outputs = passes.outputs(batch.model, shown.flatten(0, 1))
        found.append(outputs.unflatten(0, (len(x), -1)))
    return torch.cat(found, 1)


def blend(x: Tensor, absent: Tensor, mask: Tensor) -> Tensor:
    """`mask` of x and the rest of `absent`, exact at 0 and 1."""
    return mask * x + (1 - mask) * absent


def selected_each(outputs: Tensor, target: Tensor) -> Tensor:
    """The explained number [B, n] of outputs [B, n, K], for classes [B] or weights [B, K]."""
    if target.is_floating_point():
        return torch.einsum("bnk,bk->bn", outputs, target.to(outputs))
    return outputs.gather(2, target[:, None, None].expand(-1, outputs.shape[1], 1))[..., 0]
