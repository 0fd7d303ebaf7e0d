"""captum's KernelSHAP with coalitions that are given, not drawn from global state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from captum._utils.models.model import Model
from captum.attr import KernelShap
from torch import Tensor

from experiments.randomness import SampleGenerators


def coalitions(inputs: int, samples: int, generator: SampleGenerators) -> Tensor:
    """Coalitions [B, samples, inputs] of zeros and ones, drawn from the Shapley kernel.

    The size k of a coalition has probability ∝ (D − 1) / (k (D − k)), its members are a uniform
    choice of k (Lundberg & Lee 2017, theorem 2). The first coalition is full, the second empty.
    """
    drawn = torch.ones(len(generator), samples, inputs, dtype=torch.long)
    drawn[:, 1:2] = 0
    if samples > 2 and inputs > 1:
        size = torch.arange(1, inputs, dtype=torch.float64)
        kernel = 1 / (size * (inputs - size))
        thresholds = (kernel / kernel.sum()).cumsum(0)[:-1]
        sizes = 1 + torch.bucketize(generator.uniform(samples - 2), thresholds, right=True)
        ranks = generator.uniform(samples - 2, inputs).argsort(-1).argsort(-1)
        drawn[:, 2:] = ranks < sizes[..., None]
    return drawn


class _LeastSquares(Model):
    """Weighted least squares by one QR; of several solutions the smallest."""

    def fit(self, train_data: Any, **_: Any) -> None:
        z, y, weight = (tensor.double().cpu() for tensor in train_data.dataset.tensors)
        scale = weight.sqrt()[:, None]
        design = torch.cat([torch.ones_like(z[:, :1]), z], 1)
        self.coefficients = torch.linalg.lstsq(design * scale, y[:, None] * scale).solution[1:, 0]

    def representation(self) -> Tensor:
        return self.coefficients[None]

    def __call__(self, x: Any) -> Any:
        raise NotImplementedError("only the coefficients are of interest")


class CoalitionKernelShap(KernelShap):
    """KernelSHAP on the coalitions [B, samples, D], one set per sample, in the order of x."""

    def __init__(self, model: Any, coalitions: Tensor) -> None:
        super().__init__(model)
        self.interpretable_model = _LeastSquares()
        self._coalitions = iter(coalitions)

    def kernel_shap_perturb_generator(self, original_inp: Any, **_: Any) -> Iterator[Tensor]:
        yield from next(self._coalitions)[:, None]
