"""What is particular to the MongoDB store: addresses, secrets, a server that is away."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymongo
import pytest
import servers

from orchestrator.store import Store, StoreError, StoreUnavailable, open_store, redact
from orchestrator.store.mongo import MongoStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mongodb://u:secret@h:1/db?tls=true", "mongodb://u:***@h:1/db?tls=true"),
        ("mongodb://u:se/c?r@e:t@h1,h2/db", "mongodb://u:***@h1,h2/db"),
        ("mongodb+srv://u:secret@h/", "mongodb+srv://u:***@h/"),
        ("mongodb://u@h/", "mongodb://u@h/"),
        ("mongodb://h/db", "mongodb://h/db"),
        (
            "mongodb://h/?tlsCertificateKeyFilePassword=secret&w=1",
            "mongodb://h/?tlsCertificateKeyFilePassword=***&w=1",
        ),
        (
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:secret",
            "mongodb://h/?authMechanismProperties=***",
        ),
        ("sqlite:///a/b.sqlite", "sqlite:///a/b.sqlite"),
        ("/a/b.sqlite", "/a/b.sqlite"),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://user:s3cr3t@host:port/db",
        "mongodb://user:s3c/r3t@host/db",
        "mongodb://user:s3c%r3t@host/db",
        "mongodb://user:s3c:r3t@host/db",
        "mongodb://",
    ],
)
def test_bad_addresses_make_one_clean_line(url: str) -> None:
    with pytest.raises(StoreError, match="is not a MongoDB URI") as caught:
        open_store(url)
    for secret in ("s3c", "r3t", "\n"):
        assert secret not in str(caught.value)


def test_no_server_is_told_quickly_and_in_one_line() -> None:
    port = servers.free_port()
    url = f"mongodb://user:s3cr3t@127.0.0.1:{port}/db?serverSelectionTimeoutMS=300"
    store = open_store(url)
    for operation in (
        store.ping,
        lambda: store.find("sweep"),
        lambda: store.insert("sweep", [{"_id": 1}]),
        lambda: store.put_blob("k", b""),
    ):
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="does not answer") as caught:
            operation()
        assert time.monotonic() - start < 3
        assert "s3cr3t" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
    store.close()


def test_a_name_server_that_does_not_know_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise pymongo.errors.ConfigurationError("The DNS query name does not exist: _mongodb._tcp")

    monkeypatch.setattr(pymongo, "MongoClient", unknown)
    with pytest.raises(StoreUnavailable, match="look up") as caught:
        open_store("mongodb+srv://user:s3cr3t@no.such.host.invalid/db").ping()
    assert "s3cr3t" not in str(caught.value)


def test_a_wrong_password_is_no_reason_to_wait(mongo_url: str) -> None:
    scheme, _, rest = mongo_url.partition("://")
    if "@" not in rest:
        pytest.skip("the server asks for no password")
    wrong = f"{scheme}://{servers.USER}:s3cr3t@{rest.partition('@')[2]}"
    with pytest.raises(StoreError) as caught:
        open_store(wrong).ping()
    assert not isinstance(caught.value, StoreUnavailable)
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_writes_are_acknowledged_by_a_majority_and_journaled(mongo_url: str) -> None:
    store = MongoStore(mongo_url)
    assert store._database().write_concern.document == {"w": "majority", "j": True}
    given = MongoStore(f"{mongo_url}&w=1&socketTimeoutMS=7000")
    assert given._database().write_concern.document["w"] == 1  # what the URI says wins
    assert given._database().client.options.pool_options.socket_timeout == 7
    store.close()
    given.close()


def patiently(action: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while True:
        try:
            return action()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise


def test_a_server_that_comes_back(tmp_path: Path) -> None:
    """Operations fail while it is away; the same store goes on when it is back."""
    kinds = [kind for kind in servers.available() if kind != "uri"]
    if not kinds:
        pytest.skip("no server can be started here")
    directory = tmp_path / "data"
    directory.mkdir()
    port = servers.free_port()
    with servers.serving(kinds[0], directory, port, auth=False):
        store = open_store(f"mongodb://127.0.0.1:{port}/db?serverSelectionTimeoutMS=500")
        assert patiently(lambda: store.insert("sweep", [{"_id": 1}])) == [1]
    with pytest.raises(StoreUnavailable):
        store.insert("sweep", [{"_id": 2}])
    with servers.serving(kinds[0], directory, port, auth=False):
        assert patiently(lambda: store.insert("sweep", [{"_id": 1}, {"_id": 2}])) == [2]
        assert store.count("sweep") == 2
        store.close()


def test_documents_of_others_can_be_read(mongo: Store, mongo_url: str) -> None:
    """SEML, Sacred and GridFS put things into the same database."""
    with pymongo.MongoClient(mongo_url) as client:
        database = client.get_default_database()
        database["sweep"].insert_many([{"x": 1}, {"_id": 3, "x": {"a.b": 1}}])
        database["fs.files"].insert_one({"filename": "source.py"})
    assert mongo.count("sweep") == 2
    assert mongo.find("sweep", {"_id": 3}) == [{"_id": 3, "x": {"a.b": 1}}]
    assert mongo.collections() == mongo.collections(internal=True) == ["sweep"]
    assert mongo.allocate_ids("sweep", 1) == 4


def test_broken_blobs_are_noticed(mongo: Store, mongo_url: str) -> None:
    large = bytes(9 * 1024 * 1024)
    mongo.put_blob("sweep/1/1/maps", large)
    mongo.put_blob("sweep/1/1/rows", b"rows")
    with pymongo.MongoClient(mongo_url) as client:
        database = client.get_default_database()
        chunk = database["assay.blobs.chunks"].find_one({}, {"_id": 1})
        database["assay.blobs.chunks"].delete_one(chunk)
        database["assay.blobs.chunks"].insert_one({"_id": "sweep/9\0v\0" + "0" * 6, "data": b""})
        database["assay.blobs"].update_one({"_id": "sweep/1/1/rows"}, {"$set": {"data": b"r0ws"}})
    for key in ("sweep/1/1/maps", "sweep/1/1/rows"):
        with pytest.raises(StoreError, match="broken"):
            mongo.get_blob(key)
    assert len(mongo.check()) == 3
    assert mongo.delete_blobs("sweep/") == 2
    assert mongo.check() == []


def test_an_index_made_by_others(mongo: Store, mongo_url: str) -> None:
    """Servers differ: a unique index can stand beside it, or we say what is in the way."""
    with pymongo.MongoClient(mongo_url) as client:
        client.get_default_database()["sweep"].create_index([("k", 1)])
    mongo.ensure_index("sweep", "k")
    with contextlib.suppress(StoreError):
        mongo.ensure_unique("sweep", "k")
    assert len(mongo.insert("sweep", [{"_id": 1, "k": 1}, {"_id": 2, "k": 1}])) == (
        1 if mongo.indexes("sweep")["k"] else 2
    )


def test_leaving_does_not_wait_for_the_driver(mongo_url: str) -> None:
    script = (
        "import sys; from orchestrator.store import leave, open_store; "
        "store = open_store(sys.argv[1]); store.ping(); print('written'); "
        "import time; print(time.time(), file=sys.stderr); leave(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, mongo_url], capture_output=True, text=True, cwd=ROOT
    )
    after = time.time()
    assert (done.returncode, done.stdout) == (3, "written\n")
    assert after - float(done.stderr) < 0.35
