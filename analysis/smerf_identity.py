"""Can one tell from a map which model made it? (SMERF's identifiability, as a number)

Models of all settings explained the same *probe* images. A map of one of them is described by the
shares of its weight on Box1, Box2, the letter and elsewhere, and a nearest-neighbour classifier
(Cover & Hart 1967) says which setting's model made it, from the maps of other models of the
settings (another seed), or, where each setting has one model, from those of other images. A
method that shows how models reason lets it be right; at chance, its maps do not tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import bootstrap, figures
from analysis.andor_panels import Methods, panels
from analysis.smerf_panels import (
    SMALL,
    Drawings,
    caption,
    intervals_are,
    point_key,
    points,
    unit_axis,
)
from analysis.smerf_rows import OBJECTS, SETTINGS, Smerf, ordered
from analysis.smerf_statistics import Numbers
from analysis.smerf_summary import in_folder, methods_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEIGHBOURS = 15
FOLDS = 5  # of images, where there is one model per setting
_ACROSS = 5
_APART = 10.0  # images with other objects are no neighbours: shares differ by 1 at most


@dataclass(frozen=True)
class Identity:
    """What the classifier says of the maps of each method.

    settings  names [S]
    rows      one row per method, setting and seed: `samples` are 1 where a map was assigned to
              its own setting, and `value` their mean; a table for `Numbers.of`
    confusion label → float [S, S]: how often (row) maps of a setting went to (column) another
    by_seed   whether the classifier learned from other seeds; else from other images
    """

    settings: list[str]
    rows: pd.DataFrame
    confusion: dict[str, np.ndarray]
    by_seed: bool

    @property
    def chance(self) -> float:
        return 1 / len(self.settings)

    def accuracy(self) -> Numbers:
        """The share of maps that went to their own setting, by method."""
        return Numbers.of(self.rows, ["label"]).average(["label"])


def identify(data: Smerf, condition: str) -> Identity | None:
    """None where fewer than two settings have rows of probe images."""
    rows = _probes(data, condition)
    settings = ordered(rows["setting"], list(SETTINGS))
    if len(settings) < 2:
        return None
    seeds = rows.groupby("setting")["seed"].nunique()
    by_seed = bool((seeds > 1).all())
    found, confusion = [], {}
    for label, same in rows.groupby("label", sort=False):
        models = list(_models(same))
        if len({setting for setting, *_ in models}) < len(settings):
            continue
        said = _assigned(models, settings, by_seed)
        counts = np.zeros((len(settings),) * 2)
        for (setting, seed, row, _), answer in zip(models, said, strict=True):
            own = settings.index(setting)
            counts[own] += np.bincount(answer, minlength=len(settings))
            samples = (answer == own).astype(np.float32)
            found.append(
                {**row, "label": label, "seed": seed, "bucket": "probe", "value": samples.mean(),
                 "samples": samples, "n": len(samples), "sd": samples.std(), "data_key": "probe"}
            )  # fmt: skip
        confusion[str(label)] = counts / counts.sum(1, keepdims=True)
    if not found:
        return None
    return Identity(settings, pd.DataFrame(found), confusion, by_seed)


def _probes(data: Smerf, condition: str) -> pd.DataFrame:
    rows = data.frame[(data.frame["condition"] == condition)]
    rows = rows[rows["score"] == "object_share"]
    facets = rows["facets"].map(json.loads)
    rows = rows.assign(object=facets.map(lambda given: given.get("object")))
    return rows[facets.map(lambda given: given.get("images") == "probe").astype(bool)]


def _models(rows: pd.DataFrame) -> Iterator[tuple[str, int, dict, np.ndarray]]:
    """(setting, seed, a row of it, features [N, 7]) of each trained model that made such maps.

    Features are the four shares, 0 for an object that an image does not have, and which of the
    three objects it has.
    """
    for _, same in rows.groupby(list(bootstrap.CLUSTER), sort=False):
        by_object = {o: bootstrap.samples_of(x) for o, x in zip(same["object"], same["samples"],
                                                               strict=True)}  # fmt: skip
        shares = [by_object.get(name) for name in (*OBJECTS, "elsewhere")]
        if any(share is None for share in shares):
            continue
        x = np.stack([np.asarray(share, dtype=float) for share in shares], 1)
        there = np.isfinite(x[:, : len(OBJECTS)])
        first = same.iloc[0]
        yield (
            str(first["setting"]), int(first["seed"]), dict(first),
            np.hstack([np.nan_to_num(x), _APART * there]),
        )  # fmt: skip


def _assigned(
    models: list[tuple[str, int, dict, np.ndarray]], settings: list[str], by_seed: bool
) -> list[np.ndarray]:
    """For each model, the number of the setting that each of its maps is assigned to."""
    x = np.stack([features for *_, features in models])  # [K, N, F]
    y = np.array([settings.index(setting) for setting, *_ in models])
    seeds = np.array([seed for _, seed, *_ in models])
    out = np.zeros(x.shape[:2], dtype=int)
    everything = np.ones(x.shape[1], dtype=bool)
    if by_seed:
        for seed in np.unique(seeds):
            held = seeds == seed
            out[held] = _told(x, y, ~held, everything, held, everything)
    else:
        whole = np.ones(len(x), dtype=bool)
        folds = np.arange(x.shape[1]) % FOLDS
        for fold in range(FOLDS):
            held = folds == fold
            out[:, held] = _told(x, y, whole, ~held, whole, held)
    return list(out)


def _told(
    x: np.ndarray, y: np.ndarray, models: np.ndarray, images: np.ndarray, asked_models: np.ndarray,
    asked: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """[asked models, asked images] settings, from the maps of `models` on `images`."""
    from sklearn.neighbors import KNeighborsClassifier

    known = x[models][:, images]
    train, classes = known.reshape(-1, x.shape[2]), np.repeat(y[models], images.sum())
    test = x[asked_models][:, asked].reshape(-1, x.shape[2])
    neighbours = min(NEIGHBOURS, len(train))
    fitted = KNeighborsClassifier(neighbours, weights="distance").fit(train, classes)
    found = fitted.predict(test)
    return np.asarray(found).reshape(int(asked_models.sum()), int(asked.sum()))


def likeness(data: Smerf, condition: str) -> pd.DataFrame:
    """How alike the shares are that two models give to the objects of an image: Pearson's r over
    images and objects, mean over pairs of models of one setting (`same`, NaN where each has one
    seed) and of two (`other`). Index: method label."""
    out = {}
    for label, rows in _probes(data, condition).groupby("label", sort=False):
        models = list(_models(rows))
        x = np.array([features[:, :4].ravel() for *_, features in models])
        spread = x.std(axis=1, keepdims=True) if len(x) else np.zeros((0, 1))
        x = (x - x.mean(axis=1, keepdims=True)) if len(x) else x
        unit = np.divide(x, spread, out=np.full(x.shape, np.nan), where=spread > 1e-12)
        r = unit @ unit.T / max(x.shape[-1], 1)
        names = np.array([setting for setting, *_ in models])
        same = names[:, None] == names[None]
        pairs = np.triu(np.ones(same.shape, dtype=bool), 1)
        out[str(label)] = {
            "same": float(bootstrap.nanmean(r[pairs & same])),
            "other": float(bootstrap.nanmean(r[pairs & ~same])),
        }
    return pd.DataFrame.from_dict(out, orient="index", columns=["same", "other"])


# ---------------------------------------------------------------- figures


def drawings(data: Smerf, theme: str) -> Drawings:
    for condition in data.conditions:
        if _probes(data, condition)["setting"].nunique() > 1:
            for name, draw in (("accuracy", _accuracy), ("confusion", _confusion)):
                path = in_folder(data, condition, f"identifiability/{name}")
                yield path, partial(draw, data, theme, condition)


def _of(data: Smerf, condition: str) -> Identity:
    found = identify(data, condition)
    if found is None:
        raise ValueError("no method has rows of probe images of all settings")
    return found


def _learned(found: Identity) -> str:
    of = "other seeds" if found.by_seed else "other images (one seed per setting)"
    images = int(found.rows["n"].max())
    return (
        f"{images:,} probe images; nearest neighbours of the weight on Box1, Box2, text and"
        f" elsewhere, learned from maps of {of}."
    )


def _accuracy(data: Smerf, theme: str, condition: str) -> Figure:
    """Accuracy with interval; and how alike the shares of models of one and of two settings."""
    t = figures.THEMES[theme]
    found = _of(data, condition)
    numbers = found.accuracy()
    table = numbers.intervals()
    alike = likeness(data, condition)
    methods = Methods.of(data, set(table["label"]), t)
    page = panels(
        theme,
        title="Which model made this map?",
        subtitle=f"how well the setting is told from a map's weight on the objects; {condition}",
        caption=caption(
            data.of(condition).design(), _learned(found), intervals_are(numbers),
            "Likeness: Pearson's r of the shares of two models, mean over pairs.",
        ),
        rows=[""],
        columns=["accuracy", "likeness of two models"],
        size=(3.2, methods.height(0.26)),
        left=methods.left,
        below=0.42,
        legend=[
            *methods_key(data, methods, t),
            _line_key(f"chance, 1/{len(found.settings)}", t),
            point_key("models of one setting", t.muted, t, marker="s"),
            point_key("models of two settings", t.muted, t, marker="s", hollow=True),
        ],
    )  # fmt: skip
    left, right = page.axes[0]
    for axes in (left, right):
        methods.label(axes, t, shown=axes is left)
        unit_axis(axes)
    left.axvline(found.chance, color=t.muted, lw=1, ls=(0, (1.5, 1.5)), zorder=1.2)
    points(
        left, table, [methods.y[name] for name in table["label"]],
        [methods.colour[name] for name in table["label"]], t,
        hollow=[methods.control[name] for name in table["label"]],
    )  # fmt: skip
    left.set_xlabel("share of maps assigned to their setting", size=SMALL, color=t.muted)
    lowest = min(0.0, float(np.nanmin(alike.to_numpy(), initial=0.0)))
    right.set_xlim(lowest - 0.03, 1.03)
    alike = alike.loc[[name for name in methods.names if name in alike.index]]
    for column, filled in (("same", True), ("other", False)):
        colours = [methods.colour[name] for name in alike.index]
        faces = colours if filled else [t.paper] * len(colours)
        right.scatter(
            alike[column], [methods.y[name] for name in alike.index], s=22, marker="s",
            facecolors=faces, edgecolors=colours, linewidths=1.1, zorder=3,
        )  # fmt: skip
    right.set_xlabel("Pearson's r", size=SMALL, color=t.muted)
    return page.figure


def _line_key(label: str, t: figures.Theme) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=t.muted, lw=1, ls=(0, (1.5, 1.5)), label=label)


def _confusion(data: Smerf, theme: str, condition: str) -> Figure:
    """For each method, which setting the maps of each setting's models are taken for."""
    t = figures.THEMES[theme]
    found = _of(data, condition)
    names = [name for name in data.methods.index if name in found.confusion]
    names = [name for name in names if not data.methods.loc[name, "control"]] or names
    across = min(_ACROSS, len(names))
    down = -(-len(names) // across)
    short = [setting.replace("Simple-", "S-").replace("Complex-", "C-")
             for setting in found.settings]  # fmt: skip
    page = panels(
        theme,
        title="Which setting are maps taken for?",
        subtitle=f"rows: the setting whose models made the maps; columns: what they are taken"
        f" for; {condition}",
        caption=caption(
            data.of(condition).design(), _learned(found),
            f"Darker is more, numbers are percent; chance is {100 * found.chance:.0f}.",
        ),
        rows=[""] * down,
        columns=[""] * across,
        size=(1.9, 1.9),
        left=0.75,
        below=0.55,
        gap=(0.15, 0.35),
    )  # fmt: skip
    every = [axes for line in page.axes for axes in line]
    for axes in every[len(names) :]:
        axes.remove()
    colours = _shades(t)
    places = range(len(short))
    for i, (axes, name) in enumerate(zip(every, names, strict=False)):
        shares = found.confusion[str(name)]
        axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto")
        right = float(np.trace(shares)) / len(short)
        axes.set_title(f"{name}: {100 * right:.0f} %", size=SMALL, color=t.ink, pad=4)
        axes.set_xticks(list(places), short, rotation=90, size=SMALL - 1)
        axes.set_yticks(
            list(places), short if i % across == 0 else [""] * len(short), size=SMALL - 1
        )
        for side in axes.spines.values():
            side.set_visible(False)
        for row in places:
            for column in places:
                share = shares[row, column]
                if share >= 0.005:
                    axes.text(
                        column, row, f"{100 * share:.0f}", ha="center", va="center",
                        size=SMALL - 2, color=figures._readable(colours(share)),
                    )  # fmt: skip
    return page.figure


def _shades(t: figures.Theme) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", [t.middle, t.high])
