"""Starting workers: in Slurm jobs, as processes of this machine, or in this very process.

A sweep gets arrays of workers, never one job per experiment, and nobody waits for a result: workers
find their work in the store and leave it there. submitit writes the job script.

Submission is by intent (see `intents`): whoever dies in the middle of it leaves nothing that the
next command could not sort out.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator import intents, liveness, scheduler, settings
from orchestrator.queue import RUNNING
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.worker import Options

Executor = Literal["local", "slurm", "debug"]

# What a job gets of the submitting shell's environment; a secret is in none of these.
ENVIRONMENT = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "TERM",
    "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV",
    "CUDA_HOME", "SLURM_CONF", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "ASSAY_HOME",
    "ASSAY_ARTIFACTS",
)  # fmt: skip
MINUTES_WITHOUT_LIMIT = 60 * 24 * 365

# Options of sbatch that our own bookkeeping depends on.
OURS = ("array", "comment", "error", "export", "output", "parsable", "wait", "wrap")


class LaunchError(Exception):
    """Workers could not be started: one line that says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """How many workers to start, where, and with what.

    Attributes:
        workers: processes (local) or array tasks (slurm).
        slots: experiments at a time in one worker; None: all cores for one local worker, else 1.
        threads: threads per slot. One is fastest for sweeps, and keeps results independent of
            the number of cores. A Slurm job asks for slots × threads CPUs.
        slurm: parameters of sbatch by submitit's names (`partition`, `time` in minutes, `mem`,
            `gres`, `cpus_per_task`, `additional_parameters`, ...).
        setup: shell lines run in the job before the worker starts.
        image: an Apptainer image whose `python` runs the worker.
        max_workers: start fewer, or none, so that the sweep never has more live workers.
        time_limit: seconds after which an experiment is ended as FAILED.
        only: ids of the experiments that the workers run; None: whatever is PENDING.
    """

    executor: Executor = "local"
    workers: int = 1
    slots: int | None = None
    threads: int = 1
    idle_seconds: float = 2.0
    slurm: dict[str, Any] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    image: str | None = None
    max_workers: int | None = None
    time_limit: float | None = None
    only: tuple[int, ...] | None = None


@dataclass
class Launch:
    """Workers that were started.

    Attributes:
        folder: where their logs are.
        ids: one per worker: process numbers, or Slurm's `17_3`.
        note: what the user should know, such as why there are fewer workers than planned.
    """

    executor: Executor
    folder: Path
    ids: list[str] = field(default_factory=list)
    note: str = ""

    def running(self) -> bool:
        """Whether any worker may still be at work."""
        return False

    def stop(self) -> None:
        """Ask the workers to hand their work back and end."""

    def errors(self) -> str:
        """The last lines of the workers' own logs, for a message."""
        return ""


@dataclass
class LocalLaunch(Launch):
    """Processes of this machine, started by submitit."""

    jobs: list[Any] = field(default_factory=list)

    def running(self) -> bool:
        return any(not job.done() for job in self.jobs)

    def stop(self) -> None:
        for job in self.jobs:
            with suppress(ProcessLookupError):  # submitit's number of a local job is its process
                os.kill(int(job.job_id), signal.SIGTERM)

    def errors(self) -> str:
        return _tails(Path(job.paths.stderr) for job in self.jobs)


@dataclass
class SlurmLaunch(Launch):
    """One or more jobs, each with its token and a folder of that name."""

    jobs: dict[str, str] = field(default_factory=dict)  # token → number

    def running(self) -> bool:
        if not self.jobs:
            return False
        known = scheduler.shared.jobs()
        if known is None:  # Slurm does not answer: that ends no job
            return True
        comments = {intents.comment(token) for token in self.jobs}
        return any(job.active and job.comment in comments for job in known)

    def stop(self) -> None:
        scheduler.cancel(list(self.jobs.values()))

    def errors(self) -> str:
        return _tails(path for token in self.jobs for path in (self.folder / token).glob("*.err"))


def _tails(paths: Any) -> str:
    """The last lines of the files that were written to last."""
    written = sorted((p for p in paths if p.exists()), key=lambda path: path.stat().st_mtime)
    lines: list[str] = []
    for path in written[-4:]:
        lines += path.read_text(errors="replace").splitlines()[-5:]
    return "\n".join(lines)


# ---- starting ----------------------------------------------------------------------------------


def launch(store: Store, collection: str, address: str, plan: Plan) -> Launch:
    """Start workers for a sweep.

    Args:
        address: the store's URL, credentials included; written to a private file for the workers.

    Raises:
        LaunchError: Slurm is missing, refuses the job, or its nodes cannot reach the store.
    """
    from orchestrator import worker  # imports Sacred: slow, and not needed to look at a sweep

    intents.reconcile(store, collection)
    folder = _folder(collection)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = _options(store, collection, address, plan)
    if problem := _problem(store, collection, plan):
        raise LaunchError(problem)
    if store.kind == "mongodb":  # for the user's eyes only: in no job script, in no `ps`
        _write(Path(options.store), address)
    if plan.executor == "debug":
        worker.debug(options)
        return Launch("debug", folder)
    with _room(store, collection, plan) as count:
        if count <= 0:
            note = f"--max-workers {plan.max_workers}: the sweep has as many, or is getting them"
            return Launch(plan.executor, folder, note=note)
        sizes = _sizes(plan, count)
        tokens = [intents.declare(store, collection, plan.executor, size) for size in sizes]
    launched: Launch
    if plan.executor == "slurm":
        launched = _on_slurm(store, folder, options, plan, dict(zip(tokens, sizes, strict=True)))
    else:
        launched = _locally(store, folder, options, plan, tokens[0], count)
    if count < plan.workers and not launched.note:
        launched.note = f"--max-workers {plan.max_workers}: {count} instead of {plan.workers}"
    return launched


@contextmanager
def _room(store: Store, collection: str, plan: Plan) -> Iterator[int]:
    """How many workers may be started. Inside, others count the planned ones as there: of two who
    start at once, at least one sees the other, and the sum is never too large."""
    if plan.max_workers is None:
        yield plan.workers
        return
    reservation = intents.declare(store, collection, plan.executor, plan.workers)
    try:
        live = intents.live_workers(store, collection, but=reservation)
        if live is None:
            raise LaunchError("--max-workers: squeue does not answer; try again, or leave it out")
        yield min(plan.workers, plan.max_workers - live)
    finally:
        store.delete(intents.LAUNCHES, {"_id": reservation})


def describe(store: Store, collection: str, address: str, plan: Plan) -> str:
    """What `launch` would do, down to the job scripts; changes nothing anywhere.

    Raises:
        LaunchError: the plan names a parameter that sbatch does not have.
    """
    options = _options(store, collection, address, plan)
    lines = []
    if plan.executor == "slurm":
        sizes = _sizes(plan, plan.workers)
        for number, size in enumerate(sizes, 1):
            lines.append(f"# sbatch script {number} of {len(sizes)}, for {size} workers")
            lines.append(_script(_folder(collection), "TOKEN", options, plan, size))
        lines.append("# worker options: OPTIONS.json in the folder of the script")
    else:
        where = "in this process" if plan.executor == "debug" else f"on {socket.gethostname()}"
        lines.append(f"# {plan.workers} workers {where}, by {_python(plan)}")
        lines += [f"# setup: {line}" for line in plan.setup]
        lines.append("# worker options")
    lines.append(json.dumps(asdict(options), indent=2))
    if problem := _problem(store, collection, plan):
        lines.append(f"# this would be refused: {problem}")
    return "\n".join(lines)


def _folder(collection: str) -> Path:
    return settings.home() / "workers" / collection


def _options(store: Store, collection: str, address: str, plan: Plan) -> Options:
    """What the workers get to know; raises LaunchError for parameters that sbatch would not get."""
    from orchestrator import worker

    if plan.executor == "slurm":
        _check_parameters(plan)
    where = store.url
    if store.kind == "mongodb":  # where `_write_address` puts it, password included
        where = str(_folder(collection) / f"{sha256(address.encode()).hexdigest()[:12]}.url")
    return worker.Options(
        store=where,
        collection=collection,
        home=str(settings.home()),
        artifacts=str(settings.artifacts()),
        slots=plan.slots or _default_slots(plan),
        threads=plan.threads,
        idle_seconds=plan.idle_seconds,
        time_limit=plan.time_limit,
        only=plan.only,
    )


def _write(path: Path, text: str) -> None:
    private = stat.S_IRUSR | stat.S_IWUSR
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, private)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    path.chmod(private)


def _problem(store: Store, collection: str, plan: Plan) -> str | None:
    """Why this plan cannot work here, in one line; None if it can, as far as we see."""
    if plan.image is not None and "://" not in plan.image and not Path(plan.image).is_file():
        return f"--image {plan.image}: there is no such file"
    if plan.executor != "slurm":
        return None
    if shutil.which("sbatch") is None:
        return "sbatch is not on the PATH: run this on a login node of the cluster"
    if store.kind == "sqlite" and not _nodes_are_here():
        return (
            "the store is an SQLite file, which other hosts cannot share: set up MongoDB, move the "
            f"sweep with `assay db push mongodb://… --sweep {collection}`, and use --db mongodb://…"
        )
    return None


def _sizes(plan: Plan, count: int) -> list[int]:
    """How many workers in each submission: arrays are limited, local processes are not."""
    limit = scheduler.array_limit() if plan.executor == "slurm" else count
    return [min(limit, count - start) for start in range(0, count, limit)]


def _python(plan: Plan) -> str:
    """The shell words that run Python: ours, or the one of an image, which sees our folders."""
    if plan.image is None:
        return shlex.quote(sys.executable)
    image = plan.image if "://" in plan.image else str(Path(plan.image).resolve())
    seen = dict.fromkeys((str(settings.home()), str(settings.artifacts()), os.getcwd()))
    return shlex.join(["apptainer", "exec", "--nv", "--bind", ",".join(seen), image, "python"])


def _locally(
    store: Store, folder: Path, options: Options, plan: Plan, token: str, count: int
) -> Launch:
    import submitit

    from orchestrator import worker

    executor = submitit.LocalExecutor(folder / "%j", python=_python(plan))
    executor.update_parameters(timeout_min=MINUTES_WITHOUT_LIMIT, setup=list(plan.setup))
    # submitit hides all GPUs from local jobs that ask for none; the worker undoes it.
    options = replace(options, cuda_visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
    with _deaf_to_ctrl_c():
        jobs = [executor.submit(worker.main, options) for _ in range(count)]
    processes = [intents.process(int(job.job_id)) for job in jobs]
    intents.conclude(store, token, state=intents.SUBMITTED, processes=processes)
    return LocalLaunch("local", folder, [str(job.job_id) for job in jobs], jobs=jobs)


# ---- Slurm -------------------------------------------------------------------------------------


def _on_slurm(
    store: Store, folder: Path, options: Options, plan: Plan, sizes: dict[str, int]
) -> SlurmLaunch:
    """Submit one job per token; the first refusal ends it."""
    launched = SlurmLaunch("slurm", folder)
    waiting = list(sizes)
    while waiting:
        token = waiting.pop(0)
        try:
            number = _submit(folder, token, options, plan, sizes[token])
        except (scheduler.Refused, scheduler.Unanswered) as error:
            unknown = isinstance(error, scheduler.Unanswered)
            state = intents.SUBMITTING if unknown else intents.REFUSED
            intents.conclude(store, token, state=state, message=str(error))
            for other in waiting:
                intents.conclude(store, other, state=intents.REFUSED, message="not tried")
            text = str(error)
            if unknown:
                text += " (`assay status` will find out whether Slurm has the job)"
            if not launched.jobs:
                raise LaunchError(text) from error
            launched.note = f"{len(launched.ids)} of {sum(sizes.values())} workers: {text}"
            break
        intents.conclude(store, token, state=intents.SUBMITTED, jobs=[number])
        launched.jobs[token] = number
        tasks = sizes[token]
        launched.ids += [number] if tasks == 1 else [f"{number}_{i}" for i in range(tasks)]
    return launched


def _submit(folder: Path, token: str, options: Options, plan: Plan, count: int) -> str:
    """Everything that the job needs is on the disk before sbatch hears of it."""
    (folder / token).mkdir(mode=0o700)
    _write(folder / token / "options.json", json.dumps(asdict(options), indent=2))
    script = folder / token / "submission.sh"
    _write(script, _script(folder, token, options, plan, count))
    return scheduler.submit(script)


def _script(folder: Path, token: str, options: Options, plan: Plan, count: int) -> str:
    """The sbatch script for an array of `count` workers; one worker is no array."""
    from submitit.slurm.slurm import _make_sbatch_string

    given = dict(plan.slurm)
    additional = {
        "export": ",".join(name for name in ENVIRONMENT if name in os.environ) or "NONE",
        "requeue": True,
        **given.pop("additional_parameters", {}),
    }
    parameters: dict[str, Any] = {
        "job_name": f"assay-{options.collection}",
        "comment": intents.comment(token),
        "time": 8 * 60,
        "cpus_per_task": options.slots * options.threads,
        "array_parallelism": count,
        "signal_delay_s": 60,
        "wckey": None,
        "setup": list(plan.setup),
        **given,
        "additional_parameters": {k: v for k, v in additional.items() if v is not False},
    }
    # Since 22.05 srun does not inherit the CPUs: where tasks are bound, all slots would share one.
    # By itself it passes on the variables that --export names, but not those that `setup` sets.
    parameters["srun_args"] = [
        f"--cpus-per-task={parameters['cpus_per_task']}",
        "--export=ALL",
        *given.get("srun_args", ()),
    ]
    command = f"{_python(plan)} -u -m orchestrator.job "
    command += shlex.quote(str(folder / token / "options.json"))
    map_count = count if count > 1 else None
    return _make_sbatch_string(command, folder / token, map_count=map_count, **parameters)


def _check_parameters(plan: Plan) -> None:
    """Raise LaunchError for what submitit or our bookkeeping cannot take."""
    from submitit import SlurmExecutor

    known = SlurmExecutor._valid_parameters()
    for name in plan.slurm:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; see Plan.slurm"
            raise LaunchError(f"unknown Slurm parameter {name!r}{hint}")
    chosen = (*plan.slurm, *plan.slurm.get("additional_parameters", {}))
    if taken := [name for name in chosen if name.replace("_", "-") in OURS]:
        raise LaunchError(f"Slurm's --{taken[0]} cannot be chosen: Assay sets it")


def minutes(text: str) -> int:
    """Slurm's time format (`90`, `1:30:00`, `2-12`, `2-12:30:00`) in minutes, rounded up.

    Raises:
        LaunchError: it is none of these.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        raise LaunchError(f"--time {text!r}: write minutes, h:mm:ss, or d-hh:mm:ss")
    days, first, second, third = (int(part) if part else None for part in match.groups())
    if days is not None:
        total = days * 1440 + (first or 0) * 60 + (second or 0) + bool(third)
    elif third is not None:
        total = (first or 0) * 60 + (second or 0) + bool(third)
    else:  # minutes, or minutes:seconds
        total = (first or 0) + bool(second)
    return max(1, total)


def _default_slots(plan: Plan) -> int:
    if plan.executor == "slurm":
        return 1
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // (plan.workers * plan.threads))


def _nodes_are_here() -> bool:
    """Whether every node of the cluster is this machine, as on a one-machine Slurm."""
    if shutil.which("scontrol") is None:
        return False
    answer = subprocess.run(
        ["scontrol", "--oneliner", "show", "node"], capture_output=True, text=True, check=False
    )
    hosts = set(re.findall(r"NodeHostName=(\S+)", answer.stdout))
    return bool(hosts) and hosts <= {socket.gethostname(), socket.gethostname().split(".")[0]}


# ---- stopping ----------------------------------------------------------------------------------


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started inside do not get the terminal's Ctrl-C: we tell them to stop, in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def without_our_output() -> Iterator[None]:
    """Processes started inside do not hold our standard output and error: whoever reads them, as
    in `assay start | tail`, would wait for the workers to end. They write into their folder."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(nowhere)


def stop_workers(store: Store, collection: str) -> int:
    """End the user's own workers of a sweep that have no RUNNING experiment; returns how many.

    Jobs that carry one of our tokens are given to scancel, waiting ones included; other workers
    on this host get SIGTERM. An allocation that the user made is never cancelled.
    """
    running = store.find(collection, {"status": RUNNING}, fields=["assay.worker"])
    busy = {document.get("assay", {}).get("worker") for document in running}
    workers = store.find(liveness.WORKERS, {"collection": collection, "state": "running"})
    busy_jobs = {w["place"]["slurm_job"] for w in workers if w["_id"] in busy}
    launches = store.find(
        intents.LAUNCHES, {"collection": collection, "executor": "slurm"}, fields=["_id"]
    )
    comments = {intents.comment(intent["_id"]) for intent in launches}
    scheduled = []
    if comments:
        scheduler.shared.expire()
        ours = [j for j in scheduler.shared.jobs() or () if j.active and j.comment in comments]
        scheduled = [job for job in ours if job.id not in busy_jobs]
        spared = {job.array for job in ours if job.id in busy_jobs}
        names = (job.name if job.array in spared else str(job.array) for job in scheduled)
        scheduler.cancel(list(dict.fromkeys(names)))
    stopped = len(scheduled)
    cancelled = {job.id for job in scheduled}
    for worker in workers:
        place = worker["place"]
        if worker["_id"] in busy or place["slurm_job"] in cancelled or not liveness.is_here(place):
            continue
        with suppress(ProcessLookupError, PermissionError):
            os.kill(place["pid"], signal.SIGTERM)
            stopped += 1
    return stopped
