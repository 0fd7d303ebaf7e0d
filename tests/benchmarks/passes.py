"""What methods and scores cost above the passes that they need.

    python tests/benchmarks/passes.py --markdown tests/benchmarks/RESULTS.md

A method that needs n_F forwards and n_FB forwards with backwards should take at most
T = 1.1 (n_F t_F + n_FB t_FB) + 0.3 ms per call. The integers are counted while it runs; t_F and
t_FB are those of the bare network at its best batch size, measured in the same process. The
network is small (three convolutions, 32 × 32 pixels), so that overhead shows.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from experiments import attribution, evaluation, passes, scoring  # noqa: E402
from orchestrator.worker import MALLOC  # noqa: E402

SHARE, PER_CALL = 1.1, 0.3e-3
CLASSES = 10
# Of an image, patches are ablated: 3,072 inputs one by one are a question of patience.
PATCHES = {"features": "patches", "patch": 8}
GIVEN: dict[str, dict[str, Any]] = dict.fromkeys(
    ("lime", "kernel_shap", "shapley_sampling", "feature_ablation", "feature_permutation"), PATCHES
)


def as_in_a_worker() -> None:
    """Start again with the allocator's settings that workers have, if this process lacks them."""
    if not MALLOC.keys() <= os.environ.keys():
        os.environ.update(MALLOC)
        os.execv(sys.executable, [sys.executable, *sys.argv])


def network(side: int) -> nn.Module:
    """Three blocks of convolution, batch norm, ReLU and pooling, and a linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 32, 64):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                   nn.MaxPool2d(2)]  # fmt: skip
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (side // 8) ** 2, CLASSES)).eval()


@dataclass
class Unit:
    """Seconds per row of the bare network at its best batch size."""

    forward: float
    both: float

    def limit(self, forwards: int, both: int) -> float:
        return SHARE * (forwards * self.forward + both * self.both) + PER_CALL


def seconds(work: Callable[[], Any], device: torch.device, least: int, budget: float) -> float:
    """The fastest of several runs, at least `least` of them, until `budget` seconds are spent."""
    best, spent, runs = float("inf"), 0.0, 0
    while runs < least or (spent < budget and runs < 50):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        best, spent, runs = min(best, took), spent + took, runs + 1
    return best


def unit(model: nn.Module, x: Tensor) -> Unit:
    def both(part: Tensor) -> None:
        inputs = part.detach().requires_grad_()
        torch.autograd.grad(model(inputs)[:, 0].sum(), inputs)

    def forward(part: Tensor) -> None:
        with torch.no_grad():
            model(part)

    sizes = [16, 32, 64, 128, 256] if x.device.type == "cpu" else [256, 1024, 4096, 8192]
    parts = [x.repeat(1 + size // len(x), 1, 1, 1)[:size] for size in sizes]
    found = [
        [seconds(lambda p=part, w=work: w(p), x.device, 5, 0.3) / len(part) for part in parts]
        for work in (forward, both)
    ]
    return Unit(min(found[0]), min(found[1]))


@dataclass
class Line:
    name: str
    forwards: int
    both: int
    took: float
    limit: float
    samples: int

    @property
    def ratio(self) -> float:
        return self.took / self.limit

    def cells(self) -> list[str]:
        per = f"{self.forwards / self.samples:.4g} F + {self.both / self.samples:.4g} FB"
        return [self.name, per, f"{1e3 * self.took / self.samples:.3f}", f"{self.ratio:.2f}"]


def measure(name: str, work: Callable[[], Any], model: nn.Module, one: Unit, n: int) -> Line:
    work()  # imports, and what is measured once per model
    with passes.counted(model) as count:
        work()
    took = seconds(work, next(model.parameters()).device, 2, 0.4)
    limit = one.limit(count.forwards, count.backwards)
    line = Line(name, count.forwards, count.backwards, took, limit, n)
    print(" | ".join(line.cells()), file=sys.stderr, flush=True)
    return line


def methods(model: nn.Module, x: Tensor, target: Tensor, one: Unit, only: set[str]) -> list[Line]:
    lines = []
    for name, method in attribution.methods().items():
        if (
            method.needs_truth
            or method.needs_objects
            or not method.applies_to("cnn")
            or (only and name not in only)
        ):
            continue
        if name.startswith("andor_"):  # for the networks of that study
            continue
        n = len(x)

        spec = {"name": name, **GIVEN.get(name, {})}

        def work(spec: dict[str, Any] = spec, n: int = n) -> Tensor:
            return attribution.attribute(spec, model, x[:n], target[:n])

        try:
            with passes.counted(model) as count:
                attribution.attribute(spec, model, x[:2], target[:2])
            if count.rows / 2 > 90:  # enough rows for full passes, and no minutes of waiting
                n = max(2, n // 16)
                work.__defaults__ = (spec, n)
            lines.append(measure(name, work, model, one, n))
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
    return lines


def scores(model: nn.Module, x: Tensor, target: Tensor, one: Unit, only: set[str]) -> list[Line]:
    maps = attribution.attribute("gradient", model, x, target)
    side = x.shape[-1]
    mask = torch.zeros(len(x), side, side, dtype=torch.bool, device=x.device)
    mask[:, side // 4 : side // 2, side // 4 : side // 2] = True
    lines = []
    for name in scoring.scores():
        if only and name not in only:
            continue

        def work(name: str = name) -> Any:
            return evaluation.score(
                name, maps, x, y=target, model=model, target=target, method="gradient", mask=mask
            )

        try:
            lines.append(measure(name, work, model, one, len(x)))
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
    return lines


def table(title: str, lines: list[Line]) -> str:
    head = [title, "passes per sample", "ms per sample", "time / limit"]
    rows = [head, ["---", "--:", "--:", "--:"], *(line.cells() for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    as_in_a_worker()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = network(options.side).to(device)
    x = torch.randn(options.samples, 3, options.side, options.side, device=device)
    target = torch.randint(0, CLASSES, (options.samples,), device=device)
    one = unit(model, x)
    only = set(options.only)
    found = [
        ("method", methods(model, x, target, one, only)),
        ("score", scores(model, x, target, one, only)),
    ]
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    head = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {name}, one thread, torch {torch.__version__}, "
        f"{options.samples} samples of 3 × {options.side} × {options.side}; load {load}. "
        f"t_F {1e6 * one.forward:.0f} µs, t_FB {1e6 * one.both:.0f} µs per sample."
    )
    text = "\n\n".join([head, *(table(title, lines) for title, lines in found if lines)])
    over = [line.name for _, lines in found for line in lines if line.ratio > 1]
    within = sum(len(lines) for _, lines in found) - len(over)
    text += f"\n\n{within} within the limit, {len(over)} above it: {', '.join(over) or 'none'}.\n"
    print(text)
    if options.markdown:
        command = f"    python tests/benchmarks/passes.py {' '.join(sys.argv[1:])}\n"
        with options.markdown.open("a") as file:
            file.write(f"\n## Passes and overhead\n\n{command}\n{text}")


if __name__ == "__main__":
    main()
