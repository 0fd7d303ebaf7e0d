"""Minimal sufficient sets of a Boolean function, from its truth table alone.

Nothing here knows of gates: the sets are the prime implicants of the function and of its
complement, found as Quine (1952) and McCluskey (1956) do, over all 3^R cubes at once. A cube fixes
some of the R inputs and leaves the others free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MAX_INPUTS = 12  # 3^12 cubes are half a million; 3^16 would be 43 million

FREE = 2


def prime_cubes(labels: np.ndarray, reachable: np.ndarray | None = None) -> np.ndarray:
    """The largest cubes in which all reachable patterns have one label.

    labels     bool [2^R]  the function; bit k of a pattern's number is the value of input k
    reachable  bool [2^R]  patterns that can occur at all (default: every one)
    returns    int8 [K, R] with 0 or 1 for a fixed input and `FREE` for a free one, fewest fixed
               inputs first
    """
    import numpy as np

    inputs = len(labels).bit_length() - 1
    if len(labels) != 2**inputs:
        raise ValueError(f"a truth table has 2^R entries, got {len(labels)}")
    if inputs > MAX_INPUTS:
        raise ValueError(f"a truth table of {inputs} inputs is too large (at most {MAX_INPUTS})")
    possible = np.ones_like(labels) if reachable is None else reachable

    # holds_c[cube]: a reachable pattern of the cube has label c. Axis k is input k.
    holds = []
    for label in (False, True):
        occurs = ((labels == label) & possible).reshape((2,) * inputs).transpose()
        for axis in range(inputs):
            occurs = np.concatenate([occurs, occurs.any(axis, keepdims=True)], axis)
        holds.append(occurs)
    decided = holds[0] ^ holds[1]

    prime = decided.copy()
    for axis in range(inputs):  # a cube is not prime if it stays decided with one input set free
        fixed = np.moveaxis(prime, axis, 0)[:FREE]
        fixed &= ~np.moveaxis(decided, axis, 0)[FREE]
    cubes = np.argwhere(prime).astype(np.int8)
    return cubes[np.argsort((cubes != FREE).sum(1), kind="stable")]


def minimal_sufficient_sets(
    labels: np.ndarray, reachable: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All minimal sufficient sets of every pattern: bool [2^R, M, R] and which are valid [2^R, M].

    Patterns that are not reachable have none. Smaller sets come first.
    """
    import numpy as np

    cubes = prime_cubes(labels, reachable)
    weights = 1 << np.arange(cubes.shape[1], dtype=np.int32)
    fixed = cubes != FREE
    care, value = fixed @ weights, (cubes == 1) @ weights
    member = (np.arange(len(labels), dtype=np.int32)[:, None] & care) == value
    if reachable is not None:
        member &= reachable[:, None]

    valid = np.arange(member.sum(1).max()) < member.sum(1)[:, None]
    sets = np.zeros((*valid.shape, cubes.shape[1]), dtype=bool)
    sets[valid] = fixed[np.nonzero(member)[1]]  # both run over patterns first, then over sets
    return sets, valid
