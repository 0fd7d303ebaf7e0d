"""The SMERF study from configuration to rows, on a few small images' worth of training."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import stages
from experiments.artifacts import ArtifactStore
from experiments.data import smerf as data_of
from experiments.studies import smerf

TRAINING = {
    "learning_rate": 1e-3, "betas": [0.9, 0.999], "epochs": 12, "batch_size": 64, "patience": 6,
    "balanced": False, "stop_at_loss": 2e-3,
}  # fmt: skip
METHODS = [
    "input_x_gradient",
    "object_shapley",
    "random",
    "oracle",
    {"name": "oracle", "mark": "ink"},
]
SCORES = [
    "afl", {"name": "afl", "preset": "paper"}, "safl",
    {"name": "object_label_agreement", "region": "players", "worth": "own", "kind": "cosine"},
    {"name": "object_shapley_agreement", "region": "objects", "kind": "cosine"},
]  # fmt: skip


def config(**changes: object) -> smerf.Config:
    known = {
        "data": {"setting": "Simple-FR", "train_share": 0.04, "test": 12, "validation": 10},
        "training": TRAINING, "methods": METHODS, "scores": SCORES, "explained": 3, "probe": 1,
        "verification": {"accuracy": 0.8, "bucket_accuracy": 0.0, "edits": 0.0, "attempts": 2},
    }  # fmt: skip
    return smerf.Config.model_validate(known | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


def run(store: Path, config_: smerf.Config) -> tuple[pd.DataFrame, dict, dict, dict]:
    with stages.using(stages.Runtime(ArtifactStore(store))) as runtime:
        table, facts, files = smerf.study(config_)
        return pd.DataFrame(table), facts, files, runtime.summary()


@pytest.fixture(scope="module")
def done(store) -> tuple[pd.DataFrame, dict, dict, dict]:
    return run(store, config())


def test_every_score_has_a_headline_and_a_row_for_each_bucket_where_it_is_defined(done):
    table, _, _, _ = done
    maps = table[(table["family"] != "model") & ~table["facets"].str.contains("probe")]
    setting = data_of.SETTINGS["Simple-FR"]
    scorable = {bucket.name for bucket in setting.buckets if bucket.primary}
    for _, rows in maps.groupby(["method", "method_params", "score", "score_params"]):
        assert rows["headline"].sum() == 1
        (head,) = rows[rows["headline"]].to_dict("records")
        buckets = rows[rows["bucket"].notna()]
        assert head["n"] == buckets["n"].sum()
        mean = (buckets["value"] * buckets["n"]).sum() / buckets["n"].sum()
        assert head["value"] == pytest.approx(mean)
    focus = maps[maps["score"] == "afl"]
    assert set(focus["bucket"].dropna()) <= scorable


def test_rows_say_how_the_model_reasons(done):
    table, facts, _, _ = done
    model = table[table["family"] == "model"]
    assert not model["headline"].any()
    whole = model[(model["score"] == "accuracy") & model["bucket"].isna()]["value"].item()
    assert whole == pytest.approx(facts["model"]["accuracy"])
    edits = model[model["score"] == "counterfactual"]
    assert {json.loads(f)["edit"] for f in edits["facets"]} == set(facts["model"]["edits"])
    assert set(facts["model"]["edits"]) == {f"{verb} {name}" for verb, name in data_of.EDITS}


def test_ceilings_are_ceilings(done):
    table, _, _, _ = done
    heads = table[table["headline"] & (table["score"] == "afl") & (table["score_params"] == "{}")]
    value = heads.set_index(["method", "method_params"])["value"]
    assert value["oracle", "{}"] == pytest.approx(1)
    assert value["oracle", '{"mark":"ink"}'] == pytest.approx(1)
    assert value["random", "{}"] < 0.1
    shapley = table[
        table["headline"]
        & (table["method"] == "object_shapley")
        & (table["score"] == "object_shapley_agreement")
    ]
    assert shapley["value"].item() == pytest.approx(1, abs=1e-5)


def test_probe_rows_are_of_the_same_images_for_all_and_tell_no_truth(done):
    table, _, _, _ = done
    probe = table[table["facets"].str.contains("probe")]
    assert set(probe["method"]) == {"input_x_gradient", "object_shapley", "random"}
    by_object = {json.loads(f)["object"] for f in probe["facets"]}
    assert by_object == {"Box1", "Box2", "Text", "elsewhere"}
    assert {len(samples) for samples in probe["samples"]} == {12}


def test_the_gallery_has_what_figures_draw(done):
    _, _, files, _ = done
    gallery = np.load(io.BytesIO(files["gallery.npz"]))
    assert gallery["images"].shape == (12, 64, 64, 3)
    assert gallery["maps"].shape == (5, 12, 64, 64)
    assert gallery["boxes"].shape == (12, 3, 4)
    first = gallery["buckets"].tolist().index("Box1+Box2+B")
    assert gallery["roles"][first].tolist() == ["primary", "secondary", "secondary"]
    row0, row1, column0, column1 = gallery["boxes"][first, 0]
    assert (gallery["images"][first, row0:row1, column0:column1] == 255).all()
    ink = gallery["methods"].tolist().index("oracle(mark=ink)")
    assert gallery["maps"][ink, first].sum() == 3 * 100


def test_again_nothing_is_computed_and_one_more_score_costs_itself(store, done):
    _, _, _, again = run(store, config())
    assert all(part["computed"] == 0 for part in again.values())
    more = [*SCORES, "pointing_game", {"name": "deletion_auc"}]
    _, _, _, added = run(store, config(scores=more))
    computed = {name: part["computed"] for name, part in added.items() if part["computed"]}
    assert computed == {"smerf_scored": len(METHODS)}


def test_what_is_wrong_is_not_scored_unless_asked_for(store):
    trained = {"training": {**TRAINING, "epochs": 1}}
    low = {"verification": {"accuracy": 0.0, "bucket_accuracy": 0.0, "edits": 0.0}}
    right, _, _, _ = run(store, config(**trained, **low))
    every, _, _, _ = run(store, config(**trained, **low, scored="all"))

    def scored(table: pd.DataFrame) -> int:
        rows = table[table["headline"] & (table["score"] == "afl") & (table["method"] == "random")]
        return int(rows["n"].iloc[0])

    assert scored(every) == 18
    accuracy = every["model_accuracy"].iloc[0]
    assert accuracy < 1
    assert scored(right) < 18


def test_a_model_that_does_not_reason_is_reported_and_not_scored(store):
    hard = {"accuracy": 1.0, "bucket_accuracy": 1.0, "edits": 1.0, "attempts": 2}
    poor = config(training={**TRAINING, "epochs": 1, "learning_rate": 1e-6}, verification=hard)
    with pytest.raises(RuntimeError) as error:
        run(store, poor)
    text = str(error.value)
    assert "no model of Simple-FR reasons by the rule (attempt 1: accuracy" in text
    assert "attempt 2: accuracy" in text
    assert "\n" not in text


def test_weights_that_are_not_there_are_named(store):
    missing = config(model={"name": "smerf_vgg16", "weights": "/nowhere/vgg.pth"})
    with pytest.raises(ValueError, match=r"model\.weights: cannot read '/nowhere/vgg\.pth' \(No"):
        run(store, missing)


def test_a_hardened_model_starts_from_the_plain_one(store, done):
    harder = {
        **TRAINING, "epochs": 1, "learning_rate": 1e-5,
        "adversary": {"attack": "fgsm", "epsilon": 0.05},
    }  # fmt: skip
    table, facts, _, computed = run(store, config(hardening=harder))
    assert computed["smerf_trained"]["computed"] == 0
    assert computed["smerf_hardened"]["computed"] == 1
    assert facts["model"]["accuracy"] > 0.7  # as the plain one, hardly changed
    assert "hardening" in json.loads(table["model_params"].iloc[0])
    assert table["model_key"].iloc[0] != done[0]["model_key"].iloc[0]


def test_all_configurations_expand_and_are_valid():
    from orchestrator import grid

    folder = Path(__file__).parents[2] / "configs" / "smerf"
    sizes = {path.stem: len(grid.read(path).documents) for path in folder.glob("*.yaml")}
    assert sizes == {
        "quick": 6, "paper": 21, "architectures": 42, "adversarial": 42, "backgrounds": 63,
        "beyond": 21,
    }  # fmt: skip


def test_the_background_of_deep_shap_is_drawn_by_the_seed():
    data = data_of.generate(data_of.SmerfSpec(train_share=0.01, test=1, validation=1))
    one, same, other = (smerf._background(data, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
