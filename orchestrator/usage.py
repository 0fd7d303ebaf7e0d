"""What a finished process has used, in SEML's schema (`stats` of a document)."""

from __future__ import annotations

import resource
import sys
from typing import Any


def usage(real_time: float) -> dict[str, Any]:
    """Seconds of wall and CPU time, peak memory in bytes; of a GPU, the most torch allocated."""
    stats: dict[str, Any] = {
        "real_time": real_time,
        "self": _of(resource.RUSAGE_SELF),
        "children": _of(resource.RUSAGE_CHILDREN),
    }
    torch = sys.modules.get("torch")
    # Asking an unused CUDA would wake it up, for seconds and hundreds of megabytes.
    if torch is not None and torch.cuda.is_initialized():
        stats["pytorch"] = {"gpu_max_memory_bytes": torch.cuda.max_memory_allocated()}
    return stats


def _of(who: int) -> dict[str, Any]:
    used = resource.getrusage(who)
    kibibytes = 1 if sys.platform == "darwin" else 1024
    return {
        "user_time": used.ru_utime,
        "system_time": used.ru_stime,
        "max_memory_bytes": kibibytes * used.ru_maxrss,
    }
