"""The figures of a study: who ranks best, how every method does on every score, and by how much.

Every function takes rows (or a `Summary` of them) and returns a matplotlib Figure of fixed size in
inches, made without pyplot and without global state. Labels are measured and the figure is made
to fit them, so nothing overlaps or is cut. `theme` is "light" or "dark". Every figure says below
what it is made of.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import summary, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Data = pd.DataFrame | summary.Summary


@dataclass(frozen=True)
class Theme:
    paper: str
    ink: str
    muted: str
    line: str
    shade: str
    control: str
    band: str
    families: Mapping[str, str]
    others: tuple[str, ...]
    low: str
    middle: str
    high: str


# Okabe & Ito's colour-blind safe colours, darkened or lightened for contrast with the paper.
THEMES = {
    "light": Theme(
        paper="#ffffff",
        ink="#1b1f24",
        muted="#57606a",
        line="#d0d7de",
        shade="#f5f7f9",
        control="#6e7781",
        band="#dde1e6",
        families={
            "gradient": "#0072b2",
            "cam": "#c96a00",
            "perturbation": "#007a59",
            "lrp": "#a8497f",
            "attention": "#1b1f24",
        },
        others=("#2b8ab8", "#8a6d00", "#7a5fb0"),
        low="#ee8445",
        middle="#f3f4f6",
        high="#3f8fd2",
    ),
    "dark": Theme(
        paper="#161b22",
        ink="#e6edf3",
        muted="#9aa4af",
        line="#3a424c",
        shade="#1c222a",
        control="#9aa4af",
        band="#2d343d",
        families={
            "gradient": "#58b4e9",
            "cam": "#f0a33a",
            "perturbation": "#3ec99a",
            "lrp": "#dd8dbb",
            "attention": "#e6edf3",
        },
        others=("#8ecae6", "#f0e442", "#b8a1ea"),
        low="#b3541a",
        middle="#262c35",
        high="#1f72b8",
    ),
}
_MARKERS = {"gradient": "o", "cam": "s", "perturbation": "^", "lrp": "D", "attention": "P"}
_BODY, _SMALL, _TITLE = 10.0, 8.5, 13.0  # points
_ROW = 0.31  # inches


# ---------------------------------------------------------------- figures


def ranking(data: Data, *, theme: str = "light") -> Figure:
    """Mean rank of every method with its interval, best on top, controls below.

    Small dots are single trained models; the band is the random control's interval. Raises
    ValueError if there is only one method.
    """
    s = summary.of(data)
    if len(s.ranks) < 2:
        raise ValueError("a ranking needs at least two methods")
    table = s.ranks.rename(columns={"rank": "estimate"})
    dots = {name: s.per_model[name].to_numpy() for name in s.per_model.columns}
    right = [
        ("mean rank", lambda name: _interval(summary.row(table, name), 2)),
        ("first", lambda name: text.percent(summary.row(table, name)["p_best"])),
    ]
    if s.reference is not None:
        right.append(("beats random", s.beats))
    over = f"{text.count(len(s.scores), 'score')} and {text.count(s.n_models, 'trained model')}"
    return _forest(
        s,
        table,
        dots,
        right=right,
        title="Mean rank of the attribution methods",
        subtitle=f"over {over}; 0 = better than all others, 1 = worse than all",
        axis="mean rank (← better)",
        note="“first”: share of bootstrap draws in which a method ranks first among the methods."
        " “beats random”: scores on which it is significantly better than the random control"
        " (Holm over all methods and scores).",
        span=(0.0, 1.0),
        theme=theme,
    )


def score_forest(data: Data, score: str, *, theme: str = "light") -> Figure:
    """Every method's value on one score, with intervals; methods in the order of this score.

    Raises ValueError if no row has this score.
    """
    s = summary.of(data)
    if score not in s.scores.index:
        known = ", ".join(s.scores.index)
        raise ValueError(f"no score {score!r} in these rows; known: {known}")
    about = summary.row(s.scores, score)
    places = int(about["places"])
    cells = s.cells.xs(score, level=1)
    table = cells.join(s.ranks[["family", "control"]])
    table = table[np.isfinite(table["estimate"])]
    table = table.sort_values("estimate", ascending=about["direction"] == "lower", kind="stable")
    if table.empty:
        raise ValueError(f"no method has a defined value on {score!r}")
    rows = s.rows[s.rows["s"] == score]
    dots = {str(m): group["value"].to_numpy(float) for m, group in rows.groupby("m")}
    right: list[tuple[str, Callable[[str], str]]] = [
        (f"value [{100 * s.level:g} %]", lambda name: _interval(summary.row(table, name), places))
    ]
    if s.reference is not None:
        words = {"better": "better", "worse": "worse", "same": "=", "unknown": "?"}
        right.append(("vs random", lambda name: words.get(summary.row(table, name)["verdict"], "")))
    undefined = int(table["n_undefined"].sum())
    note = f"{undefined:,} undefined values left out." if undefined else ""
    better = f"{about['direction']} is better"
    arrow = {"higher": "better →", "lower": "← better"}[str(about["direction"])]
    return _forest(
        s,
        table,
        dots,
        right=right,
        title=str(score).replace("_", " "),
        subtitle=f"mean over test samples, then over {text.count(s.n_models, 'trained model')};"
        f" {better}",
        axis=f"{score} ({arrow})",
        note=note,
        span=None,
        theme=theme,
    )


def scores_heatmap(data: Data, *, theme: str = "light") -> Figure:
    """Methods × scores: the value in each cell, its place between random and oracle as colour.

    Where the rows lack these controls, or a score does not tell them apart, the colour is the
    method's mean rank on that score. Bold: significantly better than random.
    """
    s = summary.of(data)
    t = THEMES[theme]
    names, scores = [*s.methods, *s.controls], list(s.scores.index)
    heads = [_head(str(name), str(s.scores.loc[name, "direction"])) for name in scores]
    cell = max(0.86, *(_width(line, _SMALL) + 0.14 for head in heads for line in head))
    height, gap = 0.36, 0.2
    left = max(_width(name, _BODY) for name in names) + 0.45
    depth = max(len(head) for head in heads)
    top = 0.9 + 0.155 * depth
    body = height * len(names) + (gap if s.controls and s.methods else 0)
    wide = max(left + cell * len(scores) + 0.25, 7.0)

    position = None if s.positions is None else s.positions.reindex(index=names, columns=scores)
    if position is not None:
        by_rank = [c for c in scores if position[c].isna().all()]
    else:
        by_rank = list(scores)
    caption = _wrap(_heatmap_note(s, position is not None, by_rank), wide - 0.5, _SMALL)
    bottom = 0.85 + 0.155 * len(caption)
    tall = top + body + bottom
    figure, axes = _canvas(wide, tall, (left, bottom, cell * len(scores), body), t)
    axes.set(xlim=(0, len(scores)), ylim=(body, 0))
    axes.axis("off")
    colours = _colours(t)
    ranks = s.matrix.reindex(index=names, columns=scores)
    for i, name in enumerate(names):
        y = i * height + (gap if name in s.controls and s.methods else 0)
        control = name in s.controls
        axes.text(
            -0.12 / cell,
            y + height / 2,
            name,
            ha="right",
            va="center_baseline",
            size=_BODY,
            color=t.control if control else t.ink,
            style="italic" if control else "normal",
        )
        for j, score in enumerate(scores):
            if (name, score) not in s.cells.index:
                _block(axes, j, y, height, facecolor=t.paper, edgecolor=t.line, hatch="////")
                _cell_text(axes, j, y + height / 2, "n/a", t.muted, backdrop=t.paper)
                continue
            found = summary.row(s.cells, (name, score))
            if not np.isfinite(found["estimate"]):
                _block(axes, j, y, height, facecolor=t.shade, edgecolor=t.line)
                _cell_text(axes, j, y + height / 2, "undefined", t.muted)
                continue
            if score in by_rank or position is None:
                place = 1 - 2 * ranks.loc[name, score]  # best 1, worst -1
            else:
                place = position.loc[name, score]
            fill = colours(0.5 + 0.5 * np.clip(place, -1, 1)) if np.isfinite(place) else t.shade
            _block(axes, j, y, height, facecolor=fill, edgecolor=t.paper)
            shown = text.number(found["estimate"], int(s.scores.loc[score, "places"]))
            bold = found["verdict"] == "better"
            _cell_text(axes, j, y + height / 2, shown, _readable(fill), bold=bold)
    for j, head in enumerate(heads):
        for k, line in enumerate(reversed(head)):
            axes.text(j + 0.5, -0.1 - 0.155 * k, line, ha="center", size=_SMALL, color=t.ink)
    subtitle = (
        "value per score; colour: place between the random control and the oracle"
        if len(by_rank) < len(scores)
        else "value per score; colour: mean rank on that score"
    )
    _titles(figure, "Every method on every score", subtitle, t)
    _colour_key(figure, t, colours, bottom, wide, by_rank=len(by_rank) == len(scores))
    _write(figure, caption, t)
    return figure


def save(
    figures: Mapping[str, Figure], directory: str | Path, *, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Write each figure as `<name>.<format>`; directories are made. PNG has 200 dots per inch.

    A "/" in a name makes a sub-folder. Formats: "png", "pdf", "svg". Raises ValueError for another.
    """
    import matplotlib

    unknown = set(formats) - {"png", "pdf", "svg"}
    if unknown:
        raise ValueError(f"cannot save figures as {', '.join(sorted(unknown))}: png, pdf or svg")
    paths = []
    for name, figure in figures.items():
        stem = Path(directory).joinpath(*(_safe(part) for part in name.split("/")))
        stem.parent.mkdir(parents=True, exist_ok=True)
        for kind in formats:
            path = stem.with_name(f"{stem.name}.{kind}")
            dates: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
            with matplotlib.rc_context(_SAVE):
                figure.savefig(path, dpi=200, metadata=dates.get(kind))
            paths.append(path)
    return paths


def _safe(name: str) -> str:
    """A file name that every system takes."""
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in name).strip("._") or "_"


def svg(figure: Figure) -> bytes:
    """The figure as a small SVG file, its text as text; the same bytes every time."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({**_SAVE, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


_SAVE: dict[Any, Any] = {"svg.hashsalt": "assay", "svg.fonttype": "path", "pdf.fonttype": 42}


# ---------------------------------------------------------------- parts


def _forest(
    s: summary.Summary,
    table: pd.DataFrame,
    dots: Mapping[str, np.ndarray],
    *,
    right: Sequence[tuple[str, Callable[[str], str]]],
    title: str,
    subtitle: str,
    axis: str,
    note: str,
    span: tuple[float, float] | None,
    theme: str,
) -> Figure:
    """Estimates with whiskers, one row each: methods, a gap, controls; columns of text beside.

    `table`: index label, columns estimate, low, high, family, control, in the order to show.
    """
    t = THEMES[theme]
    methods = [str(name) for name in table.index[~table["control"]]]
    controls = [str(name) for name in table.index[table["control"]]]
    names = [*methods, *controls]
    texts = [[head, *(write(name) for name in names)] for head, write in right]
    left = max(_width(name, _BODY) for name in names) + 0.48
    columns = [max(_width(x, _SMALL) for x in column) + 0.25 for column in texts]
    plot = max(4.1, 9.0 - left - sum(columns))
    wide = left + plot + sum(columns) + 0.2
    gap = 0.75 if controls and methods else 0.0
    y = {name: i + (gap if name in controls else 0) for i, name in enumerate(names)}
    body = _ROW * (len(names) + gap)
    families = sorted(set(table.loc[methods, "family"].astype(str)))
    caption = _wrap(f"{note} {s.caption()}".strip(), wide - 0.5, _SMALL)
    bottom, top = 1.0 + 0.155 * len(caption), 1.05
    figure, axes = _canvas(wide, top + body + bottom, (left, bottom, plot, body), t)
    axes.set_ylim(len(names) - 0.5 + gap, -0.5)
    for i in range(0, len(names), 2):
        axes.axhspan(y[names[i]] - 0.5, y[names[i]] + 0.5, color=t.shade, zorder=0, linewidth=0)
    random = s.reference if s.reference in names else None
    if random is not None:
        _band(axes, summary.row(table, random), t)
    rng = np.random.default_rng(0)
    for name in names:
        row, control = summary.row(table, name), name in controls
        family = str(row["family"])
        colour = t.control if control else _colour(family, families, t)
        values = dots.get(name, np.array([]))
        values = values[np.isfinite(values)]
        if len(values) > 1:
            scatter = y[name] + rng.uniform(-0.2, 0.2, len(values))
            axes.scatter(values, scatter, s=7, color=colour, alpha=0.3, linewidths=0, zorder=2)
        if np.isfinite(row["low"]):
            whisker = [row["low"], row["high"]]
            axes.plot(whisker, [y[name]] * 2, color=colour, lw=2, zorder=3, solid_capstyle="butt")
            for end in whisker:
                axes.plot([end] * 2, [y[name] - 0.17, y[name] + 0.17], color=colour, lw=1.4)
        axes.plot(
            row["estimate"],
            y[name],
            marker="o" if control else _MARKERS.get(family, "X"),
            markersize=6.5,
            color=t.paper if control else colour,
            markeredgecolor=colour,
            markeredgewidth=1.5,
            zorder=4,
            linestyle="none",
        )
    axes.set_yticks([y[name] for name in names], names, size=_BODY)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(t.control if name in controls else t.ink)
        label.set_fontstyle("italic" if name in controls else "normal")
    if gap:
        at = len(methods) - 0.5 + gap / 2
        axes.axhline(at, color=t.line, lw=1, zorder=1)
    if span is not None:
        axes.set_xlim(span[0] - 0.02, span[1] + 0.02)
    else:
        axes.margins(x=0.04)
    axes.set_xlabel(axis, size=_SMALL + 0.5, color=t.muted, labelpad=5)
    axes.tick_params(axis="x", labelsize=_SMALL, colors=t.muted, length=3)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.grid(axis="x", color=t.line, lw=0.7, zorder=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(t.line)
    at = left + plot
    for column, width in zip(texts, columns, strict=True):
        at += width
        x = (at - left) / plot
        axes.text(
            x, -0.72, column[0], transform=axes.get_yaxis_transform(), ha="right",
            size=_SMALL, color=t.muted,
        )  # fmt: skip
        for name, shown in zip(names, column[1:], strict=True):
            axes.text(
                x, y[name], shown, transform=axes.get_yaxis_transform(), ha="right",
                va="center_baseline", size=_SMALL, color=t.control if name in controls else t.ink,
            )  # fmt: skip
    _titles(figure, title, subtitle, t)
    _legend(figure, families, bool(controls), random is not None, t, bottom)
    _write(figure, caption, t)
    return figure


def _canvas(
    wide: float, tall: float, box: tuple[float, float, float, float], t: Theme
) -> tuple[Figure, Axes]:
    """A figure of this size, and axes at (left, bottom, width, height), all in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, tall), dpi=100, facecolor=t.paper)
    FigureCanvasAgg(figure)
    x, y, w, h = box
    axes = figure.add_axes((x / wide, y / tall, w / wide, h / tall), facecolor="none")
    return figure, axes


def _titles(figure: Figure, title: str, subtitle: str, t: Theme) -> None:
    wide, tall = figure.get_size_inches()
    figure.text(
        0.25 / wide, 1 - 0.2 / tall, title, size=_TITLE, weight="bold", color=t.ink, va="top"
    )
    figure.text(0.25 / wide, 1 - 0.48 / tall, subtitle, size=_SMALL + 0.5, color=t.muted, va="top")


def _write(figure: Figure, lines: Sequence[str], t: Theme) -> None:
    """The caption, at the bottom left."""
    wide, tall = figure.get_size_inches()
    figure.text(
        0.25 / wide,
        0.15 / tall,
        "\n".join(lines),
        size=_SMALL,
        color=t.muted,
        va="bottom",
        linespacing=1.3,
    )


def _band(axes: Axes, random: pd.Series, t: Theme) -> None:
    """The random control's interval as a band over all rows."""
    if np.isfinite(random["low"]):
        axes.axvspan(random["low"], random["high"], color=t.band, zorder=0.4, linewidth=0)
    axes.axvline(random["estimate"], color=t.control, lw=1, ls=(0, (4, 3)), zorder=0.6)


def _legend(
    figure: Figure, families: Sequence[str], controls: bool, band: bool, t: Theme, bottom: float
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def marker(shape: str, colour: str, face: str, label: str) -> Line2D:
        return Line2D(
            [], [], marker=shape, color=face, markeredgecolor=colour, markeredgewidth=1.5,
            markersize=6, linestyle="none", label=label,
        )  # fmt: skip

    handles: list[Any] = [
        marker(_MARKERS.get(name, "X"), _colour(name, families, t), _colour(name, families, t),
               name)
        for name in families
    ]  # fmt: skip
    if controls:
        handles.append(marker("o", t.control, t.paper, "control"))
    if band:
        handles.append(Patch(facecolor=t.band, edgecolor="none", label="random control's interval"))
    wide, tall = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(0.22 / wide, (bottom - 0.68) / tall),
        ncols=len(handles),
        fontsize=_SMALL,
        frameon=False,
        labelcolor=t.ink,
        handletextpad=0.35,
        columnspacing=1.3,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.4,
    )


def _colour(family: str, families: Sequence[str], t: Theme) -> str:
    if family in t.families:
        return t.families[family]
    others = [name for name in families if name not in t.families]
    return t.others[others.index(family) % len(t.others)] if family in others else t.others[0]


def _colours(t: Theme) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("assay", [t.low, t.middle, t.high])


def _colour_key(
    figure: Figure, t: Theme, colours: Any, bottom: float, wide: float, *, by_rank: bool
) -> None:
    tall = figure.get_size_inches()[1]
    w, h = 2.4, 0.13
    axes = figure.add_axes((0.45 / wide, (bottom - 0.38) / tall, w / wide, h / tall))
    lowest = -1.0
    axes.imshow(
        np.linspace(lowest, 1, 256)[None], cmap=colours, aspect="auto", extent=(lowest, 1, 0, 1)
    )
    axes.set_yticks([])
    if by_rank:
        axes.set_xticks([-1, 0, 1], ["ranks last", "middle", "ranks first"])
    else:
        axes.set_xticks([-1, 0, 1], ["worse", "random", "oracle"])
    axes.tick_params(axis="x", labelsize=_SMALL, colors=t.muted, length=2, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _heatmap_note(s: summary.Summary, placed: bool, by_rank: Sequence[str]) -> str:
    parts = ["Arrows: ↑ higher is better, ↓ lower is better."]
    if s.reference is not None:
        parts.append("Bold: significantly better than random (Holm over all methods and scores).")
    parts.append("n/a: not run on any of these models.")
    if placed and by_rank and len(by_rank) < len(s.scores):
        parts.append(
            f"On {text.listing(by_rank)} the oracle is not better than random: colour is the rank."
        )
    undefined = int(s.scores["n_undefined"].sum())
    if undefined:
        parts.append(f"{undefined:,} undefined values left out.")
    parts.append(f"{text.count(len(s.rows), 'row')}; {s.design()}.")
    return " ".join(parts)


def _block(axes: Axes, j: int, y: float, height: float, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((j, y), 1, height, linewidth=1.5, **style))


def _cell_text(
    axes: Axes,
    j: int,
    y: float,
    shown: str,
    colour: str,
    *,
    bold: bool = False,
    backdrop: str | None = None,
) -> None:
    box = {"facecolor": backdrop, "edgecolor": "none", "pad": 1.5} if backdrop else None
    axes.text(
        j + 0.5,
        y,
        shown,
        ha="center",
        va="center_baseline",
        size=_SMALL + 0.5,
        color=colour,
        weight="bold" if bold else "normal",
        bbox=box,
    )


def _readable(fill: Any) -> str:
    """Black or white, whichever contrasts more with a fill (WCAG 2 relative luminance)."""
    from matplotlib.colors import to_rgb

    c = np.array(to_rgb(fill))
    linear = np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#111418"


def _interval(row: pd.Series, places: int) -> str:
    return text.interval(row["estimate"], row["low"], row["high"], places)


@lru_cache(maxsize=4096)
def _width(shown: str, points: float) -> float:
    """Width of a line in inches."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    font.set_size(points, 72)
    font.set_text(shown)
    return font.get_width_height()[0] / 64 / 72


def _wrap(shown: str, inches: float, points: float) -> list[str]:
    """Lines no wider than `inches`."""
    lines: list[str] = []
    for word in shown.split(" "):  # and not at no-break spaces
        if lines and _width(f"{lines[-1]} {word}", points) <= inches:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _head(name: str, direction: str) -> list[str]:
    """A score's name as the lines of a narrow column head, with its arrow."""
    return text.heading(name, direction, lambda line: _width(line, _SMALL) <= 0.8)
