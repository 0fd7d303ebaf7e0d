"""ANDOR: every input of a logical formula over symbols, with exact knowledge of what matters.

Schwenke & Atzmueller, *Saliency Methods are Encoders* (arXiv 2412.16204). A sample is a row of D
symbols. Some symbols count as true; AND, OR and XOR gates over neighbouring inputs, joined by one
gate on top, give the class, or a formula of any depth; the last inputs are used by no gate. The
data are all S^D rows, or, where these are too many, a sample of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from experiments.data.andor_rows import (
    MAX_ROWS,
    digits_of,
    is_true,
    numbers_of,
    sample_rows,
    split_rows,
)
from experiments.data.dataset import Dataset, Split, Truth
from experiments.data.formula import Gate, Kind, parse
from experiments.data.sufficiency import MAX_INPUTS, minimal_sufficient_sets
from experiments.messages import one_line

if TYPE_CHECKING:
    import numpy as np
    import torch

MASK_VALUE = -2.0  # what the study writes over a masked input; symbols lie in [-1, 1]

Count = Annotated[int, Field(ge=0)]
Expression = Annotated[str, AfterValidator(lambda text: re.sub(r"\s*,\s*", ", ", text.strip()))]

# What an expression takes the place of.
GATES = (
    "ands", "and_arity", "ors", "or_arity", "xors", "xor_arity", "toplevel", "or_offset",
    "xor_offset",
)  # fmt: skip


class AndorSpec(BaseModel):
    """Which formula, over which symbols, split how. The defaults are the paper's 2inBinary.

    `preset="fixed"`: every distinct row occurs once. Without a test size, train, validation and
    test are all rows (the question is then what the model made of a function it has seen whole);
    with one, rows are split by class, and no row is in two splits. Classes stay as unbalanced as
    the formula makes them: weight the loss.

    `preset="paper"`: what the paper computed. The training rows are oversampled to balance
    *before* they are split into folds, so that copies of a row are in training and validation;
    the test rows are not split by class, and may lack one.

    Gates that differ in size, or deeper formulas, are written as an `expression` over inputs
    0, 1, ...: "and(0, or(1, 2, 3), xor(4, and(5, 6)))"; then `ands`, `and_arity`, ... `toplevel`
    and the offsets stay at their defaults. What `xor` means is the parameter of that name.

    `rows` takes that many distinct rows by chance instead of all of them, to be drawn by `seed`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    symbols: Annotated[int, Field(ge=2, le=MAX_ROWS)] = 2
    true_indexes: tuple[int, ...] = (1,)
    ands: Count = 1
    and_arity: Annotated[int, Field(ge=1)] = 2
    ors: Count = 1
    or_arity: Annotated[int, Field(ge=1)] = 2
    xors: Count = 1
    xor_arity: Annotated[int, Field(ge=1)] = 2
    expression: Expression | None = None
    irrelevant: Annotated[int, Field(ge=0, le=62)] = 2
    toplevel: Literal["and", "or", "xor"] = "and"
    xor: Literal["exactly_one", "parity"] = "exactly_one"
    or_offset: Count = 0
    xor_offset: Count = 0
    redundant: tuple[tuple[int, int], ...] = ()
    rows: Annotated[int, Field(ge=2, le=MAX_ROWS)] | None = None
    test_size: Annotated[float, Field(ge=0, lt=1)] = 0.0
    preset: Literal["fixed", "paper"] = "fixed"
    fold: Count = 0
    folds: Annotated[int, Field(ge=2)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42

    @property
    def arities(self) -> list[tuple[Kind, int]]:
        """Kind and number of inputs of each gate, in the order of the inputs, if there is no
        expression."""
        gates: list[tuple[Kind, int]] = []
        gates += [("and", self.and_arity)] * self.ands
        gates += [("or", self.or_arity - self.or_offset)] * self.ors
        gates += [(self.xor, self.xor_arity - self.xor_offset)] * self.xors
        return gates

    @property
    def used(self) -> int:
        """R, the number of inputs of the formula; the `irrelevant` ones come after them."""
        if self.expression is not None:
            return len(self.formula.inputs)
        return sum(arity for _, arity in self.arities)

    @property
    def inputs(self) -> int:
        """D."""
        return self.used + self.irrelevant

    @property
    def formula(self) -> Gate:
        if self.expression is not None:
            return parse(self.expression, self.xor)
        gates, first = [], 0
        for kind, arity in self.arities:
            gates.append(Gate(kind, tuple(range(first, first + arity))))
            first += arity
        return Gate(self.xor if self.toplevel == "xor" else self.toplevel, tuple(gates))

    @property
    def values(self) -> list[float]:
        """The numbers that stand for the symbols: evenly spaced over [-1, 1], to 4 digits."""
        half = (self.symbols - 1) / 2
        return [round((i - half) / half, 4) for i in range(self.symbols)]

    @model_validator(mode="after")
    def _is_a_dataset(self) -> AndorSpec:
        for complaint in self._complaints():
            raise ValueError(complaint)
        return self

    def _complaints(self) -> list[str]:
        """What is wrong, the first thing first. Later checks may rely on earlier ones."""
        true = set(self.true_indexes)
        if not true <= set(range(self.symbols)) or len(true) != len(self.true_indexes):
            return [
                f"true_indexes: {list(self.true_indexes)} must be distinct numbers from 0 to "
                f"{self.symbols - 1}, since symbols is {self.symbols}"
            ]
        if not 0 < len(true) < self.symbols:
            return ["true_indexes: some symbols, but not all, must count as true"]
        if self.expression is not None:
            if complaint := self._expression_complaint():
                return [complaint]
        elif not self.arities:
            return ["ands, ors and xors are all 0: the formula needs at least one gate"]
        for kind in ("or", "xor"):
            arity, offset = getattr(self, f"{kind}_arity"), getattr(self, f"{kind}_offset")
            if getattr(self, f"{kind}s") and offset >= arity:
                return [f"{kind}_offset: {offset} leaves no input of {kind}_arity {arity}"]
        if self.used > MAX_INPUTS:
            return [
                f"the formula has {self.used} inputs; its truth is computed for at most "
                f"{MAX_INPUTS}: use fewer gates or smaller arities"
            ]
        rows = self.symbols**self.inputs
        if rows > MAX_ROWS and self.rows is None:
            return [
                f"{self.symbols} symbols at {self.inputs} inputs are {rows:,} rows; at most "
                f"{MAX_ROWS:,} are enumerated: use fewer symbols or inputs, or give rows, the "
                f"number to draw of them"
            ]
        if rows >= 2**63:
            return [
                f"{self.symbols} symbols at {self.inputs} inputs are more than 2^63 rows: use "
                f"fewer symbols or inputs"
            ]
        sources, copies = {s for s, _ in self.redundant}, [c for _, c in self.redundant]
        if not (sources | set(copies)) <= set(range(self.used)):
            return [
                f"redundant: [source, copy] pairs name inputs of the formula, 0 to {self.used - 1}"
            ]
        if len(set(copies)) != len(copies) or sources & set(copies):
            return ["redundant: an input is copied to at most once, and never from a copy"]
        distinct = self.symbols ** (self.inputs - len(copies))
        if self.rows is not None and self.rows > distinct:
            return [f"rows: {self.rows:,} of only {distinct:,} distinct rows; give fewer, or none"]
        if self.fold >= self.folds:
            return [f"fold: {self.fold} must be less than folds, {self.folds}"]
        return []

    def _expression_complaint(self) -> str | None:
        try:
            found = self.formula.inputs
        except ValueError as error:
            return f"expression: {error}"
        if missing := set(range(max(found) + 1)) - found:
            return (
                f"expression: {self.expression!r} has no input {min(missing)}; number them 0, 1, "
                f"... without gaps (irrelevant inputs come after them, by irrelevant)"
            )
        for name in GATES:
            if getattr(self, name) != AndorSpec.model_fields[name].default:
                return f"{name}: has no effect with an expression; leave it out"
        return None


def generate(spec: dict[str, Any] | AndorSpec) -> Dataset:
    """The rows of a formula, split, with the minimal sufficient sets of the test rows.

    `x` is float32 [N, D]; an `index` is a row's number in the enumeration. `meta` holds the spec,
    the formula as a tree and the values of the symbols.

    Raises ValueError, in one line, if the spec is no dataset or its formula is constant (in the
    rows drawn, if not all are taken).
    """
    import numpy as np
    import torch

    if not isinstance(spec, AndorSpec):
        try:
            spec = AndorSpec.model_validate(spec)
        except ValidationError as error:
            raise ValueError(one_line("andor", error, AndorSpec.model_fields)) from None

    formula = spec.formula
    numbers = sample_rows(spec) if spec.rows else np.arange(spec.symbols**spec.inputs)
    digits = digits_of(spec, numbers)
    bits = is_true(spec, digits)
    y = formula(bits).astype(np.int64)
    if y.min() == y.max():
        raise ValueError(f"andor: the formula is always {bool(y[0])}; there is only one class")
    train, validation, test = split_rows(spec, numbers_of(spec, digits) == numbers, y)

    x = torch.tensor(spec.values, dtype=torch.float32)[torch.from_numpy(digits)]
    labels = torch.from_numpy(y)

    def split(rows: np.ndarray) -> Split:
        where = torch.from_numpy(rows)
        return Split(x[where], labels[where], torch.from_numpy(numbers[rows]))

    return Dataset(
        train=split(train),
        validation=split(validation),
        test=split(test),
        n_classes=2,
        truth=_truth(spec, bits[test]),
        meta={
            "dataset": "andor",
            "spec": spec.model_dump(mode="json"),
            "symbols": spec.values,
            "true_indexes": list(spec.true_indexes),
            "inputs": spec.inputs,
            "irrelevant": spec.irrelevant,
            "formula": formula.to_json(),
            "mask_value": MASK_VALUE,
        },
    )


def truth_of(samples: Dataset, x: torch.Tensor) -> Truth:
    """What `samples.truth` says of the test rows, of any rows x [N, D] of the same formula."""
    import dataclasses

    import numpy as np
    import torch

    spec = AndorSpec.model_validate(samples.meta["spec"])
    symbols = torch.tensor(spec.values, dtype=x.dtype)
    digits = (x.unsqueeze(-1) - symbols).abs().argmin(-1).numpy()
    pattern = is_true(spec, digits)[:, : spec.used] @ (1 << np.arange(spec.used))
    assert samples.truth is not None
    return dataclasses.replace(samples.truth, pattern=torch.from_numpy(pattern))


def _truth(spec: AndorSpec, bits: np.ndarray) -> Truth:
    import numpy as np
    import torch

    patterns = (np.arange(2**spec.used)[:, None] >> np.arange(spec.used) & 1).astype(bool)
    reachable = np.ones(len(patterns), dtype=bool)
    for source, copy in spec.redundant:
        reachable &= patterns[:, source] == patterns[:, copy]
    sets, valid = minimal_sufficient_sets(spec.formula(patterns), reachable)
    return Truth(
        sufficient=torch.from_numpy(np.pad(sets, ((0, 0), (0, 0), (0, spec.irrelevant)))),
        valid=torch.from_numpy(valid),
        pattern=torch.from_numpy(bits[:, : spec.used] @ (1 << np.arange(spec.used))),
        irrelevant=~torch.from_numpy(np.pad(sets.any((0, 1)), (0, spec.irrelevant))),
    )
