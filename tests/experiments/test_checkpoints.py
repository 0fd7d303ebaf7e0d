"""Checkpoints: interrupted and resumed is, bit for bit, never interrupted."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

from experiments import artifacts, randomness, stages
from experiments.artifacts import CHECKPOINT, ArtifactStore
from experiments.data.dataset import Split
from experiments.models import build
from experiments.stages import Checkpoint, Interrupted, Runtime, checkpoint, stage, using
from experiments.studies import andor
from experiments.training import Recipe, fit, loop

KEY = "0" * 64
EPOCHS = 7
CASES = {
    "batch norm": ({"name": "andor_cnn"}, {"schedule": "cosine"}),
    "dropout": (
        {"name": "andor_transformer", "attention_dropout": 0.3, "layers": 1},
        {"schedule": "noam", "warmup": 20},
    ),
    "adversary": (
        {"name": "andor_cnn"},
        {"adversary": {"attack": "pgd", "low": -1.0, "iterations": 2}, "loss": "mse_sigmoid"},
    ),
    "batch loss": ({"name": "andor_cnn"}, {"stop_at_batch_loss": 0.05}),
    "worse and worse": ({"name": "andor_cnn"}, {"learning_rate": 0.03, "patience": 4}),
}


def data() -> Split:
    rows = torch.arange(90)  # no multiple of the batch size
    x = 2.0 * ((rows[:, None] >> torch.arange(8)) & 1) - 1
    return Split(x=x, y=(x[:, 0] > 0).long(), index=rows)


def train(case: str, kept: Checkpoint | None = None, weights_seed: int = 0):
    """Everything that training leaves: weights, buffers, history."""
    model, recipe = CASES[case]
    network = build(model, inputs=8, classes=2, seed=weights_seed)
    recipe = Recipe(**{"epochs": EPOCHS, "batch_size": 32, "stop_at_loss": None} | recipe)
    validation = data()
    if case == "worse and worse":  # the better the training, the worse the validation
        validation.y.neg_().add_(1)
    history = fit(network, data(), validation, recipe=recipe, seed=3, checkpoint=kept)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}, history


def assert_same(left, right):
    assert left[1] == right[1]
    assert left[0].keys() == right[0].keys()
    for name in left[0]:
        assert torch.equal(left[0][name], right[0][name]), name


class StopsAfter(Checkpoint):
    """Asks training to stop at the end of the n-th epoch that this process trains."""

    epochs = math.inf

    @property
    def stop_requested(self):
        self.epochs -= 1
        return self.epochs <= 0


def kept_in(path, seconds=math.inf, stop_after=math.inf, key=KEY) -> Checkpoint:
    made = StopsAfter(ArtifactStore(path), "trained", key, seconds)
    made.epochs = stop_after
    return made


def file_in(path, key=KEY):
    return ArtifactStore(path).path("trained", key, suffix=CHECKPOINT)


@pytest.fixture(autouse=True)
def _not_asked_to_stop(monkeypatch):
    monkeypatch.setattr(stages, "_stop_requested", False)


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_interrupted_anywhere_and_resumed_is_never_interrupted(case, tmp_path):
    expected = train(case)
    length = len(expected[1].train_loss)
    for epochs in range(1, length):
        path = tmp_path / str(epochs)
        with pytest.raises(Interrupted):
            train(case, kept_in(path, stop_after=epochs))
        torch.rand(epochs), random.random(), np.random.rand()
        # Other initial weights: all that counts must come out of the checkpoint.
        assert_same(train(case, kept_in(path), weights_seed=9), expected)


def test_the_cases_show_what_they_are_for(monkeypatch):
    history = train("worse and worse")[1]
    assert history.stopped == "patience"
    assert history.best_epoch < len(history.train_loss) - 1  # kept from before the interruption
    history = train("batch loss")[1]
    assert history.stopped == "batch loss"
    assert history.steps % 3  # in the middle of an epoch
    assert len(history.train_loss) > 3
    model, recipe = CASES["dropout"]
    monkeypatch.setitem(CASES, "no dropout", (model | {"attention_dropout": 0.0}, recipe))
    assert train("no dropout")[1] != train("dropout")[1]


@pytest.mark.parametrize("case", CASES)
def test_interrupted_twice(case, tmp_path):
    for epochs in (1, 2):
        with pytest.raises(Interrupted):
            train(case, kept_in(tmp_path, stop_after=epochs))
    saved = ArtifactStore(tmp_path).load("trained", KEY, suffix=CHECKPOINT)
    assert len(saved["value"]["history"]["train_loss"]) == 3
    assert_same(train(case, kept_in(tmp_path)), train(case))


def test_saving_changes_nothing_and_leaves_no_trace(tmp_path):
    expected = train("dropout")
    state = torch.get_rng_state()
    assert_same(train("dropout", kept_in(tmp_path, seconds=0)), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert file_in(tmp_path).exists()


def test_a_stop_in_the_last_epoch_ends_as_usual(tmp_path):
    assert_same(train("dropout", kept_in(tmp_path, stop_after=EPOCHS)), train("dropout"))
    assert not file_in(tmp_path).exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "alien", "no dict", "format"])
def test_a_checkpoint_that_cannot_be_trusted_starts_over(damage, tmp_path, caplog):
    with pytest.raises(Interrupted):
        train("dropout", kept_in(tmp_path, stop_after=4))
    path, store = file_in(tmp_path), ArtifactStore(tmp_path)
    content = path.read_bytes()
    if damage in ("alien", "no dict", "format"):
        saved = store.load("trained", KEY, suffix=CHECKPOINT)
        saved["value"]["format"] = 0
        value = {"alien": {"evil": Split}, "no dict": [1], "format": saved}[damage]
        store.save("trained", KEY, value, {}, suffix=CHECKPOINT)
    else:
        flipped = content[:-900] + bytes([content[-900] ^ 1]) + content[-899:]
        new = {"truncated": content[:-10], "flipped": flipped, "empty": b""}
        path.write_bytes(new[damage])
    assert_same(train("dropout", kept_in(tmp_path)), train("dropout"))
    if damage != "format":  # that one is sound, only of another version
        assert "starting over" in caplog.text
        assert not path.exists()


def test_reading_a_checkpoint_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/pwned",))

    ArtifactStore(tmp_path).save("trained", KEY, {"value": Evil()}, {}, suffix=CHECKPOINT)
    assert kept_in(tmp_path).load() is None
    assert not (tmp_path / "pwned").exists()


def test_two_keys_do_not_mix(tmp_path):
    with pytest.raises(Interrupted):
        train("dropout", kept_in(tmp_path, stop_after=3))
    other = "1" * 64
    with pytest.raises(Interrupted):
        train("batch norm", kept_in(tmp_path, stop_after=2, key=other))
    assert_same(train("batch norm", kept_in(tmp_path, key=other)), train("batch norm"))
    assert_same(train("dropout", kept_in(tmp_path)), train("dropout"))


def test_nothing_due_costs_nothing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("gathered the state of a training that nobody saves")

    monkeypatch.setattr(loop._Run, "state", refuse)
    kept = kept_in(tmp_path)
    assert_same(train("batch norm", kept), train("batch norm"))
    started = time.perf_counter()
    for _ in range(10_000):
        assert not kept.stop_requested
        assert not kept.due()
    assert (time.perf_counter() - started) / 10_000 < 1e-4  # per epoch; in truth a microsecond
    assert not list(tmp_path.rglob("*"))


def test_random_states_come_back():
    def draw():
        return random.random(), np.random.standard_normal(), torch.randn(3).tolist()

    cpu = torch.device("cpu")
    with randomness.isolated_rng(5):
        draw()  # numpy and torch keep the second number of a pair
        state = randomness.global_state(cpu)
        first = draw()
    with randomness.isolated_rng(6):
        randomness.restore_global_state(state, cpu)
        assert draw() == first


# ---- the checkpoint of a stage -----------------------------------------------------------------


@stage(version="1")
def counted(*, upto: int, stop_at: int | None = None) -> list:
    kept = checkpoint()
    numbers = kept.load() or []
    while len(numbers) < upto:
        numbers.append(len(numbers))
        if kept.due():
            kept.save(numbers)
        if len(numbers) == stop_at and len(numbers) < upto:
            kept.save(numbers)
            raise Interrupted
    return numbers


@pytest.fixture
def run(tmp_path):
    with using(Runtime(ArtifactStore(tmp_path), checkpoint_seconds=math.inf)) as current:
        yield current


def checkpoints(run):
    return list(run.artifacts.root.glob(f"*/??/*{CHECKPOINT}"))


def test_gone_when_the_artifact_is_there(run):
    run.checkpoint_seconds = 0
    artifact = counted(upto=3)
    assert artifact.value == [0, 1, 2]
    assert checkpoints(run) == []
    assert [e.key for e in run.artifacts.entries()] == [artifact.key]


def test_kept_when_the_artifact_cannot_be_stored(run, monkeypatch):
    save = ArtifactStore.save

    def full(self, *args, suffix=artifacts.SUFFIX):
        if suffix != CHECKPOINT:
            raise OSError(28, "No space left on device")
        return save(self, *args, suffix=suffix)

    monkeypatch.setattr(ArtifactStore, "save", full)
    run.checkpoint_seconds = 0
    assert counted(upto=3).value == [0, 1, 2]
    assert len(checkpoints(run)) == 1


def test_interrupted_stages_keep_theirs_and_count_all_their_seconds(run, monkeypatch):
    with pytest.raises(Interrupted):
        counted(upto=3, stop_at=2)
    (path,) = checkpoints(run)
    assert path.stat().st_mode & 0o077 == 0
    assert list(run.artifacts.entries()) == []
    saved = run.artifacts.load("counted", path.stem, suffix=CHECKPOINT)
    run.artifacts.save("counted", path.stem, saved | {"spent": 500.0}, {}, suffix=CHECKPOINT)
    assert counted(upto=3, stop_at=2).value == [0, 1, 2]
    assert 500 <= next(run.artifacts.entries()).header["seconds"] < 600
    assert run.summary()["counted"]["seconds"] < 100


def test_a_checkpoint_serves_one_training(run):
    @stage(version="1")
    def twice(*, number: int) -> int:
        checkpoint().load()
        checkpoint().load()
        return number

    with pytest.raises(RuntimeError, match="twice"):
        twice(number=1)


def test_each_stage_has_its_own_also_inside_another(run):
    @stage(version="1")
    def inner(*, number: int) -> str:
        return checkpoint().stage

    @stage(version="1")
    def outer(*, number: int) -> list:
        return [checkpoint().stage, inner(number=number).value, checkpoint().stage]

    assert outer(number=1).value == ["outer", "inner", "outer"]


def test_outside_of_a_stage_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages.request_stop()
    none = checkpoint()
    none.save([1])
    assert none.load() is None
    assert not none.due(0)
    assert not none.stop_requested
    assert not list(tmp_path.rglob("*"))


def test_due_counts_from_the_start_and_from_the_last_save(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stages.time, "monotonic", lambda: clock[0])
    kept = kept_in(tmp_path, seconds=30)
    clock[0] += 29
    assert not kept.due()
    assert kept.due(20)
    clock[0] += 1
    assert kept.due()
    kept.save([])
    assert not kept.due()


def test_a_full_disk_costs_the_checkpoint_not_the_stage(run, monkeypatch, caplog):
    def full(path, *_):
        if path.suffix == CHECKPOINT:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts, "write_atomically", full)
    run.checkpoint_seconds = 0
    assert counted(upto=2).value == [0, 1]
    assert "No space left on device" in caplog.text


def test_the_interval_is_a_setting(tmp_path, monkeypatch):
    store = ArtifactStore(tmp_path)
    assert Runtime(store).checkpoint_seconds == 30
    monkeypatch.setenv("ASSAY_CHECKPOINT_SECONDS", "2.5")
    assert Runtime(store).checkpoint_seconds == 2.5
    monkeypatch.setenv("ASSAY_CHECKPOINT_SECONDS", "often")
    with pytest.raises(ValueError, match="ASSAY_CHECKPOINT_SECONDS is 'often'"):
        Runtime(store)


def test_asked_to_stop_no_stage_is_begun_but_what_is_there_is_found(run):
    counted(upto=1)
    stages.request_stop(signal.SIGTERM, None)
    assert counted(upto=1).value == [0]
    with pytest.raises(Interrupted):
        counted(upto=2)


def test_an_interruption_is_no_exception_to_swallow():
    assert issubclass(Interrupted, KeyboardInterrupt)  # which Sacred reports as INTERRUPTED
    assert not issubclass(Interrupted, Exception)


def test_which_files_are_left_over(tmp_path):
    store = ArtifactStore(tmp_path)
    day = 86400

    def put(number, age, finished=False, suffix=CHECKPOINT):
        key = f"{number:064x}"
        path = store.save("trained", key, [], {}, suffix=suffix).path
        os.utime(path, (time.time() - age,) * 2)
        if finished:
            store.save("trained", key, [], {})
        return path

    put(1, age=29 * day)
    old = put(2, age=31 * day)
    put(3, age=60, finished=True)  # perhaps of another worker that is about to finish, too
    orphan = put(4, age=7200, finished=True)
    put(5, age=99 * day, suffix=artifacts.SUFFIX)
    temporary = old.with_name("x.tmp")
    temporary.touch()
    assert set(store.leftovers()) == {old, orphan}
    os.utime(temporary, (0, 0))
    assert set(store.leftovers()) == {old, orphan, temporary}


# ---- processes that are stopped and killed -----------------------------------------------------


def _in_a_process(function, *arguments) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def _killed_in_the_third_save(root) -> None:
    saves, replace = [], os.replace

    def killed(*paths):
        saves.append(paths)
        if len(saves) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    artifacts.os.replace = killed
    train("dropout", kept_in(root, seconds=0))


def test_killed_while_saving_leaves_the_last_one(tmp_path):
    assert _in_a_process(_killed_in_the_third_save, tmp_path) == -signal.SIGKILL
    saved = ArtifactStore(tmp_path).load("trained", KEY, suffix=CHECKPOINT)
    assert len(saved["value"]["history"]["train_loss"]) == 2
    assert len(ArtifactStore(tmp_path).leftovers(older_than=-1)) == 1  # the half-written third
    assert_same(train("dropout", kept_in(tmp_path)), train("dropout"))


RECIPE = {"epochs": 6, "batch_size": 512, "stop_at_loss": None}


def _study(root, die=None, epoch=None) -> None:
    """The training stage of ANDOR; in its n-th epoch the process gets a signal, if any."""
    config = andor.Config.model_validate({"model": "andor_transformer", "training": RECIPE})
    if die is not None:
        evaluations, logits = [], loop._logits

        def signalled(*arguments):
            evaluations.append(1)
            if len(evaluations) == epoch:
                os.kill(os.getpid(), die)
            return logits(*arguments)

        loop._logits = signalled
    signal.signal(signal.SIGTERM, stages.request_stop)
    with using(Runtime(ArtifactStore(root), checkpoint_seconds=0 if die else math.inf)):
        try:
            andor.trained(
                data=andor.dataset(spec=config.data.model_dump(mode="json")),
                model=config.model,
                training=config.training.model_dump(mode="json"),
                seed=0,
                order=0,
                dtype="float64",
            )
        except Interrupted:
            os._exit(77)
    os._exit(0)


def test_a_study_that_is_stopped_then_killed_then_finished(tmp_path):
    assert _in_a_process(_study, tmp_path / "whole") == 0
    broken = tmp_path / "broken"
    assert _in_a_process(_study, broken, signal.SIGTERM, 2) == 77
    (path,) = broken.glob(f"trained/??/*{CHECKPOINT}")
    assert _in_a_process(_study, broken, signal.SIGKILL, 3) == -signal.SIGKILL
    saved = ArtifactStore(broken).load("trained", path.stem, suffix=CHECKPOINT)
    assert len(saved["value"]["history"]["train_loss"]) == 4  # 2 and, of the second process, 2
    assert _in_a_process(_study, broken) == 0
    assert not path.exists()
    left, right = (
        ArtifactStore(root).load("trained", path.stem) for root in (broken, tmp_path / "whole")
    )
    assert left.keys() == right.keys()
    assert_same((left.pop("weights"), None), (right.pop("weights"), None))
    assert torch.equal(left.pop("prediction"), right.pop("prediction"))
    assert left == right
