"""DeepLIFT: differences from a reference, passed back by multipliers (Shrikumar et al. 2017).

The references go through the model first and leave, call by call, what every nonlinear function
received and returned. Then the inputs go through once, and go back once per reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments import passes
from experiments.attribution.interception import ACTIVATIONS, Call, Interception, WithRule

ELEMENTWISE = ACTIVATIONS | frozenset({
    "gelu", "sigmoid", "logsigmoid", "tanh", "softplus", "softsign", "tanhshrink", "softshrink",
    "hardshrink", "prelu", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "pow", "abs",
    "sin", "cos", "erf", "clamp", "clip", "clamp_min", "clamp_max", "reciprocal",
})  # fmt: skip
# Between two points without a kink, differences are exact multiples: only 0 / 0 is unclear.
PIECEWISE_LINEAR = frozenset({
    "relu", "relu6", "leaky_relu", "prelu", "threshold", "hardtanh", "abs", "clamp", "clip",
    "clamp_min", "clamp_max",
})  # fmt: skip
POOLS = frozenset(
    f"{kind}max_pool{dimensions}d" for kind in ("", "adaptive_") for dimensions in (1, 2, 3)
)
CONVOLUTIONS = frozenset(
    f"conv{kind}{dimensions}d" for kind in ("", "_transpose") for dimensions in (1, 2, 3)
)
# What a complaint names: functions without a rule, and any of two tensors that depend on the
# input, unless it only adds or arranges them.
WITHOUT_RULE = frozenset({
    "softmax", "log_softmax", "softmin", "layer_norm", "group_norm", "instance_norm", "rms_norm",
    "normalize", "max", "amax", "min", "amin", "prod", "norm", "var", "std", "logsumexp", "sort",
    "topk", "median", "glu", "where", "lp_pool1d", "lp_pool2d", "local_response_norm", "lstm",
    "gru", "rnn_tanh", "rnn_relu",
})  # fmt: skip
SUMS = frozenset({
    "add", "sub", "rsub", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__",
    "cat", "concat", "stack",
})  # fmt: skip


@dataclass
class Recorded:
    """A call with a reference: what the function received and returned; indices of a maximum."""

    name: str
    x: Tensor
    y: Tensor
    indices: Tensor | None = None

    def like(self, other: Tensor, stored: Tensor) -> Tensor:
        """`stored` for each of the samples that `other` holds one after the other."""
        if stored.shape[1:] == other.shape[1:] and len(stored) in (1, len(other)):
            return stored.expand_as(other)
        if len(other) % len(stored) or stored.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"deeplift: {self.name!r} has shape {tuple(other.shape)} for the inputs and "
                f"{tuple(stored.shape)} for one reference; samples must stand in the first axis"
            )
        return stored.repeat(len(other) // len(stored), *(1,) * (stored.ndim - 1))

    def of_row(self, row: int, rows: int) -> Recorded:
        """What belongs to one of several references."""
        size = len(self.x) // rows
        part = slice(row * size, (row + 1) * size)
        indices = None if self.indices is None else self.indices[part]
        return Recorded(self.name, self.x[part], self.y[part], indices)


class Record(Interception):
    """Keeps what nonlinear functions (and linear ones, if asked for) receive and return."""

    def __init__(self, also: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.calls: list[Recorded] = []
        self.names = ELEMENTWISE | also

    def replace(self, call: Call) -> Tensor | None:
        if not call.of_tensor or call.several:
            return None
        if call.name in POOLS:
            y, indices = pooled(call, call.x)
            self.keep(call, call.x, y, indices)
            return y
        if call.name not in self.names:
            return None
        x = call.input()
        y = call.function(x)
        self.keep(call, x, y)
        return y

    def keep(self, call: Call, x: Tensor, y: Tensor, indices: Tensor | None = None) -> None:
        # Copies: what follows may overwrite these.
        self.calls.append(Recorded(call.name, x.detach().clone(), y.detach().clone(), indices))


@dataclass
class Reference:
    """References that went through the model: their calls, and their outputs [R, K]."""

    calls: list[Recorded]
    outputs: Tensor

    def one_by_one(self) -> Iterator[Reference]:
        """The references, each alone."""
        for row in range(len(self.outputs)):
            calls = [call.of_row(row, len(self.outputs)) for call in self.calls]
            yield Reference(calls, self.outputs[row : row + 1])


def record(model: nn.Module, x: Tensor, also: frozenset[str] = frozenset()) -> Reference:
    """References [R, ...], one or one per sample. R forwards."""
    with torch.enable_grad(), Record(also) as recording:
        outputs = model(x.detach().requires_grad_())
    return Reference(recording.calls, outputs.detach())


class Following(Interception):
    """Goes through the calls that a reference went through before, one by one."""

    def __init__(self, method: str, expected: Sequence[Recorded]) -> None:
        super().__init__()
        self.method, self.expected = method, expected
        self.seen = 0
        self.others: set[str] = set()

    def next(self, call: Call) -> int:
        """The number of this call. Raises ValueError if the reference made another one."""
        number = self.seen
        self.seen += 1
        if number >= len(self.expected) or self.expected[number].name != call.name:
            raise ValueError(
                f"method {self.method!r}: the model takes another way for its reference than for "
                f"its inputs (at {call.name!r}); only models without branches on values can be "
                f"explained"
            )
        return number

    def note(self, call: Call) -> None:
        if call.name in WITHOUT_RULE or (call.several and call.name not in SUMS):
            self.others.add(call.name.strip("_"))

    def require_complete(
        self, maps: Tensor, explained: Tensor, reference: Tensor, target: Tensor
    ) -> None:
        """Contributions must sum to f(x) − f(reference), which proves that no rule is missing.

        Takes f(x) [B] and all outputs of the reference, [1, K] or [B, K]. The tolerance is that
        of rounding, and narrower where a function without a rule was seen.
        Raises ValueError, naming these functions.
        """
        low = passes.selected(reference.expand(len(maps), -1), target)
        gain = explained.detach() - low
        total = maps.flatten(1).sum(1)
        size = maps.flatten(1).abs().sum(1) + explained.detach().abs() + low.abs()
        gap = (total - gain).abs()
        tolerance = (1 if self.others else 10) * torch.finfo(maps.dtype).eps ** 0.5
        if bool((gap > tolerance * size).any()):
            worst = int((gap / size.clamp(min=torch.finfo(maps.dtype).tiny)).argmax())
            raise ValueError(
                f"method {self.method!r}: contributions sum to {total[worst].item():.4g} instead "
                f"of f(x) - f(reference) = {gain[worst].item():.4g}: the model has functions "
                f"without a rule ({', '.join(sorted(self.others)) or 'none of them seen'}); "
                f"explain logits of a network of layers and activations, or take another method"
            )


class Rescale(Following):
    """The rescale rule for every nonlinear function (Shrikumar et al. 2017, section 3.5.1).

    A backward pass uses the reference that is `current` then; all made the same calls.
    """

    def __init__(self, method: str, reference: Reference) -> None:
        super().__init__(method, reference.calls)
        self.current = reference

    def replace(self, call: Call) -> Tensor | None:
        if not call.of_tensor or call.several or call.name not in ELEMENTWISE | POOLS:
            self.note(call)
            return None
        number = self.next(call)

        if call.name in POOLS:
            return maximum(call, call.input(), lambda: self.current.calls[number])

        def back(gradient: Tensor, x: Tensor, y: Tensor) -> Tensor:
            reference = self.current.calls[number]
            change = y - reference.like(y, reference.y)
            return slope(call, reference.like(x, reference.x), x, change).mul_(gradient)

        return call.with_rule(back)


def slope(call: Call, start: Tensor, end: Tensor, change: Tensor) -> Tensor:
    """change / (end − start), and the derivative halfway where the two are too close to divide."""
    difference = end - start
    if call.name in PIECEWISE_LINEAR:
        close = difference == 0
    else:
        size = torch.maximum(end.abs(), start.abs())
        close = difference.abs() <= torch.finfo(end.dtype).eps ** (2 / 3) * size
    ratio = torch.div(change, difference, out=difference)
    if not bool(close.any()):
        return ratio
    return torch.where(close, derivative(call, start, end), ratio)


def derivative(call: Call, start: Tensor, end: Tensor) -> Tensor:
    """Derivative of an elementwise function halfway between two points."""
    if call.name == "relu":
        return (end > 0).to(end)
    with torch.enable_grad():
        point = ((start + end) / 2).detach().requires_grad_()
        return torch.autograd.grad(call.function(point).sum(), point)[0]


def pooled(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima and where they stand."""
    function: Any = getattr(F, call.name)
    kwargs = {name: value for name, value in call.kwargs.items() if name != "return_indices"}
    return function(x, *call.args[1:], **kwargs, return_indices=True)


def maximum(call: Call, x: Tensor, reference: Callable[[], Recorded]) -> Tensor:
    """Maxima of x; what one rises by belongs to its new place, what it falls by to its old one.

    At its new place x the input rose by at least as much as the maximum (and it fell at the old
    one), so that a change is never divided by zero. A maximum that does not change passes nothing
    back.
    """
    axes = -int(call.name[-2])  # of max_pool2d
    places: Tensor

    def forward(x: Tensor) -> Tensor:
        nonlocal places
        y, places = pooled(call, x)
        return y

    def back(gradient: Tensor, x: Tensor, y: Tensor) -> Tensor:
        before = reference()
        assert before.indices is not None
        change = y - before.like(y, before.y)
        where = torch.where(change > 0, places, before.like(y, before.indices)).flatten(axes)
        start, end = before.like(x, before.x).flatten(axes), x.flatten(axes)
        difference = end.gather(-1, where) - start.gather(-1, where)
        ratio = gradient.flatten(axes) * change.flatten(axes) / difference
        ratio = torch.where(change.flatten(axes) == 0, 0, ratio)
        return torch.zeros_like(end).scatter_add_(-1, where, ratio).view_as(x)

    return WithRule.apply(x, forward, back)


def rescale(
    method: str,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    references: Iterable[tuple[Tensor, Reference]],
) -> tuple[Tensor, Tensor]:
    """Mean contributions [B, ...] over references (inputs, recording), and outputs [B, K].

    B forwards, and B backwards per reference.
    Raises ValueError if the contributions do not sum to the differences of the output.
    """
    waiting: Iterator[tuple[Tensor, Reference] | None] = chain(references, [None])
    current = next(waiting)
    assert current is not None
    with torch.enable_grad():
        inputs = x.detach().requires_grad_()
        with Rescale(method, current[1]) as rule:
            outputs = model(inputs)
        explained = passes.selected(outputs, target)
    total, count = torch.zeros_like(x), 0
    while current is not None:
        (start, rule.current), current = current, next(waiting)
        last = current is None
        (slopes,) = torch.autograd.grad(explained.sum(), inputs, retain_graph=not last)
        maps = (x - start) * slopes
        rule.require_complete(maps, explained, rule.current.outputs, target)
        total += maps
        count += 1
    return total / count, outputs.detach()
