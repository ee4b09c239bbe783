"""`Meter`, `MetricLog` across interruptions and on a full disk, and the files below it."""

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fastdeit.distributed.world import init_distributed
from fastdeit.run.metrics import MetricLog
from fastdeit.storage import atomic, jsonl
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.trainer import Meter


def open_log(folder: Path, step: int, warn: Callable[[str], None] = lambda line: None) -> MetricLog:
    log = MetricLog(RunFolder(folder), warn)
    log.open(step)
    return log


def test_meter_returns_the_steps_since_the_last_read() -> None:
    init_distributed()
    meter, rows = Meter(), torch.rand(5, 3)
    for step, row in enumerate(rows):
        meter.add(step, row)
    assert meter.read() == list(enumerate(rows.tolist()))
    assert meter.read() == []
    meter.add(7, torch.tensor([1.0, 2.0, 3.0]))
    assert meter.read() == [(7, [1.0, 2.0, 3.0])]


def test_meter_copies_its_input() -> None:
    meter, values = Meter(), torch.ones(2)
    meter.add(0, values)
    values.zero_()
    assert meter.read() == [(0, [1.0, 1.0])]


def test_log_of_a_resumed_run_drops_later_lines(tmp_path: Path) -> None:
    log = open_log(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # cut short by a kill
    log = open_log(tmp_path, 20)
    log.write(30, {"loss": 0.5, "lr": 1e-3})
    log.close()
    assert read_json_lines(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss": 10.0},
        {"step": 20, "loss": 20.0},
        {"step": 30, "loss": 0.5, "lr": 1e-3},
    ]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert read_json_lines(tmp_path / "nowhere.jsonl") == []


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    """Return the scalars that TensorBoard shows: step, name, value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [
        (item.step, name, item.value)
        for name in shown.Tags()["scalars"]
        for item in shown.Scalars(name)
    ]


def test_tensorboard_shows_a_repeated_step_once(tmp_path: Path) -> None:
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = open_log(tmp_path, start)
        for step in steps:
            log.write(step, {"loss": step + 0.5 * (start > 0), "digest": "no number"})
        log.close()
    assert scalars(tmp_path / "tensorboard") == [
        (1, "loss", 1),
        (2, "loss", 2),
        (3, "loss", 3.5),
        (4, "loss", 4.5),
    ]


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Imitate a full disk: no file of this process can grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_is_reported_once_and_loses_nothing_when_there_is_room_again(
    tmp_path: Path,
) -> None:
    warnings: list[str] = []
    log = open_log(tmp_path, 0, warnings.append)
    with files_of_at_most(1000):
        for step in range(100):
            log.write(step, {"loss": float(step), "lr": 1e-3})
        held = read_json_lines(tmp_path / "metrics.jsonl")
        assert (
            10 < len(held) < 50
            and len(warnings) == 2
            and all("cannot be written: [Errno 27]" in line for line in warnings)
        )
    log.write(100, {"loss": 100.0, "lr": 1e-3})
    log.close()
    expected = [{"step": step, "loss": float(step), "lr": 1e-3} for step in range(101)]
    assert read_json_lines(tmp_path / "metrics.jsonl") == expected
    assert [step for step, name, _ in scalars(tmp_path / "tensorboard") if name == "loss"] == list(
        range(101)
    )
    assert len(warnings) == 4 and all(
        line.endswith("can be written again") for line in warnings[2:]
    )


def test_pending_records_are_bounded_and_lost_ones_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_PENDING", 5)
    warnings: list[str] = []
    file = jsonl.AppendOnlyFile(tmp_path / "file", warnings.append)
    with files_of_at_most(21):
        for number in range(10):
            file.append(f"line {number}\n".encode())
        file.append(b"x\n" * 99)
    file.append(b"last\n")
    assert (
        tmp_path / "file"
    ).read_bytes() == b"line 0\nline 1\nline 2\nline 7\nline 8\nline 9\n" + b"x\n" * 99 + b"last\n"
    assert warnings[1].endswith("can be written again; 4 records are lost")
    with files_of_at_most(0):
        file.append(b"more")
        file.close()
    assert warnings[3].endswith("is incomplete; 1 records are lost") and len(warnings) == 4


def test_atomic_write_ignores_links_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic.atomic_write_text(tmp_path / "file", "old")
    with files_of_at_most(3), pytest.raises(OSError, match="File too large"):
        atomic.atomic_write_text(tmp_path / "file", "too long")
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(atomic.uuid, "uuid4", lambda: type("", (), {"hex": "known"}))
    (tmp_path / ".file.known.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        atomic.atomic_write_text(tmp_path / "file", "new")
    assert not (tmp_path / "elsewhere").exists() and (tmp_path / "file").read_text() == "old"
