"""What a sweep is doing: counts, times, errors, and a live view of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from orchestrator.queue import (
    BROKEN,
    COMPLETED,
    PENDING,
    RUNNING,
    STAGED,
    STATES,
    UNFINISHED,
    Queue,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES = {
    "STAGED": "dim", "PENDING": "cyan", "RUNNING": "yellow", "COMPLETED": "green",
    "FAILED": "red", "INTERRUPTED": "magenta", "KILLED": "red",
}  # fmt: skip


@dataclass(frozen=True)
class Status:
    """A sweep at one moment.

    Attributes:
        counts: experiments per state.
        seconds: typical run time of an experiment, from those that completed; None before the
            first has.
        running: (id, seconds so far, worker) of what runs now.
        errors: last lines of errors with how many experiments have them, most frequent first,
            and the id of one of them.
        moved_on: a sentence, where unfinished experiments will run other code than is there now.
    """

    collection: str
    counts: dict[str, int]
    seconds: float | None = None
    running: list[tuple[int, float, str]] = field(default_factory=list)
    errors: list[tuple[str, int, int]] = field(default_factory=list)
    moved_on: str = ""

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def finished(self) -> bool:
        return not any(self.counts.get(state) for state in UNFINISHED)

    def of(self, *states: str) -> int:
        return sum(self.counts.get(state, 0) for state in states)

    def eta(self) -> float | None:
        """Seconds to the end, from the typical run time and what runs side by side now."""
        if self.seconds is None or self.finished:
            return None
        lanes = max(1, len(self.running))
        begun = sum(min(elapsed, self.seconds) for _, elapsed, _ in self.running)
        left = self.of(PENDING, RUNNING) * self.seconds - begun
        return max(0.0, left) / lanes


def status(queue: Queue, selection: dict[str, Any] | None = None) -> Status:
    """Look at a sweep, or at the part of it that the selection matches."""

    def within(condition: dict[str, Any]) -> dict[str, Any]:
        return {"$and": [condition, selection]} if selection else condition

    def look(state: Any, *fields: str, limit: int = 0) -> list[dict[str, Any]]:
        return queue.store.find(
            queue.collection, within({"status": state}), fields=fields, limit=limit
        )

    counts = queue.counts(selection)
    running = []
    if counts.get(RUNNING):
        now = datetime.now(UTC)
        for d in look(RUNNING, "start_time", "assay.worker"):
            elapsed = (now - _aware(d.get("start_time", now))).total_seconds()
            running.append((int(d["_id"]), max(0.0, elapsed), d.get("assay", {}).get("worker", "")))
    seconds = None
    if counts.get(COMPLETED):
        times = look(COMPLETED, "start_time", "stop_time", limit=200)
        spans = [
            (d["stop_time"] - d["start_time"]).total_seconds()
            for d in times
            if "start_time" in d and "stop_time" in d
        ]
        seconds = median(spans) if spans else None
    errors: list[tuple[str, int, int]] = []
    if any(counts.get(state) for state in BROKEN):
        kinds: Counter[str] = Counter()
        example: dict[str, int] = {}
        for d in look({"$in": list(BROKEN)}, "assay.error", "status"):
            text = d.get("assay", {}).get("error") or d["status"].lower()
            kinds[text] += 1
            example.setdefault(text, int(d["_id"]))
        errors = [(text, count, example[text]) for text, count in kinds.most_common(8)]
    return Status(queue.collection, counts, seconds, running, errors)


def table(status: Status) -> RenderableType:
    """A panel of counts and errors for the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    counts = Table(title=f"sweep {status.collection}", title_justify="left", box=None)
    counts.add_column("state")
    counts.add_column("experiments", justify="right")
    for state in STATES:
        if status.counts.get(state):
            style = STYLES[state]
            counts.add_row(f"[{style}]{state}[/]", str(status.counts[state]))
    counts.add_row("[bold]total", f"[bold]{status.total}")
    parts: list[RenderableType] = [counts]
    if status.seconds is not None:
        line = f"typical run {duration(status.seconds)}"
        if (eta := status.eta()) is not None:
            line += f", about {duration(eta)} to go"
        parts.append(Text(line, style="dim"))
    for text, count, example in status.errors:
        parts.append(Text(f"{count} × {text}  (assay logs {example})", style="red"))
    if status.moved_on:
        parts.append(Text(status.moved_on, style="yellow"))
    return Group(*parts)


def load(queue: Queue) -> RenderableType:
    """Live workers of a sweep, and what each of their experiments takes."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, header_style="bold", padding=(0, 1))
    for title in ("worker", "host", "job", "seen", "experiment", "running", "CPU", "memory", "GPU"):
        rows.add_column(title, justify="left" if title in ("worker", "host") else "right")
    workers = queue.watch.living(queue.collection)
    slots = busy = 0
    for worker in workers:
        place = worker["place"]
        seen = duration(max(0.0, time.time() - worker["seen"]))
        job = str(place["slurm_job"] or place["pid"])
        name = f"{worker['_id'][:6]} ({len(worker.get('load', []))}/{worker['slots']})"
        slots += worker["slots"]
        first = [name, place["host"], job, f"{seen} ago"]
        for one in worker.get("load", []) or [None]:
            rows.add_row(*first, *(_cost(one) if one else ["idle"]))
            busy += one is not None and not one["waiting"]
            first = [""] * 4
    line = f"{len(workers)} workers, {busy} of {slots} slots at work"
    return Group(Text(line, style="bold"), rows) if workers else Text("no worker is running")


def _cost(one: dict[str, Any]) -> list[str]:
    cores = one["cpu_seconds"] / max(one["seconds"], 0.1)
    gpu = f"{one['gpu_memory'] / 2**20:.0f} MiB" if one.get("gpu_memory") else ""
    state = " (waits)" if one["waiting"] else ""
    return [
        f"{one['experiment']}{state}",
        duration(one["seconds"]),
        f"{cores:.2f}",
        f"{one['memory'] / 2**20:.0f} MiB",
        gpu,
    ]


def progress(status: Status, started: float, note: str = "") -> RenderableType:
    """One bar and one line: done, running, waiting, failed, and the time to go."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done = status.of(COMPLETED, *BROKEN)
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        Text(status.collection, style="bold"),
        ProgressBar(total=max(1, status.total), completed=done, width=40),
        Text(f"{done}/{status.total}"),
        Text(duration(time.monotonic() - started), style="dim"),
    )
    words = [f"[green]{status.of(COMPLETED)} done[/]", f"[yellow]{status.of(RUNNING)} running[/]"]
    words.append(f"[cyan]{status.of(PENDING, STAGED)} waiting[/]")
    if failed := status.of(*BROKEN):
        words.append(f"[red]{failed} failed[/]")
    if (eta := status.eta()) is not None:
        words.append(f"about {duration(eta)} to go")
    elif status.of(RUNNING) == 0 and not status.finished:
        words.append("[dim]starting workers (torch and the attribution libraries load once)[/]")
    lines: list[RenderableType] = [bar, Text.from_markup(" · ".join(words))]
    if status.errors:
        text, _, example = status.errors[0]
        lines.append(Text(f"{text}  (assay logs {example})", style="red"))
    if note:
        lines.append(Text(note, style="dim"))
    return Group(*lines)


def watch(
    look: Callable[[], Status],
    *,
    until: Callable[[Status], bool],
    note: Callable[[], str] = lambda: "",
    interval: float = 0.5,
) -> Status:
    """Show a live view until a condition holds; on a pipe, a line at each change instead."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    started = time.monotonic()
    current = look()
    if not console.is_terminal:
        shown: dict[str, int] = {}
        while True:
            if current.counts != shown:
                shown = current.counts
                text = ", ".join(f"{count} {state}" for state, count in shown.items())
                console.print(f"{duration(time.monotonic() - started):>8}  {text}", soft_wrap=True)
            if until(current):
                return current
            time.sleep(interval)
            current = look()
    with Live(progress(current, started), console=console, refresh_per_second=4) as live:
        while not until(current):
            time.sleep(interval)
            current = look()
            live.update(progress(current, started, note()))
    return current


def duration(seconds: float) -> str:
    """`0.4 s`, `8 s`, `2 min 05 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 5:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
