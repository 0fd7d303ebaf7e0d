"""Numbers of the original's trained runs: all are there, and are held against the right rows."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analysis import andor_original

SCORES = {
    "GIB": ("gib", {"definition": "paper"}, None),
    "NIB": ("nib", {"preset": "paper"}, None),
    "masked share": ("masked_share", {}, None),
    "logical accuracy": ("logical_accuracy", {}, None),
    "row": ("bayes_accuracy", {}, "row"),
    "mask": ("bayes_accuracy", {}, "mask"),
    "statistical": ("logical_accuracy_statistics", {}, None),
    "retrained": ("retrained_accuracy", {}, None),
    "full DCA": ("full_dca", {"labels": "retrained"}, None),
    "OR DCA": ("minimal_dca", {"labels": "retrained"}, "or0"),
    "XOR DCA": ("minimal_dca", {"labels": "retrained"}, "xor0"),
}


def row(key, value, fold, **changed) -> dict:
    model, method, quantity, at = key
    name, settings = andor_original.MODELS[model]
    score, params, bucket = SCORES[quantity]
    by_class = score in ("gib", "nib")
    two = method in andor_original.TWO_DIMENSIONAL and not by_class
    return {
        "dataset": andor_original.DATASET, "model": name, "model_params": json.dumps(settings),
        "method": method, "method_params": '{"queries":"max"}' if two else "{}", "score": score,
        "score_params": json.dumps(params), "class": at if by_class else None, "bucket": bucket,
        "threshold": None if by_class else at, "seed": 42, "fold": fold, "control": False,
        "model_accuracy": andor_original.ACCURACY[model], "value": value, **changed,
    }  # fmt: skip


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Five folds around every number of the original; and rows of others, which must not count."""
    rng = np.random.default_rng(0)
    rows = []
    for key, value, _ in andor_original.reference():
        if key[2] == "accuracy":
            continue
        for fold in range(5):
            rows.append(row(key, value + 0.01 * (fold - 2) + 0.001 * rng.normal(), fold))
        rows.append(row(key, 9.0, 0, dataset="2inBinary/xor(preset=paper, test_size=0.1)"))
        rows.append(row(key, 9.0, 0, model_params='{"cls":true,"skip":false}'))
    return pd.DataFrame(rows)


def test_every_number_of_the_original_finds_its_rows(table):
    found = andor_original.compare(table)
    # Accuracies; of 9 and 10 maps GIB, NIB and four numbers at four thresholds; 4 × 5 retrained.
    assert len(found) == 2 + 19 * (4 + 4 * 4) + 4 * 5
    assert not found.duplicated(["model", "method", "quantity", "at"]).any()
    assert set(found["folds"]) == {5}
    assert found["holds"].all()
    assert ((found["original"] >= 0) & (found["original"] <= 1)).all()


def test_a_number_that_no_fold_comes_near_does_not_hold(table):
    moved = table.assign(value=table["value"] + 0.2 * (table["score"] == "gib"))
    found = andor_original.compare(moved)
    assert set(found.loc[~found["holds"], "quantity"]) == {"GIB"}
    assert not found.loc[found["quantity"] == "GIB", "holds"].any()


def test_retrained_models_are_held_against_their_bound(table):
    apart = andor_original.bound(table[table["value"] < 2])
    assert len(apart) == 4 * 5
    assert apart.to_numpy() == pytest.approx([-0.004] * 5 + [0.0] * 15, abs=0.01)
    assert andor_original.bound(table.assign(control=True)).empty
