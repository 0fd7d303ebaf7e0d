"""Training many small models at once, against one after the other.

    python tests/benchmarks/stacked_training.py --markdown tests/benchmarks/RESULTS.md

The networks and the data are those of the ANDOR study at 2inBinary: 8 inputs, 464 rows, batches of
10. One epoch is 47 steps and a validation; the time of a step has its share of the validation.
*Sequential* is `loop.fit` in one process of one thread, the fastest form of it here; *per core* is
one such process on every core, all at once; *stacked* is `fit_many` in one process of one thread.
Times are the least of several runs, which alternate, so that what else the machine does hits all
of them. A model is one training of 200 epochs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from experiments.data.dataset import Split  # noqa: E402
from experiments.models import build  # noqa: E402
from experiments.training import Recipe, fit  # noqa: E402
from experiments.training.stacked import fit_many  # noqa: E402

ROWS, INPUTS, BATCH, EPOCHS = 464, 8, 10, 200
STEPS = -(-ROWS // BATCH)
MODELS: dict[str, dict[str, Any]] = {
    "CNN": {"name": "andor_cnn"},
    "Transformer": {"name": "andor_transformer"},
    "Transformer, width 64, dropout, CLS": {
        "name": "andor_transformer", "width": 64, "attention_dropout": 0.3, "cls": True
    },
}  # fmt: skip
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Case = tuple[str, str]  # model and dtype


def data(masked: int) -> Split:
    """The rows of 2inBinary, some of them twice, with a tenth of the inputs masked."""
    rows = torch.arange(ROWS) % 2**INPUTS
    bits = (rows[:, None] >> torch.arange(INPUTS)) & 1
    label = (bits[:, 0] & bits[:, 1]) & (bits[:, 2] | bits[:, 3]) & (bits[:, 4] ^ bits[:, 5])
    hidden = torch.rand(bits.shape, generator=torch.Generator().manual_seed(masked)) < 0.1
    return Split(torch.where(hidden, -2.0, 2.0 * bits - 1), label, rows)


def work(case: Case, size: int, epochs: int, device: str) -> Callable[[], object]:
    """Trains `size` models at once; none at once, but one by `fit`, for a size of 0."""
    name, dtype = case
    count = max(size, 1)
    models = [
        build(MODELS[name], inputs=INPUTS, classes=2, seed=seed, dtype=getattr(torch, dtype))
        for seed in range(count)
    ]
    splits = [data(seed) for seed in range(count)]
    settings = {"epochs": epochs, "batch_size": BATCH, "patience": epochs, "stop_at_loss": None}
    recipe = Recipe.model_validate(settings)

    def run() -> object:
        if size == 0:
            return fit(models[0], splits[0], splits[0], recipe=recipe, seed=0, device=device)
        return fit_many(
            models, splits, splits, recipe=recipe, seeds=range(count), order_seed=0,
            device=device, stack=max(size, 2),
        )  # fmt: skip

    return run


def seconds(
    runs: list[Callable[[], object]], repeat: int, clock: Callable[[], float]
) -> list[float]:
    """The least time of each, after one run of each to warm up."""
    least = [float("inf")] * len(runs)
    for turn in range(1 + repeat):
        for position, run in enumerate(runs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                least[position] = min(least[position], clock() - started)
    return least


def _one_of_many(
    case: Case, epochs: int, device: str, clock: str, barrier: Any, answers: Any
) -> None:
    torch.set_num_threads(1)
    run = work(case, 0, epochs, device)
    run()
    barrier.wait()
    started = CLOCKS[clock]()
    for _ in range(3):
        run()
    answers.put((CLOCKS[clock]() - started) / 3)


def per_core(case: Case, epochs: int, device: str, clock: str) -> float:
    """Seconds per model with a process on every core."""
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(cores), context.Queue()
    arguments = (case, epochs, device, clock, barrier, answers)
    processes = [context.Process(target=_one_of_many, args=arguments) for _ in range(cores)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return 1 / sum(1 / each for each in found)


def measure(case: Case, options: argparse.Namespace) -> list[str]:
    """One line of the table: models per second, and how often that is the sequential number."""
    clock = CLOCKS[options.clock]
    runs = [work(case, size, options.epochs, options.device) for size in (0, *options.sizes)]
    alone, *together = seconds(runs, options.repeat, clock)
    alone, *together = (
        each / max(size, 1) / options.epochs * EPOCHS
        for each, size in zip([alone, *together], [0, *options.sizes], strict=True)
    )
    cells = [", ".join(case), f"{1 / alone:.3f} ({1e3 * alone / EPOCHS / STEPS:.3f} ms)"]
    if options.per_core:
        cores = (
            per_core(case, options.epochs, options.device, options.clock) / options.epochs * EPOCHS
        )
        cells.append(f"{1 / cores:.3f} ({alone / cores:.1f} ×)")
    best = min(together)
    cells += [f"{1 / each:.3f} ({alone / each:.1f} ×)" for each in together]
    cells.append(f"{alone / best:.1f} ×" + (f", {cores / best:.1f} ×" if options.per_core else ""))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=5, help="of each measured training")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 8, 64, 256])
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtypes", nargs="*", default=["float64", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a loaded machine")
    parser.add_argument("--no-per-core", dest="per_core", action="store_false")
    parser.add_argument("--markdown", type=Path, help="append the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = ["models/s (ms per step)", "sequential", *["per core"] * options.per_core]
    head += [f"stacked, {size}" for size in options.sizes]
    head.append("best / sequential" + ", / per core" * options.per_core)
    lines = [head, ["---"] + ["--:"] * (len(head) - 1)]
    for name in options.models:
        for dtype in options.dtypes:
            lines.append(measure((name, dtype), options))
            print("  ".join(lines[-1]), flush=True, file=sys.stderr)
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    where = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    text = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {where}, {len(os.sched_getaffinity(0))} cores, "
        f"torch {torch.__version__}; load {load}, {options.clock} clock.\n\n{table}\n"
    )
    print(text)
    if options.markdown:
        command = f"    python tests/benchmarks/stacked_training.py {' '.join(sys.argv[1:])}\n"
        with options.markdown.open("a") as file:
            file.write(f"\n## Stacked training\n\n{command}\n{text}")


if __name__ == "__main__":
    main()
