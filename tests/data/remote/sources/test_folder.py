"""A folder that is copied to a disk of the machine before it is read."""

import json
import os
import shutil
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from fastdeit.commands.runs.train import train_command
from fastdeit.config.parse import SettingError
from fastdeit.data.indexing import build_index
from fastdeit.data.remote import fetch as fetching
from fastdeit.data.remote.addresses import find_place
from fastdeit.data.remote.journal import is_whole
from fastdeit.data.remote.source import FetchError, FetchStopped
from fastdeit.data.remote.stage import fetch_folder, local_folder
from fastdeit.storage import free_space
from tests.support.cache_runs import MODEL, RUN
from tests.support.fetching import fetch_quietly, list_parts, make_bytes, read_folder
from tests.support.images import write_shapes

SPLITS = ("train", "val")
FLAGS = [*RUN, *MODEL, "--distillation-type", "none", "--epochs", "1"]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A data set on a shared disk."""
    return write_shapes(tmp_path / "shared", train=6, val=2)


def stage(shared: Path, tmp_path: Path) -> Path:
    return fetch_folder(str(shared), SPLITS, str(tmp_path / "local"), alone=True)


def read_times(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".fastdeit" not in str(path)]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def test_copy_has_the_files_and_their_times(shared: Path, tmp_path: Path) -> None:
    copy = stage(shared, tmp_path)
    assert copy == find_place(str(shared), str(tmp_path / "local"))
    assert read_folder(copy) == read_folder(shared) and read_times(copy) == read_times(shared)
    assert local_folder(str(shared), str(tmp_path / "local")) == copy


def test_folder_without_a_complete_copy_is_read_where_it_is(shared: Path, tmp_path: Path) -> None:
    assert local_folder(str(shared), str(tmp_path / "local")) == shared


def test_only_what_the_splits_need_is_copied(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdeit.data.remote.sources.folder._SMALL", 10)
    (shared / "archives").mkdir()
    (shared / "archives" / "train.tar").write_bytes(b"x")
    (shared / "images.tar").write_bytes(b"x" * 11)
    (shared / "classes.txt").write_text("a\n")
    (shared / "train" / "again").symlink_to(shared)
    names = {name.partition("/")[0] for name in read_folder(stage(shared, tmp_path))}
    assert names == {"train", "val", "classes.txt"}


def test_index_of_the_folder_is_that_of_the_copy(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index(shared, "train")
    copy = stage(shared, tmp_path)

    def decode(*_: Any) -> None:
        raise AssertionError("an image is decoded again")

    monkeypatch.setattr("fastdeit.data.formats.check.check_image", decode)
    assert build_index(copy, "train").fingerprint() == index.fingerprint()


def test_changed_new_and_removed_files_are_noticed(shared: Path, tmp_path: Path) -> None:
    copy = stage(shared, tmp_path)
    first, second = sorted((shared / "train").rglob("*.*"))[:2]
    first.write_bytes(second.read_bytes() + b"\0")
    shutil.copy(second, shared / "train" / second.parent.name / "new.png")
    removed = next((shared / "val").iterdir())
    shutil.rmtree(removed)
    assert stage(shared, tmp_path) == copy
    assert read_folder(copy) == read_folder(shared)
    assert not (copy / "val" / removed.name).exists()
    # a run that resumes uses it as it is
    assert is_whole(copy, str(shared))


def test_splits_that_another_run_has_copied_stay(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = stage(shared, tmp_path)
    shutil.copytree(shared / "train", shared / "few")
    before = read_folder(copy)
    fetch_folder(str(shared), ("few", "val"), str(tmp_path / "local"), alone=True)
    assert before.items() < read_folder(copy).items()
    assert "no longer" not in capsys.readouterr().out


def test_copy_that_was_damaged_is_repaired(shared: Path, tmp_path: Path) -> None:
    copy = stage(shared, tmp_path)
    file = next((copy / "train").rglob("*.*"))
    file.write_bytes(b"")
    stage(shared, tmp_path)
    assert read_folder(copy) == read_folder(shared)


def test_too_small_disk_is_refused_with_both_sizes_before_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "train-0.tar").write_bytes(bytes(5000))
    (tmp_path / "shared" / "val-0.tar").write_bytes(bytes(1000))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(free_space.shutil, "disk_usage", lambda _: usage(4000))
    with pytest.raises(FetchError, match=r"6\.0 kB to fetch, 4\.0 kB free\); `fastdeit pack`"):
        stage(tmp_path / "shared", tmp_path)
    assert not (tmp_path / "local").exists() or not any((tmp_path / "local").iterdir())


def test_stopped_copy_continues_with_the_blocks_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdeit.data.remote.transfer.BLOCK", 1000)
    monkeypatch.setattr(fetching, "_POLL_S", 0.0)
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "a.tar").write_bytes(make_bytes(100_000))
    copy = tmp_path / "copy"

    def has_no_block() -> bool:
        return not any(name.endswith(".json") for name in list_parts(copy))

    with pytest.raises(FetchStopped):
        fetch_quietly(str(shared), copy, workers=2, proceed=has_no_block)
    parts = [name for name in list_parts(copy) if name.endswith(".json")]
    done = json.loads((copy / ".fastdeit" / "parts" / parts[0]).read_text())["done"]
    assert 0 < len(done) < 100 and not (copy / "a.tar").exists()
    fetch_quietly(str(shared), copy)
    assert read_folder(copy) == read_folder(shared) and not list_parts(copy)


def test_two_jobs_of_one_machine_copy_once(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [threading.Thread(target=stage, args=(shared, tmp_path)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    copy = local_folder(str(shared), str(tmp_path / "local"))
    assert read_folder(copy) == read_folder(shared)
    assert capsys.readouterr().out.count("all of them are in") == 1


def test_file_that_changes_while_it_is_copied_is_copied_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "a.tar").write_bytes(make_bytes(5000))
    pool, changed = fetching.TransferPool, make_bytes(7000, 1)

    def change(*args: Any) -> Any:
        (shared / "a.tar").write_bytes(changed)
        return pool(*args)

    monkeypatch.setattr(fetching, "TransferPool", change)
    fetch_quietly(str(shared), tmp_path / "copy")
    assert (tmp_path / "copy" / "a.tar").read_bytes() == changed


def test_full_disk_during_the_copy_is_not_tried_again(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("fastdeit.data.remote.parts.Part.write", refuse)
    began = time.monotonic()
    with pytest.raises(FetchError, match="no room is left; what has arrived stays"):
        stage(shared, tmp_path)
    assert time.monotonic() - began < 5


def test_cache_inside_the_data_set_is_refused(shared: Path) -> None:
    with pytest.raises(SettingError, match="--data-cache must be outside --data-path"):
        fetch_folder(str(shared), SPLITS, str(shared / "cache"), alone=True)


def test_missing_data_set_and_impossible_cache_are_named(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--data-path must be an existing folder or a URL"):
        fetch_folder(str(tmp_path / "none"), SPLITS, str(tmp_path / "cache"), alone=True)
    with pytest.raises(FetchError, match="cannot be written: File name too long"):
        fetch_folder(str(shared), SPLITS, str(tmp_path / ("x" * 300)), alone=True)


def test_run_on_a_copy_equals_one_on_the_folder_and_resumes_on_another(
    tmp_path: Path,
) -> None:
    shared = write_shapes(tmp_path / "shared", train=16, val=2)
    far, near = tmp_path / "far", tmp_path / "near"
    argv = ["--data-path", str(shared), *FLAGS]
    assert train_command([*argv, "--output-dir", str(far)]) == 0
    argv += ["--output-dir", str(near), "--data-cache"]
    assert train_command([*argv, str(tmp_path / "job1"), "--stop-after-steps", "1"]) == 0
    shutil.rmtree(tmp_path / "job1")
    assert train_command([*argv, str(tmp_path / "job2")]) == 0
    assert read_folder(find_place(str(shared), str(tmp_path / "job2"))) == read_folder(shared)
    runs = [(run / "model.safetensors").read_bytes() for run in (far, near)]
    assert runs[0] == runs[1]
