"""Parts of a model by name, and the kernels that its derivatives need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from experiments import lazy
from experiments.messages import unknown

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = lazy.load("torch")
    nn = lazy.load("torch.nn")


@contextmanager
def exact_kernels(model: nn.Module) -> Iterator[None]:
    """Only kernels that can be differentiated twice and per example.

    The fused ones of attention know no forward-mode derivative, those of recurrent layers (cuDNN,
    oneDNN) no second one.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    libraries: list[Any] = []
    if recurrent(model):
        libraries = [torch.backends.mkldnn, torch.backends.cudnn]
    enabled = [library.enabled for library in libraries]
    torch.backends.mha.set_fastpath_enabled(False)
    for library in libraries:
        library.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for library, before in zip(libraries, enabled, strict=True):
            library.enabled = before


def recurrent(model: nn.Module) -> bool:
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and those buffers that a state dict holds."""
    saved = model.state_dict(keep_vars=True)
    return {
        **dict(model.named_parameters()),
        **{n: saved[n] for n, _ in model.named_buffers() if n in saved},
    }


def selected(model: nn.Module, weights: str | Sequence[str] | None) -> list[str]:
    """The names of the parameters under the given names. Raises ValueError if there are none."""
    names = [name for name, _ in model.named_parameters()]
    if weights is None:
        return names
    wanted = [weights] if isinstance(weights, str) else list(weights)
    for want in wanted:
        if not any(name == want or name.startswith(f"{want}.") for name in names):
            layers = {name.rpartition(".")[0] for name in names}
            raise ValueError(f"weights: {unknown('layer or parameter', want, layers)}")
    return [n for n in names if any(n == want or n.startswith(f"{want}.") for want in wanted)]


def until(model: nn.Module, layer: str) -> Callable[[Tensor], Tensor]:
    """A function of inputs that runs the model and gives the output of a layer of it.

    Raises ValueError for an unknown layer, one that does not run, or gives several tensors.
    """
    known = dict(model.named_modules())
    if layer not in known:
        raise ValueError(f"encoder: {unknown('layer', layer, filter(None, known))}")

    def run(x: Tensor) -> Tensor:
        seen: list[Any] = []
        handle = known[layer].register_forward_hook(lambda module, args, out: seen.append(out))
        try:
            model(x)
        finally:
            handle.remove()
        if len(seen) != 1 or not isinstance(seen[0], torch.Tensor):
            raise ValueError(
                f"encoder: layer {layer!r} should give one tensor per pass, gave {len(seen)} "
                f"outputs; give the encoder as a module instead"
            )
        return seen[0]

    return run
