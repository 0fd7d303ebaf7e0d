"""The code that runs is the code that was added."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from orchestrator import sources
from orchestrator.launch import Plan
from orchestrator.sweep import Sweep

SCRIPT = """
import helper
from sacred import Experiment
ex = Experiment("versioned", save_git_info=False)
ex.add_config(n=0)
@ex.main
def main(n):
    import late
    return {"helper": helper.VALUE, "late": late.VALUE, "data": open("data.txt").read()}
"""


@pytest.fixture
def project(tmp_path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "versioned.py").write_text(SCRIPT)
    (folder / "helper.py").write_text("VALUE = 'first'\n")
    (folder / "late.py").write_text("VALUE = 'first'\n")
    (folder / "data.txt").write_text("data are not code")
    (folder / "sweep.yaml").write_text(
        "seml: {executable: versioned.py, project_root_dir: .}\n"
        "grid: {n: {type: choice, options: [1, 2]}}\n"
    )
    return folder


def change(project: Path) -> None:
    (project / "helper.py").write_text("VALUE = 'second'\n")
    (project / "late.py").write_text("VALUE = 'second'\n")


def test_a_change_after_adding_does_not_reach_the_experiments(home, project, assay):
    sweep = Sweep("sweep")
    sweep.add(project / "sweep.yaml")
    assert "have changed" not in assay("status", "sweep").stdout
    change(project)
    assert "have changed since experiment 1 was added" in assay(
        "status", "sweep", COLUMNS="400"
    ).stdout.replace("\n", " ")
    sweep.start(Plan(slots=1))
    assert sweep.wait(timeout=60).counts == {"COMPLETED": 2}
    for document in sweep.store.find("sweep"):
        assert document["result"] == {
            "helper": "first", "late": "first", "data": "data are not code",
        }  # fmt: skip


def test_a_change_of_our_own_studies_does_not_reach_what_was_added(
    home, tmp_path, assay, monkeypatch
):
    """The command is typed in the clone whose code changes: Python looks there first."""
    clone, root = tmp_path / "clone", Path(__file__).parents[2]
    for package in ("experiments", "orchestrator", "analysis"):
        shutil.copytree(root / package, clone / package, ignore=shutil.ignore_patterns("__pyc*"))
    (clone / "tiny.yaml").write_text(
        "seml: {executable: experiments/studies/andor.py, project_root_dir: .}\n"
        "fixed: {training.epochs: 1, methods: [constant], scores: [nib]}\n"
    )
    monkeypatch.chdir(clone)
    assay("add", "tiny.yaml")
    with (clone / "experiments/training/loop.py").open("a") as file:
        file.write("raise RuntimeError('changed')\n")
    assay("start")
    assert Sweep("tiny").wait(timeout=120).counts == {"COMPLETED": 1}


def test_one_worker_serves_two_states_of_the_code(home, project):
    sweep = Sweep("sweep")
    sweep.add(project / "sweep.yaml")
    change(project)
    text = (project / "sweep.yaml").read_text()
    (project / "sweep.yaml").write_text(text.replace("[1, 2]", "[3, 4]"))
    sweep.add(project / "sweep.yaml")
    sweep.start(Plan(slots=2))
    assert sweep.wait(timeout=90).counts == {"COMPLETED": 4}
    found = [d["result"]["helper"] for d in sweep.store.find("sweep")]
    assert found == ["first", "first", "second", "second"]
    assert len(sweep.store.blob_keys("sweep/sources/")) == 2


def test_sources_are_stored_once_per_state(home, project):
    sweep = Sweep("sweep")
    sweep.add(project / "sweep.yaml")
    sweep.add(project / "sweep.yaml")
    (key,) = sweep.store.blob_keys("sweep/sources/")
    with tarfile.open(fileobj=io.BytesIO(sweep.store.get_blob(key))) as archive:
        assert archive.getnames() == ["helper.py", "late.py", "sweep.yaml", "versioned.py"]


def test_equal_trees_have_equal_digests_and_archives(tmp_path, project):
    shutil.copytree(project, tmp_path / "copy")
    one, two = sources.take(project), sources.take(tmp_path / "copy")
    assert one.digest == two.digest
    assert one.pack() == two.pack()
    change(project)
    assert sources.take(project).digest != two.digest


def test_a_project_without_a_root_is_left_alone(home, project):
    (project / "sweep.yaml").write_text("seml: {executable: versioned.py}\nfixed: {n: 1}\n")
    sweep = Sweep("sweep")
    sweep.add(project / "sweep.yaml")
    assert sweep.store.blob_keys("sweep/sources/") == []
    change(project)
    sweep.start(Plan(slots=1))
    sweep.wait(timeout=60)
    assert sweep.store.find_one("sweep", {"_id": 1})["result"]["helper"] == "second"
