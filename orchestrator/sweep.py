"""Sweeps from Python: everything that the command line does.

from orchestrator import Plan, Sweep

sweep = Sweep("quickstart")
sweep.add("configs/quickstart.yaml")
sweep.start(Plan(workers=1))
sweep.wait()
table = sweep.scores()
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import grid, intents, monitor, settings, sources
from orchestrator.launch import Launch, LaunchError, Plan, launch, stop_workers
from orchestrator.queue import INTERRUPTED, KILLED, PENDING, RUNNING, STAGED, Queue
from orchestrator.store import Store, open_store

if TYPE_CHECKING:
    import pandas as pd

RELAUNCHES = 2  # in a row without a single experiment finished


@dataclass(frozen=True)
class Added:
    """What adding a file did: all experiments it stands for, and which of them are new."""

    grid: grid.Grid
    ids: list[int]
    new: list[int]

    @property
    def selection(self) -> dict[str, Any]:
        """The filter for exactly these experiments."""
        return {"_id": {"$in": self.ids}}


class Sweep:
    """The experiments in one collection of a store.

    Args:
        name: the collection.
        store: a store's URL (see `orchestrator.store.open_store`); the default store when None.
    """

    def __init__(self, name: str, store: str | None = None) -> None:
        self.name = name
        self.address = settings.store_address(store)
        self.store: Store = open_store(self.address.url)
        self.queue = Queue(self.store, name)

    def add(self, file: str | Path | grid.Grid) -> Added:
        """Enter the experiments of a configuration file as STAGED; known ones are left alone.

        `grid.read(file, {"seed": 1})` reads the file with other values than it has.

        Raises:
            orchestrator.grid.GridError: the file has a mistake; nothing was entered.
        """
        expanded = file if isinstance(file, grid.Grid) else grid.read(file)
        with grid.uncollected():
            return self._enter(expanded)

    def _enter(self, expanded: grid.Grid) -> Added:
        known = self.queue.identities(expanded.identities)
        fresh = [d for d in expanded.documents if d["assay"]["identity"] not in known]
        if not fresh:
            return Added(expanded, sorted(known.values()), [])
        # Ids grow with batches, and unlike these they are indexed.
        last = self.store.find(self.name, {}, fields=["batch_id"], sort=[("_id", -1)], limit=1)
        batch = int(last[0].get("batch_id") or 0) + 1 if last else 1
        documents = [{**document, "batch_id": batch} for document in fresh]
        if expanded.root is not None:
            digest = sources.keep(self.store, self.name, sources.take(expanded.root))
            documents = [{**d, "assay": {**d["assay"], "source": digest}} for d in documents]
        new = self.queue.add(documents)
        ids = [*known.values(), *new]
        if len(new) < len(fresh):  # somebody else has added some of them meanwhile
            ids = [*self.queue.identities(expanded.identities).values()]
        return Added(expanded, sorted(ids), new)

    def ids(self, selection: dict[str, Any]) -> list[int]:
        """Of the experiments that a filter matches now, in order."""
        found = self.store.find(self.name, selection, fields=["_id"], sort=[("_id", 1)])
        return [int(document["_id"]) for document in found]

    def start(self, plan: Plan | None = None, selection: dict[str, Any] | None = None) -> Launch:
        """Give STAGED experiments free and start workers for whatever is PENDING.

        Raises:
            orchestrator.launch.LaunchError: the workers could not be started.
        """
        self.queue.reap()
        self.queue.submit(selection)
        return launch(self.store, self.name, self.address.url, plan or Plan())

    def run(
        self,
        plan: Plan,
        selection: dict[str, Any],
        *,
        show: Callable[..., monitor.Status] = monitor.watch,
    ) -> monitor.Status:
        """Start workers and wait for the end of the selected experiments, live.

        Workers that die are replaced; what they were running is run again. On Ctrl-C the workers
        hand back what they have and end.
        """
        self.queue.retry(selection, states=(INTERRUPTED, KILLED))
        self.queue.reap()
        if self.status(selection).finished:
            return self.status(selection)
        keeper = _Keeper(self, plan, selection)
        try:
            return show(keeper.look, until=keeper.over, note=keeper.note)
        finally:
            keeper.stop()

    def status(self, selection: dict[str, Any] | None = None) -> monitor.Status:
        """Counts, errors and times; experiments of dead workers are taken back first."""
        intents.reconcile(self.store, self.name)
        self.queue.reap()
        return monitor.status(self.queue, selection)

    def wait(
        self, selection: dict[str, Any] | None = None, timeout: float | None = None
    ) -> monitor.Status:
        """Block until nothing is STAGED, PENDING or RUNNING any more.

        Raises:
            TimeoutError: it took longer than `timeout` seconds.
        """
        deadline = time.monotonic() + timeout if timeout is not None else None
        while not (status := self.status(selection)).finished:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"sweep {self.name!r} is not finished: {status.counts}")
            time.sleep(0.5)
        return status

    def cancel(self, selection: dict[str, Any] | None = None) -> int:
        """Whatever is not finished becomes INTERRUPTED; returns how many.

        Without a selection nothing is left to do: workers end, and jobs that wait for their start.
        """
        count = self.queue.cancel(selection)
        if not selection:
            stop_workers(self.store, self.name)
        return count

    def retry(self, selection: dict[str, Any] | None = None) -> int:
        """FAILED, KILLED and INTERRUPTED experiments become PENDING; returns how many."""
        return self.queue.retry(selection)

    def reset(self, selection: dict[str, Any] | None = None) -> int:
        """What is over becomes STAGED, its results forgotten; returns how many."""
        return self.queue.reset(selection)

    def delete(self, selection: dict[str, Any] | None = None) -> int:
        """Remove experiments that are not running, with their results; returns how many."""
        return self.queue.delete(selection)

    def replay(self) -> list[tuple[int, bool]]:
        """Ship results that dead workers left on this machine; see `observer.replay`."""
        from orchestrator.observer import replay

        return replay(settings.home(), self.queue)

    def scores(self, selection: dict[str, Any] | None = None, **options: Any) -> pd.DataFrame:
        """The tidy table; see `analysis.frames.scores`."""
        from analysis import frames

        return frames.scores(self.name, selection, store=self.store, **options)

    def logs(self, number: int) -> str:
        """Output of an experiment: live while its spool is on this machine, else its last part.

        Raises:
            KeyError: there is no such experiment.
        """
        document = self.store.find_one(self.name, {"_id": number})
        if document is None:
            raise KeyError(f"sweep {self.name!r} has no experiment {number}")
        if (path := self.live_output(document)) is not None:
            return path.read_text(errors="replace")
        text = self._whole_output(document) or str(document.get("captured_out") or "")
        if trace := document.get("fail_trace"):
            lines = "\n".join(trace)
            if lines not in text:
                text = f"{text}\n{lines}"
        return text.strip() or f"experiment {number} is {document['status']} and has no output yet"

    def _whole_output(self, document: dict[str, Any]) -> str | None:
        """All that a run printed, where its document holds only the end."""
        for artifact in document.get("artifacts") or []:
            if artifact["name"] == settings.OUTPUT_FILE:
                packed = self.store.get_blob(artifact["file_id"])
                if packed is not None:
                    return gzip.decompress(packed).decode(errors="replace")
        return None

    def live_output(self, document: dict[str, Any]) -> Path | None:
        """The file a running experiment writes its output to, if it is on this machine."""
        attempt = document.get("assay", {}).get("attempt", 0)
        folder = settings.home() / "spool" / self.name / f"{document['_id']}-{attempt}"
        path = folder / "output.log"
        return path if path.exists() else None


class _Keeper:
    """Keeps workers at work until the selected experiments are over."""

    def __init__(self, sweep: Sweep, plan: Plan, selection: dict[str, Any]) -> None:
        self.sweep = sweep
        self.plan = plan
        self.selection = selection
        self.launch = sweep.start(plan, selection)
        self._fruitless = 0
        self._done = sweep.status(selection).of(PENDING, RUNNING)
        self._next_check = time.monotonic() + 2.0

    def look(self) -> monitor.Status:
        status = monitor.status(self.sweep.queue, self.selection)
        if time.monotonic() > self._next_check and not status.finished:
            self._next_check = time.monotonic() + 2.0
            self.sweep.queue.reap()
            # What is running, another's worker runs; that of a dead one waits again by now.
            if not self.launch.running() and status.of(PENDING, STAGED):
                self._replace(status.of(PENDING, RUNNING))
        return status

    def over(self, status: monitor.Status) -> bool:
        return status.finished

    def note(self) -> str:
        if self.launch.executor == "slurm" and self.launch.ids:
            return f"Slurm job {self.launch.ids[0].split('_')[0]}"
        return ""

    def stop(self) -> None:
        """Have the workers hand back what they have; returns when they have."""
        if not self.launch.running() or self.sweep.status(self.selection).finished:
            return
        self.launch.stop()
        deadline = time.monotonic() + settings.STOP_GRACE_SECONDS + 5.0
        while self.launch.running() and time.monotonic() < deadline:
            time.sleep(0.2)

    def _replace(self, left: int) -> None:
        self._fruitless = self._fruitless + 1 if left >= self._done else 0
        self._done = left
        if self._fruitless > RELAUNCHES:
            raise LaunchError(
                f"workers end without finishing anything; their last words:\n"
                f"{self.launch.errors()}\n(logs: {self.launch.folder})"
            )
        self.launch = self.sweep.start(self.plan, self.selection)


def add(file: str | Path, name: str | None = None, store: str | None = None) -> Sweep:
    """Enter a file's experiments; returns their sweep, named like the file unless told otherwise.

    Raises:
        orchestrator.grid.GridError: the file has a mistake; nothing was entered.
    """
    expanded = grid.read(file)
    sweep = Sweep(name or name_for(file), store)
    sweep.add(expanded)
    return sweep


def name_for(file: str | Path) -> str:
    """The sweep that a configuration file goes to when none is named: its own name, after those of
    the folders between it and one called `configs` (`configs/smerf/quick.yaml` → `smerf_quick`)."""
    path = Path(file).resolve()
    above = [folder.name for folder in path.parents]
    folders = above[: above.index("configs")][::-1] if "configs" in above else []
    return "_".join(re.sub(r"\W+", "_", name) for name in (*folders, path.stem))


def latest(store: Store) -> str | None:
    """The sweep that was added to last."""
    found: list[tuple[Any, str]] = []
    for name in store.collections():
        newest = store.find(name, {}, fields=["add_time"], sort=[("_id", -1)], limit=1)
        if newest and newest[0].get("add_time"):
            found.append((newest[0]["add_time"], name))
    return max(found)[1] if found else None
