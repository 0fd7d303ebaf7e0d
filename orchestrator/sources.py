"""The code that an experiment runs is the code that was there when it was added.

When a file is added to a sweep, the sources of its project are stored beside the experiments, once
for each state they were in. Workers unpack them and run from there, whatever happens to the
working tree meanwhile. Experiments that SEML added bring SEML's own uploaded sources.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.queue import PENDING, STAGED, Queue
from orchestrator.store import Store, StoreError

SUFFIXES = {".py", ".yaml", ".yml", ".toml", ".json", ".cfg", ".ini", ".sh", ".c", ".cpp", ".cu"}
LARGEST_FILE = 1 << 20
MOST_FILES = 5000


@dataclass(frozen=True)
class Source:
    """Which state of the code experiments want: the value of their `assay.source`, and where it
    is unpacked. None, None: they have no stored sources, and run what is there."""

    digest: str | None = None
    folder: Path | None = None

    def condition(self) -> dict[str, Any]:
        """The filter for experiments that want this state."""
        return {"assay.source": self.digest if self.digest is not None else {"$exists": False}}


@dataclass(frozen=True)
class Snapshot:
    """The sources below a folder at one moment: relative path → content."""

    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """Equal for equal paths and contents, and for nothing else."""
        total = hashlib.sha256()
        for path, content in sorted(self.files.items()):
            total.update(f"{path}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        return total.hexdigest()

    def pack(self) -> bytes:
        """A compressed archive that depends on paths and contents only."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
            for path, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                entry.mode = 0o600
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()


def take(folder: str | Path) -> Snapshot:
    """The sources below a folder: what git tracks or would track, else all files but hidden ones.

    Data does not count: only source-like files of at most a mebibyte.
    """
    root = Path(folder)
    files: dict[str, bytes] = {}
    for path in _candidates(root):
        full = root / path
        try:
            if full.is_symlink() or not full.is_file() or full.stat().st_size > LARGEST_FILE:
                continue
            files[path.as_posix()] = full.read_bytes()
        except OSError:  # removed between the listing and the look
            continue
        if len(files) >= MOST_FILES:
            break
    return Snapshot(files)


def _candidates(root: Path) -> Iterator[Path]:
    command = [
        "git",
        "-C",
        str(root),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, check=False)
        listed = answer.stdout.decode(errors="replace").split("\0") if not answer.returncode else []
    except OSError:
        listed = []
    if listed:
        found = sorted(Path(name) for name in set(listed) if Path(name).suffix in SUFFIXES)
        # Of Assay's own repository only what experiments run: the machinery is not part of them.
        ours = (root / "orchestrator" / "sources.py").is_file()
        yield from (path for path in found if not ours or path.parts[0] == "experiments")
        return
    for folder, below, names in os.walk(root):
        below[:] = sorted(b for b in below if not b.startswith((".", "__pycache__")))
        for name in sorted(names):
            if Path(name).suffix in SUFFIXES:
                yield (Path(folder) / name).relative_to(root)


def moved_on(queue: Queue) -> str:
    """A sentence where waiting experiments will run code that differs from the working tree."""
    waiting = {"status": {"$in": [STAGED, PENDING]}, "assay.source": {"$exists": True}}
    fields = ["assay.source", "seml.working_dir"]
    first = queue.store.find(queue.collection, waiting, fields=fields, limit=1)
    if not first or not Path(first[0]["seml"]["working_dir"]).is_dir():
        return ""
    folder = first[0]["seml"]["working_dir"]
    if take(folder).digest == first[0]["assay"]["source"]:
        return ""
    return (
        f"the sources in {folder} have changed since experiment {first[0]['_id']} was added; it "
        "will run those of then (delete and add it again to run those of now)"
    )


def key(collection: str, digest: str) -> str:
    """The blob that holds a state of the sources of a sweep."""
    return f"{collection}/sources/{digest}"


def keep(store: Store, collection: str, snapshot: Snapshot) -> str:
    """Store a snapshot, once; returns its digest."""
    digest = snapshot.digest
    name = key(collection, digest)
    if not store.blob_keys(name):
        store.put_blob(name, snapshot.pack())
    return digest


def restore(store: Store, collection: str, digest: str, home: Path) -> Path:
    """The folder with a stored state of the sources; unpacked when it is needed first.

    Raises:
        StoreError: the sweep does not have it.
    """
    target = home / "sources" / digest
    if target.is_dir():
        return target
    packed = store.get_blob(key(collection, digest))
    if packed is None:
        raise StoreError(f"sweep {collection!r} lacks the sources {digest[:12]} of its experiments")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return _place(target, lambda folder: archive.extractall(folder, filter="data"))


def wanted(queue: Queue, home: Path) -> Source:
    """The sources of the experiment that waits longest.

    Raises:
        StoreError: the sweep does not have them.
    """
    first = queue.store.find(queue.collection, queue.waiting, fields=["assay"], limit=1)
    digest = first[0].get("assay", {}).get("source") if first else None
    if digest is None:
        return Source()
    return Source(digest, restore(queue.store, queue.collection, digest, home))


def restore_of_seml(store: Store, document: dict[str, Any], home: Path) -> Path | None:
    """The folder with the sources that SEML uploaded for an experiment, if it did."""
    listed = document.get("seml", {}).get("source_files")
    if not listed or store.kind != "mongodb":
        return None
    files: dict[str, bytes] = {}
    for path, number in listed:
        chunks = store.find("fs.chunks", {"files_id": number}, sort=[("n", 1)])
        files[str(path)] = b"".join(bytes(chunk["data"]) for chunk in chunks)
    snapshot = Snapshot(files)
    target = home / "sources" / snapshot.digest

    def write(folder: Path) -> None:
        for path, content in snapshot.files.items():
            place = (folder / path).resolve()
            if not place.is_relative_to(folder.resolve()):
                raise StoreError(f"source file {path!r} leads out of its folder")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)

    return target if target.is_dir() else _place(target, write)


def _place(target: Path, fill: Any) -> Path:
    """Fill a folder and give it its name at once, so that nobody sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unfinished-"))
    try:
        fill(unfinished)
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():  # else another worker was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target
