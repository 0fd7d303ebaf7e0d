"""Maps over known objects: Shapley values by three roads, LIME, and where they fall."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from experiments import passes
from experiments.attribution import attribute
from experiments.attribution.driver import untouched

N, OBJECTS = 5, 3


class Product(nn.Module):
    """Objects that matter together: the outputs multiply sums over the quarters of the image."""

    kind = "cnn"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        a, b, c = (x[:, :, 4 * k : 4 * k + 3].flatten(1).sum(1) for k in range(3))
        return torch.stack([a * b + c, a - 2 * c + a * b * c], 1) * self.weight


@pytest.fixture
def samples() -> dict:
    x = torch.rand(N, 2, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(N, OBJECTS, 12, 6, dtype=torch.bool)
    for k in range(OBJECTS):
        masks[:, k, 4 * k : 4 * k + 3, : 2 + k] = True
    masks[3, 1] = False  # this one has two objects only
    return {"x": x, "masks": masks, "target": torch.tensor([0, 1, 1, 0, 1])}


def worth(model: nn.Module, samples: dict, n: int, stays: tuple[int, ...]) -> float:
    x, masks = samples["x"][n], samples["masks"][n]
    gone = torch.zeros_like(masks[0])
    for k in range(OBJECTS):
        if k not in stays:
            gone |= masks[k]
    return model((x * ~gone)[None])[0, samples["target"][n]].item()


def by_orders(model: nn.Module, samples: dict, n: int) -> list[float]:
    """The mean, over all orders in which objects can join, of what each adds."""
    total = np.zeros(OBJECTS)
    for order in itertools.permutations(range(OBJECTS)):
        for place, player in enumerate(order):
            before, after = order[:place], order[: place + 1]
            total[player] += worth(model, samples, n, after) - worth(model, samples, n, before)
    return list(total / math.factorial(OBJECTS))


def by_regression(model: nn.Module, samples: dict, n: int) -> list[float]:
    """KernelSHAP on all coalitions, the two constraints as very large weights (theorem 2)."""
    rows, values, weights = [], [], []
    for bits in itertools.product((0, 1), repeat=OBJECTS):
        size = sum(bits)
        rows.append([1.0, *map(float, bits)])
        values.append(worth(model, samples, n, tuple(k for k, b in enumerate(bits) if b)))
        proper = 0 < size < OBJECTS
        kernel = (OBJECTS - 1) / (math.comb(OBJECTS, size) * size * (OBJECTS - size) or 1)
        weights.append(math.sqrt(kernel if proper else 1e9))
    w = np.array(weights)
    found, *_ = np.linalg.lstsq(np.array(rows) * w[:, None], np.array(values) * w, rcond=None)
    return list(found[1:])


def on_objects(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return (maps[:, None] * masks[:, :, None]).flatten(2).sum(2)


def test_shapley_values_of_objects_by_orders_and_by_regression(samples):
    model = Product().double()
    regions = {"objects": samples["masks"]}
    maps = attribute("object_shapley", model, samples["x"], samples["target"], regions=regions)
    found = on_objects(maps, samples["masks"])
    for n in range(N):
        values = by_orders(model, samples, n)
        assert by_regression(model, samples, n) == pytest.approx(values, rel=1e-4, abs=1e-4)
        there = samples["masks"][n].flatten(1).any(1)
        expected = [v if is_ else 0.0 for v, is_ in zip(values, there.tolist(), strict=True)]
        assert found[n].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    nowhere = ~samples["masks"].any(1, keepdim=True).expand_as(maps)
    assert (maps[nowhere] == 0).all()


def test_lime_of_a_model_that_adds_up_is_what_each_object_adds(samples):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 12 * 6, 2)).double()
    regions = {"objects": samples["masks"]}
    spec = {"name": "object_lime", "strength": 0.0}
    lime, shapley = (
        attribute(one, model, samples["x"], samples["target"], regions=regions)
        for one in (spec, "object_shapley")
    )
    torch.testing.assert_close(lime, shapley, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["object_shapley", "object_lime"])
def test_all_coalitions_are_run_once_and_batches_do_not_matter(samples, name):
    model = Product().double()
    regions = {"objects": samples["masks"]}
    known = {"model": model, "x": samples["x"], "target": samples["target"], "regions": regions}
    with untouched(model), passes.counted(model) as count:
        whole = attribute(name, **known)
    assert (count.forwards, count.backwards) == (N * 2**OBJECTS, 0)
    assert torch.equal(whole, attribute(name, **known, batch_size=2))


@pytest.mark.parametrize("name", ["object_shapley", "object_lime", "oracle"])
def test_without_objects_it_is_said_what_is_missing(samples, name):
    model = Product().double()
    with pytest.raises(ValueError, match=rf"method '{name}'.*(needs objects|needs the truth)"):
        attribute(name, model, samples["x"], samples["target"])


def test_the_oracle_points_to_any_role(samples):
    model = Product().double()
    regions = {"relevant": samples["masks"][:, :1], "ink": samples["masks"][:, 1:]}
    for role in regions:
        spec = {"name": "oracle", "mark": role}
        maps = attribute(spec, model, samples["x"], samples["target"], regions=regions)
        assert torch.equal(maps[:, 0].bool(), regions[role].any(1))
    with pytest.raises(ValueError, match="unknown mark 'inc'; did you mean 'ink'"):
        attribute(
            {"name": "oracle", "mark": "inc"}, model, samples["x"], samples["target"],
            regions=regions,
        )  # fmt: skip
