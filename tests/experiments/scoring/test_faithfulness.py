from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from experiments import passes
from experiments.attribution.batch import Batch
from experiments.scoring import Context, faithfulness_correlation, removal, resolve, scores

OURS = "experiments.scoring.faithfulness"
FAITHFULNESS = sorted(name for name, cls in scores().items() if cls.__module__.startswith(OURS))
OF_THE_MODEL = [name for name in FAITHFULNESS if "model" in scores()[name].needs]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """Logits (w · x, −w · x / 2) of inputs of any shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = seeded(math.prod(shape), seed=9).double()

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1) @ self.weight.to(x)
        return torch.stack([value, -value / 2], 1)


def small_cnn(channels: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
    return net.eval().requires_grad_(False)


def situation(model: nn.Module, x: Tensor, target: Tensor | None = None, **known) -> Context:
    """What scores are given, with the samples' own numbers if only some of them are taken."""
    indices = known.pop("indices", range(len(x)))
    y = known.pop("y", torch.zeros(len(x), dtype=torch.long))
    target = torch.zeros(len(x), dtype=torch.long) if target is None else target
    baseline = known.pop("baseline", torch.zeros_like(x[0]))
    batch = Batch(model, x, target, baseline=baseline, seed=3, indices=indices)
    return Context(x, y, indices=indices, batch=batch, **known)


def linear(*shape: int, samples: int = 6, **known) -> tuple[Context, Tensor]:
    """A linear model, and the exact contributions of its inputs against the baseline."""
    x, model = seeded(samples, *shape).double(), Linear(*shape)
    baseline = seeded(*shape, seed=2).double()
    maps = (x - baseline) * model.weight.view(*shape)
    return situation(model, x, baseline=baseline, **known), maps


def images(samples: int = 5, **known) -> tuple[Context, Tensor]:
    x = seeded(samples, 2, 8, 8)
    known.setdefault("y", torch.arange(samples) % 3)
    known.setdefault("target", torch.arange(samples) % 3)
    return situation(small_cnn(), x, **known), seeded(samples, 2, 8, 8, seed=1)


def fresh(context: Context) -> Context:
    """The same samples, of which nothing has been computed yet."""
    old = context.model_batch()
    batch = Batch(
        old.model, old.x, old.target, baseline=old.baseline, seed=old.seed, indices=old.indices
    )
    return replace(context, batch=batch, _memory={})


def headline(spec: str | dict, maps: Tensor, context: Context) -> Tensor:
    found = resolve(spec).measure(maps, fresh(context))
    return next(m.samples for m in found if m.headline)


# --- linear models, where all is known ---


def test_removal_curves_of_a_linear_model():
    context, maps = linear(8)
    order = maps.sort(1, descending=True).values
    whole = context.batch.outputs()[:, 0]
    falling = torch.cat([whole[:, None], whole[:, None] - order.cumsum(1)], 1)
    rising = torch.cat([whole[:, None], whole[:, None] - order.flip(1).cumsum(1)], 1)
    steps = {"steps": 8}
    area = (falling[:, 1:] + falling[:, :-1]).mean(1) / 2
    found = headline({"name": "pixel_flipping", **steps}, maps, context)
    assert torch.allclose(found.double(), area, atol=1e-5)
    p = torch.sigmoid(1.5 * falling)  # softmax of (v, −v/2)
    area = (p[:, 1:] + p[:, :-1]).mean(1) / 2
    found = headline({"name": "deletion_auc", **steps}, maps, context)
    assert torch.allclose(found.double(), area, atol=1e-6)
    back = torch.sigmoid(1.5 * rising).flip(1)
    found = headline({"name": "insertion_auc", **steps}, maps, context)
    assert torch.allclose(found.double(), (back[:, 1:] + back[:, :-1]).mean(1) / 2, atol=1e-6)
    logit = {**steps, "output": "logit"}
    found = headline({"name": "aopc", **logit}, maps, context)
    assert torch.allclose(found.double(), (whole[:, None] - falling).mean(1), atol=1e-5)
    found = headline({"name": "abpc", **logit}, maps, context)
    assert torch.allclose(found.double(), (rising - falling).mean(1), atol=1e-5)
    both = {"output": "logit", "percents": [25, 50]}
    found = headline({"name": "comprehensiveness", **both}, maps, context)
    assert torch.allclose(found.double(), (whole - (falling[:, 2] + falling[:, 4]) / 2), atol=1e-5)
    found = headline({"name": "rationale_sufficiency", **both}, maps, context)
    assert torch.allclose(found.double(), whole - (rising[:, 6] + rising[:, 4]) / 2, atol=1e-5)


def test_correlations_of_a_linear_model_are_one():
    for shape in [(8,), (2, 9), (2, 6, 6)]:
        context, maps = linear(*shape)
        for spec in (
            "faithfulness_correlation",
            "mu_fidelity",
            "sensitivity_n",
            "faithfulness_estimate",
            {"name": "faithfulness_estimate", "grouping": "sorted", "groups": 4},
            {"name": "faithfulness_correlation", "channels": "none", "size": 3},
            {"name": "faithfulness_correlation", "cells": 4},
        ):
            assert headline(spec, maps, context) == pytest.approx(torch.ones(6), abs=1e-6)
            assert headline(spec, -maps, context) == pytest.approx(-torch.ones(6), abs=1e-6)
        # the square of a loss has the order of its size
        strays = {"name": "monotonicity_correlation", "fill": "baseline", "output": "logit"}
        if len(shape) < 3:  # positions, not groups of them whose signs could cancel
            assert headline(strays, maps, context) == pytest.approx(torch.ones(6), abs=1e-6)


def test_infidelity_of_a_linear_model():
    for shape in [(8,), (2, 9), (2, 6, 6)]:
        context, maps = linear(*shape)
        slope = context.batch.model.weight.view(shape).expand_as(maps)
        exact = [
            (slope, {}),
            (slope, {"perturbation": "gaussian"}),
            (maps, {"kind": "contribution"}),
            (-3 * slope, {"normalize": True}),
        ]
        for found, given_ in exact:
            spec = {"name": "infidelity", **given_}
            assert headline(spec, found, context) == pytest.approx(torch.zeros(6), abs=1e-8)
        # a zero map foretells nothing: what is left is the mean square of what happens
        zero = headline({"name": "infidelity", "perturbation": "gaussian"}, 0 * maps, context)
        expected = 0.01 * slope[0].square().sum().item()
        assert zero.mean().item() == pytest.approx(expected, rel=0.7)
        normalized = {"name": "infidelity", "perturbation": "gaussian", "normalize": True}
        assert headline(normalized, 0 * maps, context).equal(zero)
        draws = [headline({"name": "infidelity", "draws": n}, 0 * maps, context) for n in (1, 10)]
        assert not torch.allclose(draws[0], draws[1])


def test_infidelity_is_what_its_definition_says():
    context, maps = images()
    score = resolve({"name": "infidelity", "draws": 7, "size": 3})
    batch = context.batch
    value = score.measure(maps, context)[0].samples
    squares = score._drawn(batch).expand(-1, 2, -1, -1)
    assert (squares.flatten(1).sum(1) == 2 * 9).all()  # never cut off at the border
    expected = torch.zeros(5)
    for square in squares:
        change = torch.where(square, batch.x, 0.0)
        after = passes.selected(batch.model(batch.x - change), batch.target)
        foretold = (change * maps).flatten(1).sum(1)
        expected += (foretold - (batch.selected() - after)).square() / 7
    assert torch.allclose(value, expected, atol=1e-5)


def test_correlations_are_those_of_scipy():
    a, b = seeded(4, 30).double(), seeded(4, 30, seed=1).round().double()
    for kind, theirs in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
        ours = faithfulness_correlation.correlation(a, b, kind)
        expected = [theirs(*pair)[0] for pair in zip(a.numpy(), b.numpy(), strict=True)]
        assert ours.numpy() == pytest.approx(np.array(expected), abs=1e-10)
    constant = torch.full((1, 30), 0.1).double().cumsum(0)
    assert faithfulness_correlation.correlation(constant, b[:1]).isnan().all()


def test_random_maps_correlate_with_nothing():
    context, _ = linear(10, samples=200)
    values = headline("faithfulness_correlation", seeded(200, 10, seed=7).double(), context)
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)
    assert values.std() > 0.2  # in ten dimensions a random map is right or wrong by chance


# --- paths ---


def test_ends_and_mirror_images_of_paths():
    context, maps = images()
    batch = context.batch
    ends = {"percents": [0, 50, 100], "output": "logit"}
    whole = batch.selected()
    nothing = passes.selected(batch.baseline_outputs().expand(5, -1), batch.target)
    for order, other in (("morf", "lerf"), ("lerf", "morf")):
        curve = resolve({"name": f"{order}_curve", **ends}).measure(maps, fresh(context))
        assert torch.allclose(curve[1].samples, whole)
        assert torch.allclose(curve[3].samples, nothing)
        mirrored = resolve({"name": f"{other}_curve", **ends}).measure(-maps, fresh(context))
        for here, there in zip(curve, mirrored, strict=True):
            assert torch.equal(here.samples, there.samples)
        assert curve[0].facets == {"percent": "mean"}
        assert curve[2].facets == {"percent": 50.0}
    # what is inserted into nothing is what a removal of the rest leaves
    insertion = headline({"name": "insertion_auc", "steps": 8}, maps, context)
    assert torch.equal(insertion, headline({"name": "deletion_auc", "steps": 8}, -maps, context))


def test_monotonicity_is_not_always_one():
    context, maps = linear(8)
    rises = {"name": "monotonicity", "steps": 8}
    weight = context.batch.model.weight
    x = context.batch.baseline + weight.sign() * seeded(6, 8, seed=4).abs().double()
    positive = situation(context.batch.model, x, baseline=context.batch.baseline)
    assert headline(rises, (x - context.batch.baseline) * weight, positive).eq(1).all()
    assert headline(rises, maps, context).eq(0).all()  # negative contributions come first
    share = headline({**rises, "of": "share"}, maps, context)
    assert share.double().numpy() == pytest.approx((maps > 0).double().mean(1).numpy())


def test_outputs_that_a_curve_can_show():
    context, maps = images(y=torch.tensor([0, 1, 2, 0, 1]))
    batch = context.batch
    order = maps.sum(1).flatten(1).argsort(1, descending=True)[:, :32]
    removed = torch.zeros(5, 64).scatter_(1, order, 1.0).view(5, 1, 8, 8).bool()
    after = batch.model(torch.where(removed, 0.0, batch.x))
    p0, p = (o.softmax(1).gather(1, batch.target[:, None])[:, 0] for o in (batch.outputs(), after))
    expected = {
        "probability": p,
        "logit": passes.selected(after, batch.target),
        "accuracy": (after.argmax(1) == context.y).float(),
        "agreement": (after.argmax(1) == batch.outputs().argmax(1)).float(),
    }
    half = {"percents": [50, 60]}
    for output, values in expected.items():
        found = resolve({"name": "morf_curve", "output": output, **half}).measure(maps, context)
        assert torch.allclose(found[1].samples, values, atol=1e-6)
    change = resolve({"name": "morf_change", **half}).measure(maps, context)[1].samples
    assert torch.allclose(change, (p0 - p).abs() / p0, atol=1e-6)
    signed = resolve({"name": "morf_change", "signed": True, **half}).measure(maps, context)
    assert torch.allclose(signed[1].samples, (p0 - p) / p0, atol=1e-5)


def test_weights_of_outputs_are_explained_too():
    x = seeded(4, 2, 8, 8)
    context = situation(small_cnn(), x, target=seeded(4, 3, seed=8))
    maps = seeded(4, 2, 8, 8, seed=1)
    assert headline("pixel_flipping", maps, context).isfinite().all()
    assert headline("faithfulness_correlation", maps, context).isfinite().all()
    for name in ("deletion_auc", "average_drop"):
        with pytest.raises(ValueError, match="weighted sum of outputs has no probability"):
            headline(name, maps, context)
    # one-hot weights are a class
    one_hot = situation(small_cnn(), x, target=torch.eye(3)[[0, 1, 2, 0]])
    classes = situation(small_cnn(), x, target=torch.tensor([0, 1, 2, 0]))
    logit = {"name": "aopc", "output": "logit"}
    assert torch.allclose(headline(logit, maps, one_hot), headline(logit, maps, classes))
    single = situation(nn.Sequential(nn.Flatten(), nn.Linear(128, 1)), x)
    with pytest.raises(ValueError, match="the only output of a model has no probability"):
        headline("deletion_auc", maps, single)


def test_ties_are_broken_at_random_and_for_each_sample():
    context, maps = images(samples=40)
    flat = torch.ones_like(maps)
    path = resolve("deletion_auc").path(flat, context, "morf")
    assert (path.ranks.rank.sort(1).values == torch.arange(64)).all()
    first = (path.ranks.rank < 16).float().mean(0)  # every pixel is removed as often, +- chance
    assert first.view(8, 8)[4:].mean().item() == pytest.approx(0.25, abs=0.06)
    assert len(path.ranks.rank.unique(dim=0)) == 40
    by_index = resolve({"name": "deletion_auc", "ties": "first"}).path(flat, context, "morf")
    assert (by_index.ranks.rank == torch.arange(64)).all()
    least = resolve("deletion_auc").path(flat, context, "lerf")
    assert (least.ranks.rank == 63 - path.ranks.rank).all()
    rows = slice(20, 30)
    part = situation(small_cnn(), context.x[rows], indices=range(20, 30))
    alone = resolve("deletion_auc").path(flat[rows], part, "morf")
    assert torch.equal(alone.ranks.rank, path.ranks.rank[rows])


def test_regions_are_removed_as_a_whole():
    context, maps = images()
    path = resolve({"name": "selectivity", "patch": 3}).path(maps, context, "morf")
    assert path.units == 9
    ranks = path.ranks.rank.view(5, 8, 8)
    assert (ranks[:, :3, :3].flatten(1) == ranks[:, :1, 0]).all()
    weight = maps.sum(1)[:, :3, :3].sum((1, 2))
    higher = (maps.sum(1)[:, 6:, 6:].sum((1, 2)) > weight).long()
    assert ((ranks[:, 7, 7] < ranks[:, 0, 0]) == higher.bool()).all()
    spec = {"name": "region_perturbation", "patch": 4, "regions": 3}
    once, often = (headline({**spec, "repeats": r}, maps, context) for r in (1, 3))
    assert not torch.allclose(once, often)
    with pytest.raises(ValueError, match="patches and superpixels hold all channels"):
        headline({**spec, "channels": "none"}, maps, context)


def test_superpixels_are_ranked_by_their_mean():
    image = torch.zeros(1, 1, 8, 8)
    image[..., 3:] = 1
    maps = torch.where(image == 1, 0.5, 0.6)  # the small part has the higher mean, not sum
    context = situation(small_cnn(1), image)
    ranking = removal.Ranking(units=("slic", 4, 0.01))
    rank = removal.ranks(maps, context, ranking, "morf").rank.view(8, 8)
    assert rank[:, :3].max() < rank[:, 3:].min()
    patches = removal.Ranking(units=("patch", 5))
    assert removal.ranks(torch.ones_like(maps), context, patches, "morf").rank[0, 0] == 0


def test_subsets_have_their_size():
    context, maps = linear(2, 6, 6, samples=1)

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([(x != 0).double().sum((1, 2, 3)), x.sum((1, 2, 3))], 1)

    counting = situation(Counting(), context.x)
    for spec, left in (({"size": 5}, 2 * 31), ({"size": 0.25}, 2 * 27), ({"size": 99}, 2)):
        score = resolve({"name": "faithfulness_correlation", "draws": 6, **spec})
        assert score.measure(maps, counting)[0].samples.isnan().all()  # it loses the same always
        (outputs,) = (
            value for key, value in counting.batch._of_inputs.items() if "without subsets" in key
        )
        assert (outputs[..., 0] == left).all()
        counting = fresh(counting)


def test_irof_has_its_area_over_the_curve():
    context, maps = images()
    count = {"name": "irof", "count": 16, "compactness": 100.0, "steps": 16}
    grid = {"name": "irof", "segments": "patch", "patch": 2, "steps": 16}
    # superpixels that may only be square are patches of the same size
    assert torch.allclose(headline(count, maps, context), headline(grid, maps, context), atol=1e-6)
    ignored, _ = images()
    for parameter in ignored.batch.model.parameters():
        parameter.zero_()
    assert headline("irof", maps, ignored) == pytest.approx(torch.zeros(5), abs=1e-6)
    assert headline("irof", maps[:1], situation(small_cnn(), context.x[:1])).isfinite().all()


# --- ROAD ---


def test_road_looks_at_every_label():
    x = torch.cat([seeded(48, 3, 8, 8) + 1, seeded(48, 3, 8, 8, seed=1) - 1])
    y = torch.arange(96) // 48

    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([mean, -mean], 1)

    maps = seeded(96, 3, 8, 8, seed=2)
    right = situation(Sign(), x, target=y, y=y)
    wrong = situation(Sign(), x, target=y, y=torch.cat([y[:-32], 1 - y[-32:]]))
    for name in ("road_morf", "road_lerf"):
        found = resolve(name).measure(maps, right)
        assert found[0].value == pytest.approx(1, abs=0.05)
        assert len(found) == 8
        fallen = resolve(name).measure(maps, wrong)[0].value
        assert fallen == pytest.approx(found[0].value - 1 / 3, abs=0.05)
    both = resolve("road").measure(maps, right)
    columns = {(m.facets["order"], m.facets["percent"]): m.samples for m in both}
    assert len(columns) == 15
    percents = resolve("road").percents
    apart = [columns["lerf", p] - columns["morf", p] for p in percents]
    assert torch.allclose(columns["both", "mean"], torch.stack(apart).mean(0), atol=1e-7)


# --- masking ---


def test_average_drop_increase_and_gain():
    context, maps = images()
    batch = context.batch
    p0 = batch.outputs().softmax(1).gather(1, batch.target[:, None])[:, 0]
    weight = maps.sum(1, keepdim=True)
    low, high = weight.amin((2, 3), keepdim=True), weight.amax((2, 3), keepdim=True)
    seen = (weight - low) / (high - low) * batch.x
    p = batch.model(seen).softmax(1).gather(1, batch.target[:, None])[:, 0]
    drop, rise = ((p0 - p).clamp(min=0) / p0), (p > p0).float()
    gain = (p - p0).clamp(min=0) / (1 - p0)
    found = [headline(f"average_{n}", maps, context) for n in ("drop", "increase", "gain")]
    for ours, expected in zip(found, (drop, rise, gain), strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)
    assert ((found[0] > 0) == (found[1] == 0)).all()
    # what lets everything through changes nothing, and a rounding is no increase
    for name in ("drop", "increase", "gain"):
        assert headline(f"average_{name}", torch.full_like(maps, 2.0), context).eq(0).all()
    cut = {"name": "average_drop", "scale": "none"}
    assert headline(cut, torch.ones_like(maps), context) == pytest.approx(torch.zeros(5), abs=1e-6)
    nothing = {"name": "average_gain", "scale": "max"}
    p = batch.baseline_outputs().softmax(1)[0, batch.target]
    expected = (p - p0).clamp(min=0) / (1 - p0)
    assert torch.allclose(headline(nothing, -maps.abs(), context), expected, atol=1e-5)


def test_f_fidelity_of_a_model_that_counts():
    """The logit is the number of positions left: it falls by a · |E|, whichever they are."""

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            left = x.flatten(1).sum(1) / x[0].numel()
            return torch.stack([left.logit(eps=1e-9), torch.zeros_like(left)], 1)

    x = torch.full((3, 1, 16, 16), 0.9)
    context = situation(Counting(), x)
    maps = seeded(3, 1, 16, 16)
    spec = {"output": "probability", "draws": 40, "percents": [5, 20, 50, 100]}
    plus = resolve({"name": "f_fidelity", **spec}).measure(maps, context)
    # softmax of (logit p, 0) is p: what is lost is 0.9 · share · min(alpha, beta / share)
    for measurement, expected in zip(plus[1:], (0.025, 0.1, 0.1, 0.1), strict=True):
        assert measurement.samples.numpy() == pytest.approx(0.9 * expected, abs=0.01)
    minus = resolve({"name": "f_fidelity_minus", **spec}).measure(maps, context)
    for measurement, expected in zip(minus[1:], (0.1, 0.1, 0.1, 0.0), strict=True):
        assert measurement.samples.numpy() == pytest.approx(0.9 * expected, abs=0.01)


def test_sufficiency_compares_like_maps():
    maps = torch.tensor([[1.0, 0.0], [2.0, 0.1], [3.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    prediction = torch.tensor([0, 0, 1, 1, 2, 2])
    context = Context(maps, prediction, prediction=prediction)
    (found,) = resolve("sufficiency").measure(maps, context)
    assert found.samples[:3].tolist() == [0.5, 0.5, 0.0]
    assert found.samples[3].isnan()
    assert found.samples[4:].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="compares predictions, and none are known"):
        resolve("sufficiency").measure(maps, replace(context, prediction=None))


# --- for every score ---

CHEAP = {
    "f_fidelity": {"draws": 4},
    "f_fidelity_minus": {"draws": 4},
    "infidelity": {"draws": 9},
    "faithfulness_correlation": {"draws": 12},
    "mu_fidelity": {"draws": 12},
    "monotonicity_correlation": {"groups": 9, "draws": 2},
}
SCALED = {"infidelity": {"normalize": True}}


@pytest.mark.parametrize("name", FAITHFULNESS)
def test_a_score_belongs_to_its_sample(name, monkeypatch):
    """Neither the scale of a map nor the other samples, their order or their number matter."""
    spec = {"name": name, **CHEAP.get(name, {}), **SCALED.get(name, {})}
    context, maps = images(samples=7, prediction=torch.tensor([0, 1, 0, 1, 0, 1, 0]))
    maps[3] = maps[3].clamp(min=0)  # ties
    whole = headline(spec, maps, context)
    close = {"atol": 1e-5, "equal_nan": True}
    assert torch.allclose(headline(spec, 4 * maps, context), whole, **close)
    if name == "sufficiency":  # the only one that compares samples
        return
    rows = torch.tensor([5, 3, 0])
    part = situation(
        context.batch.model, context.x[rows], context.batch.target[rows], y=context.y[rows],
        indices=rows.tolist(),
    )  # fmt: skip
    assert torch.allclose(headline(spec, maps[rows], part), whole[rows], **close)
    monkeypatch.setattr(passes, "rows_per_pass", lambda model, x: 3)
    assert torch.allclose(headline(spec, maps, context), whole, **close)


@settings(max_examples=15, deadline=None, database=None)
@given(
    name=st.sampled_from(["deletion_auc", "abpc", "morf_curve", "sensitivity_n", "aopc"]),
    values=st.lists(st.integers(-3, 3), min_size=12, max_size=12),
    power=st.integers(-8, 8),
    order=st.permutations(range(3)),
)
def test_scores_ignore_scale_and_order(name, values, power, order):
    context = situation(Linear(4), seeded(3, 4))
    maps = torch.tensor(values).view(3, 4).float()
    whole = headline(name, maps, context)
    moved = situation(Linear(4), context.x[list(order)], indices=list(order))
    again = headline(name, 2.0**power * maps[list(order)], moved)
    assert torch.allclose(again, whole[list(order)], atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", OF_THE_MODEL)
@pytest.mark.parametrize("shape", [(8,), (2, 12), (3, 8, 8)], ids=["table", "series", "image"])
def test_passes_are_as_declared(name, shape):
    fill = {"fill": "mean"} if name.startswith("road") and len(shape) == 1 else {}
    patch = {"segments": "patch", "patch": 2} if name == "irof" and len(shape) < 3 else {}
    score = resolve({"name": name, **CHEAP.get(name, {}), **fill, **patch})
    context = situation(Linear(*shape), seeded(4, *shape).float())
    with passes.counted(context.batch.model) as count:
        measured = score.measure(seeded(4, *shape, seed=1), context)
    forwards, backwards = score.passes(shape)
    per_batch = count.rows - 4 * forwards  # nothing at all, if it is the same for all samples
    assert (count.backwards, backwards) == (0, 0)
    assert per_batch in (0, 1)
    assert per_batch == 0 or score.end() == 0
    low, high = scores()[name].range
    for measurement in measured:
        defined = measurement.samples[~measurement.samples.isnan()]
        assert ((defined >= low - 1e-6) & (defined <= high + 1e-6)).all()


def test_scores_share_their_passes():
    context, maps = images(samples=4)
    model = context.batch.model
    steps = {"steps": 8}
    logit = {"output": "logit", **steps}
    with passes.counted(model) as count:
        for spec in (
            {"name": "deletion_auc", **steps},
            {"name": "pixel_flipping", **steps},
            {"name": "aopc", **steps},
            {"name": "aopc", **logit},
            {"name": "monotonicity", **steps},
            {"name": "morf_curve", "percents": [0, 25, 50, 75, 100], "output": "accuracy"},
            {"name": "comprehensiveness", "percents": [25, 50]},
        ):
            resolve(spec).measure(maps, context)
    assert count.rows == 4 * 8 + 1  # one MoRF path: the whole, 7 points, nothing (one row)
    with passes.counted(model) as count:
        for name in ("abpc", "insertion_auc"):
            resolve({"name": name, **steps}).measure(maps, context)
        resolve({"name": "lerf_curve", "percents": [25, 50]}).measure(maps, context)
        resolve({"name": "rationale_sufficiency", "percents": [25, 50]}).measure(maps, context)
    assert count.rows == 4 * 7  # the inner points of the LeRF path
    with passes.counted(model) as count:
        for name in ("average_drop", "average_increase", "average_gain"):
            resolve(name).measure(maps, context)
    assert count.rows == 4


def test_methods_share_what_does_not_depend_on_them():
    context, _ = images(samples=4)
    specs = [
        {"name": "faithfulness_correlation", "draws": 12, "size": 0.25},
        {"name": "sensitivity_n", "draws": 12, "sizes": [0.25, 0.5]},
        {"name": "faithfulness_estimate", "groups": 9},
        {"name": "infidelity", "draws": 6},
        {"name": "aopc", "versus": "random", "steps": 4, "output": "logit"},
    ]
    with passes.counted(context.batch.model) as count:
        for seed in range(5):
            # a method has maps of its own, and the batch in common
            own = replace(context, _memory={})
            for spec in specs:
                resolve(spec).measure(seeded(4, 2, 8, 8, seed=seed), own)
    shared = 1 + 12 + 12 + 9 + 6 + 3
    assert count.rows == 4 * (shared + 5 * 3) + 1


def test_all_targets_share_what_does_not_depend_on_them():
    context, maps = images(samples=4)
    other = replace(context, batch=context.batch.at(torch.full((4,), 1)), _memory={})
    spec = {"name": "faithfulness_correlation", "draws": 12}
    with passes.counted(context.batch.model) as count:
        values = [resolve(spec).measure(maps, c)[0].samples for c in (context, other)]
    assert count.rows == 4 * 13
    assert not torch.allclose(*values)


@pytest.mark.parametrize("name", OF_THE_MODEL)
def test_a_constant_map_has_a_defined_score(name):
    """The same for all constants; a correlation with a map of zeros there is none."""
    spec = {"name": name, **CHEAP.get(name, {})}
    context, maps = images(samples=3)
    zero, one, two = (headline(spec, torch.full_like(maps, v), context) for v in (0.0, 1.0, 2.0))
    if scores()[name].__module__.endswith("correlation"):
        assert zero.isnan().all()
        return
    assert zero.isfinite().all()
    if name != "infidelity":  # which depends on the scale
        assert zero.equal(one)
        assert one.equal(two)


def test_a_single_position_and_a_model_that_does_not_care():
    single = situation(Linear(1), seeded(3, 1).float())
    for name in ("deletion_auc", "insertion_auc", "abpc", "aopc", "morf_curve", "monotonicity"):
        assert headline(name, torch.ones(3, 1), single).isfinite().all()
    assert headline("abpc", torch.ones(3, 1), single).eq(0).all()
    assert headline("faithfulness_correlation", torch.ones(3, 1), single).isnan().all()
    context, maps = images(samples=3)
    for parameter in context.batch.model.parameters():
        parameter.zero_()
    assert headline("deletion_auc", maps, context) == pytest.approx(torch.full((3,), 1 / 3))
    assert headline("faithfulness_correlation", maps, context).isnan().all()
    assert headline("monotonicity", maps, context).eq(1).all()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "infidelity", "kind": "contribution", "perturbation": "gaussian"}, "removed"),
        ({"name": "infidelity", "fill": "noisy_linear"}, "is no perturbation of the input"),
        ({"name": "average_drop", "fill": "noisy_linear"}, "replaces positions entirely"),
        ({"name": "morf_curve", "percents": [50]}, "two or more, in ascending order"),
        ({"name": "morf_curve", "percents": [0, 150]}, "less than or equal to 100"),
        ({"name": "deletion_auc", "fill": "blak"}, "fill: input should be 'baseline'"),
        ({"name": "deletion_auc", "steps": 0}, "steps"),
    ],
)
def test_mistakes_get_one_clear_line(spec, says):
    with pytest.raises(ValueError, match=f"score '{spec['name']}'") as error:
        resolve(spec)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_superpixels_and_neighbours_need_images():
    context, maps = linear(8)
    with pytest.raises(ValueError, match="superpixels need images"):
        headline("irof", maps, context)
    with pytest.raises(ValueError, match="'noisy_linear' needs neighbours"):
        headline("road", maps, context)
