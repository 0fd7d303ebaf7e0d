"""The ANDOR architectures keep the model contract and do what their parameters say."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from experiments.models import architectures, build, resolve

CNN = {"name": "andor_cnn"}
TRANSFORMER = {"name": "andor_transformer"}
VARIANTS = [
    CNN,
    {**CNN, "skip": False},
    {**CNN, "batch_norm": False},
    {**CNN, "layers": 1, "channels": 4},
    TRANSFORMER,
    {**TRANSFORMER, "cls": True, "attention_dropout": 0.3},
    {**TRANSFORMER, "width": 64, "layers": 1},
]


def make(spec, seed=0, inputs=8, dtype=None):
    return build(spec, inputs=inputs, classes=2, seed=seed, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_contract(spec, dtype):
    model = make(spec, dtype=dtype).eval()
    x = torch.randn(5, 8, dtype=dtype)
    kept = []
    handle = model.cam_layer.register_forward_hook(lambda module, inputs, out: kept.append(out))
    logits = model(x)
    handle.remove()
    assert logits.shape == (5, 2)
    assert logits.dtype == dtype
    assert model.kind == architectures()[spec["name"]].kind
    activations = model.cam_reshape(kept[0])
    assert activations.shape[::2] == (5, 8)
    assert torch.allclose(model(x[2:3]), logits[2:3], atol=1e-6)


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_every_weight_is_used(spec):
    model = make(spec)
    model(torch.randn(6, 8))[:, 0].square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("spec", VARIANTS, ids=str)
def test_activations_are_modules_used_once(spec):
    model = make(spec)
    calls = []
    activations = [m for m in model.modules() if isinstance(m, nn.ReLU | nn.Softmax)]
    for module in activations:
        module.register_forward_hook(lambda module, inputs, out: calls.append(id(module)))
    model(torch.randn(2, 8))
    assert sorted(calls) == sorted(id(module) for module in activations)


def test_seed_decides_the_weights_in_every_precision():
    single, double = make(TRANSFORMER, seed=3), make(TRANSFORMER, seed=3, dtype=torch.float64)
    for a, b in zip(single.state_dict().values(), double.state_dict().values(), strict=True):
        assert torch.equal(a.double(), b.double())
    other = make(TRANSFORMER, seed=4)
    assert not torch.equal(single.head.weight, other.head.weight)


def test_building_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make(CNN)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_skip_and_batch_norm_hold_for_every_block(skip, batch_norm):
    model = make({**CNN, "skip": skip, "batch_norm": batch_norm, "layers": 3})
    for block in model.blocks:
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == (2 + skip if batch_norm else 0)
        assert (block.skip is not None) == skip


def test_cls_token_is_not_a_position():
    model = make({**TRANSFORMER, "cls": True})
    tokens = torch.arange(9.0)[None, :, None].expand(2, 9, 32)
    assert torch.equal(model.cam_reshape(tokens)[0, 0], torch.arange(1.0, 9.0))


def test_attention_weights_can_be_read():
    model = make(TRANSFORMER)
    weights = []
    model.blocks[0].attention.softmax.register_forward_hook(lambda m, i, out: weights.append(out))
    model(torch.randn(3, 8))
    assert weights[0].shape == (3, 4, 8, 8)
    assert torch.allclose(weights[0].sum(-1), torch.ones(()))


def test_transformer_equals_that_of_torch():
    """The encoder block against nn.TransformerEncoderLayer with the same weights."""
    model = make(TRANSFORMER, dtype=torch.float64).eval()
    block = model.blocks[0]
    layer = nn.TransformerEncoderLayer(
        32, 4, 16, dropout=0.0, layer_norm_eps=1e-6, batch_first=True, dtype=torch.float64
    ).eval()
    attention = block.attention
    both = {
        "self_attn.in_proj_weight": torch.cat([attention.query_key.weight, attention.value.weight]),
        "self_attn.in_proj_bias": torch.cat([attention.query_key.bias, attention.value.bias]),
    }
    parts = {
        "self_attn.out_proj": attention.output,
        "linear1": block.expand,
        "linear2": block.contract,
        "norm1": block.attention_norm,
        "norm2": block.feedforward_norm,
    }
    for name, module in parts.items():
        both |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    layer.load_state_dict(both)
    x = torch.randn(3, 8, 32, dtype=torch.float64)
    assert torch.allclose(block(x), layer(x), atol=1e-12)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("andor_cn", "unknown model 'andor_cn'; did you mean 'andor_cnn'"),
        ({**CNN, "chanels": 4}, "unknown parameter 'chanels'; did you mean 'channels'"),
        ({**CNN, "channels": "4"}, "parameter 'channels' should be a valid integer, got '4'"),
        ({**CNN, "channels": 0}, "parameter 'channels' should be greater than or equal to 1"),
        ({**TRANSFORMER, "attention_dropout": 1}, "should be less than 1, got 1"),
        ({"channels": 4}, "expected a name or a mapping with a 'name'"),
        ("no.such.package:net", "cannot import 'no.such.package'"),
    ],
)
def test_mistakes_get_one_clear_line(spec, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        resolve(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 30 is not a multiple of heads 4"):
        make({**TRANSFORMER, "width": 30})


def tiny(inputs, classes, *, hidden: int = 3):
    """A model by dotted path."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Linear(hidden, classes))


def test_model_by_dotted_path():
    model = make({"name": f"{__name__}:tiny", "hidden": 5})
    assert model[0].weight.shape == (5, 8)


def test_checking_a_model_does_not_import_torch():
    code = (
        "import sys; from experiments.models import resolve;"
        "resolve({'name': 'andor_transformer', 'width': 64});"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
