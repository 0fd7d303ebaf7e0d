"""What is particular to the SQLite store: the file, its place, its host, its version."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.store import Store, StoreError, StoreUnavailable, host, open_store
from orchestrator.store.sqlite import SqliteStore


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store with some content."""
    path = tmp_path / "assay.sqlite"
    store = open_store(str(path))
    store.ensure_index("sweep", "k")
    store.insert("sweep", [{"_id": i, "status": "PENDING", "k": i} for i in range(50)])
    store.put_blob("sweep/1/1/rows", b"rows" * 100)
    store.close()
    return path


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        store = open_store(f"sqlite://{tmp_path}/new/folder/assay.sqlite")
        store.insert("sweep", [{"_id": 1}])
    finally:
        os.umask(previous)
    folder = tmp_path / "new" / "folder"
    assert mode(folder) == 0o700
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == ["assay.sqlite", "assay.sqlite-shm", "assay.sqlite-wal"]
    assert [mode(f) for f in files] == [0o600] * 3
    assert store.check() == []
    (folder / "assay.sqlite").chmod(0o644)
    assert "chmod 600" in store.check()[0]
    store.backup(tmp_path / "backup")
    assert mode(tmp_path / "backup") == 0o600


def test_writes_are_synchronous(path: Path) -> None:
    store = SqliteStore(path)
    connection = store._connection()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert open_store().url == f"sqlite://{tmp_path}/data/assay/assay.sqlite"
    assert open_store(f"sqlite://{tmp_path}/x").url == f"sqlite://{tmp_path}/x"
    monkeypatch.chdir(tmp_path)
    assert open_store("./a#?% b.sqlite").url == f"sqlite://{tmp_path}/a#?% b.sqlite"
    assert (tmp_path / "a#?% b.sqlite").exists()
    for wrong in ("", "assay", "sqlite://relative.sqlite", "postgres://u:pw@h/x.sqlite"):
        with pytest.raises(StoreError, match="is not a store") as caught:
            open_store(wrong)
        assert "pw" not in str(caught.value)


def test_another_hosts_file_is_refused_until_adopted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = open_store(str(path))
    monkeypatch.setattr(host, "host_identity", lambda: "elsewhere (42)")
    with pytest.raises(StoreError, match="assay db push mongodb://") as caught:
        open_store(str(path))
    assert host.socket.gethostname() in str(caught.value)
    assert "elsewhere (42)" in str(caught.value)
    there = open_store(str(path), adopt=True)
    assert there.insert("sweep", [{"_id": 100}]) == [100]
    with pytest.raises(StoreError, match="belongs to host elsewhere"):
        here.insert("sweep", [{"_id": 101}])  # an old process over there must not go on writing


@pytest.mark.parametrize("kind", ["nfs4", "nfs", "lustre", "cifs", "fuse.sshfs", "beegfs", "gpfs"])
def test_shared_file_systems_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounts = tmp_path / "mountinfo"
    shared = tmp_path / "home of all"
    point = str(shared).replace(" ", "\\040")
    mounts.write_text(
        "22 1 0:20 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        f"36 22 0:31 / {point} rw,relatime shared:5 - ext4 /dev/sdb rw\n"
        f"37 22 0:31 / {point} rw,relatime master:1 shared:5 - {kind} server:/home rw\n"
        f"38 36 0:32 / {point}/scratch rw - xfs /dev/sdc rw\n"
    )
    monkeypatch.setattr(host, "_MOUNTS", mounts)
    with pytest.raises(StoreError, match=f"{kind} file system.*MongoDB"):
        open_store(f"{shared}/user/assay.sqlite")
    assert not shared.exists()
    open_store(f"{shared}/scratch/assay.sqlite").ping()
    open_store(f"{tmp_path}/home of all else/assay.sqlite").ping()
    link = tmp_path / "link"
    link.symlink_to(shared)
    with pytest.raises(StoreError, match=kind):
        open_store(f"{link}/assay.sqlite")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "apfs"])
def test_local_file_systems_are_not_refused(kind: str) -> None:
    assert host._SHARED.fullmatch(kind) is None


def test_no_mount_table_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_MOUNTS", tmp_path / "none")
    assert host.filesystem(tmp_path) is None
    open_store(f"{tmp_path}/a.sqlite").ping()


def test_files_that_are_no_stores(tmp_path: Path) -> None:
    text, other, newer = (tmp_path / f"{n}.sqlite" for n in ("text", "other", "newer"))
    text.write_text("this is not a database at all, whatever its name says\n" * 100)
    sql(other, "CREATE TABLE t (x)")
    open_store(str(newer)).close()
    sql(newer, "PRAGMA user_version = 99")
    expected = {text: "not a database", other: "not an Assay store", newer: "upgrade Assay"}
    for path, message in expected.items():
        before = path.read_bytes()
        with pytest.raises(StoreError, match=message):
            open_store(str(path))
        assert path.read_bytes() == before
    with pytest.raises(StoreError):
        open_store(f"{text}/below.sqlite")


def test_two_stores_of_one_process_and_a_passer_by_lose_nothing(path: Path) -> None:
    """Opening a file twice must not release the locks of the first: the process that is the last
    to leave would remove the log that both go on writing to."""

    def elsewhere(code: str) -> str:
        words = f"from orchestrator.store import open_store; s = open_store({str(path)!r}); {code}"
        command = [sys.executable, "-c", words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    first = open_store(str(path))
    assert first.insert("other", [{"_id": 1}]) == [1]
    second = open_store(str(path))
    assert second.count("other") == 1
    elsewhere("s.insert('other', [{'_id': 2}])")
    assert first.count("other") == second.count("other") == 2
    assert first.insert("other", [{"_id": 3}]) == [3]
    assert elsewhere("print(s.count('other'))") == "3"
    elsewhere("s.insert('other', [{'_id': 4}])")
    first.close()
    second.close()
    assert [d["_id"] for d in open_store(str(path)).find("other")] == [1, 2, 3, 4]


def test_a_removed_file_is_noticed(path: Path) -> None:
    store = open_store(str(path))
    shutil.move(path, path.with_suffix(".moved"))
    with pytest.raises(StoreUnavailable, match="removed or replaced"):
        store.insert("sweep", [{"_id": 200}])
    with pytest.raises(StoreUnavailable):
        store.ping()


def test_a_locked_file_is_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.sqlite.BUSY_SECONDS", 0.1)
    blocker = sqlite3.connect(path, isolation_level=None)
    store = open_store(str(path))
    blocker.execute("BEGIN IMMEDIATE")
    assert store.count("sweep") == 50  # readers do not wait for writers
    with pytest.raises(StoreUnavailable, match="locked"):
        store.insert("sweep", [{"_id": 200}])
    blocker.execute("ROLLBACK")
    assert store.insert("sweep", [{"_id": 200}]) == [200]


def test_check_finds_damage(path: Path) -> None:
    sql(
        path,
        "UPDATE blob_chunks SET data = x'00'",
        "UPDATE documents SET status = 'DONE' WHERE id = 3",
        "UPDATE documents SET body = x'0102' WHERE id = 4",
        "DELETE FROM entries WHERE value = 5",
    )
    store = open_store(str(path))
    problems = " | ".join(store.check())
    for part in (
        "document 3 and its index",
        "document 4 cannot be read",
        "document 5",
        "blob 'sweep",
    ):
        assert part in problems
    assert len(store.check()) == 4
    with pytest.raises(StoreError, match="broken"):
        store.get_blob("sweep/1/1/rows")
    with pytest.raises(StoreError, match="broken"):
        store.get_blobs(["sweep/1/1/rows"])


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from orchestrator.store import open_store; "
        "store = open_store(sys.argv[1]); print(store.allocate_ids('sweep', 1))"
    )
    command = [sys.executable, "-c", script, f"{tmp_path}/deep/new.sqlite"]
    root = Path(__file__).resolve().parents[2]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True) for _ in range(6)
    ]
    assert sorted(int(p.communicate(timeout=60)[0]) for p in running) == [1, 2, 3, 4, 5, 6]


def test_hot_filters_use_indexes(sqlite: Store) -> None:
    assert isinstance(sqlite, SqliteStore)
    sqlite.ensure_unique("sweep", "assay.identity")
    sqlite.insert("sweep", [{"_id": 1, "status": "PENDING", "assay": {"identity": "i"}}])
    from orchestrator.store.filters import compile_filter

    expected = {
        "documents_id": [{"_id": 1}, {"_id": {"$in": [1, 2]}}, {"_id": 1, "status": "PENDING"}],
        "documents_status": [{"status": "PENDING"}, {"status": {"$in": ["PENDING", "RUNNING"]}}],
        "sqlite_autoindex_entries_1|PRIMARY KEY": [
            {"assay.identity": "i"},
            {"assay.identity": {"$in": [f"{n}" for n in range(200)]}},
            {"status": "PENDING", "assay.identity": "i"},
        ],
    }
    with sqlite._read() as connection:
        for names, queries in expected.items():
            for query in queries:
                where, parameters, decides = sqlite._where(connection, 1, compile_filter(query))
                by = "+id" if " IN (" in where else "id"
                plan = connection.execute(
                    f"EXPLAIN QUERY PLAN SELECT seq FROM documents WHERE {where} ORDER BY {by}",
                    parameters,
                ).fetchall()
                text = " / ".join(row[3] for row in plan)
                assert decides
                assert any(name in text for name in names.split("|")), (query, text)
                assert "SCAN documents" not in text
                assert "(cid=?)" not in text, (query, text)


def test_starting_costs_little() -> None:
    script = "import orchestrator.store, sys; print(*sys.modules)"
    root = Path(__file__).resolve().parents[2]
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True
    ).stdout.split()
    assert not {"torch", "pymongo", "numpy", "pandas", "sqlite3", "bson"} & set(modules)
