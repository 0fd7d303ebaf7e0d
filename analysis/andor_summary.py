"""The summary of the ANDOR study: what of a method is information, and what is leakage.

*Information* is what the visible inputs of a masked sample justify by logic. *Leakage* is what
the mask says of the class by which inputs it hides. What can be read from masked samples, and what
a retrained network reads from them, is both. A mask says something of nearly every sample even if
it is random, because hardly two samples share one; so these numbers stand beside those of random
masks which hide as many inputs, and the leakage is the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import bootstrap, figures, statistics, text
from analysis.andor_panels import Methods, panels, whisker
from analysis.andor_rows import TRAINED, Andor, count, first_variant, thresholds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawings = Iterator[tuple[str, Callable[[], "Figure"]]]
DRAWS = 1000
INFORMATION = "INFORMATION: what visible inputs justify"
BOTH = "BOTH: what masked rows give away"
LEAKAGE = "LEAKAGE: what the mask alone gives away"


@dataclass(frozen=True)
class Column:
    """One panel: rows of the map, and the same quantity of random masks of equal masked share."""

    group: str
    name: str
    rows: pd.DataFrame
    control: pd.DataFrame | None = None


def drawings(data: Andor, theme: str) -> Drawings:
    if data.score("logical_accuracy", "threshold").empty:
        return
    if data.score("bayes_accuracy", "threshold", "bucket").empty:
        return
    yield "information_and_leakage", partial(information_and_leakage, data, theme, draws=DRAWS)


def information_and_leakage(
    data: Andor, theme: str = "light", *, threshold: str | None = None, draws: int = DRAWS
) -> Figure:
    """For each method, with 95 % intervals: logical accuracies of what is visible, best possible
    accuracies of the masks alone and of masked rows, accuracy after retraining where there is
    any, and the excess of the masks over random masks that hide as many inputs.

    threshold: of the masks; that which stands for `logical_accuracy` in rankings when None.
    """
    t = figures.THEMES[theme]
    at = threshold or _headline(data)
    shown = _columns(data, at)
    excess, kind = _excess(data, at)
    tables = [_intervals(column.rows, draws) for column in shown]
    controls = [
        None if c.control is None or c.control.empty else _intervals(c.control, draws)
        for c in shown
    ]
    beyond = None if excess is None else _intervals(excess, draws)
    every = pd.concat([column.rows for column in shown])
    methods = _sorted(Methods.of(data, set(every["label"]), t), beyond, tables[0])
    names, groups = [c.name for c in shown], [c.group for c in shown]
    if beyond is not None:
        names.append("… beyond that\nfrom random masks")
        groups.append(LEAKAGE)
    majority = data.trained["majority"].mean()
    widest = [figures._width(_shown(row), figures._SMALL) for row in _rows(beyond)]
    page = panels(
        theme,
        title="What is information and what is leakage",
        subtitle=f"best possible and actual accuracies at mask threshold {at}; mean and"
        f" {100 * 0.95:g} % interval over trained models",
        caption=_caption(data, shown, kind, majority, draws, sorted_by=beyond is not None),
        rows=[""],
        columns=names,
        size=(1.6, methods.height(0.34)),
        left=methods.left,
        below=0.5,
        gap=(0.32, 0.3),
        heads=[(group, groups.count(group)) for group in dict.fromkeys(groups)],
        legend=_keys(data, methods, controls, t),
        right=0.3 + max(widest, default=0.0),
    )  # fmt: skip
    line = page.axes[0]
    for axes, table, control in zip(line, tables, controls, strict=False):
        methods.label(axes, t, shown=axes is line[0])
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        if np.isfinite(majority):
            axes.axvline(majority, color=t.muted, lw=0.9, ls=(0, (1, 2)), zorder=1)
        _points(axes, methods, table, control, t)
        axes.set_xlabel("accuracy", size=figures._SMALL, color=t.muted, labelpad=2)
    if beyond is not None:
        _excess_panel(line[-1], methods, beyond, t)
    return page.figure


# ---------------------------------------------------------------- the numbers


def _headline(data: Andor) -> str:
    rows = data.score("logical_accuracy", "threshold")
    chosen = rows.loc[rows["headline"].astype(bool), "threshold"]
    return str(chosen.iloc[0] if len(chosen) else thresholds(rows["threshold"])[-1])


def _columns(data: Andor, at: str) -> list[Column]:
    def plain(score: str) -> pd.DataFrame:
        rows = data.score(score, "threshold")
        return first_variant(rows[rows["threshold"] == at])

    def bayes(group: str, name: str, seen: str) -> Column:
        return Column(group, name, _bayes(data, at, seen), _bayes(data, at, f"{seen} random"))

    found = [
        Column(INFORMATION, "logical\naccuracy", plain("logical_accuracy")),
        Column(INFORMATION, "statistical\nlogical accuracy", plain("logical_accuracy_statistics")),
        bayes(BOTH, "best guess from\nthe masked row", "row"),
        Column(BOTH, "network retrained\non masked rows", plain("retrained_accuracy")),
        bayes(LEAKAGE, "best guess from\nthe mask alone", "mask"),
    ]
    return [column for column in found if len(column.rows)]


def _bayes(data: Andor, at: str, bucket: str) -> pd.DataFrame:
    rows = data.score("bayes_accuracy", "threshold", "bucket")
    return first_variant(rows[(rows["threshold"] == at) & (rows["bucket"] == bucket)])


def _excess(data: Andor, at: str) -> tuple[pd.DataFrame | None, str]:
    """Rows of what masks say beyond random ones, and what these random masks are: of "equal"
    masked share, or those of the random "control"; "none" where there are neither."""
    rows, random = _bayes(data, at, "mask"), _bayes(data, at, "mask random")
    keys, kind = [*TRAINED, "label"], "equal"
    if random.empty:
        random, keys, kind = rows[rows["method"] == "random"], [*TRAINED], "control"
    if random.empty:
        return None, "none"
    random = random.drop_duplicates(keys)[[*keys, "value", "samples"]]
    both = rows.merge(random, on=keys, suffixes=("", "_random"))
    pairs = zip(both["samples"], both["samples_random"], strict=True)
    samples = pd.Series([_minus(a, b) for a, b in pairs], index=both.index, dtype=object)
    value = 100 * (both["value"] - both["value_random"])
    return both.assign(value=value, samples=samples, sd=np.nan), kind


def _minus(a: object, b: object) -> np.ndarray | None:
    mine, other = bootstrap.samples_of(a), bootstrap.samples_of(b)
    if mine is None or other is None or len(mine) != len(other):
        return None
    return 100 * (mine - other)


def _intervals(rows: pd.DataFrame, draws: int) -> pd.DataFrame:
    """estimate, low, high by method label. Every fold is a trained model of its own."""
    rows = rows.assign(headline=True, score="value", score_params="{}", direction="higher")
    return statistics.intervals(rows, by=["label"], draws=draws).set_index("label")


def _sorted(methods: Methods, excess: pd.DataFrame | None, first: pd.DataFrame) -> Methods:
    """The methods by what they leak, most on top; else by what they inform of."""
    by = (first if excess is None else excess)["estimate"]
    value = {name: float(by.get(name, -np.inf)) for name in methods.names}
    names = sorted(methods.names, key=lambda name: (methods.control[name], -value[name]))
    return Methods(names, methods.control, methods.colour)


# ---------------------------------------------------------------- the drawing


def _points(
    axes: Axes,
    methods: Methods,
    table: pd.DataFrame,
    control: pd.DataFrame | None,
    t: figures.Theme,
) -> None:
    """A point and its interval per method; below it, those of its random masks."""
    for name in methods.names:
        y = methods.y[name]
        beside = control is not None and name in control.index
        if beside:
            assert control is not None
            _point(axes, control.loc[name], y + 0.2, t.control, t, marker="D", size=3.6)
        if name not in table.index:
            axes.text(
                0.02, y, "n/a", size=figures._SMALL - 1, color=t.muted, va="center_baseline",
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
            continue
        hollow = methods.control[name]
        at = y - 0.12 if beside else y
        _point(axes, table.loc[name], at, methods.colour[name], t, hollow=hollow)


def _point(
    axes: Axes, row: Any, y: float, colour: str, t: figures.Theme, *, marker: str = "o",
    size: float = 5.2, hollow: bool = False,
) -> None:  # fmt: skip
    if np.isfinite(row["low"]):
        axes.plot(
            [row["low"], row["high"]], [y, y], color=colour, lw=1.6, zorder=3,
            solid_capstyle="butt",
        )  # fmt: skip
    hollow = hollow or marker == "D"
    axes.plot(
        row["estimate"], y, linestyle="none", marker=marker, ms=size, zorder=4,
        mfc=t.paper if hollow else colour, mec=colour, mew=1.1,
    )  # fmt: skip


def _excess_panel(axes: Axes, methods: Methods, table: pd.DataFrame, t: figures.Theme) -> None:
    """Bars from zero, bold where the interval excludes it; the numbers at the right."""
    from matplotlib.ticker import MaxNLocator

    methods.label(axes, t, shown=False)
    axes.axvline(0, color=t.muted, lw=1, zorder=2.5)
    for name, row in zip(table.index, _rows(table), strict=True):
        y, colour = methods.y[str(name)], methods.colour[str(name)]
        sure = np.isfinite(row["low"]) and (row["low"] > 0 or row["high"] < 0)
        axes.barh(
            y, row["estimate"], height=0.5, color=colour, alpha=0.85 if sure else 0.35,
            linewidth=0, zorder=2,
        )  # fmt: skip
        whisker(axes, [row["low"], row["high"]], [y, y], t)
        axes.text(
            1.06, y, _shown(row), transform=axes.get_yaxis_transform(), va="center_baseline",
            size=figures._SMALL, weight="bold" if sure and row["low"] > 0 else "normal",
            color=t.control if methods.control[str(name)] else t.ink,
        )  # fmt: skip
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="lower"))
    axes.set_xlabel("difference [points]", size=figures._SMALL, color=t.muted, labelpad=2)


def _rows(table: pd.DataFrame | None) -> list[pd.Series]:
    return [] if table is None else [row for _, row in table.iterrows()]


def _shown(row: pd.Series) -> str:
    return text.interval(row["estimate"], row["low"], row["high"], 1)


def _keys(data: Andor, methods: Methods, controls: list[Any], t: figures.Theme) -> list[Any]:
    from matplotlib.lines import Line2D

    keys = methods.families(data, t)
    if any(control is not None for control in controls):
        keys.append(
            Line2D([], [], ls="-", lw=1.6, color=t.control, marker="D", mfc=t.paper,
                   mec=t.control, ms=4, label="random masks that hide as many inputs")
        )  # fmt: skip
    if data.trained["majority"].notna().any():
        keys.append(
            Line2D([], [], ls=(0, (1, 2)), lw=0.9, color=t.muted,
                   label="always the larger class")
        )  # fmt: skip
    return keys


def _caption(
    data: Andor, shown: list[Column], kind: str, majority: float, draws: int, *, sorted_by: bool
) -> str:
    every = pd.concat([column.rows for column in shown])
    parts = [
        f"{count(every)} 95 % intervals from {draws:,} bootstrap draws of trained models (folds"
        " and seeds, within data sets), then of their test samples.",
        "Configurations, gates on top and test sizes are pooled.",
        "Best guess: the class that most rows have which look the same; it bounds any model"
        " retrained on these rows.",
    ]
    if not any("retrained" in column.name for column in shown):
        parts.append("No network was retrained in these rows.")
    words = {
        "equal": "Beyond random masks: against masks with as many visible inputs, moved to random"
        " places in each sample. Bold: the interval lies above zero.",
        "control": "Beyond random masks: against the random control, which may mask more or fewer"
        " inputs. Bold: the interval lies above zero.",
        "none": "Nothing says what random masks give away: add the control random.",
    }
    parts.append(words[kind])
    parts.append("Sorted by leakage." if sorted_by else "Sorted by logical accuracy.")
    parts.append(data.who())
    return " ".join(parts)
