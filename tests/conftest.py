"""For all tests: one thread each, database servers, and in CI no test may be skipped."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pymongo
import pytest
import servers

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch is imported: tests run side by side

MONGO_KINDS = servers.available()
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def one_at_a_time(request):
    """Tests that share the one-machine Slurm, and break it, wait for each other: with pytest 9
    the groups of pytest-xdist do not hold, so a lock between its processes does it."""
    if not request.node.get_closest_marker("slurm"):
        yield
        return
    path = Path(tempfile.gettempdir()) / f"assay-slurm-tests-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Name what was skipped; a gap must be seen."""
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"SKIPPED {report.nodeid}: {report.longrepr[-1]}")


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and os.environ.get("ASSAY_NO_SKIPS") and exitstatus == 0:
        session.exitstatus = 1


@pytest.fixture(scope="session")
def server_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The URI of a server by its kind; started when first asked for, stopped at the end."""
    with contextlib.ExitStack() as stack:
        started: dict[str, str] = {}

        def uri(kind: str) -> str:
            if kind not in started:
                directory = tmp_path_factory.mktemp(kind) / "data"
                directory.mkdir()
                started[kind] = stack.enter_context(servers.running(kind, directory))
            return started[kind]

        yield uri


@pytest.fixture(scope="session")
def new_database(server_uri: Callable[[str], str]) -> Iterator[Callable[[str], str]]:
    """The URI of a fresh database on a server of a kind; dropped if the server stays."""
    made: list[tuple[str, str]] = []

    def database(kind: str) -> str:
        base, _, options = server_uri(kind).partition("?")
        name = f"assay_test_{secrets.token_hex(4)}_{next(_numbers)}"
        if kind == "uri":
            made.append((server_uri(kind), name))
        scheme, _, rest = base.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}/{name}?{options}"

    yield database
    for uri, name in made:
        with contextlib.closing(pymongo.MongoClient(uri)) as client:
            client.drop_database(name)


@pytest.fixture(params=MONGO_KINDS)
def mongo_url(request: pytest.FixtureRequest, new_database: Callable[[str], str]) -> str:
    return new_database(request.param)
