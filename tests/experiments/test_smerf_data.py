"""TextBox images and the rules over them, against the published tables and by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from experiments.attribution.objects import shapley_values
from experiments.data import backdrops, smerf, textbox
from experiments.data.smerf import EDITS, PLAYERS, SETTINGS, SmerfSpec

names = st.sampled_from(sorted(SETTINGS))


def sample_images(setting: str, count: int = 5, **spec: object) -> smerf.Images:
    chosen = SmerfSpec(setting=setting, test=count, train_share=1e-6, validation=1, **spec)
    return smerf.images(smerf.generate(chosen), "test")


# --- the settings ---

# buckets, training and test images, buckets with a primary object, with two (spec table 1.2)
PUBLISHED = {
    "Simple-FR": (12, 24_000, 6_000, 6, 0),
    "Simple-NR": (8, 40_000, 4_000, 8, 0),
    "Complex-FR": (12, 36_000, 6_000, 3, 3),
    "Complex-CR1": (10, 150_000, 4_000, 10, 3),
    "Complex-CR2": (10, 150_000, 4_000, 10, 3),
    "Complex-CR3": (10, 150_000, 4_000, 7, 4),
    "Complex-CR4": (10, 150_000, 4_000, 7, 4),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_have_the_published_sizes(name):
    buckets = SETTINGS[name].buckets
    assert PUBLISHED[name] == (
        len(buckets),
        sum(bucket.train for bucket in buckets),
        sum(bucket.test for bucket in buckets),
        sum(bool(bucket.primary) for bucket in buckets),
        sum(len(bucket.primary) == 2 for bucket in buckets),
    )


LABELS = {
    "Simple-FR": lambda p, s, t: p,
    "Simple-NR": lambda p, s, t: t == "B",
    "Complex-FR": lambda p, s, t: p and s,
    "Complex-CR1": lambda p, s, t: not p if s else t == "B",
    "Complex-CR2": lambda p, s, t: not s if p else t == "B",
    "Complex-CR3": lambda p, s, t: t == "B" if s else not p,
    "Complex-CR4": lambda p, s, t: t == "B" if p else not s,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_labels_are_those_of_the_truth_tables(name):
    for bucket in SETTINGS[name].buckets:
        scene = bucket.scene
        assert bucket.label == int(LABELS[name](scene.box1, scene.box2, scene.letter))


@pytest.mark.parametrize("name", SETTINGS)
def test_evidence_decides_the_label_and_nothing_else_changes_it(name):
    """With the evidence as it is, there or absent, no change of the other objects matters."""
    setting = SETTINGS[name]
    for bucket in setting.buckets:
        fixed = {*bucket.primary, *bucket.absent}
        for box1, box2, letter in itertools.product((False, True), (False, True), (None, "A", "B")):
            other = smerf.Scene(box1, box2, letter)
            same = all(
                other.letter == bucket.scene.letter
                if part == "Text"
                else other.has(part) == bucket.scene.has(part)
                for part in fixed
            )
            if same and setting.allows(other):
                assert setting.bucket(other).label == bucket.label


def test_objects_of_complex_cr1_bucket_by_bucket():
    found = [(b.name, b.label, set(b.primary), set(b.secondary)) for b in
             SETTINGS["Complex-CR1"].buckets]  # fmt: skip
    assert found == [
        ("A", 0, {"Text"}, set()),
        ("B", 1, {"Text"}, set()),
        ("Box1+A", 0, {"Text"}, {"Box1"}),
        ("Box1+B", 1, {"Text"}, {"Box1"}),
        ("Box2", 1, {"Box2"}, set()),
        ("Box2+A", 1, {"Box2"}, {"Text"}),
        ("Box2+B", 1, {"Box2"}, {"Text"}),
        ("Box1+Box2", 0, {"Box1", "Box2"}, set()),
        ("Box1+Box2+A", 0, {"Box1", "Box2"}, {"Text"}),
        ("Box1+Box2+B", 0, {"Box1", "Box2"}, {"Text"}),
    ]


def test_boxes_of_label_0_of_complex_fr_are_in_neither_list():
    for bucket in SETTINGS["Complex-FR"].buckets:
        assert set(bucket.secondary) <= {"Text"}
        assert bucket.primary == (("Box1", "Box2") if bucket.label else ())
        assert bucket.train == (6000 if bucket.label else 2000)


@pytest.mark.parametrize("name", SETTINGS)
def test_shapley_values_of_the_rule_are_zero_for_objects_that_never_matter(name):
    values = shapley_values(torch.tensor([SETTINGS[name].game]))[0]
    game = SETTINGS[name].game
    assert values.sum().item() == pytest.approx(game[-1] - game[0])
    matters = {
        player
        for bit, player in enumerate(PLAYERS)
        if any(game[s] != game[s ^ (1 << bit)] for s in range(16))
    }
    assert {p for p, v in zip(PLAYERS, values.tolist(), strict=True) if abs(v) > 1e-12} <= matters
    used = {"Text" if player in "AB" else player for player in matters}
    evidence = {o for b in SETTINGS[name].buckets for o in (*b.primary, *b.absent)}
    assert used == evidence


# --- images ---


@given(name=names, preset=st.sampled_from(["paper", "fixed"]), seed=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_places_keep_their_distances_and_stay_inside(name, preset, seed):
    images = sample_images(name, preset=preset, seed=seed)
    scenes, boxes = images.x.scenes, images.x.scenes.boxes
    there = scenes.there
    assert boxes[there].min() >= 0
    assert boxes[there].max() <= textbox.SIZE
    corner = scenes.corner.clone()
    corner[:, 2] -= textbox.LETTER_OFFSET
    for pair, limit in textbox.TOO_CLOSE.items():
        first, second = sorted(pair)
        both = there[:, first] & there[:, second]
        away = (corner[both, first] - corner[both, second]).square().sum(1)
        assert (away > limit).all()
    if preset == "fixed":
        assert scenes.masks().sum(1).max() <= 1


@given(name=names, seed=st.integers(0, 2**40))
@settings(max_examples=10, deadline=None)
def test_an_image_does_not_depend_on_how_many_there_are(name, seed):
    few, many = (sample_images(name, count, seed=seed) for count in (2, 7))
    for bucket in range(len(SETTINGS[name].buckets)):
        one = few.x[(few.bucket == bucket).nonzero().squeeze(1)]
        other = many.x[(many.bucket == bucket).nonzero().squeeze(1)]
        assert torch.equal(one, other[:2])


def test_splits_share_no_places():
    state = smerf.generate(SmerfSpec(train_share=0.01, test=20, validation=20))
    found = [state["scenes"][split]["corner"].flatten(1) for split in ("train", "test")]
    boxed = [c[(c >= 0).all(1)] for c in found]
    same = (boxed[0][:, None] == boxed[1][None]).all(2).any()
    assert not same


def test_glyphs_have_the_published_extent_and_weight():
    """A: 14 × 15 pixels of ink, Σ = 69.5; B: 12 × 15, Σ = 89.9; four blank rows above."""
    ink = textbox.glyphs().double() / 255
    for letter, width, weight in ((0, 14, 69.5), (1, 12, 89.9)):
        rows, columns = (ink[letter] > 0).nonzero().unbind(1)
        assert (rows.min(), rows.max()) == (4, 18)
        assert columns.max() - columns.min() + 1 == width
        assert ink[letter].sum().item() == pytest.approx(weight, rel=0.03)


def test_pixels_of_an_image_one_by_one():
    images = sample_images("Simple-FR", 3, preset="paper")
    scenes, pixels = images.x.scenes, images.x[:]
    assert pixels.shape == (36, 3, 64, 64)
    assert (pixels[:, 0] == pixels[:, 1]).all()
    for n in range(len(images)):
        expected = torch.zeros(64, 64)
        for number, name in enumerate(textbox.OBJECTS):
            if not scenes.there[n, number]:
                continue
            row, column = scenes.corner[n, number].tolist()
            stamp = torch.ones(textbox.SIDES.get(name, 1), textbox.SIDES.get(name, 1))
            if name == "Text":
                stamp = textbox.glyphs()[scenes.letter[n]].float() / 255
            view = expected[row : row + stamp.shape[0], column : column + stamp.shape[1]]
            view.copy_(torch.maximum(view, stamp))
        assert torch.equal(pixels[n, 0], expected)
    assert torch.equal(images.x.bytes().float() / 255, pixels[:, 0])
    assert torch.equal(torch.cat(list(images.x.split(7))), pixels)


def test_regions_are_the_objects_of_the_bucket():
    images = sample_images("Complex-CR3", 2)
    regions = images.regions()
    for n, number in enumerate(images.bucket.tolist()):
        bucket = images.setting.buckets[number]
        for role, wanted in (("relevant", bucket.primary), ("secondary", bucket.secondary)):
            there = regions[role][n].flatten(1).any(1).tolist()
            assert [name for name, is_ in zip(textbox.OBJECTS, there, strict=True) if is_] == [
                name for name in textbox.OBJECTS if name in wanted
            ]
        sizes = regions["objects"][n].flatten(1).sum(1).tolist()
        letter = {"A": 285, "B": 247, None: 0}[bucket.scene.letter]
        assert sizes == [100 * bucket.scene.box1, 16 * bucket.scene.box2, letter]
        players = dict(zip(PLAYERS, regions["players"][n].flatten(1).any(1).tolist(), strict=True))
        assert players["A"] == (bucket.scene.letter == "A")
        assert players["B"] == (bucket.scene.letter == "B")
    assert (regions["ink"] <= regions["relevant"]).all()


@pytest.mark.parametrize("background", ["noise", "gradient"])
def test_backgrounds_belong_to_the_image(background):
    images = sample_images("Simple-FR", 2, background=background)
    pixels = images.x[:]
    assert torch.equal(images.x[3:4], pixels[3:4])
    behind = pixels[images.x.scenes.ink()[:, None].expand_as(pixels) == 0]
    assert behind.min() >= 0
    assert behind.max() <= (100 / 255 if background == "noise" else 1)
    assert not torch.equal(pixels[0], pixels[1])
    white = images.x.scenes.ink() == 255
    assert (pixels.amin(1)[white] == 1).all()


def test_pictures_of_training_and_test_are_disjoint(tmp_path):
    (tmp_path / "deeper").mkdir()
    for k in range(5):
        folder = tmp_path / "deeper" if k % 2 else tmp_path
        Image.new("RGB", (80, 70), (40 * k, 10, 200)).save(folder / f"{k}.png")
    before = backdrops.fingerprint(str(tmp_path))
    found = backdrops.halves(str(tmp_path))
    reds = {split: {int(p[0, 0, 0]) for p in each} for split, each in found.items()}
    assert len(reds["train"]) == 3
    assert len(reds["test"]) == 2
    assert not reds["train"] & reds["test"]
    images = sample_images("Simple-FR", 2, background="images", images=str(tmp_path))
    behind = images.x[:][:, :, 0, 0]
    assert set((255 * behind[:, 0]).round().int().tolist()) <= reds["test"] | {255}
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    assert backdrops.fingerprint(str(tmp_path)) != before


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        backdrops.halves(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="0 pictures"):
        backdrops.halves(str(tmp_path))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot read .*a\.png"):
        backdrops.halves(str(tmp_path))
    with pytest.raises(ValidationError, match="go together"):
        SmerfSpec(background="images")


# --- edits ---


@given(name=names, edit=st.sampled_from(EDITS), seed=st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_an_edit_changes_one_object_and_nothing_else(name, edit, seed):
    images = sample_images(name, 2)
    verb, which = edit
    changed, rows = smerf.edited(images, verb, which, seed=seed)
    number = textbox.OBJECTS.index(which)
    before, after = images.x.scenes[rows], changed.x.scenes
    others = [k for k in range(3) if k != number]
    assert torch.equal(before.corner[:, others], after.corner[:, others])
    assert (before.there[:, number] == (verb != "add")).all()
    assert (after.there[:, number] == (verb != "remove")).all()
    if verb == "move":
        assert torch.equal(before.letter, after.letter)
        assert (changed.y == images.y[rows]).all()
    if verb == "swap":
        assert torch.equal(before.corner, after.corner)
        assert (before.letter != after.letter).all()
    assert torch.equal(changed.bucket, smerf.bucket_of(images.setting, after))
    if verb != "remove" and len(changed):
        masks = after.masks()
        assert not (masks[:, number] & masks[:, others].any(1)).any()


def test_every_edit_is_possible_somewhere():
    images = sample_images("Simple-FR", 3)
    for verb, which in EDITS:
        changed, _ = smerf.edited(images, verb, which, seed=0)
        assert len(changed) > 0, (verb, which)
