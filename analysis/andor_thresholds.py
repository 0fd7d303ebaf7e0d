"""Scores of masked inputs over the thresholds that inputs are masked at: one line per method."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import figures
from analysis.andor_general import top
from analysis.andor_panels import Methods, empty, line_styles, lines, only_first, panels
from analysis.andor_rows import (
    GATES,
    TRAINED,
    UNMASKED,
    Andor,
    count,
    difference,
    first_variant,
    ordered,
    spread,
    thresholds,
    variants,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawings = Iterator[tuple[str, Callable[[], "Figure"]]]


@dataclass(frozen=True)
class Curve:
    """A quantity over thresholds: a score, or a `bucket` of it, `minus` another such."""

    name: str
    title: str
    axis: str
    score: str
    bucket: str | None = None
    minus: tuple[str, str | None] | None = None
    retrained: bool = False

    @property
    def scores(self) -> list[str]:
        return list(dict.fromkeys([self.score, *([self.minus[0]] if self.minus else [])]))

    def drawings(self, data: Andor, theme: str) -> Drawings:
        for suffix, rows in self._variants(data):
            for what, name in ((False, self.name), (True, f"{self.name}_sd")):
                draw = partial(_lines, data, rows, self, theme, of_spread=what)
                yield f"general/{name}{suffix}", draw

    def _variants(self, data: Andor) -> Iterator[tuple[str, pd.DataFrame]]:
        rows = _masked(data, self.score, self.bucket)
        if self.minus is None:
            yield from variants(rows)
            return
        # The first variant of each: that with the masks the configuration retrains on.
        other = _masked(data, *self.minus)
        apart = difference(first_variant(rows), first_variant(other))
        if len(apart):
            yield "", apart


def _masked(data: Andor, score: str, bucket: str | None) -> pd.DataFrame:
    """A score's rows by threshold, in one bucket or without any; the bucket is taken off.

    A parameter `of` says which bucket stands in rankings: it makes no other rows of the same one.
    """
    rows = data.score(score, "threshold", *(["bucket"] if bucket else []))
    if bucket:
        params = rows["score_params"].map({p: _without_of(p) for p in set(rows["score_params"])})
        rows = rows[rows["bucket"] == bucket].assign(bucket=None, score_params=params)
        rows = rows.drop_duplicates([*TRAINED, "label", "score_params", "threshold"])
    return rows[~rows["threshold"].isin(UNMASKED)]


def _without_of(params: str) -> str:
    given = {key: value for key, value in json.loads(params).items() if key != "of"}
    return json.dumps(given, sort_keys=True)


CURVES = (
    Curve("retrained_accuracy", "Accuracy of networks retrained on masked inputs",
          "test accuracy [%]", "retrained_accuracy", retrained=True),
    Curve("masked_share", "Share of the inputs that are masked", "masked inputs [%]",
          "masked_share"),
    Curve("forest_accuracy", "Accuracy of random forests trained on masked inputs",
          "test accuracy [%]", "forest_accuracy", retrained=True),
    Curve("logical_accuracy", "Logical accuracy: how often the visible inputs decide the class",
          "logical accuracy [%]", "logical_accuracy"),
    Curve("leakage", "Retrained accuracy beyond logical accuracy",
          "retrained − logical accuracy [points]", "retrained_accuracy",
          minus=("logical_accuracy", None), retrained=True),
    Curve("logical_accuracy_statistics",
          "Statistical logical accuracy: how often the likely class is right",
          "statistical logical accuracy [%]", "logical_accuracy_statistics"),
    Curve("leakage_statistics", "Retrained accuracy beyond statistical logical accuracy",
          "retrained − statistical logical accuracy [points]", "retrained_accuracy",
          minus=("logical_accuracy_statistics", None), retrained=True),
    Curve("bayes_accuracy_mask", "What the mask alone says: best possible accuracy from its bits",
          "Bayes accuracy, mask bits [%]", "bayes_accuracy", bucket="mask"),
    Curve("bayes_accuracy_row", "What masked inputs say: best possible accuracy from masked rows",
          "Bayes accuracy, masked row [%]", "bayes_accuracy", bucket="row"),
    Curve("mask_leakage", "What the mask alone says, beyond random masks that hide as many inputs",
          "difference of Bayes accuracy [points]", "bayes_accuracy", bucket="mask",
          minus=("bayes_accuracy", "mask random")),
)  # fmt: skip


def _lines(data: Andor, rows: pd.DataFrame, curve: Curve, theme: str, *, of_spread: bool) -> Figure:
    t = figures.THEMES[theme]
    rows = rows.assign(value=100 * rows["value"].astype(float))
    gates, places = ordered(rows["gate"], GATES), thresholds(rows["threshold"])
    methods = Methods.of(data, set(rows["label"]), t)
    styles = line_styles(data, methods, t)
    wide = max(2.9, 0.62 * len(places) + 0.4)
    caution = ""
    if curve.retrained and curve.minus:
        caution = (
            " Random maps leave a large difference, too: what a method's masks give away is"
            " its distance to the random control."
        )
    elif curve.bucket and not curve.minus:
        caution = (
            " Almost every row has a mask of its own, so that the random control lies high: what"
            " a method's masks give away is its distance to that."
        )
    page = panels(
        theme,
        title=curve.title + (": standard deviation" if of_spread else ""),
        subtitle=f"{'standard deviation' if of_spread else 'mean'} over trained models, by the"
        " threshold that inputs are masked at",
        caption=f"{count(rows)} “baseline” masks what scores no higher than the highest"
        " irrelevant input; a number t, what scores at most t times the map's mean."
        f"{caution} {data.who()}",
        rows=[""],
        columns=[top(gate) for gate in gates],
        size=(wide, 2.9),
        left=0.7,
        below=0.5,
        legend=_keys(methods, styles),
    )
    column = "sd" if of_spread else "mean"
    for axes, gate in zip(page.axes[0], gates, strict=True):
        mine = rows[rows["gate"] == gate]
        if mine.empty or not np.isfinite(mine["value"]).any():
            empty(axes, t)
            continue
        table = spread(mine, "label", "threshold")[column]
        values = {
            name: table[name] for name in methods.names if name in table.index.get_level_values(0)
        }
        lines(axes, places, values, styles, t)
        axes.set_xlabel("threshold", size=figures._SMALL, color=t.muted, labelpad=3)
    _same_scale(page.axes[0], share=not of_spread and not curve.minus)
    unit = curve.axis.replace("[%]", "[points]") if of_spread else curve.axis
    only_first(page.axes[0], f"sd of {unit}" if of_spread else unit, t)
    return page.figure


def _same_scale(axes: list[Any], *, share: bool) -> None:
    """One y scale for all panels, so that they can be compared; up to 100 for shares, and from 0
    unless all are high."""
    ends = np.array([panel.get_ylim() for panel in axes if panel.lines])
    low, high = (ends[:, 0].min(), ends[:, 1].max()) if len(ends) else (0.0, 1.0)
    if share:
        limits = (10 * (low // 10) if low > 40 else -3.0, 103.0)
    else:
        limits = (min(low, 0.0), max(high, 1.0))
    for panel in axes:
        panel.set_ylim(limits)


def _keys(methods: Methods, styles: dict[str, dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], label=name, **styles[name]) for name in methods.names]
