"""Two ways to the same numbers, run in turns: time, rows through the model, agreement."""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments import passes

Compare = Callable[[Tensor, Tensor], str]


@dataclass(frozen=True)
class Contest:
    """ours, theirs: run the same on `samples` samples, and return what `compare` takes.

    note: in what the two differ. model: the one that runs, if it is another than usual.
    """

    name: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    samples: int
    compare: Compare
    note: str = ""
    model: nn.Module | None = None


@dataclass
class Result:
    """Seconds and rows per sample of either, and what the comparison says."""

    contest: Contest
    seconds: tuple[float, float]
    rows: tuple[str, str]
    agreement: str

    @property
    def ratio(self) -> float:
        return self.seconds[1] / self.seconds[0]

    def cells(self) -> list[str]:
        numbers = (
            f"{1e3 * self.seconds[0]:.3g}",
            f"{1e3 * self.seconds[1]:.3g}",
            f"{self.ratio:.2f}",
        )
        return [
            self.contest.name, self.contest.peer,
            *(number if number != "inf" else "" for number in numbers), *self.rows,
            self.agreement, self.contest.note,
        ]  # fmt: skip


HEAD = [
    "",
    "peer",
    "ours, ms",
    "theirs, ms",
    "ratio",
    "our passes",
    "their passes",
    "agreement",
    "",
]


def table(results: list[Result]) -> str:
    align = ["---", "---", "--:", "--:", "--:", "--:", "--:", "---", "---"]
    rows = [HEAD, align, *(result.cells() for result in results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor progress bars of the libraries."""
    nowhere = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")
        yield


def clock(device: torch.device) -> float:
    """CPU time of this process, which others on the machine disturb least; wall time for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(work: Callable[[], Any], model: nn.Module) -> tuple[Any, float, str]:
    """What it returns, the seconds it took, and the rows that went through the model."""
    device = next(model.parameters()).device
    with passes.counted(model) as count:
        start = clock(device)
        found = work()
        took = clock(device) - start
    return found, took, f"{count.rows},{count.backwards}"


def run(contest: Contest, model: nn.Module, budget: float) -> Result:
    """In turns until each had two turns and both together `budget` seconds (or 30 turns)."""
    works = (contest.ours, contest.theirs)
    best = [float("inf")] * 2
    rows, found = [""] * 2, [None] * 2
    spent, turns, failure = 0.0, 0, ""
    with quiet():
        while turns < 2 or (spent < budget and turns < 30):
            for side, work in enumerate(works):
                if side and failure:
                    continue
                try:
                    outcome, took, counted = timed(work, model)
                except Exception as error:  # theirs may fail, and that is a result
                    if not side:
                        raise
                    failure = f"theirs fails: {type(error).__name__}"
                    continue
                # What is measured once per model is counted in the first turn only.
                found[side], rows[side] = outcome, counted
                best[side], spent = min(best[side], took), spent + took
            turns += 1
    ours, theirs = (value / contest.samples for value in best)
    said = failure or contest.compare(tensor(found[0]), tensor(found[1]))
    texts = [_per_sample(text, contest.samples) for text in rows]
    return Result(contest, (ours, theirs), (texts[0], texts[1]), said)


def _per_sample(counted: str, samples: int) -> str:
    if not counted:
        return ""
    total, backwards = (int(number) for number in counted.split(","))
    forwards = max(0, total - backwards)
    parts = [(forwards, "F"), (backwards, "FB")]
    return " + ".join(f"{rows / samples:.4g} {unit}" for rows, unit in parts if rows) or "0"


def tensor(found: Any) -> Tensor:
    return torch.as_tensor(found).detach().double().cpu()


# --- how two results compare ---


def same(ours: Tensor, theirs: Tensor) -> str:
    """The largest difference, as a share of the largest number."""
    scale = theirs.abs().amax().clamp(min=1e-12)
    return f"max Δ {float((ours - theirs).abs().amax() / scale):.0e}"


def alike(ours: Tensor, theirs: Tensor) -> str:
    """The median over samples of Pearson's correlation: for random or rescaled maps."""
    sides = [side.flatten(1) - side.flatten(1).mean(1, keepdim=True) for side in (ours, theirs)]
    norm = sides[0].norm(dim=1) * sides[1].norm(dim=1)
    found = (sides[0] * sides[1]).sum(1)[norm > 0] / norm[norm > 0]
    return f"r {float(found.median()):.3f}" if len(found) else "constant"


def means(ours: Tensor, theirs: Tensor) -> str:
    """For what is random, or defined in another way."""
    return f"means {float(ours.nanmean()):.3g} / {float(theirs.nanmean()):.3g}"


def nothing(ours: Tensor, theirs: Tensor) -> str:
    return ""
