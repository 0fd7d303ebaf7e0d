"""What the figures of the SMERF study have in common: rows of methods, points, lines of controls.

The panels are those of `analysis.andor_panels`: methods from the top in the paper's order, then
controls, which no figure is without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import figures, summary
from analysis.smerf_rows import Smerf
from analysis.smerf_statistics import DRAWS, Numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawings = Iterator[tuple[str, Callable[[], "Figure"]]]
SMALL = figures._SMALL
# Control → how it is called here, and the dashes of its line.
LINES: dict[str, tuple[str, Any]] = {
    "oracle": ("oracle: primary objects filled", "-"),
    "input_only": ("raw input", (0, (5, 2))),
    "sobel": ("edges", (0, (6, 2, 1.5, 2))),
    "random": ("random", (0, (1.5, 1.5))),
}


def palette(names: Sequence[str], t: figures.Theme) -> dict[str, str]:
    """A colour for each of a few things that are no methods."""
    colours = [t.families[each] for each in ("gradient", "cam", "perturbation", "lrp")]
    colours += list(t.others)
    return {name: colours[i % len(colours)] for i, name in enumerate(names)}


def draw_controls(
    axes: Axes,
    data: Smerf,
    table: pd.DataFrame,
    t: figures.Theme,
    *,
    colour: str | None = None,
    half: bool = True,
) -> None:
    """A line at each control's estimate, and at 0.5 ("correct" in the paper)."""
    if half:
        axes.axvline(0.5, color=t.line, lw=1.2, zorder=0.8)
    for name, label in data.controls.items():
        if label in table.index:
            at = float(summary.row(table, label)["estimate"])
            axes.axvline(at, color=colour or t.muted, lw=1, ls=LINES[name][1], zorder=1.2)


def control_keys(data: Smerf, t: figures.Theme, *, half: bool = True) -> list[Any]:
    """Legend handles of the lines."""
    from matplotlib.lines import Line2D

    keys = [
        Line2D([], [], color=t.muted, lw=1, ls=LINES[name][1], label=LINES[name][0])
        for name in data.controls
    ]
    if half:
        keys.append(Line2D([], [], color=t.line, lw=1.2, label="0.5"))
    return keys


def point_key(label: str, colour: str, t: figures.Theme, *, marker: str = "o", hollow: bool = False
) -> Any:  # fmt: skip
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=colour, lw=1.6, marker=marker, ms=5, mfc=t.paper if hollow else colour,
        mec=colour, label=label,
    )  # fmt: skip


def points(
    axes: Axes,
    table: pd.DataFrame,
    y: Sequence[float],
    colours: str | Sequence[str],
    t: figures.Theme,
    *,
    marker: str = "o",
    size: float = 5.0,
    hollow: Sequence[bool] | bool = False,
    lw: float = 1.6,
) -> None:
    """The estimates of a table, each with its interval where it has one."""
    if table.empty:
        return
    each = [colours] * len(table) if isinstance(colours, str) else list(colours)
    empty = [hollow] * len(table) if isinstance(hollow, bool) else list(hollow)
    low, high = table["low"].to_numpy(float), table["high"].to_numpy(float)
    axes.hlines(y, low, high, colors=each, lw=lw, zorder=3)
    faces = [t.paper if open_ else colour for open_, colour in zip(empty, each, strict=True)]
    axes.scatter(
        table["estimate"].to_numpy(float), y, s=size**2, marker=marker, facecolors=faces,
        edgecolors=each, linewidths=1.1, zorder=4,
    )  # fmt: skip


def absent(axes: Axes, y: float, t: figures.Theme) -> None:
    axes.text(
        0.02, y, "n/a", size=SMALL - 1, color=t.muted, va="center_baseline",
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip


def unit_axis(axes: Axes, highest: float = 1.0) -> None:
    """A score from 0 to 1; or to what is highest, where that is small."""
    from matplotlib.ticker import MaxNLocator

    if highest > 0.35:
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    else:
        axes.set_xlim(-0.04 * highest, 1.1 * highest)
        round_ = [at for at in MaxNLocator(3).tick_values(0, highest) if 0 < at <= highest]
        axes.set_xticks([0, round_[-1]], ["0", f"{round_[-1]:g}"])


def highest_of(*tables: pd.DataFrame) -> float:
    """The highest number or limit in tables of intervals."""
    values = [table[["estimate", "high"]].to_numpy(float) for table in tables if len(table)]
    found = np.concatenate(values) if values else np.zeros(1)
    return float(found[np.isfinite(found)].max(initial=1e-6))


def intervals_are(numbers: Numbers) -> str:
    """What whiskers are, of how many models and images."""
    table = numbers.table
    if table.empty:
        return ""
    few, many = int(table["n_models"].min()), int(table["n_models"].max())
    seeds = f"{few}" if few == many else f"{few} to {many}"
    of = "images only (one seed)" if many == 1 else f"seeds ({seeds} per setting), then images"
    undefined = int(table["n_undefined"].sum())
    left_out = f" {undefined:,} undefined values left out." if undefined else ""
    intervals = f"95\N{NO-BREAK SPACE}% intervals from {DRAWS:,} bootstrap draws of {of}"
    return f"Whiskers: {intervals}.{left_out}"


def caption(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def buckets_are(found: Mapping[str, int]) -> str:
    """`14 of 14 simple and 20 of 37 complex buckets.`"""
    of = {"simple": 14, "complex": 37}
    parts = [
        f"{n} of {of[kind]} {kind} buckets" if kind in of else f"{n} {kind} buckets"
        for kind, n in found.items()
    ]
    return f"{' and '.join(parts)}."
