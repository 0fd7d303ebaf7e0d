"""Label-free maps against the scalar function of each sample, written out, and closed forms."""

from __future__ import annotations

import captum.attr
import pytest
import torch
from torch import nn

from experiments import passes
from experiments.attribution import attribute, methods
from experiments.attribution.flat_outputs import FlatOutputs
from experiments.models import build
from experiments.randomness import SampleGenerators

COSTLY = {"opti_cam", "extremal_perturbation", "meaningful_perturbation", "iba"}
# It starts from the weights of the outputs, not from weighted outputs: to it, the product with the
# latent is one layer more.
NOT_LINEAR_IN_WEIGHTS = {"excitation_backprop"}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def image():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(72, 3),
    )  # fmt: skip


def attention():
    return build("andor_transformer", inputs=5, classes=3, seed=0)


ENCODERS = {"dense": (dense, (5,)), "image": (image, (1, 3, 6)), "attention": (attention, (5,))}


def built(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


class Auxiliary(FlatOutputs):
    """g(x̃) = ⟨f(x), f(x̃)⟩ of one sample x, as a model of one output."""

    def __init__(self, encoder, x):
        super().__init__(encoder)
        self.latent = encoder(x).detach()

    def forward(self, x):
        return (self.encoder(x) * self.latent).sum(1, keepdim=True)


def bases():
    """All methods that explain something, but for those that take long."""
    return sorted(
        name
        for name, found in methods().items()
        if found.family != "control"
        and not name.startswith(("label_free", "andor_"))  # these explain a sigmoid
        and name not in COSTLY | NOT_LINEAR_IN_WEIGHTS
        and not found.needs_objects
    )


@pytest.mark.parametrize("name", bases())
def test_every_base_explains_the_scalar_function_of_each_sample(name):
    applied = 0
    for make, shape in ENCODERS.values():
        encoder, x = built(make), numbers(2, *shape)
        literal = [Auxiliary(encoder, x[i : i + 1]) for i in range(2)]
        try:
            expected = [
                attribute(name, g, x[i : i + 1], 0, baseline=0.1, indices=[i])
                for i, g in enumerate(literal)
            ]
        except ValueError:  # it is not for such inputs or models; one of them will do
            continue
        found = attribute({"name": "label_free", "method": name}, encoder, x, 0, baseline=0.1)
        scale = max(1e-3, found.abs().max().item())
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-3, atol=1e-4 * scale)
        applied += 1
    assert applied


@pytest.mark.parametrize(
    ("base", "theirs", "options"),
    [
        ({"name": "integrated_gradients", "steps": 20}, "IntegratedGradients", {"n_steps": 20}),
        ("gradient", "Saliency", {"abs": False}),
        ("feature_ablation", "FeatureAblation", {}),
        ("deeplift", "DeepLift", {}),
    ],
)
def test_captum_on_the_scalar_function(base, theirs, options):
    encoder, x = built(image), numbers(3, 1, 3, 6)
    found = attribute({"name": "label_free", "method": base}, encoder, x, 0, baseline=0.2)
    if theirs != "Saliency":
        options = {**options, "baselines": 0.2}
    for i in range(3):
        g, one = Auxiliary(encoder, x[i : i + 1]), x[i : i + 1].clone().requires_grad_()
        expected = getattr(captum.attr, theirs)(g).attribute(one, target=0, **options)
        torch.testing.assert_close(found[i : i + 1].double(), expected, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_is_complete():
    encoder, x, baseline = built(dense), numbers(4, 5), numbers(5, seed=1)
    maps = attribute("label_free", encoder, x, 0, baseline=baseline)
    latent = encoder(x).detach()
    expected = (latent * (latent - encoder(baseline[None]).detach())).sum(1)
    torch.testing.assert_close(maps.sum(1).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "base", ["integrated_gradients", "input_x_gradient", "shapley_exact", "gradient_shap"]
)
def test_linear_encoders_have_a_closed_form(base):
    """x ⊙ WᵀWx, from the baseline 0; latents of the wrong samples miss it."""
    encoder, x = nn.Linear(5, 3, bias=False).double(), numbers(40, 5)
    maps = attribute({"name": "label_free", "method": base}, encoder, x, 0)
    expected = (x * (x @ encoder.weight.T @ encoder.weight)).detach()
    torch.testing.assert_close(maps.double(), expected, rtol=1e-4, atol=1e-5)
    tiled = attribute("label_free_tiled", encoder, x, 0)
    assert torch.corrcoef(torch.stack([tiled.flatten().double(), expected.flatten()]))[0, 1] < 0.95


def test_rotated_latents_are_explained_alike_and_scaled_ones_by_the_square():
    encoder, x = built(dense), numbers(4, 5)
    turn = torch.linalg.qr(numbers(3, 3, seed=2))[0]
    other = nn.Sequential(encoder, nn.Linear(3, 3, bias=False).double())
    other[1].weight.data.copy_(3 * turn)
    maps, turned = (attribute("label_free", model, x, 0) for model in (encoder, other))
    torch.testing.assert_close(turned, 9 * maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), ()], ids=str)
def test_latents_of_any_shape_count_as_one_vector(shape):
    class Shaped(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            return self.encoder(x).reshape(len(x), *shape)

    encoder, x = built(dense), numbers(4, 5)
    if not shape:
        encoder = nn.Sequential(encoder, nn.Linear(3, 1).double())
    maps = attribute("label_free", encoder, x, 0)
    assert torch.equal(maps, attribute("label_free", Shaped(encoder), x, 0))


def test_it_costs_one_forward_pass_whatever_the_targets():
    encoder, x = built(dense), numbers(4, 5)
    attribute("gradient", encoder, x, 0)  # measures the rows of a pass
    spec = {"name": "label_free", "method": "gradient"}
    several = torch.tensor([[0, 1, 2]] * 4)
    with passes.counted(encoder) as count:
        maps = attribute(spec, encoder, x, several)
    assert (count.forwards, count.backwards) == (4, 4)
    assert torch.equal(maps[:, 0], maps[:, 2])


def test_results_do_not_depend_on_the_batch():
    encoder, x = built(dense), numbers(5, 5)
    spec = {"name": "label_free", "method": {"name": "kernel_shap", "samples": 20}}
    whole = attribute(spec, encoder, x, 0)
    torch.testing.assert_close(attribute(spec, encoder, x, 0, batch_size=2), whole)


def test_tiled_maps_repeat_the_published_slip():
    """Copy r of the samples, sample by sample, meets the latent of sample r mod B."""
    encoder, x, samples = built(dense), numbers(3, 5), 4
    maps = attribute({"name": "label_free_tiled", "samples": samples}, encoder, x, 0, baseline=0.3)
    alpha = SampleGenerators(0, range(3), "attribution/label_free_tiled").uniform(samples)
    latents, expected = encoder(x).detach(), torch.zeros(3, 5).double()
    for i in range(3):
        for s in range(samples):
            point = (0.3 + alpha[i, s] * (x[i] - 0.3)).requires_grad_()
            value = encoder(point) @ latents[(i * samples + s) % 3]
            expected[i] += (x[i] - 0.3) * torch.autograd.grad(value, point)[0] / samples
    torch.testing.assert_close(maps.double(), expected, rtol=1e-4, atol=1e-6)


def test_mistakes_are_told():
    encoder, x = built(dense), numbers(2, 5)
    with pytest.raises(ValueError, match="unknown method 'gradiant'; did you mean 'gradient'"):
        attribute({"name": "label_free", "method": "gradiant"}, encoder, x, 0)
    with pytest.raises(ValueError, match="method 'oracle' needs the truth"):
        attribute({"name": "label_free", "method": "oracle"}, encoder, x, 0)
    encoder.kind = "transformer"
    with pytest.raises(ValueError, match="method 'deeplift' does not apply to a model of kind"):
        attribute({"name": "label_free", "method": "deeplift"}, encoder, x, 0)
