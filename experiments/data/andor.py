"""ANDOR: every input of a logical formula over symbols, with exact knowledge of what matters.

Schwenke & Atzmueller, *Saliency Methods are Encoders* (arXiv 2412.16204). A sample is a row of D
symbols. Some symbols count as true; AND, OR and XOR gates over neighbouring inputs, joined by one
gate on top, give the class; the last inputs are used by no gate. The data are all S^D rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from experiments.data.dataset import Dataset, Split, Truth
from experiments.data.sufficiency import MAX_INPUTS, minimal_sufficient_sets
from experiments.messages import one_line

if TYPE_CHECKING:
    import numpy as np

MAX_ROWS = 2**20
MASK_VALUE = -2.0  # what the study writes over a masked input; symbols lie in [-1, 1]

Kind = Literal["and", "or", "exactly_one", "parity"]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Gate:
    """A Boolean function of inputs (by number) and of other gates."""

    kind: Kind
    children: tuple[Gate | int, ...]

    def __call__(self, bits: np.ndarray) -> np.ndarray:
        """The value [...] of the gate for inputs `bits` (bool [..., D])."""
        import numpy as np

        values = [c(bits) if isinstance(c, Gate) else bits[..., c] for c in self.children]
        true = np.sum(values, axis=0)
        match self.kind:
            case "and":
                return true == len(self.children)
            case "or":
                return true > 0
            case "exactly_one":
                return true == 1
            case "parity":
                return true % 2 == 1

    def to_json(self) -> dict[str, Any]:
        children = [c.to_json() if isinstance(c, Gate) else c for c in self.children]
        return {"kind": self.kind, "children": children}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Gate:
        children = (cls.from_json(c) if isinstance(c, dict) else c for c in tree["children"])
        return cls(tree["kind"], tuple(children))


class AndorSpec(BaseModel):
    """Which formula, over which symbols, split how. The defaults are the paper's 2inBinary.

    `preset="fixed"`: every distinct row occurs once. Without a test size, train, validation and
    test are all rows (the question is then what the model made of a function it has seen whole);
    with one, rows are split by class, and no row is in two splits. Classes stay as unbalanced as
    the formula makes them: weight the loss.

    `preset="paper"`: what the paper computed. The training rows are oversampled to balance
    *before* they are split into folds, so that copies of a row are in training and validation;
    the test rows are not split by class, and may lack one.
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
    irrelevant: Annotated[int, Field(ge=0, le=20)] = 2
    toplevel: Literal["and", "or", "xor"] = "and"
    xor: Literal["exactly_one", "parity"] = "exactly_one"
    or_offset: Count = 0
    xor_offset: Count = 0
    redundant: tuple[tuple[int, int], ...] = ()
    test_size: Annotated[float, Field(ge=0, lt=1)] = 0.0
    preset: Literal["fixed", "paper"] = "fixed"
    fold: Count = 0
    folds: Annotated[int, Field(ge=2)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42

    @property
    def arities(self) -> list[tuple[Kind, int]]:
        """Kind and number of inputs of each gate, in the order of the inputs."""
        gates: list[tuple[Kind, int]] = []
        gates += [("and", self.and_arity)] * self.ands
        gates += [("or", self.or_arity - self.or_offset)] * self.ors
        gates += [(self.xor, self.xor_arity - self.xor_offset)] * self.xors
        return gates

    @property
    def used(self) -> int:
        """R, the number of inputs of the formula; the `irrelevant` ones come after them."""
        return sum(arity for _, arity in self.arities)

    @property
    def inputs(self) -> int:
        """D."""
        return self.used + self.irrelevant

    @property
    def formula(self) -> Gate:
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
        if not self.arities:
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
        if (rows := self.symbols**self.inputs) > MAX_ROWS:
            return [
                f"{self.symbols} symbols at {self.inputs} inputs are {rows:,} rows; at most "
                f"{MAX_ROWS:,} are enumerated: use fewer symbols or inputs"
            ]
        sources, copies = {s for s, _ in self.redundant}, [c for _, c in self.redundant]
        if not (sources | set(copies)) <= set(range(self.used)):
            return [
                f"redundant: [source, copy] pairs name inputs of the formula, 0 to {self.used - 1}"
            ]
        if len(set(copies)) != len(copies) or sources & set(copies):
            return ["redundant: an input is copied to at most once, and never from a copy"]
        if self.fold >= self.folds:
            return [f"fold: {self.fold} must be less than folds, {self.folds}"]
        return []


def enumerate_rows(spec: AndorSpec) -> np.ndarray:
    """Symbol indexes int64 [S^D, D] of all rows: input j of row r is floor(r / S^j) mod S.

    The first input changes fastest. Redundant inputs are overwritten, so rows may repeat.
    """
    import numpy as np

    scale = spec.symbols ** np.arange(spec.inputs)
    digits = np.arange(spec.symbols**spec.inputs)[:, None] // scale % spec.symbols
    for source, copy in spec.redundant:
        digits[:, copy] = digits[:, source]
    return digits


def is_true(spec: AndorSpec, digits: np.ndarray) -> np.ndarray:
    """Whether each symbol counts as true, bool like `digits`."""
    import numpy as np

    return np.isin(digits, spec.true_indexes)


def split_rows(
    spec: AndorSpec, digits: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of train, validation and test, as the spec's preset wants them."""
    return _paper_split(spec, y) if spec.preset == "paper" else _fixed_split(spec, digits, y)


def _fixed_split(
    spec: AndorSpec, digits: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np
    from sklearn.model_selection import StratifiedKFold, train_test_split

    code = digits @ spec.symbols ** np.arange(spec.inputs)
    rows = np.flatnonzero(code == np.arange(len(code)))  # the first of equal rows
    if not spec.test_size:
        return rows, rows, rows
    try:
        rest, test = train_test_split(
            rows, test_size=spec.test_size, random_state=spec.seed, stratify=y[rows]
        )
        if np.bincount(y[rest]).min() < spec.folds:
            raise ValueError(f"a class has fewer rows than folds ({spec.folds})")
        folds = StratifiedKFold(spec.folds, shuffle=True, random_state=spec.seed)
        train, validation = list(folds.split(rest, y[rest]))[spec.fold]
    except ValueError as error:
        counts = np.bincount(y[rows]).tolist()
        raise ValueError(
            f"andor: classes of {counts} rows cannot be split by class with test_size "
            f"{spec.test_size} and {spec.folds} folds: {error}"
        ) from None
    return rest[train], rest[validation], test


def _paper_split(spec: AndorSpec, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np
    from sklearn.model_selection import StratifiedKFold, train_test_split
    from sklearn.utils import shuffle

    rows = test = shuffle(np.arange(len(y)), random_state=spec.seed)
    if spec.test_size:
        rows, test = train_test_split(
            rows, test_size=spec.test_size, shuffle=True, random_state=spec.seed
        )
    rows = _oversample(rows, y)
    if not spec.test_size:
        return rows, rows, test  # every fold is all rows: folds differ only by their seeds
    folds = StratifiedKFold(spec.folds, shuffle=True, random_state=spec.seed)
    train, validation = list(folds.split(rows, y[rows]))[spec.fold]
    return rows[train], rows[validation], test


def _oversample(rows: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Append random copies of rows until no class is rarer than another.

    The draws are those of imbalanced-learn's `RandomOverSampler(random_state=0)`.
    """
    import numpy as np

    random = np.random.RandomState(0)
    counts = np.bincount(y[rows])
    copies = [
        random.choice(np.flatnonzero(y[rows] == label), size=counts.max() - count)
        for label, count in enumerate(counts)
        if 0 < count < counts.max()
    ]
    return np.concatenate([rows, *(rows[chosen] for chosen in copies)])


def generate(spec: dict[str, Any] | AndorSpec) -> Dataset:
    """All rows of a formula, split, with the minimal sufficient sets of the test rows.

    `x` is float32 [N, D]; an `index` is a row's number in the enumeration. `meta` holds the spec,
    the formula as a tree and the values of the symbols.

    Raises ValueError, in one line, if the spec is no dataset or its formula is constant.
    """
    import numpy as np
    import torch

    if not isinstance(spec, AndorSpec):
        try:
            spec = AndorSpec.model_validate(spec)
        except ValidationError as error:
            raise ValueError(one_line("andor", error, AndorSpec.model_fields)) from None

    formula = spec.formula
    digits = enumerate_rows(spec)
    bits = is_true(spec, digits)
    y = formula(bits).astype(np.int64)
    if y.min() == y.max():
        raise ValueError(f"andor: the formula is always {bool(y[0])}; there is only one class")
    train, validation, test = split_rows(spec, digits, y)

    x = torch.tensor(spec.values, dtype=torch.float32)[torch.from_numpy(digits)]
    labels = torch.from_numpy(y)

    def split(rows: np.ndarray) -> Split:
        index = torch.from_numpy(rows)
        return Split(x[index], labels[index], index)

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
        irrelevant=torch.arange(spec.inputs) >= spec.used,
    )
