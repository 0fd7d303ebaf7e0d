"""Slurm's own commands, used as seldom as possible.

One `squeue` answers for everything that a process wants to know within ten seconds, and a Slurm
that does not answer is left alone for 2, 4, 8, … 60 s. Accounting is not needed: `sacct` is asked
only where it exists, and its silence means nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

DEFAULT_ARRAY_LIMIT = 1001  # Slurm's own default of MaxArraySize
FRESH_SECONDS = 10.0
MAX_BACK_OFF_SECONDS = 60.0
TIMEOUT_SECONDS = 15.0
SBATCH_TIMEOUT_SECONDS = 120.0

ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
     "PREEMPTED", "REVOKED", "TIMEOUT"}
)  # fmt: skip

# sbatch says one of these when it does not know itself whether the controller has the job.
UNANSWERED = re.compile(
    r"timed out|unable to contact|connection|communication|zero bytes", re.IGNORECASE
)


class Refused(Exception):
    """sbatch did not accept the job; the text is Slurm's reason, in one line."""


class Unanswered(Exception):
    """Nobody knows whether Slurm has the job; the text says what sbatch said."""


@dataclass(frozen=True)
class Job:
    """A job or a task of a job array, as Slurm knows it now.

    Attributes:
        id: its own number; of a pending task, the number of its array.
        array: the number that sbatch gave.
        task: index in the array; None for a job without one.
    """

    id: int
    array: int
    task: int | None
    state: str
    comment: str

    @property
    def active(self) -> bool:
        """Whether it may have processes, now or later."""
        return self.state not in ENDED

    @property
    def name(self) -> str:
        """What scancel calls it: `17`, or `17_3`."""
        return str(self.array) if self.task is None else f"{self.array}_{self.task}"


class Scheduler:
    """The user's jobs, remembered for a while.

    Args:
        ask: gives all jobs, or None when Slurm does not answer.
    """

    def __init__(
        self,
        ask: Callable[[], list[Job] | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask or _squeue
        self._clock = clock
        self._known: list[Job] | None = None
        self._active: frozenset[int] = frozenset()
        self._next = float("-inf")
        self._failures = 0

    def jobs(self) -> list[Job] | None:
        """The user's jobs, those that ended a few minutes ago included; at most ten seconds old.

        None: there is no Slurm here, or it does not answer; that proves nothing about any job.
        """
        now = self._clock()
        if now >= self._next:
            self._known = self._ask()
            if self._known is None:
                self._failures += 1
                wait = min(2.0**self._failures, MAX_BACK_OFF_SECONDS)
            else:
                self._failures = 0
                self._active = frozenset(job.id for job in self._known if job.active)
                wait = FRESH_SECONDS
            self._next = self._clock() + wait
        return self._known

    def active(self) -> frozenset[int] | None:
        """Numbers of the jobs that have not ended; None as in `jobs`."""
        return None if self.jobs() is None else self._active

    def expire(self) -> None:
        """Ask again next time: we have changed something ourselves. A back-off goes on."""
        if not self._failures:
            self._next = float("-inf")


def _squeue() -> list[Job] | None:
    """All jobs of this user from one `squeue`."""
    if shutil.which("squeue") is None:
        return None
    words = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%A|%F|%K|%T|%k"]
    with suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        if answer.returncode == 0:
            return parse(answer.stdout)
    return None


def parse(text: str) -> list[Job]:
    """The jobs in squeue's `%A|%F|%K|%T|%k` lines; a comment of several lines loses the others."""
    jobs = []
    for line in text.splitlines():
        fields = line.strip().split("|", 4)
        if len(fields) < 5 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            continue
        number, array, task, state, comment = fields
        index = int(task) if task.isdecimal() else None
        jobs.append(Job(int(number), int(array), index, state, comment))
    return jobs


shared = Scheduler()


# ---- facts about the cluster -------------------------------------------------------------------


@lru_cache(maxsize=1)
def _configuration() -> dict[str, str]:
    with suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(
            ["scontrol", "show", "config"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        return dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", answer.stdout, re.MULTILINE))
    return {}


def array_limit() -> int:
    """MaxArraySize: every index of an array must be below it; 1 where there are no arrays."""
    text = _configuration().get("MaxArraySize", "")
    return max(1, int(text)) if text.isdecimal() else DEFAULT_ARRAY_LIMIT


def cluster() -> str | None:
    """The cluster's name; None without Slurm."""
    return _configuration().get("ClusterName")


# ---- doing something ---------------------------------------------------------------------------


def submit(script: Path) -> str:
    """Give a script to sbatch; returns the job's number.

    Raises:
        Refused: Slurm does not want the job.
        Unanswered: it may or may not have it.
    """
    try:
        answer = subprocess.run(
            ["sbatch", "--parsable", str(script)],
            capture_output=True,
            text=True,
            env=outside(os.environ),
            timeout=SBATCH_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unanswered(f"sbatch has not answered for {error.timeout:.0f} s") from error
    except OSError as error:
        raise Refused(f"sbatch: {error.strerror}") from error
    finally:
        shared.expire()
    number = answer.stdout.strip().split(";")[0]  # "17" or "17;cluster"
    if answer.returncode == 0 and number.isdecimal():
        return number
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line] or lines
    # The last one says it, unless it only says that the submission failed.
    text = errors[-1].strip() if errors else f"sbatch ended with {answer.returncode}, no message"
    raise (Unanswered if UNANSWERED.search(text) or answer.returncode == 0 else Refused)(text)


def cancel(jobs: Sequence[str]) -> None:
    """Have Slurm end jobs: SIGTERM, and SIGKILL after its KillWait. Ended ones are no error."""
    for start in range(0, len(jobs), 500):
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["scancel", *jobs[start : start + 500]],
                capture_output=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
    shared.expire()


def accounted(name: str, since: datetime) -> dict[str, set[str]]:
    """Comment → numbers of the jobs of this name, from accounting; empty where there is none.

    Slurm keeps comments there only with `AccountingStoreFlags=job_comment`.
    """
    if shutil.which("sacct") is None:
        return {}
    start = (since - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S")
    words = ["sacct", "-X", "-n", "-P", f"--name={name}", f"--starttime={start}"]
    found: dict[str, set[str]] = {}
    with suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(
            [*words, "--format=JobID,Comment"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        for line in answer.stdout.splitlines():
            job, _, comment = line.partition("|")
            if comment:
                found.setdefault(comment.strip('"'), set()).add(job.split("_")[0])
    return found


def outside(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without the traces of the allocation that this process runs in, if any.

    sbatch hands all SLURM_* variables on: a job submitted from within a job would believe that it
    is a task of the outer array, and srun would mix both jobs' memory and CPUs.
    """
    if "SLURM_JOB_ID" not in environment:
        return dict(environment)
    own = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {k: v for k, v in environment.items() if k in kept or not k.startswith(own)}
