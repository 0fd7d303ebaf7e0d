"""What the methods that read a layer share: one forward pass of the network, one backward pass of
what follows the layer, and the way from the layer's grid back to the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments import passes
from experiments.attribution.batch import Batch
from experiments.models.structure import Site, places, positions, site
from experiments.models.tail import replaced

Upsample = Literal["linear", "aligned", "nearest"]


class Layer:
    """The output of a layer for the samples of a batch, [B, ...] as the layer returns it.

    The graph of what follows the layer is kept, so that further targets cost a backward pass
    of that part only.
    """

    def __init__(self, batch: Batch, path: str | None) -> None:
        self.site: Site = site(batch.model, batch.x[:1], path)
        self._leaves: list[Tensor] = []
        self._outputs: list[Tensor] = []
        outputs = passes.in_passes(lambda x: self._forward(batch.model, x), batch.model, batch.x)[0]
        batch.once("outputs", lambda: outputs, per_target=False)
        self.output = torch.cat([leaf.detach() for leaf in self._leaves])

    def _forward(self, model: nn.Module, x: Tensor) -> Tensor:
        leaf = x

        def keep(output: Tensor) -> Tensor:
            nonlocal leaf
            leaf = output.detach().clone().requires_grad_()
            return leaf.clone()  # what comes next may work in place

        with torch.enable_grad(), replaced(self.site, keep):
            outputs = model(x)
        self._leaves.append(leaf)
        self._outputs.append(outputs)
        return outputs.detach()

    def gradient(self, target: Tensor) -> Tensor:
        """Gradient [B, ...] of the explained output of each sample at the layer's output.

        Raises ValueError if the outputs do not depend on the layer.
        """
        gradients = []
        targets = target.split([len(leaf) for leaf in self._leaves])
        for leaf, outputs, classes in zip(self._leaves, self._outputs, targets, strict=True):
            explained = passes.selected(outputs, classes).sum()
            found = None
            if explained.requires_grad:
                (found,) = torch.autograd.grad(
                    explained, leaf, retain_graph=True, allow_unused=True
                )
            if found is None:
                raise ValueError(
                    f"layer {self.site.path!r}: the outputs do not depend on it; choose another"
                )
            gradients.append(found)
        return torch.cat(gradients)


def layer_of(batch: Batch, path: str | None) -> Layer:
    """The layer `path` (or the model's last features) run on the batch: 1 F for all targets."""
    return batch.once(("layer", path), lambda: Layer(batch, path), per_target=False)


def layer_gradient(batch: Batch, path: str | None) -> Tensor:
    """Gradient [B, ...] at a layer, as the layer returns its output: 1 B of what follows."""
    return batch.once(
        ("layer gradient", path), lambda: layer_of(batch, path).gradient(batch.target)
    )


def features(batch: Batch, path: str | None) -> Tensor:
    """The layer's activations A [B, C, *grid]."""
    layer = layer_of(batch, path)
    return positions(batch.model, layer.site, layer.output, batch.x.shape[1:])


def feature_gradients(batch: Batch, path: str | None) -> Tensor:
    """The gradient G [B, C, *grid] of the explained output with respect to the activations."""
    where, shape = layer_of(batch, path).site, batch.x.shape[1:]
    return positions(batch.model, where, layer_gradient(batch, path), shape)


def both(batch: Batch, path: str | None) -> tuple[Tensor, Tensor]:
    """A and G, each [B, C, *grid]."""
    return features(batch, path), feature_gradients(batch, path)


def weighted(batch: Batch, path: str | None, weights: Tensor, relu: bool, how: Upsample) -> Tensor:
    """Σ_k w_k A_k for weights [B, C], as maps of the inputs [B, ...]."""
    maps = torch.einsum("bc,bc...->b...", weights, features(batch, path))
    return placed(batch, maps, relu, how)


def placed(batch: Batch, maps: Tensor, relu: bool, how: Upsample) -> Tensor:
    """Maps [B, *grid], cut off at zero if `relu`, as maps of the inputs [B, ...]: upsampled, the
    same for every channel."""
    x = batch.x
    maps = maps.clamp(min=0) if relu else maps
    large = upsampled(maps[:, None], places(x.shape[1:]), how)
    return large.expand_as(x) if x.ndim > 2 else large[:, 0]


def upsampled(maps: Tensor, size: torch.Size, how: Upsample) -> Tensor:
    """Maps [B, C, *grid] at `size` places: linear (bilinear in images) between the centres of the
    cells, or between those of the outer cells ("aligned"), or that of the nearest cell."""
    if maps.shape[2:] == size:
        return maps
    if how == "nearest":
        return F.interpolate(maps, tuple(size), mode="nearest-exact")
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return F.interpolate(maps, tuple(size), mode=mode, align_corners=how == "aligned")


def shared_out(maps: Tensor, size: torch.Size, how: Upsample) -> Tensor:
    """Maps [B, C, *grid] at `size` places, each cell's value shared out: the sum stays the same."""

    def large(grid: Tensor) -> Tensor:
        if any(cells > places for cells, places in zip(grid.shape[2:], size, strict=True)):
            return F.interpolate(grid, tuple(size), mode="area")
        return upsampled(grid, size, how)

    with torch.enable_grad():
        cells = torch.zeros_like(maps[:1, :1]).requires_grad_()
        (shares,) = torch.autograd.grad(large(cells).sum(), cells)
    return large(maps / shares)


def in_steps(
    batch: Batch,
    count: int,
    variations: Callable[[range], tuple[Tensor, ...]],
    function: Callable[..., Tensor],
) -> Tensor:
    """`function` on `count` variations of every sample, [B, count, ...], a good pass at a time.

    `variations(steps)` makes the arguments, tensors [B, len(steps), ...], the first of them inputs.
    """
    step = max(1, passes.rows_per_pass(batch.model, batch.x) // len(batch))
    found = []
    with torch.no_grad():
        for start in range(0, count, step):
            rows = variations(range(start, min(start + step, count)))
            flat = (tensor.flatten(0, 1) for tensor in rows)
            (part,) = passes.in_passes(function, batch.model, *flat)
            found.append(part.unflatten(0, rows[0].shape[:2]))
    return torch.cat(found, 1)
