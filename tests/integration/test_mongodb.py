"""A sweep in a MongoDB-protocol server, and what SEML sees of it."""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pandas as pd
import pymongo
import pytest
import yaml
from slurm_testbed import eventually, needs_slurm
from test_local import table_of

from orchestrator.store import open_store
from orchestrator.sweep import Sweep


@pytest.fixture
def mongodb(mongo_url, monkeypatch) -> str:
    """The URI of an empty database that Assay uses by default."""
    monkeypatch.setenv("ASSAY_MONGODB_URI", mongo_url)
    return mongo_url


@pytest.fixture
def seml(mongodb, tmp_path, monkeypatch):
    """Runs `seml`, pointed at the same database. SEML logs in at the database itself."""
    parts = urlsplit(mongodb)
    database = parts.path.strip("/")
    with pymongo.MongoClient(mongodb) as client:
        client[database].command(
            "createUser", parts.username, pwd=unquote(parts.password), roles=["readWrite"]
        )
    folder = tmp_path / "config" / "seml"
    folder.mkdir(parents=True)
    settings = {
        "username": parts.username,
        "password": unquote(parts.password),
        "host": parts.hostname,
        "port": parts.port,
        "database": database,
    }
    (folder / "mongodb.config").write_text(yaml.safe_dump(settings))

    def call(*words: str) -> str:
        answer = subprocess.run(
            [sys.executable, "-m", "seml", *words], capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
        return answer.stdout + answer.stderr

    return call


def test_same_numbers_as_in_the_embedded_store(assay, tiny_andor, mongo_url, monkeypatch, tmp_path):
    assay("run", tiny_andor)
    embedded = table_of(Sweep("tiny"))
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("ASSAY_MONGODB_URI", mongo_url)
    assay("run", tiny_andor)
    assert Sweep("tiny").store.kind == "mongodb"
    pd.testing.assert_frame_equal(table_of(Sweep("tiny")), embedded, check_exact=True)


def test_seml_prints_our_sweep_and_returns_its_results(assay, trivial, seml):
    assay("run", trivial(3))
    assay("add", trivial(5))
    status = seml("trivial", "status")
    lines = {
        line.split()[0]: line.split()[1:3]
        for line in status.splitlines()
        if "TED" in line or "GED" in line
    }
    assert lines["COMPLETED"] == ["3", "1-3"]
    assert lines["STAGED"][0] == "2"
    code = (
        "import seml, json, os; r = seml.get_results('trivial', progress=False)\n"
        "print(json.dumps([d['result']['value'] for d in r]), flush=True); os._exit(0)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == "[0, 2, 4]"


def test_seml_and_assay_give_a_configuration_the_same_hash(assay, trivial, seml):
    file = trivial(3)
    seml("theirs", "add", str(file))
    assay("add", file, "-s", "ours")
    hashes = [
        sorted(d["config_hash"] for d in Sweep(name).store.find(name))
        for name in ("theirs", "ours")
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.slurm
@needs_slurm
def test_seml_sees_running_experiments_of_our_slurm_workers(assay, trivial, seml):
    sweep = Sweep("trivial")
    sweep.add(trivial(2, seconds=8))
    assay("start", "trivial", "--executor", "slurm", "--workers", 2)
    while not sweep.status().counts.get("RUNNING"):
        pass
    assert "RUNNING" in seml("trivial", "status")  # asks Slurm for each; marks lost ones KILLED
    assert sweep.wait(timeout=120).counts == {"COMPLETED": 2}


def test_push_and_pull_bring_a_sweep_there_and_back(assay, tiny_andor, mongo_url, tmp_path, home):
    assay("run", tiny_andor)
    before = table_of(Sweep("tiny"))
    assay("db", "push", mongo_url, "-s", "tiny")
    pushed = Sweep("tiny", mongo_url)
    pd.testing.assert_frame_equal(table_of(pushed), before, check_exact=True)
    other = f"sqlite://{tmp_path}/other/back.sqlite"
    assay("db", "pull", mongo_url, "-s", "tiny", "--db", other)
    pd.testing.assert_frame_equal(table_of(Sweep("tiny", other)), before, check_exact=True)
    assert open_store(other).find("tiny") == Sweep("tiny").store.find("tiny")


def test_backup_restore_check(assay, trivial, tmp_path):
    assay("run", trivial(2))
    assay("db", "backup", tmp_path / "backup.sqlite")
    other = f"sqlite://{tmp_path}/other/new.sqlite"
    assay("db", "restore", tmp_path / "backup.sqlite", "--db", other)
    assert "2 COMPLETED" in assay("db", "status", "--db", other).stdout
    assert "0 problems" in assay("db", "check", "--db", other).stdout


def test_no_password_is_printed_or_written(assay, trivial, mongodb, home):
    password = unquote(urlsplit(mongodb).password)
    answers = [assay("run", trivial(1)), assay("db", "status"), assay("status"), assay("doctor")]
    for answer in answers:
        assert password not in answer.stdout + answer.stderr
    assert password not in repr(Sweep("trivial").store.find("trivial"))
    holders = [p for p in home.rglob("*") if p.is_file() and password.encode() in p.read_bytes()]
    assert all(p.suffix == ".url" and p.stat().st_mode & 0o077 == 0 for p in holders)


def test_assay_runs_a_sweep_that_seml_added_with_the_sources_that_seml_uploaded(
    assay, seml, tmp_path
):
    project = tmp_path / "project"
    project.mkdir()
    (project / "helper.py").write_text("VALUE = 'when it was added'\n")
    (project / "script.py").write_text(
        "import helper\nfrom seml import Experiment\nex = Experiment()\n"
        "@ex.config\ndef config():\n    number = 0\n"
        "@ex.main\ndef main(number):\n    return {'value': 2 * number, 'code': helper.VALUE}\n"
    )
    (project / "sweep.yaml").write_text(
        "seml: {executable: script.py, project_root_dir: .}\n"
        "grid: {number: {type: choice, options: [1, 2, 3]}}\n"
    )
    seml("theirs", "add", str(project / "sweep.yaml"))
    (project / "helper.py").write_text("VALUE = 'later'\n")
    assert "3 STAGED" in assay("db", "status").stdout
    assay("start", "theirs")
    sweep = Sweep("theirs")
    assert sweep.wait(timeout=90).counts == {"COMPLETED": 3}
    assert [d["result"]["value"] for d in sweep.store.find("theirs")] == [2, 4, 6]
    assert {d["result"]["code"] for d in sweep.store.find("theirs")} == {"when it was added"}
    assert "COMPLETED" in seml("theirs", "status")


def test_seml_cancels_resets_and_deletes_what_assay_added(assay, trivial, seml):
    assay("add", trivial(4))
    sweep = Sweep("trivial")
    sweep.queue.submit()
    seml("trivial", "cancel", "--yes")
    assert sweep.status().counts == {"INTERRUPTED": 4}
    seml("trivial", "reset", "--yes", "-s", "INTERRUPTED")
    assert sweep.status().counts == {"STAGED": 4}
    assay("start", "trivial")
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 4}
    assert [d["result"]["value"] for d in sweep.store.find("trivial")] == [0, 2, 4, 6]
    seml("trivial", "reset", "--yes", "-s", "COMPLETED")
    assert "result" not in sweep.store.find_one("trivial", {"_id": 1})
    assert "4 of them known already" in assay("add", trivial(4)).stdout
    seml("trivial", "delete", "--yes", "-s", "STAGED")
    assert sweep.store.find("trivial") == []


@pytest.mark.slurm
@needs_slurm
def test_seml_cancels_a_running_experiment_of_our_slurm_worker(assay, trivial, seml):
    sweep = Sweep("trivial")
    sweep.add(trivial(2, seconds=60))
    assay("start", "trivial", "--executor", "slurm")
    eventually(lambda: sweep.status().counts.get("RUNNING"), 60)
    seml("trivial", "cancel", "--yes")
    assert sweep.status().counts == {"INTERRUPTED": 2}
    eventually(lambda: not sweep.queue.watch.living("trivial"), 60, "the worker has ended")
    assert sweep.status().counts == {"INTERRUPTED": 2}
