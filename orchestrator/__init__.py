"""Who runs what where: grids, the queue, workers, Slurm, the result store, the `assay` command.

from orchestrator import Plan, Sweep

sweep = Sweep("quickstart")
sweep.add("configs/quickstart.yaml")
sweep.start(Plan(workers=1))
sweep.wait()
sweep.scores()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import experiments as experiments  # quiets a warning of Sacred's before anything imports it

if TYPE_CHECKING:
    from orchestrator.launch import Plan
    from orchestrator.sweep import Sweep, add

__all__ = ["Plan", "Sweep", "add"]


def __getattr__(name: str) -> Any:
    """The Python interface, imported when it is asked for: `assay --help` does without."""
    if name in ("Sweep", "add"):
        from orchestrator import sweep

        return getattr(sweep, name)
    if name == "Plan":
        from orchestrator.launch import Plan

        return Plan
    raise AttributeError(name)
