"""Other rules than the derivative for chosen functions, wherever a model calls them.

A mode of torch sees every call of a function of torch. So modules and functional calls, in-place
calls and modules that are used twice are all alike, and no hook is left on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from experiments import passes

# Gradient that goes back, from the one that arrives, the function's input and its output.
Backward = Callable[[Tensor, Tensor, Tensor], Tensor]

# Functions whose only argument that can be True says that they work in place.
ACTIVATIONS = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "threshold", "hardtanh",
    "hardswish", "hardsigmoid",
})  # fmt: skip


class WithRule(torch.autograd.Function):
    """A function of one tensor with a backward pass by a rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], rule: Backward) -> Any:
        y = function(x)
        ctx.save_for_backward(x, y)
        ctx.rule = rule
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.rule(gradients[0], *ctx.saved_tensors), None, None


class Interception(TorchFunctionMode):
    """Inside this context, `replace` sees every call on a tensor that depends on the input.

    A call that it has no answer for (None) takes its usual way.
    """

    def replace(self, call: Call) -> Tensor | None:
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not args and "input" in kwargs:
            args = (kwargs["input"],)
            kwargs = {name: value for name, value in kwargs.items() if name != "input"}
        if not any(isinstance(part, Tensor) and part.requires_grad for part in _flat(args)):
            return func(*args, **kwargs)
        call = Call(func, args, kwargs)
        found = self.replace(call)
        if found is None:
            return func(*args, **kwargs)
        return call.x.copy_(found) if call.in_place else found


class Call:
    """A call func(x, ...) of torch.

    name       of the function; an in-place variant has that of the usual one
    x          its first argument, which depends on the model's input if `of_tensor`
    in_place   whether it would overwrite x
    """

    def __init__(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        written = getattr(func, "__name__", "")
        self.name = written if written.startswith("__") else written.rstrip("_")
        flags = [*args[1:], kwargs.get("inplace", False)] if self.name in ACTIVATIONS else []
        self.in_place = written != self.name or any(flag is True for flag in flags)

    @property
    def x(self) -> Tensor:
        return self.args[0]

    @property
    def of_tensor(self) -> bool:
        return isinstance(self.args[0], Tensor) and self.args[0].requires_grad

    @property
    def several(self) -> bool:
        """Whether more than one argument depends on the input."""
        return sum(isinstance(p, Tensor) and p.requires_grad for p in _flat(self.args)) > 1

    def function(self, x: Tensor) -> Tensor:
        """The function of its first argument, never in place."""
        return self.func(x.clone() if self.in_place else x, *self.args[1:], **self.kwargs)

    def input(self) -> Tensor:
        """The first argument, safe from being overwritten by the answer to an in-place call."""
        return self.x.clone() if self.in_place else self.x

    def with_rule(self, rule: Backward) -> Any:
        return WithRule.apply(self.input(), self.function, rule)


def _flat(args: Sequence[Any]) -> list[Any]:
    return [part for item in args for part in (item if isinstance(item, (list, tuple)) else [item])]


def refuse_compiled(method: str, model: nn.Module) -> None:
    """Raises ValueError for a model with parts whose functions cannot be seen."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise ValueError(
                f"method {method!r}: {name or 'the model'} is compiled, so that its activations "
                f"cannot be seen; give the model as it was before compiling"
            )


class Rectifiers(Interception):
    """Every ReLU (also written as a clamp at zero) with another backward pass."""

    def __init__(self, rule: Backward) -> None:
        super().__init__()
        self.rule = rule

    def replace(self, call: Call) -> Tensor | None:
        return call.with_rule(self.rule) if call.of_tensor and _rectifies(call) else None


def _rectifies(call: Call) -> bool:
    if call.name == "relu":
        return True
    if call.name not in ("clamp", "clip", "clamp_min"):
        return False
    bounds = dict(zip(("min", "max"), call.args[1:], strict=False)) | dict(call.kwargs)
    low, high = bounds.get("min"), bounds.get("max")
    return high is None and isinstance(low, (int, float)) and low == 0


def guided(gradient: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Springenberg et al. 2015: passes where the gradient and the activation are positive."""
    return torch.ops.aten.threshold_backward(gradient.clamp(min=0), y, 0)


def deconvolved(gradient: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Zeiler & Fergus 2014: passes where the gradient is positive."""
    return gradient.clamp(min=0)


def gradient_by(
    rule: Backward, model: nn.Module, x: Tensor, target: Tensor, by_output: bool
) -> tuple[Tensor, Tensor]:
    """Gradients [B, ...] with `rule` at ReLUs, and outputs [B, K]. 1 FB.

    `by_output`: what goes back starts with the explained output instead of 1.
    """

    def both(part: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), Rectifiers(rule):
            inputs = part.detach().requires_grad_()
            found = model(inputs)
        with torch.enable_grad():
            explained = passes.selected(found, classes)
            start = explained.detach() if by_output else torch.ones_like(explained)
            (gradient,) = torch.autograd.grad(explained, inputs, start)
        return gradient, found.detach()

    gradient, outputs = passes.in_passes(both, model, x, target)
    return gradient, outputs
