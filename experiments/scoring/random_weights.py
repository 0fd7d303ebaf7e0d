"""A network with the weights of some of its layers randomised, and put back bit by bit.

One set of random weights per model serves all states, samples and methods: a state points some
of the model's tensors to their random counterparts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from experiments.randomness import derive_seed, isolated_rng

Initialisation = Literal["reset", "permute", "normal"]
Mode = Literal["top_down", "bottom_up", "independent"]


@dataclass(frozen=True)
class RandomWeights:
    """Layers in the order in which the model runs them, and random tensors for each.

    layers: names of the modules that have parameters of their own.
    values: per layer the random parameters and buffers, by their names in the model.
    """

    layers: tuple[str, ...]
    values: tuple[dict[str, Tensor], ...]

    @contextmanager
    def applied(self, model: nn.Module, first: int, last: int) -> Iterator[None]:
        """Inside, layers first, ..., last − 1 are random; afterwards all is as it was."""
        tensors = dict(_tensors(model))
        changed = [item for values in self.values[first:last] for item in values.items()]
        before = [(tensors[name], tensors[name].data) for name, _ in changed]
        try:
            for name, value in changed:
                tensors[name].data = value
            yield
        finally:
            for tensor, data in before:
                tensor.data = data


def states(layers: int, mode: Mode, count: int | None = None) -> list[tuple[int, int]]:
    """Ranges [first, last) of randomised layers, one for each state, the unchanged model left out.

    "top_down": from the output down to ever earlier layers; "bottom_up": from the input up;
    "independent": one layer at a time, from the last to the first. With `count`, that many of
    them, evenly spread; the last state always among them.
    """
    number = layers if count is None else min(count, layers)
    depths = [-(-layers * step // number) for step in range(1, number + 1)]
    match mode:
        case "top_down":
            return [(layers - depth, layers) for depth in depths]
        case "bottom_up":
            return [(0, depth) for depth in depths]
        case "independent":
            return [(layers - depth, layers - depth + 1) for depth in depths]


_known: weakref.WeakKeyDictionary[nn.Module, tuple[Any, RandomWeights]] = (
    weakref.WeakKeyDictionary()
)


def random_weights(
    model: nn.Module, row: Tensor, initialisation: Initialisation, seed: int
) -> RandomWeights:
    """Random weights of a model, made once: the latest are kept as long as the model lives.

    initialisation: how layers are drawn anew: as they draw themselves ("reset"; running
        statistics too), a shuffle of each tensor's numbers ("permute"), or normal numbers of the
        same mean and standard deviation ("normal"). Parameters of modules that cannot reset
        themselves are drawn as "normal".
    row: one input [1, ...], to see in which order layers run (one pass that nobody counts).
    The numbers depend on (seed, name of the layer): neither on device nor on precision.
    """
    key = (initialisation, seed, _fingerprint(model, values=initialisation != "reset"))
    known = _known.get(model)
    if known is None or known[0] != key:
        _known[model] = known = (key, _draw(model, row, initialisation, seed))
    return known[1]


def _fingerprint(model: nn.Module, values: bool) -> tuple[Any, ...]:
    """What drawn weights depend on: shapes and kinds of the tensors, or their values as well.

    torch's own version counters do not help: they count the changes of states, too.
    """
    kinds = tuple((name, t.shape, t.dtype, t.device) for name, t in _tensors(model))
    if not values:
        return kinds
    sums = [t.detach().double() for t in model.parameters()]
    return kinds + tuple(torch.stack([v for t in sums for v in (t.sum(), t.norm())]).tolist())


def _draw(
    model: nn.Module, row: Tensor, initialisation: Initialisation, seed: int
) -> RandomWeights:
    names, values = [], []
    claimed: set[int] = set()  # a tensor that two layers share belongs to the first
    for name, module in _in_order(model, row):
        own = {
            f"{name}.{key}".lstrip("."): tensor
            for key, tensor in _own(module)
            if id(tensor) not in claimed
        }
        claimed.update(map(id, own.values()))
        if not any(isinstance(tensor, nn.Parameter) for tensor in own.values()):
            continue
        with isolated_rng(derive_seed("random weights", initialisation, seed, name)):
            names.append(name or type(model).__name__)
            values.append(_redrawn(module, own, initialisation))
    if not names:
        raise ValueError("the model has no parameters that could be randomised")
    return RandomWeights(tuple(names), tuple(values))


def _redrawn(
    module: nn.Module, own: dict[str, Tensor], initialisation: Initialisation
) -> dict[str, Tensor]:
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if initialisation == "reset" and reset is not None:
        return _reset(reset, module, own)
    redraw = _permuted if initialisation == "permute" else _normal
    return {
        name: redraw(tensor) for name, tensor in own.items() if isinstance(tensor, nn.Parameter)
    }


def _reset(reset: Any, module: nn.Module, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the module's own initialisation draws, on stand-ins in single precision on the CPU.

    A module may initialise its children too: theirs are stand-ins as well, and are thrown away.
    """
    tensors = [tensor for _, tensor in _tensors(module)]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            stand_in = torch.float32 if tensor.is_floating_point() else tensor.dtype
            tensor.data = tensor.data.to("cpu", stand_in, copy=True)
        with torch.no_grad():
            reset()
        drawn = {name: tensor.data for name, tensor in own.items()}
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
    return {name: drawn[name].to(tensor) for name, tensor in own.items()}


def _permuted(tensor: Tensor) -> Tensor:
    order = torch.randperm(tensor.numel()).to(tensor.device)
    return tensor.detach().flatten()[order].view_as(tensor)


def _normal(tensor: Tensor) -> Tensor:
    values = tensor.detach().double()
    spread = values.std() if values.numel() > 1 else values.abs().sum()
    return (torch.randn(tensor.shape).to(values) * spread + values.mean()).to(tensor)


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module itself."""
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield key, tensor


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _in_order(model: nn.Module, row: Tensor) -> list[tuple[str, nn.Module]]:
    """Modules with parameters, in the order of their first run.

    One that is used without being called (a projection inside attention) follows its predecessor
    by definition. `model.forward` goes past the hooks of the model itself, such as pass counters.
    """
    called: dict[nn.Module, int] = {}

    def note(module: nn.Module, arguments: Any) -> None:
        called.setdefault(module, len(called))

    modules = [(name, module) for name, module in model.named_modules() if any(_own(module))]
    handles = [module.register_forward_pre_hook(note) for _, module in modules]
    try:
        with torch.no_grad():
            model.forward(row)
    finally:
        for handle in handles:
            handle.remove()
    places, place = [], (-1, 0)
    for number, (_, module) in enumerate(modules):
        place = (called[module], 0) if module in called else (place[0], number + 1)
        places.append(place)
    return [modules[i] for i in sorted(range(len(modules)), key=places.__getitem__)]
