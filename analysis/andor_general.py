"""Accuracy of the models, and GIB and NIB of every method: bars, by the gate on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis import figures, text
from analysis.andor_panels import Methods, bars, columns, empty, only_first, panels
from analysis.andor_rows import (
    CLASSES,
    GATES,
    TRAINED,
    UNMASKED,
    Andor,
    count,
    ordered,
    spread,
    variants,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawings = Iterator[tuple[str, Callable[[], "Figure"]]]
_TITLES = {
    "gib": "General information below irrelevant inputs (GIB)",
    "nib": "Needed information below irrelevant inputs (NIB)",
}
_SUBTITLES = {
    "gib": "how often an informative input scores below the highest irrelevant one;"
    " lower is better",
    "nib": "how often an irrelevant input outranks everything that decides the class;"
    " lower is better",
}


def top(gate: str) -> str:
    """The head of a column of panels: `AND on top`."""
    return f"{gate.upper()} on top" if gate else "all formulas"


def class_name(name: str) -> str:
    return "all classes" if name == "all" else f"class {name}"


def performance(data: Andor, theme: str) -> Drawings:
    if data.trained["accuracy"].notna().any():
        yield "general/performance", partial(_performance, data, theme)


def _performance(data: Andor, theme: str) -> Figure:
    t = figures.THEMES[theme]
    models = data.trained
    parts = [
        models.assign(bar="model", value=models["accuracy"]),
        models.assign(bar="always the larger class", value=models["majority"]),
    ]
    forest = data.frame[data.frame["score"] == "forest_accuracy"]
    forest = forest[forest["threshold"].isna() | forest["threshold"].isin(UNMASKED)]
    forest = forest[forest["bucket"].isna() & forest["class"].isna()]
    note = ""
    if len(forest):
        parts.append(forest.drop_duplicates([*TRAINED]).assign(bar="random forest"))
    else:
        note = " No forest was trained on unmasked inputs, or its accuracy is not in these rows."
    rows = pd.concat([part[["gate", "bar", "value"]] for part in parts], ignore_index=True)
    rows["value"] *= 100
    names = ordered(rows["bar"], ("model", "random forest", "always the larger class"))
    shown = [name.replace("always the ", "always the\n") for name in names]
    colour = {"model": t.families["gradient"], "random forest": t.families["perturbation"]}
    page = panels(
        theme,
        title="Accuracy on the test rows",
        subtitle="mean and one standard deviation over trained models",
        caption=f"{data.design()}. All methods explain these models; configurations, seeds, folds"
        f" and test sizes are pooled.{note}",
        rows=[""],
        columns=[top(gate) for gate in data.gates],
        size=(2.8, 2.3),
        left=0.75,
        below=0.55,
    )
    for axes, gate in zip(page.axes[0], data.gates, strict=True):
        found = spread(rows[rows["gate"] == gate], "bar").rename(
            index=dict(zip(names, shown, strict=True))
        )
        columns(axes, shown, found, [colour.get(name, t.control) for name in names], t)
        axes.set_ylim(0, 112)
        axes.set_yticks([0, 25, 50, 75, 100])
        for x, name in enumerate(shown):
            if name in found.index:
                _number(axes, x, float(found.loc[name, "mean"]), float(found.loc[name, "sd"]), t)  # type: ignore[arg-type]
    only_first(page.axes[0], "accuracy [%]", t)
    return page.figure


def _number(axes, x: float, mean: float, sd: float, t: figures.Theme) -> None:  # type: ignore[no-untyped-def]
    shown = f"{mean:.1f} ± {sd:.1f}" if sd > 0.05 else f"{mean:.1f}"
    at = mean + sd + 1.5
    axes.text(x, at, shown, ha="center", va="bottom", size=figures._SMALL - 0.5, color=t.ink)


def gib(data: Andor, theme: str) -> Drawings:
    yield from _by_method(data, theme, "gib")


def nib(data: Andor, theme: str) -> Drawings:
    yield from _by_method(data, theme, "nib")


def _by_method(data: Andor, theme: str, score: str) -> Drawings:
    for suffix, rows in variants(data.score(score, "class")):
        yield f"general/{score}{suffix}", partial(_grid, data, rows, score, theme, None)
        for config in dict.fromkeys(rows["config"]):
            part = data.only(data.frame["config"] == config)
            mine = rows[rows["config"] == config]
            yield f"{config}/{score}{suffix}", partial(_grid, part, mine, score, theme, config)


def _grid(data: Andor, rows: pd.DataFrame, score: str, theme: str, config: str | None) -> Figure:
    """Methods × percent: a row of panels for each class, a column for each gate on top."""
    t = figures.THEMES[theme]
    rows = rows.assign(value=100 * rows["value"].astype(float))
    wanted = ("0", "1") if config is None else CLASSES
    classes = [name for name in wanted if name in set(rows["class"])]
    gates = ordered(rows["gate"], GATES)
    shown = [*(["all"] if config is not None and len(gates) > 1 else []), *gates]
    methods = Methods.of(data, set(rows["label"]), t)
    undefined = int((~np.isfinite(rows["value"])).sum())
    params = text.parameters(rows["score_params"].iloc[0])
    page = panels(
        theme,
        title=_TITLES[score] + (f": {config}" if config else ""),
        subtitle=_SUBTITLES[score],
        caption=f"{count(rows)} Mean and one standard deviation; the dashed line is the"
        f" random control. {data.who()}"
        + (f" Score parameters: {params}." if params else "")
        + (f" {undefined:,} undefined values left out." if undefined else ""),
        rows=[class_name(name) for name in classes],
        columns=["all gates" if gate == "all" else top(gate) for gate in shown],
        size=(2.3, methods.height()),
        left=methods.left,
        legend=methods.families(data, t),
    )
    for line, name in zip(page.axes, classes, strict=True):
        for axes, gate in zip(line, shown, strict=True):
            mine = rows[(rows["class"] == name) & ((rows["gate"] == gate) | (gate == "all"))]
            methods.label(axes, t, shown=axes is line[0])
            axes.set_xlim(0, 100)
            axes.set_xticks([0, 25, 50, 75, 100])
            if mine.empty:
                empty(axes, t)
                continue
            bars(axes, methods, spread(mine, "label"), t)
            axes.set_xlabel(f"{score.upper()} [%]", size=figures._SMALL, color=t.muted, labelpad=2)
    return page.figure
