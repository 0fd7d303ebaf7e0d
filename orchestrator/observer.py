"""From a run to the store, by way of the disk: nothing that was computed is lost.

The process that runs an experiment only writes into a spool directory next to the artifacts; its
worker ships the directory to the store when the process has ended, and tries again until the store
has it. Sacred's own MongoObserver talks to the database from the run, and loses the result when
the database is away.

    <home>/spool/<sweep>/<id>-<attempt>/
        claim.bson    who runs what, for which store (written by the worker, first)
        output.log    standard output and standard error, as they come
        started.bson  what Sacred knows at the start: host, dependencies, command
        metrics.jsonl metric series, appended
        files/        artifacts of the run, such as scores.parquet
        final.bson    how it ended, and its result (atomic: it is there whole, or not at all)
"""

from __future__ import annotations

import fcntl
import gzip
import json
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
from sacred.observers import RunObserver
from sacred.serializer import flatten

from experiments.artifacts import write_atomically
from orchestrator import settings
from orchestrator.queue import COMPLETED, FAILED, INTERRUPTED, Claim, Queue
from orchestrator.usage import usage

log = logging.getLogger(__name__)

FORMAT = "MongoObserver-0.7.0"  # the layout of Sacred's own observer, which Omniboard reads


class SpoolObserver(RunObserver):
    """Writes the events of a Sacred run into a spool directory."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        (spool / "files").mkdir(exist_ok=True, mode=0o700)
        self._info: dict[str, Any] = {}
        self._files: list[dict[str, Any]] = []
        self._started = time.monotonic()

    def started_event(
        self,
        ex_info: Any,
        command: Any,
        host_info: Any,
        start_time: Any,
        config: Any,
        meta_info: Any,
        _id: Any,
    ) -> Any:
        started = {
            "experiment": {**ex_info, "sources": []},
            "command": command,
            # Sacred offers to record environment variables; they may hold secrets.
            "host": {**host_info, "ENV": {}},
            "meta": {k: v for k, v in meta_info.items() if k != "config_updates"},
            "format": FORMAT,
        }
        write_atomically(self.spool / "started.bson", _encode(started))
        return _id

    def heartbeat_event(self, info: Any, captured_out: Any, beat_time: Any, result: Any) -> None:
        self._info = info

    def log_metrics(self, metrics_by_name: Any, info: Any) -> None:
        if not metrics_by_name:
            return
        with (self.spool / "metrics.jsonl").open("a") as file:
            for name, series in metrics_by_name.items():
                times = [t.timestamp() for t in series["timestamps"]]
                file.write(json.dumps([name, series["steps"], series["values"], times]) + "\n")

    def artifact_event(
        self, name: str, filename: str, metadata: Any = None, content_type: Any = None
    ) -> None:
        target = self.spool / "files" / Path(name).name
        shutil.copyfile(filename, target)
        self._files.append({"name": target.name, "metadata": dict(metadata or {})})

    def completed_event(self, stop_time: Any, result: Any) -> None:
        self._final(COMPLETED, {"result": flatten(result)})

    def interrupted_event(self, interrupt_time: Any, status: str) -> None:
        self._final(INTERRUPTED, {})

    def failed_event(self, fail_time: Any, fail_trace: Any) -> None:
        lines = [line for block in fail_trace for line in block.rstrip("\n").split("\n")]
        error = next((line for line in reversed(lines) if line.strip()), "failed")
        self._final(FAILED, {"fail_trace": lines, "assay.error": error.strip()})

    def _final(self, status: str, fields: dict[str, Any]) -> None:
        final = {
            "status": status,
            "fields": {
                **fields,
                "info": flatten(dict(self._info)),
                "stats": usage(time.monotonic() - self._started),
            },
            "files": self._files,
        }
        write_atomically(self.spool / "final.bson", _encode(final))


@dataclass(frozen=True)
class Spool:
    """The spool directory of one attempt at one experiment."""

    path: Path

    @classmethod
    def create(cls, home: Path, queue: Queue, claim: Claim) -> Spool:
        path = home / "spool" / queue.collection / f"{claim.id}-{claim.attempt}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True, mode=0o700)
        facts = {
            "id": claim.id,
            "attempt": claim.attempt,
            "worker": claim.worker,
            "collection": queue.collection,
            "store": queue.store.url,
        }
        write_atomically(path / "claim.bson", bson.encode(facts))
        return cls(path)

    @property
    def output(self) -> Path:
        return self.path / "output.log"

    @property
    def ended(self) -> bool:
        """Whether the run came to an end of its own, and told of it."""
        return _read(self.path / "final.bson").get("status") in (COMPLETED, FAILED)

    @property
    def interrupted(self) -> bool:
        """Whether the run stopped because it was asked to, and can be gone on with."""
        return _read(self.path / "final.bson").get("status") == INTERRUPTED

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def claim(self) -> Claim:
        """The claim under which the attempt ran."""
        facts = bson.decode((self.path / "claim.bson").read_bytes())
        return Claim(int(facts["id"]), int(facts["attempt"]), facts["worker"], {})

    @contextmanager
    def alone(self) -> Iterator[Claim | None]:
        """The claim, while nobody else replays this attempt; None if somebody does, or has."""
        path = self.path / "claim.bson"
        with ExitStack() as stack:
            claim = None
            with suppress(FileNotFoundError, BlockingIOError, bson.errors.BSONError):
                file = stack.enter_context(path.open("rb"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                claim = self.claim()  # FileNotFoundError: it was shipped while we waited
            yield claim

    def ship(self, queue: Queue, claim: Claim, death: str | None = None) -> bool:
        """Move the attempt into the store: files, metric series, then the final state, last.

        Args:
            death: how the process ended, where it could not tell of its end itself.

        Returns:
            False when the claim is stale; the directory is then kept as `<name>.stale`.

        Raises:
            StoreUnavailable: nothing is lost; call again later.
        """
        fields: dict[str, Any] = _read(self.path / "started.bson")
        final = _read(self.path / "final.bson")
        status = final.get("status", FAILED)
        fields |= final.get("fields", {})
        if not final:
            fields["assay.error"] = death or "the process ended without a word"
            fields["fail_trace"] = self.tail().splitlines()[-20:]
        prefix = f"{queue.collection}/{claim.id}/{claim.attempt}"
        artifacts = []
        for file in final.get("files", []):
            key = f"{prefix}/{file['name']}"
            queue.store.put_blob(key, (self.path / "files" / file["name"]).read_bytes())
            artifacts.append({"name": file["name"], "file_id": key})
        if (log := self._whole_output()) is not None:
            queue.store.put_blob(f"{prefix}/{settings.OUTPUT_FILE}", log)
            artifacts.append(
                {"name": settings.OUTPUT_FILE, "file_id": f"{prefix}/{settings.OUTPUT_FILE}"}
            )
        info = dict(fields.get("info") or {})
        if metrics := self._ship_metrics(queue, claim):
            info["metrics"] = metrics
        fields |= {"artifacts": artifacts, "resources": [], "info": info}
        fields["captured_out"] = self.tail()
        fields["heartbeat"] = datetime.now(UTC)
        done = queue.finish(claim, status, fields)
        if done:
            self.remove()
        else:
            stale = self.path.with_name(f"{self.path.name}.stale")
            shutil.rmtree(stale, ignore_errors=True)
            self.path.rename(stale)
        return done

    def tail(self, size: int = settings.OUTPUT_TAIL) -> str:
        """The last bytes of the output."""
        try:
            with self.output.open("rb") as file:
                file.seek(0, 2)
                length = file.tell()
                file.seek(max(0, length - size))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return text if length <= size else f"[{length - size} bytes left out]\n{text}"

    def _whole_output(self) -> bytes | None:
        """All of the output, compressed, where the document has only its end."""
        try:
            size = self.output.stat().st_size
        except FileNotFoundError:
            return None
        if size <= settings.OUTPUT_TAIL:
            return None
        with self.output.open("rb") as file:
            head = file.read(settings.OUTPUT_KEPT)
        cut = b"" if size <= len(head) else b"\n[%d bytes left out]\n" % (size - len(head))
        return gzip.compress(head + cut, compresslevel=5)

    def _ship_metrics(self, queue: Queue, claim: Claim) -> list[dict[str, str]]:
        """Metric series in Sacred's layout: documents of `metrics`, named in `info.metrics`."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        series: dict[str, tuple[list[Any], list[Any], list[Any]]] = defaultdict(
            lambda: ([], [], [])
        )
        for line in path.read_text().splitlines():
            name, steps, values, times = json.loads(line)
            for column, more in zip(series[name], (steps, values, times), strict=True):
                column.extend(more)
        references = []
        for name, (steps, values, times) in series.items():
            identity = f"{queue.collection}/{claim.id}/{claim.attempt}/{name}"
            document = {
                "_id": identity,
                "run_id": claim.id,
                "sweep": queue.collection,
                "name": name,
                "steps": steps,
                "values": values,
                "timestamps": [datetime.fromtimestamp(t, UTC) for t in times],
            }
            queue.store.insert("metrics", [document])
            references.append({"name": name, "id": identity})
        return references


def replay(home: Path, queue: Queue) -> list[tuple[int, bool]]:
    """Ship what dead workers of this machine left behind for a sweep.

    Returns:
        (experiment, whether the store took the result) for each attempt that had come to an end.
        Attempts that had not, and whose experiment has moved on, are removed.

    Raises:
        StoreUnavailable: what is left stays where it is.
    """
    shipped = []
    for path in sorted((home / "spool" / queue.collection).glob("*-*[0-9]")):
        spool = Spool(path)
        with spool.alone() as claim:
            if claim is None or queue.watch.dead(claim.worker) is None:
                continue
            if spool.ended:
                queue.reap()  # so that an experiment of the dead is free to take its result
                shipped.append((claim.id, spool.ship(queue, claim)))
            elif not queue.holds(claim):
                spool.remove()
    return shipped


def _encode(document: Any) -> bytes:
    return bson.encode(_clean(flatten(document)))


def _clean(value: Any) -> Any:
    """What MongoDB takes: string keys without dots and leading dollars (except our own paths)."""
    if isinstance(value, dict):
        return {_clean_key(str(k)): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return str(value)
    return value


def _clean_key(key: str) -> str:
    if key.startswith("assay."):
        return key
    return key.replace(".", "·").replace("$", "＄").replace("\0", "")


def _read(path: Path) -> dict[str, Any]:
    try:
        return bson.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
