"""Shapley values: exact, by regression, by sampled orders.

Players are features (`features.feature_ids`); absent ones are at their baseline. The values of
all players sum to f(x) − f(baseline); a map gives each element the value of its feature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from experiments import lazy
from experiments.attribution.features import Features, count_of, feature_ids, spread
from experiments.attribution.registry import method
from experiments.randomness import SampleGenerators
from experiments.specs import Count

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution import perturbation, shapley
    from experiments.attribution.batch import Batch
else:
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")
    perturbation = lazy.load("experiments.attribution.perturbation")
    shapley = lazy.load("experiments.attribution.shapley")

MOST_PLAYERS = 16  # 2^16 coalitions per sample


@method(
    "shapley_exact",
    library="assay",
    peer="shap",
    family="perturbation",
    passes="2^d F for d features, at most",
    source="Shapley 1953",
)
def shapley_exact(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    features: Features = "inputs",
    patch: Count = 8,
) -> Tensor:
    """Exact Shapley values of the output, absent inputs at the baseline (Shapley 1953).

    The game of shap.explainers.Exact, with all coalitions of a batch in large forward passes
    instead of one sample at a time. Masked inputs that occur more than once (inputs that equal
    their baseline, discrete data) are computed once.
    Raises ValueError for more than 16 features.
    """
    ids = feature_ids(x.shape[1:], features, patch)
    players = count_of(ids)
    if players > MOST_PLAYERS:
        raise ValueError(
            f"method 'shapley_exact': {players} inputs make 2^{players} coalitions per sample; "
            f"at most {MOST_PLAYERS} inputs. Take kernel_shap instead"
        )

    def values() -> Tensor:
        member = shapley.every_coalition(players)
        weights = shapley.exact_weights(member)
        present = member[:, ids].to(x.device)
        samples = max(1, 2**20 // len(member))  # bounds the memory of the masked inputs
        parts = [_outputs_of_masked(model, part, baseline, present) for part in x.split(samples)]
        return torch.cat([torch.einsum("bnk,nd->bdk", part, weights.to(part)) for part in parts])

    every = batch.once(("shapley values", features, patch), values, per_target=False)
    return spread(perturbation.selected_each(every, target), ids)


@method(
    "kernel_shap",
    library="assay",
    peer="captum",
    family="perturbation",
    passes="(`samples` − 1) F, at most (2^d − 1) F for d features, and the baseline once a batch",
    stochastic=True,
    source="Lundberg & Lee 2017",
)
def kernel_shap(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    samples: Count = 32,
    features: Features = "inputs",
    patch: Count = 8,
    shared: bool = False,
    paired: bool = False,
) -> Tensor:
    """Shapley values by weighted regression (Lundberg & Lee 2017, theorem 2).

    The first two of the `samples` coalitions are all features and none, and the values sum to
    the difference exactly; the others are drawn from the Shapley kernel, per sample or, with
    `shared`, the same for all, and with their complements if `paired`. If there are no more than
    `samples` coalitions, all are taken, with their weights: then the values are exact.
    """
    ids = feature_ids(x.shape[1:], features, patch)
    players = count_of(ids)

    def values() -> Tensor:
        weights = None
        if samples >= 2**players:
            proper, weights = shapley.proper_coalitions(players)
            design = proper[None]
        else:
            draw = perturbation.shared_generator(batch, "kernel_shap") if shared else generator
            design = shapley.coalitions(players, samples, draw, paired)[:, 2:].bool()
        design = design.to(x.device)
        full, empty = batch.outputs(), batch.baseline_outputs()
        between = full.new_empty(len(x), 0, full.shape[1])
        if design.shape[1]:
            between = perturbation.masked_outputs(batch, design.shape[1], _shower(design, ids))
        return shapley.kernel_regression(design, between, full, empty, weights)

    key = ("kernel_shap", generator.purpose, samples, features, patch, shared, paired)
    every = batch.once(key, values, per_target=False)
    return spread(perturbation.selected_each(every, target), ids).to(x)


@method(
    "shapley_sampling",
    library="assay",
    peer="captum",
    family="perturbation",
    passes="(`permutations` · (d − 1) + 1) F for d features, and the baseline once a batch",
    stochastic=True,
    source="Castro et al. 2009",
)
def shapley_sampling(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor,
    generator: SampleGenerators,
    batch: Batch,
    permutations: Count = 10,
    features: Features = "inputs",
    patch: Count = 8,
    shared: bool = False,
    antithetic: bool = True,
) -> Tensor:
    """Mean of what a feature adds when features join in random order (Castro et al. 2009).

    Each order is a walk from the baseline to x of d − 1 steps between, so that the values sum to
    the difference exactly. Orders are drawn per sample or, with `shared`, are the same for all;
    if `antithetic`, every second one is the one before it, reversed.
    """
    ids = feature_ids(x.shape[1:], features, patch)
    players = count_of(ids)

    def values() -> Tensor:
        draw = perturbation.shared_generator(batch, "shapley_sampling") if shared else generator
        places = shapley.permutations(players, permutations, draw, antithetic).to(x.device)
        full, empty = batch.outputs()[:, None, None], batch.baseline_outputs()[:, None, None]
        steps = torch.arange(1, players, device=x.device)
        total = torch.zeros_like(full[:, 0].expand(-1, players, -1))
        # As many orders at a time as fill a pass: what is kept is a sum.
        at_once = max(1, passes.rows_per_pass(model, x) // (len(x) * players))
        for orders in places.split(at_once, 1):
            several = orders.shape[1]
            walk = full[:, :0, 0]
            if players > 1:
                inside = (orders[:, :, None] < steps[:, None]).flatten(1, 2)
                walk = perturbation.masked_outputs(batch, inside.shape[1], _shower(inside, ids))
            walk = walk.unflatten(1, (several, players - 1))
            ends = [end.expand(len(x), several, -1, -1) for end in (empty, full)]
            added = torch.cat([ends[0], walk, ends[1]], 2).diff(dim=2)
            total = total + added.gather(2, orders[..., None].expand_as(added)).sum(1)
        return total / permutations

    key = ("shapley_sampling", generator.purpose, permutations, features, patch, shared, antithetic)
    every = batch.once(key, values, per_target=False)
    return spread(perturbation.selected_each(every, target), ids)


def _shower(coalitions: Tensor, ids: Tensor) -> Callable[[int, int], Tensor]:
    """The masks of elements of the coalitions a .. b − 1 of [B or 1, n, d]."""
    return lambda a, b: coalitions[:, a:b][..., ids]


def _outputs_of_masked(model: nn.Module, x: Tensor, absent: Tensor, present: Tensor) -> Tensor:
    """All outputs [B, n, K] of x [B, ...] with only the elements of `present` [n, ...] shown."""
    masked = torch.where(present, x[:, None], absent).flatten(0, 1)
    distinct, where = masked.flatten(1).unique(dim=0, return_inverse=True)
    outputs = passes.outputs(model, distinct.reshape(-1, *x.shape[1:]))
    return outputs[where].unflatten(0, (len(x), -1))
