"""What holds of every attribution method, on both architectures."""

from __future__ import annotations

import random as python_random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from experiments.attribution import attribute, method, methods, registry, resolve
from experiments.attribution.batch import Batch
from experiments.attribution.driver import untouched
from experiments.data.dataset import Truth
from experiments.models import build

ARCHITECTURES = [
    "andor_cnn",
    {"name": "andor_cnn", "batch_norm": False, "skip": False},
    "andor_transformer",
    {"name": "andor_transformer", "cls": True},
]
KIND = {"andor_cnn": "cnn", "andor_transformer": "transformer"}
BASIC = ["andor_cnn", "andor_transformer"]
N, D = 13, 8


def kind_of(spec):
    return KIND[spec if isinstance(spec, str) else spec["name"]]


# Many steps of an optimiser make rounding large.
OPTIMISED = {"opti_cam", "extremal_perturbation", "meaningful_perturbation", "iba"}
ALL_TARGETS = {"eigen_cam", "kpca_cam", "fem", "raw_attention", "attention_rollout"}


# Those whose published slip it is that a map depends on the company of its sample.
OF_A_BATCH = {
    "label_free_tiled", "andor_feature_permutation", "andor_lrp", "andor_lrp_rollout",
    "andor_transformer_attribution",
}  # fmt: skip


def own_sample(known):
    """Whether a map depends on its own sample alone."""
    return known.name not in OF_A_BATCH


def of_a_target(known):
    """Whether a map is that of one output."""
    return known.family not in ("control", "wrapper") and known.name not in ALL_TARGETS


def pairs(condition=lambda known: True, architectures=BASIC):
    """(architecture, method) for every method that applies, as pytest parameters."""
    return [
        pytest.param(
            spec, name, id=f"{name}-{spec if spec in BASIC else kind_of(spec) + '-variant'}"
        )
        for spec in architectures
        for name, known in sorted(methods().items())
        if kind_of(spec) in known.models and condition(known)
    ]


def make(spec, dtype=torch.float64):
    """A model whose batch norms have seen data, so that folding them is not the identity."""
    model = build(spec, inputs=D, classes=3, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
    return model.to(dtype).eval()


def samples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (N, D), generator=generator) * 2.0 - 1
    return x, torch.randint(0, 3, (N,), generator=generator)


def truth():
    sufficient = torch.zeros(2, 1, D, dtype=torch.bool)
    sufficient[0, 0, :2] = sufficient[1, 0, 2:5] = True
    return Truth(
        sufficient=sufficient,
        valid=torch.ones(2, 1, dtype=torch.bool),
        pattern=torch.arange(N) % 2,
        irrelevant=torch.arange(D) >= 5,
    )


def objects():
    """bool [N, 2, D]: the samples have one or two."""
    masks = torch.zeros(N, 2, D, dtype=torch.bool)
    masks[:, 0, :2] = masks[::2, 1, 2:5] = True
    return masks


# What is iterated, in few steps: the invariances do not need convergence.
FEW = {
    "rise": {"samples": 20}, "lime": {"samples": 20}, "opti_cam": {"steps": 5},
    "extremal_perturbation": {"steps": 4}, "meaningful_perturbation": {"steps": 4},
    "iba": {"steps": 3, "copies": 2},
}  # fmt: skip


def run(name, model, *, seed=0, batch_size=256, rows=slice(None), **parameters):
    x, target = samples()
    indices = list(range(100, 100 + N))[rows]
    known = truth() if rows == slice(None) else None
    return attribute(
        {"name": name, **FEW.get(name, {}), **parameters},
        model,
        x[rows],
        target[rows],
        seed=seed,
        indices=indices,
        truth=known,
        regions={"objects": objects()[rows]},
        batch_size=batch_size,
    )


def exact(name, model, baseline=None, **parameters):
    """The map in the precision of the model."""
    x, target = samples()
    base = torch.zeros(D, dtype=torch.float64) if baseline is None else baseline
    with untouched(model):
        batch = Batch(
            model, x.double(), target, baseline=base, seed=0, indices=range(N),
            regions={"objects": objects()},
        )  # fmt: skip
        return batch.maps({"name": name, **parameters})


def gain(model, baseline=None):
    """f(x) − f(baseline) of each sample's target."""
    x, target = samples()
    base = torch.zeros(D, dtype=torch.float64) if baseline is None else baseline
    with torch.no_grad():
        logits = model(x.double()) - model(base.expand(N, D))
    return logits[torch.arange(N), target]


# --- every method ---------------------------------------------------------------------------------


def test_every_kind_of_model_has_methods_that_four_libraries_know():
    for kind in ("cnn", "transformer"):
        fitting = [m for m in methods().values() if kind in m.models and m.family != "control"]
        assert len(fitting) >= 8
    peers = {m.peer for m in methods().values()}
    assert peers >= {"captum", "grad-cam", "shap", "zennit"}
    controls = {m.name for m in methods().values() if m.family == "control"}
    assert controls >= {"random", "constant", "input_only", "oracle", "fake_cam", "sobel"}
    assert all(m.summary.endswith((".", ")")) for m in methods().values())


@pytest.mark.parametrize(("spec", "name"), pairs())
def test_map_is_finite_single_precision_and_of_the_shape_of_x(spec, name):
    maps = run(name, make(spec))
    assert maps.shape == (N, D)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert not maps.requires_grad


@pytest.mark.parametrize(("spec", "name"), pairs(own_sample, architectures=ARCHITECTURES))
def test_batch_size_does_not_matter(spec, name):
    model = make(spec)
    whole = run(name, model)
    for batch_size in (1, 4):
        parts = run(name, model, batch_size=batch_size)
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("spec", "name"), pairs(lambda m: own_sample(m) and not m.needs_truth))
def test_company_does_not_matter(spec, name):
    model = make(spec)
    few = run(name, model, rows=slice(5, 8))
    torch.testing.assert_close(few, run(name, model)[5:8], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("spec", "name"), pairs(lambda known: known.name not in OPTIMISED))
def test_single_precision_is_enough(spec, name):
    double, single = run(name, make(spec)), run(name, make(spec, torch.float32))
    torch.testing.assert_close(single, double, rtol=1e-2, atol=1e-3 * float(double.abs().max()))


@pytest.mark.parametrize(("spec", "name"), pairs())
def test_same_seed_same_map_and_no_global_state_is_touched(spec, name):
    def state():
        numpy = np.random.get_state()
        return python_random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist()

    model = make(spec)
    before = state()
    first = run(name, model)
    assert state() == before
    torch.rand(3), np.random.rand(3), python_random.random()
    assert torch.equal(run(name, model), first)
    if methods()[name].family != "wrapper":  # as random as what it wraps
        assert torch.equal(run(name, model, seed=1), first) != methods()[name].stochastic


@pytest.mark.parametrize(("spec", "name"), pairs(architectures=ARCHITECTURES))
def test_model_is_left_as_found(spec, name):
    def hooks():
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)

    def attributes():
        return {name: sorted(vars(module)) for name, module in model.named_modules()}

    model = make(spec)
    first, *rest = list(model.parameters())
    first.requires_grad_(False)
    for parameter in rest:
        parameter.grad = torch.full_like(parameter, 0.5)
    model.train()
    next(model.children()).eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    known = attributes()

    run(name, model)

    assert [module.training for module in model.modules()] == modes
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert not first.requires_grad
    assert all(p.requires_grad and bool((p.grad == 0.5).all()) for p in rest)
    assert hooks() == 0
    assert attributes() == known


@pytest.mark.parametrize(("spec", "name"), pairs())
def test_inputs_are_left_as_found(spec, name):
    x, target = samples()
    before = x.clone(), target.clone()
    known = {"truth": truth(), "regions": {"objects": objects()}}
    attribute(name, make(spec, torch.float32), x, target, **known)
    assert torch.equal(x, before[0])
    assert torch.equal(target, before[1])
    assert not x.requires_grad


@pytest.mark.parametrize(("spec", "name"), pairs(lambda m: of_a_target(m) and own_sample(m)))
def test_map_is_that_of_the_target(spec, name):
    x, target = samples()
    model = make(spec)
    known = {"regions": {"objects": objects()}}
    one = attribute(name, model, x, target, **known)
    other = attribute(name, model, x, (target + 1) % 3, **known)
    both = torch.where(torch.arange(N) < 5, target, (target + 1) % 3)
    mixed = attribute(name, model, x, both, **known)
    assert not torch.allclose(one, other)
    torch.testing.assert_close(mixed, torch.cat([one[:5], other[5:]]), rtol=1e-5, atol=1e-6)


# --- axioms on the real architectures -------------------------------------------------------------


@pytest.mark.parametrize("baseline", [None, torch.linspace(-1, 0.5, D, dtype=torch.float64)])
@pytest.mark.parametrize("spec", ARCHITECTURES, ids=str)
def test_shapley_values_are_efficient(spec, baseline):
    model = make(spec)
    maps = exact("shapley_exact", model, baseline)
    torch.testing.assert_close(maps.sum(1), gain(model, baseline), rtol=0, atol=1e-12)


@pytest.mark.parametrize("baseline", [None, torch.linspace(-1, 0.5, D, dtype=torch.float64)])
@pytest.mark.parametrize("spec", ARCHITECTURES[:2], ids=str)
def test_deeplift_is_complete(spec, baseline):
    model = make(spec)
    maps = exact("deeplift", model, baseline)
    torch.testing.assert_close(maps.sum(1), gain(model, baseline), rtol=0, atol=1e-9)


@pytest.mark.parametrize("spec", ARCHITECTURES, ids=str)
def test_integrated_gradients_approach_completeness(spec):
    model = make(spec)
    errors = [
        float((exact("integrated_gradients", model, steps=steps).sum(1) - gain(model)).abs().max())
        for steps in (10, 300)
    ]
    # ReLU kinks keep a quadrature from converging fast; without them it would be exact.
    assert errors[1] < 2e-3
    assert errors[1] < errors[0]


@pytest.mark.parametrize("spec", ARCHITECTURES, ids=str)
def test_sampled_methods_approach_what_they_estimate(spec):
    model = make(spec)
    shapley = exact("shapley_exact", model)
    kernel = exact("kernel_shap", model, samples=400)
    assert float((kernel - shapley).abs().max()) < 0.25 * float(shapley.abs().max())
    torch.testing.assert_close(kernel.sum(1).double(), gain(model), rtol=1e-4, atol=1e-4)
    path = exact("integrated_gradients", model, steps=300)
    expected = exact("expected_gradients", model, samples=400)
    assert float((expected - path).abs().max()) < 0.25 * float(path.abs().max())
    gradient = exact("gradient", model)
    torch.testing.assert_close(
        exact("smoothgrad", model, noise=1e-7), gradient, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("spec", ARCHITECTURES[:2], ids=str)
def test_epsilon_lrp_is_input_times_gradient(spec):
    model = make(spec)
    maps = exact("lrp_epsilon", model, epsilon=1e-12)
    torch.testing.assert_close(maps, exact("input_x_gradient", model), rtol=1e-3, atol=1e-5)


def test_conservative_lrp_is_conservative():
    """Ali et al. 2022, equation 8: without biases and positions the relevance sums to f(x)."""
    model = make("andor_transformer")
    with torch.no_grad():
        model.positions.zero_()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    x, target = samples()
    relevance = exact("lrp_conservative", model).sum(1)
    with torch.no_grad():
        logits = model(x.double())[torch.arange(N), target]
    torch.testing.assert_close(relevance, logits, rtol=1e-5, atol=1e-6)


# --- controls ---------------------------------------------------------------------------------


def test_controls():
    model, (x, _) = make("andor_cnn"), samples()
    assert torch.equal(run("constant", model, value=2.0), torch.full((N, D), 2.0))
    assert torch.equal(run("input_only", model), x)
    assert torch.equal(run("input_only", model, absolute=True), x.abs())
    assert torch.equal(run("oracle", model), truth().relevant.float())
    assert torch.equal(run("oracle", model, mark="necessary"), truth().necessary.float())
    uniform, normal = run("random", model), run("random", model, distribution="normal")
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert normal.min() < 0


def test_cam_can_be_cut_at_zero():
    model = make("andor_cnn")
    raw = run("grad_cam", model)
    assert raw.min() < 0
    assert torch.equal(run("grad_cam", model, relu=True), raw.clamp(min=0))


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gradcam", "unknown method 'gradcam'; did you mean 'grad_cam'"),
        ({"name": "integrated_gradients", "stepz": 5}, "did you mean 'steps'"),
        ({"name": "integrated_gradients", "steps": "5"}, "'steps' should be a valid integer"),
        ({"name": "integrated_gradients", "steps": 0}, "'steps' should be greater than or equal"),
        ({"name": "integrated_gradients", "rule": "simpson"}, "'rule' should be 'gausslegendre'"),
        ({"name": "smoothgrad", "noise": True}, "'noise' should be a valid number, got True"),
        ({"name": "gradient", "generator": 3}, "unknown parameter 'generator'"),
        ({"steps": 5}, "expected a name or a mapping with a 'name'"),
        (3, "expected a name or a mapping with a 'name'"),
        ("no.such.package:f", "cannot import 'no.such.package'"),
        ("math:sinus", "unknown attribute 'sinus'"),
        ("math:pi", "is not a function"),
    ],
)
def test_a_wrong_specification_gets_one_clear_line(spec, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        resolve(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_parameters_come_back_as_given_and_checked():
    known, given = resolve({"name": "smoothgrad", "noise": 1})
    assert known.name == "smoothgrad"
    assert given == {"noise": 1.0}
    assert isinstance(given["noise"], float)
    assert known.defaults == {"samples": 20, "noise": 0.2, "relative": False, "base": "gradient"}


def with_nan(model, x, target, *, baseline, generator):
    return torch.where(torch.arange(len(x))[:, None] == 2, torch.nan, x)


def of_wrong_shape(model, x, target, *, baseline, generator):
    return x.sum(1)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (f"{__name__}:with_nan", "cnn", "gave NaN or infinity for sample 102 (1 of 13 samples)"),
        (f"{__name__}:of_wrong_shape", "cnn", "returned shape (13,) for inputs of shape (13, 8)"),
        ("lrp_epsilon", "transformer", "does not apply to a model of kind 'transformer'"),
        ("occlusion", "cnn", "window 9 is longer than the 8 inputs"),
    ],
)
def test_what_goes_wrong_while_running_gets_one_clear_line(name, kind, message):
    model = make(f"andor_{kind}")
    parameters = {"window": 9} if name == "occlusion" else {}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        run(name, model, **parameters)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_must_agree():
    model, (x, target) = make("andor_cnn"), samples()
    with pytest.raises(ValueError, match="13 samples but 3 indices"):
        attribute("gradient", model, x, target, indices=[1, 2, 3])
    with pytest.raises(ValueError, match="13 samples but 5 targets"):
        attribute("gradient", model, x, target[:5])
    with pytest.raises(ValueError, match="needs the truth"):
        attribute("oracle", model, x, target)
    with pytest.raises(ValueError, match="truth is known of 13 samples"):
        attribute("oracle", model, x[:5], target[:5], truth=truth())


def test_too_many_inputs_for_exact_shapley():
    model = build("andor_cnn", inputs=17, classes=2, seed=0)
    with pytest.raises(ValueError, match=r"2\^17 coalitions.*kernel_shap"):
        attribute("shapley_exact", model, torch.zeros(1, 17), torch.zeros(1, dtype=torch.long))


def test_model_is_restored_after_a_failure():
    model = make("andor_cnn").train()
    with pytest.raises(ValueError, match="window 9"):
        run("occlusion", model, window=9)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_no_samples_is_no_problem():
    empty = torch.zeros(0, D), torch.zeros(0, dtype=torch.long)
    assert attribute("kernel_shap", make("andor_cnn"), *empty).shape == (0, D)


# --- plugins --------------------------------------------------------------------------------------


def noisy_input(model, x, target, *, baseline, generator, noise: float = 0.1):
    """The input and some noise."""
    return x - baseline + noise * torch.randn_like(x)


def test_plugin_by_dotted_path():
    name = f"{__name__}:noisy_input"
    known, _ = resolve(name)
    assert known.summary == "The input and some noise."
    maps = run(name, make("andor_cnn"), noise=0.5)
    assert torch.equal(maps, run(name, make("andor_cnn"), noise=0.5))  # even with global draws
    with pytest.raises(ValueError, match="unknown parameter 'nose'; did you mean 'noise'"):
        resolve({"name": name, "nose": 1})


def test_plugin_by_entry_point(monkeypatch):
    entry = SimpleNamespace(name="noisy", value=f"{__name__}:noisy_input", load=lambda: noisy_input)
    broken = SimpleNamespace(name="broken", value="nowhere:f", load=lambda: 1 / 0)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry, broken])
    registry._installed.cache_clear()
    try:
        with pytest.warns(UserWarning, match="method 'broken'"):
            assert "noisy" in methods()
        assert resolve({"name": "noisy", "noise": 0.2})[1] == {"noise": 0.2}
    finally:
        registry._installed.cache_clear()


def test_decorator_refuses_a_taken_name_and_a_parameter_without_default():
    with pytest.raises(ValueError, match="'gradient' is taken by"):
        method("gradient", library="mine", family="gradient", passes="0")(noisy_input)

    def strict(model, x, target, *, baseline, generator, noise):
        return x

    with pytest.raises(ValueError, match="parameter 'noise' needs a default"):
        method("strict", library="mine", family="gradient", passes="0")(strict)


def test_checking_methods_does_not_import_torch():
    code = (
        "import sys; from experiments.attribution import methods, resolve;"
        "[resolve({'name': name, **m.defaults}) for name, m in methods().items()];"
        "assert not {'torch', 'captum', 'shap', 'zennit', 'pytorch_grad_cam'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
