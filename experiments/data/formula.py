"""Logical formulas of any depth, as objects, JSON and text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["and", "or", "exactly_one", "parity"]
GATES = ("and", "or", "xor", "exactly_one", "parity")


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

    @property
    def inputs(self) -> frozenset[int]:
        """The inputs that occur in it."""
        return frozenset().union(*(c.inputs if isinstance(c, Gate) else {c} for c in self.children))


@lru_cache(maxsize=64)
def parse(text: str, xor: Literal["exactly_one", "parity"] = "exactly_one") -> Gate:
    """The formula that a text such as "and(0, or(1, 2), xor(3, 4))" stands for.

    Numbers are inputs; an input may occur more than once. A gate is `and`, `or`, `exactly_one`,
    `parity`, or `xor`, which means what `xor` says.
    Raises ValueError, one line with the position, for anything else.
    """
    tokens = [(m.group(), m.start()) for m in re.finditer(r"\d+|\w+|\S", text)]
    tokens.append(("the end", len(text)))
    at = 0

    def fail(expected: str) -> ValueError:
        token, position = tokens[at]
        return ValueError(f"{text!r}: expected {expected} at position {position}, got {token!r}")

    def take(*allowed: str) -> str:
        nonlocal at
        if tokens[at][0] not in allowed:
            raise fail(" or ".join(repr(token) for token in allowed))
        at += 1
        return tokens[at - 1][0]

    def item() -> Gate | int:
        nonlocal at
        token = tokens[at][0]
        if token.isdecimal():
            at += 1
            return int(token)
        if token not in GATES:
            raise fail(f"an input's number or a gate ({', '.join(GATES)})")
        at += 1
        take("(")
        children = [item()]
        while take(",", ")") == ",":
            children.append(item())
        return Gate(xor if token == "xor" else token, tuple(children))  # type: ignore[arg-type]

    found = item()
    if at < len(tokens) - 1:
        raise fail("the end")
    if not isinstance(found, Gate):
        raise ValueError(f"{text!r} is an input, not a gate, such as and(0, or(1, 2))")
    return found
