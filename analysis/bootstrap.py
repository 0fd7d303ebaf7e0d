"""The two-level cluster bootstrap that all statistics are built on, and the table it reads.

**The unit is the trained model.** Test samples of one model are not independent replicates of a
method: a seed that trained oddly moves all of them together. So everything here resamples, ranks
and tests *clusters*, one cluster being one trained model (study, dataset, model, model
parameters, seed), within *strata* (study, dataset), which are what was chosen and not drawn.

**The interval** is a two-level cluster bootstrap:

1. *Models.* In each stratum of k > 1 models, k - 1 are drawn with replacement and weighted by
   k / (k - 1). Drawing k would make the variance (k - 1) / k times too small, which is a third
   with three seeds (McCarthy & Snowden 1985; Rao & Wu 1988, JASA 83:231). The one model of a
   stratum with k = 1 always stays; its stratum then only tells about its test samples.
2. *Test samples.* They are drawn with replacement as well. Models that were tested on the same
   data (equal `data_key`) get the same draw, because a sample that is hard is hard for all of
   them: models and samples are crossed, and this is the bootstrap for crossed effects (Owen
   2007, Ann. Appl. Stat. 1:386). It errs on the wide side where samples are few and models
   hardly differ: the noise of single samples then counts up to three times in the variance.

The limits are percentiles of the draws, taken further out than the nominal level as Student's t
is from the normal law, with (models - strata) degrees of freedom: the *expanded percentile
interval* (Hesterberg 2015, Am. Stat. 69:371). Simulated, 95 % intervals from three seeds cover
98 % with it and 90 % without. Being percentiles, the limits respect the range of a score.

Where a row has no `samples` (or the table lacks the column), the second level is a moment
approximation of the resampled mean: binomial(n, value) / n where value and sd are those of a
share, else normal(value, sd² / n); a row without sd, or with n < 2, has no second level. More
than 512 samples are first averaged in 512 random groups, which changes the variance by 1 part in
512 and bounds the cost.

Undefined values (NaN, and infinities) are left out and counted, never in silence. All results
are reproducible: a draw depends on `seed` and on names, not on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Literal

import numpy as np
import pandas as pd

from analysis import text

CLUSTER = ("study", "dataset", "model", "model_params", "seed", "fold")
STRATUM = ("study", "dataset")
METHOD = ("method", "method_params")
SCORE = ("score", "score_params")
FACETS = ("class", "bucket", "threshold", "percent")

Statistic = Literal["mean", "iqm", "median"]
# The part of the ordered models that a statistic averages.
BANDS = {"mean": (0.0, 1.0), "iqm": (0.25, 0.75), "median": (0.5 - 1e-9, 0.5 + 1e-9)}
_BLOCKS = 512
CHUNK_BYTES = 2**28


# ---------------------------------------------------------------- the table


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per model, method and score: the headline rows, checked.

    Parameters that are missing become `{}`. Rows that repeat a (model, method, score) are
    averaged, sample by sample where they were tested on equally many.

    Raises ValueError if a column is missing, no row is left, a score has two directions, or a
    direction is neither "higher" nor "lower".
    """
    rows = checked(rows)
    rows = rows[rows["headline"].astype(bool)]
    if rows.empty:
        raise ValueError("no headline rows: mark one row per score with headline=True")
    return _averaged(rows, [*CLUSTER, *METHOD, *SCORE])


def method_labels(rows: pd.DataFrame) -> pd.Series:
    """The display name of each row's method, with parameters only where they tell apart."""
    return labels_of(rows, METHOD)


def score_labels(rows: pd.DataFrame) -> pd.Series:
    """The display name of each row's score, with parameters only where they tell apart."""
    return labels_of(rows, SCORE)


def labels_of(rows: pd.DataFrame, key: tuple[str, str]) -> pd.Series:
    pairs = list(zip(rows[key[0]], rows[key[1]], strict=True))
    names = text.labels(pairs)
    return pd.Series([names[pair] for pair in pairs], index=rows.index, dtype=object)


def checked(rows: pd.DataFrame) -> pd.DataFrame:
    if "fold" not in rows.columns:  # tables from before there were folds
        rows = rows.assign(fold=0)
    needed = [*CLUSTER, *METHOD, *SCORE, "library", "family", "control", "direction", "headline"]
    needed += [*FACETS, "value", "n", "sd"]
    missing = [column for column in needed if column not in rows.columns]
    if missing:
        raise ValueError(
            f"the table lacks the column{'s' if missing[1:] else ''} {', '.join(missing)}:"
            " pass what analysis.frames.scores() returns"
        )
    if rows.empty:
        raise ValueError("no rows: the filter matches no finished experiment")
    rows = rows.reset_index(drop=True)
    for column in {"samples", "data_key"} - set(rows.columns):
        rows[column] = None
    for column in ("model_params", "method_params", "score_params"):
        rows[column] = rows[column].astype(object).where(rows[column].notna(), "{}")
    wrong = set(rows["direction"].dropna().unique()) - {"higher", "lower"}
    if wrong or rows["direction"].isna().any():
        raise ValueError(f'direction must be "higher" or "lower", not {sorted(wrong) or "missing"}')
    pairs = rows.drop_duplicates([*SCORE, "direction"])
    torn = pairs.loc[pairs.duplicated(list(SCORE)), "score"]
    if not torn.empty:
        raise ValueError(f"score {torn.iloc[0]!r} has rows of both directions")
    return rows


def _averaged(rows: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Rows with equal key become one."""
    twice = rows.duplicated(key, keep=False)
    if not twice.any():
        return rows.reset_index(drop=True)
    merged = []
    for _, same in rows[twice].groupby(key, dropna=False, sort=True):
        row = same.iloc[0].copy()
        row["value"], row["n"], row["sd"] = same["value"].mean(), same["n"].sum(), np.nan
        samples = [samples_of(s) for s in same["samples"]]
        if all(s is not None for s in samples) and len({len(s) for s in samples}) == 1:  # type: ignore[arg-type]
            stack = np.array(samples, dtype=np.float64)
            row["samples"] = nanmean(np.where(np.isfinite(stack), stack, np.nan))
            row["n"] = int(np.isfinite(row["samples"]).sum())
        else:
            row["samples"] = None
        merged.append(row)
    once = rows[~twice]
    return pd.concat([once, pd.DataFrame(merged)], ignore_index=True)[list(rows.columns)]


def samples_of(value: object) -> np.ndarray | None:
    """The samples of one row, or None where it has none."""
    if value is None or value is pd.NA or isinstance(value, float):
        return None
    return np.asarray(value, dtype=np.float32)


def nanmean(x: np.ndarray, axis: int = 0) -> np.ndarray:
    """np.nanmean without its warning: NaN where nothing is defined."""
    defined = np.isfinite(x)
    number = defined.sum(axis)
    total = np.where(defined, x, 0).sum(axis)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


# ---------------------------------------------------------------- resampling


def _generator(seed: int, *parts: object) -> np.random.Generator:
    digest = blake2b(repr((seed, *parts)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def check_draws(level: float, draws: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level!r}; 95 % is 0.95")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws!r}")


@dataclass(frozen=True)
class Grid:
    """Rows arranged as models × groups.

    rows      the rows, with `_k` (model), `_g` (group), `_size` (samples), `_source` (test data)
    groups    DataFrame [G], the keys of the groups
    clusters  DataFrame [K], the keys of the models
    strata    int [K]
    """

    rows: pd.DataFrame
    groups: pd.DataFrame
    clusters: pd.DataFrame
    strata: np.ndarray

    @classmethod
    def of(cls, rows: pd.DataFrame, by: Sequence[str]) -> Grid:
        rows = rows.copy()
        rows["_k"], clusters = codes(rows, CLUSTER)
        rows["_g"], groups = codes(rows, by)
        strata, _ = codes(clusters, STRATUM)
        rows = rows.sort_values(["_k", "_g"], kind="stable").reset_index(drop=True)
        samples = [samples_of(value) for value in rows["samples"]]
        rows["samples"] = pd.Series(samples, dtype=object)
        rows["_size"] = [0 if s is None else len(s) for s in samples]
        good = np.array([0 if s is None else int(np.isfinite(s).sum()) for s in samples])
        value = rows["value"].to_numpy(float, na_value=np.nan).copy()
        for i in np.flatnonzero(~np.isfinite(value)):
            s = samples[i]
            value[i] = np.nan if s is None else nanmean(s.astype(float)[:, None])[0]
        n = rows["n"].fillna(0).to_numpy(int)
        size = rows["_size"].to_numpy()
        rows["value"] = value
        # A row without samples is one number: all of it is defined or nothing is.
        alone = np.maximum(n, 1)
        rows["_defined"] = np.where(size > 0, good, np.where(np.isfinite(value), alone, 0))
        rows["_undefined"] = np.where(size > 0, size - good, np.where(np.isfinite(value), 0, alone))
        # A missing data_key says nothing about which samples are shared: then none are.
        key = rows["data_key"]
        rows["_source"] = [
            f"data {k}" if isinstance(k, str) and k else f"model {c}"
            for k, c in zip(key, rows["_k"], strict=True)
        ]
        sd = rows["sd"].to_numpy(float, na_value=np.nan)
        rows["_informative"] = np.where(size > 0, good > 1, (alone > 1) & np.isfinite(sd))
        return cls(rows, groups, clusters, strata)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.clusters), len(self.groups)

    @cached_property
    def value(self) -> np.ndarray:
        """[K, G] mean of the rows of a cell; NaN where there is none."""
        usable = self.rows[np.isfinite(self.rows["value"])]
        total, number = np.zeros(self.shape), np.zeros(self.shape)
        np.add.at(total, (usable["_k"], usable["_g"]), usable["value"])
        np.add.at(number, (usable["_k"], usable["_g"]), 1)
        return np.divide(total, number, out=np.full(self.shape, np.nan), where=number > 0)

    def count(self, column: str) -> np.ndarray:
        """[G] sum of a column of `rows`."""
        return np.bincount(self.rows["_g"], self.rows[column], len(self.groups)).astype(int)

    def informative(self) -> np.ndarray:
        """[G] whether any row of the group tells how much it would vary over test samples."""
        return self.count("_informative") > 0

    def pool(self, clusters: np.ndarray, groups: np.ndarray, draws: int, seed: int) -> np.ndarray:
        """[len(clusters), len(groups), draws] cell values with their test samples resampled."""
        k_at, g_at = np.full(self.shape[0], -1), np.full(self.shape[1], -1)
        k_at[clusters], g_at[groups] = np.arange(len(clusters)), np.arange(len(groups))
        at = k_at[self.rows["_k"]], g_at[self.rows["_g"]]
        keep = (at[0] >= 0) & (at[1] >= 0) & np.isfinite(self.rows["value"].to_numpy())
        rows = self.rows[keep]
        cells = (at[0] * len(groups) + at[1])[keep]
        number = np.bincount(cells, minlength=len(clusters) * len(groups))
        out = np.zeros((len(number), draws))
        position = pd.Series(np.arange(len(rows)))
        for key, where in position.groupby([rows["_source"].to_numpy(), rows["_size"].to_numpy()]):
            source, size = str(key[0]), int(key[1])  # type: ignore[index, call-overload]
            rng = _generator(seed, "samples", source, size)
            for part, means in _resampled(rows, where.to_numpy(), size, draws, rng):
                if number[cells[part]].max(initial=0) == 1:
                    out[cells[part]] = means
                else:
                    np.add.at(out, cells[part], means / number[cells[part], None])
        out[number == 0] = np.nan
        return out.reshape(len(clusters), len(groups), draws)

    def weights(self, present: np.ndarray, draws: int, seed: int) -> np.ndarray:
        """[K, draws] weights of the models in each draw; those not `present` weigh 0."""
        out = np.zeros((self.shape[0], draws))
        for stratum in np.unique(self.strata[present]):
            members = np.flatnonzero(present & (self.strata == stratum))
            k = len(members)
            if k == 1:
                out[members] = 1
                continue
            rng = _generator(seed, "models", *self.clusters.loc[members[0], list(STRATUM)], k)
            picks = rng.integers(k, size=(draws, k - 1)) + k * np.arange(draws)[:, None]
            counts = np.bincount(picks.ravel(), minlength=k * draws).reshape(draws, k)
            out[members] = counts.T * (k / (k - 1))
        return out

    def freedom(self, present: np.ndarray) -> int:
        """Models less strata: the degrees of freedom of the variance between models."""
        return int(present.sum() - len(np.unique(self.strata[present])))


def codes(rows: pd.DataFrame, by: Sequence[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """Sorted group numbers [len(rows)], and the key of each group."""
    keys = list(by)
    grouped = rows.groupby(keys, sort=True, dropna=False)
    codes = grouped.ngroup().to_numpy()
    first = pd.Series(np.arange(len(rows))).groupby(codes).first()
    return codes, rows.iloc[first.to_numpy()][keys].reset_index(drop=True)


def _resampled(
    rows: pd.DataFrame, where: np.ndarray, size: int, draws: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(positions, [len(positions), draws] resampled values) of rows with equally many samples."""
    value = rows["value"].to_numpy()
    if size == 0:
        yield where, _by_moments(value[where], rows.iloc[where], draws, rng)
        return
    blocks = min(size, _BLOCKS)
    order = rng.permutation(size) if size > _BLOCKS else np.arange(size)
    starts = np.arange(blocks) * size // blocks
    picks = rng.integers(blocks, size=(draws, blocks)) + blocks * np.arange(draws)[:, None]
    times = np.bincount(picks.ravel(), minlength=blocks * draws).reshape(draws, blocks)
    times = np.ascontiguousarray(times.T, dtype=np.float64)
    samples = rows["samples"].to_numpy()
    step = max(1, CHUNK_BYTES // (16 * max(size, draws)))
    for part in np.split(where, range(step, len(where), step)):
        x = np.stack(samples[part]).astype(np.float64)[:, order]
        defined = np.isfinite(x)
        complete = defined.all()
        sums = np.add.reduceat(np.where(defined, x, 0), starts, axis=1)
        counts = np.add.reduceat(defined, starts, axis=1, dtype=np.float64)
        if complete and size == blocks:
            means = (sums @ times) / size
        else:
            drawn = counts @ times
            means = np.divide(
                sums @ times, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0
            )
            # A draw may hold undefined samples only: condition on holding a defined one.
            for i in np.flatnonzero(~np.isfinite(means).all(axis=1)):
                some = means[i][np.isfinite(means[i])]
                hole = ~np.isfinite(means[i])
                centre = sums[i].sum() / max(counts[i].sum(), 1)
                means[i, hole] = rng.choice(some, hole.sum()) if len(some) else centre
        # `value` is the estimate, also where it is not the mean of the samples.
        mean = sums.sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
        offset = value[part] - mean
        offset[np.abs(offset) <= 1e-6 * np.maximum(np.abs(mean), 1e-12)] = 0
        yield part, means + offset[:, None]


def _by_moments(
    value: np.ndarray, rows: pd.DataFrame, draws: int, rng: np.random.Generator
) -> np.ndarray:
    n = rows["n"].fillna(0).to_numpy(int)
    sd = rows["sd"].to_numpy(float, na_value=np.nan)
    known = (n > 1) & np.isfinite(sd)
    n, sd = np.where(known, n, 1), np.where(known, np.nan_to_num(sd), 0)
    out = value[:, None] + (sd / np.sqrt(n))[:, None] * rng.standard_normal((len(value), draws))
    spread = value * (1 - value)
    share = (value >= 0) & (value <= 1) & known
    share &= np.abs(sd**2 - spread * n / np.maximum(n - 1, 1)) <= 1.5 * spread / n + 1e-9
    for i in np.flatnonzero(share):
        out[i] = rng.binomial(n[i], value[i], draws) / n[i]
    return out


def reduce(values: np.ndarray, weights: np.ndarray, statistic: Statistic) -> np.ndarray:
    """Weighted statistic over axis 0 of values [K, ..., B] with weights [K, B] → [..., B]."""
    middle = (slice(None), *([None] * (values.ndim - weights.ndim)))
    weights = weights[middle]
    if statistic == "mean":
        return (values * weights).sum(0) / weights.sum(0)
    low, high = BANDS[statistic]
    order = np.argsort(values, axis=0)
    share = np.take_along_axis(np.broadcast_to(weights, values.shape), order, 0)
    upper = np.cumsum(share, axis=0) / share.sum(0)
    lower = upper - share / share.sum(0)
    inside = np.clip(np.minimum(upper, high) - np.maximum(lower, low), 0, None)
    return (np.take_along_axis(values, order, 0) * inside).sum(0) / inside.sum(0)


def limits(draws: np.ndarray, level: float, freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Expanded percentile limits over the last axis."""
    from scipy import special

    tail = (1 - level) / 2
    if freedom > 0:
        tail = float(special.ndtr(special.stdtrit(freedom, tail)))
    low, high = np.quantile(draws, [tail, 1 - tail], axis=-1)
    return low, high


def masks(present: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(models present [K], groups that have just these): groups that resample alike."""
    patterns, which = np.unique(present.T, axis=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        if pattern.any():
            yield pattern, np.flatnonzero(which.ravel() == i)
