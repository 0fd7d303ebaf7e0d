"""Whether a map shares out its weight over objects as exact Shapley values do.

Objects are the players; the game is what the model says, or what the label is, of a sample in
which only some of its objects are left. That is a truth with degrees, where masks have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric
from experiments.scoring.regions import Channels, View, positions, weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments import passes
    from experiments.scoring import similarity
else:
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")
    similarity = lazy.load("experiments.scoring.similarity")

MOST = 12  # objects: 2^12 passes of a sample


def shapley_values(game: Tensor) -> Tensor:
    """float64 [N, O]: the exact Shapley values of games [N, 2^O].

    game[:, s] is the worth of the coalition of the players whose bits are set in s. (Shapley 1953)
    """
    players = int(game.shape[1]).bit_length() - 1
    coalitions = torch.arange(game.shape[1], device=game.device)
    bits = torch.arange(players, device=game.device)
    size = ((coalitions.unsqueeze(1) >> bits) & 1).sum(1)
    # A coalition of s players is joined in s! (O − s − 1)! of the O! orders.
    share = [
        math.factorial(s) * math.factorial(players - s - 1) / math.factorial(players)
        for s in range(players)
    ]
    shares = torch.tensor([*share, 0.0], dtype=torch.float64, device=game.device)
    values = []
    for player in range(players):
        without = coalitions[(coalitions >> player) & 1 == 0]
        gain = game.double()[:, without | (1 << player)] - game.double()[:, without]
        values.append(gain @ shares[size[without]])
    return torch.stack(values, 1)


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
        if found.shape[1] > MOST:
            raise ValueError(
                f"score {self.name!r} runs all coalitions, which is too much for "
                f"{found.shape[1]} objects; join them to at most {MOST}"
            )
        each = [positions(mask, maps, self.channels, self) for mask in found.unbind(1)]
        return torch.stack(each, 1)

    def agreement(self, maps: Tensor, context: Context, values: Tensor) -> list[Measurement]:
        """How the weights on objects agree with `values` [N, O]; NaN where they cannot."""
        objects = self.objects(maps, context)
        there = objects.any(2)
        found = weights(maps, self.view, self.channels)
        given = (objects * found.unsqueeze(1)).sum(2)
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
        batch = context.model_batch()
        objects = context.regions.get(self.region)
        self.objects(maps, context)  # says what is wrong with them
        assert objects is not None

        def worth() -> Tensor:
            columns = [self._outputs(context, s) for s in range(2 ** objects.shape[1])]
            return torch.stack(columns, 1)

        game = batch.once(("object game", self.region), worth)
        return self.agreement(maps, context, shapley_values(game))

    def _outputs(self, context: Context, coalition: int) -> Tensor:
        """[N]: the explained output where only the objects of a coalition are left."""
        batch = context.model_batch()
        objects = context.regions[self.region].to(batch.x.device)
        players = range(objects.shape[1])
        if coalition == 2 ** len(players) - 1:
            return batch.selected()
        stays = torch.tensor([(coalition >> p) & 1 == 1 for p in players], device=objects.device)
        gone = objects[:, ~stays].any(1) & ~objects[:, stays].any(1)
        gone = gone.unsqueeze(1) if batch.x.ndim > 2 else gone
        inputs = torch.where(gone, batch.baseline, batch.x)
        return passes.selected(passes.outputs(batch.model, inputs), batch.target)

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
    set in s at place s. A sample plays it with the objects that it has.
    """

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
        return self.agreement(maps, context, shapley_values(game))
