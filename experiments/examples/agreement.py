"""Whether important examples are of the class of the sample they are important for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from experiments import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.load("torch")


def similarity_rate(
    importance: Tensor,
    train_y: Tensor,
    test_y: Tensor,
    fractions: Sequence[float] = (0.05, 0.1, 0.2, 0.5, 0.7, 1.0),
    which: Literal["most", "least"] = "most",
) -> Tensor:
    """float64 [N_test, F]: of the ⌊fraction·N_train⌋ most (or least) important training examples,
    the share with the class of the test sample (Crabbé & van der Schaar 2022).

    Where the last place is tied, the expectation over all ways to break the tie; a constant
    importance gives the share of the class. Raises ValueError for a fraction of no example or more
    than all, and for classes that do not fit the importance [N_test, N_train].
    """
    tests, trains = importance.shape
    if len(test_y) != tests or len(train_y) != trains:
        raise ValueError(
            f"similarity_rate: importance {[tests, trains]} for {len(test_y)} test and "
            f"{len(train_y)} training classes"
        )
    values = importance if which == "most" else -importance
    same = (test_y[:, None] == train_y[None]).to(values.device)
    ranked = values.sort(1, descending=True).values
    return torch.stack([_share(values, ranked, same, f) for f in fractions], 1)


def _share(values: Tensor, ranked: Tensor, same: Tensor, fraction: float) -> Tensor:
    trains = values.shape[1]
    count = int(fraction * trains + 1e-9)  # 0.57 · 100 is a bit below 57
    if not 1 <= count <= trains:
        raise ValueError(
            f"similarity_rate: fraction {fraction} of {trains} training examples is {count}; "
            f"it must be from 1 to {trains}"
        )
    border = ranked[:, count - 1 : count]
    above, tied = values > border, values == border
    free = count - above.sum(1)
    hits = (above & same).sum(1) + free * (tied & same).sum(1).double() / tied.sum(1)
    return hits / count
