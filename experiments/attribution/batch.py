"""Some samples to be explained, and all that has been computed about them so far."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from experiments import passes
from experiments.attribution.registry import Method, resolve
from experiments.data.dataset import Truth
from experiments.randomness import Index, SampleGenerators, derive_seed, isolated_rng

T = TypeVar("T")

MEMORY = 2**29  # bytes that batches made of one batch may keep before maps are dropped


class Batch:
    """Samples x [B, ...] of one model, with the output of each that is to be explained.

    Methods and scores ask the batch for what they need; what two of them need is computed once
    (`once`). Other inputs, targets or weights for the same samples are batches of their own
    (`variant`, `expanded`, `at`, `under`), with memories of their own.

    Attributes:
        model: in eval mode, its weights without gradients (see `driver.untouched`).
        x: inputs in the model's precision and on its device.
        target: classes int64 [B], or weights of outputs, float [B, K]; see `passes.selected`.
        baseline: what an absent input looks like, of the shape of x[0].
        seed, indices: random numbers of sample i are those of (seed, indices[i], purpose).
        truth: what is known of these samples, for methods that need it.
        background: samples [M, ...] that stand for the data, for methods that compare with it.
        regions: bool [B, O, ...] per role, the objects in these samples, as `scoring.Context`.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        target: Tensor,
        *,
        baseline: Tensor,
        seed: int,
        indices: Sequence[Index],
        truth: Truth | None = None,
        background: Tensor | None = None,
        regions: Mapping[str, Tensor] | None = None,
        purpose: str = "",
        of_model: dict[Hashable, Any] | None = None,
    ) -> None:
        self.model = model
        self.x = x
        self.target = target
        self.baseline = baseline
        self.seed = seed
        self.indices = list(indices)
        self.truth = truth
        self.background = background
        self.regions = regions or {}
        self.purpose = purpose
        # What no sample changes; the batches of one model hand it on.
        self._of_model: dict[Hashable, Any] = {} if of_model is None else of_model
        self._of_inputs: dict[Hashable, Any] = {}
        self._of_target: dict[Hashable, Any] = {}
        self._group: list[Batch] = []

    def __len__(self) -> int:
        return len(self.x)

    def generator(self, purpose: str) -> SampleGenerators:
        """Fresh random streams, one per sample. The same purpose gives the same numbers."""
        return SampleGenerators(self.seed, self.indices, self.purpose + purpose)

    def once(
        self,
        key: Hashable,
        compute: Callable[[], T],
        *,
        per_target: bool = True,
        per_model: bool = False,
    ) -> T:
        """`compute()`, remembered under `key`; not `per_target`: for all targets alike;
        `per_model`: for all samples, too, of all batches of the model."""
        memory = self._of_target if per_target else self._of_inputs
        if per_model:
            memory = self._of_model
        if key not in memory:
            memory[key] = compute()
        return memory[key]

    # --- what many ask for ---

    def outputs(self) -> Tensor:
        """All outputs [B, K]; free if a gradient was asked for before."""
        return self.once("outputs", lambda: passes.outputs(self.model, self.x), per_target=False)

    def selected(self) -> Tensor:
        """The explained output of each sample, [B]."""
        return passes.selected(self.outputs(), self.target)

    def gradient(self) -> Tensor:
        """Gradient of the explained output with respect to the input, [B, ...].

        For batches that `each` made: of all their targets at once, by a single forward.
        """

        def compute() -> Tensor:
            group = self._group or [self]
            classes = torch.stack([batch.target for batch in group], 1)
            if len(group) == 1:
                classes = self.target
            gradient, outputs = passes.gradients(self.model, self.x, classes)
            self._of_inputs.setdefault("outputs", outputs)
            if len(group) == 1:
                return gradient
            for column, batch in enumerate(group):
                batch._of_target.setdefault("gradient", gradient[:, column])
            return self._of_target["gradient"]

        return self.once("gradient", compute)

    def baseline_outputs(self) -> Tensor:
        """All outputs [1, K] of the baseline: one pass of one row for all batches of the model."""
        return self.once(
            "baseline outputs",
            lambda: passes.outputs(self.model, self.baseline[None]),
            per_model=True,
        )

    def maps(self, spec: str | Mapping[str, Any]) -> Tensor:
        """The raw, signed maps [B, ...] of a method on this batch, computed once."""
        method, parameters = resolve(spec)
        full = {**method.defaults, **parameters}
        return self.once(_name_of(method, full), lambda: self._run(method, full))

    def remember(self, spec: str | Mapping[str, Any], maps: Tensor) -> None:
        """Take these for the maps of a method, instead of running it."""
        method, parameters = resolve(spec)
        self._of_target[_name_of(method, {**method.defaults, **parameters})] = maps.to(self.x)

    def _run(self, method: Method, parameters: dict[str, Any]) -> Tensor:
        known: dict[str, Any] = {"truth": self.truth} if method.needs_truth else {}
        if method.takes_batch:
            known["batch"] = self
        purpose = f"attribution/{method.name}"
        # Only a library's hidden draws need the global state; setting it costs more than a map.
        isolated = method.stochastic and method.library not in ("assay", "zennit")
        seed = derive_seed("attribution", method.name, self.seed, self.purpose)
        with isolated_rng(seed) if isolated else nullcontext():
            found = method.function(
                self.model,
                self.x.detach().clone(),
                self.target,
                baseline=self.baseline,
                generator=self.generator(purpose),
                **known,
                **parameters,
            )
        if found.shape != self.x.shape:
            raise ValueError(
                f"method {method.name!r} returned shape {tuple(found.shape)} "
                f"for inputs of shape {tuple(self.x.shape)}"
            )
        return found.detach()

    def trim(self, limit: int = MEMORY) -> None:
        """Forget the maps of the batches made of this one, if all that is kept exceeds `limit`
        bytes; what maps are made of stays, and the maps of this very batch."""
        inner = [batch for batch in self._family() if batch is not self]
        if sum(batch._bytes() for batch in inner) > limit:
            for batch in inner:
                for key in [k for k in batch._of_target if isinstance(k, tuple) and k[0] == "maps"]:
                    del batch._of_target[key]

    def _family(self) -> Iterator[Batch]:
        yield self
        for value in [*self._of_target.values(), *self._of_inputs.values()]:
            if isinstance(value, Batch):
                yield from value._family()

    def _bytes(self) -> int:
        kept = [self.x, *self._of_target.values(), *self._of_inputs.values()]
        return sum(t.numel() * t.element_size() for t in kept if isinstance(t, Tensor))

    # --- the same samples, otherwise ---

    def at(self, target: Tensor) -> Batch:
        """The same samples with another target; what depends on no target is shared."""
        other = self._copy(self.x, target)
        other._of_inputs = self._of_inputs
        return other

    def each(self, targets: Tensor) -> list[Batch]:
        """The same samples with several classes each, int64 [B, T]: one batch per column."""
        group = [self.at(column) for column in targets.T]
        for batch in group:
            batch._group = group
        return group

    def variant(self, name: str, make: Callable[[], Tensor]) -> Batch:
        """The same samples and targets with other inputs, `make()` [B, ...], made once.

        `name` stands for the inputs: the same name is the same batch, and a random draw in it
        differs from that of other names.
        """

        def compute() -> Batch:
            return self._copy(make(), self.target, purpose=f"{self.purpose}{name}/")

        return self.once(("variant", name), compute)

    def expanded(self, name: str, make: Callable[[], Tensor]) -> Batch:
        """B × S rows of several inputs per sample, `make()` [B, S, ...], sample by sample."""

        def compute() -> Batch:
            inputs = make()
            several = inputs.shape[1]
            indices = [(*_tuple(i), s) for i in self.indices for s in range(several)]
            target = self.target.repeat_interleave(several, 0)
            purpose = f"{self.purpose}{name}/"
            return self._copy(inputs.flatten(0, 1), target, purpose=purpose, indices=indices)

        return self.once(("expanded", name), compute)

    def under(self, name: str, model: nn.Module) -> Batch:
        """The same samples and targets under other weights, called `name`.

        The random draws stay those of the original, so that only the weights differ.
        """
        return self.once(("under", name), lambda: self._copy(self.x, self.target, model=model))

    def _copy(
        self,
        x: Tensor,
        target: Tensor,
        *,
        model: nn.Module | None = None,
        indices: Sequence[Index] | None = None,
        purpose: str | None = None,
    ) -> Batch:
        return Batch(
            model or self.model,
            x,
            target,
            baseline=self.baseline,
            seed=self.seed,
            indices=indices or self.indices,
            truth=self.truth if len(x) == len(self) else None,
            background=self.background,
            regions=self.regions if len(x) == len(self) else None,
            purpose=self.purpose if purpose is None else purpose,
            of_model=self._of_model if model is None else None,
        )


def _name_of(method: Method, parameters: Mapping[str, Any]) -> Hashable:
    return "maps", method.name, _frozen(parameters)


def _tuple(index: Index) -> tuple[int, ...]:
    return index if isinstance(index, tuple) else (index,)


def _frozen(value: Any) -> Hashable:
    """A parameter as a key: lists and mappings by content."""
    if isinstance(value, Mapping):
        return tuple(sorted((name, _frozen(item)) for name, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    return value
