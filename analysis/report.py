"""One HTML file that tells what a sweep found, and everything needed to doubt it.

Self-contained: styles, figures and the small script that sorts tables are inside; it loads
nothing. Figures come in a light and a dark version and follow the reader's preference.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import figures, statistics, summary, text

# Above this many scores the file would be mostly pictures of tables.
_FORESTS = 16


def write(
    rows: pd.DataFrame | summary.Summary,
    path: str | Path,
    *,
    title: str,
    provenance: Mapping[str, object],
    statuses: Mapping[str, int],
    next_steps: Sequence[str],
    meanings: Mapping[str, str] | None = None,
) -> Path:
    """Write the report of a sweep to `path` (one HTML file, replaced as a whole) and return it.

    provenance  what was run, in the order to show; values may be text, numbers, lists or nested
                mappings. The key "failures" (texts, or mappings with equal keys) is a table
    statuses    how many experiments are in each state
    next_steps  what the reader can do now; `code` in backticks
    meanings    one sentence per score name

    Raises ValueError as `statistics.headline` does.
    """
    s = summary.of(rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _page(s, title, provenance, statuses, next_steps, meanings or {})
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(page)
    os.chmod(unfinished, 0o644)
    os.replace(unfinished, path)
    return path


# ---------------------------------------------------------------- page


def _page(
    s: summary.Summary,
    title: str,
    provenance: Mapping[str, object],
    statuses: Mapping[str, int],
    next_steps: Sequence[str],
    meanings: Mapping[str, str],
) -> str:
    absent = _absent(s)
    sections = [
        ("ranking", "Ranking", _ranking(s)),
        ("heatmap", "All scores at a glance", _picture(s, figures.scores_heatmap, "heat map")),
        ("scores", "Score by score", _scores(s)),
        ("reading", "How to read this", _reading(s, meanings)),
        ("run", "What was run", _run(s, provenance, statuses)),
        ("absent", "Methods that were not run everywhere", absent),
        ("next", "Next steps", _steps(next_steps)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{_e(name)}</a>' for key, name, _ in sections)
    body = "".join(
        f'<section id="{key}"><h2>{_e(name)}</h2>{content}</section>'
        for key, name, content in sections
    )
    first, *rest = s.finding() or ["There is nothing to compare yet."]
    more = "".join(f"<li>{_e(sentence)}</li>" for sentence in rest)
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="assay">
<title>{_e(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<p class="kind">Assay report · {_e(now)}</p>
<h1>{_e(title)}</h1>
<div class="finding"><p class="lead">{_e(first)}</p>{f"<ul>{more}</ul>" if more else ""}</div>
<dl class="facts">{_facts(s)}</dl>
<nav>{links}</nav>
</header>
<main>{body}</main>
<footer>{_e(s.caption())}</footer>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _facts(s: summary.Summary) -> str:
    undefined = int(s.scores["n_undefined"].sum())
    facts = [
        (len(s.methods), "method", "methods"),
        (len(s.controls), "control", "controls"),
        (len(s.scores), "score", "scores"),
        (s.n_models, "trained model", "trained models"),
        (int(s.cells["n_samples"].sum()), "value", "values"),
        (undefined, "undefined", "undefined"),
    ]
    return "".join(
        f"<div><dt>{_e(one if n == 1 else many)}</dt><dd>{n:,}</dd></div>" for n, one, many in facts
    )


def _ranking(s: summary.Summary) -> str:
    band = None if s.reference is None else summary.row(s.ranks, s.reference)
    head = [
        _Head("#", "number", "place among the methods"),
        _Head("method"),
        _Head("library"),
        _Head("mean rank", "number", "0 better than all others, 1 worse than all"),
        _Head("", sortable=False),
        _Head("first", "number", "share of bootstrap draws in which it ranks first"),
    ]
    if s.reference is not None:
        head.append(_Head("beats random", "number", "scores, significantly, after Holm"))
    if s.positions is not None:
        head.append(_Head("to oracle", "number", "mean place: random 0 %, oracle 100 %"))
    head.append(_Head("models", "number"))
    rows = []
    for i, name in enumerate([*s.methods, *s.controls]):
        r = summary.row(s.ranks, name)
        cells = [
            _Cell("" if r["control"] else str(i + 1), i + 1),
            _Cell(_method(name, bool(r["control"])), name),
            _Cell(_e(r["library"]), r["library"]),
            _Cell(_e(text.interval(r["rank"], r["low"], r["high"])), r["rank"]),
            _Cell(_whisker(r, band), None),
            _Cell(_e(text.percent(r["p_best"])), r["p_best"]),
        ]
        if s.reference is not None:
            found = s.verdicts(name)
            share = found.get("better", 0) / sum(found.values()) if found else np.nan
            cells.append(_Cell(_e(s.beats(name)), share))
        if s.positions is not None:
            place = float(summary.row(s.positions, name).mean())
            cells.append(_Cell(_e(text.percent(place).replace("-", text.MINUS)), place))
        cells.append(_Cell(str(r["n_clusters"]), r["n_clusters"]))
        rows.append((cells, "control" if r["control"] else ""))
    table = _table(head, rows)
    if len(s.ranks) < 2:
        return table
    return table + _picture(s, figures.ranking, "mean rank of every method")


def _whisker(rank: pd.Series, band: pd.Series | None) -> str:
    """A mean rank and its interval on a line from 0 to 1, over the random control's interval."""
    if not np.isfinite(rank["rank"]):
        return ""
    parts = []
    for row, kind in ((band, "band"), (rank, "range")):
        if row is not None and np.isfinite(row["low"]):
            width = 100 * (row["high"] - row["low"])
            parts.append(
                f'<i class="{kind}" style="left:{100 * row["low"]:.1f}%;width:{width:.1f}%"></i>'
            )
    parts.append(f'<i class="point" style="left:{100 * rank["rank"]:.1f}%"></i>')
    return f'<span class="whisker" aria-hidden="true">{"".join(parts)}</span>'


def _scores(s: summary.Summary) -> str:
    out = []
    for i, score in enumerate(map(str, s.scores.index)):
        about = summary.row(s.scores, score)
        cells = s.cells.xs(score, level=1)
        cells = cells[cells.index.isin(s.ranks.index)].join(s.ranks[["library", "control"]])
        cells = cells.sort_values(
            ["control", "estimate"], ascending=[True, about["direction"] == "lower"], kind="stable"
        )
        picture = ""
        if i < _FORESTS and cells["estimate"].notna().any():
            picture = _picture(
                s, lambda x, theme, n=score: figures.score_forest(x, n, theme=theme), score
            )
        arrow = text.ARROWS[about["direction"]]
        out.append(
            f'<details id="{_anchor(score)}"{" open" if i == 0 else ""}>'
            f"<summary><b>{_e(score)} {arrow}</b>{_e(_gist(s, cells, about))}</summary>"
            f"{_score_table(s, cells, about)}{picture}</details>"
        )
    return "".join(out)


def _gist(s: summary.Summary, cells: pd.DataFrame, about: pd.Series) -> str:
    """The line of a score that is folded in."""
    methods = cells[~cells["control"] & cells["estimate"].notna()]
    if methods.empty:
        return " no method has a defined value"
    best = methods.iloc[0]
    places = int(about["places"])
    value = text.interval(best["estimate"], best["low"], best["high"], places)
    out = f" best: {methods.index[0]} {value}"
    if s.reference is not None and methods["verdict"].notna().any():
        beat = int((methods["verdict"] == "better").sum())
        out += f"; {beat} of {len(methods)} beat random"
    return out


def _score_table(s: summary.Summary, cells: pd.DataFrame, about: pd.Series) -> str:
    places = int(about["places"])
    head = [
        _Head("method"),
        _Head("library"),
        _Head(f"value [{100 * s.level:g} %]", "number"),
    ]
    if s.reference is not None:
        head += [
            _Head("minus random", "number", "difference to the random control, model by model"),
            _Head("p", "number", "adjusted by Holm over all methods and scores"),
            _Head("verdict", "text", "against the random control"),
        ]
    counts = {"n_clusters": "models", "n_samples": "values"}
    if cells["n_undefined"].any():
        counts["n_undefined"] = "undefined"
    head += [_Head(name, "number") for name in counts.values()]
    rows = []
    for name, c in cells.iterrows():
        value = text.interval(c["estimate"], c["low"], c["high"], places)
        row = [
            _Cell(_method(str(name), bool(c["control"])), name),
            _Cell(_e(c["library"]), c["library"]),
            _Cell(_e(value), c["estimate"]),
        ]
        if s.reference is not None:
            low, high = c["difference_low"], c["difference_high"]
            row += [
                _Cell(_e(text.interval(c["difference"], low, high, places)), c["difference"]),
                _Cell(_e(text.probability(c["p_holm"])), c["p_holm"]),
                _Cell(_verdict(c["verdict"]), _ORDER.get(c["verdict"], 9)),
            ]
        row += [_Cell(f"{c[n]:,}", c[n]) for n in counts]
        rows.append((row, "control" if c["control"] else ""))
    return _table(head, rows)


_ORDER = {"better": 0, "same": 1, "unknown": 2, "worse": 3}


def _verdict(verdict: object) -> str:
    words = {"same": "not shown", "unknown": "spread unknown"}
    if not isinstance(verdict, str):
        return ""
    return f'<span class="{_e(verdict)}">{_e(words.get(verdict, verdict))}</span>'


def _reading(s: summary.Summary, meanings: Mapping[str, str]) -> str:
    single = s.n_models == len(
        s.per_model.index.to_frame(index=False)[list(statistics.STRATUM)].drop_duplicates()
    )
    points = [
        "<b>Mean rank.</b> In each trained model and on each score the methods are ranked; the rank"
        " is scaled so that 0 is better than all others and 1 worse than all, and averaged. One"
        " minus the mean rank is the share of the others that a method beats.",
        f"<b>Intervals.</b> {_e(s.intervals_are())} "
        + (
            "More seeds would tell how much of the result is luck of training."
            if single
            else "The unit is the trained model: test samples of one model are not independent"
            " trials of a method, so an interval over samples alone would be too narrow."
        ),
    ]
    if s.reference is not None:
        points.append(
            "<b>Against random.</b> The same models and test samples with a random map instead."
            " “Better” and “worse” are differences that survive Holm's correction over all methods"
            " and scores; “not shown” is no proof that there is none."
        )
    if s.controls:
        points.append(
            f"<b>Controls</b> ({_e(text.listing(s.controls, 8))}) are no explanations. They show"
            " what a score gives for a map that knows nothing, or, for the oracle, everything."
            " They are ranked with the methods and set in italics."
        )
    items = "".join(f"<li>{point}</li>" for point in points)
    head = [_Head("score"), _Head("better"), _Head("meaning"), _Head("parameters")]
    head.append(_Head("undefined", "number"))
    rows = []
    for name, about in s.scores.iterrows():
        link = f'<a href="#{_anchor(str(name))}">{_e(name)}</a>'
        meaning = meanings.get(str(about["score"]), "")
        rows.append(
            (
                [
                    _Cell(link, name),
                    _Cell(f"{text.ARROWS[about['direction']]} {_e(about['direction'])}",
                          about["direction"]),
                    _Cell(f'<span class="prose">{_code(meaning) or text.NOTHING}</span>', meaning),
                    _Cell(_e(text.parameters(about["score_params"]) or "defaults"), ""),
                    _Cell(f"{about['n_undefined']:,}", about["n_undefined"]),
                ],
                "",
            )
        )  # fmt: skip
    return f"<ul class='prose'>{items}</ul>{_table(head, rows)}"


def _run(s: summary.Summary, provenance: Mapping[str, object], statuses: Mapping[str, int]) -> str:
    chips = "".join(
        f'<li class="{_e(str(name).lower())}"><b>{count:,}</b> {_e(str(name).lower())}</li>'
        for name, count in statuses.items()
    )
    items = [
        f"<dt>{_e(str(key).replace('_', ' '))}</dt><dd>{_value(value)}</dd>"
        for key, value in provenance.items()
        if key != "failures"
    ]
    items.append(f"<dt>design</dt><dd>{_e(s.design())}</dd>")
    items.append(f"<dt>table</dt><dd>{_e(text.count(len(s.rows), 'headline row'))}</dd>")
    out = f'<ul class="chips">{chips}</ul>' if chips else ""
    out += f'<dl class="run">{"".join(items)}</dl>'
    failures = provenance.get("failures")
    if failures:
        out += f"<h3>Failures</h3>{_failures(failures)}"
    return out


def _failures(failures: object) -> str:
    if isinstance(failures, Mapping):
        failures = [{"experiment": key, "error": value} for key, value in failures.items()]
    if isinstance(failures, str) or not isinstance(failures, Iterable):
        failures = [failures]
    entries = [f if isinstance(f, Mapping) else {"error": f} for f in failures]
    names = list(dict.fromkeys(str(key) for entry in entries for key in entry))
    rows = [
        ([_Cell(f'<span class="wrap">{_e(e.get(n, ""))}</span>', e.get(n)) for n in names], "")
        for e in entries
    ]
    return _table([_Head(name) for name in names], rows)


def _value(value: object) -> str:
    """A value of the provenance: short ones in line, the others folded."""
    if isinstance(value, Mapping):
        flat = all(not isinstance(v, Mapping | list | tuple) for v in value.values())
        if flat and len(value) <= 24:
            items = "".join(
                f"<dt>{_e(key)}</dt><dd>{_value(inner)}</dd>" for key, inner in value.items()
            )
            return f'<dl class="inner">{items}</dl>'
        return _folded(json.dumps(value, indent=2, default=str, ensure_ascii=False), "show")
    if isinstance(value, str):
        if "\n" in value.strip():
            return _folded(value, f"{len(value.splitlines())} lines")
        return _e(value)
    if isinstance(value, Iterable):
        values = list(value)
        if all(isinstance(v, int | float | str) for v in values):
            shown = ", ".join(map(str, values))
            return _e(shown) if len(shown) <= 200 else _folded(shown, f"{len(values)} values")
        return _folded(
            json.dumps(values, indent=2, default=str, ensure_ascii=False), f"{len(values)} values"
        )
    return text.NOTHING if value is None else _e(value)


def _folded(shown: str, label: str) -> str:
    return f"<details class='plain'><summary>{_e(label)}</summary><pre>{_e(shown)}</pre></details>"


def _absent(s: summary.Summary) -> str:
    """Which methods have no numbers on which architectures or data sets."""
    models = s.per_model.index.to_frame(index=False)
    items = []
    for name in s.methods:
        mine = s.rows[s.rows["m"] == name].drop_duplicates(list(statistics.CLUSTER))
        have = set(mine[list(statistics.CLUSTER)].itertuples(index=False, name=None))
        lacks = [key not in have for key in models.itertuples(index=False, name=None)]
        if not any(lacks):
            continue
        where = []
        for column in ("model", "dataset"):
            gone = models.loc[lacks, column].unique()
            for value in gone:
                if all(lack for lack, v in zip(lacks, models[column], strict=True) if v == value):
                    where.append(str(value))
        n = f"{sum(lacks)} of {text.count(len(models), 'model')}"
        at = f"none on {text.listing(where)}, " if where else ""
        items.append(f"<li><b>{_e(name)}</b>: {_e(at)}missing on {_e(n)}</li>")
    if not items:
        return ""
    return (
        "<p class='prose'>Either they do not apply to that architecture, or those experiments have"
        " not finished. Their ranks count only the models on which they were run.</p>"
        f"<ul>{''.join(items)}</ul>"
    )


def _steps(next_steps: Sequence[str]) -> str:
    items = "".join(f"<li>{_code(step)}</li>" for step in next_steps)
    return f"<ol>{items}</ol>" if items else ""


# ---------------------------------------------------------------- parts


@dataclass(frozen=True)
class _Head:
    """A column head; `kind` "number" aligns right and sorts by number."""

    name: str
    kind: str = "text"
    hint: str = ""
    sortable: bool = True

    def html(self) -> str:
        hint = f' title="{_e(self.hint)}"' if self.hint else ""
        inner = _e(self.name)
        if self.sortable:
            inner = f'<button type="button">{inner}</button>'
        return f'<th scope="col" class="{self.kind}"{hint}>{inner}</th>'


@dataclass(frozen=True)
class _Cell:
    """A cell: safe HTML, and the value that it is sorted by."""

    content: str
    key: object

    def html(self, kind: str) -> str:
        if isinstance(self.key, int | float | np.integer | np.floating):
            key = f"{float(self.key):.12g}" if np.isfinite(self.key) else ""
        else:
            key = str(self.key or "")
        return f'<td class="{kind}" data-key="{_e(key)}">{self.content}</td>'


def _table(head: Sequence[_Head], rows: Iterable[tuple[Sequence[_Cell], str]]) -> str:
    lines = []
    last = None
    for cells, kind in rows:
        first = " first" if kind and last is not None and kind != last else ""
        inner = "".join(c.html(h.kind) for h, c in zip(head, cells, strict=True))
        lines.append(f'<tr class="{kind}{first}">{inner}</tr>')
        last = kind
    heads = "".join(h.html() for h in head)
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _picture(s: summary.Summary, draw: Callable[..., Any], alt: str) -> str:
    """A figure in both themes; the browser shows the one that the reader prefers."""
    light, dark = draw(s, theme="light"), draw(s, theme="dark")
    width, height = (round(106 * inches) for inches in light.get_size_inches())
    night, day = (
        "data:image/svg+xml;base64," + base64.b64encode(figures.svg(figure)).decode()
        for figure in (dark, light)
    )
    return (
        f'<figure class="scroll"><picture><source media="(prefers-color-scheme: dark)"'
        f' srcset="{night}"><img src="{day}" width="{width}" height="{height}"'
        f' alt="Figure: {_e(alt)}; the table holds the same numbers"></picture></figure>'
    )


def _method(name: str, control: bool) -> str:
    return f"<em>{_e(name)}</em>" if control else f"<b>{_e(name)}</b>"


def _anchor(name: str) -> str:
    return "score-" + re.sub(r"[^A-Za-z0-9]+", "-", name)


def _code(shown: str) -> str:
    """Escaped text, with `backticks` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _e(shown))


def _e(value: object) -> str:
    return escape(str(value), quote=True)


_STYLE = """
:root{--paper:#fff;--page:#f6f8fa;--ink:#1b1f24;--muted:#57606a;--line:#d8dee4;--shade:#f5f7f9;
--accent:#0a5fa5;--good:#0b6b4f;--bad:#b3360b;--band:#dde1e6;--point:#0072b2;--mark:#eaf2fb}
@media (prefers-color-scheme:dark){:root{--paper:#161b22;--page:#0d1117;--ink:#e6edf3;
--muted:#9aa4af;--line:#30363d;--shade:#1c222a;--accent:#6cb6ff;--good:#4fd1a1;--bad:#ff8f66;
--band:#2d343d;--point:#58b4e9;--mark:#16243a}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",sans-serif}
header,main,footer{max-width:1180px;margin:0 auto;padding:0 24px}
header{padding-top:40px}
h1{font-size:1.9rem;line-height:1.2;margin:.1em 0 .6em;letter-spacing:-.01em;
overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .8em}
h3{font-size:1rem;margin:1.4em 0 .5em}
.kind{color:var(--muted);margin:0;font-size:.88rem}
.finding{background:var(--mark);border-left:4px solid var(--accent);border-radius:6px;
padding:16px 22px;overflow-wrap:anywhere}
.finding .lead{font-size:1.15rem;font-weight:600;margin:0;line-height:1.45}
.finding ul{margin:.6em 0 0;padding-left:1.2em}
.facts{display:flex;flex-wrap:wrap;gap:10px 36px;margin:22px 0}
.facts div{display:flex;flex-direction:column-reverse}
.facts dt{color:var(--muted);font-size:.85rem}
.facts dd{margin:0;font-size:1.45rem;font-weight:600;line-height:1.2;
font-variant-numeric:tabular-nums}
nav{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:.92rem;margin-bottom:24px}
a{color:var(--accent);text-decoration:none}
a:hover{text-decoration:underline}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;
padding:24px 26px;margin:0 0 22px}
.prose{max-width:46em}
ul.prose li,ol li{margin:.45em 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:6px 9px;text-align:left;vertical-align:baseline;white-space:nowrap}
th.number,td.number{text-align:right}
td .prose,td .wrap{display:block;white-space:normal;min-width:15em;max-width:38em;
overflow-wrap:anywhere}
thead th{color:var(--muted);font-weight:500;border-bottom:1px solid var(--line);
vertical-align:bottom}
tbody tr:nth-child(odd){background:var(--shade)}
tr.control td{color:var(--muted)}
tr.control.first td{border-top:2px solid var(--line)}
th button{all:unset;cursor:pointer;white-space:nowrap}
th button:hover{color:var(--ink)}
th button:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
th{position:relative}
th button::after{position:absolute;padding-left:2px}
th[aria-sort=ascending] button::after{content:"\\2191"}
th[aria-sort=descending] button::after{content:"\\2193"}
.whisker{position:relative;display:inline-block;vertical-align:middle;width:150px;height:16px;
background:linear-gradient(var(--line),var(--line)) 0 50%/100% 1px no-repeat}
.whisker i{position:absolute}
.band{top:0;bottom:0;background:var(--band)}
.range{top:7px;height:2px;background:var(--point);min-width:1px}
.point{top:4px;width:8px;height:8px;margin-left:-4px;border-radius:50%;background:var(--point)}
tr.control .range{background:var(--muted)}
tr.control .point{background:var(--paper);border:2px solid var(--muted)}
.better{color:var(--good);font-weight:600}
.worse{color:var(--bad);font-weight:600}
.same,.unknown{color:var(--muted)}
figure{margin:22px 0 0}
figure img{max-width:100%;height:auto;min-width:680px;display:block;margin:0 auto}
details{border-top:1px solid var(--line);padding:10px 0}
details:first-of-type{border-top:0;padding-top:0}
details[open]{padding-bottom:18px}
summary{cursor:pointer;padding:4px 0;overflow-wrap:anywhere;color:var(--muted)}
summary b{color:var(--ink)}
details[open]>summary{margin-bottom:10px}
details.plain{border:0;padding:0}
.chips{display:flex;flex-wrap:wrap;gap:8px;list-style:none;padding:0;margin:0 0 16px}
.chips li{border:1px solid var(--line);border-radius:99px;padding:2px 13px;font-size:.9rem}
.chips .completed b{color:var(--good)}
.chips .failed b,.chips .killed b,.chips .interrupted b{color:var(--bad)}
dl.run,dl.inner{display:grid;grid-template-columns:minmax(7em,max-content) 1fr;gap:5px 22px;
margin:0;font-size:.93rem}
dl.run dt,dl.inner dt{color:var(--muted)}
dl.run dd,dl.inner dd{margin:0;overflow-wrap:anywhere;min-width:0}
pre{background:var(--shade);border:1px solid var(--line);border-radius:6px;padding:12px 14px;
overflow:auto;max-height:26em;font-size:.82rem;line-height:1.45}
code{background:var(--shade);border:1px solid var(--line);border-radius:4px;padding:.1em .35em;
font-size:.88em;overflow-wrap:anywhere}
footer{color:var(--muted);font-size:.85rem;padding-bottom:48px}
@media (max-width:640px){header,main,footer{padding-left:12px;padding-right:12px}
section{padding:18px 14px}dl.run,dl.inner{grid-template-columns:1fr;gap:0}
dl.run dd{margin-bottom:8px}}
@media print{body{background:#fff}nav{display:none}section{border:0;padding:12px 0}
tr,figure{break-inside:avoid}}
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, i) => head.querySelector("button")?.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const number = head.classList.contains("number");
    const key = row => row.cells[i].dataset.key;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = number ? x - y : x.localeCompare(y);
      return down ? -order : order;
    });
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.forEach(row => { row.classList.remove("first"); body.append(row); });
  }));
}
addEventListener("beforeprint", () =>
  document.querySelectorAll("details").forEach(d => { d.open = true; }));
"""
