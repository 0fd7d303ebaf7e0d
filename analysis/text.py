"""How names and numbers are written, the same in the terminal, the figures and the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable

ARROWS = {"higher": "↑", "lower": "↓"}
MINUS = "\N{MINUS SIGN}"
NOTHING = "–"


def parameters(text: object) -> str:
    """A JSON object as `a=1, b=zero`; an empty one, or none, as the empty string."""
    if not isinstance(text, str) or not text.strip():
        return ""
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        return text
    if not isinstance(values, dict):
        return text if values else ""

    def show(value: object) -> str:
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))

    return ", ".join(f"{name}={show(value)}" for name, value in values.items())


def labels(pairs: Iterable[tuple[str, object]]) -> dict[tuple[str, object], str]:
    """(name, JSON parameters) → the shortest label that tells all of them apart.

    Parameters appear only where one name is used with several sets of them.
    """
    pairs = list(dict.fromkeys(pairs))
    variants: dict[str, int] = {}
    for name, _ in pairs:
        variants[name] = variants.get(name, 0) + 1
    return {
        (name, given): name if variants[name] == 1 else f"{name}({parameters(given) or 'defaults'})"
        for name, given in pairs
    }


def finite(value: object) -> bool:
    """Whether `value` is a number that can be shown."""
    return isinstance(value, int | float) and math.isfinite(value)


def decimals(half_widths: Iterable[float], values: Iterable[float] = ()) -> int:
    """Digits after the point, for one column: two significant digits of the typical uncertainty.

    Without any uncertainty: three significant digits of the typical value.
    """
    widths = sorted(abs(w) for w in half_widths if finite(w) and abs(w) > 1e-12)
    if widths:
        return min(max(1 - math.floor(math.log10(widths[len(widths) // 2])), 0), 4)
    sizes = sorted(abs(v) for v in values if finite(v) and v)
    if sizes:
        return min(max(2 - math.floor(math.log10(sizes[len(sizes) // 2])), 0), 4)
    return 2


def number(value: float, places: int = 2) -> str:
    """A number with a true minus sign; `–` where there is none; an exponent where it is huge."""
    if not finite(value):
        return NOTHING
    if abs(value) >= 1e6:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e").replace("-", MINUS)
    shown = f"{value:.{places}f}"
    if float(shown) == 0:
        shown = shown.lstrip("-")
    return shown.replace("-", MINUS)


def interval(estimate: float, low: float, high: float, places: int = 2) -> str:
    """`0.71 [0.68, 0.74]`; only the estimate where there is no interval."""
    if not (finite(low) and finite(high)):
        return number(estimate, places)
    return f"{number(estimate, places)} [{number(low, places)}, {number(high, places)}]"


def plus_minus(estimate: float, low: float, high: float, places: int = 2) -> str:
    """`0.71±.03`, the half-width of the interval; only the estimate where there is none."""
    if not (finite(low) and finite(high)):
        return number(estimate, places)
    half = number((high - low) / 2, places)
    return f"{number(estimate, places)}±{half[1:] if half.startswith('0.') else half}"


def probability(p: float) -> str:
    """A p-value as it is reported: `0.012`, `<0.001`."""
    if not finite(p):
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: float) -> str:
    """`87 %`, never rounding up to certainty."""
    if not finite(share):
        return NOTHING
    if 0.995 <= share < 1:
        return ">99 %"
    if 0 < share < 0.005:
        return "<1 %"
    return f"{100 * share:.0f} %"


def count(n: int, one: str, many: str | None = None) -> str:
    """`1 model`, `1,234 models`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listing(names: Iterable[str], limit: int = 4) -> str:
    """`a, b and c`; a long list ends in `and 7 more`."""
    names = list(names)
    if len(names) > limit + 1:
        names = [*names[:limit], f"{len(names) - limit} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def heading(name: str, direction: str, fits: Callable[[str], bool]) -> list[str]:
    """A score's name as the lines of a narrow column head, its arrow at the end."""
    lines: list[str] = []
    for word in name.replace("_", " ").replace("(", " (").split():
        if lines and fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    lines[-1] += f" {ARROWS[direction]}"
    return lines
