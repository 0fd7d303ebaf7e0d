"""Similarity of maps against scipy and the formulas; complexity and Shapley values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.attribution.objects import shapley_values
from experiments.scoring import Context, resolve
from experiments.scoring.similarity import pairwise, similarity, similarity_rate, ssim

KINDS = ("pearson", "spearman", "ssim", "top_k_iou", "cosine", "l2")
SHAPES = [(30,), (2, 30), (3, 12, 13)]


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def headline(spec: str | dict, maps: torch.Tensor, context: Context) -> list[float]:
    found = resolve(spec).measure(maps, context)
    return next(m for m in found if m.headline).samples.tolist()


def blank(n: int, **more: object) -> Context:
    return Context(torch.zeros(n, 1), torch.zeros(n, dtype=torch.long), **more)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_correlations_against_scipy(shape):
    a, b = (rand(6, *shape) * 9).floor(), (rand(6, *shape, seed=1) * 9).floor()  # with ties
    rows = [t.numpy() if t.ndim == 2 else t.sum(1).flatten(1).numpy() for t in (a, b)]
    for kind, other in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        expected = [other(x, y).statistic for x, y in zip(*rows, strict=True)]
        assert similarity(a, b, kind).tolist() == pytest.approx(expected)
    expected = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(*rows, strict=True)]
    assert similarity(a, b, "cosine").tolist() == pytest.approx(expected)
    expected = [np.linalg.norm(x - y) for x, y in zip(*rows, strict=True)]
    assert similarity(a, b, "l2").tolist() == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_like_itself_and_likeness_is_symmetric(kind, shape):
    a, b = rand(6, *shape) - 0.5, rand(6, *shape, seed=1) - 0.5
    a[0].view(-1)[3:] = 0  # ties at the k-th place
    same = 0.0 if kind == "l2" else 1.0
    assert similarity(a, a.clone(), kind).tolist() == pytest.approx([same] * 6)
    found = similarity(a, b, kind)
    assert similarity(b, a, kind).allclose(found)
    assert similarity(a[2:4], b[2:4], kind).allclose(found[2:4])
    if kind != "l2":
        scaled = similarity(1e-12 * a, 1e-12 * b, kind)
        assert scaled.allclose(found, atol=1e-6)
    for channels in ("abs_sum", "none"):
        assert similarity(a, b, kind, channels=channels, view="abs").isfinite().all()


def test_what_is_undefined_is_nan():
    flat, some = torch.full((2, 8, 8), 0.1).unsqueeze(1), rand(2, 1, 8, 8)
    for kind in ("pearson", "spearman"):
        assert similarity(flat, some, kind).isnan().all()
        assert similarity(some, 3 * flat, kind).isnan().all()
    assert similarity(0 * flat, some, "cosine").isnan().all()
    assert similarity(flat, flat, "ssim").isnan().all()
    k = 6
    chance = k * k / 64 / (2 * k - k * k / 64)
    assert similarity(flat, some, "top_k_iou").tolist() == pytest.approx([chance] * 2)
    with pytest.raises(ValueError, match="similarity of maps of shapes"):
        similarity(flat, some[:, :, 1:], "pearson")
    with pytest.raises(ValueError, match="unknown kind of similarity 'ssmi'"):
        similarity(flat, some, "ssmi")
    with pytest.raises(ValueError, match="share of positions"):
        similarity(flat, some, "top_k_iou", k=0)


def test_ssim_is_its_formula():
    a, b = rand(2, 1, 13, 14) - 0.3, rand(2, 1, 13, 14, seed=1) * 2
    found = ssim(a, b)
    place = np.arange(11) - 5
    window = np.exp(-(place**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    for x, y, value in zip(a[:, 0].numpy(), b[:, 0].numpy(), found.tolist(), strict=True):
        span = max(x.max(), y.max()) - min(x.min(), y.min())
        c1, c2, values = (0.01 * span) ** 2, (0.03 * span) ** 2, []
        for i in range(3):
            for j in range(4):
                u, v = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mu, nu = (window * u).sum(), (window * v).sum()
                var = (window * (u - mu) ** 2).sum() + (window * (v - nu) ** 2).sum()
                cov = (window * (u - mu) * (v - nu)).sum()
                values.append(
                    (2 * mu * nu + c1) * (2 * cov + c2) / ((mu**2 + nu**2 + c1) * (var + c2))
                )
        assert value == pytest.approx(np.mean(values))


def test_top_k_of_untied_maps_is_the_jaccard_index():
    a, b = rand(5, 40), rand(5, 40, seed=1)
    expected = []
    for x, y in zip(a, b, strict=True):
        left, right = set(x.topk(10).indices.tolist()), set(y.topk(10).indices.tolist())
        expected.append(len(left & right) / len(left | right))
    assert similarity(a, b, "top_k_iou", k=0.25).tolist() == pytest.approx(expected)


def test_pairs_of_maps():
    maps = [rand(4, 20, seed=seed) for seed in range(3)]
    found = pairwise(maps, "pearson")
    for sample in range(4):
        expected = np.corrcoef(np.stack([m[sample].numpy() for m in maps]))
        assert found[sample].numpy() == pytest.approx(expected)


def test_similarity_rate():
    labels, train = torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 2])
    importance = torch.arange(10.0, 0, -1).expand(2, -1)
    assert similarity_rate(importance, labels, train, 0.2).tolist() == [1, 0]
    assert similarity_rate(importance, labels, train, 0.5).tolist() == pytest.approx([0.4, 0.6])
    assert similarity_rate(importance, labels, train, 0.5, most=False).tolist() == [0, 0]
    prior = [0.2, 0.3]
    assert similarity_rate(importance, labels, train, 1.0).tolist() == pytest.approx(prior)
    flat = torch.ones(2, 10)
    assert similarity_rate(flat, labels, train, 0.1).tolist() == pytest.approx(prior)


# --- complexity ---


@pytest.mark.parametrize("shape", [(256,), (1, 256), (3, 16, 16)], ids=str)
def test_complexity_of_one_position_and_of_all(shape):
    one, all_alike = torch.zeros(2, *shape), torch.full((2, *shape), -0.3)
    one.view(2, shape[0] if len(shape) > 1 else 1, -1)[:, :, 7] = 2.0
    assert headline("sparseness", one, blank(2)) == pytest.approx([1 - 1 / 256] * 2, abs=1e-7)
    assert headline("sparseness", all_alike, blank(2)) == pytest.approx([0, 0], abs=1e-7)
    assert headline("entropy", one, blank(2)) == [0, 0]
    assert headline("entropy", all_alike, blank(2)) == pytest.approx([math.log(256)] * 2)
    assert headline("effective_complexity", one, blank(2)) == [1, 1]
    assert headline("effective_complexity", all_alike, blank(2)) == [256, 256]
    if len(shape) == 3:
        every = {"name": "entropy", "channels": "none"}
        assert headline(every, all_alike, blank(2)) == pytest.approx([math.log(768)] * 2)


def test_effective_complexity_is_that_of_each_map_by_itself():
    maps = rand(3, 40) + 0.1
    maps[1] *= 1e-9
    maps[2, 10:] = 1e-9
    assert headline("effective_complexity", maps, blank(3)) == [40, 40, 10]
    assert headline("effective_complexity", maps[1:2], blank(1)) == [40]
    share = {"name": "effective_complexity", "unit": "share", "epsilon": 0.5}
    half = (maps > 0.5 * maps.amax(1, keepdim=True)).float().mean(1).tolist()
    assert headline(share, maps, blank(3)) == pytest.approx(half)


# --- objects ---


def test_exact_shapley_values_of_small_games():
    # x1 x2 and max(x1, x2) at (2, 3); an additive game with a null player; one player.
    games = {
        (3, 3): [0, 0, 0, 6],
        (1, 2): [0, 2, 3, 3],
        (5, 0, 1): [0, 5, 0, 5, 1, 6, 1, 6],
        (4,): [1, 5],
    }
    for expected, game in games.items():
        assert shapley_values(torch.tensor([game]))[0].tolist() == pytest.approx(expected)
    game = rand(4, 32)
    assert shapley_values(game).sum(1).allclose(game[:, -1] - game[:, 0])


def test_agreement_with_the_shapley_values_of_a_label():
    objects = torch.zeros(4, 3, 6, dtype=torch.bool)
    for player in range(3):
        objects[:, player, 2 * player : 2 * player + 2] = True
    objects[1, 2] = False  # the last one is not there
    objects[2, 1:] = False
    # The label is "first and second, or third": values (1/6, 1/6, 2/3); (1/2, 1/2); undefined.
    table = [int((s & 3) == 3 or s >= 4) for s in range(8)]
    context = blank(4, regions={"relevant": objects}, meta={"object_game": table})
    maps = torch.tensor([[1.0, 0, 0, 1, 2, 2]] * 4)
    maps[3] = -maps[3]
    found = headline("object_label_agreement", maps, context)
    assert found[0] == pytest.approx(1)
    assert found[3] == pytest.approx(-1)
    assert math.isnan(found[1])  # equal values
    assert math.isnan(found[2])
    cosine = {"name": "object_label_agreement", "kind": "cosine"}
    assert headline(cosine, maps, context) == pytest.approx([1, 1, math.nan, -1], nan_ok=True)
    ranks = {"name": "object_label_agreement", "kind": "spearman"}
    assert headline(ranks, maps, context)[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="needs the label of all 8 sets of objects"):
        resolve("object_label_agreement").measure(maps, blank(4, regions={"relevant": objects}))
