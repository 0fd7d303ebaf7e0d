"""Losses of single examples, which methods of example importance differentiate.

A loss is a function `loss(predict, x [B, ...], y)` that returns [B], each value a function of its
own row only; `predict` is the model under the weights in question. Those without labels ignore y.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from experiments import lazy
from experiments.messages import unknown

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    torch = lazy.load("torch")
    F = lazy.load("torch.nn.functional")

Loss = Callable[[Callable[["Tensor"], "Tensor"], "Tensor", Any], "Tensor"]


def cross_entropy(predict: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the logits [B, K] with classes y, int64 [B]."""
    return F.cross_entropy(predict(x), y, reduction="none")


def squared_error(predict: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Mean over the outputs of (output − y)²; y [B] or of the shape of the outputs."""
    outputs = predict(x).flatten(1)
    return (outputs - y.reshape(outputs.shape)).square().mean(1)


def reconstruction(predict: Callable[[Tensor], Tensor], x: Tensor, y: Any = None) -> Tensor:
    """Mean over the inputs of (output − x)²: the loss of an autoencoder, without labels."""
    return (predict(x) - x).square().flatten(1).mean(1)


def absolute_reconstruction(
    predict: Callable[[Tensor], Tensor], x: Tensor, y: Any = None
) -> Tensor:
    """Mean over the inputs of |output − x|, without labels."""
    return (predict(x) - x).abs().flatten(1).mean(1)


def contrastive(bank: Tensor, temperature: float = 0.2) -> Loss:
    """The loss of telling an example's other view from the negatives `bank` [M, K].

    −log (e^{cos(z, z')/τ} / (e^{cos(z, z')/τ} + Σ_m e^{cos(z, b_m)/τ})), z = f(x), z' = f(y): y
    holds the other views, not labels. NT-Xent (Chen et al. 2020, equation 1) takes its negatives
    from the batch, so that it is no loss of one example; here they are fixed (Wu et al. 2018).
    """
    negatives = F.normalize(bank.detach().flatten(1), dim=1)

    def loss(predict: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        one, other = (F.normalize(predict(view).flatten(1), dim=1) for view in (x, y))
        alike = torch.cat([(one * other).sum(1, keepdim=True), one @ negatives.T], 1)
        return -(alike / temperature).log_softmax(1)[:, 0]

    return loss


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
    "reconstruction": reconstruction,
    "absolute_reconstruction": absolute_reconstruction,
}
WITHOUT_LABELS = ("reconstruction", "absolute_reconstruction")


def named(loss: str | Loss, labelled: bool) -> Loss:
    """The loss of that name, or the given one.

    Raises ValueError for an unknown name, or one that needs labels where there are none.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise ValueError(unknown("loss", loss, LOSSES))
    if not labelled and loss not in WITHOUT_LABELS:
        raise ValueError(
            f"loss {loss!r} needs labels, and train_y or test_y is None: give both, or take a "
            f"loss without labels: {', '.join(WITHOUT_LABELS)}"
        )
    return LOSSES[loss]
