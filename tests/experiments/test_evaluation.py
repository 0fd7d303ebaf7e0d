"""The engine: what is run once, what is counted, and that sharing changes no number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments import attribution, evaluation, passes, scoring
from experiments.attribution import driver
from experiments.randomness import SampleGenerators

SIDE, CLASSES = 8, 3


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(6 * (SIDE // 2) ** 2, CLASSES),
        ]  # fmt: skip
        return nn.Sequential(*layers).double().eval()


@pytest.fixture(scope="module")
def x():
    return SampleGenerators(0, range(6), "images").normal(2, SIDE, SIDE)


@pytest.fixture(scope="module")
def y(model, x):
    return passes.outputs(model, x).argmax(1)


def batch_of(model, x, y):
    return next(iter(driver.batches(model, x, y)))[1]


# ---- passes ----------------------------------------------------------------------------------


def test_a_pass_is_counted_in_rows_forwards_and_backwards(model, x, y):
    with passes.counted(model) as count:
        passes.outputs(model, x)
        passes.gradients(model, x, y)
    assert (count.rows, count.backwards, count.forwards) == (12, 6, 6)
    passes.outputs(model, x)
    assert count.rows == 12  # the hook is gone
    assert not model._forward_hooks


def test_the_size_of_a_pass_is_no_matter_of_time_and_measuring_it_is_not_counted(model, x):
    with passes.counted(model) as count:
        rows = passes.rows_per_pass(model, x)
    assert count.rows == 0
    assert rows.bit_count() == 1
    assert passes.FEWEST <= rows <= passes.MOST
    other = nn.Sequential(*model).double()
    assert passes.rows_per_pass(other, x) == rows
    big = nn.Sequential(*[nn.Conv2d(2, 2, 3, padding=1) for _ in range(8)])
    assert passes.rows_per_pass(big, torch.zeros(1, 2, 256, 256)) < rows


def test_out_of_memory_halves_the_passes_down_to_one_row(model, x):
    passes._rows.pop(model, None)
    sizes = []

    def greedy(part):
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.cuda.OutOfMemoryError("too much")
        return 2 * part

    many = x.repeat(3, 1, 1, 1)
    (found,) = passes.in_passes(greedy, model, many)
    torch.testing.assert_close(found, 2 * many)
    assert sizes[-1] == 2
    assert passes.rows_per_pass(model, x) == 2  # it is remembered
    passes._rows.pop(model, None)

    def hopeless(part):
        raise torch.cuda.OutOfMemoryError("too much")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        passes.in_passes(hopeless, model, x)
    passes._rows.pop(model, None)


def test_selected_outputs_are_classes_or_weighted_sums(model, x, y):
    outputs = passes.outputs(model, x)
    one_hot = nn.functional.one_hot(y, CLASSES).double()
    torch.testing.assert_close(passes.selected(outputs, y), passes.selected(outputs, one_hot))
    for name in ("gradient", "integrated_gradients", "occlusion"):
        by_class = attribution.attribute(name, model, x, y)
        by_weight = attribution.attribute(name, model, x, one_hot)
        torch.testing.assert_close(by_class, by_weight)


# ---- what is shared --------------------------------------------------------------------------


def test_methods_made_of_the_same_passes_share_them(model, x, y):
    smooth = {"samples": 4, "noise": 0.1}
    shared = [
        "gradient", "absolute_gradient", "squared_gradient", "input_x_gradient",
        *({"name": name, **smooth} for name in ("smoothgrad", "smoothgrad_squared", "vargrad")),
        {"name": "integrated_gradients", "steps": 5},
    ]  # fmt: skip
    found = evaluation.evaluate(model, x, y, methods=shared)
    assert (found.count.forwards, found.count.backwards) == (0, len(x) * (1 + 4 + 5))
    for spec, maps in zip(shared, found.maps, strict=True):
        alone = attribution.attribute(spec, model, x, y)
        torch.testing.assert_close(maps, alone, rtol=0, atol=0)


def test_all_targets_cost_one_set_of_masks(model, x):
    every = torch.arange(CLASSES).expand(len(x), -1)
    for spec in ({"name": "rise", "samples": 16}, {"name": "lime", "samples": 16}):
        with passes.counted(model) as one:
            attribution.attribute(spec, model, x, every[:, 0])
        with passes.counted(model) as count:
            maps = attribution.attribute(spec, model, x, every)
        assert count.rows == one.rows
        assert maps.shape == (len(x), CLASSES, *x.shape[1:])
        alone = attribution.attribute(spec, model, x, every[:, 2])
        torch.testing.assert_close(maps[:, 2], alone)


def test_gradients_of_all_classes_share_the_forward_pass(model, x):
    every = torch.arange(CLASSES).expand(len(x), -1)
    with passes.counted(model) as count:
        maps = attribution.attribute("gradient", model, x, every)
    assert (count.rows, count.backwards) == (len(x), CLASSES * len(x))
    for label in range(CLASSES):
        alone = attribution.attribute("gradient", model, x, label)
        torch.testing.assert_close(maps[:, label], alone, rtol=0, atol=0)


def test_a_batch_that_holds_too_much_forgets_maps_and_nothing_else(model, x, y):
    batch = batch_of(model, x, y)
    noisy = batch.variant("noisy", lambda: batch.x + 1)
    maps, gradient = noisy.maps("input_x_gradient"), noisy.gradient()
    batch.trim()
    assert noisy.maps("input_x_gradient") is maps
    batch.trim(limit=0)
    with passes.counted(model) as count:
        again = noisy.maps("input_x_gradient")
    assert again is not maps
    assert torch.equal(again, maps)
    assert noisy.gradient() is gradient
    assert count.rows == 0


def test_the_batches_change_no_number(model, x, y):
    methods = ["gradient", {"name": "smoothgrad", "samples": 3}, "random"]
    scores = ["max_sensitivity", "parameter_randomisation", "sparseness", "completeness"]
    whole, parts = (
        evaluation.evaluate(model, x, y, methods=methods, scores=scores, batch_size=size)
        for size in (None, 2)
    )
    assert whole.count == parts.count
    for left, right in zip(whole.measurements, parts.measurements, strict=True):
        for ours, theirs in zip(left, right, strict=True):
            assert [m.facets for m in ours] == [m.facets for m in theirs]
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one.samples, other.samples, equal_nan=True)
                assert one.n == other.n


def test_known_maps_are_not_run_again_and_give_the_same_scores(model, x, y):
    methods, scores = ["gradient", "integrated_gradients"], ["completeness", "random_logit"]
    first = evaluation.evaluate(model, x, y, methods=methods, scores=scores)
    later = evaluation.evaluate(
        model, x, y, methods=methods, scores=scores, known=dict(enumerate(first.maps)),
        wanted={(1, 0)},
    )  # fmt: skip
    assert later.count.backwards == 0
    assert later.measurements[0] == [None, None]
    assert later.measurements[1][1] is None
    assert later.measurements[1][0][0].value == first.measurements[1][0][0].value


def test_the_model_is_left_as_it_was(model, x, y):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    try:
        evaluation.evaluate(
            model, x, y, methods=["gradient", "guided_backprop", "lrp_epsilon_plus"],
            scores=["parameter_randomisation", "input_invariance"],
        )  # fmt: skip
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


# ---- for a notebook --------------------------------------------------------------------------


def test_one_method_and_one_score_in_a_notebook(model, x, y):
    maps = attribution.attribute("ig", model, x, 1, baseline=0.5)
    assert maps.dtype == torch.float32
    (measured,) = [m for m in scoring.score("completeness", maps, x, model=model, target=1,
                                            baseline=0.5) if m.headline]  # fmt: skip
    assert measured.samples.shape == (len(x),)
    mask = torch.zeros(len(x), SIDE, SIDE, dtype=torch.bool)
    mask[:, :4] = True
    (mass,) = [m for m in scoring.score("relevance_mass", maps, x, mask=mask) if m.headline]
    expected = maps.sum(1).clamp(min=0).double()
    expected = expected[:, :4].sum((1, 2)) / expected.sum((1, 2))
    torch.testing.assert_close(mass.samples.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("score", "given", "message"),
    [
        ("completeness", {}, "runs the model"),
        ("max_sensitivity", {"model": "ours", "target": 0}, "give `method`"),
        ("relevance_mass", {}, "no masks"),
        ("complete", {}, "unknown score 'complete'"),
    ],
)
def test_what_a_score_lacks_is_said_in_one_line(model, x, score, given, message):
    given = {key: model if value == "ours" else value for key, value in given.items()}
    with pytest.raises(ValueError, match=message) as raised:
        scoring.score(score, x.float(), x, **given)
    assert "\n" not in str(raised.value)


def test_a_batch_says_which_draw_belongs_to_whom(model, x, y):
    batch = batch_of(model, x, y)
    noisy = batch.variant("noise0", lambda: batch.x + 1)
    assert noisy is batch.variant("noise0", lambda: 1 / 0)  # made once
    draws = [b.generator("mask").uniform(3) for b in (batch, noisy)]
    assert not torch.equal(*draws)
    copies = batch.expanded("copies", lambda: batch.x[:, None].expand(-1, 2, -1, -1, -1))
    assert copies.indices[:3] == [(0, 0), (0, 1), (1, 0)]
    assert copies.target.tolist() == y.repeat_interleave(2).tolist()
    assert (
        batch.under("other", nn.Identity())
        .generator("a")
        .uniform(1)
        .equal(batch.generator("a").uniform(1))
    )


def test_channels_last_changes_the_last_bits_and_is_put_back(model, x, y):
    single = nn.Sequential(*model).float()
    try:
        plain, laid = (
            evaluation.evaluate(
                single, x.float(), y, methods=["gradient", "lrp_epsilon_plus", "score_cam"],
                scores=["deletion_auc"], channels_last=wanted,
            )
            for wanted in (False, True)
        )  # fmt: skip
        assert all(parameter.is_contiguous() for parameter in single.parameters())
        for one, other in zip(plain.maps, laid.maps, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        assert plain.count == laid.count
    finally:
        model.double()
