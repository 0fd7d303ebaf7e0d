"""Imported once by a worker's forkserver: what the waiting experiments will import.

A failure here is no failure of the worker: the experiment meets it again, and tells of it.
"""

import importlib
import json
import os
import traceback

from orchestrator import study as studies
from orchestrator.worker import PRELOAD, die_with_parent

# Python's forkserver lives on while any of its children does. Ours dies with the worker, and its
# children with it.
die_with_parent()

for executable, working_dir in json.loads(os.environ.get(PRELOAD, "[]")):
    try:
        study = studies.load(executable, working_dir)
        study.experiment  # noqa: B018 - finds the experiment, and so imports Sacred
        for module in getattr(study.module, "PRELOAD", ()):
            importlib.import_module(module)
    except Exception:
        traceback.print_exc()
