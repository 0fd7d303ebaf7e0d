"""Runs a method over a data set: in batches, reproducibly, without a trace on the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from experiments import lazy
from experiments.attribution.registry import Method, resolve

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution.batch import Batch
    from experiments.data.dataset import Truth
    from experiments.models import structure
else:
    torch = lazy.load("torch")
    passes = lazy.load("experiments.passes")
    structure = lazy.load("experiments.models.structure")


def attribute(
    spec: str | Mapping[str, Any],
    model: nn.Module,
    x: Tensor,
    target: Tensor | int,
    *,
    baseline: Tensor | float | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    truth: Truth | None = None,
    background: Tensor | None = None,
    regions: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    precision: Literal["full", "bfloat16"] = "full",
    channels_last: bool = False,
) -> Tensor:
    """The maps of a method: float32, raw and signed, of the shape and on the device of `x`.

    The model computes in its own precision and in eval mode; it is left as it was found. The
    result depends neither on the batch size nor on the global random state, which stays as it is.

    Args:
        spec: name of a method, or a mapping with its name and parameters.
        x: inputs [N, ...].
        target: what to explain: a class for all, classes int64 [N], weights of the outputs
            float [N, K] (see `passes.selected`), or several classes per sample, int64 [N, T]:
            then the maps are [N, T, ...], and what does not depend on the class runs once.
        baseline: what an absent input looks like, a number or broadcastable to x[i]; zeros by
            default.
        seed, indices: the random numbers of sample i are those of (seed, indices[i]); by default
            the indices are 0, 1, ...
        truth: what is known of the N samples, for methods that need it.
        background: samples [M, ...] that stand for the data, for `reference: data`.
        regions: bool [N, O, ...] per role, the objects in the samples, for methods that need them.
        batch_size: samples at a time; by default what suits the model and the device.
        precision: "bfloat16" runs a copy of the model in that precision, once a first part of
            the maps ranks the inputs as in full precision; see `precision.attribute_bfloat16`.
        channels_last: the layout that makes convolutions on images faster; changes the last
            bits, see `passes.channels_last`.

    Raises:
        ValueError: unknown method or parameter; a method that does not apply to this kind of
            model or lacks the truth it needs; a map of the wrong shape, or with NaN or infinity.
    """
    if precision == "bfloat16":
        from experiments.attribution.precision import attribute_bfloat16

        return attribute_bfloat16(
            spec, model, x, target, baseline=baseline, seed=seed, indices=indices, truth=truth,
            background=background, regions=regions, batch_size=batch_size,
            channels_last=channels_last,
        )  # fmt: skip
    found, _ = resolve(spec)
    if isinstance(target, int):
        target = torch.full((len(x),), target)
    check(found, model, x, target, truth, regions)
    several = target.ndim == 2 and not target.is_floating_point()
    shape = (len(x), target.shape[1], *x.shape[1:]) if several else x.shape
    maps = torch.empty(shape, dtype=torch.float32, device=x.device)
    with untouched(model), passes.channels_last(model, channels_last):
        for rows, batch in batches(
            model, x, target, baseline=baseline, seed=seed, indices=indices, truth=truth,
            background=background, regions=regions, batch_size=batch_size,
        ):  # fmt: skip
            if several:
                parts = [one.maps(spec) for one in batch.each(batch.target)]
                maps[rows] = torch.stack(parts, 1).to(maps)
            else:
                maps[rows] = batch.maps(spec).to(maps)
    refuse_broken(found.name, maps, indices or range(len(x)))
    return maps


def batches(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor | float | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    truth: Truth | None = None,
    background: Tensor | None = None,
    regions: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[slice, Batch]]:
    """The samples in batches, as `attribute` takes them, each with the rows it holds.

    Raises ValueError if the numbers of samples and of indices differ.
    """
    from experiments.attribution.batch import Batch
    from experiments.passes import rows_per_pass

    indices = range(len(x)) if indices is None else [int(index) for index in indices]
    if len(indices) != len(x):
        raise ValueError(f"attribute: {len(x)} samples but {len(indices)} indices")
    parameter = next(model.parameters(), None)
    inputs = x.detach().to(x if parameter is None else parameter)
    where = target.to(inputs.device if not target.is_floating_point() else inputs)
    zeros = inputs.new_zeros(inputs.shape[1:])
    if isinstance(baseline, (int, float)):
        base = zeros + baseline
    else:
        base = zeros if baseline is None else baseline.detach().to(inputs).expand_as(zeros)
    of_model: dict[Any, Any] = {}
    size = batch_size or (rows_per_pass(model, inputs) if len(inputs) else 1)
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        yield rows, Batch(
            model, inputs[rows], where[rows], baseline=base, seed=seed, indices=indices[rows],
            truth=rows_of(truth, rows), of_model=of_model,
            background=None if background is None else background.to(inputs),
            regions={role: masks[rows] for role, masks in (regions or {}).items()},
        )  # fmt: skip


def refuse_broken(name: str, maps: Tensor, indices: Sequence[int]) -> None:
    """Raises ValueError if a map [N, ...] has NaN or infinity, naming the method and a sample."""
    broken = ~maps.flatten(1).isfinite().all(1)
    if broken.any():
        first = indices[int(broken.nonzero()[0])]
        raise ValueError(
            f"method {name!r} gave NaN or infinity for sample {first} "
            f"({int(broken.sum())} of {len(maps)} samples)"
        )


def check(
    found: Method,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    truth: Truth | None,
    regions: Mapping[str, Tensor] | None = None,
) -> None:
    """Raises ValueError if a method cannot explain these samples of this model."""
    kind = structure.kind_of(model)
    if not found.applies_to(kind):
        raise ValueError(
            f"method {found.name!r} does not apply to a model of kind {kind!r}; "
            f"it applies to: {', '.join(sorted(found.models))}"
        )
    if len(target) != len(x):
        raise ValueError(f"attribute: {len(x)} samples but {len(target)} targets")
    if found.needs_objects and not regions:
        raise ValueError(
            f"method {found.name!r} needs objects (regions), and this data set has none"
        )
    if not found.needs_truth or (truth is None and regions):
        return
    if truth is None:
        raise ValueError(f"method {found.name!r} needs the truth, and this data set has none")
    if len(truth.pattern) != len(x):
        raise ValueError(
            f"method {found.name!r}: the truth is known of {len(truth.pattern)} samples, "
            f"but there are {len(x)}; the truth is that of the test split"
        )


def rows_of(truth: Truth | None, rows: slice) -> Truth | None:
    """The truth about some of the samples."""
    if truth is None:
        return None
    return dataclasses.replace(truth, pattern=truth.pattern[rows])


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters inside; modes, flags and gradients as before afterwards.

    Without the freezing, every backward pass would compute gradients of the weights as well.
    """
    modes = [(module, module.training) for module in model.modules()]
    state = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    model.eval()
    for parameter, _, _ in state:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, requires_grad, grad in state:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, training in modes:
            module.training = training
