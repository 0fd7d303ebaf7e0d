"""Stages: pure functions whose results are computed once, ever, and shared.

    @stage(version="1")
    def train(*, data, model: dict, seed: int) -> dict: ...

    trained = train(data=generate(spec=...), model={...}, seed=0)   # an Artifact
    trained.value                                                   # loaded when asked for

Results of one stage that are cheaper computed together than one by one keep a key each:

    maps = attributed.together([{"method": "gradient", ...}, {"method": "grad_cam", ...}], work)

The key of a result is the SHA-256 of the stage's name and version, its parameters in canonical
JSON, the keys of the artifacts it was given, and the device policy where that changes results.
Whoever needs a result takes a lease on its key, computes and stores it; the others wait for the
file to appear. Raise the version when the code of a stage changes what it returns.

A long stage asks for its `checkpoint()`, saves there what it needs to go on, and finds it again
when it is computed anew after its process was stopped or killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

from experiments.artifacts import CHECKPOINT, ArtifactStore, CorruptArtifact

log = logging.getLogger(__name__)

POLL_SECONDS = (0.02, 1.0)  # first and longest pause while another worker computes the stage
CHECKPOINT_SECONDS = 30.0

_stop_requested = False


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop, and what was computed so far is kept.

    A KeyboardInterrupt, so that no `except Exception` of a study or a library swallows it, and
    that Sacred tells its observers of an interruption, not of a failure.
    """


def request_stop(*_: object) -> None:
    """Ask the running stage to save a checkpoint and to raise `Interrupted`; no other is begun.

    Holds for the whole process and cannot be taken back. Fit to be a signal handler.
    """
    global _stop_requested
    _stop_requested = True


class Planned(Exception):
    """The plan ends here: the rest depends on a value that has not been computed."""


class Leases(Protocol):
    """Who may compute a stage now. A lease of a worker that died is given to the next who asks."""

    def acquire(self, key: str) -> bool:
        """Whether we may compute it; if not, we wait until it is there, or ask again."""

    def release(self, key: str) -> None:
        """We have computed it, or have ceased to wait for it."""


class NoLeases:
    """For a process on its own: everything is free. Two of them may compute a stage twice, never
    wrongly: the file is replaced as a whole by an equal one."""

    def acquire(self, key: str) -> bool:
        return True

    def release(self, key: str) -> None:
        pass


def _checkpoint_seconds() -> float:
    text = os.environ.get("ASSAY_CHECKPOINT_SECONDS") or CHECKPOINT_SECONDS
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"ASSAY_CHECKPOINT_SECONDS is {text!r}; expected a number of seconds, such as 30"
        ) from None


@dataclass
class Runtime:
    """Where stages run: the artifact store, the leases, the device, and what was done so far.

    A stage that takes checkpoints takes one every `checkpoint_seconds`; the default is
    `$ASSAY_CHECKPOINT_SECONDS`, else 30. With `planning` nothing is computed or loaded: a stage
    notes its key in the history, and a look at its value raises `Planned`.
    """

    artifacts: ArtifactStore
    leases: Leases = field(default_factory=NoLeases)
    device: str = "cpu"
    history: list[dict[str, Any]] = field(default_factory=list)
    planning: bool = False
    checkpoint_seconds: float = field(default_factory=_checkpoint_seconds)

    def summary(self) -> dict[str, dict[str, float]]:
        """Per stage: how often it was computed and found, and the seconds spent computing."""
        table: dict[str, dict[str, float]] = {}
        for event in self.history:
            row = table.setdefault(event["stage"], {"computed": 0, "found": 0, "seconds": 0.0})
            row["found" if event["found"] else "computed"] += 1
            row["seconds"] += event["seconds"]
        return table


_runtime: ContextVar[Runtime | None] = ContextVar("runtime", default=None)


def runtime() -> Runtime:
    """The runtime in use; without one, artifacts go to `$ASSAY_HOME/artifacts`."""
    current = _runtime.get()
    if current is None:
        import platformdirs

        home = os.environ.get("ASSAY_HOME") or platformdirs.user_data_dir("assay")
        current = Runtime(ArtifactStore(Path(home) / "artifacts"))
        _runtime.set(current)
    return current


@contextmanager
def using(new: Runtime) -> Iterator[Runtime]:
    """Run stages with this runtime inside the block."""
    token = _runtime.set(new)
    try:
        yield new
    finally:
        _runtime.reset(token)


class Checkpoint:
    """What a stage needs to go on where another process had to leave it, under the stage's key.

    Values are those of artifacts, and so are the files: whole or not there, checksummed, private.
    A checkpoint is an offer, never a need: one that cannot be read or written costs time only.

    Attributes:
        seconds: the least time between two saves that are `due`.
        spent: seconds that earlier processes computed before they saved what was loaded.
    """

    def __init__(self, artifacts: ArtifactStore, stage: str, key: str, seconds: float) -> None:
        self.artifacts = artifacts
        self.stage = stage
        self.key = key
        self.seconds = seconds
        self.spent = 0.0
        self._started = self._saved = time.monotonic()
        self._loaded = False

    @property
    def stop_requested(self) -> bool:
        """Whether the process must stop: save, and raise `Interrupted`."""
        return _stop_requested

    def due(self, seconds: float | None = None) -> bool:
        """Whether so many seconds (by default `self.seconds`) have passed since the last save,
        or since the stage began."""
        return time.monotonic() - self._saved >= (self.seconds if seconds is None else seconds)

    def load(self) -> Any:
        """What was saved last; None if there is nothing, or nothing that can be trusted.

        Raises:
            RuntimeError: it was loaded before. Two trainings in one stage would take each
                other's state for their own.
        """
        if self._loaded:
            raise RuntimeError(
                f"stage {self.stage} loads its checkpoint twice; make each training its own stage"
            )
        self._loaded = True
        try:
            saved = self.artifacts.load(self.stage, self.key, suffix=CHECKPOINT)
            value, spent = saved["value"], float(saved["spent"])
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cannot read the checkpoint: %s; starting over", error)
            return None
        except Exception as error:  # whatever it is that torch says of a file like this
            log.warning("checkpoint of %s %s: %s; starting over", self.stage, self.key[:12], error)
            self.delete()
            return None
        self.spent = spent
        log.info("%s %s goes on after %.0f s", self.stage, self.key[:12], spent)
        return value

    def save(self, value: Any) -> None:
        """Put the value in the place of the last one. A full disk is a warning, not an error."""
        spent = self.spent + time.monotonic() - self._started
        try:
            self.artifacts.save(
                self.stage, self.key, {"value": value, "spent": spent}, {}, suffix=CHECKPOINT
            )
        except OSError as error:
            log.warning("cannot save a checkpoint: %s", error)
        self._saved = time.monotonic()  # of the end: a slow disk must not make one due at once

    def delete(self) -> None:
        """Forget what was saved."""
        with suppress(OSError):
            self.artifacts.path(self.stage, self.key, suffix=CHECKPOINT).unlink(missing_ok=True)


class NoCheckpoint(Checkpoint):
    """Outside of a stage: nothing is saved, nothing found, and so nobody is stopped."""

    def __init__(self) -> None:
        self.spent = 0.0

    @property
    def stop_requested(self) -> bool:
        return False

    def due(self, seconds: float | None = None) -> bool:
        return False

    def load(self) -> Any:
        return None

    def save(self, value: Any) -> None:
        pass

    def delete(self) -> None:
        pass


_checkpoint: ContextVar[Checkpoint | None] = ContextVar("checkpoint", default=None)


def checkpoint() -> Checkpoint:
    """That of the stage being computed; outside of a stage, one that never saves."""
    return _checkpoint.get() or NoCheckpoint()


class Artifact:
    """A stage's result: a key, and a value that is loaded when it is first needed."""

    def __init__(self, stage: str, key: str, load: Callable[[], Any]) -> None:
        self.stage = stage
        self.key = key
        self._load: Callable[[], Any] | None = load
        self._value: Any = None

    @property
    def value(self) -> Any:
        if self._load is not None:
            self._value = self._load()
            self._load = None
        return self._value

    def __repr__(self) -> str:
        return f"Artifact({self.stage}, {self.key[:12]})"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text.

    Raises:
        TypeError: the value is not made of dicts, lists, strings, numbers, booleans and None.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def key_of(name: str, version: str, arguments: dict[str, Any], device: str | None) -> str:
    """The 64 hexadecimal digits under which a stage's result is stored."""
    inputs = {k: v.key for k, v in arguments.items() if isinstance(v, Artifact)}
    parameters = {k: v for k, v in arguments.items() if not isinstance(v, Artifact)}
    text = canonical([name, version, parameters, inputs, device])
    return hashlib.sha256(text.encode()).hexdigest()


def stage(version: str, *, device: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Make a stage of a pure function with keyword arguments.

    Args:
        version: part of the key; raise it when the code changes what is returned.
        device: whether the result depends on the kind of device it is computed on.

    The decorated function returns an `Artifact`. Arguments that are artifacts are given to the
    function as their values, and to the key as their keys; all others must be JSON values.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Artifact]:
        name = function.__name__

        def computation(arguments: dict[str, Any]) -> _Computation:
            run = runtime()
            key = key_of(name, version, arguments, run.device if device else None)
            return _Computation(run, name, version, key, function, arguments)

        @wraps(function)
        def call(**arguments: Any) -> Artifact:
            return computation(arguments).artifact()

        def together(
            calls: Sequence[dict[str, Any]],
            work: Callable[[list[int]], Iterable[Any]],
            *,
            group: int | None = None,
        ) -> list[Artifact]:
            """The artifacts of several calls, whose missing ones are computed together.

            `work(missing)` gives the values of these calls (positions in `calls`), in order; it
            is called once, or for at most `group` of them at a time, and each time can go on from
            a `checkpoint()`. What another worker is computing is left to it. Call by call, the
            values are those of the stage's function, which computes what is found to be broken
            later.
            """
            return _together([computation(arguments) for arguments in calls], work, group)

        call.together = together  # type: ignore[attr-defined]
        return call

    return decorate


def _together(
    calls: list[_Computation], work: Callable[[list[int]], Iterable[Any]], group: int | None
) -> list[Artifact]:
    ours: list[int] = []
    done: dict[str, Artifact] = {}
    leased: set[str] = set()
    try:
        for position, call in enumerate(calls):
            if call.run.planning or call.key in leased or call.exists():
                continue
            _refuse_to_begin(call)
            if call.run.leases.acquire(call.key):
                leased.add(call.key)
                if not call.exists():  # finished between the look and the lease
                    ours.append(position)
        size = group or len(ours) or 1
        for start in range(0, len(ours), size):
            part = ours[start : start + size]
            _refuse_to_begin(calls[part[0]])
            for position, artifact in zip(part, _computed(calls, part, work), strict=True):
                key = calls[position].key
                done[key] = artifact
                leased.discard(key)
                calls[0].run.leases.release(key)
    finally:
        for key in leased:
            calls[0].run.leases.release(key)
    return [done.get(call.key) or call.artifact() for call in calls]


def _computed(
    calls: list[_Computation], part: list[int], work: Callable[[list[int]], Iterable[Any]]
) -> list[Artifact]:
    """Some of the calls, computed in one go; each is noted with its even share of the time."""
    first = calls[part[0]]
    key = hashlib.sha256("".join(calls[position].key for position in part).encode()).hexdigest()
    with first.checkpoint(key) as checkpoint:
        started = time.perf_counter()
        values = list(work(part))
        seconds = (time.perf_counter() - started) / len(part)
    in_all = seconds + checkpoint.spent / len(part)
    artifacts = [
        calls[position].store(value, seconds, in_all)
        for position, value in zip(part, values, strict=True)
    ]
    if all(calls[position].exists() for position in part):
        checkpoint.delete()
    return artifacts


def _refuse_to_begin(call: _Computation) -> None:
    if _stop_requested:
        raise Interrupted(f"asked to stop before {call.name} {call.key[:12]}")


@dataclass
class _Computation:
    run: Runtime
    name: str
    version: str
    key: str
    function: Callable[..., Any]
    arguments: dict[str, Any]

    def exists(self) -> bool:
        return self.run.artifacts.path(self.name, self.key).exists()

    def artifact(self) -> Artifact:
        """Found, or computed under a lease, or awaited from the one who computes it."""
        if self.run.planning:
            self._note(found=self.exists(), seconds=0.0)
            return Artifact(self.name, self.key, self._unplanned)
        path = self.run.artifacts.path(self.name, self.key)
        pause = POLL_SECONDS[0]
        waited = False
        while not path.exists():
            _refuse_to_begin(self)
            if self.run.leases.acquire(self.key):
                try:
                    if path.exists():  # finished between the look and the lease
                        break
                    return self._compute()
                finally:
                    self.run.leases.release(self.key)
            waited = True
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS[1])
        if waited:
            self.run.leases.release(self.key)
        self._note(found=True, seconds=0.0)
        return Artifact(self.name, self.key, self._load)

    def _unplanned(self) -> Any:
        raise Planned(self.name)

    @contextmanager
    def checkpoint(self, key: str) -> Iterator[Checkpoint]:
        """That of what is computed inside the block, under the key of a result, or of several."""
        current = Checkpoint(self.run.artifacts, self.name, key, self.run.checkpoint_seconds)
        token = _checkpoint.set(current)
        try:
            yield current
        finally:
            _checkpoint.reset(token)

    def _load(self) -> Any:
        try:
            return self.run.artifacts.load(self.name, self.key)
        except (CorruptArtifact, FileNotFoundError) as error:
            log.warning("%s; computing it again", error)
            return self._compute().value

    def _compute(self) -> Artifact:
        started = time.perf_counter()
        values = {k: v.value if isinstance(v, Artifact) else v for k, v in self.arguments.items()}
        with self.checkpoint(self.key) as checkpoint:
            value = self.function(**values)
        seconds = time.perf_counter() - started
        artifact = self.store(value, seconds, checkpoint.spent + seconds)
        if self.exists():
            checkpoint.delete()
        return artifact

    def store(self, value: Any, seconds: float, in_all: float) -> Artifact:
        """Keep a value that took `seconds` here, and `in_all` with interrupted attempts."""
        header = {
            "version": self.version,
            "parameters": {k: v for k, v in self.arguments.items() if not isinstance(v, Artifact)},
            "inputs": {k: v.key for k, v in self.arguments.items() if isinstance(v, Artifact)},
            "device": self.run.device,
            "seconds": in_all,
        }
        try:
            self.run.artifacts.save(self.name, self.key, value, header)
        except OSError as error:
            # The value is good even where it cannot be kept: finish the experiment with it.
            log.error(
                "cannot store %s %s: %s (check the disk, or set ASSAY_HOME)",
                self.name,
                self.key[:12],
                error,
            )
        self._note(found=False, seconds=seconds)
        return Artifact(self.name, self.key, lambda: value)

    def _note(self, *, found: bool, seconds: float) -> None:
        event = {"stage": self.name, "key": self.key, "found": found, "seconds": seconds}
        if self.run.planning:
            event["named"] = names_of(self.arguments)
        self.run.history.append(event)


def names_of(parameters: Mapping[str, Any]) -> list[str]:
    """The names of the components (methods, models, scores) in a stage's parameters."""
    return [v["name"] for v in parameters.values() if isinstance(v, dict) and "name" in v]
