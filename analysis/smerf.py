"""The figures of the SMERF study (Kim, Plumb & Talwalkar 2022), from its tidy table.

    from analysis import figures, frames, smerf
    table = frames.scores("smerf_paper", samples=True)
    figures.save(smerf.figures(table), "figures")
    print(*smerf.missing(table), sep="\\n")

| name | shows |
|---|---|
| average_and_worst/MEASURE | IOU or AFL: mean over buckets and worst bucket, simple and complex |
| worst_bucket/afl | AFL of the worst bucket, simple beside complex reasoning, and which it is |
| architectures/MEASURE, adversarial/MEASURE, backgrounds/MEASURE | the same for several kinds of |
| | models, on the buckets that all of them have |
| buckets/SETTING/MEASURE | IOU, AFL and MAFL of each bucket, primary and secondary objects |
| groups/SETTING/afl | AFL of the groups of buckets that the paper looks at |
| objects/MEASURE | IOU and AFL for one, two and three objects in an image |
| failures/afl | the buckets with the lowest AFL in detail |
| accuracy | accuracy of the models by bucket, and after objects were added, removed or moved |
| identifiability/accuracy, identifiability/confusion | which setting's model made a map? |
| gallery/SETTING | an image of each bucket with the maps of all methods |

Scores have two presets: names without an ending are the paper's, "_fixed" is what it should have
computed. Figures of other kinds of models than the first stand in a folder of theirs, such as
"VGG16/". Controls are in every figure: what a map gets that marks the primary objects and nothing
else, and what maps get that know nothing of the model. Whiskers are 95 % intervals over seeds and
images (`analysis.smerf_statistics`), where the original has standard deviations over buckets;
backgrounds are compared on the same settings, which in the original they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis import smerf_buckets, smerf_gallery, smerf_identity, smerf_summary
from analysis.smerf_gallery import FILE
from analysis.smerf_panels import Drawings
from analysis.smerf_rows import Smerf, arrange

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILE", "drawings", "figures", "missing"]


@dataclass(frozen=True)
class _Kind:
    """Figures of one kind: `drawings(data, theme)` names them and how to draw each; it names none
    where the rows lack what it needs, which `needs` tells."""

    name: str
    needs: str
    drawings: Callable[[Smerf, str], Drawings]


_BY_BUCKET = "the score `afl` or `iou`, with rows by bucket"
_KINDS = (
    _Kind("average_and_worst", f"add {_BY_BUCKET}", smerf_summary.main),
    _Kind("worst_bucket/afl", "add the score `afl`, with rows by bucket", smerf_summary.worst),
    _Kind("architectures", "run another architecture in the same sweep",
          smerf_summary.architectures),
    _Kind("adversarial", "add models with `hardening` to the sweep",
          smerf_summary.trainings),
    _Kind("backgrounds", "run another `data.background` in the same sweep",
          smerf_summary.backgrounds),
    _Kind("buckets", f"add {_BY_BUCKET}", smerf_buckets.buckets),
    _Kind("groups", "add the score `afl`, with rows by bucket", smerf_buckets.groups),
    _Kind("objects", "run Simple-FR or Simple-NR with the score `afl` or `iou`",
          smerf_buckets.object_counts),
    _Kind("failures/afl", "add the score `afl`, with rows by bucket", smerf_buckets.failures),
    _Kind("accuracy", "add the rows about models, of method `model`", smerf_buckets.accuracy),
    _Kind("identifiability", "run two settings or more with `probe` images",
          smerf_identity.drawings),
)  # fmt: skip


def figures(
    table: pd.DataFrame, theme: str = "light", *, files: Mapping[int, bytes] | None = None
) -> dict[str, Figure]:
    """Every figure that the rows allow, by name; a "/" in a name stands for a sub-folder.

    files: `FILE` of each experiment by its id, as `frames.files` gives them, for the gallery.

    Raises ValueError if no row is of the study "smerf".
    """
    undrawn = drawings(table, theme, files=files)
    return {name: draw() for name, draw in undrawn.items()}


def drawings(
    table: pd.DataFrame, theme: str = "light", *, files: Mapping[int, bytes] | None = None
) -> dict[str, Callable[[], Figure]]:
    """`figures`, not drawn yet: there are dozens, so draw and save one by one."""
    data = arrange(table)
    found = dict(drawing for kind in _KINDS for drawing in kind.drawings(data, theme))
    return {**found, **dict(smerf_gallery.drawings(data, theme, files or {}))}


def missing(table: pd.DataFrame, *, files: Mapping[int, bytes] | None = None) -> list[str]:
    """One line for each kind of figure that the rows do not allow, and what to do; and one for
    the scorable buckets of which there are no rows."""
    data = arrange(table)
    lines = [
        f"no figure {kind.name}: {kind.needs}"
        for kind in _KINDS
        if next(iter(kind.drawings(data, "light")), None) is None
    ]
    if next(iter(smerf_gallery.drawings(data, "light", files or {})), None) is None:
        lines.append(f"no figure gallery: run with `gallery: 1`, which keeps the file {FILE}")
    for kind, buckets in data.missing_buckets().items():
        settings = list(dict.fromkeys(bucket.split()[0] for bucket in buckets))
        if buckets:
            lines.append(f"{kind} reasoning lacks {len(buckets)} buckets, of {', '.join(settings)}")
    return lines
