"""Pictures of a folder, as backdrops of images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from experiments.data.textbox import SIZE

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
DIM = 0.7  # of the brightness, so that white objects stand out (Kim et al. 2022, code)


def files(folder: str) -> list[Path]:
    """The pictures of a folder and of the folders in it, sorted.

    Raises ValueError if there are not at least two: one for training, one for the test.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.images: no folder {str(root)!r}")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        raise ValueError(
            f"data.images: {len(found)} pictures ({', '.join(SUFFIXES)}) in {str(root)!r}; at "
            "least 2 are needed, as training and test do not share any"
        )
    return found


def fingerprint(folder: str) -> str:
    """SHA-256 of the pictures, another one when any of them changes. Raises as `files`."""
    digest = hashlib.sha256()
    for path in files(folder):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def halves(folder: str) -> dict[str, Tensor]:
    """uint8 [K, 3, 64, 64] for "train" and "test": every second picture, resized and darkened.

    Raises ValueError as `files` does, and for a file that is no picture.
    """
    read = [_read(path) for path in files(folder)]
    return {"train": torch.stack(read[::2]), "test": torch.stack(read[1::2])}


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"data.images: cannot read {str(path)!r} ({error})") from None
    pixels = np.rint(DIM * np.asarray(small, dtype=np.float32)).astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
