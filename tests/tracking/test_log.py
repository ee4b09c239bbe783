"""`Meter`, `MetricLog` across interruptions and on a full disk, and its lines in TensorBoard."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdeit.distributed.world import init_distributed
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder
from fastdeit.tracking import log as log_module
from fastdeit.tracking.callbacks import RunEnd, RunStart
from fastdeit.tracking.log import MetricLog, find_step, list_by_step
from fastdeit.tracking.tensorboard import TensorBoard
from fastdeit.tracking.trackers import Trackers
from fastdeit.training.trainer import STATISTICS, Meter, StepStatistics
from tests.support.full_disk import limit_file_size
from tests.support.waiting import wait_until

STEPS_PER_EPOCH = 20
BATCH_SIZE = 8


class WatchedLog(MetricLog):
    """A log whose lines TensorBoard receives."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.watchers = Trackers()
        board = TensorBoard(folder / "tensorboard", {"lr": 0.1}, warn)
        self.watchers.add("TensorBoard", board, warn)
        super().__init__(RunFolder(folder), STEPS_PER_EPOCH, BATCH_SIZE, self.watchers, warn)

    def end(self) -> None:
        self.close()
        self.watchers.end(RunEnd("stopped", 0))


def open_log(
    folder: Path, step: int, warn: Callable[[str], None] = lambda line: None
) -> WatchedLog:
    log = WatchedLog(folder, warn)
    log.open(step)
    log.watchers.start(RunStart(folder, "deit", {}, {}, step, 100, log.logged_step))
    return log


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the log without the time."""
    lines = read_json_lines(folder / "metrics.jsonl")
    for line in lines:
        del line["time"], line["seconds_elapsed"]
    return lines


def place(step: int) -> dict[str, Any]:
    """Return what every line of the log has."""
    return {"step": step, "epoch": step / STEPS_PER_EPOCH, "images_seen": BATCH_SIZE * step}


def test_meter_returns_the_steps_since_the_last_read() -> None:
    init_distributed()
    meter, rows = Meter(), torch.rand(5, 3)
    for step, row in enumerate(rows):
        meter.add(step, step / 10, row)
    expected = [(step, step / 10, row) for step, row in enumerate(rows.tolist())]
    assert meter.read() == expected
    assert meter.read() == []
    meter.add(7, 0.1, torch.tensor([1.0, 2.0, 3.0]))
    assert meter.read() == [(7, 0.1, [1.0, 2.0, 3.0])]


def test_meter_copies_its_input() -> None:
    meter, values = Meter(), torch.ones(2)
    meter.add(0, 0.1, values)
    values.zero_()
    assert meter.read() == [(0, 0.1, [1.0, 1.0])]


def test_value_of_a_single_step_is_read_back_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.cat((torch.randn(200, 4).exp(), torch.randn(200, 4) * 1e-30)).tolist()
    rows.append([math.nan, 0.1, 2.0, math.inf])
    rows = torch.tensor(rows).tolist()
    steps = [StepStatistics(30 + at, 0.1 / (at + 1), row) for at, row in enumerate(rows)]
    log = open_log(tmp_path, 0)
    log.write(30 + len(rows), {"loss": 1.0} | list_by_step(steps))
    log.end()
    (line,) = read_log(tmp_path)
    for at, row in enumerate(rows):
        found = find_step(line, 30 + at)
        assert found is not None
        values = [found[name] for name in STATISTICS]
        assert values == pytest.approx(row, rel=0, abs=0, nan_ok=True)
        assert found["lr"] == 0.1 / (at + 1)
    assert find_step(line, 29) is None and find_step(line, 30 + len(rows)) is None
    assert find_step({"step": 40, "loss": 1.0, "lr": 0.1}, 39) is None  # of an older version
    assert list_by_step([]) == {}


def test_values_by_step_are_short(tmp_path: Path) -> None:
    step = StepStatistics(1, 0.1, torch.tensor([2.3189995, 1 / 3, 0.0, 1e10]).tolist())
    assert list_by_step([step])["by_step"] == {
        "step": [1],
        "lr": [0.1],
        "loss": [2.3189995],
        "base": [0.33333334],
        "distill": [0.0],
        "grad_norm": [1e10],
    }


def test_log_of_a_resumed_run_drops_later_lines(tmp_path: Path) -> None:
    log = open_log(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, {"loss": float(step)})
    log.end()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # cut short by a kill
    log = open_log(tmp_path, 20)
    log.write(30, {"loss": 0.5, "lr": 1e-3})
    log.end()
    assert read_log(tmp_path) == [
        place(10) | {"loss": 10.0},
        place(20) | {"loss": 20.0},
        place(30) | {"loss": 0.5, "lr": 1e-3},
    ]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert read_json_lines(tmp_path / "nowhere.jsonl") == []


def test_log_of_an_older_version_becomes_strict_json(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('\n{"step": 10, "loss": NaN}\n{"step": 20')
    open_log(tmp_path, 10).end()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 10, "loss": "nan"}\n'


def events(folder: Path) -> list[tuple[int, str, float, float]]:
    """Return the scalars that TensorBoard shows: step, name, value, time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [
        (item.step, name, item.value, item.wall_time)
        for name in shown.Tags()["scalars"]
        for item in shown.Scalars(name)
    ]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(step, value) for step, name, value, _ in events(folder) if name == "train/loss"]


def test_tensorboard_shows_a_repeated_step_once(tmp_path: Path) -> None:
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = open_log(tmp_path, start)
        for step in steps:
            log.write(step, {"loss": step + 0.5 * (start > 0), "digest": "no number"})
        log.end()
    assert losses(tmp_path) == [(1, 1), (2, 2), (3, 3.5), (4, 4.5)]


def test_rollback_drops_what_came_after_it(tmp_path: Path) -> None:
    log = open_log(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    log.open(1)
    log.write(4, {"loss": 40.0})
    log.end()
    assert [line["step"] for line in read_log(tmp_path)] == [1, 4]
    assert losses(tmp_path) == [(1, 1.0), (4, 40.0)]


def test_seconds_of_all_starts_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    seconds = []
    for start in (0, 0):  # the second one lost the work of the first
        log = MetricLog(RunFolder(tmp_path), 20, 8, Trackers(), print)
        log.open(start)
        now[0] += 50
        log.write(5, {"loss": 1.0})
        log.close()
        seconds.append(read_json_lines(tmp_path / "metrics.jsonl")[-1]["seconds_elapsed"])
        now[0] += 1000  # between the starts
    assert seconds == [50, 100]


def test_tensorboard_has_the_numbers_of_the_lines_at_their_time(tmp_path: Path) -> None:
    log = open_log(tmp_path, 0)
    steps = [StepStatistics(1, 0.1, [1.0, 1.0, 0.0, 2.0])]
    for step in (2, 5):
        log.write(step, {"loss": 1.5 * step, "digest": "no number"} | list_by_step(steps))
    log.end()
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    names = ("progress/epoch", "progress/images_seen", "speed/seconds_elapsed", "train/loss")
    expected = [
        (line["step"], name, pytest.approx(line[field]), pytest.approx(line["time"], abs=1e-3))
        for name in names
        for field in [name.split("/")[1]]
        for line in lines
    ]
    assert sorted(events(tmp_path)) == sorted(expected, key=lambda event: event[:2])
    assert 0 <= time.time() - lines[0]["time"] < 60


def test_full_disk_is_reported_once_and_loses_nothing_when_there_is_room_again(
    tmp_path: Path,
) -> None:
    warnings: list[str] = []
    log = open_log(tmp_path, 0, warnings.append)
    with limit_file_size(3500):
        for step in range(100):
            log.write(step, {"loss": float(step), "lr": 1e-3})
        wait_until(lambda: len(warnings) == 2)
        held = read_json_lines(tmp_path / "metrics.jsonl")
        assert (
            10 < len(held) < 50
            and len(warnings) == 2
            and all("cannot be written: [Errno 27]" in line for line in warnings)
        )
    log.write(100, {"loss": 100.0, "lr": 1e-3})
    log.end()
    expected = [place(step) | {"loss": float(step), "lr": 1e-3} for step in range(101)]
    assert read_log(tmp_path) == expected
    assert losses(tmp_path) == [(step, step) for step in range(101)]
    assert len(warnings) == 4 and all(
        line.endswith("can be written again") for line in warnings[2:]
    )
