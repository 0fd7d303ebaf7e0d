"""The SMERF architectures: sizes as published, Keras' conventions, and methods that apply."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from experiments.attribution import attribute
from experiments.models import architectures, build
from experiments.models.smerf import IMAGENET_MEAN, IMAGENET_STD

SHAPE = (3, 64, 64)
CNNS = ["smerf_simple_cnn", "smerf_complex_cnn"]
PAPER = {"name": "smerf_alexnet", "preset": "paper"}
ALL = [*CNNS, "smerf_alexnet", PAPER, "smerf_vgg16"]


def make(spec, seed=0, inputs=SHAPE, classes=2):
    return build(spec, inputs=inputs, classes=classes, seed=seed)


@pytest.fixture(scope="module")
def model():
    """Models in eval mode, each made once; batch norms and biases are not left as they begin."""
    made = {}

    def of(spec):
        if str(spec) not in made:
            found = make(spec).eval()
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for module in found.modules():
                    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                        module.running_mean.normal_(0, 0.1, generator=generator)
                        module.running_var.uniform_(0.5, 2, generator=generator)
                        module.bias.normal_(0, 0.1, generator=generator)
            made[str(spec)] = found
        return made[str(spec)]

    return of


def images(count=2):
    """Black, with white boxes: most of what SMERF's methods see."""
    x = torch.zeros(count, *SHAPE)
    for k in range(count):
        x[k, :, 10 * k + 5 : 10 * k + 15, 20:30] = 1
        x[k, :, 40:44, 30 - 7 * k : 34 - 7 * k] = 1
    return x


def sizes(model, kind=nn.ReLU):
    """The heights of what the convolutional layers of a kind return."""
    found = []
    handles = [
        layer.register_forward_hook(lambda module, inputs, out: found.append(out.shape[2]))
        for layer in model.features
        if isinstance(layer, kind)
    ]
    model(images())
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    ("name", "parameters", "heights"),
    [
        ("smerf_simple_cnn", 684_122, [31, 15, 7]),
        ("smerf_complex_cnn", 674_338, [31, 15, 7, 3]),
    ],
)
def test_the_cnns_have_the_published_size(name, parameters, heights, model):
    found = model(name)
    assert sum(p.numel() for p in found.parameters()) == parameters
    assert sizes(found) == heights
    assert found.head[1].in_features == {7: 3136, 3: 576}[heights[-1]]


def test_alexnet(model):
    found = model("smerf_alexnet")
    assert sizes(found, nn.Conv2d) == [16, 8, 4, 4, 4]
    assert sizes(found, nn.MaxPool2d) == [8, 4, 2]
    widths = [(3, 96, 121), (96, 256, 25), (256, 384, 9), (384, 384, 9), (384, 256, 9)]
    widths += [(1024, 4096, 1), (4096, 4096, 1), (4096, 1000, 1)]
    expected = sum(after * (before * kernel + 3) for before, after, kernel in widths)
    assert sum(p.numel() for p in found.parameters()) == expected + 2002
    norms = [m for m in found.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert [m.p for m in found.modules() if isinstance(m, nn.Dropout)] == [0.4] * 3
    assert (len(norms), type(found.head[-1])) == (8, nn.Linear)
    assert type(model(PAPER).head[-1]) is nn.BatchNorm1d


def test_only_the_head_of_vgg16_is_trained(model):
    found = make("smerf_vgg16")
    assert sizes(model("smerf_vgg16"), nn.MaxPool2d) == [32, 16, 8, 4, 2]
    assert sum(p.numel() for p in found.features.parameters()) == 14_714_688  # VGG16's, published
    found(images()).sum().backward()
    assert all(p.grad is None for p in found.features.parameters())
    assert all(p.grad is not None for p in found.head.parameters())


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_contract(spec, model):
    found, kept, calls = model(spec), [], []
    handle = found.cam_layer.register_forward_hook(lambda module, inputs, out: kept.append(out))
    relus = [m for m in found.modules() if isinstance(m, nn.ReLU)]
    handles = [r.register_forward_hook(lambda module, *_: calls.append(id(module))) for r in relus]
    with torch.no_grad():
        logits = found(images(3))
    for each in (handle, *handles):
        each.remove()
    assert logits.shape == (3, 2)
    assert torch.isfinite(logits).all()
    name = spec if isinstance(spec, str) else spec["name"]
    assert found.kind == architectures()[name].kind == "cnn"
    grid = {CNNS[0]: (64, 7, 7), CNNS[1]: (64, 3, 3), "smerf_vgg16": (512, 4, 4)}
    assert kept[0].shape[1:] == grid.get(name, (256, 4, 4))
    assert sorted(calls) == sorted(map(id, relus))
    # What the paper's Grad-CAM reads: after the ReLU, of its AlexNet before the batch norm.
    assert bool((kept[0] >= 0).all()) == (spec != PAPER)
    assert type(found.cam_layer) is (nn.Conv2d if spec == PAPER else nn.ReLU)


def test_weights_begin_as_those_of_keras():
    found = make("smerf_complex_cnn")
    for layer in [m for m in found.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        kernel = math.prod(layer.weight.shape[2:])
        bound = math.sqrt(6 / (kernel * sum(layer.weight.shape[:2])))
        assert not layer.bias.any()
        assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound


@pytest.mark.parametrize("spec", CNNS)
def test_seed_decides_the_weights(spec):
    first, again, other = (make(spec, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.1.weight"], other["head.1.weight"])


@pytest.mark.parametrize("spec", [*CNNS, "smerf_alexnet", "smerf_vgg16"])
def test_other_sizes_and_classes(spec):
    found = make(spec, inputs=(3, 45, 50), classes=5).eval()
    with torch.no_grad():
        assert found(torch.rand(2, 3, 45, 50)).shape == (2, 5)


@pytest.mark.parametrize(
    ("spec", "inputs", "message"),
    [
        ("smerf_simple_cnn", (3, 14, 64), r"at least 15×15 pixels, got .* \[3, 14, 64\]"),
        ("smerf_complex_cnn", (3, 64, 30), "at least 31×31 pixels"),
        ("smerf_vgg16", (3, 31, 64), "RGB images of at least 32×32"),
        ("smerf_vgg16", (1, 64, 64), "RGB images"),
        ("smerf_alexnet", 8, r"'smerf_alexnet' takes images, not inputs of shape \(8,\)"),
        ("andor_cnn", SHAPE, "'andor_cnn' takes vectors"),
        ({"name": "smerf_vgg16", "weights": "no/file.pth"}, SHAPE, "FileNotFoundError"),
    ],
)
def test_inputs_that_do_not_fit_get_one_clear_line(spec, inputs, message):
    with pytest.raises(ValueError, match=message) as error:
        make(spec, inputs=inputs)
    assert "\n" not in str(error.value)


def test_the_smallest_images_work():
    for spec, side in zip(CNNS, (15, 31), strict=True):
        found = make(spec, inputs=(1, side, side))
        assert found.features(torch.rand(1, 1, side, side)).shape[2:] == (1, 1)


# ---- VGG16's weights ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in torchvision's layout, of numbers of our own, and what is in it."""
    generator = torch.Generator().manual_seed(1)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * 0.03
        for name, tensor in make("smerf_vgg16").state_dict().items()
        if name.startswith("features")
    }
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save({**state, "classifier.0.weight": torch.zeros(3, 3)}, path)
    return str(path), state


def test_weights_are_read_and_colours_normalised(weights):
    path, state = weights
    paper = make({"name": "smerf_vgg16", "weights": path, "preset": "paper"})
    for name, tensor in state.items():
        assert torch.equal(paper.state_dict()[name], tensor)
    fixed = make({"name": "smerf_vgg16", "weights": path})
    x = torch.rand(2, *SHAPE)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    expected, found = paper.features[0]((x - mean) / std), fixed.features[0](x)
    inside = (..., slice(1, -1), slice(1, -1))  # at the border, what is padded is black
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-5, rtol=1e-5)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    border = nn.functional.conv2d(
        (padded - mean) / std, state["features.0.weight"], state["features.0.bias"]
    )
    torch.testing.assert_close(found, border, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("damage", ["missing", "shape", "no state"])
def test_a_file_of_something_else_is_refused(damage, weights, tmp_path):
    state = dict(weights[1])
    if damage == "missing":
        del state["features.28.bias"]
    elif damage == "shape":
        state["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    path = tmp_path / "other.pth"
    torch.save([1] if damage == "no state" else state, path)
    with pytest.raises(ValueError, match=r"no state dict of torchvision's VGG16 \(.+\)") as error:
        make({"name": "smerf_vgg16", "weights": str(path)})
    assert "\n" not in str(error.value)


def test_random_convolutions_keep_the_scale(model):
    with torch.no_grad():
        features = model("smerf_vgg16").features(images())
    assert 0.01 < float(features.std()) < 100


# ---- attribution methods -----------------------------------------------------------------------

METHODS = [
    "gradient", {"name": "integrated_gradients", "steps": 4}, "lrp_preset_a_flat",
    {"name": "deep_taylor", "low": 0.0, "high": 1.0}, "deeplift", "deeplift_reveal_cancel",
    "guided_backprop", "grad_cam",
]  # fmt: skip


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_methods_apply(spec, model):
    found, x = model(spec), images()
    with torch.no_grad():
        logits, black = found(x), found(torch.zeros(1, *SHAPE))
    target = logits.argmax(1)
    explained = logits.gather(1, target[:, None])[:, 0] - black[0, target]
    for method in METHODS:
        maps = attribute(method, found, x, target, baseline=0.0, seed=0, indices=[0, 1])
        name = method if isinstance(method, str) else method["name"]
        assert maps.shape == x.shape, name
        assert torch.isfinite(maps).all(), name
        sums = maps.flatten(1).sum(1)
        if name.startswith("deeplift"):
            torch.testing.assert_close(sums, explained, atol=1e-4, rtol=1e-4)
        if name == "deep_taylor":
            assert float(maps.min()) >= 0


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_relevance_is_conserved(spec, model):
    """With biases shared; of a random image, as a black pixel has nothing to take a share with."""
    found, x = model(spec), torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    logits = found(x).detach()
    method = {"name": "lrp_zplus", "zero_bias": True}
    maps = attribute(method, found, x, logits.argmax(1), baseline=0.0, seed=0, indices=[0, 1])
    expected = logits.max(1).values
    torch.testing.assert_close(maps.flatten(1).sum(1), expected, atol=1e-4, rtol=1e-3)
