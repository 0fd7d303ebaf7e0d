"""Intervals, ranks and tests on the tidy table of scores.

The unit is the trained model, and intervals are those of `analysis.bootstrap`: models are
resampled within studies and data sets, then test samples within models. Undefined values are left
out and counted, never in silence. All results are reproducible.

Facets (class, bucket, threshold, percent) are never mixed: unless a facet is asked for, only the
`headline` row of a score is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import pandas as pd

from analysis import bootstrap
from analysis.bootstrap import (
    CLUSTER,
    FACETS,
    METHOD,
    SCORE,
    STRATUM,
    Grid,
    Statistic,
    headline,
    method_labels,
    nanmean,
    score_labels,
)

# ---------------------------------------------------------------- intervals


def intervals(
    rows: pd.DataFrame,
    *,
    by: Sequence[str] = (*METHOD, *SCORE),
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    statistic: Statistic = "mean",
) -> pd.DataFrame:
    """A typical trained model's value for each group, with a bootstrap interval.

    `statistic` is taken over models, of each model's mean over its test samples: their mean,
    interquartile mean (Agarwal 2021) or median. Where `by` names facets ("class", "percent", …)
    the rows that have those facets, and no other, are used; else the headline rows.

    Returns one row per group, sorted: the columns `by`, then
        estimate, low, high   NaN where nothing is defined; low and high also where a single
                              model gives a single number, so that its spread is not known
        n_clusters            trained models with a defined value
        n_samples             defined values behind the estimate, over all models
        n_undefined           values left out because they are NaN or infinite

    Raises ValueError for an unknown column, statistic or level, and if `by` would mix scores.
    """
    bootstrap.check_draws(level, draws)
    if statistic not in bootstrap.BANDS:
        raise ValueError(
            f"statistic must be one of {', '.join(bootstrap.BANDS)}, not {statistic!r}"
        )
    by = [by] if isinstance(by, str) else list(by)
    return _intervals(_chosen(rows, by), by, level, draws, seed, statistic)[0]


def _chosen(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    rows = bootstrap.checked(rows)
    unknown = [name for name in by if name not in rows.columns]
    if unknown or not by:
        raise ValueError(
            f"cannot group by {', '.join(map(repr, unknown)) or 'nothing'}:"
            f" columns are {', '.join(rows.columns)}"
        )
    facets = [facet for facet in FACETS if facet in by]
    if facets:
        others = [facet for facet in FACETS if facet not in by]
        rows = rows[rows[facets].notna().all(axis=1) & rows[others].isna().all(axis=1)]
        if rows.empty:
            raise ValueError(f"no rows have {' and '.join(facets)} and no other facet")
    else:
        rows = rows[rows["headline"].astype(bool)]
        if rows.empty:
            raise ValueError("no headline rows: mark one row per score with headline=True")
    if "score" not in by and rows["score"].nunique() > 1:
        raise ValueError("scores have different scales: group by 'score', or pass one score's rows")
    return rows


def _intervals(
    rows: pd.DataFrame,
    by: Sequence[str],
    level: float,
    draws: int,
    seed: int,
    statistic: Statistic = "mean",
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The table of `intervals`, the bootstrap's standard error [G], degrees of freedom [G]."""
    grid = Grid.of(rows, by)
    K, G = grid.shape
    present = np.isfinite(grid.value)
    estimate, low, high, error = (np.full(G, np.nan) for _ in range(4))
    freedom = np.zeros(G, dtype=int)
    informative = grid.informative()
    step = max(1, bootstrap.CHUNK_BYTES // (8 * K * draws))
    for mask, groups in bootstrap.masks(present):
        weights = grid.weights(mask, draws, seed)[mask]
        models = np.flatnonzero(mask)
        dof = grid.freedom(mask)
        freedom[groups] = dof
        for part in np.split(groups, range(step, len(groups), step)):
            observed = grid.value[np.ix_(models, part)][..., None]
            estimate[part] = bootstrap.reduce(observed, np.ones((len(models), 1)), statistic)[:, 0]
            drawn = bootstrap.reduce(grid.pool(models, part, draws, seed), weights, statistic)
            low[part], high[part] = bootstrap.limits(drawn, level, dof)
            error[part] = drawn.std(axis=-1)
        if dof == 0:
            blind = groups[~informative[groups]]
            low[blind] = high[blind] = error[blind] = np.nan
    table = grid.groups.assign(
        estimate=estimate,
        low=low,
        high=high,
        n_clusters=present.sum(0),
        n_samples=grid.count("_defined"),
        n_undefined=grid.count("_undefined"),
    )
    return table, error, freedom


# ---------------------------------------------------------------- ranks


def _percentile_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks over axis 1 of [K, M, ...], the smallest best: 0 for the best, 1 for the worst.

    Ties share their mean rank. NaN is absent; alone, a method has no rank.
    """
    present = np.isfinite(x)
    worse = np.zeros(x.shape)
    for m in range(x.shape[1]):
        mine = x[:, m : m + 1]
        worse += (x > mine) & present[:, m : m + 1]
        worse += 0.5 * (x == mine)
    rivals = present.sum(1, keepdims=True) - 1.0
    worse -= 0.5  # a method ties with itself
    keep = present & (rivals > 0)
    return np.divide(worse, rivals, out=np.full(x.shape, np.nan), where=keep)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks 1 … n in each row of [m, n], ties averaged."""
    return 1 + (x.shape[1] - 1) * _percentile_ranks(_round(x))


def _round(x: np.ndarray) -> np.ndarray:
    """Equal maps must tie: forget the last bits, which depend on the order of a sum."""
    scale = np.abs(x[np.isfinite(x)]).max(initial=0.0)
    return np.round(x / scale, 9) if scale > 0 else x


@dataclass(frozen=True)
class _Ranking:
    """Every method's percentile rank in every model and score; methods [M], scores [S]."""

    grid: Grid
    methods: pd.DataFrame
    scores: pd.DataFrame
    group: np.ndarray  # [M, S] the grid's group of a cell, -1 where there is none
    sign: np.ndarray  # [S] +1 where lower is better

    @classmethod
    def of(cls, rows: pd.DataFrame) -> _Ranking:
        grid = Grid.of(rows, (*METHOD, *SCORE))
        m, methods = bootstrap.codes(grid.groups, METHOD)
        s, scores = bootstrap.codes(grid.groups, SCORE)
        group = np.full((len(methods), len(scores)), -1)
        group[m, s] = np.arange(len(m))
        first = rows.drop_duplicates(list(METHOD))
        methods = methods.merge(first[[*METHOD, "library", "family", "control"]], on=list(METHOD))
        methods["control"] = methods["control"].astype(bool)
        scores = scores.merge(
            rows.drop_duplicates(list(SCORE))[[*SCORE, "direction"]], on=list(SCORE)
        )
        sign = np.where(scores["direction"] == "lower", 1.0, -1.0)
        return cls(grid, methods, scores, group, sign)

    @cached_property
    def observed(self) -> np.ndarray:
        """[S, K, M]"""
        out = np.full((len(self.scores), self.grid.shape[0], len(self.methods)), np.nan)
        for s in range(len(self.scores)):
            have = self.group[:, s] >= 0
            x = np.full(out.shape[1:], np.nan)
            x[:, have] = self.sign[s] * self.grid.value[:, self.group[have, s]]
            out[s] = _percentile_ranks(_round(x))
        return out

    def drawn(self, models: np.ndarray, draws: int, seed: int) -> np.ndarray:
        """[len(models), M, draws] rank of each method over all scores, test samples resampled.

        Resampling pulls the ranks of near equals together, so each cell is shifted back onto
        its observed rank.
        """
        total = np.zeros((len(models), len(self.methods), draws))
        number = np.zeros((len(models), len(self.methods), 1))
        for s in range(len(self.scores)):
            have = np.flatnonzero(self.group[:, s] >= 0)
            x = self.grid.pool(models, self.group[have, s], draws, seed)
            ranks = _percentile_ranks(_round(self.sign[s] * x))
            defined = np.isfinite(ranks[..., :1])
            observed = self.observed[s][np.ix_(models, have)][..., None]
            shifted = ranks - ranks.mean(-1, keepdims=True) + observed
            total[:, have] += np.where(defined, shifted, 0)
            number[:, have] += defined
        return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def ranks(
    rows: pd.DataFrame, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Mean rank of each method over scores and models, best first.

    In each model and score the methods present are ranked (ties share their mean rank, the
    score's direction is respected) and the rank is scaled to [0, 1]: 0 is better than all the
    others, 1 worse than all, and 1 - rank is the share of the others that it beats. So a model
    to which few methods apply counts as much as one to which all apply. A model's ranks are
    averaged over scores, then over models. Controls are ranked among the methods, and flagged.

    Returns one row per method: method, method_params, label, library, family, control, rank, low,
    high, p_best (share of draws in which it ranks first among the methods that are not controls;
    NaN for controls), n_clusters, n_scores. The interval is the one of `intervals`.

    Raises ValueError if fewer than two methods are there to be ranked.
    """
    bootstrap.check_draws(level, draws)
    rows = headline(rows)
    ranking = _Ranking.of(rows)
    M = len(ranking.methods)
    if M < 2:
        raise ValueError(f"cannot rank: {ranking.methods['method'].iloc[0]!r} is the only method")
    per_model = nanmean(ranking.observed)  # [K, M]
    present = np.isfinite(per_model)
    K = len(present)
    total, weight = np.zeros((M, draws)), np.zeros((M, draws))
    masks = [
        (mask, methods, ranking.grid.weights(mask, draws, seed))
        for mask, methods in bootstrap.masks(present)
    ]
    step = max(1, bootstrap.CHUNK_BYTES // (8 * M * draws))
    for models in np.split(np.arange(K), range(step, K, step)):
        drawn = np.nan_to_num(ranking.drawn(models, draws, seed))
        for _, methods, weights in masks:
            total[methods] += (drawn[:, methods] * weights[models, None]).sum(0)
            weight[methods] += weights[models].sum(0)
    mean = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
    mean = np.clip(mean, 0, 1)
    low, high = np.full(M, np.nan), np.full(M, np.nan)
    informative = np.zeros(M, dtype=bool)
    for column in ranking.group.T:
        have = column >= 0
        informative[have] |= ranking.grid.informative()[column[have]]
    for mask, methods, _ in masks:
        dof = ranking.grid.freedom(mask)
        low[methods], high[methods] = bootstrap.limits(mean[methods], level, dof)
        if dof == 0:
            blind = methods[~informative[methods]]
            low[blind] = high[blind] = np.nan
    rivals = ~ranking.methods["control"].to_numpy() & present.any(0)
    p_best = np.full(M, np.nan)
    if rivals.any():
        best = mean[rivals] == mean[rivals].min(0)
        p_best[rivals] = (best / best.sum(0)).mean(-1)
    table = ranking.methods.assign(
        label=method_labels(ranking.methods),
        rank=nanmean(per_model),
        low=low,
        high=high,
        p_best=p_best,
        n_clusters=present.sum(0),
        n_scores=np.isfinite(ranking.observed).any(1).sum(0),
    )
    columns = [*METHOD, "label", "library", "family", "control", "rank", "low", "high"]
    table = table[[*columns, "p_best", "n_clusters", "n_scores"]]
    return table.sort_values(["rank", "label"], ignore_index=True)


def rank_matrix(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean percentile rank (0 best, 1 worst) over models: methods × scores, by their labels."""
    ranking = _Ranking.of(headline(rows))
    return pd.DataFrame(
        nanmean(ranking.observed.transpose(1, 2, 0)),
        index=pd.Index(method_labels(ranking.methods), name="method"),
        columns=pd.Index(score_labels(ranking.scores), name="score"),
    )


def rank_per_model(rows: pd.DataFrame) -> pd.DataFrame:
    """Percentile rank of each method in each trained model, mean over scores: models × methods."""
    ranking = _Ranking.of(headline(rows))
    return pd.DataFrame(
        nanmean(ranking.observed),
        index=pd.MultiIndex.from_frame(ranking.grid.clusters),
        columns=pd.Index(method_labels(ranking.methods), name="method"),
    )


def positions(
    rows: pd.DataFrame, *, floor: str = "random", ceiling: str = "oracle"
) -> pd.DataFrame | None:
    """Where each method lies between two controls: 0 like `floor`, 1 like `ceiling`.

    (value - floor) / (ceiling - floor), of means over the models that have all three, so that
    scores of different scale can be compared; negative is worse than the floor. Methods × scores
    by their labels. NaN where a score does not tell the ceiling from the floor (it is not better
    in at least three models of four), None where the rows lack one of the controls.
    """
    rows = headline(rows)
    names = set(rows["method"])
    if floor not in names or ceiling not in names:
        return None
    ranking = _Ranking.of(rows)
    cells = np.full((len(ranking.grid.value), *ranking.group.shape), np.nan)
    have = ranking.group >= 0
    cells[:, have] = ranking.grid.value[:, ranking.group[have]]
    method = ranking.methods["method"].to_numpy()
    bottom = nanmean(cells[:, method == floor], 1)[:, None]
    top = nanmean(cells[:, method == ceiling], 1)[:, None]
    shared = np.isfinite(cells) & np.isfinite(bottom) & np.isfinite(top)

    def mean(x: np.ndarray) -> np.ndarray:
        return nanmean(np.where(shared, np.broadcast_to(x, cells.shape), np.nan))

    better = mean((top - bottom) * -ranking.sign > 0) >= 0.75
    span = np.where(better, mean(top) - mean(bottom), np.nan)
    return pd.DataFrame(
        np.divide(mean(cells) - mean(bottom), span, out=np.full(span.shape, np.nan), where=better),
        index=pd.Index(method_labels(ranking.methods), name="method"),
        columns=pd.Index(score_labels(ranking.scores), name="score"),
    )


# ---------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Comparison:
    """Method `a` against method `b` on one score, over the models and samples that both have.

    difference, low, high   a - b in the score's unit, with its two-level bootstrap interval
    p                       two-sided, of difference = 0: the bootstrap's standard error against
                            Student's t with (models - strata) degrees of freedom, or
                            (samples - models) where each stratum has one model
    p_wilcoxon              signed-rank test of the per-model differences (NaN for one model);
                            with k models it cannot fall below 2^(1 - k)
    p_better                probability that a is better than b on a random test sample of a
                            random model, ties half; models are compared where samples are missing
    cliffs_delta            dominance of a's models over b's, within strata: 1 if every model is
                            better under a than every model under b, -1 the reverse
    """

    a: str
    b: str
    score: str
    direction: str
    difference: float
    low: float
    high: float
    p: float
    p_wilcoxon: float
    p_better: float
    cliffs_delta: float
    n_clusters: int
    n_samples: int
    n_undefined: int

    @property
    def better(self) -> str | None:
        """The method that is better at this level, or None where the interval holds 0."""
        if not (self.low > 0 or self.high < 0):
            return None
        return self.a if (self.low > 0) == (self.direction == "higher") else self.b


def paired(
    rows: pd.DataFrame,
    a: str,
    b: str,
    score: str,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two methods on one score, model by model and sample by sample.

    Methods and scores are given by name, or by label where one name has several parameters.
    Raises ValueError if one is unknown or ambiguous, or if no model has both.
    """
    bootstrap.check_draws(level, draws)
    rows = headline(rows)
    rows = _named(rows, SCORE, score)
    first, second = _named(rows, METHOD, a), _named(rows, METHOD, b)
    pairs = _differences(first, second)
    if pairs.empty:
        raise ValueError(f"{a!r} and {b!r} have no trained model in common on {score!r}")
    found = _tested(pairs, level, draws, seed).iloc[0]
    names = [field.name for field in fields(Comparison)][4:]
    values = {name: found[name].item() for name in names}
    return Comparison(a, b, score, str(rows["direction"].iloc[0]), **values)


def compare_to_control(
    rows: pd.DataFrame,
    control: str = "random",
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether each method beats a control on each score.

    Returns one row per method × score, other controls included and flagged: method,
    method_params, score, score_params, direction, control, difference (method - control), low,
    high, p, p_holm, p_wilcoxon, p_better, cliffs_delta, verdict, n_clusters, n_samples,
    n_undefined. Columns mean what they mean in `Comparison`, but `p` is moderated: the standard
    errors of all methods on one score inform each other, without which a handful of seeds
    could hardly show anything.

    `p_holm` is `p` after Holm's correction over all methods × scores; the other controls are a
    family of their own. `verdict` is "better" or "worse" where p_holm < 1 - level, else "same";
    "unknown" where one model gives one number and nothing tells its spread.

    Raises ValueError if the control is not there, or is alone.
    """
    bootstrap.check_draws(level, draws)
    rows = headline(rows)
    present = sorted(set(rows.loc[rows["control"].astype(bool), "method"]))
    if control not in set(rows["method"]):
        known = f"controls here: {', '.join(present)}" if present else "there are no controls"
        raise ValueError(f"no control {control!r} in these rows; {known}")
    reference = _named(rows, METHOD, control)
    others = rows.drop(index=reference.index)
    pairs = _differences(others, reference)
    if pairs.empty:
        raise ValueError(f"no method shares a trained model and a score with {control!r}")
    table = _tested(pairs, level, draws, seed)
    for _, like in table[table["freedom"] > 0].groupby([*SCORE, "freedom"]):
        error, freedom = _moderated(like["error"].to_numpy(float), int(like["freedom"].iloc[0]))
        p = _two_sided(like["difference"].to_numpy(float), error, np.full(len(like), freedom))
        table.loc[like.index, "p"] = p
    table["p_holm"] = np.nan
    for _, family in table.groupby("control"):
        table.loc[family.index, "p_holm"] = holm(family["p"].to_numpy())
    sign = np.where(table["direction"] == "higher", 1.0, -1.0)
    gain = sign * table["difference"].to_numpy(float)
    sure = table["p_holm"] < 1 - level
    table["verdict"] = np.select(
        [table["p_holm"].isna(), sure & (gain > 0), sure & (gain < 0)],
        ["unknown", "better", "worse"],
        "same",
    )
    columns = [*METHOD, *SCORE, "direction", "control", "difference", "low", "high", "p", "p_holm"]
    columns += ["p_wilcoxon", "p_better", "cliffs_delta", "verdict"]
    return table[[*columns, "n_clusters", "n_samples", "n_undefined"]]


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (Holm 1979); NaN stay out of the family."""
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return out


def _named(rows: pd.DataFrame, key: tuple[str, str], name: str) -> pd.DataFrame:
    """The rows of one method (or score), by name or label."""
    label = bootstrap.labels_of(rows, key)
    found = rows[label == name]
    if not found.empty:
        return found
    variants = sorted(set(label[rows[key[0]] == name]))
    if variants:
        raise ValueError(f"{key[0]} {name!r} has several parameters; say {' or '.join(variants)}")
    raise ValueError(f"no {key[0]} {name!r} in these rows; known: {', '.join(sorted(set(label)))}")


def _differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Rows of first - second over common models and scores, keyed by the first's method."""
    on = [*CLUSTER, *SCORE]
    right = second[[*on, "value", "n", "sd", "samples", "data_key"]]
    both = first.merge(right, on=on, suffixes=("", "_b"))
    sign = np.where(both["direction"] == "higher", 1, -1)
    values, samples, wins = [], [], []
    columns = ("value", "value_b", "samples", "samples_b", "data_key", "data_key_b")
    for (va, vb, sa, sb, ka, kb), s in zip(
        zip(*(both[c] for c in columns), strict=True), sign, strict=True
    ):
        a, b = bootstrap.samples_of(sa), bootstrap.samples_of(sb)
        same_data = ka == kb or not (isinstance(ka, str) and isinstance(kb, str))
        value, each, win = va - vb, None, 0.5 + 0.5 * np.sign(s * (va - vb))
        if a is not None and b is not None and len(a) == len(b) and same_data:
            a, b = a.astype(np.float64), b.astype(np.float64)
            usable = np.isfinite(a) & np.isfinite(b)
            each = np.full(len(a), np.nan)
            each[usable] = a[usable] - b[usable]
            if usable.any():
                win = (0.5 + 0.5 * np.sign(s * each[usable])).mean()
                if _is_mean(va, a) and _is_mean(vb, b):
                    value = each[usable].mean()
            else:
                value = win = np.nan
        values.append(value)
        samples.append(each)
        wins.append(win)
    sds = np.sqrt(both["sd"].astype(float) ** 2 + both["sd_b"].astype(float) ** 2)
    return both.assign(
        difference=values,
        samples=pd.Series(samples, index=both.index, dtype=object),
        win=wins,
        sd=sds,
        n=np.minimum(both["n"].fillna(0), both["n_b"].fillna(0)),
        first=both["value"].astype(float),
        second=both["value_b"].astype(float),
    ).assign(value=values)


def _is_mean(value: float, samples: np.ndarray) -> bool:
    """Whether a row's value is the mean of its samples, and not an aggregate of its own."""
    mean = float(nanmean(samples))
    return abs(value - mean) <= 1e-5 * max(abs(value), abs(mean)) + 1e-9


def _tested(pairs: pd.DataFrame, level: float, draws: int, seed: int) -> pd.DataFrame:
    by = [*METHOD, *SCORE]
    table, error, freedom = _intervals(pairs, by, level, draws, seed)
    table = table.rename(columns={"estimate": "difference"})
    first = pairs.drop_duplicates(by)[[*by, "direction", "control"]]
    table = table.merge(first, on=by, how="left")
    table["control"] = table["control"].astype(bool)
    # With one model per stratum the samples are all there is.
    samples = (table["n_samples"] - table["n_clusters"]).to_numpy()
    table["error"], table["freedom"] = error, freedom
    usable = np.where(freedom > 0, freedom, np.maximum(samples, 1))
    table["p"] = _two_sided(table["difference"].to_numpy(float), error, usable)
    rest = {
        key: (
            _wilcoxon(group["value"].to_numpy(float)),
            nanmean(group["win"].to_numpy(float)),
            _cliffs_delta(group),
        )
        for key, group in pairs.groupby(by)
    }
    found = [rest[key] for key in table[by].itertuples(index=False, name=None)]
    table[["p_wilcoxon", "p_better", "cliffs_delta"]] = np.array(found, dtype=float)
    return table


def _two_sided(difference: np.ndarray, error: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """p of difference = 0 from its standard error, by Student's t; normal for infinite freedom."""
    from scipy import special

    size = np.abs(difference)
    # Equal in every draw is no evidence of a difference; different in every draw is all there is.
    tiny = error <= 1e-12 * np.maximum(size, 1e-300)
    t = size / np.where(tiny, 1, error)
    student = np.isfinite(freedom)
    p = 2 * np.where(student, special.stdtr(np.where(student, freedom, 1), -t), special.ndtr(-t))
    p = np.where(tiny, np.where(size == 0, 1.0, 0.0), p)
    return np.where(np.isfinite(error), p, np.nan)


def _moderated(error: np.ndarray, freedom: int) -> tuple[np.ndarray, float]:
    """Standard errors of like comparisons, drawn together, and their degrees of freedom.

    With three seeds a standard error is itself a guess, now far too small, now far too large. If
    the true variances of many comparisons follow a scaled inverse chi-square law, each is best
    guessed from its own data and from the others (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3,
    the moderated t of limma). How much the others count, d0 degrees of freedom, is estimated from
    how much more the errors differ than chance would have it: not at all if they differ a lot.
    Unlike limma's, an error is never made smaller, because methods do differ in how much they
    vary from model to model. Simulated with three seeds: some method is wrongly called different
    in under 5 % of tables if all vary alike, in about 10 % if some vary four times as much as
    others.
    """
    from scipy import special

    usable = error[np.isfinite(error) & (error > 1e-9 * np.nanmax(error, initial=0))]
    if len(usable) < 3:
        return error, float(freedom)
    half = freedom / 2
    z = np.log(usable**2) - special.digamma(half) + np.log(half)
    excess = z.var(ddof=1) - float(special.polygamma(1, half))
    if excess <= 0:
        return np.maximum(error, np.exp(z.mean() / 2)), np.inf
    # Newton's method for trigamma(y) = excess, on 1 / trigamma, which is nearly linear.
    y = 0.5 + 1 / excess
    for _ in range(50):
        trigamma = float(special.polygamma(1, y))
        y += trigamma * (1 - trigamma / excess) / float(special.polygamma(2, y))
    prior = np.exp(z.mean() + special.digamma(y) - np.log(y))
    variance = (2 * y * prior + freedom * error**2) / (2 * y + freedom)
    return np.maximum(error, np.sqrt(variance)), 2 * y + freedom


def _wilcoxon(difference: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test (1945), zeros dropped; NaN for under two values.

    Exact also with ties, over the 2^n signs that n values could have had; normal with
    the tie-aware variance from n = 50 on.
    """
    from scipy import special

    x = _round(difference[np.isfinite(difference)])
    if len(x) < 2:
        return np.nan
    x = x[x != 0]
    n = len(x)
    if n < 2:
        return 1.0
    rank = _ranks(np.abs(x)[None])[0]
    larger = max(rank[x > 0].sum(), rank[x < 0].sum())
    if n >= 50:
        z = (larger - rank.sum() / 2) / np.sqrt((rank**2).sum() / 4)
        return float(min(1, 2 * special.ndtr(-z)))
    twice = np.rint(2 * rank).astype(int)  # whole numbers, also where ties halve a rank
    ways = np.zeros(twice.sum() + 1)
    ways[0] = 1
    for r in twice:
        ways[r:] = (ways[r:] + ways[: len(ways) - r]) / 2
        ways[:r] /= 2
    return float(min(1, 2 * ways[int(np.rint(2 * larger)) :].sum()))


def _cliffs_delta(pairs: pd.DataFrame) -> float:
    """Cliff (1993), over pairs of models of one stratum; positive where the first is better."""
    sign = 1 if pairs["direction"].iloc[0] == "higher" else -1
    wins = n = 0.0
    for _, stratum in pairs.groupby(list(STRATUM), dropna=False):
        a, b = stratum["first"].to_numpy(), stratum["second"].to_numpy()
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        wins += float(np.sign(_round(np.subtract.outer(a, b))).sum())
        n += len(a) * len(b)
    return sign * wins / n if n else np.nan


# ---------------------------------------------------------------- agreement


@dataclass(frozen=True)
class Friedman:
    """Friedman's test with Iman and Davenport's correction (Commun. Stat. A 9:571, 1980).

    `methods` were compared over `n_clusters` models; `left_out` are those that not all have.
    """

    chi2: float
    f: float
    df: tuple[int, int]
    p: float
    n_clusters: int
    methods: tuple[str, ...]
    left_out: tuple[str, ...]


def friedman(rows: pd.DataFrame, score: str, *, controls: bool = False) -> Friedman:
    """Do the methods differ at all on a score? Blocks are trained models.

    Controls would make the answer trivially yes, so they stay out unless asked for. The test
    needs complete blocks: methods that do not apply to every model are left out, and named.
    Raises ValueError if fewer than three methods or two models are left.
    """
    from scipy import special

    rows = headline(rows)
    rows = _named(rows, SCORE, score)
    if not controls:
        rows = rows[~rows["control"].astype(bool)]
    if rows.empty:
        raise ValueError(f"only controls have {score!r}; pass controls=True to compare them")
    ranking = _Ranking.of(rows)
    x = ranking.observed[0]
    label = method_labels(ranking.methods).to_numpy()
    complete = np.isfinite(x).all(0)
    x = x[:, complete]
    N, k = x.shape
    if k < 3 or N < 2:
        raise ValueError(
            f"Friedman's test on {score!r} needs 3 methods and 2 models that have all of them,"
            f" not {k} and {N}"
        )
    # Rank again among those that stay.
    r = _ranks(ranking.sign[0] * ranking.grid.value[:, complete])
    spread = (r**2).sum() - N * k * (k + 1) ** 2 / 4
    chi2 = (k - 1) * ((r.sum(0) - N * (k + 1) / 2) ** 2).sum() / spread if spread > 0 else 0.0
    rest = N * (k - 1) - chi2
    f = (N - 1) * chi2 / rest if rest > 1e-9 * N else np.inf
    df = (k - 1, (k - 1) * (N - 1))
    p = float(special.fdtrc(*df, f)) if np.isfinite(f) else 0.0
    return Friedman(
        float(chi2), float(f), df, p, N, tuple(label[complete]), tuple(label[~complete])
    )


@dataclass(frozen=True)
class Agreement:
    """Kendall's coefficient of concordance of the scores: 1 all rank alike, 0 no agreement.

    Computed in each model, corrected for ties, and averaged over models, with interval.
    """

    w: float
    low: float
    high: float
    n_clusters: int
    n_scores: int


def kendall_w(
    rows: pd.DataFrame,
    *,
    controls: bool = False,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Do the scores agree on which methods are good? (Kendall & Babington Smith 1939)

    In each model, over the methods that all its scores define. Models are resampled. Raises
    ValueError if no model has two scores with three methods in common.
    """
    bootstrap.check_draws(level, draws)
    rows = headline(rows)
    if not controls:
        rows = rows[~rows["control"].astype(bool)]
    ranking = _Ranking.of(rows) if not rows.empty else None
    found = np.full(0 if ranking is None else ranking.grid.shape[0], np.nan)
    for k in range(len(found)):
        assert ranking is not None
        x = ranking.observed[:, k]
        x = x[np.isfinite(x).any(1)]
        x = x[:, np.isfinite(x).all(0)]
        m, n = x.shape
        if m < 2 or n < 3:
            continue
        r = _ranks(x)
        ties = sum((c**3 - c).sum() for c in (np.unique(row, return_counts=True)[1] for row in r))
        spread = m**2 * (n**3 - n) - m * ties
        if spread > 0:
            found[k] = 12 * ((r.sum(0) - m * (n + 1) / 2) ** 2).sum() / spread
    present = np.isfinite(found)
    if ranking is None or not present.any():
        raise ValueError("agreement needs a model that has two scores of the same three methods")
    weights = ranking.grid.weights(present, draws, seed)[present]
    drawn = bootstrap.reduce(found[present, None], weights, "mean")
    dof = ranking.grid.freedom(present)
    low, high = bootstrap.limits(drawn, level, dof) if dof else (np.nan, np.nan)
    return Agreement(
        float(found[present].mean()),
        float(low),
        float(high),
        int(present.sum()),
        len(ranking.scores),
    )


def rank_agreement(rows: pd.DataFrame, *, controls: bool = False) -> pd.DataFrame:
    """Kendall's tau-b between every two scores, of the methods' mean ranks over models.

    [S, S] by labels; 1 the same order of methods, 0 none in common, -1 the reverse; directions
    are respected. NaN where a score ranks fewer than two methods, or all alike.
    """
    rows = headline(rows)
    if not controls:
        rows = rows[~rows["control"].astype(bool)]
    if rows.empty:
        raise ValueError("only controls here; pass controls=True to compare how they are ranked")
    matrix = rank_matrix(rows)
    x = np.round(matrix.to_numpy(), 9).T  # [S, M]
    order = np.sign(x[:, :, None] - x[:, None, :]).reshape(len(x), -1)
    known = np.isfinite(order)
    order = np.where(known, order, 0)
    shared = (order**2) @ known.T  # pairs untied in the first, of those both know
    scale = np.sqrt(shared * shared.T)
    tau = np.divide(order @ order.T, scale, out=np.full(scale.shape, np.nan), where=scale > 0)
    return pd.DataFrame(tau, index=matrix.columns, columns=matrix.columns)
