"""Ours against captum, pytorch-grad-cam, shap, zennit and Quantus: speed and agreement.

    python tests/benchmarks/versus_peers.py --markdown tests/benchmarks/RESULTS.md

The same methods on the same inputs, the same scores on the same maps, and a whole table of ten
methods and twelve scores: by one `evaluation.evaluate`, and the peers' way, cell by cell. One
process, one thread, in turns, the fastest of the turns. On a CPU the clock is the CPU time of the
process. The network is that of `passes.py`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import torch  # noqa: E402
from passes import CLASSES, as_in_a_worker, network  # noqa: E402
from peers import methods, race, scores, whole  # noqa: E402

PARTS = ("methods", "scores", "table")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--table-samples", type=int, default=8)
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each row")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--only", nargs="*", default=[], help="names of methods or scores of ours")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    as_in_a_worker()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = network(options.side).to(device)
    x = torch.randn(options.samples, 3, options.side, options.side, device=device)
    with torch.no_grad():
        y = model(x).argmax(1)
    assert isinstance(model, torch.nn.Sequential)
    layer = next(m for m in reversed(model) if isinstance(m, torch.nn.ReLU))
    before = os.getloadavg()
    sections = []
    for part, made in (
        ("methods", lambda: methods.contests(model, layer, x, y)),
        ("scores", lambda: scores.contests(model, x, y, options.side)),
    ):
        if part not in options.parts:
            continue
        results = []
        for contest in made():
            if not options.only or contest.name in options.only:
                watched = contest.model or model
                results.append(race.run(contest, watched, options.budget))
                print(" | ".join(results[-1].cells()), file=sys.stderr, flush=True)
        slower = [f"{r.contest.name} ({r.contest.peer})" for r in results if r.ratio < 1]
        head = f"### {part.capitalize()}, per sample"
        alone = sum(r.seconds[1] == float("inf") for r in results)
        said = f"{len(results) - len(slower) - alone} rows not slower, {len(slower)} slower"
        sections += [head, race.table(results), f"{said}: {', '.join(slower) or 'none'}."]
    if "table" in options.parts:
        n = options.table_samples
        sections += ["### The whole table", whole.compare(model, x[:n], y[:n])]
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    load = "; ".join(" ".join(f"{v:.1f}" for v in at) for at in (before, os.getloadavg()))
    about = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {name}, one thread, torch {torch.__version__}, "
        f"{options.samples} samples of 3 × {options.side} × {options.side}, {CLASSES} classes; "
        f"load before and after: {load}. Ratio: their time / ours."
    )
    text = "\n\n".join([about, *sections]) + "\n"
    print(text)
    if options.markdown:
        command = f"    python tests/benchmarks/versus_peers.py {' '.join(sys.argv[1:])}\n"
        with options.markdown.open("a") as file:
            file.write(f"\n## Against the peers\n\n{command}\n{text}")


if __name__ == "__main__":
    main()
