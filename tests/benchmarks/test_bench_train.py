"""What `bench_train` makes of its measurements."""

import numpy as np
import pytest
import torch

from benchmarks import bench_train
from benchmarks.measuring.trainers import CLASSES, MANIFEST
from fastdeit.teacher_cache.format import decode


@pytest.mark.parametrize(
    ("loader", "step", "both", "limit"),
    [
        (1000, 5000, 980, "the loader"),
        (5000, 1000, 950, "the step"),
        (1000, 1000, 500, "both share the CPU"),
        (1000, 5000, 850, "both share the CPU"),
    ],
)
def test_bottleneck_is_the_slower_part_unless_both_slow_each_other(
    loader: float, step: float, both: float, limit: str
) -> None:
    assert bench_train.name_bottleneck(loader, step, both) == limit


def test_batches_that_the_queues_hold_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bench_train.time, "perf_counter", lambda: now[0])
    steps: list[int] = []

    def step() -> None:
        steps.append(len(steps))
        now[0] += 2.0 if len(steps) > bench_train.FILLED else 0.0

    found = bench_train.measure_rate(step, 64, torch.device("cpu"))
    assert found.images_per_s == 32
    assert len(steps) == bench_train.FILLED + bench_train.MEASURED["cpu"]


def test_a_gap_has_the_wait_and_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_train, "CALLS", 2)
    monkeypatch.setattr(bench_train, "PAUSE_S", 0.0)
    now = [0.0]
    monkeypatch.setattr(bench_train.time, "perf_counter", lambda: now[0])

    def take() -> None:
        now[0] += 0.25

    gap = bench_train.measure_gap(take, 8, steps=3)
    assert gap.waits == [250.0] * 3 and gap.calls == [0.0] * 3 and len(gap.host) == 3


def test_records_are_classes_of_the_trainers_teacher() -> None:
    ordinals = np.array([3, CLASSES + 4])
    records = bench_train.HardRecords().records(0, ordinals, ordinals, ordinals, 0)
    assert decode(torch.from_numpy(records), MANIFEST, hard=True).tolist() == [3, 4]
