"""A sweep under random kill -9s: does it end with exactly one result for each experiment?

    slurm/testbed run python tests/benchmarks/chaos.py --count 10000
    python tests/benchmarks/chaos.py --count 300 --store secantus --executor local

Every few seconds a random process of ours is killed: a worker, a forkserver, the process of an
experiment. Workers that are missing are started again, as a user or a cron job would. What ended
as FAILED or KILLED by our own hand is put back with `retry`. At the end, every result is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import servers  # noqa: E402

from orchestrator.launch import Plan  # noqa: E402
from orchestrator.sweep import Sweep  # noqa: E402


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--store", choices=["sqlite", *servers.available()], default="sqlite")
    options.add_argument("--executor", choices=["slurm", "local"], default="slurm")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--every", type=float, default=4.0, help="mean seconds between kills")
    options.add_argument("--seconds", type=float, default=0.0, help="that an experiment sleeps")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        os.environ["ASSAY_HOME"] = str(home / "home")
        os.environ["XDG_CONFIG_HOME"] = str(home / "config")
        os.environ.pop("ASSAY_MONGODB_URI", None)
        if given.store != "sqlite":
            (home / "server" / "data").mkdir(parents=True)
            server = servers.stoppable(given.store, home / "server" / "data")
            os.environ["ASSAY_MONGODB_URI"] = stack.enter_context(server).uri("chaos")
        return storm(given, home)


def storm(given: argparse.Namespace, home: Path) -> int:
    file = home / "chaos.yaml"
    file.write_text(
        f"seml: {{executable: trivial.py, project_root_dir: {ROOT / 'tests' / 'fixtures'}}}\n"
        f"grid: {{number: {{type: range, min: 0, max: {given.count}, step: 1}}}}\n"
        f"fixed: {{seconds: {given.seconds}}}\n"
    )
    sweep = Sweep("chaos")
    sweep.add(file)
    chance = random.Random(given.seed)
    kills: Counter[str] = Counter()
    began = time.monotonic()
    next_kill, next_look, retried, launches = began + 3.0, began, 0, 0
    plan = Plan(given.executor, workers=1, slots=1, idle_seconds=5.0)
    while True:
        status = sweep.status()
        retried += sweep.retry({"status": {"$in": ["FAILED", "KILLED"]}})
        if status.of("COMPLETED") == given.count:
            break
        living = sweep.queue.watch.living("chaos")
        if time.monotonic() > next_look:
            next_look = time.monotonic() + 3.0
            for _ in range(given.workers - len(living)):
                sweep.start(plan)
                launches += 1
        if time.monotonic() > next_kill and living:
            next_kill = time.monotonic() + chance.uniform(0.5, 1.5) * given.every
            kills[kill(chance, living)] += 1
        if int(time.monotonic() - began) % 20 == 0:
            print(f"{time.monotonic() - began:6.0f} s  {status.counts}", flush=True)
            time.sleep(0.6)
        time.sleep(0.4)
    seconds = time.monotonic() - began
    documents = sweep.store.find(
        "chaos", fields=["status", "result.value", "config.number", "assay"]
    )
    right = sum(d["result"]["value"] == 2 * d["config"]["number"] for d in documents)
    attempts = Counter(d["assay"]["attempt"] for d in documents)
    print(
        f"{given.count} experiments, {right} right results, {len(documents)} documents, "
        f"{sum(kills.values())} kills {dict(kills)}, {retried} retried, {launches} launches, "
        f"attempts {dict(sorted(attempts.items()))}, {seconds:.0f} s"
    )
    return 0 if right == len(documents) == given.count else 1


def kill(chance: random.Random, living: list[dict]) -> str:
    """Kill -9 one random process: the worker itself, or one of those below it."""
    worker = chance.choice(living)["place"]["pid"]
    try:
        tree = [psutil.Process(worker), *psutil.Process(worker).children(recursive=True)]
        victim = chance.choice(tree)
        kind = "worker" if victim.pid == worker else "below"
        if kind == "below" and "forkserver" in " ".join(victim.cmdline()):
            kind = "forkserver" if victim.ppid() == worker else "experiment"
        victim.kill()
    except psutil.NoSuchProcess:
        return "gone"
    return kind


if __name__ == "__main__":
    sys.exit(main())
