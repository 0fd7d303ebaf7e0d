"""Stores to test with: every test that asks for `store` runs on each kind there is."""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pymongo
import pytest
import servers

from orchestrator.store import Store, open_store

MONGO_KINDS = servers.available()
_numbers = itertools.count()


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


@pytest.fixture(params=["sqlite", *MONGO_KINDS])
def store_url(
    request: pytest.FixtureRequest, tmp_path: Path, new_database: Callable[[str], str]
) -> str:
    """The URL, password included, of an empty store."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/store/assay.sqlite"
    return new_database(request.param)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with contextlib.closing(open_store(store_url)) as opened:
        yield opened


@pytest.fixture(params=MONGO_KINDS)
def mongo_url(request: pytest.FixtureRequest, new_database: Callable[[str], str]) -> str:
    return new_database(request.param)


@pytest.fixture
def mongo(mongo_url: str) -> Iterator[Store]:
    with contextlib.closing(open_store(mongo_url)) as opened:
        yield opened


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(f"{tmp_path}/embedded/assay.sqlite")) as opened:
        yield opened
