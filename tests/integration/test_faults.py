"""Everything that can break, broken on purpose: real processes, a real Slurm, a real server.

Each test is a row of the table in the README: no lost result, no double result, a status that
tells the truth, a message that says what to do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import servers
from slurm_testbed import TESTBED, command, eventually, needs_slurm
from test_local import wait_for, workers

from orchestrator.launch import Plan
from orchestrator.sweep import Sweep

FIXTURES = Path(__file__).parents[1] / "fixtures"


def script(tmp_path: Path, body: str, name: str = "fault") -> Path:
    """A sweep of one experiment with this body of `main(n)`."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (tmp_path / f"{name}.py").write_text(
        "import os, sys, time\nfrom sacred import Experiment\n"
        f"ex = Experiment({name!r}, save_git_info=False)\nex.add_config(n=0)\n"
        f"@ex.main\ndef main(n):\n{lines}"
    )
    file = tmp_path / f"{name}.yaml"
    file.write_text(f"seml: {{executable: {name}.py, project_root_dir: .}}\nfixed: {{n: 1}}\n")
    return file


def exactly_once(sweep: Sweep, count: int) -> None:
    documents = sweep.store.find(sweep.name)
    assert Counter(d["status"] for d in documents) == {"COMPLETED": count}
    assert sorted(d["result"]["value"] for d in documents) == [2 * n for n in range(count)]


# ---- in a process --------------------------------------------------------------------------------


def test_a_study_that_hangs_is_ended_at_its_limit(assay, tmp_path):
    file = script(tmp_path, "print('on my way')\nwhile True: time.sleep(1)")
    answer = assay("run", file, "--time-limit", 2, check=False)
    assert "ran longer than its limit of 2 s (--time-limit)" in answer.stdout
    assert "on my way" in assay("logs", 1).stdout


def test_a_study_that_prints_megabytes(assay, tmp_path):
    file = script(tmp_path, "for k in range(200_000): print('line', k, 'x' * 40)\nreturn 1")
    assay("run", file)
    document = Sweep("fault").store.find_one("fault", {"_id": 1})
    assert document["status"] == "COMPLETED"
    assert len(document["captured_out"]) < 100_000
    assert "bytes left out" in document["captured_out"]
    assert "line 199999" in document["captured_out"]
    whole = assay("logs", 1).stdout
    assert "line 0 " in whole
    assert "line 199999 " in whole


def test_a_child_out_of_memory(assay, tmp_path):
    body = (
        "import resource\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))\n"
        "blocks = [bytearray(2**24) for _ in range(100)]"
    )
    answer = assay("run", script(tmp_path, body), check=False)
    assert "1 × MemoryError" in answer.stdout


def test_a_child_that_the_kernel_kills_for_memory(assay, tmp_path):
    body = "os.kill(os.getpid(), 9)  # what the kernel does"
    answer = assay("run", script(tmp_path, body), check=False)
    assert "killed by SIGKILL (often: out of memory; use fewer --slots, or more --mem)" in (
        answer.stdout.replace("\n", " ")
    )


def test_a_full_disk_under_the_artifacts(home, tiny_andor, tmp_path, monkeypatch, assay):
    small = tmp_path / "small"
    small.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small)
    try:
        monkeypatch.setenv("ASSAY_ARTIFACTS", str(small))
        assay("run", tiny_andor)
        sweep = Sweep("tiny")
        assert sweep.status().counts == {"COMPLETED": 4}
        assert "No space left on device (check the disk, or set ASSAY_HOME)" in sweep.logs(1)
    finally:
        command("umount", small)


def test_a_home_that_cannot_be_written(home, trivial, assay):
    sweep = Sweep("trivial")
    sweep.add(trivial(1))
    (home / "spool").write_text("not a directory")
    answer = assay("run", trivial(1), check=False)
    assert answer.returncode == 1
    assert f"cannot write to {home}" in answer.stderr
    assert sweep.status().counts == {"PENDING": 1}
    (home / "spool").unlink()
    assay("run", trivial(1))
    exactly_once(sweep, 1)


def test_two_who_start_the_same_sweep_at_once(home, trivial):
    file = trivial(30, seconds=0.1)
    run = [
        sys.executable,
        "-m",
        "orchestrator.cli",
        "run",
        str(file),
        "--no-report",
        "--slots",
        "1",
    ]
    for process in [subprocess.Popen(run, stdout=subprocess.DEVNULL) for _ in range(2)]:
        assert process.wait(120) == 0
    sweep = Sweep("trivial")
    exactly_once(sweep, 30)
    assert {d["assay"]["attempt"] for d in sweep.store.find("trivial")} == {1}


def test_all_workers_killed_at_once(home, trivial):
    sweep = Sweep("trivial")
    sweep.add(trivial(12, seconds=0.5))
    launched = sweep.start(Plan(workers=2, slots=2))
    wait_for(lambda: len(workers(sweep)) == 2)
    wait_for(lambda: sweep.status().counts.get("COMPLETED", 0) >= 2)
    for worker in workers(sweep):
        os.kill(worker["place"]["pid"], signal.SIGKILL)
    wait_for(lambda: not launched.running())
    assert "RUNNING" not in sweep.status().counts
    sweep.start(Plan(workers=2, slots=2))
    sweep.wait(timeout=60)
    exactly_once(sweep, 12)


# ---- the database --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in servers.available() if k != "uri"])
def test_the_database_is_away_for_a_minute(home, trivial, tmp_path, monkeypatch, kind):
    """Results that were finished meanwhile wait on the disk and arrive, once."""
    folder = tmp_path / "server" / "data"
    folder.mkdir(parents=True)
    with servers.stoppable(kind, folder) as server:
        monkeypatch.setenv("ASSAY_MONGODB_URI", server.uri("assay_test_away"))
        sweep = Sweep("trivial")
        sweep.add(trivial(6, seconds=4))
        sweep.start(Plan(slots=2))
        wait_for(lambda: sweep.status().counts.get("RUNNING") == 2)
        server.kill()
        time.sleep(60)
        spooled = list((home / "spool" / "trivial").glob("*/final.bson"))
        assert spooled, "what was running had the time to finish, and must be on the disk"
        server.start()
        eventually(lambda: sweep.status().counts == {"COMPLETED": 6}, 120, "all results")
        exactly_once(sweep, 6)
        assert {d["assay"]["attempt"] for d in sweep.store.find("trivial")} == {1}


def test_results_of_a_dead_worker_are_replayed(home, trivial, assay):
    """The worker dies between the end of the experiment and the store."""
    sweep = Sweep("trivial")
    sweep.add(trivial(1, seconds=2))
    launched = sweep.start(Plan(slots=1))
    (worker,) = wait_for(lambda: workers(sweep))
    wait_for(lambda: "number 0" in sweep.logs(1))
    # Stopped, it cannot ship; its child goes on, and finishes.
    os.kill(worker["place"]["pid"], signal.SIGSTOP)
    wait_for(lambda: list((home / "spool" / "trivial").glob("*/final.bson")))
    os.kill(worker["place"]["pid"], signal.SIGKILL)
    wait_for(lambda: not launched.running())
    assert "1 results shipped" in assay("db", "replay", "-s", "trivial").stdout
    exactly_once(sweep, 1)
    assert sweep.store.find_one("trivial", {"_id": 1})["assay"]["attempt"] == 1


# ---- Slurm ---------------------------------------------------------------------------------------


def daemons(name: str, *words: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["name"] == name and all(word in line for word in words):
            found.append(process)
    return found


@pytest.fixture
def breakable_bed():
    """Slurm as it was, for the tests after this one."""
    yield
    command(TESTBED, "down")
    command(TESTBED, "up")


@pytest.mark.slurm
@pytest.mark.slow
@needs_slurm
def test_the_controller_of_slurm_is_killed_and_comes_back(home, trivial, breakable_bed):
    sweep = Sweep("trivial")
    sweep.add(trivial(10, seconds=1))
    sweep.start(Plan("slurm"))
    wait_for(lambda: sweep.status().counts.get("COMPLETED"))
    for process in daemons("slurmctld"):
        process.kill()
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 10}
    exactly_once(sweep, 10)


@pytest.mark.slurm
@pytest.mark.slow
@needs_slurm
def test_a_node_fails_while_its_old_processes_go_on(home, trivial, breakable_bed):
    """kill -9 of slurmd and its step daemons: Slurm starts the job again beside the old one."""
    sweep = Sweep("trivial")
    sweep.add(trivial(8, seconds=8))
    launched = sweep.start(Plan("slurm"))
    (first,) = wait_for(lambda: workers(sweep))
    wait_for(lambda: sweep.status().counts.get("RUNNING"))
    job = launched.ids[0]
    node = command("squeue", "-h", "-o", "%N", "-j", job).strip()
    for process in [*daemons("slurmd", node), *daemons("slurmstepd", job.split("_")[0])]:
        process.kill()
    assert psutil.pid_exists(first["place"]["pid"])  # the orphan goes on
    sweep.wait(timeout=200)
    exactly_once(sweep, 8)


@pytest.mark.slurm
@pytest.mark.slow
@needs_slurm
def test_slurms_time_limit(home, trivial):
    """The worker is told before the limit, hands back what it has, and the next job goes on."""
    sweep = Sweep("trivial")
    sweep.add(trivial(6, seconds=12))
    launched = sweep.start(Plan("slurm", slurm={"time": 1}))
    wait_for(lambda: workers(sweep))
    eventually(lambda: not launched.running(), 120, "the job has ended")
    counts = sweep.status().counts
    assert counts.get("COMPLETED", 0) < 6
    assert set(counts) <= {"COMPLETED", "PENDING"}
    sweep.start(Plan(slots=6))
    sweep.wait(timeout=60)
    exactly_once(sweep, 6)


def test_status_tells_the_truth_within_a_minute_of_a_death(home, trivial, assay):
    sweep = Sweep("trivial")
    sweep.add(trivial(1, seconds=60))
    sweep.start(Plan(slots=1))
    (worker,) = wait_for(lambda: workers(sweep))
    wait_for(lambda: sweep.status().counts.get("RUNNING"))
    os.kill(worker["place"]["pid"], signal.SIGKILL)
    began = time.monotonic()
    wait_for(lambda: "RUNNING" not in assay("status", "trivial").stdout, 60)
    assert time.monotonic() - began < 60
