"""Submission to a real Slurm: arrays, intents, dry runs, limits, allocations."""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from slurm_testbed import command, eventually, needs_slurm

from orchestrator import intents, liveness, scheduler
from orchestrator.intents import LAUNCHES
from orchestrator.launch import Plan
from orchestrator.queue import now
from orchestrator.sweep import Sweep

pytestmark = [pytest.mark.slurm, needs_slurm]

LATER = {"additional_parameters": {"begin": "now+1hour"}}  # jobs that stay PENDING
EVERYTHING = """
import os
from sacred import Experiment
ex = Experiment("environment", save_git_info=False)
ex.add_config(n=0)

@ex.main
def main(n):
    return dict(os.environ)
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Nothing remembered from the test before, and no job of ours left behind."""
    monkeypatch.setattr(scheduler, "shared", scheduler.Scheduler())
    before = {job.array for job in scheduler.shared.jobs() or ()}
    yield
    scheduler.shared.expire()
    left = {job.array for job in scheduler.shared.jobs() or () if job.active} - before
    scheduler.cancel([str(job) for job in left])


@pytest.fixture
def no_accounting(tmp_path, monkeypatch) -> Path:
    """A sacct that notes that it was called, and is slow to say nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    called = tmp_path / "sacct-was-called"
    (folder / "sacct").write_text(f"#!/bin/sh\necho > {called}\nsleep 30\nexit 1\n")
    (folder / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return called


def jobs_of(sweep: Sweep) -> dict[str, list[scheduler.Job]]:
    """Token → its jobs that have not ended."""
    scheduler.shared.expire()
    found = {i["_id"]: [] for i in sweep.store.find(LAUNCHES, {"collection": sweep.name})}
    for job in scheduler.shared.jobs():
        token = job.comment.removeprefix("assay:")
        # Slurm takes its time to clean up after a cancelled job that has ended.
        if token in found and job.active and job.state != "COMPLETING":
            found[token].append(job)
    return found


def count_of(sweep: Sweep) -> int:
    return sum(map(len, jobs_of(sweep).values()))


def test_a_sweep_on_two_arrays_and_no_accounting(home, trivial, monkeypatch, no_accounting):
    monkeypatch.setattr(scheduler, "array_limit", lambda: 2)
    sweep = Sweep("trivial")
    sweep.add(trivial(6, seconds=0.5))
    launched = sweep.start(Plan("slurm", workers=3))
    assert len(launched.ids) == 3
    assert len(launched.jobs) == 2
    assert launched.running()
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 6}
    eventually(lambda: scheduler.shared.expire() or not launched.running(), 30, "workers ended")
    found = sweep.store.find(LAUNCHES)
    assert {i["state"] for i in found} == {"submitted"}
    assert {j for i in found for j in i["jobs"]} == set(launched.jobs.values())
    assert not no_accounting.exists()


def test_the_cluster_is_asked_for_its_limit():
    scheduler._configuration.cache_clear()
    text = command("scontrol", "show", "config")
    assert scheduler.array_limit() == int(re.search(r"MaxArraySize\s*=\s*(\d+)", text)[1])
    assert scheduler.cluster() == "assay"


def test_a_dry_run_shows_the_script_that_is_submitted_then(assay, trivial, home):
    assay("add", trivial(2))
    sweep = Sweep("trivial")
    words = ["start", "trivial", "--profile", "testbed", "--workers", 2, "--setup", "export A=1"]
    shown = assay(*words, "--dry-run").stdout
    assert "2 experiments wait" in shown
    assert sweep.queue.counts() == {"STAGED": 2}
    assert sweep.store.find(LAUNCHES) == []
    assert not (home / "workers").exists()

    assay(*words)
    ((token, jobs),) = jobs_of(sweep).items()
    assert len(jobs) == 2
    (script,) = (home / "workers").rglob("submission.sh")
    assert script.read_text().replace(token, "TOKEN").strip() in shown
    options = json.loads((script.parent / "options.json").read_text())
    assert json.dumps(options, indent=2) in shown
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 2}


def test_slots_share_one_gpu_and_have_their_threads(assay, tmp_path, home):
    (tmp_path / "environment.py").write_text(EVERYTHING)
    file = tmp_path / "environment.yaml"
    file.write_text(
        "seml: {executable: environment.py, project_root_dir: .}\n"
        "grid: {n: {type: choice, options: [1, 2]}}\n"
    )
    profile = tmp_path / "shared.yaml"
    profile.write_text("gres: gpu:1\nslots: 2\nthreads: 2\nmem: 1G\nsetup: [export MARK=made]\n")
    assay("run", file, "--profile", profile)
    documents = Sweep("environment").store.find("environment")
    results = [document["result"] for document in documents]
    assert {r["CUDA_VISIBLE_DEVICES"] for r in results} in ({"0"}, {"1"})
    assert {(r["OMP_NUM_THREADS"], r["MARK"]) for r in results} == {("2", "made")}
    assert {r["SLURM_CPUS_PER_TASK"] for r in results} == {"4"}
    step = {r["SLURM_JOB_ID"] for r in results}.pop()
    assert "cpu=4" in command("sacct", "-n", "-P", "-j", f"{step}.0", "-o", "alloctres")


def test_a_submitter_that_dies_after_sbatch_leaves_a_job_that_works(home, trivial, monkeypatch):
    sweep = Sweep("trivial")
    sweep.add(trivial(2))
    with monkeypatch.context() as dying:
        dying.setattr(intents, "conclude", lambda *_, **__: sys.exit("dead"))
        with pytest.raises(SystemExit):
            sweep.start(Plan("slurm"))
    (intent,) = sweep.store.find(LAUNCHES)
    assert intent["state"] == "submitting"
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 2}
    (intent,) = sweep.store.find(LAUNCHES)
    assert intent["state"] == "submitting"  # not yet old enough to be asked about
    lost = intents.declare(sweep.store, "trivial", "slurm", 1)
    old = {"$set": {"at": now() - timedelta(seconds=31)}}
    sweep.store.update(LAUNCHES, {}, old, many=True)
    sweep.status()
    states = {i["_id"]: (i["state"], i.get("jobs")) for i in sweep.store.find(LAUNCHES)}
    place = sweep.store.find_one(liveness.WORKERS)["place"]
    assert states[intent["_id"]] == ("submitted", [str(place["slurm_job"])])
    assert states[lost] == ("lost", None)


def test_what_slurm_refuses_is_written_down(assay, trivial):
    answer = assay("run", trivial(1), "--executor", "slurm", "--partition", "nope", check=False)
    (intent,) = Sweep("trivial").store.find(LAUNCHES)
    assert intent["state"] == "refused"
    assert intent["message"] in answer.stderr


def test_max_workers_counts_those_that_wait(assay, trivial):
    sweep = Sweep("trivial")
    sweep.add(trivial(1))
    sweep.start(Plan("slurm", workers=2, slurm=LATER))
    assert count_of(sweep) == 2
    words = ["start", "trivial", "--executor", "slurm", "--workers", 2, "--max-workers"]
    assert "as many" in assay(*words, 2).stdout
    assert "1 workers for" in assay(*words, 3).stdout.replace("\n", " ")
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 1}


def test_cancel_ends_workers_and_takes_waiting_jobs_back(home, trivial):
    sweep = Sweep("trivial")
    sweep.add(trivial(2, seconds=60))
    sweep.start(Plan("slurm", idle_seconds=600))
    sweep.start(Plan("slurm", workers=3, slurm=LATER))
    sweep.start(Plan("local", slots=1, idle_seconds=600))
    workers = eventually(lambda: two(sweep), 60, "both workers registered")
    eventually(lambda: sweep.status().counts.get("RUNNING") == 2, 60)
    assert count_of(sweep) == 4
    assert sweep.cancel({"_id": 1}) == 1
    assert count_of(sweep) == 4  # a part of the sweep: the workers stay
    assert sweep.cancel() == 1
    eventually(lambda: count_of(sweep) == 0, 30, "no job left")
    ids = {"_id": {"$in": [w["_id"] for w in workers]}}
    eventually(
        lambda: {w["state"] for w in sweep.store.find(liveness.WORKERS, ids)} == {"ended"}, 40
    )
    assert sweep.status().counts == {"INTERRUPTED": 2}


def two(sweep: Sweep) -> list[dict]:
    workers = sweep.store.find(liveness.WORKERS, {"state": "running"})
    return workers if len(workers) == 2 else []


@pytest.mark.parametrize(
    ("words", "inside"), [(["salloc", "-Qn1"], False), (["srun", "-Qn1"], True)]
)
def test_local_workers_in_the_users_own_allocation(home, trivial, words, inside):
    file = trivial(4, seconds=1)
    assay = [sys.executable, "-m", "orchestrator.cli", "run", file]
    command(*words, *assay, "--workers", 2, "--slots", 1)
    sweep = Sweep("trivial")
    workers = sweep.store.find(liveness.WORKERS)
    assert {w["state"] for w in workers} == {"ended"}  # none has replaced the other
    assert len({d["assay"]["worker"] for d in sweep.store.find("trivial")}) == 2
    assert {w["place"]["slurm_job"] is not None for w in workers} == {inside}


def test_a_submission_from_within_an_allocation(home, trivial, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")  # as in a task of the user's own array
    assay = [sys.executable, "-m", "orchestrator.cli", "run", trivial(1), "--executor", "slurm"]
    command("salloc", "-Qn1", "--mem=100", *assay, "--mem", "1G")
    (worker,) = Sweep("trivial").store.find(liveness.WORKERS)
    (intent,) = Sweep("trivial").store.find(LAUNCHES)
    assert intent["jobs"] == [str(worker["place"]["slurm_job"])]
    assert worker["place"]["array_task"] is None
