"""Workers in real Slurm jobs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
from slurm_testbed import command, eventually, needs_slurm
from test_local import table_of

from orchestrator import liveness
from orchestrator.launch import LaunchError, Plan, launch, minutes
from orchestrator.sweep import Sweep

pytestmark = [pytest.mark.slurm, needs_slurm]


def test_the_same_grid_gives_the_same_numbers(assay, tiny_andor, tmp_path, monkeypatch):
    tables = []
    for executor in ("local", "slurm"):
        monkeypatch.setenv("ASSAY_HOME", str(tmp_path / executor))
        assay("run", tiny_andor, "--executor", executor)
        tables.append(table_of(Sweep("tiny")))
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)


def test_one_array_of_workers_not_a_job_per_experiment(assay, trivial):
    assay("run", trivial(8, seconds=0.3), "--executor", "slurm", "--workers", 2)
    documents = Sweep("trivial").store.find("trivial")
    assert {d["status"] for d in documents} == {"COMPLETED"}
    assert len({d["execution"]["array_id"] for d in documents}) == 1
    assert len({d["assay"]["worker"] for d in documents}) == 2
    places = [w["place"] for w in Sweep("trivial").store.find(liveness.WORKERS)]
    assert len({p["array_task"] for p in places}) == 2


def test_the_job_script_and_the_job_know_no_secret(assay, trivial, monkeypatch, home):
    monkeypatch.setenv("WANDB_API_KEY", "do-not-pass-me-on")
    monkeypatch.setenv("ASSAY_MONGODB_URI", "")
    script = Path(trivial(1).parent / "environment.py")
    script.write_text(
        "import os\nfrom sacred import Experiment\nex = Experiment('e', save_git_info=False)\n"
        "ex.add_config(n=0)\n@ex.main\ndef main(n):\n    return dict(os.environ)\n"
    )
    file = script.with_suffix(".yaml")
    file.write_text("seml: {executable: environment.py, project_root_dir: .}\nfixed: {n: 1}\n")
    assay("run", file, "--executor", "slurm", "--gres", "gpu:1", "--slots", 2)
    result = Sweep("environment").store.find_one("environment", {"_id": 1})["result"]
    assert "WANDB_API_KEY" not in result
    assert result["CUDA_VISIBLE_DEVICES"] in ("0", "1")  # what Slurm gave, and nothing else
    assert result["OMP_NUM_THREADS"] == "1"
    (text,) = [p.read_text() for p in (home / "workers").rglob("*.sh")]
    assert "do-not-pass-me-on" not in text
    assert "--cpus-per-task=2" in text


def running_worker(sweep):
    return eventually(lambda: sweep.store.find(liveness.WORKERS, {"state": "running"}), 60)[0]


def test_scancel_hands_work_back(home, trivial):
    sweep = Sweep("trivial")
    sweep.add(trivial(2, seconds=60))
    launched = sweep.start(Plan("slurm"))
    running_worker(sweep)
    eventually(lambda: sweep.status().counts.get("RUNNING"), 60)
    command("scancel", *launched.ids)
    eventually(lambda: sweep.status().counts == {"PENDING": 2}, 60, "work handed back")


def test_a_job_that_slurm_starts_again_goes_on(home, trivial):
    sweep = Sweep("trivial")
    sweep.add(trivial(3, seconds=4))
    launched = sweep.start(Plan("slurm"))
    first = running_worker(sweep)
    eventually(lambda: sweep.status().counts.get("RUNNING"), 60)
    command("scontrol", "requeue", *launched.ids)
    assert sweep.wait(timeout=120).counts == {"COMPLETED": 3}
    places = [w["place"] for w in sweep.store.find(liveness.WORKERS)]
    assert {p["slurm_job"] for p in places} == {first["place"]["slurm_job"]}
    assert {p["restart"] for p in places} == {0, 1}


def test_kill_9_of_a_worker_in_a_job(home, trivial):
    sweep = Sweep("trivial")
    sweep.add(trivial(3, seconds=2))
    sweep.start(Plan("slurm"))
    os.kill(running_worker(sweep)["place"]["pid"], signal.SIGKILL)
    eventually(lambda: "RUNNING" not in sweep.status().counts, 60)
    sweep.start(Plan("slurm"))
    assert sweep.wait(timeout=120).counts == {"COMPLETED": 3}


def test_what_slurm_refuses_is_told_in_one_line(assay, trivial):
    answer = assay("run", trivial(1), "--executor", "slurm", "--partition", "nowhere", check=False)
    assert answer.returncode == 1
    assert "invalid partition" in answer.stderr.lower()
    assert len(answer.stderr.strip().splitlines()) == 1


def test_an_sqlite_file_is_not_given_to_other_hosts(home, trivial, monkeypatch):
    sweep = Sweep("trivial")
    sweep.add(trivial(1))
    monkeypatch.setattr("orchestrator.launch.socket.gethostname", lambda: "login-node")
    with pytest.raises(LaunchError, match="assay db push"):
        launch(sweep.store, sweep.name, sweep.address.url, Plan("slurm"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1:30:00", 90), ("2-12", 3600), ("2-12:30:00", 3630), ("0:30", 1), ("5:00", 5)],
)
def test_slurms_times(text, expected):
    assert minutes(text) == expected
