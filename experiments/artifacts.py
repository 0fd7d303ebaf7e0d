"""The content-addressed store: what a stage returned, under the hash of all it depends on.

One artifact is one file, `<root>/<stage>/<key[:2]>/<key>.assay`: a magic line, a JSON header line
(what was computed, from what, by which code, how long it took, and the SHA-256 of the payload),
then the payload, written by `torch.save` and read with `weights_only=True`, so that reading never
runs code. A file appears whole or not at all (temporary file, fsync, atomic rename), and is
believed only when its checksum holds.

The checkpoint of a stage that is still being computed is a file of the same form beside it,
`<key>.checkpoint`. It is not an artifact: it is not listed, and is gone when the artifact is there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"assay artifact 1\n"
SUFFIX = ".assay"
CHECKPOINT = ".checkpoint"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KEY = re.compile(r"[0-9a-f]{64}")


class CorruptArtifact(Exception):
    """The file is there, but its header or its checksum does not hold."""


@dataclass(frozen=True)
class Entry:
    """One stored artifact, without its payload."""

    path: Path
    header: dict[str, Any]
    bytes: int
    modified: float

    @property
    def stage(self) -> str:
        return str(self.header["stage"])

    @property
    def key(self) -> str:
        return str(self.header["key"])


class ArtifactStore:
    """Artifacts in a directory that all workers share (a laptop's disk, a cluster's file system).

    Values are tensors, numbers, strings, None, and dicts, lists and tuples of these.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, stage: str, key: str, *, suffix: str = SUFFIX) -> Path:
        """Where an artifact is, or would be (with another suffix: its checkpoint).

        Raises:
            ValueError: the stage is not an identifier or the key not a SHA-256, so that no
                configuration can name a file outside the root.
        """
        if not _NAME.fullmatch(stage) or not _KEY.fullmatch(key):
            raise ValueError(f"not an artifact: stage {stage!r}, key {key!r}")
        return self.root / stage / key[:2] / f"{key}{suffix}"

    def load(self, stage: str, key: str, *, suffix: str = SUFFIX) -> Any:
        """The value stored under the key.

        Raises:
            FileNotFoundError: there is none.
            CorruptArtifact: there is a file, but it cannot be trusted.
        """
        path = self.path(stage, key, suffix=suffix)
        with path.open("rb") as file:
            header = _read_header(file, path)
            payload = file.read()
        if hashlib.sha256(payload).hexdigest() != header["sha256"]:
            raise CorruptArtifact(f"{path}: the checksum does not hold")
        import torch

        return torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")

    def save(
        self, stage: str, key: str, value: Any, header: dict[str, Any], *, suffix: str = SUFFIX
    ) -> Entry:
        """Store a value; a reader sees the whole of it or nothing.

        Args:
            header: JSON values that say where the value came from.

        Raises:
            OSError: the disk is full or not writable; nothing is left behind.
        """
        import torch

        path = self.path(stage, key, suffix=suffix)
        buffer = io.BytesIO()
        torch.save(value, buffer)
        payload = buffer.getvalue()
        header = {
            "stage": stage,
            "key": key,
            **header,
            "sha256": hashlib.sha256(payload).hexdigest(),
            "created": time.time(),
            "host": socket.gethostname(),
        }
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n", payload)
        return Entry(path, header, len(payload), time.time())

    def entries(self, stage: str | None = None) -> Iterator[Entry]:
        """Every artifact (of one stage), by header alone; unreadable headers have no stage's facts.

        A file whose header cannot be read is yielded with `header["corrupt"] = True`.
        """
        for path in sorted(self.root.glob(f"{stage or '*'}/??/*{SUFFIX}")):
            try:
                status = path.stat()
                with path.open("rb") as file:
                    header = _read_header(file, path)
            except FileNotFoundError:
                continue
            except CorruptArtifact:
                header = {"stage": path.parts[-3], "key": path.stem, "corrupt": True}
            yield Entry(path, header, status.st_size, status.st_mtime)

    def verify(self) -> Iterator[tuple[Entry, str | None]]:
        """Every artifact with what is wrong with it, or None."""
        for entry in self.entries():
            try:
                self.load(entry.stage, entry.key)
            except (CorruptArtifact, OSError, ValueError) as error:
                yield entry, str(error)
            else:
                yield entry, None

    def leftovers(self, older_than: float = 3600.0, unfinished: float = 30 * 86400.0) -> list[Path]:
        """Files that nobody will ask for again.

        Temporary files of writers that died, and checkpoints beside their finished artifact,
        older than `older_than` seconds; checkpoints of stages that were left unfinished, older
        than `unfinished` seconds.
        """
        now = time.time()
        found = []
        for path in sorted(self.root.glob("*/??/*")):
            if path.suffix == CHECKPOINT:
                limit = older_than if path.with_suffix(SUFFIX).exists() else unfinished
            elif path.suffix == ".tmp":
                limit = older_than
            else:
                continue
            with suppress(FileNotFoundError):  # finished, or tidied by another, since we looked
                if path.stat().st_mtime < now - limit:
                    found.append(path)
        return found


def write_atomically(path: Path, *pieces: bytes) -> None:
    """Write a file so that it is whole, durable, and private to the user, or not there at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_header(path: Path) -> dict[str, Any] | None:
    """What an artifact's file says of itself; None if it is gone or cannot be trusted."""
    try:
        with path.open("rb") as file:
            return _read_header(file, path)
    except (OSError, CorruptArtifact):
        return None


def _read_header(file: Any, path: Path) -> dict[str, Any]:
    if file.readline(len(MAGIC)) != MAGIC:
        raise CorruptArtifact(f"{path}: not an artifact of this version")
    try:
        header = json.loads(file.readline())
    except ValueError as error:
        raise CorruptArtifact(f"{path}: the header is broken") from error
    if not isinstance(header, dict) or "sha256" not in header:
        raise CorruptArtifact(f"{path}: the header is broken")
    return header
