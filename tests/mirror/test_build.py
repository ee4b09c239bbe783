"""The mirror opened by rank 0, in a working copy that all machines share."""

from pathlib import Path

import pytest

from fastdeit.distributed.world import init_distributed
from fastdeit.mirror import build
from fastdeit.mirror.build import open_mirror
from fastdeit.mirror.mirror import RunMirror
from fastdeit.reliability.run_lock import RunLock


def open_at(folder: Path) -> None:
    init_distributed()
    with RunMirror(f"file://{folder}/run") as mirror, RunLock(mirror.folder) as lock:
        open_mirror(mirror, lock, lambda: True)
        assert mirror.folder.lock.is_file()


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDEIT_RUNS", str(tmp_path / "runs"))


def test_the_working_copy_is_locked_when_the_mirror_is_open(tmp_path: Path) -> None:
    open_at(tmp_path)
    assert (tmp_path / "run").is_dir()


def test_a_machine_with_a_working_copy_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "on_rank0", lambda _: "process 1 on another machine")
    with pytest.raises(ValueError, match="must be on a file system that all machines share"):
        open_at(tmp_path)
