"""How alike two maps of the same samples are; all vectorised over samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as nn
from torch import Tensor

from experiments.scoring.functional import Channels, Ranking, View, average_ranks, relevance

Kind = Literal["pearson", "spearman", "ssim", "top_k_iou", "cosine", "l2"]

WINDOW, SIGMA = 11, 1.5  # of SSIM, and its constants below (Wang et al. 2004, section III.C)
K1, K2 = 0.01, 0.03


def similarity(
    a: Tensor,
    b: Tensor,
    kind: Kind,
    *,
    view: View = "raw",
    channels: Channels = "sum",
    k: float = 0.1,
) -> Tensor:
    """float64 [N]: how alike the maps `a` and `b` [N, ...] of each sample are.

    kind: "pearson" and "spearman" (average ranks of ties) correlation over positions, in [-1, 1];
    "ssim" (`ssim`), at most 1; "top_k_iou" (`top_k_iou`), in [0, 1]; "cosine", in [-1, 1]; and
    "l2", the Euclidean distance, which is 0 for equal maps and grows.
    view, channels: see `relevance`. k: the share of positions of top_k_iou.

    NaN where it is undefined: correlations of a constant map, the cosine of a zero map, and the
    SSIM of two maps with one and the same value.
    Raises ValueError for maps of different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"similarity of maps of shapes {list(a.shape)} and {list(b.shape)}")
    left, right = relevance(a, view, channels), relevance(b, view, channels)
    match kind:
        case "pearson":
            return pearson(left, right)
        case "spearman":
            return pearson(average_ranks(left), average_ranks(right))
        case "cosine":
            return cosine(left, right)
        case "l2":
            return (left - right).norm(dim=1)
        case "top_k_iou":
            return top_k_iou(left, right, k)
        case "ssim":
            rows = a.shape[1] if channels == "none" and a.ndim > 2 else 1
            shape = a.shape[1:] if a.ndim == 2 else a.shape[2:]
            return ssim(left.view(-1, rows, *shape), right.view(-1, rows, *shape))
    raise ValueError(f"unknown kind of similarity {kind!r}; known: {', '.join(Kind.__args__)}")  # type: ignore[attr-defined]


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """[N]: correlation of rows [N, P]; NaN where a row is constant."""
    constant = (a.amax(1) == a.amin(1)) | (b.amax(1) == b.amin(1))
    found = cosine(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))
    return found.masked_fill(constant, torch.nan)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """[N]: cosine of the angle between rows [N, P]; NaN where a row is zero."""
    # Scaled first: the squares of small weights would vanish.
    a, b = (row / row.abs().amax(1, keepdim=True) for row in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)


def top_k_iou(a: Tensor, b: Tensor, share: float) -> Tensor:
    """[N]: intersection over union of the k = round(share · P) ≥ 1 highest positions of each.

    Positions that tie for the last places are in the set by an equal fraction each, and the sets
    are compared as such: Σ min / Σ max. A map is like itself (1), and a constant map like any
    other map by chance: k / (2P − k).
    """
    if not 0 < share <= 1:
        raise ValueError(f"top_k_iou takes a share of positions, above 0 and up to 1, not {share}")
    k = max(round(share * a.shape[1]), 1)
    left, right = _top(a, k), _top(b, k)
    return torch.minimum(left, right).sum(1) / torch.maximum(left, right).sum(1)


def _top(weights: Tensor, k: int) -> Tensor:
    """[N, P]: in how far each position is one of the k highest; sums to k."""
    border = weights.topk(k, dim=1).values[:, -1:]
    above, tied = weights > border, weights == border
    free = k - above.sum(1, keepdim=True)
    return above.double() + tied * (free / tied.sum(1, keepdim=True).double())


def ssim(a: Tensor, b: Tensor, window: int = WINDOW, sigma: float = SIGMA) -> Tensor:
    """[N]: mean structural similarity of [N, C, T] or [N, C, H, W] (Wang et al. 2004, eq. 13).

    Gaussian windows that lie within the map, each as wide as the map at most; the dynamic range L
    is that of both maps of a sample together. Biased (weighted) variances, as in the paper.
    """
    dimensions = a.ndim - 2
    axes = tuple(range(1, a.ndim))
    high = torch.maximum(a.amax(axes), b.amax(axes))
    low = torch.minimum(a.amin(axes), b.amin(axes))
    span = (high - low).view(-1, *(1,) * (a.ndim - 1))

    def blur(pictures: Tensor) -> Tensor:
        convolve = nn.conv1d if dimensions == 1 else nn.conv2d
        rows = pictures.flatten(0, 1).unsqueeze(1)
        for axis in range(dimensions):
            kernel = _gaussian(min(window, a.shape[2 + axis]), sigma).to(rows)
            shape = [1, 1] + [len(kernel) if i == axis else 1 for i in range(dimensions)]
            rows = convolve(rows, kernel.view(shape))
        return rows.view(*pictures.shape[:2], *rows.shape[2:])

    # Shifting both by one number changes no variance and keeps the differences of squares exact.
    middle = ((high + low) / 2).view_as(span)
    a, b = a - middle, b - middle
    mean_a, mean_b = blur(a), blur(b)
    variance = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + middle, mean_b + middle
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    found = (luminance * (2 * covariance + c2) / (variance + c2)).mean(axes)
    return torch.where(high > low, found, torch.nan)


def _gaussian(width: int, sigma: float) -> Tensor:
    place = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    kernel = (-(place**2) / (2 * sigma**2)).exp()
    return kernel / kernel.sum()


def over_objects(a: Tensor, b: Tensor, there: Tensor, kind: str) -> Tensor:
    """[N]: agreement of a and b [N, O] over the objects that are `there`; NaN if undefined."""
    if kind == "spearman":
        a, b = _ranks_of(a, there), _ranks_of(b, there)
    count = there.sum(1, keepdim=True)
    if kind in ("pearson", "spearman"):
        constant = _constant(a, there) | _constant(b, there)
        a, b = (row - (row * there).sum(1, keepdim=True) / count for row in (a, b))
    else:
        constant = torch.zeros(len(a), dtype=torch.bool, device=a.device)
    found = cosine((a * there).nan_to_num(), (b * there).nan_to_num())
    return found.masked_fill(constant | (count[:, 0] == 0), torch.nan)


def _ranks_of(rows: Tensor, there: Tensor) -> Tensor:
    """Average ranks among the objects that are there: absent ones rank below all of them."""
    return average_ranks(rows.double().masked_fill(~there, -math.inf))


def _constant(rows: Tensor, there: Tensor) -> Tensor:
    high = rows.masked_fill(~there, -math.inf).amax(1)
    return high == rows.masked_fill(~there, math.inf).amin(1)


# --- examples, and pairs of several maps ---


def similarity_rate(
    importance: Tensor,
    labels: Tensor,
    train_labels: Tensor,
    share: float,
    most: bool = True,
) -> Tensor:
    """float64 [N]: the share of a sample's most (or least) important examples that have its label.

    importance [N, M] of M training examples; of those, round(share · M) ≥ 1 count. Where the last
    of them tie, the expectation. Of examples without any relation it is the label's share of the
    training set, and so it is at share 1. (Crabbé & van der Schaar 2022, section 4.2)
    """
    if not 0 < share <= 1:
        raise ValueError(f"similarity rate of a share of {share}; it is above 0 and up to 1")
    weights = importance.double() if most else -importance.double()
    same = labels.unsqueeze(1) == train_labels.unsqueeze(0)
    k = max(round(share * weights.shape[1]), 1)
    count = torch.full((len(weights),), k, device=weights.device)
    return Ranking.of(weights).find(same).among(count) / k


def pairwise(maps: Sequence[Tensor], kind: Kind, **parameters: float | str) -> Tensor:
    """float64 [N, K, K]: `similarity` of each two of K maps [N, ...] of the same samples."""
    found = maps[0].new_full((len(maps[0]), len(maps), len(maps)), torch.nan, dtype=torch.float64)
    for i, a in enumerate(maps):
        for j, b in enumerate(maps[: i + 1]):
            found[:, i, j] = found[:, j, i] = similarity(a, b, kind, **parameters)  # type: ignore[arg-type]
    return found
