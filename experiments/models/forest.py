"""The random forest that stands beside the networks, on the same splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments import lazy
from experiments.randomness import derive_seed

if TYPE_CHECKING:
    import torch
    from sklearn.ensemble import RandomForestClassifier
    from torch import Tensor

    from experiments.data.dataset import Split
else:
    torch = lazy.load("torch")


@dataclass(frozen=True)
class Forest:
    """A fitted forest."""

    trees: RandomForestClassifier

    def predict(self, x: Tensor) -> Tensor:
        """The class of each sample, int64 [N], of x [N, ...]."""
        return torch.from_numpy(self.trees.predict(_numbers(x))).long().to(x.device)

    def accuracy(self, split: Split) -> float:
        """Share of samples with the right class, in [0, 1]."""
        return float((self.predict(split.x) == split.y).double().mean())

    @property
    def importances(self) -> Tensor:
        """Mean decrease of Gini impurity by each input, float64 [D]; not negative, of sum 1 (or 0
        if no tree ever splits). Breiman 2001."""
        return torch.from_numpy(self.trees.feature_importances_)


def fit(train: Split, *, seed: int, trees: int = 100) -> Forest:
    """A random forest (Breiman 2001) by scikit-learn's defaults, on one core.

    The original study gave it no seed (Schwenke & Atzmueller 2024); here a seed is a forest.
    """
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(trees, random_state=derive_seed("forest", seed) % 2**32)
    return Forest(model.fit(_numbers(train.x), train.y.cpu().numpy()))


def _numbers(x: Tensor) -> object:
    return x.detach().flatten(1).cpu().numpy()
