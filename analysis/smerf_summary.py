"""The main figures of the SMERF study: the average over buckets, and the worst of them.

One figure draws them all: one kind of model, or several beside each other (architectures, plain
and adversarial training, backgrounds), which are then compared on the settings that all of them
have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import figures
from analysis.andor_panels import Methods, panels
from analysis.smerf_panels import (
    Drawings,
    absent,
    buckets_are,
    caption,
    control_keys,
    draw_controls,
    highest_of,
    intervals_are,
    palette,
    point_key,
    points,
    unit_axis,
)
from analysis.smerf_rows import CONDITION, KINDS, Smerf, ordered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.smerf_statistics import Numbers

SHOWN = {"PIOU": "IOU", "PAFL": "AFL", "PMAFL": "MAFL"}
WORDS = {
    "PIOU": "intersection over union with the primary objects",
    "PAFL": "attribution focus level: the share of weight on primary objects",
    "PMAFL": "attribution focus level per pixel of the primary objects",
}
SMALL = figures._SMALL
STATISTICS = ("average", "worst bucket")


def file_name(measure: str, version: str) -> str:
    """ "afl", "afl_fixed"."""
    name = SHOWN.get(measure, measure).lower()
    return name if version == "paper" else f"{name}_{version}"


def version_name(version: str) -> str:
    return f"{version} preset"


def main(data: Smerf, theme: str) -> Drawings:
    """Average and worst bucket of each condition by itself."""
    for condition in data.conditions:
        for measure in ("PIOU", "PAFL"):
            for version in data.of(condition).versions(measure):
                name = f"average_and_worst/{file_name(measure, version)}"
                draw = partial(
                    average_and_worst, data, theme, measure, version, [condition],
                    title=f"{SHOWN[measure]}: average and worst bucket",
                )  # fmt: skip
                yield in_folder(data, condition, name), draw


def in_folder(data: Smerf, condition: str, name: str) -> str:
    """Figures of the first condition stand at the top, those of others in a folder of theirs."""
    return name if condition == data.conditions[0] else f"{condition}/{name}"


def _compared(column: str, folder: str, title: str) -> Callable[[Smerf, str], Drawings]:
    """Drawings that compare conditions which differ in this column alone."""

    def drawings(data: Smerf, theme: str) -> Drawings:
        fixed = [part for part in CONDITION if part != column]
        table = data.frame.drop_duplicates("condition")
        for _, same in table.groupby(fixed, sort=False):
            names = [c for c in data.conditions if c in set(same["condition"])]
            if len(names) < 2:
                continue
            rest = "" if names[0] == data.conditions[0] else f"{names[0]}/"
            for measure in ("PIOU", "PAFL"):
                for version in data.versions(measure):
                    if not _shared(data, measure, version, names):
                        continue
                    draw = partial(
                        average_and_worst, data, theme, measure, version, names,
                        title=f"{SHOWN[measure]} {title}",
                    )  # fmt: skip
                    yield f"{rest}{folder}/{file_name(measure, version)}", draw

    return drawings


architectures = _compared("architecture", "architectures", "by architecture")
trainings = _compared("training", "adversarial", "of plainly and of adversarially trained models")
backgrounds = _compared("background", "backgrounds", "by background")


def _shared(
    data: Smerf, measure: str, version: str, conditions: Sequence[str]
) -> set[tuple[str, str]]:
    """The (setting, bucket) pairs that all of the conditions have."""
    rows = data.buckets(measure, version=version)
    pairs = [
        set(zip(same["setting"], same["bucket"], strict=True))
        for same in (rows[rows["condition"] == condition] for condition in conditions)
    ]
    return set.intersection(*pairs) if pairs else set()


def average_and_worst(
    data: Smerf,
    theme: str,
    measure: str,
    version: str,
    conditions: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Panels: average and worst bucket, of simple and of complex reasoning; a row per method.

    Several conditions are compared on the buckets that all of them have.
    """
    t = figures.THEMES[theme]
    tables, used = _tables(data, measure, version, conditions)
    kinds = ordered(used.table["kind"], KINDS)
    several = len(conditions) > 1
    labels = set(used.table["label"])
    shown = labels - set(data.controls.values()) if several else labels
    methods = Methods.of(data, shown or labels, t)
    colours = palette(conditions, t)
    counts = {
        kind: len(same[["setting", "bucket"]].drop_duplicates())
        for kind, same in used.table.groupby("kind", sort=False)
    }
    backgrounds = _backgrounds(data, conditions)
    legend = [
        point_key(name, colours[name], t, hollow=name == conditions[0]) for name in conditions
    ] if several else methods_key(data, methods, t)  # fmt: skip
    page = panels(
        theme,
        title=title,
        subtitle=f"{WORDS[measure]}; higher is better; {version_name(version)}"
        + ("" if several else f"; {conditions[0]}"),
        caption=caption(
            data.of(*conditions).design(),
            f"Means over bucket means of {buckets_are({k: counts[k] for k in kinds})}",
            "The same buckets for all that is compared." if several else "",
            intervals_are(used),
            _lines_are(backgrounds),
        ),
        rows=[""],
        columns=[statistic for _ in kinds for statistic in STATISTICS],
        heads=[(f"{kind} reasoning", 2) for kind in kinds],
        size=(1.75, methods.height(0.24 + 0.09 * (len(conditions) - 1))),
        left=methods.left,
        below=0.42,
        legend=[*legend, *control_keys(data, t)],
    )
    for axes, (kind, statistic) in zip(
        page.axes[0], [(kind, s) for kind in kinds for s in STATISTICS], strict=True
    ):
        methods.label(axes, t, shown=axes is page.axes[0][0])
        unit_axis(axes)
        axes.set_xlabel(SHOWN[measure], size=SMALL, color=t.muted, labelpad=2)
        table = tables[statistic]
        table = table[table["kind"] == kind]
        _panel(axes, data, methods, table, conditions, backgrounds, colours, t)
    return page.figure


def _tables(
    data: Smerf, measure: str, version: str, conditions: Sequence[str]
) -> tuple[dict[str, pd.DataFrame], Numbers]:
    """By statistic, intervals by condition, kind and label; and the bucket means behind them."""
    numbers = data.means(measure, version)
    shared = _shared(data, measure, version, conditions)
    pairs = zip(numbers.table["setting"], numbers.table["bucket"], strict=True)
    keep = np.array([pair in shared for pair in pairs], dtype=bool)
    keep &= numbers.table["condition"].isin(conditions).to_numpy()
    used = numbers.only(keep)
    by = ["condition", "kind", "label"]
    return {
        "average": used.average(by).intervals(),
        "worst bucket": used.worst(by).intervals(),
    }, used


def _backgrounds(data: Smerf, conditions: Sequence[str]) -> dict[str, list[str]]:
    """The conditions by background: those of one background share their controls."""
    table = data.frame.drop_duplicates("condition").set_index("condition")["background"]
    out: dict[str, list[str]] = {}
    for condition in conditions:
        out.setdefault(str(table[condition]), []).append(condition)
    return out


def _lines_are(backgrounds: dict[str, list[str]]) -> str:
    if len(backgrounds) > 1:
        return "Lines: controls, in the colour of their background."
    return "Lines: controls, which are the same whatever was trained."


def _panel(
    axes: Axes,
    data: Smerf,
    methods: Methods,
    table: pd.DataFrame,
    conditions: Sequence[str],
    backgrounds: dict[str, list[str]],
    colours: dict[str, str],
    t: figures.Theme,
) -> None:
    several = len(conditions) > 1
    offsets = np.linspace(-0.28, 0.28, len(conditions)) if several else [0.0]
    for background in backgrounds.values():
        of = table[table["condition"] == background[0]].set_index("label")
        own = colours[background[0]] if len(backgrounds) > 1 else None
        draw_controls(axes, data, of, t, colour=own)
    for condition, offset in zip(conditions, offsets, strict=True):
        of = table[table["condition"] == condition]
        of = of[of["label"].isin(methods.names)]
        y = [methods.y[name] + offset for name in of["label"]]
        if several:
            points(axes, of, y, colours[condition], t, hollow=condition == conditions[0])
        else:
            own_colours = [methods.colour[name] for name in of["label"]]
            points(axes, of, y, own_colours, t, hollow=[methods.control[x] for x in of["label"]])
            for name in set(methods.names) - set(of["label"]):
                absent(axes, methods.y[name], t)


def methods_key(data: Smerf, methods: Methods, t: figures.Theme) -> list[Any]:
    """Legend handles: the colour of each family."""
    table = data.methods.loc[methods.names]
    names = list(dict.fromkeys(table.loc[~table["control"], "family"].astype(str)))
    colour = {str(table.loc[name, "family"]): methods.colour[name] for name in methods.names[::-1]}
    keys = [point_key(family, colour[family], t) for family in names]
    if table["control"].any():
        keys.append(point_key("control", t.control, t, hollow=True))
    return keys


# ---------------------------------------------------------------- the worst bucket, side by side


def worst(data: Smerf, theme: str) -> Drawings:
    """The worst bucket of simple and of complex reasoning."""
    for condition in data.conditions:
        for version in data.of(condition).versions("PAFL"):
            name = in_folder(data, condition, f"worst_bucket/{file_name('PAFL', version)}")
            yield name, partial(_worst, data, theme, condition, version)


def _worst(data: Smerf, theme: str, condition: str, version: str) -> Figure:
    t = figures.THEMES[theme]
    numbers = data.means("PAFL", version)
    numbers = numbers.only(numbers.table["condition"] == condition)
    table = numbers.worst(["kind", "label"]).intervals()
    kinds = ordered(table["kind"], KINDS)
    methods = Methods.of(data, set(table["label"]), t)
    colours = palette(kinds, t)
    where = {
        kind: [f"{row.setting} {row.bucket}" for row in table[table["kind"] == kind].itertuples()]
        for kind in kinds
    }
    widest = max(figures._width(name, SMALL) for names in where.values() for name in names)
    page = panels(
        theme,
        title="AFL of the worst bucket",
        subtitle=f"{WORDS['PAFL']}; higher is better; {version_name(version)}; {condition}",
        caption=caption(
            data.of(condition).design(), intervals_are(numbers), "At the right: which bucket it is."
        ),
        rows=[""],
        columns=[""],
        size=(4.2, methods.height(0.36)),
        left=methods.left,
        right=0.35 + widest,
        legend=[*(point_key(f"{kind} reasoning", colours[kind], t) for kind in kinds),
                *control_keys(data, t, half=True)],
    )  # fmt: skip
    axes = page.axes[0][0]
    methods.label(axes, t, shown=True)
    unit_axis(axes, max(0.36, highest_of(table)))
    offsets = np.linspace(-0.2, 0.2, len(kinds)) if len(kinds) > 1 else [0.0]
    for kind, offset in zip(kinds, offsets, strict=True):
        of = table[table["kind"] == kind].set_index("label")
        draw_controls(axes, data, of, t, colour=colours[kind])
        y = [methods.y[str(name)] + offset for name in of.index]
        points(axes, of, y, colours[kind], t)
        for at, setting, bucket in zip(y, of["setting"], of["bucket"], strict=True):
            axes.text(
                1.03, at, f"{setting} {bucket}", size=SMALL, color=colours[kind],
                va="center_baseline", transform=axes.get_yaxis_transform(),
            )  # fmt: skip
    axes.set_xlabel("AFL", size=SMALL, color=t.muted, labelpad=2)
    return page.figure
