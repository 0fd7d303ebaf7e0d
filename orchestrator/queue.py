"""The queue: the only place where an experiment changes state.

    STAGED → PENDING → RUNNING → COMPLETED | FAILED | INTERRUPTED | KILLED

States and documents are SEML's, so that SEML and Omniboard read our sweeps. Every claim adds one
to the experiment's `assay.attempt`; whoever writes to a running experiment names its worker and
its attempt. A write with another attempt than the current one changes nothing: an old process
whose Slurm job was started again, or whose experiment was cancelled, cannot overwrite the new.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator import settings
from orchestrator.liveness import Watch
from orchestrator.store import Store

log = logging.getLogger(__name__)

STAGED, PENDING, RUNNING = "STAGED", "PENDING", "RUNNING"
COMPLETED, FAILED, INTERRUPTED, KILLED = "COMPLETED", "FAILED", "INTERRUPTED", "KILLED"
STATES = (STAGED, PENDING, RUNNING, COMPLETED, FAILED, INTERRUPTED, KILLED)
UNFINISHED = (STAGED, PENDING, RUNNING)
BROKEN = (FAILED, INTERRUPTED, KILLED)
FINISHED = (COMPLETED, *BROKEN)

LEASES = "assay.leases"

# What a run leaves in its document; a new run must not inherit it.
RUN_FIELDS = (
    "start_time", "stop_time", "heartbeat", "result", "info", "captured_out", "fail_trace",
    "host", "stats", "execution", "experiment", "command", "meta", "artifacts", "resources",
    "format", "assay.worker", "assay.taken_from", "assay.error",
)  # fmt: skip


def now() -> datetime:
    """The time in UTC with the millisecond resolution of BSON."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


@dataclass(frozen=True)
class Claim:
    """The right to run an experiment: its document, and the attempt that every write must name."""

    id: int
    attempt: int
    worker: str
    document: dict[str, Any]

    def fence(self) -> dict[str, Any]:
        return {
            "_id": self.id,
            "status": RUNNING,
            "assay.attempt": self.attempt,
            "assay.worker": self.worker,
        }


class Queue:
    """The experiments of one sweep, that is, of one collection.

    Args:
        only: ids of those that may be claimed through this object; None for all.

    Attributes:
        waiting: the filter for experiments that can be claimed.
    """

    def __init__(self, store: Store, collection: str, only: Sequence[int] | None = None) -> None:
        self.store = store
        self.collection = collection
        self.waiting: dict[str, Any] = {"status": PENDING}
        if only is not None:
            self.waiting["_id"] = {"$in": list(only)}
        self.watch = Watch(store)
        self._held: set[tuple[str, str]] = set()  # leases that we gave to workers of this process

    # ---- in ----------------------------------------------------------------------------------

    def add(self, documents: Sequence[dict[str, Any]]) -> list[int]:
        """Enter experiments as STAGED; returns the ids of those that are new.

        A unique index on `assay.identity` decides what is new, so that two people who add the
        same file at once add it once.
        """
        if not documents:
            return []
        self.store.ensure_unique(self.collection, "assay.identity")
        self.store.ensure_index(self.collection, "status")
        self.store.ensure_index(self.collection, "config_hash")
        self._adopt(documents)
        # Ask first only to spare ids and bytes; the index alone is the judge.
        known = self.identities([d["assay"]["identity"] for d in documents])
        fresh = [d for d in documents if d["assay"]["identity"] not in known]
        if not fresh:
            return []
        first = self.store.allocate_ids(self.collection, len(fresh))
        entered = now()
        numbered = [
            {"_id": first + offset, "status": STAGED, "add_time": entered, **document}
            for offset, document in enumerate(fresh)
        ]
        return [int(i) for i in self.store.insert(self.collection, numbered)]

    def _adopt(self, documents: Sequence[dict[str, Any]]) -> None:
        """Recognise experiments that SEML added, or that it reset and so stripped of our fields."""
        nameless = {"assay.identity": {"$exists": False}}
        if not self.store.find_one(self.collection, nameless, fields=["_id"]):
            return
        by_hash = {d["config_hash"]: d["assay"] for d in documents if "config_hash" in d}
        found = self.store.find(
            self.collection,
            {**nameless, "config_hash": {"$in": list(by_hash)}},
            fields=["config_hash"],
        )
        for document in found:
            facts = by_hash.pop(document["config_hash"], None)  # of equal ones, the first
            if facts is not None:
                ours = {f"assay.{name}": v for name, v in facts.items() if name != "attempt"}
                self.store.update(
                    self.collection, {"_id": document["_id"], **nameless}, {"$set": ours}
                )

    def identities(self, identities: Sequence[str]) -> dict[str, int]:
        """Ids of the experiments that have these identities."""
        found = self.store.find(
            self.collection,
            {"assay.identity": {"$in": list(identities)}},
            fields=["assay.identity"],
        )
        return {d["assay"]["identity"]: int(d["_id"]) for d in found}

    def submit(self, selection: dict[str, Any] | None = None) -> int:
        """STAGED → PENDING: give experiments free to be claimed."""
        return self._move(selection, (STAGED,), {"$set": {"status": PENDING}})

    # ---- a worker's side ---------------------------------------------------------------------

    def claim(
        self, worker: dict[str, Any], limit: int, condition: dict[str, Any] | None = None
    ) -> list[Claim]:
        """Take up to `limit` PENDING experiments; nobody else gets the same ones."""
        place = worker["place"]
        change: dict[str, Any] = {
            "status": RUNNING,
            "start_time": now(),
            "heartbeat": now(),
            "assay.worker": worker["_id"],
        }
        if place["array_job"] is not None:  # where SEML looks for a running experiment
            change["execution"] = {
                "cluster": place["cluster"],
                "array_id": place["array_job"],
                "task_id": place["array_task"],
            }
        documents = self.store.claim(
            self.collection,
            {**self.waiting, **(condition or {})},
            {
                "$set": change,
                "$inc": {"assay.attempt": 1},
                "$unset": {"assay.taken_from": ""},
            },
            limit=limit,
        )
        return [
            Claim(int(d["_id"]), int(d["assay"]["attempt"]), worker["_id"], d) for d in documents
        ]

    def renew(self, worker: str) -> set[tuple[int, int]]:
        """Refresh the heartbeat of a worker's experiments; returns the (id, attempt) it still has.

        What is missing from the answer was cancelled or taken away: its process must stop.
        """
        mine = {"status": RUNNING, "assay.worker": worker}
        self.store.update(self.collection, mine, {"$set": {"heartbeat": now()}}, many=True)
        held = self.store.find(self.collection, mine, fields=["assay.attempt"])
        return {(int(d["_id"]), int(d["assay"]["attempt"])) for d in held}

    def finish(self, claim: Claim, status: str, fields: dict[str, Any]) -> bool:
        """RUNNING → a final state, with the results. False when the claim is stale: nothing is
        written then.

        An experiment that was taken back from this very attempt, and that nobody has claimed
        since, takes the result, too: the worker was declared dead, its result was on a disk.
        True as well when this very result is in the document: the answer to an earlier call was
        lost.
        """
        change = {"status": status, "stop_time": now(), **fields}
        # First as the holder: if the experiment is taken back meanwhile, the second try finds it.
        if self.store.update(self.collection, claim.fence(), {"$set": change}) == 1:
            return True
        mine = {"_id": claim.id, "assay.attempt": claim.attempt}
        taken_back = {
            **mine,
            "status": {"$in": [PENDING, KILLED]},
            "assay.taken_from": claim.worker,
        }
        traces = {"assay.taken_from", "assay.error"} - fields.keys()
        late = {
            "$set": {**change, "assay.worker": claim.worker},
            "$unset": dict.fromkeys(traces, ""),
        }
        if self.store.update(self.collection, taken_back, late) == 1:
            return True
        written = {
            **mine,
            "status": status,
            "assay.worker": claim.worker,
            "result": fields.get("result"),
        }
        if self.store.count(self.collection, written) == 1:
            return True
        _refused(claim)
        return False

    def holds(self, claim: Claim) -> bool:
        """Whether the experiment is still running under this claim."""
        return self.store.count(self.collection, claim.fence()) == 1

    def hand_back(self, claim: Claim) -> bool:
        """RUNNING → PENDING: the worker must stop, the experiment is to be run by another."""
        return self._fenced(claim, {"$set": {"status": PENDING}, "$unset": _unset()})

    def _fenced(self, claim: Claim, change: dict[str, Any]) -> bool:
        written = self.store.update(self.collection, claim.fence(), change) == 1
        if not written:
            _refused(claim)
        return written

    # ---- leases on stages --------------------------------------------------------------------

    def acquire(self, key: str, worker: str) -> bool:
        """Take the lease on a stage; one held by a dead worker is taken over."""
        if self._take_lease(key, worker):
            self._held.add((key, worker))
            return True
        return False

    def _take_lease(self, key: str, worker: str) -> bool:
        if self.store.insert(LEASES, [{"_id": key, "worker": worker}]):
            return True
        holder = self.store.find_one(LEASES, {"_id": key})
        if holder is None:
            return False
        if holder["worker"] == worker:
            # Ours without our knowing: the store's answer to `acquire` or `release` was lost.
            return (key, worker) not in self._held
        if not self.watch.dead(holder["worker"]):
            return False
        taken = {"_id": key, "worker": holder["worker"]}
        return self.store.update(LEASES, taken, {"$set": {"worker": worker}}) == 1

    def release(self, key: str, worker: str) -> None:
        self._held.discard((key, worker))
        self.store.delete(LEASES, {"_id": key, "worker": worker})

    # ---- anybody's side ----------------------------------------------------------------------

    def reap(self) -> list[tuple[int, str]]:
        """Take experiments back from dead workers; returns (id, why).

        They are PENDING again, or KILLED after too many attempts.
        """
        running = self.store.find(
            self.collection,
            {"status": RUNNING},
            fields=["assay.worker", "assay.attempt", "assay.deaths"],
        )
        verdicts: dict[str, str | None] = {}
        taken: list[tuple[int, str]] = []
        for document in running:
            worker = document.get("assay", {}).get("worker")
            if worker is None:  # claimed by SEML's own worker: SEML's business
                continue
            if worker not in verdicts:
                verdicts[worker] = self.watch.dead(worker)
            if why := verdicts[worker]:
                attempt = int(document["assay"]["attempt"])
                if self._take_back(Claim(int(document["_id"]), attempt, worker, document), why):
                    taken.append((int(document["_id"]), why))
        return taken

    def _take_back(self, claim: Claim, why: str) -> bool:
        deaths = int(claim.document["assay"].get("deaths", 0)) + 1
        change: dict[str, Any]
        if deaths < settings.MAX_ATTEMPTS:
            traces = _unset()
            del traces["assay.taken_from"]
            fields = {"status": PENDING, "assay.deaths": deaths, "assay.taken_from": claim.worker}
            change = {"$set": fields, "$unset": traces}
        else:
            error = f"its worker died {deaths} times, at last: {why}"
            fields = {"status": KILLED, "stop_time": now(), "assay.error": error}
            change = {"$set": {**fields, "assay.taken_from": claim.worker}}
        return self.store.update(self.collection, claim.fence(), change) == 1

    def cancel(self, selection: dict[str, Any] | None = None) -> int:
        """Whatever is not finished → INTERRUPTED; workers stop what they were running of it."""
        change = {"$set": {"status": INTERRUPTED, "stop_time": now()}}
        return self._move(selection, UNFINISHED, change)

    def retry(self, selection: dict[str, Any] | None = None, states: Iterable[str] = BROKEN) -> int:
        """Broken → PENDING, without the traces of the broken run. The attempt number goes on, so
        that an old process stays fenced out; deaths are forgotten."""
        change = {"$set": {"status": PENDING, "assay.deaths": 0}, "$unset": _unset()}
        return self._move(selection, states, change)

    def reset(self, selection: dict[str, Any] | None = None) -> int:
        """Whatever is over → STAGED, without its results."""
        change = {"$set": {"status": STAGED, "assay.deaths": 0}, "$unset": _unset()}
        return self._move(selection, FINISHED, change)

    def delete(self, selection: dict[str, Any] | None = None) -> int:
        """Remove experiments that are not running, with their results; returns how many."""
        where: dict[str, Any] = {"status": {"$ne": RUNNING}}
        if selection:
            where = {"$and": [where, selection]}
        doomed = self.store.find(self.collection, where, fields=["_id"])
        for document in doomed:
            one = {"_id": document["_id"], "status": {"$ne": RUNNING}}
            if self.store.delete(self.collection, one):
                self.store.delete_blobs(f"{self.collection}/{document['_id']}/")
                self.store.delete("metrics", {"run_id": document["_id"], "sweep": self.collection})
        return len(doomed)

    def _move(
        self, selection: dict[str, Any] | None, states: Iterable[str], change: dict[str, Any]
    ) -> int:
        where: dict[str, Any] = {"status": {"$in": list(states)}}
        if selection:
            where = {"$and": [where, selection]}
        return self.store.update(self.collection, where, change, many=True)

    def counts(self, selection: dict[str, Any] | None = None) -> dict[str, int]:
        """How many experiments are in each state, in the order of STATES."""
        found = self.store.counts(self.collection, "status", selection)
        return {state: found[state] for state in STATES if found.get(state)}


def _refused(claim: Claim) -> None:
    log.warning("experiment %s: attempt %s is stale, its write is refused", claim.id, claim.attempt)


def _unset() -> dict[str, str]:
    return dict.fromkeys(RUN_FIELDS, "")
