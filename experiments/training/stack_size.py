"""How many models to train at once: measured, on the device and with the data at hand.

Stacking pays where a step is bound by dispatch; where one model fills the device it costs. What
is fastest is no part of any result, so a noisy measurement can only cost time.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from experiments.data.dataset import Split
from experiments.models import stackable
from experiments.models.noise import Noise, supplied
from experiments.models.stack import Stack
from experiments.training.loop import loss_function
from experiments.training.recipe import Recipe
from experiments.training.stacked_group import Adam, Samples, step

log = logging.getLogger(__name__)

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
TIMINGS = 3  # of which the fastest counts
_measured: dict[tuple[object, ...], int] = {}


def stacks(models: Sequence[nn.Module], train: Sequence[Split], recipe: Recipe) -> bool:
    """Whether models of this architecture can be trained at once.

    Not with an adversary, nor if a model may stop in the middle of an epoch, nor on samples that
    are not tensors. Models without a form must be something that `torch.func.vmap` can map over:
    no random numbers but those of nn.Dropout, no decisions that depend on values.
    """
    if recipe.adversary is not None or recipe.stop_at_batch_loss is not None:
        return False
    if not all(isinstance(split.x, torch.Tensor) for split in train):
        return False
    dtypes = {parameter.dtype for parameter in models[0].parameters() if parameter.requires_grad}
    if len(dtypes) != 1:
        return False
    if stackable.has_form(models[0]):
        return True
    try:
        _stacked_step(models[:2], train[:2], recipe)()
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        log.info("%s is trained one by one: %s", type(models[0]).__name__, reason)
        return False
    return True


def fastest(models: Sequence[nn.Module], train: Sequence[Split], recipe: Recipe) -> int:
    """The number of models to train at once, at most that of the models; 1 is `loop.fit`.

    It is measured once per process for each architecture, number of models and shape of data.
    """
    parameter = next(models[0].parameters())
    known = (
        repr(models[0]), len(models), train[0].x.shape[1:], parameter.dtype, parameter.device,
        recipe.batch_size, recipe.loss, torch.get_num_threads(),
    )  # fmt: skip
    if known not in _measured:
        _measured[known] = _fastest(models, train, recipe)
    return _measured[known]


def _fastest(models: Sequence[nn.Module], train: Sequence[Split], recipe: Recipe) -> int:
    device = next(models[0].parameters()).device
    best, least = 1, _seconds(_plain_step(models[0], train[0], recipe), device)
    for size in sorted({size for size in SIZES if size < len(models)} | {len(models)}):
        if size > SIZES[-1]:
            break
        try:
            each = _seconds(_stacked_step(models[:size], train[:size], recipe), device) / size
        except torch.OutOfMemoryError:
            break
        if each < least:
            best, least = size, each
        elif each > 1.5 * least and best > 1:
            break  # past the turning point
    log.info("training %d models at once: %.3f ms per step and model", best, 1000 * least)
    return best


def _plain_step(model: nn.Module, train: Split, recipe: Recipe) -> Callable[[], object]:
    model = copy.deepcopy(model).train()
    parameter = next(model.parameters())
    x = train.x[: recipe.batch_size].to(parameter)
    y = train.y[: recipe.batch_size].to(x.device)
    loss_of = loss_function(recipe, y, x.dtype)
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    dropout = Noise(0, x.device)

    def run() -> None:
        dropout.begin(0)
        with supplied(model, dropout):
            loss = loss_of(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return run


def _stacked_step(
    models: Sequence[nn.Module], train: Sequence[Split], recipe: Recipe
) -> Callable[[], object]:
    stack = Stack(models)
    adam = Adam(stack, recipe)
    rows = slice(min(recipe.batch_size, *(len(split) for split in train)))
    first = [Split(split.x[rows], split.y[rows], split.index[rows]) for split in train]
    batch = Samples.of(first, stack.values)
    if recipe.balanced:
        batch.weigh(batch)
    dropout = Noise([0] * len(models), stack.values.device)
    return lambda: step(stack, adam, batch, recipe, dropout, recipe.learning_rate)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The least of some timings, after a warm-up."""
    timings = []
    for _ in range(1 + TIMINGS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(2):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        timings.append((time.perf_counter() - started) / 2)
    return min(timings[1:])
