"""What the machinery costs: time per trivial experiment, and of the commands at 10,000 experiments.

    eval "$(slurm/testbed env)"        # else the Slurm lines are left out
    python tests/benchmarks/overhead.py --markdown tests/benchmarks/RESULTS.md

The same study, whose experiments return a number, is run by SEML, one Slurm job at a time and
locally, and by Assay with one worker of one slot: locally and on Slurm with the embedded store, and
locally with a MongoDB-protocol server, the one that SEML uses here.

Two numbers per experiment: *each more* is (last end - first end) / (n - 1), the price of one more
experiment; *all in* is (last end - start of the command) / n, the start of workers included.
Commands are timed by wall and by CPU; both are the best of `--repeat`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pymongo  # noqa: E402
import servers  # noqa: E402

from orchestrator.store import leave, open_store  # noqa: E402

STUDY = """
from seml import Experiment

ex = Experiment()
ex.add_config(number=0)


@ex.automain
def main(number):
    return {"value": 2 * number}
"""


@dataclass
class Bench:
    """A project of its own, a home for Assay, a configuration for SEML."""

    folder: Path
    env: dict[str, str]
    mongodb: str

    def sweep(self, name: str, numbers: int) -> Path:
        """A configuration file of so many trivial experiments, for SEML and Assay alike."""
        path = self.folder / f"{name}.yaml"
        content = {
            "seml": {"executable": "trivial.py", "project_root_dir": str(self.folder / "project")},
            "slurm": [
                {
                    "experiments_per_job": 1,
                    "max_simultaneous_jobs": 1,
                    "sbatch_options": {"time": "0-01:00", "mem": "1G", "cpus-per-task": 1},
                }
            ],
            "grid": {"number": {"type": "range", "min": 0, "max": numbers, "step": 1}},
            "fixed": {"seed": 0},
        }
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def call(self, *words: object, timeout: float = 900, **env: str) -> Cost:
        """Run a command of this Python's environment to its end."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", *map(str, words)],
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        wall = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            raise RuntimeError(f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Cost(wall, cpu)

    def seml(self, *words: object, **options: Any) -> Cost:
        return self.call("seml", *words, **options)

    def assay(self, *words: object, **options: Any) -> Cost:
        return self.call("orchestrator.cli", *words, **options)


@dataclass(frozen=True)
class Cost:
    """Seconds of a command."""

    wall: float
    cpu: float


@dataclass
class Results:
    """What was measured so far."""

    experiments: list[tuple[str, int, float, float]] = field(default_factory=list)
    commands: dict[str, dict[str, str]] = field(default_factory=dict)

    def experiment(self, what: str, n: int, each: float, all_in: float) -> None:
        self.experiments.append((what, n, each, all_in))
        print(f"{what:<55} {n:>5}  {each * 1e3:8.1f} ms  {all_in * 1e3:8.1f} ms", flush=True)

    def command(self, what: str, who: str, costs: list[Cost]) -> None:
        wall, cpu = min(c.wall for c in costs), min(c.cpu for c in costs)
        self.commands.setdefault(what, {})[who] = f"{wall:.2f} s (CPU {cpu:.2f})"
        print(f"{what:<45} {who:<6} {wall:7.2f} s, CPU {cpu:6.2f} s", flush=True)


# ---- per experiment ----------------------------------------------------------------------------


def ends(documents: list[dict[str, Any]]) -> list[float]:
    """When experiments ended, in order; UTC."""
    moments = [d["stop_time"] for d in documents]
    return sorted(m.replace(tzinfo=m.tzinfo or UTC).timestamp() for m in moments)


def measure(
    begin: Callable[[], object],
    look: Callable[[], list[dict[str, Any]]],
    n: int,
    timeout: float,
) -> tuple[float, float]:
    """(each more, all in) in seconds, from the stored times of what completed."""
    began = time.time()
    begin()
    while len(done := look()) < n:
        if time.time() - began > timeout:
            raise TimeoutError(f"{len(done)} of {n} experiments after {timeout:.0f} s")
        time.sleep(0.3)
    times = ends(done)
    return (times[-1] - times[0]) / (n - 1), (times[-1] - began) / n


def with_seml(bench: Bench, where: str, n: int) -> tuple[float, float]:
    name = f"seml_{where}"
    bench.seml(name, "add", bench.sweep(name, n))
    options = ["--local"] if where == "local" else []
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(bench.mongodb)
    with client:
        collection = client.get_default_database()[name]
        look = lambda: list(collection.find({"status": "COMPLETED"}, {"stop_time": 1}))  # noqa: E731
        return measure(lambda: bench.seml(name, "start", *options), look, n, 60.0 * n)


def with_assay(
    bench: Bench, where: str, url: str, n: int, label: str, slots: int = 1
) -> tuple[float, float]:
    name = f"assay_{label}"
    env = {"ASSAY_MONGODB_URI": url} if url.startswith("mongodb") else {}
    store = open_store(url)
    bench.assay("add", bench.sweep(name, n), **env)
    words = ["start", name, "--workers", 1, "--slots", slots, "--executor", where]
    words += ["--time", "1:00:00", "--mem", "2G"] if where == "slurm" else []

    def look() -> list[dict[str, Any]]:
        if store.count(name, {"status": "COMPLETED"}) < n:
            return []
        return store.find(name, {"status": "COMPLETED"}, fields=["stop_time"])

    return measure(lambda: bench.assay(*words, **env), look, n, 2.0 * n + 120)


def experiments(bench: Bench, results: Results, n_seml: int, n_assay: int, repeat: int) -> None:
    embedded = f"sqlite://{bench.env['ASSAY_HOME']}/assay.sqlite"
    slurm = "SLURM_CONF" in os.environ and shutil.which("sbatch") is not None
    print(f"\n{'':<55} {'n':>5}  {'each more':>11}  {'all in':>11}", flush=True)
    for where in ["local", *(["slurm"] if slurm else [])]:
        if n_seml:
            results.experiment(f"SEML, {where}", n_seml, *with_seml(bench, where, n_seml))
    plan = [("local", embedded, "local_sqlite", "embedded store")]
    plan += [("slurm", embedded, "slurm_sqlite", "embedded store")] if slurm else []
    plan += [("local", bench.mongodb, "local_mongodb", "SecantusDB")]
    for where, url, label, store in plan:
        runs = [with_assay(bench, where, url, n_assay, f"{label}_{i}") for i in range(repeat)]
        best = min(runs)
        results.experiment(f"Assay, {where}, one slot, {store}", n_assay, *best)


# ---- commands ----------------------------------------------------------------------------------


def commands(bench: Bench, results: Results, n: int, n_status: int, repeat: int) -> None:
    print(f"\ncommands, {n} experiments", flush=True)
    big = bench.sweep("big", n)
    names = [f"big_{i}" for i in range(repeat)]
    add, again, status = f"add {n}", f"add the same {n} again", f"status at {n}"
    results.command(add, "Assay", [bench.assay("add", big, "-s", name) for name in names])
    results.command(again, "Assay", [bench.assay("add", big, "-s", name) for name in names])
    results.command(status, "Assay", [bench.assay("status", name) for name in names])
    results.command("--help", "Assay", [bench.assay("--help") for _ in range(repeat + 3)])
    if not n_status:
        return
    results.command(add, "SEML", [bench.seml("big", "add", big)])
    results.command(again, "SEML", [bench.seml("big", "add", big)])
    few = bench.sweep("few", n_status)
    bench.seml("few", "add", few)
    bench.assay("add", few)
    status = f"status at {n_status}"
    results.command(status, "Assay", [bench.assay("status", "few") for _ in range(repeat)])
    results.command(status, "SEML", [bench.seml("few", "status", timeout=900)])
    results.command("--help", "SEML", [bench.seml("--help") for _ in range(repeat + 3)])


# ---- the whole ---------------------------------------------------------------------------------


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[Bench]:
    """A project, a server, and both programs pointed at it."""
    (folder / "project").mkdir()
    (folder / "project" / "trivial.py").write_text(STUDY)
    (folder / "data").mkdir()
    # A user's installation has compiled modules.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env.pop("ASSAY_MONGODB_URI", None)
    env |= {
        "ASSAY_HOME": str(folder / "home"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    with servers.running("secantus", folder / "data") as uri:
        database = f"bench_{secrets.token_hex(4)}"
        url = uri.replace("/?", f"/{database}?")
        parts = urlsplit(url)
        password = unquote(parts.password or "")
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(url)
        with client:  # SEML logs in at the database itself
            client[database].command(
                "createUser", parts.username, pwd=password, roles=["readWrite"]
            )
        login = {"username": parts.username, "password": password}
        place = {"host": parts.hostname, "port": parts.port, "database": database}
        (folder / "config" / "seml").mkdir(parents=True)
        config = folder / "config" / "seml" / "mongodb.config"
        config.touch(mode=0o600)
        config.write_text(yaml.safe_dump({**login, **place}))
        # Assay would find SEML's server; here it uses its own default unless told otherwise.
        (folder / "config" / "assay").mkdir()
        ours = {"store": f"sqlite://{folder}/home/assay.sqlite"}
        (folder / "config" / "assay" / "config.yaml").write_text(yaml.safe_dump(ours))
        yield Bench(folder, env, url)


def load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def markdown(results: Results, before: str) -> str:
    """The tables, with what one needs to know to compare them with others."""
    command = "python tests/benchmarks/overhead.py " + " ".join(sys.argv[1:])
    lines = [
        f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "",
        f"{os.cpu_count()} CPUs ({platform.machine()}), {platform.system()}, Python "
        f"{platform.python_version()}; load average {before} before, {load()} after.",
        "",
        f"    {command}",
        "",
    ]
    if results.experiments:
        lines += ["| | n | each more | all in | faster than SEML: each more, all in |"]
        lines += ["|---|--:|--:|--:|--:|"]
        seml = {w.removeprefix("SEML, "): row for w, *row in results.experiments if "SEML" in w}
        for what, n, each, all_in in results.experiments:
            theirs = seml.get(what.split(", ")[1])
            ratio = ""
            if theirs is not None and not what.startswith("SEML"):
                ratio = f"{theirs[1] / each:.0f} ×, {theirs[2] / all_in:.0f} ×"
            lines.append(
                f"| {what} | {n} | {each * 1e3:.1f} ms | {all_in * 1e3:.1f} ms | {ratio} |"
            )
        lines.append("")
    if results.commands:
        lines += ["| | Assay | SEML |", "|---|--:|--:|"]
        for what, cells in results.commands.items():
            lines.append(f"| {what} | {cells.get('Assay', '')} | {cells.get('SEML', '')} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seml", type=int, default=20, help="experiments with SEML; 0: none")
    parser.add_argument("--assay", type=int, default=500, help="experiments with Assay; 0: none")
    parser.add_argument("--big", type=int, default=10_000, help="for the commands; 0: none")
    parser.add_argument(
        "--seml-status", type=int, default=2000,
        help="experiments for `seml status`: SecantusDB takes minutes for 10,000; 0: no SEML there",
    )  # fmt: skip
    parser.add_argument("--repeat", type=int, default=3, help="the best of so many (Assay's)")
    parser.add_argument("--markdown", type=Path, help="append the tables to this file")
    options = parser.parse_args()

    before = load()
    print(f"load average {before}, {os.cpu_count()} CPUs", flush=True)
    results = Results()
    folder = Path(tempfile.mkdtemp(prefix="assay-bench-"))
    try:
        with prepared(folder) as bench:
            if options.assay:
                experiments(bench, results, options.seml, options.assay, options.repeat)
            if options.big:
                commands(bench, results, options.big, options.seml_status, options.repeat)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = markdown(results, before)
    if options.markdown:
        with options.markdown.open("a") as file:
            file.write(f"\n{text}")
    print(f"\n{text}")
    leave()


if __name__ == "__main__":
    main()
