"""What a mask made from a map gives away: exact tests on the enumerated samples, no retraining.

A map that says nothing of the inputs can still spell the class in *which* inputs it hides. These
scores look at the masked samples alone; they are numbers of the whole set of samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.truth import PAPER, Masking, Threshold, label

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.scoring import logic
else:
    torch = lazy.load("torch")
    logic = lazy.load("experiments.scoring.logic")

Seen = Literal["mask", "row"]


@dataclass(frozen=True)
class Reading(Masking):
    """Parameters of scores that read the class off masked samples.

    estimate: how the class is known that a sight of a sample stands for. "plug_in" takes the
    frequencies of all samples, those of the sample included. As almost every sample has a mask of
    its own, that flatters any map, random ones too. "held_out" takes those of the samples with
    other symbols at the irrelevant inputs, which are repetitions of the same question: what is
    read there carries over to samples not seen. Of an irrelevant input a "row" then shows
    whether it is masked, and not its symbol. It errs on the other side, as a mask met once is
    then no help.

    draws: how often each mask's visible inputs are moved to random places, for the control: the
    number of visible inputs of every sample, and what that says of the class, stay as they are.
    At "baseline", which masks all irrelevant inputs of any map, they go to the others only.
    """

    estimate: Literal["plug_in", "held_out"] = "plug_in"
    draws: Annotated[int, Field(ge=0)] = 5

    def reader(self, context: Context) -> Callable[[Tensor, Seen], tuple[Tensor, Tensor | None]]:
        """From a mask [N, D] to the groups of samples that look the same, and their parts."""
        values, symbols = context.x.flatten(1).unique(return_inverse=True)
        shown, parts = symbols + 1, None
        if self.estimate == "held_out":
            assert context.truth is not None
            irrelevant = context.truth.irrelevant
            parts = logic.group(symbols[:, irrelevant], len(values))
            if int(parts.max()) == 0:
                raise ValueError(
                    'estimate "held_out" needs samples that differ in their irrelevant inputs, and '
                    'here all have the same; use estimate "plug_in"'
                )
            shown = shown.masked_fill(irrelevant, 1)

        def read(visible: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None]:
            if seen == "mask":
                return logic.group(visible, 2), parts
            return logic.group(shown * visible, len(values) + 1), parts

        return read

    def moved(self, threshold: Threshold, visible: Tensor, context: Context) -> list[Tensor]:
        """`draws` times the mask [N, D] with its visible inputs elsewhere.

        Where a threshold masks every irrelevant input, by its rule and for any map, they stay so.
        """
        if not self.draws:
            return []
        assert context.truth is not None
        indices = tuple(context.indices or range(len(context.y)))
        noise = _noise(context.seed, indices, self.draws, visible.shape[1]).to(visible.device)
        if threshold == "baseline" and self.ties == "mask":
            noise = noise.masked_fill(context.truth.irrelevant, -1.0)
        return [_moved(visible, numbers) for numbers in noise.unbind(1)]


# The same numbers serve every map of the samples, and cost more than all the rest.
@functools.lru_cache(maxsize=2)
def _noise(seed: int, indices: tuple[int, ...], draws: int, inputs: int) -> Tensor:
    from experiments.randomness import SampleGenerators

    return SampleGenerators(seed, indices, "score/information test").uniform(draws, inputs)


def _moved(visible: Tensor, noise: Tensor) -> Tensor:
    """bool [N, D]: as many visible inputs per sample, where the noise is highest."""
    place = noise.argsort(dim=1, descending=True).argsort(dim=1)
    return place < visible.sum(1, keepdim=True)


@metric(
    "bayes_accuracy",
    family="truth",
    direction="lower",
    range=(0, 1),
    needs={"baseline"},
    source=PAPER,
)
@dataclass(frozen=True)
class BayesAccuracy(Reading):
    """How well the class can be read from masked samples, at best: an exact information test.

    Samples that look the same after masking form a group; the best guess is the majority of its
    group. Bucket "row" sees the masked sample, bucket "mask" only which inputs are masked: what
    the mask itself says of the class. `of` is the bucket for rankings; lower means that less of
    the class leaks into the mask. As a plug-in it is an upper bound for any model retrained on
    these samples.

    Buckets "row random" and "mask random" are the same of random masks with as many visible
    inputs: compare with them, never with the logical accuracy. Inputs must be discrete.
    """

    of: Seen = "mask"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        read = self.reader(context)

        def correct(visible: Tensor, seen: Seen) -> Tensor:
            groups, parts = read(visible, seen)
            return logic.majority_correct(groups, context.y, parts)

        found = []
        views: tuple[Seen, ...] = ("mask", "row")
        for t, visible in self.kept(maps, context):
            random = self.moved(t, visible, context)
            for seen in views:
                head = t == self.headline and seen == self.of
                given, at = correct(visible, seen), label(t)
                found.append(Measurement.of(given, headline=head, threshold=at, bucket=seen))
                if random:
                    chance = torch.stack([correct(mask, seen) for mask in random]).mean(0)
                    found.append(Measurement.of(chance, threshold=at, bucket=f"{seen} random"))
        return found


@metric(
    "information_test",
    family="truth",
    direction="lower",
    range=(-math.inf, math.inf),
    needs={"baseline"},
    source=PAPER,
)
@dataclass(frozen=True)
class InformationTest(Reading):
    """How much masked samples say of the class, beyond what masks at random say.

    of: what is seen of a sample, its "mask" bits alone or its masked "row".
    quantity: "information", I(seen; y) in bits, or "accuracy", of the best guess
    (`bayes_accuracy`). Bucket "map" is that of the map's masks, "random" that of random ones with
    as many visible inputs, "excess" the difference, the headline. Inputs must be discrete.
    """

    of: Seen = "mask"
    quantity: Literal["information", "accuracy"] = "information"
    draws: Annotated[int, Field(ge=1)] = 5

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        read = self.reader(context)
        accuracy = self.quantity == "accuracy"
        quantity = logic.majority_correct if accuracy else logic.pointwise_information

        def known(visible: Tensor) -> Tensor:
            groups, parts = read(visible, self.of)
            return quantity(groups, context.y, parts)

        found = []
        for t, visible in self.kept(maps, context):
            chance = torch.stack([known(mask) for mask in self.moved(t, visible, context)]).mean(0)
            given = known(visible)
            at, head = label(t), t == self.headline
            found.append(Measurement.of(given, threshold=at, bucket="map"))
            found.append(Measurement.of(chance, threshold=at, bucket="random"))
            excess = given - chance
            found.append(Measurement.of(excess, headline=head, threshold=at, bucket="excess"))
        return found
