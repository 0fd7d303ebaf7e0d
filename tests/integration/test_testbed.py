"""The one-machine Slurm of slurm/testbed does what the other integration tests rely on."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_testbed import (
    TESTBED,
    accounting,
    command,
    eventually,
    finished,
    needs_slurm,
    nodes,
    state,
    submit,
)

pytestmark = [pytest.mark.slurm, needs_slurm]

USABLE = {"idle", "mixed", "allocated", "completing"}
LISTEN = "0A"


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has reaped yet does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def listeners(ports: set[int]) -> dict[int, set[str]]:
    """Port -> addresses that somebody on this machine listens on, as the kernel writes them."""
    found: dict[int, set[str]] = {}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            local, _, status = line.split()[1:4]
            address, port = local.split(":")
            if status == LISTEN and int(port, 16) in ports:
                found.setdefault(int(port, 16), set()).add(address)
    return found


def settings(conf: Path) -> dict[str, str]:
    """The ``Name=value`` lines of a slurm.conf, nodes and partitions left out."""
    return dict(re.findall(r"^(\w+)=(\S+)$", conf.read_text(), flags=re.MULTILINE))


def test_every_node_is_usable_and_has_two_fake_gpus() -> None:
    assert nodes()
    for name, (status, gres) in nodes().items():
        assert status in USABLE, name
        assert gres.startswith("gpu:fake:2"), name


def test_slurm_listens_on_loopback_only() -> None:
    conf = Path(os.environ["SLURM_CONF"])
    values = settings(conf)
    if not values["AccountingStorageHost"].startswith("127."):
        pytest.skip("this machine's own name is not a loopback address; Slurm follows the name")
    ports = {int(values["SlurmctldPort"]), int(values["AccountingStoragePort"])}
    ports |= {int(port) for port in re.findall(r"^NodeName=.* Port=(\d+) ", conf.read_text(), re.M)}
    found = listeners(ports)
    assert set(found) == ports
    for port, addresses in found.items():
        # the kernel writes 127.0.1.1 as 0101007F
        assert all(re.fullmatch(r"[0-9A-F]{6}7F", address) for address in addresses), port


def test_no_other_user_can_read_the_bed() -> None:
    directory = Path(os.environ["SLURM_CONF"]).parents[1]
    assert directory.stat().st_mode & 0o077 == 0
    assert directory.stat().st_uid == os.getuid()


def test_array_tasks_share_out_the_gpus(tmp_path: Path) -> None:
    script = (
        "begin=$(date +%s.%N); sleep 1; "
        'echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $begin $(date +%s.%N)"'
    )
    job = submit(script, tmp_path / "task-%a", "--array=0-9", "--gres=gpu:1", "--mem=100")
    records = finished(job, tasks=10)
    assert set(records) == {f"{job}_{task}" for task in range(10)}
    assert {record.state for record in records.values()} == {"COMPLETED"}
    assert all("gres/gpu=1" in record.tres for record in records.values())

    used: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for task in range(10):
        node, gpu, begin, end = (tmp_path / f"task-{task}").read_text().split()
        assert node == records[f"{job}_{task}"].node
        assert gpu in {"0", "1"}
        used.setdefault((node, gpu), []).append((float(begin), float(end)))
    assert {gpu for _, gpu in used} == {"0", "1"}
    for intervals in used.values():
        intervals.sort()
        for (_, ended), (begun, _) in itertools.pairwise(intervals):
            assert ended <= begun, "two tasks had the same GPU at the same time"


def test_a_failing_job_keeps_its_exit_code(tmp_path: Path) -> None:
    job = submit("exit 3", tmp_path / "log")
    record = finished(job)[job]
    assert (record.state, record.exit_code) == ("FAILED", "3:0")


def test_srun_within_a_job(tmp_path: Path) -> None:
    job = submit('srun sh -c "echo step $CUDA_VISIBLE_DEVICES"', tmp_path / "log", "--gres=gpu:1")
    assert finished(job)[job].state == "COMPLETED"
    assert re.fullmatch(r"step [01]\n", (tmp_path / "log").read_text())


def test_scancel_ends_the_processes_of_a_job(tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = submit("sleep 600 & echo $!; wait", log)
    text = eventually(lambda: log.read_text() if log.exists() else "", what="job started")
    pid = int(text)
    assert alive(pid)
    command("scancel", job)
    assert finished(job)[job].state == "CANCELLED"
    eventually(lambda: not alive(pid), what="process of the job gone")


def test_a_requeued_job_starts_again_under_its_id(tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = submit('echo "run ${SLURM_RESTART_COUNT:-0}"; sleep 600', log)
    try:
        eventually(lambda: log.exists() and "run 0" in log.read_text(), what="first run")
        command("scontrol", "requeue", job)
        # with Slurm's default cred_expire this takes two minutes
        eventually(lambda: "run 1" in log.read_text(), timeout=25, what="second run")
        assert state(job) == "RUNNING"
    finally:
        command("scancel", job)


# ------------------------------------------------------------------ a bed of its own


class Bed:
    """A second, smaller bed beside the one under test; may be killed at will."""

    def __init__(self, directory: Path) -> None:
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.env = {**outside, "ASSAY_TESTBED": str(directory), "NODES": "1", "CPUS": "2"}
        self.conf = directory / "etc" / "slurm.conf"

    def __call__(self, verb: str, *words: object) -> str:
        return command(TESTBED, verb, *words, env=self.env, timeout=120)

    def pids(self) -> set[int]:
        """Every process with a file or directory of the bed open, or told of it at its start."""
        marks = (str(self.conf).encode(), str(self.conf.parents[1]).encode())
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                text += os.fsencode(os.readlink(process / "cwd"))
            except OSError:
                continue  # gone, or another user's
            if any(mark in text for mark in marks) and int(process.name) != os.getpid():
                found.add(int(process.name))
        return {pid for pid in found if alive(pid)}


@pytest.fixture
def bed() -> Iterator[Bed]:
    # not tmp_path: the path of a unix socket must be short
    directory = Path(tempfile.mkdtemp(prefix="bed-"))
    bed = Bed(directory)
    yield bed
    bed("down")
    shutil.rmtree(directory)


@pytest.mark.slow
def test_a_bed_survives_kill_and_leaves_nothing_behind(bed: Bed, tmp_path: Path) -> None:
    ours = nodes()
    assert "ready in" in bed("up")
    first = bed.pids()
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in first}
    assert names - {"slurmscriptd"} == {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"}

    begin = time.monotonic()
    bed("up")
    assert bed.pids() == first, "a second 'up' restarts nothing"
    assert time.monotonic() - begin < 5

    for pid in first:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not bed.pids(), what="killed")
    bed("up")
    log = tmp_path / "log"
    submit_words = ("sbatch", "--parsable", f"--output={log}", "--wrap", "echo on; exec sleep 600")
    bed("run", *submit_words)
    eventually(lambda: log.exists() and "on" in log.read_text(), what="a job after the crash")
    assert bed("env").strip() == f"export SLURM_CONF={bed.conf}"

    bed("down")
    assert not bed.pids(), "not even the job"
    assert nodes().keys() == ours.keys(), "the other bed is still there"


def test_user_mistakes_get_one_clear_line() -> None:
    for words, env, said in (
        (["start"], {}, "no command 'start'"),
        (["run"], {}, "run what?"),
        (["status"], {"NODES": "many"}, "NODES=many"),
        (["status"], {"ASSAY_TESTBED": "/tmp/" + "x" * 80}, "too long"),
        (["status"], {"ASSAY_TESTBED": "/tmp/a b"}, "such characters"),
    ):
        with pytest.raises(AssertionError, match=re.escape(said)) as error:
            command(TESTBED, *words, env={**os.environ, **env})
        assert str(error.value).count("\n") == 1


def test_accounting_of_an_unknown_job_is_empty() -> None:
    assert accounting("999999999") == {}
