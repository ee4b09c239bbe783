"""The thread that uploads: no step waits for it, and no fault of it ends a run."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastdeit.data.remote.source import Transient
from fastdeit.mirror import mirror as mirror_module
from fastdeit.mirror.mirror import RunMirror
from fastdeit.mirror.store import RunStore
from fastdeit.mirror.upload import Uploader
from fastdeit.storage.run_folder import RunFolder
from tests.support.mirrored import save_step, start_attempt
from tests.support.waiting import wait_until


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FASTDEIT_RUNS", str(tmp_path / "runs"))
    return f"file://{tmp_path}/bucket/run"


@pytest.fixture
def mirror(url: str) -> Iterator[RunMirror]:
    with RunMirror(url) as mirror:
        mirror.open(print, lambda: True)
        start_attempt(mirror.folder, 1)
        yield mirror


def test_a_local_folder_has_none(tmp_path: Path) -> None:
    with RunMirror(str(tmp_path)) as mirror:
        assert mirror.folder.path == tmp_path and mirror.describe() == []
        mirror.finish(10.0)


def test_a_working_copy_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTDEIT_RUNS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    places = [RunFolder.of(url).path for url in ("s3://a/deit", "s3://b/deit", "s3://a/deit/")]
    assert places[0].parent == Path("/cache/fastdeit/runs")
    assert places[0].name.startswith("deit-") and places[0] == places[2] != places[1]


def test_a_checkpoint_is_uploaded_while_the_run_trains(mirror: RunMirror, url: str) -> None:
    save_step(mirror.folder, 10)
    store = RunStore(url)
    wait_until(lambda: "checkpoints/step-00000010/manifest.json" in store.list_files())


def test_a_checkpoint_does_not_wait_for_the_next_upload_of_logs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "INTERVAL_S", 600.0)
    with RunMirror(url) as mirror:
        mirror.open(print, lambda: True)
        start_attempt(mirror.folder, 1)
        time.sleep(0.1)  # the first upload, of nothing
        save_step(mirror.folder, 10)
        wait_until(lambda: "checkpoints/step-00000010/manifest.json" in RunStore(url).list_files())


def test_a_restore_that_is_stopped_is_not_uploaded(url: str, tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "first")
    start_attempt(first, 1)
    save_step(first, 10)
    Uploader(first, RunStore(url), {}).run()
    before = RunStore(url).list_files()
    with RunMirror(url) as mirror:
        answers = iter([True, True])
        mirror.open(print, lambda: next(answers, False))
        assert mirror._thread is None and not mirror.folder.attempts.exists()
    assert RunStore(url).list_files() == before


def test_slow_uploads_of_logs_take_a_small_share_of_the_time(
    mirror: RunMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "SHARE", 20)
    assert mirror._thread is not None
    monkeypatch.setattr(Uploader, "run", lambda self: time.sleep(0.1))
    assert (mirror._thread._upload() or 0.0) >= 2.0


def test_the_end_waits_for_the_last_checkpoint_and_frees_the_url(
    mirror: RunMirror, url: str
) -> None:
    save_step(mirror.folder, 10)
    mirror.folder.summary.write_text("{}")
    mirror.finish(30.0)
    names = RunStore(url).list_files()
    assert {"checkpoints/step-00000010/manifest.json", "summary.json", "lock"} <= names.keys()
    mirror.close()
    assert "lock" not in RunStore(url).list_files()


def test_a_store_that_fails_is_said_once_and_tried_again(
    mirror: RunMirror, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upload = RunStore.upload
    failures: list[str] = []

    def fail(self: RunStore, file: Path, name: str) -> None:
        if len(failures) < 5:
            failures.append(name)
            raise Transient("503 SlowDown")
        upload(self, file, name)

    monkeypatch.setattr(RunStore, "upload", fail)
    with caplog.at_level(logging.WARNING):
        save_step(mirror.folder, 10)
        wait_until(lambda: "checkpoints/step-00000010/manifest.json" in RunStore(url).list_files())
        mirror.finish(30.0)
    lines = [record.getMessage() for record in caplog.records]
    assert len(failures) == 5
    assert len([line for line in lines if "an upload failed" in line and "SlowDown" in line]) == 1
    assert "uploads work again" in lines


def test_the_pauses_grow_with_each_fault_and_begin_anew_after_an_upload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirror_module, "RETRY_S", (5.0, 10.0))
    monkeypatch.setattr(mirror_module, "INTERVAL_S", 60.0)
    faults = iter([Transient("503"), Transient("503"), Transient("503"), None, Transient("503")])

    def run() -> None:
        if fault := next(faults):
            raise fault

    uploader, lease = SimpleNamespace(run=run), SimpleNamespace(is_held=lambda: True)
    thread = mirror_module._UploadThread(uploader, lease)  # type: ignore[arg-type]
    assert [thread._upload() for _ in range(5)] == [5.0, 10.0, 10.0, 60.0, 5.0]


def test_the_end_waits_for_a_store_that_is_gone_no_longer_than_its_limit(
    mirror: RunMirror, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: RunStore, name: str) -> bytes:
        raise Transient("no route to host")

    monkeypatch.setattr(RunStore, "read", fail)
    save_step(mirror.folder, 10)
    beats: list[int] = []
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        mirror.finish(0.3, lambda: beats.append(1))
    assert time.monotonic() - start < 5 and beats
    assert "does not have all of the run" in caplog.text and "no route to host" in caplog.text


def test_a_slow_upload_delays_nothing(mirror: RunMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()
    upload = RunStore.upload

    def wait(self: RunStore, file: Path, name: str) -> None:
        slow.wait(20)
        upload(self, file, name)

    monkeypatch.setattr(RunStore, "upload", wait)
    start = time.monotonic()
    for step in (10, 20, 30, 40):  # what the loop does: it only writes files
        save_step(mirror.folder, step)
    assert time.monotonic() - start < 10
    slow.set()
    mirror.finish(30.0)


def test_a_run_whose_url_another_has_taken_stops(mirror: RunMirror, url: str) -> None:
    RunStore(url).write("lock", b"{}")
    wait_until(mirror.folder.stop_request.exists)
    save_step(mirror.folder, 10)
    mirror.finish(30.0)
    assert not any("step-" in name for name in RunStore(url).list_files())


def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with RunMirror("nosuch://bucket/run") as mirror, pytest.raises(ValueError, match="nosuch"):
        mirror.open(print, lambda: True)


def test_a_list_that_lacks_what_was_just_written_begins_no_run(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunStore, "list_files", lambda self: {})
    with RunMirror(url) as mirror, pytest.raises(ValueError, match="its list of files lacks"):
        mirror.open(print, lambda: True)
    assert not RunFolder.of(url).path.exists()
