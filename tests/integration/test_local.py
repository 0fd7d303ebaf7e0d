"""Warm workers on this machine: real processes, real deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import pytest

import orchestrator
from orchestrator import liveness
from orchestrator.launch import Plan
from orchestrator.sweep import Sweep

ROOT = Path(__file__).parents[2]


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def workers(sweep):
    return sweep.store.find(liveness.WORKERS, {"state": "running"})


def test_a_sweep_runs_once_and_only_once(assay, trivial, home):
    file = trivial(6)
    assert "6 experiments" in assay("run", file, "-w", "number<2").stdout
    sweep = Sweep("trivial")
    assert sweep.status().counts == {"STAGED": 4, "COMPLETED": 2}
    assay("run", file)
    before = sweep.store.find("trivial")
    assert Counter(d["status"] for d in before) == {"COMPLETED": 6}
    assert {d["result"]["value"] for d in before} == {0, 2, 4, 6, 8, 10}
    assert len({d["result"]["pid"] for d in before}) == 6  # a fresh process each
    again = assay("run", file).stdout
    assert "6 of them known already" in again
    assert sweep.store.find("trivial") == before
    assert list((home / "spool" / "trivial").glob("*")) == []


def test_documents_have_what_sacred_and_omniboard_read(assay, trivial):
    assay("run", trivial(1))
    document = Sweep("trivial").store.find_one("trivial", {"_id": 1})
    assert document["format"].startswith("MongoObserver")
    assert document["host"]["hostname"]
    used = document["stats"]
    assert 0 < used["real_time"] < 60
    assert 0 < used["self"]["user_time"] + used["self"]["system_time"] < 60
    assert 2**20 < used["self"]["max_memory_bytes"] < 2**34
    assert document["captured_out"].count("number 0") == 1
    (metric,) = document["info"]["metrics"]
    stored = Sweep("trivial").store.find_one("metrics", {"_id": metric["id"]})
    assert stored["name"] == "progress"
    assert stored["values"] == [0]
    assert {"start_time", "stop_time", "heartbeat", "artifacts", "resources"} <= set(document)


def test_not_a_number_is_a_result(assay, trivial):
    assay("run", trivial(1, fate="nan"))
    result = Sweep("trivial").store.find_one("trivial", {"_id": 1})["result"]
    assert result["value"] != result["value"]
    assert result["other"] == float("inf")


def test_a_failure_is_told_in_one_line_and_can_be_retried(assay, trivial):
    answer = assay("run", trivial(2, fate="raise"), check=False)
    assert answer.returncode == 1
    assert "ValueError: number 0 is not to my liking" in answer.stdout
    assert "assay retry trivial" in answer.stdout
    assert "number 1 is not to my liking" in assay("logs", 2, "-s", "trivial").stdout
    assert "2 experiments are waiting again" in assay("retry", "trivial").stdout
    assert Sweep("trivial").status().counts == {"PENDING": 2}


def test_a_segfault_costs_its_experiment_not_the_worker(assay, trivial):
    answer = assay("run", trivial(3, fate="segfault"), check=False)
    assert "3 × killed by SIGSEGV" in answer.stdout
    sweep = Sweep("trivial")
    assert sweep.status().counts == {"FAILED": 3}
    assert len({d["assay"]["worker"] for d in sweep.store.find("trivial")}) == 1


def test_kill_9_of_a_child(home, trivial):
    sweep = Sweep("trivial")
    added = sweep.add(trivial(1, seconds=30))
    launched = sweep.start(Plan(slots=1))
    (worker,) = wait_for(lambda: workers(sweep))
    wait_for(lambda: "number 0" in sweep.logs(1))
    tree = psutil.Process(worker["place"]["pid"]).children(recursive=True)
    for process in tree:
        if os.getsid(process.pid) == process.pid:  # leads its own session: an experiment's
            process.kill()
    status = sweep.wait(added.selection, timeout=30)
    assert status.counts == {"FAILED": 1}
    assert "SIGKILL" in status.errors[0][0]
    wait_for(lambda: not launched.running())


def test_kill_9_of_the_worker_and_of_all_it_started(home, trivial):
    sweep = Sweep("trivial")
    sweep.add(trivial(4, seconds=1.0))
    first = sweep.start(Plan(slots=2))
    (worker,) = wait_for(lambda: workers(sweep))
    wait_for(lambda: sweep.status().counts.get("RUNNING"))
    process = psutil.Process(worker["place"]["pid"])
    tree = process.children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    print(sweep.status().counts, [(d["_id"], d["assay"]) for d in sweep.store.find("trivial")])
    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in tree), 20)
    wait_for(lambda: not first.running())
    assert "RUNNING" not in sweep.status().counts  # taken back at once: the process is gone
    sweep.start(Plan(slots=2))
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 4}
    attempts = [d["assay"]["attempt"] for d in sweep.store.find("trivial")]
    assert sorted(attempts)[-1] == 2


def test_sigterm_hands_work_back(home, trivial):
    sweep = Sweep("trivial")
    sweep.add(trivial(2, seconds=30))
    launched = sweep.start(Plan(slots=1))
    (worker,) = wait_for(lambda: workers(sweep))
    wait_for(lambda: sweep.status().counts.get("RUNNING"))
    os.kill(worker["place"]["pid"], signal.SIGTERM)
    wait_for(lambda: not launched.running())
    assert sweep.status().counts == {"PENDING": 2}
    assert sweep.store.find_one(liveness.WORKERS, {"_id": worker["_id"]})["state"] == "ended"


def test_cancel_reaches_a_running_experiment(home, trivial, assay):
    sweep = Sweep("trivial")
    sweep.add(trivial(2, seconds=60))
    launched = sweep.start(Plan(slots=1))
    wait_for(lambda: sweep.status().counts.get("RUNNING"))
    assert "2 experiments cancelled" in assay("cancel", "trivial").stdout
    wait_for(lambda: not launched.running(), 30)  # nothing left to do: the worker ends
    assert sweep.status().counts == {"INTERRUPTED": 2}


def test_what_an_experiment_leaves_running_is_ended(home, trivial, tmp_path):
    script = tmp_path / "leaves.py"
    script.write_text(
        "import subprocess\nfrom sacred import Experiment\n"
        "ex = Experiment('leaves', save_git_info=False)\nex.add_config(n=0)\n"
        "@ex.main\ndef main(n):\n    return subprocess.Popen(['sleep', '600']).pid\n"
    )
    file = tmp_path / "leaves.yaml"
    file.write_text("seml: {executable: leaves.py, project_root_dir: .}\nfixed: {n: 1}\n")
    sweep = Sweep("leaves")
    sweep.add(file)
    sweep.start(Plan(slots=1))
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 1}
    pid = sweep.store.find_one("leaves", {"_id": 1})["result"]
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", 10)


def test_two_who_add_the_same_file_at_once_add_it_once(home, trivial):
    file = trivial(40)
    command = [sys.executable, "-m", "orchestrator.cli", "add", str(file)]
    for process in [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]:
        assert process.wait() == 0
    sweep = Sweep("trivial")
    assert sweep.status().counts == {"STAGED": 40}
    assert len({d["config"]["number"] for d in sweep.store.find("trivial")}) == 40


def test_start_returns_at_once_also_to_who_reads_its_output(assay, trivial, home):
    """A pipe ends when nobody holds it: not even the workers."""
    assay("add", trivial(1, seconds=20))
    began = time.monotonic()
    assay("start", "trivial")
    assert time.monotonic() - began < 15
    sweep = Sweep("trivial")
    wait_for(lambda: sweep.status().counts == {"RUNNING": 1})
    assay("cancel", "trivial")


def test_debug_runs_in_the_very_process_and_prints_on_the_terminal(assay, trivial):
    answer = assay("run", trivial(2), "--executor", "debug")
    assert "number 0" in answer.stdout
    assert "COMPLETED" in answer.stdout
    pids = {d["result"]["pid"] for d in Sweep("trivial").store.find("trivial")}
    assert len(pids) == 1
    broken = assay("run", trivial(1, "broken", fate="raise"), "--executor", "debug", check=False)
    assert "ValueError: number 0 is not to my liking" in broken.stdout


def test_the_python_interface_does_what_the_command_does(home, trivial):
    sweep = orchestrator.add(trivial(3))
    sweep.start(orchestrator.Plan(slots=1))
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 3}
    assert sweep.reset({"_id": 1}) == 1
    assert sweep.cancel({"_id": 1}) == 1
    assert sweep.retry({"_id": 1}) == 1
    assert sweep.delete() == 3
    assert sweep.replay() == []


# ---- the real study ------------------------------------------------------------------------------


def table_of(sweep):
    frame = sweep.scores(samples=True).drop(columns=["experiment"])
    frame["samples"] = frame["samples"].map(lambda s: None if s is None else tuple(s))
    by = ["dataset", "model", "method", "score", "class", "threshold"]
    return frame.sort_values(by, na_position="first").reset_index(drop=True)


def test_adding_a_method_computes_only_that_method(assay, tiny_andor, home):
    assay("run", tiny_andor)
    sweep = Sweep("tiny")
    before = table_of(sweep)
    text = tiny_andor.read_text()
    tiny_andor.write_text(text.replace("random]", "random, constant]"))
    assay("run", tiny_andor)
    newest = sweep.store.find("tiny", {"batch_id": 2})
    assert len(newest) == 4
    for document in newest:
        stages = document["info"]["stages"]
        assert stages["attributed"]["computed"] == 1
        assert stages["trained"]["computed"] == stages["dataset"]["computed"] == 0
    after = table_of(sweep)
    old = after[after["method"] != "constant"].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, before)


def test_two_runs_from_empty_stores_give_identical_tables(assay, tiny_andor, tmp_path, monkeypatch):
    tables = []
    for home, slots in (("one", 1), ("two", 2)):
        monkeypatch.setenv("ASSAY_HOME", str(tmp_path / home))
        assay("run", tiny_andor, "--slots", slots)
        tables.append(table_of(Sweep("tiny")))
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)


def test_kill_9_in_the_middle_and_a_rerun_give_the_same_table(
    assay, tiny_andor, tmp_path, monkeypatch
):
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "calm"))
    assay("run", tiny_andor)
    calm = table_of(Sweep("tiny"))

    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "storm"))
    sweep = Sweep("tiny")
    sweep.add(tiny_andor)
    sweep.start(Plan(slots=2))
    (worker,) = wait_for(lambda: workers(sweep))
    wait_for(lambda: sweep.status().counts.get("RUNNING"))
    os.kill(worker["place"]["pid"], signal.SIGKILL)
    assay("run", tiny_andor)
    assert sweep.status().counts == {"COMPLETED": 4}
    pd.testing.assert_frame_equal(table_of(sweep), calm, check_exact=True)


def test_the_report_is_one_file_without_a_network(assay, tiny_andor, tmp_path):
    assay("run", tiny_andor, "--report")
    page = (tmp_path / "assay-report" / "tiny" / "report.html").read_text()
    assert "integrated_gradients" in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert len(list((tmp_path / "assay-report" / "tiny").glob("*.png"))) == 2


def test_exports_hold_every_number(assay, tiny_andor, tmp_path):
    assay("run", tiny_andor)
    assay("results", "tiny", "--csv", "all.csv", "--parquet", "all.parquet")
    csv, parquet = pd.read_csv("all.csv"), pd.read_parquet("all.parquet")
    assert len(csv) == len(parquet) == len(Sweep("tiny").scores())
    assert {"study", "dataset", "model", "seed", "method", "score", "value", "map_key"} <= set(csv)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["status", "nothing"], "no sweep 'nothing'"),
        (["status"], "has no sweep yet"),
        (["run", "{file}", "--executor", "cloud"], "one of local, slurm, debug"),
        (["run", "{file}", "--partition", "gpu"], "--partition is for --executor slurm"),
        (["run", "{file}", "--db", "redis://x"], "is not a store"),
        (["status", "--db", "mongodb://127.0.0.1:1/x"], "127.0.0.1:1"),
    ],
)
def test_mistakes_are_one_line(assay, trivial, words, message):
    file = trivial(1)
    answer = assay(*(word.replace("{file}", str(file)) for word in words), check=False)
    assert answer.returncode == 1
    assert message in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [["bogus"], ["run"], ["logs", "x"], ["status", "--bogus"]])
def test_wrong_usage_gets_a_hint_and_no_traceback(assay, words):
    answer = assay(*words, check=False)
    assert answer.returncode == 2
    assert "Usage" in answer.stderr


def test_doctor_and_lists(assay):
    assert "database" in assay("doctor").stdout
    assert "integrated_gradients" in assay("methods").stdout
    assert "nib" in assay("scores").stdout
    assert "andor" in assay("studies").stdout


def test_the_cache_can_be_listed_checked_and_emptied(assay, tiny_andor, home):
    assay("run", tiny_andor)
    assert "attributed" in assay("cache", "list").stdout
    assert "0 are broken" in assay("cache", "verify").stdout
    victim = next((home / "artifacts" / "attributed").rglob("*.assay"))
    victim.write_bytes(victim.read_bytes()[:-5])
    assert "1 are broken" in assay("cache", "verify", check=False).stdout
    assay("cache", "prune", "--days", 0, "--yes")
    assert list((home / "artifacts").rglob("*.assay")) == []


def test_sigterm_in_a_long_training_saves_a_checkpoint_that_is_gone_on_with(
    home, tmp_path, monkeypatch
):
    monkeypatch.setenv("ASSAY_CHECKPOINT_SECONDS", "0")
    long = tmp_path / "long.yaml"
    long.write_text(
        f"seml: {{executable: experiments/studies/andor.py, project_root_dir: {ROOT}}}\n"
        "fixed: {model.name: andor_transformer, training.epochs: 400, training.patience: 400,\n"
        "        training.stop_at_loss: null, methods: [random], scores: [nib]}\n"
    )
    sweep = Sweep("long")
    sweep.add(long)
    launched = sweep.start(Plan(slots=1))
    (worker,) = wait_for(lambda: workers(sweep))
    wait_for(lambda: list((home / "artifacts").rglob("*.checkpoint")))
    os.kill(worker["place"]["pid"], signal.SIGTERM)
    wait_for(lambda: not launched.running())
    assert sweep.status().counts == {"PENDING": 1}
    assert list((home / "artifacts").rglob("*.checkpoint"))
    sweep.start(Plan(slots=1))
    assert sweep.wait(timeout=200).counts == {"COMPLETED": 1}
    document = sweep.store.find_one("long", {"_id": 1})
    assert document["assay"]["attempt"] == 2
    assert document["result"]["model"]["epochs"] == 400
    assert list((home / "artifacts").rglob("*.checkpoint")) == []


def test_ctrl_c_hands_work_back_and_says_so(home, trivial):
    file = trivial(4, seconds=30)
    run = [sys.executable, "-m", "orchestrator.cli", "run", str(file), "--slots", "1"]
    process = subprocess.Popen(
        run,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    sweep = Sweep("trivial")
    wait_for(lambda: sweep.status().counts.get("RUNNING"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing is lost, the same command goes on where it stopped" in said
    assert "Traceback" not in said
    assert sweep.status().counts == {"PENDING": 4}
    assert workers(sweep) == []


def test_while_one_computes_a_shared_stage_the_others_do_other_work(home, tmp_path):
    (tmp_path / "shared.py").write_text(
        "import time\nfrom sacred import Experiment\nfrom experiments.stages import stage\n"
        "ex = Experiment('shared', save_git_info=False)\nex.add_config(n=0, slow=False)\n"
        "@stage(version='1')\ndef slow_stage(*, of: int) -> float:\n"
        "    time.sleep(4)\n    return time.time()\n"
        "@ex.main\ndef main(n, slow):\n"
        "    if slow:\n        return {'made': slow_stage(of=1).value}\n"
        "    time.sleep(0.2)\n    return {'ended': time.time()}\n"
    )
    file = tmp_path / "shared.yaml"
    file.write_text(
        "seml: {executable: shared.py, project_root_dir: .}\nfixed: {seed: 0}\n"
        "first: {fixed: {slow: true}, grid: {n: {type: choice, options: [1, 2, 3]}}}\n"
        "then: {fixed: {slow: false}, grid: {n: {type: choice, options: [4, 5, 6, 7]}}}\n"
    )
    sweep = Sweep("shared")
    sweep.add(file)
    sweep.start(Plan(slots=2))
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 7}
    results = [d["result"] for d in sweep.store.find("shared")]
    made = {r["made"] for r in results if "made" in r}
    assert len(made) == 1  # computed once
    assert all(r["ended"] < next(iter(made)) for r in results if "ended" in r)
