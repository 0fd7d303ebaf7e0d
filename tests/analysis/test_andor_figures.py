"""Figures of the ANDOR study, of a tiny run of it that is then copied to more of its grid."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from test_figures import check

from analysis import andor, andor_importance, andor_summary
from analysis.andor_rows import arrange, difference, first_variant, spread

pytestmark = pytest.mark.filterwarnings("error")
THRESHOLDS = ["baseline", 1.0, 0.5]
MASKING = ("masked_share", "logical_accuracy", "logical_accuracy_statistics", "bayes_accuracy",
           "full_dca", "minimal_dca")  # fmt: skip
CONFIG = {
    "data": {"toplevel": "xor"},
    "model": {"name": "andor_transformer", "width": 8, "layers": 1, "cls": True},
    "training": {"epochs": 3, "batch_size": 128},
    "methods": ["integrated_gradients", "transformer_attribution", "random"],
    "scores": [
        "nib", "gib", "mean_importance", "wrong_importance",
        {"name": "wrong_importance", "of": "mean_map"},
        *({"name": name, "thresholds": THRESHOLDS} for name in MASKING),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pd.DataFrame]:
    """The rows of one trained transformer, by the study itself."""
    from experiments.studies.andor import Config, study

    here = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("andor"))
    try:
        yield pd.DataFrame(study(Config.model_validate(CONFIG))[0])
    finally:
        os.chdir(here)


@pytest.fixture(scope="module")
def table(run: pd.DataFrame) -> pd.DataFrame:
    """Two gates, two configurations, one with a split; models with and without a CLS token;
    two folds; retrained networks and forests."""
    rng = np.random.default_rng(0)
    run = pd.concat([run, *retrained(run)], ignore_index=True)
    copies = []
    for dataset in ("2inBinary/xor", "2inBinary/and", "3inBinary/xor(irrelevant=3, test_size=0.2)"):
        for cls in (True, False):
            for fold in (0, 1):
                params = run["model_params"].map(
                    lambda given, cls=cls: json.dumps({**json.loads(given), "cls": cls})
                )
                copy = run.assign(dataset=dataset, model_params=params, fold=fold)
                noise = rng.normal(0, 0.02, len(copy)) * (copy["score"] != "wrong_importance")
                copy["value"] = copy["value"] + noise
                copy["model_accuracy"] = 1.0 if cls else 0.9
                copies.append(copy)
    return pd.concat(copies, ignore_index=True)


def retrained(run: pd.DataFrame) -> Iterator[pd.DataFrame]:
    row = run[(run["score"] == "bayes_accuracy") & (run["bucket"] == "row")]
    row = row.assign(bucket=None, score_params="{}")
    yield row.assign(score="retrained_accuracy", value=row["value"] - 0.01)
    yield row.assign(score="forest_accuracy", value=row["value"] - 0.02)
    yield row[:1].assign(score="forest_accuracy", threshold="all", value=0.97)
    gates = run[(run["score"] == "mean_importance") & (run["class"] == "all")]
    yield gates.assign(**{"class": None}, score="forest_importance", value=0.1)


def test_every_figure_has_a_name_and_a_folder(table: pd.DataFrame) -> None:
    names = set(andor.drawings(table))
    methods = ("integrated_gradients", "transformer_attribution", "random")
    curves = ("retrained_accuracy", "masked_share", "forest_accuracy", "logical_accuracy",
              "leakage", "logical_accuracy_statistics", "leakage_statistics",
              "bayes_accuracy_mask", "bayes_accuracy_row", "mask_leakage")  # fmt: skip
    general = ["performance", "forest_importance", "gib", "nib", "full_dca", "minimal_dca",
               "average_dca", *curves, *(f"{curve}_sd" for curve in curves)]  # fmt: skip
    expected = {"information_and_leakage", *(f"general/{name}" for name in general)}
    for method in methods:
        expected |= {f"general/mean_importance{by}/{method}" for by in ("", "_by_class")}
    for config in ("2inBinary", "3inBinary"):
        expected |= {f"{config}/gib", f"{config}/nib"}
        for kind in ("wrong_importance", "wrong_importance_of_mean"):
            expected |= {f"{config}/{kind}/{method}" for method in methods}
    assert names == expected
    assert andor.missing(table) == []
    # The same rows once more, with another bucket in rankings, are no figures of their own.
    bayes = table[table["score"] == "bayes_accuracy"]
    params = bayes["score_params"].map(lambda given: json.dumps({**json.loads(given), "of": "row"}))
    assert set(andor.drawings(pd.concat([table, bayes.assign(score_params=params)]))) == expected


@pytest.mark.parametrize(
    "name",
    ["information_and_leakage", "general/performance", "general/leakage", "general/minimal_dca",
     "general/average_dca", "3inBinary/wrong_importance/integrated_gradients"],
)  # fmt: skip
def test_nothing_overlaps_and_the_caption_counts(
    table: pd.DataFrame, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(andor_summary, "DRAWS", 50)
    figure = andor.drawings(table, "dark", selection="paper")[name]()
    shown = check(figure)
    assert any("rows" in text for text in shown)
    assert name == "general/performance" or any("CLS token count" in text for text in shown)


def test_a_missing_score_leaves_its_figures_out_and_says_so(run: pd.DataFrame) -> None:
    few = run[run["score"].isin(["nib", "logical_accuracy"])]
    assert set(andor.drawings(few)) == {
        "general/performance", "general/nib", "2inBinary/nib", "general/logical_accuracy",
        "general/logical_accuracy_sd",
    }  # fmt: skip
    lines = andor.missing(few)
    assert "no figure general/gib and CONFIG/gib: add the score `gib`" in lines
    assert any("general/leakage:" in line and "retrain: true" in line for line in lines)
    assert len(lines) == len(set(lines)) == 18
    with pytest.raises(ValueError, match='no rows of the study "andor"'):
        andor.figures(run.assign(study="smerf"))


def test_the_papers_selection_of_models(table: pd.DataFrame) -> None:
    data = arrange(table, "paper").frame
    cls = data["model_params"].str.contains('"cls": true')
    assert set(data.loc[cls, "label"]) == {"transformer_attribution (CLS)"}
    assert "transformer_attribution (no CLS)" in set(data.loc[~cls, "label"])
    as_coded = table.assign(
        method=table["method"].replace("transformer_", "andor_transformer_", regex=True)
    )
    labels = set(arrange(as_coded, "paper").frame["label"])
    assert {f"andor_transformer_attribution ({kind})" for kind in ("CLS", "no CLS")} <= labels
    assert set(arrange(table, accuracy=1.0).trained["accuracy"]) == {1.0}
    assert len(arrange(table).trained) == 12
    with pytest.raises(ValueError, match="test accuracy"):
        arrange(table, accuracy=1.1)


def test_the_numbers_of_a_bar(table: pd.DataFrame) -> None:
    rows = table[(table["score"] == "nib") & (table["class"] == "0")]
    rows = rows[(rows["dataset"] == "2inBinary/xor") & (rows["method"] == "random")]
    figure = andor.drawings(table)["2inBinary/nib"]()
    check(figure)
    panel = next(axes for axes in figure.axes if axes.get_title() == "XOR on top")
    widths = [bar.get_width() for bar in panel.containers[-1]]
    assert widths == pytest.approx([100 * rows["value"].mean()])
    whisker = panel.lines[-2].get_xdata()
    assert np.ptp(whisker) == pytest.approx(200 * rows["value"].std())


def test_leakage_is_what_masks_say_beyond_random_masks(run: pd.DataFrame) -> None:
    """As the difference of the two buckets, sample by sample; else against the control."""
    data = arrange(run)
    excess, kind = andor_summary._excess(data, "1.0")
    assert kind == "equal"
    assert excess is not None
    bayes = run[(run["score"] == "bayes_accuracy") & (run["threshold"] == "1.0")]
    bayes = bayes.pivot(index="method", columns="bucket", values="value")
    expected = 100 * (bayes["mask"] - bayes["mask random"])
    found = excess.set_index("method")
    assert found["value"].to_dict() == pytest.approx(expected.to_dict())
    assert {m: np.mean(s) for m, s in found["samples"].items()} == pytest.approx(
        expected.to_dict(), abs=1e-4
    )
    plain = arrange(run[~run["bucket"].isin(["mask random", "row random"])])
    excess, kind = andor_summary._excess(plain, "1.0")
    assert kind == "control"
    assert excess is not None
    assert excess.set_index("method").loc["random", "value"] == 0
    none = arrange(run[(run["bucket"] != "mask random") & (run["method"] != "random")])
    assert andor_summary._excess(none, "1.0") == (None, "none")
    figure = andor_summary.information_and_leakage(none, draws=50)
    assert "add the control random" in " ".join(" ".join(check(figure)).split())


def test_every_fold_is_a_trained_model(table: pd.DataFrame) -> None:
    rows = arrange(table).score("logical_accuracy", "threshold")
    rows = rows[rows["threshold"] == "1.0"]
    found = andor_summary._intervals(rows, 50)
    assert set(found["n_clusters"]) == {12}
    assert (found["low"] < found["estimate"]).all()
    assert (found["estimate"] < found["high"]).all()


@pytest.mark.parametrize("name", ["forest_importance", "mean_importance/random"])
def test_importance_is_shown_by_gate(table: pd.DataFrame, name: str) -> None:
    figure = andor.drawings(table)[f"general/{name}"]()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["AND", "OR", "XOR", "irrelevant"]


def test_irrelevant_inputs_are_left_out(run: pd.DataFrame) -> None:
    rows = first_variant(arrange(run).score("wrong_importance", "class", "bucket"))
    assert set(andor_importance._of_formula(rows)["input"]) == set(range(6))


def test_differences_pair_models_methods_and_thresholds(table: pd.DataFrame) -> None:
    data = arrange(table)
    left, right = (
        data.score(name, "threshold") for name in ("retrained_accuracy", "logical_accuracy")
    )
    apart = difference(left, right.sample(frac=1, random_state=0))
    assert len(apart) == len(left) == len(right)
    means = [spread(rows, "label", "threshold")["mean"] for rows in (apart, left, right)]
    pd.testing.assert_series_equal(
        means[0].sort_index(), (means[1] - means[2]).sort_index(), check_names=False
    )
