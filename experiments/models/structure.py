"""What a network is made of, as far as a method has to know: its kind, and where its features lie.

A network is looked at by running it: one hidden forward pass of one row tells in which order its
modules run and what shapes they return. That finds the last features of ResNets, VGGs, DenseNets,
EfficientNets, ConvNeXts and vision transformers alike, without a table of names.
"""

from __future__ import annotations

import difflib
import math
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Layout = Literal["own", "channels first", "channels last"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Names of self-attention in torchvision, timm and transformers (SpatialAttention is none).
ATTENTION = re.compile(r"(?:^|Self|Window|Head)Attention(?:V\d)?$")
EXTRA_TOKENS = 8  # class, distillation and register tokens that may stand before the patches


def kind_of(model: nn.Module) -> str:
    """ "transformer" (attention), "cnn" (convolutions) or "mlp"; what the model says of itself
    (`model.kind`) goes first."""
    said = getattr(model, "kind", None)
    if isinstance(said, str):
        return said
    modules = list(model.modules())
    if any(is_attention(module) for module in modules):
        return "transformer"
    return "cnn" if any(isinstance(module, CONVOLUTIONS) for module in modules) else "mlp"


def is_attention(module: nn.Module) -> bool:
    """Whether a module is a self-attention, judged by its type's name."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    return ATTENTION.search(type(module).__name__) is not None


@dataclass(frozen=True)
class Site:
    """A place in a network where features with a position can be read: the output of a module.

    Attributes:
        path, module: which module.
        call: which of its calls in a forward pass, counted from 0: the last one.
        layout: how to read the output: by the model's own `cam_reshape`, or with the channels in
            the second or in the last axis.
        channels: the axis of the channels.
    """

    path: str
    module: nn.Module
    call: int
    layout: Layout
    channels: int


def site(model: nn.Module, row: Tensor, path: str | None = None) -> Site:
    """The layer that CAM methods read when `model` sees inputs like `row` [1, ...].

    Without a path: the model's own `cam_layer`; else, of a network with attention, what enters the
    last attention (in a ViT, the norm before it); else the last output of the size of the last
    convolution, before anything is pooled (so after its norm, activation and residual sum).

    Raises:
        ValueError: no module of that name, with the nearest names; a module that does not run, or
            whose output has no place; a network without convolution or attention.
    """

    def find() -> Site:
        events = _trace(model, row)
        chosen = path or _own(model) or _last_features(model, events, places(row.shape[1:]))
        ends = [e for e in events if e.path == chosen and e.ended]
        _refuse(model, path, chosen, ends)
        layout = _layout(model, row, events, ends[-1])
        shape = ends[-1].shape
        axis = {"channels first": 1, "channels last": len(shape) - 1}.get(layout)
        axis = _channel_axis(model, shape) if axis is None else axis
        return Site(chosen, ends[-1].module, len(ends) - 1, layout, axis)

    return remembered(model, ("site", path, tuple(row.shape[1:])), find)


def positions(model: nn.Module, where: Site, output: Tensor, shape: torch.Size) -> Tensor:
    """A site's output as features [R, C, *grid], for inputs of shape [R, *shape].

    The grid has as many axes as the inputs have places: H×W of images [C, H, W], T of series
    [C, T], D of [D]. Tokens of images become the grid of patches of the image's proportions, of
    series the sequence; class tokens, which come first, are dropped.
    Raises ValueError if that cannot be done; a model's `cam_reshape` can.
    """
    spatial = places(shape)
    if where.layout == "own":
        found = model.cam_reshape(output)  # type: ignore[operator]
    elif where.layout == "channels first":
        found = output
    else:
        found = output.movedim(-1, 1)
        if found.ndim == 3:
            found = _patches(found, spatial, where.path)
    while found.ndim > 2 + len(spatial) and 1 in found.shape[2:]:
        found = found.squeeze(max(a for a in range(2, found.ndim) if found.shape[a] == 1))
    if found.ndim != 2 + len(spatial):
        raise ValueError(
            f"layer {where.path!r}: output {tuple(output.shape[1:])} has no clear place in inputs "
            f"{tuple(shape)}; give the model a cam_reshape(output) -> [B, channels, *grid]"
        )
    return found


def places(shape: torch.Size) -> torch.Size:
    """The axes of an input [D], [C, T] or [C, H, W] along which a position is counted."""
    return shape[1:] if len(shape) > 1 else shape


def remembered(model: nn.Module, key: Any, compute: Callable[[], T]) -> T:
    """`compute()`, as long as `model` consists of the same modules, parameters and buffers."""
    parts = [*list(model.modules())[1:], *model.parameters(), *model.buffers(), model.training]
    known = _memory.setdefault(model, {})
    if key in known and _same(known[key][0], parts):
        return known[key][1]
    found = compute()
    known[key] = (parts, found)
    return found


_memory: weakref.WeakKeyDictionary[nn.Module, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


@contextmanager
def unhooked(model: nn.Module) -> Iterator[None]:
    """No forward hooks inside the block: what runs there is neither seen nor counted."""
    kept = [
        (hooks, hooks.copy())
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    ]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


class _Event(NamedTuple):
    """A call of a module begins, or ends with an output of some shape (() if not a tensor)."""

    path: str
    module: nn.Module
    ended: bool
    shape: tuple[int, ...]


def _trace(model: nn.Module, row: Tensor) -> list[_Event]:
    """The calls of all modules in one forward pass, in the order in which they begin and end."""
    events: list[_Event] = []
    with unhooked(model), torch.no_grad():
        for path, module in list(model.named_modules())[1:]:

            def begin(called: nn.Module, inputs: Any, path: str = path) -> None:
                events.append(_Event(path, called, False, ()))

            def end(called: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
                shape = tuple(output.shape) if isinstance(output, Tensor) else ()
                events.append(_Event(path, called, True, shape))

            module.register_forward_pre_hook(begin)
            module.register_forward_hook(end)
        model(row)
    return events


def _own(model: nn.Module) -> str | None:
    """The path of the model's own `cam_layer`, if it has one."""
    layer = getattr(model, "cam_layer", None)
    return next((p for p, m in model.named_modules() if m is layer), None) if layer else None


def _last_features(model: nn.Module, events: list[_Event], spatial: torch.Size) -> str:
    """The path of the last features that have a place."""
    calls = Counter(event.path for event in events if event.ended)

    def fits(event: _Event) -> bool:
        has_place = event.ended and len(event.shape) > 2 and event.shape[0] == 1
        return has_place and calls[event.path] == 1

    attentions = [i for i, e in enumerate(events) if not e.ended and is_attention(e.module)]
    if attentions:
        before = [e for e in events[: attentions[-1]] if fits(e) and _in_places(e, spatial)]
    else:
        convolutions = [e for e in events if e.ended and isinstance(e.module, CONVOLUTIONS)]
        wide = [e for e in convolutions if math.prod(e.shape[2:]) > 1] or convolutions
        size = _until_pooled(events, wide[-1]) if wide else []
        before = [event for event in size if fits(event)] or wide[-1:]
    if not before:
        raise ValueError(
            f"{type(model).__name__} has no convolution or attention whose features have a place; "
            "name a layer by the parameter 'layer'"
        )
    return before[-1].path


def _in_places(event: _Event, spatial: torch.Size) -> bool:
    """Whether an output's axes but those of samples and channels are places (not windows)."""
    first, last = event.shape[2:], event.shape[1:-1]
    if len(event.shape) < 2 + len(spatial):
        return True
    return any(grid == _grid(math.prod(grid), spatial) for grid in (first, last))


def _until_pooled(events: list[_Event], last: _Event) -> list[_Event]:
    """The outputs of the same size as that of `last`, the last convolution, until a pooling."""
    found = []
    for event in events[events.index(last) :]:
        if "Pool" in type(event.module).__name__ and not event.ended:
            break
        if event.ended and event.shape[2:] == last.shape[2:]:
            found.append(event)
    return found


def _refuse(model: nn.Module, given: str | None, chosen: str, ends: list[_Event]) -> None:
    known = [path for path, _ in model.named_modules() if path]
    name = type(model).__name__
    if given and given not in known:
        near = difflib.get_close_matches(given, known, n=3, cutoff=0.3) or known[-3:]
        raise ValueError(f"no layer {given!r} in {name}; the nearest: {', '.join(near)}")
    if not ends:
        raise ValueError(f"layer {chosen!r} of {name} does not run in a forward pass")
    if len(ends[-1].shape) < 3 and not hasattr(model, "cam_reshape"):
        raise ValueError(
            f"layer {chosen!r} of {name}: its output has no place (shape "
            f"{ends[-1].shape[1:] or 'unknown'} per sample); choose an earlier layer"
        )


def _layout(model: nn.Module, row: Tensor, events: list[_Event], chosen: _Event) -> Layout:
    """Layer norms and linear maps work on the last axis: an output of the shape of one of
    theirs has its channels there, and so have the tokens [1, L, d] of an image."""
    if hasattr(model, "cam_reshape"):
        return "own"
    if isinstance(chosen.module, CONVOLUTIONS):
        return "channels first"
    last = {e.shape for e in events if e.ended and type(e.module) in (nn.LayerNorm, nn.Linear)}
    tokens = len(chosen.shape) == 3 and len(places(row.shape[1:])) > 1
    return "channels last" if tokens or chosen.shape in last else "channels first"


def _channel_axis(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Which axis the model's own `cam_reshape` makes the second one: each is tried with numbers."""
    for axis in range(1, len(shape)):
        numbers = torch.arange(shape[axis]).view(-1, *[1] * (len(shape) - axis - 1))
        found = model.cam_reshape(numbers.expand(shape))  # type: ignore[operator]
        expected = torch.arange(shape[axis]).view(-1, *[1] * (found.ndim - 2))
        if found.shape[1] == shape[axis] and bool((found == expected).all()):
            return axis
    raise ValueError(f"{type(model).__name__}.cam_reshape: no axis of {shape[1:]} is the channels")


def _patches(tokens: Tensor, spatial: torch.Size, path: str) -> Tensor:
    """Tokens [R, d, L] on the grid of the places they come from, [R, d, *grid]."""
    length = tokens.shape[2]
    most = 1 if len(spatial) == 1 else EXTRA_TOKENS
    for extra in range(min(most, length - 1) + 1):
        grid = _grid(length - extra, spatial)
        if grid is not None:
            return tokens[:, :, extra:].unflatten(2, grid)
    if len(spatial) == 1:
        return tokens
    raise ValueError(
        f"layer {path!r}: {length} tokens are no grid of the proportions of {tuple(spatial)} "
        "inputs; give the model a cam_reshape(output) -> [B, channels, *grid]"
    )


def _grid(count: int, spatial: torch.Size) -> tuple[int, ...] | None:
    """`count` patches of equal sides as a grid over `spatial` places, if they are one."""
    if len(spatial) == 1:
        return (count,) if spatial[0] % count == 0 else None
    scale = (count / math.prod(spatial)) ** (1 / len(spatial))
    grid = tuple(max(1, round(side * scale)) for side in spatial)
    return grid if math.prod(grid) == count else None
