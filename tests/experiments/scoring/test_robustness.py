from __future__ import annotations

import math
from dataclasses import replace

import captum.attr
import captum.metrics
import numpy as np
import pytest
import torch
from torch import nn

from experiments import passes
from experiments.attribution.batch import Batch
from experiments.scoring import (
    Context,
    consistency,  # noqa: F401
    continuity,  # noqa: F401
    resolve,
    robustness,  # noqa: F401
)
from experiments.scoring.consistency import agreement, discrete
from experiments.scoring.perturbed import Draws, hidden, perturbed

SIX = [
    "max_sensitivity",
    "avg_sensitivity",
    "local_lipschitz",
    "relative_input_stability",
    "relative_representation_stability",
    "relative_output_stability",
]
N, D, K = 12, 6, 3


class Quadratic(nn.Module):
    """Outputs ½ xᵀHx and its negative: the gradient of the first is Hx."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x):
        value = ((x @ self.matrix) * x).sum(1) / 2
        return torch.stack([value, -value], 1)


def network(seed=0, outputs=K):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, outputs))
    return model.double().eval().requires_grad_(False)


def samples(n=N, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(batch):
    return batch.gradient()


def setting(model, explain=gradient, x=None, target=None, rows=slice(None)):
    """Maps and context of a method, given as a function of a batch."""
    x = samples() if x is None else x
    target = model(x).argmax(1) if target is None else target
    indices = list(range(100, 100 + len(x)))[rows]
    x, target = x[rows], target[rows]
    batch = Batch(model, x, target, baseline=torch.zeros_like(x[0]), seed=3, indices=indices)
    context = Context(x, target, seed=3, indices=indices, batch=batch, explain=explain)
    return explain(batch), context


def score(spec, known):
    (found,) = resolve(spec).measure(*known)
    return found.samples.double()


# --- closed forms ---


@pytest.mark.parametrize("name", [*SIX, "continuity"])
def test_what_does_not_move_scores_zero(name):
    model = network()
    calm = [
        ({"name": name}, setting(model, lambda batch: torch.ones_like(batch.x))),
        ({"name": name}, setting(model, lambda batch: torch.zeros_like(batch.x))),
    ]
    if name != "continuity":
        calm.append(({"name": name, "radius": 0.0}, setting(model)))
        linear = nn.Sequential(nn.Linear(D, K)).double().requires_grad_(False)
        calm.append(({"name": name}, setting(linear)))
    for spec, known in calm:
        if "stability" in name:
            spec["same_class_only"] = False
        assert score(spec, known).equal(torch.zeros(N, dtype=torch.float64))


def test_on_a_quadratic_sensitivity_is_linear_in_the_radius_and_lipschitz_below_its_curvature():
    root = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = Quadratic(root @ root.T).requires_grad_(False)
    known = setting(model, target=torch.zeros(N, dtype=torch.long))
    greatest = torch.linalg.eigvalsh(model.matrix)[-1]
    lipschitz = score({"name": "local_lipschitz", "samples": 30}, known)
    assert (lipschitz <= greatest * (1 + 1e-6)).all()
    assert (lipschitz > greatest / 4).all()
    same = setting(Quadratic(2.5 * torch.eye(D).double()).requires_grad_(False))
    torch.testing.assert_close(
        score("local_lipschitz", same), torch.full((N,), 2.5).double(), rtol=1e-6, atol=0
    )
    for name in ("max_sensitivity", "avg_sensitivity"):
        small, large = (score({"name": name, "radius": r}, known) for r in (0.1, 0.4))
        torch.testing.assert_close(large, 4 * small, rtol=1e-5, atol=0)


def test_sensitivity_grows_with_the_radius_on_average_and_the_maximum_is_above_the_mean():
    known = setting(network())
    worst, mean = (
        [score({"name": name, "radius": r}, known) for r in (0.05, 0.2, 0.8)]
        for name in ("max_sensitivity", "avg_sensitivity")
    )
    assert worst[0].mean() < worst[1].mean() < worst[2].mean()
    assert (worst[1] > mean[1]).all()


def test_a_map_of_the_input_has_closed_forms():
    """e(x) = x: the sensitivity is ‖δ‖/‖x‖, Lipschitz and relative input stability are 1."""
    known = setting(network(), lambda batch: batch.x)
    x, near = (
        samples(),
        [v.x for v in perturbed(known[1].batch, Draws("uniform", 0.2, "input", 10))],
    )
    moved = torch.stack([(v - x).norm(dim=1) for v in near]) / x.norm(dim=1)
    torch.testing.assert_close(score("max_sensitivity", known), moved.amax(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(score("avg_sensitivity", known), moved.mean(0), rtol=1e-6, atol=0)
    one = torch.ones(N).double()
    torch.testing.assert_close(score("local_lipschitz", known), one)
    stability = {"name": "relative_input_stability", "same_class_only": False}
    torch.testing.assert_close(score(stability, known), one)
    step = {"name": "continuity", "steps": 1, "fill": "wrap"}
    gone = x.roll(1, 1) - x
    torch.testing.assert_close(score(step, known), gone.abs().sum(1) / gone.norm(dim=1))
    gone = torch.cat([-x[:, :1], x[:, :-1] - x[:, 1:]], 1)
    step = {"name": "continuity", "steps": 1}
    torch.testing.assert_close(score(step, known), gone.abs().sum(1) / gone.norm(dim=1))


def test_the_draws_are_what_they_say():
    batch = setting(network(), x=samples(2000))[1].batch
    ball, normal = Draws("uniform", 0.3, "input", 1), Draws("normal", 0.3, "input", 1)
    noise = ball.noise(batch, 0)
    assert 0.299 < noise.abs().max() <= 0.3
    assert noise.std().item() == pytest.approx(0.3 / math.sqrt(3), rel=0.03)
    assert normal.noise(batch, 0).std().item() == pytest.approx(0.3, rel=0.03)
    assert not torch.equal(ball.noise(batch, 0), ball.noise(batch, 1))
    span = batch.x.amax(1) - batch.x.amin(1)
    share = replace(ball, unit="range").noise(batch, 0)
    torch.testing.assert_close(share, noise * span[:, None])


# --- others' numbers ---


def test_captum_gives_the_same_maximum_for_the_same_draws():
    model = network()
    known = setting(model)
    context, draws = known[1], Draws("uniform", 0.2, "input", 10)
    near = torch.stack([variant.x for variant in perturbed(context.batch, draws)], 1).flatten(0, 1)
    expected = captum.metrics.sensitivity_max(
        captum.attr.Saliency(model).attribute,
        context.x,
        perturb_func=lambda x: near,
        n_perturb_samples=10,
        target=context.y,
        abs=False,
    )
    torch.testing.assert_close(score("max_sensitivity", known), expected, rtol=1e-6, atol=1e-9)


def literal_stability(maps, context, name, eps=1e-6):
    """Agarwal et al. 2022, equations 2 to 4, number by number."""
    model, result = context.batch.model, []
    body = model[:2]
    near = [variant.x for variant in perturbed(context.batch, Draws("uniform", 1.5, "input", 4))]

    def share(a, b):
        return np.array([(p - q) / (eps if p == 0 else p) for p, q in zip(a, b, strict=True)])

    for i, x in enumerate(context.x):
        worst = -math.inf
        for draw in near:
            z = draw[i]
            if model(x).argmax() != model(z).argmax():
                continue
            after = passes.gradients(model, z[None], context.y[i : i + 1])[0][0]
            cause = {
                "relative_input_stability": lambda x=x, z=z: share(x, z),
                "relative_representation_stability": lambda x=x, z=z: share(body(x), body(z)),
                "relative_output_stability": lambda x=x, z=z: (model(x) - model(z)).numpy(),
            }[name]()
            change = share(maps[i], after)
            worst = max(worst, np.linalg.norm(change) / max(np.linalg.norm(cause), eps))
        result.append(worst if worst > -math.inf else math.nan)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("name", SIX[3:])
def test_relative_stability_is_its_equation_and_nan_where_every_draw_changes_the_class(name):
    known = setting(network(seed=1))
    expected = literal_stability(*known, name)
    found = score({"name": name, "radius": 1.5, "samples": 4}, known)
    assert 0 < expected.isnan().sum() < N
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, equal_nan=True)


# --- cost ---


def test_six_scores_of_two_methods_cost_one_run_of_the_method_at_each_draw():
    model = network().float()
    with passes.counted(model) as count:
        maps, context = setting(model, x=samples().float(), target=torch.zeros(N).long())
        times_input = replace(context, explain=lambda batch: batch.x * batch.gradient(), _memory={})
        for name in SIX:
            score({"name": name, "samples": 5}, (maps, context))
            score({"name": name, "samples": 5}, (maps, times_input))
    # Only the hidden layer of the unperturbed samples was not seen: their maps came before.
    assert (count.backwards, count.forwards) == ((5 + 1) * N, N)


def test_hidden_layers_are_those_of_the_network_as_it_is():
    model = network()

    def tampering(batch):
        handle = model[1].register_forward_hook(lambda module, inputs, output: output * 0)
        model(batch.x)
        handle.remove()
        return batch.x

    for explain in (gradient, tampering):
        maps, context = setting(model, explain)
        score({"name": "relative_representation_stability", "samples": 2}, (maps, context))
        for batch in (context.batch, *perturbed(context.batch, Draws("uniform", 0.2, "input", 2))):
            assert hidden(batch).equal(model[:2](batch.x))
            assert hidden(batch, "0").equal(model[0](batch.x))


# --- invariances ---


@pytest.mark.parametrize("name", [*SIX, "continuity", "local_consistency"])
@pytest.mark.parametrize("method", ["random", "gradient"])
def test_neither_batch_size_nor_scale_changes_a_score(name, method):
    model = network()
    explain = gradient if method == "gradient" else (lambda batch: batch.maps("random"))
    whole = score(name, setting(model, explain))
    parts = [score(name, setting(model, explain, rows=slice(i, i + 5))) for i in range(0, N, 5)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-7, equal_nan=True)
    if name not in ("local_lipschitz", "continuity"):
        scaled = score(name, setting(model, lambda batch: 8 * explain(batch)))
        torch.testing.assert_close(scaled, whole, rtol=1e-5, atol=1e-7, equal_nan=True)
    else:
        normal = {"name": name, "normalise": "rms"}
        scaled = score(normal, setting(model, lambda batch: 8 * explain(batch)))
        torch.testing.assert_close(scaled, score(normal, setting(model, explain)))


def test_images_and_series_are_scored_by_channel_or_by_position():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(4, 2)).requires_grad_(False)
    x = torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    known = setting(model, x=x)
    each = score("max_sensitivity", known)
    summed = score({"name": "max_sensitivity", "view": "abs", "channels": "sum"}, known)
    assert (each > 0).all()
    assert (summed > 0).all()
    assert not torch.allclose(each, summed)
    assert (score({"name": "continuity", "steps": 2}, known) > 0).all()


# --- consistency ---


def test_consistency_counts_equal_explanations_of_equal_classes():
    maps = torch.tensor([[3, 1, 0.0], [4, 0, 1], [5, 1, 1], [0, -2, 1], [0, 2, 1], [9, 0, 0]])
    classes = torch.tensor([0, 0, 1, 1, 0, 0])
    context = Context(maps, classes, prediction=classes)
    (found,) = resolve({"name": "consistency", "k": 1}).measure(maps, context)
    nan = math.nan
    expected = torch.tensor([2 / 3, 2 / 3, 0, nan, nan, 2 / 3])
    torch.testing.assert_close(found.samples, expected, equal_nan=True)
    (found,) = resolve({"name": "consistency", "k": 1, "by": "top_k"}).measure(maps, context)
    torch.testing.assert_close(found.samples, torch.tensor([2 / 3, 2 / 3, 0, 0, 0, 2 / 3]))
    with pytest.raises(ValueError, match="give it `prediction`"):
        resolve("consistency").measure(maps, Context(maps, classes))


def test_which_maps_count_as_the_same():
    maps = torch.tensor([[4.0, -2, 0], [8, -4, 0], [8, -3.9, 0], [8, 4, 0], [0, 0, 0]])
    groups = {
        by: torch.unique(discrete(maps, by, 2, 2), dim=0, return_inverse=True)[1].tolist()
        for by in ("top_k", "top_k_signs", "signs", "rounded")
    }
    alike = {by: [a == found[0] for a in found] for by, found in groups.items()}
    assert alike["top_k"] == [True, True, True, True, True]
    assert alike["top_k_signs"] == alike["signs"] == [True, True, True, False, False]
    assert alike["rounded"] == [True, True, False, False, False]
    assert agreement(maps[:1], torch.zeros(1).long()).isnan().all()


def test_local_consistency_of_a_constant_map_is_the_share_of_draws_with_the_same_class():
    model = network(seed=1)
    known = setting(model, lambda batch: torch.ones_like(batch.x))
    near = perturbed(known[1].batch, Draws("uniform", 1.0, "input", 10))
    share = torch.stack([model(v.x).argmax(1) == known[1].y for v in near]).double().mean(0)
    found = score({"name": "local_consistency", "radius": 1.0}, known)
    torch.testing.assert_close(found, share, rtol=1e-6, atol=0)
    assert 0 < found.mean() < 1


# --- degenerate cases and mistakes ---


def test_a_zero_map_that_moves_is_undefined_only_where_it_is_divided_by():
    origin = torch.zeros(N, D).double()
    known = setting(network(), lambda batch: batch.x, x=origin)
    assert score("max_sensitivity", known).isnan().all()
    assert score({"name": "max_sensitivity", "relative": False}, known).isfinite().all()
    assert score("local_lipschitz", known).isfinite().all()


@pytest.mark.parametrize(
    ("spec", "explain", "message"),
    [
        ({"name": "continuity", "steps": 9}, gradient, "a shift by 9 places leaves nothing of 6"),
        ("max_sensitivity", lambda batch: batch.x / 0, "NaN or infinity at changed inputs of 12"),
        (
            {"name": "relative_representation_stability", "layer": "9"},
            gradient,
            "the model has no layer '9'",
        ),
        ({"name": "max_sensitivity", "radius": -1}, gradient, "radius"),
    ],
)
def test_mistakes_are_told_in_one_line(spec, explain, message):
    _, context = setting(network(), explain)
    with pytest.raises(ValueError, match=message) as error:
        resolve(spec).measure(torch.ones(N, D), context)
    assert "\n" not in str(error.value)


def test_a_model_without_a_linear_layer_needs_a_named_one():
    model = nn.Sequential(nn.Flatten(), nn.Softmax(1)).eval()
    known = setting(model)
    score("max_sensitivity", known)
    with pytest.raises(ValueError, match="name one"):
        score("relative_representation_stability", known)
    score({"name": "relative_representation_stability", "layer": "0"}, known)
