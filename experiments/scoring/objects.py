"""Whether a map shares out its weight over objects as exact Shapley values do.

Objects are the players; the game is what the model says, or what the label is, of a sample in
which only some of its objects are left. That is a truth with degrees, where masks have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric
from experiments.scoring.regions import Channels, View, positions, weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.attribution import objects
    from experiments.scoring import similarity
else:
    torch = lazy.load("torch")
    objects = lazy.load("experiments.attribution.objects")
    similarity = lazy.load("experiments.scoring.similarity")


@dataclass(frozen=True)
class _Agreement(Score):
    """region: the role whose objects are the players; an empty mask is an absent object, which
    has no say. kind: agreement of an object's summed weight with its Shapley value, over objects:
    "pearson", "spearman" or "cosine", which is defined for one object too. view, channels: see
    `functional.relevance`. Objects that overlap both get what they share."""

    region: str = "relevant"
    kind: Literal["pearson", "spearman", "cosine"] = "pearson"
    view: View = "raw"
    channels: Channels = "sum"

    def objects(self, maps: Tensor, context: Context) -> Tensor:
        """bool [N, O, P]."""
        found = context.regions.get(self.region)
        if found is None:
            known = sorted(context.regions)
            raise ValueError(
                f"score {self.name!r} needs objects, and there are none of role {self.region!r}; "
                f"known: {known}"
            )
        each = [positions(mask, maps, self.channels, self) for mask in found.unbind(1)]
        return torch.stack(each, 1)

    def agreement(self, maps: Tensor, context: Context, values: Tensor) -> list[Measurement]:
        """How the weights on objects agree with `values` [N, O]; NaN where they cannot."""
        masks = self.objects(maps, context)
        there = masks.any(2)
        found = weights(maps, self.view, self.channels)
        given = (masks * found.unsqueeze(1)).sum(2)
        samples = similarity.over_objects(given, values.to(given.device), there, self.kind)
        return [Measurement.of(samples, headline=True)]


@metric(
    "object_shapley_agreement",
    family="truth",
    direction="higher",
    range=(-1, 1),
    needs={"region", "model"},
    source="Shapley 1953",
)
@dataclass(frozen=True)
class ObjectShapleyAgreement(_Agreement):
    """Agreement of the weight on each object with its exact Shapley value for the model.

    The worth of some objects is the explained output of the sample with the other objects'
    positions set to the baseline; what belongs to no object stays. Undefined (NaN) for fewer than
    two objects (one, for the cosine) or where all weights or all values are equal.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        worth = objects.game(context.model_batch(), self.region, f"score {self.name!r}")
        return self.agreement(maps, context, objects.shapley_values(worth))

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Two objects are assumed here; O of them take 2^O forwards."""
        return (4, 0)


@metric(
    "object_label_agreement",
    family="truth",
    direction="higher",
    range=(-1, 1),
    needs={"region", "object game"},
    source="Shapley 1953",
)
@dataclass(frozen=True)
class ObjectLabelAgreement(_Agreement):
    """Agreement of the weight on each object with its exact Shapley value for the label.

    The label function is `meta["object_game"]`: its 2^O values, that of the objects whose bits are
    set in s at place s. A sample plays it with the objects that it has. worth: the "label", which
    maps of the class 1 explain, or whether it is the sample's "own" label, for maps that explain
    that class, whichever it is.
    """

    worth: Literal["label", "own"] = "label"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        there = self.objects(maps, context).any(2)
        table = context.meta.get("object_game")
        if table is None or len(table) != 2 ** there.shape[1]:
            raise ValueError(
                f"score {self.name!r} needs the label of all {2 ** there.shape[1]} sets of "
                "objects in meta['object_game']"
            )
        labels = torch.tensor(table, dtype=torch.float64, device=there.device)
        bits = (there.long() << torch.arange(there.shape[1], device=there.device)).sum(1)
        coalitions = torch.arange(len(table), device=there.device)
        game = labels[coalitions & bits.unsqueeze(1)]
        if self.worth == "own":
            game = (game == context.y.to(game).unsqueeze(1)).double()
        return self.agreement(maps, context, objects.shapley_values(game))
