"""Maps to look at: an image of each bucket, its objects outlined, and what each method makes of it.

Drawn from the file that the study keeps with each run (`FILE`), an .npz with N images and M
methods:

    images      uint8 [N, H, W, 3]
    boxes       int16 [N, O, 4]: row0, row1, column0, column1, half open; -1 if absent
    objects     names [O]
    roles       [N, O]: "primary", "secondary" or "other"
    buckets     names [N]
    methods     labels [M]
    maps        float16 [M, N, H, W], signed, summed over channels
    prediction, label   int [N]
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import figures
from analysis.smerf_panels import SMALL, Drawings
from analysis.smerf_rows import SETTINGS, Smerf, number, ordered
from analysis.smerf_summary import in_folder
from experiments.rows import label as whole_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "gallery.npz"
CELL, GAP = 0.62, 0.05  # inches
_CLIPPED = 99.5  # percentile of a map's magnitudes that has the full colour
_NEEDED = ("images", "boxes", "objects", "roles", "buckets", "methods", "maps", "prediction",
           "label")  # fmt: skip


@dataclass(frozen=True)
class Gallery:
    """What one run keeps; arrays as above, one image of each bucket, by number."""

    arrays: dict[str, np.ndarray]

    @classmethod
    def read(cls, data: bytes) -> Gallery:
        """Raises ValueError for a file that lacks an array."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            missing = [name for name in _NEEDED if name not in file.files]
            if missing:
                raise ValueError(f"{FILE} lacks {', '.join(missing)}")
            arrays = {name: file[name] for name in _NEEDED}
        first: dict[str, int] = {}
        for i, bucket in enumerate(arrays["buckets"]):
            first.setdefault(str(bucket), i)
        rows = [first[bucket] for bucket in sorted(first, key=number)]
        for name in ("images", "boxes", "roles", "buckets", "prediction", "label"):
            arrays[name] = arrays[name][rows]
        arrays["maps"] = arrays["maps"][:, rows].astype(np.float32)
        return cls(arrays)


def drawings(data: Smerf, theme: str, files: Mapping[int, bytes]) -> Drawings:
    """One page for each setting and condition, of the run with the lowest seed."""
    rows = data.frame[data.frame["experiment"].isin(list(files))]
    runs = rows.drop_duplicates(["condition", "setting", "seed"]).sort_values("seed")
    runs = runs.drop_duplicates(["condition", "setting"])
    settings = ordered(runs["setting"], list(SETTINGS))
    labels = _labels(data)
    for condition in data.conditions:
        for setting in settings:
            here = runs[(runs["condition"] == condition) & (runs["setting"] == setting)]
            for experiment, seed in zip(here["experiment"], here["seed"], strict=True):
                draw = partial(
                    _page, files[experiment], theme, labels, f"{setting}: maps of all methods",
                    f"{condition}, seed {seed}",
                )  # fmt: skip
                yield in_folder(data, condition, f"gallery/{setting}"), draw


def _labels(data: Smerf) -> dict[str, str]:
    """What the file calls a method → what figures call it."""
    pairs = data.frame.drop_duplicates(["method", "method_params"])
    pairs = pairs[["method", "method_params", "label"]]
    return {
        whole_label(method, json.loads(params)): short
        for method, params, short in pairs.itertuples(index=False, name=None)
    }


def _page(data: bytes, theme: str, labels: Mapping[str, str], title: str, whose: str) -> Any:
    t = figures.THEMES[theme]
    gallery = Gallery.read(data).arrays
    names = [labels.get(str(name), str(name)) for name in gallery["methods"]]
    wrong = gallery["prediction"] != gallery["label"]
    rows = [
        f"{number(str(bucket))}: {bucket}{' (wrong)' if missed else ''}"
        for bucket, missed in zip(gallery["buckets"], wrong, strict=True)
    ]
    step = CELL + GAP
    left = max(figures._width(name, SMALL) for name in rows) + 0.45
    head = max(figures._width(name, SMALL) for name in names) * 0.72 + 0.9
    across, down = len(names) + 1, len(rows)
    ends = [i * step + CELL + 0.72 * figures._width(name, SMALL) for i, name in enumerate(names, 1)]
    wide = left + max(across * step, *ends) + 0.2
    caption = figures._wrap(
        "One test image of each bucket. Outlined: primary objects (solid) and secondary ones"
        " (dashed). Maps are sums over channels, each by itself from its largest magnitude (99.5th"
        " percentile): for the explained class (blue) and against it (orange). “wrong”: the model"
        " does not predict the label. Numbers of buckets as in the paper.",
        wide - 0.6, SMALL,
    )  # fmt: skip
    bottom = 0.3 + 0.155 * len(caption)
    tall = head + down * step + bottom
    figure, axes = figures._canvas(
        wide, tall, (left, bottom, across * step, down * step), t
    )  # fmt: skip
    axes.set(xlim=(0, across * step), ylim=(down * step, 0))
    axes.axis("off")
    for row, name in enumerate(rows):
        axes.text(
            -0.1, row * step + CELL / 2, name, ha="right", va="center", size=SMALL,
            color=t.low if wrong[row] else t.ink,
        )  # fmt: skip
    for column, name in enumerate(["image", *names]):
        axes.text(
            column * step + CELL / 2, -0.08, name, rotation=45, ha="left", va="bottom", size=SMALL,
            color=t.ink, rotation_mode="anchor",
        )  # fmt: skip
    for row, column, picture in _pictures(gallery, t):
        x, y = column * step, row * step
        axes.imshow(picture, extent=(x, x + CELL, y + CELL, y), interpolation="nearest", zorder=1)
    axes.set(xlim=(0, across * step), ylim=(down * step, 0), aspect="auto")
    _outlines(axes, gallery, across, step, t)
    figures._titles(figure, title, f"one image of each bucket, from the top by number; {whose}", t)
    figures._write(figure, caption, t)
    return figure


def _pictures(gallery: dict[str, np.ndarray], t: figures.Theme) -> Iterator[tuple[int, int, Any]]:
    """(row, column, what `imshow` takes) of each cell."""
    colours = figures._colours(t)
    for row, image in enumerate(gallery["images"]):
        yield row, 0, image
    for column, of_method in enumerate(gallery["maps"], 1):
        for row, map_ in enumerate(of_method):
            most = np.nanpercentile(np.abs(map_), _CLIPPED)
            most = most if most > 0 else float(np.nanmax(np.abs(map_), initial=0.0)) or 1.0
            yield row, column, colours(np.clip(np.nan_to_num(map_) / most, -1, 1) / 2 + 0.5)


def _outlines(
    axes: Axes, gallery: dict[str, np.ndarray], across: int, step: float, t: figures.Theme
) -> None:
    """The objects of each image, in all of its row."""
    from matplotlib.collections import LineCollection

    pixel = CELL / gallery["images"].shape[1]
    styles = {"primary": (t.families["perturbation"], "-"),
              "secondary": (t.families["lrp"], (0, (2, 1.5)))}  # fmt: skip
    for role, (colour, dashes) in styles.items():
        lines = []
        for row, (boxes, roles) in enumerate(zip(gallery["boxes"], gallery["roles"], strict=True)):
            for row0, row1, column0, column1 in boxes[(roles == role) & (boxes[:, 0] >= 0)]:
                y0, y1 = row * step + pixel * row0, row * step + pixel * row1
                for column in range(across):
                    x0 = column * step + pixel * column0
                    x1 = column * step + pixel * column1
                    lines.append([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])
        axes.add_collection(
            LineCollection(lines, colors=colour, linewidths=0.8, linestyles=[dashes], zorder=2),
            autolim=False,
        )  # fmt: skip
