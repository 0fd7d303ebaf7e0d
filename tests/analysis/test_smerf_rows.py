"""A table of the SMERF study as it could have been, and how its rows are arranged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import smerf_rows
from analysis.smerf_rows import arrange, measure_of, number, objects, paper_name, scorable, truth

# method: (family, how much of its weight is on primary objects if none stands beside them)
METHODS: dict[str, tuple[str, float]] = {
    "absolute_gradient": ("gradient", 0.15),
    "smoothgrad_squared": ("gradient", 0.2),
    "deconvolution": ("gradient", 0.07),
    "guided_backprop": ("gradient", 0.18),
    "deep_taylor": ("lrp", 0.6),
    "input_x_gradient": ("gradient", 0.8),
    "integrated_gradients": ("gradient", 0.8),
    "lrp_epsilon": ("lrp", 0.85),
    "deeplift_reveal_cancel": ("gradient", 0.8),
    "grad_cam": ("cam", 0.35),
    "deep_shap": ("gradient", 0.55),
    "kernel_shap": ("perturbation", 0.6),
}
CONTROLS = ("oracle", "input_only", "random", "sobel")
CEILING = {"Box1": 0.68, "Box2": 0.33, "Text": 0.8}
AREA = {"Box1": 100, "Box2": 16, "Text": 130}
MODEL = {"simple": "smerf_simple_cnn", "complex": "smerf_complex_cnn"}


@dataclass(frozen=True)
class Plan:
    settings: tuple[str, ...] = tuple(smerf_rows.SETTINGS)
    seeds: tuple[int, ...] = (0, 1, 2)
    n: int = 12
    methods: tuple[str, ...] = tuple(METHODS)
    measures: tuple[str, ...] = ("afl", "safl", "iou", "siou", "mafl", "smafl")
    presets: tuple[str, ...] = ("paper",)
    background: str = "black"
    model: str | None = None
    training: str = "{}"
    shift: float = 0.0
    probes: int = 30
    separable: bool = True


def table(*plans: Plan, seed: int = 0) -> pd.DataFrame:
    """The rows of experiments with these plans."""
    rng = np.random.default_rng(seed)
    rows = [row for plan in plans for row in _rows(plan, rng)]
    frame = pd.DataFrame(rows)
    return frame.assign(**{"class": None, "threshold": None, "percent": np.nan, "fold": 0})


def _rows(plan: Plan, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for s, setting in enumerate(plan.settings):
        for run in plan.seeds:
            plain = plan.background == "black"
            base = {
                "experiment": 100 * s + run, "study": "smerf",
                "dataset": setting if plain else f"{setting}(background={plan.background})",
                "model": plan.model or MODEL[smerf_rows.kind_of(setting)],
                "model_params": plan.training, "seed": run, "library": "assay",
                "data_key": f"{setting} {plan.background}", "model_key": f"{s} {run}",
                "map_key": "", "method_params": "{}", "score_params": "{}",
                "direction": "higher", "facets": "{}", "bucket": None, "model_accuracy": 0.99,
            }  # fmt: skip
            yield from _about_model(base, setting, rng)
            luck = rng.normal(0, 0.02)
            for method in (*plan.methods, *CONTROLS):
                control = method in CONTROLS
                family = "control" if control else METHODS[method][0]
                of = {**base, "method": method, "family": family, "control": control}
                if method == "lrp_epsilon":
                    of["method_params"] = '{"epsilon": 1.0}'
                yield from _scores(of, plan, setting, luck, rng)
                yield from _probes(of, plan, s, rng)


def _about_model(base: dict, setting: str, rng: np.random.Generator) -> Iterator[dict]:
    of = {**base, "method": "model", "family": "model", "control": False}
    yield of | {"score": "accuracy"} | measured(rng.random(4000) < 0.99, False)
    for bucket in truth(setting):
        found = measured(rng.random(400) < rng.choice([1, 1, 0.96]), False)
        yield of | {"score": "accuracy", "bucket": bucket} | found
    for edit in ("add Box1", "remove Box1", "move Box1", "swap letter"):
        found = measured(rng.random(200) < 0.98, False)
        yield of | {"score": "counterfactual", "facets": json.dumps({"edit": edit})} | found


def _scores(
    of: dict, plan: Plan, setting: str, luck: float, rng: np.random.Generator
) -> Iterator[dict]:
    for preset in plan.presets:
        for score in plan.measures:
            params = {"preset": preset, "region": "primary"}
            if score in ("safl", "siou", "smafl"):
                params["region"] = "secondary"
            name = "mafl" if score == "smafl" else score
            row = of | {"score": name, "score_params": json.dumps(params)}
            every = []
            for bucket, roles in truth(setting).items():
                mean = expected(of["method"], score, roles)
                if mean is None:
                    continue
                size = 0.01 if "mafl" in score else 1.0
                noise = 0.05 * rng.standard_normal(plan.n) + luck * (not of["control"])
                samples = size * np.clip(mean + plan.shift + noise, 0, 1)
                every.append(samples)
                yield row | {"bucket": bucket} | measured(samples, False)
            if every:
                yield row | measured(np.concatenate(every), True)


def expected(method: str, score: str, roles: Sequence[Sequence[str]]) -> float | None:
    """Weight follows area; what is not primary takes its part, of a method that looks at inputs
    more than of the oracle."""
    primary, secondary = roles
    role = secondary if score in ("safl", "siou", "smafl") else primary
    if not role:
        return None
    if method in ("random", "sobel"):
        return 0.04
    if method == "oracle":
        return float(np.mean([CEILING[name] for name in role])) if role is primary else 0.02
    share = METHODS[method][1] if method in METHODS else 0.8
    inside = sum(AREA[name] for name in role)
    return share * inside / sum(AREA[name] for name in (*primary, *secondary))


def _probes(of: dict, plan: Plan, s: int, rng: np.random.Generator) -> Iterator[dict]:
    """Shares of the objects in the same images; where separable, each setting has its own."""
    places = np.random.default_rng(1)
    there = places.random((plan.probes, 3)) < 0.8
    shares = rng.random((plan.probes, 4))
    if plan.separable and of["method"] not in CONTROLS:
        shares = 0.05 * shares + np.random.default_rng(s).random(4)
    for o, name in enumerate((*smerf_rows.OBJECTS, "elsewhere")):
        samples = np.where(there[:, o] if o < 3 else True, shares[:, o], np.nan)
        facets = json.dumps({"images": "probe", "object": name})
        yield of | {"score": "object_share", "facets": facets} | measured(samples, False)


def measured(samples: np.ndarray, headline: bool) -> dict[str, Any]:
    samples = np.asarray(samples, dtype=np.float32)
    defined = samples[np.isfinite(samples)].astype(float)
    return {
        "value": defined.mean() if len(defined) else np.nan, "n": len(defined),
        "sd": defined.std(ddof=1) if len(defined) > 1 else np.nan, "samples": samples,
        "headline": headline,
    }  # fmt: skip


@pytest.fixture(scope="session")
def everything() -> pd.DataFrame:
    return table(Plan())


# ---------------------------------------------------------------- tests


def test_buckets_and_their_roles() -> None:
    assert objects("Box1+Box2+B") == ["Box1", "Box2", "Text"]
    assert objects("none") == []
    assert [number(bucket) for bucket in ("none", "A", "Box2", "Box1+B", "Box1+Box2+B")] == [
        1, 2, 4, 9, 12
    ]  # fmt: skip
    count = {setting: len(scorable(setting)) for setting in smerf_rows.SETTINGS}
    assert sum(n for setting, n in count.items() if setting.startswith("Simple")) == 14
    assert sum(n for setting, n in count.items() if setting.startswith("Complex")) == 37
    assert truth("Complex-CR1")["Box2+A"] == (("Box2",), ("Text",))
    assert truth("My-own") == {}
    for setting, groups in smerf_rows.GROUPS.items():
        for buckets in groups.values():
            assert set(buckets) <= set(truth(setting))


def test_names_of_methods_and_measures() -> None:
    assert paper_name("lrp_epsilon", '{"epsilon": 1.0}') == "LRP-ε"
    assert paper_name("lrp_epsilon", '{"epsilon": 1e-7}') == "LRP-Z"
    assert paper_name("sobel", '{"absolute": true}') is None
    assert paper_name("rise", "{}") is None
    assert measure_of("afl", '{"preset": "paper"}') == ("PAFL", "paper", "")
    assert measure_of("siou", "{}") == ("SIOU", "fixed", "")
    assert measure_of("mafl", '{"region": "secondary"}')[0] == "SMAFL"
    assert measure_of("iou", '{"blur": 7}') == ("PIOU", "fixed", "blur=7")
    assert measure_of("pointing_game", "{}")[0] == "pointing_game"


def test_conditions_pool_all_but_architecture_background_and_attack(
    everything: pd.DataFrame,
) -> None:
    other = everything.assign(
        dataset=everything["dataset"] + "(background=noise, train_share=0.1)",
        model="smerf_vgg16",
        model_params='{"training": {"adversary": {"attack": "pgd"}, "epochs": 3}}',
    )
    data = arrange(pd.concat([everything, other]))
    assert data.conditions == ["CNN", "VGG16, noise, adversarial pgd"]
    assert data.settings == list(smerf_rows.SETTINGS)
    plain = data.of("CNN")
    assert len(plain.frame) + len(plain.models) == len(everything)


def test_methods_come_in_the_papers_order_then_others_then_controls(
    everything: pd.DataFrame,
) -> None:
    names = list(arrange(everything).methods.index)
    assert names[:12] == list(METHODS)
    assert set(names[12:]) == set(CONTROLS)


def test_several_parameters_of_a_score_are_versions(everything: pd.DataFrame) -> None:
    twin = everything[everything["score"] == "afl"].assign(
        score_params='{"preset": "paper", "region": "primary", "blur": 3}'
    )
    data = arrange(pd.concat([everything, twin]))
    assert data.versions("PAFL") == ["paper", "paper (blur=3)"]


def test_labels_are_short_where_the_paper_has_a_name(everything: pd.DataFrame) -> None:
    rows = everything[everything["method"].isin(["lrp_epsilon", "sobel", "random"])]
    z = rows[rows["method"] == "lrp_epsilon"].assign(method_params='{"epsilon": 1e-07}')
    absolute = rows[rows["method"] == "sobel"].assign(method_params='{"absolute": true}')
    edge = rows["method"] == "sobel"
    direction = '{"direction": "horizontal"}'
    rows = rows.assign(method_params=rows["method_params"].mask(edge, direction))
    data = arrange(pd.concat([rows, z, absolute]))
    assert list(data.methods.index) == [
        "lrp_epsilon (LRP-Z)", "lrp_epsilon (LRP-ε)", "random", "sobel (Edge)",
        "sobel(absolute=true)",
    ]  # fmt: skip
    assert data.controls == {"sobel": "sobel (Edge)", "random": "random"}


def test_thresholds_count_by_their_mean(everything: pd.DataFrame) -> None:
    iou = everything[everything["score"] == "iou"]
    parts = [iou.assign(threshold=name) for name in ("0.1", "0.2", "mean")]
    data = arrange(pd.concat([everything[everything["score"] != "iou"], *parts]))
    assert set(data.buckets("PIOU")["threshold"]) == {"mean"}
    single = arrange(everything.assign(threshold="histogram"))
    assert len(single.buckets("PIOU")) == len(data.buckets("PIOU"))


def test_missing_buckets_are_named(everything: pd.DataFrame) -> None:
    assert arrange(everything).missing_buckets() == {"simple": [], "complex": []}
    few = everything[everything["dataset"] != "Complex-FR"]
    assert arrange(few).missing_buckets()["complex"] == [
        "Complex-FR Box1+Box2", "Complex-FR Box1+Box2+A", "Complex-FR Box1+Box2+B"
    ]  # fmt: skip


def test_a_table_without_the_study_is_refused(rows: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match='no rows of the study "smerf"'):
        arrange(rows)
