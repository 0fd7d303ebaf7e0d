"""Intents: what is being started, written down before it is.

Before a job is submitted, a document with a token says so; the job carries the token as its
comment; afterwards the document gets the job's number. Whoever dies in between leaves a document
that `reconcile` completes from what Slurm has. The documents also tell which of the user's jobs
are workers of a sweep, before those have registered themselves.

    submitting → submitted | refused | lost
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psutil

from orchestrator import liveness, scheduler
from orchestrator.queue import now
from orchestrator.store import Store

LAUNCHES = "assay.launches"
SUBMITTING, SUBMITTED, REFUSED, LOST = "submitting", "submitted", "refused", "lost"
UNCERTAIN = timedelta(seconds=30)  # for so long, a submitter may still be at it


def comment(token: str) -> str:
    """What a job's comment says about its intent."""
    return f"assay:{token}"


def declare(store: Store, collection: str, executor: str, workers: int) -> str:
    """Enter the intent to start workers; returns its token."""
    token = secrets.token_hex(8)
    intent = {
        "_id": token,
        "collection": collection,
        "state": SUBMITTING,
        "executor": executor,
        "workers": workers,
        "at": now(),
        "host": socket.gethostname(),
        "user": os.getuid(),
        "cluster": scheduler.cluster() if executor == "slurm" else None,
    }
    store.insert(LAUNCHES, [intent])
    return token


def conclude(store: Store, token: str, **facts: Any) -> None:
    """Write down what became of an intent."""
    store.update(LAUNCHES, {"_id": token}, {"$set": facts})


def reconcile(store: Store, collection: str) -> None:
    """Find out what became of submissions whose submitter never said: submitted, or lost.

    Asks Slurm only if there are any, once for all of them; without an answer they stay as they
    are. Only the same user on the same cluster can tell.
    """
    waiting = store.find(LAUNCHES, {"collection": collection, "state": SUBMITTING})
    old = [intent for intent in waiting if now() - intent["at"] > UNCERTAIN]
    lost = [i for i in old if i["executor"] != "slurm" and i["host"] == socket.gethostname()]
    ours = [i for i in old if i["executor"] == "slurm" and i["user"] == os.getuid()]
    if ours:
        cluster = scheduler.cluster()
        ours = [intent for intent in ours if intent["cluster"] == cluster]
    known = _jobs_by_comment(collection, ours) if ours else None
    for intent in ours:
        if known is None:  # Slurm does not answer
            break
        if jobs := known.get(comment(intent["_id"])):
            conclude(store, intent["_id"], state=SUBMITTED, jobs=jobs)
        else:
            lost.append(intent)
    for intent in lost:  # its submitter may be slow, not dead: what it says later wins
        still = {"_id": intent["_id"], "state": SUBMITTING}
        store.update(LAUNCHES, still, {"$set": {"state": LOST}})


def _jobs_by_comment(
    collection: str, launches: list[dict[str, Any]]
) -> dict[str, list[str]] | None:
    """Numbers of the jobs with each comment; None when Slurm does not answer."""
    scheduler.shared.expire()
    jobs = scheduler.shared.jobs()
    if jobs is None:
        return None
    found: dict[str, set[str]] = {}
    for job in jobs:
        found.setdefault(job.comment, set()).add(str(job.array))
    if not all(comment(intent["_id"]) in found for intent in launches):
        # Slurm forgets ended jobs after minutes; accounting may remember them.
        since = min(intent["at"] for intent in launches)
        for text, numbers in scheduler.accounted(f"assay-{collection}", since).items():
            found.setdefault(text, set()).update(numbers)
    return {text: sorted(numbers, key=int) for text, numbers in found.items()}


def live_workers(store: Store, collection: str, *, but: str | None = None) -> int | None:
    """How many workers the sweep has, those included that are waiting in Slurm's queue, are
    importing, or are about to be submitted. None: Slurm, which is here, does not answer.

    Args:
        but: an intent that does not count.
    """
    scheduler.shared.expire()
    jobs = scheduler.shared.jobs()
    if jobs is None and shutil.which("squeue") is not None:
        return None
    live = [job for job in jobs or () if job.active]
    tokens = {
        "collection": collection,
        "state": {"$in": [SUBMITTING, SUBMITTED]},
        "_id": {"$ne": but},
    }
    count = 0
    counted: set[int] = set()  # jobs of ours
    mine: set[int] = set()  # processes of ours
    for intent in store.find(LAUNCHES, tokens):
        of_it = [job for job in live if job.comment == comment(intent["_id"])]
        counted.update(job.id for job in of_it)
        local = [p["pid"] for p in intent.get("processes", ()) if _is_alive(p, intent["host"])]
        mine.update(local)
        known = len(of_it) + len(local)
        coming = intent["state"] == SUBMITTING and now() - intent["at"] < UNCERTAIN
        count += max(known, intent["workers"]) if coming else known
    for worker in liveness.Watch(store).living(collection):
        place = worker["place"]
        count += not (place["slurm_job"] in counted or _descends(place, mine))
    return count


# ---- processes ---------------------------------------------------------------------------------


def process(pid: int) -> dict[str, Any]:
    """A process of this host, as the `processes` of a local intent name it: a number alone may
    belong to another process later."""
    with suppress(psutil.Error):
        return {"pid": pid, "started": psutil.Process(pid).create_time()}
    return {"pid": pid, "started": None}


def _is_alive(process: dict[str, Any], host: str) -> bool:
    if host != socket.gethostname() or process["started"] is None:
        return False
    with suppress(psutil.Error):
        found = psutil.Process(process["pid"])
        same = abs(found.create_time() - process["started"]) < 1.0
        return same and found.status() != psutil.STATUS_ZOMBIE
    return False


def _descends(place: dict[str, Any], ancestors: set[int]) -> bool:
    """Whether a worker's process was started by one of these processes of this host."""
    if not ancestors or not liveness.is_here(place):
        return False
    with suppress(psutil.Error):
        process = psutil.Process(place["pid"])
        return process.pid in ancestors or any(p.pid in ancestors for p in process.parents())
    return False
