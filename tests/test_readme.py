"""What the README shows in Python runs as it stands, outside of the repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from experiments import attribution, scoring

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(language: str, containing: str) -> str:
    (found,) = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.S) if containing in b]
    return found


@pytest.fixture
def images():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        ).eval()
        x = torch.randn(5, 3, 8, 8)
    return {"model": model, "x": x, "target": model(x).argmax(1)}


def test_a_notebook_needs_two_lines(images):
    known = dict(images)
    exec(block("python", "from experiments import attribution, scoring"), known)
    assert known["maps"].shape == images["x"].shape
    assert known["auc"].samples.shape == (5,)
    assert known["auc"].value == pytest.approx(float(known["auc"].samples.mean()))


def test_a_method_and_a_score_in_ten_lines(images, tmp_path, monkeypatch):
    for name in ("my_methods", "my_scores"):
        text = block("python", f"# {name}.py")
        (tmp_path / f"{name}.py").write_text(text)
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        assert len(lines) <= 10
    monkeypatch.syspath_prepend(tmp_path)
    fixed = yaml.safe_load(block("yaml", "my_methods:"))["fixed"]
    _, mine, _ = fixed["methods"]
    maps = attribution.attribute(mine, images["model"], images["x"], images["target"])
    gradient = attribution.attribute("gradient", images["model"], images["x"], images["target"])
    torch.testing.assert_close(maps, gradient.abs() ** 2 * images["x"].sign())
    (found,) = scoring.score(fixed["scores"][1], maps, images["x"])
    weights = maps.flatten(1).abs() ** 2
    torch.testing.assert_close(found.samples, weights.amax(1) / weights.sum(1))
    for name in ("my_methods", "my_scores"):
        monkeypatch.delitem(sys.modules, name)
