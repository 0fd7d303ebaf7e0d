"""Scores that run the model: closed forms on linear networks, exact passes, batches of any size."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from experiments.evaluation import evaluate
from experiments.scoring import resolve

SHAPES = {"tabular": (6,), "series": (2, 5), "image": (3, 4, 5)}


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def linear(shape: tuple[int, ...], bias: bool = True) -> nn.Module:
    size = torch.Size(shape).numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 3, bias=bias))
    with torch.no_grad():
        model[1].weight.copy_(rand(3, size, seed=5) - 0.5)
    return model


def network(padding: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=padding), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


def run(model, x, methods, scores, **more):
    y = torch.arange(len(x)) % 3
    return evaluate(model, x, y, methods=methods, scores=scores, **more)


def values(found, method: int = 0, score: int = 0, **facets) -> list[float]:
    for m in found.measurements[method][score]:
        if m.headline if not facets else facets.items() <= m.facets.items():
            return m.samples.tolist()
    raise AssertionError


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_integrated_gradients_of_a_linear_model_are_complete(shape):
    x, base = rand(7, *shape), 0.3 * torch.ones(shape)
    model = linear(shape)
    scores = ["completeness", {"name": "completeness", "relative_to": "nothing"}]
    methods = ["integrated_gradients", "random"]
    found = run(model, x, methods, scores, baseline=base)
    assert values(found) == pytest.approx([0] * 7, abs=1e-5)
    assert values(found, quantity="complete") == [1] * 7
    y = torch.arange(7) % 3
    change = (model(x) - model(base[None])).detach().gather(1, y[:, None])[:, 0]
    gap = (found.maps[1].flatten(1).sum(1) - change).abs()
    assert values(found, 1, 1) == pytest.approx(gap.tolist(), abs=1e-5)
    # Nothing to explain and nothing said is complete; a map of zeros is otherwise all wrong.
    zeros = {0: torch.zeros_like(x)}
    still = run(model, base.expand_as(x), ["random"], scores, baseline=base, known=zeros)
    assert values(still) == [0] * 7
    assert values(run(model, x, ["random"], scores, baseline=base, known=zeros)) == [1] * 7
    change_only = {"name": "completeness", "relative_to": "change"}
    assert values(run(model, x, ["random"], [change_only], baseline=base, known=zeros)) == [1] * 7


def test_completeness_of_weighted_outputs_costs_one_pass():
    model, x, weights = linear((6,)), rand(7, 6), rand(7, 3, seed=1)
    exact = x * (weights @ model[1].weight)
    found = run(model, x, ["random"], ["completeness"], target=weights, known={0: exact.detach()})
    assert values(found) == pytest.approx([0] * 7, abs=1e-5)
    assert (found.count.rows, found.count.backwards) == (7 + 1, 0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("fill", ["uniform", "baseline"])
def test_what_has_no_weight_has_no_effect(shape, fill):
    model, x = linear(shape), rand(6, *shape)
    weight = model[1].weight.detach().view(3, *shape)
    weight[..., 1:3] = 0
    y = torch.arange(6) % 3
    score = {"name": "non_sensitivity", "fill": fill}
    exact = x * weight[y]
    found = run(model, x, ["random"], [score], known={0: exact})
    assert values(found) == [0] * 6
    inverse = (exact == 0).double()
    assert values(run(model, x, ["random"], [score], known={0: inverse})) == [1] * 6
    places = torch.Size(shape if len(shape) == 1 else shape[1:]).numel()
    assert found.count.rows == 6 * (places + 1) == 6 * resolve(score).passes(shape)[0]


def test_non_sensitivity_of_patches_and_draws_is_shared_by_methods():
    model, x = linear((3, 4, 5)), rand(6, 3, 4, 5)
    model[1].weight.detach().view(3, 3, 4, 5)[..., 4] = 0  # the last column, a patch by itself
    score = {"name": "non_sensitivity", "patch": 2, "draws": 3}
    methods = ["input_x_gradient", "constant", "random"]
    found = run(model, x, methods, [score])
    assert resolve(score).passes((3, 4, 5)) == (3 * 6 + 1, 0)
    assert found.count.rows == 6 * (3 * 6 + 1)
    assert values(found, 0) == [0] * 6
    assert values(found, 1) == pytest.approx([4 / 20] * 6)
    alone = run(model, x, methods, [score], batch_size=1)
    assert values(alone, 1) == pytest.approx(values(found, 1))


# --- input invariance ---


@pytest.mark.parametrize("padding", [0, 1])
def test_gradients_are_invariant_and_input_times_gradient_is_not(padding):
    x = rand(5, 2, 6, 6)
    kept, moved = {"name": "input_invariance"}, {"name": "input_invariance", "baseline": "shifted"}
    methods = ["gradient", "input_x_gradient", {"name": "integrated_gradients", "steps": 200}]
    model = network(padding)
    found = run(model, x, methods, [kept, moved])
    for score in (0, 1):
        assert values(found, 0, score) == pytest.approx([0] * 5, abs=1e-4)
        assert values(found, 0, score, quantity="invariant") == [1] * 5
        assert min(values(found, 1, score)) > 0.05
    assert min(values(found, 2, 0)) > 0.05
    assert max(values(found, 2, 1)) < 0.02  # a kink costs the rule a little
    assert found.measurements[2][0][1].facets == {"quantity": "invariant"}
    assert model[0].padding == (padding, padding)
    assert values(run(model, x, methods, [kept], batch_size=2), 1) == pytest.approx(
        values(found, 1), abs=1e-5
    )


def test_random_maps_stay_the_same_where_only_the_model_is_another():
    found = run(linear((6,)), rand(5, 6), ["random", "constant"], ["input_invariance"])
    assert values(found, 0) == values(found, 1) == [0] * 5


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.ReLU(), nn.Linear(6, 3)), "does not see the input as it is"),
        (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)), "first layer is a LayerNorm"),
        (nn.Softmax(1), "no layer with weights"),
    ],
)
def test_models_without_a_bias_to_compensate_are_refused(model, says):
    with pytest.raises(ValueError, match=says):
        run(model, rand(5, 6) - 0.5, ["constant"], ["input_invariance"])


# --- representations and objects ---


@pytest.mark.parametrize("squared", [True, False])
def test_representation_shift_of_a_linear_model(squared):
    model, x = linear((6,), bias=False), rand(5, 6) + 0.1
    maps = rand(5, 6, seed=3)
    score = {"name": "representation_shift", "percents": [0, 34, 100], "squared": squared}
    found = run(model, x, ["random"], [score], known={0: maps})
    removed = x * torch.zeros_like(x).scatter(1, maps.topk(2).indices, 1.0)
    shift = (removed @ model[1].weight.T).square().sum(1), model(x).square().sum(1)
    shift = [s.detach() if squared else s.detach().sqrt() for s in shift]
    for percent, expected in ((0.0, 0 * shift[0]), (34.0, shift[0]), (100.0, shift[1])):
        assert values(found, percent=percent) == pytest.approx(expected.tolist(), abs=1e-5)
    assert values(found) == pytest.approx((sum(shift) / 3).tolist(), abs=1e-5)
    assert found.count.rows == 5 + 5 + 1


def halves(n: int, shape: tuple[int, ...]) -> torch.Tensor:
    spatial = shape if len(shape) == 1 else shape[1:]
    masks = torch.zeros(n, 3, *spatial, dtype=torch.bool)
    masks[:, 0, ..., :2], masks[:, 1, ..., 2:3], masks[:, 2, ..., 3:4] = True, True, True
    return masks


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapley_values_of_objects_for_a_linear_model(shape):
    model, x = linear(shape), rand(6, *shape)
    masks = halves(6, shape)
    masks[5, 1:] = False
    exact = x * model[1].weight.detach().view(3, *shape)[torch.arange(6) % 3]
    scores = ["object_shapley_agreement", {"name": "object_shapley_agreement", "kind": "cosine"}]
    known = {0: exact, 1: -exact}
    found = run(model, x, ["random", "constant"], scores, regions={"relevant": masks}, known=known)
    for score, alone in ((0, [float("nan")]), (1, [1.0])):
        assert values(found, 0, score) == pytest.approx([1] * 5 + alone, abs=1e-5, nan_ok=True)
    assert values(found, 1, 0)[:5] == pytest.approx([-1] * 5, abs=1e-5)
    assert found.count.rows == 6 * 2**3  # once, for both methods and both scores


def test_shapley_values_of_objects_for_a_network_are_the_mean_over_orders():
    model, x, masks = network().double(), rand(4, 2, 6, 6).double(), halves(4, (2, 6, 6))
    y = torch.arange(4) % 3

    def worth(players: tuple[int, ...]) -> torch.Tensor:
        gone = [p for p in range(3) if p not in players]
        inputs = x * ~masks[:, gone].any(1, keepdim=True)
        return model(inputs).gather(1, y[:, None])[:, 0].detach()

    value = torch.zeros(4, 3).double()
    for order in itertools.permutations(range(3)):
        for place, player in enumerate(order):
            value[:, player] += (worth(order[: place + 1]) - worth(order[:place])) / 6
    maps = torch.zeros_like(x)
    for player in range(3):
        share = value[:, player] / masks[:, player].flatten(1).sum(1)
        maps[:, 0] += share.view(-1, 1, 1) * masks[:, player]
    found = run(
        model, x, ["random"], ["object_shapley_agreement"], regions={"relevant": masks},
        known={0: maps}, batch_size=3,
    )  # fmt: skip
    assert values(found) == pytest.approx([1] * 4, abs=1e-5)


def test_objects_have_to_be_known_and_few():
    model, x = linear((6,)), rand(2, 6)
    score = {"name": "object_shapley_agreement", "region": "other"}
    with pytest.raises(ValueError, match="there are none of role 'other'"):
        run(model, x, ["constant"], [score], regions={"relevant": halves(2, (6,))})
    many = torch.ones(2, 13, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match="too much for 13 objects"):
        run(model, x, ["constant"], ["object_shapley_agreement"], regions={"relevant": many})
