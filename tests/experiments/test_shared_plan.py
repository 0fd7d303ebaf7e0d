"""A table of methods and scores costs its shared plan, to the row, and not the sum of its cells."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments import evaluation
from experiments.randomness import SampleGenerators

SIDE, CLASSES, B = 8, 4, 2
LAYERS = 4  # modules with parameters
STEPS, COPIES = 3, 2  # of integrated gradients, of SmoothGrad and its relatives
POINTS, SUBSETS, SQUARES, DRAWS = 4, 7, 6, 2
NOISY = {"samples": COPIES, "noise": 0.1}
METHODS = [
    "gradient", "input_x_gradient", {"name": "integrated_gradients", "steps": STEPS},
    {"name": "smoothgrad", **NOISY}, {"name": "smoothgrad_squared", **NOISY},
    {"name": "vargrad", **NOISY}, "grad_cam", "hires_cam", "xgrad_cam", "random",
]  # fmt: skip
PATH = ["deletion_auc", "aopc", "pixel_flipping"]
NEAR = ["max_sensitivity", "avg_sensitivity", "local_lipschitz"]
SCORES = [
    *({"name": name, "steps": POINTS} for name in PATH),
    {"name": "faithfulness_correlation", "draws": SUBSETS},
    {"name": "infidelity", "draws": SQUARES},
    *({"name": name, "samples": DRAWS} for name in NEAR),
    "parameter_randomisation", "random_logit", "completeness", "relevance_mass",
]  # fmt: skip


@pytest.fixture(scope="module")
def setting():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(6 * (SIDE // 2) ** 2, CLASSES),
        ).double().eval()  # fmt: skip
    x = SampleGenerators(0, range(B), "images").normal(2, SIDE, SIDE)
    y = torch.arange(B) % CLASSES
    mask = torch.zeros(B, 1, SIDE, SIDE, dtype=torch.bool)
    mask[..., : SIDE // 2] = True
    return model, x, y, {"relevant": mask}


def run(setting, methods, scores):
    model, x, y, regions = setting
    return evaluation.evaluate(model, x, y, methods=methods, scores=scores, regions=regions)


def test_ten_methods_and_twelve_scores_cost_what_they_cannot_share(setting):
    found = run(setting, METHODS, SCORES)
    # One gradient of the output for two methods, the points of a path, noisy copies for three
    # methods, one backward pass to the features for three; random maps are free.
    explained = 1 + STEPS + COPIES + 1
    # The samples themselves; near them, once for three scores; under random weights; another class.
    inputs = 1 + DRAWS + LAYERS + 1
    # A path per method, walked once for three scores: its beginning is known, and its end is
    # that of all samples. Subsets and squares do not depend on the map.
    removed = len(METHODS) * (POINTS - 1) + SUBSETS + SQUARES
    assert found.count.backwards == B * inputs * explained
    # The features that CAMs look at are there for another class already.
    assert found.count.rows == B * (inputs * explained - 1 + removed) + 1


def test_the_sum_of_the_cells_is_much_more_and_their_numbers_are_the_same(setting):
    table = run(setting, METHODS, SCORES)
    cells = [[run(setting, [method], [score]) for score in SCORES] for method in METHODS]
    rows = sum(cell.count.rows for row in cells for cell in row)
    # Twelve runs of each method, and whatever the score asks of it again.
    explained = 1 + 1 + STEPS + 3 * COPIES + 3
    again = len(SCORES) + len(NEAR) * DRAWS + LAYERS + 1
    assert sum(cell.count.backwards for row in cells for cell in row) == B * explained * again
    assert rows > 3 * table.count.rows
    for row, shared in zip(cells, table.measurements, strict=True):
        for cell, measured in zip(row, shared, strict=True):
            alone = cell.measurements[0][0]
            assert [m.facets for m in alone] == [m.facets for m in measured]
            for one, other in zip(alone, measured, strict=True):
                torch.testing.assert_close(one.samples, other.samples, equal_nan=True)
