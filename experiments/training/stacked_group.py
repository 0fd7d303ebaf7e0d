"""One stack in training: what `loop.fit` does for one model, for K of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.data.dataset import Split
from experiments.models.noise import Noise
from experiments.models.stack import Stack
from experiments.stages import Checkpoint, Interrupted
from experiments.training.loop import (
    History,
    Progress,
    batch_order,
    class_weights,
    dropout_seed,
    output_errors,
    rate,
)
from experiments.training.recipe import Recipe

# Of all models together, in one forward pass: a CPU is fastest while its cache holds them.
EVALUATED_ROWS = {"cpu": 1 << 12, "cuda": 1 << 17}
WORTH_DROPPING = 1 / 8  # of a stack: the share of stopped models at which it is made smaller
FORMAT = 2  # raise it when what is in the state of a group changes

functional = torch.nn.functional


@dataclass
class Samples:
    """Those of each model: x [K, N, ...], y [K, N], and the weight of each in the loss [K, N]."""

    x: Tensor
    y: Tensor
    weights: Tensor | None = None

    @classmethod
    def of(cls, splits: Sequence[Split], like: Tensor) -> Samples:
        """On the device and in the precision of a parameter; data that all share is kept once."""

        def together(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
            if all(part is parts[0] for part in parts):
                return parts[0].to(like.device, dtype).expand(len(parts), *parts[0].shape)
            return torch.stack(parts).to(like.device, dtype)

        return cls(
            together([split.x for split in splits], like.dtype),
            together([split.y for split in splits], torch.int64),
        )

    def weigh(self, train: Samples) -> None:
        """Weights each sample by its class, as the training samples of its model would have it."""
        classes = 1 + int(torch.maximum(train.y.max(), self.y.max()))
        by_class = self.x.new_ones(len(self.y), classes)
        for row, labels in zip(by_class, train.y, strict=True):
            known = class_weights(labels, row.dtype)
            row[: len(known)] = known
        self.weights = by_class.gather(1, self.y)

    def batch(self, rows: Tensor) -> Samples:
        """These samples of every model."""
        weights = None if self.weights is None else self.weights.index_select(1, rows)
        return Samples(self.x.index_select(1, rows), self.y.index_select(1, rows), weights)

    def select(self, models: Tensor) -> Samples:
        """The samples of these models."""

        def of(tensor: Tensor) -> Tensor:
            return tensor[: len(models)] if tensor.stride(0) == 0 else tensor[models]

        weights = None if self.weights is None else of(self.weights)
        return Samples(of(self.x), of(self.y), weights)

    def losses(self, recipe: Recipe, logits: Tensor) -> Tensor:
        """The loss of each model [K], of logits [K, N, C]."""
        if recipe.loss == "cross_entropy":
            each = functional.cross_entropy(
                logits.flatten(0, 1), self.y.flatten(), reduction="none"
            ).view(self.y.shape)
        else:
            each = output_errors(recipe, logits, self.y)
        if self.weights is None:
            return each.mean(1)
        return (each * self.weights).sum(1) / self.weights.sum(1)


class Adam:
    """torch's fused one for a stack, of which some models are dropped on the way."""

    def __init__(self, stack: Stack, recipe: Recipe) -> None:
        self.stack, self.recipe = stack, recipe
        self.values = stack.values
        self.optimiser = torch.optim.Adam(
            [self.values], betas=recipe.betas, eps=recipe.epsilon, fused=True
        )

    def step(self, gradient: Tensor, learning_rate: float) -> None:
        self.values.grad = gradient
        self.optimiser.param_groups[0]["lr"] = learning_rate
        self.optimiser.step()
        self.values.grad = None

    def select(self, rows: Tensor) -> Adam:
        """Goes on, with the stack, with the models of these rows: the optimiser of those."""
        moments = {
            name: self.stack.chosen(tensor, rows) if tensor.ndim else tensor
            for name, tensor in self.optimiser.state[self.values].items()
        }
        self.stack.select(rows)
        selected = Adam(self.stack, self.recipe)
        selected.optimiser.state[selected.values].update(moments)
        return selected


def step(
    stack: Stack, adam: Adam, batch: Samples, recipe: Recipe, dropout: Noise, learning_rate: float
) -> Tensor:
    """One step of every model; the losses [K] before it."""
    losses = batch.losses(recipe, stack(batch.x, dropout))
    adam.step(stack.gradient(losses.sum()), learning_rate)
    return losses.detach()


def logits(stack: Stack, x: Tensor) -> Tensor:
    """[K, N, C] in eval mode."""
    rows = EVALUATED_ROWS.get(x.device.type, 1 << 12) // len(stack)
    with torch.no_grad():
        return torch.cat([stack(part) for part in x.split(max(rows, 1), 1)], 1)


class Group:
    """Models trained together. Row r of the stack is model `position[r]` of the group."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        train: Sequence[Split],
        validation: Sequence[Split],
        recipe: Recipe,
        seeds: Sequence[int],
        order_seed: int,
    ) -> None:
        self.models = models
        self.recipe = recipe
        self.stack = Stack(models)
        self.best = self.stack.clone()
        self.adam = Adam(self.stack, recipe)
        self.train = Samples.of(train, self.stack.values)
        same = all(left is right for left, right in zip(train, validation, strict=True))
        self.validation = self.train if same else Samples.of(validation, self.stack.values)
        if recipe.balanced:
            self.validation.weigh(self.train)
            self.train.weigh(self.train)
        self.dropout = Noise([dropout_seed(seed) for seed in seeds], self.stack.values.device)
        self.order = batch_order(order_seed)
        self.progress = [Progress() for _ in models]
        self.position = list(range(len(models)))
        self.running = [True] * len(models)
        self.steps = self.epoch = 0

    def fit(self, checkpoint: Checkpoint) -> list[History]:
        """Trains the models to their end, in place; what `loop.fit` says holds for each."""
        self._restore(checkpoint.load())
        while True:
            self._validate(self._train_epoch())
            if not any(self.running):
                break
            if self.running.count(False) >= WORTH_DROPPING * len(self.running):
                self._keep([row for row, running in enumerate(self.running) if running])
            if checkpoint.stop_requested:
                checkpoint.save(self._state())
                raise Interrupted(
                    f"asked to stop after epoch {self.epoch - 1} of {self.recipe.epochs}"
                )
            if checkpoint.due():
                checkpoint.save(self._state())
        for row, model in enumerate(self.models):
            self.best.write(row, model)
            model.zero_grad()
            model.eval()
        return [progress.history for progress in self.progress]

    def _train_epoch(self) -> Tensor:
        """The mean over the batches of each model's loss [K]."""
        recipe, samples = self.recipe, self.train.y.shape[1]
        steps = recipe.epochs * math.ceil(samples / recipe.batch_size)
        rows = torch.randperm(samples, generator=self.order).to(self.train.x.device)
        losses = []
        for chosen in rows.split(recipe.batch_size):
            self.steps += 1
            self.dropout.begin(self.steps)
            now, batch = rate(recipe, self.steps, steps), self.train.batch(chosen)
            losses.append(step(self.stack, self.adam, batch, recipe, self.dropout, now))
        self.epoch += 1
        return torch.stack(losses).mean(0)

    def _validate(self, train_losses: Tensor) -> None:
        """Notes the epoch of every running model; keeps its weights if they are the best."""
        outputs = logits(self.stack, self.validation.x)
        accuracies = (outputs.argmax(2) == self.validation.y).double().mean(1)
        losses = self.validation.losses(self.recipe, outputs)
        # One transfer from the device for all numbers of all models.
        numbers = torch.stack([train_losses.double(), accuracies, losses.double()], 1).tolist()
        better = []
        for row, (position, found) in enumerate(zip(self.position, numbers, strict=True)):
            if not self.running[row]:
                continue
            progress = self.progress[position]
            progress.history.steps = self.steps
            try:
                if progress.note(self.recipe, *found):
                    better.append(row)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"model {position} of {len(self.models)}: {error}"
                ) from None
            self.running[row] = not progress.ended(self.recipe)
        self.best.overwrite([self.position[row] for row in better], self.stack, better)

    def _keep(self, rows: list[int]) -> None:
        """Drops all rows but these: what follows costs that much less."""
        index = torch.tensor(rows, device=self.stack.values.device)
        self.adam = self.adam.select(index)
        same = self.validation is self.train
        self.train = self.train.select(index)
        self.validation = self.train if same else self.validation.select(index)
        self.dropout.select(index)
        self.position = [self.position[row] for row in rows]
        self.running = [True] * len(rows)

    def _state(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "position": self.position,
            "running": self.running,
            "stack": self.stack.state(),
            "best": self.best.state(),
            "adam": self.adam.optimiser.state_dict(),
            "order": self.order.get_state(),
            "progress": [(asdict(one.history), one.best) for one in self.progress],
            "steps": self.steps,
            "epoch": self.epoch,
        }

    def _restore(self, state: dict[str, Any] | None) -> None:
        """Puts everything where it was. Nothing happens without a state, or with one that another
        version of this loop has left."""
        if state is None or state.get("format") != FORMAT:
            return
        if len(state["position"]) < len(self.position):
            self._keep(state["position"])
        self.running = state["running"]
        self.stack.restore(state["stack"])
        self.best.restore(state["best"])
        self.adam.optimiser.load_state_dict(state["adam"])
        self.order.set_state(state["order"])
        for one, (history, best) in zip(self.progress, state["progress"], strict=True):
            one.best = best
            vars(one.history).update(history)
        self.steps, self.epoch = state["steps"], state["epoch"]
