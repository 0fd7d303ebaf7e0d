"""What an installation can do, what it lacks, and how to mend that."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil

from orchestrator import settings
from orchestrator.store import StoreError, open_store


@dataclass(frozen=True)
class Check:
    """One finding. `note`: Assay works without it; `bad`: it does not."""

    name: str
    verdict: Literal["ok", "note", "bad"]
    found: str
    remedy: str = ""


def checks(db: str | None = None) -> Iterator[Check]:
    """All findings, quick ones first."""
    yield _python()
    yield _cores()
    yield _disk()
    yield _database(db)
    yield _slurm()
    yield _gpu()
    yield from _libraries()


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("Python", "ok", f"{version} ({sys.executable})")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory()
    found = f"{cores} cores, {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    if memory.available < (1 + cores) * 2**30:
        return Check("machine", "note", found, "little memory: use fewer --slots")
    return Check("machine", "ok", found)


def _disk() -> Check:
    try:
        home = settings.home()
        probe = home / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except (settings.SettingsError, OSError) as error:
        remedy = "set ASSAY_HOME to a directory that you can write to"
        return Check("disk", "bad", str(error), remedy)
    free = shutil.disk_usage(home).free / 2**30
    found = f"{home}, {free:.1f} GiB free"
    if free < 2:
        return Check("disk", "note", found, "`assay cache prune`, or set ASSAY_HOME")
    return Check("disk", "ok", found)


def _database(db: str | None) -> Check:
    try:
        address = settings.store_address(db)
        store = open_store(address.url)
        store.ping()
    except (settings.SettingsError, StoreError) as error:
        remedy = "check --db, ASSAY_MONGODB_URI, or ~/.config/assay/config.yaml (store: …)"
        return Check("database", "bad", str(error), remedy)
    found = f"{store.url} (from {address.source})"
    if store.kind == "mongodb" and (open_to := _without_login(address.url)):
        remedy = "start it with --auth and a user, or have it listen on 127.0.0.1 only"
        return Check("database", "bad", f"{store.url} needs no login and {open_to}", remedy)
    if store.kind == "sqlite":
        remedy = "for several hosts: a MongoDB, by --db mongodb://… or ASSAY_MONGODB_URI"
        return Check("database", "ok", found, remedy)
    return Check("database", "ok", found)


def _without_login(url: str) -> str | None:
    """How others can reach a server that asks nobody to log in; None where they cannot."""
    place = urlsplit(url)
    if place.username:
        return None
    host = place.hostname or "127.0.0.1"
    if host not in ("localhost", "127.0.0.1", "::1"):
        return f"is on another host, {host}"
    port = place.port or 27017
    with suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            address: Any = one.laddr
            here = one.status == psutil.CONN_LISTEN and address and address.port == port
            if here and not address.ip.startswith(("127.", "::1")):
                return f"listens on {address.ip}:{port}"
    return None


def _slurm() -> Check:
    if shutil.which("sbatch") is None:
        remedy = "on a cluster: log in to a login node; on one machine: slurm/testbed up"
        return Check("Slurm", "note", "no sbatch on the PATH", remedy)
    answer = subprocess.run(
        ["sinfo", "--noheader", "--format=%P %D nodes %t"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if answer.returncode != 0:
        line = (answer.stderr.strip().splitlines() or ["sinfo failed"])[-1]
        remedy = 'is SLURM_CONF set? on one machine: eval "$(slurm/testbed env)"'
        return Check("Slurm", "note", line, remedy)
    return Check("Slurm", "ok", "; ".join(answer.stdout.split("\n")).strip("; "))


def _gpu() -> Check:
    if shutil.which("nvidia-smi") is None:
        return Check("GPU", "note", "none (no nvidia-smi): experiments run on the CPU")
    answer = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    names = [line for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode != 0 or not names:
        remedy = "nvidia-smi fails: the driver is not loaded, or no GPU is visible here"
        return Check("GPU", "note", "none usable", remedy)
    return Check("GPU", "ok", f"{len(names)}: {names[0]}")


def _libraries() -> Iterator[Check]:
    for module, name in (
        ("torch", "torch"), ("torchvision", "torchvision"), ("pytorch_grad_cam", "grad-cam"),
        ("scipy", "scipy"), ("sacred", "sacred"), ("seml", "seml"), ("submitit", "submitit"),
    ):  # fmt: skip
        if importlib.util.find_spec(module) is None:
            remedy = "pip install saliency-assay, in a fresh virtual environment"
            yield Check(name, "bad", "missing", remedy)
        else:
            yield Check(name, "ok", metadata.version(name))
