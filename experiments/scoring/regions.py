"""What localisation scores look at: a map's weights, and the masks it should point to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from experiments import lazy
from experiments.scoring.base import Context, Score

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.scoring import functional as F
else:
    torch = lazy.load("torch")
    F = lazy.load("experiments.scoring.functional")

T = TypeVar("T")
View = Literal["raw", "abs", "positive"]
Weight = Literal["abs", "positive"]
Channels = Literal["sum", "abs_sum", "mean", "max", "l2", "none"]


def shared(maps: Tensor, key: Hashable, compute: Callable[[], T]) -> T:
    """`compute()`, once for all scores of these very maps, and forgotten with them.

    Remembered by the tensor and not by the context, which may be another for every score.
    """
    version = 0 if maps.is_inference() else maps._version  # counts changes in place
    known = _memory().setdefault(maps, {})
    if (version, key) not in known:
        known[version, key] = compute()
    return known[version, key]


@cache
def _memory() -> MutableMapping[Tensor, dict[Hashable, Any]]:
    from torch.utils.weak import WeakTensorKeyDictionary

    return WeakTensorKeyDictionary()


def weights(maps: Tensor, view: View, channels: Channels) -> Tensor:
    """float64 [N, P]: `functional.relevance`."""
    key = ("relevance", view, channels)
    return shared(maps, key, lambda: F.relevance(maps, view, channels))


def ranking(maps: Tensor, view: View, channels: Channels) -> F.Ranking:
    """The sorted `weights`."""
    found = weights(maps, view, channels)
    return shared(maps, ("ranking", view, channels), lambda: F.Ranking.of(found))


@dataclass(frozen=True)
class Localisation(Score):
    """A base for scores of maps against masks.

    region    the role whose objects count, as one mask: "relevant" or another that the dataset
              has (`Context.regions`); of inputs of a formula, those in some ("relevant") or all
              ("necessary") minimal sufficient sets of the sample, or in the formula ("used").
              A sample without a position in the region is undefined (NaN) and not counted.
    view      what of a signed score counts; channels  how those of a position become one: see
              `functional.relevance`
    """

    region: str = "relevant"
    view: View = "raw"
    channels: Channels = "sum"

    def weights(self, maps: Tensor) -> Tensor:
        return weights(maps, self.view, self.channels)

    def mask(self, maps: Tensor, context: Context) -> Tensor:
        """bool [N, P]: the region."""
        truth, inputs = context.truth, self.region not in context.regions
        if truth is not None and inputs and self.region == "necessary":
            found = truth.necessary
        elif truth is not None and inputs and self.region == "used":
            found = (~truth.irrelevant).expand(len(truth.pattern), -1)
        else:
            found = context.region(self.region)
        return positions(found, maps, self.channels, self)

    def hits(self, maps: Tensor, context: Context) -> F.Hits:
        """Where the ranking of the weights finds the region."""
        return ranking(maps, self.view, self.channels).find(self.mask(maps, context))

    def objects(self, maps: Tensor, context: Context, role: str) -> Tensor:
        """bool [N, O, P]: the objects of a role, empty ones standing for absent ones."""
        found = context.regions.get(role)
        found = context.region(role)[:, None] if found is None else found
        each = [positions(mask, maps, self.channels, self) for mask in found.unbind(1)]
        return torch.stack(each, 1)


def spatial(maps: Tensor) -> torch.Size:
    """The shape of the positions: [D], [T] or [H, W]."""
    return maps.shape[1:] if maps.ndim == 2 else maps.shape[2:]


def positions(mask: Tensor, maps: Tensor, channels: Channels, score: Score) -> Tensor:
    """bool [N, P]: a mask [N, ...] of the maps' spatial shape, for all channels if each counts.

    Raises ValueError if the mask has another shape.
    """
    if mask.shape != (len(maps), *spatial(maps)):
        raise ValueError(
            f"score {score.name!r}: masks of shape {list(mask.shape)} for maps of shape "
            f"{list(maps.shape)}; a mask has the maps' shape without the channels"
        )
    mask = mask.to(maps.device).bool()
    if channels == "none" and maps.ndim > 2:
        mask = mask.unsqueeze(1).expand(maps.shape)
    return mask.flatten(1)
