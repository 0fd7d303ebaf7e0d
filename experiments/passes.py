"""Running a model: how many rows at a time, how often, and for which of its outputs.

What is explained is one number per sample, the *selected* output: a class (int64 [R]), or a
weighted sum of all outputs (float [R, K]), which is how a model without classes is explained.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Activations of one pass: about what the caches of a CPU hold (larger batches pay page faults),
# and a part of a GPU's memory that leaves room for the graph of a backward pass.
CPU_BYTES = 32 * 2**20
GPU_SHARE = 1 / 16
FEWEST, MOST = 16, 8192


def selected(outputs: Tensor, target: Tensor) -> Tensor:
    """The explained number of each row, [R]: a class of outputs [R, K], or a weighted sum."""
    if target.is_floating_point():
        return (outputs * target).sum(1)
    return outputs.gather(1, target[:, None])[:, 0]


class Selected(nn.Module):
    """A model that returns its selected output, [R]; the targets are its second argument.

    For libraries that expand inputs by themselves: captum expands the targets alongside when they
    are `additional_forward_args=(target,)`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return selected(self.model(x), target)


@dataclass
class Count:
    """Rows that went through a model: all of them, and those that also went backwards."""

    rows: int = 0
    backwards: int = 0

    @property
    def forwards(self) -> int:
        """Rows of forward passes without a backward pass."""
        return max(0, self.rows - self.backwards)


@contextmanager
def counted(model: nn.Module) -> Iterator[Count]:
    """Counts the rows that pass through `model` inside the block, at microseconds per pass.

    A row that goes backwards twice through one forward counts twice as backward.
    """
    count = Count()

    def entered(module: nn.Module, arguments: Any, output: Any) -> None:
        count.rows += len(arguments[0])
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(returned)

    def returned(gradient: Tensor) -> None:
        count.backwards += len(gradient)

    handle = model.register_forward_hook(entered)
    try:
        yield count
    finally:
        handle.remove()


@contextmanager
def channels_last(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """The weights of 2-d convolutions with their channels innermost, inside the block.

    Passes of convolutional networks on images are two to three times as fast on a CPU, and on a
    GPU in half precision; results differ in the last bits. The layout is put back afterwards.
    """
    moved = [p for p in model.parameters() if wanted and p.ndim == 4]
    before = [parameter.data for parameter in moved]
    for parameter in moved:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter, data in zip(moved, before, strict=True):
            parameter.data = data


_rows: weakref.WeakKeyDictionary[nn.Module, dict[Any, int]] = weakref.WeakKeyDictionary()


def rows_per_pass(model: nn.Module, x: Tensor) -> int:
    """How many rows like x[0] make a good pass: a power of two, the same in every run.

    It follows from the bytes of activations of one row (measured once, by one forward pass that
    nobody counts) and from the kind of device, not from a clock: a batch size that changes from
    run to run would change the last bits of the results.
    """
    known = _rows.setdefault(model, {})
    key = (tuple(x.shape[1:]), x.dtype, x.device)
    if key not in known:
        budget: float = CPU_BYTES
        if x.device.type == "cuda":
            budget = GPU_SHARE * torch.cuda.get_device_properties(x.device).total_memory
        rows = max(1, int(budget / _activation_bytes(model, x[:1])))
        known[key] = min(MOST, max(FEWEST, 2 ** (rows.bit_length() - 1)))
    return known[key]


def _activation_bytes(model: nn.Module, row: Tensor) -> int:
    total = row.numel() * row.element_size()
    hooks = {name: module._forward_hooks.copy() for name, module in model.named_modules()}
    before = {name: module._forward_pre_hooks.copy() for name, module in model.named_modules()}

    def add(module: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    try:
        for module in model.modules():  # the hooks of others must neither see nor count this
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        handles = [
            module.register_forward_hook(add)
            for module in model.modules()
            if not any(module.children())
        ]
        with torch.no_grad():
            model(row)
        for handle in handles:
            handle.remove()
    finally:
        for name, module in model.named_modules():
            module._forward_hooks.update(hooks[name])
            module._forward_pre_hooks.update(before[name])
    return total


def in_passes(function: Callable[..., Any], model: nn.Module, *rows: Tensor) -> tuple[Tensor, ...]:
    """`function(*part)`, which returns one tensor or several, over parts of `rows`, joined.

    A part is `rows_per_pass` rows of all the tensors; out of memory halves it, down to one row.
    """
    size = rows_per_pass(model, rows[0])
    results: list[Sequence[Tensor]] = []
    start = 0
    while start < len(rows[0]):
        try:
            found = function(*(tensor[start : start + size] for tensor in rows))
        except torch.cuda.OutOfMemoryError:
            if size == 1:
                raise
            torch.cuda.empty_cache()
            size = size // 2
            _rows[model][(tuple(rows[0].shape[1:]), rows[0].dtype, rows[0].device)] = size
            continue
        results.append((found,) if isinstance(found, Tensor) else found)
        start += size
    if len(results) == 1:
        return tuple(results[0])
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """All outputs [R, K] of rows x [R, ...], without gradients. R forwards."""
    with torch.no_grad():
        return in_passes(model, model, x)[0]


def gradients(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients [R, ...] of the selected output, and all outputs [R, K]. R forwards + backwards.

    Of several classes per row, int64 [R, T]: gradients [R, T, ...], by R forwards and T · R
    backwards.
    """
    several = target.ndim == 2 and not target.is_floating_point()
    columns = target if several else target[:, None]

    def both(part: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            inputs = part.detach().requires_grad_()
            found = model(inputs)
            each = [
                torch.autograd.grad(
                    selected(found, classes[:, t]).sum(), inputs, retain_graph=t + 1 < count
                )[0]
                for t, count in enumerate([classes.shape[1]] * classes.shape[1])
            ]
        return torch.stack(each, 1) if several else each[0], found.detach()

    gradient, found = in_passes(both, model, x, columns)
    return gradient, found
