"""Quantus' values on the same maps, where they are right, and what is right where they are not."""

from __future__ import annotations

import warnings

import captum.metrics
import numpy as np
import pytest
import torch
from torch import nn

from experiments import attribution, evaluation, passes
from experiments.attribution.driver import batches
from experiments.randomness import SampleGenerators
from experiments.scoring.perturbed import Draws, perturbed

N, SIDE, RADIUS, DRAWS = 6, 8, 0.2, 4
PLAIN = {"abs": False, "normalise": False, "disable_warnings": True}
WEIGHT = {**PLAIN, "abs": True}
BLACK = {"perturb_baseline": 0.0, **PLAIN}
EACH = {"channels": "none"}  # Quantus removes the channels of a pixel one by one
ELEMENTS = 3 * SIDE**2
STEPS = 12
SORTED = {"grouping": "sorted", "groups": STEPS, **EACH}
SHARES = tuple(100 * step / STEPS for step in range(1, STEPS + 1))


@pytest.fixture(scope="module")
def quantus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("quantus")


class Setting:
    """A network of two classes, samples, their gradient maps, and a mask."""

    def __init__(self, channels: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            layers = [
                nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.Tanh(),
                nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 2),
            ]  # fmt: skip
            self.model = nn.Sequential(*layers).eval()
        self.x = SampleGenerators(0, range(N), "images").normal(channels, SIDE, SIDE).float()
        with torch.no_grad():  # both classes are predicted
            layers[-1].bias -= self.model(self.x).mean(0)
        self.y = passes.outputs(self.model, self.x).argmax(1)
        self.maps = attribution.attribute("gradient", self.model, self.x, self.y)
        self.mask = torch.zeros(N, SIDE, SIDE, dtype=torch.bool)
        self.mask[:, 2:5, 3:7] = True

    def explain(self, model, inputs, targets, **_):
        inputs, targets = torch.as_tensor(inputs).float(), torch.as_tensor(targets)
        return attribution.attribute("gradient", model, inputs, targets).numpy()

    def theirs(self, metric, maps=None, **given):
        maps = self.maps if maps is None else maps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = metric(
                model=self.model, x_batch=self.x.numpy(), y_batch=self.y.numpy(),
                a_batch=maps.numpy().copy(), s_batch=self.mask[:, None].numpy(), device="cpu",
                **{"softmax": False, "explain_func": self.explain, **given},
            )  # fmt: skip
        return np.asarray(list(found.values()) if isinstance(found, dict) else found, dtype=float)

    def ours(self, spec, maps=None, method="gradient", **known):
        return evaluation.score(
            spec, self.maps if maps is None else maps, self.x, y=self.y, model=self.model,
            target=self.y, method=method, mask=self.mask, **known,
        )  # fmt: skip


@pytest.fixture(scope="module")
def color():
    return Setting(3)


@pytest.fixture(scope="module")
def grey():
    return Setting(1)


def headline(found):
    """[N]: what stands for the score."""
    return next(m for m in found if m.headline).samples.double().numpy()


def columns(found, facet="percent"):
    """[N, S]: the points of a curve."""
    points = [m.samples.double() for m in found if m.facets[facet] != "mean"]
    return torch.stack(points, 1).numpy()


def agree(ours, theirs, **tolerance):
    np.testing.assert_allclose(ours, theirs, **{"rtol": 2e-5, "atol": 1e-6, **tolerance})


# --- scores of maps alone ---

OF_MAPS = {
    "Complexity": ("entropy", WEIGHT),
    "Sparseness": ("sparseness", WEIGHT),
    "RelevanceMassAccuracy": ({"name": "relevance_mass", "view": "abs"}, WEIGHT),
    "RelevanceRankAccuracy": ("relevance_rank", PLAIN),
    "AUC": ("relevance_auc", PLAIN),
    "TopKIntersection": ({"name": "top_k_intersection", "k": 9}, {**PLAIN, "k": 9}),
    "PointingGame": ("pointing_game", PLAIN),
    "AttributionLocalisation": (
        {"name": "attribution_localisation", "view": "abs", "weighted": False}, WEIGHT,
    ),
    "EffectiveComplexity": (
        {"name": "effective_complexity", "epsilon": 0.3}, {**WEIGHT, "eps": 0.3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_MAPS)
def test_maps_have_the_same_score(quantus, color, name):
    spec, given = OF_MAPS[name]
    maps = color.maps.sum(1, keepdim=True)
    maps = maps / maps.abs().amax((1, 2, 3), keepdim=True)  # Quantus scales by the whole batch
    # It adds 1e-7 to each weight of sparseness, and 1e-12 to the shares of complexity.
    agree(headline(color.ours(spec, maps)), color.theirs(getattr(quantus, name)(**given), maps))


def test_equal_explanations_of_equal_classes_are_as_frequent(quantus, color):
    maps = color.maps[[0, 0, 1, 1, 1, 2]]
    signs = quantus.Consistency(discretise_func=lambda a: hash(np.sign(a).tobytes()), **PLAIN)
    ours = headline(color.ours({"name": "consistency", "by": "signs"}, maps, prediction=color.y))
    assert np.isnan(ours).tolist() == [False] * 5 + [True]  # theirs calls an only one 0
    agree(np.nan_to_num(ours), color.theirs(signs, maps))


# --- faithfulness ---


def test_removal_has_the_same_curve(quantus, color):
    flipping = quantus.PixelFlipping(features_in_step=ELEMENTS // STEPS, **BLACK)
    curve = {"name": "morf_curve", "percents": SHARES, **EACH}
    for output, softmax in (("logit", False), ("probability", True)):
        ours = columns(color.ours({**curve, "output": output}))
        agree(ours, color.theirs(flipping, softmax=softmax))
    least = columns(color.ours({**curve, "name": "lerf_curve", "output": "logit"}))
    agree(least, color.theirs(flipping, -color.maps))


def test_patches_have_the_same_curves(quantus, color):
    size, patches = 2, 16
    shares = tuple(100 * patch / patches for patch in range(1, patches + 1))
    curve = {"name": "morf_curve", "percents": shares, "patch": size, "output": "logit"}
    ours = columns(color.ours(curve))
    agree(ours, color.theirs(quantus.Selectivity(patch_size=size, **BLACK)))
    few = {"patch_size": size, "regions_evaluation": 5}
    falls = color.theirs(quantus.RegionPerturbation(**few, **BLACK))
    regions = {"name": "region_perturbation", "patch": size, "regions": 5, "fill": "baseline"}
    # Samek et al. divide by L + 1 points; the first falls by nothing.
    agree(headline(color.ours({**regions, "output": "logit"})), falls.sum(1) / 6)
    backwards = quantus.RegionPerturbation(order="lerf", **few, **BLACK)
    least = columns(color.ours({**curve, "name": "lerf_curve", "percents": shares[:5]}))
    whole = passes.selected(passes.outputs(color.model, color.x), color.y)[:, None].numpy()
    agree(least, whole - color.theirs(backwards))


def test_groups_have_the_same_correlations(quantus, color):
    step = ELEMENTS // STEPS
    estimate = quantus.FaithfulnessEstimate(features_in_step=step, **BLACK)
    ours = headline(color.ours({"name": "faithfulness_estimate", **SORTED}))
    agree(ours, color.theirs(estimate))
    given = {"features_in_step": step, "nr_samples": 1, **BLACK, "abs": True}
    ranked = quantus.MonotonicityCorrelation(**given)
    fixed = {"name": "monotonicity_correlation", "fill": "baseline", **SORTED}
    agree(headline(color.ours(fixed)), color.theirs(ranked, softmax=True))


def test_road_without_noise_is_the_same_for_one_batch_of_one_channel(quantus, grey):
    # Labels of which half are wrong, so that the accuracies tell maps apart.
    other = Setting(1)
    other.y = other.y.clone()
    other.y[::2] = 1 - other.y[::2]
    percents = [10.0, 30.0, 50.0, 70.0, 90.0]
    road = {"name": "road_morf", "percents": tuple(percents), "sigma": 0.0}
    for maps in (grey.maps, -grey.maps, grey.x):
        theirs = other.theirs(quantus.ROAD(percentages=percents, noise=0.0, **PLAIN), maps)
        agree(columns(other.ours(road, maps)).mean(0), theirs)


def test_no_influence_is_found_in_the_same_places(quantus):
    linear = Setting(1)
    weight = torch.linspace(-2, 2, 2 * SIDE**2).view(2, -1)
    weight[:, 10:30] = 0
    linear.model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2)).eval()
    with torch.no_grad():
        linear.model[1].weight.copy_(weight)
    maps = linear.x * weight[linear.y].view(N, 1, SIDE, SIDE)
    maps[:, :, 5] = 0
    maps[:, :, 2] = 1
    counts = linear.theirs(quantus.NonSensitivity(**{**BLACK, "abs": True}), maps)
    ours = headline(linear.ours({"name": "non_sensitivity", "fill": "baseline"}, maps))
    assert (counts > 0).all()
    agree(ours, counts / SIDE**2)


@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_is_that_of_captum_for_the_same_noise(color, normalize):
    spec = {"name": "infidelity", "perturbation": "gaussian", "draws": DRAWS}
    seen = []
    handle = color.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    ours = headline(color.ours({**spec, "normalize": normalize}))
    handle.remove()
    rows = torch.cat([rows for rows in seen if len(rows) > 1])[-N * DRAWS :]
    shaken = rows.view(DRAWS, N, *color.x.shape[1:]).transpose(0, 1).flatten(0, 1)
    theirs = captum.metrics.infidelity(
        color.model, lambda x: (x - shaken, shaken), color.x, color.maps, target=color.y,
        n_perturb_samples=DRAWS, normalize=normalize,
    )  # fmt: skip
    agree(ours, theirs.detach().numpy(), rtol=1e-3)


# --- robustness, with our draws ---

NEAR = {
    "MaxSensitivity": ("max_sensitivity", {}),
    "AvgSensitivity": ("avg_sensitivity", {}),
    "LocalLipschitzEstimate": ("local_lipschitz", {}),
    "RelativeInputStability": ("relative_input_stability", {}),
    "RelativeOutputStability": ("relative_output_stability", {}),
    "RelativeRepresentationStability": (
        {"name": "relative_representation_stability", "layer": "3"}, {"layer_names": ["3"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_the_same_draws_give_the_same_robustness(quantus, color, name):
    spec, given = NEAR[name]
    spec = spec if isinstance(spec, dict) else {"name": spec}
    (batch,) = (batch for _, batch in batches(color.model, color.x, color.y))
    draws = perturbed(batch, Draws("uniform", RADIUS, "input", DRAWS))
    near = iter([draw.x.flatten(1).numpy() for draw in draws])
    metric = getattr(quantus, name)(
        nr_samples=DRAWS, perturb_func=lambda **_: next(near), **given, **PLAIN
    )
    ours = headline(color.ours({**spec, "radius": RADIUS, "samples": DRAWS}))
    theirs = color.theirs(metric)
    # Quantus leaves a sample undefined if any draw changes the class, we leave out the draw.
    same = ~np.isnan(theirs)
    assert same.sum() > N // 2
    agree(ours[same], theirs[same], rtol=1e-4)


# --- randomisation ---


def test_the_map_of_the_only_other_class_is_as_similar(quantus, color):
    spearman = quantus.similarity_func.correlation_spearman
    logit = quantus.RandomLogit(num_classes=2, similarity_func=spearman, **PLAIN)
    agree(headline(color.ours({"name": "random_logit", **EACH})), color.theirs(logit))


# --- where Quantus is wrong, and no other test says what is right ---


def test_continuity_is_undefined_where_the_class_changes(color):
    # Quantus asks for np.NaN, which numpy no longer has.
    shifts = {"name": "continuity", "steps": 3, "shift": 2}
    every = headline(color.ours(shifts))
    kept = headline(color.ours({**shifts, "same_class_only": True}))
    outputs = []
    for shift in (2, 4, 6):
        moved = nn.functional.pad(color.x, (shift, 0))[..., :SIDE]
        outputs.append(passes.outputs(color.model, moved).argmax(1))
    changed = torch.stack(outputs) != color.y
    assert 0 < changed.sum() < changed.numel()
    assert np.isnan(kept).tolist() == changed.all(0).tolist()
    unchanged = ~changed.any(0).numpy()
    agree(kept[unchanged], every[unchanged])


def test_a_probability_next_to_nothing_has_its_rank_correlation(color):
    # Quantus fails with a ValueError if only some of the outputs are below its eps.
    spec = {"name": "monotonicity_correlation", "fill": "baseline", **SORTED}
    whole = headline(color.ours(spec))
    highest = passes.outputs(color.model, color.x).softmax(1).amax(1)
    least = float(highest.sort().values[N // 2 : N // 2 + 2].mean())
    ours = headline(color.ours({**spec, "least": least}))
    assert np.isfinite(ours).all()
    agree(ours, whole)  # dividing all of a sample's numbers by one changes no rank


def test_the_mean_that_fills_is_that_of_the_whole_sample_and_of_each_channel(color):
    # Quantus takes the mean of what is left, again at each step, one number for all channels.
    shares = (25.0, 50.0, 100.0)
    curve = {"name": "morf_curve", "percents": shares, "fill": "mean", "output": "logit"}
    order = color.maps.sum(1).flatten(1).argsort(1, descending=True).argsort(1)
    mean = color.x.mean((2, 3), keepdim=True)
    for percent, found in zip(shares, columns(color.ours(curve)).T, strict=True):
        gone = (order < percent / 100 * SIDE**2).view(N, 1, SIDE, SIDE)
        outputs = passes.outputs(color.model, torch.where(gone, mean, color.x))
        agree(found, passes.selected(outputs, color.y).numpy())


def test_steps_are_pixels_and_need_not_divide_them(color):
    # Quantus wants a step to divide 64 pixels, and then removes single channels of them.
    (batch,) = (batch for _, batch in batches(color.model, color.x, color.y))
    seen = []
    handle = batch.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    found = headline(color.ours({"name": "pixel_flipping", "steps": 7}))
    handle.remove()
    assert np.isfinite(found).all()
    inner = torch.cat([rows for rows in seen if len(rows) > 1])[-N * 6 :]
    gone = (inner == 0).view(6, N, 3, -1)
    assert gone.any(2).equal(gone.all(2))
    assert gone[:, :, 0].sum(2).tolist() == [[64 * step // 7] * N for step in range(1, 7)]


def test_what_is_drawn_leaves_global_generators_alone(color):
    # Quantus seeds numpy's in RandomLogit, torch's in MPRT.
    before = torch.get_rng_state(), np.random.get_state()[1]
    for name in ("random_logit", "parameter_randomisation", "faithfulness_correlation"):
        first = headline(color.ours(name))
        assert np.array_equal(first, headline(color.ours(name)), equal_nan=True)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_sensitivity_n_is_of_each_sample_whatever_its_batch(color):
    # Quantus correlates over the samples of its first batch, at each number of features.
    spec = {"name": "sensitivity_n", "sizes": (0.1, 0.5), "draws": 8}
    whole = headline(color.ours(spec))
    assert whole.shape == (N,)
    agree(headline(color.ours(spec, batch_size=2)), whole)
