"""The queue under everything that can happen to it, in any order, against a model of plain dicts.

Hypothesis plays workers that claim, finish, hang, die, come back as zombies and restart, users who
cancel, retry, reset and delete, clocks that jump, a Slurm that does not answer, and a store that
goes away before or after a write took effect or lets another caller in between two steps of one.
After every step each document must be exactly as the model says; after a failure, as before it or
as after it. Whatever has happened, a fresh worker can end the sweep.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import bson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from orchestrator import liveness, scheduler
from orchestrator import settings as assay
from orchestrator.observer import Spool, replay
from orchestrator.queue import (
    COMPLETED,
    FAILED,
    FINISHED,
    INTERRUPTED,
    KILLED,
    LEASES,
    PENDING,
    RUNNING,
    STAGED,
    STATES,
    UNFINISHED,
    Claim,
    Queue,
)
from orchestrator.store import Store, StoreUnavailable, open_store

ROOT = Path(__file__).resolve().parents[2]
SWEEP = "sweep"
KEY = "stage"
CALLS = frozenset(
    {"allocate_ids", "claim", "count", "delete", "delete_blobs", "ensure_index", "ensure_unique",
     "find", "find_one", "insert", "update"}
)  # fmt: skip


# ---- the world ---------------------------------------------------------------------------------


class World:
    """Clocks and Slurm, in place of `liveness.time` and `scheduler.shared`."""

    def __init__(self, place: dict[str, Any]) -> None:
        self.place = place
        self.begin()

    def begin(self) -> None:
        self.clock = 1000.0
        self.wall = 1.7e9
        self.jobs: set[int] = set()
        self.answers = True
        self.slurm = scheduler.Scheduler(self._squeue, self.monotonic)

    def monotonic(self) -> float:
        return self.clock

    def time(self) -> float:
        return self.wall + self.clock

    def active(self) -> frozenset[int] | None:
        return self.slurm.active()

    def expire(self) -> None:
        self.slurm.expire()

    def _squeue(self) -> list[scheduler.Job] | None:
        if not self.answers:
            return None
        return [scheduler.Job(number, number, None, "RUNNING", "") for number in self.jobs]


class Trouble(NamedTuple):
    """What happens at one of the calls that an operation makes to the store."""

    call: int
    kind: str  # "before" and "after": the store goes away; or what another does in between


class Flaky:
    """A store that passes everything on, with at most one trouble."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.trouble: Trouble | None = None
        self.meanwhile: Callable[[str], None] = lambda kind: None
        self.calls = 0
        self.happened = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        return self._troubled(method) if name in CALLS else method

    def _troubled(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            trouble, number = self.trouble, self.calls
            self.calls += 1
            if trouble is None or trouble.call != number:
                return method(*arguments, **options)
            self.trouble, self.happened = None, True
            if trouble.kind == "before":
                raise StoreUnavailable("away, nothing was written")
            if trouble.kind == "after":
                method(*arguments, **options)
                raise StoreUnavailable("away, it was written")
            self.meanwhile(trouble.kind)
            return method(*arguments, **options)

        return call


class Worker:
    """A simulated worker: what the store knows of it, and what is true of it."""

    def __init__(self, kind: str, document: dict[str, Any], queue: Queue, clock: float) -> None:
        self.kind = kind
        self.document = document
        self.queue = queue
        self.born = self.beaten = clock
        self.excused = 0.0  # time since its last beat in which it could not have beaten
        self.alive = True  # its process runs
        self.hung = False
        self.told = False  # it knows that it was declared dead, or it has left
        self.replaced = False
        self.claims: dict[tuple[int, int], Claim] = {}
        self.leased = False  # one of its processes has the lease

    @property
    def id(self) -> str:
        return str(self.document["_id"])

    @property
    def acts(self) -> bool:
        return self.alive and not self.hung and not self.told


# ---- the model ---------------------------------------------------------------------------------


class Entry(NamedTuple):
    """What the model knows of an experiment."""

    identity: str
    status: str = STAGED
    attempt: int = 0
    worker: str | None = None  # only while it is RUNNING
    taken_from: str | None = None
    deaths: int = 0
    result: int | None = None


Model = dict[int, Entry]
Changes = dict[int, Entry | None]
Effect = Callable[[Model], Changes]


def read(document: dict[str, Any]) -> Entry:
    facts = document["assay"]
    status = document["status"]
    return Entry(
        facts["identity"],
        status,
        facts.get("attempt", 0),
        facts.get("worker") if status == RUNNING else None,
        facts.get("taken_from"),
        facts.get("deaths", 0),
        document.get("result"),
    )


def takes(entry: Entry, claim: Claim) -> bool:
    """Whether an experiment takes the result of this attempt."""
    if entry.attempt != claim.attempt or entry.result is not None:
        return False
    if entry.status == RUNNING:
        return entry.worker == claim.worker
    return entry.status in (PENDING, KILLED) and entry.taken_from == claim.worker


def move(ids: list[int] | None, states: tuple[str, ...], status: str, **fields: Any) -> Effect:
    def effect(model: Model) -> Changes:
        return {
            number: entry._replace(status=status, worker=None, **fields)
            for number, entry in model.items()
            if entry.status in states and (ids is None or number in ids)
        }

    return effect


def finished(claim: Claim, status: str, marker: int) -> Effect:
    def effect(model: Model) -> Changes:
        entry = model.get(claim.id)
        if entry is None or not takes(entry, claim):
            return {}
        done = entry._replace(status=status, result=marker, worker=None, taken_from=None)
        return {claim.id: done}

    return effect


def handed_back(claim: Claim) -> Effect:
    def effect(model: Model) -> Changes:
        entry = model.get(claim.id)
        if entry is None or (entry.status, entry.attempt, entry.worker) != (
            RUNNING,
            claim.attempt,
            claim.worker,
        ):
            return {}
        return {claim.id: entry._replace(status=PENDING, worker=None)}

    return effect


# ---- the machine -------------------------------------------------------------------------------

numbers = st.integers(0, 9)
chosen = st.one_of(st.none(), st.none(), st.frozensets(st.integers(1, 6), max_size=3))
rarely = st.sampled_from([False, False, False, True])
outcomes = st.sampled_from([COMPLETED, COMPLETED, FAILED])
OTHERS = (
    "reap",
    "claim",
    "cancel",
    "retry",
    "reset",
    "delete",
    "finish",
    "acquire",
    "release",
    "beat",
)
troubles = st.one_of(
    st.none(),
    st.none(),
    st.builds(Trouble, st.integers(0, 4), st.sampled_from(["before", "after"])),
    st.builds(Trouble, st.integers(0, 4), st.sampled_from(OTHERS)),
)


class QueueMachine(RuleBasedStateMachine):
    """One sweep; see the module's text. `store`, `world` and `home` are set by the tests."""

    raw: Store
    world: World
    home: Path
    sweeps = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.world.begin()
        for collection in (liveness.WORKERS, LEASES):
            self.raw.delete(collection, {})
        # A fresh collection; the ids of an old one go on.
        self.sweep = f"{SWEEP}{next(self.sweeps)}"
        self.store = Flaky(self.raw)
        self.store.meanwhile = self.another
        self.user = self.queue()
        self.model: Model = {}
        self.seen: set[int] = set()
        self.granted: dict[tuple[int, int], str] = {}
        self.given: set[tuple[int, int]] = set()
        self.claims: list[Claim] = []
        self.outcome: dict[tuple[int, int], tuple[str, int]] = {}
        self.spooled: dict[tuple[int, int], Claim] = {}
        self.markers = itertools.count(1)
        self.workers: dict[str, Worker] = {}
        self.looker = (self.user, self.world.clock)
        self.dead: set[str] = set()
        self.depth = 0
        self.start("here", False, None)
        self.enter(4, None)
        self.user.submit()
        self.model = self.snapshot()
        self.start("elsewhere", True, None)

    def queue(self) -> Queue:
        return Queue(self.store, self.sweep)  # type: ignore[arg-type]

    def snapshot(self) -> Model:
        return {d["_id"]: read(d) for d in self.raw.find(self.sweep)}

    # -- one step and what must be true after it ---------------------------------------------------

    def step(
        self, act: Callable[[], Any], *effects: Effect, trouble: Trouble | None = None
    ) -> tuple[Any, bool]:
        """Do something; returns (its result, None if the store failed; whether all went well).

        Every document must then be as the effects, one after the other, make it; or, when the
        store failed or another came in between, as some of them make it.
        """
        store, nested = self.store, self.depth > 0
        if not nested:
            store.trouble, store.calls, store.happened = trouble, 0, False
        outer, self.effects = getattr(self, "effects", ()), effects
        self.depth += 1
        try:
            result = act()
            failed = False
        except StoreUnavailable:
            result, failed = None, True
        finally:
            self.depth -= 1
            if not nested:
                store.trouble = None
        smooth = not failed and (nested or not store.happened)
        self.settle(effects, exact=smooth)
        self.effects = outer
        return result, smooth

    def settle(self, effects: tuple[Effect, ...], *, exact: bool) -> None:
        """Compare the store with the model, and take over what it has become."""
        self.exact = exact
        self.judge()
        expected = dict(self.model)
        possible: dict[int, set[Entry | None]] = {n: {e} for n, e in self.model.items()}
        for effect in effects:
            for number, entry in effect(expected).items():
                if entry is None:
                    expected.pop(number, None)
                else:
                    expected[number] = entry
                possible.setdefault(number, {None}).add(entry)
            for number, entries in possible.items():
                for entry in [e for e in entries if e is not None]:
                    entries |= set(effect({number: entry}).values())
        found = self.snapshot()
        if exact:
            assert found == expected
        for number in found.keys() | self.model.keys():
            assert found.get(number) in possible.get(number, {None})
        for number, entry in found.items():
            self.check_history(number, self.model.get(number), entry)
        self.model = found

    def check_history(self, number: int, old: Entry | None, new: Entry) -> None:
        """What no operation may ever do, whatever its effects were said to be."""
        assert new.status in STATES
        if old is None:
            assert number not in self.seen  # an id is never given again
            self.seen.add(number)
            assert new.attempt == 0
            return
        assert new.attempt - old.attempt in (0, 1)
        if new.attempt > old.attempt:
            assert old.status == PENDING
            assert (number, new.attempt) not in self.granted
            assert new.worker is not None
            self.granted[number, new.attempt] = new.worker
        if new.result is not None and new.result != old.result:
            assert old.result is None  # never overwritten
            assert new.status in (COMPLETED, FAILED)
            assert (new.attempt, new.attempt) == (old.attempt, self.author[new.result])
        if old.result is not None and new.result is None:
            assert new.status in (PENDING, STAGED)  # retry, reset

    @property
    def author(self) -> dict[int, int]:
        """Result → the attempt that has computed it."""
        return {marker: attempt for (_, attempt), (_, marker) in self.outcome.items()}

    def judge(self) -> None:
        """Take note of who counts as dead; nobody may who is alive and says so."""
        for document in self.raw.find(liveness.WORKERS, {"state": {"$ne": "running"}}):
            name = document["_id"]
            if name in self.dead:
                continue
            self.dead.add(name)
            assert self.may_be_dead(self.workers[name]), (document, self.world.clock)

    def may_be_dead(self, worker: Worker) -> bool:
        if not worker.alive or worker.told or worker.replaced:
            return True
        silent = self.world.clock - worker.beaten - worker.excused
        if silent > assay.DEAD_AFTER_SECONDS / 2:
            return True
        # A command that has only just begun knows nothing but the wall clock of another host.
        young = self.world.clock - self.looker[1] <= assay.DEAD_AFTER_SECONDS
        seen = self.raw.find_one(liveness.WORKERS, {"_id": worker.id})["seen"]
        old = self.world.time() - seen > liveness.FORGOTTEN_AFTER_SECONDS
        return worker.kind != "here" and young and old

    def pick(self, number: int, want: Callable[[Worker], bool] = lambda w: w.acts) -> Worker | None:
        found = [worker for worker in self.workers.values() if want(worker)]
        return found[number % len(found)] if found else None

    def reaped(self, model: Model) -> Changes:
        changes: Changes = {}
        for number, entry in model.items():
            if entry.status == RUNNING and entry.worker in self.dead:
                over = entry.deaths + 1 >= assay.MAX_ATTEMPTS
                changes[number] = entry._replace(
                    status=KILLED if over else PENDING,
                    deaths=entry.deaths if over else entry.deaths + 1,
                    taken_from=entry.worker,
                    worker=None,
                )
        return changes

    def another(self, kind: str) -> None:
        """What somebody else does between two calls of an operation."""
        self.settle(self.effects, exact=False)
        worker = self.pick(-1)
        if kind in ("cancel", "retry", "reset", "delete"):
            getattr(self, kind)(None, None)
        elif kind == "reap":
            self.reap(0, False, None)
        elif kind == "finish" and self.claims:
            self.finish(0, COMPLETED, False, None)
        elif kind == "claim" and worker is not None:
            self.claim(-1, 2, None)
        elif kind in ("acquire", "release"):
            getattr(self, kind)(-1, None)
        elif kind == "beat":
            for late in self.workers.values():
                late.hung = False
            self.beat(-1, None)

    # -- workers come and go -----------------------------------------------------------------------

    @precondition(lambda self: len(self.workers) < 8)
    @rule(
        kind=st.sampled_from(["here", "elsewhere", "slurm"]), eager=st.booleans(), trouble=troubles
    )
    def start(self, kind: str, eager: bool, trouble: Trouble | None) -> None:
        place = dict(self.world.place, cluster=None, slurm_job=None, restart=0)
        place |= {"array_job": None, "array_task": None}
        if kind != "here":
            place |= {"host": "elsewhere", "pid": 1, "boot": "other"}
        if kind == "slurm":
            job = 100 + len(self.workers)
            self.world.jobs.add(job)
            place |= {"cluster": "bed", "slurm_job": job}
        if self.register(kind, place, trouble) is not None and eager:
            self.claim(-1, 1, None)

    def register(self, kind: str, place: dict[str, Any], trouble: Trouble | None) -> Worker | None:
        queue = self.queue()
        before = {d["_id"] for d in self.raw.find(liveness.WORKERS)}
        liveness.place = lambda: place

        def act() -> dict[str, Any]:
            return liveness.register(queue.store, self.sweep, 1)

        document, _ = self.step(act, trouble=trouble)
        for found in self.raw.find(liveness.WORKERS, {"_id": {"$nin": sorted(before)}}):
            if found["_id"] not in self.workers:
                worker = Worker(kind, found, queue, self.world.clock)
                self.workers[worker.id] = worker
                if document is None:  # it could not start
                    self.end_process(worker)
        return self.workers[document["_id"]] if document is not None else None

    @rule(number=numbers, trouble=troubles)
    def restart(self, number: int, trouble: Trouble | None) -> None:
        """Slurm starts a job again; its former process may go on for a while."""
        old = self.pick(number, lambda w: w.kind == "slurm" and not w.replaced)
        if old is None or len(self.workers) > 8:
            return
        place = old.document["place"]
        self.world.jobs.add(place["slurm_job"])
        old.replaced = True
        self.register("slurm", place | {"restart": place["restart"] + 1}, trouble)

    @rule(number=numbers)
    def crash(self, number: int) -> None:
        if (worker := self.pick(number, lambda w: w.alive)) is not None:
            self.end_process(worker)

    def end_process(self, worker: Worker) -> None:
        worker.alive = False
        worker.claims.clear()
        worker.leased = False
        if worker.kind == "here":  # all of ours have one pid: the host boots, for this one
            self.raw.update(
                liveness.WORKERS, {"_id": worker.id}, {"$set": {"place.boot": "before"}}
            )
        job = worker.document["place"]["slurm_job"]
        if job is not None and not worker.replaced:
            self.world.jobs.discard(job)

    @rule(number=numbers, trouble=troubles)
    def leave(self, number: int, trouble: Trouble | None) -> None:
        if (worker := self.pick(number)) is None:
            return
        worker.told = True
        worker.leased = False
        self.step(lambda: liveness.leave(worker.queue.store, worker.id), trouble=trouble)
        if worker.id not in self.dead:
            self.end_process(worker)

    @rule(number=numbers)
    def hang(self, number: int) -> None:
        """A process stands still, and goes on later."""
        if (worker := self.pick(number, lambda w: w.alive and not w.told)) is not None:
            worker.hung = not worker.hung

    @rule(number=numbers, trouble=troubles)
    def beat(self, number: int, trouble: Trouble | None) -> None:
        """What a worker does every few seconds."""
        if (worker := self.pick(number)) is None:
            return

        def act() -> tuple[bool, set[tuple[int, int]]]:
            if not liveness.beat(worker.queue.store, worker.id):
                return False, set()
            worker.beaten, worker.excused = self.world.clock, 0.0
            return True, worker.queue.renew(worker.id)

        answer, smooth = self.step(act, trouble=trouble)
        if answer is None:
            return
        alive, held = answer
        if not alive:
            assert worker.id in self.dead
            worker.told = True
            worker.leased = False
            return
        if smooth:
            running = {n: e.attempt for n, e in self.model.items() if e.worker == worker.id}
            assert held == set(running.items())
        worker.claims = {key: claim for key, claim in worker.claims.items() if key in held}
        for key in held - worker.claims.keys():  # a claim whose answer was lost
            lost = Claim(*key, worker.id, {})
            self.step(lambda lost=lost: worker.queue.hand_back(lost), handed_back(lost))

    # -- experiments -------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3), trouble=troubles)
    def enter(self, count: int, trouble: Trouble | None) -> None:
        """Add experiments, some of which are there already."""
        names = [f"x{n}" for n in range(max(0, len(self.seen) % 4 - 1), 4)][:count]
        names += [f"y{len(self.seen)}"] if len(self.seen) < 6 else []
        given = [{"config": {}, "assay": {"identity": name, "attempt": 0}} for name in names]
        before = set(self.model)

        def added(model: Model) -> Changes:
            known = {entry.identity for entry in model.values()}
            fresh = [d for d in self.raw.find(self.sweep) if d["_id"] not in before]
            return {
                d["_id"]: Entry(d["assay"]["identity"])
                for d in fresh
                if d["_id"] not in model and d["assay"]["identity"] in set(names) - known
            }

        ids, smooth = self.step(lambda: self.user.add(given), added, trouble=trouble)
        if smooth:
            assert set(ids) == self.model.keys() - before
            assert set(names) <= {entry.identity for entry in self.model.values()}

    @rule(ids=chosen, trouble=troubles)
    def submit(self, ids: frozenset[int] | None, trouble: Trouble | None) -> None:
        self.many(self.user.submit, ids, (STAGED,), PENDING, trouble)

    @rule(ids=chosen, trouble=troubles)
    def cancel(self, ids: frozenset[int] | None, trouble: Trouble | None) -> None:
        self.many(self.user.cancel, ids, UNFINISHED, INTERRUPTED, trouble)

    @rule(ids=chosen, trouble=troubles)
    def retry(self, ids: frozenset[int] | None, trouble: Trouble | None) -> None:
        broken = (FAILED, INTERRUPTED, KILLED)
        fields = {"result": None, "deaths": 0, "taken_from": None}
        self.many(self.user.retry, ids, broken, PENDING, trouble, **fields)

    @rule(ids=chosen, trouble=troubles)
    def reset(self, ids: frozenset[int] | None, trouble: Trouble | None) -> None:
        fields = {"result": None, "deaths": 0, "taken_from": None}
        self.many(self.user.reset, ids, FINISHED, STAGED, trouble, **fields)

    def many(
        self,
        act: Callable[[dict[str, Any] | None], int],
        ids: frozenset[int] | None,
        states: tuple[str, ...],
        status: str,
        trouble: Trouble | None,
        **fields: Any,
    ) -> None:
        effect = move(self.real(ids), states, status, **fields)
        expected = len(effect(self.model))
        count, smooth = self.step(lambda: act(self.selection(ids)), effect, trouble=trouble)
        if smooth:
            assert count == expected

    def real(self, ids: frozenset[int] | None) -> list[int] | None:
        return None if ids is None else sorted(ids)

    def selection(self, ids: frozenset[int] | None) -> dict[str, Any] | None:
        return None if ids is None else {"_id": {"$in": self.real(ids)}}

    @rule(ids=chosen, trouble=troubles)
    def delete(self, ids: frozenset[int] | None, trouble: Trouble | None) -> None:
        def gone(model: Model) -> Changes:
            return {
                number: None
                for number, entry in model.items()
                if entry.status != RUNNING and (ids is None or number in ids)
            }

        expected = len(gone(self.model))
        act = lambda: self.user.delete(self.selection(ids))  # noqa: E731
        count, smooth = self.step(act, gone, trouble=trouble)
        if smooth:
            assert count == expected

    @rule(number=numbers, limit=st.integers(1, 3), trouble=troubles)
    def claim(self, number: int, limit: int, trouble: Trouble | None) -> None:
        if (worker := self.pick(number)) is None:
            return
        waiting = sorted(n for n, entry in self.model.items() if entry.status == PENDING)[:limit]

        def claimed(model: Model) -> Changes:
            return {
                n: entry._replace(
                    status=RUNNING, attempt=entry.attempt + 1, worker=worker.id, taken_from=None
                )
                for n, entry in model.items()
                if entry.status == PENDING and (n in waiting or not self.exact)
            }

        claims, smooth = self.step(
            lambda: worker.queue.claim(worker.document, limit), claimed, trouble=trouble
        )
        if claims is None:
            return
        assert len(claims) <= limit
        if smooth:
            assert [claim.id for claim in claims] == waiting
        for claim in claims:
            key = claim.id, claim.attempt
            assert self.granted[key] == worker.id == claim.worker
            assert key not in self.given  # to exactly one, once
            self.given.add(key)
            self.claims.append(claim)
            worker.claims[key] = claim

    @precondition(lambda self: self.claims)
    @rule(number=numbers, status=outcomes, other=st.booleans(), trouble=troubles)
    def finish(self, number: int, status: str, other: bool, trouble: Trouble | None) -> None:
        """Any attempt that ever was tries to write: in time, late, or once more."""
        claim = self.claims[-1 - number % len(self.claims)]
        worker = self.workers[claim.worker]
        status, marker = self.outcome_of(claim, status)
        entry = self.model.get(claim.id)
        if other and entry is not None and entry.result == marker:  # the same attempt, otherwise
            marker = next(self.markers)
        before = entry is not None and (takes(entry, claim) or entry.result == marker)

        def act() -> bool:
            return worker.queue.finish(claim, status, {"result": marker})

        done, smooth = self.step(act, finished(claim, status, marker), trouble=trouble)
        if done is None:
            return
        entry = self.model.get(claim.id)
        if smooth:
            assert done == before
        if done and smooth:
            assert entry is not None
            assert (entry.status, entry.result) == (status, marker)
        if not done:
            assert entry is None or entry.result != marker
            assert entry is None or not takes(entry, claim)  # a good result was turned away
        worker.claims.pop((claim.id, claim.attempt), None)

    def outcome_of(self, claim: Claim, status: str) -> tuple[str, int]:
        """How an attempt has ended; the same whenever it tells of it."""
        key = claim.id, claim.attempt
        if key not in self.outcome:
            self.outcome[key] = status, next(self.markers)
        return self.outcome[key]

    @precondition(lambda self: self.claims)
    @rule(number=numbers, trouble=troubles)
    def hand_back(self, number: int, trouble: Trouble | None) -> None:
        claim = self.claims[-1 - number % len(self.claims)]
        worker = self.workers[claim.worker]
        effect = handed_back(claim)
        expected = bool(effect(self.model))
        done, smooth = self.step(lambda: worker.queue.hand_back(claim), effect, trouble=trouble)
        worker.claims.pop((claim.id, claim.attempt), None)
        if smooth:
            assert done == expected

    # -- the dead ----------------------------------------------------------------------------------

    def look(self, number: int, fresh: bool) -> Queue:
        """The queue of somebody who looks who is alive: a command that has just begun or one that
        waits for the end, or a worker."""
        worker = self.pick(number)
        queue, born = self.user, 1000.0
        if fresh:
            queue, born = self.queue(), self.world.clock
        elif worker is not None and number > 4:
            queue, born = worker.queue, worker.born
        self.looker = (queue, born)
        return queue

    @rule(number=numbers, fresh=rarely, trouble=troubles)
    def reap(self, number: int, fresh: bool, trouble: Trouble | None) -> None:
        queue = self.look(number, fresh)
        before = self.model
        taken, smooth = self.step(queue.reap, self.reaped, trouble=trouble)
        if not smooth:
            return
        assert {n for n, _ in taken} == {n for n in before if before[n] != self.model[n]}
        for entry in self.model.values():
            if entry.status == RUNNING:
                worker = self.workers[entry.worker]
                assert worker.id not in self.dead
                assert not worker.replaced
                assert worker.alive or worker.kind != "here"

    @rule(number=numbers)
    def die_with_a_result(self, number: int) -> None:
        """A worker dies after a run has ended, and before the store knows."""
        worker = self.pick(number, lambda w: w.acts and bool(w.claims))
        if worker is None:
            return
        key, claim = sorted(worker.claims.items())[0]
        status, marker = self.outcome_of(claim, COMPLETED)
        spool = Spool.create(self.home, worker.queue, claim)
        final = {"status": status, "fields": {"result": marker}, "files": []}
        (spool.path / "final.bson").write_bytes(bson.encode(final))
        self.spooled[key] = claim
        self.end_process(worker)

    @rule(number=numbers, trouble=troubles)
    def replay(self, number: int, trouble: Trouble | None) -> None:
        """A worker of the same machine brings home what the dead have left."""
        self.bring_home(self.look(number, False), trouble)

    def bring_home(self, queue: Queue, trouble: Trouble | None) -> None:
        if not self.spooled:
            return
        before = self.model

        def shipped(model: Model) -> Changes:
            changes: Changes = {}
            for key, claim in self.spooled.items():
                if claim.worker in self.dead:
                    changes |= finished(claim, *self.outcome[key])(model)
            return changes

        def first_reaped(model: Model) -> Changes:
            ended = any(claim.worker in self.dead for claim in self.spooled.values())
            return self.reaped(model) if ended else {}

        act = lambda: replay(self.home, queue)  # noqa: E731
        answer, smooth = self.step(act, first_reaped, shipped, trouble=trouble)
        left = {key: c for key, c in self.spooled.items() if self.path(c).exists()}
        if smooth:
            assert not any(claim.worker in self.dead for claim in left.values())
            marker = {self.outcome[k][1] for k in self.spooled.keys() - left.keys()}
            for number in {number for number, _ in answer}:
                # Of several attempts of one experiment that come home at once, one is taken.
                taken = sum(one for other, one in answer if other == number)
                entry = self.model.get(number)
                assert taken == (entry is not None and entry.result in marker), before.get(number)
        self.spooled = left

    def path(self, claim: Claim) -> Path:
        return self.home / "spool" / self.sweep / f"{claim.id}-{claim.attempt}"

    # -- leases ------------------------------------------------------------------------------------

    @rule(number=numbers, trouble=troubles)
    def acquire(self, number: int, trouble: Trouble | None) -> None:
        if (worker := self.pick(number)) is None:
            return
        self.looker = (worker.queue, worker.born)
        holder = self.holder()
        granted, smooth = self.step(lambda: worker.queue.acquire(KEY, worker.id), trouble=trouble)
        if granted:
            assert self.holder() == worker.id or worker.id in self.dead
            assert not worker.leased
            worker.leased = True
        elif smooth:
            # Held: by another child of this worker, or by another worker that may be alive.
            assert holder is not None
            assert worker.leased if holder == worker.id else holder not in self.dead

    @rule(number=numbers, trouble=troubles)
    def release(self, number: int, trouble: Trouble | None) -> None:
        worker = self.pick(number, lambda w: w.acts and w.leased)
        if worker is None:
            return
        worker.leased = False
        _, smooth = self.step(lambda: worker.queue.release(KEY, worker.id), trouble=trouble)
        if smooth:
            assert self.holder() != worker.id

    def holder(self) -> str | None:
        lease = self.raw.find_one(LEASES, {"_id": KEY})
        return lease["worker"] if lease else None

    # -- time --------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 5, 29, 61, 1000]))
    def pass_time(self, seconds: int) -> None:
        """Time goes by; whoever is well says so all the time."""
        self.world.clock += seconds
        for worker in self.workers.values():
            if worker.acts and worker.id not in self.dead:
                assert liveness.beat(self.raw, worker.id)
                worker.beaten, worker.excused = self.world.clock, 0.0

    @rule(seconds=st.sampled_from([20, 90, 1000]))
    def store_is_away(self, seconds: int) -> None:
        """Nobody can say anything for a while. (Or all processes were suspended.)"""
        self.world.clock += seconds
        for worker in self.workers.values():
            worker.excused += seconds

    @rule(seconds=st.sampled_from([-86400.0, -700.0, 700.0, 86400.0]))
    def clock_jumps(self, seconds: float) -> None:
        self.world.wall += seconds

    @rule()
    def slurm_does_not_answer(self) -> None:
        self.world.answers = not self.world.answers

    # -- always ------------------------------------------------------------------------------------

    @invariant()
    def attempts_are_counted(self) -> None:
        given = Counter(number for number, _ in self.granted)
        for number, entry in self.model.items():
            assert entry.attempt == given[number]
            assert (entry.status == RUNNING) == (entry.worker is not None)
            assert entry.status != RUNNING or self.granted[number, entry.attempt] == entry.worker
            assert entry.result is None or entry.status in (COMPLETED, FAILED)

    @invariant()
    def a_lease_has_one_holder(self) -> None:
        held = [w.id for w in self.workers.values() if w.leased and w.id not in self.dead]
        assert held in ([], [self.holder()])

    def teardown(self) -> None:
        """All die, and a fresh worker ends the sweep."""
        if sys.exc_info()[0] is None:
            self.drain()

    def drain(self) -> None:
        world = self.world
        world.answers = True
        for worker in self.workers.values():
            if worker.alive:
                self.end_process(worker)
        fresh = self.queue()
        self.looker = (fresh, world.clock)
        self.step(fresh.submit, move(None, (STAGED,), PENDING))
        for _ in range(20):  # it looks every few seconds
            self.step(fresh.reap, self.reaped)
            world.clock += 10.0
        assert not any(entry.status == RUNNING for entry in self.model.values())
        self.start("here", False, None)
        last = self.pick(-1)
        assert last is not None
        for _ in range(10):
            self.bring_home(last.queue, None)
            world.clock += 10.0
        assert not self.spooled
        while any(entry.status == PENDING for entry in self.model.values()):
            self.claim(-1, 3, None)
            for claim in list(last.claims.values()):
                back = len(self.claims) - 1 - self.claims.index(claim)
                self.finish(back, COMPLETED, False, None)
        assert all(entry.status in FINISHED for entry in self.model.values())
        for _ in range(10):
            if not last.leased:
                self.acquire(-1, None)
            world.clock += 10.0
        assert last.leased


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(liveness.place())
    monkeypatch.setattr(liveness, "time", made)
    monkeypatch.setattr(liveness, "place", liveness.place)
    monkeypatch.setattr(scheduler, "shared", made)
    monkeypatch.setattr(scheduler, "cluster", lambda: "bed")
    return made


def machine(store: Store, world: World, home: Path) -> type[QueueMachine]:
    class Machine(QueueMachine):
        pass

    Machine.raw, Machine.world, Machine.home = store, world, home
    return Machine


relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(f"{tmp_path}/s.sqlite")) as store:
        store._connection().execute("PRAGMA synchronous = OFF")  # no power fails here
        yield store


def test_the_queue_in_one_file(file: Store, world: World, tmp_path: Path) -> None:
    run_state_machine_as_test(
        machine(file, world, tmp_path),
        settings=settings(relaxed, max_examples=150, stateful_step_count=40),
    )


def test_the_queue_on_a_server(mongo_url: str, world: World, tmp_path: Path) -> None:
    with contextlib.closing(open_store(mongo_url)) as store:
        run_state_machine_as_test(
            machine(store, world, tmp_path),
            settings=settings(
                relaxed,
                max_examples=15,
                stateful_step_count=25,
                phases=[Phase.reuse, Phase.generate],  # to shrink an example takes minutes here
            ),
        )


# What has gone wrong, or easily could. At the start there are two workers: 0 here, and 1 elsewhere,
# which runs experiment 1; their order is that of those still at work.
STORIES: dict[str, list[tuple[Any, ...]]] = {
    "the answer to acquire is lost": [
        ("acquire", 0, Trouble(0, "after")),
        ("acquire", 0, None),
    ],
    "a release is lost": [
        ("acquire", 0, None),
        ("release", 0, Trouble(0, "before")),
        ("acquire", 0, None),
    ],
    "two take over one lease": [
        ("acquire", 0, None),
        ("crash", 0),
        ("start", "here", False, None),
        ("start", "here", False, None),
        ("acquire", 1, Trouble(4, "acquire")),
    ],
    "the answer to finish is lost": [
        ("finish", 0, COMPLETED, False, Trouble(0, "after")),
        ("finish", 0, COMPLETED, False, None),
        ("finish", 0, COMPLETED, True, None),
    ],
    "the answer to a late finish is lost": [
        ("claim", 0, 1, None),
        ("crash", 0),
        ("reap", 0, False, None),
        ("finish", 0, COMPLETED, False, Trouble(1, "after")),
        ("finish", 0, COMPLETED, False, None),
    ],
    "taken back before finish": [
        ("claim", 0, 1, None),
        ("crash", 0),
        ("finish", 0, COMPLETED, False, Trouble(0, "reap")),
    ],
    "taken back within finish": [
        ("claim", 0, 1, None),
        ("crash", 0),
        ("finish", 0, COMPLETED, False, Trouble(1, "reap")),
    ],
    "given up, and the result is on the disk": [
        ("claim", 0, 1, None),
        ("crash", 0),
        ("reap", 0, False, None),
        ("start", "here", True, None),
        ("crash", 1),
        ("reap", 0, False, None),
        ("start", "here", True, None),
        ("die_with_a_result", 1),
        ("replay", 0, None),
    ],
    "claimed while it is deleted": [("delete", None, Trouble(1, "claim"))],
    "a result from before the retry": [
        ("claim", 0, 1, None),
        ("crash", 0),
        ("reap", 0, False, None),
        ("cancel", None, None),
        ("retry", None, None),
        ("finish", 0, COMPLETED, False, None),
    ],
    "a zombie releases what another has taken over": [
        ("acquire", 1, None),
        ("hang", 1),
        *[("acquire", 0, None), ("pass_time", 29)] * 5,
        ("hang", 1),
        ("release", 1, None),
    ],
    "the store is away for long": [
        ("reap", 0, False, None),
        ("store_is_away", 1000),
        ("reap", 0, False, None),
    ],
    "it speaks while it is declared dead": [
        ("hang", 1),
        ("reap", 0, False, None),
        *[("pass_time", 29), ("reap", 0, False, None)] * 3,
        ("pass_time", 29),
        ("reap", 0, False, Trouble(2, "beat")),
    ],
    "a laptop wakes up": [
        ("claim", 0, 1, None),
        ("clock_jumps", 86400.0),
        ("reap", 0, True, None),
    ],
    "a job is newer than the list of jobs": [
        ("start", "slurm", True, None),
        ("reap", 0, False, None),
        ("start", "slurm", True, None),
        ("reap", 0, False, None),
    ],
}


@pytest.mark.parametrize("story", STORIES)
def test_stories(story: str, file: Store, world: World, tmp_path: Path) -> None:
    played = machine(file, world, tmp_path)()
    for name, *arguments in STORIES[story]:
        getattr(played, name)(*arguments)
        played.attempts_are_counted()
        played.a_lease_has_one_holder()
    played.drain()


# ---- real processes, really killed -------------------------------------------------------------

WORK = """
import random, sys, time
from orchestrator import liveness
from orchestrator.queue import Queue
from orchestrator.store import open_store
queue = Queue(open_store(sys.argv[1]), "sweep")
dice = random.Random(sys.argv[2])
me = liveness.register(queue.store, "sweep", 3)
print("begun", flush=True)
while queue.store.count("sweep", {"status": {"$in": ["PENDING", "RUNNING"]}}):
    claims = queue.claim(me, dice.randint(1, 3))
    for claim in claims:
        time.sleep(dice.uniform(0, 0.02))
        result = {"worker": me["_id"], "attempt": claim.attempt}
        if queue.finish(claim, "COMPLETED", {"result": result}):
            print(claim.id, claim.attempt, flush=True)
    assert liveness.beat(queue.store, me["_id"])
    queue.reap()
    if not claims:
        time.sleep(0.02)
liveness.leave(queue.store, me["_id"])
"""


def begin(url: str, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORK, url, str(seed)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_killed_workers_lose_and_repeat_nothing(store: Store, store_url: str) -> None:
    total, kills = 200, 16
    queue = Queue(store, SWEEP)
    queue.add([{"assay": {"identity": f"{n}", "attempt": 0}} for n in range(total)])
    queue.submit()
    dice, seeds = random.Random(3), itertools.count()
    running = [begin(store_url, next(seeds)) for _ in range(4)]
    everyone = list(running)
    for _ in range(kills):
        victim = running.pop(dice.randrange(len(running)))
        assert victim.stdout is not None
        victim.stdout.readline()  # it has begun
        time.sleep(dice.uniform(0, 0.15))
        victim.send_signal(signal.SIGKILL)
        running.append(begin(store_url, next(seeds)))
        everyone.append(running[-1])
    deadline = time.monotonic() + 60
    while queue.counts() != {COMPLETED: total} and time.monotonic() < deadline:
        queue.reap()
        if queue.retry():  # killed three times in a row
            running.append(begin(store_url, next(seeds)))
            everyone.append(running[-1])
        time.sleep(0.1)
    told = [line.split() for worker in everyone for line in worker.communicate()[0].splitlines()]
    assert [worker.returncode for worker in running] == [0] * len(running)
    assert queue.counts() == {COMPLETED: total}
    wrote = Counter(line[0] for line in told if len(line) == 2)
    assert set(wrote.values()) == {1}  # nobody else was told that he has written
    documents = {d["_id"]: d for d in store.find(SWEEP)}
    assert len(documents) == total
    for document in documents.values():
        facts, result = document["assay"], document["result"]
        assert (result["worker"], result["attempt"]) == (facts["worker"], facts["attempt"])
    for number, attempt in (line for line in told if len(line) == 2):
        assert documents[int(number)]["assay"]["attempt"] == int(attempt)
    assert max(d["assay"]["attempt"] for d in documents.values()) > 1  # some were taken back
