"""What explanations promise by their axioms, and how far they are from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments import lazy
from experiments.scoring.base import Context, Measurement, Score, metric
from experiments.scoring.regions import Channels, spatial, weights
from experiments.specs import Count, NonNegative

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments import passes
    from experiments.attribution.batch import Batch
    from experiments.scoring import removal, segments, shifted
else:
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")
    removal = lazy.load("experiments.scoring.removal")
    segments = lazy.load("experiments.scoring.segments")
    shifted = lazy.load("experiments.scoring.shifted")


def _rounding(batch: Batch) -> float:
    """What outputs may differ by only because other rows were in the same pass."""
    outputs = batch.outputs()
    return float(8 * torch.finfo(outputs.dtype).eps * outputs.abs().max())


@metric(
    "completeness",
    family="axioms",
    direction="lower",
    range=(0, math.inf),
    needs={"model"},
    source="Sundararajan, Taly & Yan 2017",
)
@dataclass(frozen=True)
class Completeness(Score):
    """How far a map's sum is from what the output gains over the baseline: |Σ a − Δ|.

    Δ = f(x) − f(baseline), for the explained output (proposition 1). relative_to: "larger" divides
    by max(|Σ a|, |Δ|), so that 0 is complete and 1 a sum that says nothing (2: of the wrong sign);
    "change" divides by |Δ| and is undefined (NaN) where that is 0; "nothing" leaves it. The facet
    "complete" is the share of samples with |Σ a − Δ| ≤ tolerance · max(|Σ a|, |Δ|).
    """

    relative_to: Literal["larger", "change", "nothing"] = "larger"
    tolerance: NonNegative = 1e-3

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        batch = context.model_batch()
        nothing = batch.baseline_outputs().expand(len(batch), -1)
        change = (batch.selected() - passes.selected(nothing, batch.target)).double()
        change = change.masked_fill(change.abs() <= _rounding(batch), 0.0)
        total = maps.to(change.device).double().flatten(1).sum(1)
        gap, larger = (total - change).abs(), torch.maximum(total.abs(), change.abs())
        residual = gap
        if self.relative_to == "larger":
            residual = torch.where(larger > 0, gap / larger, 0.0)
        elif self.relative_to == "change":
            residual = torch.where(change != 0, gap / change.abs(), torch.nan)
        complete = (gap <= self.tolerance * larger).double()
        return [
            Measurement.of(residual.cpu(), headline=True, quantity="residual"),
            Measurement.of(complete.cpu(), quantity="complete"),
        ]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        return (1, 0)


@metric(
    "non_sensitivity",
    family="axioms",
    direction="lower",
    range=(0, 1),
    needs={"model"},
    source="Nguyen & Martínez 2020",
)
@dataclass(frozen=True)
class NonSensitivity(Score):
    """The share of positions where the map says zero and the model does not, or the reverse.

    |A₀ Δ X₀| / P: A₀ are the positions with an attribution of zero, X₀ those that change the
    explained output by nothing when they are replaced (the paper counts, without dividing).

    fill: what replaces them, "uniform" draws between the lowest and highest value of the sample
    (`draws` of them; the largest change counts), or the "baseline", which hides whatever is there
    already. They do not depend on the map: all methods share the passes. patch: how many
    neighbours along each axis are replaced together, and have one attribution, Σ |a|.
    epsilon: of the largest attribution of the map, up to which one counts as zero; tolerance: of
    the largest change in the sample, up to which one counts as none.
    """

    fill: Literal["uniform", "baseline"] = "uniform"
    draws: Count = 1
    patch: Count = 1
    channels: Channels = "abs_sum"
    epsilon: NonNegative = 1e-5
    tolerance: NonNegative = 1e-5

    def __post_init__(self) -> None:
        if self.channels == "none":
            raise ValueError("channels 'none': the channels of a position are replaced together")
        if self.fill == "baseline" and self.draws > 1:
            raise ValueError("fill 'baseline' is always the same: set draws to 1")

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        batch = context.model_batch()
        units = segments.patches(spatial(maps), self.patch).to(batch.x.device)
        key = ("effects", self.fill, self.draws, self.patch)
        effects = batch.once(key, lambda: self._effects(batch, units))
        found = weights(maps, "abs", self.channels).to(effects)
        given = torch.zeros_like(effects).index_add_(1, units.labels[0], found)
        ignored = given <= self.epsilon * given.amax(1, keepdim=True)
        without = effects <= self.tolerance * effects.amax(1, keepdim=True) + _rounding(batch)
        # Positions of smaller units at the border count as many as they are.
        size = torch.bincount(units.labels[0], minlength=units.number).to(effects)
        wrong = ((ignored != without) * size).sum(1) / size.sum()
        return [Measurement.of(wrong.cpu(), headline=True)]

    def _effects(self, batch: Batch, units: segments.Units) -> Tensor:
        """float64 [B, U]: the largest change of the explained output by each unit's draws."""
        shape = batch.x.shape[1:]
        values = self._values(batch)
        labels = units.labels.view(shape if len(shape) == 1 else (1, *shape[1:]))

        def inputs(step: Tensor, sample: Tensor) -> Tensor:
            unit, draw = step % units.number, step // units.number
            replaced = labels == unit.view(-1, *[1] * labels.ndim)
            return torch.where(replaced, values[draw, sample], batch.x[sample])

        def read(outputs: Tensor, step: Tensor, sample: Tensor) -> Tensor:
            return passes.selected(outputs, batch.target[sample])

        found = removal.walk(batch, self.draws * units.number, inputs, read)
        change = (found - batch.selected().unsqueeze(1)).abs().double()
        return change.unflatten(1, (self.draws, units.number)).amax(1)

    def _values(self, batch: Batch) -> Tensor:
        """[draws, B, ...]: what replaces the inputs."""
        if self.fill == "baseline":
            return batch.baseline.expand(1, *batch.x.shape)
        axes = tuple(range(1, batch.x.ndim))
        low, high = batch.x.amin(axes, keepdim=True), batch.x.amax(axes, keepdim=True)
        generator = batch.generator("score/non-sensitivity")
        drawn = [generator.uniform(*batch.x.shape[1:]).to(batch.x) for _ in range(self.draws)]
        return torch.stack([low + (high - low) * numbers for numbers in drawn])

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        places = shape if len(shape) == 1 else shape[1:]
        units = math.prod(math.ceil(length / self.patch) for length in places)
        return (self.draws * units + 1, 0)


@metric(
    "input_invariance",
    family="axioms",
    direction="lower",
    range=(0, 2),
    needs={"method"},
    source="Kindermans et al. 2019",
)
@dataclass(frozen=True)
class InputInvariance(Score):
    """How much a map changes when inputs are shifted and the model makes up for it exactly.

    ‖a − a'‖₂ / max(‖a‖₂, ‖a'‖₂), 0 for two zero maps, with a' the map at x + shift of the model
    whose first layer has the bias b − W · shift (section 2): the same function of the same
    samples. baseline: whether the method's baseline is "shifted" along or "kept", at which methods
    with a baseline differ. The facet "invariant" is the share of samples with a value up to
    `tolerance`. Raises ValueError for a model whose first layer is not linear or convolutional in
    the input. Costs a run of the method and one forward pass.
    """

    shift: float = 1.0
    baseline: Literal["kept", "shifted"] = "kept"
    tolerance: NonNegative = 1e-3

    def measure(self, maps: Tensor, context: Context) -> list[Measurement]:
        batch = context.model_batch()
        assert context.explain is not None
        key = ("shifted", self.shift, self.baseline)
        other = batch.once(key, lambda: shifted.batch(batch, self.shift, self.baseline))
        before = maps.double().flatten(1)
        after = context.explain(other).to(before).flatten(1)
        if not after.isfinite().all():
            raise ValueError(
                f"score {self.name!r}: the method gave NaN or infinity at shifted inputs"
            )
        larger = torch.maximum(before.norm(dim=1), after.norm(dim=1))
        distance = torch.where(larger > 0, (before - after).norm(dim=1) / larger, 0.0)
        invariant = (distance <= self.tolerance).double()
        return [
            Measurement.of(distance.cpu(), headline=True, quantity="distance"),
            Measurement.of(invariant.cpu(), quantity="invariant"),
        ]

    def passes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Besides those of the method: the outputs of the model and of its copy are compared."""
        return (2, 0)
