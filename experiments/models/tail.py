"""The part of a network after a layer, as a function of its own.

Methods that change the features of a layer many times need only run what follows. The network is
traced symbolically (torch.fx) and cut at the layer. Where tracing fails (control flow that depends
on the data) the whole network runs, with the layer's output replaced: the result is the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from experiments.models.structure import Site, remembered, unhooked

# What is affine in its first argument: sums, means, moves and fixed weights.
AFFINE_MODULES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Flatten, nn.Unflatten,
    nn.Identity,
)  # fmt: skip
AFFINE_FUNCTIONS = frozenset(
    {
        torch.flatten, torch.mean, torch.sum, torch.squeeze, torch.permute, torch.reshape,
        F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
        operator.getitem,
    }
)  # fmt: skip
AFFINE_TENSOR_METHODS = frozenset(
    {"mean", "sum", "flatten", "view", "reshape", "squeeze", "permute", "transpose", "contiguous"}
)


@dataclass(frozen=True)
class Tail:
    """What follows a site: `run(x, features, *needed)`, the model's outputs [R, K] for inputs x
    [R, ...] whose features at the site [R, ...] are replaced.

    Attributes:
        needed: `needed(x)`, what `run` takes from before the site as well, tensors [R, ...] such
            as the other branch of a residual sum; None if nothing.
        runs_alone: whether only the part after the site runs; otherwise the whole model does.
        affine: whether the outputs are certainly an affine function of the features, as after
            global average pooling and a linear layer.
    """

    run: Callable[..., Tensor]
    needed: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    runs_alone: bool = False
    affine: bool = False


def tail_of(model: nn.Module, site: Site, row: Tensor) -> Tail:
    """What follows a site, for inputs like `row` [1, ...]. The model is in the mode (eval or not)
    in which it is to run. The cut is trusted only if it reproduces the output of the row."""

    def whole(x: Tensor, features: Tensor) -> Tensor:
        with replaced(site, lambda output: features):
            return model(x)

    def find() -> Tail:
        cut = _cut(model, site)
        return cut if cut is not None and _reproduces(cut, model, site, row) else Tail(whole)

    return remembered(model, ("tail", site.path, site.call, tuple(row.shape[1:])), find)


def _reproduces(tail: Tail, model: nn.Module, site: Site, row: Tensor) -> bool:
    """Whether the tail of several equal rows gives what the model gives for one of them."""
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept.append(output.clone())
        return output

    with unhooked(model), torch.no_grad():
        with replaced(site, keep):
            expected = model(row)
        try:
            needed = tail.needed(row) if tail.needed else ()
            rows = [t.repeat_interleave(3, 0) for t in (row, kept[0], *needed)]
            found = tail.run(*rows)
        except Exception:  # a size of the traced row that is none of the others
            return False
    close = max(1e-3, 8 * torch.finfo(expected.dtype).eps)
    scale = close * float(expected.abs().max())
    return torch.allclose(found, expected.expand_as(found), rtol=close, atol=scale)


@contextmanager
def replaced(site: Site, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the site's output is `change(output)`, at the call that counts."""
    calls = 0

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal calls
        now, calls = calls, calls + 1
        return change(output) if now == site.call else output

    handle = site.module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _Tracer(fx.Tracer):
    """Traces through everything but the modules of PyTorch and the one to cut at."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.path or super().is_leaf_module(
            m, module_qualified_name
        )


def _cut(model: nn.Module, site: Site) -> Tail | None:
    """What follows a site, cut out of the traced network; None if it cannot be traced."""
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    try:
        return _cut_at(model, site, _Tracer(site.path).trace(model))
    except Exception:  # whatever a model's own code does when it meets a symbol
        return None
    finally:
        for module, before in attributes:  # a model may have kept a symbol, the tracer constants
            vars(module).clear()
            vars(module).update(before)


def _cut_at(model: nn.Module, site: Site, graph: fx.Graph) -> Tail | None:
    calls = [n for n in graph.nodes if n.op == "call_module" and n.target == site.path]
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    if len(calls) != site.call + 1 or any(n.users for n in inputs[1:]):
        return None
    nodes = [n for n in graph.nodes if n not in inputs[1:] and n.target is not torch._assert]
    x, features = inputs[0], calls[-1]
    from_x, behind = _reached(nodes, x), _reached(nodes, features)
    rows_before = from_x - behind - _sizes(nodes) - {x}
    kept, before = behind - {features}, dict[fx.Node, None]()
    for node in reversed(nodes):
        for used in node.all_input_nodes if node in kept else ():
            if used in rows_before:
                before[used] = None
            elif used not in (x, features):
                kept.add(used)  # made of weights and sizes alone: made again
    run = _copied(model, [n for n in nodes if n in kept], [x, features, *before])
    if not before:
        return Tail(run, None, True, _is_affine(run))
    ahead = [n for n in nodes if n not in behind and n is not x and n.op != "output"]
    needed = _copied(model, ahead, [x], outputs=list(before))
    return Tail(run, needed, True, _is_affine(run))


def _reached(nodes: list[fx.Node], start: fx.Node) -> set[fx.Node]:
    """What depends on a node, and the node itself."""
    found = {start}
    for node in nodes:
        if found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _sizes(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes that are numbers: sizes of tensors, and what is computed from them alone."""
    found: set[fx.Node] = set()
    for node in nodes:
        used = node.all_input_nodes
        derived = node.op == "call_function" and used and found.issuperset(used)
        if derived or _asks_for_shape(node):
            found.add(node)
    return found


def _copied(
    model: nn.Module,
    nodes: list[fx.Node],
    inputs: list[fx.Node],
    outputs: list[fx.Node] | None = None,
) -> fx.GraphModule:
    """Some nodes of a graph as a module of their own."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"given_{i}") for i, node in enumerate(inputs)}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    if outputs is not None:
        graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(model, graph)


def _is_affine(tail: fx.GraphModule) -> bool:
    """Whether every step from the features to the outputs is affine."""
    _, features, *steps = tail.graph.nodes
    touched = {features}
    for node in steps:
        inputs = touched.intersection(node.all_input_nodes)
        if not inputs or _asks_for_shape(node):
            continue
        if node.op != "output" and not _affine_step(tail, node, inputs):
            return False
        touched.add(node)
    return True


def _asks_for_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim")
    is_attribute = node.op == "call_function" and node.target is getattr
    return is_attribute and node.args[1:2] in (("shape",), ("ndim",), ("device",), ("dtype",))


def _affine_step(tail: fx.GraphModule, node: fx.Node, inputs: set[fx.Node]) -> bool:
    first = node.args[0] if node.args else None
    if node.op == "call_function" and node.target in (operator.add, torch.add):
        return True
    if inputs != {first}:
        return False
    if node.op == "call_method":
        return node.target in AFFINE_TENSOR_METHODS
    if node.op == "call_function":
        dropout = node.target is F.dropout and node.kwargs.get("training") is False
        return dropout or node.target in AFFINE_FUNCTIONS
    module = tail.get_submodule(str(node.target))
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
        return not module.training and getattr(module, "running_mean", True) is not None
    return type(module) in AFFINE_MODULES
