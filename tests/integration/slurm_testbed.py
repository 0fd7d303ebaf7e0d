"""What the tests need of the one-machine Slurm of ``slurm/testbed``: a few commands, by name.

Everything here goes through Slurm's own commands and the cluster that ``SLURM_CONF`` names, so a
test reads as what a user would type. Where there is no such cluster, ``needs_slurm`` skips.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

TESTBED = Path(__file__).resolve().parents[2] / "slurm" / "testbed"
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"})

T = TypeVar("T")

needs_slurm = pytest.mark.skipif(
    "SLURM_CONF" not in os.environ or shutil.which("sbatch") is None,
    reason='no test bed: run under `slurm/testbed run`, or eval "$(slurm/testbed env)"',
)


def command(*words: object, env: Mapping[str, str] | None = None, timeout: float = 60) -> str:
    """Standard output of a command; a failing one raises AssertionError with its messages."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{words} exited {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def eventually(probe: Callable[[], T | None], timeout: float = 20, what: str = "") -> T:
    """First true value of ``probe``, asked every 0.2 s; AssertionError after the timeout."""
    end = time.monotonic() + timeout
    while not (value := probe()):
        assert time.monotonic() < end, f"not within {timeout} s: {what or probe}"
        time.sleep(0.2)
    return value


def submit(script: str, log: Path, *options: str) -> str:
    """Id of a new batch job that runs ``script`` with sh and writes to ``log``."""
    words = ["sbatch", "--parsable", f"--output={log}", "--open-mode=append", *options]
    return command(*words, "--wrap", script).strip()


@dataclass(frozen=True)
class Record:
    """One job (array task) as the accounting database knows it, steps left out."""

    job: str
    state: str
    exit_code: str
    node: str
    tres: str


def accounting(job: str) -> dict[str, Record]:
    """Records of a job, or of the tasks of an array, by job id such as ``7`` or ``7_0``."""
    fields = "jobid,state,exitcode,nodelist,alloctres"
    lines = command("sacct", "-X", "-n", "-P", "-j", job, "-o", fields).splitlines()
    rows = [line.split("|") for line in lines]
    # "CANCELLED by 1000" names who did it
    return {row[0]: Record(row[0], row[1].split(" ")[0], *row[2:]) for row in rows}


def finished(job: str, tasks: int = 1, timeout: float = 20) -> dict[str, Record]:
    """Records of a job, once all its tasks are in a final state in the accounting database."""

    def records() -> dict[str, Record] | None:
        found = accounting(job)
        done = [record for record in found.values() if record.state in FINAL]
        return found if len(done) == len(found) == tasks else None

    return eventually(records, timeout, f"job {job} finished in sacct")


def state(job: str) -> str:
    """State of a job in the controller's memory, such as PENDING or RUNNING."""
    return command("squeue", "-h", "-t", "all", "-o", "%T", "-j", job).strip()


def nodes() -> dict[str, tuple[str, str]]:
    """Name -> (state, generic resources) of every node of the default partition."""
    lines = command("sinfo", "-h", "-N", "-p", "debug", "-o", "%N %T %G").splitlines()
    return {name: (status, gres) for name, status, gres in (line.split() for line in lines)}
