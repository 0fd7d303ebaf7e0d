"""The figures of the ANDOR study (Schwenke & Atzmueller 2024), from its tidy table alone.

    from analysis import andor, figures, frames
    table = frames.scores("mix_model", samples=True)
    figures.save(andor.figures(table), "figures")
    print(*andor.missing(table), sep="\\n")

| name | shows |
|---|---|
| information_and_leakage | for each method: what its visible inputs say, what its masks say |
| general/performance | test accuracy of models and forests, and of always saying one class |
| general/forest_importance | what a random forest finds important |
| general/mean_importance/METHOD, general/mean_importance_by_class/METHOD | mean maps by gate |
| CONFIG/wrong_importance/METHOD, CONFIG/wrong_importance_of_mean/METHOD | how often each input |
| | lies below the highest irrelevant one, in each map and in the mean map |
| general/gib, general/nib, CONFIG/gib, CONFIG/nib | information below irrelevant inputs |
| general/SCORE, general/SCORE_sd | masking scores over thresholds, and their spread |
| general/full_dca, general/minimal_dca, general/average_dca | double class assignments |

CONFIG is a formula's inputs and symbols, such as 2inBinary. Whiskers are standard deviations over
trained models, as in the original, and 95 % intervals in the first figure. What the original
drew wrongly is put right: titles, pooled test sizes, and models that were counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis import andor_dca, andor_general, andor_importance, andor_summary, andor_thresholds
from analysis.andor_rows import Andor, Selection, arrange

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Drawings = Iterator[tuple[str, Callable[[], "Figure"]]]


@dataclass(frozen=True)
class _Kind:
    """Figures of one kind: `drawings(data, theme)` names them and how to draw each; it names none
    where the rows lack what it needs, which `needs` tells."""

    name: str
    needs: str
    drawings: Callable[[Andor, str], _Drawings]


_RETRAIN = "and `retrain: true` to the configuration"
_KINDS = (
    _Kind("information_and_leakage", "the scores `logical_accuracy` and `bayes_accuracy`",
          andor_summary.drawings),
    _Kind("general/performance", "`model_accuracy`, which every study's rows have",
          andor_general.performance),
    _Kind("general/forest_importance", f"the score `forest_importance`, {_RETRAIN}",
          andor_importance.forest_importance),
    _Kind("general/mean_importance", "the score `mean_importance`", andor_importance.mean_maps),
    _Kind("general/mean_importance_by_class", "the score `mean_importance`",
          andor_importance.mean_maps_by_class),
    _Kind("CONFIG/wrong_importance", "the score `wrong_importance`",
          andor_importance.wrong_importance),
    _Kind("general/gib and CONFIG/gib", "the score `gib`", andor_general.gib),
    _Kind("general/nib and CONFIG/nib", "the score `nib`", andor_general.nib),
    *(
        _Kind(
            f"general/{curve.name}",
            f"the score{'s' if curve.minus else ''} {' and '.join(f'`{s}`' for s in curve.scores)}"
            + (f", {_RETRAIN}" if curve.retrained else ""),
            curve.drawings,
        )
        for curve in andor_thresholds.CURVES
    ),
    _Kind("general/full_dca", "the score `full_dca`", andor_dca.full),
    _Kind("general/minimal_dca", "the score `minimal_dca`", andor_dca.minimal),
    _Kind("general/average_dca", "the score `full_dca` or `minimal_dca`", andor_dca.average),
)  # fmt: skip


def figures(
    table: pd.DataFrame,
    theme: str = "light",
    *,
    selection: Selection = "everything",
    accuracy: float = 0.0,
) -> dict[str, Figure]:
    """Every figure that the rows allow, by name; a "/" in a name stands for a sub-folder.

    selection: "everything", or "paper": models with a CLS token count only for the method
        `transformer_attribution`, which is shown with and without one.
    accuracy: leave out trained models with a lower test accuracy.

    Raises ValueError if no row is of the study "andor".
    """
    undrawn = drawings(table, theme, selection=selection, accuracy=accuracy)
    return {name: draw() for name, draw in undrawn.items()}


def drawings(
    table: pd.DataFrame,
    theme: str = "light",
    *,
    selection: Selection = "everything",
    accuracy: float = 0.0,
) -> dict[str, Callable[[], Figure]]:
    """`figures`, not drawn yet: there are many with many methods, so draw and save one by one."""
    data = arrange(table, selection, accuracy)
    return dict(drawing for kind in _KINDS for drawing in kind.drawings(data, theme))


def missing(table: pd.DataFrame, *, selection: Selection = "everything") -> list[str]:
    """One line for each kind of figure that the rows do not allow: which score to add."""
    data = arrange(table, selection)
    return [
        f"no figure {kind.name}: add {kind.needs}"
        for kind in _KINDS
        if next(kind.drawings(data, "light"), None) is None
    ]
