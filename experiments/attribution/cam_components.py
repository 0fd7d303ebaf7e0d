"""Class activation maps from the statistics of the features, most of them blind to the class.

A [B, C, *grid] are the activations of a layer and G the gradient of the explained output there.
Parameters that they share with other class activation maps are explained in `cam_methods`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.attribution.registry import SPATIAL, method
from experiments.randomness import SampleGenerators, isolated_rng

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments.attribution import activations
    from experiments.attribution.batch import Batch
else:
    torch = lazy.load("torch")
    activations = lazy.load("experiments.attribution.activations")

Upsample = Literal["linear", "aligned", "nearest"]
Sign = Literal["largest", "activation"]
SHARED_PASS = "1 F, shared by the family"


@method(
    "eigen_cam", library="assay", peer="grad-cam", family="cam", passes=SHARED_PASS,
    models=SPATIAL, source="Muhammad & Yeasin 2020",
)  # fmt: skip
def eigen_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    relu: bool = False,
    layer: str | None = None,
    upsample: Upsample = "linear",
    sign: Sign = "largest",
) -> Tensor:
    """Activations projected on their first principal component; the same for every class.

    Muhammad & Yeasin 2020, on activations centred over the grid. A component has no
    sign of its own: "largest" makes the cell of largest magnitude positive (Chung & Ying 2025,
    equation 13), "activation" lets the map correlate positively with the sum of the channels.
    Zero where all cells are alike.
    """

    def compute() -> Tensor:
        return _principal(activations.features(batch, layer), sign)

    maps = batch.once(("first component", layer, sign), compute, per_target=False)
    return activations.placed(batch, maps, relu, upsample)


@method(
    "eigen_grad_cam", library="assay", peer="grad-cam", family="cam",
    passes="1 F + B of the head, shared by the family", models=SPATIAL,
    source="Gildenblat et al. 2021",
)  # fmt: skip
def eigen_grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    relu: bool = False,
    layer: str | None = None,
    upsample: Upsample = "linear",
    sign: Sign = "largest",
    absolute: bool = False,
) -> Tensor:
    """Activation times gradient, projected on its first principal component.

    Eigen-CAM of G ⊙ A, so that it depends on the class; the sign is chosen as there. With
    `absolute`, |G| ⊙ A: Seg-Eigen-CAM (Chung & Ying 2025, equation 10).
    """
    a, g = activations.both(batch, layer)
    return activations.placed(
        batch, _principal(a * (g.abs() if absolute else g), sign), relu, upsample
    )


@method(
    "kpca_cam", library="grad-cam", peer="grad-cam", family="cam", passes=SHARED_PASS,
    models=SPATIAL, source="Karmani et al. 2024",
)  # fmt: skip
def kpca_cam(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    relu: bool = False,
    layer: str | None = None,
    upsample: Upsample = "linear",
    kernel: Literal["sigmoid", "rbf", "linear", "poly", "cosine"] = "sigmoid",
    sign: Sign = "largest",
) -> Tensor:
    """Eigen-CAM with kernel principal components, by pytorch-grad-cam (Karmani et al. 2024).

    The same for every class. Computed in float64 on the CPU; the sign is chosen as in eigen_cam.
    """

    def compute() -> Tensor:
        from pytorch_grad_cam.utils import svd_on_activations

        features = activations.features(batch, layer)
        numbers = features.double().cpu().numpy()
        with isolated_rng(0):  # scikit-learn starts its eigensolver from a random vector
            maps = svd_on_activations.get_2d_projection_kernel(numbers, kernel)
        return _signed(torch.from_numpy(maps).to(features), features.sum(1), sign)

    maps = batch.once(("kernel component", layer, kernel, sign), compute, per_target=False)
    return activations.placed(batch, maps, relu, upsample)


@method(
    "fem", library="assay", peer="grad-cam", family="cam", passes=SHARED_PASS, models=SPATIAL,
    source="Fuad et al. 2020",
)  # fmt: skip
def fem(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    layer: str | None = None,
    upsample: Upsample = "linear",
    k: float = 2.0,
) -> Tensor:
    """Channels weighted by how often they are unusually active; the same for every class.

    w_c is the share of cells with A_c above its mean by `k` standard deviations (population) of
    the channel (Fuad et al. 2020).
    """
    a = activations.features(batch, layer).flatten(2)
    limit = a.mean(2, keepdim=True) + k * a.std(2, correction=0, keepdim=True)
    weights = (a > limit).to(a).mean(2)
    return activations.weighted(batch, layer, weights, False, upsample)


def _principal(features: Tensor, sign: Sign) -> Tensor:
    """Features [B, C, *grid], centred over the grid, on their first principal axis: [B, *grid].

    By the smaller of the two Gram matrices.
    """
    z = features.flatten(2)
    z = z - z.mean(2, keepdim=True)
    broken = ~z.flatten(1).isfinite().all(1)
    z = torch.where(broken[:, None, None], 0, z)
    if z.shape[1] <= z.shape[2]:
        axis = torch.linalg.eigh(z @ z.mT).eigenvectors[:, :, -1]
        scores = torch.einsum("bc,bcp->bp", axis, z)
    else:
        values, vectors = torch.linalg.eigh(z.mT @ z)
        scores = vectors[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
    scores = torch.where(broken[:, None], torch.nan, scores)
    maps = scores.unflatten(1, features.shape[2:])
    return _signed(maps, features.sum(1), sign)


def _signed(maps: Tensor, activation: Tensor, sign: Sign) -> Tensor:
    """Maps [B, *grid], or their negative, so that they point the way `sign` says."""
    flat = maps.flatten(1)
    if sign == "largest":
        points = flat.amax(1) + flat.amin(1)
    else:
        activation = activation.flatten(1)
        points = (flat * (activation - activation.mean(1, keepdim=True))).sum(1)
    return torch.where((points < 0).view(-1, *[1] * (maps.ndim - 1)), -maps, maps)
