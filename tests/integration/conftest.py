"""Sweeps of the trivial study and of a small ANDOR grid, in a home of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"

TINY_ANDOR = f"""
seml: {{executable: experiments/studies/andor.py, project_root_dir: {ROOT}}}
fixed:
  training.epochs: 3
  methods: [integrated_gradients, grad_cam, shapley_exact, random]
  scores: [nib, logical_accuracy, sparseness]
grid:
  data.toplevel: {{type: choice, options: [and, xor]}}
  model.name: {{type: choice, options: [andor_cnn, andor_transformer]}}
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home, and a working directory for reports."""
    path = tmp_path / "home"
    monkeypatch.setenv("ASSAY_HOME", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ASSAY_MONGODB_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def trivial(tmp_path) -> Callable[..., Path]:
    """Writes a sweep of the trivial study."""

    def write(numbers: int = 6, name: str = "trivial", **fixed: object) -> Path:
        path = tmp_path / f"{name}.yaml"
        lines = [
            f"seml: {{executable: trivial.py, project_root_dir: {FIXTURES}}}",
            f"grid: {{number: {{type: range, min: 0, max: {numbers}, step: 1}}}}",
            "fixed:",
            "  seed: 0",
            *(f"  {key}: {value}" for key, value in fixed.items()),
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def tiny_andor(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_ANDOR)
    return path


@pytest.fixture
def assay(home) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command as a user would, in a process of its own; no report unless asked for."""

    def call(*words: object, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        if words[0] == "run" and "--report" not in words:
            words = (*words, "--no-report")
        answer = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *map(str, words)],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "140", **env},
            timeout=300,
            check=False,
        )
        assert "Traceback" not in answer.stderr, answer.stderr
        if check:
            assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer

    return call
