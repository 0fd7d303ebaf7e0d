from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from analysis import figures, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

pytestmark = pytest.mark.filterwarnings("error")
Sweep = Callable[..., pd.DataFrame]


def texts(figure: Figure) -> dict[str, list[object]]:
    """The boxes, in pixels, of all text that is drawn."""
    from matplotlib.text import Text

    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    found: dict[str, list[object]] = {}
    for item in figure.findobj(Text):
        assert isinstance(item, Text)
        if item.get_visible() and item.get_text().strip():
            box = item.get_window_extent(renderer)
            if box.width and np.isfinite(box.x0):
                found.setdefault(item.get_text(), []).append(box)
    return found


def check(figure: Figure) -> set[str]:
    """No text is cut at the border or lies on another text. Returns the texts."""
    found = texts(figure)
    width, height = figure.canvas.get_width_height()
    boxes = [(name, box) for name, several in found.items() for box in several]
    for name, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, f"{name!r} is cut"
    for (a, one), (b, other) in combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        along = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert across < 1 or along < 2, f"{a!r} lies on {b!r}"
    return set(found)


def renamed(rows: pd.DataFrame) -> pd.DataFrame:
    """Names as long as they come, parameters that matter, a family of its own."""
    long = "expected_integrated_gradients_with_a_very_long_name"
    rows = rows.replace({"method": {"saliency": long}})
    rows.loc[rows["method"] == long, "family"] = "my-own-family"
    twin = rows[rows["score"] == "rank_gap"].assign(score_params='{"threshold": 0.5, "k": "all"}')
    return pd.concat([rows, twin], ignore_index=True)


@pytest.fixture(scope="module")
def summaries(
    rows: pd.DataFrame, single: pd.DataFrame, small: pd.DataFrame
) -> dict[str, summary.Summary]:
    no_controls = small[~small["control"]]
    two = single[
        single["method"].isin(["saliency", "random"]) & (single["score"] == "relevance_auroc")
    ]
    gaps = small[~((small["method"] == "grad_cam") & (small["score"] == "map_entropy"))]
    gaps = gaps.assign(
        value=gaps["value"].where(gaps["score"] != "pointing_game"),
        samples=gaps["samples"].where(gaps["score"] != "pointing_game", None),
    )
    huge = small.assign(value=small["value"] * 1e7, samples=None)
    cases = {
        "full": rows, "single": single, "no controls": no_controls, "two": two, "gaps": gaps,
        "long": renamed(small), "huge": huge, "only controls": small[small["control"]],
    }  # fmt: skip
    return {name: summary.summarise(case, draws=100) for name, case in cases.items()}


CASES = ("full", "single", "no controls", "two", "gaps", "long", "huge", "only controls")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_overlaps_or_is_cut(
    summaries: dict[str, summary.Summary], case: str, theme: str
) -> None:
    s = summaries[case]
    everything = check(figures.ranking(s, theme=theme))
    assert set(s.ranks.index) <= everything
    check(figures.scores_heatmap(s, theme=theme))
    scores = [x for x in s.scores.index if np.isfinite(s.cells.xs(x, level=1)["estimate"]).any()]
    for score in (scores[0], scores[-1]):
        check(figures.score_forest(s, score, theme=theme))


def test_missing_and_undefined_cells_are_marked(summaries: dict[str, summary.Summary]) -> None:
    found = texts(figures.scores_heatmap(summaries["gaps"]))
    assert len(found["n/a"]) == 1
    assert len(found["undefined"]) == 15


def test_every_figure_says_what_it_is_made_of(summaries: dict[str, summary.Summary]) -> None:
    s = summaries["full"]
    for figure in (
        figures.ranking(s),
        figures.scores_heatmap(s),
        figures.score_forest(s, "rank_gap"),
    ):
        shown = " ".join(" ".join(texts(figure)).split())
        assert "2,688 rows; 24 trained models (2 data sets, 2 architectures, 6 seeds)" in shown
    assert "higher is better" in " ".join(texts(figures.score_forest(s, "rank_gap")))


def test_values_are_readable_on_their_colour() -> None:
    from matplotlib.colors import to_rgb

    def luminance(colour: object) -> float:
        c = np.array(to_rgb(colour))  # type: ignore[arg-type]
        linear = np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for theme in figures.THEMES.values():
        colours = figures._colours(theme)
        for at in np.linspace(0, 1, 21):
            pair = sorted([luminance(colours(at)), luminance(figures._readable(colours(at)))])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5
        paper = luminance(theme.paper)
        for ink in (theme.ink, theme.muted, theme.control):
            pair = sorted([luminance(ink), paper])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


def test_save(tmp_path: Path, small: pd.DataFrame) -> None:
    figure = figures.ranking(small)
    paths = figures.save({"a/b (c)": figure}, tmp_path / "new", formats=("png", "pdf", "svg"))
    kinds = ("png", "pdf", "svg")
    assert paths == [tmp_path / "new" / "a" / f"b__c.{kind}" for kind in kinds]
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
    assert paths[1].read_bytes()[:4] == b"%PDF"
    with pytest.raises(ValueError, match="cannot save figures as gif"):
        figures.save({}, tmp_path, formats=("gif",))


def test_svg_is_the_same_every_time(small: pd.DataFrame) -> None:
    s = summary.summarise(small, draws=50)
    first = figures.svg(figures.ranking(s))
    assert first == figures.svg(figures.ranking(s))
    ElementTree.fromstring(first)
    assert b"integrated_gradients" in first


def test_mistakes(small: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"no score 'gap'.*known: needed"):
        figures.score_forest(small, "gap")
    with pytest.raises(ValueError, match="at least two methods"):
        figures.ranking(small[small["method"] == "saliency"])


def test_pyplot_is_not_touched(small: pd.DataFrame) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.scores_heatmap(small)
    assert dict(matplotlib.rcParams) == before
