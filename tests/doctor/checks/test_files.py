"""Checks of the file system, each with the fault that it is for."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdeit.doctor import images
from fastdeit.doctor.checks import files
from fastdeit.doctor.findings import GIB, MIB, Target
from fastdeit.doctor.scratch import choose_scratch, remove_scratch
from tests.support.images import write_shapes


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(output_dir=str(tmp_path), scratch=choose_scratch(str(tmp_path)))


@pytest.fixture(autouse=True)
def free_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the disk of this machine is like."""
    monkeypatch.setattr(files, "_LITTLE", 0)
    monkeypatch.setattr(files, "_NONE", 0)
    monkeypatch.setattr(files, "_SLOW_SYNC_S", 1e9)


def refuse(code: int) -> Any:
    def call(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def test_a_folder_that_cannot_be_written_is_broken(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.check_output(target).status == "ok"
    monkeypatch.setattr(files, "atomic_write_text", refuse(errno.EROFS))
    finding = files.check_output(target)
    assert finding.status == "broken" and "Read-only file system" in finding.found


@pytest.mark.parametrize(("free", "status"), [(20.0, "ok"), (5.0, "warning"), (0.1, "broken")])
def test_little_space_is_a_warning_and_none_is_broken(
    free: float, status: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    space = SimpleNamespace(f_frsize=1, f_bavail=free * GIB)
    monkeypatch.setattr(files.os, "statvfs", lambda _: space)
    assert files.check_output(target).status == status


def test_locks_that_exclude_nobody_are_broken_and_none_a_warning(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.check_locks(target).status == "ok"
    monkeypatch.setattr(files.fcntl, "flock", lambda *_: None)
    assert files.check_locks(target).status == "broken"
    monkeypatch.setattr(files.fcntl, "flock", refuse(errno.ENOLCK))
    finding = files.check_locks(target)
    assert finding.status == "warning" and "No locks available" in finding.found


def test_a_second_lock_that_fails_otherwise_is_an_error(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [None, OSError(errno.EIO, "broken")]

    def lock(*_: object) -> None:
        result = results.pop(0)
        if result:
            raise result

    monkeypatch.setattr(files.fcntl, "flock", lock)
    with pytest.raises(OSError, match="broken"):
        files.check_locks(target)


def test_renames_links_and_a_slow_disk(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.check_writes(target).status == "ok"
    monkeypatch.setattr(files.os, "link", refuse(errno.EPERM))
    assert "no hard links (Operation not permitted)" in files.check_writes(target).found
    monkeypatch.setattr(files, "_SLOW_SYNC_S", -1.0)
    assert "s to reach the disk" in files.check_writes(target).found
    monkeypatch.setattr(files, "atomic_write_text", lambda path, text: None)
    assert files.check_writes(target).status == "broken"


def test_a_disk_slower_than_the_cores_is_a_warning(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_WRITTEN", MIB)
    finding = files.check_disk(target)
    assert "images/s of 110 kB" in finding.found
    monkeypatch.setattr(files, "_PER_CORE", 10**9)
    finding = files.check_disk(target)
    assert finding.status == "warning" and "fastdeit pack" in finding.cure


def test_the_disk_of_the_data_set_is_measured(target: Target, tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "data")
    finding = files.check_disk(Target(data_path=str(data), scratch=target.scratch))
    count, mean = 24, sum(length for *_, length in images.locate_images(str(data), "train")) / 24
    assert len(images.locate_images(str(data), "train")) == count
    assert f"images/s of {mean / 1e3:.0f} kB" in finding.found


def test_reading_ends_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(10))
    read = []

    def count(job: object) -> int:
        read.append(job)
        return 10

    monkeypatch.setattr(files, "_MEASURE_S", 0.0)
    assert files._measure(count, [str(file)], 1) == 0
    assert not read


def test_the_scratch_folder_is_removed_or_named(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.check_output(target)
    assert Path(target.scratch).is_dir()
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    finding = remove_scratch(target)
    assert finding.status == "warning" and target.scratch in finding.cure
    monkeypatch.undo()
    assert remove_scratch(target).status == "ok"
    assert not Path(target.scratch).exists()


def test_scratch_lies_in_the_folder_that_exists(tmp_path: Path) -> None:
    assert Path(choose_scratch(str(tmp_path / "runs" / "new"))).parent == tmp_path
