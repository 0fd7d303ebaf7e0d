"""TextBox images: a letter and two boxes, white, somewhere on a background (Kim et al. 2022).

A *scene* is where its objects are and what is behind them; images are rendered when somebody
looks, on the device that looks, so that a training set of 150,000 images is a few megabytes.

Geometry of *Sanity Simulations for Saliency Methods*: 64 × 64 pixels; Box1 has 10 × 10, Box2
4 × 4, letters 15 or 13 columns and 19 rows, of which the upper four are blank.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from experiments.randomness import derive_seed

SIZE = 64  # pixels of a side
OBJECTS = ("Box1", "Box2", "Text")
LETTERS = ("A", "B")
SIDES = {"Box1": 10, "Box2": 4}
LETTER_HEIGHT, LETTER_WIDTHS = 19, {"A": 15, "B": 13}
BLANK_ROWS = 4  # above the ink of a letter
LETTER_RANGE, LETTER_OFFSET = 36, 6  # a letter's corner is at floor(36 u + 6), u in [0, 1)
BOX_PLACES = 54  # a box's corner is 0 .. 53
# The largest squared distance of corners that is too close, by pair of OBJECTS.
TOO_CLOSE = {frozenset((0, 2)): 300, frozenset((1, 2)): 400, frozenset((0, 1)): 300}
CANDIDATES = 8  # places that are drawn for a box at a time
ABSENT = -1


@dataclass(frozen=True, eq=False)
class Scenes:
    """N scenes.

    corner   int64 [N, 3, 2]  row and column of the upper left pixel of each of OBJECTS; -1: absent
    letter   int64 [N]        0 for A, 1 for B (whatever it is where there is no text)
    backdrop int64 [N]        which backdrop is behind the objects; the seed of a pattern
    """

    corner: Tensor
    letter: Tensor
    backdrop: Tensor

    def __len__(self) -> int:
        return len(self.letter)

    def __getitem__(self, rows: Any) -> Scenes:
        return Scenes(*(getattr(self, item.name)[rows] for item in fields(self)))

    def to(self, device: torch.device) -> Scenes:
        return Scenes(*(getattr(self, item.name).to(device) for item in fields(self)))

    def state(self) -> dict[str, Tensor]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @property
    def there(self) -> Tensor:
        """bool [N, 3]: which objects a scene has."""
        return self.corner[:, :, 0] != ABSENT

    @property
    def boxes(self) -> Tensor:
        """int64 [N, 3, 4]: (row0, row1, column0, column1) of each object, half open; -1: absent."""
        widths = torch.tensor([LETTER_WIDTHS[name] for name in LETTERS], device=self.letter.device)
        high = torch.tensor([SIDES["Box1"], SIDES["Box2"], LETTER_HEIGHT], device=widths.device)
        wide = high.expand(len(self), 3).clone()
        wide[:, 2] = widths[self.letter]
        row, column = self.corner.unbind(2)
        found = torch.stack([row, row + high, column, column + wide], 2)
        return found.masked_fill(~self.there[:, :, None], ABSENT)

    def masks(self) -> Tensor:
        """bool [N, 3, H, W]: the box of each object, empty for one that is absent."""
        places = torch.arange(SIZE, device=self.corner.device)
        row0, row1, column0, column1 = self.boxes.unsqueeze(3).unbind(2)
        rows, columns = (places >= row0) & (places < row1), (places >= column0) & (places < column1)
        return rows[:, :, :, None] & columns[:, :, None, :]

    def ink(self) -> Tensor:
        """uint8 [N, H, W]: how white the objects make each pixel, 255 for wholly."""
        layer = torch.zeros(len(self) * SIZE**2, dtype=torch.uint8, device=self.letter.device)
        atlas = glyphs().to(layer.device)
        for number, name in enumerate(OBJECTS):
            rows = self.there[:, number].nonzero().squeeze(1)
            if name in SIDES:
                stamp = layer.new_full((len(rows), SIDES[name], SIDES[name]), 255)
            else:
                stamp = atlas[self.letter[rows]]
            down = torch.arange(stamp.shape[1], device=layer.device)[:, None]
            right = torch.arange(stamp.shape[2], device=layer.device)
            row, column = self.corner[rows, number, :, None, None].unbind(1)
            where = ((rows[:, None, None] * SIZE + row + down) * SIZE + column + right).flatten()
            # Of two objects at one pixel the whiter one is seen.
            layer[where] = torch.maximum(layer[where], stamp.flatten())
        return layer.view(len(self), SIZE, SIZE)


# ---- drawing ---------------------------------------------------------------------------------


@functools.cache
def glyphs() -> Tensor:
    """uint8 [2, 19, 15]: an A of 14 × 15 and a B of 12 × 15 pixels of ink, antialiased.

    Drawn here with strokes, of about the size and weight of the original's letters (whose font
    is proprietary): Σ = 69.5 and 89.9 white pixels there.
    """
    fine = 8  # samples of a pixel along each axis
    height, width = LETTER_HEIGHT - BLANK_ROWS, max(LETTER_WIDTHS.values())
    y = (np.arange(height * fine) + 0.5)[:, None] / fine
    x = (np.arange(width * fine) + 0.5)[None, :] / fine
    drawn = []
    for strokes, weight in ((_A, 1.98), (_B, 1.85)):
        inside = np.zeros((height * fine, width * fine), dtype=bool)
        for (x0, y0), (x1, y1) in strokes:
            along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / (
                (x1 - x0) ** 2 + (y1 - y0) ** 2
            )
            along = along.clip(0, 1)
            away = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
            inside |= away <= weight / 2
        share = inside.reshape(height, fine, width, fine).mean((1, 3))
        drawn.append(np.pad(np.rint(255 * share).astype(np.uint8), ((BLANK_ROWS, 0), (0, 0))))
    return torch.from_numpy(np.stack(drawn))


def _arc(x: float, y: float, wide: float, high: float) -> list[Any]:
    """The right half of an ellipse as short strokes."""
    turn = np.linspace(-np.pi / 2, np.pi / 2, 13)
    points = [(x + wide * np.cos(t), y + high * np.sin(t)) for t in turn]
    return list(itertools.pairwise(points))


_A = [((1.0, 14.0), (7.0, 1.0)), ((7.0, 1.0), (13.0, 14.0)), ((3.0, 9.6), (11.0, 9.6))]
_B = [
    ((1.0, 1.0), (1.0, 14.0)), ((1.0, 1.0), (6.6, 1.0)), ((1.0, 7.2), (7.0, 7.2)),
    ((1.0, 14.0), (7.0, 14.0)), *_arc(6.6, 4.1, 3.9, 3.1), *_arc(7.0, 10.6, 4.1, 3.4),
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Rendered:
    """Scenes as a sequence of images [N, 3, H, W] in [0, 1], rendered when they are taken.

    Stands in for a tensor where batches are taken of it: `len`, `shape`, `dtype`, `device`,
    `to(like)`, `split`, and rows by a tensor or a slice.

    backdrops  uint8 [K, 3, H, W], pictures to stand behind the objects; or None: a `pattern`
    pattern    "black"; "noise", each channel of each pixel uniform in 0 .. 99; "gradient", from
               blue to red in some direction
    """

    scenes: Scenes
    backdrops: Tensor | None = None
    pattern: Literal["black", "noise", "gradient"] = "black"
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, SIZE, SIZE))

    @property
    def device(self) -> torch.device:
        return self.scenes.corner.device

    def to(self, like: Tensor) -> Rendered:
        """On the device and in the precision of a tensor."""
        backdrops = None if self.backdrops is None else self.backdrops.to(like.device)
        scenes = self.scenes.to(like.device)
        return replace(self, scenes=scenes, backdrops=backdrops, dtype=like.dtype)

    def __getitem__(self, rows: Any) -> Tensor:
        return self._rendered(self.scenes[rows])

    def split(self, size: int) -> Iterator[Tensor]:
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def bytes(self, rows: Any = slice(None)) -> Tensor:
        """uint8 [N, H, W] of images on black, else [N, 3, H, W]: what is written to a file."""
        scenes = self.scenes[rows]
        if self.backdrops is None and self.pattern == "black":
            return scenes.ink()
        return (255 * self._rendered(scenes)).round().to(torch.uint8)

    def _rendered(self, scenes: Scenes) -> Tensor:
        ink = scenes.ink()[:, None].to(self.dtype) / 255
        if self.backdrops is None and self.pattern == "black":
            return ink.expand(-1, 3, -1, -1).contiguous()
        behind = self._behind(scenes).to(self.dtype) / 255
        return behind + ink * (1 - behind)

    def _behind(self, scenes: Scenes) -> Tensor:
        """[N, 3, H, W] in 0 .. 255."""
        if self.backdrops is not None:
            return self.backdrops[scenes.backdrop]
        draw = _noise if self.pattern == "noise" else _gradient
        return torch.stack([draw(int(seed)) for seed in scenes.backdrop.tolist()]).to(self.device)


def _noise(seed: int) -> Tensor:
    drawn = _stream("noise", seed).integers(0, 100, (3, SIZE, SIZE), dtype=np.uint8)
    return torch.from_numpy(drawn)


def _gradient(seed: int) -> Tensor:
    turn = 2 * np.pi * _stream("gradient", seed).random()
    places = np.linspace(-1, 1, SIZE)
    slope = np.cos(turn) * places[None, :] + np.sin(turn) * places[:, None]
    red = (slope - slope.min()) / (slope.max() - slope.min())
    colours = np.stack([red, np.zeros_like(red), 1 - red])
    return torch.from_numpy(np.rint(255 * colours).astype(np.uint8))


# ---- placing ---------------------------------------------------------------------------------


def place(
    there: Sequence[bool], letter: int, count: int, *, seed: int, stream: str, apart: bool
) -> tuple[Tensor, Tensor]:
    """corner [count, 3, 2] and letter [count] of scenes with these of OBJECTS.

    As the original: text anywhere in its range, then Box1 until its corner is far enough from
    the text's (even without text), then Box2 until it is from both. Distances are taken from the
    text's corner before its offset of 6 pixels is added, so that objects can touch or overlap;
    with `apart` boxes are also drawn again until none overlaps another.

    Scene i depends on (seed, stream, i) alone, not on how many there are.
    """
    letters = torch.full((count,), letter)
    anywhere = _drawn("Text", (seed, stream), count)[:, 0]
    corner = torch.full((count, len(OBJECTS), 2), ABSENT)
    corner[:, 2] = anywhere
    for number in range(2):
        if there[number]:
            near = [2] if number == 0 or there[2] else []
            near += [0] if number == 1 and there[0] else []
            scenes = Scenes(corner, letters, letters)
            corner[:, number] = _placed(number, scenes, near, (seed, stream), apart and there[2])
    if not there[2]:
        corner[:, 2] = ABSENT
    return corner, letters


def placed_again(scenes: Scenes, number: int, *, seed: int, stream: str) -> Scenes:
    """The scenes with object `number` of OBJECTS somewhere else, or there for the first time.

    The same distances are kept, and nothing overlaps. A scene in which it cannot be put anywhere
    (a letter is large) loses the object.
    """
    corner = scenes.corner.clone()
    near = [other for other in range(len(OBJECTS)) if other != number]
    corner[:, number] = _placed(number, scenes, near, (seed, stream), True, most=64)
    return replace(scenes, corner=corner)


def backdrop(kinds: int, count: int, seed: int, stream: str) -> Tensor:
    """int64 [count] of 0 .. kinds - 1: what is behind each scene."""
    drawn = _stream("backdrop", seed, stream).random(count)
    return torch.from_numpy(np.floor(kinds * drawn).astype(np.int64))


def _placed(
    number: int,
    scenes: Scenes,
    near: Sequence[int],
    stream: tuple[Any, ...],
    apart: bool,
    most: int | None = None,
) -> Tensor:
    """[N, 2]: the first of the corners drawn for the object that suits a scene; ABSENT if none of
    `most` rounds of them does. `near`: the objects, where they are, that it keeps away from."""
    found, boxes = torch.full((len(scenes), 2), ABSENT), scenes.boxes
    rounds = itertools.count() if most is None else range(most)
    for draws in rounds:
        rows = (found[:, 0] == ABSENT).nonzero().squeeze(1)
        if not len(rows):
            break
        drawn = _drawn(OBJECTS[number], (*stream, draws), int(rows[-1]) + 1)[rows]
        fits = torch.ones(drawn.shape[:2], dtype=torch.bool)
        for other in near:
            away = _anchor(number, drawn) - _anchor(other, scenes.corner[rows, other])[:, None]
            clear = away.square().sum(2) > TOO_CLOSE[frozenset((number, other))]
            if apart:
                box = boxes[rows, other, None]
                high, wide = _size(number, scenes.letter[rows])
                clear &= (
                    (drawn[:, :, 0] + high <= box[:, :, 0]) | (drawn[:, :, 0] >= box[:, :, 1])
                    | (drawn[:, :, 1] + wide <= box[:, :, 2]) | (drawn[:, :, 1] >= box[:, :, 3])
                )  # fmt: skip
            fits &= clear | ~scenes.there[rows, other, None]
        some = fits.any(1)
        found[rows[some]] = drawn[some, fits[some].long().argmax(1)]
    return found


def _drawn(name: str, stream: tuple[Any, ...], count: int) -> Tensor:
    """int64 [count, CANDIDATES, 2]: corners that an object may have."""
    uniform = torch.from_numpy(_stream(name, *stream).random((count, CANDIDATES, 2)))
    if name == "Text":
        return (LETTER_RANGE * uniform + LETTER_OFFSET).floor().long()
    return (BOX_PLACES * uniform).floor().long()


def _anchor(number: int, corner: Tensor) -> Tensor:
    """What distances are measured from."""
    return corner - LETTER_OFFSET if OBJECTS[number] == "Text" else corner


def _size(number: int, letter: Tensor) -> tuple[int, Tensor]:
    """Rows, and columns [N, 1], of an object."""
    if (side := SIDES.get(OBJECTS[number])) is not None:
        return side, torch.full((len(letter), 1), side)
    return LETTER_HEIGHT, torch.tensor([LETTER_WIDTHS[name] for name in LETTERS])[letter, None]


def _stream(*parts: Any) -> np.random.Generator:
    """Row i of what it draws is the same however many rows are drawn."""
    return np.random.Generator(np.random.Philox(key=derive_seed("textbox", *parts)))
