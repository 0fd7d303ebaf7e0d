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
from experiments.training import Recipe, evaluate, fit
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
    [{"lr": 0.1}, {"learning_rate": -1.0}, {"epochs": "5"}, {"loss": "hinge"}, {"batch_size": 0}],
)
def test_recipe_refuses_nonsense(wrong):
    with pytest.raises(ValidationError):
        Recipe(**wrong)


def test_recipe_survives_json():
    recipe = Recipe(betas=(0.9, 0.99), stop_at_loss=None)
    assert Recipe(**recipe.model_dump(mode="json")) == recipe


def test_a_recipe_does_not_import_torch():
    code = (
        "import sys; from experiments.training import Recipe, fit;"
        "Recipe(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
