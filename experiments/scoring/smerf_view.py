"""What SMERF's scores see of a map: the original's images of it, as intensities in [0, 1].

Kim, Plumb & Talwalkar (2022, code) turn maps into colour images and score those, another way for
each method. Scores of `preset: paper` get these views in the SMERF study; stored maps are raw.

    gray     Σ_c |m| / its largest value, in 256 steps
    signed   m, cut off at the 1st and 99th percentile of all images explained together, / its
             largest magnitude, from [-1, 1] to [0, 1], highest channel: zero is 0.5
    heat     Σ_c m / its largest magnitude in 255 steps, in the colours of "seismic"; 1 − their
             mean over channels, which grows with the magnitude, whatever the sign
    cam      Σ_c m, positive part, / its largest value
    scaled   m from its lowest to its highest value, highest channel
    inverse  1 − mean over channels, of m as it is
    edge     the same of m from its lowest to its highest value
    plain    mean over channels
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

VIEWS = {
    "absolute_gradient": "gray", "gradient": "gray", "smoothgrad": "gray",
    "smoothgrad_squared": "gray", "squared_gradient": "gray", "vargrad": "gray",
    "deconvolution": "signed", "guided_backprop": "signed",
    "deep_shap": "scaled", "random": "inverse",
    "input_only": "plain", "oracle": "plain", "constant": "plain",
    "object_shapley": "plain", "object_lime": "plain",
}  # fmt: skip


def shown(method: Mapping[str, Any], family: str, maps: Tensor, groups: Tensor) -> Tensor:
    """float64 [N, 1, H, W]: the view of raw maps [N, C, H, W] of a method, its name and parameters.

    groups: int64 [N], which images were explained together: the original's buckets. A map of
    one value is 0 everywhere where it would be divided by its range.
    """
    name = method["name"]
    if name == "sobel":  # theirs is signed; with `absolute` it is a floor of ours
        kind = "plain" if method.get("absolute") else "edge"
    else:
        kind = VIEWS.get(name, "cam" if family == "cam" else "heat")
    maps = maps.double()
    return _KINDS[kind](maps, groups).unsqueeze(1)


def _largest(values: Tensor) -> Tensor:
    """[N, 1, ...]: the largest magnitude of each image; 1 for an image of zeros."""
    found = values.abs().flatten(1).amax(1)
    return torch.where(found > 0, found, 1).view(-1, *(1 for _ in values.shape[1:]))


def _gray(maps: Tensor, groups: Tensor) -> Tensor:
    strength = maps.abs().sum(1)
    return (255 * strength / _largest(strength)).floor() / 255


def _signed(maps: Tensor, groups: Tensor) -> Tensor:
    found = torch.empty_like(maps[:, 0])
    for group in groups.unique():
        rows = (groups == group).nonzero().squeeze(1)
        low, high = _percentiles(maps[rows])
        cut = maps[rows].clamp(low, high)
        found[rows] = ((cut / _largest(cut) + 1) / 2).amax(1)
    return found


def _percentiles(maps: Tensor) -> tuple[float, float]:
    import numpy as np

    low, high = np.percentile(maps.cpu().numpy(), [1, 99])
    return float(low), float(high)


def _heat(maps: Tensor, groups: Tensor) -> Tensor:
    total = maps.sum(1)
    step = (255 * (total / _largest(total) + 1) / 2).long()
    return _darkness().to(maps.device)[step]


@functools.cache
def _darkness() -> Tensor:
    """float64 [256]: 1 − the mean of red, green and blue of each colour of "seismic"."""
    import matplotlib
    import numpy as np

    colours = matplotlib.colormaps["seismic"](np.arange(256))[:, :3]
    return torch.from_numpy(1 - colours.mean(1))


def _cam(maps: Tensor, groups: Tensor) -> Tensor:
    total = maps.sum(1).clamp(min=0)
    return total / _largest(total)


def _stretched(maps: Tensor) -> Tensor:
    low = maps.flatten(1).amin(1).view(-1, 1, 1, 1)
    return (maps - low) / _largest(maps - low)


def _scaled(maps: Tensor, groups: Tensor) -> Tensor:
    return _stretched(maps).amax(1)


def _inverse(maps: Tensor, groups: Tensor) -> Tensor:
    return 1 - maps.mean(1)


def _edge(maps: Tensor, groups: Tensor) -> Tensor:
    return 1 - _stretched(maps).mean(1)


def _plain(maps: Tensor, groups: Tensor) -> Tensor:
    return maps.mean(1)


_KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gray": _gray, "signed": _signed, "heat": _heat, "cam": _cam, "scaled": _scaled,
    "inverse": _inverse, "edge": _edge, "plain": _plain,
}  # fmt: skip
