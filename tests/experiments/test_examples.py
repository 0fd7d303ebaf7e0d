"""Example importance against closed forms, retraining, captum, scikit-learn and plain loops."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from captum.influence import TracInCP
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional as F

from experiments.examples import (
    Examples,
    example_methods,
    importance,
    layers,
    problem,
    resolve,
    similarity_rate,
)
from experiments.examples.curvature import hessian_product
from experiments.examples.losses import contrastive

CLASSES = 3


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(n, seed=0):
    return torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(seed))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        self.decoder = nn.Linear(2, 5)

    def forward(self, x):
        return self.decoder(self.encoder(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)), (5,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Softplus(), nn.Flatten(), nn.Linear(8, 3)
        ),
        (1, 3, 3),
    ),
    "lstm": (Recurrent, (4, 2)),
    "attention": (Attention, (3, 4)),
}


def built(make, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().to(dtype).train()


def samples(name="mlp", dtype=torch.float64, **known):
    """Six training and four test samples of a small classifier."""
    make, shape = MODELS[name]
    train, test = numbers(6, *shape).to(dtype), numbers(4, *shape, seed=1).to(dtype)
    return Examples(built(make, dtype), train, labels(6), test, labels(4, seed=1), **known)


def autoencoded(**known):
    known = {"loss": "reconstruction", "weights": "encoder", "encoder": "encoder", **known}
    return Examples(built(Autoencoder), numbers(9, 5), None, numbers(4, 5, seed=1), None, **known)


def loop_gradients(model, x, y, loss, names=None):
    """One sample, one call of autograd at a time."""
    weights = [w for n, w in model.named_parameters() if names is None or n.startswith(names)]
    rows = []
    model.eval()
    for i in range(len(x)):
        value = loss(model(x[i : i + 1]), x[i : i + 1] if y is None else y[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, weights)]))
    return torch.stack(rows)


# --- gradients and curvature, of every kind of layer ----------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])
def test_gradients_and_hessian_products_are_those_of_loops(name, dtype):
    known = samples(name, dtype)
    plain = built(MODELS[name][0], dtype).eval()
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-5}
    expected = loop_gradients(plain, known.x["train"], known.y["train"], F.cross_entropy)
    torch.testing.assert_close(known.gradients("train", slice(0, 6)), expected, **close)

    vectors = numbers(2, known.size, seed=2).to(dtype)
    with layers.exact_kernels(plain):
        loss = F.cross_entropy(plain(known.x["train"]), known.y["train"])
        weights = list(plain.parameters())
        slope = torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)]
        )
        for vector, product in zip(vectors, hessian_product(known, vectors), strict=False):
            along = torch.autograd.grad(slope @ vector, weights, retain_graph=True)
            torch.testing.assert_close(product, torch.cat([g.flatten() for g in along]), **close)


def ridge(x, y, penalty):
    """Weights that minimise mean (xw − y)² + penalty/2 ‖w‖²."""
    return torch.linalg.solve(
        2 * x.T @ x / len(x) + penalty * torch.eye(x.shape[1]).to(x), 2 * x.T @ y / len(x)
    )


@pytest.mark.parametrize("solver", ["exact", "cg", "lissa"])
def test_influence_is_what_leaving_out_costs(solver):
    x, y = numbers(12, 4), numbers(12, seed=1)
    test_x, test_y = numbers(5, 4, seed=2), numbers(5, seed=3)
    penalty = 0.5
    weights = ridge(x, y, penalty)
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data.copy_(weights[None])
    # the whole training set in each step of lissa: its limit is then exact
    settings = {"scale": 10.0, "depth": 200, "rows": 4000} if solver == "lissa" else {}
    found = importance(
        {"name": "influence", "solver": solver, "damping": penalty, "tolerance": 1e-10, **settings},
        model, x, y, test_x, test_y, loss="squared_error",
    )  # fmt: skip

    inverse = torch.linalg.inv(2 * x.T @ x / 12 + penalty * torch.eye(4).to(x))
    leverage = 2 / 12 * ((x @ inverse) * x).sum(1)
    slopes = 2 * (test_x @ weights - test_y)[:, None] * test_x
    for n in range(12):
        rest = torch.arange(12) != n
        # the mean keeps its 1/12, so that only the example is gone
        moved = torch.linalg.solve(
            2 * x[rest].T @ x[rest] / 12 + penalty * torch.eye(4).to(x),
            2 * x[rest].T @ y[rest] / 12,
        )
        expected = slopes @ (moved - weights) * 12 * (1 - leverage[n])
        close = {"rtol": 0.2, "atol": 0.05} if solver == "lissa" else {"rtol": 1e-8, "atol": 1e-8}
        torch.testing.assert_close(found[:, n], expected, **close)


def test_solvers_agree_on_a_network_and_on_the_cheaper_side():
    known = samples(fitted_on=(numbers(20, 5, seed=4), labels(20, seed=4)))
    spec = {"name": "influence", "damping": 0.5}
    exact = known.importance({**spec, "solver": "exact"})
    assert torch.equal(exact, known.importance(spec))  # "auto" for few weights
    cg = known.importance({**spec, "solver": "cg", "tolerance": 1e-9})
    torch.testing.assert_close(cg, exact, rtol=1e-6, atol=1e-8)
    turned = Examples(
        known.model, known.x["test"], known.y["test"], known.x["train"], known.y["train"],
        fitted_on=(known.fitted_x, known.fitted_y),
    )  # fmt: skip
    torch.testing.assert_close(turned.importance(spec), exact.T)


def test_a_cut_recursion_is_the_gradient_product():
    """The published settings (damping · scale = 1, 100 steps) rank like one-checkpoint TracIn."""
    known = autoencoded()
    lissa = {"name": "influence", "solver": "lissa", "damping": 1.0, "scale": 1000.0}
    rank = [
        v.flatten().argsort().argsort().double() for v in map(known.importance, (lissa, "tracin"))
    ]
    assert torch.corrcoef(torch.stack(rank))[0, 1] > 0.95


def test_influence_says_what_to_raise():
    known = samples()
    with pytest.raises(ValueError, match=r"curvature along a direction is -.*raise damping above"):
        known.importance({"name": "influence", "solver": "cg", "damping": 0.0})
    with pytest.raises(ValueError, match="after 1 iterations of 'cg' the residual is"):
        known.importance({"name": "influence", "solver": "cg", "damping": 9.0, "iterations": 1})
    with pytest.raises(ValueError, match="'lissa' diverges with scale"):
        known.importance({"name": "influence", "solver": "lissa", "scale": 1e-3, "depth": 400})
    flat = Examples(built(lambda: nn.Linear(5, 5)), known.x["train"], None, known.x["test"], None,
                    loss=lambda predict, x, y: predict(x).sum(1))  # fmt: skip
    with pytest.raises(ValueError, match=r"damping 0.0 is singular; raise damping"):
        flat.importance({"name": "influence", "solver": "exact", "damping": 0.0})
    wide = Examples(built(lambda: nn.Linear(5, 900)), known.x["train"], known.y["train"],
                    known.x["test"], known.y["test"])  # fmt: skip
    with pytest.raises(ValueError, match=r"a Hessian of 5400² numbers; take solver 'cg'"):
        wide.importance({"name": "influence", "solver": "exact"})


# --- TracIn and gradient similarity ---------------------------------------------------------------


def states(make, n):
    """State dicts of a network in several states."""
    found = []
    for i in range(n):
        torch.manual_seed(i)
        found.append(make().double().state_dict())
    return found


def test_tracin_is_a_sum_of_gradient_products_and_captums(tmp_path):
    make = MODELS["mlp"][0]
    checkpoints = states(make, 3)
    known = samples(checkpoints=checkpoints)
    before = {name: t.clone() for name, t in known.model.state_dict().items()}
    found = known.importance({"name": "tracin", "learning_rates": [0.1, 0.2, 0.3]})
    equal = known.importance("tracin")
    assert known.model.training
    assert all(torch.equal(t, before[name]) for name, t in known.model.state_dict().items())

    total, plain = 0, make().double()
    for rate, state in zip([0.1, 0.2, 0.3], checkpoints, strict=True):
        plain.load_state_dict(state)
        test, train = (
            loop_gradients(plain, known.x[side], known.y[side], F.cross_entropy)
            for side in ("test", "train")
        )
        total = total + rate * test @ train.T
    torch.testing.assert_close(found, total)

    paths = [tmp_path / f"{i}.pt" for i in range(3)]
    for path, state in zip(paths, checkpoints, strict=True):
        torch.save(state, path)

    def load(model, path):
        model.load_state_dict(torch.load(path))
        return 1.0

    theirs = TracInCP(
        plain, torch.utils.data.TensorDataset(known.x["train"], known.y["train"]), paths,
        load, loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=2,
        sample_wise_grads_per_batch=True,
    )  # fmt: skip
    torch.testing.assert_close(
        equal, theirs.influence((known.x["test"], known.y["test"])), rtol=1e-6, atol=1e-8
    )


def test_label_free_gradients_are_those_of_the_encoder_alone():
    known = autoencoded(checkpoints=states(Autoencoder, 2))
    plain, total = Autoencoder().double(), 0
    for state in states(Autoencoder, 2):
        plain.load_state_dict(state)
        test, train = (
            loop_gradients(plain, known.x[side], None, F.mse_loss, "encoder")
            for side in ("test", "train")
        )
        total = total + test @ train.T
    torch.testing.assert_close(known.importance("tracin"), total)


def test_contrastive_loss_of_pairs():
    bank, views = numbers(7, 2), [numbers(4, 5, seed=s) for s in (3, 4)]
    encoder = built(lambda: nn.Linear(5, 2))
    one, other = (F.normalize(encoder(view)) for view in views)
    logits = torch.cat([(one * other).sum(1)[:, None], one @ F.normalize(bank).T], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(4, dtype=torch.long), reduction="none")
    torch.testing.assert_close(contrastive(bank)(encoder, *views), expected)
    found = importance("tracin", encoder, *views, *views, loss=contrastive(bank))
    slopes = [torch.autograd.grad(e, encoder.weight, retain_graph=True)[0] for e in expected]
    bias = [torch.autograd.grad(e, encoder.bias, retain_graph=True)[0] for e in expected]
    flat = torch.stack([torch.cat([w.flatten(), b]) for w, b in zip(slopes, bias, strict=True)])
    torch.testing.assert_close(found, flat @ flat.T)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(6)), rates=st.lists(st.floats(0.1, 9), min_size=2, max_size=2))
def test_tracin_is_linear_and_follows_the_order_of_the_examples(order, rates):
    known = samples(checkpoints=states(MODELS["mlp"][0], 2))
    parts = [known.importance({"name": "tracin", "learning_rates": r}) for r in ([1, 1], [1, 2])]
    first, second = 2 * parts[0] - parts[1], parts[1] - parts[0]
    found = known.importance({"name": "tracin", "learning_rates": rates})
    torch.testing.assert_close(found, rates[0] * first + rates[1] * second)
    moved = Examples(
        known.model, known.x["train"][order], known.y["train"][order], known.x["test"],
        known.y["test"], checkpoints=states(MODELS["mlp"][0], 2),
    )  # fmt: skip
    other = moved.importance({"name": "tracin", "learning_rates": rates})
    torch.testing.assert_close(other, found[:, order])


def test_gradient_similarity():
    known = samples()
    test, train = (
        loop_gradients(built(MODELS["mlp"][0]), known.x[s], known.y[s], F.cross_entropy)
        for s in ("test", "train")
    )
    expected = torch.from_numpy(cosine_similarity(test, train))
    torch.testing.assert_close(known.importance("gradient_cosine"), expected)
    dot = known.importance({"name": "gradient_similarity", "cosine": False})
    torch.testing.assert_close(dot, test @ train.T)
    assert torch.equal(dot, known.importance("tracin"))


# --- representations ------------------------------------------------------------------------------


def latent(train, test):
    """Examples whose representations are the given ones."""
    return Examples(nn.Identity(), train, None, test, None)


def test_cosine_and_dknn_against_sklearn():
    known = autoencoded()
    plain = built(Autoencoder).encoder
    test, train = (plain(known.x[side]).detach().numpy() for side in ("test", "train"))
    torch.testing.assert_close(
        known.importance("cosine"), torch.from_numpy(cosine_similarity(test, train))
    )
    distances, order = NearestNeighbors(n_neighbors=9).fit(train).kneighbors(test)
    near = known.importance("dknn")
    torch.testing.assert_close(near.gather(1, torch.from_numpy(order)).numpy(), -distances)
    ranks = known.importance({"name": "dknn", "kernel": "rank"})
    assert np.array_equal(ranks.argsort(1, descending=True), order)
    torch.testing.assert_close(ranks.sort(1).values[0], torch.linspace(0, 1, 9).double())
    inverse = known.importance({"name": "dknn", "kernel": "inverse_square", "epsilon": 0.5})
    torch.testing.assert_close(inverse, 1 / (near**2 + 0.5))


def test_degenerate_latents():
    zero = latent(torch.tensor([[0.0, 0], [3, 4]]), torch.tensor([[3.0, 4], [0, 0]]))
    assert zero.importance("cosine").tolist() == [[0, pytest.approx(1)], [0, 0]]
    assert zero.importance({"name": "dknn", "kernel": "rank"}).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match="test sample 0 and training example 1 have equal"):
        zero.importance({"name": "dknn", "kernel": "inverse_square"})
    tied = latent(torch.ones(3, 2), torch.zeros(1, 2))
    assert tied.importance({"name": "dknn", "kernel": "rank"}).tolist() == [[0.5] * 3]
    for solver in ("adam", "exact"):
        weights = latent(torch.ones(3, 2), torch.ones(1, 2)).importance(
            {"name": "simplex", "solver": solver}
        )
        assert weights.sum().item() == pytest.approx(1)
    alone = latent(torch.ones(1, 2), torch.zeros(2, 2))
    assert alone.importance({"name": "dknn", "kernel": "rank"}).tolist() == [[1], [1]]
    assert alone.importance("simplex").tolist() == [[1], [1]]


def test_simplex_recovers_a_known_combination():
    corpus = numbers(4, 6)
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0, 0.5, 0.5, 0], [0, 0, 0, 1.0]]).double()
    known = latent(corpus, weights @ corpus)
    exact = known.importance({"name": "simplex", "solver": "exact"})
    torch.testing.assert_close(exact, weights, rtol=1e-8, atol=1e-8)
    adam = known.importance({"name": "simplex", "steps": 3000, "learning_rate": 0.02})
    torch.testing.assert_close(adam, weights, rtol=0, atol=0.02)


def test_simplex_descends_as_autograd_does():
    corpus, goal = numbers(30, 3), numbers(37, 3, seed=1)
    known = latent(corpus, goal)
    found = known.importance({"name": "simplex", "steps": 20, "learning_rate": 0.1})
    logits = torch.zeros(37, 30, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(20):
        optimiser.zero_grad()
        (logits.softmax(1) @ corpus - goal).square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(found, logits.softmax(1).detach())
    errors = [
        (known.importance({"name": "simplex", "steps": s, "learning_rate": 0.1}) @ corpus - goal)
        .square().sum()
        for s in (1, 10, 100)
    ]  # fmt: skip
    assert errors[0] > errors[1] > errors[2]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 5), st.floats(1e-3, 1e3))
def test_exact_simplex_is_optimal_and_sparse(seed, many, wide, unit):
    """No vertex of the simplex lies downhill, and d + 1 examples are enough (Carathéodory)."""
    corpus, goal = unit * numbers(many, wide, seed=seed), unit * numbers(3, wide, seed=seed + 1)
    weights = latent(corpus, goal).importance({"name": "simplex", "solver": "exact"})
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(3).double())
    assert ((weights > 0).sum(1) <= wide + 1).all()
    slope = (weights @ corpus - goal) @ corpus.T / unit**2
    assert (slope.amin(1) >= (weights * slope).sum(1) - 1e-8).all()


def test_an_encoder_is_a_layer_or_a_module_of_its_own():
    named = autoencoded().latents("test")
    assert torch.equal(named, autoencoded(encoder=built(Autoencoder).encoder).latents("test"))
    inner = autoencoded(encoder="encoder.0")
    assert inner.latents("train").shape == (9, 4)
    assert not any(m._forward_hooks for m in inner.model.modules())
    image = samples("cnn", encoder="0")
    assert image.latents("test").shape == (4, 8)  # [4, 2, 2, 2], flattened


def test_latents_do_not_care_for_rotation_and_scale():
    """Orthogonal maps change nothing; a factor changes neither cosines nor the order of dknn."""
    train, test = numbers(8, 4), numbers(5, 4, seed=1)
    turn = torch.linalg.qr(numbers(4, 4, seed=2))[0]
    plain, turned = latent(train, test), latent(3 * train @ turn, 3 * test @ turn)
    torch.testing.assert_close(plain.importance("cosine"), turned.importance("cosine"))
    torch.testing.assert_close(3 * plain.importance("dknn"), turned.importance("dknn"))
    spec = {"name": "simplex", "solver": "exact"}
    torch.testing.assert_close(plain.importance(spec), turned.importance(spec))


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(example_methods()))
def test_results_depend_neither_on_batch_size_nor_on_company(name, monkeypatch):
    spec = {"name": name, "damping": 1.0} if name == "influence" else name
    known = {"seed": 3, "encoder": "1"}
    whole = samples(**known).importance(spec)
    assert whole.shape == (4, 6)
    assert whole.isfinite().all()
    torch.testing.assert_close(samples(**known, batch_size=2).importance(spec), whole)
    monkeypatch.setattr(problem, "GRADIENT_BYTES", 3 * 39 * 8)  # three gradients at a time
    torch.testing.assert_close(samples(**known).importance(spec), whole)
    all_ = samples(**known)
    alone = Examples(
        all_.model, all_.x["train"], all_.y["train"], all_.x["test"][2:3], all_.y["test"][2:3],
        indices=[2], **known,
    )  # fmt: skip
    torch.testing.assert_close(alone.importance(spec), whole[2:3])


def test_what_two_methods_need_is_computed_once(monkeypatch):
    known = samples()
    calls = []
    count = known._example_gradients
    monkeypatch.setattr(known, "_example_gradients", lambda c: calls.append(c) or count(c))
    for spec in ("tracin", "gradient_cosine", {"name": "influence", "damping": 1.0}):
        known.importance(spec)
    assert calls == [None, None]  # the training side and the test side
    passed = []
    handle = known.model.register_forward_hook(lambda m, a, out: passed.append(len(a[0])))
    for spec in ("cosine", "dknn", "simplex"):
        known.importance(spec)
    handle.remove()
    assert sum(passed) == 10


def test_mistakes_are_told_in_one_line():
    x, y = numbers(4, 5), labels(4)
    model = built(MODELS["mlp"][0])
    build = partial(Examples, model, x, y, x, y)
    for wrong, message in [
        (lambda: resolve("tracing"), "unknown example method 'tracing'; did you mean 'tracin'"),
        (lambda: resolve({"name": "dknn", "kernal": 1}), "unknown parameter 'kernal'"),
        (lambda: resolve({"name": "simplex", "steps": 0}), "parameter 'steps'.*greater than"),
        (lambda: build(weights="3"), "weights: unknown layer or parameter '3'"),
        (lambda: build(encoder="9").latents("test"), "encoder: unknown layer '9'"),
        (lambda: build(checkpoints=[{}]), r"checkpoints\[0\] is not of this model: '0.weight'"),
        (lambda: Examples(model, x[:0], None, x, None), "no samples in train"),
        (lambda: Examples(model, x, y[:2], x, y), "train has 4 samples, 2 labels"),
        (lambda: importance("tracin", model, x, None, x, None), "'cross_entropy' needs labels"),
        (lambda: build(loss="mse").importance("tracin"), "unknown loss 'mse'"),
        (
            lambda: build().importance({"name": "tracin", "learning_rates": [1.0, 1.0]}),
            "2 learning_rates for 1 checkpoints",
        ),
        (lambda: build().importance(f"{__name__}:one_number"), r"shape \(1,\), not .* = \(4, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            wrong()
        assert "\n" not in str(caught.value)


def one_number(examples):
    return torch.zeros(1)


def scaled_dot(examples, *, scale: float = 1.0):
    """Dot product of the inputs."""
    return scale * examples.x["test"] @ examples.x["train"].T


def test_plugin_by_dotted_path():
    found = samples().importance({"name": f"{__name__}:scaled_dot", "scale": 2.0})
    torch.testing.assert_close(found, 2 * numbers(4, 5, seed=1) @ numbers(6, 5).T)


def test_checking_imports_no_torch():
    code = (
        "import sys; from experiments.examples import example_methods, resolve\n"
        "[resolve({'name': n, **m.defaults}) for n, m in example_methods().items()]\n"
        "assert not {'torch', 'scipy', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- similarity rate ------------------------------------------------------------------------------


def test_similarity_rate():
    train_y, test_y = torch.arange(20) % 4, torch.tensor([0, 3])
    same = (test_y[:, None] == train_y).double()
    perfect = same + 0.01 * numbers(2, 20)
    rate = partial(similarity_rate, train_y=train_y, test_y=test_y)
    fractions = (0.1, 0.25, 0.5, 1.0)
    assert rate(perfect, fractions=fractions)[0].tolist() == [1, 1, 0.5, 0.25]
    assert rate(perfect, fractions=fractions, which="least")[1].tolist() == [0, 0, 0, 0.25]
    random = numbers(2, 20, seed=1)
    expected = same.gather(1, random.topk(5, 1).indices).mean(1)
    assert torch.equal(rate(random, fractions=[0.25])[:, 0], expected)
    assert rate(torch.zeros(2, 20)).unique().tolist() == [0.25]  # ties: the share of the class
    with pytest.raises(ValueError, match="of 20 training examples is 0"):
        rate(random, fractions=[0.01])
    with pytest.raises(ValueError, match=r"importance \[2, 20\] for 2 test and 3"):
        similarity_rate(random, train_y[:3], test_y)
