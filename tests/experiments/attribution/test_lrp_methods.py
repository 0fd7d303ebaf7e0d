"""LRP, relevance through attention and attention maps, against zennit and against hand work."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import COMPOSITES
from zennit.torchvision import ResNetCanonizer

from experiments import passes
from experiments.attribution import attribute, methods
from experiments.attribution.attention import rollout
from experiments.attribution.batch import Batch
from experiments.attribution.functions import FunctionRules
from experiments.attribution.tokens import layout, to_inputs
from experiments.models import build

D64 = {"dtype": torch.float64}
MINE = {
    name
    for name, known in methods().items()
    if known.function.__module__.rpartition(".")[2]
    in ("lrp_methods", "lrp_presets", "attention_methods")
}
ATTENTION = sorted(name for name in MINE if methods()[name].family == "attention")
AGNOSTIC = {"raw_attention", "attention_rollout"}


def fresh(model, seed=0):
    """Random weights, and batch norms that have seen data; in double precision."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            width = math.sqrt(max(1, parameter[0].numel())) if parameter.ndim > 1 else 2
            parameter.copy_(torch.randn(parameter.shape, generator=generator, **D64) / width)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.eps = 0  # zennit merges a batch norm and leaves another √(1 + eps)
    return model


def without_biases(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "pos_embedding", "class_token")):
                parameter.zero_()
    return model


def convolutional():
    return fresh(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Dropout(), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(),
            nn.Linear(12, 7), nn.LeakyReLU(0.1, True), nn.Linear(7, 3),
        )
    )  # fmt: skip


def vision_transformer():
    return fresh(torchvision.models.VisionTransformer(8, 4, 2, 2, 8, 12, num_classes=3))


class Encoder(nn.Module):
    """nn.TransformerEncoder on series [B, C, T] of one token per step; the head reads the mean."""

    def __init__(self, norm_first=False, batch_first=True, layers=2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, 2, 12, activation="gelu", batch_first=batch_first, norm_first=norm_first
        )
        self.batch_first = batch_first
        self.embed = nn.Linear(2, 8)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.embed(x.transpose(1, 2))
        if self.batch_first:
            return self.head(self.encoder(tokens).mean(1))
        return self.head(self.encoder(tokens.transpose(0, 1)).mean(0))


def inputs(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **D64)


def explain(spec, model, x, target, **parameters):
    """The map in the precision of the model."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    batch = Batch(model, x, target, baseline=torch.zeros_like(x[0]), seed=0, indices=range(len(x)))
    return batch.maps({"name": spec, **parameters})


def close(actual, expected, rtol=1e-7):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(
        actual, expected, rtol=rtol, atol=rtol * float(expected.detach().abs().max())
    )


# --- against zennit -------------------------------------------------------------------------------

PRESETS = {
    "lrp_epsilon_plus": ("epsilon_plus", {}),
    "lrp_epsilon_plus_flat": ("epsilon_plus_flat", {}),
    "lrp_alpha2_beta1": ("epsilon_alpha2_beta1", {}),
    "lrp_alpha2_beta1_flat": ("epsilon_alpha2_beta1_flat", {}),
    "lrp_epsilon_gamma_box": ("epsilon_gamma_box", {"low": -5.0, "high": 6.0}),
}


def by_zennit(composite, model, x, target, canonizer=SequentialMergeBatchNorm, **parameters):
    made = COMPOSITES[composite](canonizers=[canonizer()], **parameters)
    one_hot = F.one_hot(target, 3).double()
    return Gradient(model, composite=made)(x.clone(), lambda logits: logits.detach() * one_hot)[1]


@pytest.mark.parametrize("zero_bias", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_those_of_zennit(name, zero_bias):
    composite, parameters = PRESETS[name]
    model, x, target = convolutional(), inputs(4, 3, 9, 9), torch.tensor([0, 1, 2, 1])
    maps = explain(name, model, x, target, zero_bias=zero_bias, **parameters)
    zero = ["bias"] if zero_bias else None
    close(maps, by_zennit(composite, model, x, target, zero_params=zero, **parameters))


def test_residual_sums_of_functions_are_those_of_zennits_canonizer():
    model = torchvision.models.resnet18(num_classes=3)
    model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 3)
    model, x, target = fresh(model), inputs(2, 3, 12, 12), torch.tensor([2, 0])
    for name in ("lrp_epsilon_plus", "lrp_alpha2_beta1"):
        maps = explain(name, model, x, target)
        close(maps, by_zennit(PRESETS[name][0], model, x, target, ResNetCanonizer), rtol=1e-6)


def test_excitation_backprop_is_that_of_zennit_and_sums_to_one():
    model, x, target = convolutional(), inputs(4, 3, 9, 9), torch.tensor([0, 1, 2, 1])
    model[11] = nn.ReLU()
    maps = explain("excitation_backprop", model, x, target)
    made = COMPOSITES["excitation_backprop"](
        canonizers=[SequentialMergeBatchNorm()], zero_params=["bias"]
    )
    close(maps, Gradient(model, composite=made)(x.clone(), F.one_hot(target, 3).double())[1])
    model, x = fresh(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))), inputs(4, 5).abs()
    with torch.no_grad():
        model[0].weight.abs_(), model[2].weight.abs_()
    close(explain("excitation_backprop", model, x, target).sum(1), torch.ones(4), rtol=1e-4)


# --- rules in matrix form -------------------------------------------------------------------------


def by_matrices(rule, x, weight, bias, relevance, epsilon=1e-6, gamma=0.5, low=-4.0, high=5.0):
    """A rule for one sample, contribution by contribution: C[j, i] = what input i gives j."""

    def shared(contributions, constant=0.0):
        total = contributions.sum(1) + constant
        total = total + epsilon * torch.where(total < 0, -1.0, 1.0)
        return (contributions * (relevance / total)[:, None]).sum(0)

    product, plus, minus = weight * x, weight.clamp(min=0), weight.clamp(max=0)
    if rule == "epsilon":
        return shared(product, bias)
    if rule == "zplus":
        return shared(product.clamp(min=0), bias.clamp(min=0))
    if rule == "alpha_beta":
        rising = shared(product.clamp(min=0), bias.clamp(min=0))
        return 2 * rising - shared(product.clamp(max=0), bias.clamp(max=0))
    if rule == "gamma":
        result = 0
        for sign in (1, -1):
            favoured = product + gamma * (sign * product).clamp(min=0) * sign
            constant = bias + gamma * (sign * bias).clamp(min=0) * sign
            mask = sign * (product.sum(1) + bias) > 0
            kept, relevance = relevance, relevance * mask
            result = result + shared(favoured, constant)
            relevance = kept
        return result
    if rule == "flat":
        return shared(torch.ones_like(weight))
    if rule == "w2":
        return shared(weight**2, bias**2)
    return shared(product - low * plus - high * minus)


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "alpha_beta", "gamma", "flat", "w2", "zbox"])
def test_rules_in_matrix_form(rule):
    """Two layers; the first has inputs of both signs, the second those of a ReLU."""
    model = fresh(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    x, target = inputs(5, 4), torch.tensor([0, 1, 2, 0, 1])
    second = "epsilon" if rule == "zbox" else rule
    given = {"low": -4.0, "high": 5.0} if rule == "zbox" else {}
    maps = explain("lrp", model, x, target, linear=second, first=rule, gamma=0.5, **given)
    for row in range(5):
        hidden = model[1](model[0](x[row]))
        upper = model[2](hidden) * F.one_hot(target[row], 3)
        upper = by_matrices(second, hidden, model[2].weight, model[2].bias, upper)
        close(maps[row], by_matrices(rule, x[row], model[0].weight, model[0].bias, upper))


def simple_lrp_model(corner=2.0):
    """captum's SimpleLRPModel: h = relu(2 Σ x) three times, f = 3 Σ h."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    model = model.double()
    with torch.no_grad():
        model[0].weight.fill_(2)
        model[0].weight[0, 0] = corner
        model[2].weight.fill_(3)
    return model


@pytest.mark.parametrize(
    ("spec", "corner", "expected"),
    [
        ({"spec": "lrp_epsilon"}, 2.0, [18, 36, 54]),
        ({"spec": "lrp_gamma", "gamma": 1.0}, -2.0, [28 / 3, 104 / 3, 52]),
        ({"spec": "lrp_alpha1_beta0"}, -2.0, [12, 33.6, 50.4]),
        ({"spec": "lrp_flat"}, 2.0, [36, 36, 36]),
        ({"spec": "lrp", "linear": "w2"}, 2.0, [36, 36, 36]),
    ],
)
def test_published_numbers_of_captum(spec, corner, expected):
    x = torch.tensor([[1.0, 2, 3]], **D64)
    maps = explain(model=simple_lrp_model(corner), x=x, target=torch.tensor([0]), **spec)
    close(maps[0], expected, rtol=1e-6)


class Skip(nn.Module):
    """x + W x, written as `how` says."""

    def __init__(self, how="operator"):
        super().__init__()
        self.linear, self.how = nn.Linear(2, 2, bias=False, **D64), how
        nn.init.constant_(self.linear.weight, 5)

    def forward(self, x):
        if self.how == "in place":
            y = self.linear(x)
            y += x
            return y
        return torch.add(x, self.linear(x)) if self.how == "function" else x + self.linear(x)


@pytest.mark.parametrize("how", ["operator", "function", "in place"])
def test_skip_connection(how):
    """x = (2, 3): the second output is 3 + 10 + 15."""
    x = torch.tensor([[2.0, 3]], **D64)
    close(explain("lrp_epsilon", Skip(how), x, torch.tensor([1]))[0], [10, 18], rtol=1e-6)


class Written(nn.Module):
    """One network in functions, with what moves relevance: scaling, shifts, means, a gate."""

    def __init__(self, functional, twice):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.last, self.relu = nn.Linear(4, 3), nn.ReLU()
        self.functional, self.twice = functional, twice

    def forward(self, x):
        z = self.norm(self.conv(x))
        y = F.relu(z) if self.functional else self.relu(z)
        if self.twice:
            y = self.relu(y)  # a module that is used twice
        y = y.mean(-1) * 3.0 / 3 if self.functional else y.mean(-1)
        return self.last(y)


def test_functions_and_modules_are_alike():
    x, target = inputs(3, 2, 8), torch.tensor([0, 1, 2])
    expected = explain("lrp_epsilon_plus", fresh(Written(False, False)), x, target)
    for ways in ((True, False), (False, True), (True, True)):
        close(explain("lrp_epsilon_plus", fresh(Written(*ways)), x, target), expected)


def test_batch_norms_of_every_mode():
    """Merged: as the folded network. A batch norm before its convolution is not merged."""
    model, x, target = fresh(Written(False, False)), inputs(3, 2, 8), torch.tensor([0, 1, 2])
    merged = explain("lrp", model, x, target, convolution="alpha_beta")
    folded = fresh(Written(False, False))
    folded.conv = torch.nn.utils.fuse_conv_bn_eval(folded.conv, folded.norm)
    folded.norm = nn.Identity()
    close(merged, explain("lrp", folded, x, target, convolution="alpha_beta"))

    before = fresh(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)))
    x = inputs(3, 4)
    norm, upper = before[0], explain("lrp_epsilon", before[1:], before[0](x), target)
    close(explain("lrp_epsilon", before, x, target), upper)
    y, beta, mean = norm(x).detach(), norm.bias.detach(), norm.running_mean
    close(
        explain("lrp", before, x, target, batch_norm="ratio"),
        upper * x * (y - beta) / ((x - mean) * y),
        rtol=1e-4,
    )


def test_innvestigates_biases_of_preset_b():
    """Both branches have the whole bias: 2 x W⁺ᵀ(R / (W⁺x + b)) − x W⁻ᵀ(R / (W⁻x + b)), x ≥ 0."""
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Conv1d(3, 4, 1), nn.Flatten(1))
    model = fresh(nn.Sequential(*model, nn.Linear(4, 3)))
    x, target = inputs(1, 2, 1), torch.tensor([2])
    h = model[1](model[0](x))[0, :, 0]
    z = model[2].weight[..., 0] @ h + model[2].bias
    f = model[4](z) * F.one_hot(target[0], 3)
    upper = by_matrices("epsilon", z, model[4].weight, model[4].bias, f, epsilon=1.0)
    product, b = model[2].weight[..., 0] * h, model[2].bias
    plus, minus = product.clamp(min=0), product.clamp(max=0)
    lower = 2 * (plus * (upper / (plus.sum(1) + b))[:, None]).sum(0)
    lower = lower - (minus * (upper / (minus.sum(1) + b))[:, None]).sum(0)
    maps = explain("lrp_preset_b_flat", model, x, target)
    close(maps[0, :, 0], lower.sum().expand(2) / 2, rtol=1e-5)


# --- conservation ---------------------------------------------------------------------------------


def explained(model, x, target):
    return passes.selected(passes.outputs(model, x), target)


@pytest.mark.parametrize("first", ["none", "flat", "zbox"])
@pytest.mark.parametrize("convolution", ["epsilon", "zplus", "alpha_beta", "gamma", "flat"])
def test_without_biases_relevance_is_conserved(convolution, first):
    model, x, target = convolutional(), inputs(4, 3, 9, 9), torch.tensor([0, 1, 2, 1])
    tiny = {"epsilon": 1e-12, "stabilizer": 1e-12, "convolution": convolution, "first": first}
    kept = explain("lrp", model, x, target, bias="zero", **tiny).flatten(1).sum(1)
    close(kept, explained(model, x, target), rtol=1e-5)
    lost = explain("lrp", model, x, target, **tiny).flatten(1).sum(1)
    assert float((lost / kept - 1).abs().max()) > 0.05


def plain_andor(**parameters):
    model = fresh(build({"name": "andor_transformer", **parameters}, inputs=6, classes=3, seed=0))
    model.positions.zero_()
    return model


TRANSFORMERS = {
    "vit": (vision_transformer, (3, 8, 8)),
    "post-norm": (Encoder, (2, 6)),
    "pre-norm, tokens first": (lambda: Encoder(True, False), (2, 6)),
    "andor": (plain_andor, (6,)),
}


def transformer(name):
    make, shape = TRANSFORMERS[name]
    model = make() if name == "andor" else fresh(make())
    return model, inputs(3, *shape), torch.tensor([0, 1, 2])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_without_biases_conserve_relevance(name):
    """Ali et al. 2022, equation 8. (AttnLRP does not: its softmax absorbs relevance.)"""
    model, x, target = transformer(name)
    maps = explain("lrp_conservative", without_biases(model), x, target, activation="identity")
    close(maps.flatten(1).sum(1), explained(model, x, target), rtol=1e-4)


# --- AttnLRP and CP-LRP by hand -------------------------------------------------------------------


def test_attnlrp_and_cp_lrp_in_relevance_form():
    """One head over three tokens of width 2, activation by activation (Achtibat et al. 2024)."""
    torch.manual_seed(3)
    x = torch.randn(3, 2, **D64)
    q_weight, k_weight, v_weight = torch.randn(3, 2, 2, **D64)

    class Head(nn.Module):
        kind = "transformer"

        def forward(self, x):
            q, k, v = x @ q_weight.T, x @ k_weight.T, x @ v_weight.T
            mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
            return F.gelu(mixed).flatten(1)

    def product(a, b, upper, share):  # (a b)ᵀ: proposition 3.3 where share = 1/2
        s = upper / (a @ b)
        return share * a * (s @ b.T), share * b * (a.T @ s)

    q, k, v = x @ q_weight.T, x @ k_weight.T, x @ v_weight.T
    scores = q @ k.T / math.sqrt(2)
    a = scores.softmax(-1)
    upper = torch.zeros(3, 2, **D64)
    upper[1, 0] = F.gelu(a @ v)[1, 0]  # the identity rule passes it through the GELU
    target, maps = torch.tensor([2]), {}
    for name, share in (("lrp_attention", 0.5), ("lrp_conservative", 1.0)):
        r_a, r_v = product(a, v, upper, share)
        _, r_x = product(v_weight, x.T, r_v.T, 1.0)
        total = r_x.T
        if share == 0.5:
            r_scores = scores * (r_a - a * r_a.sum(1, keepdim=True))  # proposition 3.1
            r_q, r_k = product(q, k.T, r_scores, 0.5)
            total = total + product(q_weight, x.T, r_q.T, 1.0)[1].T
            total = total + product(k_weight, x.T, r_k, 1.0)[1].T
        maps[name] = total
    options = {"lrp_attention": {}, "lrp_conservative": {"activation": "identity"}}
    for name, expected in maps.items():
        found = explain(name, Head(), x[None], target, **options[name])
        close(found[0], expected)


def test_a_rule_for_gradients_is_the_rule_for_relevance():
    model = fresh(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    x, target = inputs(5, 4), torch.tensor([0, 1, 2, 0, 1])
    expected = explain("lrp_gamma", model, x, target, gamma=0.7)
    close(explain("lrp_attention", model, x, target, linear="gamma", gamma=0.7), expected)


# --- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, "causal", "padding", "per head", "both"])
@pytest.mark.parametrize("widths", [{}, {"kdim": 6, "vdim": 4, "batch_first": True}], ids=str)
def test_attention_in_single_steps_is_that_of_torch(mask, widths):
    layer = fresh(nn.MultiheadAttention(8, 2, **widths))
    lengths = (3, 5) if widths else (5, 3)  # samples and tokens, in the layer's order
    query = inputs(*lengths, 8)
    key = inputs(*lengths, widths.get("kdim", 8), seed=1)
    value = inputs(*lengths, widths.get("vdim", 8), seed=2)
    late = torch.arange(5).expand(3, 5) > 3
    given = {
        "attn_mask": {
            "causal": torch.ones(5, 5).triu(1).bool(), "both": torch.ones(5, 5).triu(2).bool(),
            "per head": inputs(6, 5, 5, seed=3),
        }.get(mask),
        "key_padding_mask": late if mask in ("padding", "both") else None,
    }  # fmt: skip
    expected = layer(query, key, value, **given)
    with FunctionRules({}):
        found = layer(query, key, value, **given)
        quick = layer(query, key, value, need_weights=False, **given)
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    close(quick[0], expected[0])
    assert quick[1] is None


def attentions(model, x, target):
    """Attention and its gradient, [B, heads, L, L] per layer, by torch's own unfused attention."""
    seen = []
    whole, softmax = F.multi_head_attention_forward, F.softmax

    def unfused(*arguments, **options):
        return whole(*arguments, **options | {"need_weights": True})

    def spied(*arguments, **options):
        seen.append(softmax(*arguments, **options))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "multi_head_attention_forward", unfused)
        patch.setattr(F, "softmax", spied)
        found = passes.selected(model(x.clone().requires_grad_()), target)
    gradients = torch.autograd.grad(found.sum(), seen)
    return [[a.detach().unflatten(0, (len(x), -1)) for a in some] for some in (seen, gradients)]


def test_rollouts_by_hand():
    """Layer by layer and row by row, on a vision transformer of 5 tokens (CLS and 2 × 2)."""
    model, x, target = transformer("vit")
    seen, gradients = attentions(model, x, target)
    weighted = [a * g for a, g in zip(seen, gradients, strict=True)]
    for name, matrices in (
        ("attention_rollout", [a.mean(1) for a in seen]),
        ("gradient_rollout", [a.mean(1).clamp(min=0) for a in weighted]),
    ):
        expected = torch.zeros(3, 5, **D64)
        for row in range(3):
            flow = torch.eye(5, **D64)
            for matrix in matrices:
                mixed = 0.7 * matrix[row] + 0.3 * torch.eye(5, **D64)
                flow = torch.stack([line / line.sum() for line in mixed]) @ flow
            expected[row] = flow[0]
        maps = explain(name, model, x, target, residual=0.3)
        patches = expected[:, 1:].reshape(3, 2, 1, 2, 1).expand(3, 2, 4, 2, 4).reshape(3, 8, 8)
        close(maps, patches[:, None].expand(3, 3, 8, 8))
    close(
        explain("raw_attention", model, x, target)[:, 0, ::4, ::4].flatten(1),
        seen[-1].mean(1)[:, 0, 1:],
    )
    lowest = explain("raw_attention", model, x, target, layer="first", heads="min", queries="sum")
    close(lowest[:, 2, ::4, ::4].flatten(1), seen[0].amin(1).sum(1)[:, 1:])


def test_chefer_by_hand():
    """Two layers: R = I + Ā₂(I + Ā₁) + Ā₁."""
    model, x, target = transformer("post-norm")
    pairs = zip(*attentions(model, x, target), strict=True)
    first, second = ((a * g).clamp(min=0).mean(1) for a, g in pairs)
    expected = torch.eye(6, **D64) + first
    expected = expected + second @ expected
    maps = explain("chefer_relevance", model, x, target)
    close(maps, expected.mean(1)[:, None].expand(3, 2, 6))
    total = explain("chefer_relevance", model, x, target, queries="sum")
    close(total, 6 * maps)


def test_transformer_attribution_by_hand():
    """One layer without biases: relevance of A is half of A ⊙ (upper / (A v)) vᵀ."""
    torch.manual_seed(5)
    v_weight, head = torch.randn(4, 2, **D64), torch.randn(3, 12, **D64)
    x = torch.rand(1, 3, 2, **D64) - 0.5

    class Layer(nn.Module):
        kind = "transformer"

        def forward(self, x):
            x = x.transpose(1, 2)
            a = (x @ x.transpose(1, 2)).softmax(-1)
            return F.linear((a @ F.linear(x, v_weight)).flatten(1), head)

    a = (x[0] @ x[0].T).softmax(-1).requires_grad_()
    v = x[0] @ v_weight.T
    mixed = (a @ v).flatten()
    f = head @ mixed
    (slope,) = torch.autograd.grad(f[1], a)
    contributions = (head[1] * mixed).clamp(min=0).detach()
    upper = (f[1] * contributions / contributions.sum()).detach().reshape(3, 4)
    relevance = 0.5 * a * ((upper / (a @ v)) @ v.T)
    for name, matrix in (
        ("transformer_attribution", (slope * relevance).clamp(min=0)),
        ("lrp_rollout", relevance.clamp(min=0)),
    ):
        expected = (torch.eye(3, **D64) + matrix.detach()).mean(0)[:, None].expand(3, 2)
        found = explain(name, Layer(), x.transpose(1, 2), torch.tensor([1]))
        close(found[0, 0], expected[:, 0], rtol=1e-4)


def test_discarding_the_lowest_entries():
    matrix = torch.tensor([[[0.1, 0.9], [0.4, 0.6]]])
    kept = torch.tensor([[[0.0, 0.9], [0.0, 0.6]]])
    close(rollout([matrix], 0.0, 0.5), kept / kept.sum(-1, keepdim=True))
    close(rollout([torch.zeros(1, 2, 2)], 0.0), torch.zeros(1, 2, 2))


def test_layouts_of_tokens():
    assert layout(197, (3, 224, 224), None) == (1, (14, 14))
    assert layout(196, (3, 224, 224), None) == (0, (14, 14))
    assert layout(5 + 32, (1, 8, 16), None) == (5, (4, 8))
    assert layout(9, (8,), None) == (1, (8,))
    assert layout(4, (2, 12), None) == (0, (4,))
    assert layout(6, (12,), 2) == (2, (4,))
    image = to_inputs(torch.tensor([[9.0, 1, 2, 3, 4]]), torch.zeros(1, 2, 4, 4), None)
    assert image[0, 1].tolist() == [[1, 1, 2, 2]] * 2 + [[3, 3, 4, 4]] * 2
    smooth = to_inputs(torch.tensor([[1.0, 3]]), torch.zeros(1, 4), None, "linear")
    close(smooth[0], [1.0, 1.5, 2.5, 3.0])


# --- every method of this family ------------------------------------------------------------------

CASES = [
    *((name, "cnn") for name in sorted(MINE) if "cnn" in methods()[name].models),
    *((name, kind) for name in sorted(MINE) if "transformer" in methods()[name].models
      for kind in ("vit", "post-norm")),
]  # fmt: skip


def case(kind):
    if kind == "cnn":
        return convolutional(), inputs(3, 3, 9, 9), torch.tensor([0, 1, 2])
    return transformer(kind)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_passes_weights_batches_and_traces(name, kind):
    model, x, target = case(kind)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    attributes = {key: sorted(vars(module)) for key, module in model.named_modules()}
    with passes.counted(model) as count:
        maps = attribute(name, model, x, target, batch_size=3)
    expected = {"transformer_attribution": (0, 6)}.get(name, (3, 0) if name in AGNOSTIC else (0, 3))
    assert (count.forwards, count.backwards) == expected
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(found, before[key]) for key, found in model.state_dict().items())
    assert {key: sorted(vars(module)) for key, module in model.named_modules()} == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    # alone as in company, and a class as the weights that select it
    close(attribute(name, model, x, target, batch_size=1), maps, rtol=1e-5)
    one_hot = F.one_hot(target, 3).double()
    close(attribute(name, model, x, one_hot), maps, rtol=1e-5)
    if methods()[name].family == "lrp" and name != "deep_taylor":
        close(attribute(name, model, x, -2 * one_hot), -2 * maps, rtol=1e-5)


def test_attention_methods_share_their_passes():
    model, x, target = transformer("vit")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    batch = Batch(model, x, target, baseline=x[0], seed=0, indices=range(3))
    with passes.counted(model) as count:
        for name in ("chefer_relevance", "gradient_rollout", "attention_rollout", "raw_attention"):
            batch.maps(name)
        batch.maps({"name": "attention_rollout", "heads": "max"})
        assert (count.forwards, count.backwards) == (0, 3)
        batch.maps("lrp_rollout"), batch.maps("transformer_attribution")
        assert (count.forwards, count.backwards) == (0, 6)
        batch.at(target.flip(0)).maps("raw_attention")
        assert (count.forwards, count.backwards) == (0, 6)


def test_deep_taylor_starts_from_the_positive_part():
    model, x = convolutional(), inputs(3, 3, 9, 9)
    maps = explain("deep_taylor", model, x, F.one_hot(torch.tensor([0, 1, 2]), 3).double())
    value = explained(model, x, torch.tensor([0, 1, 2]))
    assert bool((value < 0).any())
    assert bool((maps[value < 0] == 0).all())
    assert bool((maps >= 0).all())


def test_mistakes_end_in_one_line():
    cnn, x, target = convolutional(), inputs(3, 3, 9, 9), torch.tensor([0, 1, 2])
    for spec, message in (
        ({"name": "lrp", "alpha": 3.0, "convolution": "alpha_beta"}, "must be 1"),
        ({"name": "lrp_epsilon_gamma_box", "low": 0.0, "high": 1.0}, "give low and high"),
        ({"name": "lrp_epsilon_gamma_box", "low": [0.0, 1.0]}, "one per channel"),
    ):
        with pytest.raises(ValueError, match=message):
            attribute(spec, cnn, x, target)
    cnn.kind = "transformer"
    with pytest.raises(ValueError, match="no self-attention"):
        attribute("raw_attention", cnn, x, target)
    vit, x, target = transformer("vit")
    with pytest.raises(ValueError, match="cannot be laid"):
        attribute({"name": "attention_rollout", "special": 0}, vit, x, target)
    windows = torchvision.models.swin_transformer.SwinTransformer([2, 2], 8, [2], [2], [2, 2])
    windows.kind = "transformer"
    with pytest.raises(ValueError, match="windowed"):
        attribute("attention_rollout", windows.double(), x, target)
