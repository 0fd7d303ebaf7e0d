"""The training loop: it learns, it repeats itself exactly, and it keeps its best epoch."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from experiments.data.dataset import Split
from experiments.models import build
from experiments.studies import andor
from experiments.training import Adversary, Recipe, attack, evaluate, fit, loop
from experiments.training.loop import loss_function, rate


def truth_table(top: str) -> Split:
    """All 256 rows of (x0 ∧ x1), (x2 ∨ x3), (x4 ⊕ x5) under one top-level gate; x6, x7 idle."""
    rows = torch.arange(256)
    bits = (rows[:, None] >> torch.arange(8)) & 1
    gates = torch.stack([bits[:, 0] & bits[:, 1], bits[:, 2] | bits[:, 3], bits[:, 4] ^ bits[:, 5]])
    true = gates.sum(0)
    label = {"and": true == 3, "or": true > 0, "xor": true == 1}[top]
    return Split(x=2.0 * bits - 1, y=label.long(), index=rows)


def make(name="andor_cnn", seed=0, **parameters):
    return build({"name": name, **parameters}, inputs=8, classes=2, seed=seed)


class Scripted(nn.Module):
    """Predicts class 1 with a logit that each optimiser step moves by a scripted rate."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), self.bias.expand(len(x))], 1)


@pytest.mark.parametrize("top", ["and", "or", "xor"])
@pytest.mark.parametrize("name", ["andor_cnn", "andor_transformer"])
def test_default_recipe_learns_the_truth_table(name, top):
    data, model = truth_table(top), make(name)
    history = fit(model, data, data, recipe=Recipe(), seed=0)
    result = evaluate(model, data)
    assert result.accuracy == 1
    assert history.stopped == "loss"
    assert torch.equal(result.prediction, data.y)


@pytest.mark.parametrize("name", ["andor_cnn", "andor_transformer"])
def test_training_repeats_itself_and_leaves_no_trace(name):
    def trained(seed):
        model = make(name, attention_dropout=0.3) if "transformer" in name else make(name)
        history = fit(model, data, data, recipe=Recipe(epochs=3), seed=seed)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), history

    data = truth_table("xor")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    weights, history = trained(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(17)
    again, history_again = trained(0)
    assert torch.equal(weights, again)
    assert history == history_again
    assert not torch.equal(weights, trained(1)[0])


def test_best_epoch_is_restored_from_a_copy():
    data = truth_table("xor")
    model = make(seed=1)
    recipe = Recipe(learning_rate=0.1, epochs=25, stop_at_loss=None, balanced=False)
    history = fit(model, data, data, recipe=recipe, seed=1)
    result = evaluate(model, data)
    best = max(
        range(len(history.validation_loss)),
        key=lambda i: (history.validation_accuracy[i], -history.validation_loss[i]),
    )
    assert history.best_epoch == best < 24
    assert result.accuracy == history.validation_accuracy[best]
    assert result.loss == pytest.approx(history.validation_loss[best], rel=1e-5)
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_equal_accuracy_and_lower_loss_is_better():
    data = Split(torch.zeros(4, 1), torch.ones(4, dtype=torch.long), torch.arange(4))
    model = Scripted()
    history = fit(model, data, data, recipe=Recipe(epochs=5, stop_at_loss=None), seed=0)
    assert history.validation_accuracy == [1.0] * 5
    assert history.best_epoch == 4


def test_patience_counts_epochs_since_the_best():
    inputs = torch.zeros(4, 1)
    train = Split(inputs, torch.ones(4, dtype=torch.long), torch.arange(4))
    validation = Split(inputs, torch.zeros(4, dtype=torch.long), torch.arange(4))
    history = fit(Scripted(), train, validation, recipe=Recipe(patience=3), seed=0)
    assert history.stopped == "patience"
    assert (history.best_epoch, len(history.train_loss)) == (0, 4)


def test_noam_schedule_is_that_of_the_paper():
    width, warmup = 8, 10_000
    recipe = Recipe(learning_rate=(width * warmup) ** -0.5, schedule="noam", warmup=warmup)
    for step in (1, 500, 10_000, 40_000):
        paper = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert rate(recipe, step, 50_000) == pytest.approx(paper)


def test_cosine_schedule_falls_to_zero():
    recipe = Recipe(learning_rate=0.1, schedule="cosine")
    rates = [rate(recipe, step, 100) for step in range(1, 102)]
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_losses():
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1])
    squared = [
        ((1 / (1 + math.exp(-z)) - (c == label)) ** 2)
        for row, label in zip(logits.tolist(), y.tolist(), strict=True)
        for c, z in enumerate(row)
    ]
    plain = loss_function(Recipe(loss="mse_sigmoid", balanced=False), y, logits.dtype)
    assert float(plain(logits, y)) == pytest.approx(sum(squared) / 6)
    balanced = loss_function(Recipe(loss="mse_sigmoid"), y, logits.dtype)
    per_class = (sum(squared[:4]) / 4, sum(squared[4:]) / 2)
    assert float(balanced(logits, y)) == pytest.approx(sum(per_class) / 2)
    clipped = [
        -math.log(p if c == label else 1 - p)
        for row, label in zip(logits.tolist(), y.tolist(), strict=True)
        for c, p in enumerate(min(max(z, 1e-7), 1 - 1e-7) for z in row)
    ]
    outputs = loss_function(Recipe(loss="clipped_bce", balanced=False), y, logits.dtype)
    assert float(outputs(logits, y)) == pytest.approx(sum(clipped) / 6)
    weighted = loss_function(Recipe(loss="clipped_bce"), y, logits.dtype)
    assert float(weighted(logits, y)) == pytest.approx(sum(clipped[:4]) / 8 + sum(clipped[4:]) / 4)
    entropy = loss_function(Recipe(), y, logits.dtype)
    each = -logits.log_softmax(1)[torch.arange(3), y]
    assert float(entropy(logits, y)) == pytest.approx(float((each[:2].mean() + each[2]) / 2))


def test_a_class_missing_from_training_is_no_crash():
    data = Split(torch.randn(4, 8), torch.zeros(4, dtype=torch.long), torch.arange(4))
    other = Split(torch.randn(4, 8), torch.tensor([0, 1, 0, 1]), torch.arange(4))
    history = fit(make(), data, other, recipe=Recipe(epochs=2), seed=0)
    assert all(math.isfinite(loss) for loss in history.validation_loss)


def test_divergence_says_so():
    data = truth_table("xor")
    broken = Split(data.x / 0, data.y, data.index)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        fit(make(), broken, data, recipe=Recipe(), seed=0)


def test_evaluate_leaves_the_mode_alone():
    model = make().train()
    evaluate(model, truth_table("and"))
    assert model.training


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.1},
        {"learning_rate": -1.0},
        {"epochs": "5"},
        {"loss": "hinge"},
        {"batch_size": 0},
        {"stop_at_batch_loss": 0.0},
        {"adversary": {"attack": "cw"}},
        {"adversary": {"mix": 1.0}},
        {"adversary": {"low": 1.0}},
    ],
)
def test_recipe_refuses_nonsense(wrong):
    with pytest.raises(ValidationError):
        Recipe(**wrong)


def test_recipe_survives_json():
    recipe = Recipe(betas=(0.9, 0.99), stop_at_loss=None)
    assert Recipe(**recipe.model_dump(mode="json")) == recipe


def test_the_key_of_what_was_trained_before_stays_valid():
    """Fields that came later are no part of a dump unless they are used, alone or in a config."""
    expected = {
        "optimiser": "adam", "learning_rate": 0.003, "betas": [0.9, 0.98], "epsilon": 1e-8,
        "schedule": "constant", "warmup": 10_000, "epochs": 300, "batch_size": 64, "patience": 50,
        "balanced": True, "loss": "cross_entropy", "stop_at_loss": 0.01,
    }  # fmt: skip
    assert Recipe().model_dump(mode="json") == expected
    assert list(Recipe().model_dump(mode="json")) == list(expected)
    assert andor.Config().model_dump(mode="json")["training"] == expected
    used = Recipe(stop_at_batch_loss=0.005, adversary=Adversary(attack="pgd"))
    dumped = used.model_dump(mode="json")
    assert dumped["adversary"]["epsilon"] == 0.3
    assert dumped["stop_at_batch_loss"] == 0.005
    assert Recipe(**dumped) == used


def test_a_recipe_does_not_import_torch():
    code = (
        "import sys; from experiments.training import Recipe, fit;"
        "Recipe(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what SMERF asks for -----------------------------------------------------------------------


def test_clipped_bce_has_no_gradient_where_keras_has_none():
    logits = torch.tensor([[-0.5, 1.5], [0.25, 0.75]], requires_grad=True)
    loss = loss_function(Recipe(loss="clipped_bce", balanced=False), torch.tensor([0, 1]), None)
    loss(logits, torch.tensor([0, 1])).backward()
    assert logits.grad[0].tolist() == [0, 0]
    assert logits.grad[1].tolist() == pytest.approx([1 / 0.75 / 4, -1 / 0.75 / 4])
    assert float(loss(logits.detach()[:1], torch.tensor([0]))) == pytest.approx(
        -math.log(1e-7), rel=0.01
    )


def test_a_batch_whose_loss_is_low_enough_ends_training():
    inputs = torch.zeros(8, 1)
    data = Split(inputs, torch.ones(8, dtype=torch.long), torch.arange(8))
    recipe = Recipe(learning_rate=0.5, batch_size=2, stop_at_batch_loss=0.2, stop_at_loss=None)
    history = fit(Scripted(), data, data, recipe=recipe, seed=0)
    assert history.stopped == "batch loss"
    assert history.steps < 4 * len(history.train_loss)  # in the middle of an epoch
    assert len(history.validation_loss) == len(history.train_loss) == history.best_epoch + 1
    longer = fit(Scripted(), data, data, recipe=recipe.model_copy(update={"epochs": 1}), seed=0)
    assert longer.stopped in ("epochs", "batch loss")
    never = recipe.model_copy(update={"stop_at_batch_loss": 1e-9, "epochs": 2})
    assert fit(Scripted(), data, data, recipe=never, seed=0).stopped == "epochs"


def test_the_best_epoch_counts_after_a_low_batch_loss_too():
    """Training gets better, validation worse: the weights are those of the first epoch."""
    inputs = torch.zeros(8, 1)
    train = Split(inputs, torch.ones(8, dtype=torch.long), torch.arange(8))
    validation = Split(inputs, torch.zeros(8, dtype=torch.long), torch.arange(8))
    recipe = Recipe(learning_rate=0.1, batch_size=8, stop_at_batch_loss=0.3, stop_at_loss=None)
    model = Scripted()
    history = fit(model, train, validation, recipe=recipe, seed=0)
    assert history.stopped == "batch loss"
    assert history.best_epoch == 0 < len(history.train_loss) - 1
    assert float(model.bias.detach()) == pytest.approx(0.1, abs=1e-3)


class Linear(nn.Module):
    """Logits (0, w·x + b); remembers in which mode it was run."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.dropout = nn.Dropout(0.5)
        self.modes = []
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 0.0]]))

    def forward(self, x):
        self.modes.append(self.training)
        y = self.layer(self.dropout(self.norm(x)))
        return torch.cat([torch.zeros_like(y), y], 1)


def attacked(x, y, model=None, seed=0, **options):
    model = model or Linear()
    generator = torch.Generator().manual_seed(seed)
    return attack(model, x, y, Adversary(**options), generator)


def test_fgsm_is_one_step_against_the_class():
    x, y = torch.tensor([[0.5, 0.5, 0.9, 0.5], [0.5, 0.5, 0.1, 0.5]]), torch.tensor([0, 1])
    found = attacked(x, y)
    assert found == pytest.approx(torch.tensor([[0.7, 0.3, 1, 0.5], [0.3, 0.7, 0, 0.5]]))
    wide = attacked(x, y, low=-1.0, high=2.0, epsilon=0.4)
    assert wide == pytest.approx(torch.tensor([[0.9, 0.1, 1.3, 0.5], [0.1, 0.9, -0.3, 0.5]]))


def test_pgd_stays_in_its_ball_and_goes_to_the_corner():
    x, y = torch.full((64, 4), 0.5), torch.ones(64, dtype=torch.long)
    found = attacked(x, y, attack="pgd")
    assert ((found - x).abs() <= 0.3 + 1e-6).all()
    assert found[:, :3] == pytest.approx(torch.tensor([0.2, 0.8, 0.2]).expand(64, 3))
    assert found[:, 3].std() > 0.1  # no gradient there: what is left is the start
    assert torch.equal(found, attacked(x, y, attack="pgd"))
    assert not torch.equal(found, attacked(x, y, attack="pgd", seed=1))
    edge = attacked(x + 0.45, y, attack="pgd", iterations=1)
    assert float(edge.max()) <= 1


def test_an_attack_leaves_the_model_alone():
    model = Linear().train()
    x, y = torch.rand(8, 4), torch.ones(8, dtype=torch.long)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x.requires_grad_(False)
    with torch.no_grad():  # as in an evaluation
        found = attacked(x, y, model, attack="pgd", iterations=3)
    assert model.modes == [False] * 3
    assert model.training
    assert not found.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_training_on_perturbed_inputs_makes_a_model_withstand_them():
    """Inputs 0 and 1 decide the class; the many others say little, and are easily turned."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    strong = (y[:, None] * 0.8 + 0.1).expand(-1, 2)
    weak = 0.45 + 0.1 * y[:, None] + 0.01 * torch.randn(200, 30, generator=generator)
    data = Split(torch.cat([strong, weak], 1), y, torch.arange(200))
    accuracy = {}
    for name, adversary in (("plain", None), ("robust", Adversary(attack="pgd", iterations=5))):
        torch.manual_seed(0)
        model = nn.Linear(32, 2)
        recipe = Recipe(epochs=25, adversary=adversary, learning_rate=0.1, stop_at_loss=None)
        fit(model, data, data, recipe=recipe, seed=0)
        assert evaluate(model, data).accuracy == 1
        x = attack(model, data.x, y, Adversary(attack="pgd"), torch.Generator().manual_seed(1))
        accuracy[name] = evaluate(model, Split(x, y, data.index)).accuracy
    assert accuracy["plain"] < 0.5
    assert accuracy["robust"] == 1


@pytest.mark.parametrize("mix", [0.0, 0.25])
def test_a_share_of_a_batch_is_left_as_it_is(mix, monkeypatch):
    sizes = []

    def counted(model, x, *rest):
        sizes.append(len(x))
        return x

    monkeypatch.setattr(loop, "attack", counted)
    data = truth_table("xor")
    recipe = Recipe(epochs=1, batch_size=100, adversary=Adversary(mix=mix))
    history = fit(make(), data, data, recipe=recipe, seed=0)
    assert sizes == [round(100 * (1 - mix)), round(100 * (1 - mix)), round(56 * (1 - mix))]
    # An attack that changes nothing changes nothing.
    assert history == fit(make(), data, data, recipe=Recipe(epochs=1, batch_size=100), seed=0)


class Drawn:
    """Images drawn when they are asked for, as far as training may ask."""

    device, dtype, largest = torch.device("cpu"), torch.float32, 0

    def __init__(self, count):
        self.shape = (count, 3, 64, 64)

    def __len__(self):
        return self.shape[0]

    def to(self, parameter):
        return self

    def __getitem__(self, rows):
        Drawn.largest = max(Drawn.largest, len(rows))
        x = torch.zeros(len(rows), 3, 64, 64)
        x[rows % 2 == 1, :, 20:30, 20:30] = 1
        return x

    def split(self, size):
        return (self[rows] for rows in torch.arange(len(self)).split(size))


def drawn(count):
    rows = torch.arange(count)
    return Split(Drawn(count), rows % 2, rows)


def test_samples_may_be_drawn_when_they_are_asked_for():
    recipe = Recipe(epochs=2, batch_size=16, adversary=Adversary(), loss="clipped_bce")
    lazy, whole = drawn(20), drawn(20)
    whole = Split(whole.x[whole.index], whole.y, whole.index)
    results = []
    for data in (lazy, whole):
        model = build("smerf_simple_cnn", inputs=(3, 64, 64), classes=2, seed=0)
        history = fit(model, data, data, recipe=recipe, seed=0)
        results.append((history, evaluate(model, data)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1].logits, results[1][1].logits)


def test_few_large_samples_are_evaluated_at_once_and_many_small_ones():
    Drawn.largest = 0
    evaluate(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)), drawn(400))
    assert Drawn.largest == 85
    sizes = []
    model = nn.Linear(8, 2)
    model.register_forward_hook(lambda module, inputs, out: sizes.append(len(out)))
    rows = torch.arange(5000)
    evaluate(model, Split(torch.zeros(5000, 8), rows % 2, rows))
    assert sizes == [4096, 904]
