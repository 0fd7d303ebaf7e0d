"""Many processes on one store: nothing is done twice, nothing that was acknowledged is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.store import Store, open_store

ROOT = Path(__file__).resolve().parents[2]

START = """
import json, sys, time
from orchestrator.store import open_store
store = open_store(sys.argv[1])
number = int(sys.argv[2])
while time.time() < float(sys.argv[3]):  # so that all begin together
    time.sleep(0.001)
"""

CLAIM = """
mine, take = [], {"$set": {"status": "RUNNING", "by": number}, "$inc": {"assay.attempt": 1}}
while found := store.claim("sweep", {"status": "PENDING"}, take, limit=1 + number % 3):
    assert all(d["by"] == number and d["assay"]["attempt"] == 1 for d in found)
    mine += [d["_id"] for d in found]
print(json.dumps(mine))
"""

INSERT = """
mine = []
for start in range(0, 100, 20):
    first = store.allocate_ids("sweep", 20)
    batch = [{"_id": first + n, "k": f"key{start + n}", "by": number} for n in range(20)]
    mine += store.insert("sweep", batch)
print(json.dumps(mine))
"""

COUNT = """
for n in range(25):
    assert store.update("sweep", {"_id": "n"}, {"$inc": {"n": 1}}, upsert=True) == 1
print(json.dumps(True))
"""

WRITE = """
first = number * 1_000_000
for n in range(1_000_000):
    document = {"_id": first + n, "k": f"{first + n}", "status": "PENDING", "pad": "x" * 1000}
    store.insert("sweep", [document])
    print("i", first + n, flush=True)
    store.update("sweep", {"_id": first + n}, {"$set": {"status": "DONE"}})
    print("u", first + n, flush=True)
    if n % 5 == 0:
        store.put_blob(f"sweep/{first + n}/1/rows", b"r" * 20_000)
        print("b", first + n, flush=True)
"""


def spawn(script: str, url: str, number: int, start: float = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START + script, url, str(number), str(start)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def together(script: str, url: str, processes: int) -> list:
    start = time.time() + 1.5
    running = [spawn(script, url, number, start) for number in range(processes)]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes
    return [json.loads(output) for output in outputs]


def test_eight_claimers_take_each_document_once(store: Store, store_url: str) -> None:
    number = 200
    store.insert("sweep", [{"_id": i, "status": "PENDING"} for i in range(number)])
    taken = together(CLAIM, store_url, 8)
    assert Counter(i for mine in taken for i in mine) == Counter(range(number))
    for worker, mine in enumerate(taken):
        assert store.count("sweep", {"by": worker, "_id": {"$in": mine}}) == len(mine)
    assert store.count("sweep", {"assay.attempt": 1, "status": "RUNNING"}) == number


def test_four_adders_enter_each_key_once(store: Store, store_url: str) -> None:
    store.ensure_unique("sweep", "k")
    entered = together(INSERT, store_url, 4)
    found = store.find("sweep")
    assert sorted(d["k"] for d in found) == sorted(f"key{n}" for n in range(100))
    assert sorted(i for mine in entered for i in mine) == [d["_id"] for d in found]
    assert all(d["_id"] in entered[d["by"]] for d in found)
    assert store.check() == []


def test_updates_of_one_document_add_up(store: Store, store_url: str) -> None:
    together(COUNT, store_url, 4)
    assert store.find("sweep") == [{"_id": "n", "n": 100}]


def test_what_a_killed_writer_was_told_is_there(store: Store, store_url: str) -> None:
    store.ensure_unique("sweep", "k")
    writers = [spawn(WRITE, store_url, number) for number in range(2)]
    for writer in writers:
        writer.stdout.readline()
    time.sleep(1)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    lines = [
        line.split()
        for writer in writers
        for line in writer.communicate()[0].splitlines(keepends=True)
        if line.endswith("\n")
    ]
    told = {kind: {int(i) for k, i in lines if k == kind} for kind in "iub"}
    assert len(told["u"]) > 5
    again = open_store(store_url)
    assert told["i"] <= {d["_id"] for d in again.find("sweep", fields=[])}
    assert told["u"] <= {d["_id"] for d in again.find("sweep", {"status": "DONE"}, fields=[])}
    blobs = again.get_blobs([f"sweep/{i}/1/rows" for i in told["b"]])
    assert len(blobs) == len(told["b"])
    assert again.check() == []
    again.close()


def test_threads_share_a_store(store: Store) -> None:
    store.insert("sweep", [{"_id": i, "status": "PENDING"} for i in range(60)])
    taken: list[int] = []
    problems: list[BaseException] = []

    def work() -> None:
        try:
            take = {"$set": {"status": "RUNNING"}}
            while found := store.claim("sweep", {"status": "PENDING"}, take, limit=2):
                taken.extend(d["_id"] for d in found)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sorted(taken) == list(range(60))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads
def test_a_forked_child_has_connections_of_its_own(store: Store) -> None:
    store.insert("sweep", [{"_id": 0}])
    children = []
    for number in range(1, 4):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                store.insert("sweep", [{"_id": number}])
                found = store.claim("sweep", {"_id": number}, {"$set": {"x": 1}}, limit=1)
                status = int(len(found) != 1)
                store.close()
            finally:
                os._exit(status)
        children.append(pid)
    store.insert("sweep", [{"_id": 9}])
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert [d["_id"] for d in store.find("sweep")] == [0, 1, 2, 3, 9]
    assert store.check() == []
