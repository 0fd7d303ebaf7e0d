"""The ranking as a table: a DataFrame to keep, and a rich table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import summary, text

if TYPE_CHECKING:
    from rich.table import Table

Data = pd.DataFrame | summary.Summary


def ranked(data: Data) -> pd.DataFrame:
    """One row per method, best first, then the controls; all as it would be printed.

    Columns: method, family, library, control (bool), mean rank ("0.13 [0.11, 0.14]"; 0 better
    than all others, 1 worse than all), first (share of bootstrap draws in which it ranks first),
    beats random ("7/8" scores; only with a random control), models, and one column per score, its
    direction as an arrow ("relevance_auroc ↑"), with "value [low, high]" or "n/a".
    """
    s = summary.of(data)
    names = [*s.methods, *s.controls]
    ranks = s.ranks.reindex(names)
    table = pd.DataFrame(
        {
            "method": names,
            "family": ranks["family"].to_numpy(),
            "library": ranks["library"].to_numpy(),
            "control": ranks["control"].to_numpy(),
            "mean rank": [text.interval(r.rank, r.low, r.high) for r in _records(ranks)],
            "first": [text.percent(p) for p in ranks["p_best"]],
        }
    )
    if s.reference is not None:
        table["beats random"] = [s.beats(name) for name in names]
    table["models"] = ranks["n_clusters"].to_numpy()
    for score, about in s.scores.iterrows():
        found = s.cells.xs(score, level=1).reindex(names)
        table[f"{score} {text.ARROWS[about['direction']]}"] = [
            text.interval(c.estimate, c.low, c.high, about["places"])
            if np.isfinite(c.n_clusters)
            else "n/a"
            for c in _records(found)
        ]
    return table


def render(data: Data, *, width: int = 100) -> Table:
    """The ranking for a terminal of `width` columns: as many scores as fit, in row order.

    Controls stand below a rule. Values are `estimate±half the interval`; those that beat the
    random control significantly are bold, those worse are red.
    """
    s = summary.of(data)
    for shown in range(len(s.scores), 0, -1):
        table = _table(s, shown)
        if _columns(table) <= width:
            return table
    return _table(s, 0)


# A rule below the head and where a section ends, and no other line.
_RULES = "    \n    \n ── \n    \n ── \n ── \n    \n    \n"


def _table(s: summary.Summary, shown: int) -> Table:
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    hidden = len(s.scores) - shown
    table = Table(
        box=Box(_RULES),
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=Text(_footnote(s, hidden), style="dim"),
        caption_justify="left",
        header_style="bold",
    )
    table.add_column("#", justify="right", style="dim")
    table.add_column("method", overflow="fold", max_width=30)
    table.add_column("family", style="dim")
    table.add_column("mean rank", justify="right")
    if s.reference is not None:
        table.add_column("beats\nrandom", justify="right")
    scores = list(s.scores.index[:shown])
    for score in scores:
        lines = text.heading(str(score), s.scores.loc[score, "direction"], lambda x: len(x) <= 11)
        table.add_column("\n".join(lines), justify="right")
    names = [*s.methods, *s.controls]
    for i, name in enumerate(names):
        rank = summary.row(s.ranks, name)
        control = bool(rank["control"])
        cells: list[Text | str] = [
            "" if control else str(i + 1),
            Text(name, style="italic dim" if control else "bold"),
            str(rank["family"]),
            text.plus_minus(rank["rank"], rank["low"], rank["high"]),
        ]
        if s.reference is not None:
            cells.append(s.beats(name))
        for score in scores:
            if (name, score) not in s.cells.index:
                cells.append(Text("n/a", style="dim"))
                continue
            c = summary.row(s.cells, (name, score))
            value = text.plus_minus(
                c["estimate"], c["low"], c["high"], int(s.scores.loc[score, "places"])
            )
            style = {"better": "bold", "worse": "red"}.get(c["verdict"], "")
            cells.append(Text(value, style=style))
        table.add_row(*cells, end_section=i == len(s.methods) - 1 and bool(s.controls))
    return table


def _footnote(s: summary.Summary, hidden: int) -> str:
    parts = [
        "Mean rank: 0 better than all others, 1 worse than all.",
        "↑ higher, ↓ lower is better.",
    ]
    if s.reference is not None:
        parts.append("Bold beats, red is worse than random (Holm).")
    parts.append(f"±: half the interval. {s.intervals_are()}")
    if hidden:
        parts.append(f"{text.count(hidden, 'more score')} in a wider terminal and in the report.")
    return " ".join(parts)


def _columns(table: Table) -> int:
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000)
    return Measurement.get(console, console.options, table).maximum


def _records(table: Any) -> list:
    # `rank` is a method of a Series, so rows are taken as tuples.
    return list(table.itertuples(name="Row"))
