"""Attribution methods against values that can be worked out by hand.

Each model is small enough for pencil and paper; the numbers in the comments are the derivation.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from experiments.attribution import attribute
from experiments.models.andor import Sum

EXACT = {"rtol": 1e-5, "atol": 1e-5}


class Small(nn.Module):
    """A model of one logit f(x), the first of two; the second is 0."""

    kind = "cnn"

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros((), dtype=dtype))

    def f(self, x):
        raise NotImplementedError

    def forward(self, x):
        y = self.f(x)
        return torch.stack([y, torch.zeros_like(y)], 1)


class Affine(Small):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1, dtype=torch.float64)
        self.layer.weight.data[:] = torch.tensor([1.0, -2, 3])
        self.layer.bias.data[:] = 0.7

    def f(self, x):
        return self.layer(x)[:, 0]


class Product(Small):
    def f(self, x):
        return x.prod(1)


class Maximum(Small):
    def f(self, x):
        return x.amax(1)


class TwoLayers(nn.Module):
    """h = relu(sum(x) + (−10, 1, 1, 1)); logits = sum(h) + (−1, 1).

    At (20, 50, 30): h = (90, 101, 101, 101), first logit 392; at 0: h = (0, 1, 1, 1), logit 2.
    The first hidden unit starts at sum(x) = 10, a tenth of the way from 0 to x, so the gradient
    is 3 for a tenth of the path and 4 for the rest: 3.9 on average.
    """

    kind = "cnn"

    def __init__(self):
        super().__init__()
        self.first, self.relu = nn.Linear(3, 4), nn.ReLU()
        self.last = nn.Linear(4, 2)
        self.double()
        with torch.no_grad():
            self.first.weight.fill_(1)
            self.first.bias.copy_(torch.tensor([-10.0, 1, 1, 1]))
            self.last.weight.fill_(1)
            self.last.bias.copy_(torch.tensor([-1.0, 1]))

    def forward(self, x):
        return self.last(self.relu(self.first(x)))


def explain(name, model, x, target=0, **parameters):
    x = torch.tensor([x], dtype=torch.float64)
    return attribute({"name": name, **parameters}, model, x, torch.tensor([target]))[0]


def assert_map(actual, expected, **tolerance):
    torch.testing.assert_close(actual, torch.tensor(expected), **(tolerance or EXACT))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("input_x_gradient", {}),
        ("integrated_gradients", {}),
        ("integrated_gradients", {"steps": 1}),
        ("integrated_gradients", {"steps": 4, "rule": "riemann_left"}),
        ("deeplift", {}),
        ("shapley_exact", {}),
        ("kernel_shap", {"samples": 60}),
        ("feature_ablation", {}),
        ("occlusion", {"window": 1}),
        ("expected_gradients", {}),
        ("lrp_epsilon", {}),
    ],
    ids=str,
)
def test_contributions_to_an_affine_function(name, parameters):
    """w · (x − b) with w = (1, −2, 3), x = (1, 1, 2), b = 0."""
    maps = explain(name, Affine(), [1.0, 1, 2], **parameters)
    assert_map(maps, [1.0, -2, 6], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gradient", "smoothgrad", "guided_backprop", "deconvolution"])
def test_gradient_of_an_affine_function(name):
    assert_map(explain(name, Affine(), [1.0, 1, 2]), [1.0, -2, 3])


def test_baseline_other_than_zero():
    """w · (x − b) with b = (1, 0, −1): (0, −2, 9)."""
    x, baseline = torch.tensor([[1.0, 1, 2]]), torch.tensor([1.0, 0, -1])
    for name in ("integrated_gradients", "deeplift", "shapley_exact", "feature_ablation"):
        maps = attribute(name, Affine(), x, torch.tensor([0]), baseline=baseline)
        assert_map(maps[0], [0.0, -2, 9])


def test_occlusion_shares_windows_between_neighbours():
    """Windows (1, 2) and (2, 3) take away 1 − 2 and −2 + 6; the middle gets their mean."""
    assert_map(explain("occlusion", Affine(), [1.0, 1, 2], window=2), [-1.0, 1.5, 4])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("integrated_gradients", [3.0, 3]),  # ∫ t·3·2 dt for both
        ("shapley_exact", [3.0, 3]),  # symmetric, and efficient: 6
        ("feature_ablation", [6.0, 6]),  # either at zero makes the product zero
        ("input_x_gradient", [6.0, 6]),
        ("gradient", [3.0, 2]),
    ],
)
def test_product(name, expected):
    """f = x1 x2 at (2, 3)."""
    assert_map(explain(name, Product(), [2.0, 3]), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shapley_exact", [1.0, 2]),  # x1: half of (2 − 0) + half of (3 − 3); x2: the rest
        ("integrated_gradients", [0.0, 3]),  # x2 is the larger on the whole path
        ("feature_ablation", [0.0, 1]),
    ],
)
def test_maximum(name, expected):
    """f = max(x1, x2) at (2, 3)."""
    assert_map(explain(name, Maximum(), [2.0, 3]), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gradient", [4.0, 4, 4]),
        ("input_x_gradient", [80.0, 200, 120]),
        ("feature_ablation", [80.0, 200, 120]),  # the first unit stays on without any one input
        ("lrp_epsilon", [80.0, 200, 120]),
        ("deeplift", [78.0, 195, 117]),  # the exact path integral: 3.9 x
        # The first unit is worth 90, and any one input but the first brings it above zero ...
        ("shapley_exact", [80 - 10 / 3, 200 - 10 / 3, 120 - 10 / 3]),
    ],
)
def test_two_layers(name, expected):
    """392 − 2 = 390 shared between (20, 50, 30); the threshold of 10 costs everybody 10/3."""
    assert_map(explain(name, TwoLayers(), [20.0, 50, 30]), expected, rtol=1e-4, atol=1e-3)


def test_integrated_gradients_of_two_layers():
    """50 Gauss-Legendre points miss the kink by a twentieth of a per cent (captum's own value)."""
    maps = explain("integrated_gradients", TwoLayers(), [20.0, 50, 30])
    assert_map(maps, [78.036, 195.090, 117.054], rtol=0, atol=2e-3)


class Pooled(nn.Module):
    """Convolution, mean over positions, linear: the network of CAM."""

    kind = "cnn"

    def __init__(self):
        super().__init__()
        self.cam_layer = nn.Conv2d(1, 3, (3, 1), padding=(1, 0))
        self.last = nn.Linear(3, 2)
        self.double()

    def forward(self, x):
        return self.last(self.cam_layer(x[:, None, :, None]).mean((2, 3)))

    def cam_reshape(self, activations):
        return activations.squeeze(-1)


@pytest.mark.parametrize("name", ["grad_cam", "hires_cam"])
def test_grad_cam_of_a_pooled_network_is_cam(name):
    """CAM (Zhou et al. 2016) weights each channel by the class weight; the gradient is that / D."""
    torch.manual_seed(0)
    model, x = Pooled(), torch.randn(4, 6, dtype=torch.float64)
    target = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        channels = model.cam_layer(x[:, None, :, None]).squeeze(-1)
        cam = torch.einsum("bc,bcd->bd", model.last.weight[target], channels) / 6
    torch.testing.assert_close(attribute(name, model, x, target), cam.float())


def test_grad_cam_plus_plus_by_the_formula():
    """Chattopadhyay et al. 2018, equation 19, written out in loops."""
    torch.manual_seed(0)
    model, x = Pooled(), torch.randn(2, 6, dtype=torch.float64)
    with torch.no_grad():
        a = model.cam_layer(x[:, None, :, None]).squeeze(-1)
    maps = attribute("grad_cam_plus_plus", model, x, torch.tensor([0, 1]))
    for row, label in enumerate((0, 1)):
        expected = torch.zeros(6, dtype=torch.float64)
        for c in range(3):
            g = model.last.weight[label, c].item() / 6
            alpha = g**2 / (2 * g**2 + a[row, c].sum().item() * g**3 + 1e-6)
            expected += 6 * alpha * max(g, 0) * a[row, c]
        torch.testing.assert_close(maps[row], expected.float())


class BiasFree(nn.Module):
    """Residual ReLU network without biases: homogeneous, so that f(x) = x · ∇f(x)."""

    kind = "cnn"

    def __init__(self):
        super().__init__()
        self.inner, self.relu = nn.Linear(5, 5, bias=False), nn.ReLU()
        self.sum, self.last_relu = Sum(), nn.ReLU()
        self.last = nn.Linear(5, 2, bias=False)
        self.double()

    def forward(self, x):
        y = self.sum(torch.stack([x, self.relu(self.inner(x))], -1))
        return self.last(self.last_relu(y))


def test_lrp_on_a_bias_free_network_is_input_times_gradient_and_sums_to_f():
    torch.manual_seed(0)
    model, x, target = BiasFree(), torch.rand(7, 5, dtype=torch.float64), torch.arange(7) % 2
    maps = attribute({"name": "lrp_epsilon", "epsilon": 1e-12}, model, x, target)
    torch.testing.assert_close(
        maps, attribute("input_x_gradient", model, x, target), rtol=1e-4, atol=1e-4
    )
    f = model(x)[torch.arange(7), target]
    torch.testing.assert_close(maps.sum(1), f.float(), rtol=1e-4, atol=1e-4)


def shapley_by_definition(f, x, baseline):
    """Mean over all orders of what an input adds when it joins."""
    total = torch.zeros_like(x)
    orders = list(itertools.permutations(range(len(x))))
    for order in orders:
        point, value = baseline.clone(), f(baseline[None])[0]
        for i in order:
            point[i] = x[i]
            with_i = f(point[None])[0]
            total[i] += with_i - value
            value = with_i
    return total / len(orders)


def test_shapley_values_by_definition():
    torch.manual_seed(0)
    model, x = BiasFree(), torch.randn(2, 5, dtype=torch.float64)
    baseline = torch.randn(5, dtype=torch.float64)
    maps = attribute("shapley_exact", model, x, torch.tensor([1, 0]), baseline=baseline)
    with torch.no_grad():
        for row, label in enumerate((1, 0)):
            expected = shapley_by_definition(lambda z, c=label: model(z)[:, c], x[row], baseline)
            torch.testing.assert_close(maps[row], expected.float())


@pytest.mark.slow
def test_shapley_values_equal_those_of_shap():
    import shap

    torch.manual_seed(0)
    model, x = BiasFree(), torch.randn(3, 5, dtype=torch.float64)

    def f(points):
        with torch.no_grad():
            return model(torch.as_tensor(points))[:, 0].numpy()

    explainer = shap.explainers.Exact(f, shap.maskers.Independent(torch.zeros(1, 5).numpy()))
    expected = torch.as_tensor(explainer(x.numpy()).values).float()
    maps = attribute("shapley_exact", model, x, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(maps, expected)


def test_coalitions_follow_the_shapley_kernel():
    """With 4 inputs P(size 1, 2, 3) ∝ (1/3, 1/4, 1/3); all coalitions of a size are alike."""
    from experiments.attribution.shapley import coalitions
    from experiments.randomness import SampleGenerators

    drawn = coalitions(4, 102, SampleGenerators(0, range(200), "test"))
    assert drawn[:, 0].eq(1).all()
    assert drawn[:, 1].eq(0).all()
    size = drawn[:, 2:].sum(-1)
    share = torch.stack([(size == k).double().mean() for k in (1, 2, 3)])
    torch.testing.assert_close(
        share, torch.tensor([4, 3, 4], dtype=torch.float64) / 11, rtol=0, atol=0.015
    )
    torch.testing.assert_close(
        drawn[:, 2:].double().mean((0, 1)),
        torch.full((4,), 0.5, dtype=torch.float64),
        rtol=0,
        atol=0.015,
    )
