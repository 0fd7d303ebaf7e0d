"""Who is alive: workers say so in the store, and anybody may ask.

A worker registers a document with its place (host, boot, process, Slurm job) and adds one to its
`beat` every few seconds. Death is concluded from evidence that needs no common clock: the process
is gone on this host, the host has booted since, Slurm no longer has the job, or the beat has not
changed for a minute *of the observer's own monotonic clock*.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from orchestrator import scheduler, settings
from orchestrator.store import Store

WORKERS = "assay.workers"
REPLACED = "replaced by a new start of its Slurm job"
FORGOTTEN_AFTER_SECONDS = 600.0  # by the wall clock: for commands too short to watch a beat


def place() -> dict[str, Any]:
    """Where this process runs, in terms that another process can check.

    A local worker that was started inside an allocation belongs to that job, too: it ends with it.
    The shell that `salloc` opens on a login node has the job's variables but is not in the job;
    only Slurm's own daemon, which starts what is in it, sets SLURMD_NODENAME.
    """
    inside = "SLURMD_NODENAME" in os.environ
    return {
        "host": socket.gethostname(),
        "user": os.getuid(),
        "boot": _boot(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "cluster": os.environ.get("SLURM_CLUSTER_NAME") if inside else None,
        "slurm_job": _number("SLURM_JOB_ID") if inside else None,
        "array_job": _number("SLURM_ARRAY_JOB_ID") if inside else None,
        "array_task": _number("SLURM_ARRAY_TASK_ID") if inside else None,
        "restart": (_number("SLURM_RESTART_COUNT") or 0) if inside else 0,
    }


def register(store: Store, collection: str, slots: int) -> dict[str, Any]:
    """Enter this process as a worker of a sweep; returns its document.

    A Slurm job that was started again takes the place of its former self at once. Several workers
    in one start of a job are several workers.
    """
    worker: dict[str, Any] = {
        "_id": uuid.uuid4().hex,
        "collection": collection,
        "slots": slots,
        "beat": 0,
        "seen": time.time(),
        "state": "running",
        "place": place(),
    }
    store.insert(WORKERS, [worker])
    job = worker["place"]["slurm_job"]
    if job is not None:
        former = {
            "_id": {"$ne": worker["_id"]},
            "place.slurm_job": job,
            "place.cluster": worker["place"]["cluster"],
            "place.restart": {"$lt": worker["place"]["restart"]},
            "state": "running",
        }
        store.update(WORKERS, former, {"$set": {"state": REPLACED}}, many=True)
    return worker


def beat(store: Store, worker: str, **facts: Any) -> bool:
    """Say that a worker is alive; False when it was declared dead or replaced."""
    change = {"$inc": {"beat": 1}, "$set": {"seen": time.time(), **facts}}
    return store.update(WORKERS, {"_id": worker, "state": "running"}, change) == 1


def leave(store: Store, worker: str) -> None:
    """Say that a worker has ended in good order."""
    store.update(WORKERS, {"_id": worker}, {"$set": {"state": "ended"}})


class Watch:
    """Judges workers, remembering what this process has seen of their beats."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._born = time.monotonic()
        # Of each worker: its beat, for how long it has not changed, and when we last looked.
        self._seen: dict[str, tuple[int, float, float]] = {}

    def dead(self, worker: str) -> str | None:
        """Why the worker counts as dead, or None while it may be alive."""
        document = self.store.find_one(WORKERS, {"_id": worker})
        if document is None:
            return "unknown worker"
        if document["state"] != "running":
            return str(document["state"]).removeprefix("dead: ")
        why = _evidence(document["place"]) or self._silence(document)
        if why is not None:
            as_seen = {"_id": worker, "state": "running", "beat": document["beat"]}
            change = {"$set": {"state": f"dead: {why}"}}
            if self.store.update(WORKERS, as_seen, change) == 0:
                return None  # it has spoken or ended meanwhile: the next look will tell
        return why

    def living(self, collection: str) -> list[dict[str, Any]]:
        """The workers of a sweep that may be alive."""
        workers = self.store.find(WORKERS, {"collection": collection, "state": "running"})
        return [worker for worker in workers if self.dead(worker["_id"]) is None]

    def _silence(self, document: dict[str, Any]) -> str | None:
        now = time.monotonic()
        beat, silent, looked = self._seen.get(document["_id"], (None, 0.0, now))
        # Where we have not looked for long, the store was away or this process was suspended, and
        # so may the worker have been: it gets the time to speak before we conclude anything.
        counted = min(now - looked, settings.DEAD_AFTER_SECONDS / 3)
        silent = silent + counted if beat == document["beat"] else 0.0
        self._seen[document["_id"]] = (document["beat"], silent, now)
        if silent > settings.DEAD_AFTER_SECONDS:
            return f"no sign of life for {silent:.0f} s"
        # A command that has just begun has nothing but the wall clock, which jumps when a laptop
        # wakes up: not for processes that we see alive, nor where we can watch for longer.
        begun = now - self._born <= settings.DEAD_AFTER_SECONDS
        forgotten = time.time() - document["seen"] > FORGOTTEN_AFTER_SECONDS
        if begun and forgotten and not is_here(document["place"]):
            return "no sign of life for minutes"
        return None


def is_here(place: dict[str, Any]) -> bool:
    """Whether the process at a place is alive, on this host."""
    if place["host"] != socket.gethostname() or place["boot"] != _boot():
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(place["pid"])
        # Create times of one process differ by rounding only; a reused pid by seconds.
        same = abs(process.create_time() - place["started"]) <= 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    return False


def _evidence(place: dict[str, Any]) -> str | None:
    if place["host"] == socket.gethostname():
        if place["boot"] != _boot():
            return "its host has booted since"
        return None if is_here(place) else "its process is gone"
    # squeue speaks of one cluster, and only of our own jobs.
    ours = place["slurm_job"] is not None and place.get("user") == os.getuid()
    if ours and place["cluster"] == scheduler.cluster():
        jobs = scheduler.shared.active()
        if jobs is not None and place["slurm_job"] not in jobs:
            scheduler.shared.expire()  # the list may be older than the job
            jobs = scheduler.shared.active()
        if jobs is not None and place["slurm_job"] not in jobs:
            return f"Slurm job {place['slurm_job']} has ended"
    return None


@lru_cache(maxsize=1)
def _boot() -> str:
    """An id that changes when the machine boots."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return str(int(psutil.boot_time()))


def _number(variable: str) -> int | None:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else None
