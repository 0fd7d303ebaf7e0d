"""Many small models trained at once, with the result of `loop.fit` for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from experiments import lazy
from experiments.stages import Checkpoint, Interrupted, NoCheckpoint
from experiments.training.loop import Evaluation, History, evaluate, evaluation, fit
from experiments.training.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments.data.dataset import Split
    from experiments.models import stack as stacks
    from experiments.training import stack_size, stacked_group
else:
    torch = lazy.load("torch")
    stacks = lazy.load("experiments.models.stack")
    stack_size = lazy.load("experiments.training.stack_size")
    stacked_group = lazy.load("experiments.training.stacked_group")

FORMAT = 2  # raise it when what is in the state changes
EVALUATED = 256  # models at once


def fit_many(
    models: Sequence[nn.Module],
    train: Sequence[Split],
    validation: Sequence[Split],
    *,
    recipe: Recipe,
    seeds: Sequence[int],
    order_seed: int,
    device: torch.device | str | None = None,
    checkpoint: Checkpoint | None = None,
    stack: int | None = None,
) -> list[History]:
    """Trains models of one architecture in place, each on its own data, in the same batch order.

    Model k ends as `loop.fit(models[k], train[k], validation[k], recipe=recipe, seed=seeds[k],
    order_seed=order_seed)` leaves it, but for rounding: a step agrees to 1e-15 in float64, and
    training amplifies that as it amplifies everything. `stack` is the number of models trained
    at once, 1 for one after the other by `loop.fit`; by default it is what a short measurement
    finds fastest. But for rounding it is no part of the result.

    A model that stops early changes no more, and leaves the stack when enough of them have
    stopped. Models whose splits have different lengths are trained in different stacks.
    Checkpoints are those of `loop.fit`: interrupted and resumed is, bit for bit, never
    interrupted; the stack size is that of the checkpoint.

    Raises:
        ValueError: the models are not of one architecture, the samples not of one shape, or the
            lists not of one length.
        FloatingPointError: the training loss of a model stops being finite.
        Interrupted: the checkpoint says that the process must stop.
    """
    if device is not None:
        for model in models:
            model.to(device)
    _check(models, train=train, validation=validation, seeds=seeds)
    if stack is not None and stack < 1:
        raise ValueError(f"fit_many: stack is {stack}; give at least 1, or None to have it chosen")
    whole = checkpoint or NoCheckpoint()
    saved = whole.load()
    if saved is None or saved.get("format") != FORMAT:
        if not stack_size.stacks(models, train, recipe):
            stack = 1
        size = stack or stack_size.fastest(models, train, recipe)
        saved = {"size": size, "done": [], "current": None}
    size, current, histories = saved["size"], saved["current"], {}
    lengths = [(len(t), len(v)) for t, v in zip(train, validation, strict=True)]
    groups = _groups(lengths, size)
    order = [position for group in groups for position in group]
    for position, (weights, history) in zip(order, saved["done"], strict=False):
        _write(models[position], weights)
        histories[position] = History(**history)

    def state(current: Any) -> dict[str, Any]:
        done = [
            (list(models[position].state_dict().values()), asdict(history))
            for position, history in histories.items()
        ]
        return {"format": FORMAT, "size": size, "done": done, "current": current}

    for positions in groups:
        if positions[-1] in histories:
            continue
        part = _Part(whole, state, current)
        ours, seeds_ = [models[p] for p in positions], [seeds[p] for p in positions]
        train_, validation_ = [train[p] for p in positions], [validation[p] for p in positions]
        if len(positions) == 1:
            found = [
                fit(
                    ours[0], train_[0], validation_[0], recipe=recipe, seed=seeds_[0],
                    order_seed=order_seed, checkpoint=part,
                )
            ]  # fmt: skip
        else:
            group = stacked_group.Group(ours, train_, validation_, recipe, seeds_, order_seed)
            found = group.fit(part)
        histories.update(zip(positions, found, strict=True))
        current = None
        if len(histories) == len(models):
            break
        if whole.stop_requested:
            whole.save(state(None))
            raise Interrupted(f"asked to stop after {len(histories)} of {len(models)} models")
        if whole.due():
            whole.save(state(None))
    return [histories[position] for position in range(len(models))]


def evaluate_many(models: Sequence[nn.Module], splits: Sequence[Split]) -> list[Evaluation]:
    """`loop.evaluate(models[k], splits[k])` for all k, but for rounding.

    Raises ValueError as `fit_many` does.
    """
    _check(models, splits=splits)
    results: dict[int, Evaluation] = {}
    for positions in _groups([len(split) for split in splits], EVALUATED):
        ours, of_ours = [models[p] for p in positions], [splits[p] for p in positions]
        training = ours[0].training
        try:
            stack = stacks.Stack(ours)
            samples = stacked_group.Samples.of(of_ours, stack.values)
            logits = stacked_group.logits(stack, samples.x)
        except RuntimeError:  # no form, and vmap cannot map it: see `stack_size.stacks`
            found = map(evaluate, ours, of_ours)
        else:
            found = map(evaluation, logits, samples.y)
        results.update(zip(positions, found, strict=True))
        ours[0].train(training)
    return [results[position] for position in range(len(models))]


class _Part(NoCheckpoint):
    """The checkpoint of one group of models: saved together with what was done before it."""

    def __init__(
        self, whole: Checkpoint, state: Callable[[Any], dict[str, Any]], current: Any
    ) -> None:
        super().__init__()
        self.whole = whole
        self.state = state
        self.current = current

    @property
    def stop_requested(self) -> bool:
        return self.whole.stop_requested

    def due(self, seconds: float | None = None) -> bool:
        return self.whole.due(seconds)

    def load(self) -> Any:
        return self.current

    def save(self, value: Any) -> None:
        self.whole.save(self.state(value))


def _groups(lengths: Sequence[Hashable], size: int) -> list[list[int]]:
    """Positions of equal lengths in groups of at most `size`, as even as possible, in order."""
    same: dict[Hashable, list[int]] = {}
    for position, length in enumerate(lengths):
        same.setdefault(length, []).append(position)
    found = []
    for positions in same.values():
        groups = -(-len(positions) // size)
        bounds = [len(positions) * group // groups for group in range(groups + 1)]
        found += [positions[start:end] for start, end in itertools.pairwise(bounds)]
    return found


def _write(model: nn.Module, weights: list[Tensor]) -> None:
    for old, new in zip(model.state_dict().values(), weights, strict=True):
        old.copy_(new)
    model.zero_grad()
    model.eval()


def _check(models: Sequence[nn.Module], **lists: Sequence[Any]) -> None:
    stacks.one_architecture(models)
    for name, values in lists.items():
        if len(values) != len(models):
            raise ValueError(
                f"{len(models)} models, but {name} has {len(values)} entries; give one per model"
            )
        if name == "seeds":
            continue
        for position, split in enumerate(values):
            if split.x.shape[1:] != values[0].x.shape[1:]:
                raise ValueError(
                    f"samples of {name}[{position}] have shape {list(split.x.shape[1:])}, those of "
                    f"{name}[0] {list(values[0].x.shape[1:])}; train samples of one shape together"
                )
