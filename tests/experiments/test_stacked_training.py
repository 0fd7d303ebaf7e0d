"""Many models at once: each ends as it would on its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from experiments.artifacts import ArtifactStore
from experiments.data.dataset import Split
from experiments.models import build, stackable
from experiments.models.noise import Noise, supplied
from experiments.models.stack import Stack
from experiments.stages import Checkpoint, Interrupted
from experiments.training import Recipe, evaluate, fit, stack_size
from experiments.training.loop import loss_function
from experiments.training.stacked import evaluate_many, fit_many
from experiments.training.stacked_group import Samples

K = 5
ROWS = 50  # no multiple of the batch size
NOAM = {"schedule": "noam", "warmup": 20, "loss": "mse_sigmoid", "learning_rate": 0.01}
CASES = {
    "batch norm": ({"name": "andor_cnn", "channels": 4}, {}),
    "no batch norm, no skip": (
        {"name": "andor_cnn", "channels": 4, "batch_norm": False, "skip": False},
        {"balanced": False, "schedule": "cosine"},
    ),
    "paper": ({"name": "andor_cnn", "channels": 4, "preset": "paper", "batch_norm": False}, NOAM),
    "dropout": (
        {"name": "andor_transformer", "width": 8, "heads": 2, "attention_dropout": 0.3},
        {"balanced": False} | NOAM,
    ),
    "CLS": ({"name": "andor_transformer", "width": 8, "heads": 2, "layers": 1, "cls": True}, NOAM),
}
# Adam blows up the rounding of a gradient that is zero: a weight that batch norm cancels, a bias
# that softmax cancels. What is computed does not depend on them.
CANCELLED = ("blocks.0.skip", "query_key.bias")


class Foreign(nn.Module):
    """Unknown to us: an activation, a norm and a dropout that no form covers, and a scale."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 12, bias=False), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.2),
            nn.Linear(12, 6), nn.GELU(), nn.Dropout(0.4), nn.Linear(6, 2),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)

    def forward(self, x):
        return self.layers(x) * self.scale + self.frozen


class Undecided(nn.Module):
    """Nothing that could be mapped over: it looks at its values."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def data(k: int, rows: int = ROWS) -> Split:
    """Inputs of which some are masked, and labels, another function for each model."""
    index = torch.arange(rows)
    x = 2.0 * ((index[:, None] >> torch.arange(8)) & 1) - 1
    y = ((x[:, k % 3] > 0) & (x[:, 3] > 0)).long()
    masked = torch.rand(x.shape, generator=torch.Generator().manual_seed(k)) < 0.2
    return Split(torch.where(masked, -2.0, x), y, index)


TRAIN = [data(k) for k in range(K)]
VALIDATION = [data(k + K, 30) for k in range(K)]


def models(spec, first: int = 0) -> list[nn.Module]:
    made = []
    for seed in range(first, first + K):
        if isinstance(spec, type):
            torch.manual_seed(seed)
            made.append(spec().double())
        else:
            made.append(build(spec, inputs=8, classes=2, seed=seed, dtype=torch.float64))
    return made


def recipe(given, **more) -> Recipe:
    usual = {"epochs": 8, "batch_size": 16, "patience": 2, "stop_at_loss": None}
    return Recipe(**(usual | given | more))


def together(spec, given, first: int = 0, train=TRAIN, **options):
    made = models(spec, first)
    histories = fit_many(
        made, train, VALIDATION, recipe=recipe(given), seeds=range(K), order_seed=7,
        **({"stack": K} | options),
    )  # fmt: skip
    return made, histories


def alone(spec, given):
    made = models(spec)
    histories = [
        fit(model, TRAIN[k], VALIDATION[k], recipe=recipe(given), seed=k, order_seed=7)
        for k, model in enumerate(made)
    ]
    return made, histories


def assert_close(left, right, tolerance: float = 1e-12):
    for k, (one, other) in enumerate(zip(left[0], right[0], strict=True)):
        state, expected = one.state_dict(), other.state_dict()
        assert state.keys() == expected.keys()
        for name in state:
            allowed = max(tolerance, 1e-9 * any(part in name for part in CANCELLED))
            error = (state[name] - expected[name]).abs().max()
            assert error <= allowed * max(1, expected[name].abs().max()), (k, name)
        x = VALIDATION[k].x.double()
        with torch.no_grad():
            assert (one(x) - other(x)).abs().max() <= tolerance, k
        assert not one.training
        assert all(parameter.grad is None for parameter in one.parameters())
    for history, expected in zip(left[1], right[1], strict=True):
        for name in ("best_epoch", "steps", "stopped", "validation_accuracy"):
            assert getattr(history, name) == getattr(expected, name), name
        for name in ("train_loss", "validation_loss"):
            assert getattr(history, name) == pytest.approx(getattr(expected, name), abs=tolerance)


def assert_same(left, right):
    assert left[1] == right[1]
    for one, other in zip(left[0], right[0], strict=True):
        for tensor, expected in zip(
            one.state_dict().values(), other.state_dict().values(), strict=True
        ):
            assert torch.equal(tensor, expected)


@pytest.fixture(scope="module")
def reference():
    """What training alone gives, computed once per case."""
    known = {}

    def of(case):
        if case not in known:
            known[case] = alone(*CASES[case])
        return known[case]

    return of


# ---- equality ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_together_is_alone(case, reference):
    assert stackable.has_form(models(CASES[case][0])[0])
    assert_close(together(*CASES[case]), reference(case))


@pytest.mark.parametrize("case", ["batch norm", "dropout"])
def test_mapped_without_a_form_is_alone(case, reference, monkeypatch):
    monkeypatch.setattr(stackable, "has_form", lambda model: False)
    assert_close(together(*CASES[case]), reference(case))


@pytest.mark.parametrize("size", [1, 2, 3, None])
def test_the_size_of_the_stack_is_no_part_of_the_result(size, reference):
    found = together(*CASES["batch norm"], stack=size)
    assert_close(found, reference("batch norm"))
    if size == 1:
        assert_same(found, reference("batch norm"))


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse_sigmoid", "clipped_bce"])
def test_the_losses_of_a_stack_are_those_of_its_models(loss, balanced):
    # Not by training: where an output is near 0, "clipped_bce" is so steep that rounding grows.
    options = recipe({"loss": loss, "balanced": balanced})
    logits = torch.randn(K, ROWS, 2, generator=torch.Generator().manual_seed(0)).double()
    samples = Samples.of(TRAIN, logits)
    if balanced:
        samples.weigh(samples)
    for found, y, each in zip(samples.losses(options, logits), samples.y, logits, strict=True):
        expected = loss_function(options, y, logits.dtype)(each, y)
        assert float(found) == pytest.approx(float(expected), abs=1e-12)


def test_models_stop_at_epochs_of_their_own(reference):
    histories = [history for case in CASES for history in reference(case)[1]]
    assert {history.stopped for history in histories} == {"patience", "epochs"}
    assert len({len(history.train_loss) for history in histories}) > 3
    assert len({len(history.train_loss) for history in reference("batch norm")[1]}) > 1


def test_a_loss_low_enough_stops_a_model():
    easy = [Split(one.x.abs(), torch.ones_like(one.y), one.index) for one in TRAIN]
    options = {"recipe": recipe({"stop_at_loss": 0.05, "epochs": 20}), "order_seed": 7}
    found = fit_many(models(CASES["CLS"][0]), easy, easy, seeds=range(K), stack=K, **options)
    assert {history.stopped for history in found} == {"loss"}
    for k, model in enumerate(models(CASES["CLS"][0])[:2]):
        assert len(fit(model, easy[k], easy[k], seed=k, **options).train_loss) == len(
            found[k].train_loss
        )


@pytest.mark.parametrize(
    "given",
    [{"adversary": {"attack": "pgd", "low": -2.0, "iterations": 1}}, {"stop_at_batch_loss": 0.4}],
    ids=["adversary", "batch loss"],
)
def test_what_cannot_be_stacked_is_trained_one_by_one(given):
    spec = CASES["batch norm"][0]
    assert not stack_size.stacks(models(spec), TRAIN, recipe(given))
    found = together(spec, given)
    assert_same(found, alone(spec, given))
    if "stop_at_batch_loss" in given:
        assert "batch loss" in {history.stopped for history in found[1]}


class Asked:
    """Samples that are no tensor, but give some when they are asked for."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.device = x, x.shape, x.dtype, x.device

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        return self.x[rows]

    def to(self, parameter):
        return Asked(self.x.to(parameter))

    def split(self, size):
        return iter(self.x.split(size))


def test_samples_that_are_no_tensors_are_trained_one_by_one(reference):
    spec = CASES["batch norm"][0]
    splits = [Split(Asked(one.x), one.y, one.index) for one in TRAIN]
    made = models(spec)
    options = {"recipe": recipe({}), "seeds": range(K), "order_seed": 7, "stack": K}
    assert_same((made, fit_many(made, splits, VALIDATION, **options)), reference("batch norm"))
    for found, model, split in zip(evaluate_many(made, splits), made, TRAIN, strict=True):
        assert torch.equal(found.logits, evaluate(model, split).logits)


def test_a_foreign_module_is_mapped():
    assert not stackable.has_form(Foreign())
    assert stack_size.stacks(models(Foreign), TRAIN, recipe({}))
    assert_close(together(Foreign, {}), alone(Foreign, {}))


def test_what_cannot_be_mapped_is_trained_one_by_one():
    assert not stack_size.stacks(models(Undecided), TRAIN, recipe({}))
    assert_same(together(Undecided, {}), alone(Undecided, {}))


def test_a_changed_model_has_no_form():
    model = models(CASES["batch norm"][0])[0]
    model.blocks[0].last_relu = nn.GELU()
    assert not stackable.has_form(model)


def test_float32_learns_as_well(reference):
    made = [model.float() for model in models(CASES["batch norm"][0])]
    histories = fit_many(
        made, TRAIN, VALIDATION, recipe=recipe({}), seeds=range(K), order_seed=7, stack=K
    )
    expected = reference("batch norm")[1]
    assert histories[0].train_loss[:2] == pytest.approx(expected[0].train_loss[:2], abs=1e-4)
    assert made[0].head.weight.dtype == torch.float32


def test_data_that_all_share_and_one_class_that_is_missing():
    shared = TRAIN[0]
    one_class = Split(shared.x, torch.zeros_like(shared.y), shared.index)
    made, other = models(CASES["batch norm"][0]), models(CASES["batch norm"][0])
    train = [shared, one_class, shared, shared, shared]
    options = {"recipe": recipe({"epochs": 2}), "order_seed": 7}
    histories = fit_many(made, train, [shared] * K, seeds=range(K), stack=K, **options)
    expected = [fit(model, train[k], shared, seed=k, **options) for k, model in enumerate(other)]
    assert_close((made, histories), (other, expected))


# ---- interruption ------------------------------------------------------------------------------


class StopsAfter(Checkpoint):
    """Asks training to stop at the n-th time it is asked."""

    times = math.inf

    @property
    def stop_requested(self):
        self.times -= 1
        return self.times <= 0


def kept_in(path, times=math.inf, seconds=math.inf) -> Checkpoint:
    made = StopsAfter(ArtifactStore(path), "trained", "0" * 64, seconds)
    made.times = times
    return made


@pytest.mark.parametrize(("case", "size"), [("batch norm", 5), ("dropout", 3), ("batch norm", 1)])
def test_interrupted_and_resumed_is_never_interrupted(case, size, tmp_path):
    expected = together(*CASES[case], stack=size)
    interruptions = 0
    while True:
        try:
            # Another size, and other weights of what had begun: they are in the checkpoint.
            options = {"stack": size if interruptions == 0 else 2}
            if size == K and interruptions:
                options["first"] = 9
            kept = kept_in(tmp_path, times=2 if size > 1 else 5)
            found = together(*CASES[case], checkpoint=kept, **options)
            break
        except Interrupted:
            interruptions += 1
    assert interruptions >= 2
    assert_same(found, expected)


@pytest.mark.parametrize("size", [5, 2])
def test_folds_of_two_lengths_go_on_where_they_were(size, tmp_path):
    """Whatever group of which length was interrupted, or had just ended."""
    train = [data(k, rows) for k, rows in enumerate([20, 21, 20, 21, 21])]
    expected = together(*CASES["paper"], train=train, stack=size)
    for times in (1, 3, 7):
        interruptions = 0
        while True:
            kept = kept_in(tmp_path / str(times), times=times)
            try:
                found = together(*CASES["paper"], train=train, stack=size, checkpoint=kept)
                break
            except Interrupted:
                interruptions += 1
        assert interruptions
        assert_same(found, expected)


def test_saving_changes_nothing(tmp_path):
    found = together(*CASES["dropout"], checkpoint=kept_in(tmp_path, seconds=0))
    assert_same(found, together(*CASES["dropout"]))
    assert list(tmp_path.rglob("*"))


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    together(*CASES["dropout"], stack=3)
    evaluate_many(models(Foreign), TRAIN)
    assert not torch.equal(torch.get_rng_state(), state)  # `models` seeds it
    torch.manual_seed(0)
    made = models(CASES["dropout"][0])
    fit_many(made, TRAIN, VALIDATION, recipe=recipe({}), seeds=range(K), order_seed=0)
    assert torch.equal(torch.get_rng_state(), state)


# ---- evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [CASES["batch norm"][0], CASES["dropout"][0], Foreign, Undecided])
def test_evaluation_of_many(spec):
    made = models(spec)
    for found, model, split in zip(evaluate_many(made, TRAIN), made, TRAIN, strict=True):
        expected = evaluate(model, split)
        assert found.accuracy == expected.accuracy
        assert found.loss == pytest.approx(expected.loss, abs=1e-12)
        assert torch.equal(found.prediction, expected.prediction)
        assert (found.logits - expected.logits).abs().max() < 1e-12
        assert model.training


# ---- mistakes ----------------------------------------------------------------------------------


def test_models_of_two_architectures_are_refused():
    base = {"name": "andor_transformer", "width": 8, "heads": 2}
    for other, message in (
        ({"name": "andor_cnn"}, "AndorCNN"),
        (base | {"width": 16}, "'in_features': 16"),
        (base | {"heads": 4}, "'heads': 4"),
        (base | {"attention_dropout": 0.1}, "'p': 0.1"),
    ):
        mixed = [*models(base)[:1], *models(other)[:1]]
        with pytest.raises(ValueError, match=f"model 1 is not of the .*{message}"):
            Stack(mixed)
    with pytest.raises(ValueError, match="at least one"):
        Stack([])


def test_data_of_two_shapes_are_refused():
    made = models(CASES["batch norm"][0])
    options = {"recipe": recipe({}), "seeds": range(K), "order_seed": 0}
    narrow = Split(data(4).x[:, :6], data(4).y, data(4).index)
    with pytest.raises(ValueError, match=r"train\[4\] have shape \[6\], those of train\[0\] \[8\]"):
        fit_many(made, [*TRAIN[:4], narrow], VALIDATION, **options)
    with pytest.raises(ValueError, match="validation has 4 entries"):
        fit_many(made, TRAIN, VALIDATION[:4], **options)
    with pytest.raises(ValueError, match="stack is 0"):
        fit_many(made, TRAIN, VALIDATION, **options, stack=0)


@pytest.mark.parametrize("stack", [3, None])
def test_folds_of_two_lengths_are_trained_in_two_stacks(stack):
    """Five folds of 412 rows have 329 or 330: none of them changes what another becomes."""
    lengths = [20, 21, 20, 21, 21]
    train = [data(k, rows) for k, rows in enumerate(lengths)]
    together, alone = (models(CASES["paper"][0]) for _ in range(2))
    options = {"recipe": recipe(NOAM), "order_seed": 0}
    histories = fit_many(
        together, train, VALIDATION, seeds=range(K), **options, stack=stack
    )  # fmt: skip
    for k in range(K):
        expected = fit(alone[k], train[k], VALIDATION[k], seed=k, **options)
        assert histories[k].steps == expected.steps
        assert histories[k].train_loss == pytest.approx(expected.train_loss, abs=1e-9)
    found = evaluate_many(together, train)
    assert [len(one.prediction) for one in found] == lengths
    for k in range(K):
        torch.testing.assert_close(found[k].logits, evaluate(together[k], train[k]).logits)


def test_divergence_names_the_model():
    broken = Split(TRAIN[0].x / 0, TRAIN[0].y, TRAIN[0].index)
    train = [*TRAIN[:3], broken, TRAIN[4]]
    with pytest.raises(FloatingPointError, match=r"model 3 of 5: .*learning_rate"):
        fit_many(
            models(CASES["batch norm"][0]), train, VALIDATION, recipe=recipe({}),
            seeds=range(K), order_seed=0, stack=K,
        )  # fmt: skip


# ---- noise -------------------------------------------------------------------------------------


def test_noise_drops_at_its_rate_and_keeps_the_mean():
    noise = Noise([1, 2], torch.device("cpu"))
    noise.begin(3)
    x = torch.ones(2, 100, 999, dtype=torch.float64)
    first, second = noise.dropout(x, 0.3), noise.dropout(x, 0.3)
    for mask in (first, second):
        dropped = (mask == 0).double()
        assert dropped.mean((1, 2)).tolist() == pytest.approx([0.3, 0.3], abs=0.006)
        assert mask.mean() == pytest.approx(1, abs=0.01)
        # Neighbours, rows, models, places: nothing knows of another.
        for other in (dropped.roll(1, 2), dropped.roll(1, 1), dropped.flip(0)):
            assert float((dropped * other).mean()) == pytest.approx(0.09, abs=0.006)
    assert float(((first == 0) & (second == 0)).double().mean()) == pytest.approx(0.09, abs=0.006)
    assert torch.equal(noise.dropout(x, 0.0), x)
    assert not noise.dropout(x, 1.0).any()


def test_noise_of_a_stack_is_that_of_its_models():
    x = torch.randn(3, 5, 7)
    stacked = Noise([4, 5, 6], x.device)
    stacked.begin(2)
    stacked.dropout(x, 0.5), stacked.dropout(x, 0.0)
    found = stacked.dropout(x, 0.5)
    for row, seed in enumerate((4, 5, 6)):
        one = Noise(seed, x.device)
        one.begin(2)
        one.dropout(x[row], 0.5), one.dropout(x[row], 0.0)
        assert torch.equal(one.dropout(x[row], 0.5), found[row])
    layer = nn.Dropout(0.5)
    with supplied(layer, Noise(4, x.device)):
        assert torch.equal(layer(x), layer.eval()(x)) is False
    assert "forward" not in vars(layer)
