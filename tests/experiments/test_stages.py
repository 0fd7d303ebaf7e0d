"""Stages and artifacts: computed once, never trusted blindly, never lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.artifacts import MAGIC, ArtifactStore, CorruptArtifact
from experiments.stages import (
    Planned,
    Runtime,
    canonical,
    checkpoint,
    key_of,
    runtime,
    stage,
    using,
)

calls: list[dict] = []


@stage(version="1")
def doubled(*, number: int) -> dict:
    calls.append({"number": number})
    return {"value": torch.tensor([2.0 * number]), "note": "twice"}


@stage(version="1")
def summed(*, left: dict, right: dict, weight: float) -> torch.Tensor:
    return left["value"] + weight * right["value"]


@pytest.fixture
def run(tmp_path):
    calls.clear()
    with using(Runtime(ArtifactStore(tmp_path))) as current:
        yield current


def test_computed_once_and_then_found(run, tmp_path):
    first, second = doubled(number=3), doubled(number=3)
    assert first.value["value"].item() == second.value["value"].item() == 6.0
    assert len(calls) == 1
    assert run.summary()["doubled"]["computed"] == 1
    assert run.summary()["doubled"]["found"] == 1
    with using(Runtime(ArtifactStore(tmp_path))):  # another process, later
        assert doubled(number=3).value["note"] == "twice"
    assert len(calls) == 1


def test_inputs_enter_by_key_and_arrive_by_value(run):
    total = summed(left=doubled(number=1), right=doubled(number=2), weight=0.5)
    assert total.value.item() == 4.0
    header = next(run.artifacts.entries("summed")).header
    assert header["inputs"] == {"left": doubled(number=1).key, "right": doubled(number=2).key}
    assert header["parameters"] == {"weight": 0.5}


def test_what_changes_the_key(run):
    base = key_of("s", "1", {"a": 1, "b": [1, 2]}, "cpu")
    assert key_of("s", "1", {"b": [1, 2], "a": 1}, "cpu") == base  # order does not
    others = [
        key_of("t", "1", {"a": 1, "b": [1, 2]}, "cpu"),
        key_of("s", "2", {"a": 1, "b": [1, 2]}, "cpu"),
        key_of("s", "1", {"a": 1, "b": [2, 1]}, "cpu"),
        key_of("s", "1", {"a": 1, "b": [1, 2]}, "cuda"),
        key_of("s", "1", {"a": doubled(number=1), "b": [1, 2]}, "cpu"),
    ]
    assert len({base, *others}) == 6


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(json_values, json_values)
def test_canonical_text_is_equal_exactly_for_equal_values(left, right):
    assert (canonical(left) == canonical(right)) == (repr_equal(left, right))
    assert json.loads(canonical(left)) == left


def repr_equal(left, right):
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def test_a_parameter_that_is_no_json_is_refused(run):
    with pytest.raises(TypeError):
        doubled(number=object())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "header", "other version"])
def test_a_damaged_artifact_is_computed_again(run, damage):
    path = run.artifacts.path("doubled", doubled(number=5).key)
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncated": data[:-10],
            "flipped": data[:-10] + bytes([data[-10] ^ 255]) + data[-9:],
            "empty": b"",
            "header": MAGIC + b"{not json\n",
            "other version": b"assay artifact 9\n" + data,
        }[damage]
    )
    with pytest.raises(CorruptArtifact):
        run.artifacts.load("doubled", path.stem)
    assert [problem is None for _, problem in run.artifacts.verify()] == [False]
    assert doubled(number=5).value["value"].item() == 10.0
    assert len(calls) == 2
    assert run.artifacts.load("doubled", path.stem)["value"].item() == 10.0


def test_a_full_disk_costs_the_artifact_not_the_result(run, monkeypatch, caplog):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArtifactStore, "save", full)
    assert doubled(number=7).value["value"].item() == 14.0
    assert "No space left on device" in caplog.text


def test_a_failed_write_leaves_nothing(run, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    doubled(number=8)
    assert [p for p in run.artifacts.root.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("name", "key"), [("../evil", "0" * 64), ("stage", "../../etc/passwd"), ("Stage", "0" * 64)]
)
def test_no_name_leads_out_of_the_root(tmp_path, name, key):
    with pytest.raises(ValueError, match="not an artifact"):
        ArtifactStore(tmp_path).path(name, key)


def test_reading_never_runs_code(tmp_path):
    store = ArtifactStore(tmp_path)

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/pwned",))

    store.save("doubled", "0" * 64, {"evil": Evil()}, {})
    with pytest.raises(Exception, match=r"(?i)weights|unsupported|unpickl"):
        store.load("doubled", "0" * 64)
    assert not (tmp_path / "pwned").exists()


class OneLease:
    """Leases as a worker has them, on a lock shared by threads."""

    def __init__(self):
        self.held, self.lock = set(), threading.Lock()

    def acquire(self, key):
        with self.lock:
            return False if key in self.held else not self.held.add(key)

    def release(self, key):
        with self.lock:
            self.held.discard(key)


def test_two_at_once_compute_once(tmp_path):
    computed, leases = [], OneLease()

    @stage(version="1")
    def slow(*, number: int) -> int:
        computed.append(number)
        time.sleep(0.2)
        return number

    def work():
        with using(Runtime(ArtifactStore(tmp_path), leases)):
            assert slow(number=1).value == 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == [1]
    assert leases.held == set()


def test_a_lease_is_given_back_when_the_stage_raises(tmp_path):
    leases = OneLease()

    @stage(version="1")
    def broken(*, number: int) -> int:
        raise RuntimeError("no")

    with using(Runtime(ArtifactStore(tmp_path), leases)), pytest.raises(RuntimeError):
        broken(number=1)
    assert leases.held == set()


def _killed_while_writing(root: str) -> None:
    import experiments.artifacts as artifacts

    artifacts.os.replace = lambda *_: os._exit(9)
    with using(Runtime(ArtifactStore(root))):
        doubled(number=11)


def test_killed_while_writing_leaves_no_artifact(tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=_killed_while_writing, args=(str(tmp_path),)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    store = ArtifactStore(tmp_path)
    assert list(store.entries()) == []
    assert len(store.leftovers(older_than=-1)) == 1
    with using(Runtime(store)):
        assert doubled(number=11).value["value"].item() == 22.0


def test_artifacts_are_private(run):
    path = run.artifacts.path("doubled", doubled(number=1).key)
    assert path.stat().st_mode & 0o077 == 0


def test_without_a_runtime_artifacts_go_home(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path))
    from contextvars import copy_context

    from experiments import stages

    def fresh():
        stages._runtime.set(None)
        return runtime().artifacts.root

    assert copy_context().run(fresh) == Path(tmp_path) / "artifacts"


def work_on(numbers):
    """What computes several results in one go, and a record of how often it did."""
    rounds: list[list[int]] = []

    def work(missing):
        rounds.append(missing)
        return [{"value": torch.tensor([2.0 * numbers[p]]), "note": "jointly"} for p in missing]

    return work, rounds


def test_together_computes_only_what_is_missing_and_each_result_is_its_own_artifact(run):
    doubled(number=1)
    numbers = [1, 2, 3, 2]  # one is there, one is asked for twice
    work, rounds = work_on(numbers)
    found = doubled.together([{"number": number} for number in numbers], work)
    assert rounds == [[1, 2]]
    assert [artifact.value["value"].item() for artifact in found] == [2.0, 4.0, 6.0, 4.0]
    assert doubled(number=3).value["note"] == "jointly"  # the key of the single call
    again, rounds = work_on(numbers)
    doubled.together([{"number": number} for number in numbers], again)
    assert rounds == []


def test_together_leaves_to_others_what_they_compute(run):
    class Busy:
        """Another worker has the lease on one key, and finishes while we compute the rest."""

        def acquire(self, key):
            return key != theirs.key or theirs_done

        def release(self, key):
            released.append(key)

    released: list[str] = []
    with using(Runtime(ArtifactStore(run.artifacts.root.parent / "elsewhere"))):
        theirs = doubled(number=2)
    theirs_done = False

    def work(missing):
        nonlocal theirs_done
        with using(Runtime(run.artifacts)):
            doubled(number=2)
        theirs_done = True
        return [{"value": torch.tensor([2.0]), "note": "ours"} for _ in missing]

    run.leases = Busy()
    one, two = doubled.together([{"number": 1}, {"number": 2}], work)
    assert (one.value["note"], two.value["note"]) == ("ours", "twice")
    assert one.key in released


def test_leases_are_given_back_when_joint_work_fails(run):
    held: set[str] = set()

    class Leased:
        def acquire(self, key):
            held.add(key)
            return True

        def release(self, key):
            held.discard(key)

    run.leases = Leased()
    with pytest.raises(RuntimeError, match="no luck"):
        doubled.together([{"number": 1}, {"number": 2}], fails)
    assert held == set()


def fails(missing):
    raise RuntimeError("no luck")


def test_a_plan_notes_keys_and_computes_nothing(run):
    there = doubled(number=1)
    calls.clear()
    with using(Runtime(run.artifacts, planning=True)) as plan:
        total = summed(left=doubled(number=1), right=doubled(number=2), weight=1.0)
        with pytest.raises(Planned):
            _ = total.value
    assert calls == []
    assert [(e["stage"], e["found"]) for e in plan.history] == [
        ("doubled", True), ("doubled", False), ("summed", False),
    ]  # fmt: skip
    assert plan.history[0]["key"] == there.key
    assert summed(left=doubled(number=1), right=doubled(number=2), weight=1.0).key == total.key


def test_together_in_groups_keeps_each_group_and_its_checkpoint(run):
    numbers = [1, 2, 3, 4, 5]
    rounds = []

    def work(missing):
        saved = checkpoint().load()
        rounds.append((missing, saved))
        if missing == [2, 3] and saved is None:
            checkpoint().save("half way")
            raise RuntimeError("no luck")
        return [{"value": torch.tensor([2.0 * numbers[p]]), "note": "ours"} for p in missing]

    calls = [{"number": number} for number in numbers]
    with pytest.raises(RuntimeError, match="no luck"):
        doubled.together(calls, work, group=2)
    assert len(list(run.artifacts.entries("doubled"))) == 2  # the first group
    found = doubled.together(calls, work, group=2)
    assert [a.value["value"].item() for a in found] == [2, 4, 6, 8, 10]
    assert rounds == [([0, 1], None), ([2, 3], None), ([2, 3], "half way"), ([4], None)]
    assert not list(run.artifacts.root.glob("*/??/*.checkpoint"))
