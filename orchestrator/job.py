"""What a Slurm job runs: `python -m orchestrator.job OPTIONS.json`, one warm worker.

A file of our own instead of submitit's pickle: it is there before sbatch is called, so that a job
can start even if its submitter dies at that moment. Kept small, since multiprocessing imports the
main module again in every child.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from orchestrator import worker

    options = json.loads(Path(sys.argv[1]).read_text())
    worker.main(worker.Options(**options))


if __name__ == "__main__":
    main()
