"""What `assay add --dry-run` says of the cost of a sweep."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from experiments.artifacts import ArtifactStore
from experiments.stages import Runtime, using
from experiments.studies import andor
from orchestrator import grid
from orchestrator.cli import app
from orchestrator.estimate import estimate

TEXT = """
seml: {executable: experiments/studies/andor.py, project_root_dir: %s}
fixed:
  training: {epochs: 2}
  methods: [gradient, random]
  scores: [nib]
grid:
  seed: {type: choice, options: [0, 1]}
  target: {type: choice, options: [predicted, "true"]}
"""


@pytest.fixture
def sweep(tmp_path, request):
    path = tmp_path / "sweep.yaml"
    path.write_text(TEXT % request.config.rootpath)
    return path


def test_unique_stages_what_is_there_and_what_is_left(sweep, tmp_path):
    read = grid.read(sweep)
    artifacts = ArtifactStore(tmp_path / "artifacts")
    before = estimate(read, artifacts)
    # 4 experiments share 1 data set and 2 models; each has its own 2 maps.
    assert {c.stage: (c.unique, c.found) for c in before.stages} == {
        "dataset": (1, 0), "trained": (2, 0), "attributed": (8, 0),
    }  # fmt: skip
    assert before.asked == 4 * (1 + 1 + 2)
    assert before.remaining is None  # nothing was ever run
    assert before.complete
    assert not artifacts.root.exists()  # and a plan runs nothing

    config = andor.Config.model_validate(read.documents[0]["config"])
    with using(Runtime(artifacts)):
        andor.study(config)
    after = estimate(read, artifacts)
    assert {c.stage: (c.unique, c.found) for c in after.stages} == {
        "dataset": (1, 1), "trained": (2, 1), "attributed": (8, 2),
    }  # fmt: skip
    seconds = {
        (e.stage, *[v["name"] for v in e.header["parameters"].values() if isinstance(v, dict)
                    and "name" in v]): e.header["seconds"]
        for e in artifacts.entries()
    }  # fmt: skip
    expected = seconds["trained", "andor_cnn"] + 3 * (
        seconds["attributed", "gradient"] + seconds["attributed", "random"]
    )
    assert after.remaining == pytest.approx(expected)


def test_the_command_prints_it_and_says_what_it_cannot_know(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "120")
    shown = CliRunner().invoke(app, ["add", str(sweep), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "4 experiments" in shown.output
    assert "16 results asked for, 11 of them different" in shown.output
    assert "no estimate of time" in shown.output
    script = tmp_path / "script.py"
    script.write_text(
        "from seml import Experiment\nex = Experiment()\n\n\n@ex.automain\ndef main(): ...\n"
    )
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps({"seml": {"executable": "script.py"}, "fixed": {"seed": 1}}))
    shown = CliRunner().invoke(app, ["add", str(other), "--dry-run"])
    assert "no estimate" in shown.output
