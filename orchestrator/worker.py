"""Warm workers: one long-lived process per Slurm task or machine that pays for imports once.

A forkserver with torch and the rest preloaded makes a fresh process per experiment, at the price
of a function call; a spare one is always ready. The worker alone speaks to the store: it claims,
says that it is alive, answers the processes' wishes for leases, ships what they leave behind.
A process that crashes, is killed for memory or loops for ever costs its experiment, not the worker.
"""

from __future__ import annotations

import ctypes
import json
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import pdb
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

from experiments.stages import Leases, NoLeases
from orchestrator import gpu, liveness, notify, settings, sources
from orchestrator import study as studies
from orchestrator.observer import Spool, SpoolObserver, replay
from orchestrator.queue import Claim, Queue
from orchestrator.sources import Source
from orchestrator.store import StoreError, StoreUnavailable, open_store

log = logging.getLogger("assay.worker")

# glibc returns large blocks to the kernel at once; the page faults cost large-batch
# attribution on a CPU a factor of three. Read by glibc when a process starts.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PRELOAD = "ASSAY_PRELOAD"


@dataclass(frozen=True)
class Options:
    """What a worker needs to know; travels by pickle, so it holds no credentials.

    Attributes:
        store: the store's URL, or the path of a private file that holds it.
        slots: experiments at a time, each with `threads` threads of its own.
        idle_seconds: how long to stay when nothing waits.
        time_limit: seconds after which an experiment is ended as FAILED; None: no limit.
        cuda_visible: `CUDA_VISIBLE_DEVICES` of the user, where the launcher would hide it.
        only: ids of the experiments to run; None: whatever is PENDING.
    """

    store: str
    collection: str
    home: str
    artifacts: str
    slots: int = 1
    threads: int = 1
    idle_seconds: float = 2.0
    time_limit: float | None = None
    cuda_visible: str | None = None
    only: Sequence[int] | None = None


@dataclass
class Child:
    """A process of the forkserver, spare or at work."""

    process: Any
    pipe: Connection
    claim: Claim | None = None
    spool: Spool | None = None
    leases: set[str] = field(default_factory=set)
    started: float = 0.0
    waiting: bool = False  # for a stage that another process computes
    killed: str | None = None


def main(options: Options) -> int:
    """Work until nothing is left to do, or until asked to stop; returns the number of finished
    experiments."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr
    )
    os.environ.update(MALLOC, **dict.fromkeys(THREAD_VARIABLES, str(options.threads)))
    if options.cuda_visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = options.cuda_visible
    elif os.environ.get("SUBMITIT_EXECUTOR") == "local":
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    queue = _queue(options)
    done = 0
    while True:  # once for each state of the code that experiments want
        worker = Worker(queue, options, sources.wanted(queue, Path(options.home)))
        done += worker.run()
        if worker.stopping or not queue.store.count(queue.collection, queue.waiting):
            return done


def _queue(options: Options) -> Queue:
    """The sweep's queue; a store with a password is named by a private file that holds its URL."""
    url = options.store
    if url.startswith("/"):
        url = Path(url).read_text().strip()
    return Queue(open_store(url), options.collection, options.only)


def _task(claim: Claim, code: str) -> dict[str, Any]:
    """What a process needs to know to run an experiment with the code in a folder."""
    seml = claim.document["seml"]
    return {
        "config": claim.document["config"],
        "executable": seml["executable"],
        "working_dir": seml["working_dir"],
        "code": code,
    }


def debug(options: Options) -> int:
    """Run what waits in this very process, one experiment after the other, from the working tree:
    output on the terminal, breakpoints and the debugger as usual. Returns how many were run."""
    queue = _queue(options)
    me = liveness.register(queue.store, options.collection, 1)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(settings.HEARTBEAT_SECONDS):
            with suppress(StoreError):
                liveness.beat(queue.store, me["_id"])
                queue.renew(me["_id"])

    threading.Thread(target=beat, daemon=True).start()
    done = 0
    try:
        while claims := queue.claim(me, 1):
            done += _debug_one(queue, claims[0], options)
    finally:
        ended.set()
        liveness.leave(queue.store, me["_id"])
    return done


def _debug_one(queue: Queue, claim: Claim, options: Options) -> bool:
    spool = Spool.create(Path(options.home), queue, claim)
    task = _task(claim, claim.document["seml"]["working_dir"])
    folder, path = os.getcwd(), list(sys.path)
    try:
        _run(task, spool.path, NoLeases(), options)
    except Exception:
        if sys.stdin.isatty():
            pdb.post_mortem()
    except BaseException:  # Ctrl-C, or the debugger was left
        queue.hand_back(claim)
        spool.remove()
        raise
    finally:
        os.chdir(folder)
        sys.path[:] = path
    return spool.ship(queue, claim)


class Worker:
    """The event loop around the children of one worker process."""

    def __init__(self, queue: Queue, options: Options, source: Source) -> None:
        self.queue = queue
        self.options = options
        self.source = source
        self.children: list[Child] = []
        self.spares: list[Child] = []
        self.unshipped: list[tuple[Spool, Claim, str | None]] = []
        self.done = 0
        self.stopping: str | None = None
        self.me: dict[str, Any] = {}
        self.environment: dict[str, str | None] = {}  # to be put back at the end
        self.context = multiprocessing.get_context("forkserver")

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._asked_to_stop)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        self._preload()  # can take a minute on a cold file system: before we promise heartbeats
        options = self.options
        self.me = liveness.register(self.queue.store, options.collection, options.slots)
        log.info("worker %s: %s slots for %s", self.me["_id"], options.slots, options.collection)
        self._replay()
        next_beat = 0.0
        idle_since = time.monotonic()
        try:
            while not self.stopping:
                if time.monotonic() >= next_beat:
                    self._beat()
                    next_beat = time.monotonic() + settings.HEARTBEAT_SECONDS
                if self._fill() or self.children or self.unshipped:
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > self.options.idle_seconds:
                    break
                self._ship()  # while the next experiments run
                self._listen(timeout=0.5)
        finally:
            self._shut_down()
        log.info("worker %s has finished %s experiments", self.me["_id"], self.done)
        return self.done

    # ---- starting ----------------------------------------------------------------------------

    def _preload(self) -> None:
        """Have the forkserver import what the waiting experiments import."""
        if self.source.folder is not None:  # found before what is installed, by all children
            sys.path.insert(0, str(self.source.folder))
            self.environment["PYTHONPATH"] = os.environ.get("PYTHONPATH")
            paths = [str(self.source.folder), os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
            # Else the forkserver looks into the current folder first, which may be the very
            # working tree that the sources were taken from.
            self.environment["PYTHONSAFEPATH"] = os.environ.get("PYTHONSAFEPATH")
            os.environ["PYTHONSAFEPATH"] = "1"
        waiting = self.queue.store.find(
            self.queue.collection,
            {**self.queue.waiting, "seml.source_files": None, **self.source.condition()},
            fields=["seml.executable", "seml.working_dir"],
            limit=1,
        )
        scripts = [[d["seml"]["executable"], str(self._code(d))] for d in waiting]
        os.environ[PRELOAD] = json.dumps(scripts)
        self.context.set_forkserver_preload(["orchestrator.preload"])
        self._add_spare()

    def _code(self, document: dict[str, Any]) -> Path:
        """The folder whose code an experiment runs."""
        if self.source.folder is not None:
            return self.source.folder
        uploaded = sources.restore_of_seml(self.queue.store, document, Path(self.options.home))
        return uploaded or Path(document["seml"]["working_dir"])

    def _add_spare(self) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=_child, args=(theirs, self.options), name="assay-experiment"
        )
        process.start()
        theirs.close()
        self.spares.append(Child(process, ours))

    def _fill(self) -> bool:
        """Give every idle slot an experiment; True when any was claimed.

        A process that waits for another's stage does not use its slot: other work is done
        meanwhile, up to twice as many processes as slots.
        """
        busy = sum(not child.waiting for child in self.children)
        idle = min(self.options.slots - busy, 2 * self.options.slots - len(self.children))
        if idle <= 0 or self.stopping:
            return False
        try:
            claims = self.queue.claim(self.me, idle, self.source.condition())
        except StoreUnavailable as error:
            log.warning("the store is away, claims wait: %s", error)
            time.sleep(1.0)
            return False
        for claim in claims:
            try:
                self._start(claim)
            except OSError as error:
                self.stopping = f"cannot write to {self.options.home}: {error.strerror}"
                with suppress(StoreError):
                    self.queue.hand_back(claim)
        return bool(claims)

    def _start(self, claim: Claim) -> None:
        self.spares = [spare for spare in self.spares if spare.process.is_alive()]
        if not self.spares:
            self._add_spare()
        child = self.spares.pop()
        child.claim = claim
        child.started = time.monotonic()
        try:
            child.spool = Spool.create(Path(self.options.home), self.queue, claim)
        except OSError:
            self.spares.append(child)
            raise
        self.children.append(child)
        with suppress(BrokenPipeError):  # a spare that died; its end is noticed like any other
            task = _task(claim, str(self._code(claim.document)))
            child.pipe.send({**task, "spool": str(child.spool.path)})
        log.info("experiment %s, attempt %s", claim.id, claim.attempt)
        if len(self.spares) < 1:
            self._add_spare()

    # ---- running -----------------------------------------------------------------------------

    def _listen(self, timeout: float) -> None:
        """Answer the children's wishes, and bury those that have ended."""
        by_pipe = {child.pipe: child for child in self.children}
        by_sentinel = {child.process.sentinel: child for child in self.children}
        for ready in wait([*by_pipe, *by_sentinel], timeout):
            if ready in by_pipe:
                self._answer(by_pipe[ready])  # type: ignore[index]
        for child in [c for c in self.children if c.process.exitcode is not None]:
            self._bury(child)

    def _answer(self, child: Child) -> None:
        try:
            wish, key = child.pipe.recv()
        except (EOFError, OSError):  # it has ended or is about to; wait for its exit code
            child.process.join(timeout=5)
            if child.process.exitcode is None:
                self._kill(child, "it closed its pipe and went on running")
            return
        try:
            if wish == "acquire":
                granted = self.queue.acquire(key, self.me["_id"])
                child.waiting = not granted
                if granted:
                    child.leases.add(key)
            else:
                child.waiting = False
                self._release(child, key)
                granted = True
        except StoreError as error:
            log.warning("lease %s: %s", key[:12], error)
            granted = False
        with suppress(BrokenPipeError):
            child.pipe.send(granted)

    def _release(self, child: Child, key: str) -> None:
        if key in child.leases:
            # First: a release that fails and is repeated later could take it from a sibling.
            child.leases.discard(key)
            self.queue.release(key, self.me["_id"])

    def _bury(self, child: Child) -> None:
        """A child has ended: free its leases, end what it left running, queue its results."""
        assert child.claim is not None
        assert child.spool is not None
        self.children.remove(child)
        _kill_group(child.process.pid)
        for key in list(child.leases):
            with suppress(StoreError):
                self._release(child, key)
        death = child.killed or _describe_exit(child.process.exitcode)
        if child.spool.interrupted or (self.stopping and not child.spool.ended):
            with suppress(StoreError):
                self.queue.hand_back(child.claim)
            child.spool.remove()
        else:
            self.unshipped.append((child.spool, child.claim, death))
        child.pipe.close()
        child.process.close()

    def _ship(self) -> None:
        """Bring results to the store; what cannot be brought now is tried again."""
        if not self.unshipped:
            return
        waiting, self.unshipped = self.unshipped, []
        for position, (spool, claim, death) in enumerate(waiting):
            try:
                self.done += spool.ship(self.queue, claim, death)
            except StoreUnavailable as error:
                log.warning("the store is away, results wait in %s: %s", spool.path, error)
                self.unshipped = waiting[position:]
                return

    def _beat(self) -> None:
        """Say that we are alive; stop what is no longer ours; take back from the dead."""
        try:
            if not liveness.beat(self.queue.store, self.me["_id"], load=self._load()):
                self.stopping = "this worker was declared dead, another has its experiments"
                return
            held = self.queue.renew(self.me["_id"])
            for child in self.children:
                claim = child.claim
                if claim is not None and (claim.id, claim.attempt) not in held:
                    self._kill(child, "cancelled, or taken over by another worker")
            for number, attempt in held - self._ours():
                # Claimed, but the answer was lost; or handed back, but the word was lost.
                self.queue.hand_back(Claim(number, attempt, self.me["_id"], {}))
            if taken := self.queue.reap():
                for number, why in taken:
                    log.info("experiment %s taken back: %s", number, why)
                self._replay()
            self._notify()
        except StoreUnavailable as error:
            log.warning("the store is away: %s", error)
        for child in self.children:
            limit = self.options.time_limit
            if limit is not None and time.monotonic() - child.started > limit:
                self._kill(child, f"ran longer than its limit of {limit:g} s (--time-limit)")

    def _ours(self) -> set[tuple[int, int]]:
        """The attempts that this worker runs, or has run and not yet shipped."""
        running = {(c.claim.id, c.claim.attempt) for c in self.children if c.claim is not None}
        return running | {(claim.id, claim.attempt) for _, claim, _ in self.unshipped}

    def _notify(self) -> None:
        try:
            notify.of_progress(self.queue)
        except settings.SettingsError as error:
            log.warning("%s", error)

    def _replay(self) -> None:
        """Bring home what dead workers of this machine had finished."""
        with suppress(StoreUnavailable):
            for number, taken in replay(Path(self.options.home), self.queue):
                fate = "is taken" if taken else "comes too late"
                log.info("experiment %s: the result of a dead worker %s", number, fate)

    def _load(self) -> list[dict[str, Any]]:
        """What each experiment costs now, for `assay top`."""
        load = []
        on_gpu = gpu.memory_by_process()
        for child in self.children:
            assert child.claim is not None
            with suppress(psutil.Error):
                tree = [psutil.Process(child.process.pid)]
                tree += tree[0].children(recursive=True)
                load.append(
                    {
                        "experiment": child.claim.id,
                        "seconds": time.monotonic() - child.started,
                        "cpu_seconds": sum(sum(p.cpu_times()[:2]) for p in tree),
                        "memory": sum(p.memory_info().rss for p in tree),
                        "gpu_memory": sum(on_gpu.get(p.pid, 0) for p in tree),
                        "waiting": child.waiting,
                    }
                )
        return load

    # ---- ending ------------------------------------------------------------------------------

    def _asked_to_stop(self, number: int, _frame: Any) -> None:
        self.stopping = self.stopping or signal.Signals(number).name

    def _shut_down(self) -> None:
        """End the children, hand unfinished experiments back, ship what is finished."""
        if self.stopping:
            log.info("stopping: %s", self.stopping)
        for spare in self.spares:
            spare.process.kill()
        if self.me:
            self._beat()  # what was cancelled meanwhile needs no grace
        for child in self.children:
            child.process.terminate()  # training saves a checkpoint and ends; others go on
        before_limit = self.stopping in ("SIGUSR1", "SIGUSR2")
        grace = settings.LIMIT_GRACE_SECONDS if before_limit else settings.STOP_GRACE_SECONDS
        deadline = time.monotonic() + grace
        while self.children and time.monotonic() < deadline:
            self._listen(timeout=0.2)
            self._ship()
        for child in self.children:
            self._kill(child, f"its worker had to stop ({self.stopping})")
        deadline = time.monotonic() + settings.STOP_GRACE_SECONDS
        while self.children and time.monotonic() < deadline:
            self._listen(timeout=0.2)
        for _ in range(3):
            self._ship()
            if not self.unshipped:
                break
            time.sleep(1.0)
        with suppress(StoreError):
            self._notify()
            liveness.leave(self.queue.store, self.me["_id"])
        self._forget_code()

    def _forget_code(self) -> None:
        """End the forkserver and its imports, so that another state of the code can be served."""
        for spare in self.spares:
            spare.process.join(timeout=5)
        multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
        if self.source.folder is not None:
            sys.path.remove(str(self.source.folder))
        for name, value in self.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _kill(self, child: Child, why: str) -> None:
        child.killed = why
        child.process.kill()


# ---- the process of an experiment --------------------------------------------------------------


def _stop_in_order(*_: Any) -> None:
    """Training saves a checkpoint and ends; no new stage begins."""
    from experiments import stages

    stages.request_stop()


class PipeLeases:
    """Leases by way of the worker, which holds the only connection to the store."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def acquire(self, key: str) -> bool:
        return bool(self._ask("acquire", key))

    def release(self, key: str) -> None:
        self._ask("release", key)

    def _ask(self, wish: str, key: str) -> Any:
        try:
            self.pipe.send((wish, key))
            return self.pipe.recv()
        except (EOFError, OSError):  # the worker is gone: this is no failure of the experiment
            os._exit(1)


def _child(pipe: Connection, options: Options) -> None:
    """Body of a forkserver process: wait for one experiment, run it, end."""
    die_with_parent()
    if _hung_up(pipe):  # the worker was gone before the kernel knew of our wish
        os._exit(0)
    os.setsid()  # a group of its own: whatever it starts can be ended with it
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    try:
        task = pipe.recv()
    except EOFError:
        os._exit(0)
    spool = Path(task["spool"])
    _redirect_output(spool / "output.log")
    code = 0
    try:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, _stop_in_order)
        _run(task, spool, PipeLeases(pipe), options)
    except BaseException:
        code = 1
        if not (spool / "final.bson").exists():  # else Sacred has printed it
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no atexit handlers: everything that matters is on the disk already


def _run(task: dict[str, Any], spool: Path, leases: Leases, options: Options) -> None:
    import sacred

    from experiments import stages
    from experiments.artifacts import ArtifactStore

    sacred.SETTINGS.CAPTURE_MODE = "no"  # our own file gets all output, of crashes, too
    script = Path(task["code"], task["executable"])
    sys.path[:0] = [str(script.parent), task["code"]]  # as `python script.py` would have it
    study = studies.load(task["executable"], task["code"])
    if os.path.isdir(task["working_dir"]):
        os.chdir(task["working_dir"])
    runtime = stages.Runtime(
        ArtifactStore(options.artifacts), leases, device=_device(options.threads)
    )
    experiment = study.experiment
    experiment.observers = [SpoolObserver(spool)]
    experiment.logger = _logger()  # type: ignore[assignment]
    with stages.using(runtime):
        experiment.run(config_updates=task["config"], info={}, options={"--loglevel": "INFO"})


def _logger() -> logging.Logger:
    """Sacred's messages, but for the one that repeats the whole result."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: not str(record.msg).startswith("Result: "))
    logger = logging.getLogger("sacred")
    logger.addHandler(handler)
    logger.propagate = False
    return logger


def _device(threads: int) -> str:
    """CUDA when there is one; also holds torch, if it is in use at all, to our threads."""
    torch = sys.modules.get("torch")
    if torch is None:
        return "cpu"
    torch.set_num_threads(threads)
    return "cuda" if torch.cuda.is_available() else "cpu"


def _redirect_output(path: Path) -> None:
    """Standard output and error of this process and of all it starts go into a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone."""
    pr_set_pdeathsig = 1
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _hung_up(pipe: Connection) -> bool:
    """Whether the other end is closed, even if there is something left to read."""
    poll = select.poll()
    poll.register(pipe.fileno(), 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _describe_exit(code: int) -> str | None:
    """How a process ended, in words; None for a normal end."""
    if code == 0:
        return None
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (often: out of memory; use fewer --slots, or more --mem)"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
