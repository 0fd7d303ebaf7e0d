"""SMERF's scores and views against the numbers that its authors' pipeline gives."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

from experiments import attribution, scoring
from experiments.data import smerf
from experiments.scoring import Context, smerf_view

SIMPLE, COMPLEX = (
    ("Simple-FR", "Simple-NR"),
    ("Complex-FR", *(f"Complex-CR{k}" for k in range(1, 5))),
)


# --- constants that the published notebooks print (spec 4.2) ---

NO_BLUR = {"preset": "paper", "blur": 1}


def _boxed(value: float, behind: float) -> tuple[torch.Tensor, Context]:
    """A B whose box of 247 pixels is 1 and a Box1 of `value` on a background."""
    maps = torch.full((1, 1, 64, 64), behind)
    masks = torch.zeros(1, 3, 64, 64, dtype=torch.bool)
    masks[0, 2, 10:29, 10:23] = True
    masks[0, 0, 40:50, 40:50] = True
    maps[0, 0, masks[0, 2]] = 1.0
    maps[0, 0, masks[0, 0]] = value
    regions = {"relevant": masks[:, 2:], "secondary": masks[:, :1]}
    context = Context(x=maps, y=torch.zeros(1, dtype=torch.long), regions=regions)
    return maps, context


def _value(spec: dict, maps: torch.Tensor, context: Context) -> float:
    (found,) = [m for m in scoring.resolve(spec).measure(maps, context) if m.headline]
    return found.value


def test_focus_levels_of_a_letter_and_a_box():
    maps, context = _boxed(0.8, 0.001)
    assert _value({"name": "afl", **NO_BLUR}, maps, context) == pytest.approx(0.7554, abs=1e-4)
    assert _value({"name": "safl", **NO_BLUR}, maps, context) == pytest.approx(0.2446, abs=1e-4)


@pytest.mark.parametrize(
    ("behind", "primary", "secondary"),
    [
        (
            0.001,
            [0.985, 0.892, 0.805, 0.733, 0.673, 0.622, 0.578, 0.540, 0.507, 0.478, 0.451],
            [0.000, 0.108, 0.195, 0.267, 0.327, 0.378, 0.422, 0.460, 0.493, 0.522, 0.549],
        ),
        (
            0.8,
            [0.076, 0.084, 0.116, 0.832, 0.553, 0.414, 0.331, 0.275, 0.236, 0.206, 0.183],
            [0.000, 0.000, 0.000, 0.168, 0.447, 0.586, 0.669, 0.725, 0.764, 0.794, 0.817],
        ),
    ],
)
def test_focus_levels_as_the_box_grows_brighter(behind, primary, secondary):
    for step in range(11):
        maps, context = _boxed(0.3 * step, behind)
        assert _value({"name": "afl", **NO_BLUR}, maps, context) == pytest.approx(
            primary[step], abs=1.1e-3
        )
        assert _value({"name": "safl", **NO_BLUR}, maps, context) == pytest.approx(
            secondary[step], abs=1.1e-3
        )


# --- what maps without a model get (spec 4.1) ---

PAPER_AFL, PAPER_IOU = {"name": "afl", "preset": "paper"}, {"name": "iou", "preset": "paper"}
# map: IOU average and worst bucket of simple, of complex settings; then the same of AFL.
CONTROLS = {
    "oracle": ({"name": "oracle"}, 0.84, 0.81, 0.65, 0.39, 0.75, 0.68, 0.66, 0.33),
    "ink": ({"name": "oracle", "mark": "ink"}, 0.59, 0.07, 0.53, 0.07, 0.79, 0.68, 0.68, 0.33),
    "raw input": ({"name": "input_only"}, 0.53, 0.07, 0.40, 0.02, 0.54, 0.34, 0.53, 0.05),
    "random": ({"name": "random"}, 0.03, 0.01, 0.02, 0.00, 0.05, 0.02, 0.04, 0.00),
    "edge": (
        {"name": "sobel", "direction": "horizontal", "channels": "each", "size": 5},
        0.16, 0.04, 0.10, 0.00, 0.05, 0.02, 0.04, 0.00,
    ),
    "|Sobel|": (
        {"name": "sobel", "direction": "horizontal", "channels": "each", "size": 5,
         "absolute": True},
        0.36, 0.08, 0.29, 0.06, 0.43, 0.14, 0.40, 0.05,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def samples() -> dict[str, smerf.Images]:
    specs = {
        name: smerf.SmerfSpec(
            setting=name, test=20, train_share=1e-6, validation=1, preset="paper", seed=5
        )
        for name in smerf.SETTINGS
    }
    return {name: smerf.images(smerf.generate(spec), "test") for name, spec in specs.items()}


def _bucket_means(spec: dict, images: smerf.Images) -> list[list[float]]:
    """IOU and AFL of the buckets that have a primary object."""
    x, regions = images.x[:], images.regions()
    maps = attribution.attribute(spec, torch.nn.Identity(), x, 0, regions=regions)
    shown = smerf_view.shown(spec, "control", maps, images.bucket)
    context = Context(x=x, y=images.y, regions=regions)
    numbers = [b for b, bucket in enumerate(images.setting.buckets) if bucket.primary]
    found = []
    for score in (PAPER_IOU, PAPER_AFL):
        (one,) = [m for m in scoring.resolve(score).measure(shown, context) if m.headline]
        found.append([one.samples[images.bucket == b].nanmean().item() for b in numbers])
    return found


@pytest.mark.parametrize("name", CONTROLS)
def test_maps_without_a_model_get_what_the_authors_pipeline_gives_them(samples, name):
    spec, *expected = CONTROLS[name]
    simple, complex_ = (
        np.concatenate([_bucket_means(spec, samples[each]) for each in settings], axis=1)
        for settings in (SIMPLE, COMPLEX)
    )
    assert (simple.shape[1], complex_.shape[1]) == (14, 37)
    found = [
        value
        for score in (0, 1)
        for means in (simple[score], complex_[score])
        for value in (means.mean(), means.min())
    ]
    # 20 images of a bucket: their spread moves a mean by a hundredth or two, a minimum by more.
    assert found == pytest.approx(expected, abs=0.04)


def test_one_object_of_two_is_all_that_a_perfect_map_gets(samples):
    """Each object is compared with the whole map: two of one size get a half."""
    masks = torch.zeros(1, 2, 64, 64, dtype=torch.bool)
    masks[0, 0, 5:15, 5:15] = masks[0, 1, 40:50, 40:50] = True
    maps = masks.any(1, keepdim=True).double()
    context = Context(x=maps, y=torch.zeros(1, dtype=torch.long), regions={"relevant": masks})
    assert _value({**PAPER_IOU, "blur": 1}, maps, context) == pytest.approx(0.5)
    assert _value({"name": "iou"}, maps, context) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bucket", "expected"), [("A", 0.070), ("B", 0.060), ("Box1", 0.024), ("Box2", 0.004)]
)
def test_the_threshold_of_a_constant_map_is_its_value(bucket, expected):
    """All pixels are kept, so the object's share of the image is left."""
    role = {"A": "Complex-CR1", "B": "Complex-CR1", "Box1": "Simple-FR", "Box2": "Complex-CR1"}
    spec = smerf.SmerfSpec(setting=role[bucket], test=1, train_share=1e-6, validation=1)
    images = smerf.images(smerf.generate(spec), "test")
    number = [b.name for b in images.setting.buckets].index(bucket)
    one = images[(images.bucket == number).nonzero().squeeze(1)]
    maps = torch.ones(1, 1, 64, 64)
    context = Context(x=one.x[:], y=one.y, regions=one.regions())
    assert _value(PAPER_IOU, maps, context) == pytest.approx(expected, abs=5e-4)
    assert np.isnan(_value(PAPER_AFL, maps, context))


# --- the views ---


def test_heat_is_one_minus_the_mean_colour_of_seismic():
    values = torch.linspace(-1, 1, 64 * 64, dtype=torch.float64).view(1, 1, 64, 64)
    shown = smerf_view.shown({"name": "lrp"}, "lrp", values, torch.zeros(1))[0, 0]
    m = values[0, 0].abs()
    above = torch.where(values[0, 0] > 0, 1 / 3, 0.467)
    expected = torch.where(m <= 0.5, 4 * m / 3, 2 / 3 + (m - 0.5) * above)
    assert (shown - expected).abs().max() < 0.012  # 255 steps
    colours = matplotlib.colormaps["seismic"](np.arange(256))[:, :3]
    assert sorted(set(shown.flatten().tolist())) == sorted(set((1 - colours.mean(1)).tolist()))


def test_signed_maps_are_cut_off_bucket_by_bucket():
    maps = torch.randn(
        6, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    groups = torch.tensor([0, 0, 1, 1, 1, 0])
    shown = smerf_view.shown({"name": "guided_backprop"}, "gradient", maps, groups)
    for group in (0, 1):
        low, high = np.percentile(maps[groups == group], [1, 99])
        for n in (groups == group).nonzero().flatten().tolist():
            cut = maps[n].numpy().clip(low, high)
            expected = ((cut / np.abs(cut).max() + 1) / 2).max(0)
            np.testing.assert_allclose(shown[n, 0], expected)
    zero = torch.zeros(1, 3, 4, 4)
    for name in ("guided_backprop", "lrp", "gradient", "grad_cam", "deep_shap", "sobel"):
        family = "cam" if name == "grad_cam" else "gradient"
        assert smerf_view.shown({"name": name}, family, zero, torch.zeros(1)).isfinite().all()


def test_gray_has_256_steps_and_the_largest_is_white():
    maps = torch.randn(3, 3, 8, 8)
    shown = smerf_view.shown({"name": "absolute_gradient"}, "gradient", maps, torch.zeros(3))
    assert shown.flatten(1).amax(1).tolist() == [1, 1, 1]
    assert torch.equal((255 * shown).round(), 255 * shown)


# --- shares ---


def test_shares_on_objects_add_up():
    images = smerf.images(
        smerf.generate(smerf.SmerfSpec(test=3, train_share=1e-6, validation=1)), "test"
    )
    maps = torch.randn(len(images), 3, 64, 64)
    context = Context(
        x=maps, y=images.y, regions=images.regions(), meta={"objects": ["Box1", "Box2", "Text"]}
    )
    found = scoring.resolve("object_share").measure(maps, context)
    assert [m.facets for m in found] == [
        {}, {"object": "Box1"}, {"object": "Box2"}, {"object": "Text"}, {"object": "elsewhere"},
    ]  # fmt: skip
    parts = torch.stack([m.samples for m in found[1:]])
    torch.testing.assert_close(parts.nansum(0), torch.ones(len(images)))
    there = images.x.scenes.there.T
    assert torch.equal(~parts[:3].isnan(), there)
