"""Double class assignments: how many masked patterns stand for both classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import figures, text
from analysis.andor_general import top
from analysis.andor_panels import Methods, bars, empty, panels
from analysis.andor_rows import (
    GATES,
    Andor,
    count,
    first_variant,
    ordered,
    spread,
    thresholds,
    variants,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawings = Iterator[tuple[str, Callable[[], "Figure"]]]
_TITLES = {
    "full_dca": "Full double class assignment",
    "minimal_dca": "Minimal double class assignment",
}
_MEANING = {
    "full_dca": "share of the masked patterns of all relevant inputs that stand for both classes",
    "minimal_dca": "share of the masked patterns of single gates that stand for both sides",
}


def _rows(data: Andor, score: str) -> pd.DataFrame:
    """The score's rows by threshold; of all gates together where it has them apart.

    A full double class assignment at "baseline" is no question: what all maps mask there is
    left out, as in the original.
    """
    rows = data.score(score, "threshold")
    if rows.empty:
        rows = data.score(score, "threshold", "bucket")
        rows = rows[rows["bucket"] == "all"]
    if score == "full_dca":
        rows = rows[rows["threshold"] != "baseline"]
    return rows[np.isfinite(rows["value"].astype(float))]


def full(data: Andor, theme: str) -> Drawings:
    for suffix, rows in variants(_rows(data, "full_dca")):
        yield f"general/full_dca{suffix}", partial(_points, data, rows, "full_dca", theme)


def minimal(data: Andor, theme: str) -> Drawings:
    for suffix, rows in variants(_rows(data, "minimal_dca")):
        yield f"general/minimal_dca{suffix}", partial(_points, data, rows, "minimal_dca", theme)


def average(data: Andor, theme: str) -> Drawings:
    found = {score: _rows(data, score) for score in _TITLES}
    found = {score: first_variant(rows) for score, rows in found.items() if len(rows)}
    if found:
        yield "general/average_dca", partial(_average, data, found, theme)


def _points(data: Andor, rows: pd.DataFrame, score: str, theme: str) -> Figure:
    """Configurations × gates; per method a point for each threshold, split and accuracy."""
    t = figures.THEMES[theme]
    rows = rows.assign(value=100 * rows["value"].astype(float))
    rows["perfect"] = rows["model_accuracy"].astype(float) >= 1
    configs, gates = list(dict.fromkeys(rows["config"])), ordered(rows["gate"], GATES)
    places = thresholds(rows["threshold"])
    methods = Methods.of(data, set(rows["label"]), t)
    colours = _shades(places, t)
    splits = ordered(rows["split"], ("all rows", "split"))
    two = 0 < rows["perfect"].sum() < len(rows)
    undefined = len(data.frame[(data.frame["score"] == score) & data.frame["value"].isna()])
    page = panels(
        theme,
        title=_TITLES[score],
        subtitle=_MEANING[score] + "; lower is better",
        caption=f"{count(rows)} Means over trained models. {data.who()}"
        + (
            f" {text.count(undefined, 'row')} without a pattern of one class left out."
            if undefined
            else ""
        ),
        rows=configs,
        columns=[top(gate) for gate in gates],
        size=(2.7, methods.height(0.3)),
        left=methods.left,
        below=0.5,
        legend=_keys(places, colours, splits, two, t),
    )
    for line, config in zip(page.axes, configs, strict=True):
        for axes, gate in zip(line, gates, strict=True):
            methods.label(axes, t, shown=axes is line[0])
            axes.set_xlim(-4, 104)
            axes.set_xticks([0, 25, 50, 75, 100])
            mine = rows[(rows["config"] == config) & (rows["gate"] == gate)]
            if mine.empty:
                empty(axes, t)
                continue
            _scatter(axes, mine, methods, colours, splits, two, t)
            axes.set_xlabel("patterns in both classes [%]", size=figures._SMALL, color=t.muted)
    return page.figure


def _scatter(
    axes: Any, rows: pd.DataFrame, methods: Methods, colours: dict[str, Any],
    splits: list[str], two: bool, t: figures.Theme,
) -> None:  # fmt: skip
    places, y = list(colours), methods.y
    for is_all in (True, False) if two else (True,):
        chosen = rows if is_all else rows[rows["perfect"]]
        for name, at, split, mean, *_ in (
            spread(chosen, "label", "threshold", "split").reset_index().itertuples(index=False)
        ):
            height = y[name] + 0.62 * ((places.index(at) + 0.5) / len(places) - 0.5)
            colour = colours[at]
            axes.plot(
                mean, height, linestyle="none", ms=5.0 if is_all else 7.5,
                marker="o" if split == splits[0] else "s", zorder=3,
                mfc=colour if is_all else "none", mec=t.paper if is_all else colour,
                mew=0.5 if is_all else 1.1,
            )  # fmt: skip


def _shades(places: list[str], t: figures.Theme) -> dict[str, Any]:
    """A colour per threshold: one for "baseline", then from strong to faint."""
    from matplotlib.colors import LinearSegmentedColormap

    blend = LinearSegmentedColormap.from_list("depth", [t.families["gradient"], t.paper])
    numbers = [place for place in places if place != "baseline"]
    steps = np.linspace(0, 0.62, max(len(numbers), 1))
    shades = {place: blend(step) for place, step in zip(numbers, steps, strict=False)}
    return {place: shades.get(place, t.families["cam"]) for place in places}


def _keys(
    places: list[str], colours: dict[str, Any], splits: list[str], two: bool, t: figures.Theme
) -> list[Any]:
    from matplotlib.lines import Line2D

    def key(label: str, marker: str, face: Any, edge: Any, size: float = 6.0) -> Line2D:
        return Line2D([], [], ls="none", marker=marker, mfc=face, mec=edge, ms=size, label=label)

    keys = [key(f"threshold {place}", "o", colours[place], t.paper) for place in places]
    if len(splits) > 1:
        names = {"all rows": "tested on all rows", "split": "tested on rows held out"}
        keys += [
            key(names.get(split, split), marker, t.muted, t.paper)
            for split, marker in zip(splits, ("o", "s"), strict=False)
        ]
    if two:
        keys.append(key("filled: all models", "o", t.muted, t.paper))
        keys.append(key("hollow: models with 100 % accuracy", "o", "none", t.muted, 7.5))
    return keys


def _average(data: Andor, found: dict[str, pd.DataFrame], theme: str) -> Figure:
    t = figures.THEMES[theme]
    labels = {label for rows in found.values() for label in rows["label"]}
    methods = Methods.of(data, labels, t)
    every = pd.concat(list(found.values()))
    page = panels(
        theme,
        title="Double class assignment of every method",
        subtitle="share of the masked patterns that stand for both classes; lower is better",
        caption=f"{count(every)} Mean and one standard deviation over trained models and"
        " thresholds, of Full without “baseline”; configurations and gates on top are pooled. The"
        f" dashed line is the random control. {data.who()}",
        rows=[""],
        columns=[_TITLES[score].removesuffix(" double class assignment") for score in found],
        size=(3.2, methods.height()),
        left=methods.left,
        below=0.5,
        gap=(1.05, 0.3),
        legend=methods.families(data, t),
        right=1.05,
    )
    for axes, rows in zip(page.axes[0], found.values(), strict=True):
        methods.label(axes, t, shown=axes is page.axes[0][0])
        table = spread(rows.assign(value=100 * rows["value"].astype(float)), "label")
        bars(axes, methods, table, t)
        axes.set_xlim(left=0)
        axes.set_xlabel("patterns in both classes [%]", size=figures._SMALL, color=t.muted)
        for name, row in table.iterrows():
            axes.text(
                1.02, methods.y[str(name)], f"{row['mean']:.1f} ± {row['sd']:.1f}",
                transform=axes.get_yaxis_transform(), size=figures._SMALL, va="center_baseline",
                color=t.control if methods.control[str(name)] else t.ink,
            )  # fmt: skip
    return page.figure
