"""The queue's transitions on the embedded store."""

from __future__ import annotations

import os
import socket

import pytest

from orchestrator import liveness, settings
from orchestrator.queue import Queue
from orchestrator.store import open_store


def documents(count, prefix="x"):
    return [
        {"config": {"seed": n}, "assay": {"identity": f"{prefix}{n}", "attempt": 0}}
        for n in range(count)
    ]


@pytest.fixture
def queue(tmp_path):
    return Queue(open_store(f"sqlite:///{tmp_path}/s.sqlite"), "sweep")


def worker(queue, **place):
    me = liveness.register(queue.store, queue.collection, 1)
    if place:
        me["place"].update(place)
        queue.store.update(liveness.WORKERS, {"_id": me["_id"]}, {"$set": {"place": me["place"]}})
    return me


def state(queue, number=1):
    return queue.store.find_one("sweep", {"_id": number})["status"]


def test_the_way_through(queue):
    assert queue.add(documents(3)) == [1, 2, 3]
    assert queue.counts() == {"STAGED": 3}
    me = worker(queue)
    assert queue.claim(me, 5) == []  # not yet submitted
    assert queue.submit() == 3
    claims = queue.claim(me, 2)
    assert [c.id for c in claims] == [1, 2]
    assert {c.attempt for c in claims} == {1}
    assert queue.renew(me["_id"]) == {(1, 1), (2, 1)}
    assert queue.finish(claims[0], "COMPLETED", {"result": {"nan": float("nan")}})
    assert queue.finish(claims[1], "FAILED", {"assay.error": "no"})
    assert queue.counts() == {"PENDING": 1, "COMPLETED": 1, "FAILED": 1}


def test_adding_again_adds_nothing(queue):
    assert len(queue.add(documents(3))) == 3
    assert queue.add(documents(3)) == []
    assert queue.add(documents(5)) == [4, 5]
    assert queue.add([]) == []


def test_nothing_finishes_twice(queue):
    queue.add(documents(1))
    queue.submit()
    (claim,) = queue.claim(worker(queue), 1)
    assert queue.finish(claim, "COMPLETED", {"result": 1})
    assert not queue.finish(claim, "COMPLETED", {"result": 2})
    assert queue.store.find_one("sweep", {"_id": 1})["result"] == 1


def test_an_old_process_cannot_write_over_the_new(queue):
    queue.add(documents(1))
    queue.submit()
    (old,) = queue.claim(worker(queue, pid=2**22 + 1), 1)  # no such process
    assert queue.reap() == [(1, "its process is gone")]
    (new,) = queue.claim(worker(queue), 1)
    assert new.attempt == 2
    assert not queue.finish(old, "COMPLETED", {"result": "zombie"})
    assert not queue.hand_back(old)
    assert state(queue) == "RUNNING"
    assert queue.finish(new, "COMPLETED", {"result": "right"})
    assert queue.store.find_one("sweep", {"_id": 1})["result"] == "right"


def test_a_live_worker_keeps_what_it_has(queue):
    queue.add(documents(1))
    queue.submit()
    queue.claim(worker(queue), 1)
    assert queue.reap() == []
    assert state(queue) == "RUNNING"


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ({"boot": "another"}, "its host has booted since"),
        ({"started": 1.0}, "its process is gone"),  # the number belongs to another process now
    ],
)
def test_evidence_of_death(queue, place, why):
    queue.add(documents(1))
    queue.submit()
    queue.claim(worker(queue, **place), 1)
    assert queue.reap() == [(1, why)]
    assert state(queue) == "PENDING"


def test_silence_is_measured_by_our_own_clock(queue, monkeypatch):
    queue.add(documents(1))
    queue.submit()
    me = worker(queue, host="elsewhere", pid=1)
    queue.claim(me, 1)
    clock = [1000.0]
    monkeypatch.setattr("orchestrator.liveness.time.monotonic", lambda: clock[0])
    assert queue.reap() == []
    clock[0] += settings.DEAD_AFTER_SECONDS - 1
    assert queue.reap() == []
    liveness.beat(queue.store, me["_id"])
    clock[0] += settings.DEAD_AFTER_SECONDS - 1
    assert queue.reap() == []  # the beat was seen
    clock[0] += settings.DEAD_AFTER_SECONDS + 1
    assert queue.reap() == []  # where nobody looked, the store may have been away for all
    for _ in range(3):
        clock[0] += settings.DEAD_AFTER_SECONDS / 3
        taken = queue.reap()
    assert [number for number, _ in taken] == [1]


def test_a_clock_that_jumps_kills_nobody(queue, monkeypatch):
    queue.add(documents(1))
    queue.submit()
    queue.claim(worker(queue), 1)
    for jump in (-86400.0, 86400.0):
        monkeypatch.setattr("orchestrator.liveness.time.time", lambda jump=jump: 1e9 + jump)
        assert queue.reap() == []


def test_an_experiment_that_kills_its_workers_is_given_up(queue):
    queue.add(documents(1))
    queue.submit()
    for _ in range(settings.MAX_ATTEMPTS):
        assert state(queue) == "PENDING"
        queue.claim(worker(queue, boot="another"), 1)
        queue.reap()
    assert state(queue) == "KILLED"
    document = queue.store.find_one("sweep", {"_id": 1})
    assert "died 3 times" in document["assay"]["error"]
    assert queue.retry() == 1
    (claim,) = queue.claim(worker(queue), 1)
    assert claim.attempt == settings.MAX_ATTEMPTS + 1


def test_handing_back_leaves_no_trace(queue):
    queue.add(documents(1))
    queue.submit()
    (claim,) = queue.claim(worker(queue), 1)
    assert queue.hand_back(claim)
    document = queue.store.find_one("sweep", {"_id": 1})
    assert document["status"] == "PENDING"
    assert "start_time" not in document
    assert "worker" not in document["assay"]


def test_cancel_stops_what_is_unfinished_and_retry_brings_it_back(queue):
    queue.add(documents(4))
    queue.submit({"_id": {"$lte": 3}})
    me = worker(queue)
    one, two = queue.claim(me, 2)
    queue.finish(one, "COMPLETED", {"result": 1})
    assert queue.cancel() == 3
    assert queue.counts() == {"COMPLETED": 1, "INTERRUPTED": 3}
    assert queue.renew(me["_id"]) == set()
    assert not queue.finish(two, "COMPLETED", {})
    assert queue.retry({"_id": 2}) == 1
    assert queue.counts() == {"PENDING": 1, "COMPLETED": 1, "INTERRUPTED": 2}


def test_a_dead_workers_lease_is_taken_over(queue):
    dead, alive, other = worker(queue, boot="another"), worker(queue), worker(queue)
    assert queue.acquire("stage", dead["_id"])
    assert queue.acquire("stage", alive["_id"])
    assert not queue.acquire("stage", other["_id"])
    queue.release("stage", other["_id"])  # not its own: nothing happens
    assert not queue.acquire("stage", other["_id"])
    queue.release("stage", alive["_id"])
    assert queue.acquire("stage", other["_id"])


def test_a_slurm_job_that_starts_again_replaces_its_former_self(queue, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "bed")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    queue.add(documents(1))
    queue.submit()
    former = worker(queue)
    queue.claim(former, 1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    worker(queue)
    assert not liveness.beat(queue.store, former["_id"])
    assert queue.reap() == [(1, "replaced by a new start of its Slurm job")]


def test_a_place_names_this_process():
    place = liveness.place()
    assert place["host"] == socket.gethostname()
    assert place["pid"] == os.getpid()
    assert place["slurm_job"] is None or isinstance(place["slurm_job"], int)
