"""The attention of a transformer, its gradient and its relevance, and what is made of them.

Attention is what a softmax over the last axis of [B, heads, L, L] gives (queries × keys),
wherever it is computed: the modules of torch and torchvision, fused or not, or the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments import passes
from experiments.attribution import functions, lrp
from experiments.attribution.batch import Batch
from experiments.attribution.interception import refuse_compiled
from experiments.attribution.lrp_rules import layer_rule
from experiments.attribution.tokens import layout, to_inputs


def attention(batch: Batch) -> tuple[Tensor, ...]:
    """The attention of every layer, [B, heads, L, L] each. 1 F, shared by all targets."""

    def part(rows: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return _recorded(batch.model, rows)[1]

    return batch.once(
        "attention", lambda: passes.in_passes(part, batch.model, batch.x), per_target=False
    )


def attention_gradient(batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The attention, and the gradient of the explained output by it, layer by layer. 1 FB."""

    def part(rows: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            outputs, seen = _recorded(batch.model, rows.detach().requires_grad_())
            found = passes.selected(outputs, wanted).sum()
        gradients = torch.autograd.grad(found, seen, materialize_grads=True)
        return *(weights.detach() for weights in seen), *gradients

    def compute() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        both = passes.in_passes(part, batch.model, batch.x, batch.target)
        middle = len(both) // 2
        weights = batch.once("attention", lambda: both[:middle], per_target=False)
        return weights, both[middle:]

    return batch.once("attention gradient", compute)


def attention_relevance(batch: Batch) -> tuple[Tensor, ...]:
    """LRP's relevance of the attention: z⁺ without biases in every linear layer. 1 FB."""
    rule = layer_rule("zplus", bias="zero")
    scheme = lrp.Scheme(convolution=rule, linear=rule)

    def part(rows: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            outputs, seen = _recorded(
                batch.model, rows.detach().requires_grad_(), lrp.rules(scheme)
            )
        upper = outputs.detach() * lrp.output_weights(outputs, wanted)
        return torch.autograd.grad(outputs, seen, upper, materialize_grads=True)

    return batch.once(
        "attention relevance",
        lambda: passes.in_passes(part, batch.model, batch.x, batch.target),
    )


def _recorded(
    model: nn.Module, x: Tensor, rules: Mapping[Any, functions.Rule] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The outputs, and the attention of every layer in the order of the pass."""
    refuse_compiled("attention", model)
    known = rules or {}
    seen: list[Tensor] = []

    def record(function: Any, *arguments: Any, **options: Any) -> Tensor:
        if function in known:
            found = known[function](function, *arguments, **options)
        else:
            found = function(*arguments, **options)
        if found.ndim > 2 and found.shape[-1] == found.shape[-2]:
            if len(found) % len(x) or (found.ndim == 4 and len(found) != len(x)):
                raise ValueError(
                    f"attention: shape {tuple(found.shape)} for {len(x)} samples; windowed "
                    f"attention has no single map of all tokens"
                )
            # A view for the list; the model goes on with what depends on it.
            seen.append(found.reshape(len(x), -1, *found.shape[-2:]))
            return seen[-1].reshape(found.shape)
        return found

    recording = functions.table((functions.SOFTMAX, record))
    with functions.FunctionRules({**known, **recording}):
        outputs = model(x)
    if not seen:
        raise ValueError(
            f"attention: {type(model).__name__} has no self-attention, "
            f"a softmax over [samples, heads, tokens, tokens]"
        )
    if len({weights.shape[-1] for weights in seen}) > 1:
        raise ValueError(
            f"attention: the layers of {type(model).__name__} have different numbers of tokens"
        )
    return outputs, tuple(seen)


# --- algebra of attention matrices ----------------------------------------------------------------


def fuse(heads: Tensor, how: str) -> Tensor:
    """[B, heads, L, L] -> [B, L, L]: the mean, max or min over heads."""
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda found: found.mean(1),
        "max": lambda found: found.amax(1),
        "min": lambda found: found.amin(1),
    }
    return ways[how](heads)


def discard(matrix: Tensor, share: float) -> Tensor:
    """Without the lowest `share` of the L² entries of each sample; ties at the border stay."""
    count = int(share * matrix[0].numel())
    if count == 0:
        return matrix
    border = matrix.flatten(1).kthvalue(count + 1).values
    return torch.where(matrix < border[:, None, None], 0, matrix)


def rollout(
    layers: Sequence[Tensor], residual: float, discarded: float = 0.0, normalise: bool = True
) -> Tensor:
    """Π_l Â_l, the last layer first, with Â = (1 − r) A + r I, rows normalised to sum 1.

    Not normalised, Â = A + I. A row of zeros stays one. [B, L, L] each -> [B, L, L].
    """
    identity = torch.eye(layers[0].shape[-1]).to(layers[0])
    product = identity
    for layer in layers:
        kept = discard(layer, discarded)
        if normalise:
            mixed = (1 - residual) * kept + residual * identity
            total = mixed.sum(-1, keepdim=True)
            mixed = mixed / torch.where(total == 0, 1, total)
        else:
            mixed = kept + identity
        product = mixed @ product
    return product


def of_inputs(
    matrix: Tensor, x: Tensor, queries: str, special: int | None, interpolation: str
) -> Tensor:
    """From relevances [B, query tokens, key tokens] to a map like x.

    `queries` says which rows count: "cls" the first, or the "mean", "sum" or "max" of all;
    "auto" is "cls" if there are special tokens, else "mean".
    """
    reduce: dict[str, Callable[[], Tensor]] = {
        "cls": lambda: matrix[:, 0],
        "mean": lambda: matrix.mean(1),
        "sum": lambda: matrix.sum(1),
        "max": lambda: matrix.amax(1),
    }
    if queries == "auto":
        count, _ = layout(matrix.shape[-1], tuple(x.shape[1:]), special)
        queries = "cls" if count else "mean"
    return to_inputs(reduce[queries](), x, special, interpolation)
