"""The SMERF study bucket by bucket: primary beside secondary, groups, numbers of objects, failures,
and how accurate the models are that were explained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis import bootstrap, figures, summary
from analysis.andor_panels import SHAPES, Methods, panels, whisker
from analysis.smerf_panels import (
    SMALL,
    Drawings,
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
from analysis.smerf_rows import GROUPS, Smerf, number, objects, ordered, scorable, truth
from analysis.smerf_summary import file_name, in_folder, version_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.smerf_statistics import Numbers

# Primary and secondary measure, and what the pair is called.
PAIRS = {"iou": ("PIOU", "SIOU"), "afl": ("PAFL", "SAFL"), "mafl": ("PMAFL", "SMAFL")}
ROLES = ("primary", "secondary")
_ACROSS = 6  # panels beside each other
_WORST = 6  # buckets that are shown as failures


def _each(
    data: Smerf, pairs: Sequence[str], folder: str, draw: Callable[[str, str, str], Figure]
) -> Drawings:
    """One figure for each condition, pair of measures and version, which `draw` is given."""
    for condition in data.conditions:
        part = data.of(condition)
        for pair in pairs:
            for version in part.versions(PAIRS[pair][0]):
                name = f"{folder}/{file_name(PAIRS[pair][0], version)}"
                yield in_folder(data, condition, name), partial(draw, condition, pair, version)


def _means(data: Smerf, condition: str, measure: str, version: str) -> Numbers:
    numbers = data.means(measure, version)
    return numbers.only(numbers.table["condition"] == condition)


def _role_colours(t: figures.Theme) -> dict[str, str]:
    return {"primary": t.families["gradient"], "secondary": t.families["cam"]}


# ---------------------------------------------------------------- one panel per bucket


def buckets(data: Smerf, theme: str) -> Drawings:
    """Every bucket of a setting: the measure of its primary and of its secondary objects."""
    for setting in data.settings:
        yield from _each(
            data, list(PAIRS), f"buckets/{setting}",
            lambda *which, setting=setting: _buckets(data, theme, setting, *which),
        )  # fmt: skip


def _buckets(
    data: Smerf, theme: str, setting: str, condition: str, pair: str, version: str
) -> Figure:
    t = figures.THEMES[theme]
    both = [_means(data, condition, measure, version) for measure in PAIRS[pair]]
    both = [numbers.only(numbers.table["setting"] == setting) for numbers in both]
    tables = [numbers.intervals() for numbers in both]
    names = sorted({*tables[0]["bucket"], *tables[1]["bucket"]}, key=number)
    return _grid(
        data, theme, tables, [(setting, name) for name in names],
        [f"{number(name)}: {name}" for name in names],
        title=f"{setting}: {pair.upper()} by bucket",
        subtitle="primary objects, which a map should mark, and secondary ones, which it should"
        f" not; {version_name(version)}; {condition}",
        note=caption(
            data.of(condition).design(), intervals_are(both[0]),
            "Numbers of buckets as in the paper.",
        ),
        axis=pair.upper(), size=(1.3, 0.185), t=t,
    )  # fmt: skip


def _grid(
    data: Smerf,
    theme: str,
    tables: Sequence[pd.DataFrame],
    shown: Sequence[tuple[str, str]],
    heads: Sequence[str],
    *,
    title: str,
    subtitle: str,
    note: str,
    axis: str,
    size: tuple[float, float],
    t: figures.Theme,
    across: int = _ACROSS,
) -> Figure:
    """A panel per (setting, bucket), with the points of both roles and lines of controls."""
    across = min(across, len(shown))
    down = -(-len(shown) // across)
    labels = set(tables[0]["label"]) | set(tables[1]["label"])
    methods = Methods.of(data, labels, t)
    colours = _role_colours(t)
    lines = max(head.count("\n") for head in heads)
    highest = highest_of(*tables)
    legend = [point_key(f"{role} objects", colours[role], t) for role in ROLES]
    page = panels(
        theme,
        title=title,
        subtitle=subtitle,
        caption=f"{note} Lines: controls on primary objects.",
        rows=[""] * down,
        columns=["\n" * lines] * across,
        size=(size[0], methods.height(size[1])),
        left=methods.left,
        below=0.4,
        gap=(0.18, 0.3 + 0.16 * lines),
        legend=[*legend, *control_keys(data, t, half=highest > 0.35)],
    )
    every = [axes for line in page.axes for axes in line]
    for axes in every[len(shown) :]:
        axes.remove()
    for i, (axes, (setting, bucket), head) in enumerate(zip(every, shown, heads, strict=False)):
        axes.set_title(head, size=SMALL, color=t.ink, pad=5)
        methods.label(axes, t, shown=i % across == 0)
        unit_axis(axes, highest)
        if i + across >= len(shown):
            axes.set_xlabel(axis, size=SMALL, color=t.muted, labelpad=2)
        for role, table in zip(ROLES, tables, strict=True):
            of = table[(table["setting"] == setting) & (table["bucket"] == bucket)]
            of = of.set_index("label")
            if role == "primary":
                draw_controls(axes, data, of, t, half=highest > 0.35)
            shift = 0.14 if role == "secondary" else -0.14
            y = [methods.y[str(name)] + shift for name in of.index]
            if "p10" in of:
                axes.hlines(y, of["p10"], of["p90"], colors=colours[role], lw=4, alpha=0.25)
            points(axes, of, y, colours[role], t, size=3.6, lw=1.2)
    return page.figure


# ---------------------------------------------------------------- groups of buckets


def groups(data: Smerf, theme: str) -> Drawings:
    """The mean over all buckets, and groups of buckets that the paper looks at."""
    pages = {"simple": ["Simple-FR", "Simple-NR"]}
    pages |= {setting: [setting] for setting in GROUPS if setting.startswith("Complex")}
    for page, settings in pages.items():
        if set(settings) & set(data.settings):
            yield from _each(
                data, ["afl"], f"groups/{page}",
                lambda *which, settings=settings: _groups(data, theme, settings, *which),
            )  # fmt: skip


def grouped(numbers: Numbers, settings: Sequence[str]) -> Numbers:
    """The average of each group of buckets of these settings, by method; column `group`."""
    parts = []
    for setting in settings:
        for name in GROUPS.get(setting, {}):
            found = in_groups(numbers, setting, [name]).average(["label"])
            if len(found):
                parts.append((f"{setting}: {name}" if len(settings) > 1 else name, found))
    return stacked(parts, "group") if parts else in_groups(numbers, "", [])


def in_groups(numbers: Numbers, setting: str, names: Sequence[str]) -> Numbers:
    """The buckets of these groups of `GROUPS`."""
    members = {bucket for name in names for bucket in GROUPS[setting][name]}
    here = (numbers.table["setting"] == setting) & numbers.table["bucket"].isin(members)
    return numbers.only(here)


def stacked(parts: Sequence[tuple[str, Numbers]], column: str) -> Numbers:
    """Numbers one after the other, their names in a column."""
    from analysis.smerf_statistics import Numbers

    return Numbers(
        pd.concat([n.table.assign(**{column: name}) for name, n in parts], ignore_index=True),
        *(np.concatenate([getattr(n, part) for _, n in parts])
          for part in ("value", "drawn", "freedom")),
    )  # fmt: skip


def _groups(
    data: Smerf, theme: str, settings: Sequence[str], condition: str, pair: str, version: str
) -> Figure:
    t = figures.THEMES[theme]
    kind = settings[0].partition("-")[0].lower()
    both = [_means(data, condition, measure, version) for measure in PAIRS[pair]]
    both = [numbers.only(numbers.table["kind"] == kind) for numbers in both]
    methods = Methods.of(data, {*both[0].table["label"], *both[1].table["label"]}, t)
    marked = [grouped(numbers, settings) for numbers in both]
    names = list(dict.fromkeys([n for m in marked for n in m.table.get("group", [])]))
    colours = palette(names, t)
    shapes = dict(zip(names, SHAPES * 2, strict=False))
    means = [numbers.average(["label"]).intervals() for numbers in both]
    n = len(both[0].table[["setting", "bucket"]].drop_duplicates())
    page = panels(
        theme,
        title=f"{' and '.join(settings)}: {pair.upper()} of groups of buckets",
        subtitle=f"share of weight on primary and on secondary objects; {version_name(version)};"
        f" {condition}",
        caption=caption(
            data.of(condition).design(),
            f"Bars: the mean over all {kind} buckets ({n} with primary objects).",
            intervals_are(both[0]),
        ),
        rows=[""],
        columns=["PAFL: primary objects", "SAFL: secondary objects"],
        size=(3.4, methods.height(0.3)),
        left=methods.left,
        below=0.42,
        legend=[
            *(point_key(name, colours[name], t, marker=shapes[name]) for name in names),
            *control_keys(data, t),
        ],
    )
    for axes, table, numbers in zip(page.axes[0], means, marked, strict=True):
        methods.label(axes, t, shown=axes is page.axes[0][0])
        unit_axis(axes)
        axes.set_xlabel("share of weight", size=SMALL, color=t.muted, labelpad=2)
        of = table.set_index("label")
        draw_controls(axes, data, of, t)
        for name in of.index:
            row, at = summary.row(of, name), methods.y[str(name)]
            axes.barh(at, row["estimate"], height=0.7, color=t.band, linewidth=0, zorder=1)
            whisker(axes, [float(row["low"]), float(row["high"])], [at, at], t)
        if not len(numbers):
            continue
        found = numbers.intervals()
        offsets = dict(zip(names, np.linspace(-0.24, 0.24, max(2, len(names))), strict=False))
        for group in dict.fromkeys(found["group"]):
            same = found[found["group"] == group]
            y = [methods.y[name] + offsets[group] for name in same["label"]]
            points(axes, same, y, colours[group], t, marker=shapes[group], size=4.2, lw=1.1)
    return page.figure


# ---------------------------------------------------------------- how many objects there are


def object_counts(data: Smerf, theme: str) -> Drawings:
    """Simple reasoning by the number of objects in an image."""
    if any(setting in data.settings for setting in ("Simple-FR", "Simple-NR")):
        yield from _each(
            data, ["afl", "iou"], "objects",
            lambda *which: _object_counts(data, theme, *which),
        )  # fmt: skip


def by_count(numbers: Numbers) -> Numbers:
    """The average over the buckets with equally many objects, by setting and method; `objects`."""
    counts = [len(objects(bucket)) for bucket in numbers.table["bucket"]]
    table = numbers.table.assign(objects=counts)
    return replace(numbers, table=table).average(["setting", "label", "objects"])


def has_primary(table: pd.DataFrame) -> np.ndarray:
    """bool [rows]: whether images of the bucket have a primary object."""
    at = zip(table["setting"], table["bucket"], strict=True)
    return np.array([bucket in scorable(setting) for setting, bucket in at], dtype=bool)


def _object_counts(data: Smerf, theme: str, condition: str, pair: str, version: str) -> Figure:
    t = figures.THEMES[theme]
    both = [_means(data, condition, measure, version) for measure in PAIRS[pair]]
    both = [numbers.only(numbers.table["kind"] == "simple") for numbers in both]
    both[1] = both[1].only(has_primary(both[1].table))
    tables = [by_count(numbers).intervals() for numbers in both]
    settings = ordered(tables[0]["setting"], list(GROUPS))
    methods = Methods.of(data, set(tables[0]["label"]), t)
    colours = dict(zip((1, 2, 3), palette("abc", t).values(), strict=True))
    page = panels(
        theme,
        title=f"{pair.upper()} by the number of objects in an image",
        subtitle=f"of primary (P) and of secondary (S) objects; {version_name(version)};"
        f" {condition}",
        caption=caption(data.of(condition).design(), intervals_are(both[0])),
        rows=[""],
        columns=[measure for _ in settings for measure in PAIRS[pair]],
        heads=[(setting, 2) for setting in settings],
        size=(1.75, methods.height(0.34)),
        left=methods.left,
        below=0.42,
        legend=[
            point_key("1 object" if n == 1 else f"{n} objects", colour, t)
            for n, colour in colours.items()
        ],
    )
    for axes, (setting, table) in zip(
        page.axes[0], [(s, table) for s in settings for table in tables], strict=True
    ):
        methods.label(axes, t, shown=axes is page.axes[0][0])
        unit_axis(axes)
        axes.axvline(0.5, color=t.line, lw=1.2, zorder=0.8)
        axes.set_xlabel(pair.upper(), size=SMALL, color=t.muted, labelpad=2)
        for n, colour in colours.items():
            same = table[(table["setting"] == setting) & (table["objects"] == n)]
            y = [methods.y[name] + 0.26 * (n - 2) for name in same["label"]]
            points(axes, same, y, colour, t, size=4.2, lw=1.2)
    return page.figure


# ---------------------------------------------------------------- where maps fail


def failures(data: Smerf, theme: str) -> Drawings:
    """The buckets with the lowest AFL, in detail."""
    yield from _each(
        data, ["afl"], "failures", lambda *which: _failures(data, theme, *which)
    )  # fmt: skip


def _failures(data: Smerf, theme: str, condition: str, pair: str, version: str) -> Figure:
    t = figures.THEMES[theme]
    both = [_means(data, condition, measure, version) for measure in PAIRS[pair]]
    tables = [
        _with_spread(data, numbers.intervals(), condition, measure, version)
        for numbers, measure in zip(both, PAIRS[pair], strict=True)
    ]
    control = data.methods["control"]
    rated = tables[0][~tables[0]["label"].map(control).astype(bool)]
    rated = rated if len(rated) else tables[0]
    order = rated.groupby(["setting", "bucket"])["estimate"].mean().sort_values()
    lowest = [(str(s), str(b)) for s, b in order.index[:_WORST]]
    heads = []
    for setting, bucket in lowest:
        roles = truth(setting).get(bucket, ((), ()))
        words = [
            f"{role}: {', '.join(names) or '–'}" for role, names in zip(ROLES, roles, strict=True)
        ]
        heads.append("\n".join([f"{setting}, {bucket}", *words]))
    return _grid(
        data, theme, tables, lowest, heads,
        title=f"Where maps fail: the {len(lowest)} buckets with the lowest AFL",
        subtitle=f"by the mean PAFL over methods; {version_name(version)}; {condition}",
        note=caption(
            data.of(condition).design(), intervals_are(both[0]),
            "Broad bars: the middle 80 % of images.",
        ),
        axis=pair.upper(), size=(2.5, 0.24), t=t, across=3,
    )  # fmt: skip


def _with_spread(
    data: Smerf, table: pd.DataFrame, condition: str, measure: str, version: str
) -> pd.DataFrame:
    """With the 10th and 90th percentile of images, over all models, as `p10` and `p90`."""
    rows = data.of(condition).buckets(measure, version=version)
    keys = ["setting", "bucket", "label"]
    spreads = []
    for key, same in rows.groupby(keys):
        samples = [bootstrap.samples_of(value) for value in same["samples"]]
        values = np.concatenate([s[np.isfinite(s)] for s in samples if s is not None] or [[]])
        if len(values):
            low, high = np.quantile(values, [0.1, 0.9])
            spreads.append([*key, low, high])
    return table.merge(pd.DataFrame(spreads, columns=[*keys, "p10", "p90"]), on=keys, how="left")


# ---------------------------------------------------------------- the models


def accuracy(data: Smerf, theme: str) -> Drawings:
    """Accuracy by bucket, and whether predictions follow the rule when an object is changed."""
    for condition in data.conditions:
        if len(data.of(condition).models):
            yield in_folder(data, condition, "accuracy"), partial(_accuracy, data, theme, condition)


def accuracies(data: Smerf, condition: str) -> pd.DataFrame:
    """setting, what ("all images", a bucket or an edit), mean and lowest over models."""
    rows = data.of(condition).models
    edits = rows["facets"].map(lambda given: json.loads(given).get("edit"))
    what = edits.where(rows["score"] == "counterfactual", rows["bucket"])
    what = what.astype(object).where(what.notna(), "all images")
    rows = rows.assign(what=what)
    rows = rows[np.isfinite(rows["value"].astype(float))]
    by = rows.groupby(["setting", "score", "what"], sort=False)["value"]
    return by.agg(mean="mean", lowest="min", n="size").reset_index()


def _accuracy(data: Smerf, theme: str, condition: str) -> Figure:
    t = figures.THEMES[theme]
    table = accuracies(data, condition)
    settings = ordered(table["setting"], list(GROUPS))
    of_bucket = table[table["score"] == "accuracy"]["what"]
    named = sorted(set(of_bucket) - {"all images"}, key=number)
    edits = list(dict.fromkeys(table.loc[table["score"] == "counterfactual", "what"]))
    names = [*(["all images"] if "all images" in set(of_bucket) else []), *named, *edits]
    left = max(figures._width(name, figures._BODY) for name in names) + 0.3
    page = panels(
        theme,
        title="Do the models reason as they should?",
        subtitle=f"accuracy by bucket, and how often predictions follow the rule after an edit;"
        f" {condition}",
        caption=caption(
            data.of(condition).design(),
            "Mean over seeds, and in brackets the lowest, which the colour follows.",
        ),
        rows=[""],
        columns=[setting.replace("-", "-\n") for setting in settings],
        size=(1.15, 0.27 * len(names)),
        left=left,
        below=0.1,
        gap=(0.0, 0.0),
    )
    floor = min(0.9, float(table["lowest"].min()))
    colours = figures._colours(t)
    for axes, setting in zip(page.axes[0], settings, strict=True):
        axes.set(xlim=(0, 1), ylim=(len(names), 0))
        axes.set_xticks([])
        axes.set_yticks(np.arange(len(names)) + 0.5, names if axes is page.axes[0][0] else [])
        axes.tick_params(axis="y", labelsize=figures._BODY, labelcolor=t.ink)
        for side in axes.spines.values():
            side.set_visible(False)
        found = table[table["setting"] == setting].set_index("what")
        for i, name in enumerate(names):
            if name not in found.index:
                continue
            row = summary.row(found, name)
            fill = colours((row["lowest"] - floor) / max(1 - floor, 1e-9))
            figures._block(axes, 0, i, 1, facecolor=fill, edgecolor=t.paper)
            shown = f"{row['mean']:.3f}"
            if row["n"] > 1:
                shown += f" ({row['lowest']:.3f})"
            figures._cell_text(axes, 0, i + 0.5, shown, figures._readable(fill))
        if edits and edits[0] in names:
            axes.axhline(names.index(edits[0]), color=t.muted, lw=1)
    return page.figure
