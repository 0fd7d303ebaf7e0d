"""`assay run` and `assay add`: other values than the file has, and only a part of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator import cli, grid, liveness
from orchestrator.launch import Launch, Plan
from orchestrator.sweep import Sweep, _Keeper

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
STUDY = """
seml: {{executable: experiments/studies/andor.py, project_root_dir: {root}}}
fixed: {{folds: 2, training: {{epochs: 3}}}}
grid: {{seed: {{type: choice, options: [1, 2]}}}}
random: {{samples: 2, seed: 0, training.learning_rate: {{type: uniform, min: 0.1, max: 0.2}}}}
cnn:
  fixed: {{model.name: andor_cnn, folds: 5}}
  grid: {{model.skip: {{type: choice, options: [true, false]}}}}
transformer: {{fixed: {{model.name: andor_transformer}}}}
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(root=ROOT))
    return path


@pytest.fixture
def trivial(tmp_path) -> Path:
    path = tmp_path / "trivial.yaml"
    path.write_text(
        f"seml: {{executable: trivial.py, project_root_dir: {FIXTURES}}}\n"
        "fixed: {seed: 0}\ngrid: {number: {type: range, min: 0, max: 4, step: 1}}\n"
    )
    return path


@pytest.fixture
def assay(tmp_path, monkeypatch):
    """Runs the command in this process, in an empty home."""
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ASSAY_MONGODB_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"COLUMNS": "140"})

    def call(*words: object) -> str:
        return runner.invoke(cli.app, [*map(str, words)], catch_exceptions=False).output

    return call


def configs(file: Path, *words: str) -> list[dict]:
    return [d["config"] for d in grid.read(file, grid.parse_settings(words)).documents]


def test_a_setting_wins_over_fixed_grid_and_random_of_every_block(file):
    assert len(configs(file)) == 12
    folds = configs(file, "folds=3", "training.epochs=7")
    assert len(folds) == 12
    assert {(c["folds"], c["training"]["epochs"]) for c in folds} == {(3, 7)}
    assert {c["seed"] for c in configs(file, "seed=9")} == {9}
    assert len(configs(file, "seed=9")) == 6  # those that differed by their seed only are one
    assert {
        c["training"]["learning_rate"] for c in configs(file, "training.learning_rate=1e-3")
    } == {1e-3}
    assert [c["model"] for c in configs(file, "model=andor_cnn", "seed=0", "folds=1")] == [
        {"name": "andor_cnn"}
    ] * 2
    assert grid.read(file, {"seed": 9}).warnings == []


def test_the_value_is_yaml(file):
    (methods,) = {str(c["methods"]) for c in configs(file, "methods=[random, {name: constant}]")}
    assert methods == "['random', {'name': 'constant'}]"
    assert configs(file, "retrain=true")[0]["retrain"] is True


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("retrian=false", "unknown key 'retrian'; did you mean 'retrain'"),
        ("training.epoch=3", "training.epoch: unknown key 'epoch'; did you mean 'epochs'"),
        ("training.epochs=many", "training.epochs: .*integer"),
        ("seed.first=3", "seed.first cannot be set: seed is 1"),
        ("seed", "--set seed: write KEY=VALUE"),
        ("=3", "--set =3: write KEY=VALUE"),
        ("seed=[1", r"--set seed=\[1: the value is not valid YAML"),
        ("seed={a: 1, a: 2}", "key 'a' stands twice"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(file, word, message):
    with pytest.raises(grid.GridError, match=message) as raised:
        configs(file, word)
    assert "\n" not in str(raised.value)


def test_scripts_without_a_schema_take_settings(trivial):
    assert configs(trivial, "number=7") == [
        {"number": 7, "seconds": 0.0, "fate": "complete", "seed": 0}
    ]
    with pytest.raises(grid.GridError, match="unknown key 'numbr'; did you mean 'number'"):
        configs(trivial, "numbr=7")


def test_add_takes_settings(assay, trivial):
    assert "4 experiments in sweep many" in assay("add", trivial, "-s", "many")
    assert "1 experiments in sweep one" in assay("add", trivial, "--set", "number=1", "-s", "one")
    assert "1 experiments for" in assay("add", trivial, "--set", "number=1", "--dry-run")
    assert len(Sweep("many").store.find("many")) == 4


def test_run_runs_only_what_is_asked_for(assay, trivial):
    run = ("run", trivial, "--executor", "debug", "--no-report")
    output = assay(*run, "-w", "id:2-3")
    assert "--where selects 2 of them" in output
    sweep = Sweep("trivial")
    assert sweep.status().counts == {"STAGED": 2, "COMPLETED": 2}
    assert [d["_id"] for d in sweep.store.find("trivial", {"status": "COMPLETED"})] == [2, 3]
    sweep.queue.submit({"_id": 1})  # somebody else's, waiting for their workers
    assay(*run, "-w", "number>2")
    assert sweep.status().counts == {"PENDING": 1, "COMPLETED": 3}
    assay(*run)
    assert sweep.status().counts == {"COMPLETED": 4}


def test_the_last_experiment_of_another_worker_is_awaited(assay, trivial, monkeypatch):
    """Our own workers have ended, since nothing waits: that is no reason to start more."""
    assay("add", trivial)
    sweep = Sweep("trivial")
    launches = []
    monkeypatch.setattr(
        "orchestrator.sweep.launch", lambda *_: launches.append(1) or Launch("local", Path())
    )
    sweep.queue.submit()
    other = liveness.register(sweep.store, "trivial", 4)
    claims = sweep.queue.claim(other, 4)
    keeper = _Keeper(sweep, Plan(), {"_id": 4})
    for _ in range(6):
        keeper._next_check = 0.0
        assert not keeper.over(keeper.look())
    assert launches == [1]
    assert sweep.queue.finish(claims[-1], "COMPLETED", {})
    assert keeper.over(keeper.look())


def test_a_filter_that_nothing_matches_is_said(assay, trivial):
    with pytest.raises(cli.UserError, match=r"none of the 4 experiments of .* matches --where"):
        assay("run", trivial, "-w", "number=9")
    assert Sweep("trivial").status().counts == {"STAGED": 4}
