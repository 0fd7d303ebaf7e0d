"""Imported once by a worker's forkserver: what the waiting experiments will import, and ask for.

A failure here is no failure of the worker: the experiment meets it again, and tells of it.
"""

import gc
import importlib
import json
import os
import traceback

from experiments import stages  # noqa: F401 - every experiment imports it
from orchestrator import study as studies
from orchestrator.worker import PRELOAD, die_with_parent


def look_at_host() -> None:
    """Have Sacred gather the facts of the host once, and not in every experiment: it starts
    processes for it, and `nvidia-smi` can take a second."""
    from sacred import host_info

    getters = host_info._host_info_gatherers_list
    for getter in list(getters):
        try:
            facts = getter()
        except host_info.IgnoreHostInfo:
            getters.remove(getter)
        else:
            getter.getter_function = lambda facts=facts: facts


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

try:
    look_at_host()
except Exception:
    traceback.print_exc()

# What lives now lives in all children: their collector need not look at it, which would copy it.
gc.collect()
gc.freeze()
