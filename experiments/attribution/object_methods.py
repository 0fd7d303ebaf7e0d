"""Maps over objects: what is known to be in a sample are the features, however many pixels it has.

With O objects there are few coalitions, so all of them are run: regression by KernelSHAP is then
the exact Shapley value. An object's value is shared out evenly over its pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments import lazy
from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators
from experiments.specs import NonNegative, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments.attribution import linear_models, objects
    from experiments.attribution.batch import Batch
else:
    torch = lazy.load("torch")
    linear_models = lazy.load("experiments.attribution.linear_models")
    objects = lazy.load("experiments.attribution.objects")


@method(
    "object_shapley", library="assay", family="perturbation", passes="2^O F for O objects",
    needs_objects=True, aliases=["object_kernel_shap"], source="Lundberg & Lee 2017",
)  # fmt: skip
def object_shapley(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    region: str = "objects",
) -> Tensor:
    """Exact Shapley values of objects, which are at the baseline when absent (KernelSHAP's limit).

    `region` is the role whose objects are the players. Raises ValueError without objects.
    """
    who = "method 'object_shapley'"
    values = objects.shapley_values(objects.game(batch, region, who))
    return objects.shared_out(values, objects.objects_of(batch, region, who), x)


@method(
    "object_lime", library="assay", family="perturbation", passes="2^O F for O objects",
    needs_objects=True, source="Ribeiro et al. 2016",
)  # fmt: skip
def object_lime(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    region: str = "objects",
    width: Positive = 0.25,
    strength: NonNegative = 1e-3,
) -> Tensor:
    """Coefficients of a linear model of f over objects that stay or go (Ribeiro et al. 2016).

    Ridge regression on all coalitions z, with weights exp(−(1 − cos(z, 1))² / 2 width²); width
    0.25 and the cosine are the authors' for images. Raises ValueError without objects.
    """
    who = "method 'object_lime'"
    players = objects.objects_of(batch, region, who)
    worth = objects.game(batch, region, who).double()
    coalitions = torch.arange(worth.shape[1], device=worth.device)
    design = ((coalitions[:, None] >> torch.arange(players.shape[1], device=x.device)) & 1).double()
    far = linear_models.coalition_distances(design, "cosine")[None]
    values = linear_models.ridge(design, worth, -(far**2) / (2 * width**2), strength)
    return objects.shared_out(values, players, x)
