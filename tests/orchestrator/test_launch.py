"""Starting workers, without Slurm: scripts of a few lines stand in for its commands."""

from __future__ import annotations

import os
import shlex
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator import intents, launch, liveness, profiles, scheduler, settings
from orchestrator.intents import LAUNCHES
from orchestrator.launch import LaunchError, Plan
from orchestrator.queue import now
from orchestrator.scheduler import Job, Scheduler
from orchestrator.worker import Options

CONFIG = "ClusterName             = toy\nMaxArraySize            = {limit}\n"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in [n for n in os.environ if n.startswith("SLURM")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """`slurm("squeue", "echo ...")` makes a command; `slurm.calls()` are those made so far."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "calls"
    for tool in ("cat", "echo", "sleep", "sh"):
        (folder / tool).symlink_to(f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(scheduler, "shared", Scheduler())
    scheduler._configuration.cache_clear()

    def command(name: str, body: str = "") -> None:
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{body}\n')
        path.chmod(0o755)

    def calls(name: str = "") -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if line.startswith(name)]

    def queue(*lines: str) -> None:
        command("squeue", "cat <<END\n" + "\n".join(lines) + "\nEND")

    command("scontrol", f"cat <<END\n{CONFIG.format(limit=3)}END")
    queue()
    command("sbatch", "echo 17")
    command("scancel")
    command.calls = calls
    command.queue = queue
    yield command
    scheduler._configuration.cache_clear()


@pytest.fixture
def sweep(sqlite, monkeypatch):
    """A store whose file all nodes of the toy cluster can see."""
    monkeypatch.setattr(launch, "_nodes_are_here", lambda: True)
    return sqlite


def start(store, **options) -> launch.Launch:
    return launch.launch(store, "s", store.url, Plan("slurm", **options))


def launches(store) -> list[dict]:
    return store.find(LAUNCHES, sort=[("at", 1)])


def intend(store, *, age: float = 60, **fields) -> str:
    token = intents.declare(store, "s", fields.pop("executor", "slurm"), fields.pop("workers", 1))
    store.update(
        LAUNCHES, {"_id": token}, {"$set": {"at": now() - timedelta(seconds=age), **fields}}
    )
    return token


# ---- the job script ------------------------------------------------------------------------------


def script(**options) -> str:
    plan = Plan("slurm", **options)
    given = Options("sqlite:///x", "s", "home", "artifacts", plan.slots or 1, plan.threads)
    return launch._script(Path("/folder"), "token", given, plan, plan.workers)


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_cpus_are_slots_times_threads_and_srun_is_told():
    text = script(slots=3, threads=2)
    assert "#SBATCH --cpus-per-task=6" in text
    (srun,) = lines_of(text, "srun ")
    assert "--cpus-per-task=6" in srun
    assert "--export=ALL" in srun  # else variables of `setup` would not arrive
    assert "#SBATCH --cpus-per-task=9" in script(slots=3, slurm={"cpus_per_task": 9})


def test_the_script_names_the_intent_and_few_variables(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    text = script(setup=("module load cuda",), slurm={"partition": "p", "qos": "q"})
    assert "#SBATCH --comment=assay:token" in text
    assert "#SBATCH --partition=p" in text
    assert "#SBATCH --qos=q" in text
    assert "SOME_TOKEN" not in text
    assert "wckey" not in text
    assert text.index("module load cuda") < text.index("srun ")
    assert "#SBATCH --array" not in text
    assert "#SBATCH --array=0-4%5" in script(workers=5)


def test_additional_options_win_and_false_takes_back():
    more = {"nice": "100", "exclusive": True, "requeue": False}
    text = script(slurm={"additional_parameters": more})
    assert "#SBATCH --nice=100" in text
    assert "#SBATCH --exclusive\n" in text
    assert "requeue" not in text


def test_an_image_runs_the_workers_python(home, tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_ARTIFACTS", str(tmp_path / "big disk"))
    (srun,) = lines_of(script(image="my image.sif"), "srun ")
    words = shlex.split(srun)
    command = words[words.index("apptainer") :]
    assert command[:4] == ["apptainer", "exec", "--nv", "--bind"]
    assert command[4].split(",") == [str(home), str(tmp_path / "big disk"), str(tmp_path)]
    assert command[5:7] == [str(tmp_path / "my image.sif"), "python"]
    assert command[7:] == ["-u", "-m", "orchestrator.job", "/folder/token/options.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slurm": {"partitoin": "x"}}, "did you mean 'partition'"),
        ({"slurm": {"comment": "x"}}, "--comment cannot be chosen"),
        ({"slurm": {"additional_parameters": {"export": "ALL"}}}, "--export cannot be chosen"),
        ({"image": "nowhere.sif"}, "--image nowhere.sif: there is no such file"),
    ],
)
def test_mistakes_in_a_plan(slurm, sweep, options, message):
    with pytest.raises(LaunchError, match=message):
        start(sweep, **options)
    assert launches(sweep) == []
    assert slurm.calls("sbatch") == []


# ---- submission ----------------------------------------------------------------------------------


def test_arrays_are_split_at_the_clusters_limit(slurm, sweep):
    launched = start(sweep, workers=7)
    assert len(slurm.calls("sbatch")) == 3
    scripts = [p.read_text() for p in (launched.folder).rglob("submission.sh")]
    arrays = sorted(line for text in scripts for line in lines_of(text, "#SBATCH --array"))
    assert arrays == ["#SBATCH --array=0-2%3", "#SBATCH --array=0-2%3"]  # and one without
    assert len(launched.ids) == 7
    assert sorted(i["workers"] for i in launches(sweep)) == [1, 3, 3]
    assert {(i["state"], *i["jobs"]) for i in launches(sweep)} == {("submitted", "17")}


def test_the_limit_is_asked_once_and_has_a_default(slurm):
    assert [scheduler.array_limit() for _ in range(3)] == [3, 3, 3]
    assert len(slurm.calls("scontrol")) == 1
    scheduler._configuration.cache_clear()
    slurm("scontrol", "exit 1")
    assert scheduler.array_limit() == scheduler.DEFAULT_ARRAY_LIMIT


def test_all_that_a_job_needs_is_there_before_sbatch_is_called(slurm, sweep, home):
    slurm("sbatch", 'exec 3< "${2%/*}/options.json"; exec 4< "$2"; echo 17')
    start(sweep)
    (options,) = (home / "workers" / "s").rglob("options.json")
    assert oct(options.stat().st_mode & 0o777) == "0o600"


def test_a_refusal_is_written_down(slurm, sweep):
    slurm("sbatch", "echo sbatch: error: no such account >&2; exit 1")
    with pytest.raises(LaunchError, match="no such account"):
        start(sweep, workers=7)
    found = launches(sweep)
    assert [i["state"] for i in found] == ["refused"] * 3
    assert {i["message"] for i in found} == {"sbatch: error: no such account", "not tried"}
    assert len(slurm.calls("sbatch")) == 1


def test_fewer_workers_when_a_later_array_is_refused(slurm, sweep, tmp_path):
    once = tmp_path / "once"
    slurm(
        "sbatch",
        f"[ -e {once} ] && {{ echo sbatch: error: too many jobs >&2; exit 1; }}\n"
        f"echo > {once}; echo 17",
    )
    launched = start(sweep, workers=7)
    assert launched.ids == ["17_0", "17_1", "17_2"]
    assert "3 of 7 workers" in launched.note
    assert "too many jobs" in launched.note
    assert sorted(i["state"] for i in launches(sweep)) == ["refused", "refused", "submitted"]


def test_an_unclear_answer_stays_open(slurm, sweep):
    slurm("sbatch", "echo sbatch: error: Socket timed out on send/recv operation >&2; exit 1")
    with pytest.raises(LaunchError, match="will find out"):
        start(sweep)
    (intent,) = launches(sweep)
    assert intent["state"] == "submitting"
    slurm.queue(f"18|18|N/A|RUNNING|assay:{intent['_id']}")
    intents.reconcile(sweep, "s")
    assert launches(sweep)[0]["state"] == "submitting"  # too young to ask
    assert slurm.calls("squeue") == []


def test_what_a_dead_submitter_left_is_found_or_lost_with_one_query(slurm, sweep):
    found, lost = intend(sweep), intend(sweep)
    slurm.queue(
        f"21|20|0|COMPLETED|assay:{found}",
        f"20|20|1|PENDING|assay:{found}",
        "5|5|N/A|RUNNING|(null)",
    )
    slurm("sacct")
    intents.reconcile(sweep, "s")
    states = {i["_id"]: (i["state"], i.get("jobs")) for i in launches(sweep)}
    assert states == {found: ("submitted", ["20"]), lost: ("lost", None)}
    assert len(slurm.calls("squeue")) == 1
    intents.reconcile(sweep, "s")
    assert len(slurm.calls("squeue")) == 1


def test_accounting_knows_more_where_there_is_some(slurm, sweep):
    token = intend(sweep)
    slurm("sacct", f"echo '30_0|assay:{token}'; echo '30_[1-2]|assay:{token}'")
    intents.reconcile(sweep, "s")
    assert launches(sweep)[0]["jobs"] == ["30"]


def test_silence_of_slurm_and_jobs_of_others_prove_nothing(slurm, sweep):
    intend(sweep, user=os.getuid() + 1)
    intend(sweep, cluster="another")
    intents.reconcile(sweep, "s")
    slurm("squeue", "exit 1")
    intend(sweep)
    intents.reconcile(sweep, "s")
    assert {i["state"] for i in launches(sweep)} == {"submitting"}


def test_no_sacct_is_no_problem(slurm, sweep):
    launched = start(sweep)
    slurm.queue(f"17|17|N/A|RUNNING|assay:{launches(sweep)[0]['_id']}")
    assert launched.running()
    slurm.queue()
    scheduler.shared.expire()
    assert not launched.running()
    assert slurm.calls("sacct") == []


def test_a_submission_from_within_a_job_does_not_inherit_it(slurm, sweep, monkeypatch, tmp_path):
    slurm("sbatch", f"set > {tmp_path / 'environment'}; echo 17")
    inherited = {"SLURM_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3", "SLURM_MEM_PER_NODE": "9"}
    for name, value in {**inherited, "SLURM_CONF": "here"}.items():
        monkeypatch.setenv(name, value)
    start(sweep)
    seen = (tmp_path / "environment").read_text()
    assert not any(name in seen for name in inherited)
    assert "SLURM_CONF='here'" in seen


# ---- asking Slurm --------------------------------------------------------------------------------


def test_one_query_in_ten_seconds():
    time, asked = [0.0], []
    slurm = Scheduler(lambda: asked.append(time[0]) or [], lambda: time[0])
    for time[0] in (0, 3, 9.9, 10, 15, 21):
        assert slurm.jobs() == []
        assert slurm.active() == frozenset()
    assert asked == [0, 10, 21]
    slurm.expire()
    slurm.jobs()
    assert asked == [0, 10, 21, 21]


def test_a_slurm_that_is_away_is_left_alone_for_longer_and_longer():
    time, asked, answer = [0.0], [], [None]
    slurm = Scheduler(lambda: asked.append(time[0]) or answer[0], lambda: time[0])
    for time[0] in range(300):
        assert slurm.jobs() is None
        slurm.expire()  # does not shorten the wait
    assert asked == [0, 2, 6, 14, 30, 62, 122, 182, 242]
    answer[0] = [Job(1, 1, None, "RUNNING", "")]
    time[0] = 302
    assert slurm.active() == {1}


def test_squeues_lines():
    text = "12|10|3|RUNNING|assay:x\n10|10|4|PENDING|a|b\n7|7|N/A|CANCELLED|(null)\nmore of it\n"
    jobs = scheduler.parse(text)
    assert [(j.name, j.active, j.comment) for j in jobs] == [
        ("10_3", True, "assay:x"),
        ("10_4", True, "a|b"),
        ("7", False, "(null)"),
    ]


# ---- how many, and the end -----------------------------------------------------------------------


def test_never_more_workers_than_asked_for(slurm, sweep):
    first = start(sweep, workers=2, max_workers=3)
    token = launches(sweep)[0]["_id"]
    slurm.queue(f"18|17|0|RUNNING|assay:{token}", f"17|17|1|PENDING|assay:{token}")
    second = start(sweep, workers=2, max_workers=3)
    assert (len(first.ids), len(second.ids)) == (2, 1)
    assert "1 instead of 2" in second.note
    slurm.queue(*[f"{n}|{n}|N/A|RUNNING|assay:{i['_id']}" for n, i in enumerate(launches(sweep))],
                f"9|9|N/A|RUNNING|assay:{token}")  # fmt: skip
    third = start(sweep, workers=2, max_workers=3)
    assert third.ids == []
    assert not third.running()
    assert len(launches(sweep)) == 2  # no trace of the one that was not started


def test_a_registered_worker_of_a_counted_job_is_counted_once(slurm, sweep, monkeypatch):
    token = intend(sweep, state="submitted", jobs=["17"])
    slurm.queue(f"17|17|N/A|RUNNING|assay:{token}")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    for job in ("17", "99"):  # one that we submitted, one in an allocation of the user's
        monkeypatch.setenv("SLURM_JOB_ID", job)
        liveness.register(sweep, "s", 1)
    assert intents.live_workers(sweep, "s") == 2


def test_who_is_about_to_submit_counts(slurm, sweep):
    intend(sweep, age=1, workers=3)
    assert start(sweep, workers=2, max_workers=3).ids == []
    assert len(start(sweep, workers=2, max_workers=4).ids) == 1


def test_nobody_is_counted_while_slurm_is_away(slurm, sweep):
    slurm("squeue", "exit 1")
    with pytest.raises(LaunchError, match="squeue does not answer"):
        start(sweep, max_workers=3)
    assert launches(sweep) == []


def test_stopping_spares_the_busy_and_the_users_own_allocation(slurm, sweep, monkeypatch):
    signals = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append(pid))
    token = intend(sweep, state="submitted", jobs=["17"])
    other = intend(sweep, state="submitted", jobs=["30"])
    slurm.queue(
        *(f"{17 + n}|17|{n}|RUNNING|assay:{token}" for n in range(2)),
        f"17|17|2|PENDING|assay:{token}",
        *(f"30|30|{n}|PENDING|assay:{other}" for n in range(100)),
        "99|99|N/A|RUNNING|(null)",
    )
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    busy = liveness.register(sweep, "s", 1)
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    liveness.register(sweep, "s", 1)
    sweep.insert("s", [{"_id": 1, "status": "RUNNING", "assay": {"worker": busy["_id"]}}])
    assert launch.stop_workers(sweep, "s") == 103
    assert slurm.calls("scancel") == ["scancel 17_0 17_2 30"]
    assert signals == [os.getpid()]  # the local worker in job 99, not the job


# ---- workers inside somebody's allocation --------------------------------------------------------


def test_the_shell_of_salloc_is_not_inside_the_job(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    assert liveness.place()["slurm_job"] is None
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert liveness.place()["slurm_job"] == 5


def test_two_local_workers_in_one_job_do_not_replace_each_other(sqlite, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    both = [liveness.register(sqlite, "s", 1) for _ in range(2)]
    assert all(liveness.beat(sqlite, worker["_id"]) for worker in both)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    liveness.register(sqlite, "s", 1)
    assert not any(liveness.beat(sqlite, worker["_id"]) for worker in both)


def test_a_job_of_another_user_is_not_judged_by_our_squeue(slurm, sqlite, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "toy")
    worker = liveness.register(sqlite, "s", 1)
    sqlite.update(liveness.WORKERS, {"_id": worker["_id"]}, {"$set": {"place.host": "elsewhere"}})
    theirs = {"$set": {"place.user": os.getuid() + 1}}
    sqlite.update(liveness.WORKERS, {"_id": worker["_id"]}, theirs)
    assert liveness.Watch(sqlite).dead(worker["_id"]) is None
    sqlite.update(liveness.WORKERS, {"_id": worker["_id"]}, {"$set": {"place.user": os.getuid()}})
    assert liveness.Watch(sqlite).dead(worker["_id"]) == "Slurm job 5 has ended"


# ---- profiles ------------------------------------------------------------------------------------


def profile(text: str, name: str = "mine") -> str:
    path = Path(f"{name}.yaml")
    path.write_text(text)
    return f"./{path}"


def test_a_profile(tmp_path):
    found = profiles.read(
        profile(
            "time: 8:00:00\nmem: 8000\nslots: 4\nsetup: [module load a, module load b]\n"
            "additional: {exclusive: true, nice: 5, requeue: false}\n"
        )
    )
    assert found.given() == {
        "time": 480,  # YAML alone reads 28800
        "mem": "8000",
        "slots": 4,
        "setup": ["module load a", "module load b"],
        "additional": {"exclusive": True, "nice": "5", "requeue": False},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: a", r"mine.yaml: unknown key 'partitoin'; did you mean 'partition'\?"),
        ("zzz: a", r"unknown key 'zzz' \(known: partition, time, .*\); other options of sbatch"),
        ("slots: many", "mine.yaml: slots: .*'many'"),
        ("time: soon", "mine.yaml: time: write minutes, h:mm:ss, or d-hh:mm:ss"),
        ("- a", "expected `key: value` lines"),
        ("a: [", "mine.yaml: while parsing"),
    ],
)
def test_mistakes_in_a_profile_are_one_line(text, message):
    with pytest.raises(LaunchError, match=message) as caught:
        profiles.read(profile(text))
    assert "\n" not in str(caught.value)


def test_where_profiles_are_found(tmp_path):
    assert {"cpu", "gpu", "preemptible", "testbed"} <= set(profiles.names())
    folder = tmp_path / "config" / "assay" / "profiles"
    for place in (folder, tmp_path / "slurm" / "profiles"):
        place.mkdir(parents=True)
        (place / "gpu.yaml").write_text(f"account: {place.parts[-3]}")
    assert profiles.read("gpu").account == tmp_path.name
    (tmp_path / "slurm" / "profiles" / "gpu.yaml").unlink()
    assert profiles.read("gpu").account == "config"
    with pytest.raises(LaunchError, match="did you mean 'gpu'"):
        profiles.read("gpus")
    with pytest.raises(LaunchError, match="no such file"):
        profiles.read("some/where.yaml")


@pytest.mark.parametrize("name", ["cpu", "gpu", "preemptible", "testbed"])
def test_the_profiles_that_come_along_are_valid(name):
    from orchestrator.cli import _plan

    plan = _plan(None, name)
    assert plan.executor == "slurm"
    assert "#SBATCH --time=" in script(**{k: v for k, v in vars(plan).items() if k != "executor"})


def test_options_win_over_the_profile():
    from orchestrator.cli import UserError, _plan

    path = profile("slots: 4\nworkers: 8\nmem: 1G\ntime: 1:00:00\naccount: a\nsetup: [x]\n")
    plan = _plan(None, path, workers=2, slots=None, mem="2G", time="30", setup=[])
    assert plan == Plan(
        "slurm", 2, 4, slurm={"mem": "2G", "time": 30, "account": "a"}, setup=("x",)
    )
    with pytest.raises(UserError, match="--profile is for --executor slurm"):
        _plan("local", path)
    assert _plan(None, None, workers=None) == Plan()


# ---- local ---------------------------------------------------------------------------------------


def test_a_dry_run_of_local_workers_starts_nothing(sqlite, home):
    plan = Plan(workers=2, slots=3, setup=("ulimit -v 1",))
    text = launch.describe(sqlite, "s", sqlite.url, plan)
    assert f"2 workers on {socket.gethostname()}" in text
    assert '"slots": 3' in text
    assert "ulimit -v 1" in text
    assert not (home / "workers").exists()
    assert launches(sqlite) == []


def test_no_password_in_a_dry_run_nor_in_the_options(mongo, mongo_url, home):
    plan = replace(Plan("slurm"), workers=2)
    password = mongo_url.partition("://")[2].partition("@")[0].partition(":")[2]
    text = launch.describe(mongo, "s", mongo_url, plan)
    assert password
    assert password not in text
    assert str(settings.home()) in text
