"""Weakly supervised localisation: the box around what a map lights up, against objects' boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.regions import Localisation, Weight, spatial

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.scoring import geometry
else:
    torch = lazy.load("torch")
    geometry = lazy.load("experiments.scoring.geometry")


@metric(
    "box_iou",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region", "image"},
    source="Zhou et al. 2016",
)
@dataclass(frozen=True)
class BoxIOU(Localisation):
    """Overlap of the box around what a map lights up with the best matching object's box.

    A pixel is lit if it lies above `threshold`: the "mean" of the map, or that share of its
    maximum (0.2 in the paper); component "largest" takes the largest set of lit pixels that touch
    by their sides, "all" all of them. A map without a lit pixel, such as a constant one, has the
    whole image as its box. For images.
    """

    view: Weight = "positive"
    threshold: Literal["mean"] | Annotated[float, Field(ge=0, lt=1)] = "mean"
    component: Literal["largest", "all"] = "largest"

    def __post_init__(self) -> None:
        if self.channels == "none":
            raise ValueError("channels 'none' has no box; choose how to join them")

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [Measurement.of(self.overlap(maps, context), headline=True)]

    def overlap(self, maps: Tensor, context: Context) -> Tensor:
        """[N]: the best IoU over objects; NaN without one."""
        shape = spatial(maps)
        if len(shape) != 2:
            raise ValueError(f"score {self.name!r} draws boxes in images, not in {list(shape)}")
        weights = self.weights(maps)
        if self.threshold == "mean":
            border = weights.mean(1, keepdim=True)
        else:
            border = self.threshold * weights.amax(1, keepdim=True)
        # A constant map's mean may differ from its values by rounding.
        constant = weights.amax(1, keepdim=True) == weights.amin(1, keepdim=True)
        lit = ((weights > border) & ~constant).view(-1, *shape)
        if self.component == "largest":
            lit = geometry.largest_component(lit)
        lit = lit | ~lit.any((1, 2), keepdim=True)
        objects = self.objects(maps, context, self.region).unflatten(2, shape)
        there = objects.any((2, 3))
        found = geometry.box_overlap(geometry.boxes(lit).unsqueeze(1), geometry.boxes(objects))
        best = torch.where(there, found, -1).amax(1)
        return torch.where(there.any(1), best, torch.nan)


@metric(
    "localisation_error",
    family="localisation",
    direction="lower",
    range=(0, 1),
    needs={"region", "image"},
    source="Zhou et al. 2016",
)
@dataclass(frozen=True)
class LocalisationError(BoxIOU):
    """Whether the box of a map misses all objects: 1 unless `box_iou` is above `hit`.

    Whatever the model predicts; correct "required" counts a wrong prediction as a miss as well
    (the official error of ILSVRC), which needs the predictions.
    """

    hit: Annotated[float, Field(ge=0, lt=1)] = 0.5
    correct: Literal["ignored", "required"] = "ignored"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        overlap = self.overlap(maps, context)
        missed = overlap <= self.hit
        if self.correct == "required":
            if context.prediction is None:
                raise ValueError(f"score {self.name!r}: correct 'required' needs the predictions")
            missed |= (context.prediction != context.y).to(missed.device)
        samples = torch.where(overlap.isnan(), torch.nan, missed.double())
        return [Measurement.of(samples, headline=True)]
