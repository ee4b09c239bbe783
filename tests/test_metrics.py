"""Means on the device, and a log that reads as if the run had never stopped."""

from pathlib import Path

import pytest
import torch

from fastdeit.distributed import init_distributed
from fastdeit.metrics import Meter, MetricLog, read_metrics


def test_meter_gives_the_mean_since_it_was_read() -> None:
    init_distributed()
    meter, rows = Meter(), torch.rand(5, 3)
    for row in rows:
        meter.add(row)
    assert meter.read() == pytest.approx(rows.mean(0).tolist())
    meter.add(torch.tensor([1.0, 2.0, 3.0]))
    assert meter.read() == [1.0, 2.0, 3.0]


def test_meter_does_not_keep_what_it_is_given() -> None:
    meter, values = Meter(), torch.ones(2)
    meter.add(values)
    values.zero_()
    assert meter.read() == [1.0, 1.0]


def test_log_of_a_resumed_run_drops_what_comes_again(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # cut short by a kill
    log = MetricLog(tmp_path, 20)
    log.write(30, {"loss": 0.5, "lr": 1e-3})
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss": 10.0},
        {"step": 20, "loss": 20.0},
        {"step": 30, "loss": 0.5, "lr": 1e-3},
    ]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert read_metrics(tmp_path / "nowhere.jsonl") == []
