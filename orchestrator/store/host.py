"""What an SQLite store must know of its place: which host this is, which file system holds it."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path

from orchestrator.store.errors import StoreError

# SQLite needs POSIX locks and shared memory that work; over these they do not, or not always.
_SHARED = re.compile(
    r"nfs\d?|nfs\+.*|cifs|smb\w*|ncpfs|lustre|gpfs|beegfs|fhgfs\w*|ceph|glusterfs|gfs2?|ocfs2|afs|"
    r"orangefs|pvfs2|panfs|wekafs|9p|virtiofs|vboxsf|prl_fs|davfs\d?|"
    r"fuse\.(?!fuse-overlayfs|ntfs|exfat|gocryptfs|encfs|mergerfs|lxcfs).*"
)
_MOUNTS = Path("/proc/self/mountinfo")


def host_identity() -> str:
    """The machine id and the name of this host."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            machine = Path(path).read_text().strip()
        except OSError:
            continue
        if machine:
            return f"{socket.gethostname()} ({machine[:12]})"
    return f"{socket.gethostname()} (no machine id)"


def filesystem(path: Path) -> str | None:
    """The type of the file system that holds `path` ("ext4", "nfs4", ...), None if not known."""
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:  # not Linux
        return None
    target, best, kind = os.path.realpath(path), -1, None
    for line in lines:
        # 36 35 98:0 /root /mount/point options [optional fields] - type source options
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), before.split()[4])
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # of two mounts on one place the later one is on top
            best, kind = len(point), after.split()[0]
    return kind


def refuse_shared_filesystem(path: Path) -> None:
    """StoreError if `path` lies on a file system that several hosts may share."""
    kind = filesystem(path)
    if kind is not None and _SHARED.fullmatch(kind):
        raise StoreError(
            f"{path} is on a {kind} file system, where SQLite is not safe: name a path on a local "
            "disk, or use MongoDB (`assay db push mongodb://...` moves a sweep there)"
        )


def create_private(path: Path) -> None:
    """Create an empty file that only its owner may read, and its directory if there is none.

    A file that is there is not opened: closing it would release the locks that this process has
    on it through another store. SQLite of another process would then take itself for the last
    user, and remove the log that our connections go on writing to.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
