"""Infidelity: does a map foretell what perturbations do to the output?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, metric
from experiments.scoring.faithfulness import Filling, spatial_shape
from experiments.specs import Count, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.attribution.batch import Batch
    from experiments.scoring import removal
else:
    removal = lazy.load("experiments.scoring.removal")
    torch = lazy.load("torch")


@metric(
    "infidelity",
    family="faithfulness",
    direction="lower",
    range=(0, math.inf),
    needs={"model"},
    source="Yeh et al. 2019",
)
@dataclass(frozen=True)
class Infidelity(Filling):
    """Mean squared difference of what a map foretells of a perturbation and what it does.

    E_I[(β · I·a − (f(x) − f(x − I)))²], definition 2.1, over `draws` perturbations I that all
    samples, scores and methods share; a is the raw map, with all its channels.

    perturbation: "gaussian", noise with standard deviation `noise` at every input; "square", a
        square (window of a series, of columns of a table) of `size` positions along each axis, or
        below 1 that share of the axis, at a random place, where I = x − fill.
    kind: "sensitivity", a map of slopes like the gradient, which I is multiplied with; or
        "contribution", a map that says what each input adds, like input × gradient, whose sum over
        the removed inputs is what it foretells ("square" only).
    normalize: β is 1, or what fits best, E[I·a Δ] / E[(I·a)²] (captum's): without it the score
        depends on the scale of the map, with it neither on its scale nor on its sign. A map that
        foretells nothing anywhere then has β = 0.
    output: of the model, the explained output ("logit") or its probability.
    """

    perturbation: Literal["gaussian", "square"] = "square"
    kind: Literal["sensitivity", "contribution"] = "sensitivity"
    noise: Positive = 0.1
    size: Positive = 0.25
    draws: Count = 50
    normalize: bool = False
    output: Literal["logit", "probability"] = "logit"

    def __post_init__(self) -> None:
        if self.kind == "contribution" and self.perturbation == "gaussian":
            raise ValueError("kind 'contribution' is defined for inputs that are removed: 'square'")
        if self.fill == "noisy_linear":
            raise ValueError("fill 'noisy_linear' is no perturbation of the input; choose another")

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        batch = context.model_batch()
        places = self._drawn(batch)
        gaussian = self.perturbation == "gaussian"
        detail = (self.noise,) if gaussian else (self.size, self.imputation())

        def inputs(draw: Tensor, sample: Tensor) -> Tensor:
            return batch.x[sample] - self._perturbation(batch, places, draw, sample)

        outputs = batch.once(
            ("perturbed", self.perturbation, self.draws, *detail),
            lambda: removal.walk(batch, self.draws, inputs),
            per_target=False,
        )
        before = removal.read(batch.outputs()[:, None], self.output, context)
        change = before - removal.read(outputs, self.output, context)
        foretold = self._foretold(maps.to(batch.x.device), batch, places).cpu()
        if self.normalize:
            square = foretold.square().sum(1, keepdim=True)
            fit = (foretold * change).sum(1, keepdim=True)
            foretold = foretold * torch.where(square > 0, fit / square, 0.0)
        return [Measurement.of((foretold - change).square().mean(1), headline=True)]

    def _drawn(self, batch: Batch) -> Tensor:
        """Per draw: noise, float [R, ...], or what a square covers, bool [R, 1, ...]."""
        shape = batch.x.shape[1:]
        generator = removal.shared_draws(batch, f"score/infidelity/{self.perturbation}")

        def gaussian() -> Tensor:
            return generator.normal(self.draws, *shape)[0].to(batch.x)

        def squares() -> Tensor:
            spatial = spatial_shape(shape)
            corner = generator.uniform(self.draws, len(spatial))[0]
            covered = torch.ones(self.draws, *[1] * len(spatial), dtype=torch.bool)
            for axis, length in enumerate(spatial):
                side = self._side(length)
                start = (corner[:, axis] * (length - side + 1)).long()[:, None]
                place = torch.arange(length)
                inside = (place >= start) & (place < start + side)
                around = [1] * len(spatial)
                around[axis] = length
                covered = covered & inside.view(-1, *around)
            covered = covered if len(shape) == 1 else covered[:, None]
            return covered.to(batch.x.device)

        make, detail = (gaussian, 0.0) if self.perturbation == "gaussian" else (squares, self.size)
        key = ("infidelity", self.perturbation, self.draws, detail)
        return batch.once(key, make, per_target=False)

    def _side(self, length: int) -> int:
        side = round(self.size * length) if self.size < 1 else int(self.size)
        return max(1, min(side, length))

    def _perturbation(self, batch: Batch, places: Tensor, draw: Tensor, sample: Tensor) -> Tensor:
        if self.perturbation == "gaussian":
            return self.noise * places[draw]
        x = batch.x[sample]
        return x - self.imputation().remove(batch, sample, places[draw])

    def _foretold(self, maps: Tensor, batch: Batch, places: Tensor) -> Tensor:
        """float64 [B, R]: I·a, or the sum of a over what is removed."""
        weight = maps.double()
        if self.perturbation == "gaussian":
            return weight.flatten(1) @ (self.noise * places.double()).flatten(1).T
        if self.kind == "sensitivity":
            weight = weight * (batch.x - self.imputation().values(batch)).double()
        covered = places.double()
        if maps.ndim > 2:
            weight, covered = weight.sum(1), covered[:, 0]
        return weight.flatten(1) @ covered.flatten(1).T

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (1 + self.draws, 0)
