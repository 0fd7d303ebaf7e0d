"""Stores to test with: every test that asks for `store` runs on each kind there is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers

from orchestrator.store import Store, open_store

MONGO_KINDS = servers.available()


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


@pytest.fixture
def mongo(mongo_url: str) -> Iterator[Store]:
    with contextlib.closing(open_store(mongo_url)) as opened:
        yield opened


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(f"{tmp_path}/embedded/assay.sqlite")) as opened:
        yield opened
