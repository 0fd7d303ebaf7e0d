"""The ANDOR study as a whole: folds, masking, retraining, and what is shared between them."""

from __future__ import annotations

import pytest
import torch

from experiments.artifacts import ArtifactStore
from experiments.data.andor import MASK_VALUE, generate, truth_of
from experiments.stages import Planned, Runtime, using
from experiments.studies import andor

SMALL = {
    "methods": ["gradient", "random", "oracle"],
    "scores": [
        "masked_share",
        "completeness",
        {"name": "retrained_accuracy", "thresholds": ["baseline", 1.0]},
        {"name": "forest_accuracy", "thresholds": ["baseline", 1.0]},
        "forest_importance",
    ],
    "training": {"epochs": 3, "batch_size": 32},
    "folds": 2,
    "retrain": True,
    "forest": True,
    "thresholds": ["baseline", 1.0],
}
SPLIT = {"test_size": 0.2, "preset": "paper"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study with a test split, run once: configuration, artifacts, table, counts."""
    config = andor.Config.model_validate({**SMALL, "data": SPLIT})
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts"))
    with using(Runtime(store)) as run:
        table, facts = andor.study(config)
    return config, store, table, facts, run.summary()


def test_every_fold_method_and_threshold_has_its_row(ran):
    config, _, table, facts, counts = ran
    assert len(facts["model"]["accuracy"]) == config.folds
    assert {row["fold"] for row in table} == {0, 1}
    assert len({row["model_key"] for row in table}) == config.folds
    retrained = [row for row in table if row["score"] == "retrained_accuracy"]
    assert {(r["fold"], r["method"], r["threshold"]) for r in retrained} == {
        (fold, method, threshold)
        for fold in (0, 1)
        for method in ("gradient", "random", "oracle")
        for threshold in ("baseline", "1.0")
    }
    assert all(0 <= row["value"] <= 1 for row in retrained)
    done = {stage: row["computed"] for stage, row in counts.items()}
    # 2 folds × 3 methods; the maps of the tested rows and of the others.
    assert done == {
        "dataset": 2, "trained": 2, "attributed": 12, "scored": 6, "retrained": 6, "forests": 6,
    }  # fmt: skip


def test_what_is_missing_is_computed_alone_and_is_the_same(ran):
    config, store, table, _, _ = ran
    for stage in ("trained", "retrained"):
        sorted(store.root.glob(f"{stage}/??/*.assay"))[0].unlink()
    with using(Runtime(store)) as run:
        again, _ = andor.study(config)
    assert run.summary()["retrained"]["computed"] == 1
    assert run.summary()["trained"]["computed"] == 1
    for ours, theirs in zip(again, table, strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], nan_ok=True)


def test_a_plan_knows_all_stages_before_anything_is_computed(ran, tmp_path):
    config, _, _, _, counts = ran
    run = Runtime(ArtifactStore(tmp_path), planning=True)
    with using(run), pytest.raises(Planned):
        andor.study(config)
    planned = {}
    for event in run.history:
        planned.setdefault(event["stage"], set()).add(event["key"])
    assert {stage: len(keys) for stage, keys in planned.items()} == {
        stage: row["computed"] for stage, row in counts.items()
    }


def test_a_mask_hides_what_a_rows_own_map_scores_low():
    samples = generate(SPLIT)
    rest = andor._others(samples)
    assert not set(rest.index.tolist()) & set(samples.test.index.tolist())
    assert len(set(rest.index.tolist())) == len(rest)
    everything = len(rest) + len(samples.test)
    assert everything == 2 ** samples.meta["inputs"]
    truth = truth_of(samples, rest.x)
    maps, others = samples.truth.relevant.float(), truth.relevant.float()
    masked = andor._masked(samples, maps, others, "baseline")
    for split, plain in ((masked.train, samples.train), (masked.validation, samples.validation),
                         (masked.test, samples.test)):  # fmt: skip
        relevant = truth_of(samples, plain.x).relevant
        assert torch.equal(split.x == MASK_VALUE, ~relevant)
        assert torch.equal(split.x[relevant], plain.x[relevant])
        assert torch.equal(split.y, plain.y)


def test_the_truth_of_any_rows_is_that_of_the_test_rows():
    samples = generate({"symbols": 4, "true_indexes": [1, 3], "irrelevant": 1})
    again = truth_of(samples, samples.test.x)
    assert torch.equal(again.pattern, samples.truth.pattern)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"forest": False}, "'forest_accuracy' needs retrained forests: set forest: true"),
        ({"thresholds": [0.5]}, "at which nothing is retrained: 1.0, baseline"),
    ],
)
def test_what_scores_lack_is_said_before_anything_is_trained(changed, message):
    with pytest.raises(ValueError, match=message):
        andor.Config.model_validate({**SMALL, **changed})


def test_without_retraining_its_scores_are_left_out_and_named(tmp_path):
    config = andor.Config.model_validate(
        {**SMALL, "retrain": False, "folds": 1, "methods": ["random"], "training": {"epochs": 1}}
    )
    with using(Runtime(ArtifactStore(tmp_path))) as run:
        table, facts = andor.study(config)
    assert {row["score"] for row in table} == {"masked_share", "completeness"}
    assert facts["not_applicable"] == dict.fromkeys(
        ("retrained_accuracy", "forest_accuracy", "forest_importance"), "needs retrain: true"
    )
    assert "retrained" not in run.summary()


def test_masks_that_hide_the_same_are_retrained_once(monkeypatch):
    samples = generate({})
    data, rest = samples.state(), torch.zeros(0, samples.test.x.shape[1])
    subject = {"architecture": {"name": "andor_cnn"}, "seed": 0, "dtype": "float64"}
    maps = torch.rand(samples.test.x.shape, generator=torch.Generator().manual_seed(0))
    tasks = [(data, each, rest, subject) for each in (torch.zeros_like(maps), maps)]
    training = {"epochs": 1, "batch_size": 64}
    together = []
    fit_many = andor.stacked.fit_many

    def counted(models, *splits, **options):
        together.append(len(models))
        return fit_many(models, *splits, **options)

    monkeypatch.setattr(andor.stacked, "fit_many", counted)
    constant, real = andor._retrained(tasks, training, ["baseline", 1.0, 0.5], 0)
    assert together == [4]  # one for the constant map, which hides everything at every threshold
    (alone,) = andor._retrained(tasks[1:], training, ["baseline", 1.0, 0.5], 0)
    for threshold, outcome in alone.items():
        torch.testing.assert_close(real[threshold]["prediction"], outcome["prediction"])
        assert constant[threshold]["accuracy"] == constant["baseline"]["accuracy"]
