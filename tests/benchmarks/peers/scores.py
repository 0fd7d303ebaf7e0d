"""Scores of Quantus and captum.metrics against ours, on the same maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import captum.attr as captum
import numpy as np
import quantus
import torch
from captum.metrics import infidelity, sensitivity_max
from quantus.functions.discretise_func import top_n_sign
from quantus.functions.perturb_func import batch_uniform_noise
from quantus.functions.similarity_func import correlation_spearman
from torch import Tensor, nn

from experiments import attribution, evaluation
from peers.race import Compare, Contest, means, nothing, same

DRAWS, RADIUS, STEPS, SUBSETS, PATCH = 10, 0.2, 48, 50, 4
PERCENTS = [2.0 * step for step in range(1, 26)]
PLAIN: dict[str, Any] = {"abs": False, "normalise": False, "disable_warnings": True}
BLACK: dict[str, Any] = {"perturb_baseline": 0.0, **PLAIN}
EACH: dict[str, Any] = {"channels": "none"}  # Quantus removes the channels of a pixel apart


def gradient(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
    """Quantus' signature of a method."""
    device = next(model.parameters()).device
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32, device=device)
    y = torch.as_tensor(np.asarray(targets), device=device)
    return captum.Saliency(model).attribute(x, target=y, abs=False).detach().cpu().numpy()


def contests(model: nn.Sequential, x: Tensor, y: Tensor, side: int) -> Iterator[Contest]:
    """Every score that a peer has, of gradient maps of x [N, C, H, W] for classes y [N]."""
    maps = attribution.attribute("gradient", model, x, y)
    mask = torch.zeros(len(x), side, side, dtype=torch.bool, device=x.device)
    mask[:, side // 4 : side // 2, side // 4 : side // 2] = True
    make = partial(_contest, model, x, y, maps, mask)
    yield from _of_maps(make)
    yield from _faithfulness(make, model, x, y, maps)
    yield from _robustness(make, model, x, y)
    yield from _randomisation(make)
    grey = nn.Sequential(nn.Conv2d(1, 3, 1), *model).to(x.device).eval()
    some = x[:16, :1].contiguous()
    label = attribution_target(grey, some)
    found = attribution.attribute("gradient", grey, some, label)
    yield from _grey(partial(_contest, grey, some, label, found, mask[:16]))


def attribution_target(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def _contest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    maps: Tensor,
    mask: Tensor,
    spec: Any,
    theirs: Any,
    compare: Compare = same,
    *,
    read: Callable[[list[Any]], Tensor] | None = None,
    reread: Callable[[Any], Any] = np.asarray,
    n: int | None = None,
    flat: bool = False,
    softmax: bool = False,
    note: str = "",
    peer: str = "",
) -> Contest:
    """theirs: a metric of Quantus, or what to call instead.

    read, reread: from measurements, and from what the peer returns, to what is compared.
    flat: the peer gets maps whose channels have been summed. softmax: and probabilities.
    """
    n = n or len(x)
    name = spec if isinstance(spec, str) else spec["name"]
    read = read or headline

    def ours() -> Tensor:
        found = evaluation.score(
            spec, maps[:n], x[:n], y=y[:n], model=model, target=y[:n], method="gradient",
            mask=mask[:n], prediction=y[:n],
        )  # fmt: skip
        return read(found)

    given = maps[:n].sum(1, keepdim=True) if flat else maps[:n]
    arrays = [part.cpu().numpy() for part in (x[:n], y[:n], given, mask[:n, None])]

    def by_quantus() -> Any:
        inputs, labels, found, masks = arrays
        return theirs(
            model=model, x_batch=inputs, y_batch=labels, a_batch=found.copy(), s_batch=masks,
            explain_func=gradient, device=str(x.device), softmax=softmax, batch_size=64,
        )  # fmt: skip

    quantus_metric = isinstance(theirs, quantus.Metric)
    run = by_quantus if quantus_metric else theirs
    label = peer or f"Quantus {type(theirs).__name__}"
    return Contest(name, label, ours, lambda: reread(run()), n, compare, note, model)


def headline(found: list[Any]) -> Tensor:
    return next(m for m in found if m.headline).samples


def facet(**wanted: Any) -> Callable[[list[Any]], Tensor]:
    def read(found: list[Any]) -> Tensor:
        return next(m for m in found if m.facets == wanted).samples

    return read


Make = Callable[..., Contest]


def _of_maps(make: Make) -> Iterator[Contest]:
    weight: dict[str, Any] = {**PLAIN, "abs": True}
    top = 100
    for spec, theirs in (
        ("entropy", quantus.Complexity(**weight)),
        ("sparseness", quantus.Sparseness(**weight)),
        ({"name": "relevance_mass", "view": "abs"}, quantus.RelevanceMassAccuracy(**weight)),
        ({"name": "attribution_localisation", "view": "abs", "weighted": False},
         quantus.AttributionLocalisation(**weight)),
        ("relevance_rank", quantus.RelevanceRankAccuracy(**PLAIN)),
        ("relevance_auc", quantus.AUC(**PLAIN)),
        ({"name": "top_k_intersection", "k": top}, quantus.TopKIntersection(k=top, **PLAIN)),
        ("pointing_game", quantus.PointingGame(**PLAIN)),
    ):  # fmt: skip
        yield make(spec, theirs, flat=True)
    scaled = quantus.EffectiveComplexity(**{**weight, "normalise": True})
    note = "theirs: scale of the whole batch"
    yield make("effective_complexity", scaled, means, flat=True, note=note)
    alike = quantus.Consistency(discretise_func=top_n_sign, **PLAIN)
    yield make("consistency", alike, nothing, note="ours gets the predictions")
    length = quantus.Sufficiency(**PLAIN)
    yield make("sufficiency", length, nothing, note="other distance; ours gets the predictions")


def _faithfulness(
    make: Make, model: nn.Module, x: Tensor, y: Tensor, maps: Tensor
) -> Iterator[Contest]:
    with torch.no_grad():
        whole = model(x).gather(1, y[:, None]).double().cpu().numpy()
    step = maps[0].numel() // STEPS
    sorted_groups: dict[str, Any] = {"grouping": "sorted", "groups": STEPS, **EACH}

    def area(curve: Any) -> np.ndarray:
        """Theirs has no unperturbed point."""
        points = np.concatenate([whole, np.asarray(curve, dtype=float)], 1)
        return np.trapezoid(points, axis=1) / (points.shape[1] - 1)

    yield make(
        {"name": "pixel_flipping", "steps": STEPS, **EACH},
        quantus.PixelFlipping(features_in_step=step, **BLACK),
        reread=area,
    )
    patches = (x.shape[-1] // PATCH) ** 2
    yield make(
        {"name": "selectivity", "patch": PATCH, "steps": patches},
        quantus.Selectivity(patch_size=PATCH, **BLACK),
        reread=area,
    )
    regions = 20
    yield make(
        {"name": "region_perturbation", "patch": PATCH, "regions": regions, "output": "logit",
         "fill": "baseline"},
        quantus.RegionPerturbation(patch_size=PATCH, regions_evaluation=regions, **BLACK),
        reread=lambda falls: np.asarray(falls).sum(1) / (regions + 1),
    )  # fmt: skip
    yield make(
        {"name": "faithfulness_estimate", **sorted_groups},
        quantus.FaithfulnessEstimate(features_in_step=step, **BLACK),
    )
    yield make(
        {"name": "monotonicity_correlation", "fill": "baseline", "output": "logit",
         **sorted_groups},
        quantus.MonotonicityCorrelation(
            features_in_step=step, nr_samples=1, **{**BLACK, "abs": True}
        ),
    )  # fmt: skip
    yield make(
        {"name": "faithfulness_correlation", "draws": SUBSETS, **EACH},
        quantus.FaithfulnessCorrelation(
            nr_runs=SUBSETS, subset_size=round(0.2 * maps[0].numel()), return_aggregate=False,
            **BLACK,
        ),
        means,
        note="random subsets",
    )  # fmt: skip
    yield make(
        {"name": "sensitivity_n", "sizes": (0.1, 0.2, 0.4, 0.8), "draws": STEPS // 4, **EACH},
        quantus.SensitivityN(features_in_step=step, return_aggregate=False, **BLACK),
        nothing,
        note="theirs correlates over samples, of the first batch",
    )
    yield make(
        {"name": "monotonicity", "steps": STEPS, "output": "logit", **EACH},
        quantus.Monotonicity(features_in_step=step, **BLACK),
        means,
        note="theirs puts back the baseline: always 1",
    )
    yield make(
        {"name": "infidelity", "perturbation": "square", "size": PATCH, "draws": patches},
        quantus.Infidelity(perturb_patch_sizes=[PATCH], n_perturb_samples=1, **BLACK),
        nothing,
        note="theirs accumulates its patches",
    )

    def shaken(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(inputs)
        return noise, inputs - noise

    yield make(
        {"name": "infidelity", "perturbation": "gaussian", "noise": 0.1, "draws": SUBSETS},
        lambda: infidelity(model, shaken, x, maps, target=y, n_perturb_samples=SUBSETS),
        means,
        reread=lambda found: found,
        peer="captum infidelity",
        note="random noise",
    )


def _robustness(make: Make, model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Contest]:
    uniform: dict[str, Any] = {
        "nr_samples": DRAWS,
        "perturb_func": batch_uniform_noise,
        "perturb_func_kwargs": {"lower_bound": -RADIUS, "upper_bound": RADIUS},
        **PLAIN,
    }
    bounded: dict[str, Any] = {"nr_samples": DRAWS, "lower_bound": RADIUS, **PLAIN}
    drawn = "random noise"
    yield make("max_sensitivity", quantus.MaxSensitivity(**bounded), means, note=drawn)
    yield make("avg_sensitivity", quantus.AvgSensitivity(**bounded), means, note=drawn)
    yield make("local_lipschitz", quantus.LocalLipschitzEstimate(**uniform), means, note=drawn)
    relative: list[tuple[str, Any, dict[str, Any]]] = [
        ("relative_input_stability", quantus.RelativeInputStability, {}),
        ("relative_output_stability", quantus.RelativeOutputStability, {}),
        ("relative_representation_stability", quantus.RelativeRepresentationStability,
         {"layer_names": ["12"]}),
    ]  # fmt: skip
    for name, kind, given in relative:
        yield make(name, kind(**uniform, **given), means, note=drawn)
    yield make(
        "max_sensitivity",
        lambda: sensitivity_max(
            captum.Saliency(model).attribute, x, perturb_radius=RADIUS, n_perturb_samples=DRAWS,
            target=y, abs=False,
        ),
        means,
        reread=lambda found: found,
        peer="captum sensitivity_max",
        note=drawn,
    )  # fmt: skip
    yield make(
        {"name": "continuity", "steps": 8},
        quantus.Continuity(nr_steps=8, **BLACK),
        nothing,
        note="other shifts",
    )
    yield make(
        "input_invariance",
        quantus.InputInvariance(**PLAIN),
        means,
        read=facet(quantity="invariant"),
        note="theirs leaves the first input as it was",
    )
    yield make(
        "completeness",
        quantus.Completeness(**BLACK),
        means,
        read=facet(quantity="complete"),
        note="theirs asks for equality of floats",
    )


def _randomisation(make: Make) -> Iterator[Contest]:
    likeness: dict[str, Any] = {"similarity_func": correlation_spearman, **PLAIN}
    yield make(
        {"name": "parameter_randomisation", **EACH},
        quantus.MPRT(return_average_correlation=True, **likeness),
        means,
        note="theirs averages the trained network in",
    )
    efficient = quantus.EfficientMPRT(**PLAIN)
    note = "other random weights"
    yield make("efficient_parameter_randomisation", efficient, means, softmax=True, note=note)
    yield make(
        {"name": "smooth_parameter_randomisation", "samples": DRAWS, **EACH},
        quantus.SmoothMPRT(nr_samples=DRAWS, return_average_correlation=True, **likeness),
        nothing,
        note="theirs ignores the method it is given",
        flat=True,
        n=16,
    )
    yield make(
        {"name": "random_logit", **EACH},
        quantus.RandomLogit(num_classes=10, **likeness),
        means,
        note="random classes",
    )


def _grey(make: Make) -> Iterator[Contest]:
    """What Quantus can do with one channel only, or one pixel at a time."""

    def at_each(found: list[Any]) -> Tensor:
        return torch.stack([m.samples.mean() for m in found if m.facets["percent"] != "mean"])

    yield make(
        {"name": "road_morf", "percents": tuple(PERCENTS), "sigma": 0.0},
        quantus.ROAD(percentages=PERCENTS, noise=0.0, **PLAIN),
        read=at_each,
        reread=lambda found: list(found.values()),
        note="grey, no noise",
    )
    yield make("irof", quantus.IROF(return_aggregate=False, **PLAIN), nothing, note="grey")
    yield make(
        {"name": "non_sensitivity", "fill": "baseline"},
        quantus.NonSensitivity(**{**BLACK, "abs": True}),
        means,
        reread=lambda count: np.asarray(count) / 1024,
        note="grey, other tolerances",
        n=2,
    )
