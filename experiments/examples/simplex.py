"""Fits of representations [B, d] by convex combinations of a corpus [N, d] of others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Weights that are optimised at once; rows do not see each other.
CELLS = 2**24


def by_adam(corpus: Tensor, latents: Tensor, steps: int, learning_rate: float) -> Tensor:
    """Weights [B, N]: Adam on the logits of the weights, from equal ones.

    The error is summed over rows and units. A row's result does not depend on the other rows:
    Adam works element by element.
    """
    rows = max(1, CELLS // len(corpus))
    with torch.no_grad():
        parts = [_descend(corpus, part, steps, learning_rate) for part in latents.split(rows)]
    return torch.cat(parts)


def _descend(corpus: Tensor, latents: Tensor, steps: int, learning_rate: float) -> Tensor:
    logits = latents.new_zeros(len(latents), len(corpus))
    optimiser = torch.optim.Adam([logits], lr=learning_rate)
    for _ in range(steps):
        weights = logits.softmax(1)
        slope = 2 * (weights @ corpus - latents) @ corpus.T
        logits.grad = weights * (slope - (weights * slope).sum(1, keepdim=True))
        optimiser.step()
    return logits.softmax(1)


def exact(corpus: Tensor, latents: Tensor) -> Tensor:
    """Weights [B, N] of the nearest points of the corpus' convex hull, in float64 on the CPU.

    With the columns f_n − f(x) of A in any unit, the solution of non-negative least squares
    argmin_{u ≥ 0} ‖A u‖² + (Σ u − 1)² is a multiple of the weights w sought: of all s·w the best
    leaves ‖A w‖²/(1 + ‖A w‖²), which grows with ‖A w‖ (Lawson & Hanson 1974, chapter 23).
    """
    from scipy.optimize import nnls

    points = corpus.detach().double().cpu().numpy().T
    goal = np.zeros(len(points) + 1)
    goal[-1] = 1
    found = np.empty((len(latents), len(corpus)))
    for row, latent in enumerate(latents.detach().double().cpu().numpy()):
        away = points - latent[:, None]
        unit = np.abs(away).max() or 1.0
        weights, _ = nnls(
            np.vstack([away / unit, np.ones(len(corpus))]), goal, maxiter=30 * len(corpus)
        )
        found[row] = weights / weights.sum()
    return torch.from_numpy(found).to(latents)
