"""A sweep as it could have been: 24 trained models, 11 methods of planted quality, 4 controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import pytest

# Planted quality: 0 no better than a random map, 1 as good as the oracle.
QUALITY = {
    "integrated_gradients": 0.82,
    "deep_lift": 0.76,
    "kernel_shap": 0.70,
    "lrp_epsilon": 0.62,
    "input_x_gradient": 0.52,
    "guided_grad_cam": 0.45,
    "saliency": 0.36,
    "grad_cam": 0.26,
    "grad_cam_plus_plus": 0.18,
    "deconvolution": 0.08,
    "guided_backprop": 0.0,
}
CONTROLS = {"oracle": 1.0, "input_only": 0.15, "random": 0.0, "constant": -0.1}
CNN_ONLY = {"guided_grad_cam", "deconvolution"}
LIBRARY = {
    "kernel_shap": "shap",
    "lrp_epsilon": "zennit",
    "grad_cam": "grad-cam",
    "grad_cam_plus_plus": "grad-cam",
}
FAMILY = {
    "kernel_shap": "perturbation",
    "lrp_epsilon": "lrp",
    "grad_cam": "cam",
    "grad_cam_plus_plus": "cam",
}
# name: (direction, value of a random map, value of the oracle, sd over samples, lowest, highest)
SCORES = {
    "needed_information_below_baseline": ("lower", 0.62, 0.0, None, 0, 1),
    "general_information_below_baseline": ("lower", 0.55, 0.05, 0.25, 0, 1),
    "relevance_auroc": ("higher", 0.5, 1.0, 0.2, 0, 1),
    "pointing_game": ("higher", 0.6, 1.0, None, 0, 1),
    "relevance_mass": ("higher", 0.55, 0.98, 0.15, 0, 1),
    "logical_accuracy": ("higher", 0.45, 1.0, None, 0, 1),
    "rank_gap": ("higher", 0.0, 3.4, 1.1, -8, 8),
    "map_entropy": ("lower", 2.05, 1.25, 0.3, 0, 3),
}


@dataclass(frozen=True)
class Plan:
    datasets: tuple[str, ...] = ("binary-and", "binary-xor")
    models: tuple[str, ...] = ("andor_cnn", "andor_transformer")
    seeds: tuple[int, ...] = tuple(range(6))
    n: int = 256
    facets: bool = True
    samples: bool = True


def make_rows(plan: Plan = Plan(), seed: int = 7) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    experiment = 0
    for dataset in plan.datasets:
        # Some methods are made for some scores: an offset that all models share.
        taste = {key: rng.normal(0, 0.07) for key in product(QUALITY, SCORES) if QUALITY[key[0]]}
        hardness = {score: rng.normal(0, 0.5, plan.n) for score in SCORES}
        for model in plan.models:
            for run in plan.seeds:
                experiment += 1
                luck = rng.normal(0, 0.06)
                for method, quality in (QUALITY | CONTROLS).items():
                    if method in CNN_ONLY and "cnn" not in model:
                        continue
                    # What a method is worth differs a little from one training to the next.
                    noise = 0 if method in ("random", "oracle", "constant") else 0.06
                    q = quality + (luck + rng.normal(0, noise) if noise else 0)
                    for score, (direction, floor, top, sd, low, high) in SCORES.items():
                        mean = floor + (q + taste.get((method, score), 0)) * (top - floor)
                        if sd is None:
                            chance = np.clip(mean + 0.15 * hardness[score], 0, 1)
                            samples = (rng.random(plan.n) < chance).astype(np.float32)
                        else:
                            wobble = sd * (0.6 * hardness[score] + rng.normal(0, 0.8, plan.n))
                            samples = np.clip(mean + wobble, low, high).astype(np.float32)
                        if method == "oracle" and score in ("relevance_mass", "relevance_auroc"):
                            samples[:] = top
                        if method == "constant":
                            if score == "relevance_auroc":
                                samples[:] = 0.5
                            elif score == "map_entropy":
                                samples[:] = np.log(8)
                            elif score == "relevance_mass":
                                samples[rng.random(plan.n) < 0.3] = np.nan
                        base = {
                            "experiment": experiment,
                            "study": "andor",
                            "dataset": dataset,
                            "model": model,
                            "model_params": '{"channels": 8}' if "cnn" in model else '{"depth": 2}',
                            "seed": run,
                            "method": method,
                            "method_params": '{"n_steps": 50}'
                            if method == "integrated_gradients"
                            else "{}",
                            "library": LIBRARY.get(
                                method, "assay" if method in CONTROLS else "captum"
                            ),
                            "family": "control"
                            if method in CONTROLS
                            else FAMILY.get(method, "gradient"),
                            "control": method in CONTROLS,
                            "score": score,
                            "score_params": "{}",
                            "direction": direction,
                            "data_key": f"data-{dataset}",
                            "model_key": f"model-{experiment}",
                            "map_key": f"map-{experiment}-{method}",
                        }
                        rows.append(base | _measured(samples, plan) | _facets())
                        if plan.facets and score == "needed_information_below_baseline":
                            for c in range(2):
                                part = samples[c::2]
                                rows.append(
                                    base
                                    | _measured(part, plan)
                                    | _facets()
                                    | {"class": str(c), "headline": False}
                                )
    frame = pd.DataFrame(rows)
    frame["percent"] = frame["percent"].astype(float)
    return frame


def _measured(samples: np.ndarray, plan: Plan) -> dict[str, object]:
    defined = samples[np.isfinite(samples)].astype(float)
    return {
        "value": defined.mean() if len(defined) else np.nan,
        "n": len(defined),
        "sd": defined.std(ddof=1) if len(defined) > 1 else np.nan,
        "samples": samples if plan.samples else None,
        "headline": True,
    }


def _facets() -> dict[str, object]:
    return {"class": None, "bucket": None, "threshold": None, "percent": np.nan}


@pytest.fixture(scope="session")
def rows() -> pd.DataFrame:
    return make_rows()


@pytest.fixture(scope="session")
def small() -> pd.DataFrame:
    """Two data sets, one architecture, three seeds, few samples."""
    return make_rows(Plan(models=("andor_cnn",), seeds=(0, 1, 2), n=24))


@pytest.fixture(scope="session")
def single() -> pd.DataFrame:
    """One trained model: what a first try gives."""
    return make_rows(Plan(datasets=("binary-and",), models=("andor_cnn",), seeds=(0,), n=64))


@pytest.fixture(scope="session")
def quality() -> dict[str, float]:
    return QUALITY


@pytest.fixture(scope="session")
def sweep() -> Callable[..., pd.DataFrame]:
    """Rows of another design: `sweep(seeds=(0,), n=16)`."""
    return lambda **plan: make_rows(Plan(**plan))
