"""Where the numbers of a sweep come from, for the report."""

from __future__ import annotations

import platform
from collections import Counter
from importlib import metadata
from typing import TYPE_CHECKING, Any

from orchestrator.queue import COMPLETED

if TYPE_CHECKING:
    from orchestrator.monitor import Status
    from orchestrator.sweep import Sweep

LIBRARIES = (
    "saliency-assay", "torch", "torchvision", "grad-cam", "scipy", "scikit-learn", "sacred", "seml",
)  # fmt: skip


def provenance(sweep: Sweep, status: Status) -> dict[str, Any]:
    """Facts about code, environment, hardware, and what was left out, as text by heading."""
    documents = sweep.store.find(
        sweep.name,
        {"status": COMPLETED},
        fields=["assay", "git", "host", "config.seed", "result.not_applicable"],
    )
    facts: dict[str, Any] = {
        "sweep": f"{sweep.name} in {sweep.store.url}",
        "configuration": _tally(d.get("assay", {}).get("file") for d in documents),
        "study": _tally(d.get("assay", {}).get("code_version") for d in documents),
        "code": _tally(_commit(d.get("git")) for d in documents),
        "seeds": ", ".join(sorted({str(d["config"].get("seed")) for d in documents}, key=_number)),
        "hosts": _tally(_host(d.get("host")) for d in documents),
        "libraries": ", ".join(f"{name} {_version(name)}" for name in LIBRARIES),
        "python": platform.python_version(),
    }
    left_out: dict[str, str] = {}
    for document in documents:
        left_out |= (document.get("result") or {}).get("not_applicable") or {}
    if left_out:
        facts["not applicable"] = ", ".join(f"{m}: {why}" for m, why in sorted(left_out.items()))
    if status.errors:
        facts["failures"] = [
            {"error": text, "experiments": count, "such as": example}
            for text, count, example in status.errors
        ]
    return facts


def _commit(git: dict[str, Any] | None) -> str:
    if not git:
        return "not in a git repository"
    return f"{git['commit'][:12]}{' with uncommitted changes' if git.get('dirty') else ''}"


def _host(host: dict[str, Any] | None) -> str:
    if not host:
        return "unknown"
    gpus = [gpu["model"] for gpu in (host.get("gpus") or {}).get("gpus", [])]
    return f"{host.get('hostname')} ({', '.join([host.get('cpu', 'unknown CPU'), *gpus])})"


def _tally(values: Any) -> str:
    counted = Counter(str(value) for value in values)
    if len(counted) == 1:
        return next(iter(counted))
    return ", ".join(f"{value} ({count})" for value, count in counted.most_common())


def _number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (0, text)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "?"
