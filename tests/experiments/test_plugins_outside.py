"""A method and a score in ten lines each, in a package that this repository knows nothing of."""

from __future__ import annotations

import sys

import pytest
import torch

from experiments import attribution, scoring
from experiments.scoring.base import REGISTRY

PLUGIN = '''
from dataclasses import dataclass

from experiments.passes import gradients
from experiments.scoring import Measurement, Score, metric


def signed_gradient(model, x, target, *, baseline, generator, power: float = 1.0):
    """Sign of the gradient times a power of its size."""
    slope, _ = gradients(model, x, target)
    return slope.sign() * slope.abs() ** power


@metric("peak_to_mean", family="mine", direction="higher", range=(1, float("inf")))
@dataclass(frozen=True)
class PeakToMean(Score):
    """How far the strongest input stands out."""

    order: int = 1

    def measure(self, maps, context):
        weight = maps.abs() ** self.order
        return [Measurement.of(weight.amax(1) / weight.mean(1), headline=True)]
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    package = tmp_path / "far_away"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "far_away.mine"
    REGISTRY.pop("peak_to_mean", None)
    for name in ("far_away", "far_away.mine"):
        sys.modules.pop(name, None)


def test_a_method_and_a_score_from_elsewhere(plugin):
    model = torch.nn.Linear(3, 2, bias=False)
    method = {"name": f"{plugin}:signed_gradient", "power": 2.0}
    maps = attribution.attribute(method, model, torch.zeros(4, 3), 1)
    row = model.weight[1].detach()
    torch.testing.assert_close(maps, (row * row.abs()).expand(4, 3))
    assert attribution.resolve(method)[0].code_hash  # a changed file is a new result

    score = scoring.resolve({"name": f"{plugin}:PeakToMean", "order": 2})
    known = scoring.Context(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
    (measured,) = score.measure(maps, known)
    assert measured.value == pytest.approx((row**4).max().item() / (row**4).mean().item(), rel=1e-5)

    for wrong, message in [
        (lambda: attribution.resolve({**method, "power": "two"}), "parameter 'power' should be"),
        (lambda: attribution.resolve({**method, "powr": 2.0}), "did you mean 'power'"),
        (lambda: scoring.resolve({"name": f"{plugin}:PeakToMean", "ordre": 2}), "mean 'order'"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            wrong()
        assert "\n" not in str(caught.value)
