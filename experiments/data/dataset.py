"""What every study is given: three splits, and the truth about the test samples if it is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Samples `x` [N, ...] (float), their classes `y` [N] and stable ids `index` [N] (both int64).

    Two samples of a dataset that share an id are the same sample: oversampling repeats ids.
    """

    x: Tensor
    y: Tensor
    index: Tensor

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.index):
            sizes = f"x {len(self.x)}, y {len(self.y)}, index {len(self.index)}"
            raise ValueError(f"a split needs one x, y and index per sample, got {sizes}")

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known about the information in the test samples.

    A set of inputs is sufficient for a sample if fixing them to the sample's values decides its
    class, whatever the others are; it is minimal if no proper subset is sufficient. The sets
    depend on a sample only through its logical pattern, so they are kept once per pattern.

    sufficient  bool [P, M, D]  minimal sufficient sets of each pattern, padded with empty ones
    valid       bool [P, M]     which of them are sets, not padding
    pattern     int64 [N]       the pattern of each test sample
    irrelevant  bool [D]        the inputs that no class depends on
    """

    sufficient: Tensor
    valid: Tensor
    pattern: Tensor
    irrelevant: Tensor

    @cached_property
    def relevant(self) -> Tensor:
        """bool [N, D]: the input is in at least one minimal sufficient set of the sample."""
        return self.sufficient.any(1)[self.pattern]

    @cached_property
    def necessary(self) -> Tensor:
        """bool [N, D]: the input is in all minimal sufficient sets of the sample."""
        everywhere = (self.sufficient | ~self.valid.unsqueeze(-1)).all(1)
        return (everywhere & self.valid.any(1, keepdim=True))[self.pattern]

    @cached_property
    def sets(self) -> tuple[Tensor, Tensor]:
        """All (sample, minimal sufficient set) pairs, without padding: int64 [T], bool [T, D]."""
        sample, which = self.valid[self.pattern].nonzero(as_tuple=True)
        return sample, self.sufficient[self.pattern[sample], which]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits, the number of classes, what is known of the test samples, and JSON facts (`meta`)."""

    train: Split
    validation: Split
    test: Split
    n_classes: int
    truth: Truth | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Nested dicts of tensors and JSON values: `torch.load(weights_only=True)` reads it."""
        return {
            "train": _tensors(self.train),
            "validation": _tensors(self.validation),
            "test": _tensors(self.test),
            "n_classes": self.n_classes,
            "truth": None if self.truth is None else _tensors(self.truth),
            "meta": self.meta,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Dataset:
        return cls(
            train=Split(**state["train"]),
            validation=Split(**state["validation"]),
            test=Split(**state["test"]),
            n_classes=state["n_classes"],
            truth=None if state["truth"] is None else Truth(**state["truth"]),
            meta=state["meta"],
        )

    def content_hash(self) -> str:
        """SHA-256 over every value, shape and type; equal content gives an equal hash."""
        digest = hashlib.sha256()
        for name, value in _leaves(self.state()):
            if hasattr(value, "numpy"):
                array = value.detach().cpu().contiguous().numpy()
                head, body = [name, str(array.dtype), list(array.shape)], array.tobytes()
            else:
                head, body = [name, "json"], json.dumps(value, sort_keys=True).encode()
            digest.update(json.dumps([*head, len(body)]).encode())
            digest.update(body)
        return digest.hexdigest()


def _tensors(part: Split | Truth) -> dict[str, Any]:
    return {item.name: getattr(part, item.name) for item in fields(part)}


def _leaves(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in state.items():
        if name in ("train", "validation", "test", "truth") and value is not None:
            yield from ((f"{name}.{key}", tensor) for key, tensor in value.items())
        else:
            yield name, value
