"""The code itself: style, types, the direction of imports, and what must stay cheap to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["importlinter.cli"],
    ],
    ids=["ruff check", "ruff format", "mypy", "import-linter"],
)
def test_tools_are_content(command):
    if command[0] == "importlinter.cli":
        run = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as l; l()"]
    else:
        run = [sys.executable, "-m", *command]
    answer = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    "module",
    [
        "experiments.attribution",
        "experiments.scoring",
        "experiments.models",
        "experiments.studies.andor",
        "orchestrator.sweep",
        "orchestrator.cli",
        "analysis.frames",
    ],
)
def test_checking_a_configuration_imports_no_torch(module):
    code = f"import sys, {module}; assert not {{'torch', 'captum', 'shap'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_imports_neither_torch_nor_pandas():
    code = (
        "import sys; sys.argv = ['assay', '--help']\n"
        "from orchestrator.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'sacred', 'seml', 'pymongo', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert "results" in answer.stdout


def test_the_top_level_holds_what_it_should():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {Path(name).parts[0] for name in tracked}
    allowed = {
        "pyproject.toml", "README.md", "LICENSE", "experiments", "configs", "orchestrator",
        "analysis", "tests", "slurm",
    }  # fmt: skip
    assert {name for name in top if not name.startswith(".")} <= allowed
