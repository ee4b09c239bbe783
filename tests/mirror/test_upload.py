"""Uploads: in an order in which a run can be restored after any of them."""

from pathlib import Path

import pytest

from fastdeit.checkpoint.store import list_checkpoints, verify_checkpoint
from fastdeit.mirror.restore import restore
from fastdeit.mirror.store import RunStore
from fastdeit.mirror.upload import Uploader
from fastdeit.storage.run_folder import RunFolder
from tests.support.mirrored import CountingStore, Interrupted, save_step, start_attempt

CHECKPOINT = "checkpoints/step-{:08d}/{}"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    start_attempt(folder, 1)
    save_step(folder, 10)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(f"file://{tmp_path}/bucket/run")


def restored(store: RunStore, folder: Path) -> RunFolder:
    copy = RunFolder(folder)
    restore(copy, store, store.list_files(), print)
    return copy


def test_what_a_checkpoint_needs_comes_before_its_manifest_and_the_summary_last(
    folder: RunFolder, store: CountingStore
) -> None:
    folder.summary.write_text("{}")
    Uploader(folder, store, ()).run()
    manifest = store.log.index(CHECKPOINT.format(10, "manifest.json"))
    before = {"config.yaml", "metrics.jsonl", "attempts.jsonl"}
    before |= {CHECKPOINT.format(10, f"{stem}.safetensors") for stem in ("model", "exp_avg")}
    assert before | {CHECKPOINT.format(10, "state.json")} == set(store.log[:manifest])
    # a link to a file that the store has is no second upload
    weights = CHECKPOINT.format(10, "model.safetensors")
    assert store.log[manifest + 1 :] == [f"model.safetensors = {weights}", "summary.json"]


def test_what_has_not_changed_is_not_uploaded_again(
    folder: RunFolder, store: CountingStore
) -> None:
    uploader = Uploader(folder, store, ())
    uploader.run()
    store.log.clear()
    uploader.run()
    assert store.log == []
    with folder.metrics.open("a") as log:
        log.write("{}\n")
    uploader.run()
    assert store.log == ["metrics.jsonl"]


def test_old_checkpoints_are_removed_after_the_new_one_is_whole_manifest_first(
    folder: RunFolder, store: CountingStore
) -> None:
    uploader = Uploader(folder, store, ())
    save_step(folder, 20)
    uploader.run()
    assert not uploader.has_new_checkpoint()
    save_step(folder, 30)  # the run keeps two: 10 is gone
    assert uploader.has_new_checkpoint()
    store.log.clear()
    uploader.run()
    removed = [line for line in store.log if line.startswith("-")]
    assert removed[0] == "-" + CHECKPOINT.format(10, "manifest.json") and len(removed) == 4
    assert store.log.index(CHECKPOINT.format(30, "manifest.json")) < store.log.index(removed[0])
    names = store.list_files()
    assert not any("step-00000010" in name for name in names)


def test_another_checkpoint_of_the_same_step_replaces_the_uploaded_one(
    folder: RunFolder, store: CountingStore, tmp_path: Path
) -> None:
    Uploader(folder, store, ()).run()
    again = RunFolder(tmp_path / "again")
    start_attempt(again, 1)
    save_step(again, 5)
    saved = save_step(again, 10)
    (saved / "state.json").write_text('{"step": 10, "adam_step": 9, "skipped": 1}')
    (saved / "manifest.json").write_text((saved / "manifest.json").read_text() + "\n")
    uploader = Uploader(again, store, store.list_files())
    store.log.clear()
    uploader.run()
    manifest = CHECKPOINT.format(10, "manifest.json")
    assert store.log.index(f"-{manifest}") < store.log.index(CHECKPOINT.format(10, "state.json"))
    assert store.read(manifest) == (saved / "manifest.json").read_bytes()


def test_files_that_the_run_has_removed_are_removed(
    folder: RunFolder, store: CountingStore
) -> None:
    failure = folder.failure(3)
    failure.write_text("{}")
    Uploader(folder, store, ()).run()
    assert failure.name in store.list_files()
    failure.unlink()
    Uploader(folder, store, store.list_files()).run()
    assert failure.name not in store.list_files()


def test_a_run_ended_before_any_operation_is_restored_to_its_newest_complete_checkpoint(
    tmp_path: Path,
) -> None:
    """Kill the process before each of its operations in turn, while a third checkpoint is uploaded
    and the first one removed."""
    last = 0
    steps_seen = set()
    while True:
        home = tmp_path / str(last)
        folder = RunFolder(home / "run")
        start_attempt(folder, 1)
        for step in (10, 20):
            save_step(folder, step)
        store = CountingStore(f"file://{home}/bucket/run")
        uploader = Uploader(folder, store, ())
        uploader.run()
        save_step(folder, 30)
        store.log.clear()
        store.last = last
        try:
            uploader.run()
        except Interrupted:
            last += 1
        else:
            break
        copy = restored(RunStore(f"file://{home}/bucket/run"), home / "copy")
        found = list_checkpoints(copy.checkpoints)
        for path in found:
            verify_checkpoint(path)
        newest = int(found[0].name.removeprefix("step-"))
        assert len(found) >= 2 and newest in (20, 30)
        assert f'{{"step": {newest}}}' in copy.metrics.read_text()
        assert copy.config.is_file() and copy.attempts.is_file()
        steps_seen.add(newest)
    assert steps_seen == {20, 30} and last > 8


def test_a_checkpoint_that_is_removed_while_it_is_uploaded_is_no_fault(
    folder: RunFolder, tmp_path: Path
) -> None:
    class Pruning(CountingStore):
        def upload(self, file: Path, name: str) -> None:
            if name == CHECKPOINT.format(10, "state.json"):
                for step in (20, 30):
                    save_step(folder, step)
            super().upload(file, name)

    store = Pruning(f"file://{tmp_path}/bucket/run")
    uploader = Uploader(folder, store, ())
    uploader.run()
    uploader.run()
    copy = restored(store, tmp_path / "copy")
    steps = [path.name for path in list_checkpoints(copy.checkpoints)]
    assert steps == ["step-00000030", "step-00000020"]
    assert not any("step-00000010" in name for name in store.list_files())


def test_a_checkpoint_that_is_saved_while_logs_are_uploaded_waits_for_newer_logs(
    folder: RunFolder, tmp_path: Path
) -> None:
    class Saving(CountingStore):
        def upload(self, file: Path, name: str) -> None:
            super().upload(file, name)
            if name == "metrics.jsonl" and not (folder.checkpoints / "step-00000020").exists():
                save_step(folder, 20)

    store = Saving(f"file://{tmp_path}/bucket/run")
    Uploader(folder, store, ()).run()
    copy = restored(store, tmp_path / "copy")
    newest = list_checkpoints(copy.checkpoints)[0]
    assert f'"step": {int(newest.name[-8:])}' in copy.metrics.read_text()


def test_the_newest_uploaded_checkpoint_stays_until_a_newer_one_is_whole(
    folder: RunFolder, tmp_path: Path
) -> None:
    class Pruning(CountingStore):
        def write(self, name: str, data: bytes) -> None:
            super().write(name, data)
            if name == CHECKPOINT.format(10, "manifest.json"):
                for step in (20, 30):
                    save_step(folder, step)

    store = Pruning(f"file://{tmp_path}/bucket/run")
    uploader = Uploader(folder, store, ())
    uploader.run()
    copy = restored(store, tmp_path / "copy")
    assert [path.name for path in list_checkpoints(copy.checkpoints)] == ["step-00000010"]
    uploader.run()
    assert not any("step-00000010" in name for name in store.list_files())
