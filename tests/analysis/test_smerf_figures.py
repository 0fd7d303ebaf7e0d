"""Every figure of the SMERF study, of a table as it could have been."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from test_figures import check, texts
from test_smerf_rows import Plan, table

from analysis import frames, smerf, smerf_buckets, smerf_gallery, smerf_statistics, smerf_summary
from analysis.smerf_rows import OBJECTS, arrange, truth
from orchestrator.store import open_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

pytestmark = pytest.mark.filterwarnings("error")
SETTINGS = ("Simple-FR", "Simple-NR", "Complex-CR1")
FEW = ("absolute_gradient", "lrp_epsilon", "grad_cam", "kernel_shap")
ATTACKED = '{"training": {"adversary": {"attack": "pgd"}}}'


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smerf_statistics, "DRAWS", 40)
        yield


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Three settings; another architecture, an attack and a background in one setting each."""
    usual = {"methods": FEW, "n": 6, "seeds": (0, 1), "probes": 8}
    one = {
        "methods": FEW[:2],
        "n": 6,
        "probes": 8,
        "seeds": (0,),
        "measures": ("afl", "safl", "iou"),
    }
    return table(
        Plan(settings=SETTINGS, **usual),  # type: ignore[arg-type]
        Plan(settings=("Simple-FR", "Complex-CR1"), model="smerf_vgg16", **one),  # type: ignore[arg-type]
        Plan(settings=("Simple-FR",), training=ATTACKED, **one),  # type: ignore[arg-type]
        Plan(settings=("Complex-CR1",), background="noise", shift=-0.05, **one),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def files(rows: pd.DataFrame) -> dict[int, bytes]:
    first = rows.drop_duplicates("dataset").set_index("dataset")["experiment"]
    methods = [*FEW[:1], "lrp_epsilon(epsilon=1.0)", "oracle"]
    return {int(first[setting]): kept(setting, methods) for setting in SETTINGS[:2]}


def kept(setting: str, methods: list[str]) -> bytes:
    """A gallery file with two images of each bucket."""
    buckets = [bucket for bucket in truth(setting) for _ in range(2)]
    rng = np.random.default_rng(0)
    n = len(buckets)
    boxes = np.full((n, 3, 4), -1, dtype=np.int16)
    roles = np.full((n, 3), "other", dtype="<U9")
    for i, bucket in enumerate(buckets):
        for o, name in enumerate(OBJECTS):
            for role, names in zip(("primary", "secondary"), truth(setting)[bucket], strict=True):
                if name in names:
                    roles[i, o] = role
                    boxes[i, o] = [10 * o, 10 * o + 9, 20, 29]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, images=np.zeros((n, 64, 64, 3), dtype=np.uint8), boxes=boxes,
        objects=np.array(OBJECTS), roles=roles, buckets=np.array(buckets),
        methods=np.array(methods), label=np.zeros(n, dtype=int), prediction=np.arange(n) == 0,
        maps=rng.standard_normal((len(methods), n, 64, 64)).astype(np.float16),
    )  # fmt: skip
    return buffer.getvalue()


@pytest.fixture(scope="module")
def drawings(rows: pd.DataFrame, files: dict[int, bytes]) -> dict[str, Callable[[], Figure]]:
    return smerf.drawings(rows, "dark", files=files)


MAIN = {
    "average_and_worst/iou", "average_and_worst/afl", "worst_bucket/afl", "accuracy",
    "architectures/iou", "architectures/afl", "adversarial/iou", "adversarial/afl",
    "backgrounds/iou", "backgrounds/afl", "groups/simple/afl", "groups/Complex-CR1/afl",
    "objects/afl", "objects/iou", "failures/afl", "identifiability/accuracy",
    "identifiability/confusion", "gallery/Simple-FR", "gallery/Simple-NR",
    *(f"buckets/{setting}/{name}" for setting in SETTINGS for name in ("iou", "afl", "mafl")),
}  # fmt: skip
FOLDERS = ("VGG16", "CNN, adversarial pgd", "CNN, noise")


def test_every_figure_has_a_name_and_other_models_a_folder(
    drawings: dict[str, Callable[[], Figure]], rows: pd.DataFrame, files: dict[int, bytes]
) -> None:
    assert {name for name in drawings if not name.startswith(FOLDERS)} == MAIN
    assert "VGG16/average_and_worst/afl" in drawings
    assert "CNN, noise/buckets/Complex-CR1/iou" in drawings
    lines = smerf.missing(rows, files=files)
    assert len(lines) == 1
    assert "complex reasoning lacks 27 buckets" in lines[0]


# Those of which others are variants; names of methods over a gallery are aslant.
CHECKED = sorted(
    name for name in MAIN
    if not name.startswith(("gallery", "buckets/Simple", "adversarial", "groups/Complex"))
    and not name.endswith("iou")
)  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_nothing_overlaps_and_the_caption_counts(
    drawings: dict[str, Callable[[], Figure]], name: str
) -> None:
    shown = " ".join(" ".join(check(drawings[name]())).split())
    assert "trained model" in shown
    if name.startswith(("average", "worst", "buckets", "failures", "groups")):
        assert "oracle" in shown
        assert "raw input" in shown
        assert "95 % intervals" in shown


def test_the_light_theme(rows: pd.DataFrame, files: dict[int, bytes]) -> None:
    light = smerf.drawings(rows, files=files)
    for name in MAIN - set(CHECKED):
        if not name.startswith("buckets") or name == "buckets/Simple-NR/iou":
            light[name]()
    for name in ("average_and_worst/iou", "VGG16/worst_bucket/afl", "objects/iou"):
        check(light[name]())


def test_a_gallery_is_not_cut(drawings: dict[str, Callable[[], Figure]]) -> None:
    figure = drawings["gallery/Simple-FR"]()
    width, height = figure.canvas.get_width_height()
    found = texts(figure)
    assert {"image", "absolute_gradient", "lrp_epsilon", "oracle", "1: none (wrong)"} <= set(found)
    for boxes in found.values():
        for box in boxes:
            assert box.x0 >= 0  # type: ignore[attr-defined]
            assert box.y0 >= 0  # type: ignore[attr-defined]
            assert box.x1 <= width  # type: ignore[attr-defined]
            assert box.y1 <= height  # type: ignore[attr-defined]


def test_what_the_rows_lack_is_left_out_and_named(rows: pd.DataFrame) -> None:
    few = rows[(rows["dataset"] == "Simple-FR") & (rows["score"] == "afl")]
    few = few[few["model_params"] == "{}"]
    few = few[few["model"] == "smerf_simple_cnn"]
    assert set(smerf.drawings(few)) == {
        "average_and_worst/afl", "worst_bucket/afl", "buckets/Simple-FR/afl", "groups/simple/afl",
        "objects/afl", "failures/afl",
    }  # fmt: skip
    lines = " ".join(smerf.missing(few))
    for name in ("architectures", "adversarial", "backgrounds", "accuracy", "identifiability",
                 "gallery"):  # fmt: skip
        assert f"no figure {name}: " in lines
    with pytest.raises(ValueError, match='no rows of the study "smerf"'):
        smerf.figures(few.assign(study="andor"))


def test_backgrounds_are_compared_on_the_same_buckets(rows: pd.DataFrame) -> None:
    data = arrange(rows)
    tables, used = smerf_summary._tables(data, "PAFL", "paper", ["CNN", "CNN, noise"])
    assert set(used.table["setting"]) == {"Complex-CR1"}
    assert set(tables["average"]["n_buckets"]) == {10}


def test_groups_and_counts_are_means_of_buckets(rows: pd.DataFrame) -> None:
    data = arrange(rows)
    numbers = data.means("PAFL", "paper")
    numbers = numbers.only(numbers.table["condition"] == "CNN")
    mean = numbers.intervals().set_index(["label", "setting", "bucket"])["estimate"]
    found = smerf_buckets.grouped(numbers, ["Complex-CR1"]).intervals()
    found = found.set_index(["label", "group"])["estimate"]
    both = [mean["lrp_epsilon", "Complex-CR1", f"Box2+{letter}"] for letter in "AB"]
    assert found["lrp_epsilon", "Box2, text"] == pytest.approx(np.mean(both))
    counted = smerf_buckets.by_count(numbers).intervals()
    counted = counted.set_index(["label", "setting", "objects"])["estimate"]
    two = [mean["grad_cam", "Simple-FR", b] for b in ("Box1+A", "Box1+B", "Box1+Box2")]
    assert counted["grad_cam", "Simple-FR", 2] == pytest.approx(np.mean(two))


def test_accuracies_are_means_and_lowest_over_seeds(rows: pd.DataFrame) -> None:
    found = smerf_buckets.accuracies(arrange(rows), "CNN").set_index(["setting", "what"])
    of = rows[(rows["method"] == "model") & (rows["model"] == "smerf_simple_cnn")]
    of = of[(of["dataset"] == "Simple-FR") & (of["bucket"] == "Box1+A")]
    of = of[of["model_params"] == "{}"]["value"]
    assert found.loc[("Simple-FR", "Box1+A"), "mean"] == pytest.approx(of.mean())
    assert found.loc[("Simple-FR", "Box1+A"), "lowest"] == pytest.approx(of.min())
    assert ("Complex-CR1", "swap letter") in found.index


def test_a_gallery_is_one_image_of_each_bucket_by_number() -> None:
    gallery = smerf_gallery.Gallery.read(kept("Simple-NR", ["a", "b"])).arrays
    assert list(gallery["buckets"][:3]) == ["A", "B", "Box2+A"]
    assert gallery["maps"].shape == (2, 8, 64, 64)
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros(1))
    with pytest.raises(ValueError, match=r"gallery\.npz lacks boxes"):
        smerf_gallery.Gallery.read(buffer.getvalue())


def test_files_of_finished_experiments_are_read(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'x.sqlite'}")
    for number, (status, name) in enumerate(
        [("COMPLETED", smerf.FILE), ("COMPLETED", "other"), ("FAILED", smerf.FILE)]
    ):
        key = f"sweep/{number}/1/{name}"
        store.put_blob(key, f"file {number}".encode())
        artifacts = [{"name": name, "file_id": key}]
        store.insert("sweep", [{"_id": number, "status": status, "artifacts": artifacts}])
    assert frames.files("sweep", smerf.FILE, store=store) == {0: b"file 0"}
    assert frames.files("sweep", smerf.FILE, {"_id": 1}, store=store) == {}
