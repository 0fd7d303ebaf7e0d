"""What each stage takes of the time of whole experiments that have been run.

    python tests/benchmarks/stage_shares.py SWEEP -w model.name=andor_cnn --markdown FILE

Stages are pure and shared: most of what an experiment needs was computed by another, or by an
attempt that was interrupted. So the time of a stage is not that of one run, but the sum of what
its results took, wherever that was; their headers say it. *Scores and the rest* is what the run
took beyond the stages that it computed itself.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from experiments import stages  # noqa: E402
from experiments.artifacts import ArtifactStore, read_header  # noqa: E402
from orchestrator import selection, settings, study  # noqa: E402
from orchestrator.sweep import Sweep  # noqa: E402

REST = "scores and the rest"


def seconds_of(document: dict[str, Any], store: ArtifactStore) -> dict[str, float]:
    """Seconds by stage of one finished experiment."""
    executable = study.load(document["seml"]["executable"], str(ROOT))
    assert executable.config_model is not None
    planned = stages.Runtime(store, planning=True)
    with stages.using(planned), suppress(stages.Planned):
        executable.module.study(executable.config_model.model_validate(document["config"]))
    found: dict[str, float] = defaultdict(float)
    for name, key in dict.fromkeys((event["stage"], event["key"]) for event in planned.history):
        header = read_header(store.path(name, key))
        found[name] += float(header["seconds"]) if header else float("nan")
    wall = (document["stop_time"] - document["start_time"]).total_seconds()
    computed = sum(stage["seconds"] for stage in document["info"]["stages"].values())
    found[REST] = wall - computed
    return dict(found)


def line(document: dict[str, Any], names: list[str], seconds: dict[str, float]) -> list[str]:
    config = document["config"]
    total = sum(seconds.values())
    cells = [f"{document['_id']}: {config['model']['name']}, {config['data']['toplevel']}, "
             f"test size {config['data']['test_size']:g}", f"{total:.0f} s"]  # fmt: skip
    for name in names:
        spent = seconds.get(name, 0.0)
        cells.append(f"{100 * spent / total:.1f} % ({spent:.0f} s)")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sweep")
    parser.add_argument("-w", "--where", action="append", default=[])
    parser.add_argument("--markdown", type=Path, help="append the table to this file")
    options = parser.parse_args()
    sweep = Sweep(options.sweep)
    done = {"status": "COMPLETED"}
    chosen = selection.parse(options.where)
    documents = sweep.store.find(sweep.name, {"$and": [done, chosen]} if chosen else done)
    store = ArtifactStore(settings.artifacts())
    seconds = [seconds_of(document, store) for document in documents]
    names = [n for n in dict.fromkeys(n for each in seconds for n in each) if n != REST] + [REST]
    rows = [["experiment", "all", *names], ["---", *["--:"] * (len(names) + 1)]]
    rows += [line(d, names, each) for d, each in zip(documents, seconds, strict=True)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    print(table)
    if options.markdown:
        command = f"    python tests/benchmarks/stage_shares.py {' '.join(sys.argv[1:])}"
        with options.markdown.open("a") as file:
            file.write(f"\n## Shares of the stages\n\n{command}\n\n{table}\n")


if __name__ == "__main__":
    main()
