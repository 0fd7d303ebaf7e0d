"""Whether inputs that get the same explanation get the same prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric
from experiments.scoring.perturbed import Draws, Perturbation, Unit, perturbed, perturbed_maps
from experiments.scoring.robustness import over_draws, same_class
from experiments.specs import Count, NonNegative

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.load("torch")

By = Literal["top_k", "top_k_signs", "signs", "rounded"]


def discrete(maps: Tensor, by: By, k: int, decimals: int) -> Tensor:
    """[N, Q]: rows that are equal where maps [N, ...] count as the same explanation.

    by: the set of the `k` numbers of largest absolute value ("top_k"), that set with their signs
    ("top_k_signs"), all "signs", or all numbers "rounded" to some `decimals` after division by
    the largest absolute value. Of equal numbers the first are in the top k.
    """
    maps = maps.double().flatten(1)
    if by == "signs":
        return maps.sign()
    if by == "rounded":
        size = maps.abs().amax(1, keepdim=True)
        return (maps / torch.where(size > 0, size, 1)).round(decimals=decimals) + 0.0
    order = maps.abs().argsort(dim=1, descending=True, stable=True)
    top = order[:, : min(k, maps.shape[1])].sort(1).values
    if by == "top_k":
        return top
    return torch.cat([top, maps.gather(1, top).sign().long()], 1)


def agreement(explanations: Tensor, classes: Tensor) -> Tensor:
    """[N]: among the other samples with an equal row of [N, Q], the share of the same class.

    NaN for an explanation that no other sample has.
    """
    group = torch.unique(explanations, dim=0, return_inverse=True)[1]
    both = torch.unique(torch.stack([group, classes], 1), dim=0, return_inverse=True)[1]
    others = group.bincount()[group] - 1
    alike = both.bincount()[both] - 1
    return torch.where(others > 0, alike / others.clamp(min=1).double(), torch.nan)


@dataclass(frozen=True)
class _Discrete(Score):
    """by, k, decimals: which maps count as the same explanation; see `discrete`."""

    by: By = "top_k_signs"
    k: Count = 5
    decimals: int = 1

    def discrete(self, maps: Tensor) -> Tensor:
        return discrete(maps, self.by, self.k, self.decimals)


@metric(
    "consistency",
    family="robustness",
    direction="higher",
    range=(0, 1),
    needs={"prediction"},
    source="Dasgupta et al. 2022",
)
@dataclass(frozen=True)
class Consistency(_Discrete):
    """The chance that another sample with the same explanation is given the same class.

    Pr(f(x') = f(x) | e(x') = e(x)) over the other samples x' (definition 1); NaN for an
    explanation that occurs once. It runs neither the model nor the method, and compares all the
    samples that it is given. Raises ValueError if the model's predictions are not known.
    """

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        classes = context.prediction
        if classes is None:
            raise ValueError(
                "score 'consistency' compares the model's predictions: give it `prediction`"
            )
        found = agreement(self.discrete(maps), classes.to(maps.device))
        return [Measurement.of(found, headline=True)]


@metric(
    "local_consistency",
    family="robustness",
    direction="higher",
    range=(0, 1),
    needs={"method"},
    source="Dasgupta et al. 2022",
)
@dataclass(frozen=True)
class LocalConsistency(_Discrete):
    """The chance that a perturbed input with the same explanation is given the same class.

    Definition 1 with the neighbourhood x + δ as the distribution; NaN if no draw is explained
    alike. The draws are those of the other robustness scores (`perturbed.Draws`).
    """

    perturbation: Perturbation = "uniform"
    radius: NonNegative = 0.2
    unit: Unit = "input"
    samples: Count = 10

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        x, draws = (
            context.model_batch(),
            Draws(self.perturbation, self.radius, self.unit, self.samples),
        )
        before = self.discrete(maps.to(x.x.device))
        after = [self.discrete(found.to(maps.dtype)) for found in perturbed_maps(context, draws)]
        alike = torch.stack([(found == before).all(1) for found in after])
        agree = same_class(x, perturbed(x, draws)).double()
        return [Measurement.of(over_draws(agree, alike, "mean"), headline=True)]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        """At most, besides `samples` runs of the method: outputs come free with a gradient."""
        return (self.samples + 1, 0)
