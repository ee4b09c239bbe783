"""Failure files: the order of failures, their archive, a folder that cannot be written."""

import time
from pathlib import Path

import pytest

from fastdeit.reliability.failures import (
    format_failure,
    read_failures,
    take_failures,
    write_failure,
)
from fastdeit.storage.run_folder import RunFolder


def test_earliest_failure_comes_first(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for rank in (2, 0, 1):
        write_failure(folder, rank, "step", 7, f"error {rank}", "...")
        time.sleep(0.01)
    (tmp_path / "failure-rank3.json").write_text("{")  # what a full disk leaves
    assert [failure.rank for failure in read_failures(folder)] == [2, 0, 1]
    taken = take_failures(folder)
    assert [failure.rank for failure in taken] == [2, 0, 1]
    line = format_failure(taken[0], folder)
    assert line.startswith("the last attempt failed first on rank 2 (")
    assert [path.name for path in tmp_path.iterdir()] == ["failures.jsonl"]
    assert take_failures(folder) == []


def test_archive_keeps_the_failures_of_all_attempts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (7, 9):
        write_failure(folder, 0, "step", step, "error", "...")
        take_failures(folder)
    write_failure(folder, 0, "step", 11, "error", "...")
    assert [failure.step for failure in read_failures(folder)] == [7, 9, 11]


def test_failure_with_any_name_in_it_is_read_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_failure(folder, 0, "step", 7, "K\udce4se\x1b", "line\nK\udce4se")
    (failure,) = take_failures(folder)
    assert (failure.error, failure.details) == (r"K\xe4se\x1b", "line\nK\\xe4se")
    assert read_failures(folder) == [failure]


def test_folder_that_cannot_be_written_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    write_failure(RunFolder(tmp_path / "file" / "run"), 1, "step", 7, "error", "...")
    assert "rank 1: no failure file" in capsys.readouterr().err
