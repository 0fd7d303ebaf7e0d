"""K models of one architecture whose parameters lie in one matrix."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.models import noise, stackable


class Stack:
    """K models, copied, as one function of [K, B, ...].

    Attributes:
        values: [K · P], the parameters to be trained, one after the other, each of all models.
            To be changed in place.
        parameters: views of them by name, [K, ...], each a leaf to differentiate by.
        buffers: what else makes up the models, by name, [K, ...]: buffers, frozen parameters.

    Raises ValueError, as `one_architecture` does, for models that cannot be one stack.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        one_architecture(models)
        self.template = models[0]
        self.has_form = stackable.has_form(self.template)
        trained = {n: p for n, p in self.template.named_parameters() if p.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in trained.items()}
        tensors = [_tensors(model) for model in models]
        self.buffers = {
            name: torch.stack([of_model[name] for of_model in tensors])
            for name in tensors[0]
            if name not in trained
        }
        self.values = torch.cat(
            [of_model[name].flatten() for name in trained for of_model in tensors]
        )
        self.parameters = self._views(len(models))

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __call__(self, x: Tensor, dropout: noise.Noise | None = None) -> Tensor:
        """Logits [K, B, C] of x [K, B, ...]; in training mode if there is noise for dropout."""
        if self.has_form:
            scope = stackable.Scope({**self.parameters, **self.buffers}, dropout)
            return stackable.apply(self.template, scope, x)
        return self._mapped(x, dropout)

    def gradient(self, loss: Tensor) -> Tensor:
        """[K · P] of a sum of losses, one per model."""
        gradients = torch.autograd.grad(
            loss, list(self.parameters.values()), allow_unused=True, materialize_grads=True
        )
        return torch.cat([gradient.flatten() for gradient in gradients])

    def select(self, rows: Tensor) -> None:
        """Goes on with the models of these rows only."""
        self.values = self.chosen(self.values, rows)
        self.buffers = {name: tensor[rows] for name, tensor in self.buffers.items()}
        self.parameters = self._views(len(rows))

    def chosen(self, values: Tensor, rows: Tensor) -> Tensor:
        """Of numbers that lie as `values` do, those of the models of these rows."""
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        return torch.cat([part.view(len(self), -1)[rows].flatten() for part in values.split(sizes)])

    def clone(self) -> Stack:
        """A stack of its own with the same numbers."""
        other = copy.copy(self)
        other.values = self.values.clone()
        other.buffers = {name: tensor.clone() for name, tensor in self.buffers.items()}
        other.parameters = other._views(len(self))
        return other

    def overwrite(self, rows: list[int], source: Stack, source_rows: list[int]) -> None:
        """Overwrites models of this stack with models of another one."""
        to = torch.tensor(rows, dtype=torch.int64, device=self.values.device)
        of = torch.tensor(source_rows, dtype=torch.int64, device=self.values.device)
        for old, new in zip(self._all(), source._all(), strict=True):
            old.index_copy_(0, to, new.index_select(0, of))

    def state(self) -> list[Tensor]:
        """What `restore` takes."""
        return self._all()

    def restore(self, state: list[Tensor]) -> None:
        """Overwrites the whole stack."""
        for old, new in zip(self._all(), state, strict=True):
            old.copy_(new)

    def _all(self) -> list[Tensor]:
        return [*(p.detach() for p in self.parameters.values()), *self.buffers.values()]

    def write(self, row: int, model: nn.Module) -> None:
        """Gives `model` the parameters and buffers of a row."""
        target = _tensors(model)
        for name, tensor in [*self.parameters.items(), *self.buffers.items()]:
            target[name].copy_(tensor.detach()[row])

    def _views(self, models: int) -> dict[str, Tensor]:
        parts = self.values.detach().split([models * s.numel() for s in self.shapes.values()])
        return {
            name: part.view(models, *shape).requires_grad_()
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _mapped(self, x: Tensor, dropout: noise.Noise | None) -> Tensor:
        self.template.train(dropout is not None)
        if dropout is None:
            return self._vmap(self._one)(self.parameters, self.buffers, x)

        def one(parameters: Any, buffers: Any, x: Tensor, seed: Tensor) -> Tensor:
            with dropout.seeded(seed):
                return self._one(parameters, buffers, x)

        with noise.supplied(self.template, dropout):
            return self._vmap(one)(self.parameters, self.buffers, x, dropout.seeds)

    def _one(self, parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(self.template, (parameters, buffers), (x,))
        return logits

    @staticmethod
    def _vmap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        # Randomness of a kind that `noise` does not know would be another one than in sequence.
        return torch.vmap(function, randomness="error")


def one_architecture(models: Sequence[nn.Module]) -> None:
    """Raises ValueError, one line, unless the models differ in nothing but numbers."""
    if not models:
        raise ValueError("no models to stack; give at least one")
    expected = _layout(models[0])
    for position, model in enumerate(models):
        found = _layout(model)
        if found == expected:
            continue
        name = next(n for n in [*expected, *found] if expected.get(n) != found.get(n))
        raise ValueError(
            f"model {position} is not of the architecture of model 0: "
            f"{name.strip() or 'it'} is {found.get(name, 'not there')}, in model 0 it is "
            f"{expected.get(name, 'not there')}; stack each architecture on its own"
        )


def _layout(model: nn.Module) -> dict[str, str]:
    """What each module and tensor of a model is, apart from its numbers."""
    layout = {}
    for name, module in model.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if key != "training"
            and not key.startswith("_")
            and isinstance(value, bool | int | float | str | tuple | None)
        }
        layout[name] = f"{type(module).__qualname__} {settings or ''}".strip()
    for name, tensor in _tensors(model).items():
        kind = f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
        layout[f"{name} "] = f"{list(tensor.shape)} {kind}"
    for name, parameter in model.named_parameters():
        layout[f"{name}.requires_grad"] = str(parameter.requires_grad)
    return layout


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}
