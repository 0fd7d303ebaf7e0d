"""MongoDB-protocol servers for tests: with a user and a password, on a free loopback port.

SecantusDB comes with the test extra; a real `mongod` is used when there is one on the PATH, and any
server at all through `ASSAY_TEST_MONGODB_URI` (its user must be allowed to make databases, whose
names begin with `assay_test_`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pymongo
from pymongo.errors import PyMongoError

USER = "tester"
SECONDS_TO_START = 30


def available() -> list[str]:
    """The kinds of server that can be had here."""
    kinds = ["secantus"] if importlib.util.find_spec("secantus") else []
    kinds += ["mongod"] if shutil.which("mongod") else []
    kinds += ["uri"] if os.environ.get("ASSAY_TEST_MONGODB_URI") else []
    return kinds


@contextlib.contextmanager
def running(kind: str, directory: Path) -> Iterator[str]:
    """The URI, without a database, of a server of this kind."""
    if kind == "uri":
        yield os.environ["ASSAY_TEST_MONGODB_URI"]
        return

    password = secrets.token_urlsafe(16)
    port = free_port()
    # A user can only be made while nobody has to log in.
    with (
        serving(kind, directory, port, auth=False),
        _client(f"mongodb://127.0.0.1:{port}") as client,
    ):
        client.admin.command("createUser", USER, pwd=password, roles=["root"])
    with serving(kind, directory, port, auth=True):
        uri = f"mongodb://{USER}:{password}@127.0.0.1:{port}/?authSource=admin"
        with _client(uri):
            yield uri


@contextlib.contextmanager
def serving(
    kind: str, directory: Path, port: int, *, auth: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process on data in `directory`; it may need a moment to answer."""
    if kind == "mongod":
        command = ["mongod", "--bind_ip", "127.0.0.1", "--dbpath", str(directory)]
    else:
        command = [sys.executable, "-m", "secantus", "--host", "127.0.0.1"]
        command += ["--storage-path", str(directory), "--sync-on-commit"]
    command += ["--port", str(port), *(["--auth"] if auth else [])]
    with open(directory.parent / "server.log", "ab") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def _client(uri: str) -> Iterator[pymongo.MongoClient]:
    """A client of a server that answers."""
    client: pymongo.MongoClient = pymongo.MongoClient(uri, serverSelectionTimeoutMS=500)
    deadline = time.monotonic() + SECONDS_TO_START
    try:
        while True:
            try:
                client.admin.command("ping")
                break
            except PyMongoError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield client
    finally:
        client.close()


class Stoppable:
    """A server that can be killed and started again on the same data and port."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind, self.directory, self.port = kind, directory, free_port()
        self.password = secrets.token_urlsafe(16)
        self._running = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        with (
            serving(kind, directory, self.port, auth=False),
            _client(f"mongodb://127.0.0.1:{self.port}") as client,
        ):
            client.admin.command("createUser", USER, pwd=self.password, roles=["root"])

    def uri(self, database: str) -> str:
        place = f"127.0.0.1:{self.port}/{database}"
        return f"mongodb://{USER}:{self.password}@{place}?authSource=admin"

    def start(self) -> None:
        """Returns when the server answers."""
        serve = serving(self.kind, self.directory, self.port, auth=True)
        self._process = self._running.enter_context(serve)
        with _client(self.uri("admin")):
            pass

    def kill(self) -> None:
        """As a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._running.close()


@contextlib.contextmanager
def stoppable(kind: str, directory: Path) -> Iterator[Stoppable]:
    """A running server that the test may kill and start."""
    server = Stoppable(kind, directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()
