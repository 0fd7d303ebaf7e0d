"""Averages and worst buckets: values, what intervals are of, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from analysis.smerf_statistics import Numbers

pytestmark = pytest.mark.filterwarnings("error")


def rows(samples: dict[tuple[str, int, str], Sequence[float]]) -> pd.DataFrame:
    """Rows of (setting, seed, bucket) → samples."""
    found = []
    for (setting, seed, bucket), values in samples.items():
        x = np.asarray(values, dtype=np.float32)
        defined = x[np.isfinite(x)]
        found.append(
            {
                "study": "smerf", "dataset": setting, "setting": setting, "condition": "CNN",
                "model": "cnn", "model_params": "{}", "seed": seed, "fold": 0, "bucket": bucket,
                "data_key": setting, "label": "m", "n": len(defined), "samples": x,
                "value": defined.mean() if len(defined) else np.nan,
                "sd": defined.std() if len(defined) else np.nan,
            }
        )  # fmt: skip
    return pd.DataFrame(found)


def normal(mean: float, n: int = 200, seed: int = 0) -> np.ndarray:
    """Samples with exactly this mean and standard deviation 0.1."""
    x = np.random.default_rng(seed).standard_normal(n)
    return mean + 0.1 * (x - x.mean()) / x.std()


def test_the_average_is_of_bucket_means_and_the_worst_has_a_name() -> None:
    table = rows(
        {
            ("Simple-FR", 0, "Box1"): [0.2] * 9,
            ("Simple-FR", 0, "Box1+A"): [0.8],
            ("Simple-FR", 1, "Box1"): [0.4] * 9,
            ("Simple-FR", 1, "Box1+A"): [0.6],
        }
    )
    numbers = Numbers.of(table, ["label"], draws=50)
    assert dict(zip(numbers.table["bucket"], numbers.value, strict=True)) == pytest.approx(
        {"Box1": 0.3, "Box1+A": 0.7}
    )
    assert numbers.average(["label"]).value == pytest.approx([0.5])
    worst = numbers.worst(["label"])
    assert worst.value == pytest.approx([0.3])
    assert worst.table.loc[0, "bucket"] == "Box1"
    assert worst.table.loc[0, "n_samples"] == 20


def test_images_are_resampled_within_buckets() -> None:
    """With one model: the standard error of a bucket, of a mean of independent ones, and of the
    lower of two that are alike, sqrt(1 - 1/π) of one's."""
    table = rows({("Simple-FR", 0, "Box1"): normal(0.5, seed=1),
                  ("Simple-NR", 0, "A"): normal(0.5, seed=2)})  # fmt: skip
    numbers = Numbers.of(table, ["label"], draws=4000)
    error = 0.1 / np.sqrt(200)
    assert numbers.drawn.std(axis=1) == pytest.approx([error, error], rel=0.06)
    assert numbers.average(["label"]).drawn.std() == pytest.approx(error / np.sqrt(2), rel=0.06)
    worst = numbers.worst(["label"])
    assert worst.drawn.std() == pytest.approx(error * np.sqrt(1 - 1 / np.pi), rel=0.06)
    # The minimum of two is 1/sqrt(π) standard errors too low, which the draws make good.
    assert worst.drawn.mean() - 0.5 == pytest.approx(error / np.sqrt(np.pi), rel=0.15)
    assert (numbers.freedom == 0).all()


def test_a_bucket_that_is_far_below_is_the_worst_in_every_draw() -> None:
    means = {"Box1": 0.2, "Box1+A": 0.8, "Box1+B": 0.9}
    table = rows({("Simple-FR", 0, b): normal(m, seed=i) for i, (b, m) in enumerate(means.items())})
    numbers = Numbers.of(table, ["label"], draws=300)
    lowest = numbers.only(numbers.table["bucket"] == "Box1").intervals().iloc[0]
    worst = numbers.worst(["label"]).intervals().iloc[0]
    assert [worst[c] for c in ("estimate", "low", "high")] == pytest.approx(
        [lowest[c] for c in ("estimate", "low", "high")], abs=2e-3
    )


def test_seeds_are_resampled_and_few_of_them_widen_the_interval() -> None:
    def found(seeds: int) -> pd.Series:
        each = {("Simple-FR", s, "Box1"): [0.5 + 0.1 * (-1) ** s] * 4 for s in range(seeds)}
        return Numbers.of(rows(each), ["label"], draws=2000).intervals().iloc[0]

    few, many = found(4), found(40)
    assert few["n_models"] == 4
    assert few["low"] < 0.43
    assert few["high"] > 0.57
    assert many["high"] - many["low"] < 0.4 * (few["high"] - few["low"])


def test_freedom_is_that_of_all_settings_or_of_the_worst() -> None:
    each = {("Simple-FR", s, "Box1"): [0.2, 0.3] for s in range(3)}
    each |= {("Simple-NR", s, "A"): [0.6, 0.7] for s in range(5)}
    numbers = Numbers.of(rows(each), ["label"], draws=20)
    assert numbers.average(["label"]).freedom.tolist() == [6]
    assert numbers.worst(["label"]).freedom.tolist() == [2]


def test_differences_are_of_the_same_draws() -> None:
    first = {("Simple-FR", s, "Box1"): normal(0.5 + 0.1 * s, seed=s) for s in range(3)}
    second = {key: x - 0.25 for key, x in first.items()}
    a, b = (Numbers.of(rows(each), ["label"], draws=100) for each in (first, second))
    apart = a.average(["label"]).minus(b.average(["label"]), ["label"])
    assert apart.value == pytest.approx([0.25], abs=1e-6)
    assert apart.drawn == pytest.approx(np.full((1, 100), 0.25), abs=1e-6)


def test_undefined_values_are_left_out_and_counted() -> None:
    table = rows({("Simple-FR", 0, "Box1"): [0.2, np.nan, 0.4, np.nan],
                  ("Simple-FR", 0, "Box1+A"): [np.nan, np.nan]})  # fmt: skip
    numbers = Numbers.of(table, ["label"], draws=30)
    found = numbers.average(["label"])
    assert found.value == pytest.approx([0.3])
    assert found.table.loc[0, ["n_buckets", "n_samples", "n_undefined"]].tolist() == [1, 2, 2]


def test_one_number_has_no_interval_and_no_rows_no_numbers() -> None:
    table = rows({("Simple-FR", 0, "Box1"): [0.2]})
    found = Numbers.of(table, ["label"], draws=30).intervals()
    assert found[["low", "high"]].isna().all(axis=None)
    nothing = Numbers.of(table[:0], ["label"])
    assert len(nothing.worst(["label"])) == len(nothing.average(["label"]).intervals()) == 0
