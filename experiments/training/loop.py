"""One training loop for small classifiers that fit in memory with their data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import lazy
from experiments.randomness import (
    derive_seed,
    global_state,
    isolated_rng,
    restore_global_state,
)
from experiments.stages import Checkpoint, Interrupted, NoCheckpoint
from experiments.training.attacks import attack
from experiments.training.recipe import Adversary, Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments.data.dataset import Split
    from experiments.models import noise
else:
    torch = lazy.load("torch")
    noise = lazy.load("experiments.models.noise")

# At once, without gradients: so many samples, or as many as have so many input values. 85 images
# of 64×64 pixels, whose activations in a convolutional network are some 100 MB.
EVALUATED_ROWS = 4096
EVALUATED_NUMBERS = 1 << 20
CLIP = 1e-7  # of "clipped_bce"; Keras' epsilon


@dataclass
class History:
    """What happened during training, one number per epoch; epochs count from 0.

    The training loss is the mean over the batches of the epoch, the validation loss that of the
    whole split; both with the class weights of the recipe.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    best_epoch: int = -1
    steps: int = 0
    stopped: str = "epochs"  # or "loss", "patience" or "batch loss"


@dataclass
class Progress:
    """The history of one model, and the best (accuracy, -loss) on its validation split so far."""

    history: History = field(default_factory=History)
    best: tuple[float, float] = (-1.0, -math.inf)

    def note(
        self, recipe: Recipe, train_loss: float, accuracy: float, validation_loss: float
    ) -> bool:
        """Adds an epoch; whether it is the best one so far.

        Raises FloatingPointError when the training loss is not finite.
        """
        history, epoch = self.history, len(self.history.train_loss)
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"training loss is {train_loss} in epoch {epoch}; "
                f"lower recipe.learning_rate (now {recipe.learning_rate})"
            )
        history.train_loss.append(train_loss)
        history.validation_accuracy.append(accuracy)
        history.validation_loss.append(validation_loss)
        better = (accuracy, -validation_loss) > self.best
        if better:
            self.best, history.best_epoch = (accuracy, -validation_loss), epoch
        return better

    def ended(self, recipe: Recipe, batch_loss_reached: bool = False) -> bool:
        """Whether training ends with the epoch noted last; `history.stopped` then says why."""
        history, epoch = self.history, len(self.history.train_loss) - 1
        right, loss = history.validation_accuracy[-1] == 1, history.validation_loss[-1]
        if batch_loss_reached:
            history.stopped = "batch loss"
        elif right and loss <= (recipe.stop_at_loss or -1):
            history.stopped = "loss"
        elif epoch - history.best_epoch >= recipe.patience:
            history.stopped = "patience"
        else:
            return epoch + 1 == recipe.epochs
        return True


class Evaluation(NamedTuple):
    """Accuracy in [0, 1], mean cross-entropy in nats, and per sample the class and the logits."""

    accuracy: float
    loss: float
    prediction: Tensor  # [N] int64
    logits: Tensor  # [N, C]


def fit(
    model: nn.Module,
    train: Split,
    validation: Split,
    *,
    recipe: Recipe,
    seed: int,
    order_seed: int | None = None,
    device: torch.device | str | None = None,
    checkpoint: Checkpoint | None = None,
) -> History:
    """Trains `model` in place; it ends in eval mode with the weights of its best epoch.

    Best is the highest validation accuracy, and of those the lowest validation loss. The order
    of the batches comes from a generator of its own (of `order_seed`, if given), dropout from the
    seed and the step (`models.noise`), as does what an adversary draws, whatever else is random
    from an isolated generator: the result depends on the seeds alone. Moves the model to `device`
    when one is given. Many models are trained faster by `stacked.fit_many`, with the same result.

    With a checkpoint, training goes on from what is saved there, and saves there at the end of
    an epoch when that is due or the process must stop. Weights and history are then, bit for
    bit, those of a training that was never interrupted.

    Raises FloatingPointError when the training loss stops being finite; `Interrupted`, after an
    epoch that is not the last, when the checkpoint says that the process must stop.

    The samples x of a split may be something else than a tensor, such as images that are drawn
    when they are asked for: it needs `len`, `shape`, `dtype` and `device`, `to(parameter)` for
    itself on the parameter's device and in its precision, `x[rows]` for a tensor of these samples,
    and `split(size)` for tensors of all samples in turn.
    """
    checkpoint = checkpoint or NoCheckpoint()
    if device is not None:
        model.to(device)
    parameter = next(model.parameters())
    x, y = train.x.to(parameter), train.y.to(parameter.device)
    same = train is validation
    x_val, y_val = (x, y) if same else (validation.x.to(parameter), validation.y.to(y.device))
    loss_of = loss_function(recipe, y, x.dtype)
    # One fused kernel per step instead of a dozen: these networks are bound by dispatch.
    optimiser = torch.optim.Adam(
        model.parameters(), betas=recipe.betas, eps=recipe.epsilon, fused=True
    )
    order = batch_order(seed if order_seed is None else order_seed)
    steps = recipe.epochs * math.ceil(len(x) / recipe.batch_size)
    state = list(model.state_dict().values())
    run = _Run(state, [tensor.clone() for tensor in state], optimiser, order)
    history = run.progress.history
    dropout = noise.Noise(dropout_seed(seed), x.device)

    with isolated_rng(dropout_seed(seed)), noise.supplied(model, dropout):
        run.restore(checkpoint.load())
        for epoch in range(len(history.train_loss), recipe.epochs):
            model.train()
            losses, reached = [], False
            for rows in (
                torch.randperm(len(x), generator=order).to(x.device).split(recipe.batch_size)
            ):
                history.steps += 1
                dropout.begin(history.steps)
                optimiser.param_groups[0]["lr"] = rate(recipe, history.steps, steps)
                inputs, labels = x[rows], y[rows]
                if recipe.adversary is not None:
                    inputs = _perturbed(
                        model, inputs, labels, recipe.adversary, seed, history.steps, loss_of
                    )
                loss = loss_of(model(inputs), labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.detach())
                # Only if asked for: a GPU has to wait until the number is read.
                if recipe.stop_at_batch_loss is not None:
                    reached = float(losses[-1]) < recipe.stop_at_batch_loss
                    if reached:
                        break
            logits = _logits(model, x_val)
            accuracy = float((logits.argmax(1) == y_val).double().mean())
            train_loss = float(torch.stack(losses).mean())
            if run.progress.note(recipe, train_loss, accuracy, float(loss_of(logits, y_val))):
                _copy(state, run.best_weights)
            if run.progress.ended(recipe, reached):
                break
            if checkpoint.stop_requested:
                checkpoint.save(run.state())
                raise Interrupted(f"asked to stop after epoch {epoch} of {recipe.epochs}")
            if checkpoint.due():
                checkpoint.save(run.state())

    _copy(run.best_weights, state)
    model.zero_grad()
    model.eval()
    return history


@dataclass
class _Run:
    """All that one epoch hands on to the next; weights are in the order of the state dict.

    The schedule of the learning rate is a function of `history.steps`, the next epoch the length
    of the history.
    """

    weights: list[Tensor]
    best_weights: list[Tensor]
    optimiser: torch.optim.Optimizer
    order: torch.Generator
    progress: Progress = field(default_factory=Progress)

    FORMAT = 1  # raise it when what is in the state changes

    def state(self) -> dict[str, Any]:
        """What `restore` needs; to be called inside the isolated random state."""
        return {
            "format": self.FORMAT,
            "weights": self.weights,
            "best_weights": self.best_weights,
            "best": self.progress.best,
            "optimiser": self.optimiser.state_dict(),
            "order": self.order.get_state(),
            "random": global_state(self.weights[0].device),
            "history": asdict(self.progress.history),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Puts everything where it was, in place. Nothing happens without a state, or with one
        that another version of this loop has left."""
        if state is None or state.get("format") != self.FORMAT:
            return
        _copy(state["weights"], self.weights)
        _copy(state["best_weights"], self.best_weights)
        self.progress.best = state["best"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.order.set_state(state["order"])
        restore_global_state(state["random"], self.weights[0].device)
        vars(self.progress.history).update(state["history"])


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for old, new in zip(target, source, strict=True):
        old.copy_(new)


def batch_order(seed: int) -> torch.Generator:
    """One permutation per epoch comes from it."""
    return torch.Generator().manual_seed(derive_seed("batches", seed))


def dropout_seed(seed: int) -> int:
    return derive_seed("dropout", seed)


def _perturbed(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    adversary: Adversary,
    seed: int,
    step: int,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """A batch of which all but the first samples, a share of `mix`, are perturbed."""
    clean = round(adversary.mix * len(x))
    generator = torch.Generator().manual_seed(derive_seed("adversary", seed, step))
    found = attack(model, x[clean:], y[clean:], adversary, generator, loss)
    return torch.cat([x[:clean], found])


def evaluate(model: nn.Module, split: Split) -> Evaluation:
    """Runs `model`, in eval mode, on a split. The model's mode is left as it was."""
    parameter = next(model.parameters())
    training = model.training
    logits = _logits(model, split.x.to(parameter))
    model.train(training)
    return evaluation(logits, split.y.to(logits.device))


def evaluation(logits: Tensor, y: Tensor) -> Evaluation:
    """What the logits [N, C] of samples of classes y [N] amount to."""
    prediction = logits.argmax(1)
    loss = torch.nn.functional.cross_entropy(logits, y)
    return Evaluation(
        float((prediction == y).double().mean()), float(loss), prediction.cpu(), logits.cpu()
    )


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    rows = min(EVALUATED_ROWS, max(1, EVALUATED_NUMBERS // math.prod(x.shape[1:])))
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(rows)])


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of step 1, 2, ... of `steps`."""
    if recipe.schedule == "cosine":
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
    if recipe.schedule == "noam":
        return recipe.learning_rate * min(step / recipe.warmup, math.sqrt(recipe.warmup / step))
    return recipe.learning_rate


def loss_function(recipe: Recipe, y: Tensor, dtype: torch.dtype) -> Any:
    """A function of logits [B, C] and labels [B]: the mean loss, weighted by class if balanced."""
    functional = torch.nn.functional
    weight = class_weights(y, dtype) if recipe.balanced else None

    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, weight=_as_long_as(weight, logits))

    def of_outputs(logits: Tensor, labels: Tensor) -> Tensor:
        errors = output_errors(recipe, logits, labels)
        if weight is None:
            return errors.mean()
        weights = _as_long_as(weight, logits)[labels]
        return (errors * weights).sum() / weights.sum()

    return cross_entropy if recipe.loss == "cross_entropy" else of_outputs


def output_errors(recipe: Recipe, logits: Tensor, labels: Tensor) -> Tensor:
    """Per sample, the mean over the outputs of a loss that compares each with the one-hot label.

    Logits [..., C] and labels [...] to [...].
    """
    functional = torch.nn.functional
    one_hot = functional.one_hot(labels, logits.shape[-1]).to(logits)
    if recipe.loss == "mse_sigmoid":
        return (logits.sigmoid() - one_hot).square().mean(-1)
    clipped = logits.clamp(CLIP, 1 - CLIP)
    return functional.binary_cross_entropy(clipped, one_hot, reduction="none").mean(-1)


def class_weights(y: Tensor, dtype: torch.dtype) -> Tensor:
    """By class, up to the highest that occurs: N / (classes that occur · samples of the class)."""
    counts = torch.bincount(y)
    # A class without samples has no weight to define; it occurs in no training loss either.
    return (len(y) / (counts.count_nonzero() * counts.clamp(min=1))).to(dtype)


def _as_long_as(weight: Tensor | None, logits: Tensor) -> Any:
    """`weight` with ones for the classes that the training labels do not reach."""
    if weight is None or len(weight) == logits.shape[1]:
        return weight
    return torch.cat([weight, weight.new_ones(logits.shape[1] - len(weight))])
