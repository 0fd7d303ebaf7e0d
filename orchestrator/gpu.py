"""GPU memory by process, from the driver's own tool; nothing where there is none."""

from __future__ import annotations

import shutil
import subprocess
import time
from functools import lru_cache


def memory_by_process() -> dict[int, int]:
    """Bytes of GPU memory of each process on this machine; asked at most once in ten seconds."""
    if shutil.which("nvidia-smi") is None:
        return {}
    return _ask(int(time.monotonic() // 10))


@lru_cache(maxsize=1)
def _ask(_ten_seconds: int) -> dict[int, int]:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[int, int] = {}
    for line in answer.stdout.splitlines():
        pid, _, mebibytes = line.partition(",")
        if pid.strip().isdecimal() and mebibytes.strip().isdecimal():
            found[int(pid)] = found.get(int(pid), 0) + int(mebibytes) * 2**20
    return found
