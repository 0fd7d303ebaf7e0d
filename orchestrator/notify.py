"""Word to the user at the end of a sweep and at its first failure.

In `~/.config/assay/config.yaml`, which only the user can read and which is never copied anywhere:

    notify:
      command: [notify-send, "{text}"]        # a program and its arguments; no shell
      webhook: https://hooks.example.org/…    # gets {"text": …} by POST
"""

from __future__ import annotations

import json
import logging
import subprocess
import urllib.error
import urllib.request
from typing import Any

from orchestrator import settings
from orchestrator.queue import BROKEN, COMPLETED, FAILED, UNFINISHED, Queue

log = logging.getLogger(__name__)

NOTICES = "assay.notices"  # what was said already, so that of many workers one says it
SECONDS = 10.0


def of_progress(queue: Queue) -> None:
    """Tell of a first failure, or of the end, unless it was told.

    Raises:
        StoreError: the store is away; nothing was told.
    """
    hooks = settings.notify()
    if not hooks:
        return
    counts = queue.counts()
    if counts.get(FAILED):
        first = queue.store.find(
            queue.collection, {"status": FAILED}, fields=["assay.error", "batch_id"], limit=1
        )[0]
        error = first.get("assay", {}).get("error", "failed")
        text = f"sweep {queue.collection}: experiment {first['_id']} failed: {error}"
        _once(queue, f"first failure in batch {first.get('batch_id')}", text, hooks)
    if counts and not any(counts.get(state) for state in UNFINISHED):
        broken = sum(counts.get(state, 0) for state in BROKEN)
        text = f"sweep {queue.collection} is finished: {counts.get(COMPLETED, 0)} completed"
        text += f", {broken} not" if broken else ""
        _once(queue, f"finished with {sorted(counts.items())}", text, hooks)


def _once(queue: Queue, event: str, text: str, hooks: dict[str, Any]) -> None:
    if queue.store.insert(NOTICES, [{"_id": f"{queue.collection}: {event}", "text": text}]):
        tell(text, hooks)


def tell(text: str, hooks: dict[str, Any]) -> None:
    """Run the command and call the webhook; what goes wrong is logged, and stops nothing."""
    if command := hooks.get("command"):
        try:
            words = [str(word).replace("{text}", text) for word in command]
            subprocess.run(words, timeout=SECONDS, check=True, capture_output=True)
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("notify.command: %s", error)
    if url := hooks.get("webhook"):
        request = urllib.request.Request(
            str(url),
            data=json.dumps({"text": text}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=SECONDS).close()
        except (OSError, ValueError, urllib.error.URLError) as error:
            # The address of a webhook is a secret: not even a part of it goes into a log.
            log.warning("notify.webhook: %s", type(error).__name__)
