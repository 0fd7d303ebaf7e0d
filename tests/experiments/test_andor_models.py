"""Networks, recipe, data, forest and maps of the ANDOR study, as the paper's code has them."""

from __future__ import annotations

from pathlib import Path

import captum.attr
import numpy as np
import pytest
import torch
import yaml
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F

from experiments import attribution, scoring
from experiments.attribution import attribute
from experiments.attribution.andor_relevance import Sigmoid
from experiments.attribution.batch import Batch
from experiments.attribution.driver import untouched
from experiments.data.andor import AndorSpec, generate
from experiments.data.dataset import Split
from experiments.models import build, forest
from experiments.models.noise import Noise
from experiments.models.stack import Stack
from experiments.training.loop import Progress, fit, rate
from experiments.training.recipe import paper_recipe
from experiments.training.stacked import fit_many
from orchestrator import grid

D = 8
CNNS = [
    {"name": "andor_cnn", "preset": "paper", "skip": skip, "batch_norm": norm}
    for skip in (True, False)
    for norm in (True, False)
]
TRANSFORMERS = [{"name": "andor_transformer", "preset": "paper", "cls": cls} for cls in (0, 1)]
for spec in TRANSFORMERS:
    spec["cls"] = bool(spec["cls"])
NETWORKS = [*CNNS, *TRANSFORMERS]


def make(spec, seed=0):
    """In double precision, with batch norms that have seen data."""
    model = build(spec, inputs=D, classes=2, seed=seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def samples(count=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 2, (count, D), generator=generator).double() * 2 - 1
    return x, torch.randint(0, 2, (count,), generator=generator)


def explain(spec, model, x, target):
    """In the precision of the model."""
    with untouched(model):
        batch = Batch(model, x, target, baseline=x[0] * 0, seed=0, indices=range(len(x)))
        return batch.maps(spec)


def same(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- networks -------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_original_but_for_the_ones_it_never_uses():
    model = make(CNNS[0])
    # Its kernels are square, of which an input of width 1 meets the middle column; a linear layer
    # from all features to all features waits for dropout, which no network has.
    kernels = sum(p.numel() * (p.shape[2:3] or (1,))[0] for p in model.parameters())
    assert kernels + (16 * D) ** 2 + 16 * D == 21_410
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_202
    for width, cls, count in ((32, False, 20_962), (32, True, 21_026), (64, False, 80_834)):
        spec = {"name": "andor_transformer", "width": width, "cls": cls, "preset": "paper"}
        used = sum(p.numel() for p in make(spec).parameters())
        half, attention = width // 2 * (width + 1), 4 * width * (width + 1)
        assert used + 2 * (attention + half) + 2 * width + (0 if cls else width) == count


@pytest.mark.parametrize("spec", CNNS, ids=str)
def test_paper_network_is_that_of_square_kernels_without_a_second_convolution(spec):
    model = make(spec)
    x, _ = samples()

    def square(weight):
        return F.pad(weight, (1, 1))

    def norm(layers, y):
        return layers[-1](y) if isinstance(layers[-1], nn.BatchNorm2d) else y

    y = x[:, None, :, None]
    for number, block in enumerate(model.blocks):
        conv = F.conv2d(y, square(block.first[0].weight), padding=1)
        out = norm(block.first, conv).relu()
        if number or spec["batch_norm"]:
            assert isinstance(block.second[0], nn.BatchNorm2d)
            out = block.second(out)
        else:
            assert len(block.second) == 0
        if number or spec["skip"]:
            out = out + norm(block.skip, F.conv2d(y, block.skip[0].weight))
        else:
            assert block.skip is None
        y = out.relu()
    y = F.conv2d(y, model.last_conv.weight).flatten(1)
    same(model(x), y @ model.head.weight.T + model.head.bias)
    for block, inputs in zip(model.blocks, (1, 8), strict=True):
        limit = (9 * inputs) ** -0.5  # torch's bound for a square kernel
        assert 0.7 * limit < block.first[0].weight.abs().max() <= limit


@pytest.mark.parametrize("spec", NETWORKS, ids=str)
def test_paper_networks_are_stacked(spec):
    models = [build(spec, inputs=D, classes=2, seed=s, dtype=torch.float64) for s in range(3)]
    x = samples(15)[0].unflatten(0, (3, 5))
    for form in (True, False):
        stack, noise = Stack(models), Noise([1, 2, 3], x.device)
        assert stack.has_form
        stack.has_form = form
        noise.begin(1)
        found = stack(x, noise)
        gradients = torch.autograd.grad(stack(x, noise).square().sum(), stack.parameters.values())
        by_name = dict(zip(stack.parameters, gradients, strict=True))
        for k in range(len(models)):
            twin = build(spec, inputs=D, classes=2, seed=k, dtype=torch.float64)
            expected = twin.train()(x[k])
            expected.square().sum().backward()
            same(found[k], expected)
            for name, parameter in twin.named_parameters():
                if parameter.requires_grad:
                    same(by_name[name][k], parameter.grad)


def test_training_a_stack_of_paper_networks_is_training_each():
    data = generate({"preset": "paper"})
    recipe = paper_recipe(8, epochs=2, batch_size=100, patience=5, warmup=10)
    alone, together = ([make(CNNS[0], seed) for seed in (0, 1)] for _ in "ab")
    for model in alone:
        unused = model.blocks[0].unused.clone()
        fit(model, data.train, data.train, recipe=recipe, seed=3, order_seed=0)
        assert torch.equal(model.blocks[0].unused, unused)
    fit_many(
        together, [data.train] * 2, [data.train] * 2, recipe=recipe, seeds=[3, 3], order_seed=0,
        stack=2,
    )  # fmt: skip
    for a, b in zip(alone, together, strict=True):
        for one, other in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            same(one, other)


def test_recipe_of_the_paper():
    recipe = paper_recipe(32, epochs=150, batch_size=500, patience=15)
    for t in (1, 77, 10_000, 40_000):
        noam = 32**-0.5 * min(t**-0.5, t * 10_000**-1.5)
        assert rate(recipe, t, 10**6) == pytest.approx(noam, rel=1e-12)
    progress = Progress()
    for epoch in range(40):
        progress.note(recipe, 1.0, 0.5, 1.0 if epoch == 2 else 2.0)
        if progress.ended(recipe):
            break
    assert epoch == 2 + 15 + 1  # more than 15 epochs after the best


def test_forest():
    data = generate({"toplevel": "xor"})
    trees = forest.fit(data.train, seed=1)
    assert trees.accuracy(data.test) == 1
    assert torch.equal(trees.predict(data.test.x), data.test.y)
    assert trees.importances.shape == (D,)
    assert float(trees.importances.sum()) == pytest.approx(1)
    half = Split(*(t[::2] for t in (data.train.x, data.train.y, data.train.index)))
    first, again, other = (forest.fit(half, seed=seed, trees=5) for seed in (1, 1, 2))
    assert torch.equal(first.importances, again.importances)
    assert not torch.equal(first.importances, other.importances)


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("xor", ["exactly_one", "parity"])
def test_expressions_of_any_depth(xor):
    text = "or( and(0,1 ,2), xor(3, or(4, 5), 0) ,parity(1, 6))"
    spec = AndorSpec(expression=text, xor=xor, irrelevant=1)
    assert spec.expression == "or( and(0, 1, 2), xor(3, or(4, 5), 0), parity(1, 6))"
    assert (spec.used, spec.inputs) == (7, 8)
    data = generate(spec)
    a, b, c, d, e, f, g, _ = (data.test.x.T > 0).long()
    ones = d + (e | f) + a
    middle = (ones == 1) if xor == "exactly_one" else ones % 2 == 1
    assert torch.equal(data.test.y.bool(), (a & b & c).bool() | middle | (b != g))
    assert data.truth.irrelevant.tolist() == [False] * 7 + [True]
    absorbed = generate({"expression": "or(0, and(0, 1))", "irrelevant": 0})
    assert absorbed.truth.irrelevant.tolist() == [False, True]


def test_rows_drawn_by_chance():
    whole = generate({})
    data = generate({"rows": 100})
    assert len(set(data.test.index.tolist())) == 100
    assert torch.equal(whole.test.x[data.test.index], data.test.x)
    assert torch.equal(whole.truth.relevant[data.test.index], data.truth.relevant)
    assert generate({"rows": 100}).content_hash() == data.content_hash()
    assert generate({"rows": 100, "seed": 1}).test.index.tolist() != data.test.index.tolist()

    many = {"irrelevant": 40, "rows": 2000, "test_size": 0.2, "redundant": [[0, 3]]}
    large = generate(many)
    parts = [set(s.index.tolist()) for s in (large.train, large.validation, large.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 2000
    assert (large.test.x[:, 0] == large.test.x[:, 3]).all()
    bits = 2 ** torch.arange(46)
    assert torch.equal(((large.test.x > 0) * bits).sum(1), large.test.index)
    everything = torch.cat([large.train.x, large.validation.x, large.test.x])
    assert everything.mean(0).abs().max() < 0.12  # 5 standard deviations
    formula = AndorSpec(**many).formula
    assert torch.equal(large.test.y.bool(), torch.from_numpy(formula((large.test.x > 0).numpy())))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"expression": "and(0, nand(1, 2))"}, "a gate (and, or, xor, exactly_one, parity) at"),
        ({"expression": "and(0, 2)"}, "has no input 1; number them 0, 1, ..."),
        ({"expression": "3"}, "'3' is an input, not a gate"),
        ({"expression": "and(0, 1"}, "expected ',' or ')' at position 8, got 'the end'"),
        ({"expression": "and(0, 1) 2"}, "expected the end at position 10, got '2'"),
        ({"expression": "and(0, 1)", "ors": 2}, "ors: has no effect with an expression"),
        ({"expression": f"or({', '.join(map(str, range(13)))})"}, "has 13 inputs; its truth is"),
        ({"irrelevant": 30}, "or give rows, the number to draw"),
        ({"rows": 300}, "rows: 300 of only 256 distinct rows"),
        ({"rows": 200, "redundant": [[0, 1]]}, "rows: 200 of only 128 distinct rows"),
        ({"irrelevant": 60, "rows": 9}, "more than 2^63 rows: use fewer"),
    ],
)
def test_mistakes_get_one_clear_line(spec, says):
    with pytest.raises(ValueError, match=r"^andor: ") as error:
        generate(spec)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def expanded(name, folder):
    """The configs of a file; its methods and scores, checked once instead of in every config."""
    content = yaml.safe_load(Path(f"configs/andor/{name}.yaml").read_text())
    for method in content["fixed"].pop("methods"):
        attribution.resolve(method)
    for score in content["fixed"].pop("scores"):
        scoring.resolve(score)
    content["fixed"]["scores"] = ["nib"]
    content["seml"]["project_root_dir"] = str(Path.cwd())
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return [document["config"] for document in grid.read(file).documents]


def test_grids_are_those_of_the_paper(tmp_path):
    assert len(expanded("beyond", tmp_path)) == 360
    small, main = expanded("mix_model_small", tmp_path), expanded("mix_model", tmp_path)
    assert (len(small), len(main)) == (48, 96)
    for config in (*small, *main):
        cnn, is_small = config["model"]["name"] == "andor_cnn", config in small
        recipe = paper_recipe(
            8 if cnn else config["model"]["width"],
            epochs=500 if is_small else 100 if cnn else 150,
            batch_size=10 if is_small else 100 if config["data"]["symbols"] == 2 else 500,
            patience=50 if is_small else 15,
        )
        assert config["training"] == recipe.model_dump(mode="json")
        assert config["data"]["preset"] == config["model"]["preset"] == "paper"
        assert config["model"].get("width", 0) in (0, 64 if is_small else 32)
        assert AndorSpec(**config["data"]).inputs == (8 if config["data"]["and_arity"] == 2 else 12)


# --- maps -----------------------------------------------------------------------------------------


class Shaped(nn.Module):
    """A network for inputs of the shapes of the original: [B, 1, D, 1], or [B, D, 1]."""

    def __init__(self, model):
        super().__init__()
        self.model = Sigmoid(model)

    def forward(self, x):
        return self.model(x.flatten(1))


def shaped(x, model):
    return x[:, None, :, None] if model.kind == "cnn" else x[..., None]


@pytest.mark.parametrize("spec", NETWORKS, ids=str)
def test_class_activation_maps_are_those_of_pytorch_grad_cam(spec):
    model = make(spec)
    x, target = samples()

    def tokens(tensor):
        return tensor.mT[..., None]

    reshape = None if model.kind == "cnn" else tokens
    for name, peer in (("andor_grad_cam", GradCAM), ("andor_grad_cam_plus_plus", GradCAMPlusPlus)):
        with peer(Shaped(model), [model.cam_layer], reshape_transform=reshape) as cam:
            classes = [ClassifierOutputTarget(int(c)) for c in target]
            expected = torch.from_numpy(cam(x[:, None, :, None], classes))[..., 0]
        same(explain(name, model, x, target).float(), expected, 1e-5)


@pytest.mark.parametrize("spec", [CNNS[0], *TRANSFORMERS], ids=str)
def test_maps_that_captum_computes(spec):
    model = make(spec)
    x, target = samples()
    inputs, shape = shaped(x, model), Shaped(model)
    guided = captum.attr.GuidedGradCam(shape, model.cam_layer).attribute(inputs, target)
    same(explain("andor_guided_grad_cam", model, x, target), guided.flatten(1).detach())
    integrated = captum.attr.IntegratedGradients(shape).attribute(inputs, target=target)
    same(explain("andor_integrated_gradients", model, x, target), integrated.flatten(1))
    product = captum.attr.InputXGradient(shape).attribute(inputs.requires_grad_(), target)
    same(explain("andor_deeplift", model, x, target), product.flatten(1).detach())
    if model.kind == "cnn":
        backwards = captum.attr.Deconvolution(shape).attribute(inputs, target)
        same(explain("andor_deconvolution", model, x, target), backwards.flatten(1).detach())


def test_deeplift_of_subclassed_activations_is_input_times_gradient():
    """What happened to the original: captum knows an activation by its very type."""

    class Rectifier(nn.ReLU):
        pass

    model = nn.Sequential(nn.Linear(D, 9), Rectifier(), nn.Linear(9, 2)).double()
    x, target = samples()
    found = captum.attr.DeepLift(model).attribute(x.requires_grad_(), target=target)
    same(found, captum.attr.InputXGradient(model).attribute(x, target))


def test_feature_permutation_is_captums():
    model = make(TRANSFORMERS[0])
    x, target = samples()
    batch = Batch(model, x, target, baseline=x[0] * 0, seed=0, indices=range(len(x)))
    order = batch.generator("andor_feature_permutation").uniform(D).argsort(0)
    columns = iter(range(D))

    def permuted(rows, mask):
        column = next(columns)
        return torch.where(mask.bool(), rows[order[:, column]], rows)

    peer = captum.attr.FeaturePermutation(Shaped(model), perm_func=permuted)
    expected = peer.attribute(shaped(x, model), target=target)[..., 0]
    same(batch.maps("andor_feature_permutation"), expected.detach())
    assert (explain("andor_feature_permutation", model, x[:1], target[:1]) == 0).all()


# --- relevance, once more, layer by layer ---------------------------------------------------------


def over(a, b):
    return torch.where(b == 0, 0.0, a / (b + 1e-9))


def through(function, x, weight, relevance, apart):
    """z⁺ by explicit transposed maps: what autograd gives for a sum weighted by constants."""
    parts = [x.clamp(min=0), x.clamp(max=0)]
    weights = [weight.clamp(min=0), weight.clamp(max=0)]
    z = [function(p, w) for p, w in zip(parts, weights, strict=True)]
    total = torch.zeros_like(x)
    for part, w, own in zip(parts, weights, z, strict=True):
        scaled = over(relevance, own if apart else z[0] + z[1])
        pulled = torch.func.vjp(lambda p, w=w: function(p, w), part)[1](scaled)[0]
        total += part * pulled
    return total


def branches(parts, z, relevance):
    shares = [part * over(relevance, z) for part in parts]
    sums = [share.sum() for share in shares]
    weight = sum(s.abs() for s in sums)
    return [
        share * (s.abs() / weight * relevance.sum() / s)
        for share, s in zip(shares, sums, strict=True)
    ]


def convolution(padding):
    return lambda x, w: F.conv2d(x, w, padding=(padding, 0))


def cnn_relevance(model, x, target):
    kept, y = [], x[:, None, :, None]
    for block in model.blocks:
        first = block.first[0](y)
        active = block.first(y).relu()
        main = block.second(active)
        side = None if block.skip is None else (block.skip[0](y), block.skip(y))
        kept.append((block, y, first, active, main, side))
        y = (main if side is None else main + side[1]).relu()
    last = model.last_conv(y)
    r = through(F.linear, last.flatten(1), model.head.weight, F.one_hot(target, 2).double(), False)
    r = through(convolution(0), y, model.last_conv.weight, r.reshape(last.shape), True)
    for block, y, first, active, main, side in reversed(kept):
        r_side = None
        if side is not None:
            r, r_side = branches([main, side[1]], main + side[1], r)
            if len(block.skip) > 1:
                r_side = r_side * (side[0] != 0)
            r_side = through(convolution(0), y, block.skip[0].weight, r_side, True)
        if len(block.second):
            r = r * (active != 0)
        r = through(convolution(1), active, block.unused, r, True)
        if len(block.first) > 1:
            r = r * (first != 0)
        r = through(convolution(1), y, block.first[0].weight, r, True)
        r = r if r_side is None else r + r_side
    return r.flatten(1)


def transformer_relevance(model, x, target):
    """Of the inputs, and of the attention of each layer."""
    kept, found = [], []
    embedded = x[..., None] + model.positions
    tokens = embedded
    if model.cls is not None:
        tokens = torch.cat([model.cls.expand(len(x), -1, -1), tokens], 1)
    for block in model.blocks:
        a = block.attention
        query, key, value = (
            t.unflatten(-1, (a.heads, -1)).transpose(1, 2)
            for t in (*a.query_key(tokens).chunk(2, -1), a.value(tokens))
        )
        scores = query @ key.mT
        weights = (scores / query.shape[-1] ** 0.5).softmax(-1)
        mixed = weights @ value
        joined = mixed.transpose(1, 2).flatten(2)
        attended = a.output(joined)
        middle = block.attention_norm(tokens + attended)
        hidden = block.expand(middle)
        out = block.contract(hidden.relu())
        kept.append((block, tokens, query, key, value, scores, weights, mixed, joined, attended,
                     middle, hidden.relu(), out))  # fmt: skip
        tokens = block.feedforward_norm(middle + out)
    r = through(
        F.linear, tokens.flatten(1), model.head.weight, F.one_hot(target, 2).double(), False
    )
    r = r.reshape(tokens.shape)
    for (block, tokens, query, key, value, scores, weights, mixed, joined, attended, middle,
         hidden, out) in reversed(kept):  # fmt: skip
        straight, r = branches([middle, out], middle + out, r)
        r = through(F.linear, hidden, block.contract.weight, r, False)
        r = straight + through(F.linear, middle, block.expand.weight, r, False)
        straight, r = branches([tokens, attended], tokens + attended, r)
        r = through(F.linear, joined, block.attention.output.weight, r, False)
        r = over(r.unflatten(-1, (block.attention.heads, -1)).transpose(1, 2), mixed) / 2
        of_value, of_weights = value * (weights.mT @ r), weights * (r @ value.mT)
        found.insert(0, of_weights)
        r = over(of_weights, scores) / 2
        of_query, of_key = query * (r @ key), key * (r.mT @ query)
        pair, alone = block.attention.query_key.weight, block.attention.value.weight
        for part, weight in ((of_query, pair[: len(alone)]), (of_key, pair[len(alone) :]),
                             (of_value, alone)):  # fmt: skip
            part = part.transpose(1, 2).flatten(2)
            straight = straight + through(F.linear, tokens, weight, part, False)
        r = straight
    given = r if model.cls is None else r[:, :1]
    shares = over(given, embedded)
    of_x, of_place = x * shares.sum(-1), (model.positions * shares).sum()
    total = of_x.sum()
    factor = total.abs() / (total.abs() + of_place.abs()) * given.sum() / total
    return of_x * factor, found


@pytest.mark.parametrize("spec", NETWORKS, ids=str)
def test_relevance_of_the_original(spec):
    model = make(spec)
    x, target = samples()
    with torch.no_grad():
        if model.kind == "cnn":
            same(explain("andor_lrp", model, x, target), cnn_relevance(model, x, target), 1e-6)
            return
        expected, attention = transformer_relevance(model, x, target)
    same(explain("andor_lrp", model, x, target), expected, 1e-6)
    eye = torch.eye(attention[0].shape[-1])
    first, second = (eye + r.clamp(min=0).mean(1) for r in attention)
    rolled = second @ first
    for queries in ("sum", "max"):
        reduced = rolled.sum(1) if queries == "sum" else rolled.amax(1)
        expected = rolled[:, 0, 1:] if spec["cls"] else reduced - 1
        found = explain({"name": "andor_lrp_rollout", "queries": queries}, model, x, target)
        same(found, expected, 1e-6)


def test_relevance_depends_on_company_and_on_weights_that_do_nothing():
    model = make(CNNS[0])
    x, target = samples()
    for add, depends in (("batch", True), ("sample", False)):
        spec = {"name": "andor_lrp", "add": add}
        whole, alone = (attribute(spec, model, x, target, batch_size=n) for n in (12, 1))
        assert torch.allclose(whole, alone, rtol=1e-4) != depends
    before, outputs = attribute("andor_lrp", model, x, target), model(x)
    with torch.no_grad():
        model.blocks[0].unused.normal_()
    assert torch.equal(model(x), outputs)
    assert not torch.allclose(attribute("andor_lrp", model, x, target), before)
    plain = nn.Sequential(nn.Linear(D, 2)).double()
    plain.kind = "cnn"
    with pytest.raises(ValueError, match="know andor_cnn and andor_transformer only"):
        attribute("andor_lrp", plain, x, target)


def test_attribution_of_the_original_weighs_relevance_by_the_gradient_of_the_sigmoid():
    model = make(TRANSFORMERS[1])
    x, target = samples()
    with torch.no_grad():
        _, attention = transformer_relevance(model, x, target)
    seen = []
    handles = [
        block.attention.softmax.register_forward_hook(lambda m, i, out: seen.append(out))
        for block in model.blocks
    ]
    chosen = model(x).sigmoid()[torch.arange(len(x)), target].sum()
    slopes = torch.autograd.grad(chosen, seen)
    for handle in handles:
        handle.remove()
    pairs = zip(attention, slopes, strict=True)
    first, second = (torch.eye(D + 1) + (r * g).clamp(min=0).mean(1) for r, g in pairs)
    found = explain("andor_transformer_attribution", model, x, target)
    same(found, (second @ first)[:, 0, 1:], 1e-6)
    assert np.isfinite(found.numpy()).all()
