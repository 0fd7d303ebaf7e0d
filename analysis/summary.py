"""The numbers behind a table, a figure or a report, computed once.

Figures, tables and the report all show the same few things: the ranking, every method's value on
every score, where that lies between the random control and the oracle, and whether it beats
random. `summarise` computes them; whoever shows several things passes the summary around.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import statistics, text


@dataclass(frozen=True)
class Summary:
    """What is known of a set of rows.

    rows       the headline rows, with the labels `m` (method) and `s` (score)
    ranks      `statistics.ranks`, index: method label, best first
    scores     index: score label, in the order of the rows: score, score_params, direction,
               places (digits to show), n_undefined
    cells      `statistics.intervals`, index: (method label, score label); with difference,
               difference_low, difference_high, p_holm and verdict against the reference
    positions  methods × scores: 0 like random, 1 like the oracle; None without these controls
    matrix     methods × scores: mean percentile rank
    per_model  models × methods: mean percentile rank
    reference  label of the control that methods are compared to, None where the rows lack it
    """

    rows: pd.DataFrame
    ranks: pd.DataFrame
    scores: pd.DataFrame
    cells: pd.DataFrame
    positions: pd.DataFrame | None
    matrix: pd.DataFrame
    per_model: pd.DataFrame
    reference: str | None
    level: float
    draws: int

    @property
    def methods(self) -> list[str]:
        """Labels of the methods that are not controls, best first."""
        return list(self.ranks.index[~self.ranks["control"]])

    @property
    def controls(self) -> list[str]:
        """Labels of the controls, best first."""
        return list(self.ranks.index[self.ranks["control"]])

    @property
    def n_models(self) -> int:
        return len(self.per_model)

    def verdicts(self, method: str) -> Mapping[str, int]:
        """How often a method is better than, worse than or the same as the reference."""
        return {str(k): int(n) for k, n in self.verdict(method).value_counts().items()}

    def verdict(self, method: str) -> pd.Series:
        """A method's verdicts against the reference, by score label; empty if it has none."""
        mine = self.cells[self.cells.index.get_level_values(0) == method]
        return mine["verdict"].droplevel(0).dropna()

    def beats(self, method: str) -> str:
        """`6/8`: scores on which a method beats the reference, of those compared."""
        found = self.verdicts(method)
        return f"{found.get('better', 0)}/{sum(found.values())}" if found else text.NOTHING

    def design(self) -> str:
        """`24 trained models (2 data sets, 2 architectures, 6 seeds)`."""
        clusters = self.per_model.index.to_frame(index=False)
        parts = [
            (["study", "dataset"], "data set", "data sets"),
            (["model", "model_params"], "architecture", "architectures"),
            (["seed"], "seed", "seeds"),
        ]
        counts = [
            text.count(len(clusters[columns].drop_duplicates()), one, many)
            for columns, one, many in parts
        ]
        return f"{text.count(self.n_models, 'trained model')} ({', '.join(counts)})"

    def caption(self) -> str:
        """What every figure says of its data and its intervals."""
        return f"{text.count(len(self.rows), 'row')}; {self.design()}. {self.intervals_are()}"

    def intervals_are(self) -> str:
        """One sentence on what an interval covers here."""
        models = self.per_model.index.to_frame(index=False)
        strata = len(models[list(statistics.STRATUM)].drop_duplicates())
        kind = (
            f"{100 * self.level:g}\N{NO-BREAK SPACE}% intervals from {self.draws:,} bootstrap draws"
        )
        if self.n_models > strata:
            return f"{kind} of models, then of their test samples."
        return (
            f"{kind} of test samples only: each data set has one trained model, so they do not"
            " say how another training would turn out."
        )

    def finding(self) -> list[str]:
        """What came out, in sentences, the most important first."""
        return self._best() + self._against() + self._cautions()

    def _best(self) -> list[str]:
        ranked = self.ranks.loc[self.methods]
        if len(ranked) < 2 or not np.isfinite(ranked["rank"].iloc[0]):
            return []
        top = ranked[ranked["p_best"] >= 0.05]
        first = ranked.iloc[0]
        over = "all scores and models" if len(self.scores) > 1 else "all models"
        if len(top) <= 1:
            share = f"{text.percent(1 - first['rank'])}"
            if text.finite(first["low"]):
                share += f" [{100 * (1 - first['high']):.0f}, {100 * (1 - first['low']):.0f}]"
            out = [f"{ranked.index[0]} ranks best: over {over} it beats {share} of its rivals."]
        else:
            names = text.listing(top.index, 4)
            out = [f"No single method is best: {names} are not told apart at the top."]
        if self.positions is not None and ranked.index[0] in self.positions.index:
            way = self.positions.loc[ranked.index[0]].dropna()
            if len(way):
                out.append(
                    f"On average over scores, {ranked.index[0]} covers"
                    f" {text.percent(float(way.mean()))} of the way from the random control to"
                    " the oracle."
                )
        return out

    def _against(self) -> list[str]:
        if self.reference is None:
            return ["There is no random control in these rows, so nothing says what chance gives."]
        found = {name: self.verdicts(name) for name in self.methods}
        found = {name: verdict for name, verdict in found.items() if verdict}
        if not found:
            return []
        total = len(found)
        always = [n for n, v in found.items() if v.get("better", 0) == sum(v.values())]
        never = [n for n, v in found.items() if not v.get("better", 0)]
        worse = [n for n, v in found.items() if v.get("worse", 0)]
        name = f"the {self.reference} control"
        scores = "the score" if len(self.scores) == 1 else f"all {len(self.scores)} scores"
        if len(self.scores) == 1 or len(always) == total:
            out = [f"{len(always)} of {text.count(total, 'method')} beat {name} on {scores}."]
        else:
            some = total - len(never)
            out = [
                f"{some} of {text.count(total, 'method')} beat {name} on at least one score, "
                f"{len(always) or 'none'} on every score that applies."
            ]
        if never and len(never) < total:
            out[-1] += f" {text.listing(never)} never {'does' if len(never) == 1 else 'do'}."
        if worse:
            out.append(
                f"{text.listing(worse)} {'is' if len(worse) == 1 else 'are'} worse than random on"
                " at least one score."
            )
        return out

    def _cautions(self) -> list[str]:
        out = []
        for name in self.controls:
            if self.ranks.loc[name, "method"] not in ("constant",) or self.reference is None:
                continue
            verdict = self.verdict(name)
            fooled = list(verdict.index[verdict == "better"])
            if fooled and self.n_models > 1:
                out.append(
                    f"Caution: a constant map beats random on {text.listing(fooled)}, so"
                    f" {'this score rewards' if len(fooled) == 1 else 'these scores reward'}"
                    " saying nothing."
                )
        if self.n_models == 1:
            out.append("All of this rests on one trained model; add seeds before relying on it.")
        return out


def summarise(
    rows: pd.DataFrame,
    *,
    control: str = "random",
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Summary:
    """Compute a `Summary` of the headline rows. Raises ValueError as `statistics.headline`."""
    rows = statistics.headline(rows)
    rows = rows.assign(m=statistics.method_labels(rows), s=statistics.score_labels(rows))
    options = {"level": level, "draws": draws, "seed": seed}
    names = rows.drop_duplicates("m").set_index(list(statistics.METHOD))["m"]
    titles = rows.drop_duplicates("s").set_index(list(statistics.SCORE))["s"]

    def labelled(table: pd.DataFrame) -> pd.DataFrame:
        keys = zip(
            table[list(statistics.METHOD)].itertuples(index=False, name=None),
            table[list(statistics.SCORE)].itertuples(index=False, name=None),
            strict=True,
        )
        index = pd.MultiIndex.from_tuples(
            [(names[m], titles[s]) for m, s in keys], names=["method_label", "score_label"]
        )
        return table.set_axis(index, axis=0)

    cells = labelled(statistics.intervals(rows, **options))  # type: ignore[arg-type]
    # A control with several parameters: the first of them is as good as any.
    reference = next(iter(sorted(names.loc[names.index.get_level_values(0) == control])), None)
    versus = ["difference", "difference_low", "difference_high", "p_holm", "verdict"]
    if reference is not None and len(names) > 1:
        compared = labelled(statistics.compare_to_control(rows, reference, **options))  # type: ignore[arg-type]
        compared = compared.rename(columns={"low": "difference_low", "high": "difference_high"})
        cells = cells.join(compared[versus])
    else:
        cells = cells.assign(**dict.fromkeys(versus[:-1], np.nan), verdict=None)
    scores = rows.drop_duplicates("s").set_index("s")[[*statistics.SCORE, "direction"]]
    by_score = cells.groupby(level="score_label", sort=False)
    places = {
        name: text.decimals(((c["high"] - c["low"]) / 2).tolist(), c["estimate"].tolist())
        for name, c in by_score
    }
    scores = scores.assign(
        places=pd.Series(places), n_undefined=by_score["n_undefined"].sum()
    ).rename_axis("score_label")
    return Summary(
        rows=rows,
        ranks=_ranks(rows, **options),  # type: ignore[arg-type]
        scores=scores,
        cells=cells,
        positions=statistics.positions(rows, floor=control),
        matrix=statistics.rank_matrix(rows),
        per_model=statistics.rank_per_model(rows),
        reference=reference,
        level=level,
        draws=draws,
    )


def _ranks(rows: pd.DataFrame, *, level: float, draws: int, seed: int) -> pd.DataFrame:
    """`statistics.ranks` by label; a method that is alone has no rank but is still shown."""
    if rows["m"].nunique() > 1:
        return statistics.ranks(rows, level=level, draws=draws, seed=seed).set_index("label")
    alone = rows.drop_duplicates("m").assign(
        rank=np.nan, low=np.nan, high=np.nan, p_best=np.nan,
        n_clusters=len(rows.drop_duplicates(list(statistics.CLUSTER))),
        n_scores=rows["s"].nunique(), control=lambda t: t["control"].astype(bool),
    )  # fmt: skip
    columns = [*statistics.METHOD, "library", "family", "control", "rank", "low", "high", "p_best"]
    return alone.set_index("m").rename_axis("label")[[*columns, "n_clusters", "n_scores"]]


def of(data: pd.DataFrame | Summary) -> Summary:
    """The summary of rows; a summary is passed through."""
    return data if isinstance(data, Summary) else summarise(data)


def row(table: pd.DataFrame, label: object) -> pd.Series:
    """One row of a table that has unique labels."""
    return table.iloc[table.index.get_loc(label)]  # type: ignore[call-overload, return-value]
