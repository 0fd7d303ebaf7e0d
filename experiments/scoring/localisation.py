"""Whether a map points to where it should: to the region that is known to matter.

An empty region leaves a sample undefined (NaN, not counted). Equal weights count as in all their
orders on average, so a constant map gets what chance gives, wherever the region is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.regions import Channels, Localisation, Weight, spatial
from experiments.scoring.truth import per_class
from experiments.specs import NonNegative

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.scoring import functional as F
    from experiments.scoring import geometry
else:
    torch = lazy.load("torch")
    F = lazy.load("experiments.scoring.functional")
    geometry = lazy.load("experiments.scoring.geometry")

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def _measured(samples: Tensor, context: Context) -> list[Measurement]:
    """The mean; where the truth is that of a formula, also by class, as its study reports it."""
    if context.truth is not None:
        return per_class(samples, context.y)
    return [Measurement.of(samples, headline=True)]


# --- how much of the weight ---


@metric(
    "relevance_mass",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region"},
    source="Arras, Osman & Samek 2022",
)
@dataclass(frozen=True)
class RelevanceMass(Localisation):
    """The share of a map's weight that lies in the region: Σ_region w / Σ w.

    view: weight is the positive part of a score ("positive") or its absolute value ("abs"). A map
    without weight counts as uniform: it gets the share of positions that the region holds.
    """

    view: Weight = "positive"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        share = F.mass(self.weights(maps), self.mask(maps, context))
        return _measured(share, context)


@metric(
    "energy_pointing_game",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region"},
    source="Wang et al. 2020",
)
@dataclass(frozen=True)
class EnergyPointingGame(RelevanceMass):
    """The share of a map's energy in the region; the name that CAMs use for `relevance_mass`."""


@metric(
    "attribution_localisation",
    family="localisation",
    direction="higher",
    range=(0, math.inf),
    needs={"region"},
    source="Kohlbrenner et al. 2020",
)
@dataclass(frozen=True)
class AttributionLocalisation(Localisation):
    """The share of a map's weight in the region, over the region's share of all positions.

    μ_w = (Σ_region w / Σ w) · P / |region| (equation 3 and its weighted form): 1 is chance.
    weighted: false leaves out the second factor, which is `relevance_mass`.
    """

    view: Weight = "positive"
    weighted: bool = True

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        mask = self.mask(maps, context)
        share = F.mass(self.weights(maps), mask)
        if self.weighted:
            share = share / mask.double().mean(1)
        return _measured(share, context)


# --- how high in the ranking ---


@metric(
    "relevance_rank",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region"},
    source="Arras, Osman & Samek 2022",
)
@dataclass(frozen=True)
class RelevanceRank(Localisation):
    """The share of the k highest positions that lie in the region of k.

    Ties get their expected value, so a constant map is at chance wherever the region is.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        hits = self.hits(maps, context)
        return _measured(hits.precision(hits.size.clamp(min=1)), context)


@metric(
    "top_k_intersection",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region"},
    source="Theiner, Müller-Budack & Ewerth 2021",
)
@dataclass(frozen=True)
class TopKIntersection(Localisation):
    """The share of the k highest positions that lie in the region.

    k: how many, or, as a fraction such as 0.1, which share of the positions; more than there are
    is all of them. A region of fewer than k positions cannot reach 1.
    """

    k: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] = 0.1

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        hits = self.hits(maps, context)
        places = hits.found.shape[1]
        k = self.k if isinstance(self.k, int) else round(self.k * places)
        count = torch.full_like(hits.size, min(max(k, 1), places))
        return _measured(hits.precision(count), context)


@metric(
    "relevance_auc",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region"},
    source="Fawcett 2006",
)
@dataclass(frozen=True)
class RelevanceAUC(Localisation):
    """The chance that a position of the region scores above one outside it (ROC AUC).

    Tied ranks are averaged, so a constant map gets 0.5. Undefined (NaN) where the region is every
    position.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return _measured(self.hits(maps, context).auc(), context)


@metric(
    "relevance_ap",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region"},
    source="Crabbé & van der Schaar 2021",
)
@dataclass(frozen=True)
class RelevanceAP(Localisation):
    """Average precision with which a map's weights find the region.

    Σ_i (R_i − R_{i−1}) P_i over the distinct weights (scikit-learn's `average_precision_score`).
    A constant map gets the share of positions that the region holds.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return _measured(self.hits(maps, context).average_precision(), context)


@metric(
    "pointing_game",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region"},
    source="Zhang et al. 2018",
)
@dataclass(frozen=True)
class PointingGame(Localisation):
    """Whether the highest position lies in the region; of tied ones, the share that does.

    tolerance: how far outside, in pixels (Euclidean) or time steps, still counts as a hit; the
    paper has 15 for 224 pixels. Positions of maps [N, D] are neighbours in their order.
    weighted: a hit counts 1 − |region| / P, as small regions are harder to hit.
    """

    tolerance: NonNegative = 0.0
    weighted: bool = False

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        mask = self.mask(maps, context)
        found = F.top_one(self.weights(maps), self._widened(mask, maps))
        if self.weighted:
            found = found * (1 - mask.double().mean(1))
        return _measured(found, context)

    def _widened(self, mask: Tensor, maps: Tensor) -> Tensor:
        if self.tolerance < 1:
            return mask
        flat = mask.reshape(-1, *spatial(maps))  # channels that count each are rows of their own
        return geometry.dilated(flat, self.tolerance).view(mask.shape)


# --- how far away the weight is ---


def _placed(channels: Channels) -> None:
    if channels == "none":
        raise ValueError("channels 'none' leaves no places; choose how to join them")


@metric(
    "centre_distance",
    family="localisation",
    direction="lower",
    range=(0, math.inf),
    needs={"region"},
    source="Clark, Wilming & Haufe 2024",
)
@dataclass(frozen=True)
class CentreDistance(Localisation):
    """How far the centre of a map's weight is from the centre of the region.

    unit: "diagonal" divides by the distance of the outermost positions, so that 1 is as far as
    can be; "pixel" is pixels or time steps. A map without weight counts as uniform.
    """

    view: Weight = "positive"
    unit: Literal["diagonal", "pixel"] = "diagonal"

    def __post_init__(self) -> None:
        _placed(self.channels)

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        mask = self.mask(maps, context)
        places = geometry.coordinates(spatial(maps)).to(maps.device)
        centre = geometry.shares(self.weights(maps)) @ places
        right = (mask.double() @ places) / mask.sum(1, keepdim=True)  # 0/0: an empty region
        distance = (centre - right).norm(dim=1)
        return _measured(distance / geometry.scale(spatial(maps), self.unit), context)


@metric(
    "earth_mover_distance",
    family="localisation",
    direction="lower",
    range=(0, math.inf),
    needs={"region"},
    source="Clark, Wilming & Haufe 2024",
)
@dataclass(frozen=True)
class EarthMoverDistance(Localisation):
    """How far a map's weight must be carried to lie evenly on the region (Wasserstein-1).

    Exact in one dimension, and for images of up to `grid` × `grid` pixels. Larger ones are summed
    into that many cells first, from the top left: the linear program of each sample (scipy's
    HiGHS) has the square of their number as unknowns. unit: as in `centre_distance`. A map
    without weight counts as uniform.
    """

    view: Weight = "positive"
    unit: Literal["diagonal", "pixel"] = "diagonal"
    grid: Count = 8

    def __post_init__(self) -> None:
        _placed(self.channels)

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        shape, mask = spatial(maps), self.mask(maps, context)
        given, wanted = geometry.shares(self.weights(maps)), geometry.shares(mask.double())
        if len(shape) == 1:
            moved = (given.cumsum(1) - wanted.cumsum(1)).abs().sum(1)
        else:
            moved = geometry.transport(given, wanted, shape, self.grid)
        moved = torch.where(mask.any(1), moved, torch.nan)
        return _measured(moved / geometry.scale(shape, self.unit), context)
