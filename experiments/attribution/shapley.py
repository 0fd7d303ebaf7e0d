"""The arithmetic of Shapley values of d features, from the outputs of coalitions.

A coalition is a row of d booleans, its value f(S) the output with only its features shown. All
of it is linear in the outputs, so it is done for all K outputs at once, whatever the target.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from experiments.randomness import SampleGenerators

MOST_ELEMENTS = 2**24  # of the matrices of one piece of a batch
RANK = 1e-10  # eigenvalues below this part of the largest are rounding


def coalitions(
    inputs: int, samples: int, generator: SampleGenerators, paired: bool = False
) -> Tensor:
    """Coalitions [B, samples, inputs] of zeros and ones, drawn from the Shapley kernel.

    The size k of a coalition has probability ∝ (D − 1) / (k (D − k)), its members are a uniform
    choice of k (Lundberg & Lee 2017, theorem 2). The first coalition is full, the second empty.
    If `paired`, each drawn one is followed by its complement (Covert & Lee 2021, section 4.2).
    """
    drawn = torch.ones(len(generator), samples, inputs, dtype=torch.long)
    drawn[:, 1:2] = 0
    if samples <= 2 or inputs == 1:
        return drawn
    size = torch.arange(1, inputs, dtype=torch.float64)
    kernel = 1 / (size * (inputs - size))
    thresholds = (kernel / kernel.sum()).cumsum(0)[:-1]
    draws = math.ceil((samples - 2) / 2) if paired else samples - 2
    sizes = 1 + torch.bucketize(generator.uniform(draws), thresholds, right=True)
    ranks = generator.uniform(draws, inputs).argsort(-1).argsort(-1)
    members = (ranks < sizes[..., None]).long()
    if paired:
        members = torch.stack([members, 1 - members], 2).flatten(1, 2)[:, : samples - 2]
    drawn[:, 2:] = members
    return drawn


def proper_coalitions(inputs: int) -> tuple[Tensor, Tensor]:
    """All coalitions but none and all, bool [2^d − 2, d], and their Shapley kernel, [2^d − 2]."""
    every = every_coalition(inputs)[1:-1]
    size = every.sum(1)
    weight = [(inputs - 1) / (math.comb(inputs, k) * k * (inputs - k)) for k in range(1, inputs)]
    return every, torch.tensor(weight, dtype=torch.float64)[size - 1]


def every_coalition(inputs: int) -> Tensor:
    """bool [2^d, d]: row S has the binary digits of S, the lowest first."""
    return ((torch.arange(2**inputs)[:, None] >> torch.arange(inputs)) & 1).bool()


def exact_weights(member: Tensor) -> Tensor:
    """[2^D, D]: what the value of a coalition adds to the Shapley value of each input.

    A coalition S counts +c(|S| − 1) for its members and −c(|S|) for the others, where
    c(k) = k! (D − k − 1)! / D!.
    """
    players = member.shape[1]
    known = [1 / (players * math.comb(players - 1, k)) for k in range(players)]
    coefficient = torch.tensor(known, dtype=torch.float64)
    size = member.sum(1, keepdim=True)
    joined = coefficient[(size - 1).clamp(min=0)]
    missing = coefficient[size.clamp(max=players - 1)]
    return torch.where(member.bool(), joined, -missing)


def kernel_regression(
    design: Tensor, values: Tensor, full: Tensor, empty: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Shapley values [B, d, K] by weighted least squares (Lundberg & Lee 2017, theorem 2).

    Minimises Σ_S w(S) (f(S) − f(∅) − Σ_{i∈S} φ_i)² subject to Σ φ_i = f(all) − f(∅), exactly:
    φ is the equal share plus a part of sum zero. Where the coalitions do not decide it, the part
    is the smallest one.

    Args:
        design: coalitions [B, n, d], or [1, n, d] shared by all samples.
        values: f(S), [B, n, K].
        full, empty: f(all) and f(∅), broadcastable to [B, K].
        weights: w(S) of shared coalitions, [n]; 1 by default, for coalitions that were drawn.
    """
    total = (full - empty).double()
    equal = total[:, None] / design.shape[-1]  # [B, 1, K]
    if not design.shape[1]:
        return equal.expand(-1, design.shape[2], -1)
    size = max(1, MOST_ELEMENTS // (min(design.shape[1:]) ** 2 + design[0].numel()))
    parts = [slice(start, start + size) for start in range(0, len(values), size)]
    found = []
    for part in parts:
        z = design if len(design) == 1 else design[part]
        z = z.double()
        rest = values[part].double() - (empty if len(empty) == 1 else empty[part]).double()[:, None]
        rest = rest - z.sum(-1, keepdim=True) * equal[part]
        scale = 1.0 if weights is None else weights.to(z).sqrt()[:, None]
        # Sums of zero: less the row's mean, a row says the same about them.
        a = (z - z.mean(-1, keepdim=True)) * scale
        found.append(equal[part] + least_squares(a, rest * scale))
    return torch.cat(found)


def least_squares(a: Tensor, y: Tensor) -> Tensor:
    """The smallest [B, d, K] that minimises ‖a · − y‖², for a [B or 1, n, d] and y [B, n, K].

    By the smaller of the two Gram matrices.
    """
    if a.shape[-2] < a.shape[-1]:
        return a.mT @ (torch.linalg.pinv(a @ a.mT, rtol=RANK, hermitian=True) @ y)
    return torch.linalg.pinv(a.mT @ a, rtol=RANK, hermitian=True) @ (a.mT @ y)


def permutations(inputs: int, count: int, generator: SampleGenerators, antithetic: bool) -> Tensor:
    """int64 [B, count, d]: the place of each feature in random orders.

    If `antithetic`, each order is followed by its reverse (Mitchell et al. 2022, section 4.2).
    """
    draws = math.ceil(count / 2) if antithetic else count
    places = generator.uniform(draws, inputs).argsort(-1).argsort(-1)
    if antithetic:
        places = torch.stack([places, inputs - 1 - places], 2).flatten(1, 2)[:, :count]
    return places
