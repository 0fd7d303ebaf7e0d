from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import statistics
from analysis.statistics import (
    compare_to_control,
    friedman,
    holm,
    intervals,
    kendall_w,
    paired,
    positions,
    rank_agreement,
    rank_matrix,
    ranks,
)

pytestmark = pytest.mark.filterwarnings("error")
Sweep = Callable[..., pd.DataFrame]


def simple(values: dict[str, np.ndarray], **columns: object) -> pd.DataFrame:
    """Rows of {method: [strata, models, samples]} on one score."""
    rows = []
    for method, x in values.items():
        for s, stratum in enumerate(x):
            for k, samples in enumerate(stratum):
                row = {
                    "study": "test", "dataset": f"d{s}", "model": "m", "model_params": "{}",
                    "seed": k, "method": method, "method_params": "{}", "library": "captum",
                    "family": "gradient", "control": method in ("random", "oracle"),
                    "score": "score", "score_params": "{}", "direction": "higher",
                    "headline": True, "class": None, "bucket": None, "threshold": None,
                    "percent": np.nan, "value": float(np.mean(samples)), "n": len(samples),
                    "sd": float(np.std(samples, ddof=1)) if len(samples) > 1 else np.nan,
                    "samples": np.asarray(samples, np.float32), "data_key": f"data {s}",
                }  # fmt: skip
                rows.append(row | columns)
    return pd.DataFrame(rows)


def hierarchical(
    replicates: int, strata: int, models: int, n: int, between: float, shared: float, noise: float
) -> pd.DataFrame:
    """Many independent experiments of mean 0.5, one as each method."""
    rng = np.random.default_rng(1)
    shape = (strata, models, n)
    return simple(
        {
            f"m{i}": 0.5
            + rng.normal(0, between, (strata, models, 1))
            + rng.normal(0, shared, (strata, 1, n))
            + rng.normal(0, noise, shape)
            for i in range(replicates)
        }
    )


def covered(table: pd.DataFrame) -> float:
    return float(((table["low"] <= 0.5) & (table["high"] >= 0.5)).mean())


# ---------------------------------------------------------------- intervals


def test_intervals_count_and_average_over_models(rows: pd.DataFrame) -> None:
    table = intervals(rows).set_index(["method", "score"])
    assert len(table) == 15 * 8
    assert (table["low"] <= table["estimate"]).all()
    assert (table["estimate"] <= table["high"]).all()
    one = rows[(rows["method"] == "saliency") & (rows["score"] == "rank_gap")]
    found = table.loc[("saliency", "rank_gap")]
    assert found["estimate"] == pytest.approx(one["value"].mean())
    assert (found["n_clusters"], found["n_samples"], found["n_undefined"]) == (24, 24 * 256, 0)
    assert table.loc[("deconvolution", "rank_gap"), "n_clusters"] == 12


def test_undefined_samples_are_left_out_and_counted(rows: pd.DataFrame) -> None:
    part = rows[(rows["method"] == "constant") & (rows["score"] == "relevance_mass")]
    missing = sum(int(np.isnan(s).sum()) for s in part["samples"])
    found = intervals(part).iloc[0]
    assert missing > 0
    assert found["n_undefined"] == missing
    assert found["n_samples"] + missing == 24 * 256
    assert found["estimate"] == pytest.approx(np.mean([np.nanmean(s) for s in part["samples"]]))


def test_infinite_and_absent_values_count_as_undefined() -> None:
    rows = simple({"a": np.ones((1, 3, 4)), "b": np.ones((1, 3, 4))})
    rows.at[0, "value"] = np.inf
    rows.at[0, "samples"] = np.array([1, np.inf, np.nan, 3], np.float32)
    rows.at[1, "value"], rows.at[1, "samples"] = np.nan, None
    found = intervals(rows).set_index("method")
    assert found.loc["a", "estimate"] == pytest.approx((2 + 1) / 2)
    assert found.loc["a", ["n_clusters", "n_samples", "n_undefined"]].tolist() == [2, 6, 6]
    assert found.loc["b", "n_undefined"] == 0


@pytest.mark.parametrize(
    ("strata", "models", "between", "shared", "noise"),
    [
        (2, 4, 0.1, 0.1, 0.3),  # models and samples both matter
        (1, 3, 0.1, 0.05, 0.2),  # three seeds
        (2, 2, 0.1, 0.1, 0.3),
        (2, 6, 0.02, 0.4, 0.1),  # samples that are hard for every model
        (1, 1, 0.0, 0.1, 0.3),  # one model: test samples only
    ],
)
def test_interval_covers_the_truth(
    strata: int, models: int, between: float, shared: float, noise: float
) -> None:
    rows = hierarchical(300, strata, models, 48, between, shared, noise)
    for statistic in ("mean", "iqm", "median"):
        assert 0.91 <= covered(intervals(rows, draws=600, statistic=statistic)) <= 1  # type: ignore[arg-type]


def test_interval_is_not_needlessly_wide() -> None:
    """Where models differ, the width is that of Student's t on the models."""
    K = 12
    rows = hierarchical(200, 1, K, 48, between=0.2, shared=0.0, noise=0.1)
    table = intervals(rows, draws=1000)
    x = rows.groupby("method")["value"]
    expected = 2 * stats.t.ppf(0.975, K - 1) * x.std() / np.sqrt(K)
    width = (table.set_index("method")["high"] - table.set_index("method")["low"]) / expected
    assert 0.95 < width.mean() < 1.15
    assert 0.93 <= covered(table) <= 0.99


def test_pooling_the_samples_of_all_models_is_too_narrow() -> None:
    rows = hierarchical(300, 2, 4, 48, between=0.1, shared=0.1, noise=0.3)
    naive = []
    rng = np.random.default_rng(0)
    for _, group in rows.groupby("method"):
        x = np.concatenate(list(group["samples"]))
        means = x[rng.integers(len(x), size=(400, len(x)))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        naive.append(low <= 0.5 <= high)
    assert np.mean(naive) < 0.75
    assert covered(intervals(rows, draws=600)) > 0.93


def test_moments_stand_in_for_samples(sweep: Sweep) -> None:
    design = {"models": ("andor_cnn",), "seeds": (0,), "facets": False}
    exact = intervals(sweep(**design)).set_index(["method", "score"])
    approximate = intervals(sweep(**design, samples=False)).set_index(["method", "score"])
    wide = exact["high"] - exact["low"] > 0.005
    ratio = (approximate["high"] - approximate["low"])[wide] / (exact["high"] - exact["low"])[wide]
    assert 0.93 < ratio.mean() < 1.07
    share = approximate.xs("pointing_game", level="score")
    assert share["high"].max() <= 1
    bare = sweep(**design).drop(columns=["samples", "data_key"])
    assert (intervals(bare)["high"] > intervals(bare)["low"]).mean() > 0.9


def test_many_samples_are_averaged_in_blocks() -> None:
    x = np.random.default_rng(0).normal(0, 1, (1, 1, 20_000))
    found = intervals(simple({"a": x})).iloc[0]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 / np.sqrt(20_000), rel=0.1)


def test_an_aggregate_keeps_its_value() -> None:
    rows = simple({"a": np.random.default_rng(0).random((1, 4, 30))})
    rows["value"] = [0.9, 0.92, 0.94, 0.96]
    found = intervals(rows).iloc[0]
    assert found["estimate"] == pytest.approx(0.93)
    assert found["low"] < 0.93 < found["high"]


def test_statistics_over_models() -> None:
    x = np.array([[[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [70.0]]])
    rows = simple({"a": x})
    for name, expected in [("mean", x.mean()), ("iqm", 3.5), ("median", 3.5)]:
        assert intervals(rows, statistic=name)["estimate"][0] == pytest.approx(expected)  # type: ignore[arg-type]
    assert intervals(rows, statistic="iqm")["high"][0] < intervals(rows)["high"][0]


def test_reproducible_whatever_the_order_and_the_company(rows: pd.DataFrame) -> None:
    part = rows[rows["score"].isin(["rank_gap", "pointing_game"])]
    table = intervals(part, draws=200)
    pd.testing.assert_frame_equal(table, intervals(part.sample(frac=1, random_state=0), draws=200))
    fewer = part[part["method"].isin(["saliency", "random"])]
    mine = table[table["method"].isin(["saliency", "random"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, intervals(fewer, draws=200))
    other = intervals(part, draws=200, seed=1)
    assert (table["low"] != other["low"]).any()
    assert (table["estimate"] == other["estimate"]).all()


def test_single_model_with_single_numbers_has_no_interval() -> None:
    rows = simple({"a": np.ones((1, 1, 1)), "b": np.zeros((1, 1, 1))})
    rows["samples"] = None
    found = intervals(rows)
    assert found["low"].isna().all()
    assert found["estimate"].tolist() == [1, 0]
    ranking = ranks(rows)
    assert ranking["low"].isna().all()
    assert ranking["label"].tolist() == ["a", "b"]


def test_repeated_rows_are_averaged_not_counted_as_models(small: pd.DataFrame) -> None:
    again = pd.concat([small, small.assign(experiment=99)])
    pd.testing.assert_frame_equal(
        ranks(small, draws=50), ranks(again, draws=50), check_exact=False, atol=1e-6
    )


def test_facets_are_asked_for(rows: pd.DataFrame) -> None:
    table = intervals(rows, by=["method", "score", "class"], draws=50)
    assert set(table["class"]) == {"0", "1"}
    assert set(table["score"]) == {"needed_information_below_baseline"}
    assert (table["n_samples"] % 128 == 0).all()


def test_as_fast_as_promised() -> None:
    rng = np.random.default_rng(0)
    base = simple({f"m{m}": rng.random((2, 12, 256)) for m in range(12)})
    rows = pd.concat([base.assign(score=f"s{i}") for i in range(12)], ignore_index=True)
    start = time.process_time()
    intervals(rows)
    assert time.process_time() - start < 3 * 2  # twice the promise: shared machines


# ---------------------------------------------------------------- ranks


def test_planted_order_is_recovered(rows: pd.DataFrame, quality: dict[str, float]) -> None:
    table = ranks(rows).set_index("label")
    methods = table[~table["control"]]
    assert list(methods.index[:2]) == ["integrated_gradients", "deep_lift"]
    assert methods.index[-1] == "guided_backprop"
    planted = [-quality[name] for name in methods.index]
    assert stats.kendalltau(methods["rank"], planted).statistic > 0.9
    assert table["rank"].idxmin() == "oracle"
    assert set(table.index[table["control"]]) == {"oracle", "input_only", "random", "constant"}
    assert (table["low"] <= table["rank"]).all()
    assert (table["rank"] <= table["high"]).all()
    assert table["rank"].between(0, 1).all()
    assert methods["p_best"].sum() == pytest.approx(1)
    assert table.loc["oracle", "p_best"] is None or np.isnan(table.loc["oracle", "p_best"])
    assert table.loc["deconvolution", "n_clusters"] == 12
    assert (table["n_scores"] == 8).all()


def test_rank_interval_covers() -> None:
    """The mean rank over infinitely many models, of methods of equal and unequal quality."""
    rng = np.random.default_rng(0)

    def draw(models: int) -> dict[str, np.ndarray]:
        return {
            f"m{i}": q + rng.normal(0, 0.3, (1, models, 1)) + rng.normal(0, 0.5, (1, models, 16))
            for i, q in enumerate([0, 0, 0.2, 0.5])
        }

    truth = ranks(simple(draw(2000)), draws=2).set_index("label")["rank"].sort_index()
    hits = []
    for _ in range(60):
        table = ranks(simple(draw(8)), draws=300).set_index("label").sort_index()
        hits.append((table["low"] <= truth) & (truth <= table["high"]))
    assert np.mean(hits) > 0.9


def test_ties_share_their_rank_and_the_first_place() -> None:
    x = np.random.default_rng(0).random((1, 4, 10))
    table = ranks(simple({"a": x, "b": x, "c": x - 1})).set_index("label")
    assert table["rank"].to_dict() == {"a": 0.25, "b": 0.25, "c": 1.0}
    assert table.loc["a", "p_best"] == table.loc["b", "p_best"] == 0.5
    assert table.loc["a", "low"] == table.loc["a", "high"] == 0.25


def test_direction_and_scale_do_not_matter(small: pd.DataFrame) -> None:
    flipped = small.copy()
    flipped["value"] = -3 * flipped["value"]
    flipped["samples"] = [-3 * s for s in flipped["samples"]]
    flipped["direction"] = flipped["direction"].map({"higher": "lower", "lower": "higher"})
    pd.testing.assert_frame_equal(ranks(small, draws=100), ranks(flipped, draws=100))


def test_a_method_that_few_models_have_is_not_favoured() -> None:
    x = np.zeros((1, 4, 3))
    values = {name: x - i for i, name in enumerate("abcde")}
    rows = simple(values)
    gone = (rows["method"].isin(["b", "c"])) & (rows["seed"] > 1)
    table = ranks(rows[~gone], draws=50).set_index("label")
    assert table.loc["a", "rank"] == 0
    assert table.loc["e", "rank"] == 1
    assert table.loc["b", "rank"] == 0.25


def test_one_model_gets_intervals_from_its_samples(single: pd.DataFrame) -> None:
    table = ranks(single)
    assert (table["n_clusters"] == 1).all()
    assert (table["high"] > table["low"]).sum() > 8


def test_variants_of_one_method_are_told_apart(small: pd.DataFrame) -> None:
    more = small[small["method"] == "integrated_gradients"].assign(method_params='{"n_steps": 5}')
    labels = set(ranks(pd.concat([small, more]), draws=20)["label"])
    assert {"integrated_gradients(n_steps=50)", "integrated_gradients(n_steps=5)"} <= labels
    assert "saliency" in labels


def test_positions_lie_between_random_and_oracle(rows: pd.DataFrame) -> None:
    table = positions(rows)
    assert table is not None
    assert table.loc["random"].abs().max() < 1e-9
    assert table.loc["oracle"].to_numpy() == pytest.approx(1)
    assert table.loc["integrated_gradients"].between(0.6, 1).all()
    assert table.loc["guided_backprop"].abs().max() < 0.25
    assert positions(rows[rows["method"] != "oracle"]) is None


def test_a_score_that_is_blind_to_the_oracle_has_no_position() -> None:
    rng = np.random.default_rng(0)
    rows = simple({n: rng.random((1, 8, 50)) for n in ("random", "saliency")})
    rows = pd.concat([rows, rows[rows["method"] == "random"].assign(method="oracle")])
    table = positions(rows)
    assert table is not None
    assert table["score"].isna().all()


# ---------------------------------------------------------------- comparisons


def test_paired_is_antisymmetric_and_finds_the_better(rows: pd.DataFrame) -> None:
    there = paired(rows, "integrated_gradients", "saliency", "needed_information_below_baseline")
    back = paired(rows, "saliency", "integrated_gradients", "needed_information_below_baseline")
    assert there.difference == pytest.approx(-back.difference)
    assert there.p == pytest.approx(back.p)
    assert there.p_better == pytest.approx(1 - back.p_better)
    assert there.cliffs_delta == pytest.approx(-back.cliffs_delta)
    assert there.better == back.better == "integrated_gradients"
    assert there.high < 0  # lower is better
    assert there.cliffs_delta > 0.5
    assert there.p_wilcoxon < 1e-4
    same = paired(rows, "random", "guided_backprop", "relevance_mass")
    assert same.low < same.difference < same.high


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 1, (1, 8, 1)) + rng.normal(0, 1, (1, 1, 40))
    a = luck + rng.normal(0, 0.05, (1, 8, 40))
    b = luck + 0.05 + rng.normal(0, 0.05, (1, 8, 40))
    found = paired(simple({"a": a, "b": b}), "a", "b", "score")
    assert found.better == "b"
    assert found.high - found.low < 0.05
    assert found.n_samples == 320


def test_only_samples_that_both_define_are_compared() -> None:
    a, b = np.zeros((1, 3, 4)), np.ones((1, 3, 4))
    rows = simple({"a": a, "b": b})
    rows.at[0, "samples"] = np.array([0, np.nan, 0, 0], np.float32)
    found = paired(rows, "a", "b", "score")
    assert (found.n_samples, found.n_undefined) == (11, 1)
    assert found.difference == -1


def test_cliffs_delta_by_hand() -> None:
    a, b = np.array([[[1.0], [4.0], [6.0]]]), np.array([[[2.0], [3.0], [4.0]]])
    pairs = [np.sign(x - y) for x in a.ravel() for y in b.ravel()]
    assert paired(simple({"a": a, "b": b}), "a", "b", "score").cliffs_delta == np.mean(pairs)


@pytest.mark.parametrize("n", [2, 5, 12, 30, 80])
def test_wilcoxon_is_scipys(n: int) -> None:
    x = np.random.default_rng(n).normal(0.3, 1, n)
    method = "exact" if n < 50 else "asymptotic"
    assert statistics._wilcoxon(x) == pytest.approx(stats.wilcoxon(x, method=method).pvalue)


def test_wilcoxon_with_ties_is_exact() -> None:
    x = np.array([1.0, 1, 1, -1, 2, 2, 0, 3])  # zero is dropped
    signs = np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1).T
    values = x[x != 0]
    rank = stats.rankdata(np.abs(values))
    null = (signs * rank).sum(1)
    observed = (np.sign(values) * rank).sum()
    assert statistics._wilcoxon(x) == pytest.approx(np.mean(np.abs(null) >= abs(observed)))
    assert statistics._wilcoxon(np.zeros(5)) == 1
    assert np.isnan(statistics._wilcoxon(np.ones(1)))


def test_holm_by_hand() -> None:
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    assert holm(p) == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])


def test_good_methods_beat_random_and_bad_ones_do_not(
    rows: pd.DataFrame, quality: dict[str, float]
) -> None:
    table = compare_to_control(rows).set_index(["method", "score"])
    assert "random" not in table.index.get_level_values(0)
    for method, q in quality.items():
        verdict = table.loc[method, "verdict"]
        if q > 0.4:
            assert (verdict == "better").all(), method
    assert not (table.loc["guided_backprop", "verdict"] == "better").any()
    assert (table.loc["constant", "verdict"] != "better").all()
    assert table.loc["oracle", "control"].all()
    methods = table[~table["control"]]
    assert (methods["p_holm"] >= methods["p"]).all()
    gain = table["difference"] * table["direction"].map({"higher": 1, "lower": -1})
    assert (gain[table["verdict"] == "better"] > 0).all()


def test_methods_that_are_random_rarely_beat_random() -> None:
    rng = np.random.default_rng(3)
    for seeds, between in [(3, (0.1, 0.1)), (3, (0.1, 0.3)), (1, (0, 0))]:
        wrong = 0
        for _ in range(40):
            sd = np.linspace(*between, 7)
            x = {
                name: rng.normal(0, s, (2, seeds, 1)) + rng.normal(0, 0.3, (2, seeds, 20))
                for name, s in zip([*"abcdef", "random"], sd, strict=True)
            }
            wrong += bool((compare_to_control(simple(x), draws=200)["verdict"] != "same").any())
        assert wrong <= 6, (seeds, between)  # 5 % of the families, and room for chance


def test_three_seeds_are_enough_for_a_clear_difference(small: pd.DataFrame) -> None:
    table = compare_to_control(small).set_index(["method", "score"])
    best = table.loc["integrated_gradients", "verdict"]
    assert (best == "better").sum() >= 6
    assert (table.loc["guided_backprop", "verdict"] != "better").all()
    # Borrowing from other methods never makes an error smaller.
    error, freedom = statistics._moderated(np.array([0.01, 0.02, 0.05, 0.03, np.nan, 0.0]), 4)
    assert freedom > 4
    assert (error[:4] >= [0.01, 0.02, 0.05, 0.03]).all()
    assert error[5] > 0
    assert np.isnan(error[4])
    alone, own = statistics._moderated(np.array([0.1, 0.2]), 4)
    assert (alone.tolist(), own) == ([0.1, 0.2], 4)


def test_a_single_number_beats_nobody() -> None:
    rows = simple({"a": np.ones((1, 1, 1)), "random": np.zeros((1, 1, 1))})
    rows["samples"] = None
    assert compare_to_control(rows)["verdict"].tolist() == ["unknown"]


# ---------------------------------------------------------------- agreement


def test_friedman_is_scipys(rows: pd.DataFrame) -> None:
    found = friedman(rows, "relevance_auroc")
    part = rows[rows["headline"] & (rows["score"] == "relevance_auroc")]
    wide = part.pivot_table(
        index=["dataset", "model", "seed"], columns="method", values="value"
    )[list(found.methods)]  # fmt: skip
    expected = stats.friedmanchisquare(*wide.to_numpy().T)
    assert found.chi2 == pytest.approx(expected.statistic)
    N, k = wide.shape
    assert found.f == pytest.approx((N - 1) * found.chi2 / (N * (k - 1) - found.chi2))
    assert found.df == (k - 1, (k - 1) * (N - 1))
    assert found.p < 1e-20
    assert set(found.left_out) == {"deconvolution", "guided_grad_cam"}
    assert not set(found.methods) & {"random", "oracle"}


def test_friedman_at_its_limits() -> None:
    x = np.zeros((1, 4, 3))
    assert friedman(simple(dict.fromkeys("abc", x)), "score").p == 1
    apart = friedman(simple({"a": x, "b": x + 1, "c": x + 2}), "score")
    assert (apart.p, apart.f) == (0, np.inf)
    with pytest.raises(ValueError, match="needs 3 methods"):
        friedman(simple({"a": x, "b": x}), "score")


def test_scores_that_agree_and_scores_that_do_not() -> None:
    rng = np.random.default_rng(0)
    base = simple({n: i + rng.random((1, 5, 4)) / 10 for i, n in enumerate("abcdef")})
    twin = base.assign(score="twin", value=-base["value"], direction="lower")
    twin["samples"] = [-s for s in base["samples"]]
    assert kendall_w(pd.concat([base, twin])).w == pytest.approx(1)
    foe = base.assign(score="foe", direction="lower")
    assert kendall_w(pd.concat([base, foe])).w == pytest.approx(0)
    both = pd.concat([base, twin, foe])
    tau = rank_agreement(both)
    assert tau.loc["score", "twin"] == pytest.approx(1)
    assert tau.loc["score", "foe"] == pytest.approx(-1)
    assert 0 < kendall_w(both).w < 0.5


def test_rank_agreement_is_kendalls_tau_b(rows: pd.DataFrame) -> None:
    methods = rows[~rows["control"]]
    tau, matrix = rank_agreement(rows), rank_matrix(methods)
    for a, b in [("rank_gap", "map_entropy"), ("pointing_game", "relevance_auroc")]:
        expected = stats.kendalltau(matrix[a].round(9), matrix[b].round(9)).statistic
        assert tau.loc[a, b] == pytest.approx(expected)
    assert np.diag(tau) == pytest.approx(1)
    found = kendall_w(rows)
    assert found.low <= found.w <= found.high
    assert found.w > 0.8


# ---------------------------------------------------------------- odd tables


def test_odd_tables_neither_warn_nor_break(sweep: Sweep, single: pd.DataFrame) -> None:
    one_seed = sweep(seeds=(0,), n=8)
    constant = single.assign(value=0.5, sd=0.0)
    constant["samples"] = [np.full(8, 0.5, np.float32)] * len(constant)
    nothing = single.copy()
    gone = nothing["score"] == "relevance_auroc"
    nothing.loc[gone, "value"] = np.nan
    nothing["samples"] = [
        np.full(4, np.nan, np.float32) if g else s
        for g, s in zip(gone, nothing["samples"], strict=True)
    ]
    one_sample = sweep(models=("andor_cnn",), seeds=(0, 1), n=1, facets=False)
    for rows in (one_seed, constant, nothing, one_sample):
        intervals(rows, draws=50)
        intervals(rows, draws=50, statistic="iqm")
        ranks(rows, draws=50)
        compare_to_control(rows, draws=50)
        rank_agreement(rows)
        positions(rows)
    found = intervals(nothing, draws=50).set_index(["method", "score"])
    empty = found.loc[("saliency", "relevance_auroc")]
    assert np.isnan(empty["estimate"])
    assert (empty["n_clusters"], empty["n_samples"], empty["n_undefined"]) == (0, 0, 4)
    tied = ranks(constant, draws=50)
    assert (tied["rank"] == 0.5).all()
    assert (compare_to_control(constant, draws=50)["verdict"] == "same").all()


def test_missing_parameters_and_keys(small: pd.DataFrame) -> None:
    bare = small.assign(model_params=None, method_params=None, score_params=None, data_key=None)
    assert len(ranks(bare, draws=20)) == 15
    assert intervals(bare, draws=20)["low"].notna().all()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda r: ranks(r.drop(columns=["direction"])), "lacks the column direction"),
        (lambda r: ranks(r.iloc[:0]), "no rows"),
        (lambda r: ranks(r.assign(headline=False)), "no headline rows"),
        (lambda r: ranks(r.assign(direction="up")), "direction must be"),
        (lambda r: ranks(r[r["method"] == "saliency"]), "only method"),
        (lambda r: intervals(r, by=["methd"]), "cannot group by 'methd'"),
        (lambda r: intervals(r, by=["method"]), "different scales"),
        (lambda r: intervals(r, by=["score", "bucket"]), "no rows have bucket"),
        (lambda r: intervals(r, level=95), "95 % is 0.95"),
        (lambda r: intervals(r, draws=0), "draws must be"),
        (lambda r: intervals(r, statistic="mode"), "statistic must be one of"),
        (lambda r: paired(r, "saliency", "salience", "rank_gap"), "no method 'salience'.*known"),
        (lambda r: paired(r, "saliency", "random", "gap"), "no score 'gap'"),
        (lambda r: compare_to_control(r, "noise"), "no control 'noise'.*controls here: constant"),
        (lambda r: friedman(r, "gap"), "no score 'gap'"),
        (lambda r: kendall_w(r[r["score"] == "rank_gap"]), "agreement needs"),
    ],
)
def test_mistakes_are_told_in_one_line(
    small: pd.DataFrame, act: Callable[[pd.DataFrame], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        act(small)
    assert "\n" not in str(error.value)


def test_no_torch_and_no_matplotlib_at_import() -> None:
    code = (
        "import sys, analysis.statistics, analysis.figures, analysis.tables, analysis.report;"
        "assert not {'torch', 'matplotlib', 'scipy', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
