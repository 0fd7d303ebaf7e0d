"""How a map shares out its weight over the objects of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.regions import Localisation, Weight

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.scoring import geometry
else:
    torch = lazy.load("torch")
    geometry = lazy.load("experiments.scoring.geometry")


@metric(
    "object_share",
    family="localisation",
    direction="higher",
    range=(0, 1),
    needs={"region", "objects"},
    source="Kim, Plumb & Talwalkar 2022",
)
@dataclass(frozen=True)
class ObjectShare(Localisation):
    """The share of a map's weight on each object, and on none ("elsewhere").

    The headline is the share on objects. Undefined (NaN) for an object that is absent; where
    objects overlap, each gets what they share. Objects are called as `meta["objects"]` says, else
    by their number. From shares one can tell which model a map is of (the identifiability of the
    paper's section 5.3).
    """

    region: str = "objects"
    view: Weight = "abs"

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        objects = self.objects(maps, context, self.region)
        share = geometry.shares(self.weights(maps)).unsqueeze(1)
        on = (objects * share).sum(2)
        each = torch.where(objects.any(2), on, torch.nan)
        every = (objects.any(1) * share[:, 0]).sum(1)
        names = context.meta.get("objects") or [str(k) for k in range(objects.shape[1])]
        return [
            Measurement.of(every, headline=True),
            *(Measurement.of(each[:, k], object=name) for k, name in enumerate(names)),
            Measurement.of(1 - every, object="elsewhere"),
        ]
