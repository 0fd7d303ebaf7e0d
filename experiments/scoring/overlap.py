"""Overlap of maps with objects, as SMERF measures it, and as it should.

Kim, Plumb & Talwalkar, *Sanity Simulations for Saliency Methods* (2022). Preset "paper" computes
what their code did: maps are blurred with a 7 × 7 mean; the threshold of the IOU is the edge of
one of ten bins of a histogram; every object is compared with the whole thresholded map, so that a
perfect map of n objects of one size gets 1/n; AFL scales maps to [0, 1], so that the lowest weight,
whatever it is, counts as none. Preset "fixed" takes the objects as one region and as many
positions as it has, and maps as they are. A parameter that is given goes before the preset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.regions import Localisation, Weight, shared, spatial

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.scoring import functional as F
    from experiments.scoring import geometry
else:
    torch = lazy.load("torch")
    F = lazy.load("experiments.scoring.functional")
    geometry = lazy.load("experiments.scoring.geometry")

Preset = Literal["paper", "fixed"]
Threshold = Literal["area", "histogram"] | Annotated[float, Field(gt=0, lt=1)]

BINS = 10


@dataclass(frozen=True)
class _Overlap(Localisation):
    """preset      what the parameters that are not given are, see above
    blur        width of the mean filter, odd; 1 is none (paper: 7)
    objects_as  "each" object for itself (paper), or their "union"
    """

    view: Weight = "abs"
    preset: Preset = "fixed"
    blur: Annotated[int, Field(ge=1)] | None = None
    objects_as: Literal["each", "union"] | None = None

    PAPER: ClassVar[dict[str, Any]] = {"blur": 7, "objects_as": "each"}
    FIXED: ClassVar[dict[str, Any]] = {"blur": 1, "objects_as": "union"}

    def __post_init__(self) -> None:
        if self.setting("blur") % 2 == 0:
            raise ValueError(f"blur must be odd, not {self.blur}")
        if self.channels == "none" and self.setting("blur") > 1:
            raise ValueError("channels 'none' leaves nothing to blur; choose how to join them")

    def setting(self, name: str) -> Any:
        given = getattr(self, name)
        return given if given is not None else self._preset[name]

    @property
    def _preset(self) -> dict[str, Any]:
        return self.PAPER if self.preset == "paper" else self.FIXED

    def blurred(self, maps: Tensor) -> Tensor:
        size = self.setting("blur")
        weights = self.weights(maps)
        key = ("blurred", self.view, self.channels, size)
        return shared(maps, key, lambda: geometry.blurred(weights, spatial(maps), size))

    def masks(self, maps: Tensor, context: Context, role: str) -> Tensor:
        """bool [N, O, P]: what counts as one object."""
        found = self.objects(maps, context, role)
        return found.any(1, keepdim=True) if self.setting("objects_as") == "union" else found


# --- attribution focus level ---


@metric(
    "afl",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region"},
    source="Kim, Plumb & Talwalkar 2022",
)
@dataclass(frozen=True)
class AFL(_Overlap):
    """Attribution focus level: the share of a map's weight that lies on the objects.

    Σ_objects Σ_pixels q with q = w / Σ w. The paper's PAFL is that of the primary objects, its
    SAFL (`safl`) that of the secondary ones. minmax: scale w to [0, 1] first (paper); a constant
    map then has no weight, and is undefined. Without it, a map without weight is uniform. With
    objects_as "each", where objects overlap counts several times.
    """

    minmax: bool | None = None

    PAPER: ClassVar[dict[str, Any]] = {**_Overlap.PAPER, "minmax": True}
    FIXED: ClassVar[dict[str, Any]] = {**_Overlap.FIXED, "minmax": False}

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        return [Measurement.of(self.focus(maps, context)[0], headline=True)]

    def focus(self, maps: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """[N] AFL, and the number of pixels that it sums over."""
        masks = self.masks(maps, context, self.region)
        weights = self.blurred(maps)
        if self.setting("minmax"):
            weights = weights - weights.amin(1, keepdim=True)
            weights = weights.masked_fill(weights.amax(1, keepdim=True) == 0, torch.nan)
        share = torch.where(weights.isnan(), weights, geometry.shares(weights))
        pixels = masks.sum((1, 2))
        total = (masks.sum(1) * share).sum(1)
        return torch.where(pixels > 0, total, torch.nan), pixels


@metric(
    "safl",
    family="localisation",
    direction="lower",
    range=(0, 1),
    needs={"region", "secondary region"},
    source="Kim, Plumb & Talwalkar 2022",
)
@dataclass(frozen=True)
class SAFL(AFL):
    """Secondary AFL: the share of a map's weight on objects that it should leave alone.

    As `afl`, on the role "secondary" unless `region` names another.
    """

    region: str = "secondary"


@metric(
    "mafl",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region"},
    source="Kim, Plumb & Talwalkar 2022",
)
@dataclass(frozen=True)
class MAFL(AFL):
    """Mean attribution focus level: AFL per pixel of the objects, so that size does not count.

    The mean of q = w / Σ w over all pixels of the objects; 1/P for a uniform map. For the paper's
    secondary one, set `region`.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        total, pixels = self.focus(maps, context)
        return [Measurement.of(total / pixels, headline=True)]


# --- intersection over union ---


@metric(
    "iou",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region"},
    source="Kim, Plumb & Talwalkar 2022",
)
@dataclass(frozen=True)
class IOU(_Overlap):
    """Intersection over union of a thresholded map and the objects.

    thresholds: "area" keeps as many of the highest pixels as the objects have (expected overlap,
    where the last of them are tied), a number that share of all pixels, and "histogram" (paper)
    all from the bin of a 10-bin histogram on, counted from above, in which that area is reached:
    at least as many, and all pixels of a map with one weight. The headline is the mean over them.
    area_of: the role whose objects set the area; by default `region` itself. The paper's SIOU has
    region "secondary", and area "primary" except in its multi-threshold variant.
    """

    thresholds: Annotated[tuple[Threshold, ...], Field(min_length=1)] | None = None
    area_of: str | None = None

    PAPER: ClassVar[dict[str, Any]] = {**_Overlap.PAPER, "thresholds": ("histogram",)}
    FIXED: ClassVar[dict[str, Any]] = {**_Overlap.FIXED, "thresholds": ("area",)}

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        found = dict(self._per_threshold(maps, context))
        if len(found) == 1:
            ((threshold, samples),) = found.items()
            return [Measurement.of(samples, headline=True, threshold=str(threshold))]
        mean = torch.stack(list(found.values())).mean(0)
        several = [Measurement.of(samples, threshold=str(t)) for t, samples in found.items()]
        return [Measurement.of(mean, headline=True, threshold="mean"), *several]

    def _per_threshold(self, maps: Tensor, context: Context) -> Iterator[tuple[Threshold, Tensor]]:
        masks = self.masks(maps, context, self.region)
        area = self.masks(maps, context, self.area_of or self.region).sum((1, 2))
        weights = self.blurred(maps)
        for threshold in self.setting("thresholds"):
            if threshold == "histogram":
                kept = weights >= _histogram_edge(weights, area)
                common, count = (masks & kept.unsqueeze(1)).sum(2).double(), kept.sum(1)
            else:
                share = None if threshold == "area" else round(float(threshold) * weights.shape[1])
                count = area if share is None else torch.full_like(area, max(share, 1))
                count = count.clamp(max=weights.shape[1])
                ranking = F.Ranking.of(weights)
                hits = [ranking.find(mask).among(count.clamp(min=1)) for mask in masks.unbind(1)]
                common = torch.stack(hits, 1)
            yield threshold, _mean_iou(common, masks.sum(2), count, area)


def _mean_iou(common: Tensor, sizes: Tensor, count: Tensor, area: Tensor) -> Tensor:
    """[N]: the mean over objects that are there; NaN without any, or without an area."""
    each = common / (count.unsqueeze(1) + sizes - common).clamp(min=1)
    there = sizes > 0
    mean = (each * there).sum(1) / there.sum(1).clamp(min=1)
    return torch.where(there.any(1) & (area > 0), mean, torch.nan)


def _histogram_edge(weights: Tensor, area: Tensor) -> Tensor:
    """[N, 1]: the left edge of the highest bin above which at least `area` [N] weights lie."""
    low, high = weights.amin(1, keepdim=True), weights.amax(1, keepdim=True)
    edges = low + (high - low) * torch.arange(BINS, device=weights.device) / BINS
    reached = torch.stack([(weights >= edge).sum(1) for edge in edges.T.unsqueeze(2)], 1)
    enough = (reached >= area.unsqueeze(1)).sum(1, keepdim=True).clamp(min=1)
    return edges.gather(1, enough - 1)


@metric(
    "siou",
    family="localisation",
    direction="lower",
    range=(0, 1),
    needs={"region", "secondary region"},
    source="Kim, Plumb & Talwalkar 2022",
)
@dataclass(frozen=True)
class SIOU(IOU):
    """Secondary IOU: overlap with objects that a map should avoid.

    As `iou`, on the role "secondary" unless `region` names another.
    """

    region: str = "secondary"
