"""`Meter`, `MetricLog` across interruptions and on a full disk, and the files below it."""

from collections.abc import Callable
from pathlib import Path

import torch

from fastdeit.distributed.world import init_distributed
from fastdeit.run.metrics import MetricLog
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.trainer import Meter
from tests.support.full_disk import limit_file_size


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


def test_full_disk_is_reported_once_and_loses_nothing_when_there_is_room_again(
    tmp_path: Path,
) -> None:
    warnings: list[str] = []
    log = open_log(tmp_path, 0, warnings.append)
    with limit_file_size(1000):
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
