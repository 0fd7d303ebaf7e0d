"""Starting workers: in Slurm jobs, as processes of this machine, or in this very process.

submitit does the submission. A sweep gets one array of workers, never one job per experiment, and
nobody waits for a result pickle: workers find their work in the store and leave it there.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator import settings
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.worker import Options

Executor = Literal["local", "slurm", "debug"]

# What a job gets of the submitting shell's environment; a secret is in none of these.
ENVIRONMENT = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "TERM",
    "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV",
    "CUDA_HOME", "SLURM_CONF", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "ASSAY_HOME",
    "ASSAY_ARTIFACTS", "SUBMITIT_EXECUTOR",
)  # fmt: skip
MINUTES_WITHOUT_LIMIT = 60 * 24 * 365


class LaunchError(Exception):
    """Workers could not be started: one line that says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """How many workers to start, where, and with what.

    Attributes:
        workers: processes (local) or array tasks (slurm).
        slots: experiments at a time in one worker; None: all cores for one local worker, else 1.
        threads: threads per slot. One is fastest for sweeps, and keeps results independent of
            the number of cores.
        slurm: parameters of sbatch by submitit's names (`partition`, `time` in minutes, `mem`,
            `gres`, `cpus_per_task`, `additional_parameters`, ...).
        setup: shell lines run in the job before the worker starts.
    """

    executor: Executor = "local"
    workers: int = 1
    slots: int | None = None
    threads: int = 1
    idle_seconds: float = 2.0
    slurm: dict[str, Any] = field(default_factory=dict)
    setup: tuple[str, ...] = ()


@dataclass
class Launch:
    """Workers that were started: their jobs, and the folder of their logs."""

    executor: Executor
    jobs: list[Any]
    folder: Path

    @property
    def ids(self) -> list[str]:
        return [str(job.job_id) for job in self.jobs]

    def running(self) -> bool:
        """Whether any worker may still be at work."""
        return any(not job.done() for job in self.jobs)

    def stop(self) -> None:
        """Ask the workers to hand their work back and end."""
        for job in self.jobs:
            job.cancel(check=False)

    def errors(self) -> str:
        """The last lines of the workers' own logs, for a message."""
        lines: list[str] = []
        for job in self.jobs:
            path = Path(job.paths.stderr)
            if path.exists():
                lines += path.read_text(errors="replace").splitlines()[-5:]
        return "\n".join(lines)


def launch(store: Store, collection: str, address: str, plan: Plan) -> Launch:
    """Start workers for a sweep.

    Args:
        address: the store's URL, credentials included; written to a private file for the workers.

    Raises:
        LaunchError: Slurm is missing, refuses the job, or its nodes cannot reach the store.
    """
    from orchestrator import worker  # imports Sacred: slow, and not needed to look at a sweep

    folder = settings.home() / "workers" / collection
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = worker.Options(
        store=_private_address(folder, address) if store.kind == "mongodb" else address,
        collection=collection,
        home=str(settings.home()),
        artifacts=str(settings.artifacts()),
        slots=plan.slots or _default_slots(plan),
        threads=plan.threads,
        idle_seconds=plan.idle_seconds,
    )
    if plan.executor == "debug":
        # In this process, one experiment after the other; breakpoints and tracebacks as usual.
        worker.main(replace(options, slots=1))
        return Launch("debug", [], folder)
    if plan.executor == "slurm":
        return _on_slurm(store, collection, folder, options, plan)
    return _locally(folder, options, plan)


def _locally(folder: Path, options: Options, plan: Plan) -> Launch:
    import submitit

    from orchestrator import worker

    executor = submitit.LocalExecutor(folder / "%j")
    executor.update_parameters(timeout_min=MINUTES_WITHOUT_LIMIT, setup=list(plan.setup))
    # submitit hides all GPUs from local jobs that ask for none; the worker undoes it.
    options = replace(options, cuda_visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
    jobs = [executor.submit(worker.main, options) for _ in range(plan.workers)]
    return Launch("local", jobs, folder)


def _on_slurm(store: Store, collection: str, folder: Path, options: Options, plan: Plan) -> Launch:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from orchestrator import worker

    if shutil.which("sbatch") is None:
        raise LaunchError("sbatch is not on the PATH: run this on a login node of the cluster")
    if store.kind == "sqlite" and not _nodes_are_here():
        raise LaunchError(
            "the store is an SQLite file, which other hosts cannot share: set up MongoDB, move the "
            f"sweep with `assay db push mongodb://… --sweep {collection}`, and use --db mongodb://…"
        )
    cores = options.slots * options.threads
    given = dict(plan.slurm)
    extra = {
        "export": ",".join(name for name in ENVIRONMENT if name in os.environ)
        + ",SUBMITIT_EXECUTOR",
        "requeue": True,
        **given.pop("additional_parameters", {}),
    }
    parameters: dict[str, Any] = {
        "job_name": f"assay-{collection}",
        "time": 8 * 60,
        "cpus_per_task": cores,
        "array_parallelism": plan.workers,
        "signal_delay_s": 60,
        "stderr_to_stdout": False,
        "setup": list(plan.setup),
        **given,
        "additional_parameters": extra,
    }
    executor = submitit.SlurmExecutor(folder / "%j")
    try:
        executor.update_parameters(**parameters)
        jobs = executor.map_array(worker.main, [options] * plan.workers)
    except ValueError as error:
        raise LaunchError(f"unknown Slurm parameter: {str(error).splitlines()[0]}") from error
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        lines = [line for line in str(error).splitlines() if "sbatch: error" in line]
        raise LaunchError((lines or str(error).splitlines())[0]) from error
    return Launch("slurm", list(jobs), folder)


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


def _private_address(folder: Path, address: str) -> str:
    """A file that only the user can read, so that no job script and no `ps` shows a password."""
    path = folder / "store.url"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(descriptor, "w") as file:
        file.write(address)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    return str(path)


def _nodes_are_here() -> bool:
    """Whether every node of the cluster is this machine, as on a one-machine Slurm."""
    answer = subprocess.run(
        ["scontrol", "--oneliner", "show", "node"], capture_output=True, text=True, check=False
    )
    hosts = set(re.findall(r"NodeHostName=(\S+)", answer.stdout))
    return bool(hosts) and hosts <= {socket.gethostname(), socket.gethostname().split(".")[0]}
