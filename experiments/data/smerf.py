"""SMERF: images in which the reasoning that a classifier must use is known (Kim et al. 2022).

*Sanity Simulations for Saliency Methods* (ICML 2022), section 4. A *setting* is a rule from the
objects of a TextBox image to its label. All combinations of objects are in the data, so that a
model that is right on every one of them has to follow the rule; each is a *bucket*. The rule says
which objects are the evidence for a label (primary), and which a map should leave alone
(secondary). Evidence may be that an object is *not* there: the original drops it, here it is
marked (`Bucket.absent`) and counted in the Shapley values of the rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from experiments import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from experiments.data import backdrops, textbox
    from experiments.data.dataset import Split
else:
    torch = lazy.load("torch")
    backdrops = lazy.load("experiments.data.backdrops")
    textbox = lazy.load("experiments.data.textbox")

Name = Literal[
    "Simple-FR", "Simple-NR", "Complex-FR", "Complex-CR1", "Complex-CR2", "Complex-CR3",
    "Complex-CR4",
]  # fmt: skip
Object = Literal["Box1", "Box2", "Text"]
Letter = Literal["A", "B"]
Count = Annotated[int, Field(ge=1)]

# Players of the game that the rule defines: a letter is one or the other.
PLAYERS = ("Box1", "Box2", "A", "B")


@dataclass(frozen=True)
class Scene:
    """What is in an image."""

    box1: bool
    box2: bool
    letter: Letter | None

    def has(self, name: Object) -> bool:
        return {"Box1": self.box1, "Box2": self.box2, "Text": self.letter is not None}[name]

    @property
    def there(self) -> tuple[bool, bool, bool]:
        """By object of `textbox.OBJECTS`."""
        return self.box1, self.box2, self.letter is not None

    @property
    def name(self) -> str:
        """`Box1+Box2+A`, or `none`."""
        parts = ["Box1"] * self.box1 + ["Box2"] * self.box2 + [str(self.letter)]
        return "+".join(part for part in parts if part != "None") or "none"


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a scene: the label, the objects it looks at (which may be absent), and
    those that a map should leave alone."""

    label: int
    evidence: tuple[Object, ...]
    others: tuple[Object, ...]


Rule = Callable[[Scene], Verdict]


@dataclass(frozen=True)
class Bucket:
    """All images with the same objects. primary, secondary: those of the evidence, and of the
    others, that are there; absent: evidence by absence."""

    scene: Scene
    label: int
    primary: tuple[Object, ...]
    secondary: tuple[Object, ...]
    absent: tuple[Object, ...]
    train: int
    test: int

    @property
    def name(self) -> str:
        return self.scene.name


@dataclass(frozen=True)
class Setting:
    """A rule, how many images of a bucket the original has, and the order of its buckets.

    order: letters of the loops from the slowest to the fastest: p for Box1 ("patch"), s for Box2
        ("switch"), t for the text. Only what numbers buckets depends on it.
    more: scenes with that many training images instead.
    """

    name: Name
    rule: Rule
    order: str
    train: int
    test: int
    more: Callable[[Scene], int | None] = lambda scene: None

    @property
    def buckets(self) -> list[Bucket]:
        """Without those in which the rule asks for a letter and there is none."""
        values: dict[str, tuple[Any, ...]] = {
            "p": (False, True), "s": (False, True), "t": (None, "A", "B")
        }  # fmt: skip
        found = []
        for chosen in itertools.product(*(values[letter] for letter in self.order)):
            at = dict(zip(self.order, chosen, strict=True))
            scene = Scene(at["p"], at["s"], at["t"])
            if self.allows(scene):
                found.append(self.bucket(scene))
        return found

    def allows(self, scene: Scene) -> bool:
        return scene.letter is not None or "Text" not in self.rule(scene).evidence

    def bucket(self, scene: Scene) -> Bucket:
        said = self.rule(scene)
        return Bucket(
            scene=scene,
            label=said.label,
            primary=tuple(name for name in said.evidence if scene.has(name)),
            secondary=tuple(name for name in said.others if scene.has(name)),
            absent=tuple(name for name in said.evidence if not scene.has(name)),
            train=self.more(scene) or self.train,
            test=self.test,
        )

    @property
    def game(self) -> list[float]:
        """The label of all 2^4 sets of PLAYERS, that of the players whose bits are set in s at
        place s. Two letters at once (no image has them) count as none."""
        worth = []
        for coalition in range(2 ** len(PLAYERS)):
            in_ = {name for bit, name in enumerate(PLAYERS) if (coalition >> bit) & 1}
            letter: Any = next(iter(in_ & {"A", "B"})) if len(in_ & {"A", "B"}) == 1 else None
            worth.append(float(self.rule(Scene("Box1" in in_, "Box2" in in_, letter)).label))
        return worth


# ---- the rules -------------------------------------------------------------------------------


def _box1(scene: Scene) -> Verdict:
    return Verdict(int(scene.box1), ("Box1",), ("Text", "Box2"))


def _text(scene: Scene) -> Verdict:
    return Verdict(int(scene.letter == "B"), ("Text",), ("Box1", "Box2"))


def _both_boxes(scene: Scene) -> Verdict:
    """Of label 0 only a box that is missing is evidence; one that is there is neither."""
    if scene.box1 and scene.box2:
        return Verdict(1, ("Box1", "Box2"), ("Text",))
    names: tuple[Object, ...] = ("Box1", "Box2")
    missing = tuple(name for name in names if not scene.has(name))
    return Verdict(0, missing, ("Text",))


def _conditional(condition: Object, if_there: Object, otherwise: Object) -> Rule:
    """Looks at one object if `condition` is there and at another if not: is the letter a B, or is
    the box missing?"""

    def rule(scene: Scene) -> Verdict:
        looked_at = if_there if scene.has(condition) else otherwise
        label = scene.letter == "B" if looked_at == "Text" else not scene.has(looked_at)
        names: tuple[Object, ...] = ("Box1", "Box2", "Text")
        others = tuple(name for name in names if name not in (condition, looked_at))
        return Verdict(int(label), (condition, looked_at), others)

    return rule


def _thrice_both(scene: Scene) -> int | None:
    return 6000 if scene.box1 and scene.box2 else None


SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("Simple-FR", _box1, "pts", 2000, 500),
        Setting("Simple-NR", _text, "spt", 5000, 500),
        Setting("Complex-FR", _both_boxes, "pts", 2000, 500, _thrice_both),
        Setting("Complex-CR1", _conditional("Box2", "Box1", "Text"), "spt", 15000, 400),
        Setting("Complex-CR2", _conditional("Box1", "Box2", "Text"), "spt", 15000, 400),
        Setting("Complex-CR3", _conditional("Box2", "Text", "Box1"), "spt", 15000, 400),
        Setting("Complex-CR4", _conditional("Box1", "Text", "Box2"), "spt", 15000, 400),
    )
}


# ---- a data set ------------------------------------------------------------------------------


class SmerfSpec(BaseModel):
    """Which setting, on which background, how many images.

    Attributes:
        background: "black"; "noise", uniform in 0 .. 99 of 255; "gradient", blue to red;
            "images", pictures of the folder `images` and of the folders in it, half of them for
            training and validation, the other half for the test, darkened.
        train_share: share of the original's number of training images of each bucket.
        validation, test: images of a bucket; by default the original's number for the test.
        preset: "paper" lets objects touch and overlap as the original does, "fixed" does not.
        seed: of where everything is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    setting: Name = "Simple-FR"
    background: Literal["black", "noise", "gradient", "images"] = "black"
    images: str | None = None
    train_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    validation: Count = 100
    test: Count | None = None
    preset: Literal["fixed", "paper"] = "fixed"
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _folder(self) -> SmerfSpec:
        if (self.background == "images") != (self.images is not None):
            raise ValueError(
                "background 'images' and `images`, the folder of the pictures, go together: give "
                "both or neither"
            )
        return self

    @property
    def of(self) -> Setting:
        return SETTINGS[self.setting]

    def count(self, split: str, bucket: Bucket) -> int:
        if split == "train":
            return max(1, round(self.train_share * bucket.train))
        return self.validation if split == "validation" else self.test or bucket.test


@dataclass(frozen=True, eq=False)
class Images:
    """N images of a setting.

    x       [N, 3, 64, 64] in [0, 1], rendered when they are taken
    bucket  int64 [N]  the number of each one's bucket
    index   int64 [N]  stable numbers, of which the random draws for an image depend
    """

    setting: Setting
    x: textbox.Rendered
    bucket: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.bucket)

    def __getitem__(self, rows: Tensor) -> Images:
        x = replace(self.x, scenes=self.x.scenes[rows])
        return Images(self.setting, x, self.bucket[rows], self.index[rows])

    @property
    def y(self) -> Tensor:
        """int64 [N]: the labels."""
        return torch.tensor([bucket.label for bucket in self.setting.buckets])[self.bucket]

    @property
    def split(self) -> Split:
        """As training takes it: batches are rendered one by one."""
        from experiments.data.dataset import Split

        return Split(self.x, self.y, self.index)  # type: ignore[arg-type]

    def regions(self) -> dict[str, Tensor]:
        """bool [N, O, 64, 64] per role; an object that does not have it is an empty mask.

        "relevant" and "secondary" have the boxes of `textbox.OBJECTS` that are primary and
        secondary, "objects" all of them, "players" those of `PLAYERS`, "ink" the pixels of the
        primary objects that are not background.
        """
        masks = self.x.scenes.masks()
        found = {"objects": masks}
        for role, names in (("relevant", "primary"), ("secondary", "secondary")):
            chosen = torch.tensor(
                [
                    [name in getattr(bucket, names) for name in textbox.OBJECTS]
                    for bucket in self.setting.buckets
                ]
            )
            found[role] = masks & chosen[self.bucket][:, :, None, None]
        found["ink"] = found["relevant"] & (self.x.scenes.ink() > 0)[:, None]
        letter = self.x.scenes.letter[:, None, None]
        letters = [masks[:, 2] & (letter == k) for k in range(len(textbox.LETTERS))]
        found["players"] = torch.stack([masks[:, 0], masks[:, 1], *letters], 1)
        return found


def generate(spec: SmerfSpec) -> dict[str, Any]:
    """Where everything is, for all splits, as `images` reads it: tensors and JSON values.

    Images of a bucket lie together, buckets in the setting's order.
    Raises ValueError if the folder of backdrops cannot be used.
    """
    pictures = {} if spec.images is None else backdrops.halves(spec.images)
    splits = {}
    for split in ("train", "validation", "test"):
        behind = pictures.get("test" if split == "test" else "train")
        parts = [_bucket(spec, split, bucket, behind).state() for bucket in spec.of.buckets]
        splits[split] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {"spec": spec.model_dump(mode="json"), "scenes": splits, "pictures": pictures}


def _bucket(spec: SmerfSpec, split: str, bucket: Bucket, pictures: Tensor | None) -> textbox.Scenes:
    count, stream = spec.count(split, bucket), f"{split}/{bucket.name}"
    corner, letters = textbox.place(
        bucket.scene.there, textbox.LETTERS.index(bucket.scene.letter or "A"), count,
        seed=spec.seed, stream=stream, apart=spec.preset == "fixed",
    )  # fmt: skip
    kinds = 2**32 if pictures is None else len(pictures)
    return textbox.Scenes(corner, letters, textbox.backdrop(kinds, count, spec.seed, stream))


def images(state: Mapping[str, Any], split: str) -> Images:
    """A split of what `generate` made."""
    spec = SmerfSpec.model_validate(state["spec"])
    scenes = textbox.Scenes(**state["scenes"][split])
    pattern: Any = "black" if spec.background == "images" else spec.background
    pictures = state["pictures"].get("test" if split == "test" else "train")
    x = textbox.Rendered(scenes, pictures, pattern)
    return Images(spec.of, x, bucket_of(spec.of, scenes), torch.arange(len(scenes)))


def bucket_of(setting: Setting, scenes: textbox.Scenes) -> Tensor:
    """int64 [N]: the number of each scene's bucket, -1 where the setting has none."""

    def code(box1: Any, box2: Any, letter: Any) -> Any:
        return box1 + 2 * box2 + 4 * letter

    numbers, letters = torch.full((12,), -1), (None, *textbox.LETTERS)
    for number, bucket in enumerate(setting.buckets):
        scene = bucket.scene
        numbers[code(scene.box1, scene.box2, letters.index(scene.letter))] = number
    box1, box2, text = scenes.there.long().unbind(1)
    return numbers[code(box1, box2, text * (1 + scenes.letter))]


# ---- what a model that reasons by the rule must not get wrong ---------------------------------

EDITS = (
    *((verb, name) for name in ("Box1", "Box2", "Text") for verb in ("add", "remove", "move")),
    ("swap", "Text"),
)


def edited(given: Images, verb: str, name: str, *, seed: int) -> tuple[Images, Tensor]:
    """The images in which an object can be added, removed, moved, or one letter swapped for the
    other, after that, and their rows in `given`. Nothing else in them changes.

    Images to which the setting then gives no label are left out.
    """
    scenes, number = given.x.scenes, textbox.OBJECTS.index(name)
    rows = (scenes.there[:, number] != (verb == "add")).nonzero().squeeze(1)
    found, stream = scenes[rows], f"{verb} {name}"
    if verb == "remove":
        corner = found.corner.clone()
        corner[:, number] = textbox.ABSENT
        found = replace(found, corner=corner)
    else:
        if (verb, name) == ("add", "Text"):
            drawn = textbox.backdrop(len(textbox.LETTERS), len(scenes), seed, stream)
            found = replace(found, letter=drawn[rows])
        elif verb == "swap":
            found = replace(found, letter=1 - found.letter)
        if verb != "swap":
            found = textbox.placed_again(found, number, seed=seed, stream=stream)
    bucket = bucket_of(given.setting, found)
    kept = bucket >= 0
    if verb != "remove":
        kept &= found.there[:, number]  # there was room for it
    x = replace(given.x, scenes=found[kept])
    return Images(given.setting, x, bucket[kept], given.index[rows[kept]]), rows[kept]


assert set(SETTINGS) == set(get_args(Name))
