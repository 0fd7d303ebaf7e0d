"""Ten methods and twelve scores: one evaluation of ours, and the peers' way, cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import captum.attr as captum
import numpy as np
import pytorch_grad_cam as cams
import quantus
import torch
from captum.metrics import infidelity
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from quantus.functions.perturb_func import batch_uniform_noise
from quantus.functions.similarity_func import correlation_spearman
from torch import Tensor, nn

from experiments import evaluation
from peers.race import quiet, timed
from peers.scores import BLACK, DRAWS, PATCH, PLAIN, RADIUS, STEPS, SUBSETS

SAMPLES, REGIONS = 50, 20
DRAWN: dict[str, Any] = {"samples": SAMPLES, "noise": 0.2}
NEAR: dict[str, Any] = {"samples": DRAWS, "radius": RADIUS}
EACH: dict[str, Any] = {"channels": "none"}
CELLS: dict[str, Any] = {"window": PATCH, "stride": PATCH}

# Ours by name; the parameters are those of the peers below.
METHODS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": SAMPLES},
    "smoothgrad": DRAWN,
    "smoothgrad_squared": DRAWN,
    "vargrad": DRAWN,
    "occlusion": CELLS,
}
SCORES: dict[str, dict[str, Any]] = {
    "deletion_auc": {"steps": STEPS, **EACH},
    "pixel_flipping": {"steps": STEPS, **EACH},
    "region_perturbation": {
        "patch": PATCH, "regions": REGIONS, "output": "logit", "fill": "baseline",
    },
    "faithfulness_correlation": {"draws": SUBSETS, **EACH},
    "infidelity": {"perturbation": "gaussian", "noise": 0.1, "draws": SUBSETS},
    "max_sensitivity": NEAR,
    "avg_sensitivity": NEAR,
    "local_lipschitz": NEAR,
    "parameter_randomisation": EACH,
    "random_logit": EACH,
    "relevance_mass": {"view": "abs"},
}  # fmt: skip

CHEAP = ["gradient", "input_x_gradient", "grad_cam", "hires_cam", "xgrad_cam"]
COMMON = [
    "pixel_flipping", "faithfulness_correlation", "infidelity", "max_sensitivity",
    "avg_sensitivity", "local_lipschitz", "parameter_randomisation", "random_logit",
    "relevance_mass", "sparseness",
]  # fmt: skip
# Ten methods and twelve scores each: of many families, or with relatives that can share.
TABLES: dict[str, tuple[list[str], list[str]]] = {
    "mixed": (
        [*CHEAP, "guided_backprop", "integrated_gradients", "smoothgrad", "vargrad", "occlusion"],
        [*COMMON, "region_perturbation", "entropy"],
    ),
    "related": (
        [*CHEAP, "integrated_gradients", "smoothgrad", "smoothgrad_squared", "vargrad", "random"],
        [*COMMON, "deletion_auc", "completeness"],
    ),
}

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]


def by_captum(kind: Any, **given: Any) -> Explain:
    return lambda model, x, y: kind(model).attribute(x, target=y, **given)


def by_noise_tunnel(kind: str) -> Explain:
    def explain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        tunnel = captum.NoiseTunnel(captum.Saliency(model))
        return tunnel.attribute(
            x, target=y, abs=False, nt_type=kind, nt_samples=SAMPLES, stdevs=0.2
        )

    return explain


def by_grad_cam(kind: Any) -> Explain:
    def explain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        layers = [module for module in model.modules() if isinstance(module, nn.ReLU)]
        with kind(model, layers[-1:]) as cam:
            found = cam(x, [ClassifierOutputTarget(int(label)) for label in y])
        return torch.from_numpy(found)[:, None].expand(x.shape)

    return explain


def theirs() -> dict[str, Explain]:
    """Their methods, by the name of ours."""
    window = (3, PATCH, PATCH)
    return {
        "gradient": by_captum(captum.Saliency, abs=False),
        "input_x_gradient": by_captum(captum.InputXGradient),
        "guided_backprop": by_captum(captum.GuidedBackprop),
        "grad_cam": by_grad_cam(cams.GradCAM),
        "hires_cam": by_grad_cam(cams.HiResCAM),
        "xgrad_cam": by_grad_cam(cams.XGradCAM),
        "integrated_gradients": by_captum(captum.IntegratedGradients, n_steps=SAMPLES),
        "smoothgrad": by_noise_tunnel("smoothgrad"),
        "smoothgrad_squared": by_noise_tunnel("smoothgrad_sq"),
        "vargrad": by_noise_tunnel("vargrad"),
        "random": lambda model, x, y: torch.rand_like(x),
        "occlusion": by_captum(
            captum.Occlusion,
            sliding_window_shapes=window,
            strides=window,
            perturbations_per_eval=8,
        ),
    }


def metrics(elements: int, classes: int) -> dict[str, Any]:
    """Quantus' scores by the name of ours; captum has infidelity."""
    near: dict[str, Any] = {"nr_samples": DRAWS, "lower_bound": RADIUS, **PLAIN}
    uniform: dict[str, Any] = {
        "nr_samples": DRAWS,
        "perturb_func": batch_uniform_noise,
        "perturb_func_kwargs": {"lower_bound": -RADIUS, "upper_bound": RADIUS},
        **PLAIN,
    }
    likeness: dict[str, Any] = {"similarity_func": correlation_spearman, **PLAIN}
    subsets: dict[str, Any] = {
        "nr_runs": SUBSETS,
        "subset_size": round(0.2 * elements),
        "return_aggregate": False,
    }
    regions: dict[str, Any] = {"patch_size": PATCH, "regions_evaluation": REGIONS}
    weight: dict[str, Any] = {**PLAIN, "abs": True}
    return {
        "deletion_auc": quantus.PixelFlipping(features_in_step=elements // STEPS, **BLACK),
        "pixel_flipping": quantus.PixelFlipping(features_in_step=elements // STEPS, **BLACK),
        "region_perturbation": quantus.RegionPerturbation(**regions, **BLACK),
        "faithfulness_correlation": quantus.FaithfulnessCorrelation(**subsets, **BLACK),
        "max_sensitivity": quantus.MaxSensitivity(**near),
        "avg_sensitivity": quantus.AvgSensitivity(**near),
        "local_lipschitz": quantus.LocalLipschitzEstimate(**uniform),
        "parameter_randomisation": quantus.MPRT(return_average_correlation=True, **likeness),
        "random_logit": quantus.RandomLogit(num_classes=classes, **likeness),
        "completeness": quantus.Completeness(**BLACK),
        "relevance_mass": quantus.RelevanceMassAccuracy(**weight),
        "sparseness": quantus.Sparseness(**weight),
        "entropy": quantus.Complexity(**weight),
    }


def as_quantus_wants(
    explain: Explain, model: nn.Module, inputs: Any, targets: Any, **_: Any
) -> Any:
    device = next(model.parameters()).device
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32, device=device)
    y = torch.as_tensor(np.asarray(targets), device=device)
    return explain(model, x, y).detach().cpu().numpy()


def peers_way(table: str, model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> None:
    """Each method by its library, each score of its maps by Quantus or captum.metrics."""
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    inputs, labels, masks = (part.cpu().numpy() for part in (x, y, mask[:, None]))
    methods, scores = TABLES[table]
    known, measures = theirs(), metrics(x[0].numel(), classes)
    for method in methods:
        explain = known[method]
        maps = explain(model, x, y).detach()
        whole = maps.cpu().numpy()
        flat = whole.sum(1, keepdims=True)
        for score in scores:
            if score == "infidelity":
                infidelity(model, _shaken, x, maps, target=y, n_perturb_samples=SUBSETS)
                continue
            metric = measures[score]
            needs_model = metric.evaluation_category.value not in ("Localisation", "Complexity")
            given = whole if needs_model else flat
            metric(
                model=model, x_batch=inputs, y_batch=labels, a_batch=given.copy(), s_batch=masks,
                explain_func=partial(as_quantus_wants, explain), device=str(x.device),
                softmax=score == "deletion_auc", batch_size=64,
            )  # fmt: skip


def _shaken(inputs: Tensor) -> tuple[Tensor, Tensor]:
    noise = 0.1 * torch.randn_like(inputs)
    return noise, inputs - noise


def our_way(
    table: str, model: nn.Module, x: Tensor, y: Tensor, mask: Tensor, channels_last: bool = False
) -> None:
    methods, scores = TABLES[table]
    evaluation.evaluate(
        model, x, y,
        methods=[{"name": name, **METHODS.get(name, {})} for name in methods],
        scores=[{"name": name, **SCORES.get(name, {})} for name in scores],
        regions={"relevant": mask.unsqueeze(1)}, channels_last=channels_last,
    )  # fmt: skip


def compare(model: nn.Module, x: Tensor, y: Tensor) -> str:
    """Seconds and passes per sample of either way to each table, as markdown."""
    side = x.shape[-1]
    mask = torch.zeros(len(x), side, side, dtype=torch.bool, device=x.device)
    mask[:, side // 4 : side // 2, side // 4 : side // 2] = True
    laid = partial(our_way, channels_last=True)
    ways = {"ours": (our_way, 2), "ours, channels last": (laid, 2), "theirs": (peers_way, 1)}
    lines = [
        "| table | | seconds per sample | forwards | with backwards | ratio |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    about = [
        f"{len(x)} samples; {SAMPLES} gradients for a path or a smoothed map. Theirs: captum, "
        "pytorch-grad-cam, Quantus, the maps computed once per method."
    ]
    for table, (methods, scores) in TABLES.items():
        about.append(f"*{table}*: {', '.join(methods)}; {', '.join(scores)}.")
        first = 0.0
        for name, (way, turns) in ways.items():
            with quiet():
                way(table, model, x[:2], y[:2], mask[:2])  # imports, measures the model
                work = partial(way, table, model, x, y, mask)
                runs = [timed(work, model) for _ in range(turns)]
            took = min(seconds for _, seconds, _ in runs) / len(x)
            rows, backwards = (int(number) / len(x) for number in runs[0][2].split(","))
            first = first or took
            counted = f"{rows - backwards:.0f} | {backwards:.0f}"
            lines.append(f"| {table} | {name} | {took:.3g} | {counted} | {took / first:.1f} |")
    return "\n\n".join(["  \n".join(about), "\n".join(lines)])
