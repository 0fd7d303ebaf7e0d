"""Weighted linear models of many samples at once, fitted to what coalitions of features give.

A design [n, d] of zeros and ones is shared by all samples, a row of values [B, n] and of
logarithms of weights, [B, n] or [1, n] if all samples share them, belongs to a sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MOST_ELEMENTS = 2**24  # of an intermediate [b, d, n]
MOST_STEPS = 5000


def masked_distances(
    x: Tensor, absent: Tensor, design: Tensor, ids: Tensor, kind: Literal["cosine", "euclidean"]
) -> Tensor:
    """[B, n]: how far x [B, ...] is from itself with only the features of a row of the design.

    Cosine: 1 − cos, with cos 0 next to a zero vector. Every sum over elements is one over
    features, so that the masked inputs are not made again.
    """
    where = ids.flatten().to(x.device)
    x, absent = x.flatten(1), absent.flatten()

    def per_feature(values: Tensor) -> Tensor:
        zeros = values.new_zeros(*values.shape[:-1], design.shape[1])
        return zeros.index_add_(-1, where, values)

    if kind == "euclidean":
        return (per_feature((x - absent) ** 2) @ (1 - design).T).sqrt()
    product = per_feature(x**2) @ design.T + per_feature(x * absent) @ (1 - design).T
    square = per_feature(x**2) @ design.T + per_feature(absent**2) @ (1 - design).T
    norms = x.norm(dim=1, keepdim=True) * square.sqrt()
    return 1 - product / norms.clamp(min=1e-8)


def coalition_distances(design: Tensor, kind: Literal["cosine", "euclidean"]) -> Tensor:
    """[n]: how far the rows of the design are from all ones."""
    if kind == "euclidean":
        return (1 - design).sum(1).sqrt()
    return 1 - (design.sum(1) / design.shape[1]).sqrt()


def ridge(design: Tensor, values: Tensor, logarithm: Tensor, strength: float) -> Tensor:
    """[B, d]: minimises Σ π (y − c₀ − c·z)² + strength ‖c‖²; of several solutions the smallest."""
    gram, moment = _centred_moments(design, values, logarithm.softmax(1))
    total = logarithm.logsumexp(1).exp()[:, None, None]
    eye = torch.eye(design.shape[1]).to(gram)
    inverse = torch.linalg.pinv(gram * total + strength * eye, rtol=1e-12, hermitian=True)
    return (inverse @ (moment[..., None] * total))[..., 0]


def lasso(design: Tensor, values: Tensor, logarithm: Tensor, strength: float) -> Tensor:
    """[B, d]: minimises Σ π (y − c₀ − c·z)² / (2 Σ π) + strength ‖c‖₁.

    Accelerated proximal gradients (Beck & Teboulle 2009) with restarts, until no coefficient of
    any sample moves by more than 1e-10 of the largest.
    """
    gram, moment = _centred_moments(design, values, logarithm.softmax(1))
    rate = 1 / torch.linalg.matrix_norm(gram, 2).clamp(min=1e-30)[:, None]
    found, ahead = torch.zeros_like(moment), torch.zeros_like(moment)
    momentum = moment.new_ones(len(moment), 1)
    for _ in range(MOST_STEPS):
        step = ahead - rate * ((gram @ ahead[..., None])[..., 0] - moment)
        new = step.sign() * (step.abs() - rate * strength).clamp(min=0)
        moved = new - found
        # A step against the direction of travel starts the acceleration of its sample anew.
        against = ((ahead - new) * moved).sum(1, keepdim=True) > 0
        momentum = torch.where(against, 1.0, momentum)
        later = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = new + torch.where(against, 0.0, (momentum - 1) / later) * moved
        found, momentum = new, later
        if bool((moved.abs().amax(1) <= 1e-10 * new.abs().amax(1)).all()):
            break
    return found + 0.0  # no −0


def _centred_moments(design: Tensor, values: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted covariances of the design, [B, d, d] or [1, d, d], and with the values, [B, d]."""
    mean = share @ design
    part = max(1, MOST_ELEMENTS // design.numel())
    gram = torch.cat([(design.T * w[:, None]) @ design for w in share.split(part)])
    gram = gram - mean[:, :, None] * mean[:, None]
    centred = values - (share * values).sum(1, keepdim=True)
    return gram, (share * centred) @ design - (share * centred).sum(1, keepdim=True) * mean
