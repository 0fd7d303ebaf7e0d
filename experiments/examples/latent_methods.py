"""Example importance from representations alone, and the control that looks at nothing.

Latents are those of `Examples.encoder`; whether the model was trained with labels plays no role.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.examples.registry import example_method
from experiments.specs import Count, NonNegative, Positive

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from experiments.examples import simplex
    from experiments.examples.problem import Examples
else:
    torch = lazy.load("torch")
    F = lazy.load("torch.nn.functional")
    simplex = lazy.load("experiments.examples.simplex")

LATENTS = "(N_test + N_train) F"


@example_method(
    "cosine",
    family="latent",
    passes=LATENTS,
    aliases=("cosine_nn",),
    source="Hanawa et al. 2021",
)
def cosine(examples: Examples) -> Tensor:
    """Cosine of the two representations, in [−1, 1]; 0 with a representation that is zero."""
    test, train = (F.normalize(examples.latents(side), dim=1) for side in ("test", "train"))
    return (test @ train.T).clamp(-1, 1)


@example_method("dknn", family="latent", passes=LATENTS, source="Papernot & McDaniel 2018")
def dknn(
    examples: Examples,
    *,
    kernel: Literal["negative_distance", "inverse_square", "rank"] = "negative_distance",
    epsilon: NonNegative = 0.0,
) -> Tensor:
    """Nearness in the space of representations, d the Euclidean distance.

    kernel: "negative_distance" −d; "inverse_square" 1/(d² + epsilon), whose tail a few
        near-duplicates can fill; "rank" 1 for the nearest training example, 0 for the farthest,
        evenly spaced, tied ones sharing the mean (1 if there is only one example). All three rank
        alike.

    Raises ValueError for 1/d² of equal representations.
    """
    test, train = examples.latents("test"), examples.latents("train")
    # by differences: the product formula leaves equal representations a distance
    distance = torch.cdist(test, train, compute_mode="donot_use_mm_for_euclid_dist")
    if kernel == "negative_distance":
        return -distance
    if kernel == "rank":
        return _nearness_rank(distance)
    below = distance.square() + epsilon
    if (below == 0).any():
        row, column = (int(i) for i in (below == 0).nonzero()[0])
        raise ValueError(
            f"example method 'dknn': test sample {examples.indices[row]} and training example "
            f"{column} have equal representations, 1/d² is infinite; set epsilon above 0"
        )
    return 1 / below


def _nearness_rank(distance: Tensor) -> Tensor:
    ordered = distance.sort(1).values
    nearer = torch.searchsorted(ordered, distance)
    not_farther = torch.searchsorted(ordered, distance, right=True)
    place = (nearer + not_farther - 1).to(distance) / 2
    return 1 - place / max(1, distance.shape[1] - 1)


@example_method(
    "simplex",
    family="latent",
    passes=LATENTS,
    source="Crabbé et al. 2021",
)
def simplex_(
    examples: Examples,
    *,
    solver: Literal["adam", "exact"] = "adam",
    steps: Count = 1000,
    learning_rate: Positive = 1e-3,
) -> Tensor:
    """Weights that rebuild a test sample's representation as a mean of the training examples'.

    argmin_w ‖Σ_n w_n f(x_n) − f(x)‖², w ≥ 0, Σ w = 1 (Crabbé et al. 2021).

    solver: "adam" descends on the logits of w, `steps` times from equal weights, as published:
        far from the minimum, so that all examples keep a weight; "exact" is the minimum, of which
        one with at most d + 1 weights above zero is returned (most examples tie at 0).
    """
    test, train = examples.latents("test"), examples.latents("train")
    if solver == "exact":
        return simplex.exact(train, test)
    return simplex.by_adam(train, test, steps, learning_rate)


@example_method("random", family="control", passes="0", stochastic=True)
def random(examples: Examples) -> Tensor:
    """Independent random numbers, uniform in [0, 1)."""
    drawn = examples.generator("random").uniform(len(examples.x["train"]), dtype=torch.float32)
    return drawn.to(examples.x["test"].device)
