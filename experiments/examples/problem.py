"""Training and test samples of one model, and all that has been computed about them so far."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from experiments import lazy
from experiments.examples import layers, losses
from experiments.examples.registry import resolve
from experiments.randomness import SampleGenerators, derive_seed, isolated_rng

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from experiments import passes
    from experiments.attribution import driver
else:
    torch = lazy.load("torch")
    nn = lazy.load("torch.nn")
    passes = lazy.load("experiments.passes")
    driver = lazy.load("experiments.attribution.driver")

T = TypeVar("T")
Side = Literal["train", "test"]
State = Mapping[str, "Tensor"]

# Gradients of examples that are held at once; more of them are computed block by block.
GRADIENT_BYTES = 2**30


def importance(
    spec: str | Mapping[str, Any],
    model: nn.Module,
    train_x: Tensor,
    train_y: Tensor | None,
    test_x: Tensor,
    test_y: Tensor | None,
    **known: Any,
) -> Tensor:
    """The importance [N_test, N_train] of each training example for each test sample.

    Higher: the training example speaks for the test sample (see the package's documentation).
    `known` are the other arguments of `Examples`; several methods of the same samples are cheaper
    through one of these. Raises ValueError as `Examples` and its `importance` do.
    """
    return Examples(model, train_x, train_y, test_x, test_y, **known).importance(spec)


class Examples:
    """Training and test samples of a model. What several methods need is computed once.

    Args:
        model: any module; it computes in eval mode and is left as it was found.
        train_x, test_x: the examples and the samples, [N_train, ...] and [N_test, ...].
        train_y, test_y: what the loss compares with: classes int64 [N] or numbers; None for a
            loss that needs no labels.
        loss: name of a loss, or a function; see `losses`.
        encoder: whose outputs are the latents: a module of its own, the dotted name of a layer of
            the model, or None for the model itself. Latents [N, ...] are flattened to [N, d].
        weights: dotted names of layers or parameters of the model; gradients are taken with
            respect to these only. All parameters by default.
        checkpoints: state dicts of the model from its training, for methods that follow it.
        fitted_on: the inputs and labels whose mean loss the weights minimise, where that is more
            than the training examples to be rated.
        seed, indices: the random numbers of test sample i are those of (seed, indices[i]).
        batch_size: rows at a time; by default what suits the model and the device.

    Raises:
        ValueError: no samples, a label missing, an unknown loss, layer or parameter, or a
            checkpoint of another model.
    """

    def __init__(
        self,
        model: nn.Module,
        train_x: Tensor,
        train_y: Tensor | None,
        test_x: Tensor,
        test_y: Tensor | None,
        *,
        loss: str | losses.Loss = "cross_entropy",
        encoder: nn.Module | str | None = None,
        weights: str | Sequence[str] | None = None,
        checkpoints: Sequence[State] = (),
        fitted_on: tuple[Tensor, Tensor | None] | None = None,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.x = {"train": self._placed(train_x), "test": self._placed(test_x)}
        self.y = {"train": self._placed(train_y), "test": self._placed(test_y)}
        for side in ("train", "test"):
            self._check_sizes(side, self.x[side], self.y[side])
        self._loss = loss
        self.encoder = encoder
        self.weights = layers.selected(model, weights)
        self.checkpoints = [self._state(i, state) for i, state in enumerate(checkpoints)]
        given = (train_x, train_y) if fitted_on is None else fitted_on
        self.fitted_x, self.fitted_y = (self._placed(part) for part in given)
        self._check_sizes("fitted_on", self.fitted_x, self.fitted_y)
        self.seed = seed
        self.indices = range(len(test_x)) if indices is None else [int(i) for i in indices]
        self.batch_size = batch_size
        self._memory: dict[Hashable, Any] = {}

    def importance(self, spec: str | Mapping[str, Any]) -> Tensor:
        """The importance [N_test, N_train] by a method, in the model's precision.

        Raises ValueError for an unknown method or parameter, for what the method needs and these
        examples lack, and for a result of the wrong shape or with NaN.
        """
        method, parameters = resolve(spec)
        seed = derive_seed("examples", method.name, self.seed)
        with self.untouched(), isolated_rng(seed):  # for plugins and models that draw globally
            found = method.function(self, **{**method.defaults, **parameters})
        shape = (len(self.x["test"]), len(self.x["train"]))
        if tuple(found.shape) != shape:
            raise ValueError(
                f"example method {method.name!r} returned shape {tuple(found.shape)}, "
                f"not [N_test, N_train] = {shape}"
            )
        if not found.isfinite().all():
            row = int((~found.isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f"example method {method.name!r} gave NaN or infinity for test sample "
                f"{self.indices[row]}"
            )
        return found.detach()

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, remembered under `key` for all methods of these examples."""
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]

    def generator(self, purpose: str) -> SampleGenerators:
        """Random streams, one per test sample."""
        return SampleGenerators(self.seed, self.indices, f"examples/{purpose}")

    def shared_generator(self, purpose: str) -> SampleGenerators:
        """One random stream for all samples."""
        return SampleGenerators(self.seed, [0], f"examples/{purpose}")

    # --- representations ---

    def latents(self, side: Side) -> Tensor:
        """Representations [N, d] of the training or the test samples. N F, once."""
        return self.once(("latents", side), lambda: self._encoded(self.x[side]))

    def _encoded(self, x: Tensor) -> Tensor:
        layer = self.encoder
        with self.untouched(), torch.no_grad():
            if isinstance(layer, str):
                run = layers.until(self.model, layer)
            else:
                run = self.model if layer is None else layer
            found = self._in_parts(run, x)
        return found.reshape(len(found), -1)

    # --- gradients ---

    @property
    def size(self) -> int:
        """P: how many weights the gradients are taken of."""
        return sum(self.model.get_parameter(name).numel() for name in self.weights)

    def blocks(self, side: Side) -> Iterator[slice]:
        """The rows of a side in blocks whose gradients fit into the memory meant for them."""
        rows = max(1, GRADIENT_BYTES // (self.size * self.x[side].element_size()))
        for start in range(0, len(self.x[side]), rows):
            yield slice(start, min(start + rows, len(self.x[side])))

    def gradients(self, side: Side, rows: slice, checkpoint: int | None = None) -> Tensor:
        """Gradients [rows, P] of the loss of single examples with respect to the weights.

        Under the current weights, or those of a checkpoint. One FB per row; remembered if the
        gradients of both sides fit into the memory meant for them.
        """

        def compute() -> Tensor:
            y = self.y[side]
            labels = () if y is None else (y[rows],)
            with self.untouched(), layers.exact_kernels(self.model):
                return self._in_parts(
                    self._example_gradients(checkpoint), self.x[side][rows], *labels
                )

        everything = (len(self.x["train"]) + len(self.x["test"])) * self.size
        if everything * self.x[side].element_size() > GRADIENT_BYTES:
            return compute()
        return self.once(("gradients", side, rows.start, rows.stop, checkpoint), compute)

    def loss(self, vector: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """The losses [B] of rows x as a differentiable function of the weights as a vector [P]."""
        return self._loss_of(self._split(vector), self._fixed(None), x, y)

    def vector(self, checkpoint: int | None = None) -> Tensor:
        """The weights, flattened to [P]."""
        state = self._tensors(checkpoint)
        return torch.cat([state[name].detach().flatten() for name in self.weights])

    def _example_gradients(self, checkpoint: int | None) -> Callable[..., Tensor]:
        """A function of rows x (and y) that gives their gradients [B, P]."""
        fixed = self._fixed(checkpoint)
        state = self._tensors(checkpoint)
        free = {name: state[name].detach() for name in self.weights}

        def loss(free: State, x: Tensor, y: Tensor | None = None) -> Tensor:
            return self._loss_of(free, fixed, x[None], None if y is None else y[None])[0]

        def gradients(x: Tensor, *y: Tensor) -> Tensor:
            given, along = free, None
            if layers.recurrent(
                self.model
            ):  # their kernels write in place, into what must be batched
                given = {name: w.expand(len(x), *w.shape) for name, w in free.items()}
                along = 0
            axes = (along, *(0 for _ in (x, *y)))
            found = torch.func.vmap(torch.func.grad(loss), axes, randomness="different")(
                given, x, *y
            )
            return torch.cat([found[name].flatten(1) for name in self.weights], 1)

        return gradients

    def _loss_of(self, free: State, fixed: State, x: Tensor, y: Tensor | None) -> Tensor:
        labelled = self.y["train"] is not None and self.y["test"] is not None
        function = losses.named(self._loss, labelled)

        def predict(inputs: Tensor) -> Tensor:
            return torch.func.functional_call(self.model, {**fixed, **free}, (inputs,))

        return function(predict, x, y)

    def _split(self, vector: Tensor) -> dict[str, Tensor]:
        shapes = [self.model.get_parameter(name).shape for name in self.weights]
        parts = vector.split([shape.numel() for shape in shapes])
        return {
            name: part.view(shape)
            for name, part, shape in zip(self.weights, parts, shapes, strict=True)
        }

    def _tensors(self, checkpoint: int | None) -> State:
        return (
            layers.named_tensors(self.model) if checkpoint is None else self.checkpoints[checkpoint]
        )

    def _fixed(self, checkpoint: int | None) -> State:
        free = set(self.weights)
        return {n: t.detach() for n, t in self._tensors(checkpoint).items() if n not in free}

    # --- the small print ---

    def _in_parts(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        if self.batch_size is None:
            return passes.in_passes(function, self.model, *rows)[0]
        parts = zip(*(tensor.split(self.batch_size) for tensor in rows), strict=True)
        return torch.cat([function(*part) for part in parts])

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Eval mode and frozen weights inside; model and encoder as they were afterwards."""
        with ExitStack() as stack:
            stack.enter_context(driver.untouched(self.model))
            if isinstance(self.encoder, nn.Module):
                stack.enter_context(driver.untouched(self.encoder))
            yield

    def _placed(self, values: Any) -> Any:
        """On the model's device; numbers in its precision."""
        if values is None:
            return None
        weight = next(self.model.parameters(), values)
        if values.is_floating_point():
            return values.detach().to(weight)
        return values.to(weight.device)

    def _check_sizes(self, side: str, x: Tensor, y: Tensor | None) -> None:
        if len(x) == 0:
            raise ValueError(f"example importance: no samples in {side}")
        if y is not None and len(y) != len(x):
            raise ValueError(f"example importance: {side} has {len(x)} samples, {len(y)} labels")

    def _state(self, number: int, state: State) -> State:
        placed = {}
        for name, tensor in layers.named_tensors(self.model).items():
            if name not in state or state[name].shape != tensor.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(
                    f"checkpoints[{number}] is not of this model: {name!r} should be of shape "
                    f"{tuple(tensor.shape)}, found {found}"
                )
            placed[name] = state[name].detach().to(tensor)
        return placed
