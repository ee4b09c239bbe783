"""Saving in the background: failures are reported, tried again, and end a run at the third."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdeit.checkpoint import writer as checkpoint_writer
from fastdeit.checkpoint.store import list_checkpoints, load_checkpoint, save_checkpoint
from fastdeit.checkpoint.weight_files import WeightFiles
from fastdeit.checkpoint.writer import CheckpointError, CheckpointWriter
from fastdeit.distributed.world import init_distributed
from fastdeit.storage import free_space
from fastdeit.storage.run_folder import RunFolder

TENSORS = {"model": {"a": torch.arange(6.0)}}


def weight_files(folder: Path) -> WeightFiles:
    return WeightFiles(RunFolder(folder), {"format": "pt"}, {"architecture": "none"})


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckpointWriter]:
    init_distributed()
    monkeypatch.setattr(checkpoint_writer, "RETRY_S", 0.01)
    writer = CheckpointWriter(weight_files(tmp_path), keep=2, rank=0)
    yield writer
    writer.close()


def save(writer: CheckpointWriter, step: int, tensors: Any = TENSORS) -> None:
    writer.save(tensors, {"step": step, "adam_step": step, "skipped": 0})


def steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(folder / "checkpoints")]


class Disk:
    """Stands for `save_checkpoint`: asks `answer` before each attempt, which may raise or wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Callable[[int], object]) -> None:
        self.attempts: list[int] = []
        self._answer = answer
        monkeypatch.setattr(checkpoint_writer, "save_checkpoint", self.save)

    def save(self, folder: Path, step: int, *rest: Any) -> Path:
        self.attempts.append(step)
        self._answer(len(self.attempts))
        return save_checkpoint(folder, step, *rest)


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_training_continues_while_a_checkpoint_is_written(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = threading.Event()
    Disk(monkeypatch, lambda _: allowed.wait(10))
    save(writer, 1)
    assert steps(tmp_path) == [] and writer.take_warnings() == []
    threading.Timer(0.2, allowed.set).start()
    began = time.monotonic()
    save(writer, 2)  # waits for the first
    assert time.monotonic() - began > 0.1 and steps(tmp_path)[-1:] == [1]
    writer.wait()
    assert steps(tmp_path) == [2, 1] and writer.take_warnings() == []
    assert torch.equal(
        load_checkpoint(tmp_path / "checkpoints" / "step-00000002")[0]["model"]["a"],
        TENSORS["model"]["a"],
    )


def test_close_waits_for_the_save_in_progress(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, lambda _: time.sleep(0.2))
    save(writer, 1)
    writer.close()
    assert steps(tmp_path) == [1]


def test_failed_save_is_reported_and_tried_again_with_more_room(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(
            tmp_path / "checkpoints",
            step,
            TENSORS,
            {"step": step, "adam_step": 0, "skipped": 0},
            keep=5,
        )
    seen = []

    def once(attempt: int) -> None:
        seen.append(steps(tmp_path))
        if attempt == 1:
            full(attempt)

    disk = Disk(monkeypatch, once)
    save(writer, 4)
    writer.wait()
    assert disk.attempts == [4, 4] and seen == [[3, 2, 1], [3, 2]] and steps(tmp_path) == [4, 3]
    (line,) = writer.take_warnings()
    assert (
        "checkpoint of step 4 not saved: [Errno 28] No space left on device; trying again" in line
    )
    assert writer.take_warnings() == []


def test_weights_that_cannot_be_written_are_tried_again(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = WeightFiles.update
    attempts = []

    def once(self: WeightFiles, scores: Mapping[int, float]) -> list[str]:
        attempts.append(scores)
        if len(attempts) == 1:
            full(1)
        return update(self, scores)

    monkeypatch.setattr(WeightFiles, "update", once)
    writer.scores[4] = 50.0
    save(writer, 4)
    writer.wait()
    assert attempts == [{4: 50.0}] * 2 and steps(tmp_path) == [4]
    assert "No space left on device; trying again" in writer.take_warnings()[0]
    folder = RunFolder(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "step-00000004"
    for path in (folder.model, folder.model_best):
        assert path.samefile(checkpoint / "model.safetensors")


def test_successful_save_resets_the_count_of_failures(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two saves fail, both attempts; the third does not, and the count begins anew."""
    disk = Disk(
        monkeypatch, lambda attempt: full(attempt) if attempt in (1, 2, 3, 4, 6, 7, 8, 9) else None
    )
    for step in (1, 2, 3, 4, 5, 6):
        save(writer, step)
    writer.wait()
    assert steps(tmp_path) == [6, 3] and disk.attempts == [1, 1, 2, 2, 3, 4, 4, 5, 5, 6]
    assert len(writer.take_warnings()) == 8


def test_third_failed_save_in_a_row_ends_the_run(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, full)
    save(writer, 1)
    save(writer, 2)
    with pytest.raises(
        CheckpointError,
        match=r"(?s)step 1 not saved.*step 2 not saved.*step 3 not saved: .Errno 28. No space",
    ):
        save(writer, 3)
    assert list((tmp_path / "checkpoints").glob("*")) == []


def test_failed_last_save_is_an_error(
    writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, full)
    save(writer, 1)
    with pytest.raises(CheckpointError, match="step 1 not saved"):
        writer.wait()


def test_weights_that_are_not_finite_are_not_tried_again(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, lambda _: None)
    save(writer, 1)
    save(writer, 2, {"model": {"a": torch.tensor([1.0, torch.nan])}})
    with pytest.raises(CheckpointError, match="step 2 not saved: not finite: a of model"):
        writer.wait()
    assert disk.attempts == [1, 2] and steps(tmp_path) == [1]


@pytest.mark.parametrize("place", ["a file", "below a file", "read-only"])
def test_folder_that_cannot_be_created_is_reported(
    place: str, writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "read-only":  # to root no folder is
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: full(30))
    else:
        (tmp_path / "checkpoints").write_text("")
        writer._folder = (
            tmp_path / "checkpoints" if place == "a file" else tmp_path / "checkpoints" / "more"
        )
    save(writer, 1)
    with pytest.raises(CheckpointError, match="step 1 not saved"):
        writer.wait()


def test_other_errors_are_not_caught(writer: CheckpointWriter) -> None:
    writer.save(TENSORS, {"step": 1, "adam_step": 1, "skipped": 0, "not JSON": object()})
    with pytest.raises(TypeError, match="JSON"):
        writer.wait()


def test_little_room_is_reported(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = free_space.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(free_space.shutil, "disk_usage", lambda _: usage._replace(free=3 << 20))
    save(writer, 1, {"model": {"a": torch.zeros(1 << 19)}})
    writer.wait()
    assert "3 MiB free, a checkpoint takes 2 MiB" in writer.take_warnings()[0]
    save(writer, 2, {"model": {"a": torch.zeros(1 << 18)}})
    writer.wait()
    assert writer.take_warnings() == []


def test_scores_are_restored_and_decide_the_best(writer: CheckpointWriter, tmp_path: Path) -> None:
    for step, score in ((1, 30.0), (2, 50.0), (3, 50.0), (4, 20.0), (5, 10.0)):
        save(writer, step)
        writer.scores[step] = (
            score  # comes after the save, as when a stop has cut an evaluation off
        )
    save(writer, 6)
    writer.wait()
    assert steps(tmp_path) == [6, 5, 3]
    state = json.loads((tmp_path / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert state["best"] == {"step": 3, "top1": 50.0} and state["scores"]["2"] == 50
    again = CheckpointWriter(weight_files(tmp_path), keep=2, rank=0)
    again.restore_scores(state)
    assert again.scores == writer.scores
    again.close()


def test_other_ranks_write_nothing_and_raise_the_error(
    writer: CheckpointWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = CheckpointWriter(weight_files(tmp_path / "second"), keep=2, rank=1)
    save(second, 1)
    second.wait()
    assert not (tmp_path / "second").exists()
    monkeypatch.setattr(checkpoint_writer, "all_agree", lambda ok: False)
    with pytest.raises(CheckpointError, match="rank 0 cannot save"):
        save(second, 2)
    second.close()
