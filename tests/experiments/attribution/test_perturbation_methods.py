"""Perturbation methods against closed forms, captum, shap and the integers of their passes."""

from __future__ import annotations

import itertools

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments import passes
from experiments.attribution import attribute, resolve
from experiments.attribution.batch import Batch
from experiments.attribution.driver import untouched
from experiments.attribution.features import feature_ids
from experiments.attribution.masks import random_masks
from experiments.attribution.perturbation import shared_generator
from experiments.attribution.shapley import coalitions, permutations

IMAGE, SERIES, TABLE = (2, 6, 8), (3, 7), (5,)
FEW = {"rise": {"samples": 20}, "lime": {"samples": 20}, "kernel_shap": {"samples": 12}}
FEW |= {name: {"steps": 4} for name in ("extremal_perturbation", "meaningful_perturbation")}
FEW |= {"iba": {"steps": 3, "copies": 2, "sigma": 0.5}, "shapley_sampling": {"permutations": 3}}
FEW |= {"feature_ablation": {}, "feature_permutation": {"draws": 2}, "occlusion": {}}


class Function(nn.Module):
    """A model of the outputs (f(x), 0)."""

    kind = "mlp"

    def __init__(self, f):
        super().__init__()
        self.f = f
        self.precision = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        y = self.f(x)
        return torch.stack([y, torch.zeros_like(y)], 1)


def network(shape, classes=3, seed=0):
    """A small nonlinear network for inputs of a shape, double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if len(shape) == 1:
            layers = [nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 4, 3, padding=1)]
        else:
            conv = nn.Conv1d if len(shape) == 2 else nn.Conv2d
            layers = [conv(shape[0], 4, 3, padding=1)]
        size = 4 * torch.Size(shape if len(shape) == 1 else shape[1:]).numel()
        head = nn.Linear(size, classes)
        return nn.Sequential(*layers, nn.Softplus(), nn.Flatten(), head).double().eval()


def inputs(shape, count=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 3, torch.randn(shape, generator=generator, dtype=torch.float64)


def batch_of(model, x, target, baseline):
    indices = range(len(x))
    return Batch(model, x, target, baseline=baseline, seed=0, indices=indices)


def explain(spec, model, x, target, baseline):
    """The map in the precision of the model."""
    with untouched(model):
        return batch_of(model, x, target, baseline).maps(spec)


# --- closed forms ---------------------------------------------------------------------------------


def two_layers(x):
    return torch.relu(x.sum(1, keepdim=True) + torch.tensor([-10.0, 1, 1, 1])).sum(1) - 1


CLOSED = {
    "affine": (lambda x: x @ torch.tensor([1.0, -2, 3]).double() + 0.7, [1.0, 1, 2]),
    "product": (lambda x: x.prod(1), [2.0, 3]),
    "maximum": (lambda x: x.amax(1), [2.0, 3]),
    "layers": (two_layers, [20.0, 50, 30]),
}
ABLATION = {"affine": [1.0, -2, 6], "product": [6.0, 6], "maximum": [0.0, 1]}
ABLATION["layers"] = [80.0, 200, 120]
SHAPLEY = {"affine": [1.0, -2, 6], "product": [3.0, 3], "maximum": [1.0, 2]}
SHAPLEY["layers"] = [80 - 10 / 3, 200 - 10 / 3, 120 - 10 / 3]


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("feature_ablation", ABLATION),
        ({"name": "occlusion", "window": 1}, ABLATION),
        ("shapley_exact", SHAPLEY),
        ("kernel_shap", SHAPLEY),
        ({"name": "shapley_sampling", "permutations": 4000}, SHAPLEY),
    ],
    ids=str,
)
def test_closed_forms(spec, expected, name):
    f, x = CLOSED[name]
    x = torch.tensor([x], dtype=torch.float64)
    maps = explain(spec, Function(f), x, torch.tensor([0]), torch.zeros_like(x[0]))
    sampled = isinstance(spec, dict) and name == "layers" and spec["name"] == "shapley_sampling"
    wanted = torch.tensor([expected[name]], dtype=torch.float64)
    # A player's 0 or 10 by chance 1/3: a standard error of 0.075 after 4000 orders.
    torch.testing.assert_close(maps, wanted, rtol=0, atol=0.3 if sampled else 1e-9)


def test_rise_of_a_linear_function_has_the_expectation_of_the_formula():
    """E[f(M x) M_j] / p = p f + (1 − p) w_j x_j for independent masks of probability p."""
    weight = torch.tensor([1.0, -2, 3, 0.5], dtype=torch.float64)
    x = torch.tensor([[1.0, 1, 2, -1], [0.0, 2, 1, 1]], dtype=torch.float64)
    model, target, zero = Function(lambda x: x @ weight), torch.tensor([0, 0]), torch.zeros(4)
    samples, keep = 20000, 0.3
    spec = {"name": "rise", "samples": samples, "keep": keep}
    maps = explain(spec, model, x, target, zero.double())
    share = weight * x
    expected = keep * share.sum(1, keepdim=True) + (1 - keep) * share
    # One draw of f M_j / p is at most |f| / p large; five standard errors.
    error = 5 * share.abs().sum(1).max() / keep / samples**0.5
    torch.testing.assert_close(maps, expected, rtol=0, atol=float(error))


# --- another library ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [TABLE, SERIES, IMAGE], ids=str)
@pytest.mark.parametrize("features", ["inputs", "pixels", "patches", "channels"])
def test_ablation_and_permutation_are_captums(shape, features):
    if features == "channels" and shape == TABLE:
        with pytest.raises(ValueError, match="have none; take 'inputs'"):
            feature_ids(shape, features)
        return
    model, (x, target, baseline) = network(shape), inputs(shape)
    ids = feature_ids(shape, features, 3)
    spec = {"features": features, "patch": 3}
    theirs = captum.attr.FeatureAblation(model).attribute(
        x, baseline[None], target=target, feature_mask=ids[None]
    )
    maps = explain({"name": "feature_ablation", **spec}, model, x, target, baseline)
    torch.testing.assert_close(maps, theirs.detach())

    background = inputs(shape, count=1, seed=5)[0]
    batch = batch_of(model, x, target, baseline)
    batch.background = background  # of one row, so that it is known which row is drawn
    maps = batch.maps({"name": "feature_permutation", "reference": "data", **spec})
    permuted = captum.attr.FeaturePermutation(
        model, lambda x, mask: torch.where(mask, background, x)
    )
    theirs = permuted.attribute(x, target=target, feature_mask=ids[None])
    torch.testing.assert_close(maps, theirs.detach())


@pytest.mark.parametrize(
    ("shape", "spec", "window", "strides"),
    [
        (TABLE, {"window": 2}, (2,), (1,)),
        (SERIES, {"window": 3, "stride": 2}, (3, 3), (3, 2)),
        (SERIES, {"window": 3, "stride": 3, "channels": "apart"}, (1, 3), (1, 3)),
        (IMAGE, {"window": 3, "stride": 2}, (2, 3, 3), (2, 2, 2)),
        (IMAGE, {"window": 2, "channels": "apart"}, (1, 2, 2), (1, 1, 1)),
    ],
)
def test_occlusion_is_captums(shape, spec, window, strides):
    model, (x, target, baseline) = network(shape), inputs(shape)
    theirs = captum.attr.Occlusion(model).attribute(
        x, window, strides=strides, baselines=baseline[None], target=target
    )
    maps = explain({"name": "occlusion", **spec}, model, x, target, baseline)
    torch.testing.assert_close(maps.float(), theirs.detach())  # captum's are single precision


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("regression", ["lasso", "ridge"])
def test_lime_is_captums_on_the_same_coalitions(regression, distance):
    from captum._utils.models.linear_model import SkLearnLasso, SkLearnRidge

    model, (x, target, baseline) = network(IMAGE), inputs(IMAGE, count=2)
    ids, samples, strength = feature_ids(IMAGE, "patches", 3), 40, 0.02
    batch = batch_of(model, x, target, baseline)
    count = int(ids.max()) + 1
    coins = shared_generator(batch, "coalitions/coin").uniform(samples, count)[0] < 0.5
    learner = (SkLearnLasso if regression == "lasso" else SkLearnRidge)(alpha=strength, tol=1e-6)
    similarity = captum.attr._core.lime.get_exp_kernel_similarity_function(distance, 2.0)
    for row in range(2):
        queue = iter(coins.long())
        theirs = captum.attr.Lime(
            model, learner, similarity, lambda x, q=queue, **_: next(q)[None]
        ).attribute(
            x[row : row + 1], baseline[None], target=target[row : row + 1],
            feature_mask=ids[None], n_samples=samples,
        )  # fmt: skip
        spec = {"name": "lime", "samples": samples, "features": "patches", "patch": 3}
        spec |= {"regression": regression, "strength": strength}
        maps = batch.maps(spec | {"distance": distance, "width": 2.0})[row]
        # captum trains on float32 copies.
        torch.testing.assert_close(maps, theirs[0].double(), rtol=1e-4, atol=1e-5)


def test_kernel_shap_of_drawn_coalitions_is_captums():
    """captum has a weight of 10⁶ where ours has an exact constraint."""
    from experiments.randomness import SampleGenerators

    class Drawn(captum.attr.KernelShap):
        def kernel_shap_perturb_generator(self, original_inp, **_):
            yield from drawn[row, :, None]

    model, (x, target, baseline) = network(TABLE), inputs(TABLE)
    spec = {"name": "kernel_shap", "samples": 24}
    maps = explain(spec, model, x, target, baseline)
    drawn = coalitions(5, 24, SampleGenerators(0, range(4), "attribution/kernel_shap"))
    for row in range(4):
        theirs = Drawn(model).attribute(
            x[row : row + 1], baseline[None], target=target[row : row + 1], n_samples=24
        )
        torch.testing.assert_close(maps[row], theirs[0].double(), rtol=1e-3, atol=1e-3)


def test_kernel_shap_of_all_coalitions_is_shaps_and_exact():
    import shap

    model, (x, target, baseline) = network(TABLE), inputs(TABLE)
    maps = explain({"name": "kernel_shap", "samples": 32}, model, x, target, baseline)
    exact = explain("shapley_exact", model, x, target, baseline)
    torch.testing.assert_close(maps, exact, rtol=0, atol=1e-10)

    def f(points):
        with torch.no_grad():
            return model(torch.as_tensor(points)).numpy()

    explainer = shap.KernelExplainer(f, baseline[None].numpy())
    theirs = explainer.shap_values(x.numpy(), nsamples=1000, l1_reg=False, silent=True)
    theirs = torch.as_tensor(theirs)[torch.arange(4), :, target]
    torch.testing.assert_close(maps, theirs, rtol=0, atol=1e-8)


def test_shapley_sampling_is_captums_on_the_same_orders():
    from experiments.randomness import SampleGenerators

    model, (x, target, baseline) = network(TABLE), inputs(TABLE)
    spec = {"name": "shapley_sampling", "permutations": 3}
    maps = explain(spec, model, x, target, baseline)
    draw = SampleGenerators(0, range(4), "attribution/shapley_sampling")
    places = permutations(5, 3, draw, antithetic=True)
    assert torch.equal(places[:, 1], 4 - places[:, 0])
    for row in range(4):
        sampler = captum.attr.ShapleyValueSampling(model)
        orders = [order.argsort().tolist() for order in places[row]]
        sampler.permutation_generator = lambda *_, orders=orders: iter(orders)
        theirs = sampler.attribute(
            x[row : row + 1], baseline[None], target=target[row : row + 1], n_samples=3
        )
        torch.testing.assert_close(maps[row].float(), theirs[0].detach())


@pytest.mark.parametrize("size", [(6, 8), (7,)], ids=str)
def test_random_masks_are_those_of_an_image_library(size):
    """Enlarge the grid to s + 1 cells, then cut the window out (Petsiuk et al. 2018)."""
    generator = torch.Generator().manual_seed(0)
    grid = (torch.rand(5, *(3 for _ in size), generator=generator) < 0.5).double()
    shift = torch.rand(5, len(size), generator=generator).double()
    edges = [-(-side // 3) for side in size]
    mode = "bilinear" if len(size) == 2 else "linear"
    whole = F.interpolate(grid[:, None], tuple(4 * edge for edge in edges), mode=mode)[:, 0]
    for row, mask in enumerate(random_masks(grid, shift, size)):
        start = [int(s * edge) for s, edge in zip(shift[row], edges, strict=True)]
        window = tuple(slice(a, a + side) for a, side in zip(start, size, strict=True))
        torch.testing.assert_close(mask, whole[row][window])


# --- axioms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "kernel_shap", "samples": 3},
        {"name": "kernel_shap", "samples": 20},
        {"name": "kernel_shap", "samples": 20, "shared": True, "paired": True},
        {"name": "shapley_sampling", "permutations": 3},
        {"name": "shapley_sampling", "permutations": 2, "shared": True, "antithetic": False},
        {"name": "shapley_exact"},
    ],
    ids=str,
)
@pytest.mark.parametrize("features", ["patches", "channels"])
def test_shapley_estimates_are_efficient_and_linear_in_the_output(spec, features):
    """Values sum to f(x) − f(baseline), also of few coalitions, and those of a weighted sum of
    outputs are the weighted sum."""
    spec = {**spec, "features": features, "patch": 3}
    model, (x, _, baseline) = network(IMAGE), inputs(IMAGE)
    ids = feature_ids(IMAGE, features, 3)
    first = torch.stack([(ids == i).flatten().nonzero()[0, 0] for i in range(int(ids.max()) + 1)])
    with torch.no_grad():
        gain = model(x) - model(baseline[None])
    every = [
        explain(spec, model, x, torch.full((4,), k), baseline).flatten(1)[:, first]
        for k in range(3)
    ]
    for k in range(3):
        torch.testing.assert_close(every[k].sum(1), gain[:, k], rtol=0, atol=1e-9)
    weights = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed = explain(spec, model, x, weights, baseline).flatten(1)[:, first]
    expected = sum(weights[:, k, None] * every[k] for k in range(3))
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["shapley_exact", "kernel_shap", "shapley_sampling"])
def test_null_player_and_symmetry(name):
    """f = x₁ x₂ + x₁ x₃ + x₂ x₃ with x₁ = x₂; x₄ does nothing. All orders make sampling exact."""
    model = Function(lambda x: x[:, 0] * x[:, 1] + x[:, 0] * x[:, 2] + x[:, 1] * x[:, 2])
    x = torch.tensor([[2.0, 2, 5, 7]], dtype=torch.float64)
    spec = {"name": name, **({"permutations": 3000} if name == "shapley_sampling" else {})}
    maps = explain(spec, model, x, torch.tensor([0]), torch.zeros(4, dtype=torch.float64))[0]
    assert abs(float(maps[3])) < 1e-9
    # Pairs share their product: 2 + 5, 2 + 5, 5 + 5.
    torch.testing.assert_close(maps[:3], torch.tensor([7.0, 7, 10]).double(), rtol=0, atol=1e-9)


# --- the integers of the passes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "shape", "rows", "once", "again"),
    [
        # rows per sample, once per batch, and per sample for another target
        ({"name": "feature_ablation"}, TABLE, 5 + 1, 0, 0),
        ({"name": "feature_ablation", "features": "patches", "patch": 3}, IMAGE, 6 + 1, 0, 0),
        ({"name": "feature_ablation", "features": "pixels"}, SERIES, 7 + 1, 0, 0),
        ({"name": "feature_permutation", "draws": 3}, TABLE, 3 * 5 + 1, 0, 0),
        ({"name": "occlusion"}, TABLE, 3 + 1, 0, 0),
        ({"name": "occlusion", "window": 3, "stride": 2}, IMAGE, 3 * 4 + 1, 0, 0),
        ({"name": "rise", "samples": 20}, IMAGE, 20, 0, 0),
        ({"name": "lime", "samples": 20}, SERIES, 20, 0, 0),
        ({"name": "kernel_shap", "samples": 20}, TABLE, 19, 1, 0),
        ({"name": "kernel_shap", "samples": 999}, TABLE, 31, 1, 0),
        ({"name": "shapley_sampling", "permutations": 3}, TABLE, 3 * 4 + 1, 1, 0),
        ({"name": "shapley_exact"}, TABLE, 32, -3, 0),  # the baseline is the same four times
        ({"name": "extremal_perturbation", "steps": 4}, IMAGE, 4 + 2, 0, 4),
        (
            {"name": "meaningful_perturbation", "steps": 4, "reference": "given"},
            SERIES, 4 + 1, 1, 4,
        ),
        # Only the head runs again.
        ({"name": "iba", "steps": 4, "copies": 3, "draws": 2}, IMAGE, 1 + 2, 0, 0),
    ],
    ids=str,
)  # fmt: skip
def test_number_of_passes(spec, shape, rows, once, again):
    model, (x, target, baseline) = network(shape), inputs(shape)
    with untouched(model):
        batch = batch_of(model, x, target, baseline)
        with passes.counted(model) as count:
            batch.maps(spec)
        assert count.rows == 4 * rows + once
        steps = spec.get("steps", 0) * (spec["name"] != "iba")
        assert count.backwards == 4 * steps
        with passes.counted(model) as count:
            batch.at((target + 1) % 3).maps(spec)
        assert count.rows == 4 * again


def test_methods_share_the_outputs_of_the_inputs():
    model, (x, target, baseline) = network(TABLE), inputs(TABLE)
    specs = ["feature_ablation", "occlusion", "feature_permutation", "shapley_sampling"]
    with untouched(model), passes.counted(model) as count:
        batch = batch_of(model, x, target, baseline)
        for spec in specs:
            batch.maps(spec)
    assert count.rows == 4 * (1 + 5 + 3 + 5 + 10 * 4) + 1


# --- what holds of all ----------------------------------------------------------------------------

PAIRS = [(name, shape) for name, shape in itertools.product(FEW, (TABLE, SERIES, IMAGE))]


@pytest.mark.parametrize(("name", "shape"), PAIRS, ids=str)
def test_batch_size_company_and_kind_of_target_do_not_matter(name, shape):
    spec = {"name": name, **FEW[name]}
    model, (x, target, baseline) = network(shape), inputs(shape)
    arguments = {"baseline": baseline, "indices": [7, 3, 11, 5], "seed": 2}
    whole = attribute(spec, model, x, target, **arguments)
    assert whole.isfinite().all()
    assert not torch.allclose(whole[0], whole[1])
    single = attribute(spec, model, x, target, **arguments, batch_size=1)
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-6)
    weights = F.one_hot(target, 3).double()
    weighted = attribute(spec, model, x, weights, **arguments)
    torch.testing.assert_close(weighted, whole, rtol=1e-4, atol=1e-6)
    if name in ("rise", "extremal_perturbation", "meaningful_perturbation", "iba") and shape[1:]:
        assert torch.equal(whole, whole[:, :1].expand_as(whole))


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ({"name": "occlusion", "window": 7}, IMAGE, "window 7 is longer than the 6 inputs"),
        ({"name": "occlusion", "stride": 4}, IMAGE, "stride 4 is longer than window 3"),
        ({"name": "lime"}, (4097,), "4097 features are too many"),
        ({"name": "feature_permutation", "reference": "data"}, TABLE, "no background data"),
        ({"name": "iba", "statistics": "data"}, IMAGE, "no background data"),
        ({"name": "shapley_exact", "features": "pixels"}, IMAGE, r"48 inputs make 2\^48"),
    ],
)
def test_mistakes_get_one_clear_line(spec, shape, message):
    model, (x, target, baseline) = network(shape), inputs(shape)
    with pytest.raises(ValueError, match=message) as error:
        explain(spec, model, x, target, baseline)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(FEW))
def test_nothing_to_explain_is_a_finite_map(name):
    """x is the baseline, and f does not depend on it: zeros, where the map is of differences."""
    model = network(IMAGE)
    with torch.no_grad():
        model[-1].weight.zero_()
    x, target = torch.zeros(2, *IMAGE, dtype=torch.float64), torch.tensor([0, 1])
    maps = attribute({"name": name, **FEW[name]}, model, x, target)
    if name in ("rise", "extremal_perturbation", "meaningful_perturbation", "iba"):
        assert maps.isfinite().all()  # weights and masks
    else:
        torch.testing.assert_close(maps, torch.zeros_like(maps), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["feature_ablation", "kernel_shap", "shapley_sampling", "rise"])
def test_one_element_is_all_there_is(name):
    spec = {"name": name, **FEW[name]}
    x = torch.tensor([[3.0]], dtype=torch.float64)
    maps = explain(spec, Function(lambda x: x[:, 0]), x, torch.tensor([0]), torch.zeros(1).double())
    assert maps.item() == pytest.approx(3, rel=0.7 if name == "rise" else 1e-12)


# --- learned masks --------------------------------------------------------------------------------


class Detector(nn.Module):
    """The logit of class 1 is the number of places where a 3 × 3 cross of height 1 is seen."""

    kind = "cnn"

    def __init__(self, scale=1.0):
        super().__init__()
        self.conv, self.relu, self.scale = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), scale
        self.double()
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[0, 0] = torch.tensor([[-1.0, 1, -1], [1, 1, 1], [-1, 1, -1]])
            self.conv.bias.copy_(torch.tensor([-2.0, 0]))

    def forward(self, x):
        seen = self.relu(self.conv(x)).sum((2, 3))
        return self.scale * torch.stack([-seen[:, 0], seen[:, 0]], 1)


def crosses():
    """Images [3, 2, 12, 12] of noise with 4 crosses in one quarter, and where they are."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(3, 2, 12, 12, generator=generator, dtype=torch.float64)
    inside = torch.zeros(3, 12, 12, dtype=torch.bool)
    for row, (a, b) in enumerate([(0, 0), (6, 6), (0, 6)]):
        for i, j in itertools.product((1, 4), (1, 4)):
            x[row, 0, a + i, b + j - 1 : b + j + 2] += 1
            x[row, 0, a + i - 1 : a + i + 2, b + j] += 1
        inside[row, a : a + 6, b : b + 6] = True
    return x, inside


AREA = {"name": "extremal_perturbation", "area": 0.25, "cells": 12, "sigma": 0.5, "steps": 60}
SMALL = {"name": "meaningful_perturbation", "cells": 6, "steps": 60}
LEARNED = [
    {**AREA, "reference": "given"},
    {**AREA, "game": "delete"},
    {**SMALL, "reference": "given"},
    {**SMALL, "game": "preserve"},
    {"name": "iba", "layer": "conv", "beta": 1.0},
    {"name": "iba", "layer": "relu", "beta": 0.1, "objective": "output"},
]


@pytest.mark.parametrize("spec", LEARNED, ids=str)
def test_learned_masks_find_what_was_planted(spec):
    """At least 85 % of the mass lies in the quarter of the picture that has the crosses."""
    x, inside = crosses()
    maps = attribute(spec, Detector(0.3), x, torch.tensor([1, 1, 1]))[:, 0]
    share = (maps * inside).flatten(1).sum(1) / maps.flatten(1).sum(1)
    assert share.min() > 0.85
    if "area" in spec:
        torch.testing.assert_close(maps.mean((1, 2)), torch.full((3,), 0.25), rtol=0, atol=0.05)


@pytest.mark.parametrize("spec", [LEARNED[0], LEARNED[2], LEARNED[5]], ids=str)
def test_learned_masks_do_not_depend_on_the_scale_of_the_output(spec):
    x, _ = crosses()
    spec, target = {**spec, "steps": 5}, torch.tensor([1, 1, 1])
    maps = attribute(spec, Detector(), x, target)
    torch.testing.assert_close(
        attribute(spec, Detector(50.0), x, target), maps, rtol=1e-4, atol=1e-5
    )


def test_an_extremal_mask_of_an_output_that_does_not_care_is_flat():
    model = network(IMAGE)
    with torch.no_grad():
        model[-1].weight.zero_()
    x, target, baseline = inputs(IMAGE)
    spec = {"name": "extremal_perturbation", "area": 0.25, "steps": 60}
    maps = explain(spec, model, x, target, baseline)
    torch.testing.assert_close(maps, torch.full_like(maps, 0.25), rtol=0, atol=0.01)


def test_information_is_that_of_the_formula():
    """Without the model (β large) λ → 0 and nothing passes; at fixed λ the KL divergence is that
    of torch's own normal distributions."""
    from torch.distributions import Normal, kl_divergence

    from experiments.attribution.bottleneck import divergence

    generator = torch.Generator().manual_seed(0)
    share, r, mean, spread = torch.rand(4, 3, 5, generator=generator).double()
    found = divergence(share, r, mean, spread)
    noisy = Normal(share * r + (1 - share) * mean, (1 - share) * spread)
    torch.testing.assert_close(found, kl_divergence(noisy, Normal(mean, spread)))
    x, _ = crosses()
    spec = {"name": "iba", "layer": "relu", "beta": 1e6, "steps": 60}
    assert attribute(spec, Detector(), x, torch.tensor([1, 1, 1])).max() < 1e-3


def test_defaults_are_valid():
    for name in FEW:
        known, _ = resolve(name)
        resolve({"name": name, **known.defaults})
