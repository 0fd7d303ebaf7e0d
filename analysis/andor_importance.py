"""What maps and forests find important: by gate, by class, and input by input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis import figures
from analysis.andor_general import class_name, top
from analysis.andor_panels import columns, empty, only_first, panels
from analysis.andor_rows import (
    CLASSES,
    GATES,
    TRAINED,
    Andor,
    count,
    input_number,
    ordered,
    spread,
    variants,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawings = Iterator[tuple[str, Callable[[], "Figure"]]]
IRRELEVANT = "irrelevant"
_GATE = re.compile(r"(and|or|xor)(\d*)")


def forest_importance(data: Andor, theme: str) -> Drawings:
    rows = _of_gates(data.score("forest_importance", "bucket"))
    # Every method's rows repeat the forest's numbers: a model's forest counts once.
    rows = rows.drop_duplicates(["dataset", "model", "model_params", "seed", "fold", "bucket"])
    if len(rows):
        yield "general/forest_importance", partial(
            _by_gate, data, rows.assign(**{"class": "all"}), theme,
            "What random forests find important",
            "mean decrease in impurity, mean over the inputs of a gate", "importance",
        )  # fmt: skip


def mean_maps(data: Andor, theme: str) -> Drawings:
    for suffix, label, rows in _mean_rows(data):
        rows = rows[rows["class"] == "all"]
        if len(rows):
            yield f"general/mean_importance{suffix}/{label}", _map_figure(data, rows, label, theme)


def mean_maps_by_class(data: Andor, theme: str) -> Drawings:
    for suffix, label, rows in _mean_rows(data):
        if set(rows["class"]) - {"all"}:
            name = f"general/mean_importance_by_class{suffix}/{label}"
            yield name, _map_figure(data, rows, label, theme)


def _mean_rows(data: Andor) -> Iterator[tuple[str, str, pd.DataFrame]]:
    rows = _of_gates(data.score("mean_importance", "class", "bucket"))
    for suffix, mine in variants(rows):
        for label in _labels(data, mine):
            yield suffix, label, mine[mine["label"] == label]


def _of_gates(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the rows of single inputs, and of the difference that stands in rankings."""
    return rows[rows["bucket"].map(input_number).isna() & (rows["bucket"] != "contrast")]


def _map_figure(data: Andor, rows: pd.DataFrame, label: str, theme: str) -> Callable[[], Figure]:
    subtitle = "mean score of the inputs of each gate, and of the irrelevant inputs"
    return partial(_by_gate, data, rows, theme, f"Mean map of {label}", subtitle, "mean score")


def _by_gate(
    data: Andor, rows: pd.DataFrame, theme: str, title: str, subtitle: str, axis: str
) -> Figure:
    """Bars per gate of the formula: a row of panels per class, a column per gate on top."""
    t = figures.THEMES[theme]
    classes, gates = ordered(rows["class"], CLASSES), ordered(rows["gate"], GATES)
    buckets = _gates(rows["bucket"])
    shown = _named(buckets)
    page = panels(
        theme,
        title=title,
        subtitle=subtitle,
        caption=f"{count(rows)} Mean and one standard deviation over trained models. {data.who()}",
        rows=[class_name(name) for name in classes] if len(classes) > 1 else [""],
        columns=[top(gate) for gate in gates],
        size=(max(2.4, 0.62 * len(buckets)), 1.75),
        left=0.75,
        below=0.3,
        gap=(0.28, 0.22),
    )
    for line, name in zip(page.axes, classes, strict=True):
        for axes, gate in zip(line, gates, strict=True):
            mine = rows[(rows["class"] == name) & (rows["gate"] == gate)]
            if mine.empty or not np.isfinite(mine["value"].astype(float)).any():
                empty(axes, t)
                continue
            table = spread(mine, "bucket").rename(index=dict(zip(buckets, shown, strict=True)))
            columns(axes, shown, table, [_colour(bucket, t) for bucket in buckets], t)
        _together(line)
        only_first(line, axis, t)
    return page.figure


def _together(line: list) -> None:  # type: ignore[type-arg]
    """One y scale for a row of panels."""
    ends = np.array([axes.get_ylim() for axes in line if axes.patches])
    for axes in line:
        if len(ends):
            axes.set_ylim(ends[:, 0].min(), ends[:, 1].max())


def _gates(found: pd.Series) -> list[str]:
    names = sorted(set(found) - {IRRELEVANT}, key=lambda name: (len(name), name))
    kinds = {kind: [n for n in names if _kind(n) == kind] for kind in GATES}
    known = [name for kind in GATES for name in kinds[kind]]
    rest = [name for name in names if name not in known]
    return [*known, *rest, *([IRRELEVANT] if IRRELEVANT in set(found) else [])]


def _kind(bucket: str) -> str:
    found = _GATE.fullmatch(bucket)
    return found[1] if found else ""


def _named(buckets: list[str]) -> list[str]:
    """`AND`, or `AND 1` and `AND 2` where there are several."""
    kinds = [_kind(bucket) for bucket in buckets]
    return [
        bucket if not kind
        else kind.upper() if kinds.count(kind) == 1
        else f"{kind.upper()} {kinds[:i].count(kind) + 1}"
        for i, (kind, bucket) in enumerate(zip(kinds, buckets, strict=True))
    ]  # fmt: skip


def _colour(bucket: str, t: figures.Theme) -> str:
    colours = {"and": "gradient", "or": "cam", "xor": "lrp"}
    kind = _kind(bucket)
    return t.families[colours[kind]] if kind else t.control


# ---------------------------------------------------------------- input by input


def wrong_importance(data: Andor, theme: str) -> Drawings:
    every = data.score("wrong_importance", "class", "bucket")
    if every.empty:
        return
    of_mean = every["score_params"].map(lambda given: json.loads(given).get("of") == "mean_map")
    for name, chosen in (("wrong_importance", ~of_mean), ("wrong_importance_of_mean", of_mean)):
        for suffix, mine in variants(every[chosen.astype(bool)]):
            for config in dict.fromkeys(mine["config"]):
                here = _of_formula(mine[mine["config"] == config])
                for label in _labels(data, here):
                    part = here[here["label"] == label]
                    draw = partial(_inputs, data, part, label, config, theme, name)
                    yield f"{config}/{name}{suffix}/{label}", draw


def _of_formula(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the inputs of the formula, with their number as `input`.

    Irrelevant inputs come last, and count something else: bucket "relevant" is the mean over
    those of the formula, which tells how many they are.
    """
    keys = [*TRAINED, "label", "class"]
    inputs = rows.assign(input=rows["bucket"].map(input_number)).dropna(subset="input")
    table = inputs.pivot_table(index=keys, columns="input", values="value")
    mean = rows[rows["bucket"] == "relevant"].drop_duplicates(keys).set_index(keys)["value"]
    upto = table.cumsum(axis=1) / np.arange(1, table.shape[1] + 1)
    same = np.isclose(upto, mean.reindex(table.index).to_numpy()[:, None], equal_nan=True)
    number = np.flatnonzero(same.all(axis=0))
    last = table.columns[number[-1]] if len(number) else table.columns[-1]
    return inputs[inputs["input"] <= last]


def _labels(data: Andor, rows: pd.DataFrame) -> list[str]:
    """The methods of some rows, in the order of the figures."""
    return [str(name) for name in data.methods.index if name in set(rows["label"])]


def _inputs(
    data: Andor, rows: pd.DataFrame, label: str, config: str, theme: str, kind: str
) -> Figure:
    t = figures.THEMES[theme]
    rows = rows.assign(value=100 * rows["value"].astype(float))
    classes, gates = ordered(rows["class"], CLASSES), ordered(rows["gate"], GATES)
    shown = [*(["all"] if len(gates) > 1 else []), *gates]
    numbers = sorted(set(rows["input"].astype(int)))
    page = panels(
        theme,
        title=f"Inputs that {label} places below an irrelevant one: {config}",
        subtitle="share of the "
        + ("mean maps" if kind.endswith("mean") else "maps")
        + " in which an input scores below the highest irrelevant one",
        caption=f"{count(rows)} Mean and one standard deviation over trained models. Inputs are"
        f" numbered from 1, in the order of the gates. {data.who()}",
        rows=[class_name(name) for name in classes],
        columns=["all gates" if gate == "all" else top(gate) for gate in shown],
        size=(max(1.9, 0.24 * len(numbers)), 1.5),
        left=0.75,
        below=0.32,
        gap=(0.25, 0.22),
    )
    names = [str(number + 1) for number in numbers]
    for line, name in zip(page.axes, classes, strict=True):
        for axes, gate in zip(line, shown, strict=True):
            mine = rows[(rows["class"] == name) & ((rows["gate"] == gate) | (gate == "all"))]
            if mine.empty or not np.isfinite(mine["value"]).any():
                empty(axes, t)
                continue
            table = spread(mine.assign(input=mine["input"].astype(int)), "input")
            table = table.rename(index={n: str(n + 1) for n in numbers})
            columns(axes, names, table, [t.families["gradient"]] * len(names), t)
            axes.set_ylim(0, 105)
        only_first(line, "below [%]", t)
    return page.figure
