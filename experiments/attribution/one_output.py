"""One output of a classifier as a model of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneOutput(nn.Module):
    """The logit of class `target`, [B, 1], computed in `dtype`.

    The classifier is kept out of reach: shap clears the gradients of the parameters it finds.
    """

    def __init__(self, model: nn.Module, target: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._model = (model,)
        self._target = target
        self._dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self._model[0](x.to(self._dtype))[:, self._target, None]
