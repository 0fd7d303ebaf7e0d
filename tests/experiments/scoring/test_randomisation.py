from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from experiments import passes
from experiments.attribution import methods
from experiments.attribution.batch import Batch
from experiments.scoring import (
    Context,
    random_weights,
    randomisation,
    resolve,
)
from experiments.scoring.random_weights import states
from experiments.scoring.randomisation import histogram_entropy

N, D, K = 10, 8, 4
CASCADES = ["parameter_randomisation", "smooth_parameter_randomisation"]
ALL = [*CASCADES, "efficient_parameter_randomisation", "random_logit", "data_randomisation"]


class Scrambled(nn.Module):
    """Layers that are defined in another order than they run in, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(D, K)
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(D)
        self.entry = nn.Linear(D, D)
        self.token = nn.Parameter(torch.randn(D))

    def forward(self, x):
        hidden = self.norm(torch.tanh(self.entry(x + self.token)))[:, None]
        return self.head(self.attention(hidden, hidden, hidden, need_weights=False)[0][:, 0])


ORDER = ("Scrambled", "entry", "norm", "attention", "attention.out_proj", "head")


def scrambled():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Scrambled()
        nn.init.normal_(model.norm.weight)
        nn.init.normal_(model.attention.in_proj_bias)
        nn.init.normal_(model.attention.out_proj.bias)
        model.norm.running_mean.normal_()
    return model.eval().requires_grad_(False)


def network(seed=0, outputs=K):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs)
    return nn.Sequential(*layers).eval().requires_grad_(False)


def gradient(batch):
    return batch.gradient()


def weightless(batch):
    return batch.x.abs() + 1


def setting(model, explain=gradient, rows=slice(None), target=None):
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))[rows]
    target = model(x).argmax(1) if target is None else target
    indices = list(range(100, 100 + N))[rows]
    batch = Batch(model, x, target, baseline=torch.zeros(D), seed=3, indices=indices)
    meta = {"random_labels_model": network(seed=5)}
    y = torch.zeros(len(x)).long()
    context = Context(x, y, seed=3, indices=indices, batch=batch, explain=explain, meta=meta)
    return explain(batch), context


def measure(spec, known):
    return resolve(spec).measure(*known)


def score(spec, known):
    return next(found.samples for found in measure(spec, known) if found.headline)


def snapshot(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (t.data_ptr(), t.clone()) for name, t in tensors.items()}


def changed(model, before):
    now = snapshot(model)
    return {name for name, (_, tensor) in now.items() if not tensor.equal(before[name][1])}


# --- weights ---


@pytest.mark.parametrize("initialisation", ["reset", "permute", "normal"])
def test_states_randomise_their_layers_and_nothing_stays_behind(initialisation):
    model = scrambled()
    before = snapshot(model)
    state = torch.get_rng_state()
    drawn = random_weights.random_weights(model, torch.zeros(1, D), initialisation, 0)
    assert drawn.layers == ORDER
    assert not changed(model, before)
    with drawn.applied(model, 0, 0):
        assert not changed(model, before)
    with drawn.applied(model, 0, 2):
        assert changed(model, before) == {"token", "entry.weight", "entry.bias"}
    with contextlib.suppress(KeyError), drawn.applied(model, 3, 6):
        names = {name.partition(".")[0] for name in changed(model, before)}
        assert names == {"attention", "head"}
        raise KeyError
    with drawn.applied(model, 0, 6):
        everything = {name for name in before if "num_batches" not in name}
        buffers = {"norm.running_mean", "norm.running_var"} if initialisation != "reset" else set()
        assert changed(model, before) >= everything - buffers - {"norm.running_var", "norm.bias"}
    after = snapshot(model)
    assert {name: pointer for name, (pointer, _) in after.items()} == {
        name: pointer for name, (pointer, _) in before.items()
    }
    assert not changed(model, before)
    assert torch.get_rng_state().equal(state)
    if initialisation == "permute":
        with drawn.applied(model, 0, 6):
            for name, parameter in model.named_parameters():
                assert parameter.flatten().sort().values.equal(before[name][1].flatten().sort()[0])
    if initialisation == "normal":
        with drawn.applied(model, 0, 6):
            spread = before["attention.in_proj_weight"][1].std()
            torch.testing.assert_close(
                model.attention.in_proj_weight.std(), spread, rtol=0.2, atol=0
            )


def test_random_weights_depend_on_seed_and_layer_only():
    model = scrambled()
    double = copy.deepcopy(model).double()
    row = torch.zeros(1, D)
    for kind in ("reset", "permute", "normal"):
        mine = random_weights.random_weights(model, row, kind, 0).values
        others = random_weights.random_weights(double, row.double(), kind, 0).values
        for a, b in zip(mine, others, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                assert b[name].dtype == (
                    torch.float64 if b[name].is_floating_point() else torch.long
                )
                torch.testing.assert_close(a[name].double(), b[name].double())
    other = random_weights.random_weights(model, row, "reset", 1).values
    assert not other[1]["entry.weight"].equal(mine[1]["entry.weight"])


def test_weights_are_drawn_once_and_anew_when_the_model_has_learnt(monkeypatch):
    made = []
    draw = random_weights._draw
    monkeypatch.setattr(random_weights, "_draw", lambda *given: made.append(0) or draw(*given))
    model = network()
    for rows in (slice(0, 5), slice(5, 10)):
        for name in CASCADES:
            for mode in ("top_down", "bottom_up"):
                measure({"name": name, "mode": mode}, setting(model, rows=rows))
    assert len(made) == 1
    for kind, expected in (("permute", 2), ("permute", 2), ("reset", 3)):
        measure({"name": "parameter_randomisation", "initialisation": kind}, setting(model))
        assert len(made) == expected
    model[0].weight.mul_(2)
    for kind, expected in (("reset", 3), ("permute", 4)):
        measure({"name": "parameter_randomisation", "initialisation": kind}, setting(model))
        assert len(made) == expected


def test_a_tensor_that_two_layers_share_is_random_in_both():
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)).requires_grad_(False)
    model[2].weight = model[0].weight
    drawn = random_weights.random_weights(model, torch.zeros(1, D), "reset", 0)
    before = snapshot(model)
    with drawn.applied(model, 0, 1):
        assert model[2].weight is model[0].weight
        assert changed(model, before) == {"0.weight", "0.bias"}


def test_states_of_a_cascade():
    assert states(3, "top_down") == [(2, 3), (1, 3), (0, 3)]
    assert states(3, "bottom_up") == [(0, 1), (0, 2), (0, 3)]
    assert states(3, "independent") == [(2, 3), (1, 2), (0, 1)]
    assert states(10, "top_down", 3) == [(6, 10), (3, 10), (0, 10)]
    assert states(2, "bottom_up", 9) == [(0, 1), (0, 2)]


# --- parameter randomisation ---


@pytest.mark.parametrize("mode", ["top_down", "bottom_up", "independent"])
@pytest.mark.parametrize("name", CASCADES)
def test_a_map_that_ignores_the_weights_stays_the_same_in_every_state(name, mode):
    found = measure({"name": name, "mode": mode}, setting(network(), weightless))
    assert len(found) == 1 + 3
    for measurement in found:
        torch.testing.assert_close(measurement.samples, torch.ones(N))


def test_random_maps_are_unlike_when_drawn_anew_and_alike_when_not():
    model = nn.Sequential(nn.Linear(400, 4), nn.Linear(4, 2)).eval().requires_grad_(False)
    x = torch.randn(N, 400, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(N).long()
    batch = Batch(model, x, target, baseline=x[0] * 0, seed=0, indices=range(N))
    context = Context(x, target, batch=batch, explain=lambda batch: batch.maps("random"))
    known = batch.maps("random"), context
    for name in CASCADES:
        assert score({"name": name}, known).min() > 0.999
        fresh = measure({"name": name, "draws": "fresh"}, known)
        assert all(abs(found.value) < 4 / math.sqrt(400 * N) for found in fresh)


def test_the_score_is_the_mean_over_the_randomised_states_without_the_trained_network():
    model = network()
    maps, context = known = setting(model)
    headline, *each = measure("parameter_randomisation", known)
    torch.testing.assert_close(headline.samples, torch.stack([m.samples for m in each]).mean(0))
    assert [m.facets for m in each] == [
        {"layer": "4", "depth": 1, "percent": 33.3},
        {"layer": "2", "depth": 2, "percent": 66.7},
        {"layer": "0", "depth": 3, "percent": 100.0},
    ]
    assert headline.value < 0.9
    fresh = network(seed=9)  # the last state is a network that has learnt nothing
    drawn = random_weights.random_weights(model, context.x[:1], "reset", 3)
    fresh.load_state_dict({k: v for layer in drawn.values for k, v in layer.items()})
    expected = passes.gradients(fresh, context.x, context.batch.target)[0]
    (scorer,) = [resolve("parameter_randomisation")]
    torch.testing.assert_close(each[-1].samples.double(), scorer.similarity(maps, expected))
    up = measure({"name": "parameter_randomisation", "mode": "bottom_up", "states": 2}, known)
    assert [m.facets["layer"] for m in up[1:]] == ["2", "4"]
    torch.testing.assert_close(up[-1].samples, each[-1].samples)


def test_without_noise_the_smooth_score_is_the_plain_one():
    known = setting(network())
    smooth = {"name": "smooth_parameter_randomisation", "radius": 0.0, "samples": 2}
    torch.testing.assert_close(score(smooth, known), score("parameter_randomisation", known))
    noisy = {"name": "smooth_parameter_randomisation", "samples": 2}
    assert not torch.allclose(score(noisy, known), score("parameter_randomisation", known))


def test_cost_is_a_run_for_each_layer_shared_by_methods_and_modes():
    model = network()
    with passes.counted(model) as count:
        maps, context = setting(model, target=torch.zeros(N).long())
        other = replace(context, explain=lambda batch: batch.x * batch.gradient(), _memory={})
        for known in ((maps, context), (maps, other)):
            score("parameter_randomisation", known)
            assert (count.backwards, count.forwards) == ((1 + 3) * N, 0)
        score("efficient_parameter_randomisation", (maps, context))  # that state is known
        score({"name": "parameter_randomisation", "mode": "bottom_up"}, (maps, context))
        assert (count.backwards, count.forwards) == ((1 + 3 + 2) * N, 0)
        score({"name": "smooth_parameter_randomisation", "samples": 2}, (maps, context))
        assert (count.backwards, count.forwards) == ((6 + 4 * 2) * N, 0)
        score("random_logit", (maps, context))
        score("random_logit", (maps, other))
        assert (count.backwards, count.forwards) == ((14 + 1) * N, 0)


def test_complexity_rises_by_the_entropy_of_the_histogram():
    known = setting(network())
    maps = torch.randn(N, 500, generator=torch.Generator().manual_seed(1)).double()
    for row, found in zip(maps, histogram_entropy(maps, 20), strict=True):
        share = np.histogram(row.numpy(), 20)[0] / 500
        assert found.item() == pytest.approx(-sum(p * math.log(p) for p in share if p > 0))
    assert histogram_entropy(torch.ones(1, 5).double(), 20).item() == 0
    assert (
        score("efficient_parameter_randomisation", setting(network(), weightless)).abs().max() == 0
    )
    # A map of one peak in the trained network, and a ramp in any other.
    peak, ramp = torch.eye(D)[:1].expand(N, D), torch.arange(D).float().expand(N, D)
    trained = known[1].batch
    context = replace(known[1], explain=lambda batch: peak if batch is trained else ramp)
    two = -(1 / D * math.log(1 / D) + (1 - 1 / D) * math.log(1 - 1 / D))
    found = (
        score("efficient_parameter_randomisation", (peak[:D], replace(context)))[:D]
        if 0
        else (score("efficient_parameter_randomisation", (ramp.flip(1) * 0 + peak[0], context)))
    )
    torch.testing.assert_close(found, torch.full((N,), (math.log(D) - two) / two))
    zero = score("efficient_parameter_randomisation", (torch.zeros(N, D), context))
    assert zero.isnan().all()


# --- other classes, other labels ---


def test_random_logit_of_equal_class_weights_is_one():
    model = network()
    model[4].weight[:] = model[4].weight[:1].clone()
    for other in ("random", "runner_up", "least"):
        found = score({"name": "random_logit", "other": other}, setting(model))
        torch.testing.assert_close(found, torch.ones(N))
    assert score("random_logit", setting(network())).mean() < 0.9


def test_the_other_class_is_any_but_the_target():
    x = torch.randn(3000, D, generator=torch.Generator().manual_seed(0))
    target = torch.full((3000,), 1)
    batch = Batch(network(), x, target, baseline=x[0] * 0, seed=0, indices=range(3000))
    drawn = randomisation.other_class(batch, "random").bincount(minlength=K)
    assert drawn[1] == 0
    assert drawn[[0, 2, 3]].min() > 900
    outputs = batch.outputs().clone()
    outputs[:, 1] = -torch.inf
    assert randomisation.other_class(batch, "runner_up").equal(outputs.argmax(1))
    outputs[:, 1] = torch.inf
    assert randomisation.other_class(batch, "least").equal(outputs.argmin(1))


def test_data_randomisation_compares_with_the_other_network():
    maps, context = known = setting(network())
    other = context.meta["random_labels_model"].train()
    found = score("data_randomisation", known)
    expected = passes.gradients(other.eval(), context.x, context.batch.target)[0]
    torch.testing.assert_close(
        found.double(), resolve("data_randomisation").similarity(maps, expected)
    )
    same = replace(
        context, meta={"random_labels_model": network()}, batch=setting(network())[1].batch
    )
    torch.testing.assert_close(score("data_randomisation", (maps, same)), torch.ones(N))


@pytest.mark.parametrize("name", ALL)
def test_neither_batch_size_nor_scale_changes_a_score(name):
    model = network()
    whole = score(name, setting(model))
    parts = [score(name, setting(model, rows=slice(i, i + 3))) for i in range(0, N, 3)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    scaled = score(name, setting(model, lambda batch: 8 * batch.gradient()))
    torch.testing.assert_close(scaled, whole, rtol=1e-4, atol=1e-5)


def test_a_map_that_breaks_under_random_weights_is_undefined():
    maps, context = setting(network())
    broken = torch.ones(N, D).index_fill(0, torch.tensor([2]), math.inf)
    for name in ("parameter_randomisation", "efficient_parameter_randomisation"):
        found = score(name, (maps, replace(context, explain=lambda batch: broken * batch.x)))
        assert found.isnan().tolist() == [i == 2 for i in range(N)]


@pytest.mark.parametrize(
    ("name", "model", "given", "message"),
    [
        ("data_randomisation", network(), {"meta": {}}, r"meta\['random_labels_model'\]"),
        ("random_logit", network(outputs=1), {}, "the model has one output"),
        ("parameter_randomisation", nn.Sequential(nn.Tanh()), {}, "no parameters"),
    ],
)
def test_mistakes_are_told_in_one_line(name, model, given, message):
    maps, context = setting(model)
    with pytest.raises(ValueError, match=message) as error:
        resolve(name).measure(maps, replace(context, **given))
    assert "\n" not in str(error.value)


def test_random_logit_needs_classes():
    known = setting(network(), target=torch.rand(N, K))
    with pytest.raises(ValueError, match="weights of outputs"):
        score("random_logit", known)
    assert score("parameter_randomisation", known).isfinite().all()


def test_every_method_explains_the_network_as_it_is_and_not_as_it_was():
    """What a method remembers of a model must not outlive its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolutions = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)
        head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        model = nn.Sequential(*convolutions, *head).eval().requires_grad_(False)
        x = torch.randn(2, 2, 6, 6)
    drawn = random_weights.random_weights(model, x[:1], "reset", 0)
    same = copy.deepcopy(model)
    same.load_state_dict({k: v for layer in drawn.values for k, v in layer.items()})
    before = snapshot(model)
    given = {"target": torch.tensor([0, 2]), "baseline": x[0] * 0, "seed": 0, "indices": [0, 1]}
    batch, expected = Batch(model, x, **given), Batch(same, x, **given)
    quick = {"gradient", "cam", "lrp", "control"}
    names = [
        name
        for name, known in methods().items()
        if known.family in quick
        and known.applies_to("cnn")
        and not known.needs_truth
        and not known.needs_objects
        and not name.startswith("andor_")  # for inputs [B, D]
    ]
    assert len(names) > 10
    for name in names:
        batch.maps(name)
        with drawn.applied(model, 0, len(drawn.layers)):
            found = batch.under("random", model).maps(name)
        torch.testing.assert_close(found, expected.maps(name), msg=name)
        assert not changed(model, before), name
