"""The files of a run at S3 (a local server) and in a folder."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdeit.data.remote.source import FetchError, Transient
from fastdeit.mirror.lease import NAME, Lease
from fastdeit.mirror.restore import restore
from fastdeit.mirror.store import RunStore
from fastdeit.mirror.upload import Uploader
from fastdeit.storage.run_folder import RunFolder
from tests.support.mirrored import save_step, start_attempt
from tests.support.s3_server import BUCKET, S3Server, refuse, use_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server().running() as server, pytest.MonkeyPatch.context() as patch:
        use_s3(patch, server)
        yield server


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    if request.param == "file":
        return RunStore(f"file://{tmp_path}/bucket/run")
    request.getfixturevalue("s3")
    return RunStore(f"s3://{BUCKET}/{tmp_path.name}/run/")


def test_files_are_written_listed_read_copied_and_removed(store: RunStore, tmp_path: Path) -> None:
    assert store.list_files() == {} and store.read("a") is None
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    store.upload(file, "b/c.bin")
    store.copy("b/c.bin", "d")
    store.write("a", b"x")
    assert store.list_files() == {"a": 1, "b/c.bin": 5, "d": 5}
    store.download("d", tmp_path / "new" / "d")
    assert (tmp_path / "new" / "d").read_bytes() == b"12345"
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["d"]
    store.remove(["a", "none", "d"])
    assert store.list_files() == {"b/c.bin": 5} and store.read("b/c.bin") == b"12345"
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "missing", "e")


def test_one_of_two_creates_a_file(store: RunStore) -> None:
    assert store.create("lock", b"1")
    assert not store.create("lock", b"2") and store.read("lock") == b"1"


def test_s3_refuses_the_second_of_two_that_create_a_file_at_once(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(f"s3://{BUCKET}/twice")
    answers = iter([None, b"1"])  # neither has seen the other's file
    monkeypatch.setattr(RunStore, "read", lambda self, name: next(answers))
    s3.put("twice/lock", b"1")
    assert not store.create("lock", b"2")
    found = s3.client.get_object(Bucket=BUCKET, Key="twice/lock")
    assert found["Body"].read() == b"1"


def test_a_run_goes_to_s3_and_back(s3: S3Server, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    start_attempt(folder, 1)
    save_step(folder, 10)
    store = RunStore(f"s3://{BUCKET}/runs/deit")
    lease = Lease(store, lambda: None)
    lease.acquire(print)
    Uploader(folder, store, store.list_files()).run()
    copy = RunFolder(tmp_path / "copy")
    restore(copy, store, store.list_files(), print)
    for file in (file for file in folder.path.rglob("*") if file.is_file()):
        assert (copy.path / file.relative_to(folder.path)).read_bytes() == file.read_bytes()
    assert NAME in store.list_files() and not copy.lock.exists()
    lease.release()


def test_faults_that_may_pass_are_tried_again_in_a_restore(s3: S3Server, tmp_path: Path) -> None:
    store = RunStore(f"s3://{BUCKET}/faulty")
    store.write("a", b"x")
    s3.faults["faulty/a"] = [refuse("400 Bad Request", "InternalError")] * 2
    store.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"x" and not s3.faults["faulty/a"]


def test_a_bucket_that_does_not_exist_is_named(s3: S3Server) -> None:
    with pytest.raises((FetchError, Transient), match="s3://nothing-here/run/lock"):
        RunStore("s3://nothing-here/run").create("lock", b"")


def test_a_file_that_is_removed_while_it_is_uploaded_is_no_fault_of_the_store(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")

    def remove_first(source: str, *rest: object) -> None:
        file.unlink()
        put(source, *rest)

    put = store._system.put_file
    monkeypatch.setattr(store._system, "put_file", remove_first)
    with pytest.raises(FileNotFoundError):
        store.upload(file, "a")


def test_a_full_disk_is_named_and_not_tried_again(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def fill(*_: object) -> None:
        attempts.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store._system, "get_file", fill)
    with pytest.raises(FetchError, match=f"{tmp_path}/copy: no room is left on the disk"):
        store.download("a", tmp_path / "copy")
    assert len(attempts) == 1
