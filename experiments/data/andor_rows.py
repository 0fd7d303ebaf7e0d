"""The rows of an ANDOR data set, and who gets which of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from experiments.data.andor import AndorSpec

MAX_ROWS = 2**20


def enumerate_rows(spec: AndorSpec) -> np.ndarray:
    """Symbol indexes int64 [S^D, D] of all rows: input j of row r is floor(r / S^j) mod S.

    The first input changes fastest. Redundant inputs are overwritten, so rows may repeat.
    """
    import numpy as np

    return digits_of(spec, np.arange(spec.symbols**spec.inputs))


def sample_rows(spec: AndorSpec) -> np.ndarray:
    """The numbers int64 [rows] of distinct rows, in rising order, each as likely as any other."""
    import numpy as np

    assert spec.rows is not None
    random, numbers = np.random.default_rng(spec.seed), np.empty(0, dtype=np.int64)
    if spec.symbols**spec.inputs <= MAX_ROWS:
        every = np.unique(numbers_of(spec, enumerate_rows(spec)))
        return np.sort(random.choice(every, spec.rows, replace=False))
    while len(numbers) < spec.rows:  # soon over: there are many times as many rows
        drawn = random.integers(spec.symbols, size=(spec.rows, spec.inputs))
        found = np.concatenate([numbers, numbers_of(spec, _overwritten(spec, drawn))])
        numbers = found[np.sort(np.unique(found, return_index=True)[1])][: spec.rows]
    return np.sort(numbers)


def digits_of(spec: AndorSpec, numbers: np.ndarray) -> np.ndarray:
    """Symbol indexes int64 [N, D] of rows by their numbers, redundant inputs overwritten."""
    import numpy as np

    scale = spec.symbols ** np.arange(spec.inputs)
    return _overwritten(spec, numbers[:, None] // scale % spec.symbols)


def _overwritten(spec: AndorSpec, digits: np.ndarray) -> np.ndarray:
    for source, copy in spec.redundant:
        digits[:, copy] = digits[:, source]
    return digits


def numbers_of(spec: AndorSpec, digits: np.ndarray) -> np.ndarray:
    """The numbers int64 [N] of rows of symbol indexes; equal rows have equal numbers."""
    import numpy as np

    return digits @ spec.symbols ** np.arange(spec.inputs)


def is_true(spec: AndorSpec, digits: np.ndarray) -> np.ndarray:
    """Whether each symbol counts as true, bool like `digits`."""
    import numpy as np

    return np.isin(digits, spec.true_indexes)


def split_rows(
    spec: AndorSpec, distinct: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places in y of train, validation and test, as the spec's preset wants them.

    distinct   bool [N]: true for one of equal rows
    """
    return _paper_split(spec, y) if spec.preset == "paper" else _fixed_split(spec, distinct, y)


def _fixed_split(
    spec: AndorSpec, distinct: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np
    from sklearn.model_selection import StratifiedKFold, train_test_split

    rows = np.flatnonzero(distinct)
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
