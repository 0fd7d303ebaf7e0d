"""Stages: pure functions whose results are computed once, ever, and shared.

    @stage(version="1")
    def train(*, data, model: dict, seed: int) -> dict: ...

    trained = train(data=generate(spec=...), model={...}, seed=0)   # an Artifact
    trained.value                                                   # loaded when asked for

The key of a result is the SHA-256 of the stage's name and version, its parameters in canonical
JSON, the keys of the artifacts it was given, and the device policy where that changes results.
Whoever needs a result takes a lease on its key, computes and stores it; the others wait for the
file to appear. Raise the version when the code of a stage changes what it returns.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

from experiments.artifacts import ArtifactStore, CorruptArtifact

log = logging.getLogger(__name__)

POLL_SECONDS = (0.02, 1.0)  # first and longest pause while another worker computes the stage


class Leases(Protocol):
    """Who may compute a stage now. A lease of a worker that died is given to the next who asks."""

    def acquire(self, key: str) -> bool: ...
    def release(self, key: str) -> None: ...


class NoLeases:
    """For a process on its own: everything is free. Two of them may compute a stage twice, never
    wrongly: the file is replaced as a whole by an equal one."""

    def acquire(self, key: str) -> bool:
        return True

    def release(self, key: str) -> None:
        pass


@dataclass
class Runtime:
    """Where stages run: the artifact store, the leases, the device, and what was done so far."""

    artifacts: ArtifactStore
    leases: Leases = field(default_factory=NoLeases)
    device: str = "cpu"
    history: list[dict[str, Any]] = field(default_factory=list)

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

        @wraps(function)
        def call(**arguments: Any) -> Artifact:
            run = runtime()
            key = key_of(name, version, arguments, run.device if device else None)
            return _Computation(run, name, version, key, function, arguments).artifact()

        return call

    return decorate


@dataclass
class _Computation:
    run: Runtime
    name: str
    version: str
    key: str
    function: Callable[..., Any]
    arguments: dict[str, Any]

    def artifact(self) -> Artifact:
        """Found, or computed under a lease, or awaited from the one who computes it."""
        path = self.run.artifacts.path(self.name, self.key)
        pause = POLL_SECONDS[0]
        while not path.exists():
            if self.run.leases.acquire(self.key):
                try:
                    if path.exists():  # finished between the look and the lease
                        break
                    return self._compute()
                finally:
                    self.run.leases.release(self.key)
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS[1])
        self._note(found=True, seconds=0.0)
        return Artifact(self.name, self.key, self._load)

    def _load(self) -> Any:
        try:
            return self.run.artifacts.load(self.name, self.key)
        except (CorruptArtifact, FileNotFoundError) as error:
            log.warning("%s; computing it again", error)
            return self._compute().value

    def _compute(self) -> Artifact:
        started = time.perf_counter()
        values = {k: v.value if isinstance(v, Artifact) else v for k, v in self.arguments.items()}
        value = self.function(**values)
        seconds = time.perf_counter() - started
        header = {
            "version": self.version,
            "parameters": {k: v for k, v in self.arguments.items() if not isinstance(v, Artifact)},
            "inputs": {k: v.key for k, v in self.arguments.items() if isinstance(v, Artifact)},
            "device": self.run.device,
            "seconds": seconds,
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
        self.run.history.append(
            {"stage": self.name, "key": self.key, "found": found, "seconds": seconds}
        )
