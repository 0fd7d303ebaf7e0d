"""Scores of maps against masks: closed forms, other libraries, SMERF's constants, symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.data.andor import generate
from experiments.scoring import Context, geometry, resolve
from experiments.scoring import functional as F

SHAPES = {"tabular": (24,), "series": (2, 24), "image": (3, 8, 9)}
PERFECT = [
    "relevance_mass", "relevance_rank", "relevance_auc", "relevance_ap", "pointing_game",
    "energy_pointing_game", "iou", "afl",
]  # fmt: skip
DISTANCES = ["centre_distance", "earth_mover_distance"]
RANKED = [
    "relevance_rank", "relevance_auc", "relevance_ap", "pointing_game", "top_k_intersection", "iou",
    {"name": "iou", "thresholds": ["area", 0.2]}, {"name": "pointing_game", "tolerance": 2},
]  # fmt: skip
IMAGE_ONLY = ["box_iou", "localisation_error", {"name": "afl", "preset": "paper", "blur": 3}]
ALL = [
    *PERFECT, *RANKED, *IMAGE_ONLY, "mafl", "attribution_localisation", "centre_distance",
    {"name": "earth_mover_distance", "grid": 9}, {"name": "iou", "preset": "paper", "blur": 5},
]  # fmt: skip


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(*masks: torch.Tensor, role: str = "relevant", **more: torch.Tensor) -> Context:
    """Samples of which only masks [N, ...] are known, one object each."""
    n = len(masks[0])
    regions = {role: torch.stack(masks, 1)}
    regions |= {name: mask.unsqueeze(1) for name, mask in more.items()}
    return Context(torch.zeros(n, 1), torch.zeros(n, dtype=torch.long), regions=regions)


def samples(spec: str | dict, maps: torch.Tensor, context: Context) -> torch.Tensor:
    return next(m for m in resolve(spec).measure(maps, context) if m.headline).samples.double()


def masks_for(shape: tuple[int, ...], n: int = 40) -> torch.Tensor:
    spatial = shape if len(shape) == 1 else shape[1:]
    mask = rand(n, *spatial, seed=1) < 0.3
    mask.view(n, -1)[:, 0], mask.view(n, -1)[:, 1] = True, False
    return mask


def as_maps(mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    spread = mask.double() if len(shape) == 1 else mask.unsqueeze(1).expand(-1, *shape).double()
    return spread.contiguous()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_map_that_is_the_mask_its_inverse_and_a_constant_one(shape):
    mask = masks_for(shape)
    context, maps = known(mask), as_maps(mask, shape)
    chance = mask.double().flatten(1).mean(1)
    for name in PERFECT:
        assert samples(name, maps, context).allclose(torch.ones(40).double())
        raised = samples(name, torch.full_like(maps, 0.7), context)
        expected = {"relevance_auc": 0.5, "iou": chance / (2 - chance)}.get(name, chance)
        assert raised.allclose(torch.as_tensor(expected).double().expand(40))
    for name in DISTANCES:
        assert samples(name, maps, context).abs().amax() < 1e-7
    for name in ("relevance_auc", "relevance_mass"):
        assert (samples(name, 1 - maps, context) == 0).all()
    for name in ("mafl", {"name": "mafl", "objects_as": "each"}):
        size = mask.flatten(1).sum(1)
        assert samples(name, maps, context).allclose((1 / size).double())
    assert samples("attribution_localisation", maps, context).allclose(1 / chance)
    unweighted = {"name": "attribution_localisation", "weighted": False}
    assert samples(unweighted, maps, context).allclose(torch.ones(40).double())


def test_a_flat_map_is_at_chance_wherever_the_object_is():
    # Quantus gives 1.0 to a flat map of an object that comes first.
    for corner in (0, 27, 54):
        mask = torch.zeros(1, 64, dtype=torch.bool)
        mask[:, corner : corner + 10] = True
        context, flat = known(mask.view(1, 8, 8)), torch.ones(1, 1, 8, 8)
        assert samples("relevance_rank", flat, context).item() == pytest.approx(10 / 64)
        top = {"name": "top_k_intersection", "k": 7}
        assert samples(top, flat, context).item() == pytest.approx(10 / 64)
        assert samples("iou", flat, context).item() == pytest.approx((100 / 64) / (20 - 100 / 64))


@pytest.mark.parametrize("spec", [*ALL, "effective_complexity"], ids=str)
def test_empty_masks_are_undefined_and_full_ones_are_not(spec):
    mask = torch.zeros(4, 8, 9, dtype=torch.bool)
    mask[1], mask[2, 3:6, 3:6] = True, True
    maps = rand(4, 1, 8, 9)
    maps[3] = 0
    mask[3] = mask[2]
    (found, *_) = (m for m in resolve(spec).measure(maps, known(mask)) if m.headline)
    paper = isinstance(spec, dict) and spec["name"] == "afl"  # where a constant map has no weight
    if spec == "effective_complexity":
        assert found.samples.tolist() == [72, 72, 72, 0]
        return
    undefined = [True, spec == "relevance_auc", False, paper]
    assert found.samples.isnan().tolist() == undefined
    assert found.n == 4 - sum(undefined)


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_scale_company_flips_and_turns_do_not_matter(spec):
    mask = torch.zeros(12, 9, 9, dtype=torch.bool)
    for i in range(12):
        mask[i, i % 5 : i % 5 + 4, i // 3 : i // 3 + 3] = True
    maps = rand(12, 2, 9, 9) - 0.2
    expected = samples(spec, maps, known(mask))
    assert expected.isfinite().all()
    assert samples(spec, maps * 2.0**-20, known(mask)).allclose(expected, atol=1e-6)
    assert samples(spec, maps.float(), known(mask)).allclose(expected, atol=1e-5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:5]
    assert samples(spec, maps[order], known(mask[order])).allclose(expected[order], atol=1e-6)
    for turn in (lambda t: t.flip(-1), lambda t: t.rot90(1, (-2, -1)), lambda t: t.mT):
        turned = samples(spec, turn(maps).contiguous(), known(turn(mask)))
        assert turned.allclose(expected, atol=1e-6)


@pytest.mark.parametrize("spec", RANKED, ids=str)
def test_rank_scores_do_not_depend_on_monotone_changes(spec):
    mask, maps = masks_for((1, 8, 9)), rand(40, 1, 8, 9) - 0.5
    raw = spec if isinstance(spec, dict) else {"name": spec}
    raw = raw if raw["name"] != "iou" else raw | {"view": "positive"}
    changed = torch.where(maps > 0, maps.exp() - 1, maps)
    assert samples(raw, changed, known(mask)).equal(samples(raw, maps, known(mask)))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auc_and_average_precision_against_scikit_learn(levels):
    mask = masks_for((60,))
    maps = (rand(40, 60) * levels).floor()
    for name, other in (
        ("relevance_auc", roc_auc_score),
        ("relevance_ap", average_precision_score),
    ):
        expected = [other(m.numpy(), s.numpy()) for m, s in zip(mask, maps, strict=True)]
        assert samples(name, maps, known(mask)).tolist() == pytest.approx(expected, abs=1e-6)
    ranks = stats.rankdata(maps.numpy(), axis=1)
    assert np.array_equal(F.average_ranks(maps).numpy(), ranks)


def test_ties_count_as_the_mean_over_all_orders():
    maps, mask = (rand(3, 30) * 4).floor(), masks_for((30,), 3)
    hits = F.Ranking.of(maps).find(mask)
    draws = torch.stack([
        mask.gather(1, F.order(maps, rand(3, 30, seed=seed))).cumsum(1) for seed in range(2000)
    ]).double()  # fmt: skip
    for k in (1, 4, 13, 30):
        expected = draws[:, :, k - 1].mean(0)
        assert hits.among(torch.full((3,), k)).allclose(expected, atol=0.1)


def test_the_reduction_of_channels_and_the_view_after_it():
    maps = torch.tensor([[[1.0, -3.0], [-2.0, 1.0]]])  # two channels, two time steps
    for channels, raw in (
        ("sum", [-1, -2]), ("mean", [-0.5, -1]), ("abs_sum", [3, 4]), ("max", [2, 3]),
        ("l2", [math.sqrt(5), math.sqrt(10)]), ("none", [1, -3, -2, 1]),
    ):  # fmt: skip
        expected = torch.tensor([raw], dtype=torch.float64)
        assert F.relevance(maps, "raw", channels).allclose(expected)
        assert F.relevance(maps, "abs", channels).allclose(expected.abs())
        assert F.relevance(maps, "positive", channels).allclose(expected.clamp(min=0))
        flat = maps[:, 0]
        assert F.relevance(flat, "raw", channels).equal(F.relevance(flat[:, None], "raw", channels))


# --- pointing ---


def test_pointing_with_a_tolerance_is_pointing_at_what_is_near():
    mask, peak = rand(30, 16, 17) < 0.02, torch.zeros(30, 16, 17)
    mask[:, 3, 4] = True
    peak.view(30, -1)[torch.arange(30), (rand(30) * 272).long()] = 1.0
    distance = np.stack([ndimage.distance_transform_edt(~m) for m in mask.numpy()])
    for tolerance in (0, 1, 1.5, 3, 7.3, 40):
        expected = torch.from_numpy(distance <= tolerance)
        assert geometry.dilated(mask, tolerance).equal(expected)
        hit = samples({"name": "pointing_game", "tolerance": tolerance}, peak[:, None], known(mask))
        assert hit.equal((expected & (peak > 0)).flatten(1).any(1).double())
    line = torch.tensor([[True, False, False, False, True, False]])
    assert geometry.dilated(line, 1)[0].tolist() == [True, True, False, True, True, True]


def test_pointing_game_weighted_by_size():
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[:, :2] = True
    maps = torch.arange(8.0, 0, -1).view(1, 8)
    assert samples({"name": "pointing_game", "weighted": True}, maps, known(mask)).item() == 0.75


# --- distances and boxes ---


def test_earth_mover_distance_against_scipy():
    given, mask = rand(3, 1, 6, 7), rand(3, 6, 7, seed=2) < 0.2
    places = np.argwhere(np.ones((6, 7)))
    pixels = {"name": "earth_mover_distance", "unit": "pixel"}
    expected = [
        stats.wasserstein_distance_nd(places, places, g.flatten(), m.flatten())
        for g, m in zip(given[:, 0].numpy(), mask.numpy(), strict=True)
    ]
    assert samples(pixels, given, known(mask)).tolist() == pytest.approx(expected, abs=1e-6)
    series, wanted = rand(3, 2, 20), rand(3, 20, seed=3) < 0.4
    expected = [
        stats.wasserstein_distance(np.arange(20), np.arange(20), s, w)
        for s, w in zip(series.sum(1).numpy(), wanted.numpy(), strict=True)
    ]
    assert samples(pixels, series, known(wanted)).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [8, 20])
def test_masses_that_are_shifted_by_k_pixels_are_k_apart(size):
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, :4, :4] = True
    for moved in (0, 3, 9) if size == 20 else (0, 1, 4):  # a cell of the coarser grid has 3 pixels
        maps = mask.double().roll(moved, 2)
        for name in DISTANCES:
            found = samples({"name": name, "unit": "pixel"}, maps[:, None], known(mask)).item()
            assert found == pytest.approx(moved, abs=1e-6)
            relative = samples(name, maps[:, None], known(mask)).item()
            assert relative == pytest.approx(moved / math.hypot(size - 1, size - 1), abs=1e-6)


def test_boxes_around_what_is_lit():
    maps = torch.zeros(1, 1, 10, 10)
    maps[0, 0, 2:6, 2:7] = 1.0  # 20 pixels that touch,
    maps[0, 0, 6, 7] = maps[0, 0, 9, 9] = 1.0  # and two that do so at a corner, or not at all
    one, two = torch.zeros(2, 1, 10, 10, dtype=torch.bool)
    one[:, 2:6, 2:12], two[:, 0:2, 0:2] = True, True  # a box of 4 × 8, and another object
    context = known(one, two, torch.zeros_like(one))  # the third is not there
    assert samples("box_iou", maps, context).item() == pytest.approx(20 / 32)
    assert samples("localisation_error", maps, context).item() == 0
    assert samples({"name": "localisation_error", "hit": 0.65}, maps, context).item() == 1
    everything = samples({"name": "box_iou", "component": "all"}, maps, context).item()
    assert everything == pytest.approx(32 / 64)
    relative = {"name": "box_iou", "threshold": 0.9}
    assert samples(relative, maps, context).item() == pytest.approx(20 / 32)
    flat = samples("box_iou", torch.full_like(maps, 0.1), context).item()
    assert flat == pytest.approx(32 / 100)
    context.prediction = torch.ones(1, dtype=torch.long)
    official = {"name": "localisation_error", "correct": "required"}
    assert samples(official, maps, context).item() == 1
    with pytest.raises(ValueError, match="'box_iou' draws boxes in images"):
        resolve("box_iou").measure(torch.ones(1, 8), known(torch.ones(1, 8).bool()))


# --- SMERF: the numbers of its paper's code ---


def box(top: int, left: int, height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, top : top + height, left : left + width] = True
    return mask


TEXT, PATCH, SWITCH = box(5, 5, 19, 13), box(40, 40, 10, 10), box(40, 8, 4, 4)
PAPER_AFL = {"name": "afl", "preset": "paper", "blur": 1, "region": "primary"}


@pytest.mark.parametrize(
    ("background", "primary", "secondary"),
    [
        (
            0.001,
            (985, 892, 805, 733, 673, 622, 578, 540, 507, 478, 451),
            (0, 108, 195, 267, 327, 378, 422, 460, 493, 522, 549),
        ),
        (
            0.8,
            (76, 84, 116, 832, 553, 414, 331, 275, 236, 206, 183),
            (0, 0, 0, 168, 447, 586, 669, 725, 764, 794, 817),
        ),
    ],
)
def test_afl_of_two_boxes_as_published(background, primary, secondary):
    context = known(TEXT, role="primary", secondary=PATCH)
    for step, (first, second) in enumerate(zip(primary, secondary, strict=True)):
        maps = torch.full((1, 1, 64, 64), background, dtype=torch.float64)
        maps[:, 0][TEXT], maps[:, 0][PATCH] = 1.0, 0.3 * step
        assert samples(PAPER_AFL, maps, context).item() == pytest.approx(first / 1000, abs=6e-4)
        given = {**PAPER_AFL, "name": "safl", "region": "secondary"}
        assert samples(given, maps, context).item() == pytest.approx(second / 1000, abs=6e-4)
    maps[:, 0][PATCH] = 0.8
    if background == 0.001:
        assert samples(PAPER_AFL, maps, context).item() == pytest.approx(0.7554, abs=1e-4)


def test_what_the_blur_of_the_paper_takes_from_a_perfect_map():
    for mask, ceiling in ((SWITCH, (16 / 49)), (PATCH, (58 / 70) ** 2)):
        afl = samples({"name": "afl", "preset": "paper"}, mask.double()[:, None], known(mask))
        assert afl.item() == pytest.approx(ceiling)
        assert samples("afl", mask.double()[:, None], known(mask)).item() == 1


def test_iou_of_the_paper():
    paper = {"name": "iou", "preset": "paper"}
    for mask, chance in ((TEXT, 247), (PATCH, 100), (SWITCH, 16)):
        flat = torch.ones(1, 1, 64, 64)
        assert samples(paper, flat, known(mask)).item() == pytest.approx(chance / 4096)
    # Against each object alone, a perfect map of n objects gets 1/n, and less with the blur.
    two = known(PATCH, PATCH.roll(-30, 2))
    perfect = two.region("relevant").double()[:, None]
    assert samples({**paper, "blur": 1, "thresholds": ["area"]}, perfect, two).item() == 0.5
    assert samples("iou", perfect, two).item() == 1
    blurred = known(PATCH, SWITCH)
    found = samples(paper, blurred.region("relevant").double()[:, None], blurred)
    assert found.item() == pytest.approx(0.39, abs=0.01)
    # The highest bins hold too few pixels: the lowest one is taken, and with it the whole image.
    ink = torch.zeros(1, 1, 64, 64)
    ink[:, :, 9:23, 6:12] = 1.0
    letter = box(5, 5, 19, 15)
    found = samples({**paper, "blur": 1}, ink, known(letter))
    assert found.item() == pytest.approx(285 / 4096) == pytest.approx(0.070, abs=5e-4)


def test_histogram_threshold_against_numpy():
    mask, maps = masks_for((1, 8, 9)), rand(40, 1, 8, 9) ** 3
    found = samples({"name": "iou", "preset": "paper", "blur": 1}, maps, known(mask))
    for m, s, value in zip(mask.numpy(), maps[:, 0].numpy(), found.tolist(), strict=True):
        counts, edges = np.histogram(s, 10)
        bins = 9
        while counts[bins:].sum() < m.sum():
            bins -= 1
        kept = s >= edges[bins]
        assert value == pytest.approx((kept & m).sum() / (kept | m).sum(), abs=1e-6)


def test_the_area_of_the_iou_can_be_that_of_another_role():
    context = known(TEXT, role="primary", secondary=PATCH)
    maps = PATCH.double()[:, None] + 0.5 * TEXT.double()[:, None]
    assert samples("siou", maps, context).item() == 1
    whole = samples({"name": "siou", "area_of": "primary"}, maps, context).item()
    assert whole == pytest.approx(100 / 247)
    several = resolve({"name": "iou", "region": "secondary", "thresholds": ["area", 0.5]})
    measured = several.measure(maps, context)
    assert [m.facets["threshold"] for m in measured] == ["mean", "area", "0.5"]
    assert measured[0].value == pytest.approx((measured[1].value + measured[2].value) / 2)


# --- mistakes ---


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "iou", "blur": 4}, "blur must be odd"),
        ({"name": "iou", "thresholds": []}, "thresholds"),
        ({"name": "top_k_intersection", "k": 0}, "k"),
        ({"name": "earth_mover_distance", "channels": "none"}, "choose how to join"),
        ({"name": "pointing_game", "tolerance": -1}, "tolerance"),
    ],
)
def test_mistakes_in_parameters_are_one_line(spec, says):
    with pytest.raises(ValueError, match=says) as error:
        resolve(spec)
    assert "\n" not in str(error.value)


def test_mistakes_in_masks_are_one_line():
    maps = torch.ones(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"masks of shape \[2, 8, 9\] for maps of shape \[2, 3, 8"):
        resolve("relevance_auc").measure(maps, known(torch.ones(2, 8, 9).bool()))
    with pytest.raises(ValueError, match="no region 'avoid' is known"):
        resolve({"name": "iou", "region": "avoid"}).measure(maps, known(torch.ones(2, 8, 8).bool()))
    with pytest.raises(ValueError, match="a blur of 17 is too wide for maps of 8 × 8"):
        resolve({"name": "afl", "blur": 17}).measure(maps, known(torch.ones(2, 8, 8).bool()))


def test_scores_of_a_map_share_its_sort_until_it_changes(monkeypatch):
    sorts = []
    of = F.Ranking.of.__func__
    monkeypatch.setattr(F.Ranking, "of", classmethod(lambda cls, w: sorts.append(1) or of(cls, w)))
    context, maps = known(masks_for((24,))), rand(40, 24)
    for name in ("relevance_rank", "relevance_auc", "relevance_ap", "top_k_intersection"):
        samples(name, maps, context)
    assert len(sorts) == 1
    before = samples("relevance_auc", maps, context)
    maps.neg_()
    assert samples("relevance_auc", maps, context).allclose(1 - before, atol=1e-6)


# --- what masks give away (formulas) ---


@pytest.mark.parametrize(
    ("top", "full", "gates"),
    [
        ("and", (8 / 11, 13 / 14, 15 / 15, 12 / 17), (2 / 3, 3 / 3, 3 / 5)),
        ("or", (14 / 17, 15 / 17, 15 / 17, 13 / 18), (2 / 3, 3 / 3, 3 / 5)),
        ("xor", (28 / 37, 35 / 42, 45 / 52, 46 / 69), (2 / 3, 3 / 3, 3 / 5)),
    ],
)
def test_double_class_assignment_as_the_original_counts_it(top, full, gates):
    data = generate({"toplevel": top})
    context = Context(data.test.x, data.test.y, truth=data.truth, meta=data.meta)
    r, k = torch.arange(256)[:, None], torch.arange(8)[None]
    maps = ((7919 * r + 104729 * k + 13) % 1009).double() / 1009
    found = resolve("full_dca").measure(maps, context)
    assert [m.value for m in found] == pytest.approx(full)
    minimal = resolve("minimal_dca").measure(maps, context)
    first = [m.value for m in minimal if m.facets["threshold"] == "baseline"]
    assert first[1:] == pytest.approx(gates)


def test_information_in_masks_is_read_against_random_masks():
    data = generate({"toplevel": "xor"})
    context = Context(data.test.x, data.test.y, truth=data.truth, meta=data.meta)
    test = {"name": "information_test", "rule": "top", "thresholds": [0.5], "headline": 0.5}

    def values(maps: torch.Tensor, **more: str) -> dict[str, float]:
        found = resolve({**test, **more}).measure(maps, context)
        return {m.facets["bucket"]: m.value for m in found}

    said = torch.zeros(256, 8)
    said[:, :4] = data.test.y[:, None] * 2.0 - 1  # the mask is the class, and nothing else
    entropy = stats.entropy(np.bincount(data.test.y) / 256, base=2)
    assert values(said)["map"] == pytest.approx(entropy)
    noise = values(rand(256, 8))
    assert abs(noise["excess"]) < 0.1 < noise["map"]
    exact = values(said, quantity="accuracy")
    assert exact["map"] == 1
    same = values(torch.arange(8.0).expand(256, -1).contiguous())
    assert same["map"] == pytest.approx(0, abs=1e-12)
    assert same["excess"] < -0.1
