"""Class activation maps: closed forms, loops, pytorch-grad-cam and captum; layers and passes."""

from __future__ import annotations

import captum.attr
import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
import torchvision
from pytorch_grad_cam.seg_eigen_cam import SegEigenCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from experiments import passes
from experiments.attribution import attribute, methods
from experiments.attribution.driver import batches, untouched
from experiments.models import structure
from experiments.models.tail import tail_of

B, CHANNELS, CLASSES = 5, 6, 3
SHARED = ["grad_cam", "grad_cam_plus_plus", "xgrad_cam", "layer_cam", "hires_cam", "eigen_grad_cam"]
BLIND = {"eigen_cam", "kpca_cam", "fem", "fake_cam"}
NAMES = [m.name for m in methods().values() if "attribution.cam_" in m.function.__module__]


class Pooled(nn.Module):
    """Images [B, 3, 8, 8] -> features [B, 6, 4, 4] -> mean -> linear."""

    def __init__(self, inplace=False):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.MaxPool2d(2),
            nn.Conv2d(4, CHANNELS, 3, padding=1), nn.ReLU(inplace),
        )  # fmt: skip
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Deep(Pooled):
    """The same with a hidden layer behind the features."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(CHANNELS * 4, 7), nn.ReLU(),
            nn.Linear(7, CLASSES),
        )  # fmt: skip

    def forward(self, x):
        return self.head(self.body(x))


class Whimsical(Deep):
    """One that cannot be traced: what it does depends on numbers."""

    def forward(self, x):
        if x.sum() < 1e9:
            x = x + 1
        return super().forward(x)


class Series(nn.Sequential):
    """Series [B, 2, 12] -> features [B, 6, 6]."""

    def __init__(self):
        super().__init__(
            nn.Conv1d(2, CHANNELS, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
            nn.Linear(CHANNELS, CLASSES),
        )  # fmt: skip


def vit():
    return torchvision.models.VisionTransformer(
        image_size=8, patch_size=2, num_layers=2, num_heads=2, hidden_dim=6, mlp_dim=8,
        num_classes=CLASSES,
    )  # fmt: skip


def make(kind, dtype=torch.float64):
    """A model with biases, whose batch norms and head are not the identity or zero."""
    torch.manual_seed(0)
    model = kind()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif "bias" in name or "running_mean" in name or (tensor == 0).all():
                tensor.copy_(torch.randn(tensor.shape) * 0.3)
    return model.to(dtype).eval()


def images(shape=(3, 8, 8), dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(B, *shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, CLASSES, (B,), generator=generator)


def features_of(model, x, path):
    kept = []
    handle = model.get_submodule(path).register_forward_hook(lambda m, i, o: kept.append(o.clone()))
    with torch.no_grad():
        model(x)
    handle.remove()
    return kept[-1]


def quick(name, **parameters):
    """A specification of a method that takes few steps."""
    return {"name": name, **({"steps": 3} if name == "opti_cam" else {}), **parameters}


def scaled(maps):
    """ReLU and min-max: what pytorch-grad-cam makes of a map."""
    maps = maps.clamp(min=0).flatten(1)
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1)


# --- against other libraries ----------------------------------------------------------------------


THEIRS = {
    "grad_cam": pytorch_grad_cam.GradCAM,
    "grad_cam_plus_plus": pytorch_grad_cam.GradCAMPlusPlus,
    "xgrad_cam": pytorch_grad_cam.XGradCAM,
    "layer_cam": pytorch_grad_cam.LayerCAM,
    "hires_cam": pytorch_grad_cam.HiResCAM,
    "fem": pytorch_grad_cam.FEM,
    "grad_cam_elementwise": pytorch_grad_cam.GradCAMElementWise,
    "ablation_cam relative": pytorch_grad_cam.AblationCAM,
    "score_cam": pytorch_grad_cam.ScoreCAM,
    "eigen_cam": pytorch_grad_cam.EigenCAM,
    "eigen_grad_cam": pytorch_grad_cam.EigenGradCAM,
    "eigen_grad_cam absolute": SegEigenCAM,
    "kpca_cam": pytorch_grad_cam.KPCA_CAM,
}
RESIZED = list(THEIRS)[:8]  # Score-CAM aligns corners there; a component has any sign


def ours_and_theirs(name, path):
    """The raw map, the map cut at zero, and that of pytorch-grad-cam, ReLU and min-max scaled."""
    model, (x, target) = make(Deep, torch.float32), images(dtype=torch.float32)
    with THEIRS[name](model, [model.get_submodule(path)]) as cam:
        theirs = torch.from_numpy(cam(x, [ClassifierOutputTarget(int(t)) for t in target]))
    spec = {"name": name.partition(" ")[0], "layer": path, **dict.fromkeys(name.split()[1:], True)}
    raw = attribute(spec, model, x, target)
    assert torch.equal(raw[:, 0], raw[:, 2])
    cut = raw
    if "relu" in methods()[spec["name"]].parameters:
        cut = attribute(spec | {"relu": True}, model, x, target)
    return raw[:, 0], scaled(cut[:, 0]), theirs.flatten(1)


@pytest.mark.parametrize(
    ("name", "path"), [*((n, "body.2") for n in THEIRS), *((n, "body.5") for n in RESIZED)]
)
def test_map_is_that_of_pytorch_grad_cam(name, path):
    """body.2 is as large as the image, body.5 half as large: the rest of it is resizing."""
    raw, cut, theirs = ours_and_theirs(name, path)
    error = (cut - theirs).abs().amax(1)
    if name not in RESIZED:
        error = torch.minimum(error, (scaled(-raw) - theirs).abs().amax(1))
    assert float(error.max()) < 2e-4


@pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting backward")
def test_guided_grad_cam_is_that_of_captum():
    model, (x, target) = make(Pooled), images()
    theirs = captum.attr.GuidedGradCam(model, model.body[5]).attribute(x, target)
    spec = {"name": "guided_grad_cam", "layer": "body.5", "upsample": "nearest"}
    torch.testing.assert_close(attribute(spec, model, x, target), theirs.float())


def test_published_full_grad_is_that_of_pytorch_grad_cam():
    model, (x, target) = make(Pooled, torch.float32), images(dtype=torch.float32)
    with pytorch_grad_cam.FullGrad(model, []) as cam:
        theirs = cam(x, [ClassifierOutputTarget(int(t)) for t in target])
    spec = {"name": "full_grad", "absolute": True, "rescale": True, "unplaced": "drop"}
    ours = attribute(spec, model, x, target).sum(1)
    torch.testing.assert_close(scaled(ours), torch.from_numpy(theirs).flatten(1), rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam"])
def test_tokens_of_a_vision_transformer_lie_on_the_grid_of_patches(name):
    model, (x, target) = make(vit, torch.float32), images(dtype=torch.float32)
    where = structure.site(model, x[:1])
    assert where.path == "encoder.layers.encoder_layer_1.ln_1"

    def reshape(tokens):
        return tokens[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)

    kind = {"grad_cam": pytorch_grad_cam.GradCAM, "layer_cam": pytorch_grad_cam.LayerCAM}[name]
    with kind(model, [where.module], reshape_transform=reshape) as cam:
        theirs = torch.from_numpy(cam(x, [ClassifierOutputTarget(int(t)) for t in target]))
    ours = scaled(attribute({"name": name, "relu": True}, model, x, target)[:, 0])
    torch.testing.assert_close(ours, theirs.flatten(1), rtol=0, atol=2e-4)


# --- closed forms and loops -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grad_cam", "xgrad_cam", "hires_cam"])
def test_before_a_pooled_linear_head_it_is_cam(name):
    """CAM (Zhou et al. 2016): the class's weights times the features, over the cells."""
    model, (x, target) = make(Pooled), images()
    features = features_of(model, x, "body")
    cam = torch.einsum("bc,bchw->bhw", model.head.weight[target], features) / 16
    found = attribute({"name": name, "upsample": "aligned"}, model, x, target)
    expected = F.interpolate(cam[:, None], (8, 8), mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, expected.expand_as(x).float())


@pytest.mark.parametrize(
    ("kind", "alone", "affine"),
    [(Pooled, True, True), (Deep, True, False), (Whimsical, False, False), (vit, True, False)],
)
def test_ablation_by_taking_channels_away_one_by_one(kind, alone, affine):
    """Also where the affine head has a closed form, and where a residual runs past the layer."""
    model, (x, target) = make(kind), images()
    where = structure.site(model, x[:1])
    tail = tail_of(model, where, x[:1])
    assert (tail.runs_alone, tail.affine) == (alone, affine)

    features = features_of(model, x, where.path)
    fall = []
    for channel in range(CHANNELS):

        def without(module, inputs, output, channel=channel):
            changed = output.clone()
            changed.select(where.channels, channel).zero_()
            return changed

        handle = where.module.register_forward_hook(without)
        with torch.no_grad():
            fall.append(-passes.selected(model(x), target))
        handle.remove()
    with torch.no_grad():
        fall = torch.stack(fall, 1) + passes.selected(model(x), target)[:, None]
    grid = structure.positions(model, where, features, x.shape[1:])
    cam = torch.einsum("bc,bchw->bhw", fall, grid)[:, None]
    expected = F.interpolate(cam, (8, 8), mode="bilinear").expand_as(x)
    torch.testing.assert_close(attribute("ablation_cam", model, x, target), expected.float())


def test_score_cam_in_loops_and_with_a_dead_channel():
    model, (x, target) = make(Deep), images()
    with torch.no_grad():
        model.body[4].weight[2] = 0  # body.5 of channel 2 is the same everywhere
    features = features_of(model, x, "body.5")
    baseline = torch.full((3, 8, 8), 0.1, dtype=x.dtype)
    expected = []
    for row, label, a in zip(x, target, features, strict=True):
        scores = []
        for channel in a:
            mask = F.interpolate(channel[None, None], (8, 8), mode="bilinear")[0]
            extent = float(mask.max() - mask.min())
            mask = (mask - mask.min()) / extent if extent else torch.zeros_like(mask)
            with torch.no_grad():
                scores.append(model((mask * row + (1 - mask) * baseline)[None])[0, label])
        expected.append(torch.einsum("c,chw->hw", torch.stack(scores).softmax(0), a))
    expected = F.interpolate(torch.stack(expected)[:, None], (8, 8), mode="bilinear")
    spec = {"name": "score_cam", "layer": "body.5"}
    found = attribute(spec, model, x, target, baseline=baseline)
    torch.testing.assert_close(found, expected.expand_as(x).float())
    increase = attribute(spec | {"weights": "increase"}, model, x, target, baseline=baseline)
    assert not torch.allclose(increase, found)


@pytest.mark.parametrize("loss", ["plain", "absolute"])
def test_opti_cam_sample_by_sample(loss):
    model, (x, target) = make(Deep), images()
    features = features_of(model, x, "body.5")

    def seen(u, a):
        mask = torch.einsum("c,chw->hw", u.softmax(0), a)[None, None]
        mask = F.interpolate(mask, (8, 8), mode="bilinear")[0]
        return (mask - mask.min()) / (mask.max() - mask.min())

    expected = []
    for row, label, a in zip(x, target, features, strict=True):
        u = torch.full((CHANNELS,), 0.5, dtype=x.dtype, requires_grad=True)
        optimiser = torch.optim.Adam([u], lr=0.2)
        for _ in range(4):
            optimiser.zero_grad()
            fall = (model(row[None]) - model((seen(u, a) * row)[None]))[0, label]
            (fall if loss == "plain" else fall.abs()).backward()
            optimiser.step()
        expected.append(seen(u, a).detach().expand_as(row))
    spec = {"name": "opti_cam", "steps": 4, "lr": 0.2, "loss": loss, "layer": "body.5"}
    torch.testing.assert_close(attribute(spec, model, x, target), torch.stack(expected).float())


class Perceptron(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(7, 9), nn.BatchNorm1d(9, affine=False), nn.ReLU(), nn.Linear(9, CLASSES)
        )


@pytest.mark.parametrize("upsample", ["linear", "aligned", "nearest"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [(Pooled, (3, 8, 8)), (Deep, (3, 8, 8)), (Pooled, (3, 7, 11)), (Series, (2, 12)),
     (Perceptron, (7,))],
)  # fmt: skip
def test_full_grad_is_complete(kind, shape, upsample):
    model, (x, target) = make(kind), images(shape)
    maps = attribute({"name": "full_grad", "upsample": upsample}, model, x, target)
    with torch.no_grad():
        outputs = passes.selected(model(x), target)
    torch.testing.assert_close(maps.flatten(1).sum(1), outputs.float(), rtol=1e-4, atol=1e-4)


def test_fake_cam_hides_the_first_position():
    model, (x, target) = make(Pooled), images()
    expected = torch.ones_like(x, dtype=torch.float32)
    expected[:, :, 0, 0] = 0
    assert torch.equal(attribute("fake_cam", model, x, target), expected)
    flat = attribute("fake_cam", make(Perceptron), images((7,))[0], target)
    assert torch.equal(flat, torch.tensor([0.0] + [1] * 6).expand(B, -1))


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        pytest.param(name, kind, shape, id=f"{name}-{label}")
        for label, kind, shape in (
            ("image", Deep, (3, 8, 8)), ("vit", vit, (3, 8, 8)), ("series", Series, (2, 12)),
        )
        for name in NAMES
        if methods()[name].applies_to("transformer" if kind is vit else "cnn")
    ],
)  # fmt: skip
def test_batches_company_and_weights_as_targets(name, kind, shape):
    """One-hot weights of the outputs are the class; a pair of classes shares what it can."""
    model, (x, target) = make(kind), images(shape)
    whole = attribute(quick(name), model, x, target)
    assert whole.isfinite().all()
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * float(whole.abs().max())}
    parts = attribute(quick(name), model, x, target, batch_size=2)
    torch.testing.assert_close(parts, whole, **tolerance)
    weights = attribute(quick(name), model, x, F.one_hot(target, CLASSES).double())
    torch.testing.assert_close(weights, whole, **tolerance)
    pair = attribute(quick(name), model, x, torch.stack([(target + 1) % CLASSES, target], 1))
    torch.testing.assert_close(pair[:, 1], whole, **tolerance)
    assert torch.allclose(pair[:, 0], whole) == (name in BLIND)


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_features_have_a_defined_map(name):
    """All channels dead, so that the output is a constant."""
    model, (x, target) = make(Deep), images()
    with torch.no_grad():
        model.body[4].weight.zero_()
        model.body[4].bias.fill_(-1)
    maps = attribute(quick(name), model, x, target)
    if name not in ("fake_cam", "full_grad"):
        assert (maps == 0).all()


# --- passes ---------------------------------------------------------------------------------------


def passes_of(model, names, targets=1):
    """(rows, rows backwards) per sample of some methods on one batch, for some targets."""
    x, target = images()
    with untouched(model):
        ((_, batch),) = batches(model, x, target, batch_size=B)
        passes.rows_per_pass(model, x)
        with passes.counted(model) as count:
            for shift in range(targets):
                other = batch.at((target + shift) % CLASSES)
                for name in names:
                    other.maps(quick(name))
    return count.rows / B, count.backwards / B


def test_the_family_shares_one_forward_and_one_backward_pass():
    everything = [*SHARED, "eigen_cam", "grad_cam_elementwise", "fem", "kpca_cam"]
    assert passes_of(make(Deep), everything) == (1, 1)
    assert passes_of(make(Deep), everything[::-1]) == (1, 1)
    assert passes_of(make(Pooled), [*everything, "ablation_cam"], targets=3) == (1, 3)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        *((name, (1, 1)) for name in [*SHARED, "grad_cam_elementwise"]),
        *((name, (1, 0)) for name in ("eigen_cam", "kpca_cam", "fem", "ablation_cam")),
        ("score_cam", (CHANNELS + 1, 0)),
        ("opti_cam", (4, 3)),
        ("guided_grad_cam", (2, 2)),
        ("full_grad", (1, 1)),
        ("fake_cam", (0, 0)),
    ],
)
def test_passes_of_one_method(names, expected):
    assert passes_of(make(Deep), [names]) == expected


def test_passes_of_several_targets_and_of_the_head():
    assert passes_of(make(Deep), ["score_cam", "grad_cam"], targets=3) == (CHANNELS + 1, 3)
    model = make(Deep)
    x, target = images()
    attribute("ablation_cam", model, x[:1], target[:1])  # finds layer and head
    with passes.counted(model.head[4]) as count:
        attribute("ablation_cam", model, x, torch.stack([target, target + 1], 1) % CLASSES)
    assert count.rows / B == CHANNELS + 1
    assert passes_of(make(Whimsical), ["ablation_cam"]) == (CHANNELS + 1, 0)


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path", "grid"),
    [
        ("resnet18", "layer4", (512, 7, 7)),
        ("vgg11", "features.19", (512, 14, 14)),
        ("alexnet", "features.11", (256, 13, 13)),
        ("densenet121", "features", (1024, 7, 7)),
        ("convnext_tiny", "features", (768, 7, 7)),
        ("swin_t", "features.7.1.norm1", (768, 7, 7)),
    ],
)
def test_features_of_the_architectures_of_torchvision(name, path, grid):
    with torch.device("meta"):  # shapes without numbers
        model, x = torchvision.models.get_model(name).eval(), torch.empty(1, 3, 224, 224)
        where = structure.site(model, x)
        found = structure.positions(model, where, features_of(model, x, where.path), x.shape[1:])
    assert (where.path, found.shape[1:]) == (path, grid)


def test_resnet_on_small_images_has_the_closed_form():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=CLASSES).eval()
    x, target = images((3, 32, 32), torch.float32)
    maps = attribute({"name": "ablation_cam", "layer": "layer4.1"}, model, x, target)
    features = features_of(model, x, "layer4")
    weights = model.fc.weight[target] * features.mean((2, 3))
    expected = torch.einsum("bc,bchw->bhw", weights, features)[:, None]
    expected = F.interpolate(expected, (32, 32), mode="bilinear").expand_as(x)
    torch.testing.assert_close(maps, expected.detach(), rtol=1e-3, atol=1e-4)


class Repeats(nn.Module):
    """One ReLU that runs twice; `inplace` changes what the convolutions returned."""

    def __init__(self, inplace=False):
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace), nn.Linear(4, CLASSES)
        self.spare = nn.Conv1d(4, 4, 1)

    def forward(self, x):
        return self.head(self.relu(self.second(self.relu(self.first(x)))).mean(2))


def test_a_module_that_runs_twice_counts_the_last_time_and_in_place_changes_nothing():
    model, (x, target) = make(Repeats), images((2, 12))
    features = F.relu(features_of(model, x, "second"))
    cam = torch.einsum("bc,bct->bt", model.head.weight[target], features)[:, None] / 12
    spec = {"name": "hires_cam", "layer": "relu"}
    found = attribute(spec, model, x, target)
    torch.testing.assert_close(found, cam.detach().expand_as(x).float())
    other = make(lambda: Repeats(inplace=True))
    assert torch.equal(attribute(spec, other, x, target), found)
    before = {"name": "hires_cam", "layer": "second"}
    torch.testing.assert_close(
        attribute(before, other, x, target), attribute(before, model, x, target)
    )


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("secnd", "no layer 'secnd' in Repeats; the nearest: second"),
        ("spare", "layer 'spare' of Repeats does not run in a forward pass"),
        ("head", "layer 'head' of Repeats: its output has no place"),
    ],
)
def test_a_wrong_layer_is_one_clear_line(layer, message):
    model, (x, target) = make(Repeats), images((2, 12))
    with pytest.raises(ValueError, match=message) as caught:
        attribute({"name": "grad_cam", "layer": layer}, model, x, target)
    assert "\n" not in str(caught.value)


def test_networks_without_features_say_so():
    x, target = images((7,))
    with pytest.raises(ValueError, match="does not apply to a model of kind 'mlp'"):
        attribute("grad_cam", make(Perceptron), x, target)
    with pytest.raises(ValueError, match="Perceptron has no convolution or attention"):
        structure.site(make(Perceptron), x[:1])


def test_a_model_that_changed_is_looked_at_again():
    model, (x, target) = make(Pooled), images()
    attribute("ablation_cam", model, x, target)
    model.head = nn.Linear(CHANNELS, CLASSES).double()
    fresh = make(Pooled)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(
        attribute("ablation_cam", model, x, target), attribute("ablation_cam", fresh, x, target)
    )


def test_looking_for_the_layer_leaves_no_trace():
    model, (x, _) = make(vit), images()
    called = []
    handle = model.register_forward_hook(lambda *given: called.append(1))
    attributes = {name: sorted(vars(m)) for name, m in model.named_modules()}
    where = structure.site(model, x[:1])
    tail_of(model, where, x[:1])
    assert not called
    assert {name: sorted(vars(m)) for name, m in model.named_modules()} == attributes
    assert list(model._forward_hooks) == [handle.id]
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 1
