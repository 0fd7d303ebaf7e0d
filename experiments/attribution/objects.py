"""Objects as players: what the model says of samples in which only some objects are left."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from experiments import passes
from experiments.attribution.batch import Batch

MOST = 12  # objects: 2^12 passes of a sample


def objects_of(batch: Batch, role: str, who: str) -> Tensor:
    """bool [B, O, ...]: the objects of a role, an empty mask for one that is absent.

    Raises ValueError, in the name of `who`, if there are none of that role, or too many.
    """
    found = batch.regions.get(role)
    if found is None:
        known = sorted(batch.regions)
        raise ValueError(
            f"{who} needs objects, and there are none of role {role!r}; known: {known}"
        )
    if found.shape[1] > MOST:
        raise ValueError(
            f"{who} runs all coalitions, which is too much for {found.shape[1]} objects; join them "
            f"to at most {MOST}"
        )
    return found.to(batch.x.device)


def game(batch: Batch, role: str, who: str) -> Tensor:
    """[B, 2^O]: the explained output of each sample with the objects whose bits are set in s left.

    The positions of the other objects are at the baseline; what belongs to no object stays.
    """
    objects = objects_of(batch, role, who)

    def worth() -> Tensor:
        return torch.stack([_outputs(batch, objects, s) for s in range(2 ** objects.shape[1])], 1)

    return batch.once(("object game", role), worth)


def _outputs(batch: Batch, objects: Tensor, coalition: int) -> Tensor:
    players = range(objects.shape[1])
    stays = torch.tensor([(coalition >> p) & 1 == 1 for p in players], device=objects.device)
    if stays.all():
        return batch.selected()
    gone = objects[:, ~stays].any(1) & ~objects[:, stays].any(1)
    gone = gone.unsqueeze(1) if batch.x.ndim > 2 else gone
    inputs = torch.where(gone, batch.baseline, batch.x)
    return passes.selected(passes.outputs(batch.model, inputs), batch.target)


def shapley_values(worth: Tensor) -> Tensor:
    """float64 [N, O]: the exact Shapley values of games [N, 2^O].

    worth[:, s] is that of the coalition of the players whose bits are set in s. (Shapley 1953)
    """
    players = int(worth.shape[1]).bit_length() - 1
    coalitions = torch.arange(worth.shape[1], device=worth.device)
    bits = torch.arange(players, device=worth.device)
    size = ((coalitions.unsqueeze(1) >> bits) & 1).sum(1)
    # A coalition of s players is joined in s! (O − s − 1)! of the O! orders.
    share = [
        math.factorial(s) * math.factorial(players - s - 1) / math.factorial(players)
        for s in range(players)
    ]
    shares = torch.tensor([*share, 0.0], dtype=torch.float64, device=worth.device)
    values = []
    for player in range(players):
        without = coalitions[(coalitions >> player) & 1 == 0]
        gain = worth.double()[:, without | (1 << player)] - worth.double()[:, without]
        values.append(gain @ shares[size[without]])
    return torch.stack(values, 1)


def shared_out(values: Tensor, objects: Tensor, x: Tensor) -> Tensor:
    """The map [B, ...] that gives each object's value [B, O] to its elements in equal parts, so
    that the map sums to the values of the objects that are there."""
    masks = objects if x.ndim == 2 else objects.unsqueeze(2)
    elements = masks.expand(*objects.shape[:2], *x.shape[1:])
    size = elements.flatten(2).sum(2).clamp(min=1)
    shape = (*values.shape, *(1 for _ in x.shape[1:]))
    return ((values.to(x.device) / size).view(shape) * elements).sum(1).to(x)
