"""Small multiples for the figures of the ANDOR study: panels of one size in rows and columns.

Sizes are in inches; labels are measured and the figure is made to fit them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import figures
from analysis.andor_rows import Andor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.smerf_rows import Smerf

BODY, SMALL = 9.0, figures._SMALL
LINE = 0.155  # height of a line of small text
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True)
class Panels:
    """A figure with axes [rows][columns], and the theme that it is drawn in."""

    figure: Figure
    axes: list[list[Axes]]
    theme: figures.Theme


def panels(
    theme: str,
    *,
    title: str,
    subtitle: str,
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    size: tuple[float, float],
    left: float,
    below: float = 0.45,
    gap: tuple[float, float] = (0.28, 0.3),
    legend: Sequence[Any] = (),
    heads: Sequence[tuple[str, int]] = (),
    right: float = 0.3,
) -> Panels:
    """Empty panels under a title, with the names of columns above and of rows at the left.

    left, below: room for the labels of the y and x axes; gap: between columns and between rows,
    x labels not counted. legend: handles, set below in as many columns as fit. heads: names
    over groups of columns, with the number of columns.
    """
    t = figures.THEMES[theme]
    named = 0.3 if any(rows) else 0.0
    body = len(columns) * size[0] + (len(columns) - 1) * gap[0]
    words = (1.15 * figures._width(title, figures._TITLE), figures._width(subtitle, SMALL + 0.5))
    wide = max(named + left + body + right, *(w + 0.5 for w in words))
    lines = figures._wrap(caption, 0.97 * wide - 0.5, SMALL)
    keys = [figures._width(str(h.get_label()), SMALL) + 0.55 for h in legend]
    fit = max(1, min(len(keys), int((wide - 0.4) / max(keys)))) if keys else 1
    depth = -(-len(keys) // fit)
    foot = 0.2 + LINE * len(lines) + (0.19 * depth + 0.12 if keys else 0)
    named_in = max(name.count("\n") + 1 for name in columns)
    top = 0.82 + 0.16 * named_in + (0.3 if heads else 0)
    tall = top + len(rows) * (size[1] + below) + (len(rows) - 1) * gap[1] + foot
    figure, blank = figures._canvas(wide, tall, (0, 0, 1, 1), t)
    blank.remove()
    grid = []
    for r, row in enumerate(rows):
        y = tall - top - size[1] - r * (size[1] + below + gap[1])
        line = []
        for c in range(len(columns)):
            x = named + left + c * (size[0] + gap[0])
            box = (x / wide, y / tall, size[0] / wide, size[1] / tall)
            line.append(_styled(figure.add_axes(box, facecolor="none"), t))
        grid.append(line)
        if row:
            figure.text(
                0.22 / wide, (y + size[1] / 2) / tall, row, rotation=90, ha="center", va="center",
                size=BODY, weight="bold", color=t.ink,
            )  # fmt: skip
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, size=BODY, color=t.ink, weight="bold", pad=7)
    at = named + left
    for name, count in heads:
        width = count * size[0] + (count - 1) * gap[0]
        _head(figure, name, at, width, top - 0.2 - 0.16 * named_in, t)
        at += width + gap[0]
    figures._titles(figure, title, subtitle, t)
    if keys:
        figure.legend(
            handles=list(legend), loc="lower left", ncols=fit, fontsize=SMALL, frameon=False,
            bbox_to_anchor=(0.25 / wide, (0.26 + LINE * len(lines)) / tall), labelcolor=t.ink,
            borderpad=0, borderaxespad=0, handlelength=1.8, columnspacing=1.0, labelspacing=0.35,
            handletextpad=0.5,
        )  # fmt: skip
    figures._write(figure, lines, t)
    return Panels(figure, grid, t)


def _styled(axes: Axes, t: figures.Theme) -> Axes:
    axes.tick_params(axis="both", labelsize=SMALL, colors=t.muted, length=0, pad=4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(t.line)
    axes.set_axisbelow(True)
    return axes


def _head(figure: Figure, name: str, x: float, width: float, down: float, t: figures.Theme) -> None:
    from matplotlib.lines import Line2D

    wide, tall = figure.get_size_inches()
    y = 1 - down / tall
    if figures._width(name, BODY) > width + 0.1:
        name = name.partition(":")[0]
    figure.text((x + width / 2) / wide, y, name, ha="center", va="bottom", size=BODY, color=t.muted)
    ends = [x / wide, (x + width) / wide]
    figure.add_artist(Line2D(ends, [y - 0.04 / tall] * 2, color=t.muted, lw=1))


def empty(axes: Axes, t: figures.Theme, why: str = "no rows") -> None:
    """A panel that has nothing to show says so."""
    axes.text(
        0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", size=SMALL,
        color=t.muted,
    )  # fmt: skip


def only_first(line: Sequence[Axes], name: str, t: figures.Theme) -> None:
    """A row of panels with one y scale has its labels at the first, and the axis' name there."""
    line[0].set_ylabel(name, size=SMALL + 0.5, color=t.muted)
    for axes in line[1:]:
        axes.tick_params(labelleft=False)


# ---------------------------------------------------------------- methods along the y axis


@dataclass(frozen=True)
class Methods:
    """The methods of some panels: methods, a gap, controls, from the top."""

    names: list[str]
    control: dict[str, bool]
    colour: dict[str, str]

    @classmethod
    def of(
        cls, data: Andor | Smerf, present: Sequence[str] | set[str], t: figures.Theme
    ) -> Methods:
        """Rows for the methods that are present, in the order of the study; colours by family."""
        table = data.methods
        table = table[table.index.isin(list(present))]
        families = sorted(set(table.loc[~table["control"], "family"].astype(str)))
        colour = {
            str(name): t.control if control else figures._colour(str(family), families, t)
            for name, family, control in table[["family", "control"]].itertuples()
        }
        return cls(list(colour), dict(table["control"]), colour)

    @property
    def left(self) -> float:
        return max((figures._width(name, BODY) for name in self.names), default=0.5) + 0.3

    @property
    def y(self) -> dict[str, float]:
        gap = 0.5 if any(self.control.values()) and not all(self.control.values()) else 0.0
        return {n: i + (gap if self.control[n] else 0) for i, n in enumerate(self.names)}

    def height(self, row: float = 0.22) -> float:
        return row * (max(self.y.values()) + 1)

    def label(self, axes: Axes, t: figures.Theme, *, shown: bool) -> None:
        """Set up the y axis: one row per method, its name if it is the first column."""
        y = self.y
        axes.set_ylim(max(y.values()) + 0.5, -0.5)
        for name in self.names[::2]:
            axes.axhspan(y[name] - 0.5, y[name] + 0.5, color=t.shade, zorder=0, linewidth=0)
        axes.set_yticks(list(y.values()), self.names if shown else [""] * len(y), size=BODY)
        for tick, name in zip(axes.get_yticklabels(), self.names, strict=True):
            tick.set_color(t.control if self.control[name] else t.ink)
            tick.set_fontstyle("italic" if self.control[name] else "normal")
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=t.line, lw=0.7, zorder=0.5)

    def families(self, data: Andor, t: figures.Theme) -> list[Any]:
        """Legend handles: the colour of each family."""
        from matplotlib.patches import Patch

        table = data.methods.loc[self.names]
        found = dict(zip(table["family"].astype(str), table.index, strict=True))
        controls = table["control"].to_numpy()
        names = sorted(set(table.loc[~controls, "family"].astype(str)))
        handles = [Patch(facecolor=self.colour[str(found[f])], label=f) for f in names]
        if controls.any():
            handles.append(Patch(facecolor=t.control, label="control"))
        return handles


def bars(axes: Axes, methods: Methods, table: pd.DataFrame, t: figures.Theme) -> None:
    """Horizontal bars, one per method, with whiskers of one standard deviation.

    `table`: index method label, columns mean and sd. The random control's mean is a line.
    """
    for name in methods.names:
        if name not in table.index:
            axes.text(
                0.01, methods.y[name], "n/a", size=SMALL - 1, color=t.muted, va="center",
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
            continue
        mean, sd = float(table.loc[name, "mean"]), float(table.loc[name, "sd"])  # type: ignore[arg-type]
        y, colour = methods.y[name], methods.colour[name]
        axes.barh(y, mean, height=0.62, color=colour, alpha=0.85, linewidth=0, zorder=2)
        whisker(axes, [mean - sd, mean + sd], [y, y], t)
    if "random" in table.index and methods.control.get("random"):
        at = float(table.loc["random", "mean"])  # type: ignore[arg-type]
        axes.axvline(at, color=t.control, lw=1, ls=(0, (4, 3)), zorder=2.5)


def whisker(axes: Axes, x: Sequence[float], y: Sequence[float], t: figures.Theme) -> None:
    """A line that is seen on bars of any colour; none if it has no length."""
    from matplotlib.patheffects import Normal, Stroke

    if np.isfinite([*x, *y]).all() and (x[0], y[0]) != (x[1], y[1]):
        halo = [Stroke(linewidth=2.6, foreground=t.paper), Normal()]
        axes.plot(x, y, color=t.ink, lw=1, zorder=3, solid_capstyle="butt", path_effects=halo)


# ---------------------------------------------------------------- a few things along the x axis


def columns(
    axes: Axes,
    names: Sequence[str],
    table: pd.DataFrame,
    colours: Sequence[str],
    t: figures.Theme,
) -> None:
    """Upright bars with whiskers of one standard deviation; `table` by name: mean and sd."""
    found = table.reindex(list(names))
    x = np.arange(len(names), dtype=float)
    mean = found["mean"].to_numpy(float)
    axes.bar(x, np.nan_to_num(mean), width=0.66, color=list(colours), linewidth=0, zorder=2)
    for at, middle, sd in zip(x, mean, found["sd"].to_numpy(float), strict=True):
        if np.isfinite(middle) and sd > 0:
            whisker(axes, [at, at], [middle - sd, middle + sd], t)
    if np.nanmin(np.where(np.isfinite(mean), mean - found["sd"].fillna(0), 0), initial=0) < 0:
        axes.axhline(0, color=t.muted, lw=0.8, zorder=2.5)
    axes.set_xticks(x, list(names), size=SMALL)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", color=t.line, lw=0.7, zorder=0.5)
    axes.spines["left"].set_visible(False)


def lines(
    axes: Axes,
    names: Sequence[str],
    values: Mapping[str, pd.Series],
    styles: Mapping[str, dict[str, Any]],
    t: figures.Theme,
) -> None:
    """One line per method over the places `names`."""
    x = np.arange(len(names))
    for method, series in values.items():
        y = series.reindex(list(names)).to_numpy(float)
        axes.plot(x, y, **styles[method])
    axes.set_xticks(x, list(names), size=SMALL)
    axes.set_xlim(-0.25, len(names) - 0.75)
    axes.grid(axis="both", color=t.line, lw=0.7, zorder=0.5)
    axes.spines["left"].set_visible(False)


def line_styles(data: Andor, methods: Methods, t: figures.Theme) -> dict[str, dict[str, Any]]:
    """Colour by family; within a family markers, then dashes, tell methods apart."""
    seen: dict[str, int] = {}
    styles = {}
    for name in methods.names:
        family = str(data.methods.loc[name, "family"])
        number = seen[family] = seen.get(family, -1) + 1
        control = methods.control[name]
        styles[name] = {
            "color": methods.colour[name],
            "marker": SHAPES[number % len(SHAPES)],
            "ls": (0, (1, 1.5)) if control else DASHES[number % len(DASHES)],
            "lw": 1.3,
            "ms": 4.5,
            "mfc": t.paper if control else methods.colour[name],
            "zorder": 2 if control else 3,
        }
    return styles
