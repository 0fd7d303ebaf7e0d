"""Runs a method over a data set: in batches, reproducibly, without a trace on the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from experiments import lazy
from experiments.attribution.registry import Method, resolve
from experiments.randomness import SampleGenerators, derive_seed, isolated_rng

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments.data.dataset import Truth
else:
    torch = lazy.load("torch")


def attribute(
    spec: str | Mapping[str, Any],
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    baseline: Tensor | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    truth: Truth | None = None,
    batch_size: int = 256,
) -> Tensor:
    """The maps of a method: float32, raw and signed, of the shape and on the device of `x`.

    The model computes in its own precision and in eval mode; it is left as it was found. The
    result depends neither on the batch size nor on the global random state, which stays as it is.

    Args:
        spec: name of a method, or a mapping with its name and parameters.
        x: inputs [N, ...].
        target: class to explain, [N].
        baseline: what an absent input looks like, broadcastable to x[i]; zeros by default.
        seed, indices: the random numbers of sample i are those of (seed, indices[i]); by default
            the indices are 0, 1, ...
        truth: what is known of the N samples, for methods that need it.

    Raises:
        ValueError: unknown method or parameter; a method that does not apply to this kind of
            model or lacks the truth it needs; a map of the wrong shape, or with NaN or infinity.
    """
    found, parameters = resolve(spec)
    _check(found, model, x, target, truth)
    indices = range(len(x)) if indices is None else [int(index) for index in indices]
    if len(indices) != len(x):
        raise ValueError(f"attribute: {len(x)} samples but {len(indices)} indices")

    parameter = next(model.parameters(), None)
    inputs = x.detach().to(x if parameter is None else parameter)
    classes = target.to(inputs.device)
    zeros = inputs.new_zeros(inputs.shape[1:])
    base = zeros if baseline is None else baseline.detach().to(inputs).expand_as(zeros)
    generators = SampleGenerators(seed, indices, f"attribution/{found.name}")

    maps = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    with _untouched(model), isolated_rng(derive_seed("attribution", found.name, seed)):
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            known = {"truth": _rows_of(truth, rows)} if found.needs_truth else {}
            batch = inputs[rows].clone()
            result = found.function(
                model,
                batch,
                classes[rows],
                baseline=base,
                generator=generators.subset(rows),
                **known,
                **parameters,
            )
            if result.shape != batch.shape:
                raise ValueError(
                    f"method {found.name!r} returned shape {tuple(result.shape)} "
                    f"for inputs of shape {tuple(batch.shape)}"
                )
            maps[rows] = result.detach().to(maps)
    broken = ~maps.flatten(1).isfinite().all(1)
    if broken.any():
        first = indices[int(broken.nonzero()[0])]
        raise ValueError(
            f"method {found.name!r} gave NaN or infinity for sample {first} "
            f"({int(broken.sum())} of {len(x)} samples)"
        )
    return maps


def _check(found: Method, model: nn.Module, x: Tensor, target: Tensor, truth: Truth | None) -> None:
    kind = getattr(model, "kind", None)
    if not found.applies_to(str(kind)):
        raise ValueError(
            f"method {found.name!r} does not apply to a model of kind {kind!r}; "
            f"it applies to: {', '.join(sorted(found.models))}"
        )
    if len(target) != len(x):
        raise ValueError(f"attribute: {len(x)} samples but {len(target)} targets")
    if not found.needs_truth:
        return
    if truth is None:
        raise ValueError(f"method {found.name!r} needs the truth, and this data set has none")
    if len(truth.pattern) != len(x):
        raise ValueError(
            f"method {found.name!r}: the truth is known of {len(truth.pattern)} samples, "
            f"but there are {len(x)}; the truth is that of the test split"
        )


def _rows_of(truth: Truth | None, rows: slice) -> Truth | None:
    """The truth about some of the samples."""
    if truth is None:
        return None
    return dataclasses.replace(truth, pattern=truth.pattern[rows])


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
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
