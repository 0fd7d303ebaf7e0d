"""Gradients, paths, smoothing, ReLU rules and DeepLIFT against other libraries and closed forms."""

from __future__ import annotations

import math
import warnings

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments import passes
from experiments.attribution import attribute, methods, resolve
from experiments.attribution.batch import Batch
from experiments.attribution.driver import untouched
from experiments.attribution.references import blur, references
from experiments.randomness import SampleGenerators

EXACT = {"rtol": 0, "atol": 1e-9}
N = 5


def seeded(build, *args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args).double().eval()


def images(layers=None):
    """Convolution, batch norm (one scale negative), ReLU, convolution, maxima; 2 × 6 × 6 inputs."""

    def build():
        norm = nn.BatchNorm2d(4)
        with torch.no_grad():
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.copy_(torch.tensor([1.0, -0.8, 0.5, 1.2]))
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), norm,
            *(layers or [nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2)]),
            nn.Flatten(), nn.Linear(36, 3),
        )  # fmt: skip

    return seeded(build), (2, 6, 6)


def rectified_maxima():
    """Maxima right before and after ReLUs, where captum 0.9's DeepLIFT loses its sum."""
    return images([nn.ReLU(), nn.MaxPool2d(2, stride=1, padding=1), nn.MaxPool2d(2), nn.ReLU()])


def series():
    return seeded(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.Tanh(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(12, 3)
        )
    ), (2, 8)


def table():
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)
        )
    ), (6,)


MODELS = {"images": images, "series": series, "table": table}


def inputs(shape, rows=N, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (rows,), generator=generator)


def batch_of(model, x, target, baseline=None, seed=0, background=None):
    base = torch.zeros_like(x[0]) if baseline is None else baseline
    batch = Batch(model, x, target, baseline=base, seed=seed, indices=range(len(x)))
    if background is not None:
        batch.background = background
    return batch


def maps_of(spec, model, x, target, **given):
    """The map in the precision of the model."""
    with untouched(model):
        return batch_of(model, x, target, **given).maps(spec)


def gain(model, x, target, baseline=None):
    with torch.no_grad():
        base = torch.zeros_like(x) if baseline is None else baseline.expand_as(x)
        return passes.selected(model(x), target) - passes.selected(model(base), target)


class F1(nn.Module):
    """One output f(x) of a row, as a model of two classes of which the second is zero."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        y = self.f(x)
        return torch.stack([y, torch.zeros_like(y)], 1)


OURS = [
    "gradient",
    "absolute_gradient",
    "squared_gradient",
    "input_x_gradient",
    {"name": "integrated_gradients", "steps": 7},
    {"name": "integrated_gradients", "steps": 3, "reference": "shuffled"},
    {"name": "smoothgrad", "samples": 5},
    {"name": "smoothgrad_squared", "samples": 5, "relative": True},
    {"name": "vargrad", "samples": 5, "base": {"name": "expected_gradients", "samples": 2}},
    {"name": "gradient_shap", "noise": 0.3, "reference": "uniform"},
    {"name": "expected_gradients", "samples": 5, "reference": "normal"},
    "guided_backprop",
    {"name": "deconvolution", "start": "output"},
    "deeplift",
    "deeplift_reveal_cancel",
    {"name": "deep_shap", "samples": 3},
]
OUR_IDS = [
    spec if isinstance(spec, str) else f"{spec['name']}-{len(spec)}{i}"
    for i, spec in enumerate(OURS)
]


# --- every method ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", OURS, ids=OUR_IDS)
@pytest.mark.parametrize("name", MODELS)
def test_neither_batch_nor_precision_nor_the_form_of_the_target_matters(name, spec):
    model, shape = MODELS[name]()
    x, target = inputs(shape)
    whole = maps_of(spec, model, x, target)
    assert whole.shape == x.shape
    assert whole.isfinite().all()

    parts = attribute(spec, model, x, target, batch_size=2)
    torch.testing.assert_close(parts.double(), whole, rtol=1e-5, atol=1e-6)

    weights = F.one_hot(target, 3).double()
    torch.testing.assert_close(maps_of(spec, model, x, weights), whole, **EXACT)

    single = maps_of(spec, model.float(), x.float(), target)
    torch.testing.assert_close(
        single.double(), whole, rtol=2e-3, atol=2e-4 * float(whole.abs().max())
    )


COSTS = {  # forwards without, forwards with a backward pass, for N samples
    "gradient": (0, N),
    "input_x_gradient": (0, N),
    "integrated_gradients": (0, 50 * N),
    "smoothgrad": (0, 20 * N),
    "gradient_shap": (0, 5 * N),
    "expected_gradients": (0, 20 * N),
    "guided_backprop": (0, N),
    "deconvolution": (0, N),
    "deeplift": (1, N),
    "deeplift_reveal_cancel": (1, 2 * N),
}


@pytest.mark.parametrize("spec", COSTS)
def test_exact_passes(spec):
    model, shape = table()
    x, target = inputs(shape)
    passes.rows_per_pass(model, x)
    with passes.counted(model) as count:
        maps_of(spec, model, x, target)
    assert (count.forwards, count.backwards) == COSTS[spec]


def test_shared_passes():
    model, shape = table()
    x, target = inputs(shape)
    batch = batch_of(model, x, target)
    with untouched(model), passes.counted(model) as count:
        for name in ("gradient", "absolute_gradient", "squared_gradient", "input_x_gradient"):
            batch.maps(name)
        batch.outputs()
        assert (count.rows, count.backwards) == (N, N)
        for name in ("smoothgrad", "smoothgrad_squared", "vargrad"):
            batch.maps({"name": name, "samples": 6})
        assert (count.rows, count.backwards) == (7 * N, 7 * N)
        batch.maps("deeplift")
        batch.at((target + 1) % 3).maps("deeplift")
        assert (count.rows, count.backwards) == (9 * N + 1, 9 * N)
    # Own references: one forward each, and the inputs go forward once for all of them.
    with untouched(model), passes.counted(model) as count:
        batch.maps({"name": "deep_shap", "samples": 4})
    assert (count.rows, count.backwards) == (4 * N + N, 4 * N)
    # Those of data are shared by samples and targets.
    batch = batch_of(model, x, target, background=inputs(shape, 9)[0])
    spec = {"name": "deep_shap", "samples": 4, "reference": "data"}
    with untouched(model), passes.counted(model) as count:
        batch.maps(spec)
        batch.at((target + 1) % 3).maps(spec)
    assert (count.rows, count.backwards) == (4 + 2 * N, 2 * 4 * N)


@pytest.mark.parametrize(
    "build", [*MODELS.values(), rectified_maxima], ids=[*MODELS, "rectified maxima"]
)
def test_completeness(build):
    model, shape = build()
    x, target = inputs(shape)
    base = inputs(shape, 1, seed=7)[0][0]
    expected = gain(model, x, target, base)
    for spec in ("deeplift", "deeplift_reveal_cancel"):
        maps = maps_of(spec, model, x, target, baseline=base)
        torch.testing.assert_close(maps.flatten(1).sum(1), expected, **EXACT)
    for rule in ("gausslegendre", "riemann_middle", "trapezoid"):
        spec = {"name": "ig", "steps": 400, "rule": rule}
        maps = maps_of(spec, model, x, target, baseline=base)
        torch.testing.assert_close(maps.flatten(1).sum(1), expected, rtol=0, atol=3e-3)
    # Any weights of outputs, as in label-free explanation: f(x) · f(x) − f(x) · f(b).
    with torch.no_grad():
        weights = model(x)
    maps = maps_of("deeplift", model, x, weights, baseline=base)
    torch.testing.assert_close(maps.flatten(1).sum(1), gain(model, x, weights, base), **EXACT)


# --- closed forms ---------------------------------------------------------------------------------


def explain(spec, f, x, **given):
    x = torch.tensor([x], dtype=torch.float64)
    model = f if isinstance(f, nn.Module) else F1(f)
    return maps_of(spec, model, x, torch.tensor([0]), **given)[0].tolist()


CONTRIBUTIONS = [
    "input_x_gradient",
    "ig",
    {"name": "ig", "rule": "linspace", "steps": 3},
    {"name": "ig", "path": "past_input", "rule": "riemann_left", "steps": 3},
    {"name": "gradient_shap", "samples": 1},
    {"name": "expected_gradients", "samples": 1},
    "deeplift",
    {"name": "deep_shap", "reference": "given"},
]


@pytest.mark.parametrize("spec", CONTRIBUTIONS, ids=str)
def test_contributions_to_an_affine_function(spec):
    """w · (x − b) for w = (1, −2, 3), b = 0."""
    w = torch.tensor([1.0, -2, 3], dtype=torch.float64)
    assert explain(spec, lambda x: x @ w + 0.7, [1.0, 1, 2]) == pytest.approx([1, -2, 6])


def test_reveal_cancel_refuses_what_is_no_layer_and_explains_a_linear_one():
    with pytest.raises(ValueError, match=r"'matmul' has no rule; linear layers must be nn\.Linear"):
        explain("deeplift_reveal_cancel", lambda x: x @ torch.ones(3).double(), [1.0, 1, 2])
    layer = nn.Linear(3, 1).double()
    expected = layer.weight[0].detach() * torch.tensor([1.0, 1, 2])
    found = explain("deeplift_reveal_cancel", lambda x: layer(x)[:, 0], [1.0, 1, 2])
    assert found == pytest.approx(expected.tolist())


def test_implementation_invariance():
    """Sundararajan et al. 2017, figure 3: relu(relu(x1) − 1 − relu(x2)), written in two ways."""

    def two(x):
        return F.relu(F.relu(x[:, 0]) - 1 - F.relu(x[:, 1]))

    def three(x):
        return F.relu(F.relu(x[:, 0] - 1) - F.relu(x[:, 1]))

    for f in (two, three):
        spec = {"name": "ig", "steps": 2000, "rule": "riemann_middle"}
        assert explain(spec, f, [3.0, 1]) == pytest.approx([1.5, -0.5], abs=1e-3)
        assert explain("absolute_gradient", f, [3.0, 1]) == [1, 1]


class TwoLayers(nn.Module):
    """relu(sum(x) + (−10, 1, 1, 1)) summed up: 392 at (20, 50, 30), 2 at 0."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.double()
        with torch.no_grad():
            self.first.weight.fill_(1)
            self.first.bias.copy_(torch.tensor([-10.0, 1, 1, 1]))
            self.last.weight.fill_(1)
            self.last.bias.copy_(torch.tensor([-1.0, 1]))

    def forward(self, x):
        return self.last(F.relu(self.first(x)))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gradient", [4, 4, 4]),
        ("squared_gradient", [16, 16, 16]),
        ("input_x_gradient", [80, 200, 120]),
        ("deeplift", [78, 195, 117]),
        ("ig", [78.036, 195.090, 117.054]),
        # captum's trapezoid, 77.930 ..., has weights that sum to 999 / 1000.
        (
            {"name": "ig", "steps": 1000, "rule": "trapezoid"},
            [77.930 / 0.999, 194.825 / 0.999, 116.895 / 0.999],
        ),
        ({"name": "ig", "steps": 10, "multiply_by_inputs": False}, [3.8990] * 3),
    ],
    ids=str,
)
def test_two_layers(spec, expected):
    found = explain(spec, TwoLayers(), [20.0, 50, 30])
    if spec == {"name": "ig", "steps": 10, "multiply_by_inputs": False}:
        assert found == pytest.approx([3.9] * 3, abs=0.05)
    else:
        assert found == pytest.approx(expected, abs=2e-3)


def test_deeplift_of_two_units():
    """2 relu(x1) + 2 relu(x2 − 1.5) at (1, 2), a test case of captum."""
    f = lambda x: 2 * F.relu(x[:, 0]) + 2 * F.relu(x[:, 1] - 1.5)  # noqa: E731
    assert explain("deeplift", f, [1.0, 2]) == pytest.approx([2, 1])


def test_path_rules_place_their_points():
    """∫ of f' = 2t at the points, for f = x² from 0 to 1; past the input the points are 1 + t."""

    def mean_of_points(**parameters):
        return explain({"name": "ig", **parameters}, lambda x: x[:, 0] ** 2, [1.0])[0] / 2

    assert mean_of_points(steps=4, rule="riemann_left") == pytest.approx(3 / 8)
    assert mean_of_points(steps=4, rule="riemann_right") == pytest.approx(5 / 8)
    assert mean_of_points(steps=4, rule="riemann_middle") == pytest.approx(1 / 2)
    assert mean_of_points(steps=1) == pytest.approx(1 / 2)
    past = mean_of_points(steps=4, rule="riemann_left", path="past_input")
    assert past == pytest.approx(1 + 3 / 8)

    def cubic(**parameters):
        return explain({"name": "ig", **parameters}, lambda x: x[:, 0] ** 3, [1.0])[0] / 3

    assert cubic(steps=3, rule="trapezoid") == pytest.approx((0.25 + 1 / 2) / 2)
    assert cubic(steps=3, rule="linspace") == pytest.approx((0 + 0.25 + 1) / 3)
    assert cubic(steps=2) == pytest.approx(1 / 3)


# --- other libraries ------------------------------------------------------------------------------


def captum_map(explainer, x, target, **given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return explainer.attribute(x.clone().requires_grad_(), target=target, **given).detach()


@pytest.mark.parametrize("name", MODELS)
def test_captum_agrees(name):
    model, shape = MODELS[name]()
    x, target = inputs(shape)
    base = inputs(shape, 1, seed=7)[0][0]
    bases = base.expand_as(x)
    for rule in ("gausslegendre", "riemann_left", "riemann_middle", "riemann_right"):
        ours = maps_of({"name": "ig", "steps": 6, "rule": rule}, model, x, target, baseline=base)
        theirs = captum_map(
            captum.attr.IntegratedGradients(model), x, target, baselines=bases, n_steps=6,
            method=rule,
        )  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # its weights are float32
    for spec, theirs in (
        ("absolute_gradient", captum.attr.Saliency(model)),
        ("input_x_gradient", captum.attr.InputXGradient(model)),
        ("guided_backprop", captum.attr.GuidedBackprop(model)),
        ("deconvolution", captum.attr.Deconvolution(model)),
    ):
        ours = maps_of(spec, model, x, target)
        torch.testing.assert_close(ours, captum_map(theirs, x, target), **EXACT)
    theirs = captum_map(captum.attr.DeepLift(model), x, target, baselines=bases)
    ours = maps_of("deeplift", model, x, target, baseline=base)
    torch.testing.assert_close(ours, theirs, **EXACT)
    background = inputs(shape, 4, seed=3)[0]
    spec = {"name": "deep_shap", "reference": "data", "samples": 4}
    theirs = captum_map(captum.attr.DeepLiftShap(model), x, target, baselines=background)
    ours = maps_of(spec, model, x, target, background=background)
    torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.slow  # importing shap
def test_deeplift_and_deep_shap_agree_with_shap():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import shap

    model, shape = images([nn.ReLU(), nn.MaxPool2d(2), nn.Tanh()])
    x, target = inputs(shape)
    background = inputs(shape, 4, seed=3)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explained = shap.DeepExplainer(model, background).shap_values(x)
    theirs = torch.as_tensor(explained)[torch.arange(N), ..., target]
    spec = {"name": "deep_shap", "reference": "data", "samples": 4}
    ours = maps_of(spec, model, x, target, background=background)
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_gradient_shap_and_expected_gradients_estimate_the_mean_over_the_background():
    """What captum's GradientShap and shap's GradientExplainer converge to: IG from every row."""
    model, shape = table()
    x, target = inputs(shape, 3)
    background = inputs(shape, 4, seed=3)[0]
    exact = torch.stack(
        [
            maps_of({"name": "ig", "steps": 200}, model, x, target, baseline=row)
            for row in background
        ]
    ).mean(0)
    for name in ("expected_gradients", "gradient_shap"):
        errors = []
        for samples in (100, 6400):
            spec = {"name": name, "samples": samples, "reference": "data"}
            maps = maps_of(spec, model, x, target, background=background)
            errors.append(float((maps - exact).square().mean().sqrt()))
        assert errors[1] < 0.25 * errors[0]  # an eighth, but for luck
        assert errors[1] < 0.05 * float(exact.abs().max())


def test_noise_of_gradient_shap_is_part_of_the_difference():
    """E[(x + ε − b) · w] with one draw: the map is w · (x + ε), as captum's noise tunnel has it."""
    spec = {"name": "gradient_shap", "samples": 3, "noise": 0.5}
    drawn = SampleGenerators(0, [0], "gradient_shap/noise").normal(3, 2)[0].mean(0)
    w = torch.tensor([2.0, -1], dtype=torch.float64)
    expected = w * (torch.tensor([1.0, 4]) + 0.5 * drawn)
    assert explain(spec, lambda x: x @ w, [1.0, 4]) == pytest.approx(expected.tolist())


# --- smoothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["gradient", "guided_backprop", {"name": "ig", "steps": 3}])
@pytest.mark.parametrize("relative", [False, True])
def test_smoothing_by_definition(base, relative):
    model, shape = images()
    x, target = inputs(shape)
    given = {"samples": 4, "noise": 0.3, "relative": relative, "base": base}
    draws = SampleGenerators(0, range(N), "attribution/smoothgrad").normal(4, *shape)
    size = (
        0.3 * (x.flatten(1).amax(1) - x.flatten(1).amin(1)) if relative else torch.full((N,), 0.3)
    )
    each = torch.stack(
        [
            maps_of(base, model, x + size[:, None, None, None] * draws[:, j], target)
            for j in range(4)
        ]
    )
    found = {
        name: maps_of({"name": name, **given}, model, x, target)
        for name in ("smoothgrad", "smoothgrad_squared", "vargrad")
    }
    torch.testing.assert_close(found["smoothgrad"], each.mean(0), **EXACT)
    torch.testing.assert_close(found["smoothgrad_squared"], each.square().mean(0), **EXACT)
    torch.testing.assert_close(found["vargrad"], each.var(0, correction=0), **EXACT)


def test_without_noise_nothing_is_smoothed():
    model, shape = table()
    x, target = inputs(shape)
    gradient = maps_of("gradient", model, x, target)
    flat = torch.ones_like(x)
    at_flat = maps_of("gradient", model, flat, target)
    for given, points, expected in (
        ({"noise": 0.0}, x, gradient),
        ({"noise": 0.5, "relative": True}, flat, at_flat),  # a constant sample has no range
    ):
        for name, value in (
            ("smoothgrad", expected),
            ("smoothgrad_squared", expected**2),
            ("vargrad", 0 * expected),
        ):
            found = maps_of({"name": name, "samples": 3, **given}, model, points, target)
            torch.testing.assert_close(found, value, **EXACT)


# --- rules for ReLUs and other functions ----------------------------------------------------------


class Written(nn.Module):
    """A network that can be written in several ways; its ReLU module is used twice."""

    def __init__(self, way):
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 3, 3), nn.Conv1d(3, 3, 3)
        self.last = nn.Linear(12, 3)
        self.relu = nn.ReLU(inplace=way == "in place")
        self.other = nn.ReLU()
        self.way = way

    def activate(self, x, module):
        if self.way == "function":
            return F.relu(x)
        if self.way == "method":
            x.relu_()  # the result is ignored
            return x
        if self.way == "clamp":
            return x.clamp(min=0)
        return module(x)

    def forward(self, x):
        y = self.activate(self.first(x), self.other if self.way == "modules" else self.relu)
        return self.last(self.activate(self.second(y), self.relu).flatten(1))


@pytest.mark.parametrize(
    "spec", ["guided_backprop", "deconvolution", "deeplift", "deeplift_reveal_cancel"]
)
def test_how_a_relu_is_written_does_not_matter(spec):
    x, target = inputs((1, 8))
    reference = seeded(Written, "modules")
    expected = maps_of(spec, reference, x, target)
    assert not torch.allclose(expected, maps_of("gradient", reference, x, target))
    for way in ("in place", "reused", "function", "method", "clamp"):
        found = maps_of(spec, seeded(Written, way), x, target)
        torch.testing.assert_close(found, expected, **EXACT)


def test_guided_backprop_and_deconvolution_by_hand():
    """f = relu(x1) − relu(x2), at (1, 1) and (−1, 1): what goes back is (1, −1)."""
    f = lambda x: F.relu(x[:, 0]) - F.relu(x[:, 1])  # noqa: E731
    assert explain("guided_backprop", f, [1.0, 1]) == [1, 0]
    assert explain("guided_backprop", f, [-1.0, 1]) == [0, 0]
    assert explain("deconvolution", f, [-1.0, 1]) == [1, 0]
    # Started with the output, which is −1 there, the signs are the other way round.
    assert explain({"name": "deconvolution", "start": "output"}, f, [-1.0, 1]) == [0, 1]
    assert explain({"name": "guided_backprop", "start": "output"}, f, [-1.0, 1]) == [0, 1]


SMOOTH = {
    "gelu": F.gelu,
    "softplus": F.softplus,
    "elu": nn.ELU(inplace=True),
    "silu": nn.SiLU(),
    "leaky": nn.LeakyReLU(0.2, inplace=True),
    "prelu": nn.PReLU(),
    "exp": torch.exp,
    "square": lambda x: x**2,
    "overlapping maxima": lambda x: F.max_pool1d(x[:, None], 3, stride=1)[:, 0],
    "adaptive maxima": lambda x: F.adaptive_max_pool1d(x[:, None], 2)[:, 0],
}


@pytest.mark.parametrize("function", SMOOTH.values(), ids=SMOOTH)
@pytest.mark.parametrize("spec", ["deeplift", "deeplift_reveal_cancel"])
def test_every_known_function_keeps_the_sum(spec, function):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.f = nn.Linear(4, 5), function
            size = len(function(torch.zeros(1, 5, dtype=torch.double))[0])
            self.last = nn.Linear(size, 3)

        def forward(self, x):
            return self.last(self.f(self.first(x)))

    if isinstance(function, nn.Module):
        function.double()
    model = seeded(Net)
    x, target = inputs((4,))
    x[0] = 0  # no difference at all
    maps = maps_of(spec, model, x, target)
    torch.testing.assert_close(maps.sum(1), gain(model, x, target), **EXACT)
    assert maps[0].eq(0).all()


def literal_reveal_cancel(layers, x, base, target):
    """Shrikumar et al. 2017, sections 3.5.1 and 3.5.3, neuron by neuron, for one sample."""

    def f(value):
        return max(value, 0.0)

    def f_slope(value):
        return float(value > 0)

    value, diff = base.tolist(), (x - base).tolist()
    trace = []
    for number, layer in enumerate(layers):
        w, b = layer.weight.tolist(), layer.bias.tolist()
        before = [sum(w[j][i] * value[i] for i in range(len(value))) + b[j] for j in range(len(b))]
        terms = [[w[j][i] * diff[i] for i in range(len(diff))] for j in range(len(b))]
        up = [sum(t for t in row if t > 0) for row in terms]
        down = [sum(t for t in row if t < 0) for row in terms]
        last = number == len(layers) - 1
        if last:
            trace.append((w, diff, None))
            break
        y_up = [
            (f(z + u) - f(z) + f(z + u + d) - f(z + d)) / 2
            for z, u, d in zip(before, up, down, strict=True)
        ]
        y_down = [
            (f(z + d) - f(z) + f(z + u + d) - f(z + u)) / 2
            for z, u, d in zip(before, up, down, strict=True)
        ]
        ratios = [
            [
                y / part if part else (f_slope(z) + f_slope(z + other)) / 2
                for y, part, z, other in rows
            ]
            for rows in (
                zip(y_up, up, before, down, strict=True),
                zip(y_down, down, before, up, strict=True),
            )
        ]
        trace.append((w, diff, ratios))
        value = [f(z) for z in before]
        diff = [u + d for u, d in zip(y_up, y_down, strict=True)]
    size = len(layers[-1].bias)
    back: list[float] = []
    positive = negative = [1.0 if j == target else 0.0 for j in range(size)]
    for w, diff, ratios in reversed(trace):
        if ratios is not None:
            positive, negative = ([m * r for m, r in zip(back, rs, strict=True)] for rs in ratios)
        mean = [(p + n) / 2 for p, n in zip(positive, negative, strict=True)]
        by_sign = {1: positive, 0: mean, -1: negative}
        back = [
            sum(
                w[j][i] * by_sign[math.copysign(1, w[j][i] * d) if d else 0][j]
                for j in range(len(w))
            )
            for i, d in enumerate(diff)
        ]
    return torch.tensor(back, dtype=torch.float64) * (x - base)


def test_reveal_cancel_by_definition():
    model, shape = table()
    x, target = inputs(shape)
    base = inputs(shape, 1, seed=7)[0][0]
    maps = maps_of("deeplift_reveal_cancel", model, x, target, baseline=base)
    layers = [module for module in model if isinstance(module, nn.Linear)]
    for row in range(N):
        expected = literal_reveal_cancel(layers, x[row], base, int(target[row]))
        torch.testing.assert_close(maps[row], expected, **EXACT)
    assert not torch.allclose(maps, maps_of("deeplift", model, x, target, baseline=base))


def test_reveal_cancel_reveals_a_minimum():
    """min(x1, x2) = x1 − relu(x1 − x2) at (3, 2): Shapley's (1, 1) where rescale gives (0, 2)."""

    class Minimum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
            with torch.no_grad():
                self.first.weight.copy_(torch.tensor([[1.0, 0], [1, -1]]))
                self.last.weight.copy_(torch.tensor([[1.0, -1], [0, 0]]))
                self.first.bias.zero_(), self.last.bias.zero_()

        def forward(self, x):
            hidden = self.first(x)
            return self.last(torch.cat([hidden[:, :1], F.relu(hidden[:, 1:])], 1))

    assert explain("deeplift_reveal_cancel", Minimum().double(), [3.0, 2]) == pytest.approx([1, 1])
    assert explain("deeplift", Minimum().double(), [3.0, 2]) == pytest.approx([0, 2])


def test_folding_a_batch_norm_changes_nothing():
    model, shape = images()
    x, target = inputs(shape)
    conv, norm = model[0], model[1]
    folded = nn.utils.fuse_conv_bn_eval(conv, norm)
    other = nn.Sequential(folded, *model[2:])
    for spec in ("deeplift", "deeplift_reveal_cancel"):
        torch.testing.assert_close(
            maps_of(spec, other, x, target), maps_of(spec, model, x, target), **EXACT
        )


# --- references -----------------------------------------------------------------------------------


def drawn(kind, x, count=3, scale=1.0, background=None, indices=None):
    generator = SampleGenerators(0, indices or range(len(x)), "test")
    base = torch.full_like(x[0], 0.25)
    found = references(kind, x, base, generator, count=count, scale=scale, background=background)
    return torch.stack(list(found))


def test_references():
    x, _ = inputs((2, 4, 5))
    assert drawn("given", x).eq(0.25).all()
    assert drawn("zero", x).eq(0).all()
    torch.testing.assert_close(drawn("mean", x)[0, :, :, 1, 2], x.mean((2, 3)))
    torch.testing.assert_close(drawn("mean", x[:, 0, 0])[0, :, 3], x[:, 0, 0].mean(1))
    shuffled = drawn("shuffled", x)
    torch.testing.assert_close(
        shuffled[1].flatten(2).sort(-1).values, x.flatten(2).sort(-1).values, **EXACT
    )
    assert not torch.equal(shuffled[0], shuffled[1])
    # All channels are permuted alike.
    pairs = (x[0, 0] * 7 + x[0, 1]).flatten().sort().values
    found = (shuffled[0, 0, 0] * 7 + shuffled[0, 0, 1]).flatten().sort().values
    torch.testing.assert_close(found, pairs)
    uniform = drawn("uniform", x)
    assert (uniform.flatten(2).amax(2) <= x.flatten(1).amax(1)).all()
    assert (uniform.flatten(2).amin(2) >= x.flatten(1).amin(1)).all()
    assert drawn("normal", x, count=400, scale=0.1).mean() == pytest.approx(0.25, abs=2e-3)
    background = inputs((2, 4, 5), 3, seed=8)[0]
    rows = drawn("data", x, count=8, background=background).flatten(0, 1)
    assert {int(i) for row in rows for i in range(3) if torch.equal(row, background[i])} == {
        0,
        1,
        2,
    }
    # A sample's references are its own, not its batch's.
    for kind in ("shuffled", "uniform", "normal", "data"):
        alone = drawn(kind, x[3:], background=background, indices=[3, 4])
        assert torch.equal(alone, drawn(kind, x, background=background)[:, 3:])


@pytest.mark.parametrize("size", [1, 2, 3, 12])
def test_blur_is_a_reflected_gaussian(size):
    x = torch.randn(4, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.exp(-0.5 * (torch.arange(-3, 4).double() / 1.5) ** 2)
    expected = torch.zeros_like(x)
    for i in range(size):
        for step in range(-3, 4):
            j = i + step
            while size > 1 and not 0 <= j < size:
                j = -j if j < 0 else 2 * (size - 1) - j
            expected[:, i] += weight[step + 3] / weight.sum() * x[:, j if size > 1 else 0]
    torch.testing.assert_close(x @ blur(x, size, 1.5), expected)


# --- mistakes -------------------------------------------------------------------------------------


class Softmaxed(nn.Sequential):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.gate, self.last = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.value(x) * torch.sigmoid(self.gate(x)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(x) if x.abs().sum() > 0 else torch.sigmoid(x))


@pytest.mark.parametrize("method", ["deeplift", "deeplift_reveal_cancel", "deep_shap"])
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Softmaxed(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), r"rule \(softmax\)"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)), "layer_norm"),
        (Gated, r"rule \(mul\)"),
        (lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 3), nn.ReLU())), "is compiled"),
    ],
)
def test_deeplift_never_gives_wrong_numbers_in_silence(method, build, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = seeded(build)
    x, target = inputs((6,))
    with pytest.raises(ValueError, match=message) as error:
        maps_of(method, model, x, target)
    assert "\n" not in str(error.value)
    assert f"method '{method}'" in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "ig", "rule": "trapezoid", "steps": 1}, "'trapezoid' needs at least 2 steps"),
        ({"name": "ig", "reference": "data"}, "has no background data"),
        ({"name": "deep_shap", "reference": "data"}, "has no background data"),
        ({"name": "smoothgrad", "base": "gradiant"}, "did you mean 'gradient'"),
        ({"name": "smoothgrad", "base": "oracle"}, "needs the truth"),
        ({"name": "vargrad", "base": {"name": "ig", "stepz": 3}}, "did you mean 'steps'"),
        ({"name": "smoothgrad", "noise": -1}, "'noise' should be greater than or equal to 0"),
    ],
    ids=str,
)
def test_mistakes_get_one_line(spec, message):
    model, shape = table()
    x, target = inputs(shape)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        maps_of(spec, model, x, target)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_branches_and_a_base_for_other_models():
    x, target = inputs((6,))
    with pytest.raises(ValueError, match="takes another way for its reference"):
        maps_of("deeplift", seeded(Branching), x, target)
    model, _ = table()
    model.kind = "transformer"
    with pytest.raises(ValueError, match="base 'deeplift' does not apply"):
        maps_of({"name": "smoothgrad", "base": "deeplift"}, model, x, target)


def test_names():
    for alias, name in (
        ("ig", "integrated_gradients"),
        ("deconvnet", "deconvolution"),
        ("saliency", "gradient"),
        ("deeplift_shap", "deep_shap"),
    ):
        assert resolve(alias)[0].name == name
    known = methods()
    assert known["smoothgrad"].defaults["samples"] == 20
    assert known["smoothgrad"].defaults["noise"] == 0.2
    assert all(known[resolve(spec)[0].name].source for spec in OURS)
    assert math.isclose(known["gradient_shap"].defaults["noise"], 0)
