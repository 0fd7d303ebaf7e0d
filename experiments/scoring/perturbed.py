"""The same samples, slightly changed: what all robustness scores of all methods look at.

Draw d of sample i depends on (seed, index of i, d) alone. Draws are in units of the radius, so
that a larger radius stretches the same noise, and a score's growth with it is not luck.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution.batch import Batch
    from experiments.scoring.base import Context
else:
    torch = lazy.load("torch")
    nn = lazy.load("torch.nn")
    passes = lazy.load("experiments.passes")

Perturbation = Literal["uniform", "normal"]
Unit = Literal["input", "range"]
Fill = Literal["baseline", "wrap"]
PENULTIMATE = "penultimate"


@dataclass(frozen=True)
class Draws:
    """Which noise, and how often.

    perturbation  "uniform" in the L∞ ball of the radius, or "normal" with the radius as standard
                  deviation, independent for each input
    radius, unit  in the units of the "input", or as a share of each sample's "range", max − min
    samples       draws per sample
    """

    perturbation: Perturbation
    radius: float
    unit: Unit
    samples: int

    def noise(self, batch: Batch, draw: int) -> Tensor:
        """δ [B, ...] of one draw."""
        generator = batch.generator(f"perturbation/{self.perturbation}/{draw}")
        shape = batch.x.shape[1:]
        if self.perturbation == "uniform":
            numbers = 2 * generator.uniform(*shape) - 1
        else:
            numbers = generator.normal(*shape)
        noise = self.radius * numbers.to(batch.x)
        if self.unit == "range":
            rows = batch.x.flatten(1)
            span = rows.amax(1) - rows.amin(1)
            noise = noise * span.view(-1, *[1] * len(shape))
        return noise


def perturbed(batch: Batch, draws: Draws) -> list[Batch]:
    """The batch at x + δ, a batch for each draw: made once for all methods and scores.

    A stochastic method draws anew in each of them.
    """
    name = f"perturbed/{draws.perturbation}/{draws.unit}/{draws.radius!r}"

    def variant(draw: int) -> Batch:
        return batch.variant(f"{name}/{draw}", lambda: batch.x + draws.noise(batch, draw))

    return [variant(draw) for draw in range(draws.samples)]


def perturbed_maps(context: Context, draws: Draws) -> list[Tensor]:
    """The method's maps [B, ...] at x + δ, one tensor for each draw: S runs of the method, once
    for all scores. Raises ValueError if one has NaN or infinity."""
    variants = perturbed(context.model_batch(), draws)
    return context.once(("perturbed maps", draws), lambda: _maps(context, variants))


def translated(batch: Batch, shifts: Sequence[int], fill: Fill) -> list[Batch]:
    """The batch slid along its last axis by each of `shifts` places, made once for all methods.

    Raises ValueError if a shift is not shorter than the axis.
    """
    length = batch.x.shape[-1]
    if max(shifts) >= length:
        raise ValueError(
            f"a shift by {max(shifts)} places leaves nothing of {length}; lower steps or shift"
        )

    def make(shift: int) -> Tensor:
        moved = batch.x.roll(shift, -1)
        if fill == "baseline":
            moved[..., :shift] = batch.baseline[..., :shift]
        return moved

    def variant(shift: int) -> Batch:
        return batch.variant(f"translated/{fill}/{shift}", lambda: make(shift))

    return [variant(shift) for shift in shifts]


def translated_maps(context: Context, shifts: tuple[int, ...], fill: Fill) -> list[Tensor]:
    """The method's maps [B, ...] of the shifted inputs, one tensor for each shift."""
    variants = translated(context.model_batch(), shifts, fill)
    return context.once(("translated maps", shifts, fill), lambda: _maps(context, variants))


def _maps(context: Context, variants: list[Batch]) -> list[Tensor]:
    assert context.explain is not None
    found = []
    for variant in variants:
        with watched(variant):
            maps = context.explain(variant)
        broken = ~maps.flatten(1).isfinite().all(1)
        if broken.any():
            raise ValueError(
                f"the method gave NaN or infinity at changed inputs of {int(broken.sum())} of "
                f"{len(maps)} samples; make the change smaller, or leave the method out"
            )
        found.append(maps)
    return found


# --- what the model makes of the inputs, inside ---


class Seen(NamedTuple):
    """What a forward pass of all samples showed: hidden values [B, H] and outputs [B, K]."""

    hidden: Tensor
    outputs: Tensor


def hidden(batch: Batch, layer: str = PENULTIMATE) -> Tensor:
    """[B, H]: the input of the last linear layer ("penultimate"), or the output of a named module.

    Free if a pass was `watched` whose outputs are those that the batch knows (a method that
    changes the network inside would have other ones); else one forward pass, which gives the
    outputs too if they are not known yet. Raises ValueError if the model has no such layer.
    """

    def compute() -> Tensor:
        fresh: list[Seen] = []

        def run() -> Tensor:
            fresh.append(_run(batch, layer))
            return fresh[0].outputs

        outputs = batch.once("outputs", run, per_target=False)
        seen = batch.once(("seen", layer), lambda: None, per_target=False)
        if not fresh and seen is not None and torch.equal(seen.outputs, outputs):
            return seen.hidden
        return (fresh[0] if fresh else _run(batch, layer)).hidden

    return batch.once(("hidden", layer), compute, per_target=False)


@contextmanager
def watched(batch: Batch, layer: str = PENULTIMATE) -> Iterator[None]:
    """Keeps what the first forward pass of all the batch's samples shows, whoever runs it.

    A model without a penultimate layer is left alone: nobody may have asked for it.
    """
    try:
        module, of_input = _find(batch.model, layer)
    except ValueError:
        yield
        return
    parts: list[Seen] = []
    latest: Tensor | None = None
    rows = 0

    def inside(_: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal latest
        latest = arguments[0] if of_input else output

    def outside(_: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal rows
        expected = batch.x[rows : rows + len(arguments[0])]
        if rows < len(batch.x) and latest is not None and torch.equal(arguments[0], expected):
            parts.append(Seen(latest.detach().flatten(1), output.detach()))
            rows += len(expected)

    handles = [module.register_forward_hook(inside), batch.model.register_forward_hook(outside)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if parts and rows == len(batch.x):
        seen = Seen(*(torch.cat(column) for column in zip(*parts, strict=True)))
        batch.once(("seen", layer), lambda: seen, per_target=False)


def _run(batch: Batch, layer: str) -> Seen:
    module, of_input = _find(batch.model, layer)
    values: list[Tensor] = []

    def inside(_: nn.Module, arguments: Any, output: Any) -> None:
        values[:] = [arguments[0] if of_input else output]

    def run(rows: Tensor) -> Seen:
        outputs = batch.model(rows)
        return Seen(values[0].flatten(1), outputs)

    handle = module.register_forward_hook(inside)
    try:
        with torch.no_grad():
            return Seen(*passes.in_passes(run, batch.model, batch.x))
    finally:
        handle.remove()


def _find(model: nn.Module, layer: str) -> tuple[nn.Module, bool]:
    """The module to watch, and whether its input (else its output) is meant."""
    if layer != PENULTIMATE:
        found = dict(model.named_modules()).get(layer)
        if found is None:
            raise ValueError(
                f"the model has no layer {layer!r}; see model.named_modules() for their names"
            )
        return found, False
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            "the model has no linear layer that could tell which layer is the penultimate; "
            'name one: layer: "features.3"'
        )
    return linear[-1], True
